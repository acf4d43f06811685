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
	"github.com/prometheus/common/model"
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

// sampled are the blocks of one resolution that are there to stay, by what they were made of.
type sampled struct {
	sources map[ulid.ULID]*metadata.Meta
	// windows are those that they have whole: then it does not matter which of several uploads they were made of.
	windows map[int64]*metadata.Meta
}

// sampled are the downsampled blocks by resolution, without those that are broken or marked for deletion.
func (c *compactor) sampled(metas map[ulid.ULID]*metadata.Meta) map[int64]sampled {
	done := map[int64]sampled{}
	for _, resolution := range []int64{downsample.ResLevel1, downsample.ResLevel2} {
		done[resolution] = sampled{map[ulid.ULID]*metadata.Meta{}, map[int64]*metadata.Meta{}}
	}
	broken, deleted := c.quarantined(), c.deleted.DeletionMarkBlocks()
	for id, m := range metas {
		s, ok := done[m.Thanos.Downsample.Resolution]
		_, isBroken := broken[id]
		_, isDeleted := deleted[id]
		if !ok || isBroken || isDeleted {
			continue
		}
		for _, source := range m.Compaction.Sources {
			s.sources[source] = m
			if start, whole, ok := nameWindow(source, c.b.o.Window); ok && whole {
				s.windows[start] = m
			}
		}
	}
	return done
}

// remade are the broken downsampled blocks in whose place there are others, made of the same: otherwise one of the two would be
// taken for superfluous, and that is the newer one.
func remade(metas map[ulid.ULID]*metadata.Meta, broken map[ulid.ULID]string) map[ulid.ULID]ulid.ULID {
	found := map[ulid.ULID]ulid.ULID{}
	for id := range broken {
		m := metas[id]
		if m == nil || m.Thanos.Downsample.Resolution == downsample.ResLevel0 {
			continue
		}
		for other, o := range metas {
			if _, ok := broken[other]; ok || o.Thanos.Downsample.Resolution != m.Thanos.Downsample.Resolution {
				continue
			}
			if !slices.ContainsFunc(m.Compaction.Sources, func(s ulid.ULID) bool { return !slices.Contains(o.Compaction.Sources, s) }) {
				found[id] = other
			}
		}
	}
	return found
}

// remadeFilter takes broken downsampled blocks out that were made anew.
type remadeFilter struct{ c *compactor }

var _ block.MetadataFilter = remadeFilter{}

// Filter implements block.MetadataFilter.
func (f remadeFilter) Filter(_ context.Context, metas map[ulid.ULID]*metadata.Meta, _, _ block.GaugeVec) error {
	found := remade(metas, f.c.quarantined())
	for id := range found {
		delete(metas, id)
	}
	f.c.mtx.Lock()
	defer f.c.mtx.Unlock()
	f.c.remade = found
	return nil
}

// all are the blocks that together have everything of m; it is not ok if something is in none of them.
func (s sampled) all(m *metadata.Meta, window time.Duration) (blocks []*metadata.Meta, ok bool) {
	for _, source := range m.Compaction.Sources {
		by := s.sources[source]
		if start, _, ours := nameWindow(source, window); by == nil && ours {
			by = s.windows[start]
		}
		if by == nil {
			return nil, false
		}
		if !slices.Contains(blocks, by) {
			blocks = append(blocks, by)
		}
	}
	return blocks, true
}

// needed tells whether something is still to be made of a block that is kept longer than the block itself may be. If not, by are
// the blocks that take its place.
func (c *compactor) needed(m *metadata.Meta, done map[int64]sampled) (need bool, by []*metadata.Meta) {
	var (
		keep    = c.b.retention.Load()
		window  = c.b.o.Window
		minutes = m.Thanos.Downsample.Resolution == downsample.ResLevel0 && !expired(m, keep.FiveMinutes)
		hours   = m.Thanos.Downsample.Resolution <= downsample.ResLevel1 && !expired(m, keep.OneHour)
	)
	if !minutes && !hours {
		return false, nil
	}
	if m.Thanos.Downsample.Resolution == downsample.ResLevel0 {
		// What is to be kept at 1h is made of this.
		if by, ok := done[downsample.ResLevel1].all(m, window); ok {
			return false, by
		}
	}
	if !minutes {
		if by, ok := done[downsample.ResLevel2].all(m, window); ok {
			return false, by
		}
	}
	return true, nil
}

// expired tells whether a block is older than it is to be kept.
func expired(m *metadata.Meta, keep model.Duration) bool {
	return keep > 0 && time.Since(time.UnixMilli(m.MaxTime)) > time.Duration(keep)
}

