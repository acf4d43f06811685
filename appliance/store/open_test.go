package store

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/wlog"
)

// A repair of the write-ahead log costs what was broken in it, and nothing of
// what came out of order, which is in a log of its own.
func TestRepairKeepsOutOfOrder(t *testing.T) {
	const series, commits, late = 50, 200, 70
	wal := func(dir string) string { return filepath.Join(dir, "tsdb", "wal") }
	garbage := func(t *testing.T, dir string) {
		appendTo(t, lastFile(t, wal(dir)), strings.Repeat("garbage", 1000))
	}
	tests := []struct {
		name     string
		snapshot bool
		unbroken bool // one run, whose chunks are in no file yet
		breakIt  func(t *testing.T, dir string)
		whole    bool    // nothing is missing
		behind   bool    // the late series are first in the log behind the break
		counted  float64 // corruptions
	}{
		{name: "nothing", breakIt: func(*testing.T, string) {}, whole: true},
		{name: "tail is cut", breakIt: func(t *testing.T, dir string) { cutTail(t, lastFile(t, wal(dir)), 13) }, counted: 1},
		{name: "flipped byte", breakIt: func(t *testing.T, dir string) { flip(t, lastFile(t, wal(dir)), 0.5) }, counted: 1},
		{name: "flipped byte before the late series", breakIt: func(t *testing.T, dir string) {
			flip(t, wlog.SegmentName(wal(dir), 0), 0.1)
		}, behind: true, counted: 1},
		{name: "garbage", breakIt: garbage, whole: true, counted: 1},
		{name: "garbage, chunks were not written", unbroken: true, breakIt: garbage, whole: true, counted: 1},
		{name: "garbage, with snapshots", snapshot: true, breakIt: garbage, whole: true, counted: 1},
		{name: "garbage in both logs", breakIt: func(t *testing.T, dir string) {
			garbage(t, dir)
			appendTo(t, lastFile(t, filepath.Join(dir, "tsdb", "wbl")), strings.Repeat("garbage", 1000))
		}, whole: true, counted: 2},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			change := func(o *Options) {
				o.EnableMemorySnapshotOnShutdown = tc.snapshot
				o.Config = configured(func(c *promconfig.Config) {
					c.StorageConfig.TSDBConfig = &promconfig.TSDBConfig{OutOfOrderTimeWindow: (3 * time.Hour).Milliseconds()}
				})
			}
			now := time.Now().UnixMilli()
			o := open(t, dir, change)
			o.append(series, now)
			if tc.behind {
				for i := range int64(100) {
					o.append(2*series, now-1000+i)
				}
			}
			// One series has a sample in order too, one has none.
			some, none := labels.FromStrings("__name__", "late_some"), labels.FromStrings("__name__", "late_none")
			push := func(l labels.Labels, at int64) {
				t.Helper()
				app := o.Appender(context.Background())
				if _, err := app.Append(0, l.Copy(), at, 1); err != nil {
					t.Fatal(err)
				}
				if err := app.Commit(); err != nil {
					t.Fatal(err)
				}
			}
			push(some, now)
			for i := range int64(late) {
				push(some, now-(i+1)*500)
				push(none, now-2*time.Hour.Milliseconds()-i*500)
			}
			if !tc.unbroken {
				o.stop()
				o = open(t, dir, change)
			}
			for i := range int64(commits) {
				o.append(series, now+(i+1)*1000)
			}
			push(none, now-2*time.Hour.Milliseconds()-late*500)
			want := read(t, o.Store)
			if n := len(want[some.String()]) + len(want[none.String()]); n != 2*(late+1) {
				t.Fatalf("%d late samples before, want %d", n, 2*(late+1))
			}
			// As kill -9 leaves it.
			killed := filepath.Join(t.TempDir(), "data")
			if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			o.stop()
			tc.breakIt(t, killed)

			// The one sample in order of late_some is in the log that is broken.
			inOrder := 0
			if tc.behind {
				inOrder = 1
			}
			check := func(o *opened) {
				t.Helper()
				got := read(t, o.Store)
				if tc.whole && len(got) != len(want) {
					t.Errorf("%d series, want %d", len(got), len(want))
				}
				for name, times := range want {
					if (strings.Contains(name, "late") || tc.whole) && len(got[name]) < len(times)-inOrder {
						t.Errorf("%s has %d samples of %d", name, len(got[name]), len(times))
					}
				}
				checkInterned(t, o.Store)
				if n := gauge(t, o.reg, "prometheus_tsdb_head_series"); int(n) != len(got) {
					t.Errorf("prometheus_tsdb_head_series is %v, want %d", n, len(got))
				}
			}
			o = open(t, killed, change)
			check(o)
			if n := gauge(t, o.reg, "prometheus_tsdb_wal_corruptions_total"); n != tc.counted {
				t.Errorf("prometheus_tsdb_wal_corruptions_total is %v, want %v", n, tc.counted)
			}
			if n, again := strings.Count(o.log.String(), "opening the data directory again"), min(int(tc.counted), 1); n != again {
				t.Errorf("it was opened again %d times, want %d", n, again)
			}
			// It appends, and compacts what came out of order.
			o.append(series, now+(commits+10)*1000)
			if err := o.local.db.Load().CompactOOOHead(context.Background()); err != nil {
				t.Error(err)
			}
			if got := read(t, o.Store); len(got[none.String()]) != late+1 {
				t.Errorf("%d samples of %d after compaction", len(got[none.String()]), late+1)
			}
			o.stop()
			o = open(t, killed, change)
			if got := read(t, o.Store); len(got[some.String()]) < late+1-inOrder || len(got[none.String()]) != late+1 {
				t.Errorf("after one more start %d and %d late samples, want %d", len(got[some.String()]), len(got[none.String()]), late+1)
			}
			if strings.Contains(o.log.String(), "level=ERROR") || strings.Contains(o.log.String(), "opening the data directory again") {
				t.Error("the start after the repair is not a usual one")
			}
		})
	}
}

