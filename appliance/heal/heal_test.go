package heal

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/mesh"
	"github.com/tocsin-io/tocsin/appliance/store"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probe"),
		// A client of objstore's begins to log when it is imported.
		goleak.IgnoreAnyFunction("github.com/baidubce/bce-sdk-go/util/log.NewLogger.func1"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
	)
}

// patience is how long a trial waits for a condition.
const patience = 60 * time.Second

// trial is one replica: a real store with its ledger, on a real mesh with a key, and its healing.
type trial struct {
	*Heal
	t      *testing.T
	name   string
	dir    string
	store  *store.Store
	ledger *store.Ledger
	mesh   *mesh.Mesh
	groups []*rules.Group
	refs   map[string]storage.SeriesRef // What a scrape loop knows of its series.
	// rest ends the healing and waits.
	rest func()
}

type trialOptions struct {
	dir    string // "" is a new one
	seeds  []string
	window time.Duration
	groups []*rules.Group
	// alone is without a mesh.
	alone   bool
	archive Archive
}

// newTrial starts a replica.
func newTrial(t *testing.T, name string, o trialOptions) *trial {
	t.Helper()
	x := &trial{t: t, name: name, dir: o.dir, groups: o.groups, refs: map[string]storage.SeriesRef{}}
	if x.dir == "" {
		x.dir = t.TempDir()
	}
	cfg := &config.Config{
		Replica: config.Replica{Name: name, Zone: "zone-" + name},
		Cluster: &config.Cluster{Name: "test", Peers: o.seeds}, ClusterKeys: config.Keys{make([]byte, 32)},
	}
	logger := slog.New(slog.DiscardHandler)
	if os.Getenv("HEAL_LOG") != "" {
		logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("replica", name)
	}
	var err error
	x.store, err = store.New(store.Options{Dir: x.dir, Logger: logger})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	stored := make(chan error, 1)
	go func() { stored <- x.store.Run(ctx) }()
	select {
	case <-x.store.Ready():
	case err := <-stored:
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	settle := func() time.Duration { return time.Second }
	x.ledger, err = store.OpenLedger(store.LedgerOptions{
		Dir: filepath.Join(x.dir, "ledger"), Logger: logger, Registerer: reg, Settle: settle,
		Retention: func() time.Duration { return 24 * time.Hour },
	})
	require.NoError(t, err)
	ho := Options{
		Logger: logger, Registerer: reg, Store: x.store, Ledger: x.ledger, Archive: o.archive, Zone: cfg.Replica.Zone,
		External: func() labels.Labels { return labels.FromStrings("replica", name) },
		Settle:   settle, Groups: func() []*rules.Group { return x.groups }, Window: o.window,
		Engine: promql.NewEngine(promql.EngineOpts{MaxSamples: 1e7, Timeout: time.Minute}),
	}
	meshed := make(chan error, 1)
	meshed <- nil
	x.rest = func() {}
	t.Cleanup(func() {
		x.rest()
		cancel()
		require.NoError(t, <-meshed)
		require.NoError(t, <-stored)
		require.NoError(t, x.store.Close())
	})
	if o.alone {
		x.Heal, err = New(ho)
		require.NoError(t, err)
		return x
	}
	x.mesh, err = mesh.New(mesh.Options{
		Logger: slog.New(slog.DiscardHandler), Registerer: reg, Config: cfg, Dir: filepath.Join(x.dir, "mesh"),
		ListenAddress: "127.0.0.1:0", GRPCListenAddress: "127.0.0.1:0",
	})
	require.NoError(t, err)
	ho.Mesh = x.mesh
	x.Heal, err = New(ho)
	require.NoError(t, err)
	require.NoError(t, <-meshed)
	go func() { meshed <- x.mesh.Run(ctx) }()
	require.NoError(t, x.mesh.WaitReady(t.Context()))
	return x
}

func (x *trial) address() string {
	for _, m := range x.mesh.Members() {
		if m.Self {
			return m.Address
		}
	}
	x.t.Fatal("no address")
	return ""
}

// begin starts the ledger and the healing, as the start of scraping does.
func (x *trial) begin() {
	x.t.Helper()
	oldest, newest, err := x.store.TimeRange()
	require.NoError(x.t, err)
	x.ledger.Begin(time.Now(), newest, oldest == math.MaxInt64)
	x.work()
}

// work runs ledger and healing until rest is called.
func (x *trial) work() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- x.ledger.Run(ctx) }()
	go func() { done <- x.Heal.Run(ctx) }()
	x.rest = func() {
		x.rest = func() {}
		cancel()
		for range 2 {
			require.NoError(x.t, <-done)
		}
	}
}

