package mesh

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// gate bounds the handshakes that go on, and counts and logs those that fail.
type gate struct {
	logger *slog.Logger
	counts *prometheus.CounterVec
	quiet  limiter

	mu     sync.Mutex
	shut   bool
	inside map[net.Conn]bool
	from   map[netip.Addr]int
}

func newGate(logger *slog.Logger, f promauto.Factory) *gate {
	g := &gate{
		logger: logger,
		counts: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_mesh_rpc_refused_total",
			Help: "gRPC connections between replicas that failed to authenticate, accepted or dialed: plain (no TLS), certificate (none of ours), cluster (another cluster), key (no key that is accepted), member (not who was called), timeout, busy (too many at once), closed (by the other end, without a word), handshake (anything else).",
		}, []string{"reason"}),
		inside: map[net.Conn]bool{},
		from:   map[netip.Addr]int{},
	}
	for _, reason := range refusedReasons {
		g.counts.WithLabelValues(reason)
	}
	return g
}

// enter takes a place for a handshake; it is given back with leave if there was one.
func (g *gate) enter(conn net.Conn) bool {
	ip := ipOf(conn.RemoteAddr())
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut || len(g.inside) >= maxHandshakes || g.from[ip] >= maxHandshakesFromOne {
		return false
	}
	g.inside[conn] = true
	g.from[ip]++
	return true
}

func (g *gate) leave(conn net.Conn) {
	ip := ipOf(conn.RemoteAddr())
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.inside, conn)
	if g.from[ip]--; g.from[ip] <= 0 {
		delete(g.from, ip)
	}
}

// close ends the handshakes that go on, and lets nobody in any more: gRPC's own stop waits for them.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = true
	for conn := range g.inside {
		_ = conn.Close() // Whoever reads from it gets the error.
	}
}

// refused counts a failed handshake and logs it, unless the same was logged a moment ago. member is who was called, ""
// if somebody called us.
func (g *gate) refused(side, member string, remote net.Addr, err error) {
	reason := reasonOf(err)
	g.counts.WithLabelValues(reason).Inc()
	if reason == refusedClosed {
		// Health checks of TCP ports do this all day.
		g.logger.Debug("gRPC connection ended in its handshake", "side", side, "remote", addrString(remote))
		return
	}
	since, ok := g.quiet.allow(reason+" "+ipOf(remote).String()+" "+member, time.Now())
	if !ok {
		return
	}
	if member != "" {
		g.logger.Warn("a replica cannot be reached by gRPC", "member", member, "remote", addrString(remote),
			"reason", reason, "err", err, "not_logged_since", since, eventKey, eventRejected)
		return
	}
	g.logger.Warn("gRPC connection refused", "side", side, "remote", addrString(remote), "reason", reason, "err", err,
		"not_logged_since", since, eventKey, eventRefused)
}

func ipOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

func addrString(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}
