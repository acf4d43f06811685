package heal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/thanos-io/thanos/pkg/store/storepb"

	"github.com/tocsin-io/tocsin/appliance/store"
)

const (
	// hedge is how long a query waits for the first word of one replica before it asks the next one too, and giveUp how
	// long for all of them.
	hedge, giveUp = 100 * time.Millisecond, 5 * time.Second
	// queryStall bounds the silence within an answer to a query.
	queryStall = 2 * time.Second
	// maxQueryBytes bounds what one select takes from others, which is held in memory.
	maxQueryBytes = 256 << 20
	// fresh is how long what a replica said of its data serves queries.
	fresh = 2 * time.Second
	// maxNames bounds label names and values of one answer.
	maxNames = 1_000_000
)

// Peers is the other replicas as queries see them: what this replica lacks is asked from whoever has it, in bounded
// time. What nobody has, or said in time, is in the warnings.
type Peers struct{ h *Heal }

// Peers are for package query.
func (h *Heal) Peers() *Peers { return &Peers{h} }

// Available tells whether there is anybody to ask.
func (p *Peers) Available() bool {
	members, _ := p.h.ask.others()
	return len(members) > 0
}

// Select answers what the others have of the series that match, strictly within an interval, sorted by labels. A series
// that two replicas had parts of is there twice. Its only error is that of the context.
func (p *Peers) Select(ctx context.Context, i store.Interval, ms ...*labels.Matcher) ([]store.ForeignSeries, annotations.Annotations, error) {
	pieces, warnings := p.pieces(ctx, i)
	answers := make([][]store.ForeignSeries, len(pieces))
	errs := make([]error, len(pieces))
	var jobs sync.WaitGroup
	for n, piece := range pieces {
		jobs.Go(func() {
			answers[n], errs[n] = hedged(ctx, p.h.ask, piece.peers, func(ctx context.Context, who peer, heard func()) ([]store.ForeignSeries, error) {
				a, err := p.h.ask.series(ctx, who.Name, request{
					interval: piece.Interval, shift: who.shift, matchers: ms, stall: queryStall, maxBytes: maxQueryBytes,
				})
				if err != nil {
					return nil, err
				}
				defer a.close()
				var all []store.ForeignSeries
				for a.Next() {
					heard()
					all = append(all, a.At())
				}
				return all, a.Err()
			})
		})
	}
	jobs.Wait()
	if err := ctx.Err(); err != nil {
		return nil, nil, context.Cause(ctx)
	}
	var all []store.ForeignSeries
	for n, err := range errs {
		if err != nil {
			warnings.Add(missing(pieces[n].Interval, err))
			continue
		}
		all = append(all, answers[n]...)
	}
	if len(pieces) > 1 {
		slices.SortStableFunc(all, func(a, b store.ForeignSeries) int { return labels.Compare(a.Labels, b.Labels) })
	}
	return all, warnings, nil
}

// missing is a sentence for whoever reads the answer.
func missing(i store.Interval, why error) error {
	return fmt.Errorf("this replica has no data of its own between %s and %s, and no other replica's could be had: %w",
		clock(i.From), clock(i.To), why)
}

