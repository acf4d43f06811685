package e2e

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"
)

// TestGarbageAtThePorts throws at the ports of the mesh what scanners and broken peers do, with and without a key:
// nothing is answered that helps, nothing ends, nothing grows, and alerts go their way meanwhile.
func TestGarbageAtThePorts(t *testing.T) {
	t.Parallel()
	for _, keyless := range []bool{false, true} {
		t.Run(fmt.Sprintf("keyless=%v", keyless), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{keyless: keyless})
			c.up()
			before := map[string]int64{}
			for name, r := range c.replicas {
				size, err := r.residentBytes()
				if err != nil {
					t.Fatal(err)
				}
				before[name] = size
			}
			lamp := group{"Lamp", "1"}
			tl := c.timeline()
			for i := range 5 {
				tl.at(time.Duration(i)*time.Second, "garbage", func() {
					for _, name := range c.options.names {
						throwGarbage(t, c.replicas[name].host)
					}
				})
			}
			tl.at(2*time.Second, "light a lamp", func() { c.light(lamp.n) })
			tl.between(2*time.Second, 20*time.Second, "a notification", c.hook.exactly(1, lamp, "firing"))
			tl.always(0, 20*time.Second, "once", c.hook.atMost(1, lamp, "firing"))
			tl.always(0, 20*time.Second, "one mesh", c.whole)
			tl.run()
			for name, r := range c.replicas {
				r.alive()
				size, err := r.residentBytes()
				if err != nil {
					t.Fatal(err)
				}
				if size > before[name]+256<<20 {
					t.Errorf("%s has grown from %d to %d MiB", name, before[name]>>20, size>>20)
				}
			}
		})
	}
}

// throwGarbage sends datagrams and streams of every kind.
func throwGarbage(t *testing.T, host string) {
	t.Helper()
	random := rand.NewChaCha8([32]byte{})
	udp, err := net.Dial("udp", host+":9094")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for i := range 200 {
		b := make([]byte, 1+i*7)
		if _, err := random.Read(b); err != nil {
			t.Fatal(err)
		}
		b[0] = byte(i) // every kind of message
		if _, err := udp.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	huge := binary.BigEndian.AppendUint32([]byte{10}, 1<<31) // an encrypted stream of 2 GiB
	for _, opening := range [][]byte{
		nil, huge, {6}, {9, 255}, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), append([]byte{6}, make([]byte, 64<<10)...),
	} {
		for _, port := range []string{":9094", ":10901"} {
			conn, err := net.DialTimeout("tcp", host+port, 2*time.Second)
			if err != nil {
				// Without a key, nothing is served there.
				continue
			}
			if err := conn.SetDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			// Either side may close: what matters is what the replica does afterwards.
			_, _ = conn.Write(opening)
			_, _ = io.CopyN(io.Discard, conn, 1<<20)
			conn.Close()
		}
	}
	strangerCall(t, host)
}

// strangerCall opens the port between replicas as somebody without the key: it must get no further than the handshake.
func strangerCall(t *testing.T, host string) {
	t.Helper()
	d := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: 2 * time.Second},
		Config:    &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}},
	}
	conn, err := d.Dial("tcp", host+":10901")
	if err != nil {
		return
	}
	defer conn.Close()
	// In TLS 1.3 the client's side is done before the server has looked at its certificate.
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	n, err := conn.Read(make([]byte, 1024))
	if n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s talks to somebody without the key: %d bytes, %v", host, n, err)
	}
}
