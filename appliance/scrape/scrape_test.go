package scrape_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/model/labels"
	promscrape "github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/tsdb"
	"go.uber.org/goleak"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/scrape"
)

// Baidu's client, which objstore brings along, starts a logger when it is loaded.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/baidubce/bce-sdk-go/util/log.NewLogger.func1"))
}

// serve runs a real HTTP server for the test.
func serve(t *testing.T, h http.Handler) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return l.Addr().String()
}

func load(t *testing.T, prometheusYAML string) *config.Config {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"tocsin.yml": "prometheus: p.yml\n", "p.yml": prometheusYAML} {
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

func newScrape(t *testing.T) (*scrape.Scrape, *tsdb.DB) {
	t.Helper()
	db, err := tsdb.Open(t.TempDir(), nil, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	reg := prometheus.NewRegistry()
	sd, err := discovery.CreateAndRegisterSDMetrics(reg)
	if err != nil {
		t.Fatal(err)
	}
	s, err := scrape.New(scrape.Options{
		Logger: slog.New(slog.DiscardHandler), Registerer: reg, SDMetrics: sd, Appendable: db,
		Manager: promscrape.Options{},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, db
}

func run(t *testing.T, s *scrape.Scrape) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func apply(t *testing.T, s *scrape.Scrape, cfg *config.Config) {
	t.Helper()
	do, err := s.Prepare(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := do(); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

func TestScrapesAndStopsBeforeTheStoreCloses(t *testing.T) {
	address := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "jobs_done 42")
	}))
	s, db := newScrape(t)
	stop := run(t, s)
	apply(t, s, load(t, fmt.Sprintf(`
scrape_configs: [{job_name: j, scrape_interval: 100ms, scrape_timeout: 100ms, static_configs: [{targets: [%q]}]}]
`, address)))
	eventually(t, "a stored sample", func() bool {
		q, err := db.Querier(0, time.Now().Add(time.Hour).UnixMilli())
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := q.Close(); err != nil {
				t.Error(err)
			}
		}()
		return q.Select(context.Background(), false, nil, labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, "jobs_done")).Next()
	})
	stop()
	// A scrape that is still under way would append to a closed store after this.
	before := db.Head().MaxTime()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if before == 0 {
		t.Error("nothing was stored")
	}
}

func TestReloadLeavesOtherJobsAlone(t *testing.T) {
	var steady atomic.Int64
	address := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/steady") {
			steady.Add(1)
		}
		fmt.Fprintln(w, "x 1")
	}))
	job := func(name string) string {
		return fmt.Sprintf("- {job_name: %s, metrics_path: /%s, scrape_interval: 100ms, scrape_timeout: 100ms, static_configs: [{targets: [%q]}]}\n", name, name, address)
	}
	s, _ := newScrape(t)
	run(t, s)
	apply(t, s, load(t, "scrape_configs:\n"+job("steady")))
	eventually(t, "the first scrapes", func() bool { return steady.Load() > 2 })
	target := s.Manager().TargetsActive()["steady"][0]
	apply(t, s, load(t, "scrape_configs:\n"+job("steady")+job("new")))
	before := steady.Load()
	eventually(t, "scrapes after the reload", func() bool { return steady.Load() > before+2 })
	eventually(t, "the new job", func() bool { return len(s.Manager().TargetsActive()["new"]) == 1 })
	if s.Manager().TargetsActive()["steady"][0] != target {
		t.Error("the reload restarted a job that it does not change")
	}
}

// TestReloadWhileTargetsAreTakenIn reloads at each moment of what the manager does with the targets of the reload before;
// the race detector then sees whether the two get into each other's way.
func TestReloadWhileTargetsAreTakenIn(t *testing.T) {
	s, _ := newScrape(t)
	run(t, s)
	var last string
	for i := range 12 {
		last = fmt.Sprintf("127.0.0.1:%d", i+1)
		apply(t, s, load(t, fmt.Sprintf(`
scrape_configs:
- {job_name: steady, static_configs: [{targets: ["127.0.0.1:9"]}]}
- {job_name: changing, static_configs: [{targets: [%q]}]}
`, last)))
		<-time.After(time.Duration(i) * 50 * time.Millisecond)
	}
	eventually(t, "the targets of the last reload", func() bool {
		targets := s.Manager().TargetsActive()["changing"]
		return len(targets) == 1 && targets[0].URL().Host == last
	})
}

func TestPrepareRefusesWhatUpstreamWouldFailOn(t *testing.T) {
	s, _ := newScrape(t)
	t.Cleanup(s.Close)
	cfg := load(t, "scrape_configs: [{job_name: j, static_configs: [{targets: [x]}]}]")
	cfg.ScrapeConfigs[0].HTTPClientConfig.TLSConfig.CAFile = "/does/not/exist"
	if _, err := s.Prepare(cfg); err == nil || !strings.Contains(err.Error(), `job "j"`) {
		t.Errorf("a CA file that is missing: %v", err)
	}
	cfg.ScrapeConfigs[0].HTTPClientConfig.TLSConfig.CAFile = ""
	cfg.ScrapeConfigs[0].ScrapeFailureLogFile = "/does/not/exist/log"
	if _, err := s.Prepare(cfg); err == nil || !strings.Contains(err.Error(), "scrape_failure_log_file") {
		t.Errorf("a failure log that cannot be opened: %v", err)
	}
}

func TestHostMetrics(t *testing.T) {
	s, _ := newScrape(t)
	t.Cleanup(s.Close)
	address := serve(t, s.HostMetrics())
	resp, err := http.Get("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	}()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"node_cpu_seconds_total", "node_memory_MemAvailable_bytes", "node_filesystem_avail_bytes",
		"node_network_receive_bytes_total", "node_load1", "node_disk_read_bytes_total", "node_uname_info",
	} {
		if !strings.Contains(string(body), "\n"+name) {
			t.Errorf("%s is missing", name)
		}
	}
	if strings.Contains(string(body), "node_systemd") {
		t.Error("a collector is on that was not asked for")
	}
}
