package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// snapshotOptions are the flags of the snapshot scenario.
type snapshotOptions struct {
	targets int
	history time.Duration
	rounds  int
}

func (o *snapshotOptions) flags(f *flag.FlagSet) {
	f.IntVar(&o.targets, "snapshot-targets", 200, "targets of -series series that snapshot's replica has in its head")
	f.DurationVar(&o.history, "snapshot-history", time.Hour, "length of what it has of them")
	f.IntVar(&o.rounds, "snapshot-rounds", 3, "stops and starts of each variant")
}

func (o *snapshotOptions) shorten() { o.targets, o.history, o.rounds = 4, 5*time.Minute, 1 }

func (o *snapshotOptions) check() error {
	if o.targets < 1 || o.targets > maxTargets || o.history < time.Minute || o.rounds < 1 {
		return errors.New("-snapshot-targets and -snapshot-rounds must be at least 1, -snapshot-history a minute")
	}
	return nil
}

// runSnapshot stops and starts tocsin with and without a snapshot of the head in memory. Nothing is scraped: the time
// is that of the store.
func (b *bench) runSnapshot(ctx context.Context) error {
	if b.control {
		b.say("snapshot: left out of a control run")
		return nil
	}
	o := b.snapshot
	machines, err := inventMachines(o.targets, targetsPerJob, b.series)
	if err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "snapshot")
	config := filepath.Join(dir, "config")
	if err := writeConfig(config, b.interval, nil, "http://127.0.0.1:9/"); err != nil {
		return err
	}
	prepared := filepath.Join(dir, "prepared")
	h, err := b.writeHistory(ctx, prepared, machines, o.history, 15*time.Second)
	if err != nil {
		return err
	}
	b.say("snapshot: %d stops and starts with and without, load average %s", o.rounds, loadAverage())
	const with, without = "with", "without"
	variants := map[string][]string{with: nil, without: {"--no-storage.tsdb.memory-snapshot"}}
	stop, started, cpu, size := map[string][]time.Duration{}, map[string][]time.Duration{}, map[string][]time.Duration{}, map[string]float64{}
	var series float64
	for n := range o.rounds {
		names := []string{with, without}
		if n%2 == 1 {
			names[0], names[1] = names[1], names[0]
		}
		for _, name := range names {
			at := filepath.Join(dir, fmt.Sprintf("%s-%d", name, n))
			data := filepath.Join(at, "data")
			if err := copyTree(ctx, prepared, filepath.Join(data, tsdbDir)); err != nil {
				return err
			}
			s := setup{name: ours, config: config, data: data, log: at, flags: variants[name]}
			first, err := b.start(s)
			if err != nil {
				return err
			}
			if _, err := first.waitReady(ctx, b.readyTimeout); err != nil {
				first.end(syscall.SIGKILL)
				return err
			}
			begin := time.Now()
			first.end(syscall.SIGTERM)
			stop[name] = append(stop[name], time.Since(begin))
			size[name] = mib(float64(snapshotSize(data)))
			took, u, count, err := b.timeToReady(ctx, s, syscall.SIGKILL)
			if err != nil {
				return err
			}
			started[name], cpu[name], series = append(started[name], took), append(cpu[name], u.cpu), count
			if err := os.RemoveAll(data); err != nil {
				return fmt.Errorf("remove the data: %w", err)
			}
		}
	}
	rows := []row{
		{what: "SIGTERM to the end, s", ours: median(stop[with]), stock: median(stop[without]), format: "%.3f"},
		{what: "start to ready, s", ours: median(started[with]), stock: median(started[without]), format: "%.3f"},
		{what: "both, s", ours: median(stop[with]) + median(started[with]), stock: median(stop[without]) + median(started[without]), format: "%.3f"},
		{what: "CPU seconds until ready", ours: median(cpu[with]), stock: median(cpu[without])},
		{what: "snapshot on the disk, MiB", ours: size[with], stock: size[without], format: "%.1f"},
	}
	b.compare(fmt.Sprintf("restart at %.0f series, %s of samples, median of %d", series, h.to.Sub(h.from).Round(time.Minute), o.rounds),
		"with snapshot", "without", rows)
	return nil
}

// snapshotSize is the size of the newest snapshot of the head in a data directory, in bytes.
func snapshotSize(data string) (bytes int64) {
	files, err := filepath.Glob(filepath.Join(data, tsdbDir, "chunk_snapshot.*", "*"))
	if err != nil { // the pattern is a good one
		return 0
	}
	for _, f := range files {
		if i, err := os.Stat(f); err == nil {
			bytes += i.Size()
		}
	}
	return bytes
}
