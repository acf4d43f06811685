package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/record"
	"github.com/prometheus/prometheus/tsdb/wlog"
)

// maxMissingSegments bounds how many gaps in a write-ahead log are bridged.
const maxMissingSegments = 1024

// salvage sets aside what would keep the TSDB from opening, so that the rest
// is served. What the TSDB repairs by itself, it leaves to it; the keeper it
// returns holds on to what such a repair deletes.
func (s *Store) salvage() (*walKeeper, error) {
	q := &quarantine{dir: filepath.Join(s.opts.Dir, quarantineDir), logger: s.logger}
	if err := s.salvageBlocks(q); err != nil {
		return nil, err
	}
	s.metrics.quarantined.Set(float64(q.blocks()))
	if err := salvageHeadChunks(filepath.Join(s.TSDBDir(), "chunks_head"), q); err != nil {
		return nil, err
	}
	s.say("checking the checkpoint of the write-ahead log")
	wal := filepath.Join(s.TSDBDir(), "wal")
	if err := salvageCheckpoint(wal, q, s.opts); err != nil {
		return nil, err
	}
	first := 0
	if _, i, err := wlog.LastCheckpoint(wal); err == nil {
		first = i + 1
	}
	if err := bridgeSegments(wal, first, s.logger); err != nil {
		return nil, err
	}
	if err := bridgeSegments(filepath.Join(s.TSDBDir(), wlog.WblDirName), -1, s.logger); err != nil {
		return nil, err
	}
	return keepWAL(s.TSDBDir(), q), nil
}

// quarantine is <Dir>/quarantine: what was set aside, for people to look at.
type quarantine struct {
	dir    string
	logger *slog.Logger
}

// take moves path there under name, and returns where it went.
func (q *quarantine) take(path, name string) (string, error) {
	if err := os.MkdirAll(q.dir, 0o750); err != nil {
		return "", fmt.Errorf("create quarantine: %w", err)
	}
	to, err := q.free(name)
	if err != nil {
		return "", err
	}
	if err := os.Rename(path, to); err != nil {
		return "", fmt.Errorf("set aside: %w", err)
	}
	return to, errors.Join(syncDir(q.dir), syncDir(filepath.Dir(path)))
}

// free is the path for name, with a number behind it if that is taken.
func (q *quarantine) free(name string) (string, error) {
	to := filepath.Join(q.dir, name)
	for i := 2; i < 10_000; i++ {
		if _, err := os.Lstat(to); errors.Is(err, os.ErrNotExist) {
			return to, nil
		}
		to = filepath.Join(q.dir, fmt.Sprintf("%s-%d", name, i))
	}
	return "", fmt.Errorf("set aside %s: %s is full of it", name, q.dir)
}

// blocks counts the blocks there.
func (q *quarantine) blocks() int {
	entries, err := os.ReadDir(q.dir)
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range entries {
		if len(e.Name()) < ulid.EncodedSize {
			continue
		}
		if _, err := ulid.ParseStrict(e.Name()[:ulid.EncodedSize]); err == nil {
			n++
		}
	}
	return n
}

// salvageBlocks sets aside each block that does not open. A broken block that
// a newer one replaces is left to the TSDB, which deletes it.
func (s *Store) salvageBlocks(q *quarantine) error {
	entries, err := os.ReadDir(s.TSDBDir())
	if err != nil {
		return fmt.Errorf("read TSDB directory: %w", err)
	}
	var names []string
	for _, e := range entries {
		if _, err := ulid.ParseStrict(e.Name()); err == nil && e.IsDir() {
			names = append(names, e.Name())
		}
	}
	replaced := map[ulid.ULID]bool{}
	broken := map[string]error{}
	for i, name := range names {
		s.say("checking block %d of %d", i+1, len(names))
		meta, err := checkBlock(filepath.Join(s.TSDBDir(), name))
		if err != nil {
			broken[name] = err
			continue
		}
		for _, p := range meta.Compaction.Parents {
			replaced[p.ULID] = true
		}
	}
	for _, name := range names {
		reason := broken[name]
		if reason == nil {
			continue
		}
		dir := filepath.Join(s.TSDBDir(), name)
		if id, err := ulid.ParseStrict(name); err == nil && replaced[id] {
			if _, err := readMeta(dir); err == nil {
				continue
			}
		}
		to, err := q.take(dir, name)
		if err != nil {
			return fmt.Errorf("broken block %s (%w): %w", name, reason, err)
		}
		s.logger.Error("broken block was set aside, the rest is served", "block", name, "err", reason, "moved_to", to)
	}
	return nil
}

