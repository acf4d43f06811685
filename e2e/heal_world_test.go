package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// What all tests of healing share: three replicas that watch a meter in a zone of its own, so that each of them can be
// cut off from it while the tests go on to reach the replica, and what is asked of their data.

const (
	meterZone = "t"
	// healMost is how long a replica may take until it is whole. Machines are shared.
	healMost = 90 * time.Second
	// atEdges is what is left out at the edges of an outage: there, both own and others' samples are right.
	atEdges = 2 * time.Second
	// beforeOutage is how far before an outage the tests look.
	beforeOutage = 8 * time.Second
)

const meterScrape = `
  - job_name: meter
    scrape_native_histograms: true
    scrape_protocols: [PrometheusProto, PrometheusText0.0.4]
    static_configs: [{targets: ["%s"], labels: {instance: meter}}]
`

const meterRules = `
  - name: meter
    rules:
      - record: e2e:ticks:rate
        expr: rate(e2e_ticks_total[10s])
      - record: e2e:level:double
        expr: 2 * e2e_level
`

// These must never be pending, let alone fire: there is always somebody who has the data. They look at a shorter time
// than the outages last. They are loaded as soon as there are data.
const meterAlerts = `
  - name: absent
    rules:
      - alert: UpAbsent
        expr: absent_over_time(up{job="meter"}[5s])
      - alert: TicksAbsent
        expr: absent(e2e_ticks_total) or absent_over_time(e2e_ticks_total[5s])
      - alert: RecordAbsent
        expr: absent_over_time(e2e:level:double[6s])
      - alert: Reset
        expr: resets(e2e_ticks_total[1m]) > 0
`

var neverAlerts = []string{"UpAbsent", "TicksAbsent", "RecordAbsent", "Reset"}

// meter is a target: a counter that grows by one a second, a gauge, a native histogram, and series that come and go.
type meter struct {
	*httptest.Server
	born time.Time

	mu    sync.Mutex
	shown map[string]bool
	armed bool
}

var (
	ticksDesc   = prometheus.NewDesc("e2e_ticks_total", "Seconds.", nil, nil)
	levelDesc   = prometheus.NewDesc("e2e_level", "A wave.", nil, nil)
	latencyDesc = prometheus.NewDesc("e2e_latency_seconds", "A native histogram.", nil, nil)
	guestDesc   = prometheus.NewDesc("e2e_guest", "It comes and goes.", []string{"name"}, nil)
)

func newMeter(t *testing.T, z *zone) *meter {
	t.Helper()
	m := &meter{born: time.Now().Truncate(time.Millisecond), shown: map[string]bool{}}
	reg := prometheus.NewRegistry()
	if err := reg.Register(m); err != nil {
		t.Fatal(err)
	}
	m.Server = serveIn(t, z, promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	return m
}

func (m *meter) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{ticksDesc, levelDesc, latencyDesc, guestDesc} {
		ch <- d
	}
}

func (m *meter) Collect(ch chan<- prometheus.Metric) {
	age := time.Since(m.born)
	n := age.Milliseconds() / 100
	ch <- prometheus.MustNewConstMetric(ticksDesc, prometheus.CounterValue, float64(age.Milliseconds())/1000)
	ch <- prometheus.MustNewConstMetric(levelDesc, prometheus.GaugeValue, math.Sin(age.Seconds()/5))
	ch <- prometheus.MustNewConstNativeHistogram(latencyDesc, uint64(4*n), float64(n), map[int]int64{0: n, 1: 2 * n, 7: n}, nil, 0,
		3, 0.001, m.born)
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, shown := range m.shown {
		if shown {
			ch <- prometheus.MustNewConstMetric(guestDesc, prometheus.GaugeValue, float64(n), name)
		}
	}
}

func (m *meter) show(name string, yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shown[name] = yes
}

func (m *meter) isArmed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.armed
}

