package query

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
)

func seconds(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }

// TestGrafana replays what Grafana's Prometheus data source asks, in the forms
// in which it asks.
func TestGrafana(t *testing.T) {
	s := serve(t, nil)
	now := time.Now()
	for i := range 10 {
		s.add(t, now.Add(time.Duration(i-10)*15*time.Second), float64(i), "__name__", "up", "instance", "a", "job", "node")
	}
	app := s.store.Appender(context.Background())
	lset := labels.FromStrings("__name__", "up", "instance", "a", "job", "node")
	if _, err := app.AppendExemplar(0, lset, exemplar.Exemplar{Labels: labels.FromStrings("trace_id", "t1"), Value: 1, Ts: now.Add(-time.Minute).UnixMilli(), HasTs: true}); err != nil {
		t.Fatal(err)
	}
	if err := app.Commit(); err != nil {
		t.Fatal(err)
	}
	start, end := seconds(now.Add(-time.Hour)), seconds(now)
	window := url.Values{"start": {start}, "end": {end}}
	with := func(kv ...string) url.Values {
		v := url.Values{}
		for k, x := range window {
			v[k] = x
		}
		for i := 0; i+1 < len(kv); i += 2 {
			v.Add(kv[i], kv[i+1])
		}
		return v
	}
	const both = "both" // GET with a query string and POST with a form
	tests := []struct {
		name, method, path string
		params             url.Values
		want               []string
		lacks              string
	}{
		{name: "save and test", method: both, path: "query", params: url.Values{"query": {"1+1"}, "time": {end}}, want: []string{`"resultType":"scalar"`, `"2"`}},
		{name: "build info has no features: that would be Mimir", method: "GET", path: "status/buildinfo", want: []string{`"version":"3.9.1"`}, lacks: "features"},
		{name: "heuristic of old versions", method: both, path: "query", params: url.Values{"query": {"prometheus_build_info"}}, want: []string{`"result":[]`}},
		{name: "flags", method: "GET", path: "status/flags", want: []string{"web.listen-address"}},
		{name: "panel", method: both, path: "query_range", params: with("query", "up", "step", "15"), want: []string{`"resultType":"matrix"`, `"instance":"a"`}},
		{name: "panel with a timeout and own parameters", method: both, path: "query_range", params: with("query", "up", "step", "15s", "timeout", "30s", "max_source_resolution", "5m", "dedup", "true"), want: []string{`"resultType":"matrix"`}},
		{name: "statistics", method: both, path: "query", params: url.Values{"query": {"up"}, "stats": {"all"}}, want: []string{`"stats"`}},
		{name: "warnings pass through", method: both, path: "query", params: url.Values{"query": {`rate(up[1m])`}}, want: []string{`"infos":[`}},
		{name: "exemplars, the probe at start", method: both, path: "query_exemplars", params: with("query", "test"), want: []string{`"status":"success"`}},
		{name: "exemplars", method: both, path: "query_exemplars", params: with("query", "up"), want: []string{`"trace_id":"t1"`}},
		{name: "metric names", method: "GET", path: "label/__name__/values", params: window, want: []string{`"up"`}},
		{name: "label values", method: "GET", path: "label/job/values", params: with("match[]", "up", "limit", "40000"), want: []string{`"node"`}},
		{name: "an escaped label", method: "GET", path: "label/U__a_2e_b/values", params: window, want: []string{`"status":"success"`}},
		{name: "labels", method: both, path: "labels", params: with("match[]", "up"), want: []string{`"instance"`}},
		{name: "series", method: both, path: "series", params: with("match[]", "up", "limit", "40000"), want: []string{`"instance":"a"`}},
		{name: "metadata", method: "GET", path: "metadata", params: url.Values{"limit_per_metric": {"1"}}, want: []string{`"data":{}`}},
		{name: "rules", method: "GET", path: "rules", want: []string{`"groups":[]`}},
		{name: "rules of the alert list", method: "GET", path: "rules", params: url.Values{"file[]": {"f"}, "rule_group[]": {"g"}, "rule_name[]": {"r"}, "exclude_alerts": {"true"}, "group_limit": {"10"}}, want: []string{`"groups":[]`}},
		{name: "rules, unbracketed", method: "GET", path: "rules", params: url.Values{"file": {"f"}, "rule_group": {"g"}}, want: []string{`"groups":[]`}},
		{name: "alerts", method: "GET", path: "alerts", want: []string{`"alerts":[]`}},
		{name: "targets", method: "GET", path: "targets", params: url.Values{"state": {"active"}}, want: []string{`"activeTargets":[]`}},
		{name: "alertmanagers", method: "GET", path: "alertmanagers", want: []string{`"activeAlertmanagers":[]`}},
		{name: "notifications", method: "GET", path: "notifications", want: []string{`"status":"success"`}},
		{name: "Perses parses", method: both, path: "parse_query", params: url.Values{"query": {"up"}}, want: []string{`"vectorSelector"`}},
		{name: "format", method: both, path: "format_query", params: url.Values{"query": {"up+up"}}, want: []string{"up + up"}},
		{name: "features", method: "GET", path: "features", want: []string{`"status":"success"`}},
		{name: "status config", method: "GET", path: "status/config", want: []string{"external_labels"}},
		{name: "status runtimeinfo", method: "GET", path: "status/runtimeinfo", want: []string{"goroutineCount"}},
		{name: "status tsdb", method: "GET", path: "status/tsdb", want: []string{`"numSeries":1`}},
		{name: "status tsdb blocks", method: "GET", path: "status/tsdb/blocks", want: []string{`"blocks"`}},
		{name: "status walreplay", method: "GET", path: "status/walreplay", want: []string{`"current"`}},
		{name: "scrape pools", method: "GET", path: "scrape_pools", want: []string{`"scrapePools":[]`}},
		{name: "targets metadata", method: "GET", path: "targets/metadata", want: []string{`"status":"success"`}},
	}
	for _, tt := range tests {
		methods := []string{tt.method}
		if tt.method == both {
			methods = []string{"GET", "POST"}
		}
		for _, method := range methods {
			t.Run(tt.name+" "+method, func(t *testing.T) {
				var r reply
				if method == "POST" {
					r = s.do(t, method, "/api/v1/"+tt.path, strings.NewReader(tt.params.Encode()), "Content-Type", formType)
				} else {
					r = s.do(t, method, "/api/v1/"+tt.path+"?"+tt.params.Encode(), nil)
				}
				if r.code != 200 || r.header.Get("Content-Type") != "application/json" {
					t.Fatalf("%d %s %s", r.code, r.header.Get("Content-Type"), r.body)
				}
				if !json.Valid([]byte(r.body)) {
					t.Errorf("not JSON: %s", r.body)
				}
				for _, want := range tt.want {
					if !strings.Contains(r.body, want) {
						t.Errorf("%s lacks %s", r.body, want)
					}
				}
				if tt.lacks != "" && strings.Contains(r.body, tt.lacks) {
					t.Errorf("%s has %s", r.body, tt.lacks)
				}
			})
		}
	}
	t.Run("CORS", func(t *testing.T) {
		r := s.do(t, "OPTIONS", "/api/v1/query", nil, "Origin", "http://other.example")
		if r.code != 204 || r.header.Get("Access-Control-Allow-Origin") == "" {
			t.Errorf("%d %v", r.code, r.header)
		}
	})
	t.Run("multipart form", func(t *testing.T) {
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		if err := w.WriteField("query", "1+1"); err != nil {
			t.Fatal(err)
		}
		w.Close()
		r := s.do(t, "POST", "/api/v1/query", &b, "Content-Type", w.FormDataContentType())
		if r.code != 200 || !strings.Contains(r.body, `"2"`) {
			t.Errorf("%d %s", r.code, r.body)
		}
	})
}

