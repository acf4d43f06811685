package store

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
)

const (
	maxClosedGaps = 1000
	// maxFills is how many fills one gap has, and maxMissing how many intervals.
	maxFills, maxMissing = 200, 1000
	// maxAlike is how many gaps of the same kind and labels are open: a target that comes and goes has more in one.
	maxAlike = 50
	// dropAfter is how long a closed gap is known that there was no room for.
	dropAfter = 6 * time.Hour
	// fewGaps is up to how many gaps each fill is on disk at once. With more, one write a second has to do.
	fewGaps = 256
	several = "several"
)

// errUnknownGap means that there is no gap with that ID.
var errUnknownGap = errors.New("gap is not known")

// Gaps are all gaps that are known, open and closed, those that began first first. They are the caller's own.
func (l *Ledger) Gaps() []Gap { return l.list(func(*Gap) bool { return true }) }

// Open are the gaps that are open, those that began first first. They are the caller's own.
func (l *Ledger) Open() []Gap { return l.list(func(g *Gap) bool { return g.State == GapOpen }) }

func (l *Ledger) list(want func(*Gap) bool) []Gap {
	var list []Gap
	for _, g := range l.current() {
		if want(g) {
			list = append(list, *g.copied())
		}
	}
	return list
}

// current are the gaps as they are now, in order. They must not be changed.
func (l *Ledger) current() []*Gap {
	l.mu.Lock()
	list := make([]*Gap, 0, len(l.gaps))
	for _, g := range l.gaps {
		list = append(list, g)
	}
	l.mu.Unlock()
	slices.SortFunc(list, func(a, b *Gap) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.ID, b.ID)) })
	return list
}

func (g *Gap) copied() *Gap {
	c := *g
	c.Labels, c.Match = g.Labels.Copy(), g.Match.Copy()
	c.Missing, c.Fills, c.Asked = slices.Clone(g.Missing), slices.Clone(g.Fills), slices.Clone(g.Asked)
	return &c
}

// Add enters a gap of a target or a rule group that the caller found: its kind, labels, match, interval and cause. What
// is known already of the same kind and labels, open or closed, is not entered again, nor what lies in a gap of the
// whole replica, which for a target has to be open. An open gap that overlaps it or touches it is extended instead, and ends if it lasted and this one
// does not.
//
// The ID is that of the gap which has it now. It is "" when a gap of the replica has it all. It is on disk with the
// next beat.
func (l *Ledger) Add(g Gap) (id string) {
	l.mu.Lock()
	defer l.unlock()
	return l.add(g, time.Now())
}

func (l *Ledger) add(g Gap, now time.Time) string {
	left := []Interval{g.Interval}
	if g.Kind != GapReplica {
		left = l.outside(left, g.Kind)
	}
	if left = normal(left); len(left) == 0 {
		return ""
	}
	// The caller may go on with its labels, and storage shares their strings in place.
	g.Labels, g.Match = g.Labels.Copy(), g.Match.Copy()

	key := keyOf(g.Kind, g.Labels)
	if i, ok := l.dropped[key]; ok {
		left = without(left, i)
	}
	var known string
	var open, latest *Gap
	var n int
	for _, id := range l.alike[key] {
		e := l.gaps[id]
		if e.Kind != g.Kind || !labels.Equal(e.Labels, g.Labels) {
			continue
		}
		left = without(left, e.Interval)
		overlaps := !e.Intersect(g.Interval).Empty()
		touches := e.From <= g.To && g.From <= e.To
		// One that lasts since another's end is its own: the target was reached in between.
		if (e.Lasting() && g.To == e.From) || (g.Lasting() && e.To == g.From) {
			touches = false
		}
		if known == "" && touches || overlaps {
			known = id
		}
		if e.State != GapOpen {
			continue
		}
		n++
		if touches && (open == nil || e.From < open.From) {
			open = e
		}
		if latest == nil || e.From > latest.From {
			latest = e
		}
	}
	if open == nil && n >= maxAlike && len(left) > 0 {
		open = latest
	}
	switch {
	case open != nil && (len(left) > 0 || open.Lasting() && !g.Lasting()):
		l.extend(open, g, left, now)
		return open.ID
	case len(left) == 0:
		return known
	}
	g.ID = ulid.Make().String()
	g.State, g.Found, g.Closed, g.Fills = GapOpen, now.Round(0), time.Time{}, nil
	g.Interval, g.Missing = Interval{left[0].From, left[len(left)-1].To}, left
	l.put(&g)
	l.found(&g)
	return g.ID
}

