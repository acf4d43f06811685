package web

import (
	"context"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics bear upstream's names, so that existing rules and dashboards work.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	size     *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer, ready func() bool) *metrics {
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "prometheus_ready",
		Help: "Whether start-up is complete and requests are served.",
	}, func() float64 {
		if ready() {
			return 1
		}
		return 0
	})
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "prometheus_http_requests_total",
			Help: "HTTP requests, by route and status code.",
		}, []string{"handler", "code"}),
		duration: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:                            "prometheus_http_request_duration_seconds",
			Help:                            "Time from the first byte of a request to the end of its handler, by route.",
			Buckets:                         []float64{.1, .2, .4, 1, 3, 8, 20, 60, 120},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"handler"}),
		size: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "prometheus_http_response_size_bytes",
			Help:    "Size of answers as sent, without headers, by route.",
			Buckets: prometheus.ExponentialBuckets(100, 10, 8),
		}, []string{"handler"}),
	}
}

// counted measures the requests of one route. Handlers that have routes of
// their own say which one served in the request's Pattern; route is used for
// those that do not.
func (w *Web) counted(route string, own bool, next http.Handler) http.Handler {
	if !own {
		w.metrics.requests.WithLabelValues(route, "200")
	}
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &recorder{ResponseWriter: rw, code: http.StatusOK}
		defer func() {
			name := route
			if own && r.Pattern != "" {
				name = r.Pattern
			}
			w.metrics.requests.WithLabelValues(name, strconv.Itoa(rec.code)).Inc()
			w.metrics.duration.WithLabelValues(name).Observe(time.Since(start).Seconds())
			w.metrics.size.WithLabelValues(name).Observe(float64(rec.size))
		}()
		next.ServeHTTP(rec, r)
	})
}

// recorder notes what was answered.
type recorder struct {
	http.ResponseWriter
	code  int
	size  int64
	wrote bool
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) WriteHeader(code int) {
	// 1xx comes before the real one.
	if !r.wrote && code >= 200 {
		r.code, r.wrote = code, true
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(p []byte) (int, error) {
	r.wrote = true
	n, err := r.ResponseWriter.Write(p)
	r.size += int64(n)
	return n, err
}

// Flush is asked for by type assertion by handlers that stream.
func (r *recorder) Flush() {
	r.wrote = true
	// An error means that the client is gone, which shows at the next write.
	_ = http.NewResponseController(r.ResponseWriter).Flush()
}

// outermost counts what runs and logs what breaks.
func (w *Web) outermost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !w.requests.enter() {
			// The listeners are closed; this one slipped in before.
			panic(http.ErrAbortHandler)
		}
		defer w.requests.leave()
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if v != http.ErrAbortHandler { //nolint:errorlint // a sentinel by its documentation
				w.o.Logger.Error("a handler broke while serving a request, closing its connection",
					"method", r.Method, "path", r.URL.Path, "client", r.RemoteAddr, "panic", v, "stack", string(debug.Stack()))
			}
			panic(http.ErrAbortHandler)
		}()
		next.ServeHTTP(rw, r)
	})
}

// stripped removes the prefix of our routes, and hands the pattern that the
// handler noted back to whoever called.
func stripped(prefix string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		in := new(http.Request)
		*in = *r
		in.URL = new(url.URL)
		*in.URL = *r.URL
		in.URL.Path = strings.TrimPrefix(r.URL.Path, prefix)
		in.URL.RawPath = strings.TrimPrefix(r.URL.RawPath, prefix)
		in.Pattern = ""
		defer func() { r.Pattern = in.Pattern }()
		next.ServeHTTP(rw, in)
	})
}

// endsWithUs ends a request that would otherwise go on until its client leaves.
func (w *Web) endsWithUs(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(w.live, cancel)()
		in := r.WithContext(ctx)
		defer func() { r.Pattern = in.Pattern }()
		next.ServeHTTP(rw, in)
	})
}

// inflight counts running requests, so that the shutdown can wait for them.
type inflight struct {
	mtx    sync.Mutex
	n      int
	closed bool
	idle   chan struct{} // closed by whoever sees closed and n == 0 first
}

func newInflight() *inflight { return &inflight{idle: make(chan struct{})} }

func (f *inflight) enter() bool {
	f.mtx.Lock()
	defer f.mtx.Unlock()
	if f.closed {
		return false
	}
	f.n++
	return true
}

func (f *inflight) leave() {
	f.mtx.Lock()
	defer f.mtx.Unlock()
	f.n--
	if f.closed && f.n == 0 {
		close(f.idle)
	}
}

// close lets nobody in any more and says whether all left within d.
func (f *inflight) close(d time.Duration) bool {
	f.mtx.Lock()
	if !f.closed {
		f.closed = true
		if f.n == 0 {
			close(f.idle)
		}
	}
	f.mtx.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-f.idle:
		return true
	case <-t.C:
		return false
	}
}