func TestMalformed(t *testing.T) {
	s := serve(t, func(o *Options) { o.EnableRemoteWrite, o.EnableOTLP = true, true })
	q := url.QueryEscape
	tests := []struct {
		method, path, body, ctype string
		code                      int
		want                      string
	}{
		{"GET", "/api/v1/", "", "", 404, "not_found"},
		{"GET", "/api/v1/nothing", "", "", 404, "path /api/v1/nothing does not exist"},
		{"GET", "/api/v1/query/", "", "", 404, "path /api/v1/query/ does not exist"},
		{"GET", "/api/v1/QUERY", "", "", 404, "not_found"},
		{"GET", "/api/v1/status/", "", "", 404, "not_found"},
		{"GET", "/api/v1/label//values", "", "", 400, "invalid label name"},
		{"GET", "/api/v1/label/a", "", "", 404, "not_found"},
		{"POST", "/api/v1/nothing", "", "", 404, "not_found"},
		{"HEAD", "/api/v1/nothing", "", "", 404, ""},
		{"PATCH", "/api/v1/query", "", "", 405, "method not allowed"},
		{"POST", "/api/v1/rules", "", "", 405, "allowed: "},
		{"GET", "/api/v1/write", "", "", 405, "allowed: "},
		{"GET", "/api/v1/query", "", "", 400, "bad_data"},
		{"GET", "/api/v1/query?query=" + q("sum("), "", "", 400, "parse error"},
		{"GET", "/api/v1/query?query=%zz", "", "", 400, "invalid URL escape"},
		{"GET", "/api/v1/query?query=1&time=%zz", "", "", 400, "invalid URL escape"},
		{"GET", "/api/v1/query?query=a;b", "", "", 400, "semicolon"},
		{"GET", "/api/v1/query?query=1&time=yesterday", "", "", 400, "time"},
		{"GET", "/api/v1/query?query=1&timeout=x", "", "", 400, "timeout"},
		{"GET", "/api/v1/query?query=1&limit=-1", "", "", 400, "limit"},
		{"GET", "/api/v1/query?query=1&lookback_delta=x", "", "", 400, "lookback"},
		{"GET", "/api/v1/query?query=" + q("\xff"), "", "", 400, "bad_data"},
		{"GET", "/api/v1/query?query=" + q("foo("), "", "", 400, "bad_data"},
		{"POST", "/api/v1/query", "query=%zz", formType, 400, "invalid URL escape"},
		{"POST", "/api/v1/query", "no form", "multipart/form-data", 400, "multipart"},
		{"POST", "/api/v1/query", "no form", "multipart/form-data; boundary=x", 400, "multipart"},
		{"POST", "/api/v1/query", `{"query":"up"}`, "application/json", 400, "bad_data"},
		{"GET", "/api/v1/query_range?query=up", "", "", 400, "start"},
		{"GET", "/api/v1/query_range?query=up&start=1&end=0&step=1", "", "", 400, "end"},
		{"GET", "/api/v1/query_range?query=up&start=0&end=1&step=0", "", "", 400, "step"},
		{"GET", "/api/v1/query_range?query=up&start=0&end=1&step=-1", "", "", 400, "step"},
		{"GET", "/api/v1/query_range?query=up&start=0&end=1000000&step=1", "", "", 400, "11,000"},
		{"GET", "/api/v1/query_range?query=up&start=NaN&end=1&step=1", "", "", 400, ""},
		{"GET", "/api/v1/query_exemplars?query=" + q("{"), "", "", 400, "bad_data"},
		{"GET", "/api/v1/query_exemplars?query=up&start=2&end=1", "", "", 400, "bad_data"},
		{"GET", "/api/v1/format_query?query=" + q(")"), "", "", 400, "bad_data"},
		{"GET", "/api/v1/parse_query?query=" + q("up{"), "", "", 400, "bad_data"},
		{"GET", "/api/v1/series", "", "", 400, "no match[]"},
		{"GET", "/api/v1/series?match[]=" + q("{}"), "", "", 400, "match[]"},
		{"GET", "/api/v1/series?match[]=up&start=x", "", "", 400, "start"},
		{"GET", "/api/v1/labels?match[]=" + q("{"), "", "", 400, "bad_data"},
		{"GET", "/api/v1/labels?limit=x", "", "", 400, "limit"},
		{"GET", "/api/v1/label/%ff/values", "", "", 400, "invalid label name"},
		{"GET", "/api/v1/metadata?limit=x", "", "", 400, "limit"},
		{"GET", "/api/v1/rules?type=x", "", "", 400, "type"},
		{"GET", "/api/v1/rules?group_limit=x", "", "", 400, "bad_data"},
		{"GET", "/api/v1/targets/metadata?match_target=" + q("{"), "", "", 400, "bad_data"},
		{"GET", "/api/v1/targets/relabel_steps", "", "", 400, "scrapePool"},
		{"GET", "/api/v1/targets/relabel_steps?scrapePool=x&labels={}", "", "", 400, "x"},
		{"GET", "/api/v1/status/tsdb?limit=0", "", "", 400, "limit"},
		{"POST", "/api/v1/write", "", "", 400, "snappy"},
		{"POST", "/api/v1/write", "not snappy at all", "application/x-protobuf", 400, "corrupt"},
		{"POST", "/api/v1/write", "\x00", "text/plain", 400, ""},
		{"POST", "/api/v1/read", "", "", 400, "snappy"},
		{"POST", "/api/v1/read", "\x05hello", "", 400, "snappy"},
		{"POST", "/api/v1/otlp/v1/metrics", "x", "", 400, "content type"},
		{"POST", "/api/v1/otlp/v1/metrics", "{", "application/json", 400, ""},
		{"POST", "/api/v1/otlp/v1/metrics", "\xff\xff", "application/x-protobuf", 400, ""},
	}
	for _, tt := range tests {
		t.Run(tt.method+" "+tt.path+" "+tt.body, func(t *testing.T) {
			r := s.do(t, tt.method, tt.path, strings.NewReader(tt.body), "Content-Type", tt.ctype)
			if r.code/100 != 4 || tt.code/100 != 4 || (r.code != tt.code && tt.body != "\x00") {
				t.Errorf("code %d, want %d: %.300s", r.code, tt.code, r.body)
			}
			if tt.method == "HEAD" {
				return
			}
			r.isErrorJSON(t)
			if !strings.Contains(r.body, tt.want) {
				t.Errorf("%s lacks %q", r.body, tt.want)
			}
		})
	}
}

