// Package scrape pulls samples from targets.
//
// It owns service discovery, the scrape pools, and the measuring of the machine that the replica runs on. Target
// groups enter from every service discovery that Prometheus has; samples leave through the Appendable that it is
// handed. It never opens the store, and what a target may cost in bytes, series and labels is bounded by the limits of
// its scrape configuration, which the built-in configuration sets.
package scrape

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/logging"
	"github.com/thanos-io/objstore"

	"github.com/tocsin-io/tocsin/appliance/config"
)

const (
	// steady is how often the targets may change, as in Prometheus: each change goes through all of them. Upstream waits
	// that long for the first ones too, twice; here each change passes at once while the process starts, so that it is
	// scraping within a second.
	steady   = 5 * time.Second
	starting = 30 * time.Second
	quick    = 200 * time.Millisecond
)

// Options are what scraping needs. Logger, Registerer, SDMetrics and Appendable are mandatory.
type Options struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// SDMetrics are the process's service discovery metrics, shared with the discovery of Alertmanagers.
	SDMetrics map[string]discovery.DiscovererMetrics
	// Appendable takes the samples. It must be ready before Run.
	Appendable storage.Appendable
	// Bucket is what bucket_sd_configs reads; nil where there is none. BucketDir keeps its last good targets.
	Bucket    objstore.BucketReader
	BucketDir string
	// Manager are upstream's own options, for its feature flags.
	Manager scrape.Options
}

// Scrape is service discovery with the scrape pools behind it.
type Scrape struct {
	logger    *slog.Logger
	discovery *discovery.Manager
	manager   *scrape.Manager
	host      http.Handler
	steady    time.Duration

	// passing is held while targets are handed to the manager, and while a configuration is applied.
	passing sync.Mutex
	passed  time.Time // when targets were handed over last

	cancel context.CancelFunc
	once   sync.Once
	jobs   sync.WaitGroup
}

// New discovers and scrapes nothing yet. Close it when Run never ran.
func New(opts Options) (*Scrape, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Scrape{logger: opts.Logger, cancel: cancel}
	var err error
	if s.host, err = newHostMetrics(opts.Logger); err != nil {
		cancel()
		return nil, err
	}
	if kind, ok := config.BucketDiscoveryOf(opts.SDMetrics); ok && opts.Bucket != nil {
		targets, err := newBucketTargets(opts.Bucket, opts.BucketDir, opts.Registerer)
		if err != nil {
			cancel()
			return nil, err
		}
		kind.New = targets.discoverer
	}
	s.discovery = discovery.NewManager(ctx, opts.Logger, opts.Registerer,
		opts.SDMetrics, discovery.Name("scrape"), discovery.Updatert(quick))
	if s.discovery == nil {
		cancel()
		return nil, errors.New("create the discovery of targets: its metrics are registered already")
	}
	s.steady = max(time.Duration(opts.Manager.DiscoveryReloadInterval), steady)
	opts.Manager.DiscoveryReloadInterval = model.Duration(quick)
	if s.manager, err = scrape.NewManager(&opts.Manager, opts.Logger,
		logging.NewJSONFileLogger, opts.Appendable, opts.Registerer); err != nil {
		cancel()
		return nil, fmt.Errorf("create the scrape manager: %w", err)
	}
	return s, nil
}

// Manager is upstream's, for the targets API.
func (s *Scrape) Manager() *scrape.Manager { return s.manager }

// HostMetrics serves this machine's metrics under node_exporter's names.
func (s *Scrape) HostMetrics() http.Handler { return s.host }

