package heal

import (
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/rules"
	"github.com/stretchr/testify/require"

	"github.com/tocsin-io/tocsin/appliance/store"
)

func groupsOf(t *testing.T, text string) []*rules.Group {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules.yml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	m := rules.NewManager(&rules.ManagerOptions{
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		ExternalURL: &url.URL{}, NameValidationScheme: model.UTF8Validation, Context: t.Context(),
		DefaultRuleQueryOffset: func() time.Duration { return 0 },
	})
	loaded, errs := m.LoadGroups(15*time.Second, labels.EmptyLabels(), "", nil, false, file)
	require.Empty(t, errs)
	var groups []*rules.Group
	for _, g := range loaded {
		groups = append(groups, g)
	}
	return groups
}

const recording = `
groups:
- name: g
  interval: 15s
  rules:
  - record: all:requests
    expr: sum(requests_total)
    labels: {kind: sum}
  - record: hot:temperature
    expr: sum(temperature > 0)
  - alert: Never
    expr: vector(1)
`

// checkRecorded holds that there is a sample for each evaluation in between, with the value of the data then.
func checkRecorded(t *testing.T, x *trial, w *world, g *rules.Group, in store.Interval) {
	t.Helper()
	got := x.samples(named("all:requests"))[`{__name__="all:requests", kind="sum"}`]
	evaluated := 0
	for at := g.EvalTimestamp(time.UnixMilli(in.From).UnixNano()); at.UnixMilli() < in.To; at = at.Add(g.Interval()) {
		ms := at.UnixMilli()
		if !in.Contains(ms) {
			continue
		}
		evaluated++
		slot := (ms - w.start) / w.every
		// Samples are there a few milliseconds into their slot.
		require.Contains(t, []string{strconv.FormatInt(slot*10, 10), strconv.FormatInt((slot-1)*10, 10)}, got[ms], "slot %d", slot)
	}
	require.Positive(t, evaluated)
	for at := range got {
		if in.Contains(at) {
			evaluated--
		}
	}
	require.Zero(t, evaluated)
	// Where it yields nothing the series ends.
	stale := 0
	for _, v := range x.samples(named("hot:temperature"))[`{__name__="hot:temperature"}`] {
		if v == "stale" {
			stale++
		}
	}
	require.Positive(t, stale)
	require.Empty(t, x.samples(named("ALERTS")))
}

// TestRulesAreEvaluatedAfterTheFact holds that recording rules that nobody evaluated in a gap are, once its data are
// there, at the times at which they would have been, once, and that alerting rules are not.
func TestRulesAreEvaluatedAfterTheFact(t *testing.T) {
	t.Parallel()
	groups := groupsOf(t, recording)
	a, w := sparse(t, trialOptions{groups: groups})
	b := newTrial(t, "b", trialOptions{seeds: []string{a.address()}})
	w.play(b, 0)
	b.begin()
	a.begin()
	a.whole()
	in := store.Interval{From: w.start + 38*w.every, To: w.start + 61*w.every}
	checkRecorded(t, a, w, groups[0], in)
	before := a.samples(anything())
	require.NoError(t, a.evaluate(t.Context(), nil, store.Gap{Interval: in}, in))
	require.Equal(t, before, a.samples(anything()))
}

// TestAMissedEvaluationIsMadeUpFor holds that so is a gap of one rule group, without any other replica.
func TestAMissedEvaluationIsMadeUpFor(t *testing.T) {
	t.Parallel()
	groups := groupsOf(t, recording)
	w := newWorld(1, time.Now().Add(-30*time.Minute), 100)
	a := newTrial(t, "a", trialOptions{groups: groups})
	clear(w.down["a"])
	for n := range w.targets {
		clear(w.cut[key("a", n)])
	}
	w.play(a, 0)
	in := store.Interval{From: w.start + 20*w.every, To: w.start + 40*w.every}
	id := a.ledger.Add(store.Gap{Kind: store.GapRules, Labels: GroupLabels(groups[0]), Interval: in, Cause: store.CauseEvaluation})
	require.NotEmpty(t, id)
	a.fill(t.Context(), store.GapRules)
	require.Empty(t, a.ledger.Open())
	checkRecorded(t, a, w, groups[0], in)
}

