package drain

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tocsin-io/tocsin/appliance/drain/peerspb"
	"github.com/tocsin-io/tocsin/appliance/mesh"
)

const (
	// askTimeout bounds one question.
	askTimeout = 2 * time.Second
	// settleFor is how long a claim is gossiped before it holds where replicas cannot be asked: much longer than gossip takes.
	settleFor = 5 * time.Second
	// forgetAfter is how long a replica that was there before our start, and has not been since, is waited for. The mesh
	// forgets one that died later as late.
	forgetAfter = 24 * time.Hour
	// maxReason bounds what is shown of another replica's answer, in characters.
	maxReason = 300
)

// peers are the other replicas, in one of three ways.
type peers interface {
	// round asks all of them whether this replica may be stopped, and says what is waited for: "" when nothing is. The
	// claim is as old as given.
	round(ctx context.Context, claimed time.Time) string
	// agreed says who has agreed.
	agreed() string
}

// alone is that there are no others.
type alone struct{}

func (alone) round(context.Context, time.Time) string { return "" }

func (alone) agreed() string {
	return "it is alone, without a cluster, so that nothing scrapes, evaluates or notifies while it is down"
}

// asked are others that are asked by gRPC. Two never both get all answers: see the comment of round.
type asked struct{ d *Drain }

// round asks all at once.
//
// Why two never both go: for both to, each must have agreed to the other within that one's last round. Take the consent
// that was given second, and who gave it. It wants to go itself by then, since its own last round had begun: the first
// consent was an answer in that. If that round still goes on, the consent makes it void, and it is not the last; if it has
// ended, this one holds, and refuses. No clock is in this but for who waits.
func (p *asked) round(ctx context.Context, claimed time.Time) string {
	others, waits := p.d.look("")
	if len(waits) > 0 {
		// Who waits for a machine need not disturb the rest.
		return strings.Join(waits, "; ")
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	reasons := make([]string, len(others))
	var wg sync.WaitGroup
	for i, m := range others {
		wg.Go(func() { reasons[i] = p.ask(ctx, m, claimed) })
	}
	wg.Wait()
	for i, m := range others {
		if reasons[i] != "" {
			waits = append(waits, called(m)+" "+reasons[i])
		}
	}
	return strings.Join(waits, "; ")
}

// ask asks one, and says why it does not agree.
func (p *asked) ask(ctx context.Context, m mesh.Member, claimed time.Time) string {
	conn, err := p.d.opts.Mesh.Conn(m.Name)
	if err != nil {
		return "cannot be asked: " + err.Error()
	}
	reply, err := peerspb.NewPeersClient(conn).Ask(ctx, &peerspb.AskRequest{ClaimedMs: claimed.UnixMilli()})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return unknowing(m)
	case err != nil:
		return "does not answer: " + status.Convert(err).Message()
	case !reply.GetGranted():
		return said(reply.GetReason())
	}
	return ""
}

// said is what is shown of another replica's reason.
func said(reason string) string {
	if reason == "" {
		return "does not agree, and does not say why"
	}
	return mesh.Printable(reason, maxReason)
}

// unknowing is for a replica of the release before, which knows no draining: all that can be known of it is what it
// gossips. It says that it lacks everything until it is ready.
func unknowing(m mesh.Member) string {
	if m.Card.Completeness < 1 {
		return fmt.Sprintf("has %.2f %% of its data, and is of an older release (%s), which cannot say more", 100*m.Card.Completeness, m.Card.Version)
	}
	return ""
}

func (p *asked) agreed() string {
	others, _ := p.d.look("")
	return agreement(others) + fmt.Sprintf("; it lets none of them go until it is back and whole, or %.0f minutes have passed", holdFor.Minutes())
}

// gossiped are others in a cluster without a key, which has no gRPC: they can only be looked at. The claim is gossiped
// for longer than gossip takes to reach everybody, and the earlier of two goes first. Who is cut off while it claims may
// go beside another one.
type gossiped struct{ d *Drain }

