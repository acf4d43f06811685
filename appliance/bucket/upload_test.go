package bucket

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alecthomas/units"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/block/metadata"
	"github.com/thanos-io/thanos/pkg/compact/downsample"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/store"
)

const (
	testWindow = 2 * time.Hour
	testStep   = testWindow / uploadSteps
	// testEvery is the distance of samples.
	testEvery    = 5 * time.Minute
	testSeries   = 5
	testPatience = time.Minute
)

// clock is the time of all replicas of a trial: the real one, set forward by the test.
type clock struct {
	mtx   sync.Mutex
	ahead time.Duration
}

func (c *clock) now() time.Time {
	c.mtx.Lock()
	defer c.mtx.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) advance(d time.Duration) {
	c.mtx.Lock()
	defer c.mtx.Unlock()
	c.ahead += d
}

// missing is a ledger.
type missing struct {
	mtx sync.Mutex
	in  []store.Interval
}

func (m *missing) set(in ...store.Interval) {
	m.mtx.Lock()
	defer m.mtx.Unlock()
	m.in = in
}

func (m *missing) Missing(mint, maxt int64) (found []store.Missing) {
	m.mtx.Lock()
	defer m.mtx.Unlock()
	for _, i := range m.in {
		if i.Meets(mint, maxt) {
			found = append(found, store.Missing{Intervals: []store.Interval{i}})
		}
	}
	return found
}

// cluster are replicas with a bucket of the FILESYSTEM kind.
type cluster struct {
	t     *testing.T
	dir   string // Of the bucket.
	names []string
	clock *clock
	begin int64         // Of the first window that there are data of.
	raw   time.Duration // The retention of the bucket.
	keep  time.Duration // That of downsampled blocks.
	cache units.Base2Bytes
	label string                    // The external label cluster, c unless a test changes it.
	mesh  func(replica string) Mesh // nil where the caches do not reach each other.
}

func newTestCluster(t *testing.T, names ...string) *cluster {
	begin := floor(time.Now().Add(-12*testWindow).UnixMilli(), testWindow.Milliseconds())
	return &cluster{t: t, dir: t.TempDir(), names: names, clock: &clock{}, begin: begin}
}

// replica is one of them: a real store, and its share in the bucket, which can die and come back.
type replica struct {
	*cluster
	name   string
	dir    string
	gaps   missing
	logs   lockedLog
	store  *store.Store
	bucket *Bucket
	held   atomic.Pointer[Bucket] // The same.
}

type lockedLog struct {
	mtx  sync.Mutex
	text strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mtx.Lock()
	defer l.mtx.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mtx.Lock()
	defer l.mtx.Unlock()
	return l.text.String()
}

func (c *cluster) replica(name string, change ...func(*store.Options)) *replica {
	t := c.t
	t.Helper()
	r := &replica{cluster: c, name: name, dir: t.TempDir()}
	o := store.Options{
		Dir: r.dir, Logger: slog.New(slog.NewTextHandler(&r.logs, nil)), Registerer: prometheus.NewRegistry(),
		StripeSize: 64, BlockReloadInterval: time.Second, MinBlockDuration: testWindow,
		MaxBlockDuration: testWindow, // None but level 1, unless a test wants them.
	}
	for _, f := range change {
		f(&o)
	}
	var err error
	r.store, err = store.New(o)
	require.NoError(t, err)
	r.restart()
	r.store.Hold(func(mint, maxt int64) bool { return r.held.Load().Settled(mint, maxt) })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.store.Run(ctx) }()
	t.Cleanup(func() {
		require.NoError(t, r.bucket.Close())
		cancel()
		require.NoError(t, <-done)
		require.NoError(t, r.store.Close())
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, r.logs.String())
		}
	})
	select {
	case <-r.store.Ready():
	case <-time.After(testPatience):
		t.Fatal("the store did not become ready")
	}
	return r
}

// restart gives the replica a new Bucket, as a new process has it.
func (r *replica) restart() {
	r.t.Helper()
	if r.bucket != nil {
		require.NoError(r.t, r.bucket.Close())
	}
	var err error
	var mesh Mesh
	if r.mesh != nil {
		mesh = r.mesh(r.name)
	}
	bucket, err := New(Options{
		Logger: slog.New(slog.NewTextHandler(&r.logs, nil)), Registerer: prometheus.NewRegistry(),
		Dir: filepath.Join(r.dir, "bucket"), Replica: r.name, Store: r.store, Gaps: &r.gaps, Window: testWindow,
		Config: &config.Config{Bucket: &config.Bucket{
			Type: "FILESYSTEM", Name: r.cluster.dir, Objstore: fmt.Appendf(nil, "type: FILESYSTEM\nconfig: {directory: %q}\n", r.cluster.dir),
			Retention: config.BucketRetention{Raw: model.Duration(r.raw), FiveMinutes: model.Duration(r.keep), OneHour: model.Duration(r.keep)}, Cache: config.BucketCache{Size: r.cache},
		}},
		Mesh: mesh,
		External: func() labels.Labels {
			return labels.FromStrings("cluster", cmp.Or(r.label, "c"), "replica", r.name, "zone", "z-"+r.name)
		},
		Replicas: func() []string { return r.names },
	})
	require.NoError(r.t, err)
	bucket.uploader.now = r.clock.now
	bucket.uploader.began = r.clock.now()
	r.bucket = bucket
	r.held.Store(bucket)
}

// samples are the times of what a replica has of n windows, and a bit of the next, so that these become blocks.
func (c *cluster) samples(n int) (times []int64) {
	for at := c.begin; at <= c.begin+int64(n)*testWindow.Milliseconds()+testWindow.Milliseconds()*3/4; at += testEvery.Milliseconds() {
		times = append(times, at)
	}
	return times
}