// whole waits until nothing is missing.
func (x *trial) whole() {
	x.t.Helper()
	eventually(x.t, func() error {
		if open := x.ledger.Open(); len(open) > 0 {
			return fmt.Errorf("replica %s: %d gaps are open, the first: %+v; %s", x.name, len(open), open[0], x.Status().Problem)
		}
		return nil
	})
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatal(err)
		}
	}
}

// write appends samples of one moment.
func (x *trial) write(at int64, samples ...point) {
	x.t.Helper()
	app := x.store.Scrapes().Appender(x.t.Context())
	for _, s := range samples {
		var err error
		name := s.labels.String()
		if s.h != nil {
			x.refs[name], err = app.AppendHistogram(x.refs[name], s.labels, at, s.h, nil)
		} else {
			x.refs[name], err = app.Append(x.refs[name], s.labels, at, s.v)
		}
		require.NoError(x.t, err)
	}
	require.NoError(x.t, app.Commit())
}

type point struct {
	labels labels.Labels
	v      float64
	h      *histogram.Histogram
}

// samples is what the replica has on its own, by series and time.
func (x *trial) samples(ms ...*labels.Matcher) map[string]map[int64]string {
	x.t.Helper()
	q, err := x.store.Local().Querier(0, math.MaxInt64)
	require.NoError(x.t, err)
	defer func() { require.NoError(x.t, q.Close()) }()
	set := q.Select(x.t.Context(), false, nil, ms...)
	all := map[string]map[int64]string{}
	for set.Next() {
		s := set.At()
		in := map[int64]string{}
		it := s.Iterator(nil)
		for typ := it.Next(); typ != chunkenc.ValNone; typ = it.Next() {
			switch typ {
			case chunkenc.ValFloat:
				t, v := it.At()
				in[t] = fmt.Sprint(v)
				if value.IsStaleNaN(v) {
					in[t] = "stale"
				}
			case chunkenc.ValHistogram:
				t, h := it.AtHistogram(nil)
				in[t] = fmt.Sprint(h.Sum, h.Count, h.PositiveBuckets)
				if value.IsStaleNaN(h.Sum) {
					in[t] = "stale"
				}
			default:
				x.t.Fatal("unexpected type")
			}
		}
		require.NoError(x.t, it.Err())
		all[s.Labels().String()] = in
	}
	require.NoError(x.t, set.Err())
	return all
}

func named(name string) *labels.Matcher {
	return labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, name)
}

func anything() *labels.Matcher {
	return labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".+")
}

// world is a seeded history of three replicas that scrape the same targets, with what befell them. Samples of one slot
// are the same on all of them but for a few milliseconds of phase, so that there is one truth for all.
type world struct {
	rng      *rand.Rand
	start    int64
	every    int64
	slots    int
	targets  int
	replicas []string
	// down says in which slots a replica is away, and cut in which it does not reach a target.
	down map[string][]bool
	cut  map[string][]bool
}

func newWorld(seed uint64, start time.Time, slots int) *world {
	w := &world{
		rng: rand.New(rand.NewPCG(seed, 7)), start: start.UnixMilli() / 15000 * 15000, every: 15000,
		slots: slots, targets: 4, replicas: []string{"a", "b", "c"}, down: map[string][]bool{}, cut: map[string][]bool{},
	}
	spell := func(longest int) []bool {
		s := make([]bool, slots)
		for range w.rng.IntN(4) {
			// What touches the end would not be over.
			from := 8 + w.rng.IntN(slots-16)
			for n := from; n < min(from+1+w.rng.IntN(longest), slots-8); n++ {
				s[n] = true
			}
		}
		return s
	}
	for _, r := range w.replicas {
		w.down[r] = spell(slots / 3)
		for n := range w.targets {
			w.cut[key(r, n)] = spell(slots / 4)
		}
	}
	return w
}

func key(replica string, target int) string { return fmt.Sprint(replica, target) }

func (w *world) target(n int) []string {
	return []string{"instance", fmt.Sprintf("host-%d:9100", n), "job", "node"}
}

