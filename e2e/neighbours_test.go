package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// nodeExporter is Debian's, and returns its address.
func nodeExporter(t *testing.T, dir string) string {
	t.Helper()
	p := start(t, dir, "node-exporter", "prometheus-node-exporter", "--web.listen-address=127.0.0.1:0",
		"--collector.disable-defaults", "--collector.cpu", "--collector.loadavg", "--collector.meminfo",
		"--collector.uname")
	return p.logged(20*time.Second, `msg="Listening on" address=(\S+)`)[1]
}

// debianPrometheus is Debian's, with the configuration given, and returns its URL.
func debianPrometheus(t *testing.T, dir, config string) string {
	t.Helper()
	write(t, dir, "debian/prometheus.yml", config)
	p := start(t, dir, "prometheus", "prometheus", "--config.file=debian/prometheus.yml",
		"--storage.tsdb.path=debian/data", "--web.listen-address=127.0.0.1:0")
	address := p.logged(30*time.Second, `msg="Listening on" address=(\S+)`)[1]
	p.logged(30*time.Second, `msg="Server is ready`)
	return "http://" + address
}

// exporter serves what the test wants it to.
type exporter struct {
	*httptest.Server
	mu     sync.Mutex
	values map[string]float64
	bulk   int // series beside values
}

func newExporter(t *testing.T, bulk int, values map[string]float64) *exporter {
	t.Helper()
	e := &exporter{values: values, bulk: bulk}
	e.Server = httptest.NewServer(http.HandlerFunc(e.serve))
	t.Cleanup(e.Close)
	return e
}

func (e *exporter) address() string { return e.Listener.Addr().String() }

func (e *exporter) set(name string, v float64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.values[name] = v
}

func (e *exporter) serve(w http.ResponseWriter, _ *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	b := bufio.NewWriter(w)
	defer b.Flush()
	for name, v := range e.values {
		fmt.Fprintf(b, "%s %v\n", name, v)
	}
	now := time.Now().UnixMilli()
	for i := range e.bulk {
		fmt.Fprintf(b, "e2e_bulk{series=\"%d\",shape=\"counter\"} %d\n", i, now+int64(i))
	}
}

// webhookMessage is what the Alertmanager posts.
type webhookMessage struct {
	Receiver    string            `json:"receiver"`
	Status      string            `json:"status"`
	ExternalURL string            `json:"externalURL"`
	GroupLabels map[string]string `json:"groupLabels"`
	Alerts      []struct {
		Status       string            `json:"status"`
		Labels       map[string]string `json:"labels"`
		Annotations  map[string]string `json:"annotations"`
		GeneratorURL string            `json:"generatorURL"`
	} `json:"alerts"`
}

// webhook takes the Alertmanager's notifications.
type webhook struct {
	*httptest.Server
	mu       sync.Mutex
	messages []webhookMessage
}

func newWebhook(t *testing.T) *webhook {
	t.Helper()
	w := &webhook{}
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		var m webhookMessage
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.messages = append(w.messages, m)
	}))
	t.Cleanup(w.Close)
	return w
}

// about are the messages with the status about the alert.
func (w *webhook) about(alert, status string) []webhookMessage {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found []webhookMessage
	for _, m := range w.messages {
		if m.GroupLabels["alertname"] == alert && m.Status == status {
			found = append(found, m)
		}
	}
	return found
}

// want waits for the first message about the alert.
func (w *webhook) want(t *testing.T, within time.Duration, alert, status string) webhookMessage {
	t.Helper()
	eventually(t, within, "the webhook hears that "+alert+" is "+status, func() error {
		if len(w.about(alert, status)) == 0 {
			return fmt.Errorf("it has not")
		}
		return nil
	})
	return w.about(alert, status)[0]
}

// silent objects if there is a message about the alert.
func (w *webhook) silent(alert string) error {
	if n := len(w.about(alert, "firing")); n > 0 {
		return fmt.Errorf("the webhook heard of %s %d times", alert, n)
	}
	return nil
}

// smtpSink is a real SMTP server, Debian's aiosmtpd.
type smtpSink struct {
	*process
	address string
}

type mail struct {
	From    string   `json:"from"`
	To      []string `json:"to"`
	Subject string   `json:"subject"`
	Body    string   `json:"body"`
}

func newSMTPSink(t *testing.T, dir string) *smtpSink {
	t.Helper()
	script, err := filepath.Abs("testdata/smtpsink.py")
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, dir, "smtp", python, script)
	return &smtpSink{process: p, address: p.logged(20*time.Second, `listening on (\S+)`)[1]}
}

// about are the messages whose subject has the word.
func (s *smtpSink) about(word string) []mail {
	var found []mail
	for line := range strings.Lines(s.output()) {
		var m mail
		if json.Unmarshal([]byte(line), &m) == nil && strings.Contains(m.Subject, word) {
			found = append(found, m)
		}
	}
	return found
}
