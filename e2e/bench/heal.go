package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const (
	// realTime is how many times faster than the data's own time a gap has to be filled: an hour in 36 s.
	realTime = 100
	// settleTime is how long after its start a replica's first scrapes may still come, in intervals.
	settleTime = 2
	// watchEvery is how often a replica that heals is asked how far it is; steady is how long the other one is watched
	// before, to know what scraping alone takes.
	watchEvery, steady = 100 * time.Millisecond, 30 * time.Second
)

// healOptions are the flags of the heal scenario.
type healOptions struct {
	targets  int
	interval time.Duration
	history  time.Duration
	away     time.Duration
	limit    time.Duration
	profile  time.Duration
}

func (o *healOptions) flags(f *flag.FlagSet) {
	f.IntVar(&o.targets, "heal-targets", 100, "targets of -series series that the replicas of heal scrape")
	f.DurationVar(&o.interval, "heal-interval", 15*time.Second, "how often")
	f.DurationVar(&o.history, "heal-history", time.Hour, "length of what an empty replica takes from the other one")
	f.DurationVar(&o.away, "heal-away", time.Minute, "how long a replica that was killed stays away; 0 leaves this part out")
	f.DurationVar(&o.limit, "heal-limit", 15*time.Minute, "how long healing may take")
	f.DurationVar(&o.profile, "heal-profile", 20*time.Second, "with -profiles: length of the CPU profiles of both replicas from the start of the one that heals")
}

func (o *healOptions) shorten() {
	o.targets, o.interval, o.history, o.away = 4, 2*time.Second, 5*time.Minute, 10*time.Second
}

func (o *healOptions) check() error {
	switch {
	case o.targets < 1 || o.targets > maxTargets:
		return fmt.Errorf("-heal-targets: %d is not within 1 and %d", o.targets, maxTargets)
	case o.interval < time.Second || o.history < 10*o.interval || o.away < 0 || o.limit <= 0:
		return errors.New("-heal-interval must be at least 1s, -heal-history ten intervals, -heal-away and -heal-limit not negative")
	}
	return nil
}

// healing is how a replica became whole.
type healing struct {
	ready    time.Duration // from its start
	began    time.Time     // the first filling
	whole    time.Time     // all of what was asked about was there
	complete time.Time     // nothing was missing
	samples  int64         // that were filled in until whole
	fills    int
	// own and other are what the replica and the one that it asks have used; cpu is between began and whole.
	own, other             time.Duration
	ownMemory, otherMemory float64 // highest anonymous, bytes
	ownBefore              float64 // when it was ready
}

// runHeal lets an empty replica, and one that was killed for a while, take what they lack from another one, while both
// scrape.
func (b *bench) runHeal(ctx context.Context) (err error) {
	o := b.heal
	l, err := newLoad(ctx, o.targets, b.series, o.interval)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	targets, err := l.fileSD()
	if err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "heal")
	if err := writeConfig(dir, o.interval, targets, "http://127.0.0.1:9/"); err != nil { // for targets.json
		return err
	}
	c, err := b.newKeyed(dir, healPrometheusYML(o.interval), 2)
	if err != nil {
		return err
	}
	defer c.end()
	machines, err := l.machines()
	if err != nil {
		return err
	}
	h, err := b.writeHistory(ctx, filepath.Join(c.data(0), tsdbDir), machines, o.history, o.interval)
	if err != nil {
		return err
	}
	other, err := c.start(0)
	if err != nil {
		return err
	}
	if _, err := other.waitReady(ctx, b.readyTimeout); err != nil {
		return err
	}
	if err := sleep(ctx, settleTime*o.interval); err != nil { // All targets have been scraped and all series exist.
		return err
	}
	before, err := other.usage()
	if err != nil {
		return err
	}
	if err := sleep(ctx, steady); err != nil {
		return err
	}
	after, err := other.usage()
	if err != nil {
		return err
	}
	scraping := (after.cpu - before.cpu).Seconds() / steady.Seconds()
	if up, err := other.query(ctx, "sum(up)"); err != nil || int(up) != o.targets {
		return errors.Join(err, fmt.Errorf("%s reaches %v of %d targets; its log says:\n%s", other.name, up, o.targets, other.processes[0].tail()))
	}

	b.say("heal: an empty replica starts next to one that has %s of %d series, load average %s", o.history, h.series, loadAverage())
	in := span{h.from.UnixMilli(), h.to.UnixMilli()}
	if err := b.healed(ctx, c, in, "empty", scraping); err != nil {
		return err
	}
	if o.away == 0 {
		return nil
	}
	b.say("heal: it is killed for %s", o.away)
	in.From = time.Now().UnixMilli()
	c.replicas[1].end(syscall.SIGKILL)
	if err := sleep(ctx, o.away); err != nil {
		return err
	}
	in.To = time.Now().UnixMilli()
	return b.healed(ctx, c, in, "killed", scraping)
}

