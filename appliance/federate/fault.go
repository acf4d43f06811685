package federate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
)

// result is how a pull ended, as the label value of tocsin_federation_pulls_total.
type result string

const (
	resultSuccess      result = "success"
	resultPartial      result = "partial" // stored, but for series that collided
	resultUnreachable  result = "unreachable"
	resultTimeout      result = "timeout"
	resultTLS          result = "tls"
	resultUnauthorized result = "unauthorized"
	resultStatus       result = "status"
	resultRedirect     result = "redirect"
	resultContentType  result = "content_type"
	resultBodySize     result = "body_size"
	resultLimit        result = "limit"
	resultMalformed    result = "malformed"
	resultStorage      result = "storage"
)

var allResults = []result{
	resultSuccess, resultPartial, resultUnreachable, resultTimeout, resultTLS, resultUnauthorized, resultStatus,
	resultRedirect, resultContentType, resultBodySize, resultLimit, resultMalformed, resultStorage,
}

// fault is what went wrong with a pull, as a sentence for the targets page. The
// sentence never quotes what the upstream sent beyond the names of listed
// metrics: whatever is not listed must not reach a log or an API either.
type fault struct {
	result   result
	sentence string
	cause    error
}

func (f *fault) Error() string { return f.sentence }
func (f *fault) Unwrap() error { return f.cause }

func faultf(r result, format string, args ...any) *fault {
	return &fault{result: r, sentence: fmt.Sprintf(format, args...)}
}

// redirectError is returned by the redirect policy and comes back wrapped by
// the HTTP client.
type redirectError struct{ to, why string }

func (e *redirectError) Error() string { return "redirect to " + e.to + " refused: " + e.why }

// resultOf is the label value for the end of a pull.
func resultOf(err error) result {
	if err == nil {
		return resultSuccess
	}
	if f, ok := errors.AsType[*fault](err); ok {
		return f.result
	}
	return resultUnreachable
}

// transportFault turns an error of the HTTP client, or of reading the body,
// into a sentence. ctx is the context of the pull.
func (u *upstream) transportFault(ctx context.Context, err error) *fault {
	fail := func(r result, format string, args ...any) *fault {
		f := faultf(r, format, args...)
		f.cause = err
		return f
	}
	if f, ok := errors.AsType[*fault](err); ok {
		return f
	}
	if r, ok := errors.AsType[*redirectError](err); ok {
		return fail(resultRedirect, "%s redirects to %s, which is not followed: %s", u.address, quoteName(r.to), r.why)
	}
	if netErr, ok := errors.AsType[net.Error](err); errors.Is(ctx.Err(), context.DeadlineExceeded) ||
		errors.Is(err, context.DeadlineExceeded) || (ok && netErr.Timeout()) {
		return fail(resultTimeout, "no complete answer within %s", u.cfg.Timeout)
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		if e.IsNotFound {
			return fail(resultUnreachable, "host name %s is not known", quoteName(e.Name))
		}
		return fail(resultUnreachable, "name server gives no answer for %s", quoteName(e.Name))
	}
	if text, ok := tlsSentence(err); ok {
		return fail(resultTLS, "TLS with %s does not come about: %s", u.address, text)
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fail(resultUnreachable, "connection refused by %s", refusedBy(err, u.address))
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return fail(resultUnreachable, "no route to %s", u.address)
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fail(resultUnreachable, "%s broke the connection off before the answer was complete", u.address)
	}
	// The client's own error carries method and URL, user name included.
	if e, ok := errors.AsType[*url.Error](err); ok {
		return fail(resultUnreachable, "no answer from %s: %s", u.address, clip(e.Err.Error(), 200))
	}
	return fail(resultUnreachable, "answer of %s cannot be read: %s", u.address, clip(err.Error(), 200))
}

func tlsSentence(err error) (string, bool) {
	if errors.Is(err, http.ErrSchemeMismatch) {
		return "it speaks plain HTTP", true
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "its certificate is signed by an authority that is not trusted here (tls_config.ca_file)", true
	}
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return "its certificate is not for " + quoteName(e.Host), true
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if e.Reason == x509.Expired {
			return "its certificate has expired or is not valid yet", true
		}
		return "its certificate is not valid", true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "it does not speak TLS", true
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return clip(e.Err.Error(), 200), true
	}
	if e, ok := errors.AsType[tls.AlertError](err); ok {
		return clip(e.Error(), 200), true
	}
	// net/http and crypto/tls have no type for the alerts of the other side.
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return "it refused with " + clip(op.Err.Error(), 200), true
	}
	return "", false
}

// refusedBy names who refused: it may be a proxy and not the upstream.
func refusedBy(err error, address string) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Addr != nil && op.Addr.String() != address {
		return address + " (" + op.Addr.String() + ")"
	}
	return address
}

// statusFault explains an answer that is not 200.
func (u *upstream) statusFault(status int) *fault {
	answered := fmt.Sprintf("%s answers %d %s", u.address, status, http.StatusText(status))
	answered = strings.TrimRight(answered, " ")
	switch {
	case status == http.StatusUnauthorized:
		return faultf(resultUnauthorized, "%s: it wants other credentials", answered)
	case status == http.StatusForbidden:
		return faultf(resultUnauthorized, "%s: these credentials may not read /federate", answered)
	case status == http.StatusProxyAuthRequired:
		return faultf(resultUnauthorized, "%s: the proxy wants other credentials", answered)
	case status >= 300 && status < 400:
		return faultf(resultRedirect, "%s, a redirect that is not followed", answered)
	case status == http.StatusNotFound:
		return faultf(resultStatus, "%s: there is no /federate below the url given", answered)
	case status == http.StatusBadRequest:
		return faultf(resultStatus, "%s: it does not take one of the match selectors", answered)
	case status == http.StatusServiceUnavailable:
		return faultf(resultStatus, "%s: it is not ready", answered)
	}
	return faultf(resultStatus, "%s", answered)
}

// quoteName shows a name that the other side chose: bounded, and on one line.
func quoteName(s string) string {
	c := clip(s, 100)
	for _, r := range c {
		if r != '.' && r != '-' && r != '_' && r != ':' && r != '[' && r != ']' &&
			(r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return strconv.Quote(c)
		}
	}
	return c
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}
