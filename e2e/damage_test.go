package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var damageFlags = []string{"--config.file=tocsin.yml", "--storage.tsdb.min-block-duration=20s", "--web.enable-otlp-receiver"}

// truth is what was acknowledged before the kill.
type truth struct {
	dir    string    // with tocsin.yml and data
	until  time.Time // of the last sample that counts
	counts map[string]int
}

const damageQuery = `{job=~"bulk|late"}[2m]`

func counts(p *tocsin, until time.Time) (map[string]int, error) {
	result, err := p.query(damageQuery, until)
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for _, s := range result {
		counts[s.id()] = len(s.Values)
	}
	return counts, nil
}

// killedData is a data directory with a block, head chunks and a log, of a process that was killed.
func killedData(t *testing.T) truth {
	t.Helper()
	dir := workDir(t)
	bulk := newExporter(t, 500, nil)
	write(t, dir, "tocsin.yml", `
prometheus:
  scrape_configs:
    - job_name: bulk
      scrape_interval: 500ms
      scrape_timeout: 500ms
      static_configs: [{targets: ["`+bulk.address()+`"], labels: {instance: bulk}}]
`)
	p := runTocsin(t, dir, damageFlags...)
	amtool(t, dir, p.amURL, "silence", "add", "--author=e2e", "--comment=kept", "--duration=1h", "alertname=Kept")
	eventually(t, 2*time.Minute, "a block is cut", func() error {
		if n, err := p.ownMetric("prometheus_tsdb_compactions_total"); err != nil || n < 1 {
			return fmt.Errorf("%v compactions (%w)", n, err)
		}
		return nil
	})
	// Some more goes to the log alone.
	n, err := p.ownMetric("prometheus_tsdb_head_samples_appended_total{type=\"float\"}")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "more samples", func() error {
		if now, err := p.ownMetric("prometheus_tsdb_head_samples_appended_total{type=\"float\"}"); err != nil || now < n+5000 {
			return fmt.Errorf("%v, after %v (%w)", now, n, err)
		}
		return nil
	})
	// Out of order, so that chunks are moved to files at once.
	pushLate(t, p)
	if len(glob(t, dir, "data/tsdb/chunks_head/0*")) == 0 {
		t.Fatal("the head has no chunks in files")
	}
	tr := truth{dir: dir, until: time.Now().Add(-time.Second)}
	if tr.counts, err = counts(p, tr.until); err != nil || len(tr.counts) < 500 {
		t.Fatalf("%d series (%v)", len(tr.counts), err)
	}
	p.kill()
	return tr
}

// pushLate pushes samples from the newest to the oldest.
func pushLate(t *testing.T, p *tocsin) {
	t.Helper()
	now := time.Now()
	for i := range 40 {
		at := now.Add(-time.Duration(i) * 500 * time.Millisecond)
		status, body, err := fetch(http.MethodPost, p.url+"/api/v1/otlp/v1/metrics", jsonType, otlpGauge("late", "e2e_late", at, float64(i)))
		if err != nil || status != http.StatusOK {
			t.Fatalf("push a late sample: %d %s (%v)", status, body, err)
		}
	}
}

// otlpGauge is one sample as OTLP in JSON.
func otlpGauge(service, name string, at time.Time, v float64) string {
	return fmt.Sprintf(`{"resourceMetrics":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":%q}}]},`+
		`"scopeMetrics":[{"scope":{},"metrics":[{"name":%q,"gauge":{"dataPoints":[{"timeUnixNano":"%d","asDouble":%v}]}}]}]}]}`,
		service, name, at.UnixNano(), v)
}

func glob(t *testing.T, dir, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	return found
}

// last is the newest file of a pattern, which there has to be.
func last(t *testing.T, dir, pattern string) string {
	t.Helper()
	found := glob(t, dir, pattern)
	if len(found) == 0 {
		t.Fatalf("nothing is %s in %s", pattern, dir)
	}
	return found[len(found)-1]
}

// biggest is the largest file of a pattern.
func biggest(t *testing.T, dir, pattern string) string {
	t.Helper()
	path, most := "", int64(-1)
	for _, f := range glob(t, dir, pattern) {
		if info, err := os.Stat(f); err == nil && info.Size() > most {
			path, most = f, info.Size()
		}
	}
	if most < 1 {
		t.Fatalf("nothing is %s in %s", pattern, dir)
	}
	return path
}

// lastFilled is the newest file of a pattern that is not empty.
func lastFilled(t *testing.T, dir, pattern string) string {
	t.Helper()
	found := glob(t, dir, pattern)
	for _, f := range slices.Backward(found) {
		if info, err := os.Stat(f); err == nil && info.Size() > 0 {
			return f
		}
	}
	t.Fatalf("nothing is %s in %s", pattern, dir)
	return ""
}

// flip inverts some bytes in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := len(b) / 2; i < min(len(b), len(b)/2+64); i++ {
		b[i] ^= 0xff
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string, by int64) {
	t.Helper()
	info, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, max(0, info.Size()-by))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestDamage holds that damaged files cost what was in them and no more: the process is ready again, says what was
