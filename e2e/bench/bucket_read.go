package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

const (
	// readExtra is how much longer the data are than the queries: what is too young for a block is not uploaded.
	readExtra = 6 * time.Hour
	// loadedLimit is how long it may take until a reader knows all blocks.
	loadedLimit = 2 * time.Minute
	// readProfile is the length of the CPU profile of the first answers.
	readProfile = 5 * time.Second
)

// archiveSide is one that reads the bucket.
type archiveSide struct {
	name  string
	meter *meter
	start func(ctx context.Context, a *asked, dir string) (stores string, err error)
	// first and second are the times of each query, in the rounds, sums those of all queries of a round.
	first, second       [][]time.Duration
	firstSum, secondSum []time.Duration
	cpu                 [2]time.Duration // of all processes, of the first and the second time
	passed              [2]traffic       // likewise
}

// archivePanels are what dashboards ask of a week. The last one may be answered from what was downsampled.
func archivePanels(end time.Time, history time.Duration) []question {
	over := func(step time.Duration, expr string) question {
		return question{expr: expr, start: end.Add(-history), end: end, step: step, more: url.Values{"max_source_resolution": {"0s"}}}
	}
	const minute, hour = time.Minute, time.Hour
	q := []question{
		over(10*minute, `sum by (job) (rate(http_requests_total[10m]))`),
		over(5*minute, `sum by (job, code) (rate(http_requests_total[5m]))`),
		over(30*minute, `histogram_quantile(0.99, sum by (le, job) (rate(http_request_duration_seconds_bucket[30m])))`),
		over(5*minute, `1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[5m]))`),
		over(5*minute, `max by (job, instance) (go_runtime_stat_07_bytes)`),
		over(15*minute, `sum by (state) (app01_queue_messages)`),
		over(hour, `avg by (job) (avg_over_time(go_runtime_stat_02_bytes[1h]))`),
		over(hour, `sum by (handler) (increase(http_requests_total{code=~"5.."}[1h]))`),
		over(15*minute, `sum by (job) (rate(http_requests_total{code=~"5.."}[15m])) / sum by (job) (rate(http_requests_total[15m]))`),
		over(5*minute, `count by (job) (up == 1)`),
		over(hour, `sum by (job) (rate(http_request_duration_seconds_count[1h]))`),
	}
	q[len(q)-1].more = url.Values{"max_source_resolution": {"auto"}}
	return q
}

// rawPanels is how many of them are answered from raw blocks.
const rawPanels = 10

// bucketRead lets a replica with no data of its own, and a stock store gateway behind a stock querier, answer the same from the
// same bucket: with nothing at first, and then again.
func (b *bench) bucketRead(ctx context.Context) (err error) {
	o := b.bucket
	dir := filepath.Join(b.dir, "bucket-read")
	s3, err := b.startS3(ctx, dir, "blocks")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s3.end()) }()
	h, err := b.fillBucket(ctx, dir, s3)
	if err != nil {
		return err
	}
	count, err := countBlocks(filepath.Join(s3.root, "blocks"))
	if err != nil {
		return err
	}
	sides := []*archiveSide{{name: sideTocsin}, {name: sideThanos}}
	for _, s := range sides {
		if s.meter, err = newMeter(ctx, s3, "blocks", o.readLatency); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.meter.Close()) }()
	}
	sides[0].start, sides[1].start = b.readTocsin(sides[0].meter), b.readThanos(sides[1].meter)

	questions := archivePanels(h.to.Add(-500*time.Millisecond), o.readHistory)
	for _, s := range sides {
		s.first, s.second = make([][]time.Duration, len(questions)), make([][]time.Duration, len(questions))
	}
	verdicts, err := b.compareArchives(ctx, dir, sides, count, questions)
	if err != nil {
		return err
	}
	b.say("bucket: %d queries of %s, %d rounds, %d blocks, load average %s", len(questions), brief(o.readHistory), o.readRounds, count, loadAverage())
	for round := range o.readRounds {
		for j := range sides {
			s := sides[(j+round)%len(sides)]
			if err := b.readRound(ctx, s, filepath.Join(dir, fmt.Sprintf("%s-%d", s.name, round)), count, questions, round); err != nil {
				return err
			}
		}
	}
	b.readTable(h, count, sides, questions, verdicts)
	return nil
}

