// Package alert is the Alertmanager inside the replica, and the way alerts get to it.
//
// It owns the silences, the notification log, the active alerts, the routing tree with its receivers, and the queue
// through which firing alerts leave the rules. Alerts enter through Notify (from the rules of this replica) and
// through the Alertmanager API (from outside). Notifications leave through the receivers that alertmanager.yml names;
// alerts also leave to the outside Alertmanagers that prometheus.yml names. It never evaluates a rule and never
// stores a sample, and it refuses alerts with 503 until its first configuration is applied.
package alert

import (
	"context"
	"encoding/json"
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

	"github.com/prometheus/alertmanager/alert"
	"github.com/prometheus/alertmanager/api"
	"github.com/prometheus/alertmanager/cluster"
	amconfig "github.com/prometheus/alertmanager/config"
	"github.com/prometheus/alertmanager/dispatch"
	"github.com/prometheus/alertmanager/eventrecorder"
	"github.com/prometheus/alertmanager/featurecontrol"
	"github.com/prometheus/alertmanager/inhibit"
	"github.com/prometheus/alertmanager/marker"
	"github.com/prometheus/alertmanager/matcher/compat"
	"github.com/prometheus/alertmanager/notify"
	"github.com/prometheus/alertmanager/provider/mem"
	"github.com/prometheus/alertmanager/silence"
	"github.com/prometheus/alertmanager/tracing"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/common/route"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/notifier"
	"google.golang.org/grpc"

	"github.com/tocsin-io/tocsin/appliance/mesh"
)

// Defaults of a stock Alertmanager (its app package), kept so that a replica behaves like one.
const (
	// DefaultRetention is how long resolved silences and notification log entries are kept.
	DefaultRetention = 120 * time.Hour
	// maintenanceInterval is how often silences and notification log are collected and written to disk.
	maintenanceInterval = 15 * time.Minute
	// alertGCInterval is how often resolved alerts are forgotten.
	alertGCInterval = 30 * time.Minute
	// groupMaintenanceInterval is how often empty alert groups are forgotten.
	groupMaintenanceInterval = 30 * time.Second
	// peerTimeout is how long each place in the peers' order waits for the places before it to notify.
	peerTimeout = 15 * time.Second
)

// Mesh is what this package needs to know of the other replicas; a *mesh.Mesh is one. A nil Mesh is a replica that is
// alone.
type Mesh interface {
	cluster.ClusterPeer
	notify.Peer
	// Position is this replica's place, from 0, in the order that all replicas agree on.
	Position() int
	// AddState replicates a state under a key, and returns the channel for its changes.
	AddState(key string, state cluster.State, reg prometheus.Registerer) cluster.ClusterChannel
	// Keyed says that the members prove with the cluster key who they are. Without it there is gossip only, as
	// between stock Alertmanagers.
	Keyed() bool
	// Members are the replicas, also those that are dead since a short while.
	Members() []mesh.Member
	// OnChange has f called, which may not block, when Members has changed.
	OnChange(f func())
	// Server takes what the others may call, and Conn calls them.
	Server() grpc.ServiceRegistrar
	Conn(member string) (grpc.ClientConnInterface, error)
}

// Options are what an Alertmanager needs. Logger, Registerer, Dir, ExternalURL and Address are mandatory.
type Options struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// SDMetrics are the process's service discovery metrics, shared with the scrape discovery.
	SDMetrics map[string]discovery.DiscovererMetrics
	// Dir holds the snapshots of silences and notification log. It is created.
	Dir string
	// Replica is this replica's name, which the notification log keeps with what it sends.
	Replica string
	// ExternalURL is where people reach this replica. Notifications link to it for rules, and to its /alertmanager
	// for alerts and silences.
	ExternalURL *url.URL
	// Address is the host:port under which this replica's own Alertmanager is listed among the Alertmanagers. No
	// connection is made to it: what is sent there is handled in process.
	Address string
	// RoutePrefix is where the HTTP door mounts everything; "/" or a path without a slash at its end.
	RoutePrefix string
	// Retention of silences and notification log; 0 is DefaultRetention.
	Retention time.Duration
	// QueueCapacity is how many alerts may wait for delivery, and BatchSize how many go in one request; 0 is
	// Prometheus's default.
	QueueCapacity, BatchSize int
	// NameValidationScheme is what a label name may be, as the Prometheus configuration says it.
	NameValidationScheme model.ValidationScheme
	// Mesh is nil while there are no other replicas.
	Mesh Mesh
}

