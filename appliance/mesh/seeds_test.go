package mesh

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
)

// nameServer is a real DNS server on the loopback, whose records tests change.
type nameServer struct {
	address string

	mu      sync.Mutex
	records []string // lines of a zone file
	dead    bool     // answers nothing
}

func startNameServer(t *testing.T, records ...string) *nameServer {
	t.Helper()
	n := &nameServer{records: records}
	var conn net.PacketConn
	var listener net.Listener
	for range 50 { // A port that is free for UDP may be in use for TCP.
		var err error
		conn, err = net.ListenPacket("udp", "127.0.0.1:0")
		require.NoError(t, err)
		if listener, err = net.Listen("tcp", conn.LocalAddr().String()); err == nil { // Large answers come by TCP.
			break
		}
		require.NoError(t, conn.Close())
	}
	require.NotNil(t, listener)
	n.address = conn.LocalAddr().String()
	for _, s := range []*dns.Server{{PacketConn: conn, Handler: n}, {Listener: listener, Handler: n}} {
		started, done := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(started) }
		go func() { done <- s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			require.NoError(t, s.Shutdown())
			require.NoError(t, <-done)
		})
	}
	return n
}

func (n *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dead {
		return
	}
	m := new(dns.Msg)
	m.SetReply(q)
	known := false
	for _, line := range n.records {
		rr, err := dns.NewRR(line)
		if err != nil {
			panic(err) // A mistake in a test's own records.
		}
		if !strings.EqualFold(rr.Header().Name, q.Question[0].Name) {
			continue
		}
		known = true
		if rr.Header().Rrtype == q.Question[0].Qtype {
			m.Answer = append(m.Answer, rr)
		}
	}
	if !known {
		m.Rcode = dns.RcodeNameError
	}
	if _, udp := w.LocalAddr().(*net.UDPAddr); udp {
		m.Truncate(dns.MinMsgSize)
	}
	_ = w.WriteMsg(m) // The one who asked sees that it failed.
}

func (n *nameServer) set(dead bool, records ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dead, n.records = dead, records
}

func (n *nameServer) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, n.address)
		if err == nil {
			// The library reads on for 5 s after a lookup was given up; no test is to leave that behind.
			context.AfterFunc(ctx, func() { conn.Close() })
		}
		return conn, err
	}}
}

