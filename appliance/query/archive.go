package query

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/annotations"
)

// Archive is what local data no longer have: object storage.
type Archive interface {
	// At is its data at a resolution of at most that; 0 is every sample. What cannot be had is in the warnings or an error.
	At(resolution time.Duration) storage.Queryable
	// Until is up to when, in Unix milliseconds, the archive has everything that anybody had. It takes bounded time, and an error says
	// that nobody knows.
	Until() (int64, error)
}

// resolutionParts is how many samples of a lower resolution a step of a query has at least, as Thanos has it.
const resolutionParts = 5

// resolutionKey is the context's key for the resolution that a query can do with.
type resolutionKey struct{}

// withResolution notes which resolution a request can do with: max_source_resolution, or what its step needs.
func withResolution(r *http.Request) (*http.Request, error) {
	given := r.Form.Get("max_source_resolution")
	var most time.Duration
	switch given {
	case "", "auto":
		// Upstream's handler says what is wrong with a step.
		if step, err := parseDuration(r.Form.Get("step")); err == nil {
			most = step / resolutionParts
		}
	default:
		var err error
		if most, err = parseDuration(given); err != nil || most < 0 {
			return nil, fmt.Errorf("invalid parameter \"max_source_resolution\": it is %q, and must be a duration or auto", given)
		}
	}
	if most <= 0 {
		return r, nil
	}
	return r.WithContext(context.WithValue(r.Context(), resolutionKey{}, most)), nil
}

func parseDuration(s string) (time.Duration, error) {
	if f, err := strconv.ParseFloat(s, 64); err == nil {
		if math.IsNaN(f) || math.Abs(f) > math.MaxInt64/1e9 {
			return 0, errors.New("out of range")
		}
		return time.Duration(f * 1e9), nil
	}
	d, err := model.ParseDuration(s)
	return time.Duration(d), err
}

// unknownArchive says that nobody knows what is in the archive.
type unknownArchive struct{ why error }

func (u *unknownArchive) Error() string { return u.why.Error() }

func (u *unknownArchive) Unwrap() error { return u.why }

// archived answers from the archive what is older than what the replicas have, and from them the rest.
type archived struct {
	recent  storage.Queryable
	oldest  func() (int64, error)
	gaps    Gaps // nil where there are no others
	archive Archive
	// patience bounds what one select of the archive may take; 0 for no bound but the query's. Who had to be stopped once is not asked until
	// rests, in Unix nanoseconds.
	patience time.Duration
	rests    *atomic.Int64

	selects, failures prometheus.Counter
}

// rulesPatience is how long a rule waits for the archive. What is old is little of what a rule looks at, mostly nothing: a rule that comes
// late because of it is worse. rulesRest is how long no rule asks after one had to give up: there may be many, one after the other.
const (
	rulesPatience = time.Second
	rulesRest     = 15 * time.Second
)

var errSlowArchive = fmt.Errorf("it did not answer a rule within %s", rulesPatience)

// forRules is the same with the patience of rules.
func (a *archived) forRules() *archived {
	patient := *a
	patient.patience, patient.rests = rulesPatience, &atomic.Int64{}
	return &patient
}

func newArchived(recent storage.Queryable, o *Options) *archived {
	reg := promauto.With(o.Registerer)
	return &archived{
		recent: recent, gaps: o.Gaps, archive: o.Archive,
		oldest: o.Store.Oldest,
		selects: reg.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_query_bucket_selects_total",
			Help: "Selects and label look-ups for which the bucket was asked, because local data do not go back far enough.",
		}),
		failures: reg.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_query_bucket_failures_total",
			Help: "Selects and label look-ups that the bucket did not answer. The answer to the query has a warning.",
		}),
	}
}

// maxMoves bounds how often a querier is opened anew because local retention moved the oldest sample meanwhile.
const maxMoves = 10

