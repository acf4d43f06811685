package bucket

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/thanos-io/objstore/providers/filesystem"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/block/metadata"
	"github.com/thanos-io/thanos/pkg/compact"
	"github.com/thanos-io/thanos/pkg/compact/downsample"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/store"
)

const (
	compactWindow = time.Minute
	compactStep   = 5000 // Milliseconds between samples.
	compactSeries = 3
)

// compactBase is the begin of a block of the largest level, so long ago that a window that is not whole is not waited for.
func compactBase() int64 {
	largest := 168 * compactWindow.Milliseconds()
	return time.Now().UnixMilli()/largest*largest - largest
}

// compactBench is a bucket in a directory.
type compactBench struct {
	t   *testing.T
	dir string
	bkt *filesystem.Bucket
}

func newCompactBench(t *testing.T) *compactBench {
	dir := t.TempDir()
	bkt, err := filesystem.NewBucket(dir)
	if err != nil {
		t.Fatal(err)
	}
	return &compactBench{t, dir, bkt}
}

func (w *compactBench) external(replica string) labels.Labels {
	return labels.FromStrings("cluster", "test", config.ReplicaLabel, replica, config.ZoneLabel, "zone-"+replica)
}

// replica is one that compacts the bucket; replicas are those that it knows of, nil for itself alone.
func (w *compactBench) replica(name string, retention config.BucketRetention, replicas ...string) *Bucket {
	w.t.Helper()
	logger, reg := slog.New(slog.NewTextHandler(w.t.Output(), nil)), prometheus.NewRegistry()
	own, err := store.New(store.Options{Dir: w.t.TempDir(), Logger: logger, Registerer: reg})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := own.Close(); err != nil {
			w.t.Error(err)
		}
	})
	o := Options{
		Logger:     logger,
		Registerer: reg,
		Dir:        w.t.TempDir(),
		Config: &config.Config{Bucket: &config.Bucket{
			Type:      "FILESYSTEM",
			Name:      w.dir,
			Objstore:  fmt.Appendf(nil, "type: FILESYSTEM\nconfig: {directory: %q}", w.dir),
			Retention: retention,
		}},
		Replica:  name,
		External: func() labels.Labels { return w.external(name) },
		Store:    own,
		Window:   compactWindow,
	}
	if replicas != nil {
		o.Replicas = func() []string { return replicas }
	}
	b, err := New(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := b.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return b
}

type compactSample struct {
	t int64
	v float64
}

// windowSamples are those of a healthy window: every five seconds, shifted by what tells the replicas apart.
func windowSamples(start, shift int64) []compactSample {
	return rangeSamples(start, start+compactWindow.Milliseconds(), shift)
}

func rangeSamples(from, to, shift int64) (all []compactSample) {
	for t := from + shift; t < to; t += compactStep {
		all = append(all, compactSample{t, float64(t%100_000) / 1000})
	}
	return all
}