func TestSeeds(t *testing.T) {
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("many.test. A 10.9.0.%d", i+1))
	}
	n := startNameServer(t, append(many,
		"a.test. A 10.0.0.2",
		"a.test. A 10.0.0.1",
		"a.test. AAAA 2001:db8::1",
		"six.test. AAAA 2001:db8::6",
		"odd.test. A 0.0.0.0",
		"odd.test. A 224.0.0.1",
		"half.test. A 0.0.0.0",
		"half.test. A 10.0.0.9",
		"_t._tcp.test. SRV 10 10 7001 a.test.",
		"_t._tcp.test. SRV 20 10 7002 six.test.",
		"_half._tcp.test. SRV 10 10 7001 six.test.",
		"_half._tcp.test. SRV 10 10 7001 none.test.",
		"_none._tcp.test. SRV 0 0 0 .",
	)...)
	for name, c := range map[string]struct {
		peers, want, errs []string
	}{
		"nothing":         {nil, nil, nil},
		"addresses":       {[]string{"10.0.0.1", "10.0.0.1:1", "2001:db8::1", "[2001:db8::1]:1"}, []string{"10.0.0.1:9000", "10.0.0.1:1", "[2001:db8::1]:9000", "[2001:db8::1]:1"}, nil},
		"name":            {[]string{"a.test"}, []string{"10.0.0.1:9000", "10.0.0.2:9000", "[2001:db8::1]:9000"}, nil},
		"name with port":  {[]string{"a.test:1"}, []string{"10.0.0.1:1", "10.0.0.2:1", "[2001:db8::1]:1"}, nil},
		"dns+":            {[]string{"dns+a.test", "dns+six.test:1"}, []string{"10.0.0.1:9000", "10.0.0.2:9000", "[2001:db8::1]:9000", "[2001:db8::6]:1"}, nil},
		"IPv6 only":       {[]string{"six.test"}, []string{"[2001:db8::6]:9000"}, nil},
		"dnssrv+":         {[]string{"dnssrv+_t._tcp.test"}, []string{"10.0.0.1:7001", "10.0.0.2:7001", "[2001:db8::1]:7001", "[2001:db8::6]:7002"}, nil},
		"each once":       {[]string{"a.test", "10.0.0.1", "A.test."}, []string{"10.0.0.1:9000", "10.0.0.2:9000", "[2001:db8::1]:9000"}, nil},
		"order of peers":  {[]string{"10.0.0.7", "six.test", "10.0.0.6"}, []string{"10.0.0.7:9000", "[2001:db8::6]:9000", "10.0.0.6:9000"}, nil},
		"one is unknown":  {[]string{"none.test", "10.0.0.1"}, []string{"10.0.0.1:9000"}, []string{`find peer "none.test"`}},
		"all are unknown": {[]string{"none.test", "dnssrv+_no._tcp.test"}, nil, []string{`"none.test"`, `"dnssrv+_no._tcp.test"`}},
		"half of records": {[]string{"dnssrv+_half._tcp.test"}, []string{"[2001:db8::6]:7001"}, []string{"none.test"}},
		"no such service": {[]string{"dnssrv+_none._tcp.test"}, nil, []string{"_none._tcp.test"}},
		"unusable":        {[]string{"odd.test"}, nil, []string{"no address that can be connected to"}},
		"half usable":     {[]string{"half.test"}, []string{"10.0.0.9:9000"}, nil},
		"not a peer":      {[]string{"http://a", "10.0.0.1"}, []string{"10.0.0.1:9000"}, []string{`find peer "http://a"`}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := newSeeds(c.peers, n.resolver(), 9000).resolve(t.Context())
			require.Equal(t, c.want, got)
			if c.errs == nil {
				require.NoError(t, err)
			}
			for _, e := range c.errs {
				require.ErrorContains(t, err, e)
			}
		})
	}

	t.Run("too many", func(t *testing.T) {
		got, err := newSeeds([]string{"10.0.0.1", "many.test", "10.0.0.2"}, n.resolver(), 9000).resolve(t.Context())
		require.ErrorContains(t, err, "more than 64")
		require.Len(t, got, maxSeeds)
		require.Equal(t, "10.0.0.1:9000", got[0])
	})
}

func TestSeedsAreLookedUpAgain(t *testing.T) {
	n := startNameServer(t, "a.test. 3600 A 10.0.0.1")
	s := newSeeds([]string{"a.test"}, n.resolver(), 9000)
	expect := func(want ...string) {
		t.Helper()
		got, err := s.resolve(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	expect("10.0.0.1:9000")
	n.set(false, "a.test. 3600 A 10.0.0.2")
	expect("10.0.0.2:9000")
	peers := []string{"10.0.0.3"}
	s.set(peers)
	peers[0] = "10.0.0.4" // Whoever gave the list may go on using it.
	expect("10.0.0.3:9000")
}

// TestSeedsWithDeadDNS finds what needs no name server, within the time that it is given.
func TestSeedsWithDeadDNS(t *testing.T) {
	n := startNameServer(t)
	n.set(true)
	var names []string
	for i := range 10 {
		names = append(names, fmt.Sprintf("a%d.test", i), fmt.Sprintf("dnssrv+_t%d._tcp.test", i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	start := time.Now()
	got, err := newSeeds(append(names, "10.0.0.1"), n.resolver(), 9000).resolve(ctx)
	require.Less(t, time.Since(start), lookupTimeout)
	require.Equal(t, []string{"10.0.0.1:9000"}, got)
	require.ErrorContains(t, err, "a9.test")
}
