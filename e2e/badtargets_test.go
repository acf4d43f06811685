package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// memoryBound is what the process may hold while every kind of bad target is at it.
const memoryBound = 600 << 20

// badTarget is one way of being wrong, and what its target's error has to say.
type badTarget struct {
	name  string
	serve http.HandlerFunc
	want  []string // any one of
	extra string   // lines for its job
	// harmless is what may be up, as long as it costs no more than the others: here one series, repeated.
	harmless bool
}

// repeat sends one piece again and again until the client has had enough.
func repeat(w http.ResponseWriter, r *http.Request, piece []byte) {
	for r.Context().Err() == nil {
		if _, err := w.Write(piece); err != nil {
			return
		}
	}
}

// manySeries makes series lazily, as many as are asked for.
func manySeries(w http.ResponseWriter, r *http.Request, n int) {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "e{n=\"%d\"} 1\n", i)
		if b.Len() > 64<<10 {
			if _, err := w.Write(b.Bytes()); err != nil || r.Context().Err() != nil {
				return
			}
			b.Reset()
		}
	}
	_, _ = w.Write(b.Bytes())
}

// hijack takes the connection for what net/http would not send.
func hijack(w http.ResponseWriter, use func(net.Conn)) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	defer c.Close()
	use(c)
}

// zeros is 10 GB of a comment that goes on and on, in 10 MB.
func zeros() []byte {
	var once, all bytes.Buffer
	piece := bytes.Repeat([]byte{'#'}, 1<<20)
	g := gzip.NewWriter(&once)
	for range 100 {
		_, _ = g.Write(piece)
	}
	_ = g.Close()
	// A gzip body may have several members.
	for range 100 {
		all.Write(once.Bytes())
	}
	return all.Bytes()
}

// emptyMetrics is a gauge in protobuf with as many metrics as are asked for, which are empty and take two bytes each.
func emptyMetrics(n int) []byte {
	family := append([]byte("\x0a\x09e2e_empty\x18\x01"), bytes.Repeat([]byte{0x22, 0}, n)...)
	return append(binary.AppendUvarint(nil, uint64(len(family))), family...)
}

func text(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_, _ = w.Write([]byte(body))
	}
}

func badTargets(elsewhere string) []badTarget {
	line := bytes.Repeat([]byte("e2e_endless 1\n"), 4<<10)
	bomb := sync.OnceValue(zeros)
	slow := []string{"deadline exceeded", "body size limit exceeded", "timeout"}
	return []badTarget{
		{name: "endless body", want: slow, serve: func(w http.ResponseWriter, r *http.Request) { repeat(w, r, line) }},
		{name: "endless line", want: slow, serve: func(w http.ResponseWriter, r *http.Request) { repeat(w, r, line[:1]) }},
		{name: "ten million series", want: slow, serve: func(w http.ResponseWriter, r *http.Request) { manySeries(w, r, 10_000_000) }},
		{name: "too many series", want: []string{"sample limit exceeded", "deadline exceeded"}, serve: func(w http.ResponseWriter, r *http.Request) { manySeries(w, r, 60_000) }},
		{name: "gzip bomb", want: slow, serve: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(bomb())
		}},
		{name: "protobuf bomb", harmless: true, serve: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited")
			_, _ = w.Write(emptyMetrics(490_000))
		}},
		{name: "not gzip", want: []string{"gzip"}, serve: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(line)
		}},
		{name: "slow drip", want: []string{"deadline exceeded"}, serve: func(w http.ResponseWriter, r *http.Request) {
			drip := time.NewTicker(100 * time.Millisecond)
			defer drip.Stop()
			for {
				if _, err := w.Write([]byte("#")); err != nil {
					return
				}
				w.(http.Flusher).Flush()
				select {
				case <-drip.C:
				case <-r.Context().Done():
					return
				}
			}
		}},
		{name: "no answer", want: []string{"deadline exceeded"}, serve: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		{name: "reset midway", want: []string{"reset", "EOF"}, serve: func(w http.ResponseWriter, _ *http.Request) {
			hijack(w, func(c net.Conn) {
				fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000000\r\n\r\ne2e_reset 1\n")
				_ = c.(*net.TCPConn).SetLinger(0)
			})
		}},
		{name: "endless header", want: []string{"header", "deadline exceeded"}, serve: func(w http.ResponseWriter, _ *http.Request) {
			hijack(w, func(c net.Conn) {
				_, err := fmt.Fprint(c, "HTTP/1.1 200 OK\r\n")
				for i := 0; err == nil; i++ {
					_, err = fmt.Fprintf(c, "X-E2e-%d: %s\r\n", i, line[:1000])
				}
			})
		}},
		{name: "not HTTP", want: []string{"malformed HTTP"}, serve: func(w http.ResponseWriter, _ *http.Request) {
			hijack(w, func(c net.Conn) { fmt.Fprint(c, "220 mail.example.org ESMTP\r\n") })
		}},
		{name: "duplicate labels", want: []string{"unique"}, serve: text("e2e_duplicate{a=\"1\",a=\"2\"} 1\n")},
		{name: "invalid UTF-8", want: []string{"UTF-8"}, serve: text("e2e_invalid{a=\"\xff\xfe\"} 1\n")},
		{name: "not an exposition", want: []string{"expected"}, serve: text("<html><body>It works!</body></html>\n")},
		{name: "unsupported type", want: []string{"Content-Type"}, serve: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "image/png")
			_, _ = w.Write(line)
		}},
		{name: "too many labels", want: []string{"label_limit"}, serve: text("e2e_wide{" + wideLabels(65) + "} 1\n")},
		{name: "long label name", want: []string{"label_name_length_limit"}, serve: text("e2e_long{" + strings.Repeat("n", 513) + "=\"v\"} 1\n")},
		{name: "long label value", want: []string{"label_value_length_limit"}, serve: text("e2e_long{a=\"" + strings.Repeat("v", 4097) + "\"} 1\n")},
		{name: "server error", want: []string{"500"}, serve: func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) }},
		{name: "redirect in a circle", want: []string{"redirect"}, serve: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }},
		{name: "redirect to nowhere", want: []string{"refused"}, serve: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}},
		{name: "redirect to a file", want: []string{"unsupported protocol"}, serve: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}},
		{name: "redirect elsewhere", extra: "follow_redirects: false", want: []string{"302"}, serve: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere, http.StatusFound)
		}},
	}
}

