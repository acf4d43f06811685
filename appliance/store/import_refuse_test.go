package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

func TestImportRefuses(t *testing.T) {
	b := base()
	in := Interval{b, b + 30*minute}
	good := func(name string) ForeignSeries {
		return ForeignSeries{Labels: named(name), Interval: in, Chunks: encoded(t, floats(b+second, b+29*minute, 15*second), 30)}
	}
	with := func(change func(*ForeignSeries)) []ForeignSeries {
		bad := good("b")
		change(&bad)
		return []ForeignSeries{good("a"), bad}
	}
	bytesOf := func(enc chunkenc.Encoding, bytes ...byte) []ForeignSeries {
		return with(func(s *ForeignSeries) {
			c, err := chunkenc.FromData(enc, bytes)
			if err != nil {
				t.Fatal(err)
			}
			s.Chunks = []chunks.Meta{{Chunk: c}}
		})
	}
	bits := func(groups ...string) []byte { // Binary digits to bytes.
		all := strings.Join(groups, "")
		var b []byte
		for ; len(all) > 0; all = all[min(8, len(all)):] {
			var x byte
			for i := range 8 {
				x <<= 1
				if i < len(all) && all[i] == '1' {
					x |= 1
				}
			}
			b = append(b, x)
		}
		return b
	}
	// One span of 2^32-1 buckets.
	huge := append([]byte{0, 1, 0}, bits("00000000", "0", "10001", "11111111", strings.Repeat("0", 32), strings.Repeat("1", 32), "0", "0")...)
	tests := []struct {
		name, reason string
		series       []ForeignSeries
	}{
		{"before", ForeignOutside, with(func(s *ForeignSeries) { s.Chunks = encoded(t, floats(b, b+minute, 15*second), 30) })},
		{"after", ForeignOutside, with(func(s *ForeignSeries) { s.Chunks = encoded(t, floats(b+30*minute, b+31*minute, 15*second), 30) })},
		{"shifted out", ForeignOutside, with(func(s *ForeignSeries) { s.Shift = 2 * minute })},
		{"not asked for", ForeignOutside, with(func(s *ForeignSeries) { s.Labels = named("b/other") })},
		{"chunks in disorder", ForeignUnsorted, with(func(s *ForeignSeries) { s.Chunks[0], s.Chunks[1] = s.Chunks[1], s.Chunks[0] })},
		{"chunk twice", ForeignUnsorted, with(func(s *ForeignSeries) { s.Chunks = append(s.Chunks, s.Chunks[len(s.Chunks)-1]) })},
		{"series twice", ForeignUnsorted, []ForeignSeries{good("a"), good("a")}},
		{"series in disorder", ForeignUnsorted, []ForeignSeries{good("b"), good("a")}},
		{"no chunk", ForeignCorrupt, with(func(s *ForeignSeries) { s.Chunks = []chunks.Meta{{}} })},
		{"no bytes", ForeignCorrupt, bytesOf(chunkenc.EncXOR)},
		{"no histogram header", ForeignCorrupt, bytesOf(chunkenc.EncHistogram, 0, 1)},
		{"fewer samples", ForeignCorrupt, bytesOf(chunkenc.EncXOR, 0, 9, 1)},
		{"too many samples", ForeignCorrupt, bytesOf(chunkenc.EncXOR, 0xff, 0xff, 1)},
		{"too large", ForeignCorrupt, bytesOf(chunkenc.EncXOR, make([]byte, maxForeignChunkBytes+1)...)},
		{"gigabytes of buckets", ForeignCorrupt, bytesOf(chunkenc.EncHistogram, huge...)},
		{"gigabytes of float buckets", ForeignCorrupt, bytesOf(chunkenc.EncFloatHistogram, huge...)},
		{"no labels", ForeignLabels, with(func(s *ForeignSeries) { s.Labels = nil })},
		{"no name", ForeignLabels, with(func(s *ForeignSeries) { s.Labels = labels.FromStrings("job", "node") })},
		{"label twice", ForeignLabels, with(func(s *ForeignSeries) {
			s.Labels = labels.Labels{{Name: "__name__", Value: "b"}, {Name: "job", Value: "node"}, {Name: "job", Value: "z"}}
		})},
		{"labels in disorder", ForeignLabels, with(func(s *ForeignSeries) {
			s.Labels = labels.Labels{{Name: "job", Value: "node"}, {Name: "__name__", Value: "b"}}
		})},
		{"empty value", ForeignLabels, with(func(s *ForeignSeries) { s.Labels = labels.Labels{{Name: "__name__", Value: ""}} })},
		{"not UTF-8", ForeignLabels, with(func(s *ForeignSeries) { s.Labels = labels.FromStrings("__name__", "b", "job", "\xff") })},
	}
	o := open(t, t.TempDir())
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			_, err := o.Import(context.Background(), in, &set{series: tc.series}, ImportOptions{Match: labels.FromStrings("job", "node")})
			var foreign *ForeignError
			if !errors.As(err, &foreign) || foreign.Reason != tc.reason {
				t.Errorf("got %v, want it refused as %s", err, tc.reason)
			}
			// Nor by a query, unless the rest is whole.
			if tc.reason == ForeignCorrupt {
				it := SpliceSeries(nil, tc.series[1]).Iterator(nil)
				for it.Next() != chunkenc.ValNone {
				}
				if !errors.As(it.Err(), &foreign) {
					t.Errorf("spliced: %v", it.Err())
				}
			}
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := o.Import(ctx, in, &set{series: []ForeignSeries{good("a")}}, ImportOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("with a ctx that ended: %v", err)
	}
	broken := errors.New("connection broke")
	if _, err := o.Import(context.Background(), in, &set{series: []ForeignSeries{good("a")}, err: broken}, ImportOptions{}); !errors.Is(err, broken) {
		t.Errorf("with a stream that broke: %v", err)
	}
	if got := all(t, o.Store); len(got) != 0 {
		t.Errorf("something was taken: %v", got)
	}
	if left, err := os.ReadDir(filepath.Join(o.opts.Dir, healDir)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// What a killed import leaves behind is gone at the next start.
func TestCleanImports(t *testing.T) {
	dir := t.TempDir()
	stays := filepath.Join(dir, healDir, "ledger")
	for _, d := range []string{filepath.Join(dir, healDir, importPrefix+"x", "y"), stays} {
		if err := os.MkdirAll(d, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir)
	if left, err := os.ReadDir(filepath.Join(dir, healDir)); err != nil || len(left) != 1 || left[0].Name() != "ledger" {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestImportOnAFullDisk(t *testing.T) {
	volume := t.TempDir()
	switch err := syscall.Mount("tmpfs", volume, "tmpfs", 0, "size=200m"); {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOSYS):
		if os.Getenv("CI") != "" {
			t.Fatal("may not mount, and CI has to:", err)
		}
		t.Skip("may not mount:", err)
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(volume, 0); err != nil {
			t.Error(err)
		}
	})
	o := open(t, volume)
	t.Cleanup(o.stop) // Before the volume goes.
	b := base()
	in := Interval{b, b + 30*minute}
	data := map[string][]smp{}
	for i := range 2 * importStride {
		data[fmt.Sprintf("s%04d", i)] = floats(b+second, b+30*minute-second, 15*second)
	}
	fill := func(name string, leave int64) {
		var st syscall.Statfs_t
		if err := syscall.Statfs(volume, &st); err != nil {
			t.Fatal(err)
		}
		n := int64(st.Bavail)*st.Bsize - leave
		if err := os.WriteFile(filepath.Join(volume, name), make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Full while it goes on, then before it begins.
	for i := range 2 {
		full := false
		if i == 1 {
			fill("before", importReserveBytes-1<<20)
		}
		_, err := o.Import(context.Background(), in, theirs(t, in, data), ImportOptions{Yield: func(context.Context) error {
			if !full {
				fill("fill", importReserveBytes-1<<20)
			}
			full = true
			return nil
		}})
		if !errors.Is(err, ErrNoSpace) {
			t.Errorf("import %d: %v", i, err)
		}
		if full != (i == 0) {
			t.Errorf("import %d went on: %v", i, full)
		}
	}
	if got := all(t, o.Store); len(got) != 0 {
		t.Errorf("%d series were taken", len(got))
	}
	// Nothing left at all: each write fails.
	w, err := newBlockWriter(filepath.Join(volume, healDir))
	if err != nil {
		t.Fatal(err)
	}
	fill("rest", 0)
	if err := w.add(named("x"), encoded(t, floats(b, b+minute, second), 30)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write to a full disk: %v", err)
	}
	if err := w.discard(); err != nil {
		t.Logf("discard: %v", err)
	}
	for _, name := range []string{"fill", "before", "rest"} {
		if err := os.Remove(filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	o.imp(in, theirs(t, in, data))
	if got := all(t, o.Store); len(got) != len(data) {
		t.Errorf("%d series, want %d", len(got), len(data))
	}
}

// Whatever the phases and gaps: our own samples stay as they are, theirs keep their distance, and a counter grows over
// the gap as it did, but for what one scrape sees.
func TestImportProperty(t *testing.T) {
	o := open(t, t.TempDir())
	b := base()
	rnd := rand.New(rand.NewPCG(1, 2))
	const d = 15 * second
	type trial struct {
		in  Interval
		own []smp
	}
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e7, Timeout: time.Minute})
	defer engine.Close()
	for round := range 4 {
		trials := map[string]trial{}
		foreign := map[string][]smp{}
		ours := map[string][]smp{}
		in := Interval{b + rnd.Int64N(20*minute), 0}
		in.To = in.From + 2*minute + rnd.Int64N(40*minute)
		for i := range 40 {
			name := fmt.Sprintf("c%d/%02d", round, i)
			phase, other := rnd.Int64N(d), rnd.Int64N(d)
			jitter := func() int64 { return rnd.Int64N(1000) - 500 }
			var own, theirs []smp
			count := func(t int64) float64 { return float64((t - b) * 7) } // Grows by 7 each millisecond.
			for t := b - d; t < b+70*minute; t += d {
				at := t + phase + jitter()
				// Our last scrape before the gap and our first after it are at its ends or up to a scrape further.
				if at <= in.From || at >= in.To {
					own = append(own, smp{t: at, v: count(at)})
				}
				at = t + other + jitter()
				theirs = append(theirs, smp{t: at, v: count(at)})
			}
			trials[name] = trial{in, own}
			foreign[name] = theirs
			ours[name] = own
		}
		o.put(ours)
		o.imp(in, theirs(t, in, foreign))
		got := all(t, o.Store)
		for name, tr := range trials {
			own := map[int64]bool{}
			for _, s := range tr.own {
				own[s.t] = true
			}
			samples := got[name]
			seen, last := 0, smp{}
			for i, s := range samples {
				if own[s.t] {
					seen++
				} else if !in.Contains(s.t) {
					t.Errorf("%s: %s is outside of the gap", name, s)
				}
				if s.v != float64((s.t-b)*7) {
					t.Errorf("%s: %s has another value", name, s)
				}
				if i > 0 {
					if own[s.t] != own[last.t] && s.t-last.t < d/2-1000 {
						t.Errorf("%s: samples of both replicas %d ms apart", name, s.t-last.t)
					}
					if s.t-last.t > 2*d {
						t.Errorf("%s: still a hole of %d ms", name, s.t-last.t)
					}
				}
				last = s
			}
			if seen != len(tr.own) {
				t.Errorf("%s: %d own samples, want %d", name, seen, len(tr.own))
			}
		}
		width := in.To - in.From + 2*minute
		query := fmt.Sprintf("increase(c%d[%dms])", round, width)
		q, err := engine.NewInstantQuery(t.Context(), o.Local(), nil, query, time.UnixMilli(in.To+minute))
		if err != nil {
			t.Fatal(err)
		}
		res := q.Exec(t.Context())
		vector, err := res.Vector()
		if err != nil || len(vector) != len(trials) {
			t.Fatalf("%s: %d results, %v", query, len(vector), err)
		}
		for _, v := range vector {
			if off := math.Abs(v.F - float64(7*width)); off > float64(7*(d+1000)) {
				t.Errorf("%s of %s is %v, off by %v", query, v.Metric, v.F, off)
			}
		}
		q.Close()

	}
}
