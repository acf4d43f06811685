package store

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// deletions keeps queries and deletions apart, which the TSDB does not survive together: it cuts a series to what is
// asked for by adding tombstones, of which the last goes up to math.MaxInt64, and tombstones.Intervals.Add panics in v0.309.1 when
// such a one meets an interval that is not the first. So a deletion behind the end of what is asked for, in a series that is
// cut at the front too or has another deletion, takes a query down. (Clamping what is deleted does not help: it is the end of
// the query that counts, and the head's open chunk is always cut.) Therefore: where anything is deleted, the TSDB does not cut, we do.
//
// Compactions cut too, but a block has nothing behind its end, and of the head they take ranges at whose ends chunks end as well.
type deletions struct {
	any  atomic.Bool
	cuts atomic.Int64 // Open queriers that let the TSDB cut.
}

// find looks for what was deleted by earlier processes.
func (d *deletions) find(db *tsdb.DB) error {
	stones, err := db.Head().Tombstones()
	if err != nil {
		return fmt.Errorf("read the head's tombstones: %w", err)
	}
	found := stones.Total() > 0
	for _, b := range db.Blocks() {
		found = found || b.Meta().Stats.NumTombstones > 0
	}
	d.any.Store(found)
	return nil
}

// mayCut is whether a querier may let the TSDB cut. If so, the querier calls cut when it is closed.
func (d *deletions) mayCut() bool {
	d.cuts.Add(1)
	if d.any.Load() {
		d.cuts.Add(-1)
		return false
	}
	return true
}

func (d *deletions) cut() { d.cuts.Add(-1) }

// begin returns when there is no querier that lets the TSDB cut, and there will be none.
func (d *deletions) begin(ctx context.Context) error {
	d.any.Store(true)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for d.cuts.Load() > 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %d open queries before deleting: %w", d.cuts.Load(), ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// uncut has the TSDB leave series as long as their chunks are, and cuts the samples itself.
type uncut struct {
	storage.Querier
	mint, maxt int64
}

func (q uncut) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	if hints != nil && hints.DisableTrimming {
		return q.Querier.Select(ctx, sorted, hints, ms...)
	}
	h := uncutHints(hints, q.mint, q.maxt)
	return cutSet{q.Querier.Select(ctx, sorted, h, ms...), h.Start, h.End}
}

// uncutChunks has the TSDB pass whole chunks. Whoever reads chunks has to look at the times of their samples anyway.
type uncutChunks struct {
	storage.ChunkQuerier
	mint, maxt int64
}

func (q uncutChunks) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	return q.ChunkQuerier.Select(ctx, sorted, uncutHints(hints, q.mint, q.maxt), ms...)
}

func uncutHints(hints *storage.SelectHints, mint, maxt int64) *storage.SelectHints {
	h := storage.SelectHints{Start: mint, End: maxt}
	if hints != nil {
		h = *hints
	}
	h.DisableTrimming = true
	return &h
}

type cutSet struct {
	storage.SeriesSet
	mint, maxt int64
}

func (s cutSet) At() storage.Series { return cutSeries{s.SeriesSet.At(), s.mint, s.maxt} }

type cutSeries struct {
	storage.Series
	mint, maxt int64
}

func (s cutSeries) Iterator(it chunkenc.Iterator) chunkenc.Iterator {
	c, ok := it.(*cutSamples)
	if !ok {
		c = &cutSamples{}
	}
	*c = cutSamples{Iterator: s.Series.Iterator(c.Iterator), mint: s.mint, maxt: s.maxt}
	return c
}

// cutSamples are the samples within bounds.
type cutSamples struct {
	chunkenc.Iterator
	mint, maxt int64
	ended      bool
}

func (c *cutSamples) Next() chunkenc.ValueType {
	if c.ended {
		return chunkenc.ValNone
	}
	typ := c.Iterator.Next()
	if typ != chunkenc.ValNone && c.AtT() < c.mint {
		typ = c.Iterator.Seek(c.mint)
	}
	return c.upTo(typ)
}

func (c *cutSamples) Seek(t int64) chunkenc.ValueType { //nolint:govet // It is not io.Seeker's.
	if c.ended {
		return chunkenc.ValNone
	}
	return c.upTo(c.Iterator.Seek(max(t, c.mint)))
}

func (c *cutSamples) upTo(typ chunkenc.ValueType) chunkenc.ValueType {
	if c.ended = typ == chunkenc.ValNone || c.AtT() > c.maxt; c.ended {
		return chunkenc.ValNone
	}
	return typ
}
