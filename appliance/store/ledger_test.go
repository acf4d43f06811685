package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/labels"
)

const hour = int64(time.Hour / time.Millisecond)

// ledgerIn opens a ledger that settles in ten seconds and keeps a day.
func ledgerIn(t testing.TB, dir string, change ...func(*LedgerOptions)) (*Ledger, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	o := LedgerOptions{
		Dir: dir, Logger: slog.New(slog.NewTextHandler(log, nil)), Registerer: prometheus.NewRegistry(),
		Retention: func() time.Duration { return 24 * time.Hour },
		Settle:    func() time.Duration { return 10 * time.Second },
	}
	for _, c := range change {
		c(&o)
	}
	l, err := OpenLedger(o)
	if err != nil {
		t.Fatal(err)
	}
	return l, log
}

// life runs a ledger until the test ends it.
func life(t testing.TB, l *Ledger) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	var once sync.Once
	end = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	t.Cleanup(end)
	return end
}

func wait(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// noDisk takes everything at once, where what is on disk does not matter.
func noDisk(string, string, []byte) error { return nil }

func ms(t time.Time) int64 { return t.UnixMilli() }

// killed is what another process finds in the directory if this one is killed now.
func killed(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "ledger")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func only(t testing.TB, l *Ledger) Gap {
	t.Helper()
	gaps := l.Gaps()
	if len(gaps) != 1 {
		t.Fatalf("got %d gaps, want one: %+v", len(gaps), gaps)
	}
	return gaps[0]
}

func same(t testing.TB, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %+v, want %+v", what, got, want)
	}
}

func TestLedgerLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		// The first life begins with nothing.
		first := time.Now()
		l, log := ledgerIn(t, dir)
		l.Begin(first, 0, true)
		end := life(t, l)
		g := only(t, l)
		same(t, "gap of the new one", g.Interval, Interval{ms(first) - 24*hour, Lasts})
		same(t, "cause", []any{g.Kind, g.Cause, g.State}, []any{GapReplica, CauseNew, GapOpen})
		wait(9500 * time.Millisecond)
		if g = only(t, l); !g.Lasting() {
			t.Errorf("gap is over before everything was scraped: %+v", g)
		}
		wait(time.Second)
		g = only(t, l)
		same(t, "gap of the new one, settled", g.Interval, Interval{ms(first) - 24*hour, ms(first) + 10_000})
		same(t, "missing", g.Missing, []Interval{g.Interval})
		if err := l.Filled(g.ID, Fill{Interval: g.Interval, Replica: "b", Zone: "z", Samples: 7}); err != nil {
			t.Fatal(err)
		}
		same(t, "state", only(t, l).State, GapHealed)
		wait(time.Minute)
		stopped := time.Now()
		end()

		// It comes back after an hour.
		wait(time.Hour)
		l, _ = ledgerIn(t, dir)
		same(t, "open before the begin", len(l.Open()), 0)
		second := time.Now()
		l.Begin(second, ms(stopped), false)
		end = life(t, l)
		g = l.Open()[0]
		same(t, "gap of the time away", g.Interval, Interval{ms(stopped) - 10_000, Lasts})
		same(t, "cause", g.Cause, CauseDown)

		// And is killed while it catches up, with a part filled.
		wait(4500 * time.Millisecond)
		filled := Interval{ms(stopped) - 10_000, ms(stopped) + 60_000}
		left := filled.To - 1
		if err := l.Filled(g.ID, Fill{Interval: filled, Replica: "c"}); err != nil {
			t.Fatal(err)
		}
		other := killed(t, dir)
		end()
		wait(20 * time.Minute)
		l, _ = ledgerIn(t, other)
		third := time.Now()
		l.Begin(third, ms(stopped), false)
		end = life(t, l)
		same(t, "open gaps", len(l.Open()), 1)
		same(t, "the same gap", l.Open()[0].ID, g.ID)
		same(t, "what is left of it", l.Open()[0].Missing, []Interval{{left, Lasts}})
		wait(11 * time.Second)
		same(t, "what is left of it", l.Open()[0].Missing, []Interval{{left, ms(third) + 10_000}})
		if !strings.Contains(log.String(), "state=healed") || !strings.Contains(log.String(), "replicas=b") {
			t.Errorf("log does not say who healed it:\n%s", log)
		}
		end()
	})
}

func TestLedgerBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wait(30 * 24 * time.Hour)
		now := time.Now()
		at := ms(now)
		for _, c := range []struct {
			name         string
			beat, newest int64
			empty        bool
			from         int64
			cause        string
		}{
			{"new", 0, 0, true, at - 24*hour, CauseNew},
			{"adopted", 0, at - 5*hour, false, at - 5*hour - 10_000, CauseDown},
			{"adopted, data from ahead", 0, at + 5*hour, false, at - 10_000, CauseDown},
			{"down", at - hour, at - hour - 1000, false, at - hour - 10_000, CauseDown},
			{"clock set back", at + hour, at + hour, false, at - 10_000, CauseDown},
			{"data emptied", at - hour, 0, true, at - 24*hour, CauseNew},
			{"end of the WAL lost", at - hour, at - 3*hour, false, at - 3*hour - 10_000, CauseDown},
			{"clock set back, data late", at + hour, at - 5000, false, at - 10_000, CauseDown},
		} {
			func() {
				dir := t.TempDir()
				if c.beat != 0 {
					a := &alive{path: filepath.Join(dir, aliveFile)}
					for _, b := range []int64{c.beat - 1000, c.beat} {
						if err := a.write(beat{begun: c.beat - hour, at: b}, true); err != nil {
							t.Fatal(err)
						}
					}
					if err := a.close(); err != nil {
						t.Fatal(err)
					}
				}
				l, _ := ledgerIn(t, dir)
				l.Begin(now, c.newest, c.empty)
				g := only(t, l)
				same(t, c.name, g.Interval, Interval{c.from, Lasts})
				same(t, c.name, g.Cause, c.cause)
				// It is on disk at once.
				again, _ := ledgerIn(t, killed(t, dir))
				same(t, "gap on disk", only(t, again).Interval, g.Interval)
			}()
		}
	})
}

// A slow loop of crashes is one gap, not one each time.
func TestLedgerCrashLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		begin := time.Now()
		for range 20 {
			l, _ := ledgerIn(t, dir)
			l.Begin(time.Now(), ms(begin), false)
			end := life(t, l)
			wait(12 * time.Second)
			next := killed(t, dir)
			end()
			dir = next
		}
		l, _ := ledgerIn(t, dir)
		g := only(t, l)
		same(t, "from", g.From, ms(begin)-10_000)
		same(t, "missing", g.Missing, []Interval{g.Interval})
	})
}

func TestLedgerFreeze(t *testing.T) {
	l, log := ledgerIn(t, t.TempDir())
	now := time.Now().Truncate(time.Second)
	l.Begin(now, ms(now), false)
	for range 12 {
		now = now.Add(time.Second)
		l.beat(now)
	}
	begin := only(t, l)
	if err := l.Filled(begin.ID, Fill{Interval: begin.Interval, Replica: "b"}); err != nil {
		t.Fatal(err)
	}
	// A second or two late is no freeze, nor is a clock that is set back.
	now = now.Add(3 * time.Second)
	l.beat(now)
	now = now.Add(-time.Minute)
	l.beat(now)
	now = now.Add(time.Minute - time.Second) // It goes on and is set right in steps.
	for at := now.Add(-time.Minute + 2*time.Second); !at.After(now); at = at.Add(time.Second) {
		l.beat(at)
	}
	same(t, "open gaps", len(l.Open()), 0)

	prev := now
	now = now.Add(20 * time.Second)
	l.beat(now)
	g := l.Open()[0]
	same(t, "gap", []any{g.Interval, g.Cause}, []any{Interval{ms(prev) - 10_000, Lasts}, CauseFrozen})
	// Frozen again before it has settled: it is the same one.
	l.beat(now.Add(8 * time.Second))
	l.beat(now.Add(10 * time.Second))
	same(t, "open gaps", len(l.Open()), 1)
	if !l.Open()[0].Lasting() {
		t.Error("gap is over too soon")
	}
	for s := 11; s <= 18; s++ {
		l.beat(now.Add(time.Duration(s) * time.Second))
	}
	same(t, "gap", l.Open()[0].Interval, Interval{ms(prev) - 10_000, ms(now) + 18_000})
	if !strings.Contains(log.String(), "cause=frozen") {
		t.Errorf("log does not tell of the freeze:\n%s", log)
	}
}

