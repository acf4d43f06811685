package query

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/prometheus/prometheus/promql/parser"
)

// What one request may bring. Upstream bounds none of these but the form (10
// MiB) and the decoded remote write; each of the others could take the process
// down with a few bytes.
const (
	maxFormBytes = 10 << 20
	// maxWriteBytes is upstream's limit for a decoded remote write request, used
	// for OTLP as well.
	maxWriteBytes = 32 << 20
	// maxReadBytes is ample: a remote read request holds matchers only.
	maxReadBytes = 1 << 20
	// maxQueryBytes is the longest expression.
	maxQueryBytes = 1 << 20
	// maxQueryDepth bounds the nesting of an expression and maxQueryOperators
	// its chains of operators. Both become recursion in the parser's tree, and a
	// Go stack that outgrows its limit ends the process, not the request.
	maxQueryDepth     = 500
	maxQueryOperators = 10_000
	// maxIngesting is how many pushes are decoded at the same time.
	maxIngesting = 64
)

// refusal is a request that is not passed on, and what to say about it.
type refusal struct {
	code int
	typ  string
	text string
}

func (r *refusal) Error() string { return r.text }

func refuse(code int, format string, args ...any) error {
	return &refusal{code: code, typ: errBadData, text: fmt.Sprintf(format, args...)}
}

// admit bounds the request and says whether it goes on to upstream's handler;
// if not, it has answered.
func (q *Query) admit(w http.ResponseWriter, r *http.Request) bool {
	err := bound(w, r)
	if err == nil {
		return true
	}
	var ref *refusal
	if !errors.As(err, &ref) {
		ref = &refusal{code: http.StatusBadRequest, typ: errBadData, text: err.Error()}
	}
	writeError(w, ref.code, ref.typ, ref.text)
	return false
}

// bound replaces the body by one that ends, and reads the form where there is
// one: upstream ignores the error of a form that it cannot read and goes on with
// what it has.
func bound(w http.ResponseWriter, r *http.Request) error {
	switch strings.TrimPrefix(r.URL.Path, apiPrefix) {
	case "/write":
		return boundSnappy(w, r, maxWriteBytes)
	case "/read":
		return boundSnappy(w, r, maxReadBytes)
	case "/otlp/v1/metrics":
		return boundGzip(w, r, maxWriteBytes)
	}
	if err := parseForm(w, r); err != nil {
		return err
	}
	for _, expr := range r.Form["query"] {
		if err := checkExpression(expr); err != nil {
			return err
		}
	}
	return nil
}

// parseForm reads the parameters from the URL and from the body.
func parseForm(w http.ResponseWriter, r *http.Request) error {
	if r.ContentLength > maxFormBytes {
		return tooLarge(maxFormBytes)
	}
	if r.Body != nil {
		r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
	}
	err := r.ParseForm()
	if mt, _, mErr := mime.ParseMediaType(r.Header.Get("Content-Type")); err == nil && mErr == nil && mt == "multipart/form-data" && r.Body != nil {
		// The body is smaller than the memory allowed for it, so nothing of it
		// goes to a temporary file.
		err = r.ParseMultipartForm(maxFormBytes)
	}
	if err == nil {
		return nil
	}
	var limit *http.MaxBytesError
	if errors.As(err, &limit) {
		return tooLarge(maxFormBytes)
	}
	return refuse(http.StatusBadRequest, "error parsing form values: %s", err)
}

func tooLarge(limit int64) error {
	return refuse(http.StatusRequestEntityTooLarge, "the request body is larger than %d bytes", limit)
}

// checkExpression refuses what would overflow the stack once it is a tree. It
// only counts tokens; whether the expression is valid is the parser's business.
func checkExpression(expr string) error {
	if len(expr) > maxQueryBytes {
		return refuse(http.StatusBadRequest, "invalid parameter \"query\": the expression is %d bytes long, the limit is %d", len(expr), maxQueryBytes)
	}
	if len(expr) <= maxQueryDepth {
		return nil
	}
	var (
		lexer            = parser.Lex(expr)
		item             parser.Item
		depth, operators int
	)
	for {
		lexer.NextItem(&item)
		switch item.Typ {
		case parser.EOF, parser.ERROR:
			return nil
		case parser.LEFT_PAREN, parser.LEFT_BRACKET, parser.LEFT_BRACE:
			if depth++; depth > maxQueryDepth {
				return refuse(http.StatusBadRequest, "invalid parameter \"query\": the expression is nested more than %d deep", maxQueryDepth)
			}
		case parser.RIGHT_PAREN, parser.RIGHT_BRACKET, parser.RIGHT_BRACE:
			depth--
		default:
			if item.Typ.IsOperator() {
				operators++
			}
		}
		if operators > maxQueryOperators {
			return refuse(http.StatusBadRequest, "invalid parameter \"query\": the expression has more than %d operators", maxQueryOperators)
		}
	}
}

// boundSnappy refuses a body by the length that it declares to have once it is
// decoded: the decoder allocates that much before it looks at the rest.
func boundSnappy(w http.ResponseWriter, r *http.Request, limit int64) error {
	if r.Body == nil {
		return nil
	}
	wire := maxSnappyBytes(limit)
	if r.ContentLength > wire {
		return tooLarge(wire)
	}
	body := bufio.NewReaderSize(http.MaxBytesReader(w, r.Body, wire), 4<<10)
	head, err := body.Peek(binary.MaxVarintLen64)
	if err != nil && !errors.Is(err, io.EOF) {
		return refuse(http.StatusBadRequest, "read the request body: %s", err)
	}
	if err := checkSnappyLength(head, limit); err != nil {
		return err
	}
	r.Body = body2{body, r.Body}
	return nil
}

// checkSnappyLength reads the length in front of a snappy block.
func checkSnappyLength(head []byte, limit int64) error {
	n, size := binary.Uvarint(head)
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

// boundGzip decompresses on the fly, so that upstream's unbounded reading meets
// a bounded stream.
func boundGzip(w http.ResponseWriter, r *http.Request, limit int64) error {
	if r.Body == nil {
		return nil
	}
	if r.ContentLength > limit {
		return tooLarge(limit)
	}
	body := io.Reader(http.MaxBytesReader(w, r.Body, limit))
	if r.Header.Get("Content-Encoding") == "gzip" {
		gz, err := gzip.NewReader(body)
		if err != nil {
			return refuse(http.StatusBadRequest, "decompress the request body: %s", err)
		}
		body = &capped{r: gz, left: limit, limit: limit}
		r.Header.Del("Content-Encoding")
	}
	r.Body = body2{body, r.Body}
	return nil
}

// body2 reads from one place and closes another.
type body2 struct {
	io.Reader
	io.Closer
}

// capped fails, instead of ending, where the limit is passed.
type capped struct {
	r           io.Reader
	left, limit int64
}

func (c *capped) Read(p []byte) (int, error) {
	if c.left < 0 {
		return 0, fmt.Errorf("the request body is larger than %d bytes after decompression", c.limit)
	}
	// One byte more than allowed tells an end from an excess.
	if int64(len(p)) > c.left+1 {
		p = p[:c.left+1]
	}
	n, err := c.r.Read(p)
	c.left -= int64(n)
	if c.left < 0 {
		return 0, fmt.Errorf("the request body is larger than %d bytes after decompression", c.limit)
	}
	return n, err
}
