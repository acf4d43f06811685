package alert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	apiv2 "github.com/prometheus/alertmanager/api/v2"
	"github.com/prometheus/alertmanager/api/v2/models"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tocsin-io/tocsin/appliance/alert/peerspb"
	"github.com/tocsin-io/tocsin/appliance/mesh"
)

// drainTurns is how long notifications that are being sent at the stop may take, and what is queued for the other
// replicas.
const drainTurns = 5 * time.Second

// peers is what this replica's Alertmanager and the others' say to each other beyond gossip.
type peers struct {
	mesh  Mesh
	turns *turns
	relay *relay
	log   *notificationLog

	asks   *batches[asking]
	passes *batches[turnKey]
	change chan struct{}
	ctx    context.Context
	cancel context.CancelFunc
	jobs   sync.WaitGroup
}

// meet joins this replica's Alertmanager to the others'. It is for a mesh with a key: nobody else may deliver alerts.
func (a *Alert) meet() {
	p := &peers{mesh: a.opts.Mesh, log: a.log, change: make(chan struct{}, 1)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.asks, p.passes = newBatches(p.sendAsks), newBatches(p.sendPasses)
	a.turns = newTurns(a.opts.Mesh.Name(), p, a.logger, a.metrics.turns)
	a.relay = &relay{
		self: a.opts.Mesh.Name(), incarnation: incarnation(a.opts.Mesh), mesh: a.opts.Mesh,
		logger: a.logger, metrics: a.metrics.relay, put: a.put, send: p.deliver,
		said: map[model.Fingerprint]map[string]heard{}, has: map[model.Fingerprint]had{}, queues: map[string]*queue{},
	}
	p.turns, p.relay = a.turns, a.relay
	a.peers = p
	peerspb.RegisterPeersServer(a.opts.Mesh.Server(), p)
	a.opts.Mesh.OnChange(func() {
		select {
		case p.change <- struct{}{}:
		default:
		}
	})
}

// incarnation is when this replica started, as the others see it.
func incarnation(m Mesh) int64 {
	for _, member := range m.Members() {
		if member.Self {
			return member.Card.Started.UnixMilli()
		}
	}
	return 0
}

// start follows the mesh, and forgets what has lapsed, until stop.
func (p *peers) start() {
	p.jobs.Go(func() { p.relay.run(p.ctx) })
	p.jobs.Go(func() {
		for {
			p.turns.changed()
			if err := p.relay.changed(p.ctx); err != nil {
				p.relay.logger.Error("alerts did not reach the Alertmanager", "err", err)
			}
			select {
			case <-p.change:
			case <-p.ctx.Done():
				return
			}
		}
	})
}

// drain leaves to the others what this replica has not begun, and waits for the rest. The others must still be
// reached.
func (p *peers) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTurns)
	defer cancel()
	p.turns.stop(ctx)
	p.relay.drain(ctx)
}

func (p *peers) stop() {
	p.cancel()
	p.jobs.Wait()
	p.relay.stop()
	p.asks.close()
	p.passes.close()
}

// askDeadFor is how long a replica that the mesh holds dead is asked all the same: it may be slow only.
const askDeadFor = 10 * time.Minute

// others are all replicas that speak this protocol.
func (p *peers) others() []other {
	var out []other
	for _, m := range p.mesh.Members() {
		if !m.Self && m.Card.GRPC != "" && (m.Alive || time.Since(m.Since) < askDeadFor) {
			out = append(out, other{m.Name, m.Alive, m.Since})
		}
	}
	return out
}

func (p *peers) client(member string) (peerspb.PeersClient, error) {
	conn, err := p.mesh.Conn(member)
	if err != nil {
		return nil, fmt.Errorf("reach replica %s: %w", member, err)
	}
	return peerspb.NewPeersClient(conn), nil
}

