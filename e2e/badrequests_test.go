package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// badRequest is one malformed request. Any 4xx will do unless status says which.
type badRequest struct {
	method, path string
	contentType  string
	body         string
	status       int
}

const (
	jsonType = "application/json"
	// snappyA is the letter a, compressed.
	snappyA = "\x01\x00a"
)

// promRequests go below /api/v1.
func promRequests() []badRequest {
	deep := strings.Repeat("(", 200_000)
	long := strings.Repeat("a", 2<<20)
	requests := []badRequest{
		{path: "query_range?query=up&end=2&step=1"}, {path: "query_range?query=up&start=1&end=x&step=1"},
		{path: "query_range?query=up&start=2&end=1&step=1"}, {path: "query_range?query=up&start=1&end=2&step=0"},
		{path: "query_range?query=up&start=1&end=2&step=-1"}, {path: "query_range?query=up&start=1&end=2&step=x"},
		{path: "query_range?query=up&start=0&end=1000000&step=1"}, {path: "query_range?query=up%5B5m%5D&start=1&end=2&step=1"},
		{path: "query_range?query=up&start=1&end=2&step=1&timeout=x"}, {path: "query_range?query=up&start=NaN&end=2&step=1"},
		{path: "query?query=up&lookback_delta=x"}, {path: "query?query=up&timeout=x"}, {path: "query?query=up&limit=x"},
		{path: "query?query=up&time=1e400"}, {path: "query?query=up%FF"}, {path: "query?query=up%zz"},
		{method: "POST", path: "query", contentType: formType, body: "query=up%zz"},
		{method: "POST", path: "query", contentType: formType, body: "query=" + deep},
		{method: "POST", path: "query", contentType: formType, body: "query=" + long + "("},
		{method: "POST", path: "query", contentType: formType, body: "query=up&pad=" + strings.Repeat("a", 20<<20)},
		{method: "POST", path: "query", contentType: "multipart/form-data; boundary=x", body: "--x\r\nbroken"},
		{method: "DELETE", path: "query", status: 405}, {method: "PUT", path: "query_range", status: 405},
		{path: "label/%FF/values"}, {path: "label/job/values?start=x"}, {path: "label/job/values?match%5B%5D=%7B"},
		{path: "label/job/values?limit=x"}, {path: "labels?limit=x"}, {path: "series?match%5B%5D=up&limit=x"},
		{path: "labels?start=x"}, {path: "labels?match%5B%5D=up%7B"}, {path: "series?match%5B%5D=up&start=x"},
		{path: "series"}, {path: "series?match%5B%5D=%7B%7D"}, {path: "series?match%5B%5D=%7Ba%3D~%22.*%22%7D"}, {path: "series?match%5B%5D=%7Ba%3D~%22(%22%7D"},
		{path: "metadata?limit=x"}, {path: "metadata?limit_per_metric=x"}, {path: "targets/metadata?limit=x"},
		{path: "targets/metadata?match_target=up%7B"}, {path: "rules?type=x"}, {path: "rules?match%5B%5D=%7B"},
		{path: "rules?exclude_alerts=x"}, {path: "rules?group_limit=x"}, {path: "rules?group_limit=-1"},
		{path: "rules?group_limit=1&group_next_token=x"}, {path: "rules?group_next_token=x"},
		{path: "status/tsdb?limit=x"}, {path: "status/tsdb?limit=-1"}, {path: "status/nothing", status: 404}, {path: "nothing", status: 404},
		{path: "targets/relabel_steps?labels=x"},
		{path: "read", status: 405}, {method: "POST", path: "read", body: "garbage"},
		{method: "POST", path: "read", contentType: "application/x-protobuf", body: "\xff\xff\xff\xff\x0f"},
		{path: "write", status: 405}, {method: "POST", path: "write", contentType: "text/plain", body: snappyA, status: 415},
		{method: "POST", path: "write", contentType: "application/x-protobuf", body: "garbage"},
		{method: "POST", path: "write", contentType: "application/x-protobuf", body: "\xff\xff\xff\xff\x0f"},
		{method: "POST", path: "write", contentType: "application/x-protobuf;proto=io.prometheus.write.v2.Request", body: "garbage"},
		{method: "POST", path: "write", contentType: "application/x-protobuf;proto=nonsense", body: snappyA, status: 415},
		{method: "POST", path: "otlp/v1/metrics", contentType: "text/plain", body: "x"},
		{method: "POST", path: "otlp/v1/metrics", contentType: jsonType, body: "{"},
		{method: "POST", path: "otlp/v1/metrics", contentType: jsonType, body: `{"resourceMetrics":"x"}`},
		{method: "POST", path: "otlp/v1/metrics", contentType: "application/x-protobuf", body: "garbage"},
		{method: "GET", path: "admin/tsdb/snapshot", status: 405},
		{method: "POST", path: "admin/tsdb/delete_series"}, {method: "POST", path: "admin/tsdb/delete_series?match%5B%5D=%7B"},
		{method: "POST", path: "admin/tsdb/delete_series?match%5B%5D=up&start=x"}, {method: "POST", path: "admin/tsdb/snapshot?skip_head=x"},
	}
	for _, path := range []string{"query", "format_query", "parse_query", "query_exemplars"} {
		for _, expr := range []string{"", "up{", "sum(", "up[5m", "up offset", `{a=~"("}`, "1+", "nosuch(up)"} {
			v := url.Values{"query": {expr}, "start": {"1"}, "end": {"2"}}.Encode()
			requests = append(requests, badRequest{path: path + "?" + v},
				badRequest{method: "POST", path: path, contentType: formType, body: v})
		}
	}
	for _, span := range []string{"&start=x&end=2", "&start=2&end=1"} {
		requests = append(requests, badRequest{path: "query_exemplars?query=up" + span})
	}
	return requests
}

