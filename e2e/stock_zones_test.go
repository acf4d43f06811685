package e2e

import (
	"errors"
	"net/http"
	"testing"
	"time"
)

// TestStockInZones plays the partition with three stock Alertmanagers: what the timelines ask of replicas is what
// people are used to, and the zones, the receiver and the timelines themselves are right.
func TestStockInZones(t *testing.T) {
	t.Parallel()
	dir := workDir(t)
	n := newZoneNet(t, "a", "b", "c")
	hook := newReceiver(t, n.core, n.zoneOf)
	config := `
route: {receiver: people, group_by: [alertname, n], group_wait: 1s, group_interval: 2s, repeat_interval: 1h}
receivers: [{name: people, webhook_configs: [{url: "` + hook.url + `"}]}]
`
	urls := map[string]string{}
	for _, name := range []string{"a", "b", "c"} {
		var flags []string
		for _, other := range n.zones {
			if other.name != name {
				flags = append(flags, "--cluster.peer="+other.address+":9094")
			}
		}
		flags = append(flags, "--cluster.peer-timeout=2s")
		z := n.zones[name]
		_, urls[name] = stockAlertmanager(t, z, z.address, dir, name, config, flags...)
	}
	see := func(want map[string]int) func() error {
		return func() error {
			var errs []error
			for name, peers := range want {
				errs = append(errs, wantPeers(urls[name], peers)())
			}
			return errors.Join(errs...)
		}
	}
	post := func(g group) func() {
		return func() {
			for _, u := range urls {
				if err := postAlert(u, g, time.Now().Add(time.Hour)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	whole, first, second := map[string]int{"a": 3, "b": 3, "c": 3}, group{"Lamp", "1"}, group{"Lamp", "2"}
	eventually(t, 30*time.Second, "the mesh forms", see(whole))

	tl := newTimeline(t, hook)
	tl.at(0, "an alert at all three", post(first))
	tl.between(1*time.Second, 12*time.Second, "one notification", hook.atLeast(1, first, "firing"))
	tl.always(0, 38*time.Second, "no repeat", hook.atMost(1, first, "firing"))
	tl.at(8*time.Second, "cut zone b off", func() { n.cutOff("b", false) })
	tl.between(8*time.Second, 22*time.Second, "both sides know", see(map[string]int{"a": 2, "b": 1, "c": 2}))
	tl.at(18*time.Second, "an alert on both sides", post(second))
	tl.between(18*time.Second, 30*time.Second, "each side notifies", all(
		hook.exactly(2, second, "firing"), hook.fromOthers("b", second, "firing")))
	tl.at(30*time.Second, "heal", n.healAll)
	tl.between(30*time.Second, 38*time.Second, "whole again", see(whole))
	tl.always(24*time.Second, 38*time.Second, "no third notification", hook.atMost(2, second, "firing"))
	tl.run()
}

// stockAlertmanager is Debian's in a zone, or on a loopback address, at the usual ports; it returns its URL.
func stockAlertmanager(t *testing.T, z *zone, host, dir, name, config string, flags ...string) (*process, string) {
	t.Helper()
	write(t, dir, name+"/alertmanager.yml", config)
	p := startIn(t, z, dir, "alertmanager-"+name, "prometheus-alertmanager", append([]string{
		"--config.file=" + name + "/alertmanager.yml", "--storage.path=" + name + "/data",
		"--web.listen-address=" + host + ":9093", "--cluster.listen-address=" + host + ":9094",
		"--cluster.settle-timeout=5s", "--cluster.reconnect-interval=1s"}, flags...)...)
	u := "http://" + host + ":9093"
	eventually(t, 30*time.Second, "alertmanager "+name+" is ready", func() error {
		p.alive()
		_, err := quickly(http.MethodGet, u+"/-/ready", "", "")
		return err
	})
	return p, u
}
