// Package query answers questions about what is stored.
//
// It owns the PromQL engine, the Prometheus HTTP API under /api/v1 and the
// federation endpoint. What enters is HTTP requests and PromQL; what leaves is
// JSON, protobuf and the text exposition format, plus, where the receivers are
// switched on, samples that others push.
// It refuses to listen, to route and to store: the door is web, the data is
// store, and what a request may cost is bounded here before upstream's handlers
// see it.
package query

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/grafana/regexp"
	remoteapi "github.com/prometheus/client_golang/exp/api/remote"
	"github.com/prometheus/client_golang/prometheus"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/features"
	"github.com/prometheus/prometheus/util/gate"
	"github.com/prometheus/prometheus/util/logging"
	"github.com/prometheus/prometheus/util/notifications"
	v1 "github.com/prometheus/prometheus/web/api/v1"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// Defaults are upstream's: the flags of the same name promise them.
const (
	defaultTimeout        = 2 * time.Minute
	defaultLookbackDelta  = 5 * time.Minute
	defaultMaxConcurrency = 20
	defaultMaxSamples     = 50_000_000
	defaultSubscribers    = 16

	defaultReadSampleLimit      = 50_000_000
	defaultReadConcurrencyLimit = 10
	defaultReadMaxBytesInFrame  = 1 << 20
)

// Store is what queries read and receivers write: the local data with its
// figures, and the view that may reach further (remote read).
type Store interface {
	storage.Appendable
	storage.Queryable
	storage.ChunkQueryable
	storage.ExemplarQueryable
	v1.TSDBAdminStats
	// Local is the data of this machine alone; federation serves only that.
	Local() storage.Queryable
	// Oldest is the time of the oldest local sample, in Unix milliseconds.
	Oldest() (int64, error)
}

// RemoteRead bounds one remote read request; zero means upstream's default.
type RemoteRead struct {
	SampleLimit      int // samples in one unstreamed answer
	ConcurrencyLimit int // requests at the same time
	MaxBytesInFrame  int // bytes of one frame of a streamed answer
}

// Options is everything a Query needs. Store, Config, Registerer and Gatherer
// are required, the rest has a default.
type Options struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Gatherer   prometheus.Gatherer
	Store      Store
	Dir        string // TSDB directory, also holds the list of active queries

	// Gaps tells where this replica's data are not whole; nil means nowhere.
	Gaps Gaps
	// Peers are asked for what this replica's data lack; nil means that there are no others.
	Peers Peers
	// Archive has what is older than the local data; nil means that nothing has.
	Archive Archive
	// Engine is EnginePrometheus (default) or EngineThanos.
	Engine string

	Targets       v1.TargetRetriever
	ScrapePools   v1.ScrapePoolsRetriever
	Alertmanagers v1.AlertmanagerRetriever
	// Rules is asked on every request, because the rules need the engine first.
	Rules func() v1.RulesRetriever
	// Config answers with the configuration that is in force.
	Config func() promconfig.Config
	// Ready is closed when the store can answer and Gaps knows what it lacks; nil means that both is so.
	Ready <-chan struct{}

	Flags         map[string]string
	ExternalURL   *url.URL
	ListenAddress string
	Version       v1.PrometheusVersion
	RuntimeInfo   func() (v1.RuntimeInfo, error)
	Features      features.Collector // shared with other components; default: one of its own

	Timeout        time.Duration
	LookbackDelta  time.Duration
	MaxConcurrency int
	MaxSamples     int

	EnableAdmin              bool
	EnableRemoteWrite        bool
	EnableOTLP               bool
	OTLPDeltaToCumulative    bool
	OTLPNativeDelta          bool
	EnableSTZeroIngestion    bool
	EnableTypeAndUnitLabels  bool
	EnablePerStepStats       bool
	EnableDelayedNameRemoval bool
	AppendMetadata           bool
	RemoteWriteMessages      remoteapi.MessageTypes // default: both protocols
	RemoteRead               RemoteRead
	CORSOrigin               *regexp.Regexp
	MaxSubscribers           int // of live notifications
}

func (o *Options) validate() error {
	switch {
	case o.Store == nil:
		return errors.New("query: Options.Store is missing")
	case o.Config == nil:
		return errors.New("query: Options.Config is missing")
	case o.Registerer == nil:
		return errors.New("query: Options.Registerer is missing")
	case o.Gatherer == nil:
		return errors.New("query: Options.Gatherer is missing")
	case o.Dir == "":
		return errors.New("query: Options.Dir is missing")
	case o.MaxConcurrency < 0:
		return fmt.Errorf("query: the number of concurrent queries is %d, it must not be negative", o.MaxConcurrency)
	case o.MaxSamples < 0:
		return fmt.Errorf("query: the number of samples a query may load is %d, it must not be negative", o.MaxSamples)
	case o.Timeout < 0:
		return fmt.Errorf("query: the query timeout is %s, it must not be negative", o.Timeout)
	case o.LookbackDelta < 0:
		return fmt.Errorf("query: the lookback delta is %s, it must not be negative", o.LookbackDelta)
	case o.Engine != "" && o.Engine != EnginePrometheus && o.Engine != EngineThanos:
		return fmt.Errorf("query: the engine is %q, it must be %q or %q", o.Engine, EnginePrometheus, EngineThanos)
	case o.OTLPDeltaToCumulative && o.OTLPNativeDelta:
		return errors.New("query: OTLP deltas can be stored as they are or converted to cumulative, not both")
	}
	return nil
}

