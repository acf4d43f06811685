package appliance

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/rules"

	"github.com/tocsin-io/tocsin/appliance/bucket"
	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/mesh"
	"github.com/tocsin-io/tocsin/web"
)

// firstConfig reads the configuration to start with. Where that comes from the bucket, it asks there, for a moment.
func (a *Appliance) firstConfig() (*config.Config, error) {
	cfg, err := a.opts.load(a.self)
	if err != nil || cfg.Bucket == nil {
		return cfg, err
	}
	if a.objects, err = bucket.NewObjects(a.component("bucket"), a.opts.Registry, cfg.Bucket); err != nil {
		return nil, err
	}
	a.onClose("objects", a.objects.Close)
	if cfg.ConfigFrom == nil {
		return cfg, nil
	}
	if a.source, err = bucket.NewSource(bucket.SourceOptions{
		Logger: a.component("config"), Registerer: a.opts.Registry, Bucket: a.objects,
		Prefix: cfg.ConfigFrom.Prefix, Poll: time.Duration(cfg.ConfigFrom.Poll),
		Dir:   filepath.Join(a.opts.StoragePath, "config"),
		Check: a.checkFromBucket, Apply: a.applyFromBucket,
		Tell: func(c mesh.CardConfig) {
			if a.mesh != nil {
				a.mesh.SetConfig(c)
			}
		},
		Members: func() []mesh.Member {
			if a.mesh == nil {
				return []mesh.Member{{Name: cfg.Replica.Name, Self: true, Alive: true}}
			}
			return a.mesh.Members()
		},
	}); err != nil {
		return nil, err
	}
	if err := a.source.Begin(context.Background()); err != nil {
		return nil, err
	}
	return a.load()
}

// load reads the configuration that holds now, the part that came from the bucket too.
func (a *Appliance) load() (*config.Config, error) {
	cfg, err := a.opts.load(a.self)
	if err != nil || cfg.ConfigFrom == nil || a.source == nil {
		return cfg, err
	}
	dir, ok := a.source.Live()
	if !ok {
		return cfg, nil // There is none yet.
	}
	return config.LoadBelow(cfg, dir, a.self, a.opts.Logger)
}

// checkFromBucket proves that the configuration in a folder could be put into force, and changes nothing.
func (a *Appliance) checkFromBucket(dir string) error {
	own, err := a.opts.load(a.self)
	if err != nil {
		return fmt.Errorf("this replica's own file is wrong: %w", err)
	}
	next, err := config.LoadBelow(own, dir, a.self, a.opts.Logger)
	if err != nil {
		return err
	}
	select {
	case <-a.configured:
	default:
		return nil // It will be the first one.
	}
	a.reloading.Lock()
	defer a.reloading.Unlock()
	if err := config.Immutable(a.Config(), next); err != nil {
		return err
	}
	_, err = a.prepareAll(next, a.steps())
	return err
}

// applyFromBucket puts into force what the source has put in its place.
func (a *Appliance) applyFromBucket(ctx context.Context) (mixed bool, err error) {
	phase, err := a.reloadPhase(ctx)
	if why := errors.Unwrap(err); phase != "" && why != nil {
		err = why // What is to be done about it is another than for a file.
	}
	return err != nil && phase == phaseApply, err
}

// cardConfig is what the other replicas are told.
func (a *Appliance) cardConfig() mesh.CardConfig {
	if a.source == nil {
		return mesh.CardConfig{}
	}
	return a.source.Card()
}

// configStatus answers where the configuration from the bucket stands.
func (a *Appliance) configStatus() http.Handler {
	if a.source == nil {
		return http.NotFoundHandler()
	}
	return a.source.Handler()
}

const (
	// configPatience is for how many looks into the bucket a replica may lag before that is an alert: with the default, a minute.
	configPatience = 4
	// bucketPatience is how long a replica may see no whole configuration in the bucket before it says so of itself in an alert. A
	// bucket that is away for a moment changes nothing.
	bucketPatience = 10 * time.Minute
)

// alertOfConfig has an alert fire for each live replica that lags or refuses the configuration in the bucket. It needs no rule, and no
// scrape of this process: which rules there are is in that very configuration.
func (a *Appliance) alertOfConfig(ctx context.Context) error {
	every := time.Duration(a.Config().ConfigFrom.Poll)
	alerts := configAlerts{every: every, lags: map[string]*configLag{}}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for name, alert := range alerts.at(time.Now(), a.source.Behind()) {
			a.alert.Notify(ctx, `tocsin_cluster_config_differs{member="`+name+`"} == 1`, alert)
		}
	}
}

// configAlerts are the alerts of replicas that are not as the bucket says.
type configAlerts struct {
	every time.Duration // between two looks into the bucket
	lags  map[string]*configLag
}

// configLag is one replica that lags.
type configLag struct {
	since, told time.Time // told is when it was last said.
	alert       *rules.Alert
}

// at takes what is known now, and gives the alerts to send by replica.
func (c *configAlerts) at(now time.Time, behind map[string]bucket.Lag) map[string]*rules.Alert {
	patience := configPatience * c.every
	send := map[string]*rules.Alert{}
	for name, is := range behind {
		if is.Why == "" {
			continue
		}
		lag, ok := c.lags[name]
		if !ok {
			lag = &configLag{since: now}
			c.lags[name] = lag
		}
		lag.told = now
		bound, summary := patience, "Replica "+name+" does not run on the configuration in the bucket."
		if is.Waits {
			bound, summary = max(patience, bucketPatience), "Replica "+name+" does not see the configuration in the bucket."
		}
		if lag.alert == nil {
			if now.Sub(lag.since) < bound {
				continue
			}
			lag.alert = &rules.Alert{
				State: rules.StateFiring, FiredAt: now, ActiveAt: lag.since,
				Labels: labels.FromStrings(model.AlertNameLabel, "TocsinConfigDiffers", "member", name, "severity", "warning"),
			}
		}
		lag.alert.Annotations = labels.FromStrings("summary", summary, "description", is.Why+". See /api/tocsin/v1/config on it.")
	}
	for name, lag := range c.lags {
		is, known := behind[name]
		// Of one that is not known about it is not known for a moment, where this replica does not see the bucket; or it is gone,
		// which others say.
		over := known && is.Why == "" || !known && now.Sub(lag.told) >= patience
		if over {
			delete(c.lags, name)
		}
		if lag.alert == nil {
			continue
		}
		if over {
			lag.alert.State, lag.alert.ResolvedAt = rules.StateInactive, now
		}
		// Repeated in time, as a rule would; a minute is what one that is not repeated lasts at least.
		lag.alert.ValidUntil = now.Add(max(time.Minute, patience))
		send[name] = lag.alert
	}
	return send
}

// sourceStatus has a sentence for a configuration that is not in force.
func (a *Appliance) sourceStatus(s *web.Status) {
	if a.source == nil {
		return
	}
	st := a.source.Status()
	goesOn := "This replica runs on configuration " + bucket.ShortHash(st.Hash) + "."
	if st.Hash == "" {
		goesOn = "This replica has no configuration yet: it scrapes nothing and has no rules."
	}
	switch {
	case st.State == bucket.StateRefused:
		s.Problem("/cluster", fmt.Sprintf("The configuration in the bucket is refused: %s. %s", st.Problem, goesOn))
	case st.State == bucket.StateWaiting:
		s.Problem("/cluster", fmt.Sprintf("The configuration from the bucket is waited for: %s. %s", st.Problem, goesOn))
	}
}