// Alert is the replica's Alertmanager with its delivery queue.
type Alert struct {
	opts    Options
	logger  *slog.Logger
	metrics *metrics

	alerts        *mem.Alerts
	silences      *silence.Silences
	silencer      *silence.Silencer
	log           *notificationLog
	groups        marker.GroupMarker
	api           *api.API
	handler       http.Handler
	tracing       *tracing.Manager
	notifyMetrics *notify.Metrics
	attempts      *attempts
	// Only where there are replicas to talk to.
	peers    *peers
	turns    *turns
	relay    *relay
	dispatch *dispatch.DispatcherMetrics
	recorder eventrecorder.Recorder
	coord    *amconfig.Coordinator
	prepared atomic.Pointer[prepared]

	// Rebuilt with every configuration.
	dispatcher atomic.Pointer[dispatch.Dispatcher]
	inhibitor  atomic.Pointer[inhibit.Inhibitor]
	started    time.Time

	// Delivery to this and to outside Alertmanagers.
	notifier   *notifier.Manager
	discovery  *discovery.Manager
	own        chan map[string][]*targetGroup
	delivering chan struct{}
	stopSD     context.CancelFunc
	drainUntil atomic.Pointer[time.Time] // Set at the stop.

	logJournal, silenceJournal *journal

	door      sync.RWMutex // Held by each request from outside that changes something, and to close.
	closed    bool
	closeOnce sync.Once
	closeErr  error
	stopc     chan struct{}
	jobs      sync.WaitGroup
}

