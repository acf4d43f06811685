package e2e

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestHealCutOff cuts a off from the target, and then from the others. In the first case it lacks what the others have,
// and gets it; in the second it lacks nothing.
func TestHealCutOff(t *testing.T) {
	t.Parallel()
	c := newHealCluster(t)
	began := time.Now()
	var cut, back shared[time.Time]

	tl := c.healTimeline()
	tl.at(0, "cut a off from the meter; a series ends", func() {
		c.net.cut("a", meterZone)
		cut.set(time.Now())
		c.meter.show("leaves", false)
		c.meter.show("comes", false)
	})
	tl.between(2*time.Second, 25*time.Second, "a knows what it lacks", func() error { return c.a().knows("target", cut.get())() })
	// The first seconds are until it knows.
	tl.always(6*time.Second, 22*time.Second, "whoever asks a has current data", func() error { return c.a().flowing(began) })
	tl.between(15*time.Second, 22*time.Second, "of its own, a has none", func() error {
		const expr = `count_over_time(e2e_ticks_total[5s])`
		d, err := c.a().local(expr, time.Now())
		if err == nil && len(d) > 0 {
			err = fmt.Errorf("%s at a: %v", expr, d)
		}
		if spliced, _, serr := c.a().matrix("query", url.Values{"query": {expr}}); err == nil && (serr != nil || len(spliced) != 1) {
			err = fmt.Errorf("%s is %v with the others: %w", expr, spliced, serr)
		}
		return err
	})
	tl.at(22*time.Second, "end it", func() {
		back.set(time.Now())
		c.net.healAll()
	})
	tl.always(0, 34*time.Second, "nobody is told that anything is absent", c.nothingAbsent)
	tl.between(26*time.Second, 26*time.Second+healMost, "a is complete", all(
		func() error { return c.a().knows("target", cut.get())() }, c.complete("a")))
	tl.run()

	from, to := cut.get(), back.get()
	c.likePeers("a", from.Add(atEdges), to.Add(-atEdges), []string{"b", "c"}, true)
	wide, until := from.Add(-8*time.Second), to.Add(10*time.Second)
	eventually(t, 30*time.Second, "the time after the cut is over", func() error { return after(until.Add(atEdges)) })
	eventually(t, healMost, "a still is complete", c.complete("a"))
	c.sane("a", wide, until, false)
	c.seams("a", wide, until, "b", "c")
	c.grows("a", wide, until, 1.3)
	for id, s := range c.a().mustLocal(`up{job="meter"}`, from.Add(atEdges), to.Add(-atEdges)) {
		if ups := len(s); ups < int(to.Sub(from).Seconds())-8 {
			t.Errorf("%s has %d samples while a was cut off for %s: %s", id, ups, to.Sub(from), s.times())
		}
		for at, v := range s {
			if v != "0" {
				t.Errorf("%s is %s at %s, when a was cut off", id, v, time.UnixMilli(at))
			}
		}
	}
	for _, name := range []string{"b", "c"} {
		v, err := c.replicas[name].gaps()
		if err != nil {
			t.Error(err)
		}
		for _, g := range v.Gaps {
			if g.during(from, to) {
				t.Errorf("%s, which was not cut off, has a gap: %s", name, g)
			}
		}
	}
	c.cutFromPeers()
	c.nothingWasAbsent()
}