func clock(ms int64) string {
	if ms == store.Lasts {
		return "now"
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02 15:04:05 UTC")
}

// pieces are whom to ask for what, by what the others said last. Only who has not said anything lately is asked first.
func (p *Peers) pieces(ctx context.Context, i store.Interval) ([]piece, annotations.Annotations) {
	warnings := annotations.Annotations{}
	members, allThere := p.h.ask.others()
	if len(members) == 0 {
		return nil, warnings.Add(missing(i, errors.New("no other replica can be reached")))
	}
	peers, stale := p.h.ask.remembered(members)
	if stale {
		asked, cancel := context.WithTimeout(ctx, hedge)
		p.h.ask.coverages(asked, everything())
		cancel()
		peers, _ = p.h.ask.remembered(members)
	}
	oldest := int64(store.Lasts)
	for _, o := range peers {
		oldest = min(oldest, o.oldest)
	}
	var pieces []piece
	for _, piece := range share(i, peers) {
		switch {
		case len(piece.peers) > 0:
			pieces = append(pieces, piece)
		case allThere && piece.To <= oldest:
			// Nobody was there yet.
		default:
			warnings.Add(missing(piece.Interval, errors.New("no replica that can be reached has all of them")))
			// The better part of them may be had all the same.
			for _, who := range peers {
				if who.ready && who.oldest < piece.To {
					piece.peers = append(piece.peers, who)
				}
			}
			if len(piece.peers) > 0 {
				pieces = append(pieces, piece)
			}
		}
	}
	return pieces, warnings
}

// everything is all time.
func everything() store.Interval { return store.Interval{From: -1, To: store.Lasts} }

// hedged asks one replica after the other: the next one when one fails, and when nothing is heard from it for a moment.
// The first whole answer counts. A slow replica so costs a moment and not its timeout.
func hedged[T any](ctx context.Context, a *asker, peers []peer, ask func(ctx context.Context, who peer, heard func()) (T, error)) (T, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		who   peer
		value T
		err   error
	}
	results := make(chan result, len(peers))
	heard := make(chan struct{}, 1)
	impatience, over := time.NewTimer(hedge), time.NewTimer(giveUp)
	defer impatience.Stop()
	defer over.Stop()
	next := 0
	start := func() {
		who := peers[next]
		next++
		impatience.Reset(hedge)
		over.Reset(giveUp)
		go func() {
			v, err := ask(ctx, who, func() {
				select {
				case heard <- struct{}{}:
				default:
				}
			})
			results <- result{who, v, err}
		}()
	}
	var none T
	if len(peers) == 0 {
		return none, errors.New("no other replica can be reached")
	}
	start()
	var errs []error
	for running := 1; running > 0; {
		select {
		case r := <-results:
			running--
			if r.err == nil {
				return r.value, nil
			}
			if ctx.Err() == nil {
				a.punish(r.who.Name, r.err)
			}
			errs = append(errs, fmt.Errorf("replica %s: %w", r.who.Name, r.err))
		case <-heard:
			// Somebody speaks; that it goes on is bounded by itself.
			impatience.Stop()
			over.Stop()
			continue
		case <-over.C:
			return none, errors.Join(append(errs, fmt.Errorf("nothing was heard within %s", giveUp))...)
		case <-impatience.C:
		case <-ctx.Done():
			return none, ctx.Err()
		}
		if next < len(peers) {
			start()
			running++
		}
	}
	return none, errors.Join(errs...)
}

// LabelNames answers the names that the others have within an interval.
func (p *Peers) LabelNames(ctx context.Context, i store.Interval, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return p.names(ctx, i, "LabelNames", "", ms)
}

// LabelValues answers the values of a label that the others have within an interval.
func (p *Peers) LabelValues(ctx context.Context, name string, i store.Interval, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return p.names(ctx, i, "LabelValues", name, ms)
}

func (p *Peers) names(ctx context.Context, i store.Interval, method, label string, ms []*labels.Matcher) ([]string, annotations.Annotations, error) {
	matchers, err := storepb.PromMatchersToMatchers(ms...)
	if err != nil {
		return nil, nil, fmt.Errorf("ask other replicas for label names: %w", err)
	}
	pieces, warnings := p.pieces(ctx, i)
	var all []string
	for _, piece := range pieces {
		names, err := hedged(ctx, p.h.ask, piece.peers, func(ctx context.Context, who peer, _ func()) (names []string, err error) {
			conn, err := p.h.ask.mesh.Conn(who.Name)
			if err != nil {
				return nil, fmt.Errorf("reach it: %w", err)
			}
			from, to := add(add(piece.From, 1), -who.shift), add(add(piece.To, -1), -who.shift)
			if label == "" {
				reply := &storepb.LabelNamesResponse{}
				err = conn.Invoke(ctx, "/thanos.Store/"+method, &storepb.LabelNamesRequest{Start: from, End: to, Matchers: matchers}, reply)
				names = reply.Names
			} else {
				reply := &storepb.LabelValuesResponse{}
				err = conn.Invoke(ctx, "/thanos.Store/"+method, &storepb.LabelValuesRequest{Label: label, Start: from, End: to, Matchers: matchers}, reply)
				names = reply.Values
			}
			if err == nil && len(names) > maxNames {
				return nil, lied(lieEndless, "it has more than %d names", maxNames)
			}
			return names, err
		})
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		if err != nil {
			warnings.Add(missing(piece.Interval, err))
			continue
		}
		for _, n := range names {
			all = append(all, strings.Clone(n))
		}
	}
	slices.Sort(all)
	return slices.Compact(all), warnings, nil
}
