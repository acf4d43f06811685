package mesh

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpccreds "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// readerTLS is what a stock client makes of the three files, with every check that a stock client has.
func readerTLS(t *testing.T, cluster, name string, keys ...[]byte) *tls.Config {
	t.Helper()
	authorities, cert, key, err := NewReaderCertificate(keys, cluster, name)
	require.NoError(t, err)
	pair, err := tls.X509KeyPair(cert, key)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(authorities))
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, ServerName: ServerName}
}

func dialAs(t *testing.T, cfg *tls.Config, address string) grpc.ClientConnInterface {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(grpccreds.NewTLS(cfg)), grpc.WithNoProxy())
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// startReadable starts a replica with test.Service for replicas, and test.Readable for readers, too.
func startReadable(t *testing.T, keys ...[]byte) *testRPC {
	t.Helper()
	return startRPCWith(t, "c", "b", "127.0.0.1:0", func(x *testRPC) {
		desc := rpcDesc(x.asked)
		desc.ServiceName = "test.Readable"
		readable{x.rpc}.RegisterService(desc, nil)
	}, keys...)
}

func TestReaderReadsAndNothingElse(t *testing.T) {
	t.Parallel()
	key := rpcKey(1)
	b := startReadable(t, key)
	const name = "thanos é/100%"
	c := dialAs(t, readerTLS(t, "c", name, key), b.address())
	call := func(method string) (string, error) {
		out := &wrapperspb.BytesValue{}
		err := c.Invoke(t.Context(), method, wrapperspb.Bytes(nil), out)
		return string(out.GetValue()), err
	}

	who, err := call("/test.Readable/Reader")
	require.NoError(t, err)
	require.Equal(t, name, who)
	_, err = call("/test.Readable/Who")
	require.Equal(t, codes.Unauthenticated, status.Code(err), "Caller took a reader for a replica: %v", err)
	require.Equal(t, 2, b.asked.count())

	// "/test.Readable" as a prefix is nothing, nor is a service that nobody has.
	for i, method := range []string{
		"/test.Service/Who", "/test.Service/Reader", "/test.Service/None", "/test.Readable2/Who", "/test.None/Who",
		"/test.Service//test.Readable/Who", "//test.Readable/Who",
	} {
		_, err = call(method)
		require.Equal(t, codes.PermissionDenied, status.Code(err), "%s: %v", method, err)
		require.EqualValues(t, i+1, testutil.ToFloat64(b.denied), method)
	}
	stream, err := c.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/test.Service/PanicStream")
	require.NoError(t, err)
	require.Equal(t, codes.PermissionDenied, status.Code(stream.RecvMsg(&wrapperspb.BytesValue{})))
	require.Equal(t, 2, b.asked.count(), "a call that was denied reached a handler")
	require.Zero(t, testutil.ToFloat64(b.panics))
	require.Equal(t, 1, strings.Count(b.log.String(), `msg="a reader's call was denied`), b.log.String())

	_, err = call("/test.Readable/Panic")
	require.Equal(t, codes.Internal, status.Code(err))
	require.Contains(t, b.log.String(), "reader=\""+name+"\" panic=ouch")

	// Replicas make all calls, and are no readers.
	a := startRPC(t, "c", "a", "127.0.0.1:0", key)
	for _, service := range []string{"test.Service", "test.Readable"} {
		conn, err := a.conn("b", b.address())
		require.NoError(t, err)
		out := &wrapperspb.BytesValue{}
		require.NoError(t, conn.Invoke(t.Context(), "/"+service+"/Who", wrapperspb.Bytes(nil), out))
		require.Equal(t, "a", string(out.GetValue()))
		err = conn.Invoke(t.Context(), "/"+service+"/Reader", wrapperspb.Bytes(nil), out)
		require.Equal(t, codes.Unauthenticated, status.Code(err), err)
	}
	_, ok := Reader(t.Context())
	require.False(t, ok)
}

// TestReaderOfSomebodyElse has readers of another key or cluster refused, and refuses their replicas.
func TestReaderOfSomebodyElse(t *testing.T) {
	t.Parallel()
	key := rpcKey(1)
	b := startReadable(t, key)
	for name, c := range map[string]struct {
		cfg    *tls.Config
		reason string
	}{
		"another key":     {readerTLS(t, "c", "r", rpcKey(9)), refusedKey},
		"another cluster": {readerTLS(t, "staging", "r", key), refusedCluster},
	} {
		t.Run(name, func(t *testing.T) {
			// By the client's own checks first, and where it has none by the replica.
			_, err := invoke(t, dialAs(t, c.cfg, b.address()), "Who", nil)
			require.Equal(t, codes.Unavailable, status.Code(err), err)
			require.ErrorContains(t, err, "x509")
			before := b.refusals(c.reason)
			c.cfg.InsecureSkipVerify = true
			_, err = invoke(t, dialAs(t, c.cfg, b.address()), "Who", nil)
			require.Equal(t, codes.Unavailable, status.Code(err), err)
			require.Greater(t, b.refusals(c.reason), before)
		})
	}
	require.Zero(t, b.asked.count())
}