func (w *world) scraped(n, slot int) []point {
	ls := w.target(n)
	h := tsdbutil.GenerateTestHistogram(int64(slot))
	h.CounterResetHint = histogram.UnknownCounterReset
	return []point{
		{labels: labels.FromStrings(append(ls, "__name__", "requests_total")...), v: float64(slot * (n + 1))},
		{labels: labels.FromStrings(append(ls, "__name__", "temperature")...), v: math.Sin(float64(slot))},
		{labels: labels.FromStrings(append(ls, "__name__", "latency")...), h: h},
	}
}

func (w *world) up(n int, v float64) point {
	return point{labels: labels.FromStrings(append(w.target(n), "__name__", "up")...), v: v}
}

// play writes what one replica saw, and notes in its ledger when it was away.
func (w *world) play(x *trial, phase int64) {
	alive := map[int]bool{} // Targets whose series go on.
	for slot := range w.slots {
		at := w.start + int64(slot)*w.every + phase
		if w.down[x.name][slot] {
			clear(alive)
			continue
		}
		for n := range w.targets {
			var points []point
			if !w.cut[key(x.name, n)][slot] {
				points = append(points, w.up(n, 1))
				points = append(points, w.scraped(n, slot)...)
				alive[n] = true
				x.write(at, points...)
				continue
			}
			if alive[n] {
				for _, p := range w.scraped(n, slot) {
					p.h, p.v = nil, math.Float64frombits(value.StaleNaN)
					points = append(points, p)
				}
			}
			x.write(at, append(points, w.up(n, 0))...)
			delete(alive, n)
		}
	}
	for from := 0; from < w.slots; from++ {
		if !w.down[x.name][from] {
			continue
		}
		to := from
		for to < w.slots && w.down[x.name][to] {
			to++
		}
		x.ledger.Add(store.Gap{
			Kind: store.GapReplica, Cause: store.CauseDown, Found: time.Now(),
			Interval: store.Interval{From: w.start + int64(from-2)*w.every, To: w.start + int64(to+1)*w.every},
		})
		from = to
	}
}

// truth is in which slots a target was reached by anybody.
func (w *world) truth(n int) map[int]bool {
	all := map[int]bool{}
	for slot := range w.slots {
		for _, r := range w.replicas {
			if !w.down[r][slot] && !w.cut[key(r, n)][slot] {
				all[slot] = true
			}
		}
	}
	return all
}

// slotsOf are the slots in which a series has a real sample; each must be in one slot once, with its value.
func (w *world) slotsOf(t *testing.T, n int, name string, samples map[int64]string) map[int]bool {
	t.Helper()
	slots := map[int]bool{}
	for at, v := range samples {
		if v == "stale" {
			continue
		}
		slot := int((at - w.start) / w.every)
		require.False(t, slots[slot], "two samples of %s in slot %d", name, slot)
		slots[slot] = true
		for _, p := range w.scraped(n, slot) {
			if p.labels.Get(model.MetricNameLabel) != name {
				continue
			}
			want := fmt.Sprint(p.v)
			if p.h != nil {
				want = fmt.Sprint(p.h.Sum, p.h.Count, p.h.PositiveBuckets)
			}
			require.Equal(t, want, v, "%s in slot %d", name, slot)
		}
	}
	return slots
}

