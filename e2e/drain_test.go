package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// drainFor is how long a drain may take. Each replica has to be whole again before the next one goes.
const drainFor = 3 * time.Minute

// drain runs `tocsin drain` for a replica, beside the test.
func (r *replica) drain(flags ...string) *process {
	r.cluster.t.Helper()
	return start(r.cluster.t, r.cluster.dir, "drain-"+r.name, tocsinBinary,
		append([]string{"drain", "--url=" + r.url, "--timeout=" + drainFor.String()}, flags...)...)
}

// isReady says why a replica is not.
func (r *replica) isReady() error {
	_, err := quickly(http.MethodGet, r.url+"/-/ready", "", "")
	return err
}

// says is a check that a process has printed something.
func (p *process) says(text string) func() error {
	return func() error {
		if out := p.output(); !strings.Contains(out, text) {
			return fmt.Errorf("not in: %s", out)
		}
		return nil
	}
}

// TestDrainAllAtOnce upgrades three replicas in the same moment, as their packages do. At least two are ready all the time, and no scrape
// is missing in the end.
func TestDrainAllAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	c.up()
	eventually(t, healMost, "all are complete at first", c.complete())
	began := time.Now()

	type upgrade struct {
		*replica
		drain *process
		next  func() (over bool)
	}
	var upgrades []*upgrade
	for _, name := range c.options.names {
		u := &upgrade{replica: c.replicas[name]}
		restarted := func() bool { return u.isReady() == nil }
		stopped := func() bool {
			ended, code := u.exited()
			if ended {
				if code != 0 {
					t.Fatalf("%s has stopped with code %d", u.name, code)
				}
				u.start()
				u.next = restarted
			}
			return false
		}
		u.next = func() bool {
			ended, code := u.drain.exited()
			if ended {
				if code != 0 {
					t.Fatalf("the drain of %s has ended with code %d:\n%s", u.name, code, u.drain.output())
				}
				u.signal(syscall.SIGTERM)
				u.next = stopped
			}
			return false
		}
		upgrades = append(upgrades, u)
	}
	for _, u := range upgrades {
		u.drain = u.replica.drain()
	}
	looked := 0
	eventually(t, drainFor, "all are upgraded", func() error {
		var away []string
		for _, name := range c.options.names {
			if err := c.replicas[name].isReady(); err != nil {
				away = append(away, fmt.Sprintf("%s (%v)", name, err))
			}
		}
		if looked++; len(away) > 1 {
			t.Fatalf("two are not ready at once: %s", strings.Join(away, ", "))
		}
		over := 0
		for _, u := range upgrades {
			if u.next() {
				over++
			}
		}
		if over < len(upgrades) {
			return fmt.Errorf("%d of %d are; not ready: %s", over, len(upgrades), strings.Join(away, ", "))
		}
		return nil
	})
	waited := 0
	for _, u := range upgrades {
		waited += strings.Count(u.drain.output(), "waiting: ")
		if err := u.drain.says("this replica may be stopped now: all 2 other replicas are ready and whole")(); err != nil {
			t.Error(err)
		}
		if r := u.replica; r.tocsin == nil || strings.Contains(r.output(), "panic") {
			t.Errorf("%s has panicked", u.name)
		}
	}
	if waited < 2 {
		t.Errorf("nobody waited for another one")
	}
	t.Logf("looked %d times in %s", looked, time.Since(began).Round(time.Second))

	ended := time.Now()
	eventually(t, healMost, "all are complete", c.complete())
	for _, name := range c.options.names {
		from := began.UnixMilli()
		for _, at := range c.replicas[name].mustLocal(`up{job="lamps"}`, began, ended)[series{Metric: map[string]string{
			"__name__": "up", "job": "lamps", "instance": "lamps",
		}}.id()].sorted() {
			if d := time.Duration(at-from) * time.Millisecond; d > 3*time.Second {
				t.Errorf("%s has no scrape in the %s before %s", name, d, time.UnixMilli(at).Format("15:04:05.000"))
			}
			from = at
		}
		if d := ended.Sub(time.UnixMilli(from)); d > 10*time.Second {
			t.Errorf("%s has no scrape in the last %s", name, d)
		}
	}
}

// TestDrainWaits has a replica be down while another one is to be stopped.
func TestDrainWaits(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	c.up()
	eventually(t, healMost, "all are complete at first", c.complete())
	c.c().stop()

	waits := c.a().drain()
	eventually(t, 20*time.Second, "it says whom it waits for", waits.says("waiting: replica c (zone zone-c) has been stopped since"))

	// Another site's page in a browser may not.
	req, err := http.NewRequest(http.MethodPost, c.b().url+"/api/tocsin/v1/drain?force=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a page of another site is answered %s", resp.Status)
	}

	// Who is killed while it waits waits no longer.
	waiting := func(want string) func() error {
		return func() error {
			body, err := quickly(http.MethodGet, c.a().url+"/api/tocsin/v1/drain", "", "")
			if err == nil && !strings.Contains(body, `"state":"`+want+`"`) {
				err = errors.New(body)
			}
			return err
		}
	}
	eventually(t, 10*time.Second, "a waits", waiting("waiting"))
	if _, stderr, code := tool(t, c.dir, tocsinBinary, "drain", "--url="+c.a().url); code != 1 || !strings.Contains(stderr, "another call waits already") {
		t.Errorf("a second call ends with %d: %s", code, stderr)
	}
	waits.kill()
	eventually(t, 10*time.Second, "a does not wait any more", waiting("none"))

	stdout, stderr, code := tool(t, c.dir, tocsinBinary, "drain", "--url="+c.a().url, "--timeout=3s")
	if code != 1 || !strings.Contains(stderr, "not within 3s") || !strings.Contains(stderr, "replica c (zone zone-c)") {
		t.Errorf("after the time it ends with %d: %s%s", code, stdout, stderr)
	}
	eventually(t, 10*time.Second, "a has its place no longer", waiting("none"))

	// By force it goes, and b waits for it.
	if out := mustTool(t, c.dir, tocsinBinary, "drain", "--url="+c.a().url, "--force"); !strings.HasPrefix(out, "forced, although replica c (zone zone-c) has been stopped") {
		t.Errorf("by force it says %q", out)
	}
	next := c.b().drain()
	c.c().start().ready()
	eventually(t, healMost, "b waits for a", next.says("waiting: replica a (zone zone-a) is drained itself"))
	eventually(t, 10*time.Second, "all see that a is drained", func() error {
		for _, name := range c.options.names {
			body, err := quickly(http.MethodGet, c.replicas[name].url+"/api/tocsin/v1/status", "", "")
			if err == nil && !strings.Contains(body, "Replica a in zone-a is drained") {
				err = fmt.Errorf("%s: %s", name, body)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	mustTool(t, c.dir, tocsinBinary, "drain", "--url="+c.a().url, "--cancel")
	if code := next.wait(drainFor); code != 0 {
		t.Errorf("b's drain has ended with %d:\n%s", code, next.output())
	}
}