// The end of the gap must not wait until a clock that was set back is there again.
func TestLedgerClockSetBackWhileSettling(t *testing.T) {
	l, _ := ledgerIn(t, t.TempDir())
	now := time.Now()
	l.Begin(now, ms(now)-hour, false)
	back := now.Add(-10 * time.Minute)
	l.beat(back)
	for s := range 11 {
		l.beat(back.Add(time.Duration(s) * time.Second))
	}
	g := only(t, l)
	same(t, "gap", g.Interval, Interval{ms(now) - hour - 10_000, ms(back) + 10_000})

	// Nor is a gap that turns out to have no time in it lost.
	l, _ = ledgerIn(t, t.TempDir())
	l.Begin(now, ms(now), false)
	for s := range 11 {
		l.beat(back.Add(time.Duration(s) * time.Second))
	}
	same(t, "state", only(t, l).State, GapHealed)
}

func target(name string) labels.Labels { return labels.FromStrings("instance", name, "job", "node") }

func unreached(name string, i Interval) Gap {
	return Gap{Kind: GapTarget, Labels: target(name), Match: target(name), Interval: i, Cause: CauseUnreachable}
}

func TestLedgerTargets(t *testing.T) {
	l, _ := ledgerIn(t, t.TempDir())
	now := time.Now()
	l.Begin(now.Add(-10*time.Hour), ms(now)-10*hour, false)
	for s := range 11 {
		l.notice(now.Add(-10*time.Hour + time.Duration(s)*time.Second))
	}
	l.last = ms(now)
	replica := only(t, l)
	base := ms(now) - hour
	add := func(name string, from, to int64) string {
		return l.Add(unreached(name, Interval{from, to}))
	}
	get := func(id string) Gap {
		gaps := l.Gaps()
		return gaps[slices.IndexFunc(gaps, func(g Gap) bool { return g.ID == id })]
	}

	a := add("a", base, Lasts)
	same(t, "found again", add("a", base, Lasts), a)
	b := add("b", base, Lasts)
	if a == b || a == "" {
		t.Fatalf("two targets have the gaps %q and %q", a, b)
	}
	if err := l.Filled(a, Fill{Interval: Interval{base, base + 1000}, Replica: "r"}); err != nil {
		t.Fatal(err)
	}
	// Found from the last success on, but filled in part: it is not missing again.
	add("a", base, Lasts)
	same(t, "missing", get(a).Missing, []Interval{{base + 999, Lasts}})
	same(t, "over", add("a", base, base+5000), a)
	same(t, "gap", get(a).Interval, Interval{base, base + 5000})
	same(t, "missing", get(a).Missing, []Interval{{base + 999, base + 5000}})
	// It fails again right after one success.
	c := add("a", base+5000, Lasts)
	if c == a {
		t.Error("a gap that lasts is one with another that was over before")
	}
	same(t, "found again", add("a", base, base+5000), a)
	if !func() bool { g := get(c); return g.Lasting() }() {
		t.Error("a gap found again has ended the one after it")
	}
	l.End(c, base+9000)
	same(t, "gap", get(c).Interval, Interval{base + 5000, base + 9000})
	l.End(c, base+8000)
	same(t, "gap that ended before", get(c).Interval, Interval{base + 5000, base + 9000})
	// What nobody has.
	if err := l.Filled(c, Fill{Interval: Interval{base, base + 10_000}}); err != nil {
		t.Fatal(err)
	}
	same(t, "state", get(c).State, GapLost)
	same(t, "closed one found again", add("a", base+5000, base+9000), c)
	d := add("a", base+8000, base+20_000)
	same(t, "what of it is new", get(d).Interval, Interval{base + 9000, base + 20_000})
	same(t, "touching", add("a", base+20_000, base+30_000), d)
	same(t, "extended", get(d).Interval, Interval{base + 9000, base + 30_000})

	// The whole replica was away.
	same(t, "in a gap of everything", add("c", replica.From+1000, replica.To-1000), "")
	e := get(add("c", replica.From+1000, base))
	same(t, "outside a gap of everything", e.Interval, Interval{replica.To, base})
	same(t, "nothing", add("c", base, base+1), "")

	if err := l.Filled("who", Fill{Interval: Interval{1, 2}}); !errors.Is(err, errUnknownGap) {
		t.Errorf("fill of a gap that is not there: %v", err)
	}
	if err := l.Filled(b, Fill{Interval: Interval{1, Lasts}}); err == nil {
		t.Error("a fill without end was taken")
	}
}

