package federate

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// endless writes what next appends, again and again, until the client has gone.
func endless(contentType string, written *atomic.Int64, next func(b []byte, i int) []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		var b []byte
		for i := 0; r.Context().Err() == nil; {
			b = b[:0]
			for len(b) < 32<<10 {
				b = next(b, i)
				i++
			}
			n, err := w.Write(b)
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	}
}

func zip(t testing.TB, size int, pattern string) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	chunk := bytes.Repeat([]byte(pattern), 1<<20/len(pattern))
	for range size >> 20 {
		_, _ = z.Write(chunk)
	}
	_ = z.Close()
	return buf.Bytes()
}

func zipped(contentType string, b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(b)
	}
}

// Whatever an upstream does, it costs bounded memory, it is down with a
// sentence, and its neighbour goes on.
func TestHostileUpstreams(t *testing.T) {
	elsewhere := newServer(t, text("a 1"))
	var written atomic.Int64
	for name, tc := range map[string]struct {
		serve  http.HandlerFunc
		change func(*config.Upstream)
		want   []string
		memory uint64 // bytes allocated in all, ours and the server's
	}{
		"endless body": {
			serve: endless(textType, &written, func(b []byte, _ int) []byte { return append(b, "# nothing at all in this line\n"...) }),
			want:  []string{"larger than 4194304 bytes (body_size_limit)"}, memory: 8 << 20,
		},
		"endless line": {
			serve: endless(textType, &written, func(b []byte, _ int) []byte { return append(b, "aaaaaaaaaaaaaaaa"...) }),
			want:  []string{"a line of more than 256 KiB"}, memory: 8 << 20,
		},
		"10 million series": {
			serve: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", textType)
				out := bufio.NewWriterSize(w, 64<<10)
				line := []byte(`a{id="0000000000"} 1` + "\n")
				for i := range 10_000_000 {
					for d, n := 15, i; n > 0; d, n = d-1, n/10 {
						line[d] = byte('0' + n%10)
					}
					if n, err := out.Write(line); err != nil {
						return
					} else {
						written.Add(int64(n))
					}
				}
			},
			change: func(c *config.Upstream) { c.Metrics[0].Labels = []string{"id"} },
			want:   []string{"more than 10000 samples (sample_limit)"}, memory: 32 << 20,
		},
		"10 million unlisted series": {
			serve: endless(textType, &written, func(b []byte, i int) []byte { return fmt.Appendf(b, "x%d 1\n", i) }),
			want:  []string{"more than 10000 samples (sample_limit)"}, memory: 32 << 20,
		},
		"gzip bomb": {
			serve: zipped(textType, zip(t, 64<<20, "# nothing at all, all day long.\n")),
			want:  []string{"larger than 4194304 bytes (body_size_limit)"}, memory: 16 << 20,
		},
		"endless empty gzip members": {
			serve: func() http.HandlerFunc {
				member := zip(t, 0, "0")
				return func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Encoding", "gzip")
					endless(textType, &written, func(b []byte, _ int) []byte { return append(b, member...) })(w, r)
				}
			}(),
			change: func(c *config.Upstream) { c.BodySizeLimit = 1 << 20 },
			want:   []string{"larger than 1048576 bytes (body_size_limit)"}, memory: 64 << 20,
		},
		// Small on the wire, so that no connection ends it when the time is up.
		"gzip bomb that is slow to parse": {
			serve: zipped(textType, zip(t, 64<<20, "\n")),
			change: func(c *config.Upstream) {
				c.Timeout, c.BodySizeLimit = model.Duration(200*time.Millisecond), 256<<20
			},
			want: []string{"no complete answer within 200ms"}, memory: 64 << 20,
		},
		"no gzip": {
			serve: zipped(textType, []byte("a 1\n")),
			want:  []string{"not valid gzip"},
		},
		"gzip cut short": {
			serve: zipped(textType, zip(t, 1<<20, "\n")[:100]),
			want:  []string{"not valid gzip"},
		},
		"other encoding": {
			serve: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Encoding", "br")
				text("a 1")(w, nil)
			},
			want: []string{`content encoding "br"`},
		},
		// The protobuf parser recurses once per empty family: this ends the
		// process where it is given as it is.
		"empty protobuf families": {
			serve: zipped(protobufType, zip(t, 8<<20, "\x00")),
			want:  []string{"larger than 4194304 bytes"}, memory: 16 << 20,
		},
		"protobuf family without end": {
			serve: endless(protobufType, &written, func(b []byte, i int) []byte {
				if i == 0 {
					return binary.AppendUvarint(b, 1<<40)
				}
				return append(b, 0x12, 1, 'h') // help, again and again
			}),
			want: []string{"larger than 4194304 bytes"}, memory: 8 << 20,
		},
		"protobuf nonsense": {serve: body(protobufType, bytes.Repeat([]byte{0xff}, 1000)), want: []string{"not valid protobuf"}},
		"protobuf huge metric": {
			serve: body(protobufType, append(binary.AppendUvarint(nil, 1<<30), append([]byte{0x0a, 1, 'a', 0x22}, binary.AppendUvarint(nil, 1<<29)...)...)),
			want:  []string{"a series of 536870912 bytes"}, memory: 8 << 20,
		},
		"protobuf buckets": {
			serve: func() http.HandlerFunc {
				h := nativeHistogram("a", 4, 0)
				h.Metric[0].Histogram.PositiveSpan[0].Length = new(uint32)
				*h.Metric[0].Histogram.PositiveSpan[0].Length = 3
				return body(protobufType, protobuf(t, h))
			}(),
			want: []string{"invalid native histogram of a"},
		},
		"slow drip": {
			serve: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", textType)
				tick := time.NewTicker(5 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-r.Context().Done():
						return
					case <-tick.C:
						_, _ = w.Write([]byte("a 1\n"))
						_ = http.NewResponseController(w).Flush()
					}
				}
			},
			change: func(c *config.Upstream) { c.Timeout = model.Duration(150 * time.Millisecond) },
			want:   []string{"no complete answer within 150ms"}, memory: 8 << 20,
		},
		"no answer": {
			serve:  func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			change: func(c *config.Upstream) { c.Timeout = model.Duration(100 * time.Millisecond) },
			want:   []string{"no complete answer within 100ms"},
		},
		"connection reset midway": {
			serve: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "1000")
				w.Header().Set("Content-Type", textType)
				_, _ = w.Write([]byte("a 1\n"))
				_ = http.NewResponseController(w).Flush()
				conn, _, err := http.NewResponseController(w).Hijack()
				if err == nil {
					_ = conn.(*net.TCPConn).SetLinger(0)
					_ = conn.Close()
				}
			},
			want: []string{"broke the connection off"},
		},
		"redirect elsewhere": {
			serve: func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, elsewhere.URL+"/federate", http.StatusFound)
			},
			want: []string{"redirects to " + elsewhere.Listener.Addr().String(), "may not redirect to another server"},
		},
		"redirect loop": {
			serve: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/federate?again", http.StatusFound) },
			want:  []string{"more than 5 times"},
		},
		"redirect switched off": {
			serve:  func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/else", http.StatusFound) },
			change: func(c *config.Upstream) { c.HTTPClientConfig.FollowRedirects = false },
			want:   []string{"follow_redirects is off"},
		},
		"web page":            {serve: body("text/html; charset=utf-8", []byte("<html>")), want: []string{"text/html", "login page"}},
		"protobuf text":       {serve: body("application/vnd.google.protobuf; encoding=text", []byte("name: 1")), want: []string{"no exposition format"}},
		"garbage":             {serve: body(textType, []byte("}{\xff\n")), want: []string{"not valid exposition format"}},
		"zero byte":           {serve: body(textType, []byte("a 1\n\x00\nb 2\n")), want: []string{"not valid exposition format"}},
		"invalid UTF-8":       {serve: text(`a 1`, "a{x=\"\xff\xfe\"} 1"), want: []string{"not valid exposition format"}},
		"cut openmetrics":     {serve: body("application/openmetrics-text", []byte("a 1\n")), want: []string{"not complete"}},
		"same label twice":    {serve: text(`a{x="1",x="2"} 1`), want: []string{"series of a with the same label twice"}},
		"huge label":          {serve: text(`a{job="` + strings.Repeat("x", 100_000) + `"} 1`), want: []string{"label job of a has a value of 100000 bytes, longer than label_value_length_limit 4096"}},
		"huge name":           {serve: text(strings.Repeat("n", 5_000) + " 1"), want: []string{"label __name__ of nnn", "longer than label_value_length_limit"}, change: func(c *config.Upstream) { c.Metrics = append(c.Metrics, allow(t, `{__name__=~"n+"}`)) }},
		"many labels":         {serve: text(`a{job="1"} 1`), want: []string{"has 3 labels, more than label_limit 2"}, change: func(c *config.Upstream) { c.LabelLimit = 2 }},
		"401":                 {serve: status(401), want: []string{"answers 401 Unauthorized", "other credentials"}},
		"403":                 {serve: status(403), want: []string{"403 Forbidden"}},
		"404":                 {serve: status(404), want: []string{"404 Not Found", "no /federate below the url"}},
		"503":                 {serve: status(503), want: []string{"not ready"}},
		"599":                 {serve: status(599), want: []string{"answers 599"}},
		"secret in the error": {serve: text(`a{user="alice-secret"} x`), want: []string{"not valid exposition"}},
	} {
		t.Run(name, func(t *testing.T) {
			written.Store(0)
			good := newServer(t, text("a 1"))
			bad := newServer(t, text("a 1"))
			b := newBench(t)
			c := section(t, "bad", bad.URL, allow(t, "a", "job"))
			c.BodySizeLimit, c.SampleLimit = 4<<20, 10_000
			if tc.change != nil {
				tc.change(c)
			}
			b.load(t, c, section(t, "good", good.URL, allow(t, "a")))
			bad.serve(tc.serve)
			var err error
			n := allocated(func() { err = b.pull(t, "bad") })
			wantError(t, err, tc.want...)
			if tc.memory > 0 && n > tc.memory {
				t.Errorf("pull allocated %d MiB, want at most %d", n>>20, tc.memory>>20)
			}
			if err := b.pull(t, "good"); err != nil {
				t.Error(err)
			}
			b.wantSeries(t, `{__name__="a", source="good"}`)
			b.wantLast(t, health("bad", bad), 0)
			b.wantLast(t, health("good", good), 1)
			b.wantMetric(t, 1, "tocsin_federation_pulls_total", "bad")
			b.wantMetric(t, 0, "tocsin_federation_pulls_total", "bad", "success")
			if strings.Contains(err.Error()+b.logs.String(), "alice-secret") {
				t.Error("an error shows what is not listed")
			}
			t.Logf("%d KiB allocated, %d KiB sent: %s", n>>10, written.Load()>>10, err)
		})
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func TestUnreachableUpstreams(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail on purpose
	secure.StartTLS()
	defer secure.Close()
	plain := newServer(t, text("a 1"))
	for name, tc := range map[string]struct {
		url    string
		change func(*config.Upstream)
		want   []string
		result result
	}{
		"refused":      {url: closed.URL, want: []string{"connection refused by 127.0.0.1:"}, result: resultUnreachable},
		"unknown host": {url: "http://no-such-host.invalid", want: []string{"no-such-host.invalid"}, result: resultUnreachable},
		"untrusted":    {url: secure.URL, want: []string{"TLS with", "not trusted"}, result: resultTLS},
		"TLS expected": {url: "https://" + plain.Listener.Addr().String(), want: []string{"TLS with", "plain HTTP"}, result: resultTLS},
		"credentials":  {url: "http://user:pass-secret@" + closed.Listener.Addr().String(), want: []string{"refused"}, result: resultUnreachable},
		"bad token": {url: plain.URL, want: []string{"no answer from", "token"}, result: resultUnreachable, change: func(c *config.Upstream) {
			c.HTTPClientConfig.Authorization = &commonconfig.Authorization{Type: "Bearer", CredentialsFile: "/nonexistent/token"}
		}},
		"wrong name": {url: secure.URL, want: []string{"not for other.example"}, result: resultTLS, change: func(c *config.Upstream) {
			c.HTTPClientConfig.TLSConfig.ServerName = "other.example"
			trust(t, c, secure)
		}},
		"answers in 4xx": {url: secure.URL, want: []string{"404"}, result: resultStatus, change: func(c *config.Upstream) { trust(t, c, secure) }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			c := section(t, "north", tc.url, allow(t, "a"))
			if tc.change != nil {
				tc.change(c)
			}
			b.load(t, c)
			err := b.pull(t, "north")
			wantError(t, err, tc.want...)
			b.wantMetric(t, 1, "tocsin_federation_pulls_total", "north", string(tc.result))
			shown := err.Error() + b.logs.String() + b.Targets()["federate/north"][0].URL().String()
			if strings.Contains(shown, "pass-secret") || strings.Contains(shown, "user:") {
				t.Errorf("credentials are shown: %s", shown)
			}
			t.Log(err)
		})
	}
}

