package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/wlog"
)

// writeBlock writes a block of one series with a sample at each time.
func writeBlock(t testing.TB, dir string, times ...int64) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	var samples []chunks.Sample
	for _, at := range times {
		samples = append(samples, floatSample{at, float64(at)})
	}
	series := []storage.Series{storage.NewListSeries(labels.FromStrings("__name__", "in_block", "at", fmt.Sprint(times[0])), samples)}
	path, err := tsdb.CreateBlock(series, dir, 0, nopLogger())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBrokenBlocks(t *testing.T) {
	breaks := map[string]func(t *testing.T, dir string){
		"garbage meta.json": func(t *testing.T, dir string) { write(t, filepath.Join(dir, "meta.json"), "{{{") },
		"empty meta.json":   func(t *testing.T, dir string) { write(t, filepath.Join(dir, "meta.json"), "") },
		"no meta.json":      func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "meta.json")) },
		"meta.json is null": func(t *testing.T, dir string) { write(t, filepath.Join(dir, "meta.json"), "null") },
		"truncated index":   func(t *testing.T, dir string) { truncate(t, filepath.Join(dir, "index"), -20) },
		"index of 3 bytes":  func(t *testing.T, dir string) { truncate(t, filepath.Join(dir, "index"), 3) },
		"empty index":       func(t *testing.T, dir string) { truncate(t, filepath.Join(dir, "index"), 0) },
		"no index":          func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "index")) },
		"no chunks":         func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "chunks")) },
		"no chunk file":     func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "chunks", "000001")) },
		"garbage chunk file": func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "chunks", "000001"), "not chunks at all")
		},
		"garbage tombstones": func(t *testing.T, dir string) { write(t, filepath.Join(dir, "tombstones"), "garbage!") },
	}
	for name, breakIt := range breaks {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			td := filepath.Join(dir, "tsdb")
			now := time.Now().UnixMilli()
			hour := time.Hour.Milliseconds()
			writeBlock(t, td, now-9*hour, now-9*hour+1)
			bad := writeBlock(t, td, now-6*hour, now-6*hour+1)
			writeBlock(t, td, now-5*hour, now-5*hour+1)
			breakIt(t, bad)
			// What an interrupted compaction or deletion leaves is no error.
			for _, tmp := range []string{"01ARZ3NDEKTSV4RRFFQ69G5FAV.tmp-for-creation", "01ARZ3NDEKTSV4RRFFQ69G5FAV.tmp-for-deletion"} {
				if err := os.MkdirAll(filepath.Join(td, tmp), 0o750); err != nil {
					t.Fatal(err)
				}
			}

			o := open(t, dir)
			if got := len(read(t, o.Store)); got != 2 {
				t.Errorf("%d series served, want 2", got)
			}
			if got := gauge(t, o.reg, "tocsin_storage_quarantined_blocks"); got != 1 {
				t.Errorf("tocsin_storage_quarantined_blocks is %v, want 1", got)
			}
			if _, err := os.Stat(filepath.Join(dir, quarantineDir, filepath.Base(bad))); err != nil {
				t.Errorf("broken block is not in quarantine: %v", err)
			}
			if log := o.log.String(); !strings.Contains(log, "broken block was set aside") || !strings.Contains(log, filepath.Base(bad)) {
				t.Error("nothing of it in the log")
			}
			o.append(1, now)
			o.stop()
			// A start later it is still counted, and a second one does not collide.
			o = open(t, dir)
			if got := len(read(t, o.Store)); got != 3 {
				t.Errorf("%d series after restart, want 3", got)
			}
			if got := gauge(t, o.reg, "tocsin_storage_quarantined_blocks"); got != 1 {
				t.Errorf("tocsin_storage_quarantined_blocks is %v after restart, want 1", got)
			}
		})
	}
}

