package bucket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/block/metadata"
	"golang.org/x/sync/errgroup"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/store"
)

const (
	// uploadsAtOnce bounds how many blocks, and uploadFiles how many files of each, are uploaded at the same time.
	uploadsAtOnce, uploadFiles = 2, 4
	// uploadSteps is how many steps a window has: so long the next replica in order waits for the one before.
	uploadSteps = 12
	// healWindows is for how many windows a replica that lacks something waits for healing.
	healWindows = 2
	// uploadStall is after how long without a byte an upload is given up, to be tried again.
	uploadStall    = 5 * time.Minute
	uploadSayEvery = 10 * time.Second
	// A failure is tried again after uploadRetry, twice as long each time, up to uploadRetryMax.
	uploadRetry, uploadRetryMax = time.Second, 5 * time.Minute
	// What lies in the bucket without a meta.json is taken for cut off when its name is as old as marks for deletion get: no upload
	// begins under a name older than a part of that, nor goes on beyond a larger one. In between it has time, and clocks may differ.
	uploadBegins, uploadEnds = 0.5, 0.75
	// uploadFresh is how old a look at the bucket may be that an upload relies on, shorter where windows are.
	uploadFresh = 10 * time.Second
	// maxMetaBytes bounds what is read of a meta.json, maxMetaFiles how many files it may list.
	maxMetaBytes, maxMetaFiles = 16 << 20, 10_000
)

// errStalled says that an upload did not move.
var errStalled = fmt.Errorf("no byte was taken for %s", uploadStall)

// errOld says that an upload took so long that what is there of it may be removed at any time.
var errOld = errors.New("it took too long: cut-off uploads of that age are removed from buckets")

// uploadState is how far a window is.
type uploadState string

// States of windows.
const (
	waitingForTurn    uploadState = "waiting-for-turn"
	waitingForHealing uploadState = "waiting-for-healing"
	staging           uploadState = "staging"
	uploading         uploadState = "uploading"
	uploadCovered     uploadState = "covered"
	uploadFailed      uploadState = "failed"
)

// windowStatus is how far a window is that this replica has data of. Times of the window are Unix milliseconds.
type windowStatus struct {
	Begin int64       `json:"begin"`
	End   int64       `json:"end"`
	State uploadState `json:"state"`
	// Since is from when on it has been in that state.
	Since time.Time `json:"since"`
	// By is the replica that uploaded it, or that uploads it.
	By      string `json:"by,omitempty"`
	Block   string `json:"block,omitempty"`
	Problem string `json:"problem,omitempty"`
	// Done and Total are bytes of the upload that is under way.
	Done  int64 `json:"done_bytes,omitempty"`
	Total int64 `json:"total_bytes,omitempty"`
}

// uploadStatus is how far all of them are, oldest first.
type uploadStatus struct {
	// Backlog is how many windows are finished and not covered.
	Backlog int            `json:"backlog"`
	Windows []windowStatus `json:"windows"`
	// Running are those of the windows that are being staged or uploaded.
	Running []windowStatus `json:"running"`
}

// uploader brings the windows that are finished into the bucket, one block each, unless others do.
type uploader struct {
	b     *Bucket
	dir   string
	now   func() time.Time // Tests replace it.
	stall time.Duration
	// began is when the process did: what was due before is counted from then.
	began time.Time

	// found says that what an earlier process left has been looked for.
	found bool
	// useless are staged blocks that are of no window.
	useless []*staged

	mtx     sync.Mutex
	windows map[int64]*window
	// checked are blocks of others that have all that their meta.json promises, and those that this process uploaded.
	checked map[ulid.ULID]struct{}
	empty   map[int64]time.Time // Windows that turned out to hold no sample, and when the newest of their blocks was made.

	uploads, failures, bytes, skipped, broken prometheus.Counter
	backlog, last                             prometheus.Gauge
}

