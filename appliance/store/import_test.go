package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
)

// Both ways, what another replica has in a gap is here afterwards to the sample, is here once, and stays here when the
// process is killed, as does what was here before.
func TestImport(t *testing.T) {
	for name, length := range map[string]int64{"head": 8 * minute, "block": 40 * minute} {
		t.Run(name, func(t *testing.T) {
			b := base()
			want := kinds(b, b+60*minute, 15*second)
			in := Interval{b + 60*minute - 2*minute - length, b + 60*minute - 2*minute}
			o := open(t, t.TempDir())
			o.put(cut(want, in))
			missing := map[string][]smp{"unknown": floats(in.From+second, in.To-second, 15*second)}
			for name, samples := range want {
				missing[name] = samples
			}
			var series, samples int64
			res := o.imp(in, theirs(t, in, missing), ImportOptions{Kind: GapReplica, Progress: func(a, b int64) {
				series, samples = series+a, samples+b
			}})
			want["unknown"] = missing["unknown"]
			check := func(s *Store, when string) {
				t.Helper()
				got := all(t, s)
				if len(got) != len(want) {
					t.Errorf("%s: %d series, want %d", when, len(got), len(want))
				}
				for name := range want {
					sameSamples(t, when+" "+name, got[name], want[name])
				}
			}
			check(o.Store, "after import")
			if res.Series != int64(len(want)) || res.Series != series || res.Samples != samples {
				t.Errorf("imported %+v, progress says %d series and %d samples", res, series, samples)
			}
			// What the head does not know goes to a block in any case.
			if isZero(res) {
				t.Error("there is no block")
			} else if n := blockSeries(t, o, res.Block); name == "head" && n != 1 || name == "block" && n != len(want) {
				t.Errorf("the block has %d series", n)
			}
			if left, err := os.ReadDir(filepath.Join(o.opts.Dir, healDir)); err == nil && len(left) > 0 {
				t.Errorf("%s is left", left[0].Name())
			}
			checkInterned(t, o.Store)

			again := o.imp(in, theirs(t, in, missing))
			if again.Series != 0 || again.Samples != 0 || !isZero(again) {
				t.Errorf("imported again: %+v", again)
			}
			check(o.Store, "after import twice")

			// What is scraped next goes on as ever, and nothing is lost by a kill.
			next := map[string][]smp{"floats": floats(b+60*minute+15*second, b+61*minute, 15*second)}
			o.put(next)
			want["floats"] = append(want["floats"], next["floats"]...)
			check(open(t, o.crash()).Store, "after kill")
			if strings.Contains(o.log.String(), "level=WARN") {
				t.Errorf("it warned:\n%s", o.log)
			}
		})
	}
}

func isZero(i Imported) bool { return i.Block.Compare([16]byte{}) == 0 }

// A block in the time of the head does not make the head lose what it has: not at the next start, nor once it was
// merged with another, nor when the head itself becomes a block.
func TestImportIntoTheTimeOfTheHead(t *testing.T) {
	b := base()
	own := map[string][]smp{"own": floats(b, b+100*minute, 15*second), "a": floats(b, b+5*minute, 15*second)}
	o := open(t, t.TempDir())
	o.put(own)
	want := map[string][]smp{"own": own["own"], "a": slices.Clone(own["a"])}
	for i, in := range []Interval{{b + 6*minute, b + 50*minute}, {b + 45*minute, b + 90*minute}} {
		name := fmt.Sprint("healed", i)
		healed := map[string][]smp{name: floats(in.From+second, in.To-second, 15*second)}
		if res := o.imp(in, theirs(t, in, healed)); isZero(res) {
			t.Fatalf("imported %+v, want a block", res)
		}
		want[name] = healed[name]
	}
	check := func(s *Store, when string) {
		t.Helper()
		got := all(t, s)
		for name := range want {
			sameSamples(t, when+" "+name, got[name], want[name])
		}
	}
	check(o.Store, "before")
	db := o.local.db.Load()
	if err := db.Compact(context.Background()); err != nil {
		t.Fatal(err)
	}
	check(o.Store, "compacted")
	check(open(t, o.crash()).Store, "compacted and killed")

	// The head moves on: now they are merged.
	later := floats(b+100*minute+15*second, b+200*minute, 15*second)
	o.put(map[string][]smp{"own": later})
	want["own"] = slices.Concat(want["own"], later)
	if err := db.Compact(context.Background()); err != nil {
		t.Fatal(err)
	}
	check(o.Store, "head compacted")
	if n := len(db.Blocks()); n != 1 {
		t.Errorf("%d blocks, want them merged into 1: %v", n, db.BlockMetas())
	}
	check(open(t, o.crash()).Store, "head compacted and killed")
}