// TestEveryReplicaBecomesWhole plays random histories of kills and partitions on three replicas, has them heal each
// other, with interruptions, and holds each against the one truth.
func TestEveryReplicaBecomesWhole(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(seed, time.Now().Add(-50*time.Minute), 180)
			var all []*trial
			var seeds []string
			for n, name := range w.replicas {
				x := newTrial(t, name, trialOptions{seeds: seeds, window: 10 * time.Minute})
				w.play(x, int64(n)*100)
				seeds = append(seeds, x.address())
				all = append(all, x)
			}
			for _, x := range all {
				eventually(t, func() error {
					if n := len(x.mesh.Members()); n != len(all) {
						return fmt.Errorf("replica %s sees %d members", x.name, n)
					}
					return nil
				})
			}
			for _, x := range all {
				x.begin()
			}
			// Healing is stopped midway, and goes on.
			for range 3 {
				x := all[w.rng.IntN(len(all))]
				<-time.After(time.Duration(w.rng.IntN(1500)) * time.Millisecond)
				x.rest()
				x.work()
			}
			for _, x := range all {
				x.whole()
			}
			for n := range w.targets {
				truth := w.truth(n)
				for _, x := range all {
					for name, samples := range x.samples(labels.MustNewMatcher(labels.MatchEqual, "instance", w.target(n)[1])) {
						metric := strings.TrimPrefix(name, "{__name__=\"")
						metric = metric[:strings.IndexByte(metric, '"')]
						if store.IsHealth(metric) {
							continue
						}
						got := w.slotsOf(t, n, metric, samples)
						for slot := range w.slots {
							if truth[slot] != got[slot] {
								t.Errorf("replica %s, %s, slot %d: there %v, reached by anybody %v (down %v, cut %v)", x.name, name, slot,
									got[slot], truth[slot], w.down[x.name][slot], w.cut[key(x.name, n)][slot])
							}
						}
					}
				}
			}
			if t.Failed() {
				for _, x := range all {
					for _, g := range x.ledger.Gaps() {
						t.Logf("%s: %s %s [%d,%d] %s %v %+v", x.name, g.Kind, g.Labels, (g.From-w.start)/w.every, (g.To-w.start)/w.every, g.State, g.Missing, g.Fills)
					}
				}
			}
		})
	}
}

// TestScrapeHealthStays holds that what this zone saw of a target stays when the target's gap is healed.
func TestScrapeHealthStays(t *testing.T) {
	t.Parallel()
	w := newWorld(1, time.Now().Add(-30*time.Minute), 100)
	for _, r := range w.replicas {
		clear(w.down[r])
		for n := range w.targets {
			clear(w.cut[key(r, n)])
		}
	}
	for slot := 40; slot < 60; slot++ {
		w.cut[key("a", 0)][slot] = true
	}
	a := newTrial(t, "a", trialOptions{})
	w.play(a, 0)
	b := newTrial(t, "b", trialOptions{seeds: []string{a.address()}})
	w.play(b, 100)
	before := a.samples(named("up"))
	a.begin()
	b.begin()
	eventually(t, func() error {
		if !slices.ContainsFunc(a.ledger.Gaps(), func(g store.Gap) bool { return g.Kind == store.GapTarget && g.State == store.GapHealed }) {
			return fmt.Errorf("no gap was healed: %+v", a.ledger.Gaps())
		}
		return nil
	})
	a.whole()
	require.Equal(t, before, a.samples(named("up")))
	for name, samples := range a.samples(named("requests_total")) {
		require.Len(t, samples, 100, name)
	}
	// The other one has nothing to heal.
	b.whole()
	for _, g := range b.ledger.Gaps() {
		require.NotEqual(t, store.GapTarget, g.Kind)
	}
}

// TestAnEmptyReplicaRebuilds holds that a new replica gets all that the others have, and that they take nothing of it.
func TestAnEmptyReplicaRebuilds(t *testing.T) {
	t.Parallel()
	w := newWorld(3, time.Now().Add(-3*time.Hour), 700)
	for _, r := range w.replicas {
		clear(w.down[r])
		for n := range w.targets {
			clear(w.cut[key(r, n)])
		}
	}
	a := newTrial(t, "a", trialOptions{})
	w.play(a, 0)
	a.begin()
	b := newTrial(t, "b", trialOptions{seeds: []string{a.address()}})
	eventually(t, func() error {
		if len(b.mesh.Members()) < 2 {
			return fmt.Errorf("alone")
		}
		return nil
	})
	want := a.samples(anything())
	b.begin()
	b.whole()
	a.whole()
	require.Equal(t, want, b.samples(anything()))
	require.Equal(t, want, a.samples(anything()))
	record := httptest.NewRecorder()
	b.Handler().ServeHTTP(record, httptest.NewRequest(http.MethodGet, "/", nil))
	require.Contains(t, record.Body.String(), `"complete":true`)
	require.Contains(t, record.Body.String(), `"replica":"a","zone":"zone-a"`)
}

// fullDisk is a store whose disk is full for a while.
type fullDisk struct {
	Store
	full atomic.Bool
}

func (f *fullDisk) Import(ctx context.Context, in store.Interval, foreign store.ForeignSet, o store.ImportOptions) (store.Imported, error) {
	if f.full.Load() {
		return store.Imported{}, fmt.Errorf("import: %w", store.ErrNoSpace)
	}
	return f.Store.Import(ctx, in, foreign, o)
}

