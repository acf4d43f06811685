package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Sides of the query scenario.
const (
	sidePrometheus = "prometheus"
	sideTocsin     = "tocsin"
	sideCluster    = "cluster" // one replica of three that share a key and are whole
	sideThanos     = "thanos"
	allSides       = sidePrometheus + "," + sideTocsin + "," + sideCluster + "," + sideThanos
	replicas       = 3 // of the cluster, and of what Thanos reads
	// queryJob is how many targets make a job here, so that a few targets are several jobs.
	queryJob = 5
	// queryLimit is how long an answer may take.
	queryLimit = 5 * time.Minute
)

// queryOptions are the flags of the query scenario.
type queryOptions struct {
	targets  int
	interval time.Duration
	history  time.Duration
	rounds   int
	clients  int
	phases   bool
	sides    []string
}

func (o *queryOptions) flags(f *flag.FlagSet) (sides *string) {
	f.IntVar(&o.targets, "query-targets", 20, "targets of -series series that the data of query are of")
	f.DurationVar(&o.interval, "query-interval", 15*time.Second, "time between the samples of a series")
	f.DurationVar(&o.history, "query-history", 6*time.Hour, "length of the data")
	f.IntVar(&o.rounds, "query-rounds", 7, "how often each query is asked, after one round that does not count")
	f.IntVar(&o.clients, "query-clients", 1, "clients that ask the same at the same time; the time is until all have their answer")
	f.BoolVar(&o.phases, "query-phases", false, "give each of several replicas its own time stamps, as three that scrape have them: "+
		"Thanos has more to merge then, and its answers are others")
	return f.String("query-sides", allSides, "who is asked, prometheus first")
}

func (o *queryOptions) shorten() { o.targets, o.history, o.rounds = 10, 10*time.Minute, 1 }

func (o *queryOptions) check(sides string) error {
	o.sides = strings.Split(sides, ",")
	for _, s := range o.sides {
		if !slices.Contains(strings.Split(allSides, ","), s) {
			return fmt.Errorf("-query-sides: %q is not one of %s", s, allSides)
		}
	}
	switch {
	case o.sides[0] != sidePrometheus:
		return errors.New("-query-sides: prometheus must come first, all answers are compared with its")
	case o.targets < 2*queryJob || o.targets > maxTargets:
		return fmt.Errorf("-query-targets: %d is not within %d and %d", o.targets, 2*queryJob, maxTargets)
	case o.interval < time.Second || o.history < 20*o.interval || o.rounds < 1 || o.clients < 1:
		return errors.New("-query-interval must be at least 1s, -query-history 20 intervals, -query-rounds and -query-clients 1")
	}
	return nil
}

// asked is one that answers queries: the processes behind it, and the one that is asked.
type asked struct {
	name      string
	url       string
	processes []*process
	client    *http.Client
	cpu       time.Duration // of all rounds that count, all processes
	took      [][]time.Duration
}

func (a *asked) end() {
	for _, p := range slices.Backward(a.processes) {
		p.end(syscall.SIGKILL)
	}
	a.client.CloseIdleConnections()
}

func (a *asked) used() (time.Duration, error) {
	var sum time.Duration
	for _, p := range a.processes {
		u, err := p.usage()
		if err != nil {
			return 0, err
		}
		sum += u.cpu
	}
	return sum, nil
}

// runQuery asks all sides the same about the same data, and compares times and answers.
func (b *bench) runQuery(ctx context.Context) (err error) {
	o := b.query
	machines, err := inventMachines(o.targets, queryJob, b.series)
	if err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "query")
	first := filepath.Join(dir, "prepared")
	h, err := b.writeHistory(ctx, first, machines, o.history, o.interval)
	if err != nil {
		return err
	}
	prepared := []string{first, first, first}
	for n := 1; o.phases && n < replicas; n++ {
		shift := o.interval / replicas * time.Duration(n)
		prepared[n] = filepath.Join(dir, fmt.Sprintf("prepared-%d", n))
		if _, err := writeHistoryFrom(ctx, prepared[n], machines, h.from.Add(shift), func() time.Time { return h.to.Add(shift) }, o.interval); err != nil {
			return err
		}
	}
	var sides []*asked
	defer func() {
		for _, s := range sides {
			s.end()
		}
	}()
	for _, name := range o.sides {
		s := &asked{name: name, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: o.clients}, Timeout: queryLimit}}
		sides = append(sides, s)
		start := map[string]func(context.Context, *asked, string, []string) error{
			sidePrometheus: b.askPrometheus, sideTocsin: b.askTocsin, sideCluster: b.askCluster, sideThanos: b.askThanos,
		}[name]
		if err := start(ctx, s, filepath.Join(dir, name), prepared); err != nil {
			return err
		}
	}
	// The last samples of all targets are there, and no time stamp is a target's own.
	end := h.to.Truncate(time.Minute).Add(-500 * time.Millisecond)
	questions := panels(end, o.history)
	for _, s := range sides {
		if err := s.waitData(ctx, end, o.targets); err != nil {
			return err
		}
		s.took = make([][]time.Duration, len(questions))
	}
	verdicts, err := b.compareAnswers(ctx, sides, questions)
	if err != nil {
		return err
	}
	b.say("query: %d queries, %d rounds, load average %s", len(questions), o.rounds, loadAverage())
	for round := range o.rounds {
		for i, q := range questions {
			for j := range sides {
				s := sides[(i+j+round)%len(sides)] // Nobody always comes after the same one.
				before, err := s.used()
				if err != nil {
					return err
				}
				took, err := s.time(ctx, q, o.clients)
				if err != nil {
					return err
				}
				after, err := s.used()
				if err != nil {
					return err
				}
				s.cpu += after - before
				s.took[i] = append(s.took[i], took)
			}
		}
	}
	b.queryTable(h, sides, questions, verdicts)
	return nil
}

