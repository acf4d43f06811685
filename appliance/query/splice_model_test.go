package query

import (
	"math"
	"slices"
	"sort"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/tocsin-io/tocsin/appliance/store"
)

type pt struct {
	t  int64
	f  float64
	h  *histogram.Histogram
	fh *histogram.FloatHistogram
}

func (s pt) T() int64                      { return s.t }
func (s pt) F() float64                    { return s.f }
func (s pt) H() *histogram.Histogram       { return s.h }
func (s pt) FH() *histogram.FloatHistogram { return s.fh }
func (s pt) Type() chunkenc.ValueType {
	switch {
	case s.h != nil:
		return chunkenc.ValHistogram
	case s.fh != nil:
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValFloat
}
func (s pt) Copy() chunks.Sample { return s }
func (s pt) stale() bool {
	switch {
	case s.h != nil:
		return value.IsStaleNaN(s.h.Sum)
	case s.fh != nil:
		return value.IsStaleNaN(s.fh.Sum)
	}
	return value.IsStaleNaN(s.f)
}

func readAll(it chunkenc.Iterator) (all []pt) {
	for {
		switch it.Next() {
		case chunkenc.ValNone:
			return all
		case chunkenc.ValFloat:
			t, v := it.At()
			all = append(all, pt{t: t, f: v})
		case chunkenc.ValHistogram:
			t, h := it.AtHistogram(nil)
			all = append(all, pt{t: t, h: h.Copy()})
		case chunkenc.ValFloatHistogram:
			t, h := it.AtFloatHistogram(nil)
			all = append(all, pt{t: t, fh: h.Copy()})
		}
	}
}

// spliceModel is the rule, sample by sample.
func spliceModel(own, theirs []pt, iv store.Interval) []pt {
	var real []int64
	for _, s := range own {
		if !s.stale() {
			real = append(real, s.t)
		}
	}
	var theirReal []int64
	for _, s := range theirs {
		if !s.stale() {
			theirReal = append(theirReal, s.t)
		}
	}
	spacing := func(t int64) int64 {
		d := int64(math.MaxInt64)
		for _, u := range theirReal {
			if u != t {
				d = min(d, max(u-t, t-u))
			}
		}
		if d == math.MaxInt64 {
			return 0
		}
		return d
	}
	var out []pt
	for _, s := range own {
		if s.stale() && iv.Contains(s.t) {
			hidden := false
			for _, u := range theirReal {
				if u > s.t && iv.Contains(u) && float64(u-s.t) <= 1.5*float64(spacing(u)) {
					hidden = true
				}
			}
			if hidden {
				continue
			}
		}
		out = append(out, s)
	}
	for _, s := range theirs {
		if !iv.Contains(s.t) || slices.ContainsFunc(own, func(o pt) bool { return o.t == s.t }) {
			continue
		}
		d := spacing(s.t)
		i := sort.Search(len(real), func(i int) bool { return real[i] >= s.t })
		o1, o2 := i > 0, i < len(real)
		if o1 && o2 && float64(real[i]-real[i-1]) < 1.5*float64(d) {
			continue
		}
		if o1 && !s.stale() && 2*(s.t-real[i-1]) < d {
			continue
		}
		if o2 && 2*(real[i]-s.t) < d {
			continue
		}
		out = append(out, s)
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].t < out[j].t })
	return out
}
