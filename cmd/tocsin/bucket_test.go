package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// blockFolder is a bucket of files with its configuration.
type blockFolder struct {
	t            *testing.T
	root, config string
}

func newBlockFolder(t *testing.T) *blockFolder {
	t.Helper()
	dir := t.TempDir()
	f := &blockFolder{t, filepath.Join(dir, "bucket"), filepath.Join(dir, "tocsin.yml")}
	f.write("../tocsin.yml", fmt.Sprintf("bucket: {type: FILESYSTEM, config: {directory: %q}}\n", f.root))
	if err := os.MkdirAll(f.root, 0o700); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *blockFolder) write(name, text string) {
	f.t.Helper()
	name = filepath.Join(f.root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// block puts one of ten minutes of a series into the bucket.
func (f *blockFolder) block(begin int64, external map[string]string) string {
	f.t.Helper()
	chunk := chunkenc.NewXORChunk()
	app, err := chunk.Appender()
	if err != nil {
		f.t.Fatal(err)
	}
	for at := begin; at < begin+600_000; at += 15_000 {
		app.Append(at, float64(at))
	}
	dir, err := tsdb.CreateBlock([]storage.Series{&storage.SeriesEntry{
		Lset: labels.FromStrings("__name__", "m"),
		SampleIteratorFn: func(it chunkenc.Iterator) chunkenc.Iterator {
			return chunk.Iterator(it)
		},
	}}, f.t.TempDir(), 0, slog.New(slog.DiscardHandler))
	if err != nil {
		f.t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "meta.json"))
	if err != nil {
		f.t.Fatal(err)
	}
	var meta map[string]any
	if err := json.Unmarshal(text, &meta); err != nil {
		f.t.Fatal(err)
	}
	files := []any{map[string]any{"rel_path": "meta.json"}}
	for _, name := range []string{"index", "chunks/000001"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			f.t.Fatal(err)
		}
		files = append(files, map[string]any{"rel_path": name, "size_bytes": info.Size()})
	}
	meta["thanos"] = map[string]any{"labels": external, "downsample": map[string]any{"resolution": 0}, "source": "sidecar", "files": files}
	id := ulid.MustNew(uint64(begin), rand.Reader).String()
	meta["ulid"] = id
	meta["compaction"] = map[string]any{"level": 1, "sources": []string{id}}
	if text, err = json.Marshal(meta); err != nil {
		f.t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(f.root, id), os.DirFS(dir)); err != nil {
		f.t.Fatal(err)
	}
	f.write(id+"/meta.json", string(text))
	return id
}

// run is a command on the bucket.
func (f *blockFolder) run(command string, args ...string) (code int, stdout, stderr string) {
	return tocsin(append([]string{"bucket", command, "--config.file=" + f.config}, args...)...)
}

