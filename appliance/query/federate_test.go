package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
)

const (
	protoType = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
)

// parsed is what a Prometheus that scrapes the answer would store.
type parsed struct {
	series string
	v      float64
	h      string
	t      int64
}

func parse(t testing.TB, r reply) []parsed {
	t.Helper()
	p, err := textparse.New([]byte(r.body), r.header.Get("Content-Type"), labels.NewSymbolTable(), textparse.ParserOptions{})
	if err != nil {
		t.Fatalf("%v: %q", err, r.body)
	}
	var out []parsed
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("%v: %q", err, r.body)
		}
		var lset labels.Labels
		var x parsed
		var ts *int64
		switch entry {
		case textparse.EntrySeries:
			_, ts, x.v = p.Series()
		case textparse.EntryHistogram:
			var h *histogram.Histogram
			var fh *histogram.FloatHistogram
			_, ts, h, fh = p.Histogram()
			if h != nil {
				fh = h.ToFloat(nil)
			}
			x.h = fh.String()
		default:
			continue
		}
		p.Labels(&lset)
		x.series, x.t = lset.String(), *ts
		out = append(out, x)
	}
}

func match(selectors ...string) string {
	return "/federate?" + url.Values{"match[]": selectors}.Encode()
}

func TestFederate(t *testing.T) {
	s := serve(t, nil)
	now := time.Now()
	ms := func(ago time.Duration) int64 { return now.Add(-ago).UnixMilli() }
	add := func(ago time.Duration, v float64, lset ...string) { s.add(t, now.Add(-ago), v, lset...) }
	add(2*time.Minute, 1, "__name__", "up", "instance", "a", "job", "node")
	add(time.Minute, 2, "__name__", "up", "instance", "a", "job", "node")
	add(time.Minute, 3, "__name__", "up", "instance", "b", "job", "node", "region", "south")
	add(time.Minute, 4, "__name__", "no_instance", "job", "x")
	add(10*time.Minute, 5, "__name__", "too_old", "job", "x")
	add(2*time.Minute, 6, "__name__", "gone", "job", "x")
	add(time.Minute, math.Float64frombits(value.StaleNaN), "__name__", "gone", "job", "x")
	add(time.Minute, 7, "nameless", "yes")
	add(time.Minute, 8, "__name__", "own_job")
	add(time.Minute, math.NaN(), "__name__", "not_a_number")
	add(time.Minute, 9, "__name__", "future")
	add(-5*time.Minute, 10, "__name__", "future")

	tests := []struct {
		name      string
		selectors []string
		want      []parsed
	}{
		{name: "the latest sample, external labels where they are missing", selectors: []string{"up"}, want: []parsed{
			{series: `{__name__="up", instance="a", job="node", region="north"}`, v: 2, t: ms(time.Minute)},
			{series: `{__name__="up", instance="b", job="node", region="south"}`, v: 3, t: ms(time.Minute)},
		}},
		{name: "an empty instance", selectors: []string{"no_instance"}, want: []parsed{
			{series: `{__name__="no_instance", instance="", job="x", region="north"}`, v: 4, t: ms(time.Minute)},
		}},
		{name: "an external label that the series lacks", selectors: []string{"own_job"}, want: []parsed{
			{series: `{__name__="own_job", instance="", job="unused", region="north"}`, v: 8, t: ms(time.Minute)},
		}},
		{name: "not in the lookback", selectors: []string{"too_old"}},
		{name: "stale", selectors: []string{"gone"}},
		{name: "nameless", selectors: []string{`{nameless="yes"}`}},
		{name: "not the future", selectors: []string{"future"}, want: []parsed{
			{series: `{__name__="future", instance="", job="unused", region="north"}`, v: 9, t: ms(time.Minute)},
		}},
		{name: "nothing", selectors: []string{"nothing"}},
		{name: "overlapping selectors give each series once", selectors: []string{`{job="x"}`, "no_instance", `{job="x"}`, "own_job"}, want: []parsed{
			{series: `{__name__="no_instance", instance="", job="x", region="north"}`, v: 4, t: ms(time.Minute)},
			{series: `{__name__="own_job", instance="", job="unused", region="north"}`, v: 8, t: ms(time.Minute)},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, accept := range []string{"", protoType, "text/plain;version=1.0.0;escaping=allow-utf-8"} {
				r := s.do(t, http.MethodGet, match(tt.selectors...), nil, "Accept", accept)
				if r.code != 200 {
					t.Fatalf("%s: %d %s", accept, r.code, r.body)
				}
				if got := parse(t, r); !slices.Equal(got, tt.want) {
					t.Errorf("%s:\n got %v\nwant %v", accept, got, tt.want)
				}
			}
		})
	}
	if r := s.do(t, http.MethodGet, match("not_a_number"), nil); !strings.Contains(r.body, " NaN ") {
		t.Errorf("a NaN that is a value is left out: %q", r.body)
	}
	r := s.do(t, http.MethodGet, match("up"), nil, "Accept-Encoding", "gzip")
	if r.header.Get("Content-Encoding") != "gzip" {
		t.Errorf("not compressed: %v", r.header)
	}
}

