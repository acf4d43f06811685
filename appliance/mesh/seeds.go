package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tocsin-io/tocsin/appliance/config"
)

const (
	// maxSeeds bounds the addresses that are tried: an answer from the DNS is not in our hands.
	maxSeeds = 64
	// lookupTimeout bounds one peer, so that a dead name server does not keep us from the peers that need none.
	lookupTimeout = 5 * time.Second
)

// resolver is the part of [net.Resolver] that is used.
type resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

// seeds are the configured peers: where to look for other replicas.
type seeds struct {
	resolver    resolver
	defaultPort int

	mu    sync.Mutex
	peers []string
}

// newSeeds takes peers in the forms of cluster.peers. A nil resolver is the system's.
func newSeeds(peers []string, r resolver, defaultPort int) *seeds {
	if r == nil {
		r = net.DefaultResolver
	}
	s := &seeds{resolver: r, defaultPort: defaultPort}
	s.set(peers)
	return s
}

// set replaces the peers.
func (s *seeds) set(peers []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peers = slices.Clone(peers)
}

// resolve gives the addresses of all peers as ip:port, each once, in the order of the peers. What could be found is
// there together with the error that says which peers could not.
func (s *seeds) resolve(ctx context.Context) ([]string, error) {
	s.mu.Lock()
	peers := slices.Clone(s.peers)
	s.mu.Unlock()

	found := make([][]netip.AddrPort, len(peers))
	errs := make([]error, len(peers))
	// All at once, so that all of them take no longer than one; the configuration bounds their number.
	var wg sync.WaitGroup
	for i, p := range peers {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
			defer cancel()
			if found[i], errs[i] = s.lookup(ctx, p); errs[i] != nil {
				errs[i] = fmt.Errorf("find peer %q: %w", p, errs[i])
			}
		})
	}
	wg.Wait()

	var addrs []string
	seen := map[netip.AddrPort]bool{}
	for _, list := range found {
		for _, a := range list {
			if seen[a] {
				continue
			}
			if len(addrs) == maxSeeds {
				errs = append(errs, fmt.Errorf("the peers stand for more than %d addresses; the rest is left out", maxSeeds))
				return addrs, errors.Join(errs...)
			}
			seen[a] = true
			addrs = append(addrs, a.String())
		}
	}
	return addrs, errors.Join(errs...)
}

// lookup gives the addresses of one peer; with an error, those that were found nevertheless.
func (s *seeds) lookup(ctx context.Context, peer string) ([]netip.AddrPort, error) {
	p, err := config.ParsePeer(peer)
	if err != nil {
		return nil, err
	}
	if p.SRV {
		return s.lookupSRV(ctx, p.Host)
	}
	port := p.Port
	if port == 0 {
		port = uint16(s.defaultPort)
	}
	if p.IP.IsValid() {
		return []netip.AddrPort{netip.AddrPortFrom(p.IP, port)}, nil
	}
	return s.lookupHost(ctx, p.Host, port)
}

func (s *seeds) lookupHost(ctx context.Context, host string, port uint16) ([]netip.AddrPort, error) {
	ips, err := s.resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var addrs []netip.AddrPort
	for _, ip := range ips {
		ip = ip.Unmap()
		if !ip.IsValid() || ip.IsUnspecified() || ip.IsMulticast() || len(addrs) == maxSeeds {
			continue
		}
		addrs = append(addrs, netip.AddrPortFrom(ip, port))
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("look up %s: no address that can be connected to", host)
	}
	// Name servers rotate their answers; a stable order makes logs comparable.
	slices.SortFunc(addrs, netip.AddrPort.Compare)
	return addrs, nil
}

func (s *seeds) lookupSRV(ctx context.Context, name string) ([]netip.AddrPort, error) {
	// Records with bad names are left out of what comes with the error.
	_, records, err := s.resolver.LookupSRV(ctx, "", "", name)
	if err != nil && len(records) == 0 {
		return nil, err
	}
	errs := []error{err}
	var addrs []netip.AddrPort
	for i, r := range records {
		if i == maxSeeds || len(addrs) >= maxSeeds {
			break
		}
		target := strings.TrimSuffix(r.Target, ".")
		if target == "" || r.Port == 0 {
			errs = append(errs, fmt.Errorf("look up %s: a record says that there is no such service", name))
			continue
		}
		// The dot keeps the search list of resolv.conf out of it: a target is a full name.
		a, err := s.lookupHost(ctx, target+".", r.Port)
		if err != nil {
			errs = append(errs, err)
		}
		addrs = append(addrs, a...)
	}
	return addrs, errors.Join(errs...)
}
