package mesh

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpccreds "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// rpcPatience is how long a test waits for what has to happen at some time.
const rpcPatience = 15 * time.Second

// logged is a log that tests can read while it is written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// rpcKey makes a key that is the same each time.
func rpcKey(n byte) []byte { return bytes.Repeat([]byte{n, n + 1, n + 2, n + 3}, 8) }

// asked counts the calls that reached a handler.
type asked struct {
	mu    sync.Mutex
	calls int
	hang  chan struct{} // closed once a call hangs
	once  sync.Once
}

func (a *asked) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls
}

// rpcDesc is a service with a method for each thing that a handler can do.
func rpcDesc(a *asked) *grpc.ServiceDesc {
	unary := func(name string, f func(context.Context, *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error)) grpc.MethodDesc {
		return grpc.MethodDesc{MethodName: name, Handler: func(srv any, ctx context.Context, dec func(any) error, i grpc.UnaryServerInterceptor) (any, error) {
			in := &wrapperspb.BytesValue{}
			if err := dec(in); err != nil {
				return nil, err
			}
			a.mu.Lock()
			a.calls++
			a.mu.Unlock()
			return i(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/test.Service/" + name}, func(ctx context.Context, _ any) (any, error) {
				return f(ctx, in)
			})
		}}
	}
	return &grpc.ServiceDesc{
		ServiceName: "test.Service",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			unary("Who", func(ctx context.Context, _ *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
				member, ok := Caller(ctx)
				if !ok {
					return nil, status.Error(codes.Unauthenticated, "nobody")
				}
				return wrapperspb.Bytes([]byte(member)), nil
			}),
			unary("Reader", func(ctx context.Context, _ *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
				name, ok := Reader(ctx)
				if !ok {
					return nil, status.Error(codes.Unauthenticated, "no reader")
				}
				return wrapperspb.Bytes([]byte(name)), nil
			}),
			unary("Echo", func(_ context.Context, in *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) { return in, nil }),
			unary("Panic", func(context.Context, *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) { panic("ouch") }),
			unary("Hang", func(ctx context.Context, _ *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
				a.once.Do(func() { close(a.hang) })
				<-ctx.Done()
				return nil, ctx.Err()
			}),
		},
		Streams: []grpc.StreamDesc{{StreamName: "PanicStream", ServerStreams: true, Handler: func(any, grpc.ServerStream) error { panic("ouch") }}},
	}
}

// testRPC is one replica's gRPC, running.
type testRPC struct {
	*rpc
	creds *credentials
	reg   *prometheus.Registry
	log   *logged
	asked *asked
	stop  func() error // ends run and gives its error; idempotent
}

func startRPC(t *testing.T, cluster, member, listen string, keys ...[]byte) *testRPC {
	t.Helper()
	return startRPCWith(t, cluster, member, listen, func(*testRPC) {}, keys...)
}

// startRPCWith is startRPC with what has to be done before it runs.
func startRPCWith(t *testing.T, cluster, member, listen string, prepare func(*testRPC), keys ...[]byte) *testRPC {
	t.Helper()
	creds, err := newCredentials(cluster, member, keys)
	require.NoError(t, err)
	x := &testRPC{creds: creds, reg: prometheus.NewRegistry(), log: &logged{}, asked: &asked{hang: make(chan struct{})}}
	x.rpc, err = newRPC(x.log.logger(), x.reg, listen, creds)
	require.NoError(t, err)
	x.RegisterService(rpcDesc(x.asked), nil)
	prepare(x)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- x.run(ctx) }()
	x.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { require.NoError(t, x.stop()) })
	return x
}

// call calls a method of a member, and gives what it answered.
func (x *testRPC) call(t *testing.T, member, address, method string, in []byte, opts ...grpc.CallOption) (string, error) {
	t.Helper()
	c, err := x.conn(member, address)
	if err != nil {
		return "", err
	}
	return invoke(t, c, method, in, opts...)
}

func invoke(t *testing.T, c grpc.ClientConnInterface, method string, in []byte, opts ...grpc.CallOption) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), rpcPatience)
	defer cancel()
	out := &wrapperspb.BytesValue{}
	err := c.Invoke(ctx, "/test.Service/"+method, wrapperspb.Bytes(in), out, opts...)
	return string(out.GetValue()), err
}

func (x *testRPC) address() string { return x.addr().String() }

func (x *testRPC) refusals(reason string) float64 {
	return testutil.ToFloat64(x.gate.counts.WithLabelValues(reason))
}

