package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/tsdb"
	promruntime "github.com/prometheus/prometheus/util/runtime"
)

// maxReopens bounds how often the TSDB is opened again after it repaired its
// log. Once is enough unless the log breaks anew between two replays.
const maxReopens = 2

// open brings the data directory into a state that the TSDB can open, and
// opens it. What had to be set aside is in the log when it returns.
//
// A TSDB that finds its write-ahead log broken ends replay there, repairs the
// log and serves what it has. It then never reads the log of what came out of
// order, and a compaction would delete that log unread. So it is closed, gets
// back the series behind the break, and is opened again. A ctx that ends in between makes that errStopped.
func (s *Store) open(ctx context.Context) (*tsdb.DB, error) {
	if err := s.cleanImports(); err != nil {
		s.logger.Warn("temporary files of an earlier run stay", "err", err)
	}
	keeper, err := s.salvage()
	if err != nil {
		return nil, err
	}
	s.say(sayReplay)
	db, repaired, kept, err := s.openTSDB(keeper)
	if err != nil {
		return nil, err
	}
	for range maxReopens {
		if !repaired {
			break
		}
		s.logger.Warn("write-ahead log was repaired, opening the data directory again to replay what came out of order")
		s.discard(db, keeper)
		db = nil // It is as large as the one that comes.
		s.rescue(kept)
		if ctx.Err() != nil {
			return nil, errStopped
		}
		keeper = keepWAL(s.TSDBDir(), keeper.q)
		if db, repaired, kept, err = s.openTSDB(keeper); err != nil {
			return nil, err
		}
	}
	if repaired {
		s.logger.Error("write-ahead log broke at each replay, samples that came out of order may be missing", "replays", 1+maxReopens)
	}
	if fs := promruntime.Statfs(s.TSDBDir()); fs == "NFS_SUPER_MAGIC" {
		s.logger.Warn("data directory is on a file system that the TSDB does not support: data may get lost", "fs_type", fs)
	}
	if err := s.strings.verify(context.WithoutCancel(ctx), db.Head()); err != nil {
		return nil, errors.Join(fmt.Errorf("count label strings: %w", err), db.Close())
	}
	return db, nil
}

// openTSDB opens the TSDB and tells whether that repaired its log, and in which
// directory the log is kept as it was.
func (s *Store) openTSDB(keeper *walKeeper) (db *tsdb.DB, repaired bool, kept string, err error) {
	reg := s.tsdbMetrics.next()
	db, err = tsdb.Open(s.TSDBDir(), quiet(s.logger), reg, s.tsdbOptions(), s.local.stats)
	repaired = keeper.repaired()
	// Also when it failed: a repair that did not end well has deleted
	// something all the same.
	kept = keeper.settle()
	if err != nil {
		return nil, false, "", fmt.Errorf("open TSDB: %w", err)
	}
	s.tsdbMetrics.goOn(reg)
	return db, repaired, kept, nil
}

// discard closes a TSDB that did not replay everything, so that the next one
// starts from the logs.
func (s *Store) discard(db *tsdb.DB, keeper *walKeeper) {
	if err := s.tsdbMetrics.remember(); err != nil {
		s.logger.Warn("cannot read the metrics of the TSDB before it is opened again", "err", err)
	}
	if err := db.Close(); err != nil {
		// All files are closed all the same. What it did not write is in the
		// log that is replayed next.
		s.logger.Warn("TSDB did not close cleanly after the repair", "err", err)
	}
	// Series without a sample in order are in no snapshot that it may have
	// written, and the log is not read for what a snapshot should have. The
	// log has all that a snapshot has.
	if err := tsdb.DeleteChunkSnapshots(s.TSDBDir(), math.MaxInt, math.MaxInt); err != nil {
		s.logger.Warn("cannot remove a snapshot of the head that is not whole", "err", err)
	}
	if err := keeper.dropNewChunks(); err != nil {
		s.logger.Warn("cannot remove the head chunks of a replay that was not whole", "err", err)
	}
	s.strings.reset()

	st := s.local.stats.Head.WALReplayStatus
	st.Lock()
	st.Min, st.Max, st.Current = 0, 0, 0
	st.Unlock()
	s.say(sayReplayAgain)
}

// rescue brings back the series behind the break from the log as it was. It
// does what it can: without them the TSDB opens all the same.
func (s *Store) rescue(kept string) {
	if kept == "" {
		return // There are no hard links here.
	}
	n, err := rescueSeries(filepath.Join(kept, "wal"), filepath.Join(s.TSDBDir(), "wal"), s.opts)
	if err != nil {
		s.logger.Warn("cannot bring back all series from behind the break of the write-ahead log", "err", err)
	}
	if n > 0 {
		s.logger.Info("series from behind the break of the write-ahead log were brought back", "series", n)
	}
}

// tsdbMetrics collects the metrics of the TSDB that was opened last. A TSDB
// registers its metrics and never unregisters them, so each gets a registry of
// its own.
type tsdbMetrics struct {
	current atomic.Pointer[prometheus.Registry]
	// damage is what the TSDBs before that one counted.
	damage map[string]damageCount
}

// damageCounters lists counters that alerts watch and that count at open: they
// have to tell of what only the first of several replays met.
func damageCounters() []string {
	return []string{
		"prometheus_tsdb_wal_corruptions_total",
		"prometheus_tsdb_mmap_chunk_corruptions_total",
		"prometheus_tsdb_snapshot_replay_error_total",
	}
}

type damageCount struct {
	help  string
	value float64
}

// Describe describes nothing: what there is depends on the TSDB, which adds to
// it while it runs.
func (*tsdbMetrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m *tsdbMetrics) Collect(ch chan<- prometheus.Metric) {
	if reg := m.current.Load(); reg != nil {
		reg.Collect(ch)
	}
}

// next is the registry for the TSDB that is opened next.
func (m *tsdbMetrics) next() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	m.current.Store(reg)
	return reg
}

// remember keeps what the TSDB that is about to be closed counted of damage.
func (m *tsdbMetrics) remember() error {
	families, err := m.current.Load().Gather()
	if err != nil {
		return err
	}
	m.damage = map[string]damageCount{}
	for _, f := range families {
		if slices.Contains(damageCounters(), f.GetName()) && len(f.GetMetric()) == 1 {
			m.damage[f.GetName()] = damageCount{f.GetHelp(), f.GetMetric()[0].GetCounter().GetValue()}
		}
	}
	return nil
}

// goOn adds what was remembered to the counters of the TSDB that was opened.
// The registry hands out a counter to whoever registers it once more.
func (m *tsdbMetrics) goOn(reg *prometheus.Registry) {
	for name, was := range m.damage {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: was.help})
		var have prometheus.AlreadyRegisteredError
		if errors.As(reg.Register(c), &have) {
			if existing, ok := have.ExistingCollector.(prometheus.Counter); ok {
				existing.Add(was.value)
			}
		} else {
			c.Add(was.value)
		}
	}
}
