package federate

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
)

// maxAhead is how far in the future a sample may lie, as for scrapes: one beyond
// would push the head's time forward and lock out everybody else's. maxBehind is
// how far in the past: /federate answers with the last few minutes, and in an
// empty TSDB a single sample of long ago would start years of compaction.
const (
	maxAhead  = 10 * time.Minute
	maxBehind = 24 * time.Hour
)

// skipReason is why a sample of a listed series is not stored.
type skipReason string

const (
	skipDuplicate  skipReason = "duplicate_timestamp" // the usual case: the upstream has nothing newer
	skipOutOfOrder skipReason = "out_of_order"
	skipTooOld     skipReason = "too_old"
	skipFuture     skipReason = "too_far_in_future"
)

var allSkipReasons = []skipReason{skipDuplicate, skipOutOfOrder, skipTooOld, skipFuture}

// write stores one pull: its samples, the stale markers of series that it
// lacks, and the health series, in one transaction. pullErr is how the pull
// ended; a partial pull is stored, after any other error all series go stale as
// after a failed scrape. It returns how the pull ended in the end.
//
// After a collision up stays 1, since the upstream answered and the rest of its
// data is stored; the target shows the error.
func (p *puller) write(ctx context.Context, a *answer, now int64, took time.Duration, pullErr error) error {
	if pullErr == nil || resultOf(pullErr) == resultPartial {
		err := p.writeAnswer(ctx, a, now, took)
		if err == nil {
			return pullErr
		}
		pullErr = &fault{result: resultStorage, sentence: "answer could not be stored: " + clip(err.Error(), 200), cause: err}
	}
	// The marks that the intake left on series must not keep them from going
	// stale.
	p.pulls++
	if err := p.writeFailure(ctx, a, now, took); err != nil && resultOf(pullErr) != resultStorage {
		pullErr = &fault{
			result:   resultStorage,
			sentence: pullErr.Error() + "; and stale markers could not be stored: " + clip(err.Error(), 200),
			cause:    err,
		}
	}
	return pullErr
}

// transaction commits what fn appends, or nothing.
func (p *puller) transaction(ctx context.Context, fn func(storage.Appender) error) error {
	app := p.appendable.Appender(ctx)
	if err := fn(app); err != nil {
		return errors.Join(err, app.Rollback())
	}
	return app.Commit()
}

func (p *puller) writeAnswer(ctx context.Context, a *answer, now int64, took time.Duration) error {
	var (
		gone    []*series
		stored  int
		skipped = map[skipReason]int{}
	)
	err := p.transaction(ctx, func(app storage.Appender) error {
		added := 0
		for i := range a.samples {
			s := &a.samples[i]
			reason, err := appendSample(app, s, now)
			if err != nil {
				return err
			}
			if reason != "" {
				skipped[reason]++
				continue
			}
			s.stored = true
			stored++
			if !s.series.begun {
				added++
			}
		}
		if err := p.appendHealth(app, now, 1, took, a.scraped, len(a.samples), added); err != nil {
			return err
		}
		var err error
		gone, err = p.appendStale(app, now)
		return err
	})
	if err != nil {
		return err
	}
	for _, s := range a.samples {
		if !s.stored {
			continue
		}
		if !s.series.begun {
			s.series.begun, s.series.lastT = true, s.t
			p.catalogue.add(s.series)
		}
		s.series.lastT = max(s.series.lastT, s.t)
	}
	p.committed(now, gone)
	p.metrics.stored(stored, skipped)
	return nil
}

// writeFailure stores the health series of a failed pull and marks all others
// stale.
func (p *puller) writeFailure(ctx context.Context, a *answer, now int64, took time.Duration) error {
	var gone []*series
	err := p.transaction(ctx, func(app storage.Appender) (err error) {
		if err := p.appendHealth(app, now, 0, took, a.scraped, 0, 0); err != nil {
			return err
		}
		gone, err = p.appendStale(app, now)
		return err
	})
	if err != nil {
		return err
	}
	p.committed(now, gone)
	return nil
}