// Names come in order and each type line once, also when labels that sort before
// the name put the storage's order out of step, and for families in pieces.
func TestFederateOrder(t *testing.T) {
	for _, upper := range []bool{false, true} {
		t.Run(fmt.Sprint("upper-case label ", upper), func(t *testing.T) {
			s := serve(t, nil)
			app := s.store.Appender(context.Background())
			at := time.Now().Add(-time.Minute).UnixMilli()
			n := 2*maxFamilyPiece + 7
			for i := range n {
				for _, name := range []string{"b", "a", "c"} {
					lset := []string{"__name__", name, "i", fmt.Sprint(i)}
					if upper {
						lset = append(lset, "Upper", fmt.Sprint(i%7))
					}
					if _, err := app.Append(0, labels.FromStrings(lset...), at, float64(i)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := app.Commit(); err != nil {
				t.Fatal(err)
			}
			for _, accept := range []string{"", protoType} {
				r := s.do(t, http.MethodGet, match(`{__name__=~".+"}`, "a"), nil, "Accept", accept)
				got := parse(t, r)
				if len(got) != 3*n {
					t.Fatalf("%d series, want %d", len(got), 3*n)
				}
				seen := map[string]bool{}
				last := ""
				for _, x := range got {
					name := x.series[strings.Index(x.series, `__name__="`)+10:][:1]
					if name < last {
						t.Fatalf("%s after %s", name, last)
					}
					last = name
					if seen[x.series] {
						t.Fatalf("twice: %s", x.series)
					}
					seen[x.series] = true
				}
				if accept == "" {
					if c := strings.Count(r.body, "# TYPE "); c != 3 {
						t.Errorf("%d type lines, want 3", c)
					}
				}
			}
		})
	}
}

func TestFederateHistograms(t *testing.T) {
	s := serve(t, nil)
	at := time.Now().Add(-time.Minute).UnixMilli()
	app := s.store.Appender(context.Background())
	add := func(name string, h *histogram.Histogram, fh *histogram.FloatHistogram) {
		for i := range int64(3) {
			if _, err := app.AppendHistogram(0, labels.FromStrings("__name__", name), at-3000+i*1000, h, fh); err != nil {
				t.Fatal(err)
			}
		}
	}
	h := tsdbutil.GenerateTestHistogram(3)
	gauge := tsdbutil.GenerateTestGaugeFloatHistogram(4)
	custom := tsdbutil.GenerateTestCustomBucketsHistogram(5)
	empty := &histogram.FloatHistogram{Schema: 1}
	add("native", h, nil)
	add("gauge", nil, gauge)
	add("custom", custom, nil)
	add("empty", nil, empty)
	if err := app.Commit(); err != nil {
		t.Fatal(err)
	}
	s.add(t, time.Now().Add(-time.Minute), 1, "__name__", "plain")

	r := s.do(t, http.MethodGet, match(`{__name__=~".+"}`), nil, "Accept", protoType)
	got := map[string]parsed{}
	for _, x := range parse(t, r) {
		name, _, _ := strings.Cut(strings.TrimPrefix(x.series, `{__name__="`), `"`)
		got[name+suffix(x.series)] = x
	}
	for name, want := range map[string]string{"native": h.ToFloat(nil).String(), "gauge": gauge.String(), "empty": empty.String()} {
		if got[name].h != want {
			t.Errorf("%s: got %s, want %s", name, got[name].h, want)
		}
	}
	if got["native"].t != at-1000 {
		t.Errorf("not the latest: %d", got["native"].t)
	}
	if x := got["custom_count"]; x.v != float64(custom.Count) {
		t.Errorf("custom: %v", got)
	}

	text := s.do(t, http.MethodGet, match(`{__name__=~".+"}`), nil)
	for _, want := range []string{"custom_bucket{", `le="+Inf"`, "plain{"} {
		if !strings.Contains(text.body, want) {
			t.Errorf("the text lacks %s", want)
		}
	}
	for _, no := range []string{"native", "gauge", "empty"} {
		if strings.Contains(text.body, no) {
			t.Errorf("the text has %s, which it cannot express", no)
		}
	}
	parse(t, text)
}

func suffix(series string) string {
	if i := strings.Index(series, `le="`); i >= 0 {
		le, _, _ := strings.Cut(series[i+4:], `"`)
		return le
	}
	return ""
}

func TestFederateEscaping(t *testing.T) {
	s := serve(t, nil)
	s.add(t, time.Now().Add(-time.Minute), 1, "__name__", "my.metric", "a.label", "x")
	tests := []struct{ accept, want string }{
		{"", "my_metric"},
		{"text/plain;version=0.0.4;escaping=dots", "my_dot_metric"},
		{"text/plain;version=1.0.0;escaping=allow-utf-8", `"my.metric"`},
		{"text/plain;version=0.0.4;escaping=values", "U__my_2e_metric"},
	}
	for _, tt := range tests {
		t.Run(tt.accept, func(t *testing.T) {
			r := s.do(t, http.MethodGet, match(`{"my.metric"}`), nil, "Accept", tt.accept)
			if !strings.Contains(r.body, tt.want) {
				t.Errorf("%s lacks %s", r.body, tt.want)
			}
		})
	}
}

func TestFederateRefuses(t *testing.T) {
	s := serve(t, nil)
	many := make([]string, maxSelectors+1)
	for i := range many {
		many[i] = fmt.Sprint("m", i)
	}
	for name, path := range map[string]string{
		"no selector":       "/federate",
		"empty selector":    match(""),
		"not a selector":    match("up{"),
		"an expression":     match("rate(up[5m])"),
		"bad escape":        "/federate?match[]=%zz",
		"semicolon":         "/federate?match[]=a;b",
		"too many":          match(many...),
		"a bad regular one": match(`{a=~"("}`),
	} {
		t.Run(name, func(t *testing.T) {
			for _, encoding := range []string{"identity", "gzip"} {
				r := s.do(t, http.MethodGet, path, nil, "Accept-Encoding", encoding)
				if r.code != 400 {
					t.Errorf("code %d: %s", r.code, r.body)
				}
				if encoding == "identity" {
					r.isErrorJSON(t)
				} else if r.header.Get("Content-Encoding") != "gzip" || !strings.HasPrefix(r.body, "\x1f\x8b") {
					t.Errorf("the header says %q, the body starts with %.2q", r.header.Get("Content-Encoding"), r.body)
				}
			}
		})
	}
	for want, fail := range map[int]error{503: tsdb.ErrNotReady, 500: errors.New("disk on fire")} {
		s.store.fail.Store(&fail)
		r := s.do(t, http.MethodGet, match("up"), nil)
		if r.code != want {
			t.Errorf("%v: code %d", fail, r.code)
		}
		r.isErrorJSON(t)
	}
	s.store.fail.Store(nil)
}

// deadlines is a client's connection as far as deadlines go.
type deadlines struct {
	discard
	set []time.Time
}

func (d *deadlines) SetWriteDeadline(t time.Time) error {
	d.set = append(d.set, t)
	return nil
}

// A client that reads slowly holds a querier, and with it the head: not for ever.
func TestAnswersHaveADeadline(t *testing.T) {
	s := serve(t, nil)
	for path, h := range map[string]http.Handler{match("up"): s.Federate(), "/api/v1/series?match[]=up": s.API()} {
		r, err := http.NewRequest(http.MethodGet, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		d := &deadlines{discard: discard{http.Header{}}}
		h.ServeHTTP(d, r)
		if len(d.set) != 2 || time.Until(d.set[0]) <= 0 || !d.set[1].IsZero() {
			t.Errorf("%s: deadlines %v, want one and its removal", path, d.set)
		}
	}
}

func FuzzFederate(f *testing.F) {
	s := serve(f, nil)
	s.add(f, time.Now().Add(-time.Minute), 1, "__name__", "up", "job", "x")
	for _, q := range []string{"match[]=up", "match[]=%7Bjob%3D%22x%22%7D", "match[]=%zz", "match[]=a;b", "", "match[]=", "match[]={}", "match[]=%7B__name__%3D~%22.%2B%22%7D&match[]=up"} {
		f.Add(q, "")
	}
	f.Add("match[]=up", protoType)
	f.Fuzz(func(t *testing.T, query, accept string) {
		if strings.ContainsFunc(query, func(r rune) bool { return r <= ' ' || r == '#' || r > 126 }) ||
			strings.ContainsFunc(accept, func(r rune) bool { return r < ' ' || r > 126 }) {
			return // not a request that a client can send
		}
		u, err := url.Parse(s.base + "/federate?" + query)
		if err != nil {
			return
		}
		r := s.do(t, http.MethodGet, "/federate?"+u.RawQuery, nil, "Accept", accept)
		switch r.code {
		case 200:
			if !strings.Contains(r.header.Get("Content-Type"), "encoding=text") && !strings.Contains(r.header.Get("Content-Type"), "compact") {
				parse(t, r)
			}
		case 400:
			r.isErrorJSON(t)
		default:
			t.Errorf("code %d: %s", r.code, r.body)
		}
	})
}
