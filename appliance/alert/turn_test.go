package alert

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// pass lets synctest's time pass.
func pass(d time.Duration) { <-time.After(d) }

// town is replicas whose turns talk to each other over a network that can be slow, cut or silent. Time is synctest's.
type town struct {
	t     *testing.T
	mu    sync.Mutex
	turns map[string]*turns
	dead  map[string]bool    // Known dead by the mesh.
	mute  map[string]bool    // Does not answer and is not known dead.
	cut   map[[2]string]bool // From whom to whom nothing goes.
	delay func() time.Duration
	jobs  sync.WaitGroup
}

func newTown(t *testing.T, names ...string) *town {
	w := &town{
		t: t, turns: map[string]*turns{}, dead: map[string]bool{}, mute: map[string]bool{},
		cut: map[[2]string]bool{}, delay: func() time.Duration { return time.Millisecond },
	}
	for _, n := range names {
		m := newMetrics(prometheus.NewRegistry()).turns
		w.turns[n] = newTurns(n, resident{w, n}, slog.New(slog.DiscardHandler), m)
	}
	return w
}

// resident is the town as one replica sees it.
type resident struct {
	w    *town
	name string
}

func (r resident) others() []other {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	var out []other
	for n := range r.w.turns {
		if n != r.name {
			out = append(out, other{name: n, alive: !r.w.dead[n]})
		}
	}
	return out
}

var errUnreachable = errors.New("unreachable")

// reach takes the time of one way, and fails where there is none.
func (r resident) reach(ctx context.Context, from, to string) error {
	r.w.mu.Lock()
	lost := r.w.cut[[2]string{from, to}] || r.w.dead[to] || r.w.mute[to] || r.w.mute[from]
	delay := r.w.delay()
	r.w.mu.Unlock()
	if lost {
		<-ctx.Done()
		return errUnreachable
	}
	select {
	case <-time.After(delay):
		return nil
	case <-ctx.Done():
		return errUnreachable
	}
}

func (r resident) ask(ctx context.Context, member string, q question) (bool, error) {
	if err := r.reach(ctx, r.name, member); err != nil {
		return false, err
	}
	granted := r.w.turns[member].asked(r.name, q)
	return granted, r.reach(ctx, member, r.name)
}

func (r resident) pass(member string, key turnKey) {
	r.w.jobs.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
		defer cancel()
		if r.reach(ctx, r.name, member) == nil {
			r.w.turns[member].passed(key)
		}
	})
}

func (w *town) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// one is a notification that is to be sent once: each replica sends it if, when it is its turn, nobody has.
type one struct {
	mu      sync.Mutex
	holding map[string]bool
	sent    []string
	most    int
}

func (o *one) send(ctx context.Context, tr *turns, key turnKey, takes time.Duration) error {
	for {
		o.mu.Lock()
		done := len(o.sent) > 0
		o.mu.Unlock()
		if done {
			return nil
		}
		held, turn, err := tr.take(ctx, key, 0)
		if errors.Is(err, errAgain) {
			continue
		}
		if err != nil {
			return err
		}
		o.mu.Lock()
		o.holding[tr.self] = true
		o.most = max(o.most, len(o.holding))
		done = len(o.sent) > 0
		o.mu.Unlock()
		if !done {
			select {
			case <-time.After(takes):
				o.mu.Lock()
				o.sent = append(o.sent, tr.self)
				o.mu.Unlock()
			case <-held.Done():
			}
		}
		o.mu.Lock()
		delete(o.holding, tr.self)
		o.mu.Unlock()
		tr.done(turn)
	}
}

func TestTurnsExclude(t *testing.T) {
	for seed := range uint64(200) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				w := newTown(t, "a", "b", "c")
				ways := rand.New(rand.NewPCG(seed, 2))
				w.delay = func() time.Duration { return time.Duration(ways.IntN(40)) * time.Millisecond }
				var keys []*one
				for i := range 5 {
					o := &one{holding: map[string]bool{}}
					keys = append(keys, o)
					for _, tr := range w.turns {
						start := time.Duration(rnd.IntN(60)) * time.Millisecond
						takes := time.Duration(1+rnd.IntN(100)) * time.Millisecond
						w.jobs.Go(func() {
							pass(start)
							if err := o.send(t.Context(), tr, turnKey{group: fmt.Sprint(i)}, takes); err != nil {
								t.Error(err)
							}
						})
					}
				}
				begun := time.Now()
				w.jobs.Wait()
				for i, o := range keys {
					if len(o.sent) != 1 || o.most != 1 {
						t.Errorf("key %d was sent by %v, with up to %d replicas at once", i, o.sent, o.most)
					}
				}
				if took := time.Since(begun); took > retryRefused {
					t.Errorf("it took %s: a pass was missed", took)
				}
			})
		})
	}
}

// firstAndNext are the replicas in the order in which they go.
func firstAndNext(key turnKey) (first, next string) {
	if prefers(key.String(), "a", "b") {
		return "a", "b"
	}
	return "b", "a"
}

