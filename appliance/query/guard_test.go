package query

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/klauspost/compress/gzip"
	"github.com/prometheus/prometheus/prompb"
)

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// peak is the memory allocated while f runs.
func peak(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestBodiesAreBounded(t *testing.T) {
	s := serve(t, func(o *Options) { o.EnableRemoteWrite, o.EnableOTLP = true, true })
	claim := binary.AppendUvarint(nil, 4_000_000_000)
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	if _, err := io.CopyN(w, zeros{}, 4*maxWriteBytes); err != nil {
		t.Fatal(err)
	}
	w.Close()
	tests := []struct {
		name, path string
		body       func() io.Reader
		header     []string
		code       int
		want       string
	}{
		{"remote write claims 4 GB", "/api/v1/write", func() io.Reader { return bytes.NewReader(claim) }, nil, 413, "4000000000"},
		{"remote read claims 4 GB", "/api/v1/read", func() io.Reader { return bytes.NewReader(claim) }, nil, 413, "4000000000"},
		{"remote read just over", "/api/v1/read", func() io.Reader { return bytes.NewReader(snappy.Encode(nil, make([]byte, maxReadBytes+1))) }, nil, 413, "limit"},
		{"an overlong length", "/api/v1/write", func() io.Reader { return bytes.NewReader(bytes.Repeat([]byte{0xff}, 20)) }, nil, 400, "snappy"},
		{"remote write without end", "/api/v1/write", func() io.Reader {
			return io.MultiReader(bytes.NewReader([]byte{1}), io.LimitReader(zeros{}, 2*maxWriteBytes))
		}, nil, 413, "larger"},
		{"remote write of empty series", "/api/v1/write", func() io.Reader {
			return bytes.NewReader(snappy.Encode(nil, bytes.Repeat([]byte{10, 0}, maxWriteBytes/2)))
		}, nil, 413, "elements"},
		{"remote write of a series of empty labels", "/api/v1/write", func() io.Reader {
			b := append([]byte{10}, binary.AppendUvarint(nil, maxWriteBytes-16)...)
			return bytes.NewReader(snappy.Encode(nil, append(b, bytes.Repeat([]byte{10, 0}, maxWriteBytes/2-8)...)))
		}, nil, 413, "elements"},
		{"remote read of empty queries", "/api/v1/read", func() io.Reader {
			return bytes.NewReader(snappy.Encode(nil, bytes.Repeat([]byte{10, 0}, maxReadBytes/2)))
		}, nil, 413, "elements"},
		{"OTLP of empty resources", "/api/v1/otlp/v1/metrics", func() io.Reader {
			return bytes.NewReader(bytes.Repeat([]byte{10, 0}, maxWriteBytes/2))
		}, []string{"Content-Type", "application/x-protobuf"}, 413, "elements"},
		{"OTLP of empty JSON objects", "/api/v1/otlp/v1/metrics", func() io.Reader {
			return strings.NewReader(`{"resourceMetrics":[` + strings.Repeat("{},", maxWriteBytes/3-20) + `{}]}`)
		}, []string{"Content-Type", "application/json"}, 413, "elements"},
		{"OTLP gzip bomb", "/api/v1/otlp/v1/metrics", func() io.Reader { return bytes.NewReader(gz.Bytes()) }, []string{"Content-Encoding", "gzip", "Content-Type", "application/x-protobuf"}, 413, "after decompression"},
		{"OTLP is no gzip", "/api/v1/otlp/v1/metrics", func() io.Reader { return strings.NewReader("x") }, []string{"Content-Encoding", "gzip", "Content-Type", "application/x-protobuf"}, 400, "decompress"},
		{"OTLP without end", "/api/v1/otlp/v1/metrics", func() io.Reader { return struct{ io.Reader }{io.LimitReader(zeros{}, 2*maxWriteBytes)} }, []string{"Content-Type", "application/x-protobuf"}, 413, "larger"},
		{"a form without end", "/api/v1/query", func() io.Reader { return struct{ io.Reader }{io.LimitReader(zeros{}, 2*maxFormBytes)} }, []string{"Content-Type", formType}, 413, "larger"},
		{"a form that is declared too large", "/api/v1/query", func() io.Reader { return bytes.NewReader(make([]byte, maxFormBytes+1)) }, []string{"Content-Type", formType}, 413, "larger"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r reply
			var err error
			used := peak(func() { r, err = s.try("POST", tt.path, tt.body(), tt.header...) })
			if err != nil {
				t.Logf("cut while still sending, which is fine too: %v", err)
			} else {
				if r.code != tt.code {
					t.Errorf("code %d, want %d: %.200s", r.code, tt.code, r.body)
				}
				r.isErrorJSON(t)
				if !strings.Contains(r.body, tt.want) {
					t.Errorf("%s lacks %q", r.body, tt.want)
				}
			}
			if used > 8*maxWriteBytes {
				t.Errorf("%d MiB allocated", used>>20)
			}
		})
	}
}

