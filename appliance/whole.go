package appliance

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/tocsin-io/tocsin/appliance/bucket"
	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/heal"
	"github.com/tocsin-io/tocsin/appliance/store"
	"github.com/tocsin-io/tocsin/web"
)

const (
	// What is scraped or evaluated less often than maxSettle is not waited for after a start.
	maxSettle = 5 * time.Minute
	// startSlack is how long it may take until the first targets are known.
	startSlack = 2 * time.Second
	// meshPatience is how long rules wait for the other replicas after a start: without them, what this replica missed
	// would look absent.
	meshPatience = 10 * time.Second
	// queryPatience is how long a query waits for them, for the same reason. Somebody waits for its answer.
	queryPatience = 3 * time.Second
)

// newHeal wires what makes this replica's data whole.
func (a *Appliance) newHeal() (*heal.Heal, error) {
	ho := heal.Options{
		Logger: a.component("heal"), Registerer: a.opts.Registry,
		Store: a.store, Ledger: a.ledger, Zone: a.zone,
		External: a.externalLabels, Match: a.seriesOf, Settle: a.settle,
		Groups: func() []*rules.Group { return a.evaluate.Manager().RuleGroups() },
		Engine: a.query.Engine(), Window: a.opts.Store.MinBlockDuration,
	}
	if a.mesh != nil { // An interface that holds a nil pointer is not nil.
		ho.Mesh = a.mesh
	}
	if a.bucket != nil {
		ho.Archive = archive{a.bucket, a.store}
	}
	return heal.New(ho)
}

// archive is the bucket for healing: for as long as there is room for what it has.
type archive struct {
	*bucket.Bucket
	store *store.Store
}

// Windows has none older than local data when these are as large as they may be: those are answered from the bucket.
func (a archive) Windows(in store.Interval) (whole, others []store.Interval, err error) {
	if a.store.Full() {
		oldest, err := a.store.Oldest()
		if err != nil {
			return nil, nil, err
		}
		if in.From = max(in.From, oldest-1); in.Empty() {
			return nil, nil, nil
		}
	}
	return a.Bucket.Windows(in)
}

// latePeers is the other replicas for queries: healing, which knows them, is built after queries.
type latePeers struct{ a *Appliance }

// Available counts others that are still looked for: a query that is put to a replica at its start would find a hole
// otherwise, in whatever it missed before.
func (p latePeers) Available() bool {
	return p.a.heal != nil && (!p.a.mesh.Settled() || p.a.heal.Peers().Available())
}

// Found waits for the mesh. It is there within a second, unless nobody else is.
func (p latePeers) Found(ctx context.Context) bool {
	if !p.a.mesh.Settled() {
		ctx, cancel := context.WithTimeout(ctx, queryPatience)
		defer cancel()
		if err := p.a.mesh.WaitReady(ctx); err != nil {
			p.a.component("query").Debug("a query goes on without the other replicas", "waited", queryPatience, "err", err)
		}
	}
	return p.a.heal.Peers().Available()
}

func (p latePeers) Select(ctx context.Context, i store.Interval, ms ...*labels.Matcher) ([]store.ForeignSeries, annotations.Annotations, error) {
	return p.a.heal.Peers().Select(ctx, i, ms...)
}

func (p latePeers) LabelValues(ctx context.Context, name string, i store.Interval, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return p.a.heal.Peers().LabelValues(ctx, name, i, ms...)
}

func (p latePeers) LabelNames(ctx context.Context, i store.Interval, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return p.a.heal.Peers().LabelNames(ctx, i, ms...)
}

// beginLedger notes that scraping starts now.
func (a *Appliance) beginLedger() error {
	oldest, newest, err := a.store.TimeRange()
	if errors.Is(err, tsdb.ErrNotReady) {
		return nil // It is closing already.
	}
	if err != nil {
		return err
	}
	a.ledger.Begin(time.Now(), newest, oldest == math.MaxInt64)
	return nil
}

// keeps is how long data are kept, 0 for no limit in time.
func (a *Appliance) keeps() time.Duration {
	byTime, _ := a.store.Retention()
	return byTime
}

// settle is how long it takes until everything was scraped, pulled and evaluated once.
func (a *Appliance) settle() time.Duration {
	cfg := a.Config()
	longest := model.Duration(time.Second)
	for _, job := range cfg.ScrapeConfigs {
		longest = max(longest, job.ScrapeInterval)
	}
	for _, u := range cfg.Federation {
		longest = max(longest, u.Interval)
	}
	for _, g := range a.evaluate.Manager().RuleGroups() {
		longest = max(longest, model.Duration(g.Interval()))
	}
	return min(time.Duration(longest)+startSlack, maxSettle)
}

// seriesOf are the labels that all series of a target have, by those of its `up` series. What is federated keeps the
// labels that it has upstream, but for the origin label. An `up` that was itself federated is none of ours.
func (a *Appliance) seriesOf(up labels.Labels) labels.Labels {
	for _, u := range a.Config().Federation {
		if up.Get(u.OriginLabel) != u.Name {
			continue
		}
		if up.Get(model.JobLabel) != "federate" {
			return labels.EmptyLabels()
		}
		return labels.FromStrings(u.OriginLabel, u.Name)
	}
	return up
}

// externalLabels are what a stock Thanos Query tells the replicas apart by.
func (a *Appliance) externalLabels() labels.Labels {
	cfg := a.Config()
	b := labels.NewBuilder(cfg.Prometheus.GlobalConfig.ExternalLabels)
	for name, value := range map[string]string{config.ReplicaLabel: cfg.Replica.Name, config.ZoneLabel: a.zone} {
		if value != "" && b.Get(name) == "" {
			b.Set(name, value)
		}
	}
	return b.Labels()
}

// afterMesh runs f once the other replicas had a moment to be found.
func (a *Appliance) afterMesh(f func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		if a.mesh != nil {
			patience, cancel := context.WithTimeout(ctx, meshPatience)
			a.waitForMesh(patience)
			cancel()
		}
		return f(ctx)
	}
}

func (a *Appliance) waitForMesh(ctx context.Context) {
	if err := a.mesh.WaitReady(ctx); err != nil && !a.stopping() {
		a.logger.Warn("rules start without the other replicas: what this one missed may look absent to them", "waited", meshPatience, "err", err)
	}
}

// gapStatus has a sentence for what is missing, and what is done about it.
func (a *Appliance) gapStatus(s *web.Status) {
	if a.mesh == nil || !a.mesh.Keyed() {
		return
	}
	status := a.heal.Status()
	targets := 0
	for _, g := range status.Gaps {
		switch {
		case g.State != store.GapOpen:
		case g.Kind == store.GapReplica:
			text := fmt.Sprintf("This replica has no data of its own from %s", readable(g.From))
			if !g.Lasting() {
				text += " to " + readable(g.To)
			}
			switch {
			case status.Healing != nil && status.Healing.Gap == g.ID:
				text += fmt.Sprintf(": %d %% of it is filled from the other replicas", int(100*status.Healing.Ratio))
			case status.Problem != "":
				text += ", and it is not filled yet: " + status.Problem
			}
			s.Problem("/cluster", text+". Queries take it from the other replicas.")
		case g.Kind == store.GapTarget:
			targets++
		}
	}
	if targets > 0 {
		s.Problem("/cluster", fmt.Sprintf("There are gaps of %d targets that another zone reached and this one did not; queries take their data from there.", targets))
	}
}

func readable(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02 15:04:05 UTC") }
