// Package federate owns the pulls from upstream Prometheus servers.
//
// In come the federation section of the configuration and, per upstream and
// interval, the answer of its /federate endpoint. Out go the samples that the
// section lists, each with the origin label that we set, into a
// storage.Appendable, together with the health series of the upstream (up,
// scrape_duration_seconds, ...), and one scrape.Target per upstream for the
// targets page.
//
// It refuses to store anything that is not listed, whatever the upstream
// sends; to let the upstream choose its origin label; to store series that
// became indistinguishable once labels were dropped; to follow a redirect to
// another server; and to let one upstream cost more memory or time than its
// limits say. Lists are enforced on what comes back and before anything is
// stored, which is why this is not a scrape.Manager.
package federate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/storage"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// Options is what New needs. All fields are required.
type Options struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Appendable storage.Appendable
}

func (o Options) validate() error {
	switch {
	case o.Logger == nil:
		return errors.New("federate: Options.Logger is not set")
	case o.Registerer == nil:
		return errors.New("federate: Options.Registerer is not set")
	case o.Appendable == nil:
		return errors.New("federate: Options.Appendable is not set")
	}
	return nil
}

// Federate pulls from all configured upstreams, one goroutine each.
type Federate struct {
	logger     *slog.Logger
	appendable storage.Appendable
	metrics    *metrics

	mu       sync.Mutex
	pullers  map[string]*puller // by upstream name
	ctx      context.Context    // of Run; nil until Run is called
	finished bool               // Run has stopped taking new pullers
	running  sync.WaitGroup
}

// New makes a Federate without upstreams: Prepare brings them.
func New(o Options) (*Federate, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	return &Federate{
		logger:     o.Logger,
		appendable: o.Appendable,
		metrics:    newMetrics(o.Registerer),
		pullers:    map[string]*puller{},
	}, nil
}

// Run pulls until ctx ends. It writes no stale markers then: the process is
// going down and will go on where it was.
func (f *Federate) Run(ctx context.Context) error {
	f.mu.Lock()
	if f.ctx != nil {
		f.mu.Unlock()
		return errors.New("federate: Run was called twice")
	}
	f.ctx = ctx
	for _, p := range f.pullers {
		f.start(p)
	}
	f.mu.Unlock()

	<-ctx.Done()

	f.mu.Lock()
	f.finished = true
	f.mu.Unlock()
	f.running.Wait()
	return nil
}

// start runs p if Run is active. f.mu is held.
func (f *Federate) start(p *puller) {
	if f.ctx == nil || f.finished {
		return
	}
	ctx, cancel := context.WithCancel(f.ctx)
	p.cancel = cancel
	p.done = make(chan struct{})
	f.running.Go(func() {
		defer close(p.done)
		defer cancel()
		p.run(ctx)
	})
}

// Prepare builds everything that the federation section of cfg needs and
// changes nothing. The returned function switches over: an upstream whose
// section is the same runs on undisturbed; a changed one changes between two
// pulls, without a gap and without stale markers for what it still has; a
// removed one is stopped and its series are marked stale.
func (f *Federate) Prepare(cfg *config.Config) (apply func() error, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()

	wanted := make(map[string]bool, len(cfg.Federation))
	changed := make([]*upstream, 0, len(cfg.Federation))
	var problems []error
	for _, c := range cfg.Federation {
		if wanted[c.Name] {
			problems = append(problems, fmt.Errorf("federation upstream %q is listed twice", c.Name))
			continue
		}
		wanted[c.Name] = true
		if p, ok := f.pullers[c.Name]; ok && sameSection(p.wanted().cfg, c) {
			continue
		}
		u, err := newUpstream(c)
		if err != nil {
			problems = append(problems, fmt.Errorf("federation upstream %q: %w", c.Name, err))
			continue
		}
		changed = append(changed, u)
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return func() error {
		f.apply(wanted, changed)
		return nil
	}, nil
}

func (f *Federate) apply(wanted map[string]bool, changed []*upstream) {
	f.mu.Lock()
	defer f.mu.Unlock()

	var removed []*puller
	for name, p := range f.pullers {
		if !wanted[name] {
			p.remove()
			removed = append(removed, p)
			delete(f.pullers, name)
		}
	}
	// Waited for here, so that an upstream that comes back under the same name
	// never meets the stale markers of its predecessor.
	for _, p := range removed {
		p.wait()
		f.metrics.forget(p.name)
	}
	for _, u := range changed {
		if p, ok := f.pullers[u.cfg.Name]; ok {
			p.replace(u)
			continue
		}
		p := newPuller(u, f.appendable, f.metrics.of(u.cfg.Name), f.logger.With("upstream", u.cfg.Name))
		f.pullers[u.cfg.Name] = p
		f.start(p)
	}
}

// Targets returns one target per upstream under the pool name
// "federate/<upstream>", for the targets endpoint of the API.
func (f *Federate) Targets() map[string][]*scrape.Target {
	f.mu.Lock()
	defer f.mu.Unlock()
	targets := make(map[string][]*scrape.Target, len(f.pullers))
	for name, p := range f.pullers {
		targets["federate/"+name] = []*scrape.Target{p.wanted().target}
	}
	return targets
}

// sameSection compares what was written in the file, secrets included. The
// parsed matchers are left out: they hold functions, which never compare equal,
// and follow from the match text.
func sameSection(a, b *config.Upstream) bool {
	return reflect.DeepEqual(withoutMatchers(a), withoutMatchers(b))
}

func withoutMatchers(u *config.Upstream) config.Upstream {
	c := *u
	c.Metrics = make([]config.Metric, len(u.Metrics))
	for i, m := range u.Metrics {
		m.Matchers = nil
		c.Metrics[i] = m
	}
	return c
}
