package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
)

// maxHeld bounds the markers that are held. Beyond, markers are written as they come.
const maxHeld = 2_000_000

// Held is a failed scrape, or pull, whose staleness markers are not written yet.
//
// A scrape that fails ends all series of its target. If it was only our zone that did not reach the target, that is
// wrong, and cannot be taken back: upstream's deletions are tombstones, and at this version a query, and the compaction,
// that meets one of them beside a cut at the edge of its range runs into a panic (tombstones.Intervals.Add, with an end of
// math.MaxInt64). So the markers wait until the other replicas have said what they saw, which takes an interval or so.
type Held struct {
	ID uint64
	// Target are the labels of its `up` series, without the name.
	Target labels.Labels
	// At is the time of the scrape, in Unix milliseconds, and Since when it ended.
	At    int64
	Since time.Time
}

// heldMarkers are the scrapes that wait, by their number.
type heldMarkers struct {
	on atomic.Bool

	mu     sync.Mutex
	last   uint64
	total  int
	scrape map[uint64]heldScrape
}

type heldScrape struct {
	Held
	series []heldSeries
}

type heldSeries struct {
	ref    storage.SeriesRef
	labels labels.Labels
	at     int64
}

// HoldMarkers has the staleness markers of failed scrapes wait until Release or Drop decides. It is off where nobody
// would decide.
func (s *Store) HoldMarkers() { s.held.on.Store(true) }

// Held lists the failed scrapes that wait, in no order.
func (s *Store) Held() []Held {
	s.held.mu.Lock()
	defer s.held.mu.Unlock()
	all := make([]Held, 0, len(s.held.scrape))
	for _, h := range s.held.scrape {
		all = append(all, h.Held)
	}
	return all
}

// Drop forgets the markers of a failed scrape: the target's series went on.
func (s *Store) Drop(id uint64) { s.held.take(id) }

// Release writes the markers of a failed scrape: the target's series ended then.
func (s *Store) Release(ctx context.Context, id uint64) error {
	h := s.held.take(id)
	if len(h.series) == 0 {
		return nil
	}
	app := s.Appender(ctx)
	for _, series := range h.series {
		_, err := app.Append(series.ref, series.labels, series.at, math.Float64frombits(value.StaleNaN))
		if err != nil && !tooLate(err) {
			return errors.Join(fmt.Errorf("end the series of a target that is down: %w", err), app.Rollback())
		}
	}
	if err := app.Commit(); err != nil {
		return fmt.Errorf("end the series of a target that is down: %w", err)
	}
	return nil
}

// tooLate tells that a marker has no place any more, which harms nobody.
func tooLate(err error) bool {
	return errors.Is(err, storage.ErrOutOfOrderSample) || errors.Is(err, storage.ErrDuplicateSampleForTimestamp) ||
		errors.Is(err, storage.ErrTooOldSample) || errors.Is(err, storage.ErrOutOfBounds)
}

func (h *heldMarkers) take(id uint64) heldScrape {
	h.mu.Lock()
	defer h.mu.Unlock()
	taken := h.scrape[id]
	h.total -= len(taken.series)
	delete(h.scrape, id)
	return taken
}

// add takes the markers of a scrape, unless there are too many.
func (h *heldMarkers) add(s heldScrape) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.total+len(s.series) > maxHeld {
		return false
	}
	if h.scrape == nil {
		h.scrape = map[uint64]heldScrape{}
	}
	h.last++
	s.ID, s.Since = h.last, time.Now()
	h.scrape[s.ID] = s
	h.total += len(s.series)
	return true
}

// Scrapes is what scrapes and pulls write to: each transaction is the outcome of one, with its `up`.
func (s *Store) Scrapes() storage.Appendable { return scrapes{s} }

type scrapes struct{ store *Store }

func (s scrapes) Appender(ctx context.Context) storage.Appender {
	a := s.store.Appender(ctx)
	if inner, ok := a.(*appender); ok && s.store.held.on.Load() {
		return &scrapeAppender{appender: inner, held: &s.store.held}
	}
	return a
}

// scrapeAppender keeps staleness markers to the end of the transaction, when it is known whether the scrape failed.
type scrapeAppender struct {
	*appender
	held   *heldMarkers
	stale  []heldSeries
	at     int64
	failed labels.Labels // Of the `up` series, when it is 0.
}

func (a *scrapeAppender) Append(ref storage.SeriesRef, l labels.Labels, t int64, v float64) (storage.SeriesRef, error) {
	switch {
	case v == 0:
		if l.Get(model.MetricNameLabel) == "up" {
			a.failed, a.at = l, t
		}
	case math.Float64bits(v) == value.StaleNaN:
		if ref == 0 {
			break
		}
		a.stale = append(a.stale, heldSeries{ref, l, t})
		return ref, nil
	}
	return a.appender.Append(ref, l, t, v)
}

func (a *scrapeAppender) Commit() error {
	if len(a.stale) > 0 {
		if a.failed.IsEmpty() || !a.held.add(heldScrape{
			Held:   Held{Target: labels.NewBuilder(a.failed).Del(model.MetricNameLabel).Labels(), At: a.at},
			series: a.stale,
		}) {
			for _, s := range a.stale {
				// As upstream's scrape loop does: a marker that has no place is none.
				if _, err := a.appender.Append(s.ref, s.labels, s.at, math.Float64frombits(value.StaleNaN)); err != nil && !tooLate(err) {
					return errors.Join(fmt.Errorf("end series: %w", err), a.Rollback())
				}
			}
		}
		a.stale = nil
	}
	return a.appender.Commit()
}
