package bucket

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/thanos-io/objstore"

	"github.com/tocsin-io/tocsin/appliance/config"
)

const (
	leaseVersion = 1
	// maxLeaseBytes bounds an object that is read; a lease has some 400 bytes.
	maxLeaseBytes = 4 << 10
	maxReplica    = 253
	// shortestLease and longestLease bound what a lease says of its length.
	shortestLease, longestLease = time.Minute, 30 * 24 * time.Hour

	leaseKeyInfo = "tocsin rendezvous lease v1, cluster "
)

// lease is what a replica says of itself in the bucket.
type lease struct {
	Cluster string `json:"cluster"`
	Replica string `json:"replica"`
	// Address is where the mesh of the replica is reached, ip:port.
	Address string `json:"address"`
	// Written is by the clock of the replica, and for people: nothing is decided by it.
	Written time.Time `json:"written"`
	// Seconds is how long the lease holds without being written again.
	Seconds int64 `json:"seconds"`
	// Instance is random, another one for each process; Sequence counts what it writes. Two leases that are not the same write
	// differ in one of them.
	Instance string `json:"instance"`
	Sequence uint64 `json:"sequence"`
}

// length is how long the lease holds, within reason.
func (l *lease) length() time.Duration {
	if l.Seconds > int64(longestLease/time.Second) {
		return longestLease
	}
	return max(shortestLease, time.Duration(l.Seconds)*time.Second)
}

// signedLease is the object. What is signed are the bytes of the lease as they stand there, so that later versions can add fields.
type signedLease struct {
	Version int             `json:"version"`
	Lease   json.RawMessage `json:"lease"`
	// HMAC is HMAC-SHA-256, in hex.
	HMAC string `json:"hmac"`
}

// Why an object was refused: label values of a counter.
const (
	leaseTooLarge    = "size"
	leaseFormat      = "format"    // no lease at all
	leaseForeign     = "cluster"   // another cluster's
	leaseSignature   = "signature" // not signed with a key of this cluster
	leaseMisplaced   = "name"      // not where a lease of that replica is
	leaseBadAddress  = "address"   // nothing that can be connected to
	leaseNewerFormat = "version"
)

var leaseReasons = []string{
	leaseTooLarge, leaseFormat, leaseForeign, leaseSignature, leaseMisplaced, leaseBadAddress, leaseNewerFormat,
}

// leaseError is an error that knows its reason.
type leaseError struct {
	reason string
	err    error
}

// Error implements error.
func (e *leaseError) Error() string { return e.err.Error() }

// Unwrap gives what it is about.
func (e *leaseError) Unwrap() error { return e.err }

func badLease(reason, format string, args ...any) error {
	return &leaseError{reason, fmt.Errorf(format, args...)}
}

// leaseKeys sign and check: the first signs, all are accepted, as in the mesh.
type leaseKeys [][]byte

// newLeaseKeys derives them from the cluster keys, so that what is in the bucket says nothing about those.
func newLeaseKeys(cluster string, keys config.Keys) (leaseKeys, error) {
	if len(keys) == 0 {
		return nil, errors.New("sign leases: there is no cluster key")
	}
	var derived leaseKeys
	for i, key := range keys {
		k, err := hkdf.Key(sha256.New, key, nil, leaseKeyInfo+cluster, sha256.Size)
		if err != nil {
			return nil, fmt.Errorf("derive a key for leases from cluster key %d: %w", i+1, err)
		}
		derived = append(derived, k)
	}
	return derived, nil
}

// same tells whether these are the same keys in the same order.
func (k leaseKeys) same(other leaseKeys) bool {
	return bytes.Equal(bytes.Join(k, nil), bytes.Join(other, nil))
}

func leaseMAC(key, text []byte) string {
	mac := hmac.New(sha256.New, key)
	_, _ = mac.Write(text) // It never fails.
	return hex.EncodeToString(mac.Sum(nil))
}

func (k leaseKeys) encode(l *lease) ([]byte, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("encode a lease: %w", err)
	}
	b, err := json.Marshal(signedLease{leaseVersion, text, leaseMAC(k[0], text)})
	if err != nil {
		return nil, fmt.Errorf("encode a lease: %w", err)
	}
	return append(b, '\n'), nil
}

// decode reads an object of the cluster's folder. What it gives was written by somebody who holds a key of the cluster.
func (k leaseKeys) decode(cluster, object string, b []byte) (*lease, error) {
	var s signedLease
	if len(b) > maxLeaseBytes {
		return nil, badLease(leaseTooLarge, "it is larger than %d bytes", maxLeaseBytes)
	}
	if err := json.Unmarshal(b, &s); err != nil || len(s.Lease) == 0 {
		return nil, badLease(leaseFormat, "it is no lease")
	}
	if s.Version != leaseVersion {
		return nil, badLease(leaseNewerFormat, "it has version %d, and this program knows version %d only", s.Version, leaseVersion)
	}
	var l lease
	if err := json.Unmarshal(s.Lease, &l); err != nil {
		return nil, badLease(leaseFormat, "it is no lease")
	}
	// Before the signature, because it is the more telling of the two: another cluster usually has another key too.
	if l.Cluster != cluster {
		return nil, badLease(leaseForeign, "it is of the cluster %q", plain(l.Cluster))
	}
	authentic := false
	for _, key := range k {
		authentic = authentic || hmac.Equal([]byte(leaseMAC(key, s.Lease)), []byte(s.HMAC))
	}
	if !authentic {
		return nil, badLease(leaseSignature, "it is not signed with a cluster key that is accepted here")
	}
	if l.Replica == "" || len(l.Replica) > maxReplica || leaseObject(cluster, l.Replica) != object {
		return nil, badLease(leaseMisplaced, "it is the lease of the replica %q, which has its place elsewhere", plain(l.Replica))
	}
	a, err := netip.ParseAddrPort(l.Address)
	if err != nil || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() || a.Addr().Zone() != "" {
		return nil, badLease(leaseBadAddress, "its address %q is none that can be connected to", plain(l.Address))
	}
	l.Address = netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
	return &l, nil
}

// readLease reads an object, at most one byte more than it may have.
func readLease(ctx context.Context, bkt objstore.BucketReader, object string) ([]byte, error) {
	r, err := bkt.Get(ctx, object)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, maxLeaseBytes+1))
	return b, errors.Join(err, r.Close())
}

// leaseFolder is where the leases of a cluster are. No part of it is a ULID, so that nobody takes it for a block.
func leaseFolder(cluster string) string {
	return config.RendezvousFolder + objstore.DirDelim + escapeName(cluster)
}

// leaseObject is where the lease of a replica is.
func leaseObject(cluster, replica string) string {
	return leaseFolder(cluster) + objstore.DirDelim + escapeName(replica) + ".json"
}

// escapeName makes one part of an object's name of a name. Where buckets are folders, that may have at most 255 bytes.
func escapeName(s string) string {
	e := url.PathEscape(s)
	if strings.HasPrefix(e, ".") { // Also . and .., which are no names.
		e = "%2E" + e[1:]
	}
	const longest = 200
	if len(e) > longest {
		sum := sha256.Sum256([]byte(s))
		e = "sha256-" + hex.EncodeToString(sum[:])
	}
	return e
}

// newInstance names a process.
func newInstance() (string, error) {
	b := make([]byte, 12)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("read random bytes: %w", err)
	}
	return hex.EncodeToString(b), nil
}
