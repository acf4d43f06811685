package query

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
)

// engineExpressions are answered by both engines alike.
var engineExpressions = []string{
	`cpu`, `cpu{mode="idle"}`, `cpu{mode!="idle",instance=~"h[1-3]"}`, `cpu{mode="none"}`,
	`rate(cpu[1m])`, `rate(cpu[5m])`, `irate(cpu[1m])`, `increase(cpu[10m])`, `delta(memory[5m])`, `idelta(memory[5m])`,
	`deriv(memory[5m])`, `predict_linear(memory[5m], 600)`, `resets(cpu[30m])`, `changes(memory[10m])`,
	`avg_over_time(memory[5m])`, `min_over_time(memory[5m])`, `max_over_time(memory[5m])`, `sum_over_time(memory[5m])`,
	`count_over_time(memory[5m])`, `stddev_over_time(memory[5m])`, `quantile_over_time(0.9, memory[5m])`, `last_over_time(memory[5m])`, `present_over_time(gone[5m])`,
	`absent(gone)`, `absent_over_time(gone[5m])`, `absent(nothing{a="b"})`,
	`sum(rate(cpu[1m]))`, `sum by (instance) (rate(cpu[1m]))`, `sum without (mode) (rate(cpu[1m]))`, `avg by (mode) (cpu)`,
	`min(memory)`, `max by (instance) (memory)`, `count(cpu)`, `count by (mode) (cpu)`, `stddev(memory)`, `stdvar(memory)`, `group by (mode) (cpu)`,
	`topk(3, memory)`, `bottomk(2, memory)`, `quantile(0.5, memory)`, `count_values("v", round(memory, 50))`,
	`memory / 1024`, `memory > 120`, `memory > bool 120`, `-memory`, `cpu * on (instance) group_left memory`,
	`sum by (instance) (rate(cpu{mode!="idle"}[1m])) / ignoring (mode) sum by (instance) (rate(cpu[1m]))`,
	`memory and on (instance) cpu{mode="idle"}`, `memory or gone`, `memory unless on (instance) gone`, `memory ^ 2 % 7`,
	`histogram_quantile(0.9, sum by (le) (rate(request_seconds_bucket[5m])))`, `histogram_quantile(0.5, rate(request_seconds_bucket[5m]))`,
	`histogram_quantile(0.9, rate(native[5m]))`, `histogram_count(rate(native[5m]))`, `histogram_sum(native)`, `histogram_avg(rate(native[5m]))`, `histogram_fraction(0, 1, rate(native[5m]))`, `sum(rate(native[5m]))`,
	`label_replace(memory, "host", "$1", "instance", "h(.*)")`, `label_join(memory, "x", "-", "instance", "job")`,
	`memory offset 10m`, `memory offset -5m`, `memory @ end()`, `rate(cpu[5m] @ start())`, `max_over_time(memory[30m:1m])`, `max_over_time(rate(cpu[1m])[10m:])`, `avg_over_time(sum(rate(cpu[1m]))[10m:30s])`,
	`abs(memory - 100)`, `ceil(memory)`, `clamp(memory, 90, 110)`, `clamp_max(memory, 110)`, `round(memory, 5)`, `sqrt(memory)`, `ln(memory)`, `sgn(memory - 100)`, `timestamp(memory)`,
	`vector(1)`, `scalar(sum(memory))`, `time()`, `1 + 2 * 3`, `hour()`, `minute(vector(1600000000))`, `day_of_week()`, `pi()`,
	`sort(memory)`, `sort_desc(memory)`,
	`quantile_over_time(scalar(max(memory)) / 1000, memory[5m])`, // Falls back.
	`info(memory)`, // Needs experimental functions; refused alike.
}

// storeWith fills a store with targets that have a bit of everything.
func engineWorld(hosts int, over time.Duration) (*sheet, int64, int64) {
	end := time.Now().Add(-10 * time.Minute).Truncate(time.Minute).UnixMilli()
	start := end - over.Milliseconds()
	var s sheet
	hs := tsdbutil.GenerateTestHistograms(int(over/(15*time.Second)) + 1)
	for h := range hosts {
		instance := fmt.Sprint("h", h)
		for t, n := start+int64(h*137%15000), int64(0); t <= end; t, n = t+every, n+1 {
			for m, mode := range []string{"idle", "user", "system", "iowait"} {
				v := float64((n * int64(m*7+h+1)) % 4000)
				s.add(lset("__name__", "cpu", "instance", instance, "job", "node", "mode", mode), pt{t: t, f: v})
			}
			s.add(lset("__name__", "memory", "instance", instance, "job", "node"), pt{t: t, f: 100 + 50*math.Sin(float64(n+int64(h))/20)})
			for i, le := range []string{"0.1", "0.5", "1", "5", "+Inf"} {
				s.add(lset("__name__", "request_seconds_bucket", "instance", instance, "job", "node", "le", le), pt{t: t, f: float64(n * int64(i+1) * int64(h+1))})
			}
			if h < 3 {
				s.add(lset("__name__", "native", "instance", instance, "job", "node"), pt{t: t, h: hs[n].Copy()})
			}
			if h == 0 {
				switch half := (start + end) / 2; {
				case t < half:
					s.add(lset("__name__", "gone", "instance", instance, "job", "node"), pt{t: t, f: 1})
				case t < half+every:
					s.add(lset("__name__", "gone", "instance", instance, "job", "node"), pt{t: t, f: math.Float64frombits(value.StaleNaN)})
				}
			}
		}
	}
	return &s, start, end
}