// New reads the silences and the notification log of an earlier run from Dir. Nothing is sent or served before the
// first configuration is applied. Close it, also when Run never ran.
func New(opts Options) (*Alert, error) {
	if opts.Retention == 0 {
		opts.Retention = DefaultRetention
	}
	if err := os.MkdirAll(opts.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("create the Alertmanager's directory: %w", err)
	}
	reg, logger := opts.Registerer, opts.Logger
	flags := featurecontrol.NoopFlags{}
	// Process-wide in upstream's matcher parser; without it label matchers follow the rules of 2021.
	compat.InitFromFlags(logger, flags)

	a := &Alert{
		opts:       opts,
		logger:     logger,
		metrics:    newMetrics(reg),
		recorder:   eventrecorder.NopRecorder(),
		groups:     marker.NewGroupMarker(),
		attempts:   newAttempts(),
		started:    time.Now(),
		stopc:      make(chan struct{}),
		own:        make(chan map[string][]*targetGroup, 1),
		delivering: make(chan struct{}),
	}
	if err := a.openState(); err != nil {
		return nil, err
	}
	a.silencer = silence.NewSilencer(a.silences, logger, a.recorder)
	// An interface that holds a nil pointer is not nil: only a real mesh may be handed on.
	var peer cluster.ClusterPeer
	tellLog, tellSilences := func([]byte) {}, func([]byte) {}
	if opts.Mesh != nil {
		peer = opts.Mesh
		a.metrics.clusterEnabled.Set(1)
		tellLog = opts.Mesh.AddState("nfl", a.log, reg).Broadcast
		tellSilences = opts.Mesh.AddState("sil", a.silences, reg).Broadcast
	}
	// On disk first: a peer may not know what this replica can forget.
	a.log.SetBroadcast(func(b []byte) { a.logJournal.add(b); tellLog(b) })
	a.silences.SetBroadcast(func(b []byte) { a.silenceJournal.add(b); tellSilences(b) })
	var err error
	if a.alerts, err = mem.NewAlerts(context.Background(), alertGCInterval, 0, a.silencer, logger, a.recorder, reg, flags); err != nil {
		return nil, fmt.Errorf("create the store of active alerts: %w", err)
	}
	if a.api, err = api.New(api.Options{
		Alerts:          a.alerts,
		Silences:        a.silences,
		GroupMutedFunc:  a.groups.Muted,
		Peer:            peer,
		Logger:          logger,
		Registry:        reg,
		RequestDuration: a.metrics.requestDuration,
		GroupFunc: func(ctx context.Context, routes func(*dispatch.Route) bool, alerts func(*alert.Alert, time.Time) bool) (dispatch.AlertGroups, map[model.Fingerprint][]string, error) {
			return a.dispatcher.Load().Groups(ctx, routes, alerts)
		},
	}); err != nil {
		a.alerts.Close()
		return nil, fmt.Errorf("create the Alertmanager API: %w", err)
	}
	a.handler = a.api.Register(route.New(), "/")
	a.notifyMetrics = notify.NewMetrics(reg, flags)
	a.dispatch = dispatch.NewDispatcherMetrics(false, reg, flags)
	a.tracing = tracing.NewManager(logger)
	a.coord = amconfig.NewCoordinator("", reg, logger)
	a.coord.Subscribe(a.switchOver)
	switch {
	case opts.Mesh == nil:
	case opts.Mesh.Keyed():
		a.meet()
	default:
		logger.Warn("there is no cluster key, so alerts are not brought to the other replicas, and a sender that dies costs 15 s; make one with `tocsin cluster keygen` and set cluster.key_file")
	}
	if err := a.newDelivery(); err != nil {
		a.alerts.Close()
		return nil, err
	}
	return a, nil
}

func (a *Alert) logFile() string     { return filepath.Join(a.opts.Dir, "nflog") }
func (a *Alert) silenceFile() string { return filepath.Join(a.opts.Dir, "silences") }

// Run delivers alerts and keeps the snapshots on disk fresh until ctx ends; then what is queued is delivered, the
// groups stop, and the snapshots are written. The rules must have stopped before.
func (a *Alert) Run(ctx context.Context) error {
	a.jobs.Go(func() {
		a.log.Maintenance(maintenanceInterval, a.logFile(), a.stopc, func() (int64, error) {
			if _, err := a.log.GC(); err != nil {
				return 0, fmt.Errorf("forget old entries of the notification log: %w", err)
			}
			return a.logJournal.snapshot(a.logFile(), a.log.Snapshot)
		})
	})
	a.jobs.Go(func() {
		a.silences.Maintenance(maintenanceInterval, a.silenceFile(), a.stopc, func() (int64, error) {
			if _, err := a.silences.GC(); err != nil {
				return 0, fmt.Errorf("forget old silences: %w", err)
			}
			return a.silenceJournal.snapshot(a.silenceFile(), a.silences.Snapshot)
		})
	})
	if a.peers != nil {
		a.peers.start()
	}
	a.deliver(ctx)
	return a.Close()
}

// Close stops what New and the first configuration started. It is safe to call it twice, and without Run.
func (a *Alert) Close() error {
	a.closeOnce.Do(func() {
		a.door.Lock()
		a.closed = true
		a.door.Unlock()
		a.stopSD()
		if a.peers != nil {
			a.peers.drain()
		}
		if i := a.inhibitor.Load(); i != nil {
			i.Stop()
		}
		if d := a.dispatcher.Load(); d != nil {
			d.Stop()
		}
		a.alerts.Close()
		if a.peers != nil {
			a.peers.stop()
		}
		// Maintenance writes the snapshots a last time when it is told to stop.
		close(a.stopc)
		a.jobs.Wait()
		a.tracing.Stop()
		a.closeErr = errors.Join(a.logJournal.close(), a.silenceJournal.close())
	})
	return a.closeErr
}

