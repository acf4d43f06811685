package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// mostClusters is how many clusters run at once: each is three processes, and the windows of the timelines are short.
const mostClusters = 3

var clusterSlots = make(chan struct{}, mostClusters)

const clusterPrometheus = `
global:
  scrape_interval: 1s
  evaluation_interval: 1s
  external_labels: {site: e2e, replica: %[1]s, zone: %[2]s}
rule_files: [rules.yml]
scrape_configs:
  - job_name: lamps
    static_configs: [{targets: ["%[3]s"], labels: {instance: lamps}}]
`

const clusterAlertmanager = `
route:
  receiver: people
  group_by: [alertname, n]
  group_wait: %[1]s
  group_interval: %[2]s
  repeat_interval: 1h
receivers:
  - name: people
    webhook_configs: [{url: "%[3]s"}]
`

const clusterRules = `
groups:
  - name: e2e
    rules:
      - alert: Lamp
        expr: e2e_lamp > 0
      - alert: Slow
        expr: e2e_slow > 0
        for: 3s
      - alert: Patient
        expr: e2e_patient > 0
        for: 1h
`

// clusterOptions are what a timeline may want otherwise.
type clusterOptions struct {
	zones                    bool // in network namespaces, as faults need; otherwise on loopback addresses
	names                    []string
	strangers                []string // further zones, for what add adds
	keyless                  bool
	watched                  bool                  // with a meter, and rules about it, as healing needs
	bucket                   func(*replica) string // the section of the name in tocsin.yml; nil for none
	flags                    []string              // beside those that all clusters have
	groupWait, groupInterval time.Duration
	retention                time.Duration // of local data; 0 for the default
}

// meshCluster is replicas that are configured alike, what they watch, and whom they notify.
type meshCluster struct {
	t        *testing.T
	dir      string
	net      *zoneNet // nil on loopback addresses
	loopback string   // the first three bytes of the addresses, without zones
	hook     *receiver
	lamps    *exporter
	meter    *meter // nil unless it is watched
	options  clusterOptions
	replicas map[string]*replica
	key      string
}

// replica is one of them, running or not.
type replica struct {
	*tocsin    // of the last start; nil before the first
	cluster    *meshCluster
	name, host string
	url, amURL string // the same at every start
	dir        string
	settings
}

// settings are the replica's part of the configuration.
type settings struct {
	replica string
	cluster string
	peers   []string
	keys    []string // none is no key
}

// newCluster writes everything and starts nothing.
func newCluster(t *testing.T, o clusterOptions) *meshCluster {
	t.Helper()
	if o.zones {
		requireZones(t) // before it waits
	}
	clusterSlots <- struct{}{}
	t.Cleanup(func() { <-clusterSlots })
	if o.names == nil {
		o.names = []string{"a", "b", "c"}
	}
	if o.groupWait == 0 {
		o.groupWait = time.Second
	}
	if o.groupInterval == 0 {
		o.groupInterval = 2 * time.Second
	}
	c := &meshCluster{t: t, dir: workDir(t), options: o, replicas: map[string]*replica{}}
	zoneOf := func(address string) string { return address }
	if o.zones {
		c.net = newZoneNet(t, slices.Concat(o.names, o.strangers)...)
		zoneOf = c.net.zoneOf
	} else {
		c.loopback = loopbackNet(t)
	}
	c.hook = newReceiver(t, c.core(), zoneOf)
	c.lamps = &exporter{values: map[string]float64{}}
	c.lamps.Server = serveIn(t, c.core(), http.HandlerFunc(c.lamps.serve))
	if o.watched {
		c.meter = newMeter(t, c.meterZone())
	}
	if !o.keyless {
		c.key = newClusterKey(t, c.dir)
	}
	for _, name := range o.names {
		c.add(name)
	}
	for _, r := range c.replicas {
		for _, other := range o.names {
			if other != r.name {
				r.peers = append(r.peers, c.replicas[other].host+":9094")
			}
		}
		r.configure()
	}
	return c
}

func newClusterKey(t *testing.T, dir string) string {
	t.Helper()
	return strings.TrimSpace(mustTool(t, dir, tocsinBinary, "cluster", "keygen"))
}

// add makes a place for a replica; where there are zones, its zone has to be one of the options'.
func (c *meshCluster) add(name string) *replica {
	c.t.Helper()
	r := &replica{cluster: c, name: name, dir: filepath.Join(c.dir, name)}
	r.settings = settings{replica: name, cluster: "e2e"}
	if c.key != "" {
		r.keys = []string{c.key}
	}
	if c.net != nil {
		r.host = c.net.zones[name].address
	} else {
		r.host = fmt.Sprintf("%s.%d", c.loopback, 11+len(c.replicas))
	}
	r.url, r.amURL = "http://"+r.host+":9090", "http://"+r.host+":9093"
	c.replicas[name] = r
	return r
}

