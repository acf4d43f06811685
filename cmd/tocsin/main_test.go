package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func tocsin(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestCommands(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yml")
	if err := os.WriteFile(bad, []byte("replicas: 3\nfederation: [{name: a}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args           []string
		code           int
		stdout, stderr []string
	}{
		"version":                 {[]string{"version"}, 0, []string{"tocsin, version", "prometheus:   3.9.1"}, nil},
		"help":                    {[]string{"--help"}, 0, []string{"Run a replica", "Check a configuration"}, nil},
		"help of run":             {[]string{"run", "--help"}, 0, []string{"--config.file", "promql-experimental-functions"}, nil},
		"keygen with an argument": {[]string{"cluster", "keygen", "x"}, exitUsage, nil, []string{"unexpected argument"}},
		"cluster of nothing":      {[]string{"cluster"}, exitUsage, nil, []string{"keygen"}},
		"drain of nobody":         {[]string{"drain", "--url=http://127.0.0.1:1"}, exitFailed, nil, []string{"cannot be asked, and may not run"}},
		"drain by force":          {[]string{"drain", "--force", "--url=http://127.0.0.1:1"}, 0, []string{"forced, although the replica cannot be asked"}, nil},
		"drain of no URL":         {[]string{"drain", "--url=localhost:9090"}, exitUsage, nil, []string{"--url", "whole http or https URL"}},
		"no command":              {nil, exitUsage, nil, []string{"tocsin --help"}},
		"an unknown flag":         {[]string{"run", "--no-such"}, exitUsage, nil, []string{"--no-such"}},
		"an unknown feature":      {[]string{"run", "--enable-feature=magic"}, exitUsage, nil, []string{"magic", "promql-experimental-functions"}},
		"a bad address":           {[]string{"run", "--grpc.listen-address=nowhere"}, exitUsage, nil, []string{"--grpc.listen-address"}},
		"a bad log level":         {[]string{"run", "--log.level=loud"}, exitUsage, nil, []string{"--log.level"}},
		"a bad origin":            {[]string{"run", "--web.cors.origin=("}, exitUsage, nil, []string{"--web.cors.origin"}},
		"a ratio of 2":            {[]string{"run", "--auto-gomemlimit.ratio=2"}, exitUsage, nil, []string{"--auto-gomemlimit.ratio"}},
		"a file that is missing":  {[]string{"run", "--config.file=" + filepath.Join(dir, "none.yml"), "--web.listen-address=127.0.0.1:0", "--alertmanager.listen-address="}, exitUsage, nil, []string{"none.yml"}},
		"check of what we ship":   {[]string{"check", "../../packaging/etc/tocsin.yml"}, 0, []string{"is good", "2 scrape jobs"}, nil},
		"check of a bad file":     {[]string{"check", bad}, exitUsage, nil, []string{"bad.yml:1", "replicas", "bad.yml:2", "url"}},
		"run with a bad file":     {[]string{"run", "--config.file=" + bad, "--storage.path=" + filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:0", "--alertmanager.listen-address="}, exitUsage, nil, []string{"bad.yml:1", "bad.yml:2"}},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := tocsin(c.args...)
			if code != c.code {
				t.Errorf("exit code %d, want %d; stderr: %s", code, c.code, stderr)
			}
			for _, want := range c.stdout {
				if !strings.Contains(stdout, want) {
					t.Errorf("stdout lacks %q: %s", want, stdout)
				}
			}
			for _, want := range c.stderr {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr lacks %q: %s", want, stderr)
				}
			}
		})
	}
	if _, err := os.Stat(filepath.Join(dir, "data")); err == nil {
		t.Error("a start that was refused for its configuration has touched the data directory")
	}
}

// TestKeygen holds that the output can be the key file, and that nobody else gets the same.
func TestKeygen(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "tocsin.yml")
	if err := os.WriteFile(file, []byte("cluster: {name: a, key_file: key}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for range 3 {
		code, key, stderr := tocsin("cluster", "keygen")
		if code != 0 || stderr != "" || seen[key] || !strings.HasSuffix(key, "\n") || strings.Count(key, "\n") != 1 {
			t.Fatalf("exit code %d, stdout %q, stderr %q", code, key, stderr)
		}
		seen[key] = true
		if err := os.WriteFile(filepath.Join(dir, "key"), []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := tocsin("check", file); code != 0 {
			t.Errorf("check refuses the key: %s", stderr)
		}
	}
}

// TestCheckWarns holds that check says what run would log, and that a warning is no mistake.
func TestCheckWarns(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "tocsin.yml")
	_, key, _ := tocsin("cluster", "keygen")
	for name, text := range map[string]string{
		"key":          key,
		"tocsin.yml":   "cluster: {name: a, key_file: key, advertise_address: 127.0.0.1, peers: [10.0.0.1]}\n",
		"no-worry.yml": "cluster: {name: a}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "key"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := tocsin("check", file)
	if code != 0 || !strings.Contains(stdout, "is good") || strings.Contains(stdout, "warning") {
		t.Errorf("exit code %d, stdout %q", code, stdout)
	}
	lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
	if len(lines) != 2 {
		t.Fatalf("stderr is not two lines: %q", stderr)
	}
	for i, want := range [][]string{
		{"everybody on this machine can read the cluster key", "file=" + filepath.Join(dir, "key"), "mode=-rw-r--r--"},
		{"cluster.advertise_address is a loopback address", "advertise_address=127.0.0.1", "peer=10.0.0.1"},
	} {
		if !strings.HasPrefix(lines[i], "warning: ") {
			t.Errorf("not a warning: %q", lines[i])
		}
		for _, part := range want {
			if !strings.Contains(lines[i], part) {
				t.Errorf("%q lacks %q", lines[i], part)
			}
		}
	}
	if code, _, stderr := tocsin("check", filepath.Join(dir, "no-worry.yml")); code != 0 || stderr != "" {
		t.Errorf("exit code %d, stderr %q where nothing is to be warned of", code, stderr)
	}
}

// TestFlagsAndFileShareNothing holds that a setting has one place: what the file has, no flag has.
func TestFlagsAndFileShareNothing(t *testing.T) {
	_, cli, _ := tocsin("docs", "cli")
	for _, field := range []string{"retention.time", "retention.size", "out-of-order", "scrape-interval", "evaluation-interval", "replica.", "cluster.name", "cluster.peer", "cluster.key", "cluster.advertise", "federation."} {
		if strings.Contains(cli, "`--"+field) || strings.Contains(cli, "`--storage.tsdb."+field) {
			t.Errorf("there is a flag for %s, which the file has", field)
		}
	}
}

func TestManualsAreUpToDate(t *testing.T) {
	for manual, file := range map[string]string{"cli": "cli.md", "config": "configuration.md"} {
		want, err := os.ReadFile(filepath.Join("../../docs", file))
		if err != nil {
			t.Fatal(err)
		}
		if _, got, _ := tocsin("docs", manual); got != string(want) {
			t.Errorf("docs/%s is not what the program says: run make docs", file)
		}
	}
}
