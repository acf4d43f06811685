package mesh

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

const (
	kindFullState = "full_state"
	kindUpdate    = "update"
)

// metrics are those of a stock Alertmanager's cluster, under their upstream names, and our own.
type metrics struct {
	received, receivedSize, sent, sentSize *prometheus.CounterVec
	pruned, joined, left, updated          prometheus.Counter
	rejoins, failedRejoins                 prometheus.Counter
	alive                                  *prometheus.CounterVec
	pings                                  *prometheus.HistogramVec
	upstreamConflicts, conflicts           prometheus.Counter
	restarts, floods                       prometheus.Counter

	refused   *prometheus.CounterVec
	unknown   prometheus.Counter
	panics    *prometheus.CounterVec
	leftOut   *prometheus.CounterVec
	rtt, skew *prometheus.GaugeVec
	up        *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauges := func(name, help string) *prometheus.GaugeVec {
		return f.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"member"})
	}
	m := &metrics{
		received: counters("alertmanager_cluster_messages_received_total",
			"Total number of cluster messages received.", "msg_type"),
		receivedSize: counters("alertmanager_cluster_messages_received_size_total",
			"Total size of cluster messages received.", "msg_type"),
		sent: counters("alertmanager_cluster_messages_sent_total",
			"Total number of cluster messages sent.", "msg_type"),
		sentSize: counters("alertmanager_cluster_messages_sent_size_total",
			"Total size of cluster messages sent.", "msg_type"),
		pruned: counter("alertmanager_cluster_messages_pruned_total",
			"Total number of cluster messages pruned."),
		joined: counter("alertmanager_cluster_peers_joined_total",
			"A counter of the number of peers that have joined."),
		left: counter("alertmanager_cluster_peers_left_total",
			"A counter of the number of peers that have left."),
		updated: counter("alertmanager_cluster_peers_update_total",
			"A counter of the number of peers that have updated metadata."),
		rejoins: counter("alertmanager_cluster_reconnections_total",
			"A counter of the number of cluster peer reconnections."),
		failedRejoins: counter("alertmanager_cluster_reconnections_failed_total",
			"A counter of the number of failed cluster peer reconnection attempts."),
		alive: counters("alertmanager_cluster_alive_messages_total",
			"Total number of received alive messages.", "peer"),
		pings: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:                            "alertmanager_cluster_pings_seconds",
			Help:                            "Histogram of latencies for ping messages.",
			Buckets:                         []float64{.005, .01, .025, .05, .1, .25, .5},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"peer"}),
		upstreamConflicts: counter("alertmanager_cluster_peer_name_conflicts_total",
			"Total number of times memberlist has noticed conflicting peer names"),
		conflicts: counter("tocsin_mesh_name_conflicts_total",
			"Times another replica was seen that bears this one's name. A few are normal after a change of address."),
		restarts: counter("tocsin_mesh_member_restarts_total",
			"Times a member was another process all of a sudden: it had restarted before anybody missed it."),
		floods: counter("tocsin_mesh_floods_total",
			"Times the full states were exchanged with all members because too many changes waited."),
		refused: counters("tocsin_mesh_refused_total",
			"Messages of the mesh that were refused: cluster (another cluster), key (no key that is accepted), "+
				"plaintext (not encrypted), malformed, incomplete (the connection ended in the middle of one), size, version, busy (too much at once), member (a name or an "+
				"address that cannot be, or too many members), state (could not be merged).",
			"reason"),
		unknown: counter("tocsin_mesh_unknown_states_total",
			"Parts of other members' state that nobody here has asked for."),
		panics: counters("tocsin_mesh_state_panics_total",
			"Panics while a state was merged or read, each of which cost that one message.", "key"),
		leftOut: counters("tocsin_mesh_state_left_out_total",
			"Times a state was not sent in full because it is larger than the mesh can carry.", "key"),
		rtt: gauges("tocsin_mesh_rtt_seconds", "Round-trip time of the last ping to the member."),
		skew: gauges("tocsin_mesh_clock_skew_seconds",
			"How far the member's clock is ahead of ours; negative if it is behind."),
		up: gauges("tocsin_mesh_member_up",
			"1 if the member is alive, 0 if it left or died in the last ten minutes."),
	}
	for _, kind := range []string{kindFullState, kindUpdate} {
		for _, v := range []*prometheus.CounterVec{m.received, m.receivedSize, m.sent, m.sentSize} {
			v.WithLabelValues(kind)
		}
	}
	for _, reason := range allReasons {
		m.refused.WithLabelValues(reason)
	}
	return m
}

// watch registers what is read when it is asked for.
func (m *metrics) watch(reg prometheus.Registerer, mesh *Mesh) {
	f := promauto.With(reg)
	gauge := func(name, help string, value func() float64) {
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	gauge("alertmanager_cluster_members", "Number indicating current number of members in cluster.",
		func() float64 { return float64(mesh.table.countAlive()) })
	gauge("alertmanager_cluster_failed_peers", "Number indicating the current number of failed peers in the cluster.",
		func() float64 { return float64(mesh.table.countDead()) })
	gauge("alertmanager_peer_position",
		"Position the Alertmanager instance believes it's in. The position determines a peer's behavior in the cluster.",
		func() float64 { return float64(mesh.Position()) })
	gauge("alertmanager_cluster_health_score",
		"Health score of the cluster. Lower values are better and zero means 'totally healthy'.",
		func() float64 {
			if list := mesh.list.Load(); list != nil {
				return float64(list.GetHealthScore())
			}
			return 0
		})
	gauge("alertmanager_cluster_messages_queued", "Number of cluster messages which are queued.",
		func() float64 { return float64(mesh.queue.waiting()) })
	info := f.NewGaugeVec(prometheus.GaugeOpts{
		Name: "alertmanager_cluster_peer_info",
		Help: "A metric with a constant '1' value labeled by peer name.",
	}, []string{"peer"})
	info.WithLabelValues(mesh.name).Set(1)
}

// forget removes the series of a member.
func (m *metrics) forget(member string) {
	m.alive.DeleteLabelValues(member)
	m.pings.DeleteLabelValues(member)
	for _, v := range []*prometheus.GaugeVec{m.rtt, m.skew, m.up} {
		v.DeleteLabelValues(member)
	}
}
