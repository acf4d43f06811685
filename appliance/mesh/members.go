package mesh

import (
	"cmp"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/alertmanager/cluster"
)

// keepDead is how long a member that left or died is still shown: whoever is on call in the morning wants to see what
// happened in the night.
const keepDead = 24 * time.Hour

// skewSamples is how many pings the clock skew is taken from: that with the shortest way tells it best.
const skewSamples = 8

// MaxSkew is how far two clocks may differ before that is worth telling. Samples of two replicas mix badly with less than
// a scrape interval.
const MaxSkew = time.Second

// Member is one replica, or stock Alertmanager, of the mesh.
type Member struct {
	Name string
	// Address is where it gossips, ip:port.
	Address string
	Alive   bool
	Self    bool
	// Left says of a member that is not alive that it was stopped, and did not die.
	Left bool
	Card Card
	// RTT is the time of the last ping, there and back. ClockSkew is how far its clock is ahead of ours. Both are 0 as
	// long as they are not known.
	RTT, ClockSkew time.Duration
	// LastContact is when it last answered us, zero if it never did.
	LastContact time.Time
	// Since is when it joined, or left or died.
	Since time.Time
}

// change is one thing that happened to a member.
type change struct {
	kind   changeKind
	member Member
}

type changeKind int

const (
	joined changeKind = iota
	// back is a member that joins after it left or died.
	back
	gone
	updated
	// restarted is another process at the same address, that came before its forerunner was missed.
	restarted
)

// event is the kind of event that a change is.
func (k changeKind) event(left bool) string {
	switch {
	case k == joined:
		return eventJoined
	case k == back:
		return eventBack
	case k == restarted:
		return eventRestarted
	case left:
		return eventLeft
	default:
		return eventDied
	}
}

// maxChanges bounds the changes that wait for being told.
const maxChanges = 4096

// table is who is there, as far as memberlist has told us. memberlist calls it under its locks, and changes its own
// nodes under them, so that the table keeps copies and never calls back.
type table struct {
	self string

	mu      sync.Mutex
	members map[string]*entry
	changes []change
	// changed has a token while there is something in changes.
	changed chan struct{}
}

type entry struct {
	Member
	node  memberlist.Node
	skews []skewSample
	// off says that its clock was told of as being off.
	off bool
	// leaving is when it said goodbye.
	leaving time.Time
}

type skewSample struct{ rtt, skew time.Duration }

func newTable(self Member) *table {
	t := &table{self: self.Name, members: map[string]*entry{}, changed: make(chan struct{}, 1)}
	self.Self, self.Alive = true, true
	t.members[self.Name] = &entry{Member: self}
	return t
}

