package appliance

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

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
				return nil
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
func (a *Appliance) applyFromBucket(ctx context.Context) (applied bool, err error) {
	err = a.Reload(ctx)
	last := a.lastReload.Load()
	return err == nil || last != nil && errors.Is(err, last.err) && last.phase == phaseApply, err
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
		s.Problems = append(s.Problems, fmt.Sprintf("The configuration in the bucket is refused: %s. %s", st.Problem, goesOn))
	case st.State == bucket.StateWaiting:
		s.Problems = append(s.Problems, fmt.Sprintf("The configuration from the bucket is waited for: %s. %s", st.Problem, goesOn))
	case st.Problem != "":
		s.Problems = append(s.Problems, fmt.Sprintf("The configuration from the bucket is applied in part: %s.", st.Problem))
	}
}
