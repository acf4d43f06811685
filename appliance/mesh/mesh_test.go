package mesh

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/e2e/steady"
)

func TestMain(m *testing.M) {
	// They wait more than they work.
	flag.Parse()
	if err := flag.Set("test.parallel", "12"); err != nil {
		panic(err)
	}
	os.Exit(steady.Main(func() int {
		code := m.Run()
		// memberlist does not wait for a probe that is under way when it stops.
		var leak error
		for begin := time.Now(); time.Since(begin) < 5*time.Second; {
			if leak = goleak.Find(goleak.IgnoreAnyFunction("github.com/baidubce/bce-sdk-go/util/log.NewLogger.func1"), goleak.IgnoreAnyFunction(steady.Watcher)); leak == nil {
				break
			}
		}
		if code == 0 && leak != nil {
			fmt.Fprintln(os.Stderr, leak)
			code = 1
		}
		return code
	}))
}

func TestThreeFormAMesh(t *testing.T) {
	t.Parallel()
	for name, keying := range keyings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Nobody is there yet that b and c could join, and all have the same list with themselves in it.
			a := prepared(t, named("a"), keying)
			b := prepared(t, named("b"), keying, withPeers(a.address()))
			c := prepared(t, named("c"), keying, withPeers(a.address(), b.address()))
			a.seeds.set([]string{a.address()})
			a.bag.put("of a, from before")
			var changes sync.Map
			for _, x := range []*trial{a, b, c} {
				x.OnChange(func() { changes.Store(x.Name(), true) })
				if got := x.Status(); got != "settling" {
					t.Errorf("%s before Run: status %q", x.Name(), got)
				}
			}
			b.start()
			c.start()
			whole(t, 10*time.Second, "b c", b, c)
			a.start()
			t.Logf("whole after %s", whole(t, 10*time.Second, "a b c", a, b, c))
			for i, x := range []*trial{a, b, c} {
				ctx, cancel := context.WithTimeout(t.Context(), slack*12*time.Second)
				if err := x.WaitReady(ctx); err != nil {
					t.Errorf("%s: %v", x.Name(), err)
				}
				cancel()
				if got := x.Position(); got != i {
					t.Errorf("%s: position %d, want %d", x.Name(), got, i)
				}
				if got := x.value("alertmanager_cluster_members"); got != 3 {
					t.Errorf("%s: alertmanager_cluster_members = %v", x.Name(), got)
				}
				until(t, 15*time.Second, "the change is told", func() bool { _, ok := changes.Load(x.Name()); return ok })
			}
			until(t, 15*time.Second, "what a had reaches c", func() bool { return c.bag.has("of a, from before") })
			small, large := "a small change", "a large change "+strings.Repeat("x", 50_000)
			b.bag.put(small)
			b.tell([]byte(small))
			c.bag.put(large)
			c.tell([]byte(large))
			// A change that is lost comes with the next exchange of all states.
			until(t, 45*time.Second, "changes reach everybody", func() bool {
				return a.bag.has(small) && c.bag.has(small) && a.bag.has(large) && b.bag.has(large)
			})
			until(t, 15*time.Second, "round trip and clock are known", func() bool {
				return !slices.ContainsFunc(a.Members(), func(m Member) bool { return !m.Self && (m.RTT == 0 || m.LastContact.IsZero()) })
			})
			for _, m := range a.Members() {
				if m.ClockSkew > time.Second || m.ClockSkew < -time.Second {
					t.Errorf("clock skew of %s on the same machine: %s", m.Name, m.ClockSkew)
				}
				if got, want := m.Card.Zone, "zone-1"; got != want {
					t.Errorf("zone of %s: %q, want %q", m.Name, got, want)
				}
			}
			b.SetCompleteness(0.5)
			until(t, 15*time.Second, "completeness is told", func() bool { m, _ := a.table.get("b"); return m.Card.Completeness == 0.5 })
			for _, reason := range allReasons {
				if n := a.refused(reason); n != 0 && reason != reasonIncomplete { // Friends may be slow.
					t.Errorf("%v messages refused for %q among friends", n, reason)
				}
			}

			// One leaves, one dies.
			if err := c.end(); err != nil {
				t.Errorf("c: %v", err)
			}
			t.Logf("leave known after %s", whole(t, 15*time.Second, "a b", a, b))
			b.kill()
			t.Logf("death known after %s", whole(t, 15*time.Second, "a", a))
			until(t, 5*time.Second, "the metric tells the death", func() bool { return a.value("tocsin_mesh_member_up", "member", "b") == 0 })
			left := map[string]bool{}
			for _, m := range a.Members() {
				left[m.Name] = m.Left
			}
			if want := map[string]bool{"a": false, "b": false, "c": true}; !maps.Equal(left, want) {
				t.Errorf("who left, and who did not: %v, want %v", left, want)
			}
		})
	}
}

