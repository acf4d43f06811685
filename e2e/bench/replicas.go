package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// replicaSet is a side of the notify scenario: the same stack several times, meshed, with the same rules, one exporter and
// one receiver.
type replicaSet struct {
	name     string
	hook     *recorder
	levels   *levels
	stacks   []*stack
	limit    time.Duration
	interval time.Duration // between scrapes, and between evaluations
}

// stack is one replica: tocsin, or Prometheus and its Alertmanager.
type stack struct {
	side
	alertmanager string // base URL of the Alertmanager API
	// launch starts the sender, also again after its end.
	launch func() (*process, error)
}

// sender is the process that notifies.
func (s *stack) sender() *process { return s.processes[len(s.processes)-1] }

// pace is the times of the notify scenario's configuration.
type pace struct{ interval, groupInterval time.Duration }

// host is the address of a replica. It is not 127.0.0.1, whose ports the connections to the receiver take.
func host(i int) string { return fmt.Sprintf("127.0.77.%d", i+1) }

// startReplicas starts count replicas of a side on alerts gauges, and waits until they are meshed and have scraped.
func (b *bench) startReplicas(ctx context.Context, name, dir string, count, alerts int, p pace) (_ *replicaSet, err error) {
	r := &replicaSet{name: name, limit: b.readyTimeout, interval: p.interval}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.end())
		}
	}()
	if r.hook, err = newRecorder(); err != nil {
		return nil, err
	}
	if r.levels, err = newLevels(alerts); err != nil {
		return nil, err
	}
	addresses := make([][]string, count)
	for i := range addresses {
		if addresses[i], err = freeAddressesOn(host(i), 4); err != nil {
			return nil, err
		}
	}
	if err := writeReplicaConfig(dir, r, addresses, p); err != nil {
		return nil, err
	}
	for i := range count {
		s, err := b.startStack(name, dir, i, addresses)
		r.stacks = append(r.stacks, s)
		if err != nil {
			return nil, err
		}
	}
	return r, r.settle(ctx)
}

func (b *bench) startStack(name, dir string, i int, addresses [][]string) (*stack, error) {
	own := addresses[i]
	file := func(format string) string { return filepath.Join(dir, fmt.Sprintf(format, i)) }
	s := &stack{side: side{name: name, dir: dir, data: file("data-%d")}, alertmanager: "http://" + own[1]}
	if name == ours && !b.control {
		s.launch = func() (*process, error) {
			return start("tocsin", "http://"+own[0], file("tocsin-%d.log"), b.tocsin, "run", "--config.file="+file("tocsin-%d.yml"),
				"--storage.path="+s.data, "--web.listen-address="+own[0], "--alertmanager.listen-address="+own[1],
				"--cluster.listen-address="+own[2], "--grpc.listen-address="+own[3])
		}
	} else {
		prometheus, err := start("prometheus", "http://"+own[0], file("prometheus-%d.log"), b.prometheus,
			"--config.file="+file("prometheus-%d.yml"), "--storage.tsdb.path="+s.data, "--web.listen-address="+own[0])
		if err != nil {
			return s, err
		}
		s.processes = append(s.processes, prometheus)
		args := []string{
			"--config.file=" + filepath.Join(dir, "alertmanager.yml"), "--storage.path=" + s.data + "-alertmanager",
			"--web.listen-address=" + own[1],
		}
		if len(addresses) == 1 {
			args = append(args, "--cluster.listen-address=")
		} else {
			args = append(args, "--cluster.listen-address="+own[2])
			for j, a := range addresses {
				if j != i {
					args = append(args, "--cluster.peer="+a[2])
				}
			}
		}
		s.launch = func() (*process, error) {
			return start("alertmanager", s.alertmanager, file("alertmanager-%d.log"), b.alertmanager, args...)
		}
	}
	p, err := s.launch()
	if err != nil {
		return s, err
	}
	s.processes = append(s.processes, p)
	return s, nil
}

// writeReplicaConfig writes what all replicas read. The rules lie in one file: when a group is evaluated depends on
// its path, which is the same on real machines.
func writeReplicaConfig(dir string, r *replicaSet, addresses [][]string, p pace) error {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // it never fails
	var gossip, alertmanagers []string
	for _, a := range addresses {
		alertmanagers, gossip = append(alertmanagers, strconv.Quote(a[1])), append(gossip, strconv.Quote(a[2]))
	}
	files := map[string]string{
		"cluster.key":      base64.StdEncoding.EncodeToString(key) + "\n",
		"alertmanager.yml": notifyAlertmanagerYML(r.hook.url, p.groupInterval),
		"rules.yml": "groups:\n  - name: bench\n    rules:\n      - alert: " + benchAlert +
			"\n        expr: bench_level > 0\n        annotations: {summary: 'Level {{ $labels.n }} is {{ $value }}.'}\n",
	}
	for i := range addresses {
		prometheus := notifyPrometheusYML(r.levels.address, p.interval)
		files[fmt.Sprintf("prometheus-ours-%d.yml", i)] = prometheus
		// What people add to run stock replicas: a label that tells their data apart, and that must not reach an alert.
		files[fmt.Sprintf("prometheus-%d.yml", i)] = strings.Replace(prometheus, "external_labels:\n",
			fmt.Sprintf("external_labels:\n    replica: r%d\n", i), 1) +
			"alerting:\n  alert_relabel_configs: [{regex: replica, action: labeldrop}]\n  alertmanagers:\n" +
			"    - static_configs: [{targets: [" + strings.Join(alertmanagers, ", ") + "]}]\n"
		text := fmt.Sprintf("replica: {name: r%d, zone: zone-%d}\nprometheus: prometheus-ours-%d.yml\n", i, i, i) +
			"alertmanager: alertmanager.yml\n"
		if len(addresses) > 1 {
			text += "cluster:\n  name: bench\n  key_file: cluster.key\n  peers: [" + strings.Join(gossip, ", ") + "]\n"
		}
		files[fmt.Sprintf("tocsin-%d.yml", i)] = text
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create the directory for the configuration: %w", err)
	}
	var err error
	for name, text := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return err
}

