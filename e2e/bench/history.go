package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/compression"
)

// pastSteps is added to the steps of the past, so that none is below zero. It is a multiple of steps.
const pastSteps = 100 * steps

// tsdbDir is where tocsin has the TSDB in its data directory.
const tsdbDir = "tsdb"

// machine is a target whose past is written into a data directory without scraping it.
type machine struct {
	number int
	labels labels.Labels // that discovery and relabelling give to its series
	says   *spoken
}

// spoken is what the targets of one job say, parsed: one value for each step and series.
type spoken struct {
	series []labels.Labels
	values [][]float64
}

// history is what lies in a data directory.
type history struct {
	from, to        time.Time // to is after the last sample
	series, samples int64
}

// machines are the targets of a load as it discovers them, so that their past goes on in what is scraped of them.
func (l *load) machines() ([]machine, error) {
	addresses := make([]string, len(l.listeners))
	for i, ln := range l.listeners {
		addresses[i] = ln.Addr().String()
	}
	return newMachines(addresses, l.jobs, targetsPerJob)
}

// inventMachines are targets that nobody listens as.
func inventMachines(count, perJob, series int) ([]machine, error) {
	var jobs []*exposition
	for i := range (count + perJob - 1) / perJob {
		e, err := newExposition(i, series-ownSeries)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, e)
	}
	addresses := make([]string, count)
	for i := range addresses {
		addresses[i] = fmt.Sprintf("10.%d.%d.%d:9100", i/62500, i/250%250, 1+i%250)
	}
	return newMachines(addresses, jobs, perJob)
}

// newMachines gives so many targets of each job the series of the job.
func newMachines(addresses []string, jobs []*exposition, perJob int) ([]machine, error) {
	said := make([]*spoken, len(jobs))
	for i, e := range jobs {
		var err error
		if said[i], err = e.parse(); err != nil {
			return nil, err
		}
	}
	machines := make([]machine, len(addresses))
	for i, address := range addresses {
		job := i / perJob
		machines[i] = machine{number: i, says: said[job], labels: labels.FromStrings(
			"job", fmt.Sprintf("app-%02d", job), "instance", address, "pod", podName(i),
			"env", []string{"production", "production", "staging"}[job%3], "zone", fmt.Sprintf("eu-central-1%c", 'a'+i%3))}
	}
	return machines, nil
}

// parse reads the bodies as a scraper does.
func (e *exposition) parse() (*spoken, error) {
	s := &spoken{}
	for step, body := range e.bodies {
		zr, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			return nil, fmt.Errorf("unpack a body: %w", err)
		}
		text, err := io.ReadAll(zr)
		if err != nil {
			return nil, fmt.Errorf("unpack a body: %w", err)
		}
		series, values, err := parseText(text, step == 0)
		if err != nil {
			return nil, err
		}
		if step == 0 {
			s.series = series
		}
		if len(values) != len(s.series) {
			return nil, fmt.Errorf("step %d has %d series, the first one %d", step, len(values), len(s.series))
		}
		s.values = append(s.values, values)
	}
	return s, nil
}

func parseText(text []byte, withLabels bool) (series []labels.Labels, values []float64, err error) {
	p, err := textparse.New(text, "text/plain; version=0.0.4; charset=utf-8", nil, textparse.ParserOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("parse a body: %w", err)
	}
	for {
		entry, err := p.Next()
		switch {
		case errors.Is(err, io.EOF):
			return series, values, nil
		case err != nil:
			return nil, nil, fmt.Errorf("parse a body: %w", err)
		case entry != textparse.EntrySeries:
			continue
		}
		_, _, v := p.Series()
		values = append(values, v)
		if withLabels {
			var l labels.Labels
			p.Labels(&l)
			series = append(series, l)
		}
	}
}

// past is what is known of a machine while its past is written.
type past struct {
	machine
	lead   time.Duration // of its scrapes, after the beginning of an interval
	series []labels.Labels
	refs   []storage.SeriesRef
	own    map[string]labels.Labels // by what parseText gives
	ownRef map[string]storage.SeriesRef
	health []labels.Labels
	healed []storage.SeriesRef
}

