package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// exemplarTarget speaks OpenMetrics, with an exemplar.
func exemplarTarget(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
		fmt.Fprintf(w, "# TYPE e2e_requests counter\n# HELP e2e_requests Requests.\n"+
			"e2e_requests_total{path=\"/\"} 42 # {trace_id=\"abc123\"} 1 %s\n# EOF\n", formatTime(time.Now()))
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// grafanaTocsin is what Grafana is pointed at.
func grafanaTocsin(t *testing.T) *tocsin {
	t.Helper()
	dir := workDir(t)
	write(t, dir, "rules.yml", `
groups:
  - name: first
    rules:
      - {record: e2e:up, expr: sum(up)}
      - {alert: Always, expr: 'vector(1)', labels: {severity: page}}
  - name: second
    rules:
      - {alert: Never, expr: 'vector(1) > 2'}
`)
	write(t, dir, "tocsin.yml", `
prometheus:
  global: {scrape_interval: 1s, evaluation_interval: 1s}
  rule_files: [rules.yml]
  scrape_configs:
    - job_name: app
      static_configs: [{targets: ["`+exemplarTarget(t)+`"], labels: {instance: app}}]
alertmanager:
  route: {receiver: nobody, group_by: [alertname], group_wait: 1s}
  receivers: [{name: nobody}]
`)
	return runTocsin(t, dir, "--config.file=tocsin.yml")
}

// TestGrafana replays the requests of Grafana's data sources for Prometheus and Alertmanager.
func TestGrafana(t *testing.T) {
	t.Parallel()
	p := grafanaTocsin(t)
	p.wantSome(20*time.Second, `e2e_requests_total`)
	p.wantSome(20*time.Second, `e2e:up`)
	eventually(t, 20*time.Second, "an alert is in the Alertmanager", func() error {
		alerts, err := p.amAlerts()
		if err == nil && alerts["Always"] != "active" {
			err = fmt.Errorf("they are %v", alerts)
		}
		return err
	})
	t.Run("prometheus", func(t *testing.T) { grafanaPrometheus(t, p) })
	t.Run("rules", func(t *testing.T) { grafanaRules(t, p) })
	t.Run("alertmanager at the root of its listener", func(t *testing.T) { grafanaAlertmanager(t, p, p.amURL) })
	t.Run("alertmanager on the main port", func(t *testing.T) { grafanaAlertmanager(t, p, p.url+"/alertmanager") })
	t.Run("not Mimir", func(t *testing.T) {
		// Where this is answered, Grafana takes the data source for Mimir and manages rules through it.
		if status, _, err := fetch(http.MethodGet, p.url+"/api/v2/status", "", ""); err != nil || status == http.StatusOK {
			t.Errorf("the Alertmanager API is at the root of the main port: %d (%v)", status, err)
		}
	})
}

func grafanaPrometheus(t *testing.T, p *tocsin) {
	now := time.Now()
	from, to := formatTime(now.Add(-time.Minute)), formatTime(now)
	span := "start=" + from + "&end=" + to
	for _, c := range []struct {
		name, method, path, params string
		want                       string // in the data
	}{
		{"save and test by POST", "POST", "query", "query=1%2B1&time=" + to, `"2"`},
		{"save and test by GET", "GET", "query", "query=1%2B1&time=" + to, `"2"`},
		{"old flavour test", "GET", "query", "query=prometheus_build_info", `"vector"`},
		{"panel", "POST", "query_range", "query=e2e_requests_total&step=15&" + span, `"matrix"`},
		{"panel with a timeout and a parameter of its own", "POST", "query_range", "query=up&step=15.5&timeout=30s&custom=1&" + span, `"matrix"`},
		{"instant panel", "POST", "query", "query=up&time=" + to, `"vector"`},
		{"panel by GET", "GET", "query_range", "query=up&step=15s&" + span, `"matrix"`},
		{"are there exemplars", "GET", "query_exemplars", "query=test&" + span, `[]`},
		{"exemplars", "POST", "query_exemplars", "query=e2e_requests_total&" + span, `abc123`},
		{"names", "GET", "label/__name__/values", span, `"e2e_requests_total"`},
		{"values", "GET", "label/job/values", "match%5B%5D=up&limit=40000&" + span, `"app"`},
		{"values of an escaped label", "GET", "label/U__job_2e_name/values", span, `[]`},
		{"labels by POST", "POST", "labels", span, `"job"`},
		{"labels by GET", "GET", "labels", "match%5B%5D=%7Bjob%3D%22app%22%7D&limit=40000&" + span, `"path"`},
		{"series", "GET", "series", "match%5B%5D=up&limit=40000&" + span, `"up"`},
		{"series by POST", "POST", "series", "match%5B%5D=up&" + span, `"up"`},
		{"metadata", "GET", "metadata", "limit=40000", `"Requests."`},
		{"format by POST", "POST", "format_query", "query=sum(up)by(job)", `sum by (job) (up)`},
		{"parse by POST", "POST", "parse_query", "query=sum(up)by(job)", `"aggregation"`},
		{"targets", "GET", "targets", "state=active", `"activeTargets"`},
		{"alerts", "GET", "alerts", "", `"Always"`},
		{"alertmanagers", "GET", "alertmanagers", "", `"activeAlertmanagers"`},
		{"flags", "GET", "status/flags", "", `"storage.path"`},
		{"runtime", "GET", "status/runtimeinfo", "", `"reloadConfigSuccess":true`},
		{"config", "GET", "status/config", "", `job_name: app`},
		{"tsdb", "GET", "status/tsdb", "", `"headStats"`},
		{"notifications", "GET", "notifications", "", `[]`},
	} {
		t.Run(c.name, func(t *testing.T) {
			address, contentType, body := p.url+"/api/v1/"+c.path, formType, c.params
			if c.method == "GET" {
				address, contentType, body = address+"?"+c.params, "", ""
			}
			status, header, answer, err := exchange(c.method, address, contentType, body)
			if err != nil {
				t.Fatal(err)
			}
			var data json.RawMessage
			if err := decodeAPI(status, answer, &data); err != nil {
				t.Fatalf("%v", err)
			}
			if !strings.HasPrefix(header.Get("Content-Type"), "application/json") {
				t.Errorf("the type is %q", header.Get("Content-Type"))
			}
			contains(t, "the answer", string(data), c.want)
		})
	}
	t.Run("flavour", func(t *testing.T) {
		var info map[string]any
		if err := p.get("status/buildinfo", &info); err != nil {
			t.Fatal(err)
		}
		// With any features it is Mimir; the version decides what Grafana offers.
		if _, ok := info["features"]; ok || info["application"] != nil || !strings.HasPrefix(fmt.Sprint(info["version"]), "3.") {
			t.Errorf("buildinfo makes it another flavour: %v", info)
		}
	})
	t.Run("what is not there is 404 in JSON", func(t *testing.T) {
		for _, path := range []string{"/api/v1/nothing", "/api/v1/label/a/b/c", "/config/v1/rules", "/api/prom/rules"} {
			status, body, err := fetch(http.MethodGet, p.url+path, "", "")
			if err != nil || status != http.StatusNotFound || !json.Valid([]byte(body)) {
				t.Errorf("%s: %d %s (%v)", path, status, body, err)
			}
		}
	})
	t.Run("warnings and infos are passed on", func(t *testing.T) {
		// rate says something once it has two samples of what is no counter.
		eventually(t, 20*time.Second, "warnings and infos", func() error {
			status, body, err := fetch(http.MethodPost, p.url+"/api/v1/query", formType,
				url.Values{"query": {`rate(e2e:up[30s]) or quantile(7, up)`}}.Encode())
			if err == nil && (status != http.StatusOK || !strings.Contains(body, `"warnings":[`) || !strings.Contains(body, `"infos":[`)) {
				err = fmt.Errorf("%d %s", status, body)
			}
			return err
		})
	})
}

func grafanaRules(t *testing.T, p *tocsin) {
	for _, c := range []struct {
		params string
		want   []string
	}{
		{"", []string{"first/e2e:up", "first/Always", "second/Never"}},
		{"type=alert", []string{"first/Always", "second/Never"}},
		{"type=record", []string{"first/e2e:up"}},
		{"rule_group%5B%5D=second", []string{"second/Never"}},
		{"rule_name%5B%5D=Always", []string{"first/Always"}},
		{"file%5B%5D=elsewhere.yml", nil},
		{"exclude_alerts=true&rule_name%5B%5D=Always", []string{"first/Always"}},
		// Unbracketed names are Mimir's; upstream passes over them, and so over the filter.
		{"rule_group=second&rule_name=Never", []string{"first/e2e:up", "first/Always", "second/Never"}},
	} {
		groups := struct {
			Groups []ruleGroup `json:"groups"`
			Next   string      `json:"groupNextToken"`
		}{}
		if err := p.get("rules?"+c.params, &groups); err != nil {
			t.Errorf("rules?%s: %v", c.params, err)
		}
		var got []string
		for _, g := range groups.Groups {
			for _, r := range g.Rules {
				got = append(got, g.Name+"/"+r.Name)
				if strings.Contains(c.params, "exclude_alerts") && len(r.Alerts) > 0 {
					t.Errorf("rules?%s has alerts", c.params)
				}
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("rules?%s has %v, not %v", c.params, got, c.want)
		}
	}
	var page struct {
		Groups []ruleGroup `json:"groups"`
		Next   string      `json:"groupNextToken"`
	}
	if err := p.get("rules?group_limit=1", &page); err != nil || len(page.Groups) != 1 || page.Groups[0].Name != "first" {
		t.Fatalf("the first page of rules: %+v (%v)", page, err)
	}
	next := page.Next
	page.Next = ""
	if err := p.get("rules?group_limit=1&group_next_token="+next, &page); err != nil || len(page.Groups) != 1 ||
		page.Groups[0].Name != "second" || page.Next != "" {
		t.Errorf("the second page of rules: %+v (%v)", page, err)
	}
}

func grafanaAlertmanager(t *testing.T, p *tocsin, source string) {
	ask := func(method, path, body string, want int, parts ...string) string {
		t.Helper()
		contentType := ""
		if body != "" {
			contentType = "application/json"
		}
		status, answer, err := fetch(method, source+path, contentType, body)
		if err != nil {
			t.Fatal(err)
		}
		if status != want {
			t.Errorf("%s %s is answered with %d, not %d: %.300s", method, path, status, want, answer)
		}
		contains(t, method+" "+path, answer, parts...)
		return answer
	}
	// Grafana tells Mimir from Prometheus by which of these is there.
	if status, _, err := fetch(http.MethodGet, source+"/alertmanager/api/v2/status", "", ""); err != nil || status == http.StatusOK {
		t.Errorf("%s/alertmanager/api/v2/status: %d (%v)", source, status, err)
	}
	if status, _, err := fetch(http.MethodGet, source+"/api/v1/status/buildinfo", "", ""); err != nil || status >= 500 {
		t.Errorf("%s/api/v1/status/buildinfo: %d (%v)", source, status, err)
	}
	ask("GET", "/api/v2/status", "", 200, `"versionInfo"`, `"original"`, "nobody")
	ask("GET", "/api/v2/receivers", "", 200, `"nobody"`)
	ask("GET", "/api/v2/alerts?active=true&silenced=true&inhibited=true&unprocessed=true", "", 200, `"Always"`)
	ask("GET", "/api/v2/alerts?filter="+url.QueryEscape(`alertname="Always"`), "", 200, `"Always"`)
	if none := ask("GET", "/api/v2/alerts?filter="+url.QueryEscape(`alertname="Never"`), "", 200); strings.TrimSpace(none) != "[]" {
		t.Errorf("a filter that nothing matches gives %s", none)
	}
	ask("GET", "/api/v2/alerts/groups?active=true&silenced=false&inhibited=false", "", 200, `"nobody"`, `"Always"`)

	stamp := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339Nano) }
	silence := fmt.Sprintf(`{"matchers":[{"name":"alertname","value":"Other","isRegex":false,"isEqual":true}],`+
		`"startsAt":%q,"endsAt":%q,"createdBy":"grafana","comment":"a test"}`, stamp(0), stamp(time.Hour))
	var created struct {
		ID string `json:"silenceID"`
	}
	if err := json.Unmarshal([]byte(ask("POST", "/api/v2/silences", silence, 200, "silenceID")), &created); err != nil {
		t.Fatal(err)
	}
	ask("GET", "/api/v2/silences", "", 200, created.ID)
	ask("GET", "/api/v2/silence/"+created.ID, "", 200, `"active"`, "a test")
	ask("DELETE", "/api/v2/silence/"+created.ID, "", 200)
	ask("GET", "/api/v2/silence/"+created.ID, "", 200, `"expired"`)

	// Grafana's own alerts, forwarded.
	ask("POST", "/api/v2/alerts", fmt.Sprintf(`[{"labels":{"alertname":"FromGrafana"},"annotations":{},"startsAt":%q,"endsAt":%q}]`,
		stamp(0), stamp(time.Hour)), 200)
	ask("GET", "/api/v2/alerts", "", 200, "FromGrafana")
	p.alive()
}