func trust(t *testing.T, c *config.Upstream, s *httptest.Server) {
	t.Helper()
	var pem bytes.Buffer
	writePEM(t, &pem, s.Certificate().Raw)
	c.HTTPClientConfig.TLSConfig.CA = pem.String()
}

// An upstream never gets the credentials of another, nor does a server that it
// redirects to get its own.
func TestCredentialsStayWithTheirUpstream(t *testing.T) {
	var leaked atomic.Int32
	other := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Add(1)
		}
		text("a 1")(w, r)
	})
	mine := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if _, pass, _ := r.BasicAuth(); pass != "p" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		text("a 1")(w, r)
	})
	b := newBench(t)
	c := section(t, "mine", mine.URL, allow(t, "a"))
	c.HTTPClientConfig.BasicAuth = &commonconfig.BasicAuth{Username: "u", Password: "p"}
	b.load(t, c, section(t, "other", other.URL, allow(t, "a")))
	for _, name := range []string{"mine", "other"} {
		if err := b.pull(t, name); err != nil {
			t.Fatal(err)
		}
	}
	mine.serve(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) })
	wantError(t, b.pull(t, "mine"), "redirect")
	if leaked.Load() > 0 {
		t.Error("credentials went to another server")
	}
}

func TestStoppingBlamesNobody(t *testing.T) {
	srv := newServer(t, text("a 1"))
	b := newBench(t)
	b.load(t, section(t, "north", srv.URL, allow(t, "a")))
	if err := b.pull(t, "north"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	srv.serve(func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() })
	b.pullers["north"].pull(ctx, time.Now())
	b.wantStale(t, `{__name__="a", source="north"}`, false)
	b.wantLast(t, health("north", srv), 1)
	b.wantMetric(t, 1, "tocsin_federation_pulls_total", "north")
}