// split is from when on the replicas answer.
func (a *archived) split(mint int64) (int64, error) {
	oldest, err := a.oldest()
	if err != nil {
		return 0, err
	}
	if mint >= oldest {
		return oldest, nil
	}
	// While this replica is being filled, the others have the time that the archive does not have yet.
	until, err := a.archive.Until()
	if err != nil {
		return 0, &unknownArchive{err}
	}
	if a.gaps != nil && len(a.gaps.Missing(mint, oldest-1)) > 0 {
		oldest = min(oldest, until)
	}
	return oldest, nil
}

// Querier is that of the replicas, as it is, where they have everything.
func (a *archived) Querier(mint, maxt int64) (storage.Querier, error) {
	from := mint
	for range maxMoves {
		recent, err := a.recent.Querier(from, maxt)
		if err != nil {
			return nil, err
		}
		// After the data: what was deleted meanwhile is still in the querier.
		split, err := a.split(mint)
		if errors.Is(err, tsdb.ErrNotReady) {
			return recent, nil // The others answer alone.
		}
		var unknown *unknownArchive
		if errors.As(err, &unknown) {
			return &warned{recent, a, fmt.Errorf("%w: the bucket was not asked for what is older than local data: %w", annotations.PromQLWarning, unknown.why)}, nil
		}
		if err != nil {
			return nil, errors.Join(err, recent.Close())
		}
		if mint >= split {
			return recent, nil
		}
		if from == split {
			return &archivedQuerier{a: a, recent: recent, mint: mint, maxt: maxt, split: split}, nil
		}
		// Each moment is answered by one of the two.
		if err := recent.Close(); err != nil {
			return nil, fmt.Errorf("close a querier that is opened anew: %w", err)
		}
		from = split
		if split > maxt {
			return &archivedQuerier{a: a, recent: storage.NoopQuerier(), mint: mint, maxt: maxt, split: split}, nil
		}
	}
	return nil, errors.New("the oldest local data changed too often while a query began; ask again")
}

// warned is a querier that knows that it lacks something.
type warned struct {
	storage.Querier
	a       *archived
	warning error
}

// Select implements storage.Querier.
func (q *warned) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	set := q.Querier.Select(ctx, sorted, hints, ms...)
	if isLocalOnly(ctx) {
		return set
	}
	q.a.failures.Inc()
	return withWarning(set, q.warning)
}

type archivedQuerier struct {
	a                 *archived
	recent            storage.Querier
	mint, maxt, split int64

	mtx     sync.Mutex
	cancels []func()
}

func (q *archivedQuerier) older(ctx context.Context) (storage.Querier, error) {
	most, _ := ctx.Value(resolutionKey{}).(time.Duration)
	q.a.selects.Inc()
	return q.a.archive.At(most).Querier(q.mint, min(q.maxt, q.split-1))
}

// Select implements storage.Querier.
func (q *archivedQuerier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	if isLocalOnly(ctx) || hints != nil && hints.Start >= q.split {
		return q.recent.Select(ctx, sorted, hints, ms...)
	}
	older, err := q.older(ctx)
	if err == nil && q.a.rests != nil && time.Now().UnixNano() < q.a.rests.Load() {
		err = errors.Join(errSlowArchive, older.Close())
	}
	if err != nil {
		q.a.failures.Inc()
		return withWarning(q.recent.Select(ctx, sorted, hints, ms...), q.missing(err))
	}
	bounds := storage.SelectHints{Start: q.mint, End: q.maxt}
	if hints != nil {
		bounds = *hints
	}
	theirs := bounds
	theirs.End = min(bounds.End, q.split-1)
	most, _ := ctx.Value(resolutionKey{}).(time.Duration)
	merge := storage.ChainedSeriesMerge
	switch {
	case most < coarsest:
		theirs.Func = "" // Raw samples as they are: Thanos would add up counters over their resets.
	case addedUp[theirs.Func]:
		merge = mergeCounters
	}
	// Some queriers alter the slice.
	set := q.await(ctx, older, func(ctx context.Context) storage.SeriesSet {
		return older.Select(ctx, true, &theirs, slices.Clone(ms)...)
	})
	var old storage.SeriesSet = set
	if bounds.Func == "series" {
		old = set.drain() // Upstream asks for the warnings first.
	}
	if bounds.End < q.split {
		return old
	}
	ours := bounds
	ours.Start = max(bounds.Start, q.split)
	recent := fromSplit{q.recent.Select(ctx, true, &ours, ms...), q.split}
	return &lazySet{make: func() storage.SeriesSet {
		return storage.NewMergeSeriesSet([]storage.SeriesSet{old, recent}, bounds.Limit, merge)
	}}
}

