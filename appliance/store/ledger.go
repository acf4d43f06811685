package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
)

const (
	beatEvery = time.Second
	// frozenAfter is how late a beat has to be to show that the process did not get to work.
	frozenAfter = 3 * time.Second
	// tidyEvery is how often old gaps are dropped and what was found and closed of targets and rules is logged.
	tidyEvery = 10 * time.Second

	minSettle, defaultSettle, maxSettle = time.Second, time.Minute, 5 * time.Minute
)

// LedgerOptions configures a Ledger. Dir is required.
type LedgerOptions struct {
	// Dir is where the ledger keeps its files. It is created when absent.
	Dir        string
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Retention is how long data are kept: 0 for no limit, which is also what nil means.
	Retention func() time.Duration
	// Settle is how long it takes until everything was scraped and evaluated once. Nil means a minute. What it answers
	// is taken as no less than a second and no more than five minutes.
	Settle func() time.Duration
}

// Ledger knows when this replica was at work, and what it missed. While it runs it writes a beat to its directory each
// second, so that the next life knows when this one ended, however it did.
//
// All its methods may be called at once by many.
type Ledger struct {
	opts    LedgerOptions
	logger  *slog.Logger
	metrics *ledgerMetrics
	// view is what queries see. It is nil when a gap has changed since it was made.
	view atomic.Pointer[view]

	mu sync.Mutex
	// gaps are never changed, only replaced, so that whoever has them needs no lock.
	gaps map[string]*Gap
	// alike are the gaps of the same kind and labels, by the hash of these.
	alike map[uint64][]string
	// closed are the closed gaps, in the order in which they were closed.
	closed []string
	// dropped are the last closed gaps that there was no room for, so that they are not found again at once.
	dropped map[uint64]Interval
	groups  map[string]evaluated
	// version counts the changes of what the file holds.
	version uint64
	// earlier is the last beat of the life before.
	earlier beat
	// beaten is the last beat, 0 unless it runs, for whoever asks before the next one.
	beaten atomic.Int64
	// begun and last are this life's begin and last beat, 0 before Begin; until is when the replica gap ends that lasts.
	begun, last, until int64
	tidied             int64
	news               map[newsKey]*tally
	lines              []line

	// saving is held while gaps are written.
	saving  sync.Mutex
	saved   uint64
	savedAt time.Time
	warned  time.Time
	// writeFile replaces a file; tests put a full disk in its place.
	writeFile func(dir, name string, b []byte) error
}

// evaluated is when a rule group was evaluated last, and how often it is to be, in milliseconds.
type evaluated struct{ at, every int64 }

// OpenLedger reads what the life before left in the directory. Files that cannot be read are set aside and do not keep
// it from opening: it fails only when there is no directory and none can be made.
func OpenLedger(o LedgerOptions) (*Ledger, error) {
	if o.Dir == "" {
		return nil, errors.New("ledger needs a directory")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("create the ledger's directory: %w", err)
	}
	l := &Ledger{
		opts:      o,
		logger:    o.Logger,
		gaps:      map[string]*Gap{},
		alike:     map[uint64][]string{},
		dropped:   map[uint64]Interval{},
		groups:    map[string]evaluated{},
		news:      map[newsKey]*tally{},
		writeFile: replaceFile,
	}
	l.metrics = newLedgerMetrics(o.Registerer, l)
	l.earlier = l.readAlive()
	gaps := l.readGaps()
	slices.SortStableFunc(gaps, func(a, b *Gap) int { return a.Closed.Compare(b.Closed) })
	for _, g := range gaps {
		l.restore(g)
	}
	l.saved = l.version
	return l, nil
}

