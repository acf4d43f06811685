package heal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/thanos-io/thanos/pkg/store/storepb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tocsin-io/tocsin/appliance/store"
)

// What one answer may bring. A replica that goes beyond is not one of ours, or broken.
const (
	maxLabels     = 1024
	maxLabelBytes = 64 << 10
	maxChunkBytes = 64 << 10
	// seriesBatch is how many series the other side may put into one message, which spares it most of what a message
	// costs.
	seriesBatch = 64
)

// Reasons for cutting a replica off, the labels of a counter.
const (
	lieLabels    = "labels"    // Labels that are malformed, or were not asked for.
	lieUnsorted  = "unsorted"  // Series or samples out of order, or twice.
	lieOutside   = "outside"   // Samples outside the time that was asked for.
	lieCorrupt   = "corrupt"   // What does not decode.
	lieEndless   = "endless"   // More than there can be.
	lieSilence   = "silence"   // Nothing for too long.
	failedAnswer = "error"     // It answered with an error, or the connection broke.
	failedReach  = "unreached" // There was no connection.
)

// lie is an answer that is wrong. What came before it is not to be trusted either.
type lie struct{ reason, detail string }

func (l *lie) Error() string { return l.detail }

func lied(reason, format string, args ...any) error {
	return &lie{reason, fmt.Sprintf(format, args...)}
}

// reasonOf is the label value that a failed answer is counted under.
func reasonOf(err error) string {
	var l *lie
	var f *store.ForeignError
	switch {
	case errors.As(err, &l):
		return l.reason
	case errors.As(err, &f):
		return f.Reason
	case status.Code(err) == codes.Unavailable:
		return failedReach
	default:
		return failedAnswer
	}
}

// request is what a replica is asked for. The interval is on our clock.
type request struct {
	interval store.Interval
	shift    int64 // What is added to its time stamps to get ours.
	matchers []*labels.Matcher
	// stall bounds the silence between two messages, maxBytes what is taken in all.
	stall    time.Duration
	maxBytes int64
}

// answer is the stream of series of one replica. It is checked while it comes: nothing that is out of order, not asked
// for or malformed gets past Next. Samples are checked by who decodes them.
type answer struct {
	request
	stream grpc.ClientStream
	cancel context.CancelCauseFunc
	timer  *time.Timer

	queue   []*storepb.Series
	next    store.ForeignSeries // Read already, maybe to be continued by the next frame.
	pending bool
	at      store.ForeignSeries
	last    labels.Labels
	bytes   int64
	ended   bool
	err     error
	names   map[string]string // One copy of each string, since what they point into is a whole message.
}

