package bucket

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/thanos-io/thanos/pkg/block"
)

const (
	// cacheHeader is the length of what a file of the cache begins with: cacheMagic, and a hash of what it is and has.
	cacheMagic  = "tocsinc1"
	cacheHeader = 8 + 8
	// subrangeBytes is what of an object is read, and kept, at least. Thanos's 16,000 are a request to the bucket for each of what is
	// not next to each other; a request costs as much time as some MiB, and money, so that more of the neighbourhood is taken along.
	// With its header such a piece fills whole blocks of the disk.
	subrangeBytes = 64<<10 - cacheHeader
	// diskBlock is what files take a multiple of.
	diskBlock = 4 << 10
	// cacheShare is the part of the free disk that the cache may take at most.
	cacheShare = 4
	// cacheTidy is how often the cache looks at the disk.
	cacheTidy = time.Minute
	// cacheRest is how long nothing is stored after the disk refused it.
	cacheRest = 30 * time.Second
	// cacheTouch is how old the time of a file may be that is used. By these times a restart knows which were used last.
	cacheTouch = time.Hour
)

// Why the cache had not what it could have, the labels of a counter.
const (
	cacheFull    = "full"    // No space on the disk.
	cacheWrite   = "write"   // A file cannot be written.
	cacheRead    = "read"    // A file cannot be read.
	cacheCorrupt = "corrupt" // A file has not what was written.
	cacheRemove  = "remove"  // A file cannot be removed.
)

// subrange is a part of an object of a block, by which the cache keeps them.
type subrange struct {
	block ulid.ULID
	// file is the number of a file of chunks, 0 is the index.
	file       uint32
	begin, end int64 // In bytes; the end is not part of it.
}

var (
	blockObject  = regexp.MustCompile(`^([0-7][0-9A-HJKMNP-TV-Z]{25})/(index|chunks/[0-9]{6})$`)
	subrangeFile = regexp.MustCompile(`^(index|[0-9]{6})-([0-9]{1,18})-([0-9]{1,18})$`)
)

// parseObject tells whether a name is that of an object of a block that never changes and is read in parts, and of which.
func parseObject(name string) (id ulid.ULID, file uint32, ok bool) {
	m := blockObject.FindStringSubmatch(name)
	if m == nil {
		return id, 0, false
	}
	id, err := ulid.ParseStrict(m[1])
	if err != nil || m[2] == block.IndexFilename {
		return id, 0, err == nil
	}
	n, err := strconv.ParseUint(m[2][len(block.ChunksDirname)+1:], 10, 32)
	return id, uint32(n), err == nil && n > 0
}

// name is the one of its file.
func (s subrange) name() string {
	file := block.IndexFilename
	if s.file > 0 {
		file = fmt.Sprintf("%06d", s.file)
	}
	return fmt.Sprintf("%s-%d-%d", file, s.begin, s.end)
}

func (s subrange) path() string { return filepath.Join(s.block.String(), s.name()) }

// parseSubrange reads the name of a file of the cache.
func parseSubrange(id ulid.ULID, name string) (s subrange, ok bool) {
	m := subrangeFile.FindStringSubmatch(name)
	if m == nil {
		return s, false
	}
	s.block = id
	if m[1] != block.IndexFilename {
		n, err := strconv.ParseUint(m[1], 10, 32)
		if err != nil || n == 0 {
			return s, false
		}
		s.file = uint32(n)
	}
	var errs [2]error
	s.begin, errs[0] = strconv.ParseInt(m[2], 10, 64)
	s.end, errs[1] = strconv.ParseInt(m[3], 10, 64)
	return s, errors.Join(errs[:]...) == nil && s.begin < s.end && s.end-s.begin <= subrangeBytes && s.name() == name
}

// taken is how much disk that many bytes of content take.
func taken(content int64) int64 {
	return (content + cacheHeader + diskBlock - 1) / diskBlock * diskBlock
}

// diskCache keeps parts of blocks on disk, those that were used last, one file each. Blocks never change, so that nothing gets old. It
// fails nobody: what it cannot keep or has not any more is read again.
type diskCache struct {
	logger *slog.Logger
	dir    string
	// limit is the configured size in bytes.
	limit atomic.Int64

	mtx sync.Mutex
	// kept are the files that are there, with when their times were set.
	kept *simplelru.LRU[subrange, time.Time]
	// inBlock counts them by block, each of which has a folder.
	inBlock map[ulid.ULID]int
	bytes   int64
	// bound is what bytes stays below.
	bound int64
	// listed says that kept is all there is. Until then nothing is stored.
	listed bool
	rests  time.Time // until when nothing is stored
	warned time.Time // when the last trouble with a file was logged

	hits      *prometheus.CounterVec
	hitBytes  *prometheus.CounterVec
	misses    prometheus.Counter
	evictions prometheus.Counter
	failures  *prometheus.CounterVec
}

