package query

import (
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"

	"github.com/prometheus/prometheus/promql/parser"
)

// What one request may bring. Upstream bounds none of these but the form (10
// MiB) and the decoded remote write; each of the others could take the process
// down with a few bytes.
const (
	maxFormBytes = 10 << 20
	// maxQueryBytes is the longest expression.
	maxQueryBytes = 1 << 20
	// maxQueryDepth bounds the nesting of an expression and maxQueryOperators
	// its chains of operators and ranges. Both become recursion over the parser's
	// tree, and a Go stack that outgrows its limit ends the process, not the
	// request. Printing takes the cube of it, and nothing can stop it: a chain of
	// 9,000 keeps a core busy for minutes, hence maxPrintOperators.
	maxQueryDepth     = 250
	maxQueryOperators = 5_000
	maxPrintOperators = 500
	// maxIngesting is how many pushes and remote reads are decoded at the same
	// time.
	maxIngesting = 16
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
// if not, it has answered. Release is called when the handler has returned.
func (q *Query) admit(w http.ResponseWriter, r *http.Request) (release func(), ok bool) {
	release, err := q.bound(w, r)
	if err == nil {
		return release, true
	}
	var ref *refusal
	if !errors.As(err, &ref) {
		ref = &refusal{code: http.StatusBadRequest, typ: errBadData, text: err.Error()}
	}
	writeError(w, ref.code, ref.typ, ref.text)
	return nil, false
}

// bound replaces the body by one that ends, and reads the form where there is
// one: upstream ignores the error of a form that it cannot read and goes on with
// what it has.
func (q *Query) bound(w http.ResponseWriter, r *http.Request) (release func(), err error) {
	operators := maxQueryOperators
	switch path := strings.TrimPrefix(r.URL.Path, apiPrefix); {
	case path == "/write" && r.Method == http.MethodPost:
		return q.decode(w, r, q.snappyBody, writeLimits)
	case path == "/read" && r.Method == http.MethodPost:
		return q.decode(w, r, q.snappyBody, readLimits)
	case path == "/otlp/v1/metrics" && r.Method == http.MethodPost:
		return q.decode(w, r, otlpBody, otlpLimits)
	case path == "/format_query" || path == "/parse_query":
		operators = maxPrintOperators
	}
	if err := parseForm(w, r); err != nil {
		return nil, err
	}
	for _, expr := range r.Form["query"] {
		if err := checkExpression(expr, operators); err != nil {
			return nil, err
		}
	}
	return func() {}, nil
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
func checkExpression(expr string, maxOperators int) error {
	if len(expr) > maxQueryBytes {
		return refuse(http.StatusBadRequest, "invalid parameter \"query\": the expression is %d bytes long, the limit is %d", len(expr), maxQueryBytes)
	}
	// Too short to reach any of the limits.
	if len(expr) <= min(maxQueryDepth, maxOperators) {
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
		case parser.LEFT_BRACKET:
			// A range, or one more subquery around all that stands before it.
			operators++
		case parser.LEFT_PAREN:
			if depth++; depth > maxQueryDepth {
				return refuse(http.StatusBadRequest, "invalid parameter \"query\": the expression is nested more than %d deep", maxQueryDepth)
			}
		case parser.RIGHT_PAREN:
			depth--
		default:
			if item.Typ.IsOperator() {
				operators++
			}
		}
		if operators > maxOperators {
			return refuse(http.StatusBadRequest, "invalid parameter \"query\": the expression has more than %d operators", maxOperators)
		}
	}
}
