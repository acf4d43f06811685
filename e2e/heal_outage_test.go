package e2e

import (
	"net/http"
	"testing"
	"time"
)

// TestHealKilledAndFrozen kills one replica, and afterwards freezes another: both become whole, to the sample, and
// nobody who asks them sees a hole meanwhile.
func TestHealKilledAndFrozen(t *testing.T) {
	t.Parallel()
	c := newHealCluster(t)
	began := time.Now()
	since := c.b().pending()
	var killed, started shared[time.Time]

	tl := c.healTimeline()
	tl.at(0, "kill b; a series ends", func() {
		c.b().kill()
		killed.set(time.Now())
		c.meter.show("leaves", false)
	})
	tl.at(4*time.Second, "a series appears", func() { c.meter.show("visits", true) })
	tl.at(8*time.Second, "another one appears, to stay", func() { c.meter.show("comes", true) })
	tl.at(11*time.Second, "the first one ends", func() { c.meter.show("visits", false) })
	tl.at(20*time.Second, "start b", func() {
		started.set(time.Now())
		c.b().start()
	})
	tl.always(0, 40*time.Second, "nobody is told that anything is absent", c.nothingAbsent)
	tl.always(21*time.Second, 40*time.Second, "whoever asks b sees no hole", c.b().flowingOnceUp(began))
	tl.between(20*time.Second, 20*time.Second+healMost, "b is complete", all(c.b().knowsAt("replica", &killed), c.complete("b")))
	tl.run()
	c.mended("b", killed.get(), started.get(), "a", "c")
	eventually(t, 10*time.Second, "b keeps the alert that waits", c.b().keepsPending(since, 8*time.Second))

	c.freezes(began)
	c.nothingWasAbsent()
	for _, value := range []string{"maybe", ""} {
		status, _, err := fetch(http.MethodGet, c.b().url+"/api/v1/query?query=up&local="+value, "", "")
		if err != nil || status != http.StatusBadRequest {
			t.Errorf("local=%s is answered with %d: %v", value, status, err)
		}
	}
}

// knowsAt is knows for an outage that has yet to come.
func (r *replica) knowsAt(kind string, from *shared[time.Time]) func() error {
	return func() error { return r.knows(kind, from.get())() }
}

// mended holds all that has to be true of a replica's data after an outage that is healed.
func (c *meshCluster) mended(name string, from, to time.Time, others ...string) {
	c.t.Helper()
	c.likePeers(name, from.Add(atEdges), to.Add(-atEdges), others, false)
	// Both seams and what is around them.
	wide, until := from.Add(-beforeOutage), to.Add(10*time.Second)
	eventually(c.t, 30*time.Second, "the time after the outage is over", func() error { return after(until.Add(atEdges)) })
	eventually(c.t, healMost, "it still is complete", c.complete(name))
	c.sane(name, wide, until, false)
	c.seams(name, wide, until, others...)
	c.grows(name, wide, until, 1.3)
}

// freezes freezes c and lets it go on.
func (c *meshCluster) freezes(began time.Time) {
	c.t.Helper()
	var frozen, thawed shared[time.Time]
	tl := c.healTimeline()
	tl.at(0, "freeze c; a series appears", func() {
		c.c().freeze()
		frozen.set(time.Now())
		c.meter.show("visits", true)
	})
	tl.at(5*time.Second, "it ends, and so does another one", func() {
		c.meter.show("visits", false)
		c.meter.show("comes", false)
	})
	tl.at(15*time.Second, "thaw c", func() {
		thawed.set(time.Now())
		c.c().thaw()
	})
	tl.always(0, 30*time.Second, "nobody is told that anything is absent", c.nothingAbsent)
	tl.always(19*time.Second, 30*time.Second, "whoever asks c sees no hole", c.c().flowingOnceUp(began))
	tl.between(15*time.Second, 15*time.Second+healMost, "c is complete", all(c.c().knowsAt("replica", &frozen), c.complete("c")))
	tl.run()
	c.mended("c", frozen.get(), thawed.get(), "a", "b")
}
