package bucket

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/block/metadata"
	"golang.org/x/sync/errgroup"

	"github.com/tocsin-io/tocsin/appliance/config"
)

const (
	// maxMarkBytes bounds what is read of a mark.
	maxMarkBytes = 1 << 20
	// spareBytes stay free on the disk that blocks are verified on.
	spareBytes = 64 << 20
)

var (
	errReadOnly = errors.New("this only reads the bucket")
	// ErrNoBlock says that a block is not in the bucket.
	ErrNoBlock = errors.New("there is no such block in the bucket")
	// ErrNoMeta says that a block is half there.
	ErrNoMeta = errors.New("it has no meta.json: its upload is under way, or was cut off")
)

// Survey looks at the blocks of a bucket for commands: without a replica that runs, and without writing anything.
type Survey struct {
	client *client
	bkt    objstore.InstrumentedBucketReader
	kit    kitLogger
	window time.Duration
}

// NewSurvey makes a client. It does not ask the bucket anything. window is how long the smallest block is.
func NewSurvey(logger *slog.Logger, cfg *config.Bucket, window time.Duration) (*Survey, error) {
	if window < time.Millisecond {
		return nil, fmt.Errorf("a window of %s is none", window)
	}
	kit := kitLogger{slog.New(demoted{logger.Handler()})}
	bkt, err := openToRead(redactLogger{kit, cfg.Redact}, cfg)
	if err != nil {
		// What it quotes may be a credential.
		return nil, fmt.Errorf("make a client of the bucket section: %s", cfg.Redact(err.Error()))
	}
	s := &Survey{client: &client{}, kit: kit, window: window}
	s.client.current.Store(&opened{readOnly{bkt}, cfg.Redact})
	s.bkt = objstore.WithNoopInstr(s.client)
	return s, nil
}

// openToRead makes a provider's client, and leaves alone what other processes left in a folder.
func openToRead(kit kitLog, cfg *config.Bucket) (objstore.Bucket, error) {
	if objstore.ObjProvider(cfg.Type) != objstore.FILESYSTEM {
		return open(kit, cfg)
	}
	// A folder that is not there looks like an empty one.
	if _, err := os.Stat(cfg.Name); err != nil {
		return nil, err
	}
	bkt, err := newFiles(cfg.Name)
	if err != nil {
		return nil, err
	}
	return objstore.NewPrefixedBucket(bkt, cfg.Prefix), nil
}

// readOnly is a bucket that nothing is written to.
type readOnly struct{ objstore.Bucket }

// Upload implements objstore.Bucket.
func (readOnly) Upload(context.Context, string, io.Reader, ...objstore.ObjectUploadOption) error {
	return errReadOnly
}

// Delete implements objstore.Bucket.
func (readOnly) Delete(context.Context, string) error { return errReadOnly }

// Close ends what NewSurvey began.
func (s *Survey) Close() error { return s.client.Close() }

// Where is the provider and the name of the bucket.
func (s *Survey) Where() string { return fmt.Sprintf("%s %s", s.client.Provider(), s.client.Name()) }

// Blocks lists all blocks, oldest first, what cannot be read before all.
func (s *Survey) Blocks(ctx context.Context) ([]BlockStatus, error) {
	metas, err := block.NewBaseFetcher(s.kit, metaConcurrency, metaGuard{s.bkt}, lister{s.kit, s.bkt}, "", nil)
	if err != nil {
		return nil, fmt.Errorf("read the blocks of the bucket: %w", err)
	}
	v := &view{}
	if v.blocks, v.partial, err = metas.NewMetaFetcher(nil, nil).Fetch(ctx); err != nil {
		return nil, fmt.Errorf("list the blocks of the bucket: %w", err)
	}
	all := blockList(v, s.window, func(ulid.ULID) (BlockState, string) { return BlockOK, "" })
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(metaConcurrency)
	for i := range all {
		if all[i].State == BlockPartial {
			continue
		}
		g.Go(func() error {
			marks, err := s.marks(ctx, all[i].ID)
			if err != nil {
				return err
			}
			all[i].State, all[i].Problem = stateOf(marks)
			return nil
		})
	}
	return all, g.Wait()
}

