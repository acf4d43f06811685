package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/labels"
)

func TestLedgerRoundTrip(t *testing.T) {
	g := Gap{
		ID: "x", Kind: GapTarget, Labels: target("a\"<&é"), Match: labels.FromStrings("job", "node"),
		Interval: Interval{5, Lasts}, Cause: CauseUnreachable, State: GapOpen, Missing: []Interval{{5, 7}, {9, Lasts}},
		Found: time.UnixMilli(12345).UTC(),
		Fills: []Fill{{Interval: Interval{7, 9}, Replica: "r", Zone: "z", Series: 1, Samples: 2, At: time.UnixMilli(99).UTC()}},
	}
	b, err := encodeGaps([]*Gap{&g})
	if err != nil {
		t.Fatal(err)
	}
	back, err := decodeGaps(b)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "gap", *back[0], g)
	var plain map[string]any
	if b, err = json.Marshal(g); err != nil {
		t.Fatal(err)
	}
	if err = json.Unmarshal(b, &plain); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"from", "to", "labels", "missing", "fills", "id"} {
		if _, ok := plain[name]; !ok {
			t.Errorf("no %q in %s", name, b)
		}
	}
}

func TestLedgerBrokenFiles(t *testing.T) {
	dir := t.TempDir()
	now := time.UnixMilli(1_700_000_000_000)
	l, _ := ledgerIn(t, dir)
	l.Begin(now, ms(now)-hour, false)
	l.Add(Gap{Kind: GapTarget, Labels: target("a"), Match: target("a"), Interval: Interval{ms(now) - 9*hour, ms(now) - 8*hour}})
	if !l.save() {
		t.Fatal("not saved")
	}
	a := &alive{path: filepath.Join(dir, aliveFile)}
	for i := range int64(3) {
		if err := a.write(beat{begun: ms(now), at: ms(now) + i*1000}, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	try := func(name string, content []byte) *Ledger {
		t.Helper()
		to := killed(t, dir)
		if err := os.WriteFile(filepath.Join(to, name), content, 0o640); err != nil {
			t.Fatal(err)
		}
		l, _ := ledgerIn(t, to)
		l.writeFile = noDisk
		l.Begin(now.Add(time.Minute), ms(now), false)
		if g := l.Open(); len(g) == 0 {
			t.Fatal("no gap")
		}
		return l
	}
	whole, err := os.ReadFile(filepath.Join(dir, aliveFile))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "size", len(whole), beatSlot+beatBytes)
	offsets := []int{}
	for i := range beatBytes {
		offsets = append(offsets, i, beatSlot+i)
	}
	for _, i := range offsets {
		flipped := slices.Clone(whole)
		flipped[i] ^= 0x41
		for _, content := range [][]byte{flipped, whole[:i]} {
			got := try(aliveFile, content).earlier.at
			// The other slot has the last beat, or the one before it.
			if i >= beatSlot && got < ms(now)+1000 || len(content) == len(whole) && got < ms(now)+1000 || got > ms(now)+2000 {
				t.Fatalf("byte %d of %d: last beat is %d", i, len(content), got-ms(now))
			}
		}
	}
	content, err := os.ReadFile(filepath.Join(dir, gapsFile))
	if err != nil {
		t.Fatal(err)
	}
	for i := range content[:len(content)-1] { // The line's end does not matter.
		flipped := slices.Clone(content)
		flipped[i] ^= 1
		for _, c := range [][]byte{flipped, content[:i]} {
			l := try(gapsFile, c)
			if len(l.Gaps()) == 2 && slices.ContainsFunc(l.Gaps(), func(g Gap) bool { return g.Kind == GapTarget }) {
				t.Fatalf("byte %d: broken gaps were taken: %s", i, c)
			}
			if _, err := os.Stat(filepath.Join(l.opts.Dir, gapsFile+brokenSuffix)); err != nil {
				t.Fatalf("byte %d: not set aside: %v", i, err)
			}
		}
	}
	same(t, "gaps of whole files", len(try(gapsFile, content).Gaps()), 2)
	// Not even directories in the place of files, or files of a later version.
	to := t.TempDir()
	for _, name := range []string{aliveFile, gapsFile} {
		if err := os.Mkdir(filepath.Join(to, name), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	l, log := ledgerIn(t, to)
	l.Begin(now, ms(now), false)
	if !l.save() || strings.Count(log.String(), "level=WARN") != 2 {
		t.Errorf("directories in the place of files:\n%s", log)
	}
	try(gapsFile, []byte(`{"version":2,"gaps":[]}`))
}

func TestLedgerFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		l, log := ledgerIn(t, dir)
		l.Begin(time.Now(), ms(time.Now()), false)
		end := life(t, l)
		wait(5500 * time.Millisecond)
		var full sync.Mutex
		isFull := true
		l.saving.Lock()
		l.writeFile = func(dir, name string, b []byte) error {
			full.Lock()
			defer full.Unlock()
			if isFull {
				return errors.New("no space left on device")
			}
			return replaceFile(dir, name, b)
		}
		l.saving.Unlock()
		before := l.Open()[0]
		if err := l.Filled(before.ID, Fill{Interval: Interval{before.From, before.From + 5}, Replica: "r"}); err != nil {
			t.Fatalf("a full disk failed a fill: %v", err)
		}
		from := ms(time.Now())
		id := l.Add(Gap{Kind: GapTarget, Labels: target("a"), Interval: Interval{from - 100_000, from - 50_000}})
		wait(150 * time.Second)
		same(t, "warnings", strings.Count(log.String(), "no space left"), 3)
		if len(l.Missing(from-90_000, from-60_000)) == 0 {
			t.Error("gap is not known in memory")
		}
		// No beat goes past what would be forgotten.
		next, _ := ledgerIn(t, killed(t, dir))
		if next.earlier.at > from {
			t.Errorf("the last beat is %d ms after the disk was full", next.earlier.at-from)
		}
		full.Lock()
		isFull = false
		full.Unlock()
		wait(2 * time.Second)
		next, _ = ledgerIn(t, killed(t, dir))
		if next.gaps[id] == nil || next.earlier.at < ms(time.Now())-2000 {
			t.Errorf("not written when there was room again: last beat %d ms ago", ms(time.Now())-next.earlier.at)
		}
		end()
	})
}

func TestLedgerManyTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		l, log := ledgerIn(t, dir)
		l.Begin(time.Now(), ms(time.Now()), false)
		end := life(t, l)
		wait(12 * time.Second)
		from := ms(time.Now())
		wait(time.Minute)
		var ids []string
		for i := range 3000 {
			ids = append(ids, l.Add(unreached(fmt.Sprint(i), Interval{from, Lasts})))
		}
		to := ms(time.Now())
		same(t, "missing", len(l.Missing(to-1000, to)), 3000)
		wait(11 * time.Second)
		for _, id := range ids {
			l.End(id, to)
			if err := l.Filled(id, Fill{Interval: Interval{from, to}, Replica: "r", Samples: 10}); err != nil {
				t.Fatal(err)
			}
		}
		wait(11 * time.Second)
		same(t, "missing", len(l.Missing(to-1000, to)), 0)
		if n := strings.Count(log.String(), "\n"); n > 8 {
			t.Errorf("%d lines in the log:\n%.3000s", n, log)
		}
		for _, want := range []string{"gaps=3000", "samples=30000", "replicas=r", "cause=unreachable", "state=healed"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("no %s in the log:\n%s", want, log)
			}
		}
		same(t, "gaps kept", len(l.Gaps()), maxClosedGaps+1)
		// Those that there was no room for are not found again.
		for _, i := range []int{0, 2999} {
			l.Add(Gap{Kind: GapTarget, Labels: target(fmt.Sprint(i)), Interval: Interval{from, to}})
		}
		same(t, "open", len(l.Open()), 1)
		same(t, "found", testutil.ToFloat64(l.metrics.found.WithLabelValues("target", CauseUnreachable)), 3000.0)
		same(t, "healed", testutil.ToFloat64(l.metrics.closed.WithLabelValues("target", "healed")), 3000.0)
		end()
		again, _ := ledgerIn(t, dir)
		same(t, "gaps on disk", len(again.Gaps()), maxClosedGaps+1)
	})
}

