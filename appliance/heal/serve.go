package heal

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/thanos-io/thanos/pkg/component"
	_ "github.com/thanos-io/thanos/pkg/extgrpc" // Registers the codec, without which Thanos's messages cannot be read.
	"github.com/thanos-io/thanos/pkg/info/infopb"
	thanos "github.com/thanos-io/thanos/pkg/store"
	"github.com/thanos-io/thanos/pkg/store/labelpb"
	"github.com/thanos-io/thanos/pkg/store/storepb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tocsin-io/tocsin/appliance/mesh"
)

const (
	// Calls of Series at once. A replica asks for little, and finds another where this one is busy; a Thanos Query asks
	// for each part of a query on its own.
	memberCalls = 8
	readerCalls = 20
	// placeTimeout bounds how long a call waits until another has ended.
	placeTimeout = 2 * time.Second
	// callTimeout bounds a call, also where the caller takes nothing of the answer: as long as it lasts, blocks that are
	// to go stay, and the head does not become one.
	callTimeout = 15 * time.Minute
	// readerBuffer bounds the bytes that answers to readers hold, all together.
	readerBuffer = 512 << 20
)

// Who is served: label values.
const (
	toReplica = "replica"
	toReader  = "reader"
)

// Local is the data that is served: this replica's own, and of those nothing that came from another by remote read.
type Local interface {
	storage.ChunkQueryable
	// StartTime answers tsdb.ErrNotReady before there are data. Its time is not used.
	StartTime() (int64, error)
}

// storeServer is Thanos's StoreAPI on this replica's own data, in two views: replicas get the series as they are, and
// readers get them with the external labels, as from a stock Thanos sidecar. A replica must not get them with external
// labels, because these replace a series' labels of the same names.
type storeServer struct {
	logger   kitLogger
	local    Local
	external func() labels.Labels

	members, readers chan struct{} // a token for each call of Series
	buffered         atomic.Int64  // bytes, of answers to readers
	placeTimeout     time.Duration
	callTimeout      time.Duration
	readerBuffer     int64

	series, bytes, refused *prometheus.CounterVec
}

var (
	_ storepb.StoreServer = (*storeServer)(nil)
	_ infopb.InfoServer   = (*storeServer)(nil)
)

// newStoreServer makes the server. External gives the labels that readers tell this replica from others by; it is asked
// at each call.
func newStoreServer(logger *slog.Logger, reg prometheus.Registerer, local Local, external func() labels.Labels) *storeServer {
	f := promauto.With(reg)
	s := &storeServer{
		logger:       kitLogger{logger},
		local:        local,
		external:     external,
		members:      make(chan struct{}, memberCalls),
		readers:      make(chan struct{}, readerCalls),
		placeTimeout: placeTimeout,
		callTimeout:  callTimeout,
		readerBuffer: readerBuffer,
		series: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_heal_served_series_total",
			Help: "Series sent to other replicas and to readers such as a Thanos Query.",
		}, []string{"to"}),
		bytes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_heal_served_bytes_total",
			Help: "Bytes of series sent to other replicas and to readers such as a Thanos Query.",
		}, []string{"to"}),
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "tocsin_heal_serve_refused_total",
			Help: "Requests for series that were refused or broken off, because too many were served at once, or too much to readers.",
		}, []string{"to"}),
	}
	for _, to := range []string{toReplica, toReader} {
		s.series.WithLabelValues(to)
		s.bytes.WithLabelValues(to)
		s.refused.WithLabelValues(to)
	}
	return s
}

// register adds the services, to what readers may call too (mesh.ReadableServer).
func (s *storeServer) register(r grpc.ServiceRegistrar) {
	r.RegisterService(&storeService, s)
	r.RegisterService(&infoService, s)
}

// audience is who asks, and what it gets.
type audience struct {
	to       string
	external labels.Labels
	places   chan struct{}
}

func (s *storeServer) audience(ctx context.Context) (audience, error) {
	if _, ok := mesh.Caller(ctx); ok {
		return audience{to: toReplica, places: s.members}, nil
	}
	if _, ok := mesh.Reader(ctx); ok {
		return audience{to: toReader, external: s.external(), places: s.readers}, nil
	}
	return audience{}, status.Error(codes.Unauthenticated, "only replicas of the cluster and its readers are answered")
}

// store is Thanos's own server with the view's labels. It is made for each call: it costs nothing, and one that lasts
// reads its labels without a lock.
func (s *storeServer) store(v audience, l Local) *thanos.TSDBStore {
	return thanos.NewTSDBStore(s.logger, l, component.Sidecar, v.external)
}

