package e2e

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestThousandAlerts takes a thousand groups through three replicas: one delivery each, when they fire and when they
// end.
func TestThousandAlerts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	c.up()
	var lamps []group
	for i := range 1000 {
		lamps = append(lamps, group{"Lamp", strconv.Itoa(i)})
	}
	var lit, out shared[time.Time]

	tl := c.timeline()
	tl.at(0, "light all", func() {
		lit.set(time.Now())
		for _, g := range lamps {
			c.light(g.n)
		}
	})
	tl.when(0, 60*time.Second, "all are notified: put all out", c.hook.once(lamps, "firing"), func() {
		tl.figure("1,000 notifications after", time.Since(lit.get()))
		out.set(time.Now())
		for _, g := range lamps {
			c.unlight(g.n)
		}
	})
	tl.between(0, 110*time.Second, "the end of all is notified", func() error {
		if err := c.hook.once(lamps, "resolved")(); err != nil {
			return err
		}
		tl.figure("the end of 1,000 alerts after", time.Since(out.get()))
		return nil
	})
	tl.run()
	during(t, 8*time.Second, "nothing comes twice or in the wrong order", all(
		c.hook.once(lamps, "firing"), c.hook.once(lamps, "resolved"), c.hook.inOrder))
}

// TestPostedFromOutside posts alerts to one replica, as a load balancer does: all have them, and people hear once.
func TestPostedFromOutside(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	c.up()
	posted, added := group{"Posted", "1"}, group{"Added", "2"}
	post := func(r *replica, until time.Duration) func() {
		return func() {
			if err := postAlert(r.amURL, posted, time.Now().Add(until)); err != nil {
				t.Fatal(err)
			}
		}
	}
	tl := c.timeline()
	tl.at(0, "post an alert to b", post(c.b(), time.Hour))
	tl.at(0, "amtool adds one at c", func() {
		amtool(t, c.dir, c.c().amURL, "alert", "add", "alertname="+added.alert, "n="+added.n)
	})
	tl.between(0, 5*time.Second, "all have both", all(
		c.alertIs("active", posted, c.options.names...), c.alertIs("active", added, c.options.names...)))
	tl.between(0, 12*time.Second, "one notification each", all(
		c.hook.exactly(1, posted, "firing"), c.hook.exactly(1, added, "firing")))
	tl.at(6*time.Second, "post it again, to a", post(c.a(), time.Hour))
	tl.always(0, 30*time.Second, "no repeat", all(c.hook.noneTwice("firing"), c.hook.inOrder))
	tl.at(14*time.Second, "post its end, to c", post(c.c(), -time.Second))
	tl.between(14*time.Second, 26*time.Second, "the end is notified", c.hook.exactly(1, posted, "resolved"))
	tl.always(14*time.Second, 30*time.Second, "once", c.hook.atMost(1, posted, "resolved"))
	tl.run()
}

// TestRollingRestart restarts one replica after the other while alerts fire, wait, and are silenced: nobody notices.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	c.up()
	slow, patient, silent := group{"Slow", "1"}, group{"Patient", "1"}, group{"Lamp", "silent"}
	// As long as this waits, it must not begin anew: by the restarts, that can be told.
	c.lamps.set(`e2e_patient{n="1"}`, 1)
	id := c.b().mustSilence(silent)
	eventually(t, 10*time.Second, "the silence is everywhere", func() error { return c.haveSilences(id) })
	c.lamps.set(`e2e_slow{n="1"}`, 1)
	c.light(silent.n)
	eventually(t, 30*time.Second, "a notification", c.hook.exactly(1, slow, "firing"))
	eventually(t, 20*time.Second, "the silenced alert is there", c.alertIs("suppressed", silent, c.options.names...))
	since := map[string]time.Time{}
	for _, name := range c.options.names {
		state, at, err := c.replicas[name].alertState(patient.alert)
		if err != nil || state != "pending" {
			t.Fatalf("%s at %s is %s: %v", patient, name, state, err)
		}
		since[name] = at
	}

	tl := c.timeline()
	tl.at(8*time.Second, "restart one after the other", func() {
		for _, name := range c.options.names {
			tl.note("restart %s", name)
			c.replicas[name].restart()
			eventually(t, 20*time.Second, name+" is back", c.whole)
			eventually(t, 20*time.Second, "the alerts of "+name+" are back", all(
				c.alertIs("active", slow, name), c.alertIs("suppressed", silent, name)))
			tl.note("%s is back", name)
		}
		c.light("after")
	})
	tl.between(0, 100*time.Second, "a new alert is notified", c.hook.exactly(1, group{"Lamp", "after"}, "firing"))
	tl.run()
	during(t, 8*time.Second, "nothing is reset", all(
		c.hook.noneTwice("firing"),
		c.hook.atMost(0, silent, "firing"),
		c.hook.atMost(0, slow, "resolved"),
		c.hook.inOrder))
	for _, name := range c.options.names {
		eventually(t, 20*time.Second, "the for state of "+name+" is restored", func() error {
			state, at, err := c.replicas[name].alertState(patient.alert)
			if err != nil {
				return err
			}
			if d := at.Sub(since[name]).Abs(); state != "pending" || d > 5*time.Second {
				return fmt.Errorf("%s is %s since %s instead of %s", patient, state, at, since[name])
			}
			return nil
		})
	}
	if err := c.haveSilences(id); err != nil {
		t.Error(err)
	}
	if n := strings.Count(c.a().output(), "msg=ready"); n != 1 {
		t.Errorf("a was ready %d times in its second run", n)
	}
}

