package e2e

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
)

// TestBucketHistory lets stock Thanos put days of history, in blocks of two hours, into a bucket of files. Tocsin compacts and
// downsamples them, and what it answers out of the downsampled blocks is what it answers out of the raw ones, within the expected
// error, and what stock Thanos answers.
func TestBucketHistory(t *testing.T) {
	t.Parallel()
	thanosBinary(t) // before it waits
	const day = 24 * time.Hour
	// Blocks of two days are aligned, and compacted when there are later ones.
	begin := time.UnixMilli(0).Add(time.Since(time.UnixMilli(0)).Truncate(2*day) - 2*day)
	if time.Since(begin) < 2*day+12*time.Hour {
		begin = begin.Add(-2 * day)
	}
	end := begin.Add(2*day + 10*time.Hour)
	c := &bucketCluster{}
	c.meshCluster = newCluster(t, clusterOptions{
		names: []string{"a"}, watched: true,
		bucket: func(r *replica) string {
			return "bucket: {type: FILESYSTEM, config: {directory: " + strconv.Quote(filepath.Join(r.cluster.dir, "bucket")) + "}}\n"
		},
	})
	root := filepath.Join(c.dir, "bucket")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	c.config = write(t, c.dir, "bucket.yml", "{type: FILESYSTEM, config: {directory: "+strconv.Quote(root)+"}}\n")
	c.recall(begin, end)
	q := stockStore(t, c.dir, c.loopback, c.config)
	tell := func() string {
		all, err := storedBlocks(root)
		var b strings.Builder
		for _, block := range all {
			fmt.Fprintf(&b, "\n%s", &block)
		}
		return fmt.Sprintf("%v%s", err, b.String())
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(tell())
		}
	})

	from, to := begin.Add(4*time.Hour), begin.Add(2*day-2*time.Hour)
	functions := []struct {
		expr string
		most float64 // what the downsampled one may differ by
	}{
		{"avg_over_time(e2e_old_level[1h])", 0.02},
		{"max_over_time(e2e_old_level[1h])", 0.02},
		{"min_over_time(e2e_old_level[1h])", 0.02},
		{"sum_over_time(e2e_old_level[1h])", 0.02},
		{"rate(e2e_old_ticks_total[1h])", 0.02},
	}
	ask := func(who, address, expr, resolution string) (healData, error) {
		d, warnings, err := matrixOf(who, address, "query_range", url.Values{
			"query": {expr}, "start": {formatTime(from)}, "end": {formatTime(to)}, "step": {"3600"}, "max_source_resolution": {resolution},
		})
		if err == nil && len(warnings) > 0 {
			err = fmt.Errorf("%s warns: %q", who, warnings)
		}
		if err == nil {
			d, err = withoutExternal(d)
		}
		if err == nil && len(d) != 1 {
			err = fmt.Errorf("%s has %d series of %s", who, len(d), expr)
		}
		return d, err
	}
	// What is true is what stock Thanos says of the raw blocks.
	raw := map[string]healData{}
	for _, f := range functions {
		var err error
		if raw[f.expr], err = ask("Thanos", q.url, f.expr, "0s"); err != nil {
			t.Fatal(err)
		}
	}
	c.up()
	eventually(t, 3*time.Minute, "two days are compacted and downsampled", func() error {
		all, err := storedBlocks(root)
		if err != nil {
			return err
		}
		there := map[int64]bool{}
		for _, b := range all {
			if b.Err == nil && !b.Marked && b.Meta.MaxTime-b.Meta.MinTime > (2*day-time.Hour).Milliseconds() {
				there[b.Meta.Thanos.Downsample.Resolution] = true
			}
		}
		if !there[0] || !there[300_000] {
			return errors.New("there are no such blocks")
		}
		return nil
	})
	contains(t, "what stock Thanos says", stockTools(t, c.dir, c.config, "verify"), "verify task completed")
	eventually(t, 4*time.Minute, "a reads the downsampled block", func() error {
		d, _, err := matrixOf("a", c.a().url, "query", url.Values{
			"query": {"e2e_old_level[1h]"}, "time": {formatTime(from)}, "max_source_resolution": {"5m"},
		})
		if err == nil && (d.samples() == 0 || d.samples() > 13) {
			err = fmt.Errorf("it has %d samples in an hour", d.samples())
		}
		return err
	})
	for _, f := range functions {
		for _, resolution := range []string{"0s", "5m"} {
			got, err := ask("a", c.a().url, f.expr, resolution)
			if err != nil {
				t.Error(err)
				continue
			}
			most := 1e-9
			if resolution != "0s" {
				most = f.most
			}
			if err := near(got, raw[f.expr], most); err != nil {
				t.Errorf("%s by %s is not what it was in raw blocks: %v", f.expr, resolution, err)
			}
			stock, err := ask("Thanos", q.url, f.expr, resolution)
			if err == nil {
				err = near(got, stock, 1e-9)
			}
			if err != nil {
				t.Errorf("%s by %s is not what stock Thanos says: %v", f.expr, resolution, err)
			}
		}
	}
}

