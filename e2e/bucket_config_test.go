package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
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
	api := func(path string, v any) error {
		status, body, err := fetch(http.MethodGet, p.url+path, "", "")
		if err != nil {
			return err
		}
		if status != http.StatusOK {
			return fmt.Errorf("%s: %d %s", path, status, body)
		}
		return json.Unmarshal([]byte(body), v)
	}
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