// keep is how long a block is kept by the configuration.
func (c *compactor) keep(m *metadata.Meta) model.Duration {
	keep := c.b.retention.Load()
	switch m.Thanos.Downsample.Resolution {
	case downsample.ResLevel1:
		return keep.FiveMinutes
	case downsample.ResLevel2:
		return keep.OneHour
	}
	return keep.Raw
}

// toDownsample are the blocks that are long enough and of which there is no downsampled block, oldest first. One that is too short,
// that retention would delete, and that compaction will not make longer, is downsampled as it is: it would be lost otherwise.
func (c *compactor) toDownsample(metas map[ulid.ULID]*metadata.Meta) []*metadata.Meta {
	var (
		todo    []*metadata.Meta
		done    = c.sampled(metas)
		never   = c.never()
		deleted = c.deleted.DeletionMarkBlocks()
		future  = time.Now().Add(c.b.o.Window).UnixMilli()
		length  = c.b.o.Window.Milliseconds()
	)
	for id, m := range metas {
		_, isDeleted := deleted[id]
		_, windows, ok := coarser(m)
		switch {
		case !ok, isDeleted, m.MinTime > future, never[id]:
		case m.MaxTime-m.MinTime < windows*length && !(expired(m, c.keep(m)) && c.final(m)):
		default:
			if need, _ := c.needed(m, done); need {
				todo = append(todo, m)
			}
		}
	}
	slices.SortFunc(todo, func(a, b *metadata.Meta) int { return a.ULID.Compare(b.ULID) })
	return todo
}

// never are the blocks that nothing is made of, because they are broken or marked so.
func (c *compactor) never() map[ulid.ULID]bool {
	all := map[ulid.ULID]bool{}
	for id := range c.quarantined() {
		all[id] = true
	}
	for id := range c.unsample.NoDownsampleMarkedBlocks() {
		all[id] = true
	}
	return all
}

// final tells whether the time is over in which compaction makes a block long enough to be downsampled.
func (c *compactor) final(m *metadata.Meta) bool {
	ranges := compactRanges(c.b.o.Window)
	level := ranges[2]
	if m.Thanos.Downsample.Resolution == downsample.ResLevel1 {
		level = ranges[3]
	}
	end := max(m.MaxTime, floor(m.MinTime, level)+level)
	return time.Since(time.UnixMilli(end)) > patience*c.b.o.Window
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

// retain marks for deletion what is older than the configuration wants, once what is kept longer is made of it, and what is superseded,
// deletes what was marked long enough ago, and what cut-off uploads left.
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
	c.mtx.Lock()
	again := c.remade
	c.mtx.Unlock()
	for id, other := range again {
		if _, marked := deleted[id]; marked {
			continue
		}
		if err := block.MarkForDeletion(ctx, c.kit, c.b.bkt, id, fmt.Sprintf("it is broken, and block %s was made anew", other), c.markedDelete); err != nil {
			return fmt.Errorf("mark block %s, which was made anew, for deletion: %w", id, err)
		}
	}
	if err := c.expire(ctx, metas); err != nil {
		return err
	}
	if _, err := c.cleaner.DeleteMarkedBlocks(ctx); err != nil {
		return fmt.Errorf("delete blocks that were marked for deletion: %w", err)
	}
	c.cleanPartial(ctx, deleted)
	return c.sync(ctx)
}

// expire marks for deletion what is older than it is to be kept, but not what downsampled blocks are still to be made of.
func (c *compactor) expire(ctx context.Context, metas map[ulid.ULID]*metadata.Meta) error {
	done, never := c.sampled(metas), c.never()
	looked := map[ulid.ULID]error{}
	for id, m := range metas {
		if !expired(m, c.keep(m)) {
			continue
		}
		need, by := c.needed(m, done)
		for _, other := range by {
			broken, ok := looked[other.ULID]
			if !ok {
				// Without this block it cannot be made anew.
				var err error
				if broken, err = wrongFile(ctx, c.b.bkt, other); err != nil {
					return err
				}
				if looked[other.ULID] = broken; broken != nil {
					c.quarantine(ctx, other.ULID, broken)
				}
			}
			need = need || broken != nil
		}
		if need && !never[id] {
			continue
		}
		reason := fmt.Sprintf("it is older than the %s that blocks of its resolution are kept", c.keep(m))
		if err := block.MarkForDeletion(ctx, c.kit, c.b.bkt, id, reason, c.markedDelete); err != nil {
			return fmt.Errorf("mark block %s, which is older than the retention, for deletion: %w", id, err)
		}
	}
	return nil
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
