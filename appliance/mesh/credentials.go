package mesh

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	grpccreds "google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
)

// The certificates are valid for ever and checked against a moment of our choice: replicas whose clocks are wrong must
// still be able to talk, not least about their clocks.
var (
	validFrom  = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	validUntil = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	validAt    = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
)

const (
	authorityInfo = "tocsin mesh certificate authority v1, cluster "
	memberScheme  = "tocsin"
	readerScheme  = "tocsin-reader"
	// maxIdentity bounds the name in a certificate of somebody who is not trusted yet: the longest cluster name and
	// the longest replica name with every byte escaped.
	maxIdentity = 64 + 1 + 3*253
)

// Why a connection was refused: label values of a counter.
const (
	refusedPlain       = "plain"       // no TLS at all
	refusedCertificate = "certificate" // none, or not one of ours
	refusedCluster     = "cluster"     // another cluster's name
	refusedKey         = "key"         // signed with a key that we do not accept
	refusedMember      = "member"      // a member of our cluster, but not the one that was called
	refusedTimeout     = "timeout"     // the handshake took too long
	refusedBusy        = "busy"        // too many handshakes at once
	refusedClosed      = "closed"      // the other end hung up, as health checks of TCP ports do, or we did
	refusedHandshake   = "handshake"   // anything else: a scan, another version of TLS, garbage
)

var refusedReasons = []string{
	refusedPlain, refusedCertificate, refusedCluster, refusedKey, refusedMember, refusedTimeout, refusedBusy, refusedClosed,
	refusedHandshake,
}

// handshakeError is an error that knows its reason. It never carries key material.
type handshakeError struct {
	reason string
	err    error
}

func (r *handshakeError) Error() string { return r.err.Error() }
func (r *handshakeError) Unwrap() error { return r.err }

func unfit(reason, format string, args ...any) error {
	return &handshakeError{reason: reason, err: fmt.Errorf(format, args...)}
}

// identity is what a certificate says: who of which cluster shows it, a replica or a reader.
type identity struct {
	cluster, name string
	reader        bool
}

// uri is the identity as a certificate carries it. It has no authority part, because x509 holds that to host names.
func (id identity) uri() *url.URL {
	scheme := memberScheme
	if id.reader {
		scheme = readerScheme
	}
	return &url.URL{Scheme: scheme, Opaque: id.cluster + "/" + url.PathEscape(id.name)}
}

func identityOf(cert *x509.Certificate) (identity, error) {
	if len(cert.URIs) != 1 || len(cert.URIs[0].Opaque) > maxIdentity {
		return identity{}, unfit(refusedCertificate, "the certificate names no replica and no reader")
	}
	uri := cert.URIs[0]
	cluster, escaped, found := strings.Cut(uri.Opaque, "/")
	name, err := url.PathUnescape(escaped)
	if uri.Scheme != memberScheme && uri.Scheme != readerScheme || !found || err != nil || cluster == "" || name == "" {
		return identity{}, unfit(refusedCertificate, "the certificate names no replica and no reader")
	}
	return identity{cluster: cluster, name: name, reader: uri.Scheme == readerScheme}, nil
}

// credentials authenticate replicas to each other with nothing but the cluster key. Each key gives a certificate
// authority that every holder of the key can compute; each process makes a random key pair for itself and signs it
// with the authority of the first cluster key. Who shows a replica's certificate of an accepted authority holds an
// accepted key. A reader's certificate was made by somebody who does, for a program that holds none.
//
// The names of cluster and replica are in that certificate, which a server sends before it knows whom it talks to.
type credentials struct {
	self identity
	leaf ed25519.PrivateKey

	setting sync.Mutex
	current atomic.Pointer[keyset] // nil without keys
}

// keyset is everything that follows from the keys. It is never changed, only replaced.
type keyset struct {
	own   tls.Certificate
	roots *x509.CertPool
}

// newCredentials makes the credentials of one process; keys may be empty.
func newCredentials(cluster, member string, keys [][]byte) (*credentials, error) {
	if cluster == "" || member == "" {
		return nil, errors.New("make credentials: the cluster and the replica need a name")
	}
	_, leaf, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key pair: %w", err)
	}
	c := &credentials{self: identity{cluster: cluster, name: member}, leaf: leaf}
	if err := c.setKeys(keys); err != nil {
		return nil, err
	}
	return c, nil
}

// keyed tells whether there is a key, so that anybody can be trusted.
func (c *credentials) keyed() bool { return c.current.Load() != nil }

// setKeys replaces the keys: the first signs, all are accepted. Connections that stand go on; those that are made from
// now on use the new keys.
func (c *credentials) setKeys(keys [][]byte) error {
	c.setting.Lock()
	defer c.setting.Unlock()
	if len(keys) == 0 {
		c.current.Store(nil)
		return nil
	}
	next := &keyset{roots: x509.NewCertPool()}
	for i, key := range keys {
		signer, root, err := authority(key, c.self.cluster)
		if err != nil {
			return fmt.Errorf("use cluster key %d: %w", i+1, err)
		}
		next.roots.AddCert(root)
		if i == 0 {
			if next.own, err = c.issue(signer, root); err != nil {
				return err
			}
		}
	}
	c.current.Store(next)
	return nil
}

