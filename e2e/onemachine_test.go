package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const oneMachinePrometheus = `
global:
  scrape_interval: 1s
  evaluation_interval: 1s
  external_labels: {site: e2e}
rule_files: [rules/*.yml]
scrape_configs:
  - job_name: node
    static_configs: [{targets: ["%[1]s"]}]
  - job_name: steady
    scrape_interval: 2s
    static_configs: [{targets: ["%[2]s"], labels: {instance: steady}}]
  - job_name: load
    static_configs: [{targets: ["%[3]s"], labels: {instance: load}}]
`

const oneMachineAlertmanager = `
global:
  smtp_smarthost: %[1]s
  smtp_from: tocsin@example.org
  smtp_require_tls: false
route:
  receiver: people
  group_by: [alertname]
  group_wait: 1s
  group_interval: 2s
  repeat_interval: 1h
receivers:
  - name: people
    webhook_configs: [{url: "%[2]s"}]
    email_configs: [{to: oncall@example.org, send_resolved: true}]
`

const oneMachineRules = `
groups:
  - name: e2e
    rules:
      - record: job:e2e_bulk:count
        expr: count by (job) (e2e_bulk)
      - alert: LevelHigh
        expr: e2e_level > 5
        for: 2s
        labels: {severity: page}
        annotations: {summary: 'level is {{ $value }} at {{ $labels.instance }}'}
      - alert: DiskFull
        expr: e2e_disk > 0
      - alert: Lamp
        expr: e2e_lamp > 0
      - alert: Planned
        expr: e2e_planned > 0
      - alert: Patient
        expr: e2e_level >= 0
        for: 1h
`

// The collision is between the CPUs, whose label is not kept.
const oneMachineTocsin = `
prometheus: prometheus.yml
alertmanager: alertmanager.yml
replica: {name: e2e-a, zone: one}
federation:
  - name: debian
    url: %[1]s
    interval: 1s
    labels: {tier: upstream}
    metrics:
      - {match: node_cpu_seconds_total, labels: [cpu, mode]}
      - {match: node_load1}
      - {match: 'up{job="node"}', labels: [job]}
  - name: colliding
    url: %[1]s
    interval: 1s
    metrics:
      - {match: node_cpu_seconds_total, labels: [mode]}
`

// TestOneMachine is the main job, whole, on one machine: scrape, federate, evaluate, notify, silence, reload, be
// killed, go on.
func TestOneMachine(t *testing.T) {
	t.Parallel()
	dir := workDir(t)
	node := nodeExporter(t, dir)
	upstream := debianPrometheus(t, dir, `
global: {scrape_interval: 1s}
scrape_configs:
  - job_name: node
    static_configs: [{targets: ["`+node+`"]}]
`)
	hook, mails := newWebhook(t), newSMTPSink(t, dir)
	steady := newExporter(t, 0, map[string]float64{"e2e_level": 1, "e2e_disk": 0, "e2e_lamp": 0, "e2e_planned": 0})
	load := newExporter(t, 3000, nil)
	prometheusYML := fmt.Sprintf(oneMachinePrometheus, node, steady.address(), load.address())
	write(t, dir, "prometheus.yml", prometheusYML)
	write(t, dir, "alertmanager.yml", fmt.Sprintf(oneMachineAlertmanager, mails.address, hook.URL))
	write(t, dir, "rules/e2e.yml", oneMachineRules)
	write(t, dir, "tocsin.yml", fmt.Sprintf(oneMachineTocsin, upstream))
	mustTool(t, dir, tocsinBinary, "check", "tocsin.yml")

	// Short blocks, so that some are cut while all this goes on.
	flags := []string{"--config.file=tocsin.yml", "--storage.tsdb.min-block-duration=20s"}
	p := runTocsin(t, dir, flags...)

	checkScraped(p)
	checkFederated(p)
	checkNotified(p, steady, hook, mails)
	checkSilenced(t, p, dir, steady, hook)
	checkPromtool(t, p, dir)
	checkReloads(t, p, dir, prometheusYML)
	p = checkKilled(t, p, dir, flags, hook)

	p.stop()
	if out := mustTool(t, dir, "promtool", "tsdb", "list", "data/tsdb"); strings.Count(out, "\n") < 2 {
		t.Errorf("promtool sees no block:\n%s", out)
	}
	contains(t, "promtool tsdb analyze", mustTool(t, dir, "promtool", "tsdb", "analyze", "data/tsdb"), "Highest cardinality metric names:")
}

