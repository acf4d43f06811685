package web

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/tocsin-io/tocsin/web/ui"
)

// TestStatus holds that the API has all that the plain page says, and where to look.
func TestStatus(t *testing.T) {
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := Status{
		Replica: "r1", Zone: "z1", Version: "0.1.0", Started: began,
		Cluster: ClusterStatus{Name: "production", Members: []MemberStatus{
			{Name: "r1", State: "alive", Self: true},
			{Name: "r2", Zone: "z2", State: "gone", URL: "http://10.0.0.2:9090/", Since: began, RoundTrip: 1500 * time.Microsecond, ClockSkew: -time.Second},
		}},
		Targets:   TargetStatus{Up: 2, Down: 1, Unknown: 1, DownTargets: []DownTarget{{Job: "node", URL: "http://a/metrics", Error: "refused", LastScrape: began}}},
		Alerts:    []AlertStatus{{Name: "High", State: "firing", Labels: `{a="b"}`, Summary: "It is high.", Since: began}},
		Silences:  1,
		Rules:     RuleStatus{Groups: 2, Rules: 9, Failing: 1, Problems: []string{"division by zero"}},
		Config:    ConfigStatus{Path: "/etc/tocsin/tocsin.yml", LastReload: began, Error: "tocsin.yml:3: x: bad"},
		Storage:   StorageStatus{Dir: "/data", Series: 12345, Retention: "15d", UsedBytes: 3, FreeBytes: 4, Oldest: began},
		Addresses: []AddressStatus{{"mesh", "10.0.0.1:9094"}},
	}
	s.Problem("/cluster", "Replica r2 is gone.")
	d := open(t, Options{Status: func() Status { return s }, ExternalURL: &url.URL{Scheme: "https", Host: "m.example", Path: "/prom"}})
	r := d.do(t, "GET", d.base+"/prom/api/tocsin/v1/status", nil)
	if r.code != 200 || r.header.Get("Content-Type") != "application/json" || r.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v", r.code, r.header)
	}
	for _, want := range []string{
		`"well":false,"verdict":"5 things need attention."`,
		`"concerns":[{"text":"Replica r2 is gone.","page":"/cluster"},{"text":"The last reload was refused; the configuration before it is in force.","page":"/config"}`,
		`{"text":"1 alert is firing.","page":"/alerts"},{"text":"1 target is down.","page":"/targets?health=down"},{"text":"1 rule fails.","page":"/rules?health=err"}]`,
		`"replica":"r1","zone":"z1","version":"0.1.0","started":"2026-01-02T03:04:05Z"`,
		`"name":"r2","zone":"z2","state":"gone","version":"","url":"http://10.0.0.2:9090/","self":false,"since":"2026-01-02T03:04:05Z","rtt_seconds":0.0015,"clock_skew_seconds":-1`,
		`"up":2,"down":1,"unknown":1,"down_targets":[{"job":"node","url":"http://a/metrics","error":"refused","last_scrape":"2026-01-02T03:04:05Z"}]`,
		`{"name":"High","state":"firing","labels":"{a=\"b\"}","summary":"It is high.","since":"2026-01-02T03:04:05Z"}`,
		`"silences":1`, `"rules":{"groups":2,"rules":9,"failing":1,"problems":["division by zero"]}`,
		`"config":{"path":"/etc/tocsin/tocsin.yml","last_reload":"2026-01-02T03:04:05Z","error":"tocsin.yml:3: x: bad"}`,
		`"storage":{"dir":"/data","series":12345,"retention":"15d","used_bytes":3,"free_bytes":4,"oldest":"2026-01-02T03:04:05Z"}`,
		`"prometheus_url":"https://m.example/prom/","alertmanager_url":"https://m.example/prom/alertmanager"`,
		`{"name":"mesh","address":"10.0.0.1:9094"}`,
	} {
		if !strings.Contains(r.body, want) {
			t.Errorf("lacks %s:\n%s", want, r.body)
		}
	}
	if r := d.do(t, "POST", d.base+"/prom/api/tocsin/v1/status", nil); r.code != 405 {
		t.Errorf("POST: %d", r.code)
	}
}

// TestStatusOfAnEmptyReplica holds that lists are never null, and that it counts what it leaves out.
func TestStatusOfAnEmptyReplica(t *testing.T) {
	var s Status
	d := open(t, Options{Status: func() Status { return s }})
	r := d.do(t, "GET", d.base+"/api/tocsin/v1/status", nil)
	if strings.Contains(r.body, "null") || strings.Contains(r.body, "0001-01-01") {
		t.Errorf("%s", r.body)
	}
	for range 120 {
		s.Alerts = append(s.Alerts, AlertStatus{State: "firing"})
		s.Targets.DownTargets = append(s.Targets.DownTargets, DownTarget{})
	}
	r = d.do(t, "GET", d.base+"/api/tocsin/v1/status", nil)
	var got struct {
		Alerts   []AlertStatus `json:"alerts"`
		More     int           `json:"more_alerts"`
		MoreDown int           `json:"more_down_targets"`
	}
	if err := json.Unmarshal([]byte(r.body), &got); err != nil || len(got.Alerts) != maxRows || got.More != 120-maxRows || got.MoreDown != 120-maxRows {
		t.Errorf("%v, %d alerts and %d more, %d more targets", err, len(got.Alerts), got.More, got.MoreDown)
	}
}

// TestConcernsLeadToPages holds that the pages which concerns name are there.
func TestConcernsLeadToPages(t *testing.T) {
	s := Status{Targets: TargetStatus{Down: 1}, Alerts: []AlertStatus{{State: "firing"}}, Rules: RuleStatus{Failing: 1}, Config: ConfigStatus{Error: "x"}}
	routes := map[string]bool{}
	for _, r := range ui.Routes() {
		routes[r] = true
	}
	for _, c := range newView(s, false, "", time.Now()).Concerns {
		if page, _, _ := strings.Cut(c.Page, "?"); !routes[page] {
			t.Errorf("%q leads to %q, which is no page", c.Text, c.Page)
		}
	}
}