// checkBlock opens a block as the TSDB will, and closes it.
func checkBlock(dir string) (meta tsdb.BlockMeta, err error) {
	// Upstream's decoders answer an error to what they expect to be wrong. A
	// block that is wrong in another way must not take the process down.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("open block: %v", r)
		}
	}()
	if meta, err = readMeta(dir); err != nil {
		return meta, err
	}
	if meta.MinTime >= meta.MaxTime {
		return meta, fmt.Errorf("meta.json: the block ends (%d) before it begins (%d)", meta.MaxTime, meta.MinTime)
	}
	b, err := tsdb.OpenBlock(nil, dir, nil, nil)
	if err != nil {
		return meta, fmt.Errorf("open block: %w", err)
	}
	// Chunks are not read here, but a block with series and without a single
	// chunk file is missing them.
	if meta.Stats.NumChunks > 0 {
		files, rerr := os.ReadDir(filepath.Join(dir, "chunks"))
		if rerr == nil && len(files) == 0 {
			rerr = errors.New("there is no chunk file")
		}
		err = rerr
	}
	if cerr := b.Close(); err == nil {
		err = cerr
	}
	return meta, err
}

func readMeta(dir string) (tsdb.BlockMeta, error) {
	b, err := os.ReadFile(filepath.Join(dir, "meta.json"))
	if err != nil {
		return tsdb.BlockMeta{}, fmt.Errorf("read block meta: %w", err)
	}
	return parseMeta(b)
}

func parseMeta(b []byte) (tsdb.BlockMeta, error) {
	var m tsdb.BlockMeta
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("decode block meta: %w", err)
	}
	if m.Version != 1 {
		return m, fmt.Errorf("decode block meta: version is %d, not 1", m.Version)
	}
	return m, nil
}

// salvageHeadChunks sets aside memory-mapped chunk files that the TSDB refuses
// to open at all, with those after them: it does the same when it finds one
// broken later on. Their samples are in the write-ahead log.
func salvageHeadChunks(dir string, q *quarantine) error {
	files, err := numbered(dir)
	if err != nil {
		return err
	}
	cut := -1
	var reason error
	for i, n := range files {
		if i > 0 && n != files[i-1]+1 {
			cut, reason = i, fmt.Errorf("file %06d is missing", files[i-1]+1)
			break
		}
		if err := checkHeadChunkFile(filepath.Join(dir, fmt.Sprintf("%06d", n)), i == len(files)-1); err != nil {
			cut, reason = i, err
			break
		}
	}
	if cut < 0 {
		return nil
	}
	for _, n := range files[cut:] {
		name := fmt.Sprintf("%06d", n)
		to, err := q.take(filepath.Join(dir, name), "chunks_head-"+name)
		if err != nil {
			return fmt.Errorf("broken head chunk file %s (%w): %w", name, reason, err)
		}
		q.logger.Error("broken head chunk file was set aside, its samples are replayed from the write-ahead log",
			"file", name, "err", reason, "moved_to", to)
	}
	return nil
}

func checkHeadChunkFile(path string, last bool) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open head chunk file: %w", err)
	}
	defer func() { _ = f.Close() }() // It was only read.
	var head [chunks.HeadChunkFileHeaderSize]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read head chunk file: %w", err)
	}
	magic := binary.BigEndian.Uint32(head[:4])
	switch {
	case last && (n < chunks.MagicChunksSize || magic == 0):
		// Cut off while it was created: the TSDB removes it.
		return nil
	case n < len(head):
		return fmt.Errorf("head chunk file has %d bytes, less than its header", n)
	case magic != chunks.MagicHeadChunks:
		return fmt.Errorf("head chunk file begins with %#x, not %#x", magic, uint32(chunks.MagicHeadChunks))
	case head[4] != 1:
		return fmt.Errorf("head chunk file has version %d, not 1", head[4])
	}
	return nil
}

// numbered lists the files of dir whose name is a number, in order.
func numbered(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	var res []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n >= 0 && !e.IsDir() {
			res = append(res, n)
		}
	}
	slices.Sort(res)
	return res, nil
}