// Handler serves the Alertmanager API v2 below /api/v2. It answers 503 until the first configuration is applied,
// because before that nobody could be notified.
func (a *Alert) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost && r.Method != http.MethodDelete {
			a.serve(w, r)
			return
		}
		if r.Method == http.MethodPost {
			// This reads the whole body, before the door: a slow client must not hold up the stop.
			if err := refuseNulls(r); err != nil {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(http.StatusBadRequest)
				// The client may be gone.
				_ = json.NewEncoder(w).Encode(map[string]any{"code": http.StatusBadRequest, "message": err.Error()})
				return
			}
		}
		// What is acknowledged must be on disk: Close waits for those who change something, and lets nobody else in.
		a.door.RLock()
		defer a.door.RUnlock()
		if a.closed {
			http.Error(w, "the Alertmanager is stopping", http.StatusServiceUnavailable)
			return
		}
		if a.relay != nil && r.Method == http.MethodPost && r.URL.Path == "/api/v2/alerts" {
			a.takeFromOutside(w, r)
			return
		}
		if r.Method != http.MethodPost || r.URL.Path != "/api/v2/silences" {
			a.serve(w, r)
			return
		}
		// What is answered with 200 must survive a kill, so the answer waits for the journal.
		before := a.silenceJournal.missing()
		held := &answer{header: w.Header()}
		a.serve(held, r)
		if a.silenceJournal.missing() != before && held.code == http.StatusOK {
			w.WriteHeader(http.StatusInternalServerError)
			_ = json.NewEncoder(w).Encode(map[string]any{
				"code":    http.StatusInternalServerError,
				"message": "the silence is in force, but it could not be written to disk and a restart may forget it: make room on the disk, then send it again",
			})
			return
		}
		held.WriteHeader(http.StatusOK)
		w.WriteHeader(held.code)
		_, _ = w.Write(held.body.Bytes()) // The client may be gone.
	})
}

// serve is Handler for requests that are known to be well-formed: our own.
func (a *Alert) serve(w http.ResponseWriter, r *http.Request) {
	if a.dispatcher.Load() == nil {
		http.Error(w, "the Alertmanager has no configuration yet: it is starting", http.StatusServiceUnavailable)
		return
	}
	a.handler.ServeHTTP(w, r)
}

// Notifier is the delivery queue, for the Prometheus API's list of Alertmanagers.
func (a *Alert) Notifier() *notifier.Manager { return a.notifier }

// Summary counts what a person on call asks first.
type Summary struct {
	// Active alerts that are firing, Silences that are in force, and Alertmanagers that alerts are sent to.
	Active, Silences, Alertmanagers int
}

// Summary is cheap enough for a page that is loaded every few seconds.
func (a *Alert) Summary(ctx context.Context) (Summary, error) {
	s := Summary{Alertmanagers: len(a.notifier.Alertmanagers())}
	var err error
	if s.Silences, err = a.silences.CountState(ctx, silence.SilenceStateActive); err != nil {
		return s, fmt.Errorf("count silences: %w", err)
	}
	it := a.alerts.GetPending()
	defer it.Close()
	for al := range it.Next() {
		if it.Err() != nil {
			return s, fmt.Errorf("list alerts: %w", it.Err())
		}
		if !al.Data.Resolved() {
			s.Active++
		}
	}
	return s, nil
}

// ConfigRefused sets Alertmanager's own metric of a failed reload: its configuration is part of ours, and existing
// alerts watch that metric.
func (a *Alert) ConfigRefused() {
	// Upstream's coordinator offers no other way; the error says only what was just told it.
	_ = a.coord.ApplyConfig(nil)
}
