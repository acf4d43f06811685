package alert

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/tocsin-io/tocsin/appliance/alert/peerspb"
	"github.com/tocsin-io/tocsin/appliance/mesh"
)

func TestCombine(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	said := func(source string, incarnation int64, ends time.Duration, ago time.Duration) heard {
		return heard{&peerspb.Statement{
			Source: source, IncarnationMs: incarnation, EndsAtMs: now.Add(ends).UnixMilli(), StartsAtMs: 500 + incarnation,
		}, now.Add(-ago), 0}
	}
	firing, resolved := 4*time.Minute, -time.Second
	alive := map[string]source{"a": {true, 1}, "b": {true, 1}, "c": {true, 1}}
	for name, c := range map[string]struct {
		said    []heard
		sources map[string]source
		fires   bool
	}{
		"one fires":         {[]heard{said("a", 1, firing, 0)}, alive, true},
		"one resolved":      {[]heard{said("a", 1, resolved, 0)}, alive, false},
		"one still sees it": {[]heard{said("a", 1, resolved, 0), said("b", 1, firing, time.Minute)}, alive, true},
		"all have resolved": {[]heard{said("a", 1, resolved, 0), said("b", 1, resolved, 0)}, alive, false},
		"the dead cannot take back, and nobody else has": {[]heard{said("a", 1, firing, time.Minute)}, map[string]source{"b": {true, 1}}, true},
		"the dead is overruled by who knows better":      {[]heard{said("a", 1, firing, time.Minute), said("b", 1, resolved, 0)}, map[string]source{"a": {false, 1}, "b": {true, 1}}, false},
		"the dead said it last":                          {[]heard{said("a", 1, firing, 0), said("b", 1, resolved, time.Minute)}, map[string]source{"a": {false, 1}, "b": {true, 1}}, true},
		"the restarted does not remember":                {[]heard{said("a", 1, firing, time.Minute), said("b", 1, resolved, 0)}, map[string]source{"a": {true, 2}, "b": {true, 1}}, false},
		"from outside and from a rule":                   {[]heard{said("", 0, firing, time.Minute), said("b", 1, resolved, 0)}, alive, true},
		"what has lapsed is resolved":                    {[]heard{said("a", 1, 0, 4*time.Minute)}, alive, false},
	} {
		t.Run(name, func(t *testing.T) {
			by := map[string]heard{}
			for _, h := range c.said {
				by[h.GetSource()] = h
			}
			got, any := combine(by, c.sources, now)
			if !any {
				t.Fatal("nothing was made of it")
			}
			if fires := got.GetEndsAtMs() > now.UnixMilli(); fires != c.fires {
				t.Errorf("it fires: %t, want %t; it ends %s from now", fires, c.fires, time.UnixMilli(got.GetEndsAtMs()).Sub(now))
			}
		})
	}
	if _, any := combine(nil, alive, now); any {
		t.Error("something was made of nothing")
	}
	two := map[string]heard{"a": said("a", 9, firing, 0), "b": said("b", 2, firing, 0)}
	if got, _ := combine(two, alive, now); got.GetStartsAtMs() != 502 {
		t.Errorf("it starts at %d, not when the first saw it", got.GetStartsAtMs())
	}
}

// street is relays that deliver to each other, over a way that can be cut.
type street struct {
	mu     sync.Mutex
	relays map[string]*relay
	put    map[string]map[string]posted // What each Alertmanager has, by alert name.
	order  map[string][]string
	dead   map[string]bool
	delay  func() time.Duration
}

type streetMesh struct {
	Mesh
	s    *street
	self string
}

func (m streetMesh) Members() []mesh.Member {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	var out []mesh.Member
	for n, r := range m.s.relays {
		out = append(out, mesh.Member{
			Name: n, Self: n == m.self, Alive: !m.s.dead[n] || n == m.self,
			Card: mesh.Card{GRPC: "x", Started: time.UnixMilli(r.incarnation)},
		})
	}
	return out
}

func (m streetMesh) Server() grpc.ServiceRegistrar { return nil }

