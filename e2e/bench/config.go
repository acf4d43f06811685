package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// webhook takes the notifications of both sides and counts them.
type webhook struct {
	url      string
	server   *http.Server
	ended    chan struct{}
	mutex    sync.Mutex
	received map[string]int // by the sender's User-Agent
}

func newWebhook() (*webhook, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for notifications: %w", err)
	}
	w := &webhook{url: "http://" + ln.Addr().String() + "/", ended: make(chan struct{}), received: map[string]int{}}
	w.server = &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, 16<<20))
			w.mutex.Lock()
			defer w.mutex.Unlock()
			w.received[r.UserAgent()]++
		}),
	}
	go func() {
		_ = w.server.Serve(ln)
		close(w.ended)
	}()
	return w, nil
}

// String tells how many notifications came, and from whom.
func (w *webhook) String() string {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return fmt.Sprint(w.received)
}

func (w *webhook) Close() error {
	err := w.server.Close()
	<-w.ended
	return err
}

// writeConfig writes what one side reads: prometheus.yml, rules.yml, targets.json, alertmanager.yml and, for tocsin, the
// tocsin.yml that points to the others. targets may be nil: then nothing is scraped.
func writeConfig(dir string, interval time.Duration, targets []byte, webhookURL string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create the directory for the configuration: %w", err)
	}
	files := map[string]string{
		"prometheus.yml":   prometheusYML(interval, targets != nil),
		"alertmanager.yml": alertmanagerYML(webhookURL),
		"tocsin.yml":       "prometheus: prometheus.yml\nalertmanager: alertmanager.yml\n",
	}
	if targets != nil {
		files["targets.json"] = string(targets)
		files["rules.yml"] = rulesYML()
	}
	var err error
	for name, text := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	return err
}

func prometheusYML(interval time.Duration, scrape bool) string {
	text := fmt.Sprintf(`global:
  scrape_interval: %s
  scrape_timeout: %s
  evaluation_interval: 30s
  external_labels:
    cluster: bench
    replica: one
`, interval, interval)
	if !scrape {
		return text
	}
	return text + `rule_files: [rules.yml]
scrape_configs:
  - job_name: apps
    file_sd_configs:
      - files: [targets.json]
    relabel_configs:
      - source_labels: [__meta_app]
        target_label: job
      - source_labels: [env]
        regex: decommissioned
        action: drop
    metric_relabel_configs:
      - source_labels: [__name__]
        regex: go_gc_debug_.*
        action: drop
`
}

func rulesYML() string {
	return `groups:
  - name: service_levels
    rules:
      - record: job:http_requests:rate5m
        expr: sum by (job, code) (rate(http_requests_total[5m]))
      - record: job:http_errors:ratio5m
        expr: |
          sum by (job) (rate(http_requests_total{code=~"5.."}[5m]))
            / sum by (job) (rate(http_requests_total[5m]))
      - record: job:http_request_duration_seconds:p99_5m
        expr: histogram_quantile(0.99, sum by (job, le) (rate(http_request_duration_seconds_bucket{handler=~"/api/v1/(orders|payments)"}[5m])))
      - alert: HighErrorRatio
        expr: job:http_errors:ratio5m > 0.02
        for: 1m
        labels:
          severity: page
        annotations:
          summary: '{{ $labels.job }} answers {{ $value | humanizePercentage }} of its requests with an error'
  - name: machines
    rules:
      - record: instance:cpu_busy:ratio_rate5m
        expr: sum by (job, instance) (rate(node_cpu_seconds_total{mode!="idle"}[5m])) / 8
      - alert: TargetDown
        expr: up == 0
        for: 1m
        labels:
          severity: page
        annotations:
          summary: '{{ $labels.instance }} of {{ $labels.job }} does not answer'
      - alert: CPUBusy
        expr: avg by (job, zone) (rate(node_cpu_seconds_total{mode="user"}[5m])) > 0.05
        labels:
          severity: info
        annotations:
          summary: '{{ $labels.job }} in {{ $labels.zone }} is busy: {{ $value | humanize }}'
      - alert: Watchdog
        expr: vector(1)
        labels:
          severity: none
`
}

func alertmanagerYML(webhookURL string) string {
	return fmt.Sprintf(`route:
  receiver: default
  group_by: [alertname, job]
  group_wait: 10s
  group_interval: 1m
  repeat_interval: 5m
  routes:
    - matchers: ['severity="page"']
      receiver: pager
inhibit_rules:
  - source_matchers: ['severity="page"']
    target_matchers: ['severity="info"']
    equal: [job]
receivers:
  - name: default
    webhook_configs:
      - url: %[1]s
  - name: pager
    webhook_configs:
      - url: %[1]s
        send_resolved: true
`, webhookURL)
}
