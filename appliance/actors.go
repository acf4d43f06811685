package appliance

import (
	"context"
	"errors"
	"fmt"

	"github.com/oklog/run"
	"github.com/prometheus/prometheus/util/notifications"
)

// actors are what runs, in the order in which it stops: each is told to stop, and waited for, before the next one is
// told. What comes after something may rely on it having stopped.
func (a *Appliance) actors(ctx context.Context) *run.Group {
	var g run.Group

	// First, so that from the signal on nothing is reloaded into parts that are stopping.
	a.add(&g, "stop request", func(stop context.Context) error { return a.waitForStop(ctx, stop) })
	if a.source != nil {
		a.add(&g, "configuration from the bucket", a.gated(a.source.Run))
		a.add(&g, "alert of the configuration", a.gated(a.alertOfConfig))
	}
	a.add(&g, "configuration", a.keepConfigured)

	// Rules stop before scraping: on targets that are gone, absent() would fire falsely.
	a.add(&g, "evaluate", a.gated(a.afterMesh(a.evaluate.Run)))
	// Whatever appends stops before the store closes.
	a.add(&g, "scrape", a.gated(a.scrape.Run))
	a.add(&g, "federate", a.gated(a.federate.Run))
	// Its last word is when scraping ended.
	a.add(&g, "ledger", a.gated(a.ledger.Run))
	a.add(&g, "heal", a.gated(a.heal.Run))
	// What it is uploading it goes on with after the next start.
	if a.bucket != nil {
		a.add(&g, "bucket", a.bucket.Run)
	}
	// After the rules, so that their last alerts are still delivered. It does not wait for the store: a replica that
	// replays for minutes still takes alerts from outside.
	a.add(&g, "alert", a.alert.Run)
	// While the mesh still stands, so that nobody who starts now calls us.
	if a.rendezvous != nil {
		a.add(&g, "rendezvous", a.rendezvous.Run)
	}
	// After the Alertmanager, which hands over to the other replicas what it has not sent.
	if a.mesh != nil {
		a.add(&g, "mesh", a.mesh.Run)
	}
	a.add(&g, "tracing", a.runTracing)
	// The door closes after everything that one may want to watch stopping, and before the store: a query that is
	// under way would keep it from closing.
	a.add(&g, "web", a.web.Run)
	a.add(&g, "store", a.store.Run)
	return &g
}

// add makes an actor of f. Its interrupt ends f's context and waits until f has returned: that makes the order of
// adding the order of stopping.
func (a *Appliance) add(g *run.Group, name string, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	g.Add(func() error {
		defer close(done)
		if err := f(ctx); err != nil && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}, func(error) {
		if a.stopping() {
			a.at(name)
		}
		cancel()
		<-done
	})
}

// gated runs f once the store is ready and the first configuration is applied.
func (a *Appliance) gated(f func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-a.configured:
			return f(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// waitForStop returns when the process is told to stop, by its caller or over HTTP.
func (a *Appliance) waitForStop(ctx, stop context.Context) error {
	select {
	case <-ctx.Done():
	case <-a.quit:
		a.logger.Info("stopping, as asked for over HTTP")
	case <-stop.Done():
	}
	close(a.stopRequested)
	a.query.Notifications().AddNotification(notifications.ShuttingDown)
	a.web.Stop()
	return nil
}

func (a *Appliance) runTracing(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.tracing.Run()
	}()
	<-ctx.Done()
	a.tracing.Stop()
	<-done
	return nil
}
