package store

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
)

// local is the TSDB as a storage.Storage that answers tsdb.ErrNotReady before
// replay is done and after close.
type local struct {
	db              atomic.Pointer[tsdb.DB]
	stats           *tsdb.DBStats
	startTimeMargin int64 // ms
	open            atomic.Int64
	deletions       deletions
}

var _ storage.Storage = (*local)(nil)

func (l *local) Querier(mint, maxt int64) (storage.Querier, error) {
	db := l.db.Load()
	if db == nil {
		return nil, tsdb.ErrNotReady
	}
	q, err := db.Querier(mint, maxt)
	if err != nil {
		return nil, err
	}
	l.open.Add(1)
	if !l.deletions.mayCut() {
		return &countedQuerier{Querier: uncut{q, mint, maxt}, open: &l.open}, nil
	}
	return &countedQuerier{Querier: q, open: &l.open, cuts: &l.deletions}, nil
}

func (l *local) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	db := l.db.Load()
	if db == nil {
		return nil, tsdb.ErrNotReady
	}
	q, err := db.ChunkQuerier(mint, maxt)
	if err != nil {
		return nil, err
	}
	l.open.Add(1)
	if !l.deletions.mayCut() {
		return &countedChunkQuerier{ChunkQuerier: uncutChunks{q, mint, maxt}, open: &l.open}, nil
	}
	return &countedChunkQuerier{ChunkQuerier: q, open: &l.open, cuts: &l.deletions}, nil
}

func (l *local) Appender(ctx context.Context) storage.Appender {
	db := l.db.Load()
	if db == nil {
		return notReadyAppender{}
	}
	return db.Appender(ctx)
}

// StartTime is from when on local data can be relied on, with upstream's
// margin for the minutes that everything needs to come up.
func (l *local) StartTime() (int64, error) {
	db := l.db.Load()
	if db == nil {
		return math.MaxInt64, tsdb.ErrNotReady
	}
	start := time.Now().UnixMilli()
	if blocks := db.Blocks(); len(blocks) > 0 {
		start = blocks[0].Meta().MinTime
	}
	return start + l.startTimeMargin, nil
}

// Close does nothing: Store closes the TSDB, in order and bounded in time.
func (*local) Close() error { return nil }

// countedQuerier counts itself out when it is closed, once. Whoever forgets to
// close a querier stops compaction, so the count is a metric.
type countedQuerier struct {
	storage.Querier
	open   *atomic.Int64
	cuts   *deletions // nil: it does not let the TSDB cut.
	closed atomic.Bool
}

func (q *countedQuerier) Close() error {
	if !q.closed.CompareAndSwap(false, true) {
		return q.Querier.Close()
	}
	defer q.open.Add(-1)
	if q.cuts != nil {
		defer q.cuts.cut()
	}
	return q.Querier.Close()
}

type countedChunkQuerier struct {
	storage.ChunkQuerier
	open   *atomic.Int64
	cuts   *deletions // nil: it does not let the TSDB cut.
	closed atomic.Bool
}

func (q *countedChunkQuerier) Close() error {
	if !q.closed.CompareAndSwap(false, true) {
		return q.ChunkQuerier.Close()
	}
	defer q.open.Add(-1)
	if q.cuts != nil {
		defer q.cuts.cut()
	}
	return q.ChunkQuerier.Close()
}

// Querier answers from local data and remote_read.
func (s *Store) Querier(mint, maxt int64) (storage.Querier, error) {
	return s.merged.Querier(mint, maxt)
}

// ChunkQuerier answers from local data and remote_read.
func (s *Store) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return s.merged.ChunkQuerier(mint, maxt)
}

// ExemplarQuerier answers from local data.
func (s *Store) ExemplarQuerier(ctx context.Context) (storage.ExemplarQuerier, error) {
	db := s.local.db.Load()
	if db == nil {
		return nil, tsdb.ErrNotReady
	}
	return db.ExemplarQuerier(ctx)
}

// Local is the local data alone, without remote_read.
func (s *Store) Local() storage.Queryable { return s.local }

// LocalChunks is Local in chunks.
func (s *Store) LocalChunks() storage.ChunkQueryable { return s.local }