func TestClusterAPI(t *testing.T) {
	t.Parallel()
	a := started(t, withKeys(key(1)))
	rec := httptest.NewRecorder()
	a.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/api/tocsin/v1/cluster", nil))
	var got struct {
		Name    string
		Members []map[string]any
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
		t.Fatalf("%v in %s", err, rec.Body)
	}
	if got.Name != "prod" || len(got.Members) != 1 {
		t.Fatalf("answer: %s", rec.Body)
	}
	self := got.Members[0]
	for field, want := range map[string]any{
		"name": "a", "zone": "zone-1", "address": a.address(), "http_address": "127.0.0.1:9090",
		"grpc_address": a.rpc.addr().String(), "version": "1.2.3", "completeness": 0.0, "alive": true, "self": true,
	} {
		if self[field] != want {
			t.Errorf("%s = %v, want %v", field, self[field], want)
		}
	}
	for _, field := range []string{"started", "rtt_seconds", "clock_skew_seconds", "last_contact"} {
		if _, ok := self[field]; !ok {
			t.Errorf("%s is missing in %s", field, rec.Body)
		}
	}
	if strings.Contains(rec.Body.String(), string(key(1))) {
		t.Error("the key is in the answer")
	}
	rec = httptest.NewRecorder()
	a.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/api/tocsin/v1/cluster", nil))
	if rec.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST is answered with %d", rec.Code)
	}
}

func TestAloneIsReady(t *testing.T) {
	t.Parallel()
	a := started(t)
	begin := time.Now()
	if err := a.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("ready after %s with nobody to ask", took)
	}
	if a.Status() != "ready" || a.Position() != 0 {
		t.Errorf("status %q, position %d", a.Status(), a.Position())
	}

	// The port is bound and closed again: nobody answers there.
	dead := prepared(t)
	address := dead.address()
	if err := dead.end(); err != nil {
		t.Fatal(err)
	}
	b := started(t, named("b"), withPeers(address))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := b.WaitReady(ctx); err == nil {
		t.Error("ready before the peers had time to answer")
	}
	if err := b.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.log.String(), "this replica works alone"); n != 1 {
		t.Errorf("told %d times that it is alone", n)
	}
}

