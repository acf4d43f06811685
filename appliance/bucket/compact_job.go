package bucket

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/thanos/pkg/block/metadata"
	"github.com/thanos-io/thanos/pkg/compact"

	"github.com/tocsin-io/tocsin/appliance/store"
)

// job is a compaction or a downsampling that is going on.
type job struct {
	key     string
	phase   string
	began   time.Time
	plan    []*metadata.Meta
	bytes   int64
	total   uint64
	series  atomic.Uint64
	results []*metadata.Meta
	// broken are the blocks of the plan that are known to be broken, and why.
	broken map[ulid.ULID]error
}

// backOff is how long a piece of work that failed rests.
type backOff struct {
	failures int
	until    time.Time
	err      string
}

// begin says that a piece of work goes on from now.
func (c *compactor) begin(key, phase string, plan []*metadata.Meta) *job {
	j := &job{key: key, phase: phase, began: time.Now(), plan: plan, broken: map[ulid.ULID]error{}}
	for _, m := range plan {
		j.bytes += metaBytes(m)
		j.total += m.Stats.NumSeries
	}
	c.mtx.Lock()
	c.job = j
	c.mtx.Unlock()
	return j
}

// phase says what the work that goes on does now.
func (c *compactor) phase(phase string) *job {
	c.mtx.Lock()
	defer c.mtx.Unlock()
	if c.job == nil {
		c.job = &job{began: time.Now(), broken: map[ulid.ULID]error{}}
	}
	c.job.phase = phase
	return c.job
}

// end says how the work that went on ended. Without any it does nothing.
func (c *compactor) end(err error) *job {
	c.mtx.Lock()
	defer c.mtx.Unlock()
	j := c.job
	c.job = nil
	if j == nil {
		return nil
	}
	c.last = &compactResult{Work: j.key, Began: j.began, Ended: time.Now(), Blocks: ids(j.plan), Results: ids(j.results)}
	if err != nil {
		c.last.Err = err.Error()
		return j
	}
	var bytes int64
	for _, m := range j.results {
		bytes += metaBytes(m)
	}
	c.logger.Info("compaction done", "work", j.key, "blocks_in", len(j.plan), "bytes_in", j.bytes, "blocks_out", len(j.results), "bytes_out", bytes,
		"took", time.Since(j.began).Round(time.Millisecond))
	return j
}

// drop forgets the work that went on, at the stop.
func (c *compactor) drop() {
	c.mtx.Lock()
	c.job = nil
	c.mtx.Unlock()
}

func metaBytes(m *metadata.Meta) (bytes int64) {
	for _, f := range m.Thanos.Files {
		bytes += max(0, f.SizeBytes)
	}
	return bytes
}

// room refuses work on so many bytes of blocks when the disk cannot take them and what is made of them.
func (c *compactor) room(bytes int64) error {
	if err := c.free(2 * bytes); err != nil {
		return fmt.Errorf("work on blocks of %d MiB: %w", bytes>>20, err)
	}
	return nil
}

func (c *compactor) resting(key string) bool {
	c.mtx.Lock()
	defer c.mtx.Unlock()
	return time.Now().Before(c.backOffs[key].until)
}

func (c *compactor) succeeded(key string) {
	c.mtx.Lock()
	defer c.mtx.Unlock()
	delete(c.backOffs, key)
}

// rest makes a piece of work that failed rest, each time longer.
func (c *compactor) rest(key string, err error) time.Duration {
	c.mtx.Lock()
	defer c.mtx.Unlock()
	b := c.backOffs[key]
	pause := min(c.backOffMax, c.every<<min(b.failures, 20))
	c.backOffs[key] = backOff{failures: b.failures + 1, until: time.Now().Add(pause), err: err.Error()}
	return pause
}

// failed finds out whose fault it was, and takes that block out of the way. Where no block is to blame, the work rests.
func (c *compactor) failed(ctx context.Context, key, what string, err error) {
	j := c.end(err)
	logger := c.logger.With("work", key)
	if errors.Is(err, store.ErrNoSpace) || errors.Is(err, syscall.ENOSPC) {
		c.skips.Inc()
		logger.Warn("cannot "+what+": it waits for disk space", "again_in", c.rest(key, err), "err", err)
		return
	}
	c.failures.Inc()
	if j != nil {
		if len(j.broken) == 0 && !isRetry(err) {
			// What is left of it only takes room.
			if err := os.RemoveAll(c.compactDir()); err != nil {
				logger.Warn("cannot clean the work directory of the compaction", "err", err)
			}
			if err := c.findBroken(ctx, j); err != nil {
				logger.Warn("cannot find out which block makes the compaction fail", "err", err)
			}
		}
		if len(j.broken) > 0 {
			for id, reason := range j.broken {
				c.quarantine(ctx, id, reason)
			}
			return
		}
	}
	if ctx.Err() != nil {
		return
	}
	logger.Warn("cannot "+what, "again_in", c.rest(key, err), "err", err)
}

// isRetry tells whether Thanos takes an error for one of the moment. Its own function sees only errors of its own wrapping.
func isRetry(err error) bool {
	var retry compact.RetryError
	return compact.IsRetryError(err) || errors.As(err, &retry)
}
