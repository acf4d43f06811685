// Package heal makes this replica's data whole from the other replicas' data, and answers those who do the same.
//
// It owns the finding of gaps that only a comparison with others shows, the asking, and the checking of answers. Gaps
// enter from the store's ledger; series enter from other replicas over the mesh's authenticated gRPC, by Thanos's
// StoreAPI; what is missing leaves into the store's import, and to queries as long as it is not imported. It serves this
// replica's own data to the others, and to readers that hold a certificate of the cluster.
//
// It refuses answers that are malformed, out of order, outside of what was asked for, endless or silent: by reason, with
// a counter, and asks somebody else. It never writes where this replica has data of its own. DESIGN.md beside this file
// has the protocol and its invariants.
package heal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/storage"
	"google.golang.org/grpc"

	"github.com/tocsin-io/tocsin/appliance/heal/peerspb"
	"github.com/tocsin-io/tocsin/appliance/mesh"
	"github.com/tocsin-io/tocsin/appliance/store"
)

const (
	// look is how often the loop looks whether there is something to do.
	look = time.Second
	// Filling a part of a gap that failed is tried again after a while, which doubles.
	minBackoff, maxBackoff = 2 * time.Second, time.Minute
	// noSpaceBackoff is how long nothing is imported after the disk was full.
	noSpaceBackoff = time.Minute
	// healStall bounds the silence within an answer.
	healStall = 15 * time.Second
	// maxPartBytes bounds the answer for one part of a gap. Two hours of a million series are about 2 GiB.
	maxPartBytes = 16 << 30
	// A wait for a core of more than busy says that others work; maxYield bounds what they are left.
	busy, maxYield = 2 * time.Millisecond, 100 * time.Millisecond
	// lonely is how long a replica that has never seen another one waits for one that may have its past, and again how often
	// those that have come are asked for what was lost.
	lonely, again = time.Minute, 15 * time.Second
	// lastingPart is how much of a gap that lasts is filled at once.
	lastingPart = 5 * time.Minute
)

// Results of an attempt, the labels of a counter.
const (
	runDone    = "done"
	runFailed  = "failed"
	runNoSpace = "no_space"
	runNobody  = "nobody" // No replica has it.
)

// Mesh is what this package needs to know of the other replicas; a *mesh.Mesh is one.
type Mesh interface {
	Keyed() bool
	Members() []mesh.Member
	// SeenBefore names those that were there in the day before the start.
	SeenBefore() []string
	Server() grpc.ServiceRegistrar
	// ReadableServer is for what readers may call too.
	ReadableServer() grpc.ServiceRegistrar
	Conn(member string) (grpc.ClientConnInterface, error)
	SetCompleteness(c float64)
}

// Store is what is healed.
type Store interface {
	storage.ChunkQueryable
	Local() storage.Queryable
	LocalChunks() storage.ChunkQueryable
	// TimeRange is from the oldest to the newest sample, in Unix milliseconds, or an error before it is ready.
	TimeRange() (oldest, newest int64, err error)
	StartTime() (int64, error)
	Import(ctx context.Context, in store.Interval, foreign store.ForeignSet, o store.ImportOptions) (store.Imported, error)
	HoldMarkers()
	Held() []store.Held
	Drop(id uint64)
	Release(ctx context.Context, id uint64) error
	// Spare refuses with store.ErrNoSpace when data that are elsewhere anyway should not take more of the disk.
	Spare() error
}

// Options are what healing needs. All are mandatory but for Mesh and Archive.
type Options struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Store      Store
	Ledger     *store.Ledger
	// Mesh is nil where there are no other replicas.
	Mesh Mesh
	// Archive is nil where there is no object storage.
	Archive Archive
	// Zone is this replica's.
	Zone string
	// External are the labels that a reader sees on all series.
	External func() labels.Labels
	// Match gives the labels that all series of a target have, by those of its `up` series; none for an `up` that is not
	// of a target of ours. Nil: the same.
	Match func(up labels.Labels) labels.Labels
	// Settle is how long it takes until everything was scraped and evaluated once.
	Settle func() time.Duration
	// Groups and Engine evaluate recording rules after the fact.
	Groups func() []*rules.Group
	Engine promql.QueryEngine
	// Window is the length of a block; no part that is imported at once goes beyond one (2h).
	Window time.Duration
}

