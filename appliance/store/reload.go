package store

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/alecthomas/units"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb"
	"go.yaml.in/yaml/v2"

	"github.com/tocsin-io/tocsin/appliance/config"
)

const (
	defaultRetention = 15 * 24 * time.Hour
	maxBlockDuration = 31 * 24 * time.Hour
	// defaultOOOWindow is not upstream's, which is none: gaps are filled from
	// peers through this window.
	defaultOOOWindow = 2 * time.Hour
	// Upstream keeps the old limit when a new configuration has none, so that
	// "no limit" is said with a limit that is never reached.
	unlimitedRetention = 100 * 365 * 24 * time.Hour
	unlimitedBytes     = math.MaxInt64
)

// settings are the reloadable part of the TSDB's configuration.
type settings struct {
	retention    time.Duration // 0 = no limit by time
	maxBytes     int64         // 0 = no limit by size
	oooWindow    time.Duration
	maxExemplars int64
}

// settingsOf reads the storage section. An out-of-order window of zero is one
// that the operator asked for: package config has filled in the default where
// the file says nothing.
func settingsOf(cfg *promconfig.Config) settings {
	st := settings{
		oooWindow:    defaultOOOWindow,
		maxExemplars: promconfig.DefaultExemplarsConfig.MaxExemplars,
	}
	if cfg != nil {
		if e := cfg.StorageConfig.ExemplarsConfig; e != nil {
			st.maxExemplars = max(e.MaxExemplars, 0)
		}
		if t := cfg.StorageConfig.TSDBConfig; t != nil {
			st.oooWindow = max(time.Duration(t.OutOfOrderTimeWindow)*time.Millisecond, 0)
			if r := t.Retention; r != nil {
				st.retention = max(time.Duration(r.Time), 0)
				st.maxBytes = max(int64(r.Size), 0)
			}
		}
	}
	if st.retention == 0 && st.maxBytes == 0 {
		st.retention = defaultRetention
	}
	st.retention = min(st.retention, unlimitedRetention)
	return st
}

// upstream renders the settings as a configuration for tsdb.DB.ApplyConfig of
// this version, working around what it does wrong: it needs an exemplar
// section, takes an absent window as none, leaves a limit in place that is no
// longer configured (hence old), and takes retention time, a duration in
// nanoseconds, as milliseconds.
func (st settings) upstream(old settings) *promconfig.Config {
	keep := st.retention
	if keep == 0 && old.retention != 0 {
		keep = unlimitedRetention
	}
	size := st.maxBytes
	if size == 0 && old.maxBytes != 0 {
		size = unlimitedBytes
	}
	retention := &promconfig.TSDBRetentionConfig{
		Time: model.Duration(keep.Milliseconds()),
		Size: units.Base2Bytes(size),
	}
	return &promconfig.Config{StorageConfig: promconfig.StorageConfig{
		ExemplarsConfig: &promconfig.ExemplarsConfig{MaxExemplars: st.maxExemplars},
		TSDBConfig: &promconfig.TSDBConfig{
			OutOfOrderTimeWindow: st.oooWindow.Milliseconds(),
			Retention:            retention,
		},
	}}
}

// Retention is what is configured now: by time and by size, 0 for no limit.
func (s *Store) Retention() (byTime time.Duration, bySizeBytes int64) {
	s.mtx.Lock()
	defer s.mtx.Unlock()
	return s.settings.retention, s.settings.maxBytes
}

// tsdbOptions are the options of the TSDB at open.
func (s *Store) tsdbOptions() *tsdb.Options {
	s.mtx.Lock()
	st := s.settings
	s.openedWith = st
	s.mtx.Unlock()

	o := s.opts
	maxBlock := o.MaxBlockDuration
	if maxBlock <= 0 {
		maxBlock = maxBlockDuration
		if st.retention != 0 {
			maxBlock = min(maxBlock, st.retention/10)
		}
	}
	var blocksToDelete tsdb.BlocksToDeleteFunc // Upstream's.
	if s.hold != nil {
		blocksToDelete = s.blocksToDelete
	}
	return &tsdb.Options{
		WALSegmentSize:                 o.WALSegmentSizeBytes,
		WALCompression:                 o.WALCompression,
		MaxBlockChunkSegmentSize:       o.MaxBlockChunkSegmentSizeBytes,
		RetentionDuration:              st.retention.Milliseconds(),
		MaxBytes:                       st.maxBytes,
		StripeSize:                     o.StripeSize,
		MinBlockDuration:               o.MinBlockDuration.Milliseconds(),
		MaxBlockDuration:               maxBlock.Milliseconds(),
		HeadChunksWriteQueueSize:       o.HeadChunksWriteQueueSize,
		SamplesPerChunk:                o.SamplesPerChunk,
		SeriesLifecycleCallback:        s.strings,
		EnableExemplarStorage:          true,
		MaxExemplars:                   st.maxExemplars,
		EnableMemorySnapshotOnShutdown: o.EnableMemorySnapshotOnShutdown,
		OutOfOrderTimeWindow:           st.oooWindow.Milliseconds(),
		EnableOverlappingCompaction:    !o.DisableOverlappingCompaction,
		EnableDelayedCompaction:        o.EnableDelayedCompaction,
		CompactionDelayMaxPercent:      o.CompactionDelayMaxPercent,
		UseUncachedIO:                  o.UseUncachedIO,
		BlockCompactionExcludeFunc:     s.excluded,
		BlocksToDelete:                 blocksToDelete,
		BlockReloadInterval:            o.BlockReloadInterval,
		FeatureRegistry:                o.Features,
	}
}

