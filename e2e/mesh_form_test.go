package e2e

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMeshForms starts three fresh replicas at once: they are one mesh within seconds, and show each other's cards.
func TestMeshForms(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{zones: zonesMissing() == nil || os.Getenv("CI") == "true"})
	began := time.Now()
	tl := c.timeline()
	tl.at(0, "start all", func() {
		for _, name := range c.options.names {
			c.replicas[name].start()
		}
	})
	// Ten seconds are promised; a machine that is busy with other tests gets some more.
	tl.between(0, 20*time.Second, "one mesh", func() error {
		err := c.whole()
		if err == nil {
			tl.figure("three fresh replicas are one mesh after", time.Since(began))
		}
		return err
	})
	tl.run()
	for _, r := range c.replicas {
		r.ready()
	}
	eventually(t, 20*time.Second, "nobody waits for others any more", c.settled)
	tl.figure("and settled after", time.Since(began))

	for _, r := range c.replicas {
		v, err := r.view()
		if err != nil {
			t.Fatal(err)
		}
		if v.Name != "e2e" || len(v.Members) != 3 {
			t.Fatalf("%s sees the cluster %q with %d members", r.name, v.Name, len(v.Members))
		}
		for i, m := range v.Members {
			other := c.replicas[m.Name]
			if other == nil || m.Name != c.options.names[i] {
				t.Fatalf("%s sees %q as member %d", r.name, m.Name, i)
			}
			for what, pair := range map[string][2]string{
				"zone":         {m.Zone, "zone-" + other.name},
				"address":      {m.Address, other.host + ":9094"},
				"http_address": {m.HTTPAddress, other.host + ":9090"},
				"grpc_address": {m.GRPCAddress, other.host + ":10901"},
			} {
				if pair[0] != pair[1] {
					t.Errorf("%s sees the %s of %s as %q, not %q", r.name, what, m.Name, pair[0], pair[1])
				}
			}
			if m.Self != (m.Name == r.name) || !m.Alive || m.Version == "" ||
				m.Started.Before(began.Add(-time.Second)) || m.Started.After(time.Now()) {
				t.Errorf("%s sees %+v", r.name, m)
			}
		}
	}
	// Measured once there was time for it.
	eventually(t, 15*time.Second, "contact is measured", func() error {
		for _, r := range c.replicas {
			v, err := r.view()
			if err != nil {
				return err
			}
			for _, m := range v.Members {
				if m.Self {
					continue
				}
				if m.RTTSeconds == nil || *m.RTTSeconds <= 0 || *m.RTTSeconds > 1 {
					return fmt.Errorf("%s sees no round-trip time of %s", r.name, m.Name)
				}
				if m.ClockSkewSeconds == nil || math.Abs(*m.ClockSkewSeconds) > 0.5 {
					return fmt.Errorf("%s sees a clock skew of %s, which is on the same machine", r.name, m.Name)
				}
				if time.Since(m.LastContact) > 5*time.Second {
					return fmt.Errorf("%s says that the last contact with %s was at %s", r.name, m.Name, m.LastContact)
				}
			}
		}
		return nil
	})
	for _, r := range c.replicas {
		if strings.Contains(r.output(), c.key) {
			t.Errorf("%s logs the cluster key", r.name)
		}
	}
}