func (o *Options) setDefaults() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.LookbackDelta == 0 {
		o.LookbackDelta = defaultLookbackDelta
	}
	if o.MaxConcurrency == 0 {
		o.MaxConcurrency = defaultMaxConcurrency
	}
	if o.MaxSamples == 0 {
		o.MaxSamples = defaultMaxSamples
	}
	if o.MaxSubscribers == 0 {
		o.MaxSubscribers = defaultSubscribers
	}
	if o.RemoteRead.SampleLimit == 0 {
		o.RemoteRead.SampleLimit = defaultReadSampleLimit
	}
	if o.RemoteRead.ConcurrencyLimit <= 0 {
		o.RemoteRead.ConcurrencyLimit = defaultReadConcurrencyLimit
	}
	if o.RemoteRead.MaxBytesInFrame <= 0 {
		o.RemoteRead.MaxBytesInFrame = defaultReadMaxBytesInFrame
	}
	if o.RemoteWriteMessages == nil {
		o.RemoteWriteMessages = remoteapi.MessageTypes{remoteapi.WriteV1MessageType, remoteapi.WriteV2MessageType}
	}
	if o.CORSOrigin == nil {
		o.CORSOrigin = regexp.MustCompile("^(?:.*)$")
	}
	if o.ExternalURL == nil {
		o.ExternalURL = &url.URL{Scheme: "http", Host: o.ListenAddress}
	}
	if o.Features == nil {
		o.Features = features.NewRegistry()
	}
	if o.Ready == nil {
		ready := make(chan struct{})
		close(ready)
		o.Ready = ready
	}
	if o.RuntimeInfo == nil {
		o.RuntimeInfo = basicRuntimeInfo(time.Now().UTC())
	}
}

// Query holds the engine and the handlers built on it.
type Query struct {
	o        Options
	composed storage.Queryable
	engine   *promql.Engine
	// answers is engine, or the one that goes before it.
	answers  promql.QueryEngine
	notes    *notifications.Notifications
	api      http.Handler
	federate http.Handler
	requests *inflight
	// ingesting has a place for each body that is being decoded.
	ingesting *gate.Gate
	// buffers holds *[]byte for bodies that are decoded only to look at them.
	buffers sync.Pool

	// subqueryStep is the evaluation interval in milliseconds: the step of a
	// subquery that names none.
	subqueryStep atomic.Int64
	started      sync.Once
	closed       chan struct{}
	closeOnce    sync.Once

	mtx sync.Mutex
	// prepared is an opened query log that no apply has taken over yet.
	prepared *logging.JSONFileLogger
}

// New builds the engine and the handlers. The engine exists before the store is
// ready, because rules are built on it; requests are refused until then.
func New(o Options) (*Query, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o.setDefaults()

	q := &Query{o: o, requests: newInflight(), ingesting: gate.New(maxIngesting), closed: make(chan struct{})}
	q.subqueryStep.Store(time.Duration(promconfig.DefaultGlobalConfig.EvaluationInterval).Milliseconds())
	tracker, err := activeQueries(o.Dir, o.MaxConcurrency, o.Logger)
	if err != nil {
		return nil, err
	}
	q.notes = notifications.NewNotifications(o.MaxSubscribers, o.Registerer)
	select {
	case <-o.Ready:
	default:
		q.notes.AddNotification(notifications.StartingUp)
	}
	opts := promql.EngineOpts{
		Logger:                   o.Logger,
		Reg:                      o.Registerer,
		MaxSamples:               o.MaxSamples,
		Timeout:                  o.Timeout,
		ActiveQueryTracker:       tracker,
		LookbackDelta:            o.LookbackDelta,
		NoStepSubqueryIntervalFn: func(int64) int64 { return q.subqueryStep.Load() },
		// Off in a bare EngineOpts, always on in Prometheus since 2.33.
		EnableAtModifier:         true,
		EnableNegativeOffset:     true,
		EnablePerStepStats:       o.EnablePerStepStats,
		EnableDelayedNameRemoval: o.EnableDelayedNameRemoval,
		EnableTypeAndUnitLabels:  o.EnableTypeAndUnitLabels,
		FeatureRegistry:          o.Features,
	}
	q.engine = promql.NewEngine(opts)
	q.answers = q.engine
	if o.Engine == EngineThanos {
		q.answers = newThanos(opts, q.engine)
	}
	q.composed = newQueryable(&q.o)
	if o.Archive != nil {
		q.composed = newArchived(q.composed, &q.o)
	}
	q.api = q.newAPI()
	q.federate = q.newFederate()
	if !q.isReady() {
		go q.noteReady()
	}
	return q, nil
}

