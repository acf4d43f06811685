package query

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/tocsin-io/tocsin/appliance/store"
)

const (
	// maxParallelAsks is how many questions of one select are on their way to other replicas at the same time.
	maxParallelAsks = 4
	// aheadOfUs is how much later than ours another replica's clock may be, in a gap that lasts.
	aheadOfUs = time.Minute
)

// Gaps tells what this replica has no data of its own of. A store.Ledger is one.
type Gaps interface {
	// Missing is what is missing within [mint, maxt], in Unix milliseconds; nothing means that the data are whole.
	Missing(mint, maxt int64) []store.Missing
}

// Peers are the other replicas. What some of them could not give is in the warnings; an error means that nobody
// answered. Each call takes bounded time and ends with its context.
type Peers interface {
	// Select asks for what they have of the matching series within iv, sorted by labels.
	Select(ctx context.Context, iv store.Interval, ms ...*labels.Matcher) ([]store.ForeignSeries, annotations.Annotations, error)
	LabelValues(ctx context.Context, name string, iv store.Interval, ms ...*labels.Matcher) ([]string, annotations.Annotations, error)
	LabelNames(ctx context.Context, iv store.Interval, ms ...*labels.Matcher) ([]string, annotations.Annotations, error)
	// Available tells whether any other replica is there to be asked, or is still being looked for after a start.
	Available() bool
	// Found waits until the others had a moment to be found after a start, and tells whether there is anybody to ask.
	Found(ctx context.Context) bool
}

// localKey marks a context whose selects are answered from this replica's own data alone.
type localKey struct{}

func localOnly(ctx context.Context) context.Context { return context.WithValue(ctx, localKey{}, true) }

func isLocalOnly(ctx context.Context) bool { return ctx.Value(localKey{}) != nil }

// composed answers from this replica's own data, and from the other replicas' where its own are missing.
type composed struct {
	own   storage.Queryable
	gaps  Gaps
	peers Peers
	now   func() time.Time
	// ready is closed when it is known what is missing. The store opens a moment before.
	ready <-chan struct{}

	spliced  prometheus.Counter
	failures prometheus.Counter
}

// newQueryable is the store itself where there is nobody else to ask.
func newQueryable(o *Options) storage.Queryable {
	if o.Peers == nil {
		return o.Store
	}
	reg := promauto.With(o.Registerer)
	return &composed{
		own:   o.Store,
		gaps:  o.Gaps,
		peers: o.Peers,
		now:   time.Now,
		ready: o.Ready,
		spliced: reg.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_query_spliced_total",
			Help: "Selects and label look-ups for which other replicas were asked, because this replica's own data were missing.",
		}),
		failures: reg.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_query_peer_failures_total",
			Help: "Questions of queries that no other replica answered.",
		}),
	}
}

// Querier hands out the store's own querier, as it is, where nothing is missing.
func (c *composed) Querier(mint, maxt int64) (storage.Querier, error) {
	select {
	case <-c.ready:
	default:
		if c.peers.Available() {
			return &splicing{c: c, mint: mint, maxt: maxt}, nil
		}
	}
	var missing []store.Missing
	if c.gaps != nil {
		// Before the data. A gap that is filled in between is asked for without need; the other way round it would
		// neither be in the data nor be asked for.
		missing = c.gaps.Missing(mint, maxt)
	}
	if len(missing) == 0 {
		return c.own.Querier(mint, maxt)
	}
	own, err := c.own.Querier(before(mint, ownMargin), after(maxt, ownMargin))
	if err != nil {
		return nil, err
	}
	return &splicing{c: c, own: own, missing: missing, mint: mint, maxt: maxt}, nil
}

// splicing is a querier over a time in which something is missing.
type splicing struct {
	c          *composed
	own        storage.Querier // nil while this replica is not ready: then everything is missing.
	missing    []store.Missing
	mint, maxt int64

	asking sync.WaitGroup
	mtx    sync.Mutex
	closed bool
	cancel []context.CancelFunc
}

var errQuerierClosed = errors.New("the querier is closed")

// Select begins to ask at once, so that an expression waits for the slowest of its selectors and not for their sum.
func (q *splicing) Select(ctx context.Context, sortSeries bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	if hints == nil {
		hints = &storage.SelectHints{Start: q.mint, End: q.maxt}
	}
	if isLocalOnly(ctx) {
		if q.own == nil {
			return storage.ErrSeriesSet(tsdb.ErrNotReady)
		}
		return q.own.Select(ctx, sortSeries, hints, ms...)
	}
	start, end, wide := max(q.mint, hints.Start), min(q.maxt, hints.End), *hints
	if hints.Func != "series" {
		// What happens at the seams depends on the samples around them.
		wide.Start, wide.End = before(start, ownMargin), after(end, ownMargin)
		start, end = before(start, theirMargin), after(end, theirMargin)
	}
	p := q.plan(start, end, ms)
	if q.own != nil && len(p.asks) == 0 {
		return q.own.Select(ctx, sortSeries, hints, ms...)
	}
	set := &splicedSet{ctx: ctx, limit: hints.Limit, done: make(chan struct{})}
	// Some queriers alter the slice.
	ours := slices.Clone(ms)
	if !q.start(ctx, func(ctx context.Context) {
		defer close(set.done)
		set.foreign, set.warnings, set.failed = q.selectForeign(ctx, &p)
	}) {
		return storage.ErrSeriesSet(errQuerierClosed)
	}
	if q.own != nil {
		set.own = q.own.Select(ctx, true, &wide, ours...)
	} else {
		set.own = storage.EmptySeriesSet()
	}
	return set
}

