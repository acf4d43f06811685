package heal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/thanos-io/thanos/pkg/store/labelpb"
	"github.com/thanos-io/thanos/pkg/store/storepb"
	"google.golang.org/grpc"
)

// messageBytes is about how many bytes of series make a message.
const messageBytes = 1 << 20

// errHeldTooMuch says that there was no room to put an answer into order.
var errHeldTooMuch = errors.New("the answers take more memory than they may")

// outlet sends the series of one call. Thanos's server hands them over one by one and then calls Flush; without this
// type it would hold back all of them until it has the last.
//
// What blocks does so in a goroutine of its own: gRPC's Send does not heed the time that a call may take. What is sent
// there was encoded before, since labels lie in files that go when the call has ended.
type outlet struct {
	storepb.Store_SeriesServer
	ctx   context.Context
	batch int // Most series in a message.

	// Where the order has to be mended, all series are held back.
	hold    bool
	reserve func(bytes int64) bool
	held    int64

	pending      []*storepb.Series // of the next message
	pendingBytes int

	messages chan *grpc.PreparedMsg
	pumped   chan struct{} // closed when nothing is sent any more
	pumpErr  error         // valid after pumped
	failed   error

	series, bytes int
}

func newOutlet(ctx context.Context, stream storepb.Store_SeriesServer, batch int) *outlet {
	o := &outlet{
		Store_SeriesServer: stream, ctx: ctx, batch: max(1, batch),
		messages: make(chan *grpc.PreparedMsg), pumped: make(chan struct{}),
	}
	go o.pump()
	return o
}

// Context is that of the call, which ends in time.
func (o *outlet) Context() context.Context { return o.ctx }

// Send takes one series, or a warning.
func (o *outlet) Send(r *storepb.SeriesResponse) error {
	if err := o.ctx.Err(); err != nil {
		return o.fail(err)
	}
	s := r.GetSeries()
	if s == nil {
		if err := o.emit(); err != nil {
			return err
		}
		return o.message(r)
	}
	size := s.Size()
	if o.hold {
		// A series costs more than its bytes.
		n := int64(size) + 256
		o.held += n
		if !o.reserve(n) {
			return o.fail(errHeldTooMuch)
		}
		o.pending = append(o.pending, s)
		return nil
	}
	return o.add(s, size)
}

// add puts a series into a message.
func (o *outlet) add(s *storepb.Series, size int) error {
	o.pending = append(o.pending, s)
	o.pendingBytes += size
	if len(o.pending) < o.batch && o.pendingBytes < messageBytes {
		return nil
	}
	return o.emit()
}

// emit sends the series that wait, unless all are held back.
func (o *outlet) emit() error {
	if len(o.pending) == 0 || o.hold {
		return nil
	}
	r := storepb.NewSeriesResponse(o.pending[0])
	if len(o.pending) > 1 {
		r = storepb.NewBatchResponse(o.pending)
	}
	o.series += len(o.pending)
	o.bytes += o.pendingBytes
	err := o.message(r)
	clear(o.pending)
	o.pending, o.pendingBytes = o.pending[:0], 0
	return err
}

// Flush sends what was held back, in order.
func (o *outlet) Flush() error {
	if !o.hold {
		return o.emit()
	}
	all := o.pending
	o.pending, o.hold = nil, false
	// Parts of one series stay in their order.
	slices.SortStableFunc(all, func(x, y *storepb.Series) int {
		return labels.Compare(labelpb.ZLabelsToPromLabels(x.Labels), labelpb.ZLabelsToPromLabels(y.Labels))
	})
	for i, s := range all {
		if err := o.add(s, s.Size()); err != nil {
			return err
		}
		all[i] = nil
	}
	return o.emit()
}

// message hands a message to the pump.
func (o *outlet) message(r *storepb.SeriesResponse) error {
	var m grpc.PreparedMsg
	if err := m.Encode(o.Store_SeriesServer, r); err != nil {
		return o.fail(err)
	}
	select {
	case o.messages <- &m:
		return nil
	case <-o.pumped:
		return o.fail(o.pumpErr)
	case <-o.ctx.Done():
		return o.fail(o.ctx.Err())
	}
}

func (o *outlet) fail(err error) error {
	if o.failed == nil {
		o.failed = err
	}
	return err
}

// pump sends messages. Where it hangs it is freed by the end of the call, which close does not wait for.
func (o *outlet) pump() {
	defer close(o.pumped)
	for m := range o.messages {
		if o.pumpErr = o.SendMsg(m); o.pumpErr != nil {
			return
		}
	}
}

// close waits until all is sent, or the time is over. It gives what went wrong.
func (o *outlet) close() error {
	close(o.messages)
	select {
	case <-o.pumped:
		if o.pumpErr != nil {
			return o.fail(o.pumpErr)
		}
	case <-o.ctx.Done():
		return o.fail(o.ctx.Err())
	}
	return o.failed
}

// kitLogger is our log for Thanos's packages.
type kitLogger struct{ logger *slog.Logger }

// Log takes keys and values in turn.
func (k kitLogger) Log(keyvals ...any) error {
	level, msg := slog.LevelInfo, ""
	var attrs []any
	for i := 0; i+1 < len(keyvals); i += 2 {
		key, value := fmt.Sprint(keyvals[i]), keyvals[i+1]
		switch key {
		case "level":
			if err := level.UnmarshalText([]byte(fmt.Sprint(value))); err != nil {
				level = slog.LevelInfo
			}
		case "msg":
			msg = fmt.Sprint(value)
		case "ts", "caller": // The log has its own.
		default:
			attrs = append(attrs, key, value)
		}
	}
	k.logger.Log(context.Background(), level, msg, attrs...)
	return nil
}
