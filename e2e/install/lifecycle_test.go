package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const unit = "tocsin.service"

// TestLifecycle is the life of one machine: the package is installed, used, upgraded, downgraded, removed and purged.
func TestLifecycle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	v := w.versions()
	second, third := v.current+"+2", v.current+"+3"
	repo := w.repository(packageUnderTest(t))
	n := w.node("vm")
	n.trust(repo)
	n.boot()
	n.booted(time.Minute)

	n.apt("install", "tocsin")
	s := &service{node: n}
	s.isActive()
	s.hasTarget("tocsin")
	s.hasTarget("node")
	t.Run("hardening", func(t *testing.T) { s.checkHardening(t) })
	t.Run("host metrics", func(t *testing.T) { s.checkHost(t) })
	t.Run("files", func(t *testing.T) { checkFiles(t, n) })
	t.Run("completion", func(t *testing.T) { checkCompletion(t, n) })
	t.Run("drop-ins", func(t *testing.T) { s.checkDropIns(t) })
	t.Run("watchdog", func(t *testing.T) { s.checkWatchdog(t) })
	t.Run("restart", func(t *testing.T) { s.checkRestart(t) })

	before := s.pid()
	n.run("kill", "-9", strconv.Itoa(before))
	s.isOther(before)
	mark := time.Now()
	s.hasTargetSince("tocsin", mark)

	// Changed on both sides, which without a terminal dpkg would not decide.
	n.write("/etc/tocsin/prometheus.yml", n.read("/etc/tocsin/prometheus.yml")+"# mine\n", 0o644)
	repo.add(v.pack(second, func(dir string) {
		replace(t, filepath.Join(dir, "etc/tocsin/prometheus.yml"), func(s string) string { return s + "# theirs\n" })
	}))
	before = s.pid()
	n.apt("upgrade")
	s.isOther(before)
	if got := n.read("/etc/tocsin/prometheus.yml"); !strings.HasSuffix(got, "# mine\n") {
		t.Errorf("an upgrade has changed what the administrator had edited: %s", got)
	}
	s.hadTarget("tocsin", mark)

	// What the new version refuses is not restarted into, and is said.
	n.write("/etc/tocsin/rules.d/bad.yml", "groups: [{name: a, rules: [{alert: A, expr: 'sum('}]}]\n", 0o644)
	repo.add(v.pack(third, nil))
	before = s.pid()
	out := n.apt("upgrade")
	for _, want := range []string{"bad.yml", "refuses the configuration", "systemctl start tocsin-restart"} {
		if !strings.Contains(out, want) {
			t.Errorf("the upgrade does not say %q: %s", want, out)
		}
	}
	if got := s.pid(); got != before {
		t.Errorf("process %d was restarted into a configuration that it refuses: now %d", before, got)
	}
	s.isActive()
	n.remove("/etc/tocsin/rules.d/bad.yml")
	n.run("systemctl", "start", "tocsin-restart")
	s.isOther(before)

	before = s.pid()
	n.apt("install", "--allow-downgrades", "tocsin="+v.current)
	s.isOther(before)
	s.hadTarget("tocsin", mark)

	n.stop()
	n.boot()
	n.booted(time.Minute)
	s.isActive()
	s.hadTarget("tocsin", mark)

	n.apt("remove", "tocsin")
	if _, err := w.get(n.url(9090, "/-/healthy")); err == nil {
		t.Error("it runs on after it was removed")
	}
	for _, path := range []string{"/etc/tocsin/prometheus.yml", "/etc/default/tocsin", "/var/lib/tocsin/tocsin.json"} {
		if !n.exists(path) {
			t.Errorf("removing the package has removed %s", path)
		}
	}
	if out := n.apt("install", "tocsin="+second); strings.Contains(out, "may be stopped") {
		t.Errorf("what was started a moment ago is restarted: %s", out)
	}
	s.isActive()
	s.hadTarget("tocsin", mark)

	out = n.apt("purge", "tocsin")
	for _, path := range []string{"/etc/tocsin", "/etc/default/tocsin", "/var/lib/tocsin"} {
		if n.exists(path) {
			t.Errorf("purging the package has left %s", path)
		}
	}
	if !strings.Contains(out, "removing /var/lib/tocsin with all that is in it") {
		t.Errorf("purging does not say that it removes the data: %s", out)
	}
	if failed := n.run("systemctl", "list-units", "--failed", "--no-legend", "--plain"); failed != "" {
		t.Errorf("units have failed: %s", failed)
	}
}

// service is Tocsin on a machine.
type service struct{ node *node }

func (s *service) pid() int {
	s.node.t.Helper()
	pid, err := strconv.Atoi(s.node.unit(unit, "MainPID"))
	if err != nil {
		s.node.t.Fatal(err)
	}
	return pid
}

