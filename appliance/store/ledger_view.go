package store

import (
	"cmp"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/prometheus/model/labels"
)

const (
	completenessWindow = 24 * time.Hour
	// targetWeight is what one target or rule group counts of everything, and targetsWeight what all do at most.
	targetWeight, targetsWeight = 0.001, 0.1
	// maxLines is how many gaps of a kind are logged one by one at a time.
	maxLines = 3
)

// view is what is missing, as queries need it. It is never changed.
type view struct {
	// missing is in order of the first interval's begin.
	missing []Missing
	// hull is from the first that is missing to the last.
	hull Interval
}

// Missing is what this replica misses in [mint, maxt], in Unix milliseconds: nil if nothing. What is missing of a gap
// that reaches out of it is there in whole. Nothing of it may be changed.
func (l *Ledger) Missing(mint, maxt int64) []Missing {
	if b := l.beaten.Load(); b != 0 {
		// After a freeze a rule may ask before the beat that would have told.
		if now := time.Now(); now.UnixMilli()-b > frozenAfter.Milliseconds() {
			l.mu.Lock()
			l.notice(now)
			l.unlock()
		}
	}
	v := l.view.Load()
	if v == nil {
		v = l.look()
	}
	if len(v.missing) == 0 || !v.hull.Meets(mint, maxt) {
		return nil
	}
	begun := v.missing[:sort.Search(len(v.missing), func(i int) bool { return v.missing[i].Intervals[0].From >= maxt })]
	n := 0
	for i := range begun {
		if begun[i].meets(mint, maxt) {
			n++
		}
	}
	switch n {
	case 0:
		return nil
	case len(begun):
		return slices.Clip(begun)
	}
	some := make([]Missing, 0, n)
	for i := range begun {
		if begun[i].meets(mint, maxt) {
			some = append(some, begun[i])
		}
	}
	return some
}

func (m *Missing) meets(mint, maxt int64) bool {
	i := sort.Search(len(m.Intervals), func(i int) bool { return m.Intervals[i].To > mint })
	return i < len(m.Intervals) && m.Intervals[i].From < maxt
}

// look makes the view anew after a change.
func (l *Ledger) look() *view {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := l.view.Load(); v != nil {
		return v
	}
	type about struct {
		kind  GapKind
		match uint64
	}
	at := map[about]int{}
	v := &view{}
	for _, g := range l.gaps {
		if g.State != GapOpen || len(g.Missing) == 0 {
			continue
		}
		key := about{g.Kind, g.Match.Hash()}
		i, ok := at[key]
		if ok && labels.Equal(v.missing[i].Match, g.Match) {
			v.missing[i].Intervals = normal(append(v.missing[i].Intervals, g.Missing...))
			continue
		}
		at[key] = len(v.missing)
		v.missing = append(v.missing, Missing{Kind: g.Kind, Match: g.Match, Intervals: slices.Clone(g.Missing)})
	}
	slices.SortFunc(v.missing, func(a, b Missing) int {
		return cmp.Or(cmp.Compare(a.Intervals[0].From, b.Intervals[0].From), cmp.Compare(a.Kind, b.Kind),
			labels.Compare(a.Match, b.Match))
	})
	for i, m := range v.missing {
		if i == 0 {
			v.hull.From = m.Intervals[0].From
		}
		v.hull.To = max(v.hull.To, m.Intervals[len(m.Intervals)-1].To)
	}
	l.view.Store(v)
	return v
}

// missed is how much of an interval is missing, in milliseconds.
func (m *Missing) missed(in Interval) (ms int64) {
	for _, i := range m.Intervals {
		if i = i.Intersect(in); !i.Empty() {
			ms += i.To - i.From
		}
	}
	return ms
}

// Completeness is how much of the last 24 hours this replica has, or of the retention if that is shorter, from 0 to 1:
// 1 less the share of time in which open gaps of everything miss something. A target or a rule group counts as a
// thousandth of everything, and all of them together no more than a tenth. What was found to be nowhere is not missing.
func (l *Ledger) Completeness() float64 {
	if b := l.beaten.Load(); b != 0 {
		// After a freeze a rule may ask before the beat that would have told.
		if now := time.Now(); now.UnixMilli()-b > frozenAfter.Milliseconds() {
			l.mu.Lock()
			l.notice(now)
			l.unlock()
		}
	}
	v := l.view.Load()
	if v == nil {
		v = l.look()
	}
	if len(v.missing) == 0 {
		return 1
	}
	window := completenessWindow
	if keep := l.retention(); keep > 0 {
		window = min(window, keep)
	}
	now := time.Now().UnixMilli()
	in := Interval{now - window.Milliseconds(), now}
	var all, some float64
	for i := range v.missing {
		share := float64(v.missing[i].missed(in)) / float64(max(window.Milliseconds(), 1))
		if v.missing[i].Kind == GapReplica {
			all += share
		} else {
			some += share * targetWeight
		}
	}
	return min(max(1-all-min(some, targetsWeight), 0), 1)
}

type ledgerMetrics struct {
	open          *prometheus.GaugeVec
	found, closed *prometheus.CounterVec
}