// scrape appends what there is of n windows, but not what is left out, and waits until it is in blocks.
func (r *replica) scrape(n int, without ...store.Interval) {
	r.t.Helper()
	for _, at := range r.samples(n) {
		if !slices.ContainsFunc(without, func(i store.Interval) bool { return i.Contains(at) }) {
			r.append(at)
		}
	}
	end := r.begin + int64(n)*testWindow.Milliseconds()
	require.Eventually(r.t, func() bool {
		written, err := r.store.Written()
		return err == nil && written >= end
	}, testPatience, 10*time.Millisecond)
}

func (r *replica) append(at int64) {
	r.t.Helper()
	app := r.store.Appender(context.Background())
	for i := range testSeries {
		_, err := app.Append(0, testLabels(i), at, value(i, at))
		require.NoError(r.t, err)
	}
	require.NoError(r.t, app.Commit())
}

func testLabels(i int) labels.Labels {
	return labels.FromStrings("__name__", "test_metric", "instance", fmt.Sprintf("host-%d", i))
}

func value(series int, at int64) float64 { return float64(at%1_000_000 + int64(series)) }

// round is one of the uploader's.
func (r *replica) round() {
	r.t.Helper()
	require.NoError(r.t, r.bucket.uploader.round(context.Background()))
	if v, err := r.bucket.catalogue.last(); err == nil {
		require.NoError(r.t, r.bucket.reader.sync(context.Background(), v))
	}
}

// inject puts something between the replica and the bucket.
func (r *replica) inject(wrap func(objstore.Bucket) objstore.Bucket) {
	bkt := wrap(r.bucket.client.bkt())
	r.bucket.client.current.Store(&opened{Bucket: bkt, redact: func(s string) string { return s }})
}

func (r *replica) count(name string) float64 {
	u := r.bucket.uploader
	return testutil.ToFloat64(map[string]prometheus.Collector{
		"uploads": u.uploads, "failures": u.failures, "bytes": u.bytes, "skipped": u.skipped, "broken": u.broken, "backlog": u.backlog,
	}[name])
}

// uploaded is a block of the bucket.
type uploaded struct {
	meta  *metadata.Meta
	begin int64
	whole bool
	times map[string][]int64 // By series.
}

