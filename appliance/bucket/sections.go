package bucket

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb/index"
)

// tocBytes is the length of the table of contents, which an index ends with.
const tocBytes = 6*8 + crc32.Size

// sections are where an index has the parts that queries read, in bytes.
type sections struct{ series, postings span }

// span is [begin, end).
type span struct{ begin, end int64 }

func (s span) has(off int64) bool { return s.begin <= off && off < s.end }

// byteSlice is an index.ByteSlice.
type byteSlice []byte

func (b byteSlice) Len() int                    { return len(b) }
func (b byteSlice) Range(start, end int) []byte { return b[start:end] }

// sections reads them once.
func (s *share) sections(ctx context.Context, id ulid.ULID, name string) (sections, error) {
	s.mtx.Lock()
	in, ok := s.contents.Get(id)
	s.mtx.Unlock()
	if ok {
		return in, nil
	}
	a, err := s.Attributes(ctx, name)
	if err != nil {
		return sections{}, fmt.Errorf("read %s: %w", name, err)
	}
	in, err = s.readSections(ctx, name, a.Size, false)
	if errors.Is(err, errDamaged) { // The caches may have it wrong, and the bucket not.
		in, err = s.readSections(ctx, name, a.Size, true)
	}
	if err != nil {
		return sections{}, fmt.Errorf("read where %s has what: %w", name, err)
	}
	s.mtx.Lock()
	defer s.mtx.Unlock()
	s.contents.Add(id, in)
	return in, nil
}

func (s *share) readSections(ctx context.Context, name string, size int64, past bool) (in sections, err error) {
	r, err := s.getRange(ctx, name, size-tocBytes, tocBytes, past)
	if err != nil {
		return in, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	b, err := io.ReadAll(io.LimitReader(r, tocBytes))
	if err != nil {
		return in, err
	}
	toc, err := index.NewTOCFromByteSlice(byteSlice(b))
	if err != nil {
		return in, fmt.Errorf("%w: %w", errDamaged, err)
	}
	// Each section ends where the next one begins; some may be empty.
	ends := []uint64{toc.Symbols, toc.Series, toc.LabelIndices, toc.LabelIndicesTable, toc.Postings, toc.PostingsTable, uint64(size - tocBytes)}
	section := func(begin uint64) (span, error) {
		end := uint64(size)
		for _, e := range ends {
			if e > begin {
				end = min(end, e)
			}
		}
		if begin >= end {
			return span{}, fmt.Errorf("%w: it has something behind its end", errDamaged)
		}
		return span{int64(begin), int64(end)}, nil
	}
	if in.series, err = section(toc.Series); err != nil {
		return in, err
	}
	in.postings, err = section(toc.Postings)
	return in, err
}
