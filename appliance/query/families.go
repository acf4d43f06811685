package query

import (
	"fmt"
	"io"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/protobuf/proto"
)

// maxFamilyPiece is how many series of one family are encoded at a time. A
// family may have millions.
const maxFamilyPiece = 500

// familyWriter encodes samples that arrive sorted by metric name.
type familyWriter struct {
	enc    expfmt.Encoder
	head   *headless
	native bool // the format can carry native histograms
	text   bool // the format starts a family with a comment line
	// external are the labels that every series gets unless it has them.
	external []labels.Label

	family   *dto.MetricFamily // being collected; nil before the first
	sent     bool              // a piece of family has been written
	nameless int
}

func newFamilyWriter(w io.Writer, format expfmt.Format, external labels.Labels) *familyWriter {
	f := &familyWriter{head: &headless{w: w}}
	f.enc = expfmt.NewEncoder(f.head, format)
	switch format.FormatType() {
	case expfmt.TypeProtoDelim, expfmt.TypeProtoText, expfmt.TypeProtoCompact:
		f.native = true
	default:
		f.text = true
	}
	// Without an instance of its own a series must not get the instance of the
	// server that is scraped: an empty one says so.
	instance := false
	external.Range(func(l labels.Label) {
		if l.Name == model.InstanceLabel {
			instance = true
		}
		f.external = append(f.external, l)
	})
	if !instance {
		f.external = append(f.external, labels.Label{Name: model.InstanceLabel})
	}
	return f
}

func (f *familyWriter) write(lset labels.Labels, s sample) error {
	if s.h != nil && !f.native && !s.h.UsesCustomBuckets() {
		return nil // the format cannot say it; one with custom buckets is a classic histogram
	}
	name := lset.Get(model.MetricNameLabel)
	if name == "" {
		f.nameless++
		return nil
	}
	// One name may carry several types over time. Strictly that makes several
	// families of one name, which Prometheus reads without complaint.
	typ := dto.MetricType_UNTYPED
	if s.h != nil {
		typ = dto.MetricType_HISTOGRAM
		if s.h.CounterResetHint == histogram.GaugeType {
			typ = dto.MetricType_GAUGE_HISTOGRAM
		}
	}
	if f.family == nil || f.family.GetName() != name || f.family.GetType() != typ {
		if err := f.flush(); err != nil {
			return err
		}
		f.family = &dto.MetricFamily{Name: proto.String(name), Type: typ.Enum()}
		f.sent = false
	}
	m := &dto.Metric{Label: f.pairs(lset), TimestampMs: proto.Int64(s.t)}
	switch {
	case s.h == nil:
		m.Untyped = &dto.Untyped{Value: proto.Float64(s.f)}
	case s.h.UsesCustomBuckets():
		m.Histogram = classicHistogram(s.h)
	default:
		m.Histogram = nativeHistogram(s.h)
	}
	f.family.Metric = append(f.family.Metric, m)
	if len(f.family.Metric) >= maxFamilyPiece {
		return f.flush()
	}
	return nil
}

// pairs are the labels of a series and the external labels it lacks.
func (f *familyWriter) pairs(lset labels.Labels) []*dto.LabelPair {
	pairs := make([]*dto.LabelPair, 0, lset.Len()+len(f.external))
	lset.Range(func(l labels.Label) {
		// An empty value is the same as no label.
		if l.Name != model.MetricNameLabel && l.Value != "" {
			pairs = append(pairs, &dto.LabelPair{Name: proto.String(l.Name), Value: proto.String(l.Value)})
		}
	})
	for _, l := range f.external {
		if lset.Get(l.Name) == "" {
			pairs = append(pairs, &dto.LabelPair{Name: proto.String(l.Name), Value: proto.String(l.Value)})
		}
	}
	return pairs
}

// flush writes what was collected of the current family, which may go on.
func (f *familyWriter) flush() error {
	if f.family == nil || len(f.family.Metric) == 0 {
		return nil
	}
	// The text format names the type once per family.
	f.head.cut = f.text && f.sent
	if err := f.enc.Encode(f.family); err != nil {
		return fmt.Errorf("encode metric %s: %w", f.family.GetName(), err)
	}
	f.sent = true
	clear(f.family.Metric)
	f.family.Metric = f.family.Metric[:0]
	return nil
}

// headless drops the comment line that the text format starts a family with,
// when cut is set.
type headless struct {
	w   io.Writer
	cut bool // what comes next may be the comment
	in  bool // inside the comment
}

func (h *headless) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && (h.cut || h.in) {
		if h.cut {
			h.cut, h.in = false, p[0] == '#'
			continue
		}
		c := p[0]
		p = p[1:]
		if c == '\n' {
			h.in = false
		}
	}
	if len(p) == 0 {
		return n, nil
	}
	if _, err := h.w.Write(p); err != nil {
		return 0, err
	}
	return n, nil
}

// nativeHistogram is for the exponential schemas.
func nativeHistogram(h *histogram.FloatHistogram) *dto.Histogram {
	d := &dto.Histogram{
		SampleCountFloat: proto.Float64(h.Count),
		SampleSum:        proto.Float64(h.Sum),
		Schema:           proto.Int32(h.Schema),
		ZeroThreshold:    proto.Float64(h.ZeroThreshold),
		ZeroCountFloat:   proto.Float64(h.ZeroCount),
		PositiveSpan:     spans(h.PositiveSpans),
		PositiveCount:    h.PositiveBuckets,
		NegativeSpan:     spans(h.NegativeSpans),
		NegativeCount:    h.NegativeBuckets,
	}
	if len(d.PositiveSpan) == 0 && len(d.NegativeSpan) == 0 && h.ZeroThreshold == 0 && h.ZeroCount == 0 {
		// Only a span tells an empty native histogram from a classic one.
		d.PositiveSpan = []*dto.BucketSpan{{Offset: proto.Int32(0), Length: proto.Uint32(0)}}
	}
	return d
}

func spans(in []histogram.Span) []*dto.BucketSpan {
	out := make([]*dto.BucketSpan, 0, len(in))
	for _, s := range in {
		out = append(out, &dto.BucketSpan{Offset: proto.Int32(s.Offset), Length: proto.Uint32(s.Length)})
	}
	return out
}

// classicHistogram is for custom buckets, which come from a classic histogram.
// The bucket up to +Inf is left to the encoder.
func classicHistogram(h *histogram.FloatHistogram) *dto.Histogram {
	d := &dto.Histogram{
		SampleCountFloat: proto.Float64(h.Count),
		SampleSum:        proto.Float64(h.Sum),
		Bucket:           make([]*dto.Bucket, 0, len(h.CustomValues)),
	}
	counts := make([]float64, len(h.CustomValues))
	for it := h.PositiveBucketIterator(); it.Next(); {
		b := it.At()
		if i := int(b.Index); i >= 0 && i < len(counts) {
			counts[i] = b.Count
		}
	}
	var sum float64
	for i, le := range h.CustomValues {
		sum += counts[i]
		d.Bucket = append(d.Bucket, &dto.Bucket{UpperBound: proto.Float64(le), CumulativeCountFloat: proto.Float64(sum)})
	}
	return d
}
