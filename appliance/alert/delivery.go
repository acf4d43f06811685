package alert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/notifier"
	"github.com/prometheus/prometheus/rules"
)

// targetGroup shortens upstream's name where it is used in channels and maps.
type targetGroup = targetgroup.Group

// drainTime is how long what is queued at the stop may go on being sent to outside Alertmanagers. Ours takes it at once.
const drainTime = 10 * time.Second

// defaultQueueCapacity is Prometheus's --alertmanager.notification-queue-capacity.
const defaultQueueCapacity = 10000

// newDelivery builds the queue that carries alerts from the rules to this replica's Alertmanager, in process, and to
// the outside ones that prometheus.yml names, over HTTP. Upstream's notifier does the relabelling, queueing and
// counting for both; only the request to ourselves never reaches a socket.
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

// Notify takes the alerts of a rule. The replica's own labels never come along: Prometheus's external labels are
// added by upstream, as its configuration says.
//
// It waits until there is somebody to deliver to: upstream counts alerts that were sent to nobody as sent, and
// repeats them only after the resend delay of a minute.
func (a *Alert) Notify(ctx context.Context, expr string, alerts ...*rules.Alert) {
	select {
	case <-a.delivering:
	case <-ctx.Done():
		return
	}
	rules.SendAlerts(a.notifier, a.opts.ExternalURL.String())(ctx, expr, alerts...)
}

// prepareDelivery adds this replica's own Alertmanager behind the outside ones, and proves that clients for those can
// be built.
func (a *Alert) prepareDelivery(prom *promconfig.Config) (*promconfig.Config, error) {
	c := *prom
	outside := prom.AlertingConfig.AlertmanagerConfigs
	for i, am := range outside {
		if _, err := config.NewClientFromConfig(am.HTTPClientConfig, "alertmanager"); err != nil {
			return nil, fmt.Errorf("build the client of alerting.alertmanagers[%d]: %w", i, err)
		}
	}
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

// send carries a request to an Alertmanager: our own by a call, any other by the client.
func (a *Alert) send(ctx context.Context, c *http.Client, req *http.Request) (*http.Response, error) {
	prefix := a.ownPrefix()
	if req.URL.Host != a.opts.Address || !strings.HasPrefix(req.URL.Path, prefix+"/") {
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
	w := &answer{header: http.Header{}}
	http.StripPrefix(prefix, http.HandlerFunc(a.serve)).ServeHTTP(w, req.WithContext(ctx))
	return w.response(req), nil
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
