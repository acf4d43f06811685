package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/block/metadata"

	"github.com/tocsin-io/tocsin/appliance/store"
)

const (
	// halfMade ends the name of the folder that a block is staged in: what is not renamed in the end is not whole.
	halfMade = ".tmp"
	// leastSegmentBytes is how large a file of chunks may at least be. The writer takes the space of a whole one at once, and
	// upstream's 512 MiB are more than a small volume has; but each file is a request more.
	leastSegmentBytes = 32 << 20
)

// staged is a block that lies ready to be uploaded.
type staged struct {
	id    ulid.ULID
	dir   string
	begin int64 // Of its window.
	whole bool
	meta  *metadata.Meta // Nil if it cannot be used.
	// tried says that there may be something of it in the bucket.
	tried bool
}

// stage makes one block of what the local blocks have of the window that begins at begin. It is nil if they have nothing.
func (u *uploader) stage(ctx context.Context, begin int64, whole bool, blocks []store.LocalBlock) (_ *staged, err error) {
	id, err := windowName(u.now(), begin, whole)
	if err != nil {
		return nil, err
	}
	s := &staged{id: id, dir: filepath.Join(u.dir, id.String()), begin: begin, whole: whole}
	scratch := s.dir + halfMade
	defer func() {
		if rerr := os.RemoveAll(scratch); rerr != nil && err == nil {
			u.b.logger.Warn("cannot remove the temporary files of a staged block", "dir", scratch, "err", rerr)
		}
	}()
	dir, err := u.merge(ctx, scratch, begin, blocks)
	if err != nil || dir == "" {
		return nil, err
	}
	if s.meta, err = u.describe(ctx, dir, id); err != nil {
		return nil, err
	}
	if err := os.Rename(dir, s.dir); err != nil {
		return nil, fmt.Errorf("stage a block: %w", err)
	}
	// The name must not be forgotten once there is something in the bucket.
	if err := syncDir(u.dir); err != nil {
		return nil, fmt.Errorf("stage a block: %w", err)
	}
	return s, nil
}

// merge leaves in scratch a block of the window, and nothing else; "" if it would be empty. The local blocks are linked first:
// the TSDB may remove them at any time, and a compaction writes into the meta.json of what it fails to read.
func (u *uploader) merge(ctx context.Context, scratch string, begin int64, blocks []store.LocalBlock) (string, error) {
	end := begin + u.b.o.Window.Milliseconds()
	within := func(m tsdb.BlockMeta) bool { return begin <= m.MinTime && m.MaxTime <= end }
	var (
		dirs []string
		size int64
	)
	for _, b := range blocks {
		dir := filepath.Join(scratch, "local", b.Meta.ULID.String())
		n, err := linkBlock(b.Dir, dir)
		if err != nil {
			return "", fmt.Errorf("link block %s: %w", b.Meta.ULID, err)
		}
		dirs = append(dirs, dir)
		size += n
	}
	if len(blocks) == 1 && within(blocks[0].Meta) && blocks[0].Meta.Stats.NumTombstones == 0 {
		return dirs[0], nil
	}
	if err := u.b.o.Store.Room(size); err != nil {
		return "", fmt.Errorf("merge local blocks of %d MiB: %w", size>>20, err)
	}
	c, err := tsdb.NewLeveledCompactorWithOptions(ctx, nil, u.b.logger.With("task", "stage"), []int64{u.b.o.Window.Milliseconds()}, nil,
		tsdb.LeveledCompactorOptions{MaxBlockChunkSegmentSize: min(chunks.DefaultChunkSegmentSize, max(leastSegmentBytes, size))})
	if err != nil {
		return "", fmt.Errorf("make a compactor: %w", err)
	}
	// Deleted samples go first, by themselves: upstream panics when it cuts a series that has more than one interval deleted.
	var clean []string
	for i, b := range blocks {
		dir := dirs[i]
		if b.Meta.Stats.NumTombstones > 0 {
			ids, err := c.Compact(filepath.Join(scratch, "clean"), []string{dir}, nil)
			if err != nil {
				return "", fmt.Errorf("take the deleted samples out of block %s: %w", b.Meta.ULID, err)
			}
			if len(ids) == 0 {
				continue
			}
			dir = filepath.Join(scratch, "clean", ids[0].String())
		}
		clean = append(clean, dir)
	}
	if len(clean) == 0 {
		return "", nil
	}
	ids, err := c.CompactWithBlockPopulator(filepath.Join(scratch, "merged"), clean, nil, cut{begin, end})
	if err != nil {
		return "", fmt.Errorf("merge %d local blocks: %w", len(clean), err)
	}
	if len(ids) == 0 {
		return "", nil
	}
	return filepath.Join(scratch, "merged", ids[0].String()), nil
}

// cut keeps what lies in [begin, end): a local block that was compacted before there was a bucket spans several windows.
type cut struct{ begin, end int64 }

var _ tsdb.BlockPopulator = cut{}

// PopulateBlock implements tsdb.BlockPopulator.
func (c cut) PopulateBlock(ctx context.Context, metrics *tsdb.CompactorMetrics, logger *slog.Logger, pool chunkenc.Pool,
	merge storage.VerticalChunkSeriesMergeFunc, blocks []tsdb.BlockReader, meta *tsdb.BlockMeta, indexw tsdb.IndexWriter,
	chunkw tsdb.ChunkWriter, postings tsdb.IndexReaderPostingsFunc,
) error {
	meta.MinTime, meta.MaxTime = max(meta.MinTime, c.begin), min(meta.MaxTime, c.end)
	return tsdb.DefaultBlockPopulator{}.PopulateBlock(ctx, metrics, logger, pool, merge, blocks, meta, indexw, chunkw, postings)
}