func TestLedgerFlappingTarget(t *testing.T) {
	l, _ := ledgerIn(t, t.TempDir(), func(o *LedgerOptions) { o.Retention = nil })
	var want []Interval
	for i := range int64(5000) {
		iv := Interval{i * 1000, i*1000 + 500}
		want = append(want, iv)
		if l.Add(Gap{Kind: GapTarget, Labels: target("a"), Interval: iv}) == "" {
			t.Fatal("gap was not taken")
		}
	}
	open := l.Open()
	if len(open) > maxAlike {
		t.Errorf("%d gaps of one target", len(open))
	}
	for _, g := range open {
		if len(g.Missing) > maxMissing {
			t.Errorf("%d intervals in one gap", len(g.Missing))
		}
	}
	for _, iv := range want {
		if len(l.Missing(iv.From+1, iv.To-1)) == 0 {
			t.Fatalf("%+v is not missing", iv)
		}
	}
}

func TestLedgerFillsAreBounded(t *testing.T) {
	l, _ := ledgerIn(t, t.TempDir())
	l.writeFile = noDisk
	now := time.Now()
	from := ms(now) - hour
	id := l.Add(Gap{Kind: GapTarget, Labels: target("a"), Interval: Interval{from, Lasts}})
	for i := range int64(1000) {
		f := Fill{Interval: Interval{from + i*1000, from + i*1000 + 1001}, Replica: fmt.Sprint(i % 2), Samples: 1, Series: i}
		if err := l.Filled(id, f); err != nil {
			t.Fatal(err)
		}
	}
	g := only(t, l)
	var samples int64
	for _, f := range g.Fills {
		samples += f.Samples
	}
	same(t, "fills", len(g.Fills), maxFills)
	same(t, "samples", samples, int64(1000))
	same(t, "oldest", []any{g.Fills[0].From, g.Fills[0].Replica}, []any{from, several})
	same(t, "missing", g.Missing, []Interval{{from + 1_000_000, Lasts}})
	// Adjacent ones of one replica are one.
	for i := range int64(10) {
		f := Fill{Interval: Interval{from + 1_000_000 + i*1000, from + 1_001_000 + i*1000}, Replica: "x", Samples: 1, Series: 5}
		if err := l.Filled(id, f); err != nil {
			t.Fatal(err)
		}
	}
	g = only(t, l)
	last := g.Fills[len(g.Fills)-1]
	same(t, "last", last.Interval, Interval{from + 1_000_000, from + 1_010_000})
	same(t, "samples and series of the last", []int64{last.Samples, last.Series}, []int64{10, 5})
}

func TestLedgerRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := ledgerIn(t, t.TempDir())
		group := labels.FromStrings("file", "f", "group", "g")
		l.Begin(time.Now(), ms(time.Now()), false)
		end := life(t, l)
		wait(11 * time.Second)
		begin := l.Open()[0]
		l.Evaluated(group, ms(time.Now()), 10_000)
		wait(15 * time.Second)
		l.Evaluated(group, ms(time.Now()), 10_000)
		same(t, "gaps", len(l.Gaps()), 1)
		last := ms(time.Now())
		wait(16 * time.Second)
		l.Evaluated(group, ms(time.Now()), 10_000)
		gaps := l.Gaps()
		same(t, "gaps", len(gaps), 2)
		g := gaps[1]
		same(t, "gap", g.Interval, Interval{last, last + 16_000})
		same(t, "gap", []any{g.Kind, g.Cause, g.State}, []any{GapRules, CauseEvaluation, GapOpen})
		same(t, "labels", g.Labels, group)
		end()

		// The freeze is found here before the beat finds it, and is not a gap of the group besides.
		wait(20 * time.Second)
		l.Evaluated(group, ms(time.Now()), 10_000)
		open := l.Open()
		same(t, "gaps", len(open), 3)
		same(t, "freeze", []any{open[0].ID == begin.ID, open[2].Cause, open[2].Kind}, []any{true, CauseFrozen, GapReplica})
	})
}

func TestLedgerRetention(t *testing.T) {
	l, _ := ledgerIn(t, t.TempDir())
	now := time.Now()
	l.Begin(now, 0, true)
	l.beat(now)
	g := only(t, l)
	for h := range 30 {
		at := now.Add(time.Duration(h) * time.Hour)
		l.last = ms(at) - 1000 // No freeze.
		l.beat(at)
		l.last = ms(at) + 9000
		l.beat(at.Add(10 * time.Second))
		if h == 3 {
			left := only(t, l).Missing
			if len(left) != 1 || left[0].From < g.From+3*hour-1 || left[0].From > g.From+3*hour+10_000 {
				t.Errorf("after three hours %+v is missing of %+v", left, g.Interval)
			}
		}
		if h == 23 && len(l.Open()) != 1 {
			t.Error("gap was closed before it was too old")
		}
	}
	same(t, "gaps", len(l.Gaps()), 0)
	same(t, "lost", testutil.ToFloat64(l.metrics.closed.WithLabelValues("replica", "lost")), 1.0)
	same(t, "open", testutil.ToFloat64(l.metrics.open.WithLabelValues("replica")), 0.0)
}

// Whatever is in the files, the ledger starts, with what can be read.
func TestLedgerCompleteness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wait(100 * 24 * time.Hour)
		l, _ := ledgerIn(t, t.TempDir())
		same(t, "nothing missing", l.Completeness(), 1.0)
		now := time.Now()
		l.Begin(now, 0, true)
		same(t, "everything missing", l.Completeness(), 0.0)
		g := only(t, l)
		if err := l.Filled(g.ID, Fill{Interval: Interval{g.From, g.From + 18*hour + 1}, Replica: "r"}); err != nil {
			t.Fatal(err)
		}
		same(t, "a quarter missing", l.Completeness(), 0.75)
		want := "# HELP tocsin_gap_open_seconds Time in which everything is missing in this replica's data. " +
			"A gap that lasts counts until now.\n" +
			"# TYPE tocsin_gap_open_seconds gauge\ntocsin_gap_open_seconds 21600\n"
		reg := l.opts.Registerer.(*prometheus.Registry)
		if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "tocsin_gap_open_seconds"); err != nil {
			t.Error(err)
		}

		for n, want := range map[int]float64{10: 0.99, 1000: 0.9} {
			l, _ = ledgerIn(t, t.TempDir())
			for i := range n {
				l.Add(unreached(fmt.Sprint(i), Interval{ms(now) - 30*hour, Lasts}))
			}
			if c := l.Completeness(); c < want-1e-9 || c > want+1e-9 {
				t.Errorf("%d targets missing: got %v, want %v", n, c, want)
			}
		}
	})
}

// What is missing is what a set of milliseconds would say.
