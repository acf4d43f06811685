package query

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/promslog"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/tocsin-io/tocsin/appliance/store"
)

// memory is samples by series.
type memory map[string][]pt

func lset(kv ...string) labels.Labels { return labels.FromStrings(kv...) }

func key(l labels.Labels) string { return string(l.Bytes(nil)) }

// sheet keeps the labels beside the samples.
type sheet struct {
	lsets []labels.Labels
	data  memory
}

func (s *sheet) add(l labels.Labels, pts ...pt) {
	if s.data == nil {
		s.data = memory{}
	}
	if _, ok := s.data[key(l)]; !ok {
		s.lsets = append(s.lsets, l)
		slices.SortFunc(s.lsets, labels.Compare)
	}
	s.data[key(l)] = append(s.data[key(l)], pts...)
}

// fill appends everything in the order of time, as scrapes do.
func (s *sheet) fill(t testing.TB, to storage.Appendable) {
	t.Helper()
	type row struct {
		l labels.Labels
		p pt
	}
	var rows []row
	for _, l := range s.lsets {
		for _, p := range s.data[key(l)] {
			rows = append(rows, row{l, p})
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int { return int(a.p.t - b.p.t) })
	app := to.Appender(t.Context())
	for i, r := range rows {
		var err error
		if r.p.h != nil || r.p.fh != nil {
			_, err = app.AppendHistogram(0, r.l, r.p.t, r.p.h, r.p.fh)
		} else {
			_, err = app.Append(0, r.l, r.p.t, r.p.f)
		}
		if err != nil {
			t.Fatalf("%s at %d: %v", r.l, r.p.t, err)
		}
		if i%2000 == 1999 {
			if err := app.Commit(); err != nil {
				t.Fatal(err)
			}
			app = to.Appender(t.Context())
		}
	}
	if err := app.Commit(); err != nil {
		t.Fatal(err)
	}
}

// others are replicas that hold a sheet in memory.
type others struct {
	*sheet
	gone atomic.Bool
	fail atomic.Pointer[error]
	warn atomic.Pointer[error]
	hang chan struct{} // when not nil, answers wait for it or for the end of the context
	// looked, when not nil, is called by whoever waits until they are found.
	looked func(context.Context)

	mtx   sync.Mutex
	asked []string
	ivs   []store.Interval
}

func (o *others) Available() bool { return !o.gone.Load() || o.looked != nil }

func (o *others) Found(ctx context.Context) bool {
	if o.looked != nil {
		o.looked(ctx)
	}
	return !o.gone.Load()
}

func (o *others) note(ctx context.Context, what string, iv store.Interval, ms []*labels.Matcher) (annotations.Annotations, error) {
	o.mtx.Lock()
	o.asked = append(o.asked, fmt.Sprint(what, " ", ms))
	o.ivs = append(o.ivs, iv)
	o.mtx.Unlock()
	if o.hang != nil {
		select {
		case <-o.hang:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := o.fail.Load(); err != nil {
		return nil, *err
	}
	if w := o.warn.Load(); w != nil {
		return annotations.New().Add(*w), nil
	}
	return nil, nil
}

func (o *others) questions() []string {
	o.mtx.Lock()
	defer o.mtx.Unlock()
	asked := o.asked
	o.asked, o.ivs = nil, nil
	return asked
}

func (o *others) each(iv store.Interval, ms []*labels.Matcher, f func(labels.Labels, []pt)) {
	for _, l := range o.lsets {
		if slices.ContainsFunc(ms, func(m *labels.Matcher) bool { return !m.Matches(l.Get(m.Name)) }) {
			continue
		}
		var in []pt
		for _, p := range o.data[key(l)] {
			if iv.Contains(p.t) {
				in = append(in, p)
			}
		}
		if len(in) > 0 {
			f(l, in)
		}
	}
}

func foreign(l labels.Labels, iv store.Interval, pts []pt) store.ForeignSeries {
	list := make([]chunks.Sample, len(pts))
	for i := range pts {
		list[i] = pts[i]
	}
	metas, err := storage.ExpandChunks(storage.NewSeriesToChunkEncoder(storage.NewListSeries(l, list)).Iterator(nil))
	if err != nil {
		panic(err) // The encoder knows each kind of sample there is here.
	}
	return store.ForeignSeries{Labels: l, Interval: iv, Chunks: metas}
}

func (o *others) Select(ctx context.Context, iv store.Interval, ms ...*labels.Matcher) (all []store.ForeignSeries, w annotations.Annotations, err error) {
	if w, err = o.note(ctx, "select", iv, ms); err != nil {
		return nil, nil, err
	}
	o.each(iv, ms, func(l labels.Labels, pts []pt) { all = append(all, foreign(l, iv, pts)) })
	return all, w, nil
}

func (o *others) LabelValues(ctx context.Context, name string, iv store.Interval, ms ...*labels.Matcher) (all []string, w annotations.Annotations, err error) {
	if w, err = o.note(ctx, "values "+name, iv, ms); err != nil {
		return nil, nil, err
	}
	o.each(iv, ms, func(l labels.Labels, _ []pt) {
		if v := l.Get(name); v != "" {
			all = append(all, v)
		}
	})
	slices.Sort(all)
	return slices.Compact(all), w, nil
}

func (o *others) LabelNames(ctx context.Context, iv store.Interval, ms ...*labels.Matcher) (all []string, w annotations.Annotations, err error) {
	if w, err = o.note(ctx, "names", iv, ms); err != nil {
		return nil, nil, err
	}
	o.each(iv, ms, func(l labels.Labels, _ []pt) { l.Range(func(l labels.Label) { all = append(all, l.Name) }) })
	slices.Sort(all)
	return slices.Compact(all), w, nil
}

// ledger answers as a store.Ledger does.
type ledger []store.Missing

func (l ledger) Missing(mint, maxt int64) (found []store.Missing) {
	for _, m := range l {
		if slices.ContainsFunc(m.Intervals, func(i store.Interval) bool { return i.Meets(mint, maxt) }) {
			found = append(found, m)
		}
	}
	return found
}

// replica is a Query over a real store, with others around it.
type replica struct {
	*Query
	own  *store.Store
	reg  *prometheus.Registry
	web  *httptest.Server
	http *http.Client
	// open begins the replay of the store.
	open func()
}

func newReplica(t testing.TB, begin bool, change func(*Options)) *replica {
	t.Helper()
	reg := prometheus.NewRegistry()
	own, err := store.New(store.Options{Dir: t.TempDir(), Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := own.Close(); err != nil {
			t.Error(err)
		}
	})
	cfg := promconfig.DefaultConfig
	o := Options{
		Registerer: reg, Gatherer: reg, Store: own, Dir: t.TempDir(), Ready: own.Ready(),
		Config: func() promconfig.Config { return cfg },
	}
	if change != nil {
		change(&o)
	}
	q, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{Query: q, own: own, reg: reg, web: httptest.NewServer(q.API()), http: &http.Client{Transport: &http.Transport{}}}
	t.Cleanup(func() {
		r.http.CloseIdleConnections()
		r.web.Close()
		if err := q.Close(); err != nil {
			t.Error(err)
		}
		if n := gauge(t, reg, "tocsin_storage_open_queriers"); n != 0 {
			t.Errorf("%v queriers were left open", n)
		}
	})
	r.open = func() {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- own.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		<-own.Ready()
	}
	if begin {
		r.open()
	}
	return r
}

func gauge(t testing.TB, reg prometheus.Gatherer, name string) float64 {
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
	t.Fatalf("no metric %s", name)
	return 0
}

type apiAnswer struct {
	Status    string
	ErrorType string
	Error     string
	Data      json.RawMessage
	Warnings  []string
	Infos     []string
	code      int
}

func (r *replica) get(t testing.TB, path string, params ...string) apiAnswer {
	t.Helper()
	form := url.Values{}
	for i := 0; i+1 < len(params); i += 2 {
		form.Add(params[i], params[i+1])
	}
	return r.read(t, "GET", path+"?"+form.Encode(), nil)
}

func (r *replica) read(t testing.TB, method, path string, body io.Reader) (a apiAnswer) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, r.web.URL+"/api/v1/"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", formType)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a.code = resp.StatusCode
	if resp.Header.Get("Content-Type") != "application/json" {
		a.Error = string(raw)
		return a
	}
	if err := json.Unmarshal(raw, &a); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return a
}

// world is what two replicas saw of the same targets, each at its own phase, and a gap of one of them.
type world struct {
	start, from, to, end int64 // ms; the gap lies between from and to
	whole                sheet // what own would have seen
	own, theirs, spliced sheet
}

const every = 15_000

// newWorld loses what lost selects of own data within the gap. A lasting gap reaches to the end.
func newWorld(lost func(labels.Labels) bool, markers, lasting bool) *world {
	w := &world{start: time.Now().Add(-2*time.Hour).Truncate(time.Minute).UnixMilli() - 333}
	w.end = w.start + 100*60_000
	w.from, w.to = w.start+40*60_000, w.start+65*60_000
	if lasting {
		w.to = store.Lasts
	}
	histograms := tsdbutil.GenerateTestHistograms(500)
	for i := range int64(3) {
		target := []string{"instance", fmt.Sprint("i", i), "job", "node"}
		named := func(name string, more ...string) labels.Labels {
			return lset(append(append([]string{"__name__", name}, target...), more...)...)
		}
		own, theirs := i*1000, i*1000+7000
		count := func(t int64) float64 {
			// Two resets, one of them in the gap.
			s := (t - w.start) / 1000
			switch {
			case s > 52*60:
				s -= 52 * 60
			case s > 20*60:
				s -= 20 * 60
			}
			return float64(s * (i + 1))
		}
		series := []struct {
			l     labels.Labels
			value func(t int64) pt
			live  func(t int64) bool
		}{
			{named("requests_total"), func(t int64) pt { return pt{t: t, f: count(t)} }, nil},
			{named("temperature"), func(t int64) pt { return pt{t: t, f: math.Round(50 * math.Sin(float64(t-w.start)/300_000))} }, nil},
			{named("switched"), func(t int64) pt { return pt{t: t, f: float64((t - w.start) / 240_000 % 2)} }, nil},
			{named("latency"), func(t int64) pt { return pt{t: t, h: histograms[(t-w.start)/every].Copy()} }, nil},
			{named("up"), func(t int64) pt { return pt{t: t, f: 1} }, nil},
			// Was there only while own was away.
			{named("short"), func(t int64) pt { return pt{t: t, f: 7} }, func(t int64) bool { return t > w.start+45*60_000 && t < w.start+50*60_000 }},
			// Ended in the gap.
			{named("ended"), func(t int64) pt { return pt{t: t, f: 8} }, func(t int64) bool { return t < w.start+47*60_000 }},
			// Began in the gap.
			{named("began"), func(t int64) pt { return pt{t: t, f: 9} }, func(t int64) bool { return t > w.start+55*60_000 }},
		}
		for _, s := range series {
			for side, phase := range map[*sheet]int64{&w.whole: own, &w.theirs: theirs} {
				was := false
				for t := w.start + phase; t < w.end; t += every {
					is := s.live == nil || s.live(t)
					switch {
					case is:
						side.add(s.l, s.value(t))
					case was:
						side.add(s.l, pt{t: t, f: math.Float64frombits(value.StaleNaN)})
					}
					was = is
				}
			}
			marked := false
			health := store.IsHealth(s.l.Get("__name__"))
			for _, p := range w.whole.data[key(s.l)] {
				switch {
				case !lost(s.l) || p.t <= w.from || p.t >= w.to:
					w.own.add(s.l, p)
				case markers && health:
					w.own.add(s.l, pt{t: p.t})
				case markers && !marked:
					marked = true
					m := pt{t: p.t, f: math.Float64frombits(value.StaleNaN)}
					w.own.add(s.l, m)
				}
			}
		}
	}
	// The edges are whole for own data.
	var all []labels.Labels
	all = append(all, w.own.lsets...)
	for _, l := range w.theirs.lsets {
		if _, ok := w.own.data[key(l)]; !ok {
			all = append(all, l)
		}
	}
	iv := store.Interval{From: w.from, To: w.to}
	for _, l := range all {
		pts := w.own.data[key(l)]
		if lost(l) && (!markers || !store.IsHealth(l.Get("__name__"))) {
			pts = spliceModel(pts, w.theirs.data[key(l)], iv)
		}
		w.spliced.add(l, pts...)
	}
	return w
}

func everything(labels.Labels) bool { return true }

func ofTarget(l labels.Labels) bool { return l.Get("instance") == "i1" }

// reference is a TSDB that has all of a sheet.
func (s *sheet) reference(t testing.TB) *tsdb.DB {
	t.Helper()
	db, err := tsdb.Open(t.TempDir(), promslog.NewNopLogger(), nil, tsdb.DefaultOptions(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	s.fill(t, db)
	return db
}