func wideLabels(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "l%d=\"v\",", i)
	}
	return b.String()
}

// TestBadTargets scrapes every kind of hostile target at once beside a good one, with the limits of the built-in
// configuration.
func TestBadTargets(t *testing.T) {
	t.Parallel()
	dir := workDir(t)
	good := newExporter(t, 100, map[string]float64{"e2e_good": 1})
	elsewhere := newExporter(t, 0, map[string]float64{"e2e_elsewhere": 1})
	bad := badTargets(elsewhere.URL)
	var config strings.Builder
	fmt.Fprintf(&config, `
prometheus:
  global:
    scrape_interval: 5s
    scrape_timeout: 4s
    body_size_limit: 1MB
    sample_limit: 50000
    label_limit: 64
    label_name_length_limit: 512
    label_value_length_limit: 4096
  scrape_configs:
    - job_name: good
      scrape_interval: 2s
      scrape_timeout: 2s
      static_configs: [{targets: [%q]}]
`, good.address())
	var redirecting string
	for _, b := range bad {
		s := httptest.NewServer(b.serve)
		t.Cleanup(s.Close)
		t.Cleanup(s.CloseClientConnections)
		fmt.Fprintf(&config, "    - job_name: %s\n      static_configs: [{targets: [%q]}]\n", b.name, s.Listener.Addr())
		if b.extra != "" {
			fmt.Fprintf(&config, "      %s\n", b.extra)
		}
		if b.name == "redirect elsewhere" {
			redirecting = s.URL
		}
	}
	fmt.Fprintf(&config, `
federation:
  - name: redirected
    url: %s
    interval: 1s
    basic_auth: {username: u, password_file: password}
    metrics: [{match: e2e_elsewhere}]
`, redirecting)
	write(t, dir, "password", "not-a-secret")
	write(t, dir, "tocsin.yml", config.String())
	p := runTocsin(t, dir, "--config.file=tocsin.yml")
	began := time.Now()

	var peak int64
	watch := func() error {
		p.alive()
		rss, err := p.residentBytes()
		if err != nil {
			return err
		}
		if peak = max(peak, rss); peak > memoryBound {
			return fmt.Errorf("%d MiB are resident", peak>>20)
		}
		return nil
	}
	during(t, 22*time.Second, "memory is bounded", watch)
	t.Logf("peak resident memory: %d MiB", peak>>20)

	targets, err := p.targets()
	if err != nil {
		t.Fatal(err)
	}
	byJob := map[string]target{}
	for _, target := range targets {
		byJob[target.Labels["job"]] = target
		if target.ScrapePool == "federate/redirected" {
			byJob["federate"] = target
		}
	}
	for _, b := range append(bad, badTarget{name: "federate", want: []string{"redirect"}}) {
		target := byJob[b.name]
		if b.harmless {
			continue
		}
		if target.Health != "down" || !containsAny(target.LastError, b.want) {
			t.Errorf("%s: the target is %s: %q", b.name, target.Health, target.LastError)
		}
	}
	if result, err := p.query(`{__name__=~"e|e2e_(endless|wide|long|invalid|duplicate|elsewhere|reset).*"}`, time.Time{}); err != nil || len(result) > 0 {
		t.Errorf("of bad targets something is stored: %d series (%v)", len(result), err)
	}
	result, err := p.query(fmt.Sprintf(`up{job="good"}[%ds]`, int(time.Since(began).Seconds())+1), time.Time{})
	if err != nil || len(result) != 1 || len(result[0].Values) < 6 {
		t.Fatalf("the good target: %v (%v)", result, err)
	}
	for i, v := range result[0].Values[1:] {
		if gap := v.Time - result[0].Values[i].Time; v.Value != "1" || gap > 3 {
			t.Errorf("the good target is %s after %.1f s, with an interval of 2 s", v.Value, gap)
		}
	}
	if strings.Contains(p.output(), "not-a-secret") {
		t.Error("the log shows a secret")
	}
	p.stop()
}

func containsAny(s string, parts []string) bool {
	for _, part := range parts {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}
