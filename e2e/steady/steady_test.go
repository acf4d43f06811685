package steady

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(Main(m.Run)) }

// trial is what TestOnlyPausesExcuse is in the processes that it starts. It fails as often as the file has lines.
func trial(t *testing.T, file string) {
	left, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, more := strings.Cut(string(left), "\n")
	if !more {
		return
	}
	if err := os.WriteFile(file, []byte(rest), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("part", func(t *testing.T) {
		t.Parallel()
		if os.Getenv("TRIAL_PAUSE") != "" {
			pause := fmt.Sprintf("kill -STOP %d; sleep 2; kill -CONT %[1]d", os.Getpid())
			if err := exec.Command("sh", "-c", pause).Run(); err != nil {
				t.Fatal(err)
			}
		}
		t.Error("failed as it was told")
	})
}

func TestOnlyPausesExcuse(t *testing.T) {
	if file := os.Getenv("TRIAL_FILE"); file != "" {
		trial(t, file)
		return
	}
	for _, tt := range []struct {
		fails  int
		pauses bool
		passes bool
		runs   int
	}{
		{fails: 0, passes: true, runs: 1},
		{fails: 1, passes: false, runs: 1},
		{fails: 1, pauses: true, passes: true, runs: 2},
		{fails: 9, pauses: true, passes: false, runs: attempts},
	} {
		t.Run(fmt.Sprintf("%+v", tt), func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "left")
			if err := os.WriteFile(file, bytes.Repeat([]byte("once\n"), tt.fails), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestOnlyPausesExcuse$", "-test.v")
			cmd.Env = append(os.Environ(), "TRIAL_FILE="+file)
			if tt.pauses {
				cmd.Env = append(cmd.Env, "TRIAL_PAUSE=1")
			}
			out, err := cmd.CombinedOutput()
			if passed := err == nil; passed != tt.passes {
				t.Errorf("passed: %v, want %v", passed, tt.passes)
			}
			if got := strings.Count(string(out), "=== RUN   TestOnlyPausesExcuse\n"); got != tt.runs {
				t.Errorf("ran %d times, want %d", got, tt.runs)
			}
			if t.Failed() {
				t.Logf("%s", out)
			}
		})
	}
}
