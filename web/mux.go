package web

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tocsin-io/tocsin/web/ui"
)

const (
	// maxAlertmanagerBytes bounds what may be sent to the Alertmanager API,
	// whose decoder does not. A Prometheus sends some hundred kilobytes.
	maxAlertmanagerBytes = 10 << 20
	// maxScrapes is how many scrapes of ourselves may run at once.
	maxScrapes = 20
)

var (
	get    = []string{http.MethodGet, http.MethodHead}
	change = []string{http.MethodPost, http.MethodPut}
)

// mainMux is everything below the route prefix.
func (w *Web) mainMux() http.Handler {
	mux := http.NewServeMux()
	// on serves one path of ours. The method is checked by us and not by the
	// pattern: beside a catch-all, the mux would answer 404 to a wrong one.
	on := func(path string, methods []string, h http.Handler) {
		name := strings.TrimSuffix(path, "{$}")
		mux.Handle(w.prefix+path, w.counted(name, false, only(methods, stripped(w.prefix, h))))
	}
	on("/assets/status.css", get, http.HandlerFunc(w.page.serveStyle))
	on("/assets/", get, http.HandlerFunc(w.serveAsset))
	for _, route := range ui.Routes() {
		if route != "/" {
			on(route, get, w.ui.Page(http.StatusOK))
		}
	}
	// Where the UI was not built in, the plain page is there, and what leads to pages leads to it.
	home, query, alerts := http.Handler(http.HandlerFunc(w.servePage)), "/", "/#alertmanager"
	if w.ui.Built() {
		// Browsers carry over what is after the #, and the page knows the addresses of Alertmanager's own UI.
		home, query, alerts = w.ui.Page(http.StatusOK), "/query", "/alerts"
	}
	on("/{$}", get, home)
	on("/graph", get, w.redirect(query))
	on("/classic/graph", get, w.redirect(query))
	on("/alertmanager", get, w.redirect(alerts))
	on("/alertmanager/{$}", get, w.redirect(alerts))
	on("/version", get, http.HandlerFunc(w.serveVersion))
	on("/metrics", get, w.scrape)
	on("/metrics/node", get, w.o.HostMetrics)
	on("/api/tocsin/v1/status", get, http.HandlerFunc(w.serveStatus))
	on("/api/tocsin/v1/cluster", get, w.o.Cluster)
	on("/api/tocsin/v1/mesh/events", get, w.o.MeshEvents)
	on("/api/tocsin/v1/notifications", get, w.o.Notifications)
	on("/api/tocsin/v1/gaps", get, w.o.Gaps)
	on("/api/tocsin/v1/bucket", get, w.o.Bucket)
	on("/api/tocsin/v1/config", get, w.o.Config)
	on("/api/tocsin/v1/drain", []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodDelete}, http.NewCrossOriginProtection().Handler(w.o.Drain))
	on("/federate", get, w.unlessStopping(w.o.Federate))
	on("/-/healthy", get, http.HandlerFunc(w.serveHealthy))
	on("/-/ready", get, http.HandlerFunc(w.serveReady))
	on("/-/reload", nil, w.lifecycle(w.serveReload))
	on("/-/quit", nil, w.lifecycle(w.serveQuit))
	on("/debug/pprof", get, w.redirect("/debug/pprof/"))
	on("/debug/pprof/", nil, http.HandlerFunc(pprof.Index))
	on("/debug/pprof/cmdline", nil, http.HandlerFunc(pprof.Cmdline))
	on("/debug/pprof/profile", nil, http.HandlerFunc(pprof.Profile))
	on("/debug/pprof/symbol", nil, http.HandlerFunc(pprof.Symbol))
	on("/debug/pprof/trace", nil, http.HandlerFunc(pprof.Trace))

	api := stripped(w.prefix, w.unlessStopping(w.o.API))
	mux.Handle(w.prefix+"/api/v1/", w.counted("/api/v1/*", true, api))
	mux.Handle(w.prefix+"/api/v1/notifications/live", w.counted("/api/v1/notifications/live", false, w.endsWithUs(stripped(w.prefix, w.o.API))))
	// Counted by the Alertmanager API itself.
	mux.Handle(w.prefix+"/alertmanager/", stripped(w.prefix+"/alertmanager", w.alertmanagerMux(nil)))
	mux.HandleFunc("/", w.missing)
	if w.prefix != "" {
		// As upstream: the bare root leads to the prefix, all else is 404.
		mux.Handle("/{$}", only(get, http.RedirectHandler(w.prefix+"/", http.StatusFound)))
		mux.Handle(w.prefix, only(get, http.RedirectHandler(w.prefix+"/", http.StatusMovedPermanently)))
	}
	return hardened(mux)
}

