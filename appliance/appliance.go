// Package appliance is the process: it builds every component, hands each what it needs of the others, runs them, and
// carries the configuration to them.
//
// It owns the wiring, the order of starting and stopping, and the two phases of a reload. Options enter from the
// command line; nothing leaves but the components' own effects. It refuses to decide anything a component could
// decide: there is no monitoring in it.
package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/rules"
	promscrape "github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/tracing"
	v1 "github.com/prometheus/prometheus/web/api/v1"

	"github.com/tocsin-io/tocsin/appliance/alert"
	"github.com/tocsin-io/tocsin/appliance/bucket"
	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/drain"
	"github.com/tocsin-io/tocsin/appliance/evaluate"
	"github.com/tocsin-io/tocsin/appliance/federate"
	"github.com/tocsin-io/tocsin/appliance/heal"
	"github.com/tocsin-io/tocsin/appliance/mesh"
	"github.com/tocsin-io/tocsin/appliance/query"
	"github.com/tocsin-io/tocsin/appliance/scrape"
	"github.com/tocsin-io/tocsin/appliance/store"
	"github.com/tocsin-io/tocsin/web"
)

// closeTimeout bounds the closing of each thing that remains when all actors have stopped, on top of the time that
// remote_write is given to flush.
const closeTimeout = time.Minute

// Appliance is one replica.
type Appliance struct {
	opts    Options
	logger  *slog.Logger
	started time.Time
	self    config.Self
	host    string
	bound   map[string][]string
	// external is where people reach this replica.
	external *url.URL
	// zone is where this replica stands.
	zone    string
	cleanup []teardown

	web      *web.Web
	mesh     *mesh.Mesh      // nil without a cluster section
	objects  *bucket.Objects // nil without a bucket section
	source   *bucket.Source  // nil without a config_from section
	store    *store.Store
	ledger   *store.Ledger
	heal     *heal.Heal
	drain    *drain.Drain
	bucket   *bucket.Bucket // nil without a bucket section
	scrape   *scrape.Scrape
	federate *federate.Federate
	evaluate *evaluate.Evaluate
	alert    *alert.Alert
	query    *query.Query
	tracing  *tracing.Manager
	// rendezvous is nil where the replicas do not meet in the bucket.
	rendezvous *bucket.Rendezvous

	config     atomic.Pointer[config.Config]
	configured chan struct{} // Closed once the first configuration is applied.
	reloading  sync.Mutex    // Held while a configuration is applied.
	reloads    reloadMetrics
	lastReload atomic.Pointer[reloadResult]
	quit       chan struct{} // Closed when a stop is asked for over HTTP.
	quitOnce   sync.Once
	// stopRequested is closed once the process is told to stop, whoever told it.
	stopRequested chan struct{}

	stageMu   sync.Mutex
	stage     stage  // What was said last of a start or a stop.
	stopStage string // What is stopping or closing.
}

// teardown closes something that New opened.
type teardown struct {
	name  string
	close func() error
}

type reloadResult struct {
	at    time.Time
	phase string // In which it failed.
	err   error
}

