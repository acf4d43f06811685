package store

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/tsdb/tombstones"
)

const (
	healDir      = "heal"
	importPrefix = "import-"
	// importSegmentBytes is how large a file of chunks is. Upstream takes the space of a whole one at once, and its 512
	// MiB are more than a small volume may have.
	importSegmentBytes = 32 << 20
	// importChunkSamples is how many samples a chunk gets that is encoded anew, as in upstream's head.
	importChunkSamples = 120
)

// blockWriter writes a block series by series, in the order of their labels. Chunks go to disk at once; of labels it
// keeps numbers, for the index at the end.
type blockWriter struct {
	scratch string // Removed when done, whatever is in it.
	dir     string // The block, in scratch.
	id      ulid.ULID
	chunks  *chunks.Writer // Nil when closed.

	ids    map[string]uint32 // Of names and values.
	texts  []string          // By number.
	last   []string          // Names and values of the series before, and their numbers.
	lastID []uint32

	pairs  []uint32 // Numbers of names and values of all series.
	series []writtenSeries
	metas  []writtenChunk

	mint, maxt int64
	stats      tsdb.BlockStats
}

// writtenSeries is where the parts of a series end.
type writtenSeries struct{ pairs, metas uint32 }

type writtenChunk struct {
	ref        chunks.ChunkRef
	mint, maxt int64
}

