package web

import (
	"net"
	"sync"
	"time"
)

// stallPiece is how much a client must read within the stall time: the limit is
// on standing still, not on being slow.
const stallPiece = 64 << 10

// stallListener cuts clients that stop reading. Without it one of them holds a
// handler, and with it possibly a querier of the database, for ever.
type stallListener struct {
	net.Listener
	after time.Duration
}

func (l stallListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &stallConn{Conn: c, after: l.after}, nil
}

type stallConn struct {
	net.Conn
	after time.Duration

	mtx   sync.Mutex
	limit time.Time // set by a handler for the whole answer; zero = none
}

// SetWriteDeadline is how a handler bounds its whole answer.
func (c *stallConn) SetWriteDeadline(t time.Time) error {
	c.mtx.Lock()
	c.limit = t
	c.mtx.Unlock()
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline sets both directions, as net.Conn says.
func (c *stallConn) SetDeadline(t time.Time) error {
	if err := c.SetWriteDeadline(t); err != nil {
		return err
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *stallConn) Write(p []byte) (n int, err error) {
	for {
		piece := p[n:min(n+stallPiece, len(p))]
		if err := c.Conn.SetWriteDeadline(c.deadline()); err != nil {
			return n, err
		}
		m, err := c.Conn.Write(piece)
		n += m
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

func (c *stallConn) deadline() time.Time {
	c.mtx.Lock()
	defer c.mtx.Unlock()
	d := time.Now().Add(c.after)
	if !c.limit.IsZero() && c.limit.Before(d) {
		return c.limit
	}
	return d
}
