package query

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/common/route"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/httputil"
	v1 "github.com/prometheus/prometheus/web/api/v1"
)

const (
	apiPrefix = "/api/v1"

	// maxRequestTime bounds how long one request may hold a querier open: an
	// open one stops the head from being compacted, and a client that reads a
	// long answer drop by drop would hold it for days.
	maxRequestTime = 15 * time.Minute
	// closeTimeout is how long Close waits for requests that still run.
	closeTimeout = 10 * time.Second
)

// splitQueryable reads samples and chunks from one store. Upstream wants both
// as a single value.
type splitQueryable struct {
	storage.Queryable
	storage.ChunkQueryable
}

// newAPI wraps upstream's handlers: their behaviour is the compatibility we
// promise, the wrapping bounds what reaches them.
func (q *Query) newAPI() http.Handler {
	o := q.o
	var app storage.Appendable
	if o.EnableRemoteWrite || o.EnableOTLP {
		app = o.Store
	}
	targets, pools, managers := o.Targets, o.ScrapePools, o.Alertmanagers
	if targets == nil {
		targets = noTargets{}
	}
	if pools == nil {
		pools = noTargets{}
	}
	if managers == nil {
		managers = noAlertmanagers{}
	}
	version := o.Version
	api := v1.NewAPI(
		q.Engine(),
		splitQueryable{q.composed, o.Store},
		app,
		o.Store,
		func(context.Context) v1.ScrapePoolsRetriever { return pools },
		func(context.Context) v1.TargetRetriever { return targets },
		func(context.Context) v1.AlertmanagerRetriever { return managers },
		o.Config,
		o.Flags,
		v1.GlobalURLOptions{ListenAddress: o.ListenAddress, Host: o.ExternalURL.Host, Scheme: o.ExternalURL.Scheme},
		q.whenReady,
		o.Store,
		o.Dir,
		o.EnableAdmin,
		o.Logger,
		func(context.Context) v1.RulesRetriever { return q.rules() },
		o.RemoteRead.SampleLimit,
		o.RemoteRead.ConcurrencyLimit,
		o.RemoteRead.MaxBytesInFrame,
		false, // not an agent
		o.CORSOrigin,
		o.RuntimeInfo,
		&version,
		q.notes.Get,
		q.notes.Sub,
		o.Gatherer,
		o.Registerer,
		nil, // upstream's rendering of query statistics
		o.EnableRemoteWrite,
		o.RemoteWriteMessages,
		o.EnableOTLP,
		o.OTLPDeltaToCumulative,
		o.OTLPNativeDelta,
		o.EnableSTZeroIngestion,
		o.LookbackDelta,
		o.EnableTypeAndUnitLabels,
		o.AppendMetadata,
		notReadyIsUnavailable,
		o.Features,
	)
	router := route.New().WithInstrumentation(notePattern)
	api.Register(router)

	handler := http.StripPrefix(apiPrefix, router)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !q.requests.enter() {
			writeError(w, http.StatusServiceUnavailable, errUnavailable, "shutting down")
			return
		}
		defer q.requests.leave()

		rw := &errorWriter{ResponseWriter: w, path: r.URL.Path}
		defer rw.finish()
		ctx := r.Context()
		if r.URL.Path != apiPrefix+"/notifications/live" {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, maxRequestTime)
			defer cancel()
			defer limitWriting(w, maxRequestTime)()
		}
		var pattern string
		inner := r.WithContext(context.WithValue(ctx, patternKey{}, &pattern))
		defer func() { r.Pattern = apiPrefix + pattern }()
		release, ok := q.admit(rw, inner)
		if !ok {
			return
		}
		defer release()
		inner, err := withReach(inner)
		if err != nil {
			writeError(rw, http.StatusBadRequest, errBadData, err.Error())
			return
		}
		handler.ServeHTTP(rw, inner)
	})
}

// patternKey finds, in a request's context, where the route that serves the
// request is noted.
type patternKey struct{}

// notePattern tells the outside which route serves a request, so that it can be
// counted by route instead of by path. It also names the path for the query log.
func notePattern(name string, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if p, ok := r.Context().Value(patternKey{}).(*string); ok {
			*p = name
		}
		next(w, r.WithContext(httputil.ContextWithPath(r.Context(), apiPrefix+r.URL.Path)))
	}
}

// limitWriting bounds the time that the answer may take to leave. A writer that
// has no deadline is left as it is: nothing then waits on a network.
func limitWriting(w http.ResponseWriter, d time.Duration) (release func()) {
	rc := http.NewResponseController(w)
	if err := rc.SetWriteDeadline(time.Now().Add(d)); err != nil {
		return func() {}
	}
	// The connection may carry further requests. An error here means that it
	// is gone, which the server notices by itself.
	return func() { _ = rc.SetWriteDeadline(time.Time{}) }
}

