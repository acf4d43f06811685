package e2e

import ("testing"; "time")

func devKill(t *testing.T) {
	t.Parallel()
	c := newHealCluster(t)
	killed := time.Now()
	c.b().kill()
	eventually(t, time.Minute, "10 s", func() error { return after(killed.Add(10*time.Second)) })
	started := time.Now()
	c.b().start()
	eventually(t, healMost, "complete", all(c.b().knows("replica", killed), c.complete("b")))
	c.mended("b", killed, started, "a", "c")
	c.freezes(time.Now())
}
func TestDevKill1(t *testing.T) { devKill(t) }
func TestDevKill2(t *testing.T) { devKill(t) }