// TestTurnOfTheDead holds that a sender that dies is waited for no longer than it takes to know.
func TestTurnOfTheDead(t *testing.T) {
	for name, dies := range map[string]func(*town, string){
		"known dead":      func(w *town, n string) { w.dead[n] = true },
		"does not answer": func(w *town, n string) { w.mute[n] = true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTown(t, "a", "b")
				key := turnKey{group: "g"}
				first, next := firstAndNext(key)
				_, held, err := w.turns[first].take(t.Context(), key, 0)
				if err != nil {
					t.Fatal(err)
				}
				var died time.Time
				w.jobs.Go(func() {
					pass(time.Second)
					w.set(func() { dies(w, first) })
					died = time.Now()
					w.turns[next].changed()
				})
				_, second, err := w.turns[next].take(t.Context(), key, 0)
				if err != nil {
					t.Fatal(err)
				}
				if took := time.Since(died); took < 0 || took > unreachableFor+2*askTimeout {
					t.Errorf("taken over %s after the death", took)
				}
				w.turns[next].done(second)
				w.turns[first].done(held)
				w.jobs.Wait()
			})
		})
	}
}

// TestTurnUnderPartition holds that each side notifies, late only by as long as it takes to know.
func TestTurnUnderPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, "a", "b")
		w.cut[[2]string{"a", "b"}], w.cut[[2]string{"b", "a"}] = true, true
		start := time.Now()
		for _, tr := range w.turns {
			w.jobs.Go(func() {
				_, turn, err := tr.take(t.Context(), turnKey{group: "g"}, 0)
				if err != nil {
					t.Error(err)
					return
				}
				if took := time.Since(start); took > unreachableFor+2*askTimeout {
					t.Errorf("replica %s waited %s", tr.self, took)
				}
				tr.done(turn)
			})
		}
		w.jobs.Wait()
		// Knowing that the other side is gone, the next one is sent almost at once.
		start = time.Now()
		_, turn, err := w.turns["a"].take(t.Context(), turnKey{group: "h"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > askTimeout {
			t.Errorf("the second notification under a partition waited %s", took)
		}
		w.turns["a"].done(turn)
		w.jobs.Wait()
	})
}

// TestTurnIsPassedOn holds that a replica that cannot reach the receiver lets every other one try before it tries again,
// and that it tries again if none of them can.
func TestTurnIsPassedOn(t *testing.T) {
	for _, able := range []string{"a", "b", "c"} {
		t.Run(able, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTown(t, "a", "b", "c")
				key := turnKey{group: "g"}
				ctx, cancel := context.WithTimeout(t.Context(), 10*maxHold)
				defer cancel()
				var mu sync.Mutex
				var tried []string
				sent := false
				start := time.Now()
				for name, tr := range w.turns {
					w.jobs.Go(func() {
						for failures := 0; ; {
							mu.Lock()
							done := sent
							mu.Unlock()
							if done {
								return
							}
							held, turn, err := tr.take(ctx, key, failures)
							if errors.Is(err, errAgain) {
								continue
							}
							if err != nil {
								t.Error(err)
								return
							}
							mu.Lock()
							if sent {
								mu.Unlock()
								tr.done(turn)
								return
							}
							tried = append(tried, name)
							sent = name == able
							mu.Unlock()
							if name != able {
								<-held.Done()
								if !errors.Is(context.Cause(held), errPassOn) {
									t.Errorf("the hold ended with %v", context.Cause(held))
								}
								failures++
							}
							tr.done(turn)
						}
					})
				}
				w.jobs.Wait()
				if took := time.Since(start); took > 2*maxHold+2*retryRefused {
					t.Errorf("sent after %s by %v: two holds of %s are the most that it may take", took, tried, maxHold)
				}
			})
		})
	}
}

// TestSilenceIsForgotten holds that a replica that was away once is waited for again when it is back.
func TestSilenceIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, "a", "b")
		take := func() time.Duration {
			start := time.Now()
			_, turn, err := w.turns["a"].take(t.Context(), turnKey{group: fmt.Sprint(start)}, 0)
			if err != nil {
				t.Fatal(err)
			}
			w.turns["a"].done(turn)
			return time.Since(start)
		}
		w.set(func() { w.dead["b"] = true })
		take()
		w.set(func() { delete(w.dead, "b") })
		pass(time.Minute)
		w.set(func() { w.mute["b"] = true })
		if took := take(); took < unreachableFor {
			t.Errorf("a replica that did not answer a minute ago is waited for %s now, want %s", took, unreachableFor)
		}
		w.jobs.Wait()
	})
}

// TestTurnsStop holds that a replica that stops finishes what it is sending, and begins nothing.
func TestTurnsStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, "a", "b")
		tr := w.turns["a"]
		_, turn, err := tr.take(t.Context(), turnKey{group: "g"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		w.jobs.Go(func() {
			pass(2 * time.Second)
			tr.done(turn)
		})
		start := time.Now()
		tr.stop(t.Context())
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("waited %s for a notification that took 2s", took)
		}
		if _, _, err := tr.take(t.Context(), turnKey{group: "h"}, 0); !errors.Is(err, errStoppingTurns) {
			t.Errorf("a turn after the stop: %v", err)
		}
		w.jobs.Wait()
	})
}

// TestRanksAreSpread holds that no replica sends everything.
func TestRanksAreSpread(t *testing.T) {
	names := []string{"eu-west-1a", "eu-west-1b", "eu-west-1c"}
	first := map[string]int{}
	const n = 3000
	for i := range n {
		key := turnKey{group: fmt.Sprintf("{}:{alertname=\"X\", n=\"%d\"}", i), receiver: "people"}.String()
		best := names[0]
		for _, name := range names[1:] {
			if prefers(key, name, best) {
				best = name
			}
		}
		first[best]++
	}
	for _, name := range names {
		if first[name] < n/5 {
			t.Errorf("replica %s goes first for %d of %d notifications", name, first[name], n)
		}
	}
}
