package store

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
)

const (
	second = int64(1000)
	minute = 60 * second
)

var staleNaN = math.Float64frombits(value.StaleNaN)

// smp is a sample of any kind.
type smp struct {
	t  int64
	v  float64
	h  *histogram.Histogram
	fh *histogram.FloatHistogram
}

func (s smp) T() int64                { return s.t }
func (s smp) F() float64              { return s.v }
func (s smp) H() *histogram.Histogram { return s.h }
func (s smp) FH() *histogram.FloatHistogram {
	if s.h != nil {
		return s.h.ToFloat(nil)
	}
	return s.fh
}
func (s smp) Copy() chunks.Sample { return s }
func (s smp) Type() chunkenc.ValueType {
	switch {
	case s.h != nil:
		return chunkenc.ValHistogram
	case s.fh != nil:
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValFloat
}

// String shows a sample so that staleness markers of all kinds are the same.
func (s smp) String() string {
	switch {
	case s.h != nil && value.IsStaleNaN(s.h.Sum), s.fh != nil && value.IsStaleNaN(s.fh.Sum), s.h == nil && s.fh == nil && value.IsStaleNaN(s.v):
		return fmt.Sprintf("%d:stale", s.t)
	case s.h != nil:
		return fmt.Sprintf("%d:%s", s.t, s.h)
	case s.fh != nil:
		return fmt.Sprintf("%d:float%s", s.t, s.fh)
	}
	return fmt.Sprintf("%d:%v", s.t, s.v)
}

// floats are samples with their time as value.
func floats(from, to, step int64) []smp {
	var res []smp
	for t := from; t <= to; t += step {
		res = append(res, smp{t: t, v: float64(t)})
	}
	return res
}

func intHists(from, to, step int64) []smp {
	var res []smp
	for t := from; t <= to; t += step {
		// A bucket more now and then, and a counter reset.
		h := tsdbutil.GenerateTestHistogram((t - from) / step % 100)
		if (t-from)/step%7 > 3 {
			h.PositiveSpans = append(h.PositiveSpans, histogram.Span{Offset: 2, Length: 1})
			h.PositiveBuckets = append(h.PositiveBuckets, 0)
			h.Count += uint64(h.PositiveBuckets[0] + h.PositiveBuckets[1] + h.PositiveBuckets[2] + h.PositiveBuckets[3])
		}
		res = append(res, smp{t: t, h: h})
	}
	return res
}

func floatHists(from, to, step int64) []smp {
	var res []smp
	for t := from; t <= to; t += step {
		res = append(res, smp{t: t, fh: tsdbutil.GenerateTestFloatHistogram((t - from) / step)})
	}
	return res
}

// encoded puts samples into chunks of up to n.
func encoded(t testing.TB, samples []smp, n int) []chunks.Meta {
	t.Helper()
	var res []chunks.Meta
	e := &chunkEncoder{}
	for i, s := range samples {
		if i%n == 0 {
			e.flush()
		}
		var err error
		switch {
		case s.h != nil:
			err = e.appendHistogram(s.t, s.h.Copy(), nil)
		case s.fh != nil:
			err = e.appendHistogram(s.t, nil, s.fh.Copy())
		default:
			err = e.appendFloat(s.t, s.v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	e.flush()
	for _, m := range e.out {
		res = append(res, chunks.Meta{Chunk: m.Chunk})
	}
	return res
}

// set is a ForeignSet.
type set struct {
	series []ForeignSeries
	err    error
	at     int
}

func (s *set) Next() bool        { s.at++; return s.at <= len(s.series) }
func (s *set) At() ForeignSeries { return s.series[s.at-1] }
func (s *set) Err() error        { return s.err }

// theirs makes a ForeignSet of samples by series, those strictly inside of in.
func theirs(t testing.TB, in Interval, data map[string][]smp) *set {
	t.Helper()
	s := &set{}
	for name, samples := range data {
		var inside []smp
		for _, x := range samples {
			if in.Contains(x.t) {
				inside = append(inside, x)
			}
		}
		if len(inside) > 0 {
			s.series = append(s.series, ForeignSeries{Labels: named(name), Interval: in, Chunks: encoded(t, inside, 30)})
		}
	}
	slices.SortFunc(s.series, func(a, b ForeignSeries) int { return labels.Compare(a.Labels, b.Labels) })
	return s
}

// named are the labels of a series: name, or name of job.
func named(name string) labels.Labels {
	name, job, ok := strings.Cut(name, "/")
	if !ok {
		job = "node"
	}
	return labels.FromStrings("__name__", name, "job", job)
}

// put appends samples by series, in the order of time as scraping does.
func (o *opened) put(data map[string][]smp) {
	o.t.Helper()
	app := o.Appender(context.Background())
	at := map[int64][]string{}
	for name, samples := range data {
		for i, s := range samples {
			at[s.t] = append(at[s.t], fmt.Sprint(name, " ", i))
		}
	}
	var times []int64
	for t := range at {
		times = append(times, t)
	}
	slices.Sort(times)
	for _, t := range times {
		for _, which := range at[t] {
			var (
				name string
				i    int
			)
			if _, err := fmt.Sscan(which, &name, &i); err != nil {
				o.t.Fatal(err)
			}
			s := data[name][i]
			var err error
			if s.Type() == chunkenc.ValFloat {
				_, err = app.Append(0, named(name), s.t, s.v)
			} else {
				_, err = app.AppendHistogram(0, named(name), s.t, s.h, s.fh)
			}
			if err != nil {
				o.t.Fatalf("append %s %s: %v", name, s, err)
			}
		}
	}
	if err := app.Commit(); err != nil {
		o.t.Fatal(err)
	}
}

// drain reads an iterator to its end.
func drain(t testing.TB, it chunkenc.Iterator) []smp {
	t.Helper()
	var res []smp
	for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
		var s smp
		switch kind {
		case chunkenc.ValHistogram:
			s.t, s.h = it.AtHistogram(nil)
		case chunkenc.ValFloatHistogram:
			s.t, s.fh = it.AtFloatHistogram(nil)
		default:
			s.t, s.v = it.At()
		}
		res = append(res, s)
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return res
}

// all reads everything of a store.
func all(t testing.TB, s *Store) map[string][]smp {
	t.Helper()
	q, err := s.Local().Querier(math.MinInt64/2, math.MaxInt64/2)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	res := map[string][]smp{}
	series := q.Select(context.Background(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	for series.Next() {
		l := series.At().Labels()
		name := l.Get("__name__")
		if job := l.Get("job"); job != "node" {
			name += "/" + job
		}
		res[name] = drain(t, series.At().Iterator(nil))
	}
	if err := series.Err(); err != nil {
		t.Fatal(err)
	}
	return res
}

func sameSamples(t testing.TB, what string, got, want []smp) {
	t.Helper()
	show := func(s []smp) (lines []string) {
		for _, x := range s {
			lines = append(lines, x.String())
		}
		return lines
	}
	g, w := show(got), show(want)
	if slices.Equal(g, w) {
		return
	}
	for i := range max(len(g), len(w)) {
		if i >= len(g) || i >= len(w) || g[i] != w[i] {
			t.Errorf("%s: %d samples, want %d; they differ from sample %d on:\n got %v\nwant %v", what, len(g), len(w), i,
				g[min(i, len(g)):min(i+3, len(g))], w[min(i, len(w)):min(i+3, len(w))])
			return
		}
	}
}

func (o *opened) imp(in Interval, f ForeignSet, opts ...ImportOptions) Imported {
	o.t.Helper()
	opts = append(opts, ImportOptions{Kind: GapReplica})
	got, err := o.Import(context.Background(), in, f, opts[0])
	if err != nil {
		o.t.Fatalf("import: %v", err)
	}
	return got
}

// crash is the data directory as it would be after a kill now.
func (o *opened) crash() string {
	o.t.Helper()
	dir := o.t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(o.opts.Dir)); err != nil {
		o.t.Fatal(err)
	}
	return dir
}

// base is a round time not long ago, early in the time of a block.
func base() int64 {
	hours := 2 * time.Hour.Milliseconds()
	return (time.Now().UnixMilli()/hours - 1) * hours
}

// kinds are the same stretch in each kind of sample, with a staleness marker at the end of one.
func kinds(from, to, step int64) map[string][]smp {
	return map[string][]smp{
		"floats": floats(from, to, step),
		"ints":   intHists(from, to, step),
		"fhs":    floatHists(from, to, step),
		"gone":   append(floats(from, to-10*step, step), smp{t: to - 9*step, v: staleNaN}),
		"gone_h": append(intHists(from, to-10*step, step), smp{t: to - 9*step, h: &histogram.Histogram{Sum: staleNaN}}),
		"gone_f": append(floatHists(from, to-10*step, step), smp{t: to - 9*step, fh: &histogram.FloatHistogram{Sum: staleNaN}}),
	}
}

// cut leaves out what lies strictly inside.
func cut(data map[string][]smp, in Interval) map[string][]smp {
	res := map[string][]smp{}
	for name, samples := range data {
		for _, s := range samples {
			if !in.Contains(s.t) {
				res[name] = append(res[name], s)
			}
		}
	}
	return res
}
