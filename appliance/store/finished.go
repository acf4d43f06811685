package store

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/prometheus/tsdb"
)

// heldFreePercent is how much of the disk stays free at the cost of blocks that are held, at least heldFreeBytes. It is more than
// what imports leave free: old data go before healing stops.
const (
	heldFreePercent = 5
	heldFreeBytes   = 2 * importReserveBytes
)

// fullPercent is how much of what retention by size allows may be taken by old data that are brought back.
const fullPercent = 90

// LocalBlock is a block of the TSDB.
type LocalBlock struct {
	Meta tsdb.BlockMeta
	// Dir is its folder. The TSDB removes it when the block is compacted or too old.
	Dir string
}

// Window is how long the smallest block is.
func (s *Store) Window() time.Duration { return s.opts.MinBlockDuration }

// Blocks are the blocks that are loaded, oldest first.
func (s *Store) Blocks() ([]LocalBlock, error) {
	db := s.local.db.Load()
	if db == nil {
		return nil, tsdb.ErrNotReady
	}
	loaded := db.Blocks()
	blocks := make([]LocalBlock, len(loaded))
	for i, b := range loaded {
		blocks[i] = LocalBlock{b.Meta(), b.Dir()}
	}
	return blocks, nil
}

// Written is up to when, in Unix milliseconds, all samples that came in order are in blocks, and none can come any more. It is
// math.MinInt64 as long as that is not known.
func (s *Store) Written() (int64, error) {
	db := s.local.db.Load()
	if db == nil {
		return 0, tsdb.ErrNotReady
	}
	head := db.Head()
	mint, maxt := head.MinTime(), head.MaxTime()
	if mint == math.MaxInt64 || maxt == math.MinInt64 {
		return math.MinInt64, nil // It never had a sample.
	}
	// So old a sample is refused, or is one out of order. It only matters to a head that has not been compacted yet.
	return min(mint, maxt-s.opts.MinBlockDuration.Milliseconds()/2), nil
}

// WriteOutOfOrder makes blocks of the samples that came out of order, if there may be any before end, in Unix milliseconds.
func (s *Store) WriteOutOfOrder(ctx context.Context, end int64) error {
	db := s.local.db.Load()
	if db == nil {
		return tsdb.ErrNotReady
	}
	if db.Head().MinOOOTime() >= end {
		return nil
	}
	// No compaction may run while an import writes to the head: see importer.run.
	s.importing.Lock()
	defer s.importing.Unlock()
	if err := db.CompactOOOHead(ctx); err != nil {
		return fmt.Errorf("write what came out of order to blocks: %w", err)
	}
	return nil
}

// Room refuses with ErrNoSpace when need bytes more would leave less of the disk free than scraping may need.
func (s *Store) Room(need int64) error { return s.room(need) }

// Spare refuses with ErrNoSpace when blocks that are held would soon have to go for what is written now: data that are elsewhere anyway
// must not take their room.
func (s *Store) Spare() error {
	free, size, err := s.opts.disk(s.opts.Dir)
	if err != nil {
		return err
	}
	if least := 2 * max(heldFreeBytes, size/100*heldFreePercent); free < least {
		return fmt.Errorf("%w: %d MiB are free, %d MiB are kept for what is nowhere else", ErrNoSpace, free>>20, least>>20)
	}
	return nil
}

// Full tells whether retention by size leaves no room for older data: what is written of them would be deleted at once.
func (s *Store) Full() bool {
	_, most := s.Retention()
	db := s.local.db.Load()
	if most <= 0 || db == nil {
		return false
	}
	size := db.Head().Size()
	for _, b := range db.Blocks() {
		size += b.Size()
	}
	return size >= most/100*fullPercent
}

// hold is what compaction and retention are kept off.
type hold struct {
	covered func(mint, maxt int64) bool
	blocks  prometheus.Gauge
	deleted prometheus.Counter
}

