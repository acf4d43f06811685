package alert

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func newTestJournal(t testing.TB, path string, merge func([]byte) error) *journal {
	t.Helper()
	j, err := openJournal(path, false, slog.New(slog.DiscardHandler), prometheus.NewCounter(prometheus.CounterOpts{Name: "x"}), merge)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestSnapshotThatFailsForgetsNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	var got [][]byte
	keep := func(b []byte) error { got = append(got, bytes.Clone(b)); return nil }

	j := newTestJournal(t, path, keep)
	j.add([]byte("one"))
	full := errors.New("disk full")
	if _, err := j.snapshot(filepath.Join(dir, "snapshot"), func(io.Writer) (int64, error) { return 0, full }); !errors.Is(err, full) {
		t.Fatalf("snapshot: %v", err)
	}
	j.add([]byte("two"))
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	j = newTestJournal(t, path, keep)
	if want := [][]byte{[]byte("one"), []byte("two")}; !equal(got, want) {
		t.Fatalf("replayed %q, want %q", got, want)
	}
	leftovers, err := filepath.Glob(filepath.Join(dir, "*.tmp*"))
	if err != nil || len(leftovers) > 0 {
		t.Errorf("left behind: %v %v", leftovers, err)
	}

	// One that succeeds forgets what it covers, and only that.
	if _, err := j.snapshot(filepath.Join(dir, "snapshot"), func(w io.Writer) (int64, error) {
		j.add([]byte("three"))
		n, err := w.Write([]byte("one two"))
		return int64(n), err
	}); err != nil {
		t.Fatal(err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	got = nil
	if err := newTestJournal(t, path, keep).close(); err != nil {
		t.Fatal(err)
	}
	// "two" was in the journal that the failed snapshot had not moved; replaying it again is harmless.
	if len(got) == 0 || string(got[len(got)-1]) != "three" {
		t.Errorf("replayed %q after the snapshot, want three", got)
	}
}

func equal(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

func FuzzReplay(f *testing.F) {
	path := filepath.Join(f.TempDir(), "journal")
	j := newTestJournal(f, path, nil)
	j.add([]byte("a silence"))
	j.add(nil)
	if err := j.close(); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte("\xff\xff\xff\xff\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var records [][]byte
		n, err := replayRecords(bytes.NewReader(in), func(b []byte) error { records = append(records, bytes.Clone(b)); return nil })
		if n > int64(len(in)) || (err == nil && n != int64(len(in))) {
			t.Fatalf("%d of %d bytes are good, error %v", n, len(in), err)
		}
		// What was good is good again, and nothing else is read from it.
		var again [][]byte
		m, err := replayRecords(bytes.NewReader(in[:n]), func(b []byte) error { again = append(again, bytes.Clone(b)); return nil })
		if err != nil || m != n || !equal(records, again) {
			t.Fatalf("the good part replays as %d bytes, error %v", m, err)
		}
	})
}
