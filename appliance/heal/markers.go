package heal

import (
	"context"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/tocsin-io/tocsin/appliance/mesh"
	"github.com/tocsin-io/tocsin/appliance/store"
)

// coincidence is how close the failure of a scrape and the loss of the other replicas have to be for both to have one
// cause.
const coincidence = time.Minute

// decide says of scrapes that failed whether the target was down, which ends its series, or only out of our zone's reach.
//
// Another replica that reached the target soon after decides that it went on. When all of them have tried after us and
// none did reach it, it was down. A replica that has lost all others at the time of the failure does not know which of
// the two it was, and waits until they are back; its queries see the series for as long as the lookback time. A replica
// that has been alone for longer decides by itself.
func (h *Heal) decide(ctx context.Context, held []store.Held, now time.Time) {
	if len(held) == 0 {
		return
	}
	var views []view
	since := held[0].At
	for _, s := range held {
		since = min(since, s.At)
	}
	members, _ := h.ask.others()
	if len(members) > 0 {
		targets := make([]labels.Labels, len(held))
		for n := range held {
			targets[n] = held[n].Target
		}
		views, _ = h.views(ctx, store.Interval{From: since, To: now.UnixMilli() + 1}, targets)
	}
	for _, s := range held {
		switch h.verdict(s, members, views, now) {
		case goesOn:
			h.opts.Store.Drop(s.ID)
		case ended:
			if err := h.opts.Store.Release(ctx, s.ID); err != nil && ctx.Err() == nil {
				h.logger.Warn("the series of a target that is down go on for the lookback time", "target", s.Target, "err", err)
			}
		case unknown:
		}
	}
}

type verdict int

const (
	unknown verdict = iota
	goesOn
	ended
)

func (h *Heal) verdict(s store.Held, members []mesh.Member, views []view, now time.Time) verdict {
	target := s.Target.String()
	// A target is suspect half an interval after its scrape failed; until then its interval is not known.
	every, known := h.observed.every[target]
	if !known {
		every = h.opts.Settle().Milliseconds()
	}
	if len(members) == 0 {
		if h.lostOthers(time.UnixMilli(s.At), time.Duration(every)*time.Millisecond) {
			return unknown
		}
		return ended
	}
	tried := 0
	for _, v := range views {
		soon := store.Interval{From: s.At, To: s.At + every*3/2}
		if v.successes(target, soon) > 0 {
			return goesOn
		}
		if seen, ok := v.up[target]; ok && seen.last > s.At {
			tried++
		}
	}
	if known && len(views) > 0 && tried == len(views) {
		return ended
	}
	wait := time.Duration(2*every)*time.Millisecond + h.lag()
	if len(views) == 0 {
		wait = max(wait, store.SpliceMargin*time.Millisecond) // They start, and will say it then.
	}
	if now.Sub(s.Since) > wait {
		return ended
	}
	return unknown
}

// lostOthers tells whether other replicas were lost at about that time, or after.
func (h *Heal) lostOthers(at time.Time, every time.Duration) bool {
	if h.alone() {
		return false
	}
	for _, m := range h.opts.Mesh.Members() {
		if !m.Self && !m.Alive && !m.Left && m.Since.After(at.Add(-coincidence-2*every)) {
			return true
		}
	}
	return false
}
