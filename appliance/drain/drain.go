// Package drain is the guard of rolling upgrades: it lets one replica go down on purpose at a time, and only while all
// others are there, ready and whole.
//
// It owns this replica's claim to be stopped. Callers enter over HTTP (`tocsin drain`), questions of the other replicas over
// the mesh's authenticated gRPC; questions to them leave, and what is waited for in sentences. There is no leader and no
// majority: a replica that wants to go asks every other one that is known, in the manner of Ricart and Agrawala
// (docs/adr/0019-drain.md).
//
// It refuses to stop anything, and to keep anything from being stopped: whoever stops the process asks first. A caller
// that goes away while it waits gives its claim back, and a claim that was granted and not used ends by itself.
package drain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/tocsin-io/tocsin/appliance/drain/peerspb"
	"github.com/tocsin-io/tocsin/appliance/mesh"
)

const (
	// askEvery is how often the others are asked.
	askEvery = time.Second
	// sayEvery is how often a caller hears what is waited for when that is still the same.
	sayEvery = 5 * time.Second
	// holdFor is how long a replica that may be stopped waits for that. Whoever asked died, or has thought better of it,
	// and the others must not wait for ever.
	holdFor = 10 * time.Minute
)

// Mesh is what this package needs to know of the other replicas; a *mesh.Mesh is one.
type Mesh interface {
	Name() string
	Keyed() bool
	// Settled tells that the others were found, or looked for in vain.
	Settled() bool
	Members() []mesh.Member
	// SeenBefore names those that were there in the day before the start.
	SeenBefore() []string
	Server() grpc.ServiceRegistrar
	Conn(member string) (grpc.ClientConnInterface, error)
	// SetDrain tells all members.
	SetDrain(mesh.CardDrain)
}

// Options are what the guard needs. All are mandatory but for Mesh.
type Options struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Mesh is nil where there are no other replicas.
	Mesh Mesh
	// Unfit says what keeps this replica from standing in for another one, in words that follow its name: "is starting".
	// Empty is nothing.
	Unfit func() string
	// Expects tells whether the configuration has other replicas, whether they were found or not.
	Expects func() bool
	// Stopping is closed when the process is told to stop.
	Stopping <-chan struct{}
}

// Drain is the guard of one replica.
type Drain struct {
	opts    Options
	logger  *slog.Logger
	metrics *metrics
	others  peers
	since   time.Time
	now     func() time.Time // time.Now; in tests, a clock that is off.

	mu  sync.Mutex
	own *claim // nil while nobody wants this replica to stop.
}

// claim is that somebody wants this replica to stop.
type claim struct {
	at time.Time
	// yielded says that another replica was let go first since our round of questions began: its answers are void.
	yielded bool
	// held says that every other replica has agreed.
	held   bool
	until  time.Time   // When it ends, if it is held.
	expiry *time.Timer // nil unless it is held.
	waits  string      // For what, if it is not.
	// released says that it was given back by another call: whoever waits for it waits in vain.
	released bool
}

var (
	// ErrBusy says that somebody else drains this replica already, and still waits.
	ErrBusy = errors.New("another call waits already for this replica to be drained")
	// errReleased says that the call of Release was meant for this one.
	errReleased = errors.New("somebody has given this replica's turn back meanwhile: it is not to be stopped")
	// errStopping says that it is too late to ask.
	errStopping = errors.New("this replica is stopping already")
)

// New registers what other replicas ask. Nothing is asked before a claim.
func New(o Options) *Drain {
	d := &Drain{opts: o, logger: o.Logger, since: time.Now(), now: time.Now}
	d.metrics = newMetrics(o.Registerer, d)
	switch {
	case o.Mesh == nil:
		d.others = alone{}
	case o.Mesh.Keyed():
		d.others = &asked{d}
		peerspb.RegisterPeersServer(o.Mesh.Server(), d)
	default:
		d.others = &gossiped{d}
	}
	return d
}

// Claim waits until this replica may be stopped, and tells what it waits for. When ctx ends first, the claim is given
// back. With force it does not wait, and says in the end what it would have waited for. After it returned no error, this
// replica lets no other one go until it was restarted, or for ten minutes, or until Release.
func (d *Drain) Claim(ctx context.Context, force bool, tell func(waiting string)) (granted string, err error) {
	own, again, err := d.want()
	if err != nil {
		return "", err
	}
	defer func() {
		// What an earlier call got is not ours to give back.
		if err != nil && !again {
			d.drop(own, resultCancelled)
		}
	}()
	said, saidAt := "", time.Time{}
	for {
		waits, lost := d.round(ctx, own)
		switch {
		case ctx.Err() != nil:
			return "", context.Cause(ctx)
		case lost != nil:
			return "", lost
		case d.hold(own, waits, force):
			return d.granted(waits), nil
		case waits == "":
			// Another replica was let go first meanwhile; who that is the next round tells.
			continue
		}
		if waits != said || time.Since(saidAt) >= sayEvery {
			said, saidAt = waits, time.Now()
			tell("waiting: " + waits)
		}
		next := time.NewTimer(askEvery)
		select {
		case <-next.C:
		case <-ctx.Done():
			next.Stop()
			return "", context.Cause(ctx)
		case <-d.opts.Stopping:
			next.Stop()
			return "", errStopping
		}
	}
}

