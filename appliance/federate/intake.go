package federate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
)

const maxNamedMetrics = 5

// sample is one value of an answer, allowed and relabelled.
type sample struct {
	series   *series
	t        int64
	v        float64
	h        *histogram.Histogram
	fh       *histogram.FloatHistogram
	source   uint64 // hash of the labels as they came
	part     int    // the request that brought it
	collided bool
	stored   bool
}

// answer is what one pull yields.
type answer struct {
	samples []sample
	fresh   *catalogue // series of samples that the catalogue did not know

	scraped       int // samples sent, listed or not
	dropped       int // of these, series that no item lists
	droppedLabels int // labels that are not listed, on listed series
	forged        int // series that carried an origin label
	collisions    int // series dropped because another has the same labels
	collided      map[string]struct{}
}

// collisionError is the state of a pull that is stored but for its collisions.
func (a *answer) collisionError() error {
	if a.collisions == 0 {
		return nil
	}
	names := make([]string, 0, len(a.collided))
	for n := range a.collided {
		names = append(names, n)
	}
	sort.Strings(names)
	more := ""
	if len(names) > maxNamedMetrics {
		more = fmt.Sprintf(" and %d more metrics", len(names)-maxNamedMetrics)
		names = names[:maxNamedMetrics]
	}
	for i, n := range names {
		names[i] = quoteName(n)
	}
	return faultf(resultPartial,
		"%d series of %s%s are not stored: with the labels that are kept they cannot be told from one another; list more labels, or aggregate at the upstream",
		a.collisions, strings.Join(names, ", "), more)
}

// intake turns the bytes of one pull into an answer: parse, filter, detect
// collisions. It stores nothing, and touches nothing outside but the marks that
// it leaves on the series of known.
type intake struct {
	filter *filter
	known  *catalogue
	pull   uint64 // number of this pull, never used before
	now    int64  // time of samples that bring none, ms
	part   int    // number of the request, set by the caller

	answer answer

	builder     labels.ScratchBuilder
	orig, final labels.Labels
	buf         []byte
	bucketBytes int64
}

func newIntake(f *filter, known *catalogue, pull uint64, now int64) *intake {
	return &intake{
		filter:  f,
		known:   known,
		pull:    pull,
		now:     now,
		builder: labels.NewScratchBuilder(16),
		answer:  answer{fresh: known.sibling(), collided: map[string]struct{}{}},
	}
}

// read takes in the answer to one request.
func (in *intake) read(r io.Reader, f format) error {
	return f.frame(r, func(piece []byte) error { return in.parse(piece, f.contentType) })
}

// finish returns what may be stored: members of collisions are gone.
func (in *intake) finish() *answer {
	a := &in.answer
	kept := a.samples[:0]
	for _, s := range a.samples {
		if s.collided {
			s.series.pull = 0 // not met: what was stored of it before goes stale
			continue
		}
		kept = append(kept, s)
	}
	clear(a.samples[len(kept):])
	a.samples = kept
	return a
}

// parse takes in one piece. A parser that panics on what it is given costs the
// pull, not the process.
func (in *intake) parse(piece []byte, contentType string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = in.malformed()
		}
	}()
	// The text lexers take a zero byte for the end and would silently ignore
	// the rest.
	protobuf := contentType == protobufFormat.contentType
	if !protobuf && bytes.IndexByte(piece, 0) >= 0 {
		return in.malformed()
	}
	opts := textparse.ParserOptions{OpenMetricsSkipSTSeries: true}
	if protobuf {
		// Prometheus sends a native histogram with custom buckets as a classic
		// one under its own name; classic series as such come without a type.
		// The list says which of the two is meant.
		nhcb := in.filter.mayName(protobufName(piece))
		opts.ConvertClassicHistogramsToNHCB = nhcb
		opts.KeepClassicOnClassicAndNativeHistograms = !nhcb
	}
	p, err := textparse.New(piece, contentType, nil, opts)
	if err != nil || p == nil {
		return in.malformed()
	}
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			// The parser's text quotes the input, which may be what must not
			// be shown.
			return in.malformed()
		}
		s := sample{t: in.now}
		var ts *int64
		switch entry {
		case textparse.EntrySeries:
			_, ts, s.v = p.Series()
		case textparse.EntryHistogram:
			_, ts, s.h, s.fh = p.Histogram()
		default:
			continue
		}
		if ts != nil {
			s.t = *ts
		}
		if err := in.add(p, s); err != nil {
			return err
		}
	}
}

