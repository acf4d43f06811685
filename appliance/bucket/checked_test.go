package bucket

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
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
	c, err := openChecked(context.Background(), slog.New(slog.DiscardHandler), chunkEntries, "object", off, length, func(from int64, past bool) (io.ReadCloser, error) {
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
	for _, length := range []uint64{math.MaxUint64, 1 << 63, 1 << 40, math.MaxInt64 - 3, uint64(chunkEntries.most) + 1} {
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

// spoilt is a replica that reads a bucket with a block of which somebody spoils an object. It is the only one: where reading one of several
// fails, upstream's statistics have a data race.
type spoilt struct {
	*replica
	c      *cluster
	want   map[string]map[int64]float64
	broken string
	end    int64
	path   string
	file   []byte
}

func newSpoilt(t *testing.T, object string) *spoilt {
	t.Helper()
	c := newTestCluster(t, "a", "b")
	c.cache = 64 << 20
	_, r, end := c.inBucket(1)
	s := &spoilt{replica: r, c: c, end: end, broken: c.readable()[0]}
	s.want, _ = found(t, r.store.Local(), c.begin, end-1)
	s.path = filepath.Join(c.dir, s.broken, object)
	var err error
	s.file, err = os.ReadFile(s.path)
	require.NoError(t, err)
	return s
}

// reads has a new process read the bucket with that in place of the object, and tells whether it has all of the block. Otherwise it has
// nothing of it, and says so.
func (s *spoilt) reads(file []byte, cached bool) bool {
	t := s.t
	t.Helper()
	require.NoError(t, os.WriteFile(s.path, file, 0o600))
	for _, kept := range []string{"cache", "headers"} {
		entries, err := filepath.Glob(filepath.Join(s.dir, "bucket", kept, "*"))
		require.NoError(t, err)
		for _, e := range entries {
			require.NoError(t, os.RemoveAll(e))
		}
	}
	s.restart()
	if cached {
		s.counting()
	} else {
		s.load()
	}
	got, warnings := found(t, s.bucket.At(0), s.c.begin, s.end-1)
	if len(warnings) == 0 {
		require.Equal(t, s.want, got)
		return true
	}
	require.ErrorContains(t, warnings[0], s.broken)
	require.Contains(t, s.bucket.reader.reads.skipped(), ulid.MustParse(s.broken))
	require.Empty(t, got)
	return false
}

// TestDamagedChunksInTheBucket holds that what is not as it was written is left out, and ends nothing.
func TestDamagedChunksInTheBucket(t *testing.T) {
	s := newSpoilt(t, filepath.Join(block.ChunksDirname, "000001"))
	begins := chunkBegins(t, s.file)
	last, end := begins[len(begins)-2], begins[len(begins)-1]
	put := func(at int64, with ...byte) []byte {
		file := slices.Clone(s.file)
		copy(file[at:], with)
		return file
	}
	for name, file := range map[string][]byte{
		"a length that overflows":          put(begins[0], binary.AppendUvarint(nil, math.MaxUint64)...),
		"a length that is negative":        put(begins[1], binary.AppendUvarint(nil, 1<<63+5)...),
		"more than there is memory":        put(begins[1], binary.AppendUvarint(nil, 1<<45)...),
		"the last length":                  put(last, binary.AppendUvarint(nil, 1<<63+5)...),
		"data":                             put(begins[1]-6, s.file[begins[1]-6]^1),
		"the last data":                    put(end-6, s.file[end-6]^1),
		"a kind of chunk":                  put(begins[1]+1, 200),
		"a file that ends in a chunk":      s.file[:end-7],
		"a file that ends before a chunk":  s.file[:last],
		"a file that ends before a sum":    s.file[:end-checksumBytes],
		"a file that ends with its header": s.file[:chunks.SegmentHeaderSize],
	} {
		t.Log(name)
		require.False(t, s.reads(file, false))
		require.False(t, s.reads(file, true))
	}
	require.True(t, s.reads(s.file, true))
}

// TestDamagedIndexInTheBucket holds the same of an index. Not all that it has is read.
func TestDamagedIndexInTheBucket(t *testing.T) {
	s := newSpoilt(t, block.IndexFilename)
	left := 0
	for at := 0; at < len(s.file); at += 2 {
		file := slices.Clone(s.file)
		// The highest bit makes a length go on, and all of them make it long.
		file[at] ^= []byte{0x01, 0x80, 0xff}[at/2%3]
		if !s.reads(file, at%4 == 0) {
			left++
		}
	}
	require.Greater(t, left, len(s.file)/4)
	require.False(t, s.reads(s.file[:len(s.file)-7], true))
	require.True(t, s.reads(s.file, true))
}

// TestCheckedIndexIsWhatIsThere reads a large index as Thanos's reader does, which asks for more of a series than it has.
func TestCheckedIndexIsWhatIsThere(t *testing.T) {
	s := newSpoilt(t, block.IndexFilename)
	name := "01ARZ3NDEKTSV4RRFFQ69G5FAV/" + block.IndexFilename
	path := filepath.Join(s.c.dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	w, err := index.NewWriter(context.Background(), path)
	require.NoError(t, err)
	const n = 4000
	symbols := []string{"", "i", "l"}
	for i := range n {
		symbols = append(symbols, fmt.Sprintf("v%05d%s", i, strings.Repeat("-", i%300)))
	}
	for _, symbol := range symbols {
		require.NoError(t, w.AddSymbol(symbol))
	}
	for i := range n {
		series := labels.FromStrings("i", symbols[3+i], "l", symbols[3+i/1000])
		require.NoError(t, w.AddSeries(storage.SeriesRef(i), series, chunks.Meta{Ref: chunks.ChunkRef(8 + 100*i), MinTime: 1, MaxTime: 2}))
	}
	require.NoError(t, w.Close())
	file, err := os.ReadFile(path)
	require.NoError(t, err)
	toc, err := index.NewTOCFromByteSlice(byteSlice(file))
	require.NoError(t, err)
	s.counting()
	share := s.bucket.reader.share
	read := func(ctx context.Context, off, length int64) ([]byte, error) {
		r, err := share.GetRange(ctx, name, off, length)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(r)
		return b, errors.Join(err, r.Close())
	}
	ctx := context.Background()
	r, err := index.NewFileReader(path, index.DecodePostingsRaw)
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	all, err := r.Postings(ctx, "", "")
	require.NoError(t, err)
	count := 0
	for ; all.Next(); count++ {
		off := int64(all.At()) * 16
		length := []int64{1, 15, 16, 64, 3000, 64 << 10}[count%6]
		got, err := read(ctx, off, length)
		require.NoError(t, err)
		require.Equal(t, file[off:min(off+length, int64(toc.LabelIndices))], got)
	}
	require.NoError(t, all.Err())
	require.Equal(t, n, count)
	ranges, err := r.PostingsRanges()
	require.NoError(t, err)
	require.Len(t, ranges, 1+n+4)
	for _, p := range ranges {
		got, err := read(ctx, p.Start, p.End-p.Start)
		require.NoError(t, err)
		require.Equal(t, file[p.Start:p.End], got)
		// Several at once.
		more := min(p.End+9_000, int64(toc.LabelIndicesTable)-checksumBytes)
		got, err = read(ctx, p.Start, more-p.Start)
		require.NoError(t, err)
		require.Equal(t, file[p.Start:more], got)
	}
	// What headers are made of is looked at elsewhere.
	got, err := read(pastCache(ctx), 0, 100)
	require.NoError(t, err)
	require.Equal(t, file[:100], got)
}