// New reads the configuration, takes the data directory, binds the listeners and wires the components:
//
//	targets ──▶ scrape ────┐                        ┌──▶ query ──▶ web ──▶ people, Grafana, promtool
//	upstream Prometheus ──▶ federate ──▶ store ─────┤              ▲
//	                       ▲                        └──▶ evaluate  │ API
//	                       └── recorded series ─────────┘  │       │
//	                                                alerts ▼       │
//	                     outside Alertmanagers ◀──────── alert ────┴──▶ receivers
//	                                                       ▲
//	                     the other replicas ◀──── mesh ────┘ alerts, turns, silences
//	                              ▲
//	                              └──────▶ heal ──▶ store, query: what is missing here
//
// It is one straight line on purpose: each step needs what earlier ones made. An error rolls back what was opened.
func New(opts Options) (_ *Appliance, err error) {
	opts.Logger = slog.New(redacting{opts.Logger.Handler()})
	a := &Appliance{
		opts:       opts,
		logger:     opts.Logger,
		started:    time.Now(),
		configured: make(chan struct{}),
		quit:       make(chan struct{}),

		stopRequested: make(chan struct{}),
		reloads:       newReloadMetrics(opts.Registry),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	if a.host, err = os.Hostname(); err != nil {
		return nil, fmt.Errorf("ask for this host's name: %w", err)
	}
	if err := a.registerProcess(); err != nil {
		return nil, err
	}

	// The listeners come first: a port that is taken must fail before the data directory is touched, and what is
	// built in needs to know the port. The handlers behind them exist before the first request is served.
	o := opts.Web
	o.Logger, o.Registerer, o.Gatherer = a.component("web"), opts.Registry, a.gatherer()
	if o.ExternalURL, err = parseExternalURL(opts.ExternalURL); err != nil {
		return nil, err
	}
	o.API = late(func() http.Handler { return a.query.API() })
	o.Federate = late(func() http.Handler { return a.query.Federate() })
	o.Alertmanager = late(func() http.Handler { return a.alert.Handler() })
	o.HostMetrics = late(func() http.Handler { return a.scrape.HostMetrics() })
	o.Cluster, o.MeshEvents = late(a.cluster), late(a.meshEvents)
	o.Notifications = late(func() http.Handler { return a.alert.Notifications() })
	o.Gaps = late(func() http.Handler { return a.heal.Handler() })
	o.Bucket = late(a.bucketAPI)
	o.Config = late(a.configStatus)
	o.Drain = late(func() http.Handler { return a.drain.Handler() })
	o.Reload, o.Ready, o.Status = a.Reload, a.Ready, a.status
	o.Version = web.Version(opts.Version.api())
	if opts.EnableQuit {
		o.Quit = func() { a.quitOnce.Do(func() { close(a.quit) }) }
	}
	if a.web, err = web.New(o); err != nil {
		return nil, err
	}
	a.onClose("listeners", a.web.Close)
	a.bound = a.web.Addresses()
	a.external = a.web.ExternalURL()
	if a.self, err = a.selfFor(a.web.RoutePrefix()); err != nil {
		return nil, err
	}

	cfg, err := a.firstConfig()
	if err != nil {
		return nil, err
	}
	a.config.Store(cfg)
	names := cfg.Prometheus.GlobalConfig.MetricNameValidationScheme

	if err := discovery.RegisterK8sClientMetricsWithPrometheus(opts.Registry); err != nil {
		return nil, fmt.Errorf("register the Kubernetes client's metrics: %w", err)
	}
	sd, err := discovery.CreateAndRegisterSDMetrics(opts.Registry)
	if err != nil {
		return nil, fmt.Errorf("register the metrics of service discovery: %w", err)
	}

	so := opts.Store
	so.Dir, so.Config = opts.StoragePath, cfg
	so.Logger, so.Registerer = a.component("store"), opts.Registry
	so.ScrapeManager = scrapeManager{a}
	if a.store, err = store.New(so); err != nil {
		return nil, err
	}
	a.onClose("store", a.store.Close)
	if a.ledger, err = store.OpenLedger(store.LedgerOptions{
		Dir: filepath.Join(opts.StoragePath, "ledger"), Logger: a.component("store"), Registerer: opts.Registry,
		Retention: a.keeps, Settle: a.settle,
	}); err != nil {
		return nil, err
	}

	// Alerts, silences and the state of rules come from the other replicas too, so the mesh is there before them.
	a.zone = a.findZone(cfg)
	if cfg.Cluster != nil {
		if err := a.newMesh(cfg); err != nil {
			return nil, err
		}
	}

	if cfg.Bucket != nil {
		if err := a.newBucket(cfg); err != nil {
			return nil, err
		}
	}

	qo := opts.Query
	qo.Logger, qo.Registerer, qo.Gatherer = a.component("query"), opts.Registry, a.gatherer()
	qo.Store, qo.Dir = a.store, a.store.TSDBDir()
	qo.Targets, qo.ScrapePools = targets{a}, targets{a}
	qo.Alertmanagers = alertmanagers{a}
	qo.Rules = func() v1.RulesRetriever { return a.evaluate.Manager() }
	qo.Config = func() promconfig.Config { return *a.Config().Prometheus }
	qo.Ready, qo.Flags, qo.ExternalURL = a.configured, opts.Flags, a.external
	qo.ListenAddress = a.bound["web"][0]
	qo.Version, qo.RuntimeInfo = opts.Version.api(), a.runtimeInfo
	if a.mesh != nil && a.mesh.Keyed() {
		qo.Gaps, qo.Peers = a.ledger, latePeers{a}
	}
	if a.bucket != nil { // An interface that holds a nil pointer is not nil.
		qo.Archive = a.bucket
	}
	if a.query, err = query.New(qo); err != nil {
		return nil, err
	}
	a.onClose("query", a.query.Close)

	ao := opts.Alert
	ao.Logger, ao.Registerer, ao.SDMetrics = a.component("alert"), opts.Registry, sd
	ao.Dir = filepath.Join(opts.StoragePath, "alertmanager")
	ao.ExternalURL, ao.Address, ao.RoutePrefix = a.external, a.self.Address, a.self.RoutePrefix
	ao.NameValidationScheme, ao.Replica = names, cfg.Replica.Name
	if a.mesh != nil { // An interface that holds a nil pointer is not nil.
		ao.Mesh = a.mesh
	}
	if a.alert, err = alert.New(ao); err != nil {
		return nil, err
	}
	a.onClose("alert", a.alert.Close)

	co := opts.Scrape
	co.Logger, co.Registerer, co.SDMetrics = a.component("scrape"), opts.Registry, sd
	co.Appendable = a.store.Scrapes()
	if a.objects != nil { // An interface that holds a nil pointer is not nil.
		co.Bucket, co.BucketDir = a.objects, filepath.Join(opts.StoragePath, "targets")
	}
	if a.scrape, err = scrape.New(co); err != nil {
		return nil, err
	}
	a.onClose("scrape", func() error { a.scrape.Close(); return nil })

	if a.federate, err = federate.New(federate.Options{
		Logger: a.component("federate"), Registerer: opts.Registry, Appendable: a.store.Scrapes(),
	}); err != nil {
		return nil, err
	}

	eo := opts.Evaluate
	eo.Logger, eo.Registerer = a.component("evaluate"), opts.Registry
	eo.Queryable, eo.Appendable, eo.Engine = a.query.RulesQueryable(), a.store, a.query.Engine()
	eo.Evaluated = func(g *rules.Group, at time.Time) {
		a.ledger.Evaluated(heal.GroupLabels(g), at.UnixMilli(), g.Interval().Milliseconds())
	}
	if a.mesh != nil {
		eo.Mesh = a.mesh
	}
	eo.Notify, eo.ExternalURL, eo.NameValidationScheme = a.alert.Notify, a.external, names
	if a.evaluate, err = evaluate.New(eo); err != nil {
		return nil, err
	}
	a.onClose("evaluate", func() error { a.evaluate.Close(); return nil })

	if a.heal, err = a.newHeal(); err != nil {
		return nil, err
	}
	a.newDrain()
	a.tracing = tracing.NewManager(a.component("tracing"))
	return a, a.limitMemory()
}

// Run works until ctx ends or something that cannot go on fails, then stops everything in order and closes it.
func (a *Appliance) Run(ctx context.Context) error {
	err := a.actors(ctx).Run()
	return errors.Join(err, a.close())
}

// Ready says whether everything works, and in a sentence what it is still waiting for.
func (a *Appliance) Ready() (bool, string) {
	if a.stopping() {
		return false, "stopping"
	}
	if ok, sentence := a.store.Condition(); !ok {
		return false, sentence
	}
	select {
	case <-a.configured:
		return true, "ready"
	default:
		return false, "applying the configuration"
	}
}

func (a *Appliance) stopping() bool {
	select {
	case <-a.stopRequested:
		return true
	default:
		return false
	}
}

// Config is the configuration in force. It is read-only.
func (a *Appliance) Config() *config.Config { return a.config.Load() }

// component is a logger that says which part of the process speaks.
func (a *Appliance) component(name string) *slog.Logger { return a.logger.With("component", name) }

// logReady is the one line that tells scripts and people where everything is.
func (a *Appliance) logReady() {
	a.logger.Info("ready", "url", a.external.String(), "web", a.bound["web"], "alertmanager", a.bound["alertmanager"],
		"config", a.Config().Path, "storage", a.opts.StoragePath, "took", time.Since(a.started).Round(time.Millisecond))
}

func (a *Appliance) onClose(name string, f func() error) {
	a.cleanup = append(a.cleanup, teardown{name, f})
}

// close tears down what New opened, the last first, each in bounded time, so that one that hangs is named and does
// not keep the process from ending.
func (a *Appliance) close() error {
	var errs []error
	bound := a.closePatience()
	for i := len(a.cleanup) - 1; i >= 0; i-- {
		t := a.cleanup[i]
		a.at("closing " + t.name)
		done := make(chan error, 1)
		go func() { done <- t.close() }()
		select {
		case err := <-done:
			if err != nil {
				errs = append(errs, fmt.Errorf("close %s: %w", t.name, err))
			}
		case <-time.After(bound):
			errs = append(errs, fmt.Errorf("close %s: it did not finish in %s and is left behind", t.name, bound))
		}
	}
	a.cleanup = nil
	return errors.Join(errs...)
}

// closePatience is how long one step of closing may take.
func (a *Appliance) closePatience() time.Duration {
	bound := closeTimeout
	if cfg := a.Config(); cfg != nil {
		bound += time.Duration(len(cfg.Prometheus.RemoteWriteConfigs)) * a.opts.Store.RemoteFlushDeadline
	}
	return bound
}

func (a *Appliance) selfFor(prefix string) (config.Self, error) {
	address, err := selfAddress(a.bound["web"][0])
	if err != nil {
		return config.Self{}, err
	}
	u := url.URL{Host: address}
	return config.Self{Address: address, RoutePrefix: prefix, Instance: a.host + ":" + u.Port(), StoragePath: a.opts.StoragePath}, nil
}

// limitMemory has the runtime collect garbage harder before the machine or its cgroup runs out, as upstream's main
// does.
func (a *Appliance) limitMemory() error {
	if a.opts.MemoryLimitRatio == 0 {
		return nil
	}
	_, err := memlimit.Set(
		memlimit.WithRatio(a.opts.MemoryLimitRatio),
		memlimit.WithProvider(memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)),
	)
	if err != nil {
		a.logger.Warn("the memory limit is not known, so none is set", "err", err)
	}
	return nil
}

// late resolves a handler at each request: the listeners are bound before the handlers are built.
func late(h func() http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h().ServeHTTP(w, r) })
}

// scrapeManager hands upstream's remote write the scrape manager, which is built after the store.
type scrapeManager struct{ a *Appliance }

func (s scrapeManager) Get() (*promscrape.Manager, error) {
	if s.a.scrape == nil {
		return nil, errors.New("the scrape manager is not built yet")
	}
	return s.a.scrape.Manager(), nil
}
