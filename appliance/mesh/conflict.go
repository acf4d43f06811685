package mesh

import (
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// formerSelf is how long the other bearer of our name may be our own former self, which the others do not know dead
	// yet.
	formerSelf = 8 * time.Second
	// atStart is how long after the start a conflict ends us.
	atStart = 75 * time.Second
	// stillThere is how long ago a conflict that goes on was last seen at most. It is looked for once a second.
	stillThere = 3 * time.Second
	// settled is how long after its last sign a conflict is over: the others take a new address only a second after
	// they found the old one dead, which takes four.
	settled = 12 * time.Second
)

// conflicts watches for members that bear one name at two addresses.
type conflicts struct {
	logger  *slog.Logger
	metrics *metrics
	quiet   limiter

	mu          sync.Mutex
	first, last time.Time // Of our own name's conflict that goes on.
	others      []claim
}

// claim is another bearer of our name.
type claim struct {
	address string
	card    Card
	last    time.Time
}

// note takes a conflict. existing is the member that is known, other the one that came. memberlist calls it under its
// locks.
func (c *conflicts) note(existing, other *memberlist.Node, own bool, now time.Time) {
	address := net.JoinHostPort(other.Addr.String(), strconv.Itoa(int(other.Port)))
	card, err := decodeCard(other.Meta)
	if err != nil {
		return // It is not let in as a member, and not here either.
	}
	if !own {
		if _, ok := c.quiet.allow(existing.Name+address, now); ok {
			c.logger.Warn("a member appeared at a second address; it is one that restarted, or two replicas have one name",
				"member", existing.Name, "address", existing.Address(), "second_address", address, "zone", card.Zone,
				eventKey, eventConflict)
		}
		return
	}
	c.metrics.conflicts.Inc()
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.last) > settled {
		c.first, c.others = now, nil
	}
	c.last = now
	i := slices.IndexFunc(c.others, func(o claim) bool { return o.address == address })
	switch {
	case i >= 0:
		c.others[i].card, c.others[i].last = card, now
	case len(c.others) < 8:
		c.others = append(c.others, claim{address, card, now})
	}
}

// where gives the addresses of the other bearers of our name.
func (c *conflicts) where() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var a []string
	for _, o := range c.others {
		a = append(a, o.address)
	}
	return a
}

// open says whether our name is in dispute.
func (c *conflicts) open(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.first.IsZero() && now.Sub(c.last) <= settled
}

// pause is how long to wait before everybody is told of us again while our name is in dispute.
func (c *conflicts) pause(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.first) < atStart {
		return time.Second
	}
	return 10 * time.Second
}

// judge says whether our name is in dispute, and with an error that we are the one who must go: the younger, and only
// at the start, so that no replica that works is ended by one that comes.
func (c *conflicts) judge(members []Member, now time.Time, running time.Duration) (active bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first.IsZero() || now.Sub(c.last) > settled {
		return false, nil
	}
	if now.Sub(c.first) < formerSelf {
		return true, nil
	}
	i := slices.IndexFunc(members, func(m Member) bool { return m.Self })
	if i < 0 {
		return true, nil
	}
	self := members[i]
	for _, o := range c.others {
		older := o.card.Started.Before(self.Card.Started) ||
			(o.card.Started.Equal(self.Card.Started) && o.address < self.Address)
		if older && running < atStart && now.Sub(o.last) <= stillThere {
			return true, fmt.Errorf("join the mesh: another replica named %q lives at %s (zone %q, started %s): "+
				"give one of the two another replica.name",
				self.Name, o.address, o.card.Zone, o.card.Started.UTC().Format(time.RFC3339))
		}
		if now.Sub(o.last) > stillThere {
			continue
		}
		if since, ok := c.quiet.allow("own "+o.address, now); ok {
			c.logger.Error("another live replica bears this replica's name; give one of the two another replica.name",
				"member", self.Name, "its_address", o.address, "its_zone", Printable(o.card.Zone, 64), "it_started", o.card.Started,
				"more_since_last_time", since, eventKey, eventConflict)
		}
	}
	return true, nil
}
