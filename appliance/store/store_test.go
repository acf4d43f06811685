package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"go.uber.org/goleak"

	"github.com/tocsin-io/tocsin/appliance/config"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("STORE_TEST_APPEND_UNTIL_KILLED"); dir != "" {
		if err := appendUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/baidubce/bce-sdk-go/util/log.NewLogger.func1"))
}

// logBuffer keeps the log, to show it when a test fails and to look into it.
type logBuffer struct {
	mtx sync.Mutex
	b   bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mtx.Lock()
	defer l.mtx.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mtx.Lock()
	defer l.mtx.Unlock()
	return l.b.String()
}

// opened is a store that runs.
type opened struct {
	*Store
	t      testing.TB
	reg    *prometheus.Registry
	log    *logBuffer
	cancel context.CancelFunc
	done   chan error
	once   sync.Once
}

func noMount(string) (bool, error) { return false, nil }

// start runs a store in dir without waiting.
func start(t testing.TB, dir string, change ...func(*Options)) *opened {
	t.Helper()
	o := &opened{t: t, reg: prometheus.NewRegistry(), log: &logBuffer{}, done: make(chan error, 1)}
	opts := Options{
		Dir:        dir,
		Logger:     slog.New(slog.NewTextHandler(o.log, nil)),
		Registerer: o.reg,
		StripeSize: 64, // keeps tests light
		isMount:    noMount,
	}
	for _, c := range change {
		c(&opts)
	}
	s, err := New(opts)
	if err != nil {
		t.Fatalf("new store: %v", err)
	}
	o.Store = s
	var ctx context.Context
	ctx, o.cancel = context.WithCancel(context.Background())
	go func() { o.done <- s.Run(ctx) }()
	t.Cleanup(func() {
		o.stop()
		if t.Failed() {
			t.Logf("log:\n%s", o.log)
		}
	})
	return o
}

// open runs a store in dir and waits until it is ready.
func open(t testing.TB, dir string, change ...func(*Options)) *opened {
	t.Helper()
	o := start(t, dir, change...)
	select {
	case <-o.Ready():
	case err := <-o.done:
		o.done <- err
		t.Fatalf("store ended before it was ready: %v\n%s", err, o.log)
	case <-time.After(time.Minute):
		t.Fatalf("store did not become ready\n%s", o.log)
	}
	return o
}

func (o *opened) stop() {
	o.once.Do(func() {
		o.cancel()
		if err := <-o.done; err != nil {
			o.t.Errorf("run: %v", err)
		}
		if err := o.Close(); err != nil {
			o.t.Errorf("close: %v", err)
		}
	})
}

// append appends one sample to each of n series at each of the times.
func (o *opened) append(n int, times ...int64) {
	o.t.Helper()
	for _, at := range times {
		app := o.Appender(context.Background())
		for i := range n {
			if _, err := app.Append(0, seriesLabels(i), at, float64(at)); err != nil {
				o.t.Fatalf("append to series %d at %d: %v", i, at, err)
			}
		}
		if err := app.Commit(); err != nil {
			o.t.Fatalf("commit: %v", err)
		}
	}
}

// seriesLabels are fresh strings, all parts of one text, as scraping has them.
func seriesLabels(i int) labels.Labels {
	text := fmt.Sprintf("__name__ test_metric_%d instance host-%d:9100 job node zone z%d", i%50, i/50, i%3)
	f := strings.Fields(text)
	b := labels.NewScratchBuilder(len(f) / 2)
	for j := 0; j < len(f); j += 2 {
		b.Add(f[j], f[j+1])
	}
	b.Sort()
	return b.Labels()
}

