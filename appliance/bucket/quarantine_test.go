package bucket

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/block/metadata"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/store"
)

// breakIndex cuts the end off the index of a block in the bucket. Its meta.json agrees with that, so that only who reads it notices.
func (c *cluster) breakIndex(id ulid.ULID) {
	c.t.Helper()
	dir := filepath.Join(c.dir, id.String())
	name := filepath.Join(dir, block.IndexFilename)
	info, err := os.Stat(name)
	require.NoError(c.t, err)
	require.NoError(c.t, os.Truncate(name, info.Size()/2))
	meta, err := metadata.ReadFromDir(dir)
	require.NoError(c.t, err)
	for i, f := range meta.Thanos.Files {
		if f.RelPath == block.IndexFilename {
			meta.Thanos.Files[i].SizeBytes = info.Size() / 2
		}
	}
	require.NoError(c.t, meta.WriteToDir(kitLogger{discard}, dir))
}

// later brings a replica's turn for windows that have to be uploaded again, and lets it have it.
func (r *replica) later() {
	r.t.Helper()
	r.round()
	r.clock.advance(testWindow)
	r.round()
}

func TestAWindowInQuarantineIsUploadedAnew(t *testing.T) {
	c := newTestCluster(t, "a")
	r := c.replica("a")
	r.scrape(3)
	r.round()
	before := c.blocks()
	require.Len(t, before, 3)
	broken, begin := before[1].meta.ULID, before[1].begin
	c.breakIndex(broken)
	r.later()
	require.EqualValues(t, 3, r.count("uploads"), "it was uploaded anew before anybody knew that it is broken")

	r.bucket.compactor.quarantine(t.Context(), broken, errors.New("its index is wrong"))
	require.False(t, r.bucket.Covered(begin, begin+1))
	require.True(t, r.bucket.Covered(before[0].begin, before[0].begin+testWindow.Milliseconds()))
	r.later()
	require.EqualValues(t, 4, r.count("uploads"))
	require.Zero(t, r.count("failures"))
	require.True(t, r.bucket.Covered(c.begin, c.begin+3*testWindow.Milliseconds()))
	st := r.bucket.uploader.status()
	require.Zero(t, st.Backlog)
	require.NotEqual(t, broken.String(), st.Windows[1].Block)
	// Once is enough.
	r.later()
	require.EqualValues(t, 4, r.count("uploads"))

	// The broken one stays where it is, and it is the new one that is read.
	require.DirExists(t, filepath.Join(c.dir, broken.String()))
	end := c.begin + 3*testWindow.Milliseconds()
	want, _ := found(t, r.store.Local(), c.begin, end-1)
	got, warnings := found(t, r.bucket.At(0), c.begin, end-1)
	require.Empty(t, warnings)
	require.Equal(t, want, got)
	require.Empty(t, r.bucket.reader.reads.skipped())
}

// TestWhatReplacesAQuarantinedBlockIsRead holds that a compacted block in quarantine hides none of the windows that were uploaded anew.
func TestWhatReplacesAQuarantinedBlockIsRead(t *testing.T) {
	w := newCompactBench(t)
	b := w.replica("a", config.BucketRetention{})
	base := compactBase()
	name := func(at int64) ulid.ULID {
		id, err := windowName(time.Now(), at, true)
		require.NoError(t, err)
		return id
	}
	old, again, compacted := name(base), name(base), ulid.MustNewDefault(time.Now())
	read := func() (left []ulid.ULID) {
		metas := map[ulid.ULID]*metadata.Meta{}
		for id, sources := range map[ulid.ULID][]ulid.ULID{again: {again}, compacted: {old, name(base + compactWindow.Milliseconds())}} {
			m := &metadata.Meta{BlockMeta: tsdb.BlockMeta{ULID: id, MinTime: base, MaxTime: base + 1, Compaction: tsdb.BlockMetaCompaction{Sources: sources}}}
			m.Thanos.Labels = map[string]string{"cluster": "test"}
			metas[id] = m
		}
		require.NoError(t, readable{b.reader}.Filter(t.Context(), metas, nil, nil))
		return slices.SortedFunc(maps.Keys(metas), ulid.ULID.Compare)
	}
	require.Equal(t, []ulid.ULID{compacted}, read())
	b.compactor.quarantine(t.Context(), compacted, errors.New("its index is wrong"))
	require.ElementsMatch(t, []ulid.ULID{again, compacted}, read())
}

