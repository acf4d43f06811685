package query

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/promslog"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	v1 "github.com/prometheus/prometheus/web/api/v1"
	"go.uber.org/goleak"

	"github.com/tocsin-io/tocsin/appliance/config"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/baidubce/bce-sdk-go/util/log.NewLogger.func1"))
}

// testStore is a real database that counts the queriers it has handed out.
type testStore struct {
	*tsdb.DB
	stats *tsdb.DBStats
	open  atomic.Int64
	fail  atomic.Pointer[error] // answer of every Querier call
}

type counted struct {
	storage.Querier
	open *atomic.Int64
}

func (c counted) Close() error { c.open.Add(-1); return c.Querier.Close() }

type countedChunks struct {
	storage.ChunkQuerier
	open *atomic.Int64
}

func (c countedChunks) Close() error { c.open.Add(-1); return c.ChunkQuerier.Close() }

func (s *testStore) Querier(mint, maxt int64) (storage.Querier, error) {
	if err := s.fail.Load(); err != nil {
		return nil, *err
	}
	q, err := s.DB.Querier(mint, maxt)
	if err != nil {
		return nil, err
	}
	s.open.Add(1)
	return counted{q, &s.open}, nil
}

func (s *testStore) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	q, err := s.DB.ChunkQuerier(mint, maxt)
	if err != nil {
		return nil, err
	}
	s.open.Add(1)
	return countedChunks{q, &s.open}, nil
}

func (s *testStore) Local() storage.Queryable { return s }

func (s *testStore) Stats(label string, limit int) (*tsdb.Stats, error) {
	return s.Head().Stats(label, limit), nil
}

func (s *testStore) WALReplayStatus() (tsdb.WALReplayStatus, error) {
	return s.stats.Head.WALReplayStatus.GetWALReplayStatus(), nil
}

func (s *testStore) BlockMetas() ([]tsdb.BlockMeta, error) { return s.DB.BlockMetas(), nil }

// server is a Query behind a real listener.
type server struct {
	*Query
	store  *testStore
	dir    string
	base   string
	client *http.Client
}

