package alert

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"sync"
	"time"
)

const (
	// askTimeout bounds one question to a replica that the mesh holds alive: two networks' worst round trips.
	askTimeout = time.Second
	// askDeadTimeout bounds it where the mesh says that it is dead, or where it has not answered for long: it may be
	// slow rather than gone, but nothing waits for it.
	askDeadTimeout = 500 * time.Millisecond
	// unreachableFor is how long a replica that does not answer, and is alive by the mesh, still keeps a notification
	// back. The mesh knows a death in 4 s; this is for a way that is cut for us only, and may be no shorter, or replicas
	// that are merely busy with a storm of alerts would be passed over.
	unreachableFor = 6 * time.Second
	// forgetSilence is after how long without a question it counts for nothing that the last one was not answered. Under
	// a partition that lasts, notifications are rarely as far apart, and then one more waits for unreachableFor.
	forgetSilence = 30 * time.Second
	// retryUnanswered is how soon a replica that did not answer is asked again, retryRefused one that went first: it
	// tells when it is done, so this only covers a message that is lost.
	retryUnanswered = 250 * time.Millisecond
	retryRefused    = time.Second
	// maxAsking is how many keys are asked for at once. In a storm of alerts the rest waits here, where it costs nothing:
	// asked for all at once, ten thousand answers come later than anybody waits for them.
	maxAsking = 256
	// logTakeovers is how often taking over from a replica is logged.
	logTakeovers = 10 * time.Second
	// maxHold is how long a replica whose receiver does not take the notification keeps the turn while others wait:
	// their way to the receiver may be better. Stock Alertmanagers wait as long for each other.
	maxHold = 15 * time.Second
)

var (
	// errAgain says that something has changed and the notification may not be needed any more.
	errAgain = errors.New("another replica had the turn")
	// errPassOn ends a send that takes too long while others wait.
	errPassOn = errors.New("the receiver does not take the notification, and another replica wants to try")
	// errStoppingTurns says that this replica leaves the notification to the others.
	errStoppingTurns = errors.New("the process is stopping")
)

// turnKey is what there is one turn of: one receiver integration of one alert group, named the same on every replica.
type turnKey struct {
	group, receiver, integration string
	index                        uint32
}

func (k turnKey) String() string {
	return fmt.Sprintf("%s:%s/%s/%d", k.group, k.receiver, k.integration, k.index)
}

// question is what a replica asks the others.
type question struct {
	key turnKey
	// failures is how often it had the turn for this notification and could not send.
	failures int
}

// other is another replica.
type other struct {
	name string
	// alive is what the mesh says, and since when.
	alive bool
	since time.Time
}

// turnPeers are the other replicas, as the turns need them.
type turnPeers interface {
	others() []other
	// ask asks a replica to be let go first. It brings along what the other's notification log has for the key.
	ask(ctx context.Context, member string, q question) (granted bool, err error)
	// pass tells a replica that was refused that it need not wait any longer. It does not block.
	pass(member string, key turnKey)
}

// turns see to it that of the replicas that want to send the same notification one does, and the next one as soon as
// that one is done or gone. There is no leader and no clock in it (docs/adr/0010-turns.md):
//
// A replica that wants to notify asks every other one. One that does not want to itself answers yes. Of two that want
// to, the one goes first that has failed less often, or else that the key's hash prefers: it answers no, the other one
// answers yes and asks again. One that
// is sending answers no, and tells those whom it refused when it is done. A replica that does not answer keeps the
// others back until the mesh says that it is dead, or for unreachableFor: under a partition each side notifies.
//
// Two replicas that can talk never hold the turn of one key at once: for both to hold it, the later one must have
// been let go first by the other while that one did not hold it, and an earlier consent of a replica that consents
// itself is void.
type turns struct {
	self    string
	peers   turnPeers
	logger  *slog.Logger
	metrics *turnMetrics

	asking chan struct{} // Has a token for each key that is being asked for.

	mu       sync.Mutex
	wanted   map[turnKey]*turn
	logged   map[string]time.Time // When a takeover from a replica was logged.
	silent   map[string]quiet     // Replicas that have not answered.
	stopping bool
	stopped  chan struct{} // Closed with stopping.
}

// quiet is since when a replica has not answered, and when it was asked last.
type quiet struct{ since, asked time.Time }

