package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tocsin-io/tocsin/appliance/mesh"
)

// TestCertificate holds that a reader gets what it needs, and that nobody gets to see a key.
func TestCertificate(t *testing.T) {
	dir := t.TempDir()
	_, first, _ := tocsin("cluster", "keygen")
	_, second, _ := tocsin("cluster", "keygen")
	keys := filepath.Join(dir, "cluster.key")
	write := func(path, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write(keys, "# ours\n"+first+second, 0o600)
	out := filepath.Join(dir, "deep", "reader")
	args := []string{"cluster", "certificate", "--key-file=" + keys, "--cluster=production", "--name=thanos", "--out=" + out}
	code, stdout, stderr := tocsin(args...)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, stderr %q", code, stderr)
	}
	for _, want := range []string{"--grpc-client-server-name=" + mesh.ServerName, filepath.Join(out, "key.pem"), "--endpoint="} {
		if !strings.Contains(stdout, want) {
			t.Errorf("stdout lacks %q: %s", want, stdout)
		}
	}
	info, err := os.Stat(filepath.Join(out, "key.pem"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key.pem: %v %v", info, err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(out, "cert.pem"), filepath.Join(out, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if got := pair.Leaf.URIs[0].String(); got != "tocsin-reader:production/thanos" {
		t.Errorf("it is for %s", got)
	}
	ca, err := os.ReadFile(filepath.Join(out, "ca.pem"))
	if err != nil || strings.Count(string(ca), "BEGIN CERTIFICATE") != 2 {
		t.Errorf("ca.pem does not hold both authorities: %v", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"ca.pem", "cert.pem", "key.pem"} {
		b, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{first, second} {
			raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(key))
			if err != nil {
				t.Fatal(err)
			}
			if s := string(b) + stdout; strings.Contains(s, strings.TrimSpace(key)) || strings.Contains(s, string(raw)) {
				t.Errorf("%s or the output shows a cluster key", name)
			}
		}
	}

	// What is there stays.
	before, _ := os.ReadFile(filepath.Join(out, "key.pem"))
	code, _, stderr = tocsin(args...)
	after, _ := os.ReadFile(filepath.Join(out, "key.pem"))
	if code != exitFailed || !strings.Contains(stderr, "is there already") || string(before) != string(after) {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	half := filepath.Join(dir, "half")
	if err := os.Mkdir(half, 0o700); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(half, "key.pem"), "precious", 0o600)
	code, _, _ = tocsin(append(args[:len(args)-1:len(args)-1], "--out="+half)...)
	entries, err := os.ReadDir(half)
	if code != exitFailed || err != nil || len(entries) != 1 {
		t.Errorf("exit code %d, and half of it was left: %v", code, entries)
	}
}

func TestCertificateRefuses(t *testing.T) {
	dir := t.TempDir()
	_, key, _ := tocsin("cluster", "keygen")
	for name, text := range map[string]string{"good": key, "bad": "hunter2\n", "empty": "# none\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "out")
	for name, c := range map[string]struct{ file, cluster, reader, want string }{
		"a file that is missing":       {filepath.Join(dir, "none"), "c", "r", "none"},
		"what is no key":               {filepath.Join(dir, "bad"), "c", "r", "bad:1"},
		"no key":                       {filepath.Join(dir, "empty"), "c", "r", "holds no key"},
		"a key instead of a file":      {strings.TrimSpace(key), "c", "r", "a key itself"},
		"a cluster's name that cannot": {filepath.Join(dir, "good"), "a/b", "r", "--cluster"},
		"a reader's name that cannot":  {filepath.Join(dir, "good"), "c", "a\nb", "printable"},
		"no name":                      {filepath.Join(dir, "good"), "c", "", "printable"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := tocsin("cluster", "certificate", "--key-file="+c.file, "--cluster="+c.cluster, "--name="+c.reader, "--out="+out)
			if code != exitUsage || stdout != "" || !strings.Contains(stderr, c.want) {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
			if strings.Contains(stderr, strings.TrimSpace(key)) || strings.Contains(stderr, "hunter2") {
				t.Errorf("it shows what should be secret: %s", stderr)
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("it has written something")
			}
		})
	}
}