// near holds that two answers of one series each have the same times, and values that differ by no more than most, relative to
// the range of the values.
func near(got, want healData, most float64) error {
	for _, g := range got {
		for _, w := range want {
			if len(g) != len(w) || len(w) < 10 {
				return fmt.Errorf("%d points, not %d", len(g), len(w))
			}
			worst, size := 0.0, 0.0
			for at := range w {
				a, errA := strconv.ParseFloat(g[at], 64)
				b, errB := strconv.ParseFloat(w[at], 64)
				if errA != nil || errB != nil {
					return fmt.Errorf("%q and %q at %d", g[at], w[at], at)
				}
				worst, size = max(worst, math.Abs(a-b)), max(size, math.Abs(b))
			}
			if worst > most*size {
				return fmt.Errorf("a difference of %v among values up to %v", worst, size)
			}
		}
	}
	return nil
}

// recall makes history, as if a replica's stock Thanos had uploaded it at its time.
func (c *bucketCluster) recall(begin, end time.Time) {
	t := c.t
	t.Helper()
	var level, ticks strings.Builder
	for at := begin; at.Before(end); at = at.Add(time.Minute) {
		age := at.Sub(begin).Seconds()
		fmt.Fprintf(&level, "e2e_old_level %v %d\n", 2+math.Sin(2*math.Pi*age/(12*3600)), at.Unix())
		fmt.Fprintf(&ticks, "e2e_old_ticks_total %v %d\n", age, at.Unix())
	}
	write(t, c.dir, "history.txt", "# TYPE e2e_old_level gauge\n"+level.String()+"# TYPE e2e_old_ticks counter\n"+ticks.String()+"# EOF\n")
	mustTool(t, c.dir, "promtool", "tsdb", "create-blocks-from", "openmetrics", "history.txt", "history")
	dir := filepath.Join(c.dir, "history")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var meta map[string]any
		if err := json.Unmarshal([]byte(readFile(t, dir, e.Name()+"/meta.json")), &meta); err != nil {
			t.Fatal(err)
		}
		// What is young is left alone for a while.
		id := ulid.MustNew(uint64(meta["maxTime"].(float64)), rand.Reader).String()
		meta["ulid"] = id
		meta["compaction"].(map[string]any)["sources"] = []string{id}
		text, err := json.Marshal(meta)
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir, e.Name()+"/meta.json", string(text))
		if err := os.Rename(filepath.Join(dir, e.Name()), filepath.Join(dir, id)); err != nil {
			t.Fatal(err)
		}
	}
	stockTools(t, c.dir, c.config, "upload-blocks", "--path="+dir, `--label=site="e2e"`, `--label=replica="a"`, `--label=zone="zone-a"`)
	root := filepath.Join(c.dir, "bucket")
	if entries, err = os.ReadDir(root); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var meta map[string]any
		if err := json.Unmarshal([]byte(readFile(t, root, e.Name()+"/meta.json")), &meta); err != nil {
			t.Fatal(err)
		}
		meta["thanos"].(map[string]any)["upload_time"] = end.UTC().Format(time.RFC3339)
		text, err := json.Marshal(meta)
		if err != nil {
			t.Fatal(err)
		}
		write(t, root, e.Name()+"/meta.json", string(text))
	}
}