// watch adds the meter and the rules about it to the replica's files.
func (r *replica) watch() {
	t := r.cluster.t
	t.Helper()
	m := r.cluster.meter
	write(t, r.dir, "prometheus.yml", readFile(t, r.dir, "prometheus.yml")+fmt.Sprintf(meterScrape, m.Listener.Addr()))
	all := clusterRules + meterRules
	if m.isArmed() {
		all += meterAlerts
	}
	write(t, r.dir, "rules.yml", all)
}

// newHealCluster is three replicas that are up, whole, and have watched the meter for a while. From then on, no alert may
// say that anything is absent.
func newHealCluster(t *testing.T) *meshCluster {
	t.Helper()
	c := newCluster(t, clusterOptions{zones: true, strangers: []string{meterZone}, watched: true})
	c.meter.show("leaves", true)
	c.lamps.set(`e2e_patient{n="1"}`, 1)
	c.up()
	eventually(t, 60*time.Second, "there are data", func() error {
		for _, name := range c.options.names {
			for _, expr := range []string{`count_over_time(e2e_ticks_total[10s])`, `count_over_time(e2e:level:double[10s])`} {
				n, err := c.replicas[name].localValue(expr)
				if err != nil || n < 8 {
					return fmt.Errorf("%s: %s is %v: %w", name, expr, n, err)
				}
			}
		}
		return nil
	})
	c.meter.mu.Lock()
	c.meter.armed = true
	c.meter.mu.Unlock()
	c.reloadAll(func(*replica) {})
	eventually(t, healMost, "all are complete at first", c.complete())
	// Of the first seconds a replica may have single samples of others, whose guards nobody can know. What the tests look at begins
	// after them.
	began := time.Now()
	eventually(t, 2*beforeOutage, "the start is over", func() error { return after(began.Add(beforeOutage)) })
	return c
}

// gapsView is what GET /api/tocsin/v1/gaps says.
type gapsView struct {
	Complete     bool      `json:"complete"`
	Completeness float64   `json:"completeness"`
	Problem      string    `json:"problem"`
	Gaps         []gapView `json:"gaps"`
}

type gapView struct {
	ID      string            `json:"id"`
	Kind    string            `json:"kind"`
	Labels  map[string]string `json:"labels"`
	From    int64             `json:"from"`
	To      int64             `json:"to"`
	Cause   string            `json:"cause"`
	State   string            `json:"state"`
	Missing []struct {
		From int64 `json:"from"`
		To   int64 `json:"to"`
	} `json:"missing"`
	Found time.Time `json:"found"`
	Fills []struct {
		Replica string `json:"replica"`
		Samples int64  `json:"samples"`
	} `json:"fills"`
}

// lasts tells that the gap is not over.
func (g *gapView) lasts() bool { return g.To == math.MaxInt64 }

// during tells whether the gap and the time have something in common.
func (g *gapView) during(from, to time.Time) bool {
	return g.From < to.UnixMilli() && from.UnixMilli() < g.To
}

func (g gapView) String() string {
	end := "now"
	if !g.lasts() {
		end = time.UnixMilli(g.To).Format("15:04:05.000")
	}
	missing := ""
	for _, m := range g.Missing {
		missing += fmt.Sprintf(" from %s for %d s", time.UnixMilli(m.From).Format("15:04:05.000"), (min(m.To, time.Now().UnixMilli())-m.From)/1000)
	}
	return fmt.Sprintf("%s (%s) %v from %s to %s: %s, missing%s, fills %v", g.Kind, g.Cause, g.Labels,
		time.UnixMilli(g.From).Format("15:04:05.000"), end, g.State, missing, g.Fills)
}

func (r *replica) gaps() (v gapsView, err error) {
	body, err := quickly(http.MethodGet, r.url+"/api/tocsin/v1/gaps", "", "")
	if err != nil {
		return v, err
	}
	return v, json.Unmarshal([]byte(body), &v)
}

