package bucket

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

	"github.com/tocsin-io/tocsin/appliance/config"
)

// lookEvery is how often the blocks of the bucket are listed, shorter where windows are; lookAgain is how soon after a failure.
const (
	lookEvery = 3 * time.Minute
	lookAgain = 20 * time.Second
)

// errNotLooked says that the bucket has not been listed yet.
var errNotLooked = errors.New("the bucket was not listed yet")

// catalogue knows which blocks are in the bucket, as of the last look.
type catalogue struct {
	b       *Bucket
	fetcher *block.MetaFetcher

	blocks  prometheus.Gauge
	partial prometheus.Gauge
	age     prometheus.GaugeFunc

	looking sync.Mutex    // Upstream's fetcher is for one at a time.
	changed chan struct{} // tells of a look that saw other blocks than the one before

	mtx  sync.Mutex
	view *view
	err  error // of the last look
	// bad are blocks that lack something of what their meta.json promises, and what.
	bad map[ulid.ULID]string
}

// view is what one look at the bucket saw. It is read-only.
type view struct {
	at time.Time
	// since is from when on no look failed.
	since time.Time
	// blocks are all with a readable meta.json, partial those without, and why.
	blocks  map[ulid.ULID]*metadata.Meta
	partial map[ulid.ULID]error
	// covered tells of each window that is there, by its begin, whether it is there whole.
	covered map[int64]bool
	// sampled are the windows that are there downsampled.
	sampled map[int64]bool
}

func newCatalogue(b *Bucket, reg prometheus.Registerer) *catalogue {
	own := promauto.With(b.o.Registerer)
	c := &catalogue{
		b:       b,
		fetcher: b.metas.NewMetaFetcher(reg, nil),
		bad:     map[ulid.ULID]string{},
		changed: make(chan struct{}, 1),
		blocks: own.NewGauge(prometheus.GaugeOpts{
			Name: "tocsin_bucket_blocks",
			Help: "Blocks in the bucket with a readable meta.json.",
		}),
		partial: own.NewGauge(prometheus.GaugeOpts{
			Name: "tocsin_bucket_partial_blocks",
			Help: "Blocks in the bucket without a readable meta.json: uploads that were cut off, or garbage.",
		}),
	}
	c.age = own.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tocsin_bucket_last_look_timestamp_seconds",
		Help: "When the blocks of the bucket were last listed without an error, 0 for never.",
	}, func() float64 {
		if v, err := c.last(); err == nil {
			return float64(v.at.UnixMilli()) / 1000
		}
		return 0
	})
	return c
}

