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
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/tocsin-io/tocsin/appliance/store"
)

// stepsAtOnce bounds the memory of evaluating a rule after the fact.
const stepsAtOnce = 100

// fillRules fills the evaluations of one rule group that did not take place: from another replica, and what none has by
// evaluating now.
func (h *Heal) fillRules(ctx context.Context, g store.Gap) error {
	parts := h.due(&g)
	if len(parts) == 0 || g.Lasting() {
		return nil
	}
	group := h.group(g.Labels)
	var peers []peer
	if !h.alone() {
		var complete bool
		if peers, complete = h.ask.coverages(ctx, everything()); !complete {
			return errWait
		}
	}
	for _, part := range parts {
		for _, p := range cut(piece{part, peers}, h.opts.Window) {
			fill := store.Fill{Interval: p.Interval, At: time.Now()}
			for _, who := range p.peers {
				if group == nil {
					break // The rules are gone.
				}
				got, err := h.takeRules(ctx, who, group, p.Interval)
				if err != nil {
					if ctx.Err() != nil {
						return err
					}
					continue
				}
				fill.Series, fill.Samples = got.Series, got.Samples
				if got.Samples > 0 {
					fill.Replica, fill.Zone = who.Name, who.Card.Zone
				}
				break
			}
			if err := h.evaluate(ctx, group, g, p.Interval); err != nil {
				return err
			}
			if err := h.opts.Ledger.Filled(g.ID, fill); err != nil {
				return err
			}
		}
	}
	return nil
}

// evaluable is where rules can be evaluated once a part of a gap is filled. Close to what is still missing they cannot: others
// may have evaluated them there at other times, and their samples would have to keep away from ours. Close to what was filled
// before they can now.
func evaluable(part, gap store.Interval, missing []store.Interval, margin int64) store.Interval {
	i := store.Interval{From: max(gap.From, part.From-margin), To: min(gap.To, part.To+margin)}
	for _, m := range missing {
		if m.From < part.From && part.From <= m.To {
			i.From = part.From + margin
		}
		if part.To < m.To && m.From <= part.To {
			i.To = part.To - margin
		}
	}
	return i
}

func (h *Heal) group(name labels.Labels) *rules.Group {
	all := h.opts.Groups()
	i := slices.IndexFunc(all, func(g *rules.Group) bool { return labels.Equal(GroupLabels(g), name) })
	if i < 0 {
		return nil
	}
	return all[i]
}

// GroupLabels name a rule group in the ledger.
func GroupLabels(g *rules.Group) labels.Labels {
	return labels.FromStrings("file", g.File(), "group", g.Name())
}

// takeRules imports what another replica's rules of the group recorded.
func (h *Heal) takeRules(ctx context.Context, who peer, group *rules.Group, i store.Interval) (store.Imported, error) {
	var recorded, alerts []string
	for _, r := range group.Rules() {
		switch r.(type) {
		case *rules.RecordingRule:
			recorded = append(recorded, regexp.QuoteMeta(r.Name()))
		case *rules.AlertingRule:
			alerts = append(alerts, regexp.QuoteMeta(r.Name()))
		}
	}
	var sum store.Imported
	ask := func(ms ...*labels.Matcher) error {
		got, err := h.take(ctx, who, request{interval: i, matchers: ms}, store.GapRules, nil, nil)
		sum.Series, sum.Samples = sum.Series+got.Series, sum.Samples+got.Samples
		return err
	}
	if len(recorded) > 0 {
		if err := ask(labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, strings.Join(recorded, "|"))); err != nil {
			return sum, err
		}
	}
	if len(alerts) > 0 {
		if err := ask(
			labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, "ALERTS|ALERTS_FOR_STATE"),
			labels.MustNewMatcher(labels.MatchRegexp, model.AlertNameLabel, strings.Join(alerts, "|")),
		); err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// evaluate evaluates recording rules at the times of a part of a gap at which they were not, on this replica's own data: of