func TestRPCBetweenMembers(t *testing.T) {
	const odd = "replica é/100% \"b\"?#" // Slashes are refused by the configuration; the certificate stands them.
	a := startRPC(t, "c.1_x", "a", "127.0.0.1:0", rpcKey(1))
	b := startRPC(t, "c.1_x", odd, "127.0.0.1:0", rpcKey(1))
	who, err := a.call(t, odd, b.address(), "Who", nil)
	require.NoError(t, err)
	require.Equal(t, "a", who)
	who, err = b.call(t, "a", a.address(), "Who", nil)
	require.NoError(t, err)
	require.Equal(t, odd, who)

	first, err := a.conn(odd, b.address())
	require.NoError(t, err)
	again, err := a.conn(odd, b.address())
	require.NoError(t, err)
	require.Same(t, first, again)

	_, ok := Caller(t.Context())
	require.False(t, ok)
}

func TestRPCMessageSizes(t *testing.T) {
	a := startRPC(t, "c", "a", "127.0.0.1:0", rpcKey(1))
	b := startRPC(t, "c", "b", "127.0.0.1:0", rpcKey(1))
	// Above gRPC's own default of 4 MiB.
	got, err := a.call(t, "b", b.address(), "Echo", make([]byte, 8<<20))
	require.NoError(t, err)
	require.Len(t, got, 8<<20)
	_, err = a.call(t, "b", b.address(), "Echo", make([]byte, maxMessageBytes+1))
	require.Equal(t, codes.ResourceExhausted, status.Code(err), err)
	// Also if the caller does not hold itself to it.
	_, err = a.call(t, "b", b.address(), "Echo", make([]byte, maxMessageBytes+1), grpc.MaxCallSendMsgSize(maxMessageBytes*2))
	require.Equal(t, codes.ResourceExhausted, status.Code(err), err)
	require.Equal(t, 1, b.asked.count())
}

func TestRPCRecoversFromPanics(t *testing.T) {
	a := startRPC(t, "c", "a", "127.0.0.1:0", rpcKey(1))
	b := startRPC(t, "c", "b", "127.0.0.1:0", rpcKey(1))
	_, err := a.call(t, "b", b.address(), "Panic", nil)
	require.Equal(t, codes.Internal, status.Code(err), err)
	require.NotContains(t, err.Error(), "ouch")

	c, err := a.conn("b", b.address())
	require.NoError(t, err)
	s, err := c.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/test.Service/PanicStream")
	require.NoError(t, err)
	require.Equal(t, codes.Internal, status.Code(s.RecvMsg(&wrapperspb.BytesValue{})))

	require.EqualValues(t, 2, testutil.ToFloat64(b.panics))
	require.Contains(t, b.log.String(), "member=a panic=ouch")
	_, err = a.call(t, "b", b.address(), "Who", nil)
	require.NoError(t, err)
}

