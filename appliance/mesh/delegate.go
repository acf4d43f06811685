package mesh

import (
	"encoding/binary"
	"fmt"
	"net"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist asks and tells. It is called from many goroutines, and about members under memberlist's
// locks: those methods note and return, and never call back.
type delegate struct{ m *Mesh }

var (
	_ memberlist.Delegate         = delegate{}
	_ memberlist.EventDelegate    = delegate{}
	_ memberlist.AliveDelegate    = delegate{}
	_ memberlist.ConflictDelegate = delegate{}
	_ memberlist.PingDelegate     = delegate{}
	_ memberlist.UniqueBroadcast  = broadcast(nil)
)

// NodeMeta gives our card.
func (d delegate) NodeMeta(int) []byte { return d.m.meta() }

// NotifyMsg takes one change of a state.
func (d delegate) NotifyMsg(b []byte) {
	d.m.metrics.received.WithLabelValues(kindUpdate).Inc()
	d.m.metrics.receivedSize.WithLabelValues(kindUpdate).Add(float64(len(b)))
	d.m.states.mergePart(b)
}

// GetBroadcasts gives the changes of our states that go with the next packet.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	messages := d.m.queue.take(overhead, limit)
	d.m.metrics.sent.WithLabelValues(kindUpdate).Add(float64(len(messages)))
	for _, b := range messages {
		d.m.metrics.sentSize.WithLabelValues(kindUpdate).Add(float64(len(b)))
	}
	return messages
}

// LocalState gives all our states.
func (d delegate) LocalState(bool) []byte {
	b := d.m.states.full()
	d.m.metrics.sent.WithLabelValues(kindFullState).Inc()
	d.m.metrics.sentSize.WithLabelValues(kindFullState).Add(float64(len(b)))
	return b
}

// MergeRemoteState takes all states of another member.
func (d delegate) MergeRemoteState(b []byte, _ bool) {
	d.m.metrics.received.WithLabelValues(kindFullState).Inc()
	d.m.metrics.receivedSize.WithLabelValues(kindFullState).Add(float64(len(b)))
	d.m.states.mergeFull(b)
	d.m.merged.Store(true)
}

// NotifyAlive says whether a member may be one. What it lets in, memberlist spreads.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	if why := d.m.admit(n); why != nil {
		// The address is what the member says of itself; who passed it on is not known here.
		d.m.refusals.note(net.JoinHostPort(n.Addr.String(), strconv.Itoa(int(n.Port))), why)
		return fmt.Errorf("not admitted: %w", why)
	}
	if d.m.table.knows(n.Name) { // Not every one that is let in becomes a member, and a label is kept.
		d.m.metrics.alive.WithLabelValues(n.Name).Inc()
	}
	return nil
}

// admit checks a member that somebody told us of.
func (m *Mesh) admit(n *memberlist.Node) *refusal {
	switch {
	case n.Name == "" || len(n.Name) > maxNameBytes || !utf8.ValidString(n.Name),
		n.Name != Printable(n.Name, maxNameBytes):
		return reject(reasonMember, "a member has a name that cannot be")
	case !usable(n.Addr, n.Port):
		return reject(reasonMember, "member %q has an address that cannot be", n.Name)
	case n.PMin > memberlist.ProtocolVersion2Compatible || n.PMax < memberlist.ProtocolVersion2Compatible ||
		n.PCur < n.PMin || n.PCur > n.PMax || n.DMin != 0:
		// memberlist would let one such member end all exchange of state.
		return reject(reasonVersion, "member %q speaks a version of the protocol that this one does not", n.Name)
	}
	card, err := decodeCard(n.Meta)
	switch {
	case err != nil:
		return reject(reasonMalformed, "member %q has a card that is malformed", n.Name)
	case card.Cluster == "" && m.keyed:
		return reject(reasonMember, "member %q has no card", n.Name)
	case card.Cluster != "" && card.Cluster != m.cluster:
		why := fmt.Sprintf("member %q belongs to another cluster", n.Name)
		return &refusal{reason: reasonCluster, why: why, cluster: card.Cluster}
	case !m.table.admits(n.Name):
		return reject(reasonMember, "there are %d members already", maxMembers)
	}
	return nil
}

// NotifyJoin is told when a member joins.
func (d delegate) NotifyJoin(n *memberlist.Node) { d.m.table.alive(n, time.Now()) }

// NotifyUpdate is told when a member has a new card.
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.m.table.alive(n, time.Now()) }

// NotifyLeave is told when a member leaves or is found dead.
func (d delegate) NotifyLeave(n *memberlist.Node) { d.m.table.gone(n, time.Now()) }

// NotifyConflict is told when one name has two addresses.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.m.metrics.upstreamConflicts.Inc()
	d.m.conflicts.note(existing, other, existing.Name == d.m.name, time.Now())
}

// AckPayload sends our clock with the answer to a ping.
func (d delegate) AckPayload() []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))
}

// NotifyPingComplete is told of the answer to a ping. A stock Alertmanager's has no payload.
func (d delegate) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, payload []byte) {
	now := time.Now()
	d.m.metrics.pings.WithLabelValues(n.Name).Observe(rtt.Seconds())
	d.m.metrics.rtt.WithLabelValues(n.Name).Set(rtt.Seconds())
	var theirs time.Time
	if len(payload) == 8 {
		theirs = time.Unix(0, int64(binary.BigEndian.Uint64(payload)))
	}
	if p := d.m.table.ponged(n.Name, rtt, theirs, now); p.known {
		d.m.metrics.skew.WithLabelValues(n.Name).Set(p.skew.Seconds())
		d.m.compareClock(n.Name, p.skew, p.wasOff, p.off)
	}
}

// broadcast is a change that goes round. None replaces another: they are merged where they arrive.
type broadcast []byte

// Invalidates says that no change replaces another.
func (broadcast) Invalidates(memberlist.Broadcast) bool { return false }

// UniqueBroadcast says the same before memberlist has compared it with every change that waits.
func (broadcast) UniqueBroadcast() {}

// Message is what is sent.
func (b broadcast) Message() []byte { return b }

// Finished is told when it was sent often enough.
func (broadcast) Finished() {}
