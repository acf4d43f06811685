package federate

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"go.uber.org/goleak"

	"github.com/tocsin-io/tocsin/appliance/config"
)

func TestMain(m *testing.M) {
	// A client library of object storage starts one as soon as it is loaded.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/baidubce/bce-sdk-go/util/log.NewLogger.func1"))
}

// allow is one item of an allow list.
func allow(t testing.TB, match string, keep ...string) config.Metric {
	t.Helper()
	ms, err := parser.ParseMetricSelector(match)
	if err != nil {
		t.Fatal(err)
	}
	return config.Metric{Match: match, Labels: keep, Matchers: ms}
}

func section(t testing.TB, name, address string, metrics ...config.Metric) *config.Upstream {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return &config.Upstream{
		Name:                  name,
		URL:                   &commonconfig.URL{URL: u},
		Interval:              model.Duration(time.Minute),
		Timeout:               model.Duration(10 * time.Second),
		HTTPClientConfig:      commonconfig.DefaultHTTPClientConfig,
		OriginLabel:           "source",
		Metrics:               metrics,
		BodySizeLimit:         50 << 20,
		SampleLimit:           50_000,
		LabelLimit:            64,
		LabelNameLengthLimit:  512,
		LabelValueLengthLimit: 4096,
	}
}

// server is an upstream whose behaviour can be changed.
type server struct {
	*httptest.Server
	mu      sync.Mutex
	handler http.HandlerFunc
}

func newServer(t testing.TB, h http.HandlerFunc) *server {
	t.Helper()
	s := &server{handler: h}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		h := s.handler
		s.mu.Unlock()
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) serve(h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handler = h
}

const textType = "text/plain; version=0.0.4; charset=utf-8"

func text(lines ...string) http.HandlerFunc {
	return body(textType, []byte(strings.Join(lines, "\n")+"\n"))
}

func body(contentType string, b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(b)
	}
}

// bench is a Federate over a real TSDB, driven pull by pull.
type bench struct {
	*Federate
	db   *tsdb.DB
	reg  *prometheus.Registry
	logs *bytes.Buffer
}

func newBench(t testing.TB) *bench {
	t.Helper()
	opts := tsdb.DefaultOptions()
	opts.StripeSize = 64 // cheap to open
	opts.OutOfOrderTimeWindow = (2 * time.Hour).Milliseconds()
	db, err := tsdb.Open(t.TempDir(), slog.New(slog.DiscardHandler), nil, opts, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &bench{db: db, reg: prometheus.NewRegistry(), logs: &bytes.Buffer{}}
	b.Federate, err = New(Options{
		Logger:     slog.New(slog.NewTextHandler(b.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Registerer: b.reg,
		Appendable: db,
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) load(t testing.TB, sections ...*config.Upstream) {
	t.Helper()
	apply, err := b.Prepare(&config.Config{Federation: sections})
	if err != nil {
		t.Fatal(err)
	}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
}

// pull makes one pull of the upstream in the foreground and returns its error.
func (b *bench) pull(t testing.TB, name string) error {
	t.Helper()
	before := time.Now().UnixMilli()
	for time.Now().UnixMilli() == before { // two pulls never share a millisecond
		runtime.Gosched()
	}
	b.mu.Lock()
	p := b.pullers[name]
	b.mu.Unlock()
	p.adopt()
	p.pull(t.Context(), time.Now())
	t.Cleanup(p.current.client.CloseIdleConnections)
	return p.current.target.LastError()
}

type point struct {
	t     int64
	v     float64
	stale bool
	hist  bool
}

// stored reads everything back, by the text form of the labels.
func (b *bench) stored(t testing.TB) map[string][]point {
	t.Helper()
	q, err := b.db.Querier(math.MinInt64, math.MaxInt64)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	set := q.Select(context.Background(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	all := map[string][]point{}
	for set.Next() {
		s := set.At()
		var points []point
		it := s.Iterator(nil)
		for typ := it.Next(); typ != chunkenc.ValNone; typ = it.Next() {
			switch typ {
			case chunkenc.ValFloat:
				ts, v := it.At()
				points = append(points, point{t: ts, v: v, stale: value.IsStaleNaN(v)})
			default:
				ts, h := it.AtFloatHistogram(nil)
				points = append(points, point{t: ts, v: h.Count, stale: value.IsStaleNaN(h.Sum), hist: true})
			}
		}
		if it.Err() != nil {
			t.Fatal(it.Err())
		}
		all[s.Labels().String()] = points
	}
	if set.Err() != nil {
		t.Fatal(set.Err())
	}
	return all
}

// pulled is stored without the health series.
func (b *bench) pulled(t testing.TB) map[string][]point {
	t.Helper()
	all := b.stored(t)
	for k := range all {
		if strings.Contains(k, `job="federate"`) {
			delete(all, k)
		}
	}
	return all
}

func (b *bench) wantSeries(t testing.TB, want ...string) {
	t.Helper()
	got := b.pulled(t)
	for _, w := range want {
		if _, ok := got[w]; !ok {
			t.Errorf("series %s is not stored", w)
		}
		delete(got, w)
	}
	for g := range got {
		t.Errorf("series %s is stored", g)
	}
}

func (b *bench) wantLast(t testing.TB, series string, want float64) {
	t.Helper()
	points := b.stored(t)[series]
	if len(points) == 0 || points[len(points)-1].v != want {
		t.Errorf("%s = %v, want last value %v", series, points, want)
	}
}

func (b *bench) wantStale(t testing.TB, series string, want bool) {
	t.Helper()
	points := b.stored(t)[series]
	if len(points) == 0 || points[len(points)-1].stale != want {
		t.Errorf("%s = %v, want stale at the end: %v", series, points, want)
	}
}

// metric sums a metric of ours over the series that have all given label values.
func (b *bench) metric(t testing.TB, name string, values ...string) float64 {
	t.Helper()
	families, err := b.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := math.NaN()
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	series:
		for _, m := range f.GetMetric() {
			for _, v := range values {
				found := false
				for _, l := range m.GetLabel() {
					found = found || l.GetValue() == v
				}
				if !found {
					continue series
				}
			}
			if math.IsNaN(sum) {
				sum = 0
			}
			sum += m.GetCounter().GetValue()
		}
	}
	return sum
}

func (b *bench) wantMetric(t testing.TB, want float64, name string, values ...string) {
	t.Helper()
	if got := b.metric(t, name, values...); got != want {
		t.Errorf("%s%v = %v, want %v", name, values, got, want)
	}
}

func wantError(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q lacks %q", err, p)
		}
	}
	if len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\n\x00") {
		t.Errorf("error is no sentence: %q", err)
	}
}

func health(name string, s *server) string {
	return fmt.Sprintf(`{__name__="up", instance="%s", job="federate", source="%s"}`, s.Listener.Addr(), name)
}

// allocated is what fn allocates in all, an upper bound of what it holds.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

type upstreamSection = config.Upstream

func configOf(c ...*config.Upstream) *config.Config { return &config.Config{Federation: c} }

func writePEM(t testing.TB, w io.Writer, certificate []byte) {
	t.Helper()
	if err := pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: certificate}); err != nil {
		t.Fatal(err)
	}
}
