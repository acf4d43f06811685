package federate

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/scrape"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// runBench runs Federate in the background, with pulls every 30 ms.
func runBench(t *testing.T, b *bench) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not return")
		}
	}
	t.Cleanup(stop)
	return stop
}

func quick(c *config.Upstream) *config.Upstream {
	c.Interval, c.Timeout = model.Duration(30*time.Millisecond), model.Duration(30*time.Millisecond)
	return c
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		<-tick.C
	}
}

func counting(n *atomic.Int64, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		h(w, r)
	}
}

func TestRunAndReload(t *testing.T) {
	var norths, souths atomic.Int64
	north := newServer(t, counting(&norths, text(`a{x="1"} 1`, "b 1")))
	south := newServer(t, counting(&souths, text("a 1")))
	b := newBench(t)
	sections := func() (n, s *config.Upstream) {
		n = quick(section(t, "north", north.URL, allow(t, "a", "x"), allow(t, "b")))
		s = quick(section(t, "south", south.URL, allow(t, "a")))
		s.HTTPClientConfig.Authorization = &commonconfig.Authorization{Type: "Bearer", Credentials: "one"}
		return n, s
	}
	n, s := sections()
	b.load(t, n, s) // before Run, as at the start of the process
	stop := runBench(t, b)
	eventually(t, "both are pulled", func() bool { return norths.Load() > 2 && souths.Load() > 2 })

	targets := b.Targets()
	if len(targets) != 2 || len(targets["federate/north"]) != 1 {
		t.Fatalf("targets are %v", targets)
	}
	target := targets["federate/north"][0]
	if got := target.URL().String(); got != north.URL+"/federate" {
		t.Errorf("target has the URL %s", got)
	}
	if target.Health() != scrape.HealthGood || target.LastError() != nil || target.LastScrape().IsZero() {
		t.Errorf("target is %s, %v", target.Health(), target.LastError())
	}

	// The same again: nobody is disturbed.
	before := b.pullers["south"].wanted()
	n, s = sections()
	b.load(t, n, s)
	if b.pullers["south"].wanted() != before {
		t.Error("an unchanged upstream was replaced")
	}

	// A changed secret, unseen in YAML, is a change.
	n, s = sections()
	s.HTTPClientConfig.Authorization.Credentials = "two"
	b.load(t, n, s)
	if b.pullers["south"].wanted() == before {
		t.Error("a changed secret was not taken over")
	}

	// Interval and list of north change: what it still yields goes on without a
	// marker, what it lost ends.
	northBefore := b.pullers["north"].wanted()
	n, s = sections()
	n.Interval, n.Timeout = model.Duration(40*time.Millisecond), model.Duration(40*time.Millisecond)
	n.Metrics = n.Metrics[:1]
	b.load(t, n, s)
	if b.Targets()["federate/north"][0].Health() != scrape.HealthGood {
		t.Error("the health of a changed upstream is forgotten")
	}
	if b.pullers["north"].wanted() == northBefore {
		t.Error("a changed upstream was not replaced")
	}
	eventually(t, "b ends", func() bool {
		p := b.pulled(t)[`{__name__="b", source="north"}`]
		return len(p) > 0 && p[len(p)-1].stale
	})
	count := norths.Load()
	eventually(t, "north is pulled on", func() bool { return norths.Load() > count+3 })
	for _, series := range []string{`{__name__="a", source="north", x="1"}`, health("north", north), `{__name__="a", source="south"}`} {
		for _, p := range b.stored(t)[series] {
			if p.stale {
				t.Errorf("%s has a stale marker", series)
			}
		}
	}

	// South is removed: it ends at once, with its metrics.
	b.load(t, n)
	b.wantStale(t, `{__name__="a", source="south"}`, true)
	b.wantStale(t, health("south", south), true)
	if got := b.metric(t, "tocsin_federation_pulls_total", "south"); got == got {
		t.Errorf("metrics of a removed upstream are still there: %v", got)
	}
	if len(b.Targets()) != 1 {
		t.Errorf("targets are %v", b.Targets())
	}
	count = souths.Load()

	// And it comes back.
	b.load(t, n, s)
	eventually(t, "south is pulled again", func() bool { return souths.Load() > count+1 })
	b.wantStale(t, `{__name__="a", source="south"}`, false)

	// The process goes down: no markers.
	stop()
	b.wantStale(t, `{__name__="a", source="north", x="1"}`, false)
	b.wantStale(t, health("north", north), false)
	b.load(t, section(t, "late", north.URL, allow(t, "a"))) // harmless
	if strings.Contains(b.logs.String(), "level=ERROR") {
		t.Error(b.logs.String())
	}
}

func TestRemovingASlowUpstreamDoesNotWaitForIt(t *testing.T) {
	asked := make(chan struct{}, 100)
	srv := newServer(t, func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	})
	b := newBench(t)
	c := quick(section(t, "slow", srv.URL, allow(t, "a")))
	c.Timeout = model.Duration(time.Hour)
	b.load(t, c)
	runBench(t, b)
	<-asked
	start := time.Now()
	b.load(t)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("removal took %s", took)
	}
}

func TestChangedLabelsEndTheOldSeries(t *testing.T) {
	srv := newServer(t, text("a 1"))
	b := newBench(t)
	b.load(t, section(t, "north", srv.URL, allow(t, "a")))
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	c := section(t, "north", srv.URL, allow(t, "a"))
	c.OriginLabel = "origin"
	b.load(t, c)
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	b.wantStale(t, `{__name__="a", source="north"}`, true)
	b.wantStale(t, health("north", srv), true)
	b.wantLast(t, `{__name__="a", origin="north"}`, 1)
	b.wantLast(t, strings.Replace(health("north", srv), `job="federate", source="north"`, `job="federate", origin="north"`, 1), 1)
}

func TestPrepareChangesNothing(t *testing.T) {
	b := newBench(t)
	b.load(t, section(t, "north", "http://h", allow(t, "a")))
	if _, err := b.Prepare(configOf(section(t, "south", "http://h", allow(t, "a")))); err != nil {
		t.Fatal(err)
	}
	if _, ok := b.Targets()["federate/north"]; !ok || len(b.Targets()) != 1 {
		t.Errorf("targets are %v", b.Targets())
	}
	if _, err := b.Prepare(configOf(section(t, "x", "http://h", allow(t, "a")), section(t, "x", "http://h", allow(t, "a")))); err == nil {
		t.Error("two upstreams of one name were accepted")
	}
}

func TestNewRefuses(t *testing.T) {
	b := newBench(t)
	for i, o := range []Options{
		{},
		{Logger: b.logger, Appendable: b.db},
		{Logger: b.logger, Registerer: prometheus.NewRegistry()},
		{Registerer: prometheus.NewRegistry(), Appendable: b.db},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), "Options.") {
			t.Error(fmt.Sprint(i), err)
		}
	}
}