func newDiskCache(logger *slog.Logger, reg prometheus.Registerer, dir string) (*diskCache, error) {
	own := promauto.With(reg)
	c := &diskCache{
		logger: logger, dir: dir, inBlock: map[ulid.ULID]int{},
		hits: own.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_bucket_cache_hits_total",
			Help: "Parts of blocks that needed not be read from the bucket, by where they were: disk (of this replica) or peer (another replica, which may have read it from the bucket).",
		}, []string{"from"}),
		hitBytes: own.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_bucket_cache_hit_bytes_total",
			Help: "Size of the parts of blocks that needed not be read from the bucket, by where they were.",
		}, []string{"from"}),
		misses: own.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_bucket_cache_misses_total",
			Help: "Parts of blocks that this replica had to read from the bucket.",
		}),
		evictions: own.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_bucket_cache_evictions_total",
			Help: "Parts of blocks that left the disk, because others were used later.",
		}),
		failures: own.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_bucket_cache_errors_total",
			Help: "What the cache could not do, by reason: full (no space on the disk), write, read, corrupt (a file has not what was written), remove; and of the replica that a block is shared out to: peer_slow, peer_unreached, peer_busy, peer_refused, peer_failed, peer_lied (it answered something else). No query fails of it.",
		}, []string{"reason"}),
	}
	own.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tocsin_bucket_cache_bytes",
		Help: "Disk that the kept parts of blocks take.",
	}, func() float64 { c.mtx.Lock(); defer c.mtx.Unlock(); return float64(c.bytes) })
	own.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tocsin_bucket_cache_limit_bytes",
		Help: "Disk that the kept parts of blocks may take: the configured size, or a quarter of what is free if that is less.",
	}, func() float64 { c.mtx.Lock(); defer c.mtx.Unlock(); return float64(c.bound) })
	for _, from := range []string{fromDisk, fromPeer} {
		c.hits.WithLabelValues(from)
		c.hitBytes.WithLabelValues(from)
	}
	for _, reason := range []string{cacheFull, cacheWrite, cacheRead, cacheCorrupt, cacheRemove} {
		c.failures.WithLabelValues(reason)
	}
	var err error
	if c.kept, err = simplelru.NewLRU[subrange, time.Time](math.MaxInt, nil); err != nil {
		return nil, fmt.Errorf("make the cache of the bucket: %w", err)
	}
	return c, nil
}

// list finds what an earlier process has left, and removes what is none of it.
func (c *diskCache) list(ctx context.Context) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of the cache: %w", err)
	}
	type found struct {
		subrange
		size int64
		at   time.Time
	}
	var all []found
	blocks, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("list the cache: %w", err)
	}
	bound, room := c.allowed(0), int64(0)
	for _, b := range blocks {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		dir := filepath.Join(c.dir, b.Name())
		id, err := ulid.ParseStrict(b.Name())
		files, listErr := os.ReadDir(dir)
		if err != nil || listErr != nil || !b.IsDir() {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("clean the cache: %w", err)
			}
			continue
		}
		left := 0
		for _, f := range files {
			s, ok := parseSubrange(id, f.Name())
			info, err := f.Info()
			// More than can be kept is not even sorted.
			if !ok || err != nil || !info.Mode().IsRegular() || info.Size() != s.end-s.begin+cacheHeader || room > 2*bound {
				if err := os.RemoveAll(filepath.Join(dir, f.Name())); err != nil {
					return fmt.Errorf("clean the cache: %w", err)
				}
				continue
			}
			room += taken(s.end - s.begin)
			left++
			all = append(all, found{s, taken(s.end - s.begin), info.ModTime()})
		}
		if left == 0 {
			_ = os.Remove(dir) // An empty folder takes hardly anything.
		}
	}
	slices.SortFunc(all, func(a, b found) int { return a.at.Compare(b.at) })
	c.mtx.Lock()
	defer c.mtx.Unlock()
	for _, f := range all {
		c.kept.Add(f.subrange, f.at)
		c.inBlock[f.block]++
		c.bytes += f.size
	}
	c.listed = true
	return nil
}

// ready tells whether it is known what is kept.
func (c *diskCache) ready() bool {
	c.mtx.Lock()
	defer c.mtx.Unlock()
	return c.listed
}

