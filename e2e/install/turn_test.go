package install

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestUpgradeWaitsForItsTurn holds that a replica whose peer is down is upgraded, goes on running the version before,
// says so, and restarts by itself when the peer is back.
func TestUpgradeWaitsForItsTurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	v := w.versions()
	repo := w.repository(packageUnderTest(t))
	a, b := w.node("a"), w.node("b")
	services := []*service{{a}, {b}}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		t.Fatal(err)
	}
	key := base64.StdEncoding.EncodeToString(secret) + "\n"
	for _, s := range services {
		s.node.trust(repo)
		s.node.write("/etc/tocsin/tocsin.yml", fmt.Sprintf(`prometheus: prometheus.yml
alertmanager: alertmanager.yml
cluster: {name: pair, peers: [%s, %s], key_file: /run/credentials/tocsin.service/cluster.key}
`, a.address, b.address), 0o644)
		s.node.write("/etc/credstore/tocsin.cluster.key", key, 0o600)
		s.node.boot()
	}
	for _, s := range services {
		s.node.booted(time.Minute)
		s.node.apt("install", "tocsin")
		s.isActive()
	}
	eventually(t, time.Minute, "both are in the cluster", func() error {
		body, err := w.get(a.url(9090, "/api/tocsin/v1/cluster"))
		if err == nil && (!strings.Contains(body, `"a"`) || !strings.Contains(body, `"b"`)) {
			err = errors.New(body)
		}
		return err
	})
	b.crash()
	repo.add(v.pack(v.current+"+2", nil))
	before := services[0].pid()
	a.run("apt-get", "update", "-q")
	out := a.run("env", "TOCSIN_WAIT=3s", "apt-get", "-q", "-y", "upgrade")
	for _, want := range []string{"waiting", "version " + v.current + " goes on running", "tocsin-restart.service goes on waiting", "systemctl restart tocsin"} {
		if !strings.Contains(out, want) {
			t.Errorf("the upgrade does not say %q: %s", want, out)
		}
	}
	if got := services[0].pid(); got != before {
		t.Fatalf("it was restarted while its peer is down: process %d, and before %d", got, before)
	}
	if got := a.unit("tocsin-restart.service", "ActiveState"); got != "activating" {
		t.Errorf("nobody waits for its turn: tocsin-restart.service is %s", got)
	}
	// Who calls it off leaves nobody behind who waits, for which other replicas would wait.
	waits := func(want string) {
		t.Helper()
		eventually(t, time.Minute, "the replica is "+want, func() error {
			body, err := w.get(a.url(9090, "/api/tocsin/v1/drain"))
			if err == nil && !strings.Contains(body, `"state":"`+want+`"`) {
				err = errors.New(body)
			}
			return err
		})
	}
	waits("waiting")
	a.run("systemctl", "stop", "tocsin-restart")
	waits("none")
	if got := a.unit("tocsin-restart.service", "ActiveState"); got != "inactive" {
		t.Errorf("called off, tocsin-restart.service is %s", got)
	}
	a.run("systemctl", "start", "--no-block", "tocsin-restart")
	b.boot()
	services[1].isActive()
	eventually(t, 2*time.Minute, "it takes its turn", func() error {
		if got := services[0].pid(); got == 0 || got == before {
			return fmt.Errorf("process %d", got)
		}
		return nil
	})
	services[0].isActive()
}
