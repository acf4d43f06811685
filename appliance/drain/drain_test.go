package drain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tocsin-io/tocsin/appliance/drain/peerspb"
	"github.com/tocsin-io/tocsin/appliance/mesh"
)

// world is replicas that know each other. Questions take a random time there and back.
type world struct {
	t        *testing.T
	random   *rand.Rand
	mu       sync.Mutex
	replicas map[string]*replica
}

// replica is one of them, in one life or between two.
type replica struct {
	world    *world
	name     string
	keyed    bool
	before   []string
	up       bool
	left     bool
	since    time.Time
	unfit    string // of this life
	old      bool   // It is of the release before.
	whole    float64
	settled  bool
	card     mesh.CardDrain
	drain    *Drain
	skew     time.Duration
	stopping chan struct{}
}

func newWorld(t *testing.T, seed uint64, names ...string) *world {
	w := &world{t: t, random: rand.New(rand.NewPCG(seed, 1)), replicas: map[string]*replica{}}
	for _, name := range names {
		w.replicas[name] = &replica{world: w, name: name, keyed: true}
	}
	for _, name := range names {
		w.replicas[name].start()
	}
	return w
}

// start begins a life that has all its data.
func (r *replica) start() { r.begin("", 1) }

// begin begins a life, in which it lacks something from its first moment on.
func (r *replica) begin(unfit string, whole float64) {
	r.world.mu.Lock()
	r.up, r.left, r.since, r.unfit, r.whole, r.settled, r.card = true, false, time.Now(), unfit, whole, true, mesh.CardDrain{}
	r.stopping = make(chan struct{})
	r.world.mu.Unlock()
	d := New(Options{
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Mesh: r,
		Unfit:   func() string { r.world.mu.Lock(); defer r.world.mu.Unlock(); return r.unfit },
		Expects: func() bool { return true }, Stopping: r.stopping,
	})
	d.now = func() time.Time { return time.Now().Add(r.skew) }
	r.world.mu.Lock()
	r.drain = d
	r.world.mu.Unlock()
}

func (r *replica) stop() {
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	r.up, r.left, r.since = false, true, time.Now()
	close(r.stopping)
	_ = r.drain.Close() // It has no error.
}

func (r *replica) set(change func()) {
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	change()
}

func (r *replica) Name() string                  { return r.name }
func (r *replica) Keyed() bool                   { return r.keyed }
func (r *replica) Server() grpc.ServiceRegistrar { return grpc.NewServer() }

func (r *replica) SeenBefore() (names []string) {
	r.set(func() { names = r.before })
	return names
}

func (r *replica) Settled() bool {
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	return r.settled
}

func (r *replica) SetDrain(c mesh.CardDrain) { r.set(func() { r.card = c }) }

func (r *replica) Members() []mesh.Member {
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	var all []mesh.Member
	for _, o := range r.world.replicas {
		all = append(all, mesh.Member{
			Name: o.name, Alive: o.up, Left: o.left, Self: o == r, Since: o.since,
			Card: mesh.Card{Cluster: "test", Zone: "zone-" + o.name, Completeness: o.whole, Drain: o.card},
		})
	}
	return all
}

func (r *replica) Conn(member string) (grpc.ClientConnInterface, error) {
	return conn{r, member}, nil
}

// conn carries questions from one replica to another.
type conn struct {
	from *replica
	to   string
}

func (c conn) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("there are no streams here")
}