// Each case breaks files after many commits. The rest must be served, and new
// samples appended and found after one more start.
func TestBrokenLogs(t *testing.T) {
	const series, commits = 200, 400
	type state struct {
		dir, tsdb, wal string
		times          []int64
	}
	tests := []struct {
		name     string
		snapshot bool
		ckpt     bool // a checkpoint is there
		breakIt  func(t *testing.T, s state)
		minShare float64 // of the samples that must be left
		log      string
	}{
		{name: "nothing", breakIt: func(*testing.T, state) {}, minShare: 1},
		{name: "truncated tail", breakIt: func(t *testing.T, s state) { cutTail(t, lastFile(t, s.wal), 100) },
			minShare: 0.98, log: "write-ahead log was broken"},
		{name: "torn page behind the tail", breakIt: func(t *testing.T, s state) { appendTo(t, lastFile(t, s.wal), "\x01\x00\xff garbage") },
			minShare: 1, log: "write-ahead log was broken"},
		{name: "flipped byte in the middle", breakIt: func(t *testing.T, s state) { flip(t, lastFile(t, s.wal), 0.5) },
			minShare: 0.3, log: "write-ahead log was broken"},
		{name: "leftover directories", breakIt: func(t *testing.T, s state) {
			for _, d := range []string{"checkpoint.00000007.tmp", "garbage.tmp"} {
				if err := os.MkdirAll(filepath.Join(s.wal, d), 0o750); err != nil {
					t.Fatal(err)
				}
			}
		}, minShare: 1},
		{name: "flipped byte in the checkpoint", ckpt: true, breakIt: func(t *testing.T, s state) {
			flip(t, lastFile(t, checkpoint(t, s.wal)), 0.5)
		}, minShare: 0.4, log: "broken checkpoint of the write-ahead log was rewritten"},
		{name: "truncated checkpoint", ckpt: true, breakIt: func(t *testing.T, s state) {
			appendTo(t, lastFile(t, checkpoint(t, s.wal)), "\x01\x00\xff garbage")
		}, minShare: 1, log: "broken checkpoint of the write-ahead log was rewritten"},
		{name: "no checkpoint", ckpt: true, breakIt: func(t *testing.T, s state) { remove(t, checkpoint(t, s.wal)) },
			log: "segments of the write-ahead log are missing"},
		{name: "missing segment", ckpt: true, breakIt: func(t *testing.T, s state) {
			files, err := numbered(s.wal)
			if err != nil || len(files) < 2 {
				t.Fatalf("segments are %v, %v", files, err)
			}
			remove(t, wlog.SegmentName(s.wal, files[0]))
		}, minShare: 0.1, log: "segments of the write-ahead log are missing"},
		{name: "truncated chunks_head file", breakIt: func(t *testing.T, s state) {
			truncate(t, lastFile(t, filepath.Join(s.tsdb, "chunks_head")), 60)
		}, minShare: 1},
		{name: "chunks_head file of 5 bytes", breakIt: func(t *testing.T, s state) {
			truncate(t, lastFile(t, filepath.Join(s.tsdb, "chunks_head")), 5)
		}, minShare: 1, log: "broken head chunk file was set aside"},
		{name: "garbage chunks_head file", breakIt: func(t *testing.T, s state) {
			write(t, lastFile(t, filepath.Join(s.tsdb, "chunks_head")), "garbage garbage")
		}, minShare: 1, log: "broken head chunk file was set aside"},
		{name: "gap in chunks_head", breakIt: func(t *testing.T, s state) {
			write(t, filepath.Join(s.tsdb, "chunks_head", "000009"), "\x01\x30\xbc\x91\x01\x00\x00\x00")
		}, minShare: 1, log: "broken head chunk file was set aside"},
		{name: "corrupted snapshot", snapshot: true, breakIt: func(t *testing.T, s state) {
			dirs, err := filepath.Glob(filepath.Join(s.tsdb, "chunk_snapshot.*"))
			if err != nil || len(dirs) != 1 {
				t.Fatalf("snapshots are %v, %v", dirs, err)
			}
			flip(t, lastFile(t, dirs[0]), 0.6)
		}, minShare: 1},
		{name: "corrupted snapshot and chunks", snapshot: true, breakIt: func(t *testing.T, s state) {
			truncate(t, lastFile(t, filepath.Join(s.tsdb, "chunks_head")), 60)
		}, minShare: 1},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			snapshots := func(o *Options) { o.EnableMemorySnapshotOnShutdown = tc.snapshot }
			st := state{dir: dir, tsdb: filepath.Join(dir, "tsdb"), wal: filepath.Join(dir, "tsdb", "wal")}
			now := time.Now().UnixMilli()
			for i := range commits {
				st.times = append(st.times, now+int64(i)*1000)
			}
			o := open(t, dir, snapshots)
			o.append(series, st.times...)
			o.stop()
			if tc.ckpt {
				makeCheckpoint(t, st.wal)
				// Segments behind it, one with samples.
				o = open(t, dir, snapshots)
				o.append(series, now+commits*1000)
				st.times = append(st.times, now+commits*1000)
				o.stop()
			}
			tc.breakIt(t, st)

			o = open(t, dir, snapshots)
			got := 0
			for _, times := range read(t, o.Store) {
				got += len(times)
			}
			if share := float64(got) / float64(series*len(st.times)); share < tc.minShare || share > 1 {
				t.Errorf("%.4f of the samples are left, want at least %v", share, tc.minShare)
			} else {
				t.Logf("%.4f of the samples are left", share)
			}
			if !strings.Contains(o.log.String(), tc.log) {
				t.Errorf("%q is not in the log", tc.log)
			}
			checkInterned(t, o.Store)
			late := now + (commits+10)*1000
			o.append(series, late)
			o.stop()

			o = open(t, dir, snapshots)
			found := 0
			for _, times := range read(t, o.Store) {
				if times[len(times)-1] == late {
					found++
				}
			}
			if found != series {
				t.Errorf("%d series have the sample that was appended after the repair, want %d", found, series)
			}
			if strings.Contains(o.log.String(), "level=ERROR") {
				t.Error("the start after the repair has errors in its log")
			}
			checkInterned(t, o.Store)
		})
	}
}