// blocks reads all of the bucket: there is nothing but blocks that stock Thanos reads. They come by window.
func (c *cluster) blocks() (all []uploaded) {
	t := c.t
	t.Helper()
	dirs, err := os.ReadDir(c.dir)
	require.NoError(t, err)
	for _, d := range dirs {
		if hidden(d.Name()) {
			continue
		}
		dir := filepath.Join(c.dir, d.Name())
		meta, err := metadata.ReadFromDir(dir)
		require.NoError(t, err, "an object that is no block: %s", d.Name())
		require.Equal(t, d.Name(), meta.ULID.String())
		begin, whole, ok := nameWindow(meta.ULID, testWindow)
		require.True(t, ok)
		require.NoError(t, block.VerifyIndex(context.Background(), kitLogger{slog.New(slog.DiscardHandler)},
			filepath.Join(dir, block.IndexFilename), meta.MinTime, meta.MaxTime))
		require.GreaterOrEqual(t, meta.MinTime, begin)
		require.LessOrEqual(t, meta.MaxTime, begin+testWindow.Milliseconds())
		require.Equal(t, tsdb.BlockMetaCompaction{Level: 1, Sources: []ulid.ULID{meta.ULID}}, meta.Compaction)
		require.Equal(t, metadata.SidecarSource, meta.Thanos.Source)
		require.Equal(t, "c", meta.Thanos.Labels["cluster"])
		require.NotZero(t, meta.Thanos.IndexStats.SeriesMaxSize)
		for _, f := range meta.Thanos.Files {
			if f.RelPath == block.MetaFilename {
				continue
			}
			h, err := metadata.CalculateHash(filepath.Join(dir, f.RelPath), metadata.SHA256Func, kitLogger{slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
			require.True(t, f.Hash.Equal(&h), f.RelPath)
		}
		all = append(all, uploaded{meta, begin, whole, readBlock(t, dir)})
	}
	slices.SortFunc(all, func(a, b uploaded) int { return int(a.begin - b.begin) })
	return all
}

func readBlock(t *testing.T, dir string) map[string][]int64 {
	t.Helper()
	b, err := tsdb.OpenBlock(slog.New(slog.DiscardHandler), dir, nil, nil)
	require.NoError(t, err)
	defer func() {
		require.NoError(t, b.Close())
		// What opening it leaves behind.
		_ = os.Remove(filepath.Join(dir, "tombstones"))
	}()
	q, err := tsdb.NewBlockQuerier(b, math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	defer func() { require.NoError(t, q.Close()) }()
	times := map[string][]int64{}
	set := q.Select(context.Background(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	for n := 0; set.Next(); n++ {
		it := set.At().Iterator(nil)
		name := set.At().Labels().String()
		for it.Next() == chunkenc.ValFloat {
			at, v := it.At()
			require.Equal(t, value(n, at), v)
			times[name] = append(times[name], at)
		}
		require.NoError(t, it.Err())
	}
	require.NoError(t, set.Err())
	return times
}

// hasAll checks that there is one block for each of n windows, and in them all samples but those left out.
func (c *cluster) hasAll(n int, without ...store.Interval) {
	c.t.Helper()
	all := c.blocks()
	require.Len(c.t, all, n)
	got := map[string][]int64{}
	for i, b := range all {
		require.Equal(c.t, c.begin+int64(i)*testWindow.Milliseconds(), b.begin)
		for name, times := range b.times {
			got[name] = append(got[name], times...)
		}
	}
	want := slices.DeleteFunc(c.samples(n), func(at int64) bool {
		return at >= c.begin+int64(n)*testWindow.Milliseconds() ||
			slices.ContainsFunc(without, func(i store.Interval) bool { return i.Contains(at) })
	})
	require.Len(c.t, got, testSeries)
	for name, times := range got {
		require.Equal(c.t, want, times, name)
	}
}

// inOrder are the replicas by their place for the window.
func inOrder(begin int64, all ...*replica) []*replica {
	names := order(fmt.Sprintf("upload/%d", begin), all[0].names)
	slices.SortFunc(all, func(a, b *replica) int { return slices.Index(names, a.name) - slices.Index(names, b.name) })
	return all
}

func TestOneBlockForEachWindow(t *testing.T) {
	c := newTestCluster(t, "a", "b", "c")
	all := []*replica{c.replica("a"), c.replica("b"), c.replica("c")}
	const n = 4
	for _, r := range all {
		r.scrape(n)
	}
	for range 2 {
		for _, r := range all {
			r.round()
		}
	}
	c.hasAll(n)
	for _, b := range c.blocks() {
		require.True(t, b.whole)
		require.Equal(t, inOrder(b.begin, slices.Clone(all)...)[0].name, b.meta.Thanos.Labels["replica"])
	}
	// Nobody does it again, however long it takes.
	c.clock.advance(10 * testWindow)
	for _, r := range all {
		r.restart()
		for range 2 {
			r.round()
		}
		c.clock.advance(testWindow)
		r.round()
		require.Zero(t, r.count("uploads"))
		require.Zero(t, r.count("backlog"))
		st := r.bucket.uploader.status()
		require.Zero(t, st.Backlog)
		require.Empty(t, st.Running)
		require.Len(t, st.Windows, n)
		for i, w := range st.Windows {
			require.Equal(t, uploadCovered, w.State)
			require.Equal(t, c.begin+int64(i)*testWindow.Milliseconds(), w.Begin)
			require.Equal(t, inOrder(w.Begin, slices.Clone(all)...)[0].name, w.By)
		}
		entries, err := os.ReadDir(r.bucket.uploader.dir)
		require.NoError(t, err)
		require.Empty(t, entries)
		require.True(t, r.bucket.Covered(c.begin, c.begin+n*testWindow.Milliseconds()))
		require.False(t, r.bucket.Covered(c.begin, c.begin+n*testWindow.Milliseconds()+1))
	}
	c.hasAll(n)
}

func TestTheNextStepsIn(t *testing.T) {
	c := newTestCluster(t, "a", "b", "c")
	all := inOrder(c.begin, c.replica("a"), c.replica("b"), c.replica("c"))
	for _, r := range all {
		r.scrape(1)
	}
	second, third := all[1], all[2]
	second.round()
	third.round()
	require.Empty(t, c.blocks())
	require.Equal(t, waitingForTurn, second.bucket.uploader.status().Windows[0].State)
	c.clock.advance(testStep / 2)
	second.round()
	require.Empty(t, c.blocks(), "the second did not wait a step")
	c.clock.advance(testStep/2 + time.Minute)
	third.round()
	require.Empty(t, c.blocks(), "the third did not wait two steps")
	second.round()
	c.hasAll(1)
	c.clock.advance(3 * testStep)
	third.round()
	all[0].round()
	c.hasAll(1)
	require.EqualValues(t, 1, third.count("skipped"))
	require.Equal(t, second.name, c.blocks()[0].meta.Thanos.Labels["replica"])
}

// flaky lets a test see and break what changes the bucket.
type flaky struct {
	objstore.Bucket
	// before is told each upload and delete; with cut half of the object gets there. An error is that of the call.
	before func(op, name string) (cut bool, err error)
}

func (f *flaky) Upload(ctx context.Context, name string, r io.Reader, opts ...objstore.ObjectUploadOption) error {
	cut, err := f.before("upload", name)
	if err == nil {
		return f.Bucket.Upload(ctx, name, r, opts...)
	}
	if cut {
		b, rerr := io.ReadAll(r)
		if rerr != nil {
			return rerr
		}
		if uerr := f.Bucket.Upload(context.WithoutCancel(ctx), name, strings.NewReader(string(b[:len(b)/2]))); uerr != nil {
			return uerr
		}
	}
	return err
}

func (f *flaky) Delete(ctx context.Context, name string) error {
	if _, err := f.before("delete", name); err != nil {
		return err
	}
	return f.Bucket.Delete(ctx, name)
}

// killedAt runs a round that dies at the n-th change of the bucket, half done, and tells whether it got there.
func (r *replica) killedAt(n int) bool {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	killed := false
	var mtx sync.Mutex
	r.inject(func(b objstore.Bucket) objstore.Bucket {
		return &flaky{Bucket: b, before: func(string, string) (bool, error) {
			mtx.Lock()
			defer mtx.Unlock()
			if n--; n >= 0 {
				return false, nil
			}
			first := !killed
			killed = true
			cancel()
			return first, context.Canceled
		}}
	})
	if err := r.bucket.uploader.round(ctx); err != nil && !killed {
		r.t.Fatal(err)
	}
	return killed
}

func TestAKillLeavesNothingUndone(t *testing.T) {
	for n := 0; ; n++ {
		var killed bool
		t.Run(fmt.Sprintf("at %d", n), func(t *testing.T) {
			c := newTestCluster(t, "a")
			a := c.replica("a")
			a.scrape(1)
			killed = a.killedAt(n)
			require.Equal(t, killed, len(c.readable()) == 0)
			entries, err := os.ReadDir(a.bucket.uploader.dir)
			require.NoError(t, err)
			a.restart()
			a.round()
			c.hasAll(1)
			if killed {
				require.Len(t, entries, 1)
				require.Equal(t, entries[0].Name(), c.blocks()[0].meta.ULID.String(), "not by the same name")
			}
			a.noneStaged()
		})
		if !killed {
			require.Equal(t, 3, n, "a chunk file, the index, meta.json")
			break
		}
	}
}

// Another stepped in while this one was away, which is killed once more while it takes away what it left.
func TestAKillLeavesNothingBehind(t *testing.T) {
	for n := range 3 {
		for m := 0; ; m++ {
			var killed bool
			t.Run(fmt.Sprintf("at %d and %d", n, m), func(t *testing.T) {
				c := newTestCluster(t, "a", "b")
				all := inOrder(c.begin, c.replica("a"), c.replica("b"))
				a, b := all[0], all[1]
				a.scrape(1)
				b.scrape(1)
				require.True(t, a.killedAt(n))
				require.NotEmpty(t, c.orphans())
				b.round()
				c.clock.advance(testStep + time.Minute)
				b.round()
				require.Len(t, c.readable(), 1)
				a.restart()
				killed = a.killedAt(m)
				a.restart()
				a.round()
				c.hasAll(1)
				require.Equal(t, b.name, c.blocks()[0].meta.Thanos.Labels["replica"])
				a.noneStaged()
			})
			if !killed || t.Failed() {
				break
			}
		}
	}
}

// What lies in the bucket is as old as compactors wait before they delete it, and one does while the upload is completed.
func TestAnOldNameIsNotUsedAgain(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	all := inOrder(c.begin, c.replica("a"), c.replica("b"))
	a, b := all[0], all[1]
	a.scrape(1)
	b.scrape(1)
	require.True(t, a.killedAt(1), "in the middle of the index")
	require.Len(t, c.orphans(), 1)
	old := a.age(c.orphans()[0], b.bucket.compactor.deleteDelay+time.Minute)
	a.restart()
	cleaned := false
	a.inject(func(bkt objstore.Bucket) objstore.Bucket {
		return &flaky{Bucket: bkt, before: func(op, name string) (bool, error) {
			if op == "upload" && strings.HasSuffix(name, block.MetaFilename) {
				cleaned = true
				if err := b.bucket.compactor.syncer.SyncMetas(t.Context()); err != nil {
					return false, err
				}
				b.bucket.compactor.cleanPartial(t.Context(), nil)
			}
			return false, nil
		}}
	})
	a.round()
	require.True(t, cleaned)
	c.hasAll(1)
	require.NotEqual(t, old, c.blocks()[0].meta.ULID.String())
	a.noneStaged()
	// All that its meta.json promises is there.
	b.round()
	require.Zero(t, b.count("broken"))
}

// age makes a block that is staged, and what there is of it in the bucket, older by its name.
func (r *replica) age(name string, by time.Duration) string {
	t := r.t
	t.Helper()
	id := mustParse(t, name)
	require.NoError(t, id.SetTime(ulid.Timestamp(ulid.Time(id.Time()).Add(-by))))
	dir := filepath.Join(r.bucket.uploader.dir, name)
	meta, err := metadata.ReadFromDir(dir)
	require.NoError(t, err)
	meta.ULID, meta.Compaction.Sources = id, []ulid.ULID{id}
	require.NoError(t, meta.WriteToDir(kitLogger{slog.New(slog.DiscardHandler)}, dir))
	require.NoError(t, os.Rename(dir, filepath.Join(filepath.Dir(dir), id.String())))
	require.NoError(t, os.Rename(filepath.Join(r.cluster.dir, name), filepath.Join(r.cluster.dir, id.String())))
	return id.String()
}

// The bucket takes nothing for a long time, and the process lives on.
func TestANameGetsOld(t *testing.T) {
	for _, test := range []struct {
		part float64
		same bool
	}{{uploadBegins - 0.01, true}, {uploadBegins, false}} {
		c := newTestCluster(t, "a")
		a := c.replica("a")
		a.scrape(1)
		fail := true
		a.inject(func(b objstore.Bucket) objstore.Bucket {
			return &flaky{Bucket: b, before: func(op, name string) (bool, error) {
				if fail && op == "upload" && strings.HasSuffix(name, block.IndexFilename) {
					return true, errors.New("503")
				}
				return false, nil
			}}
		})
		a.round()
		old := c.orphans()
		require.Len(t, old, 1)
		fail = false
		c.clock.advance(time.Duration(test.part * float64(a.bucket.compactor.deleteDelay)))
		a.round()
		c.hasAll(1)
		require.Equal(t, test.same, old[0] == c.blocks()[0].meta.ULID.String())
		a.noneStaged()
	}
}

// An upload that goes on for so long that what is there of it may be deleted ends before that.
func TestAnUploadThatTakesTooLongIsCutOff(t *testing.T) {
	c := newTestCluster(t, "a")
	a := c.replica("a")
	a.scrape(1)
	a.bucket.compactor.deleteDelay = time.Second
	a.inject(func(b objstore.Bucket) objstore.Bucket { return hanging{b} })
	a.round()
	require.Contains(t, a.bucket.uploader.status().Windows[0].Problem, errOld.Error())
	require.Empty(t, c.readable())
}

// Neither of two replicas sees the other one, and both upload all windows at the same time.
func TestASplitBrainCountsNothingTwice(t *testing.T) {
	const n = 10 // Somewhere among them is a block of the next level.
	c := newTestCluster(t, "a")
	other := *c
	other.names, other.clock = []string{"b"}, &clock{}
	// The names of b come first, its samples last.
	c.clock.advance(time.Minute)
	a, b := c.replica("a"), (&other).replica("b")
	for _, at := range c.samples(n) {
		a.append(at)
		b.append(at + 2345)
	}
	var (
		mtx   sync.Mutex
		waits = map[int64]chan struct{}{}
		sent  sync.WaitGroup
	)
	for _, r := range []*replica{a, b} {
		r.scrapeNothing(n)
		r.inject(func(bkt objstore.Bucket) objstore.Bucket {
			return &flaky{Bucket: bkt, before: func(op, name string) (bool, error) {
				if op != "upload" || !strings.HasSuffix(name, block.MetaFilename) {
					return false, nil
				}
				begin, _, _ := nameWindow(ulid.MustParse(strings.SplitN(name, "/", 2)[0]), testWindow)
				mtx.Lock()
				both, second := waits[begin]
				if second {
					close(both)
				} else {
					both = make(chan struct{})
					waits[begin] = both
				}
				mtx.Unlock()
				<-both
				return false, nil
			}}
		})
		sent.Go(func() {
			if err := r.bucket.uploader.round(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	sent.Wait()
	require.Len(t, c.readable(), 2*n)

	// Each window is that of the first of its blocks, and nothing of the other, for both.
	end := c.begin + n*testWindow.Milliseconds()
	answer := func(r *replica) map[string]map[int64]float64 {
		r.load()
		got, warnings := found(t, r.bucket.At(0), c.begin, end-1)
		require.Empty(t, warnings)
		require.Len(t, got, testSeries)
		for name, samples := range got {
			require.Len(t, samples, n*int(testWindow/testEvery), name)
			for at := range samples {
				require.EqualValues(t, 2345, at%testEvery.Milliseconds(), name)
			}
		}
		return got
	}
	want := answer(a)
	require.Equal(t, want, answer(b))

	// Fresh blocks are left alone for a while.
	for _, id := range c.readable() {
		meta, err := metadata.ReadFromDir(filepath.Join(c.dir, id))
		require.NoError(t, err)
		meta.Thanos.UploadTime = meta.Thanos.UploadTime.Add(-time.Hour)
		require.NoError(t, meta.WriteToDir(kitLogger{slog.New(slog.DiscardHandler)}, filepath.Join(c.dir, id)))
	}
	for _, r := range []*replica{a, b} {
		require.NoError(t, os.RemoveAll(filepath.Join(r.dir, "bucket", "meta")))
		r.restart()
	}
	for _, r := range []*replica{a, b, a} {
		round(t, r.bucket)
	}
	times, compacted := map[int64]int{}, map[int64]bool{}
	for _, id := range c.readable() {
		if _, err := os.Stat(filepath.Join(c.dir, id, metadata.DeletionMarkFilename)); err == nil {
			continue
		}
		meta, err := metadata.ReadFromDir(filepath.Join(c.dir, id))
		require.NoError(t, err)
		for begin := floor(meta.MinTime, testWindow.Milliseconds()); begin < meta.MaxTime; begin += testWindow.Milliseconds() {
			times[begin]++
			compacted[begin] = compacted[begin] || meta.Compaction.Level > 1
		}
	}
	require.Len(t, times, n)
	some := 0
	for begin, count := range times {
		if compacted[begin] {
			some++
			require.Equal(t, 1, count, "the window is there more than once after compaction")
		}
	}
	require.GreaterOrEqual(t, some, 4)
	for _, r := range []*replica{a, b} {
		require.Equal(t, want, answer(r))
	}
}

func (r *replica) noneStaged() {
	r.t.Helper()
	entries, err := os.ReadDir(r.bucket.uploader.dir)
	require.NoError(r.t, err)
	require.Empty(r.t, entries)
}

// readable are the folders of the bucket with a meta.json that can be read, orphans the others.
func (c *cluster) readable() (found []string) { f, _ := c.folders(); return f }
func (c *cluster) orphans() (found []string)  { _, f := c.folders(); return f }

func (c *cluster) folders() (blocks, others []string) {
	dirs, err := os.ReadDir(c.dir)
	require.NoError(c.t, err)
	for _, d := range dirs {
		if hidden(d.Name()) {
			continue // What there is of it is no object.
		}
		if _, err := metadata.ReadFromDir(filepath.Join(c.dir, d.Name())); err == nil {
			blocks = append(blocks, d.Name())
		} else {
			others = append(others, d.Name())
		}
	}
	return blocks, others
}

func TestAFolderThatIsNotWholeIsRemoved(t *testing.T) {
	c := newTestCluster(t, "a")
	a := c.replica("a")
	a.scrape(1)
	id, err := windowName(time.Now(), c.begin, true)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(a.bucket.uploader.dir, id.String()+halfMade, "local"), 0o750))
	// One of windows of another length, partly uploaded.
	odd, err := windowName(time.Now(), c.begin+1, true)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(a.bucket.uploader.dir, odd.String()), 0o750))
	require.NoError(t, os.MkdirAll(filepath.Join(c.dir, odd.String()), 0o750))
	require.NoError(t, os.WriteFile(filepath.Join(c.dir, odd.String(), block.IndexFilename), []byte("x"), 0o640))
	a.round()
	c.hasAll(1)
	a.noneStaged()
}

func TestNotWholeThenWhole(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	all := inOrder(c.begin, c.replica("a"), c.replica("b"))
	a, b := all[0], all[1]
	gap := store.Interval{From: c.begin + time.Hour.Milliseconds(), To: c.begin + time.Hour.Milliseconds() + 4*testEvery.Milliseconds()}
	for _, r := range all {
		r.scrape(1, gap)
		r.gaps.set(gap)
	}
	for _, r := range all {
		r.round()
		require.Equal(t, waitingForHealing, r.bucket.uploader.status().Windows[0].State)
	}
	c.clock.advance(2*testWindow - time.Minute)
	a.round()
	require.Empty(t, c.blocks(), "it did not wait for healing")
	c.clock.advance(2 * time.Minute)
	a.round()
	c.hasAll(1, gap)
	require.False(t, c.blocks()[0].whole)
	require.False(t, a.bucket.Covered(c.begin, c.begin+1))
	c.clock.advance(4 * testWindow)
	b.round()
	a.round()
	c.hasAll(1, gap)

	// b heals.
	b.heal(gap)
	b.gaps.set()
	c.clock.advance(testStep + time.Minute)
	a.round()
	b.round() // It notices, and counts its steps from here.
	c.clock.advance(testStep + time.Minute)
	b.round()
	require.True(t, b.bucket.Covered(c.begin, c.begin+1))
	blocks := c.blocks()
	require.Len(t, blocks, 2)
	whole := blocks[slices.IndexFunc(blocks, func(u uploaded) bool { return u.whole })]
	require.Equal(t, b.name, whole.meta.Thanos.Labels["replica"])
	for _, times := range whole.times {
		require.Len(t, times, int(testWindow/testEvery))
	}
	a.round()
	require.Len(t, c.blocks(), 2)
}

// A bucket that fails now and then does not make a window wait for healing for ever.
func TestHealingIsWaitedForOnce(t *testing.T) {
	c := newTestCluster(t, "a")
	a := c.replica("a")
	gap := store.Interval{From: c.begin + time.Hour.Milliseconds(), To: c.begin + time.Hour.Milliseconds() + 4*testEvery.Milliseconds()}
	a.scrape(1, gap)
	a.gaps.set(gap)
	a.round()
	c.clock.advance(healWindows*testWindow - 2*time.Minute)
	a.round()
	require.Empty(t, c.blocks())
	// One look fails, and the next one does not.
	last, err := a.bucket.catalogue.last()
	require.NoError(t, err)
	v := *last
	v.since = c.clock.now()
	a.bucket.catalogue.mtx.Lock()
	a.bucket.catalogue.view = &v
	a.bucket.catalogue.mtx.Unlock()
	c.clock.advance(3 * time.Minute)
	a.round()
	c.hasAll(1, gap)
}

// The cluster gets another name while a block is half uploaded.
func TestStagedBlocksGetTheLabelsOfNow(t *testing.T) {
	for n := range 3 {
		c := newTestCluster(t, "a")
		a := c.replica("a")
		c.label = "before"
		a.restart()
		a.scrape(1)
		require.True(t, a.killedAt(n))
		require.Empty(t, c.readable())
		c.label = ""
		a.restart()
		a.round()
		c.hasAll(1)
		require.Zero(t, a.count("backlog"))
		require.Zero(t, a.count("failures"))
		a.noneStaged()
	}
}

// foreign is what another replica has.
type foreign struct {
	series []store.ForeignSeries
	n      int
}

func (f *foreign) Next() bool              { f.n++; return f.n <= len(f.series) }
func (f *foreign) At() store.ForeignSeries { return f.series[f.n-1] }
func (f *foreign) Err() error              { return nil }

// heal imports what is missing, as package heal does.
func (r *replica) heal(gap store.Interval) {
	r.t.Helper()
	f := &foreign{}
	for i := range testSeries {
		c := chunkenc.NewXORChunk()
		app, err := c.Appender()
		require.NoError(r.t, err)
		m := chunks.Meta{Chunk: c, MinTime: math.MaxInt64}
		for _, at := range r.samples(20) {
			if gap.Contains(at) {
				app.Append(at, value(i, at))
				m.MinTime, m.MaxTime = min(m.MinTime, at), at
			}
		}
		f.series = append(f.series, store.ForeignSeries{Labels: testLabels(i), Chunks: []chunks.Meta{m}})
	}
	got, err := r.store.Import(context.Background(), gap, f, store.ImportOptions{})
	require.NoError(r.t, err)
	require.NotZero(r.t, got.Samples)
}

func TestHealedAndLateSamplesAreInTheBlock(t *testing.T) {
	c := newTestCluster(t, "a")
	a := c.replica("a")
	gap := store.Interval{From: c.begin + time.Hour.Milliseconds(), To: c.begin + time.Hour.Milliseconds() + 4*testEvery.Milliseconds()}
	// What comes late is still in the out-of-order head when the window is finished.
	end := c.begin + testWindow.Milliseconds()
	late := store.Interval{From: end - 3*testEvery.Milliseconds(), To: end}
	a.scrape(1, gap, late)
	a.heal(gap)
	for _, at := range c.samples(1) {
		if late.Contains(at) {
			a.append(at)
		}
	}
	a.round()
	c.hasAll(1)
	require.True(t, c.blocks()[0].whole)
}

func TestABlockOfSeveralWindowsIsCut(t *testing.T) {
	c := newTestCluster(t, "a")
	c.raw, c.keep = time.Minute, time.Minute // So nothing is held yet.
	a := c.replica("a", func(o *store.Options) { o.MaxBlockDuration = 9 * testWindow })
	const n = 6
	a.scrape(n)
	require.Eventually(t, func() bool {
		metas, err := a.store.BlockMetas()
		return err == nil && slices.ContainsFunc(metas, func(m tsdb.BlockMeta) bool { return m.Compaction.Level > 1 })
	}, testPatience, 10*time.Millisecond)
	// Two deleted intervals in one window: upstream cannot cut such a series.
	window := c.begin + 2*testWindow.Milliseconds()
	var gone []store.Interval
	for _, k := range []int64{3, 9, 15} {
		i := store.Interval{From: window + k*testEvery.Milliseconds() - 1, To: window + (k+2)*testEvery.Milliseconds()}
		require.NoError(t, a.store.Delete(context.Background(), i.From, i.To-1, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+")))
		gone = append(gone, i)
	}
	c.raw, c.keep = 0, 0
	a.restart()
	a.round()
	c.hasAll(n, gone...)
}

// A window in the middle of a block has no sample, until it is healed.
func TestAnEmptyWindowThatIsHealedIsUploaded(t *testing.T) {
	c := newTestCluster(t, "a")
	c.raw, c.keep = time.Minute, time.Minute // So nothing is held yet.
	a := c.replica("a", func(o *store.Options) { o.MaxBlockDuration = 9 * testWindow })
	const n = 6
	// In the middle of the first three windows that are compacted into one block, for which there has to be a later one.
	w := testWindow.Milliseconds()
	begin := floor(c.begin+3*w-1, 3*w) + w
	gap := store.Interval{From: begin - 1, To: begin + testWindow.Milliseconds() - 1}
	a.scrape(n, gap)
	require.Eventually(t, func() bool {
		metas, err := a.store.BlockMetas()
		return err == nil && slices.ContainsFunc(metas, func(m tsdb.BlockMeta) bool { return m.MinTime <= begin && m.MaxTime >= gap.To })
	}, testPatience, 10*time.Millisecond)
	c.raw, c.keep = 0, 0
	a.restart()
	// The store may still compact, and take a block away that is about to be uploaded. That is tried again.
	for tries := 0; tries < 20 && (len(c.blocks()) < n-1 || a.count("backlog") > 0); tries++ {
		a.round()
		c.clock.advance(2 * time.Second)
	}
	require.Len(t, c.blocks(), n-1)
	require.True(t, a.bucket.uploader.needless(begin))
	require.Zero(t, a.count("backlog"))

	a.heal(gap)
	a.round()
	a.round()
	c.hasAll(n)
}

func TestABrokenBlockIsUploadedAgain(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	all := inOrder(c.begin, c.replica("a"), c.replica("b"))
	a, b := all[0], all[1]
	a.scrape(1)
	b.scrape(1)
	a.round()
	broken := c.blocks()[0].meta.ULID
	index := filepath.Join(c.dir, broken.String(), block.IndexFilename)
	was, err := os.ReadFile(index)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(index, int64(len(was)/2)))

	b.round()
	require.EqualValues(t, 1, b.count("broken"))
	require.Contains(t, b.logs.String(), broken.String())
	require.False(t, b.bucket.Covered(c.begin, c.begin+1))
	b.round()
	require.Len(t, c.readable(), 1, "it did not wait for its turn")
	c.clock.advance(testStep + time.Minute)
	b.round()
	require.True(t, b.bucket.Covered(c.begin, c.begin+1))
	require.Len(t, c.readable(), 2)
	require.EqualValues(t, 1, b.count("broken"), "it is counted once")
	require.NoError(t, os.RemoveAll(filepath.Join(c.dir, broken.String())))
	c.hasAll(1)
	require.Equal(t, b.name, c.blocks()[0].meta.Thanos.Labels["replica"])
}

func TestTheBacklogDrainsOldestFirst(t *testing.T) {
	c := newTestCluster(t, "a")
	a := c.replica("a")
	const n = 7
	a.scrape(n)
	var (
		mtx    sync.Mutex
		down   = true
		begun  []int64
		during int
		most   int
	)
	gone := errors.New("connection refused")
	a.inject(func(b objstore.Bucket) objstore.Bucket {
		return &away{Bucket: b, down: func() error {
			mtx.Lock()
			defer mtx.Unlock()
			if down {
				return gone
			}
			return nil
		}, upload: func(name string) func() {
			id, err := ulid.ParseStrict(strings.SplitN(name, "/", 2)[0])
			require.NoError(t, err)
			begin, _, ok := nameWindow(id, testWindow)
			require.True(t, ok)
			mtx.Lock()
			defer mtx.Unlock()
			if !slices.Contains(begun, begin) {
				begun = append(begun, begin)
			}
			during++
			most = max(most, during)
			return func() {
				mtx.Lock()
				defer mtx.Unlock()
				during--
			}
		}}
	})
	for range 3 {
		require.ErrorIs(t, a.bucket.uploader.round(context.Background()), gone)
		c.clock.advance(testWindow)
	}
	// Nobody waits: local data answer, and samples are taken.
	a.append(c.samples(n)[len(c.samples(n))-1] + testEvery.Milliseconds())
	mtx.Lock()
	down = false
	mtx.Unlock()
	a.round()
	c.hasAll(n)
	require.Len(t, begun, n)
	for i, begin := range begun {
		place := int((begin - c.begin) / testWindow.Milliseconds())
		require.InDelta(t, i, place, uploadsAtOnce-1, "%v", begun)
	}
	require.LessOrEqual(t, most, uploadsAtOnce)
	require.EqualValues(t, n, a.count("uploads"))
	require.NotZero(t, a.count("bytes"))
	require.Zero(t, a.count("backlog"))
}

// away is a bucket that can be.
type away struct {
	objstore.Bucket
	down   func() error
	upload func(name string) (ended func())
}

func (b *away) Iter(ctx context.Context, dir string, f func(string) error, o ...objstore.IterOption) error {
	if err := b.down(); err != nil {
		return err
	}
	return b.Bucket.Iter(ctx, dir, f, o...)
}

func (b *away) Upload(ctx context.Context, name string, r io.Reader, opts ...objstore.ObjectUploadOption) error {
	if err := b.down(); err != nil {
		return err
	}
	defer b.upload(name)()
	return b.Bucket.Upload(ctx, name, r, opts...)
}

func TestAnUploadThatFailsIsTriedAgain(t *testing.T) {
	c := newTestCluster(t, "a")
	a := c.replica("a")
	a.scrape(1)
	fail := true
	var sent []string
	a.inject(func(b objstore.Bucket) objstore.Bucket {
		return &flaky{Bucket: b, before: func(op, name string) (bool, error) {
			if op == "upload" {
				sent = append(sent, strings.SplitN(name, "/", 2)[1])
			}
			if fail && strings.HasSuffix(name, block.IndexFilename) {
				return true, errors.New("503")
			}
			return false, nil
		}}
	})
	a.round()
	st := a.bucket.uploader.status()
	require.Equal(t, uploadFailed, st.Windows[0].State)
	require.Contains(t, st.Windows[0].Problem, "503")
	require.Equal(t, 1, st.Backlog)
	require.EqualValues(t, 1, a.count("failures"))
	a.round()
	require.EqualValues(t, 1, a.count("failures"), "it did not wait")
	fail, sent = false, nil
	c.clock.advance(uploadRetryMax)
	a.round()
	require.Equal(t, []string{"index", "meta.json"}, sent, "what was sent is not sent again")
	c.hasAll(1)
	a.noneStaged()
}

// An upload that hangs ends, and is tried again.
func TestAnUploadThatHangsIsGivenUp(t *testing.T) {
	c := newTestCluster(t, "a")
	a := c.replica("a")
	a.scrape(1)
	a.bucket.uploader.stall = 100 * time.Millisecond
	a.inject(func(b objstore.Bucket) objstore.Bucket { return hanging{b} })
	a.round()
	require.Contains(t, a.bucket.uploader.status().Windows[0].Problem, errStalled.Error())
	require.Empty(t, c.readable())
}

type hanging struct{ objstore.Bucket }

func (hanging) Upload(ctx context.Context, _ string, _ io.Reader, _ ...objstore.ObjectUploadOption) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestOldWindowsAreNotUploaded(t *testing.T) {
	c := newTestCluster(t, "a")
	end := time.UnixMilli(c.begin).Add(2 * testWindow)
	c.raw, c.keep = time.Since(end), time.Since(end)
	a := c.replica("a")
	a.scrape(3)
	a.round()
	blocks := c.blocks()
	require.Len(t, blocks, 1)
	require.Equal(t, end.UnixMilli(), blocks[0].begin)
	require.True(t, a.bucket.Settled(c.begin, end.UnixMilli()))
	require.True(t, a.bucket.Settled(c.begin, end.Add(testWindow).UnixMilli()))
	require.False(t, a.bucket.Settled(c.begin, end.Add(testWindow).UnixMilli()+1))
}

// The bucket was away for longer than it keeps raw blocks.
func TestOldWindowsAreUploadedWhereTheyAreKeptDownsampled(t *testing.T) {
	c := newTestCluster(t, "a")
	end := c.begin + testWindow.Milliseconds()
	c.raw = testWindow
	a := c.replica("a")
	a.scrape(2)
	require.False(t, a.bucket.Settled(c.begin, end))
	a.round()
	c.hasAll(2)
	require.EqualValues(t, 2, a.count("uploads"))
	require.True(t, a.bucket.Settled(c.begin, end))

	// In the end there is only what was made of it.
	dir := filepath.Join(c.dir, c.blocks()[0].meta.ULID.String())
	meta, err := metadata.ReadFromDir(dir)
	require.NoError(t, err)
	meta.Thanos.Downsample.Resolution = downsample.ResLevel1
	require.NoError(t, meta.WriteToDir(kitLogger{slog.New(slog.DiscardHandler)}, dir))
	require.NoError(t, os.RemoveAll(filepath.Join(a.dir, "bucket", "meta")))
	a.restart()
	require.False(t, a.bucket.Settled(c.begin, end))
	for range 2 {
		a.round()
		require.Zero(t, a.count("uploads"))
		require.Zero(t, a.count("backlog"))
		require.True(t, a.bucket.Settled(c.begin, end))
	}
}

// A replica that starts while the bucket is away keeps what it has.
func TestNothingIsSettledBeforeTheBucketIsKnown(t *testing.T) {
	c := newTestCluster(t, "a")
	a := c.replica("a")
	a.scrape(1)
	a.round()
	end := c.begin + testWindow.Milliseconds()
	require.True(t, a.bucket.Settled(c.begin, end))
	a.restart()
	require.False(t, a.bucket.Settled(c.begin, end))
	a.load()
	require.True(t, a.bucket.Settled(c.begin, end))
}

func TestLocalCompactionWaitsForTheUpload(t *testing.T) {
	c := newTestCluster(t, "a")
	a := c.replica("a", func(o *store.Options) { o.MaxBlockDuration = 9 * testWindow })
	const n = 6
	a.scrape(n)
	compacted := func() bool {
		metas, err := a.store.BlockMetas()
		require.NoError(t, err)
		return slices.ContainsFunc(metas, func(m tsdb.BlockMeta) bool { return m.Compaction.Level > 1 })
	}
	// The next one waits for what is under way.
	require.NoError(t, a.store.WriteOutOfOrder(context.Background(), math.MaxInt64))
	require.False(t, compacted())
	a.round()
	require.Eventually(t, compacted, testPatience, 10*time.Millisecond)
	require.False(t, func() bool { a.round(); return a.count("uploads") != n }())
	c.hasAll(n)
}

func TestItRunsAndEnds(t *testing.T) {
	c := newTestCluster(t, "a")
	a := c.replica("a")
	a.scrape(2)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.bucket.Run(ctx) }()
	require.Eventually(t, func() bool { return a.bucket.Covered(c.begin, c.begin+2*testWindow.Milliseconds()) }, testPatience, 10*time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	c.hasAll(2)
}

func TestBlocksNeedLabels(t *testing.T) {
	_, err := New(Options{
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Dir: t.TempDir(), Replica: "a",
		Config: &config.Config{Bucket: &config.Bucket{}}, Store: &store.Store{}, Window: testWindow,
		External: labels.EmptyLabels,
	})
	require.ErrorContains(t, err, "external labels")
}
