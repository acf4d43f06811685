package store

import (
	"testing"
)

// A snapshot at the stop loses nothing: neither what is in order, nor series that only have samples out of order.
func TestSnapshotKeepsWhatCameOutOfOrder(t *testing.T) {
	b := base()
	dir := t.TempDir()
	o := open(t, dir, func(o *Options) { o.EnableMemorySnapshotOnShutdown = true })
	want := map[string][]smp{
		"inorder": floats(b, b+100*minute, 15*second),
		"late":    floats(b+5*minute, b+10*minute, 15*second),
	}
	o.put(map[string][]smp{"inorder": want["inorder"]})
	o.put(map[string][]smp{"late": want["late"]})
	o.stop()
	again := open(t, dir, func(o *Options) { o.EnableMemorySnapshotOnShutdown = true })
	got := all(t, again.Store)
	for name := range want {
		sameSamples(t, name, got[name], want[name])
	}
}