// cutFromPeers holds that who reaches the targets, but no other replica, lacks nothing.
func (c *meshCluster) cutFromPeers() {
	t := c.t
	t.Helper()
	var cut, back shared[time.Time]
	tl := c.healTimeline()
	tl.at(0, "cut a off from b and c", func() {
		c.net.cut("a", "b")
		c.net.cut("a", "c")
		cut.set(time.Now())
	})
	tl.between(0, 20*time.Second, "a knows that it is alone", c.sees([]string{"a"}, "a"))
	tl.always(time.Second, 15*time.Second, "whoever asks a sees no hole", func() error { return c.a().flowing(cut.get().Add(-20 * time.Second)) })
	tl.at(15*time.Second, "end it", func() {
		back.set(time.Now())
		c.net.healAll()
	})
	tl.between(15*time.Second, 40*time.Second, "whole again", c.whole)
	tl.always(0, 28*time.Second, "nobody is told that anything is absent", c.nothingAbsent)
	tl.always(0, 28*time.Second, "nobody has a gap", func() error {
		for _, name := range c.options.names {
			v, err := c.replicas[name].gaps()
			if err != nil {
				return err
			}
			if n := slices.IndexFunc(v.Gaps, func(g gapView) bool { return g.during(cut.get(), time.Now()) }); n >= 0 && !cut.get().IsZero() {
				return fmt.Errorf("%s has %s", name, v.Gaps[n])
			}
		}
		return nil
	})
	tl.run()
	for _, name := range c.options.names {
		c.sane(name, cut.get(), back.get(), false)
		own := c.replicas[name].ticks(cut.get(), back.get())
		for _, other := range c.options.names {
			if other == name {
				continue
			}
			theirs := c.replicas[other].ticks(cut.get(), back.get())
			same := healSeries{}
			for at, v := range own {
				if theirs[at] == v {
					same[at] = v
				}
			}
			// It can happen that two scrape in the same millisecond now and then, and then both have their own.
			if len(same) > 2 {
				t.Errorf("%s has samples of %s, and lacked nothing: %s", name, other, same.times())
			}
		}
	}
}

// TestHealWiped removes all that a replica has: afterwards it has all that the others have. Then two replicas are away at
// once, and only the third has seen the time between; and then that one is away too.
func TestHealWiped(t *testing.T) {
	t.Parallel()
	c := newHealCluster(t)
	since := c.a().pending()
	began := time.Now()
	var killed, started shared[time.Time]
	tl := c.healTimeline()
	tl.at(0, "kill a, and remove its data", func() {
		c.a().kill()
		killed.set(time.Now())
		c.a().wipe()
		c.meter.show("leaves", false)
	})
	tl.at(10*time.Second, "start a", func() {
		started.set(time.Now())
		c.a().start()
	})
	tl.always(0, 30*time.Second, "nobody is told that anything is absent", c.nothingAbsent)
	tl.always(11*time.Second, 30*time.Second, "whoever asks a sees no hole", c.a().flowingOnceUp(began.Add(-4*time.Second)))
	tl.between(10*time.Second, 10*time.Second+healMost, "a is complete", all(c.a().knowsAt("replica", &killed), c.complete("a")))
	tl.run()
	c.likePeers("a", began.Add(-4*time.Second), started.get().Add(-atEdges), []string{"b", "c"}, false)
	eventually(t, 10*time.Second, "a keeps the alert that waits", c.a().keepsPending(since, 8*time.Second))
	c.sane("a", began.Add(-4*time.Second), time.Now().Add(-atEdges), false)

	c.overlap()
	c.nothingWasAbsent()
	c.lastOneLeaves()
}

// overlap has b away, and a while b is: between, only c is there.
func (c *meshCluster) overlap() {
	t := c.t
	t.Helper()
	var awayA, awayB, backA, backB shared[time.Time]
	stamp := func(s *shared[time.Time], what func()) func() {
		return func() {
			s.set(time.Now())
			what()
		}
	}
	tl := c.healTimeline()
	tl.at(0, "kill b", stamp(&awayB, c.b().kill))
	tl.at(6*time.Second, "kill a", stamp(&awayA, c.a().kill))
	tl.at(16*time.Second, "start b", stamp(&backB, func() { c.b().start() }))
	tl.at(22*time.Second, "start a", stamp(&backA, func() { c.a().start() }))
	tl.always(0, 38*time.Second, "nobody is told that anything is absent", c.nothingAbsent)
	tl.between(22*time.Second, 22*time.Second+healMost, "both are complete", all(
		c.a().knowsAt("replica", &awayA), c.b().knowsAt("replica", &awayB), c.complete()))
	tl.run()
	c.likePeers("b", awayA.get().Add(atEdges), backB.get().Add(-atEdges), []string{"c"}, false)
	c.likePeers("a", awayA.get().Add(atEdges), backB.get().Add(-atEdges), []string{"c"}, false)
	wide, until := awayB.get().Add(-8*time.Second), backA.get().Add(10*time.Second)
	eventually(t, 30*time.Second, "the time after is over", func() error { return after(until.Add(atEdges)) })
	for _, name := range c.options.names {
		c.sane(name, wide, until, false)
		c.grows(name, wide, until, 1.5)
	}
}

