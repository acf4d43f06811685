package drain

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// one is a listener with one connection.
type one struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *one) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *one) Close() error   { close(l.closed); return nil }
func (l *one) Addr() net.Addr { return &net.UnixAddr{Name: "one"} }

// TestNotReading holds that a client which takes no answer has no claim, for which the other replicas would wait.
func TestNotReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, "a", "b", "c")
		a := w.replicas["a"].drain
		w.replicas["c"].stop()
		ours, theirs := net.Pipe()
		l := &one{make(chan net.Conn, 1), make(chan struct{})}
		l.conns <- theirs
		server := &http.Server{Handler: a.Handler()}
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(l) }()
		if _, err := io.WriteString(ours, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := a.State(); got.State != StateWaiting {
			t.Fatalf("nobody waits: %+v", got)
		}
		pass(2 * time.Minute)
		if got := a.State(); got.State != StateNone {
			t.Errorf("the claim of a client that does not read is still there: %+v", got)
		}
		_ = ours.Close()   // A pipe has no error.
		_ = server.Close() // Nor has its listener.
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// TestReleased holds that giving the turn back ends a call that waits for it.
func TestReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, "a", "b", "c")
		a := w.replicas["a"].drain
		w.replicas["c"].stop()
		ended := make(chan error, 1)
		go func() { ended <- (&words{}).claim(t.Context(), a, false) }()
		pass(10 * time.Second)
		a.Release()
		pass(10 * time.Second)
		select {
		case err := <-ended:
			if err == nil || !strings.Contains(err.Error(), "given this replica's turn back") {
				t.Errorf("it ended with %v", err)
			}
		default:
			t.Error("it waits on")
		}
		if got := a.State(); got.State != StateNone {
			t.Errorf("the claim is still there: %+v", got)
		}
	})
}
