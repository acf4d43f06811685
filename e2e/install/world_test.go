package install

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tocsin-io/tocsin/e2e/steady"
)

func TestMain(m *testing.M) { os.Exit(steady.Main(m.Run)) }

// world is a network without a way out: a core, where the tests' own servers and requests are, and a zone for each
// machine, which are all connected by a bridge in the core. Names carry the number of this process, so that runs do not
// collide.
type world struct {
	t      *testing.T
	root   string // the Debian root, which is read only
	dir    string // overlays and logs
	name   string
	nodes  []*node
	client *http.Client // its requests come from the core
}

// coreAddress is where the machines reach the tests' servers.
const coreAddress = "10.250.0.1"

var lastWorld atomic.Int32

// newWorld skips the test where there can be no machines, and fails it in CI, where there must be.
func newWorld(t *testing.T) *world {
	t.Helper()
	if err := machinesMissing(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no machines, and in CI there must be: %v", err)
		}
		t.Skipf("no machines: %v", err)
	}
	w := &world{t: t, root: debianRoot(t), name: fmt.Sprintf("ti%d-%d", os.Getpid(), lastWorld.Add(1))}
	w.sweep()
	w.dir = filepath.Join(os.TempDir(), "tocsin-install", w.name)
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Only what is ours: an overlay that is still mounted keeps its directory.
		if err := os.RemoveAll(w.dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	t.Cleanup(func() { w.must("ip", "netns", "del", w.core()) })
	w.must("ip", "netns", "add", w.core())
	for _, args := range []string{"link set lo up", "link add br0 type bridge", "addr add " + coreAddress + "/24 dev br0", "link set br0 up"} {
		w.must("ip", append([]string{"-n", w.core()}, strings.Fields(args)...)...)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	transport.DialContext = func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = w.inCore(func() error {
			conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
	w.client = &http.Client{Transport: transport, Timeout: 30 * time.Second}
	return w
}

func (w *world) core() string { return w.name + "-core" }

// must runs a program of this machine to its end.
func (w *world) must(name string, args ...string) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		// Not Fatal: it is used for cleaning up too, and the rest of that must go on.
		w.t.Errorf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
		if !w.t.Failed() {
			w.t.FailNow()
		}
	}
	return string(out)
}

// inCore calls f on a thread that is in the core: sockets that f makes belong there for good.
func (w *world) inCore(f func() error) error {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the namespace of the thread: %w", err)
	}
	defer unix.Close(home)
	core, err := unix.Open("/run/netns/"+w.core(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the core: %w", err)
	}
	defer unix.Close(core)
	if err := unix.Setns(core, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the core: %w", err)
	}
	ferr := f()
	if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
		// The thread stays locked, so that nobody else gets one that is in the wrong place.
		return fmt.Errorf("leave the core: %w", err)
	}
	// The thread must go on to live: children die with the thread that started them.
	runtime.UnlockOSThread()
	return ferr
}

// serve answers HTTP on a port of the core until the end of the test, and returns the URL for the machines.
func (w *world) serve(port int, h http.Handler) string {
	w.t.Helper()
	return w.serveAt(net.JoinHostPort(coreAddress, strconv.Itoa(port)), h)
}

// serveAt is serve on any address that the core has.
func (w *world) serveAt(address string, h http.Handler) string {
	w.t.Helper()
	var l net.Listener
	if err := w.inCore(func() (err error) { l, err = net.Listen("tcp", address); return err }); err != nil {
		w.t.Fatal(err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l) // It says only that it was closed.
	}()
	w.t.Cleanup(func() { s.Close(); <-done })
	return "http://" + address
}

// get asks for a URL from the core. Anything but 200 is an error with the body.
func (w *world) get(url string) (string, error) {
	resp, err := w.client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s: %s", url, resp.Status, b)
	}
	return string(b), nil
}

// sweep removes what runs left that were killed: their machines ended with them.
func (w *world) sweep() {
	base := filepath.Join(os.TempDir(), "tocsin-install")
	old, _ := filepath.Glob(filepath.Join(base, "ti*"))
	for _, dir := range old {
		if !abandoned(filepath.Base(dir)) {
			continue
		}
		mounts, _ := filepath.Glob(filepath.Join(dir, "*", "merged"))
		for _, m := range mounts {
			_ = unix.Unmount(m, unix.MNT_DETACH) // It need not be mounted.
		}
		if err := os.RemoveAll(dir); err != nil {
			w.t.Logf("remove what an earlier run left: %v", err)
		}
	}
	names, _ := filepath.Glob("/run/netns/ti*")
	for _, path := range names {
		if name := filepath.Base(path); abandoned(name) {
			w.must("ip", "netns", "del", name)
		}
	}
	cgroups, _ := filepath.Glob(filepath.Join(cgroupRoot(), "ti*"))
	for _, path := range cgroups {
		if abandoned(filepath.Base(path)) {
			removeCgroup(path)
		}
	}
}

// abandoned tells from a name like ti123-1-core whether process 123 is no more.
func abandoned(name string) bool {
	pid, err := strconv.Atoi(strings.SplitN(strings.TrimPrefix(name, "ti"), "-", 2)[0])
	return err == nil && unix.Kill(pid, 0) == unix.ESRCH
}

// eventually polls until check is content, and fails the test with check's last objection otherwise.
func eventually(t *testing.T, within time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