// isActive waits until the service is up, in the sense of systemd and over HTTP.
func (s *service) isActive() {
	n := s.node
	n.t.Helper()
	eventually(n.t, time.Minute, "tocsin is active", func() error {
		if got := n.unit(unit, "ActiveState"); got != "active" {
			return errors.New(got)
		}
		_, err := n.w.get(n.url(9090, "/-/ready"))
		return err
	})
	if got := n.unit(unit, "StatusText"); got == "" {
		n.t.Error("systemctl status says nothing about what it does")
	}
}

// isOther is isActive with another process than before.
func (s *service) isOther(before int) {
	s.node.t.Helper()
	eventually(s.node.t, time.Minute, "another process runs", func() error {
		if pid := s.pid(); pid == 0 || pid == before {
			return fmt.Errorf("it is process %d", pid)
		}
		return nil
	})
	s.isActive()
}

// query returns how many series an instant query gives.
func (s *service) query(query string, at time.Time) (int, error) {
	body, err := s.node.w.get(s.node.url(9090, "/api/v1/query?query="+url.QueryEscape(query)+"&time="+strconv.FormatInt(at.Unix(), 10)))
	if err != nil {
		return 0, err
	}
	var answer struct {
		Data struct{ Result []json.RawMessage }
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		return 0, err
	}
	return len(answer.Data.Result), nil
}

// hasTarget waits until a job's target is up.
func (s *service) hasTarget(job string) {
	s.node.t.Helper()
	s.hasTargetSince(job, time.Time{})
}

// hasTargetSince waits until a job's target was scraped after some moment.
func (s *service) hasTargetSince(job string, since time.Time) {
	s.node.t.Helper()
	eventually(s.node.t, time.Minute, job+" is up", func() error {
		count, err := s.query(fmt.Sprintf("up{job=%q} == 1 and timestamp(up) > %d", job, since.Unix()), time.Now())
		if err == nil && count != 1 {
			err = fmt.Errorf("%d series", count)
		}
		return err
	})
}

// hadTarget holds that what was scraped after some moment is still there.
func (s *service) hadTarget(job string, since time.Time) {
	s.node.t.Helper()
	if count, err := s.query(fmt.Sprintf("max_over_time(up{job=%q}[20s])", job), since.Add(20*time.Second)); err != nil || count != 1 {
		s.node.t.Errorf("what was stored before is not there: %d series, %v", count, err)
	}
}

// checkHardening holds that what the unit says is in force.
func (s *service) checkHardening(t *testing.T) {
	n := s.node
	pid := strconv.Itoa(s.pid())
	status := map[string]string{}
	for line := range strings.Lines(n.run("cat", "/proc/"+pid+"/status")) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.Join(strings.Fields(value), " ")
	}
	for key, want := range map[string]string{
		"CapEff": "0000000000000000", "CapBnd": "0000000000000000", "CapPrm": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
	} {
		if status[key] != want {
			t.Errorf("%s is %q, want %q", key, status[key], want)
		}
	}
	uid := strings.TrimSpace(n.run("id", "-u", "tocsin"))
	if got := strings.Fields(status["Uid"]); len(got) == 0 || uid == "0" || got[0] != uid {
		t.Errorf("it runs as %v, and the user tocsin is %s", got, uid)
	}
	// Where these machines as a whole may have fewer, all of them.
	limit := func(pid, kind string) string {
		return strings.TrimSpace(n.run("prlimit", "--pid", pid, "--nofile", "--raw", "--noheadings", "--output", kind))
	}
	if got, most := limit(pid, "SOFT"), limit("1", "HARD"); got != "1048576" && (got != most || len(most) > len("1048576")) {
		t.Errorf("its limit of open files is %s, and may be %s", got, most)
	}
	// As root in its place: what root may not, it may not.
	inside := []string{"nsenter", "--target", pid, "--mount", "--"}
	for _, dir := range []string{"/usr", "/etc/tocsin", "/var/lib", "/proc/sys/kernel"} {
		if out, err := n.try(append(inside, "touch", dir+"/probe")...); err == nil || !strings.Contains(out, "ead-only file system") && !strings.Contains(out, "ermission denied") && !strings.Contains(out, "No such file") {
			t.Errorf("it can write to %s: %s", dir, out)
		}
	}
	n.run(append(inside, "touch", "/var/lib/tocsin/probe")...)
	n.run("rm", "/var/lib/tocsin/probe")
	n.write("/home/somebody/secret", "secret", 0o644)
	n.run("touch", "/tmp/shared")
	if out, err := n.try(append(inside, "cat", "/home/somebody/secret")...); err == nil {
		t.Errorf("it can read homes: %s", out)
	}
	if out, err := n.try(append(inside, "ls", "/tmp/shared")...); err == nil {
		t.Errorf("it sees what others have in /tmp: %s", out)
	}
	if got := n.run("stat", "--format=%a %U %G", "/var/lib/tocsin"); got != "750 tocsin tocsin\n" {
		t.Errorf("the data directory is %s", got)
	}
}