// fillBucket writes blocks as a compactor leaves them, of 2 and 8 hours and 2 days, and downsampled ones. What is told of them ends
// with the last one.
func (b *bench) fillBucket(ctx context.Context, dir string, s3 *s3Server) (h history, err error) {
	o := b.bucket
	machines, err := inventMachines(o.readTargets, 1, b.series)
	if err != nil {
		return h, err
	}
	begin := time.Now()
	blocks := filepath.Join(dir, "prepared")
	levels := func(t *tsdb.Options) {
		t.NewCompactorFunc = func(ctx context.Context, r prometheus.Registerer, l *slog.Logger, _ []int64, pool chunkenc.Pool, _ *tsdb.Options) (tsdb.Compactor, error) {
			const hour = int64(time.Hour / time.Millisecond)
			return tsdb.NewLeveledCompactor(ctx, r, l, []int64{2 * hour, 8 * hour, 48 * hour}, pool, nil)
		}
		t.RetentionDuration = 0
	}
	if h, err = writeHistoryFrom(ctx, blocks, machines, begin.Add(-o.readHistory-readExtra), func() time.Time { return begin }, o.readInterval, levels); err != nil {
		return h, err
	}
	metas, err := blockMetas(blocks)
	if err != nil {
		return h, err
	}
	var last int64
	for _, m := range metas {
		last = max(last, m.MaxTime)
	}
	if h.to = time.UnixMilli(last); h.to.Sub(h.from) < o.readHistory {
		return h, fmt.Errorf("the blocks end at %s, %s after the begin", h.to, h.to.Sub(h.from))
	}
	config := filepath.Join(dir, "bucket.yml")
	if err := os.WriteFile(config, []byte(s3Config(s3.address, "blocks")+"\n"), 0o600); err != nil {
		return h, fmt.Errorf("write the configuration: %w", err)
	}
	if err := b.uploadBlocks(ctx, blocks, config); err != nil {
		return h, err
	}
	a, err := freeAddresses(1)
	if err != nil {
		return h, err
	}
	if err := b.thanosTool(ctx, "compact", "--objstore.config-file="+config, "--data-dir="+filepath.Join(dir, "compact"), "--consistency-delay=0s",
		"--http-address="+a[0]); err != nil {
		return h, err
	}
	b.say("bucket: %.1f million samples of %d series over %s in %d blocks, written, uploaded and downsampled in %s", float64(h.samples)/1e6, h.series,
		brief(h.to.Sub(h.from).Truncate(time.Minute)), len(metas), time.Since(begin).Round(time.Second))
	return h, os.RemoveAll(blocks)
}

// blockMetas reads the meta.json of the blocks in a directory.
func blockMetas(dir string) (map[ulid.ULID]tsdb.BlockMeta, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*", metaFile))
	if err != nil {
		return nil, fmt.Errorf("list blocks: %w", err)
	}
	metas := map[ulid.ULID]tsdb.BlockMeta{}
	for _, f := range files {
		var m tsdb.BlockMeta
		text, err := os.ReadFile(f)
		if err == nil {
			err = json.Unmarshal(text, &m)
		}
		if err != nil {
			return nil, fmt.Errorf("read a block: %w", err)
		}
		metas[m.ULID] = m
	}
	return metas, nil
}

// countBlocks counts those in a bucket that are not to be deleted.
func countBlocks(root string) (n int, err error) {
	metas, err := blockMetas(root)
	if err != nil {
		return 0, err
	}
	for id := range metas {
		if _, err := os.Stat(filepath.Join(root, id.String(), "deletion-mark.json")); errors.Is(err, os.ErrNotExist) {
			n++
		}
	}
	return n, nil
}

// readTocsin starts one replica.
func (b *bench) readTocsin(m *meter) func(context.Context, *asked, string) (string, error) {
	return func(ctx context.Context, a *asked, dir string) (string, error) {
		c, err := b.newBucketReplicas(dir, bucketYML, s3Config(m.address, "blocks"), 1)
		if err != nil {
			return "", err
		}
		s, err := c.start(0)
		if err != nil {
			return "", err
		}
		a.url, a.processes = s.url(), s.processes
		_, err = s.waitReady(ctx, b.readyTimeout)
		return s.url(), err
	}
}