func newStreet(names ...string) *street {
	s := &street{
		relays: map[string]*relay{}, put: map[string]map[string]posted{}, order: map[string][]string{}, dead: map[string]bool{},
		delay: func() time.Duration { return time.Millisecond },
	}
	for _, n := range names {
		s.put[n] = map[string]posted{}
		s.relays[n] = &relay{
			self: n, incarnation: 1, mesh: streetMesh{s: s, self: n}, logger: slog.New(slog.DiscardHandler),
			metrics: newMetrics(prometheus.NewRegistry()).relay,
			put: func(_ context.Context, alerts []posted) error {
				s.mu.Lock()
				defer s.mu.Unlock()
				for _, a := range alerts {
					s.put[n][a.Labels["alertname"]] = a
					s.order[n] = append(s.order[n], fmt.Sprintf("%s %t", a.Labels["alertname"], a.EndsAt.After(time.Now())))
				}
				return nil
			},
			send: func(ctx context.Context, member string, msg *peerspb.Statements) error {
				s.mu.Lock()
				lost, delay := s.dead[member] || s.dead[n], s.delay()
				s.mu.Unlock()
				if lost {
					return errors.New("unreachable")
				}
				select {
				case <-time.After(delay):
				case <-ctx.Done():
					return ctx.Err()
				}
				return s.relays[member].hear(ctx, proto.Clone(msg).(*peerspb.Statements))
			},
			said: map[model.Fingerprint]map[string]heard{}, has: map[model.Fingerprint]had{}, queues: map[string]*queue{},
		}
	}
	return s
}

func (s *street) changed(t *testing.T) {
	for _, r := range s.relays {
		if err := r.changed(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func (s *street) stop() {
	for _, r := range s.relays {
		r.stop()
	}
}

func (s *street) fires(at, alert string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.put[at][alert].EndsAt.After(time.Now())
}

// hearOutside is what a POST to the Alertmanager API does.
func hearOutside(t *testing.T, r *relay, alerts []posted) {
	t.Helper()
	err := r.overheard(t.Context(), func() []posted {
		if err := r.put(t.Context(), alerts); err != nil {
			t.Error(err)
		}
		return alerts
	})
	if err != nil {
		t.Error(err)
	}
}

func alertOf(name string, ends time.Duration) []posted {
	return []posted{{Labels: map[string]string{"alertname": name}, StartsAt: time.Now(), EndsAt: time.Now().Add(ends)}}
}

// TestRelayReachesAll holds that whatever one replica says, in whatever order it travels, all end with the same.
func TestRelayReachesAll(t *testing.T) {
	for seed := range uint64(50) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(seed, 2))
				s := newStreet("a", "b", "c")
				ways := rand.New(rand.NewPCG(seed, 3))
				s.delay = func() time.Duration { return time.Duration(ways.IntN(300)) * time.Millisecond }
				s.changed(t)
				last := map[string]bool{}
				for range 60 {
					for _, n := range []string{"a", "b", "c"} {
						name, fires := fmt.Sprintf("%s%d", n, rnd.IntN(4)), rnd.IntN(2) == 0
						ends := 10 * time.Minute
						if !fires {
							ends = -time.Millisecond
						}
						if err := s.relays[n].say(t.Context(), alertOf(name, ends)); err != nil {
							t.Fatal(err)
						}
						last[name] = fires
					}
					pass(time.Duration(rnd.IntN(50)) * time.Millisecond)
				}
				pass(5 * time.Second)
				for name, fires := range last {
					for _, at := range []string{"a", "b", "c"} {
						if s.fires(at, name) != fires {
							t.Errorf("replica %s has alert %s firing: %t, its rules say %t", at, name, !fires, fires)
						}
					}
				}
				s.stop()
			})
		})
	}
}

// TestRelayCatchesUp holds that a replica that was away learns what it missed, and one that is new everything.
func TestRelayCatchesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreet("a", "b")
		s.changed(t)
		if err := s.relays["a"].say(t.Context(), alertOf("before", 10*time.Minute)); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		s.mu.Lock()
		s.dead["b"] = true
		s.mu.Unlock()
		s.changed(t)
		if err := errors.Join(
			s.relays["a"].say(t.Context(), alertOf("before", -time.Millisecond)),
			s.relays["a"].say(t.Context(), alertOf("during", 10*time.Minute)),
		); err != nil {
			t.Fatal(err)
		}
		hearOutside(t, s.relays["a"], alertOf("outside", 10*time.Minute))
		pass(time.Minute)
		if !s.fires("b", "before") || s.fires("b", "during") {
			t.Error("a replica that is cut off has heard something")
		}
		s.mu.Lock()
		s.dead["b"] = false
		s.mu.Unlock()
		s.changed(t)
		pass(5 * time.Second)
		if s.fires("b", "before") || !s.fires("b", "during") || !s.fires("b", "outside") {
			t.Errorf("a replica that is back has %v", s.put["b"])
		}
		s.stop()
	})
}

