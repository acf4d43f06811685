package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxTargets = 20_000
	// targetsPerJob is how many targets expose the same program: one job of a real configuration.
	targetsPerJob = 25
	// ownSeries is how many series of a target bear a label value that no other target has; a tenth of them is replaced
	// by new series from time to time (churn).
	ownSeries = 50
	// steps is how many scrapes pass before a body comes round again; counters fall back then, as after a restart.
	steps = 128
	// churnEvery is in steps: once in so many scrapes a target replaces a tenth of its own series.
	churnEvery = 60
)

// load is the machines that get scraped: one listener for each target on an address of its own below 127.0.0.0/8, so
// that both sides keep as many connections as they would with as many machines.
type load struct {
	jobs      []*exposition
	listeners []net.Listener
	servers   []*http.Server
	serving   sync.WaitGroup
	interval  time.Duration
	epoch     time.Time
	requests  atomic.Int64
	plain     atomic.Int64 // requests that did not accept gzip
	packers   sync.Pool    // of *gzip.Writer: a new one costs more than what it compresses
}

// newLoad renders and compresses everything that the targets will say, so that serving it costs nearly nothing while
// the two sides are measured.
func newLoad(ctx context.Context, targets, series int, interval time.Duration) (*load, error) {
	l := &load{interval: interval, epoch: time.Now()}
	l.packers.New = func() any {
		zw, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is a valid one
		return zw
	}
	jobs := (targets + targetsPerJob - 1) / targetsPerJob
	l.jobs = make([]*exposition, jobs)
	rendered := make(chan error, jobs)
	slots := make(chan struct{}, 2)
	for i := range jobs {
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if ctx.Err() != nil {
				rendered <- context.Cause(ctx)
				return
			}
			e, err := newExposition(i, series-ownSeries)
			l.jobs[i] = e
			rendered <- err
		}()
	}
	var err error
	for range jobs {
		err = errors.Join(err, <-rendered)
	}
	if err != nil {
		return nil, err
	}
	for i := range targets {
		var lc net.ListenConfig
		ln, err := lc.Listen(ctx, "tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+i/62500, i/250%250, 1+i%250))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listen as target %d: %w", i, err), l.Close())
		}
		srv := &http.Server{Handler: l.target(i), ReadHeaderTimeout: time.Minute}
		l.listeners, l.servers = append(l.listeners, ln), append(l.servers, srv)
		l.serving.Go(func() { _ = srv.Serve(ln) }) // ends with ErrServerClosed, by Close
	}
	return l, nil
}

// Close ends all listeners and waits for their goroutines.
func (l *load) Close() error {
	var err error
	for _, s := range l.servers {
		err = errors.Join(err, s.Close())
	}
	l.serving.Wait()
	return err
}

// target answers as target i. Both sides see the same values at the same moment: they depend on the clock alone.
func (l *load) target(i int) http.HandlerFunc {
	job := l.jobs[i/targetsPerJob]
	return func(w http.ResponseWriter, r *http.Request) {
		l.requests.Add(1)
		step := int(time.Since(l.epoch)/l.interval) + i*7 // targets of a job are not in step with each other
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		own := ownPart(i, step)
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			w.Header().Set("Content-Encoding", "gzip")
			// Two gzip members one after the other are one gzip stream.
			var head bytes.Buffer
			zw := l.packers.Get().(*gzip.Writer)
			zw.Reset(&head)
			err := compress(zw, own)
			l.packers.Put(zw)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			body := job.bodies[step%steps]
			w.Header().Set("Content-Length", fmt.Sprint(head.Len()+len(body)))
			_, _ = w.Write(head.Bytes()) // a scraper that went away is its own affair
			_, _ = w.Write(body)
			return
		}
		l.plain.Add(1)
		_, _ = w.Write(own)
		if zr, err := gzip.NewReader(bytes.NewReader(job.bodies[step%steps])); err == nil {
			_, _ = io.Copy(w, zr)
		}
	}
}

// fileSD is the targets as a file_sd document of one group each, with the labels that a cloud's discovery would give.
func (l *load) fileSD() ([]byte, error) {
	type group struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	groups := make([]group, len(l.listeners))
	for i, ln := range l.listeners {
		job := i / targetsPerJob
		groups[i] = group{
			Targets: []string{ln.Addr().String()},
			Labels: map[string]string{
				"__meta_app": fmt.Sprintf("app-%02d", job),
				"env":        []string{"production", "production", "staging"}[job%3],
				"zone":       fmt.Sprintf("eu-central-1%c", 'a'+i%3),
				"pod":        podName(i),
			},
		}
	}
	text, err := json.Marshal(groups)
	if err != nil {
		return nil, fmt.Errorf("encode the targets: %w", err)
	}
	return text, nil
}

func podName(i int) string {
	return fmt.Sprintf("app-%02d-%08x-%05d", i/targetsPerJob, uint32(i/targetsPerJob)*2654435761, i)
}

// ownPart renders the series of target i that no other target has, like those of a container's or a disk's name.
func ownPart(i, step int) []byte {
	b := make([]byte, 0, ownSeries*160)
	b = append(b, "# HELP container_network_bytes_total Bytes that went through an interface.\n# TYPE container_network_bytes_total counter\n"...)
	for s := range ownSeries {
		generation := 0
		if s%10 == 0 {
			generation = (step + s) / churnEvery
		}
		direction := [...]string{"receive", "transmit"}[s%2]
		b = fmt.Appendf(b, "container_network_bytes_total{container=\"c-%06d-%02d-%03d\",device=\"eth%d\",direction=%q,namespace=\"team-%d\"} %d\n",
			i, s, generation, s%4, direction, i%11, (step+s*3)*(1500+s*97))
	}
	return b
}

func compress(zw *gzip.Writer, text []byte) error {
	if _, err := zw.Write(text); err != nil {
		return fmt.Errorf("compress a body: %w", err)
	}
	if err := zw.Close(); err != nil {
		return fmt.Errorf("compress a body: %w", err)
	}
	return nil
}