// waitData waits until a side has the data. Thanos finds its stores by and by.
func (a *asked) waitData(ctx context.Context, end time.Time, targets int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, fmt.Errorf("%s did not have the data within two minutes", a.name))
	defer cancel()
	q := question{expr: `count(up{job=~"app-.+"})`, end: end}
	want := targets
	if a.name == sideThanos {
		q.more, want = url.Values{"dedup": {"false"}}, targets*replicas
	}
	for {
		got, err := a.ask(ctx, q)
		if err == nil && len(got.series) == 1 && len(got.series[0].values) == 1 && got.series[0].values[0].text == strconv.Itoa(want) {
			return nil
		}
		if e := sleep(ctx, 200*time.Millisecond); e != nil {
			return errors.Join(fmt.Errorf("%w: %v", e, got), err)
		}
	}
}

// time is how long an answer takes until its last byte, that of the last of all clients.
func (a *asked) time(ctx context.Context, q question, clients int) (time.Duration, error) {
	begin := time.Now()
	answered := make(chan error, clients)
	for range clients {
		go func() {
			body, err := a.open(ctx, q)
			if err == nil {
				_, err = io.Copy(io.Discard, body)
				err = errors.Join(err, body.Close())
			}
			answered <- err
		}()
	}
	var err error
	for range clients {
		err = errors.Join(err, <-answered)
	}
	if err != nil {
		return 0, fmt.Errorf("read the answer of %s to %s: %w", a.name, q, err)
	}
	return time.Since(begin), nil
}

func (a *asked) open(ctx context.Context, q question) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url+q.path(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask %s %s: %w", a.name, q, err)
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 500)) // only to tell more
		return nil, errors.Join(fmt.Errorf("ask %s %s: %s: %s", a.name, q, resp.Status, text), resp.Body.Close())
	}
	return resp.Body, nil
}

// noScrape is a configuration that scrapes nothing, so that all have the same data for ever.
const noScrape = "global:\n  external_labels:\n    replica: r%d\n"

func (b *bench) stockPrometheus(ctx context.Context, dir, prepared string, n int) (p *process, data string, err error) {
	data = filepath.Join(dir, fmt.Sprintf("data-%d", n))
	if err := copyTree(ctx, prepared, data); err != nil {
		return nil, "", err
	}
	config := filepath.Join(dir, fmt.Sprintf("prometheus-%d.yml", n))
	if err := os.WriteFile(config, fmt.Appendf(nil, noScrape, n), 0o644); err != nil {
		return nil, "", fmt.Errorf("write the configuration: %w", err)
	}
	a, err := freeAddressesOn(host(n+1), 1)
	if err != nil {
		return nil, "", err
	}
	p, err = start("prometheus", "http://"+a[0], filepath.Join(dir, fmt.Sprintf("prometheus-%d.log", n)), b.prometheus,
		"--config.file="+config, "--storage.tsdb.path="+data, "--web.listen-address="+a[0],
		// As a sidecar wants it, and the same for all: nobody compacts while others are asked.
		"--storage.tsdb.min-block-duration=2h", "--storage.tsdb.max-block-duration=2h")
	return p, data, err
}

func (b *bench) askPrometheus(ctx context.Context, a *asked, dir string, prepared []string) error {
	p, _, err := b.stockPrometheus(ctx, dir, prepared[0], 0)
	if err != nil {
		return err
	}
	a.url, a.processes = p.url, []*process{p}
	_, err = p.waitReady(ctx, b.readyTimeout)
	return err
}

func (b *bench) askTocsin(ctx context.Context, a *asked, dir string, prepared []string) error {
	config, data := filepath.Join(dir, "config"), filepath.Join(dir, "data")
	if err := writeConfig(config, b.interval, nil, "http://127.0.0.1:9/"); err != nil {
		return err
	}
	if err := copyTree(ctx, prepared[0], filepath.Join(data, tsdbDir)); err != nil {
		return err
	}
	s, err := b.start(setup{name: ours, config: config, data: data, log: dir,
		flags: []string{"--storage.tsdb.min-block-duration=2h", "--storage.tsdb.max-block-duration=2h"}})
	if err != nil {
		return err
	}
	a.url, a.processes = s.url(), s.processes
	if _, err := s.waitReady(ctx, b.readyTimeout); err != nil {
		return err
	}
	return s.waitComplete(ctx, b.heal.limit)
}