func checkScraped(p *tocsin) {
	p.t.Helper()
	p.wantValue(20*time.Second, `sum(up{job=~"node|steady|load",source=""})`, 3)
	p.wantValue(20*time.Second, `count(e2e_bulk)`, 3000)
	p.wantValue(20*time.Second, `job:e2e_bulk:count{job="load"}`, 3000)
	p.wantSome(20*time.Second, `node_uname_info{job="node"}`)
}

func checkFederated(p *tocsin) {
	t := p.t
	t.Helper()
	p.wantValue(20*time.Second, `up{source="debian",job="node"}`, 1)
	for _, s := range p.wantSome(20*time.Second, `{source="debian",__name__!~"up|scrape_.*"}`) {
		for name := range s.Metric {
			if !slices.Contains([]string{"__name__", "cpu", "mode", "source", "tier"}, name) {
				t.Errorf("federation has let the label %s in: %s", name, s.id())
			}
		}
		if name := s.Metric["__name__"]; name != "node_cpu_seconds_total" && name != "node_load1" {
			t.Errorf("federation has let %s in", name)
		}
		if s.Metric["tier"] != "upstream" {
			t.Errorf("a federated series lacks its extra label: %s", s.id())
		}
	}
	mine, err := p.value(`count(node_cpu_seconds_total{source=""})`)
	theirs, err2 := p.value(`count(node_cpu_seconds_total{source="debian"})`)
	if err != nil || err2 != nil || mine != theirs {
		t.Errorf("scraped are %v series of node_cpu_seconds_total, federated %v (%v, %v)", mine, theirs, err, err2)
	}
	// Series that are no longer told apart are not stored, and the target says which.
	eventually(t, 20*time.Second, "the collision is reported", func() error {
		targets, err := p.targets()
		if err != nil {
			return err
		}
		for _, target := range targets {
			if target.ScrapePool != "federate/colliding" {
				continue
			}
			if target.Health == "down" && strings.Contains(target.LastError, "node_cpu_seconds_total") {
				return nil
			}
			return fmt.Errorf("it is %s: %q", target.Health, target.LastError)
		}
		return errors.New("no such target")
	})
	if result, err := p.query(`node_cpu_seconds_total{source="colliding"}`, time.Time{}); err != nil || len(result) > 0 {
		t.Errorf("colliding series are stored: %v (%v)", result, err)
	}
}

func checkNotified(p *tocsin, steady *exporter, hook *webhook, mails *smtpSink) {
	t := p.t
	t.Helper()
	steady.set("e2e_level", 9)
	m := hook.want(t, 30*time.Second, "LevelHigh", "firing")
	if len(m.Alerts) != 1 {
		t.Fatalf("%d alerts in one message: %+v", len(m.Alerts), m)
	}
	a := m.Alerts[0]
	if a.Labels["severity"] != "page" || a.Labels["site"] != "e2e" || a.Annotations["summary"] != "level is 9 at steady" {
		t.Errorf("the alert lacks its labels or annotations: %+v", a)
	}
	if a.GeneratorURL == "" || m.ExternalURL == "" {
		t.Errorf("the message has no links: %+v", m)
	}
	eventually(t, 30*time.Second, "a mail comes", func() error {
		if len(mails.about("LevelHigh")) == 0 {
			return errors.New("none")
		}
		return nil
	})
	if m := mails.about("LevelHigh")[0]; !slices.Equal(m.To, []string{"oncall@example.org"}) || m.From != "tocsin@example.org" {
		t.Errorf("the mail is from %s to %v", m.From, m.To)
	}
}

