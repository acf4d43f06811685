package e2e

import (
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// What the tests with a browser show: a shop with some instances, one of which is slow. Names are as people have them, since
// the pictures in the README are made of it.

var shops = []string{"shop-1", "shop-2", "shop-3"}

const (
	slowShop = "shop-2"
	// legacyTarget is where nobody listens.
	legacyTarget = "127.0.0.1:1"
)

// browserTocsin is the configuration that all replicas have from the bucket.
const browserTocsin = `
prometheus:
  global:
    scrape_interval: 1s
    evaluation_interval: 1s
    external_labels: {site: berlin}
  rule_files: [rules/*.yml]
  scrape_configs:
    - job_name: shop
      scrape_native_histograms: true
      scrape_protocols: [PrometheusProto, PrometheusText0.0.4]
      static_configs:
%s
    - job_name: legacy
      scrape_interval: 5s
      static_configs: [{targets: ["%s"]}]
    - job_name: tocsin
      scrape_interval: 5s
      static_configs: [{targets: [%s]}]
alertmanager:
  route:
    receiver: people
    group_by: [alertname]
    group_wait: 1s
    group_interval: 2s
    repeat_interval: 1h
  receivers:
    - name: people
      webhook_configs: [{url: "%s"}]
`

const browserRules = `
groups:
  - name: shop
    rules:
      - record: code:http_requests:rate15s
        expr: sum by (code) (rate(http_requests_total[15s]))
      - alert: CheckoutSlow
        expr: shop_queue_length > 40
        labels: {severity: page}
        annotations:
          summary: '{{ $value | humanize }} customers wait at {{ $labels.instance }}'
          runbook: https://runbooks.example.org/checkout
      - alert: ErrorBudgetBurns
        expr: sum by (instance) (rate(http_requests_total{code="500"}[15s])) > 0.1
        for: 6h
        labels: {severity: ticket}
      - alert: NoCustomers
        expr: sum(rate(http_requests_total[15s])) == 0
        for: 1m
  - name: targets
    rules:
      - alert: TargetDown
        expr: up == 0
        for: 1h
`

// shop is one instance: everything is a function of the time, so that all who scrape it see the same.
type shop struct {
	n    int
	born time.Time
}

var (
	requestsDesc = prometheus.NewDesc("http_requests_total", "HTTP requests served.", []string{"method", "code"}, nil)
	durationDesc = prometheus.NewDesc("http_request_duration_seconds", "How long requests took.", nil, nil)
	queueDesc    = prometheus.NewDesc("shop_queue_length", "Customers who wait at the checkout.", nil, nil)
)

func (s *shop) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requestsDesc, durationDesc, queueDesc} {
		ch <- d
	}
}

func (s *shop) Collect(ch chan<- prometheus.Metric) {
	now := time.Now()
	age := now.Sub(s.born).Seconds()
	// wave is the integral of a rate around the mean.
	wave := func(mean, depth, period float64) float64 {
		return mean * (age + depth*period*(1-math.Cos(age/period+float64(s.n))))
	}
	slow := s.name() == slowShop
	failed := wave(0.8, 0.9, 11)
	if slow {
		failed *= 6
	}
	for _, r := range []struct {
		method, code string
		n            float64
	}{
		{"GET", "200", wave(42, 0.3, 23)}, {"POST", "200", wave(17, 0.4, 17)}, {"GET", "404", wave(5, 0.5, 13)}, {"POST", "500", failed},
	} {
		ch <- prometheus.MustNewConstMetric(requestsDesc, prometheus.CounterValue, math.Floor(r.n), r.method, r.code)
	}
	queue := 12 + 8*math.Sin(age/9+float64(s.n))
	if slow {
		queue += 60
	}
	ch <- prometheus.MustNewConstMetric(queueDesc, prometheus.GaugeValue, math.Round(queue))

	// Of schema 3, bucket i ends at 2^(i/8) seconds.
	buckets, total, sum := map[int]int64{}, int64(0), 0.0
	for i := -40; i <= 8; i++ {
		peak := -24 + 4*math.Sin(age/40)
		if slow {
			peak += 16
		}
		n := int64(wave(60*math.Exp(-(float64(i)-peak)*(float64(i)-peak)/60), 0.2, 19))
		if n > 0 {
			buckets[i] = n
			total += n
			sum += float64(n) * math.Exp2(float64(i)/8)
		}
	}
	h := prometheus.MustNewConstNativeHistogram(durationDesc, uint64(total), sum, buckets, nil, 0, 3, 0.001, s.born)
	ch <- prometheus.MustNewMetricWithExemplars(h, prometheus.Exemplar{
		Value:     math.Exp2((float64(now.UnixMilli()/1000%17) - 30) / 8),
		Labels:    prometheus.Labels{"trace_id": fmt.Sprintf("%016x", uint64(now.UnixMilli())*0x9e3779b97f4a7c15)},
		Timestamp: now,
	})
}