// run evaluates without closing: rules that forget it must not leak either.
func run(t testing.TB, e promql.QueryEngine, q storage.Queryable, expr string, start, end int64, step time.Duration) (parser.Value, error) {
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
		return nil, err
	}
	r := query.Exec(t.Context())
	return r.Value, r.Err
}

// near are values that differ by no more than the order in which floats are added.
func near(a, b float64) bool {
	return a == b || math.IsNaN(a) && math.IsNaN(b) || math.Abs(a-b) <= 1e-9*max(math.Abs(a), math.Abs(b))
}

func nearHistogram(a, b *histogram.FloatHistogram) bool {
	if a == nil || b == nil {
		return a == b
	}
	a, b = a.Copy().Compact(0), b.Copy().Compact(0)
	return near(a.Sum, b.Sum) && near(a.Count, b.Count) && near(a.ZeroCount, b.ZeroCount) && a.Schema == b.Schema &&
		slices.EqualFunc(a.PositiveBuckets, b.PositiveBuckets, near) && slices.EqualFunc(a.NegativeBuckets, b.NegativeBuckets, near)
}

func sameValue(a, b parser.Value, ordered bool) bool {
	switch a := a.(type) {
	case promql.Scalar:
		b, ok := b.(promql.Scalar)
		return ok && a.T == b.T && near(a.V, b.V)
	case promql.Vector:
		b, ok := b.(promql.Vector)
		if !ok {
			return false
		}
		a, b = slices.Clone(a), slices.Clone(b)
		if !ordered {
			for _, v := range []promql.Vector{a, b} {
				slices.SortFunc(v, func(x, y promql.Sample) int { return labels.Compare(x.Metric, y.Metric) })
			}
		}
		return slices.EqualFunc(a, b, func(x, y promql.Sample) bool {
			return labels.Equal(x.Metric, y.Metric) && x.T == y.T && near(x.F, y.F) && nearHistogram(x.H, y.H)
		})
	case promql.Matrix:
		b, ok := b.(promql.Matrix)
		return ok && slices.EqualFunc(a, b, func(x, y promql.Series) bool {
			return labels.Equal(x.Metric, y.Metric) &&
				slices.EqualFunc(x.Floats, y.Floats, func(f, g promql.FPoint) bool { return f.T == g.T && near(f.F, g.F) }) &&
				slices.EqualFunc(x.Histograms, y.Histograms, func(f, g promql.HPoint) bool { return f.T == g.T && nearHistogram(f.H, g.H) })
		})
	}
	return a.String() == b.String()
}

// TestEnginesAgree holds that the choice of the engine changes no answer, and that none leaves a querier open.
func TestEnginesAgree(t *testing.T) {
	data, start, end := engineWorld(6, 2*time.Hour)
	r := newReplica(t, true, func(o *Options) { o.Engine = EngineThanos })
	data.fill(t, r.own)
	for _, expr := range engineExpressions {
		for _, step := range []time.Duration{0, 15 * time.Second, time.Minute} {
			from := start
			if step == 0 {
				from = end - 65*60_000
			}
			want, wantErr := run(t, r.engine, r.own, expr, from, end, step)
			got, err := run(t, r.Engine(), r.own, expr, from, end, step)
			if (err == nil) != (wantErr == nil) {
				t.Errorf("%s by %s: error %v, want %v", expr, step, err, wantErr)
				continue
			}
			if err == nil && !sameValue(got, want, strings.HasPrefix(expr, "sort")) {
				t.Errorf("%s by %s:\ngot  %.800s\nwant %.800s", expr, step, got, want)
			}
		}
	}
	if n := gauge(t, r.reg, "tocsin_storage_open_queriers"); n != 0 {
		t.Errorf("%v queriers were left open", n)
	}
	if n := gauge(t, r.reg, "tocsin_query_engine_fallbacks_total"); n == 0 {
		t.Error("nothing fell back: the expressions that should are missing")
	}
}

