package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestBucketHealsAWipedCluster takes from all replicas all that they have. What is in the bucket, each has itself again afterwards, as
// whoever uploaded it had it, and says where it is from.
func TestBucketHealsAWipedCluster(t *testing.T) {
	t.Parallel()
	c := newBucketCluster(t, []string{"a", "b", "c"}, 0)
	const windows = 2
	first := nextWindow(time.Now())
	last := first.Add(windows * bucketWindow)
	eventually(t, bucketMost+windows*bucketWindow, "the windows are in the bucket", c.once(first, last))
	const everything = `{__name__!=""}`
	want := map[time.Time]healData{}
	blocks, err := c.blocks()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		begin, whole, ok := windowOf(b.ID)
		if !ok || !whole || begin.Before(first) || !begin.Before(last) {
			continue
		}
		by := b.Meta.Thanos.Labels["replica"]
		d, err := c.replicas[by].answer(everything, begin, begin.Add(bucketWindow), true)
		if err != nil {
			t.Fatal(err)
		}
		if d.samples() < 100 {
			t.Errorf("%s has %d samples of the window from %s", by, d.samples(), begin.Format("15:04:05"))
		}
		want[begin.Local()] = d
	}
	if len(want) != windows {
		t.Fatalf("%d windows of %d are in the bucket as they were uploaded", len(want), windows)
	}

	for _, name := range c.options.names {
		c.replicas[name].kill()
	}
	for _, name := range c.options.names {
		c.replicas[name].wipe()
	}
	c.up()
	eventually(t, healMost, "all are complete again", c.complete())
	said := 0
	for _, name := range c.options.names {
		r := c.replicas[name]
		v, err := r.gaps()
		if err != nil {
			t.Fatal(err)
		}
		// One that was a moment earlier may have given to the others.
		var sources []string
		for _, g := range v.Gaps {
			for _, f := range g.Fills {
				if f.Samples > 0 && f.Replica != "" && !slices.Contains(sources, f.Replica) {
					sources = append(sources, f.Replica)
				}
			}
		}
		exact := slices.Equal(sources, []string{"bucket"})
		if exact {
			said++
		}
		if len(sources) == 0 {
			t.Errorf("%s does not say where its data are from: %v", name, v.Gaps)
		}
		for begin, want := range want {
			got, err := r.answer(everything, begin, begin.Add(bucketWindow), true)
			if err == nil {
				err = asUploaded(name, got, want, begin, exact)
			}
			if err != nil {
				t.Errorf("the window from %s, filled from %q: %v", begin.Format("15:04:05"), sources, err)
			}
		}
		t.Logf("%s: filled from %q", name, sources)
	}
	if said == 0 {
		t.Error("nobody says that its data are from the bucket")
	}
	eventually(t, bucketMost, "each window still is in the bucket once", c.once(first, last))
	if err := c.answers(first, last, c.options.names...)(); err != nil {
		t.Error(err)
	}
}

// asUploaded holds that a replica has of a window what its uploader had. Where another replica gave it, a sample may be lost to the
// guard on either edge.
func asUploaded(name string, got, want healData, begin time.Time, exact bool) error {
	if exact {
		return different(name, got, want)
	}
	inside := func(d healData) healData {
		out := healData{}
		for id, s := range d {
			if s = s.within(begin.Add(time.Second), begin.Add(bucketWindow-time.Second)); len(s) > 0 {
				out[id] = s
			}
		}
		return out
	}
	if lost := want.samples() - got.samples(); lost < 0 || lost > 2*len(want) {
		return fmt.Errorf("%s has %d samples less", name, lost)
	}
	return different(name, inside(got), inside(want))
}
