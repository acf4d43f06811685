package install

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	siteAccess = "role"
	siteSecret = "the-machines-role-alone"
	siteBucket = "tocsin-production" // as the documents have it
	// metadataAddress is where clouds answer to machines, about roles among other things.
	metadataAddress = "169.254.169.254"
)

// site is what a cloud has around the machines: a package repository, object storage, and a metadata service that gives the
// machines' role the right to it.
type site struct {
	w      *world
	repo   *repository
	s3     string // host and port of the object storage
	bucket string // the folder that the bucket is
	key    string // the cluster key
}

func newSite(w *world) *site {
	w.t.Helper()
	s := &site{w: w, repo: w.repository(packageUnderTest(w.t)), s3: coreAddress + ":7070"}
	root := filepath.Join(w.dir, "s3")
	s.bucket = filepath.Join(root, siteBucket)
	if err := os.MkdirAll(s.bucket, 0o755); err != nil {
		w.t.Fatal(err)
	}
	w.start("versitygw", versitygw(w.t), "--port", s.s3, "--access", siteAccess, "--secret", siteSecret, "--quiet", "posix", root)
	s.key = strings.TrimSpace(w.must("sh", "-c", "head -c 32 /dev/urandom | base64"))

	w.must("ip", "-n", w.core(), "addr", "add", metadataAddress+"/32", "dev", "br0")
	w.serveAt(metadataAddress+":80", http.HandlerFunc(role))
	return s
}

// role answers as Amazon's metadata service does about the role of a machine.
func role(w http.ResponseWriter, r *http.Request) {
	const credentials = "/latest/meta-data/iam/security-credentials/"
	switch {
	case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token":
		fmt.Fprint(w, "a-token")
	case r.Header.Get("X-aws-ec2-metadata-token") != "a-token":
		w.WriteHeader(http.StatusUnauthorized)
	case r.URL.Path == credentials:
		fmt.Fprint(w, "tocsin")
	case r.URL.Path == credentials+"tocsin":
		_ = json.NewEncoder(w).Encode(map[string]any{ // The machine may be gone.
			"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": siteAccess, "SecretAccessKey": siteSecret,
			"LastUpdated": time.Now().UTC().Format(time.RFC3339), "Expiration": time.Now().UTC().Add(time.Hour).Format(time.RFC3339),
		})
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// put writes an object to the bucket.
func (s *site) put(name, content string) {
	s.w.t.Helper()
	path := filepath.Join(s.bucket, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		s.w.t.Fatal(err)
	}
}

// document reads a cloud-init document and makes it this site's: what it says is yours to change, and nothing else. Pairs are
// further replacements.
func (s *site) document(name string, pairs ...string) string {
	s.w.t.Helper()
	b, err := os.ReadFile(filepath.Join("../../cloud-init", name))
	if err != nil {
		s.w.t.Fatal(err)
	}
	doc := string(b)
	var bare []string
	for line := range strings.Lines(doc) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") {
			bare = append(bare, line)
		}
	}
	if n := len(strings.Join(bare, "")); n >= 2000 {
		s.w.t.Errorf("%s is %d bytes long without its comments", name, n)
	}
	const begin, end = "-----BEGIN PGP PUBLIC KEY BLOCK-----", "        -----END PGP PUBLIC KEY BLOCK-----\n"
	head, rest, ok := strings.Cut(doc, begin)
	_, rest, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		s.w.t.Fatalf("%s has no place for the key of the repository", name)
	}
	key := strings.ReplaceAll(strings.TrimSpace(s.repo.key()), "\n", "\n        ")
	doc = head + key + "\n" + rest
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(doc, pairs[i]) {
			s.w.t.Fatalf("%s does not contain %q", name, pairs[i])
		}
		doc = strings.ReplaceAll(doc, pairs[i], pairs[i+1])
	}
	return doc
}

// place makes a machine one of the site's: what its cloud knows of it, and the cluster key where root alone can read it.
func (s *site) place(n *node, userData, instance, zone string) {
	s.w.t.Helper()
	n.seed(userData, fmt.Sprintf("instance-id: %s\nlocal-hostname: %s\navailability-zone: %s\n", instance, n.name, zone))
	n.write("/etc/credstore/tocsin.cluster.key", s.key+"\n", 0o600)
}

// route leads what is for the outside to the core, as a gateway would.
func (n *node) route() { n.w.must("ip", "-n", n.zone, "route", "add", "default", "via", coreAddress) }

// start runs a program in the core until the end of the test.
func (w *world) start(name, binary string, args ...string) {
	w.t.Helper()
	log, err := os.Create(filepath.Join(w.dir, name+".log"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := w.inCore(cmd.Start); err != nil {
		w.t.Fatalf("start %s: %v", name, err)
	}
	w.t.Cleanup(func() {
		_ = cmd.Process.Kill() // It may have ended.
		_ = cmd.Wait()         // It was killed.
		if b, err := os.ReadFile(log.Name()); w.t.Failed() && err == nil {
			w.t.Logf("the end of the log of %s:\n%s", name, tail(string(b), 15))
		}
	})
}

// versitygw is the object storage, which the Makefile builds.
func versitygw(t *testing.T) string {
	t.Helper()
	path := os.Getenv("VERSITYGW")
	if path == "" {
		t.Fatal("these tests need object storage: set VERSITYGW to the path of versitygw, or run `make install-test`")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// configure puts the configuration of the replicas into the bucket: they scrape a probe in the core and each other.
func (s *site) configure() {
	s.w.t.Helper()
	s.w.serve(8080, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "probe_up 1") }))
	s.put("config/prometheus.yml", `global: {scrape_interval: 2s, evaluation_interval: 5s}
scrape_configs:
  - {job_name: probe, static_configs: [{targets: ["`+coreAddress+`:8080"]}]}
  - {job_name: tocsin, static_configs: [{targets: ["10.250.0.11:9090", "10.250.0.12:9090", "10.250.0.13:9090"]}]}
`)
	s.put("config/tocsin.yml", "prometheus: prometheus.yml\n")
}
