// Package mesh owns the gossip socket, the credentials between replicas, and the knowledge of who is there: each
// member's name, zone, addresses, health and clock. On hashicorp/memberlist it carries keyed, replicated state.
//
// The cluster section of the configuration enters, then packets and streams of others. Members and their changes
// leave, merged states, and authenticated gRPC connections. Without a cluster key everything on the wire is what a
// stock Alertmanager sends, so that one can join; with a key everything is encrypted, and bears the cluster's name.
//
// It refuses what is not of its cluster, and whatever could harm memberlist or a state: by reason, with a counter and
// the sender's address. A second live replica with its own name ends it at the start. It never waits for others: alone
// it is ready too.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/alertmanager/cluster"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/tocsin-io/tocsin/appliance/config"
)

const (
	// A dead replica is probed within one and a half seconds by one of two others, found silent after the interval, and
	// has two seconds to object: known dead after four seconds at worst.
	probeInterval  = 500 * time.Millisecond
	probeTimeout   = 250 * time.Millisecond
	gossipInterval = 100 * time.Millisecond
	// leaveTimeout bounds how long telling the others that we leave may take, and byeTimeout the first part of it.
	leaveTimeout, byeTimeout = 3 * time.Second, 500 * time.Millisecond
	// seenBefore is how long before the start a member may have been seen to count as one; the file has that to the hour.
	seenBefore = 25 * time.Hour
	// maxQueue bounds the changes that wait to be sent.
	maxQueue = 4096
)

// Options are what a mesh is made of.
type Options struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Config gives the replica's name and zone, the cluster section, which is not nil, and its keys.
	Config *config.Config
	// ListenAddress is where gossip is bound, TCP and UDP (host:port).
	ListenAddress string
	// GRPCListenAddress is where gRPC is bound if there is a key (host:port).
	GRPCListenAddress string
	// HTTPPort is the port of the web listener, which the others are told.
	HTTPPort int
	// Dir is a directory, created if need be, for the peers that were seen.
	Dir string
	// Version is this program's.
	Version string
}

// Mesh is this replica among the others. It is what a stock Alertmanager's components know as their cluster peer.
type Mesh struct {
	logger  *slog.Logger
	events  *events
	name    string
	cluster string
	version string
	keyed   bool
	// awaitsFound says that somebody looks for peers beside us, see SetFound.
	awaitsFound bool

	metrics   *metrics
	refusals  *refusals
	ring      *memberlist.Keyring // nil without a key.
	wire      *wire
	creds     *credentials
	rpc       *rpc
	seeds     *seeds
	memory    *memory
	before    []string // Who was seen before the start.
	table     *table
	states    *states
	queue     *outbox
	conflicts *conflicts
	join      *joiner

	list atomic.Pointer[memberlist.Memberlist] // nil before Run.

	mu       sync.Mutex
	card     Card
	packed   []byte // The card as the others get it.
	onChange []func()
	recard   chan struct{} // Has a token when the card has changed.
	reseed   chan struct{} // Has a token when the configured peers have changed.

	merged    atomic.Bool // The state of another member was merged.
	ready     chan struct{}
	readyOnce sync.Once
	stop      chan struct{} // Closed to stop Run, and the senders of large changes.
	stopOnce  sync.Once
	running   atomic.Bool
	finished  chan struct{} // Closed when all is closed.
	closeOnce sync.Once
	closeErr  error
	jobs      sync.WaitGroup
}

var (
	_ cluster.ClusterPeer = (*Mesh)(nil)
	_ interface {
		AddState(string, cluster.State, prometheus.Registerer) cluster.ClusterChannel
		WaitReady(context.Context) error
		Position() int
	} = (*Mesh)(nil)
)

