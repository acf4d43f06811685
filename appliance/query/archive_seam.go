package query

import (
	"math"
	"time"

	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// coarsest is the smallest resolution but raw.
const coarsest = 5 * time.Minute

// addedUp are the functions for which Thanos gives the sum of what a counter has grown by, as it has it in downsampled blocks.
var addedUp = map[string]bool{"rate": true, "increase": true, "irate": true, "resets": true}

// mergeCounters puts the samples of the replicas behind those of the archive. There a counter was added up over its resets, and here it was
// not: what is older is moved so that it ends where the newer begins. That loses what the counter grew by in between, and invents no reset.
func mergeCounters(all ...storage.Series) storage.Series {
	var older *olderSeries
	for _, s := range all {
		if o, ok := s.(olderSeries); ok {
			older = &o
		}
	}
	if older == nil || len(all) != 2 {
		return storage.ChainedSeriesMerge(all...)
	}
	newer := all[0]
	if _, ok := newer.(olderSeries); ok {
		newer = all[1]
	}
	return &storage.SeriesEntry{Lset: newer.Labels(), SampleIteratorFn: func(chunkenc.Iterator) chunkenc.Iterator {
		from, to := math.NaN(), math.NaN()
		it := older.Iterator(nil)
		for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
			if kind == chunkenc.ValFloat {
				if _, v := it.At(); !value.IsStaleNaN(v) {
					from = v
				}
			}
		}
		it = newer.Iterator(it)
		for kind := it.Next(); kind == chunkenc.ValFloat; kind = it.Next() {
			if _, v := it.At(); !value.IsStaleNaN(v) {
				to = v
				break
			}
		}
		moved := storage.Series(*older)
		if by := to - from; !math.IsNaN(by) {
			moved = movedSeries{*older, by}
		}
		return storage.ChainedSeriesMerge(moved, newer).Iterator(nil)
	}}
}

// olderSeries is one of the archive.
type olderSeries struct{ storage.Series }

// movedSeries has floats that are larger by that.
type movedSeries struct {
	storage.Series
	by float64
}

// Iterator implements storage.Series.
func (s movedSeries) Iterator(it chunkenc.Iterator) chunkenc.Iterator {
	return movedIterator{s.Series.Iterator(it), s.by}
}

type movedIterator struct {
	chunkenc.Iterator
	by float64
}

// At implements chunkenc.Iterator.
func (m movedIterator) At() (int64, float64) {
	t, v := m.Iterator.At()
	if !value.IsStaleNaN(v) {
		v += m.by
	}
	return t, v
}

// fromSplit has no sample before a time: where a gap is spliced, others' samples from before it come along.
type fromSplit struct {
	storage.SeriesSet
	split int64
}

// At implements storage.SeriesSet.
func (s fromSplit) At() storage.Series { return splitSeries{s.SeriesSet.At(), s.split} }

type splitSeries struct {
	storage.Series
	split int64
}

// Iterator implements storage.Series.
func (s splitSeries) Iterator(it chunkenc.Iterator) chunkenc.Iterator {
	if used, ok := it.(*splitIterator); ok {
		used.Iterator, used.split, used.begun = s.Series.Iterator(used.Iterator), s.split, false
		return used
	}
	return &splitIterator{Iterator: s.Series.Iterator(it), split: s.split}
}

type splitIterator struct {
	chunkenc.Iterator
	split int64
	begun bool
}

// Next implements chunkenc.Iterator.
func (s *splitIterator) Next() chunkenc.ValueType {
	if s.begun {
		return s.Iterator.Next()
	}
	s.begun = true
	return s.Iterator.Seek(s.split)
}

// Seek implements chunkenc.Iterator.
func (s *splitIterator) Seek(t int64) chunkenc.ValueType { //nolint:govet // It is not io.Seeker's.
	s.begun = true
	return s.Iterator.Seek(max(t, s.split))
}
