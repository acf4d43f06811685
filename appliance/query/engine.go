package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/thanos-io/promql-engine/engine"
)

// Engines that evaluate PromQL.
const (
	EnginePrometheus = "prometheus"
	// EngineThanos goes through many steps of a series at once, on several cores. What it does not implement goes to the
	// Prometheus engine. It writes no query log and counts no samples.
	EngineThanos = "thanos"
)

// thanos is the Thanos engine, with upstream's for what it does not do.
type thanos struct {
	engine    promql.QueryEngine
	upstream  promql.QueryEngine
	logger    *slog.Logger
	fallbacks prometheus.Counter
}

func newThanos(opts promql.EngineOpts, upstream promql.QueryEngine) *thanos {
	return &thanos{
		engine:   engine.New(engine.Opts{EngineOpts: opts}),
		upstream: upstream,
		logger:   opts.Logger,
		fallbacks: promauto.With(opts.Reg).NewCounter(prometheus.CounterOpts{
			Name: "tocsin_query_engine_fallbacks_total",
			Help: "Queries that went to the Prometheus engine, because the Thanos engine does not implement them.",
		}),
	}
}

func (t *thanos) NewInstantQuery(ctx context.Context, q storage.Queryable, opts promql.QueryOpts, expr string, at time.Time) (promql.Query, error) {
	return t.route(expr, q,
		func(q storage.Queryable) (promql.Query, error) {
			return t.engine.NewInstantQuery(ctx, q, opts, expr, at)
		},
		func() (promql.Query, error) { return t.upstream.NewInstantQuery(ctx, q, opts, expr, at) })
}

func (t *thanos) NewRangeQuery(ctx context.Context, q storage.Queryable, opts promql.QueryOpts, expr string, start, end time.Time, interval time.Duration) (promql.Query, error) {
	return t.route(expr, q,
		func(q storage.Queryable) (promql.Query, error) {
			return t.engine.NewRangeQuery(ctx, q, opts, expr, start, end, interval)
		},
		func() (promql.Query, error) {
			return t.upstream.NewRangeQuery(ctx, q, opts, expr, start, end, interval)
		})
}

func (t *thanos) route(expr string, q storage.Queryable, first func(storage.Queryable) (promql.Query, error), second func() (promql.Query, error)) (promql.Query, error) {
	if ignoresModifier(expr) {
		t.fallbacks.Inc()
		return second()
	}
	lazy := &lazyQueryable{Queryable: q}
	query, err := t.plan(expr, func() (promql.Query, error) { return first(lazy) })
	if err == nil {
		return &thanosQuery{query, lazy}, nil
	}
	if engine.IsUnimplemented(err) {
		t.fallbacks.Inc()
	}
	// For any other error too: upstream has the words that clients know.
	return second()
}

// plan turns a panic of the planner into an error: a rule that meets one must not end the process.
func (t *thanos) plan(expr string, f func() (promql.Query, error)) (q promql.Query, err error) {
	defer func() {
		if r := recover(); r != nil {
			t.logger.Warn("the Thanos engine could not plan a query, the Prometheus engine takes it", "query", expr, "panic", r)
			q, err = nil, fmt.Errorf("plan %s: %v", expr, r)
		}
	}()
	return f()
}

// ignoresModifier tells whether the Thanos engine would silently compute something else.
func ignoresModifier(expr string) bool {
	// Nearly no expression has one of the words.
	if !strings.Contains(expr, "smoothed") && !strings.Contains(expr, "anchored") {
		return false
	}
	parsed, err := parser.ParseExpr(expr)
	if err != nil {
		return false
	}
	found := false
	parser.Inspect(parsed, func(n parser.Node, _ []parser.Node) error {
		if s, ok := n.(*parser.VectorSelector); ok && (s.Smoothed || s.Anchored) {
			found = true
		}
		return nil
	})
	return found
}

// thanosQuery behaves like a query of upstream's engine: it closes its queriers when it was executed, and has the same
// errors for what was cut short.
type thanosQuery struct {
	promql.Query
	queriers *lazyQueryable
}

func (q *thanosQuery) Exec(ctx context.Context) *promql.Result {
	defer q.queriers.close()
	r := q.Query.Exec(ctx)
	switch {
	case errors.Is(r.Err, context.DeadlineExceeded):
		r.Err = promql.ErrQueryTimeout("expression evaluation")
	case errors.Is(r.Err, context.Canceled):
		r.Err = promql.ErrQueryCanceled("expression evaluation")
	}
	return r
}

func (q *thanosQuery) Close() {
	q.Query.Close()
	q.queriers.close()
}

// lazyQueryable opens queriers when they are first used. The Thanos engine opens one to plan, and does not close it when
// it then finds that it cannot do the query.
type lazyQueryable struct {
	storage.Queryable
	mtx    sync.Mutex
	opened []*lazyQuerier
}

func (l *lazyQueryable) Querier(mint, maxt int64) (storage.Querier, error) {
	q := &lazyQuerier{from: l.Queryable, mint: mint, maxt: maxt}
	l.mtx.Lock()
	defer l.mtx.Unlock()
	l.opened = append(l.opened, q)
	return q, nil
}

func (l *lazyQueryable) close() {
	l.mtx.Lock()
	defer l.mtx.Unlock()
	for _, q := range l.opened {
		// Nothing was written through it, so closing it loses nothing.
		_ = q.Close()
	}
}

type lazyQuerier struct {
	from       storage.Queryable
	mint, maxt int64

	mtx    sync.Mutex
	q      storage.Querier
	closed bool
}

func (l *lazyQuerier) open() (storage.Querier, error) {
	l.mtx.Lock()
	defer l.mtx.Unlock()
	if l.closed {
		return nil, errQuerierClosed
	}
	if l.q == nil {
		q, err := l.from.Querier(l.mint, l.maxt)
		if err != nil {
			return nil, err
		}
		l.q = q
	}
	return l.q, nil
}

func (l *lazyQuerier) Select(ctx context.Context, sortSeries bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	q, err := l.open()
	if err != nil {
		return storage.ErrSeriesSet(err)
	}
	return q.Select(ctx, sortSeries, hints, ms...)
}

func (l *lazyQuerier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	q, err := l.open()
	if err != nil {
		return nil, nil, err
	}
	return q.LabelValues(ctx, name, hints, ms...)
}

func (l *lazyQuerier) LabelNames(ctx context.Context, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	q, err := l.open()
	if err != nil {
		return nil, nil, err
	}
	return q.LabelNames(ctx, hints, ms...)
}

func (l *lazyQuerier) Close() error {
	l.mtx.Lock()
	defer l.mtx.Unlock()
	if l.closed || l.q == nil {
		l.closed = true
		return nil
	}
	l.closed = true
	return l.q.Close()
}