// want enters the claim. One that an earlier call got goes on: who asks again looks again, and has ten minutes more.
func (d *Drain) want() (own *claim, again bool, err error) {
	select {
	case <-d.opts.Stopping:
		return nil, false, errStopping
	default:
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.own != nil && !d.own.held {
		return nil, false, ErrBusy
	}
	if again = d.own != nil; !again {
		d.own = &claim{at: d.now()}
		d.publish()
	}
	return d.own, again, nil
}

// round asks everybody once, and says what is waited for. It fails if the claim was given back, or another call has it now.
func (d *Drain) round(ctx context.Context, own *claim) (waits string, err error) {
	d.mu.Lock()
	switch {
	case own.released:
		err = errReleased
	case d.own == nil: // It has expired meanwhile.
		own.held, d.own = false, own
		d.publish()
	case d.own != own:
		err = ErrBusy
	}
	own.yielded = false
	at := own.at
	d.mu.Unlock()
	if err != nil {
		return "", err
	}
	waits = d.others.round(ctx, at)
	d.mu.Lock()
	defer d.mu.Unlock()
	own.waits = waits
	return waits, nil
}

// hold takes the turn, if nobody has objected in the round that has ended and nobody was let go first during it.
func (d *Drain) hold(own *claim, waits string, force bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.own != own || !force && (waits != "" || own.yielded) {
		return false
	}
	if own.expiry != nil {
		own.expiry.Stop()
	}
	own.held, own.until = true, time.Now().Add(holdFor)
	own.expiry = time.AfterFunc(holdFor, func() {
		if d.drop(own, resultExpired) {
			d.logger.Warn("this replica was drained and not stopped, and goes on as before", "waited", holdFor)
		}
	})
	d.publish()
	if force && waits != "" {
		d.metrics.claims.WithLabelValues(resultForced).Inc()
		d.logger.Warn("this replica is drained by force: it will be missing beside others", "others", waits)
	} else {
		d.metrics.claims.WithLabelValues(resultGranted).Inc()
		d.logger.Info("this replica is drained: it may be stopped, and lets no other one go meanwhile", "until", own.until.UTC().Truncate(time.Second))
	}
	return true
}

// granted is the sentence that ends the waiting.
func (d *Drain) granted(waits string) string {
	if waits != "" {
		return "forced, although " + waits
	}
	return "this replica may be stopped now: " + d.others.agreed()
}

// Release gives the claim back, whether it was granted or not, when this replica is not to be stopped any more. A Claim
// that waits for it ends.
func (d *Drain) Release() {
	d.mu.Lock()
	own := d.own
	if own != nil {
		own.released = true
	}
	d.mu.Unlock()
	if own != nil {
		d.drop(own, resultCancelled)
	}
}

// drop ends a claim, unless it has ended before.
func (d *Drain) drop(own *claim, result string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.own != own {
		return false
	}
	if own.expiry != nil {
		own.expiry.Stop()
	}
	d.own = nil
	d.metrics.claims.WithLabelValues(result).Inc()
	d.publish()
	return true
}

// publish tells the mesh. It is called with the lock held.
func (d *Drain) publish() {
	if d.opts.Mesh == nil {
		return
	}
	var c mesh.CardDrain
	if d.own != nil {
		c = mesh.CardDrain{Claimed: d.own.at.UnixMilli(), Held: d.own.held}
	}
	d.opts.Mesh.SetDrain(c)
}

// objects says why another replica may not go, "" if it may as far as its claim and ours are concerned.
func (d *Drain) objects(theirs order) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.own == nil:
		return ""
	case d.own.held:
		return "is drained itself, and will be stopped: " + moment(d.own.at)
	case (order{d.own.at.UnixMilli(), d.opts.Mesh.Name()}).before(theirs):
		return "waits to be drained itself, and was asked to first: " + moment(d.own.at)
	default:
		d.own.yielded = true
		return ""
	}
}

// order is who goes first of those that wait. That clocks differ makes it unjust, and not unsafe.
type order struct {
	claimed int64
	name    string
}

func (o order) before(p order) bool {
	return o.claimed < p.claimed || o.claimed == p.claimed && o.name < p.name
}

// State is how far draining is.
type State struct {
	// State is none, waiting, or drained: then the process may be stopped.
	State string `json:"state"`
	// Since is when it was asked for, Until when it ends if nobody stops the process.
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// Message says what is waited for.
	Message string `json:"message,omitempty"`
}

// The words of State.
const (
	StateNone    = "none"
	StateWaiting = "waiting"
	StateDrained = "drained"
)

// State is how far draining is.
func (d *Drain) State() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.own == nil:
		return State{State: StateNone}
	case d.own.held:
		return State{State: StateDrained, Since: d.own.at.UTC(), Until: d.own.until.UTC()}
	default:
		return State{State: StateWaiting, Since: d.own.at.UTC(), Message: d.own.waits}
	}
}

// Close ends a claim that is left, with the timer of it.
func (d *Drain) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.own != nil && d.own.expiry != nil {
		d.own.expiry.Stop()
	}
	return nil
}

func moment(t time.Time) string { return fmt.Sprintf("at %s", t.UTC().Format("15:04:05 UTC")) }
