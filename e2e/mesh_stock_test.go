package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// TestStockAlertmanagerJoins has Debian's Alertmanager in a mesh without a key, as during a migration: silences flow
// both ways, the notification log too, so that it repeats nothing and they repeat nothing of it.
func TestStockAlertmanagerJoins(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{keyless: true})
	c.up()
	lamp := c.light("1")
	eventually(t, 20*time.Second, "a notification", c.hook.exactly(1, lamp, "firing"))
	silence := func(url, n string) string {
		return amtool(t, c.dir, url, "silence", "add", "--author=e2e", "--comment="+n, "--duration=1h",
			"alertname=Lamp", "n="+n)
	}
	early := silence(c.a().amURL, "early")

	host := c.add("stock").host
	config := readFile(t, c.a().dir, "alertmanager.yml")
	stock, stockURL := stockAlertmanager(t, nil, host, c.dir, "stock", config, "--cluster.peer="+c.a().host+":9094",
		"--cluster.peer="+c.b().host+":9094", "--cluster.peer="+c.c().host+":9094", "--cluster.peer-timeout=2s")
	var ids shared[[]string]
	fromStock, fromOurs := group{"Lamp", "from-stock"}, group{"Lamp", "from-ours"}
	posted := group{"Posted", "1"}

	tl := c.timeline()
	tl.between(0, 15*time.Second, "the stock one sees all", wantPeers(stockURL, 4))
	tl.between(0, 15*time.Second, "all see the stock one", func() error {
		for _, name := range c.options.names {
			if err := wantPeers(c.replicas[name].amURL, 4)(); err != nil {
				return err
			}
			v, err := c.replicas[name].view()
			if err != nil {
				return err
			}
			alive := 0
			for _, m := range v.Members {
				if m.Alive {
					alive++
				}
			}
			if alive != 4 {
				return errors.New(name + " does not show it as a member")
			}
		}
		return nil
	})
	tl.between(0, 15*time.Second, "it has the silence from before", func() error { return hasSilence(stockURL, early) })
	tl.at(15*time.Second, "a silence at either", func() {
		for url, n := range map[string]string{stockURL: fromStock.n, c.b().amURL: fromOurs.n} {
			ids.set(append(ids.get(), silence(url, n)))
		}
	})
	tl.between(15*time.Second, 21*time.Second, "all have both", func() error {
		for _, id := range ids.get() {
			if err := hasSilence(stockURL, id); err != nil {
				return err
			}
		}
		if len(ids.get()) != 2 {
			return errors.New("not made yet")
		}
		return c.haveSilences(ids.get()...)
	})
	tl.at(21*time.Second, "light the silenced lamps; an alert comes to all four", func() {
		c.light(fromStock.n)
		c.light(fromOurs.n)
		for _, url := range []string{c.a().amURL, c.b().amURL, c.c().amURL, stockURL} {
			if err := postAlert(url, posted, time.Now().Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		// What was notified long ago is news to the stock one only if it has not the others' log.
		_, labels, err := c.a().alertAt(lamp)
		if err == nil {
			err = postLabels(stockURL, labels, time.Now().Add(time.Hour))
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	tl.between(21*time.Second, 40*time.Second, "the alert is notified", c.hook.atLeast(1, posted, "firing"))
	tl.always(0, 45*time.Second, "once, by one of the four", c.hook.atMost(1, posted, "firing"))
	tl.always(0, 45*time.Second, "what was notified before is not again", c.hook.exactly(1, lamp, "firing"))
	tl.always(0, 45*time.Second, "what is silenced is not", all(
		c.hook.atMost(0, fromStock, "firing"), c.hook.atMost(0, fromOurs, "firing")))
	tl.run()
	if got := amtool(t, c.dir, stockURL, "cluster", "show", "--output=extended"); strings.Count(got, ":9094") < 4 {
		t.Errorf("amtool sees at the stock one:\n%s", got)
	}
	contains(t, "amtool at b", amtool(t, c.dir, c.b().amURL, "cluster", "show", "--output=extended"), host+":9094")
	stock.alive()
}
