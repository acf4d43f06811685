package alert

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/proto"

	"github.com/tocsin-io/tocsin/appliance/alert/peerspb"
)

const (
	// deliverTimeout bounds one delivery to another replica.
	deliverTimeout = 5 * time.Second
	// deliverBatch is how many statements go in one delivery.
	deliverBatch = 500
	// deliverRetry is how long a delivery that did not work waits, at first and at most.
	deliverRetry, deliverRetryMax = 100 * time.Millisecond, 2 * time.Second
	// keepStatements is how long a statement is kept after it lapsed: as long as upstream's rules repeat that an alert
	// is resolved, so that a replica that was cut off for less still learns it.
	keepStatements = 15 * time.Minute
	// forgetInterval is how often lapsed statements are forgotten.
	forgetInterval = time.Minute
	// prolong is by how much an alert must last longer for the Alertmanager to be told: far less than it lasts, and more
	// than the replicas' messages are apart.
	prolong = 30 * time.Second
	// maxStatements bounds what is kept for the others. Beyond it alerts still reach this replica's Alertmanager.
	maxStatements = 500_000
	// maxStatementBytes bounds how large they may be together, as messages; in memory they take some times as much.
	maxStatementBytes = 256 << 20
	// maxBatchBytes bounds one delivery; a statement that is larger goes alone.
	maxBatchBytes = 4 << 20
	// warnDelivery is how often it is logged that a replica does not take alerts.
	warnDelivery = time.Minute
	// maxDelivery bounds one delivery from another replica.
	maxDelivery = 10 * deliverBatch
)

// relay brings the alerts of this replica's rules, and those posted to it from outside, to the Alertmanager of every
// replica, and keeps what each source says apart.
type relay struct {
	self        string
	incarnation int64
	mesh        Mesh
	logger      *slog.Logger
	metrics     *relayMetrics
	// put hands alerts to this replica's Alertmanager.
	put func(ctx context.Context, alerts []posted) error
	// send delivers to another replica.
	send func(ctx context.Context, member string, s *peerspb.Statements) error

	// ordered is held from hearing something until the Alertmanager has it, so that it gets things in order.
	ordered sync.Mutex

	mu     sync.Mutex
	said   map[model.Fingerprint]map[string]heard
	count  int
	bytes  int
	has    map[model.Fingerprint]had
	queues map[string]*queue
	jobs   sync.WaitGroup
}

// had is what the Alertmanager was told last of an alert, in milliseconds since the epoch.
type had struct{ starts, ends int64 }

// queue is what another replica still has to be told: the newest statement of each source about each alert.
type queue struct {
	// incarnation is whom it is for: one that restarts has to be told everything again.
	incarnation int64
	waiting     map[queued]*peerspb.Statement
	more        chan struct{}
	stop        context.CancelFunc
}

type queued struct {
	alert  model.Fingerprint
	source string
}

// say takes what this replica's own rules say.
func (r *relay) say(ctx context.Context, alerts []posted) error {
	r.ordered.Lock()
	defer r.ordered.Unlock()
	return r.hand(ctx, r.note(r.statements(r.self, alerts), true))
}

// overheard has the Alertmanager take what was posted from outside, and brings it to the others. Nothing that another
// replica has taken before can come in between. Where a replica's rules say something else of the same alert, as while
// one moves here from a Prometheus with the same rules, the Alertmanager is told what that makes together.
func (r *relay) overheard(ctx context.Context, take func() []posted) error {
	r.ordered.Lock()
	defer r.ordered.Unlock()
	statements := r.statements("", take())
	r.mu.Lock()
	for _, st := range statements {
		delete(r.has, fingerprint(st.GetLabels())) // It has something else now.
	}
	r.mu.Unlock()
	news := r.note(statements, true)
	return r.hand(ctx, slices.DeleteFunc(news, func(p posted) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.said[fingerprint(p.Labels)]) < 2
	}))
}

func (r *relay) statements(source string, alerts []posted) []*peerspb.Statement {
	now := time.Now().UnixMilli()
	out := make([]*peerspb.Statement, 0, len(alerts))
	for _, a := range alerts {
		out = append(out, &peerspb.Statement{
			Source: source, IncarnationMs: r.incarnation, SaidAtMs: now,
			Labels: a.Labels, Annotations: a.Annotations, GeneratorUrl: a.GeneratorURL,
			StartsAtMs: toMillis(a.StartsAt), EndsAtMs: toMillis(a.EndsAt),
		})
	}
	return out
}

// hand gives the Alertmanager what is news to it. It is called with ordered held.
func (r *relay) hand(ctx context.Context, news []posted) error {
	err := r.put(ctx, news)
	if err != nil {
		// What it did not take, it has to be told again.
		r.mu.Lock()
		defer r.mu.Unlock()
		clear(r.has)
	}
	return err
}