// amtool runs Debian's against one of the two addresses of the Alertmanager API.
func amtool(t *testing.T, dir, url string, args ...string) string {
	t.Helper()
	return strings.TrimSpace(mustTool(t, dir, "amtool", append([]string{"--alertmanager.url=" + url}, args...)...))
}

func checkSilenced(t *testing.T, p *tocsin, dir string, steady *exporter, hook *webhook) {
	t.Helper()
	main, root := p.url+"/alertmanager", p.amURL
	disk := amtool(t, dir, main, "silence", "add", "--author=e2e", "--comment=disk", "--duration=1h", "alertname=DiskFull")
	amtool(t, dir, root, "silence", "add", "--author=e2e", "--comment=lamp", "--duration=8s", "alertname=Lamp")
	lampUntil := time.Now().Add(8 * time.Second)
	amtool(t, dir, root, "silence", "add", "--author=e2e", "--comment=planned", "--duration=1h", "alertname=Planned")
	for _, url := range []string{main, root} {
		contains(t, "amtool silence query", amtool(t, dir, url, "silence", "query", "--output=extended"), disk, "DiskFull", "Lamp", "Planned")
	}
	for _, alert := range []string{"e2e_disk", "e2e_lamp", "e2e_planned"} {
		steady.set(alert, 1)
	}
	eventually(t, 20*time.Second, "the silenced alerts are suppressed", func() error {
		states, err := p.amAlerts()
		if err != nil {
			return err
		}
		if states["DiskFull"] != "suppressed" || states["Planned"] != "suppressed" || states["LevelHigh"] != "active" {
			return fmt.Errorf("they are %v", states)
		}
		return nil
	})
	contains(t, "amtool alert query", amtool(t, dir, root, "alert", "query", "--silenced"), "DiskFull", "Planned")
	contains(t, "amtool alert query", amtool(t, dir, main, "alert", "query", "--active"), "LevelHigh")

	// One silence ends by itself, one is ended by hand; both alerts are still there, so people hear of them.
	hook.want(t, 40*time.Second, "Lamp", "firing")
	if now := time.Now(); now.Before(lampUntil) {
		t.Errorf("people heard of Lamp %s before its silence ended", lampUntil.Sub(now))
	}
	if err := hook.silent("DiskFull"); err != nil {
		t.Errorf("silenced: %v", err)
	}
	amtool(t, dir, root, "silence", "expire", disk)
	hook.want(t, 30*time.Second, "DiskFull", "firing")
	if err := hook.silent("Planned"); err != nil {
		t.Errorf("silenced: %v", err)
	}
}

func checkPromtool(t *testing.T, p *tocsin, dir string) {
	t.Helper()
	contains(t, "promtool check rules", mustTool(t, dir, "promtool", "check", "rules", "rules/e2e.yml"), "6 rules found")
	now := time.Now()
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"query", "instant", p.url, `up{job="load"}`}, []string{`up{instance="load", job="load"} => 1 @[`}},
		{[]string{"query", "range", "--start=" + formatTime(now.Add(-10*time.Second)), "--end=" + formatTime(now),
			"--step=2s", p.url, `sum(up{job="load"})`}, []string{"{} =>\n1 @[" /* and so on */}},
		{[]string{"query", "series", "--match=up", p.url}, []string{`instance="load"`, `__name__="up"`}},
		{[]string{"query", "labels", p.url, "job"}, []string{"load", "node", "steady"}},
	} {
		contains(t, "promtool "+strings.Join(c.args[:2], " "), mustTool(t, dir, "promtool", c.args...), c.want...)
	}
	if _, stderr, code := tool(t, dir, "promtool", "query", "instant", p.url, "sum("); code == 0 || !strings.Contains(stderr, "parse error") {
		t.Errorf("promtool query of nonsense ends with %d: %s", code, stderr)
	}
	contains(t, "promtool debug metrics", mustTool(t, dir, "promtool", "debug", "metrics", p.url), "debug.tar.gz")
}

