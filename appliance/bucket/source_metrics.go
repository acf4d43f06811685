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
		"Whether a live replica, this one too, does not run on the configuration in the bucket as this one sees it: it lags, or refuses it. Of others that are not known to refuse it there is none while this one sees no whole configuration there.", []string{"member"}, nil)
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
	for name, lag := range m.s.Behind() {
		gauge(configDiffersDesc, number(lag.Why != ""), name)
	}
}

// Lag is where a live replica stands against the configuration in the bucket.
type Lag struct {
	// Why it does not run on it; "" where it does.
	Why string
	// Waits says that nothing is known against it but that it waits for the bucket, which only it itself says.
	Waits bool
}

// Behind tells where each live replica, this one too, stands against the configuration in the bucket as this one sees it. While this
// one sees no whole configuration there, it speaks for itself alone: the others may see what it does not. That one of them refuses
// what is there, that one says.
func (s *Source) Behind() map[string]Lag {
	status := s.Status()
	wanted := ShortHash(status.SeenHash)
	judges := status.State != StateWaiting && wanted != ""
	behind := map[string]Lag{}
	for _, member := range s.o.Members() {
		// A stock Alertmanager has no card.
		if !member.Self && (!member.Alive || member.Card.Cluster == "") {
			continue
		}
		card, problem := member.Card.Config, ""
		if member.Self {
			card = s.Card()
			if status.Problem != "" {
				problem = " (" + status.Problem + ")"
			}
		}
		switch {
		case card.State == StateRefused:
			behind[member.Name] = Lag{Why: "it refuses what is in the bucket" + problem + ", and runs on " + nameOfHash(card.Hash)}
		case member.Self && status.State == StateWaiting:
			behind[member.Name] = Lag{Why: "it sees no whole configuration in the bucket" + problem + ", and runs on " + nameOfHash(card.Hash), Waits: true}
		case !judges:
		case card.Hash != wanted:
			behind[member.Name] = Lag{Why: "it runs on " + nameOfHash(card.Hash) + ", and in the bucket is " + nameOfHash(wanted)}
		default:
			behind[member.Name] = Lag{}
		}
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
