package store

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

func TestSplice(t *testing.T) {
	type at = []int64
	tests := []struct {
		name        string
		own, ownEnd at // Real samples, staleness markers.
		real, stale at // Theirs.
		want        at
		hidden      at
	}{
		{"nothing of our own", nil, nil, at{10, 20, 30}, nil, at{10, 20, 30}, nil},
		{"a hole", at{0, 10, 50, 60}, nil, at{5, 15, 25, 35, 45, 55}, nil, at{15, 25, 35, 45}, nil},
		{"too near to our last", at{0, 10, 50}, nil, at{4, 14, 24, 34, 44}, nil, at{24, 34, 44}, nil},
		{"too near to our first", at{0, 10, 50}, nil, at{6, 16, 26, 36, 46}, nil, at{16, 26, 36}, nil},
		{"half a scrape is enough", at{10, 40}, nil, at{15, 25, 35}, nil, at{15, 25, 35}, nil},
		{"healthy", at{0, 10, 20, 30}, nil, at{5, 15, 25}, nil, nil, nil},
		{"barely healthy", at{0, 14}, nil, at{5, 15}, nil, nil, nil},
		{"barely not", at{0, 15}, nil, at{6, 16}, nil, at{6}, nil},
		{"the same time", at{10}, at{20}, at{10, 20, 30}, nil, at{30}, at{20}},
		{"a single one", at{10, 30}, nil, at{20}, nil, at{20}, nil},
		{"a single one right behind ours", at{10}, nil, at{11}, nil, at{11}, nil},
		{"only before ours", at{50}, nil, at{30, 40, 48}, nil, at{30, 40}, nil},
		{"a marker right behind our last", at{0, 10}, nil, at{4}, at{11}, at{11}, nil},
		{"a marker of a healthy stretch", at{0, 10, 20}, nil, at{5}, at{15}, nil, nil},
		{"a marker right before our next", at{0, 50}, nil, at{5, 15, 25, 35}, at{46}, at{5, 15, 25, 35}, nil},
		{"it goes on there", at{0, 10}, at{20}, at{5, 15, 25, 35}, nil, at{15, 25, 35}, at{20}},
		{"it ends there too", at{0, 10}, at{20}, at{5, 15}, at{22}, at{15, 22}, nil},
		{"it comes back there later", at{0, 10}, at{20}, at{5, 15, 36, 46}, nil, at{15, 36, 46}, nil},
		{"it comes back there at the edge", at{0, 10}, at{20}, at{5, 35, 45}, nil, at{35, 45}, at{20}},
		{"markers outside", at{0}, at{-1, 100}, at{10, 20, 95}, nil, at{10, 20, 95}, nil},
		{"two markers", at{0}, at{10, 30}, at{5, 15, 25, 35}, nil, at{5, 15, 25, 35}, at{10, 30}},
		{"our marker is no sample", at{0, 60}, at{10, 20, 30, 40, 50}, at{5, 15, 25, 35, 45, 55}, nil, at{5, 15, 25, 35, 45, 55}, at{10, 20, 30, 40, 50}},
		{"markers only", nil, nil, nil, at{10, 20}, at{10, 20}, nil},
	}
	in := Interval{-1, 100}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			all := slices.Sorted(slices.Values(slices.Concat(tc.real, tc.stale)))
			stale := make([]bool, len(all))
			for i, at := range all {
				stale[i] = slices.Contains(tc.stale, at)
			}
			take := make([]bool, len(all))
			n, hidden := splice(&moments{real: tc.own, stale: tc.ownEnd}, all, stale, in, take, nil)
			var got at
			for i, t := range all {
				if take[i] {
					got = append(got, t)
				}
			}
			if !slices.Equal(got, tc.want) || n != len(got) {
				t.Errorf("takes %v (%d), want %v", got, n, tc.want)
			}
			if !slices.Equal(hidden, tc.hidden) {
				t.Errorf("hides %v, want %v", hidden, tc.hidden)
			}
		})
	}
}

