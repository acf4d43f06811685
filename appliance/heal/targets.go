package heal

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/grafana/regexp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/tocsin-io/tocsin/appliance/store"
)

const (
	// maxUpBytes bounds the `up` series of one replica.
	maxUpBytes = 256 << 20
	// maxAlternatives is how many values of a label are asked for by name.
	maxAlternatives = 500
)

// view is when a replica reached which targets, by the labels of their `up` series. Times are on our clock.
type view struct {
	peer
	up map[string]reached
}

// reached is a target, by the labels of its `up` series, with the times at which it was, and the last time at which that
// was tried.
type reached struct {
	labels labels.Labels
	at     []int64
	last   int64
}

// successes counts how often a target was reached within an interval.
func (v *view) successes(target string, i store.Interval) (n int) {
	for _, t := range v.up[target].at {
		if i.Contains(t) {
			n++
		}
	}
	return n
}

// views asks all replicas for their `up` series, of some targets or, with nil, of all. complete tells that each that the
// mesh knows of has answered.
func (h *Heal) views(ctx context.Context, i store.Interval, targets []labels.Labels) (views []view, complete bool) {
	peers, complete := h.ask.coverages(ctx, i)
	for _, p := range peers {
		if !p.ready {
			continue
		}
		up, err := h.up(ctx, p, i, targets)
		if err != nil {
			complete = false
			if ctx.Err() == nil {
				h.ask.punish(p.Name, err)
				h.logger.Debug("a replica did not say which targets it reached", "replica", p.Name, "err", err)
			}
			continue
		}
		views = append(views, view{p, up})
	}
	return views, complete
}

func (h *Heal) up(ctx context.Context, p peer, i store.Interval, targets []labels.Labels) (map[string]reached, error) {
	r := request{interval: i}
	if len(targets) > 0 {
		some := selection{targets: targets}
		r = some.request(i)
	}
	r.shift, r.stall, r.maxBytes = p.shift, h.stall, maxUpBytes
	r.matchers = append(r.matchers, labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, "up"))
	a, err := h.ask.series(ctx, p.Name, r)
	if err != nil {
		return nil, err
	}
	defer a.close()
	up := map[string]reached{}
	for a.Next() {
		s := a.At()
		seen := reached{labels: withoutName(s.Labels), last: math.MinInt64}
		for _, c := range s.Chunks {
			if c.Chunk.Encoding() != chunkenc.EncXOR {
				continue
			}
			it := c.Chunk.Iterator(nil)
			for it.Next() != chunkenc.ValNone {
				t, v := it.At()
				if v == 1 {
					seen.at = append(seen.at, t+p.shift)
				}
				if !value.IsStaleNaN(v) {
					seen.last = t + p.shift
				}
			}
			if err := it.Err(); err != nil {
				return nil, lied(lieCorrupt, "the series %s does not decode: %s", s.Labels, err)
			}
		}
		up[seen.labels.String()] = seen
	}
	return up, a.Err()
}

func withoutName(l labels.Labels) labels.Labels {
	return labels.NewBuilder(l).Del(model.MetricNameLabel).Labels()
}

// selection is targets that are taken of one replica.
type selection struct {
	who     peer
	targets []labels.Labels // What their series match.
}

// skip leaves out what belongs to none of the targets.
func (s *selection) skip(series labels.Labels) bool {
	return !slices.ContainsFunc(s.targets, func(match labels.Labels) bool { return store.HasLabels(series, match) })
}

