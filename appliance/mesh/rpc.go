package mesh

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	grpccreds "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

const (
	// maxMessageBytes bounds one gRPC message, either way.
	maxMessageBytes = 64 << 20
	// maxStreams bounds the calls at once of one replica.
	maxStreams = 256
	// maxHeaderBytes bounds the headers of one call.
	maxHeaderBytes = 64 << 10
	// handshakeTimeout bounds a handshake: who needs longer is no neighbor, or wants to hold a place.
	handshakeTimeout = 5 * time.Second
	// Handshakes at once, of all and of one address: one who opens connections and says nothing does not keep the
	// replicas out, which come from other addresses.
	maxHandshakes        = 256
	maxHandshakesFromOne = 16
	// stopTimeout bounds how long calls may go on after the end of run.
	stopTimeout = 2 * time.Second
	// cutOffTimeout bounds how long handlers may take to notice that they were cut off.
	cutOffTimeout = time.Second
	// Connections are made anew after a while, so that who has lost its key is out at some time; calls may go on
	// for the second while.
	maxConnectionAge      = 30 * time.Minute
	maxConnectionAgeGrace = 30 * time.Minute

	// A dead peer is noticed after keepaliveIdle + keepaliveProbes × keepaliveInterval by the kernel, which also notices
	// unacknowledged data after keepaliveTimeout; gRPC's own pings, at least 10 s apart, notice a process that hangs.
	keepaliveIdle     = 5 * time.Second
	keepaliveInterval = time.Second
	keepaliveProbes   = 3
	keepaliveTimeout  = 3 * time.Second
)

// rpc owns the gRPC listener and the connections to the other replicas. Without a key nothing is bound and nobody is
// called.
type rpc struct {
	logger   *slog.Logger
	creds    *credentials
	listener net.Listener // nil without a key
	server   *grpc.Server
	gate     *gate

	panics prometheus.Counter
	denied prometheus.Counter
	quiet  limiter // of what is denied

	mu       sync.Mutex
	serving  bool // no further service can be registered
	closed   bool
	services map[string]bool // true for those that readers may call, too
	conns    map[string]*memberConn
}

// memberConn is the kept connection to one member.
type memberConn struct {
	address string
	*grpc.ClientConn
}

// newRPC binds the listener, if there is a key; nothing is accepted before run.
func newRPC(logger *slog.Logger, reg prometheus.Registerer, listen string, creds *credentials) (*rpc, error) {
	f := promauto.With(reg)
	r := &rpc{
		logger: logger,
		creds:  creds,
		gate:   newGate(logger, f),
		panics: f.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_mesh_rpc_panics_total",
			Help: "Panics in gRPC handlers, each of which became an error of that one call.",
		}),
		denied: f.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_mesh_rpc_denied_total",
			Help: "Calls of readers that were denied, because only replicas may make them.",
		}),
		services: map[string]bool{},
		conns:    map[string]*memberConn{},
	}
	if !creds.keyed() {
		return r, nil
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("listen for gRPC: %w", err)
	}
	r.listener = l
	r.server = grpc.NewServer(
		grpc.Creds(&transport{TransportCredentials: grpccreds.NewTLS(creds.serverTLS()), creds: creds, gate: r.gate}),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.MaxSendMsgSize(maxMessageBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge:      maxConnectionAge,
			MaxConnectionAgeGrace: maxConnectionAgeGrace,
			Time:                  keepaliveIdle,
			Timeout:               keepaliveTimeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveIdle / 2, PermitWithoutStream: true}),
		grpc.InTapHandle(r.admit),
		grpc.ChainUnaryInterceptor(r.recoverUnary),
		grpc.ChainStreamInterceptor(r.recoverStream),
	)
	return r, nil
}

// addr is where gRPC listens, nil without a key.
func (r *rpc) addr() net.Addr {
	if r.listener == nil {
		return nil
	}
	return r.listener.Addr()
}

// RegisterService adds a service for replicas, before run.
func (r *rpc) RegisterService(desc *grpc.ServiceDesc, impl any) { r.add(desc, impl, false) }

// add adds a service. gRPC ends the process for a service that comes too late or twice, so that these are kept from it.
func (r *rpc) add(desc *grpc.ServiceDesc, impl any, readable bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, twice := r.services[desc.ServiceName]
	switch {
	case r.serving, r.closed, twice:
		r.logger.Error("gRPC service left out: it was registered twice or too late", "service", desc.ServiceName)
		return
	case r.server != nil:
		r.server.RegisterService(desc, impl)
	}
	r.services[desc.ServiceName] = readable
}

// run serves until ctx ends, then gives running calls a moment, and closes everything. It may be called once.
func (r *rpc) run(ctx context.Context) error {
	defer r.close()
	r.mu.Lock()
	again := r.serving
	closed := r.closed
	r.serving = true
	r.mu.Unlock()
	switch {
	case again:
		return errors.New("serve gRPC: it runs already")
	case closed:
		return nil
	case r.server == nil:
		<-ctx.Done()
		return nil
	}
	served := make(chan error, 1)
	go func() { served <- r.server.Serve(r.listener) }()
	select {
	case err := <-served:
		return serveError(err)
	case <-ctx.Done():
	}
	r.gate.close()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.server.GracefulStop()
	}()
	if !within(stopTimeout, stopped) {
		r.logger.Warn("gRPC calls were cut off: they went on for too long after the stop", "waited", stopTimeout)
		r.server.Stop()
		if !within(cutOffTimeout, stopped) {
			return errors.New("stop gRPC: a handler does not heed the end of its call")
		}
	}
	return serveError(<-served)
}

