package mesh

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// joinTick is how often is looked for peers that are due.
	joinTick = 250 * time.Millisecond
	// firstRetry and lastRetry bound the pause before a peer that does not answer is asked again. It doubles. With the
	// time that a connect may take it stays below what a healed partition may take to be whole.
	firstRetry = 500 * time.Millisecond
	lastRetry  = 5 * time.Second
	// strangerRetry is the pause for an address that answers and is no member: ourselves, as a rule.
	strangerRetry = time.Minute
	// seedsEvery is how often the configured peers are looked up again; soonSeeds if that failed or nobody is there.
	seedsEvery = 30 * time.Second
	soonSeeds  = 5 * time.Second
	// settleTimeout is how long peers that do not answer are waited for before this replica works alone.
	settleTimeout = 10 * time.Second
	// maxTargets bounds the addresses that are tried, maxJoins how many at once.
	maxTargets = 256
	maxJoins   = 8
)

// joiner keeps this replica joined. memberlist never asks again for a member that it holds for dead, so that after a
// partition nobody would come back by itself.
type joiner struct {
	m     *Mesh
	slots chan struct{}

	mu      sync.Mutex
	targets map[string]*target
	seeds   []string // As they were last found.
	looked  bool     // The configured peers were looked up once.
	found   bool     // SetFound was called.
	warned  bool     // That nobody answers.
	hurried time.Time

	flooded   time.Time   // When the states were last exchanged for a flood. Only run has it.
	unloading atomic.Bool // That exchange goes on.
}

// target is an address where a peer is or was.
type target struct {
	seed, seen, found bool // It is configured, was a member, was given to SetFound.
	gone              bool // It was configured or found before.

	next     time.Time
	tries    int // Failures since it last answered.
	refused  int // Those of them in which it hung up.
	busy     bool
	greet    bool      // It is a member, and we have not exchanged our states since it came.
	answered time.Time // When it last answered.
}

// begin marks a target as being asked. It says whether that is to be the greeting: one that is asked for from now on
// needs another exchange.
func (t *target) begin() (greet bool) {
	greet = t.greet
	t.busy, t.greet = true, false
	return greet
}

func newJoiner(m *Mesh) *joiner {
	j := &joiner{m: m, slots: make(chan struct{}, maxJoins), targets: map[string]*target{}}
	for _, p := range m.memory.peers {
		j.aim(p.Address).seen = true
	}
	return j
}

// aim makes an address a target. It is called with the lock held, or before others know j.
func (j *joiner) aim(address string) *target {
	t := j.targets[address]
	if t == nil {
		t = &target{}
		j.targets[address] = t
	}
	return t
}

// lost has a member that is gone asked for at once, and again.
func (j *joiner) lost(address string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.targets[address] == nil && len(j.targets) >= maxTargets {
		return
	}
	t := j.aim(address)
	t.seen, t.tries, t.refused = true, 0, 0
	t.next = time.Now().Add(firstRetry)
}