// ask waits for the answer to one question; many go in one call.
func (p *peers) ask(ctx context.Context, member string, q question) (granted bool, err error) {
	reply := make(chan answered, 1)
	p.asks.add(member, asking{q, reply})
	select {
	case a := <-reply:
		return a.granted, a.err
	case <-ctx.Done():
		return false, fmt.Errorf("ask replica %s for the turn: %w", member, ctx.Err())
	}
}

// asking is a question that waits to be sent with others.
type asking struct {
	question
	reply chan<- answered
}

type answered struct {
	granted bool
	err     error
}

func (p *peers) sendAsks(member string, batch []asking) {
	ctx, cancel := context.WithTimeout(p.ctx, askTimeout)
	defer cancel()
	answers, err := p.askAll(ctx, member, batch)
	for i, q := range batch {
		a := answered{err: err}
		if err == nil {
			a = answered{answers[i].GetGranted(), p.merge(answers[i].GetEntry())}
		}
		q.reply <- a
	}
}

func (p *peers) askAll(ctx context.Context, member string, batch []asking) ([]*peerspb.Answer, error) {
	c, err := p.client(member)
	if err != nil {
		return nil, err
	}
	req := &peerspb.AskRequest{}
	for _, q := range batch {
		req.Questions = append(req.Questions, &peerspb.Question{Key: q.key.proto(), Failures: uint32(q.failures)})
	}
	reply, err := c.Ask(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("ask replica %s for the turn: %w", member, err)
	}
	if len(reply.GetAnswers()) != len(batch) {
		return nil, fmt.Errorf("replica %s answered %d of %d questions", member, len(reply.GetAnswers()), len(batch))
	}
	return reply.GetAnswers(), nil
}

func (p *peers) pass(member string, key turnKey) { p.passes.add(member, key) }

func (p *peers) sendPasses(member string, batch []turnKey) {
	ctx, cancel := context.WithTimeout(p.ctx, askTimeout)
	defer cancel()
	c, err := p.client(member)
	if err != nil {
		return // It asks again by itself.
	}
	req := &peerspb.PassRequest{}
	for _, key := range batch {
		entry, err := p.log.encoded(key)
		if err != nil {
			entry = nil // Gossip brings it.
		}
		req.Turns = append(req.Turns, &peerspb.Turn{Key: key.proto(), Entry: entry})
	}
	_, _ = c.Pass(ctx, req) // As above.
}

func (p *peers) deliver(ctx context.Context, member string, s *peerspb.Statements) error {
	c, err := p.client(member)
	if err != nil {
		return err
	}
	if _, err := c.Deliver(ctx, s); err != nil {
		return fmt.Errorf("deliver alerts to replica %s: %w", member, err)
	}
	return nil
}

// merge takes an entry of another replica's notification log; none is fine.
func (p *peers) merge(entry []byte) error {
	if len(entry) == 0 {
		return nil
	}
	return p.log.Merge(entry)
}

// Deliver takes alerts of another replica.
func (p *peers) Deliver(ctx context.Context, s *peerspb.Statements) (*peerspb.Delivered, error) {
	if err := p.relay.hear(ctx, s); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &peerspb.Delivered{}, nil
}

// Ask answers another replica that wants to notify.
func (p *peers) Ask(ctx context.Context, r *peerspb.AskRequest) (*peerspb.AskReply, error) {
	from, ok := mesh.Caller(ctx)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "the caller has no name")
	}
	questions := r.GetQuestions()
	if len(questions) > maxBatch {
		return nil, status.Errorf(codes.InvalidArgument, "%d turns, of which at most %d are asked for at once", len(questions), maxBatch)
	}
	reply := &peerspb.AskReply{}
	for _, q := range questions {
		key, err := keyFrom(q.GetKey())
		if err != nil {
			return nil, err
		}
		a := &peerspb.Answer{Granted: p.turns.asked(from, question{key, int(q.GetFailures())})}
		// After the answer: what was sent before it is in.
		if a.Entry, err = p.log.encoded(key); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		reply.Answers = append(reply.Answers, a)
	}
	return reply, nil
}