// What a query splices is what a later import makes of it, and a Seek from anywhere to anywhere gives what Next gives.
func TestSpliceSeriesIsImport(t *testing.T) {
	b := base()
	first, later := Interval{b + 10*minute, b + 30*minute}, Interval{b + 30*minute, b + 45*minute}
	whole := kinds(b, b+60*minute, 15*second)
	own := cut(cut(whole, first), later)
	own["marked"] = append(slices.Clone(own["floats"][:40]), smp{t: b + 10*minute + 15*second, v: staleNaN})
	own["mixed"] = own["ints"]
	foreign := func(phase int64) map[string][]smp {
		res := kinds(b+phase, b+60*minute+phase, 15*second)
		res["marked"] = res["floats"]
		res["mixed"] = res["fhs"]
		res["unknown"] = res["ints"]
		return res
	}
	a, c := foreign(4*second), foreign(11*second)
	o := open(t, t.TempDir())
	o.put(own)
	q, err := o.Local().Querier(math.MinInt64/2, math.MaxInt64/2)
	if err != nil {
		t.Fatal(err)
	}
	spliced := map[string]storage.Series{}
	for name := range a {
		var ours storage.Series
		if len(own[name]) > 0 {
			ours = storage.NewListSeries(named(name), listed(own[name]))
		}
		fa, fc := theirs(t, first, map[string][]smp{name: a[name]}), theirs(t, later, map[string][]smp{name: c[name]})
		// In no order; the second stretch is empty for those that ended.
		spliced[name] = SpliceSeries(ours, append(fc.series, fa.series...)...)
	}
	q.Close()
	o.imp(first, theirs(t, first, a))
	o.imp(later, theirs(t, later, c))
	imported := all(t, o.Store)
	rnd := rand.New(rand.NewPCG(3, 4))
	for name, series := range spliced {
		want := imported[name]
		if name == "marked" {
			// A query does not see it; what is written stays.
			want = slices.DeleteFunc(want, func(s smp) bool { return s.t == b+10*minute+15*second })
		}
		got := drain(t, series.Iterator(nil))
		sameSamples(t, name, got, want)
		if t.Failed() {
			continue
		}
		var it chunkenc.Iterator
		for range 200 {
			it = series.Iterator(it)
			at, moved := -1, false
			for range 1 + rnd.IntN(6) {
				if rnd.IntN(2) == 0 {
					at++
					kind := it.Next()
					checkAt(t, it, kind, got, at)
				} else {
					to := b - minute + rnd.Int64N(65*minute)
					for at = max(at, 0); at < len(got) && got[at].t < to; {
						at++
					}
					checkAt(t, it, it.Seek(to), got, at)
				}
				moved = true
				if at >= len(got) {
					break
				}
			}
			if !moved {
				t.Fatal("not moved")
			}
		}
	}
}

func checkAt(t *testing.T, it chunkenc.Iterator, kind chunkenc.ValueType, all []smp, at int) {
	t.Helper()
	if at >= len(all) {
		if kind != chunkenc.ValNone || it.Next() != chunkenc.ValNone || it.Seek(0) != chunkenc.ValNone {
			t.Fatalf("it goes on behind its end")
		}
		return
	}
	got := smp{}
	switch want := all[at]; {
	case kind != want.Type():
		t.Fatalf("stands at %v, want %v at %d", kind, want.Type(), want.t)
	case kind == chunkenc.ValHistogram:
		// Into one that was used before.
		got.t, got.h = it.AtHistogram(&histogram.Histogram{Schema: 3, PositiveSpans: []histogram.Span{{Offset: 9, Length: 9}}, PositiveBuckets: make([]int64, 9)})
		if _, f := it.AtFloatHistogram(nil); !value.IsStaleNaN(f.Sum) && !f.Compact(0).Equals(want.h.ToFloat(nil).Compact(0)) {
			t.Fatalf("as float it is %s, want %s", f, want.h)
		}
	case kind == chunkenc.ValFloatHistogram:
		got.t, got.fh = it.AtFloatHistogram(&histogram.FloatHistogram{Schema: 3, PositiveSpans: []histogram.Span{{Offset: 9, Length: 9}}, PositiveBuckets: make([]float64, 9)})
	default:
		got.t, got.v = it.At()
	}
	if got.t != it.AtT() || got.String() != all[at].String() {
		t.Fatalf("stands at %s (%d), want %s", got, it.AtT(), all[at])
	}
}

func listed(samples []smp) (res []chunks.Sample) {
	for _, s := range samples {
		res = append(res, s)
	}
	return res
}

// Where the origin changes, nobody knows whether there was a counter reset.
func TestSpliceSeriesForgetsCounterResets(t *testing.T) {
	own := append(intHists(0, 100, 10), intHists(300, 400, 10)...)
	for i := range own {
		own[i].h.CounterResetHint = histogram.NotCounterReset
	}
	in := Interval{100, 300}
	foreign := theirs(t, in, map[string][]smp{"x": intHists(105, 295, 10)})
	it := SpliceSeries(storage.NewListSeries(named("x"), listed(own)), foreign.series...).Iterator(nil)
	var last int64 = -1
	var unknown []int64
	for it.Next() == chunkenc.ValHistogram {
		at, h := it.AtHistogram(nil)
		if h.CounterResetHint == histogram.UnknownCounterReset {
			unknown = append(unknown, at)
		}
		last = at
	}
	for _, at := range []int64{0, 105, 300} {
		if !slices.Contains(unknown, at) {
			t.Errorf("at %d it claims to know; unknown at %v", at, unknown)
		}
	}
	if slices.Contains(unknown, 310) || slices.Contains(unknown, 10) || last != 400 {
		t.Errorf("unknown at %v, last %d", unknown, last)
	}
}

