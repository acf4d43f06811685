package mesh

import (
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
)

// TestOneNameTwice starts a second replica with the name of one that lives.
func TestOneNameTwice(t *testing.T) {
	t.Parallel()
	a := started(t, named("a"), withKeys(key(1)))
	c := started(t, named("c"), withKeys(key(1)), withPeers(a.address()))
	whole(t, 10*time.Second, "a c", a, c)
	// The card says when, in milliseconds.
	until(t, time.Second, "the clock goes on", func() bool { return time.Since(a.card.Started) > 10*time.Millisecond })
	double := started(t, named("a"), withKeys(key(1)), withPeers(a.address(), c.address()))
	begin := time.Now()
	select {
	case err := <-double.done:
		close(double.done)
		if err == nil {
			t.Fatal("Run ended without an error")
		}
		for _, want := range []string{`"a"`, a.address(), "zone-1", a.card.Started.UTC().Format(time.RFC3339), "replica.name"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error %q does not say %q", err, want)
			}
		}
	case <-time.After(slack * 20 * time.Second):
		t.Fatal("both go on")
	}
	if took := time.Since(begin); took < 5*time.Second {
		t.Errorf("gave up after %s, when the other could still be its former self", took)
	}
	if a.names() != "a c" || c.names() != "a c" {
		t.Errorf("members %q and %q", a.names(), c.names())
	}
	if n := a.value("tocsin_mesh_name_conflicts_total"); n < 1 {
		t.Errorf("tocsin_mesh_name_conflicts_total = %v", n)
	}
}

// TestRestartElsewhere has a replica die and come back at once with another address.
func TestRestartElsewhere(t *testing.T) {
	t.Parallel()
	a := started(t, named("a"))
	b := started(t, named("b"), withPeers(a.address()))
	c := started(t, named("c"), withPeers(a.address()))
	whole(t, 10*time.Second, "a b c", a, b, c)
	b.kill()
	again := started(t, named("b"), withPeers(a.address(), c.address()))
	at := func(x *trial) string { m, _ := x.table.get("b"); return m.Address }
	took := until(t, 20*time.Second, "everybody knows the new address", func() bool {
		return at(a) == again.address() && at(c) == again.address() && a.names() == "a b c" && c.names() == "a b c" && again.names() == "a b c"
	})
	t.Logf("known at its new address after %s", took)
	select {
	case err := <-again.done:
		t.Fatalf("it ended: %v", err)
	case <-time.After(formerSelf - min(took, formerSelf) + time.Second):
	}
}

func TestWhoIsTheYounger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		self := []Member{{Name: "a", Self: true, Address: "10.0.0.2:9094", Card: Card{Cluster: "prod", Started: begin}}}
		for name, c := range map[string]struct {
			other         Card
			lasts, uptime time.Duration
			ends          bool
		}{
			"the other is older":        {Card{Cluster: "prod", Started: begin.Add(-time.Hour)}, 9 * time.Second, 9 * time.Second, true},
			"the other is as old":       {Card{Cluster: "prod", Started: begin}, 9 * time.Second, 9 * time.Second, true},
			"the other is younger":      {Card{Cluster: "prod", Started: begin.Add(time.Second)}, 9 * time.Second, 9 * time.Second, false},
			"it may be our former self": {Card{Cluster: "prod", Started: begin.Add(-time.Hour)}, 7 * time.Second, 9 * time.Second, false},
			"we have worked for long":   {Card{Cluster: "prod", Started: begin.Add(-time.Hour)}, 9 * time.Second, time.Hour, false},
		} {
			x := &conflicts{logger: discard(), metrics: newMetrics(prometheus.NewRegistry())}
			meta, err := encodeCard(c.other)
			if err != nil {
				t.Fatal(err)
			}
			mine := &memberlist.Node{Name: "a", Addr: net.IPv4(10, 0, 0, 2), Port: 9094}
			other := &memberlist.Node{Name: "a", Addr: net.IPv4(10, 0, 0, 1), Port: 9094, Meta: meta}
			for since := time.Duration(0); since <= c.lasts; since += time.Second {
				x.note(mine, other, true, begin.Add(since))
			}
			active, err := x.judge(self, begin.Add(c.lasts), c.uptime)
			if !active || (err != nil) != c.ends {
				t.Errorf("%s: active %v, error %v", name, active, err)
			}
			if active, err := x.judge(self, begin.Add(c.lasts+time.Minute), c.uptime); active || err != nil {
				t.Errorf("%s: a minute after the last sign of it: active %v, error %v", name, active, err)
			}
		}
	})
}