// start runs f until the querier is closed. It tells whether it does.
func (q *splicing) start(ctx context.Context, f func(context.Context)) bool {
	ctx, cancel := context.WithCancel(ctx)
	q.mtx.Lock()
	defer q.mtx.Unlock()
	if q.closed {
		cancel()
		return false
	}
	q.cancel = append(q.cancel, cancel)
	q.asking.Go(func() {
		defer cancel()
		f(ctx)
	})
	return true
}

// plan is what to ask of whom for what is missing within [start, end].
func (q *splicing) plan(start, end int64, ms []*labels.Matcher) plan {
	within := store.Interval{From: before(start, 1), To: after(end, 1)}
	now := q.c.now().Add(aheadOfUs).UnixMilli()
	if q.own == nil {
		within.To = min(within.To, now)
		return planAll(within, ms)
	}
	return planMissing(q.missing, within, now, ms)
}

// selectForeign is what the others have of what is missing, in the order of labels.
func (q *splicing) selectForeign(ctx context.Context, p *plan) ([]store.ForeignSeries, annotations.Annotations, error) {
	answers, warnings, err := askAll(ctx, q, p,
		func(ctx context.Context, a *ask) ([]store.ForeignSeries, annotations.Annotations, error) {
			return q.c.peers.Select(ctx, a.interval, a.matchers...)
		})
	if err != nil {
		return nil, warnings, err
	}
	var parts []store.ForeignSeries
	for i, series := range answers {
		for _, s := range series {
			for _, wanted := range p.wanted(s.Labels) {
				part := s
				part.Interval = wanted.Intersect(p.asks[i].interval).Intersect(s.Interval)
				if !part.Interval.Empty() {
					parts = append(parts, part)
				}
			}
		}
	}
	slices.SortStableFunc(parts, func(a, b store.ForeignSeries) int {
		if c := labels.Compare(a.Labels, b.Labels); c != 0 {
			return c
		}
		switch {
		case a.Interval.From < b.Interval.From:
			return -1
		case a.Interval.From > b.Interval.From:
			return 1
		}
		return 0
	})
	return parts, warnings, nil
}

// askAll puts all questions of a plan. What nobody answers becomes a warning, unless there is no other answer.
func askAll[T any](ctx context.Context, q *splicing, p *plan,
	put func(context.Context, *ask) (T, annotations.Annotations, error),
) ([]T, annotations.Annotations, error) {
	var warnings annotations.Annotations
	replaying := q.own == nil
	if replaying {
		warnings.Add(fmt.Errorf("%w: this replica is replaying its write-ahead log: the answer is the other replicas' alone",
			annotations.PromQLWarning))
	}
	if !q.c.peers.Found(ctx) {
		if ctx.Err() != nil {
			return nil, nil, ended(ctx)
		}
		q.c.failures.Inc()
		if replaying {
			return nil, nil, tsdb.ErrNotReady
		}
		for i := range p.asks {
			warnings.Add(fmt.Errorf("%w: this replica has no data %s, and no other replica is there to be asked",
				annotations.PromQLWarning, &p.asks[i]))
		}
		return nil, warnings, nil
	}
	q.c.spliced.Inc()
	var (
		answers = make([]T, len(p.asks))
		given   = make([]annotations.Annotations, len(p.asks))
		errs    = make([]error, len(p.asks))
		free    = make(chan struct{}, maxParallelAsks)
		wg      sync.WaitGroup
	)
	for i := range p.asks {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			if errs[i] = ctx.Err(); errs[i] == nil {
				answers[i], given[i], errs[i] = put(ctx, &p.asks[i])
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, nil, ended(ctx)
	}
	for i, err := range errs {
		warnings.Merge(given[i])
		if err == nil {
			continue
		}
		q.c.failures.Inc()
		if replaying {
			return nil, nil, fmt.Errorf("%w, and no other replica answers: %w", tsdb.ErrNotReady, err)
		}
		warnings.Add(fmt.Errorf("%w: this replica has no data %s, and no other replica answers: %w",
			annotations.PromQLWarning, &p.asks[i], err))
	}
	return answers, warnings, nil
}

// ended is why nobody waits any longer, in the words of upstream's engine.
func ended(ctx context.Context) error {
	const doing = "asking other replicas"
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", promql.ErrQueryTimeout(doing), ctx.Err())
	}
	return fmt.Errorf("%w: %w", promql.ErrQueryCanceled(doing), ctx.Err())
}