// TestRPCAnswersNobodyElse lets all kinds of strangers in front of the port.
func TestRPCAnswersNobodyElse(t *testing.T) {
	t.Parallel()
	key := rpcKey(1)
	b := startRPC(t, "c", "b", "127.0.0.1:0", key)
	address := b.address()

	otherCredentials := func(cluster, member string, key []byte) *tls.Config {
		c, err := newCredentials(cluster, member, [][]byte{key})
		require.NoError(t, err)
		cfg := c.clientTLS("b")
		cfg.VerifyConnection = nil // A stranger does not care who we are.
		return cfg
	}
	forged := func(mend func(*x509.Certificate), with []byte, cluster string) *tls.Config {
		signer, root, err := authority(with, cluster)
		require.NoError(t, err)
		public, private, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(t, err)
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(2), NotBefore: validFrom, NotAfter: validUntil,
			URIs: []*url.URL{identity{cluster: "c", name: "a"}.uri()},
		}
		mend(leaf)
		der, err := x509.CreateCertificate(rand.Reader, leaf, root, public, signer)
		require.NoError(t, err)
		return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}}
	}
	overTLS := func(cfg *tls.Config) func(*testing.T) {
		return func(t *testing.T) {
			c, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(grpccreds.NewTLS(cfg)), grpc.WithNoProxy())
			require.NoError(t, err)
			defer c.Close()
			_, err = invoke(t, c, "Who", nil)
			require.Equal(t, codes.Unavailable, status.Code(err), err)

			// And looked at from below: after the handshake, which TLS 1.3 lets a client finish alone, comes nothing.
			conn, err := tls.Dial("tcp", address, cfg)
			if err != nil {
				return
			}
			defer conn.Close()
			require.NoError(t, conn.SetDeadline(time.Now().Add(rpcPatience)))
			_, _ = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
			got, err := io.ReadAll(conn)
			require.Error(t, err)
			require.NotErrorIs(t, err, context.DeadlineExceeded)
			require.Empty(t, got)
		}
	}
	raw := func(send string) func(*testing.T) {
		return func(t *testing.T) {
			conn, err := net.Dial("tcp", address)
			require.NoError(t, err)
			defer conn.Close()
			require.NoError(t, conn.SetDeadline(time.Now().Add(rpcPatience)))
			_, _ = io.WriteString(conn, send)
			_ = conn.(*net.TCPConn).CloseWrite()
			got, err := io.ReadAll(conn)
			require.NotErrorIs(t, err, context.DeadlineExceeded)
			require.LessOrEqual(t, len(got), 7, "more than a TLS alert: %q", got)
		}
	}
	for name, c := range map[string]struct {
		try    func(*testing.T)
		reason string
	}{
		"plain gRPC": {func(t *testing.T) {
			c, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
			require.NoError(t, err)
			defer c.Close()
			_, err = invoke(t, c, "Who", nil)
			require.Equal(t, codes.Unavailable, status.Code(err), err)
		}, refusedPlain},
		"plain HTTP":           {raw("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), refusedPlain},
		"no certificate":       {overTLS(&tls.Config{InsecureSkipVerify: true}), refusedCertificate},
		"TLS 1.2":              {overTLS(&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}), refusedHandshake},
		"another key":          {overTLS(otherCredentials("c", "a", rpcKey(9))), refusedKey},
		"another cluster":      {overTLS(otherCredentials("staging", "a", key)), refusedCluster},
		"a name of ours":       {overTLS(forged(func(*x509.Certificate) {}, rpcKey(9), "c")), refusedKey},
		"our key, their realm": {overTLS(forged(func(*x509.Certificate) {}, key, "staging")), refusedKey},
		"no name":              {overTLS(forged(func(c *x509.Certificate) { c.URIs = nil }, key, "c")), refusedCertificate},
		"two names":            {overTLS(forged(func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }, key, "c")), refusedCertificate},
		"half a name":          {overTLS(forged(func(c *x509.Certificate) { c.URIs[0].Opaque = "c" }, key, "c")), refusedCertificate},
		"an empty name":        {overTLS(forged(func(c *x509.Certificate) { c.URIs[0].Opaque = "c/" }, key, "c")), refusedCertificate},
		"a huge name":          {overTLS(forged(func(c *x509.Certificate) { c.URIs[0].Opaque = "c/" + strings.Repeat("a", 5000) }, key, "c")), refusedCertificate},
		"garbage":              {raw(strings.Repeat("\xa5", 70000)), refusedPlain},
		"garbage in a record":  {raw("\x16\x03\x01\x10\x00" + strings.Repeat("\xa5", 70000)), refusedHandshake},
		"half a hello":         {raw("\x16\x03\x01\x02\x00\x01"), refusedHandshake},
		"nothing":              {raw(""), refusedClosed},
	} {
		t.Run(name, func(t *testing.T) {
			before := b.refusals(c.reason)
			c.try(t)
			require.Eventually(t, func() bool { return b.refusals(c.reason) > before }, rpcPatience, 5*time.Millisecond, "%s", b.log)
		})
	}
	require.Zero(t, b.asked.count())

	a := startRPC(t, "c", "a", "127.0.0.1:0", key)
	_, err := a.call(t, "b", address, "Who", nil)
	require.NoError(t, err)
	for _, k := range [][]byte{key, rpcKey(9)} {
		for _, form := range []string{string(k[:8]), hex.EncodeToString(k[:8]), base64.StdEncoding.EncodeToString(k)[:12]} {
			require.NotContains(t, b.log.String(), form)
		}
	}
	require.Contains(t, b.log.String(), `it says that it belongs to the cluster`)
	require.Contains(t, b.log.String(), "staging")
}

// TestRPCToAFrozenReplica calls one that takes connections and says nothing, as a process that is stopped does.
func TestRPCToAFrozenReplica(t *testing.T) {
	t.Parallel()
	frozen, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer frozen.Close()
	a := startRPC(t, "c", "a", "127.0.0.1:0", rpcKey(1))
	_, err = a.call(t, "b", frozen.Addr().String(), "Who", nil)
	require.Error(t, err)
	require.Contains(t, a.log.String(), `msg="a replica cannot be reached by gRPC" member=b`)
	require.Contains(t, a.log.String(), "reason=timeout")
	require.NotContains(t, a.log.String(), "refused")
	require.EqualValues(t, 1, a.refusals(refusedTimeout))

	// Who calls and says nothing is still refused.
	conn, err := net.Dial("tcp", a.address())
	require.NoError(t, err)
	defer conn.Close()
	_, _ = io.Copy(io.Discard, conn) // Until it hangs up.
	require.Eventually(t, func() bool {
		return strings.Contains(a.log.String(), `msg="gRPC connection refused" side=accept`)
	}, rpcPatience, time.Millisecond)
}