// salvageCheckpoint rewrites a checkpoint that does not read to its end,
// without its broken pages. Left to the TSDB, its repair would take the
// position in the checkpoint for one in the log and delete the log behind it.
func salvageCheckpoint(wal string, q *quarantine, opts Options) error {
	dir, index, err := wlog.LastCheckpoint(wal)
	if errors.Is(err, record.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find checkpoint: %w", err)
	}
	reason := readThrough(dir)
	if reason == nil {
		return nil
	}
	tmp := dir + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("remove unfinished checkpoint: %w", err)
	}
	kept, err := rewriteCheckpoint(dir, tmp, opts)
	if err != nil {
		return fmt.Errorf("rewrite broken checkpoint %d (%w): %w", index, reason, err)
	}
	to, err := q.take(dir, filepath.Base(dir))
	if err != nil {
		return fmt.Errorf("broken checkpoint %d (%w): %w", index, reason, err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("rewrite broken checkpoint %d: %w", index, err)
	}
	q.logger.Error("broken checkpoint of the write-ahead log was rewritten without its broken pages",
		"checkpoint", index, "err", reason, "records_kept", kept, "original", to)
	return syncDir(wal)
}

func readThrough(dir string) (err error) {
	segments, err := wlog.NewSegmentsReader(dir)
	if err != nil {
		return fmt.Errorf("open checkpoint: %w", err)
	}
	defer func() {
		if cerr := segments.Close(); err == nil {
			err = cerr
		}
	}()
	r := wlog.NewReader(segments)
	for r.Next() {
	}
	return r.Err()
}

// rewriteCheckpoint copies the readable records of the checkpoint in from to
// one in to. Behind a broken page it goes on with the next one.
func rewriteCheckpoint(from, to string, opts Options) (kept int, err error) {
	w, err := wlog.New(opts.Logger, nil, to, opts.WALCompression)
	if err != nil {
		return 0, fmt.Errorf("create checkpoint: %w", err)
	}
	defer func() {
		if cerr := w.Close(); err == nil {
			err = cerr
		}
	}()
	err = eachRecord(from, func(rec []byte) error {
		kept++
		return w.Log(rec)
	})
	return kept, err
}

// bridgeSegments puts an empty segment where one is missing, from first on if
// that is not negative: the TSDB refuses a log with gaps as a whole.
func bridgeSegments(dir string, first int, logger *slog.Logger) error {
	files, err := numbered(dir)
	if err != nil || len(files) == 0 {
		return err
	}
	if first < 0 {
		first = files[0]
	}
	var missing []int
	for _, n := range files {
		for ; first < n; first++ {
			if len(missing) == maxMissingSegments {
				return fmt.Errorf("write-ahead log %s lacks more than %d segments before %d", dir, maxMissingSegments, n)
			}
			missing = append(missing, first)
		}
		first = max(first, n+1)
	}
	if len(missing) == 0 {
		return nil
	}
	for _, n := range missing {
		f, err := os.OpenFile(wlog.SegmentName(dir, n), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
		if err != nil {
			return fmt.Errorf("bridge missing segment: %w", err)
		}
		if err := f.Close(); err != nil {
			return fmt.Errorf("bridge missing segment: %w", err)
		}
	}
	logger.Error("segments of the write-ahead log are missing, what they held is lost and the rest is served",
		"dir", dir, "first", missing[0], "last", missing[len(missing)-1], "count", len(missing))
	return syncDir(dir)
}

const (
	// keptWALs bounds how many logs are kept that a repair cut short.
	keptWALs   = 3
	replaying  = "replaying"
	keptPrefix = "wal-"
)

// walKeeper holds hard links to the segments of the write-ahead logs during
// replay. The TSDB repairs a broken log by deleting all behind the break; what
// it deleted or rewrote is then still there. Links cost nothing.
type walKeeper struct {
	q    *quarantine
	tsdb string
	// wal are the segments of the log of what came in order as they were, by
	// number. It is filled where there are no hard links, too.
	wal map[int]os.FileInfo
	// chunks are the files of chunks_head as they were, by number.
	chunks map[int]os.FileInfo
}

func keepWAL(tsdbDir string, q *quarantine) *walKeeper {
	k := &walKeeper{q: q, tsdb: tsdbDir}
	k.settle() // left by a process that ended during replay
	for _, log := range []string{"wal", wlog.WblDirName} {
		if err := k.link(log); err != nil {
			q.logger.Warn("cannot keep the write-ahead log during replay, going on without", "dir", log, "err", err)
		}
	}
	k.wal = k.look("wal")
	k.chunks = k.look(headChunksDir)
	return k
}

const headChunksDir = "chunks_head"

// look is what the numbered files below the TSDB's directory are now.
func (k *walKeeper) look(dir string) map[int]os.FileInfo {
	files, err := numbered(filepath.Join(k.tsdb, dir))
	if err != nil {
		k.q.logger.Warn("cannot list files before replay", "dir", dir, "err", err)
	}
	infos := map[int]os.FileInfo{}
	for _, n := range files {
		if info, err := os.Stat(filepath.Join(k.tsdb, dir, fileName(dir, n))); err == nil {
			infos[n] = info
		}
	}
	return infos
}

func fileName(dir string, n int) string {
	if dir == headChunksDir {
		return fmt.Sprintf("%06d", n)
	}
	return fmt.Sprintf("%08d", n)
}

// repaired tells whether the TSDB repaired the log of what came in order. It
// then wrote the broken segment anew beside the old one, which is another file
// of the same name.
func (k *walKeeper) repaired() bool {
	now := k.look("wal")
	for n, was := range k.wal {
		if is, ok := now[n]; !ok || !os.SameFile(was, is) {
			return true
		}
	}
	return false
}

// dropNewChunks removes the head chunk files that a TSDB wrote which did not
// replay everything. All of their samples are in the log, and a chunk in a file
// makes the next replay believe that all chunks are written that the log of
// what came out of order names before it; after kill -9 they need not be.
func (k *walKeeper) dropNewChunks() error {
	dir := filepath.Join(k.tsdb, headChunksDir)
	for n, is := range k.look(headChunksDir) {
		// The number of a removed file may come again, and its inode too.
		if was, ok := k.chunks[n]; ok && os.SameFile(was, is) && was.ModTime().Equal(is.ModTime()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, fileName(headChunksDir, n))); err != nil {
			return fmt.Errorf("remove head chunk file: %w", err)
		}
	}
	return nil
}

