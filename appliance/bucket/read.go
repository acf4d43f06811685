package bucket

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/block/indexheader"
	"github.com/thanos-io/thanos/pkg/block/metadata"
	"github.com/thanos-io/thanos/pkg/dedup"
	thanosmodel "github.com/thanos-io/thanos/pkg/model"
	thanosquery "github.com/thanos-io/thanos/pkg/query"
	thanosstore "github.com/thanos-io/thanos/pkg/store"
	storecache "github.com/thanos-io/thanos/pkg/store/cache"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/store"
)

const (
	// maxReadSeries, maxReadChunks and maxReadBytes bound one select.
	maxReadSeries = 1_000_000
	maxReadChunks = 50_000_000
	maxReadBytes  = 4 << 30
	// indexCacheBytes bounds the postings and series that are kept in memory, indexCacheItem one of them.
	indexCacheBytes, indexCacheItem = 64 << 20, 16 << 20
	// readersAtOnce bounds the selects that run at once, readTimeout each of them.
	readersAtOnce, readTimeout = 20, time.Minute
	// readPatience is how long after a start queries wait until it is known what is in the bucket.
	readPatience = 3 * time.Second
	// readIdle is after how long without a query the index header of a block leaves memory.
	readIdle = 5 * time.Minute
	// lateWindows is how many windows before the last one may still be on their way: two wait for healing, and turns take their time.
	lateWindows = 6
	// anewEvery is how often it is tried to load anew what could not be read, while the bucket cannot be listed.
	anewEvery = 5 * time.Second
	// fromTheFuture is how far ahead of our clock data may be.
	fromTheFuture = 24 * time.Hour
	// neverALabel stands for the label that tells replicas apart, which none of the series has: blocks that overlap are told apart by that.
	neverALabel = "__tocsin_no_label__"
)

// reader answers from the blocks of the bucket. Their series are bare, as local ones are: labels of a block would take the place of
// a series' own of the same name.
type reader struct {
	b *Bucket
	// share is the bucket as it reads it.
	share *share
	store *thanosstore.BucketStore
	// reads is the store, without what it cannot read.
	reads   *skipping
	queries thanosquery.QueryableCreator
	dropped *prometheus.CounterVec
	failed  prometheus.Counter

	// loaded is a look at the bucket of which everything can be read; ready is closed with the first one.
	loaded atomic.Pointer[view]
	ready  chan struct{}
	once   sync.Once
	began  time.Time
	end    func() // of all that reads
	// leave are blocks that the store is to forget.
	leave atomic.Pointer[[]ulid.ULID]
}

func newReader(b *Bucket, reg prometheus.Registerer) (*reader, error) {
	own := promauto.With(b.o.Registerer)
	r := &reader{
		b: b, ready: make(chan struct{}), began: time.Now(),
		dropped: own.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_bucket_unread_blocks_total",
			Help: "Times that a look at the bucket left a block out of what queries read, by reason: foreign (of another cluster), future, replaced (another block has its windows whole), broken.",
		}, []string{"reason"}),
		failed: own.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_bucket_read_sync_failures_total",
			Help: "Attempts to load the list of blocks for queries that failed. They are repeated.",
		}),
	}
	var err error
	if r.share, err = newShare(b, r.loaded.Load); err != nil {
		return nil, err
	}
	cache, err := storecache.NewInMemoryIndexCacheWithConfig(b.kit, nil, reg, storecache.InMemoryIndexCacheConfig{
		MaxSize: thanosmodel.Bytes(indexCacheBytes), MaxItemSize: thanosmodel.Bytes(indexCacheItem),
	})
	if err != nil {
		return nil, fmt.Errorf("make the index cache: %w", err)
	}
	// No filter here asks the bucket for more than the listing but that for deletion marks.
	filters := []block.MetadataFilter{
		block.NewIgnoreDeletionMarkFilter(b.kit, b.bkt, b.compactor.deleteDelay/2, metaConcurrency),
		readable{r},
		block.NewDeduplicateFilter(metaConcurrency),
	}
	fetcher := b.metas.NewMetaFetcher(prometheus.WrapRegistererWithPrefix("read_", reg), filters)
	// Without a pool of chunks: in this process whoever reads still holds what would go back to it.
	r.store, err = thanosstore.NewBucketStore(r.share, fetcher, filepath.Join(b.o.Dir, "headers"),
		thanosstore.NewChunksLimiterFactory(maxReadChunks), thanosstore.NewSeriesLimiterFactory(maxReadSeries),
		thanosstore.NewBytesLimiterFactory(maxReadBytes), thanosstore.NewGapBasedPartitioner(thanosstore.PartitionerMaxGapSize),
		metaConcurrency, thanosstore.DefaultPostingOffsetInMemorySampling, false, true, readIdle,
		thanosstore.WithLogger(b.kit), thanosstore.WithRegistry(b.o.Registerer),
		thanosstore.WithIndexCache(cache),
		thanosstore.WithIndexHeaderLazyDownloadStrategy(indexheader.AlwaysLazyDownloadIndexHeader))
	if err != nil {
		return nil, fmt.Errorf("make the reader of the bucket: %w", err)
	}
	open, end := context.WithCancel(context.Background())
	r.end = end
	r.reads = newSkipping(open, b, r.store)
	r.queries = thanosquery.NewQueryableCreator(b.kit, prometheus.WrapRegistererWithPrefix("query_", reg), r.reads,
		readersAtOnce, readTimeout, dedup.AlgorithmPenalty, 0)
	return r, nil
}