// one group, or of all. A group's times follow from its name, so that they are the same on all replicas. Alerting rules
// are left alone: nobody is to be paged for the past.
func (h *Heal) evaluate(ctx context.Context, only *rules.Group, gap store.Gap, part store.Interval) error {
	missing := []store.Interval{gap.Interval}
	for _, now := range h.opts.Ledger.Open() {
		if now.ID == gap.ID {
			missing = now.Missing
		}
	}
	groups := []*rules.Group{only}
	if only == nil {
		groups = h.opts.Groups()
	}
	for _, g := range groups {
		if g == nil || g.Interval() <= 0 {
			continue
		}
		i := evaluable(part, gap.Interval, missing, 2*g.Interval().Milliseconds())
		if i.Empty() {
			continue
		}
		for _, r := range g.Rules() {
			rule, ok := r.(*rules.RecordingRule)
			if !ok {
				continue
			}
			missed, err := h.missed(ctx, g, rule, i)
			if err != nil {
				return fmt.Errorf("look for the samples of rule %s: %w", rule.Name(), err)
			}
			for steps := range slices.Chunk(missed, stepsAtOnce) {
				if err := h.evaluateAt(ctx, g, rule, i, steps); err != nil {
					return fmt.Errorf("evaluate rule %s for %s: %w", rule.Name(), clock(steps[0]), err)
				}
				if err := h.yield(ctx); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// missed are the times at which the rule has no sample here at all. It is what it is evaluated at, a rule that never
// yields anything at each of them.
func (h *Heal) missed(ctx context.Context, g *rules.Group, rule *rules.RecordingRule, i store.Interval) ([]int64, error) {
	have := map[int64]bool{}
	q, err := h.opts.Store.Local().Querier(i.From+1, i.To-1)
	if err != nil {
		return nil, err
	}
	defer func() { _ = q.Close() }() // It was only read.
	matchers := []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, rule.Name())}
	rule.Labels().Range(func(l labels.Label) {
		matchers = append(matchers, labels.MustNewMatcher(labels.MatchEqual, l.Name, l.Value))
	})
	set := q.Select(ctx, false, nil, matchers...)
	var it chunkenc.Iterator
	for set.Next() {
		it = set.At().Iterator(it)
		for it.Next() != chunkenc.ValNone {
			have[it.AtT()] = true
		}
		if err := it.Err(); err != nil {
			return nil, err
		}
	}
	if err := set.Err(); err != nil {
		return nil, err
	}
	var missed []int64
	every, offset := g.Interval(), g.QueryOffset()
	for at := g.EvalTimestamp(time.UnixMilli(i.From).Add(offset).UnixNano()).Add(-offset); at.UnixMilli() < i.To; at = at.Add(every) {
		if t := at.UnixMilli(); i.Contains(t) && !have[t] {
			missed = append(missed, t)
		}
	}
	return missed, nil
}

func (h *Heal) evaluateAt(ctx context.Context, g *rules.Group, rule *rules.RecordingRule, i store.Interval, at []int64) error {
	// One range query for steps in a row.
	every := g.Interval()
	for len(at) > 0 {
		n := 1
		for n < len(at) && at[n]-at[n-1] == every.Milliseconds() {
			n++
		}
		steps := at[:n]
		at = at[n:]
		q, err := h.opts.Engine.NewRangeQuery(ctx, h.opts.Store.Local(), nil, rule.Query().String(),
			time.UnixMilli(steps[0]), time.UnixMilli(steps[n-1]), every)
		if err != nil {
			return err
		}
		set, err := recorded(q.Exec(ctx), rule, steps, every, i)
		q.Close()
		if err != nil {
			return err
		}
		if _, err := h.opts.Store.Import(ctx, i, set, store.ImportOptions{Kind: store.GapRules}); err != nil {
			return err
		}
	}
	return nil
}

// recorded makes of a result the series that the rule would have recorded.
func recorded(res *promql.Result, rule *rules.RecordingRule, steps []int64, every time.Duration, i store.Interval) (*series, error) {
	m, err := res.Matrix()
	if err != nil {
		return nil, err
	}
	out := &series{}
	b := labels.NewBuilder(labels.EmptyLabels())
	for _, s := range m {
		b.Reset(s.Metric)
		b.Set(model.MetricNameLabel, rule.Name())
		rule.Labels().Range(func(l labels.Label) { b.Set(l.Name, l.Value) })
		f := store.ForeignSeries{Labels: b.Labels(), Interval: i}
		var samples []chunks.Sample
		for _, p := range s.Floats {
			samples = append(samples, sample{t: p.T, f: p.F})
		}
		for _, p := range s.Histograms {
			samples = append(samples, sample{t: p.T, fh: p.H})
		}
		slices.SortFunc(samples, func(a, b chunks.Sample) int { return int(a.T() - b.T()) })
		// Where it yielded nothing any more, the series ended.
		ended := samples[:0:0]
		for n, p := range samples {
			ended = append(ended, p)
			next := p.T() + every.Milliseconds()
			if next <= steps[len(steps)-1] && (n+1 == len(samples) || samples[n+1].T() > next) {
				ended = append(ended, sample{t: next, f: math.Float64frombits(value.StaleNaN)})
			}
		}
		// A chunk holds one type.
		for len(ended) > 0 {
			n := 1
			for n < len(ended) && ended[n].Type() == ended[0].Type() {
				n++
			}
			c, err := chunks.ChunkFromSamples(ended[:n])
			if err != nil {
				return nil, fmt.Errorf("encode the result: %w", err)
			}
			f.Chunks = append(f.Chunks, c)
			ended = ended[n:]
		}
		out.all = append(out.all, f)
	}
	slices.SortFunc(out.all, func(a, b store.ForeignSeries) int { return labels.Compare(a.Labels, b.Labels) })
	for n := range out.all[min(1, len(out.all)):] {
		if labels.Equal(out.all[n].Labels, out.all[n+1].Labels) {
			return nil, rules.ErrDuplicateRecordingLabelSet
		}
	}
	return out, nil
}

// series are series at hand as a store.ForeignSet.
type series struct {
	all []store.ForeignSeries
	n   int
}

func (s *series) Next() bool              { s.n++; return s.n <= len(s.all) }
func (s *series) At() store.ForeignSeries { return s.all[s.n-1] }
func (s *series) Err() error              { return nil }

// sample is a sample as upstream's encoder of chunks takes it.
type sample struct {
	t  int64
	f  float64
	fh *histogram.FloatHistogram
}

func (s sample) T() int64                      { return s.t }
func (s sample) F() float64                    { return s.f }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return s.fh }

func (s sample) Type() chunkenc.ValueType {
	if s.fh != nil {
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValFloat
}

func (s sample) Copy() chunks.Sample {
	if s.fh != nil {
		s.fh = s.fh.Copy()
	}
	return s
}