// A stop that is asked for during the first of two replays spares the second,
// and the next start has everything.
func TestStopBeforeReopen(t *testing.T) {
	dir := t.TempDir()
	now := time.Now().UnixMilli()
	o := open(t, dir)
	o.append(20, now)
	o.append(20, now-60_000)
	o.stop()
	appendTo(t, lastFile(t, filepath.Join(dir, "tsdb", "wal")), "\x01\x00\xff garbage")

	s, err := New(Options{Dir: dir, Registerer: prometheus.NewRegistry(), StripeSize: 64, isMount: noMount})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Errorf("run: %v", err)
	}
	if ready, sentence := s.Condition(); ready || sentence != "stopped" {
		t.Errorf("condition is %v, %q", ready, sentence)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	for name, times := range read(t, open(t, dir).Store) {
		if len(times) != 2 {
			t.Errorf("%s has %d samples, want 2", name, len(times))
		}
	}
}

func TestReplayCondition(t *testing.T) {
	s, err := New(Options{Dir: t.TempDir(), isMount: noMount})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	st := s.local.stats.Head.WALReplayStatus
	for say, during := range map[string]string{
		sayReplay:      "replaying the write-ahead log: segment 3 of 6",
		sayReplayAgain: "replaying the write-ahead log again after its repair: segment 3 of 6",
	} {
		s.say("%s", say)
		for _, want := range []string{say, during} {
			if ready, got := s.Condition(); ready || got != want {
				t.Errorf("condition is %v, %q, want %q", ready, got, want)
			}
			st.Min, st.Max, st.Current = 4, 9, 6
		}
		st.Min, st.Max, st.Current = 0, 0, 0
	}
}

// Of a segment with a broken page, all records are read that do not reach into
// that page.
func TestEachRecordGoesOn(t *testing.T) {
	const records, size = 400, 1000
	dir := t.TempDir()
	w, err := wlog.New(nopLogger(), nil, dir, "none")
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		if err := w.Log(bytes.Repeat([]byte{byte(i), byte(i >> 8)}, size/2)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	flip(t, lastFile(t, dir), 0.5)
	got, before := 0, -1
	err = eachRecord(dir, func(rec []byte) error {
		n := int(rec[0]) | int(rec[1])<<8
		if n <= before || !bytes.Equal(rec, bytes.Repeat(rec[:2], size/2)) {
			t.Errorf("record %d of %d bytes after %d", n, len(rec), before)
		}
		got, before = got+1, n
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := records - walPageBytes/size - 2; got < want || got >= records || before != records-1 {
		t.Errorf("%d records up to %d, want at least %d", got, before, want)
	}
}

func FuzzEachSegmentRecord(f *testing.F) {
	f.Add([]byte("\x04\x00\x01\x00\x00\x00\x00x"))
	f.Add(bytes.Repeat([]byte{3, 0, 0, 0, 0, 0, 0}, 5000))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "00000000")
		write(t, path, string(b))
		if err := eachSegmentRecord(path, func([]byte) error { return nil }); err != nil {
			t.Error(err)
		}
	})
}