// Pass wakes notifications that wait for another replica.
func (p *peers) Pass(_ context.Context, r *peerspb.PassRequest) (*peerspb.Passed, error) {
	for _, t := range r.GetTurns() {
		key, err := keyFrom(t.GetKey())
		if err != nil {
			return nil, err
		}
		if err := p.merge(t.GetEntry()); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		p.turns.passed(key)
	}
	return &peerspb.Passed{}, nil
}

func (k turnKey) proto() *peerspb.Key {
	return &peerspb.Key{Group: k.group, Receiver: k.receiver, Integration: k.integration, Index: k.index}
}

func keyFrom(k *peerspb.Key) (turnKey, error) {
	if k.GetGroup() == "" || k.GetReceiver() == "" {
		return turnKey{}, status.Error(codes.InvalidArgument, "the turn has no group or no receiver")
	}
	return turnKey{k.GetGroup(), k.GetReceiver(), k.GetIntegration(), k.GetIndex()}, nil
}

// put hands alerts to this replica's Alertmanager, through its API: it validates and counts them.
func (a *Alert) put(ctx context.Context, alerts []posted) error {
	if len(alerts) == 0 {
		return nil
	}
	w, err := a.call(ctx, http.MethodPost, "/api/v2/alerts", alerts)
	if err != nil {
		return err
	}
	switch w.code {
	case http.StatusOK:
		return nil
	case http.StatusBadRequest:
		// The good ones among them were taken, and the others are refused whenever they come.
		a.logger.Warn("the Alertmanager refused some alerts", "err", w.body.String())
		return nil
	default:
		return errors.New("hand alerts to the Alertmanager: " + w.body.String())
	}
}

// takeFromOutside takes alerts that were posted to this replica, and brings them to the others: a load balancer in
// front of the replicas does no harm.
func (a *Alert) takeFromOutside(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body) // It was read and bounded before.
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	held := &answer{header: w.Header()}
	err = a.relay.overheard(r.Context(), func() []posted {
		a.serve(held, r)
		// Upstream takes the good ones out of a request with bad ones.
		if held.code != http.StatusOK && held.code != http.StatusBadRequest {
			return nil
		}
		return a.decode(r.Context(), body)
	})
	if err != nil {
		a.logger.Error("alerts did not reach the Alertmanager", "err", err)
	}
	held.WriteHeader(http.StatusOK)
	w.WriteHeader(held.code)
	_, _ = w.Write(held.body.Bytes()) // The client may be gone.
}

// decode reads what the Alertmanager API has just taken, with its own decoder: it knows more forms of a time than
// others. Alerts get the times that the Alertmanager gives them when they come without, so that every replica has the
// same; those that it refuses are left out.
func (a *Alert) decode(ctx context.Context, body []byte) []posted {
	var open models.PostableAlerts
	if err := json.Unmarshal(body, &open); err != nil {
		return nil // Then it has taken none.
	}
	now := time.Now()
	var out []posted
	for _, al := range apiv2.OpenAPIAlertsToAlerts(ctx, open) {
		p := posted{
			Labels: map[string]string{}, Annotations: map[string]string{}, GeneratorURL: al.GeneratorURL,
			StartsAt: al.StartsAt, EndsAt: al.EndsAt,
		}
		if p.StartsAt.IsZero() {
			if p.StartsAt = now; !p.EndsAt.IsZero() {
				p.StartsAt = p.EndsAt
			}
		}
		if p.EndsAt.IsZero() {
			p.EndsAt = now.Add(time.Duration(a.prepared.Load().resolveTimeout))
		}
		for n, v := range al.Labels {
			if v == "" {
				delete(al.Labels, n)
				continue
			}
			p.Labels[string(n)] = string(v)
		}
		for n, v := range al.Annotations {
			p.Annotations[string(n)] = string(v)
		}
		al.StartsAt, al.EndsAt = p.StartsAt, p.EndsAt
		if al.Validate() == nil {
			out = append(out, p)
		}
	}
	return out
}
