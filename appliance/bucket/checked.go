package bucket

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math"
	"slices"

	"github.com/prometheus/prometheus/tsdb/chunks"
)

// checksumBytes is the length of what follows each entry.
const checksumBytes = crc32.Size

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errDamaged says that an object of a block has not what was written.
var errDamaged = errors.New("it is damaged")

// entries are how a part of a block is made of entries, one after the other: a length, the data, and their CRC-32 (Castagnoli).
type entries struct {
	what string
	// length reads how many bytes of data there are, and in how many bytes that is written. That is 0 when there are too few, and negative
	// when it is none. It takes longest bytes at most.
	length  func(head []byte) (size uint64, n int)
	longest int
	// more is how much data there is beyond the length.
	more int
	// align is a power of two that entries begin at multiples of, end where there are no more of them, and most bounds one of them: a length beyond
	// that is damage. All are in bytes.
	align, end, most int64
	// instead is what is given in place of one that cannot be read.
	instead []byte
}

var (
	// chunkEntries is https://github.com/prometheus/prometheus/blob/main/tsdb/docs/format/chunks.md, where the byte with the encoding is not
	// in the length. Chunks of floats have hundreds of bytes, those of native histograms some thousands.
	chunkEntries = entries{
		what: "a chunk", length: binary.Uvarint, longest: chunks.MaxChunkLengthFieldSize, more: chunks.ChunkEncodingSize,
		align: 1, end: math.MaxInt64, most: 16 << 20, instead: noChunk,
	}
	// noChunk is no length of anything: Thanos's reader drops the error of the last chunk that it wants and takes what its buffer has from
	// before. So it stops there.
	noChunk = bytes.Repeat([]byte{0xff}, binary.MaxVarintLen64)
)

// seriesEntries and postingsEntries are https://github.com/prometheus/prometheus/blob/main/tsdb/docs/format/index.md.
func seriesEntries(end int64) entries {
	return entries{what: "a series", length: binary.Uvarint, longest: binary.MaxVarintLen32, align: 16, end: end, most: 16 << 20}
}

func postingsEntries(begin, end int64) entries {
	return entries{what: "a list of postings", length: func(head []byte) (uint64, int) {
		if len(head) < postingsLength {
			return 0, 0
		}
		return uint64(binary.BigEndian.Uint32(head)), postingsLength
	}, longest: postingsLength, align: 4, end: end, most: end - begin}
}

// postingsLength is the length of the length of a list of postings.
const postingsLength = 4

// checkedReader reads a part of an object, from the beginning of an entry on, and passes on each entry when its checksum is right: Thanos's
// reader looks at none, and a damaged length would end the process, or take all memory. The last entry may be cut off, as it was asked for.
type checkedReader struct {
	entries
	ctx    context.Context
	logger *slog.Logger
	name   string
	// open reads from a place on. What is damaged is read again past the caches: they may have it wrong, and the bucket not.
	open func(off int64, pastCache bool) (io.ReadCloser, error)

	src  io.ReadCloser
	buf  *bufio.Reader
	past bool
	// off is where the next entry begins, last where what was asked for ends.
	off, last int64
	entry     []byte
	// rest is what is not passed on yet, and err what follows it.
	rest []byte
	err  error
}

// openChecked opens the part. open must give checksumBytes more than was asked for, if the object has them.
func openChecked(ctx context.Context, logger *slog.Logger, of entries, name string, off, length int64, open func(int64, bool) (io.ReadCloser, error)) (*checkedReader, error) {
	c := &checkedReader{entries: of, ctx: ctx, logger: logger, name: name, open: open, off: off, last: off + length}
	return c, c.reopen(false)
}

func (c *checkedReader) reopen(past bool) (err error) {
	if c.src, err = c.open(c.off, past); err != nil {
		c.src = nil
		return err
	}
	c.past = past
	c.buf = bufio.NewReader(c.src)
	return nil
}

// Read implements io.Reader.
func (c *checkedReader) Read(b []byte) (int, error) {
	if len(c.rest) == 0 && c.err == nil {
		c.next()
	}
	if len(c.rest) == 0 {
		return 0, c.err
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// next reads an entry, or finds out why there is none.
func (c *checkedReader) next() {
	if c.off >= min(c.last, c.end) {
		c.err = io.EOF
		return
	}
	err := c.read()
	if errors.Is(err, errDamaged) && !c.past {
		_ = c.Close() // Of what it had, nothing is wanted any more.
		if err = c.reopen(true); err == nil {
			err = c.read()
		}
	}
	if err != nil {
		c.err = fmt.Errorf("read %s from byte %d on: %w", c.name, c.off, err)
		c.rest = c.instead
		// Whoever is given something instead may not tell of the error.
		if c.ctx.Err() == nil && !errors.Is(err, io.EOF) && c.instead != nil {
			c.logger.Warn("what a block has cannot be read from the bucket", "object", c.name, "byte", c.off, "err", err)
		}
		return
	}
	c.rest = c.entry[:min(int64(len(c.entry)), c.last-c.off)]
	c.off += int64(len(c.entry))
}

// read fills entry with the next one, or with its beginning where the part ends before it does. The error is io.EOF where the object
// ends after an entry.
func (c *checkedReader) read() error {
	if padding := -c.off & (c.align - 1); padding > 0 {
		c.entry = slices.Grow(c.entry[:0], int(padding))[:padding]
		got, err := io.ReadFull(c.buf, c.entry)
		c.entry = c.entry[:got]
		switch {
		case err == nil, c.off+int64(got) >= c.last:
			return nil
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("%w: it ends before %s", errDamaged, c.what)
		}
		return err
	}
	head, err := c.buf.Peek(c.longest)
	if err != nil && (!errors.Is(err, io.EOF) || len(head) == 0) {
		return err
	}
	size, n := c.length(head)
	whole := n > 0
	if !whole && err == nil || size > uint64(c.most) {
		return fmt.Errorf("%w: the length of %s is beyond all that can be", errDamaged, c.what)
	}
	if !whole {
		n = len(head)
	}
	want := n + c.more + int(size) + checksumBytes
	c.entry = slices.Grow(c.entry[:0], want)[:want]
	got, err := io.ReadFull(c.buf, c.entry)
	c.entry = c.entry[:got]
	switch {
	case err == nil && whole:
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case c.off+int64(got) < c.last+checksumBytes:
		return fmt.Errorf("%w: it ends within %s", errDamaged, c.what)
	default:
		return nil
	}
	data, sum := c.entry[n:got-checksumBytes], c.entry[got-checksumBytes:]
	if crc32.Checksum(data, castagnoli) != binary.BigEndian.Uint32(sum) {
		return fmt.Errorf("%w: %s has another checksum", errDamaged, c.what)
	}
	return nil
}

// Close implements io.Closer.
func (c *checkedReader) Close() error {
	if c.src == nil {
		return nil
	}
	src := c.src
	c.src = nil
	return src.Close()
}