// TestTheMarkOfAnotherReplicaCounts has a replica that knows only from the bucket that a block is broken, and that alone has the data.
func TestTheMarkOfAnotherReplicaCounts(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.replica("a"), c.replica("b")
	a.scrape(2)
	b.scrape(2)
	for range 2 {
		a.later()
		b.later()
	}
	before := c.blocks()
	require.Len(t, before, 2)
	broken, begin := before[0].meta.ULID, before[0].begin
	c.breakIndex(broken)
	// What is young compaction does not look at.
	dir := filepath.Join(c.dir, broken.String())
	meta, err := metadata.ReadFromDir(dir)
	require.NoError(t, err)
	meta.Thanos.UploadTime = time.Now().Add(-time.Hour)
	require.NoError(t, meta.WriteToDir(kitLogger{discard}, dir))
	// It has read that meta.json.
	require.NoError(t, os.RemoveAll(filepath.Join(b.bucket.o.Dir, "meta")))
	b.restart()
	b.later()
	uploads := b.count("uploads")
	a.bucket.compactor.quarantine(t.Context(), broken, errors.New("its index is wrong"))
	require.True(t, b.bucket.Covered(begin, begin+1))
	require.NoError(t, b.bucket.compactor.sync(t.Context()))
	_, err = b.bucket.catalogue.look(t.Context())
	require.NoError(t, err)
	require.False(t, b.bucket.Covered(begin, begin+1))
	b.later()
	require.Equal(t, uploads+1, b.count("uploads"))
	require.True(t, b.bucket.Covered(begin, begin+1))
	// The other one sees that, and does nothing.
	was := a.count("uploads")
	a.later()
	require.Equal(t, was, a.count("uploads"))
}

// TestBrokenLocalDataAreNotUploadedAgainAndAgain has data that break each block that is made of them.
func TestBrokenLocalDataAreNotUploadedAgainAndAgain(t *testing.T) {
	c := newTestCluster(t, "a")
	r := c.replica("a")
	r.scrape(1)
	r.round()
	broken := c.blocks()[0].meta.ULID
	blocks, err := r.store.Blocks()
	require.NoError(t, err)
	for _, b := range blocks {
		if b.Meta.MinTime >= c.begin+testWindow.Milliseconds() {
			continue
		}
		segment := filepath.Join(b.Dir, block.ChunksDirname, "000001")
		text, err := os.ReadFile(segment)
		require.NoError(t, err)
		text[len(text)/2] ^= 0xff
		require.NoError(t, os.Remove(segment)) // What is in the bucket may be the same file.
		require.NoError(t, os.WriteFile(segment, text, 0o600))
	}
	r.bucket.compactor.quarantine(t.Context(), broken, errors.New("a chunk is wrong"))
	for range 3 {
		r.later()
	}
	require.EqualValues(t, 1, r.count("uploads"))
	require.NotZero(t, r.count("failures"))
	require.Contains(t, r.bucket.uploader.status().Windows[0].Problem, "the local data are, too")
}