// authority is the certificate authority of a cluster key. It is the same on every replica.
func authority(key []byte, cluster string) (crypto.Signer, *x509.Certificate, error) {
	if len(key) != 32 {
		return nil, nil, fmt.Errorf("it has %d bytes, want 32", len(key))
	}
	seed, err := hkdf.Key(sha256.New, key, nil, authorityInfo+cluster, ed25519.SeedSize)
	if err != nil {
		return nil, nil, fmt.Errorf("derive a key pair: %w", err)
	}
	signer := ed25519.NewKeyFromSeed(seed)
	id := sha256.Sum256(signer.Public().(ed25519.PublicKey))
	root := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "tocsin mesh"},
		SubjectKeyId:          id[:20],
		NotBefore:             validFrom,
		NotAfter:              validUntil,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, signer.Public(), signer)
	if err != nil {
		return nil, nil, fmt.Errorf("make the authority's certificate: %w", err)
	}
	if root, err = x509.ParseCertificate(der); err != nil {
		return nil, nil, fmt.Errorf("read the authority's certificate: %w", err)
	}
	return signer, root, nil
}

// issue signs this process's own certificate.
func (c *credentials) issue(signer crypto.Signer, root *x509.Certificate) (tls.Certificate, error) {
	der, err := sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "tocsin replica"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{c.self.uri()},
		DNSNames:    []string{ServerName},
	}, c.leaf.Public(), signer, root)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make this replica's certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: c.leaf}, nil
}

// sign makes a certificate of what its template says, and what is the same for all.
func sign(leaf *x509.Certificate, public crypto.PublicKey, signer crypto.Signer, root *x509.Certificate) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	leaf.SerialNumber = serial
	leaf.NotBefore, leaf.NotAfter = validFrom, validUntil
	leaf.BasicConstraintsValid = true
	leaf.KeyUsage = x509.KeyUsageDigitalSignature
	return x509.CreateCertificate(rand.Reader, leaf, root, public, signer)
}

// serverTLS accepts any member of the cluster, and its readers.
func (c *credentials) serverTLS() *tls.Config {
	cfg := baseTLS(func(s tls.ConnectionState) error {
		_, err := c.verify(s)
		return err
	})
	cfg.ClientAuth = tls.RequireAnyClientCert // Verified in VerifyConnection.
	cfg.SessionTicketsDisabled = true
	cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.own() }
	return cfg
}

// clientTLS accepts one member of the cluster only.
func (c *credentials) clientTLS(member string) *tls.Config {
	cfg := baseTLS(func(s tls.ConnectionState) error {
		id, err := c.verify(s)
		switch {
		case err != nil:
			return err
		case id.reader:
			return unfit(refusedMember, "a reader answers where replica %q was expected", member)
		case id.name != member:
			return unfit(refusedMember, "replica %q answers where %q was expected", id.name, member)
		}
		return nil
	})
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.own() }
	return cfg
}

// baseTLS leaves the verification to verify, which knows members instead of host names and does not ask the clock.
func baseTLS(verify func(tls.ConnectionState) error) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"h2"},
		InsecureSkipVerify: true,
		VerifyConnection:   verify,
	}
}

func (c *credentials) own() (*tls.Certificate, error) {
	k := c.current.Load()
	if k == nil {
		return nil, errNoKey
	}
	return &k.own, nil
}

// verify tells who of the cluster is at the other end.
func (c *credentials) verify(s tls.ConnectionState) (identity, error) {
	k := c.current.Load()
	if k == nil {
		return identity{}, unfit(refusedKey, "this replica has no cluster key")
	}
	if len(s.PeerCertificates) != 1 {
		return identity{}, unfit(refusedCertificate, "want one certificate, got %d", len(s.PeerCertificates))
	}
	cert := s.PeerCertificates[0]
	id, err := identityOf(cert)
	if err != nil {
		return identity{}, err
	}
	// Before the signature, because it is the more telling of the two: another cluster usually has another key too.
	if id.cluster != c.self.cluster {
		return identity{}, unfit(refusedCluster, "it says that it belongs to the cluster %q, this is %q", id.cluster, c.self.cluster)
	}
	if _, err := cert.Verify(x509.VerifyOptions{
		Roots:       k.roots,
		CurrentTime: validAt,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return identity{}, unfit(refusedKey, "it does not hold a cluster key that is accepted here")
	}
	return id, nil
}

// callerInfo is what gRPC keeps about an authenticated connection.
type callerInfo struct {
	grpccreds.TLSInfo
	identity
}

// callerOf is who calls, empty in a context that comes from elsewhere.
func callerOf(ctx context.Context) identity {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return identity{}
	}
	info, _ := p.AuthInfo.(callerInfo)
	return info.identity
}

// Caller is the name of the replica whose call a gRPC handler serves, as its certificate proves it. It is not ok for a
// reader, and in a context that comes from elsewhere.
func Caller(ctx context.Context) (member string, ok bool) {
	id := callerOf(ctx)
	if id.reader || id.name == "" {
		return "", false
	}
	return id.name, true
}

// errNoKey is what is missing where gRPC is asked for without a key.
var errNoKey = errors.New("replicas talk to each other only with a cluster key: set cluster.key_file")