// allowed is what the cache may take when it takes that much now.
func (c *diskCache) allowed(now int64) int64 {
	limit := c.limit.Load()
	free, err := freeBytes(c.dir)
	if err != nil {
		return 0 // Without knowing, nothing is risked.
	}
	return min(limit, (int64(min(free, math.MaxInt64/2))+now)/cacheShare)
}

// tidy holds the cache to the size that is configured and the disk allows.
func (c *diskCache) tidy() {
	c.mtx.Lock()
	defer c.mtx.Unlock()
	c.bound = c.allowed(c.bytes)
	c.shrink(0)
}

// shrink makes room for more bytes, and tells whether there is. It is called with mtx held.
func (c *diskCache) shrink(more int64) bool {
	for c.bytes+more > c.bound {
		s, _, ok := c.kept.GetOldest()
		if !ok {
			return false
		}
		if err := os.Remove(filepath.Join(c.dir, s.path())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.rest(cacheRemove, err)
			return false
		}
		c.forget(s)
		c.evictions.Inc()
	}
	return true
}

// forget takes a file that is gone out of the account. It is called with mtx held.
func (c *diskCache) forget(s subrange) {
	if !c.kept.Remove(s) {
		return
	}
	c.bytes -= taken(s.end - s.begin)
	if c.inBlock[s.block]--; c.inBlock[s.block] == 0 {
		delete(c.inBlock, s.block)
		_ = os.Remove(filepath.Join(c.dir, s.block.String())) // An empty folder takes hardly anything.
	}
}

// rest counts why the disk refused something, and lets it alone for a while. It is called with mtx held.
func (c *diskCache) rest(reason string, err error) {
	c.failures.WithLabelValues(reason).Inc()
	if now := time.Now(); now.After(c.rests) {
		c.logger.Warn("what is read of the bucket is not kept on disk for a while", "for", cacheRest, "err", err)
	}
	c.rests = time.Now().Add(cacheRest)
}

// get is what is kept of a part. It is a copy.
func (c *diskCache) get(s subrange) ([]byte, bool) {
	c.mtx.Lock()
	touched, ok := c.kept.Get(s)
	known := c.listed
	now := time.Now()
	if ok && now.Sub(touched) > cacheTouch {
		c.kept.Add(s, now)
	}
	c.mtx.Unlock()
	if !ok && known {
		return nil, false
	}
	path := filepath.Join(c.dir, s.path())
	data, reason, err := readSubrange(path, s)
	if err != nil {
		c.mtx.Lock()
		defer c.mtx.Unlock()
		if reason != "" {
			c.failures.WithLabelValues(reason).Inc()
			if now.Sub(c.warned) > cacheTidy { // There may be many, which the counter tells.
				c.warned = now
				c.logger.Warn("a file of the cache is no good; it is removed, and read again from the bucket", "file", path, "err", err)
			}
		}
		if err := os.Remove(path); err == nil || errors.Is(err, fs.ErrNotExist) {
			c.forget(s)
		}
		return nil, false
	}
	if ok && now.Sub(touched) > cacheTouch {
		_ = os.Chtimes(path, now, now) // Only a restart would like to know.
	}
	return data, true
}

// readSubrange reads a file of the cache. The reason is "" if there is none.
func readSubrange(path string, s subrange) (data []byte, reason string, err error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, "", err
		}
		return nil, cacheRead, err
	}
	defer func() { _ = f.Close() }() // It was only read.
	size := s.end - s.begin + cacheHeader
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, cacheRead, err
	case info.Size() != size:
		return nil, cacheCorrupt, fmt.Errorf("it has %d bytes, not %d", info.Size(), size)
	}
	all := make([]byte, size)
	if _, err := f.ReadAt(all, 0); err != nil {
		return nil, cacheRead, err
	}
	data = all[cacheHeader:]
	if string(all[:len(cacheMagic)]) != cacheMagic || binary.BigEndian.Uint64(all[len(cacheMagic):]) != cacheSum(s, data) {
		return nil, cacheCorrupt, errors.New("its checksum is wrong")
	}
	return data, "", nil
}

// cacheSum tells torn and mixed up files from good ones.
func cacheSum(s subrange, data []byte) uint64 {
	h := xxhash.New()
	_, _ = h.WriteString(s.path()) // It never fails, and neither does the next.
	_, _ = h.Write(data)
	return h.Sum64()
}

