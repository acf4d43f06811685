package mesh

import (
	"context"
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
		attrs = append(attrs, "zone", e.Card.Zone, "version", printable(e.Card.Version, 64))
	} else {
		attrs = append(attrs, "kind", "stock Alertmanager")
	}
	switch c.kind {
	case joined:
		m.metrics.joined.Inc()
		m.metrics.up.WithLabelValues(e.Name).Set(1)
		m.logger.Info("a member joined the mesh", attrs...)
		m.join.greet(e.Name, e.Address, time.Now(), false)
	case restarted:
		m.metrics.restarts.Inc()
		m.logger.Info("a member has restarted", append(attrs, "started", e.Card.Started)...)
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