func serve(t testing.TB, change func(*Options)) *server {
	t.Helper()
	dir := t.TempDir()
	stats := tsdb.NewDBStats()
	opts := tsdb.DefaultOptions()
	opts.EnableExemplarStorage = true
	opts.MaxExemplars = 100
	opts.OutOfOrderTimeWindow = 24 * 3600 * 1000
	db, err := tsdb.Open(dir, promslog.NewNopLogger(), nil, opts, stats)
	if err != nil {
		t.Fatal(err)
	}
	store := &testStore{DB: db, stats: stats}
	t.Cleanup(func() {
		if n := store.open.Load(); n != 0 {
			t.Errorf("%d queriers were left open", n)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})

	reg := prometheus.NewRegistry()
	cfg, err := promconfig.Load("global: {external_labels: {region: north, job: unused}}\n", promslog.NewNopLogger())
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Registerer:    reg,
		Gatherer:      reg,
		Store:         store,
		Dir:           dir,
		Config:        func() promconfig.Config { return *cfg },
		Flags:         map[string]string{"web.listen-address": "127.0.0.1:0"},
		ListenAddress: "127.0.0.1:0",
		ExternalURL:   &url.URL{Scheme: "http", Host: "m.example"},
		Version:       v1.PrometheusVersion{Version: "3.9.1"},
	}
	if change != nil {
		change(&o)
	}
	q, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// Not a ServeMux: that would answer some odd paths itself.
	hs := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/federate" {
			q.Federate().ServeHTTP(w, r)
			return
		}
		q.API().ServeHTTP(w, r)
	})}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = hs.Serve(l) }()
	tr := &http.Transport{DisableCompression: true}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		_ = hs.Close()
		<-ended
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
	return &server{q, store, dir, "http://" + l.Addr().String(), &http.Client{
		Transport:     tr,
		Timeout:       time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// add stores one float.
func (s *server) add(t testing.TB, at time.Time, v float64, lset ...string) {
	t.Helper()
	app := s.store.Appender(context.Background())
	if _, err := app.Append(0, labels.FromStrings(lset...), at.UnixMilli(), v); err != nil {
		t.Fatal(err)
	}
	if err := app.Commit(); err != nil {
		t.Fatal(err)
	}
}

type reply struct {
	code   int
	header http.Header
	body   string
}

// form marks a body as what browsers and Grafana send.
const formType = "application/x-www-form-urlencoded"

func (s *server) do(t testing.TB, method, path string, body io.Reader, header ...string) reply {
	t.Helper()
	r, err := s.try(method, path, body, header...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// live listens to the notifications until the end of the test.
func (s *server) live(t *testing.T) io.Reader {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.base+"/api/v1/notifications/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() }) // The test's context has ended it.
	return resp.Body
}

func (s *server) try(method, path string, body io.Reader, header ...string) (reply, error) {
	req, err := http.NewRequest(method, s.base+path, body)
	if err != nil {
		return reply{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(b)}, err
}

// isErrorJSON checks the form that every error of the API has.
func (r reply) isErrorJSON(t testing.TB) {
	t.Helper()
	var v struct{ Status, ErrorType, Error string }
	if err := json.Unmarshal([]byte(r.body), &v); err != nil {
		t.Errorf("code %d, not JSON: %v: %.200q", r.code, err, r.body)
		return
	}
	if v.Status != "error" || v.ErrorType == "" || v.Error == "" || r.header.Get("Content-Type") != "application/json" {
		t.Errorf("code %d, not the error JSON: %.200s (%s)", r.code, r.body, r.header.Get("Content-Type"))
	}
}

func TestNewRefuses(t *testing.T) {
	reg := prometheus.NewRegistry()
	good := Options{
		Registerer: reg, Gatherer: reg, Dir: t.TempDir(), Store: &testStore{},
		Config: func() promconfig.Config { return promconfig.DefaultConfig },
	}
	tests := []struct {
		name   string
		change func(*Options)
		want   string
	}{
		{"no store", func(o *Options) { o.Store = nil }, "Store"},
		{"no config", func(o *Options) { o.Config = nil }, "Config"},
		{"no registerer", func(o *Options) { o.Registerer = nil }, "Registerer"},
		{"no directory", func(o *Options) { o.Dir = "" }, "Dir"},
		{"concurrency", func(o *Options) { o.MaxConcurrency = -1 }, "-1"},
		{"samples", func(o *Options) { o.MaxSamples = -1 }, "-1"},
		{"timeout", func(o *Options) { o.Timeout = -time.Second }, "-1s"},
		{"deltas", func(o *Options) { o.OTLPDeltaToCumulative, o.OTLPNativeDelta = true, true }, "not both"},
		{"unusable directory", func(o *Options) { o.Dir = "/dev/null/x" }, "/dev/null/x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := good
			tt.change(&o)
			if _, err := New(o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v lacks %q", err, tt.want)
			}
		})
	}
}

func withGlobal(t *testing.T, yaml string) *config.Config {
	t.Helper()
	cfg, err := promconfig.Load(yaml, promslog.NewNopLogger())
	if err != nil {
		t.Fatal(err)
	}
	return &config.Config{Prometheus: cfg}
}

func TestQueryLogFollowsTheConfiguration(t *testing.T) {
	s := serve(t, nil)
	a, b := filepath.Join(s.dir, "a.log"), filepath.Join(s.dir, "b.log")
	ask := func(expr string) {
		if r := s.do(t, "GET", "/api/v1/query?query="+url.QueryEscape(expr), nil); r.code != 200 {
			t.Fatalf("query: %d %s", r.code, r.body)
		}
	}
	read := func(path string) string {
		raw, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return string(raw)
	}
	prepare := func(path string) func() error {
		apply, err := s.Prepare(withGlobal(t, "global: {query_log_file: '"+path+"'}\n"))
		if err != nil {
			t.Fatal(err)
		}
		return apply
	}

	apply := prepare(a)
	ask("1+1")
	if read(a) != "" {
		t.Error("prepare alone switched the log")
	}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	ask("2+2")
	if got := read(a); !strings.Contains(got, "2+2") || !strings.Contains(got, "/api/v1/query") {
		t.Errorf("log: %q", got)
	}
	// Refused: nothing changes.
	if _, err := s.Prepare(withGlobal(t, "global: {query_log_file: /dev/null/x}\n")); err == nil || !strings.Contains(err.Error(), "query_log_file /dev/null/x") {
		t.Errorf("error %v", err)
	}
	// Prepared, but another component refused: nothing changes either.
	dropped := prepare(b)
	ask("3+3")
	apply = prepare(b)
	if err := dropped(); err == nil {
		t.Error("a configuration that was overtaken could be applied")
	}
	ask("4+4")
	if got := read(a); !strings.Contains(got, "3+3") || !strings.Contains(got, "4+4") {
		t.Errorf("log: %q", got)
	}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	ask("5+5")
	if got := read(b); !strings.Contains(got, "5+5") || strings.Contains(read(a), "5+5") {
		t.Errorf("log: %q", got)
	}
	// Off again.
	apply, err := s.Prepare(withGlobal(t, "global: {}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	ask("6+6")
	if strings.Contains(read(b), "6+6") {
		t.Error("the log goes on after it was switched off")
	}
}

func TestSubqueryStepIsTheEvaluationInterval(t *testing.T) {
	s := serve(t, nil)
	apply, err := s.Prepare(withGlobal(t, "global: {evaluation_interval: 10s}\n"))
	if err != nil {
		t.Fatal(err)
	}
	count := func() string {
		r := s.do(t, "GET", "/api/v1/query?time=600&query="+url.QueryEscape("count_over_time(vector(1)[5m:])"), nil)
		return r.body
	}
	if got := count(); !strings.Contains(got, `"5"`) {
		t.Errorf("before: %s", got)
	}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	if got := count(); !strings.Contains(got, `"30"`) {
		t.Errorf("after: %s", got)
	}
}

func TestNotReady(t *testing.T) {
	ready := make(chan struct{})
	s := serve(t, func(o *Options) { o.Ready = ready })
	for _, p := range []string{"/api/v1/query?query=1", "/api/v1/status/config", "/federate?match[]=up"} {
		r := s.do(t, "GET", p, nil)
		if r.code != 503 || r.body != "Service Unavailable" || r.header.Get("X-Prometheus-Stopping") != "false" {
			t.Errorf("%s: %d %q %v", p, r.code, r.body, r.header)
		}
	}
	if r := s.do(t, "GET", "/api/v1/status/walreplay", nil); r.code != 200 {
		t.Errorf("walreplay: %d %s", r.code, r.body)
	}
	if r := s.do(t, "GET", "/api/v1/notifications", nil); !strings.Contains(r.body, "write-ahead log") {
		t.Errorf("notifications: %s", r.body)
	}
	close(ready)
	if r := s.do(t, "GET", "/api/v1/query?query=1", nil); r.code != 200 {
		t.Errorf("ready: %d %s", r.code, r.body)
	}
	if r := s.do(t, "GET", "/api/v1/notifications", nil); strings.Contains(r.body, "write-ahead log") {
		t.Errorf("notifications: %s", r.body)
	}
}

// Who only listens is told that the start is over too: nobody else may ask anything.
func TestStartIsOverForWhoListens(t *testing.T) {
	ready := make(chan struct{})
	s := serve(t, func(o *Options) { o.Ready, o.MaxSubscribers = ready, 1 })
	lines := bufio.NewScanner(s.live(t))
	for _, want := range []string{`"active":true`, `"active":false`} {
		for lines.Scan() && lines.Text() == "" {
		}
		if got := lines.Text(); !strings.Contains(got, "write-ahead log") || !strings.Contains(got, want) {
			t.Fatalf("%q, not %s: %v", got, want, lines.Err())
		}
		if want == `"active":true` {
			close(ready)
		}
	}
}

func TestCloseWaitsForRequests(t *testing.T) {
	f := newInflight()
	if !f.enter() {
		t.Fatal("closed from the start")
	}
	if f.close(time.Millisecond) {
		t.Error("close did not wait")
	}
	if f.enter() {
		t.Error("a request entered after close")
	}
	f.leave()
	if !f.close(time.Second) {
		t.Error("close does not see that all left")
	}
}

func TestEngineAnswersWithoutHTTP(t *testing.T) {
	s := serve(t, nil)
	q, err := s.Engine().NewInstantQuery(t.Context(), s.store, nil, "1+1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if res := q.Exec(t.Context()); res.Err != nil || res.Value.String() == "" {
		t.Errorf("result %v, error %v", res.Value, res.Err)
	}
}

// Oldest is that of all: nothing is in an archive.
func (*testStore) Oldest() (int64, error) { return math.MinInt64, nil }
