package bucket

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/block/metadata"
	"github.com/thanos-io/thanos/pkg/compact"
	"github.com/thanos-io/thanos/pkg/compact/downsample"
	"github.com/thanos-io/thanos/pkg/dedup"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// What Thanos does with windows of two hours; shorter windows scale it down.
const (
	compactEvery     = 5 * time.Minute
	deleteDelay      = 48 * time.Hour
	consistencyDelay = 30 * time.Minute
	backOffMax       = 6 * time.Hour
	// metaTimeout bounds one look at the bucket.
	metaTimeout = 5 * time.Minute
	// maxIndexBytes is what an index can address.
	maxIndexBytes = 64 << 30
	// fileConcurrency is how many files of a block are copied at the same time. Blocks are copied one after the other.
	fileConcurrency = 4
)

// patience is for how many windows a block that is not whole waits for one that is, before it is compacted as it is.
const patience = 24

// compactor merges the blocks of the cluster into larger ones, makes downsampled ones of them, and deletes what is old. Each
// group of blocks is one replica's, by rendezvous hashing. Two that both believe to be elected make two blocks of the same
// sources, of which the next look deletes one.
type compactor struct {
	b      *Bucket
	logger *slog.Logger
	kit    kitLogger
	dir    string

	syncer   *compact.Syncer
	grouper  *grouper
	bucket   *compact.BucketCompactor
	cleaner  *compact.BlocksCleaner
	todo     *compact.CompactionProgressCalculator
	deleted  *block.IgnoreDeletionMarkFilter
	marked   *compact.GatherNoCompactionMarkFilter
	unsample *downsample.GatherNoDownsampleMarkFilter

	every, deleteDelay, backOffMax time.Duration
	// free refuses with store.ErrNoSpace to write so many bytes to the disk, which is the store's.
	free func(need int64) error

	compactions   prometheus.Counter
	failures      prometheus.Counter
	skips         prometheus.Counter
	downsamplings prometheus.Counter
	markedDelete  prometheus.Counter
	markedBroken  prometheus.Counter
	partials      prometheus.Counter
	partialErrs   prometheus.Counter
	partialTries  prometheus.Counter

	mtx      sync.Mutex
	job      *job
	last     *compactResult
	backOffs map[string]backOff
	// broken are the blocks that were found broken here, also where the mark could not be written.
	broken map[ulid.ULID]string
	// remade are the broken downsampled blocks that the last look saw, and what was made anew in their place.
	remade map[ulid.ULID]ulid.ULID
	state  compactStatus
}

// compactStatus is what compaction does and has done, for the API.
type compactStatus struct {
	Groups []compactGroup `json:"groups"`
	// TodoCompactions of TodoBlocks blocks are left in the groups that are there, whoever is elected for them.
	TodoCompactions  int             `json:"todo_compactions"`
	TodoBlocks       int             `json:"todo_blocks"`
	TodoDownsampling int             `json:"todo_downsampling"`
	Running          *compactRunning `json:"running,omitempty"`
	Last             *compactResult  `json:"last,omitempty"`
	// Quarantined are blocks that compaction leaves alone, because they are marked so.
	Quarantined []blockReason `json:"no_compact"`
	// Waiting are blocks that are left alone for now.
	Waiting           []blockReason `json:"waiting"`
	MarkedForDeletion []blockReason `json:"marked_for_deletion"`
	Looked            time.Time     `json:"looked,omitzero"`
	Err               string        `json:"err,omitempty"`
}

// compactGroup is a group of blocks that can be compacted with each other.
type compactGroup struct {
	Key        string            `json:"key"`
	Labels     map[string]string `json:"labels"`
	Resolution int64             `json:"resolution_ms"`
	Blocks     int               `json:"blocks"`
	MinTime    int64             `json:"from"`
	MaxTime    int64             `json:"to"`
	// Replica is the one that is elected.
	Replica string `json:"replica"`
	// Failures in a row, the last of which was Err, make the group rest until Until.
	Failures int       `json:"failures,omitempty"`
	Err      string    `json:"err,omitempty"`
	Until    time.Time `json:"until,omitzero"`
}

// compactRunning is the work that is going on. Series of at most SeriesMax are written.
type compactRunning struct {
	Work      string      `json:"work"`
	Phase     string      `json:"phase"`
	Began     time.Time   `json:"began"`
	Blocks    []ulid.ULID `json:"blocks"`
	Bytes     int64       `json:"bytes"`
	Series    uint64      `json:"series"`
	SeriesMax uint64      `json:"series_max"`
}

