package mesh

import (
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Why traffic is refused: the values of tocsin_mesh_refused_total's label reason.
const (
	reasonCluster   = "cluster"   // It is of another cluster.
	reasonKey       = "key"       // It is encrypted with a key that we do not have.
	reasonPlaintext = "plaintext" // It is not encrypted, and we have a key.
	reasonMalformed = "malformed"
	// The connection ended in the middle of a message. Nobody is to blame: a peer was slow, or died.
	reasonIncomplete = "incomplete"
	reasonSize       = "size"
	reasonVersion    = "version" // It is of a version that we cannot speak with.
	reasonBusy       = "busy"    // Too much at once.
	reasonMember     = "member"  // It names a member with a name or an address that cannot be, or too many.
	reasonState      = "state"   // A state could not be merged.
)

var allReasons = []string{
	reasonCluster, reasonKey, reasonPlaintext, reasonMalformed, reasonIncomplete, reasonSize, reasonVersion, reasonBusy,
	reasonMember, reasonState,
}

// quietFor is how long a warning that was given is not given again.
const quietFor = time.Minute

// maxQuiet bounds the senders that are remembered as warned of.
const maxQuiet = 1024

// limiter lets the first of equal events through at once, and then one a minute with the number of those between.
type limiter struct {
	mu   sync.Mutex
	seen map[string]*heard
}

type heard struct {
	next  time.Time
	since int
}

// allow says whether to tell about an event, and how many equal ones were not told about since the last time.
func (l *limiter) allow(key string, now time.Time) (since int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen == nil {
		l.seen = map[string]*heard{}
	}
	h := l.seen[key]
	if h == nil {
		if len(l.seen) >= maxQuiet {
			for k, old := range l.seen {
				if now.After(old.next) {
					delete(l.seen, k)
				}
			}
		}
		if len(l.seen) >= maxQuiet {
			// Somebody sends from a thousand addresses in a minute: the counter goes on, the log does not.
			return 0, false
		}
		l.seen[key] = &heard{next: now.Add(quietFor)}
		return 0, true
	}
	if now.Before(h.next) {
		h.since++
		return 0, false
	}
	since = h.since
	h.since, h.next = 0, now.Add(quietFor)
	return since, true
}

// refusals counts what is refused and says so, without repeating itself.
type refusals struct {
	logger  *slog.Logger
	counter *prometheus.CounterVec
	quiet   limiter
}

// note counts one refusal. remote is the address of the sender, with or without a port.
func (r *refusals) note(remote string, why *refusal) {
	r.counter.WithLabelValues(why.reason).Inc()
	host := remote
	if h, _, err := net.SplitHostPort(remote); err == nil {
		host = h // The port of a caller changes with each call.
	}
	since, ok := r.quiet.allow(why.reason+" "+host, time.Now())
	if !ok {
		return
	}
	attrs := []any{"remote", remote, "reason", why.reason, "why", why.why}
	if why.cluster != "" {
		attrs = append(attrs, "their_cluster", why.cluster)
	}
	if since > 0 {
		attrs = append(attrs, "more_since_last_time", since)
	}
	if why.reason == reasonIncomplete {
		r.logger.Info("a message of the mesh did not arrive whole", attrs...)
		return
	}
	r.logger.Warn("traffic of the mesh was refused", append(attrs, eventKey, eventRefused)...)
}