func (p *gossiped) round(_ context.Context, claimed time.Time) string {
	others, waits := p.d.look("")
	own := order{claimed.UnixMilli(), p.d.opts.Mesh.Name()}
	for _, m := range others {
		c := m.Card.Drain
		switch {
		case c.Held:
			waits = append(waits, called(m)+" is drained itself, and will be stopped")
		case c.Claimed != 0 && (order{c.Claimed, m.Name}).before(own):
			waits = append(waits, called(m)+" waits to be drained itself, and was asked to first")
		case m.Card.Completeness < 1:
			waits = append(waits, called(m)+fmt.Sprintf(" is starting or has only %.2f %% of its data", 100*m.Card.Completeness))
		}
	}
	if len(waits) == 0 && p.d.now().Sub(claimed) < settleFor {
		waits = append(waits, fmt.Sprintf("the others have %s to object, because without cluster.key_file they cannot be asked", settleFor))
	}
	return strings.Join(waits, "; ")
}

func (p *gossiped) agreed() string {
	others, _ := p.d.look("")
	return agreement(others) + ", as far as gossip tells: without cluster.key_file they could be looked at, and not be asked"
}

func agreement(others []mesh.Member) string {
	switch len(others) {
	case 0:
		return "no other replica is known"
	case 1:
		return "the other replica is ready and whole"
	default:
		return fmt.Sprintf("all %d other replicas are ready and whole", len(others))
	}
}

// look tells the other replicas that are there, and in a sentence each those that should be. It leaves out the one that
// is named.
func (d *Drain) look(without string) (there []mesh.Member, missing []string) {
	if !d.opts.Mesh.Settled() {
		return nil, []string{"the other replicas are still being looked for"}
	}
	known := map[string]bool{}
	members := d.opts.Mesh.Members()
	for _, m := range members {
		known[m.Name] = true
		switch {
		case m.Self || m.Name == without || m.Card.Cluster == "": // A stock Alertmanager stands in for nobody's data.
		case m.Alive:
			there = append(there, m)
		default:
			what := "died, or cannot be reached, since"
			if m.Left {
				what = "has been stopped since"
			}
			missing = append(missing, fmt.Sprintf("%s %s %s (if it is gone for good: --force, or a day until it is forgotten)",
				called(m), what, m.Since.UTC().Format("2006-01-02 15:04:05 UTC")))
		}
	}
	// Stock Alertmanagers, which are let in without a key only, have another name at each start.
	if d.opts.Mesh.Keyed() && time.Since(d.since) < forgetAfter {
		for _, name := range d.opts.Mesh.SeenBefore() {
			if !known[name] && name != without {
				missing = append(missing, fmt.Sprintf("replica %s was there before this one started, and has not come back (if it is gone for good: --force, or a day until it is forgotten)", name))
			}
		}
	}
	if without == "" && len(there) == 0 && len(missing) == 0 && d.opts.Expects() {
		missing = append(missing, "no other replica was found, though the configuration has some (if there is none: --force)")
	}
	slices.Sort(missing)
	return there, missing
}

func called(m mesh.Member) string {
	if m.Card.Zone == "" {
		return "replica " + m.Name
	}
	return fmt.Sprintf("replica %s (zone %s)", m.Name, m.Card.Zone)
}

// Ask answers another replica that is to be stopped.
func (d *Drain) Ask(ctx context.Context, r *peerspb.AskRequest) (*peerspb.AskReply, error) {
	from, ok := mesh.Caller(ctx)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "the caller has no name")
	}
	why := d.answer(from, r.GetClaimedMs())
	return &peerspb.AskReply{Granted: why == "", Reason: why}, nil
}

// answer says why another replica may not be stopped.
func (d *Drain) answer(from string, claimed int64) string {
	if why := d.opts.Unfit(); why != "" {
		return why
	}
	// Who asks may not know of one that is missing: it started with an empty disk.
	if _, missing := d.look(from); len(missing) > 0 {
		return "misses others: " + strings.Join(missing, "; ")
	}
	return d.objects(order{claimed, from})
}