// amRequests go below /api/v2 of both places where the Alertmanager API is.
func amRequests() []badRequest {
	post := func(path, body string, status int) badRequest {
		return badRequest{method: "POST", path: path, contentType: jsonType, body: body, status: status}
	}
	now := time.Now().UTC()
	silence := func(matchers, from, to string) string {
		return fmt.Sprintf(`{"matchers":%s,"startsAt":%q,"endsAt":%q,"createdBy":"e2e","comment":"c"}`, matchers, from, to)
	}
	good := `[{"name":"a","value":"b","isRegex":false}]`
	past, later := now.Add(-time.Hour).Format(time.RFC3339), now.Add(time.Hour).Format(time.RFC3339)
	return []badRequest{
		{path: "alerts?filter=%7B"}, {path: "alerts?filter=a%3D~%22(%22"}, {path: "alerts?receiver=("}, {path: "alerts/groups?filter=%7B"}, {path: "alerts/groups?receiver=("},
		{path: "silences?filter=%7B"}, {path: "nothing", status: 404},
		{path: "silence/not-a-uuid"}, {path: "silence/00000000-0000-4000-8000-000000000000", status: 404},
		{method: "DELETE", path: "silence/not-a-uuid"}, {method: "DELETE", path: "silence/00000000-0000-4000-8000-000000000000", status: 404},
		{method: "POST", path: "status", status: 405}, {method: "PUT", path: "silences", status: 405},
		post("alerts", "", 0), post("alerts", "{", 0), post("alerts", "{}", 0), post("alerts", "[{}]", 0), post("alerts", "[null]", 0),
		post("alerts", `[{"labels":{}}]`, 0), post("alerts", `[{"labels":{"alertname":1}}]`, 0), post("alerts", `[{"labels":{"":"x"}}]`, 0),
		post("alerts", `[{"labels":{"alertname":"a"},"startsAt":"soon"}]`, 0),
		post("alerts", `[{"labels":{"alertname":"a"},"startsAt":"`+later+`","endsAt":"`+past+`"}]`, 0),
		post("alerts", `[{"labels":{"alertname":"a"},"generatorURL":"no url"}]`, 0),
		post("alerts", strings.Repeat("[", 200_000), 0),
		{method: "POST", path: "alerts", contentType: "text/plain", body: "[]", status: 415},
		post("silences", "", 0), post("silences", "{", 0), post("silences", "[]", 0), post("silences", "{}", 0), post("silences", "null", 0),
		post("silences", silence("[]", past, later), 0), post("silences", silence("[null]", past, later), 0), post("silences", silence(`[{"name":"a","value":"(","isRegex":true}]`, past, later), 0),
		post("silences", silence(`[{"name":"a","value":"","isRegex":false}]`, past, later), 0),
		post("silences", silence(good, later, past), 0), post("silences", silence(good, past, past), 0), post("silences", silence(good, "x", later), 0),
		post("silences", `{"id":"00000000-0000-4000-8000-000000000000",`+silence(good, past, later)[1:], 404),
	}
}