// TestStatusTellsAll looks at what the API says of a bucket in which a window is broken, one is missing, and one is not whole.
func TestStatusTellsAll(t *testing.T) {
	c := newTestCluster(t, "a")
	r := c.replica("a")
	length := testWindow.Milliseconds()
	st := r.bucket.Status() // Before any look.
	require.Empty(t, st.Quarantine)
	require.Zero(t, st.Blocks)

	r.gaps.set(store.Interval{From: c.begin + 3*length + 1, To: c.begin + 3*length + 1000})
	r.scrape(5)
	r.round()
	r.clock.advance(3 * testWindow) // For the one that is not whole.
	r.round()
	all := c.blocks()
	require.Len(t, all, 5)
	require.False(t, all[3].whole)
	require.NoError(t, os.RemoveAll(filepath.Join(c.dir, all[1].meta.ULID.String())))
	partial, err := windowName(time.Now(), c.begin, true)
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(c.dir, partial.String()), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(c.dir, partial.String(), "index"), []byte("half"), 0o600))
	broken := all[2].meta.ULID
	r.bucket.compactor.quarantine(t.Context(), broken, errors.New("its index is wrong"))
	left := all[0].meta.ULID
	r.bucket.reader.reads.skip(left, errors.New("it could not be read"))
	r.load()
	j := r.bucket.compactor.begin("compact/group", "compacting", nil)
	j.total = 10
	j.series.Add(4)
	r.bucket.uploader.say(r.bucket.uploader.window(c.begin+2*length, r.clock.now()), uploading, func(s *windowStatus) {
		s.By, s.Block, s.Total = "a", "some", 100
	})
	r.bucket.uploader.windows[c.begin+2*length].bytes.Store(40)

	w := httptest.NewRecorder()
	r.bucket.Handler().ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), "GET", "/api/tocsin/v1/bucket", nil))
	require.Equal(t, 200, w.Code)
	var got struct {
		Blocks     int            `json:"blocks"`
		States     map[string]int `json:"blocks_by_state"`
		PerSample  float64        `json:"bytes_per_sample"`
		Bytes      float64        `json:"bytes"`
		Samples    float64        `json:"samples"`
		Coverage   Coverage       `json:"coverage"`
		Quarantine []struct{ Block, Reason string }
		LeftOut    []struct{ Block, Reason string } `json:"left_out"`
		Upload     struct {
			Backlog int
			Running []struct {
				Begin int64
				Done  int64 `json:"done_bytes"`
				Total int64 `json:"total_bytes"`
			}
		}
		Compaction struct {
			Running struct {
				Work, Phase string
				Series      int
				SeriesMax   int `json:"series_max"`
			}
		}
		Windows []struct {
			Begin     int64
			Whole     bool
			By, Block string
		}
		List []struct{ ID, State, Problem string } `json:"block_list"`
	}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &got))
	require.Equal(t, 4, got.Blocks)
	require.Equal(t, map[string]int{"ok": 3, "quarantined": 1, "partial": 1}, got.States)
	require.InDelta(t, got.Bytes/got.Samples, got.PerSample, 1e-9)
	require.NotZero(t, got.PerSample)
	// The broken window is as good as missing.
	require.Equal(t, Coverage{
		From: c.begin, To: c.begin + 5*length, Whole: 2, NotWhole: 1, Missing: 2,
		Gaps: []Gap{{c.begin + length, c.begin + 3*length, 2}},
	}, got.Coverage)
	require.Equal(t, []struct{ Block, Reason string }{{broken.String(), "its index is wrong"}}, got.Quarantine)
	require.Equal(t, []struct{ Block, Reason string }{{left.String(), "it could not be read"}}, got.LeftOut)
	require.Len(t, got.Upload.Running, 1)
	require.EqualValues(t, 40, got.Upload.Running[0].Done)
	require.EqualValues(t, 100, got.Upload.Running[0].Total)
	require.Equal(t, "compacting", got.Compaction.Running.Phase)
	require.Equal(t, 4, got.Compaction.Running.Series)
	require.Equal(t, 10, got.Compaction.Running.SeriesMax)
	require.Len(t, got.Windows, 3)
	for i, n := range []int{0, 3, 4} {
		require.Equal(t, all[n].begin, got.Windows[i].Begin)
		require.Equal(t, all[n].whole, got.Windows[i].Whole)
		require.Equal(t, "a", got.Windows[i].By)
		require.Equal(t, all[n].meta.ULID.String(), got.Windows[i].Block)
	}
	require.Len(t, got.List, 5)
	require.Equal(t, partial.String(), got.List[0].ID)
	require.Equal(t, "partial", got.List[0].State)
	require.Equal(t, broken.String(), got.List[2].ID)
	require.Equal(t, "quarantined", got.List[2].State)
}
