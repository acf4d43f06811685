package e2e

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// A death is noticed and made up for within five seconds where nothing else goes on. Tests share their machine.
const takeoverMost = 10 * time.Second

// TestSenderDiesMidway kills the replica that is in the middle of sending: another one sends what may not have
// arrived, within seconds, with the same idempotency key, and nobody a third time.
func TestSenderDiesMidway(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{zones: true})
	c.up()
	lamp, later := group{"Lamp", "1"}, group{"Lamp", "later"}
	var sender shared[string]
	var killed shared[time.Time]

	tl := c.timeline()
	tl.at(0, "hold the next notification, and light the lamp", func() {
		c.hook.holdNext(lamp, "firing")
		c.light("1")
	})
	tl.when(0, 20*time.Second, "kill the sender midway", func() error {
		from, err := c.hook.held()
		sender.set(from)
		return err
	}, func() {
		c.replicas[sender.get()].kill()
		killed.set(time.Now())
		tl.note("killed %s", sender.get())
	})
	tl.between(0, 35*time.Second, "another one takes over", func() error {
		found := c.hook.about(lamp, "firing")
		if len(found) < 2 {
			return fmt.Errorf("%d notifications", len(found))
		}
		took := found[1].at.Sub(killed.get())
		tl.figure("from the death of the sender to the notification of "+found[1].from, took)
		if found[1].from == found[0].from || took > takeoverMost {
			t.Errorf("%s sends again after %s", found[1].from, took)
		}
		return nil
	})
	tl.always(0, 50*time.Second, "at most one repeat", c.hook.atMost(2, lamp, "firing"))
	tl.at(30*time.Second, "start it again, and light another lamp", func() {
		c.replicas[sender.get()].start()
		c.light("later")
	})
	tl.between(30*time.Second, 50*time.Second, "the other is notified once", all(
		c.hook.exactly(1, later, "firing"), c.whole))
	tl.always(0, 50*time.Second, "the other is not repeated", c.hook.atMost(1, later, "firing"))
	tl.always(0, 50*time.Second, "nothing is resolved", c.hook.atMost(0, lamp, "resolved"))
	tl.run()
	if err := c.hook.oneKey(lamp, "firing")(); err != nil {
		t.Error(err)
	}
}

// TestSenderDiesBefore kills the replica whose turn it would be, between the alert and the notification: exactly one
// comes, of another one, hardly later than it would have come.
func TestSenderDiesBefore(t *testing.T) {
	t.Parallel()
	const wait = 5 * time.Second
	c := newCluster(t, clusterOptions{zones: true, groupWait: wait})
	c.up()
	first, lamp := c.light("first"), group{"Lamp", "1"}
	eventually(t, 30*time.Second, "a first notification", c.hook.exactly(1, first, "firing"))
	// Turns are stable while the mesh is.
	turn := c.hook.about(first, "firing")[0].from
	left := slices.DeleteFunc(slices.Clone(c.options.names), func(name string) bool { return name == turn })
	var active, killed shared[time.Time]

	tl := c.timeline()
	tl.at(0, "light the lamp", func() { c.light("1") })
	tl.when(0, 10*time.Second, "kill "+turn+", whose turn it is", c.alertIs("active", lamp, c.options.names...), func() {
		active.set(time.Now())
		c.replicas[turn].kill()
		killed.set(time.Now())
	})
	tl.between(0, 30*time.Second, "one notification", func() error {
		if err := c.hook.exactly(1, lamp, "firing")(); err != nil {
			return err
		}
		d := c.hook.about(lamp, "firing")[0]
		tl.figure("from the death of "+turn+" to the notification of "+d.from, d.at.Sub(killed.get()))
		tl.figure("later than it was due", d.at.Sub(active.get())-wait)
		if d.from == turn || d.at.Sub(active.get()) > wait+takeoverMost {
			t.Errorf("%s sends %s after the alert, with a group_wait of %s", d.from, d.at.Sub(active.get()), wait)
		}
		return nil
	})
	tl.between(0, 20*time.Second, "the others know", func() error { return c.sees(left, left...)() })
	tl.always(0, 35*time.Second, "no repeat", c.hook.noneTwice("firing"))
	tl.run()
}