func newPast(m machine, of int, interval time.Duration) *past {
	p := &past{machine: m, own: map[string]labels.Labels{}, ownRef: map[string]storage.SeriesRef{}}
	p.lead = (interval / time.Duration(of) * time.Duration(m.number)).Truncate(time.Millisecond)
	for _, s := range m.says.series {
		p.series = append(p.series, p.labelled(s))
	}
	p.refs = make([]storage.SeriesRef, len(p.series))
	for _, name := range []string{"up", "scrape_duration_seconds", "scrape_samples_scraped", "scrape_samples_post_metric_relabeling", "scrape_series_added"} {
		p.health = append(p.health, p.labelled(labels.FromStrings(model.MetricNameLabel, name)))
	}
	p.healed = make([]storage.SeriesRef, len(p.health))
	return p
}

func (p *past) labelled(s labels.Labels) labels.Labels {
	b := labels.NewBuilder(s)
	p.labels.Range(func(l labels.Label) { b.Set(l.Name, l.Value) })
	return b.Labels()
}

// scrape appends what a scrape at t would have.
func (p *past) scrape(app storage.Appender, t int64, step int) (n int64, err error) {
	values := p.says.values[step%steps]
	for i, s := range p.series {
		if p.refs[i], err = app.Append(p.refs[i], s, t, values[i]); err != nil {
			return n, fmt.Errorf("append to %s: %w", s, err)
		}
	}
	own, ownValues, err := parseText(ownPart(p.number, step), true)
	if err != nil {
		return n, err
	}
	for i, s := range own {
		key := s.String()
		if _, ok := p.own[key]; !ok {
			p.own[key] = p.labelled(s)
		}
		if p.ownRef[key], err = app.Append(p.ownRef[key], p.own[key], t, ownValues[i]); err != nil {
			return n, fmt.Errorf("append to %s: %w", s, err)
		}
	}
	all := float64(len(p.series) + len(own))
	for i, v := range []float64{1, 0.004 + float64(step%7)/1000, all, all, 0} {
		if p.healed[i], err = app.Append(p.healed[i], p.health[i], t, v); err != nil {
			return n, fmt.Errorf("append to %s: %w", p.health[i], err)
		}
	}
	return int64(len(p.series) + len(own) + len(p.health)), nil
}

// writeHistory makes a data directory as a process has it that has scraped the machines until now.
func (b *bench) writeHistory(ctx context.Context, dir string, machines []machine, length, interval time.Duration) (history, error) {
	begin := time.Now()
	h, err := writeHistoryFrom(ctx, dir, machines, begin.Add(-length), time.Now, interval)
	if err != nil {
		return h, err
	}
	b.say("history: %.1f million samples of %d series over %s, written in %s", float64(h.samples)/1e6, h.series,
		h.to.Sub(h.from).Round(time.Second), time.Since(begin).Round(time.Second))
	return h, nil
}

// writeHistoryFrom writes blocks of the windows that are over, and the rest into the write-ahead log and the head's chunks.
// It ends when it has reached the time that it gets again and again.
func writeHistoryFrom(ctx context.Context, dir string, machines []machine, from time.Time, until func() time.Time, interval time.Duration,
	options ...func(*tsdb.Options),
) (h history, err error) {
	o := tsdb.DefaultOptions()
	for _, set := range options {
		set(o)
	}
	o.WALCompression = compression.Snappy
	o.NoLockfile = true
	db, err := tsdb.Open(dir, slog.New(slog.DiscardHandler), nil, o, nil)
	if err != nil {
		return h, fmt.Errorf("create the history: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.DisableCompactions() // It is done below, so that its time does not depend on the machine.
	pasts := make([]*past, len(machines))
	for i, m := range machines {
		pasts[i] = newPast(m, len(machines), interval)
	}
	h.from = from
	// Those that are scraped late in an interval must not lie in the future, nor must the end lie far back when it is used.
	for step := 0; ; step++ {
		h.to = h.from.Add(time.Duration(step) * interval)
		if h.to.Add(interval).After(until()) {
			break
		}
		app := db.Appender(ctx)
		for _, p := range pasts {
			n, err := p.scrape(app, h.to.Add(p.lead).UnixMilli(), pastSteps+step+p.number*7)
			if err != nil {
				return h, errors.Join(err, app.Rollback())
			}
			h.samples += n
		}
		if err := app.Commit(); err != nil {
			return h, fmt.Errorf("commit to the history: %w", err)
		}
		if step%40 == 39 {
			if err := db.Compact(ctx); err != nil {
				return h, fmt.Errorf("compact the history: %w", err)
			}
		}
		if ctx.Err() != nil {
			return h, context.Cause(ctx)
		}
	}
	for _, p := range pasts {
		h.series += int64(len(p.series) + len(p.own) + len(p.health))
	}
	return h, nil
}