func (k *walKeeper) link(log string) error {
	files, err := numbered(filepath.Join(k.tsdb, log))
	if err != nil || len(files) == 0 {
		return err
	}
	to := filepath.Join(k.q.dir, replaying, log)
	if err := os.MkdirAll(to, 0o750); err != nil {
		return err
	}
	for _, n := range files {
		if err := os.Link(wlog.SegmentName(filepath.Join(k.tsdb, log), n), wlog.SegmentName(to, n)); err != nil {
			return err
		}
	}
	return nil
}

// settle drops the links to segments that are still what they were, and keeps
// the others under quarantine: in the directory it returns, if there are any.
func (k *walKeeper) settle() string {
	root := filepath.Join(k.q.dir, replaying)
	if _, err := os.Stat(root); err != nil {
		return ""
	}
	kept := 0
	for _, log := range []string{"wal", wlog.WblDirName} {
		dir := filepath.Join(root, log)
		files, err := numbered(dir)
		if err != nil {
			k.q.logger.Warn("cannot look through the kept write-ahead log", "err", err)
			continue
		}
		for _, n := range files {
			link := wlog.SegmentName(dir, n)
			was, err := os.Stat(link)
			if err != nil {
				continue
			}
			is, err := os.Stat(wlog.SegmentName(filepath.Join(k.tsdb, log), n))
			if was.Size() > 0 && (err != nil || !os.SameFile(was, is)) {
				kept++
				continue
			}
			if err := os.Remove(link); err != nil {
				k.q.logger.Warn("cannot remove a kept segment", "err", err)
			}
		}
	}
	if kept == 0 {
		if err := os.RemoveAll(root); err != nil {
			k.q.logger.Warn("cannot remove the kept write-ahead log", "err", err)
		}
		// Nothing was ever set aside here: leave no empty directory.
		_ = os.Remove(k.q.dir)
		return ""
	}
	to, err := k.q.free(keptPrefix + time.Now().UTC().Format("20060102T150405Z"))
	if err == nil {
		err = os.Rename(root, to)
	}
	if err != nil {
		k.q.logger.Warn("cannot keep the repaired write-ahead log", "err", err)
		return ""
	}
	k.q.logger.Error("write-ahead log was broken and was repaired by cutting it at the break; the segments as they were are kept",
		"segments", kept, "moved_to", to)
	k.prune()
	return to
}

// prune removes all but the newest kept logs.
func (k *walKeeper) prune() {
	old, err := filepath.Glob(filepath.Join(k.q.dir, keptPrefix+"*"))
	if err != nil || len(old) <= keptWALs {
		return
	}
	slices.Sort(old)
	for _, dir := range old[:len(old)-keptWALs] {
		if err := os.RemoveAll(dir); err != nil {
			k.q.logger.Warn("cannot remove an old kept write-ahead log", "dir", dir, "err", err)
		}
	}
}