// Begin says that scraping starts now. newest is the time of the newest sample in the TSDB, in Unix milliseconds, and
// empty that there is none. What was missed since the life before ended is a gap, and goes on until everything was
// scraped once. It is on disk when Begin returns, unless the disk does not take it.
func (l *Ledger) Begin(now time.Time, newest int64, empty bool) {
	l.mu.Lock()
	at := now.UnixMilli()
	settle := l.settle().Milliseconds()
	l.begun, l.last, l.until = at, at, at+settle

	if empty {
		// Whatever a life before had is not here any more.
		l.lasts([]Interval{{l.horizon(at), Lasts}}, CauseNew, now)
	} else {
		// The clock may have been set back: nothing ended later than now.
		newest, last := min(newest, at), min(l.earlier.at, at)
		if l.earlier.at == 0 {
			last = newest
		}
		// Targets were last scraped up to an interval before.
		missed := []Interval{{last - settle, Lasts}}
		if newest < last-settle {
			// Data from before the last beat are lost too, unless they were missing anyway.
			missed = append(l.outside([]Interval{{newest - settle, last}}, GapReplica), missed...)
		}
		l.lasts(missed, CauseDown, now)
	}
	l.tidy(now)
	l.unlock()
	l.save()
}

// Run beats until the context ends, and leaves a last beat. It comes after Begin.
func (l *Ledger) Run(ctx context.Context) error {
	l.mu.Lock()
	begun := l.begun
	l.mu.Unlock()
	if begun == 0 {
		return errors.New("ledger was not told that scraping begins")
	}
	// Writing has a goroutine of its own: a disk that is slow does not make a beat late.
	beats := make(chan struct{}, 1)
	var writer sync.WaitGroup
	writer.Go(func() { l.write(beats) })
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	defer l.beaten.Store(0)
	for {
		now := time.Now()
		l.beat(now)
		l.beaten.Store(now.UnixMilli())
		select {
		case beats <- struct{}{}:
		default: // It is still writing an earlier one and will take the newest then.
		}
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		l.beat(time.Now())
		close(beats)
		writer.Wait()
		l.mu.Lock()
		l.tell()
		l.unlock()
		return nil
	}
}

// beat notes that this replica is at work.
func (l *Ledger) beat(now time.Time) {
	l.mu.Lock()
	defer l.unlock()
	l.notice(now)
	if at := now.UnixMilli(); at-l.tidied >= tidyEvery.Milliseconds() || at < l.tidied {
		l.tidy(now)
		l.tell()
	}
}

// notice looks at the wall clock, which samples have their time from.
func (l *Ledger) notice(now time.Time) {
	at := now.UnixMilli()
	settle := l.settle().Milliseconds()
	prev := l.last
	l.last = at
	switch {
	case at-prev > frozenAfter.Milliseconds():
		l.until = at + settle
		l.lasts([]Interval{{prev - settle, Lasts}}, CauseFrozen, now)
	case at < prev:
		// The clock was set back. What is to end must not wait until it is there again.
		l.until = min(l.until, at+settle)
	}
	if at < l.until {
		return
	}
	for _, id := range l.alike[keyOf(GapReplica, labels.EmptyLabels())] {
		if g := l.gaps[id]; g.State == GapOpen && g.Lasting() {
			l.end(g, l.until, now)
		}
	}
}

// Evaluated says that a rule group was evaluated at a time, in Unix milliseconds, and is so every so many milliseconds.
// When it had to be in between and this replica was otherwise at work, that is a gap.
func (l *Ledger) Evaluated(group labels.Labels, at, every int64) {
	key := group.String()
	l.mu.Lock()
	defer l.unlock()
	last, ok := l.groups[key]
	l.groups[key] = evaluated{at, every}
	if !ok || l.begun == 0 || at-last.at <= every+every/2 {
		return
	}
	// After a freeze it may be that rules come before the beat that would have told.
	now := time.Now()
	l.notice(now)
	for _, i := range l.outside([]Interval{{last.at, at}}, GapRules) {
		if i.To-i.From > every+every/2 {
			l.add(Gap{Kind: GapRules, Labels: group, Interval: i, Cause: CauseEvaluation}, now)
		}
	}
}

func (l *Ledger) settle() time.Duration {
	if l.opts.Settle == nil {
		return defaultSettle
	}
	return min(max(l.opts.Settle(), minSettle), maxSettle)
}

func (l *Ledger) retention() time.Duration {
	if l.opts.Retention == nil {
		return 0
	}
	return l.opts.Retention()
}

// horizon is the time before which nothing is kept, in Unix milliseconds.
func (l *Ledger) horizon(now int64) int64 {
	keep := l.retention().Milliseconds()
	if keep <= 0 {
		return 0
	}
	return max(now-keep, 0)
}
