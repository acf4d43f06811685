package bucket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/timestamp"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/block/metadata"
	"github.com/thanos-io/thanos/pkg/compact"
	"github.com/thanos-io/thanos/pkg/compact/downsample"
)

// From how many windows on a block is downsampled: with windows of two hours these are Thanos's 40 hours and 10 days. Shorter
// blocks would give chunks of a few samples.
const (
	downsampleTo5m = 20
	downsampleTo1h = 120
)

// toDownsample are the blocks that are long enough and whose sources no downsampled block has, oldest first.
func (c *compactor) toDownsample(metas map[ulid.ULID]*metadata.Meta) []*metadata.Meta {
	done := map[int64]map[ulid.ULID]bool{downsample.ResLevel1: {}, downsample.ResLevel2: {}}
	for _, m := range metas {
		if sources, ok := done[m.Thanos.Downsample.Resolution]; ok {
			for _, id := range m.Compaction.Sources {
				sources[id] = true
			}
		}
	}
	var (
		todo    []*metadata.Meta
		broken  = c.quarantined()
		never   = c.unsample.NoDownsampleMarkedBlocks()
		deleted = c.deleted.DeletionMarkBlocks()
		future  = time.Now().Add(c.b.o.Window).UnixMilli()
	)
	for id, m := range metas {
		_, isBroken := broken[id]
		_, isNever := never[id]
		_, isDeleted := deleted[id]
		resolution, windows, ok := coarser(m)
		switch {
		case !ok, isBroken, isNever, isDeleted, m.MinTime > future:
		case m.MaxTime-m.MinTime < windows*c.b.o.Window.Milliseconds():
		case slices.ContainsFunc(m.Compaction.Sources, func(source ulid.ULID) bool { return !done[resolution][source] }):
			todo = append(todo, m)
		}
	}
	slices.SortFunc(todo, func(a, b *metadata.Meta) int { return a.ULID.Compare(b.ULID) })
	return todo
}

func downsampleWork(m *metadata.Meta) string { return "downsample/" + m.ULID.String() }

func (c *compactor) ownDownsampling(m *metadata.Meta) bool { return c.elected(downsampleWork(m)) }

// coarser is the next resolution of a block, and how many windows long it must be for that.
func coarser(m *metadata.Meta) (resolution, windows int64, ok bool) {
	switch m.Thanos.Downsample.Resolution {
	case downsample.ResLevel0:
		return downsample.ResLevel1, downsampleTo5m, true
	case downsample.ResLevel1:
		return downsample.ResLevel2, downsampleTo1h, true
	}
	return 0, 0, false
}

// downsample makes the downsampled blocks that are this replica's to make, and says how many. An error is one of the stop.
func (c *compactor) downsample(ctx context.Context) (n int, err error) {
	for _, m := range c.toDownsample(c.syncer.Metas()) {
		key := downsampleWork(m)
		if c.resting(key) || !c.ownDownsampling(m) {
			continue
		}
		err := c.downsampleBlock(ctx, key, m)
		if ctx.Err() != nil {
			c.drop()
			return n, ctx.Err()
		}
		if err != nil {
			c.failed(ctx, key, "downsample the block", err)
			continue
		}
		c.succeeded(key)
		c.end(nil)
		c.downsamplings.Inc()
		n++
	}
	return n, nil
}

func (c *compactor) downsampleBlock(ctx context.Context, key string, m *metadata.Meta) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("downsampling block %s panics: %v", m.ULID, p)
		}
	}()
	resolution, _, _ := coarser(m)
	j := c.begin(key, "downloading", []*metadata.Meta{m})
	c.logger.Info("downsampling begins", "block", m.ULID, "bytes", j.bytes, "resolution", time.Duration(resolution)*time.Millisecond)
	if err := c.checkFiles(ctx, j, j.plan); err != nil {
		return err
	}
	if err := c.room(j.bytes); err != nil {
		return err
	}
	dir := filepath.Join(c.dir, "downsample")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	defer func() {
		if rmErr := os.RemoveAll(dir); err == nil {
			err = rmErr
		}
	}()
	source := filepath.Join(dir, m.ULID.String())
	if err := block.Download(ctx, c.kit, c.b.bkt, m.ULID, source, objstore.WithFetchConcurrency(fileConcurrency)); err != nil {
		return compact.NewRetryError(fmt.Errorf("download block %s: %w", m.ULID, err))
	}
	if err := block.VerifyIndex(ctx, c.kit, filepath.Join(source, block.IndexFilename), m.MinTime, m.MaxTime); err != nil {
		return fmt.Errorf("verify the index of block %s: %w", m.ULID, err)
	}
	c.phase("downsampling")
	id, err := c.downsampleDir(ctx, m, source, dir, resolution)
	if err != nil {
		return fmt.Errorf("downsample block %s to %s: %w", m.ULID, time.Duration(resolution)*time.Millisecond, err)
	}
	made := filepath.Join(dir, id.String())
	meta, err := metadata.ReadFromDir(made)
	if err != nil {
		return fmt.Errorf("read what was downsampled of block %s: %w", m.ULID, err)
	}
	stats, err := block.GatherIndexHealthStats(ctx, c.kit, filepath.Join(made, block.IndexFilename), m.MinTime, m.MaxTime)
	if err == nil {
		err = stats.AnyErr()
	}
	if err != nil {
		return fmt.Errorf("verify what was downsampled of block %s: %w", m.ULID, err)
	}
	// The read side sizes its requests by them.
	meta.Thanos.IndexStats.ChunkMaxSize = stats.ChunkMaxSize
	meta.Thanos.IndexStats.SeriesMaxSize = stats.SeriesMaxSize
	if err := meta.WriteToDir(c.kit, made); err != nil {
		return fmt.Errorf("write the meta.json of downsampled block %s: %w", id, err)
	}
	c.phase("uploading")
	if err := block.Upload(ctx, c.kit, c.b.bkt, made, metadata.SHA256Func, objstore.WithUploadConcurrency(fileConcurrency)); err != nil {
		return compact.NewRetryError(fmt.Errorf("upload downsampled block %s: %w", id, err))
	}
	if _, err := c.arrived(ctx, id); err != nil {
		return compact.NewRetryError(err)
	}
	return nil
}