// Heal is the healing of one replica.
type Heal struct {
	opts    Options
	logger  *slog.Logger
	metrics *metrics
	ask     *asker
	serve   *storeServer
	running atomic.Bool
	since   time.Time // When it began to run.
	recalls time.Time // When those that have come were asked.
	// stall and maxBytes bound an answer: healStall and maxPartBytes; patience is lonely.
	stall    time.Duration
	maxBytes int64
	patience time.Duration

	observed observed

	mu       sync.Mutex
	backoff  map[string]backoff
	pause    time.Time // Nothing is imported before.
	progress *Progress
	problem  string
}

type backoff struct {
	until time.Time
	last  time.Duration
}

// New registers what other replicas ask for. Nothing is asked before Run.
func New(o Options) (*Heal, error) {
	if o.Window <= 0 {
		o.Window = 2 * time.Hour
	}
	if o.Match == nil {
		o.Match = func(up labels.Labels) labels.Labels { return up }
	}
	m := newMetrics(o.Registerer)
	h := &Heal{
		opts: o, logger: o.Logger, metrics: m, backoff: map[string]backoff{}, stall: healStall, maxBytes: maxPartBytes,
		patience: lonely,
		ask: &asker{
			mesh: o.Mesh, logger: o.Logger, metrics: m, zone: func() string { return o.Zone },
			punished: map[string]time.Time{}, failed: map[string]int{}, known: map[string]known{},
		},
	}
	if h.opts.Mesh != nil && h.opts.Mesh.Keyed() {
		h.serve = newStoreServer(o.Logger, o.Registerer, localData{o.Store}, o.External)
		h.serve.register(o.Mesh.ReadableServer())
		peerspb.RegisterPeersServer(o.Mesh.Server(), h)
		o.Store.HoldMarkers()
	}
	return h, nil
}

// localData is what is served to others: never what this replica itself gets from elsewhere.
type localData struct{ store Store }

func (l localData) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return l.store.LocalChunks().ChunkQuerier(mint, maxt)
}

func (l localData) StartTime() (int64, error) { return l.store.StartTime() }

// begun tells whether the ledger knows this life: before, it does not know what is missing.
func (h *Heal) begun() bool { return h.running.Load() }

// alone tells that there are no other replicas to be had.
func (h *Heal) alone() bool { return h.opts.Mesh == nil || !h.opts.Mesh.Keyed() }

// Run heals until ctx ends. The ledger must have begun.
func (h *Heal) Run(ctx context.Context) error {
	h.since = time.Now()
	h.running.Store(true)
	var jobs sync.WaitGroup
	defer jobs.Wait()
	// Looking does not wait for filling, which may take hours, nor what is missing of single targets for what is missing
	// of everything.
	for _, job := range []func(context.Context){
		h.observe, h.keepAsking, h.declare,
		func(ctx context.Context) { h.recall(ctx); h.fill(ctx, store.GapReplica) },
		func(ctx context.Context) { h.fill(ctx, store.GapTarget, store.GapRules) },
	} {
		jobs.Go(func() {
			tick := time.NewTicker(look)
			defer tick.Stop()
			for {
				job(ctx)
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
			}
		})
	}
	return nil
}

// keepAsking keeps what the others said of their data fresh while queries need it.
func (h *Heal) keepAsking(ctx context.Context) {
	if !h.alone() && len(h.opts.Ledger.Open()) > 0 {
		h.ask.coverages(ctx, everything())
	}
}

// declare tells the mesh how far this replica's data are whole.
func (h *Heal) declare(context.Context) {
	if h.opts.Mesh != nil {
		h.opts.Mesh.SetCompleteness(h.opts.Ledger.Completeness())
	}
}

// lag is how long after a moment everything that was scraped then is written, at every replica. A scrape's samples bear
// the time of its begin.
func (h *Heal) lag() time.Duration { return min(h.opts.Settle(), 15*time.Second) }

// fill fills what of some kinds of gaps can be filled now.
func (h *Heal) fill(ctx context.Context, kinds ...store.GapKind) {
	open := h.opts.Ledger.Open()
	slices.SortStableFunc(open, func(a, b store.Gap) int { return cmp.Compare(b.From, a.From) })
	h.tidy(open)
	var targets []store.Gap
	for _, g := range open {
		if !slices.Contains(kinds, g.Kind) || h.waits(g) {
			continue
		}
		var err error
		switch g.Kind {
		case store.GapReplica:
			err = h.fillReplica(ctx, g)
		case store.GapTarget:
			targets = append(targets, g)
			continue
		case store.GapRules:
			err = h.fillRules(ctx, g)
		}
		h.ended(err, g)
	}
	if len(targets) > 0 {
		h.ended(h.fillTargets(ctx, targets), targets...)
	}
}