// TestEvaluationsKeepAwayFromWhatIsMissing fills a gap in two parts, whatever their order: in neither of them rules are evaluated
// where the other replica's evaluations, at other times than ours would have been, come with the other part.
func TestEvaluationsKeepAwayFromWhatIsMissing(t *testing.T) {
	t.Parallel()
	for _, newestFirst := range []bool{false, true} {
		groups := groupsOf(t, recording)
		a, w := sparse(t, trialOptions{groups: groups})
		b := newTrial(t, "b", trialOptions{seeds: []string{a.address()}})
		w.play(b, 0)
		// The other replica's evaluations are a little after ours, or a little before, and the cut is in between.
		after := w.every / 10
		if newestFirst {
			after = -after
		}
		first := groups[0].EvalTimestamp(w.start * 1e6).UnixMilli()
		series := labels.FromStrings("__name__", "all:requests", "kind", "sum")
		for slot := range w.slots {
			b.write(first+int64(slot+1)*w.every+after, point{labels: series, v: float64(slot)})
		}
		require.Len(t, a.ledger.Open(), 1)
		in := a.ledger.Open()[0].Interval
		b.begin()
		var peers []peer
		eventually(t, func() error {
			if peers, _ = a.ask.coverages(t.Context(), everything()); len(peers) != 1 || !peers[0].ready {
				return fmt.Errorf("b is not ready: %v", peers)
			}
			return nil
		})
		cutAt := first + 50*w.every + after/2
		parts := []store.Interval{{From: in.From, To: cutAt}, {From: cutAt - 1, To: in.To}}
		if newestFirst {
			slices.Reverse(parts)
		}
		for _, part := range parts {
			g := a.ledger.Open()[0]
			run := a.Heal.begin(g, []piece{{part, peers}})
			require.NoError(t, a.fillPiece(t.Context(), g, piece{part, peers}, peers, run))
			a.finish(run)
		}
		require.Empty(t, a.ledger.Open())
		ours, theirs := map[int64]string{}, map[int64]string{}
		// Before the first of theirs there may be one of our own, and after the last.
		in.From += 2 * w.every
		in.To -= w.every
		for x, within := range map[*trial]map[int64]string{a: ours, b: theirs} {
			for at, v := range x.samples(named("all:requests"))[series.String()] {
				if in.Contains(at) {
					within[at] = v
				}
			}
		}
		require.Greater(t, len(theirs), 15)
		require.Equal(t, theirs, ours, "newest first: %t", newestFirst)
	}
}

// TestEvaluable holds where rules can be evaluated.
func TestEvaluable(t *testing.T) {
	t.Parallel()
	gap := store.Interval{From: 0, To: 1000}
	for _, c := range []struct {
		part, want store.Interval
		missing    []store.Interval
	}{
		{part: gap, want: gap, missing: []store.Interval{gap}},
		{part: store.Interval{From: 0, To: 500}, want: store.Interval{From: 0, To: 470}, missing: []store.Interval{gap}},
		{part: store.Interval{From: 499, To: 1000}, want: store.Interval{From: 529, To: 1000}, missing: []store.Interval{gap}},
		{part: store.Interval{From: 499, To: 1000}, want: store.Interval{From: 469, To: 1000}, missing: []store.Interval{{From: 499, To: 1000}}},
		{part: store.Interval{From: 300, To: 500}, want: store.Interval{From: 330, To: 530}, missing: []store.Interval{{From: 0, To: 500}}},
		{part: store.Interval{From: 300, To: 340}, want: store.Interval{From: 330, To: 310}, missing: []store.Interval{gap}},
	} {
		require.Equal(t, c.want, evaluable(c.part, gap, c.missing, 30))
	}
}