// healed starts replica 1 and prints how it becomes whole.
func (b *bench) healed(ctx context.Context, c *keyed, in span, kind string, scraping float64) error {
	o := b.heal
	s, err := c.start(1)
	if err != nil {
		return err
	}
	profiled := make(chan error, 1)
	go func() { profiled <- b.profileHealing(ctx, c, kind) }()
	h, err := b.watchHealing(ctx, s, c.replicas[0], in)
	if err != nil {
		return errors.Join(err, <-profiled)
	}
	if err := <-profiled; err != nil {
		return err
	}
	missed, err := b.scraped(ctx, s, c.replicas[0], kind, h, in)
	if err != nil {
		return err
	}
	length := time.Duration(in.To-in.From) * time.Millisecond
	took := h.whole.Sub(h.began)
	rows := []row{{what: "start to ready, s", ours: h.ready.Seconds()}}
	if kind == "empty" {
		rows = append(rows, row{what: "first question to all of the history, s", ours: took.Seconds(), limit: length.Seconds() / realTime, absolute: true},
			row{what: "times real time", ours: length.Seconds() / took.Seconds(), format: "%.0f"},
			row{what: "samples filled in a second, thousands", ours: float64(h.samples) / took.Seconds() / 1000, format: "%.0f"})
	} else {
		rows = append(rows, row{what: "start to first question, s", ours: h.began.Sub(s.processes[0].started).Seconds()},
			row{what: "start to all of the time away, s", ours: h.whole.Sub(s.processes[0].started).Seconds()})
	}
	rows = append(rows,
		row{what: "start to complete, s", ours: h.complete.Sub(s.processes[0].started).Seconds()},
		row{what: "samples filled in, million", ours: float64(h.samples) / 1e6, format: "%.3f"},
		row{what: "parts", ours: float64(h.fills), format: "%.0f"},
		row{what: "CPU of the replica that heals, from first question to whole, s", ours: h.own.Seconds()},
		row{what: "CPU of the one that is asked, meanwhile, s", ours: h.other.Seconds()},
		row{what: "of each of them by scraping alone, about, s", ours: scraping * took.Seconds()},
		row{what: "anonymous memory of the one that heals, when ready, MiB", ours: mib(h.ownBefore), format: "%.0f"},
		row{what: "the same, highest until complete, MiB", ours: mib(h.ownMemory), format: "%.0f"},
		row{what: "anonymous memory of the one that is asked, highest, MiB", ours: mib(h.otherMemory), format: "%.0f"},
		row{what: "scrapes made meanwhile", ours: float64(missed.made), format: "%.0f"},
		row{what: "scrapes missed or failed", ours: float64(missed.missed + missed.failed), format: "%.0f"},
		row{what: "longest time between two scrapes of a target, s", ours: missed.longest.Seconds(), format: "%.3f"},
		row{what: "longest hole in up over the time that was filled, s", ours: missed.hole.Seconds(), format: "%.3f"},
		row{what: "samples of up much closer than an interval, of all targets", ours: float64(missed.mixed), format: "%.0f"},
		row{what: "samples of up from before the start that only the other one has", ours: float64(missed.lacking), format: "%.0f"},
		row{what: "samples in the time that was filled: there, million", ours: missed.there / 1e6, format: "%.4f"},
		row{what: "the same at the one that was asked, million", ours: missed.asked / 1e6, format: "%.4f"})
	for i := range rows {
		rows[i].withoutStock = true
	}
	title := fmt.Sprintf("heal: %s replica, %s of %d × %d series every %s", kind, length.Round(time.Second), o.targets, b.series, o.interval)
	b.table(title, rows)
	return nil
}

