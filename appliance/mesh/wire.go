package mesh

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// streamTimeout bounds each step of a stream: sending a state, receiving one.
	streamTimeout = 5 * time.Second
	// dialTimeout bounds a connect. It is short because an address that does not answer is tried again soon.
	dialTimeout = 3 * time.Second
	// maxStreams and maxStreamsFromOne bound the streams that are read at once, so that one sender that never
	// finishes does not keep the others out.
	maxGossipStreams        = 64
	maxGossipStreamsFromOne = 24
	// maxHeld bounds the bytes of all streams that are being read.
	maxHeld = 256 << 20
	// socketBuffer is what the kernel may queue of packets, in bytes.
	socketBuffer = 2 << 20
)

var (
	errNotOpen = errors.New("the mesh does not run")
	errCut     = errors.New("cut off")
)

// wire carries memberlist's packets and streams over UDP and TCP, and has the guard look at what arrives. Before open
// nobody gets an answer.
type wire struct {
	guard     *guard
	refusals  *refusals
	advertise netip.AddrPort // Set before memberlist is started.
	port      int

	tcp *net.TCPListener
	udp *net.UDPConn

	packets chan *memberlist.Packet
	streams chan net.Conn
	opened  atomic.Bool
	done    chan struct{}
	once    sync.Once
	jobs    sync.WaitGroup

	held atomic.Int64
	mu   sync.Mutex
	busy map[net.Conn]string // Streams that others opened, with the host they come from.
	from map[string]int
	out  map[net.Conn]bool // Streams that we opened.
	ctx  context.Context   // Ends with the wire; dials heed it.
	end  context.CancelFunc

	// cut says whether to have nothing to do with a host and port. Tests part a mesh with it.
	cut atomic.Pointer[func(remote string) bool]
}

// newWire binds both sockets, at the same port.
func newWire(listen string, g *guard, r *refusals) (*wire, error) {
	host, portText, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, fmt.Errorf("read the mesh's listen address %q: %w", listen, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("read the mesh's listen address %q: the port is not a number up to 65535", listen)
	}
	w := &wire{
		guard:    g,
		refusals: r,
		packets:  make(chan *memberlist.Packet),
		streams:  make(chan net.Conn),
		done:     make(chan struct{}),
		busy:     map[net.Conn]string{},
		from:     map[string]int{},
		out:      map[net.Conn]bool{},
	}
	w.ctx, w.end = context.WithCancel(context.Background())
	// With port 0 the kernel picks one that is free for TCP; for UDP somebody else may have it.
	for try := 0; ; try++ {
		err = w.bind(host, int(port))
		if err == nil {
			break
		}
		if port != 0 || try == 9 {
			w.end()
			return nil, fmt.Errorf("listen for the mesh on %s: %w", listen, err)
		}
	}
	// The kernel may allow less; then less is queued.
	_ = w.udp.SetReadBuffer(socketBuffer)
	w.jobs.Go(w.accept)
	w.jobs.Go(w.receive)
	return w, nil
}

func (w *wire) bind(host string, port int) error {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return errors.Join(errors.New("the listener is not one of TCP"), l.Close())
	}
	bound := l.Addr().(*net.TCPAddr)
	// The same address for both, also if host is a name with several.
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: bound.IP, Port: bound.Port, Zone: bound.Zone})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	w.tcp, w.udp, w.port = tcp, udp, bound.Port
	return nil
}

// open lets traffic in.
func (w *wire) open() { w.opened.Store(true) }

func (w *wire) isCut(remote string) bool {
	cut := w.cut.Load()
	return cut != nil && (*cut)(remote)
}

// receive hands on the packets that the guard lets through.
func (w *wire) receive() {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := w.udp.ReadFromUDPAddrPort(buf)
		at := time.Now()
		if err != nil {
			if w.stopping() {
				return
			}
			// An unreachable peer of an earlier packet, told by the kernel. Should the socket be broken, this must not spin.
			if !w.pause(10 * time.Millisecond) {
				return
			}
			continue
		}
		if !w.opened.Load() || w.isCut(from.String()) {
			continue
		}
		if err := w.guard.packet(buf[:n]); err != nil {
			w.note(from.String(), err)
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: net.UDPAddrFromAddrPort(from), Timestamp: at}
		select {
		case w.packets <- p:
		case <-w.done:
			return
		}
	}
}

// note counts what the guard refused.
func (w *wire) note(remote string, err error) {
	var r *refusal
	if errors.As(err, &r) {
		w.refusals.note(remote, r)
	}
}

func (w *wire) accept() {
	for {
		conn, err := w.tcp.Accept()
		if err != nil {
			if w.stopping() || !w.pause(50*time.Millisecond) {
				return
			}
			continue // Out of descriptors, as a rule.
		}
		remote := conn.RemoteAddr().String()
		if !w.opened.Load() || w.isCut(remote) {
			_ = conn.Close()
			continue
		}
		if !w.enter(conn) {
			w.refusals.note(remote, reject(reasonBusy, "too many streams are open"))
			_ = conn.Close()
			continue
		}
		w.jobs.Go(func() { w.serve(conn) })
	}
}