// TestRelayDispute holds that an alert that two replicas see neither resolves nor flaps while one of them still sees
// it, and resolves when the one that saw it last is gone.
func TestRelayDispute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreet("a", "b", "c")
		s.changed(t)
		say := func(who string, ends time.Duration) {
			if err := s.relays[who].say(t.Context(), alertOf("x", ends)); err != nil {
				t.Fatal(err)
			}
			pass(time.Second)
		}
		say("a", 4*time.Minute)
		say("b", 4*time.Minute)
		say("a", -time.Millisecond)
		for _, at := range []string{"a", "b", "c"} {
			if !s.fires(at, "x") {
				t.Errorf("replica %s has resolved what b still sees", at)
			}
		}
		s.mu.Lock()
		s.dead["b"] = true
		s.mu.Unlock()
		s.changed(t)
		pass(time.Second)
		for _, at := range []string{"a", "c"} {
			if s.fires(at, "x") {
				t.Errorf("replica %s still has firing what only the dead one saw", at)
			}
			for i, step := range s.order[at] {
				if step == "x false" && i != len(s.order[at])-1 {
					t.Errorf("replica %s had it resolved in between: %v", at, s.order[at])
				}
			}
		}
		s.stop()
	})
}

// TestRelayOfOutsideOrder holds that of what is posted to two replicas, the last holds everywhere, whatever arrives last.
func TestRelayOfOutsideOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreet("a", "b", "c")
		s.relays["b"].incarnation = 2 // They did not start at once.
		s.changed(t)
		s.delay = func() time.Duration { return time.Second }
		post := func(to string, ends time.Duration) {
			r := s.relays[to]
			hearOutside(t, r, alertOf("x", ends))
		}
		post("b", 10*time.Minute)
		pass(time.Millisecond)
		post("a", -time.Millisecond)
		pass(10 * time.Second)
		for _, at := range []string{"a", "b", "c"} {
			if s.fires(at, "x") {
				t.Errorf("replica %s has it firing, although it was resolved last", at)
			}
		}
		s.stop()
	})
}

// TestRelayOfTheSameFromOutside holds that an end that is posted does not resolve what a replica's own rule still sees.
func TestRelayOfTheSameFromOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreet("a", "b")
		s.changed(t)
		if err := s.relays["b"].say(t.Context(), alertOf("x", 10*time.Minute)); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		hearOutside(t, s.relays["a"], alertOf("x", -time.Millisecond))
		pass(time.Second)
		for _, at := range []string{"a", "b"} {
			if !s.fires(at, "x") {
				t.Errorf("replica %s has it resolved", at)
			}
		}
		s.stop()
	})
}

// TestRelayTellsTheRestarted holds that a replica that was never missed, so quickly was it back, is told everything.
func TestRelayTellsTheRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreet("a", "b")
		s.changed(t)
		hearOutside(t, s.relays["a"], alertOf("x", 10*time.Minute))
		pass(time.Second)
		if !s.fires("b", "x") {
			t.Fatal("it was not told at all")
		}
		s.mu.Lock()
		s.relays["b"].incarnation = 2
		s.put["b"] = map[string]posted{}
		clear(s.relays["b"].said)
		clear(s.relays["b"].has)
		s.mu.Unlock()
		s.changed(t)
		pass(time.Second)
		if !s.fires("b", "x") {
			t.Error("a replica that has restarted was not told what it had heard before")
		}
		s.stop()
	})
}