// compactResult is how the last piece of work ended.
type compactResult struct {
	Work    string      `json:"work"`
	Began   time.Time   `json:"began"`
	Ended   time.Time   `json:"ended"`
	Blocks  []ulid.ULID `json:"blocks"`
	Results []ulid.ULID `json:"results,omitempty"`
	Err     string      `json:"err,omitempty"`
}

// blockReason is a block, and why it is mentioned.
type blockReason struct {
	Block  ulid.ULID `json:"block"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since,omitzero"`
}

func newCompactor(b *Bucket) (*compactor, error) {
	var (
		window = b.o.Window
		own    = promauto.With(b.o.Registerer)
		kit    = kitLogger{slog.New(demoted{b.logger.Handler()})}
		// Every replica can be the next that is elected: all see the marks.
		conc = metaConcurrency
	)
	c := &compactor{
		b: b, logger: b.logger, kit: kit,
		dir:         filepath.Join(b.o.Dir, "compact"),
		every:       min(compactEvery, max(time.Second, window/12)),
		deleteDelay: min(deleteDelay, patience*window),
		free:        b.o.Store.Room,
		backOffs:    map[string]backOff{},
		broken:      map[ulid.ULID]string{},
		compactions: own.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_bucket_compactions_total",
			Help: "Blocks that were compacted of others and uploaded.",
		}),
		failures: own.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_bucket_compaction_failures_total",
			Help: "Compactions and downsamplings that failed.",
		}),
		skips: own.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_bucket_compactions_skipped_total",
			Help: "Compactions and downsamplings that were put off for lack of disk space.",
		}),
		downsamplings: own.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_bucket_downsamplings_total",
			Help: "Downsampled blocks that were made and uploaded.",
		}),
	}
	c.backOffMax = max(c.every, min(backOffMax, 3*window))
	own.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tocsin_bucket_quarantined_blocks",
		Help: "Blocks of the cluster that compaction leaves alone because they are broken.",
	}, func() float64 { return float64(len(c.quarantined())) })

	// Thanos makes these in its main, so we do, by the same names.
	marks := own.NewCounterVec(prometheus.CounterOpts{
		Name: "thanos_compact_blocks_marked_total",
		Help: "Total number of blocks marked in compactor.",
	}, []string{"marker", "reason"})
	c.markedDelete = marks.WithLabelValues(metadata.DeletionMarkFilename, "")
	c.markedBroken = marks.WithLabelValues(metadata.NoCompactMarkFilename, brokenReason)
	outOfOrder := marks.WithLabelValues(metadata.NoCompactMarkFilename, metadata.OutOfOrderChunksNoCompactReason)
	collected := own.NewCounter(prometheus.CounterOpts{
		Name: "thanos_compact_garbage_collected_blocks_total",
		Help: "Total number of blocks marked for deletion by compactor.",
	})
	cleaned := own.NewCounter(prometheus.CounterOpts{
		Name: "thanos_compact_blocks_cleaned_total",
		Help: "Total number of blocks deleted in compactor.",
	})
	c.partialErrs = own.NewCounter(prometheus.CounterOpts{
		Name: "thanos_compact_block_cleanup_failures_total",
		Help: "Failures encountered while deleting blocks in compactor.",
	})
	c.partialTries = own.NewCounter(prometheus.CounterOpts{
		Name: "thanos_compact_aborted_partial_uploads_deletion_attempts_total",
		Help: "Total number of started deletions of blocks that are assumed aborted and only partially uploaded.",
	})
	c.partials = cleaned

	// Marked blocks stay in sight for half the delay, so that nobody compacts around a block whose replacement is not seen yet.
	c.deleted = block.NewIgnoreDeletionMarkFilter(kit, b.bkt, c.deleteDelay/2, conc)
	c.marked = compact.NewGatherNoCompactionMarkFilter(kit, b.bkt, conc)
	c.unsample = downsample.NewGatherNoDownsampleMarkFilter(kit, b.bkt, conc)
	duplicates := block.NewDeduplicateFilter(conc)
	// The catalogue's fetcher bears the metrics.
	fetcher := b.metas.NewMetaFetcher(nil, []block.MetadataFilter{
		clusterFilter{b.shared},
		block.NewConsistencyDelayMetaFilterWithoutMetrics(kit, min(consistencyDelay, window/4)),
		c.deleted,
		block.NewReplicaLabelRemover(kit, []string{config.ReplicaLabel, config.ZoneLabel}),
		c.marked,
		remadeFilter{c},
		duplicates,
		c.unsample,
	})
	var err error
	c.syncer, err = compact.NewMetaSyncer(kit, b.o.Registerer, b.bkt, fetcher, duplicates, c.deleted, c.markedDelete, collected, metaTimeout)
	if err != nil {
		return nil, fmt.Errorf("prepare compaction: %w", err)
	}

	ranges := compactRanges(window)
	// The store's own compactor has these metrics on the registry; the run's context comes with the populator.
	tsdbCompactor, err := tsdb.NewLeveledCompactor(context.Background(), nil, slog.New(demoted{b.logger.Handler()}), ranges,
		downsample.NewPool(), checked(dedup.NewChunkSeriesMerger()))
	if err != nil {
		return nil, fmt.Errorf("prepare compaction: %w", err)
	}
	c.grouper = &grouper{c: c, all: compact.NewDefaultGrouper(kit, b.bkt, false, true, b.o.Registerer, c.markedDelete, collected, outOfOrder,
		metadata.SHA256Func, fileConcurrency, 1)}
	levels := compact.NewPlanner(kit, ranges, c.marked)
	c.todo = compact.NewCompactionProgressCalculator(b.o.Registerer, levels)
	planner := compact.WithVerticalCompactionDownsampleFilter(
		compact.WithLargeTotalIndexSizeFilter(levels, b.bkt, maxIndexBytes,
			marks.WithLabelValues(metadata.NoCompactMarkFilename, metadata.IndexSizeExceedingNoCompactReason)),
		b.bkt, marks.WithLabelValues(metadata.NoCompactMarkFilename, metadata.DownsampleVerticalCompactionNoCompactReason))
	c.cleaner = compact.NewBlocksCleaner(kit, b.bkt, c.deleted, c.deleteDelay, cleaned, c.partialErrs)
	c.bucket, err = compact.NewBucketCompactorWithCheckerAndCallback(kit, c.syncer, c.grouper, suspicious{planner, c}, tsdbCompactor,
		compact.DefaultBlockDeletableChecker{}, lifecycle{c: c}, c.compactDir(), b.bkt, 1, true, nil)
	if err != nil {
		return nil, fmt.Errorf("prepare compaction: %w", err)
	}
	return c, nil
}

