package query

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
)

// Upstream goes through the steps of a function over a subquery without looking at the query's timeout or at whether
// anybody still wants the answer: a hundred years by the millisecond keep a core busy until the process is killed. These
// bounds take some seconds for one series; between series upstream looks.
const (
	// maxSubquerySteps is how often a subquery may be evaluated.
	maxSubquerySteps = 10_000_000
	// maxSubqueryPoints is how many of its results may be read: all in its range, each time that what is around it is
	// evaluated.
	maxSubqueryPoints = 1_000_000_000
)

// bounded is an engine that refuses what it could not end, for people and rules alike.
type bounded struct {
	promql.QueryEngine
	// step is what a subquery without a step has, in milliseconds.
	step func() int64
}

func (b bounded) NewInstantQuery(ctx context.Context, q storage.Queryable, opts promql.QueryOpts, expr string, at time.Time) (promql.Query, error) {
	if err := b.check(expr, 0, 1); err != nil {
		return nil, err
	}
	return b.QueryEngine.NewInstantQuery(ctx, q, opts, expr, at)
}

func (b bounded) NewRangeQuery(ctx context.Context, q storage.Queryable, opts promql.QueryOpts, expr string, start, end time.Time, interval time.Duration) (promql.Query, error) {
	if err := b.check(expr, end.Sub(start), float64(end.Sub(start)/max(interval, time.Millisecond))+1); err != nil {
		return nil, err
	}
	return b.QueryEngine.NewRangeQuery(ctx, q, opts, expr, start, end, interval)
}

// check leaves everything but the steps of subqueries to upstream.
func (b bounded) check(expr string, over time.Duration, times float64) error {
	// Without both there is no subquery, as in nearly all expressions.
	if !strings.Contains(expr, "[") || !strings.Contains(expr, ":") {
		return nil
	}
	parsed, err := parser.ParseExpr(expr)
	if err != nil {
		return nil //nolint:nilerr // Upstream parses it again, and has the words for it.
	}
	return b.walk(parsed, over, times)
}

// walk knows over which time an expression is evaluated, which is a subquery's range and that of all around it, and how
// many times.
func (b bounded) walk(node parser.Node, over time.Duration, times float64) error {
	if s, ok := node.(*parser.SubqueryExpr); ok {
		if over += s.Range; over < 0 {
			over = math.MaxInt64
		}
		step := s.Step
		if step <= 0 {
			step = time.Duration(b.step()) * time.Millisecond
		}
		step = max(step, time.Millisecond)
		if points := times * float64(s.Range/step); points > maxSubqueryPoints {
			return fmt.Errorf("the results of the subquery [%s:%s] are read %.3g times, and at most %.3g are allowed: take a longer step or a shorter range",
				s.Range, step, points, float64(maxSubqueryPoints))
		}
		if times = float64(over/step) + 1; times > maxSubquerySteps {
			return fmt.Errorf("the subquery [%s:%s] is evaluated %.3g times, and at most %.3g are allowed: take a longer step or a shorter range",
				s.Range, step, times, float64(maxSubquerySteps))
		}
	}
	for child := range parser.ChildrenIter(node) {
		if err := b.walk(child, over, times); err != nil {
			return err
		}
	}
	return nil
}
