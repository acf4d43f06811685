package federate

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// The parsers of model/textparse want a whole exposition in memory, and the one
// for protobuf recurses once per empty family, so that some megabytes of zeros
// overflow the stack and end the process. Hence each answer is cut into pieces
// of bounded size that a parser takes as an exposition of their own: memory
// stays small, and reading stops as soon as a limit is passed.
const (
	firstPieceBytes  = 32 << 10 // of text; it grows for long lines only
	pieceBytes       = 256 << 10
	maxMetricBytes   = 256 << 10 // one protobuf metric; one line of text is bounded by pieceBytes
	maxPieceMetrics  = 1000
	maxNameBytes     = 64 << 10
	maxTypeLineBytes = 4 << 10
)

// format is how an answer is encoded.
type format struct {
	contentType string // canonical, for textparse
	frame       func(r io.Reader, emit func(piece []byte) error) error
}

var (
	errLineTooLong = faultf(resultMalformed, "answer has a line of more than %d KiB", pieceBytes>>10)
	errNoEOF       = faultf(resultMalformed, "answer ends without # EOF, it is not complete")
)

// textFrames cuts at line ends. The last # TYPE line is repeated at the head of
// the next piece, because the parser takes the type of a series from it.
func textFrames(r io.Reader, emit func([]byte) error) error {
	return frameLines(r, emit, nil)
}

// openMetricsFrames does the same and moves the mandatory end mark to the end
// of each piece.
func openMetricsFrames(r io.Reader, emit func([]byte) error) error {
	return frameLines(r, emit, []byte("# EOF\n"))
}

func frameLines(r io.Reader, emit func([]byte) error, end []byte) error {
	var (
		buf      = make([]byte, firstPieceBytes)
		have     int
		piece    []byte
		typeLine []byte
	)
	for {
		n, err := io.ReadFull(r, buf[have:])
		have += n
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return err
		}
		cut := bytes.LastIndexByte(buf[:have], '\n') + 1
		if last {
			cut = have
		} else if cut == 0 {
			if len(buf) >= pieceBytes {
				return errLineTooLong
			}
			buf = append(buf, make([]byte, len(buf))...)
			continue
		}
		lines := buf[:cut]
		if last && end != nil {
			// The end mark may lack its line end.
			body, ok := bytes.CutSuffix(bytes.TrimSuffix(lines, end[len(end)-1:]), end[:len(end)-1])
			if !ok || (len(body) > 0 && body[len(body)-1] != '\n') {
				return errNoEOF
			}
			lines = body
		}
		piece = append(piece[:0], typeLine...)
		piece = append(piece, lines...)
		if l := lastTypeLine(lines); l != nil {
			typeLine = append(typeLine[:0], l...)
		}
		piece = append(piece, end...)
		if err := emit(piece); err != nil {
			return err
		}
		if last {
			return nil
		}
		have = copy(buf, buf[cut:have])
	}
}

func lastTypeLine(lines []byte) []byte {
	mark := []byte("# TYPE ")
	i := bytes.LastIndex(lines, append([]byte{'\n'}, mark...))
	if i < 0 && !bytes.HasPrefix(lines, mark) {
		return nil
	}
	line := lines[i+1:]
	n := bytes.IndexByte(line, '\n') + 1
	if n == 0 || n > maxTypeLineBytes {
		return nil
	}
	return line[:n]
}

// Field numbers of io.prometheus.client.MetricFamily.
const (
	familyName   = 1
	familyType   = 3
	familyMetric = 4
)

var errProtobuf = faultf(resultMalformed, "answer is not valid protobuf of metric families")

// protobufFrames reads length-delimited metric families and hands on families
// of bounded size: large ones in several pieces with the same head, empty ones
// not at all.
func protobufFrames(r io.Reader, emit func([]byte) error) error {
	d := &protobufFramer{r: bufio.NewReaderSize(r, 64<<10), emit: emit}
	for {
		size, err := binary.ReadUvarint(d.r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errProtobuf
		}
		if err := d.family(size); err != nil {
			return err
		}
	}
}

