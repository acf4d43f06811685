package bucket

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/thanos-io/objstore"

	"github.com/tocsin-io/tocsin/appliance/config"
)

const (
	// leaseLength is how long a lease holds, and renewEvery how often it is written: clouds charge for each write, and an old
	// lease costs the others nothing but a call that nobody answers.
	leaseLength = 24 * time.Hour
	renewEvery  = leaseLength / 3
	// A lease that is gone is written again when it is goneAfter old; one in whose place another's is when it is takenAfter old: two
	// replicas with the same name must not overwrite each other in turns all the time.
	goneAfter, takenAfter = time.Minute, time.Hour

	// rendezvousEvery is how often a replica that is not alone looks; one that is alone, or that failed, does so sooner and
	// sooner, within these bounds.
	rendezvousEvery                  = 5 * time.Minute
	firstRendezvous, laterRendezvous = 5 * time.Second, time.Minute

	// rendezvousTimeout bounds one look and one write, withdrawTimeout what a stop waits for.
	rendezvousTimeout = 15 * time.Second
	withdrawTimeout   = 2 * time.Second

	// What is listed, read, warned of by name, removed, and handed on at most, each time.
	maxLeaseNames  = 10_000
	maxLeasesRead  = 256
	maxLeaseNotes  = 5
	maxLeasesGone  = 16
	maxLeasesFound = 64

	leaseUnreadable = "unreadable" // The bucket does not give it.
)

// RendezvousOptions is what a Rendezvous needs.
type RendezvousOptions struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Bucket     objstore.Bucket
	// Config has a cluster section, cluster keys and the name of the replica.
	Config *config.Config
	// Address is where the others reach this replica's mesh, ip:port.
	Address string
	// Found takes the addresses at which the others were, after each look: ip:port, those that were written last first.
	Found func(addresses []string)
	// Others are the names of the other replicas that are in the mesh now.
	Others func() []string
}

func (o *RendezvousOptions) validate() error {
	switch {
	case o.Logger == nil, o.Registerer == nil, o.Bucket == nil, o.Found == nil, o.Others == nil, o.Address == "":
		return errors.New("rendezvous: an option is missing")
	case o.Config == nil || o.Config.Cluster == nil:
		return errors.New("rendezvous: the configuration has no cluster section")
	}
	return nil
}

// Rendezvous is where the replicas of a cluster find each other when they know nothing but the bucket: each keeps a lease with its
// address there, and reads those of the others.
type Rendezvous struct {
	o                       RendezvousOptions
	cluster, replica        string
	object, instance        string
	changed, reloaded       chan struct{}
	leases                  prometheus.Gauge
	refused                 *prometheus.CounterVec
	removed                 prometheus.Counter
	renewFailed, lookFailed prometheus.Counter
	renewedAt, lookedAt     prometheus.Gauge

	mtx    sync.Mutex
	keys   leaseKeys
	resign bool // The keys have changed since the lease was written.
	status RendezvousStatus

	// What follows is of the goroutine that runs.
	seen     map[string]*sighting
	sequence uint64
	written  time.Time         // zero for not yet
	sum      [sha256.Size]byte // of what was written
	next     time.Duration     // from written to when it is written again
	// former is an address that was in our own lease's place, and formerSeen when: an earlier one of ours, or that of another
	// replica with our name, which the mesh has to meet to find out.
	former     string
	formerSeen time.Time
}

// RendezvousStatus is what is known of the rendezvous.
type RendezvousStatus struct {
	// Others is how many leases of others the last look saw.
	Others int
	// Problem is why the last look or write failed, "" if it did not.
	Problem string
}

