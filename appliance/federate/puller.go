package federate

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/storage"
)

// puller pulls from one upstream, pull after pull, in one goroutine. It outlives
// changes of the upstream's section, so that it knows which series go on.
type puller struct {
	name       string
	appendable storage.Appendable
	metrics    *upstreamMetrics
	logger     *slog.Logger

	mu      sync.Mutex
	next    *upstream     // what shall be pulled from
	changed chan struct{} // holds one token after next was replaced; owned by run
	removed bool

	cancel context.CancelFunc // both nil until it runs
	done   chan struct{}

	// Owned by the goroutine.
	current   *upstream
	catalogue *catalogue // what was stored and is not stale, and the health series
	health    []*series
	pulls     uint64
	last      time.Time // planned time of the last pull
	state     result    // of the last pull
}

func newPuller(u *upstream, a storage.Appendable, m *upstreamMetrics, l *slog.Logger) *puller {
	return &puller{
		name:       u.cfg.Name,
		appendable: a,
		metrics:    m,
		logger:     l,
		next:       u,
		changed:    make(chan struct{}, 1),
		catalogue:  newCatalogue(),
		state:      resultSuccess,
	}
}

func (p *puller) wanted() *upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next
}

// replace makes u the upstream from the next pull on. A pull under way is
// finished under the old section.
func (p *puller) replace(u *upstream) {
	p.mu.Lock()
	old := p.next
	p.next = u
	p.mu.Unlock()
	if old.target.Health() != scrape.HealthUnknown {
		u.target.Report(old.target.LastScrape(), old.target.LastScrapeDuration(), old.target.LastError())
	}
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// remove stops p for good; wait returns when its series are marked stale.
func (p *puller) remove() {
	p.mu.Lock()
	p.removed = true
	p.mu.Unlock()
	if p.cancel != nil {
		p.cancel()
	}
}

func (p *puller) wait() {
	if p.done != nil {
		<-p.done
	}
}

func (p *puller) run(ctx context.Context) {
	p.adopt()
	defer func() { p.current.client.CloseIdleConnections() }()
	for {
		at := p.current.nextPull(time.Now())
		if at.Equal(p.last) {
			at = at.Add(time.Duration(p.current.cfg.Interval)) // the wall clock lags behind the timer
		}
		timer := time.NewTimer(time.Until(at))
		select {
		case <-ctx.Done():
			timer.Stop()
			p.end(ctx)
			return
		case <-p.changed:
			timer.Stop()
			p.adopt()
		case <-timer.C:
			p.pull(ctx, at)
		}
	}
}

// adopt switches to the wanted upstream. Series that it no longer yields,
// health series under old labels among them, go stale with its first pull.
func (p *puller) adopt() {
	u := p.wanted()
	if p.current == u {
		return
	}
	if p.current != nil {
		p.current.client.CloseIdleConnections()
	}
	p.current = u
	for _, s := range p.health {
		s.ours = false
		if !s.begun {
			p.catalogue.remove(s) // never written, so there is nothing to end
		}
	}
	p.health = p.health[:0]
	for _, lset := range u.health {
		hash := p.catalogue.hash(lset)
		s := p.catalogue.find(hash, lset)
		if s == nil {
			s = &series{lset: cloneLabels(lset), hash: hash}
			p.catalogue.add(s)
		}
		s.ours = true
		p.health = append(p.health, s)
	}
}

// end writes the stale markers of an upstream that was removed. When the
// process goes down it writes none.
func (p *puller) end(ctx context.Context) {
	p.mu.Lock()
	removed := p.removed
	p.mu.Unlock()
	if !removed {
		return
	}
	for _, s := range p.health {
		s.ours = false
	}
	p.health = nil
	p.pulls++
	if err := p.writeStale(context.WithoutCancel(ctx), time.Now().UnixMilli()); err != nil {
		p.logger.Warn("series of the removed upstream end without stale markers and fade out over the lookback time", "err", err)
	}
}

// alignTolerance is how late a pull may start and still bear its planned time:
// equal distances compress better.
const alignTolerance = 2 * time.Millisecond

func (p *puller) pull(ctx context.Context, planned time.Time) {
	u := p.current
	p.last = planned
	start := time.Now().Round(0)
	now := start
	if late := start.Sub(planned); late >= 0 && late <= min(alignTolerance, time.Duration(u.cfg.Interval)/100) {
		now = planned
	}
	p.pulls++
	in := newIntake(u.filter, p.catalogue, p.pulls, now.UnixMilli())
	pullCtx, cancel := context.WithTimeout(ctx, time.Duration(u.cfg.Timeout))
	err := u.fetch(pullCtx, in)
	cancel()
	if ctx.Err() != nil {
		return // we are stopping; the upstream is not to blame
	}
	a := in.finish()
	took := time.Since(start)
	if err == nil {
		err = a.collisionError()
	}
	err = p.write(context.WithoutCancel(ctx), a, now.UnixMilli(), took, err)

	p.metrics.count(a, err)
	u.target.Report(start, took, err)
	// The section may have been replaced meanwhile; its target shows this pull
	// too until it has one of its own.
	if w := p.wanted(); w != u {
		w.target.Report(start, took, err)
	}
	p.logChange(err)
}

// logChange logs when pulls begin to end otherwise than before.
func (p *puller) logChange(err error) {
	was, is := p.state, resultOf(err)
	if was == is {
		return
	}
	p.state = is
	switch is {
	case resultSuccess:
		p.logger.Info("federation pull succeeds again")
	case resultPartial:
		p.logger.Warn("federation pull stored without the series that collide", "err", err)
	default:
		p.logger.Warn("federation pull failed, series of the upstream are stale until one succeeds", "err", err)
	}
}
