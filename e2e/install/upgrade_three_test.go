package install

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// probeInterval is how often the probe is scraped.
	probeInterval = 2 * time.Second
	// upgradeMost is how long three machines may take until all run the new version. Each waits for its turn.
	upgradeMost = 3 * time.Minute
)

// upgrade upgrades all three at the same moment, as unattended upgrades would.
func (f *fleet) upgrade(s *site) func(*testing.T) {
	return func(t *testing.T) {
		v := f.w.versions()
		newer := v.current + "+newer"
		s.repo.add(v.pack(newer, nil))
		var old []string
		for _, m := range f.machines {
			old = append(old, m.unit("tocsin", "MainPID"))
		}
		watch := f.watch()
		begin := time.Now()

		var all sync.WaitGroup
		for _, m := range f.machines {
			all.Go(func() {
				if out, err := m.try("sh", "-c", "apt-get update -qq && apt-get upgrade -y -qq"); err != nil {
					t.Errorf("%s: upgrade: %v: %s", m.name, err, out)
				}
			})
		}
		all.Wait()
		eventually(t, upgradeMost, "all three run the new version", func() error {
			for i, m := range f.machines {
				if v := m.run("dpkg-query", "--show", "--showformat=${Version}", "tocsin"); v != newer {
					t.Fatalf("%s has version %s", m.name, v)
				}
				if m.unit("tocsin", "MainPID") == old[i] || m.unit("tocsin", "ActiveState") != "active" {
					return fmt.Errorf("%s does not run it yet", m.name)
				}
			}
			return f.whole()
		})
		t.Logf("from the upgrade to three replicas that run the new version: %s", time.Since(begin).Round(time.Second/10))
		downs, most := watch()
		if most > 1 {
			t.Errorf("%d replicas were down at once", most)
		}
		if downs == 0 {
			t.Error("nobody was seen down: the watch does not watch")
		}
		end := time.Now()
		eventually(t, time.Minute, "nobody lacks a sample", func() error {
			for _, m := range f.machines {
				if err := f.hole(m.node, begin, end); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// watch asks all machines again and again whether they work, until it is called off; then it says how often one was down, and how
// many were at once. Who is slow is not down.
func (f *fleet) watch() func() (downs, most int) {
	stop, done := make(chan struct{}), make(chan struct{})
	var downs, most int
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
			down := 0
			for _, m := range f.machines {
				if _, err := f.w.get(m.url(9090, "/-/ready")); err != nil && (strings.Contains(err.Error(), "refused") || strings.Contains(err.Error(), "503")) {
					down++
				}
			}
			downs, most = downs+down, max(most, down)
		}
	}()
	return func() (int, int) {
		close(stop)
		<-done
		return downs, most
	}
}

// hole is an error if a machine's own data of the probe lack more than a sample between two times.
func (f *fleet) hole(n *node, from, to time.Time) error {
	q := url.Values{"query": {fmt.Sprintf("probe_up[%dms]", to.Sub(from).Milliseconds())}, "time": {fmt.Sprint(float64(to.UnixMilli()) / 1000)}, "local": {"true"}}
	body, err := f.w.get(n.url(9090, "/api/v1/query?"+q.Encode()))
	if err != nil {
		return err
	}
	var v struct {
		Data struct {
			Result []struct{ Values [][2]any }
		}
	}
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		return err
	}
	if len(v.Data.Result) != 1 {
		return fmt.Errorf("%s has %d series of the probe", n.name, len(v.Data.Result))
	}
	last := from
	for _, sample := range append(v.Data.Result[0].Values, [2]any{float64(to.UnixMilli()) / 1000}) {
		at := time.UnixMilli(int64(sample[0].(float64) * 1000))
		// One that is late counts as there.
		if at.Sub(last) > 3*probeInterval {
			return fmt.Errorf("%s lacks what is between %s and %s", n.name, last.Format(time.StampMilli), at.Format(time.StampMilli))
		}
		last = at
	}
	return nil
}