func (c conn) Invoke(ctx context.Context, _ string, args, reply any, _ ...grpc.CallOption) error {
	w := c.from.world
	travel := func() error {
		w.mu.Lock()
		d := time.Duration(w.random.IntN(400)) * time.Millisecond
		w.mu.Unlock()
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	if err := travel(); err != nil {
		return err
	}
	w.mu.Lock()
	to := w.replicas[c.to]
	up, old, d := to.up, to.old, to.drain
	w.mu.Unlock()
	switch {
	case !up:
		return status.Error(codes.Unavailable, "connection refused")
	case old:
		return status.Error(codes.Unimplemented, "unknown service")
	}
	ask, ok := args.(*peerspb.AskRequest)
	if !ok {
		return fmt.Errorf("%T is not asked", args)
	}
	why := d.answer(c.from.name, ask.GetClaimedMs())
	if err := travel(); err != nil {
		return err
	}
	out, ok := reply.(*peerspb.AskReply)
	if !ok {
		return fmt.Errorf("%T is not answered", reply)
	}
	proto.Merge(out, &peerspb.AskReply{Granted: why == "", Reason: why})
	return nil
}

// away is how many are not there, or not whole.
func (w *world) away() (n int, who string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, r := range w.replicas {
		if !r.up || r.unfit != "" || r.whole < 1 {
			n++
			who += " " + name
		}
	}
	return n, who
}

// upgrade is what a package does: drain, stop, start, catch up.
func (r *replica) upgrade(ctx context.Context) error {
	r.world.mu.Lock()
	d := r.drain
	r.world.mu.Unlock()
	if _, err := d.Claim(ctx, false, func(string) {}); err != nil {
		return err
	}
	if n, who := r.world.away(); n != 0 {
		r.world.t.Errorf("%s may be stopped while these are away:%s", r.name, who)
	}
	r.world.mu.Lock()
	lag, down, lacks := r.world.random.IntN(3000), r.world.random.IntN(5000), r.world.random.IntN(20000)
	r.world.mu.Unlock()
	pass(time.Duration(lag) * time.Millisecond)
	r.stop()
	pass(time.Duration(down) * time.Millisecond)
	r.begin("is catching up: 1 gap", 0.99)
	pass(time.Duration(lacks) * time.Millisecond)
	r.set(func() { r.unfit, r.whole = "", 1 })
	return nil
}

// pass lets time pass, by the bubble's clock.
func pass(d time.Duration) { <-time.After(d) }

// TestAllAtOnce holds that of three or five that are upgraded at the same minute, by clocks that differ, never two are away,
// and that each has its turn; with a key and without.
func TestAllAtOnce(t *testing.T) {
	for _, keyed := range []bool{true, false} {
		for seed := range uint64(150) {
			names := []string{"a", "b", "c"}
			if seed%3 == 0 {
				names = append(names, "d", "e")
			}
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, seed, names...)
				for _, r := range w.replicas {
					r.set(func() { r.keyed, r.skew = keyed, time.Duration(w.random.IntN(6000)-3000)*time.Millisecond })
					r.start()
				}
				var all sync.WaitGroup
				for _, r := range w.replicas {
					all.Go(func() {
						w.mu.Lock()
						late := w.random.IntN(3000)
						w.mu.Unlock()
						pass(time.Duration(late) * time.Millisecond)
						if err := r.upgrade(t.Context()); err != nil {
							t.Errorf("seed %d: %s: %v", seed, r.name, err)
						}
					})
				}
				ended := make(chan struct{})
				go func() { all.Wait(); close(ended) }()
				for {
					select {
					case <-ended:
						return
					case <-time.After(20 * time.Millisecond):
						if n, who := w.away(); n > 1 {
							t.Errorf("seed %d, keyed %t: away at once:%s", seed, keyed, who)
						}
					}
				}
			})
			if t.Failed() {
				return
			}
		}
	}
}

// words collects what a caller hears.
type words struct {
	mu  sync.Mutex
	all []string
}

func (s *words) say(sentence string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, sentence)
}

// claim is a claim of which all is heard.
func (s *words) claim(ctx context.Context, d *Drain, force bool) error {
	granted, err := d.Claim(ctx, force, s.say)
	if err == nil {
		s.say(granted)
	}
	return err
}

func (s *words) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.all, "\n")
}

// TestWaits holds that a claim waits for what it has to wait for, says so again and again, and goes on when that is over.
func TestWaits(t *testing.T) {
	for name, c := range map[string]struct {
		begin, end func(*world)
		says       string
	}{
		"one that is down": {
			func(w *world) { w.replicas["b"].stop() }, func(w *world) { w.replicas["b"].start() },
			"waiting: replica b (zone zone-b) has been stopped since 2000-01-01 00:00:00 UTC (if it is gone for good: --force, or a day until it is forgotten)",
		},
		"one that catches up": {
			func(w *world) {
				b := w.replicas["b"]
				b.set(func() { b.unfit = "is catching up: 3 gaps, 40 % of one filled" })
			},
			func(w *world) { b := w.replicas["b"]; b.set(func() { b.unfit = "" }) },
			"waiting: replica b (zone zone-b) is catching up: 3 gaps, 40 % of one filled",
		},
		"one that only another one misses": {
			func(w *world) { b := w.replicas["b"]; b.set(func() { b.before = []string{"a", "d"} }) },
			func(w *world) { b := w.replicas["b"]; b.set(func() { b.before = nil }) },
			"waiting: replica b (zone zone-b) misses others: replica d was there before",
		},
		"an older release that is not whole": {
			func(w *world) { b := w.replicas["b"]; b.set(func() { b.old, b.whole = true, 0.5 }) },
			func(w *world) { b := w.replicas["b"]; b.set(func() { b.whole = 1 }) },
			"waiting: replica b (zone zone-b) has 50.00 % of its data, and is of an older release",
		},
		"the mesh": {
			func(w *world) { a := w.replicas["a"]; a.set(func() { a.settled = false }) },
			func(w *world) { a := w.replicas["a"]; a.set(func() { a.settled = true }) },
			"waiting: the other replicas are still being looked for",
		},
		"nobody at all": {
			func(w *world) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.replicas = map[string]*replica{"a": w.replicas["a"]}
			},
			func(w *world) {
				b := &replica{world: w, name: "b", keyed: true}
				b.start()
				w.mu.Lock()
				defer w.mu.Unlock()
				w.replicas["b"] = b
			},
			"waiting: no other replica was found, though the configuration has some",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1, "a", "b", "c")
				c.begin(w)
				heard, ended := &words{}, make(chan error, 1)
				go func() { ended <- heard.claim(t.Context(), w.replicas["a"].drain, false) }()
				pass(time.Minute)
				if n := strings.Count(heard.String(), c.says); n < 10 || n > 14 {
					t.Errorf("%d times in a minute %q in:\n%s", n, c.says, heard)
				}
				select {
				case err := <-ended:
					t.Fatalf("it did not wait: %v", err)
				default:
				}
				c.end(w)
				if err := <-ended; err != nil {
					t.Error(err)
				}
				if got := w.replicas["a"].drain.State(); got.State != StateDrained {
					t.Errorf("afterwards its state is %+v", got)
				}
				_ = w.replicas["a"].drain.Close() // It has no error.
			})
		})
	}
}

