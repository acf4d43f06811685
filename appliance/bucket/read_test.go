package bucket

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/thanos/pkg/block"
)

// found is what a queryable has within [mint, maxt], by series and time.
func found(t *testing.T, from storage.Queryable, mint, maxt int64) (map[string]map[int64]float64, []error) {
	t.Helper()
	q, err := from.Querier(mint, maxt)
	require.NoError(t, err)
	defer func() { require.NoError(t, q.Close()) }()
	all := map[string]map[int64]float64{}
	set := q.Select(context.Background(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	for set.Next() {
		in := map[int64]float64{}
		it := set.At().Iterator(nil)
		for it.Next() == chunkenc.ValFloat {
			at, v := it.At()
			in[at] = v
		}
		require.NoError(t, it.Err())
		require.NotContains(t, all, set.At().Labels().String())
		all[set.At().Labels().String()] = in
	}
	require.NoError(t, set.Err())
	return all, set.Warnings().AsErrors()
}

// inBucket has n windows of series with labels like those of blocks in the bucket.
func inBucket(t *testing.T, n int) (c *cluster, r *replica, end int64) {
	t.Helper()
	c = newTestCluster(t, "a", "b")
	_, r, end = c.inBucket(n)
	return c, r, end
}

// inBucket is the same, of all the cluster's replicas.
func (c *cluster) inBucket(n int) (all []*replica, first *replica, end int64) {
	t := c.t
	t.Helper()
	for _, name := range c.names {
		all = append(all, c.replica(name))
	}
	for _, x := range all {
		// Each store has its own: it replaces the strings.
		own := labels.FromStrings("__name__", "test_zones", "cluster", "mine", "replica", "2", "zone", "eu")
		for _, at := range c.samples(n) {
			x.append(at)
			app := x.store.Appender(context.Background())
			_, err := app.Append(0, own, at, float64(at%1000))
			require.NoError(t, err)
			require.NoError(t, app.Commit())
		}
		x.scrapeNothing(n)
	}
	for range 2 {
		for _, x := range all {
			x.round()
		}
	}
	require.Len(t, c.readable(), n)
	return all, all[0], c.begin + int64(n)*testWindow.Milliseconds()
}

// scrapeNothing waits until n windows are in blocks.
func (r *replica) scrapeNothing(n int) {
	r.t.Helper()
	end := r.begin + int64(n)*testWindow.Milliseconds()
	require.Eventually(r.t, func() bool {
		written, err := r.store.Written()
		return err == nil && written >= end
	}, testPatience, 10*time.Millisecond)
}

func TestWhatIsReadIsWhatWasWritten(t *testing.T) {
	c, r, end := inBucket(t, 3)
	r.load()
	want, _ := found(t, r.store.Local(), c.begin, end-1)
	got, warnings := found(t, r.bucket.At(0), c.begin, end-1)
	require.Empty(t, warnings)
	require.Len(t, want, testSeries+1)
	// Also after the head has been truncated, when it does not know any more what came out of order.
	oldest, err := r.store.Oldest()
	require.NoError(t, err)
	require.Equal(t, c.begin, oldest)
	require.Equal(t, want, got)
	until, err := r.bucket.Until()
	require.NoError(t, err)
	require.Equal(t, end, until)
	// Bounds are exact.
	middle := c.samples(3)[20]
	want, _ = found(t, r.store.Local(), middle, middle+2*testEvery.Milliseconds())
	got, _ = found(t, r.bucket.At(0), middle, middle+2*testEvery.Milliseconds())
	require.Equal(t, want, got)
	q, err := r.bucket.At(0).Querier(c.begin, end)
	require.NoError(t, err)
	names, _, err := q.LabelNames(context.Background(), nil)
	require.NoError(t, err)
	require.Equal(t, []string{"__name__", "cluster", "instance", "replica", "zone"}, names)
	values, _, err := q.LabelValues(context.Background(), "replica", nil)
	require.NoError(t, err)
	require.Equal(t, []string{"2"}, values)
	require.NoError(t, q.Close())
}

// load makes the replica read what is in the bucket now.
func (r *replica) load() {
	r.t.Helper()
	v, err := r.bucket.catalogue.look(context.Background())
	require.NoError(r.t, err)
	require.NoError(r.t, r.bucket.reader.load(context.Background(), v))
}

// TestUntilTheFirstHole holds that a window that is not there yet is left to the replicas, and what is after it, too.
func TestUntilTheFirstHole(t *testing.T) {
	c, r, end := inBucket(t, 3)
	r.load()
	until, err := r.bucket.Until()
	require.NoError(t, err)
	require.Equal(t, end, until)
	middle := c.begin + testWindow.Milliseconds()
	for _, name := range c.readable() {
		if begin, _, _ := nameWindow(mustParse(t, name), testWindow); begin == middle {
			require.NoError(t, os.RemoveAll(filepath.Join(c.dir, name)))
		}
	}
	r.load()
	until, err = r.bucket.Until()
	require.NoError(t, err)
	require.Equal(t, middle, until)
}

// TestGarbageInTheBucket holds that what is broken costs its own time alone, and is said.
func TestGarbageInTheBucket(t *testing.T) {
	c, r, end := inBucket(t, 3)
	require.NoError(t, os.MkdirAll(filepath.Join(c.dir, "01ARZ3NDEKTSV4RRFFQ69G5FAV"), 0o700))
	for name, content := range map[string]string{
		"01ARZ3NDEKTSV4RRFFQ69G5FAV/meta.json": "{}", "01ARZ3NDEKTSV4RRFFQ69G5FBV/meta.json": `{"version":9}`,
		"01ARZ3NDEKTSV4RRFFQ69G5FCV/meta.json": "no json", "01ARZ3NDEKTSV4RRFFQ69G5FDV/index": "no index", "garbage/object": "x", "x": "y",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(c.dir, name)), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(c.dir, name), []byte(content), 0o600))
	}
	r.load()
	want, _ := found(t, r.store.Local(), c.begin, end-1)
	got, warnings := found(t, r.bucket.At(0), c.begin, end-1)
	require.Empty(t, warnings)
	require.Equal(t, want, got)

	// A block of which the chunks are cut off.
	broken := c.readable()[0]
	start, _, _ := nameWindow(mustParse(t, broken), testWindow)
	chunks := filepath.Join(c.dir, broken, block.ChunksDirname, "000001")
	require.NoError(t, os.Truncate(chunks, 100))
	got, warnings = found(t, r.bucket.At(0), c.begin, end-1)
	require.NotEmpty(t, warnings)
	rest := 0
	for name, samples := range got {
		for at, v := range samples {
			require.Equal(t, want[name][at], v)
			if at < start || start+testWindow.Milliseconds() <= at {
				rest++
			}
		}
	}
	require.Equal(t, 2*len(want)*int(testWindow/testEvery), rest)
}

