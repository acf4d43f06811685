package web

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
)

// selfListener has connections that this process makes to itself. They are
// taken by the same server as all others, and need no room among those of
// clients: a door that is full of them is not a door that hangs.
type selfListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newSelfListener() *selfListener {
	return &selfListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *selfListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *selfListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *selfListener) Addr() net.Addr { return selfAddr{} }

func (l *selfListener) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

type selfAddr struct{}

func (selfAddr) Network() string { return "pipe" }
func (selfAddr) String() string  { return "self" }

// Alive asks this process's own server whether it is healthy, over a
// connection of its own, and says what came instead of an answer.
func (w *Web) Alive(ctx context.Context) error {
	t := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return w.self.dial(ctx) },
		DisableKeepAlives: true,
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://self"+w.prefix+"/-/healthy", nil)
	if err != nil {
		return fmt.Errorf("ask the HTTP door whether it is healthy: %w", err)
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("the HTTP door does not answer: %w", err)
	}
	defer func() { _ = resp.Body.Close() }() // All was read, or the pipe has broken.
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return fmt.Errorf("the HTTP door does not answer whole: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the HTTP door answers %s to /-/healthy", resp.Status)
	}
	return nil
}
