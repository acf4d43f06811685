package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestConfigFromBucket has one replica whose configuration is in a bucket: pushed, refused, changed, and there without it.
func TestConfigFromBucket(t *testing.T) {
	dir := workDir(t)
	own := write(t, dir, "bucket.yml", "bucket:\n  type: FILESYSTEM\n  config: {directory: "+filepath.Join(dir, "bucket")+"}\nconfig_from: {bucket: true, prefix: config/, poll: 1s}\n")
	write(t, dir, "new/tocsin.yml", `prometheus:
  rule_files: [rules/*.yml]
  scrape_configs:
  - job_name: files
    file_sd_configs: [{files: [targets/*.json]}]
  - job_name: bucket
    bucket_sd_configs: [{prefix: targets/, refresh_interval: 1s}]
`)
	rules := "groups:\n- name: g\n  rules: [{record: a:b, expr: vector(1)}]\n"
	write(t, dir, "new/rules/a.yml", rules)
	write(t, dir, "new/targets/t.json", `[{"targets":["127.0.0.1:1"]}]`)
	write(t, dir, "bucket/targets/u.json", `[{"targets":["127.0.0.1:2"]}]`)

	p := runTocsin(t, dir, "--config.file="+own)
	api := func(path string, v any) error { return getJSON(p.url+path, v) }
	type source struct {
		Hash, State, Problem string
		Seen                 string `json:"seen_hash"`
	}
	in := func(state string) func() error {
		return func() error {
			var s source
			if err := api("/api/tocsin/v1/config", &s); err != nil {
				return err
			}
			if s.State != state {
				return fmt.Errorf("%+v", s)
			}
			return nil
		}
	}
	targets := func(want ...string) func() error {
		return func() error {
			var a struct {
				Data struct {
					ActiveTargets []struct{ ScrapeURL string }
				}
			}
			if err := api("/api/v1/targets", &a); err != nil {
				return err
			}
			var got []string
			for _, t := range a.Data.ActiveTargets {
				got = append(got, t.ScrapeURL)
			}
			for _, w := range want {
				if !strings.Contains(strings.Join(got, " "), w) {
					return fmt.Errorf("%s is not among %v", w, got)
				}
			}
			if len(got) != len(want) {
				return fmt.Errorf("targets: %v", got)
			}
			return nil
		}
	}
	groups := func(want string) func() error {
		return func() error {
			var a struct {
				Data struct {
					Groups []struct{ Name, File string }
				}
			}
			if err := api("/api/v1/rules", &a); err != nil {
				return err
			}
			if len(a.Data.Groups) != 1 || filepath.Base(a.Data.Groups[0].File) != want {
				return fmt.Errorf("%+v", a.Data.Groups)
			}
			return nil
		}
	}

	eventually(t, 10*time.Second, "an empty bucket is waited for", in("waiting"))
	out := mustTool(t, dir, tocsinBinary, "config", "push", "--config.file="+own, "--url="+p.url, "new")
	if !strings.Contains(out, "ok") {
		t.Fatalf("push says %s", out)
	}
	eventually(t, 10*time.Second, "applied", in("applied"))
	eventually(t, 20*time.Second, "targets of both kinds", targets(":1/", ":2/"))
	eventually(t, 10*time.Second, "rules", groups("a.yml"))

	// A push that is wrong stays at home, and one that came another way is refused here.
	write(t, dir, "bad/tocsin.yml", "prometheus: {scrape_config: []}\n")
	if _, stderr, code := tool(t, dir, tocsinBinary, "config", "push", "--config.file="+own, "--url="+p.url, "bad"); code != 2 || !strings.Contains(stderr, "scrape_config") {
		t.Fatalf("a bad push ended with %d: %s", code, stderr)
	}
	if err := os.Remove(filepath.Join(dir, "bucket/config/.tocsin-push.json")); err != nil {
		t.Fatal(err)
	}
	good := readFile(t, dir, "bucket/config/tocsin.yml")
	write(t, dir, "bucket/config/tocsin.yml", "prometheus: {scrape_config: []}\n")
	eventually(t, 20*time.Second, "refused", in("refused"))
	if err := targets(":1/", ":2/")(); err != nil {
		t.Errorf("a refused configuration has changed something: %v", err)
	}
	write(t, dir, "bucket/config/tocsin.yml", good)
	eventually(t, 20*time.Second, "applied again", in("applied"))

	// What is renamed there is renamed here: one group, not two.
	if err := os.Rename(filepath.Join(dir, "new/rules/a.yml"), filepath.Join(dir, "new/rules/b.yml")); err != nil {
		t.Fatal(err)
	}
	mustTool(t, dir, tocsinBinary, "config", "push", "--config.file="+own, "--url="+p.url, "new")
	eventually(t, 10*time.Second, "the renamed file", groups("b.yml"))

	// Without the bucket, what was there goes on, over a restart too.
	if err := os.Rename(filepath.Join(dir, "bucket"), filepath.Join(dir, "away")); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the bucket is missed", in("waiting"))
	p.stop()
	p = runTocsin(t, dir, "--config.file="+own)
	eventually(t, 20*time.Second, "targets of both kinds without the bucket", targets(":1/", ":2/"))
	eventually(t, 10*time.Second, "rules without the bucket", groups("b.yml"))
	p.stop()
}

