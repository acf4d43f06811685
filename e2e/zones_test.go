package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// zoneNet is a set of network namespaces, each with one interface on a switch that is part of this process: zones,
// and the core, where the tests' own listeners and requests are. Namespaces and interfaces have no name outside of
// this process and live as long as it, so that no run collides with another, and a run that was killed leaves nothing.
type zoneNet struct {
	*faultSwitch
	core  *zone
	zones map[string]*zone
}

// zone is one network namespace with the address that its interface has.
type zone struct {
	name    string
	address string
	port    int // on the switch
	ns      int // descriptor of the namespace
}

// coreName is the port of the switch where the tests themselves are. Cutting a zone off leaves it, so that receivers
// hear every side.
const coreName = "core"

var (
	zoneNets    sync.Map // of the first three bytes of the addresses to *zoneNet: whom the tests' client dials how
	lastZoneNet atomic.Int32
	zonesOnce   sync.Once
	errZones    error // why there are no namespaces here
)

// requireZones skips the test where there are no namespaces, and fails it in CI, where there must be.
func requireZones(t *testing.T) {
	t.Helper()
	if err := zonesMissing(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no network namespaces, and in CI there must be: %v", err)
		}
		t.Skipf("no network namespaces: %v", err)
	}
}

func zonesMissing() error {
	zonesOnce.Do(func() {
		if _, err := exec.LookPath("ip"); err != nil {
			errZones = fmt.Errorf("iproute2 is missing, run `make test-deps`: %w", err)
			return
		}
		z := &zone{}
		if errZones = z.create(); errZones != nil {
			return
		}
		defer z.close()
		tap, err := z.openTAP()
		if err != nil {
			errZones = err
			return
		}
		errZones = tap.Close()
	})
	return errZones
}

// newZoneNet makes zones of the names given. Nothing is delayed, lost or cut at first.
func newZoneNet(t *testing.T, names ...string) *zoneNet {
	t.Helper()
	requireZones(t)
	id := int(lastZoneNet.Add(1))%250 + 1
	n := &zoneNet{zones: map[string]*zone{}, core: &zone{name: coreName, address: fmt.Sprintf("10.250.%d.1", id), ns: -1}}
	all := []*zone{n.core}
	for i, name := range names {
		z := &zone{name: name, address: fmt.Sprintf("10.250.%d.%d", id, 11+i), port: i + 1, ns: -1}
		all, n.zones[name] = append(all, z), z
	}
	t.Cleanup(func() {
		for _, z := range all {
			z.close()
		}
	})
	ports := map[string]*os.File{}
	for _, z := range all {
		if err := z.create(); err != nil {
			t.Fatal(err)
		}
		tap, err := z.openTAP()
		if err != nil {
			t.Fatal(err)
		}
		ports[z.name] = tap
		if err := z.configure(all); err != nil {
			t.Fatalf("configure zone %s: %v", z.name, err)
		}
	}
	n.faultSwitch = newFaultSwitch(t, all, ports)
	key := fmt.Sprintf("10.250.%d", id)
	zoneNets.Store(key, n)
	t.Cleanup(func() { zoneNets.Delete(key) })
	return n
}

// do calls f on a thread that is in the zone: what f opens or starts belongs to the zone for good.
func (z *zone) do(f func() error) error {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the namespace of the thread: %w", err)
	}
	defer unix.Close(home)
	if err := unix.Setns(z.ns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter zone %s: %w", z.name, err)
	}
	ferr := f()
	if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
		// The thread stays locked, so that nobody else gets one that is in the wrong place.
		return fmt.Errorf("leave zone %s: %w", z.name, err)
	}
	// The thread must go on to live: children die with the thread that started them.
	runtime.UnlockOSThread()
	return ferr
}

func (z *zone) create() error {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the namespace of the thread: %w", err)
	}
	defer unix.Close(home)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("make a network namespace: %w", err)
	}
	z.ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		z.ns = -1
		err = fmt.Errorf("open the new namespace: %w", err)
	}
	if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
		return fmt.Errorf("leave the new namespace: %w", back)
	}
	runtime.UnlockOSThread()
	return err
}

func (z *zone) close() {
	if z.ns >= 0 {
		unix.Close(z.ns)
		z.ns = -1
	}
}

// openTAP makes the zone's interface eth0, which is there until the file is closed.
func (z *zone) openTAP() (tap *os.File, err error) {
	err = z.do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq("eth0")
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			unix.Close(fd)
			return fmt.Errorf("make a TAP interface: %w", err)
		}
		tap = os.NewFile(uintptr(fd), "tap")
		return nil
	})
	return tap, err
}

// nobody is the last byte of an address that has no host: packets to it vanish, as they do on the way to another zone.
const nobody = 99

// hardware is the address of a port's interface. All know each other's, so that packets to a zone that is cut off
// vanish without a word, as they do where routers are in between.
func hardware(port int) string { return fmt.Sprintf("02:00:00:00:00:%02x", port) }

func (z *zone) configure(all []*zone) error {
	var b strings.Builder
	fmt.Fprintf(&b, "link set lo up\nlink set eth0 address %s addrgenmode none\n", hardware(z.port))
	fmt.Fprintf(&b, "addr add %s/24 dev eth0\nlink set eth0 up\n", z.address)
	for _, other := range all {
		if other != z {
			fmt.Fprintf(&b, "neigh add %s lladdr %s nud permanent dev eth0\n", other.address, hardware(other.port))
		}
	}
	fmt.Fprintf(&b, "neigh add %s lladdr %s nud permanent dev eth0\n", z.sibling(nobody), hardware(nobody))
	cmd := exec.Command("ip", "-batch", "-")
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(b.String()), &out, &out
	if err := z.do(cmd.Start); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, &out)
	}
	return nil
}

// sibling is the address in the zone's network with another last byte.
func (z *zone) sibling(last int) string {
	return z.address[:strings.LastIndexByte(z.address, '.')+1] + strconv.Itoa(last)
}

// listen listens in the zone; port 0 takes a free one.
func (z *zone) listen(t *testing.T, port int) net.Listener {
	t.Helper()
	var l net.Listener
	err := z.do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(z.address, strconv.Itoa(port)))
		return err
	})
	if err != nil {
		t.Fatalf("listen in zone %s: %v", z.name, err)
	}
	return l
}

func (z *zone) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := z.do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second}
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// zoneOf says which zone an address belongs to.
func (n *zoneNet) zoneOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	for _, z := range n.zones {
		if z.address == host {
			return z.name
		}
	}
	return host
}

// dialAnywhere is how the tests' client connects: from the core of the network that the address is in, and otherwise
// from where the tests are.
func dialAnywhere(ctx context.Context, network, address string) (net.Conn, error) {
	if n := zoneNetOf(address); n != nil {
		return n.core.dial(ctx, network, address)
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	return d.DialContext(ctx, network, address)
}

func zoneNetOf(address string) *zoneNet {
	if host, _, err := net.SplitHostPort(address); err == nil {
		address = host
	}
	i := strings.LastIndexByte(address, '.')
	if i < 0 {
		return nil
	}
	n, ok := zoneNets.Load(address[:i])
	if !ok {
		return nil
	}
	return n.(*zoneNet)
}

// toolIn is tool for a program that is to reach the zones.
func toolIn(t *testing.T, z *zone, dir, name string, args ...string) (output string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &out
	startIt := cmd.Start
	if z != nil {
		startIt = func() error { return z.do(cmd.Start) }
	}
	if err := startIt(); err != nil {
		t.Fatalf("run %s: %v", name, err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, &out)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}