// describe makes a block one of the bucket, by that name, if nothing is wrong with it.
func (u *uploader) describe(ctx context.Context, dir string, id ulid.ULID) (*metadata.Meta, error) {
	meta, err := metadata.ReadFromDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read meta.json of a staged block: %w", err)
	}
	stats, err := block.GatherIndexHealthStats(ctx, u.b.kit, filepath.Join(dir, block.IndexFilename), meta.MinTime, meta.MaxTime)
	if err == nil {
		err = stats.AnyErr()
	}
	if err != nil {
		return nil, fmt.Errorf("check the index of a staged block: %w", err)
	}
	meta.ULID = id
	meta.Stats.NumTombstones = 0
	meta.Compaction = tsdb.BlockMetaCompaction{Level: 1, Sources: []ulid.ULID{id}}
	// Its files, their sizes and hashes among it come with the upload.
	meta.Thanos = metadata.Thanos{
		Version: metadata.ThanosVersion1,
		Labels:  u.b.o.External().Map(),
		// Stock Thanos knows it: a block as it comes from a replica.
		Source:       metadata.SidecarSource,
		SegmentFiles: block.GetSegmentFiles(dir),
		IndexStats:   metadata.IndexStats{SeriesMaxSize: stats.SeriesMaxSize, ChunkMaxSize: stats.ChunkMaxSize},
	}
	if err := meta.WriteToDir(u.b.kit, dir); err != nil {
		return nil, fmt.Errorf("write meta.json of a staged block: %w", err)
	}
	return meta, nil
}

// rename gives a staged block the name and the labels that it would have if it were staged now. What is in the bucket by the old name goes
// first, unless it is there as a block: as long as that fails, the name is known here. The block itself is kept: it may have what the TSDB had to give up.
func (u *uploader) rename(ctx context.Context, s *staged, there bool, why string) (*staged, error) {
	if s.tried && !there {
		if err := u.withdraw(ctx, s.id); err != nil {
			return nil, err
		}
	}
	id, err := windowName(u.now(), s.begin, s.whole)
	if err != nil {
		return nil, err
	}
	fresh := &staged{id: id, dir: filepath.Join(u.dir, id.String()), begin: s.begin, whole: s.whole}
	// A kill in between leaves a folder with the meta.json of another: it is staged anew.
	if fresh.meta, err = u.describe(ctx, s.dir, id); err != nil {
		return nil, err
	}
	if err := os.Rename(s.dir, fresh.dir); err != nil {
		return nil, fmt.Errorf("rename a staged block: %w", err)
	}
	if err := syncDir(u.dir); err != nil {
		return nil, fmt.Errorf("rename a staged block: %w", err)
	}
	u.b.logger.Info("a staged block is uploaded by a fresh name", "block", fresh.id, "was", s.id, "why", why)
	return fresh, nil
}

// leftovers are the blocks that an earlier process staged. What it did not finish is removed.
func (u *uploader) leftovers() ([]*staged, error) {
	entries, err := os.ReadDir(u.dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("look for staged blocks: %w", err)
	}
	var found []*staged
	for _, e := range entries {
		path := filepath.Join(u.dir, e.Name())
		id, err := ulid.ParseStrict(e.Name())
		// With any length of windows: the flag may be another now.
		begin, whole, ok := nameWindow(id, time.Millisecond)
		if err != nil || !ok {
			if strings.HasSuffix(e.Name(), halfMade) {
				if err := os.RemoveAll(path); err != nil {
					return nil, fmt.Errorf("remove a block that is not whole: %w", err)
				}
			}
			continue
		}
		s := &staged{id: id, dir: path, begin: begin, whole: whole, tried: true}
		meta, err := metadata.ReadFromDir(path)
		switch {
		case err != nil:
			u.b.logger.Warn("a staged block cannot be read; it is staged anew", "block", id, "err", err)
		case begin%u.b.o.Window.Milliseconds() == 0 && meta.ULID == id:
			s.meta = meta
		}
		found = append(found, s)
	}
	return found, nil
}

// linkBlock links the files of a block, or copies them where that cannot be, and tells how many bytes they have. A block
// that goes away meanwhile is an error: what is removed last is linked last.
func linkBlock(from, to string) (size int64, err error) {
	if err := os.MkdirAll(filepath.Join(to, block.ChunksDirname), 0o750); err != nil {
		return 0, err
	}
	files, err := os.ReadDir(filepath.Join(from, block.ChunksDirname))
	if err != nil {
		return 0, err
	}
	names := make([]string, 0, len(files)+3)
	for _, f := range files {
		names = append(names, filepath.Join(block.ChunksDirname, f.Name()))
	}
	for _, name := range append(names, "tombstones", block.IndexFilename, block.MetaFilename) {
		src, dst := filepath.Join(from, name), filepath.Join(to, name)
		info, err := os.Stat(src)
		if errors.Is(err, fs.ErrNotExist) && name == "tombstones" {
			continue // Upstream takes that for none.
		}
		if err != nil {
			return 0, err
		}
		size += info.Size()
		if err := os.Link(src, dst); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return 0, err
			}
			if err := copyFile(src, dst); err != nil {
				return 0, err
			}
		}
	}
	return size, nil
}

func copyFile(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // It was only read.
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err == nil {
		err = dst.Sync()
	}
	return errors.Join(err, dst.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
