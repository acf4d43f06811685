package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// runIdle leaves tocsin alone on its built-in configuration.
func (b *bench) runIdle(ctx context.Context) error {
	if b.control {
		b.say("idle: left out of a control run, the stock stack has no built-in configuration")
		return nil
	}
	if _, err := os.Stat("/etc/tocsin/tocsin.yml"); err == nil {
		return errors.New("/etc/tocsin/tocsin.yml exists, so the built-in configuration cannot be measured on this machine")
	}
	dir := filepath.Join(b.dir, "idle")
	s, err := b.start(setup{name: ours, data: filepath.Join(dir, "data"), log: dir})
	if err != nil {
		return err
	}
	defer s.end(syscall.SIGTERM)
	if _, err := s.waitReady(ctx, b.readyTimeout); err != nil {
		return err
	}
	b.say("idle: the built-in configuration, for %s", b.idle)
	if err := sleep(ctx, b.idle/2); err != nil {
		return err
	}
	var last usage
	var rss, anon float64
	first, err := s.usage()
	if err != nil {
		return err
	}
	begin := time.Now()
	for time.Since(begin) < b.idle/2 {
		if err := sleep(ctx, min(2*time.Second, b.idle/8)); err != nil {
			return err
		}
		if last, err = s.usage(); err != nil {
			return err
		}
		rss, anon = max(rss, float64(last.resident)), max(anon, float64(last.anonymous))
	}
	series, err := s.metric(ctx, "prometheus_tsdb_head_series")
	if err != nil {
		return err
	}
	percent := 100 * (last.cpu - first.cpu).Seconds() / time.Since(begin).Seconds()
	b.table(fmt.Sprintf("idle: built-in configuration, second half of %s", b.idle), []row{
		{what: "resident memory, highest, MiB", ours: mib(rss), limit: 140, absolute: true, withoutStock: true, format: "%.1f"},
		{what: "of it anonymous, highest, MiB", ours: mib(anon), limit: 48, absolute: true, withoutStock: true, format: "%.1f"},
		{what: "CPU, percent of one core", ours: percent, withoutStock: true},
		{what: "series in the head", ours: series, withoutStock: true, format: "%.0f"},
	})
	return nil
}

// runStart measures the time from the start of a process on an empty directory until it is ready. The sides take turns.
func (b *bench) runStart(ctx context.Context) error {
	dir := filepath.Join(b.dir, "start")
	config := filepath.Join(dir, "config")
	if err := writeConfig(config, b.interval, nil, "http://127.0.0.1:9/"); err != nil {
		return err
	}
	type kind struct{ label, name, config string }
	kinds := []kind{{"configured", ours, config}, {"stock", stock, config}}
	if !b.control {
		kinds = append(kinds, kind{"built-in", ours, ""})
	}
	b.say("start: on an empty directory, %d times each", b.starts)
	took := map[string][]time.Duration{}
	for n := range b.starts {
		for _, k := range kinds {
			at := filepath.Join(dir, fmt.Sprintf("%s-%d", k.label, n))
			d, _, _, err := b.timeToReady(ctx, setup{name: k.name, config: k.config, data: filepath.Join(at, "data"), log: at}, syscall.SIGTERM)
			if err != nil {
				return err
			}
			took[k.label] = append(took[k.label], d)
		}
	}
	rows := []row{{what: "configuration files, median, s", ours: median(took["configured"]), stock: median(took["stock"]), limit: 0.5, absolute: true, format: "%.3f"}}
	if !b.control {
		rows = append(rows, row{what: "built-in configuration, median, s", ours: median(took["built-in"]), withoutStock: true, limit: 0.5, absolute: true, format: "%.3f"})
	}
	b.table(fmt.Sprintf("start to ready on an empty directory, of %d", b.starts), rows)
	return nil
}

// timeToReady starts a side, waits until it is ready and ends it again.
func (b *bench) timeToReady(ctx context.Context, s setup, sig syscall.Signal) (took time.Duration, u usage, series float64, err error) {
	r, err := b.start(s)
	if err != nil {
		return 0, u, 0, err
	}
	defer r.end(sig)
	if took, err = r.waitReady(ctx, b.readyTimeout); err != nil {
		return 0, u, 0, err
	}
	if u, err = r.usage(); err != nil {
		return 0, u, 0, err
	}
	series, err = r.metric(ctx, "prometheus_tsdb_head_series")
	return took, u, series, err
}

// runReplay starts both sides on copies of what they had when they were killed under load. The sides take turns.
func (b *bench) runReplay(ctx context.Context) error {
	if len(b.replayable) == 0 { // the scrape scenario was not asked for
		b.say("replay: filling both sides for %s", b.warmup)
		if err := b.fill(ctx); err != nil {
			return err
		}
	}
	dir := filepath.Join(b.dir, "replay")
	config := filepath.Join(dir, "config")
	if err := writeConfig(config, b.interval, nil, "http://127.0.0.1:9/"); err != nil {
		return err
	}
	b.say("replay: after kill -9, %d times each", b.replays)
	took, cpu, series, anon := map[string][]time.Duration{}, map[string][]time.Duration{}, map[string]float64{}, map[string]float64{}
	for n := range b.replays {
		names := []string{ours, stock}
		if n%2 == 1 {
			names[0], names[1] = names[1], names[0]
		}
		for _, name := range names {
			at := filepath.Join(dir, fmt.Sprintf("%s-%d", name, n))
			data := filepath.Join(at, "data")
			if err := copyTree(ctx, b.replayable[name], data); err != nil {
				return err
			}
			d, u, s, err := b.timeToReady(ctx, setup{name: name, config: config, data: data, log: at}, syscall.SIGKILL)
			if err != nil {
				return err
			}
			took[name], cpu[name] = append(took[name], d), append(cpu[name], u.cpu)
			series[name], anon[name] = s, max(anon[name], float64(u.anonymous))
			if err := os.RemoveAll(data); err != nil {
				return err
			}
		}
	}
	b.table(fmt.Sprintf("replay after kill -9, median of %d", b.replays), []row{
		{what: "start to ready, s", ours: median(took[ours]), stock: median(took[stock]), limit: 1, format: "%.3f"},
		{what: "CPU seconds until ready", ours: median(cpu[ours]), stock: median(cpu[stock])},
		{what: "anonymous memory when ready, highest, MiB", ours: mib(anon[ours]), stock: mib(anon[stock]), format: "%.1f"},
		{what: "series in the head", ours: series[ours], stock: series[stock], format: "%.0f"},
	})
	return nil
}

// fill scrapes with both sides for the length of the warm-up and ends them with kill -9.
func (b *bench) fill(ctx context.Context) error {
	sides, closeLoad, _, err := b.underLoad(ctx, ours, stock)
	if err != nil {
		return err
	}
	err = sleep(ctx, b.warmup)
	for _, s := range sides {
		s.end(syscall.SIGKILL)
		b.replayable[s.name] = s.data
	}
	return errors.Join(err, closeLoad())
}

// copyTree copies a data directory with its files' contents, so that each start finds the same.
func copyTree(ctx context.Context, from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("copy the data: %w", err)
	}
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		case d.Type().IsRegular():
			return copyFile(path, filepath.Join(to, rel))
		}
		return nil // a socket or a pipe is no data
	})
	if err != nil {
		return fmt.Errorf("copy the data: %w", err)
	}
	return nil
}

func copyFile(from, to string) (err error) {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // It was only read.
	w, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	_, err = w.ReadFrom(r)
	return err
}
