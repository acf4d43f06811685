package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// errNoAdvertise is what is left when nothing can be chosen.
var errNoAdvertise = errors.New("this machine has no address that other replicas could reach: set cluster.advertise_address")

// carrierNAT is the shared address space of RFC 6598, which many clouds and overlay networks use inside.
var carrierNAT = netip.MustParsePrefix("100.64.0.0/10")

// iface is what is needed to know of a network interface.
type iface struct {
	name  string
	up    bool
	addrs []netip.Addr
}

// chooseAdvertise finds the address at which the other replicas reach this one: the configured one, else the one that
// the gossip is bound to, else one of the machine's. Bind is a host, or a host and port; gossipPort is the port that
// is really bound. It says what it chose where there was a choice. See also warnInClear.
func chooseAdvertise(configured, bind string, gossipPort int, logger *slog.Logger) (netip.AddrPort, error) {
	if configured != "" {
		return advertiseConfigured(configured, gossipPort, logger)
	}
	host := bind
	if h, _, err := net.SplitHostPort(bind); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if ip, err := netip.ParseAddr(host); host != "" && (err != nil || !ip.IsUnspecified()) {
		ip, err := hostAddr(host)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("choose the address that the other replicas reach us at: %w", err)
		}
		switch {
		case ip.IsLoopback():
			logger.Info("the mesh is bound to a loopback address: only replicas on this machine can join", "address", ip.String())
		case ip.IsLinkLocalUnicast():
			logger.Warn("the mesh is bound to a link-local address, which other replicas may not be able to use; if so, set cluster.advertise_address",
				"address", ip.String())
		}
		return netip.AddrPortFrom(ip, uint16(gossipPort)), nil
	}
	ifaces, err := interfaces()
	if err != nil {
		return netip.AddrPort{}, err
	}
	candidates := rankAdvertise(ifaces, routedAddrs())
	if len(candidates) == 0 {
		return netip.AddrPort{}, errNoAdvertise
	}
	chosen := netip.AddrPortFrom(candidates[0], uint16(gossipPort))
	attrs := []any{"address", chosen.String()}
	if len(candidates) > 1 {
		const shown = 8
		attrs = append(attrs, "others", fmt.Sprint(candidates[1:min(len(candidates), shown)]), "to_change", "cluster.advertise_address")
	}
	logger.Info("chose the address that the other replicas reach us at", attrs...)
	return chosen, nil
}

func advertiseConfigured(configured string, gossipPort int, logger *slog.Logger) (netip.AddrPort, error) {
	a, err := config.ParseAddress(configured)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("read cluster.advertise_address: %w", err)
	}
	ip := a.IP
	if !ip.IsValid() {
		if ip, err = hostAddr(a.Host); err != nil {
			return netip.AddrPort{}, fmt.Errorf("resolve cluster.advertise_address: %w", err)
		}
		// The trap of Debian's /etc/hosts, where a machine's own name is 127.0.1.1.
		if ip.IsLoopback() && !strings.EqualFold(strings.TrimSuffix(a.Host, "."), "localhost") {
			logger.Warn("cluster.advertise_address resolves to a loopback address on this machine: only replicas on this machine can join",
				"host", a.Host, "address", ip.String())
		}
	}
	port := a.Port
	if port == 0 {
		port = uint16(gossipPort)
	}
	return netip.AddrPortFrom(ip, port), nil
}

// hostAddr resolves a host, preferring what others can use, and IPv4 because every machine has that or nothing but IPv6.
func hostAddr(host string) (netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap(), nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, err
	}
	return bestOf(host, ips)
}

func bestOf(host string, ips []netip.Addr) (netip.Addr, error) {
	ips = slices.Clone(ips)
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	ips = slices.DeleteFunc(ips, func(ip netip.Addr) bool { return ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "" })
	if len(ips) == 0 {
		return netip.Addr{}, fmt.Errorf("%s has no address that can be connected to", host)
	}
	class := func(ip netip.Addr) int {
		if c, ok := advertiseClass(ip); ok {
			return c
		}
		return 100
	}
	slices.SortStableFunc(ips, func(a, b netip.Addr) int { return cmp.Compare(class(a), class(b)) })
	return ips[0], nil
}

