package heal

import (
	"context"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/tocsin-io/tocsin/appliance/store"
)

const (
	// minScan and maxScan bound how often our own `up` series are looked through.
	minScan, maxScan = time.Second, 15 * time.Second
	// firstScan is how far back they are looked through after a start. What nobody could explain for so long is left alone.
	firstScan = 24 * time.Hour
	// maxUnexplained bounds the suspects that wait for replicas that cannot be asked.
	maxUnexplained = 20_000
)

// observed is what is known of our own scrapes. It belongs to observe.
type observed struct {
	at    time.Time
	until int64 // What began before was seen.
	// lasting are the targets that are not reached now, by their labels, and over those that were not, and are not explained.
	lasting map[string]*suspicion
	over    []*suspicion
	// explained is until when a target's past is explained.
	explained map[string]int64
	// every are the scrape intervals of suspects, in milliseconds.
	every map[string]int64
}

// suspicion is a suspect with the time until when all others have been asked for it.
type suspicion struct {
	store.Suspect
	asked int64
}

// observe finds the targets that this zone does not reach, and another one does, and decides on markers that wait for it.
func (h *Heal) observe(ctx context.Context) {
	now := time.Now()
	o := &h.observed
	held := h.opts.Store.Held()
	if len(held) == 0 && now.Sub(o.at) < min(max(h.opts.Settle()/4, minScan), maxScan) {
		return
	}
	if h.alone() {
		return
	}
	if o.at.IsZero() {
		o.lasting, o.explained, o.every = map[string]*suspicion{}, map[string]int64{}, map[string]int64{}
		o.until = now.Add(-firstScan).UnixMilli()
	}
	suspects, err := store.Suspects(ctx, h.opts.Store.Local(), o.until, now.UnixMilli())
	if err != nil {
		if ctx.Err() == nil {
			h.logger.Warn("this replica's own `up` series cannot be read, so that gaps of single targets are not found", "err", err)
		}
		return
	}
	o.at, o.until = now, now.Add(-2*h.opts.Settle()-maxScan).UnixMilli()
	o.note(suspects, held)
	h.decide(ctx, held, now)
	h.sort(suspects, now)
	h.explain(ctx, now)
}

// note keeps the scrape intervals of suspects, and of those whose markers wait.
func (o *observed) note(suspects []store.Suspect, held []store.Held) {
	every := map[string]int64{}
	for _, m := range held {
		if d, ok := o.every[m.Target.String()]; ok {
			every[m.Target.String()] = d
		}
	}
	for _, s := range suspects {
		every[s.Labels.String()] = s.Every
	}
	o.every = every
}

// sort tells what is new from what lasts and what is over.
func (h *Heal) sort(suspects []store.Suspect, now time.Time) {
	o := &h.observed
	away := h.away()
	gaps := h.lasting()
	seen := map[string]bool{}
	for _, s := range suspects {
		target := s.Labels.String()
		if h.opts.Match(s.Labels).IsEmpty() || within(s, away) {
			continue
		}
		before := o.lasting[target]
		if before != nil && s.To > before.From {
			// The begin may be too long ago to be seen this time.
			s.From = min(s.From, before.From)
		}
		if s.Lasting() {
			seen[target] = true
			if before == nil {
				o.lasting[target] = &suspicion{s, s.From}
			}
			continue
		}
		if s.To <= o.explained[target] {
			continue
		}
		if g, ok := gaps[target]; ok && g.From < s.To {
			h.opts.Ledger.End(g.ID, s.To)
			o.explained[target] = s.To
			continue
		}
		same := func(x *suspicion) bool { return x.To == s.To && labels.Equal(x.Labels, s.Labels) }
		if len(o.over) < maxUnexplained && !slices.ContainsFunc(o.over, same) {
			asked := s.From
			if before != nil {
				asked = before.asked
			}
			o.over = append(o.over, &suspicion{s, asked})
		}
	}
	for target := range o.lasting {
		if !seen[target] {
			delete(o.lasting, target)
		}
	}
	// What lasts and is not seen any more: the target is gone.
	for target, g := range gaps {
		if !seen[target] {
			h.opts.Ledger.End(g.ID, now.UnixMilli())
		}
	}
	o.over = slices.DeleteFunc(o.over, func(s *suspicion) bool { return s.To < now.Add(-firstScan).UnixMilli() })
}

// lasting are the open gaps of targets that are not over, by their labels.
func (h *Heal) lasting() map[string]store.Gap {
	gaps := map[string]store.Gap{}
	for _, g := range h.opts.Ledger.Open() {
		if g.Kind == store.GapTarget && g.Lasting() {
			gaps[g.Labels.String()] = g
		}
	}
	return gaps
}

// away are the times in which this replica was not there at all, and which are not healed. Once they are, our `up` says
// what of a target we got.
func (h *Heal) away() (away []store.Interval) {
	for _, g := range h.opts.Ledger.Open() {
		if g.Kind == store.GapReplica {
			away = append(away, g.Interval)
		}
	}
	return away
}

// within tells of a suspect that it is part of such a time.
func within(s store.Suspect, away []store.Interval) bool {
	// Its ends are those of an interval between scrapes.
	return slices.ContainsFunc(away, func(i store.Interval) bool {
		return i.From-s.Every <= s.From && (s.To <= i.To || s.To-s.Every <= i.To)
	})
}

// explain asks the others whether they reached the targets that we did not.
func (h *Heal) explain(ctx context.Context, now time.Time) {
	o := &h.observed
	gaps := h.lasting()
	var open []*suspicion
	for target, s := range o.lasting {
		if _, known := gaps[target]; !known {
			open = append(open, s)
		}
	}
	open = append(open, o.over...)
	if len(open) == 0 {
		return
	}
	span := store.Interval{From: now.UnixMilli(), To: now.UnixMilli()}
	targets := make([]labels.Labels, len(open))
	for n, s := range open {
		// What a scrape found is written when it has ended, at the time of its begin.
		span.From = min(span.From, max(s.From, s.asked-2*s.Every-h.lag().Milliseconds()))
		targets[n] = s.Labels
	}
	views, complete := h.views(ctx, span, targets)
	away := h.away()
	explained := map[*suspicion]bool{}
	for _, s := range open {
		if wasReached(s.Suspect, views, away) {
			h.opts.Ledger.Add(store.Gap{
				Kind: store.GapTarget, Labels: s.Labels, Match: h.opts.Match(s.Labels),
				Interval: s.Interval, Cause: store.CauseUnreachable, Found: now,
			})
			explained[s] = true
			continue
		}
		if complete { // Otherwise somebody who is away may know better.
			explained[s] = now.Add(-h.lag()).UnixMilli() > s.To
			s.asked = now.UnixMilli()
		}
	}
	o.over = slices.DeleteFunc(o.over, func(s *suspicion) bool {
		if explained[s] {
			o.explained[s.Labels.String()] = s.To
		}
		return explained[s]
	})
}

// wasReached tells whether another replica scraped the target while we were there and did not.
func wasReached(s store.Suspect, views []view, away []store.Interval) bool {
	edge := s.Every / 2
	for _, v := range views {
		for _, t := range v.up[s.Labels.String()].at {
			if s.From+edge < t && (s.To == store.Lasts || t < s.To-edge) &&
				!slices.ContainsFunc(away, func(i store.Interval) bool { return i.Contains(t) }) {
				return true
			}
		}
	}
	return false
}
