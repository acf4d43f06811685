package bucket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/thanos/pkg/block"
)

var testBlock = ulid.MustParse("01ARZ3NDEKTSV4RRFFQ69G5FAV")

// part is the nth part of a file of chunks, as large as they are, and what it has.
func part(n int) (subrange, []byte) {
	s := subrange{testBlock, uint32(n%3 + 1), int64(n) * subrangeBytes, int64(n+1) * subrangeBytes}
	return s, bytes.Repeat([]byte{byte(n), byte(n >> 8), 7}, subrangeBytes)[:subrangeBytes]
}

// openCache has room for n parts.
func openCache(t *testing.T, dir string, n int) *diskCache {
	t.Helper()
	c, err := newDiskCache(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), dir)
	require.NoError(t, err)
	c.limit.Store(int64(n) * 64 << 10)
	require.NoError(t, c.list(context.Background()))
	c.tidy()
	return c
}

func (c *diskCache) holds(t *testing.T, parts ...int) {
	t.Helper()
	c.mtx.Lock()
	defer c.mtx.Unlock()
	var want, onDisk []string
	for _, n := range parts {
		s, _ := part(n)
		require.True(t, c.kept.Contains(s), "part %d is gone", n)
		want = append(want, s.path())
	}
	require.Equal(t, len(parts), c.kept.Len())
	require.Equal(t, int64(len(parts))*64<<10, c.bytes)
	require.NoError(t, filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(c.dir, path)
			onDisk = append(onDisk, rel)
		}
		return err
	}))
	require.ElementsMatch(t, want, onDisk)
}

func TestWhatWasUsedLastIsKept(t *testing.T) {
	c := openCache(t, filepath.Join(t.TempDir(), "cache"), 4)
	for n := range 4 {
		c.put(part(n))
	}
	c.holds(t, 0, 1, 2, 3)
	zero, want := part(0)
	got, ok := c.get(zero)
	require.True(t, ok)
	require.Equal(t, want, got)
	c.put(part(4))
	c.put(part(5))
	c.holds(t, 0, 3, 4, 5)
	require.Equal(t, 2.0, testutil.ToFloat64(c.evictions))
	one, _ := part(1)
	_, ok = c.get(one)
	require.False(t, ok)
	// A smaller size holds at once, and nothing is kept at none.
	c.limit.Store(64 << 10)
	c.tidy()
	c.holds(t, 5)
	c.limit.Store(0)
	c.tidy()
	c.put(part(6))
	c.holds(t)
	entries, err := os.ReadDir(c.dir)
	require.NoError(t, err)
	require.Empty(t, entries)
	// What is not as long as it says is not taken.
	c.limit.Store(1 << 20)
	c.tidy()
	c.put(zero, want[1:])
	c.put(subrange{testBlock, 1, 0, subrangeBytes + 1}, make([]byte, subrangeBytes+1))
	c.put(subrange{testBlock, 1, 5, 5}, nil)
	c.holds(t)
	for _, reason := range []string{cacheFull, cacheWrite, cacheRead, cacheCorrupt, cacheRemove} {
		require.Zero(t, testutil.ToFloat64(c.failures.WithLabelValues(reason)), reason)
	}
}