func newUploader(b *Bucket) *uploader {
	reg := promauto.With(b.o.Registerer)
	counter := func(name, help string) prometheus.Counter {
		return reg.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return reg.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	return &uploader{
		b: b, dir: filepath.Join(b.o.Dir, "upload"), now: time.Now, stall: uploadStall, began: time.Now(),
		checked: map[ulid.ULID]struct{}{}, windows: map[int64]*window{}, empty: map[int64]time.Time{},
		uploads:  counter("tocsin_bucket_uploads_total", "Windows that this replica uploaded."),
		failures: counter("tocsin_bucket_upload_failures_total", "Attempts to upload a window that failed. They are repeated."),
		bytes:    counter("tocsin_bucket_uploaded_bytes_total", "Bytes of blocks that this replica sent to the bucket, with those of attempts that failed."),
		skipped:  counter("tocsin_bucket_windows_skipped_total", "Windows that another replica uploaded while this one had its turn before it."),
		broken:   counter("tocsin_bucket_verify_failures_total", "Blocks of the bucket that lacked something of what their meta.json says."),
		backlog:  gauge("tocsin_bucket_backlog_windows", "Windows that are finished and not in the bucket, whole."),
		last:     gauge("tocsin_bucket_last_upload_timestamp_seconds", "When this replica last uploaded a window, 0 for not since it started."),
	}
}

// run works until ctx ends. What fails is tried again.
func (u *uploader) run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-u.b.o.Store.Ready():
	}
	every := min(30*time.Second, max(200*time.Millisecond, u.b.o.Window/60))
	failures := 0
	for {
		wait := every
		if err := u.round(ctx); err != nil && ctx.Err() == nil {
			wait = max(every, pause(failures))
			failures++
			u.b.logger.Warn("cannot upload to the bucket; it is tried again", "in", wait.Round(time.Millisecond), "err", u.redact(err))
		} else {
			failures = 0
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// pause is how long to wait after so many failures before.
func pause(failures int) time.Duration {
	d := min(uploadRetryMax, uploadRetry<<min(failures, 16))
	return d*9/10 + rand.N(d/5+1)
}

func (u *uploader) redact(err error) string { return u.b.o.Config.Bucket.Redact(err.Error()) }

// round looks at all windows once, and uploads those whose turn it is, oldest first. An error is one of the bucket or of the
// store as a whole; those of single windows are logged, and tried again.
func (u *uploader) round(ctx context.Context) error {
	if !u.found {
		if err := u.find(); err != nil {
			return err
		}
	}
	list, err := u.finished()
	if err != nil {
		return err
	}
	v, err := u.b.catalogue.last()
	if err != nil {
		if v, err = u.b.catalogue.look(ctx); err != nil {
			return err
		}
		// Some may have turned out to be needless.
		if list, err = u.finished(); err != nil {
			return err
		}
	}
	if u.due(v, list) > 0 || len(u.useless) > 0 {
		// What is uploaded is decided by what is there now.
		if v, err = u.b.catalogue.look(ctx); err != nil {
			return err
		}
	}
	for len(u.useless) > 0 {
		if err := u.drop(ctx, u.useless[0]); err != nil {
			return err
		}
		u.useless = u.useless[1:]
	}
	var g errgroup.Group
	g.SetLimit(uploadsAtOnce)
	for _, w := range list {
		if !u.turn(v, w) {
			continue
		}
		g.Go(func() error {
			if err := u.process(ctx, w); err != nil && ctx.Err() == nil {
				u.failed(w, err)
			}
			return nil
		})
		if ctx.Err() != nil {
			break
		}
	}
	_ = g.Wait() // It has none.
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if v, err = u.b.catalogue.last(); err != nil {
		return err
	}
	u.due(v, list)
	return u.verify(ctx, v)
}

// find takes over what an earlier process staged.
func (u *uploader) find() error {
	if err := os.MkdirAll(u.dir, 0o750); err != nil {
		return fmt.Errorf("create the folder for staged blocks: %w", err)
	}
	left, err := u.leftovers()
	if err != nil {
		return err
	}
	for _, s := range left {
		w := u.windows[s.begin]
		if s.meta == nil || w != nil && w.staged != nil {
			u.useless = append(u.useless, s)
			continue
		}
		u.window(s.begin, u.began).staged = s
	}
	u.found = true
	return nil
}

func (u *uploader) failed(w *window, err error) {
	u.failures.Inc()
	wait := pause(w.failures)
	w.failures++
	w.retry = u.now().Add(wait)
	problem := u.redact(err)
	u.say(w, uploadFailed, func(s *windowStatus) { s.Problem = problem })
	u.b.logger.Warn("cannot upload a window; it is tried again", "window", time.UnixMilli(w.begin).UTC(),
		"in", wait.Round(time.Millisecond), "failures", w.failures, "err", problem)
}

// fresh is a look at the bucket that an upload may rely on.
func (u *uploader) fresh(ctx context.Context) (*view, error) {
	v, err := u.b.catalogue.last()
	if err == nil && time.Since(v.at) < min(uploadFresh, u.b.o.Window/720) {
		return v, nil
	}
	return u.b.catalogue.look(ctx)
}

// process brings a window into the bucket, or finds that it is there, and takes away what was staged for it.
func (u *uploader) process(ctx context.Context, w *window) error {
	// Before its blocks are read: what is healed later is not in them.
	whole := u.b.whole(w.begin, w.end)
	if w.staged != nil && whole && !w.staged.whole {
		if err := u.take(ctx, w); err != nil {
			return err
		}
	}
	if w.staged == nil {
		u.say(w, staging, func(s *windowStatus) { s.By = u.b.o.Replica })
		s, err := u.local(ctx, w, whole)
		if err != nil {
			return err
		}
		if s == nil {
			u.mtx.Lock()
			u.empty[w.begin] = w.made
			u.mtx.Unlock()
			return nil
		}
		w.staged = s
	}
	s := w.staged
	v, err := u.fresh(ctx)
	if err != nil {
		return err
	}
	// Another may have uploaded it, or this replica, before it was killed.
	if better, there := v.covered[w.begin]; better || there && !s.whole || u.needless(w.begin) {
		return u.take(ctx, w)
	}
	there, err := u.readable(ctx, s.id)
	if err != nil {
		return err
	}
	if !labels.Equal(config.Shared(labels.FromMap(s.meta.Thanos.Labels)), u.b.shared()) {
		// What is there by that name, if anything, is not what the cluster is called now.
		if s, err = u.rename(ctx, s, there, "the external labels are others now"); err != nil {
			return err
		}
		w.staged, there = s, false
	}
	if !there || !u.b.catalogue.trusted(s.id) {
		if u.b.catalogue.spoiled(w.begin) {
			// What broke the block that is there may be in the local data: then they would be uploaded again and again.
			if err := readWhole(ctx, u.b.kit, s.dir, s.meta, func() {}); err != nil {
				return fmt.Errorf("the block of the window in the bucket is broken, and the local data are, too: %w", err)
			}
		}
		if u.left(s.id, uploadBegins) <= 0 {
			if s, err = u.rename(ctx, s, there, "what was uploaded by the old one is so old that it may be removed at any time"); err != nil {
				return err
			}
			w.staged = s
		}
		if err := u.upload(ctx, w, s); err != nil {
			return err
		}
		u.mtx.Lock()
		u.checked[s.id] = struct{}{}
		u.mtx.Unlock()
	}
	if v, err = u.b.catalogue.look(ctx); err != nil {
		return err
	}
	if better, there := v.covered[w.begin]; !better && (!there || s.whole) {
		return fmt.Errorf("block %s was uploaded, and the bucket does not list it yet", s.id)
	}
	if err := u.take(ctx, w); err != nil {
		return err
	}
	w.failures, w.retry = 0, time.Time{}
	return nil
}

// left is how long it takes until a name is as old as that part of the age at which what has no meta.json is removed.
func (u *uploader) left(id ulid.ULID, part float64) time.Duration {
	return time.Duration(part*float64(u.b.compactor.deleteDelay)) - u.now().Sub(ulid.Time(id.Time()))
}

// local stages the window.
func (u *uploader) local(ctx context.Context, w *window, whole bool) (*staged, error) {
	// What came late is otherwise written with the next window.
	if err := u.b.o.Store.WriteOutOfOrder(ctx, w.end); err != nil {
		return nil, err
	}
	all, err := u.b.o.Store.Blocks()
	if err != nil {
		return nil, fmt.Errorf("list local blocks: %w", err)
	}
	blocks := slices.DeleteFunc(all, func(b store.LocalBlock) bool {
		return b.Meta.MaxTime <= w.begin || w.end <= b.Meta.MinTime
	})
	if len(blocks) == 0 {
		return nil, errors.New("the local blocks of the window are gone")
	}
	return u.stage(ctx, w.begin, whole, blocks)
}

// upload sends the staged block, meta.json last. What an earlier attempt sent is not sent again.
func (u *uploader) upload(ctx context.Context, w *window, s *staged) error {
	total, err := blockBytes(s.dir)
	if err != nil {
		return fmt.Errorf("look at staged block %s: %w", s.id, err)
	}
	w.bytes.Store(0)
	u.say(w, uploading, func(st *windowStatus) { st.By, st.Block, st.Total = u.b.o.Replica, s.id.String(), total })
	logger := u.b.logger.With("block", s.id, "window", time.UnixMilli(w.begin).UTC(), "whole", s.whole)
	logger.Info("uploading a window", "series", s.meta.Stats.NumSeries, "samples", s.meta.Stats.NumSamples, "bytes", total)
	start := time.Now()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(u.stall, func() { cancel(errStalled) })
	defer stalled.Stop()
	old := time.AfterFunc(u.left(s.id, uploadEnds), func() { cancel(errOld) })
	defer old.Stop()
	ended := make(chan struct{})
	var told sync.WaitGroup
	told.Go(func() {
		ticker := time.NewTicker(uploadSayEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ended:
				return
			case <-ticker.C:
				done := min(w.bytes.Load(), total)
				logger.Info("uploading", "bytes", done, "percent", 100*done/max(total, 1))
			}
		}
	})
	bkt := &counting{Bucket: u.b.bkt, dir: u.dir, again: s.tried, took: func(n int64) {
		w.bytes.Add(n)
		u.bytes.Add(float64(n))
		stalled.Reset(u.stall)
	}, skip: func(n int64) { w.bytes.Add(n) }}
	s.tried = true
	err = block.Upload(ctx, u.b.kit, bkt, s.dir, metadata.SHA256Func, objstore.WithUploadConcurrency(uploadFiles))
	close(ended)
	told.Wait()
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errStalled) || errors.Is(cause, errOld) {
			err = cause
		}
		return fmt.Errorf("upload block %s: %w", s.id, err)
	}
	u.uploads.Inc()
	u.last.Set(float64(u.now().UnixMilli()) / 1000)
	logger.Info("uploaded a window", "series", s.meta.Stats.NumSeries, "samples", s.meta.Stats.NumSamples, "bytes", total,
		"took", time.Since(start).Round(time.Millisecond))
	return nil
}