// put keeps a part, if there is room. The file is not synced: one that is torn by a crash has a wrong checksum.
func (c *diskCache) put(s subrange, data []byte) {
	if int64(len(data)) != s.end-s.begin || len(data) == 0 || len(data) > subrangeBytes || !c.wants(s) {
		return
	}
	header := make([]byte, 0, cacheHeader)
	header = binary.BigEndian.AppendUint64(append(header, cacheMagic...), cacheSum(s, data))
	tmp, err := writeTemporary(c.dir, header, data)
	c.mtx.Lock()
	defer c.mtx.Unlock()
	if err == nil {
		err = c.adopt(s, tmp)
	}
	if err != nil {
		if tmp != "" {
			_ = os.Remove(tmp) // The next start removes it.
		}
		reason := cacheWrite
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			reason = cacheFull
		}
		c.rest(reason, err)
	}
}

func (c *diskCache) wants(s subrange) bool {
	c.mtx.Lock()
	defer c.mtx.Unlock()
	return c.listed && !c.kept.Contains(s) && taken(s.end-s.begin) <= c.bound && !time.Now().Before(c.rests)
}

func writeTemporary(dir string, parts ...[]byte) (name string, err error) {
	f, err := os.CreateTemp(dir, "new-*")
	if err != nil {
		return "", err
	}
	for _, p := range parts {
		if _, err = f.Write(p); err != nil {
			break
		}
	}
	return f.Name(), errors.Join(err, f.Close())
}

// adopt gives a written file its name. It is called with mtx held.
func (c *diskCache) adopt(s subrange, tmp string) error {
	size := taken(s.end - s.begin)
	if c.kept.Contains(s) || !c.shrink(size) {
		return os.Remove(tmp) // Somebody else was faster, or the bound has just become small.
	}
	if c.inBlock[s.block] == 0 {
		if err := os.Mkdir(filepath.Join(c.dir, s.block.String()), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := os.Rename(tmp, filepath.Join(c.dir, s.path())); err != nil {
		return err
	}
	c.kept.Add(s, time.Now())
	c.inBlock[s.block]++
	c.bytes += size
	return nil
}

// headers bounds the folder in which Thanos's store keeps the index headers of blocks. One that is missing is made anew from the
// bucket when it is needed, and one that is mapped can be removed.
type headers struct {
	logger *slog.Logger
	dir    string

	mtx  sync.Mutex
	used map[ulid.ULID]time.Time

	bytes   prometheus.Gauge
	removed prometheus.Counter
}

func newHeaders(logger *slog.Logger, reg prometheus.Registerer, dir string) *headers {
	own := promauto.With(reg)
	return &headers{
		logger: logger, dir: dir, used: map[ulid.ULID]time.Time{},
		bytes: own.NewGauge(prometheus.GaugeOpts{
			Name: "tocsin_bucket_cache_header_bytes",
			Help: "Disk that the index headers of blocks take.",
		}),
		removed: own.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_bucket_cache_headers_removed_total",
			Help: "Index headers that left the disk, because they took more than the configured size together and others were used later.",
		}),
	}
}

// use notes that something was read of a block.
func (h *headers) use(id ulid.ULID) {
	h.mtx.Lock()
	defer h.mtx.Unlock()
	h.used[id] = time.Now()
}

// tidy removes the headers of blocks that were not read for the longest time until the others fit in. What is in use stays.
func (h *headers) tidy(bound int64) {
	type header struct {
		path string
		size int64
		used time.Time
	}
	blocks, err := os.ReadDir(h.dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			h.logger.Warn("cannot look after the index headers of the bucket's blocks", "err", err)
		}
		return
	}
	h.mtx.Lock()
	defer h.mtx.Unlock()
	var all []header
	total, there := int64(0), map[ulid.ULID]bool{}
	for _, b := range blocks {
		id, err := ulid.ParseStrict(b.Name())
		if err != nil {
			continue
		}
		there[id] = true
		path := filepath.Join(h.dir, b.Name(), block.IndexHeaderFilename)
		if info, err := os.Stat(path); err == nil {
			used := h.used[id]
			if used.Before(info.ModTime()) {
				used = info.ModTime()
			}
			all = append(all, header{path, info.Size(), used})
			total += info.Size()
		}
	}
	for id := range h.used {
		if !there[id] && time.Since(h.used[id]) > readIdle {
			delete(h.used, id)
		}
	}
	slices.SortFunc(all, func(a, b header) int { return cmp.Or(a.used.Compare(b.used), strings.Compare(a.path, b.path)) })
	for _, x := range all {
		if total <= bound || time.Since(x.used) < readIdle {
			break
		}
		if err := os.Remove(x.path); err != nil {
			h.logger.Warn("cannot remove an index header that is not in use", "file", x.path, "err", err)
			continue
		}
		h.removed.Inc()
		total -= x.size
	}
	h.bytes.Set(float64(total))
}
