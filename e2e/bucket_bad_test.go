package e2e

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
)

// TestBucketBad puts garbage into the bucket, and lets the server answer badly, slowly and not at all. Scraping and queries of local
// data do not notice, the log names the bucket, other blocks are served, and nothing is lost.
func TestBucketBad(t *testing.T) {
	t.Parallel()
	c := newBucketCluster(t, []string{"a"}, 2*bucketWindow)
	first := nextWindow(time.Now())
	second := first.Add(bucketWindow)
	eventually(t, bucketMost+bucketWindow, "windows are in the bucket", c.once(first, second.Add(bucketWindow)))
	stored, err := c.blocks()
	if err != nil {
		t.Fatal(err)
	}
	n := slices.IndexFunc(stored, func(b storedBlock) bool { return b.Meta.MinTime >= second.UnixMilli() })
	if n < 0 {
		t.Fatalf("no block of the second window: %v", stored)
	}
	c.spoil(&stored[n])

	forever := make(chan struct{})
	for _, phase := range []struct {
		what string
		rule func(*http.Request) *mishap
	}{
		{"403", func(*http.Request) *mishap { return &mishap{status: http.StatusForbidden} }},
		{"404", func(*http.Request) *mishap { return &mishap{status: http.StatusNotFound} }},
		{"429", func(*http.Request) *mishap { return &mishap{status: http.StatusTooManyRequests} }},
		{"500", func(*http.Request) *mishap { return &mishap{status: http.StatusInternalServerError} }},
		{"slow answers", func(*http.Request) *mishap { return &mishap{delay: 3 * time.Second} }},
		{"no answers", func(*http.Request) *mishap { return &mishap{held: forever} }},
		{"all is well", nil},
	} {
		logged := len(c.a().output())
		c.rule(phase.rule)
		began := time.Now()
		during(t, 6*time.Second, "local queries and scraping go on: "+phase.what, c.undisturbed)
		if phase.rule != nil && phase.what != "slow answers" && phase.what != "no answers" {
			eventually(t, 20*time.Second, "the log names the bucket: "+phase.what, func() error {
				if !regexp.MustCompile(`(?m)level=(WARN|ERROR|warn|error).*bucket`).MatchString(c.a().output()[logged:]) {
					return errors.New("it does not")
				}
				return nil
			})
		}
		t.Logf("%s: %s", phase.what, time.Since(began).Round(100*time.Millisecond))
	}
	if strings.Contains(c.a().output(), s3Secret) {
		t.Error("the log shows the secret key")
	}
	eventually(t, 2*bucketMost, "what was to be uploaded is there, once", c.once(first, time.Now().Truncate(bucketWindow)))
	eventually(t, bucketMost, "local data of the first windows are deleted", func() error {
		d, err := c.a().answer("e2e_ticks_total", first, second, true)
		if err == nil && d.samples() > 0 {
			err = fmt.Errorf("there are %d samples", d.samples())
		}
		return err
	})
	eventually(t, time.Minute, "the good blocks are served beside the broken ones", func() error {
		to := time.Now().Add(-atEdges)
		d, warnings, err := c.a().matrix("query", span("e2e_ticks_total", first, to))
		if err == nil {
			d, err = withoutExternal(d)
		}
		if err == nil {
			err = c.unbroken("a", d, first, to)
		}
		if err != nil {
			return fmt.Errorf("%w (warnings: %q)", err, warnings)
		}
		return nil
	})
	if err := c.undisturbed(); err != nil {
		t.Error(err)
	}
}

// undisturbed is a check that the meter is scraped as always, and that queries of what is local are quick, whether they could ask
// others or not.
func (c *bucketCluster) undisturbed() error {
	for _, local := range []string{"", "&local=true"} {
		body, err := quickly(http.MethodGet, c.a().url+"/api/v1/query?query=count_over_time(e2e_ticks_total[5s])"+local, "", "")
		if err != nil {
			return err
		}
		var answer struct {
			Data queryData `json:"data"`
		}
		if err := json.Unmarshal([]byte(body), &answer); err != nil {
			return err
		}
		if r := answer.Data.Result; len(r) != 1 || r[0].Value.Value < "3" || len(r[0].Value.Value) != 1 {
			return fmt.Errorf("in the last seconds, the meter was scraped: %v", r)
		}
	}
	return nil
}

// spoil puts into the bucket what must not be there. Most of it looks like the block given.
func (c *bucketCluster) spoil(like *storedBlock) {
	t := c.t
	t.Helper()
	root := filepath.Join(c.s3.root, s3Bucket)
	name := func() string {
		id := ulid.MustNew(ulid.Now(), rand.Reader).String()
		c.garbage[id] = true
		return id
	}
	imitate := func(edit func(meta map[string]any)) string {
		id := name()
		if err := os.CopyFS(filepath.Join(root, id), os.DirFS(filepath.Join(root, like.ID))); err != nil {
			t.Fatal(err)
		}
		var meta map[string]any
		if err := json.Unmarshal([]byte(readFile(t, root, id+"/meta.json")), &meta); err != nil {
			t.Fatal(err)
		}
		meta["ulid"] = id
		meta["compaction"].(map[string]any)["sources"] = []string{id}
		edit(meta)
		text, err := json.Marshal(meta)
		if err != nil {
			t.Fatal(err)
		}
		write(t, root, id+"/meta.json", string(text))
		return id
	}
	same := func(map[string]any) {}
	write(t, root, "README", "not a block")
	write(t, root, "debug/metas/x.json", "{")
	write(t, root, name()+"/meta.json", "\x00garbage")
	write(t, root, name()+"/meta.json", "{}")
	write(t, root, name()+"/index", "half a block")
	imitate(func(meta map[string]any) { meta["version"] = 99 })
	imitate(func(meta map[string]any) { meta["ulid"] = like.ID })
	imitate(func(meta map[string]any) {
		meta["thanos"].(map[string]any)["labels"] = map[string]string{"site": "elsewhere", "replica": "x"}
	})
	imitate(func(meta map[string]any) {
		year := 365 * 24 * time.Hour.Milliseconds()
		meta["minTime"], meta["maxTime"] = like.Meta.MinTime+year, like.Meta.MaxTime+year
	})
	// Broken files under a good meta.json.
	index := imitate(same) + "/index"
	write(t, root, index, readFile(t, root, index)[:like.Files["index"]/2])
	wrong := imitate(same) + "/index"
	text := []byte(readFile(t, root, wrong))
	for i := len(text) / 3; i < len(text)/2; i++ {
		text[i] ^= 0x55
	}
	write(t, root, wrong, string(text))
	if err := os.Remove(filepath.Join(root, imitate(same), "chunks", "000001")); err != nil {
		t.Fatal(err)
	}
}
