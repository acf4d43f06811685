package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// rollingReplicas is how many are restarted, one after the other.
const rollingReplicas = 3

// rollingOptions are the flags of the rolling scenario.
type rollingOptions struct {
	targets  int
	interval time.Duration
	before   time.Duration
}

func (o *rollingOptions) flags(f *flag.FlagSet) {
	f.IntVar(&o.targets, "rolling-targets", 20, "targets of -series series that the replicas of rolling scrape")
	f.DurationVar(&o.interval, "rolling-interval", 5*time.Second, "how often")
	f.DurationVar(&o.before, "rolling-before", time.Minute, "how long all scrape before the first restart, and again after the last one")
}

func (o *rollingOptions) shorten() {
	o.targets, o.interval, o.before = 4, 2*time.Second, 20*time.Second
}

func (o *rollingOptions) check() error {
	switch {
	case o.targets < 1 || o.targets > maxTargets:
		return fmt.Errorf("-rolling-targets: %d is not within 1 and %d", o.targets, maxTargets)
	case o.interval < time.Second || o.before < 4*o.interval:
		return errors.New("-rolling-interval must be at least 1s, -rolling-before four intervals")
	}
	return nil
}

// runRolling restarts three replicas under load, one after the other, as an operator would: each when the one before is
// complete again. Then it counts what each of them lacks.
func (b *bench) runRolling(ctx context.Context) (err error) {
	o := b.rolling
	l, err := newLoad(ctx, o.targets, b.series, o.interval)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	targets, err := l.fileSD()
	if err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "rolling")
	if err := writeConfig(dir, o.interval, targets, "http://127.0.0.1:9/"); err != nil { // for targets.json
		return err
	}
	c, err := b.newKeyed(dir, healPrometheusYML(o.interval), rollingReplicas)
	if err != nil {
		return err
	}
	defer c.end()
	for i := range rollingReplicas {
		if _, err := c.start(i); err != nil {
			return err
		}
	}
	for _, s := range c.replicas {
		if _, err := s.waitReady(ctx, b.readyTimeout); err != nil {
			return err
		}
	}
	for _, s := range c.replicas {
		if err := s.waitComplete(ctx, b.heal.limit); err != nil {
			return err
		}
	}
	b.say("rolling: %d replicas scrape %d × %d series every %s, load average %s", rollingReplicas, o.targets, b.series, o.interval, loadAverage())
	from := time.Now().Add(settleTime * o.interval)
	if err := sleep(ctx, time.Until(from.Add(o.before))); err != nil {
		return err
	}
	var away, complete [rollingReplicas]time.Duration
	for i := range rollingReplicas {
		stopped := time.Now()
		c.replicas[i].end(syscall.SIGTERM)
		s, err := c.start(i)
		if err != nil {
			return err
		}
		if _, err := s.waitReady(ctx, b.readyTimeout); err != nil {
			return err
		}
		away[i] = time.Since(stopped)
		if err := s.waitCaughtUp(ctx, stopped, b.heal.limit); err != nil {
			return err
		}
		complete[i] = time.Since(stopped)
	}
	if err := sleep(ctx, o.before); err != nil {
		return err
	}
	to := time.Now().Add(-settleTime * o.interval)
	// Nobody is complete while a gap is open that was found by a failed scrape in between.
	for _, s := range c.replicas {
		if err := s.waitCaughtUp(ctx, time.Time{}, b.heal.limit); err != nil {
			return err
		}
	}
	for i, s := range c.replicas {
		own, err := s.holes(ctx, from, to, o.interval)
		if err != nil {
			return err
		}
		if own.targets != o.targets {
			return fmt.Errorf("%s has %d targets, wanted %d", s.name, own.targets, o.targets)
		}
		rows := []row{
			{what: "SIGTERM to ready again, s", ours: away[i].Seconds()},
			{what: "SIGTERM to complete, s", ours: complete[i].Seconds()},
			{what: "series", ours: float64(own.series), format: "%.0f"},
			{what: "samples that an uninterrupted scrape takes, million", ours: own.expected / 1e6, format: "%.4f"},
			{what: "samples that are there, million", ours: own.there / 1e6, format: "%.4f"},
			{what: "samples missing: holes of more than 1.5 intervals", ours: float64(own.missing), format: "%.0f"},
			{what: "series with such a hole", ours: float64(own.holed), format: "%.0f"},
			{what: "longest time between two samples of a series, s", ours: own.longest.Seconds(), format: "%.3f"},
			{what: "failed scrapes (up is 0)", ours: float64(own.failed), format: "%.0f"},
		}
		for n := range rows {
			rows[n].withoutStock = true
		}
		b.table(fmt.Sprintf("rolling: replica %d, %s of %d × %d series every %s", i, to.Sub(from).Round(time.Second), o.targets, b.series, o.interval), rows)
	}
	return nil
}

