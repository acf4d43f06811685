package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// faultSwitch carries Ethernet frames between its ports, with faults for each pair of ports in each direction.
type faultSwitch struct {
	names map[string]int
	ports []*os.File
	links [][]*wire // from, to
	wg    sync.WaitGroup
}

// wire is one direction between two ports. It keeps the order of the frames, whatever the delay of each.
type wire struct {
	to      *os.File
	frames  chan frame
	fault   atomic.Pointer[fault]
	carried atomic.Int64
	dropped atomic.Int64
}

type frame struct {
	due  time.Time
	data []byte
}

type fault struct {
	cut           bool
	delay, jitter time.Duration
	loss          float64 // of 1
}

const (
	maxFrame = 2048
	maxQueue = 4096 // frames on their way on one wire
)

func newFaultSwitch(t *testing.T, zones []*zone, taps map[string]*os.File) *faultSwitch {
	t.Helper()
	s := &faultSwitch{names: map[string]int{}, ports: make([]*os.File, len(zones))}
	for _, z := range zones {
		s.names[z.name], s.ports[z.port] = z.port, taps[z.name]
	}
	for from := range s.ports {
		s.links = append(s.links, make([]*wire, len(s.ports)))
		for to := range s.ports {
			w := &wire{to: s.ports[to], frames: make(chan frame, maxQueue)}
			w.fault.Store(&fault{})
			s.links[from][to] = w
			s.wg.Go(w.carry)
		}
	}
	var readers sync.WaitGroup
	for from := range s.ports {
		readers.Go(func() { s.read(from) })
	}
	t.Cleanup(func() {
		for _, p := range s.ports {
			p.Close()
		}
		readers.Wait()
		for _, row := range s.links {
			for _, w := range row {
				close(w.frames)
			}
		}
		s.wg.Wait()
	})
	return s
}

// read takes the frames of one port until it is closed.
func (s *faultSwitch) read(from int) {
	buf := make([]byte, maxFrame)
	for {
		n, err := s.ports[from].Read(buf)
		if err != nil {
			return
		}
		if n < 14 {
			continue
		}
		data := append([]byte(nil), buf[:n]...)
		if data[0]&1 == 0 { // to one
			if to := int(data[5]); to < len(s.ports) {
				s.links[from][to].take(data)
			}
			continue
		}
		for to, w := range s.links[from] {
			if to != from {
				w.take(data)
			}
		}
	}
}

func (w *wire) take(data []byte) {
	f := w.fault.Load()
	if f.cut || f.loss > 0 && rand.Float64() < f.loss {
		w.dropped.Add(1)
		return
	}
	delay := f.delay
	if f.jitter > 0 {
		delay += rand.N(f.jitter)
	}
	select {
	case w.frames <- frame{time.Now().Add(delay), data}:
	default:
		w.dropped.Add(1)
	}
}

func (w *wire) carry() {
	for f := range w.frames {
		if wait := time.Until(f.due); wait > 0 {
			time.Sleep(wait) // The delay that the way is to have; nothing is waited for.
		}
		if w.fault.Load().cut { // on the way
			w.dropped.Add(1)
			continue
		}
		// An interface that is down or gone loses frames, as it should.
		if _, err := w.to.Write(f.data); err == nil {
			w.carried.Add(1)
		}
	}
}

func (s *faultSwitch) change(from, to string, edit func(*fault)) {
	w := s.links[s.names[from]][s.names[to]]
	f := *w.fault.Load()
	edit(&f)
	w.fault.Store(&f)
}

// cutOneWay drops what from sends to to.
func (s *faultSwitch) cutOneWay(from, to string) { s.change(from, to, func(f *fault) { f.cut = true }) }

// cut drops everything between the two.
func (s *faultSwitch) cut(a, b string) {
	s.cutOneWay(a, b)
	s.cutOneWay(b, a)
}

// mend ends what is wrong between the two.
func (s *faultSwitch) mend(a, b string) {
	for _, way := range [][2]string{{a, b}, {b, a}} {
		s.change(way[0], way[1], func(f *fault) { *f = fault{} })
	}
}

// cutOff separates the zone from all the others, and from the core only where that is asked for.
func (s *faultSwitch) cutOff(zone string, alsoCore bool) {
	for other := range s.names {
		if other != zone && (alsoCore || other != coreName) {
			s.cut(zone, other)
		}
	}
}

// worsen delays and loses what from sends to to.
func (s *faultSwitch) worsen(from, to string, delay, jitter time.Duration, loss float64) {
	s.change(from, to, func(f *fault) { f.delay, f.jitter, f.loss = delay, jitter, loss })
}

// healAll ends all faults.
func (s *faultSwitch) healAll() {
	for _, row := range s.links {
		for _, w := range row {
			w.fault.Store(&fault{})
		}
	}
}

