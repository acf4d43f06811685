package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

const (
	// maxHeadImport is the longest interval, in milliseconds, that is imported into the head. Each sample of it costs
	// a microsecond, memory and two log records there, of a block a tenth of that. But a block for each target that was
	// not reached for a minute would be a crowd of tiny ones.
	maxHeadImport = 10 * 60 * 1000
	// headImportBatch is how many samples one commit to the head has: it bounds what is in memory.
	headImportBatch = 5000
	// importStride is after how many series an import yields, looks at the disk and at its context.
	importStride = 256
	// An import leaves this much of the disk free: scraping needs it more.
	importReserveBytes   = 64 << 20
	importReservePercent = 2
)

// ErrNoSpace means that something was refused or given up since the disk is nearly full.
var ErrNoSpace = errors.New("not enough disk space")

// ImportOptions configures an import. The zero value is that of a gap of everything but health series.
type ImportOptions struct {
	// Kind is what the gap is of. Health series (IsHealth) are left out unless it is GapReplica.
	Kind GapKind
	// Match are labels that all series asked for have: no others of ours are read, and a foreign one without them is
	// an error. Empty means all series.
	Match labels.Labels
	// Skip tells which series to leave out besides. Nil: none.
	Skip func(labels.Labels) bool
	// Block says that all has to be there at once, so that nothing of it goes to the head.
	Block bool
	// JoinedFrom and JoinedTo say of an end of the interval that our own data beyond it came from where these come from: they are as
	// they were there, without a guard in between.
	JoinedFrom, JoinedTo bool
	// Yield is called every few hundred series and may block. Its error ends the import. Nil: none.
	Yield func(context.Context) error
	// Progress is told now and then how many series and samples were taken since the last call. Nil: nobody is.
	Progress func(series, samples int64)
}

// Imported is what an import took.
type Imported struct {
	Series, Samples int64
	// Block is the block that has them, or most of them: zero when all are in the head.
	Block ulid.ULID
}