func TestLedgerMissingAllocatesNothing(t *testing.T) {
	l, _ := ledgerIn(t, t.TempDir())
	now := time.Now()
	l.Begin(now, ms(now)-hour, false)
	for s := range 11 {
		l.notice(now.Add(time.Duration(s) * time.Second))
	}
	for i := range 100 {
		l.Add(unreached(fmt.Sprint(i), Interval{ms(now) - 5*hour, ms(now) - 4*hour}))
	}
	l.Missing(0, 1)
	for _, h := range [][2]int64{{-10, -6}, {-3, -2}, {1, 2}} {
		r := Interval{ms(now) + h[0]*hour, ms(now) + h[1]*hour}
		if n := testing.AllocsPerRun(100, func() {
			if l.Missing(r.From, r.To) != nil {
				t.Error("something is missing")
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
	same(t, "missing", len(l.Missing(ms(now)-6*hour, ms(now))), 101)
	same(t, "missing of targets", len(l.Missing(ms(now)-6*hour, ms(now)-3*hour)), 100)
	same(t, "missing of everything", len(l.Missing(ms(now)-3*hour, ms(now))), 1)
}

func TestLedgerMissingIsASet(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		l, _ := ledgerIn(t, t.TempDir(), func(o *LedgerOptions) { o.Retention = nil })
		l.writeFile = noDisk
		const end = 300
		var set [2][end]bool
		var ids []string
		interval := func() Interval {
			from := rnd.Int64N(end - 2)
			return Interval{from, from + 1 + rnd.Int64N(min(60, end-from-1))}
		}
		for range 30 {
			if len(ids) == 0 || rnd.IntN(3) == 0 {
				// Of two targets, in any order. What was entered once is not missing again.
				k, i := rnd.IntN(2), interval()
				before := l.Gaps()
				id := l.Add(Gap{Kind: GapTarget, Labels: target(fmt.Sprint(k)), Match: target(fmt.Sprint(k)), Interval: i})
				for at := i.From + 1; at < i.To; at++ {
					known := slices.ContainsFunc(before, func(g Gap) bool {
						// At its ends data are whole.
						return labels.Equal(g.Labels, target(fmt.Sprint(k))) && g.From <= at && at <= g.To && !g.Intersect(i).Empty()
					})
					set[k][at] = set[k][at] || !known
				}
				if id != "" && !slices.Contains(ids, id) {
					ids = append(ids, id)
				}
			} else {
				id, i := ids[rnd.IntN(len(ids))], interval()
				g := *l.gaps[id]
				if err := l.Filled(id, Fill{Interval: i, Replica: "r"}); err != nil {
					t.Fatal(err)
				}
				k := 0
				if labels.Equal(g.Labels, target("1")) {
					k = 1
				}
				for at := i.From + 1; at < i.To; at++ {
					if slices.ContainsFunc(g.Missing, func(m Interval) bool { return m.Contains(at) }) {
						set[k][at] = false
					}
				}
			}
			for at := int64(0); at < end; at++ {
				for k := range set {
					got := slices.ContainsFunc(l.Missing(at, at), func(m Missing) bool {
						return labels.Equal(m.Match, target(fmt.Sprint(k)))
					})
					if got != set[k][at] {
						t.Fatalf("seed %d: target %d at %d: missing %v, want %v\n%+v", seed, k, at, got, set[k][at], l.Gaps())
					}
				}
			}
			lo := rnd.Int64N(end - 1)
			hi := lo + rnd.Int64N(end-lo)
			for k := range set {
				got := slices.ContainsFunc(l.Missing(lo, hi), func(m Missing) bool { return labels.Equal(m.Match, target(fmt.Sprint(k))) })
				if want := slices.Contains(set[k][lo:hi+1], true); got != want {
					t.Fatalf("seed %d: target %d in [%d,%d]: missing %v, want %v", seed, k, lo, hi, got, want)
				}
			}
		}
	}
}

func TestLedgerConcurrently(t *testing.T) {
	l, _ := ledgerIn(t, t.TempDir())
	now := time.Now()
	l.Begin(now, ms(now)-hour, false)
	life(t, l)
	id := only(t, l).ID
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, m := range l.Missing(0, ms(now)) {
					for i, iv := range m.Intervals {
						if iv.Empty() || i > 0 && iv.From < m.Intervals[i-1].To {
							t.Errorf("intervals are not in order: %+v", m.Intervals)
							return
						}
					}
				}
				l.Completeness()
				l.Gaps()
			}
		})
	}
	var writers sync.WaitGroup
	for w := range int64(3) {
		writers.Go(func() {
			for i := range int64(60) {
				from := ms(now) - hour + (w*60+i)*10_000
				if err := l.Filled(id, Fill{Interval: Interval{from, from + 9000}, Replica: "r"}); err != nil {
					t.Error(err)
				}
				tid := l.Add(Gap{Kind: GapTarget, Labels: target(fmt.Sprint(w, i)), Interval: Interval{ms(now) - 5*hour, Lasts}})
				l.End(tid, ms(now)-4*hour)
				l.Evaluated(target(fmt.Sprint(w)), ms(now)-3*hour+i*1000, 500)
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
}

func BenchmarkLedgerMissing(b *testing.B) {
	l, _ := ledgerIn(b, b.TempDir())
	now := ms(time.Now())
	for i := range 1000 {
		l.Add(unreached(fmt.Sprint(i), Interval{now - 5*hour, now - 4*hour}))
	}
	b.ReportAllocs()
	for b.Loop() {
		l.Missing(now-hour, now)
	}
}
