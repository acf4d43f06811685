package heal

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/tocsin-io/tocsin/appliance/heal/peerspb"
	"github.com/tocsin-io/tocsin/appliance/mesh"
	"github.com/tocsin-io/tocsin/appliance/store"
)

const (
	// coverageTimeout bounds asking a replica how far its data are whole.
	coverageTimeout = 2 * time.Second
	// minSkew is the difference of two clocks from which on time stamps are corrected. Below it the guards at the edges
	// of a gap do, and samples stay what they are on the replica that took them.
	minSkew = time.Second
	// punishment is how long a replica is not asked that gave a wrong answer, unless there is nobody else.
	punishment = time.Minute
	// maxFailures is after how many errors in a row a replica is taken for broken.
	maxFailures = 3
	// maxAnswered bounds the intervals that are taken of one coverage answer.
	maxAnswered = 5_000
)

// coverage is what a replica says about its own data, on our clock.
type coverage struct {
	ready   bool
	shift   int64 // What is added to its time stamps to get ours, in milliseconds.
	oldest  int64
	missing []store.Interval
	// healed are the times of which it has a target's data though its own `up` says otherwise, by the target's labels.
	healed map[string][]store.Interval
	// archive says that it is no replica, but object storage.
	archive bool
}

// has is what of an interval it can be asked for.
func (c *coverage) has(i store.Interval) []store.Interval {
	if !c.ready || i.To <= c.oldest {
		return nil
	}
	parts := []store.Interval{{From: max(i.From, add(c.oldest, -1)), To: i.To}}
	for _, m := range c.missing {
		parts = store.Subtract(parts, m)
	}
	return parts
}

// Coverage implements the service that other replicas ask.
func (h *Heal) Coverage(_ context.Context, req *peerspb.CoverageRequest) (*peerspb.CoverageReply, error) {
	reply := &peerspb.CoverageReply{Now: time.Now().UnixMilli()}
	oldest, _, err := h.opts.Store.TimeRange()
	if err != nil {
		return reply, nil //nolint:nilerr // It is not ready, and says so.
	}
	asked := store.Interval{From: req.GetFrom(), To: req.GetTo()}
	reply.Ready, reply.Oldest = h.begun(), oldest
	for _, g := range h.opts.Ledger.Gaps() {
		labels := g.Labels.Map()
		switch {
		case g.Kind == store.GapReplica:
			missing := g.Missing
			for _, f := range g.Fills {
				if f.Replica == "" {
					missing = append(missing, f.Interval) // Lost is not there either.
				}
			}
			for _, i := range missing {
				if i = i.Intersect(asked); !i.Empty() {
					reply.Missing = append(reply.Missing, &peerspb.Interval{From: i.From, To: i.To})
				}
			}
		case g.Kind == store.GapTarget && g.State == store.GapHealed:
			if i := g.Interval.Intersect(asked); !i.Empty() {
				reply.Healed = append(reply.Healed, &peerspb.Target{Labels: labels, Interval: &peerspb.Interval{From: i.From, To: i.To}})
			}
		}
	}
	// The newest, when there are very many.
	reply.Missing = reply.GetMissing()[max(0, len(reply.GetMissing())-maxAnswered/2):]
	reply.Healed = reply.GetHealed()[max(0, len(reply.GetHealed())-maxAnswered/2):]
	return reply, nil
}

// asker knows the other replicas, and talks to them.
type asker struct {
	mesh    Mesh
	logger  *slog.Logger
	metrics *metrics
	zone    func() string

	mu       sync.Mutex
	punished map[string]time.Time
	failed   map[string]int // Errors in a row.
	known    map[string]known
}

// known is the last that a replica said, for queries, which do not wait for another answer.
type known struct {
	at time.Time
	coverage
}

// peer is a replica with what it has.
type peer struct {
	mesh.Member
	coverage
}

// String says who it is, for messages.
func (p peer) String() string {
	if p.archive {
		return "the bucket"
	}
	return "replica " + p.Name
}

