package mesh

import (
	"context"
	"testing"
	"time"
)

// meeting says that somebody looks for peers beside the mesh.
func meeting(o *Options) { o.Config.Cluster.Rendezvous = "bucket" }

func TestFoundPeersAreJoined(t *testing.T) {
	t.Parallel()
	a := started(t, named("a"), withKeys(key(1)), meeting)
	b := started(t, named("b"), withKeys(key(1)), meeting)
	if a.Settled() {
		t.Error("a took itself for alone before anybody had looked for peers")
	}
	a.SetFound(nil)
	// The address of one that is gone does not hinder.
	b.SetFound([]string{"127.0.0.1:1", b.Address(), a.Address()})
	whole(t, 10*time.Second, "a b", a, b)
	for _, x := range []*trial{a, b} {
		ctx, cancel := context.WithTimeout(t.Context(), slack*10*time.Second)
		if err := x.WaitReady(ctx); err != nil {
			t.Errorf("%s: %v", x.Name(), err)
		}
		cancel()
	}
	// What is not found any more is not asked any more, but a member stays.
	b.SetFound(nil)
	until(t, 10*time.Second, "an address that was taken back is not asked any more", func() bool {
		b.join.mu.Lock()
		defer b.join.mu.Unlock()
		return b.join.targets["127.0.0.1:1"] == nil
	})
	if got := b.names(); got != "a b" {
		t.Errorf("b has the members %q", got)
	}
}

func TestNobodyWaitsForARendezvousThatIsAway(t *testing.T) {
	t.Parallel()
	a := started(t, named("a"), withKeys(key(1)), meeting)
	ctx, cancel := context.WithTimeout(t.Context(), slack*(settleTimeout+5*time.Second))
	defer cancel()
	if err := a.WaitReady(ctx); err != nil {
		t.Error(err)
	}
}