// What is within the bounds goes through unharmed.
func TestBodiesGoThrough(t *testing.T) {
	s := serve(t, func(o *Options) { o.EnableRemoteWrite, o.EnableOTLP = true, true })
	now := time.Now()
	raw, err := (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{{
		Labels:  []prompb.Label{{Name: "__name__", Value: "pushed"}},
		Samples: []prompb.Sample{{Value: 42, Timestamp: now.UnixMilli()}},
	}}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	r := s.do(t, "POST", "/api/v1/write", bytes.NewReader(snappy.Encode(nil, raw)), "Content-Type", "application/x-protobuf", "Content-Encoding", "snappy")
	if r.code != 204 {
		t.Fatalf("write: %d %s", r.code, r.body)
	}

	otlp := fmt.Sprintf(`{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"via.otlp","gauge":{"dataPoints":[{"timeUnixNano":"%d","asDouble":7}]}}]}]}]}`, now.UnixNano())
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	if _, err := w.Write([]byte(otlp)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	r = s.do(t, "POST", "/api/v1/otlp/v1/metrics", &gz, "Content-Type", "application/json", "Content-Encoding", "gzip")
	if r.code != 200 {
		t.Fatalf("otlp: %d %s", r.code, r.body)
	}
	r = s.do(t, "POST", "/api/v1/otlp/v1/metrics", strings.NewReader(otlp), "Content-Type", "application/json")
	if r.code != 200 {
		t.Fatalf("otlp uncompressed: %d %s", r.code, r.body)
	}
	for expr, want := range map[string]string{"pushed": `"42"`, "via_otlp": `"7"`} {
		if r := s.do(t, "GET", "/api/v1/query?query="+expr, nil); !strings.Contains(r.body, want) {
			t.Errorf("%s: %s", expr, r.body)
		}
	}

	raw, err = (&prompb.ReadRequest{Queries: []*prompb.Query{{
		StartTimestampMs: now.Add(-time.Hour).UnixMilli(), EndTimestampMs: now.UnixMilli(),
		Matchers: []*prompb.LabelMatcher{{Type: prompb.LabelMatcher_EQ, Name: "__name__", Value: "pushed"}},
	}}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	r = s.do(t, "POST", "/api/v1/read", bytes.NewReader(snappy.Encode(nil, raw)))
	if r.code != 200 {
		t.Fatalf("read: %d %s", r.code, r.body)
	}
	decoded, err := snappy.Decode(nil, []byte(r.body))
	if err != nil {
		t.Fatal(err)
	}
	var resp prompb.ReadResponse
	if err := resp.Unmarshal(decoded); err != nil {
		t.Fatal(err)
	}
	if len(resp.Results) != 1 || len(resp.Results[0].Timeseries) != 1 || resp.Results[0].Timeseries[0].Samples[0].Value != 42 {
		t.Errorf("read: %v", resp)
	}
}

// Without the guard these end the process: the stack of a goroutine cannot grow
// beyond its limit, and that cannot be recovered from.
func TestDeepExpressionsAreRefused(t *testing.T) {
	s := serve(t, nil)
	tests := []struct {
		name, expr string
		code       int
	}{
		{"parentheses", strings.Repeat("(", 400_000) + "1" + strings.Repeat(")", 400_000), 400},
		{"unary", strings.Repeat("-", 500_000) + "1", 400},
		{"chain", "1" + strings.Repeat("+1", 400_000), 400},
		{"functions", strings.Repeat("abs(", 200_000), 400},
		{"subqueries", "up" + strings.Repeat("[1m:1m]", 100_000), 400},
		{"too long", strings.Repeat("a", maxQueryBytes+1), 400},
		{"long and flat", `up{job=~"` + strings.Repeat("a|", 100_000) + `b"}`, 200},
		{"many matchers", "up{" + strings.Repeat(`a="b",`, 5_000) + "}", 200},
		{"deep enough", strings.Repeat("(", 200) + "up" + strings.Repeat(")", 200), 200},
		{"a long chain", "up" + strings.Repeat("+1", 400), 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, path := range []string{"query", "format_query", "parse_query", "query_exemplars"} {
				r := s.do(t, "POST", "/api/v1/"+path, strings.NewReader(url.Values{"query": {tt.expr}}.Encode()), "Content-Type", formType)
				if r.code != tt.code {
					t.Errorf("%s: code %d, want %d: %.200s", path, r.code, tt.code, r.body)
				}
				if r.code != 200 {
					r.isErrorJSON(t)
				}
			}
		})
	}
	// Printing is dearer than answering.
	chain := url.Values{"query": {"1" + strings.Repeat("+1", 2_000)}}.Encode()
	for path, code := range map[string]int{"query": 200, "format_query": 400, "parse_query": 400} {
		if r := s.do(t, "POST", "/api/v1/"+path, strings.NewReader(chain), "Content-Type", formType); r.code != code {
			t.Errorf("%s: code %d, want %d: %.200s", path, r.code, code, r.body)
		}
	}
}

func FuzzSnappyGuard(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0})
	f.Add(binary.AppendUvarint(nil, 1<<32))
	f.Add(snappy.Encode(nil, []byte("hello hello hello")))
	f.Add(bytes.Repeat([]byte{0xff}, 12))
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 16
		err := checkSnappyLength(b, limit)
		n, decErr := snappy.DecodedLen(b)
		if err == nil && (decErr == nil && n > limit) {
			t.Errorf("let %d bytes through", n)
		}
		if err != nil && decErr == nil && n <= limit {
			t.Errorf("refused %d bytes: %v", n, err)
		}
		var ref *refusal
		if err != nil && (!errors.As(err, &ref) || ref.code/100 != 4) {
			t.Errorf("not a refusal: %v", err)
		}
	})
}

