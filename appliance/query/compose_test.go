package query

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"

	"github.com/tocsin-io/tocsin/appliance/store"
)

var composedExpressions = []string{
	`requests_total`,
	`{__name__=~"short|ended|began"}`,
	`rate(requests_total[1m])`,
	`rate(requests_total{instance="i1"}[5m])`,
	`increase(requests_total[10m])`,
	`resets(requests_total[30m])`,
	`changes(switched[20m])`,
	`count_over_time(requests_total[5m])`,
	`avg_over_time(temperature[5m])`,
	`max_over_time(temperature[90s])`,
	`deriv(temperature[2m])`,
	`absent(short)`,
	`absent(requests_total{instance="i1"})`,
	`absent_over_time(ended[2m])`,
	`max_over_time(rate(requests_total[2m])[10m:30s])`,
	`avg_over_time(temperature[30m:])`,
	`histogram_quantile(0.9, rate(latency[2m]))`,
	`histogram_count(increase(latency[5m]))`,
	`sum by (job) (rate(requests_total[2m]))`,
	`count(up == 1)`,
	`temperature offset 20m`,
	`delta(temperature[1m] offset -5m)`,
	`timestamp(temperature)`,
	`last_over_time(began[1m]) + on (instance) temperature`,
	`requests_total unless on (instance) ended`,
}

func answer(t testing.TB, e promql.QueryEngine, q storage.Queryable, expr string, start, end int64, step time.Duration) string {
	t.Helper()
	var (
		query promql.Query
		err   error
	)
	if step == 0 {
		query, err = e.NewInstantQuery(t.Context(), q, nil, expr, time.UnixMilli(start))
	} else {
		query, err = e.NewRangeQuery(t.Context(), q, nil, expr, time.UnixMilli(start), time.UnixMilli(end), step)
	}
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	defer query.Close()
	r := query.Exec(t.Context())
	if r.Err != nil {
		t.Fatalf("%s: %v", expr, r.Err)
	}
	for w := range r.Warnings {
		if strings.Contains(w, "replica") {
			t.Errorf("%s: warning %s", expr, w)
		}
	}
	lines := strings.Split(r.Value.String(), "\n")
	if step == 0 {
		slices.Sort(lines)
	}
	return strings.Join(lines, "\n")
}

// TestComposedEqualsWhole holds that queries over a gap answer as if this replica had the data itself.
func TestComposedEqualsWhole(t *testing.T) {
	target := lset("instance", "i1", "job", "node")
	type gap struct {
		name, engine     string
		lost             func(labels.Labels) bool
		markers, lasting bool
		missing          func(w *world) ledger
	}
	between := func(w *world) []store.Interval { return []store.Interval{{From: w.from, To: w.to}} }
	gaps := []gap{
		{"replica", EnginePrometheus, everything, false, false, replicaGap},
		{"replica, the other engine", EngineThanos, everything, false, false, replicaGap},
		{"target", EnginePrometheus, ofTarget, true, false, func(w *world) ledger {
			return ledger{{Kind: store.GapTarget, Match: target, Intervals: between(w)}}
		}},
		{"target, lasting", EnginePrometheus, ofTarget, true, true, func(w *world) ledger {
			return ledger{{Kind: store.GapTarget, Match: target, Intervals: between(w)}}
		}},
		{"many targets", EnginePrometheus, everything, true, false, func(w *world) (l ledger) {
			for i := range 1000 {
				l = append(l, store.Missing{Kind: store.GapTarget, Match: lset("instance", fmt.Sprint("i", i), "job", "node"), Intervals: between(w)})
			}
			return l
		}},
		{"replica and target at once, in parts", EnginePrometheus, everything, false, false, func(w *world) ledger {
			return ledger{
				{Kind: store.GapTarget, Match: target, Intervals: []store.Interval{{From: w.from, To: w.to - 300_000}}},
				{Kind: store.GapReplica, Intervals: between(w)},
			}
		}},
	}
	for _, g := range gaps {
		t.Run(g.name, func(t *testing.T) {
			w := newWorld(g.lost, g.markers, g.lasting)
			peers := &others{sheet: &w.theirs}
			r := newReplica(t, true, func(o *Options) { o.Gaps, o.Peers, o.Engine = g.missing(w), peers, g.engine })
			w.own.fill(t, r.own)
			want := w.spliced.reference(t)

			seams := []int64{w.from, min(w.to, w.end-1)}
			differed := 0
			for _, expr := range composedExpressions {
				for _, seam := range seams {
					for _, d := range []int64{-301_000, -30_000, -1, 0, 1, 6_999, 7_000, 8_000, 15_000, 16_000, 23_000, 61_000, 299_999, 600_000} {
						at := seam + d
						got, wanted := answer(t, r.Engine(), r.Queryable(), expr, at, at, 0), answer(t, r.Engine(), want, expr, at, at, 0)
						if got != wanted {
							t.Fatalf("%s at the seam %+d ms:\ngot  %s\nwant %s", expr, d, got, wanted)
						}
						if got != answer(t, r.Engine(), r.own, expr, at, at, 0) {
							differed++
						}
					}
				}
				for _, step := range []time.Duration{15 * time.Second, 37 * time.Second} {
					got := answer(t, r.Engine(), r.Queryable(), expr, w.start, w.end, step)
					if wanted := answer(t, r.Engine(), want, expr, w.start, w.end, step); got != wanted {
						t.Fatalf("%s by %s:\ngot  %s\nwant %s", expr, step, got, wanted)
					}
				}
			}
			if differed < 50 {
				t.Errorf("own data alone give another answer only %d times: the test shows little", differed)
			}
			if len(peers.questions()) == 0 {
				t.Error("nobody was asked")
			}
		})
	}
}

func spliceWorld(t *testing.T, m func(w *world) ledger) (*world, *others, *replica) {
	t.Helper()
	w := newWorld(everything, false, false)
	peers := &others{sheet: &w.theirs}
	r := newReplica(t, true, func(o *Options) { o.Gaps, o.Peers = m(w), peers })
	w.own.fill(t, r.own)
	return w, peers, r
}

func replicaGap(w *world) ledger {
	return ledger{{Kind: store.GapReplica, Intervals: []store.Interval{{From: w.from, To: w.to}}}}
}

func stamp(ms int64) string { return fmt.Sprintf("%.3f", float64(ms)/1000) }
