package store

import (
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// SpliceMargin is how far beyond an interval, in milliseconds, our own samples are looked at to tell what to take from
// another replica. It is upstream's lookback: what is further away from its neighbour is a series that paused.
const SpliceMargin = 5 * 60 * 1000

// ownNeighbours is how many distances on either side of a hole tell what is usual.
const ownNeighbours = 4

// moments are the times of one series' samples, in order: of real ones, and of staleness markers.
type moments struct {
	real, stale []int64
}

func (m *moments) reset() { m.real, m.stale = m.real[:0], m.stale[:0] }

// splice tells which samples of another replica fill holes of our own, by their place, and which of our staleness
// markers they show to be untrue. Theirs are in order and inside of in. It returns how many it takes, and hidden with
// the times of the markers appended.
//
// Two replicas scrape at phases of their own. So a sample of theirs near one of ours is not taken, nor is any in a
// stretch in which our own samples follow each other as closely as theirs do: the two never interleave, which would
// show as a rate that no replica measured. d is the spacing of theirs around the sample, or ours, if they have only one.
func splice(own *moments, theirs []int64, stale []bool, in Interval, take []bool, hidden []int64) (n int, _ []int64) {
	var (
		r, s, h  int // The first of own.real and of own.stale at or after t, and the first of own.stale not judged.
		next     int // The first real sample of theirs after i.
		previous = int64(math.MinInt64)
		after    = func(i int) int64 { // The time of that real sample, or MinInt64.
			for next = max(next, i+1); next < len(theirs) && stale[next]; next++ {
			}
			if next == len(theirs) {
				return math.MinInt64
			}
			return theirs[next]
		}
	)
	for i, t := range theirs {
		d := spacing(theirs, i, previous, after(i))
		edge := previous == math.MinInt64 || after(i) == math.MinInt64
		if !stale[i] {
			previous = t
			for ; h < len(own.stale) && own.stale[h] < t; h++ {
				if m := own.stale[h]; in.Contains(m) && 2*(t-m) <= 3*d {
					hidden = append(hidden, m)
				}
			}
		}
		for r < len(own.real) && own.real[r] < t {
			r++
		}
		for s < len(own.stale) && own.stale[s] < t {
			s++
		}
		if edge || d == 0 {
			// What comes before or after theirs is not known, so that the distance may be that of a hole of theirs.
			if ours := own.spacing(r); ours > 0 && (d == 0 || ours < d) {
				d = ours
			}
		}
		take[i] = missing(own, r, s, t, d, stale[i])
		if take[i] {
			n++
		}
	}
	return n, hidden
}

// spacing is the usual distance between own real samples around a hole before the r-th one, 0 if it is not known. The
// middle one counts, since where something was filled in one is shorter.
func (m *moments) spacing(r int) int64 {
	var some [2 * ownNeighbours]int64
	n := 0
	for k := r - 1; k > 0 && k > r-1-ownNeighbours; k-- {
		some[n], n = m.real[k]-m.real[k-1], n+1
	}
	for k := r + 1; k < len(m.real) && k <= r+ownNeighbours; k++ {
		some[n], n = m.real[k]-m.real[k-1], n+1
	}
	return middle(some[:n])
}

// spacing is the distance from sample i to the nearest real one before and after it. Where there is none, staleness
// markers serve, and 0 is unknown.
func spacing(theirs []int64, i int, previous, next int64) int64 {
	t := theirs[i]
	if previous == math.MinInt64 && next == math.MinInt64 {
		if i > 0 {
			previous = theirs[i-1]
		}
		if i+1 < len(theirs) {
			next = theirs[i+1]
		}
	}
	switch {
	case previous == math.MinInt64 && next == math.MinInt64:
		return 0
	case previous == math.MinInt64:
		return next - t
	case next == math.MinInt64:
		return t - previous
	}
	return min(t-previous, next-t)
}

// missing tells whether our own data have a hole at t. r and s are the first real sample and the first marker at or
// after t.
func missing(own *moments, r, s int, t, d int64, stale bool) bool {
	after := r < len(own.real)
	if after && own.real[r] == t || s < len(own.stale) && own.stale[s] == t {
		return false
	}
	before := r > 0
	switch {
	case before && after && 2*(own.real[r]-own.real[r-1]) < 3*d:
		return false // A healthy stretch.
	case before && !stale && 2*(t-own.real[r-1]) < d:
		return false
	case after && 2*(own.real[r]-t) < d:
		return false
	}
	return true
}

// SpliceSeries is own (nil when this replica has nothing of it) with theirs put where own has holes, by the splice
// rule. The intervals of theirs do not overlap; an earlier one counts as own for a later one, as it would had it been
// imported. Samples outside of their interval are left out. A chunk that does not decode is a *ForeignError of the
// iterator. own has to reach SpliceMargin further than the intervals, so that the edges are judged as at an import.
func SpliceSeries(own storage.Series, theirs ...ForeignSeries) storage.Series {
	if len(theirs) == 0 && own != nil {
		return own
	}
	theirs = slices.Clone(theirs)
	slices.SortStableFunc(theirs, func(a, b ForeignSeries) int {
		switch {
		case a.Interval.From < b.Interval.From:
			return -1
		case a.Interval.From > b.Interval.From:
			return 1
		}
		return 0
	})
	return &splicedSeries{own: own, theirs: theirs}
}

type splicedSeries struct {
	own    storage.Series
	theirs []ForeignSeries
}

// Labels implements storage.Series.
func (s *splicedSeries) Labels() labels.Labels {
	switch {
	case s.own != nil:
		return s.own.Labels()
	case len(s.theirs) > 0:
		return s.theirs[0].Labels
	}
	return labels.EmptyLabels()
}

// Iterator implements storage.Series. Nothing is decoded before it is moved.
func (s *splicedSeries) Iterator(it chunkenc.Iterator) chunkenc.Iterator {
	var reuse chunkenc.Iterator
	if old, ok := it.(*spliceIterator); ok {
		reuse = old.own
	}
	return &spliceIterator{series: s, own: reuse}
}

// takenSample is a sample of another replica that fills a hole.
type takenSample struct {
	t  int64
	v  float64
	h  *histogram.Histogram
	fh *histogram.FloatHistogram
	// follows says that the other replica has nothing between the one before and this one.
	follows bool
}

func (s *takenSample) kind() chunkenc.ValueType {
	switch {
	case s.h != nil:
		return chunkenc.ValHistogram
	case s.fh != nil:
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValFloat
}

// spliceIterator streams own and puts what was taken in between.
type spliceIterator struct {
	series   *splicedSeries
	prepared bool
	err      error

	own     chunkenc.Iterator
	ownKind chunkenc.ValueType // What own stands at.
	ownT    int64
	hidden  []int64 // Own markers still to be left out.
	taken   []takenSample
	at      int // In taken.

	kind    chunkenc.ValueType // What this stands at, ValNone before the start and at the end.
	foreign bool               // Whether that is taken[at].
	// follows says that the sample before, of the same origin, was the last one that was returned. Else what the chunk
	// says about a counter reset is about a sample that nobody has seen.
	follows bool
}

var _ chunkenc.Iterator = (*spliceIterator)(nil)

// prepare decodes theirs and the times of own around it, and decides what to take.
func (it *spliceIterator) prepare() {
	it.prepared = true
	reuse := it.own
	it.own = chunkenc.NewNopIterator()
	var (
		own moments
		d   foreignDecoder
	)
	theirs := it.series.theirs
	if it.series.own != nil {
		it.own = it.series.own.Iterator(reuse)
		if len(theirs) > 0 {
			from, to := widen(theirs[0].Interval)
			for _, f := range theirs[1:] {
				_, last := widen(f.Interval)
				to = max(to, last)
			}
			if it.err = own.read(it.own, from, to); it.err != nil {
				return
			}
			it.own = it.series.own.Iterator(it.own)
		}
	}
	for i, f := range theirs {
		if it.err = d.decode(f, f.Interval, true); it.err != nil {
			return
		}
		var n int
		n, it.hidden = splice(&own, d.t, d.stale, f.Interval, d.takeAll(), it.hidden)
		if n == 0 {
			continue
		}
		if it.taken, it.err = d.samples(it.taken, n); it.err != nil {
			return
		}
		if i+1 < len(theirs) {
			own.add(&d)
		}
	}
	slices.Sort(it.hidden)
}

// widen is the time in which own samples matter for an interval.
func widen(in Interval) (from, to int64) {
	from, to = in.From, in.To
	if from > math.MinInt64+SpliceMargin {
		from -= SpliceMargin
	}
	if to < math.MaxInt64-SpliceMargin {
		to += SpliceMargin
	}
	return from, to
}

// read appends the times that it has in [from, to].
func (m *moments) read(it chunkenc.Iterator, from, to int64) error {
	var (
		h  *histogram.Histogram
		fh *histogram.FloatHistogram
	)
	for kind := it.Seek(from); kind != chunkenc.ValNone; kind = it.Next() {
		var (
			t     int64
			v     float64
			stale bool
		)
		switch kind {
		case chunkenc.ValHistogram:
			t, h = it.AtHistogram(h)
			stale = value.IsStaleNaN(h.Sum)
		case chunkenc.ValFloatHistogram:
			t, fh = it.AtFloatHistogram(fh)
			stale = value.IsStaleNaN(fh.Sum)
		default:
			t, v = it.At()
			stale = value.IsStaleNaN(v)
		}
		if t > to {
			return nil
		}
		if stale {
			m.stale = append(m.stale, t)
		} else {
			m.real = append(m.real, t)
		}
	}
	return it.Err()
}

// add counts what was taken as own.
func (m *moments) add(d *foreignDecoder) {
	for i, t := range d.t {
		switch {
		case !d.take[i]:
		case d.stale[i]:
			m.stale = append(m.stale, t)
		default:
			m.real = append(m.real, t)
		}
	}
	slices.Sort(m.real)
	slices.Sort(m.stale)
}

// Next implements chunkenc.Iterator.
func (it *spliceIterator) Next() chunkenc.ValueType {
	switch {
	case !it.prepared:
		it.prepare()
		if it.err == nil {
			it.ownMoved(it.own.Next())
		}
		return it.settle(false)
	case it.kind == chunkenc.ValNone:
		return chunkenc.ValNone
	}
	foreign := it.foreign
	if foreign {
		it.at++
	} else {
		it.ownMoved(it.own.Next())
	}
	kind := it.settle(true)
	it.follows = it.follows && foreign == it.foreign
	return kind
}

// Seek implements chunkenc.Iterator.
func (it *spliceIterator) Seek(t int64) chunkenc.ValueType { //nolint:govet // It is not io.Seeker's.
	first := !it.prepared
	if first {
		it.prepare()
	}
	switch {
	case it.err != nil, !first && it.kind == chunkenc.ValNone:
		return chunkenc.ValNone
	case !first && it.AtT() >= t:
		return it.kind
	}
	if first || it.ownKind != chunkenc.ValNone && it.ownT < t {
		it.ownMoved(it.own.Seek(t))
	}
	n, _ := slices.BinarySearchFunc(it.taken[it.at:], t, func(s takenSample, t int64) int {
		switch {
		case s.t < t:
			return -1
		case s.t > t:
			return 1
		}
		return 0
	})
	it.at += n
	return it.settle(false)
}

func (it *spliceIterator) ownMoved(kind chunkenc.ValueType) {
	it.ownKind = kind
	if kind != chunkenc.ValNone {
		it.ownT = it.own.AtT()
		return
	}
	it.err = it.own.Err()
}

// settle stands at the earlier of the two, and past markers that are hidden.
func (it *spliceIterator) settle(follows bool) chunkenc.ValueType {
	it.kind, it.follows = chunkenc.ValNone, follows
	for len(it.hidden) > 0 && it.ownKind != chunkenc.ValNone && it.err == nil {
		if it.hidden[0] > it.ownT {
			break
		}
		if it.hidden[0] == it.ownT {
			it.ownMoved(it.own.Next())
			it.follows = false
		}
		it.hidden = it.hidden[1:]
	}
	if it.err != nil {
		return chunkenc.ValNone
	}
	// Never of one time, unless own reached less far when it was looked at.
	for it.ownKind != chunkenc.ValNone && it.at < len(it.taken) && it.taken[it.at].t == it.ownT {
		it.at++
	}
	it.foreign = it.at < len(it.taken) && (it.ownKind == chunkenc.ValNone || it.taken[it.at].t < it.ownT)
	if it.foreign {
		it.kind = it.taken[it.at].kind()
		it.follows = it.follows && it.taken[it.at].follows
	} else {
		it.kind = it.ownKind
	}
	return it.kind
}

// At implements chunkenc.Iterator.
func (it *spliceIterator) At() (int64, float64) {
	if it.foreign {
		return it.taken[it.at].t, it.taken[it.at].v
	}
	return it.own.At()
}

// AtHistogram implements chunkenc.Iterator.
func (it *spliceIterator) AtHistogram(h *histogram.Histogram) (int64, *histogram.Histogram) {
	var t int64
	if it.foreign {
		s := &it.taken[it.at]
		t = s.t
		if h == nil {
			h = s.h.Copy()
		} else {
			s.h.CopyTo(h)
		}
	} else {
		t, h = it.own.AtHistogram(h)
	}
	if !it.follows && h.CounterResetHint != histogram.GaugeType {
		h.CounterResetHint = histogram.UnknownCounterReset
	}
	return t, h
}

// AtFloatHistogram implements chunkenc.Iterator.
func (it *spliceIterator) AtFloatHistogram(fh *histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	var t int64
	if it.foreign {
		s := &it.taken[it.at]
		t = s.t
		switch {
		case s.h != nil:
			fh = s.h.ToFloat(fh)
		case fh == nil:
			fh = s.fh.Copy()
		default:
			s.fh.CopyTo(fh)
		}
	} else {
		t, fh = it.own.AtFloatHistogram(fh)
	}
	if !it.follows && fh.CounterResetHint != histogram.GaugeType {
		fh.CounterResetHint = histogram.UnknownCounterReset
	}
	return t, fh
}

// AtT implements chunkenc.Iterator.
func (it *spliceIterator) AtT() int64 {
	if it.foreign {
		return it.taken[it.at].t
	}
	return it.own.AtT()
}

// Err implements chunkenc.Iterator.
func (it *spliceIterator) Err() error { return it.err }