// TestTheCacheSurvivesARestart also holds that what others left in its folder goes.
func TestTheCacheSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, 8)
	now := time.Now()
	for n := range 4 {
		c.put(part(n))
		s, _ := part(n)
		at := now.Add(time.Duration(n-10) * time.Hour)
		require.NoError(t, os.Chtimes(filepath.Join(dir, s.path()), at, at))
	}
	// It remembers only since the start when times were set.
	c = openCache(t, dir, 8)
	zero, _ := part(0)
	_, ok := c.get(zero)
	require.True(t, ok)

	outside := filepath.Join(t.TempDir(), "kept")
	require.NoError(t, os.WriteFile(outside, []byte("x"), 0o600))
	require.NoError(t, os.Symlink(filepath.Dir(outside), filepath.Join(dir, "link")))
	folder := filepath.Join(dir, testBlock.String())
	require.NoError(t, os.Symlink(outside, filepath.Join(folder, fmt.Sprintf("000001-0-%d", 1))))
	for _, name := range []string{
		"new-123", "garbage", testBlock.String() + "/garbage", testBlock.String() + "/000000-0-5", testBlock.String() + "/index-00-5",
		testBlock.String() + "/000001-0-99999999", testBlock.String() + "/index-7-3", testBlock.String() + "/000001-0-16",
		"01ARZ3NDEKTSV4RRFFQ69G5FBV/x",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("0123456789abcdefg"), 0o600))
	}
	c, err := newDiskCache(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), dir)
	require.NoError(t, err)
	c.limit.Store(3 * 64 << 10)
	// Until it is known what is there, what is there is found, and nothing is added.
	three, want := part(3)
	got, ok := c.get(three)
	require.True(t, ok)
	require.Equal(t, want, got)
	c.put(part(9))
	require.NoError(t, c.list(context.Background()))
	c.holds(t, 0, 1, 2, 3)
	c.tidy()
	c.holds(t, 0, 2, 3)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.FileExists(t, outside)

	// Who stops in the middle of it has bounded work to do.
	stopped, cancel := context.WithCancel(context.Background())
	cancel()
	c, err = newDiskCache(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), dir)
	require.NoError(t, err)
	require.ErrorIs(t, c.list(stopped), context.Canceled)
}

func TestABrokenFileIsNone(t *testing.T) {
	for name, breakIt := range map[string]func(t *testing.T, path string){
		"torn": func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 1000)) },
		"torn, with zeros at the end": func(t *testing.T, path string) {
			require.NoError(t, os.Truncate(path, 1000))
			require.NoError(t, os.Truncate(path, subrangeBytes+cacheHeader))
		},
		"empty": func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 0)) },
		"a bit is another": func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			b[len(b)/2] ^= 4
			require.NoError(t, os.WriteFile(path, b, 0o600))
		},
		"that of another part": func(t *testing.T, path string) {
			other, _ := part(1)
			require.NoError(t, os.Rename(filepath.Join(filepath.Dir(path), other.name()), path))
		},
		"endless": func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 1<<40)) },
		"a folder": func(t *testing.T, path string) {
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.Mkdir(path, 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := openCache(t, dir, 8)
			c.put(part(0))
			c.put(part(1))
			s, want := part(0)
			breakIt(t, filepath.Join(dir, s.path()))
			_, ok := c.get(s)
			require.False(t, ok)
			require.NoFileExists(t, filepath.Join(dir, s.path()))
			require.Equal(t, 1.0, testutil.ToFloat64(c.failures.WithLabelValues(cacheCorrupt))+testutil.ToFloat64(c.failures.WithLabelValues(cacheRead)))
			// It is kept again when it is read again.
			c.put(s, want)
			got, ok := c.get(s)
			require.True(t, ok)
			require.Equal(t, want, got)
		})
	}
	// One that somebody took away is missing, and that is all.
	dir := t.TempDir()
	c := openCache(t, dir, 8)
	c.put(part(0))
	require.NoError(t, os.RemoveAll(filepath.Join(dir, testBlock.String())))
	s, _ := part(0)
	_, ok := c.get(s)
	require.False(t, ok)
	c.holds(t)
	c.put(part(0))
	c.holds(t, 0)
}

func TestAFullDiskKeepsNothing(t *testing.T) {
	volume := t.TempDir()
	switch err := syscall.Mount("tmpfs", volume, "tmpfs", 0, "size=4m"); {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOSYS):
		if os.Getenv("CI") != "" {
			t.Fatal("may not mount, and CI has to:", err)
		}
		t.Skip("may not mount:", err)
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(volume, 0)) })
	c := openCache(t, filepath.Join(volume, "cache"), 1000)
	require.LessOrEqual(t, c.bound, int64(1<<20)) // A quarter of what is free.
	require.Greater(t, c.bound, int64(15*64<<10))
	c.put(part(0))
	free, err := freeBytes(volume)
	require.NoError(t, err)
	fill := filepath.Join(volume, "fill")
	require.NoError(t, os.WriteFile(fill, make([]byte, free-8<<10), 0o600))
	c.put(part(1))
	c.holds(t, 0)
	require.Equal(t, 1.0, testutil.ToFloat64(c.failures.WithLabelValues(cacheFull)))
	// It is left alone for a while, also when there is space again.
	require.NoError(t, os.Remove(fill))
	c.put(part(1))
	c.holds(t, 0)
	c.mtx.Lock()
	c.rests = time.Now()
	c.mtx.Unlock()
	c.put(part(1))
	c.holds(t, 0, 1)
	require.Equal(t, 1.0, testutil.ToFloat64(c.failures.WithLabelValues(cacheFull)))
	// A disk that others fill takes the cache's space away.
	require.NoError(t, os.WriteFile(fill, make([]byte, free-100<<10), 0o600))
	c.tidy()
	c.holds(t)
}

