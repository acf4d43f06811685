// Package evaluate runs the recording and alerting rules.
//
// It owns the rule groups and their state. It reads a Queryable through a PromQL engine, writes the results to an
// Appendable, and hands alerts to a function; it knows neither the store nor the Alertmanager. It refuses rules that
// do not parse before anything of a running group changes.
package evaluate

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/storage"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/evaluate/peerspb"
)

// Options are what rules need. All but the durations and MaxConcurrency are mandatory; those have Prometheus's
// defaults as flags, set by the command line.
type Options struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Queryable is what rules and the restoring of `for` state read.
	Queryable storage.Queryable
	// Appendable takes recorded series, ALERTS and ALERTS_FOR_STATE.
	Appendable storage.Appendable
	Engine     promql.QueryEngine
	// Notify takes the alerts of one rule after each evaluation.
	Notify      rules.NotifyFunc
	ExternalURL *url.URL
	// NameValidationScheme is what a recorded metric's name may be.
	NameValidationScheme model.ValidationScheme
	// OutageTolerance is the longest outage after which `for` state is restored, ForGracePeriod the shortest `for`
	// that is restored, ResendDelay the shortest time between two sends of one alert.
	OutageTolerance, ForGracePeriod, ResendDelay time.Duration
	// Mesh is nil where there are no other replicas.
	Mesh Mesh
	// Evaluated is told of each evaluation of a group, with the time that its samples bear. It may be nil.
	Evaluated func(g *rules.Group, at time.Time)
	// MaxConcurrency is how many rules of a group may run at once where they do not depend on each other; 0 is one
	// after the other.
	MaxConcurrency int64
}

// Evaluate is the running rules.
type Evaluate struct {
	opts    Options
	manager *rules.Manager
	cancel  context.CancelFunc
	once    sync.Once
	running atomic.Bool
	offset  atomic.Int64
}

// New evaluates nothing before Run, even when rules are applied earlier: the store may still be replaying. Close it
// when Run never ran.
func New(opts Options) (*Evaluate, error) {
	ctx, cancel := context.WithCancel(context.Background())
	e := &Evaluate{opts: opts, cancel: cancel}
	restore := opts.Queryable
	if opts.Mesh != nil && opts.Mesh.Keyed() {
		p := &peers{e: e, mesh: opts.Mesh, local: opts.Queryable}
		peerspb.RegisterPeersServer(opts.Mesh.Server(), p)
		restore = p
	}
	e.manager = rules.NewManager(&rules.ManagerOptions{
		NameValidationScheme: opts.NameValidationScheme,
		Appendable:           opts.Appendable,
		// Upstream reads it for one thing only: the state of alerts after a start.
		Queryable:              restore,
		QueryFunc:              query(opts.Engine, opts.Queryable),
		NotifyFunc:             opts.Notify,
		Context:                ctx,
		ExternalURL:            opts.ExternalURL,
		Registerer:             opts.Registerer,
		Logger:                 opts.Logger,
		OutageTolerance:        opts.OutageTolerance,
		ForGracePeriod:         opts.ForGracePeriod,
		ResendDelay:            opts.ResendDelay,
		MaxConcurrentEvals:     opts.MaxConcurrency,
		ConcurrentEvalsEnabled: opts.MaxConcurrency > 0,
		DefaultRuleQueryOffset: func() time.Duration { return time.Duration(e.offset.Load()) },
	})
	return e, nil
}

// query evaluates an expression and closes the query. Upstream's own function leaves it open, which with an engine
// that releases its storage on Close keeps the head from ever being compacted.
func query(engine promql.QueryEngine, q storage.Queryable) rules.QueryFunc {
	return func(ctx context.Context, expr string, t time.Time) (promql.Vector, error) {
		instant, err := engine.NewInstantQuery(ctx, q, nil, expr, t)
		if err != nil {
			return nil, err
		}
		defer instant.Close()
		res := instant.Exec(ctx)
		if res.Err != nil {
			return nil, res.Err
		}
		switch v := res.Value.(type) {
		case promql.Vector:
			return v, nil
		case promql.Scalar:
			return promql.Vector{{T: v.T, F: v.V}}, nil
		default:
			return nil, fmt.Errorf("rule result is a %s, not a vector or scalar", res.Value.Type())
		}
	}
}

// Manager is upstream's, for the rules API.
func (e *Evaluate) Manager() *rules.Manager { return e.manager }

// Run evaluates until ctx ends. When it returns, no evaluation is under way.
func (e *Evaluate) Run(ctx context.Context) error {
	e.running.Store(true)
	var stopping sync.WaitGroup
	stopping.Go(func() {
		<-ctx.Done()
		e.Close()
	})
	e.manager.Run()
	stopping.Wait()
	return nil
}

// Close stops the groups after the evaluation that they are in.
func (e *Evaluate) Close() {
	e.once.Do(func() {
		if e.running.Load() {
			e.manager.Stop()
			e.cancel()
			return
		}
		// Groups that were applied wait to be let go, and Stop waits for them; their context is over, so that they
		// evaluate nothing.
		e.cancel()
		var let sync.WaitGroup
		let.Go(e.manager.Run)
		e.manager.Stop()
		let.Wait()
	})
}

// iterate is one evaluation of a group.
func (e *Evaluate) iterate(ctx context.Context, g *rules.Group, at time.Time) {
	rules.DefaultEvalIterationFunc(ctx, g, at)
	if e.opts.Evaluated != nil && ctx.Err() == nil {
		e.opts.Evaluated(g, at)
	}
}

// Prepare has nothing left to do that could fail: the configuration parsed every rule when it was loaded. Applied,
// groups that stay as they are keep running undisturbed, and upstream keeps all old ones should a file have changed
// in between.
func (e *Evaluate) Prepare(cfg *config.Config) (apply func() error, err error) {
	return func() error {
		global := cfg.Prometheus.GlobalConfig
		e.offset.Store(int64(global.RuleQueryOffset))
		if err := e.manager.Update(time.Duration(global.EvaluationInterval), cfg.RuleFiles, config.Shared(global.ExternalLabels),
			e.opts.ExternalURL.String(), e.iterate); err != nil {
			return fmt.Errorf("apply the rules: %w", err)
		}
		return nil
	}, nil
}
