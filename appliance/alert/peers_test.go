package alert_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/rules"

	"github.com/tocsin-io/tocsin/appliance/alert"
	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/mesh"
)

// startCluster starts three Alertmanagers on a real mesh with a key.
func startCluster(t *testing.T, amYAML, promYAML string) []*replica {
	t.Helper()
	keys := config.Keys{make([]byte, 32)}
	var seeds []string
	var out []*replica
	for _, name := range []string{"a", "b", "c"} {
		cfg := load(t, amYAML, promYAML)
		cfg.Replica = config.Replica{Name: name, Zone: "zone-" + name}
		cfg.Cluster, cfg.ClusterKeys = &config.Cluster{Name: "test", Peers: seeds}, keys
		reg, log, dir := prometheus.NewRegistry(), &lockedBuffer{}, t.TempDir()
		logger := slog.New(slog.NewTextHandler(log, nil))
		m, err := mesh.New(mesh.Options{
			Logger: logger, Registerer: reg, Config: cfg, Dir: filepath.Join(dir, "mesh"),
			ListenAddress: "127.0.0.1:0", GRPCListenAddress: "127.0.0.1:0", HTTPPort: 9090,
		})
		if err != nil {
			t.Fatal(err)
		}
		seeds = append(seeds, m.Members()[0].Address)
		sd, err := discovery.CreateAndRegisterSDMetrics(reg)
		if err != nil {
			t.Fatal(err)
		}
		a, err := alert.New(alert.Options{
			Logger: logger, Registerer: reg, SDMetrics: sd, Mesh: m, Replica: name,
			Dir: filepath.Join(dir, "am"), ExternalURL: &url.URL{Scheme: "http", Host: name}, Address: "localhost:9090", RoutePrefix: "/",
		})
		if err != nil {
			t.Fatal(err)
		}
		r := &replica{Alert: a, t: t, log: log}
		if err := r.apply(cfg); err != nil {
			t.Fatal(err)
		}
		// As the process does: the mesh outlives the Alertmanager.
		alertCtx, stopAlert := context.WithCancel(context.Background())
		meshCtx, stopMesh := context.WithCancel(context.Background())
		alertDone, meshDone := make(chan error, 1), make(chan error, 1)
		go func() { alertDone <- a.Run(alertCtx) }()
		go func() { meshDone <- m.Run(meshCtx) }()
		r.stop = sync.OnceFunc(func() {
			stopAlert()
			if err := <-alertDone; err != nil {
				t.Error(err)
			}
			stopMesh()
			if err := <-meshDone; err != nil {
				t.Error(err)
			}
		})
		t.Cleanup(r.stop)
		out = append(out, r)
		eventually(t, "the mesh to form", func() bool { return len(m.Peers()) == len(seeds) })
	}
	return out
}

// notifications counts what a webhook was sent: by alert name, n and status.
func notifications(t *testing.T, s *sink) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, b := range s.bodies() {
		var m struct {
			Alerts []struct {
				Status string
				Labels map[string]string
			}
		}
		if err := json.Unmarshal([]byte(b), &m); err != nil {
			t.Fatal(err)
		}
		for _, a := range m.Alerts {
			if a.Labels["replica"] != "" || a.Labels["zone"] != "" {
				t.Errorf("a label of the replica has reached an alert: %v", a.Labels)
			}
			out[fmt.Sprintf("%s %s %s", a.Labels["alertname"], a.Labels["n"], a.Status)]++
		}
	}
	return out
}

const clusterAlertmanager = `
route: {receiver: hook, group_by: [alertname, n], group_wait: 300ms, group_interval: 1s, repeat_interval: 1h}
receivers: [{name: hook, webhook_configs: [{url: "%s"}]}]
`

// TestClusterNotifiesOnce holds that what three replicas' rules say, and what is posted to any one of them, is sent
// once by the three.
func TestClusterNotifiesOnce(t *testing.T) {
	hook := newSink(t)
	rs := startCluster(t, fmt.Sprintf(clusterAlertmanager, hook.url), `
global: {external_labels: {replica: x, zone: y, site: here}}
`)
	const n = 100
	say := func(ends time.Duration) {
		var jobs sync.WaitGroup
		for i, r := range rs {
			jobs.Go(func() {
				now := time.Now()
				for k := range n {
					al := &rules.Alert{Labels: labels.FromStrings("alertname", "Rule", "n", fmt.Sprint(k)), FiredAt: now, ValidUntil: now.Add(ends)}
					if ends < 0 {
						al.ResolvedAt = now
					}
					r.Notify(t.Context(), "up == 0", al)
					if k%len(rs) == i {
						post(t, r, fmt.Sprintf(`[{"labels":{"alertname":"Posted","n":"%d"},"endsAt":"%s"}]`, k, now.Add(ends).Format(time.RFC3339Nano)))
					}
				}
			})
		}
		jobs.Wait()
	}
	all := func(status string) func() bool {
		return func() bool {
			got := notifications(t, hook)
			for k := range n {
				if got[fmt.Sprintf("Rule %d %s", k, status)] == 0 || got[fmt.Sprintf("Posted %d %s", k, status)] == 0 {
					return false
				}
			}
			return true
		}
	}
	say(10 * time.Minute)
	eventually(t, "every alert to be notified of", all("firing"))
	say(-time.Millisecond)
	eventually(t, "every alert to be resolved", all("resolved"))
	// What is sent twice is sent by the next flush at the latest.
	before := time.Now()
	eventually(t, "another flush", func() bool { return time.Since(before) > 2500*time.Millisecond })
	for what, times := range notifications(t, hook) {
		if times != 1 {
			t.Errorf("%s was sent %d times", what, times)
		}
	}
	if !hook.contains(`"site":"here"`)() {
		t.Error("an external label that is not the replica's own is missing")
	}
}

func post(t *testing.T, r *replica, body string) {
	t.Helper()
	req := httptest.NewRequest(http.MethodPost, "/api/v2/alerts", strings.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	r.Handler().ServeHTTP(w, req)
	if w.Code != http.StatusOK {
		t.Errorf("post an alert: %d %s", w.Code, w.Body)
	}
}
