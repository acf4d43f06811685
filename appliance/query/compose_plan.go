package query

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/grafana/regexp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/tocsin-io/tocsin/appliance/store"
)

const (
	// maxSingleTargets is how many targets are asked for one by one. A zone that is cut off loses a thousand at once.
	maxSingleTargets = 8
	// maxAsksEach is how many intervals are asked for one by one, of one target or of all.
	maxAsksEach = 8
	// maxAlternatives is how many values of a label a question names.
	maxAlternatives = 200
	// ownMargin and theirMargin, in milliseconds, are how far around a query data are looked at: whether a staleness
	// marker or another replica's sample counts depends on the samples before and after it. Theirs is one and a half
	// times the longest scrape interval that goes with a lookback of five minutes.
	ownMargin   = store.SpliceMargin
	theirMargin = 180_000
)

// before and after stop at the ends of time.
func before(t, by int64) int64 { return max(t, math.MinInt64+by) - by }
func after(t, by int64) int64  { return min(t, math.MaxInt64-by) + by }

// ask is one question to the other replicas.
type ask struct {
	interval store.Interval
	matchers []*labels.Matcher
	// of says whose data it is about, and lasts that they are still missing.
	of    string
	lasts bool
}

// String says what would be missing without an answer.
func (a *ask) String() string {
	from, to := time.UnixMilli(a.interval.From).UTC(), time.UnixMilli(a.interval.To).UTC()
	switch {
	case a.interval.From < 0:
		return fmt.Sprintf("of %s before %s", a.of, to.Format(time.RFC3339))
	case a.lasts:
		return fmt.Sprintf("of %s since %s", a.of, from.Format(time.RFC3339))
	}
	return fmt.Sprintf("of %s between %s and %s", a.of, from.Format(time.RFC3339), to.Format(time.RFC3339))
}

// plan is what to ask, and what of the answers to use.
type plan struct {
	asks []ask
	// everywhere is missing of each series.
	everywhere []store.Interval
	// shapes find what else is missing of a series.
	shapes []shape
}

// shape holds gaps whose series are known by the same label names.
type shape struct {
	names []string
	holes map[string][]*hole // by the values of these labels
}

// hole is what a query meets of a gap.
type hole struct {
	missing   *store.Missing
	intervals []store.Interval
}

// planAll asks for everything.
func planAll(within store.Interval, ms []*labels.Matcher) plan {
	if within.Empty() {
		return plan{}
	}
	return plan{
		asks:       []ask{{interval: within, matchers: ms, of: "any series"}},
		everywhere: []store.Interval{within},
	}
}

// planMissing asks for what is missing of the series that ms select. A gap that lasts is asked for until now, in Unix
// milliseconds.
func planMissing(missing []store.Missing, within store.Interval, now int64, ms []*labels.Matcher) plan {
	var (
		p       plan
		targets []*hole
	)
	for i := range missing {
		m := &missing[i]
		if !canMeet(m, ms) {
			continue
		}
		h := &hole{missing: m}
		for _, iv := range m.Intervals {
			if iv.To == store.Lasts {
				iv.To = now
			}
			if iv = iv.Intersect(within); !iv.Empty() {
				h.intervals = append(h.intervals, iv)
			}
		}
		if len(h.intervals) == 0 {
			continue
		}
		if m.Match.IsEmpty() && m.Kind == store.GapReplica {
			p.everywhere = append(p.everywhere, h.intervals...)
			continue
		}
		targets = append(targets, h)
		p.index(h)
	}
	p.everywhere = union(p.everywhere)
	broad := join(p.everywhere, maxAsksEach)
	for _, iv := range broad {
		p.asks = append(p.asks, ask{iv, ms, "any series", iv.To == now})
	}
	// What is asked for anyway is not asked for again.
	rest := targets[:0:0]
	for _, h := range targets {
		left := h.intervals
		for _, iv := range broad {
			left = store.Subtract(left, iv)
		}
		if len(left) > 0 {
			rest = append(rest, &hole{h.missing, left})
		}
	}
	if len(rest) <= maxSingleTargets {
		for _, h := range rest {
			for _, iv := range join(union(h.intervals), maxAsksEach) {
				p.asks = append(p.asks, ask{iv, narrow(ms, []*hole{h}), about(h.missing), iv.To == now})
			}
		}
		return p
	}
	var all []store.Interval
	for _, h := range rest {
		all = append(all, h.intervals...)
	}
	for _, iv := range join(union(all), maxAsksEach) {
		var in []*hole
		for _, h := range rest {
			if slices.ContainsFunc(h.intervals, func(i store.Interval) bool { return !i.Intersect(iv).Empty() }) {
				in = append(in, h)
			}
		}
		of := fmt.Sprintf("%d targets", len(in))
		if len(in) == 1 {
			of = about(in[0].missing)
		}
		p.asks = append(p.asks, ask{iv, narrow(ms, in), of, iv.To == now})
	}
	return p
}