func TestCloseWithoutRun(t *testing.T) {
	t.Parallel()
	a := prepared(t, withKeys(key(1)))
	for range 2 {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := a.WaitReady(t.Context()); err == nil {
		t.Error("a closed mesh is ready")
	}
	// The port is free again.
	b := prepared(t, listening(a.address()))
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsRun(t *testing.T) {
	t.Parallel()
	a := started(t)
	if err := a.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if err := a.end(); err != nil {
		t.Error(err)
	}
}

// TestRestartOfAll has all replicas restart at once, with no configured peer.
func TestRestartOfAll(t *testing.T) {
	t.Parallel()
	a := started(t, named("a"))
	b := started(t, named("b"), withPeers(a.address()))
	c := started(t, named("c"), withPeers(a.address()))
	whole(t, 10*time.Second, "a b c", a, b, c)
	all := []*trial{a, b, c}
	until(t, 15*time.Second, "all are remembered", func() bool {
		return !slices.ContainsFunc(all, func(x *trial) bool {
			b, _ := os.ReadFile(filepath.Join(x.dir, "peers.json"))
			return strings.Count(string(b), `"address"`) != 2
		})
	})
	for _, x := range all {
		x.kill()
	}
	for _, x := range all {
		if err := x.end(); err != nil {
			t.Logf("%s: %v", x.Name(), err) // Its sockets are gone.
		}
	}
	var next []*trial
	for _, i := range []int{2, 0, 1} {
		next = append(next, started(t, named(all[i].Name()), listening(all[i].address()), rememberingIn(all[i].dir)))
	}
	t.Logf("whole again after %s", whole(t, 10*time.Second, "a b c", next...))
}

// TestPartition cuts one replica off and heals it.
func TestPartition(t *testing.T) {
	t.Parallel()
	a := started(t, named("a"), withKeys(key(1)))
	b := started(t, named("b"), withKeys(key(1)), withPeers(a.address()))
	c := started(t, named("c"), withKeys(key(1)), withPeers(a.address()))
	whole(t, 10*time.Second, "a b c", a, b, c)
	// Streams come from ports of their own, so the side is told by the listening port for packets and dials only.
	far := c.address()
	notC := func(remote string) bool { return remote == far }
	onlyC := func(string) bool { return true }
	a.wire.cut.Store(&notC)
	b.wire.cut.Store(&notC)
	c.wire.cut.Store(&onlyC)
	t.Logf("parted after %s", whole(t, 15*time.Second, "a b", a, b))
	whole(t, 15*time.Second, "c", c)
	a.bag.put("said while parted")
	a.tell([]byte("said while parted"))
	for _, x := range []*trial{a, b, c} {
		x.wire.cut.Store(nil)
	}
	t.Logf("whole again after %s", whole(t, 15*time.Second, "a b c", a, b, c))
	until(t, 15*time.Second, "c knows what was said", func() bool { return c.bag.has("said while parted") })
}

// TestLargeState syncs what cannot be compressed.
func TestLargeState(t *testing.T) {
	t.Parallel()
	for name, keying := range keyings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := prepared(t, keying)
			random := rand.New(rand.NewPCG(1, 2))
			for range 5 << 10 {
				line := make([]byte, 1024)
				for i := range line {
					line[i] = byte('0' + random.IntN(64))
				}
				a.bag.put(string(line))
			}
			a.start()
			b := started(t, named("b"), keying, withPeers(a.address()))
			took := until(t, 15*time.Second, "5 MiB are there", func() bool { return b.bag.size() == a.bag.size() })
			t.Logf("5 MiB after %s", took)
		})
	}
}

func TestStateTooLargeIsLeftOut(t *testing.T) {
	t.Parallel()
	a := prepared(t)
	huge := &bag{items: map[string]bool{strings.Repeat("x", maxState): true}}
	a.AddState("huge", huge, prometheus.NewRegistry())
	a.bag.put("small")
	a.start()
	b := prepared(t, named("b"), withPeers(a.address()))
	b.AddState("huge", &bag{items: map[string]bool{}}, prometheus.NewRegistry())
	b.start()
	until(t, 15*time.Second, "the small state is there", func() bool { return b.bag.has("small") })
	if n := a.value("tocsin_mesh_state_left_out_total", "key", "huge"); n < 1 {
		t.Errorf("tocsin_mesh_state_left_out_total = %v", n)
	}
	if a.states.missed.Load() < 1 {
		t.Error("the exchange is taken for one that carried everything")
	}
	if !strings.Contains(a.log.String(), "too large to be exchanged") {
		t.Error("nobody was told")
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, c := range map[string]struct {
		change setting
		want   string
	}{
		"no cluster":        {func(o *Options) { o.Config.Cluster = nil }, "no cluster section"},
		"no name":           {named(""), "replica.name"},
		"a name with lines": {named("a\nb"), "replica.name"},
		"no port":           {listening("127.0.0.1"), "listen address"},
		"a port too high":   {listening("127.0.0.1:99999"), "port"},
		"a port taken":      {listening(taken.Addr().String()), "address already in use"},
		"a long card":       {func(o *Options) { o.Config.Replica.Zone = strings.Repeat("z", 600) }, "replica.zone"},
		"a short key":       {withKeys([]byte("short")), "key"},
	} {
		t.Run(name, func(t *testing.T) {
			opts := Options{
				Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
				Config:        &config.Config{Replica: config.Replica{Name: "a", Zone: "z"}, Cluster: &config.Cluster{Name: "prod"}},
				ListenAddress: "127.0.0.1:0", GRPCListenAddress: "127.0.0.1:0", Dir: t.TempDir(),
			}
			c.change(&opts)
			m, err := New(opts)
			if err == nil {
				m.Close()
				t.Fatal("it was accepted")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not say %q", err, c.want)
			}
		})
	}
}
