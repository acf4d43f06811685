package store

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/tsdb"
)

// openHeld opens a store that holds what covered does not let go, compacts to blocks of six hours, and keeps four.
func openHeld(t *testing.T, covered func(mint, maxt int64) bool, change ...func(*Options)) *opened {
	t.Helper()
	o := &opened{t: t, reg: prometheus.NewRegistry(), log: &logBuffer{}, done: make(chan error, 1)}
	opts := Options{
		Dir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(o.log, nil)), Registerer: o.reg, StripeSize: 64, isMount: noMount,
		BlockReloadInterval: time.Second, MaxBlockDuration: 6 * time.Hour,
	}
	for _, f := range change {
		f(&opts)
	}
	var err error
	if o.Store, err = New(opts); err != nil {
		t.Fatal(err)
	}
	o.Hold(covered)
	var ctx context.Context
	ctx, o.cancel = context.WithCancel(context.Background())
	go func() { o.done <- o.Run(ctx) }()
	t.Cleanup(o.stop)
	select {
	case <-o.Ready():
	case <-time.After(time.Minute):
		t.Fatalf("store did not become ready\n%s", o.log)
	}
	return o
}

// windows appends samples of n windows of two hours, and enough for the last to be written, and waits for that.
func (o *opened) windows(n int64) (begin int64) {
	o.t.Helper()
	const window = 2 * hour
	begin = (time.Now().UnixMilli() - (n+3)*window) / window * window
	for at := begin; at <= begin+n*window+window*3/4; at += 10 * minute {
		o.append(3, at)
	}
	o.eventually("all windows are written", func() bool {
		written, err := o.Written()
		return err == nil && written >= begin+n*window
	})
	return begin
}

func (o *opened) eventually(what string, ok func() bool) {
	o.t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(time.Minute)
	for !ok() {
		select {
		case <-ticker.C:
		case <-timeout:
			o.t.Fatalf("not so after a minute: %s\n%s", what, o.log)
		}
	}
}

// compact makes the TSDB do all that it would do by itself.
func (o *opened) compact() {
	o.t.Helper()
	db := o.local.db.Load()
	if err := errors.Join(db.CompactOOOHead(context.Background()), db.Compact(context.Background())); err != nil {
		o.t.Fatal(err)
	}
}

func (o *opened) count(want func(tsdb.BlockMeta) bool) (n int) {
	o.t.Helper()
	blocks, err := o.Blocks()
	if err != nil {
		o.t.Fatal(err)
	}
	for _, b := range blocks {
		if want(b.Meta) {
			n++
		}
	}
	return n
}

func anyBlock(tsdb.BlockMeta) bool    { return true }
func compacted(m tsdb.BlockMeta) bool { return m.Compaction.Level > 1 }

func TestHeldBlocksAreNotCompacted(t *testing.T) {
	var upTo atomic.Int64
	upTo.Store(math.MinInt64)
	o := openHeld(t, func(_, maxt int64) bool { return maxt <= upTo.Load() })
	begin := o.windows(8)
	o.compact()
	if n := o.count(compacted); n != 0 {
		t.Fatalf("%d blocks were compacted that are held", n)
	}
	if n := o.count(anyBlock); n != 8 {
		t.Fatalf("%d blocks, want 8", n)
	}
	// What is let go is compacted, and no more.
	upTo.Store(begin + 5*2*hour)
	o.compact()
	if n := o.count(compacted); n == 0 {
		t.Fatal("nothing was compacted of what was let go")
	}
	if n := o.count(func(m tsdb.BlockMeta) bool { return compacted(m) && m.MaxTime > upTo.Load() }); n != 0 {
		t.Errorf("%d blocks were compacted with what is held", n)
	}
	upTo.Store(math.MaxInt64)
	o.compact()
	if n := o.count(func(m tsdb.BlockMeta) bool { return !compacted(m) }); n > 3 {
		t.Errorf("%d blocks are left alone", n)
	}
}

