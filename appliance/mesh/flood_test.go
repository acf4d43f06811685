package mesh

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestFlood has each of three replicas change more at once than packets carry in a minute.
func TestFlood(t *testing.T) {
	t.Parallel()
	const each = 700
	var all []*trial
	var held []alertStates
	for _, name := range []string{"a", "b", "c"} {
		settings := []setting{named(name), withKeys(key(1))}
		if len(all) > 0 {
			settings = append(settings, withPeers(all[0].address()))
		}
		x, s := prepared(t, settings...), newAlertStates(t)
		s.join(x)
		all, held = append(all, x), append(held, s)
		x.start()
	}
	whole(t, 10*time.Second, "a b c", all...)
	// Their greetings would carry what is posted meanwhile.
	until(t, 15*time.Second, "all have met", func() bool {
		return !slices.ContainsFunc(all, func(x *trial) bool {
			x.join.mu.Lock()
			defer x.join.mu.Unlock()
			for _, t := range x.join.targets {
				if t.busy || t.greet {
					return true
				}
			}
			return x.Status() != "ready"
		})
	})
	var posting sync.WaitGroup
	for i, s := range held {
		posting.Go(func() {
			for n := range each {
				s.silence(t, fmt.Sprintf("%d of %s %s", n, all[i].Name(), strings.Repeat(".", 200)))
			}
		})
	}
	posting.Wait()
	took := until(t, 25*time.Second, "everybody has all", func() bool {
		return !slices.ContainsFunc(held, func(s alertStates) bool { return len(s.comments(t)) != each*len(all) })
	})
	t.Logf("%d changes are everywhere after %s", each*len(all), took)
	// What an exchange has carried is not sent again, packet by packet.
	until(t, 25*time.Second, "nothing waits to be sent", func() bool {
		return !slices.ContainsFunc(all, func(x *trial) bool { return x.value("alertmanager_cluster_messages_queued") != 0 })
	})
}

// TestOutbox holds that a change waits until packets or an exchange have carried it.
func TestOutbox(t *testing.T) {
	o := newOutbox(func() int { return 3 })
	left := func() string {
		var s []string
		for range 8 { // Each is sent several times.
			for _, b := range o.take(2, 1000) {
				s = append(s, string(b))
			}
		}
		slices.Sort(s)
		return strings.Join(slices.Compact(s), " ")
	}
	fill := func(changes ...string) {
		o = newOutbox(o.numNodes)
		for _, c := range changes {
			o.add(broadcast(c))
		}
	}
	for name, c := range map[string]struct {
		do   func()
		want string
	}{
		"no exchange":         {func() {}, "a b"},
		"one that goes on":    {func() { o.load(); o.add(broadcast("c")) }, "a b c"},
		"one that has worked": {func() { o.load(); o.add(broadcast("c")); o.unloaded() }, "c"},
		"one that failed":     {func() { o.load(); o.add(broadcast("c")); o.load() }, "a b c"},
		"a second that has worked": {func() {
			o.load()
			o.add(broadcast("c"))
			o.load()
			o.unloaded()
		}, "c"},
		"and a third": {func() {
			o.load()
			o.add(broadcast("c"))
			o.load()
			o.unloaded()
			o.load()
			o.unloaded()
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			fill("a", "b")
			c.do()
			if got := left(); got != c.want {
				t.Errorf("left is %q, want %q", got, c.want)
			}
			if n := o.waiting(); n != 0 {
				t.Errorf("%d wait after all were sent", n)
			}
		})
	}

	fill("a", "b")
	if got := o.take(2, 3); len(got) != 1 {
		t.Errorf("%d changes in a packet for one", len(got))
	}
	o.load()
	o.add(broadcast("c"))
	o.add(broadcast("d"))
	if got := o.take(2, 7); len(got) != 2 || string(got[0])+string(got[1]) != "dc" && string(got[0])+string(got[1]) != "cd" {
		t.Errorf("first go %q, want the new ones", got)
	}
	for _, most := range []int{5, 4, 3, 1, 0} {
		before := o.waiting()
		if dropped := o.prune(most); dropped != max(0, before-most) || o.waiting() != min(before, most) {
			t.Errorf("pruned to %d: dropped %d of %d, %d are left", most, dropped, before, o.waiting())
		}
	}
}