// writeStale marks stale whatever was not met in the current pull.
func (p *puller) writeStale(ctx context.Context, now int64) error {
	var gone []*series
	err := p.transaction(ctx, func(app storage.Appender) (err error) {
		gone, err = p.appendStale(app, now)
		return err
	})
	if err != nil {
		return err
	}
	p.committed(now, gone)
	return nil
}

// committed notes what a transaction has changed.
func (p *puller) committed(now int64, gone []*series) {
	for _, s := range p.health {
		s.begun, s.lastT = true, max(s.lastT, now)
	}
	for _, s := range gone {
		p.catalogue.remove(s)
	}
}

// appendSample appends one sample under the upstream's own timestamp.
func appendSample(app storage.Appender, s *sample, now int64) (skipReason, error) {
	if s.t > now+maxAhead.Milliseconds() {
		return skipFuture, nil
	}
	if s.t < now-maxBehind.Milliseconds() {
		return skipTooOld, nil
	}
	if s.series.begun && s.t == s.series.lastT {
		return skipDuplicate, nil // without asking the TSDB, which would log it
	}
	var err error
	ref := s.series.ref
	if s.h != nil || s.fh != nil {
		ref, err = app.AppendHistogram(ref, s.series.lset, s.t, s.h, s.fh)
	} else {
		ref, err = app.Append(ref, s.series.lset, s.t, s.v)
	}
	switch {
	case err == nil:
		s.series.ref = ref
		return "", nil
	case errors.Is(err, storage.ErrDuplicateSampleForTimestamp):
		return skipDuplicate, nil
	case errors.Is(err, storage.ErrOutOfOrderSample):
		return skipOutOfOrder, nil
	case errors.Is(err, storage.ErrTooOldSample), errors.Is(err, storage.ErrOutOfBounds):
		return skipTooOld, nil
	}
	return "", err
}

func (p *puller) appendHealth(app storage.Appender, now int64, up float64, took time.Duration, scraped, kept, added int) error {
	values := [...]float64{up, took.Seconds(), float64(scraped), float64(kept), float64(added)}
	for i, s := range p.health {
		s.pull = p.pulls
		ref, err := app.Append(s.ref, s.lset, now, values[i])
		switch {
		case err == nil:
			s.ref = ref
		case errors.Is(err, storage.ErrOutOfOrderSample), errors.Is(err, storage.ErrDuplicateSampleForTimestamp),
			errors.Is(err, storage.ErrTooOldSample), errors.Is(err, storage.ErrOutOfBounds):
			// The clock was set back, or a predecessor's stale marker is newer.
		default:
			return err
		}
	}
	return nil
}

// appendStale ends the series that the current pull did not meet, and returns
// them. The marker bears the time of the pull, unless the upstream's clock is
// ahead and the series has a newer sample: an older marker would end nothing.
func (p *puller) appendStale(app storage.Appender, now int64) (gone []*series, err error) {
	stale := math.Float64frombits(value.StaleNaN)
	// Out of order a marker would only punch a hole into what a successor wrote.
	app.SetOptions(&storage.AppendOptions{DiscardOutOfOrder: true})
	defer app.SetOptions(nil)
	p.catalogue.each(func(s *series) {
		if err != nil || s.ours || s.pull == p.pulls {
			return
		}
		gone = append(gone, s)
		if !s.begun {
			return
		}
		_, appendErr := app.Append(s.ref, s.lset, max(now, s.lastT+1), stale)
		switch {
		case appendErr == nil:
		case errors.Is(appendErr, storage.ErrOutOfOrderSample), errors.Is(appendErr, storage.ErrDuplicateSampleForTimestamp),
			errors.Is(appendErr, storage.ErrTooOldSample), errors.Is(appendErr, storage.ErrOutOfBounds):
		default:
			err = appendErr
		}
	})
	return gone, err
}
