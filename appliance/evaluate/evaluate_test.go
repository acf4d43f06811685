package evaluate_test

import (
	"context"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"go.uber.org/goleak"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/evaluate"
)

func TestMain(m *testing.M) {
	// memberlist does not wait for a probe that is under way; it ends by its timeout.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/baidubce/bce-sdk-go/util/log.NewLogger.func1"), goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probe"))
}

// counted counts the queriers that are open.
type counted struct {
	storage.Queryable
	mu   sync.Mutex
	open int
}

func (c *counted) Querier(mint, maxt int64) (storage.Querier, error) {
	q, err := c.Queryable.Querier(mint, maxt)
	if err != nil {
		return nil, err
	}
	c.add(1)
	return &countedQuerier{q, c}, nil
}

func (c *counted) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open += n
}

type countedQuerier struct {
	storage.Querier
	c *counted
}

func (q *countedQuerier) Close() error {
	q.c.add(-1)
	return q.Querier.Close()
}

func load(t *testing.T, rules string) *config.Config {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"tocsin.yml": "prometheus: {global: {evaluation_interval: 50ms}, rule_files: [rules.yml]}\n",
		"rules.yml":  rules,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := config.Load(filepath.Join(dir, "tocsin.yml"), config.Self{Address: "localhost:9090", Instance: "test"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestRulesRecordAndAlertUntilTheyAreStopped(t *testing.T) {
	db, err := tsdb.Open(t.TempDir(), nil, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	alerts := make(chan *rules.Alert, 1)
	queries := &counted{Queryable: db}
	e, err := evaluate.New(evaluate.Options{
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		Queryable: queries, Appendable: db,
		Engine: promql.NewEngine(promql.EngineOpts{
			MaxSamples: 1000, Timeout: time.Minute,
			NoStepSubqueryIntervalFn: func(int64) int64 { return 1000 },
		}),
		Notify: func(_ context.Context, _ string, as ...*rules.Alert) {
			for _, a := range as {
				select {
				case alerts <- a:
				default:
				}
			}
		},
		ExternalURL: &url.URL{Scheme: "http", Host: "tocsin.example"},
	})
	if err != nil {
		t.Fatal(err)
	}
	apply, err := e.Prepare(load(t, `
groups:
- name: g
  rules:
  - {record: answer, expr: 6 * 7}
  - {alert: Right, expr: answer == 42}
  - {alert: Wrong, expr: absent(answer)}
`))
	if err != nil {
		t.Fatal(err)
	}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	for seen := map[string]bool{}; !seen["Right"]; {
		select {
		case a := <-alerts:
			seen[a.Labels.Get(labels.AlertName)] = true
		case <-time.After(20 * time.Second):
			t.Fatal("no alert")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	queries.mu.Lock()
	open := queries.open
	queries.mu.Unlock()
	if open != 0 {
		t.Errorf("%d queriers are still open: the head could not be compacted, nor the store closed", open)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCloseWithoutRun(t *testing.T) {
	e, err := evaluate.New(evaluate.Options{
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		ExternalURL: &url.URL{Scheme: "http", Host: "tocsin.example"},
	})
	if err != nil {
		t.Fatal(err)
	}
	// With groups: they wait for a Run that never comes.
	apply, err := e.Prepare(load(t, "groups: [{name: g, rules: [{record: answer, expr: 42}]}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	e.Close()
	e.Close()
}