// LabelValues answers with the other replicas' values too where data are missing.
func (q *splicing) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return q.lookUp(ctx, hints, ms,
		func() ([]string, annotations.Annotations, error) { return q.own.LabelValues(ctx, name, hints, ms...) },
		func(ctx context.Context, a *ask) ([]string, annotations.Annotations, error) {
			return q.c.peers.LabelValues(ctx, name, a.interval, a.matchers...)
		})
}

// LabelNames answers with the other replicas' names too where data are missing.
func (q *splicing) LabelNames(ctx context.Context, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return q.lookUp(ctx, hints, ms,
		func() ([]string, annotations.Annotations, error) { return q.own.LabelNames(ctx, hints, ms...) },
		func(ctx context.Context, a *ask) ([]string, annotations.Annotations, error) {
			return q.c.peers.LabelNames(ctx, a.interval, a.matchers...)
		})
}

func (q *splicing) lookUp(ctx context.Context, hints *storage.LabelHints, ms []*labels.Matcher,
	own func() ([]string, annotations.Annotations, error),
	theirs func(context.Context, *ask) ([]string, annotations.Annotations, error),
) ([]string, annotations.Annotations, error) {
	var (
		found    []string
		warnings annotations.Annotations
		p        = q.plan(q.mint, q.maxt, ms)
	)
	if q.own != nil {
		var err error
		if found, warnings, err = own(); err != nil || isLocalOnly(ctx) || len(p.asks) == 0 {
			return found, warnings, err
		}
	} else if isLocalOnly(ctx) {
		return nil, nil, tsdb.ErrNotReady
	}
	answers, given, err := askAll(ctx, q, &p, theirs)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range answers {
		found = append(found, a...)
	}
	slices.Sort(found)
	found = slices.Compact(found)
	if hints != nil && hints.Limit > 0 && len(found) > hints.Limit {
		found = found[:hints.Limit]
	}
	return found, given.Merge(warnings), nil
}

// Close ends what is still being asked.
func (q *splicing) Close() error {
	q.mtx.Lock()
	q.closed = true
	for _, cancel := range q.cancel {
		cancel()
	}
	q.mtx.Unlock()
	q.asking.Wait()
	if q.own == nil {
		return nil
	}
	return q.own.Close()
}

// splicedSet merges own series with what others have of them. All but own and ctx is set when done is closed.
type splicedSet struct {
	ctx   context.Context
	own   storage.SeriesSet
	limit int // of series; 0 means none

	done     chan struct{}
	foreign  []store.ForeignSeries // sorted by labels
	warnings annotations.Annotations
	failed   error

	begun   bool
	more    bool // own stands at a series that was not returned yet
	advance bool // own stands at a series that was
	n       int
	at      storage.Series
	err     error
}

// wait tells whether the others' answers are there.
func (s *splicedSet) wait() bool {
	select {
	case <-s.done:
		s.err = s.failed
	default:
		select {
		case <-s.done:
			s.err = s.failed
		case <-s.ctx.Done():
			s.err = ended(s.ctx)
		}
	}
	return s.err == nil
}

func (s *splicedSet) Next() bool {
	if !s.begun {
		s.begun = true
		if !s.wait() {
			return false
		}
		s.more = s.own.Next()
	}
	if s.err != nil || s.limit > 0 && s.n >= s.limit {
		return false
	}
	if s.advance {
		s.more, s.advance = s.own.Next(), false
	}
	if !s.more && (len(s.foreign) == 0 || s.own.Err() != nil) {
		return false
	}
	s.n++
	if !s.more {
		s.at = s.splice(nil)
		return true
	}
	own := s.own.At()
	order := -1
	if len(s.foreign) > 0 {
		order = labels.Compare(own.Labels(), s.foreign[0].Labels)
	}
	s.advance = order <= 0
	switch {
	case order < 0:
		s.at = own
	case order == 0:
		s.at = s.splice(own)
	default:
		s.at = s.splice(nil)
	}
	return true
}

// splice takes the next foreign series, all parts of it.
func (s *splicedSet) splice(own storage.Series) storage.Series {
	n := 1
	for n < len(s.foreign) && labels.Equal(s.foreign[n].Labels, s.foreign[0].Labels) {
		n++
	}
	theirs := s.foreign[:n:n]
	s.foreign = s.foreign[n:]
	return store.SpliceSeries(own, theirs...)
}

func (s *splicedSet) At() storage.Series { return s.at }

func (s *splicedSet) Err() error {
	if s.err != nil {
		return s.err
	}
	return s.own.Err()
}

// Warnings waits: upstream's handler of /series asks for them before anything else.
func (s *splicedSet) Warnings() annotations.Annotations {
	var all annotations.Annotations
	if s.wait() {
		all.Merge(s.warnings)
	}
	all.Merge(s.own.Warnings())
	return all
}