func blockBytes(dir string) (n int64, err error) {
	files := []string{block.IndexFilename}
	for _, f := range block.GetSegmentFiles(dir) {
		files = append(files, filepath.Join(block.ChunksDirname, f))
	}
	for _, f := range files {
		info, err := os.Stat(filepath.Join(dir, f))
		if err != nil {
			return 0, err
		}
		n += info.Size()
	}
	return n, nil
}

// take takes away what was staged for a window.
func (u *uploader) take(ctx context.Context, w *window) error {
	if err := u.drop(ctx, w.staged); err != nil {
		return err
	}
	w.staged = nil
	return nil
}

// drop removes a staged block, and before it, if it is no block yet, what there is of it in the bucket: as long as that fails, its
// name is known here.
func (u *uploader) drop(ctx context.Context, s *staged) error {
	if s.tried {
		there, err := u.readable(ctx, s.id)
		if err != nil {
			return err
		}
		if !there {
			if err := u.withdraw(ctx, s.id); err != nil {
				return err
			}
		}
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove a staged block: %w", err)
	}
	return nil
}

// withdraw removes from the bucket what is there of a block that is none yet.
func (u *uploader) withdraw(ctx context.Context, id ulid.ULID) error {
	if err := block.Delete(ctx, u.b.kit, u.b.bkt, id); err != nil {
		return fmt.Errorf("remove what was uploaded of block %s: %w", id, err)
	}
	u.b.logger.Info("removed what was uploaded of a block that is not needed any more", "block", id)
	return nil
}