// read returns the times of all samples of all series.
func read(t testing.TB, q storage.Queryable) map[string][]int64 {
	t.Helper()
	querier, err := q.Querier(math.MinInt64/2, math.MaxInt64/2)
	if err != nil {
		t.Fatalf("querier: %v", err)
	}
	defer querier.Close()
	res := map[string][]int64{}
	set := querier.Select(context.Background(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	for set.Next() {
		it := set.At().Iterator(nil)
		var times []int64
		for it.Next() == chunkenc.ValFloat {
			times = append(times, it.AtT())
		}
		if err := it.Err(); err != nil {
			t.Fatalf("read %s: %v", set.At().Labels(), err)
		}
		res[set.At().Labels().String()] = times
	}
	if err := set.Err(); err != nil {
		t.Fatalf("select: %v", err)
	}
	return res
}

func gauge(t testing.TB, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	t.Fatalf("metric %s is not there", name)
	return 0
}

func configured(change func(*promconfig.Config)) *config.Config {
	c := promconfig.DefaultConfig
	change(&c)
	return &config.Config{Prometheus: &c}
}

func TestNotReady(t *testing.T) {
	dir := t.TempDir()
	s, err := New(Options{Dir: dir, isMount: noMount})
	if err != nil {
		t.Fatal(err)
	}
	check := func(name string) {
		ctx := context.Background()
		app := s.Appender(ctx)
		app.SetOptions(nil)
		l := labels.FromStrings("__name__", "x")
		calls := map[string]func() error{
			"append":    func() error { _, err := app.Append(0, l, 1, 1); return err },
			"exemplar":  func() error { _, err := app.AppendExemplar(0, l, exemplar.Exemplar{}); return err },
			"histogram": func() error { _, err := app.AppendHistogram(0, l, 1, nil, nil); return err },
			"hist st":   func() error { _, err := app.AppendHistogramSTZeroSample(0, l, 2, 1, nil, nil); return err },
			"metadata":  func() error { _, err := app.UpdateMetadata(0, l, metadata.Metadata{}); return err },
			"st":        func() error { _, err := app.AppendSTZeroSample(0, l, 2, 1); return err },
			"commit":    app.Commit,
			"rollback":  app.Rollback,
			"querier":   func() error { _, err := s.Querier(0, 1); return err },
			"local":     func() error { _, err := s.Local().Querier(0, 1); return err },
			"chunks":    func() error { _, err := s.ChunkQuerier(0, 1); return err },
			"exemplars": func() error { _, err := s.ExemplarQuerier(ctx); return err },
			"start":     func() error { _, err := s.StartTime(); return err },
			"clean":     s.CleanTombstones,
			"delete":    func() error { return s.Delete(ctx, 0, 1) },
			"snapshot":  func() error { return s.Snapshot(dir, true) },
			"stats":     func() error { _, err := s.Stats("", 1); return err },
			"metas":     func() error { _, err := s.BlockMetas(); return err },
		}
		for what, call := range calls {
			if err := call(); !errors.Is(err, tsdb.ErrNotReady) {
				t.Errorf("%s, %s: got %v, want %v", name, what, err, tsdb.ErrNotReady)
			}
		}
		if ready, sentence := s.Condition(); ready || sentence == "" {
			t.Errorf("%s: condition is %v, %q", name, ready, sentence)
		}
	}
	check("before run")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check("after close")
	if err := s.Close(); err != nil {
		t.Fatalf("second close: %v", err)
	}
	if err := s.Run(context.Background()); err == nil {
		t.Fatal("run after close: no error")
	}
}

func TestAppendQueryRestart(t *testing.T) {
	dir := t.TempDir()
	now := time.Now().UnixMilli()
	o := open(t, dir)
	o.append(10, now-1000, now)
	if ready, sentence := o.Condition(); !ready || sentence != "serving" {
		t.Errorf("condition is %v, %q", ready, sentence)
	}
	want := read(t, o.Store)
	if len(want) != 10 {
		t.Fatalf("%d series, want 10", len(want))
	}
	if n := gauge(t, o.reg, "tocsin_storage_open_queriers"); n != 0 {
		t.Errorf("%v queriers open, want 0", n)
	}
	o.stop()

	o = open(t, dir)
	if got := read(t, o.Local()); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("after restart:\n got %v\nwant %v", got, want)
	}
	if _, err := os.Stat(filepath.Join(dir, quarantineDir)); !os.IsNotExist(err) {
		t.Errorf("a clean restart left a quarantine: %v", err)
	}
	for _, name := range []string{"tocsin_storage_ready", "prometheus_tsdb_lowest_timestamp_seconds", "prometheus_tsdb_head_max_time_seconds"} {
		if gauge(t, o.reg, name) <= 0 {
			t.Errorf("%s is not set", name)
		}
	}
}

func TestStopDuringReplay(t *testing.T) {
	dir := t.TempDir()
	now := time.Now().UnixMilli()
	open(t, dir).append(10, now)

	dir = t.TempDir()
	s, err := New(Options{Dir: dir, isMount: noMount})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Errorf("run: %v", err)
	}
	select {
	case <-s.Ready():
		t.Error("it says that it is ready")
	default:
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestCloseIsBounded(t *testing.T) {
	o := open(t, t.TempDir(), func(o *Options) { o.CloseTimeout = 50 * time.Millisecond })
	o.append(1, time.Now().UnixMilli())
	// A querier on a block is what holds Close; compacting makes one.
	if err := o.local.db.Load().CompactHead(tsdb.NewRangeHead(o.local.db.Load().Head(), 0, math.MaxInt64-1)); err != nil {
		t.Fatal(err)
	}
	q, err := o.Querier(0, math.MaxInt64/2)
	if err != nil {
		t.Fatal(err)
	}
	o.cancel()
	if err := <-o.done; err != nil {
		t.Error(err)
	}
	o.done <- nil
	err = o.Close()
	if !errors.Is(err, ErrCloseTimeout) || !strings.Contains(err.Error(), "1 queriers") {
		t.Errorf("close with an open querier: %v", err)
	}
	// Lets the TSDB go, and with it its goroutines.
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	o.once.Do(func() {})
}

func TestRetention(t *testing.T) {
	day := model.Duration(24 * time.Hour)
	with := func(r *promconfig.TSDBRetentionConfig) *config.Config {
		return configured(func(c *promconfig.Config) {
			c.StorageConfig.TSDBConfig = &promconfig.TSDBConfig{Retention: r}
		})
	}
	tests := []struct {
		name         string
		first, then  *config.Config
		wantTime     float64 // seconds, as upstream's metric
		wantSize     float64
		wantDuration time.Duration
	}{
		{"default", nil, nil, 15 * 86400, 0, 15 * 24 * time.Hour},
		{"no section", nil, configured(func(*promconfig.Config) {}), 15 * 86400, 0, 15 * 24 * time.Hour},
		{"time at start", with(&promconfig.TSDBRetentionConfig{Time: 3 * day}), nil, 3 * 86400, 0, 72 * time.Hour},
		{"size at start", with(&promconfig.TSDBRetentionConfig{Size: 1 << 30}), nil, 0, 1 << 30, 0},
		{"time reloaded", nil, with(&promconfig.TSDBRetentionConfig{Time: 3 * day}), 3 * 86400, 0, 72 * time.Hour},
		{"size reloaded", nil, with(&promconfig.TSDBRetentionConfig{Time: day, Size: 1 << 20}), 86400, 1 << 20, 24 * time.Hour},
		{"time to size", nil, with(&promconfig.TSDBRetentionConfig{Size: 1 << 20}), unlimitedRetention.Seconds(), 1 << 20, 0},
		{"size to time", with(&promconfig.TSDBRetentionConfig{Size: 1 << 20}), with(&promconfig.TSDBRetentionConfig{Time: day}), 86400, unlimitedBytes, 24 * time.Hour},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			o := open(t, t.TempDir(), func(o *Options) { o.Config = tc.first })
			if tc.then != nil {
				apply, err := o.Prepare(tc.then)
				if err != nil {
					t.Fatal(err)
				}
				if err := apply(); err != nil {
					t.Fatal(err)
				}
			}
			if got := gauge(t, o.reg, "prometheus_tsdb_retention_limit_seconds"); got != tc.wantTime {
				t.Errorf("time limit is %v, want %v", got, tc.wantTime)
			}
			if got := gauge(t, o.reg, "prometheus_tsdb_retention_limit_bytes"); got != tc.wantSize {
				t.Errorf("size limit is %v, want %v", got, tc.wantSize)
			}
			if got, _ := o.Retention(); got != tc.wantDuration {
				t.Errorf("retention is %v, want %v", got, tc.wantDuration)
			}
		})
	}
}