// core is where receivers and tools are.
func (c *meshCluster) core() *zone {
	if c.net == nil {
		return nil
	}
	return c.net.core
}

func (c *meshCluster) meterZone() *zone {
	if c.net == nil {
		return nil
	}
	return c.net.zones[meterZone]
}

func (c *meshCluster) nobody() string {
	if c.net == nil {
		return fmt.Sprintf("%s.%d", c.loopback, nobody)
	}
	return c.net.core.sibling(nobody)
}

var lastLoopbackNet atomic.Int32

// loopbackNet finds addresses that no other run of these tests has.
func loopbackNet(t *testing.T) string {
	t.Helper()
	for range 1000 {
		n := int(lastLoopbackNet.Add(1)) + os.Getpid()*8
		prefix := fmt.Sprintf("127.%d.%d", 1+n/250%250, 1+n%250)
		l, err := net.Listen("tcp", prefix+".1:9094")
		if err != nil {
			continue
		}
		t.Cleanup(func() { l.Close() })
		return prefix
	}
	t.Fatal("all loopback networks are taken")
	return ""
}

// configure writes the replica's files from its settings.
func (r *replica) configure() {
	t := r.cluster.t
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "prometheus: prometheus.yml\nalertmanager: alertmanager.yml\n")
	fmt.Fprintf(&b, "replica: {name: %s, zone: zone-%s}\n", r.replica, r.name)
	fmt.Fprintf(&b, "cluster:\n  name: %s\n  peers: [%s]\n", r.settings.cluster, quoted(r.peers))
	if len(r.keys) > 0 {
		fmt.Fprintf(&b, "  key_file: cluster.key\n")
		path := write(t, r.dir, "cluster.key", strings.Join(r.keys, "\n")+"\n")
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := r.cluster.options
	if o.bucket != nil {
		b.WriteString(o.bucket(r))
	}
	write(t, r.dir, "tocsin.yml", b.String())
	write(t, r.dir, "prometheus.yml", fmt.Sprintf(clusterPrometheus, r.replica, "zone-"+r.name, r.cluster.lamps.address()))
	write(t, r.dir, "alertmanager.yml", fmt.Sprintf(clusterAlertmanager, o.groupWait, o.groupInterval, r.cluster.hook.url))
	write(t, r.dir, "rules.yml", clusterRules)
	if r.cluster.meter != nil {
		r.watch()
	}
	if o.retention > 0 {
		write(t, r.dir, "prometheus.yml", readFile(t, r.dir, "prometheus.yml")+
			fmt.Sprintf("storage: {tsdb: {retention: {time: %s}}}\n", o.retention))
	}
}

func quoted(all []string) string {
	parts := make([]string, len(all))
	for i, s := range all {
		parts[i] = strconv.Quote(s)
	}
	return strings.Join(parts, ", ")
}

// start starts the replica and does not wait.
func (r *replica) start() *replica {
	c := r.cluster
	c.t.Helper()
	args := append([]string{"run", "--config.file=tocsin.yml", "--storage.path=data",
		"--web.listen-address=" + r.host + ":9090", "--alertmanager.listen-address=" + r.host + ":9093",
		"--cluster.listen-address=" + r.host + ":9094", "--grpc.listen-address=" + r.host + ":10901",
		"--storage.remote.flush-deadline=1s"}, c.options.flags...)
	p := startIn(c.t, r.zone(), r.dir, "tocsin-"+r.name, tocsinBinary, args...)
	r.tocsin = &tocsin{process: p, url: r.url, amURL: r.amURL}
	return r
}

// zone is where the replica is, if there are zones.
func (r *replica) zone() *zone {
	if r.cluster.net == nil {
		return nil
	}
	return r.cluster.net.zones[r.name]
}

func (r *replica) freeze() { r.signal(syscall.SIGSTOP) }
func (r *replica) thaw()   { r.signal(syscall.SIGCONT) }

// restart is a clean stop, if it still runs, and a start, and waits until it is ready.
func (r *replica) restart() {
	r.cluster.t.Helper()
	if ended, _ := r.exited(); !ended {
		r.stop()
	}
	r.start().ready()
}

// up starts the replicas named, or all, in that order and at once, and waits until they are one mesh and see the lamps.
func (c *meshCluster) up(names ...string) {
	c.t.Helper()
	if len(names) == 0 {
		names = c.options.names
	}
	for _, name := range names {
		c.replicas[name].start()
	}
	for _, name := range names {
		c.replicas[name].ready()
	}
	eventually(c.t, 30*time.Second, "the mesh forms", c.sees(names, names...))
	eventually(c.t, 30*time.Second, "the mesh is settled", c.settled)
	for _, name := range names {
		c.replicas[name].wantValue(30*time.Second, `up{job="lamps"}`, 1)
	}
}