// enter takes a place for a stream.
func (w *wire) enter(conn net.Conn) bool {
	host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopping() || len(w.busy) >= maxGossipStreams || w.from[host] >= maxGossipStreamsFromOne {
		return false
	}
	w.busy[conn] = host
	w.from[host]++
	return true
}

func (w *wire) leave(conn net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.out, conn)
	host, ok := w.busy[conn]
	if !ok {
		return
	}
	delete(w.busy, conn)
	if w.from[host]--; w.from[host] <= 0 {
		delete(w.from, host)
	}
}

// serve reads the message of a stream and hands it on.
func (w *wire) serve(conn net.Conn) {
	h := &heldConn{Conn: conn, wire: w, checked: true}
	// It closes the stream, whose place is given back with it.
	deadline := time.Now().Add(streamTimeout)
	if err := conn.SetReadDeadline(deadline); err != nil {
		_ = h.Close()
		return
	}
	if err := h.inspect(true); err != nil {
		_ = h.Close()
		return
	}
	select {
	case w.streams <- h:
	case <-w.done:
		_ = h.Close()
	}
}

// heldConn is a stream whose incoming message is read whole and looked at before the reader gets any of it. Each side
// sends one message on a stream.
type heldConn struct {
	net.Conn
	wire *wire
	// inbound streams are checked before memberlist has them, outbound ones when it reads the answer.
	checked bool
	message []byte
	held    int64
	fault   error
	closed  atomic.Bool
}

// inspect reads the message.
func (h *heldConn) inspect(inbound bool) error {
	c := &cursor{src: bufio.NewReader(h.Conn), limit: maxStream, grow: h.grow}
	err := h.wire.guard.stream(c, inbound)
	if err == nil {
		h.message = c.buf
		return nil
	}
	if len(c.buf) == 0 {
		// Nothing at all is no message: a check of the port, or a peer that stopped.
		var r *refusal
		if errors.As(err, &r) {
			return io.EOF
		}
		return err
	}
	if !h.wire.stopping() && (errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ECONNRESET)) {
		h.wire.note(h.RemoteAddr().String(), reject(reasonIncomplete, "%v: %v", errEnded, err))
		return err
	}
	h.wire.note(h.RemoteAddr().String(), err)
	return err
}

// grow counts what is held in memory of all streams.
func (h *heldConn) grow(n int) error {
	h.held += int64(n)
	if h.wire.held.Add(int64(n)) > maxHeld {
		return reject(reasonBusy, "too much arrives at once")
	}
	return nil
}

func (h *heldConn) Read(b []byte) (int, error) {
	if !h.checked {
		h.checked = true
		h.fault = h.inspect(false)
	}
	if h.fault != nil {
		return 0, h.fault
	}
	if len(h.message) > 0 {
		n := copy(b, h.message)
		h.message = h.message[n:]
		return n, nil
	}
	return h.Conn.Read(b)
}

// Close is called by one goroutine at a time, as a rule more than once.
func (h *heldConn) Close() error {
	if h.closed.Swap(true) {
		return nil
	}
	h.wire.held.Add(-h.held)
	h.wire.leave(h.Conn)
	return h.Conn.Close()
}

// FinalAdvertiseAddr tells memberlist the address that the others reach us at.
func (w *wire) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return w.advertise.Addr().AsSlice(), int(w.advertise.Port()), nil
}

// WriteTo sends a packet.
func (w *wire) WriteTo(b []byte, addr string) (time.Time, error) {
	// A name would be looked up here, and packets of others say where an answer should go.
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("send a packet: %w", err)
	}
	if w.isCut(addr) {
		return time.Now(), nil
	}
	if _, err := w.udp.WriteToUDPAddrPort(b, to); err != nil {
		return time.Time{}, err
	}
	return time.Now(), nil
}

// WriteToAddress sends a packet.
func (w *wire) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return w.WriteTo(b, a.Addr)
}

// PacketCh gives memberlist the packets.
func (w *wire) PacketCh() <-chan *memberlist.Packet { return w.packets }

// StreamCh gives memberlist the streams.
func (w *wire) StreamCh() <-chan net.Conn { return w.streams }

// DialTimeout opens a stream.
func (w *wire) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	if w.isCut(addr) {
		return nil, fmt.Errorf("connect to %s: %w", addr, errCut)
	}
	d := net.Dialer{Timeout: min(timeout, dialTimeout)}
	conn, err := d.DialContext(w.ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopping() {
		return nil, errors.Join(errNotOpen, conn.Close())
	}
	w.out[conn] = true
	return &heldConn{Conn: conn, wire: w}, nil
}

// DialAddressTimeout opens a stream.
func (w *wire) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return w.DialTimeout(a.Addr, timeout)
}

func (w *wire) stopping() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// pause waits; it is false if the wire was closed meanwhile.
func (w *wire) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.done:
		return false
	}
}

// Shutdown closes the sockets and the streams that are being read. It is idempotent.
func (w *wire) Shutdown() error {
	var err error
	w.once.Do(func() {
		w.mu.Lock()
		close(w.done)
		w.end()
		for conn := range w.busy {
			_ = conn.Close() // Whoever reads from it gets the error.
		}
		for conn := range w.out {
			_ = conn.Close()
		}
		w.mu.Unlock()
		err = errors.Join(w.tcp.Close(), w.udp.Close())
	})
	w.jobs.Wait()
	return err
}
