package heal

import (
	"context"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// trimmer cuts chunks to the time that is asked for. The TSDB could do it, but panics in v0.309.1 where a series has a
// deletion after the end of what is asked for (tombstones.Intervals.Add up to math.MaxInt64 behind another interval).
type trimmer struct{ storage.ChunkQuerier }

func (t trimmer) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	h := *hints
	h.DisableTrimming = true
	return trimmedSet{t.ChunkQuerier.Select(ctx, sorted, &h, ms...), h.Start, h.End}
}

type trimmedSet struct {
	storage.ChunkSeriesSet
	mint, maxt int64
}

func (s trimmedSet) At() storage.ChunkSeries {
	return trimmedSeries{s.ChunkSeriesSet.At(), s.mint, s.maxt}
}

type trimmedSeries struct {
	storage.ChunkSeries
	mint, maxt int64
}

func (s trimmedSeries) Iterator(chunks.Iterator) chunks.Iterator {
	return &trimmedChunks{Iterator: s.ChunkSeries.Iterator(nil), mint: s.mint, maxt: s.maxt}
}

// trimmedChunks encodes those chunks anew that reach beyond a bound, and passes the others on.
type trimmedChunks struct {
	chunks.Iterator
	mint, maxt int64

	edge chunks.Iterator // What is left of a chunk, nil if none was cut.
	err  error
}

func (c *trimmedChunks) Next() bool {
	for c.err == nil {
		if c.edge != nil {
			if c.edge.Next() {
				return true
			}
			c.err, c.edge = c.edge.Err(), nil
			continue
		}
		if !c.Iterator.Next() {
			return false
		}
		chk := c.Iterator.At()
		if chk.Chunk == nil || chk.MinTime >= c.mint && chk.MaxTime <= c.maxt {
			return true // Thanos's server objects to one that is missing.
		}
		c.edge = storage.NewSeriesToChunkEncoder(&storage.SeriesEntry{
			SampleIteratorFn: func(chunkenc.Iterator) chunkenc.Iterator {
				return &trimmedSamples{Iterator: chk.Chunk.Iterator(nil), mint: c.mint, maxt: c.maxt}
			},
		}).Iterator(nil)
	}
	return false
}

func (c *trimmedChunks) At() chunks.Meta {
	if c.edge != nil {
		return c.edge.At()
	}
	return c.Iterator.At()
}

func (c *trimmedChunks) Err() error {
	if c.err != nil {
		return c.err
	}
	return c.Iterator.Err()
}

// trimmedSamples are those of a chunk within bounds.
type trimmedSamples struct {
	chunkenc.Iterator
	mint, maxt int64
}

func (s *trimmedSamples) Next() chunkenc.ValueType {
	for {
		typ := s.Iterator.Next()
		switch t := s.Iterator; {
		case typ == chunkenc.ValNone, t.AtT() > s.maxt:
			return chunkenc.ValNone
		case t.AtT() >= s.mint:
			return typ
		}
	}
}