func newLedgerMetrics(r prometheus.Registerer, l *Ledger) *ledgerMetrics {
	reg := promauto.With(r)
	m := &ledgerMetrics{
		open: reg.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tocsin_gaps_open",
			Help: "Gaps in this replica's data that are open: another replica may have what is missing.",
		}, []string{"kind"}),
		found: reg.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_gaps_found_total",
			Help: "Gaps that were found in this replica's data.",
		}, []string{"kind", "cause"}),
		closed: reg.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_gaps_closed_total",
			Help: "Gaps that were closed: healed with another replica's data, or lost because no replica has any.",
		}, []string{"kind", "state"}),
	}
	reg.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tocsin_gap_open_seconds",
		Help: "Time in which everything is missing in this replica's data. A gap that lasts counts until now.",
	}, func() float64 {
		v := l.view.Load()
		if v == nil {
			v = l.look()
		}
		var ms int64
		until := Interval{0, time.Now().UnixMilli()}
		for i := range v.missing {
			if v.missing[i].Kind == GapReplica {
				ms += v.missing[i].missed(until)
			}
		}
		return float64(ms) / 1000
	})
	for kind, causes := range map[GapKind][]string{
		GapReplica: {CauseDown, CauseFrozen, CauseNew}, GapTarget: {CauseUnreachable}, GapRules: {CauseEvaluation},
	} {
		m.open.WithLabelValues(string(kind))
		for _, cause := range causes {
			m.found.WithLabelValues(string(kind), cause)
		}
		for _, state := range []GapState{GapHealed, GapLost} {
			m.closed.WithLabelValues(string(kind), string(state))
		}
	}
	return m
}

// line is one line of the log. Lines are written when the lock is free again.
type line struct {
	message string
	args    []any
}

// unlock frees the lock and logs what happened under it.
func (l *Ledger) unlock() {
	lines := l.lines
	l.lines = nil
	l.mu.Unlock()
	for _, n := range lines {
		l.logger.Info(n.message, n.args...)
	}
}

// newsKey and tally are what is to be logged of the gaps that do not concern everything.
type newsKey struct {
	kind    GapKind
	outcome string // The cause of one that was found, or the state of one that was closed.
	closed  bool
}

type tally struct {
	gaps    int
	samples int64
	span    Interval
	sources map[string]struct{}
	lines   []line
}

// found counts and logs a new gap.
func (l *Ledger) found(g *Gap) {
	l.metrics.found.WithLabelValues(string(g.Kind), g.Cause).Inc()
	l.note(newsKey{g.Kind, g.Cause, false}, g, line{"a gap in this replica's data was found", []any{
		"kind", g.Kind, "gap_labels", g.Labels.String(), "cause", g.Cause, "from", readable(g.From), "to", readable(g.To),
	}})
}

// over counts and logs a gap that is closed.
func (l *Ledger) over(g *Gap) {
	l.metrics.closed.WithLabelValues(string(g.Kind), string(g.State)).Inc()
	samples, sources := g.filled()
	l.note(newsKey{g.Kind, string(g.State), true}, g, line{"a gap in this replica's data was closed", []any{
		"kind", g.Kind, "gap_labels", g.Labels.String(), "state", g.State, "from", readable(g.From), "to", readable(g.To),
		"took", g.Closed.Sub(g.Found).Round(time.Millisecond), "samples", samples, "replicas", sorted(sources),
	}})
}

func (l *Ledger) note(key newsKey, g *Gap, n line) {
	if g.Kind == GapReplica {
		l.lines = append(l.lines, n)
		return
	}
	t := l.news[key]
	if t == nil {
		t = &tally{span: g.Interval, sources: map[string]struct{}{}}
		l.news[key] = t
	}
	t.gaps++
	samples, sources := g.filled()
	t.samples += samples
	maps.Copy(t.sources, sources)
	t.span = Interval{min(t.span.From, g.From), max(t.span.To, g.To)}
	if len(t.lines) < maxLines {
		t.lines = append(t.lines, n)
	}
}

// tell logs gaps of targets and rules: a few one by one and many, as when a zone is cut off, in one line.
func (l *Ledger) tell() {
	for key, t := range l.news {
		if t.gaps <= maxLines {
			l.lines = append(l.lines, t.lines...)
			continue
		}
		span := []any{"kind", key.kind, "gaps", t.gaps, "from", readable(t.span.From), "to", readable(t.span.To)}
		if key.closed {
			l.lines = append(l.lines, line{"gaps in this replica's data were closed", append(span,
				"state", key.outcome, "samples", t.samples, "replicas", sorted(t.sources))})
			continue
		}
		l.lines = append(l.lines, line{"gaps in this replica's data were found", append(span, "cause", key.outcome)})
	}
	clear(l.news)
}

func (g *Gap) filled() (samples int64, sources map[string]struct{}) {
	sources = map[string]struct{}{}
	for _, f := range g.Fills {
		samples += f.Samples
		if f.Replica != "" {
			sources[f.Replica] = struct{}{}
		}
	}
	return samples, sources
}

func sorted(of map[string]struct{}) string { return strings.Join(slices.Sorted(maps.Keys(of)), ",") }

func readable(ms int64) string {
	if ms == Lasts {
		return "lasts"
	}
	return time.UnixMilli(ms).UTC().Format(time.RFC3339)
}