// alertmanagerMux is the Alertmanager as its own clients expect it, with paths
// below "/". Root answers at "/" itself; nil = 404.
func (w *Web) alertmanagerMux(root http.Handler) http.Handler {
	mux := http.NewServeMux()
	if root != nil {
		mux.Handle("/{$}", only(get, root))
		mux.Handle("/metrics", only(get, w.scrape))
	}
	mux.Handle("/-/healthy", only(get, http.HandlerFunc(w.serveHealthy)))
	mux.Handle("/-/ready", only(get, http.HandlerFunc(w.serveReady)))
	mux.Handle("/-/reload", w.lifecycle(w.serveReload))
	mux.Handle("/api/v2/", bounded(maxAlertmanagerBytes, w.o.Alertmanager))
	mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		alertmanagerError(rw, http.StatusNotFound, fmt.Sprintf("path %s was not found", r.URL.Path))
	})
	return hardened(mux)
}

// alertmanagerRoot tells a person where they are: the port has no page.
func (w *Web) alertmanagerRoot() http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		writeText(rw, http.StatusOK, "This is the Alertmanager API of Tocsin, below /api/v2/. The home page is at "+w.o.ExternalURL.String()+"\n")
	})
}

// selfMetrics serves our own metrics, and counts how often that is asked for.
func selfMetrics(o Options) http.Handler {
	return promhttp.InstrumentMetricHandler(o.Registerer, promhttp.HandlerFor(o.Gatherer, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(o.Logger.Handler(), slog.LevelWarn),
		Registry:            o.Registerer,
		EnableOpenMetrics:   true,
		MaxRequestsInFlight: maxScrapes,
	}))
}

// only answers 405 to other methods; nil allows every one.
func only(methods []string, next http.Handler) http.Handler {
	if methods == nil {
		return next
	}
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !slices.Contains(methods, r.Method) {
			rw.Header().Set("Allow", strings.Join(methods, ", "))
			jsonError(rw, http.StatusMethodNotAllowed, "bad_data", fmt.Sprintf("method %s is not allowed here, only %s", r.Method, strings.Join(methods, " and ")))
			return
		}
		next.ServeHTTP(rw, r)
	})
}

// bounded limits the body before a decoder sees it.
func bounded(limit int64, next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.ContentLength > limit {
			alertmanagerError(rw, http.StatusRequestEntityTooLarge, fmt.Sprintf("the request body is larger than %d bytes", limit))
			return
		}
		if r.Body != nil {
			r.Body = http.MaxBytesReader(rw, r.Body, limit)
		}
		next.ServeHTTP(rw, r)
	})
}

// redirect sends people to another path of ours, as the outside sees it, with their question: links in old
// notifications are /graph?g0.expr=...
func (w *Web) redirect(path string) http.Handler {
	path, fragment, _ := strings.Cut(path, "#")
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		u := url.URL{Path: w.outside + path, RawQuery: r.URL.RawQuery, Fragment: fragment}
		http.Redirect(rw, r, u.String(), http.StatusFound)
	})
}

// unlessStopping keeps new questions out while the parts that answer them stop.
func (w *Web) unlessStopping(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if w.stopping.Load() {
			rw.Header().Set("X-Prometheus-Stopping", "true")
			writeText(rw, http.StatusServiceUnavailable, "Service Unavailable")
			return
		}
		next.ServeHTTP(rw, r)
	})
}

func (w *Web) serveHealthy(rw http.ResponseWriter, _ *http.Request) {
	writeText(rw, http.StatusOK, "Tocsin is Healthy.\n")
}

func (w *Web) serveReady(rw http.ResponseWriter, _ *http.Request) {
	ready, sentence := w.ready()
	if ready {
		writeText(rw, http.StatusOK, "Tocsin is Ready.\n")
		return
	}
	rw.Header().Set("X-Prometheus-Stopping", fmt.Sprint(w.stopping.Load()))
	if sentence == "" {
		sentence = "starting"
	}
	writeText(rw, http.StatusServiceUnavailable, "Service Unavailable: "+sentence+"\n")
}