// TestSenderFreezes stops the replica whose turn it is without ending it, and lets it go on when the others have
// notified: it may not know in time, but says nothing for long that was said.
func TestSenderFreezes(t *testing.T) {
	t.Parallel()
	const wait = 5 * time.Second
	c := newCluster(t, clusterOptions{zones: true, groupWait: wait})
	c.up()
	first, lamp, later := c.light("first"), group{"Lamp", "1"}, group{"Lamp", "later"}
	eventually(t, 30*time.Second, "a first notification", c.hook.exactly(1, first, "firing"))
	turn := c.hook.about(first, "firing")[0].from
	left := slices.DeleteFunc(slices.Clone(c.options.names), func(name string) bool { return name == turn })
	var frozen shared[time.Time]

	tl := c.timeline()
	tl.at(0, "light the lamp", func() { c.light("1") })
	tl.when(0, 10*time.Second, "freeze "+turn, c.alertIs("active", lamp, c.options.names...), func() {
		c.replicas[turn].freeze()
		frozen.set(time.Now())
	})
	tl.between(0, 25*time.Second, "another one notifies", func() error {
		if err := c.hook.fromOthers(turn, lamp, "firing")(); err != nil {
			return err
		}
		d := c.hook.about(lamp, "firing")[0]
		tl.figure("from the freeze of "+turn+" to the notification of "+d.from, d.at.Sub(frozen.get()))
		tl.figure("later than it was due", d.at.Sub(frozen.get())-wait)
		if d.at.Sub(frozen.get()) > wait+takeoverMost {
			t.Errorf("it comes %s after the freeze, with a group_wait of %s", d.at.Sub(frozen.get()), wait)
		}
		return nil
	})
	tl.between(0, 25*time.Second, "the others know", func() error { return c.sees(left, left...)() })
	tl.always(0, 25*time.Second, "one while it is frozen", c.hook.atMost(1, lamp, "firing"))
	tl.at(25*time.Second, "thaw it", func() { c.replicas[turn].thaw() })
	tl.between(25*time.Second, 40*time.Second, "whole again", c.whole)
	tl.always(25*time.Second, 55*time.Second, "at most one repeat, of the one that was frozen",
		c.hook.atMost(2, lamp, "firing"))
	tl.always(0, 55*time.Second, "the first is not repeated", c.hook.atMost(1, first, "firing"))
	tl.at(40*time.Second, "light another lamp", func() { c.light("later") })
	tl.between(40*time.Second, 55*time.Second, "it is notified", c.hook.atLeast(1, later, "firing"))
	tl.always(40*time.Second, 55*time.Second, "it is not repeated", c.hook.atMost(1, later, "firing"))
	tl.run()
	t.Logf("notifications of %s: %s", lamp, senders(c.hook.about(lamp, "firing")))
	if err := c.hook.oneKey(lamp, "firing")(); err != nil {
		t.Error(err)
	}
}

// TestZoneCutOff cuts one zone off for a minute, and heals.
func TestZoneCutOff(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{zones: true})
	c.up()
	before := c.light("before")
	eventually(t, 20*time.Second, "a first notification", c.hook.exactly(1, before, "firing"))
	lamp, after := group{"Lamp", "1"}, group{"Lamp", "after"}
	atA, atB := group{"Lamp", "silent-a"}, group{"Lamp", "silent-b"}
	var ids shared[[]string]
	const cut, healed, end = 1 * time.Second, 61 * time.Second, 90 * time.Second

	tl := c.timeline()
	tl.at(cut, "cut zone b off", func() { c.net.cutOff("b", false) })
	tl.between(cut, 15*time.Second, "a and c know", c.sees([]string{"a", "c"}, "a", "c"))
	tl.between(cut, 15*time.Second, "b knows", c.sees([]string{"b"}, "b"))
	tl.at(15*time.Second, "light a lamp", func() { c.light("1") })
	tl.between(15*time.Second, 30*time.Second, "each side notifies", all(
		c.hook.exactly(2, lamp, "firing"), c.hook.fromOthers("b", lamp, "firing")))
	tl.at(30*time.Second, "make a silence on either side", func() {
		ids.set([]string{c.a().mustSilence(atA), c.b().mustSilence(atB)})
	})
	tl.between(30*time.Second, 40*time.Second, "c has that of a", func() error { return c.c().hasFirst(&ids) })
	tl.always(32*time.Second, healed-time.Second, "b has not", func() error {
		if c.b().hasFirst(&ids) == nil {
			return errors.New("it has: zone b is not cut off")
		}
		return nil
	})
	tl.at(healed, "heal", c.net.healAll)
	tl.between(healed, healed+15*time.Second, "whole again", c.whole)
	tl.between(healed, healed+15*time.Second, "all have both silences", func() error {
		return c.haveSilences(ids.get()...)
	})
	tl.at(healed+15*time.Second, "light the silenced lamps, and another; put the first out", func() {
		c.light(atA.n)
		c.light(atB.n)
		c.light(after.n)
		c.unlight(lamp.n)
	})
	tl.between(healed+15*time.Second, end, "the other is notified, and the end of the first", all(
		c.hook.exactly(1, after, "firing"), c.hook.exactly(1, lamp, "resolved")))
	for what, check := range map[string]func() error{
		"each side notifies once":       c.hook.atMost(2, lamp, "firing"),
		"the lamp from before is known": c.hook.exactly(1, before, "firing"),
		"nothing is resolved falsely":   c.hook.atMost(0, before, "resolved"),
		"the end is notified once":      c.hook.atMost(1, lamp, "resolved"),
		"a's silence holds":             c.hook.atMost(0, atA, "firing"),
		"b's silence holds":             c.hook.atMost(0, atB, "firing"),
		"the last one is notified once": c.hook.atMost(1, after, "firing"),
		"the order is right":            c.hook.inOrder,
	} {
		tl.always(0, end, what, check)
	}
	tl.run()
	if err := c.hook.oneKey(lamp, "firing")(); err != nil {
		t.Error(err)
	}
	duplicatesCounted(t, c)
}