// activeQueries opens the list of running queries, which names the culprit
// after a crash. It is nil where the disk has no room for it. Upstream panics when
// the file cannot be mapped.
func activeQueries(dir string, concurrency int, logger *slog.Logger) (t promql.QueryTracker, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("open the list of active queries in %s: %v", dir, r)
		}
	}()
	switch err := probe(dir); {
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		logger.Warn("the list of running queries is not kept, because there is no room for it", "dir", dir, "err", err)
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("open the list of active queries in %s: %w", dir, err)
	}
	list := promql.NewActiveQueryTracker(dir, concurrency, logger)
	// Upstream maps a file with holes: the first query that lands in one when the disk is full would end the process
	// with a SIGBUS. Writing the file over itself fills them.
	if err := fill(filepath.Join(dir, "queries.active")); err != nil {
		logger.Warn("the list of running queries is not kept, because there is no room for it", "dir", dir, "err", err)
		return nil, list.Close()
	}
	return list, nil
}

// trackerBytes is more than upstream's list takes with any sensible number of queries.
const trackerBytes = 256 << 10

// probe finds out whether the list could be written, with a file that does no harm.
func probe(dir string) error {
	f, err := os.CreateTemp(dir, "queries.probe")
	if err != nil {
		return fmt.Errorf("create a file: %w", err)
	}
	_, err = f.Write(make([]byte, trackerBytes))
	return errors.Join(err, f.Close(), os.Remove(f.Name()))
}

func fill(file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the list: %w", err)
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("open the list: %w", err)
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}

// Engine answers PromQL for other components.
func (q *Query) Engine() promql.QueryEngine { return bounded{q.answers, q.subqueryStep.Load} }

// Queryable is what people and rules read: the store's data, and other replicas' where the store has a gap.
func (q *Query) Queryable() storage.Queryable { return q.composed }

// RulesQueryable is the same for rules, which do not wait for the archive for long.
func (q *Query) RulesQueryable() storage.Queryable {
	if a, ok := q.composed.(*archived); ok {
		return a.forRules()
	}
	return q.composed
}

// Notifications is the list shown by /api/v1/notifications: the appliance adds
// what the operator should see, such as a reload that was refused.
func (q *Query) Notifications() *notifications.Notifications { return q.notes }

// API serves the Prometheus HTTP API, with paths that start with /api/v1/.
func (q *Query) API() http.Handler { return q.api }

// Federate serves the latest sample of selected local series.
func (q *Query) Federate() http.Handler { return q.federate }

// Prepare opens the query log and notes the evaluation interval. Nothing
// changes until apply is called.
func (q *Query) Prepare(cfg *config.Config) (apply func() error, err error) {
	global := cfg.Prometheus.GlobalConfig
	// A typed nil must not become the engine's logger.
	var next promql.QueryLogger
	var opened *logging.JSONFileLogger
	if path := global.QueryLogFile; path != "" {
		// Opened anew even if the path is the same: that is how it is rotated.
		opened, err = logging.NewJSONFileLogger(path)
		if err != nil {
			return nil, fmt.Errorf("open query_log_file %s: %w", path, err)
		}
		next = opened
	}
	q.hold(opened)
	return func() error {
		q.mtx.Lock()
		if opened != nil && q.prepared != opened {
			q.mtx.Unlock()
			return errors.New("apply the query log: a later configuration was prepared in the meantime")
		}
		q.prepared = nil
		q.mtx.Unlock()
		q.engine.SetQueryLogger(next)
		q.subqueryStep.Store(time.Duration(global.EvaluationInterval).Milliseconds())
		return nil
	}, nil
}

// hold remembers an opened log until it is applied, and closes the one from a
// configuration that was prepared but never applied.
func (q *Query) hold(l *logging.JSONFileLogger) {
	q.mtx.Lock()
	defer q.mtx.Unlock()
	if q.prepared != nil {
		if err := q.prepared.Close(); err != nil {
			q.o.Logger.Warn("a query log that was never used did not close, going on", "err", err)
		}
	}
	q.prepared = l
}

// Close refuses further requests, waits for those that run and gives back the
// query log and the list of active queries. Rules must be stopped before.
func (q *Query) Close() error {
	q.closeOnce.Do(func() { close(q.closed) })
	if !q.requests.close(closeTimeout) {
		// The list is mapped memory: unmapping it under a running query would
		// take the process down, so it is left to the operating system.
		return fmt.Errorf("close the query engine: requests still run after %s", closeTimeout)
	}
	q.hold(nil)
	q.engine.SetQueryLogger(nil)
	if err := q.engine.Close(); err != nil {
		return fmt.Errorf("close the query engine: %w", err)
	}
	return nil
}

// isReady says whether the store answers, and takes back the notification that
// it does not as soon as it does.
func (q *Query) isReady() bool {
	select {
	case <-q.o.Ready:
		q.started.Do(func() { q.notes.DeleteNotification(notifications.StartingUp) })
		return true
	default:
		return false
	}
}

// noteReady has the notification of the start taken back when nobody asks
// anything: who listens to notifications may be the only one.
func (q *Query) noteReady() {
	select {
	case <-q.o.Ready:
		q.isReady()
	case <-q.closed:
	}
}