// turn is this replica's wish for, or hold of, one key.
type turn struct {
	question
	since time.Time
	// held says that every replica that counts has let us go first.
	held bool
	// yielded says that another one was let go first since our round of questions began.
	yielded bool
	// passed says that a replica that went first is done.
	passed bool
	// refused are the replicas that wait for us.
	refused map[string]bool
	wake    chan struct{}
	// gone is closed when the wish is over.
	gone chan struct{}
	// passOn ends the hold.
	passOn context.CancelCauseFunc
	timer  *time.Timer
}

func newTurns(self string, peers turnPeers, logger *slog.Logger, m *turnMetrics) *turns {
	return &turns{
		self: self, peers: peers, logger: logger, metrics: m,
		asking: make(chan struct{}, maxAsking),
		wanted: map[turnKey]*turn{}, silent: map[string]quiet{}, logged: map[string]time.Time{},
		stopped: make(chan struct{}),
	}
}

// take waits until it is this replica's turn for the key, and returns a context that ends when the turn is better
// passed on. It returns errAgain when somebody else had the turn meanwhile: then the notification may have been sent.
// Every turn that is taken is given back with done.
//
// failures is how often this replica had the turn for the same notification and could not send.
func (t *turns) take(ctx context.Context, key turnKey, failures int) (context.Context, *turn, error) {
	own, err := t.want(ctx, question{key, failures})
	if err != nil {
		return nil, nil, err
	}
	start := time.Now()
	behind := map[string]bool{} // Who has refused us.
	for {
		round, err := t.round(ctx, own)
		if err != nil {
			t.done(own)
			return nil, nil, err
		}
		t.mu.Lock()
		free := len(round.refused) == 0 && len(round.unanswered) == 0 && !own.yielded
		if free {
			own.held, own.since = true, time.Now()
			var held context.Context
			held, own.passOn = context.WithCancelCause(ctx)
			t.mu.Unlock()
			t.metrics.wait.Observe(time.Since(start).Seconds())
			for _, name := range round.gone {
				if behind[name] {
					t.tookOver(name, key)
				}
			}
			return held, own, nil
		}
		t.mu.Unlock()
		for _, name := range round.refused {
			behind[name] = true
		}
		var pause time.Duration
		switch {
		case len(round.refused) > 0:
			pause = retryRefused
		case len(round.unanswered) > 0:
			pause = retryUnanswered
		default:
			// We let another one go first, which does not know that we wait for it: it has to be asked for that.
		}
		timer := time.NewTimer(pause)
		select {
		case <-own.wake:
			timer.Stop()
			if t.wasPassed(own) {
				t.done(own)
				return nil, nil, errAgain
			}
		case <-timer.C:
		case <-t.stopped:
			timer.Stop()
			t.done(own)
			return nil, nil, errStoppingTurns
		case <-ctx.Done():
			timer.Stop()
			t.done(own)
			return nil, nil, context.Cause(ctx)
		}
	}
}

func (t *turns) tookOver(from string, key turnKey) {
	t.metrics.takeovers.Inc()
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.logged[from]) < logTakeovers {
		return
	}
	t.logged[from] = time.Now()
	t.logger.Info("taking over notifications from a replica that does not answer", "replica", from, "first", key)
}

