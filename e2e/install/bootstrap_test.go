package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// bootMost is how long it may take from the start of three machines to a cluster of three.
const bootMost = 120 * time.Second

// TestThreeZones boots three bare machines from the one document: a cluster, without a login. Then one is replaced, and
// all three are upgraded at once.
func TestThreeZones(t *testing.T) {
	w := newWorld(t)
	s := newSite(w)
	s.configure()
	doc := s.document("three-zones.yaml",
		"https://apt.example.org/tocsin", s.repo.url,
		"endpoint: s3.eu-central-1.amazonaws.com", fmt.Sprintf("endpoint: %q, insecure: true", s.s3))

	f := &fleet{t: t, w: w}
	for _, zone := range []string{"a", "b", "c"} {
		n := w.node(zone)
		n.route()
		s.place(n, doc, "i-"+zone, "zone-"+zone)
		f.machines = append(f.machines, &machine{node: n, volume: w.volume(zone, 256)})
	}
	// On one of them the key comes from the hypervisor.
	c := f.machines[2]
	c.remove("/etc/credstore")
	c.boots = []string{"--set-credential=tocsin.cluster.key:" + s.key}

	begin := time.Now()
	for _, m := range f.machines {
		m.start()
	}
	eventually(t, bootMost, "three bare machines are a cluster", f.whole)
	t.Logf("from the start of the machines to a cluster of three: %s", time.Since(begin).Round(time.Second/10))
	for _, m := range f.machines {
		m.cloudInit()
		m.booted(time.Minute)
		m.onVolume()
		if got := m.run("stat", "--format=%U %a", "/run/credentials/tocsin.service/cluster.key"); !strings.HasSuffix(strings.TrimSpace(got), "400") && !strings.HasSuffix(strings.TrimSpace(got), "440") {
			t.Errorf("%s: the key is there as %q", m.name, got)
		}
		if out, err := m.try("grep", "-rlF", s.key, "/var/lib/cloud", "/run/cloud-init", "/var/log"); err == nil {
			t.Errorf("%s: the key is in %s", m.name, out)
		}
	}
	eventually(t, time.Minute, "the configuration of the bucket is at work", f.measured)

	t.Run("replace", f.replace(s, doc))
	t.Run("upgrade", f.upgrade(s))
}

// TestSingle boots one machine from the document for one.
func TestSingle(t *testing.T) {
	w := newWorld(t)
	s := &site{w: w, repo: w.repository(packageUnderTest(t))}
	n := w.node("a")
	n.seed(s.document("single.yaml", "https://apt.example.org/tocsin", s.repo.url), "instance-id: i-a\nlocal-hostname: a\n")
	m := &machine{node: n, volume: w.volume("a", 256)}
	f := &fleet{t: t, w: w, machines: []*machine{m}}
	begin := time.Now()
	m.start()
	eventually(t, bootMost, "it measures its host", func() error {
		got, err := f.value(n, `up{job="node"}`)
		if err == nil && got != 1 {
			err = fmt.Errorf("up is %v", got)
		}
		return err
	})
	t.Logf("from the start of the machine to its first samples: %s", time.Since(begin).Round(time.Second/10))
	m.cloudInit()
	m.booted(time.Minute)
	m.onVolume()

	// Without its volume it does not start on the disk of the system, and with it, however late it comes, by itself.
	m.stop()
	m.write("/etc/default/tocsin", m.read("/etc/default/tocsin")+"VOLUME_WAIT=1\n", 0o644)
	m.boot()
	eventually(t, time.Minute, "it says what is missing", func() error {
		said, err := m.try("journalctl", "--boot", "--unit=tocsin-volume", "--output=cat")
		if err == nil && !strings.Contains(said, "there is no volume for /var/lib/tocsin") {
			err = errors.New(said)
		}
		return err
	})
	if out := m.run("find", "/var/lib/tocsin", "-mindepth", "1"); out != "" || m.unit("tocsin", "MainPID") != "0" {
		t.Errorf("without its volume it runs, and has written %q", out)
	}
	m.run("mknod", "/dev/vdb", "b", "7", strings.TrimPrefix(m.volume.path, "/dev/loop"))
	eventually(t, time.Minute, "it is back with its volume", func() error { _, err := w.get(m.url(9090, "/-/ready")); return err })
	m.onVolume()
}

// TestDocuments has the real cloud-init look at the documents.
func TestDocuments(t *testing.T) {
	w := newWorld(t)
	n := w.node("a")
	for _, name := range []string{"three-zones.yaml", "single.yaml", "behind-proxy.yaml"} {
		b, err := os.ReadFile(filepath.Join("../../cloud-init", name))
		if err != nil {
			t.Fatal(err)
		}
		n.write("/root/"+name, string(b), 0o644)
		if out := w.must("chroot", n.disk, "cloud-init", "schema", "--config-file", "/root/"+name); !strings.Contains(out, "Valid ") {
			t.Errorf("%s: %s", name, out)
		}
	}
}

