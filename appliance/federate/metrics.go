package federate

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

const (
	reasonMetricNotListed = "metric_not_listed"
	reasonCollision       = "collision"
	reasonLabelNotListed  = "label_not_listed"
	reasonOriginLabel     = "origin_label"
)

type metrics struct {
	pulls          *prometheus.CounterVec
	samplesStored  *prometheus.CounterVec
	samplesSkipped *prometheus.CounterVec
	seriesDropped  *prometheus.CounterVec
	labelsDropped  *prometheus.CounterVec
	collisions     *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	with := promauto.With(reg)
	counter := func(name, help string, more ...string) *prometheus.CounterVec {
		return with.NewCounterVec(prometheus.CounterOpts{Name: "tocsin_federation_" + name, Help: help}, append([]string{"upstream"}, more...))
	}
	return &metrics{
		pulls:          counter("pulls_total", "Pulls from the upstream, by how they ended.", "result"),
		samplesStored:  counter("samples_stored_total", "Samples stored from the upstream."),
		samplesSkipped: counter("samples_skipped_total", "Samples of listed series that were not stored because of their timestamp.", "reason"),
		seriesDropped:  counter("series_dropped_total", "Series in answers of the upstream that were not stored.", "reason"),
		labelsDropped:  counter("labels_dropped_total", "Labels on listed series that were not stored as they came.", "reason"),
		collisions:     counter("collisions_total", "Series in answers of the upstream that were not stored because, with the labels that are kept, they cannot be told from one another."),
	}
}

// upstreamMetrics are the metrics of one upstream.
type upstreamMetrics struct {
	all  *metrics
	name string
}

// of makes the series of an upstream, so that they start from zero.
func (m *metrics) of(upstream string) *upstreamMetrics {
	for _, r := range allResults {
		m.pulls.WithLabelValues(upstream, string(r))
	}
	for _, r := range allSkipReasons {
		m.samplesSkipped.WithLabelValues(upstream, string(r))
	}
	m.samplesStored.WithLabelValues(upstream)
	m.collisions.WithLabelValues(upstream)
	m.seriesDropped.WithLabelValues(upstream, reasonMetricNotListed)
	m.seriesDropped.WithLabelValues(upstream, reasonCollision)
	m.labelsDropped.WithLabelValues(upstream, reasonLabelNotListed)
	m.labelsDropped.WithLabelValues(upstream, reasonOriginLabel)
	return &upstreamMetrics{all: m, name: upstream}
}

// forget removes the series of an upstream.
func (m *metrics) forget(upstream string) {
	labels := prometheus.Labels{"upstream": upstream}
	for _, v := range []*prometheus.CounterVec{m.pulls, m.samplesStored, m.samplesSkipped, m.seriesDropped, m.labelsDropped, m.collisions} {
		v.DeletePartialMatch(labels)
	}
}

// count notes how a pull ended and what was dropped from it.
func (u *upstreamMetrics) count(a *answer, err error) {
	u.all.pulls.WithLabelValues(u.name, string(resultOf(err))).Inc()
	u.all.seriesDropped.WithLabelValues(u.name, reasonMetricNotListed).Add(float64(a.dropped))
	u.all.seriesDropped.WithLabelValues(u.name, reasonCollision).Add(float64(a.collisions))
	u.all.labelsDropped.WithLabelValues(u.name, reasonLabelNotListed).Add(float64(a.droppedLabels))
	u.all.labelsDropped.WithLabelValues(u.name, reasonOriginLabel).Add(float64(a.forged))
	u.all.collisions.WithLabelValues(u.name).Add(float64(a.collisions))
}

// stored notes what a pull has brought.
func (u *upstreamMetrics) stored(samples int, skipped map[skipReason]int) {
	u.all.samplesStored.WithLabelValues(u.name).Add(float64(samples))
	for reason, n := range skipped {
		u.all.samplesSkipped.WithLabelValues(u.name, string(reason)).Add(float64(n))
	}
}