// request asks for the series of the targets, and for not much else: for each label that all of them have, their
// values.
func (s *selection) request(i store.Interval) request {
	r := request{interval: i}
	values := map[string][]string{}
	for _, t := range s.targets {
		t.Range(func(l labels.Label) { values[l.Name] = append(values[l.Name], l.Value) })
	}
	for name, v := range values {
		if len(v) < len(s.targets) {
			continue
		}
		slices.Sort(v)
		v = slices.Compact(v)
		switch {
		case len(v) == 1:
			r.matchers = append(r.matchers, labels.MustNewMatcher(labels.MatchEqual, name, v[0]))
		case len(v) <= maxAlternatives:
			quoted := make([]string, len(v))
			for n := range v {
				quoted[n] = regexp.QuoteMeta(v[n])
			}
			r.matchers = append(r.matchers, labels.MustNewMatcher(labels.MatchRegexp, name, strings.Join(quoted, "|")))
		}
	}
	if len(r.matchers) == 0 {
		r.matchers = all(i).matchers
	}
	return r
}

// holed tells whether theirs has a success where ours has a hole, as the rule of filling has it.
func holed(ours, theirs []int64, in store.Interval) bool {
	for n, t := range theirs {
		d := int64(math.MaxInt64)
		if n > 0 {
			d = t - theirs[n-1]
		}
		if n+1 < len(theirs) {
			d = min(d, theirs[n+1]-t)
		}
		if d == math.MaxInt64 {
			d = 0
		}
		after, _ := slices.BinarySearch(ours, t)
		// Beyond the interval nothing is known, so a hole at its edge has to be wider.
		before, next := in.From-d/2, in.To+d/2
		if after > 0 {
			before = ours[after-1]
		}
		if after < len(ours) {
			next = ours[after]
		}
		if in.Contains(t) && 2*(next-before) >= 3*d && 2*(t-before) >= d && 2*(next-t) >= d && next-before > d {
			return true
		}
	}
	return false
}

// exceptions are the targets that the replica that a piece comes from did not reach at a time when another one did, unless it has
// healed that.
func (h *Heal) exceptions(p piece, from peer, views []view) []*selection {
	main := slices.IndexFunc(views, func(v view) bool { return v.Name == from.Name })
	if main < 0 {
		return nil
	}
	by := map[int]*selection{}
	for n, v := range views {
		if n == main {
			continue
		}
		for target, theirs := range v.up {
			if !holed(views[main].up[target].at, theirs.at, p.Interval) {
				continue
			}
			if slices.ContainsFunc(views[main].healed[target], func(i store.Interval) bool { return !i.Intersect(p.Interval).Empty() }) {
				continue
			}
			match := h.opts.Match(theirs.labels)
			if match.IsEmpty() {
				continue
			}
			if by[n] == nil {
				by[n] = &selection{who: v.peer}
			}
			by[n].targets = append(by[n].targets, match)
		}
	}
	var list []*selection
	for _, s := range by {
		list = append(list, s)
	}
	return list
}

// fillTargets fills gaps of targets: those that come from the same replica together.
func (h *Heal) fillTargets(ctx context.Context, gaps []store.Gap) error {
	due := map[string][]store.Interval{}
	var span store.Interval
	gaps = slices.DeleteFunc(gaps, func(g store.Gap) bool {
		parts := h.due(&g)
		if len(parts) == 0 {
			return true
		}
		due[g.ID] = parts
		first, last := parts[0].From, parts[len(parts)-1].To
		if span.To == 0 {
			span = store.Interval{From: first, To: last}
		}
		span = store.Interval{From: min(span.From, first), To: max(span.To, last)}
		return false
	})
	if len(gaps) == 0 {
		return nil
	}
	views, complete := h.views(ctx, span, labelsOf(gaps))
	if len(views) == 0 {
		return errWait
	}
	// In the first round each comes from who reached it most, and then from those who did when that one did not.
	rounds := make([]map[int][]store.Gap, len(views))
	var closing, waiting []store.Gap
	for _, g := range gaps {
		sources := sourcesOf(g.Labels.String(), views, due[g.ID])
		for round, n := range sources {
			if rounds[round] == nil {
				rounds[round] = map[int][]store.Gap{}
			}
			rounds[round][n] = append(rounds[round][n], g)
		}
		// As long as somebody who may have more cannot be asked, only what lacks nothing is closed.
		if complete || len(sources) > 0 && views[sources[0]].whole(g.Labels.String(), due[g.ID]) {
			closing = append(closing, g)
		} else {
			waiting = append(waiting, g)
		}
	}
	fills := map[string]store.Fill{}
	for _, round := range rounds {
		for n, batch := range round {
			if err := h.fillBatch(ctx, views[n].peer, batch, due, fills); err != nil {
				return err
			}
		}
	}
	for _, g := range closing {
		fill, filled := fills[g.ID]
		if !filled {
			h.metrics.runs.WithLabelValues(runNobody).Inc()
		}
		for _, i := range due[g.ID] {
			fill.Interval, fill.At = i, time.Now()
			if err := h.opts.Ledger.Filled(g.ID, fill); err != nil {
				return fmt.Errorf("note what was filled: %w", err)
			}
		}
	}
	if len(waiting) > 0 {
		return errWait
	}
	return nil
}

