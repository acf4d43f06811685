package mesh

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// TestQuickRestart has a replica crash and come back at its address before anybody misses it.
func TestQuickRestart(t *testing.T) {
	t.Parallel()
	for name, keying := range keyings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// On a machine that stands still for seconds the others may miss it nevertheless: that shows nothing, either way.
			for range 5 {
				if quickRestart(t, keying) {
					return
				}
			}
			t.Error("it was found dead before it was back, each time")
		})
	}
}

// quickRestart is false if somebody missed the replica while it was away.
func quickRestart(t *testing.T, keying setting) bool {
	a := prepared(t, named("a"), keying)
	var changes atomic.Int64
	a.OnChange(func() { changes.Add(1) })
	a.start()
	b := started(t, named("b"), keying, withPeers(a.address()))
	c := started(t, named("c"), keying, withPeers(a.address()))
	whole(t, 10*time.Second, "a b c", a, b, c)
	until(t, 10*time.Second, "both are told", func() bool {
		return strings.Count(a.log.String(), "a member joined the mesh") == 2 && changes.Load() > 0
	})
	first, _ := a.table.get("b")
	a.SetCompleteness(0.5)
	b.SetCompleteness(0.5)
	until(t, 10*time.Second, "a knows the new card", func() bool {
		m, _ := a.table.get("b")
		return m.Card.Completeness == 0.5
	})
	before := changes.Load()

	b.kill()
	again := started(t, named("b"), keying, listening(b.address()), withPeers(a.address()))
	missed := func(x *trial) bool { return x.value("alertmanager_cluster_peers_left_total") != 0 }
	for _, x := range []*trial{a, c} {
		until(t, 10*time.Second, "the restart is told to "+x.Name(), func() bool {
			return missed(x) || strings.Contains(x.log.String(), "a member has restarted")
		})
		if missed(x) {
			return false
		}
		if n := x.value("tocsin_mesh_member_restarts_total"); n != 1 {
			t.Errorf("%s: tocsin_mesh_member_restarts_total = %v", x.Name(), n)
		}
	}
	until(t, 10*time.Second, "the callback is called", func() bool { return changes.Load() > before })
	second, _ := a.table.get("b")
	if !second.Since.After(first.Since) || !second.Card.Started.After(first.Card.Started) {
		t.Errorf("since %s, started %s; before %s, %s", second.Since, second.Card.Started, first.Since, first.Card.Started)
	}
	whole(t, 10*time.Second, "a b c", a, again, c)
	return true
}

// TestRestartIsTold tells a new process from a new card.
func TestRestartIsTold(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	node := func(started time.Time, completeness float64) *memberlist.Node {
		meta, err := encodeCard(Card{Cluster: "prod", Started: started, Completeness: completeness})
		if err != nil {
			t.Fatal(err)
		}
		return &memberlist.Node{Name: "b", Addr: []byte{10, 0, 0, 1}, Port: 9094, Meta: meta}
	}
	stock := &memberlist.Node{Name: "b", Addr: []byte{10, 0, 0, 1}, Port: 9094}
	for name, c := range map[string]struct {
		old, next *memberlist.Node
		want      changeKind
		fresh     bool
	}{
		"completeness":            {node(start, 0), node(start, 1), updated, false},
		"later":                   {node(start, 0), node(start.Add(time.Second), 0), restarted, true},
		"earlier, by a bad clock": {node(start, 0), node(start.Add(-time.Hour), 0), restarted, true},
		"does not say":            {node(start, 0), node(time.Time{}, 0), updated, false},
		"did not say":             {stock, node(start, 0), updated, false},
	} {
		t.Run(name, func(t *testing.T) {
			x := newTable(Member{Name: "a"})
			x.alive(c.old, start)
			x.ponged("b", time.Millisecond, start.Add(time.Minute), start)
			x.take()
			x.alive(c.next, start.Add(time.Minute))
			got := x.take()
			if len(got) != 1 || got[0].kind != c.want {
				t.Fatalf("told %v", got)
			}
			m := got[0].member
			if fresh := m.Since.Equal(start.Add(time.Minute)) && m.RTT == 0 && m.ClockSkew == 0; fresh != c.fresh {
				t.Errorf("since %s, round trip %s, skew %s", m.Since, m.RTT, m.ClockSkew)
			}
			if i := slices.IndexFunc(x.list(start), func(m Member) bool { return m.Name == "b" }); i < 0 {
				t.Error("it is gone")
			}
		})
	}
}