// Mark is what is said about a block beside it.
type Mark struct {
	// Kind is the name of the object.
	Kind    string    `json:"kind"`
	Since   time.Time `json:"since,omitzero"`
	Reason  string    `json:"reason,omitempty"`
	Details string    `json:"details,omitempty"`
	// Problem is why it cannot be read. Then it does not count.
	Problem string `json:"problem,omitempty"`
}

// marks reads the marks that a block has.
func (s *Survey) marks(ctx context.Context, id string) ([]Mark, error) {
	var names []string
	err := s.bkt.Iter(ctx, id+objstore.DirDelim, func(name string) error {
		switch name = path.Base(name); name {
		case metadata.DeletionMarkFilename, metadata.NoCompactMarkFilename, metadata.NoDownsampleMarkFilename:
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the objects of block %s: %w", id, err)
	}
	slices.Sort(names)
	var marks []Mark
	for _, name := range names {
		text, there, err := s.read(ctx, path.Join(id, name), maxMarkBytes)
		if err != nil {
			return nil, err
		}
		if !there {
			continue
		}
		// All three have these.
		var in struct {
			Version      int    `json:"version"`
			Details      string `json:"details"`
			Reason       string `json:"reason"`
			Deletion     int64  `json:"deletion_time"`
			NoCompact    int64  `json:"no_compact_time"`
			NoDownsample int64  `json:"no_downsample_time"`
		}
		m := Mark{Kind: name}
		switch err := json.Unmarshal(text, &in); {
		case err != nil:
			m.Problem = err.Error()
		case in.Version != 1:
			m.Problem = fmt.Sprintf("it is of version %d", in.Version)
		default:
			m.Reason, m.Details = in.Reason, in.Details
			m.Since = saneTime(time.Unix(max(in.Deletion, in.NoCompact, in.NoDownsample), 0))
		}
		marks = append(marks, m)
	}
	return marks, nil
}

// stateOf is what marks say, as the replicas read them.
func stateOf(marks []Mark) (state BlockState, problem string) {
	state = BlockOK
	for _, m := range marks {
		switch {
		case m.Problem != "":
		case m.Kind == metadata.DeletionMarkFilename:
			return BlockMarked, m.Details
		case m.Kind == metadata.NoCompactMarkFilename && isBrokenReason(metadata.NoCompactReason(m.Reason)):
			state, problem = BlockQuarantined, m.Details
		}
	}
	return state, problem
}

// read reads so many bytes of an object, if it is there.
func (s *Survey) read(ctx context.Context, name string, most int64) (b []byte, there bool, err error) {
	r, err := s.bkt.ReaderWithExpectedErrs(s.bkt.IsObjNotFoundErr).Get(ctx, name)
	if err != nil {
		if s.bkt.IsObjNotFoundErr(err) {
			return nil, false, nil
		}
		return nil, false, fmt.Errorf("read %s: %w", name, err)
	}
	b, err = io.ReadAll(io.LimitReader(r, most))
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, false, fmt.Errorf("read %s: %w", name, err)
	}
	return b, true, nil
}

// Inspection is everything about one block. Whatever is in it comes out of the bucket, unchecked.
type Inspection struct {
	BlockStatus
	Marks []Mark `json:"marks"`
	// Files are the objects of the block, at most maxListed, by name.
	Files   []FileStatus `json:"files"`
	Sources []string     `json:"sources"`
	// Parents are what it was compacted of.
	Parents []string `json:"parents"`
	// Made and Uploaded are when, as far as it is known.
	Made     time.Time `json:"made,omitzero"`
	Uploaded time.Time `json:"uploaded,omitzero"`
	// Meta is the meta.json, if it is one.
	Meta json.RawMessage `json:"meta,omitempty"`
}

// FileStatus is an object of a block.
type FileStatus struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
	// Problem is in what it differs from what the meta.json says.
	Problem string `json:"problem,omitempty"`
}