func TestReceiversOff(t *testing.T) {
	s := serve(t, nil)
	for path, want := range map[string]string{
		"/api/v1/write":           "--web.enable-remote-write-receiver",
		"/api/v1/otlp/v1/metrics": "--web.enable-otlp-receiver",
	} {
		r := s.do(t, "POST", path, bytes.NewReader([]byte{0}))
		if r.code != 404 || !strings.Contains(r.body, want) {
			t.Errorf("%s: %d %s", path, r.code, r.body)
		}
		r.isErrorJSON(t)
	}
}

func TestAdmin(t *testing.T) {
	paths := []string{"delete_series?match[]=up", "clean_tombstones", "snapshot"}
	t.Run("off", func(t *testing.T) {
		s := serve(t, nil)
		for _, p := range paths {
			r := s.do(t, "POST", "/api/v1/admin/tsdb/"+p, nil)
			// The code is upstream's.
			if r.code != 500 || !strings.Contains(r.body, "admin APIs disabled") {
				t.Errorf("%s: %d %s", p, r.code, r.body)
			}
			r.isErrorJSON(t)
		}
	})
	t.Run("on", func(t *testing.T) {
		s := serve(t, func(o *Options) { o.EnableAdmin = true })
		s.add(t, time.Now(), 1, "__name__", "up")
		for _, p := range paths {
			if r := s.do(t, "PUT", "/api/v1/admin/tsdb/"+p, nil); r.code/100 != 2 {
				t.Errorf("%s: %d %s", p, r.code, r.body)
			}
		}
		for _, p := range []string{"delete_series", "delete_series?match[]={", "delete_series?match[]=up&start=x", "snapshot?skip_head=x"} {
			r := s.do(t, "POST", "/api/v1/admin/tsdb/"+p, nil)
			if r.code != 400 {
				t.Errorf("%s: %d %s", p, r.code, r.body)
			}
			r.isErrorJSON(t)
		}
		if r := s.do(t, http.MethodGet, "/api/v1/query?query=up", nil); !strings.Contains(r.body, `"result":[]`) {
			t.Errorf("deleted series still answers: %s", r.body)
		}
	})
}

