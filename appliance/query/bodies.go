package query

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/golang/snappy"
	"github.com/klauspost/compress/gzip"
)

const (
	// maxWriteBytes is upstream's limit for a decoded remote write request, used
	// for OTLP as well.
	maxWriteBytes = 32 << 20
	// maxReadBytes is ample: a remote read request holds matchers only.
	maxReadBytes = 1 << 20
	// maxPooled is the largest buffer kept for the next request.
	maxPooled = 4 << 20
	// maxMessageDepth is how deep elements are counted; OTLP's attributes of a
	// data point are that deep.
	maxMessageDepth = 7
)

// limits bound a body once it is decoded. An element is two bytes on the wire
// and up to two hundred in memory, so bytes alone bound nothing.
type limits struct {
	bytes    int64
	top      int // messages in the outermost one: series, queries
	elements int // messages and strings at any depth
}

// The largest real senders stay below a tenth of these.
var (
	writeLimits = limits{bytes: maxWriteBytes, top: 250_000, elements: 4_000_000}
	readLimits  = limits{bytes: maxReadBytes, top: 1_000, elements: 50_000}
	otlpLimits  = limits{bytes: maxWriteBytes, top: 250_000, elements: 4_000_000}
)

// decode reads the body, looks at what it would become, and gives it to
// upstream, which decodes it again: that is a small part of storing it. It is
// read before it is let in, so that a slow sender holds no place.
func (q *Query) decode(w http.ResponseWriter, r *http.Request, read bodyReader, l limits) (release func(), err error) {
	if r.Body == nil {
		return func() {}, nil
	}
	body, err := read(w, r, l.bytes)
	if err != nil {
		return nil, err
	}
	if err := q.ingesting.Start(r.Context()); err != nil {
		return nil, &refusal{code: http.StatusServiceUnavailable, typ: errUnavailable, text: "too many requests are being decoded"}
	}
	if err := body.check(l); err != nil {
		q.ingesting.Done()
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body.data))
	r.ContentLength = int64(len(body.data))
	return q.ingesting.Done, nil
}

// bodyReader reads a bounded body and says how to look at it.
type bodyReader func(w http.ResponseWriter, r *http.Request, limit int64) (received, error)

// received is a body as upstream shall see it, and the check of its content.
type received struct {
	data  []byte
	check func(limits) error
}

// readBounded reads at most limit bytes.
func readBounded(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var excess *http.MaxBytesError
	if errors.As(err, &excess) {
		return nil, tooLarge(limit)
	}
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "read the request body: %s", err)
	}
	return data, nil
}

// snappyBody is remote write and remote read. The decoder allocates what the
// body declares before it looks at the rest, so that is looked at first.
func (q *Query) snappyBody(w http.ResponseWriter, r *http.Request, limit int64) (received, error) {
	data, err := readBounded(w, r, maxSnappyBytes(limit))
	if err != nil {
		return received{}, err
	}
	if err := checkSnappyLength(data, limit); err != nil {
		return received{}, err
	}
	return received{data, func(l limits) error {
		buf, _ := q.buffers.Get().(*[]byte)
		if buf == nil {
			buf = new([]byte)
		}
		defer func() {
			if cap(*buf) <= maxPooled {
				q.buffers.Put(buf)
			}
		}()
		decoded, err := snappy.Decode((*buf)[:cap(*buf)], data)
		if err != nil {
			return refuse(http.StatusBadRequest, "decompress the request body: %s", err)
		}
		if cap(decoded) > cap(*buf) {
			*buf = decoded
		}
		return checkElements(decoded, l)
	}}, nil
}

// checkSnappyLength reads the length in front of a snappy block.
func checkSnappyLength(data []byte, limit int64) error {
	n, size := binary.Uvarint(data)
	if size <= 0 {
		return refuse(http.StatusBadRequest, "the request body is not in the snappy block format")
	}
	if n > uint64(limit) {
		return refuse(http.StatusRequestEntityTooLarge, "the request body declares %d bytes after decompression, the limit is %d", n, limit)
	}
	return nil
}

// maxSnappyBytes is the longest encoding of n bytes, by the format's definition.
func maxSnappyBytes(n int64) int64 { return 32 + n + n/6 }

// otlpBody is protobuf or JSON, as it is or with gzip. It is passed on without
// compression, because upstream's decompression has no bound.
func otlpBody(w http.ResponseWriter, r *http.Request, limit int64) (received, error) {
	data, err := readBounded(w, r, limit)
	if err != nil {
		return received{}, err
	}
	if r.Header.Get("Content-Encoding") == "gzip" {
		gz, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return received{}, refuse(http.StatusBadRequest, "decompress the request body: %s", err)
		}
		data, err = io.ReadAll(io.LimitReader(gz, limit+1))
		if err != nil {
			return received{}, refuse(http.StatusBadRequest, "decompress the request body: %s", err)
		}
		if int64(len(data)) > limit {
			return received{}, refuse(http.StatusRequestEntityTooLarge, "the request body is larger than %d bytes after decompression", limit)
		}
		r.Header.Del("Content-Encoding")
	}
	isJSON := strings.HasPrefix(r.Header.Get("Content-Type"), "application/json")
	return received{data, func(l limits) error {
		if isJSON {
			// Braces in strings count as well; no matter.
			if bytes.Count(data, []byte("{")) > l.elements {
				return tooMany(l.elements)
			}
			return nil
		}
		return checkElements(data, l)
	}}, nil
}

// checkElements counts messages and strings, up to where the body stops to be
// protobuf: so far the decoder gets as well, which then says what is wrong.
func checkElements(b []byte, l limits) error {
	top, all := 0, 0
	countElements(b, maxMessageDepth, l.elements, &top, &all)
	if top > l.top {
		return tooMany(l.top)
	}
	if all > l.elements {
		return tooMany(l.elements)
	}
	return nil
}

func tooMany(limit int) error {
	return refuse(http.StatusRequestEntityTooLarge, "the request body has more than %d elements", limit)
}

// countElements adds the length-delimited fields of b to top, and them and those
// inside of them to all. A string may look like a message, which counts a little
// too much. It reads more forgivingly than any decoder does, so that none of them
// gets further than the counting: field numbers and groups do not matter here.
func countElements(b []byte, depth, limit int, top, all *int) {
	for len(b) > 0 {
		tag, n := lenientVarint(b)
		b = b[n:]
		switch tag & 7 {
		case 0:
			_, n := lenientVarint(b)
			b = b[n:]
		case 1:
			b = b[min(8, len(b)):]
		case 2:
			size, n := lenientVarint(b)
			b = b[n:]
			*top++
			if *all++; *all > limit || size > uint64(len(b)) {
				return
			}
			if depth > 1 && size > 1 {
				var inner int
				countElements(b[:size], depth-1, limit, &inner, all)
			}
			b = b[size:]
		case 3, 4:
			// Groups have no length; what is in them is counted as it comes.
		case 5:
			b = b[min(4, len(b)):]
		default:
			return
		}
	}
}

// lenientVarint takes up to ten bytes, whatever they overflow.
func lenientVarint(b []byte) (v uint64, n int) {
	for n < len(b) && n < binary.MaxVarintLen64 {
		c := b[n]
		v |= uint64(c&0x7f) << (7 * n)
		n++
		if c < 0x80 {
			break
		}
	}
	return v, n
}