// A fresh replica imports before its first scrape.
func TestImportIntoNothing(t *testing.T) {
	for _, window := range []time.Duration{0, time.Hour} {
		t.Run(window.String(), func(t *testing.T) {
			o := open(t, t.TempDir(), func(o *Options) {
				o.BlockReloadInterval = time.Second
				o.Config = configured(func(c *promconfig.Config) {
					c.StorageConfig.TSDBConfig = &promconfig.TSDBConfig{OutOfOrderTimeWindow: window.Milliseconds()}
				})
			})
			b := base()
			in := Interval{b, b + 5*minute}
			want := map[string][]smp{"x": floats(b+second, b+5*minute-second, 15*second)}
			if res := o.imp(in, theirs(t, in, want)); isZero(res) {
				t.Errorf("imported %+v, want a block", res)
			}
			if window > 0 {
				sameSamples(t, "at once", all(t, o.Store)["x"], want["x"])
			}
			eventually(t, func() bool { return len(all(t, o.Store)) == 1 })
			scraped := floats(b+90*minute, b+100*minute, 15*second)
			o.put(map[string][]smp{"x": scraped})
			want["x"] = append(want["x"], scraped...)
			sameSamples(t, "scraped", all(t, o.Store)["x"], want["x"])
			sameSamples(t, "killed", all(t, open(t, o.crash()).Store)["x"], want["x"])
		})
	}
}

// With remote_write on, what is imported does not pass through the log that it reads.
func TestImportIsNotSent(t *testing.T) {
	o := open(t, t.TempDir())
	o.remoteWrite.Store(true)
	b := base()
	o.put(map[string][]smp{"x": floats(b, b+10*minute, 15*second)})
	in := Interval{b, b + 5*minute}
	if res := o.imp(in, theirs(t, in, map[string][]smp{"y": floats(b+second, b+5*minute-second, 15*second)})); isZero(res) {
		t.Errorf("imported %+v, want a block", res)
	}
}

// The window can get smaller while an import goes on: what is left becomes a block.
func TestImportWhileTheWindowMoves(t *testing.T) {
	o := open(t, t.TempDir())
	b := base()
	o.put(map[string][]smp{"own": floats(b, b+30*minute, 15*second)})
	in := Interval{b + second, b + 8*minute}
	data := map[string][]smp{}
	want := map[string][]smp{}
	for i := range 2 * importStride {
		name := fmt.Sprintf("s%04d", i)
		data[name] = floats(in.From+second, in.To-second, 15*second)
		want[name] = data[name]
	}
	n := 0
	res := o.imp(in, theirs(t, in, data), ImportOptions{Yield: func(context.Context) error {
		if n++; n == 1 {
			o.put(map[string][]smp{"own": floats(b+180*minute, b+181*minute, 15*second)})
		}
		return nil
	}})
	if isZero(res) || n != 2 || res.Series != 2*importStride {
		t.Errorf("imported %+v, yielded %d times", res, n)
	}
	got := all(t, o.Store)
	for name := range want {
		sameSamples(t, name, got[name], want[name])
	}
}