// Prepare checks what the new configuration wants of the store by building it
// and throwing it away. Its apply switches over: retention, the out-of-order
// window and exemplars at once, remote_write and remote_read where changed.
func (s *Store) Prepare(cfg *config.Config) (apply func() error, err error) {
	prom := prometheusOf(cfg)
	if prom == nil {
		return nil, errors.New("prometheus: section is missing")
	}
	if err := checkRemote(prom); err != nil {
		return nil, err
	}
	next := settingsOf(prom)
	return func() error { return s.apply(prom, next) }, nil
}

func (s *Store) apply(prom *promconfig.Config, next settings) error {
	s.mtx.Lock()
	defer s.mtx.Unlock()
	if s.closed {
		return errClosed
	}
	// Before replay is done this is only noted: publish applies it.
	old := s.settings
	s.settings = next
	var errs []error
	if db := s.local.db.Load(); db != nil {
		if err := db.ApplyConfig(next.upstream(old)); err != nil {
			errs = append(errs, fmt.Errorf("apply storage settings: %w", err))
		}
	}
	if err := s.remote.ApplyConfig(prom); err != nil {
		errs = append(errs, fmt.Errorf("apply remote storage: %w", err))
	}
	s.remoteWrite.Store(len(prom.RemoteWriteConfigs) > 0)
	return errors.Join(errs...)
}

// checkRemote builds each client once and drops it.
func checkRemote(cfg *promconfig.Config) error {
	var errs []error
	seen := map[string]bool{}
	for i, c := range cfg.RemoteWriteConfigs {
		_, err := remote.NewWriteClient("check", &remote.ClientConfig{
			URL:              c.URL,
			WriteProtoMsg:    c.ProtobufMessage,
			Timeout:          c.RemoteTimeout,
			HTTPClientConfig: c.HTTPClientConfig,
			SigV4Config:      c.SigV4Config,
			AzureADConfig:    c.AzureADConfig,
			GoogleIAMConfig:  c.GoogleIAMConfig,
			Headers:          c.Headers,
			RetryOnRateLimit: c.QueueConfig.RetryOnRateLimit,
			RoundRobinDNS:    c.RoundRobinDNS,
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("prometheus.remote_write[%d]: %w", i, err))
		}
		if same := fingerprint(c); same != "" && seen["write"+same] {
			errs = append(errs, fmt.Errorf("prometheus.remote_write[%d]: is there twice, to %s", i, c.URL.Redacted()))
		} else {
			seen["write"+same] = true
		}
	}
	for i, c := range cfg.RemoteReadConfigs {
		_, err := remote.NewReadClient("check", &remote.ClientConfig{
			URL:              c.URL,
			Timeout:          c.RemoteTimeout,
			ChunkedReadLimit: c.ChunkedReadLimit,
			HTTPClientConfig: c.HTTPClientConfig,
			Headers:          c.Headers,
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("prometheus.remote_read[%d]: %w", i, err))
		}
		if same := fingerprint(c); same != "" && seen["read"+same] {
			errs = append(errs, fmt.Errorf("prometheus.remote_read[%d]: is there twice, to %s", i, c.URL.Redacted()))
		} else {
			seen["read"+same] = true
		}
	}
	return errors.Join(errs...)
}

// fingerprint is what upstream tells one remote endpoint from another by.
func fingerprint(endpoint any) string {
	b, err := yaml.Marshal(endpoint)
	if err != nil {
		return ""
	}
	return string(b)
}

// registerHeadMetrics adds what stock Prometheus's main adds to the TSDB's own
// metrics, so that dashboards find the names they know.
func registerHeadMetrics(reg prometheus.Registerer, db *tsdb.DB) {
	gauge := func(name, help string, ms func() int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return float64(ms() / 1000) })
	}
	reg.MustRegister(
		gauge("prometheus_tsdb_lowest_timestamp_seconds", "Lowest timestamp value stored in the database.", func() int64 {
			if blocks := db.Blocks(); len(blocks) > 0 {
				return blocks[0].Meta().MinTime
			}
			return db.Head().MinTime()
		}),
		gauge("prometheus_tsdb_head_min_time_seconds", "Minimum time bound of the head block.", db.Head().MinTime),
		gauge("prometheus_tsdb_head_max_time_seconds", "Maximum timestamp of the head block.", db.Head().MaxTime),
	)
}