// Series sends what matches, in the order of labels. For replicas samples are cut to the time that is asked for; what
// readers get may go beyond it, by the rest of a chunk, as they are used to.
func (s *storeServer) Series(r *storepb.SeriesRequest, stream storepb.Store_SeriesServer) error {
	v, err := s.audience(stream.Context())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(stream.Context(), s.callTimeout)
	defer cancel()
	if !takePlace(ctx, v.places, s.placeTimeout) {
		s.refused.WithLabelValues(v.to).Inc()
		return status.Error(codes.ResourceExhausted, "this replica answers as many others as it can; ask later")
	}
	defer func() { <-v.places }()

	o := newOutlet(ctx, stream, int(r.ResponseBatchSize))
	// What the external labels do to the order can only be mended when all is there.
	o.hold = v.external.Len() > 0 || len(r.WithoutReplicaLabels) > 0
	o.reserve = func(n int64) bool { return s.buffered.Add(n) <= s.readerBuffer }
	defer func() {
		s.buffered.Add(-o.held)
		s.series.WithLabelValues(v.to).Add(float64(o.series))
		s.bytes.WithLabelValues(v.to).Add(float64(o.bytes))
	}()
	l := &checked{Local: s.local, trim: v.to == toReplica}
	err = s.store(v, l).Series(r, o)
	if sendErr := o.close(); err == nil {
		err = sendErr
	}
	switch {
	case err == nil:
		return nil
	case l.notReady:
		return errNotReady
	case errors.Is(o.failed, errHeldTooMuch):
		s.refused.WithLabelValues(v.to).Inc()
		return status.Error(codes.ResourceExhausted, "the answers to readers take more memory than they may; ask for less")
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	}
	return err
}

// takePlace waits for a place.
func takePlace(ctx context.Context, places chan struct{}, within time.Duration) bool {
	select {
	case places <- struct{}{}:
		return true
	default:
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case places <- struct{}{}:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// LabelNames answers with the names of labels.
func (s *storeServer) LabelNames(ctx context.Context, r *storepb.LabelNamesRequest) (*storepb.LabelNamesResponse, error) {
	return labelCall(ctx, s, func(ctx context.Context, t *thanos.TSDBStore) (*storepb.LabelNamesResponse, error) {
		return t.LabelNames(ctx, r)
	})
}

// LabelValues answers with the values of a label.
func (s *storeServer) LabelValues(ctx context.Context, r *storepb.LabelValuesRequest) (*storepb.LabelValuesResponse, error) {
	return labelCall(ctx, s, func(ctx context.Context, t *thanos.TSDBStore) (*storepb.LabelValuesResponse, error) {
		return t.LabelValues(ctx, r)
	})
}

func labelCall[T any](ctx context.Context, s *storeServer, call func(context.Context, *thanos.TSDBStore) (*T, error)) (*T, error) {
	v, err := s.audience(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.callTimeout)
	defer cancel()
	l := &checked{Local: s.local}
	resp, err := call(ctx, s.store(v, l))
	switch {
	case err == nil:
		return resp, nil
	case l.notReady:
		return nil, errNotReady
	case ctx.Err() != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return nil, err
}

// Info says what there is, as a stock Thanos sidecar does.
func (s *storeServer) Info(ctx context.Context, _ *infopb.InfoRequest) (*infopb.InfoResponse, error) {
	v, err := s.audience(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := s.local.StartTime(); err != nil {
		if errors.Is(err, tsdb.ErrNotReady) {
			return nil, errNotReady
		}
		return nil, status.Error(codes.Internal, err.Error())
	}
	resp := &infopb.InfoResponse{
		ComponentType: component.Sidecar.String(),
		Store: &infopb.StoreInfo{
			// Where the data begin is not known in advance: what is healed may be older than all that was scraped. A
			// Thanos Query asks those only in whose time a query falls.
			MinTime:                      math.MinInt64,
			MaxTime:                      math.MaxInt64,
			SupportsSharding:             true,
			SupportsWithoutReplicaLabels: true,
		},
	}
	if v.external.Len() > 0 {
		resp.LabelSets = labelpb.ZLabelSetsFromPromLabels(v.external)
		resp.Store.TsdbInfos = []infopb.TSDBInfo{{Labels: resp.LabelSets[0], MinTime: math.MinInt64, MaxTime: math.MaxInt64}}
	}
	return resp, nil
}

// errNotReady is what is answered before the data are there.
var errNotReady = status.Error(codes.Unavailable, "this replica is not ready yet: its data are not there")

// checked is the data for one call: it remembers why there are none, which Thanos's server turns into a text.
type checked struct {
	Local
	trim     bool // Samples outside the time that is asked for are left out.
	notReady bool
}

func (c *checked) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	q, err := c.Local.ChunkQuerier(mint, maxt)
	if err != nil {
		c.notReady = errors.Is(err, tsdb.ErrNotReady)
		return nil, err
	}
	if c.trim {
		return trimmer{q}, nil
	}
	return q, nil
}