// TestEnds holds that a claim ends with its caller, by force at once, and when nobody stops the process after it.
func TestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, "a", "b", "c")
		a, b := w.replicas["a"].drain, w.replicas["b"].drain
		w.replicas["c"].stop()

		ctx, hangUp := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- (&words{}).claim(ctx, a, false) }()
		pass(10 * time.Second)
		if err := (&words{}).claim(t.Context(), a, false); !errors.Is(err, ErrBusy) {
			t.Errorf("a second caller is told %v", err)
		}
		hangUp()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
		if got := a.State(); got.State != StateNone || w.replicas["a"].card != (mesh.CardDrain{}) {
			t.Errorf("the caller is gone, and its claim is not: %+v, %+v", got, w.replicas["a"].card)
		}

		heard := &words{}
		if err := heard.claim(t.Context(), a, true); err != nil {
			t.Fatal(err)
		}
		if s := heard.String(); !strings.HasPrefix(s, "forced, although replica c (zone zone-c) has been stopped") {
			t.Errorf("with force it said %q", s)
		}
		w.replicas["c"].start()
		if err := heard.claim(t.Context(), b, false); err != nil {
			t.Fatal(err)
		}
		if s := heard.String(); !strings.Contains(s, "waiting: replica a (zone zone-a) is drained itself") {
			t.Errorf("b did not wait for a: %s", s)
		}
		if got := a.State(); got.State != StateNone {
			t.Errorf("b may be stopped, and a is %+v", got)
		}
		_ = b.Close() // It has no error.
	})
}

// TestAgain holds that a second call, after one that got the turn, keeps it, looks anew, and has ten minutes more.
func TestAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, "a", "b", "c")
		a := w.replicas["a"].drain
		if err := (&words{}).claim(t.Context(), a, false); err != nil {
			t.Fatal(err)
		}
		w.replicas["c"].stop()
		ctx, hangUp := context.WithTimeout(t.Context(), time.Minute)
		defer hangUp()
		if err := (&words{}).claim(ctx, a, false); err == nil {
			t.Error("c is down, and a may be stopped once more")
		}
		if got := a.State(); got.State != StateDrained {
			t.Errorf("the first caller lost what it had: %+v", got)
		}
		w.replicas["c"].start()
		pass(holdFor - 2*time.Minute)
		if err := (&words{}).claim(t.Context(), a, false); err != nil {
			t.Error(err)
		}
		pass(holdFor - time.Second)
		if got := a.State(); got.State != StateDrained {
			t.Errorf("it has not got ten minutes more: %+v", got)
		}
		pass(2 * time.Second)
		if got := a.State(); got.State != StateNone {
			t.Errorf("it does not end: %+v", got)
		}
	})
}

// TestForgets holds that a replica that was there only before the start is not waited for for ever.
func TestForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, "a", "b")
		w.replicas["a"].set(func() { w.replicas["a"].before = []string{"b", "gone"} })
		began := time.Now()
		if err := (&words{}).claim(t.Context(), w.replicas["a"].drain, false); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < forgetAfter || took > forgetAfter+time.Minute {
			t.Errorf("it waited for %s", took)
		}
		_ = w.replicas["a"].drain.Close() // It has no error.
	})
}

func TestAlone(t *testing.T) {
	d := New(Options{
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		Unfit: func() string { return "" }, Expects: func() bool { return false }, Stopping: make(chan struct{}),
	})
	heard := &words{}
	if err := heard.claim(t.Context(), d, false); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(heard.String(), "it is alone") {
		t.Errorf("it said %q", heard)
	}
	_ = d.Close() // It has no error.
}

func TestPrintable(t *testing.T) {
	if got := said("is\x1b[31m bad\n\xff" + strings.Repeat("x", 1000)); !utf8.ValidString(got) || strings.ContainsAny(got, "\x1b\n") || len(got) > maxReason {
		t.Errorf("another replica's words are shown as %q", got)
	}
	if got := said(""); got == "" {
		t.Error("a refusal without a reason counts as none")
	}
}
