package appliance_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/tocsin-io/tocsin/appliance"
	"github.com/tocsin-io/tocsin/web"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// A client of objstore's begins to log when it is imported.
		goleak.IgnoreAnyFunction("github.com/baidubce/bce-sdk-go/util/log.NewLogger.func1"),
		// Upstream's own: klog's flusher, which Kubernetes discovery brings along, has no end.
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
	)
}

type process struct {
	*appliance.Appliance
	t    *testing.T
	url  string
	log  *logBuffer
	dir  string
	stop func()
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func options(dir string, log io.Writer) appliance.Options {
	return appliance.Options{
		Logger:         slog.New(slog.NewTextHandler(log, nil)),
		Registry:       prometheus.NewRegistry(),
		ConfigFile:     filepath.Join(dir, "tocsin.yml"),
		ConfigOptional: true,
		StoragePath:    filepath.Join(dir, "data"),
		Version:        appliance.Version{Version: "test"},
		Web:            web.Options{Listen: []string{"127.0.0.1:0"}, AlertmanagerListen: "127.0.0.1:0"},
	}
}

var readyWeb = regexp.MustCompile(`msg=ready .*web=\[([^\]]+)\]`)

func start(t *testing.T, dir string) *process {
	t.Helper()
	log := &logBuffer{}
	a, err := appliance.New(options(dir, log))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	p := &process{Appliance: a, t: t, log: log, dir: dir}
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	t.Cleanup(p.stop)
	eventually(t, "readiness", func() bool { ok, _ := a.Ready(); return ok && readyWeb.MatchString(log.String()) })
	p.url = "http://" + readyWeb.FindStringSubmatch(log.String())[1]
	return p
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(40 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

func (p *process) get(path string) (int, string) {
	p.t.Helper()
	resp, err := http.Get(p.url + path)
	if err != nil {
		p.t.Fatal(err)
	}
	return read(p.t, resp)
}

func (p *process) post(path string) (int, string) {
	p.t.Helper()
	resp, err := http.Post(p.url+path, "", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return read(p.t, resp)
}

func read(t *testing.T, resp *http.Response) (int, string) {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// value is the first value of an instant query, "" for none.
func (p *process) value(query string) string {
	p.t.Helper()
	_, body := p.get("/api/v1/query?query=" + query)
	var a struct {
		Data struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := json.Unmarshal([]byte(body), &a); err != nil {
		p.t.Fatalf("%s: %v", body, err)
	}
	if len(a.Data.Result) == 0 {
		return ""
	}
	return fmt.Sprint(a.Data.Result[0].Value[1])
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestBuiltInConfigurationSeesItselfAndItsHost(t *testing.T) {
	p := start(t, t.TempDir())
	eventually(t, "both jobs up", func() bool { return p.value("sum(up)") == "2" })
	for path, want := range map[string]string{
		"/-/healthy":                      "",
		"/metrics":                        "tocsin_build_info",
		"/metrics/node":                   "node_load1",
		"/api/v1/status/buildinfo":        appliance.PrometheusVersion,
		"/api/v1/status/runtimeinfo":      `"storageRetention":"15d"`,
		"/api/v1/alertmanagers":           "/alertmanager/api/v2/alerts",
		"/alertmanager/api/v2/status":     `"versionInfo"`,
		"/federate?match[]=up":            "up{",
		"/api/v1/status/config":           "scrape_configs",
		"/api/v1/targets?scrapePool=node": "/metrics/node",
		"/api/tocsin/v1/status":           `"up":`,
		"/":                               "Tocsin",
	} {
		if code, body := p.get(path); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("GET %s: %d, without %q: %.300s", path, code, want, body)
		}
	}
	p.stop()
	// Silences and samples are whole on disk: a second start finds them.
	again := start(t, p.dir)
	if got := again.value("count_over_time(up{job=%22node%22}[5m])"); got == "" {
		t.Error("nothing is left of the first run")
	}
}

func TestReloadIsAppliedWholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	file, rules := filepath.Join(dir, "tocsin.yml"), filepath.Join(dir, "rules.yml")
	good := "prometheus: {global: {evaluation_interval: 1s}, rule_files: [rules.yml]}\nreplica: {name: one}\n"
	write(t, file, good)
	write(t, rules, "groups: [{name: g, rules: [{record: answer, expr: 42}]}]\n")
	p := start(t, dir)
	eventually(t, "the recorded rule", func() bool { return p.value("answer") == "42" })

	write(t, rules, "groups: [{name: g, rules: [{record: answer, expr: 43}]}]\n")
	if code, body := p.post("/-/reload"); code != http.StatusOK {
		t.Fatalf("a good reload: %d %s", code, body)
	}
	eventually(t, "the new rule", func() bool { return p.value("answer") == "43" })

	for name, c := range map[string]struct{ config, rules, want string }{
		"a rule that does not parse": {good, "groups: [{name: g, rules: [{record: answer, expr: '4 +'}]}]\n", "rules.yml"},
		"an unknown field":           {good + "replicas: {}\n", "groups: []\n", "replicas"},
		"a field that needs a restart": {
			strings.Replace(good, "one", "two", 1), "groups: []\n", "replica.name",
		},
		"a broken Alertmanager section": {good + "alertmanager: {route: {receiver: nobody}}\n", "groups: []\n", "nobody"},
	} {
		t.Run(name, func(t *testing.T) {
			write(t, file, c.config)
			write(t, rules, c.rules)
			code, body := p.post("/-/reload")
			if code != http.StatusInternalServerError || !strings.Contains(body, c.want) || !strings.Contains(body, "nothing has changed") {
				t.Errorf("answer %d %q, want 500 that names %s", code, body, c.want)
			}
			if !strings.Contains(p.log.String(), c.want) {
				t.Error("the log does not say it")
			}
			if _, m := p.get("/metrics"); !strings.Contains(m, "\nprometheus_config_last_reload_successful 0\n") ||
				!strings.Contains(m, "\nalertmanager_config_last_reload_successful 0\n") {
				t.Error("the metrics do not say it")
			}
			if _, body := p.get("/api/v1/rules"); !strings.Contains(body, `"query":"43"`) {
				t.Errorf("the rules have changed: %s", body)
			}
		})
	}
	write(t, file, good)
	write(t, rules, "groups: []\n")
	if code, body := p.post("/-/reload"); code != http.StatusOK {
		t.Fatalf("the corrected configuration: %d %s", code, body)
	}
	if _, m := p.get("/metrics"); !strings.Contains(m, "\nprometheus_config_last_reload_successful 1\n") {
		t.Error("the metric does not recover")
	}
}

// TestAConfigurationFromTheBucketIsAppliedWholeOrNotAtAll has one that fails only when it is applied, after other parts of it are
// in force: what a file leaves as a mixture is taken back.
func TestAConfigurationFromTheBucketIsAppliedWholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	below := filepath.Join(dir, "bucket", "config")
	if err := os.MkdirAll(below, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "tocsin.yml"), fmt.Sprintf("bucket: {type: FILESYSTEM, config: {directory: %q}}\n"+
		"config_from: {bucket: true, poll: 1s}\nreplica: {name: one}\n", filepath.Join(dir, "bucket")))
	file := "prometheus: {rule_files: [%s], scrape_configs: [{job_name: %s, static_configs: [{targets: ['localhost:1']}]%s}]%s}\n"
	write(t, filepath.Join(below, "tocsin.yml"), fmt.Sprintf(file, "rules.yml", "old", "", ""))
	write(t, filepath.Join(below, "rules.yml"), "groups: [{name: g, rules: [{record: answer, expr: 42}]}]\n")
	p := start(t, dir)
	var first, st struct{ Hash, State, Problem string }
	status := func(v any) {
		_, body := p.get("/api/tocsin/v1/config")
		if err := json.Unmarshal([]byte(body), v); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
	}
	status(&first)
	if first.State != "applied" {
		t.Fatalf("what was copied by hand is not taken at the start: %+v", first)
	}

	// Whoever prepares it opens the one log, and then the other, where it waits for a reader. It was checked once before.
	rules, queries, failures := filepath.Join(dir, "rules.yml"), filepath.Join(dir, "queries.log"), filepath.Join(dir, "failures.log")
	write(t, rules, "groups: []\n")
	if err := syscall.Mkfifo(failures, 0o600); err != nil {
		t.Fatal(err)
	}
	prepared := func() {
		eventually(t, "it is prepared", func() bool { _, err := os.Stat(queries); return err == nil })
		if err := os.Remove(queries); err != nil {
			t.Fatal(err)
		}
	}
	goOn := func() {
		f, err := os.Open(failures)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(below, "tocsin.yml"), fmt.Sprintf(file, rules, "new",
		", scrape_failure_log_file: "+failures, ", global: {query_log_file: "+queries+"}"))
	prepared()
	goOn()
	prepared()
	write(t, rules, "garbage\n")
	// From now on, who opens it to write does not wait for a reader.
	reader, err := os.OpenFile(failures, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := reader.Close(); err != nil {
			t.Error(err)
		}
	}()
	eventually(t, "the other one is refused", func() bool { status(&st); return st.State == "refused" })
	if st.Hash != first.Hash || !strings.Contains(st.Problem, "apply the rules") || strings.Contains(st.Problem, "parts of both") {
		t.Errorf("the status says %+v", st)
	}
	for path, want := range map[string]string{"/api/v1/rules": `"query":"42"`, "/api/v1/status/config": "job_name: old"} {
		if _, body := p.get(path); !strings.Contains(body, want) {
			t.Errorf("GET %s is without %s: %s", path, want, body)
		}
	}
	eventually(t, "the old job alone", func() bool { _, body := p.get("/api/v1/scrape_pools"); return strings.Contains(body, `["old"]`) })
	_, m := p.get("/metrics")
	for _, want := range []string{"\ntocsin_config_source_refused 1\n", "\ntocsin_config_hash_info{hash=\"" + first.Hash + "\"} 1\n",
		"\ntocsin_cluster_config_differs{member=\"one\"} 1\n", "\ntocsin_config_reload_failures_total{phase=\"apply\"} 1\n"} {
		if !strings.Contains(m, want) {
			t.Errorf("the metrics do not say %q", want)
		}
	}

	write(t, filepath.Join(below, "tocsin.yml"), fmt.Sprintf(file, "rules.yml", "new", "", ""))
	eventually(t, "the corrected one", func() bool { status(&st); return st.State == "applied" && st.Hash != first.Hash })
	eventually(t, "the new job alone", func() bool { _, body := p.get("/api/v1/scrape_pools"); return strings.Contains(body, `["new"]`) })
}

func TestTheFirstTargetsAreThoseOfTheBucketInForce(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "second", "targets"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "second", "targets", "a.json"), `[{"targets": ["127.0.0.1:1"]}]`)
	file := "bucket: {type: FILESYSTEM, config: {directory: %q}}\nreplica: {name: one}\nprometheus: {scrape_configs: [%s]}\n"
	write(t, filepath.Join(dir, "tocsin.yml"), fmt.Sprintf(file, filepath.Join(dir, "first"), ""))
	p := start(t, dir)
	write(t, filepath.Join(dir, "tocsin.yml"), fmt.Sprintf(file, filepath.Join(dir, "second"),
		"{job_name: j, bucket_sd_configs: [{prefix: targets, refresh_interval: 1h}]}"))
	if code, body := p.post("/-/reload"); code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	eventually(t, "the target", func() bool {
		_, body := p.get("/api/v1/targets")
		return strings.Contains(body, "127.0.0.1:1")
	})
}

func TestNewRollsBack(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	if _, err := appliance.New(options(dir, io.Discard)); err == nil || !strings.Contains(err.Error(), "data") {
		t.Errorf("a second process on the data directory: %v", err)
	}
	p.stop()
	write(t, filepath.Join(dir, "tocsin.yml"), "nonsense: 1\n")
	if _, err := appliance.New(options(dir, io.Discard)); err == nil || !strings.Contains(err.Error(), "tocsin.yml:1") {
		t.Errorf("a configuration that is refused: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "tocsin.yml")); err != nil {
		t.Fatal(err)
	}
	start(t, dir)
}

// TestVersionsAreThoseOfTheModules holds the constants to go.mod: Prometheus's module version 0.3MM.P is its release
// 3.x.P, so only the pair that is written here can be checked.
func TestVersionsAreThoseOfTheModules(t *testing.T) {
	b, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range []string{
		"github.com/prometheus/prometheus v0.309.1=3.9.1=" + appliance.PrometheusVersion,
		"github.com/prometheus/alertmanager v0.34.2=0.34.2=" + appliance.AlertmanagerVersion,
	} {
		f := strings.Split(pair, "=")
		if !bytes.Contains(b, []byte(f[0]+"\n")) || f[1] != f[2] {
			t.Errorf("go.mod and %s have parted", pair)
		}
	}
}