func (b *bench) askCluster(ctx context.Context, a *asked, dir string, prepared []string) error {
	c, err := b.newKeyed(dir, noScrape, replicas)
	if err != nil {
		return err
	}
	for i := range replicas {
		if err := copyTree(ctx, prepared[i], filepath.Join(c.data(i), tsdbDir)); err != nil {
			return err
		}
		s, err := c.start(i, "--storage.tsdb.min-block-duration=2h", "--storage.tsdb.max-block-duration=2h")
		if err != nil {
			return err
		}
		a.processes = append(a.processes, s.processes...)
	}
	a.url = c.replicas[0].url()
	for _, s := range c.replicas {
		if _, err := s.waitReady(ctx, b.readyTimeout); err != nil {
			return err
		}
		if err := s.waitComplete(ctx, b.heal.limit); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) askThanos(ctx context.Context, a *asked, dir string, prepared []string) error {
	args := []string{"query", "--query.replica-label=replica", "--log.level=warn"}
	for n := range replicas {
		p, data, err := b.stockPrometheus(ctx, dir, prepared[n], n)
		if err != nil {
			return err
		}
		a.processes = append(a.processes, p)
		own, err := freeAddressesOn(host(n+1), 2)
		if err != nil {
			return err
		}
		s, err := start("thanos sidecar", "http://"+own[0], filepath.Join(dir, fmt.Sprintf("sidecar-%d.log", n)), b.thanos, "sidecar",
			"--prometheus.url="+p.url, "--tsdb.path="+data, "--http-address="+own[0], "--grpc-address="+own[1], "--log.level=warn")
		if err != nil {
			return err
		}
		a.processes = append(a.processes, s)
		args = append(args, "--endpoint="+own[1])
	}
	own, err := freeAddressesOn(host(0), 2)
	if err != nil {
		return err
	}
	q, err := start("thanos query", "http://"+own[0], filepath.Join(dir, "query.log"), b.thanos,
		append(args, "--http-address="+own[0], "--grpc-address="+own[1])...)
	if err != nil {
		return err
	}
	a.processes, a.url = append(a.processes, q), q.url
	for _, p := range a.processes {
		if _, err := p.waitReady(ctx, b.readyTimeout); err != nil {
			return err
		}
	}
	return nil
}

// queryTable prints the times of all queries, their ratios, and the geometric means of these.
func (b *bench) queryTable(h history, sides []*asked, questions []question, verdicts [][]string) {
	byName := map[string]*asked{}
	head := []string{fmt.Sprintf("query: %d clients, %d series, %s every %s, median of %d, ms", b.query.clients, h.series, h.to.Sub(h.from).Round(time.Minute), b.query.interval, b.query.rounds)}
	for _, s := range sides {
		byName[s.name] = s
		head = append(head, s.name)
	}
	type ratio struct {
		of, to string
		limit  float64
		least  bool // the limit is a lower one
	}
	var ratios []ratio
	for _, r := range []ratio{{sideTocsin, sidePrometheus, 1.05, false}, {sideCluster, sidePrometheus, 1.05, false}, {sideThanos, sideTocsin, 5, true}, {sideThanos, sideCluster, 5, true}} {
		if byName[r.of] != nil && byName[r.to] != nil {
			ratios = append(ratios, r)
			head = append(head, r.of+"/"+r.to)
		}
	}
	cells := [][]string{append(head, "answers")}
	sums := make([]float64, len(ratios))
	for i, q := range questions {
		line := []string{"`" + q.String() + "`"}
		for _, s := range sides {
			line = append(line, fmt.Sprintf("%.1f", 1000*median(s.took[i])))
		}
		for j, r := range ratios {
			v := median(byName[r.of].took[i]) / median(byName[r.to].took[i])
			sums[j] += math.Log(v)
			line = append(line, fmt.Sprintf("%.2f", v))
		}
		cells = append(cells, append(line, strings.Join(verdicts[i], "; ")))
	}
	means, goals := []string{"geometric mean"}, []string{"goal"}
	for range sides {
		means, goals = append(means, ""), append(goals, "")
	}
	for j, r := range ratios {
		v := math.Exp(sums[j] / float64(len(questions)))
		sign, met := "≤", v <= r.limit
		if r.least {
			sign, met = "≥", v >= r.limit
		}
		verdict := "met"
		if !met {
			verdict = "missed"
		}
		means, goals = append(means, fmt.Sprintf("%.3f", v)), append(goals, fmt.Sprintf("%s %g, %s", sign, r.limit, verdict))
	}
	cpu := []string{"CPU seconds of all processes, all rounds"}
	for _, s := range sides {
		cpu = append(cpu, fmt.Sprintf("%.2f", s.cpu.Seconds()))
	}
	for _, r := range ratios {
		cpu = append(cpu, fmt.Sprintf("%.2f", byName[r.of].cpu.Seconds()/max(byName[r.to].cpu.Seconds(), 0.01)))
	}
	cells = append(cells, append(means, ""), append(goals, ""), append(cpu, ""))
	fmt.Fprintln(b.out)
	writeTable(b.out, cells)
	fmt.Fprintln(b.out)
}
