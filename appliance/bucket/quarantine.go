package bucket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/block/metadata"
	"github.com/thanos-io/thanos/pkg/compact/downsample"
)

// brokenReason is the reason of a no-compact mark of ours.
const brokenReason = "tocsin-broken-block"

// maxDetails bounds what a mark tells, in bytes.
const maxDetails = 500

// quarantined are the blocks that are left alone because they are broken, and why.
func (c *compactor) quarantined() map[ulid.ULID]string {
	broken := map[ulid.ULID]string{}
	for id, mark := range c.marked.NoCompactMarkedBlocks() {
		if isBrokenReason(mark.Reason) {
			broken[id] = mark.Details
		}
	}
	c.mtx.Lock()
	defer c.mtx.Unlock()
	for id, reason := range c.broken {
		broken[id] = reason
	}
	return broken
}

// isBrokenReason tells whether a no-compact mark says that the block is broken.
func isBrokenReason(r metadata.NoCompactReason) bool {
	return r == brokenReason || r == metadata.OutOfOrderChunksNoCompactReason
}

// marks are all blocks that compaction leaves alone, ours and others.
func (c *compactor) marks() []blockReason {
	var all []blockReason
	marked := c.marked.NoCompactMarkedBlocks()
	for id, mark := range marked {
		reason := string(mark.Reason)
		if mark.Details != "" {
			reason += ": " + mark.Details
		}
		all = append(all, blockReason{id, reason, saneTime(time.Unix(mark.NoCompactTime, 0))})
	}
	for id, reason := range c.quarantined() {
		if _, ok := marked[id]; !ok {
			all = append(all, blockReason{Block: id, Reason: reason})
		}
	}
	return all
}

// quarantine takes a block out of the way of all compactors, Thanos's too. Its data stay where they are.
func (c *compactor) quarantine(ctx context.Context, id ulid.ULID, reason error) {
	details := reason.Error()
	if len(details) > maxDetails {
		details = details[:maxDetails] + "..."
	}
	c.mtx.Lock()
	c.broken[id] = details
	c.mtx.Unlock()
	c.b.catalogue.recount()
	c.logger.Error("a block of the bucket is broken: compaction leaves it alone from now on, its data stay where they are", "block", id, "err", reason)
	if err := block.MarkForNoCompact(ctx, c.kit, c.b.bkt, id, brokenReason, details, c.markedBroken); err != nil {
		c.logger.Warn("cannot mark the broken block; until the next start this replica remembers it", "block", id, "err", err)
	}
}

// checkFiles finds the blocks with files that are not there, or not as long as they should be.
func (c *compactor) checkFiles(ctx context.Context, j *job, plan []*metadata.Meta) error {
	var all []error
	for _, m := range plan {
		broken, err := wrongFile(ctx, c.b.bkt, m)
		if err != nil {
			return err
		}
		if broken != nil {
			j.broken[m.ULID] = broken
			all = append(all, fmt.Errorf("block %s is broken: %w", m.ULID, broken))
		}
	}
	return errors.Join(all...)
}

// wrongFile looks for a file that is not what the meta.json says.
func wrongFile(ctx context.Context, bkt objstore.InstrumentedBucketReader, m *metadata.Meta) (broken, err error) {
	_, broken, err = blockFiles(ctx, bkt, m)
	return broken, err
}

// blockFiles are the files of a block but meta.json, with their sizes in bytes, unless one is not what the meta.json says.
func blockFiles(ctx context.Context, bkt objstore.InstrumentedBucketReader, m *metadata.Meta) (sizes map[string]int64, broken, err error) {
	if n := len(m.Thanos.Files); n > maxMetaFiles {
		return nil, fmt.Errorf("its meta.json lists %d files", n), nil
	}
	sizes = map[string]int64{block.IndexFilename: 0}
	for _, f := range m.Thanos.Files {
		// Whose path leads elsewhere is not read at all. Its own size meta.json cannot tell.
		if f.RelPath != block.MetaFilename && filepath.IsLocal(f.RelPath) {
			sizes[f.RelPath] = f.SizeBytes
		}
	}
	expecting := bkt.ReaderWithExpectedErrs(bkt.IsObjNotFoundErr)
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		size := sizes[name]
		attributes, err := expecting.Attributes(ctx, path.Join(m.ULID.String(), name))
		switch {
		case err != nil && bkt.IsObjNotFoundErr(err):
			return nil, fmt.Errorf("its file %s is missing", name), nil
		case err != nil:
			return nil, nil, fmt.Errorf("look at file %s of block %s: %w", name, m.ULID, err)
		case size > 0 && attributes.Size != size:
			return nil, fmt.Errorf("its file %s has %d bytes, and its meta.json says %d", name, attributes.Size, size), nil
		}
		sizes[name] = attributes.Size
	}
	return sizes, nil, nil
}