// TestReaderIsNoReplica has a reader answer where a replica is called: by the names that it has, and by those it
// would like to have.
func TestReaderIsNoReplica(t *testing.T) {
	t.Parallel()
	key := rpcKey(1)
	a := startRPC(t, "c", "a", "127.0.0.1:0", key)
	cfg := readerTLS(t, "c", "b", key)
	cfg.NextProtos = []string{"h2"}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer(grpc.Creds(grpccreds.NewTLS(cfg)))
	var reached asked
	server.RegisterService(rpcDesc(&reached), nil)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-served)
	})
	_, err = a.call(t, "b", l.Addr().String(), "Who", nil)
	require.Equal(t, codes.Unavailable, status.Code(err), err)
	require.ErrorContains(t, err, "a reader answers where replica")
	require.Positive(t, a.refusals(refusedMember))
	require.Zero(t, reached.count())

	// Nor is it a replica to a stock client that knows the authority, with the right name or without.
	for _, name := range []string{ServerName, "b", "127.0.0.1"} {
		client := readerTLS(t, "c", "r", key)
		client.ServerName = name
		_, err = invoke(t, dialAs(t, client, l.Addr().String()), "Who", nil)
		require.Equal(t, codes.Unavailable, status.Code(err), err)
		require.ErrorContains(t, err, "x509")
	}

	// And it makes no certificates.
	leaf, err := x509.ParseCertificate(cfg.Certificates[0].Certificate[0])
	require.NoError(t, err)
	require.False(t, leaf.IsCA)
	require.Zero(t, leaf.KeyUsage&x509.KeyUsageCertSign)
}

// TestReaderThroughARotation holds that a certificate is good as long as its key is accepted, and that a reader that
// was given all authorities knows the replicas by each.
func TestReaderThroughARotation(t *testing.T) {
	t.Parallel()
	k1, k2 := rpcKey(1), rpcKey(101)
	b := startReadable(t, k1, k2)
	old, both := readerTLS(t, "c", "old", k1), readerTLS(t, "c", "both", k2, k1)
	ask := func(cfg *tls.Config) error {
		out := &wrapperspb.BytesValue{}
		return dialAs(t, cfg, b.address()).Invoke(t.Context(), "/test.Readable/Reader", wrapperspb.Bytes(nil), out)
	}
	require.NoError(t, ask(old))
	require.NoError(t, ask(both))
	require.NoError(t, b.creds.setKeys([][]byte{k2, k1}))
	require.NoError(t, ask(both))
	require.ErrorContains(t, ask(old), "x509", "it knows nothing of the new key")
	require.NoError(t, b.creds.setKeys([][]byte{k2}))
	require.NoError(t, ask(both))
	before := b.refusals(refusedKey)
	old.InsecureSkipVerify = true
	require.Equal(t, codes.Unavailable, status.Code(ask(old)))
	// It is counted on the other side, which may learn of it a moment later.
	require.Eventually(t, func() bool { return b.refusals(refusedKey) > before }, rpcPatience, 5*time.Millisecond)
}

func TestNewReaderCertificate(t *testing.T) {
	key := rpcKey(1)
	authorities, cert, private, err := NewReaderCertificate([][]byte{key, rpcKey(9)}, "c", "r")
	require.NoError(t, err)
	first, rest := pem.Decode(authorities)
	require.NotNil(t, first)
	second, rest := pem.Decode(rest)
	require.NotNil(t, second)
	require.Empty(t, rest)
	_, root, err := authority(key, "c")
	require.NoError(t, err)
	require.Equal(t, root.Raw, first.Bytes)
	block, rest := pem.Decode(cert)
	require.Empty(t, rest)
	leaf, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	require.NoError(t, leaf.CheckSignatureFrom(root))
	require.True(t, leaf.NotBefore.Before(time.Now()) && leaf.NotAfter.After(time.Now().AddDate(1000, 0, 0)))
	require.Contains(t, string(private), "PRIVATE KEY")

	for _, bad := range []struct {
		keys          [][]byte
		cluster, name string
	}{
		{nil, "c", "r"}, {[][]byte{key[:16]}, "c", "r"}, {[][]byte{key}, "", "r"}, {[][]byte{key}, "a/b", "r"},
		{[][]byte{key}, "c", ""}, {[][]byte{key}, "c", "a\nb"}, {[][]byte{key}, "c", strings.Repeat("a", maxNameBytes+1)},
		{[][]byte{key}, "c", "\xff"},
	} {
		_, _, _, err := NewReaderCertificate(bad.keys, bad.cluster, bad.name)
		require.Error(t, err, "%q %q", bad.cluster, bad.name)
	}
	// The longest names are read again.
	longest := strings.Repeat("ä", maxNameBytes/2)
	_, cert, _, err = NewReaderCertificate([][]byte{key}, strings.Repeat("c", 64), longest)
	require.NoError(t, err)
	block, _ = pem.Decode(cert)
	leaf, err = x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	id, err := identityOf(leaf)
	require.NoError(t, err)
	require.Equal(t, identity{cluster: strings.Repeat("c", 64), name: longest, reader: true}, id)
}

// TestReadableServices holds that each service has one place.
func TestReadableServices(t *testing.T) {
	creds, err := newCredentials("c", "a", [][]byte{rpcKey(1)})
	require.NoError(t, err)
	var log logged
	r, err := newRPC(log.logger(), prometheus.NewRegistry(), "127.0.0.1:0", creds)
	require.NoError(t, err)
	defer r.close()
	var a asked
	r.RegisterService(rpcDesc(&a), nil)
	readable{r}.RegisterService(rpcDesc(&a), nil)
	require.Contains(t, log.String(), "gRPC service left out")
	require.False(t, r.services["test.Service"])
}
