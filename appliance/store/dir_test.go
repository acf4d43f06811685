package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGuard(t *testing.T) {
	const block = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	tests := []struct {
		name         string
		dirs         []string
		marker       string // "-" = none
		mounted      bool
		requireMount bool
		want         []string // in the error; none = accepted
	}{
		{name: "new directory", marker: "-"},
		{name: "directory of ours", marker: `{"version":1,"created":"2026-01-01T00:00:00Z"}`},
		{name: "ours without marker", dirs: []string{"tsdb", "alertmanager"}, marker: "-"},
		{name: "foreign things", dirs: []string{"lost+found", "somebody"}, marker: "-"},
		{name: "empty marker", marker: " \n", mounted: true},
		{name: "mount with marker", marker: `{"version":1}`, mounted: true, requireMount: true},
		{name: "mount without marker", marker: "-", mounted: true, want: []string{"wrong volume", "touch ", "tocsin.json"}},
		{name: "absent mount", marker: `{"version":1}`, requireMount: true, want: []string{"not a mount point", "mount it"}},
		{name: "bare TSDB", dirs: []string{"wal"}, marker: "-", want: []string{"Prometheus TSDB (wal)", "move everything in it into", "tsdb"}},
		{name: "bare chunks", dirs: []string{"chunks_head"}, marker: "-", want: []string{"(chunks_head)"}},
		{name: "bare block", dirs: []string{block}, marker: "-", mounted: true, want: []string{block, "move everything"}},
		{name: "newer marker", marker: `{"version":2}`, want: []string{"written by a newer one"}},
		{name: "marker of somebody else", marker: `{"name":"x"}`, want: []string{"version is missing"}},
		{name: "garbage marker", marker: "\x00\x01", want: []string{"not a marker", "empty the file"}},
		{name: "huge marker", marker: strings.Repeat(" ", markerMaxBytes+1), want: []string{"larger than"}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			for _, d := range append([]string{""}, tc.dirs...) {
				if err := os.MkdirAll(filepath.Join(dir, d), 0o750); err != nil {
					t.Fatal(err)
				}
			}
			path := filepath.Join(dir, markerFile)
			if tc.marker != "-" {
				if err := os.WriteFile(path, []byte(tc.marker), 0o640); err != nil {
					t.Fatal(err)
				}
			}
			before := listing(t, dir)
			s, err := New(Options{Dir: dir, RequireMount: tc.requireMount, isMount: func(string) (bool, error) { return tc.mounted, nil }})
			if len(tc.want) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				if m, err := readMarker(dir); err != nil || m.Version != 1 {
					t.Errorf("marker is %+v, %v", m, err)
				}
				return
			}
			if !errors.Is(err, ErrWrongVolume) {
				t.Fatalf("got %v, want %v", err, ErrWrongVolume)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q is not in %q", w, err)
				}
			}
			if after := listing(t, dir); after != before {
				t.Errorf("a refused directory was changed from %s to %s", before, after)
			}
		})
	}
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(entries)
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	s, err := New(Options{Dir: dir, isMount: noMount})
	if err != nil {
		t.Fatal(err)
	}
	_, err = New(Options{Dir: dir, isMount: noMount})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("second store: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err = New(Options{Dir: dir, isMount: noMount})
	if err != nil {
		t.Fatalf("after close: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestInMountInfo(t *testing.T) {
	table := []byte("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" +
		"31 22 8:17 / /srv/my\\040data rw,relatime shared:1 - xfs /dev/sdb1 rw\n" +
		"32 22 8:1 /srv/other /srv/elsewhere rw - ext4 /dev/sda1 rw\n" +
		// What systemd makes of ReadWritePaths= and StateDirectory= of a unit whose file system is read-only otherwise.
		"33 22 8:1 /var/lib/plain /var/lib/plain rw - ext4 /dev/sda1 rw\n" +
		"34 22 8:33 / /var/lib/volume rw - ext4 /dev/sdc rw\n" +
		"35 34 8:33 / /var/lib/volume rw - ext4 /dev/sdc rw\n" +
		"36 34 8:33 /inside /var/lib/volume/inside rw - ext4 /dev/sdc rw\n" +
		"37 22 0:40 /@/home /home rw - btrfs /dev/sdd rw\n" +
		"38 37 0:40 /@/home/a /home/a rw - btrfs /dev/sdd rw\n" +
		"39 37 0:40 /@b /home/b rw - btrfs /dev/sdd rw\n" +
		"short line\n")
	for dir, want := range map[string]bool{
		"/": true, "/srv/my data": true, "/srv": false, "/srv/my\\040data": false, "": false, "/srv/elsewhere": true,
		"/var/lib/plain": false, "/var/lib/volume": true, "/var/lib/volume/inside": false, "/home/a": false, "/home/b": true,
	} {
		if got := inMountInfo(table, dir); got != want {
			t.Errorf("%q: got %v, want %v", dir, got, want)
		}
	}
}

func TestIsMountPoint(t *testing.T) {
	if ok, err := isMountPoint("/"); err != nil || !ok {
		t.Errorf("/: %v, %v", ok, err)
	}
	if ok, err := isMountPoint(t.TempDir()); err != nil || ok {
		t.Errorf("a plain directory: %v, %v", ok, err)
	}
}

func FuzzParseMarker(f *testing.F) {
	f.Add([]byte(`{"version":1,"created":"2026-01-01T00:00:00Z"}`))
	f.Add([]byte(``))
	f.Add([]byte(`{"version":99999999999999999999}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMarker(b)
		if err == nil && m.Version != markerVersion {
			t.Errorf("accepted version %d", m.Version)
		}
		if err != nil && !errors.Is(err, ErrWrongVolume) && !errors.Is(err, errEmptyMarker) {
			t.Errorf("unnamed error: %v", err)
		}
	})
}

func FuzzInMountInfo(f *testing.F) {
	f.Add([]byte("31 22 8:17 / /srv/my\\040data rw - xfs /dev/sdb1 rw\n"), "/srv/my data")
	f.Add([]byte(`1 2 3 4 \\7`), `\`)
	f.Fuzz(func(t *testing.T, table []byte, dir string) { inMountInfo(table, dir) })
}
