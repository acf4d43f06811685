package alert

import (
	"context"
	"errors"
	"fmt"
	"time"

	amconfig "github.com/prometheus/alertmanager/config"
	"github.com/prometheus/alertmanager/config/receiver"
	"github.com/prometheus/alertmanager/dispatch"
	"github.com/prometheus/alertmanager/inhibit"
	"github.com/prometheus/alertmanager/notify"
	"github.com/prometheus/alertmanager/template"
	"github.com/prometheus/alertmanager/timeinterval"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// prepared is everything of a new configuration that could fail, done.
type prepared struct {
	templates    *template.Template
	routes       *dispatch.Route
	receivers    map[string][]notify.Integration
	integrations int
	intervals    *timeinterval.Intervener
	outside      *promconfig.Config
	// resolveTimeout is how long an alert fires that comes without an end.
	resolveTimeout model.Duration
}

// Prepare builds receivers, templates, time intervals and delivery of a configuration, and changes nothing. What it
// returns switches over to them.
func (a *Alert) Prepare(cfg *config.Config) (apply func() error, err error) {
	p, err := a.prepare(cfg)
	if err != nil {
		return nil, err
	}
	return func() error {
		a.prepared.Store(p)
		return errors.Join(a.coord.ApplyConfig(cfg.Alertmanager), a.applyDelivery(p.outside))
	}, nil
}

func (a *Alert) prepare(cfg *config.Config) (*prepared, error) {
	am := cfg.Alertmanager
	tmpl, err := template.FromGlobs(am.Templates)
	if err != nil {
		return nil, fmt.Errorf("parse the notification templates: %w", err)
	}
	tmpl.ExternalURL = a.opts.ExternalURL.JoinPath("alertmanager")
	p := &prepared{
		templates: tmpl,
		routes:    dispatch.NewRoute(am.Route, nil),
		receivers: map[string][]notify.Integration{},
	}
	carryIdempotency()
	used := map[string]bool{}
	p.routes.Walk(func(r *dispatch.Route) { used[r.RouteOpts.Receiver] = true })
	for _, rcv := range am.Receivers {
		if !used[rcv.Name] {
			continue
		}
		built, err := receiver.BuildReceiverIntegrations(rcv, tmpl, a.logger)
		if err != nil {
			return nil, fmt.Errorf("build receiver %q: %w", rcv.Name, err)
		}
		if rcv.Name == cfg.LogReceiver {
			built = append(built, newLogIntegration(a.logger, rcv.Name))
		}
		for i, one := range built {
			built[i] = a.attempts.watch(rcv.Name, one, cfg.RedactAlertmanager)
		}
		p.receivers[rcv.Name] = built
		p.integrations += len(built)
	}
	intervals := map[string][]timeinterval.TimeInterval{}
	for _, ti := range am.MuteTimeIntervals {
		intervals[ti.Name] = ti.TimeIntervals
	}
	for _, ti := range am.TimeIntervals {
		intervals[ti.Name] = ti.TimeIntervals
	}
	p.intervals = timeinterval.NewIntervener(intervals)
	p.resolveTimeout = am.Global.ResolveTimeout
	if p.outside, err = a.prepareDelivery(cfg.Prometheus); err != nil {
		return nil, err
	}
	return p, nil
}

// switchOver replaces the routing tree and the inhibition rules. The coordinator calls it with the configuration
// whose prepared parts are in a.prepared.
func (a *Alert) switchOver(conf *amconfig.Config) error {
	p := a.prepared.Load()
	// The last step that can fail comes before the old ones stop.
	if err := a.tracing.ApplyConfig(conf.TracingConfig); err != nil {
		return fmt.Errorf("apply the Alertmanager's tracing: %w", err)
	}
	if old := a.inhibitor.Load(); old != nil {
		old.Stop()
	}
	if old := a.dispatcher.Load(); old != nil {
		old.Stop()
	}
	inhibitor := inhibit.NewInhibitor(a.alerts, conf.InhibitRules, a.logger, a.recorder)
	pipeline := a.pipeline(p, inhibitor)
	dispatcher := dispatch.NewDispatcher(a.alerts, p.routes, pipeline, a.groups, a.timeout, groupMaintenanceInterval, nil,
		a.logger, a.recorder, a.dispatch, p.templates)
	a.metrics.receivers.Set(float64(len(p.receivers)))
	a.metrics.integrations.Set(float64(p.integrations))
	a.metrics.inhibitRules.Set(float64(len(conf.InhibitRules)))
	a.warnIntervals(p.routes)
	a.api.Update(conf, func(ctx context.Context, ls model.LabelSet) {
		a.inhibitor.Load().Mutes(ctx, ls)
		a.silencer.Mutes(ctx, ls)
	})
	// The inhibitor knows all alerts before the dispatcher sends the first, or what is inhibited would be sent; each
	// is published once it has loaded, or the API would show a half-filled one.
	a.jobs.Go(inhibitor.Run)
	inhibitor.WaitForLoading()
	a.inhibitor.Store(inhibitor)
	a.jobs.Go(func() { dispatcher.Run(a.started) })
	dispatcher.WaitForLoading()
	a.dispatcher.Store(dispatcher)
	return nil
}

// wait is how long this replica leaves a notification to those before it in the order of the mesh.
func (a *Alert) wait() time.Duration {
	if a.opts.Mesh == nil {
		return 0
	}
	return time.Duration(a.opts.Mesh.Position()) * peerTimeout
}

// timeout bounds a flush: every replica must have had its turn before the next one.
func (a *Alert) timeout(d time.Duration) time.Duration {
	if a.turns != nil {
		return max(d, notify.MinTimeout) + 3*maxHold
	}
	return max(d, notify.MinTimeout) + a.wait()
}

// warnIntervals names the routes whose intervals contradict each other, as a stock Alertmanager does.
func (a *Alert) warnIntervals(routes *dispatch.Route) {
	routes.Walk(func(r *dispatch.Route) {
		o := r.RouteOpts
		if o.RepeatInterval > a.opts.Retention {
			a.logger.Warn("repeat_interval is longer than the notification log is kept, so notifications repeat earlier",
				"route", r.Key(), "repeat_interval", o.RepeatInterval, "retention", a.opts.Retention)
		}
		if o.RepeatInterval < o.GroupInterval {
			a.logger.Warn("repeat_interval is shorter than group_interval, so notifications repeat at the next group_interval",
				"route", r.Key(), "repeat_interval", o.RepeatInterval, "group_interval", o.GroupInterval)
		}
	})
}