// New binds the sockets. Nothing is sent or answered before Run. Close it, also when Run never ran.
func New(opts Options) (_ *Mesh, err error) {
	cfg := opts.Config
	if cfg == nil || cfg.Cluster == nil {
		return nil, errors.New("start the mesh: there is no cluster section")
	}
	if n := cfg.Replica.Name; n == "" || len(n) > maxNameBytes || n != Printable(n, maxNameBytes) {
		return nil, fmt.Errorf("start the mesh: replica.name must have 1 to %d printable characters", maxNameBytes)
	}
	if err := os.MkdirAll(opts.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("create the mesh's directory: %w", err)
	}
	happened := &events{}
	opts.Logger = slog.New(keeping{opts.Logger.Handler(), happened})
	m := &Mesh{
		logger:  opts.Logger,
		events:  happened,
		name:    cfg.Replica.Name,
		cluster: cfg.Cluster.Name,
		version: opts.Version,
		keyed:   len(cfg.ClusterKeys) > 0,

		awaitsFound: cfg.Cluster.Rendezvous != "",

		recard:   make(chan struct{}, 1),
		reseed:   make(chan struct{}, 1),
		ready:    make(chan struct{}),
		stop:     make(chan struct{}),
		finished: make(chan struct{}),
	}
	if m.keyed {
		if m.ring, err = memberlist.NewKeyring(cfg.ClusterKeys, cfg.ClusterKeys[0]); err != nil {
			return nil, fmt.Errorf("use the cluster keys: %w", err)
		}
	}
	if m.creds, err = newCredentials(m.cluster, m.name, cfg.ClusterKeys); err != nil {
		return nil, err
	}
	m.metrics = newMetrics(opts.Registerer)
	m.refusals = &refusals{logger: m.logger, counter: m.metrics.refused}
	m.states = newStates(m.logger, m.metrics, m.refusals)
	m.conflicts = &conflicts{logger: m.logger, metrics: m.metrics}
	if m.memory, err = openMemory(opts.Dir, time.Now()); err != nil {
		m.logger.Warn("the peers that were seen before are not known; the configured ones are", "err", err)
	}
	for _, p := range m.memory.peers {
		if p.Name != m.name && time.Since(p.Seen) < seenBefore {
			m.before = append(m.before, p.Name)
		}
	}
	if m.wire, err = newWire(opts.ListenAddress, &guard{cluster: m.cluster, ring: m.ring}, m.refusals); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.wire.Shutdown())
		}
	}()
	m.wire.advertise, err = chooseAdvertise(cfg.Cluster.AdvertiseAddress, opts.ListenAddress, m.wire.port, m.logger)
	if err != nil {
		return nil, err
	}
	warnInClear(m.wire.advertise, m.keyed, m.logger)
	if m.rpc, err = newRPC(m.logger, opts.Registerer, opts.GRPCListenAddress, m.creds); err != nil {
		return nil, err
	}
	if err := m.makeCard(opts); err != nil {
		m.rpc.close()
		return nil, err
	}
	m.seeds = newSeeds(cfg.Cluster.Peers, nil, config.DefaultGossipPort)
	m.table = newTable(Member{Name: m.name, Address: m.wire.advertise.String(), Card: m.card, Since: m.card.Started})
	m.states.leaving = m.table.leaving
	m.queue = newOutbox(m.table.countAlive)
	m.join = newJoiner(m)
	m.metrics.watch(opts.Registerer, m)
	return m, nil
}

// makeCard fills in the first card.
func (m *Mesh) makeCard(opts Options) error {
	host := m.wire.advertise.Addr()
	at := func(port int) string { return netip.AddrPortFrom(host, uint16(port)).String() }
	m.card = Card{
		Cluster: m.cluster,
		Zone:    Zone(opts.Config.Replica.Zone, InstanceData, m.logger),
		Version: opts.Version,
		Started: time.Now().UTC().Truncate(time.Millisecond),
	}
	if opts.HTTPPort > 0 && opts.HTTPPort <= 65535 {
		m.card.HTTP = at(opts.HTTPPort)
	}
	if a := m.rpc.addr(); a != nil {
		bound, err := netip.ParseAddrPort(a.String())
		if err != nil {
			return fmt.Errorf("read the address of gRPC: %w", err)
		}
		m.card.GRPC = at(int(bound.Port()))
	}
	// The longest that it can become.
	largest := m.card
	largest.Completeness, largest.Config, largest.Drain = 0.1234, largestConfig, largestDrain
	if _, err := encodeCard(largest); err != nil {
		return err
	}
	packed, err := encodeCard(m.card)
	if err != nil {
		return err
	}
	m.packed = packed
	return nil
}