// findBroken reads the blocks of work that failed one by one, whole, and notes which are broken. An error says that it could not.
func (c *compactor) findBroken(ctx context.Context, j *job) error {
	for _, m := range j.plan {
		broken, err := c.verify(ctx, m)
		if err != nil {
			return fmt.Errorf("verify block %s: %w", m.ULID, err)
		}
		if broken != nil {
			j.broken[m.ULID] = broken
		}
	}
	return nil
}

// verify downloads a block and reads all of it. It is asked only after a failure: it costs as much as a compaction.
func (c *compactor) verify(ctx context.Context, m *metadata.Meta) (broken, err error) {
	if err := c.room(metaBytes(m)); err != nil {
		return nil, err
	}
	dir := filepath.Join(c.dir, "verify", m.ULID.String())
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := block.Download(ctx, c.kit, c.b.bkt, m.ULID, dir, objstore.WithFetchConcurrency(fileConcurrency)); err != nil {
		return nil, err
	}
	broken = readWhole(ctx, c.kit, dir, m, func() {})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return broken, nil
}

// readWhole reads all of a block and says what is wrong with it. Samples and checksums are looked at. It calls read after each
// series.
func readWhole(ctx context.Context, kit kitLogger, dir string, m *metadata.Meta, read func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("reading it panics: %v", p)
		}
	}()
	stats, err := block.GatherIndexHealthStats(ctx, kit, filepath.Join(dir, block.IndexFilename), m.MinTime, m.MaxTime)
	if err != nil {
		return fmt.Errorf("its index cannot be read: %w", err)
	}
	if err := stats.AnyErr(); err != nil {
		return fmt.Errorf("its index is wrong: %w", err)
	}
	b, err := tsdb.OpenBlock(slog.New(slog.DiscardHandler), dir, downsample.NewPool(), nil)
	if err != nil {
		return fmt.Errorf("it cannot be opened: %w", err)
	}
	defer b.Close() //nolint:errcheck // It was only read.
	indexr, err := b.Index()
	if err != nil {
		return fmt.Errorf("its index cannot be opened: %w", err)
	}
	defer indexr.Close() //nolint:errcheck // It was only read.
	chunkr, err := b.Chunks()
	if err != nil {
		return fmt.Errorf("its chunks cannot be opened: %w", err)
	}
	defer chunkr.Close() //nolint:errcheck // It was only read.
	name, value := index.AllPostingsKey()
	postings, err := indexr.Postings(ctx, name, value)
	if err != nil {
		return fmt.Errorf("its postings cannot be read: %w", err)
	}
	var (
		builder labels.ScratchBuilder
		chks    []chunks.Meta
	)
	for postings.Next() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := indexr.Series(postings.At(), &builder, &chks); err != nil {
			return fmt.Errorf("series %d cannot be read: %w", postings.At(), err)
		}
		for _, meta := range chks {
			chk, _, err := chunkr.ChunkOrIterable(meta)
			if err == nil {
				err = readChunk(chk, meta)
			}
			if err != nil {
				return fmt.Errorf("a chunk of series %s cannot be read: %w", builder.Labels(), err)
			}
		}
		read()
	}
	return postings.Err()
}

func readChunk(chk chunkenc.Chunk, meta chunks.Meta) error {
	aggregates, ok := chk.(*downsample.AggrChunk)
	if !ok {
		last := meta.MinTime - 1
		return readSamples(chk, func(t int64) error {
			if t <= last || t > meta.MaxTime {
				return fmt.Errorf("a sample at %d is out of order, or not within [%d, %d]", t, meta.MinTime, meta.MaxTime)
			}
			last = t
			return nil
		})
	}
	for kind := downsample.AggrCount; kind <= downsample.AggrCounter; kind++ {
		part, err := aggregates.Get(kind)
		if errors.Is(err, downsample.ErrAggrNotExist) {
			continue
		}
		if err == nil {
			err = readSamples(part, func(int64) error { return nil })
		}
		if err != nil {
			return fmt.Errorf("aggregate %s: %w", kind, err)
		}
	}
	return nil
}

func readSamples(chk chunkenc.Chunk, look func(t int64) error) error {
	it := chk.Iterator(nil)
	for it.Next() != chunkenc.ValNone {
		if err := look(it.AtT()); err != nil {
			return err
		}
	}
	return it.Err()
}