// TestRPCHoldsHandshakesToTheirTime opens connections that say nothing.
func TestRPCHoldsHandshakesToTheirTime(t *testing.T) {
	t.Parallel()
	b := startRPC(t, "c", "b", "0.0.0.0:0", rpcKey(1))
	_, port, err := net.SplitHostPort(b.address())
	require.NoError(t, err)
	silent := func(from string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := d.Dial("tcp", "127.0.0.1:"+port)
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		require.NoError(t, conn.SetDeadline(time.Now().Add(rpcPatience)))
		return conn
	}
	var held []net.Conn
	for range maxHandshakesFromOne {
		held = append(held, silent("127.0.0.2"))
	}
	handshakes := func() int {
		b.gate.mu.Lock()
		defer b.gate.mu.Unlock()
		return len(b.gate.inside)
	}
	require.Eventually(t, func() bool { return handshakes() == maxHandshakesFromOne }, rpcPatience, time.Millisecond)
	// One more from there has no place, and is told so at once.
	start := time.Now()
	_, err = io.ReadAll(silent("127.0.0.2"))
	if err != nil {
		require.NotErrorIs(t, err, context.DeadlineExceeded)
	}
	require.Less(t, time.Since(start), handshakeTimeout/2)
	require.EqualValues(t, 1, b.refusals(refusedBusy))
	// From elsewhere there is.
	a := startRPC(t, "c", "a", "127.0.0.1:0", rpcKey(1))
	_, err = a.call(t, "b", "127.0.0.1:"+port, "Who", nil)
	require.NoError(t, err)
	for _, conn := range held {
		_, err := io.ReadAll(conn)
		var timeout net.Error
		require.False(t, errors.As(err, &timeout) && timeout.Timeout(), "the connection was still open")
	}
	require.Eventually(t, func() bool { return handshakes() == 0 }, rpcPatience, time.Millisecond)
	require.EqualValues(t, maxHandshakesFromOne, b.refusals(refusedTimeout))
	b.gate.mu.Lock()
	defer b.gate.mu.Unlock()
	require.Empty(t, b.gate.from)
}

func TestRPCStopIsBounded(t *testing.T) {
	t.Parallel()
	a := startRPC(t, "c", "a", "127.0.0.1:0", rpcKey(1))
	b := startRPC(t, "c", "b", "127.0.0.1:0", rpcKey(1))
	silent, err := net.Dial("tcp", b.address())
	require.NoError(t, err)
	defer silent.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := a.call(t, "b", b.address(), "Hang", nil)
		ended <- err
	}()
	<-b.asked.hang
	start := time.Now()
	require.NoError(t, b.stop())
	require.GreaterOrEqual(t, time.Since(start), stopTimeout)
	require.Less(t, time.Since(start), stopTimeout+cutOffTimeout)
	require.Error(t, <-ended)

	start = time.Now()
	require.NoError(t, a.stop())
	require.Less(t, time.Since(start), stopTimeout)
	_, err = a.conn("b", b.address())
	require.ErrorContains(t, err, "stopping")
}

// TestRPCKeepsOneConnection follows a member that dies, returns, moves and goes.
func TestRPCKeepsOneConnection(t *testing.T) {
	t.Parallel()
	a := startRPC(t, "c", "a", "127.0.0.1:0", rpcKey(1))
	b := startRPC(t, "c", "b", "127.0.0.1:0", rpcKey(1))
	first := b.address()
	_, err := a.call(t, "b", first, "Who", nil)
	require.NoError(t, err)

	require.NoError(t, b.stop())
	start := time.Now()
	_, err = a.call(t, "b", first, "Who", nil)
	require.Equal(t, codes.Unavailable, status.Code(err), err)
	require.Less(t, time.Since(start), 3*time.Second, "a dead member is not waited for")

	b2 := startRPC(t, "c", "b", first, rpcKey(1))
	require.Eventually(t, func() bool {
		_, err := a.call(t, "b", b2.address(), "Who", nil)
		return err == nil
	}, rpcPatience, 20*time.Millisecond)

	// It moves, and somebody else answers where it was.
	kept, err := a.conn("b", first)
	require.NoError(t, err)
	b3 := startRPC(t, "c", "b", "127.0.0.1:0", rpcKey(1))
	_, err = a.call(t, "b", b3.address(), "Who", nil)
	require.NoError(t, err)
	_, err = invoke(t, kept, "Who", nil)
	require.Equal(t, codes.Canceled, status.Code(err), err)
	require.Len(t, a.conns, 1)

	before := a.refusals(refusedMember)
	_, err = a.call(t, "x", b3.address(), "Who", nil)
	require.Equal(t, codes.Unavailable, status.Code(err), err)
	require.ErrorContains(t, err, "answers where")
	require.Greater(t, a.refusals(refusedMember), before)

	a.forget("x")
	a.forget("b")
	a.forget("b")
	require.Empty(t, a.conns)
	_, err = a.call(t, "b", b3.address(), "Who", nil)
	require.NoError(t, err)

	for _, address := range []string{"", "host", "::1"} {
		_, err = a.conn("b", address)
		require.ErrorContains(t, err, "no gRPC address")
	}
}

