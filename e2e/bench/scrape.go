package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"
)

// measured is what one side took within the window.
type measured struct {
	cpu                   time.Duration
	anonMean, anonMax     float64 // bytes
	rssMean, rssMax       float64
	written               float64
	samples, series       float64
	wal, up, ruleFailures float64
}

// runScrape lets both sides scrape the same targets at the same time, and ends both with kill -9.
func (b *bench) runScrape(ctx context.Context) (err error) {
	sides, closeLoad, l, err := b.underLoad(ctx, ours, stock)
	if err != nil {
		return err
	}
	defer func() {
		for _, s := range sides {
			s.end(syscall.SIGKILL)
		}
		err = errors.Join(err, closeLoad())
	}()
	b.say("scrape: %d targets of %d series every %s, warming up for %s", b.targets, b.series, b.interval, b.warmup)
	if err := sleep(ctx, b.warmup); err != nil {
		return err
	}
	b.say("scrape: measuring for %s", b.window)
	m, err := b.measure(ctx, sides, b.window)
	if err != nil {
		return err
	}
	b.scrapeTable(m[0], m[1])
	if n := l.plain.Load(); n > 0 {
		b.say("note: %d of %d scrapes did not accept gzip", n, l.requests.Load())
	}
	if b.profiles != "" {
		errs := make(chan error, len(sides))
		for _, s := range sides { // at the same time, as all the rest
			go func() { errs <- s.profiles(ctx, b.profiles) }()
		}
		var err error
		for range sides {
			err = errors.Join(err, <-errs)
		}
		if err != nil {
			return err
		}
	}
	for _, s := range sides {
		b.replayable[s.name] = s.data
	}
	return nil
}

// underLoad starts the load and the named sides on it, and waits until they are ready.
func (b *bench) underLoad(ctx context.Context, names ...string) (_ []*side, closeLoad func() error, _ *load, err error) {
	l, err := newLoad(ctx, b.targets, b.series, b.interval)
	if err != nil {
		return nil, nil, nil, err
	}
	hook, err := newWebhook()
	if err != nil {
		return nil, nil, nil, errors.Join(err, l.Close())
	}
	closeLoad = func() error {
		b.say("notifications received, by sender: %s", hook)
		return errors.Join(hook.Close(), l.Close())
	}
	var sides []*side
	defer func() {
		if err != nil {
			for _, s := range sides {
				s.end(syscall.SIGKILL)
			}
			err = errors.Join(err, closeLoad())
		}
	}()
	targets, err := l.fileSD()
	if err != nil {
		return nil, nil, nil, err
	}
	for _, name := range names {
		dir := filepath.Join(b.dir, "scrape", name)
		config := filepath.Join(dir, "config")
		if err := writeConfig(config, b.interval, targets, hook.url); err != nil {
			return nil, nil, nil, err
		}
		s, err := b.start(setup{name: name, config: config, data: filepath.Join(dir, "data"), log: dir, alertmanager: true})
		if err != nil {
			return nil, nil, nil, err
		}
		sides = append(sides, s)
	}
	for _, s := range sides {
		if _, err := s.waitReady(ctx, b.readyTimeout); err != nil {
			return nil, nil, nil, err
		}
	}
	return sides, closeLoad, l, nil
}

// measure takes the figures of all sides over the window: CPU time as a difference, memory as samples taken all along.
func (b *bench) measure(ctx context.Context, sides []*side, window time.Duration) ([]measured, error) {
	m := make([]measured, len(sides))
	first := make([]usage, len(sides))
	const appended = "prometheus_tsdb_head_samples_appended_total"
	for i, s := range sides {
		var err error
		if m[i].samples, err = s.metric(ctx, appended); err != nil {
			return nil, err
		}
		if first[i], err = s.usage(); err != nil {
			return nil, err
		}
	}
	count := 0.0
	every := min(2*time.Second, window/4)
	for end := time.Now().Add(window); time.Now().Before(end); {
		if err := sleep(ctx, every); err != nil {
			return nil, err
		}
		count++
		for i, s := range sides {
			u, err := s.usage()
			if err != nil {
				return nil, err
			}
			m[i].cpu = u.cpu - first[i].cpu
			m[i].written = float64(u.written - first[i].written)
			anon, rss := float64(u.anonymous), float64(u.resident)
			m[i].anonMean += (anon - m[i].anonMean) / count
			m[i].rssMean += (rss - m[i].rssMean) / count
			m[i].anonMax, m[i].rssMax = max(m[i].anonMax, anon), max(m[i].rssMax, rss)
		}
	}
	for i, s := range sides {
		n, err := s.metric(ctx, appended)
		if err != nil {
			return nil, err
		}
		m[i].samples = n - m[i].samples
		for name, to := range map[string]*float64{
			"prometheus_tsdb_head_series":               &m[i].series,
			"prometheus_tsdb_wal_storage_size_bytes":    &m[i].wal,
			"prometheus_rule_evaluation_failures_total": &m[i].ruleFailures,
		} {
			if *to, err = s.metric(ctx, name); err != nil {
				return nil, err
			}
		}
		if m[i].up, err = s.query(ctx, `sum(up{job!=""})`); err != nil {
			return nil, err
		}
		if m[i].samples == 0 {
			return nil, fmt.Errorf("%s appended no sample within the window; its log says:\n%s", s.name, s.processes[0].tail())
		}
	}
	return m, nil
}

func (b *bench) scrapeTable(a, z measured) {
	perMillion := func(m measured) float64 { return m.cpu.Seconds() / (m.samples / 1e6) }
	perSeries := func(m measured) float64 { return m.anonMean / max(1, m.series) }
	b.table(fmt.Sprintf("scrape: %d targets × %d series, every %s, for %s", b.targets, b.series, b.interval, b.window), []row{
		{what: "CPU seconds, all processes", ours: a.cpu.Seconds(), stock: z.cpu.Seconds(), limit: 0.95},
		{what: "CPU seconds per million samples", ours: perMillion(a), stock: perMillion(z), limit: 0.95, format: "%.3f"},
		{what: "anonymous memory, mean, MiB", ours: mib(a.anonMean), stock: mib(z.anonMean), limit: 1, format: "%.1f"},
		{what: "anonymous memory, highest, MiB", ours: mib(a.anonMax), stock: mib(z.anonMax), limit: 1, format: "%.1f"},
		{what: "anonymous bytes per series, mean", ours: perSeries(a), stock: perSeries(z), format: "%.0f"},
		{what: "resident memory, mean, MiB", ours: mib(a.rssMean), stock: mib(z.rssMean), format: "%.1f"},
		{what: "resident memory, highest, MiB", ours: mib(a.rssMax), stock: mib(z.rssMax), format: "%.1f"},
		{what: "samples appended, million", ours: a.samples / 1e6, stock: z.samples / 1e6, format: "%.3f"},
		{what: "series in the head at the end", ours: a.series, stock: z.series, format: "%.0f"},
		{what: "WAL at the end, MiB", ours: mib(a.wal), stock: mib(z.wal), format: "%.1f"},
		{what: "written to disk, MiB", ours: mib(a.written), stock: mib(z.written), format: "%.1f"},
		{what: "targets up at the end", ours: a.up, stock: z.up, format: "%.0f"},
		{what: "rule evaluations that failed", ours: a.ruleFailures, stock: z.ruleFailures, format: "%.0f"},
	})
}