// greet exchanges the states with a member that came. It told only the one that it joined by; what that one learned of
// it the others would have after half a minute, at best. Of two the one with the smaller name does it. What was
// exchanged with a process that is no more does not count.
func (j *joiner) greet(name, address string, now time.Time, isOther bool) {
	if j.m.name > name {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.targets[address] == nil && len(j.targets) >= maxTargets {
		return
	}
	t := j.aim(address)
	if !isOther && now.Sub(t.answered) < time.Second {
		return // We joined by it.
	}
	t.seen, t.greet, t.next = true, true, now
}

// resolve looks the configured peers up, again and again.
func (j *joiner) resolve(ctx context.Context) {
	for {
		addresses, err := j.m.seeds.resolve(ctx)
		if ctx.Err() != nil {
			return
		}
		j.mu.Lock()
		if err == nil || len(addresses) > 0 {
			j.setSeeds(addresses)
		}
		j.looked = true
		j.mu.Unlock()
		pause := seedsEvery
		if err != nil {
			if since, ok := j.m.refusals.quiet.allow("seeds", time.Now()); ok {
				j.m.logger.Warn("some of cluster.peers cannot be found", "err", err, "more_since_last_time", since)
			}
		}
		if err != nil || j.m.table.countAlive() == 1 {
			pause = soonSeeds
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-j.m.reseed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// setSeeds replaces the addresses of the configured peers. It is called with the lock held.
func (j *joiner) setSeeds(addresses []string) {
	j.replace(addresses, func(t *target) *bool { return &t.seed })
	j.seeds = addresses
}

// forget drops a target that nobody names any more, once it is not being asked. It is called with the lock held.
func (j *joiner) forget(address string, t *target) {
	if t.gone && !t.seed && !t.seen && !t.found && !t.busy && j.targets[address] == t {
		delete(j.targets, address)
	}
}

// setFound replaces the addresses that somebody else found.
func (j *joiner) setFound(addresses []string) {
	addresses = addresses[:min(len(addresses), maxSeeds)]
	j.mu.Lock()
	defer j.mu.Unlock()
	j.replace(addresses, func(t *target) *bool { return &t.found })
	j.found = true
}

// replace makes addresses those whose targets bear a mark. It is called with the lock held.
func (j *joiner) replace(addresses []string, mark func(*target) *bool) {
	for a, t := range j.targets {
		if *mark(t) && !slices.Contains(addresses, a) {
			*mark(t) = false
			t.gone = true
			j.forget(a, t)
		}
	}
	for _, a := range addresses {
		*mark(j.aim(a)) = true
	}
}

// run joins until ctx ends, or another replica with our name turns out to live.
func (j *joiner) run(ctx context.Context) error {
	started := time.Now()
	tick := time.NewTicker(joinTick)
	defer tick.Stop()
	for {
		now := time.Now()
		active, err := j.m.conflicts.judge(j.m.Members(), now, now.Sub(started))
		if err != nil {
			return err
		}
		if active {
			j.hurry(now)
		}
		j.step(now)
		j.unload(now)
		j.ripe(now.Sub(started))
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// ripe says that the mesh is ready if nobody is there to wait for.
func (j *joiner) ripe(since time.Duration) {
	if since > settleTimeout {
		j.m.settle("no peer answers yet")
		return
	}
	if j.m.merged.Load() && j.m.table.countAlive() > 1 {
		j.m.settle("joined") // By a peer that found us first.
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.looked || j.m.awaitsFound && !j.found {
		return
	}
	for a := range j.targets {
		if !j.own(a) {
			return
		}
	}
	j.m.settle("there is no peer to ask")
}

// own says whether an address is ours.
func (j *joiner) own(address string) bool { return address == j.m.wire.advertise.String() }

// hurry has everybody told of us again while our name is in dispute, first once a second: those that still hold our
// earlier self for alive learn of its end only so.
func (j *joiner) hurry(now time.Time) {
	pause := j.m.conflicts.pause(now)
	j.mu.Lock()
	if now.Sub(j.hurried) < pause {
		j.mu.Unlock()
		return
	}
	j.hurried = now
	j.mu.Unlock()
	for _, a := range append(slices.Collect(maps.Keys(j.m.table.addresses())), j.m.conflicts.where()...) {
		j.mu.Lock()
		t := j.targets[a]
		if t == nil && len(j.targets) < maxTargets {
			t = j.aim(a)
			t.next = now.Add(strangerRetry)
		}
		free, greet := t != nil && !t.busy, false
		if free {
			greet = t.begin()
		}
		j.mu.Unlock()
		if free {
			j.start(a, t, greet)
		}
	}
}

// step asks the peers that are due.
func (j *joiner) step(now time.Time) {
	members := j.m.table.addresses()
	type asking struct {
		address string
		*target
		greet bool
	}
	var due []asking
	j.mu.Lock()
	all, failed := 0, 0
	for a, t := range j.targets {
		switch {
		case j.own(a), members[a] && !t.greet && !t.busy:
			t.tries, t.refused = 0, 0
			continue
		case !members[a]:
			all++
			if t.tries > 0 {
				failed++
			}
		}
		if !t.busy && !now.Before(t.next) {
			due = append(due, asking{a, t, t.begin()})
		}
	}
	if len(members) > 0 {
		j.warned = false
	}
	alone := len(members) == 0 && all > 0 && failed == all && !j.warned
	if alone {
		j.warned = true
	}
	peers := slices.Sorted(maps.Keys(j.targets))
	j.mu.Unlock()
	if alone {
		j.m.logger.Warn("no peer answers; this replica works alone and goes on trying",
			"peers", strings.Join(peers[:min(len(peers), 16)], " "), eventKey, eventAlone)
	}
	for _, d := range due {
		j.start(d.address, d.target, d.greet)
	}
}

// start asks one peer, which is marked as busy.
func (j *joiner) start(address string, t *target, greet bool) {
	j.m.jobs.Go(func() {
		select {
		case j.slots <- struct{}{}:
			defer func() { <-j.slots }()
		case <-j.m.stop:
			return
		}
		list := j.m.list.Load()
		_, err := list.Join([]string{address})
		j.asked(address, t, greet, err)
	})
}

// asked notes how it went.
func (j *joiner) asked(address string, t *target, greet bool, err error) {
	now := time.Now()
	isMember := j.m.table.addresses()[address]
	others := j.m.table.countAlive() > 1
	j.mu.Lock()
	t.busy = false
	before := t.tries
	refused, why := false, ""
	if err == nil {
		t.answered = now
	} else {
		t.greet = t.greet || greet
	}
	switch {
	case err == nil && isMember:
		t.tries, t.refused, t.next = 0, 0, now
	case err == nil:
		t.tries, t.refused, t.next = 0, 0, now.Add(strangerRetry)
	default:
		refused, why = joinFailure(err)
		pause := min(firstRetry<<min(t.tries, 10), lastRetry)
		t.next = now.Add(pause*9/10 + rand.N(pause/5+1))
		t.tries++
		if refused {
			t.refused++
		}
	}
	warn := refused && t.refused >= 3
	j.forget(address, t)
	j.mu.Unlock()

	if err == nil {
		if others {
			j.m.settle("joined")
		}
		if before > 0 {
			j.m.metrics.rejoins.Inc()
		}
		j.m.logger.Debug("a peer has answered", "address", address)
		return
	}
	j.m.metrics.failedRejoins.Inc()
	select {
	case <-j.m.stop:
		return // We hung up ourselves.
	default:
	}
	j.m.logger.Debug("a peer was not joined", "address", address, "err", err)
	if !warn {
		return
	}
	if since, ok := j.m.refusals.quiet.allow("join "+address, now); ok {
		j.m.logger.Warn("the peer at "+address+" refused this replica: does it have the same cluster key and cluster name?",
			"address", address, "cluster", j.m.cluster, "why", why, "more_since_last_time", since, eventKey, eventRejected)
	}
}

// joinFailure tells a peer that hung up from one that is not there, and says in plain words what may be wrong.
// memberlist has only text for it.
func joinFailure(err error) (refused bool, why string) {
	text := strings.Join(strings.Fields(Printable(err.Error(), 400)), " ")
	has := func(s string) bool { return strings.Contains(text, s) }
	switch {
	case has("remote state is encrypted and encryption is not configured"):
		return true, "the peer has no cluster key, and this replica has one"
	case has("encryption is configured but remote state is not encrypted"):
		return true, "the peer has a cluster key, and this replica has none"
	case has("no installed keys could decrypt"):
		return true, "the peer has another cluster key"
	case has("it belongs to another cluster"):
		return true, "the peer belongs to another cluster"
	case has("it is encrypted") || has("it is not encrypted"):
		return true, "what the peer answers: " + text
	case has("remote error"), has("the message is"):
		return true, text
	case has("EOF"), has("connection reset"), has("broken pipe"):
		return true, "it hung up without an answer; so does a replica that is still starting"
	}
	return false, text
}