// hasFirst objects also while there is none.
func (r *replica) hasFirst(ids *shared[[]string]) error {
	if len(ids.get()) == 0 {
		return errors.New("no silence is made")
	}
	return hasSilence(r.amURL, ids.get()[0])
}

// duplicatesCounted holds that a partition's repeats can be seen in a metric.
func duplicatesCounted(t *testing.T, c *meshCluster) {
	t.Helper()
	sum := 0.0
	for _, name := range c.options.names {
		n, err := c.replicas[name].total("duplicate")
		if err != nil {
			t.Error(err)
		}
		sum += n
	}
	if sum < 1 {
		t.Errorf("after a partition, %v duplicates are counted", sum)
	}
}

// TestEachZoneAlone cuts every zone off from every other: each goes on alone, and afterwards they are one again.
func TestEachZoneAlone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{zones: true})
	c.up()
	lamp, after := group{"Lamp", "1"}, group{"Lamp", "after"}
	tl := c.timeline()
	tl.at(1*time.Second, "cut all zones off", func() {
		for _, name := range c.options.names {
			c.net.cutOff(name, false)
		}
	})
	for _, name := range c.options.names {
		tl.between(1*time.Second, 20*time.Second, name+" is alone", c.sees([]string{name}, name))
	}
	tl.at(20*time.Second, "light a lamp", func() { c.light("1") })
	tl.between(20*time.Second, 32*time.Second, "each one notifies", func() error {
		who := map[string]int{}
		for _, d := range c.hook.about(lamp, "firing") {
			who[d.from]++
		}
		if len(who) != 3 {
			return fmt.Errorf("notifications by sender: %v", who)
		}
		return nil
	})
	tl.always(0, 60*time.Second, "each one once", c.hook.atMost(3, lamp, "firing"))
	tl.at(32*time.Second, "heal", c.net.healAll)
	tl.between(32*time.Second, 47*time.Second, "whole again", c.whole)
	tl.at(47*time.Second, "light another lamp, put the first out", func() {
		c.light(after.n)
		c.unlight("1")
	})
	tl.between(47*time.Second, 60*time.Second, "one notification of each", all(
		c.hook.exactly(1, after, "firing"), c.hook.exactly(1, lamp, "resolved")))
	tl.always(47*time.Second, 62*time.Second, "no repeat of either", all(
		c.hook.atMost(1, after, "firing"), c.hook.atMost(1, lamp, "resolved"), c.hook.inOrder))
	tl.run()
	if err := c.hook.oneKey(lamp, "firing")(); err != nil {
		t.Error(err)
	}
	duplicatesCounted(t, c)
}

// TestCutOneWay drops all that a sends to b: b hears of it through c, and the mesh stays whole.
func TestCutOneWay(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{zones: true})
	c.up()
	lamp, after := group{"Lamp", "1"}, group{"Lamp", "after"}
	tl := c.timeline()
	tl.at(1*time.Second, "cut the way from a to b", func() { c.net.cutOneWay("a", "b") })
	tl.at(8*time.Second, "light a lamp", func() { c.light("1") })
	tl.between(8*time.Second, 22*time.Second, "a notification", c.hook.atLeast(1, lamp, "firing"))
	tl.between(1*time.Second, 22*time.Second, "c sees both", c.sees([]string{"c"}, "a", "b", "c"))
	tl.always(0, 40*time.Second, "at most one repeat", c.hook.atMost(2, lamp, "firing"))
	tl.at(25*time.Second, "heal", c.net.healAll)
	tl.between(25*time.Second, 35*time.Second, "whole", c.whole)
	tl.at(35*time.Second, "light another lamp", func() { c.light("after") })
	tl.between(35*time.Second, 48*time.Second, "a notification of it", c.hook.atLeast(1, after, "firing"))
	tl.always(35*time.Second, 50*time.Second, "no repeat of it", c.hook.atMost(1, after, "firing"))
	tl.run()
	t.Logf("notifications while one way was cut: %s", senders(c.hook.about(lamp, "firing")))
}

// TestSlowLossyNetwork has what lies between distant zones: delay, jitter and loss. Still one mesh, one notification.
func TestSlowLossyNetwork(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{zones: true})
	for _, from := range c.options.names {
		for _, to := range c.options.names {
			c.net.worsen(from, to, 40*time.Millisecond, 20*time.Millisecond, 0.05)
		}
	}
	c.up()
	tl := c.timeline()
	groups := []group{{"Lamp", "0"}, {"Lamp", "1"}, {"Lamp", "2"}, {"Lamp", "3"}}
	for i, g := range groups {
		tl.at(time.Duration(i)*time.Second, "light lamp "+g.n, func() { c.light(g.n) })
	}
	tl.between(0, 25*time.Second, "one notification each", c.hook.once(groups, "firing"))
	tl.always(0, 30*time.Second, "no repeat", c.hook.noneTwice("firing"))
	tl.always(0, 30*time.Second, "one mesh", c.whole)
	tl.run()
}