func notifyPrometheusYML(exporter string, interval time.Duration) string {
	return fmt.Sprintf(`global:
  scrape_interval: %[1]s
  scrape_timeout: %[1]s
  evaluation_interval: %[1]s
  external_labels:
    cluster: bench
rule_files: [rules.yml]
scrape_configs:
  - job_name: bench
    static_configs: [{targets: [%[2]q]}]
`, interval, exporter)
}

func notifyAlertmanagerYML(webhookURL string, groupInterval time.Duration) string {
	return fmt.Sprintf(`route:
  receiver: recorder
  group_by: [alertname, n]
  group_wait: 0s
  group_interval: %s
  repeat_interval: 4h
receivers:
  - name: recorder
    webhook_configs:
      - url: %s
        send_resolved: true
`, groupInterval, webhookURL)
}

// settle waits until all replicas are ready, know each other, and have all gauges.
func (r *replicaSet) settle(ctx context.Context) error {
	for _, s := range r.stacks {
		if _, err := s.waitReady(ctx, r.limit); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.limit, fmt.Errorf("%s was no whole mesh within %s", r.name, r.limit))
	defer cancel()
	for {
		last := r.whole(ctx)
		if last == nil {
			return sleep(ctx, 2*r.interval) // the rules have seen all gauges then
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return fmt.Errorf("%w: %w", err, last)
		}
	}
}

func (r *replicaSet) whole(ctx context.Context) error {
	for _, s := range r.stacks {
		if n, err := s.query(ctx, "count(bench_level)"); err != nil || int(n) != len(r.levels.up) {
			return errors.Join(err, fmt.Errorf("%s has %v gauges", s.url(), n))
		}
		if len(r.stacks) == 1 {
			continue
		}
		text, err := get(ctx, s.alertmanager+"/api/v2/status")
		if err != nil {
			return err
		}
		status, peers, err := parseMesh(text)
		if err != nil || status != "ready" || peers != len(r.stacks) {
			return errors.Join(err, fmt.Errorf("%s is %s and knows %d members", s.alertmanager, status, peers))
		}
	}
	return nil
}

// parseMesh reads Alertmanager's status: how its mesh is, and how many members it has.
func parseMesh(text []byte) (status string, peers int, err error) {
	var answer struct {
		Cluster struct {
			Status string            `json:"status"`
			Peers  []json.RawMessage `json:"peers"`
		} `json:"cluster"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return "", 0, fmt.Errorf("read the status of an Alertmanager: %w", err)
	}
	return answer.Cluster.Status, len(answer.Cluster.Peers), nil
}

// await polls until every alert has been notified as firing, or as resolved, and gives up silently: what is missing
// is counted.
func (r *replicaSet) await(ctx context.Context, firing bool, limit time.Duration) error {
	for end := time.Now().Add(limit); time.Now().Before(end); {
		if r.hook.arrived(firing) == len(r.levels.up) {
			return nil
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// anonymous is the anonymous memory of one replica, the mean over all, in MiB.
func (r *replicaSet) anonymous() (float64, error) {
	var sum float64
	for _, s := range r.stacks {
		u, err := s.usage()
		if err != nil {
			return 0, err
		}
		sum += mib(float64(u.anonymous))
	}
	return sum / float64(len(r.stacks)), nil
}

// cpu is the CPU time of all replicas.
func (r *replicaSet) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, s := range r.stacks {
		u, err := s.usage()
		if err != nil {
			return 0, err
		}
		sum += u.cpu
	}
	return sum, nil
}

// lost counts replicas that have failed to scrape the exporter within the time: their alerts were resolved without
// being so, and the counts mean nothing.
func (r *replicaSet) lost(ctx context.Context, within time.Duration) (int, error) {
	n := 0
	for _, s := range r.stacks {
		v, err := s.query(ctx, fmt.Sprintf(`min_over_time(up{job="bench"}[%ds])`, int(within.Seconds())))
		if err != nil {
			return n, err
		}
		if v == 0 {
			n++
		}
	}
	return n, nil
}

func (r *replicaSet) end() error {
	for _, s := range r.stacks {
		s.end(syscall.SIGKILL)
	}
	var err error
	if r.levels != nil {
		err = r.levels.Close()
	}
	if r.hook != nil {
		err = errors.Join(err, r.hook.Close())
	}
	return err
}