// whenReady is upstream's gate, word by word as clients know it. What other replicas can answer passes before.
func (q *Query) whenReady(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if q.isReady() || q.o.Peers != nil && isComposed(r) && !isLocalOnly(r.Context()) && q.o.Peers.Available() {
			next(w, r)
			return
		}
		w.Header().Set("X-Prometheus-Stopping", "false")
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = fmt.Fprint(w, "Service Unavailable") // the client may be gone
	}
}

// isComposed tells whether a request, to a path without the prefix, is answered with other replicas' data too.
func isComposed(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		return false
	}
	switch r.URL.Path {
	case "/query", "/query_range", "/series", "/labels":
		return true
	}
	return strings.HasPrefix(r.URL.Path, "/label/") && strings.HasSuffix(r.URL.Path, "/values")
}

// withReach notes whose data answer a request: local=true leaves out other replicas'. What is no query to a person, such
// as remote read, is always answered from this replica's own.
func withReach(r *http.Request) (*http.Request, error) {
	stripped := *r
	stripped.URL = &url.URL{Path: strings.TrimPrefix(r.URL.Path, apiPrefix)}
	local := !isComposed(&stripped)
	if stripped.URL.Path == "/query_range" || stripped.URL.Path == "/query" {
		var err error
		if r, err = withResolution(r); err != nil {
			return nil, err
		}
	}
	if given := r.Form["local"]; !local && len(given) > 0 {
		switch given[0] {
		case "true", "1":
			local = true
		case "false", "0":
		default:
			return nil, fmt.Errorf("invalid parameter \"local\": it is %q, and must be true or false", given[0])
		}
	}
	if !local {
		return r, nil
	}
	return r.WithContext(localOnly(r.Context())), nil
}

// notReadyIsUnavailable is upstream's mapping but for a store that has not been
// opened yet: that passes, so it is not the server's error. Upstream's type for
// the error's number has no name outside its package.
func notReadyIsUnavailable[num any](_ num, err error) (code int, override bool) {
	return http.StatusServiceUnavailable, errors.Is(err, tsdb.ErrNotReady)
}

func (q *Query) rules() v1.RulesRetriever {
	if q.o.Rules != nil {
		if r := q.o.Rules(); r != nil {
			return r
		}
	}
	return noRules{}
}

// basicRuntimeInfo is what the process knows of itself; the assembly adds what
// only it knows, such as the retention.
func basicRuntimeInfo(start time.Time) func() (v1.RuntimeInfo, error) {
	return func() (v1.RuntimeInfo, error) {
		host, err := os.Hostname()
		if err != nil {
			return v1.RuntimeInfo{}, fmt.Errorf("read the host name: %w", err)
		}
		dir, err := os.Getwd()
		if err != nil {
			return v1.RuntimeInfo{}, fmt.Errorf("read the working directory: %w", err)
		}
		return v1.RuntimeInfo{
			StartTime:      start,
			CWD:            dir,
			Hostname:       host,
			ServerTime:     time.Now().UTC(),
			GoroutineCount: runtime.NumGoroutine(),
			GOMAXPROCS:     runtime.GOMAXPROCS(0),
			GOMEMLIMIT:     debug.SetMemoryLimit(-1),
			GOGC:           os.Getenv("GOGC"),
			GODEBUG:        os.Getenv("GODEBUG"),
		}, nil
	}
}

// inflight counts running requests, so that Close can wait for them.
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

// The stand-ins below answer for components that an assembly leaves out.

type noTargets struct{}

func (noTargets) ScrapePools() []string                       { return []string{} }
func (noTargets) TargetsActive() map[string][]*scrape.Target  { return nil }
func (noTargets) TargetsDropped() map[string][]*scrape.Target { return nil }
func (noTargets) TargetsDroppedCounts() map[string]int        { return nil }
func (noTargets) ScrapePoolConfig(pool string) (*promconfig.ScrapeConfig, error) {
	return nil, fmt.Errorf("scrape pool %q does not exist", pool)
}

type noAlertmanagers struct{}

func (noAlertmanagers) Alertmanagers() []*url.URL        { return nil }
func (noAlertmanagers) DroppedAlertmanagers() []*url.URL { return nil }

type noRules struct{}

func (noRules) RuleGroups() []*rules.Group           { return nil }
func (noRules) AlertingRules() []*rules.AlertingRule { return nil }