func TestRetentionDoesNotDeleteWhatIsHeld(t *testing.T) {
	var (
		covered, full atomic.Bool
		begun         atomic.Int64
	)
	const size = 1 << 40
	o := openHeld(t, func(mint, _ int64) bool { return covered.Load() && mint < begun.Load()+2*2*hour }, func(opts *Options) {
		opts.Config = configured(func(c *promconfig.Config) {
			c.StorageConfig.TSDBConfig = &promconfig.TSDBConfig{
				OutOfOrderTimeWindow: 2 * hour, // compact needs it.
				Retention:            &promconfig.TSDBRetentionConfig{Time: model.Duration(4 * time.Hour)},
			}
		})
		opts.disk = func(string) (int64, int64, error) {
			if full.Load() {
				return size/100*heldFreePercent - 1, size, nil
			}
			return size / 2, size, nil
		}
	})
	begun.Store(o.windows(6))
	o.compact()
	if n := o.count(anyBlock); n != 6 {
		t.Fatalf("%d blocks are left of 6 that are held", n)
	}
	if n := gauge(t, o.reg, "tocsin_storage_held_blocks"); n != 4 {
		t.Errorf("%v blocks are said to be held, want 4", n)
	}
	covered.Store(true)
	o.compact()
	if n := o.count(anyBlock); n != 4 {
		t.Fatalf("%d blocks are left where 2 of 6 were let go", n)
	}
	if n := gauge(t, o.reg, "tocsin_storage_deleted_unuploaded_blocks_total"); n != 0 {
		t.Errorf("%v blocks are said to be deleted before they were uploaded", n)
	}
	// A byte too little is free: the oldest goes, and says so.
	full.Store(true)
	o.eventually("the oldest goes", func() bool { return o.count(anyBlock) < 4 })
	full.Store(false)
	o.compact()
	if n := o.count(func(m tsdb.BlockMeta) bool { return m.MinTime < begun.Load()+3*2*hour }); n != 0 {
		t.Error("it was not the oldest")
	}
	if n := gauge(t, o.reg, "tocsin_storage_deleted_unuploaded_blocks_total"); n < 1 {
		t.Error("it was not counted")
	}
	if !strings.Contains(o.log.String(), "level=ERROR msg=\"the disk is nearly full") {
		t.Errorf("it was not said:\n%s", o.log)
	}
}

func TestRetentionBySizeDoesNotDeleteWhatIsHeld(t *testing.T) {
	var upTo atomic.Int64
	upTo.Store(math.MinInt64)
	o := openHeld(t, func(_, maxt int64) bool { return maxt <= upTo.Load() }, func(opts *Options) {
		opts.Config = configured(func(c *promconfig.Config) {
			c.StorageConfig.TSDBConfig = &promconfig.TSDBConfig{
				OutOfOrderTimeWindow: 2 * hour,                                  // compact needs it.
				Retention:            &promconfig.TSDBRetentionConfig{Size: 10}, // Not even the head's log.
			}
		})
	})
	if byTime, bySize := o.Retention(); byTime != 0 || bySize != 10 {
		t.Fatalf("the retention is %s and %d bytes", byTime, bySize)
	}
	begin := o.windows(6)
	o.compact()
	if n := o.count(anyBlock); n != 6 {
		t.Fatalf("%d blocks are left of 6 that are held", n)
	}
	if n := gauge(t, o.reg, "tocsin_storage_held_blocks"); n != 6 {
		t.Errorf("%v blocks are said to be held, want 6", n)
	}
	upTo.Store(begin + 2*2*hour)
	o.eventually("what was let go is deleted", func() bool { return o.count(anyBlock) == 4 })
	if n := o.count(func(m tsdb.BlockMeta) bool { return m.MaxTime <= upTo.Load() }); n != 0 {
		t.Error("it was not the oldest")
	}
	if n := gauge(t, o.reg, "tocsin_storage_deleted_unuploaded_blocks_total"); n != 0 {
		t.Errorf("%v blocks are said to be deleted before they were uploaded", n)
	}
}

// What came out of order, and what was healed, is as safe as what the head wrote.
func TestRetentionDoesNotDeleteWhatCameLate(t *testing.T) {
	var upTo atomic.Int64
	upTo.Store(math.MinInt64)
	o := openHeld(t, func(_, maxt int64) bool { return maxt <= upTo.Load() }, func(opts *Options) {
		opts.Config = configured(func(c *promconfig.Config) {
			c.StorageConfig.TSDBConfig = &promconfig.TSDBConfig{
				OutOfOrderTimeWindow: 100 * hour,
				Retention:            &promconfig.TSDBRetentionConfig{Time: model.Duration(4 * time.Hour)},
			}
		})
	})
	begin := o.windows(6)
	o.append(1, begin+5*minute)
	o.compact()
	in := Interval{begin + 10*minute, begin + 90*minute}
	o.imp(in, theirs(t, in, map[string][]smp{"healed": floats(in.From+minute, in.To-minute, minute)}))
	o.compact()
	late := func(m tsdb.BlockMeta) bool { return m.Compaction.FromOutOfOrder() }
	if all, n := o.count(anyBlock), o.count(late); all != 8 || n != 2 {
		t.Fatalf("%d blocks are left of 8 that are held, %d of 2 that came late", all, n)
	}
	upTo.Store(begin + 2*hour)
	o.eventually("the first window goes, whatever came late of it too", func() bool {
		return o.count(func(m tsdb.BlockMeta) bool { return m.MinTime < upTo.Load() }) == 0
	})
	if n := o.count(anyBlock); n != 5 {
		t.Errorf("%d blocks are left, want 5", n)
	}
}

