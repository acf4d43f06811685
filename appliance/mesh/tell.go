package mesh

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/alertmanager/cluster/clusterpb"
	"google.golang.org/protobuf/proto"
)

// announce sends our card when it has changed, at most once in two seconds.
func (m *Mesh) announce(ctx context.Context, list *memberlist.Memberlist) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.recard:
		}
		if err := list.UpdateNode(2 * time.Second); err != nil {
			m.logger.Debug("the card was not sent to anybody yet", "err", err)
		}
		if !wait(ctx, 2*time.Second) {
			return
		}
	}
}

// keyLeaving is a change of no state: the member that it names says goodbye. Stock Alertmanagers leave it aside.
const keyLeaving = "tocsin/leaving"

// goodbye tells every replica that this one is being stopped, so that nobody takes it for dead. It is a courtesy, and
// bounded by ctx.
func (m *Mesh) goodbye(ctx context.Context, list *memberlist.Memberlist) {
	b, err := proto.Marshal(&clusterpb.Part{Key: keyLeaving, Data: []byte(m.name)})
	if err != nil {
		return
	}
	sent := make(chan struct{})
	m.jobs.Go(func() {
		defer close(sent)
		var jobs sync.WaitGroup
		for _, n := range m.table.others() {
			jobs.Go(func() { _ = list.SendReliable(n, b) }) // It will find out.
		}
		jobs.Wait()
	})
	select {
	case <-sent:
	case <-ctx.Done():
	}
}

// tell logs, counts, remembers and passes on what happens to members.
func (m *Mesh) tell(ctx context.Context) {
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			m.tidy()
			continue
		case <-m.table.changed:
		}
		moved := false
		for _, c := range m.table.take() {
			moved = m.told(c) || moved
		}
		m.remember()
		if !moved {
			continue
		}
		m.mu.Lock()
		callbacks := m.onChange
		m.mu.Unlock()
		for _, f := range callbacks {
			f()
		}
	}
}

// told handles one change; it says whether somebody came or went, or came back as another process.
func (m *Mesh) told(c change) bool {
	e := c.member
	attrs := []any{"member", e.Name, "address", e.Address}
	if e.Card.Cluster != "" {
		attrs = append(attrs, "zone", e.Card.Zone, "version", Printable(e.Card.Version, 64))
	} else {
		attrs = append(attrs, "kind", "stock Alertmanager")
	}
	if c.kind != updated {
		attrs = append(attrs, eventKey, c.kind.event(e.Left))
	}
	switch c.kind {
	case joined, back:
		m.metrics.joined.Inc()
		m.metrics.up.WithLabelValues(e.Name).Set(1)
		if c.kind == back {
			m.logger.Info("a member is back in the mesh", attrs...)
		} else {
			m.logger.Info("a member joined the mesh", attrs...)
		}
		m.compareVersion(e)
		m.join.greet(e.Name, e.Address, time.Now(), false)
	case restarted:
		m.metrics.restarts.Inc()
		m.logger.Info("a member has restarted", append(attrs, "started", e.Card.Started)...)
		m.compareVersion(e)
		m.join.greet(e.Name, e.Address, time.Now(), true)
	case gone:
		m.metrics.left.Inc()
		m.metrics.up.WithLabelValues(e.Name).Set(0)
		if e.Left {
			m.logger.Info("a member left the mesh", attrs...)
		} else {
			m.logger.Warn("a member died, or cannot be reached", attrs...)
		}
		m.join.lost(e.Address)
	case updated:
		m.metrics.updated.Inc()
		m.logger.Debug("a member has a new card", attrs...)
		return false
	}
	return true
}

// compareVersion tells of a replica with another version than this one's, as during an upgrade.
func (m *Mesh) compareVersion(e Member) {
	if own := m.version; e.Card.Cluster != "" && e.Card.Version != own {
		m.logger.Info("a member has another version than this replica", "member", e.Name,
			"version", Printable(e.Card.Version, 64), "own_version", own, eventKey, eventVersion)
	}
}

// compareClock tells of a member whose clock begins, or ceases, to be off.
func (m *Mesh) compareClock(name string, skew time.Duration, was, off bool) {
	if was == off {
		return
	}
	if _, ok := m.refusals.quiet.allow(fmt.Sprintf("skew %s %t", name, off), time.Now()); !ok {
		return // It goes to and fro.
	}
	attrs := []any{"member", name, "skew", skew.Round(time.Millisecond), eventKey, eventSkew}
	if off {
		m.logger.Warn("the clock of a member is off this replica's: look at its time synchronisation", attrs...)
	} else {
		m.logger.Info("the clock of a member agrees with this replica's again", attrs...)
	}
}

func (m *Mesh) remember() {
	if err := m.memory.update(m.table.list(time.Now()), time.Now()); err != nil {
		m.logger.Error("the peers that are seen cannot be remembered", "err", err)
	}
}

// tidy forgets what is long gone.
func (m *Mesh) tidy() {
	for _, name := range m.table.forget(time.Now()) {
		m.metrics.forget(name)
		m.rpc.forget(name)
	}
	if n := m.queue.prune(maxQueue); n > 0 {
		m.metrics.pruned.Add(float64(n))
		m.logger.Warn("changes are dropped because too many wait; the next exchange of all states carries them",
			"dropped", n, "limit", maxQueue)
	}
	m.remember()
}
