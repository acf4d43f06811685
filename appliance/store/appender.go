package store

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"
)

// Appender appends to the local data; remote_write reads it from there. Labels
// given with reference 0 are rewritten in place with equal strings that all
// series share, so that a caller that keeps them, as scraping does, shares
// them too. Nobody else may read them meanwhile.
func (s *Store) Appender(ctx context.Context) storage.Appender {
	db := s.local.db.Load()
	if db == nil {
		return notReadyAppender{}
	}
	a := &appender{head: db.Appender(ctx), logger: s.logger, commits: &s.commits}
	a.refs, _ = a.head.(storage.GetRef)
	if s.remoteWrite.Load() {
		a.remote = s.remote.Appender(ctx)
	}
	return a
}

// appender takes the place of upstream's fan-out appender, so that a sample of
// a known series costs one branch here and no call more than upstream. remote
// only counts, and is nil while no remote_write is configured.
type appender struct {
	head   storage.Appender
	refs   storage.GetRef
	remote storage.Appender
	logger *slog.Logger

	commits *commits
}

var _ storage.Appender = (*appender)(nil)

// known looks a series up that the caller has no reference for. When the head
// has it, after a restart for one, the caller's labels get the head's strings;
// when not, the head is about to create it and the interner does the same.
func (a *appender) known(l labels.Labels) storage.SeriesRef {
	if a.refs == nil || len(l) == 0 {
		return 0
	}
	ref, have := a.refs.GetRef(l, l.Hash())
	if ref != 0 {
		share(l, have)
	}
	return ref
}

func (a *appender) Append(ref storage.SeriesRef, l labels.Labels, t int64, v float64) (storage.SeriesRef, error) {
	if ref == 0 {
		ref = a.known(l)
	}
	ref, err := a.head.Append(ref, l, t, v)
	if err != nil || a.remote == nil {
		return ref, err
	}
	if _, err := a.remote.Append(ref, l, t, v); err != nil {
		return 0, err
	}
	return ref, nil
}

func (a *appender) AppendHistogram(ref storage.SeriesRef, l labels.Labels, t int64, h *histogram.Histogram, fh *histogram.FloatHistogram) (storage.SeriesRef, error) {
	if ref == 0 {
		ref = a.known(l)
	}
	ref, err := a.head.AppendHistogram(ref, l, t, h, fh)
	if err != nil || a.remote == nil {
		return ref, err
	}
	if _, err := a.remote.AppendHistogram(ref, l, t, h, fh); err != nil {
		return 0, err
	}
	return ref, nil
}

func (a *appender) AppendSTZeroSample(ref storage.SeriesRef, l labels.Labels, t, st int64) (storage.SeriesRef, error) {
	if ref == 0 {
		ref = a.known(l)
	}
	ref, err := a.head.AppendSTZeroSample(ref, l, t, st)
	if err != nil || a.remote == nil {
		return ref, err
	}
	if _, err := a.remote.AppendSTZeroSample(ref, l, t, st); err != nil {
		return 0, err
	}
	return ref, nil
}

func (a *appender) AppendHistogramSTZeroSample(ref storage.SeriesRef, l labels.Labels, t, st int64, h *histogram.Histogram, fh *histogram.FloatHistogram) (storage.SeriesRef, error) {
	if ref == 0 {
		ref = a.known(l)
	}
	ref, err := a.head.AppendHistogramSTZeroSample(ref, l, t, st, h, fh)
	if err != nil || a.remote == nil {
		return ref, err
	}
	if _, err := a.remote.AppendHistogramSTZeroSample(ref, l, t, st, h, fh); err != nil {
		return 0, err
	}
	return ref, nil
}

// AppendExemplar and UpdateMetadata create no series, so that there is nothing
// to intern.
func (a *appender) AppendExemplar(ref storage.SeriesRef, l labels.Labels, e exemplar.Exemplar) (storage.SeriesRef, error) {
	ref, err := a.head.AppendExemplar(ref, l, e)
	if err != nil || a.remote == nil {
		return ref, err
	}
	if _, err := a.remote.AppendExemplar(ref, l, e); err != nil {
		return 0, err
	}
	return ref, nil
}

func (a *appender) UpdateMetadata(ref storage.SeriesRef, l labels.Labels, m metadata.Metadata) (storage.SeriesRef, error) {
	ref, err := a.head.UpdateMetadata(ref, l, m)
	if err != nil || a.remote == nil {
		return ref, err
	}
	if _, err := a.remote.UpdateMetadata(ref, l, m); err != nil {
		return 0, err
	}
	return ref, nil
}

func (a *appender) SetOptions(opts *storage.AppendOptions) {
	a.head.SetOptions(opts)
	if a.remote != nil {
		a.remote.SetOptions(opts)
	}
}

func (a *appender) Commit() error {
	a.commits.begin(a)
	defer a.commits.end(a)
	err := a.head.Commit()
	if a.remote == nil {
		return err
	}
	if err != nil {
		if rerr := a.remote.Rollback(); rerr != nil {
			a.logger.Warn("remote storage did not take back what the head refused", "err", rerr)
		}
		return err
	}
	return a.remote.Commit()
}

func (a *appender) Rollback() error {
	err := a.head.Rollback()
	if a.remote != nil {
		if rerr := a.remote.Rollback(); err == nil {
			err = rerr
		}
	}
	return err
}

// commits are those that are under way. A commit waits for the write-ahead log and for locks of the head, so that the
// age of the oldest one tells whether samples still get in.
type commits struct {
	mu    sync.Mutex
	began map[*appender]time.Time
}

func (c *commits) begin(a *appender) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.began == nil {
		c.began = map[*appender]time.Time{}
	}
	c.began[a] = time.Now()
}

func (c *commits) end(a *appender) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.began, a)
}

// OldestCommit is for how long the oldest commit that is under way has been so, 0 when there is none.
func (s *Store) OldestCommit() time.Duration {
	s.commits.mu.Lock()
	defer s.commits.mu.Unlock()
	var oldest time.Duration
	for _, began := range s.commits.began {
		oldest = max(oldest, time.Since(began))
	}
	return oldest
}