func mustParse(t *testing.T, name string) ulid.ULID {
	t.Helper()
	id, err := ulid.Parse(name)
	require.NoError(t, err)
	return id
}

// silent is a bucket that answers nothing while it is down.
type silent struct {
	objstore.Bucket
	down  atomic.Bool
	calls atomic.Int64
}

var errSilent = errors.New("connection refused")

func (s *silent) ask() error {
	s.calls.Add(1)
	if s.down.Load() {
		return errSilent
	}
	return nil
}

func (s *silent) GetRange(ctx context.Context, name string, off, length int64) (io.ReadCloser, error) {
	if err := s.ask(); err != nil {
		return nil, err
	}
	return s.Bucket.GetRange(ctx, name, off, length)
}

func (s *silent) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := s.ask(); err != nil {
		return nil, err
	}
	return s.Bucket.Get(ctx, name)
}

func (s *silent) Exists(ctx context.Context, name string) (bool, error) {
	if err := s.ask(); err != nil {
		return false, err
	}
	return s.Bucket.Exists(ctx, name)
}

func (s *silent) Attributes(ctx context.Context, name string) (objstore.ObjectAttributes, error) {
	if err := s.ask(); err != nil {
		return objstore.ObjectAttributes{}, err
	}
	return s.Bucket.Attributes(ctx, name)
}

// TestABucketThatIsAwayIsNoBrokenBlock holds that queries find out once, are told at once, and leave no block out when it is back.
func TestABucketThatIsAwayIsNoBrokenBlock(t *testing.T) {
	c, r, end := inBucket(t, 3)
	bkt := &silent{}
	r.inject(func(b objstore.Bucket) objstore.Bucket {
		bkt.Bucket = b
		return bkt
	})
	r.load()
	reads := r.bucket.reader.reads
	bkt.down.Store(true)
	fails := func() error {
		q, err := r.bucket.At(0).Querier(c.begin, end-1)
		require.NoError(t, err)
		defer func() { require.NoError(t, q.Close()) }()
		set := q.Select(context.Background(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
		require.False(t, set.Next())
		return set.Err()
	}
	require.ErrorContains(t, fails(), errSilent.Error())
	asked := bkt.calls.Load()
	require.ErrorContains(t, fails(), "the bucket was away")
	require.Equal(t, asked, bkt.calls.Load())
	require.Len(t, reads.toLoadAnew(), 3)

	bkt.down.Store(false)
	reads.mtx.Lock()
	reads.away = time.Time{} // As if the time were over.
	reads.mtx.Unlock()
	// A look-up says that it lacks them.
	q, err := r.bucket.At(0).Querier(c.begin, end-1)
	require.NoError(t, err)
	_, lacking, err := q.LabelValues(context.Background(), "__name__", nil)
	require.NoError(t, err)
	require.Len(t, lacking.AsErrors(), 3)
	require.NoError(t, q.Close())
	r.load()
	require.Empty(t, reads.toLoadAnew())
	require.Empty(t, reads.skipped())
	want, _ := found(t, r.store.Local(), c.begin, end-1)
	got, warnings := found(t, r.bucket.At(0), c.begin, end-1)
	require.Empty(t, warnings)
	require.Equal(t, want, got)
}