func (c *meshCluster) a() *replica { return c.replicas["a"] }
func (c *meshCluster) b() *replica { return c.replicas["b"] }
func (c *meshCluster) c() *replica { return c.replicas["c"] }

// clusterView is what GET /api/tocsin/v1/cluster says.
type clusterView struct {
	Name    string       `json:"name"`
	Members []memberView `json:"members"`
}

type memberView struct {
	Name             string    `json:"name"`
	Zone             string    `json:"zone"`
	Address          string    `json:"address"`
	HTTPAddress      string    `json:"http_address"`
	GRPCAddress      string    `json:"grpc_address"`
	Version          string    `json:"version"`
	Started          time.Time `json:"started"`
	Completeness     *float64  `json:"completeness"`
	Alive            bool      `json:"alive"`
	Self             bool      `json:"self"`
	RTTSeconds       *float64  `json:"rtt_seconds"`
	ClockSkewSeconds *float64  `json:"clock_skew_seconds"`
	LastContact      time.Time `json:"last_contact"`
}

// quickly is fetch for checks that must not wait for a replica that is frozen or cut off.
func quickly(method, address, contentType, body string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %d %.300s", method, address, resp.StatusCode, b)
	}
	return string(b), err
}

func (r *replica) view() (v clusterView, err error) {
	body, err := quickly(http.MethodGet, r.url+"/api/tocsin/v1/cluster", "", "")
	if err != nil {
		return v, err
	}
	return v, json.Unmarshal([]byte(body), &v)
}

// sees is a check that each of the replicas sees exactly the members given alive.
func (c *meshCluster) sees(replicas []string, members ...string) func() error {
	want := slices.Sorted(slices.Values(members))
	return func() error {
		for _, name := range replicas {
			v, err := c.replicas[name].view()
			if err != nil {
				return err
			}
			var alive []string
			for _, m := range v.Members {
				if m.Alive {
					alive = append(alive, m.Name)
				}
			}
			if !slices.Equal(alive, want) {
				return fmt.Errorf("%s sees %q alive, not %q", name, alive, want)
			}
		}
		return nil
	}
}

// whole is a check that all see all.
func (c *meshCluster) whole() error { return c.sees(c.options.names, c.options.names...)() }

func (c *meshCluster) light(n string) group {
	c.lamps.set(fmt.Sprintf("e2e_lamp{n=%q}", n), 1)
	return group{"Lamp", n}
}

func (c *meshCluster) unlight(n string) { c.lamps.set(fmt.Sprintf("e2e_lamp{n=%q}", n), 0) }

// silenceAt makes a silence for a group, and returns its ID.
func silenceAt(amURL string, g group, comment string) (string, error) {
	now := time.Now().UTC()
	body, err := json.Marshal(map[string]any{
		"matchers": []map[string]any{
			{"name": "alertname", "value": g.alert, "isRegex": false, "isEqual": true},
			{"name": "n", "value": g.n, "isRegex": false, "isEqual": true},
		},
		"startsAt": now.Format(time.RFC3339Nano), "endsAt": now.Add(time.Hour).Format(time.RFC3339Nano),
		"createdBy": "e2e", "comment": comment,
	})
	if err != nil {
		return "", err
	}
	answer, err := quickly(http.MethodPost, amURL+"/api/v2/silences", "application/json", string(body))
	if err != nil {
		return "", err
	}
	var made struct {
		SilenceID string `json:"silenceID"`
	}
	if err := json.Unmarshal([]byte(answer), &made); err != nil || made.SilenceID == "" {
		return "", fmt.Errorf("a silence is answered with %s: %w", answer, err)
	}
	return made.SilenceID, nil
}

func (r *replica) mustSilence(g group) string {
	r.cluster.t.Helper()
	id, err := silenceAt(r.amURL, g, "made at "+r.name)
	if err != nil {
		r.cluster.t.Fatalf("make a silence at %s: %v", r.name, err)
	}
	return id
}

// hasSilence is a check that the address has the silence and it is active.
func hasSilence(amURL, id string) error {
	answer, err := quickly(http.MethodGet, amURL+"/api/v2/silence/"+id, "", "")
	if err != nil {
		return err
	}
	var s struct {
		Status struct {
			State string `json:"state"`
		} `json:"status"`
	}
	if err := json.Unmarshal([]byte(answer), &s); err != nil {
		return err
	}
	if s.Status.State != "active" {
		return fmt.Errorf("silence %s is %s at %s", id, s.Status.State, amURL)
	}
	return nil
}

