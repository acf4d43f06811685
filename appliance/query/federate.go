package query

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/timestamp"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/util/gate"
	"github.com/prometheus/prometheus/util/httputil"
)

const (
	// maxSelectors is how many match[] one request may bring: each of them
	// holds the list of the series it selects.
	maxSelectors = 1000
	// federateBuffer is how much of the answer is collected before it is sent.
	federateBuffer = 32 << 10
)

// federation serves the latest samples in an exposition format. It keeps
// upstream's behaviour, but sends while it reads: upstream collects every
// sample and every family before the first byte leaves.
type federation struct {
	store    Store
	lookback time.Duration
	timeout  time.Duration
	external func() labels.Labels
	gate     *gate.Gate
	now      func() time.Time

	errors   prometheus.Counter
	warnings prometheus.Counter
	nameless prometheus.Counter
}

func (q *Query) newFederate() http.Handler {
	reg := promauto.With(q.o.Registerer)
	f := &federation{
		store:    q.o.Store,
		lookback: q.o.LookbackDelta,
		timeout:  q.o.Timeout,
		external: func() labels.Labels { return q.o.Config().GlobalConfig.ExternalLabels },
		gate:     gate.New(q.o.MaxConcurrency),
		now:      time.Now,
		errors: reg.NewCounter(prometheus.CounterOpts{
			Name: "prometheus_web_federation_errors_total",
			Help: "Total number of errors that occurred while sending federation responses.",
		}),
		warnings: reg.NewCounter(prometheus.CounterOpts{
			Name: "prometheus_web_federation_warnings_total",
			Help: "Total number of warnings that occurred while sending federation responses.",
		}),
		nameless: reg.NewCounter(prometheus.CounterOpts{
			Name: "tocsin_federation_nameless_series_total",
			Help: "Series left out of federation responses because they have no metric name.",
		}),
	}
	handler := q.whenReady(httputil.CompressionHandler{Handler: f}.ServeHTTP)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !q.requests.enter() {
			writeError(w, http.StatusServiceUnavailable, errUnavailable, "shutting down")
			return
		}
		defer q.requests.leave()
		// Here, because the compressing writer hides the connection.
		defer limitWriting(w, f.timeout)()
		handler(w, r)
	})
}

func (f *federation) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	selectors, err := parseSelectors(w, r)
	if err != nil {
		var ref *refusal
		if !errors.As(err, &ref) {
			ref = &refusal{code: http.StatusBadRequest, typ: errBadData, text: err.Error()}
		}
		f.fail(w, ref.code, ref.typ, ref.text)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), f.timeout)
	defer cancel()
	if err := f.gate.Start(ctx); err != nil {
		f.errors.Inc()
		f.fail(w, http.StatusServiceUnavailable, errUnavailable, "too many federation requests at the same time")
		return
	}
	defer f.gate.Done()

	now := f.now()
	window := span{timestamp.FromTime(now.Add(-f.lookback)), timestamp.FromTime(now)}
	querier, err := f.store.Local().Querier(window.min, window.max)
	if err != nil {
		f.errors.Inc()
		if errors.Is(err, tsdb.ErrNotReady) {
			f.fail(w, http.StatusServiceUnavailable, errUnavailable, err.Error())
			return
		}
		f.fail(w, http.StatusInternalServerError, errInternal, err.Error())
		return
	}
	// Nothing was written through it, so closing it loses nothing.
	defer func() { _ = querier.Close() }()

	format := expfmt.Negotiate(r.Header)
	out := &lateWriter{w: w, contentType: string(format)}
	buf := bufio.NewWriterSize(out, federateBuffer)
	families := newFamilyWriter(buf, format, f.external())
	if err = f.send(ctx, querier, window, selectors, families); err == nil {
		if err = families.flush(); err == nil {
			err = buf.Flush()
		}
	}
	f.nameless.Add(float64(families.nameless))
	if err == nil {
		out.start() // an empty answer has a type as well
		return
	}
	f.errors.Inc()
	if out.started {
		// The status is gone. Breaking the connection is the only way left to
		// say that what the client has is not everything.
		panic(http.ErrAbortHandler)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		f.fail(w, http.StatusServiceUnavailable, "timeout", fmt.Sprintf("reading the selected series took longer than %s", f.timeout))
		return
	}
	f.fail(w, http.StatusInternalServerError, errInternal, err.Error())
}

// fail answers with an error, before anything else was written.
func (f *federation) fail(w http.ResponseWriter, code int, typ, text string) {
	// The compressing writer has announced its encoding and keeps to it.
	encoding := w.Header().Get("Content-Encoding")
	writeError(keepEncoding{w, encoding}, code, typ, text)
}

// keepEncoding restores the header that describes how a writer below encodes.
type keepEncoding struct {
	http.ResponseWriter
	encoding string
}

func (k keepEncoding) WriteHeader(code int) {
	if k.encoding != "" {
		k.Header().Set("Content-Encoding", k.encoding)
	}
	k.ResponseWriter.WriteHeader(code)
}