// readThanos starts a store gateway and a querier.
func (b *bench) readThanos(m *meter) func(context.Context, *asked, string) (string, error) {
	return func(ctx context.Context, a *asked, dir string) (string, error) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", fmt.Errorf("create the directory for the configuration: %w", err)
		}
		config := filepath.Join(dir, "bucket.yml")
		if err := os.WriteFile(config, []byte(s3Config(m.address, "blocks")+"\n"), 0o600); err != nil {
			return "", fmt.Errorf("write the configuration: %w", err)
		}
		own, err := freeAddresses(4)
		if err != nil {
			return "", err
		}
		store, err := start("thanos store", "http://"+own[0], filepath.Join(dir, "store.log"), b.thanos, "store", "--objstore.config-file="+config,
			"--data-dir="+filepath.Join(dir, "store"), "--http-address="+own[0], "--grpc-address="+own[1], "--log.level=warn")
		if err != nil {
			return "", err
		}
		a.processes = append(a.processes, store)
		if _, err := store.waitReady(ctx, b.readyTimeout); err != nil {
			return "", err
		}
		query, err := start("thanos query", "http://"+own[2], filepath.Join(dir, "query.log"), b.thanos, "query", "--endpoint="+own[1],
			"--query.replica-label=replica", "--query.replica-label=zone", "--http-address="+own[2], "--grpc-address="+own[3], "--log.level=warn")
		if err != nil {
			return "", err
		}
		a.processes, a.url = append(a.processes, query), query.url
		if _, err := query.waitReady(ctx, b.readyTimeout); err != nil {
			return "", err
		}
		return store.url, waitStore(ctx, query.url)
	}
}

// waitStore waits until a querier knows its store.
func waitStore(ctx context.Context, u string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, loadedLimit, fmt.Errorf("thanos query knew no store within %s", loadedLimit))
	defer cancel()
	for {
		var answer struct {
			Data map[string][]struct {
				LastError any `json:"lastError"`
			} `json:"data"`
		}
		text, err := get(ctx, u+"/api/v1/stores")
		if err == nil {
			err = json.Unmarshal(text, &answer)
		}
		if stores := answer.Data["store"]; err == nil && len(stores) > 0 && stores[0].LastError == nil {
			return nil
		}
		if e := sleep(ctx, 50*time.Millisecond); e != nil {
			return errors.Join(e, err)
		}
	}
}

// open starts a side with nothing and waits until it has listed all blocks.
func (s *archiveSide) open(ctx context.Context, dir string, blocks int) (*asked, error) {
	a := &asked{name: s.name, client: &http.Client{Transport: &http.Transport{}, Timeout: queryLimit}}
	stores, err := s.start(ctx, a, dir)
	if err == nil {
		err = waitLoaded(ctx, stores, blocks)
	}
	if err != nil {
		a.end()
		return nil, err
	}
	return a, nil
}

// waitLoaded waits until a reader has that many blocks. It reads the metric, because a query would warm what is to be cold.
func waitLoaded(ctx context.Context, u string, blocks int) error {
	const name = "thanos_bucket_store_blocks_loaded"
	ctx, cancel := context.WithTimeoutCause(ctx, loadedLimit, fmt.Errorf("%s had not loaded %d blocks within %s", u, blocks, loadedLimit))
	defer cancel()
	s := &side{name: u, processes: []*process{{url: u}}}
	for {
		n, err := s.metric(ctx, name)
		if err == nil && int(n) >= blocks {
			return nil
		}
		if e := sleep(ctx, 50*time.Millisecond); e != nil {
			return errors.Join(fmt.Errorf("%w: it has %v", e, n), err)
		}
	}
}

