package store

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
)

func nopLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }

type floatSample struct {
	t int64
	v float64
}

func (s floatSample) T() int64                      { return s.t }
func (s floatSample) F() float64                    { return s.v }
func (s floatSample) H() *histogram.Histogram       { return nil }
func (s floatSample) FH() *histogram.FloatHistogram { return nil }
func (s floatSample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s floatSample) Copy() chunks.Sample           { return s }

// headSeries are the labels of the series in the head, with the head's strings.
func headSeries(t testing.TB, s *Store) []labels.Labels {
	t.Helper()
	ir, err := s.local.db.Load().Head().Index()
	if err != nil {
		t.Fatal(err)
	}
	defer ir.Close()
	name, value := index.AllPostingsKey()
	p, err := ir.Postings(context.Background(), name, value)
	if err != nil {
		t.Fatal(err)
	}
	var (
		res  []labels.Labels
		b    labels.ScratchBuilder
		chks []chunks.Meta
	)
	for p.Next() {
		if err := ir.Series(p.At(), &b, &chks); err != nil {
			t.Fatal(err)
		}
		res = append(res, b.Labels())
	}
	if p.Err() != nil {
		t.Fatal(p.Err())
	}
	return res
}

// checkInterned compares the table with what the live series hold: the same
// strings, counted right, and each held once.
func checkInterned(t testing.TB, s *Store) {
	t.Helper()
	want := map[string]uint32{}
	series := headSeries(t, s)
	for _, l := range series {
		for _, lb := range l {
			want[lb.Name]++
			want[lb.Value]++
		}
	}
	got := map[string]uint32{}
	for i := range s.strings.shards {
		sh := &s.strings.shards[i]
		used := 0
		for _, e := range sh.tab {
			if e != nil {
				got[e.s] = e.count.Load()
				used++
			}
		}
		if used != sh.used {
			t.Errorf("shard %d holds %d strings and says %d", i, used, sh.used)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d strings are held, %d are in use", len(got), len(want))
	}
	for str, n := range want {
		if got[str] != n {
			t.Errorf("%q is counted %d times, is in use %d times", str, got[str], n)
		}
	}
	if n := s.strings.series.Load(); n != int64(len(series)) {
		t.Errorf("%d series counted, %d there", n, len(series))
	}
}

// shared tells how many distinct copies of strings the label sets hold.
func copies(sets []labels.Labels) (distinct, inMemory int) {
	strs, ptrs := map[string]bool{}, map[*byte]bool{}
	for _, l := range sets {
		for _, lb := range l {
			for _, s := range []string{lb.Name, lb.Value} {
				strs[s] = true
				ptrs[unsafe.StringData(s)] = true
			}
		}
	}
	return len(strs), len(ptrs)
}

func TestInternSharesStrings(t *testing.T) {
	const n = 300
	dir := t.TempDir()
	now := time.Now().UnixMilli()
	scrape := func(o *opened, at int64) []labels.Labels {
		var cache []labels.Labels
		app := o.Appender(context.Background())
		for i := range n {
			l := seriesLabels(i)
			if _, err := app.Append(0, l, at, 1); err != nil {
				t.Fatal(err)
			}
			cache = append(cache, l) // as the scrape cache does
		}
		if err := app.Commit(); err != nil {
			t.Fatal(err)
		}
		return cache
	}
	o := open(t, dir)
	cache := scrape(o, now)
	check := func(name string, o *opened, cache []labels.Labels) {
		t.Helper()
		distinct, inMemory := copies(append(headSeries(t, o.Store), cache...))
		if distinct != inMemory {
			t.Errorf("%s: %d copies of %d strings", name, inMemory, distinct)
		}
		for i, l := range cache {
			if want := seriesLabels(i); !labels.Equal(l, want) {
				t.Fatalf("%s: labels became %s from %s", name, l, want)
			}
		}
		checkInterned(t, o.Store)
	}
	check("new series", o, cache)
	o.stop()
	// After a start the head has the series from the log, before any scrape.
	o = open(t, dir)
	check("replayed", o, nil)
	check("replayed and scraped", o, scrape(o, now+1000))
}

// All kinds of samples create series, and all of them intern.
func TestInternAllPaths(t *testing.T) {
	o := open(t, t.TempDir())
	now := time.Now().UnixMilli()
	h := &histogram.Histogram{Count: 1, ZeroCount: 1, Sum: 1}
	app := o.Appender(context.Background())
	var cache []labels.Labels
	for i, create := range []func(labels.Labels) error{
		func(l labels.Labels) error { _, err := app.Append(0, l, now, 1); return err },
		func(l labels.Labels) error { _, err := app.AppendHistogram(0, l, now, h, nil); return err },
		func(l labels.Labels) error { _, err := app.AppendSTZeroSample(0, l, now, now-1); return err },
		func(l labels.Labels) error {
			_, err := app.AppendHistogramSTZeroSample(0, l, now, now-1, h, nil)
			return err
		},
	} {
		for range 2 {
			l := seriesLabels(i)
			if err := create(l); err != nil {
				t.Logf("path %d: %v", i, err)
			}
			cache = append(cache, l)
		}
	}
	if err := app.Commit(); err != nil {
		t.Fatal(err)
	}
	distinct, inMemory := copies(append(headSeries(t, o.Store), cache...))
	if distinct != inMemory {
		t.Errorf("%d copies of %d strings", inMemory, distinct)
	}
	checkInterned(t, o.Store)
}

// Series come and go while others are appended, from several goroutines; once
// the head is truncated the table holds what is left and nothing else.
func TestInternFollowsHead(t *testing.T) {
	o := open(t, t.TempDir())
	hour := time.Hour.Milliseconds()
	base := (time.Now().UnixMilli()/hour - 40) * hour
	for round := range 4 {
		at := base + int64(round)*6*hour
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(round), uint64(g)))
				for range 50 {
					app := o.Appender(context.Background())
					for range 20 {
						// Goroutines create the same series and the same
						// strings at one time.
						if _, err := app.Append(0, seriesLabels(round*100+r.IntN(400)), at+r.Int64N(1000), 1); err != nil {
							_ = err // out of order among goroutines: also a way to be refused
						}
					}
					var err error
					if r.IntN(4) == 0 {
						err = app.Rollback()
					} else {
						err = app.Commit()
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if err := o.local.db.Load().Compact(context.Background()); err != nil {
			t.Fatal(err)
		}
		checkInterned(t, o.Store)
	}
	before := o.strings.len()
	if err := o.local.db.Load().Head().Truncate(base + 40*hour); err != nil {
		t.Fatal(err)
	}
	checkInterned(t, o.Store)
	if after := o.strings.len(); after >= before {
		t.Errorf("%d strings before the head was emptied, %d after", before, after)
	}
}

// The table against a map, through all sizes, with collisions.
func TestInternShard(t *testing.T) {
	for _, hashes := range []uint32{1, 3, 64, 1 << 30} {
		t.Run(fmt.Sprintf("%d hashes", hashes), func(t *testing.T) {
			var sh internShard
			model := map[string]uint32{}
			r := rand.New(rand.NewPCG(1, uint64(hashes)))
			hash := func(n int) uint32 { return uint32(n) * 2654435761 % hashes }
			for step := range 30_000 {
				n := r.IntN(300)
				s := fmt.Sprintf("s%d", n)
				grow := step%10_000 < 6_000
				if (r.IntN(3) > 0) == grow {
					sh.acquire(s, hash(n))
					model[s]++
				} else {
					sh.release(s, hash(n))
					if model[s] > 0 {
						model[s]--
					}
					if model[s] == 0 {
						delete(model, s)
					}
				}
				var count uint32
				if e := sh.get(s, hash(n)); e != nil {
					count = e.count.Load()
				}
				if count != model[s] || sh.len() != len(model) {
					t.Fatalf("step %d: %q has count %d of %d strings, want %d of %d", step, s, count, sh.len(), model[s], len(model))
				}
			}
			for n := range 300 {
				s := fmt.Sprintf("s%d", n)
				for model[s] > 0 {
					sh.release(s, hash(n))
					model[s]--
				}
			}
			if sh.len() != 0 || len(sh.tab) > 16 {
				t.Errorf("%d strings, %d slots are left", sh.len(), len(sh.tab))
			}
		})
	}
}
