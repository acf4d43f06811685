package install

import (
	"strings"
	"testing"
	"time"
)

// TestMachines holds what the other tests take for granted of the machines.
func TestMachines(t *testing.T) {
	w := newWorld(t)
	a, b := w.node("a"), w.node("b")
	for _, n := range []*node{a, b} {
		n.boot()
	}
	for _, n := range []*node{a, b} {
		n.booted(time.Minute)
		if got := strings.TrimSpace(n.run("hostname")); got != n.name {
			t.Errorf("the name of %s is %q", n.name, got)
		}
	}
	ping := []string{"timeout", "3", "bash", "-c", "exec 3<>/dev/tcp/" + b.address + "/22"}
	a.run(ping...)
	b.cut()
	if out, err := a.try(ping...); err == nil {
		t.Errorf("a machine that is cut off answers: %s", out)
	}
	b.join()
	a.run(ping...)

	a.run("sh", "-c", "echo kept > /var/lib/kept")
	a.crash()
	a.boot()
	if got := a.run("cat", "/var/lib/kept"); got != "kept\n" {
		t.Errorf("after a crash the disk has %q", got)
	}
	a.stop()
	a.newDisk()
	if a.exists("/var/lib/kept") {
		t.Error("a new disk is not empty")
	}
}
