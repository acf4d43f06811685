package alert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"
	"github.com/prometheus/prometheus/notifier"
	"github.com/prometheus/prometheus/rules"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// targetGroup shortens upstream's name where it is used in channels and maps.
type targetGroup = targetgroup.Group

// drainTime is how long what is queued at the stop may go on being sent to outside Alertmanagers. Ours takes it at once.
const drainTime = 10 * time.Second

// defaultQueueCapacity is Prometheus's --alertmanager.notification-queue-capacity.
const defaultQueueCapacity = 10000

// newDelivery builds the queue that carries alerts from the rules to the outside Alertmanagers that prometheus.yml names,
// over HTTP. This replica's own Alertmanager and the other replicas' have a way of their own (relay), which an outside one
// that hangs cannot hold up. The own one is listed among them nevertheless, and what is sent to it is counted here and
// goes nowhere: existing alerts watch that there is an Alertmanager, and that it takes alerts.
func (a *Alert) newDelivery() error {
	o := &notifier.Options{
		QueueCapacity:   a.opts.QueueCapacity,
		MaxBatchSize:    a.opts.BatchSize,
		DrainOnShutdown: true,
		Do:              a.send,
		Registerer:      a.opts.Registerer,
	}
	if o.QueueCapacity == 0 {
		o.QueueCapacity = defaultQueueCapacity
	}
	a.notifier = notifier.NewManager(o, a.opts.NameValidationScheme, a.logger)
	ctx, cancel := context.WithCancel(context.Background())
	a.stopSD = cancel
	a.discovery = discovery.NewManager(ctx, a.logger, a.opts.Registerer,
		a.opts.SDMetrics, discovery.Name("notify"))
	if a.discovery == nil {
		cancel()
		return errors.New("create the discovery of Alertmanagers: its metrics are registered already")
	}
	return nil
}

// Notify takes the alerts of a rule, for the Alertmanagers of all replicas and for the outside ones.
func (a *Alert) Notify(ctx context.Context, expr string, alerts ...*rules.Alert) {
	rules.SendAlerts(sender{a, ctx}, a.opts.ExternalURL.String())(ctx, expr, alerts...)
}

// sender gets the alerts of one rule from upstream.
type sender struct {
	a   *Alert
	ctx context.Context
}

func (s sender) Send(alerts ...*notifier.Alert) {
	a := s.a
	select {
	case <-a.delivering:
		a.notifier.Send(alerts...)
	case <-s.ctx.Done():
		return
	}
	var err error
	if own := a.relabel(alerts); a.relay != nil {
		err = a.relay.say(s.ctx, own)
	} else {
		err = a.put(s.ctx, own)
	}
	if err != nil {
		// Upstream's rules repeat them after the resend delay.
		a.logger.Error("alerts of a rule did not reach the Alertmanager", "alerts", len(alerts), "err", err)
	}
}

// relabel adds the external labels and applies alert_relabel_configs, as upstream's queue does for outside
// Alertmanagers.
func (a *Alert) relabel(alerts []*notifier.Alert) []posted {
	prom := a.prepared.Load().outside
	out := make([]posted, 0, len(alerts))
	lb := labels.NewBuilder(labels.EmptyLabels())
	for _, al := range alerts {
		if !outward(lb, al.Labels, prom) {
			continue
		}
		out = append(out, posted{
			Labels: lb.Labels().Map(), Annotations: al.Annotations.Map(), GeneratorURL: al.GeneratorURL,
			StartsAt: al.StartsAt, EndsAt: al.EndsAt,
		})
	}
	return out
}

// outward sets lb to the labels of a rule's alert as Alertmanagers get them; false if they do not get it.
func outward(lb *labels.Builder, ls labels.Labels, prom *promconfig.Config) bool {
	lb.Reset(ls)
	prom.GlobalConfig.ExternalLabels.Range(func(l labels.Label) {
		if ls.Get(l.Name) == "" {
			lb.Set(l.Name, l.Value)
		}
	})
	return relabel.ProcessBuilder(lb, prom.AlertingConfig.AlertRelabelConfigs...)
}

// Muted says what keeps an alert of a rule, by its labels there, from its receivers: "silenced", "inhibited", or "".
func (a *Alert) Muted(ctx context.Context, ls labels.Labels) string {
	p, inhibitor := a.prepared.Load(), a.inhibitor.Load()
	lb := labels.NewBuilder(labels.EmptyLabels())
	if p == nil || inhibitor == nil || !outward(lb, ls, p.outside) {
		return ""
	}
	set := model.LabelSet{}
	lb.Range(func(l labels.Label) { set[model.LabelName(l.Name)] = model.LabelValue(l.Value) })
	switch {
	case a.silencer.Mutes(ctx, set):
		return "silenced"
	case inhibitor.Mutes(ctx, set):
		return "inhibited"
	}
	return ""
}

