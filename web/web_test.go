package web

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// door is a running Web.
type door struct {
	*Web
	base, am string // http://address
	reg      *prometheus.Registry
	client   *http.Client
	stop     func() error // ends Run and returns what it returned
}

// echo stands for a handler of another component: it says what path it saw.
func echo(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Handler", name)
		w.Header().Set("X-Path", r.URL.Path)
		if strings.HasSuffix(r.URL.Path, "/missing") {
			http.NotFound(w, r)
			return
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
}

func open(t *testing.T, o Options) *door {
	t.Helper()
	reg := prometheus.NewRegistry()
	o.Registerer, o.Gatherer = reg, reg
	if o.Listen == nil {
		o.Listen = []string{"127.0.0.1:0"}
	}
	if o.API == nil {
		o.API = echo("api")
	}
	if o.Federate == nil {
		o.Federate = echo("federate")
	}
	if o.Alertmanager == nil {
		o.Alertmanager = echo("alertmanager")
	}
	if o.HostMetrics == nil {
		o.HostMetrics = echo("node")
	}
	if o.Cluster == nil {
		o.Cluster = echo("cluster")
	}
	if o.UI == nil {
		// Whether it was built on this machine must not matter.
		o.UI = fstest.MapFS{}
	}
	w, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	tr := &http.Transport{}
	d := &door{
		Web: w, reg: reg,
		base: "http://" + w.Addresses()["web"][0],
		client: &http.Client{
			Transport:     tr,
			Timeout:       30 * time.Second,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	if am := w.Addresses()["alertmanager"]; am != nil {
		d.am = "http://" + am[0]
	}
	var done bool
	var result error
	d.stop = func() error {
		if !done {
			done = true
			cancel()
			result = <-ended
			tr.CloseIdleConnections()
		}
		return result
	}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return d
}

type reply struct {
	code   int
	header http.Header
	body   string
}

func (d *door) do(t *testing.T, method, target string, body io.Reader, header ...string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := d.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(b)}
}

func TestPaths(t *testing.T) {
	d := open(t, Options{
		AlertmanagerListen: "127.0.0.1:0",
		Reload:             func(context.Context) error { return nil },
		Version:            Version{Version: "1.2.3"},
	})
	const jsonErr = `"status":"error"`
	tests := []struct {
		method, path string
		am           bool // on the Alertmanager's own listener
		code         int
		handler      string // who answered
		seen         string // the path it saw
		body         string // part of the body
	}{
		{method: "GET", path: "/", code: 200, body: "<!DOCTYPE html>"},
		{method: "HEAD", path: "/", code: 200},
		{method: "POST", path: "/", code: 405, body: jsonErr},
		{method: "GET", path: "/assets/status.css", code: 200, body: "color-scheme"},
		{method: "GET", path: "/version", code: 200, body: `"version":"1.2.3"`},
		{method: "GET", path: "/metrics", code: 200, body: "prometheus_ready 1"},
		{method: "DELETE", path: "/metrics", code: 405, body: jsonErr},
		{method: "GET", path: "/metrics/node", code: 200, handler: "node"},
		{method: "GET", path: "/federate?match[]=up", code: 200, handler: "federate", seen: "/federate"},
		{method: "POST", path: "/federate", code: 405, body: jsonErr},
		{method: "GET", path: "/api/v1/query?query=1", code: 200, handler: "api", seen: "/api/v1/query"},
		{method: "POST", path: "/api/v1/query", code: 200, handler: "api"},
		{method: "OPTIONS", path: "/api/v1/query", code: 200, handler: "api"},
		{method: "GET", path: "/api/v1/notifications/live", code: 200, handler: "api", seen: "/api/v1/notifications/live"},
		{method: "GET", path: "/api/v1/label/a%2Fb/values", code: 200, handler: "api", seen: "/api/v1/label/a/b/values"},
		{method: "GET", path: "/api/v2/status", code: 404, body: jsonErr},
		{method: "GET", path: "/api/prom/rules", code: 404, body: `"errorType":"not_found"`},
		{method: "GET", path: "/prometheus/config/v1/rules", code: 404, body: jsonErr},
		{method: "GET", path: "/nothing", code: 404, body: jsonErr},
		{method: "GET", path: "//", code: 404, body: jsonErr},
		{method: "GET", path: "/api/v1/label//values", code: 404, body: jsonErr},
		{method: "GET", path: "/api/v1/../../etc", code: 404, body: jsonErr},
		{method: "OPTIONS", path: "/metrics", code: 405, body: jsonErr},
		{method: "GET", path: "/graph?g0.expr=up", code: 302},
		{method: "GET", path: "/query", code: 200, body: "built without the browser UI"},
		{method: "GET", path: "/-/healthy", code: 200, body: "Healthy"},
		{method: "HEAD", path: "/-/healthy", code: 200},
		{method: "POST", path: "/-/healthy", code: 405, body: jsonErr},
		{method: "GET", path: "/-/ready", code: 200, body: "Ready"},
		{method: "HEAD", path: "/-/ready", code: 200},
		{method: "GET", path: "/-/reload", code: 405, body: "Only POST or PUT"},
		{method: "POST", path: "/-/reload", code: 200},
		{method: "PUT", path: "/-/reload", code: 200},
		{method: "POST", path: "/-/quit", code: 403, body: "Lifecycle API is not enabled."},
		{method: "GET", path: "/-/quit", code: 405},
		{method: "GET", path: "/debug/pprof", code: 302},
		{method: "GET", path: "/debug/pprof/", code: 200, body: "goroutine"},
		{method: "GET", path: "/debug/pprof/heap", code: 200},
		{method: "GET", path: "/debug/pprof/cmdline", code: 200},
		{method: "GET", path: "/debug/pprof/nothing", code: 404},
		{method: "GET", path: "/alertmanager", code: 302},
		{method: "GET", path: "/alertmanager/", code: 302},
		// What Grafana asks to tell a Prometheus Alertmanager from Mimir's.
		{method: "GET", path: "/alertmanager/api/v2/status", code: 200, handler: "alertmanager", seen: "/api/v2/status"},
		{method: "GET", path: "/alertmanager/alertmanager/api/v2/status", code: 404, body: `"code":404`},
		{method: "GET", path: "/alertmanager/api/v1/status/buildinfo", code: 404, body: `"message"`},
		{method: "POST", path: "/alertmanager/api/v2/silences", code: 200, handler: "alertmanager"},
		{method: "DELETE", path: "/alertmanager/api/v2/silence/x", code: 200, handler: "alertmanager"},
		{method: "GET", path: "/alertmanager/-/ready", code: 200},
		{am: true, method: "GET", path: "/api/v2/status", code: 200, handler: "alertmanager", seen: "/api/v2/status"},
		{am: true, method: "GET", path: "/alertmanager/api/v2/status", code: 404, body: `"code":404`},
		{am: true, method: "GET", path: "/api/v1/query", code: 404},
		{am: true, method: "GET", path: "/", code: 200, body: "/api/v2/"},
		{am: true, method: "GET", path: "/metrics", code: 200, body: "prometheus_ready"},
		{am: true, method: "GET", path: "/-/healthy", code: 200},
		{am: true, method: "HEAD", path: "/-/ready", code: 200},
		{am: true, method: "POST", path: "/-/reload", code: 200},
		{am: true, method: "GET", path: "/-/reload", code: 405},
		{am: true, method: "POST", path: "/-/quit", code: 404},
		{am: true, method: "GET", path: "/debug/pprof/", code: 404},
	}
	for _, tt := range tests {
		base := d.base
		if tt.am {
			base = d.am
		}
		t.Run(fmt.Sprintf("%s %s %v", tt.method, tt.path, tt.am), func(t *testing.T) {
			r := d.do(t, tt.method, base+tt.path, nil)
			if r.code != tt.code {
				t.Errorf("code %d, want %d: %s", r.code, tt.code, r.body)
			}
			if got := r.header.Get("X-Handler"); got != tt.handler {
				t.Errorf("answered by %q, want %q", got, tt.handler)
			}
			if got := r.header.Get("X-Path"); tt.seen != "" && got != tt.seen {
				t.Errorf("handler saw path %q, want %q", got, tt.seen)
			}
			if !strings.Contains(r.body, tt.body) {
				t.Errorf("body %q lacks %q", r.body, tt.body)
			}
			if strings.Contains(tt.body, "status") && r.code >= 400 {
				var v map[string]any
				if err := json.Unmarshal([]byte(r.body), &v); err != nil || r.header.Get("Content-Type") != "application/json" {
					t.Errorf("not error JSON: %v, %s", err, r.header.Get("Content-Type"))
				}
			}
			if r.header.Get("X-Content-Type-Options") != "nosniff" {
				t.Error("no X-Content-Type-Options")
			}
		})
	}
}

// TestPrefix puts proxies in front, of the two kinds that there are.
func TestPrefix(t *testing.T) {
	proxy := func(t *testing.T, to string, strip string) string {
		u, err := url.Parse(to)
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		tr := &http.Transport{}
		p := &httputil.ReverseProxy{Transport: tr, Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			r.Out.URL.Path = strings.TrimPrefix(r.In.URL.Path, strip)
		}}
		s := &http.Server{Handler: p}
		ended := make(chan struct{})
		go func() { defer close(ended); _ = s.Serve(l) }()
		t.Cleanup(func() { _ = s.Close(); <-ended; tr.CloseIdleConnections() })
		return "http://" + l.Addr().String()
	}
	tests := []struct {
		name             string
		external, prefix string
		strip            string // what the proxy removes
		proxied          bool
		path             string // as the person asks
		code             int
		location         string // path of the redirect
		seen             string // by the API
	}{
		{name: "no prefix", path: "/api/v1/query", code: 200, seen: "/api/v1/query"},
		{name: "external path is the prefix", external: "http://x/prom/", path: "/prom/api/v1/query", code: 200, seen: "/api/v1/query"},
		{name: "root leads to the prefix", external: "http://x/prom", path: "/", code: 302, location: "/prom/"},
		{name: "slash is added", external: "http://x/prom", path: "/prom", code: 301, location: "/prom/"},
		{name: "page below the prefix", external: "http://x/prom", path: "/prom/", code: 200},
		{name: "outside the prefix", external: "http://x/prom", path: "/api/v1/query", code: 404},
		{name: "outside the prefix, metrics", external: "http://x/prom", path: "/metrics", code: 404},
		{name: "prefix without external URL", prefix: "p/q/", path: "/p/q/-/ready", code: 200},
		{name: "prefix given beside external", external: "http://x/prom", prefix: "/", path: "/api/v1/query", code: 200, seen: "/api/v1/query"},
		{name: "pprof below the prefix", prefix: "/p", path: "/p/debug/pprof/heap", code: 200},
		{name: "alertmanager below the prefix", prefix: "/p", path: "/p/alertmanager/api/v2/status", code: 200},
		{name: "proxy keeps the path", external: "http://x/prom/", proxied: true, path: "/prom/api/v1/query", code: 200, seen: "/api/v1/query"},
		{name: "proxy keeps the path, page", external: "http://x/prom/", proxied: true, path: "/prom/assets/status.css", code: 200},
		{name: "proxy keeps the path, redirect", external: "http://x/prom/", proxied: true, path: "/prom/graph", code: 302, location: "/prom/"},
		{name: "proxy strips the path", external: "http://x/prom/", prefix: "/", strip: "/prom", proxied: true, path: "/prom/api/v1/query", code: 200, seen: "/api/v1/query"},
		{name: "proxy strips the path, page", external: "http://x/prom/", prefix: "/", strip: "/prom", proxied: true, path: "/prom/", code: 200},
		{name: "proxy strips the path, redirect", external: "http://x/prom/", prefix: "/", strip: "/prom", proxied: true, path: "/prom/graph", code: 302, location: "/prom/"},
		{name: "proxy strips the path, alertmanager", external: "http://x/prom/", prefix: "/", strip: "/prom", proxied: true, path: "/prom/alertmanager", code: 302, location: "/prom/#alertmanager"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := Options{RoutePrefix: tt.prefix}
			if tt.external != "" {
				u, err := url.Parse(tt.external)
				if err != nil {
					t.Fatal(err)
				}
				o.ExternalURL = u
			}
			d := open(t, o)
			base := d.base
			if tt.proxied {
				base = proxy(t, d.base, tt.strip)
			}
			r := d.do(t, "GET", base+tt.path, nil)
			if r.code != tt.code {
				t.Errorf("code %d, want %d: %s", r.code, tt.code, r.body)
			}
			if got := r.header.Get("Location"); got != tt.location {
				t.Errorf("location %q, want %q", got, tt.location)
			}
			if got := r.header.Get("X-Path"); tt.seen != "" && got != tt.seen {
				t.Errorf("the API saw %q, want %q", got, tt.seen)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	parse := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	addr := taken.Addr().String()
	tests := []struct {
		name string
		o    Options
		want []string
	}{
		{"taken", Options{Listen: []string{"127.0.0.1:0", addr}}, []string{"--web.listen-address", addr, "address already in use"}},
		{"taken for the alertmanager", Options{Listen: []string{"127.0.0.1:0"}, AlertmanagerListen: addr}, []string{"--alertmanager.listen-address", addr}},
		{"no port", Options{Listen: []string{"localhost"}}, []string{"--web.listen-address", "localhost", "missing port"}},
		{"bad port", Options{Listen: []string{"127.0.0.1:99999"}}, []string{"--web.listen-address", "99999"}},
		{"none", Options{}, []string{"--web.listen-address"}},
		{"prefix with braces", Options{Listen: []string{"127.0.0.1:0"}, RoutePrefix: "/{x}"}, []string{"--web.route-prefix", "{x}"}},
		{"prefix with dots", Options{Listen: []string{"127.0.0.1:0"}, RoutePrefix: "/a/../b"}, []string{"--web.route-prefix"}},
		{"external with a blank", Options{Listen: []string{"127.0.0.1:0"}, ExternalURL: parse("http://x/a%20b")}, []string{"--web.external-url"}},
		{"negative connections", Options{Listen: []string{"127.0.0.1:0"}, MaxConnections: -1}, []string{"--web.max-connections"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			tt.o.Registerer, tt.o.Gatherer = reg, reg
			w, err := New(tt.o)
			if err == nil {
				w.Close()
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
		})
	}
}

func TestSeveralListeners(t *testing.T) {
	d := open(t, Options{Listen: []string{"127.0.0.1:0", "127.0.0.1:0"}})
	for _, a := range d.Addresses()["web"] {
		if r := d.do(t, "GET", "http://"+a+"/-/ready", nil); r.code != 200 {
			t.Errorf("%s: code %d", a, r.code)
		}
	}
}

func TestCloseWithoutRun(t *testing.T) {
	reg := prometheus.NewRegistry()
	w, err := New(Options{Registerer: reg, Gatherer: reg, Listen: []string{"127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	addr := w.Addresses()["web"][0]
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("the address is not free: %v", err)
	}
	l.Close()
}

func TestReadiness(t *testing.T) {
	var ready atomic.Bool
	const sentence = "replaying the write-ahead log, segment 3 of 17"
	d := open(t, Options{Ready: func() (bool, string) { return ready.Load(), sentence }})
	r := d.do(t, "GET", d.base+"/-/ready", nil)
	if r.code != 503 || !strings.Contains(r.body, sentence) || r.header.Get("X-Prometheus-Stopping") != "false" {
		t.Errorf("not ready: %d %q %v", r.code, r.body, r.header)
	}
	if r := d.do(t, "GET", d.base+"/-/healthy", nil); r.code != 200 {
		t.Errorf("healthy while not ready: %d", r.code)
	}
	if r := d.do(t, "GET", d.base+"/metrics", nil); !strings.Contains(r.body, "prometheus_ready 0") {
		t.Error("prometheus_ready is not 0")
	}
	if r := d.do(t, "GET", d.base+"/", nil); !strings.Contains(r.body, sentence) || r.code != 200 {
		t.Errorf("the page does not say why: %d %s", r.code, r.body)
	}
	ready.Store(true)
	if r := d.do(t, "GET", d.base+"/-/ready", nil); r.code != 200 {
		t.Errorf("ready: %d", r.code)
	}
	d.Stop()
	for _, p := range []string{"/-/ready", "/api/v1/query", "/federate"} {
		r := d.do(t, "GET", d.base+p, nil)
		if r.code != 503 || r.header.Get("X-Prometheus-Stopping") != "true" {
			t.Errorf("%s while stopping: %d %v", p, r.code, r.header)
		}
	}
	if r := d.do(t, "GET", d.base+"/metrics", nil); r.code != 200 {
		t.Errorf("metrics while stopping: %d", r.code)
	}
}

func TestLifecycle(t *testing.T) {
	results := make(chan error, 1)
	quit := make(chan struct{}, 1)
	d := open(t, Options{
		Reload: func(context.Context) error { return <-results },
		Quit:   func() { quit <- struct{}{} },
	})
	fail := errors.New("tocsin.yml:3: federation[0].url: missing")
	results <- fail
	r := d.do(t, "POST", d.base+"/-/reload", nil)
	if r.code != 500 || !strings.Contains(r.body, fail.Error()) {
		t.Errorf("failing reload: %d %q", r.code, r.body)
	}
	results <- nil
	if r := d.do(t, "POST", d.base+"/-/reload", nil); r.code != 200 {
		t.Errorf("reload: %d", r.code)
	}
	if r := d.do(t, "POST", d.base+"/-/reload", nil, "Sec-Fetch-Site", "cross-site"); r.code != 403 {
		t.Errorf("reload by a page of another site: %d", r.code)
	}
	if r := d.do(t, "PUT", d.base+"/-/quit", nil); r.code != 200 || len(quit) != 1 {
		t.Errorf("quit: %d, called %d times", r.code, len(quit))
	}
}

func TestReloadOutlivesItsClient(t *testing.T) {
	started, gone, result := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	d := open(t, Options{Reload: func(ctx context.Context) error {
		close(started)
		<-gone
		result <- ctx.Err()
		return nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.base+"/-/reload", nil)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if resp, err := d.client.Do(req); err == nil {
			resp.Body.Close()
		}
	}()
	<-started
	cancel()
	<-ended
	close(gone)
	if err := <-result; err != nil {
		t.Errorf("the reload was cancelled with its client: %v", err)
	}
}

func TestRequestMetrics(t *testing.T) {
	d := open(t, Options{API: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Pattern = "/api/v1/label/:name/values"
		http.Error(w, "no", http.StatusTeapot)
	})})
	for i := range 50 {
		d.do(t, "GET", fmt.Sprintf("%s/api/v1/label/n%d/values", d.base, i), nil)
		d.do(t, "GET", fmt.Sprintf("%s/nothing/%d", d.base, i), nil)
	}
	d.do(t, "GET", d.base+"/alertmanager/api/v2/status", nil)
	d.do(t, "GET", d.base+"/-/ready", nil)
	r := d.do(t, "GET", d.base+"/metrics", nil)
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(strings.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, m := range families["prometheus_http_requests_total"].GetMetric() {
		var handler, code string
		for _, l := range m.GetLabel() {
			switch l.GetName() {
			case "handler":
				handler = l.GetValue()
			case "code":
				code = l.GetValue()
			}
		}
		got[handler+" "+code] = m.GetCounter().GetValue()
		if strings.Contains(handler, "alertmanager/api") || strings.Contains(handler, "nothing") {
			t.Errorf("unexpected handler %q", handler)
		}
	}
	if got["/api/v1/label/:name/values 418"] != 50 {
		t.Errorf("requests by route: %v", got)
	}
	if got["/-/ready 200"] != 1 {
		t.Errorf("requests of /-/ready: %v", got)
	}
	for _, name := range []string{"prometheus_http_request_duration_seconds", "prometheus_http_response_size_bytes", "promhttp_metric_handler_requests_total"} {
		if families[name] == nil {
			t.Errorf("no metric %s", name)
		}
	}
	if r := d.do(t, "GET", d.base+"/metrics", nil, "Accept", "application/openmetrics-text; version=1.0.0"); !strings.HasSuffix(r.body, "# EOF\n") {
		t.Error("no OpenMetrics")
	}
}

func TestAlertmanagerBodyIsBounded(t *testing.T) {
	d := open(t, Options{})
	endless := struct{ io.Reader }{io.LimitReader(zeros{}, maxAlertmanagerBytes+1)} // chunked: no length is declared
	if r := d.do(t, "POST", d.base+"/alertmanager/api/v2/alerts", endless); r.code != 400 {
		t.Errorf("chunked: %d %s", r.code, r.body)
	}
	// A declared length is refused before anything is read.
	c, err := net.Dial("tcp", strings.TrimPrefix(d.base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /alertmanager/api/v2/alerts HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", int64(1)<<40)
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.Contains(line, "413") {
		t.Errorf("declared: %q %v", line, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