func TestBucketCommands(t *testing.T) {
	f := newBlockFolder(t)
	first := f.block(1_700_000_000_000, map[string]string{"replica": "a", "site": "e2e"})
	second := f.block(1_700_001_000_000, map[string]string{"replica": "b", "site": "\x1b[2J\u202e"})
	third := f.block(1_700_002_000_000, map[string]string{"replica": "b"})
	f.write(third+"/deletion-mark.json", `{"version":1,"id":"`+third+`","deletion_time":1700000000,"details":"it is old"}`)
	half := "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	f.write(half+"/index", "half")
	f.write("garbage", "x")
	t.Setenv("TMPDIR", t.TempDir())

	for name, c := range map[string]struct {
		args     []string
		code     int
		stdout   []string
		notThere string
		stderr   string
	}{
		"ls":                         {[]string{"ls"}, 0, []string{"BLOCK ", first + "  2023-11-14T22:13:20Z", "raw", `{replica="a", site="e2e"}`, "marked-for-deletion", "partial"}, "\x1b", ""},
		"ls as JSON":                 {[]string{"ls", "--output=json"}, 0, []string{`"id": "` + first + `"`, `"state": "marked-for-deletion"`, `"problem": "it is old"`}, "\x1b", ""},
		"inspect":                    {[]string{"inspect", second}, 0, []string{second, "chunks/000001, ", "source", "sidecar", "made of", `\x1b[2J`}, "\x1b", ""},
		"inspect one that is marked": {[]string{"inspect", third}, 0, []string{"marked-for-deletion", "deletion-mark.json: since 2023-11-14T22:13:20Z: it is old"}, "\x1b", ""},
		"inspect as JSON":            {[]string{"inspect", first, "--output=json"}, 0, []string{`"meta": {`, `"name": "index"`}, "\x1b", ""},
		"inspect half a block":       {[]string{"inspect", half}, 0, []string{"partial", "no meta.json", "index, 4 bytes"}, "level", ""},
		"inspect what is not there":  {[]string{"inspect", "01ARZ3NDEKTSV4RRFFQ69G5FAZ"}, 1, nil, "block", "there is no such block"},
		"inspect what is no name":    {[]string{"inspect", "../etc"}, 2, nil, "block", "is no name of a block"},
		"verify":                     {[]string{"verify"}, 0, []string{first + "  ok", second + "  ok", third + "  skipped", half + "  skipped"}, "broken", ""},
		"verify one":                 {[]string{"verify", third}, 0, []string{third + "  ok"}, first, ""},
		"verify half a block":        {[]string{"verify", half}, 1, []string{half + "  broken   it has no meta.json"}, first, "1 of 1 blocks are broken"},
		"verify what is not there":   {[]string{"verify", "01ARZ3NDEKTSV4RRFFQ69G5FAZ"}, 1, nil, "ok", "there is no such block"},
		"stats":                      {[]string{"stats"}, 0, []string{"FILESYSTEM", "bytes per sample", "marked-for-deletion  1", "partial", "raw"}, "\x1b", ""},
		"stats as JSON":              {[]string{"stats", "--output=json"}, 0, []string{`"partial": 1`, `"ok": 2`, `"clusters": []`}, "\x1b", ""},
		"another format":             {[]string{"ls", "--output=xml"}, 2, nil, "BLOCK", "--output"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := f.run(c.args[0], c.args[1:]...)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, want := range c.stdout {
				if !strings.Contains(stdout, want) {
					t.Errorf("stdout lacks %q", want)
				}
			}
			if strings.Contains(stdout, c.notThere) {
				t.Errorf("stdout has %q", c.notThere)
			}
			if !strings.Contains(stderr, c.stderr) || c.stderr == "" && stderr != "" {
				t.Errorf("stderr should be about %q", c.stderr)
			}
			if t.Failed() {
				t.Logf("stdout:\n%s\nstderr:\n%s", stdout, stderr)
			}
		})
	}

	if err := os.Truncate(filepath.Join(f.root, second, "index"), 100); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := f.run("verify")
	if code != 1 || !strings.Contains(stdout, second+"  broken   its file index has 100 bytes") || !strings.Contains(stdout, first+"  ok") || !strings.Contains(stderr, "1 of 4 blocks are broken") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	if code, stdout, _ := f.run("verify", "--output=json"); code != 1 || !json.Valid([]byte(stdout)) || !strings.Contains(stdout, `"result": "broken"`) {
		t.Errorf("exit code %d, stdout %q", code, stdout)
	}
	if _, stdout, _ := f.run("inspect", second); !strings.Contains(stdout, "index, 100 bytes, meta.json says ") {
		t.Errorf("stdout %q", stdout)
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("verify leaves %v behind, %v", left, err)
	}
}

// TestBucketCommandsWithoutBucket holds that who asks for the wrong place is told so.
func TestBucketCommandsWithoutBucket(t *testing.T) {
	f := newBlockFolder(t)
	if err := os.Remove(f.root); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := f.run("ls"); code != 1 || !strings.Contains(stderr, "no such file or directory") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	if err := os.WriteFile(f.config, []byte("replicas: 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := f.run("ls"); code != 2 || !strings.Contains(stderr, "tocsin.yml:1") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	if err := os.WriteFile(f.config, []byte("cluster: {name: a}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := f.run("ls"); code != 2 || !strings.Contains(stderr, "has no section bucket") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}
