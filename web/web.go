// Package web is the door: every HTTP request enters here.
//
// It owns the listeners, the limits on connections and on slow clients, the
// paths, the counting of requests, the browser UI (web/ui), and a plain home
// page for where that was not built. What enters is
// connections and the handlers of other components, as http.Handler; what leaves
// is answers. It shuts in order: nothing new is let in, what runs is given time
// to finish, then it is cut.
// It refuses to know what the handlers do, and imports no package of ours but
// the UI.
package web

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/util/netconnlimit"

	"github.com/tocsin-io/tocsin/web/ui"
)

const (
	defaultMaxConnections = 512
	defaultReadTimeout    = 5 * time.Minute
	// maxHeaderTime is how long a client may take over its request line and
	// headers, whatever it is allowed for the body.
	maxHeaderTime = 10 * time.Second
	// maxHeaderBytes leaves room for long queries in a URL; Go's default.
	maxHeaderBytes = 1 << 20
	// stallTime is how long a client may take to read the next few kilobytes.
	stallTime = time.Minute
	// shutdownGrace is how long running requests may go on once we stop, and
	// cutGrace how long their handlers may take to notice that they were cut.
	shutdownGrace = 10 * time.Second
	cutGrace      = 5 * time.Second
)

// Options says where to listen and whom to call.
type Options struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Gatherer   prometheus.Gatherer

	Listen             []string // --web.listen-address, host:port, port 0 allowed
	AlertmanagerListen string   // --alertmanager.listen-address, empty = off
	ExternalURL        *url.URL // how the outside reaches us; default: this host's name and the first bound port
	RoutePrefix        string   // default: the path of ExternalURL
	MaxConnections     int      // across all of Listen, and as many on AlertmanagerListen
	ReadTimeout        time.Duration
	ShutdownGrace      time.Duration // for running requests; default 10 s

	API           http.Handler // serves /api/v1/...
	Federate      http.Handler // serves /federate
	Alertmanager  http.Handler // serves /api/v2/...
	HostMetrics   http.Handler // serves /metrics/node; nil = 404
	Cluster       http.Handler // serves /api/tocsin/v1/cluster; nil = 404
	Notifications http.Handler // serves /api/tocsin/v1/notifications; nil = 404
	MeshEvents    http.Handler // serves /api/tocsin/v1/mesh/events; nil = 404
	Gaps          http.Handler // serves /api/tocsin/v1/gaps; nil = 404
	Bucket        http.Handler // serves /api/tocsin/v1/bucket; nil = 404
	Config        http.Handler // serves /api/tocsin/v1/config; nil = 404
	Drain         http.Handler // serves /api/tocsin/v1/drain; nil = 404

	Reload  func(context.Context) error // nil = off
	Quit    func()                      // nil = off
	Ready   func() (ready bool, sentence string)
	Status  func() Status
	Version Version // shown at /version
	UI      fs.FS   // the browser UI as its build wrote it; nil = what is built in
}

// Version has the fields of Prometheus's /version, in its order, so that one
// converts into the other.
type Version struct {
	Version   string `json:"version"`
	Revision  string `json:"revision"`
	Branch    string `json:"branch"`
	BuildUser string `json:"buildUser"`
	BuildDate string `json:"buildDate"`
	GoVersion string `json:"goVersion"`
}

// Web is the door, with its listeners bound.
type Web struct {
	o       Options
	prefix  string // of our routes, without a slash at the end: "" or "/sub"
	outside string // path below which the outside sees us, likewise

	listeners    []net.Listener
	alertmanager net.Listener // nil = off
	self         *selfListener
	metrics      *metrics
	page         *page
	ui           *ui.UI
	scrape       http.Handler // our own metrics
	requests     *inflight
	stopping     atomic.Bool
	live         context.Context // ends the requests that have no end of their own
	endLive      context.CancelFunc
	closeOnce    sync.Once
}

// New binds every listener, so that a port which is taken is known at once and
// port 0 has become a real one. Nothing is served before Run.
func New(o Options) (*Web, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o.setDefaults()
	prefix, err := routePrefix(o)
	if err != nil {
		return nil, err
	}
	p, err := newPage()
	if err != nil {
		return nil, err
	}
	w := &Web{o: o, prefix: prefix, page: p, requests: newInflight(), self: newSelfListener()}
	if err := w.bind(); err != nil {
		return nil, err
	}
	if w.o.ExternalURL == nil {
		if w.o.ExternalURL, err = hostURL(w.listeners[0].Addr().String()); err != nil {
			w.closeListeners()
			return nil, err
		}
	}
	w.outside = strings.TrimRight(w.o.ExternalURL.Path, "/")
	if w.ui, err = ui.New(ui.Options{Files: o.UI, Base: w.outside + "/", Settings: map[string]any{"version": o.Version}}); err != nil {
		w.closeListeners()
		return nil, err
	}
	w.metrics = newMetrics(o.Registerer, func() bool { ok, _ := w.ready(); return ok })
	w.scrape = selfMetrics(w.o)
	w.live, w.endLive = context.WithCancel(context.Background())
	return w, nil
}

