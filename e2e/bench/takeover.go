package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// midway is how long the receiver has held a notification back when its sender dies.
const midway = 300 * time.Millisecond

// deathResult is what became of the notifications whose sender died.
type deathResult struct {
	took             []time.Duration // from the death to the delivery by another replica
	firing, resolved tally
}

// notifyDeath kills, several times, the sender of a notification that the receiver has begun to take. The two sides
// do so at the same time: they wait nearly all of it.
func (b *bench) notifyDeath(ctx context.Context) error {
	replicas := slices.Max(b.notify.replicas)
	if replicas < 2 {
		return errors.New("a sender that dies needs another one: -notify-replicas must have a 2 or more")
	}
	b.say("death: %d senders of %s and %d of %s, replicas: %d", b.notify.deaths, ours, b.notify.stockDeaths, stock, replicas)
	type answer struct {
		side int
		deathResult
		err error
	}
	answers := make(chan answer, 2)
	for i, name := range []string{ours, stock} {
		times := b.notify.deaths
		if i == 1 || b.control {
			times = b.notify.stockDeaths
		}
		go func() {
			d, err := b.deathsOf(ctx, name, replicas, times)
			answers <- answer{i, d, err}
		}()
	}
	results := make([]deathResult, 2)
	var err error
	for range results {
		a := <-answers
		results[a.side] = a.deathResult
		err = errors.Join(err, a.err)
	}
	if err != nil {
		return err
	}
	a, z := results[0], results[1]
	rows := []row{
		{what: "death to delivery, median, s", ours: median(a.took), stock: median(z.took)},
		{what: "death to delivery, highest, s", ours: quantile(a.took, 1), stock: quantile(z.took, 1), limit: 5, absolute: true},
	}
	for _, k := range []struct {
		what        string
		ours, stock int
	}{
		{"senders that died", len(a.took) + a.firing.missed, len(z.took) + z.firing.missed},
		{"firing, missed", a.firing.missed, z.firing.missed},
		{"firing, duplicates", a.firing.duplicates, z.firing.duplicates},
		{"resolved, missed", a.resolved.missed, z.resolved.missed},
		{"resolved, duplicates", a.resolved.duplicates, z.resolved.duplicates},
		{"in the wrong order", a.firing.stray + a.resolved.stray, z.firing.stray + z.resolved.stray},
	} {
		rows = append(rows, row{what: k.what, ours: float64(k.ours), stock: float64(k.stock), format: "%.0f"})
	}
	b.table(fmt.Sprintf("the sender dies midway, %d replicas", replicas), rows)
	return nil
}

func (b *bench) deathsOf(ctx context.Context, name string, replicas, times int) (d deathResult, err error) {
	r, err := b.startReplicas(ctx, name, filepath.Join(b.dir, "death", name), replicas, times, b.notify.latencyPace)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, r.end()) }()
	quiet := b.quiet(replicas)
	if name == ours && !b.control {
		quiet = b.notify.shortestWait // its replicas do not wait by the clock, and what comes later counts with the next one
	}
	for n := range times {
		if err := b.oneDeath(ctx, r, n, quiet, &d); err != nil {
			return d, err
		}
	}
	return d, nil
}

// oneDeath raises alert n, kills whoever notifies of it first, and starts that one again.
func (b *bench) oneDeath(ctx context.Context, r *replicaSet, n int, quiet time.Duration, d *deathResult) error {
	caught := r.hook.hold(n)
	r.levels.raiseOne(n)
	var from string
	select {
	case from = <-caught:
	case <-time.After(deliverLimit):
		return fmt.Errorf("%s has sent no notification of alert %d within %s", r.name, n, deliverLimit)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := sleep(ctx, midway); err != nil {
		return err
	}
	victim, err := r.senderAt(from)
	if err != nil {
		return err
	}
	victim.sender().end(syscall.SIGKILL)
	died := time.Now()
	for end := died.Add(deliverLimit); r.hook.arrived(true) == 0 && time.Now().Before(end); {
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	p, err := victim.launch()
	if err != nil {
		return err
	}
	victim.processes[len(victim.processes)-1] = p
	if err := r.settle(ctx); err != nil {
		return err
	}
	// The others' turn comes while they wait for each other; the one that is back may know of nothing.
	if err := sleep(ctx, quiet); err != nil {
		return err
	}
	deliveries := r.hook.take()
	t := countOne(deliveries, n, true)
	d.firing = d.firing.plus(t)
	if t.missed == 0 {
		i := slices.IndexFunc(deliveries, func(one delivery) bool { return one.firing && one.n == n })
		d.took = append(d.took, deliveries[i].at.Sub(died))
		b.say("death: a sender of %s, %.2f s to the delivery by another one", r.name, d.took[len(d.took)-1].Seconds())
	}
	r.levels.lower()
	for end := time.Now().Add(deliverLimit); r.hook.arrived(false) == 0 && time.Now().Before(end); {
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	if err := sleep(ctx, quiet); err != nil {
		return err
	}
	d.resolved = d.resolved.plus(countOne(r.hook.take(), n, false))
	return nil
}

// countOne tells what became of one alert.
func countOne(deliveries []delivery, n int, firing bool) tally {
	own := slices.Clone(deliveries)
	for i := range own {
		if own[i].n == n {
			own[i].n = 0
		} else {
			own[i].n = 1
		}
	}
	return count(own, 1, firing)
}

// senderAt is the replica whose process has the near end of a connection to the receiver.
func (r *replicaSet) senderAt(address string) (*stack, error) {
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return nil, fmt.Errorf("find the sender: %w", err)
	}
	inode, err := socketInode(table, address)
	if err != nil {
		return nil, fmt.Errorf("find the sender: %w", err)
	}
	for _, s := range r.stacks {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.sender().cmd.Process.Pid))
		if err != nil {
			return nil, fmt.Errorf("find the sender: %w", err)
		}
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil && to == "socket:["+inode+"]" { // it may be closed meanwhile
				return s, nil
			}
		}
	}
	return nil, fmt.Errorf("no process of %s has the connection from %s", r.name, address)
}

// socketInode finds the socket with a local IPv4 address in the contents of /proc/net/tcp.
func socketInode(table []byte, address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("read the address %q: %w", address, err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	ip := net.ParseIP(host).To4()
	if err != nil || ip == nil {
		return "", fmt.Errorf("%q is no IPv4 address with a port", address)
	}
	// The kernel prints the address as a number of the machine; all that this runs on have the low byte first.
	want := fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], number)
	for line := range bytes.Lines(table) {
		f := strings.Fields(string(line))
		if len(f) > 9 && f[1] == want {
			return f[9], nil
		}
	}
	return "", fmt.Errorf("no socket has the address %s", address)
}