// wrong, serves the rest and goes on.
func TestDamage(t *testing.T) {
	t.Parallel()
	tr := killedData(t)
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		log    []string // any one of; nil: nothing was wrong
		whole  bool     // nothing may be missing
		series int      // at least
	}{
		{"nothing", func(*testing.T, string) {}, nil, true, 500},
		{"log is torn", func(t *testing.T, dir string) { truncate(t, lastFilled(t, dir, "data/tsdb/wal/0*"), 13) },
			[]string{"repair", "truncat", "corrupt"}, false, 500},
		{"log is damaged midway", func(t *testing.T, dir string) { flip(t, biggest(t, dir, "data/tsdb/wal/0*")) },
			[]string{"repair", "corrupt"}, false, 500},
		{"log is followed by garbage", func(t *testing.T, dir string) {
			f, err := os.OpenFile(last(t, dir, "data/tsdb/wal/0*"), os.O_APPEND|os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteString(strings.Repeat("garbage", 1000))
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}, []string{"repair", "corrupt"}, true, 500},
		{"head chunks are damaged", func(t *testing.T, dir string) { flip(t, biggest(t, dir, "data/tsdb/chunks_head/0*")) },
			[]string{"repair", "corrupt", "chunk"}, false, 500},
		{"head chunks are torn", func(t *testing.T, dir string) { truncate(t, last(t, dir, "data/tsdb/chunks_head/0*"), 1000) },
			nil, false, 500},
		{"index of a block is torn", func(t *testing.T, dir string) { truncate(t, last(t, dir, "data/tsdb/01*/index"), 500) },
			[]string{"set aside"}, false, 500},
		{"block without its description", func(t *testing.T, dir string) {
			if err := os.Remove(last(t, dir, "data/tsdb/01*/meta.json")); err != nil {
				t.Fatal(err)
			}
		}, []string{"set aside"}, false, 500},
		{"silences are damaged", func(t *testing.T, dir string) { flip(t, biggest(t, dir, "data/alertmanager/*")) },
			[]string{"alertmanager", "silence"}, true, 500},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := workDir(t)
			if err := os.CopyFS(dir, os.DirFS(tr.dir)); err != nil {
				t.Fatal(err)
			}
			c.damage(t, dir)
			p := runTocsin(t, dir, damageFlags...)
			after, err := counts(p, tr.until)
			if err != nil {
				t.Fatal(err)
			}
			if len(after) < c.series {
				t.Errorf("%d series of %d are left", len(after), len(tr.counts))
			}
			for id, n := range tr.counts {
				// No damage is to the log of what came out of order.
				if whole := c.whole || strings.Contains(id, "e2e_late"); whole && after[id] != n {
					t.Errorf("%s has %d samples of %d", id, after[id], n)
				}
			}
			if c.log != nil && !saysSo(p, c.log) {
				t.Errorf("the log has no warning with any of %q", c.log)
			}
			p.wantValue(20*time.Second, `count(last_over_time(e2e_bulk[2s]))`, 500)
			p.stop()
		})
	}
}

// saysSo looks for a warning or an error with one of the words.
func saysSo(p *tocsin, words []string) bool {
	for line := range strings.Lines(p.output()) {
		if (strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR")) &&
			!strings.Contains(line, "host metrics") && containsAny(strings.ToLower(line), words) {
			return true
		}
	}
	return false
}

// TestSecondProcess holds that a data directory has one process.
func TestSecondProcess(t *testing.T) {
	t.Parallel()
	dir := workDir(t)
	first := runTocsin(t, dir)
	second := startTocsin(t, dir)
	if code := second.wait(20 * time.Second); code == 0 {
		t.Errorf("it ends with %d", code)
	}
	if out := second.output(); !containsAny(out, []string{"another process", "in use", "locked"}) || strings.Contains(out, "goroutine ") {
		t.Errorf("it does not say why:\n%s", out)
	}
	// The first has not noticed; and once it is gone, by whatever end, its directory is free.
	first.alive()
	first.wantSome(20*time.Second, "vector(1)")
	first.kill()
	runTocsin(t, dir).stop()
}

// TestWrongMount holds that an empty or foreign volume is not taken for the data.
func TestWrongMount(t *testing.T) {
	t.Parallel()
	dir := workDir(t)
	volume := filepath.Join(dir, "volume")
	if err := os.Mkdir(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := func() {
		t.Helper()
		switch err := syscall.Mount("tmpfs", volume, "tmpfs", 0, "size=64m"); {
		case errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES):
			t.Skipf("a file system cannot be mounted here: %v", err)
		case err != nil:
			t.Fatal(err)
		}
	}
	mounted := true
	mount()
	t.Cleanup(func() {
		if mounted {
			_ = syscall.Unmount(volume, syscall.MNT_DETACH)
		}
	})
	refused := func(words []string, flags ...string) {
		t.Helper()
		p := startTocsin(t, dir, append([]string{"--storage.path=" + volume}, flags...)...)
		if code := p.wait(20 * time.Second); code == 0 {
			t.Errorf("it is not refused")
		}
		contains(t, "the reason", p.tail(3), words...)
	}
	refused([]string{volume, "mount point", "touch "})
	if entries, err := os.ReadDir(volume); err != nil || len(entries) > 0 {
		t.Errorf("the volume that was refused has been written to: %v (%v)", entries, err)
	}
	// The message says what to do.
	write(t, volume, "tocsin.json", "")
	runTocsin(t, dir, "--storage.path="+volume).stop()
	runTocsin(t, dir, "--storage.path="+volume, "--storage.require-mount").stop()

	// Another volume is mounted over it: it has no marker.
	if err := syscall.Unmount(volume, 0); err != nil {
		t.Fatal(err)
	}
	mount()
	refused([]string{volume, "mount point", "touch "})
	if err := syscall.Unmount(volume, 0); err != nil {
		t.Fatal(err)
	}
	mounted = false
	refused([]string{volume, "not a mount point"}, "--storage.require-mount")
}
