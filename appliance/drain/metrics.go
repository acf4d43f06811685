package drain

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Results of a claim, the labels of a counter.
const (
	resultGranted   = "granted"
	resultForced    = "forced"
	resultCancelled = "cancelled" // Who asked went away, or gave it back.
	resultExpired   = "expired"   // It was granted, and nobody stopped the process.
)

type metrics struct{ claims *prometheus.CounterVec }

func newMetrics(reg prometheus.Registerer, d *Drain) *metrics {
	f := promauto.With(reg)
	is := func(state string) func() float64 {
		return func() float64 {
			if d.State().State == state {
				return 1
			}
			return 0
		}
	}
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tocsin_drain_waiting",
		Help: "Whether somebody waits for this replica to be drained (1) or not (0).",
	}, is(StateWaiting))
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tocsin_drain_drained",
		Help: "Whether this replica may be stopped, and lets no other one go (1), or not (0).",
	}, is(StateDrained))
	return &metrics{claims: f.NewCounterVec(prometheus.CounterOpts{
		Name: "tocsin_drain_claims_total",
		Help: "How claims to be stopped have gone: granted, forced, cancelled (who asked went away, or gave it back), expired (granted, and not stopped).",
	}, []string{"result"})}
}