// Import fills the holes in our own data strictly between in.From and in.To with another replica's, by the splice rule
// (see splice). The interval lies within the time of one block. A short one that the out-of-order window still takes
// goes to the head; but not while there is a remote_write, which would send it a second time. Any other becomes a block,
// which is there whole or, on any error, not at all. Importing the same once more takes nothing.
//
// Errors are *ForeignError for data that cannot be, ErrNoSpace, tsdb.ErrNotReady, those of foreign, and of ctx. When
// the import into the head fails in between, what was taken so far stays.
func (s *Store) Import(ctx context.Context, in Interval, foreign ForeignSet, o ImportOptions) (Imported, error) {
	db := s.local.db.Load()
	if db == nil {
		return Imported{}, tsdb.ErrNotReady
	}
	if in.Empty() {
		return Imported{}, nil
	}
	// One at a time: each has its own memory, and they would be at each other's disk.
	s.importing.Lock()
	defer s.importing.Unlock()
	im := &importer{s: s, db: db, in: in, o: o}
	res, err := im.run(ctx, foreign)
	if errors.Is(err, syscall.ENOSPC) {
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	if err != nil {
		return res, fmt.Errorf("import: %w", err)
	}
	return res, nil
}

// importer is one import.
type importer struct {
	s  *Store
	db *tsdb.DB
	in Interval
	o  ImportOptions

	own    ownCursor
	d      foreignDecoder
	enc    chunkEncoder
	hidden []int64

	head  *headImport  // Nil when samples go to a block.
	block *blockWriter // Nil until there is something for it.

	res      Imported
	reported Imported
}

func (im *importer) run(ctx context.Context, foreign ForeignSet) (_ Imported, err error) {
	if err := im.s.room(0); err != nil {
		return Imported{}, err
	}
	if im.intoHead() {
		// Upstream's head panics when its first chunk goes to disk while a compaction looks for chunks that can go. Before
		// anything is opened, since a compaction that is under way is waited for.
		im.db.DisableCompactions()
		defer im.db.EnableCompactions()
		im.head = &headImport{ctx: ctx, db: im.db}
	}
	defer func() {
		// What is left when all went well is an empty directory, which the next start removes too.
		if im.block == nil {
			return
		}
		if derr := im.block.discard(); derr != nil && err == nil {
			im.s.logger.Warn("cannot remove the temporary files of an import", "err", derr)
		}
	}()
	err = im.read(ctx, foreign)
	// Before anything waits for compaction, which waits for it.
	if cerr := im.own.close(); err == nil && cerr != nil {
		err = fmt.Errorf("close own data: %w", cerr)
	}
	if im.head != nil {
		err = im.head.end(err)
	}
	if err == nil && im.block != nil {
		err = im.finish(ctx)
	}
	im.report()
	return im.res, err
}

// intoHead tells whether all of the interval is young enough for the head, with a margin for what is scraped meanwhile.
func (im *importer) intoHead() bool {
	im.s.mtx.Lock()
	window := im.s.settings.oooWindow.Milliseconds()
	im.s.mtx.Unlock()
	head := im.db.Head()
	if im.o.Block || window <= 0 || im.s.remoteWrite.Load() || head.MinTime() == math.MaxInt64 {
		return false
	}
	return im.in.To-im.in.From <= maxHeadImport && im.in.From >= head.MaxTime()-window+window/20
}

// read goes through what the other replica has.
func (im *importer) read(ctx context.Context, foreign ForeignSet) error {
	if err := im.own.open(ctx, im.s.local, im.in, im.o); err != nil {
		return err
	}
	var before labels.Labels
	for n := 1; foreign.Next(); n++ {
		series := foreign.At()
		if err := checkLabels(series.Labels); err != nil {
			return err
		}
		if n > 1 && labels.Compare(before, series.Labels) >= 0 {
			return &ForeignError{ForeignUnsorted, fmt.Sprintf("series %s after %s", series.Labels, before)}
		}
		before.CopyFrom(series.Labels)
		if !hasLabels(series.Labels, im.o.Match) {
			return &ForeignError{ForeignOutside, fmt.Sprintf("series %s, asked for %s", series.Labels, im.o.Match)}
		}
		if err := im.add(series); err != nil {
			return err
		}
		if n%importStride == 0 {
			if err := im.pause(ctx); err != nil {
				return err
			}
		}
	}
	if err := foreign.Err(); err != nil {
		return fmt.Errorf("read another replica's data: %w", err)
	}
	return ctx.Err()
}

// pause lets others go first.
func (im *importer) pause(ctx context.Context) error {
	im.report()
	if im.o.Yield != nil {
		if err := im.o.Yield(ctx); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return im.s.room(0)
}

func (im *importer) report() {
	series, samples := im.res.Series-im.reported.Series, im.res.Samples-im.reported.Samples
	if im.o.Progress != nil && series+samples > 0 {
		im.o.Progress(series, samples)
	}
	im.reported = im.res
}

func hasLabels(l, match labels.Labels) bool {
	for _, m := range match {
		if l.Get(m.Name) != m.Value {
			return false
		}
	}
	return true
}

// add takes what fills holes of one series.
func (im *importer) add(series ForeignSeries) error {
	if im.o.Kind != GapReplica && IsHealth(series.Labels.Get(model.MetricNameLabel)) {
		return nil
	}
	if im.o.Skip != nil && im.o.Skip(series.Labels) {
		return nil
	}
	if err := im.d.decode(series, im.in, false); err != nil {
		return inSeries(err, series.Labels)
	}
	if len(im.d.t) == 0 {
		return nil
	}
	own, err := im.own.find(series.Labels)
	if err != nil {
		return err
	}
	n, hidden := splice(own, im.d.t, im.d.stale, im.in, im.d.takeAll(), im.hidden[:0])
	im.hidden = hidden // What is written stays, own markers too: see Held.
	if n == 0 {
		return nil
	}
	if err := im.put(series.Labels, n); err != nil {
		return inSeries(err, series.Labels)
	}
	im.res.Series++
	im.res.Samples += int64(n)
	return nil
}

func inSeries(err error, l labels.Labels) error {
	var foreign *ForeignError
	if errors.As(err, &foreign) {
		foreign.Detail += " in " + l.String()
		return foreign
	}
	return err
}

// put writes the n samples that were taken of a series.
func (im *importer) put(l labels.Labels, n int) error {
	// A series that the head does not know would be made by this transaction, and written to the log when it commits: had
	// a scrape committed samples of it before, a replay would not know whose they are.
	if im.head != nil && im.head.knows(l) {
		err := im.head.put(l, &im.d, n)
		if !errors.Is(err, storage.ErrTooOldSample) && !errors.Is(err, storage.ErrOutOfBounds) &&
			!errors.Is(err, storage.ErrOutOfOrderSample) {
			return err
		}
		// The window has moved on, or is smaller now. From here on it is a block; what the head took of this series
		// already is of the same value there.
		if err := im.head.end(nil); err != nil {
			return err
		}
		im.head = nil
	}
	if im.block == nil {
		var err error
		if im.block, err = newBlockWriter(filepath.Join(im.s.opts.Dir, healDir)); err != nil {
			return err
		}
	}
	if err := im.d.encode(&im.enc); err != nil {
		return err
	}
	return im.block.add(l, im.enc.out)
}

// finish makes the block one of the TSDB's.
func (im *importer) finish(ctx context.Context) error {
	if err := im.s.room(im.block.indexBytes()); err != nil {
		return err
	}
	if err := im.block.finish(ctx); err != nil {
		return err
	}
	if err := im.block.commit(im.s.TSDBDir()); err != nil {
		return err
	}
	im.res.Block = im.block.id
	return im.s.loadBlocks(ctx, im.db, im.block.scratch)
}

// encode makes chunks of what was taken. A chunk that was taken as a whole is kept as it is.
func (d *foreignDecoder) encode(e *chunkEncoder) (err error) {
	defer recoverForeign(&err)
	e.reset()
	adjacent := false // Whether the last sample of the part before was taken.
	for _, p := range d.parts {
		all := !slices.Contains(d.take[p.from:p.to], false)
		switch {
		case all && !p.clipped && d.series.Shift == 0 && (adjacent || !saysReset(p.chunk)):
			e.whole(p.chunk, d.t[p.from], d.t[p.to-1])
		case p.chunk.Encoding() == chunkenc.EncXOR:
			for i := p.from; i < p.to; i++ {
				if d.take[i] {
					if err := e.appendFloat(d.t[i], d.v[i]); err != nil {
						return fmt.Errorf("encode a float: %w", err)
					}
				}
			}
		default:
			if err := d.histograms(p, func(i int, h *histogram.Histogram, fh *histogram.FloatHistogram) error {
				// Who goes on after a hole cannot know whether there was a counter reset in it.
				if i == 0 || !d.take[i-1] {
					switch {
					case h != nil && h.CounterResetHint != histogram.GaugeType:
						h.CounterResetHint = histogram.UnknownCounterReset
					case fh != nil && fh.CounterResetHint != histogram.GaugeType:
						fh.CounterResetHint = histogram.UnknownCounterReset
					}
				}
				return e.appendHistogram(d.t[i], h, fh)
			}); err != nil {
				return err
			}
		}
		adjacent = d.take[p.to-1]
	}
	e.flush()
	return nil
}

// saysReset tells whether a chunk says something of the sample before it.
func saysReset(c chunkenc.Chunk) bool {
	h, ok := c.(interface {
		GetCounterResetHeader() chunkenc.CounterResetHeader
	})
	if !ok {
		return false
	}
	header := h.GetCounterResetHeader()
	return header == chunkenc.CounterReset || header == chunkenc.NotCounterReset
}

// headImport appends to the head.
type headImport struct {
	ctx context.Context
	db  *tsdb.DB
	app storage.Appender
	n   int // Samples that are not committed.
}

// knows tells whether the head has a series.
func (h *headImport) knows(l labels.Labels) bool {
	if h.app == nil {
		h.app = h.db.Appender(h.ctx)
	}
	refs, ok := h.app.(storage.GetRef)
	if !ok {
		return false
	}
	ref, _ := refs.GetRef(l, l.Hash())
	return ref != 0
}

// put appends the samples that were taken of a series.
func (h *headImport) put(l labels.Labels, d *foreignDecoder, n int) error {
	samples, err := d.samples(nil, n)
	if err != nil {
		return err
	}
	var ref storage.SeriesRef
	for i := range samples {
		if h.app == nil {
			h.app = h.db.Appender(h.ctx)
		}
		if i == 0 {
			if r, ok := h.app.(storage.GetRef); ok {
				ref, _ = r.GetRef(l, l.Hash())
			}
		}
		s := &samples[i]
		var got storage.SeriesRef
		if s.kind() == chunkenc.ValFloat {
			got, err = h.app.Append(ref, l, s.t, s.v)
		} else {
			got, err = h.app.AppendHistogram(ref, l, s.t, s.h, s.fh)
		}
		if errors.Is(err, storage.ErrDuplicateSampleForTimestamp) {
			continue // It was scraped meanwhile.
		}
		if err != nil {
			return fmt.Errorf("append to the head: %w", err)
		}
		ref = got
		if h.n++; h.n >= headImportBatch {
			if err := h.end(nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// end commits what is not committed, or takes it back when there was an error, which it returns.
func (h *headImport) end(err error) error {
	if h.app == nil {
		return err
	}
	app := h.app
	h.app, h.n = nil, 0
	if err != nil {
		return errors.Join(err, app.Rollback())
	}
	if err := app.Commit(); err != nil {
		return fmt.Errorf("commit to the head: %w", err)
	}
	return nil
}

// room refuses when fewer bytes than the reserve would be left on the disk after need more.
func (s *Store) room(need int64) error {
	free, size, err := s.opts.disk(s.opts.Dir)
	if err != nil {
		return err
	}
	reserve := max(importReserveBytes, size/100*importReservePercent)
	if free-need < reserve {
		return fmt.Errorf("%w: %d MiB are free, %d MiB are kept", ErrNoSpace, free>>20, reserve>>20)
	}
	return nil
}

// ownCursor goes through our own series in the order of another replica's.
type ownCursor struct {
	q   storage.Querier
	set storage.SeriesSet
	cur storage.Series // Nil at the end.
	it  chunkenc.Iterator
	m   moments

	from, to int64
}

func (c *ownCursor) open(ctx context.Context, local storage.Queryable, in Interval, o ImportOptions) error {
	c.from, c.to = widen(in)
	if o.JoinedFrom {
		c.from = in.From + 1
	}
	if o.JoinedTo {
		c.to = in.To - 1
	}
	q, err := local.Querier(c.from, c.to)
	if err != nil {
		return fmt.Errorf("open own data: %w", err)
	}
	c.q = q
	ms := []*labels.Matcher{labels.MustNewMatcher(labels.MatchNotEqual, model.MetricNameLabel, "")}
	for _, l := range o.Match {
		ms = append(ms, labels.MustNewMatcher(labels.MatchEqual, l.Name, l.Value))
	}
	// Upstream's trimming panics where there are tombstones, and is not needed: read looks at the times.
	c.set = q.Select(ctx, true, &storage.SelectHints{Start: c.from, End: c.to, DisableTrimming: true}, ms...)
	return c.next()
}

func (c *ownCursor) next() error {
	c.cur = nil
	if c.set.Next() {
		c.cur = c.set.At()
		return nil
	}
	if err := c.set.Err(); err != nil {
		return fmt.Errorf("read own data: %w", err)
	}
	return nil
}

// find reads the times of a series. Each call is for a later series than the one before.
func (c *ownCursor) find(l labels.Labels) (*moments, error) {
	c.m.reset()
	for c.cur != nil {
		order := labels.Compare(c.cur.Labels(), l)
		if order > 0 {
			break
		}
		if order == 0 {
			c.it = c.cur.Iterator(c.it)
			if err := c.m.read(c.it, c.from, c.to); err != nil {
				return nil, fmt.Errorf("read own samples of %s: %w", l, err)
			}
		}
		if err := c.next(); err != nil {
			return nil, err
		}
	}
	return &c.m, nil
}

func (c *ownCursor) close() error {
	if c.q == nil {
		return nil
	}
	return c.q.Close()
}