// TestRelayOfLargeAlerts holds that no delivery is too large to be taken.
func TestRelayOfLargeAlerts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreet("a", "b")
		largest := 0
		send := s.relays["a"].send
		s.relays["a"].send = func(ctx context.Context, member string, msg *peerspb.Statements) error {
			largest = max(largest, proto.Size(msg))
			return send(ctx, member, msg)
		}
		const n = 40
		for i := range n {
			as := alertOf(fmt.Sprint(i), time.Hour)
			as[0].Annotations = map[string]string{"x": strings.Repeat("x", 1<<20)}
			hearOutside(t, s.relays["a"], as)
		}
		s.changed(t)
		pass(10 * time.Second)
		for i := range n {
			if !s.fires("b", fmt.Sprint(i)) {
				t.Errorf("alert %d did not arrive", i)
			}
		}
		if largest > maxBatchBytes+1<<10 {
			t.Errorf("a delivery had %d bytes", largest)
		}
		s.stop()
		if want := n << 20; s.relays["a"].bytes < want {
			t.Errorf("%d bytes are counted, want %d", s.relays["a"].bytes, want)
		}
		s.relays["a"].forget(time.Now().Add(2 * time.Hour))
		if s.relays["a"].bytes != 0 {
			t.Errorf("%d bytes are counted where nothing is kept", s.relays["a"].bytes)
		}
	})
}

// TestRelayClocks holds that the end of an alert is not taken by another replica's clock.
func TestRelayClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreet("a", "b")
		hour := time.Hour.Milliseconds()
		now := time.Now().UnixMilli()
		msg := func(ends int64) *peerspb.Statements {
			return &peerspb.Statements{NowMs: now - hour, Statements: []*peerspb.Statement{{
				Source: "b", IncarnationMs: 1, SaidAtMs: now - hour, Labels: map[string]string{"alertname": "x"},
				StartsAtMs: now - 2*hour, EndsAtMs: now - hour + ends,
			}}}
		}
		if err := s.relays["a"].hear(t.Context(), msg(60_000)); err != nil {
			t.Fatal(err)
		}
		if !s.fires("a", "x") {
			t.Error("an alert of a replica whose clock is an hour behind is over before it came")
		}
		pass(2 * time.Minute)
		if s.fires("a", "x") {
			t.Error("it does not lapse")
		}
	})
}

// TestRelayRepeatsWhatWasNotTaken holds that an Alertmanager that was not ready gets the alert when it is.
func TestRelayRepeatsWhatWasNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreet("a", "b")
		b := s.relays["b"]
		take := b.put
		var started atomic.Bool
		b.put = func(ctx context.Context, alerts []posted) error {
			if !started.Load() && len(alerts) > 0 {
				return errors.New("it is starting")
			}
			return take(ctx, alerts)
		}
		s.changed(t)
		if err := s.relays["a"].say(t.Context(), alertOf("x", time.Hour)); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Second)
		started.Store(true)
		pass(10 * time.Second)
		if !s.fires("b", "x") {
			t.Error("it never got the alert")
		}
		// And what it has, it is not told again until it would lapse.
		told := func() int {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.order["b"])
		}
		before := told()
		for range 5 {
			pass(time.Second)
			if err := s.relays["a"].say(t.Context(), alertOf("x", time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		pass(time.Second)
		if n := told() - before; n != 0 {
			t.Errorf("it was told %d times what it has", n)
		}
		pass(time.Minute)
		if err := s.relays["a"].say(t.Context(), alertOf("x", time.Hour)); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		if n := told() - before; n != 1 {
			t.Errorf("a minute later it was told %d times that the alert lasts longer", n)
		}
		s.stop()
	})
}

func TestRelayIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreet("a")
		big := &peerspb.Statements{Statements: make([]*peerspb.Statement, maxDelivery+1)}
		if err := s.relays["a"].hear(t.Context(), big); err == nil {
			t.Error("a delivery without bound was taken")
		}
		rubbish := &peerspb.Statements{Statements: []*peerspb.Statement{
			nil, {}, {Source: "b", EndsAtMs: 1}, {Source: "a", EndsAtMs: 1, Labels: map[string]string{"alertname": "x"}},
		}}
		if err := s.relays["a"].hear(t.Context(), rubbish); err != nil {
			t.Error(err)
		}
		if s.relays["a"].count != 0 {
			t.Errorf("%d statements were made of rubbish", s.relays["a"].count)
		}
		for i := range 100 {
			hearOutside(t, s.relays["a"], alertOf(fmt.Sprint(i), time.Minute))
		}
		s.relays["a"].forget(time.Now().Add(2 * time.Minute))
		if s.relays["a"].count != 0 || len(s.relays["a"].said) != 0 {
			t.Error("what has lapsed is kept")
		}
	})
}
