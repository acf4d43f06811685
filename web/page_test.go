package web

import (
	"fmt"
	"html"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestVerdict(t *testing.T) {
	tests := []struct {
		name     string
		s        Status
		ready    bool
		sentence string
		well     bool
		verdict  string
		concern  string
	}{
		{name: "well", s: Status{Targets: TargetStatus{Up: 3}}, ready: true, well: true, verdict: "All is well: 3 targets are up, no alert needs you."},
		{name: "empty", ready: true, well: true, verdict: "All is well."},
		{name: "not ready", sentence: "replaying segment 2 of 9", verdict: "1 thing needs attention.", concern: "Not ready: replaying segment 2 of 9"},
		{name: "down", ready: true, s: Status{Targets: TargetStatus{Down: 1}}, verdict: "1 thing needs attention.", concern: "1 target is down."},
		{name: "firing", ready: true, s: Status{Alerts: []AlertStatus{{State: "firing"}, {State: "firing"}, {State: "pending"}}}, verdict: "1 thing needs attention.", concern: "2 alerts are firing."},
		{name: "pending only", ready: true, s: Status{Alerts: []AlertStatus{{State: "pending"}}}, well: true, verdict: "All is well."},
		{name: "silenced", ready: true, s: Status{Alerts: []AlertStatus{{State: "firing", Muted: "silenced"}}}, well: true, verdict: "All is well."},
		{name: "watchdog", ready: true, s: Status{Alerts: []AlertStatus{{State: "firing", Severity: "none"}}}, well: true, verdict: "All is well."},
		{name: "half a reload", ready: true, s: Status{Config: ConfigStatus{Error: "x", Partial: true}}, verdict: "1 thing needs attention.", concern: "The last reload was applied only in part; correct the configuration and reload, or restart."},
		{name: "reload", ready: true, s: Status{Config: ConfigStatus{Error: "x"}}, verdict: "1 thing needs attention.", concern: "The last reload was refused; the configuration before it is in force."},
		{name: "two", ready: true, s: Status{Problems: []Concern{{Text: "The disk is full."}}, Rules: RuleStatus{Failing: 2}}, verdict: "2 things need attention.", concern: "The disk is full."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := newView(tt.s, tt.ready, tt.sentence, time.Now())
			if v.Well != tt.well || v.Verdict != tt.verdict {
				t.Errorf("well %v, %q", v.Well, v.Verdict)
			}
			if tt.concern != "" && (len(v.Concerns) == 0 || v.Concerns[0].Text != tt.concern) {
				t.Errorf("concerns %q", v.Concerns)
			}
		})
	}
}

func TestPage(t *testing.T) {
	now := time.Now()
	s := Status{
		Replica: "r1", Zone: "z1", Version: "0.1.0", Started: now.Add(-25 * time.Hour),
		Cluster: ClusterStatus{Name: "production", Members: []MemberStatus{
			{Name: "r1", State: "alive", Self: true}, {Name: "r2<", Zone: "z2", State: "gone", URL: "http://10.0.0.2:9090/", RoundTrip: 1234567, ClockSkew: -time.Second},
		}},
		Targets:   TargetStatus{Up: 2, Down: 1, Unknown: 1, DownTargets: []DownTarget{{Job: "node", URL: "http://a/metrics", Error: `<script>alert("x")</script>`}}},
		Alerts:    []AlertStatus{{Name: "High", State: "firing", Labels: `{a="b"}`, Since: now.Add(-time.Minute)}},
		Silences:  1,
		Rules:     RuleStatus{Groups: 2, Rules: 9, Failing: 1, Problems: []string{"group g, rule r: division by zero"}},
		Config:    ConfigStatus{Path: "/etc/tocsin/tocsin.yml", LastReload: now, Error: "tocsin.yml:3: x: bad"},
		Storage:   StorageStatus{Dir: "/data", Series: 12345, SamplesPerSecond: 23456, Retention: "15d", UsedBytes: 3 << 30, FreeBytes: 1 << 40, Oldest: now.Add(-time.Hour)},
		Addresses: []AddressStatus{{"mesh", "10.0.0.1:9094"}},
	}
	d := open(t, Options{Status: func() Status { return s }, ExternalURL: &url.URL{Scheme: "https", Host: "m.example", Path: "/prom"}})
	r := d.do(t, "GET", d.base+"/prom/", nil)
	text := html.UnescapeString(r.body)
	for _, want := range []string{
		"4 things need attention.", "replica <b>r1</b>", "zone <b>z1</b>", "version 0.1.0", "up 25h 0m",
		"2 up, 1 down, 1 not scraped yet", "High", "division by zero", "tocsin.yml:3: x: bad",
		"1 silence is active", "12345", "23.5 thousand", "3.0 GiB", "1.0 TiB", "https://m.example/prom/alertmanager", "10.0.0.1:9094",
		"Cluster production", "(this one)", `<a href="http://10.0.0.2:9090/">r2<</a>`, "gone", "1.2ms", "-1s",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(r.body, "<script") {
		t.Error("a target's error became markup")
	}
	csp := r.header.Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'self'") {
		t.Errorf("policy %q", csp)
	}
	if regexp.MustCompile(`(?i)\sstyle=|<style|\son[a-z]+=`).MatchString(r.body) {
		t.Error("inline style or script, which the policy forbids")
	}
	for _, want := range []string{`<html lang="en">`, "<title>", "<h1", `scope="col"`, "<label for=", "<main>"} {
		if !strings.Contains(r.body, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	// Every link but those to the other replicas is relative, and leads somewhere.
	links := regexp.MustCompile(`(?:href|action)="([^"]*)"`).FindAllStringSubmatch(r.body, -1)
	if len(links) < 10 {
		t.Errorf("%d links", len(links))
	}
	for _, l := range links {
		if l[1] == s.Cluster.Members[1].URL {
			continue
		}
		if strings.HasPrefix(l[1], "/") || strings.Contains(l[1], "://") {
			t.Errorf("link %s is not relative", l[1])
			continue
		}
		if r := d.do(t, "GET", d.base+"/prom/"+l[1], nil); r.code != 200 {
			t.Errorf("link %s: %d", l[1], r.code)
		}
	}
}

func TestPageIsBounded(t *testing.T) {
	var s Status
	for i := range 10_000 {
		s.Targets.DownTargets = append(s.Targets.DownTargets, DownTarget{URL: fmt.Sprint("http://", i)})
		s.Alerts = append(s.Alerts, AlertStatus{State: "firing"})
		s.Rules.Problems = append(s.Rules.Problems, fmt.Sprint("rule ", i))
	}
	s.Targets.Down = len(s.Targets.DownTargets)
	v := newView(s, true, "", time.Now())
	p, err := newPage()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := p.tmpl.Execute(&b, v); err != nil {
		t.Fatal(err)
	}
	if n := b.Len(); n > 50_000 {
		t.Errorf("%d bytes", n)
	}
	if !strings.Contains(b.String(), "and 9950 more") {
		t.Error("the page does not say that there is more")
	}
	if len(s.Rules.Problems) != 10_000 || s.Rules.Problems[maxRows] != "rule 50" {
		t.Error("the caller's list was changed")
	}
}