func labelsOf(gaps []store.Gap) []labels.Labels {
	all := make([]labels.Labels, len(gaps))
	for n := range gaps {
		all[n] = gaps[n].Labels
	}
	return all
}

// sourcesOf are the views that have something of a target: first the one that reached it most often, then those that did
// when that one did not.
func sourcesOf(target string, views []view, parts []store.Interval) (sources []int) {
	most, best := 0, -1
	for n := range views {
		count := 0
		for _, i := range parts {
			count += views[n].successes(target, i)
		}
		if count > most {
			most, best = count, n
		}
	}
	if best < 0 {
		return nil
	}
	sources = []int{best}
	for n := range views {
		if n != best && slices.ContainsFunc(parts, func(i store.Interval) bool {
			return holed(views[best].up[target].at, views[n].up[target].at, i)
		}) {
			sources = append(sources, n)
		}
	}
	return sources
}

// whole tells whether a target was reached all the time.
func (v *view) whole(target string, parts []store.Interval) bool {
	at := v.up[target].at
	for _, i := range parts {
		before, every := i.From, int64(math.MaxInt64)
		for n := range at[min(1, len(at)):] {
			every = min(every, at[n+1]-at[n])
		}
		for _, t := range append(slices.DeleteFunc(slices.Clone(at), func(t int64) bool { return !i.Contains(t) }), i.To) {
			if 2*(t-before) > 3*every {
				return false
			}
			before = t
		}
	}
	return true
}

// fillBatch fills gaps of several targets from one replica. The whole span is imported for all of them, since outside of
// its gap a target's series have no holes to be filled.
func (h *Heal) fillBatch(ctx context.Context, who peer, gaps []store.Gap, due map[string][]store.Interval, fills map[string]store.Fill) error {
	s := &selection{who: who}
	span := due[gaps[0].ID][0]
	for _, g := range gaps {
		s.targets = append(s.targets, g.Match)
		parts := due[g.ID]
		span = store.Interval{From: min(span.From, parts[0].From), To: max(span.To, parts[len(parts)-1].To)}
	}
	work := cut(piece{span, []peer{who}}, h.opts.Window)
	run := h.begin(gaps[0], work)
	defer h.finish(run)
	var sum store.Imported
	for _, p := range work {
		got, err := h.take(ctx, who, s.request(p.Interval), store.GapTarget, s.skip, run)
		if err != nil {
			return fmt.Errorf("fill targets from replica %s: %w", who.Name, err)
		}
		sum.Series, sum.Samples = max(sum.Series, got.Series), sum.Samples+got.Samples
		h.metrics.runs.WithLabelValues(runDone).Inc()
		run.part(p.Interval)
	}
	for _, g := range gaps {
		if _, ok := fills[g.ID]; !ok {
			fills[g.ID] = store.Fill{Replica: who.Name, Zone: who.Card.Zone, Series: sum.Series, Samples: sum.Samples, Targets: len(gaps)}
		}
	}
	return nil
}
