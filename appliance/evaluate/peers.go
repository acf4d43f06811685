package evaluate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/storage"
	"google.golang.org/grpc"

	"github.com/tocsin-io/tocsin/appliance/evaluate/peerspb"
	"github.com/tocsin-io/tocsin/appliance/mesh"
)

const (
	// forState is the series in which upstream's rules keep since when an alert is active.
	forState = "ALERTS_FOR_STATE"
	// askTimeout bounds asking a replica for its active alerts, and askAgain is how long an answer serves: all rule
	// groups restore their alerts within two intervals of the start.
	askTimeout, askAgain = 3 * time.Second, 5 * time.Second
	// activeBatch is how many alerts one message has, and maxActive how many are taken of one replica.
	activeBatch, maxActive = 500, 500_000
)

// Mesh is what this package needs to know of the other replicas; a *mesh.Mesh is one. A nil Mesh is a replica that is
// alone.
type Mesh interface {
	Keyed() bool
	Members() []mesh.Member
	Server() grpc.ServiceRegistrar
	Conn(member string) (grpc.ClientConnInterface, error)
}

// peers answers the other replicas, and is what upstream restores the state of alerts from: what this replica has
// stored, and since when the others have the alert active. An alert that began while this replica was away, or whose
// `for` would begin anew, goes on as it is everywhere else.
type peers struct {
	e     *Evaluate
	mesh  Mesh
	local storage.Queryable

	mu    sync.Mutex
	asked time.Time
	known map[string]active // By the alert's labels, as a string.
}

type active struct {
	labels labels.Labels
	at     int64 // Seconds since the epoch.
}

// Active answers what this replica's rules have pending or firing.
func (p *peers) Active(_ *peerspb.ActiveRequest, out peerspb.Peers_ActiveServer) error {
	batch := &peerspb.ActiveAlerts{}
	send := func() error {
		if len(batch.GetAlerts()) == 0 {
			return nil
		}
		if err := out.Send(batch); err != nil {
			return fmt.Errorf("answer the active alerts: %w", err)
		}
		batch = &peerspb.ActiveAlerts{}
		return nil
	}
	for _, rule := range p.e.manager.AlertingRules() {
		// What a replica has not restored itself it does not know.
		if !rule.Restored() {
			continue
		}
		for _, a := range rule.ActiveAlerts() {
			if a.State == rules.StateInactive {
				continue
			}
			batch.Alerts = append(batch.Alerts, &peerspb.ActiveAlert{Labels: a.Labels.Map(), ActiveAt: a.ActiveAt.Unix()})
			if len(batch.GetAlerts()) == activeBatch {
				if err := send(); err != nil {
					return err
				}
			}
		}
	}
	return send()
}

// Querier is over this replica's own series and, for the one that alerts are restored from, what the others say.
func (p *peers) Querier(mint, maxt int64) (storage.Querier, error) {
	q, err := p.local.Querier(mint, maxt)
	if err != nil {
		return nil, fmt.Errorf("read the state of alerts: %w", err)
	}
	return &querier{Querier: q, peers: p, at: maxt}, nil
}

type querier struct {
	storage.Querier
	peers *peers
	at    int64
}

func (q *querier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	own := q.Querier.Select(ctx, sorted, hints, matchers...)
	var theirs []storage.Series
	for _, a := range q.peers.active(ctx) {
		series := labels.NewBuilder(a.labels).Set(model.MetricNameLabel, forState).Labels()
		if matches(series, matchers) {
			theirs = append(theirs, promql.NewStorageSeries(promql.Series{
				Metric: series, Floats: []promql.FPoint{{T: q.at, F: float64(a.at)}},
			}))
		}
	}
	// The later of two series with the same labels holds, and the others were there all the time.
	return &concatenated{SeriesSet: own, rest: theirs}
}

func matches(ls labels.Labels, matchers []*labels.Matcher) bool {
	for _, m := range matchers {
		if !m.Matches(ls.Get(m.Name)) {
			return false
		}
	}
	return true
}

// active asks every replica that is there. One that does not answer in time counts for nothing: rules must not wait.
func (p *peers) active(ctx context.Context) map[string]active {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.asked) < askAgain {
		return p.known
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var mu sync.Mutex
	known := map[string]active{}
	var jobs sync.WaitGroup
	for _, m := range p.mesh.Members() {
		if m.Self || !m.Alive || m.Card.GRPC == "" {
			continue
		}
		jobs.Go(func() {
			err := p.ask(ctx, m.Name, func(a active) {
				mu.Lock()
				defer mu.Unlock()
				key := a.labels.String()
				if old, ok := known[key]; !ok || a.at < old.at {
					known[key] = a
				}
			})
			if err != nil {
				p.e.opts.Logger.Warn("a replica did not say which alerts are active; their `for` may begin anew here",
					"replica", m.Name, "err", err)
			}
		})
	}
	jobs.Wait()
	p.known, p.asked = known, time.Now()
	return known
}

func (p *peers) ask(ctx context.Context, member string, each func(active)) error {
	conn, err := p.mesh.Conn(member)
	if err != nil {
		return fmt.Errorf("reach replica %s: %w", member, err)
	}
	stream, err := peerspb.NewPeersClient(conn).Active(ctx, &peerspb.ActiveRequest{})
	if err != nil {
		return fmt.Errorf("ask replica %s for its active alerts: %w", member, err)
	}
	for n := 0; ; {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive the active alerts of replica %s: %w", member, err)
		}
		if n += len(msg.GetAlerts()); n > maxActive {
			return fmt.Errorf("replica %s has more than %d active alerts", member, maxActive)
		}
		for _, a := range msg.GetAlerts() {
			each(active{labels.FromMap(a.GetLabels()), a.GetActiveAt()})
		}
	}
}

// concatenated is a series set with further series behind it.
type concatenated struct {
	storage.SeriesSet
	rest []storage.Series
	over bool // SeriesSet is through.
	at   storage.Series
}

func (c *concatenated) Next() bool {
	if !c.over {
		if c.SeriesSet.Next() {
			c.at = c.SeriesSet.At()
			return true
		}
		c.over = true
	}
	if len(c.rest) == 0 {
		return false
	}
	c.at, c.rest = c.rest[0], c.rest[1:]
	return true
}

func (c *concatenated) At() storage.Series { return c.at }