// serveError leaves out the error of a server that was stopped before it served.
func serveError(err error) error {
	if err == nil || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return fmt.Errorf("serve gRPC: %w", err)
}

// within tells whether a channel was closed in time.
func within(d time.Duration, c <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c:
		return true
	case <-timer.C:
		return false
	}
}

// close ends all connections and frees the port. It is idempotent, also when run never ran.
func (r *rpc) close() {
	r.mu.Lock()
	conns := r.conns
	r.conns = map[string]*memberConn{}
	first := !r.closed
	r.closed = true
	r.mu.Unlock()
	for _, c := range conns {
		_ = c.Close() // Its only error is that it was closed before.
	}
	if first && r.server != nil {
		r.gate.close()
		r.server.Stop()
		_ = r.listener.Close() // Stop closes it only if it was served.
	}
}

// conn is the kept connection to a member; it is dialed by its first call, and again when it breaks. A call fails at
// once while the member cannot be reached.
func (r *rpc) conn(member, address string) (grpc.ClientConnInterface, error) {
	if !r.creds.keyed() {
		return nil, errNoKey
	}
	if _, _, err := net.SplitHostPort(address); err != nil || member == "" {
		return nil, fmt.Errorf("connect to replica %q: it has given no gRPC address", member)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("connect to replica %q: this replica is stopping", member)
	}
	if c := r.conns[member]; c != nil {
		if c.address == address {
			return c, nil
		}
		// It came back elsewhere.
		delete(r.conns, member)
		_ = c.Close()
	}
	c, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(&transport{
			TransportCredentials: grpccreds.NewTLS(r.creds.clientTLS(member)), creds: r.creds, gate: r.gate, member: member,
		}),
		// A proxy of the environment is for the outside, not for the neighbors.
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithContextDialer(dial),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: handshakeTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 2 * keepaliveIdle, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(maxMessageBytes), grpc.WaitForReady(false),
		),
		grpc.WithMaxHeaderListSize(maxHeaderBytes),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to replica %q: %w", member, err)
	}
	r.conns[member] = &memberConn{address: address, ClientConn: c}
	return r.conns[member], nil
}

func dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval, Count: keepaliveProbes,
	}}
	return d.DialContext(ctx, "tcp", address)
}

// forget closes the connection to a member that is gone. Its calls fail.
func (r *rpc) forget(member string) {
	r.mu.Lock()
	c := r.conns[member]
	delete(r.conns, member)
	r.mu.Unlock()
	if c != nil {
		_ = c.Close() // Its only error is that it was closed before.
	}
}

func (r *rpc) recoverUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer r.recovered(ctx, info.FullMethod, &err)
	return next(ctx, req)
}

func (r *rpc) recoverStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer r.recovered(ss.Context(), info.FullMethod, &err)
	return next(srv, ss)
}

// recovered turns a panic of a handler into an error of that call: no input may take the process down.
func (r *rpc) recovered(ctx context.Context, method string, err *error) {
	p := recover()
	if p == nil {
		return
	}
	caller := callerOf(ctx)
	r.panics.Inc()
	r.logger.Error("gRPC handler panicked", "method", method, caller.kind(), caller.name, "panic", p, "stack", string(debug.Stack()))
	*err = status.Errorf(codes.Internal, "the handler of %s panicked", method)
}

// transport is TLS with the cluster's credentials, counting what it refuses.
type transport struct {
	grpccreds.TransportCredentials
	creds  *credentials
	gate   *gate
	member string // who has to be at the other end, "" where we are called
}

// ServerHandshake answers nobody but members of the cluster, and its readers.
func (t *transport) ServerHandshake(raw net.Conn) (net.Conn, grpccreds.AuthInfo, error) {
	if !t.gate.enter(raw) {
		err := unfit(refusedBusy, "too many handshakes at once")
		t.gate.refused("accept", "", raw.RemoteAddr(), err)
		return nil, nil, errors.Join(err, raw.Close())
	}
	defer t.gate.leave(raw)
	conn, info, err := t.TransportCredentials.ServerHandshake(raw)
	return t.shaken("accept", raw, conn, info, err)
}

// ClientHandshake gives up unless the member that was meant is at the other end.
func (t *transport) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, grpccreds.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ClientHandshake(ctx, authority, raw)
	return t.shaken("dial", raw, conn, info, err)
}

func (t *transport) shaken(side string, raw, conn net.Conn, info grpccreds.AuthInfo, err error) (net.Conn, grpccreds.AuthInfo, error) {
	if err != nil {
		t.gate.refused(side, t.member, raw.RemoteAddr(), err)
		return nil, nil, err
	}
	tlsInfo, ok := info.(grpccreds.TLSInfo)
	if !ok {
		return nil, nil, errors.Join(errors.New("the handshake was not one of TLS"), conn.Close())
	}
	id, err := identityOf(tlsInfo.State.PeerCertificates[0])
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, callerInfo{TLSInfo: tlsInfo, identity: id}, nil
}

// Clone copies what OverrideServerName could change.
func (t *transport) Clone() grpccreds.TransportCredentials {
	c := *t
	c.TransportCredentials = t.TransportCredentials.Clone()
	return &c
}

// reasonOf finds the counter for a failed handshake.
func reasonOf(err error) string {
	var r *handshakeError
	var plain tls.RecordHeaderError
	var netErr net.Error
	switch {
	case errors.As(err, &r):
		return r.reason
	case errors.As(err, &plain):
		return refusedPlain
	case errors.As(err, &netErr) && netErr.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return refusedTimeout
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET), errors.Is(err, context.Canceled):
		return refusedClosed
	case err.Error() == "tls: client didn't provide a certificate":
		return refusedCertificate
	default:
		return refusedHandshake
	}
}