// Hold keeps blocks until covered says of their time, [mint, maxt) in Unix milliseconds, that somebody else has the data too:
// compaction leaves alone what the head wrote, and retention deletes nothing until the disk is nearly full. It is called once,
// before Run; covered may be called at any time from then on, and must not wait.
func (s *Store) Hold(covered func(mint, maxt int64) bool) {
	reg := promauto.With(s.opts.Registerer)
	s.hold = &hold{
		covered: covered,
		blocks: reg.NewGauge(prometheus.GaugeOpts{
			Name: "tocsin_storage_held_blocks",
			Help: "Blocks beyond the retention that are kept because they are not in the bucket yet.",
		}),
		deleted: reg.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_storage_deleted_unuploaded_blocks_total",
			Help: "Blocks beyond the retention that were deleted before they were in the bucket, because the disk was nearly full.",
		}),
	}
}

// holds tells whether compaction has to wait for a block.
func (s *Store) holds(meta *tsdb.BlockMeta) bool {
	return s.hold != nil && meta.Compaction.Level == 1 && !s.hold.covered(meta.MinTime, meta.MaxTime)
}

// blocksToDelete is tsdb.Options.BlocksToDelete: upstream's rules, but not for blocks that are held.
func (s *Store) blocksToDelete(blocks []*tsdb.Block) map[ulid.ULID]struct{} {
	deletable := map[ulid.ULID]struct{}{}
	db := s.local.db.Load()
	if db == nil {
		// It is being opened, and its rules need it. The next reload is soon enough.
		for _, b := range blocks {
			if b.Meta().Compaction.Deletable {
				deletable[b.Meta().ULID] = struct{}{}
			}
		}
		return deletable
	}
	deletable = tsdb.DefaultBlocksToDelete(db)(blocks)
	var held []*tsdb.Block
	for _, b := range blocks {
		meta := b.Meta()
		if _, ok := deletable[meta.ULID]; ok && !meta.Compaction.Deletable && !s.hold.covered(meta.MinTime, meta.MaxTime) {
			held = append(held, b)
			delete(deletable, meta.ULID)
		}
	}
	if len(held) > 0 {
		// What was compacted goes now, and so does what is in the bucket.
		gone := maps.Clone(deletable)
		for _, b := range blocks {
			for _, parent := range b.Meta().Compaction.Parents {
				gone[parent.ULID] = struct{}{}
			}
		}
		var freed int64
		for _, b := range blocks {
			if _, ok := gone[b.Meta().ULID]; ok {
				freed += b.Size()
			}
		}
		for _, b := range s.giveUp(held, freed) {
			deletable[b.Meta().ULID] = struct{}{}
			held = held[1:]
		}
	}
	s.hold.blocks.Set(float64(len(held)))
	return deletable
}

// giveUp are those of the blocks, oldest first, that have to go to get the disk out of need once others of so many bytes are
// gone. It sorts them that way.
func (s *Store) giveUp(held []*tsdb.Block, freed int64) []*tsdb.Block {
	slices.SortFunc(held, func(a, b *tsdb.Block) int {
		return cmp.Compare(a.Meta().MaxTime, b.Meta().MaxTime)
	})
	free, size, err := s.opts.disk(s.opts.Dir)
	if err != nil {
		s.logger.Warn("cannot tell whether the disk is nearly full; blocks that are not in the bucket are kept", "err", err)
		return nil
	}
	need := max(heldFreeBytes, size/100*heldFreePercent) - free - freed
	n := 0
	for ; n < len(held) && need > 0; n++ {
		need -= held[n].Size()
	}
	if n > 0 {
		first, last := held[0].Meta(), held[n-1].Meta()
		s.hold.deleted.Add(float64(n))
		s.logger.Error("the disk is nearly full: blocks beyond the retention are deleted that are not in the bucket, their data are lost here",
			"blocks", n, "mint", first.MinTime, "maxt", last.MaxTime, "free_bytes", free, "disk_bytes", size)
	}
	return held[:n]
}

// diskOf is how many bytes of the disk that dir is on are free, and how many there are.
func diskOf(dir string) (free, size int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("look at the free disk space: %w", err)
	}
	block := uint64(st.Bsize)
	return int64(min(st.Bavail*block, math.MaxInt64)), int64(min(st.Blocks*block, math.MaxInt64)), nil
}