func (in *intake) malformed() error {
	return faultf(resultMalformed, "answer is not valid exposition format after %d samples", in.answer.scraped)
}

func (in *intake) add(p textparse.Parser, s sample) error {
	a := &in.answer
	a.scraped++
	if a.scraped > in.filter.samples {
		return faultf(resultLimit, "answer has more than %d samples (sample_limit), listed or not", in.filter.samples)
	}
	p.Labels(&in.orig)
	it := in.filter.match(in.orig)
	if it == nil {
		a.dropped++
		return nil
	}
	metric := in.orig.Get(model.MetricNameLabel)
	if _, twice := in.orig.HasDuplicateLabelNames(); twice {
		return faultf(resultMalformed, "answer has a series of %s with the same label twice", quoteName(metric))
	}
	dropped, forged := in.filter.relabel(it, in.orig, &in.builder)
	a.droppedLabels += dropped
	if forged {
		a.forged++
	}
	in.builder.Overwrite(&in.final)
	if err := in.filter.checkLimits(in.final); err != nil {
		return err
	}
	if metric == "" || !in.final.IsValid(model.UTF8Validation) {
		return faultf(resultMalformed, "answer has a series of %s with a name that is not valid", quoteName(metric))
	}
	if err := in.checkHistogram(metric, s); err != nil {
		return err
	}
	in.buf = in.orig.Bytes(in.buf)
	s.source = in.known.hashBytes(in.buf)
	s.part = in.part
	in.place(metric, s)
	return nil
}

// place puts s where its labels belong, or finds out that the place is taken.
func (in *intake) place(metric string, s sample) {
	a := &in.answer
	collide := func(n int) {
		a.collisions += n
		if _, ok := a.collided[metric]; !ok {
			a.collided[strings.Clone(metric)] = struct{}{}
		}
	}
	hash := in.known.hash(in.final)
	to := in.known.find(hash, in.final)
	if to == nil {
		to = a.fresh.find(hash, in.final)
	}
	if to == nil {
		to = &series{lset: cloneLabels(in.final), hash: hash}
		a.fresh.add(to)
	}
	switch {
	case to.ours:
		collide(1)
	case to.pull != in.pull:
		to.pull, to.at = in.pull, len(a.samples)
		s.series = to
		a.samples = append(a.samples, s)
	default:
		first := &a.samples[to.at]
		if first.source == s.source && first.part != s.part {
			return // selected by two requests of this pull, which is our doing
		}
		if !first.collided {
			first.collided = true
			collide(1)
		}
		collide(1)
	}
}

// checkHistogram refuses what the TSDB would refuse, and bounds the memory that
// buckets take: as integers on the wire they are an eighth of their size here.
func (in *intake) checkHistogram(metric string, s sample) error {
	var err error
	switch {
	case s.h != nil:
		in.bucketBytes += 8 * int64(len(s.h.PositiveBuckets)+len(s.h.NegativeBuckets)+len(s.h.PositiveSpans)+len(s.h.NegativeSpans)+len(s.h.CustomValues))
		err = s.h.Validate()
	case s.fh != nil:
		in.bucketBytes += 8 * int64(len(s.fh.PositiveBuckets)+len(s.fh.NegativeBuckets)+len(s.fh.PositiveSpans)+len(s.fh.NegativeSpans)+len(s.fh.CustomValues))
		err = s.fh.Validate()
	}
	if err != nil {
		return faultf(resultMalformed, "answer has an invalid native histogram of %s", quoteName(metric))
	}
	if in.bucketBytes > in.filter.bodyBytes {
		return faultf(resultBodySize, "answer has native histograms of more than %d bytes in memory (body_size_limit)", in.filter.bodyBytes)
	}
	return nil
}
