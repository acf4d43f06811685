package bucket

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/block/metadata"

	"github.com/tocsin-io/tocsin/appliance/config"
)

var discard = slog.New(slog.DiscardHandler)

func (w *compactBench) survey() *Survey {
	w.t.Helper()
	s, err := NewSurvey(discard, &config.Bucket{Type: "FILESYSTEM", Name: w.dir}, compactWindow)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { require.NoError(w.t, s.Close()) })
	return s
}

// write puts an object into the bucket.
func (w *compactBench) write(name, text string) {
	w.t.Helper()
	name = filepath.Join(w.dir, name)
	require.NoError(w.t, os.MkdirAll(filepath.Dir(name), 0o700))
	require.NoError(w.t, os.WriteFile(name, []byte(text), 0o600))
}

// everything is all that is in a folder.
func everything(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			all[path] = ""
			return err
		}
		b, err := os.ReadFile(path)
		all[path] = string(b)
		return err
	}))
	return all
}

func TestSurveyOfAHostileBucketWritesNothing(t *testing.T) {
	w := newCompactBench(t)
	base, length := compactBase(), compactWindow.Milliseconds()
	var ids []ulid.ULID
	for i := range int64(6) {
		if i == 3 {
			ids = append(ids, ulid.ULID{}) // A window that is missing.
			continue
		}
		start := base + i*length
		ids = append(ids, w.window(start, "a", i != 4, windowSamples(start, 0)))
	}
	w.write(ids[1].String()+"/deletion-mark.json", `{"version":1,"details":"superseded","deletion_time":1700000000}`)
	w.write(ids[2].String()+"/no-compact-mark.json", `{"version":1,"reason":"tocsin-broken-block","details":"its index is wrong","no_compact_time":9223372036854775807}`)
	w.write(ids[5].String()+"/no-compact-mark.json", `{"version":1,"reason":"manual"}`)
	w.write(ids[5].String()+"/deletion-mark.json", "no json")
	w.write("01ARZ3NDEKTSV4RRFFQ69G5FAV/index", "half a block")
	w.write("01ARZ3NDEKTSV4RRFFQ69G5FBV/meta.json", `{"version":1,"ulid":"01ARZ3NDEKTSV4RRFFQ69G5FBV","pad":"`+strings.Repeat("x", maxMetaBytes)+`"}`)
	w.write("01ARZ3NDEKTSV4RRFFQ69G5FCV/meta.json", "\x1b[2J")
	w.write("01ARZ3NDEKTSV4RRFFQ69G5FDV/meta.json", `{"version":1,"ulid":"01ARZ3NDEKTSV4RRFFQ69G5FDV","minTime":-9223372036854775808,"maxTime":9223372036854775807,
		"thanos":{"labels":{"cluster":"other"},"downsample":{"resolution":-1},"files":[{"rel_path":"../../etc/passwd","size_bytes":-5}]}}`)
	w.write("\x1b[31mgarbage/x", "y")
	w.write("????????????\x1b?????????????/meta.json", "{}")
	w.write(uploadDir+"/left", "half an upload")
	before := everything(t, w.dir)
	s := w.survey()

	all, err := s.Blocks(t.Context())
	require.NoError(t, err)
	states := map[string]BlockState{}
	for _, b := range all {
		states[b.ID] = b.State
		if b.ID == ids[2].String() {
			require.Equal(t, "its index is wrong", b.Problem)
		}
	}
	for id, want := range map[string]BlockState{
		ids[0].String(): BlockOK, ids[1].String(): BlockMarked, ids[2].String(): BlockQuarantined, ids[4].String(): BlockOK, ids[5].String(): BlockOK,
		"01ARZ3NDEKTSV4RRFFQ69G5FAV": BlockPartial, "01ARZ3NDEKTSV4RRFFQ69G5FBV": BlockPartial, "01ARZ3NDEKTSV4RRFFQ69G5FCV": BlockPartial,
		"01ARZ3NDEKTSV4RRFFQ69G5FDV": BlockOK,
	} {
		require.Equal(t, want, states[id], id)
	}
	// Oldest first, after what cannot be read.
	var order []string
	for _, b := range all {
		if b.Labels["cluster"] == "test" {
			order = append(order, b.ID)
		}
	}
	require.Equal(t, []string{ids[0].String(), ids[1].String(), ids[2].String(), ids[4].String(), ids[5].String()}, order)
	require.Equal(t, BlockPartial, all[0].State)

	st := s.Stats(all)
	require.Equal(t, 1, st.States[BlockQuarantined])
	require.Equal(t, 1, st.States[BlockMarked])
	require.Len(t, st.Clusters, 1)
	require.Equal(t, map[string]string{"cluster": "test"}, st.Clusters[0].Labels)
	// What is in quarantine covers nothing.
	require.Equal(t, Coverage{From: base, To: base + 6*length, Whole: 3, NotWhole: 1, Missing: 2, Gaps: []Gap{{base + 2*length, base + 4*length, 2}}},
		st.Clusters[0].Coverage)

	for id := range states {
		in, err := s.Inspect(t.Context(), ulid.MustParse(id))
		if err != nil {
			// Its name is another one in the bucket.
			require.ErrorIs(t, err, ErrNoBlock)
			continue
		}
		_, err = json.Marshal(in)
		require.NoError(t, err)
		broken, err := s.Verify(t.Context(), ulid.MustParse(id), t.TempDir(), &Progress{})
		require.NoError(t, err)
		if strings.HasPrefix(id, "01ARZ") {
			require.Error(t, broken, id)
		} else {
			require.NoError(t, broken, id)
		}
	}
	in, err := s.Inspect(t.Context(), ids[5])
	require.NoError(t, err)
	require.Len(t, in.Marks, 2)
	require.Equal(t, []WindowStatus{{base + 5*length, true, "a"}}, in.Windows)
	_, err = s.Inspect(t.Context(), ulid.MustNewDefault(time.Now()))
	require.ErrorIs(t, err, ErrNoBlock)

	require.Error(t, s.client.Upload(t.Context(), "x", strings.NewReader("x")))
	require.Error(t, s.client.Delete(t.Context(), ids[0].String()+"/index"))
	require.Equal(t, before, everything(t, w.dir))
}