// makeCheckpoint turns all but an empty last segment into a checkpoint.
func makeCheckpoint(t *testing.T, dir string) {
	t.Helper()
	w, err := wlog.New(nopLogger(), nil, dir, "snappy")
	if err != nil {
		t.Fatal(err)
	}
	first, last, err := wlog.Segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wlog.Checkpoint(nopLogger(), w, first, last-1, func(chunks.HeadSeriesRef) bool { return true }, 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Truncate(last); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func checkpoint(t *testing.T, wal string) string {
	t.Helper()
	dir, _, err := wlog.LastCheckpoint(wal)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// What a repair deletes is kept, bounded in number, and nothing of the rest.
func TestKeptWAL(t *testing.T) {
	dir := t.TempDir()
	now := time.Now().UnixMilli()
	for i := range keptWALs + 2 {
		o := open(t, dir)
		o.append(50, now+int64(i)*1000)
		o.stop()
		flip(t, lastFile(t, filepath.Join(dir, "tsdb", "wal")), 0.5)
	}
	open(t, dir)
	kept, err := filepath.Glob(filepath.Join(dir, quarantineDir, keptPrefix+"*"))
	if err != nil || len(kept) == 0 || len(kept) > keptWALs {
		t.Errorf("kept are %v, %v", kept, err)
	}
	if _, err := os.Stat(filepath.Join(dir, quarantineDir, replaying)); !os.IsNotExist(err) {
		t.Errorf("links of the replay are left: %v", err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

func appendTo(t *testing.T, path, content string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// truncate cuts the file to n bytes, or by -n.
func truncate(t *testing.T, path string, n int64) {
	t.Helper()
	if n < 0 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size()
	}
	if err := os.Truncate(path, n); err != nil {
		t.Fatal(err)
	}
}

// cutTail cuts n bytes off what the file holds.
func cutTail(t *testing.T, path string, n int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	truncate(t, path, int64(len(strings.TrimRight(string(b), "\x00"))-n))
}

// flip changes a byte at that share of what the file holds.
func flip(t *testing.T, path string, share float64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	used := len(strings.TrimRight(string(b), "\x00"))
	b[int(float64(used)*share)] ^= 0xff
	if err := os.WriteFile(path, b, 0o640); err != nil {
		t.Fatal(err)
	}
}

// lastFile is the last numbered file in dir that is not empty.
func lastFile(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := len(entries) - 1; i >= 0; i-- {
		info, err := entries[i].Info()
		if err != nil {
			t.Fatal(err)
		}
		if !info.IsDir() && info.Size() > 0 {
			return filepath.Join(dir, info.Name())
		}
	}
	t.Fatalf("%s has no file", dir)
	return ""
}

func FuzzParseMeta(f *testing.F) {
	f.Add([]byte(`{"ulid":"01ARZ3NDEKTSV4RRFFQ69G5FAV","minTime":1,"maxTime":2,"version":1,"compaction":{"level":1}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseMeta(b); err == nil && m.Version != 1 {
			t.Errorf("accepted version %d", m.Version)
		}
	})
}
