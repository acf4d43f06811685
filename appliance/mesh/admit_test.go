package mesh

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

func TestAdmit(t *testing.T) {
	t.Parallel()
	card := func(cluster string) []byte {
		b, err := encodeCard(Card{Cluster: cluster, Zone: "z"})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	plain, keyed := prepared(t), prepared(t, withKeys(key(1)))
	for name, c := range map[string]struct {
		change         func(*memberlist.Node)
		without, withK string // The reasons, "" if it is let in.
	}{
		"a replica": {func(*memberlist.Node) {}, "", ""},
		"one of a later version": {func(n *memberlist.Node) {
			n.PMax, n.DMax = 9, 3
			n.Meta = append(n.Meta[:len(n.Meta)-1], `,"later":{"x":[1]}}`...)
		}, "", ""},
		"a stock Alertmanager":    {func(n *memberlist.Node) { n.Meta = nil }, "", reasonMember},
		"of another cluster":      {func(n *memberlist.Node) { n.Meta = card("staging") }, reasonCluster, reasonCluster},
		"our name, other cluster": {func(n *memberlist.Node) { n.Name, n.Meta = "a", card("staging") }, reasonCluster, reasonCluster},
		"a card that is none":     {func(n *memberlist.Node) { n.Meta = []byte("x") }, reasonMalformed, reasonMalformed},
		"without a name":          {func(n *memberlist.Node) { n.Name = "" }, reasonMember, reasonMember},
		"a long name":             {func(n *memberlist.Node) { n.Name = strings.Repeat("x", 254) }, reasonMember, reasonMember},
		"a name with a line end":  {func(n *memberlist.Node) { n.Name = "x\ny" }, reasonMember, reasonMember},
		"a name that is no text":  {func(n *memberlist.Node) { n.Name = "\xff" }, reasonMember, reasonMember},
		"without an address":      {func(n *memberlist.Node) { n.Addr = nil }, reasonMember, reasonMember},
		"to everybody":            {func(n *memberlist.Node) { n.Addr = net.IPv4(224, 0, 0, 1) }, reasonMember, reasonMember},
		"to nobody":               {func(n *memberlist.Node) { n.Addr = net.IPv6zero }, reasonMember, reasonMember},
		"without a port":          {func(n *memberlist.Node) { n.Port = 0 }, reasonMember, reasonMember},
		"of the future only":      {func(n *memberlist.Node) { n.PMin, n.PMax, n.PCur = 6, 9, 9 }, reasonVersion, reasonVersion},
		"of the past only":        {func(n *memberlist.Node) { n.PMin, n.PMax, n.PCur = 1, 1, 1 }, reasonVersion, reasonVersion},
		"with another delegate":   {func(n *memberlist.Node) { n.DMin, n.DMax, n.DCur = 200, 255, 200 }, reasonVersion, reasonVersion},
	} {
		for _, x := range []*trial{plain, keyed} {
			want := c.without
			if x.keyed {
				want = c.withK
			}
			n := &memberlist.Node{Name: "x", Addr: net.IPv4(10, 0, 0, 1), Port: 9094, Meta: card("prod"), PMin: 1, PMax: 5, PCur: 2}
			c.change(n)
			got := ""
			if r := x.admit(n); r != nil {
				got = r.reason
			}
			if got != want {
				t.Errorf("%s (keyed %v): refused for %q, want %q", name, x.keyed, got, want)
			}
			before := x.refused(want)
			if err := (delegate{x.Mesh}).NotifyAlive(n); (err != nil) != (want != "") {
				t.Errorf("%s (keyed %v): %v", name, x.keyed, err)
			}
			if want != "" && x.refused(want) != before+1 {
				t.Errorf("%s (keyed %v): not counted for %s", name, x.keyed, want)
			}
		}
	}
}

// TestIPv6 forms a mesh on addresses with colons.
func TestIPv6(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("there is no IPv6 here: %v", err)
	}
	l.Close()
	a := started(t, listening("[::1]:0"), withKeys(key(1)))
	b := started(t, named("b"), listening("[::1]:0"), withKeys(key(1)), withPeers(a.address()))
	whole(t, 10*time.Second, "a b", a, b)
	if !strings.HasPrefix(a.address(), "[::1]:") || a.Members()[1].Address != b.address() {
		t.Errorf("addresses %q and %q", a.address(), a.Members()[1].Address)
	}
}
