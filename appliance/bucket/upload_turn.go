package bucket

import (
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
)

// window is what the uploader knows of one. The status is guarded by uploader.mtx; the rest is that of the round.
type window struct {
	begin, end int64
	status     windowStatus
	bytes      atomic.Int64 // Of the upload that is under way.

	// due is from when on the steps are counted, first from when on healing is waited for.
	due    time.Time
	first  time.Time
	whole  bool
	staged *staged
	// made is when the newest of its local blocks was made, as far as this process can know.
	made time.Time
	// After failures it is tried again at retry.
	failures int
	retry    time.Time
}

// Settled tells whether local data of [mint, maxt), in Unix milliseconds, need not be kept for the bucket's sake: they can be read
// from there, or the bucket would not keep them any more.
func (b *Bucket) Settled(mint, maxt int64) bool {
	length := b.o.Window.Milliseconds()
	v := b.reader.loaded.Load()
	for start := floor(mint, length); start < maxt; start += length {
		if (v == nil || !v.covered[start]) && !b.uploader.needless(start) {
			return false
		}
	}
	return true
}

// needless tells whether a window is not uploaded at all.
func (u *uploader) needless(begin int64) bool {
	keep, end := u.b.retention.Load(), begin+u.b.o.Window.Milliseconds()
	over := func(d model.Duration) bool { return d > 0 && end <= u.now().Add(-time.Duration(d)).UnixMilli() }
	if over(keep.Raw) {
		if over(keep.FiveMinutes) && over(keep.OneHour) {
			return true
		}
		// What is kept longer is made of it, unless that was done.
		if v, err := u.b.catalogue.last(); err == nil && v.sampled[begin] {
			return true
		}
	}
	u.mtx.Lock()
	defer u.mtx.Unlock()
	_, ok := u.empty[begin]
	return ok
}

func floor(t, length int64) int64 {
	r := t % length
	if r < 0 {
		r += length
	}
	return t - r
}

// window is that which begins at begin, due from then on if it is new.
func (u *uploader) window(begin int64, due time.Time) *window {
	u.mtx.Lock()
	defer u.mtx.Unlock()
	w := u.windows[begin]
	if w == nil {
		w = &window{begin: begin, end: begin + u.b.o.Window.Milliseconds(), due: due, first: due}
		w.status = windowStatus{Begin: w.begin, End: w.end, Since: u.now()}
		u.windows[begin] = w
	}
	return w
}

// finished are the windows that are over and that there are data of, oldest first.
func (u *uploader) finished() ([]*window, error) {
	written, err := u.b.o.Store.Written()
	if err != nil {
		return nil, fmt.Errorf("look up to when data are in blocks: %w", err)
	}
	blocks, err := u.b.o.Store.Blocks()
	if err != nil {
		return nil, fmt.Errorf("list local blocks: %w", err)
	}
	length := u.b.o.Window.Milliseconds()
	made := map[int64]time.Time{}
	for _, b := range blocks {
		at := u.began
		if t := ulid.Time(b.Meta.ULID.Time()); t.After(at) {
			at = t
		}
		for begin := floor(b.Meta.MinTime, length); begin < b.Meta.MaxTime && begin+length <= written; begin += length {
			u.reconsider(begin, at)
			if !u.needless(begin) && at.After(made[begin]) {
				made[begin] = at
			}
		}
	}
	for begin, at := range made {
		due := at
		if now := u.now(); due.After(now) {
			due = now // A clock was set.
		}
		u.window(begin, due).made = at
	}
	u.mtx.Lock()
	defer u.mtx.Unlock()
	var list []*window
	for begin, w := range u.windows {
		if _, ok := made[begin]; !ok && w.staged == nil {
			delete(u.windows, begin)
			continue
		}
		list = append(list, w)
	}
	slices.SortFunc(list, func(a, b *window) int { return int(min(1, max(-1, a.begin-b.begin))) })
	return list, nil
}

// reconsider forgets that a window is empty when a block of it was made since: it may have been healed.
func (u *uploader) reconsider(begin int64, made time.Time) {
	u.mtx.Lock()
	defer u.mtx.Unlock()
	if seen, ok := u.empty[begin]; ok && made.After(seen) {
		delete(u.empty, begin)
	}
}

// due tells of each window how it is as of that look, and counts those whose turn it is.
func (u *uploader) due(v *view, list []*window) int {
	n, backlog := 0, 0
	for _, w := range list {
		whole := v.covered[w.begin]
		u.mtx.Lock()
		was := w.status.State
		u.mtx.Unlock()
		if whole {
			if was != uploadCovered {
				if was == waitingForTurn || was == waitingForHealing {
					u.skipped.Inc()
				}
				u.say(w, uploadCovered, nil)
				w.failures = 0
			}
		} else {
			if was == uploadCovered {
				w.due = u.now() // It is gone from the bucket, or broken there.
				w.first = w.due
			}
			backlog++
			healed := u.b.whole(w.begin, w.end)
			if healed && !w.whole && was != "" {
				w.due = u.now()
			}
			w.whole = healed
			switch {
			case was == uploadFailed && (w.staged != nil || w.failures > 0):
			case !healed:
				u.say(w, waitingForHealing, nil)
			default:
				u.say(w, waitingForTurn, nil)
			}
		}
		if u.turn(v, w) {
			n++
		}
	}
	u.backlog.Set(float64(backlog))
	return n
}

// turn tells whether there is something to do for a window now.
func (u *uploader) turn(v *view, w *window) bool {
	now := u.now()
	whole, there := v.covered[w.begin]
	switch {
	case now.Before(w.retry):
		return false
	case w.staged != nil:
		return true
	case whole, there && !w.whole:
		return false
	}
	due := w.due
	if v.since.After(due) {
		// The bucket was away, and all windows of that time are due at once.
		due = v.since
	}
	place := rank("upload/"+strconv.FormatInt(w.begin, 10), u.b.o.Replica, u.b.o.Replicas())
	if healed := w.first.Add(healWindows * u.b.o.Window); !w.whole && healed.After(due) {
		// A bucket that fails now and then does not make it begin again.
		due = healed
	}
	return !now.Before(due.Add(time.Duration(place) * u.b.o.Window / uploadSteps))
}

// say changes the state of a window.
func (u *uploader) say(w *window, state uploadState, change func(*windowStatus)) {
	u.mtx.Lock()
	defer u.mtx.Unlock()
	if w.status.State != state {
		w.status = windowStatus{Begin: w.begin, End: w.end, State: state, Since: u.now()}
	}
	if change != nil {
		change(&w.status)
	}
}
