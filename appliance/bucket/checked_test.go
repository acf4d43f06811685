package bucket

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/thanos/pkg/block"
)

// chunkFile is a file of chunks with that much data each, and where they begin, and the file ends.
func chunkFile(t testing.TB, sizes ...int) (file []byte, begins []int64) {
	t.Helper()
	dir := t.TempDir()
	w, err := chunks.NewWriter(dir)
	require.NoError(t, err)
	random := rand.NewChaCha8([32]byte{1})
	for i, size := range sizes {
		data := make([]byte, size)
		_, _ = random.Read(data)
		c, err := chunkenc.FromData(chunkenc.EncXOR, data)
		require.NoError(t, err)
		meta := chunks.Meta{Chunk: c, MinTime: int64(i), MaxTime: int64(i)}
		require.NoError(t, w.WriteChunks(meta))
	}
	require.NoError(t, w.Close())
	file, err = os.ReadFile(filepath.Join(dir, "000001"))
	require.NoError(t, err)
	return file, chunkBegins(t, file)
}

// chunkBegins is where the chunks of a whole file begin, and where it ends.
func chunkBegins(t testing.TB, file []byte) (begins []int64) {
	t.Helper()
	at := int64(chunks.SegmentHeaderSize)
	for at < int64(len(file)) {
		begins = append(begins, at)
		size, n := binary.Uvarint(file[at:])
		require.Positive(t, n)
		at += int64(n) + chunks.ChunkEncodingSize + int64(size) + checksumBytes
	}
	require.Len(t, file, int(at))
	return append(begins, at)
}

// readChecked reads a part of a file, which the caches have differently, if that is not nil.
func readChecked(file, cached []byte, off, length int64) ([]byte, error) {
	c, err := openChecked(context.Background(), slog.New(slog.DiscardHandler), "object", off, length, func(from int64, past bool) (io.ReadCloser, error) {
		source := file
		if cached != nil && !past {
			source = cached
		}
		end := min(off+length+checksumBytes, int64(len(source)))
		return io.NopCloser(bytes.NewReader(source[min(from, end):end])), nil
	})
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(c)
	return got, errors.Join(err, c.Close())
}

func TestCheckedChunksAreWhatIsThere(t *testing.T) {
	file, begins := chunkFile(t, 100, 1, 0, 20_000, 127, 128, 300)
	size := begins[len(begins)-1]
	for _, begin := range begins[:len(begins)-1] {
		for length := int64(1); begin+length <= size; length += 1 + length/50 {
			got, err := readChecked(file, nil, begin, length)
			require.NoError(t, err)
			require.Equal(t, file[begin:begin+length], got)
		}
		// Thanos asks for more than there is of the last one.
		got, err := readChecked(file, nil, begin, size-begin+16_000)
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, slices.Concat(file[begin:], noChunk), got)
	}
	// Nobody reads a length there, whatever follows.
	_, n := binary.Uvarint(slices.Concat(noChunk, file))
	require.Negative(t, n)
}

func TestCheckedChunksAreWholeOrNone(t *testing.T) {
	file, begins := chunkFile(t, 100, 3, 200, 40)
	size := int64(len(file))
	damaged := func(spoilt []byte, at int64) {
		t.Helper()
		i, found := slices.BinarySearch(begins, at)
		if !found {
			i--
		}
		got, err := readChecked(spoilt, nil, begins[0], size-begins[0])
		require.ErrorIs(t, err, errDamaged)
		require.Equal(t, slices.Concat(file[begins[0]:begins[i]], noChunk), got)
		// What only the caches have wrong is read from the bucket.
		got, err = readChecked(file, spoilt, begins[0], size-begins[0])
		require.NoError(t, err)
		require.Equal(t, file[begins[0]:], got)
	}
	for at := begins[0]; at < size; at++ {
		for _, bits := range []byte{0x01, 0x80, 0xff} {
			spoilt := slices.Clone(file)
			spoilt[at] ^= bits
			damaged(spoilt, at)
		}
		if !slices.Contains(begins, at) {
			damaged(file[:at], at)
		}
	}
	for _, length := range []uint64{math.MaxUint64, 1 << 63, 1 << 40, math.MaxInt64 - 3, maxChunkBytes + 1} {
		damaged(slices.Concat(file[:begins[1]], binary.AppendUvarint(nil, length), file[begins[1]+10:]), begins[1])
	}
}