// protobufFramer reports whatever ends an answer early as errProtobuf. Whether
// it was the connection is known to the reader below it (source).
type protobufFramer struct {
	r    *bufio.Reader
	left uint64 // of the current family
	emit func([]byte) error

	name    []byte
	kind    uint64
	metrics []byte // of the current piece, with their tags
	count   int
	out     []byte
}

func (d *protobufFramer) family(size uint64) error {
	d.left, d.name, d.kind, d.metrics, d.count = size, d.name[:0], 0, d.metrics[:0], 0
	for d.left > 0 {
		tag, err := d.uvarint()
		if err != nil {
			return err
		}
		field, wire := tag>>3, tag&7
		switch wire {
		case 0:
			v, err := d.uvarint()
			if err != nil {
				return err
			}
			if field == familyType {
				d.kind = v
			}
		case 1:
			err = d.skip(8)
		case 5:
			err = d.skip(4)
		case 2:
			err = d.bytes(field)
		default:
			return errProtobuf
		}
		if err != nil {
			return err
		}
		if field == 0 || ((field == familyName || field == familyType) && d.count > 0) {
			return errProtobuf // a head after the metrics would be another family
		}
	}
	return d.flush()
}

func (d *protobufFramer) bytes(field uint64) error {
	n, err := d.uvarint()
	if err != nil {
		return err
	}
	if n > d.left {
		return errProtobuf
	}
	switch field {
	case familyName:
		if n > maxNameBytes {
			return faultf(resultMalformed, "answer has a metric name of %d bytes", n)
		}
		d.name, err = d.read(d.name[:0], int(n))
		return err
	case familyMetric:
		if n > maxMetricBytes {
			return faultf(resultMalformed, "answer has a series of %d bytes, more than %d", n, maxMetricBytes)
		}
		if len(d.metrics) > 0 && (d.count >= maxPieceMetrics || len(d.metrics)+int(n) > pieceBytes) {
			if err := d.flush(); err != nil {
				return err
			}
		}
		d.metrics = append(d.metrics, familyMetric<<3|2)
		d.metrics = binary.AppendUvarint(d.metrics, n)
		d.metrics, err = d.read(d.metrics, int(n))
		d.count++
		return err
	}
	return d.skip(n)
}

// flush emits the metrics so far as a family of their own.
func (d *protobufFramer) flush() error {
	if len(d.metrics) == 0 {
		return nil
	}
	head := []byte{familyName<<3 | 2}
	head = binary.AppendUvarint(head, uint64(len(d.name)))
	head = append(head, d.name...)
	head = append(head, familyType<<3)
	head = binary.AppendUvarint(head, d.kind)

	d.out = binary.AppendUvarint(d.out[:0], uint64(len(head)+len(d.metrics)))
	d.out = append(d.out, head...)
	d.out = append(d.out, d.metrics...)
	d.metrics = d.metrics[:0]
	return d.emit(d.out)
}

func (d *protobufFramer) uvarint() (uint64, error) {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		if d.left == 0 {
			return 0, errProtobuf
		}
		b, err := d.r.ReadByte()
		if err != nil {
			return 0, errProtobuf
		}
		d.left--
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, nil
		}
	}
	return 0, errProtobuf
}

func (d *protobufFramer) read(to []byte, n int) ([]byte, error) {
	at := len(to)
	if cap(to)-at < n {
		to = append(to, make([]byte, n)...)
	}
	to = to[:at+n]
	if _, err := io.ReadFull(d.r, to[at:]); err != nil {
		return to[:at], errProtobuf
	}
	d.left -= uint64(n)
	return to, nil
}

func (d *protobufFramer) skip(n uint64) error {
	if n > d.left {
		return errProtobuf
	}
	d.left -= n
	// Discard takes an int; a family is longer than that nowhere.
	for n > 0 {
		step := min(n, 1<<20)
		if _, err := d.r.Discard(int(step)); err != nil {
			return errProtobuf
		}
		n -= step
	}
	return nil
}

// protobufName is the family name in a piece that flush made.
func protobufName(piece []byte) string {
	_, n := binary.Uvarint(piece)
	if n <= 0 || n >= len(piece) {
		return ""
	}
	piece = piece[n+1:]
	size, n := binary.Uvarint(piece)
	if n <= 0 || size > uint64(len(piece)-n) {
		return ""
	}
	return string(piece[n : n+int(size)])
}
