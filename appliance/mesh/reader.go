package mesh

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

// ServerName is the host name that every replica's certificate bears: for clients that verify one, wherever the
// replica is.
const ServerName = "tocsin"

// Reader is the name of the reader whose call a gRPC handler serves: a program that may read, with a certificate that
// was made for it. It is not ok for a replica, and in a context that comes from elsewhere.
func Reader(ctx context.Context) (name string, ok bool) {
	id := callerOf(ctx)
	return id.name, id.reader && id.name != ""
}

// NewReaderCertificate makes a certificate for a reader of the cluster, and its key pair. The first of the cluster keys
// signs it; it is good for as long as replicas accept that key. All that is returned is in PEM: the authorities of all
// the keys, for the reader to know the replicas by, its certificate, and its private key.
func NewReaderCertificate(keys [][]byte, cluster, name string) (authorities, cert, key []byte, err error) {
	switch {
	case len(keys) == 0:
		return nil, nil, nil, errors.New("make a reader's certificate: there is no cluster key")
	case cluster == "" || strings.Contains(cluster, "/"):
		return nil, nil, nil, errors.New("make a reader's certificate: that is no name of a cluster")
	case name == "", len(name) > maxNameBytes, !utf8.ValidString(name), name != Printable(name, maxNameBytes):
		return nil, nil, nil, fmt.Errorf("make a reader's certificate: its name must have 1 to %d printable characters", maxNameBytes)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("make a key pair: %w", err)
	}
	for i, k := range keys {
		signer, root, err := authority(k, cluster)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("use cluster key %d: %w", i+1, err)
		}
		authorities = append(authorities, certificatePEM(root.Raw)...)
		if i > 0 {
			continue
		}
		der, err := sign(&x509.Certificate{
			Subject: pkix.Name{CommonName: "tocsin reader"},
			// No host's name, and nothing that a server could use it for.
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			URIs:        []*url.URL{identity{cluster: cluster, name: name, reader: true}.uri()},
		}, public, signer, root)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("make a reader's certificate: %w", err)
		}
		cert = certificatePEM(der)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("encode a private key: %w", err)
	}
	return authorities, cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// kind is what a log calls a caller.
func (id identity) kind() string {
	if id.reader {
		return "reader"
	}
	return "member"
}

// readable registers services that readers may call.
type readable struct{ *rpc }

// RegisterService adds a service for replicas and readers, before run.
func (r readable) RegisterService(desc *grpc.ServiceDesc, impl any) { r.add(desc, impl, true) }

// admit lets replicas make every call, and readers those that are for them. It sees a call before anything of its body
// is decoded, also where there is no such method.
func (r *rpc) admit(ctx context.Context, info *tap.Info) (context.Context, error) {
	caller := callerOf(ctx)
	service, _, _ := strings.Cut(strings.TrimPrefix(info.FullMethodName, "/"), "/")
	r.mu.Lock()
	may := caller.name != "" && (!caller.reader || r.services[service])
	r.mu.Unlock()
	if may {
		return ctx, nil
	}
	r.denied.Inc()
	if since, ok := r.quiet.allow(caller.name, time.Now()); ok {
		r.logger.Warn("a reader's call was denied: only replicas may make it", "reader", caller.name,
			"method", Printable(info.FullMethodName, maxLogLine), "not_logged_since", since)
	}
	return ctx, status.Error(codes.PermissionDenied, "a reader may not call this")
}