// TestAFullDiskPausesHealing holds that healing pauses when the disk is full, without blaming the replica that was asked,
// and goes on.
func TestAFullDiskPausesHealing(t *testing.T) {
	t.Parallel()
	a, w := sparse(t, trialOptions{})
	disk := &fullDisk{Store: a.opts.Store}
	disk.full.Store(true)
	a.opts.Store = disk
	b := newTrial(t, "b", trialOptions{seeds: []string{a.address()}})
	w.play(b, 100)
	b.begin()
	a.begin()
	eventually(t, func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.pause.IsZero() {
			return fmt.Errorf("it did not pause: %s", a.problem)
		}
		return nil
	})
	require.NotEmpty(t, a.ledger.Open())
	require.Contains(t, a.Status().Problem, store.ErrNoSpace.Error())
	require.Zero(t, testutil.ToFloat64(a.metrics.refused.WithLabelValues(failedAnswer)))
	disk.full.Store(false)
	a.mu.Lock()
	a.pause, a.backoff = time.Time{}, map[string]backoff{}
	a.mu.Unlock()
	a.whole()
}

// TestATargetThatIsDownGoesStale holds that markers are written once the others have not reached the target either.
func TestATargetThatIsDownGoesStale(t *testing.T) {
	t.Parallel()
	w := newWorld(1, time.Now().Add(-30*time.Minute), 100)
	var all []*trial
	var seeds []string
	for n, name := range w.replicas[:2] {
		clear(w.down[name])
		for target := range w.targets {
			clear(w.cut[key(name, target)])
		}
		for slot := 40; slot < 60; slot++ {
			w.cut[key(name, 0)][slot] = true
		}
		x := newTrial(t, name, trialOptions{seeds: seeds})
		w.play(x, int64(n)*100)
		require.Len(t, x.store.Held(), 1)
		seeds = append(seeds, x.address())
		all = append(all, x)
	}
	for _, x := range all {
		x.begin()
	}
	for _, x := range all {
		eventually(t, func() error {
			if held := x.store.Held(); len(held) > 0 {
				return fmt.Errorf("replica %s holds %+v", x.name, held)
			}
			return nil
		})
		x.whole()
		for name, samples := range x.samples(named("requests_total"), labels.MustNewMatcher(labels.MatchEqual, "instance", "host-0:9100")) {
			require.Len(t, samples, 81, name)
		}
		for _, g := range x.ledger.Gaps() {
			require.NotEqual(t, store.GapTarget, g.Kind)
		}
	}
}

// TestWhatWasLostIsRecalled holds that a part that nobody had is filled when a replica comes that has it.
func TestWhatWasLostIsRecalled(t *testing.T) {
	t.Parallel()
	a, w := sparse(t, trialOptions{})
	b := newTrial(t, "b", trialOptions{seeds: []string{a.address()}})
	b.begin()
	a.begin()
	a.whole()
	require.Equal(t, store.GapLost, a.ledger.Gaps()[0].State)
	require.Equal(t, []string{"b"}, a.ledger.Gaps()[0].Asked)
	c := newTrial(t, "c", trialOptions{seeds: []string{a.address()}})
	w.play(c, 100)
	c.begin()
	eventually(t, func() error {
		for name, samples := range a.samples(named("requests_total")) {
			if len(samples) != 100 {
				return fmt.Errorf("%s has %d samples", name, len(samples))
			}
		}
		return nil
	})
	a.whole()
}

// TestWhatOneThatIsAwayHasIsNotGivenUp holds that a gap stays open while a replica is away that was there before this one
// started.
func TestWhatOneThatIsAwayHasIsNotGivenUp(t *testing.T) {
	t.Parallel()
	b := newTrial(t, "b", trialOptions{})
	b.begin()
	dir := t.TempDir()
	seen := fmt.Sprintf(`{"peers":[{"name":"c","address":"127.0.0.1:9","last_seen":%q}]}`, time.Now().UTC().Add(-time.Hour).Format(time.RFC3339))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "mesh"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mesh", "peers.json"), []byte(seen), 0o600))
	a, _ := sparse(t, trialOptions{dir: dir, seeds: []string{b.address()}})
	a.begin()
	eventually(t, func() error {
		if a.Status().Problem != errWait.Error() {
			return fmt.Errorf("the problem is %q", a.Status().Problem)
		}
		return nil
	})
	require.Equal(t, store.GapOpen, a.ledger.Gaps()[0].State)
}