func TestImportGuards(t *testing.T) {
	b := base()
	o := open(t, t.TempDir())
	own := []smp{}
	own = append(own, floats(b, b+10*minute, 15*second)...)
	own = append(own, floats(b+30*minute, b+40*minute, 15*second)...)
	o.put(map[string][]smp{"x": own, "healthy": floats(b, b+40*minute, 15*second), "only_own": own})
	// 8 s after each of ours and 7 s before the next: what follows our last sample is far enough, what precedes our first
	// is not, and nothing of it belongs in a healthy stretch.
	foreign := floats(b-7*second, b+50*minute, 15*second)
	in := Interval{b, b + 39*minute}
	res := o.imp(in, theirs(t, in, map[string][]smp{"x": foreign, "healthy": foreign}))
	got := all(t, o.Store)
	sameSamples(t, "healthy", got["healthy"], floats(b, b+40*minute, 15*second))
	sameSamples(t, "only own", got["only_own"], own)
	want := append(floats(b+10*minute+8*second, b+30*minute-22*second, 15*second), own...)
	slices.SortFunc(want, func(a, b smp) int { return int(a.t - b.t) })
	sameSamples(t, "x", got["x"], want)
	if res.Series != 1 || res.Samples != int64(len(want)-len(own)) {
		t.Errorf("imported %+v", res)
	}
}

func TestImportKinds(t *testing.T) {
	b := base()
	in := Interval{b + minute, b + 30*minute}
	data := map[string][]smp{
		"up": floats(in.From+second, in.To-second, 15*second), "x": floats(in.From+second, in.To-second, 15*second),
		"x/other": floats(in.From+second, in.To-second, 15*second),
	}
	tests := []struct {
		name string
		o    ImportOptions
		drop string // Left out of theirs.
		want []string
	}{
		{"replica", ImportOptions{Kind: GapReplica}, "", []string{"up", "x", "x/other"}},
		{"target", ImportOptions{Kind: GapTarget, Match: labels.FromStrings("job", "node")}, "x/other", []string{"x"}},
		{"skip", ImportOptions{Kind: GapReplica, Skip: func(l labels.Labels) bool { return l.Get("job") == "other" }}, "", []string{"up", "x"}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			o := open(t, t.TempDir())
			o.put(map[string][]smp{"a": floats(b, b+40*minute, minute), "z": floats(b, b+40*minute, minute)})
			foreign := map[string][]smp{}
			for name, samples := range data {
				if name != tc.drop {
					foreign[name] = samples
				}
			}
			o.imp(in, theirs(t, in, foreign), tc.o)
			got := all(t, o.Store)
			for name, samples := range data {
				if slices.Contains(tc.want, name) {
					sameSamples(t, name, got[name], samples)
				} else if len(got[name]) > 0 {
					t.Errorf("%s was imported", name)
				}
			}
		})
	}
}

func TestImportShift(t *testing.T) {
	for _, shift := range []int64{3 * minute, -3 * minute} {
		for _, length := range []int64{8 * minute, 30 * minute} {
			b := base()
			in := Interval{b + minute, b + minute + length}
			o := open(t, t.TempDir())
			o.put(map[string][]smp{"own": floats(b, b+60*minute, minute)})
			want := kinds(in.From+second, in.To-second, 15*second)
			foreign := theirs(t, in, want)
			for i := range foreign.series {
				shifted := slices.Clone(want[foreign.series[i].Labels.Get("__name__")])
				for j := range shifted {
					shifted[j].t -= shift
				}
				foreign.series[i].Chunks = encoded(t, shifted, 30)
				foreign.series[i].Shift = shift
			}
			o.imp(in, foreign)
			got := all(t, o.Store)
			for name := range want {
				sameSamples(t, name, got[name], want[name])
			}
		}
	}
}

// blockSeries counts the series of a block.
func blockSeries(t *testing.T, o *opened, id ulid.ULID) int {
	t.Helper()
	metas, err := o.BlockMetas()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range metas {
		if m.ULID == id {
			return int(m.Stats.NumSeries)
		}
	}
	t.Fatalf("block %s is not there", id)
	return 0
}