// TestReceiverIsSlowAndRefuses has the receiver answer slowly, and refuse for a while: the sender goes on trying, and
// the others do not send what is under way.
func TestReceiverIsSlowAndRefuses(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	c.up()
	slow, refused := group{"Lamp", "slow"}, group{"Lamp", "refused"}
	taken := func(g group) (n int) {
		for _, d := range c.hook.about(g, "firing") {
			if d.outcome == "taken" {
				n++
			}
		}
		return n
	}
	tl := c.timeline()
	tl.at(0, "the receiver takes four seconds for an answer", func() {
		c.hook.slowDown(4 * time.Second)
		c.light(slow.n)
	})
	tl.between(0, 15*time.Second, "one notification", c.hook.exactly(1, slow, "firing"))
	tl.always(0, 40*time.Second, "one only", c.hook.atMost(1, slow, "firing"))
	tl.at(15*time.Second, "the receiver refuses", func() {
		c.hook.slowDown(0)
		c.hook.refuse(true)
		c.light(refused.n)
	})
	tl.between(15*time.Second, 24*time.Second, "it is tried", c.hook.atLeast(2, refused, "firing"))
	tl.at(24*time.Second, "the receiver is well", func() { c.hook.refuse(false) })
	tl.between(24*time.Second, 40*time.Second, "it is taken", func() error {
		if n := taken(refused); n != 1 {
			return fmt.Errorf("%d are taken", n)
		}
		return nil
	})
	tl.always(24*time.Second, 40*time.Second, "and not again", func() error {
		if n := taken(refused); n > 1 {
			return fmt.Errorf("%d are taken: %s", n, senders(c.hook.about(refused, "firing")))
		}
		return nil
	})
	tl.run()
	keys := map[string]bool{}
	for _, d := range c.hook.about(refused, "firing") {
		keys[d.key] = true
	}
	if len(keys) != 1 || keys[""] {
		t.Errorf("tries of one notification have the idempotency keys %v", keys)
	}
}

// TestFlapping lights a lamp and puts it out again and again: what people hear alternates, whoever says it.
func TestFlapping(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	c.up()
	const rounds = 4
	lamp := group{"Lamp", "1"}
	tl := c.timeline()
	for i := range rounds {
		at := time.Duration(i) * 10 * time.Second
		tl.at(at, "light it", func() { c.light(lamp.n) })
		tl.between(at, at+5*time.Second, "it fires", c.hook.exactly(i+1, lamp, "firing"))
		tl.at(at+5*time.Second, "put it out", func() { c.unlight(lamp.n) })
		tl.between(at+5*time.Second, at+10*time.Second, "it ends", c.hook.exactly(i+1, lamp, "resolved"))
	}
	tl.always(0, rounds*10*time.Second+5*time.Second, "no more than that", all(
		c.hook.atMost(rounds, lamp, "firing"), c.hook.atMost(rounds, lamp, "resolved")))
	tl.run()
	var order []string
	c.hook.mu.Lock()
	for _, d := range c.hook.got {
		order = append(order, d.body.Status)
	}
	c.hook.mu.Unlock()
	for i, pair := range slices.Collect(slices.Chunk(order, 2)) {
		if !slices.Equal(pair, []string{"firing", "resolved"}) {
			t.Errorf("round %d is heard as %q", i, pair)
		}
	}
}

// TestReceiverOutOfReachOfOne holds that a replica that cannot reach the receiver leaves the notification to one that can,
// whichever is the first in turn.
func TestReceiverOutOfReachOfOne(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{zones: true})
	c.up()
	c.hook.refuseFrom("a")
	var groups []group
	tl := c.timeline()
	tl.at(0, "light eight lamps that a cannot tell of", func() {
		for i := range 8 {
			groups = append(groups, c.light(fmt.Sprint(i)))
		}
	})
	tl.between(0, 35*time.Second, "all are told", func() error {
		for i := range 8 {
			if g := (group{"Lamp", fmt.Sprint(i)}); !c.hook.taken(g, "firing") {
				return fmt.Errorf("%s is not", g)
			}
		}
		return nil
	})
	tl.run()
	tried := 0
	for _, g := range groups {
		for _, d := range c.hook.about(g, "firing") {
			if d.from == "a" {
				tried++
			}
		}
	}
	if tried == 0 {
		t.Error("a was never the first in turn, so that this has shown nothing")
	}
}

// TestQuickRestart holds that a replica that is killed and back before anybody misses it is told what it has forgotten.
func TestQuickRestart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	c.up()
	posted := group{"Posted", "1"}
	if err := postAlert(c.b().amURL, posted, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	everywhere := c.alertIs("active", posted, c.options.names...)
	eventually(t, 10*time.Second, "all have the alert", everywhere)
	for _, name := range c.options.names {
		c.replicas[name].kill()
		c.replicas[name].start().ready()
		eventually(t, 15*time.Second, name+" has it again", everywhere)
	}
	eventually(t, 20*time.Second, "one notification", c.hook.exactly(1, posted, "firing"))
	during(t, 5*time.Second, "no repeat", all(c.hook.noneTwice("firing"), c.hook.atMost(0, posted, "resolved")))
}