// checkReloads changes the files in every way while the job `steady` is watched.
func checkReloads(t *testing.T, p *tocsin, dir, prometheusYML string) {
	t.Helper()
	began := time.Now()
	const good, successful = "prometheus_config_last_reload_successful", 1
	wantReloads := func(want float64) {
		t.Helper()
		eventually(t, 10*time.Second, good, func() error {
			got, err := p.ownMetric(good)
			if err == nil && got != want {
				err = fmt.Errorf("it is %v, not %v", got, want)
			}
			return err
		})
	}
	wantReloads(successful)

	// By signal: a new rule.
	write(t, dir, "rules/more.yml", "groups: [{name: more, rules: [{record: e2e:more, expr: vector(1)}]}]\n")
	p.signal(syscall.SIGHUP)
	p.wantValue(20*time.Second, "e2e:more", 1)

	// By request: a new job.
	write(t, dir, "prometheus.yml", prometheusYML+"  - job_name: own\n    static_configs: [{targets: [\""+
		strings.TrimPrefix(p.url, "http://")+"\"]}]\n")
	if status, body := p.reload(); status != http.StatusOK {
		t.Fatalf("reload: %d %s", status, body)
	}
	p.wantValue(20*time.Second, `up{job="own"}`, 1)
	p.wantSome(20*time.Second, `tocsin_build_info{job="own"}`)

	// Broken in three ways: each is refused with its place, and what ran goes on.
	for _, broken := range []struct {
		file, content string
		want          []string
	}{
		{"rules/more.yml", "groups:\n  - name: more\n    rules:\n      - record: e2e:more\n        expr: sum(\n", []string{"rules/more.yml:5", "expr"}},
		{"prometheus.yml", prometheusYML + "  - job_name: odd\n    scrape_intervall: 1s\n", []string{"prometheus.yml:16", "scrape_intervall"}},
		{"tocsin.yml", "prometheus: prometheus.yml\nreplica: {name: another}\n", []string{"replica.name"}},
	} {
		before := readFile(t, dir, broken.file)
		write(t, dir, broken.file, broken.content)
		status, body := p.reload()
		if status != http.StatusInternalServerError {
			t.Errorf("reload of a broken %s is answered with %d", broken.file, status)
		}
		contains(t, "the answer to a reload of a broken "+broken.file, body, broken.want...)
		contains(t, "the log", p.output(), broken.want...)
		wantReloads(0)
		p.wantValue(20*time.Second, "e2e:more", 1)
		p.wantValue(20*time.Second, `up{job="own"}`, 1)
		if err := p.get("status/config", nil); err != nil {
			t.Errorf("status/config: %v", err)
		}
		write(t, dir, broken.file, before)
		if status, body := p.reload(); status != http.StatusOK {
			t.Fatalf("reload of what was mended: %d %s", status, body)
		}
		wantReloads(successful)
	}

	// In all this no scrape was missed.
	window := fmt.Sprintf("[%ds]", int(time.Since(began).Seconds())+5)
	eventually(t, 20*time.Second, "steady is scraped", func() error {
		result, err := p.query(`up{job="steady"}`+window, time.Time{})
		if err != nil {
			return err
		}
		if len(result) != 1 || len(result[0].Values) < 3 {
			return fmt.Errorf("unexpected: %v", result)
		}
		for i, v := range result[0].Values[1:] {
			if v.Value != "1" {
				t.Errorf("steady was down at %v", v.Time)
			}
			if gap := v.Time - result[0].Values[i].Time; gap > 3 {
				t.Errorf("scraping of steady stopped for %.1f s, with an interval of 2 s", gap)
			}
		}
		return nil
	})
}