func (w *Web) serveVersion(rw http.ResponseWriter, _ *http.Request) {
	rw.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(rw).Encode(w.o.Version) // the client may be gone
}

// lifecycle guards the paths that change what runs: POST or PUT, and not from a
// page of another site in somebody's browser.
func (w *Web) lifecycle(next http.HandlerFunc) http.Handler {
	sameSite := http.NewCrossOriginProtection().Handler(next)
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !slices.Contains(change, r.Method) {
			rw.Header().Set("Allow", strings.Join(change, ", "))
			writeText(rw, http.StatusMethodNotAllowed, "Only POST or PUT requests allowed")
			return
		}
		sameSite.ServeHTTP(rw, r)
	})
}

const lifecycleOff = "Lifecycle API is not enabled."

func (w *Web) serveReload(rw http.ResponseWriter, r *http.Request) {
	if w.o.Reload == nil {
		writeText(rw, http.StatusForbidden, lifecycleOff)
		return
	}
	// A client that goes away must not stop a reload half-way.
	if err := w.o.Reload(context.WithoutCancel(r.Context())); err != nil {
		writeText(rw, http.StatusInternalServerError, "failed to reload config: "+err.Error()+"\n")
		return
	}
	rw.WriteHeader(http.StatusOK)
}

func (w *Web) serveQuit(rw http.ResponseWriter, _ *http.Request) {
	if w.o.Quit == nil {
		writeText(rw, http.StatusForbidden, lifecycleOff)
		return
	}
	writeText(rw, http.StatusOK, "Requesting termination... Goodbye!")
	w.o.Quit()
}

func (w *Web) serveAsset(rw http.ResponseWriter, r *http.Request) {
	if !w.ui.Asset(rw, r) {
		notFound(rw, r)
	}
}

// notPages are where programs ask, by the first part of the path: they get a 404 that they can read.
var notPages = []string{"-", "alertmanager", "api", "assets", "debug", "federate", "metrics", "version"}

// missing answers where there is nothing. A person who mistyped gets the page that says so, with its ways out.
func (w *Web) missing(rw http.ResponseWriter, r *http.Request) {
	below, ok := strings.CutPrefix(r.URL.Path, w.prefix+"/")
	first, _, _ := strings.Cut(below, "/")
	person := slices.Contains(get, r.Method) && strings.Contains(r.Header.Get("Accept"), "text/html")
	if !ok || !person || !w.ui.Built() || slices.Contains(notPages, first) {
		notFound(rw, r)
		return
	}
	rw.Header().Set("Vary", "Accept")
	w.ui.Page(http.StatusNotFound).ServeHTTP(rw, r)
}

// notFound is JSON: Grafana and others tell our kind by asking for paths that
// we do not have.
func notFound(rw http.ResponseWriter, r *http.Request) {
	jsonError(rw, http.StatusNotFound, "not_found", fmt.Sprintf("path %s does not exist", r.URL.Path))
}

// jsonError answers in the form of the Prometheus HTTP API.
func jsonError(rw http.ResponseWriter, code int, typ, text string) {
	writeJSON(rw, code, map[string]string{"status": "error", "errorType": typ, "error": text})
}

// alertmanagerError answers in the form of the Alertmanager API.
func alertmanagerError(rw http.ResponseWriter, code int, text string) {
	writeJSON(rw, code, map[string]any{"code": code, "message": text})
}

func writeJSON(rw http.ResponseWriter, code int, v any) {
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(code)
	_ = json.NewEncoder(rw).Encode(v) // the client may be gone
}

func writeText(rw http.ResponseWriter, code int, text string) {
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	rw.WriteHeader(code)
	_, _ = rw.Write([]byte(text)) // the client may be gone
}

// hardened keeps browsers from guessing types, and paths like /a//b from the
// mux, which would redirect to where a proxy that strips a prefix has nothing.
func hardened(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("X-Content-Type-Options", "nosniff")
		if !isClean(r.URL.Path) {
			notFound(rw, r)
			return
		}
		next.ServeHTTP(rw, r)
	})
}

func isClean(p string) bool {
	if p == "*" { // OPTIONS *
		return false
	}
	clean := path.Clean(p)
	return p == clean || clean != "/" && p == clean+"/"
}