// TestMeshRestartsAtOnce is a loss of power in all zones, after which the configured peers are of no use: the replicas
// find each other by the addresses that they remember, in any order, and nobody hears again of what was known.
func TestMeshRestartsAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	c.up()
	lamp := c.light("1")
	planned := group{"Lamp", "planned"}
	eventually(t, 20*time.Second, "a notification", c.hook.exactly(1, lamp, "firing"))
	id := c.a().mustSilence(planned)
	eventually(t, 10*time.Second, "the silence is everywhere", func() error { return c.haveSilences(id) })

	tl := c.timeline()
	tl.at(0, "kill all", func() {
		for _, r := range c.replicas {
			r.kill()
		}
		for _, r := range c.replicas {
			r.peers = []string{"nobody.invalid", "dns+tocsin.invalid:9094", c.nobody(), c.nobody() + ":9999"}
			r.configure()
		}
	})
	tl.at(time.Second, "start c, b, a with wrong peers", func() {
		for _, name := range []string{"c", "b", "a"} {
			c.replicas[name].start()
		}
	})
	began := time.Now()
	tl.between(time.Second, 21*time.Second, "one mesh again", func() error {
		err := c.whole()
		if err == nil {
			tl.figure("three replicas with wrong peers are one mesh after", time.Since(began)-time.Second)
		}
		return err
	})
	tl.between(time.Second, 21*time.Second, "the silence is there", func() error { return c.haveSilences(id) })
	tl.at(21*time.Second, "light what is silenced, and another", func() {
		c.light("planned")
		c.light("2")
	})
	tl.between(21*time.Second, 35*time.Second, "the other is notified", c.hook.atLeast(1, group{"Lamp", "2"}, "firing"))
	tl.always(0, 38*time.Second, "no repeat", all(c.hook.noneTwice("firing"), c.hook.exactly(1, lamp, "firing")))
	tl.always(0, 38*time.Second, "nothing is resolved", c.hook.atMost(0, lamp, "resolved"))
	tl.always(0, 38*time.Second, "what is silenced is not notified", c.hook.atMost(0, planned, "firing"))
	tl.run()
}

// TestMeshNamesAreUnique starts a replica whose name another one bears: it says so and ends, and nothing else changes.
func TestMeshNamesAreUnique(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	c.up()
	double := c.add("double")
	double.replica, double.peers = "a", []string{c.a().host, c.b().host}
	double.configure()
	before, err := c.b().view()
	if err != nil {
		t.Fatal(err)
	}

	tl := c.timeline()
	double.start()
	tl.between(0, 20*time.Second, "it ends", func() error {
		ended, code := double.exited()
		if !ended {
			return fmt.Errorf("it goes on")
		}
		if code != 1 {
			t.Errorf("it ends with code %d", code)
		}
		return nil
	})
	tl.always(0, 25*time.Second, "the others are undisturbed", c.whole)
	tl.run()
	contains(t, "the log of the second a", double.output(), "name", c.a().host)
	after, err := c.b().view()
	if err != nil {
		t.Fatal(err)
	}
	addresses := func(v clusterView) (all []string) {
		for _, m := range v.Members {
			all = append(all, m.Name+" "+m.Address+" "+m.Started.String())
		}
		return all
	}
	if !slices.Equal(addresses(before), addresses(after)) {
		t.Errorf("the members were %q and are %q", addresses(before), addresses(after))
	}
}

// TestMeshDrains stops replicas cleanly: each is gone from the mesh at once and ends in a bounded time, also the last.
func TestMeshDrains(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	c.up()
	lamp := c.light("1")
	eventually(t, 20*time.Second, "a notification", c.hook.exactly(1, lamp, "firing"))

	left := slices.Clone(c.options.names)
	for len(left) > 0 {
		name := left[0]
		left = left[1:]
		r, stopped := c.replicas[name], time.Now()
		r.signal(syscall.SIGTERM)
		if code := r.wait(15 * time.Second); code != 0 {
			t.Fatalf("%s ends with code %d:\n%s", name, code, r.tail(20))
		}
		took := time.Since(stopped)
		t.Logf("with %d others, a stop takes %s", len(left), took.Round(time.Millisecond))
		if took > 15*time.Second {
			t.Errorf("a stop takes %s", took)
		}
		if len(left) > 0 {
			// A death takes seconds to notice; a farewell does not.
			eventually(t, time.Second, name+" is shown as gone", c.sees(left, left...))
		}
	}
	if err := all(c.hook.exactly(1, lamp, "firing"), c.hook.exactly(0, lamp, "resolved"))(); err != nil {
		t.Error(err)
	}
}
