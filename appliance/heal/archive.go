package heal

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/grafana/regexp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/tocsin-io/tocsin/appliance/mesh"
	"github.com/tocsin-io/tocsin/appliance/store"
)

const (
	// fromArchive is what is told of where data are from that came out of object storage.
	fromArchive = "bucket"
	// An answer of the archive is held in memory whole: a few metrics are asked for at once, so that they have about
	// archiveSeries series. archiveBytes bounds what is held of series that have to be sorted.
	archiveFirst, archiveMost = 16, 512
	archiveSeries             = 10_000
	archiveBytes              = 256 << 20
	// archiveTimeout bounds one question.
	archiveTimeout = time.Minute
)

// Archive is object storage: what the replicas have brought there of windows that are over, each as long as a block.
type Archive interface {
	// At is its data at a resolution of at most that; 0 is every sample. What cannot be had is in the warnings or an error.
	At(resolution time.Duration) storage.Queryable
	// Windows are those that it has and that reach into an interval, oldest first, and of which of them nobody lacked anything who brought
	// them. It takes bounded time, and an error says that nobody knows.
	Windows(in store.Interval) (whole, others []store.Interval, err error)
}

// errNothing says that the archive has nothing at all of a part.
var errNothing = errors.New("the bucket has no series of that time")

// archived is the archive as one more replica.
func archived() peer {
	return peer{mesh.Member{Name: fromArchive}, coverage{ready: true, archive: true}}
}

// stored parts a piece: windows that the archive has whole, others that it has something of, and what remains. known tells whether it
// is known what is there.
func (h *Heal) stored(p piece) (whole, others, rest []piece, known bool) {
	rest = []piece{p}
	if h.opts.Archive == nil {
		return nil, nil, rest, false
	}
	w, o, err := h.opts.Archive.Windows(p.Interval)
	if err != nil {
		h.logger.Debug("it is not known what is in the bucket", "err", err)
		return nil, nil, rest, false
	}
	take := func(windows []store.Interval) (parts []piece) {
		for _, window := range windows {
			i := window.Intersect(p.Interval)
			if i.Empty() {
				continue
			}
			parts = append(parts, piece{Interval: i})
			var left []piece
			for _, r := range rest {
				for _, l := range store.Subtract([]store.Interval{r.Interval}, i) {
					left = append(left, piece{Interval: l})
				}
			}
			rest = left
		}
		return parts
	}
	whole, others = take(w), take(o)
	for n := range whole {
		whole[n].peers = []peer{archived()}
	}
	return whole, others, rest, true
}

// wholly tells whether the archive has all of a part within one window.
func (h *Heal) wholly(i store.Interval) bool {
	whole, _, _, _ := h.stored(piece{Interval: i})
	return len(whole) == 1 && whole[0].Interval == i
}

// takeArchived imports what the archive has of an interval within one window.
func (h *Heal) takeArchived(ctx context.Context, i store.Interval, run *run) (store.Imported, error) {
	// Data that are not there yet must not get room from retention.
	if err := h.opts.Store.Spare(); err != nil {
		return store.Imported{}, err
	}
	first := &archiveSet{ctx: ctx, interval: i, from: h.opts.Archive.At(0), n: archiveFirst}
	if err := first.look(); err != nil {
		return store.Imported{}, fmt.Errorf("read the bucket: %w", err)
	}
	// Queries ask the bucket for what is older than the oldest sample here: no series may come before the others, and an answer
	// must not change where two windows meet.
	from, to := h.joined(run.at.Gap, i)
	o := store.ImportOptions{Kind: store.GapReplica, Block: true, JoinedFrom: from, JoinedTo: to, Yield: h.yield, Progress: func(series, samples int64) {
		h.metrics.samples.WithLabelValues(string(store.GapReplica)).Add(float64(samples))
		run.took(series, samples)
	}}
	got, err := h.opts.Store.Import(ctx, i, first, o)
	if err != nil {
		return got, fmt.Errorf("read the bucket: %w", err)
	}
	if first.seen == 0 {
		return got, errNothing
	}
	if !first.odd {
		return got, nil
	}
	second := &archiveSet{ctx: ctx, interval: i, from: first.from, names: first.names, n: archiveFirst, odd: true}
	for more := true; more; {
		var some *sortedSet
		if some, more, err = second.sorted(); err == nil {
			var also store.Imported
			also, err = h.opts.Store.Import(ctx, i, some, o)
			got.Series, got.Samples = got.Series+also.Series, got.Samples+also.Samples
		}
		if err != nil {
			return got, fmt.Errorf("read the bucket: %w", err)
		}
	}
	return got, nil
}

// joined tells of the ends of a part whether what lies beyond came from the archive too.
func (h *Heal) joined(gap string, i store.Interval) (from, to bool) {
	for _, g := range h.opts.Ledger.Open() {
		if g.ID != gap {
			continue
		}
		for _, f := range g.Fills {
			if f.Replica == fromArchive {
				from, to = from || f.Contains(i.From), to || f.Contains(i.To)
			}
		}
	}
	return from, to
}