func (s *shop) name() string { return shops[s.n] }

// newShops serves all instances, each below its name, and returns the targets as YAML.
func newShops(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	born := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
	for n, name := range shops {
		reg := prometheus.NewRegistry()
		if err := reg.Register(&shop{n, born}); err != nil {
			t.Fatal(err)
		}
		mux.Handle("/"+name+"/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	}
	server := serveIn(t, nil, mux)
	var b strings.Builder
	for _, name := range shops {
		fmt.Fprintf(&b, "        - {targets: [%q], labels: {instance: %s, __metrics_path__: /%s/metrics}}\n", server.Listener.Addr(), name, name)
	}
	return b.String()
}

// newBrowserCluster is three replicas that have their configuration from a bucket, and blocks in it soon.
func newBrowserCluster(t *testing.T) *meshCluster {
	t.Helper()
	c := newCluster(t, clusterOptions{flags: shortWindows()})
	bucket := c.bucketDir()
	var addresses []string
	for _, name := range c.options.names {
		r := c.replicas[name]
		r.settings.replica = "mon-" + name
		addresses = append(addresses, r.host+":9090")
		write(t, r.dir, "tocsin.yml", fmt.Sprintf("replica: {name: %s, zone: zone-%s}\n"+
			"cluster: {name: berlin, peers: [%s], key_file: cluster.key}\n"+
			"bucket: {type: FILESYSTEM, config: {directory: %q}}\n"+
			"config_from: {bucket: true, poll: 1s}\n", r.settings.replica, name, quoted(r.peers), bucket))
	}
	write(t, c.dir, "config/tocsin.yml", fmt.Sprintf(browserTocsin, newShops(t), legacyTarget, quoted(addresses), c.hook.url))
	write(t, c.dir, "config/rules/shop.yml", browserRules)
	mustTool(t, c.dir, tocsinBinary, "config", "push", "--config.file="+filepath.Join(c.a().dir, "tocsin.yml"), "--no-wait", "config")
	for _, name := range c.options.names {
		c.replicas[name].start()
	}
	for _, name := range c.options.names {
		c.replicas[name].ready()
	}
	eventually(t, time.Minute, "all are one mesh, and scrape", func() error {
		for _, name := range c.options.names {
			r := c.replicas[name]
			v, err := r.view()
			if err != nil {
				return err
			}
			if len(v.Members) != len(c.options.names) {
				return fmt.Errorf("%s sees %d members", name, len(v.Members))
			}
			for _, m := range v.Members {
				if !m.Alive {
					return fmt.Errorf("%s does not see %s", name, m.Name)
				}
			}
			if n, err := r.localValue(`count_over_time(code:http_requests:rate15s{code="500"}[1m])`); err != nil || n < 5 {
				return fmt.Errorf("%s has recorded %v samples: %w", name, n, err)
			}
			if state, _, err := r.alertState("CheckoutSlow"); err != nil || state != "firing" {
				return fmt.Errorf("the alert is %q at %s: %w", state, name, err)
			}
		}
		return nil
	})
	eventually(t, time.Minute, "the mesh is settled", c.settled)
	return c
}

func (c *meshCluster) bucketDir() string { return filepath.Join(c.dir, "bucket") }

// spoil changes the configuration in the bucket, past the check that a push makes, to one that every replica refuses; and has a replica
// reload a file of its own that it refuses too.
func (c *meshCluster) spoil(r *replica) error {
	folder := filepath.Join(c.bucketDir(), "config")
	if err := os.Remove(filepath.Join(folder, ".tocsin-push.json")); err != nil {
		return err
	}
	rules := []byte(strings.Replace(browserRules, "sum by", "sum buy", 1))
	if err := os.WriteFile(filepath.Join(folder, "rules/shop.yml"), rules, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(r.dir, "tocsin.yml"), []byte("nonsense: true\n"), 0o644); err != nil {
		return err
	}
	if status, body := r.reload(); status != http.StatusInternalServerError {
		return fmt.Errorf("a reload of nonsense is answered with %d: %s", status, body)
	}
	return nil
}