// waitCaughtUp waits until a replica has nothing open, and if a time is given, has closed a gap of everything after it.
func (s *side) waitCaughtUp(ctx context.Context, after time.Time, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s was not complete within %s", s.name, limit))
	defer cancel()
	for {
		g, err := s.gaps(ctx)
		if err == nil && g.Complete && (after.IsZero() || g.about(span{after.UnixMilli(), time.Now().UnixMilli()}, after) >= 0) {
			return nil
		}
		if e := sleep(ctx, 100*time.Millisecond); e != nil {
			return errors.Join(fmt.Errorf("%w: %s", e, g.Problem), err)
		}
	}
}

// holes is what a replica's own data have of a time.
type holes struct {
	targets, series, holed, missing, failed int
	expected, there                         float64
	longest                                 time.Duration
}

// holes reads every sample of every series, target by target. Series that the load replaces by others in between count
// from their first sample to their last one; all others over the whole time.
func (s *side) holes(ctx context.Context, from, to time.Time, interval time.Duration) (h holes, err error) {
	ups, err := s.rawSeries(ctx, `up`, from, to)
	if err != nil {
		return h, err
	}
	h.targets = len(ups)
	for _, up := range ups {
		for _, v := range up.values {
			if v.value != 1 {
				h.failed++
			}
		}
		all, err := s.rawSeries(ctx, fmt.Sprintf(`{instance=%q}`, up.labels["instance"]), from, to)
		if err != nil {
			return h, err
		}
		for _, one := range all {
			h.series++
			times := make([]time.Time, 0, len(one.values)+2)
			_, churns := one.labels["container"]
			if !churns {
				times = append(times, from)
			}
			for _, v := range one.values {
				times = append(times, v.at)
			}
			if !churns {
				times = append(times, to)
			}
			missing := 0
			for i := 1; i < len(times); i++ {
				d := times[i].Sub(times[i-1])
				h.longest = max(h.longest, d)
				if d > interval+interval/2 {
					missing += int((d+interval/2)/interval) - 1
				}
			}
			if missing > 0 {
				h.holed++
			}
			h.missing += missing
			h.there += float64(len(one.values))
			if len(times) > 1 {
				h.expected += times[len(times)-1].Sub(times[0]).Seconds() / interval.Seconds()
				if churns {
					h.expected++
				}
			}
		}
	}
	return h, nil
}

// rawOne is a series as it is stored.
type rawOne struct {
	labels map[string]string
	values []sample
}

// rawSeries are the samples of a selector in the replica's own data, with nothing of the others'.
func (s *side) rawSeries(ctx context.Context, selector string, from, to time.Time) ([]rawOne, error) {
	text, err := get(ctx, s.url()+"/api/v1/query?"+url.Values{
		"local": {"true"},
		"query": {fmt.Sprintf("%s[%dms]", selector, to.Sub(from).Milliseconds())},
		"time":  {strconv.FormatFloat(float64(to.UnixMilli())/1000, 'f', 3, 64)},
	}.Encode())
	if err != nil {
		return nil, fmt.Errorf("query %s: %w", s.name, err)
	}
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string    `json:"metric"`
				Values [][2]json.RawMessage `json:"values"`
			} `json:"result"`
		} `json:"data"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", s.name, err)
	}
	all := make([]rawOne, len(answer.Data.Result))
	for i, r := range answer.Data.Result {
		all[i].labels = r.Metric
		for _, v := range r.Values {
			seconds, err := strconv.ParseFloat(string(v[0]), 64)
			if err != nil {
				return nil, fmt.Errorf("read the answer of %s: %w", s.name, err)
			}
			// The values themselves are not looked at but for up's.
			value := 0.0
			if string(v[1]) == `"1"` {
				value = 1
			}
			all[i].values = append(all[i].values, sample{time.UnixMilli(int64(seconds*1000 + 0.5)), value})
		}
	}
	return all, nil
}