// meta is our card as the others get it.
func (m *Mesh) meta() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.packed)
}

// settings are memberlist's.
func (m *Mesh) settings() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	d := delegate{m}
	c.Name = m.name
	c.Transport = m.wire
	c.BindPort = m.wire.port
	c.AdvertiseAddr, c.AdvertisePort = m.wire.advertise.Addr().String(), int(m.wire.advertise.Port())
	c.ProbeInterval, c.ProbeTimeout = probeInterval, probeTimeout
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = 4, 1
	c.AwarenessMaxMultiplier = 3
	c.GossipInterval = gossipInterval
	c.PushPullInterval = 30 * time.Second
	c.DeadNodeReclaimTime = time.Second
	c.TCPTimeout = streamTimeout
	c.HandoffQueueDepth = 4096
	// A stock Alertmanager's. Larger packets would be cut up on their way.
	c.UDPBufferSize = 1400
	// It takes longer to compress a large state than to send it, and the time for an exchange is bounded.
	c.EnableCompression = false
	c.Delegate, c.Events, c.Alive, c.Conflict, c.Ping = d, d, d, d, d
	c.LogOutput = &logLine{logger: m.logger}
	if m.keyed {
		c.Keyring, c.Label = m.ring, m.cluster
	}
	return c
}

// Run joins the others, stays joined and serves gRPC until ctx ends; then it leaves the mesh, in at most three
// seconds, and closes everything. It ends with an error if another live replica bears our name when it starts.
func (m *Mesh) Run(ctx context.Context) error {
	if m.running.Swap(true) {
		return errors.New("run the mesh: it ran already")
	}
	defer close(m.finished)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.jobs.Go(func() { // Close ends us, too.
		select {
		case <-m.stop:
			cancel()
		case <-ctx.Done():
		}
	})

	m.wire.open()
	list, err := memberlist.Create(m.settings())
	if err != nil {
		cancel()
		return errors.Join(fmt.Errorf("start the mesh: %w", err), m.shutdown(nil))
	}
	m.list.Store(list)
	m.metrics.up.WithLabelValues(m.name).Set(1)

	rpcCtx, stopRPC := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRPC()
	served := make(chan error, 1)
	go func() {
		err := m.rpc.run(rpcCtx)
		if err != nil {
			cancel()
		}
		served <- err
	}()
	m.jobs.Go(func() { m.tell(ctx) })
	m.jobs.Go(func() { m.announce(ctx, list) })
	m.jobs.Go(func() { m.join.resolve(ctx) })
	err = m.join.run(ctx)
	cancel()

	if m.conflicts.open(time.Now()) {
		// The others would take the one who stays for the one who leaves.
		m.logger.Warn("the others are not told that this replica leaves, because another has its name")
	} else {
		bye, done := context.WithTimeout(context.WithoutCancel(ctx), byeTimeout)
		m.goodbye(bye, list)
		done()
		if leaveErr := list.Leave(leaveTimeout - byeTimeout); leaveErr != nil {
			m.logger.Warn("the others could not be told that this replica leaves; they will find out", "err", leaveErr)
		}
	}
	stopRPC()
	return errors.Join(err, <-served, m.shutdown(list))
}

// shutdown closes everything.
func (m *Mesh) shutdown(list *memberlist.Memberlist) error {
	m.closeOnce.Do(func() {
		m.stopOnce.Do(func() { close(m.stop) })
		m.rpc.close()
		if list != nil {
			m.closeErr = list.Shutdown()
		}
		m.closeErr = errors.Join(m.closeErr, m.wire.Shutdown())
		m.jobs.Wait()
	})
	return m.closeErr
}

