package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// node is a machine: Debian in an overlay, in a zone of the world. It can be started, stopped, crashed and started
// again; its disk stays until the end of the test.
type node struct {
	t       *testing.T
	w       *world
	name    string
	address string // in the world's network
	zone    string // the network namespace
	dir     string // overlay and console
	disk    string // the root directory as the machine sees it, but for what it mounts
	cgroup  string
	cmd     *exec.Cmd     // systemd-nspawn, while it runs
	done    chan struct{} // closed when that has ended
	leader  int           // the machine's process 1, as seen from here
}

// node makes a machine, which is not started. Extra arguments are for systemd-nspawn, as --bind is.
func (w *world) node(name string) *node {
	w.t.Helper()
	n := &node{
		t: w.t, w: w, name: name,
		address: fmt.Sprintf("10.250.0.%d", 11+len(w.nodes)),
		zone:    w.name + "-" + name,
		dir:     filepath.Join(w.dir, name),
		cgroup:  filepath.Join(cgroupRoot(), w.name+"-"+name),
	}
	n.disk = filepath.Join(n.dir, "merged")
	w.nodes = append(w.nodes, n)
	w.must("ip", "netns", "add", n.zone)
	w.t.Cleanup(func() { w.must("ip", "netns", "del", n.zone) })
	link := "v-" + name
	w.must("ip", "link", "add", "name", "eth0", "netns", n.zone, "type", "veth", "peer", "name", link, "netns", w.core())
	w.must("ip", "-n", n.zone, "link", "set", "lo", "up")
	w.must("ip", "-n", n.zone, "addr", "add", n.address+"/24", "dev", "eth0")
	w.must("ip", "-n", n.zone, "link", "set", "eth0", "up")
	w.must("ip", "-n", w.core(), "link", "set", link, "master", "br0", "up")
	w.t.Cleanup(n.unmount)
	n.newDisk()
	w.t.Cleanup(func() {
		if w.t.Failed() {
			n.report()
		}
		n.crash()
	})
	return n
}

// newDisk gives the machine, which must not run, a disk on which nothing ever happened.
func (n *node) newDisk() {
	n.t.Helper()
	n.unmount()
	upper, work := filepath.Join(n.dir, "upper"), filepath.Join(n.dir, "work")
	for _, d := range []string{upper, work} {
		if err := os.RemoveAll(d); err != nil {
			n.t.Fatal(err)
		}
	}
	for _, d := range []string{upper, work, n.disk} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := unix.Mount("overlay", n.disk, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", n.w.root, upper, work)); err != nil {
		n.t.Fatalf("mount the disk of %s: %v", n.name, err)
	}
	// Not a blank line: systemd takes that for an identity that it cannot read.
	n.write("/etc/machine-id", "", 0o644)
	n.write("/etc/hostname", n.name+"\n", 0o644)
	n.write("/etc/hosts", "127.0.0.1 localhost "+n.name+"\n", 0o644)
	n.write("/etc/resolv.conf", "", 0o644)
	// What would come from elsewhere would not be the same tomorrow.
	n.remove("/etc/apt/sources.list", "/etc/apt/sources.list.d")
	n.write("/etc/apt/sources.list.d/README", "", 0o644)
	n.write("/etc/cloud/cloud-init.disabled", "", 0o644)
	n.write("/etc/cloud/cloud.cfg.d/99-network.cfg", "# The namespace has its address.\nnetwork: {config: disabled}\nlocale: C.UTF-8\n", 0o644)
}

// seed has cloud-init find this user data and these meta data at the next start.
func (n *node) seed(userData, metaData string) {
	n.t.Helper()
	n.remove("/etc/cloud/cloud-init.disabled")
	n.write("/var/lib/cloud/seed/nocloud/user-data", userData, 0o600)
	n.write("/var/lib/cloud/seed/nocloud/meta-data", metaData, 0o644)
}