// waits tells that a gap is not tried yet again.
func (h *Heal) waits(g store.Gap) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	return now.Before(h.pause) || now.Before(h.backoff[g.ID].until)
}

// tidy forgets what is closed.
func (h *Heal) tidy(open []store.Gap) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range h.backoff {
		if !slices.ContainsFunc(open, func(g store.Gap) bool { return g.ID == id }) {
			delete(h.backoff, id)
		}
	}
}

// errWait says that a part cannot be filled yet, which is nobody's fault.
var errWait = errors.New("no replica that has it can be reached")

// ended notes how an attempt went.
func (h *Heal) ended(err error, gaps ...store.Gap) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil:
		for _, g := range gaps {
			delete(h.backoff, g.ID)
		}
		h.problem = ""
		return
	case errors.Is(err, context.Canceled):
		return
	case errors.Is(err, store.ErrNoSpace):
		h.pause = time.Now().Add(noSpaceBackoff)
		h.metrics.runs.WithLabelValues(runNoSpace).Inc()
		h.logger.Error("healing pauses, because the disk is almost full; scraping goes on", "again_in", noSpaceBackoff, "err", err)
	case errors.Is(err, errWait):
	default:
		h.metrics.runs.WithLabelValues(runFailed).Inc()
	}
	h.problem = err.Error()
	for _, g := range gaps {
		b := h.backoff[g.ID]
		b.last = min(max(2*b.last, minBackoff), maxBackoff)
		b.until = time.Now().Add(b.last)
		h.backoff[g.ID] = b
		if !errors.Is(err, store.ErrNoSpace) && !errors.Is(err, errWait) && len(gaps) == 1 {
			h.logger.Warn("a gap could not be filled yet", "gap", g.ID, "kind", g.Kind, "again_in", b.last, "err", err)
		}
	}
	if len(gaps) > 1 && !errors.Is(err, errWait) {
		h.logger.Warn("gaps could not be filled yet", "gaps", len(gaps), "err", err)
	}
}

// due is what of a gap can be filled now: others have written what they scraped, and of a gap that is not over, only what
// is half an interval before its finding: where our own first samples will be is not known yet, and nothing of others
// comes closer to them. That is one part, and what remains another: in a part that has one sample only, how far it has to
// keep away is not known.
func (h *Heal) due(g *store.Gap) []store.Interval {
	until := time.Now().Add(-h.lag()).UnixMilli()
	if g.Kind == store.GapReplica && (g.Lasting() || until <= g.To) {
		until = min(until, g.Found.Add(-max(h.lag(), h.opts.Settle()/2)).UnixMilli())
	}
	if g.Kind == store.GapTarget {
		switch {
		case !g.Lasting() && until <= g.To:
			return nil
		case g.Lasting() && len(g.Missing) > 0 && until-g.Missing[0].From < lastingPart.Milliseconds():
			return nil
		}
	}
	var parts []store.Interval
	for _, i := range g.Missing {
		if i.To = min(i.To, until+1); !i.Empty() {
			parts = append(parts, i)
		}
	}
	return parts
}