// Inspect looks at one block, without reading its data.
func (s *Survey) Inspect(ctx context.Context, id ulid.ULID) (*Inspection, error) {
	in := &Inspection{BlockStatus: BlockStatus{ID: id.String(), State: BlockPartial}, Files: []FileStatus{}, Sources: []string{}, Parents: []string{}}
	var err error
	if in.Marks, err = s.marks(ctx, in.ID); err != nil {
		return nil, err
	}
	m, text, problem, err := s.meta(ctx, id)
	if err != nil {
		return nil, err
	}
	in.Meta = text
	said := map[string]int64{}
	if problem != nil {
		in.Problem = problem.Error()
	} else {
		in.BlockStatus = blockOf(id, m, s.window)
		in.State, in.Problem = stateOf(in.Marks)
		in.Made, in.Uploaded = saneTime(ulid.Time(id.Time())), saneTime(m.Thanos.UploadTime)
		for _, source := range newest(m.Compaction.Sources) {
			in.Sources = append(in.Sources, source.String())
		}
		for _, parent := range newest(m.Compaction.Parents) {
			in.Parents = append(in.Parents, parent.ULID.String())
		}
		for _, f := range m.Thanos.Files {
			said[f.RelPath] = f.SizeBytes
		}
	}
	if err := s.files(ctx, in, said); err != nil {
		return nil, err
	}
	if len(in.Files) == 0 {
		return nil, fmt.Errorf("block %s: %w", id, ErrNoBlock)
	}
	return in, nil
}

// meta reads the meta.json of a block. What is wrong with it is a problem; an error is one of the bucket.
func (s *Survey) meta(ctx context.Context, id ulid.ULID) (m *metadata.Meta, text []byte, problem, err error) {
	text, there, err := s.read(ctx, path.Join(id.String(), block.MetaFilename), maxMetaBytes+1)
	switch {
	case err != nil:
		return nil, nil, nil, err
	case !there:
		return nil, nil, ErrNoMeta, nil
	case len(text) > maxMetaBytes:
		return nil, nil, fmt.Errorf("its meta.json has more than %d bytes", maxMetaBytes), nil
	}
	m = &metadata.Meta{}
	if err := json.Unmarshal(text, m); err != nil {
		if !json.Valid(text) {
			text = nil
		}
		return nil, text, fmt.Errorf("its meta.json cannot be read: %w", err), nil
	}
	if m.Version != metadata.TSDBVersion1 {
		return nil, text, fmt.Errorf("its meta.json is of version %d", m.Version), nil
	}
	return m, text, nil, nil
}

