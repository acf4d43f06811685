package bucket

import (
	"encoding/json"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	configHashDesc = prometheus.NewDesc("tocsin_config_hash_info",
		"1, with the hash of the configuration from the bucket that is in force; absent while none is.", []string{"hash"}, nil)
	configSuccessDesc = prometheus.NewDesc("tocsin_config_source_last_success_timestamp_seconds",
		"When the configuration in the bucket was last read, 0 for not since the start.", nil, nil)
	configRefusedDesc = prometheus.NewDesc("tocsin_config_source_refused",
		"Whether what is in the bucket is refused as a configuration, so that an older one goes on.", nil, nil)
	configDiffersDesc = prometheus.NewDesc("tocsin_cluster_config_differs",
		"Whether a live replica has another configuration in force than this one, or refuses what is in the bucket.", []string{"member"}, nil)
)

// sourceMetrics shows what the status says.
type sourceMetrics struct{ s *Source }

// Describe implements prometheus.Collector.
func (sourceMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{configHashDesc, configSuccessDesc, configRefusedDesc, configDiffersDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m sourceMetrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	status := m.s.Status()
	if status.Hash != "" {
		gauge(configHashDesc, 1, status.Hash)
	}
	success := 0.0
	if !status.LastSuccess.IsZero() {
		success = float64(status.LastSuccess.UnixMilli()) / 1000
	}
	gauge(configSuccessDesc, success)
	gauge(configRefusedDesc, number(status.State == StateRefused))
	if m.s.o.Members == nil {
		return
	}
	for _, member := range m.s.o.Members() {
		// A stock Alertmanager has no card.
		if !member.Alive || member.Self || member.Card.Cluster == "" {
			continue
		}
		c := member.Card.Config
		gauge(configDiffersDesc, number(c.Hash != ShortHash(status.Hash) || c.State == StateRefused), member.Name)
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Handler answers a GET with the status.
func (s *Source) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET is answered here", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		// The client may be gone.
		_ = json.NewEncoder(w).Encode(s.Status())
	})
}
