package install

import (
	"strings"
	"testing"
)

// checkRestart holds that the package's restart finds the replica wherever its flags have put it, and asks it.
func (s *service) checkRestart(t *testing.T) {
	n := s.node
	const settings = "/etc/default/tocsin"
	asPacked := n.read(settings)
	for _, tc := range []string{
		`ARGS=""`,
		`ARGS="--web.route-prefix=/monitor"`,
		`ARGS="--web.external-url=https://monitor.example.org/a/b/ --web.listen-address 127.0.0.1:9191"`,
		// As systemd takes off quotes within.
		`ARGS="--web.listen-address='[::1]:9192' --web.listen-address=:9193"`,
		"ARGS=--web.listen-address=" + n.address + ":9090\nHTTP_PROXY=http://127.0.0.1:1",
		"ARGS=--web.listen-address=127.0.0.1:9194 --enable-feature=promql-experimental-functions\nDRAIN=--url=http://127.0.0.1:9194/ --timeout=1m",
	} {
		n.write(settings, tc+"\n", 0o644)
		n.run("systemctl", "restart", "tocsin")
		before := s.pid()
		out, err := n.try("/usr/lib/tocsin/restart", "10s")
		if after := s.pid(); err != nil || after == 0 || after == before || !strings.Contains(out, "may be stopped now") {
			t.Errorf("with %s it is not restarted: %v, process %d, and before %d: %s", tc, err, after, before, out)
		}
	}
	// That nothing could be asked is no fault of the configuration.
	n.write("/root/broken/systemd-run", "#!/bin/sh\nexit 1\n", 0o755)
	before := s.pid()
	if out, err := n.try("env", "PATH=/root/broken:/usr/bin:/bin", "/usr/lib/tocsin/restart", "10s"); err == nil ||
		!strings.Contains(out, "could not be asked") || strings.Contains(out, "refuses") || s.pid() != before {
		t.Errorf("where nothing can be asked: %v, process %d, and before %d: %s", err, s.pid(), before, out)
	}
	// Who may not be restarted holds up nobody.
	n.run("systemctl", "mask", "tocsin")
	if out, err := n.try("/usr/lib/tocsin/restart", "10s"); err != nil || !strings.Contains(out, "did not start") {
		t.Errorf("where it is masked: %v: %s", err, out)
	}
	if out := n.run("curl", "-sS", "http://127.0.0.1:9194/api/tocsin/v1/drain"); !strings.Contains(out, `"none"`) {
		t.Errorf("the other replicas wait for one that goes on: %s", out)
	}
	n.run("systemctl", "unmask", "tocsin")
	// The built-in configuration holds where there is none.
	n.write(settings, asPacked, 0o644)
	n.run("mv", "/etc/tocsin/tocsin.yml", "/root/")
	n.run("systemctl", "restart", "tocsin")
	if out, err := n.try("/usr/lib/tocsin/restart", "10s"); err != nil {
		t.Errorf("without a configuration it is not restarted: %v: %s", err, out)
	}
	n.run("mv", "/root/tocsin.yml", "/etc/tocsin/")
	n.run("systemctl", "restart", "tocsin")
	s.isActive()
}
