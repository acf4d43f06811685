package store

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const killSeries = 100

// appendUntilKilled appends and writes the time of each acknowledged commit to
// standard output.
func appendUntilKilled(dir string) error {
	s, err := New(Options{Dir: dir, Registerer: prometheus.NewRegistry(), isMount: noMount})
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background()) }()
	select {
	case <-s.Ready():
	case err := <-done:
		return err
	}
	start := time.Now().UnixMilli()
	for at := start; ; at++ {
		app := s.Appender(context.Background())
		for i := range killSeries {
			if _, err := app.Append(0, seriesLabels(i), at, float64(at)); err != nil {
				return err
			}
		}
		if err := app.Commit(); err != nil {
			return err
		}
		fmt.Println(at)
	}
}

func TestKill(t *testing.T) {
	dir := t.TempDir()
	acknowledged := map[int64]bool{}
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "STORE_TEST_APPEND_UNTIL_KILLED="+dir)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n := 0
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			at, err := strconv.ParseInt(lines.Text(), 10, 64)
			if err != nil {
				break // cut off by the kill, so not acknowledged
			}
			acknowledged[at] = true
			if n++; n == 300+round*77 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // it was killed
		if n < 300 {
			t.Fatalf("child ended after %d commits: %s", n, stderr.String())
		}
	}
	o := open(t, dir)
	got := read(t, o.Store)
	if len(got) != killSeries {
		t.Errorf("%d series, want %d", len(got), killSeries)
	}
	for series, times := range got {
		have := map[int64]bool{}
		for _, at := range times {
			have[at] = true
		}
		for at := range acknowledged {
			if !have[at] {
				t.Fatalf("%s lost the acknowledged sample at %d (%d of %d there)", series, at, len(have), len(acknowledged))
			}
		}
	}
	t.Logf("%d acknowledged commits, none lost", len(acknowledged))
}
