package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/prometheus/util/notifications"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// reloadable is the part of a component that follows the configuration file.
type reloadable interface {
	// Prepare does everything that can fail, and changes nothing.
	Prepare(*config.Config) (apply func() error, err error)
}

// prepareFunc makes a reloadable of a function.
type prepareFunc func(*config.Config) (func() error, error)

func (f prepareFunc) Prepare(c *config.Config) (func() error, error) { return f(c) }

// step is one component in the order in which a configuration is applied.
type step struct {
	name string
	reloadable
}

// steps are in the order of the data flow backwards: whoever takes something knows the new configuration before
// whoever hands it over.
func (a *Appliance) steps() []step {
	steps := []step{{"runtime", prepareFunc(a.prepareRuntime)}}
	// Whoever looks for targets in the bucket looks as soon as it is told to, and then not for an interval.
	if a.objects != nil {
		steps = append(steps, step{"objects", a.objects})
	}
	steps = append(steps, []step{
		{"store", a.store},
		{"query", a.query},
		{"alert", a.alert},
		{"scrape", a.scrape},
		{"federate", a.federate},
		{"evaluate", a.evaluate},
		{"tracing", prepareFunc(a.prepareTracing)},
	}...)
	if a.bucket != nil {
		steps = append(steps, step{"bucket", a.bucket})
	}
	if a.mesh != nil {
		steps = append(steps, step{"mesh", a.mesh})
	}
	// It looks into the bucket that is in force then.
	if a.rendezvous != nil {
		steps = append(steps, step{"rendezvous", a.rendezvous})
	}
	return steps
}

type reloadMetrics struct {
	success, successTime prometheus.Gauge
	failures             *prometheus.CounterVec
}

func newReloadMetrics(reg prometheus.Registerer) reloadMetrics {
	f := promauto.With(reg)
	return reloadMetrics{
		success: f.NewGauge(prometheus.GaugeOpts{
			Name: "prometheus_config_last_reload_successful",
			Help: "Whether the last configuration reload attempt was successful.",
		}),
		successTime: f.NewGauge(prometheus.GaugeOpts{
			Name: "prometheus_config_last_reload_success_timestamp_seconds",
			Help: "Timestamp of the last successful configuration reload.",
		}),
		failures: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_config_reload_failures_total",
			Help: "Configurations that were refused, by what refused them: load (the file), immutable (a field that needs a restart), prepare (a component; nothing changed), apply (a component failed after the others had changed).",
		}, []string{"phase"}),
	}
}

// phaseApply is the phase of a reload in which a failure leaves a mixture.
const phaseApply = "apply"

// errStopping says that nothing is reloaded into a process that stops.
var errStopping = errors.New("the process is stopping")

// Reload reads the configuration file anew and applies it whole or not at all. Its error says what was wrong and that
// nothing changed; it is logged and counted here, so that a caller only passes it on. Asked for while the process
// starts, it waits until there is a configuration in force that it could replace.
func (a *Appliance) Reload(ctx context.Context) error {
	_, err := a.reloadPhase(ctx)
	return err
}

// reloadPhase is Reload, and says in which phase it failed; "" where it did not come to one.
func (a *Appliance) reloadPhase(ctx context.Context) (phase string, err error) {
	select {
	case <-a.configured:
	case <-a.stopRequested:
		return "", errStopping
	case <-ctx.Done():
		return "", fmt.Errorf("wait for the first configuration: %w", ctx.Err())
	}
	a.reloading.Lock()
	defer a.reloading.Unlock()
	if a.stopping() {
		return "", errStopping
	}
	if tell := a.opts.OnReload; tell != nil {
		tell(true)
		defer tell(false)
	}
	start := time.Now()
	if phase, err = a.reload(); err != nil {
		a.refused(phase, err)
		return phase, err
	}
	a.accepted()
	a.logger.Info("configuration reloaded", "file", a.Config().Path, "took", time.Since(start).Round(time.Millisecond))
	return "", nil
}