// NewRendezvous asks the bucket nothing.
func NewRendezvous(o RendezvousOptions) (*Rendezvous, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	cluster, replica := o.Config.Cluster.Name, o.Config.Replica.Name
	keys, err := newLeaseKeys(cluster, o.Config.ClusterKeys)
	if err != nil {
		return nil, err
	}
	instance, err := newInstance()
	if err != nil {
		return nil, err
	}
	f := promauto.With(o.Registerer)
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	r := &Rendezvous{
		o: o, cluster: cluster, replica: replica, object: leaseObject(cluster, replica), instance: instance, keys: keys,
		changed: make(chan struct{}, 1), reloaded: make(chan struct{}, 1), seen: map[string]*sighting{},
		leases: gauge("tocsin_rendezvous_leases", "Leases of replicas of this cluster in the bucket, this one's too."),
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_rendezvous_refused_total",
			Help: "Objects in the place of leases that were refused, by reason. One that stays as it is counts once.",
		}, []string{"reason"}),
		removed:     counter("tocsin_rendezvous_removed_total", "Leases of others that this replica removed because they had expired."),
		renewFailed: counter("tocsin_rendezvous_renew_failures_total", "Failures to write this replica's lease."),
		lookFailed:  counter("tocsin_rendezvous_look_failures_total", "Failures to read the leases in the bucket."),
		renewedAt: gauge("tocsin_rendezvous_last_renewal_timestamp_seconds",
			"When this replica's lease was last written, 0 for not since the start."),
		lookedAt: gauge("tocsin_rendezvous_last_look_timestamp_seconds",
			"When the leases in the bucket were last read, 0 for not since the start."),
	}
	for _, reason := range append(slices.Clone(leaseReasons), leaseUnreadable) {
		r.refused.WithLabelValues(reason)
	}
	return r, nil
}

// Prepare derives what follows from the keys of another configuration. Its apply uses it from then on, and looks: the bucket
// may be another one.
func (r *Rendezvous) Prepare(cfg *config.Config) (apply func() error, err error) {
	keys, err := newLeaseKeys(r.cluster, cfg.ClusterKeys)
	if err != nil {
		return nil, err
	}
	return func() error {
		r.mtx.Lock()
		r.resign = r.resign || !r.keys.same(keys)
		r.keys = keys
		r.mtx.Unlock()
		poke(r.reloaded)
		return nil
	}, nil
}

// Changed is to be called when a replica joined or left the mesh. It does not block.
func (r *Rendezvous) Changed() { poke(r.changed) }

// Status is what is known now.
func (r *Rendezvous) Status() RendezvousStatus {
	r.mtx.Lock()
	defer r.mtx.Unlock()
	return r.status
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Run keeps the lease and looks for others until ctx ends; then it takes the lease away.
func (r *Rendezvous) Run(ctx context.Context) error {
	for soon := 0; ctx.Err() == nil; {
		fails := r.report(ctx, r.turn(ctx))
		pause, alone := rendezvousEvery, r.alone()
		if alone || fails {
			pause = min(firstRendezvous<<min(soon, 10), laterRendezvous)
			soon++
		} else {
			soon = 0
		}
		if r.rest(ctx, pause*9/10+rand.N(pause/5), alone) {
			soon = 0
		}
	}
	r.withdraw(context.WithoutCancel(ctx))
	return nil
}

// rest waits for the next turn. It says whether something has happened that the turn is for.
func (r *Rendezvous) rest(ctx context.Context, pause time.Duration, alone bool) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return false
		case <-r.reloaded:
			return true
		case <-r.changed:
			if !alone && r.alone() {
				return true
			}
		}
	}
}

func (r *Rendezvous) alone() bool { return len(r.o.Others()) == 0 }

// turn looks, writes our lease if it is due, and hands on what it saw.
func (r *Rendezvous) turn(ctx context.Context) error {
	found, lookErr := r.look(ctx)
	told := len(found) > 0
	if told {
		r.o.Found(found)
	}
	var writeErr error
	if r.due() {
		writeErr = r.write(ctx)
		// Of two that start at the same moment one at least sees the other, if each looks after it has written.
		if writeErr == nil && r.alone() {
			if again, err := r.look(ctx); err == nil {
				found, lookErr, told = again, nil, false
			}
		}
	}
	if lookErr == nil && !told {
		r.o.Found(found)
	}
	return errors.Join(lookErr, writeErr)
}

