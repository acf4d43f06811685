package mesh

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// maxWaiting is how many changes may wait for packets, which carry less than a hundred a second. With more, all states
	// are exchanged: that is one stream, however many changes there are.
	maxWaiting = 256
	// unloadPause is the least time between two such exchanges.
	unloadPause = 5 * time.Second
)

// outbox holds the changes that wait for the next packets.
type outbox struct {
	numNodes func() int

	mu    sync.Mutex
	fresh *memberlist.TransmitLimitedQueue
	// carried are those that an exchange of all states carries. They wait on until it is known that it has, and those of
	// one that failed until another has.
	carried *memberlist.TransmitLimitedQueue
}

func newOutbox(numNodes func() int) *outbox {
	o := &outbox{numNodes: numNodes}
	o.fresh, o.carried = o.empty(), o.empty()
	return o
}

func (o *outbox) empty() *memberlist.TransmitLimitedQueue {
	return &memberlist.TransmitLimitedQueue{NumNodes: o.numNodes, RetransmitMult: 4}
}

func (o *outbox) add(b broadcast) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fresh.QueueBroadcast(b)
}

// take gives changes for one packet of limit bytes, each of which costs overhead more. The new ones go first.
func (o *outbox) take(overhead, limit int) [][]byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	messages := o.fresh.GetBroadcasts(overhead, limit)
	for _, b := range messages {
		limit -= overhead + len(b)
	}
	return append(messages, o.carried.GetBroadcasts(overhead, limit)...)
}

func (o *outbox) waiting() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.fresh.NumQueued() + o.carried.NumQueued()
}

// load sets aside what an exchange that begins now carries.
func (o *outbox) load() {
	o.mu.Lock()
	defer o.mu.Unlock()
	// What is left of one that failed it carries, too.
	if o.carried.NumQueued() == 0 {
		o.fresh, o.carried = o.empty(), o.fresh
	}
}

// unloaded drops what an exchange has carried to everybody.
func (o *outbox) unloaded() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.carried = o.empty()
}

// prune drops all but most changes, and returns how many.
func (o *outbox) prune(most int) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	dropped := 0
	for _, q := range []*memberlist.TransmitLimitedQueue{o.fresh, o.carried} {
		n := q.NumQueued()
		if n > most {
			q.Prune(most)
			dropped += n - most
		}
		most -= min(n, most)
	}
	return dropped
}

// unload exchanges all states with everybody when too many changes wait for packets. Only run calls it.
func (j *joiner) unload(now time.Time) {
	if now.Sub(j.flooded) < unloadPause || j.unloading.Load() || j.m.queue.waiting() <= maxWaiting {
		return
	}
	members := j.m.table.addresses()
	if len(members) == 0 {
		return // Who comes exchanges states with us.
	}
	j.flooded = now
	j.m.metrics.floods.Inc()
	if since, ok := j.m.refusals.quiet.allow("flood", now); ok {
		j.m.logger.Info("many changes wait to be sent; all states are exchanged with every member instead",
			"waiting", j.m.queue.waiting(), "members", len(members), "more_since_last_time", since)
	}
	j.unloading.Store(true)
	j.m.jobs.Go(func() {
		defer j.unloading.Store(false)
		missed := j.m.states.missed.Load()
		j.m.queue.load()
		var failed atomic.Bool
		var exchanges sync.WaitGroup
		for address := range members {
			exchanges.Go(func() {
				if err := j.exchange(address); err != nil {
					failed.Store(true)
					j.m.logger.Debug("the states were not exchanged with a member", "address", address, "err", err)
				}
			})
		}
		exchanges.Wait()
		if !failed.Load() && j.m.states.missed.Load() == missed {
			j.m.queue.unloaded()
		}
	})
}

// exchange sends all our states to an address, takes its own, and tells each other who is there.
func (j *joiner) exchange(address string) error {
	select {
	case j.slots <- struct{}{}:
		defer func() { <-j.slots }()
	case <-j.m.stop:
		return errNotOpen
	}
	_, err := j.m.list.Load().Join([]string{address})
	return err
}