func (o *Options) validate() error {
	switch {
	case o.Registerer == nil:
		return errors.New("web: Options.Registerer is missing")
	case o.Gatherer == nil:
		return errors.New("web: Options.Gatherer is missing")
	case len(o.Listen) == 0:
		return errors.New("--web.listen-address is empty: give at least one address such as 0.0.0.0:9090")
	case o.MaxConnections < 0:
		return fmt.Errorf("--web.max-connections is %d, it must not be negative", o.MaxConnections)
	case o.ReadTimeout < 0:
		return fmt.Errorf("--web.read-timeout is %s, it must not be negative", o.ReadTimeout)
	}
	return nil
}

func (o *Options) setDefaults() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = defaultMaxConnections
	}
	if o.ReadTimeout == 0 {
		o.ReadTimeout = defaultReadTimeout
	}
	if o.ShutdownGrace == 0 {
		o.ShutdownGrace = shutdownGrace
	}
	if o.Ready == nil {
		o.Ready = func() (bool, string) { return true, "" }
	}
	if o.Status == nil {
		o.Status = func() Status { return Status{} }
	}
	for _, h := range []*http.Handler{&o.API, &o.Federate, &o.Alertmanager, &o.HostMetrics, &o.Cluster, &o.MeshEvents, &o.Notifications, &o.Gaps, &o.Bucket, &o.Config, &o.Drain} {
		if *h == nil {
			*h = http.HandlerFunc(notFound)
		}
	}
}

// plainPath is what a prefix may hold; a brace or a blank would be read as
// something else by the router.
var plainPath = regexp.MustCompile(`^(/[A-Za-z0-9._~-]+)*$`)

// routePrefix is upstream's rule: the path of the external URL, unless given.
func routePrefix(o Options) (string, error) {
	flag, p := "--web.route-prefix", o.RoutePrefix
	if p == "" && o.ExternalURL != nil {
		flag, p = "--web.external-url", o.ExternalURL.Path
	}
	given := p
	p = strings.Trim(p, "/")
	if p == "" {
		return "", nil
	}
	p = "/" + p
	for seg := range strings.SplitSeq(p, "/") {
		if seg == "." || seg == ".." {
			return "", fmt.Errorf("%s has the path %q: a path must not contain %q", flag, given, seg)
		}
	}
	if !plainPath.MatchString(p) {
		return "", fmt.Errorf("%s has the path %q: only letters, digits and . _ ~ - / are allowed", flag, given)
	}
	return p, nil
}

func (w *Web) bind() (err error) {
	defer func() {
		if err != nil {
			w.closeListeners()
		}
	}()
	sem := netconnlimit.NewSharedSemaphore(w.o.MaxConnections)
	for _, address := range w.o.Listen {
		l, err := listen("--web.listen-address", address)
		if err != nil {
			return err
		}
		w.listeners = append(w.listeners, stallListener{netconnlimit.SharedLimitListener(l, sem), stallTime})
	}
	if w.o.AlertmanagerListen == "" {
		return nil
	}
	l, err := listen("--alertmanager.listen-address", w.o.AlertmanagerListen)
	if err != nil {
		return err
	}
	// A limit of its own: alerts must get in when people hold all of the others.
	own := netconnlimit.NewSharedSemaphore(w.o.MaxConnections)
	w.alertmanager = stallListener{netconnlimit.SharedLimitListener(l, own), stallTime}
	return nil
}

func listen(flag, address string) (net.Listener, error) {
	var lc net.ListenConfig
	// Binding does not wait, so there is nothing that a context could cut short.
	l, err := lc.Listen(context.Background(), "tcp", address)
	if err == nil {
		return l, nil
	}
	// The outer layers repeat the address in a form of their own.
	reason := err
	var op *net.OpError
	if errors.As(err, &op) {
		reason = op.Err
	}
	return nil, fmt.Errorf("cannot listen on %s=%s: %w", flag, address, reason)
}