// watchHealing follows a replica from its start until nothing is missing in it.
func (b *bench) watchHealing(ctx context.Context, s, other *side, in span) (h healing, err error) {
	if h.ready, err = s.waitReady(ctx, b.readyTimeout); err != nil {
		return h, err
	}
	first, err := s.usage()
	if err != nil {
		return h, err
	}
	h.ownBefore = float64(first.anonymous)
	otherFirst, err := other.usage()
	if err != nil {
		return h, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, b.heal.limit, fmt.Errorf("%s was not whole within %s", s.name, b.heal.limit))
	defer cancel()
	for h.complete.IsZero() {
		if err := sleep(ctx, watchEvery); err != nil {
			return h, fmt.Errorf("%w; its log says:\n%s", err, s.processes[0].tail())
		}
		u, err := s.usage()
		if err != nil {
			return h, err
		}
		v, err := other.usage()
		if err != nil {
			return h, err
		}
		h.ownMemory, h.otherMemory = max(h.ownMemory, float64(u.anonymous)), max(h.otherMemory, float64(v.anonymous))
		g, err := s.gaps(ctx)
		if err != nil {
			return h, err
		}
		if h.began.IsZero() {
			if g.Healing == nil {
				first, otherFirst = u, v
			} else {
				h.began = g.Healing.Since
			}
		}
		i := g.about(in, s.processes[0].started)
		if i < 0 {
			continue
		}
		if h.whole.IsZero() && g.Gaps[i].lacks(in) < b.heal.interval {
			h.whole, h.own, h.other = time.Now(), u.cpu-first.cpu, v.cpu-otherFirst.cpu
			for _, f := range g.Gaps[i].Fills {
				h.samples += f.Samples
			}
			h.fills = len(g.Gaps[i].Fills)
			if n := h.fills; n > 0 && h.began.IsZero() { // It was faster than it was asked for.
				h.began = g.Gaps[i].Found
			}
		}
		if g.Complete {
			h.complete = time.Now()
		}
	}
	return h, nil
}

// about finds the gap of everything that was found after a time and reaches into the span; -1 is none.
func (g *gaps) about(in span, after time.Time) int {
	for i := range g.Gaps {
		if o := &g.Gaps[i]; o.Kind == "replica" && o.Found.After(after) && o.within(in) > 0 {
			return i
		}
	}
	return -1
}

// lacks is how much of the span is still missing.
func (g *gap) lacks(in span) (d time.Duration) {
	for _, m := range g.Missing {
		d += m.within(in)
	}
	return d
}

// scraped is what a replica scraped while it healed, by its own series `up`, and what it has of the time that was filled.
type scraped struct {
	made, missed, failed int
	longest, hole        time.Duration
	there, asked         float64
	// mixed are samples of up that are much closer to the one before than an interval, as when two replicas' are mixed. There
	// is one at either end of what was filled. lacking are samples of up that the other replica has of the time before.
	mixed, lacking int
}

func (b *bench) scraped(ctx context.Context, s, other *side, kind string, h healing, in span) (m scraped, err error) {
	o := b.heal
	from := s.processes[0].started.Add(h.ready + settleTime*o.interval)
	// There shall be something to count when the healing took no time at all.
	if err := sleep(ctx, time.Until(from.Add(6*o.interval))); err != nil {
		return m, err
	}
	to := time.Now()
	all, err := s.samples(ctx, "up", from, to)
	if err != nil {
		return m, err
	}
	if len(all) != o.targets {
		return m, fmt.Errorf("%s has %d series up, wanted %d", s.name, len(all), o.targets)
	}
	for _, one := range all {
		made, missed, longest := spacing(one, to, o.interval)
		m.made, m.missed, m.longest = m.made+made, m.missed+missed, max(m.longest, longest)
		for _, v := range one {
			if v.value != 1 {
				m.failed++
			}
		}
	}
	// A part at either end is scraped and not filled.
	start, end := time.UnixMilli(in.From).Add(-2*o.interval), time.UnixMilli(in.To).Add(4*o.interval)
	if kind == "empty" { // It begins with nothing.
		start, end = time.UnixMilli(in.From).Add(2*o.interval), time.UnixMilli(in.To).Add(-2*o.interval)
	}
	if all, err = s.samples(ctx, "up", start, end); err != nil {
		return m, err
	}
	for _, one := range all {
		_, _, longest := spacing(one, end, o.interval)
		m.hole = max(m.hole, longest)
	}
	if all, err = s.samples(ctx, "up", start, to); err != nil {
		return m, err
	}
	for _, one := range all {
		for i := 1; i < len(one); i++ {
			if one[i].at.Sub(one[i-1].at) < o.interval*9/10 {
				m.mixed++
			}
		}
	}
	if kind == "empty" {
		for n, of := range []*side{s, other} {
			if all, err = of.samples(ctx, "up", start, s.processes[0].started); err != nil {
				return m, err
			}
			for _, one := range all {
				m.lacking += (2*n - 1) * len(one)
			}
		}
	}
	for _, selector := range counted {
		count := fmt.Sprintf(`sum(count_over_time(%s[%dms] @ %.3f))`, selector, end.Sub(start).Milliseconds(), float64(end.UnixMilli())/1000)
		there, err := s.query(ctx, count)
		if err != nil {
			return m, err
		}
		asked, err := other.query(ctx, count)
		if err != nil {
			return m, err
		}
		m.there, m.asked = m.there+there, m.asked+asked
	}
	return m, nil
}