// run loads and drops blocks as they come and go.
func (r *reader) run(ctx context.Context) error {
	every := min(lookEvery, max(time.Second, r.b.o.Window/uploadSteps))
	for {
		// Once the first look at the bucket succeeded. Why one does not is logged there.
		wait := every
		if v, err := r.b.catalogue.last(); err != nil {
			wait = min(every, time.Second)
		} else if r.b.catalogue.problem() == nil {
			if err := r.load(ctx, v); err != nil && ctx.Err() == nil {
				r.failed.Inc()
				r.b.logger.Warn("cannot load the blocks of the bucket for queries; it is tried again", "in", wait,
					"err", r.b.o.Config.Bucket.Redact(err.Error()))
			}
		}
		if len(r.reads.toLoadAnew()) > 0 {
			wait = min(every, anewEvery)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.b.catalogue.changed:
		case <-r.reads.again:
			// Whoever asked is answered already. Not at once again and again.
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(min(every, time.Second)):
			}
		case <-time.After(wait):
		}
	}
}

// load syncs, and has the store forget and load anew what it remembers an error of.
func (r *reader) load(ctx context.Context, v *view) error {
	anew := r.reads.toLoadAnew()
	if len(anew) > 0 {
		r.leave.Store(&anew)
		err := r.sync(ctx, v)
		r.leave.Store(nil)
		if err != nil {
			return err
		}
	}
	if err := r.sync(ctx, v); err != nil {
		return err
	}
	r.reads.loadedAnew(anew)
	return nil
}

// sync loads at least what a look at the bucket saw.
func (r *reader) sync(ctx context.Context, v *view) error {
	load := r.store.SyncBlocks
	if r.loaded.Load() == nil {
		load = r.store.InitialSync // It also removes what an earlier process left.
	}
	// An index header is made with this context, also later, when a query needs it.
	if err := load(pastCache(ctx)); err != nil {
		return fmt.Errorf("load blocks: %w", err)
	}
	r.loaded.Store(v)
	r.once.Do(func() { close(r.ready) })
	return nil
}

func (r *reader) close() error {
	r.end()
	r.share.close()
	return r.store.Close()
}

// At is the data of the bucket, at a resolution of at most that; 0 is every sample.
func (b *Bucket) At(resolution time.Duration) storage.Queryable {
	return b.reader.queries(true, []string{neverALabel}, nil, resolution.Milliseconds(), true, false, nil, thanosquery.NoopSeriesStatsReporter)
}

// errNotLoaded says that the bucket was not asked yet, or did not answer since the start.
var errNotLoaded = errors.New("the blocks of the bucket are not listed yet")

// known is what can be read from the bucket. After a start it waits for a moment until that is known.
func (b *Bucket) known() (*view, error) {
	if b.reader.loaded.Load() == nil {
		select {
		case <-b.reader.ready:
		case <-time.After(time.Until(b.reader.began.Add(readPatience))):
		}
	}
	v := b.reader.loaded.Load()
	if v == nil {
		if err := b.catalogue.problem(); err != nil {
			return nil, fmt.Errorf("%w: %s", errNotLoaded, b.o.Config.Bucket.Redact(err.Error()))
		}
		return nil, errNotLoaded
	}
	return v, nil
}

// Windows are those that can be read from the bucket and that reach into an interval, oldest first: of which the uploader had
// everything, and the others. What it does not keep any more is none.
func (b *Bucket) Windows(in store.Interval) (whole, others []store.Interval, err error) {
	v, err := b.known()
	if err != nil {
		return nil, nil, err
	}
	for _, begin := range slices.Sorted(maps.Keys(v.covered)) {
		i := store.Interval{From: begin - 1, To: begin + b.o.Window.Milliseconds()}
		switch {
		case i.Intersect(in).Empty() || b.uploader.needless(begin):
		case v.covered[begin]:
			whole = append(whole, i)
		default:
			others = append(others, i)
		}
	}
	return whole, others, nil
}