func FuzzCheckExpression(f *testing.F) {
	for _, s := range []string{"up", "sum(rate(x[5m])) by (a)", "((((", "]]]]", `"unclosed`, "1+-1", "{a=~\"b\"}", strings.Repeat("(", 600), strings.Repeat("-", 11_000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		err := checkExpression(s, maxQueryOperators)
		if err == nil && strings.HasPrefix(s, strings.Repeat("(", maxQueryDepth+1)) {
			t.Error("let deep nesting through")
		}
	})
}

func FuzzElements(f *testing.F) {
	raw, err := (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{{
		Labels:  []prompb.Label{{Name: "a", Value: "b"}},
		Samples: []prompb.Sample{{Value: 1, Timestamp: 2}},
	}}}).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(bytes.Repeat([]byte{10, 0}, 200))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := limits{top: 50, elements: 100}
		err := checkElements(b, l)
		var req prompb.WriteRequest
		_ = req.Unmarshal(b) // what was decoded before an error counts too
		if len(req.Timeseries) > l.top && err == nil {
			t.Errorf("%d series let through", len(req.Timeseries))
		}
		n := len(req.Timeseries)
		for _, ts := range req.Timeseries {
			n += len(ts.Labels) + len(ts.Samples) + len(ts.Exemplars) + len(ts.Histograms)
		}
		if n > l.elements && err == nil {
			t.Errorf("%d elements let through", n)
		}
	})
}
