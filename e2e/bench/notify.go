package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// peerWait is how long a stock Alertmanager waits for each one before it: so late a duplicate may come.
	peerWait = 15 * time.Second
	// deliverLimit is how long notifications are waited for before they count as missed.
	deliverLimit = 90 * time.Second
	// collectGroups is how long an Alertmanager may keep a group that is empty. An alert that comes meanwhile waits for
	// the group interval, which is not what is measured.
	collectGroups = 40 * time.Second
	maxReplicas   = 9
	allReplicas   = "1,2,3"
)

// notifyOptions are the flags of the notify scenario.
type notifyOptions struct {
	parts        []string
	replicas     []int
	alerts       int
	spread       time.Duration
	deaths       int
	stockDeaths  int
	groups       int
	steady       time.Duration
	stockGroups  bool
	latencyPace  pace
	groupsPace   pace
	shortestWait time.Duration // after the last notification, for duplicates
}

// flags adds the flags; the two lists are translated by check.
func (o *notifyOptions) flags(f *flag.FlagSet) (parts, replicas *string) {
	parts = f.String("notify", "latency,death,groups", "parts of the notify scenario to run, in this order")
	replicas = f.String("notify-replicas", allReplicas, "numbers of replicas to measure notify's latency with; the other parts use the largest")
	f.IntVar(&o.alerts, "notify-alerts", 1000, "alerts, each of them a group, of notify's latency")
	f.DurationVar(&o.spread, "notify-spread", 20*time.Second, "time over which they are raised one after the other")
	f.IntVar(&o.deaths, "notify-deaths", 5, "senders of tocsin that die")
	f.IntVar(&o.stockDeaths, "notify-stock-deaths", 2, "stock senders that die")
	f.IntVar(&o.groups, "notify-groups", 10_000, "alert groups that fire at once over all replicas")
	f.DurationVar(&o.steady, "notify-steady", time.Minute, "time in which nothing changes after that; at least three group intervals")
	f.BoolVar(&o.stockGroups, "notify-stock-groups", true, "do so with the stock side too")
	o.latencyPace = pace{interval: time.Second, groupInterval: 5 * time.Second}
	o.groupsPace = pace{interval: 5 * time.Second, groupInterval: 10 * time.Second}
	o.shortestWait = 7 * time.Second
	return parts, replicas
}

// shorten is the smoke run.
func (o *notifyOptions) shorten(replicas *string) {
	o.alerts, o.spread, o.groups, o.stockGroups = 20, 2*time.Second, 100, false
	o.deaths, o.stockDeaths = 1, 1
	o.latencyPace.groupInterval = 2 * time.Second
	o.groupsPace = pace{interval: time.Second, groupInterval: 2 * time.Second}
	o.steady, o.shortestWait = 6*time.Second, time.Second
	if *replicas == allReplicas {
		*replicas = "2"
	}
}

func (o *notifyOptions) check(parts, replicas string) error {
	o.parts = strings.Split(parts, ",")
	for _, p := range o.parts {
		if !slices.Contains([]string{"latency", "death", "groups"}, p) {
			return fmt.Errorf("-notify: %q is not one of latency, death, groups", p)
		}
	}
	for text := range strings.SplitSeq(replicas, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxReplicas {
			return fmt.Errorf("-notify-replicas: %q is not within 1 and %d", text, maxReplicas)
		}
		o.replicas = append(o.replicas, n)
	}
	switch {
	case o.alerts < 1 || o.groups < 1 || o.deaths < 1 || o.stockDeaths < 1:
		return errors.New("-notify-alerts, -notify-groups, -notify-deaths and -notify-stock-deaths: must be at least 1")
	case o.steady < 3*o.groupsPace.groupInterval:
		return fmt.Errorf("-notify-steady: %s is less than three group intervals of %s", o.steady, o.groupsPace.groupInterval)
	}
	return nil
}

