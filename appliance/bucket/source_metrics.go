package bucket

import (
	"encoding/json"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tocsin-io/tocsin/appliance/mesh"
)

var (
	configHashDesc = prometheus.NewDesc("tocsin_config_hash_info",
		"1, with the hash of the configuration from the bucket that is in force; absent while none is.", []string{"hash"}, nil)
	configSuccessDesc = prometheus.NewDesc("tocsin_config_source_last_success_timestamp_seconds",
		"When the configuration in the bucket was last read, 0 for not since the start.", nil, nil)
	configRefusedDesc = prometheus.NewDesc("tocsin_config_source_refused",
		"Whether what is in the bucket is refused as a configuration, so that an older one goes on.", nil, nil)
	configDiffersDesc = prometheus.NewDesc("tocsin_cluster_config_differs",
		"Whether a live replica, this one too, does not run on the configuration in the bucket as this one sees it: it lags, or refuses it.", []string{"member"}, nil)
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
	for name, why := range m.s.Behind() {
		gauge(configDiffersDesc, number(why != ""), name)
	}
}

// Behind tells for each live replica, this one too, why it does not run on the configuration in the bucket as this one sees it;
// "" where it does.
func (s *Source) Behind() map[string]string {
	status := s.Status()
	wanted := status.SeenHash
	if wanted == "" {
		wanted = status.Hash // The bucket was never seen; then all should be alike.
	}
	wanted = ShortHash(wanted)
	why := func(c mesh.CardConfig, problem string) string {
		switch {
		case c.State == StateRefused:
			return "it refuses what is in the bucket" + problem + ", and runs on " + nameOfHash(c.Hash)
		case c.Hash != wanted:
			return "it runs on " + nameOfHash(c.Hash) + ", and in the bucket is " + nameOfHash(wanted)
		}
		return ""
	}
	behind := map[string]string{}
	for _, member := range s.o.Members() {
		// A stock Alertmanager has no card.
		if !member.Self && (!member.Alive || member.Card.Cluster == "") {
			continue
		}
		if member.Self {
			problem := ""
			if status.Problem != "" {
				problem = " (" + status.Problem + ")"
			}
			behind[member.Name] = why(s.Card(), problem)
			continue
		}
		behind[member.Name] = why(member.Card.Config, "")
	}
	return behind
}

// nameOfHash is how a hash is spoken of.
func nameOfHash(short string) string {
	if short == "" {
		return "nothing"
	}
	return short
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