func about(m *store.Missing) string {
	if m.Match.IsEmpty() {
		return "any series"
	}
	return m.Match.String()
}

// canMeet tells whether a selector may select a series that the gap is about.
func canMeet(m *store.Missing, ms []*labels.Matcher) bool {
	for _, matcher := range ms {
		if matcher.Name == model.MetricNameLabel && matcher.Type == labels.MatchEqual &&
			m.Kind != store.GapReplica && store.IsHealth(matcher.Value) {
			return false
		}
		if v := m.Match.Get(matcher.Name); v != "" && !matcher.Matches(v) {
			return false
		}
	}
	return true
}

// narrow adds what the series of all the holes have in common.
func narrow(ms []*labels.Matcher, holes []*hole) []*labels.Matcher {
	ms = slices.Clone(ms)
	holes[0].missing.Match.Range(func(l labels.Label) {
		seen := map[string]struct{}{}
		for _, h := range holes {
			v := h.missing.Match.Get(l.Name)
			if v == "" {
				return
			}
			if seen[v] = struct{}{}; len(seen) > maxAlternatives {
				return
			}
		}
		if len(seen) == 1 {
			ms = append(ms, labels.MustNewMatcher(labels.MatchEqual, l.Name, l.Value))
			return
		}
		values := make([]string, 0, len(seen))
		for v := range seen {
			values = append(values, regexp.QuoteMeta(v))
		}
		slices.Sort(values)
		m, err := labels.NewMatcher(labels.MatchRegexp, l.Name, strings.Join(values, "|"))
		if err != nil {
			return // The answer is larger without it, and no different.
		}
		ms = append(ms, m)
	})
	return ms
}

// index makes wanted find a hole.
func (p *plan) index(h *hole) {
	var names []string
	var key []byte
	h.missing.Match.Range(func(l labels.Label) {
		names = append(names, l.Name)
		key = append(append(key, l.Value...), 0xff)
	})
	i := slices.IndexFunc(p.shapes, func(s shape) bool { return slices.Equal(s.names, names) })
	if i < 0 {
		i = len(p.shapes)
		p.shapes = append(p.shapes, shape{names, map[string][]*hole{}})
	}
	p.shapes[i].holes[string(key)] = append(p.shapes[i].holes[string(key)], h)
}

// wanted is what is missing of a series.
func (p *plan) wanted(series labels.Labels) []store.Interval {
	found := p.everywhere
	var (
		buf   [256]byte
		owned bool
	)
	for _, s := range p.shapes {
		key := buf[:0]
		for _, n := range s.names {
			key = append(append(key, series.Get(n)...), 0xff)
		}
		for _, h := range s.holes[string(key)] {
			if !h.missing.Concerns(series) || h.missing.Kind != store.GapReplica && store.IsHealth(series.Get(model.MetricNameLabel)) {
				continue
			}
			if !owned && len(found) > 0 {
				found = slices.Clone(found)
			}
			if len(found) == 0 {
				found = h.intervals[:len(h.intervals):len(h.intervals)]
				continue
			}
			found, owned = append(found, h.intervals...), true
		}
	}
	if !owned {
		return found
	}
	return union(found)
}

// union is the same time in intervals that do not overlap, in order. It alters what it is given.
func union(ivs []store.Interval) []store.Interval {
	slices.SortFunc(ivs, func(a, b store.Interval) int { return cmp.Compare(a.From, b.From) })
	var u []store.Interval
	for _, iv := range ivs {
		if n := len(u); n > 0 && iv.From < u[n-1].To {
			u[n-1].To = max(u[n-1].To, iv.To)
			continue
		}
		u = append(u, iv)
	}
	return u
}

// join makes at most n intervals of many, by what lies least far apart.
func join(ivs []store.Interval, n int) []store.Interval {
	if len(ivs) <= n {
		return ivs
	}
	apart := make([]int, len(ivs)-1) // i stands for what is between i and i+1
	for i := range apart {
		apart[i] = i
	}
	slices.SortStableFunc(apart, func(a, b int) int {
		return cmp.Compare(ivs[b+1].From-ivs[b].To, ivs[a+1].From-ivs[a].To)
	})
	cuts := apart[:n-1]
	slices.Sort(cuts)
	joined := make([]store.Interval, 0, n)
	first := 0
	for _, c := range cuts {
		joined = append(joined, store.Interval{From: ivs[first].From, To: ivs[c].To})
		first = c + 1
	}
	return append(joined, store.Interval{From: ivs[first].From, To: ivs[len(ivs)-1].To})
}