// runNotify measures what the receiver of notifications sees of one replica and of several.
func (b *bench) runNotify(ctx context.Context) error {
	for _, part := range b.notify.parts {
		run := map[string]func(context.Context) error{
			"latency": b.notifyLatency, "death": b.notifyDeath, "groups": b.notifyGroups,
		}[part]
		if err := run(ctx); err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	return nil
}

// quiet is how long duplicates are waited for with so many replicas.
func (b *bench) quiet(replicas int) time.Duration {
	return b.notify.shortestWait + time.Duration(replicas-1)*min(peerWait, 3*b.notify.shortestWait)
}

// notifyResult is what one side's receiver saw.
type notifyResult struct {
	spread, burst, resolved tally
	strays                  int
}

// notifyLatency raises all alerts, one after the other and then all at once, with each number of replicas.
func (b *bench) notifyLatency(ctx context.Context) error {
	var counts, times []row
	for _, replicas := range b.notify.replicas {
		dir := filepath.Join(b.dir, fmt.Sprintf("notify-%d", replicas))
		b.say("notify: %d alerts, replicas: %d", b.notify.alerts, replicas)
		results, err := b.latencyOf(ctx, dir, replicas)
		if err != nil {
			return err
		}
		a, z := results[0], results[1]
		label := fmt.Sprintf("%d replicas, ", replicas)
		if replicas == 1 {
			label = "1 replica, "
		}
		for _, k := range []struct {
			what        string
			ours, stock []time.Duration
		}{
			{"one after the other", a.spread.latency, z.spread.latency},
			{"all at once", a.burst.latency, z.burst.latency},
		} {
			times = append(times,
				row{what: label + k.what + ", median, s", ours: quantile(k.ours, 0.5), stock: quantile(k.stock, 0.5), format: "%.3f"},
				row{what: label + k.what + ", p99, s", ours: quantile(k.ours, 0.99), stock: quantile(k.stock, 0.99), format: "%.3f"})
		}
		firingA, firingZ := a.spread.plus(a.burst), z.spread.plus(z.burst)
		for _, k := range []struct {
			what        string
			ours, stock int
		}{
			{"firing, missed", firingA.missed, firingZ.missed},
			{"firing, duplicates", firingA.duplicates, firingZ.duplicates},
			{"resolved, missed", a.resolved.missed, z.resolved.missed},
			{"resolved, duplicates", a.resolved.duplicates, z.resolved.duplicates},
			{"in the wrong order", a.strays, z.strays},
		} {
			counts = append(counts, row{what: label + k.what, ours: float64(k.ours), stock: float64(k.stock), format: "%.0f"})
		}
	}
	n := b.notify
	b.table(fmt.Sprintf("first evaluation to receiver: %d alerts, one group each", n.alerts), times)
	b.table(fmt.Sprintf("notifications of 2 × %d alerts", n.alerts), counts)
	return nil
}

// latencyOf runs both sides next to each other. What is alike for both, and every wait, happens at the same time; the
// bursts come in turn.
func (b *bench) latencyOf(ctx context.Context, dir string, replicas int) (_ []notifyResult, err error) {
	sides := make([]*replicaSet, 0, 2)
	defer func() {
		for _, s := range sides {
			err = errors.Join(err, s.end())
		}
	}()
	for _, name := range []string{ours, stock} {
		s, err := b.startReplicas(ctx, name, filepath.Join(dir, name), replicas, b.notify.alerts, b.notify.latencyPace)
		if err != nil {
			return nil, err
		}
		sides = append(sides, s)
	}
	begin := time.Now()
	results := make([]notifyResult, len(sides))
	for i, over := range []time.Duration{b.notify.spread, 0} {
		order := []int{0, 1}
		if replicas%2 == 0 {
			slices.Reverse(order)
		}
		for _, s := range order {
			sides[s].levels.raise(over)
			if over > 0 {
				continue
			}
			if err := sides[s].await(ctx, true, deliverLimit); err != nil {
				return nil, err
			}
		}
		for _, s := range order {
			if err := sides[s].await(ctx, true, over+deliverLimit); err != nil {
				return nil, err
			}
		}
		if err := sleep(ctx, b.quiet(replicas)); err != nil {
			return nil, err
		}
		for s, side := range sides {
			t := count(side.hook.take(), b.notify.alerts, true)
			results[s].strays += t.stray
			if i == 0 {
				results[s].spread = t
			} else {
				results[s].burst = t
			}
		}
		for _, s := range order {
			sides[s].levels.lower()
		}
		for _, s := range order {
			if err := sides[s].await(ctx, false, deliverLimit); err != nil {
				return nil, err
			}
		}
		wait := b.quiet(replicas)
		if i == 0 && !b.smoke {
			wait = max(wait, collectGroups)
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
		for s, side := range sides {
			t := count(side.hook.take(), b.notify.alerts, false)
			results[s].strays += t.stray
			results[s].resolved = results[s].resolved.plus(t)
		}
	}
	for _, side := range sides {
		if err := b.checkScrapes(ctx, side, time.Since(begin)); err != nil {
			return nil, err
		}
	}
	return results, nil
}

// checkScrapes says when a machine was too slow for the scenario.
func (b *bench) checkScrapes(ctx context.Context, r *replicaSet, within time.Duration) error {
	n, err := r.lost(ctx, within)
	if n > 0 {
		b.say("note: %d replicas of %s have missed a scrape, so that alerts were resolved and fired again", n, r.name)
	}
	return err
}

// groupsResult is what one side did with many groups.
type groupsResult struct {
	firing, steady, resolved tally
	strays                   int
	fired, after             float64 // anonymous memory of a replica in MiB: after firing, and after the steady phase
	highest                  float64
	cpuFiring, cpuSteady     float64 // seconds, and percent of a core
}

// notifyGroups lets many groups fire at once over three replicas, the sides in turn: together they need too much.
func (b *bench) notifyGroups(ctx context.Context) error {
	names := []string{ours}
	if b.notify.stockGroups {
		names = append(names, stock)
	}
	replicas := slices.Max(b.notify.replicas)
	results := make([]groupsResult, 2)
	for i, name := range names {
		b.say("groups: %d groups, replicas: %d, %s", b.notify.groups, replicas, name)
		var err error
		if results[i], err = b.groupsOf(ctx, name, replicas); err != nil {
			return err
		}
	}
	a, z := results[0], results[1]
	whole := func(what string, ours, stock int) row {
		return row{what: what, ours: float64(ours), stock: float64(stock), format: "%.0f", withoutStock: !b.notify.stockGroups}
	}
	figure := func(what string, ours, stock float64) row {
		return row{what: what, ours: ours, stock: stock, format: "%.1f", withoutStock: !b.notify.stockGroups}
	}
	b.table(fmt.Sprintf("%d groups over %d replicas", b.notify.groups, replicas), []row{
		whole("firing, missed", a.firing.missed, z.firing.missed),
		whole("firing, duplicates", a.firing.duplicates, z.firing.duplicates),
		whole(fmt.Sprintf("notifications in %s without a change", b.notify.steady), a.steady.stray, z.steady.stray),
		whole("resolved, missed", a.resolved.missed, z.resolved.missed),
		whole("resolved, duplicates", a.resolved.duplicates, z.resolved.duplicates),
		whole("in the wrong order", a.strays, z.strays),
		figure("first evaluation to receiver, median, s", quantile(a.firing.latency, 0.5), quantile(z.firing.latency, 0.5)),
		figure("first evaluation to receiver, p99, s", quantile(a.firing.latency, 0.99), quantile(z.firing.latency, 0.99)),
		figure("CPU seconds until all were notified, all replicas", a.cpuFiring, z.cpuFiring),
		figure("CPU without a change, percent of a core, all replicas", a.cpuSteady, z.cpuSteady),
		figure("anonymous memory of a replica after firing, mean, MiB", a.fired, z.fired),
		figure("anonymous memory of a replica after the steady phase, mean, MiB", a.after, z.after),
		figure("anonymous memory of a replica, highest, MiB", a.highest, z.highest),
	})
	return nil
}

func (b *bench) groupsOf(ctx context.Context, name string, replicas int) (g groupsResult, err error) {
	p, n := b.notify.groupsPace, b.notify.groups
	r, err := b.startReplicas(ctx, name, filepath.Join(b.dir, "groups", name), replicas, n, p)
	if err != nil {
		return g, err
	}
	defer func() { err = errors.Join(err, r.end()) }()
	begin := time.Now()
	cpuBefore, err := r.cpu()
	if err != nil {
		return g, err
	}
	r.levels.raise(0)
	if err := r.await(ctx, true, deliverLimit); err != nil {
		return g, err
	}
	cpuFired, err := r.cpu()
	if err != nil {
		return g, err
	}
	g.cpuFiring = (cpuFired - cpuBefore).Seconds()
	// Until all replicas have had their turn, what comes is counted with the firing ones.
	if g.fired, err = g.sample(ctx, r, max(p.groupInterval, b.quiet(replicas))); err != nil {
		return g, err
	}
	g.firing = count(r.hook.take(), n, true)
	g.strays = g.firing.stray
	if cpuFired, err = r.cpu(); err != nil {
		return g, err
	}
	steady := time.Now()
	if _, err := g.sample(ctx, r, b.notify.steady-p.groupInterval); err != nil {
		return g, err
	}
	if g.after, err = g.sample(ctx, r, p.groupInterval); err != nil {
		return g, err
	}
	cpuSteady, err := r.cpu()
	if err != nil {
		return g, err
	}
	g.cpuSteady = 100 * (cpuSteady - cpuFired).Seconds() / time.Since(steady).Seconds()
	g.steady = count(r.hook.take(), 0, true) // any is one too many
	r.levels.lower()
	if err := r.await(ctx, false, deliverLimit); err != nil {
		return g, err
	}
	if err := sleep(ctx, max(p.groupInterval, b.quiet(replicas))); err != nil {
		return g, err
	}
	g.resolved = count(r.hook.take(), n, false)
	g.strays += g.resolved.stray
	return g, b.checkScrapes(ctx, r, time.Since(begin))
}

// sample takes the mean of the memory over a time, in which the garbage collector has its cycles.
func (g *groupsResult) sample(ctx context.Context, r *replicaSet, length time.Duration) (float64, error) {
	var mean, n float64
	for end := time.Now().Add(length); n == 0 || time.Now().Before(end); {
		if err := sleep(ctx, min(time.Second, length/4)); err != nil {
			return 0, err
		}
		m, err := r.anonymous()
		if err != nil {
			return 0, err
		}
		n++
		mean += (m - mean) / n
		g.highest = max(g.highest, m)
	}
	return mean, nil
}