// hear takes what another replica delivers. Its times are moved to this replica's clock: alerts are resolved by time,
// and clocks differ.
func (r *relay) hear(ctx context.Context, msg *peerspb.Statements) error {
	if n := len(msg.GetStatements()); n > maxDelivery {
		return fmt.Errorf("a delivery of %d statements, of which at most %d are taken at once", n, maxDelivery)
	}
	var shift int64
	if then := msg.GetNowMs(); then != 0 {
		shift = time.Now().UnixMilli() - then
	}
	statements := make([]*peerspb.Statement, 0, len(msg.GetStatements()))
	for _, s := range msg.GetStatements() {
		if s == nil || len(s.GetLabels()) == 0 || s.GetEndsAtMs() == 0 || s.GetSource() == r.self {
			continue // Nobody else can say what this replica's rules say.
		}
		s.EndsAtMs += shift
		statements = append(statements, s)
	}
	r.ordered.Lock()
	defer r.ordered.Unlock()
	return r.hand(ctx, r.note(statements, false))
}

// note keeps what is new of the statements, queues it for the others if it is this replica's to tell, and returns
// what the Alertmanager has to know.
func (r *relay) note(statements []*peerspb.Statement, tell bool) []posted {
	sources, now := r.sources(), time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := make([]model.Fingerprint, 0, len(statements))
	var overflow []posted
	for _, s := range statements {
		fp := fingerprint(s.GetLabels())
		size := proto.Size(s)
		if old, ok := r.said[fp][s.GetSource()]; ok {
			if overtaken(s, old.Statement) {
				continue
			}
			r.bytes -= old.size
		} else if r.count >= maxStatements || r.bytes+size > maxStatementBytes {
			r.metrics.dropped.Inc()
			overflow = append(overflow, toPosted(s))
			continue
		} else {
			r.count++
		}
		if r.said[fp] == nil {
			r.said[fp] = map[string]heard{}
		}
		r.said[fp][s.GetSource()] = heard{s, now, size}
		r.bytes += size
		changed = append(changed, fp)
		if tell {
			for _, q := range r.queues {
				q.add(fp, s)
			}
		}
	}
	r.metrics.statements.Set(float64(r.count))
	return append(overflow, r.combined(changed, sources, now)...)
}

// overtaken says that a statement is older than the one there is. What is posted from outside may be posted to any
// replica, so that there only the time counts; of the same time, the end holds.
func overtaken(s, old *peerspb.Statement) bool {
	if s.GetSource() != "" && s.GetIncarnationMs() != old.GetIncarnationMs() {
		return s.GetIncarnationMs() < old.GetIncarnationMs()
	}
	if s.GetSaidAtMs() == old.GetSaidAtMs() && s.GetIncarnationMs() != old.GetIncarnationMs() {
		return s.GetEndsAtMs() > old.GetEndsAtMs()
	}
	return s.GetSaidAtMs() < old.GetSaidAtMs()
}

// combined is what all sources together say about alerts, as far as it is news: three replicas repeat every alert every
// minute, and each time only prolong it.
func (r *relay) combined(alerts []model.Fingerprint, sources map[string]source, now time.Time) []posted {
	out := make([]posted, 0, len(alerts))
	for _, fp := range alerts {
		s, any := combine(r.said[fp], sources, now)
		if !any {
			continue
		}
		next, last := had{s.GetStartsAtMs(), s.GetEndsAtMs()}, r.has[fp]
		fires, fired := next.ends > now.UnixMilli(), last.ends > now.Add(prolong).UnixMilli()
		if fires && fired && next.starts >= last.starts && next.ends-last.ends < prolong.Milliseconds() && next.ends >= last.ends {
			continue
		}
		r.has[fp] = next
		out = append(out, toPosted(s))
	}
	return out
}

// elsewhere are the replicas whose rules have an alert firing, if this one's rules do not, nor anybody from outside.
func (r *relay) elsewhere(fp model.Fingerprint) []string {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for name, h := range r.said[fp] {
		if h.resolved(now) {
			continue
		}
		if name == "" || name == r.self {
			return nil
		}
		names = append(names, shown(name, maxReplicaName))
	}
	slices.Sort(names)
	return names
}

func (r *relay) sources() map[string]source {
	members := r.mesh.Members()
	out := make(map[string]source, len(members))
	for _, m := range members {
		out[m.Name] = source{alive: m.Alive, incarnation: m.Card.Started.UnixMilli()}
	}
	return out
}