// archiveSet are the series of the archive, metric after metric. In that order are the series of which no label comes before the name:
// almost all. The odd ones are left out and, by themselves, are for a second set.
type archiveSet struct {
	ctx      context.Context //nolint:containedctx // A ForeignSet has none of its own.
	interval store.Interval
	from     storage.Queryable

	names []string
	next  int // The first name that was not asked for.
	n     int // How many to ask for at once.
	seen  int // Series, all of them.
	odd   bool

	queue []store.ForeignSeries
	at    store.ForeignSeries
	err   error
}

// look finds the names.
func (s *archiveSet) look() error {
	ctx, cancel := context.WithTimeout(s.ctx, archiveTimeout)
	defer cancel()
	q, err := s.from.Querier(s.interval.From+1, s.interval.To-1)
	if err != nil {
		return err
	}
	names, warnings, err := q.LabelValues(ctx, model.MetricNameLabel, nil)
	if err := errors.Join(err, warned(warnings), q.Close()); err != nil {
		return err
	}
	if len(names) > maxNames {
		return lied(lieEndless, "there are more than %d metrics", maxNames)
	}
	s.names = make([]string, len(names))
	for n := range names {
		s.names[n] = strings.Clone(names[n])
	}
	slices.Sort(s.names)
	return nil
}

// warned makes an error of warnings: what could not be read is not nothing.
func warned(warnings annotations.Annotations) error { return errors.Join(warnings.AsErrors()...) }

// Next implements store.ForeignSet.
func (s *archiveSet) Next() bool {
	for len(s.queue) == 0 {
		if s.err != nil || s.next >= len(s.names) {
			return false
		}
		all, err := s.batch()
		if err != nil {
			s.err = err
			return false
		}
		for _, series := range all {
			if isOdd(series.Labels) {
				s.odd = true
				continue
			}
			s.queue = append(s.queue, series)
		}
	}
	s.at, s.queue = s.queue[0], s.queue[1:]
	return true
}

// At implements store.ForeignSet.
func (s *archiveSet) At() store.ForeignSeries { return s.at }

// Err implements store.ForeignSet.
func (s *archiveSet) Err() error { return s.err }

// isOdd tells whether a series is not where its name would have it.
func isOdd(l labels.Labels) bool {
	odd := false
	l.Range(func(l labels.Label) { odd = odd || l.Name < model.MetricNameLabel })
	return odd
}

// sorted are as many of the odd series as may be held, in order, and whether there are more.
func (s *archiveSet) sorted() (*sortedSet, bool, error) {
	set := &sortedSet{}
	for bytes := 0; bytes < archiveBytes && s.next < len(s.names); {
		all, err := s.batch()
		if err != nil {
			return nil, false, err
		}
		for _, series := range all {
			if !isOdd(series.Labels) {
				continue
			}
			set.all = append(set.all, series)
			for _, c := range series.Chunks {
				bytes += len(c.Chunk.Bytes())
			}
		}
	}
	slices.SortFunc(set.all, func(a, b store.ForeignSeries) int { return labels.Compare(a.Labels, b.Labels) })
	return set, s.next < len(s.names), nil
}

// batch asks for the next few metrics.
func (s *archiveSet) batch() ([]store.ForeignSeries, error) {
	n := min(s.n, len(s.names)-s.next)
	all, err := s.ask(s.names[s.next : s.next+n])
	if err != nil && n > 1 && s.ctx.Err() == nil {
		// They may be too many for one answer.
		n = 1
		all, err = s.ask(s.names[s.next : s.next+n])
	}
	if err != nil {
		return nil, err
	}
	s.next += n
	s.seen += len(all)
	s.n = min(max(1, n*archiveSeries/max(1, len(all))), archiveMost)
	return all, nil
}

func (s *archiveSet) ask(names []string) (all []store.ForeignSeries, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, archiveTimeout)
	defer cancel()
	mint, maxt := s.interval.From+1, s.interval.To-1
	q, err := s.from.Querier(mint, maxt)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	quoted := make([]string, len(names))
	for n := range names {
		quoted[n] = regexp.QuoteMeta(names[n])
	}
	match, err := labels.NewMatcher(labels.MatchRegexp, model.MetricNameLabel, strings.Join(quoted, "|"))
	if err != nil {
		return nil, err
	}
	set := q.Select(ctx, true, &storage.SelectHints{Start: mint, End: maxt}, match)
	for set.Next() {
		series := store.ForeignSeries{Labels: set.At().Labels().Copy(), Interval: s.interval}
		it := storage.NewSeriesToChunkEncoder(set.At()).Iterator(nil)
		last := int64(math.MinInt64)
		for it.Next() {
			c := it.At()
			if c.MinTime <= last {
				return nil, lied(lieUnsorted, "the series %s has chunks out of order", series.Labels)
			}
			last = c.MaxTime
			series.Chunks = append(series.Chunks, c)
		}
		if err := it.Err(); err != nil {
			return nil, err
		}
		if len(series.Chunks) > 0 {
			all = append(all, series)
		}
	}
	return all, errors.Join(set.Err(), warned(set.Warnings()))
}

// sortedSet are series that are there already.
type sortedSet struct {
	all []store.ForeignSeries
	n   int
}

// Next implements store.ForeignSet.
func (s *sortedSet) Next() bool {
	s.n++
	return s.n <= len(s.all)
}

// At implements store.ForeignSet.
func (s *sortedSet) At() store.ForeignSeries { return s.all[s.n-1] }

// Err implements store.ForeignSet.
func (s *sortedSet) Err() error { return nil }
