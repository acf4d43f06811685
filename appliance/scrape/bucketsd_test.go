package scrape

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/filesystem"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// world is a bucket, and what one discoverer says of it.
type world struct {
	t       *testing.T
	root    string
	targets *bucketTargets
	d       *bucketDiscoverer
	known   map[string]*targetgroup.Group
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, root: filepath.Join(t.TempDir(), "bucket")}
	bkt, err := filesystem.NewBucket(w.root)
	require.NoError(t, err)
	reg := prometheus.NewRegistry()
	// Upstream's kinds are there first, file_sd with its names among them.
	_, err = discovery.CreateAndRegisterSDMetrics(reg)
	require.NoError(t, err)
	w.targets, err = newBucketTargets(bkt, filepath.Join(t.TempDir(), "targets"), reg)
	require.NoError(t, err)
	w.begin()
	w.targets.running[w.d] = struct{}{}
	t.Cleanup(func() {
		_, err := reg.Gather()
		require.NoError(t, err)
	})
	return w
}

func (w *world) begin() {
	cfg := &config.BucketSD{Prefix: "targets/", RefreshInterval: model.Duration(time.Second)}
	w.d = w.targets.discoverer(cfg, slog.New(slog.DiscardHandler)).(*bucketDiscoverer)
	w.known = map[string]*targetgroup.Group{}
	w.d.recall()
}

func (w *world) put(name, text string) {
	w.t.Helper()
	p := filepath.Join(w.root, filepath.FromSlash(name))
	require.NoError(w.t, os.MkdirAll(filepath.Dir(p), 0o755))
	require.NoError(w.t, os.WriteFile(p, []byte(text), 0o644))
}

// round is what Run does each time; it gives the addresses that upstream knows then.
func (w *world) round() (addresses []string, err error) {
	changed, err := w.d.look(w.t.Context())
	w.d.note(err, time.Now())
	up := make(chan []*targetgroup.Group, 1)
	require.True(w.t, w.d.send(w.t.Context(), up))
	select {
	case groups := <-up:
		for _, g := range groups {
			w.known[g.Source] = g
		}
	default:
	}
	if changed {
		w.d.remember()
	}
	for _, g := range w.known {
		for _, target := range g.Targets {
			addresses = append(addresses, string(target[model.AddressLabel]))
		}
	}
	slices.Sort(addresses)
	return addresses, err
}

func TestBucketTargetsFollowTheObjects(t *testing.T) {
	w := newWorld(t)
	w.put("targets/a.json", `[{"targets":["a:1","a:2"],"labels":{"env":"x"}},{"targets":["a:3"]}]`)
	w.put("targets/deep/b.yml", "- targets: [b:1]\n")
	w.put("targets/README.md", "no targets")
	w.put("elsewhere/c.json", `[{"targets":["c:1"]}]`)
	got, err := w.round()
	require.NoError(t, err)
	require.Equal(t, []string{"a:1", "a:2", "a:3", "b:1"}, got)
	g := w.known["targets/a.json:0"]
	require.Equal(t, model.LabelSet{"env": "x", objectLabel: "targets/a.json", filepathLabel: "targets/a.json"}, g.Labels)

	// Fewer groups, and an object that is gone.
	w.put("targets/a.json", `[{"targets":["a:1"]}]`)
	require.NoError(t, os.Remove(filepath.Join(w.root, "targets/deep/b.yml")))
	got, err = w.round()
	require.NoError(t, err)
	require.Equal(t, []string{"a:1"}, got)
}

func TestBucketTargetsStayWhenTheyCannotBeRead(t *testing.T) {
	w := newWorld(t)
	w.put("targets/a.json", `[{"targets":["a:1"]}]`)
	w.put("targets/b.json", `[{"targets":["b:1"]}]`)
	_, err := w.round()
	require.NoError(t, err)

	for name, garbage := range map[string]string{
		"cut off": `[{"targets":["b:`, "null": "[null]", "another shape": `{"targets": 1}`, "an unknown field": `[{"hosts":["x"]}]`,
		"too large": strings.Repeat(" ", maxObjectBytes+1),
	} {
		w.put("targets/b.json", garbage)
		w.put("targets/a.json", `[{"targets":["a:2"]}]`)
		got, err := w.round()
		require.ErrorContains(t, err, "targets/b.json", name)
		require.Equal(t, []string{"a:2", "b:1"}, got, name)
	}

	// The bucket is away, and then the process starts anew.
	require.NoError(t, os.Rename(w.root, w.root+".away"))
	got, err := w.round()
	require.Error(t, err)
	require.Equal(t, []string{"a:2", "b:1"}, got)
	w.begin()
	got, err = w.round()
	require.Error(t, err)
	require.Equal(t, []string{"a:2", "b:1"}, got)
	require.Zero(t, w.d.success)

	require.NoError(t, os.Rename(w.root+".away", w.root))
	w.put("targets/b.json", `[{"targets":["b:2"]}]`)
	got, err = w.round()
	require.NoError(t, err)
	require.Equal(t, []string{"a:2", "b:2"}, got)
}

func TestBucketTargetsAreBounded(t *testing.T) {
	w := newWorld(t)
	for i := range maxObjects + 1 {
		w.put(fmt.Sprintf("targets/%d.json", i), "[]")
	}
	_, err := w.round()
	require.ErrorContains(t, err, "more than 1000 objects")
}

func TestBucketDiscovererEnds(t *testing.T) {
	w := newWorld(t)
	w.put("targets/a.json", `[{"targets":["a:1"]}]`)
	ctx, cancel := context.WithCancel(t.Context())
	up, done := make(chan []*targetgroup.Group), make(chan struct{})
	go func() { defer close(done); w.d.Run(ctx, up) }()
	require.Len(t, <-up, 1)
	cancel()
	<-done
}

// away is a bucket that fails for some looks, and then hangs for some.
type away struct {
	objstore.BucketReader
	fails, hangs int
}

func (a *away) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, opts ...objstore.IterOption) error {
	switch {
	case a.fails > 0:
		a.fails--
		return errors.New("the bucket is away")
	case a.hangs > 0:
		a.hangs--
		<-ctx.Done()
		return ctx.Err()
	}
	return a.BucketReader.IterWithAttributes(ctx, dir, f, opts...)
}

func TestFirstBucketTargetsDoNotWaitForTheNextInterval(t *testing.T) {
	w := newWorld(t)
	w.put("targets/a.json", `[{"targets":["a:1"]}]`)
	bkt := &away{BucketReader: w.targets.bkt, fails: 2}
	w.targets.bkt = bkt
	synctest.Test(t, func(t *testing.T) {
		// after is how long it takes until upstream knows targets.
		after := func() time.Duration {
			cfg := &config.BucketSD{Prefix: "targets/", RefreshInterval: model.Duration(time.Hour)}
			d := w.targets.discoverer(cfg, slog.New(slog.DiscardHandler))
			ctx, cancel := context.WithCancel(t.Context())
			up, done := make(chan []*targetgroup.Group), make(chan struct{})
			began := time.Now()
			go func() { defer close(done); d.Run(ctx, up) }()
			require.Len(t, <-up, 1)
			took := time.Since(began)
			synctest.Wait()
			cancel()
			<-done
			return took
		}
		require.Equal(t, firstPause+2*firstPause, after())
		// Those of the last run are there soon, though the bucket hangs.
		bkt.hangs = 1000
		require.Equal(t, recallPatience, after())
	})
}