// Close stops Run, or if it never ran frees the sockets. It is safe to call it twice.
func (m *Mesh) Close() error {
	m.stopOnce.Do(func() { close(m.stop) })
	if m.running.Swap(true) {
		<-m.finished
		return m.closeErr
	}
	defer close(m.finished)
	return m.shutdown(nil)
}

// Prepare checks the peers and the keys of another configuration. Apply makes them hold; both are changed without
// anybody being cut off.
func (m *Mesh) Prepare(cfg *config.Config) (apply func() error, err error) {
	switch {
	case cfg.Cluster == nil:
		return nil, errors.New("the cluster section is gone, which needs a restart")
	case len(cfg.ClusterKeys) > 0 != m.keyed:
		return nil, errors.New("cluster.key_file was set or unset, which needs a restart")
	}
	for _, key := range cfg.ClusterKeys {
		if err := memberlist.ValidateKey(key); err != nil {
			return nil, fmt.Errorf("use the cluster keys: %w", err)
		}
	}
	peers, keys := slices.Clone(cfg.Cluster.Peers), slices.Clone(cfg.ClusterKeys)
	return func() error {
		m.seeds.set(peers)
		select {
		case m.reseed <- struct{}{}:
		default:
		}
		if !m.keyed {
			return nil
		}
		return errors.Join(setRing(m.ring, keys), m.creds.setKeys(keys))
	}, nil
}

// SetFound gives the addresses, ip:port, at which somebody else found peers, in place of those that it gave before. Where
// the configuration has a rendezvous, the mesh waits for the first call before it takes itself for alone, as long as it
// waits for peers that do not answer.
func (m *Mesh) SetFound(addresses []string) { m.join.setFound(addresses) }

// Address is where the other replicas reach this one's gossip, ip:port.
func (m *Mesh) Address() string { return m.wire.advertise.String() }

// setRing makes keys those of the ring, the first the one to send with.
func setRing(ring *memberlist.Keyring, keys [][]byte) error {
	holds := func(list [][]byte, key []byte) bool {
		return slices.ContainsFunc(list, func(k []byte) bool { return slices.Equal(k, key) })
	}
	for _, key := range keys {
		if err := ring.AddKey(key); err != nil {
			return fmt.Errorf("add a cluster key: %w", err)
		}
	}
	// RemoveKey moves the keys behind the removed one within an array that readers may hold, so those that go must be
	// the last: each that is used moves to the front.
	old := ring.GetKeys()
	last := 0
	for last < len(old) && holds(keys, old[last]) {
		last++
	}
	if slices.ContainsFunc(old[last:], func(k []byte) bool { return holds(keys, k) }) {
		for _, key := range slices.Backward(keys[1:]) {
			if err := ring.UseKey(key); err != nil {
				return fmt.Errorf("order the cluster keys: %w", err)
			}
		}
	}
	if err := ring.UseKey(keys[0]); err != nil {
		return fmt.Errorf("send with the first cluster key: %w", err)
	}
	for _, key := range slices.Backward(slices.Clone(ring.GetKeys())) {
		if holds(keys, key) {
			continue
		}
		if err := ring.RemoveKey(key); err != nil {
			return fmt.Errorf("remove a cluster key: %w", err)
		}
	}
	return nil
}

// Name is this replica's.
func (m *Mesh) Name() string { return m.name }

// Status is "settling" until the mesh is joined or was given up on for now, then "ready".
func (m *Mesh) Status() string {
	select {
	case <-m.ready:
		return "ready"
	default:
		return "settling"
	}
}

// WaitReady waits until the state of a peer has been merged, or none has answered for ten seconds, or there is none to
// ask; no longer than ctx.
func (m *Mesh) WaitReady(ctx context.Context) error {
	select {
	case <-m.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-m.finished:
		return errors.New("wait for the mesh: it has stopped")
	}
}

