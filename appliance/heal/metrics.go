package heal

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	refused  *prometheus.CounterVec
	samples  *prometheus.CounterVec
	runs     *prometheus.CounterVec
	progress prometheus.Gauge
	rate     prometheus.Gauge
	left     prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_heal_refused_answers_total",
			Help: "Answers of other replicas that were given up or refused, by what was wrong with them.",
		}, []string{"reason"}),
		samples: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_heal_samples_total",
			Help: "Samples of other replicas that were written where this one had none, by the kind of gap.",
		}, []string{"kind"}),
		runs: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_heal_runs_total",
			Help: "Attempts to fill a part of a gap, by how they ended.",
		}, []string{"result"}),
		progress: f.NewGauge(prometheus.GaugeOpts{
			Name: "tocsin_heal_progress_ratio",
			Help: "How much of the gap that is being filled is done, 1 when none is.",
		}),
		rate: f.NewGauge(prometheus.GaugeOpts{
			Name: "tocsin_heal_samples_per_second",
			Help: "How fast the gap is being filled, 0 when none is.",
		}),
		left: f.NewGauge(prometheus.GaugeOpts{
			Name: "tocsin_heal_remaining_seconds",
			Help: "How long filling the gap will still take at this pace, 0 when none is being filled.",
		}),
	}
	for _, r := range []string{
		lieLabels, lieUnsorted, lieOutside, lieCorrupt, lieEndless, lieSilence, failedAnswer, failedReach,
	} {
		m.refused.WithLabelValues(r)
	}
	for _, r := range []string{runDone, runFailed, runNoSpace, runNobody} {
		m.runs.WithLabelValues(r)
	}
	m.progress.Set(1)
	return m
}