// checkHost holds that the sandbox lets the host's metrics through, and the limit of memory be found.
func (s *service) checkHost(t *testing.T) {
	for _, metric := range []string{
		"node_memory_MemTotal_bytes > 0", "node_load1", "node_cpu_seconds_total", `node_network_receive_bytes_total{device="eth0"}`,
		"node_filesystem_size_bytes", "node_disk_io_time_seconds_total", "node_vmstat_pgfault", "node_filefd_allocated",
	} {
		if count, err := s.query(metric, time.Now()); err != nil || count == 0 {
			t.Errorf("%s: %d series, %v", metric, count, err)
		}
	}
	body, err := s.node.w.get(s.node.url(9090, "/api/v1/status/runtimeinfo"))
	var info struct {
		Data struct {
			GOMEMLIMIT int64 `json:"GOMEMLIMIT"`
		}
	}
	if err == nil {
		err = json.Unmarshal([]byte(body), &info)
	}
	if err != nil || info.Data.GOMEMLIMIT <= 0 || info.Data.GOMEMLIMIT > 1<<50 {
		t.Errorf("the limit of memory is %d, %v", info.Data.GOMEMLIMIT, err)
	}
}

// checkFiles holds what belongs to whom.
func checkFiles(t *testing.T, n *node) {
	for _, f := range []string{"/etc/tocsin/tocsin.yml", "/etc/tocsin/prometheus.yml", "/etc/tocsin/alertmanager.yml", "/etc/default/tocsin"} {
		if out := n.run("dpkg-query", "-W", "-f=${Conffiles}", "tocsin"); !strings.Contains(out, " "+f+" ") {
			t.Errorf("%s is no conffile", f)
		}
	}
	n.run("tocsin", "check", "/etc/tocsin/tocsin.yml")
	if out := n.run("dpkg", "--verify", "tocsin"); strings.Contains(out, "/etc") || strings.Contains(out, "/bin") {
		t.Errorf("installed files are not as packed: %s", out)
	}
	// The user is made by systemd, which is there.
	if out := n.run("dpkg-query", "-W", "-f=${Depends}", "tocsin"); strings.Contains(out, ",") || !strings.HasPrefix(out, "systemd ") {
		t.Errorf("the package depends on %s", out)
	}
}

// checkCompletion asks bash as a key press does.
func checkCompletion(t *testing.T, n *node) {
	for line, want := range map[string]string{
		"tocsin ch":                   "check",
		"tocsin run --log.l":          "--log.level=",
		"tocsin run --log.level=w":    "warn",
		"tocsin cluster k":            "keygen",
		"tocsin check /etc/default/t": "/etc/default/tocsin",
	} {
		script := `. /usr/share/bash-completion/bash_completion; . /usr/share/bash-completion/completions/tocsin
compopt() { :; }
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9; COMP_WORDS=(${1/=/ = }); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _tocsin; echo "${COMPREPLY[*]}"`
		if out := strings.TrimSpace(n.run("bash", "-c", script, "bash", line)); out != want {
			t.Errorf("%q is completed by %q, want %q", line, out, want)
		}
	}
}

// checkDropIns holds that files of the administrator's own are taken with a reload.
func (s *service) checkDropIns(t *testing.T) {
	n := s.node
	n.write("/etc/tocsin/rules.d/mine.yml", "groups: [{name: mine, rules: [{record: mine, expr: vector(1)}]}]\n", 0o644)
	n.write("/etc/tocsin/scrape.d/mine.yml", "scrape_configs: [{job_name: mine, scrape_interval: 1s, static_configs: [{targets: ['localhost:9090']}]}]\n", 0o644)
	before := s.pid()
	n.run("systemctl", "reload", "tocsin")
	s.hasTarget("mine")
	eventually(t, time.Minute, "the rule is evaluated", func() error {
		count, err := s.query("mine", time.Now())
		if err == nil && count == 0 {
			err = errors.New("no series")
		}
		return err
	})
	if got := s.pid(); got != before {
		t.Errorf("a reload has restarted it: %d, and before %d", got, before)
	}
}

// checkWatchdog holds that a process that hangs is replaced, here sooner than with the times of the package.
func (s *service) checkWatchdog(t *testing.T) {
	n := s.node
	if got := n.unit(unit, "WatchdogUSec"); got != "30s" {
		t.Errorf("the watchdog's time is %s", got)
	}
	dropIn := "/etc/systemd/system/tocsin.service.d/test.conf"
	n.write(dropIn, "[Service]\nWatchdogSec=3s\nTimeoutAbortSec=1s\n", 0o644)
	n.run("systemctl", "daemon-reload")
	n.run("systemctl", "restart", "tocsin")
	s.isActive()
	before := s.pid()
	n.run("kill", "-STOP", strconv.Itoa(before))
	s.isOther(before)
	if out := n.run("journalctl", "--unit=tocsin", "--no-pager"); !strings.Contains(out, "Watchdog timeout") {
		t.Errorf("it was not the watchdog: %s", tail(out, 20))
	}
	if err := os.Remove(filepath.Join(n.disk, dropIn)); err != nil {
		t.Fatal(err)
	}
	n.run("systemctl", "daemon-reload")
	n.run("systemctl", "restart", "tocsin")
	s.isActive()
}