// TestFallback holds that what the Thanos engine does not do is done all the same, and that a query cut short has
// upstream's errors.
func TestFallback(t *testing.T) {
	data, start, end := engineWorld(2, 30*time.Minute)
	r := newReplica(t, true, func(o *Options) { o.Engine = EngineThanos })
	data.fill(t, r.own)
	was := gauge(t, r.reg, "tocsin_query_engine_fallbacks_total")
	for i, expr := range []string{`quantile_over_time(scalar(max(memory)) / 1000, memory[5m])`, `"a string"`} {
		if _, err := run(t, r.Engine(), r.own, expr, end, end, 0); err != nil {
			t.Errorf("%s: %v", expr, err)
		}
		if now := gauge(t, r.reg, "tocsin_query_engine_fallbacks_total"); now != was+float64(i+1) {
			t.Errorf("%s: %v fallbacks, want %d", expr, now-was, i+1)
		}
	}
	was = gauge(t, r.reg, "tocsin_query_engine_fallbacks_total")
	if _, err := run(t, r.Engine(), r.own, `rate(cpu[1m])`, start, end, time.Minute); err != nil {
		t.Error(err)
	}
	if now := gauge(t, r.reg, "tocsin_query_engine_fallbacks_total"); now != was {
		t.Error("a plain expression fell back")
	}
	// A modifier that the engine would ignore.
	parser.EnableExtendedRangeSelectors = true
	defer func() { parser.EnableExtendedRangeSelectors = false }()
	for _, expr := range []string{`rate(cpu[50s] anchored)`, `rate(cpu[50s] smoothed)`} {
		want, err := run(t, r.engine, r.own, expr, end-7_000, end-7_000, 0)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := run(t, r.engine, r.own, `rate(cpu[50s])`, end-7_000, end-7_000, 0)
		if err != nil {
			t.Fatal(err)
		}
		got, err := run(t, r.Engine(), r.own, expr, end-7_000, end-7_000, 0)
		if err != nil || !sameValue(got, want, false) || sameValue(got, plain, false) {
			t.Errorf("%s: %v, got %v, want %v", expr, err, got, want)
		}
	}
	for expr, code := range map[string]int{"rate(cpu": 400, "cpu[5m] + 1": 400, "max_over_time(vector(1)[290y:1s])": 400, `cpu * on (job) memory`: 422} {
		if a := r.get(t, "query", "query", expr, "time", stamp(end)); a.code != code {
			t.Errorf("%s: %d %s", expr, a.code, a.Error)
		}
	}
	if a := r.get(t, "query", "query", "cpu", "stats", "all", "time", stamp(end)); a.code != 200 || !strings.Contains(string(a.Data), `"stats"`) {
		t.Errorf("stats: %d %s", a.code, a.Error)
	}
}

var dashboard = []string{
	`cpu{instance="h7"}`,
	`rate(cpu[5m])`,
	`sum(rate(cpu[5m]))`,
	`sum by (mode) (rate(cpu[5m]))`,
	`sum by (instance) (rate(cpu{mode!="idle"}[5m]))`,
	`1 - avg by (instance) (rate(cpu{mode="idle"}[5m]))`,
	`100 * sum by (instance) (rate(cpu{mode="user"}[5m])) / on (instance) sum by (instance) (rate(cpu[5m]))`,
	`topk(10, sum by (instance) (rate(cpu[5m])))`,
	`irate(cpu{mode="user"}[1m])`,
	`increase(cpu{mode="system"}[1h])`,
	`memory`,
	`sum(memory)`,
	`avg(memory) / max(memory)`,
	`avg_over_time(memory[10m])`,
	`max_over_time(memory[1h])`,
	`quantile(0.95, memory)`,
	`deriv(memory[15m])`,
	`predict_linear(memory[1h], 14400) < 0`,
	`histogram_quantile(0.99, sum by (le) (rate(request_seconds_bucket[5m])))`,
	`histogram_quantile(0.9, sum by (le, instance) (rate(request_seconds_bucket[5m])))`,
	`sum(rate(request_seconds_bucket{le="1"}[5m])) / sum(rate(request_seconds_bucket{le="+Inf"}[5m]))`,
	`max_over_time(sum(rate(cpu[5m]))[30m:1m])`,
	`count by (mode) (cpu > 1000)`,
	`cpu * on (instance) group_left memory`,
	`changes(memory[30m])`,
	`count(up{job="node"} == 0) or vector(0)`,
}

// BenchmarkEngines asks both engines what dashboards ask: an hour by 30 seconds, and the same at one moment.
func BenchmarkEngines(b *testing.B) {
	data, _, end := engineWorld(500, 2*time.Hour)
	r := newReplica(b, true, func(o *Options) { o.Engine = EngineThanos })
	data.fill(b, r.own)
	for i, expr := range dashboard {
		for _, kind := range []struct {
			name  string
			start int64
			step  time.Duration
		}{{"range", end - 3600_000, 30 * time.Second}, {"instant", end, 0}} {
			for name, e := range map[string]promql.QueryEngine{EnginePrometheus: r.engine, EngineThanos: r.Engine()} {
				b.Run(fmt.Sprintf("%02d/%s/%s", i, kind.name, name), func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						if _, err := run(b, e, r.own, expr, kind.start, end, kind.step); err != nil {
							b.Fatal(expr, err)
						}
					}
				})
			}
		}
	}
}