// extend lets an open gap be one with another, of which left is not known yet.
func (l *Ledger) extend(open *Gap, g Gap, left []Interval, now time.Time) {
	e := open.copied()
	if g.Match.Len() > 0 {
		e.Match = g.Match
	}
	if e.Lasting() && !g.Lasting() && g.To > e.From {
		e.To = g.To
		e.clip(g.To)
	}
	e.From, e.To = min(e.From, g.From), max(e.To, g.To)
	e.Missing = normal(append(e.Missing, left...))
	if e.Interval == open.Interval && slices.Equal(e.Missing, open.Missing) && labels.Equal(e.Match, open.Match) {
		return
	}
	l.settled(e, now)
	l.put(e)
}

// lasts enters a gap of everything that is not over. What is missed ends with an interval that lasts.
func (l *Ledger) lasts(missed []Interval, cause string, now time.Time) {
	for i := range missed {
		missed[i].From = max(missed[i].From, 0)
	}
	missed = normal(missed)
	i := Interval{missed[0].From, Lasts}
	var into *Gap
	var open []*Gap
	for _, id := range l.alike[keyOf(GapReplica, labels.EmptyLabels())] {
		g := l.gaps[id]
		if g.Kind != GapReplica || g.State != GapOpen {
			continue
		}
		open = append(open, g)
		switch {
		case g.Lasting():
			// It was killed while it caught up, or was frozen again.
			into = g
		case into == nil && g.Cause == cause && i.From <= g.To:
			into = g
		}
	}
	if into == nil && len(open) >= maxAlike {
		into = slices.MaxFunc(open, func(a, b *Gap) int { return cmp.Compare(a.From, b.From) })
	}
	if into == nil {
		g := &Gap{
			ID: ulid.Make().String(), Kind: GapReplica, Interval: i, Cause: cause, State: GapOpen,
			Missing: missed, Found: now.Round(0),
		}
		l.put(g)
		l.found(g)
		return
	}
	g := into.copied()
	g.From, g.To = min(g.From, i.From), Lasts
	g.Missing = normal(append(g.Missing, missed...))
	l.put(g)
}

// End says when a lasting gap was over, in Unix milliseconds: from then on this replica's own data are whole.
func (l *Ledger) End(id string, to int64) {
	l.mu.Lock()
	defer l.unlock()
	if g := l.gaps[id]; g != nil && g.State == GapOpen && g.Lasting() && to != Lasts {
		l.end(g, to, time.Now())
	}
}

func (l *Ledger) end(open *Gap, to int64, now time.Time) {
	g := open.copied()
	g.To = max(to, g.From)
	g.clip(g.To)
	l.settled(g, now)
	l.put(g)
}

// clip takes out what is missing from a time on.
func (g *Gap) clip(to int64) {
	g.keep(Interval{g.From, to})
}

// keep takes out what is missing outside of an interval.
func (g *Gap) keep(in Interval) {
	for i := range g.Missing {
		g.Missing[i] = g.Missing[i].Intersect(in)
	}
	g.Missing = slices.DeleteFunc(g.Missing, Interval.Empty)
}

// without takes out an interval at whose ends data are whole, which Subtract leaves in.
func without(of []Interval, out Interval) []Interval {
	var rest []Interval
	for _, i := range of {
		if i.Intersect(out).Empty() {
			rest = append(rest, i)
			continue
		}
		rest = append(rest, Interval{i.From, min(i.To, out.From)}, Interval{max(i.From, out.To), i.To})
	}
	return slices.DeleteFunc(rest, Interval.Empty)
}

