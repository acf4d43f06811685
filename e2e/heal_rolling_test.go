package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// TestHealRollingRestart restarts one replica after the other, each when the one before is whole again. Whoever is up
// answers all the time, and never with a hole; afterwards nobody has missed a scrape.
func TestHealRollingRestart(t *testing.T) {
	t.Parallel()
	c := newHealCluster(t)
	began := time.Now()
	since := map[string]time.Time{}
	for _, name := range c.options.names {
		since[name] = c.replicas[name].pending()
	}
	loop := newQueryLoop(c, began.Add(-4*time.Second))
	for _, name := range c.options.names {
		r, away := c.replicas[name], time.Now()
		loop.leave(name)
		r.stop()
		eventually(t, 30*time.Second, name+" is away for a while", func() error { return after(away.Add(4 * time.Second)) })
		r.start().ready()
		loop.join(name)
		eventually(t, healMost, name+" is complete", all(r.knows("replica", away), c.complete(name)))
		eventually(t, 15*time.Second, name+" keeps the alert that waits", r.keepsPending(since[name], 8*time.Second))
	}
	ended := time.Now()
	eventually(t, 30*time.Second, "the time after is over", func() error { return after(ended.Add(2 * atEdges)) })
	eventually(t, healMost, "all are complete", c.complete())
	loop.end()
	for _, name := range c.options.names {
		c.sane(name, began.Add(-4*time.Second), ended, false)
		c.grows(name, began.Add(-4*time.Second), ended, 1.5)
	}
	c.nothingWasAbsent()
}

// queryLoop asks all replicas, one after the other, again and again. Those that are up must answer; the others may, and
// no answer may have a hole.
type queryLoop struct {
	c     *meshCluster
	since time.Time
	stop  chan struct{}
	done  sync.WaitGroup

	mu    sync.Mutex
	up    map[string]int // 0 when it is not; otherwise the number of its lives.
	lives int
	errs  []error
	asked int
	spare int // Answers of those that need not have answered.
}

func newQueryLoop(c *meshCluster, since time.Time) *queryLoop {
	l := &queryLoop{c: c, since: since, stop: make(chan struct{}), up: map[string]int{}}
	for _, name := range c.options.names {
		l.join(name)
	}
	// What the processes are is changed by the test meanwhile; the addresses are not.
	asked := map[string]*replica{}
	for name, r := range c.replicas {
		asked[name] = &replica{tocsin: &tocsin{url: r.url, amURL: r.amURL}, cluster: c, name: name, url: r.url, amURL: r.amURL}
	}
	l.done.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-l.stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			l.ask(asked[c.options.names[n%len(c.options.names)]])
		}
	})
	c.t.Cleanup(func() {
		l.halt()
		l.done.Wait()
	})
	return l
}

func (l *queryLoop) life(name string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up[name]
}

func (l *queryLoop) leave(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up[name] = 0
}

func (l *queryLoop) join(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lives++
	l.up[name] = l.lives
}

func (l *queryLoop) ask(r *replica) {
	before := l.life(r.name)
	err := r.flowing(l.since)
	up := before != 0 && l.life(r.name) == before
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	var h *hole
	switch {
	case errors.As(err, &h) || err != nil && up:
		l.errs = append(l.errs, fmt.Errorf("at %s: %w", time.Now().Format("15:04:05.000"), err))
	case err == nil && !up:
		l.spare++
	}
}

func (l *queryLoop) halt() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
}

func (l *queryLoop) end() {
	t := l.c.t
	t.Helper()
	l.halt()
	l.done.Wait()
	t.Logf("%d queries, %d of them answered by a replica that was starting or stopping", l.asked, l.spare)
	for n, err := range l.errs {
		if n == 10 {
			t.Errorf("and %d more", len(l.errs)-n)
			break
		}
		t.Error(err)
	}
	if l.asked < 20 {
		t.Errorf("only %d queries", l.asked)
	}
}

// able is when a replica surely could scrape.
type able struct {
	since time.Time // zero when it cannot
	times [][2]time.Time
}

func (a *able) begin(at time.Time) {
	if a.since.IsZero() {
		a.since = at
	}
}

func (a *able) end(at time.Time) {
	if !a.since.IsZero() && a.since.Before(at) {
		a.times = append(a.times, [2]time.Time{a.since, at})
	}
	a.since = time.Time{}
}

// chaos is a schedule of faults that follows from a seed, and what of the meter could be seen under it.
type chaos struct {
	*meshCluster
	able   map[string]*able
	down   map[string]bool
	frozen map[string]bool
	blind  map[string]bool // Cut off from the meter.
	apart  map[[2]string]bool
}