// newBlockWriter writes below dir, which is on the file system of the TSDB.
func newBlockWriter(dir string) (*blockWriter, error) {
	id, err := ulid.New(ulid.Now(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a block's name: %w", err)
	}
	w := &blockWriter{
		scratch: filepath.Join(dir, importPrefix+id.String()),
		id:      id,
		ids:     map[string]uint32{},
		mint:    math.MaxInt64,
		maxt:    math.MinInt64,
	}
	w.dir = filepath.Join(w.scratch, id.String())
	if err := os.MkdirAll(w.dir, 0o750); err != nil {
		return nil, fmt.Errorf("create a block: %w", err)
	}
	if w.chunks, err = chunks.NewWriter(filepath.Join(w.dir, "chunks"), chunks.WithSegmentSize(importSegmentBytes)); err != nil {
		return nil, errors.Join(fmt.Errorf("create a block's chunks: %w", err), os.RemoveAll(w.scratch))
	}
	return w, nil
}

// discard removes what is there of the block. After commit that is nothing.
func (w *blockWriter) discard() error {
	var err error
	if w.chunks != nil {
		err = w.chunks.Close()
		w.chunks = nil
	}
	return errors.Join(err, os.RemoveAll(w.scratch))
}

// add writes a series. The chunks are free again when it returns.
func (w *blockWriter) add(l labels.Labels, chks []chunks.Meta) error {
	if err := w.chunks.WriteChunks(chks...); err != nil {
		return fmt.Errorf("write chunks: %w", err)
	}
	for i := range chks {
		c := &chks[i]
		w.metas = append(w.metas, writtenChunk{c.Ref, c.MinTime, c.MaxTime})
		w.mint, w.maxt = min(w.mint, c.MinTime), max(w.maxt, c.MaxTime)
		n := uint64(c.Chunk.NumSamples())
		w.stats.NumSamples += n
		if c.Chunk.Encoding() == chunkenc.EncXOR {
			w.stats.NumFloatSamples += n
		} else {
			w.stats.NumHistogramSamples += n
		}
	}
	w.stats.NumChunks += uint64(len(chks))
	w.stats.NumSeries++
	for i, lb := range l {
		w.pairs = append(w.pairs, w.number(2*i, lb.Name), w.number(2*i+1, lb.Value))
	}
	w.series = append(w.series, writtenSeries{uint32(len(w.pairs)), uint32(len(w.metas))})
	return nil
}

// number is that of a name or value. Series in order differ from the one before in few places.
func (w *blockWriter) number(place int, s string) uint32 {
	if place == len(w.last) {
		w.last = append(w.last, "")
		w.lastID = append(w.lastID, 0)
	}
	if w.last[place] == s && s != "" {
		return w.lastID[place]
	}
	id, ok := w.ids[s]
	if !ok {
		id = uint32(len(w.texts))
		s = strings.Clone(s) // It may be part of a whole message.
		w.ids[s] = id
		w.texts = append(w.texts, s)
	}
	w.last[place], w.lastID[place] = w.texts[id], id
	return id
}

// indexBytes is about how large the index and its temporary files become.
func (w *blockWriter) indexBytes() int64 {
	n := int64(len(w.pairs))*12 + int64(len(w.series))*32 + int64(len(w.metas))*16
	for _, s := range w.texts {
		n += int64(len(s)) + 16
	}
	return n
}

// finish writes everything but chunks, and makes sure that it is all on disk.
func (w *blockWriter) finish(ctx context.Context) error {
	err := w.chunks.Close()
	w.chunks = nil
	if err != nil {
		return fmt.Errorf("close chunks: %w", err)
	}
	if err := w.writeIndex(ctx); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	if _, err := tombstones.WriteFile(slog.New(slog.DiscardHandler), w.dir, tombstones.NewMemTombstones()); err != nil {
		return fmt.Errorf("write tombstones: %w", err)
	}
	meta := tsdb.BlockMeta{
		Version: 1,
		ULID:    w.id,
		MinTime: w.mint,
		MaxTime: w.maxt + 1, // It is the first time that is not in the block.
		Stats:   w.stats,
		Compaction: tsdb.BlockMetaCompaction{
			Level:   1,
			Sources: []ulid.ULID{w.id},
		},
	}
	// Without this the next start would take the end of the block as the start of the head's time, and drop what the
	// write-ahead log has before it.
	meta.Compaction.SetOutOfOrder()
	b, err := json.MarshalIndent(meta, "", "\t")
	if err != nil {
		return fmt.Errorf("encode meta.json: %w", err)
	}
	if err := writeSynced(filepath.Join(w.dir, "meta.json"), b); err != nil {
		return fmt.Errorf("write meta.json: %w", err)
	}
	if err := syncDir(filepath.Join(w.dir, "chunks")); err != nil {
		return err
	}
	return syncDir(w.dir)
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (w *blockWriter) writeIndex(ctx context.Context) (err error) {
	iw, err := index.NewWriter(ctx, filepath.Join(w.dir, "index"))
	if err != nil {
		return err
	}
	defer func() {
		if cerr := iw.Close(); err == nil {
			err = cerr
		}
	}()
	sorted := slices.Clone(w.texts)
	slices.Sort(sorted)
	for _, s := range sorted {
		if err := iw.AddSymbol(s); err != nil {
			return err
		}
	}
	var (
		l     labels.Labels
		chks  []chunks.Meta
		start writtenSeries
	)
	for ref, end := range w.series {
		l, chks = l[:0], chks[:0]
		for i := start.pairs; i < end.pairs; i += 2 {
			l = append(l, labels.Label{Name: w.texts[w.pairs[i]], Value: w.texts[w.pairs[i+1]]})
		}
		for _, c := range w.metas[start.metas:end.metas] {
			chks = append(chks, chunks.Meta{Ref: c.ref, MinTime: c.mint, MaxTime: c.maxt})
		}
		start = end
		if err := iw.AddSeries(storage.SeriesRef(ref), l, chks...); err != nil {
			return err
		}
		if ref%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// commit moves the finished block among those of the TSDB, in whole.
func (w *blockWriter) commit(tsdbDir string) error {
	// What upstream cannot open would fail each of its reloads.
	b, err := tsdb.OpenBlock(slog.New(slog.DiscardHandler), w.dir, nil, nil)
	if err == nil {
		err = b.Close()
	}
	if err != nil {
		return fmt.Errorf("open the block that was written: %w", err)
	}
	if err := os.Rename(w.dir, filepath.Join(tsdbDir, w.id.String())); err != nil {
		return fmt.Errorf("move the block to the others: %w", err)
	}
	return syncDir(tsdbDir)
}

// cleanImports removes what imports left behind that were killed.
func (s *Store) cleanImports() error {
	dir := filepath.Join(s.opts.Dir, healDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("look for imports that did not end: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), importPrefix) {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove imports that did not end: %w", err)
	}
	return nil
}

// loadBlocks makes the running TSDB look for new blocks at once. Upstream has no call for that, but does it whenever it
// compacted a head: so it gets one that is empty, and of a time that truncates nothing. RangeHead's end overflows to
// the smallest time, which neither the head's memory nor the write-ahead log has anything before.
//
// A head that never had a sample would take even that time as its own. It is left alone: what compacts samples that
// came out of order, of which it has none, looks for blocks too. Without a window for those, the TSDB finds the block
// by itself within BlockReloadInterval.
func (s *Store) loadBlocks(ctx context.Context, db *tsdb.DB, scratch string) error {
	if db.Head().MinTime() == math.MaxInt64 {
		if err := db.CompactOOOHead(ctx); err != nil {
			return fmt.Errorf("load blocks: %w", err)
		}
		return nil
	}
	opts := tsdb.DefaultHeadOptions()
	opts.ChunkDirRoot = scratch
	opts.StripeSize = 1
	head, err := tsdb.NewHead(nil, slog.New(slog.DiscardHandler), nil, nil, opts, nil)
	if err != nil {
		return fmt.Errorf("make an empty head: %w", err)
	}
	err = db.CompactHead(tsdb.NewRangeHead(head, reloadTime, reloadTime))
	if cerr := head.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("load blocks: %w", err)
	}
	return nil
}

// reloadTime is the time of the empty head.
const reloadTime = math.MaxInt64

// excluded keeps compaction off a block of samples that came out of order while the head has samples of that time.
// Compaction does not hand on the mark: two such blocks, merged, would at the next start be taken for what the head had
// before its time, and the head's samples in the write-ahead log be dropped. Once the head has been written to a block
// of its own, they are all merged.
func (s *Store) excluded(meta *tsdb.BlockMeta) bool {
	if f := s.opts.BlockCompactionExcludeFunc; f != nil && f(meta) {
		return true
	}
	if s.holds(meta) {
		return true
	}
	if !meta.Compaction.FromOutOfOrder() {
		return false
	}
	db := s.local.db.Load()
	return db == nil || db.Head().MinTime() < meta.MaxTime
}

// chunkEncoder encodes the samples of one series.
type chunkEncoder struct {
	out []chunks.Meta

	chunk      chunkenc.Chunk // Nil when none is open.
	app        chunkenc.Appender
	n          int
	mint, maxt int64

	xors []*chunkenc.XORChunk // Used again for each series.
	used int
}

func (e *chunkEncoder) reset() {
	e.out, e.used, e.chunk, e.app = e.out[:0], 0, nil, nil
}

// flush ends the open chunk.
func (e *chunkEncoder) flush() {
	if e.chunk != nil {
		e.out = append(e.out, chunks.Meta{Chunk: e.chunk, MinTime: e.mint, MaxTime: e.maxt})
		e.chunk = nil
	}
}

// whole adds a chunk as it is.
func (e *chunkEncoder) whole(c chunkenc.Chunk, mint, maxt int64) {
	e.flush()
	e.app = nil
	e.out = append(e.out, chunks.Meta{Chunk: c, MinTime: mint, MaxTime: maxt})
}

// open makes the open chunk one that takes a sample of that encoding.
func (e *chunkEncoder) open(enc chunkenc.Encoding, t int64) (err error) {
	if e.chunk != nil && e.n < importChunkSamples && e.chunk.Encoding() == enc {
		return nil
	}
	e.flush()
	if enc == chunkenc.EncXOR {
		if e.used == len(e.xors) {
			e.xors = append(e.xors, chunkenc.NewXORChunk())
		}
		c := e.xors[e.used]
		e.used++
		c.Reset(append(c.Bytes()[:0], 0, 0))
		e.chunk = c
	} else if e.chunk, err = chunkenc.NewEmptyChunk(enc); err != nil {
		return err
	}
	e.n, e.mint = 0, t
	e.app, err = e.chunk.Appender()
	return err
}

func (e *chunkEncoder) appendFloat(t int64, v float64) error {
	if err := e.open(chunkenc.EncXOR, t); err != nil {
		return err
	}
	e.app.Append(t, v)
	e.n++
	e.maxt = t
	return nil
}

func (e *chunkEncoder) appendHistogram(t int64, h *histogram.Histogram, fh *histogram.FloatHistogram) (err error) {
	var (
		c       chunkenc.Chunk
		recoded bool
		app     chunkenc.Appender
		before  = e.app // Tells a chunk whether it goes on where the one before ended.
	)
	if h != nil {
		if err := e.open(chunkenc.EncHistogram, t); err != nil {
			return err
		}
		prev, _ := before.(*chunkenc.HistogramAppender)
		c, recoded, app, err = e.app.AppendHistogram(prev, t, h, false)
	} else {
		if err := e.open(chunkenc.EncFloatHistogram, t); err != nil {
			return err
		}
		prev, _ := before.(*chunkenc.FloatHistogramAppender)
		c, recoded, app, err = e.app.AppendFloatHistogram(prev, t, fh, false)
	}
	if err != nil {
		return err
	}
	if c != nil {
		if !recoded { // The histogram did not fit in the chunk and is in one of its own.
			e.flush()
			e.n, e.mint = 0, t
		}
		e.chunk = c
	}
	e.app = app
	e.n++
	e.maxt = t
	return nil
}