// A reload to a shorter retention deletes blocks, by time and by size, and
// none before.
func TestRetentionDeletes(t *testing.T) {
	now := time.Now().UnixMilli()
	hour := time.Hour.Milliseconds()
	limits := map[string]*promconfig.TSDBRetentionConfig{
		"time": {Time: model.Duration(3 * time.Hour)},
		"size": {Size: 1},
	}
	for name, limit := range limits {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, age := range []int64{20, 10, 1} {
				writeBlock(t, filepath.Join(dir, "tsdb"), now-age*hour, now-age*hour+1000)
			}
			o := open(t, dir, func(o *Options) { o.BlockReloadInterval = time.Second })
			if metas, _ := o.BlockMetas(); len(metas) != 3 {
				t.Fatalf("%d blocks at start, want 3", len(metas))
			}
			apply, err := o.Prepare(configured(func(c *promconfig.Config) {
				c.StorageConfig.TSDBConfig = &promconfig.TSDBConfig{Retention: limit}
			}))
			if err != nil {
				t.Fatal(err)
			}
			if err := apply(); err != nil {
				t.Fatal(err)
			}
			want := 1
			if name == "size" {
				want = 0
			}
			eventually(t, func() bool { metas, _ := o.BlockMetas(); return len(metas) == want })
		})
	}
}