// FuzzCheckedChunks holds that nothing but whole chunks, and the beginning of one that the part ends in, is passed on of any file.
func FuzzCheckedChunks(f *testing.F) {
	file, begins := chunkFile(f, 100, 3, 200)
	f.Add(file[begins[0]:], int64(len(file)))
	f.Add(file[begins[0]:], int64(150))
	f.Add(noChunk, int64(20))
	f.Fuzz(func(t *testing.T, file []byte, length int64) {
		length = 1 + (length&math.MaxInt64)%(1<<16)
		got, err := readChecked(file, nil, 0, length)
		if err == nil {
			require.Equal(t, file[:length], got)
			return
		}
		good, ok := bytes.CutSuffix(got, noChunk)
		require.True(t, ok)
		require.True(t, bytes.HasPrefix(file, good))
	})
}

// TestDamagedChunksInTheBucket holds that what is not as it was written is left out, and ends nothing.
func TestDamagedChunksInTheBucket(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	c.cache = 64 << 20
	_, r, end := c.inBucket(2)
	want, _ := found(t, r.store.Local(), c.begin, end-1)
	broken := c.readable()[0]
	start, _, _ := nameWindow(mustParse(t, broken), testWindow)
	path := filepath.Join(c.dir, broken, block.ChunksDirname, "000001")
	file, err := os.ReadFile(path)
	require.NoError(t, err)
	begins := chunkBegins(t, file)
	last := begins[len(begins)-2]
	spoil := func(at int64, with []byte) []byte {
		spoilt := slices.Clone(file)
		copy(spoilt[at:], with)
		return spoilt
	}
	for name, spoilt := range map[string][]byte{
		"a length that overflows":          spoil(begins[0], binary.AppendUvarint(nil, math.MaxUint64)),
		"a length that is negative":        spoil(begins[1], binary.AppendUvarint(nil, 1<<63+5)),
		"more than there is memory":        spoil(begins[1], binary.AppendUvarint(nil, 1<<45)),
		"the last length":                  spoil(last, binary.AppendUvarint(nil, 1<<63+5)),
		"data":                             spoil(begins[1]-6, []byte{file[begins[1]-6] ^ 1}),
		"the last data":                    spoil(begins[len(begins)-1]-6, []byte{file[begins[len(begins)-1]-6] ^ 1}),
		"a kind of chunk":                  spoil(begins[1]+1, []byte{200}),
		"a file that ends in a chunk":      file[:len(file)-7],
		"a file that ends before a chunk":  file[:last],
		"a file that ends before a sum":    file[:len(file)-checksumBytes],
		"a file that ends with its header": file[:chunks.SegmentHeaderSize],
	} {
		t.Log(name)
		require.NoError(t, os.WriteFile(path, spoilt, 0o600))
		for _, cached := range []bool{false, true} {
			r.restart()
			if cached {
				r.counting()
			} else {
				r.load()
			}
			got, warnings := found(t, r.bucket.At(0), c.begin, end-1)
			require.NotEmpty(t, warnings)
			require.ErrorContains(t, warnings[0], broken)
			rest := 0
			for name, samples := range got {
				for at, v := range samples {
					require.Equal(t, want[name][at], v)
					if at < start || start+testWindow.Milliseconds() <= at {
						rest++
					}
				}
			}
			require.Equal(t, len(want)*int(testWindow/testEvery), rest)
			require.Contains(t, r.bucket.reader.reads.skipped(), ulid.MustParse(broken))
		}
		require.NoError(t, os.RemoveAll(filepath.Join(r.dir, "bucket", "cache")))
	}
	require.NoError(t, os.WriteFile(path, file, 0o600))
	r.restart()
	r.load()
	got, warnings := found(t, r.bucket.At(0), c.begin, end-1)
	require.Empty(t, warnings)
	require.Equal(t, want, got)
}