// advertiseClass orders addresses by how likely another replica can use them, smaller first; it is not ok for those
// that no other machine can.
func advertiseClass(ip netip.Addr) (class int, ok bool) {
	switch {
	case !ip.IsGlobalUnicast(): // Loopback, link-local, multicast, unspecified.
		return 0, false
	case ip.Is4() && (ip.IsPrivate() || carrierNAT.Contains(ip)):
		return 0, true
	case ip.Is4():
		return 1, true
	default:
		return 2, true
	}
}

// rankAdvertise orders the usable addresses of a machine, best first. Routed are the addresses that the default routes
// start from.
func rankAdvertise(ifaces []iface, routed []netip.Addr) []netip.Addr {
	type candidate struct {
		ip                    netip.Addr
		inside, class, routed int
	}
	var candidates []candidate
	for _, i := range ifaces {
		if !i.up {
			continue
		}
		for _, ip := range i.addrs {
			ip = ip.Unmap()
			class, ok := advertiseClass(ip)
			if !ok {
				continue
			}
			c := candidate{ip: ip, class: class, routed: 1}
			if isInside(i.name) {
				c.inside = 1
			}
			if slices.Contains(routed, ip) {
				c.routed, c.inside = 0, 0
			}
			candidates = append(candidates, c)
		}
	}
	slices.SortStableFunc(candidates, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.inside, b.inside), cmp.Compare(a.class, b.class), cmp.Compare(a.routed, b.routed))
	})
	var ips []netip.Addr
	for _, c := range candidates {
		if !slices.Contains(ips, c.ip) {
			ips = append(ips, c.ip)
		}
	}
	return ips
}

// isInside tells by its name whether an interface leads to containers or machines inside this one. Its address is
// private, and the same on every machine.
func isInside(name string) bool {
	for _, prefix := range []string{"docker", "br-", "veth", "virbr", "cni", "flannel", "cali", "podman", "lxcbr", "lxdbr", "kube-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

func interfaces() ([]iface, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list the network interfaces: %w", err)
	}
	var ifaces []iface
	for _, i := range list {
		addrs, err := i.Addrs()
		if err != nil {
			continue // It went away meanwhile.
		}
		f := iface{name: i.Name, up: i.Flags&net.FlagUp != 0}
		for _, a := range addrs {
			if p, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(p.IP); ok {
					f.addrs = append(f.addrs, ip.Unmap())
				}
			}
		}
		ifaces = append(ifaces, f)
	}
	return ifaces, nil
}

// routedAddrs gives the addresses that packets to the internet would leave from. Connecting a UDP socket asks the
// routing table and sends nothing; the addresses are those of RFC 5737 and RFC 3849, which belong to nobody.
func routedAddrs() []netip.Addr {
	var ips []netip.Addr
	d := net.Dialer{Timeout: time.Second}
	for network, far := range map[string]string{"udp4": "198.51.100.1:9", "udp6": "[2001:db8::1]:9"} {
		conn, err := d.DialContext(context.Background(), network, far)
		if err != nil {
			continue // No default route for this family.
		}
		if a, ok := conn.LocalAddr().(*net.UDPAddr); ok {
			ips = append(ips, a.AddrPort().Addr().Unmap())
		}
		_ = conn.Close() // Nothing was sent.
	}
	return ips
}

// warnInClear says so if gossip without a key crosses networks that others share.
func warnInClear(advertise netip.AddrPort, keyed bool, logger *slog.Logger) {
	ip := advertise.Addr()
	if keyed || !ip.IsGlobalUnicast() || ip.IsPrivate() || carrierNAT.Contains(ip) {
		return
	}
	logger.Warn("the mesh is open to everybody who reaches this public address: there is no cluster key; make one with `tocsin cluster keygen` and set cluster.key_file",
		"address", advertise.String())
}
