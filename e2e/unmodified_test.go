package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestUnmodifiedConfigs is a pair of files as it runs under Debian's Prometheus and Alertmanager, taken over as it is:
// tocsin.yml has two paths. Only the file_sd target list, which is data, is the test's.
func TestUnmodifiedConfigs(t *testing.T) {
	t.Parallel()
	dir := workDir(t)
	if err := os.CopyFS(dir, os.DirFS("testdata/realistic")); err != nil {
		t.Fatal(err)
	}
	live, dead := nodeExporter(t, dir), "127.0.0.1:1"
	write(t, dir, "targets/node.json", fmt.Sprintf(`[{"targets": [%q, %q], "labels": {"rack": "7"}}]`, live, dead))
	write(t, dir, "tocsin.yml", "prometheus: prometheus.yml\nalertmanager: alertmanager.yml\n")

	// Stock tools and ours agree that it is good.
	contains(t, "promtool check config", mustTool(t, dir, "promtool", "check", "config", "prometheus.yml"), "SUCCESS")
	contains(t, "amtool check-config", mustTool(t, dir, "amtool", "check-config", "alertmanager.yml"), "SUCCESS")
	contains(t, "tocsin check", mustTool(t, dir, tocsinBinary, "check", "tocsin.yml"), "good")

	// From elsewhere: paths are relative to the file they stand in.
	p := runTocsin(t, workDir(t), "--config.file="+filepath.Join(dir, "tocsin.yml"))
	wantTargets(p, live, dead)
	p.wantSome(60*time.Second, `job:up:count{job="node",level="job"} == 2`)
	p.wantSome(60*time.Second, `instance:node_cpu_busy:rate1m{rack="rack-7",host="127.0.0.1"}`)
	wantRules(p)
	wantAlerts(p, dead)

	t.Run("alertmanager status", func(t *testing.T) {
		status, body, err := fetch(http.MethodGet, p.amURL+"/api/v2/status", "", "")
		if err != nil || status != http.StatusOK {
			t.Fatal(status, body, err)
		}
		contains(t, "the status", body, "office-hours", "example.title", "#alerts", "smtp_smarthost: mail.example.org:587")
		for _, secret := range []string{"not-a-secret", "0123456789abcdef"} {
			if strings.Contains(body, secret) {
				t.Errorf("the status shows a secret")
			}
		}
	})
	t.Run("prometheus status", func(t *testing.T) {
		var config struct {
			YAML string `json:"yaml"`
		}
		if err := p.get("status/config", &config); err != nil {
			t.Fatal(err)
		}
		contains(t, "the configuration", config.YAML, "job_name: blackbox", "http_sd_configs", "longterm", "external_labels")
	})
	t.Run("outside alertmanagers", func(t *testing.T) {
		var found struct {
			Active []struct {
				URL string `json:"url"`
			} `json:"activeAlertmanagers"`
		}
		if err := p.get("alertmanagers", &found); err != nil {
			t.Fatal(err)
		}
		var urls []string
		for _, a := range found.Active {
			urls = append(urls, a.URL)
		}
		if !slices.Contains(urls, "http://alertmanager.example.org:9093/am/api/v2/alerts") {
			t.Errorf("they are %v", urls)
		}
	})
	p.stop()
}

func wantTargets(p *tocsin, live, dead string) {
	p.t.Helper()
	eventually(p.t, 60*time.Second, "the targets", func() error {
		targets, err := p.targets()
		if err != nil {
			return err
		}
		health := map[string]string{}
		for _, target := range targets {
			health[target.Labels["job"]+" "+target.Labels["instance"]] = target.Health
			if strings.HasPrefix(target.ScrapeURL, "http://blackbox.example.org:9115/probe?") {
				health["a probe"] = target.ScrapeURL
			}
		}
		want := health["node "+live] == "up" && health["node "+dead] == "down" &&
			strings.Contains(health["a probe"], "module=http_2xx&target=https") && health["blackbox https://example.org/login"] != ""
		if !want {
			return fmt.Errorf("they are %v", health)
		}
		return nil
	})
}

func wantRules(p *tocsin) {
	p.t.Helper()
	eventually(p.t, 60*time.Second, "the rules", func() error {
		groups, err := p.rules()
		if err != nil {
			return err
		}
		var names []string
		for _, g := range groups {
			for _, r := range g.Rules {
				names = append(names, g.Name+"/"+r.Name)
				if r.LastError != "" {
					return errors.New(r.LastError)
				}
			}
		}
		for _, want := range []string{"availability/Watchdog", "availability/DiskWillFill", "node/job:up:count", "slow/job:scrape_samples_scraped:sum"} {
			if !slices.Contains(names, want) {
				return fmt.Errorf("they are %v", names)
			}
		}
		return nil
	})
}

// wantAlerts waits until the critical alert inhibits the warning, and both are routed as the file says.
func wantAlerts(p *tocsin, dead string) {
	p.t.Helper()
	type alert struct {
		Labels    map[string]string       `json:"labels"`
		Receivers []struct{ Name string } `json:"receivers"`
		Status    struct {
			State       string   `json:"state"`
			InhibitedBy []string `json:"inhibitedBy"`
		} `json:"status"`
		Annotations map[string]string `json:"annotations"`
	}
	eventually(p.t, 90*time.Second, "the alerts", func() error {
		status, body, err := fetch(http.MethodGet, p.url+"/alertmanager/api/v2/alerts", "", "")
		if err != nil {
			return err
		}
		var alerts []alert
		if err := json.Unmarshal([]byte(body), &alerts); err != nil {
			return fmt.Errorf("%d %s: %w", status, body, err)
		}
		byName := map[string]alert{}
		for _, a := range alerts {
			byName[a.Labels["alertname"]] = a
		}
		down, missing, dog := byName["InstanceDown"], byName["ScrapesMissing"], byName["Watchdog"]
		switch {
		case down.Status.State != "active" || down.Labels["instance"] != dead || down.Labels["replica"] != "" || down.Labels["region"] != "eu-west":
			return fmt.Errorf("InstanceDown: %+v", down)
		case down.Annotations["runbook"] != "https://runbooks.example.org/NODE":
			return fmt.Errorf("InstanceDown: %+v", down)
		case len(down.Receivers) != 1 || down.Receivers[0].Name != "pager":
			return fmt.Errorf("InstanceDown: %+v", down)
		case missing.Status.State != "suppressed" || len(missing.Status.InhibitedBy) != 1:
			return fmt.Errorf("ScrapesMissing: %+v", missing)
		case dog.Status.State != "active" || len(dog.Receivers) != 1 || dog.Receivers[0].Name != "nowhere":
			return fmt.Errorf("Watchdog: %+v", dog)
		}
		return nil
	})
}