// TestSwitch holds the network itself: what the timelines rely on is true, for each direction.
func TestSwitch(t *testing.T) {
	t.Parallel()
	n := newZoneNet(t, "a", "b", "c")
	servers := map[string]*udpEcho{}
	for name, z := range n.zones {
		servers[name] = newUDPEcho(t, z)
	}
	ask := func(from, to string, times int, patience time.Duration) (answers int, longest time.Duration) {
		t.Helper()
		return servers[to].ask(t, n.zones[from], times, patience)
	}
	wantAll := func(when string) {
		t.Helper()
		for _, pair := range [][2]string{{"a", "b"}, {"b", "a"}, {"b", "c"}, {"c", "a"}} {
			if answers, _ := ask(pair[0], pair[1], 10, 2*time.Second); answers != 10 {
				t.Errorf("%s: %s hears from %s %d times of 10", when, pair[0], pair[1], answers)
			}
		}
	}
	wantAll("at first")

	n.worsen("a", "b", 40*time.Millisecond, 0, 0)
	n.worsen("b", "a", 60*time.Millisecond, 20*time.Millisecond, 0)
	if answers, longest := ask("a", "b", 5, 2*time.Second); answers != 5 || longest < 100*time.Millisecond {
		t.Errorf("with 40 ms there and 60 ms back, %d answers of 5 come, the last in %s", answers, longest)
	}
	n.healAll()
	wantAll("without the delay")

	n.worsen("a", "b", 0, 0, 0.5)
	if answers, _ := ask("a", "b", 200, time.Second); answers < 50 || answers > 150 {
		t.Errorf("with a loss of one half, %d answers of 200 come", answers)
	}
	n.healAll()

	// One way only: b gets nothing of a, and c is not touched.
	heard := servers["b"].heard.Load()
	n.cutOneWay("a", "b")
	if answers, _ := ask("a", "b", 3, 200*time.Millisecond); answers != 0 || servers["b"].heard.Load() != heard {
		t.Errorf("what is cut comes through")
	}
	heard = servers["a"].heard.Load()
	if answers, _ := ask("b", "a", 3, 200*time.Millisecond); answers != 0 || servers["a"].heard.Load() != heard+3 {
		t.Errorf("with a to b cut, b must reach a and hear nothing: %d answers, %d heard",
			answers, servers["a"].heard.Load()-heard)
	}
	if answers, _ := ask("a", "c", 3, time.Second); answers != 3 {
		t.Errorf("with a to b cut, c answers a %d times of 3", answers)
	}
	n.healAll()
	wantAll("when healed")

	// Both ways, with TCP, which must live through it; and the core goes on hearing all.
	page := serveIn(t, n.core, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, n.zoneOf(r.RemoteAddr))
	}))
	get := func(from string) (string, error) {
		c := http.Client{
			Timeout:   500 * time.Millisecond,
			Transport: &http.Transport{DialContext: n.zones[from].dial, DisableKeepAlives: true},
		}
		resp, err := c.Get(page.URL)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	n.cutOff("b", false)
	if answers, _ := ask("a", "b", 3, 200*time.Millisecond); answers != 0 {
		t.Error("a zone that is cut off answers")
	}
	if from, err := get("b"); err != nil || from != "b" {
		t.Errorf("a zone that is cut off from the others must reach the core: %q, %v", from, err)
	}
	n.cutOff("b", true)
	if from, err := get("b"); err == nil {
		t.Errorf("a zone that is cut off from all reaches the core as %q", from)
	}
	if from, err := get("a"); err != nil || from != "a" {
		t.Errorf("the other zones must reach the core: %q, %v", from, err)
	}
	n.healAll()
	if from, err := get("b"); err != nil || from != "b" {
		t.Errorf("a zone that is healed must reach the core: %q, %v", from, err)
	}

	// A process is in its zone, and what nobody has never answers.
	dir := workDir(t)
	out, code := toolIn(t, n.zones["c"], dir, "ip", "-o", "-4", "addr", "show", "dev", "eth0")
	if code != 0 {
		t.Errorf("ip ends with %d: %s", code, out)
	}
	contains(t, "the address in the zone", out, n.zones["c"].address)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := n.zones["a"].dial(ctx, "tcp", n.core.sibling(nobody)+":80"); !errors.Is(err, context.DeadlineExceeded) {
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("a packet to nobody must vanish: %v", err)
		}
	}
}

// serveIn is an HTTP server of the tests in a zone, or on the loopback address where there is none.
func serveIn(t *testing.T, z *zone, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	if z != nil {
		s.Listener.Close()
		s.Listener = z.listen(t, 0)
	}
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// udpEcho answers datagrams in a zone.
type udpEcho struct {
	conn  net.PacketConn
	heard atomic.Int64
}

func newUDPEcho(t *testing.T, z *zone) *udpEcho {
	t.Helper()
	e := &udpEcho{}
	err := z.do(func() (err error) {
		e.conn, err = net.ListenPacket("udp", z.address+":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, maxFrame)
		for {
			n, from, err := e.conn.ReadFrom(buf)
			if err != nil {
				return
			}
			e.heard.Add(1)
			if _, err := e.conn.WriteTo(buf[:n], from); err != nil {
				return
			}
		}
	})
	t.Cleanup(func() {
		e.conn.Close()
		wg.Wait()
	})
	return e
}

// ask sends datagrams from a zone and counts the answers until patience ends.
func (e *udpEcho) ask(t *testing.T, from *zone, times int, patience time.Duration) (answers int, last time.Duration) {
	t.Helper()
	conn, err := from.dial(t.Context(), "udp", e.conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	for i := range times {
		if _, err := fmt.Fprintf(conn, "%d", i); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.SetReadDeadline(began.Add(patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, maxFrame)
	for answers < times {
		if _, err := conn.Read(buf); err != nil {
			break
		}
		answers, last = answers+1, time.Since(began)
	}
	return answers, last
}
