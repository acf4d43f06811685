package mesh

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func ips(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestRankAdvertise(t *testing.T) {
	lo := iface{name: "lo", up: true, addrs: ips("127.0.0.1", "::1")}
	eth := func(name string, addrs ...string) iface { return iface{name: name, up: true, addrs: ips(addrs...)} }
	for name, c := range map[string]struct {
		ifaces []iface
		routed []netip.Addr
		want   []netip.Addr
	}{
		"nothing":               {nil, nil, nil},
		"loopback only":         {[]iface{lo}, nil, nil},
		"link-local only":       {[]iface{lo, eth("eth0", "169.254.1.1", "fe80::1")}, nil, nil},
		"interface down":        {[]iface{{name: "eth0", addrs: ips("10.0.0.1")}}, nil, nil},
		"private":               {[]iface{lo, eth("eth0", "10.0.0.1", "fe80::1")}, ips("10.0.0.1"), ips("10.0.0.1")},
		"carrier NAT":           {[]iface{eth("eth0", "8.8.8.8"), eth("tail0", "100.64.0.1")}, ips("8.8.8.8"), ips("100.64.0.1", "8.8.8.8")},
		"just outside of it":    {[]iface{eth("eth0", "100.128.0.1", "2001:db8::1")}, nil, ips("100.128.0.1", "2001:db8::1")},
		"private before public": {[]iface{eth("eth0", "203.0.113.1"), eth("eth1", "192.168.0.1")}, ips("203.0.113.1"), ips("192.168.0.1", "203.0.113.1")},
		"public only":           {[]iface{lo, eth("eth0", "203.0.113.1", "2001:db8::1")}, nil, ips("203.0.113.1", "2001:db8::1")},
		"IPv6 only":             {[]iface{lo, eth("eth0", "fe80::1", "2001:db8::1")}, ips("2001:db8::1"), ips("2001:db8::1")},
		"unique local":          {[]iface{eth("eth0", "fd00::1", "2001:db8::1")}, ips("2001:db8::1"), ips("2001:db8::1", "fd00::1")},
		"default route decides": {[]iface{eth("eth0", "10.0.0.1"), eth("eth1", "10.1.0.1")}, ips("10.1.0.1"), ips("10.1.0.1", "10.0.0.1")},
		"first without a route": {[]iface{eth("eth0", "10.0.0.1"), eth("eth1", "10.1.0.1")}, nil, ips("10.0.0.1", "10.1.0.1")},
		"bridge to containers":  {[]iface{eth("docker0", "172.17.0.1"), eth("eth0", "203.0.113.1")}, ips("203.0.113.1"), ips("203.0.113.1", "172.17.0.1")},
		"bridge and IPv6":       {[]iface{eth("br-0123", "172.18.0.1"), eth("eth0", "2001:db8::1")}, ips("2001:db8::1"), ips("2001:db8::1", "172.18.0.1")},
		"bridge is the network": {[]iface{eth("br-lan", "10.0.0.1"), eth("eth1", "203.0.113.1")}, ips("10.0.0.1"), ips("10.0.0.1", "203.0.113.1")},
		"one address twice":     {[]iface{eth("eth0", "10.0.0.1"), eth("eth0:1", "10.0.0.1")}, nil, ips("10.0.0.1")},
		"mapped":                {[]iface{eth("eth0", "::ffff:10.0.0.1")}, ips("10.0.0.1"), ips("10.0.0.1")},
		"multicast":             {[]iface{eth("eth0", "224.0.0.1", "ff02::1")}, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, rankAdvertise(c.ifaces, c.routed))
		})
	}
}