// report tells of failures, and of their end, and says whether this is one.
func (r *Rendezvous) report(ctx context.Context, err error) (fails bool) {
	problem := ""
	if err != nil {
		if ctx.Err() != nil {
			return true // The process stops; that says nothing about the bucket.
		}
		problem = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	r.mtx.Lock()
	before := r.status.Problem
	r.status.Problem = problem
	r.mtx.Unlock()
	switch {
	case problem != "" && before == "":
		r.o.Logger.Warn("the rendezvous in the bucket fails; replicas that know each other go on, and it is tried again", "err", problem)
	case problem == "" && before != "":
		r.o.Logger.Info("the rendezvous in the bucket works again")
	}
	return err != nil
}

// due tells whether our lease is to be written.
func (r *Rendezvous) due() bool {
	r.mtx.Lock()
	defer r.mtx.Unlock()
	age := time.Since(r.written)
	return r.written.IsZero() || r.resign || age >= r.next
}

// write puts our lease into the bucket.
func (r *Rendezvous) write(ctx context.Context) (err error) {
	defer func() {
		if err != nil && ctx.Err() == nil {
			r.renewFailed.Inc()
		}
	}()
	r.mtx.Lock()
	keys := r.keys
	r.mtx.Unlock()
	r.sequence++
	b, err := keys.encode(&lease{
		Cluster: r.cluster, Replica: r.replica, Address: r.o.Address, Written: time.Now().UTC().Truncate(time.Second),
		Seconds: int64(leaseLength / time.Second), Instance: r.instance, Sequence: r.sequence,
	})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	bounded, cancel := context.WithTimeout(ctx, rendezvousTimeout)
	defer cancel()
	if err := r.o.Bucket.Upload(bounded, r.object, strings.NewReader(string(b))); err != nil {
		return fmt.Errorf("write the lease of this replica, %s: %w", r.object, err)
	}
	r.written, r.sum = time.Now(), sum
	r.next = renewEvery*9/10 + rand.N(renewEvery/10)
	r.renewedAt.SetToCurrentTime()
	r.mtx.Lock()
	// Keys that have changed meanwhile are for the next turn.
	r.resign = r.resign && !r.keys.same(keys)
	r.mtx.Unlock()
	return nil
}

// withdraw removes our lease, so that nobody calls an address that is dead, unless another replica has written its own there.
func (r *Rendezvous) withdraw(ctx context.Context) {
	if r.sequence == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, withdrawTimeout)
	defer cancel()
	r.mtx.Lock()
	keys := r.keys
	r.mtx.Unlock()
	// Also what a write has left there that was cut off.
	ours := func(b []byte) bool {
		l, err := keys.decode(r.cluster, r.object, b)
		return err == nil && l.Instance == r.instance
	}
	if _, err := r.remove(ctx, r.object, ours); err != nil {
		r.o.Logger.Warn("the lease of this replica stays in the bucket; until others remove it, new replicas call an address that does not answer",
			"object", r.object, "err", err)
	}
}

// remove deletes an object if it is what we know. Between the two a replica may have written; it finds its lease gone, and writes again.
func (r *Rendezvous) remove(ctx context.Context, object string, known func([]byte) bool) (removed bool, err error) {
	b, err := readLease(ctx, r.o.Bucket, object)
	if err == nil {
		if !known(b) {
			return false, nil
		}
		err = r.o.Bucket.Delete(ctx, object)
	}
	switch {
	case err == nil:
		return true, nil
	case r.o.Bucket.IsObjNotFoundErr(err):
		return false, nil
	}
	return false, fmt.Errorf("remove %s: %w", object, err)
}