// Run discovers and scrapes until ctx ends. When it returns, no scrape is under way and none will append.
func (s *Scrape) Run(ctx context.Context) error {
	// Its only error is that its context ended.
	s.jobs.Go(func() { _ = s.discovery.Run() })
	s.jobs.Go(func() {
		<-ctx.Done()
		// The manager's pools append their last samples before Stop returns.
		s.manager.Stop()
	})
	targets := make(chan targetSets)
	pass := func(sets targetSets) {
		s.passing.Lock()
		defer s.passing.Unlock()
		select {
		case targets <- sets:
			s.passed = time.Now()
		case <-ctx.Done():
		}
	}
	s.jobs.Go(func() { ration(ctx, s.discovery.SyncCh(), pass, s.steady) })
	err := s.manager.Run(targets)
	s.Close()
	if err != nil {
		return fmt.Errorf("scrape: %w", err)
	}
	return nil
}

// targetSets are the groups of targets by scrape job.
type targetSets = map[string][]*targetgroup.Group

// ration passes on what discovery finds: at once in the beginning, and later the newest of each interval.
func ration(ctx context.Context, from <-chan targetSets, pass func(targetSets), interval time.Duration) {
	begin := time.Now()
	var newest targetSets
	var wait <-chan time.Time // nil while nothing waits to be passed.
	var last time.Time
	for {
		select {
		case newest = <-from:
			if wait != nil {
				continue
			}
			if due := interval - time.Since(last); due > 0 && time.Since(begin) > starting {
				wait = time.After(due)
				continue
			}
		case <-wait:
			wait = nil
		case <-ctx.Done():
			return
		}
		pass(newest)
		last = time.Now()
	}
}

// settle returns when the targets that were passed last are in their scrape pools. The caller holds passing, so that no
// others follow. Upstream must not be given a configuration while a pool takes in its targets: both touch the pool's
// failure log, under different locks (prometheus/prometheus#18127, which the pinned version does not have). Nothing
// says that the manager has begun with the targets; it does so within one tick.
func (s *Scrape) settle() {
	<-time.After(time.Until(s.passed.Add(2 * quick)))
	nobody := []*scrape.Target{scrape.NewTarget(labels.EmptyLabels(), &promconfig.ScrapeConfig{}, nil, nil)}
	for _, pool := range s.manager.ScrapePools() {
		// Of all that upstream exports, this alone waits for the pool. It changes targets of the pool only.
		s.manager.DisableEndOfRunStalenessMarkers(pool, nobody)
	}
}

// Close ends discovery. It is harmless to call it twice, and after Run.
func (s *Scrape) Close() {
	s.once.Do(func() {
		s.cancel()
		s.jobs.Wait()
	})
}

// Prepare proves that a client for every job can be built and every failure log opened, and changes nothing. Jobs
// that the new configuration leaves as they are go on scraping while the rest switches over.
func (s *Scrape) Prepare(cfg *config.Config) (apply func() error, err error) {
	sd := map[string]discovery.Configs{}
	for _, job := range cfg.ScrapeConfigs {
		if err := dryRun(job); err != nil {
			return nil, fmt.Errorf("prepare scrape job %q: %w", job.JobName, err)
		}
		sd[job.JobName] = job.ServiceDiscoveryConfigs
	}
	return func() error {
		s.passing.Lock()
		defer s.passing.Unlock()
		s.settle()
		// The manager first: it must know a job before its first targets arrive.
		if err := s.manager.ApplyConfig(cfg.Prometheus); err != nil {
			return fmt.Errorf("apply the scrape jobs: %w", err)
		}
		if err := s.discovery.ApplyConfig(sd); err != nil {
			return fmt.Errorf("apply the service discovery of the scrape jobs: %w", err)
		}
		return nil
	}, nil
}

// dryRun does what upstream does when it applies a job and what can fail there.
func dryRun(job *promconfig.ScrapeConfig) error {
	if _, err := commonconfig.NewClientFromConfig(job.HTTPClientConfig, job.JobName); err != nil {
		return fmt.Errorf("build its HTTP client: %w", err)
	}
	if job.ScrapeFailureLogFile == "" {
		return nil
	}
	f, err := os.OpenFile(job.ScrapeFailureLogFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("open its scrape_failure_log_file: %w", err)
	}
	return f.Close()
}