func TestSpliceSeriesEdges(t *testing.T) {
	own := storage.NewListSeries(named("x"), listed(floats(0, 50, 10)))
	if SpliceSeries(own) != storage.Series(own) {
		t.Error("nothing to splice makes another series")
	}
	if l := SpliceSeries(nil).Labels(); l.Len() != 0 {
		t.Error(l)
	}
	sameSamples(t, "nothing", drain(t, SpliceSeries(nil).Iterator(nil)), nil)
	// The interval of a gap that still lasts, and chunks that reach further than was asked for.
	f := ForeignSeries{Labels: named("x"), Interval: Interval{50, Lasts}, Chunks: encoded(t, floats(5, 505, 10), 30)}
	want := append(floats(0, 50, 10), floats(55, 505, 10)...)
	got := SpliceSeries(own, f)
	if got.Labels().Get("__name__") != "x" {
		t.Error(got.Labels())
	}
	sameSamples(t, "lasts", drain(t, got.Iterator(nil)), want)
	h := ForeignSeries{Labels: named("x"), Interval: Interval{50, 100}, Chunks: encoded(t, intHists(5, 505, 10), 30)}
	wantH := append(floats(0, 50, 10), intHists(5, 505, 10)[5:10]...)
	sameSamples(t, "clipped", drain(t, SpliceSeries(own, h).Iterator(nil)), wantH)
	if it := got.Iterator(nil); it.Seek(1000) != chunkenc.ValNone || it.Err() != nil {
		t.Error("seek behind the end")
	}
}

func FuzzImport(f *testing.F) {
	for _, samples := range [][]smp{floats(1, 100, 10), intHists(1, 100, 10), floatHists(1, 100, 10)} {
		for _, c := range encoded(f, samples, 120) {
			f.Add(byte(c.Chunk.Encoding()), c.Chunk.Bytes())
		}
	}
	f.Add(byte(chunkenc.EncHistogram), []byte{0, 1, 0, 0, 0x47, 0xf8, 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xf8})
	in := Interval{0, 1000}
	f.Fuzz(func(t *testing.T, enc byte, b []byte) {
		c, err := chunkenc.FromData(chunkenc.Encoding(enc), b)
		if err != nil {
			return
		}
		s := ForeignSeries{Labels: named("x"), Interval: in, Chunks: []chunks.Meta{{Chunk: c}}}
		var d foreignDecoder
		if err := d.decode(s, in, false); err != nil {
			return
		}
		for i, at := range d.t {
			if !in.Contains(at) || i > 0 && d.t[i-1] >= at {
				t.Fatalf("times %v", d.t)
			}
		}
		// Whole, and in part, so that it is encoded anew.
		for _, keep := range []int{1, 2} {
			take, n := d.takeAll(), 0
			for i := range take {
				if take[i] = i%keep == 0; take[i] {
					n++
				}
			}
			var e chunkEncoder
			if err := d.encode(&e); err != nil {
				return
			}
			got := 0
			for _, m := range e.out {
				got += m.Chunk.NumSamples()
			}
			if got != n {
				t.Fatalf("%d samples encoded, want %d", got, n)
			}
			if _, err := d.samples(nil, n); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Where something was filled in, one of our distances is shorter. It does not make holes of all others.
func TestSpliceAtASeam(t *testing.T) {
	own := &moments{real: []int64{0, 15_000, 30_000, 45_000, 50_500, 65_500, 80_500, 95_500, 110_500}}
	for _, at := range []int64{57_000, 72_000, 20_000} {
		if n, _ := splice(own, []int64{at}, []bool{false}, Interval{at - 7000, at + 7000}, make([]bool, 1), nil); n != 0 {
			t.Errorf("one sample of theirs at %d is taken from between ours", at)
		}
	}
	// Their last one before the interval ends, and before it a hole of theirs: it is not taken for their spacing.
	own = &moments{real: []int64{100_000, 115_000, 130_000, 145_000}}
	if n, _ := splice(own, []int64{10_000, 85_000}, []bool{false, false}, Interval{0, 90_000}, make([]bool, 2), nil); n != 2 {
		t.Errorf("%d of 2 samples are taken", n)
	}
}