// getJSON reads an answer.
func getJSON(url string, v any) error {
	status, body, err := fetch(http.MethodGet, url, "", "")
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s: %d %s", url, status, body)
	}
	return json.Unmarshal([]byte(body), v)
}

// TestConfigForAll has the configuration of three replicas in one bucket: a push reaches all, what is wrong is refused by all and
// named in an alert, and so is who lags behind.
func TestConfigForAll(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	root := filepath.Join(c.dir, "bucket")
	for _, r := range c.replicas {
		write(t, r.dir, "tocsin.yml", fmt.Sprintf(`bucket: {type: FILESYSTEM, config: {directory: %q}}
cluster: {name: e2e, peers: [%s], key_file: cluster.key}
replica: {name: %s, zone: zone-%s}
config_from: {bucket: true, prefix: config/, poll: 1s}
`, root, quoted(r.peers), r.name, r.name))
	}
	write(t, c.dir, "new/tocsin.yml", `prometheus:
  global: {scrape_interval: 1s, evaluation_interval: 1s}
  rule_files: [rules/*.yml]
alertmanager:
  route: {receiver: none}
  receivers: [{name: none}]
`)
	write(t, c.dir, "new/rules/a.yml", "groups:\n- name: g\n  rules: [{record: a:b, expr: vector(1)}]\n")
	for _, r := range c.replicas {
		r.start()
	}
	for _, r := range c.replicas {
		r.ready()
	}
	eventually(t, 30*time.Second, "the mesh forms", c.sees(c.options.names, c.options.names...))

	type member struct {
		Name   string
		Config struct{ Hash, State string }
	}
	// alike holds that every replica says of every one that it is in that state, all with one hash.
	alike := func(state string) func() error {
		return func() error {
			hashes := map[string]bool{}
			for _, r := range c.replicas {
				var a struct{ Members []member }
				if err := getJSON(r.url+"/api/tocsin/v1/cluster", &a); err != nil {
					return err
				}
				if len(a.Members) != 3 {
					return fmt.Errorf("%s knows %d members", r.name, len(a.Members))
				}
				for _, m := range a.Members {
					hashes[m.Config.Hash] = true
					if m.Config.State != state {
						return fmt.Errorf("%s says of %s that it is %q", r.name, m.Name, m.Config.State)
					}
				}
			}
			if len(hashes) != 1 {
				return fmt.Errorf("hashes %v", hashes)
			}
			return nil
		}
	}
	groups := func(want string) func() error {
		return func() error {
			for _, r := range c.replicas {
				var a struct {
					Data struct{ Groups []struct{ File string } }
				}
				if err := getJSON(r.url+"/api/v1/rules", &a); err != nil {
					return err
				}
				if len(a.Data.Groups) != 1 || filepath.Base(a.Data.Groups[0].File) != want {
					return fmt.Errorf("%s has %+v", r.name, a.Data.Groups)
				}
			}
			return nil
		}
	}
	// named holds that exactly these are in an alert.
	named := func(want ...string) func() error {
		return func() error {
			for _, r := range c.replicas {
				var alerts []struct{ Labels map[string]string }
				if err := getJSON(r.amURL+"/api/v2/alerts?filter=alertname=TocsinConfigDiffers", &alerts); err != nil {
					return err
				}
				var got []string
				for _, a := range alerts {
					got = append(got, a.Labels["member"])
				}
				slices.Sort(got)
				if !slices.Equal(got, want) {
					return fmt.Errorf("%s has alerts of %v", r.name, got)
				}
			}
			return nil
		}
	}
	push := func() string {
		return mustTool(t, c.dir, tocsinBinary, "config", "push", "--config.file="+filepath.Join(c.a().dir, "tocsin.yml"), "--url="+c.a().url, "new")
	}

	out := push()
	for _, name := range c.options.names {
		contains(t, "what push says", out, name)
	}
	// It has waited for all. What they tell each other of that may take a moment.
	if err := groups("a.yml")(); err != nil {
		t.Error(err)
	}
	eventually(t, 10*time.Second, "all say that all have it", alike("applied"))
	if err := os.Rename(filepath.Join(c.dir, "new/rules/a.yml"), filepath.Join(c.dir, "new/rules/b.yml")); err != nil {
		t.Fatal(err)
	}
	push()
	eventually(t, 10*time.Second, "one group of the renamed file", groups("b.yml"))

	// Past the check of push.
	good := readFile(t, root, "config/tocsin.yml")
	manifest := readFile(t, root, "config/.tocsin-push.json")
	if err := os.Remove(filepath.Join(root, "config/.tocsin-push.json")); err != nil {
		t.Fatal(err)
	}
	write(t, root, "config/tocsin.yml", "prometheus: {scrape_config: []}\n")
	eventually(t, 20*time.Second, "all refuse it", alike("refused"))
	eventually(t, 20*time.Second, "the alert names all", named("a", "b", "c"))
	if err := groups("b.yml")(); err != nil {
		t.Error(err)
	}
	write(t, root, "config/tocsin.yml", good)
	write(t, root, "config/.tocsin-push.json", manifest)
	eventually(t, 20*time.Second, "all have the good one", alike("applied"))
	eventually(t, 20*time.Second, "the alert is over", named())

	// Who does not see the bucket lags.
	b := c.b()
	b.stop()
	write(t, b.dir, "tocsin.yml", strings.Replace(readFile(t, b.dir, "tocsin.yml"), root, filepath.Join(c.dir, "empty"), 1))
	b.start().ready()
	write(t, c.dir, "new/rules/c.yml", "groups:\n- name: h\n  rules: [{record: c:d, expr: vector(1)}]\n")
	_, stderr, code := tool(t, c.dir, tocsinBinary, "config", "push", "--config.file="+filepath.Join(c.a().dir, "tocsin.yml"), "--url="+c.a().url, "--timeout=5s", "new")
	if code == 0 || !strings.Contains(stderr, "b") {
		t.Errorf("a push that does not reach b ends with %d: %s", code, stderr)
	}
	eventually(t, 20*time.Second, "the alert names b", func() error {
		var alerts []struct{ Labels map[string]string }
		if err := getJSON(c.a().amURL+"/api/v2/alerts?filter=alertname=TocsinConfigDiffers", &alerts); err != nil {
			return err
		}
		for _, a := range alerts {
			if a.Labels["member"] == "b" {
				return nil
			}
		}
		return fmt.Errorf("alerts: %v", alerts)
	})
}