// want enters the wish, behind an earlier one of this process for the same key: a reload may still be ending the old
// routing tree.
func (t *turns) want(ctx context.Context, q question) (*turn, error) {
	for {
		t.mu.Lock()
		if t.stopping {
			t.mu.Unlock()
			return nil, errStoppingTurns
		}
		earlier := t.wanted[q.key]
		if earlier == nil {
			own := &turn{
				question: q, since: time.Now(), refused: map[string]bool{},
				wake: make(chan struct{}, 1), gone: make(chan struct{}),
			}
			t.wanted[q.key] = own
			t.mu.Unlock()
			return own, nil
		}
		t.mu.Unlock()
		select {
		case <-earlier.gone:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// round is what the others answered.
type round struct {
	refused []string
	// unanswered may still hold the turn, gone cannot be waited for any longer.
	unanswered, gone []string
}

// round asks everybody at once.
func (t *turns) round(ctx context.Context, own *turn) (round, error) {
	select {
	case t.asking <- struct{}{}:
		defer func() { <-t.asking }()
	case <-ctx.Done():
		return round{}, context.Cause(ctx)
	}
	t.mu.Lock()
	own.yielded = false
	t.mu.Unlock()
	others := t.peers.others()
	type answer struct {
		other
		granted bool
		err     error
	}
	answers := make(chan answer, len(others))
	for _, o := range others {
		timeout := askTimeout
		if !o.alive || t.silentFor(o.name) >= unreachableFor {
			timeout = askDeadTimeout
		}
		go func() {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			granted, err := t.peers.ask(ctx, o.name, own.question)
			answers <- answer{o, granted, err}
		}()
	}
	var r round
	for range others {
		a := <-answers
		if ctx.Err() != nil {
			continue // The answers are waited for, and mean nothing any more.
		}
		silent := t.heardFrom(a.name, a.err)
		switch {
		case a.err == nil && a.granted:
		case a.err == nil:
			r.refused = append(r.refused, a.name)
		case a.alive && silent < unreachableFor:
			r.unanswered = append(r.unanswered, a.name)
		default:
			r.gone = append(r.gone, a.name)
		}
	}
	return r, context.Cause(ctx)
}

// silentFor is how long a replica has not answered. What was long ago says nothing.
func (t *turns) silentFor(name string) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s, ok := t.silent[name]; ok && time.Since(s.asked) < forgetSilence {
		return time.Since(s.since)
	}
	return 0
}

// heardFrom notes whether a replica has answered, and returns how long it has not.
func (t *turns) heardFrom(name string, err error) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		delete(t.silent, name)
		return 0
	}
	now := time.Now()
	s, ok := t.silent[name]
	if !ok || now.Sub(s.asked) >= forgetSilence {
		s.since = now
	}
	s.asked = now
	t.silent[name] = s
	return now.Sub(s.since)
}

// done ends a wish or a hold, and tells those who wait for it.
func (t *turns) done(own *turn) {
	t.mu.Lock()
	if t.wanted[own.key] == own {
		delete(t.wanted, own.key)
	}
	if own.timer != nil {
		own.timer.Stop()
	}
	if own.passOn != nil {
		own.passOn(nil)
	}
	close(own.gone)
	t.mu.Unlock()
	for name := range own.refused {
		t.peers.pass(name, own.key)
	}
}

// asked answers another replica's question: whether it may go first.
func (t *turns) asked(from string, q question) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	own := t.wanted[q.key]
	switch {
	case own == nil:
		return true
	case own.held:
		own.refused[from] = true
		if own.timer == nil {
			own.timer = time.AfterFunc(max(0, maxHold-time.Since(own.since)), func() { own.passOn(errPassOn) })
		}
		return false
	case q.failures < own.failures, q.failures == own.failures && prefers(q.key.String(), from, t.self):
		own.yielded = true
		return true
	default:
		own.refused[from] = true
		return false
	}
}

// passed wakes the wish for a key: the replica that went first is done.
func (t *turns) passed(key turnKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if own := t.wanted[key]; own != nil {
		own.passed = true
		own.awake()
	}
}

func (t *turns) wasPassed(own *turn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return own.passed
}

// changed wakes all wishes: a replica has come or gone. One that is new has not been silent.
func (t *turns) changed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range t.peers.others() {
		if s, ok := t.silent[o.name]; ok && o.alive && o.since.After(s.since) {
			delete(t.silent, o.name)
		}
	}
	for _, own := range t.wanted {
		own.awake()
	}
}

func (own *turn) awake() {
	select {
	case own.wake <- struct{}{}:
	default:
	}
}

// stop leaves what has not begun to the others, and waits until ctx ends for what is being sent.
func (t *turns) stop(ctx context.Context) {
	t.mu.Lock()
	if !t.stopping {
		t.stopping = true
		close(t.stopped)
	}
	t.mu.Unlock()
	for {
		t.mu.Lock()
		var left *turn
		for _, own := range t.wanted {
			left = own
			break
		}
		t.mu.Unlock()
		if left == nil {
			return
		}
		select {
		case <-left.gone:
		case <-ctx.Done():
			return
		}
	}
}

// prefers says whether a goes before b: rendezvous hashing, so that the keys are spread over the replicas and all
// agree without talking.
func prefers(key, a, b string) bool {
	x, y := score(key, a), score(key, b)
	if x != y {
		return x > y
	}
	return a < b
}

func score(key, replica string) uint64 {
	h := fnv.New64a()
	// A hash never fails. The zero byte keeps apart what the two are made of.
	_, _ = h.Write([]byte(replica + "\x00" + key))
	// FNV mixes the last bytes too little for comparing.
	v := h.Sum64()
	v ^= v >> 33
	v *= 0xff51afd7ed558ccd // The finalizer of MurmurHash3.
	v ^= v >> 33
	return v
}