func TestLiveNotifications(t *testing.T) {
	s := serve(t, func(o *Options) { o.MaxSubscribers = 1 })
	s.Notifications().AddNotification("the reload was refused")
	live := s.live(t)
	buf := make([]byte, 4096)
	n, err := io.ReadAtLeast(live, buf, 10)
	if err != nil || !strings.Contains(string(buf[:n]), "the reload was refused") {
		t.Errorf("%q %v", buf[:n], err)
	}
	if r := s.do(t, http.MethodGet, "/api/v1/notifications/live", nil); r.code != 204 {
		t.Errorf("one subscriber too many: %d", r.code)
	}
}

// The route, not the path, is what requests are counted by.
func TestPatternIsHandedOut(t *testing.T) {
	s := serve(t, nil)
	for path, want := range map[string]string{
		"/api/v1/label/job/values": "/api/v1/label/:name/values",
		"/api/v1/query?query=1":    "/api/v1/query",
		"/api/v1/nothing/12":       "/api/v1",
		"/api/v1/query/":           "/api/v1",
	} {
		r, err := http.NewRequest(http.MethodGet, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.API().ServeHTTP(discard{http.Header{}}, r)
		if r.Pattern != want {
			t.Errorf("%s: pattern %q, want %q", path, r.Pattern, want)
		}
	}
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

// FuzzAPI asks every path for anything: no input is the server's fault.
func FuzzAPI(f *testing.F) {
	s := serve(f, nil)
	now := time.Now()
	s.add(f, now.Add(-time.Minute), 1, "__name__", "up", "job", "x")
	paths := []string{"query", "query_range", "query_exemplars", "format_query", "parse_query", "labels", "label/job/values", "series", "metadata", "rules", "targets", "targets/metadata", "targets/relabel_steps", "status/tsdb", "alerts"}
	for i := range paths {
		f.Add(uint(i), "up", "0", "1", "1", "1", "5s", "1", "{}")
		f.Add(uint(i), "rate(up[5m:1s])", "-1e18", "1e18", "1e18", "NaN", "-5s", "-9", "up")
		f.Add(uint(i), "up @ 1e300", "2026-01-01T00:00:00Z", "9223372036854775807", "292y", "Inf", "1y", "9999999999", `{__name__=~".*"}`)
	}
	f.Fuzz(func(t *testing.T, path uint, query, start, end, step, at, timeout, limit, match string) {
		v := url.Values{
			"query": {query}, "start": {start}, "end": {end}, "step": {step}, "time": {at}, "timeout": {timeout}, "limit": {limit},
			"match[]": {match}, "match_target": {match}, "metric": {query}, "scrapePool": {match}, "labels": {query}, "stats": {limit}, "lookback_delta": {timeout},
		}
		p := "/api/v1/" + paths[path%uint(len(paths))]
		r := s.do(t, http.MethodGet, p+"?"+v.Encode(), nil)
		// 503 is a query that was allowed less time than it took.
		if r.code >= 500 && r.code != 503 {
			t.Errorf("%s?%s: %d %s", p, v.Encode(), r.code, r.body)
		}
		if r.code >= 400 {
			r.isErrorJSON(t)
		}
	})
}
