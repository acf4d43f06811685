package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestStrangersAreRefused points replicas at a mesh that is not theirs: of another cluster, with another key, without
// a key, and a stock Alertmanager. Each is counted and named, none becomes a member, and nothing of it comes in.
func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{
		zones:     zonesMissing() == nil || os.Getenv("CI") == "true",
		strangers: []string{"staging", "otherkey", "keyless", "stock"},
	})
	c.up()
	before := refusals(t, c)
	// Where there are no zones, all connections come from one address.
	seen := func(r *replica) string {
		if r.zone() == nil {
			return "remote=127."
		}
		return "remote=" + r.host + ":"
	}
	targets := []string{c.a().host, c.b().host, c.c().host}
	type stranger struct {
		name, amURL string
		logged      []string // by the refusing side, in one line
	}
	var strangers []stranger
	for _, s := range []struct {
		name   string
		edit   func(*replica)
		logged []string
	}{
		{"staging", func(r *replica) { r.settings.cluster = "staging" }, []string{"staging"}},
		{"otherkey", func(r *replica) { r.keys = []string{newClusterKey(t, c.dir)} }, nil},
		{"keyless", func(r *replica) { r.keys = nil }, nil},
	} {
		r := c.add(s.name)
		r.peers = targets
		s.edit(r)
		r.configure()
		r.start()
		strangers = append(strangers, stranger{s.name, r.amURL, append(s.logged, seen(r))})
	}
	stock := c.add("stock")
	stockAlertmanager(t, stock.zone(), stock.host, c.dir, "stock", "route: {receiver: x}\nreceivers: [{name: x}]\n",
		"--cluster.peer="+c.a().host+":9094", "--cluster.peer="+c.b().host+":9094")
	strangers = append(strangers, stranger{"stock", stock.amURL, []string{seen(stock)}})

	tl := c.timeline()
	for _, s := range strangers {
		var id shared[string]
		tl.when(0, 30*time.Second, "make a silence at "+s.name, func() error {
			made, err := silenceAt(s.amURL, group{"Lamp", s.name}, s.name)
			id.set(made)
			return err
		}, func() { tl.note("it is %s", id.get()) })
		tl.between(0, 30*time.Second, s.name+" is named in a log", func() error {
			for _, n := range c.options.names {
				for line := range strings.Lines(c.replicas[n].output()) {
					if hasAll(line, s.logged) {
						return nil
					}
				}
			}
			return fmt.Errorf("no line with %q", s.logged)
		})
		tl.between(30*time.Second, 31*time.Second, "its silence is not known", func() error {
			if id.get() == "" || hasSilence(c.a().amURL, id.get()) == nil {
				return fmt.Errorf("the silence %q is at a", id.get())
			}
			return nil
		})
		if s.name != "stock" {
			tl.between(30*time.Second, 31*time.Second, s.name+" is alone", c.sees([]string{s.name}, s.name))
		}
	}
	tl.between(0, 30*time.Second, "all are counted", func() error {
		if n := refusals(t, c) - before; n < float64(len(strangers)) {
			return fmt.Errorf("%v refusals are counted, of %d strangers", n, len(strangers))
		}
		return nil
	})
	tl.always(0, 32*time.Second, "the members are as before", c.whole)
	tl.run()
}

// refusals are those that the three replicas have counted.
func refusals(t *testing.T, c *meshCluster) (sum float64) {
	t.Helper()
	for _, n := range c.options.names {
		v, err := c.replicas[n].total("mesh_refused_total")
		if err != nil {
			t.Error(err)
		}
		sum += v
	}
	return sum
}

func hasAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// TestKeyRotation changes the cluster's key in the documented steps while a lamp is lit twice a second.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	c.up()
	oldKey, newKey := c.key, newClusterKey(t, c.dir)
	const every, step, end = 500 * time.Millisecond, 6 * time.Second, 24 * time.Second
	var lamps []group

	tl := c.timeline()
	for i, at := 0, time.Duration(0); at < end; i, at = i+1, at+every {
		g := group{"Lamp", strconv.Itoa(i)}
		lamps = append(lamps, g)
		tl.at(at, "light lamp "+g.n, func() { c.light(g.n) })
	}
	for i, s := range []struct {
		what string
		keys []string
	}{
		{"accept the new key", []string{oldKey, newKey}},
		{"send with the new key", []string{newKey, oldKey}},
		{"accept the new key only", []string{newKey}},
	} {
		tl.at(time.Duration(i+1)*step-every/2, s.what, func() { c.reloadAll(func(r *replica) { r.keys = s.keys }) })
	}
	tl.between(end, end+15*time.Second, "one notification for each lamp", c.hook.once(lamps, "firing"))
	tl.always(0, end+15*time.Second, "none twice", c.hook.noneTwice("firing"))
	tl.always(0, end+15*time.Second, "one mesh", c.whole)
	tl.run()

	// The old key is of no use any more, and the new one is.
	for _, k := range []struct {
		name, key string
		member    bool
	}{{"late", oldKey, false}, {"new", newKey, true}} {
		r := c.add(k.name)
		r.keys, r.peers = []string{k.key}, []string{c.a().host}
		r.configure()
		r.start().ready()
		if k.member {
			want := append([]string{k.name}, c.options.names...)
			eventually(t, 20*time.Second, "a replica with the new key joins", c.sees(want, want...))
			continue
		}
		during(t, 5*time.Second, "a replica with the old key stays outside", c.whole)
		r.kill()
	}
	for _, r := range c.replicas {
		for _, key := range []string{oldKey, newKey} {
			if strings.Contains(r.output(), key) {
				t.Errorf("%s logs a cluster key", r.name)
			}
		}
	}
}
