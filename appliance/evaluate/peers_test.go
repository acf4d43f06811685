package evaluate_test

import (
	"context"
	"log/slog"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/evaluate"
	"github.com/tocsin-io/tocsin/appliance/mesh"
)

// startReplica starts rules with an empty store on a real mesh, and stops them at the end of the test.
func startReplica(t *testing.T, name string, seeds []string, text string) (*evaluate.Evaluate, *mesh.Mesh) {
	t.Helper()
	db, err := tsdb.Open(t.TempDir(), nil, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := load(t, text)
	cfg.Replica = config.Replica{Name: name, Zone: name}
	cfg.Cluster, cfg.ClusterKeys = &config.Cluster{Name: "test", Peers: seeds}, config.Keys{make([]byte, 32)}
	reg, logger := prometheus.NewRegistry(), slog.New(slog.DiscardHandler)
	m, err := mesh.New(mesh.Options{
		Logger: logger, Registerer: reg, Config: cfg, Dir: filepath.Join(t.TempDir(), "mesh"),
		ListenAddress: "127.0.0.1:0", GRPCListenAddress: "127.0.0.1:0",
	})
	if err != nil {
		t.Fatal(err)
	}
	e, err := evaluate.New(evaluate.Options{
		Logger: logger, Registerer: reg, Mesh: m, Queryable: db, Appendable: db,
		Engine: promql.NewEngine(promql.EngineOpts{
			MaxSamples: 1000, Timeout: time.Minute,
			NoStepSubqueryIntervalFn: func(int64) int64 { return 1000 },
		}),
		Notify:          func(context.Context, string, ...*rules.Alert) {},
		OutageTolerance: time.Hour,
		ExternalURL:     &url.URL{Scheme: "http", Host: "tocsin.example"},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	meshDone, done := make(chan error, 1), make(chan error, 1)
	go func() { meshDone <- m.Run(ctx) }()
	if err := m.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	apply, err := e.Prepare(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for _, ended := range []chan error{done, meshDone} {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, m
}

// pendingSince waits until the alert is active and, where that is asked for, restored.
func pendingSince(t *testing.T, e *evaluate.Evaluate, ok func(time.Time) bool) time.Time {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	var at time.Time
	for {
		for _, r := range e.Manager().AlertingRules() {
			for _, a := range r.ActiveAlerts() {
				if at = a.ActiveAt; r.Restored() && ok(at) {
					return at
				}
			}
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the alert is active since %s", at)
		}
	}
}

// TestForGoesOnFromPeers holds that a replica that starts with nothing has an alert pending since the others have.
func TestForGoesOnFromPeers(t *testing.T) {
	const text = `
groups:
- name: g
  rules:
  - {alert: Patient, expr: vector(1), for: 1h, labels: {severity: page}}
`
	first, m := startReplica(t, "a", nil, text)
	since := pendingSince(t, first, func(time.Time) bool { return true })
	var seed string
	for _, member := range m.Members() {
		seed = member.Address
	}
	// What is restored is in whole seconds: without it, the second one's would be later than this.
	for time.Since(since) < 2*time.Second {
		<-time.After(50 * time.Millisecond)
	}
	second, _ := startReplica(t, "b", []string{seed}, text)
	pendingSince(t, second, func(at time.Time) bool { return at.Unix() == since.Unix() })
}