// counted is what samples are counted of, most of what the targets have: what differs in its name alone cannot be
// counted at once.
var counted = []string{
	"http_requests_total", "http_request_duration_seconds_bucket", "http_request_duration_seconds_sum",
	"container_network_bytes_total", "up",
}

// sample is one of a series.
type sample struct {
	at    time.Time
	value float64
}

// samples are those of a range selector's series, as they were stored.
func (s *side) samples(ctx context.Context, selector string, from, to time.Time) ([][]sample, error) {
	text, err := get(ctx, s.url()+"/api/v1/query?"+url.Values{
		"query": {fmt.Sprintf("%s[%dms]", selector, to.Sub(from).Milliseconds())},
		"time":  {strconv.FormatFloat(float64(to.UnixMilli())/1000, 'f', 3, 64)},
	}.Encode())
	if err != nil {
		return nil, fmt.Errorf("query %s: %w", s.name, err)
	}
	var answer struct {
		Data struct {
			Result []struct {
				Values [][2]any `json:"values"`
			} `json:"result"`
		} `json:"data"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", s.name, err)
	}
	all := make([][]sample, len(answer.Data.Result))
	for i, r := range answer.Data.Result {
		for _, v := range r.Values {
			seconds, _ := v[0].(float64)
			text, _ := v[1].(string)
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return nil, fmt.Errorf("read the answer of %s: %w", s.name, err)
			}
			all[i] = append(all[i], sample{time.UnixMilli(int64(math.Round(seconds * 1000))), value})
		}
	}
	return all, nil
}

// spacing counts the samples of one series, those that are missing between the first one and to, and tells the longest
// time without one.
func spacing(of []sample, to time.Time, interval time.Duration) (made, missed int, longest time.Duration) {
	for i := range of {
		next := to
		if i+1 < len(of) {
			next = of[i+1].at
		}
		d := next.Sub(of[i].at)
		if i+1 < len(of) {
			longest = max(longest, d)
			missed += max(0, int(math.Round(float64(d)/float64(interval)))-1)
		} else {
			missed += max(0, int(d/interval)-1) // One may be under way.
		}
	}
	return len(of), missed, longest
}

// profileHealing writes a CPU profile of both replicas from the start of the one that heals on, if that is wanted.
func (b *bench) profileHealing(ctx context.Context, c *keyed, kind string) error {
	if b.profiles == "" {
		return nil
	}
	if err := os.MkdirAll(b.profiles, 0o755); err != nil {
		return fmt.Errorf("create the directory for profiles: %w", err)
	}
	if _, err := c.replicas[1].waitReady(ctx, b.readyTimeout); err != nil {
		return err
	}
	asked := make(chan error, 1)
	go func() {
		asked <- c.replicas[0].profile(ctx, filepath.Join(b.profiles, "heal-"+kind+"-asked.cpu.pprof"), "profile", b.heal.profile)
	}()
	err := c.replicas[1].profile(ctx, filepath.Join(b.profiles, "heal-"+kind+"-heals.cpu.pprof"), "profile", b.heal.profile)
	return errors.Join(err, <-asked)
}

// healPrometheusYML leaves a %d for the replica's number.
func healPrometheusYML(interval time.Duration) string {
	return fmt.Sprintf(`global:
  scrape_interval: %[1]s
  scrape_timeout: %[1]s
  external_labels:
    machine: m%%d
scrape_configs:
  - job_name: apps
    file_sd_configs:
      - files: [targets.json]
    relabel_configs:
      - source_labels: [__meta_app]
        target_label: job
`, interval)
}
