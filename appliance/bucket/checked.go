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
	"slices"

	"github.com/prometheus/prometheus/tsdb/chunks"
)

const (
	// checksumBytes is the length of what follows each chunk in a file of chunks.
	checksumBytes = crc32.Size
	// maxChunkBytes bounds one chunk: a length beyond that is damage. Chunks of floats have hundreds of bytes, those of native histograms
	// some thousands.
	maxChunkBytes = 16 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// noChunk is where a chunk cannot be read. Thanos's reader drops the error of the last chunk that it wants and takes what its buffer has
// from before; this is no length of anything, so that it stops there.
var noChunk = bytes.Repeat([]byte{0xff}, binary.MaxVarintLen64)

// errDamaged says that a file of chunks has not what was written.
var errDamaged = errors.New("it is damaged")

// checkedChunks reads a part of a file of chunks, from the beginning of a chunk on, and passes on each chunk when its checksum is right.
// Thanos's reader looks at no checksum, and a damaged length would end the process. The last chunk may be cut off, as it was asked for.
//
// The layout is that of https://github.com/prometheus/prometheus/blob/main/tsdb/docs/format/chunks.md: length (uvarint), encoding (one
// byte), data, and of the last two the CRC-32 (Castagnoli), one chunk after the other.
type checkedChunks struct {
	ctx    context.Context
	logger *slog.Logger
	name   string
	// open reads from a place on. What is damaged is read again past the caches: they may have it wrong, and the bucket not.
	open func(off int64, pastCache bool) (io.ReadCloser, error)

	src  io.ReadCloser
	buf  *bufio.Reader
	past bool
	// off is where the next chunk begins, end where what was asked for ends.
	off, end int64
	chunk    []byte
	// rest is what is not passed on yet, and err what follows it.
	rest []byte
	err  error
}

// openChecked opens the part. open must give checksumBytes more than was asked for, if the file has them.
func openChecked(ctx context.Context, logger *slog.Logger, name string, off, length int64, open func(int64, bool) (io.ReadCloser, error)) (*checkedChunks, error) {
	c := &checkedChunks{ctx: ctx, logger: logger, name: name, open: open, off: off, end: off + length}
	return c, c.reopen(false)
}

func (c *checkedChunks) reopen(past bool) (err error) {
	if c.src, err = c.open(c.off, past); err != nil {
		c.src = nil
		return err
	}
	c.past = past
	c.buf = bufio.NewReader(c.src)
	return nil
}

// Read implements io.Reader.
func (c *checkedChunks) Read(b []byte) (int, error) {
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

// next reads a chunk, or finds out why there is none.
func (c *checkedChunks) next() {
	if c.off >= c.end {
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
		c.rest = noChunk
		// Upstream may drop it, and who asks be told no more than that a length is wrong.
		if c.ctx.Err() == nil && !errors.Is(err, io.EOF) {
			c.logger.Warn("chunks of a block cannot be read from the bucket", "object", c.name, "byte", c.off, "err", err)
		}
		return
	}
	c.rest = c.chunk[:min(int64(len(c.chunk)), c.end-c.off)]
	c.off += int64(len(c.chunk))
}

// read fills chunk with the next one, or with its beginning where the part ends before it does. The error is io.EOF where the file ends
// after a chunk.
func (c *checkedChunks) read() error {
	head, err := c.buf.Peek(chunks.MaxChunkLengthFieldSize)
	if err != nil && (!errors.Is(err, io.EOF) || len(head) == 0) {
		return err
	}
	size, n := binary.Uvarint(head)
	whole := n > 0
	if !whole && err == nil || size > maxChunkBytes {
		return fmt.Errorf("%w: the length of a chunk is beyond all that can be", errDamaged)
	}
	if !whole {
		n = len(head)
	}
	want := n + chunks.ChunkEncodingSize + int(size) + checksumBytes
	c.chunk = slices.Grow(c.chunk[:0], want)[:want]
	got, err := io.ReadFull(c.buf, c.chunk)
	c.chunk = c.chunk[:got]
	switch {
	case err == nil && whole:
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case c.off+int64(got) < c.end+checksumBytes:
		return fmt.Errorf("%w: the file ends within a chunk", errDamaged)
	default:
		return nil
	}
	data, sum := c.chunk[n:got-checksumBytes], c.chunk[got-checksumBytes:]
	if crc32.Checksum(data, castagnoli) != binary.BigEndian.Uint32(sum) {
		return fmt.Errorf("%w: a chunk has another checksum", errDamaged)
	}
	return nil
}

// Close implements io.Closer.
func (c *checkedChunks) Close() error {
	if c.src == nil {
		return nil
	}
	src := c.src
	c.src = nil
	return src.Close()
}