// TimeRange is from the oldest to the newest local sample, in Unix milliseconds: math.MaxInt64 and math.MinInt64 when
// there are none.
func (s *Store) TimeRange() (oldest, newest int64, err error) {
	db := s.local.db.Load()
	if db == nil {
		return 0, 0, tsdb.ErrNotReady
	}
	oldest, newest = min(db.Head().MinTime(), db.Head().MinOOOTime()), db.Head().MaxTime()
	for _, b := range db.Blocks() {
		oldest, newest = min(oldest, b.Meta().MinTime), max(newest, b.Meta().MaxTime-1)
	}
	return oldest, newest, nil
}

// StartTime is from when on, in Unix milliseconds, local data can be relied on.
func (s *Store) StartTime() (int64, error) { return s.local.StartTime() }

// CleanTombstones rewrites blocks without what was deleted.
func (s *Store) CleanTombstones() error {
	db := s.local.db.Load()
	if db == nil {
		return tsdb.ErrNotReady
	}
	return db.CleanTombstones()
}

// Delete marks the samples of matching series in [mint, maxt] as deleted. It waits for queries that run.
func (s *Store) Delete(ctx context.Context, mint, maxt int64, ms ...*labels.Matcher) error {
	db := s.local.db.Load()
	if db == nil {
		return tsdb.ErrNotReady
	}
	if err := s.local.deletions.begin(ctx); err != nil {
		return err
	}
	return db.Delete(ctx, mint, maxt, ms...)
}

// Snapshot hard-links the blocks, and with withHead writes the head, into dir.
func (s *Store) Snapshot(dir string, withHead bool) error {
	db := s.local.db.Load()
	if db == nil {
		return tsdb.ErrNotReady
	}
	return db.Snapshot(dir, withHead)
}

// Stats is the cardinality of the head.
func (s *Store) Stats(statsByLabelName string, limit int) (*tsdb.Stats, error) {
	db := s.local.db.Load()
	if db == nil {
		return nil, tsdb.ErrNotReady
	}
	return db.Head().Stats(statsByLabelName, limit), nil
}

// WALReplayStatus is how far replay is. It answers during replay too.
func (s *Store) WALReplayStatus() (tsdb.WALReplayStatus, error) {
	return s.local.stats.Head.WALReplayStatus.GetWALReplayStatus(), nil
}

// BlockMetas lists the blocks.
func (s *Store) BlockMetas() ([]tsdb.BlockMeta, error) {
	db := s.local.db.Load()
	if db == nil {
		return nil, tsdb.ErrNotReady
	}
	return db.BlockMetas(), nil
}

// notReadyAppender answers ErrNotReady to everything.
type notReadyAppender struct{}

func (notReadyAppender) SetOptions(*storage.AppendOptions) {}

func (notReadyAppender) Append(storage.SeriesRef, labels.Labels, int64, float64) (storage.SeriesRef, error) {
	return 0, tsdb.ErrNotReady
}

func (notReadyAppender) AppendExemplar(storage.SeriesRef, labels.Labels, exemplar.Exemplar) (storage.SeriesRef, error) {
	return 0, tsdb.ErrNotReady
}

func (notReadyAppender) AppendHistogram(storage.SeriesRef, labels.Labels, int64, *histogram.Histogram, *histogram.FloatHistogram) (storage.SeriesRef, error) {
	return 0, tsdb.ErrNotReady
}

func (notReadyAppender) AppendHistogramSTZeroSample(storage.SeriesRef, labels.Labels, int64, int64, *histogram.Histogram, *histogram.FloatHistogram) (storage.SeriesRef, error) {
	return 0, tsdb.ErrNotReady
}

func (notReadyAppender) UpdateMetadata(storage.SeriesRef, labels.Labels, metadata.Metadata) (storage.SeriesRef, error) {
	return 0, tsdb.ErrNotReady
}

func (notReadyAppender) AppendSTZeroSample(storage.SeriesRef, labels.Labels, int64, int64) (storage.SeriesRef, error) {
	return 0, tsdb.ErrNotReady
}

func (notReadyAppender) Commit() error   { return tsdb.ErrNotReady }
func (notReadyAppender) Rollback() error { return tsdb.ErrNotReady }