// lazySet is made when it is read first, so that a query asks for all that it needs before it waits for any of it.
type lazySet struct {
	make func() storage.SeriesSet
	set  storage.SeriesSet
}

func (l *lazySet) made() storage.SeriesSet {
	if l.set == nil {
		l.set = l.make()
	}
	return l.set
}

// Next implements storage.SeriesSet.
func (l *lazySet) Next() bool { return l.made().Next() }

// At implements storage.SeriesSet.
func (l *lazySet) At() storage.Series { return l.made().At() }

// Err implements storage.SeriesSet.
func (l *lazySet) Err() error { return l.made().Err() }

// Warnings implements storage.SeriesSet.
func (l *lazySet) Warnings() annotations.Annotations { return l.made().Warnings() }

// missing is a sentence for whoever reads the answer.
func (q *archivedQuerier) missing(why error) error {
	return fmt.Errorf("%w: what is older than %s could not be read from the bucket: %w", annotations.PromQLWarning,
		time.UnixMilli(min(q.split, q.maxt+1)).UTC().Format(time.RFC3339), why)
}

// olderSet has the archive's series. What fails there is a warning: the replicas answer all the same.
type olderSet struct {
	q    *archivedQuerier
	ctx  context.Context
	next chan storage.Series
	// end is closed when warnings and failed are known.
	end      chan struct{}
	warnings annotations.Annotations
	failed   error

	at   storage.Series
	over bool
	lost error
}

// await reads the archive beside the query: reading may hang where a context does not reach, and a query is to end in time.
func (q *archivedQuerier) await(ctx context.Context, older storage.Querier, ask func(context.Context) storage.SeriesSet) *olderSet {
	s := &olderSet{q: q, next: make(chan storage.Series), end: make(chan struct{})}
	var cancel context.CancelCauseFunc
	s.ctx, cancel = context.WithCancelCause(ctx)
	arrived := func() bool { return true }
	if q.a.patience > 0 {
		// Until the first series: all are there then.
		arrived = time.AfterFunc(q.a.patience, func() { cancel(errSlowArchive) }).Stop
	}
	q.mtx.Lock()
	q.cancels = append(q.cancels, func() { cancel(nil) })
	q.mtx.Unlock()
	go func() {
		defer close(s.end)
		set := ask(s.ctx)
		more := set.Next()
		arrived()
		for ; more; more = set.Next() {
			select {
			case s.next <- set.At():
			case <-s.ctx.Done():
				s.failed = errors.Join(s.ctx.Err(), older.Close())
				return
			}
		}
		s.warnings, s.failed = set.Warnings(), errors.Join(set.Err(), older.Close())
	}()
	return s
}

// Next implements storage.SeriesSet.
func (s *olderSet) Next() bool {
	if s.over {
		return false
	}
	select {
	case s.at = <-s.next:
		return true
	case <-s.end:
		s.lost = s.failed
	case <-s.ctx.Done():
		if s.lost = context.Cause(s.ctx); errors.Is(s.lost, errSlowArchive) {
			s.q.a.rests.Store(time.Now().Add(rulesRest).UnixNano())
		}
	}
	s.over = true
	if s.lost != nil {
		s.q.a.failures.Inc()
	}
	return false
}