// haveSilences is a check that all replicas have all the silences.
func (c *meshCluster) haveSilences(ids ...string) error {
	for _, name := range c.options.names {
		for _, id := range ids {
			if err := hasSilence(c.replicas[name].amURL, id); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// alertAt is the state of the group's alert in the replica's Alertmanager, and its labels; empty if it has none.
func (r *replica) alertAt(g group) (state string, labels map[string]string, err error) {
	v := url.Values{"filter": {fmt.Sprintf("alertname=%q", g.alert), fmt.Sprintf("n=%q", g.n)}}
	answer, err := quickly(http.MethodGet, r.amURL+"/api/v2/alerts?"+v.Encode(), "", "")
	if err != nil {
		return "", nil, err
	}
	var alerts []struct {
		Labels map[string]string `json:"labels"`
		Status struct {
			State string `json:"state"`
		} `json:"status"`
	}
	if err := json.Unmarshal([]byte(answer), &alerts); err != nil || len(alerts) == 0 {
		return "", nil, err
	}
	return alerts[0].Status.State, alerts[0].Labels, nil
}

// alertIs is a check that all replicas named have the group's alert in the state.
func (c *meshCluster) alertIs(state string, g group, replicas ...string) func() error {
	return func() error {
		for _, name := range replicas {
			got, _, err := c.replicas[name].alertAt(g)
			if err != nil {
				return err
			}
			if got != state {
				return fmt.Errorf("%s has %s as %q, not %s", name, g, got, state)
			}
		}
		return nil
	}
}

// total is the sum of all samples of the replica's own metrics whose name has the part; what was never counted is 0.
func (r *replica) total(part string) (sum float64, err error) {
	body, err := quickly(http.MethodGet, r.url+"/metrics", "", "")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(body) {
		name, _, _ := strings.Cut(line, " ")
		name, _, _ = strings.Cut(name, "{")
		if strings.HasPrefix(line, "#") || !strings.HasPrefix(name, "tocsin_") || !strings.Contains(name, part) {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(strings.TrimSpace(line), ' ')+1:]), 64)
		if err != nil {
			return 0, fmt.Errorf("%q: %w", line, err)
		}
		sum += v
	}
	return sum, nil
}

// reloadAll reloads every replica, as soon as its files are written.
func (c *meshCluster) reloadAll(edit func(*replica)) {
	c.t.Helper()
	for _, name := range c.options.names {
		r := c.replicas[name]
		edit(r)
		r.configure()
		if status, body := r.reload(); status != http.StatusOK {
			c.t.Fatalf("reload of %s: %d %s", name, status, body)
		}
	}
}

// timeline is a timeline with the cluster's receiver. Whatever it plays, labels that tell replicas apart never leave.
func (c *meshCluster) timeline() *timeline {
	c.t.Helper()
	c.t.Cleanup(func() {
		if err := c.hook.ownLabels(); err != nil {
			c.t.Error(err)
		}
	})
	return newTimeline(c.t, c.hook)
}

// amStatus is the cluster as an Alertmanager API sees it: its status, and the number of members.
func amStatus(amURL string) (status string, members int, err error) {
	body, err := quickly(http.MethodGet, amURL+"/api/v2/status", "", "")
	if err != nil {
		return "", 0, err
	}
	var s struct {
		Cluster struct {
			Status string `json:"status"`
			Peers  []struct {
				Name string `json:"name"`
			} `json:"peers"`
		} `json:"cluster"`
	}
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		return "", 0, err
	}
	return s.Cluster.Status, len(s.Cluster.Peers), nil
}

// settled is a check that no replica holds its notifications back any more until it has met the others.
func (c *meshCluster) settled() error {
	for _, name := range c.options.names {
		status, _, err := amStatus(c.replicas[name].amURL)
		if err != nil {
			return err
		}
		if status != "ready" {
			return fmt.Errorf("%s is %s", name, status)
		}
	}
	return nil
}

// wantPeers is a check that an Alertmanager API sees so many members.
func wantPeers(amURL string, want int) func() error {
	return func() error {
		_, got, err := amStatus(amURL)
		if err == nil && got != want {
			err = fmt.Errorf("%s sees %d members, not %d", amURL, got, want)
		}
		return err
	}
}

// postAlert posts one from outside; until is its end.
func postAlert(amURL string, g group, until time.Time) error {
	return postLabels(amURL, map[string]string{"alertname": g.alert, "n": g.n}, until)
}

func postLabels(amURL string, labels map[string]string, until time.Time) error {
	body, err := json.Marshal([]map[string]any{{"labels": labels, "endsAt": until.UTC().Format(time.RFC3339Nano)}})
	if err != nil {
		return err
	}
	_, err = quickly(http.MethodPost, amURL+"/api/v2/alerts", "application/json", string(body))
	return err
}

// all is a check of several.
func all(checks ...func() error) func() error {
	return func() error {
		var errs []error
		for _, check := range checks {
			errs = append(errs, check())
		}
		return errors.Join(errs...)
	}
}
