package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tocsin-io/tocsin/appliance"
)

// actAsTocsin makes the test's own binary the program.
const actAsTocsin = "TOCSIN_TEST_IS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(actAsTocsin) != "" {
		main()
	}
	os.Exit(m.Run())
}

// manager is the socket of a service manager.
type manager struct {
	t    *testing.T
	path string
	got  chan string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{t: t, path: filepath.Join(t.TempDir(), "notify"), got: make(chan string, 1000)}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		defer close(m.got)
		b := make([]byte, 1<<16)
		for {
			n, _, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			m.got <- string(b[:n])
		}
	}()
	return m
}

// wait returns what came up to and with a message that has a line that begins so.
func (m *manager) wait(prefix string) []string {
	m.t.Helper()
	var lines []string
	deadline := time.After(time.Minute)
	for {
		select {
		case message, ok := <-m.got:
			if !ok {
				m.t.Fatalf("the socket was closed; no %s in:\n%s", prefix, strings.Join(lines, "\n"))
			}
			lines = append(lines, strings.Split(message, "\n")...)
			if has(strings.Split(message, "\n"), prefix) {
				return lines
			}
		case <-deadline:
			m.t.Fatalf("no %s in:\n%s", prefix, strings.Join(lines, "\n"))
		}
	}
}

func has(lines []string, prefix string) bool {
	for _, l := range lines {
		if strings.HasPrefix(l, prefix) {
			return true
		}
	}
	return false
}

// TestNotify has the real program tell a real socket how it is, through its whole life.
func TestNotify(t *testing.T) {
	m, dir := newManager(t), t.TempDir()
	cmd := exec.Command(os.Args[0], "run", "--web.listen-address=127.0.0.1:0", "--alertmanager.listen-address=")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), actAsTocsin+"=1", "NOTIFY_SOCKET="+m.path, "WATCHDOG_USEC=1000000")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // It has ended unless the test failed.
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("log:\n%s", b)
		}
	})

	begin := m.wait("READY=1")
	for _, want := range []string{"STATUS=", "EXTEND_TIMEOUT_USEC=60000000"} {
		if !has(begin, want) {
			t.Errorf("no %s before READY=1 in %q", want, begin)
		}
	}
	if !has(begin, "STATUS=ready, alone") {
		m.wait("STATUS=ready, alone")
	}
	m.wait("WATCHDOG=1")
	m.wait("WATCHDOG=1")

	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if reload := m.wait("RELOADING=1"); !has(reload, "MONOTONIC_USEC=") {
		t.Errorf("RELOADING=1 without MONOTONIC_USEC in %q", reload)
	}
	m.wait("READY=1")
	m.wait("STATUS=ready, alone")

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	stop := m.wait("STOPPING=1")
	if !has(stop, "STATUS=stop") {
		t.Errorf("STOPPING=1 without a status in %q", stop)
	}
	if !has(stop, "STATUS=stopped") {
		m.wait("STATUS=stopped")
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// fake is a process in any state.
type fake struct {
	state appliance.State
	dead  atomic.Bool
	asked chan struct{}
}

func (f *fake) State() appliance.State { return f.state }

func (f *fake) Alive(context.Context) error {
	select {
	case f.asked <- struct{}{}:
	default:
	}
	if f.dead.Load() {
		return errors.New("it hangs")
	}
	return nil
}

// TestNotifyHangs holds that what does not get on gets no more time, and that what is not alive is not said to be.
func TestNotifyHangs(t *testing.T) {
	m := newManager(t)
	t.Setenv("NOTIFY_SOCKET", m.path)
	t.Setenv("WATCHDOG_USEC", "20000")
	n := newNotifier(slog.New(slog.DiscardHandler))

	n.look(appliance.State{Sentence: "replaying", Moving: true})
	if lines := m.wait("STATUS=replaying"); !has(lines, "EXTEND_TIMEOUT_USEC=") {
		t.Errorf("no time was asked for: %q", lines)
	}
	n.extended = time.Time{}
	n.look(appliance.State{Sentence: "hanging"})
	if lines := m.wait("STATUS=hanging"); has(lines, "EXTEND_TIMEOUT_USEC=") {
		t.Errorf("time was asked for, for nothing: %q", lines)
	}

	f := &fake{asked: make(chan struct{}, 1)}
	f.dead.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	fed := make(chan struct{})
	go func() { defer close(fed); n.feed(ctx, f) }()
	for range 5 {
		<-f.asked
	}
	n.mu.Lock()
	n.send("STATUS=dead until here")
	n.mu.Unlock()
	if lines := m.wait("STATUS=dead until here"); has(lines, "WATCHDOG=1") {
		t.Errorf("a process that hangs fed the watchdog: %q", lines)
	}
	f.dead.Store(false)
	m.wait("WATCHDOG=1")
	cancel()
	<-fed
}