// fillReplica fills a gap of everything, the newest part first.
func (h *Heal) fillReplica(ctx context.Context, g store.Gap) error {
	if h.alone() && h.opts.Archive == nil {
		return h.lose(g, g.Missing)
	}
	parts := h.due(&g)
	if len(parts) == 0 {
		return nil
	}
	var peers []peer
	complete, late := true, time.Since(h.since) > h.patience
	if !h.alone() {
		peers, complete = h.ask.coverages(ctx, everything())
		if len(peers) == 0 && !late {
			return errWait
		}
	}
	// Who gives wrong answers does not count as having anything, as long as there is somebody else.
	if honest := h.ask.honest(peers); len(honest) > 0 {
		peers = honest
	}
	// At each change of hands a sample may be lost to the guards, so it goes on from where it began.
	if n := len(g.Fills); n > 0 {
		last := slices.IndexFunc(peers, func(p peer) bool { return p.Name == g.Fills[n-1].Replica })
		if last > 0 {
			p := peers[last]
			peers = slices.Insert(slices.Delete(peers, last, last+1), 0, p)
		}
	}
	var waits, work []piece
	waited := int64(math.MinInt64) // The end of the last window that the bucket has something of, and that has to wait.
	for _, part := range parts {
		for _, p := range share(part, peers) {
			if len(p.peers) > 0 {
				work = append(work, cut(p, h.opts.Window)...)
				continue
			}
			if !complete && !late {
				waits = append(waits, p)
				continue
			}
			// The bucket is the last that is asked: when all others were, or have not come for a while.
			whole, others, rest, known := h.stored(p)
			work = append(work, whole...)
			switch {
			case !complete || h.opts.Archive != nil && !known && !late:
				waits = append(append(waits, others...), rest...)
				for _, o := range others {
					waited = max(waited, o.To)
				}
			default:
				work = append(work, others...)
				for _, r := range rest {
					work = append(work, h.remains(r, peers)...)
				}
			}
		}
	}
	// Queries ask the bucket for what is older than all local data: no window may be left out on the way back.
	work = slices.DeleteFunc(work, func(p piece) bool { return p.To <= waited && len(p.peers) > 0 && p.peers[0].archive })
	slices.SortFunc(work, func(a, b piece) int { return cmp.Compare(b.From, a.From) })
	run := h.begin(g, work)
	defer h.finish(run)
	for _, p := range work {
		fill := h.fillPiece
		if len(p.peers) == 0 {
			fill = h.gather
		}
		err := fill(ctx, g, p, peers, run)
		if errors.Is(err, errNothing) {
			if !complete {
				waits = append(waits, p)
				continue
			}
			err = h.gather(ctx, g, p, peers, run)
		}
		if err != nil {
			return err
		}
		run.part(p.Interval)
	}
	if len(waits) > 0 {
		return errWait
	}
	return nil
}

func namesOf(peers []peer) []string {
	names := make([]string, len(peers))
	for n := range peers {
		names[n] = peers[n].Name
	}
	return names
}

// recall opens what was lost anew when a replica has come that was not asked, and has that time, or when it has become known that the
// bucket has it.
func (h *Heal) recall(ctx context.Context) {
	if h.alone() && h.opts.Archive == nil || time.Since(h.recalls) < again {
		return
	}
	h.recalls = time.Now()
	var peers []peer
	asked, known := h.alone(), h.opts.Archive != nil
	for _, g := range h.opts.Ledger.Gaps() {
		if g.Kind != store.GapReplica || g.State == store.GapOpen {
			continue
		}
		for _, f := range g.Fills {
			if f.Replica != "" {
				continue
			}
			if known && !slices.Contains(g.Asked, fromArchive) {
				var whole []piece
				if whole, _, _, known = h.stored(piece{Interval: f.Interval}); len(whole) > 0 {
					h.logger.Info("the bucket has what was lost", "gap", g.ID)
					h.opts.Ledger.Reopen(g.ID, store.Interval{From: whole[0].From, To: whole[len(whole)-1].To})
					break
				}
			}
			if !asked {
				peers, _ = h.ask.coverages(ctx, everything())
				asked = true
			}
			for _, p := range peers {
				if parts := p.has(f.Interval); len(parts) > 0 && !slices.Contains(g.Asked, p.Name) {
					h.logger.Info("a replica has come that may have what was lost", "replica", p.Name, "gap", g.ID)
					h.opts.Ledger.Reopen(g.ID, store.Interval{From: parts[0].From, To: parts[len(parts)-1].To})
					break
				}
			}
		}
	}
}

// catchUp evaluates the recording rules that nobody did.
func (h *Heal) catchUp(ctx context.Context, g store.Gap, i store.Interval) {
	if g.Cause == store.CauseNew {
		return // It would be evaluated for as long as data are kept, and the others did.
	}
	if err := h.evaluate(ctx, nil, g, i); err != nil && ctx.Err() == nil {
		h.logger.Warn("recording rules could not be evaluated after the fact", "err", err)
	}
}

// lose closes parts of a gap that nobody has.
func (h *Heal) lose(g store.Gap, parts []store.Interval) error {
	if g.Lasting() && h.alone() {
		return nil
	}
	for _, i := range parts {
		h.metrics.runs.WithLabelValues(runNobody).Inc()
		if err := h.opts.Ledger.Filled(g.ID, store.Fill{Interval: i, At: time.Now()}); err != nil {
			return fmt.Errorf("note that nobody has it: %w", err)
		}
	}
	return nil
}
