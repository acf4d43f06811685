package mesh

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// maxDepth bounds how deep one value may be nested in another. memberlist's own messages need one level; its decoder
// recurses without a bound, and a stack that overflows cannot be recovered from.
const maxDepth = 8

// maxFields bounds the fields of one message. memberlist's largest has eight.
const maxFields = 32

var (
	errShort = errors.New("it ends too early")
	errEnded = errors.New("the connection ended in the middle of a message")
	errLong  = errors.New("it is longer than any message of ours")
)

// cursor walks over MessagePack values without believing the lengths in them. It reads from src as it goes, at most
// limit bytes in all, and keeps what it read; without src it has only what is in buf.
type cursor struct {
	src   io.Reader
	buf   []byte
	pos   int
	limit int
	// grow is asked for each piece that is read, so that all streams together are bounded.
	grow func(bytes int) error
}

// take returns the next n bytes.
func (c *cursor) take(n int) ([]byte, error) {
	if n < 0 || n > c.limit-c.pos {
		if n > 0 && c.src == nil && c.limit == len(c.buf) {
			return nil, errShort // A packet that was cut off.
		}
		return nil, errLong
	}
	for len(c.buf)-c.pos < n {
		if c.src == nil {
			return nil, errShort
		}
		// In pieces: a length that somebody claims is not a reason to set that much memory aside.
		piece := min(n-(len(c.buf)-c.pos), 256<<10)
		if c.grow != nil {
			if err := c.grow(piece); err != nil {
				return nil, err
			}
		}
		have := len(c.buf)
		c.buf = slices.Grow(c.buf, piece)[:have+piece]
		got, err := io.ReadFull(c.src, c.buf[have:])
		c.buf = c.buf[:have+got]
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errEnded
		}
		if err != nil {
			return nil, err
		}
	}
	b := c.buf[c.pos : c.pos+n]
	c.pos += n
	return b, nil
}

func (c *cursor) byte() (byte, error) {
	b, err := c.take(1)
	if err != nil {
		return 0, err
	}
	return b[0], nil
}

// length reads a big-endian number of so many bytes.
func (c *cursor) length(size int) (int, error) {
	b, err := c.take(size)
	if err != nil {
		return 0, err
	}
	switch size {
	case 1:
		return int(b[0]), nil
	case 2:
		return int(binary.BigEndian.Uint16(b)), nil
	default:
		return int(binary.BigEndian.Uint32(b)), nil
	}
}

// integer reads a whole number.
func (c *cursor) integer() (int64, error) {
	t, err := c.byte()
	if err != nil {
		return 0, err
	}
	switch {
	case t < 0x80:
		return int64(t), nil
	case t >= 0xe0:
		return int64(int8(t)), nil
	case t < 0xcc || t > 0xd3:
		return 0, fmt.Errorf("a number was due, not type %#x", t)
	}
	b, err := c.take(1 << ((t - 0xcc) & 3))
	if err != nil {
		return 0, err
	}
	switch t {
	case 0xcc:
		return int64(b[0]), nil
	case 0xcd:
		return int64(binary.BigEndian.Uint16(b)), nil
	case 0xce:
		return int64(binary.BigEndian.Uint32(b)), nil
	case 0xcf:
		n := binary.BigEndian.Uint64(b)
		if n > math.MaxInt64 {
			return 0, errors.New("a number is too large")
		}
		return int64(n), nil
	case 0xd0:
		return int64(int8(b[0])), nil
	case 0xd1:
		return int64(int16(binary.BigEndian.Uint16(b))), nil
	case 0xd2:
		return int64(int32(binary.BigEndian.Uint32(b))), nil
	default:
		return int64(binary.BigEndian.Uint64(b)), nil
	}
}

// boolean reads a truth value.
func (c *cursor) boolean() (bool, error) {
	t, err := c.byte()
	if err != nil {
		return false, err
	}
	if t != 0xc2 && t != 0xc3 {
		return false, fmt.Errorf("a truth value was due, not type %#x", t)
	}
	return t == 0xc3, nil
}

// bytes reads a string of bytes, or nothing in its place, of at most most bytes.
func (c *cursor) bytes(most int) ([]byte, error) {
	t, err := c.byte()
	if err != nil {
		return nil, err
	}
	n := 0
	switch {
	case t == 0xc0:
		return nil, nil
	case t >= 0xa0 && t <= 0xbf:
		n = int(t & 0x1f)
	case t >= 0xc4 && t <= 0xc6:
		n, err = c.length(1 << (t - 0xc4))
	case t >= 0xd9 && t <= 0xdb:
		n, err = c.length(1 << (t - 0xd9))
	default:
		return nil, fmt.Errorf("bytes were due, not type %#x", t)
	}
	if err != nil {
		return nil, err
	}
	if n > most {
		return nil, errLong
	}
	return c.take(n)
}

// fields reads a map. For each key, field reads the value.
func (c *cursor) fields(field func(key string) error) error {
	t, err := c.byte()
	if err != nil {
		return err
	}
	n := 0
	switch {
	case t >= 0x80 && t <= 0x8f:
		n = int(t & 0x0f)
	case t == 0xde:
		n, err = c.length(2)
	case t == 0xdf:
		n, err = c.length(4)
	default:
		return fmt.Errorf("a map was due, not type %#x", t)
	}
	if err != nil {
		return err
	}
	if n > maxFields {
		return errLong
	}
	for range n {
		key, err := c.bytes(64)
		if err != nil {
			return err
		}
		if err := field(string(key)); err != nil {
			return err
		}
	}
	return nil
}

// skip passes over any value.
func (c *cursor) skip(depth int) error {
	if depth > maxDepth {
		return errors.New("it is nested too deep")
	}
	t, err := c.byte()
	if err != nil {
		return err
	}
	values, size := 0, 0
	switch {
	case t < 0x80 || t >= 0xe0 || t == 0xc0 || t == 0xc2 || t == 0xc3:
		return nil
	case t <= 0x8f:
		values = 2 * int(t&0x0f)
	case t <= 0x9f:
		values = int(t & 0x0f)
	case t <= 0xbf:
		size = int(t & 0x1f)
	case t == 0xc1:
		return errors.New("a type is not MessagePack")
	case t <= 0xc6:
		size, err = c.length(1 << (t - 0xc4))
	case t <= 0xc9:
		size, err = c.length(1 << (t - 0xc7))
		size++ // The kind of an extension.
	case t == 0xca:
		size = 4
	case t == 0xcb:
		size = 8
	case t <= 0xd3:
		size = 1 << ((t - 0xcc) & 3)
	case t <= 0xd8:
		size = 1 + 1<<(t-0xd4)
	case t <= 0xdb:
		size, err = c.length(1 << (t - 0xd9))
	case t <= 0xdd:
		values, err = c.length(2 << (t - 0xdc))
	default:
		values, err = c.length(2 << (t - 0xde))
		values *= 2
	}
	if err != nil {
		return err
	}
	if _, err := c.take(size); err != nil {
		return err
	}
	// Each takes at least a byte, so that this ends with the message.
	for range values {
		if err := c.skip(depth + 1); err != nil {
			return err
		}
	}
	return nil
}
