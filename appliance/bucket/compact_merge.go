package bucket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/block/metadata"
	"github.com/thanos-io/thanos/pkg/compact"
)

// suspicious asks, when planning fails, which of the blocks lacks a file.
type suspicious struct {
	compact.Planner
	c *compactor
}

// Plan implements compact.Planner.
func (p suspicious) Plan(ctx context.Context, metas []*metadata.Meta, errs chan error, extensions any) ([]*metadata.Meta, error) {
	plan, err := p.Planner.Plan(ctx, metas, errs, extensions)
	if err == nil {
		return plan, nil
	}
	j := p.c.begin("compact/"+p.c.grouper.only, "planning", nil)
	return nil, errors.Join(err, p.c.checkFiles(ctx, j, metas))
}

// lifecycle accompanies each compaction. Thanos's own does not care for the disk, nor for whether what it uploaded arrived.
type lifecycle struct{ c *compactor }

var _ compact.CompactionLifecycleCallback = lifecycle{}

// PreCompactionCallback implements compact.CompactionLifecycleCallback.
func (l lifecycle) PreCompactionCallback(ctx context.Context, _ kitLog, group *compact.Group, plan []*metadata.Meta) error {
	c := l.c
	// The one before, of this group, is over.
	c.end(nil)
	j := c.begin("compact/"+group.Key(), "downloading", plan)
	c.logger.Info("compaction begins", "group", group.Key(), "blocks", len(plan), "bytes", j.bytes,
		"from", time.UnixMilli(plan[0].MinTime).UTC())
	if err := c.checkFiles(ctx, j, plan); err != nil {
		return err
	}
	return c.room(j.bytes)
}

// GetBlockPopulator implements compact.CompactionLifecycleCallback.
func (l lifecycle) GetBlockPopulator(ctx context.Context, _ kitLog, _ *compact.Group) (tsdb.BlockPopulator, error) {
	return populator{ctx: ctx, j: l.c.phase("compacting"), c: l.c}, nil
}

// PostCompactionCallback implements compact.CompactionLifecycleCallback. The sources are marked for deletion only after it.
func (l lifecycle) PostCompactionCallback(ctx context.Context, _ kitLog, _ *compact.Group, id ulid.ULID) error {
	if _, err := l.c.arrived(ctx, id); err != nil {
		return err
	}
	l.c.compactions.Inc()
	return nil
}

// arrived checks a block that was uploaded, and takes it back if it is not as it should be.
func (c *compactor) arrived(ctx context.Context, id ulid.ULID) (*metadata.Meta, error) {
	j := c.phase("checking")
	m, err := block.DownloadMeta(ctx, c.kit, c.b.bkt, id)
	if err != nil {
		return nil, fmt.Errorf("read back block %s: %w", id, err)
	}
	broken, err := wrongFile(ctx, c.b.bkt, &m)
	if err != nil {
		return nil, err
	}
	if broken != nil {
		return nil, errors.Join(fmt.Errorf("block %s did not arrive: %w", id, broken), block.Delete(ctx, c.kit, c.b.bkt, id))
	}
	c.mtx.Lock()
	defer c.mtx.Unlock()
	j.results = append(j.results, &m)
	return &m, nil
}

// populator counts what is written, and stops when the run does.
type populator struct {
	ctx context.Context //nolint:containedctx // The compactor's own is as long as the process.
	j   *job
	c   *compactor
}

// PopulateBlock implements tsdb.BlockPopulator.
func (p populator) PopulateBlock(_ context.Context, metrics *tsdb.CompactorMetrics, logger *slog.Logger, pool chunkenc.Pool,
	merge storage.VerticalChunkSeriesMergeFunc, blocks []tsdb.BlockReader, meta *tsdb.BlockMeta, indexw tsdb.IndexWriter,
	chunkw tsdb.ChunkWriter, postings tsdb.IndexReaderPostingsFunc,
) error {
	err := tsdb.DefaultBlockPopulator{}.PopulateBlock(p.ctx, metrics, logger, pool, merge, blocks, meta, countingWriter{indexw, p.j}, chunkw, postings)
	p.c.phase("uploading")
	return err
}

type countingWriter struct {
	tsdb.IndexWriter
	j *job
}

// AddSeries implements tsdb.IndexWriter.
func (w countingWriter) AddSeries(ref storage.SeriesRef, l labels.Labels, chks ...chunks.Meta) error {
	w.j.series.Add(1)
	return w.IndexWriter.AddSeries(ref, l, chks...)
}

// checked makes a merger fail when one of the series that it merges cannot be read. Thanos's goes on without it, and compaction
// would then delete the only block that has what could not be read.
func checked(merge storage.VerticalChunkSeriesMergeFunc) storage.VerticalChunkSeriesMergeFunc {
	return func(series ...storage.ChunkSeries) storage.ChunkSeries {
		var read []chunks.Iterator
		remembered := make([]storage.ChunkSeries, len(series))
		for i, s := range series {
			remembered[i] = &storage.ChunkSeriesEntry{Lset: s.Labels(), ChunkIteratorFn: func(it chunks.Iterator) chunks.Iterator {
				it = s.Iterator(it)
				read = append(read, it)
				return it
			}}
		}
		merged := merge(remembered...)
		return &storage.ChunkSeriesEntry{Lset: merged.Labels(), ChunkIteratorFn: func(chunks.Iterator) chunks.Iterator {
			read = nil
			return &checkedIterator{merged.Iterator(nil), &read}
		}}
	}
}

// checkedIterator has the errors of all that it reads.
type checkedIterator struct {
	chunks.Iterator
	read *[]chunks.Iterator
}

// Err implements chunks.Iterator.
func (it *checkedIterator) Err() error {
	err := it.Iterator.Err()
	for _, r := range *it.read {
		err = errors.Join(err, r.Err())
	}
	return err
}
