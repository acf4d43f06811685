package heal

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/tocsin-io/tocsin/appliance/store"
)

// remains cuts what nobody has whole: a time in which nobody has anything is one part.
func (h *Heal) remains(p piece, peers []peer) []piece {
	oldest := int64(store.Lasts)
	for _, o := range peers {
		oldest = min(oldest, o.oldest)
	}
	if p.To <= oldest {
		return []piece{p}
	}
	var parts []piece
	if p.From < oldest-1 {
		parts = append(parts, piece{Interval: store.Interval{From: p.From, To: oldest}})
		p.From = oldest - 1
	}
	return append(parts, cut(p, h.opts.Window)...)
}

// gather fills a part that no replica has whole with what each of them has. They were all asked, so that what is missing
// then is nowhere. So is the bucket, where windows are that nobody had whole.
func (h *Heal) gather(ctx context.Context, g store.Gap, p piece, peers []peer, run *run) error {
	asked := namesOf(peers)
	// Nobody had it whole, so that it counts as lost, whatever came together: who comes later may have more.
	fill := store.Fill{Interval: p.Interval, At: time.Now()}
	_, others, _, known := h.stored(p)
	if known {
		asked = append(asked, fromArchive)
	}
	if len(others) == 1 && others[0].Interval == p.Interval {
		peers = append(slices.Clip(peers), archived())
	}
	for _, who := range peers {
		if p.To <= who.oldest && !who.archive {
			continue
		}
		got, err := h.take(ctx, who, all(p.Interval), store.GapReplica, nil, run)
		if err != nil && !errors.Is(err, errNothing) {
			return fmt.Errorf("gather what %s has: %w", who, err)
		}
		fill.Series, fill.Samples = max(fill.Series, got.Series), fill.Samples+got.Samples
	}
	h.metrics.runs.WithLabelValues(runNobody).Inc()
	return h.opts.Ledger.Filled(g.ID, fill, asked...)
}

// cut cuts a piece at the edges of blocks, oldest first.
func cut(p piece, window time.Duration) (parts []piece) {
	w := window.Milliseconds()
	for first := p.From + 1; first < p.To; {
		end := min(p.To, (first/w+1)*w)
		parts = append(parts, piece{store.Interval{From: first - 1, To: end}, p.peers})
		first = end
	}
	return parts
}

// fillPiece fills a part of a gap that lies within one block, from the first replica that has it and answers well, or else from the
// bucket.
func (h *Heal) fillPiece(ctx context.Context, g store.Gap, p piece, _ []peer, run *run) error {
	var views []view
	if !p.peers[0].archive {
		// What they have healed themselves they had before they are asked for it.
		views, _ = h.views(ctx, p.Interval, nil)
	}
	var errs []error
	for n := 0; n < len(p.peers); n++ {
		who := p.peers[n]
		got, err := h.take(ctx, who, all(p.Interval), store.GapReplica, nil, run)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, store.ErrNoSpace) || errors.Is(err, errNothing) && n == 0 {
				return err
			}
			if !errors.Is(err, errNothing) {
				errs = append(errs, fmt.Errorf("%s: %w", who, err))
			}
			if n == len(p.peers)-1 && !who.archive && h.wholly(p.Interval) {
				p.peers = append(slices.Clip(p.peers), archived())
			}
			continue
		}
		// What that replica did not reach either, and another one did.
		for _, e := range h.exceptions(p, who, views) {
			more, err := h.take(ctx, e.who, e.request(p.Interval), store.GapReplica, e.skip, run)
			if err != nil {
				return fmt.Errorf("fill targets that %s did not reach: %w", who, err)
			}
			got.Samples += more.Samples
		}
		h.metrics.runs.WithLabelValues(runDone).Inc()
		h.catchUp(ctx, g, p.Interval)
		return h.opts.Ledger.Filled(g.ID, store.Fill{
			Interval: p.Interval, Replica: who.Name, Zone: who.Card.Zone,
			Series: got.Series, Samples: got.Samples, At: time.Now(),
		})
	}
	return errors.Join(errs...)
}

// all asks for every series of an interval.
func all(i store.Interval) request {
	return request{interval: i, matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".+")}}
}

// take imports what one replica answers.
func (h *Heal) take(ctx context.Context, who peer, r request, kind store.GapKind, skip func(labels.Labels) bool, run *run) (store.Imported, error) {
	if who.archive {
		return h.takeArchived(ctx, r.interval, run)
	}
	r.shift, r.stall, r.maxBytes = who.shift, h.stall, h.maxBytes
	answer, err := h.ask.series(ctx, who.Name, r)
	if err != nil {
		h.ask.punish(who.Name, err)
		return store.Imported{}, err
	}
	defer answer.close()
	got, err := h.opts.Store.Import(ctx, r.interval, answer, store.ImportOptions{
		Kind: kind, Skip: skip, Yield: h.yield,
		Progress: func(series, samples int64) {
			h.metrics.samples.WithLabelValues(string(kind)).Add(float64(samples))
			run.took(series, samples)
		},
	})
	switch {
	case err == nil:
		h.ask.praise(who.Name)
	case ctx.Err() == nil && !errors.Is(err, store.ErrNoSpace):
		h.ask.punish(who.Name, err)
	}
	return got, err
}

// yield lets scraping and queries go first: who waited for a core because others worked leaves it to them for as long
// again. Importing is one goroutine, so that it never takes more than one core.
func (h *Heal) yield(ctx context.Context) error {
	begin := time.Now()
	runtime.Gosched()
	waited := time.Since(begin)
	if waited < busy {
		return ctx.Err()
	}
	timer := time.NewTimer(min(waited, maxYield))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