// others are the replicas that can be asked, the best first: of another zone, complete, and among equals another one
// for each of us. allThere tells whether every replica that the mesh knows of is among them.
func (a *asker) others() (members []mesh.Member, allThere bool) {
	if a.mesh == nil || !a.mesh.Keyed() {
		return nil, true
	}
	allThere = true
	self, zone := "", a.zone()
	gone := map[string]bool{}
	for _, name := range a.mesh.SeenBefore() {
		gone[name] = true
	}
	for _, m := range a.mesh.Members() {
		switch {
		case m.Self:
			self = m.Name
		case m.Alive && m.Card.GRPC != "":
			members = append(members, m)
			delete(gone, m.Name)
		case !m.Alive:
			allThere = false
		}
	}
	// One that was gone before this replica started is not in the mesh's list.
	allThere = allThere && len(gone) == 0
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	rank := func(m mesh.Member) (r int) {
		if now.Before(a.punished[m.Name]) {
			r += 4
		}
		if m.Card.Completeness < 1 {
			r += 2
		}
		if m.Card.Zone == zone {
			r++
		}
		return r
	}
	slices.SortFunc(members, func(x, y mesh.Member) int {
		return cmp.Or(cmp.Compare(rank(x), rank(y)), cmp.Compare(weight(self, x.Name), weight(self, y.Name)))
	})
	return members, allThere
}

// weight spreads the replicas that ask over those that are asked.
func weight(self, other string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(self + "\x00" + other)) // A hash takes everything.
	return h.Sum32()
}

// punish has a replica asked last for a while. The reason is counted, and logged here.
func (a *asker) punish(member string, err error) {
	reason := reasonOf(err)
	a.metrics.refused.WithLabelValues(reason).Inc()
	if reason == failedReach {
		return // It is not wrong, it is away.
	}
	if reason == failedAnswer {
		// That may pass. A replica that cannot read its own disk any more must not keep the others from going on.
		a.mu.Lock()
		a.failed[member]++
		passes := a.failed[member] < maxFailures
		a.mu.Unlock()
		if passes {
			return
		}
	}
	a.logger.Warn("a replica's answer is refused, and it is asked last for a while", "replica", member, "reason", reason, "for", punishment, "err", err)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.punished[member] = time.Now().Add(punishment)
	a.failed[member] = 0
}

// praise forgets the failures of a replica that has answered.
func (a *asker) praise(member string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.failed, member)
}

// honest are those who are not punished.
func (a *asker) honest(peers []peer) (honest []peer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range peers {
		if time.Now().After(a.punished[p.Name]) {
			honest = append(honest, p)
		}
	}
	return honest
}

// coverages asks all replicas that are there at once. Those that do not answer in time are not in the result, and
// complete tells whether every replica that the mesh knows of is.
func (a *asker) coverages(ctx context.Context, i store.Interval) (peers []peer, complete bool) {
	members, complete := a.others()
	ctx, cancel := context.WithTimeout(ctx, coverageTimeout)
	defer cancel()
	answers := make([]*coverage, len(members))
	var jobs sync.WaitGroup
	for n, m := range members {
		jobs.Go(func() {
			c, err := a.coverage(ctx, m, i)
			if err != nil {
				a.logger.Debug("a replica did not say how far its data are whole", "replica", m.Name, "err", err)
				return
			}
			answers[n] = c
		})
	}
	jobs.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for n, m := range members {
		if answers[n] == nil || !answers[n].ready {
			complete = false
		}
		if answers[n] == nil {
			continue
		}
		a.known[m.Name] = known{time.Now(), *answers[n]}
		peers = append(peers, peer{m, *answers[n]})
	}
	return peers, complete
}

// remembered is what replicas said last. Of one that has not said anything the best is assumed: it will say otherwise
// when it is asked for data. stale tells that some should be asked anew.
func (a *asker) remembered(members []mesh.Member) (peers []peer, stale bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range members {
		k, ok := a.known[m.Name]
		if !ok {
			k.coverage = coverage{ready: true, oldest: math.MinInt64}
		}
		stale = stale || !ok || time.Since(k.at) > fresh
		peers = append(peers, peer{m, k.coverage})
	}
	return peers, stale
}