// run looks again and again. What fails is tried again at the next look.
func (c *catalogue) run(ctx context.Context) error {
	every := min(lookEvery, max(time.Second, c.b.o.Window/12))
	for {
		wait := every
		if _, err := c.look(ctx); err != nil && ctx.Err() == nil {
			wait = min(every, lookAgain)
			c.b.logger.Warn("cannot list the bucket; it is tried again", "every", wait, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// look lists the bucket now.
func (c *catalogue) look(ctx context.Context) (*view, error) {
	c.looking.Lock()
	defer c.looking.Unlock()
	metas, partial, err := c.fetcher.Fetch(ctx)
	if err != nil {
		err = fmt.Errorf("list the blocks of the bucket: %w", err)
		c.mtx.Lock()
		c.err = err
		c.mtx.Unlock()
		return nil, err
	}
	now := time.Now()
	v := &view{at: now, since: now, blocks: metas, partial: partial}
	c.blocks.Set(float64(len(metas)))
	c.partial.Set(float64(len(partial)))
	c.mtx.Lock()
	defer c.mtx.Unlock()
	for id := range c.bad {
		if metas[id] == nil {
			delete(c.bad, id)
		}
	}
	if c.view != nil && c.err == nil {
		v.since = c.view.since
	}
	v.covered, v.sampled = covered(metas, c.brokenLocked(), c.b.shared(), c.b.o.Window)
	if c.view == nil || !sameBlocks(c.view, v) {
		select {
		case c.changed <- struct{}{}:
		default:
		}
	}
	c.view, c.err = v, nil
	return v, nil
}

// sameBlocks tells whether two looks saw the same. What is behind a name does not change.
func sameBlocks(a, b *view) bool {
	return maps.EqualFunc(a.blocks, b.blocks, func(*metadata.Meta, *metadata.Meta) bool { return true }) && len(a.partial) == len(b.partial)
}

// trust says what a block lacks of what its meta.json promises, "" for nothing. One that lacks something covers nothing.
func (c *catalogue) trust(id ulid.ULID, problem string) {
	c.mtx.Lock()
	before := c.bad[id]
	if problem == "" {
		delete(c.bad, id)
	} else {
		c.bad[id] = problem
	}
	c.mtx.Unlock()
	if before != problem {
		c.recount()
	}
}

// recount finds out anew which windows are covered, after a block has turned out to be broken, or not to be.
func (c *catalogue) recount() {
	shared := c.b.shared()
	c.mtx.Lock()
	defer c.mtx.Unlock()
	if c.view != nil {
		v := *c.view
		v.covered, v.sampled = covered(v.blocks, c.brokenLocked(), shared, c.b.o.Window)
		c.view = &v
	}
}

// broken are the blocks that are known to be broken, and why: those that lack something, and those in quarantine.
func (c *catalogue) broken() map[ulid.ULID]string {
	c.mtx.Lock()
	defer c.mtx.Unlock()
	return c.brokenLocked()
}

// spoiled tells whether the bucket has a broken block with data of the window that begins at begin.
func (c *catalogue) spoiled(begin int64) bool {
	v, err := c.last()
	if err != nil {
		return false
	}
	for id := range c.broken() {
		if m := v.blocks[id]; m != nil && slices.ContainsFunc(m.Compaction.Sources, func(source ulid.ULID) bool {
			start, _, ok := nameWindow(source, c.b.o.Window)
			return ok && start == begin
		}) {
			return true
		}
	}
	return false
}

func (c *catalogue) brokenLocked() map[ulid.ULID]string {
	all := c.b.compactor.quarantined()
	maps.Copy(all, c.bad)
	return all
}

// trusted tells whether nothing is known to be wrong with a block.
func (c *catalogue) trusted(id ulid.ULID) bool {
	c.mtx.Lock()
	defer c.mtx.Unlock()
	_, bad := c.bad[id]
	return !bad
}

// problem is why the last look failed, nil if it did not.
func (c *catalogue) problem() error {
	c.mtx.Lock()
	defer c.mtx.Unlock()
	return c.err
}

// last is what the last look that did not fail saw.
func (c *catalogue) last() (*view, error) {
	c.mtx.Lock()
	defer c.mtx.Unlock()
	switch {
	case c.view != nil:
		return c.view, nil
	case c.err != nil:
		return nil, c.err
	}
	return nil, errNotLooked
}

// lister is upstream's, which leaves 64 goroutines behind each time that the bucket fails in the middle of a listing.
type lister struct {
	kit kitLogger
	bkt objstore.InstrumentedBucketReader
}

var _ block.Lister = lister{}

// GetActiveAndPartialBlockIDs implements block.Lister.
func (l lister) GetActiveAndPartialBlockIDs(ctx context.Context, active chan<- block.ActiveBlockFetchData) (map[ulid.ULID]bool, error) {
	at := listed{InstrumentedBucketReader: l.bkt}
	if err := l.bkt.Iter(ctx, "", func(name string) error {
		at.names = append(at.names, name)
		return nil
	}); err != nil {
		return nil, err
	}
	partial, err := block.NewConcurrentLister(l.kit, at).GetActiveAndPartialBlockIDs(ctx, active)
	if err == nil {
		err = ctx.Err() // What listed did not tell.
	}
	return partial, err
}

// listed is a bucket whose top was listed.
type listed struct {
	objstore.InstrumentedBucketReader
	names []string
}

// Iter implements objstore.BucketReader. It does not fail: an error that f has, its caller has too.
func (l listed) Iter(_ context.Context, _ string, f func(string) error, _ ...objstore.IterOption) error {
	_ = slices.ContainsFunc(l.names, func(name string) bool { return f(name) != nil })
	return nil
}

// covered reads the windows off the sources of our blocks, but of broken ones: who still has the data uploads them anew. Those that are
// there downsampled only do not count as covered.
func covered(metas map[ulid.ULID]*metadata.Meta, broken map[ulid.ULID]string, shared labels.Labels, length time.Duration) (windows, sampled map[int64]bool) {
	windows, sampled = map[int64]bool{}, map[int64]bool{}
	for id, m := range metas {
		if _, ok := broken[id]; ok {
			continue
		}
		if !labels.Equal(config.Shared(labels.FromMap(m.Thanos.Labels)), shared) {
			continue
		}
		for _, source := range m.Compaction.Sources {
			start, whole, ok := nameWindow(source, length)
			switch {
			case !ok:
			case m.Thanos.Downsample.Resolution != 0:
				sampled[start] = true
			default:
				windows[start] = windows[start] || whole
			}
		}
	}
	return windows, sampled
}

// Covered tells whether all windows that [mint, maxt), in Unix milliseconds, touches are in the bucket, whole. Without a look at the
// bucket nothing is.
func (b *Bucket) Covered(mint, maxt int64) bool {
	v, err := b.catalogue.last()
	if err != nil {
		return false
	}
	length := b.o.Window.Milliseconds()
	for start := mint - mint%length; start < maxt; start += length {
		if !v.covered[start] {
			return false
		}
	}
	return true
}