func (a *Appliance) reload() (phase string, err error) {
	// An optional file that was there is not optional any more: its absence is a mistake, or a moment in somebody's
	// update, and the built-in configuration in its place would drop every target.
	if _, err := os.Stat(a.opts.ConfigFile); a.Config().Path != "" && errors.Is(err, os.ErrNotExist) {
		return "load", fmt.Errorf("the configuration is refused, nothing has changed: %s is gone; put it back, or restart to run on the built-in configuration", a.opts.ConfigFile)
	}
	next, err := a.load()
	if err != nil {
		return "load", fmt.Errorf("the configuration is refused, nothing has changed:\n%w", err)
	}
	if err := config.Immutable(a.Config(), next); err != nil {
		return "immutable", fmt.Errorf("the configuration is refused, nothing has changed: %w", err)
	}
	apply, err := a.prepareAll(next, a.steps())
	if err != nil {
		return "prepare", fmt.Errorf("the configuration is refused, nothing has changed: %w", err)
	}
	if err := apply(); err != nil {
		return phaseApply, fmt.Errorf("the configuration is applied only in part; correct it and reload, or restart: %w", err)
	}
	return "", nil
}

// prepareAll is the first phase: everything that can fail, of all components. The second phase is what it returns.
func (a *Appliance) prepareAll(cfg *config.Config, steps []step) (apply func() error, err error) {
	var applies []func() error
	var errs []error
	for _, s := range steps {
		apply, err := s.Prepare(cfg)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
			continue
		}
		applies = append(applies, func() error {
			if err := apply(); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			return nil
		})
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return func() error {
		// The components read it from here, so it is in force before the first of them switches over.
		a.config.Store(cfg)
		var errs []error
		for _, apply := range applies {
			errs = append(errs, apply())
		}
		return errors.Join(errs...)
	}, nil
}

func (a *Appliance) refused(phase string, err error) {
	a.reloads.success.Set(0)
	a.reloads.failures.WithLabelValues(phase).Inc()
	a.alert.ConfigRefused()
	a.query.Notifications().AddNotification(notifications.ConfigurationUnsuccessful)
	a.lastReload.Store(&reloadResult{at: time.Now(), phase: phase, err: err})
	a.logger.Error("reload failed", "file", a.opts.ConfigFile, "phase", phase, "err", err)
}

func (a *Appliance) accepted() {
	a.reloads.success.Set(1)
	a.reloads.successTime.SetToCurrentTime()
	a.query.Notifications().DeleteNotification(notifications.ConfigurationUnsuccessful)
	a.lastReload.Store(&reloadResult{at: time.Now()})
}

// keepConfigured applies the configuration that New has read: to the Alertmanager at once, so that it takes alerts and
// silences while the store replays, and to the rest as soon as the store can take samples. Then it opens the gate for
// what waits for it.
func (a *Appliance) keepConfigured(ctx context.Context) error {
	isAlert := func(s step) bool { return s.reloadable == reloadable(a.alert) }
	early, rest := a.steps(), a.steps()
	if err := a.applyFirst(slices.DeleteFunc(early, func(s step) bool { return !isAlert(s) })); err != nil {
		return err
	}
	select {
	case <-a.store.Ready():
	case <-ctx.Done():
		return nil
	}
	if err := a.applyFirst(slices.DeleteFunc(rest, isAlert)); err != nil {
		return err
	}
	a.accepted()
	if err := a.beginLedger(); err != nil {
		return err
	}
	close(a.configured)
	a.logReady()
	<-ctx.Done()
	// A reload that is under way finishes before anything of it stops.
	a.reloading.Lock()
	defer a.reloading.Unlock()
	return nil
}

func (a *Appliance) applyFirst(steps []step) error {
	apply, err := a.prepareAll(a.Config(), steps)
	if err != nil {
		return fmt.Errorf("prepare the first configuration: %w", err)
	}
	if err := apply(); err != nil {
		return fmt.Errorf("apply the first configuration: %w", err)
	}
	return nil
}

// prepareRuntime follows runtime.gogc, as upstream's main does.
func (a *Appliance) prepareRuntime(cfg *config.Config) (func() error, error) {
	return func() error {
		debug.SetGCPercent(cfg.Prometheus.Runtime.GoGC)
		return nil
	}, nil
}

func (a *Appliance) prepareTracing(cfg *config.Config) (func() error, error) {
	return func() error {
		if err := a.tracing.ApplyConfig(cfg.Prometheus); err != nil {
			return fmt.Errorf("apply the tracing section: %w", err)
		}
		return nil
	}, nil
}