func (a *asker) coverage(ctx context.Context, m mesh.Member, i store.Interval) (*coverage, error) {
	conn, err := a.mesh.Conn(m.Name)
	if err != nil {
		return nil, fmt.Errorf("reach replica %s: %w", m.Name, err)
	}
	// On its clock, and a little more, since that is known with the answer only.
	skew := m.ClockSkew.Milliseconds()
	begin := time.Now()
	reply, err := peerspb.NewPeersClient(conn).Coverage(ctx, &peerspb.CoverageRequest{
		From: add(i.From, skew-time.Minute.Milliseconds()), To: add(i.To, skew+time.Minute.Milliseconds()),
	})
	if err != nil {
		return nil, fmt.Errorf("ask replica %s how far its data are whole: %w", m.Name, err)
	}
	took := time.Since(begin)
	c := &coverage{ready: reply.GetReady(), healed: map[string][]store.Interval{}}
	// Its clock was read at some time in between.
	ahead := time.UnixMilli(reply.GetNow()).Sub(begin.Add(took / 2))
	if ahead.Abs()-took/2 >= minSkew {
		c.shift = -ahead.Milliseconds()
	}
	ours := func(t int64) int64 { return add(t, c.shift) }
	c.oldest = ours(reply.GetOldest())
	if len(reply.GetMissing())+len(reply.GetHealed()) > maxAnswered {
		return nil, lied(lieEndless, "replica %s names more than %d intervals", m.Name, maxAnswered)
	}
	for _, missing := range reply.GetMissing() {
		if i := (store.Interval{From: ours(missing.GetFrom()), To: ours(missing.GetTo())}); !i.Empty() {
			c.missing = append(c.missing, i)
		}
	}
	for _, t := range reply.GetHealed() {
		key := labels.FromMap(t.GetLabels()).String()
		c.healed[key] = append(c.healed[key], store.Interval{From: ours(t.GetInterval().GetFrom()), To: ours(t.GetInterval().GetTo())})
	}
	return c, nil
}

// add moves a moment, and leaves those at the ends of time where they are.
func add(t, by int64) int64 {
	if t == store.Lasts || t == math.MinInt64 {
		return t
	}
	if by > 0 && t > math.MaxInt64-by || by < 0 && t < math.MinInt64-by {
		return t
	}
	return t + by
}

// piece is a part of an interval, and who has it, the best first. Nobody may have it.
type piece struct {
	store.Interval
	peers []peer
}

// share cuts an interval into pieces that are each to be had whole from one replica, in order. What nobody has is in
// pieces of its own.
func share(i store.Interval, peers []peer) []piece {
	// The first moments at which somebody comes in or has dropped out.
	edges := []int64{i.From + 1, i.To}
	has := make([][]store.Interval, len(peers))
	for k, p := range peers {
		has[k] = p.has(i)
		for _, part := range has[k] {
			edges = append(edges, part.From+1, part.To)
		}
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	var pieces []piece
	for n := range edges[1:] {
		at := store.Interval{From: edges[n] - 1, To: edges[n+1]}
		var who []peer
		for k, p := range peers {
			if slices.ContainsFunc(has[k], func(part store.Interval) bool { return part.From <= at.From && at.To <= part.To }) {
				who = append(who, p)
			}
		}
		// One replica for as long as it lasts: at each change of hands a sample may be lost to the guards.
		if last := len(pieces) - 1; last >= 0 {
			if same := both(pieces[last].peers, who); len(same) > 0 || len(who)+len(pieces[last].peers) == 0 {
				pieces[last].To, pieces[last].peers = at.To, same
				continue
			}
		}
		pieces = append(pieces, piece{at, who})
	}
	return slices.DeleteFunc(pieces, func(p piece) bool { return p.Empty() })
}

// both are the replicas of a that are in b too.
func both(a, b []peer) (same []peer) {
	for _, p := range a {
		if slices.ContainsFunc(b, func(q peer) bool { return q.Name == p.Name }) {
			same = append(same, p)
		}
	}
	return same
}
