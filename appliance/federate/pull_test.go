package federate

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/proto"
)

func TestOnlyListedSeriesAndLabelsAreStored(t *testing.T) {
	now := time.Now().Add(-5 * time.Second).UnixMilli()
	srv := newServer(t, text(
		"# TYPE requests_total untyped",
		fmt.Sprintf(`requests_total{job="api",instance="",username="alice",cluster="evil",source="evil"} 1 %d`, now),
		fmt.Sprintf(`requests_total{job="web",code="200",source="evil"} 2 %d`, now),
		`forged_total{job="api"} 3`,
		`requests_total_but_longer 4`,
		`up{job="api",instance="a:1",env="x"} 1`,
	))
	b := newBench(t)
	c := section(t, "north", srv.URL, allow(t, "requests_total", "job", "cluster"), allow(t, `{__name__="up",job=~"a.*"}`, "instance"))
	c.Labels = map[string]string{"cluster": "north-1", "tier": "edge"}
	b.load(t, c)
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	b.wantSeries(t,
		`{__name__="requests_total", cluster="north-1", job="api", source="north", tier="edge"}`,
		`{__name__="requests_total", cluster="north-1", job="web", source="north", tier="edge"}`,
		`{__name__="up", cluster="north-1", instance="a:1", source="north", tier="edge"}`,
	)
	points := b.pulled(t)[`{__name__="requests_total", cluster="north-1", job="api", source="north", tier="edge"}`]
	if len(points) != 1 || points[0].t != now || points[0].v != 1 {
		t.Errorf("got %v, want the upstream's own value and timestamp", points)
	}
	b.wantMetric(t, 2, "tocsin_federation_series_dropped_total", "north", "metric_not_listed")
	b.wantMetric(t, 4, "tocsin_federation_labels_dropped_total", "north", "label_not_listed")
	b.wantMetric(t, 2, "tocsin_federation_labels_dropped_total", "north", "origin_label")
	b.wantMetric(t, 3, "tocsin_federation_samples_stored_total", "north")
	b.wantMetric(t, 1, "tocsin_federation_pulls_total", "north", "success")
	b.wantLast(t, health("north", srv), 1)
	b.wantLast(t, strings.Replace(health("north", srv), `"up"`, `"scrape_samples_scraped"`, 1), 5)
	b.wantLast(t, strings.Replace(health("north", srv), `"up"`, `"scrape_samples_post_metric_relabeling"`, 1), 3)
	b.wantLast(t, strings.Replace(health("north", srv), `"up"`, `"scrape_series_added"`, 1), 3)
}

func TestEmptyListStoresNothing(t *testing.T) {
	srv := newServer(t, text("a 1", "b 2"))
	b := newBench(t)
	b.load(t, section(t, "north", srv.URL))
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	b.wantSeries(t)
	b.wantLast(t, health("north", srv), 1)
}

func TestFirstMatchingItemRules(t *testing.T) {
	srv := newServer(t, text(`a{x="1",y="2"} 1`, `b{x="1",y="2"} 1`))
	b := newBench(t)
	b.load(t, section(t, "north", srv.URL, allow(t, `{x="1",__name__!="b"}`, "x"), allow(t, "a", "y"), allow(t, "b", "y"), allow(t, `{x="1"}`, "x")))
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	b.wantSeries(t, `{__name__="a", source="north", x="1"}`, `{__name__="b", source="north", y="2"}`)
}

func TestCollisionsAreDroppedCountedAndNamed(t *testing.T) {
	srv := newServer(t, text(`bad{user="a"} 1`, `good{user="a"} 1`))
	b := newBench(t)
	b.load(t, section(t, "north", srv.URL, allow(t, "bad"), allow(t, "good"), allow(t, "up", "job", "instance"), allow(t, "h_bucket")))
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	bad, good := `{__name__="bad", source="north"}`, `{__name__="good", source="north"}`
	b.wantSeries(t, bad, good)

	srv.serve(text(
		`bad{user="a"} 1`, `good{user="a"} 2`, `bad{user="b"} 2`, `bad{user="c"} 3`,
		`h_bucket{le="1"} 1`, `h_bucket{le="+Inf"} 2`,
		fmt.Sprintf(`up{job="federate",instance="%s"} 0`, srv.Listener.Addr()), // forges our own health
	))
	wantError(t, b.pull(t, "north"), "6 series of bad, h_bucket, up ")
	b.wantStale(t, bad, true)
	b.wantLast(t, good, 2)
	b.wantLast(t, health("north", srv), 1)
	b.wantMetric(t, 6, "tocsin_federation_collisions_total", "north")
	b.wantMetric(t, 1, "tocsin_federation_pulls_total", "north", "partial")
	b.wantSeries(t, bad, good)

	// The very same line twice is a collision too.
	srv.serve(text(`bad{user="a"} 1`, `bad{user="a"} 1`, `good 3`))
	wantError(t, b.pull(t, "north"), "2 series of bad ")

	srv.serve(text(`bad{user="a"} 5`, `good 4`))
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	b.wantLast(t, bad, 5)
}