// A disk that is nearly full gets room from what is in the bucket, as long as that is enough.
func TestWhatIsInTheBucketGoesFirst(t *testing.T) {
	const size = 1 << 40
	var (
		state        atomic.Int64 // 1: part of it is in the bucket, and the disk is nearly full; 2: there is room again.
		asked, begun atomic.Int64
	)
	o := openHeld(t, func(mint, _ int64) bool { return state.Load() > 0 && mint < begun.Load()+2*2*hour }, func(opts *Options) {
		opts.Config = configured(func(c *promconfig.Config) {
			c.StorageConfig.TSDBConfig = &promconfig.TSDBConfig{
				OutOfOrderTimeWindow: 2 * hour,
				Retention:            &promconfig.TSDBRetentionConfig{Time: model.Duration(4 * time.Hour)},
			}
		})
		opts.disk = func(string) (int64, int64, error) {
			if state.CompareAndSwap(1, 2) {
				asked.Add(1)
				return size/100*heldFreePercent - 1, size, nil
			}
			return size / 2, size, nil
		}
	})
	begun.Store(o.windows(6))
	o.compact()
	if n := o.count(anyBlock); n != 6 {
		t.Fatalf("%d blocks are left of 6 that are held", n)
	}
	state.Store(1)
	o.eventually("what is in the bucket goes", func() bool { return asked.Load() == 1 && o.count(anyBlock) <= 4 })
	if n := o.count(anyBlock); n != 4 {
		t.Errorf("%d blocks are left, want 4", n)
	}
	if n := gauge(t, o.reg, "tocsin_storage_deleted_unuploaded_blocks_total"); n != 0 {
		t.Errorf("%v blocks were given up without need", n)
	}
}

// Without a bucket nothing is held.
func TestRetentionWithoutHold(t *testing.T) {
	o := open(t, t.TempDir(), func(opts *Options) {
		opts.BlockReloadInterval = time.Second
		opts.Config = configured(func(c *promconfig.Config) {
			c.StorageConfig.TSDBConfig = &promconfig.TSDBConfig{
				OutOfOrderTimeWindow: 2 * hour, // compact needs it.
				Retention:            &promconfig.TSDBRetentionConfig{Time: model.Duration(4 * time.Hour)},
			}
		})
	})
	o.windows(6)
	o.compact()
	if n := o.count(anyBlock); n != 2 {
		t.Errorf("%d blocks are left, want 2", n)
	}
}

func TestWritten(t *testing.T) {
	o := open(t, t.TempDir())
	if w, err := o.Written(); err != nil || w != math.MinInt64 {
		t.Fatalf("of a store without a sample it is %d, %v", w, err)
	}
	begin := o.windows(1)
	if w, err := o.Written(); err != nil || w != begin+2*hour {
		t.Fatalf("it is %d after the begin, %v", w-begin, err)
	}
	// What comes out of order is in blocks when it is asked for.
	o.compact()
	late := begin + 2*hour - 5*minute
	o.append(1, late)
	has := func() (n int) {
		return o.count(func(m tsdb.BlockMeta) bool {
			return m.Compaction.FromOutOfOrder() && m.MinTime <= late && late < m.MaxTime
		})
	}
	if has() != 0 {
		t.Fatal("it is in a block already")
	}
	if err := o.WriteOutOfOrder(context.Background(), begin+2*hour); err != nil {
		t.Fatal(err)
	}
	if has() != 1 {
		t.Error("it is in no block")
	}
	before := o.count(anyBlock)
	if err := o.WriteOutOfOrder(context.Background(), begin+2*hour); err != nil {
		t.Fatal(err)
	}
	if o.count(anyBlock) != before {
		t.Error("nothing made a block")
	}
}