func TestOutOfOrderAndExemplarReload(t *testing.T) {
	o := open(t, t.TempDir())
	now := time.Now().UnixMilli()
	hour := time.Hour.Milliseconds()
	o.append(1, now)
	try := func(at int64) error {
		app := o.Appender(context.Background())
		_, err := app.Append(0, seriesLabels(0), at, 1)
		return errors.Join(err, app.Rollback())
	}
	if err := try(now - 1*hour - hour/2); err != nil {
		t.Errorf("inside the default window: %v", err)
	}
	if err := try(now - 3*hour); !errors.Is(err, storage.ErrTooOldSample) {
		t.Errorf("outside of the default window: %v", err)
	}
	apply, err := o.Prepare(configured(func(c *promconfig.Config) {
		c.StorageConfig.ExemplarsConfig = &promconfig.ExemplarsConfig{MaxExemplars: 7}
		c.StorageConfig.TSDBConfig = &promconfig.TSDBConfig{OutOfOrderTimeWindow: 5 * hour}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	if err := try(now - 3*hour); err != nil {
		t.Errorf("inside the wider window: %v", err)
	}
	if got := gauge(t, o.reg, "prometheus_tsdb_exemplar_max_exemplars"); got != 7 {
		t.Errorf("%v exemplars, want 7", got)
	}
	// Back to no sections at all: the defaults, not none.
	apply, err = o.Prepare(configured(func(c *promconfig.Config) { c.StorageConfig = promconfig.StorageConfig{} }))
	if err != nil {
		t.Fatal(err)
	}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	if err := try(now - hour); err != nil {
		t.Errorf("inside the default window again: %v", err)
	}
	if got := gauge(t, o.reg, "prometheus_tsdb_exemplar_max_exemplars"); got != 100000 {
		t.Errorf("%v exemplars, want 100000", got)
	}
}

func eventually(t testing.TB, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatal("it did not come about in time")
		case <-tick.C:
		}
	}
}

// What is applied before replay is done holds once it is.
func TestApplyBeforeReady(t *testing.T) {
	reg := prometheus.NewRegistry()
	s, err := New(Options{Dir: t.TempDir(), Registerer: reg, isMount: noMount})
	if err != nil {
		t.Fatal(err)
	}
	apply, err := s.Prepare(configured(func(c *promconfig.Config) {
		c.StorageConfig.TSDBConfig = &promconfig.TSDBConfig{Retention: &promconfig.TSDBRetentionConfig{Size: 1 << 20}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	<-s.Ready()
	if got := gauge(t, reg, "prometheus_tsdb_retention_limit_bytes"); got != 1<<20 {
		t.Errorf("size limit is %v", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := apply(); err == nil {
		t.Error("apply after close: no error")
	}
}

// Data that cannot be opened ends Run with a sentence, and Close still works.
func TestRunFails(t *testing.T) {
	dir := t.TempDir()
	s, err := New(Options{Dir: dir, isMount: noMount})
	if err != nil {
		t.Fatal(err)
	}
	// A file where the TSDB wants a directory.
	if err := os.WriteFile(filepath.Join(dir, "tsdb", "wal"), nil, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(context.Background()); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("run: %v", err)
	}
	if ready, sentence := s.Condition(); ready || !strings.Contains(sentence, "could not be opened") {
		t.Errorf("condition is %v, %q", ready, sentence)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestOptionsRefused(t *testing.T) {
	for want, o := range map[string]Options{
		"needs a data directory": {},
		"WAL segment size":       {Dir: "x", WALSegmentSizeBytes: 1},
		"chunk segment size":     {Dir: "x", MaxBlockChunkSegmentSizeBytes: 1},
		"power of two":           {Dir: "x", StripeSize: 3},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q in %v", want, err)
		}
	}
}