// TestHealSchedule plays faults of all kinds, one on another, from a seed. In the end each replica has all that any of
// them could have seen.
func TestHealSchedule(t *testing.T) {
	t.Parallel()
	seed := uint64(4)
	if s := os.Getenv("E2E_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("the seed is %d (E2E_SEED)", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	w := &chaos{
		meshCluster: newHealCluster(t), able: map[string]*able{}, down: map[string]bool{}, frozen: map[string]bool{},
		blind: map[string]bool{}, apart: map[[2]string]bool{},
	}
	began := time.Now()
	for _, name := range w.options.names {
		w.able[name] = &able{since: began}
	}
	tl := w.timeline()
	t.Cleanup(func() {
		if t.Failed() {
			w.tellGaps()
		}
	})
	at := time.Duration(0)
	for range 16 {
		at += time.Second + time.Duration(random.IntN(5000))*time.Millisecond
		tl.at(at, "a fault, or its end", func() { tl.note("%s", w.disturb(random)) })
	}
	tl.at(at+5*time.Second, "end all faults", w.endAll)
	tl.run()
	eventually(t, 60*time.Second, "all see all", w.whole)
	for _, name := range w.options.names {
		w.replicas[name].wantValue(30*time.Second, `up{job="meter"}`, 1)
	}
	over := time.Now()
	eventually(t, 30*time.Second, "the time after is over", func() error { return after(over.Add(8 * time.Second)) })
	eventually(t, 2*healMost, "all are complete", w.complete())
	for _, a := range w.able {
		a.end(over)
	}
	w.seenByAll(began, over)
}

// faulty is how many replicas cannot scrape.
func (w *chaos) faulty() (n int) {
	for _, name := range w.options.names {
		if w.down[name] || w.frozen[name] || w.blind[name] {
			n++
		}
	}
	return n
}

// disturb begins a fault, or ends one, and says which. Now and then nobody is left who sees the meter.
func (w *chaos) disturb(random *rand.Rand) string {
	name := w.options.names[random.IntN(3)]
	other := w.options.names[(slices.Index(w.options.names, name)+1+random.IntN(2))%3]
	pair := [2]string{min(name, other), max(name, other)}
	r, a, kind := w.replicas[name], w.able[name], random.IntN(5)
	switch {
	case w.down[name]:
		r.start()
		w.down[name] = false
		r.ready()
		w.recovers(name, a)
		return "start " + name
	case w.frozen[name]:
		r.thaw()
		w.frozen[name] = false
		w.recovers(name, a)
		return "thaw " + name
	case kind == 4:
		if w.apart[pair] = !w.apart[pair]; w.apart[pair] {
			w.net.cut(pair[0], pair[1])
			return "cut between " + pair[0] + " and " + pair[1]
		}
		w.net.mend(pair[0], pair[1])
		return "mend the way between " + pair[0] + " and " + pair[1]
	case w.blind[name]:
		w.net.mend(name, meterZone)
		w.blind[name] = false
		w.recovers(name, a)
		return "mend the way from " + name + " to the meter"
	case w.faulty() == 2 && random.IntN(4) > 0:
		return "nothing: only " + name + " is left, or others are away"
	case kind < 2:
		a.end(time.Now())
		r.kill()
		w.down[name] = true
		return "kill " + name
	case kind == 2:
		a.end(time.Now())
		r.freeze()
		w.frozen[name] = true
		return "freeze " + name
	default:
		a.end(time.Now())
		w.net.cut(name, meterZone)
		w.blind[name] = true
		return "cut " + name + " off from the meter"
	}
}

// recovers notes that a replica, which was started or not, surely scrapes from soon on.
func (w *chaos) recovers(name string, a *able) {
	if !w.blind[name] && !w.frozen[name] && !w.down[name] {
		a.begin(time.Now().Add(4 * time.Second))
	}
}

func (w *chaos) endAll() {
	w.net.healAll()
	for _, name := range w.options.names {
		switch r := w.replicas[name]; {
		case w.down[name]:
			r.start()
		case w.frozen[name]:
			r.thaw()
		}
	}
	for _, name := range w.options.names {
		w.replicas[name].ready()
	}
}

// seenByAll holds that each replica has a sample of the meter whenever one of them could see it, and that all tell the
// truth, and the same.
func (w *chaos) seenByAll(from, to time.Time) {
	t := w.t
	t.Helper()
	data := map[string]healSeries{}
	for _, name := range w.options.names {
		w.sane(name, from, to, true)
		w.grows(name, from, to, 2)
		data[name] = w.replicas[name].ticks(from, to)
	}
	const longest = 2500 * time.Millisecond
	for _, name := range w.options.names {
		at, wrong := data[name].sorted(), 0
		for _, who := range w.options.names {
			for _, i := range w.able[who].times {
				for end := i[0].Add(longest); !end.After(i[1]); end = end.Add(500 * time.Millisecond) {
					n, _ := slices.BinarySearch(at, end.Add(-longest).UnixMilli())
					if n < len(at) && at[n] <= end.UnixMilli() {
						continue
					}
					if wrong++; wrong <= 5 {
						t.Errorf("%s has nothing of the meter in the %s before %s, when %s could see it", name, longest, end.Format("15:04:05.000"), who)
					}
				}
			}
		}
		for _, other := range w.options.names {
			for ts, v := range data[other] {
				if mine, ok := data[name][ts]; ok && mine != v {
					t.Errorf("at %s %s has %s, and %s has %s", time.UnixMilli(ts).Format("15:04:05.000"), name, mine, other, v)
				}
			}
		}
	}
	seen := time.Duration(0)
	for _, a := range w.able {
		for _, i := range a.times {
			seen += i[1].Sub(i[0])
		}
	}
	t.Logf("in %s, the replicas could scrape for %s together", to.Sub(from).Round(time.Second), seen.Round(time.Second))
}