// compareArchives asks both sides everything once and compares the answers.
func (b *bench) compareArchives(ctx context.Context, dir string, sides []*archiveSide, blocks int, questions []question) ([][]string, error) {
	var all []*asked
	defer func() {
		for _, a := range all {
			a.end()
		}
	}()
	for _, s := range sides {
		a, err := s.open(ctx, filepath.Join(dir, s.name+"-compared"), blocks)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return b.compareAnswers(ctx, all, questions)
}

// readRound starts one side anew and asks it everything twice. Each round begins with another query, since the first one of all has
// more to fetch.
func (b *bench) readRound(ctx context.Context, s *archiveSide, dir string, blocks int, questions []question, round int) error {
	a, err := s.open(ctx, dir, blocks)
	if err != nil {
		return err
	}
	defer a.end()
	profiled := make(chan error, 1)
	go func() { profiled <- b.profileReading(ctx, s, a, round) }()
	for n, times := range [][][]time.Duration{s.first, s.second} {
		before, err := a.used()
		if err != nil {
			return err
		}
		passed, sum := s.meter.traffic(), time.Duration(0)
		for i := range questions {
			i = (i + round) % len(questions)
			took, err := a.time(ctx, questions[i], 1)
			if err != nil {
				return err
			}
			times[i] = append(times[i], took)
			if i < rawPanels {
				sum += took
			}
		}
		after, err := a.used()
		if err != nil {
			return err
		}
		now := s.meter.traffic()
		s.cpu[n] += after - before
		s.passed[n].gets, s.passed[n].read = s.passed[n].gets+now.gets-passed.gets, s.passed[n].read+now.read-passed.read
		if n == 0 {
			s.firstSum = append(s.firstSum, sum)
		} else {
			s.secondSum = append(s.secondSum, sum)
		}
	}
	return errors.Join(<-profiled, os.RemoveAll(dir))
}

// profileReading writes a CPU profile of the first round's begin, if that is wanted: of all processes of a side, one file each.
func (b *bench) profileReading(ctx context.Context, s *archiveSide, a *asked, round int) error {
	if b.profiles == "" || round > 0 {
		return nil
	}
	if err := os.MkdirAll(b.profiles, 0o755); err != nil {
		return fmt.Errorf("create the directory for profiles: %w", err)
	}
	done := make(chan error, len(a.processes))
	for i, p := range a.processes {
		go func() {
			one := &side{name: s.name, processes: []*process{p}}
			done <- one.profile(ctx, filepath.Join(b.profiles, fmt.Sprintf("bucket-read-%s-%d.cpu.pprof", s.name, i)), "profile", readProfile)
		}()
	}
	var err error
	for range a.processes {
		err = errors.Join(err, <-done)
	}
	return err
}

// readTable prints the times of all queries, their ratios, and the geometric means of those from raw blocks.
func (b *bench) readTable(h history, blocks int, sides []*archiveSide, questions []question, verdicts [][]string) {
	x, y := sides[0], sides[1]
	cells := [][]string{{
		fmt.Sprintf("bucket read: %d series, %s every %s, %d blocks, latency %s, median of %d, ms", h.series, brief(b.bucket.readHistory), b.bucket.readInterval, blocks,
			b.bucket.readLatency, b.bucket.readRounds),
		"tocsin, first", "thanos, first", "ratio", "tocsin, second", "thanos, second", "ratio", "tocsin, second/first", "answers",
	}}
	ms := func(v float64) string { return fmt.Sprintf("%.1f", 1000*v) }
	line := func(what string, x1, y1, x2, y2 float64, format func(float64) string, answers string) {
		ratio := func(v, w float64) string { return fmt.Sprintf("%.2f", v/max(w, 1e-9)) }
		cells = append(cells, []string{what, format(x1), format(y1), ratio(x1, y1), format(x2), format(y2), ratio(x2, y2), ratio(x2, x1), answers})
	}
	var first, second, again float64
	for i, q := range questions {
		x1, y1, x2, y2 := median(x.first[i]), median(y.first[i]), median(x.second[i]), median(y.second[i])
		what := "`" + q.expr + "` by " + brief(q.step)
		if i < rawPanels {
			first, second, again = first+math.Log(x1/y1)/rawPanels, second+math.Log(x2/y2)/rawPanels, again+math.Log(x2/x1)/rawPanels
		} else {
			what += ", max_source_resolution=auto"
		}
		line(what, x1, y1, x2, y2, ms, strings.Join(verdicts[i], "; "))
	}
	verdict := func(v, limit float64) string {
		if v > limit {
			return fmt.Sprintf("≤ %g, missed by %.1f %%", limit, 100*(v/limit-1))
		}
		return fmt.Sprintf("≤ %g, met", limit)
	}
	line("all of raw blocks, one after the other", median(x.firstSum), median(y.firstSum), median(x.secondSum), median(y.secondSum), ms, "")
	first, second, again = math.Exp(first), math.Exp(second), math.Exp(again)
	cells = append(cells,
		[]string{"geometric mean of those", "", "", fmt.Sprintf("%.3f", first), "", "", fmt.Sprintf("%.3f", second), fmt.Sprintf("%.3f", again), ""},
		[]string{"goal", "", "", verdict(first, 1.1), "", "", "", verdict(again, 0.5), ""})
	rounds := float64(b.bucket.readRounds)
	plain := func(v float64) string { return fmt.Sprintf("%.2f", v) }
	line("CPU seconds of all processes, a round", x.cpu[0].Seconds()/rounds, y.cpu[0].Seconds()/rounds, x.cpu[1].Seconds()/rounds, y.cpu[1].Seconds()/rounds, plain, "")
	line("GET requests to the bucket, a round", float64(x.passed[0].gets)/rounds, float64(y.passed[0].gets)/rounds,
		float64(x.passed[1].gets)/rounds, float64(y.passed[1].gets)/rounds, plain, "")
	line("MiB from the bucket, a round", mib(float64(x.passed[0].read))/rounds, mib(float64(y.passed[0].read))/rounds,
		mib(float64(x.passed[1].read))/rounds, mib(float64(y.passed[1].read))/rounds, plain, "")
	fmt.Fprintln(b.out)
	writeTable(b.out, cells)
	fmt.Fprintln(b.out)
}