// files lists the objects of a block, and what its meta.json lists and is not there.
func (s *Survey) files(ctx context.Context, in *Inspection, said map[string]int64) error {
	var names []string
	errEnough := errors.New("enough")
	err := s.bkt.Iter(ctx, in.ID+objstore.DirDelim, func(name string) error {
		if names = append(names, strings.TrimPrefix(name, in.ID+objstore.DirDelim)); len(names) == maxListed {
			return errEnough
		}
		return nil
	}, objstore.WithRecursiveIter())
	if err != nil && len(names) < maxListed {
		return fmt.Errorf("list the objects of block %s: %w", in.ID, err)
	}
	slices.Sort(names)
	in.Files = make([]FileStatus, len(names))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(metaConcurrency)
	for i, name := range names {
		g.Go(func() error {
			a, err := s.bkt.Attributes(ctx, path.Join(in.ID, name))
			if err != nil {
				return fmt.Errorf("look at file %s of block %s: %w", name, in.ID, err)
			}
			in.Files[i] = FileStatus{Name: name, Bytes: a.Size}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i := range in.Files {
		f := &in.Files[i]
		if size := said[f.Name]; size > 0 && size != f.Bytes && f.Name != block.MetaFilename {
			f.Problem = fmt.Sprintf("meta.json says %d bytes", size)
		}
		delete(said, f.Name)
	}
	if len(names) < maxListed {
		for name, size := range said {
			if len(in.Files) > 0 && len(in.Files) < maxListed {
				in.Files = append(in.Files, FileStatus{Name: name, Problem: fmt.Sprintf("missing; meta.json says %d bytes", size)})
			}
		}
		slices.SortFunc(in.Files, func(a, b FileStatus) int { return strings.Compare(a.Name, b.Name) })
	}
	return nil
}

// Stats sums blocks up.
type Stats struct {
	States map[BlockState]int `json:"blocks_by_state"`
	// Bytes and Samples are those of all blocks, by their meta.json, BytesPerSample that of the blocks that are not downsampled.
	Bytes          int64   `json:"bytes"`
	Samples        uint64  `json:"samples"`
	BytesPerSample float64 `json:"bytes_per_sample"`
	// Levels are by level and resolution.
	Levels []LevelStats `json:"levels"`
	// Clusters are by the labels that all replicas of a cluster share.
	Clusters []ClusterStats `json:"clusters"`
}

// LevelStats sums the blocks of a level and a resolution up.
type LevelStats struct {
	Level          int     `json:"level"`
	Resolution     int64   `json:"resolution_ms"`
	Blocks         int     `json:"blocks"`
	Bytes          int64   `json:"bytes"`
	Samples        uint64  `json:"samples"`
	BytesPerSample float64 `json:"bytes_per_sample"`
}

// ClusterStats is which windows of a cluster are there.
type ClusterStats struct {
	Labels map[string]string `json:"labels"`
	Coverage
}

// Stats sums blocks up.
func (s *Survey) Stats(blocks []BlockStatus) Stats {
	type kind struct {
		level      int
		resolution int64
	}
	type cluster struct {
		labels  map[string]string
		windows map[int64]bool
	}
	st := Stats{States: map[BlockState]int{}, Levels: []LevelStats{}, Clusters: []ClusterStats{}}
	levels, clusters := map[kind]*LevelStats{}, map[string]*cluster{}
	var bytes int64
	var samples uint64
	for _, b := range blocks {
		st.States[b.State]++
		if b.State == BlockPartial {
			continue
		}
		k := kind{b.Level, b.Resolution}
		if levels[k] == nil {
			levels[k] = &LevelStats{Level: b.Level, Resolution: b.Resolution}
		}
		levels[k].Blocks++
		levels[k].Bytes += b.Bytes
		levels[k].Samples += b.Samples
		st.Bytes += b.Bytes
		st.Samples += b.Samples
		if b.Resolution != 0 {
			continue
		}
		bytes, samples = bytes+b.Bytes, samples+b.Samples
		if b.State == BlockQuarantined || len(b.Windows) == 0 {
			continue
		}
		shared := config.Shared(labels.FromMap(b.Labels))
		c := clusters[shared.String()]
		if c == nil {
			c = &cluster{shared.Map(), map[int64]bool{}}
			clusters[shared.String()] = c
		}
		for _, w := range b.Windows {
			c.windows[w.Begin] = c.windows[w.Begin] || w.Whole
		}
	}
	st.BytesPerSample = perSample(bytes, samples)
	for _, k := range slices.SortedFunc(maps.Keys(levels), func(a, b kind) int {
		return cmp.Or(cmp.Compare(a.resolution, b.resolution), cmp.Compare(a.level, b.level))
	}) {
		l := levels[k]
		l.BytesPerSample = perSample(l.Bytes, l.Samples)
		st.Levels = append(st.Levels, *l)
	}
	for _, name := range slices.Sorted(maps.Keys(clusters)) {
		c := clusters[name]
		st.Clusters = append(st.Clusters, ClusterStats{c.labels, coverageOf(c.windows, s.window)})
	}
	return st
}