// complete is a check that the replicas named, or all, are whole, as they say themselves.
func (c *meshCluster) complete(names ...string) func() error {
	if len(names) == 0 {
		names = c.options.names
	}
	return func() error {
		for _, name := range names {
			v, err := c.replicas[name].gaps()
			if err != nil {
				return err
			}
			open := slices.DeleteFunc(slices.Clone(v.Gaps), func(g gapView) bool { return g.State != "open" })
			if !v.Complete || len(open) > 0 {
				return fmt.Errorf("%s is complete: %t (%v), %q: %v", name, v.Complete, v.Completeness, v.Problem, open)
			}
		}
		return nil
	}
}

// knows is a check that a replica has found out, after an outage that began at from, that it lacks something.
func (r *replica) knows(kind string, from time.Time) func() error {
	return func() error {
		v, err := r.gaps()
		if err != nil {
			return err
		}
		for _, g := range v.Gaps {
			if g.Kind == kind && (g.lasts() || g.To > from.UnixMilli()) {
				return nil
			}
		}
		return fmt.Errorf("%s knows of no gap of kind %s since %s: %v", r.name, kind, from, v.Gaps)
	}
}

// tellGaps makes the gaps part of what a failed test tells.
func (c *meshCluster) tellGaps() {
	for _, name := range c.options.names {
		v, err := c.replicas[name].gaps()
		if err != nil {
			c.t.Logf("gaps of %s: %v", name, err)
			continue
		}
		c.t.Logf("gaps of %s: complete %t, %q", name, v.Complete, v.Problem)
		for _, g := range v.Gaps {
			c.t.Logf("  %s", g)
		}
	}
}

// healTimeline is a timeline in which no alert says that something is absent, at any replica.
func (c *meshCluster) healTimeline() *timeline {
	c.t.Helper()
	c.t.Cleanup(func() {
		if c.t.Failed() {
			c.tellGaps()
		}
	})
	return c.timeline()
}

// nothingAbsent is a check that nobody was told that anything is absent.
func (c *meshCluster) nothingAbsent() error {
	for _, name := range neverAlerts {
		if found := c.hook.about(group{name, ""}, "firing"); len(found) > 0 {
			return fmt.Errorf("%s is notified: %s", name, senders(found))
		}
	}
	return nil
}

// nothingWasAbsent holds that no such alert was ever pending at any replica, whether anybody was told or not.
func (c *meshCluster) nothingWasAbsent() {
	t := c.t
	t.Helper()
	if err := c.nothingAbsent(); err != nil {
		t.Error(err)
	}
	for _, name := range c.options.names {
		d, err := c.replicas[name].local(`ALERTS{alertname=~"`+strings.Join(neverAlerts, "|")+`"}[1h]`, time.Now())
		if err != nil {
			t.Errorf("ask %s for its alerts: %v", name, err)
		}
		for id, s := range d {
			t.Errorf("%s had an alert that must never be: %s at %s", name, id, s.times())
		}
	}
}

// healSeries is what a replica has of one series: by time stamp in Unix milliseconds the value, or the histogram, as it
// stands in the answer.
type healSeries map[int64]string

// healData is by the labels, as JSON.
type healData map[string]healSeries

func (s healSeries) sorted() []int64 {
	at := make([]int64, 0, len(s))
	for t := range s {
		at = append(at, t)
	}
	slices.Sort(at)
	return at
}

func (s healSeries) times() string {
	var b strings.Builder
	for n, t := range s.sorted() {
		if n == 100 {
			fmt.Fprintf(&b, " and %d more", len(s)-n)
			break
		}
		fmt.Fprintf(&b, " %s=%.30s", time.UnixMilli(t).Format("05.000"), s[t])
	}
	return b.String()
}

// within is what lies in between.
func (s healSeries) within(from, to time.Time) healSeries {
	part := healSeries{}
	for t, v := range s {
		if from.UnixMilli() < t && t < to.UnixMilli() {
			part[t] = v
		}
	}
	return part
}

