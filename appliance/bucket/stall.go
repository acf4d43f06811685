package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// stalled is how long a server may neither take nor send a byte. objstore bounds only the wait for a response's headers, by the
// same time: a server that takes no more of an upload, or stops within a response, would hold the request for ever.
const stalled = 2 * time.Minute

// stallGuard ends requests whose server makes no progress. What we take our time for does not count.
type stallGuard struct {
	next  http.RoundTripper
	limit time.Duration
}

// guardStalls puts a stallGuard around a transport. A longer response_header_timeout is meant.
func guardStalls(rt http.RoundTripper) http.RoundTripper {
	g := stallGuard{rt, stalled}
	if t, ok := rt.(*http.Transport); ok {
		g.limit = max(g.limit, t.ResponseHeaderTimeout)
	}
	return g
}

// stallError says that a server stood still. It is a timeout, for those who try again after one.
type stallError struct{ limit time.Duration }

// Error implements error.
func (e stallError) Error() string {
	return fmt.Sprintf("the server neither took nor sent anything for %s", e.limit)
}

// Timeout implements net.Error.
func (stallError) Timeout() bool { return true }

// Temporary implements net.Error.
func (stallError) Temporary() bool { return true }

// RoundTrip implements http.RoundTripper.
func (g stallGuard) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	w := &watch{limit: g.limit, ctx: ctx, cancel: cancel}
	sent := r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		sent.Body = requestBody{r.Body, w}
	}
	w.arm()
	resp, err := g.next.RoundTrip(sent)
	w.answered()
	if err != nil {
		err = w.cause(err)
		w.end()
		return nil, err
	}
	resp.Body = responseBody{resp.Body, w}
	return resp, nil
}

// watch cancels a request when its server has stood still for limit.
type watch struct {
	limit  time.Duration
	ctx    context.Context
	cancel context.CancelCauseFunc

	mtx sync.Mutex
	// timer runs while we wait for the server; nil while it waits for us.
	timer *time.Timer
	// response says that the headers are there: what is still sent no longer counts.
	response bool
}

func (w *watch) arm() {
	w.timer = time.AfterFunc(w.limit, func() { w.cancel(stallError{w.limit}) })
}

func (w *watch) disarm() {
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
}

// answered says that RoundTrip is over.
func (w *watch) answered() {
	w.mtx.Lock()
	defer w.mtx.Unlock()
	w.disarm()
	w.response = true
}

// waiting says whether the server is waited for, in the part of the exchange that response names.
func (w *watch) waiting(response, waiting bool) {
	w.mtx.Lock()
	defer w.mtx.Unlock()
	if w.response != response {
		return
	}
	w.disarm()
	if waiting {
		w.arm()
	}
}

func (w *watch) end() {
	w.waiting(true, false)
	w.cancel(nil)
}

// cause gives the stall that an error came of, or the error.
func (w *watch) cause(err error) error {
	var s stallError
	if errors.As(context.Cause(w.ctx), &s) {
		return s
	}
	return err
}

// requestBody is what we send. While it is read, the server waits for us.
type requestBody struct {
	io.ReadCloser
	w *watch
}

// Read implements io.Reader.
func (b requestBody) Read(p []byte) (int, error) {
	b.w.waiting(false, false)
	defer b.w.waiting(false, true)
	return b.ReadCloser.Read(p)
}

// responseBody is what the server sends. While it is read, we wait for the server.
type responseBody struct {
	io.ReadCloser
	w *watch
}

// Read implements io.Reader.
func (b responseBody) Read(p []byte) (int, error) {
	b.w.waiting(true, true)
	n, err := b.ReadCloser.Read(p)
	if err == nil {
		b.w.waiting(true, false)
		return n, nil
	}
	if !errors.Is(err, io.EOF) {
		err = b.w.cause(err)
	}
	b.w.end()
	return n, err
}

// Close implements io.Closer.
func (b responseBody) Close() error {
	err := b.ReadCloser.Close()
	b.w.end()
	return err
}