// Addresses are the bound addresses: "web", one for each --web.listen-address
// in its order, and "alertmanager" if that is on.
func (w *Web) Addresses() map[string][]string {
	a := map[string][]string{}
	for _, l := range w.listeners {
		a["web"] = append(a["web"], l.Addr().String())
	}
	if w.alertmanager != nil {
		a["alertmanager"] = []string{w.alertmanager.Addr().String()}
	}
	return a
}

// RoutePrefix is where our routes begin, always with a slash at its start, as in
// --web.route-prefix.
func (w *Web) RoutePrefix() string { return w.prefix + "/" }

// ExternalURL is how the outside reaches us. It is read-only.
func (w *Web) ExternalURL() *url.URL { return w.o.ExternalURL }

// hostURL is upstream's default: the name of this host, because an address such as 0.0.0.0 leads nowhere.
func hostURL(bound string) (*url.URL, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("ask for this host's name: %w", err)
	}
	_, port, err := net.SplitHostPort(bound)
	if err != nil {
		return nil, fmt.Errorf("read the bound address %q: %w", bound, err)
	}
	return &url.URL{Scheme: "http", Host: net.JoinHostPort(host, port)}, nil
}

// Stop announces the shutdown: from now on we answer that we are not ready. Run
// does the same when its context ends; calling it before gives load balancers
// the time in which other components stop.
func (w *Web) Stop() {
	w.stopping.Store(true)
	w.endLive()
}

// ready adds what the door itself knows to the answer of Options.Ready.
func (w *Web) ready() (bool, string) {
	if w.stopping.Load() {
		return false, "shutting down"
	}
	return w.o.Ready()
}

// Run serves until ctx ends, then lets running requests finish within the
// grace, cuts the others, and returns when no handler runs any more.
func (w *Web) Run(ctx context.Context) error {
	defer func() { _ = w.Close() }() // Close has no error to report.
	logger := slog.NewLogLogger(w.o.Logger.Handler(), slog.LevelWarn)
	server := func(h http.Handler) *http.Server {
		return &http.Server{
			Handler:           h,
			ErrorLog:          logger,
			ReadTimeout:       w.o.ReadTimeout,
			ReadHeaderTimeout: min(w.o.ReadTimeout, maxHeaderTime),
			MaxHeaderBytes:    maxHeaderBytes,
		}
	}
	type bound struct {
		s *http.Server
		l net.Listener
	}
	main := server(w.outermost(w.mainMux()))
	serving := make([]bound, 0, len(w.listeners)+2)
	serving = append(serving, bound{main, w.self})
	for _, l := range w.listeners {
		serving = append(serving, bound{main, l})
	}
	servers := []*http.Server{main}
	if w.alertmanager != nil {
		s := server(w.outermost(w.alertmanagerMux(w.alertmanagerRoot())))
		servers = append(servers, s)
		serving = append(serving, bound{s, w.alertmanager})
	}

	ended := make(chan error, len(serving)) // one from each goroutine below
	for _, b := range serving {
		go func() {
			err := b.s.Serve(b.l)
			if errors.Is(err, http.ErrServerClosed) {
				err = nil
			} else {
				err = fmt.Errorf("serve on %s: %w", b.l.Addr(), err)
			}
			ended <- err
		}()
	}

	var first error
	left := len(serving)
	select {
	case <-ctx.Done():
	case first = <-ended:
		left--
	}
	w.Stop()
	w.shutdown(servers)
	for ; left > 0; left-- {
		if err := <-ended; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// shutdown returns when no handler runs any more, or when the ones that do had
// all the time there is.
func (w *Web) shutdown(servers []*http.Server) {
	// Not derived from the context that has just ended.
	grace, cancel := context.WithTimeout(context.Background(), w.o.ShutdownGrace)
	defer cancel()
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() {
			if err := s.Shutdown(grace); err != nil {
				w.o.Logger.Warn("requests still ran at the end of the shutdown grace, cutting them", "grace", w.o.ShutdownGrace, "err", err)
				// Listeners are closed by now; errors of closing connections
				// change nothing for us.
				_ = s.Close()
			}
		})
	}
	wg.Wait()
	if !w.requests.close(cutGrace) {
		w.o.Logger.Warn("a handler ignored that its request was cut, leaving it behind", "waited", cutGrace)
	}
}

// Close gives the listeners back. Run does it as well; it is needed only where
// Run is never called.
func (w *Web) Close() error {
	w.closeOnce.Do(func() {
		w.endLive()
		w.closeListeners()
	})
	return nil
}

func (w *Web) closeListeners() {
	for _, l := range slices.Concat(w.listeners, []net.Listener{w.alertmanager, w.self}) {
		if l != nil {
			_ = l.Close() // closed already when the server has run
		}
	}
}