// lastOneLeaves has a time that only c has seen, and c goes before the others are back. They wait for it.
func (c *meshCluster) lastOneLeaves() {
	t := c.t
	t.Helper()
	c.a().kill()
	c.b().kill()
	alone := time.Now()
	eventually(t, 30*time.Second, "c is alone for a while", func() error { return after(alone.Add(12 * time.Second)) })
	dark := time.Now()
	c.c().stop()
	c.a().start().ready()
	inside := alone.Add(6 * time.Second)
	eventually(t, 30*time.Second, "a says what it does not know", func() error {
		d, warnings, err := c.a().matrix("query", url.Values{"query": {"count_over_time(e2e_ticks_total[3s])"}, "time": {formatTime(inside)}})
		if err != nil {
			return err
		}
		if len(d) > 0 {
			return fmt.Errorf("it does know: %v", d)
		}
		if !strings.Contains(strings.Join(warnings, " "), "no data") {
			return fmt.Errorf("the warnings are %q", warnings)
		}
		return nil
	})
	c.b().start().ready()
	eventually(t, 30*time.Second, "a and b have met", c.sees([]string{"a", "b"}, "a", "b"))
	// What follows is worth knowing too.
	var given error
	watched := time.Now()
	eventually(t, 30*time.Second, "a and b wait for c for a while", func() error {
		for _, name := range []string{"a", "b"} {
			if given == nil {
				given = c.replicas[name].misses(inside)
			}
		}
		return after(watched.Add(8 * time.Second))
	})
	if given != nil {
		t.Errorf("what only c has is given up before it is back: %v", given)
	}
	c.c().start().ready()
	eventually(t, healMost, "all are complete", func() error {
		if err := errors.Join(c.whole(), c.complete()()); err != nil {
			return err
		}
		// Who gave it up may recall it when c is back.
		for _, name := range []string{"a", "b"} {
			if n, err := c.replicas[name].localValue(fmt.Sprintf("count_over_time(e2e_ticks_total[4s] @ %s)", formatTime(inside))); err != nil || n < 3 {
				return fmt.Errorf("%s has %v samples of what only c has seen: %w", name, n, err)
			}
		}
		return nil
	})
	for _, name := range []string{"a", "b"} {
		c.likePeers(name, alone.Add(atEdges), dark.Add(-atEdges), []string{"c"}, false)
	}
	for _, name := range c.options.names {
		c.sane(name, alone.Add(-5*time.Second), time.Now().Add(-atEdges), true)
	}
}

// misses is a check that a replica says that it lacks everything of a moment, and may still get it.
func (r *replica) misses(moment time.Time) error {
	v, err := r.gaps()
	if err != nil {
		return err
	}
	for _, g := range v.Gaps {
		for _, m := range g.Missing {
			if g.Kind == "replica" && m.From < moment.UnixMilli() && moment.UnixMilli() < m.To && !v.Complete {
				return nil
			}
		}
	}
	return fmt.Errorf("%s does not miss %s any more: complete %t, %v", r.name, moment.Format("15:04:05.000"), v.Complete, v.Gaps)
}