// changed follows the mesh: a replica that has come is told everything, one that has gone is told nothing more, and
// what a replica that is gone has said may count for less.
func (r *relay) changed(ctx context.Context) error {
	sources, now := r.sources(), time.Now()
	r.ordered.Lock()
	defer r.ordered.Unlock()
	r.mu.Lock()
	for name, q := range r.queues {
		if s := sources[name]; !s.alive || s.incarnation != q.incarnation {
			q.stop()
			delete(r.queues, name)
		}
	}
	for name, s := range sources {
		if name == r.self || !s.alive || r.queues[name] != nil {
			continue
		}
		qctx, stop := context.WithCancel(ctx)
		q := &queue{
			incarnation: s.incarnation, waiting: map[queued]*peerspb.Statement{}, more: make(chan struct{}, 1), stop: stop,
		}
		for fp, said := range r.said {
			for from, h := range said {
				if from != name {
					q.add(fp, h.Statement)
				}
			}
		}
		r.queues[name] = q
		r.jobs.Go(func() { r.deliver(qctx, name, q) })
	}
	var disputed []model.Fingerprint
	for fp, said := range r.said {
		if len(said) > 1 && differ(said, now) {
			disputed = append(disputed, fp)
		}
	}
	news := r.combined(disputed, sources, now)
	r.mu.Unlock()
	return r.hand(ctx, news)
}

// differ says whether some sources have an alert firing and others resolved.
func differ(said map[string]heard, now time.Time) bool {
	var firing, resolved bool
	for _, h := range said {
		if h.resolved(now) {
			resolved = true
		} else {
			firing = true
		}
	}
	return firing && resolved
}

// run forgets what has lapsed, until ctx ends.
func (r *relay) run(ctx context.Context) {
	tick := time.NewTicker(forgetInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.forget(time.Now().Add(-keepStatements))
		case <-ctx.Done():
			return
		}
	}
}

// drain waits until the others have been told everything, or until ctx ends.
func (r *relay) drain(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for r.waiting() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// stop ends the deliveries.
func (r *relay) stop() {
	r.mu.Lock()
	for name, q := range r.queues {
		q.stop()
		delete(r.queues, name)
	}
	r.mu.Unlock()
	r.jobs.Wait()
}

func (r *relay) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, q := range r.queues {
		n += len(q.waiting)
	}
	return n
}

func (r *relay) forget(before time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for fp, said := range r.said {
		for name, h := range said {
			if h.resolved(before) {
				delete(said, name)
				r.count--
				r.bytes -= h.size
			}
		}
		if len(said) == 0 {
			delete(r.said, fp)
			delete(r.has, fp)
		}
	}
	r.metrics.statements.Set(float64(r.count))
}

func (q *queue) add(fp model.Fingerprint, s *peerspb.Statement) {
	q.waiting[queued{fp, s.GetSource()}] = s
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// deliver tells one replica what is queued for it until ctx ends.
func (r *relay) deliver(ctx context.Context, member string, q *queue) {
	retry := deliverRetry
	var warned time.Time
	for {
		select {
		case <-q.more:
		case <-ctx.Done():
			return
		}
		for {
			batch := r.batch(q)
			if len(batch) == 0 {
				break
			}
			err := r.tell(ctx, member, batch)
			if err == nil {
				retry = deliverRetry
				r.told(q, batch)
				continue
			}
			if ctx.Err() != nil {
				return
			}
			r.metrics.failures.Inc()
			level := slog.LevelDebug
			if retry == deliverRetryMax && time.Since(warned) > warnDelivery {
				level, warned = slog.LevelWarn, time.Now()
			}
			r.logger.Log(ctx, level, "another replica does not take alerts; it will get them again", "replica", member,
				"alerts", len(batch), "err", err)
			timer := time.NewTimer(retry)
			retry = min(2*retry, deliverRetryMax)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
		}
	}
}

func (r *relay) batch(q *queue) map[queued]*peerspb.Statement {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[queued]*peerspb.Statement, min(len(q.waiting), deliverBatch))
	size := 0
	for k, s := range q.waiting {
		if size += proto.Size(s); size > maxBatchBytes && len(out) > 0 {
			break
		}
		if out[k] = s; len(out) == deliverBatch {
			break
		}
	}
	return out
}

// told forgets what was delivered, unless something newer has taken its place meanwhile.
func (r *relay) told(q *queue, batch map[queued]*peerspb.Statement) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, s := range batch {
		if q.waiting[k] == s {
			delete(q.waiting, k)
		}
	}
}

func (r *relay) tell(ctx context.Context, member string, batch map[queued]*peerspb.Statement) error {
	ctx, cancel := context.WithTimeout(ctx, deliverTimeout)
	defer cancel()
	msg := &peerspb.Statements{NowMs: time.Now().UnixMilli()}
	for _, s := range batch {
		msg.Statements = append(msg.Statements, s)
	}
	return r.send(ctx, member, msg)
}
