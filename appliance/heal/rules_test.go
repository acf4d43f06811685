package heal

import (
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
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
	require.NoError(t, a.evaluate(t.Context(), nil, in))
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
