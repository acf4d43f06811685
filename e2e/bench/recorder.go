package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// benchAlert is the alert of the notify scenario, and its label n what a gauge, its alert and its group are known by.
const benchAlert = "BenchLevel"

// maxNotification bounds what the recorder reads of one notification: with a group for each alert it is a kilobyte.
const maxNotification = 1 << 20

// delivery is one alert in a notification that arrived.
type delivery struct {
	at       time.Time
	n        int
	firing   bool
	startsAt time.Time
}

// recorder is the receiver of the notify scenario: a webhook that keeps what arrives and when.
type recorder struct {
	url    string
	server *http.Server
	ended  chan struct{}

	mutex      sync.Mutex
	deliveries []delivery
	others     int // alerts that are none of ours, and bodies that are no notification
	held       int // whose next firing notification is not answered; -1 is none
	caught     chan string
}

func newRecorder() (*recorder, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for notifications: %w", err)
	}
	r := &recorder{url: "http://" + ln.Addr().String() + "/", ended: make(chan struct{}), held: -1, caught: make(chan string, 1)}
	r.server = &http.Server{ReadHeaderTimeout: time.Minute, IdleTimeout: time.Hour, Handler: r}
	go func() {
		_ = r.server.Serve(ln) // ends with ErrServerClosed, by Close
		close(r.ended)
	}()
	return r, nil
}

func (r *recorder) Close() error {
	err := r.server.Close()
	<-r.ended
	return err
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	at := time.Now()
	seen, others, err := parseNotification(io.LimitReader(req.Body, maxNotification))
	r.mutex.Lock()
	if err != nil {
		r.others++
		r.mutex.Unlock()
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.others += others
	hold := r.held >= 0 && slices.ContainsFunc(seen, func(d delivery) bool { return d.firing && d.n == r.held })
	if hold {
		r.held = -1
	} else {
		for _, d := range seen {
			d.at = at
			r.deliveries = append(r.deliveries, d)
		}
	}
	r.mutex.Unlock()
	if hold {
		r.caught <- req.RemoteAddr
		<-req.Context().Done() // until the sender is gone; nothing was delivered
	}
}

// hold lets the next firing notification of alert n wait without an answer, until its sender goes away. What is
// received is the address that it came from.
func (r *recorder) hold(n int) <-chan string {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.held = n
	return r.caught
}

// take returns what has arrived since the last time.
func (r *recorder) take() []delivery {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	d := r.deliveries
	r.deliveries = nil
	return d
}

// arrived counts the alerts of which at least one firing, or resolved, notification has arrived.
func (r *recorder) arrived(firing bool) int {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	seen := map[int]bool{}
	for _, d := range r.deliveries {
		if d.firing == firing {
			seen[d.n] = true
		}
	}
	return len(seen)
}

// parseNotification reads the body of a webhook and returns the bench's alerts in it, and how many others it holds.
func parseNotification(body io.Reader) (seen []delivery, others int, err error) {
	var msg struct {
		Alerts []struct {
			Status   string            `json:"status"`
			Labels   map[string]string `json:"labels"`
			StartsAt time.Time         `json:"startsAt"`
		} `json:"alerts"`
	}
	if err := json.NewDecoder(body).Decode(&msg); err != nil {
		return nil, 0, fmt.Errorf("read a notification: %w", err)
	}
	if len(msg.Alerts) == 0 {
		return nil, 0, errors.New("a notification without alerts")
	}
	for _, a := range msg.Alerts {
		if a.Labels["alertname"] != benchAlert {
			others++
			continue
		}
		n, err := strconv.Atoi(a.Labels["n"])
		if err != nil || n < 0 {
			return nil, 0, fmt.Errorf("a notification of an alert with the label n=%q", a.Labels["n"])
		}
		if a.Status != "firing" && a.Status != "resolved" {
			return nil, 0, fmt.Errorf("a notification with the status %q", a.Status)
		}
		seen = append(seen, delivery{n: n, firing: a.Status == "firing", startsAt: a.StartsAt})
	}
	return seen, others, nil
}

// tally is what became of a set of alerts, each of which is to be notified once.
type tally struct {
	missed     int
	duplicates int
	stray      int             // notifications of the other status, or of an alert that is not in the set
	latency    []time.Duration // of the first notification of each, from its first evaluation
}

func (t tally) plus(u tally) tally {
	return tally{t.missed + u.missed, t.duplicates + u.duplicates, t.stray + u.stray, slices.Concat(t.latency, u.latency)}
}

// count tells what became of the alerts 0 to alerts-1, each of which should have been notified once as firing, or as
// resolved.
func count(deliveries []delivery, alerts int, firing bool) tally {
	var t tally
	seen := make([]bool, alerts)
	for _, d := range deliveries {
		switch {
		case d.n >= alerts || d.firing != firing:
			t.stray++
		case seen[d.n]:
			t.duplicates++
		default:
			seen[d.n] = true
			t.latency = append(t.latency, d.at.Sub(d.startsAt))
		}
	}
	for _, s := range seen {
		if !s {
			t.missed++
		}
	}
	return t
}

// quantile is the smallest value that at least the fraction q of all values does not exceed, in seconds.
func quantile(d []time.Duration, q float64) float64 {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	i := int(math.Ceil(q*float64(len(d)))) - 1
	return d[min(max(i, 0), len(d)-1)].Seconds()
}

// levels is the exporter of the notify scenario: gauges that are 0, and 1 from a time that is set on.
type levels struct {
	address string
	server  *http.Server
	ended   chan struct{}

	mutex sync.Mutex
	up    []time.Time // since when each is 1; zero is never
}

func newLevels(n int) (*levels, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen as the exporter: %w", err)
	}
	l := &levels{address: ln.Addr().String(), ended: make(chan struct{}), up: make([]time.Time, n)}
	l.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: l}
	go func() {
		_ = l.server.Serve(ln) // ends with ErrServerClosed, by Close
		close(l.ended)
	}()
	return l, nil
}

func (l *levels) Close() error {
	err := l.server.Close()
	<-l.ended
	return err
}

// raise lets all gauges be 1 from now on, one after the other over the given time.
func (l *levels) raise(over time.Duration) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	begin, step := time.Now(), over/time.Duration(len(l.up))
	for n := range l.up {
		l.up[n] = begin.Add(time.Duration(n) * step)
	}
}

// lower lets all gauges be 0 from now on.
func (l *levels) lower() {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	clear(l.up)
}

// raiseOne lets one gauge be 1 from now on.
func (l *levels) raiseOne(n int) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.up[n] = time.Now()
}

func (l *levels) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(l.text(time.Now())) // a scraper that went away is its own affair
}

func (l *levels) text(now time.Time) []byte {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	b := []byte("# HELP bench_level What the alerts of the benchmark look at.\n# TYPE bench_level gauge\n")
	for n, up := range l.up {
		level := byte('0')
		if !up.IsZero() && !now.Before(up) {
			level = '1'
		}
		b = append(b, `bench_level{n="`...)
		b = strconv.AppendInt(b, int64(n), 10)
		b = append(b, `"} `...)
		b = append(b, level, '\n')
	}
	return b
}