// readable tells whether a block has a meta.json that can be read. Listings may lag behind; this does not.
func (u *uploader) readable(ctx context.Context, id ulid.ULID) (_ bool, err error) {
	name := path.Join(id.String(), block.MetaFilename)
	r, err := u.b.bkt.ReaderWithExpectedErrs(u.b.bkt.IsObjNotFoundErr).Get(ctx, name)
	if err != nil {
		if u.b.bkt.IsObjNotFoundErr(err) {
			return false, nil
		}
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	b, err := io.ReadAll(io.LimitReader(r, maxMetaBytes))
	if err = errors.Join(err, r.Close()); err != nil {
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	var meta metadata.Meta
	return json.Unmarshal(b, &meta) == nil && meta.ULID == id, nil
}

// status is how far everything is.
func (u *uploader) status() uploadStatus {
	by := u.b.holders()
	st := uploadStatus{Windows: []windowStatus{}, Running: []windowStatus{}}
	u.mtx.Lock()
	defer u.mtx.Unlock()
	for _, begin := range slices.Sorted(maps.Keys(u.windows)) {
		w := u.windows[begin]
		s := w.status
		switch s.State {
		case uploadCovered:
			s.By, s.Block = by[begin].By, by[begin].Block
		case uploading:
			s.Done = min(w.bytes.Load(), s.Total)
		}
		st.Windows = append(st.Windows, s)
		if s.State == staging || s.State == uploading {
			st.Running = append(st.Running, s)
		}
		if s.State != uploadCovered {
			st.Backlog++
		}
	}
	return st
}