// Settled tells whether WaitReady would not wait.
func (m *Mesh) Settled() bool {
	select {
	case <-m.ready:
		return true
	case <-m.finished:
		return true
	default:
		return false
	}
}

func (m *Mesh) settle(why string) {
	m.readyOnce.Do(func() {
		m.logger.Info("the mesh is ready", "why", why, "members", m.table.countAlive(), eventKey, eventReady)
		close(m.ready)
	})
}

// Peers are the members that are alive, this replica too.
func (m *Mesh) Peers() []cluster.ClusterMember {
	var peers []cluster.ClusterMember
	for _, e := range m.Members() {
		if e.Alive {
			peers = append(peers, peer{e.Name, e.Address})
		}
	}
	return peers
}

// Position is the place of this replica's name among the names of those that are alive, from 0.
func (m *Mesh) Position() int { return m.table.position() }

// AddState has a state kept equal on all members. What the state broadcasts goes through the channel. Call it before
// Run.
func (m *Mesh) AddState(key string, s cluster.State, reg prometheus.Registerer) cluster.ClusterChannel {
	m.states.add(key, s)
	if reg == nil {
		reg = prometheus.NewRegistry() // Upstream makes no channel without one.
	}
	send := func(b []byte) { m.queue.add(broadcast(b)) }
	sendLarge := func(n *memberlist.Node, b []byte) error {
		list := m.list.Load()
		if list == nil {
			return errNotOpen
		}
		return list.SendReliable(n, b)
	}
	return cluster.NewChannel(key, send, m.table.others, sendLarge, m.logger, m.stop, reg)
}

// Members are all that are there, and those that left or died in the last ten minutes, sorted by name.
func (m *Mesh) Members() []Member { return m.table.list(time.Now()) }

// SeenBefore are the names of those that were seen in the day before the start, whether they have been since or not.
func (m *Mesh) SeenBefore() []string { return m.before }

// OnChange has f called after a member joined, left, died, or restarted, also where it was not missed meanwhile. Call it
// before Run; f must not block.
func (m *Mesh) OnChange(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onChange = append(m.onChange, f)
}

// Keyed says whether there is a cluster key.
func (m *Mesh) Keyed() bool { return m.keyed }

// Server takes gRPC services for the other replicas, before Run. Without a key they are never served.
func (m *Mesh) Server() grpc.ServiceRegistrar { return m.rpc }

// ReadableServer is Server for services that readers may call, too.
func (m *Mesh) ReadableServer() grpc.ServiceRegistrar { return readable{m.rpc} }

// Conn is the kept connection to another member's gRPC server.
func (m *Mesh) Conn(member string) (grpc.ClientConnInterface, error) {
	if !m.keyed {
		return nil, errNoKey
	}
	e, ok := m.table.get(member)
	if !ok {
		return nil, fmt.Errorf("connect to replica %q: no such member", member)
	}
	return m.rpc.conn(member, e.Card.GRPC)
}

// SetCompleteness tells the others how much of its data this replica has, from 0 to 1.
func (m *Mesh) SetCompleteness(c float64) {
	m.changeCard(func(card *Card) { card.Completeness = max(0, min(c, 1)) })
}

// SetConfig tells the others where this replica stands with the configuration from the bucket.
func (m *Mesh) SetConfig(c CardConfig) {
	m.changeCard(func(card *Card) { card.Config = c })
}

// SetDrain tells the others that somebody wants to stop this replica.
func (m *Mesh) SetDrain(d CardDrain) {
	m.changeCard(func(card *Card) { card.Drain = d })
}

func (m *Mesh) changeCard(change func(*Card)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	card := m.card
	change(&card)
	packed, err := encodeCard(card)
	if err != nil || slices.Equal(packed, m.packed) {
		return // It fits, as New has seen; what is not a number does not.
	}
	m.card, m.packed = card, packed
	m.table.card(card)
	select {
	case m.recard <- struct{}{}:
	default:
	}
}

// wait is false if ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