// TestBadRequests holds that every endpoint answers what is malformed with a 4xx and a reason in JSON.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	dir := workDir(t)
	p := runTocsin(t, dir, "--web.enable-remote-write-receiver", "--web.enable-otlp-receiver", "--web.enable-admin-api")
	send := func(t *testing.T, base string, r badRequest) string {
		t.Helper()
		if r.method == "" {
			r.method = http.MethodGet
		}
		began := time.Now()
		status, body, err := fetchRaw(r.method, base+r.path, r.contentType, r.body)
		what := fmt.Sprintf("%s %.120s %.80s", r.method, r.path, r.body)
		switch {
		case err != nil:
			t.Errorf("%s: %v", what, err)
		case status < 400 || status > 499 || (r.status != 0 && status != r.status):
			t.Errorf("%s: %d, wanted is %d (0: any 4xx): %.200s", what, status, r.status, body)
		case time.Since(began) > 15*time.Second:
			t.Errorf("%s took %s", what, time.Since(began))
		}
		return body
	}
	t.Run("prometheus", func(t *testing.T) {
		for _, r := range promRequests() {
			body := send(t, p.url+"/api/v1/", r)
			var e envelope
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.Status != "error" || e.ErrorType == "" || e.Error == "" {
				t.Errorf("%s %.120s %.80s: not Prometheus's error: %.200q", r.method, r.path, r.body, body)
			}
		}
	})
	for name, base := range map[string]string{"alertmanager on the main port": p.url + "/alertmanager/api/v2/", "alertmanager at the root": p.amURL + "/api/v2/"} {
		t.Run(name, func(t *testing.T) {
			for _, r := range amRequests() {
				body := send(t, base, r)
				// Upstream has nothing to say about a silence that is not there.
				if strings.HasPrefix(r.path, "silence/0000") && body == "" {
					continue
				}
				if !json.Valid([]byte(body)) || len(strings.TrimSpace(body)) < 5 {
					t.Errorf("%s %.120s %.80s: not Alertmanager's error: %.200q", r.method, r.path, r.body, body)
				}
			}
		})
	}
	t.Run("the rest", func(t *testing.T) {
		for _, r := range []badRequest{
			{path: "/federate?match%5B%5D=%7B"}, {path: "/federate?match%5B%5D="}, {method: "POST", path: "/federate?match%5B%5D=up"},
			{method: "GET", path: "/-/reload", status: 405}, {method: "GET", path: "/-/quit"}, {method: "POST", path: "/-/quit", status: 403},
			{method: "POST", path: "/-/ready", status: 405}, {method: "DELETE", path: "/metrics"},
			{path: "/nothing", status: 404}, {path: "/api", status: 404}, {path: "/api/v9/query", status: 404}, {path: "/%2e%2e/%2e%2e/etc/passwd"},
			{path: "/alertmanager/nothing", status: 404}, {path: "/debug/pprof/nothing", status: 404}, {path: "/assets/nothing.css", status: 404},
		} {
			send(t, p.url, r)
		}
	})
	t.Run("not even HTTP", func(t *testing.T) {
		for _, raw := range []string{
			"garbage\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /api/v1/query?query=up HTTP/1.1\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 2<<20) + "\r\n\r\n",
			"POST /api/v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
			"POST /api/v1/query HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
			"GET /api/v1/label/%zz/values HTTP/1.1\r\nHost: x\r\n\r\n",
		} {
			if status := rawStatus(t, strings.TrimPrefix(p.url, "http://"), raw); status < 400 || status == 500 || status > 505 {
				t.Errorf("%.60q is answered with %d", raw, status)
			}
		}
	})
	p.alive()
	for line := range strings.Lines(p.output()) {
		if strings.Contains(line, "panic") {
			t.Errorf("a handler has panicked: %.400s", line)
		}
	}
	p.stop()
}

// fetchRaw is fetch for URLs that net/url refuses: those go over the wire as they are.
func fetchRaw(method, address, contentType, body string) (int, string, error) {
	if _, err := url.Parse(address); err == nil {
		return fetch(method, address, contentType, body)
	}
	host, path, _ := strings.Cut(strings.TrimPrefix(address, "http://"), "/")
	c, err := net.DialTimeout("tcp", host, 5*time.Second)
	if err != nil {
		return 0, "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return 0, "", err
	}
	fmt.Fprintf(c, "%s /%s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", method, path, host, contentType, len(body), body)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// rawStatus sends bytes and reads the status of the answer.
func rawStatus(t *testing.T, host, raw string) int {
	t.Helper()
	c, err := net.DialTimeout("tcp", host, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// The answer may come, and the connection close, before all is sent.
	go func() { _, _ = io.WriteString(c, raw) }()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Errorf("%.60q: %v", raw, err)
		return http.StatusBadRequest
	}
	defer resp.Body.Close()
	return resp.StatusCode
}
