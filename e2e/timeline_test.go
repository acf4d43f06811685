package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// timeline is a test that reads as what happens when: events at offsets from the start, and expectations in windows.
// Events run one after the other on the test's own goroutine, so that they may use t; checks run beside them and
// only return errors. Where an expectation is not met, the test ends at once and tells all that happened, in order.
type timeline struct {
	t       *testing.T
	began   time.Time
	steps   []func(context.Context) error
	events  chan event
	sources []func() []happening

	mu   sync.Mutex
	told []happening
}

// shared is what one step leaves for another: they are on different goroutines.
type shared[T any] struct {
	mu sync.Mutex
	v  T
}

func (s *shared[T]) set(v T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.v = v
}

func (s *shared[T]) get() T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.v
}

type happening struct {
	at   time.Time
	what string
}

type event struct {
	what string
	due  time.Time
	do   func()
	done chan struct{}
}

const timelinePoll = 50 * time.Millisecond

// newTimeline makes an empty one. The receivers' notifications become part of what it tells.
func newTimeline(t *testing.T, receivers ...*receiver) *timeline {
	t.Helper()
	tl := &timeline{t: t, began: time.Now(), events: make(chan event)}
	for _, r := range receivers {
		tl.sources = append(tl.sources, r.happenings)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the timeline:\n%s", tl.story())
		}
	})
	return tl
}

// note adds a line to what is told if the test fails.
func (tl *timeline) note(format string, args ...any) {
	tl.mu.Lock()
	defer tl.mu.Unlock()
	tl.told = append(tl.told, happening{time.Now(), fmt.Sprintf(format, args...)})
}

// figure is a note that is also shown when the test passes.
func (tl *timeline) figure(what string, d time.Duration) {
	tl.t.Helper()
	tl.note("figure: %s: %s", what, d.Round(time.Millisecond))
	tl.t.Logf("%s: %s", what, d.Round(time.Millisecond))
}

// at does something at an offset.
func (tl *timeline) at(offset time.Duration, what string, do func()) {
	tl.steps = append(tl.steps, func(ctx context.Context) error {
		if !tl.reach(ctx, offset) {
			return nil
		}
		tl.do(ctx, what, do)
		return nil
	})
}

// when does something as soon as the condition holds, which has to be in the window.
func (tl *timeline) when(from, to time.Duration, what string, condition func() error, do func()) {
	tl.steps = append(tl.steps, func(ctx context.Context) error {
		met, err := tl.met(ctx, from, to, what, condition)
		if met {
			tl.do(ctx, what, do)
		}
		return err
	})
}

// between expects that the check is content at some moment of the window.
func (tl *timeline) between(from, to time.Duration, what string, check func() error) {
	tl.steps = append(tl.steps, func(ctx context.Context) error {
		met, err := tl.met(ctx, from, to, what, check)
		if met {
			tl.note("as expected: %s", what)
		}
		return err
	})
}

// always expects that the check is content at every moment of the window.
func (tl *timeline) always(from, to time.Duration, what string, check func() error) {
	tl.steps = append(tl.steps, func(ctx context.Context) error {
		for at := from; tl.reach(ctx, at); at = max(at+timelinePoll, time.Since(tl.began)) {
			if err := check(); err != nil {
				return fmt.Errorf("always between %s and %s: %s: at %.1f s: %w",
					from, to, what, time.Since(tl.began).Seconds(), err)
			}
			if at >= to {
				tl.note("held: %s", what)
				return nil
			}
		}
		return nil
	})
}

// run plays it all and fails the test at the first expectation that is not met.
func (tl *timeline) run() {
	tl.t.Helper()
	if err := tl.play(); err != nil {
		tl.note("FAILED: %v", err)
		tl.t.Fatal(err)
	}
}

func (tl *timeline) play() error {
	ctx, cancel := context.WithCancel(context.Background())
	tl.began = time.Now()
	results := make(chan error, len(tl.steps))
	var wg sync.WaitGroup
	// Also where an event ends the test.
	defer wg.Wait()
	defer cancel()
	for _, step := range tl.steps {
		wg.Go(func() { results <- step(ctx) })
	}
	for range tl.steps {
		for waiting := true; waiting; {
			select {
			case err := <-results:
				if err != nil {
					return err
				}
				waiting = false
			case e := <-tl.events:
				if late := time.Since(e.due); late > 200*time.Millisecond {
					tl.note("do (late by %s): %s", late.Round(time.Millisecond), e.what)
				} else {
					tl.note("do: %s", e.what)
				}
				e.do()
				close(e.done)
			}
		}
	}
	return nil
}

