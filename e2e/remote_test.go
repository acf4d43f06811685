package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRemote moves samples in every way that Prometheus has: remote write in both directions and both versions, remote
// read in both directions, OTLP; and tries the switches that open what is closed.
func TestRemote(t *testing.T) {
	t.Parallel()
	dir := workDir(t)
	open := runTocsin(t, dir, "--web.enable-remote-write-receiver", "--web.enable-otlp-receiver", "--web.enable-admin-api",
		"--web.enable-lifecycle")
	app := newExporter(t, 10, map[string]float64{"e2e_remote": 42})

	// Debian's Prometheus writes to us, and reads from us.
	debian := debianPrometheus(t, dir, fmt.Sprintf(`
global: {scrape_interval: 1s, external_labels: {from: debian}}
remote_write: [{url: "%[1]s/api/v1/write", queue_config: {batch_send_deadline: 500ms}}]
remote_read: [{url: "%[1]s/api/v1/read", read_recent: true, filter_external_labels: false}]
scrape_configs: [{job_name: app, static_configs: [{targets: ["%[2]s"]}]}]
`, open.url, app.address()))

	// Another of ours writes to us in both versions of the protocol, and reads from us.
	closedDir := workDir(t)
	write(t, closedDir, "tocsin.yml", fmt.Sprintf(`
prometheus:
  global: {scrape_interval: 1s, external_labels: {from: tocsin}}
  scrape_configs: [{job_name: app, static_configs: [{targets: ["%[2]s"]}]}]
  remote_write:
    - url: "%[1]s/api/v1/write"
      queue_config: {batch_send_deadline: 500ms}
      write_relabel_configs: [{target_label: version, replacement: one}]
    - url: "%[1]s/api/v1/write"
      protobuf_message: io.prometheus.write.v2.Request
      queue_config: {batch_send_deadline: 500ms}
      write_relabel_configs: [{target_label: version, replacement: two}]
  remote_read:
    - {url: "%[1]s/api/v1/read", read_recent: true, filter_external_labels: false}
`, open.url, app.address()))
	closed := runTocsin(t, closedDir, "--config.file=tocsin.yml")

	for _, expr := range []string{
		`e2e_remote{from="debian",job="app"}`, `e2e_remote{from="tocsin",version="one"}`, `e2e_remote{from="tocsin",version="two"}`,
	} {
		open.wantValue(40*time.Second, expr, 42)
	}
	open.wantValue(40*time.Second, `count(e2e_bulk{version="two"})`, 10)

	// What only the other has is read from there.
	closed.wantValue(20*time.Second, `e2e_remote{from="debian"}`, 42)
	if status, body, err := fetch(http.MethodPost, open.url+"/api/v1/otlp/v1/metrics", jsonType, otlpGauge("shop", "e2e.otlp", time.Now(), 7)); err != nil || status != http.StatusOK {
		t.Fatalf("push by OTLP: %d %s (%v)", status, body, err)
	}
	open.wantValue(20*time.Second, `{__name__=~"e2e.otlp",job="shop"}`, 7)
	eventually(t, 20*time.Second, "Debian's Prometheus reads from us", func() error {
		var d queryData
		if err := getAPI(debian+"/api/v1/query?query="+url.QueryEscape(`e2e_remote{version="two"}`), &d); err != nil {
			return err
		}
		if len(d.Result) != 1 {
			return fmt.Errorf("it has %v", d.Result)
		}
		return nil
	})

	t.Run("what is off is off", func(t *testing.T) { wantClosed(t, closed) })
	t.Run("admin", func(t *testing.T) { useAdmin(t, open, dir) })
	closed.stop()
	status, body, err := fetch(http.MethodPost, open.url+"/-/quit", "", "")
	if err != nil || status != http.StatusOK {
		t.Errorf("quit: %d %s (%v)", status, body, err)
	}
	if code := open.wait(30 * time.Second); code != 0 {
		t.Errorf("after quit it ends with %d", code)
	}
}

func wantClosed(t *testing.T, p *tocsin) {
	for path, want := range map[string]int{
		"/api/v1/write": http.StatusNotFound, "/api/v1/otlp/v1/metrics": http.StatusNotFound,
		"/api/v1/admin/tsdb/snapshot": 0, "/api/v1/admin/tsdb/clean_tombstones": 0,
		"/api/v1/admin/tsdb/delete_series?match%5B%5D=up": 0, "/-/quit": http.StatusForbidden,
	} {
		status, body, err := fetch(http.MethodPost, p.url+path, "application/x-protobuf", snappyA)
		// Upstream answers a closed admin API with 503; a client error is as good.
		if err != nil || status < 400 || (want != 0 && status != want) || body == "" {
			t.Errorf("%s: %d, not %d: %s (%v)", path, status, want, body, err)
		}
	}
	p.wantSome(10*time.Second, "up")
}

func useAdmin(t *testing.T, p *tocsin, dir string) {
	post := func(path string, want int) string {
		t.Helper()
		status, body, err := fetch(http.MethodPost, p.url+"/api/v1/admin/tsdb/"+path, "", "")
		if err != nil || status != want {
			t.Fatalf("%s: %d %s (%v)", path, status, body, err)
		}
		return body
	}
	var snapshot struct {
		Name string `json:"name"`
	}
	if err := decodeAPI(http.StatusOK, post("snapshot", http.StatusOK), &snapshot); err != nil || snapshot.Name == "" {
		t.Fatalf("the snapshot: %+v (%v)", snapshot, err)
	}
	path := filepath.Join(dir, "data/tsdb/snapshots", snapshot.Name)
	// Where the data is shown, promtool wants a log; a snapshot has none.
	if err := os.Mkdir(filepath.Join(path, "wal"), 0o755); err != nil {
		t.Fatal(err)
	}
	contains(t, "promtool tsdb dump of the snapshot",
		mustTool(t, dir, "promtool", "tsdb", "dump", "--match={__name__=\"e2e_remote\",from=\"debian\"}", path), "e2e_remote", " 42 ")

	post("delete_series?match%5B%5D="+url.QueryEscape(`{__name__=~"e2e.otlp"}`), http.StatusNoContent)
	if result, err := p.query(`{__name__=~"e2e.otlp"}`, time.Time{}); err != nil || len(result) > 0 {
		t.Errorf("deleted, but there: %v (%v)", result, err)
	}
	post("clean_tombstones", http.StatusNoContent)
	if strings.Contains(p.output(), "level=ERROR source=db.go") {
		t.Errorf("the TSDB complains:\n%s", p.tail(10))
	}
}