// Filled takes an interval out of what is missing of a gap and remembers where it came from. A gap of which nothing is
// missing any more, and which does not last, is closed by it. The moments at the fill's ends stay missing. It is on
// disk when Filled returns, or a second later when there are very many gaps; nothing but the work of filling it again
// is lost without.
//
// A fill without a replica says that it is lost, since none of those that were asked has it.
//
// It fails when the gap is not known (any more) or the fill has no end, and then nothing has changed.
func (l *Ledger) Filled(id string, f Fill, asked ...string) error {
	if f.To == Lasts || f.To < f.From {
		return fmt.Errorf("fill gap %s: from %d to %d is no time that is over", id, f.From, f.To)
	}
	l.mu.Lock()
	open := l.gaps[id]
	if open == nil {
		l.unlock()
		return fmt.Errorf("fill gap %s: %w", id, errUnknownGap)
	}
	if open.State != GapOpen {
		l.unlock()
		return nil // It got too old meanwhile.
	}
	now := time.Now()
	if f.At.IsZero() {
		f.At = now
	}
	f.At = f.At.Round(0)
	g := open.copied()
	g.Missing = Subtract(g.Missing, f.Interval)
	g.fill(f)
	if f.Replica == "" {
		g.Asked = slices.Compact(slices.Sorted(slices.Values(append(g.Asked, asked...))))
	}
	l.settled(g, now)
	l.put(g)
	few := len(l.gaps) <= fewGaps
	l.unlock()

	l.saving.Lock()
	due := few || now.Sub(l.savedAt) >= beatEvery
	l.saving.Unlock()
	if due {
		l.save()
	}
	return nil
}

// Reopen takes back that a part of a closed gap is lost: somebody has come who was not asked.
func (l *Ledger) Reopen(id string, part Interval) {
	l.mu.Lock()
	defer l.unlock()
	closed := l.gaps[id]
	if closed == nil || closed.State == GapOpen || part.Intersect(closed.Interval).Empty() {
		return
	}
	g := closed.copied()
	g.State, g.Closed, g.Missing = GapOpen, time.Time{}, []Interval{part.Intersect(g.Interval)}
	var fills []Fill
	for _, f := range g.Fills {
		if f.Replica != "" {
			fills = append(fills, f)
			continue
		}
		for _, i := range Subtract([]Interval{f.Interval}, part) {
			f.Interval = i
			fills = append(fills, f)
		}
	}
	g.Fills = fills
	l.closed = slices.DeleteFunc(l.closed, func(c string) bool { return c == id })
	l.put(g)
}

// fill appends a fill, or makes it one with the last. The series of two fills are mostly the same ones, so that their
// number is the larger of both.
func (g *Gap) fill(f Fill) {
	if n := len(g.Fills); n > 0 && g.Fills[n-1].From <= f.To && f.From <= g.Fills[n-1].To &&
		g.Fills[n-1].Replica == f.Replica && g.Fills[n-1].Zone == f.Zone {
		g.Fills[n-1] = joined(g.Fills[n-1], f)
		return
	}
	g.Fills = append(g.Fills, f)
	for len(g.Fills) > maxFills {
		g.Fills[1] = joined(g.Fills[0], g.Fills[1])
		g.Fills = g.Fills[1:]
	}
}

func joined(a, b Fill) Fill {
	one := func(a, b string) string {
		if a == b || b == "" {
			return a
		}
		if a == "" {
			return b
		}
		return several
	}
	return Fill{
		Interval: Interval{min(a.From, b.From), max(a.To, b.To)},
		Replica:  one(a.Replica, b.Replica), Zone: one(a.Zone, b.Zone),
		Series: max(a.Series, b.Series), Samples: a.Samples + b.Samples, Targets: max(a.Targets, b.Targets),
		At: b.At,
	}
}

// settled closes a gap if there is nothing left to do about it.
func (l *Ledger) settled(g *Gap, now time.Time) {
	if g.Lasting() || len(g.Missing) > 0 {
		return
	}
	g.State, g.Closed, g.Missing = GapLost, now.Round(0), nil
	// One that turned out to have no time in it had nothing to lose.
	if g.Interval.Empty() || slices.ContainsFunc(g.Fills, func(f Fill) bool { return f.Replica != "" }) {
		g.State = GapHealed
	}
}

// outside takes out what lies in gaps of everything. For a target that is the open ones: once such a gap is healed, what
// of a target is still missing in it is known of its own.
func (l *Ledger) outside(of []Interval, kind GapKind) []Interval {
	for _, id := range l.alike[keyOf(GapReplica, labels.EmptyLabels())] {
		g := l.gaps[id]
		if g.Kind != GapReplica || kind == GapTarget && g.State != GapOpen {
			continue
		}
		i := g.Interval
		if g.Lasting() && l.until != 0 {
			i.To = l.until
		}
		of = without(of, i)
	}
	return of
}