func (c *compactor) downsampleDir(ctx context.Context, m *metadata.Meta, source, dir string, resolution int64) (id ulid.ULID, err error) {
	b, err := tsdb.OpenBlock(slog.New(slog.DiscardHandler), source, downsample.NewPool(), nil)
	if err != nil {
		return id, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return downsample.Downsample(ctx, c.kit, m, b, dir, resolution)
}

// retain marks for deletion what is older than the configuration wants and what is superseded, deletes what was marked long enough
// ago, and what cut-off uploads left.
func (c *compactor) retain(ctx context.Context) error {
	if err := c.sync(ctx); err != nil {
		return err
	}
	metas := c.syncer.Metas()
	deleted := c.deleted.DeletionMarkBlocks()
	maps.DeleteFunc(metas, func(id ulid.ULID, _ *metadata.Meta) bool {
		_, marked := deleted[id]
		return marked
	})
	for id, reason := range c.sort(metas, time.Now()).superseded {
		if err := block.MarkForDeletion(ctx, c.kit, c.b.bkt, id, reason, c.markedDelete); err != nil {
			return fmt.Errorf("mark block %s, which is superseded, for deletion: %w", id, err)
		}
		delete(metas, id)
	}
	keep := c.b.retention.Load()
	err := compact.ApplyRetentionPolicyByResolution(ctx, c.kit, c.b.bkt, metas, map[compact.ResolutionLevel]time.Duration{
		compact.ResolutionLevelRaw: time.Duration(keep.Raw),
		compact.ResolutionLevel5m:  time.Duration(keep.FiveMinutes),
		compact.ResolutionLevel1h:  time.Duration(keep.OneHour),
	}, c.markedDelete)
	if err != nil {
		return fmt.Errorf("mark blocks that are older than the retention for deletion: %w", err)
	}
	if _, err := c.cleaner.DeleteMarkedBlocks(ctx); err != nil {
		return fmt.Errorf("delete blocks that were marked for deletion: %w", err)
	}
	c.cleanPartial(ctx, deleted)
	return c.sync(ctx)
}

// cleanPartial deletes what uploads that were cut off left. A meta.json that is there, but cannot be read, is no such thing.
func (c *compactor) cleanPartial(ctx context.Context, deleted map[ulid.ULID]*metadata.DeletionMark) {
	foreign := map[ulid.ULID]error{}
	for id, err := range c.syncer.Partial() {
		if errors.Is(err, block.ErrorSyncMetaCorrupted) {
			continue
		}
		if _, _, ours := nameWindow(id, c.b.o.Window); !ours {
			foreign[id] = err
			continue
		}
		// Our name says when its upload began.
		if time.Since(timestamp.Time(int64(id.Time()))) <= c.deleteDelay {
			continue
		}
		c.partialTries.Inc()
		if err := block.Delete(ctx, c.kit, c.b.bkt, id); err != nil {
			c.partialErrs.Inc()
			c.logger.Warn("cannot delete what a cut-off upload left; it is tried again", "block", id, "err", err)
			continue
		}
		c.partials.Inc()
		c.logger.Info("deleted what a cut-off upload left", "block", id)
	}
	// What another's upload left, or ours of a compacted block: Thanos looks at when it was last written to.
	compact.BestEffortCleanAbortedPartialUploads(ctx, c.kit, foreign, c.b.bkt, c.partialTries, c.partials, c.partialErrs, deleted)
}