// Until is up to when, in Unix milliseconds, data can be read from the bucket: the end of the last window that is there whole, or the
// begin of one shortly before it that is not there, 0 where there is none. After a start it waits for a moment until that is known.
func (b *Bucket) Until() (int64, error) {
	v, err := b.known()
	if err != nil {
		return 0, err
	}
	end, shared, latest := int64(0), b.shared(), time.Now().Add(fromTheFuture).UnixMilli()
	for id, m := range v.blocks {
		if _, whole, ours := nameWindow(id, b.o.Window); ours && !whole || m.MaxTime > latest || !labels.Equal(config.Shared(labels.FromMap(m.Thanos.Labels)), shared) {
			continue
		}
		if end = max(end, m.MaxTime); m.Thanos.Downsample.Resolution == 0 && m.Compaction.Level == 1 {
			// The last one ends with its window.
			end = max(end, floor(m.MaxTime-1, b.o.Window.Milliseconds())+b.o.Window.Milliseconds())
		}
	}
	// A window before that may not be there yet: the replicas have it.
	length, begun := b.o.Window.Milliseconds(), false
	for begin := floor(end-1, length) - lateWindows*length; begin < end; begin += length {
		if _, there := v.covered[begin]; there {
			begun = true
		} else if begun && !b.uploader.needless(begin) {
			return begin, nil
		}
	}
	return end, nil
}

// readable leaves the blocks that queries may read, with their labels taken off.
type readable struct{ r *reader }

var errBlockMeta = errors.New("a block's meta.json contradicts itself")

// Filter implements block.MetadataFilter.
func (f readable) Filter(_ context.Context, metas map[ulid.ULID]*metadata.Meta, _, _ block.GaugeVec) error {
	shared := f.r.b.shared()
	latest := time.Now().Add(fromTheFuture).UnixMilli()
	whole, compacted := map[int64]ulid.ULID{}, map[int64]bool{}
	// What is in quarantine may be readable in part, and be all there is: it is read unless something better is there.
	broken := f.r.b.compactor.quarantined()
	better := func(id, other ulid.ULID) bool {
		_, a := broken[id]
		_, b := broken[other]
		return !a && b || a == b && id.Compare(other) < 0
	}
	drop := func(id ulid.ULID, reason string) {
		f.r.dropped.WithLabelValues(reason).Inc()
		delete(metas, id)
	}
	if leave := f.r.leave.Load(); leave != nil {
		for _, id := range *leave {
			delete(metas, id)
		}
	}
	for id, m := range metas {
		switch {
		case checkMeta(id, m) != nil:
			drop(id, "broken")
		case !labels.Equal(config.Shared(labels.FromMap(m.Thanos.Labels)), shared):
			drop(id, "foreign")
		case m.MaxTime > latest:
			drop(id, "future")
		case !f.r.b.catalogue.trusted(id):
			drop(id, "broken")
		default:
			if begin, ok, ours := nameWindow(id, f.r.b.o.Window); ours && ok {
				// Two replicas may have uploaded it: everybody reads the same one.
				if other, there := whole[begin]; !there || better(id, other) {
					whole[begin] = id
				}
			}
		}
	}
	for id := range remade(metas, broken) {
		drop(id, "replaced")
	}
	for id, m := range metas {
		if _, ok := broken[id]; ok {
			continue
		}
		for _, source := range m.Compaction.Sources {
			if begin, ok, ours := nameWindow(source, f.r.b.o.Window); ours && ok && source != id && m.Thanos.Downsample.Resolution == 0 {
				compacted[begin] = true
			}
		}
	}
	for id, m := range metas {
		if begin, _, ours := nameWindow(id, f.r.b.o.Window); ours {
			if compacted[begin] {
				drop(id, "replaced")
				continue
			}
			if best, there := whole[begin]; there && best != id {
				drop(id, "replaced")
				continue
			}
		}
		// The others use the same one.
		bare := *m
		bare.Thanos.Labels = map[string]string{}
		metas[id] = &bare
	}
	return nil
}

// checkMeta refuses what no program has written.
func checkMeta(id ulid.ULID, m *metadata.Meta) error {
	if m.ULID != id || m.MinTime > m.MaxTime || m.Thanos.Downsample.Resolution < 0 {
		return fmt.Errorf("block %s: %w", id, errBlockMeta)
	}
	return nil
}