// put uploads a block. Without sources it is its own.
func (w *compactBench) put(id ulid.ULID, external labels.Labels, mint, maxt int64, samples []compactSample, sources ...ulid.ULID) ulid.ULID {
	w.t.Helper()
	dir := w.t.TempDir()
	writer, err := tsdb.NewBlockWriter(slog.New(slog.DiscardHandler), dir, maxt-mint)
	if err != nil {
		w.t.Fatal(err)
	}
	app := writer.Appender(w.t.Context())
	for i := range compactSeries {
		for _, s := range samples {
			if _, err := app.Append(0, labels.FromStrings("__name__", "metric", "i", fmt.Sprint(i)), s.t, s.v+float64(i)); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	if err := app.Commit(); err != nil {
		w.t.Fatal(err)
	}
	written, err := writer.Flush(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, written.String()), filepath.Join(dir, id.String())); err != nil {
		w.t.Fatal(err)
	}
	w.upload(filepath.Join(dir, id.String()), id, external, mint, maxt, sources...)
	return id
}

func (w *compactBench) upload(dir string, id ulid.ULID, external labels.Labels, mint, maxt int64, sources ...ulid.ULID) {
	w.t.Helper()
	kit := kitLogger{slog.New(slog.DiscardHandler)}
	if _, err := metadata.InjectThanos(kit, dir, metadata.Thanos{Labels: external.Map(), Source: "tocsin"}, nil); err != nil {
		w.t.Fatal(err)
	}
	meta, err := metadata.ReadFromDir(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	meta.ULID, meta.MinTime, meta.MaxTime = id, mint, maxt
	if meta.Compaction.Sources = sources; len(sources) == 0 {
		meta.Compaction.Sources = []ulid.ULID{id}
	}
	if err := meta.WriteToDir(kit, dir); err != nil {
		w.t.Fatal(err)
	}
	if err := block.Upload(w.t.Context(), kit, w.bkt, dir, metadata.NoneFunc); err != nil {
		w.t.Fatal(err)
	}
	// Fresh blocks are left alone for a while.
	w.editMeta(id, func(m *metadata.Meta) { m.Thanos.UploadTime = time.Now().Add(-time.Hour) })
}

func (w *compactBench) editMeta(id ulid.ULID, edit func(*metadata.Meta)) {
	w.t.Helper()
	m := w.meta(id)
	edit(m)
	if err := m.WriteToDir(kitLogger{slog.New(slog.DiscardHandler)}, filepath.Join(w.dir, id.String())); err != nil {
		w.t.Fatal(err)
	}
}

func (w *compactBench) meta(id ulid.ULID) *metadata.Meta {
	w.t.Helper()
	m, err := metadata.ReadFromDir(filepath.Join(w.dir, id.String()))
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// window uploads a window of a replica.
func (w *compactBench) window(start int64, replica string, whole bool, samples []compactSample) ulid.ULID {
	w.t.Helper()
	id, err := windowName(time.Now(), start, whole)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.put(id, w.external(replica), start, start+compactWindow.Milliseconds(), samples)
}

// live are the blocks that are not marked for deletion, by their begin.
func (w *compactBench) live() (all []*metadata.Meta) {
	w.t.Helper()
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		id, err := ulid.Parse(e.Name())
		if err != nil || w.has(id, metadata.DeletionMarkFilename) || !w.has(id, block.MetaFilename) {
			continue
		}
		all = append(all, w.meta(id))
	}
	slices.SortFunc(all, func(a, b *metadata.Meta) int { return int(a.MinTime - b.MinTime) })
	return all
}

func (w *compactBench) has(id ulid.ULID, name string) bool {
	_, err := os.Stat(filepath.Join(w.dir, id.String(), name))
	return err == nil
}

// read reads all samples of a block, aggregates by their kind after the series.
func (w *compactBench) read(m *metadata.Meta, into map[string][]compactSample) {
	w.t.Helper()
	b, err := tsdb.OpenBlock(slog.New(slog.DiscardHandler), filepath.Join(w.dir, m.ULID.String()), downsample.NewPool(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	defer b.Close()
	indexr, err := b.Index()
	if err != nil {
		w.t.Fatal(err)
	}
	defer indexr.Close()
	chunkr, err := b.Chunks()
	if err != nil {
		w.t.Fatal(err)
	}
	defer chunkr.Close()
	name, value := index.AllPostingsKey()
	postings, err := indexr.Postings(w.t.Context(), name, value)
	if err != nil {
		w.t.Fatal(err)
	}
	var (
		builder labels.ScratchBuilder
		chks    []chunks.Meta
	)
	add := func(key string, c chunkenc.Chunk) {
		it := c.Iterator(nil)
		for it.Next() != chunkenc.ValNone {
			t, v := it.At()
			into[key] = append(into[key], compactSample{t, v})
		}
		if it.Err() != nil {
			w.t.Fatal(it.Err())
		}
	}
	for postings.Next() {
		if err := indexr.Series(postings.At(), &builder, &chks); err != nil {
			w.t.Fatal(err)
		}
		key := builder.Labels().String()
		for _, c := range chks {
			chk, _, err := chunkr.ChunkOrIterable(c)
			if err != nil {
				w.t.Fatal(err)
			}
			aggregates, ok := chk.(*downsample.AggrChunk)
			if !ok {
				add(key, chk)
				continue
			}
			for kind := downsample.AggrCount; kind < downsample.AggrCounter; kind++ {
				part, err := aggregates.Get(kind)
				if err != nil {
					w.t.Fatal(err)
				}
				add(key+kind.String(), part)
			}
		}
	}
}

// check compares what raw blocks have with what there should be in each series: nothing less, nothing more, nothing twice.
func (w *compactBench) check(want []compactSample, blocks ...*metadata.Meta) {
	w.t.Helper()
	got := map[string][]compactSample{}
	for _, m := range blocks {
		w.read(m, got)
	}
	if len(got) != compactSeries {
		w.t.Errorf("%d series, want %d", len(got), compactSeries)
	}
	for i := range compactSeries {
		key := labels.FromStrings("__name__", "metric", "i", fmt.Sprint(i)).String()
		have := got[key]
		slices.SortFunc(have, func(a, b compactSample) int { return int(a.t - b.t) })
		if len(have) != len(want) {
			w.t.Errorf("series %s: %d samples, want %d", key, len(have), len(want))
			continue
		}
		for n, s := range want {
			if have[n] != (compactSample{s.t, s.v + float64(i)}) {
				w.t.Errorf("series %s, sample %d: %v, want %v", key, n, have[n], s)
				break
			}
		}
	}
}

// hash is of all that is below the directory of a block.
func (w *compactBench) hash(id ulid.ULID) string {
	w.t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(filepath.Join(w.dir, id.String()), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n%s", path, len(data), data)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return string(h.Sum(nil))
}

// round must not fail.
func round(t *testing.T, b *Bucket) {
	t.Helper()
	if _, err := b.compactor.round(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// ranges shows blocks as windows since base.
func ranges(base int64, blocks []*metadata.Meta) string {
	var all []string
	for _, m := range blocks {
		all = append(all, fmt.Sprintf("%d-%d", (m.MinTime-base)/compactWindow.Milliseconds(), (m.MaxTime-base)/compactWindow.Milliseconds()))
	}
	return strings.Join(all, " ")
}

func TestCompactionKeepsEverySampleAndEveryWindow(t *testing.T) {
	w := newCompactBench(t)
	base := compactBase()
	var (
		want  []compactSample
		names []ulid.ULID
	)
	for i := range int64(10) {
		start := base + i*compactWindow.Milliseconds()
		shift := i % 3 * 700
		samples := windowSamples(start, shift)
		want = append(want, samples...)
		names = append(names, w.window(start, string(rune('a'+i%3)), true, samples))
	}
	b := w.replica("a", config.BucketRetention{})
	round(t, b)

	live := w.live()
	if got := ranges(base, live); got != "0-4 4-8 8-9 9-10" {
		t.Fatalf("the blocks are %s", got)
	}
	w.check(want, live...)
	var sources []ulid.ULID
	metas := map[ulid.ULID]*metadata.Meta{}
	for _, m := range live {
		sources = append(sources, m.Compaction.Sources...)
		metas[m.ULID] = m
	}
	slices.SortFunc(names, ulid.ULID.Compare)
	slices.SortFunc(sources, ulid.ULID.Compare)
	if !slices.Equal(names, sources) {
		t.Errorf("the sources are %v, want %v", sources, names)
	}
	windows, _ := covered(metas, nil, b.shared(), compactWindow)
	for i := range int64(10) {
		if !windows[base+i*compactWindow.Milliseconds()] {
			t.Errorf("window %d is not covered", i)
		}
	}
	first := live[0].Thanos
	if first.Source != metadata.CompactorSource || !maps.Equal(first.Labels, map[string]string{"cluster": "test"}) {
		t.Errorf("a result is not as Thanos's: source %s, labels %v", first.Source, first.Labels)
	}
	if n := testutil.ToFloat64(b.compactor.compactions); n != 2 {
		t.Errorf("%v compactions are counted, want 2", n)
	}
	s := b.compactor.status()
	if s.Running != nil || s.Last == nil || len(s.Last.Results) != 1 || len(s.MarkedForDeletion) != 8 || len(s.Groups) != 1 || s.Groups[0].Replica != "a" {
		t.Errorf("the status is %+v", s)
	}
	if idle, err := b.compactor.round(t.Context()); err != nil || !idle {
		t.Errorf("idle %v, %v: with nothing to do a round has to be idle", idle, err)
	}
}

func TestTwoThatBothBelieveToBeElectedDoNoHarm(t *testing.T) {
	w := newCompactBench(t)
	base := compactBase()
	var want []compactSample
	for i := range int64(5) {
		start := base + i*compactWindow.Milliseconds()
		samples := windowSamples(start, 0)
		want = append(want, samples...)
		w.window(start, "a", true, samples)
	}
	// Both have planned the same before either goes on.
	var planned, done sync.WaitGroup
	planned.Add(2)
	for _, name := range []string{"a", "b"} {
		b := w.replica(name, config.BucketRetention{})
		var once sync.Once
		b.compactor.free = func(need int64) error {
			once.Do(func() { planned.Done(); planned.Wait() })
			return b.o.Store.Room(need)
		}
		done.Go(func() {
			if _, err := b.compactor.round(t.Context()); err != nil {
				t.Errorf("replica %s: %v", name, err)
			}
			if n := testutil.ToFloat64(b.compactor.compactions); n != 1 {
				t.Errorf("replica %s made %v blocks, want one", name, n)
			}
		})
	}
	done.Wait()
	round(t, w.replica("a", config.BucketRetention{}))
	live := w.live()
	if got := ranges(base, live); got != "0-4 4-5" {
		t.Fatalf("the blocks are %s", got)
	}
	w.check(want, live...)
}

func TestOnlyTheElectedReplicaCompacts(t *testing.T) {
	w := newCompactBench(t)
	base := compactBase()
	for i := range int64(5) {
		start := base + i*compactWindow.Milliseconds()
		w.window(start, "a", true, windowSamples(start, 0))
	}
	names := []string{"a", "b", "c"}
	total := 0.0
	for _, name := range names {
		b := w.replica(name, config.BucketRetention{}, names...)
		round(t, b)
		n := testutil.ToFloat64(b.compactor.compactions)
		if elected := b.compactor.status().Groups[0].Replica == name; elected != (n == 1) {
			t.Errorf("replica %s: elected %v, and made %v blocks", name, elected, n)
		}
		total += n
	}
	if total != 1 {
		t.Errorf("%v compactions, want one", total)
	}
}

func TestBrokenBlockIsQuarantinedAndTheRestGoesOn(t *testing.T) {
	cut := func(w *compactBench, id ulid.ULID, name string) {
		path := filepath.Join(w.dir, id.String(), name)
		info, err := os.Stat(path)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := os.Truncate(path, info.Size()/2); err != nil {
			w.t.Fatal(err)
		}
	}
	overwrite := func(w *compactBench, id ulid.ULID, name string, change func([]byte)) {
		path := filepath.Join(w.dir, id.String(), name)
		data, err := os.ReadFile(path)
		if err != nil {
			w.t.Fatal(err)
		}
		change(data)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	remove := func(w *compactBench, id ulid.ULID, name string) {
		if err := os.Remove(filepath.Join(w.dir, id.String(), name)); err != nil {
			w.t.Fatal(err)
		}
	}
	noFiles := func(m *metadata.Meta) { m.Thanos.Files = nil }
	for _, tc := range []struct {
		name, reason string
		breakIt      func(w *compactBench, id ulid.ULID)
	}{
		{"garbage index", "index", func(w *compactBench, id ulid.ULID) {
			overwrite(w, id, "index", func(data []byte) {
				for i := range data {
					data[i] = byte(i * 7)
				}
			})
		}},
		{"truncated index", "index has", func(w *compactBench, id ulid.ULID) { cut(w, id, "index") }},
		{"missing index", "index is missing", func(w *compactBench, id ulid.ULID) { remove(w, id, "index") }},
		{"missing index, no files in meta.json", "index is missing", func(w *compactBench, id ulid.ULID) {
			w.editMeta(id, noFiles)
			remove(w, id, "index")
		}},
		{"truncated chunks", "chunks/000001 has", func(w *compactBench, id ulid.ULID) { cut(w, id, "chunks/000001") }},
		{"truncated chunks, no files in meta.json", "chunk", func(w *compactBench, id ulid.ULID) {
			w.editMeta(id, noFiles)
			cut(w, id, "chunks/000001")
		}},
		{"missing chunks", "chunks/000001 is missing", func(w *compactBench, id ulid.ULID) { remove(w, id, "chunks/000001") }},
		{"wrong checksum", "checksum", func(w *compactBench, id ulid.ULID) {
			overwrite(w, id, "chunks/000001", func(data []byte) { data[len(data)-10] ^= 0xff })
		}},
		{"samples outside of the block", "outside", func(w *compactBench, id ulid.ULID) {
			w.editMeta(id, func(m *metadata.Meta) { m.MaxTime -= 30_000 })
		}},
		{"out-of-order chunks", "out-of-order", func(w *compactBench, id ulid.ULID) {
			m := w.meta(id)
			if err := os.RemoveAll(filepath.Join(w.dir, id.String())); err != nil {
				w.t.Fatal(err)
			}
			w.outOfOrder(id, m.MinTime, m.MaxTime)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newCompactBench(t)
			base := compactBase()
			var (
				want   []compactSample
				broken ulid.ULID
			)
			for i := range int64(9) {
				start := base + i*compactWindow.Milliseconds()
				samples := windowSamples(start, 0)
				id := w.window(start, "a", true, samples)
				if i == 3 {
					broken = id
					tc.breakIt(w, id)
				} else {
					want = append(want, samples...)
				}
			}
			foreign := w.put(ulid.MustNewDefault(time.Now()), labels.FromStrings("cluster", "other"), base, base+60_000, windowSamples(base, 0))
			before := w.hash(foreign)
			b := w.replica("a", config.BucketRetention{})
			// In the first round it is found, in the second the rest is done.
			round(t, b)
			round(t, b)

			live := slices.DeleteFunc(w.live(), func(m *metadata.Meta) bool { return m.ULID == broken || m.ULID == foreign })
			if got := ranges(base, live); got != "0-3 4-8 8-9" {
				t.Errorf("the blocks are %s", got)
			}
			w.check(want, live...)
			if !w.has(broken, metadata.NoCompactMarkFilename) {
				t.Error("the broken block is not marked")
			}
			if n := testutil.CollectAndCount(b.o.Registerer.(*prometheus.Registry), "tocsin_bucket_quarantined_blocks"); n != 1 {
				t.Errorf("the metric is there %d times", n)
			}
			if n := len(b.compactor.quarantined()); n != 1 {
				t.Errorf("%d blocks are in quarantine, want 1", n)
			}
			s := b.compactor.status()
			if len(s.Quarantined) != 1 || s.Quarantined[0].Block != broken || !strings.Contains(s.Quarantined[0].Reason, tc.reason) {
				t.Errorf("the quarantine is %+v, and should speak of %q", s.Quarantined, tc.reason)
			}
			// Another replica knows it from the mark, and has nothing to do any more.
			if idle, err := w.replica("b", config.BucketRetention{}).compactor.round(t.Context()); err != nil || !idle {
				t.Errorf("idle %v, %v: another replica has still something to do", idle, err)
			}
			if w.hash(foreign) != before {
				t.Error("a foreign block was touched")
			}
		})
	}
}

// outOfOrder uploads a block with chunks in the wrong order. No writer makes one, so it changes the index of one that is right.
func (w *compactBench) outOfOrder(id ulid.ULID, mint, maxt int64) {
	w.t.Helper()
	const gap = 12_345
	dir := filepath.Join(w.t.TempDir(), id.String())
	var chks []chunks.Meta
	for _, from := range []int64{mint, mint + 15_000 + gap} {
		chk := chunkenc.NewXORChunk()
		app, err := chk.Appender()
		if err != nil {
			w.t.Fatal(err)
		}
		for t := from; t < from+20_000; t += compactStep {
			app.Append(t, 1)
		}
		chks = append(chks, chunks.Meta{Chunk: chk, MinTime: from, MaxTime: from + 15_000})
	}
	chunkw, err := chunks.NewWriter(filepath.Join(dir, "chunks"))
	if err != nil {
		w.t.Fatal(err)
	}
	name := filepath.Join(dir, "index")
	indexw, err := index.NewWriter(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	err = errors.Join(chunkw.WriteChunks(chks...), chunkw.Close(), indexw.AddSymbol("__name__"), indexw.AddSymbol("metric"),
		indexw.AddSeries(1, labels.FromStrings("__name__", "metric"), chks...), indexw.Close())
	if err != nil {
		w.t.Fatal(err)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		w.t.Fatal(err)
	}
	toc, err := index.NewTOCFromByteSlice(realBytes(data))
	if err != nil {
		w.t.Fatal(err)
	}
	start := (toc.Series + 15) / 16 * 16
	length, n := binary.Uvarint(data[start:])
	entry := data[start+uint64(n):]
	at := bytes.Index(entry[:length], binary.AppendUvarint(nil, gap))
	copy(entry[at:], []byte{0x80, 0}) // No gap: the second begins where the first ends.
	binary.BigEndian.PutUint32(entry[length:], crc32.Checksum(entry[:length], crc32.MakeTable(crc32.Castagnoli)))
	meta := &metadata.Meta{BlockMeta: tsdb.BlockMeta{ULID: id, Version: 1, MinTime: mint, MaxTime: maxt}}
	if err := errors.Join(os.WriteFile(name, data, 0o600), meta.WriteToDir(kitLogger{slog.New(slog.DiscardHandler)}, dir)); err != nil {
		w.t.Fatal(err)
	}
	w.upload(dir, id, w.external("a"), mint, maxt)
}

type realBytes []byte

func (b realBytes) Len() int                    { return len(b) }
func (b realBytes) Range(start, end int) []byte { return b[start:end] }

func TestWindowThatWasNotWholeWaitsForOneThatIs(t *testing.T) {
	w := newCompactBench(t)
	// It must be young enough to be waited for.
	length := compactWindow.Milliseconds()
	base := (time.Now().UnixMilli()/length - 12) / 4 * 4 * length
	var (
		want    []compactSample
		partial ulid.ULID
	)
	for i := range int64(9) {
		start := base + i*length
		samples := windowSamples(start, 0)
		if i == 2 {
			partial = w.window(start, "a", false, samples[:4])
			want = append(want, windowSamples(start, 1300)...)
			continue
		}
		want = append(want, samples...)
		w.window(start, "a", true, samples)
	}
	b := w.replica("a", config.BucketRetention{})
	round(t, b)
	if m := w.meta(partial); w.has(partial, metadata.DeletionMarkFilename) || len(b.compactor.status().Waiting) != 1 {
		t.Fatalf("block %s was not left alone: %+v", m.ULID, b.compactor.status())
	}
	for _, m := range w.live() {
		if m.ULID != partial && slices.Contains(m.Compaction.Sources, partial) {
			t.Fatal("a window that is not whole was compacted")
		}
	}
	w.window(base+2*length, "b", true, windowSamples(base+2*length, 1300))
	round(t, b)
	round(t, b)
	live := w.live()
	if got := ranges(base, live); got != "0-4 4-8 8-9" {
		t.Fatalf("the blocks are %s", got)
	}
	// The one that is whole has won, sample by sample.
	w.check(want, live...)
	if !w.has(partial, metadata.DeletionMarkFilename) {
		t.Error("what is superseded stays for ever")
	}
}

func TestWholeWindowFillsTheHolesOfACompactedBlock(t *testing.T) {
	w := newCompactBench(t)
	base := compactBase()
	length := compactWindow.Milliseconds()
	for i := range int64(9) {
		start := base + i*length
		samples := windowSamples(start, 0)
		if i == 2 {
			// Nothing of the middle. It is too old to be waited for.
			samples = slices.Delete(samples, 4, 8)
		}
		w.window(start, "a", i != 2, samples)
	}
	b := w.replica("a", config.BucketRetention{})
	round(t, b)
	if got := ranges(base, w.live()); got != "0-4 4-8 8-9" {
		t.Fatalf("the blocks are %s", got)
	}
	w.window(base+2*length, "a", true, windowSamples(base+2*length, 0))
	round(t, b)
	live := w.live()
	if got := ranges(base, live); got != "0-4 4-8 8-9" {
		t.Fatalf("the blocks are %s", got)
	}
	got := map[string][]compactSample{}
	for _, m := range live {
		w.read(m, got)
	}
	for key, samples := range got {
		slices.SortFunc(samples, func(a, b compactSample) int { return int(a.t - b.t) })
		for i := range samples[1:] {
			// Penalty deduplication takes up to two samples to notice that a replica has stopped.
			if d := samples[i+1].t - samples[i].t; d <= 0 || d > 3*compactStep {
				t.Errorf("series %s: %d ms from sample %d to the next", key, d, i)
			}
		}
	}
	metas := map[ulid.ULID]*metadata.Meta{}
	for _, m := range live {
		metas[m.ULID] = m
	}
	if windows, _ := covered(metas, nil, b.shared(), compactWindow); !windows[base+2*length] {
		t.Error("the window is not covered")
	}
}

func TestTwoWholeUploadsOfAWindowAreNotInterleaved(t *testing.T) {
	w := newCompactBench(t)
	base := compactBase()
	length := compactWindow.Milliseconds()
	var want []compactSample
	for i := range int64(5) {
		start := base + i*length
		first := w.window(start, "a", true, windowSamples(start, 0))
		second := w.window(start, "b", true, windowSamples(start, 2300))
		// Names of one millisecond are in any order.
		if first.Compare(second) < 0 {
			want = append(want, windowSamples(start, 0)...)
		} else {
			want = append(want, windowSamples(start, 2300)...)
		}
	}
	b := w.replica("a", config.BucketRetention{})
	round(t, b)
	live := slices.DeleteFunc(w.live(), func(m *metadata.Meta) bool { return m.MinTime >= base+4*length })
	if got := ranges(base, live); got != "0-4" {
		t.Fatalf("the blocks are %s", got)
	}
	w.check(want[:4*12], live...)
}

func TestStoppedInTheMiddleItGoesOn(t *testing.T) {
	w := newCompactBench(t)
	base := compactBase()
	var want []compactSample
	for i := range int64(9) {
		start := base + i*compactWindow.Milliseconds()
		samples := windowSamples(start, 0)
		want = append(want, samples...)
		w.window(start, "a", true, samples)
	}
	b := w.replica("a", config.BucketRetention{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	looks := 0
	b.compactor.free = func(need int64) error {
		if looks++; looks == 2 {
			cancel()
		}
		return b.o.Store.Room(need)
	}
	if err := b.compactor.run(ctx); err != nil {
		t.Fatalf("a stop is no error: %v", err)
	}
	if got := ranges(base, w.live()); got != "0-4 4-5 5-6 6-7 7-8 8-9" {
		t.Fatalf("the blocks are %s", got)
	}
	if n := testutil.ToFloat64(b.compactor.failures); n != 0 {
		t.Errorf("a stop is counted as a failure")
	}
	round(t, w.replica("a", config.BucketRetention{}))
	live := w.live()
	if got := ranges(base, live); got != "0-4 4-8 8-9" {
		t.Fatalf("the blocks are %s", got)
	}
	w.check(want, live...)
}

func TestWhatFailsWithoutABrokenBlockRests(t *testing.T) {
	w := newCompactBench(t)
	base := compactBase()
	for i := range int64(5) {
		start := base + i*compactWindow.Milliseconds()
		w.window(start, "a", true, windowSamples(start, 0))
	}
	b := w.replica("a", config.BucketRetention{})
	fail := errors.New("the disk is on fire")
	b.compactor.free = func(int64) error { return fail }
	round(t, b)
	s := b.compactor.status()
	if g := s.Groups[0]; g.Failures != 1 || !strings.Contains(g.Err, fail.Error()) || !g.Until.After(time.Now()) || len(s.Quarantined) != 0 {
		t.Errorf("the status is %+v", s)
	}
	// While it rests it is left alone.
	round(t, b)
	if n := testutil.ToFloat64(b.compactor.failures); n != 1 {
		t.Errorf("%v failures, want 1", n)
	}
	if first, second := b.compactor.rest("x", fail), b.compactor.rest("x", fail); second != 2*first {
		t.Errorf("it rests %s, then %s", first, second)
	}

	full := w.replica("a", config.BucketRetention{})
	full.compactor.free = func(int64) error { return store.ErrNoSpace }
	round(t, full)
	if n := testutil.ToFloat64(full.compactor.skips); n != 1 {
		t.Errorf("%v are skipped for want of room, want 1", n)
	}
	round(t, w.replica("a", config.BucketRetention{}))
	if got := ranges(base, w.live()); got != "0-4 4-5" {
		t.Errorf("the blocks are %s", got)
	}
}

func TestDownsampledIsEqualToRaw(t *testing.T) {
	w := newCompactBench(t)
	length := compactWindow.Milliseconds()
	base := compactBase()
	end := base + 168*length
	raw := rangeSamples(base, end, 0)
	id := w.put(ulid.MustNewDefault(time.Now()), labels.FromStrings("cluster", "test"), base, end, raw)
	short := w.put(ulid.MustNewDefault(time.Now()), labels.FromStrings("cluster", "test"), end, end+19*length, rangeSamples(end, end+19*length, 0))
	b := w.replica("a", config.BucketRetention{})
	round(t, b)
	round(t, b)
	made := map[int64]*metadata.Meta{}
	for _, m := range w.live() {
		if m.ULID == short || m.ULID == id {
			continue
		}
		if made[m.Thanos.Downsample.Resolution] != nil || !slices.Equal(m.Compaction.Sources, []ulid.ULID{id}) || m.Thanos.Source != metadata.CompactorSource {
			t.Errorf("block %s is one too many, or not Thanos's: %+v", m.ULID, m)
		}
		made[m.Thanos.Downsample.Resolution] = m
	}
	if n := testutil.ToFloat64(b.compactor.downsamplings); n != 2 {
		t.Errorf("%v downsamplings, want 2", n)
	}
	for _, resolution := range []int64{downsample.ResLevel1, downsample.ResLevel2} {
		m := made[resolution]
		if m == nil {
			t.Fatalf("nothing of resolution %d", resolution)
		}
		got := map[string][]compactSample{}
		w.read(m, got)
		for i := range compactSeries {
			key := labels.FromStrings("__name__", "metric", "i", fmt.Sprint(i)).String()
			counts, sums, mins, maxs := got[key+"count"], got[key+"sum"], got[key+"min"], got[key+"max"]
			if len(counts) == 0 || len(counts) != len(sums) {
				t.Fatalf("%d counts, %d sums", len(counts), len(sums))
			}
			n, from := 0.0, int64(0)
			for k := range counts {
				count, sum, least, most := 0.0, 0.0, math.Inf(1), math.Inf(-1)
				for _, s := range raw {
					if s.t > from && s.t <= counts[k].t {
						v := s.v + float64(i)
						count, sum, least, most = count+1, sum+v, min(least, v), max(most, v)
					}
				}
				from = counts[k].t
				if counts[k].v != count || math.Abs(sums[k].v/counts[k].v-sum/count) > 1e-9 || mins[k].v != least || maxs[k].v != most {
					t.Errorf("resolution %d, point %d: %v samples of %v on average within [%v, %v], want %v of %v within [%v, %v]", resolution, k,
						counts[k].v, sums[k].v/counts[k].v, mins[k].v, maxs[k].v, count, sum/count, least, most)
				}
				n += count
			}
			if n != float64(len(raw)) {
				t.Errorf("resolution %d: %v samples went into it, want %d", resolution, n, len(raw))
			}
		}
	}
}

func TestBrokenBlockIsNotDownsampledForEver(t *testing.T) {
	w := newCompactBench(t)
	base := compactBase()
	end := base + 24*compactWindow.Milliseconds()
	id := w.put(ulid.MustNewDefault(time.Now()), labels.FromStrings("cluster", "test"), base, end, rangeSamples(base, end, 0))
	path := filepath.Join(w.dir, id.String(), "chunks/000001")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-10] ^= 0xff
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b := w.replica("a", config.BucketRetention{})
	round(t, b)
	round(t, b)
	if s := b.compactor.status(); len(s.Quarantined) != 1 || s.Quarantined[0].Block != id || s.TodoDownsampling != 0 {
		t.Errorf("the status is %+v", s)
	}
	if n := testutil.ToFloat64(b.compactor.failures); n != 1 {
		t.Errorf("%v failures, want 1", n)
	}
}

func TestRetentionByResolution(t *testing.T) {
	w := newCompactBench(t)
	ours := labels.FromStrings("cluster", "test", config.ReplicaLabel, "a")
	now := time.Now()
	put := func(age time.Duration, resolution int64, external labels.Labels, sources ...ulid.ULID) ulid.ULID {
		maxt := now.Add(-age).UnixMilli()
		mint := maxt - 60_000
		id := w.put(ulid.MustNewDefault(now), external, mint, maxt, rangeSamples(mint, maxt, 0), sources...)
		w.editMeta(id, func(m *metadata.Meta) { m.Thanos.Downsample.Resolution = resolution })
		return id
	}
	var (
		day     = 24 * time.Hour
		foreign = put(90*day, 0, labels.FromStrings("cluster", "other", config.ReplicaLabel, "a"))
		before  = w.hash(foreign)
		gone    = []ulid.ULID{put(8*day, 0, ours), put(31*day, downsample.ResLevel1, ours)}
		kept    = []ulid.ULID{
			put(6*day, 0, ours), put(29*day, downsample.ResLevel1, ours), put(400*day, downsample.ResLevel2, ours),
			// What is deleted is there downsampled.
			put(8*day, downsample.ResLevel1, ours, gone[0]), put(31*day, downsample.ResLevel2, ours, gone[1]),
		}
	)
	b := w.replica("a", config.BucketRetention{Raw: model.Duration(90 * day)})
	round(t, b)
	if n := len(w.live()); n != 8 {
		t.Fatalf("%d blocks are left before the reload, want all", n)
	}
	// It reloads.
	cfg := *b.o.Config.Bucket
	cfg.Retention = config.BucketRetention{Raw: model.Duration(7 * day), FiveMinutes: model.Duration(30 * day)}
	apply, err := b.Prepare(&config.Config{Bucket: &cfg})
	if err != nil {
		t.Fatal(err)
	}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	round(t, b)
	for _, id := range gone {
		if !w.has(id, metadata.DeletionMarkFilename) || !w.has(id, block.IndexFilename) {
			t.Errorf("block %s is not marked, or gone at once", id)
		}
	}
	// When the mark is old enough, the block goes.
	path := filepath.Join(w.dir, gone[0].String(), metadata.DeletionMarkFilename)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var mark metadata.DeletionMark
	if err := json.Unmarshal(data, &mark); err != nil {
		t.Fatal(err)
	}
	mark.DeletionTime -= int64((b.compactor.deleteDelay + time.Minute).Seconds())
	if data, err = json.Marshal(mark); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	round(t, b)
	if _, err := os.Stat(filepath.Join(w.dir, gone[0].String())); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("block %s is still there: %v", gone[0], err)
	}
	if !w.has(gone[1], block.IndexFilename) {
		t.Error("a block went before its time")
	}
	for _, id := range kept {
		if w.has(id, metadata.DeletionMarkFilename) {
			t.Errorf("block %s is marked", id)
		}
	}
	if w.hash(foreign) != before {
		t.Error("a foreign block was touched")
	}
}

func TestRetentionWaitsForWhatIsKeptLonger(t *testing.T) {
	w := newCompactBench(t)
	length := compactWindow.Milliseconds()
	base := compactBase() - 168*length
	put := func(from, windows int64) ulid.ULID {
		return w.put(ulid.MustNewDefault(time.Now()), labels.FromStrings("cluster", "test"), from, from+windows*length, rangeSamples(from, from+windows*length, 0))
	}
	var (
		long = put(base, 24)
		// Compaction makes nothing longer of it any more, but may of the last one.
		short  = put(base+48*length, 3)
		recent = put(floor(time.Now().UnixMilli(), length)-20*length, 1)
		marked = func(id ulid.ULID) bool { return w.has(id, metadata.DeletionMarkFilename) }
	)
	b := w.replica("a", config.BucketRetention{Raw: model.Duration(10 * time.Minute), FiveMinutes: model.Duration(10 * time.Minute)})
	if err := b.compactor.retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, id := range []ulid.ULID{long, short, recent} {
		if marked(id) {
			t.Errorf("block %s is deleted before there is anything downsampled of it", id)
		}
	}
	round(t, b)
	round(t, b)
	if !marked(long) || !marked(short) || marked(recent) {
		t.Errorf("marked for deletion: long %t, short %t, recent %t", marked(long), marked(short), marked(recent))
	}
	var hours []ulid.ULID
	for _, m := range w.live() {
		switch {
		case m.Thanos.Downsample.Resolution == downsample.ResLevel2:
			hours = append(hours, m.Compaction.Sources...)
		case m.ULID != recent:
			t.Errorf("block %s of resolution %d is left", m.ULID, m.Thanos.Downsample.Resolution)
		}
	}
	if !slices.Equal(hours, []ulid.ULID{long, short}) {
		t.Errorf("at 1h there are %v, want %v", hours, []ulid.ULID{long, short})
	}
	// It is not made again and again of what lies there until it is deleted.
	made := testutil.ToFloat64(b.compactor.downsamplings)
	round(t, b)
	if n := testutil.ToFloat64(b.compactor.downsamplings); made != 4 || n != made {
		t.Errorf("%v downsamplings, then %v, want 4", made, n)
	}
}

func TestRetentionLooksAtWhatTakesTheBlocksPlace(t *testing.T) {
	w := newCompactBench(t)
	base := compactBase()
	end := base + 24*compactWindow.Milliseconds()
	id := w.put(ulid.MustNewDefault(time.Now()), labels.FromStrings("cluster", "test"), base, end, rangeSamples(base, end, 0))
	b := w.replica("a", config.BucketRetention{})
	round(t, b)
	live := w.live()
	i := slices.IndexFunc(live, func(m *metadata.Meta) bool { return m.Thanos.Downsample.Resolution == downsample.ResLevel1 })
	if i < 0 {
		t.Fatal("nothing is downsampled")
	}
	if err := os.Truncate(filepath.Join(w.dir, live[i].ULID.String(), block.IndexFilename), 100); err != nil {
		t.Fatal(err)
	}
	b.retention.Store(&config.BucketRetention{Raw: model.Duration(time.Minute)})
	if err := b.compactor.retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w.has(id, metadata.DeletionMarkFilename) {
		t.Fatal("a block is deleted though what was downsampled of it is broken")
	}
	round(t, b)
	round(t, b)
	if n := testutil.ToFloat64(b.compactor.downsamplings); n != 2 || !w.has(id, metadata.DeletionMarkFilename) {
		t.Errorf("%v downsamplings, want 2, and then the block is deleted", n)
	}
	if left := w.live(); len(left) != 1 || left[0].ULID == live[i].ULID || left[0].Thanos.Downsample.Resolution != downsample.ResLevel1 {
		t.Errorf("%v are left, want what was made anew", left)
	}
}

func TestCutOffUploadsAreRemoved(t *testing.T) {
	w := newCompactBench(t)
	b := w.replica("a", config.BucketRetention{})
	start := compactBase()
	partial := func(at time.Time) ulid.ULID {
		id, err := windowName(at, start, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.bkt.Upload(t.Context(), id.String()+"/chunks/000001", strings.NewReader("half")); err != nil {
			t.Fatal(err)
		}
		return id
	}
	old := partial(time.Now().Add(-b.compactor.deleteDelay - time.Minute))
	young := partial(time.Now())
	garbled := w.window(start, "a", true, windowSamples(start, 0))
	if err := os.WriteFile(filepath.Join(w.dir, garbled.String(), block.MetaFilename), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	round(t, b)
	if w.has(old, "chunks/000001") {
		t.Error("what a cut-off upload left is still there")
	}
	if !w.has(young, "chunks/000001") {
		t.Error("an upload that goes on was removed")
	}
	if !w.has(garbled, block.IndexFilename) {
		t.Error("a block with a garbled meta.json was removed")
	}
}

// A compactor is killed while it uploads what it has made.
func TestCutOffUploadOfACompactedBlock(t *testing.T) {
	w := newCompactBench(t)
	base := compactBase()
	var want []compactSample
	for i := range int64(5) {
		start := base + i*compactWindow.Milliseconds()
		samples := windowSamples(start, 0)
		want = append(want, samples...)
		w.window(start, "a", true, samples)
	}
	killed := w.replica("a", config.BucketRetention{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var cut ulid.ULID
	killed.client.current.Store(&opened{redact: func(s string) string { return s }, Bucket: &flaky{
		Bucket: killed.client.bkt(), before: func(op, name string) (bool, error) {
			if op != "upload" || !strings.HasSuffix(name, "/"+block.IndexFilename) {
				return false, ctx.Err()
			}
			cut = ulid.MustParse(strings.SplitN(name, "/", 2)[0])
			cancel()
			return true, context.Canceled
		},
	}})
	if _, err := killed.compactor.round(ctx); err == nil {
		t.Fatal("it was not killed")
	}
	if !w.has(cut, block.IndexFilename) || !w.has(cut, "chunks/000001") || w.has(cut, block.MetaFilename) {
		t.Fatal("there is no half of a block")
	}

	// Nobody reads it, nor takes it for anything.
	b := w.replica("a", config.BucketRetention{})
	answers := func() {
		t.Helper()
		v, err := b.catalogue.look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := b.reader.sync(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		if _, ok := v.blocks[cut]; ok || len(v.covered) != 5 {
			t.Errorf("half of a block counts: %d windows are covered", len(v.covered))
		}
		got, warnings := found(t, b.At(0), base, base+5*compactWindow.Milliseconds())
		if len(got) != compactSeries || len(warnings) > 0 {
			t.Errorf("%d series, warnings %v", len(got), warnings)
		}
		for name, samples := range got {
			if len(samples) != len(want) {
				t.Errorf("series %s: %d samples, want %d", name, len(samples), len(want))
			}
		}
	}
	answers()
	round(t, b)
	live := w.live()
	if got := ranges(base, live); got != "0-4 4-5" {
		t.Fatalf("the blocks are %s", got)
	}
	w.check(want, live...)
	answers()
	if !w.has(cut, block.IndexFilename) {
		t.Error("an upload that may go on was removed")
	}

	// Its name does not say when it was written to; the objects do.
	err := filepath.WalkDir(filepath.Join(w.dir, cut.String()), func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		at := time.Now().Add(-compact.PartialUploadThresholdAge - time.Minute)
		return os.Chtimes(path, at, at)
	})
	if err != nil {
		t.Fatal(err)
	}
	round(t, b)
	if w.has(cut, block.IndexFilename) || w.has(cut, "chunks/000001") {
		t.Error("what a cut-off upload left is still there")
	}
	answers()
}