func TestCollisionNamesAreBounded(t *testing.T) {
	var lines []string
	for i := range 12 {
		lines = append(lines, fmt.Sprintf(`m%02d{u="1"} 1`, i), fmt.Sprintf(`m%02d{u="2"} 1`, i))
	}
	srv := newServer(t, text(lines...))
	b := newBench(t)
	b.load(t, section(t, "north", srv.URL, allow(t, `{__name__=~"m.*"}`)))
	wantError(t, b.pull(t, "north"), "24 series of m00, m01, m02, m03, m04 and 7 more metrics")
}

// protobuf encodes as /federate does when it is asked for protobuf.
func protobuf(t testing.TB, families ...*dto.MetricFamily) []byte {
	t.Helper()
	var buf bytes.Buffer
	enc := expfmt.NewEncoder(&buf, expfmt.NewFormat(expfmt.TypeProtoDelim))
	for _, f := range families {
		if err := enc.Encode(f); err != nil {
			t.Fatal(err)
		}
	}
	return buf.Bytes()
}

const protobufType = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"

func pair(name, value string) *dto.LabelPair {
	return &dto.LabelPair{Name: proto.String(name), Value: proto.String(value)}
}

func untyped(name string, v float64, pairs ...*dto.LabelPair) *dto.MetricFamily {
	return &dto.MetricFamily{
		Name: proto.String(name), Type: dto.MetricType_UNTYPED.Enum(),
		Metric: []*dto.Metric{{Label: pairs, Untyped: &dto.Untyped{Value: proto.Float64(v)}}},
	}
}

func nativeHistogram(name string, typ dto.MetricType, ts int64) *dto.MetricFamily {
	return &dto.MetricFamily{
		Name: proto.String(name), Type: typ.Enum(),
		Metric: []*dto.Metric{{
			Label: []*dto.LabelPair{pair("job", "api"), pair("user", "alice")}, TimestampMs: proto.Int64(ts),
			Histogram: &dto.Histogram{
				SampleCountFloat: proto.Float64(6), SampleSum: proto.Float64(12), Schema: proto.Int32(0),
				ZeroThreshold: proto.Float64(0.001), ZeroCountFloat: proto.Float64(1),
				PositiveSpan: []*dto.BucketSpan{{Offset: proto.Int32(0), Length: proto.Uint32(2)}}, PositiveCount: []float64{2, 3},
			},
		}},
	}
}

func TestNativeHistogramsComeThroughProtobuf(t *testing.T) {
	now := time.Now().UnixMilli()
	classic := &dto.MetricFamily{
		Name: proto.String("custom"), Type: dto.MetricType_HISTOGRAM.Enum(),
		Metric: []*dto.Metric{{Histogram: &dto.Histogram{
			SampleCount: proto.Uint64(3), SampleSum: proto.Float64(2),
			Bucket: []*dto.Bucket{{UpperBound: proto.Float64(1), CumulativeCount: proto.Uint64(2)}, {UpperBound: proto.Float64(math.Inf(1)), CumulativeCount: proto.Uint64(3)}},
		}}},
	}
	typed := proto.Clone(classic).(*dto.MetricFamily)
	typed.Name = proto.String("typed")
	answer := protobuf(t,
		nativeHistogram("latency", dto.MetricType_HISTOGRAM, now),
		nativeHistogram("queue", dto.MetricType_GAUGE_HISTOGRAM, now),
		nativeHistogram("not_listed", dto.MetricType_HISTOGRAM, now),
		classic, typed,
		untyped("plain", 7, pair("instance", "")),
	)
	var accept string
	srv := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		accept = r.Header.Get("Accept")
		body(protobufType, answer)(w, r)
	})
	b := newBench(t)
	b.load(t, section(t, "north", srv.URL, allow(t, "latency", "job"), allow(t, "queue"), allow(t, "custom"), allow(t, `{__name__=~"typed_.*"}`, "le"), allow(t, "plain", "instance")))
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(accept, "application/vnd.google.protobuf") {
		t.Errorf("Accept is %q, want protobuf first", accept)
	}
	b.wantSeries(t,
		`{__name__="latency", job="api", source="north"}`,
		`{__name__="queue", source="north"}`,
		`{__name__="custom", source="north"}`, // a native histogram with custom buckets at the upstream
		`{__name__="typed_bucket", le="1.0", source="north"}`, `{__name__="typed_bucket", le="+Inf", source="north"}`,
		`{__name__="typed_count", source="north"}`, `{__name__="typed_sum", source="north"}`,
		`{__name__="plain", source="north"}`,
	)
	got := b.pulled(t)
	for _, s := range []string{`{__name__="latency", job="api", source="north"}`, `{__name__="custom", source="north"}`} {
		if p := got[s]; len(p) != 1 || !p[0].hist {
			t.Errorf("%s = %v, want one native histogram", s, p)
		}
	}
	srv.serve(body(protobufType, protobuf(t, untyped("plain", 8))))
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	b.wantStale(t, `{__name__="latency", job="api", source="north"}`, true)
}