// prepareDelivery adds this replica's own Alertmanager behind the outside ones, and proves that clients for those can
// be built.
func (a *Alert) prepareDelivery(prom *promconfig.Config) (*promconfig.Config, error) {
	c := *prom
	outside := prom.AlertingConfig.AlertmanagerConfigs
	for i, am := range outside {
		if _, err := commonconfig.NewClientFromConfig(am.HTTPClientConfig, "alertmanager"); err != nil {
			return nil, fmt.Errorf("build the client of alerting.alertmanagers[%d]: %w", i, err)
		}
	}
	// What tells the replicas apart must not make three alerts of one.
	c.GlobalConfig.ExternalLabels = config.Shared(prom.GlobalConfig.ExternalLabels)
	own := promconfig.DefaultAlertmanagerConfig
	own.PathPrefix = a.ownPrefix()
	c.AlertingConfig.AlertmanagerConfigs = append(outside[:len(outside):len(outside)], &own)
	return &c, nil
}

func (a *Alert) ownPrefix() string { return path.Join("/", a.opts.RoutePrefix, "alertmanager") }

func (a *Alert) applyDelivery(c *promconfig.Config) error {
	if err := a.notifier.ApplyConfig(c); err != nil {
		return fmt.Errorf("apply the delivery of alerts: %w", err)
	}
	ams := c.AlertingConfig.AlertmanagerConfigs
	sd := map[string]discovery.Configs{}
	last := len(ams) - 1
	for name, am := range ams.ToMap() {
		if am == ams[last] {
			// Our own address is known now: discovery would take 5 s to tell, in which alerts would go nowhere and
			// count as sent, for a whole resend delay.
			target := model.LabelSet{model.AddressLabel: model.LabelValue(a.opts.Address)}
			groups := map[string][]*targetGroup{name: {{Source: "tocsin", Targets: []model.LabelSet{target}}}}
			// The latest wins; nobody reads before Run.
			select {
			case <-a.own:
			default:
			}
			a.own <- groups
			continue
		}
		sd[name] = am.ServiceDiscoveryConfigs
	}
	if err := a.discovery.ApplyConfig(sd); err != nil {
		return fmt.Errorf("apply the discovery of Alertmanagers: %w", err)
	}
	return nil
}

// deliver runs the queue until ctx ends, and then until what is queued is delivered.
func (a *Alert) deliver(ctx context.Context) {
	sets := make(chan map[string][]*targetGroup)
	done := make(chan struct{})
	a.jobs.Go(func() { _ = a.discovery.Run() }) // Its only error is that its context ended.
	a.jobs.Go(func() {
		var once sync.Once
		pass := func(s map[string][]*targetGroup) {
			select {
			case sets <- s:
			case <-done:
			}
		}
		for {
			select {
			case s := <-a.own:
				pass(s)
				// That upstream takes it a second time says that it has acted on it the first time.
				pass(s)
				once.Do(func() { close(a.delivering) })
			case s := <-a.discovery.SyncCh():
				pass(s)
			case <-done:
				return
			}
		}
	})
	a.jobs.Go(func() {
		<-ctx.Done()
		deadline := time.Now().Add(drainTime)
		a.drainUntil.Store(&deadline)
		a.notifier.Stop()
	})
	a.notifier.Run(sets)
	close(done)
}

// send carries a request to an outside Alertmanager. Our own has the alerts already.
func (a *Alert) send(ctx context.Context, c *http.Client, req *http.Request) (*http.Response, error) {
	if req.URL.Host == a.opts.Address && strings.HasPrefix(req.URL.Path, a.ownPrefix()+"/") {
		return new(answer).response(req), nil
	}
	if c == nil {
		c = http.DefaultClient
	}
	if deadline := a.drainUntil.Load(); deadline != nil {
		var cancel context.CancelFunc
		if ctx, cancel = context.WithDeadline(ctx, *deadline); ctx.Err() != nil {
			cancel()
			return nil, fmt.Errorf("send to %s: the process stops and has waited %s", req.URL.Host, drainTime)
		}
		defer cancel()
	}
	return c.Do(req.WithContext(ctx))
}

// call is a request to this replica's own Alertmanager API, without a socket.
func (a *Alert) call(ctx context.Context, method, path string, body any) (*answer, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode a request to the Alertmanager: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, path, bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("make a request to the Alertmanager: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	w := &answer{header: http.Header{}}
	a.serve(w, req)
	return w, nil
}

// answer keeps what a handler writes. Answers of the Alertmanager to posted alerts are a sentence at most.
type answer struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (w *answer) Header() http.Header { return w.header }

func (w *answer) WriteHeader(code int) {
	if w.code == 0 {
		w.code = code
	}
}

func (w *answer) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(b)
}

func (w *answer) response(req *http.Request) *http.Response {
	w.WriteHeader(http.StatusOK)
	return &http.Response{
		StatusCode: w.code, Status: http.StatusText(w.code), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.header, Body: io.NopCloser(&w.body), ContentLength: int64(w.body.Len()), Request: req,
	}
}