// checkKilled is kill -9 while 3,000 samples a second come in, and a start on what is left.
func checkKilled(t *testing.T, p *tocsin, dir string, flags []string, hook *webhook) *tocsin {
	t.Helper()
	state, _, err := p.alertState("Patient")
	if err != nil || state != "pending" {
		t.Fatalf("Patient is %s: %v", state, err)
	}
	p.wantSome(60*time.Second, `prometheus_tsdb_compactions_total{job="own"} > 0`)
	firing, lamp := len(hook.about("LevelHigh", "firing")), len(hook.about("Lamp", "firing"))

	// What is in the answer of a query has been acknowledged. The last interval is left out: a scrape that is being
	// stored has some of its samples before and some after.
	until := time.Now().Add(-2 * time.Second)
	before := snapshot(t, p, until)
	p.kill()
	killed := time.Now()

	p = runTocsin(t, dir, flags...)
	after := snapshot(t, p, until)
	if len(before) < 3000 {
		t.Fatalf("only %d series before the kill", len(before))
	}
	lost := 0
	for id, values := range before {
		for at, v := range values {
			if got, ok := after[id][at]; !ok || got != v {
				if lost++; lost <= 5 {
					t.Errorf("lost or changed: %s at %v was %s and is %q", id, at, v, got)
				}
			}
		}
	}
	if lost > 0 {
		t.Errorf("%d samples are lost or changed by kill -9", lost)
	}

	// The rules go on, from the state in which they were.
	eventually(t, 30*time.Second, "the for state is restored", func() error {
		state, since, err := p.alertState("Patient")
		if err != nil {
			return err
		}
		if state != "pending" || since.After(killed) {
			return fmt.Errorf("it is %s since %s, and the kill was at %s", state, since, killed)
		}
		return nil
	})
	// People do not hear again of what they know, and not at all of what is silenced.
	eventually(t, 40*time.Second, "the alerts are back", func() error {
		states, err := p.amAlerts()
		if err != nil {
			return err
		}
		if states["LevelHigh"] != "active" || states["Lamp"] != "active" || states["Planned"] != "suppressed" {
			return fmt.Errorf("they are %v", states)
		}
		return nil
	})
	contains(t, "amtool silence query", amtool(t, dir, p.amURL, "silence", "query"), "Planned")
	during(t, 6*time.Second, "three group intervals after the restart", func() error {
		if n := len(hook.about("LevelHigh", "firing")); n != firing {
			return fmt.Errorf("the webhook has heard of LevelHigh %d times instead of %d", n, firing)
		}
		if n := len(hook.about("Lamp", "firing")); n != lamp {
			return fmt.Errorf("the webhook has heard of Lamp %d times instead of %d", n, lamp)
		}
		return hook.silent("Planned")
	})
	// The job `own` has the old port.
	p.wantValue(20*time.Second, `sum(up{job=~"node|steady|load",source=""})`, 3)
	return p
}

// snapshot is every sample of the 30 s before the time: series, time, value.
func snapshot(t *testing.T, p *tocsin, until time.Time) map[string]map[float64]string {
	t.Helper()
	v := url.Values{"query": {`{__name__!=""}[30s]`}, "time": {formatTime(until)}}
	var d queryData
	status, body, err := fetch(http.MethodPost, p.url+"/api/v1/query", formType, v.Encode())
	if err == nil {
		err = decodeAPI(status, body, &d)
	}
	if err != nil {
		t.Fatalf("read everything: %v", err)
	}
	all := map[string]map[float64]string{}
	for _, s := range d.Result {
		values := map[float64]string{}
		for _, v := range s.Values {
			values[v.Time] = v.Value
		}
		all[s.id()] = values
	}
	return all
}