func TestChooseAdvertise(t *testing.T) {
	for name, c := range map[string]struct {
		configured, bind string
		want             string // or "error: ..."
		says             string // in the log; "" for nothing
	}{
		"configured":               {"192.0.2.1", "0.0.0.0:9094", "192.0.2.1:7000", ""},
		"configured with port":     {"192.0.2.1:1", "10.0.0.1:9094", "192.0.2.1:1", ""},
		"configured IPv6":          {"[2001:db8::1]:1", "", "[2001:db8::1]:1", ""},
		"configured bare IPv6":     {"2001:db8::1", "", "[2001:db8::1]:7000", ""},
		"configured by name":       {"localhost", "0.0.0.0", "127.0.0.1:7000", ""},
		"configured nonsense":      {"a b", "", "error: cluster.advertise_address", ""},
		"configured unspecified":   {"::", "", "error: cluster.advertise_address", ""},
		"configured, not found":    {"no-such-host.invalid", "", "error: resolve cluster.advertise_address", ""},
		"bound to an address":      {"", "10.0.0.1:9094", "10.0.0.1:7000", ""},
		"bound to a host":          {"", "10.0.0.1", "10.0.0.1:7000", ""},
		"bound to IPv6":            {"", "[2001:db8::1]:9094", "[2001:db8::1]:7000", ""},
		"bound to loopback":        {"", "127.0.0.1:9094", "127.0.0.1:7000", "only replicas on this machine"},
		"bound to the name of it":  {"", "localhost:9094", "127.0.0.1:7000", "only replicas on this machine"},
		"bound to link-local":      {"", "169.254.0.1:9094", "169.254.0.1:7000", "cluster.advertise_address"},
		"bound to an unknown name": {"", "no-such-host.invalid:9094", "error: choose the address", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var log logged
			got, err := chooseAdvertise(c.configured, c.bind, 7000, log.logger())
			if problem, bad := cutError(c.want); bad {
				require.ErrorContains(t, err, problem)
				return
			}
			require.NoError(t, err)
			if c.want == "127.0.0.1:7000" && got.Addr().IsLoopback() {
				c.want = got.String() // A machine's localhost may be ::1.
			}
			require.Equal(t, c.want, got.String())
			if c.says == "" {
				require.Empty(t, log.String())
				return
			}
			require.Contains(t, log.String(), c.says)
		})
	}
}

func cutError(want string) (string, bool) {
	const prefix = "error: "
	if len(want) > len(prefix) && want[:len(prefix)] == prefix {
		return want[len(prefix):], true
	}
	return "", false
}

// TestChooseAdvertiseOnThisMachine holds the wrapper to what the ranking says, whatever this machine has.
func TestChooseAdvertiseOnThisMachine(t *testing.T) {
	list, err := interfaces()
	require.NoError(t, err)
	ranked := rankAdvertise(list, routedAddrs())
	for _, bind := range []string{"", ":9094", "0.0.0.0:9094", "[::]:9094", "::"} {
		var log logged
		got, err := chooseAdvertise("", bind, 7000, log.logger())
		if len(ranked) == 0 {
			require.ErrorIs(t, err, errNoAdvertise)
			require.ErrorContains(t, err, "cluster.advertise_address")
			continue
		}
		require.NoError(t, err)
		require.Equal(t, netip.AddrPortFrom(ranked[0], 7000), got)
		require.Contains(t, log.String(), ranked[0].String())
		if len(ranked) > 1 {
			require.Contains(t, log.String(), "cluster.advertise_address")
		}
	}
}

func TestBestOf(t *testing.T) {
	for name, c := range map[string]struct{ given, want []netip.Addr }{
		"Debian's hosts file": {ips("127.0.1.1", "10.0.0.1"), ips("10.0.0.1")},
		"loopback only":       {ips("127.0.1.1"), ips("127.0.1.1")},
		"both families":       {ips("2001:db8::1", "203.0.113.1"), ips("203.0.113.1")},
		"unspecified":         {ips("0.0.0.0", "::"), nil},
		"none":                {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := bestOf("h", c.given)
			if c.want == nil {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want[0], got)
		})
	}
}

func TestWarnInClear(t *testing.T) {
	for address, public := range map[string]bool{
		"203.0.113.1:1": true, "[2001:db8::1]:1": true, "10.0.0.1:1": false, "100.64.1.1:1": false, "[fd00::1]:1": false, "127.0.0.1:1": false,
	} {
		for _, keyed := range []bool{true, false} {
			var log logged
			warnInClear(netip.MustParseAddrPort(address), keyed, log.logger())
			if public && !keyed {
				require.Contains(t, log.String(), "WARN")
				require.Contains(t, log.String(), address)
				continue
			}
			require.Empty(t, log.String(), "%s %t", address, keyed)
		}
	}
}