// TestRPCRotation changes the key on two replicas, one after the other, as the runbook says.
func TestRPCRotation(t *testing.T) {
	t.Parallel()
	k1, k2 := rpcKey(1), rpcKey(101)
	a := startRPC(t, "c", "a", "127.0.0.1:0", k1)
	b := startRPC(t, "c", "b", "127.0.0.1:0", k1)
	fresh := func() {
		t.Helper()
		a.forget("b")
		b.forget("a")
		_, err := a.call(t, "b", b.address(), "Who", nil)
		require.NoError(t, err)
		_, err = b.call(t, "a", a.address(), "Who", nil)
		require.NoError(t, err)
	}
	fresh()
	// One connection is kept all along.
	c := startRPC(t, "c", "c", "127.0.0.1:0", k1)
	_, err := c.call(t, "b", b.address(), "Who", nil)
	require.NoError(t, err)
	for _, keys := range [][][]byte{{k1, k2}, {k2, k1}, {k2}} {
		for _, x := range []*testRPC{a, b} {
			require.NoError(t, x.creds.setKeys(keys))
			fresh()
			_, err := c.call(t, "b", b.address(), "Who", nil)
			require.NoError(t, err, "the connection that stood was broken")
		}
	}
	// Who has only the old key does not get in any more, and does not let in.
	c.forget("b")
	_, err = c.call(t, "b", b.address(), "Who", nil)
	require.Equal(t, codes.Unavailable, status.Code(err), err)
	require.Positive(t, c.refusals(refusedKey))
	_, err = a.call(t, "c", c.address(), "Who", nil)
	require.Equal(t, codes.Unavailable, status.Code(err), err)
	require.Zero(t, c.asked.count())

	for _, bad := range [][][]byte{{k2, k1[:31]}, {nil}} {
		require.Error(t, a.creds.setKeys(bad))
	}
	fresh()
}

func TestRPCWithoutKey(t *testing.T) {
	a := startRPC(t, "c", "a", "not an address")
	require.Nil(t, a.addr())
	_, err := a.conn("b", "127.0.0.1:1")
	require.ErrorIs(t, err, errNoKey)
	require.ErrorContains(t, err, "cluster.key_file")
	require.False(t, a.creds.keyed())
	require.NoError(t, a.stop())
}

// TestRPCRegistersOnce does what ends the process if gRPC itself is asked.
func TestRPCRegistersOnce(t *testing.T) {
	for name, keys := range map[string][][]byte{"with a key": {rpcKey(1)}, "without": nil} {
		t.Run(name, func(t *testing.T) {
			a := startRPC(t, "c", "a", "127.0.0.1:0", keys...)
			a.RegisterService(rpcDesc(a.asked), nil)
			require.Contains(t, a.log.String(), "gRPC service left out")
		})
	}
}

func TestRPCClose(t *testing.T) {
	creds, err := newCredentials("c", "a", [][]byte{rpcKey(1)})
	require.NoError(t, err)
	var log logged
	r, err := newRPC(log.logger(), prometheus.NewRegistry(), "127.0.0.1:0", creds)
	require.NoError(t, err)
	address := r.addr().String()
	_, err = newRPC(log.logger(), prometheus.NewRegistry(), address, creds)
	require.ErrorContains(t, err, "listen for gRPC")
	r.close()
	r.close()
	require.NoError(t, r.run(t.Context()))
	again, err := newRPC(log.logger(), prometheus.NewRegistry(), address, creds)
	require.NoError(t, err, "the port was not freed")
	again.close()
}