// compactRanges are Thanos's levels for a window of two hours: 2h, 8h, 2d, 14d.
func compactRanges(window time.Duration) []int64 {
	w := window.Milliseconds()
	return []int64{w, 4 * w, 24 * w, 168 * w}
}

func (c *compactor) compactDir() string { return filepath.Join(c.dir, "groups") }

func freeBytes(dir string) (uint64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("look at the free disk space: %w", err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// run compacts until ctx ends. Whatever fails is tried again later: it never ends the process, nor the rest of the work.
func (c *compactor) run(ctx context.Context) error {
	// What is left from before a kill may be half a block.
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("clean the work directory of the compaction: %w", err)
	}
	var (
		quiet    *view
		replicas []string
	)
	for {
		v, _ := c.b.catalogue.last()
		if quiet == nil || v == nil || time.Since(quiet.at) > c.b.o.Window/2 || !sameBlocks(quiet, v) || !slices.Equal(replicas, c.b.o.Replicas()) {
			quiet, replicas = nil, c.b.o.Replicas()
			idle, err := c.round(ctx)
			switch {
			case err != nil && ctx.Err() == nil:
				c.logger.Warn("cannot compact the bucket; it is tried again", "every", c.every, "err", err)
			case idle:
				// Each look at the marks costs three requests a block: not without need.
				quiet = v
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.every):
		}
	}
}

// round does what is to be done now and this replica's. It is idle when it found nothing to do, nor to be done later.
func (c *compactor) round(ctx context.Context) (idle bool, err error) {
	if err := os.MkdirAll(c.dir, 0o750); err != nil {
		return false, fmt.Errorf("make the work directory of the compaction: %w", err)
	}
	idle = true
	if err := c.sync(ctx); err != nil {
		return false, err
	}
	for _, g := range c.status().Groups {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if c.resting(g.Key) {
			idle = false
			continue
		}
		if !c.elected("compact/" + g.Key) {
			continue
		}
		c.grouper.only = g.Key
		// Before each compaction it looks at the bucket again.
		if err := c.bucket.Compact(ctx); err != nil {
			if ctx.Err() != nil {
				c.drop()
				return false, ctx.Err()
			}
			idle = false
			c.failed(ctx, g.Key, "compact the group", err)
			continue
		}
		c.succeeded(g.Key)
		c.end(nil)
	}
	// From raw to 5m, from 5m to 1h.
	for range 2 {
		if err := c.sync(ctx); err != nil {
			return false, err
		}
		n, err := c.downsample(ctx)
		if err != nil {
			return false, err
		}
		if n == 0 {
			break
		}
		idle = false
	}
	if c.elected("retention/") {
		if err := c.retain(ctx); err != nil {
			return false, err
		}
	}
	return idle && !slices.ContainsFunc(c.toDownsample(c.syncer.Metas()), c.ownDownsampling), nil
}

// sync looks at the bucket, and writes down what is there to do.
func (c *compactor) sync(ctx context.Context) error {
	if err := c.look(ctx); err != nil {
		if ctx.Err() == nil {
			c.mtx.Lock()
			c.state.Err = err.Error()
			c.mtx.Unlock()
		}
		return err
	}
	return nil
}

func (c *compactor) look(ctx context.Context) error {
	if err := c.syncer.SyncMetas(ctx); err != nil {
		return fmt.Errorf("look at the blocks of the bucket: %w", err)
	}
	metas := c.syncer.Metas()
	s := c.sort(metas, time.Now())
	groups, err := c.grouper.all.Groups(s.ready)
	if err != nil {
		return fmt.Errorf("group the blocks of the bucket: %w", err)
	}
	state := compactStatus{Looked: time.Now(), TodoDownsampling: len(c.toDownsample(metas))}
	for _, g := range groups {
		group := compactGroup{
			Key: g.Key(), Labels: g.Labels().Map(), Resolution: g.Resolution(), Blocks: len(g.IDs()),
			MinTime: g.MinTime(), MaxTime: g.MaxTime(),
		}
		state.Groups = append(state.Groups, group)
	}
	// This takes the groups apart.
	if err := c.todo.ProgressCalculate(ctx, groups); err != nil {
		return fmt.Errorf("plan what is to be compacted: %w", err)
	}
	state.TodoCompactions = int(gaugeValue(c.todo.NumberOfCompactionRuns))
	state.TodoBlocks = int(gaugeValue(c.todo.NumberOfCompactionBlocks))
	for id, reason := range s.waiting {
		state.Waiting = append(state.Waiting, blockReason{Block: id, Reason: reason})
	}
	for id, mark := range c.deleted.DeletionMarkBlocks() {
		state.MarkedForDeletion = append(state.MarkedForDeletion, blockReason{id, mark.Details, saneTime(time.Unix(mark.DeletionTime, 0))})
	}
	c.mtx.Lock()
	c.state = state
	c.mtx.Unlock()
	return nil
}

func gaugeValue(g prometheus.Gauge) float64 {
	var m dto.Metric
	if err := g.Write(&m); err != nil {
		return 0
	}
	return m.GetGauge().GetValue()
}

// status is what is going on, as of now.
func (c *compactor) status() compactStatus {
	replicas := c.b.o.Replicas()
	quarantined := c.marks()
	c.mtx.Lock()
	defer c.mtx.Unlock()
	s := c.state
	s.Groups = slices.Clone(s.Groups)
	for i := range s.Groups {
		g := &s.Groups[i]
		if o := order("compact/"+g.Key, replicas); len(o) > 0 {
			g.Replica = o[0]
		}
		if b, ok := c.backOffs[g.Key]; ok {
			g.Failures, g.Err, g.Until = b.failures, b.err, b.until
		}
	}
	s.Quarantined = quarantined
	sortReasons(s.Quarantined)
	s.Waiting = slices.Clone(s.Waiting)
	sortReasons(s.Waiting)
	s.MarkedForDeletion = slices.Clone(s.MarkedForDeletion)
	sortReasons(s.MarkedForDeletion)
	s.Last = c.last
	if j := c.job; j != nil {
		s.Running = &compactRunning{Work: j.key, Phase: j.phase, Began: j.began, Blocks: ids(j.plan), Bytes: j.bytes, Series: j.series.Load(), SeriesMax: j.total}
	}
	return s
}

func sortReasons(r []blockReason) {
	slices.SortFunc(r, func(a, b blockReason) int { return a.Block.Compare(b.Block) })
}

func ids(metas []*metadata.Meta) []ulid.ULID {
	all := make([]ulid.ULID, len(metas))
	for i, m := range metas {
		all[i] = m.ULID
	}
	return all
}

// elected tells whether a piece of work is this replica's.
func (c *compactor) elected(work string) bool {
	return rank(work, c.b.o.Replica, c.b.o.Replicas()) == 0
}

// sorted are the blocks of the cluster by what compaction may do with them.
type sorted struct {
	ready   map[ulid.ULID]*metadata.Meta
	waiting map[ulid.ULID]string
	// superseded hold nothing that a compacted block does not hold: they can go.
	superseded map[ulid.ULID]string
}

// sort finds out which blocks may be compacted now. A window that was uploaded more than once is not merged sample by sample if
// one of its blocks is whole: that one has everything, and where two replicas' samples are merged some get lost at each seam. The
// others wait until it is compacted, which proves that it can be read. While there is no whole one, the window waits for it.
func (c *compactor) sort(metas map[ulid.ULID]*metadata.Meta, now time.Time) sorted {
	var (
		s      = sorted{map[ulid.ULID]*metadata.Meta{}, map[ulid.ULID]string{}, map[ulid.ULID]string{}}
		length = c.b.o.Window.Milliseconds()
		broken = c.quarantined()
		proven = map[int64]ulid.ULID{} // The compacted block that has the window whole.
		whole  = map[int64]ulid.ULID{} // The block of the window that is compacted.
	)
	for id, m := range metas {
		if _, ok := broken[id]; ok || m.Thanos.Downsample.Resolution != 0 {
			continue
		}
		for _, source := range m.Compaction.Sources {
			start, all, ok := nameWindow(source, c.b.o.Window)
			switch {
			case !ok || !all:
			case source != id:
				proven[start] = id
			default:
				if first, ok := whole[start]; !ok || id.Compare(first) < 0 {
					whole[start] = id
				}
			}
		}
	}
	for id, m := range metas {
		if reason, ok := broken[id]; ok {
			// The planner has to know it, to plan around it; what it cannot know, because there is no mark, it must not see.
			if _, marked := c.marked.NoCompactMarkedBlocks()[id]; marked {
				s.ready[id] = m
			} else {
				s.waiting[id] = reason
			}
			continue
		}
		if m.MinTime > now.UnixMilli()+length {
			s.waiting[id] = "its samples are from the future"
			continue
		}
		start, all, ok := nameWindow(id, c.b.o.Window)
		if !ok || len(m.Compaction.Sources) != 1 || m.Compaction.Sources[0] != id || m.Thanos.Downsample.Resolution != 0 {
			s.ready[id] = m
			continue
		}
		first, isWhole := whole[start]
		compacted, isProven := proven[start]
		switch {
		case isProven:
			s.superseded[id] = fmt.Sprintf("block %s has the window, whole", compacted)
		case isWhole && first != id:
			s.waiting[id] = fmt.Sprintf("block %s has the window, whole; this one goes when that is compacted", first)
		case all || now.UnixMilli() > start+(1+patience)*length:
			s.ready[id] = m
		default:
			s.waiting[id] = fmt.Sprintf("the window was not whole at its upload; for %d windows a whole one is waited for", patience)
		}
	}
	return s
}

// grouper hands out one group of this replica's at a time, so that the bucket is looked at again before each compaction.
type grouper struct {
	c    *compactor
	all  *compact.DefaultGrouper
	only string
}

var _ compact.Grouper = (*grouper)(nil)

// Groups implements compact.Grouper.
func (g *grouper) Groups(metas map[ulid.ULID]*metadata.Meta) ([]*compact.Group, error) {
	if !g.c.elected("compact/" + g.only) {
		return nil, nil
	}
	groups, err := g.all.Groups(g.c.sort(metas, time.Now()).ready)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(groups, func(group *compact.Group) bool { return group.Key() != g.only }), nil
}

// clusterFilter lets only the cluster's blocks pass: others may live in the same bucket.
type clusterFilter struct{ shared func() labels.Labels }

var _ block.MetadataFilter = clusterFilter{}

// Filter implements block.MetadataFilter.
func (f clusterFilter) Filter(_ context.Context, metas map[ulid.ULID]*metadata.Meta, _, _ block.GaugeVec) error {
	shared := f.shared()
	maps.DeleteFunc(metas, func(_ ulid.ULID, m *metadata.Meta) bool {
		return len(m.Thanos.Labels) == 0 || !labels.Equal(config.Shared(labels.FromMap(m.Thanos.Labels)), shared)
	})
	return nil
}