func TestVerifyFindsWhatIsWrong(t *testing.T) {
	base := compactBase()
	flip := func(t *testing.T, name string, at func(size int) int) {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		text[at(len(text))] ^= 0xff
		require.NoError(t, os.WriteFile(name, text, 0o600))
	}
	for name, tc := range map[string]struct {
		breakIt func(w *compactBench, id ulid.ULID, dir string)
		want    string
	}{
		"nothing": {func(*compactBench, ulid.ULID, string) {}, ""},
		"a truncated index": {func(w *compactBench, _ ulid.ULID, dir string) {
			require.NoError(w.t, os.Truncate(filepath.Join(dir, "index"), 100))
		}, "its file index has 100 bytes"},
		"a missing index": {func(w *compactBench, _ ulid.ULID, dir string) {
			require.NoError(w.t, os.Remove(filepath.Join(dir, "index")))
		}, "index is missing"},
		"a chunk": {func(w *compactBench, _ ulid.ULID, dir string) {
			flip(w.t, filepath.Join(dir, "chunks/000001"), func(size int) int { return size / 2 })
		}, "a chunk of series"},
		"an index": {func(w *compactBench, _ ulid.ULID, dir string) {
			flip(w.t, filepath.Join(dir, "index"), func(size int) int { return size - 1 })
		}, "its index"},
		"a hash": {func(w *compactBench, id ulid.ULID, dir string) {
			w.editMeta(id, func(m *metadata.Meta) {
				for i := range m.Thanos.Files {
					m.Thanos.Files[i].Hash = &metadata.ObjectHash{Func: metadata.SHA256Func, Value: "0"}
				}
			})
		}, "its file chunks/000001, index is not what was uploaded"},
		"files that are elsewhere": {func(w *compactBench, id ulid.ULID, dir string) {
			w.editMeta(id, func(m *metadata.Meta) { m.Thanos.Files = append(m.Thanos.Files, metadata.File{RelPath: "../x"}) })
		}, `lists the file "../x"`},
		"another's meta.json": {func(w *compactBench, id ulid.ULID, dir string) {
			w.editMeta(id, func(m *metadata.Meta) { m.ULID = ulid.MustNewDefault(time.Now()) })
		}, "contradicts itself"},
		"no list of files, and a chunk": {func(w *compactBench, id ulid.ULID, dir string) {
			w.editMeta(id, func(m *metadata.Meta) { m.Thanos.Files = nil })
			flip(w.t, filepath.Join(dir, "chunks/000001"), func(size int) int { return size / 2 })
		}, "a chunk of series"},
		"no list of files": {func(w *compactBench, id ulid.ULID, dir string) {
			w.editMeta(id, func(m *metadata.Meta) { m.Thanos.Files = nil })
		}, ""},
		"no meta.json": {func(w *compactBench, _ ulid.ULID, dir string) {
			require.NoError(w.t, os.Remove(filepath.Join(dir, block.MetaFilename)))
		}, "no meta.json"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newCompactBench(t)
			id := w.window(base, "a", true, windowSamples(base, 0))
			tc.breakIt(w, id, filepath.Join(w.dir, id.String()))
			scratch := t.TempDir()
			broken, err := w.survey().Verify(t.Context(), id, scratch, &Progress{})
			require.NoError(t, err)
			if tc.want == "" {
				require.NoError(t, broken)
			} else {
				require.ErrorContains(t, broken, tc.want)
			}
			left, err := os.ReadDir(scratch)
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

// TestVerifyIsInterrupted holds that nothing stays behind, and that an interruption says nothing about a block.
func TestVerifyIsInterrupted(t *testing.T) {
	w := newCompactBench(t)
	base := compactBase()
	id := w.window(base, "a", true, windowSamples(base, 0))
	s := w.survey()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.client.current.Store(&opened{&cancelling{s.client.bkt().Bucket, cancel}, func(text string) string { return text }})
	scratch := t.TempDir()
	broken, err := s.Verify(ctx, id, scratch, &Progress{})
	require.NoError(t, broken)
	require.ErrorIs(t, err, context.Canceled)
	left, err := os.ReadDir(scratch)
	require.NoError(t, err)
	require.Empty(t, left)
}

// cancelling is interrupted when a segment of chunks is asked for.
type cancelling struct {
	objstore.Bucket
	cancel func()
}

func (c *cancelling) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if strings.Contains(name, "chunks/") {
		c.cancel()
	}
	return c.Bucket.Get(ctx, name)
}

func TestProgressIsReadable(t *testing.T) {
	p := &Progress{}
	require.Empty(t, p.String())
	p.begin("downloading it", "bytes", 200)
	_, err := counted{p}.Write(bytes.Repeat([]byte("x"), 50))
	require.NoError(t, err)
	require.Equal(t, "downloading it: 25% of 200 bytes", p.String())
	p.begin("reading it", "series", 1)
	p.done.Add(math.MaxInt32)
	require.Equal(t, "reading it: 100% of 1 series", p.String())
}
