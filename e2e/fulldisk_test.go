package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestFullDisk fills the disk below a running replica: it goes on, answers, says what is wrong, and does not
// acknowledge a silence that it cannot keep.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := workDir(t)
	volume := filepath.Join(dir, "volume")
	if err := os.Mkdir(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	switch err := syscall.Mount("tmpfs", volume, "tmpfs", 0, "size=8m"); {
	case errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES):
		t.Skipf("a file system cannot be mounted here: %v", err)
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(volume, syscall.MNT_DETACH) })
	write(t, volume, "tocsin.json", "")
	filler := filepath.Join(volume, "filler")
	fill := func() {
		t.Helper()
		f, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	silence := func(p *tocsin, comment string) (int, string) {
		t.Helper()
		now := time.Now()
		code, answer, err := fetch(http.MethodPost, p.url+"/alertmanager/api/v2/silences", "application/json", fmt.Sprintf(
			`{"matchers":[{"name":"a","value":"b","isRegex":false}],"startsAt":%q,"endsAt":%q,"createdBy":"x","comment":%q}`,
			now.Format(time.RFC3339), now.Add(time.Hour).Format(time.RFC3339), comment))
		if err != nil {
			t.Fatal(err)
		}
		return code, answer
	}
	queries := func(p *tocsin) {
		t.Helper()
		// Enough to touch every place in the list of running queries.
		for range 30 {
			if code, answer, err := fetch(http.MethodGet, p.url+"/api/v1/query?query=up", "", ""); err != nil || code != http.StatusOK {
				t.Fatalf("a query on a full disk: %d %s %v", code, answer, err)
			}
		}
		p.alive()
	}

	p := runTocsin(t, dir, "--storage.path="+volume)
	fill()
	queries(p)
	if code, answer := silence(p, strings.Repeat("x", 8192)); code != http.StatusInternalServerError || !strings.Contains(answer, "disk") {
		t.Errorf("a silence that cannot be kept: %d %s", code, answer)
	}
	if _, page, err := fetch(http.MethodGet, p.url+"/api/tocsin/v1/status", "", ""); err != nil || !strings.Contains(page, "is full or nearly so") {
		t.Errorf("the home page does not say that the disk is full: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if code, answer := silence(p, "when there is room again"); code != http.StatusOK {
		t.Fatalf("a silence when there is room again: %d %s", code, answer)
	}
	fill()
	p.kill()

	// A start on a full disk comes up and answers, and what was acknowledged is there.
	again := runTocsin(t, dir, "--storage.path="+volume)
	queries(again)
	if _, answer, err := fetch(http.MethodGet, again.url+"/alertmanager/api/v2/silences", "", ""); err != nil || !strings.Contains(answer, "when there is room again") {
		t.Errorf("the silences after the restart: %s %v", answer, err)
	}
	again.kill()
}
