package e2e

import ("testing"; "time")

func TestDevFreeze(t *testing.T) {
	t.Parallel()
	c := newHealCluster(t)
	c.freezes(time.Now())
	c.nothingWasAbsent()
}