// tell queues a change. It is called with the lock held.
func (t *table) tell(kind changeKind, e *entry) {
	if len(t.changes) < maxChanges {
		t.changes = append(t.changes, change{kind, e.Member})
	}
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// take gives the changes since the last time.
func (t *table) take() []change {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.changes
	t.changes = nil
	return c
}

// copyNode copies what memberlist changes under its own lock.
func copyNode(n *memberlist.Node) memberlist.Node {
	c := *n
	c.Addr, c.Meta = slices.Clone(n.Addr), slices.Clone(n.Meta)
	return c
}

// alive notes that a member joined, has a new card, or is another process than before.
func (t *table) alive(n *memberlist.Node, now time.Time) {
	card, err := decodeCard(n.Meta)
	if err != nil {
		card = Card{} // It was let in, so this cannot be; should it be, an empty card does no harm.
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.members[n.Name]
	isNew := e == nil || (!e.Alive && !e.Self)
	kind := joined
	if e != nil {
		kind = back
	}
	if e == nil {
		e = &entry{}
		t.members[n.Name] = e
	}
	isOther := !isNew && !card.Started.IsZero() && !e.Card.Started.IsZero() && !card.Started.Equal(e.Card.Started)
	e.node = copyNode(n)
	e.Name, e.Address, e.Card, e.Alive, e.Left = n.Name, n.Address(), card, true, false
	e.Self = n.Name == t.self
	if e.Self {
		return
	}
	if !isNew && !isOther {
		t.tell(updated, e)
		return
	}
	e.Since, e.RTT, e.ClockSkew, e.skews, e.leaving = now, 0, 0, nil, time.Time{}
	e.off = false
	if isNew {
		t.tell(kind, e)
	} else {
		t.tell(restarted, e)
	}
}

// gone notes that a member left or died.
func (t *table) gone(n *memberlist.Node, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.members[n.Name]
	// We stay a member of our own mesh also while we leave it.
	if e == nil || e.Self || !e.Alive {
		return
	}
	e.Alive, e.Since = false, now
	e.Left = now.Sub(e.leaving) < leaveTimeout+time.Minute
	t.tell(gone, e)
}

// leaving notes that a member says goodbye; memberlist tells a leave and a death alike.
func (t *table) leaving(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.members[name]; e != nil && !e.Self {
		e.leaving = time.Now()
	}
}

// pong is what the answer to a ping says of a member's clock.
type pong struct {
	skew  time.Duration
	known bool
	// wasOff and off say whether its clock was, and is, further off than MaxSkew.
	wasOff, off bool
}

// ponged notes the answer to a ping. theirs is the member's clock, zero if it did not tell.
func (t *table) ponged(name string, rtt time.Duration, theirs, now time.Time) pong {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.members[name]
	if e == nil || e.Self {
		return pong{}
	}
	e.LastContact, e.RTT = now, rtt
	if theirs.IsZero() {
		return pong{}
	}
	// Their clock stood so at half the way, if the ways there and back are equally long.
	e.skews = append(e.skews, skewSample{rtt, theirs.Sub(now.Add(-rtt / 2))})
	if len(e.skews) > skewSamples {
		e.skews = slices.Delete(e.skews, 0, len(e.skews)-skewSamples)
	}
	e.ClockSkew = slices.MinFunc(e.skews, func(a, b skewSample) int { return cmp.Compare(a.rtt, b.rtt) }).skew
	p := pong{skew: e.ClockSkew, known: true, wasOff: e.off}
	// A clock at the limit is not told of over and over.
	if e.off {
		e.off = p.skew.Abs() > MaxSkew/2
	} else {
		e.off = p.skew.Abs() > MaxSkew
	}
	p.off = e.off
	return p
}

// admits says whether one more member may come.
func (t *table) admits(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.members[name] != nil || len(t.members) < maxMembers
}

// knows says whether a member was ever let in.
func (t *table) knows(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.members[name] != nil
}

// forget drops the members that are dead for long and returns their names.
func (t *table) forget(now time.Time) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var names []string
	for name, e := range t.members {
		if !e.Alive && now.Sub(e.Since) > keepDead {
			delete(t.members, name)
			names = append(names, name)
		}
	}
	return names
}

// card changes our own card.
func (t *table) card(c Card) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.members[t.self].Card = c
}

// list gives all members, sorted by name.
func (t *table) list(now time.Time) []Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	members := make([]Member, 0, len(t.members))
	for _, e := range t.members {
		if !e.Alive && now.Sub(e.Since) > keepDead {
			continue
		}
		m := e.Member
		if m.Self {
			m.LastContact = now
		}
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return members
}

// get gives one member.
func (t *table) get(name string) (Member, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.members[name]
	if e == nil {
		return Member{}, false
	}
	return e.Member, true
}

// others gives the members that are alive, without ourselves, as memberlist has them.
func (t *table) others() []*memberlist.Node {
	t.mu.Lock()
	defer t.mu.Unlock()
	var nodes []*memberlist.Node
	for _, e := range t.members {
		if e.Alive && !e.Self {
			n := copyNode(&e.node)
			nodes = append(nodes, &n)
		}
	}
	return nodes
}

// addresses gives the addresses of the members that are alive, without our own.
func (t *table) addresses() map[string]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := make(map[string]bool, len(t.members))
	for _, e := range t.members {
		if e.Alive && !e.Self {
			a[e.Address] = true
		}
	}
	return a
}

func (t *table) countAlive() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, e := range t.members {
		if e.Alive {
			n++
		}
	}
	return n
}

func (t *table) countDead() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, e := range t.members {
		if !e.Alive {
			n++
		}
	}
	return n
}

// position is the place of our own name among the names of those that are alive.
func (t *table) position() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := 0
	for name := range maps.Keys(t.members) {
		if t.members[name].Alive && name < t.self {
			p++
		}
	}
	return p
}

// peer is a member as Alertmanager's API asks for it.
type peer struct{ name, address string }

func (p peer) Name() string    { return p.name }
func (p peer) Address() string { return p.address }

var _ cluster.ClusterMember = peer{}

// usable says whether packets could be sent to an address.
func usable(ip net.IP, port uint16) bool {
	a, ok := netip.AddrFromSlice(ip)
	return ok && port != 0 && !a.IsUnspecified() && !a.IsMulticast()
}
