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
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	return &metrics{
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
		journalFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_alert_journal_failures_total",
			Help: "Changes of silences and notification log that could not be written to disk at once.",
		}),
	}
}
