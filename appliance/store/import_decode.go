package store

import (
	"encoding/binary"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// ForeignError says that what another replica sent cannot be taken.
type ForeignError struct {
	// Reason is one of the constants below: it is short enough for a metric's label.
	Reason string
	Detail string
}

// Reasons of a ForeignError.
const (
	// ForeignOutside is a sample outside of the interval, or a series that was not asked for.
	ForeignOutside = "outside"
	// ForeignUnsorted is a sample or series that is not after the one before.
	ForeignUnsorted = "unsorted"
	// ForeignCorrupt is a chunk that does not decode, or is beyond all bounds.
	ForeignCorrupt = "corrupt"
	// ForeignLabels is a label set that no series can have.
	ForeignLabels = "labels"
)

// Error implements error.
func (e *ForeignError) Error() string {
	return "data of another replica refused (" + e.Reason + "): " + e.Detail
}

// Bounds of one chunk. Our own have 120 samples and at most a few KiB; a compacted one of another program may have
// more.
const (
	maxForeignChunkBytes   = 64 << 10
	maxForeignChunkSamples = 10_000
)

// checkLabels refuses what is no label set of a stored series.
func checkLabels(l labels.Labels) error {
	named := false
	for i, lb := range l {
		switch {
		case lb.Name == "" || lb.Value == "":
			return &ForeignError{ForeignLabels, fmt.Sprintf("empty label name or value in %q", l.String())}
		case !utf8.ValidString(lb.Name) || !utf8.ValidString(lb.Value):
			return &ForeignError{ForeignLabels, fmt.Sprintf("label that is not UTF-8 in %q", l.String())}
		case i > 0 && l[i-1].Name >= lb.Name:
			return &ForeignError{ForeignLabels, fmt.Sprintf("label names out of order or twice in %q", l.String())}
		}
		named = named || lb.Name == model.MetricNameLabel
	}
	if !named {
		return &ForeignError{ForeignLabels, fmt.Sprintf("no name in %q", l.String())}
	}
	return nil
}

// foreignDecoder decodes what another replica has of one series. It is used again for the next.
type foreignDecoder struct {
	series ForeignSeries
	parts  []foreignPart
	// One of each for each sample; v only of floats.
	t     []int64
	v     []float64
	stale []bool
	take  []bool

	// Used again, one of each encoding.
	xor, hist, float chunkenc.Iterator
	h                *histogram.Histogram
	fh               *histogram.FloatHistogram
}

// foreignPart are the samples of one chunk.
type foreignPart struct {
	chunk    chunkenc.Chunk
	from, to int  // Of the samples.
	skipped  int  // How many of the chunk come before the first, since they are outside.
	clipped  bool // Whether any is left out.
}

// decode reads the whole series and checks everything about its samples. With clip, samples outside of in are left
// out, else they are an error. The bytes come from elsewhere, so that a panic of upstream's decoding is an error too.
func (d *foreignDecoder) decode(s ForeignSeries, in Interval, clip bool) (err error) {
	d.series = s
	d.parts, d.t, d.v, d.stale = d.parts[:0], d.t[:0], d.v[:0], d.stale[:0]
	defer recoverForeign(&err)
	last, any := int64(0), false
	for i := range s.Chunks {
		chk := s.Chunks[i].Chunk
		n, err := checkChunk(chk)
		if err != nil {
			return err
		}
		part := foreignPart{chunk: chk, from: len(d.t)}
		it, kind := d.iterator(chk)
		read := 0
		for got := it.Next(); got != chunkenc.ValNone; got = it.Next() {
			if got != kind {
				return corrupt("a chunk has %s samples of another kind", chk.Encoding())
			}
			t, v, stale, err := d.sample(it, kind)
			if err != nil {
				return err
			}
			if any && t <= last {
				return &ForeignError{ForeignUnsorted, fmt.Sprintf("sample at %d after one at %d", t, last)}
			}
			last, any = t, true
			read++
			t += s.Shift
			if !in.Contains(t) {
				if !clip {
					return &ForeignError{ForeignOutside, fmt.Sprintf("sample at %d, asked for between %d and %d", t, in.From, in.To)}
				}
				if part.clipped = true; len(d.t) == part.from {
					part.skipped++
				}
				continue
			}
			d.t = append(d.t, t)
			d.v = append(d.v, v)
			d.stale = append(d.stale, stale)
		}
		if err := it.Err(); err != nil {
			return corrupt("%s chunk: %s", chk.Encoding(), err)
		}
		if read != n {
			return corrupt("%s chunk of %d samples has %d", chk.Encoding(), n, read)
		}
		part.to = len(d.t)
		if part.to > part.from {
			d.parts = append(d.parts, part)
		}
	}
	return nil
}

// sample is the one that it stands at.
func (d *foreignDecoder) sample(it chunkenc.Iterator, kind chunkenc.ValueType) (t int64, v float64, stale bool, err error) {
	switch kind {
	case chunkenc.ValHistogram:
		t, d.h = it.AtHistogram(d.h)
		if stale = value.IsStaleNaN(d.h.Sum); !stale {
			err = d.h.Validate()
		}
	case chunkenc.ValFloatHistogram:
		t, d.fh = it.AtFloatHistogram(d.fh)
		if stale = value.IsStaleNaN(d.fh.Sum); !stale {
			err = d.fh.Validate()
		}
	default:
		t, v = it.At()
		stale = value.IsStaleNaN(v)
	}
	if err != nil {
		err = corrupt("histogram: %s", err)
	}
	return t, v, stale, err
}

func (d *foreignDecoder) iterator(chk chunkenc.Chunk) (chunkenc.Iterator, chunkenc.ValueType) {
	switch chk.Encoding() {
	case chunkenc.EncHistogram:
		d.hist = chk.Iterator(d.hist)
		return d.hist, chunkenc.ValHistogram
	case chunkenc.EncFloatHistogram:
		d.float = chk.Iterator(d.float)
		return d.float, chunkenc.ValFloatHistogram
	}
	d.xor = chk.Iterator(d.xor)
	return d.xor, chunkenc.ValFloat
}

// takeAll is room for the decision about each sample.
func (d *foreignDecoder) takeAll() []bool {
	d.take = slices.Grow(d.take[:0], len(d.t))[:len(d.t)]
	return d.take
}

// samples appends those that are taken, n of them.
func (d *foreignDecoder) samples(to []takenSample, n int) (_ []takenSample, err error) {
	defer recoverForeign(&err)
	to = slices.Grow(to, n)
	for _, p := range d.parts {
		if p.chunk.Encoding() == chunkenc.EncXOR {
			for i := p.from; i < p.to; i++ {
				if d.take[i] {
					to = append(to, takenSample{t: d.t[i], v: d.v[i], follows: i > 0 && d.take[i-1]})
				}
			}
			continue
		}
		if err := d.histograms(p, func(i int, h *histogram.Histogram, fh *histogram.FloatHistogram) error {
			to = append(to, takenSample{t: d.t[i], h: h, fh: fh, follows: i > 0 && d.take[i-1]})
			return nil
		}); err != nil {
			return to, err
		}
	}
	return to, nil
}

// histograms decodes the histograms of a part again and hands out copies of those that are taken. decode does not keep
// them: they are large.
func (d *foreignDecoder) histograms(
	p foreignPart, each func(i int, h *histogram.Histogram, fh *histogram.FloatHistogram) error,
) error {
	it, kind := d.iterator(p.chunk)
	for range p.skipped {
		it.Next()
	}
	for i := p.from; i < p.to; i++ {
		if it.Next() != kind {
			return corrupt("%s chunk ends early when read again", p.chunk.Encoding())
		}
		if !d.take[i] {
			continue
		}
		var (
			h  *histogram.Histogram
			fh *histogram.FloatHistogram
		)
		if kind == chunkenc.ValHistogram {
			_, h = it.AtHistogram(nil)
		} else {
			_, fh = it.AtFloatHistogram(nil)
		}
		if err := each(i, h, fh); err != nil {
			return err
		}
	}
	return nil
}

func corrupt(format string, args ...any) error {
	return &ForeignError{ForeignCorrupt, fmt.Sprintf(format, args...)}
}

// recoverForeign makes a panic in the decoding of another replica's bytes an error.
func recoverForeign(err *error) {
	if r := recover(); r != nil {
		*err = corrupt("decoding panicked: %v", r)
	}
}

// checkChunk refuses a chunk that is not safe to iterate. It returns the number of samples that it says it has.
func checkChunk(chk chunkenc.Chunk) (samples int, err error) {
	if chk == nil {
		return 0, corrupt("chunk is missing")
	}
	b := chk.Bytes()
	if len(b) > maxForeignChunkBytes {
		return 0, corrupt("chunk of %d bytes", len(b))
	}
	header := 2
	switch chk.Encoding() {
	case chunkenc.EncXOR:
	case chunkenc.EncHistogram, chunkenc.EncFloatHistogram:
		header = 3
	default:
		return 0, corrupt("chunk of encoding %d", chk.Encoding())
	}
	if len(b) < header {
		return 0, corrupt("chunk of %d bytes", len(b))
	}
	samples = int(binary.BigEndian.Uint16(b))
	if samples > maxForeignChunkSamples {
		return 0, corrupt("chunk of %d samples", samples)
	}
	if header == 3 && samples > 0 {
		return samples, checkLayout(b[header:])
	}
	return samples, nil
}

// checkLayout reads the layout at the start of a histogram chunk as upstream's readHistogramChunkLayout does. Upstream
// allocates as many buckets as the spans say before it reads any, so that a few bytes could ask for gigabytes. Each
// bucket takes at least a bit.
func checkLayout(b []byte) error {
	r := bitReader{b: b}
	if zero := r.bits(8); zero == 255 {
		r.bits(64)
	}
	r.varbit() // The schema.
	var buckets uint64
	for range 2 {
		spans := r.varbit()
		for ; spans > 0 && !r.ended; spans-- {
			length := r.varbit()
			r.varbit() // The offset.
			// Upstream takes the length as 32 bits.
			buckets += length & (1<<32 - 1)
		}
	}
	if r.ended {
		return corrupt("histogram chunk ends in its layout")
	}
	if buckets > uint64(len(b))*8 {
		return corrupt("histogram chunk of %d bytes with %d buckets", len(b), buckets)
	}
	return nil
}

// bitReader reads what chunkenc's bstream writes.
type bitReader struct {
	b     []byte
	at    int // In bits.
	ended bool
}

func (r *bitReader) bits(n int) (v uint64) {
	if r.at+n > len(r.b)*8 {
		r.ended = true
		return 0
	}
	for range n {
		v = v<<1 | uint64(r.b[r.at/8]>>(7-r.at%8)&1)
		r.at++
	}
	return v
}

// varbit reads a number in upstream's varbit encoding, signed ones as their bits.
func (r *bitReader) varbit() uint64 {
	ones := 0
	for ones < 8 && r.bits(1) == 1 {
		ones++
	}
	return r.bits([...]int{0, 3, 6, 9, 12, 18, 25, 56, 64}[ones])
}
