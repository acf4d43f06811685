package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// isWindow tells whether an object belongs to a block that was uploaded of a window, and not to one that was compacted.
func isWindow(name string) bool {
	id, _, _ := strings.Cut(name, "/")
	_, _, ok := windowOf(id)
	return ok
}

// TestBucketUploaderKilled kills, with kill -9, whoever uploads or compacts, at each step of it. In the end each window is in the
// bucket exactly once, as a replica had it, stock Thanos finds nothing wrong there, and when all local data are gone, Tocsin
// answers out of it as stock Thanos does.
func TestBucketUploaderKilled(t *testing.T) {
	t.Parallel()
	c := newBucketCluster(t, []string{"a", "b", "c"}, 0)
	first := nextWindow(time.Now())
	moments := []moment{
		{"a chunk file of a window", false, func(name string) bool { return isWindow(name) && strings.Contains(name, "/chunks/") }},
		{"the index of a window", false, func(name string) bool { return isWindow(name) && strings.HasSuffix(name, "/index") }},
		{"the meta.json of a window", false, func(name string) bool { return isWindow(name) && strings.HasSuffix(name, "/meta.json") }},
		{"the meta.json of a window, which is there then", true, func(name string) bool { return isWindow(name) && strings.HasSuffix(name, "/meta.json") }},
		{"the index of a compacted block", false, func(name string) bool { return !isWindow(name) && strings.HasSuffix(name, "/index") }},
		{"the mark of a block that was compacted", false, func(name string) bool { return strings.HasSuffix(name, "/deletion-mark.json") }},
	}
	for len(moments) > 0 {
		// One window a moment; a compaction needs four.
		got, n := c.catch(bucketMost+4*bucketWindow, moments)
		got.replica.kill()
		got.release()
		t.Logf("%.1f s: %s is killed when it writes %s: %s", time.Since(first).Seconds(), got.replica.name, moments[n].what, got.object)
		moments = slices.Delete(moments, n, n+1)
		got.replica.start().ready()
		eventually(t, healMost, got.replica.name+" is complete again", c.complete(got.replica.name))
	}
	last := nextWindow(time.Now())
	eventually(t, bucketMost+bucketWindow, "each window is in the bucket once", c.once(first, last))
	c.verify()

	q := stockStore(t, c.dir, c.loopback, c.config)
	const meter = `{job="meter"}`
	for begin := first; begin.Before(last); begin = begin.Add(bucketWindow) {
		stored, err := q.stored(meter, begin, begin.Add(bucketWindow))
		if err != nil {
			t.Fatal(err)
		}
		local := map[string]healData{}
		for _, name := range c.options.names {
			if local[name], err = c.replicas[name].answer(meter, begin, begin.Add(bucketWindow), true); err != nil {
				t.Fatal(err)
			}
		}
		likeOne(t, stored, local, begin)
	}
	stored, err := q.stored("e2e_ticks_total", first, last)
	if err == nil {
		err = c.unbroken("the bucket", stored, first, last)
	}
	if err != nil {
		t.Fatal(err)
	}

	// From here on, the bucket is all that there is.
	for _, name := range c.options.names {
		c.replicas[name].stop()
		c.replicas[name].wipe()
	}
	c.up()
	for _, name := range c.options.names {
		eventually(t, 60*time.Second, name+" answers like stock Thanos out of the bucket", func() error {
			// One that was filled by another replica meanwhile may lack a sample where two windows meet.
			for begin := first; begin.Before(last); begin = begin.Add(bucketWindow) {
				want, err := q.stored(meter, begin, begin.Add(bucketWindow))
				if err != nil {
					return err
				}
				got, err := c.replicas[name].answer(meter, begin, begin.Add(bucketWindow), false)
				if err == nil {
					err = asUploaded(name, got, want, begin, false)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	eventually(t, bucketMost, "each window still is in the bucket once", c.once(first, last))
}

// TestBucketAway takes the bucket away for several windows. Scraping and queries go on, nothing is dropped that is not in the
// bucket, and when it is back, what has piled up is uploaded and only then deleted here. Queries never see the seam.
func TestBucketAway(t *testing.T) {
	t.Parallel()
	const retention = 3 * bucketWindow
	c := newBucketCluster(t, []string{"a", "b", "c"}, retention)
	first := nextWindow(time.Now())
	eventually(t, bucketMost, "a window is in the bucket", c.once(first, first.Add(bucketWindow)))
	loop := newQueryLoop(c.meshCluster, first)

	c.s3.kill()
	away := time.Now()
	eventually(t, time.Minute+5*bucketWindow, "the bucket is away for a while", func() error { return after(away.Add(5 * bucketWindow)) })
	for _, name := range c.options.names {
		// More than retention would leave.
		now := time.Now().Add(-atEdges)
		d, err := c.replicas[name].answer("e2e_ticks_total", away, now, true)
		if err == nil {
			err = c.unbroken(name+" alone", d, away, now)
		}
		if err != nil {
			t.Errorf("while the bucket is away: %v", err)
		}
	}
	c.s3.start()
	back := time.Now()
	last := back.Truncate(bucketWindow)
	eventually(t, bucketMost, "all windows are in the bucket once", c.once(first, last))
	t.Logf("the bucket was away for %s; %s later, it has all", back.Sub(away).Round(time.Second), time.Since(back).Round(time.Second))

	eventually(t, bucketMost, "what is in the bucket is deleted here", func() error {
		for _, name := range c.options.names {
			d, err := c.replicas[name].answer("e2e_ticks_total", first, first.Add(2*bucketWindow), true)
			if err != nil {
				return err
			}
			if n := d.samples(); n > 0 {
				return fmt.Errorf("%s still has %d samples", name, n)
			}
		}
		return nil
	})
	if err := c.answers(first, time.Now().Add(-atEdges), c.options.names...)(); err != nil {
		t.Error(err)
	}
	loop.leave("b")
	c.b().stop()
	c.b().wipe()
	c.b().start().ready()
	eventually(t, 30*time.Second, "b has its history back", c.answers(first, time.Now().Add(-atEdges), "b"))
	eventually(t, healMost, "b is complete", c.complete("b"))
	loop.join("b")
	loop.end()
	if err := c.answers(first, time.Now().Add(-atEdges), c.options.names...)(); err != nil {
		t.Error(err)
	}
	c.verify()
}