// boot starts the machine, and returns when its systemd takes commands. Extra arguments are for systemd-nspawn, as
// --bind is.
func (n *node) boot(args ...string) {
	n.t.Helper()
	if n.running() {
		n.t.Fatalf("%s is running", n.name)
	}
	console, err := os.OpenFile(filepath.Join(n.dir, "console.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		n.t.Fatal(err)
	}
	defer console.Close()
	if err := os.MkdirAll(n.cgroup, 0o755); err != nil {
		n.t.Fatal(err)
	}
	// A cgroup of its own, as nspawn would otherwise take the root's for every machine. Where this machine has the old
	// hierarchies beside the unified one, the new machine sees only that, as it does on any current system.
	const script = `set -e
echo $$ > "$1/cgroup.procs"
case $1 in /sys/fs/cgroup/unified/*) umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup;; esac
shift
exec "$@"`
	nspawn := append([]string{
		"systemd-nspawn", "--quiet", "--directory=" + n.disk, "--machine=" + n.zone, "--hostname=" + n.name, "--boot",
		"--settings=no", "--register=no", "--keep-unit", "--console=pipe", "--resolv-conf=off", "--timezone=off",
		"--network-namespace-path=/run/netns/" + n.zone,
	}, args...)
	cmd := exec.Command("unshare", append([]string{"--mount", "--propagation=private", "sh", "-c", script, "sh", n.cgroup}, nspawn...)...)
	cmd.Stdout, cmd.Stderr = console, console
	// A session of its own, which must not outlive the tests even where they are killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		n.t.Fatalf("start %s: %v", n.name, err)
	}
	n.cmd, n.done, n.leader = cmd, make(chan struct{}), 0
	go func(done chan struct{}) {
		defer close(done)
		_ = cmd.Wait() // How it ended is in the console's log.
	}(n.done)
	eventually(n.t, time.Minute, n.name+" starts", func() error {
		if !n.running() {
			b, _ := os.ReadFile(console.Name())
			n.t.Fatalf("%s did not start: %s", n.name, tail(string(b), 20))
		}
		if n.leader = initOf(cmd.Process.Pid); n.leader == 0 {
			return errors.New("it has no process 1 yet")
		}
		out, err := n.try("systemctl", "show", "--property=Version")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// booted waits until everything that starts at boot has started or failed, and nothing has failed.
func (n *node) booted(within time.Duration) {
	n.t.Helper()
	eventually(n.t, within, n.name+" has booted", func() error {
		state, _ := n.try("systemctl", "is-system-running") // Its code says what its output says.
		switch state = strings.TrimSpace(state); state {
		case "running":
			return nil
		case "degraded":
			failed, _ := n.try("systemctl", "list-units", "--failed", "--no-legend", "--plain")
			n.t.Fatalf("units of %s have failed: %s", n.name, failed)
		}
		return fmt.Errorf("it is %q", state)
	})
}

func (n *node) running() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.done:
		return false
	default:
		return true
	}
}

// initOf finds the systemd that the nspawn of that number has started.
func initOf(nspawn int) int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// "PID (COMM) STATE PPID ..."
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		_, rest, found := strings.Cut(string(b), " (systemd) ")
		if fields := strings.Fields(rest); found && len(fields) > 1 && fields[1] == strconv.Itoa(nspawn) {
			return pid
		}
	}
	return 0
}

// command is one that runs on the machine, as root and with little environment.
func (n *node) command(ctx context.Context, args ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(n.leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "DEBIAN_FRONTEND=noninteractive"}
	// Children of the command that go on must not keep us.
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// try runs a command on the machine, for two minutes at most, and returns what it prints.
func (n *node) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := n.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// run is try where anything but success fails the test.
func (n *node) run(args ...string) string {
	n.t.Helper()
	out, err := n.try(args...)
	if err != nil {
		n.t.Fatalf("%s: %s: %v: %s", n.name, strings.Join(args, " "), err, out)
	}
	return out
}

// unit returns a property of a systemd unit.
func (n *node) unit(name, property string) string {
	n.t.Helper()
	return strings.TrimSpace(n.run("systemctl", "show", "--value", "--property="+property, name))
}

// stop powers the machine off cleanly.
func (n *node) stop() {
	n.t.Helper()
	if !n.running() {
		return
	}
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		n.t.Fatalf("stop %s: %v", n.name, err)
	}
	n.wait(2 * time.Minute)
}