// A family larger than a piece, and several pieces of text, are put together
// without a seam.
func TestLargeAnswers(t *testing.T) {
	const n = 8_000
	fam := &dto.MetricFamily{Name: proto.String("m"), Type: dto.MetricType_UNTYPED.Enum()}
	var lines strings.Builder
	lines.WriteString("# HELP m help\n# TYPE m summary\n")
	for i := range n {
		id := fmt.Sprintf("a-series-with-a-rather-long-name-%06d", i)
		fam.Metric = append(fam.Metric, &dto.Metric{Label: []*dto.LabelPair{pair("id", id)}, Untyped: &dto.Untyped{Value: proto.Float64(1)}})
		fmt.Fprintf(&lines, "m{id=%q,quantile=\"1\"} 1\n", id)
	}
	for name, h := range map[string]http.HandlerFunc{
		"protobuf":    body(protobufType, protobuf(t, fam)),
		"text":        body(textType, []byte(lines.String())),
		"no type":     body("", []byte(lines.String())),
		"openmetrics": body("application/openmetrics-text; version=1.0.0", []byte(lines.String()+"# EOF\n")),
		"gzip": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", textType)
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write([]byte(lines.String()))
			_ = z.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header()["Content-Type"] = nil // no sniffing
				h(w, r)
			})
			b := newBench(t)
			b.load(t, section(t, "north", srv.URL, allow(t, "m", "id", "quantile")))
			if err := b.pull(t, "north"); err != nil {
				t.Fatal(err)
			}
			got := b.pulled(t)
			if len(got) != n {
				t.Errorf("%d series stored, want %d", len(got), n)
			}
			// The type of the family reaches into the last piece.
			if name != "protobuf" {
				if _, ok := got[`{__name__="m", id="a-series-with-a-rather-long-name-007999", quantile="1.0", source="north"}`]; !ok {
					t.Error("the last series lacks the normalised quantile")
				}
			}
		})
	}
}

func TestLongListsAreSplitIntoSeveralRequests(t *testing.T) {
	var requests []string
	srv := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		requests = append(requests, r.URL.RequestURI())
		if r.Method != http.MethodGet || r.URL.Path != "/sub/path/federate" || r.URL.Query().Get("tenant") != "x" {
			t.Errorf("request is %s %s", r.Method, r.URL.Path)
		}
		w.Header().Set("Content-Type", textType)
		fmt.Fprintf(w, "common{part=\"same\"} %d\n", len(requests)) // selected by several requests
		fmt.Fprintf(w, "part{n=\"%d\"} 1\n", len(requests))
	})
	metrics := []struct{ name string }{}
	for i := range 300 {
		metrics = append(metrics, struct{ name string }{fmt.Sprintf(`{__name__="some_rather_long_metric_name_%03d",job="x"}`, i)})
	}
	c := section(t, "north", srv.URL+"/sub/path/?tenant=x", allow(t, "common", "part"), allow(t, "part", "n"), allow(t, "part"))
	for _, m := range metrics {
		c.Metrics = append(c.Metrics, allow(t, m.name))
	}
	b := newBench(t)
	b.load(t, c)
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	asked := 0
	for _, r := range requests {
		if len(r) > maxRequestURIBytes {
			t.Errorf("request of %d bytes", len(r))
		}
		asked += strings.Count(r, "match%5B%5D=")
	}
	if len(requests) < 2 || asked != 302 {
		t.Errorf("%d selectors in %d requests, want 302 in several", asked, len(requests))
	}
	if got := len(b.pulled(t)); got != 1+len(requests) {
		t.Errorf("%d series, want %d", got, 1+len(requests))
	}
}

