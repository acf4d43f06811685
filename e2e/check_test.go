package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// brokenTocsin has a mistake of each kind; each is named with its place.
const brokenTocsin = `replica: {name: a, zoen: west}
prometheus:
  global: {scrape_interval: 15s, scrape_timeot: 3s}
  rule_files: [broken-rules.yml, absent-rules.yml]
  scrape_configs:
    - job_name: one
      scrape_interval: 5s
      scrape_timeout: 10s
    - job_name: two
      basic_auth: {username: u, password_file: absent-password}
alertmanager:
  route: {receiver: nobody}
  receivers:
    - name: somebody
      email_configs: [{to: a@example.org, headers: {Subject: '{{ .Unclosed '}}]
federation:
  - name: up
    url: ftp://example.org
    metrics: [{match: 'up{'}]
clutser: {}
`

var brokenFindings = []string{
	`tocsin.yml:1: replica.zoen: `,
	`tocsin.yml:3: prometheus.global.scrape_timeot: `,
	`broken-rules.yml:4: `,
	`absent-rules.yml`,
	`tocsin.yml:8: prometheus.scrape_configs[0].scrape_timeout: `,
	`absent-password`,
	`nobody`,
	`tocsin.yml:15: alertmanager.receivers[0].email_configs[0].headers`,
	`tocsin.yml:18: federation[0].url: `,
	`tocsin.yml:19: federation[0].metrics[0].match: `,
	`tocsin.yml:20: clutser: `,
}

// TestCheck holds that one look finds everything, and that run refuses what check refuses.
func TestCheck(t *testing.T) {
	t.Parallel()
	dir := workDir(t)
	write(t, dir, "tocsin.yml", brokenTocsin)
	write(t, dir, "broken-rules.yml", "groups:\n  - name: g\n    rules:\n      - {record: r, expr: 'sum('}\n")
	lineOf := regexp.MustCompile(`^[^:]+:\d+: \S.*: \S`)

	t.Run("all findings at once", func(t *testing.T) {
		stdout, stderr, code := tool(t, dir, tocsinBinary, "check", "tocsin.yml")
		if code != 2 {
			t.Errorf("check ends with %d:\n%s%s", code, stdout, stderr)
		}
		contains(t, "check", stderr, brokenFindings...)
		for line := range strings.Lines(stderr) {
			if !lineOf.MatchString(line) {
				t.Errorf("not FILE:LINE: field: problem: %s", line)
			}
		}
	})
	t.Run("run refuses likewise", func(t *testing.T) {
		p := startTocsin(t, dir, "--config.file=tocsin.yml", "--storage.path=refused")
		if code := p.wait(30 * time.Second); code != 2 {
			t.Errorf("run ends with %d", code)
		}
		contains(t, "run", p.output(), brokenFindings...)
		if strings.Contains(p.output(), "goroutine ") {
			t.Errorf("run has crashed")
		}
		if _, err := os.Stat(filepath.Join(dir, "refused")); !os.IsNotExist(err) {
			t.Errorf("run has touched the data directory of a configuration that it refuses: %v", err)
		}
	})
	t.Run("a good file", func(t *testing.T) {
		write(t, dir, "good.yml", "replica: {name: a}\n")
		if out := mustTool(t, dir, tocsinBinary, "check", "good.yml"); !strings.Contains(out, "good") {
			t.Errorf("check says %q", out)
		}
	})
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"check of an absent file", []string{"check", "absent.yml"}, 2, "absent.yml"},
		{"run with an absent file that was named", []string{"run", "--config.file=absent.yml", "--storage.path=refused", "--web.listen-address=127.0.0.1:0", "--alertmanager.listen-address="}, 2, "absent.yml"},
		{"unknown flag", []string{"run", "--no.such-flag"}, 2, "--no.such-flag"},
		{"unknown command", []string{"frobnicate"}, 2, "frobnicate"},
		{"no command", nil, 2, "tocsin --help"},
		{"flag of a wrong type", []string{"run", "--query.timeout=soon"}, 2, "soon"},
		{"unknown feature", []string{"run", "--enable-feature=time-travel"}, 2, "time-travel"},
		{"address in use or wrong", []string{"run", "--storage.path=refused", "--web.listen-address=nonsense"}, 1, "nonsense"},
		{"cluster address", []string{"run", "--storage.path=refused", "--web.listen-address=127.0.0.1:0", "--cluster.listen-address=nonsense"}, 2, "nonsense"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, stderr, code := tool(t, dir, tocsinBinary, c.args...)
			if code != c.code {
				t.Errorf("it ends with %d, not %d:\n%s", code, c.code, stderr)
			}
			contains(t, "the message", stderr, c.want)
		})
	}
	t.Run("version", func(t *testing.T) {
		contains(t, "version", mustTool(t, dir, tocsinBinary, "version"), "tocsin, version ", "go version", "prometheus:", "alertmanager:")
	})
	t.Run("help", func(t *testing.T) {
		contains(t, "help", mustTool(t, dir, tocsinBinary, "run", "--help"), "--config.file", "--storage.path", "--web.listen-address",
			"--web.external-url", "--web.route-prefix", "--alertmanager.listen-address", "--cluster.listen-address",
			"--grpc.listen-address", "--log.level", "--log.format")
	})
}

// TestBuiltin is what runs where there is no file at all: the process and its machine are watched.
func TestBuiltin(t *testing.T) {
	t.Parallel()
	// With a file at the default place there is no way to the built-in configuration: that is the rule under test.
	if _, err := os.Stat("/etc/tocsin/tocsin.yml"); err == nil {
		t.Skip("this machine has /etc/tocsin/tocsin.yml")
	}
	dir := workDir(t)
	p := runTocsin(t, dir)
	p.wantValue(40*time.Second, `sum(up{job=~"tocsin|node"})`, 2)
	p.wantSome(40*time.Second, `node_memory_MemAvailable_bytes`)
	p.wantSome(40*time.Second, `node_cpu_seconds_total`)
	p.wantSome(40*time.Second, `node_filesystem_avail_bytes or node_load1`)
	p.wantSome(40*time.Second, `tocsin_build_info`)
	p.wantSome(40*time.Second, `prometheus_build_info and on () alertmanager_build_info`)
	if n, err := p.value(`count({job="tocsin",__name__=~"node_.*"})`); err == nil {
		t.Errorf("%v host metrics are among the process's own", n)
	}
	p.stop()
}