// tidy drops what is older than what is kept.
func (l *Ledger) tidy(now time.Time) {
	at := now.UnixMilli()
	l.tidied = at
	horizon := l.horizon(at)
	// What is missing moves on in steps, or a gap of the whole retention would change all the time.
	step := min(l.retention()/100, time.Hour).Milliseconds()
	for _, g := range l.gaps {
		if g.State == GapOpen && (len(g.Missing) == 0 || g.Missing[0].From < horizon-1-step || g.Missing[0].To <= horizon) {
			c := g.copied()
			c.keep(Interval{horizon - 1, Lasts})
			l.settled(c, now)
			if c.State != GapOpen || !slices.Equal(c.Missing, g.Missing) {
				l.put(c)
				g = c
			}
		}
		if g.State != GapOpen && g.To <= horizon {
			l.drop(g)
		}
	}
	for key, i := range l.dropped {
		if i.To < at-dropAfter.Milliseconds() {
			delete(l.dropped, key)
		}
	}
	for key, e := range l.groups {
		// The group is not there any more.
		if at-e.at > max((24*time.Hour).Milliseconds(), 3*e.every) {
			delete(l.groups, key)
		}
	}
}

// restore enters a gap as the file has it.
func (l *Ledger) restore(g *Gap) {
	if g.ID == "" || l.gaps[g.ID] != nil || g.To < g.From {
		return
	}
	if g.State != GapOpen {
		g.Missing = nil
	} else {
		g.keep(g.Interval)
		g.Missing = normal(g.Missing)
	}
	l.put(g)
}

// put enters a gap or replaces it.
func (l *Ledger) put(g *Gap) {
	old := l.gaps[g.ID]
	if old == nil {
		key := keyOf(g.Kind, g.Labels)
		l.alike[key] = append(l.alike[key], g.ID)
	}
	l.gaps[g.ID] = g
	if old != nil && old.State == GapOpen {
		l.metrics.open.WithLabelValues(string(g.Kind)).Dec()
	}
	if g.State == GapOpen {
		l.metrics.open.WithLabelValues(string(g.Kind)).Inc()
	} else {
		if old != nil && old.State == GapOpen {
			l.over(g)
		}
		if old == nil || old.State == GapOpen {
			l.closed = append(l.closed, g.ID)
		}
	}
	l.touched()
	for len(l.closed) > maxClosedGaps {
		oldest := l.gaps[l.closed[0]]
		l.dropped[keyOf(oldest.Kind, oldest.Labels)] = oldest.Interval
		l.drop(oldest)
	}
}

// drop forgets a closed gap.
func (l *Ledger) drop(g *Gap) {
	delete(l.gaps, g.ID)
	is := func(id string) bool { return id == g.ID }
	if i := slices.IndexFunc(l.closed, is); i == 0 {
		l.closed = l.closed[1:]
	} else if i > 0 {
		l.closed = slices.Delete(l.closed, i, i+1)
	}
	key := keyOf(g.Kind, g.Labels)
	if l.alike[key] = slices.DeleteFunc(l.alike[key], is); len(l.alike[key]) == 0 {
		delete(l.alike, key)
	}
	l.touched()
}

func (l *Ledger) touched() {
	l.version++
	l.view.Store(nil)
}

func keyOf(kind GapKind, ls labels.Labels) uint64 {
	key := ls.Hash()
	for _, c := range []byte(kind) {
		key = key*31 + uint64(c)
	}
	return key
}

// normal puts intervals in order and makes one of those that overlap, and of the nearest when they are too many: what
// is missing of a gap then includes times in which nothing is.
func normal(of []Interval) []Interval {
	of = slices.DeleteFunc(of, Interval.Empty)
	slices.SortFunc(of, func(a, b Interval) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	var in []Interval
	for _, i := range of {
		// Those that only touch have a whole moment in between.
		if n := len(in); n > 0 && i.From < in[n-1].To {
			in[n-1].To = max(in[n-1].To, i.To)
			continue
		}
		in = append(in, i)
	}
	for len(in) > maxMissing {
		near := 1
		for i := range in[1:] {
			if in[i+1].From-in[i].To < in[near].From-in[near-1].To {
				near = i + 1
			}
		}
		in[near-1].To = in[near].To
		in = slices.Delete(in, near, near+1)
	}
	return in
}
