package mesh

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// TestStreamsThatEnd has connections end in the middle of a message, as they do when a peer is slow or dies.
func TestStreamsThatEnd(t *testing.T) {
	t.Parallel()
	plain := append([]byte{typePushPull}, packed("Nodes", 1, "UserStateLen", 0)...)
	keyed := append(label("prod"), typeEncrypt, 0, 0, 1, 0, 1, 2, 3)
	for name, c := range map[string]struct {
		keying setting
		sent   []byte
		end    func(*net.TCPConn) error
	}{
		"ended":             {keyings["without a key"], plain, (*net.TCPConn).CloseWrite},
		"ended, encrypted":  {keyings["with a key"], keyed, (*net.TCPConn).CloseWrite},
		"ended in the name": {keyings["with a key"], keyed[:3], (*net.TCPConn).CloseWrite},
		"slow":              {keyings["without a key"], plain[:4], func(*net.TCPConn) error { return nil }},
		"slow, encrypted":   {keyings["with a key"], keyed, func(*net.TCPConn) error { return nil }},
		"reset": {keyings["without a key"], plain, func(conn *net.TCPConn) error {
			if err := conn.SetLinger(0); err != nil {
				return err
			}
			return conn.Close()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := started(t, c.keying)
			if err := a.WaitReady(t.Context()); err != nil { // Before it is open, it hangs up on everybody.
				t.Fatal(err)
			}
			conn, err := net.Dial("tcp", a.address())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write(c.sent); err != nil {
				t.Fatal(err)
			}
			until(t, 10*time.Second, "it is being read", func() bool { return a.wire.held.Load() > 0 })
			if err := c.end(conn.(*net.TCPConn)); err != nil {
				t.Fatal(err)
			}
			until(t, 15*time.Second, "it is counted", func() bool { return a.refused("incomplete") == 1 })
			if n := a.refused(reasonMalformed); n != 0 {
				t.Errorf("%v were called malformed", n)
			}
			log := a.log.String()
			if !strings.Contains(log, "the connection ended in the middle of a message") {
				t.Error("nobody was told")
			}
			for _, accusation := range []string{"refused", "malformed", "level=WARN"} {
				if strings.Contains(log, accusation) {
					t.Errorf("the log says %q", accusation)
				}
			}
		})
	}
	t.Run("a port check", func(t *testing.T) {
		t.Parallel()
		a := started(t)
		if err := a.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		sendStream(t, a.address(), nil)
		for _, reason := range []string{"incomplete", reasonMalformed} {
			if n := a.refused(reason); n != 0 {
				t.Errorf("%v were counted as %s", n, reason)
			}
		}
	})
	t.Run("a packet that is cut off", func(t *testing.T) {
		t.Parallel()
		a := started(t)
		if err := a.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		sendPacket(t, a.address(), []byte{typeAlive, 0x82, 0xa4})
		until(t, 10*time.Second, "it is malformed", func() bool { return a.refused(reasonMalformed) == 1 })
		if n := a.refused("incomplete"); n > 0 {
			t.Errorf("%v packets were called incomplete", n)
		}
	})
	t.Run("an answer", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		a := started(t, withPeers(l.Addr().String()))
		for range 4 {
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(plain); err != nil {
				t.Error(err)
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Error(err)
			}
			_, _ = io.Copy(io.Discard, conn) // Until it has had enough.
			conn.Close()
		}
		until(t, 15*time.Second, "it is counted", func() bool { return a.refused("incomplete") >= 4 })
		if strings.Contains(a.log.String(), "refused this replica") {
			t.Error("the peer is said to have refused this replica")
		}
	})
}