func (s healSeries) equal(other healSeries) bool {
	if len(s) != len(other) {
		return false
	}
	for t, v := range s {
		if w, ok := other[t]; !ok || v != w {
			return false
		}
	}
	return true
}

// matrix asks for a matrix: path is query or query_range. Time stamps that come twice are an error.
func (r *replica) matrix(path string, v url.Values) (data healData, warnings []string, err error) {
	return matrixOf(r.name, r.url, path, v)
}

// matrixOf is matrix for whatever speaks Prometheus's API.
func matrixOf(who, address, path string, v url.Values) (data healData, warnings []string, err error) {
	status, body, err := fetch(http.MethodPost, address+"/api/v1/"+path, formType, v.Encode())
	if err != nil {
		return nil, nil, err
	}
	var answer struct {
		Data struct {
			Result []struct {
				Metric     map[string]string    `json:"metric"`
				Values     []point              `json:"values"`
				Histograms [][2]json.RawMessage `json:"histograms"`
			} `json:"result"`
		} `json:"data"`
		Warnings []string `json:"warnings"`
		Error    string   `json:"error"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		return nil, nil, fmt.Errorf("%s of %s at %s: %d: %w: %.300s", path, v.Get("query"), who, status, err, body)
	}
	if status != http.StatusOK {
		return nil, answer.Warnings, fmt.Errorf("%s of %s at %s: %w", path, v.Get("query"), who, &refusal{status, answer.Error})
	}
	data = healData{}
	for _, s := range answer.Data.Result {
		id := series{Metric: s.Metric}.id()
		if data[id] != nil {
			return nil, nil, fmt.Errorf("%s answers twice with %s", who, id)
		}
		all := healSeries{}
		for _, p := range s.Values {
			all[int64(math.Round(p.Time*1000))] = p.Value
		}
		for _, h := range s.Histograms {
			at, err := strconv.ParseFloat(string(h[0]), 64)
			if err != nil {
				return nil, nil, err
			}
			all[int64(math.Round(at*1000))] = string(h[1])
		}
		if len(all) != len(s.Values)+len(s.Histograms) {
			return nil, nil, fmt.Errorf("%s answers with two samples of %s at the same time", who, id)
		}
		data[id] = all
	}
	return data, answer.Warnings, nil
}

// refusal is an answer that is not 200.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return fmt.Sprintf("%d: %s", r.status, r.text) }

// local is an instant query on the replica's own data alone.
func (r *replica) local(expr string, at time.Time) (healData, error) {
	d, warnings, err := r.matrix("query", url.Values{"query": {expr}, "time": {formatTime(at)}, "local": {"true"}})
	if err == nil && len(warnings) > 0 {
		err = fmt.Errorf("%s warns: %q", r.name, warnings)
	}
	return d, err
}

// localValue is the one value of an instant query on the replica's own data alone.
func (r *replica) localValue(expr string) (float64, error) {
	v := url.Values{"query": {expr}, "local": {"true"}}
	var d queryData
	if err := r.get("query?"+v.Encode(), &d); err != nil {
		return 0, err
	}
	if len(d.Result) != 1 {
		return 0, fmt.Errorf("%s has %d series, not one", expr, len(d.Result))
	}
	return strconv.ParseFloat(d.Result[0].Value.Value, 64)
}

// everything is all samples that the replica itself has in between.
func (r *replica) everything(from, to time.Time) healData {
	t := r.cluster.t
	t.Helper()
	return r.mustLocal(`{__name__!=""}`, from, to)
}

func (r *replica) mustLocal(selector string, from, to time.Time) healData {
	t := r.cluster.t
	t.Helper()
	d, err := r.local(fmt.Sprintf("%s[%dms]", selector, to.Sub(from).Milliseconds()), to)
	if err != nil {
		t.Fatalf("read what %s itself has: %v", r.name, err)
	}
	return d
}

// ticks is the counter, as the replica itself has it in between.
func (r *replica) ticks(from, to time.Time) healSeries {
	t := r.cluster.t
	t.Helper()
	d := r.mustLocal("e2e_ticks_total", from, to)
	if len(d) != 1 {
		t.Fatalf("%s has %d series of e2e_ticks_total", r.name, len(d))
	}
	for _, s := range d {
		return s
	}
	return nil
}

// twoHands tells whose data a series is that comes from one replica and from a moment on from another one. A gap is filled
// in parts, and they may come from different ones, with a guard in between.
func (s healSeries) twoHands(id string, all map[string]healData) (before, then string) {
	at := s.sorted()
	for a := range all {
		first, n := all[a][id], 0
		for _, t := range first.sorted() {
			if n == len(at) || t != at[n] || s[t] != first[t] {
				break
			}
			n++
		}
		if n == 0 || n == len(at) || at[n]-at[n-1] < 450 || at[n]-at[n-1] > 1600 {
			continue
		}
		change, end := time.UnixMilli(at[n]-1), time.UnixMilli(at[len(at)-1]).Add(time.Hour)
		for b := range all {
			if b != a && s.within(change, end).equal(all[b][id].within(change, end)) {
				return a, b
			}
		}
	}
	return "", ""
}

// ofMeter tells whether a series comes from the meter.
func ofMeter(id string) bool {
	return strings.Contains(id, `"job":"meter"`) && strings.Contains(id, `"__name__":"e2e_`)
}

// blockWindow is how long a block is: what lies in different blocks may come from different replicas.
const blockWindow = 2 * time.Hour

// likePeers holds that within an outage each series of the replica is, to the sample, what one of the others has. That
// of the meter alone leaves out what the replica has of its own: how its scrapes went, other targets, and its rules.
func (c *meshCluster) likePeers(name string, from, to time.Time, others []string, meterAlone bool) {
	t := c.t
	t.Helper()
	if edge := to.Truncate(blockWindow); edge.After(from) {
		c.likePeers(name, from, edge.Add(-atEdges), others, meterAlone)
		c.likePeers(name, edge.Add(atEdges), to, others, meterAlone)
		return
	}
	want := []string{`"e2e_ticks_total"`, `"e2e_level"`, `"e2e_latency_seconds"`}
	if !meterAlone {
		want = append(want, `"up"`, `"e2e:level:double"`, `"e2e:ticks:rate"`, `"ALERTS_FOR_STATE"`)
	}
	if !from.Before(to) {
		return
	}
	own, all, ids := c.replicas[name].everything(from, to), map[string]healData{}, map[string]bool{}
	for id := range own {
		ids[id] = true
	}
	for _, other := range others {
		all[other] = c.replicas[other].everything(from, to)
		for id := range all[other] {
			ids[id] = true
		}
	}
	wrong, samples, whose := 0, 0, map[string]int{}
	for id := range ids {
		if meterAlone && !ofMeter(id) {
			continue
		}
		samples += len(own[id])
		n := slices.IndexFunc(others, func(other string) bool { return own[id].equal(all[other][id]) })
		if n >= 0 {
			whose[others[n]]++
			continue
		}
		if from, to := own[id].twoHands(id, all); from != "" {
			whose[from+", then "+to]++
			continue
		}
		if wrong++; wrong <= 4 {
			t.Errorf("%s has %s inside of its outage as nobody has it:\n%s: %s", name, id, name, own[id].times())
			for _, other := range others {
				t.Logf("%s: %s", other, all[other][id].times())
			}
		}
	}
	seconds := int(to.Sub(from).Seconds())
	t.Logf("within %d s, %s has %d series with %d samples: %v like others, %d not", seconds, name, len(ids), samples, whose, wrong)
	if wrong > 4 {
		t.Errorf("of %d series, %d are as nobody has them", len(ids), wrong)
	}
	// It must be able to fail.
	for _, want := range want {
		found := 0
		for id, s := range own {
			if strings.Contains(id, want) {
				found = max(found, len(s))
			}
		}
		if found < seconds*4/5 {
			t.Errorf("within %d s, %s has %d samples of %s", seconds, name, found, want)
		}
	}
}

// sane holds what must be true of the counter at every replica, whatever happened in between: it grows, says the truth,
// is never sampled twice at once, and has no hole.
func (c *meshCluster) sane(name string, from, to time.Time, holes bool) {
	t := c.t
	t.Helper()
	ticks := c.replicas[name].ticks(from, to)
	at := ticks.sorted()
	if len(at) < 2 {
		t.Errorf("%s has %d samples of the counter in %s", name, len(at), to.Sub(from))
		return
	}
	const mostHole = 2500
	last, wrong := math.Inf(-1), 0
	complain := func(format string, args ...any) {
		if wrong++; wrong <= 10 {
			t.Errorf(name+": "+format, args...)
		}
	}
	for n, ts := range at {
		v, err := strconv.ParseFloat(ticks[ts], 64)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 && v <= last {
			complain("the counter goes from %v to %v at %s", last, v, time.UnixMilli(ts).Format("15:04:05.000"))
		}
		last = v
		// A scrape takes a while, and a frozen replica bears the time of its begin.
		truth := time.UnixMilli(ts).Sub(c.meter.born).Seconds()
		if v < truth-0.1 || v > truth+1.5 {
			complain("the counter is %v at %s, when it was %v", v, time.UnixMilli(ts).Format("15:04:05.000"), truth)
		}
		if n > 0 && !holes && ts-at[n-1] > mostHole {
			complain("a hole of %d ms after %s", ts-at[n-1], time.UnixMilli(at[n-1]).Format("15:04:05.000"))
		}
	}
	if !holes && (at[0]-from.UnixMilli() > mostHole || to.UnixMilli()-at[len(at)-1] > mostHole) {
		complain("from %s to %s there is no sample before %s and after %s", from.Format("15:04:05.000"), to.Format("15:04:05.000"),
			time.UnixMilli(at[0]).Format("15:04:05.000"), time.UnixMilli(at[len(at)-1]).Format("15:04:05.000"))
	}
}

// seams holds that where own samples meet others', they keep the distance that an order in time needs.
func (c *meshCluster) seams(name string, from, to time.Time, others ...string) {
	t := c.t
	t.Helper()
	own, theirs := c.replicas[name].ticks(from, to), healSeries{}
	least := int64(math.MaxInt64)
	for _, other := range others {
		s := c.replicas[other].ticks(from, to)
		at := s.sorted()
		for n, ts := range at {
			theirs[ts] = s[ts]
			if n > 0 {
				least = min(least, ts-at[n-1])
			}
		}
	}
	at, seams := own.sorted(), 0
	for n, ts := range at[min(1, len(at)):] {
		before := at[n]
		if (theirs[before] == own[before]) == (theirs[ts] == own[ts]) {
			continue
		}
		seams++
		if 100*(ts-before) < 45*least {
			t.Errorf("%s: samples at %s and %s are %d ms apart; those of others are at least %d ms apart", name,
				time.UnixMilli(before).Format("15:04:05.000"), time.UnixMilli(ts).Format("15:04:05.000"), ts-before, least)
		}
	}
	if seams == 0 {
		t.Errorf("%s has no seams between %s and %s: %s", name, from, to, own.times())
	}
}

// grows holds that functions of the counter over a window say the truth: it grows by one a second, and never falls.
func (c *meshCluster) grows(name string, from, to time.Time, most float64) {
	t := c.t
	t.Helper()
	window, r := to.Sub(from), c.replicas[name]
	for expr, check := range map[string]func(v float64) bool{
		"increase(e2e_ticks_total[%s])":                      func(v float64) bool { return math.Abs(v-window.Seconds()) <= most },
		"resets(e2e_ticks_total[%s])":                        func(v float64) bool { return v == 0 },
		"changes(e2e_ticks_total[%s])":                       func(v float64) bool { return math.Abs(v-window.Seconds()) <= 4+window.Seconds()/20 },
		"histogram_count(increase(e2e_latency_seconds[%s]))": func(v float64) bool { return math.Abs(v-40*window.Seconds()) <= 40*most },
	} {
		expr = fmt.Sprintf(expr, fmt.Sprintf("%dms", window.Milliseconds()))
		v := url.Values{"query": {expr}, "time": {formatTime(to)}, "local": {"true"}}
		var d queryData
		if err := r.get("query?"+v.Encode(), &d); err != nil {
			t.Errorf("%s at %s: %v", expr, name, err)
			continue
		}
		if len(d.Result) != 1 {
			t.Errorf("%s at %s has %d series", expr, name, len(d.Result))
			continue
		}
		got, err := strconv.ParseFloat(d.Result[0].Value.Value, 64)
		if err != nil || !check(got) {
			t.Errorf("%s at %s is %v in a window of %s: %v", expr, name, got, window, err)
		}
	}
}

// flowing is a check that a query, which may be answered by others, has the counter and what is recorded of it without a
// hole, from a time to shortly ago.
func (r *replica) flowing(since time.Time) error {
	to := time.Now().Add(-atEdges)
	from := to.Add(-time.Minute)
	if from.Before(since) {
		from = since
	}
	const longest = 2500 * time.Millisecond
	for _, name := range []string{"e2e_ticks_total", "e2e:level:double"} {
		d, warnings, err := r.matrix("query_range", url.Values{
			"query": {fmt.Sprintf("count_over_time(%s[%dms])", name, longest.Milliseconds())},
			"start": {formatTime(from)}, "end": {formatTime(to)}, "step": {"1"},
		})
		if err != nil {
			return err
		}
		want := int(to.Sub(from)/time.Second) + 1
		if len(d) != 1 {
			return &hole{fmt.Sprintf("%s has %d series of %s (warnings: %q)", r.name, len(d), name, warnings)}
		}
		for _, s := range d {
			if len(s) < want {
				return &hole{fmt.Sprintf("%s has a hole in %s: %d of %d steps from %s: %s (warnings: %q)", r.name, name, len(s), want,
					from.Format("15:04:05.000"), s.times(), warnings)}
			}
		}
	}
	return nil
}

// hole is an answer that lacks something.
type hole struct{ text string }

func (h *hole) Error() string { return h.text }

// flowingOnceUp is flowing for a replica that may not be there, or not ready: only an answer with a hole is wrong.
func (r *replica) flowingOnceUp(since time.Time) func() error {
	return func() error {
		err := r.flowing(since)
		var h *hole
		if errors.As(err, &h) {
			return h
		}
		return nil
	}
}

// keepsPending is a check that the alert that waits does so since the same time as before, or hardly later.
func (r *replica) keepsPending(since time.Time, later time.Duration) func() error {
	return func() error {
		state, at, err := r.alertState("Patient")
		if err != nil {
			return err
		}
		if state != "pending" || at.Sub(since).Abs() > later {
			return fmt.Errorf("Patient is %s at %s since %s, and was pending since %s", state, r.name, at, since)
		}
		return nil
	}
}

// wipe removes what the replica has stored.
func (r *replica) wipe() {
	r.cluster.t.Helper()
	if err := os.RemoveAll(filepath.Join(r.dir, "data")); err != nil {
		r.cluster.t.Fatal(err)
	}
}

// pending is since when the alert that waits does so.
func (r *replica) pending() time.Time {
	t := r.cluster.t
	t.Helper()
	var since time.Time
	eventually(t, 30*time.Second, "Patient is pending at "+r.name, func() error {
		state, at, err := r.alertState("Patient")
		if err == nil && state != "pending" {
			err = fmt.Errorf("it is %s", state)
		}
		since = at
		return err
	})
	return since
}

// after is a check that a time has come.
func after(at time.Time) error {
	if left := time.Until(at); left > 0 {
		return fmt.Errorf("%s are left", left)
	}
	return nil
}