func (tl *timeline) do(ctx context.Context, what string, do func()) {
	e := event{what, time.Now(), do, make(chan struct{})}
	select {
	case tl.events <- e:
		select {
		case <-e.done:
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
}

// reach waits for the offset, and says whether the timeline still goes on then.
func (tl *timeline) reach(ctx context.Context, offset time.Duration) bool {
	timer := time.NewTimer(time.Until(tl.began.Add(offset)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (tl *timeline) met(ctx context.Context, from, to time.Duration, what string, check func() error) (bool, error) {
	for at := from; tl.reach(ctx, at); at = time.Since(tl.began) + timelinePoll {
		err := check()
		if err == nil {
			return true, nil
		}
		if time.Since(tl.began) > to {
			return false, fmt.Errorf("between %s and %s: %s: %w", from, to, what, err)
		}
	}
	return false, nil
}

const mostTold = 400 // lines

// story is everything that happened, in order.
func (tl *timeline) story() string {
	tl.mu.Lock()
	all := slices.Clone(tl.told)
	tl.mu.Unlock()
	for _, source := range tl.sources {
		all = append(all, source()...)
	}
	slices.SortStableFunc(all, func(a, b happening) int { return a.at.Compare(b.at) })
	var b strings.Builder
	for i, h := range all {
		if i == mostTold {
			fmt.Fprintf(&b, "          and %d more\n", len(all)-i)
			break
		}
		fmt.Fprintf(&b, "%8.3f  %s\n", h.at.Sub(tl.began).Seconds(), h.what)
	}
	return b.String()
}

// TestTimeline holds the timelines themselves: each kind of expectation passes and fails where it should.
func TestTimeline(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for _, c := range []struct {
		name string
		plan func(tl *timeline, set func(), isSet func() error)
		want string // in the failure, if there is one
	}{
		{"in time", func(tl *timeline, set func(), isSet func() error) {
			tl.at(200*ms, "set it", set)
			tl.between(0, 500*ms, "it is set", isSet)
		}, ""},
		{"too late", func(tl *timeline, set func(), isSet func() error) {
			tl.at(600*ms, "set it", set)
			tl.between(0, 300*ms, "it is set", isSet)
		}, "between 0s and 300ms: it is set: not set"},
		{"too early is not asked", func(tl *timeline, set func(), isSet func() error) {
			tl.at(100*ms, "set it", set)
			tl.between(300*ms, 400*ms, "it is set", isSet)
		}, ""},
		{"always", func(tl *timeline, set func(), isSet func() error) {
			tl.at(100*ms, "set it", set)
			tl.always(300*ms, 500*ms, "it is set", isSet)
		}, ""},
		{"not always", func(tl *timeline, set func(), isSet func() error) {
			tl.at(300*ms, "set it", set)
			tl.always(100*ms, 500*ms, "it is set", isSet)
		}, "always between 100ms and 500ms: it is set: at 0.1 s: not set"},
		{"when", func(tl *timeline, set func(), isSet func() error) {
			began := time.Now()
			tl.when(0, 500*ms, "a time comes", func() error {
				if time.Since(began) < 100*ms {
					return errors.New("too soon")
				}
				return nil
			}, set)
			tl.between(100*ms, 500*ms, "it is set", isSet)
		}, ""},
		{"never when", func(tl *timeline, set func(), _ func() error) {
			tl.when(0, 200*ms, "a time comes", func() error { return errors.New("too soon") }, set)
		}, "between 0s and 200ms: a time comes: too soon"},
	} {
		tl := &timeline{t: t, events: make(chan event)}
		var is atomic.Bool
		c.plan(tl, func() { is.Store(true) }, func() error {
			if !is.Load() {
				return errors.New("not set")
			}
			return nil
		})
		switch err := tl.play(); {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v\n%s", c.name, err, tl.story())
		case c.want != "" && (err == nil || err.Error() != c.want):
			t.Errorf("%s: fails with %q, not %q\n%s", c.name, err, c.want, tl.story())
		}
	}
}