// wait waits until the machine has ended by itself, as after a poweroff.
func (n *node) wait(within time.Duration) {
	n.t.Helper()
	select {
	case <-n.done:
	case <-time.After(within):
		n.t.Errorf("%s did not end within %s", n.name, within)
		n.crash()
	}
	removeCgroup(n.cgroup)
}

// crash is a loss of power. What was not written to the disk of this machine is there all the same, as this machine
// goes on.
func (n *node) crash() {
	if !n.running() {
		removeCgroup(n.cgroup)
		return
	}
	if n.leader > 0 {
		_ = unix.Kill(n.leader, unix.SIGKILL) // It may be gone already.
	}
	select {
	case <-n.done:
	case <-time.After(10 * time.Second):
		_ = n.cmd.Process.Kill()
		<-n.done
	}
	removeCgroup(n.cgroup)
}

// cut takes the machine off the network; join puts it back.
func (n *node) cut()  { n.w.must("ip", "-n", n.w.core(), "link", "set", "v-"+n.name, "down") }
func (n *node) join() { n.w.must("ip", "-n", n.w.core(), "link", "set", "v-"+n.name, "up") }

// write puts a file on the machine's disk, with the directories on the way. Files below /run, /tmp and mounts are
// the running machine's alone: use run for these.
func (n *node) write(path, content string, mode fs.FileMode) {
	n.t.Helper()
	path = filepath.Join(n.disk, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	// Not through a symbolic link, which would be one of this machine.
	if fi, err := os.Lstat(path); err == nil && !fi.Mode().IsRegular() {
		if err := os.Remove(path); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		n.t.Fatal(err)
	}
}

// read returns a file of the machine's disk.
func (n *node) read(path string) string {
	n.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.disk, path))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}

// exists tells whether there is a file on the machine's disk.
func (n *node) exists(path string) bool {
	_, err := os.Lstat(filepath.Join(n.disk, path))
	return err == nil
}

func (n *node) remove(paths ...string) {
	n.t.Helper()
	for _, p := range paths {
		if err := os.RemoveAll(filepath.Join(n.disk, p)); err != nil {
			n.t.Fatal(err)
		}
	}
}

// url is where the machine serves HTTP.
func (n *node) url(port int, path string) string {
	return fmt.Sprintf("http://%s:%d%s", n.address, port, path)
}

// report tells what the machine has to say about a test that failed.
func (n *node) report() {
	b, _ := os.ReadFile(filepath.Join(n.dir, "console.log"))
	n.t.Logf("the end of the console of %s:\n%s", n.name, tail(string(b), 15))
	if !n.running() || n.leader == 0 {
		return
	}
	for _, args := range [][]string{
		{"systemctl", "list-units", "--failed", "--no-legend", "--plain"},
		{"journalctl", "--no-pager", "--lines=60", "--output=short-precise"},
	} {
		out, err := n.try(args...)
		n.t.Logf("%s: %s (%v):\n%s", n.name, strings.Join(args, " "), err, out)
	}
}

func (n *node) unmount() {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := unix.Unmount(n.disk, 0)
		if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return
		}
		if time.Now().After(deadline) {
			n.t.Errorf("unmount the disk of %s: %v", n.name, err)
			_ = unix.Unmount(n.disk, unix.MNT_DETACH)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// cgroupRoot is where the unified hierarchy is.
func cgroupRoot() string {
	const hybrid = "/sys/fs/cgroup/unified"
	if _, err := os.Stat(filepath.Join(hybrid, "cgroup.procs")); err == nil {
		return hybrid
	}
	return "/sys/fs/cgroup"
}

// removeCgroup removes a machine's, once its last processes have gone.
func removeCgroup(path string) {
	for range 50 {
		var dirs []string
		_ = filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = os.Remove(dirs[i]) // Busy ones are tried again.
		}
		if _, err := os.Stat(path); err != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}