// TestTheBoundHoldsUnderLoad also holds that nobody gets what is not his.
func TestTheBoundHoldsUnderLoad(t *testing.T) {
	const room, workers, parts = 20, 8, 60
	dir := t.TempDir()
	c := openCache(t, dir, room)
	var over, served atomic.Int64
	stop, measured := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(measured)
		for {
			size := int64(0)
			c.mtx.Lock()
			err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
				if errors.Is(err, fs.ErrNotExist) {
					return nil // One that was being written.
				}
				if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), "new-") {
					return err
				}
				info, err := d.Info()
				if err == nil {
					size += (info.Size() + diskBlock - 1) / diskBlock * diskBlock
				}
				return err
			})
			c.mtx.Unlock()
			if err != nil || size > room*64<<10 {
				over.Add(1)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	var jobs sync.WaitGroup
	for w := range workers {
		jobs.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for range 300 {
				s, want := part(r.IntN(parts))
				if got, ok := c.get(s); ok {
					served.Add(1)
					if !bytes.Equal(got, want) {
						t.Errorf("%s has something else", s.path())
					}
					continue
				}
				c.put(s, want)
				if r.IntN(50) == 0 {
					c.tidy()
				}
			}
		})
	}
	jobs.Wait()
	close(stop)
	<-measured
	require.Zero(t, over.Load())
	require.Positive(t, served.Load())
	require.Positive(t, testutil.ToFloat64(c.evictions))
	c.mtx.Lock()
	defer c.mtx.Unlock()
	require.LessOrEqual(t, c.bytes, c.bound)
	left, err := filepath.Glob(filepath.Join(dir, "new-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestObjectsThatAreKept(t *testing.T) {
	id := testBlock.String()
	for name, want := range map[string]bool{
		id + "/index": true, id + "/chunks/000001": true, id + "/chunks/999999": true,
		id + "/chunks/000000": false, id + "/chunks/1": false, id + "/chunks/0000001": false, id + "/meta.json": false, id + "/index/": false,
		id + "/deletion-mark.json": false, id + "/chunks/../index": false, "../" + id + "/index": false, "index": false, "": false,
		"debug/" + id + "/index": false, "config/tocsin.yml": false, id + "/index\n": false, "ZZZZZZZZZZZZZZZZZZZZZZZZZZ/index": false,
	} {
		require.Equal(t, want, isBlockObject(name), "%q", name)
	}
}

// TestHeadersAreBounded holds that those of blocks that are read stay.
func TestHeadersAreBounded(t *testing.T) {
	dir := t.TempDir()
	h := newHeaders(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), dir)
	var ids []ulid.ULID
	long := time.Now().Add(-2 * readIdle)
	for n := range 4 {
		id := testBlock
		id[15] = byte(n)
		ids = append(ids, id)
		path := filepath.Join(dir, id.String(), block.IndexHeaderFilename)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, make([]byte, 1000), 0o600))
		at := long.Add(time.Duration(n) * time.Second)
		require.NoError(t, os.Chtimes(path, at, at))
	}
	there := func() (n []int) {
		for i, id := range ids {
			if _, err := os.Stat(filepath.Join(dir, id.String(), block.IndexHeaderFilename)); err == nil {
				n = append(n, i)
			}
		}
		return n
	}
	h.tidy(4000)
	require.Equal(t, []int{0, 1, 2, 3}, there())
	require.Equal(t, 4000.0, testutil.ToFloat64(h.bytes))
	h.use(ids[0])
	h.tidy(3000)
	require.Equal(t, []int{0, 2, 3}, there())
	h.tidy(0)
	require.Equal(t, []int{0}, there())
	require.Equal(t, 3.0, testutil.ToFloat64(h.removed))
	require.Equal(t, 1000.0, testutil.ToFloat64(h.bytes))
}