// parseSelectors reads match[].
func parseSelectors(w http.ResponseWriter, r *http.Request) ([][]*labels.Matcher, error) {
	if err := parseForm(w, r); err != nil {
		return nil, err
	}
	given := r.Form["match[]"]
	if len(given) == 0 {
		return nil, refuse(http.StatusBadRequest, "no match[] parameter provided")
	}
	slices.Sort(given)
	given = slices.Compact(given)
	if len(given) > maxSelectors {
		return nil, refuse(http.StatusBadRequest, "%d match[] parameters given, the limit is %d", len(given), maxSelectors)
	}
	selectors, err := parser.ParseMetricSelectors(given)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "invalid parameter \"match[]\": %s", err)
	}
	return selectors, nil
}

// span is a closed interval in milliseconds.
type span struct{ min, max int64 }

// send writes the selected series, those of one name together, in the order of
// their names. The storage sorts by all labels: that is by name, unless a label
// sorts before the name itself (an upper-case one does). Only then the names are
// asked for one after the other.
func (f *federation) send(ctx context.Context, q storage.Querier, window span, selectors [][]*labels.Matcher, out *familyWriter) error {
	all, warnings, err := q.LabelNames(ctx, &storage.LabelHints{})
	f.warnings.Add(float64(len(warnings)))
	if err != nil {
		return fmt.Errorf("read label names: %w", err)
	}
	if !slices.ContainsFunc(all, func(n string) bool { return n < model.MetricNameLabel }) {
		return f.sendSeries(ctx, q, window, selectors, out)
	}
	names := map[string]struct{}{}
	for _, s := range selectors {
		values, warnings, err := q.LabelValues(ctx, model.MetricNameLabel, &storage.LabelHints{}, s...)
		f.warnings.Add(float64(len(warnings)))
		if err != nil {
			return fmt.Errorf("read metric names: %w", err)
		}
		for _, v := range values {
			names[v] = struct{}{}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		m, err := labels.NewMatcher(labels.MatchEqual, model.MetricNameLabel, name)
		if err != nil {
			return fmt.Errorf("select metric %s: %w", name, err)
		}
		narrowed := make([][]*labels.Matcher, len(selectors))
		for i, s := range selectors {
			narrowed[i] = append(slices.Clip(s), m)
		}
		if err := f.sendSeries(ctx, q, window, narrowed, out); err != nil {
			return err
		}
	}
	return nil
}

func (f *federation) sendSeries(ctx context.Context, q storage.Querier, window span, selectors [][]*labels.Matcher, out *familyWriter) error {
	hints := &storage.SelectHints{Start: window.min, End: window.max}
	sets := make([]storage.SeriesSet, 0, len(selectors))
	for _, s := range selectors {
		sets = append(sets, q.Select(ctx, true, hints, s...))
	}
	set := storage.NewMergeSeriesSet(sets, 0, storage.ChainedSeriesMerge)
	var it chunkenc.Iterator
	for n := 0; set.Next(); n++ {
		if n%128 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		series := set.At()
		it = series.Iterator(it)
		s, ok, err := latest(it, window)
		if err != nil {
			return fmt.Errorf("read series %s: %w", series.Labels(), err)
		}
		if !ok {
			continue
		}
		if err := out.write(series.Labels(), s); err != nil {
			return err
		}
	}
	f.warnings.Add(float64(len(set.Warnings())))
	if err := set.Err(); err != nil {
		return fmt.Errorf("select series: %w", err)
	}
	return nil
}

// sample is one value; h is nil for a float.
type sample struct {
	t int64
	f float64
	h *histogram.FloatHistogram
}

// latest is the newest sample inside the window. Formats know no stale marker:
// a series that ends with one has no sample.
func latest(it chunkenc.Iterator, window span) (s sample, ok bool, err error) {
	var spare *histogram.FloatHistogram // decoded into next
	for {
		switch it.Next() {
		case chunkenc.ValNone:
			if err := it.Err(); err != nil {
				return sample{}, false, err
			}
			stale := ok && (s.h == nil && value.IsStaleNaN(s.f) || s.h != nil && value.IsStaleNaN(s.h.Sum))
			return s, ok && !stale, nil
		case chunkenc.ValFloat:
			t, v := it.At()
			if t >= window.min && t <= window.max {
				s, ok = sample{t: t, f: v}, true
			}
		case chunkenc.ValHistogram, chunkenc.ValFloatHistogram:
			t, h := it.AtFloatHistogram(spare)
			spare = h
			if t >= window.min && t <= window.max {
				spare = s.h
				s, ok = sample{t: t, h: h}, true
			}
		}
	}
}

// lateWriter sets the content type with the first byte, so that an error before
// it can still be an error.
type lateWriter struct {
	w           http.ResponseWriter
	contentType string
	started     bool
}

func (l *lateWriter) start() {
	if !l.started {
		l.started = true
		l.w.Header().Set("Content-Type", l.contentType)
		l.w.WriteHeader(http.StatusOK)
	}
}

func (l *lateWriter) Write(p []byte) (int, error) {
	l.start()
	return l.w.Write(p)
}
