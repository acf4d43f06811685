package scrape

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestTargetsAreRationed holds that what discovery finds passes at once while the process starts, and later no more often
// than in Prometheus, with the newest winning.
func TestTargetsAreRationed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from, to := make(chan targetSets), make(chan targetSets)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			ration(ctx, from, func(sets targetSets) { to <- sets }, 5*time.Second)
		}()
		begin := time.Now()
		sets := func(name string) targetSets { return targetSets{name: nil} }
		pass := func(name string, after time.Duration) {
			t.Helper()
			if _, ok := (<-to)[name]; !ok {
				t.Errorf("want %s", name)
			}
			if d := time.Since(begin); d != after {
				t.Errorf("%s passed after %s, want %s", name, d, after)
			}
		}
		from <- sets("first")
		pass("first", 0)
		from <- sets("second")
		pass("second", 0)
		<-time.After(starting + time.Second)
		from <- sets("third")
		pass("third", 31*time.Second)
		from <- sets("fourth")
		<-time.After(time.Second)
		from <- sets("fifth")
		pass("fifth", 36*time.Second)
		cancel()
		<-done
	})
}
