package alert

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are those that a stock Alertmanager's main registers, under their upstream names, and our own.
type metrics struct {
	requestDuration                       *prometheus.HistogramVec
	clusterEnabled                        prometheus.Gauge
	receivers, integrations, inhibitRules prometheus.Gauge
	journalFailures                       prometheus.Counter
	duplicates                            prometheus.Counter
	turns                                 *turnMetrics
	relay                                 *relayMetrics
}

// turnMetrics say how replicas keep out of each other's way.
type turnMetrics struct {
	wait      prometheus.Histogram
	takeovers prometheus.Counter
}

// relayMetrics say how alerts get to the other replicas.
type relayMetrics struct {
	statements        prometheus.Gauge
	failures, dropped prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	return &metrics{
		duplicates: counter("tocsin_alert_duplicate_notifications_total",
			"Notifications of this replica that another replica has sent as well, as under a partition; found when their notification logs meet."),
		turns: &turnMetrics{
			wait: f.NewHistogram(prometheus.HistogramOpts{
				Name:                            "tocsin_alert_turn_wait_seconds",
				Help:                            "How long a notification waited until it was this replica's turn to send it.",
				Buckets:                         []float64{.001, .005, .025, .1, .5, 1, 2.5, 5, 15},
				NativeHistogramBucketFactor:     1.1,
				NativeHistogramMaxBucketNumber:  100,
				NativeHistogramMinResetDuration: time.Hour,
			}),
			takeovers: counter("tocsin_alert_takeovers_total",
				"Notifications that this replica sent in place of one that had the turn and does not answer any more."),
		},
		relay: &relayMetrics{
			statements: gauge("tocsin_alert_statements", "What is kept of what sources say about alerts, for the other replicas."),
			failures:   counter("tocsin_alert_delivery_failures_total", "Deliveries of alerts to another replica that failed; they are repeated."),
			dropped:    counter("tocsin_alert_statements_dropped_total", "Alerts that were not kept for the other replicas because there are too many."),
		},
		requestDuration: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:                            "alertmanager_http_request_duration_seconds",
			Help:                            "Histogram of latencies for HTTP requests.",
			Buckets:                         prometheus.DefBuckets,
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"handler", "method", "code"}),
		clusterEnabled: gauge("alertmanager_cluster_enabled", "Indicates whether the clustering is enabled or not."),
		receivers:      gauge("alertmanager_receivers", "Number of configured receivers."),
		integrations:   gauge("alertmanager_integrations", "Number of configured integrations."),
		inhibitRules:   gauge("alertmanager_inhibition_rules", "Number of configured inhibition rules."),
		journalFailures: counter("tocsin_alert_journal_failures_total",
			"Changes of silences and notification log that could not be written to disk at once."),
	}
}