func TestTimestamps(t *testing.T) {
	b := newBench(t)
	ago := func(d time.Duration) int64 { return time.Now().Add(-d).UnixMilli() }
	first := ago(30 * time.Second)
	srv := newServer(t, text(fmt.Sprintf("a 1 %d", first), fmt.Sprintf("future 1 %d", ago(-time.Hour)), "old 1 5", fmt.Sprintf("ahead 1 %d", ago(-time.Minute))))
	b.load(t, section(t, "north", srv.URL, allow(t, "a"), allow(t, "future"), allow(t, "old"), allow(t, "ahead")))
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	a, ahead := `{__name__="a", source="north"}`, `{__name__="ahead", source="north"}`
	b.wantSeries(t, a, ahead)
	b.wantMetric(t, 1, "tocsin_federation_samples_skipped_total", "too_far_in_future")
	b.wantMetric(t, 1, "tocsin_federation_samples_skipped_total", "too_old")

	// Nothing newer: no second sample, no stale marker.
	srv.serve(text(fmt.Sprintf("a 2 %d", first), fmt.Sprintf("ahead 1 %d", ago(-time.Minute))))
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	b.wantMetric(t, 1, "tocsin_federation_samples_skipped_total", "duplicate_timestamp")
	if p := b.pulled(t)[a]; len(p) != 1 || p[0].v != 1 {
		t.Errorf("a = %v, want the first sample alone", p)
	}

	// Gone: the marker comes after the last sample even where the upstream's
	// clock is ahead.
	srv.serve(text(""))
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	b.wantStale(t, a, true)
	b.wantStale(t, ahead, true)
	if p := b.pulled(t)[a]; len(p) != 2 || p[1].t < ago(10*time.Second) {
		t.Errorf("a = %v, want a stale marker at the time of the pull", p)
	}
	srv.serve(text("a 3"))
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	b.wantLast(t, a, 3)
}

func TestFailedPullMarksAllStale(t *testing.T) {
	srv := newServer(t, text("a 1"))
	b := newBench(t)
	b.load(t, section(t, "north", srv.URL, allow(t, "a")))
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	// Half of the answer is good, but it is not an answer.
	srv.serve(text("a 2", "b{ 3"))
	wantError(t, b.pull(t, "north"), "not valid exposition format after 1 samples")
	b.wantStale(t, `{__name__="a", source="north"}`, true)
	b.wantLast(t, health("north", srv), 0)
	srv.serve(text("a 3"))
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	b.wantLast(t, `{__name__="a", source="north"}`, 3)
	b.wantLast(t, health("north", srv), 1)
	if got := strings.Count(b.logs.String(), "level="); got != 2 {
		t.Errorf("%d log lines, want one per change:\n%s", got, b.logs)
	}
}

func TestNextPullKeepsItsPlaceInTheInterval(t *testing.T) {
	places := map[time.Duration]bool{}
	for i := range 20 {
		c := section(t, fmt.Sprintf("u%d", i), "http://h", allow(t, "a"))
		u, err := newUpstream(c)
		if err != nil {
			t.Fatal(err)
		}
		at := u.nextPull(time.Unix(1_800_000_000, 0))
		places[at.Sub(time.Unix(1_800_000_000, 0)).Truncate(time.Second)] = true
		for range 3 {
			if next := u.nextPull(at); next.Sub(at) != time.Minute {
				t.Errorf("next pull %s after the last, want 1m", next.Sub(at))
			}
			if again := u.nextPull(at.Add(-time.Nanosecond)); !again.Equal(at) {
				t.Errorf("planned %s, then %s", at, again)
			}
			at = at.Add(time.Minute)
		}
	}
	if len(places) < 10 {
		t.Errorf("20 upstreams share %d seconds", len(places))
	}
}

func TestPrepareRefuses(t *testing.T) {
	good := func() *upstreamSection { return section(t, "north", "http://h", allow(t, "a")) }
	for name, tc := range map[string]struct {
		change func(*upstreamSection)
		want   string
	}{
		"no matchers":  {func(c *upstreamSection) { c.Metrics[0].Matchers = nil }, "without matchers"},
		"no origin":    {func(c *upstreamSection) { c.OriginLabel = "" }, "origin_label"},
		"set origin":   {func(c *upstreamSection) { c.Labels = map[string]string{"source": "x"} }, "may not set source"},
		"no url":       {func(c *upstreamSection) { c.URL = nil }, "url is missing"},
		"no interval":  {func(c *upstreamSection) { c.Interval = 0 }, "above zero"},
		"missing file": {func(c *upstreamSection) { c.HTTPClientConfig.TLSConfig.CAFile = "/nonexistent/ca" }, "build the HTTP client"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.load(t, good())
			c := good()
			c.Interval = model.Duration(time.Hour)
			tc.change(c)
			if _, err := b.Prepare(configOf(c)); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), `"north"`) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
			if got := b.pullers["north"].wanted().cfg.Interval; got != model.Duration(time.Minute) {
				t.Error("a refused section was taken over")
			}
		})
	}
}