// replace gives a zone a new machine, to which the volume of the old one is attached.
func (f *fleet) replace(s *site, doc string) func(*testing.T) {
	return func(t *testing.T) {
		m := f.machines[1]
		before := time.Now()
		made := m.run("cat", "/var/lib/tocsin/tocsin.json")
		m.crash()
		m.newDisk()
		s.place(m.node, doc, "i-another", "zone-b")
		// Another machine: users have other numbers there.
		m.write("/usr/lib/sysusers.d/aaa.conf", "u somebody 990\nu somebody-else 991\nu tocsin 992\n", 0o644)
		begin := time.Now()
		m.start()
		eventually(t, bootMost, "a new machine takes the place of the old one", f.whole)
		t.Logf("from the start of the new machine to a cluster of three: %s", time.Since(begin).Round(time.Second/10))
		m.cloudInit()
		m.booted(time.Minute)
		if got := m.run("cat", "/var/lib/tocsin/tocsin.json"); got != made {
			t.Errorf("the data directory is %s, not %s", got, made)
		}
		if said := m.run("journalctl", "--unit=tocsin-volume", "--output=cat"); strings.Contains(said, "makes a file system") {
			t.Errorf("the volume was formatted: %s", said)
		}
		// What was measured before is there, too.
		at := fmt.Sprint(float64(before.UnixMilli()) / 1000)
		eventually(t, time.Minute, "the new machine has the old one's data", func() error {
			n, err := f.value(m.node, `probe_up`, "time", at, "local", "true")
			if err == nil && n != 1 {
				err = fmt.Errorf("it is %v", n)
			}
			return err
		})
	}
}

// machine is one of a fleet: what is started, with the volume that stays when it is replaced.
type machine struct {
	*node
	volume *volume
	boots  []string
}

func (m *machine) start() { m.boot(append([]string{m.volume.as("/dev/vdb")}, m.boots...)...) }

// cloudInit waits until cloud-init has done everything, and nothing wrong.
func (m *machine) cloudInit() {
	m.t.Helper()
	eventually(m.t, time.Minute, "cloud-init of "+m.name+" is done", func() error {
		out, err := m.try("cloud-init", "status", "--long")
		switch {
		case strings.Contains(out, "status: done") && err == nil:
			return nil
		case strings.Contains(out, "status: error"):
			m.t.Fatalf("cloud-init of %s: %s\n%s", m.name, out, tail(m.read("/var/log/cloud-init-output.log"), 20))
		}
		return fmt.Errorf("%w: %s", errors.Join(err), out)
	})
}

// onVolume checks that the data are on the volume.
func (m *machine) onVolume() {
	m.t.Helper()
	if got := m.run("findmnt", "--noheadings", "--output=LABEL,FSTYPE", "/var/lib/tocsin"); strings.Join(strings.Fields(got), " ") != "tocsin-data ext4" {
		m.t.Errorf("%s: at the data directory is mounted %q", m.name, got)
	}
}

type fleet struct {
	t        *testing.T
	w        *world
	machines []*machine
}

// whole checks that each sees all in their zones.
func (f *fleet) whole() error {
	var want []string
	for _, m := range f.machines {
		want = append(want, m.name+" in zone-"+m.name)
	}
	for _, m := range f.machines {
		body, err := f.w.get(m.url(9090, "/api/tocsin/v1/cluster"))
		if err != nil {
			return err
		}
		var v struct {
			Members []struct {
				Name, Zone string
				Alive      bool
			}
		}
		if err := json.Unmarshal([]byte(body), &v); err != nil {
			return err
		}
		var got []string
		for _, member := range v.Members {
			if member.Alive {
				got = append(got, member.Name+" in "+member.Zone)
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			return fmt.Errorf("%s sees %q", m.name, got)
		}
		if _, err := f.w.get(m.url(9090, "/-/ready")); err != nil {
			return err
		}
	}
	return nil
}

// measured checks that each has what the configuration of the bucket says.
func (f *fleet) measured() error {
	for _, m := range f.machines {
		for query, want := range map[string]float64{`probe_up`: 1, `count(up{job="tocsin"} == 1)`: float64(len(f.machines))} {
			if got, err := f.value(m.node, query, "local", "true"); err != nil || got != want {
				return fmt.Errorf("%s: %s is %v: %w", m.name, query, got, err)
			}
		}
	}
	return nil
}

// value asks a machine for the one value of an instant query. Pairs are further parameters.
func (f *fleet) value(n *node, query string, pairs ...string) (float64, error) {
	q := url.Values{"query": {query}}
	for i := 0; i < len(pairs); i += 2 {
		q.Set(pairs[i], pairs[i+1])
	}
	body, err := f.w.get(n.url(9090, "/api/v1/query?"+q.Encode()))
	if err != nil {
		return 0, err
	}
	var v struct {
		Data struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		return 0, err
	}
	if len(v.Data.Result) != 1 {
		return 0, fmt.Errorf("%s: %d series", query, len(v.Data.Result))
	}
	return strconv.ParseFloat(fmt.Sprint(v.Data.Result[0].Value[1]), 64)
}