// series asks for series. The stream is over when Next says so, or on close.
func (a *asker) series(ctx context.Context, member string, r request) (*answer, error) {
	conn, err := a.mesh.Conn(member)
	if err != nil {
		return nil, fmt.Errorf("reach replica %s: %w", member, err)
	}
	matchers, err := storepb.PromMatchersToMatchers(r.matchers...)
	if err != nil {
		return nil, fmt.Errorf("ask replica %s: %w", member, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s := &answer{request: r, cancel: cancel, names: map[string]string{}}
	// gRPC notices a dead connection; a process that hangs is noticed here.
	s.timer = time.AfterFunc(r.stall, func() { cancel(lied(lieSilence, "replica %s said nothing for %s", member, r.stall)) })
	s.stream, err = conn.NewStream(ctx, &grpc.StreamDesc{StreamName: "Series", ServerStreams: true}, "/thanos.Store/Series")
	if err == nil {
		err = s.stream.SendMsg(&storepb.SeriesRequest{
			// What is asked for lies strictly between the two moments; the StoreAPI includes both.
			MinTime: add(add(r.interval.From, 1), -r.shift), MaxTime: add(add(r.interval.To, -1), -r.shift),
			Matchers:                matchers,
			Aggregates:              []storepb.Aggr{storepb.Aggr_RAW},
			PartialResponseStrategy: storepb.PartialResponseStrategy_ABORT,
			ResponseBatchSize:       seriesBatch,
		})
	}
	if err == nil {
		err = s.stream.CloseSend()
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("ask replica %s: %w", member, cause(ctx, err))
	}
	s.timer.Stop() // It runs while we wait for a message.
	return s, nil
}

// cause prefers why we gave up to what gRPC makes of it.
func cause(ctx context.Context, err error) error {
	var l *lie
	if c := context.Cause(ctx); errors.As(c, &l) {
		return l
	}
	return err
}

func (s *answer) close() {
	s.timer.Stop()
	s.cancel(nil)
	s.ended = true
}

// Next implements store.ForeignSet.
func (s *answer) Next() bool {
	for s.err == nil {
		series, ok := s.frame()
		if s.err != nil {
			break
		}
		if !ok {
			if !s.pending {
				return false
			}
			s.at, s.pending = s.next, false
			return true
		}
		next, err := s.convert(series)
		if err != nil {
			s.err = err
			break
		}
		if s.pending && labels.Equal(next.Labels, s.next.Labels) {
			// A series may come in several frames.
			if len(s.next.Chunks) > 0 && len(next.Chunks) > 0 && next.Chunks[0].MinTime <= s.next.Chunks[len(s.next.Chunks)-1].MaxTime {
				s.err = lied(lieUnsorted, "the series %s came twice, or its chunks out of order", s.next.Labels)
				break
			}
			s.next.Chunks = append(s.next.Chunks, next.Chunks...)
			continue
		}
		if !s.last.IsEmpty() && labels.Compare(s.last, next.Labels) >= 0 {
			s.err = lied(lieUnsorted, "the series %s came after %s", next.Labels, s.last)
			break
		}
		s.last = next.Labels
		had := s.pending
		s.at, s.next, s.pending = s.next, next, true
		if had {
			return true
		}
	}
	s.close()
	return false
}

// At implements store.ForeignSet.
func (s *answer) At() store.ForeignSeries { return s.at }

// Err implements store.ForeignSet.
func (s *answer) Err() error { return s.err }

// frame is the next series, or part of one, off the wire.
func (s *answer) frame() (*storepb.Series, bool) {
	for len(s.queue) == 0 {
		if s.ended {
			return nil, false
		}
		s.timer.Reset(s.stall)
		msg := &storepb.SeriesResponse{}
		err := s.stream.RecvMsg(msg)
		if errors.Is(err, io.EOF) {
			s.close()
			return nil, false
		}
		if err != nil {
			s.err = fmt.Errorf("receive series: %w", cause(s.stream.Context(), err))
			return nil, false
		}
		if s.bytes += int64(msg.Size()); s.bytes > s.maxBytes {
			s.err = lied(lieEndless, "the answer has more than %d bytes", s.maxBytes)
			return nil, false
		}
		if w := msg.GetWarning(); w != "" {
			// It could not read all of its own data: what follows is not whole.
			s.err = fmt.Errorf("receive series: the replica warns: %.500s", w)
			return nil, false
		}
		if one := msg.GetSeries(); one != nil {
			s.queue = append(s.queue, one)
		}
		if batch := msg.GetBatch(); batch != nil {
			s.queue = append(s.queue, batch.Series...)
		}
	}
	// While somebody works on what came, the other side has no reason to hurry.
	s.timer.Stop()
	series := s.queue[0]
	s.queue = s.queue[1:]
	if series == nil {
		s.err = lied(lieCorrupt, "a frame has no series")
		return nil, false
	}
	return series, true
}

func (s *answer) convert(from *storepb.Series) (store.ForeignSeries, error) {
	out := store.ForeignSeries{Interval: s.interval, Shift: s.shift}
	if len(from.Labels) == 0 || len(from.Labels) > maxLabels {
		return out, lied(lieLabels, "a series has %d labels", len(from.Labels))
	}
	b := labels.NewScratchBuilder(len(from.Labels))
	size, before := 0, ""
	for _, l := range from.Labels {
		if size += len(l.Name) + len(l.Value); size > maxLabelBytes {
			return out, lied(lieLabels, "the labels of a series have more than %d bytes", maxLabelBytes)
		}
		if l.Name <= before || l.Value == "" || !utf8.ValidString(l.Name) || !utf8.ValidString(l.Value) {
			return out, lied(lieLabels, "the label %.100q is malformed, or out of order", l.Name)
		}
		before = l.Name
		b.Add(s.one(l.Name), s.one(l.Value))
	}
	out.Labels = b.Labels()
	if !out.Labels.Has(model.MetricNameLabel) {
		return out, lied(lieLabels, "the series %s has no name", out.Labels)
	}
	for _, m := range s.matchers {
		if !m.Matches(out.Labels.Get(m.Name)) {
			return out, lied(lieLabels, "the series %s was not asked for", out.Labels)
		}
	}
	out.Chunks = make([]chunks.Meta, 0, len(from.Chunks))
	end := int64(math.MinInt64)
	for i := range from.Chunks {
		c := &from.Chunks[i]
		if c.Raw == nil || len(c.Raw.Data) < 2 || len(c.Raw.Data) > maxChunkBytes || c.MaxTime < c.MinTime {
			return out, lied(lieCorrupt, "the series %s has a chunk that is none", out.Labels)
		}
		if c.MinTime <= end {
			return out, lied(lieUnsorted, "the series %s has chunks out of order", out.Labels)
		}
		end = c.MaxTime
		if add(c.MinTime, s.shift) <= s.interval.From || add(c.MaxTime, s.shift) >= s.interval.To {
			return out, lied(lieOutside, "the series %s has samples from %d to %d, and what lies between %d and %d was asked for",
				out.Labels, c.MinTime+s.shift, c.MaxTime+s.shift, s.interval.From, s.interval.To)
		}
		encoding := chunkenc.EncXOR
		switch c.Raw.Type {
		case storepb.Chunk_XOR:
		case storepb.Chunk_HISTOGRAM:
			encoding = chunkenc.EncHistogram
		case storepb.Chunk_FLOAT_HISTOGRAM:
			encoding = chunkenc.EncFloatHistogram
		default:
			return out, lied(lieCorrupt, "the series %s has a chunk of an unknown encoding", out.Labels)
		}
		chunk, err := chunkenc.FromData(encoding, c.Raw.Data)
		if err != nil {
			return out, lied(lieCorrupt, "the series %s has a chunk that does not decode: %s", out.Labels, err)
		}
		out.Chunks = append(out.Chunks, chunks.Meta{Chunk: chunk, MinTime: c.MinTime, MaxTime: c.MaxTime})
	}
	return out, nil
}

// maxStrings bounds the memory for strings that are seen once.
const maxStrings = 1 << 20

func (s *answer) one(v string) string {
	if have, ok := s.names[v]; ok {
		return have
	}
	v = strings.Clone(v)
	if len(s.names) < maxStrings {
		s.names[v] = v
	}
	return v
}