// At implements storage.SeriesSet.
func (s *olderSet) At() storage.Series { return olderSeries{s.at} }

// drain waits for all of it.
func (s *olderSet) drain() storage.SeriesSet {
	var all []storage.Series
	for s.Next() {
		all = append(all, s.At())
	}
	return &drained{olderSet: s, all: all, n: -1}
}

// drained is a set that has been read.
type drained struct {
	*olderSet
	all []storage.Series
	n   int
}

// Next implements storage.SeriesSet.
func (d *drained) Next() bool {
	d.n++
	return d.n < len(d.all)
}

// At implements storage.SeriesSet.
func (d *drained) At() storage.Series { return d.all[d.n] }

// Err implements storage.SeriesSet.
func (s *olderSet) Err() error { return nil }

// Warnings implements storage.SeriesSet.
func (s *olderSet) Warnings() annotations.Annotations {
	var all annotations.Annotations
	if s.lost != nil {
		all.Add(s.q.missing(s.lost))
	}
	select {
	case <-s.end:
		for _, w := range s.warnings.AsErrors() {
			all.Add(s.q.missing(w))
		}
	default: // Nobody waits for it any more.
	}
	return all
}

type warningSet struct {
	storage.SeriesSet
	warning error
}

func withWarning(set storage.SeriesSet, warning error) storage.SeriesSet {
	return warningSet{set, warning}
}

// Warnings implements storage.SeriesSet.
func (s warningSet) Warnings() annotations.Annotations {
	var all annotations.Annotations
	all.Add(s.warning)
	return all.Merge(s.SeriesSet.Warnings())
}

// LabelValues implements storage.LabelQuerier.
func (q *archivedQuerier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return q.lookUp(ctx, hints, func(from storage.Querier) ([]string, annotations.Annotations, error) {
		return from.LabelValues(ctx, name, hints, slices.Clone(ms)...)
	})
}

// LabelNames implements storage.LabelQuerier.
func (q *archivedQuerier) LabelNames(ctx context.Context, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return q.lookUp(ctx, hints, func(from storage.Querier) ([]string, annotations.Annotations, error) {
		return from.LabelNames(ctx, hints, slices.Clone(ms)...)
	})
}

func (q *archivedQuerier) lookUp(ctx context.Context, hints *storage.LabelHints,
	ask func(storage.Querier) ([]string, annotations.Annotations, error),
) ([]string, annotations.Annotations, error) {
	found, warnings, err := ask(q.recent)
	if err != nil || isLocalOnly(ctx) {
		return found, warnings, err
	}
	more, given, err := q.askOlder(ctx, ask)
	found = append(found, more...)
	for _, w := range given.AsErrors() {
		warnings.Add(q.missing(w))
	}
	if err != nil {
		q.a.failures.Inc()
		warnings.Add(q.missing(err))
	}
	slices.Sort(found)
	found = slices.Compact(found)
	if hints != nil && hints.Limit > 0 && len(found) > hints.Limit {
		found = found[:hints.Limit]
	}
	return found, warnings, nil
}

// askOlder asks the archive beside the query, as await does.
func (q *archivedQuerier) askOlder(ctx context.Context,
	ask func(storage.Querier) ([]string, annotations.Annotations, error),
) ([]string, annotations.Annotations, error) {
	older, err := q.older(ctx)
	if err != nil {
		return nil, nil, err
	}
	type answer struct {
		found    []string
		warnings annotations.Annotations
		err      error
	}
	answers := make(chan answer, 1)
	go func() {
		found, warnings, err := ask(older)
		answers <- answer{found, warnings, errors.Join(err, older.Close())}
	}()
	select {
	case a := <-answers:
		return a.found, a.warnings, a.err
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

// Close implements storage.Querier.
func (q *archivedQuerier) Close() error {
	q.mtx.Lock()
	defer q.mtx.Unlock()
	for _, cancel := range q.cancels {
		cancel()
	}
	return q.recent.Close()
}
