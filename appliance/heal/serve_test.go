package heal

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/thanos/pkg/info/infopb"
	"github.com/thanos-io/thanos/pkg/store/labelpb"
	"github.com/thanos-io/thanos/pkg/store/storepb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/mesh"
)

const servePatience = 20 * time.Second

// served is a replica that serves a TSDB on a real mesh with a key, and the two kinds of callers.
type served struct {
	*storeServer
	db            *tsdb.DB
	local         *switchable
	setExternal   func(labels.Labels)
	member        grpc.ClientConnInterface // of the replica "other"
	reader        *grpc.ClientConn
	memberStore   func(context.Context, *storepb.SeriesRequest) (seriesClient, error)
	readerStore   storepb.StoreClient
	logged        *bytes.Buffer
	memberInvoked func(method string, in, out any) error
}

type seriesClient interface {
	Recv() (*storepb.SeriesResponse, error)
}

type memberSeries struct{ grpc.ClientStream }

func (s memberSeries) Recv() (*storepb.SeriesResponse, error) {
	r := &storepb.SeriesResponse{}
	return r, s.RecvMsg(r)
}

// switchable is data that can be away.
type switchable struct {
	*tsdb.DB
	mu   sync.Mutex
	away error
}

func (s *switchable) gone() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.away
}

func (s *switchable) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = err
}

func (s *switchable) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	if err := s.gone(); err != nil {
		return nil, err
	}
	return s.DB.ChunkQuerier(mint, maxt)
}

func (s *switchable) StartTime() (int64, error) {
	if err := s.gone(); err != nil {
		return 0, err
	}
	return s.DB.StartTime()
}

func serveTSDB(t *testing.T) *served {
	t.Helper()
	opts := tsdb.DefaultOptions()
	opts.OutOfOrderTimeWindow = time.Hour.Milliseconds()
	opts.MaxBlockDuration = opts.MinBlockDuration
	db, err := tsdb.Open(t.TempDir(), slog.New(slog.DiscardHandler), nil, opts, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	db.DisableCompactions()

	x := &served{db: db, local: &switchable{DB: db}, logged: &bytes.Buffer{}}
	key := bytes.Repeat([]byte{1, 2, 3, 4}, 8)
	var seeds []string
	var meshes []*mesh.Mesh
	for _, name := range []string{"self", "other"} {
		m, err := mesh.New(mesh.Options{
			Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Dir: t.TempDir(),
			Config: &config.Config{
				Replica: config.Replica{Name: name, Zone: "z"}, Cluster: &config.Cluster{Name: "test", Peers: seeds},
				ClusterKeys: config.Keys{key},
			},
			ListenAddress: "127.0.0.1:0", GRPCListenAddress: "127.0.0.1:0", HTTPPort: 9090,
		})
		require.NoError(t, err)
		seeds = append(seeds, m.Members()[0].Address)
		meshes = append(meshes, m)
	}
	var mu sync.Mutex
	external := labels.FromStrings("replica", "self", "zone", "z")
	x.setExternal = func(l labels.Labels) {
		mu.Lock()
		defer mu.Unlock()
		external = l
	}
	x.storeServer = newStoreServer(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), x.local, func() labels.Labels {
		mu.Lock()
		defer mu.Unlock()
		return external
	})
	x.register(meshes[0].ReadableServer())
	for _, m := range meshes {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			require.NoError(t, <-done)
		})
	}
	require.Eventually(t, func() bool {
		x.member, err = meshes[1].Conn("self")
		return err == nil
	}, servePatience, 10*time.Millisecond)
	x.memberStore = func(ctx context.Context, r *storepb.SeriesRequest) (seriesClient, error) {
		s, err := x.member.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/thanos.Store/Series")
		if err != nil {
			return nil, err
		}
		return memberSeries{s}, errors.Join(s.SendMsg(r), s.CloseSend())
	}
	x.memberInvoked = func(method string, in, out any) error { return x.member.Invoke(t.Context(), method, in, out) }

	authorities, cert, private, err := mesh.NewReaderCertificate([][]byte{key}, "test", "thanos")
	require.NoError(t, err)
	pair, err := tls.X509KeyPair(cert, private)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(authorities))
	x.reader, err = grpc.NewClient("passthrough:///"+meshes[0].Members()[slices.IndexFunc(meshes[0].Members(), func(m mesh.Member) bool { return m.Self })].Card.GRPC,
		grpc.WithNoProxy(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			Certificates: []tls.Certificate{pair}, RootCAs: roots, ServerName: mesh.ServerName,
		})))
	require.NoError(t, err)
	t.Cleanup(func() { x.reader.Close() })
	x.readerStore = storepb.NewStoreClient(x.reader)
	return x
}

// fill appends a sample every 15 seconds in [from, to) (ms) to each series.
func (x *served) fill(t *testing.T, from, to int64, series ...labels.Labels) {
	t.Helper()
	app := x.db.Appender(t.Context())
	for ts := from; ts < to; ts += 15_000 {
		for _, l := range series {
			_, err := app.Append(0, l, ts, float64(ts))
			require.NoError(t, err)
		}
	}
	require.NoError(t, app.Commit())
}

// sent is one series as it came.
type sent struct {
	labels labels.Labels
	times  []int64
}

// collect reads an answer to its end.
func collect(t *testing.T, s seriesClient, err error) (all []sent, messages int, _ error) {
	t.Helper()
	if err != nil {
		return nil, 0, err
	}
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return all, messages, nil
		}
		if err != nil {
			return all, messages, err
		}
		messages++
		require.Empty(t, r.GetWarning())
		var series []*storepb.Series
		if b := r.GetBatch(); b != nil {
			series = b.Series
		}
		if one := r.GetSeries(); one != nil {
			series = []*storepb.Series{one}
		}
		for _, s := range series {
			got := sent{labels: labelpb.ZLabelsToPromLabels(s.Labels).Copy()}
			for _, c := range s.Chunks {
				ch, err := chunkenc.FromData(chunkenc.Encoding(c.Raw.Type+1), c.Raw.Data)
				require.NoError(t, err)
				before := len(got.times)
				it := ch.Iterator(nil)
				for it.Next() != chunkenc.ValNone {
					got.times = append(got.times, it.AtT())
				}
				require.NoError(t, it.Err())
				require.Greater(t, len(got.times), before, "an empty chunk")
				require.Equal(t, got.times[before], c.MinTime)
				require.Equal(t, got.times[len(got.times)-1], c.MaxTime)
			}
			if n := len(all); n > 0 && labels.Equal(all[n-1].labels, got.labels) {
				all[n-1].times = append(all[n-1].times, got.times...)
				continue
			}
			all = append(all, got)
		}
	}
}

var allNames = []storepb.LabelMatcher{{Type: storepb.LabelMatcher_RE, Name: "__name__", Value: ".+"}}

func between(from, to int64) *storepb.SeriesRequest {
	return &storepb.SeriesRequest{MinTime: from, MaxTime: to, Matchers: allNames}
}

func lset(ss ...string) labels.Labels { return labels.FromStrings(ss...) }

const hour = int64(3600_000)

// TestServeReplicas holds that a replica gets what was stored, all of it within the time that it asks for and nothing
// else, from blocks, the head, what came out of order, and of all types.
func TestServeReplicas(t *testing.T) {
	x := serveTSDB(t)
	series := []labels.Labels{
		lset("__name__", "m", "a", "1"),
		lset("__name__", "m", "a", "1", "b", "2"),
		lset("__name__", "m", "replica", "own", "zone", "own"),
		lset("__name__", "m", "z", "1"),
	}
	hist := lset("__name__", "n", "kind", "histogram")
	both := func(from, to int64) {
		for ; from < to; from += hour / 2 {
			x.fill(t, from, from+hour/2, series...)
			app := x.db.Appender(t.Context())
			for ts := from; ts < from+hour/2; ts += 15_000 {
				_, err := app.AppendHistogram(0, hist, ts, tsdbutil.GenerateTestHistogram(ts/15_000), nil)
				require.NoError(t, err)
			}
			require.NoError(t, app.Commit())
		}
	}
	both(0, 5*hour/2)
	require.NoError(t, x.db.CompactHead(tsdb.NewRangeHead(x.db.Head(), 0, 2*hour-1)))
	both(5*hour/2, 4*hour)
	// Out of order, between two scrapes.
	app := x.db.Appender(t.Context())
	_, err := app.Append(0, series[3], 7*hour/2+1, 1)
	require.NoError(t, err)
	require.NoError(t, app.Commit())
	// And deleted.
	require.NoError(t, x.db.Delete(t.Context(), hour, hour+60_000, labels.MustNewMatcher(labels.MatchEqual, "z", "1")))

	want := func(l labels.Labels, from, to int64) (times []int64) {
		q, err := x.db.Querier(math.MinInt64, math.MaxInt64)
		require.NoError(t, err)
		defer q.Close()
		var ms []*labels.Matcher
		l.Range(func(l labels.Label) { ms = append(ms, labels.MustNewMatcher(labels.MatchEqual, l.Name, l.Value)) })
		set := q.Select(t.Context(), true, nil, ms...)
		for set.Next() {
			if !labels.Equal(set.At().Labels(), l) {
				continue
			}
			it := set.At().Iterator(nil)
			for it.Next() != chunkenc.ValNone {
				if from <= it.AtT() && it.AtT() <= to {
					times = append(times, it.AtT())
				}
			}
		}
		require.NoError(t, set.Err())
		return times
	}
	for _, span := range [][2]int64{
		{0, 5 * hour}, {7_000, 8_000}, {0, 30_000}, {hour + 30_000, hour + 45_000}, {15_000, 15_000}, {hour - 1, hour + 90_001}, {2*hour - 40_000, 2*hour + 40_000},
		{7*hour/2 - 1, 7*hour/2 + 16_000}, {7*hour/2 + 1, 7*hour/2 + 1}, {4 * hour, 5 * hour}, {math.MinInt64, math.MaxInt64},
	} {
		for _, batch := range []int64{0, 3, 64} {
			r := between(span[0], span[1])
			r.ResponseBatchSize = batch
			s, err := x.memberStore(t.Context(), r)
			got, messages, err := collect(t, s, err)
			require.NoError(t, err)
			var expect []sent
			for _, l := range append(slices.Clone(series), hist) {
				if times := want(l, span[0], span[1]); len(times) > 0 {
					expect = append(expect, sent{l, times})
				}
			}
			slices.SortFunc(expect, func(a, b sent) int { return labels.Compare(a.labels, b.labels) })
			require.Equal(t, expect, got, "%v", span)
			if batch > 1 && len(got) > 1 {
				require.Less(t, messages, len(got))
			}
		}
	}
	require.Positive(t, testutil.ToFloat64(x.series.WithLabelValues(toReplica)))
	require.Positive(t, testutil.ToFloat64(x.bytes.WithLabelValues(toReplica)))
	require.Zero(t, testutil.ToFloat64(x.series.WithLabelValues(toReader)))

	// The labels that readers get are no matchers here.
	r := between(0, 5*hour)
	r.Matchers = []storepb.LabelMatcher{{Name: "replica", Value: "self"}}
	s, err := x.memberStore(t.Context(), r)
	got, _, err := collect(t, s, err)
	require.NoError(t, err)
	require.Empty(t, got)
	r.Matchers[0].Value = "own"
	s, err = x.memberStore(t.Context(), r)
	got, _, err = collect(t, s, err)
	require.NoError(t, err)
	require.Len(t, got, 1)

	var values storepb.LabelValuesResponse
	require.NoError(t, x.memberInvoked("/thanos.Store/LabelValues", &storepb.LabelValuesRequest{Label: "replica", End: math.MaxInt64}, &values))
	require.Equal(t, []string{"own"}, values.Values)
	var info infopb.InfoResponse
	require.NoError(t, x.memberInvoked("/thanos.info.Info/Info", &infopb.InfoRequest{}, &info))
	require.Empty(t, info.LabelSets)
	require.NotNil(t, info.Store)
	require.Nil(t, info.Rules)
}

// TestServeReaders holds that a stock client gets the external labels, in the order that it relies on, and new ones
// after a reload.
func TestServeReaders(t *testing.T) {
	x := serveTSDB(t)
	x.fill(t, 0, hour, lset("__name__", "m", "a", "1"), lset("__name__", "m", "a", "1", "b", "2"), lset("__name__", "m", "zone", "own"))
	ask := func(r *storepb.SeriesRequest) (got []labels.Labels) {
		t.Helper()
		s, err := x.readerStore.Series(t.Context(), r)
		all, _, err := collect(t, s, err)
		require.NoError(t, err)
		for _, s := range all {
			got = append(got, s.labels)
		}
		return got
	}
	require.Equal(t, []labels.Labels{
		lset("__name__", "m", "a", "1", "b", "2", "replica", "self", "zone", "z"),
		lset("__name__", "m", "a", "1", "replica", "self", "zone", "z"),
		lset("__name__", "m", "replica", "self", "zone", "z"),
	}, ask(between(0, hour)))
	without := between(0, hour)
	without.WithoutReplicaLabels = []string{"replica", "zone"}
	require.Equal(t, []labels.Labels{lset("__name__", "m"), lset("__name__", "m", "a", "1"), lset("__name__", "m", "a", "1", "b", "2")}, ask(without))
	none := between(0, hour)
	none.Matchers = append(slices.Clone(allNames), storepb.LabelMatcher{Name: "replica", Value: "another"})
	require.Empty(t, ask(none))

	info, err := infopb.NewInfoClient(x.reader).Info(t.Context(), &infopb.InfoRequest{})
	require.NoError(t, err)
	require.Equal(t, "sidecar", info.ComponentType)
	require.Len(t, info.LabelSets, 1)
	require.Equal(t, lset("replica", "self", "zone", "z"), labelpb.ZLabelsToPromLabels(info.LabelSets[0].Labels))
	require.LessOrEqual(t, info.Store.MinTime, int64(0), "a query of old data would not be asked")
	require.True(t, info.Store.SupportsWithoutReplicaLabels && info.Store.SupportsSharding)
	require.Len(t, info.Store.TsdbInfos, 1)
	names, err := x.readerStore.LabelNames(t.Context(), &storepb.LabelNamesRequest{End: hour})
	require.NoError(t, err)
	require.Subset(t, names.Names, []string{"__name__", "a", "b", "replica", "zone"})

	x.setExternal(lset("aa", "new"))
	require.Equal(t, lset("__name__", "m", "a", "1", "aa", "new"), ask(between(0, hour))[0])
	values, err := x.readerStore.LabelValues(t.Context(), &storepb.LabelValuesRequest{Label: "aa", End: hour})
	require.NoError(t, err)
	require.Equal(t, []string{"new"}, values.Values)
	x.setExternal(labels.EmptyLabels())
	require.Len(t, ask(between(0, hour)), 3)
	require.Zero(t, x.buffered.Load())
}

func TestServeNotReady(t *testing.T) {
	x := serveTSDB(t)
	x.fill(t, 0, hour, lset("__name__", "m"))
	for _, away := range []struct {
		err  error
		code codes.Code
	}{{tsdb.ErrNotReady, codes.Unavailable}, {errors.New("broken"), codes.Internal}} {
		x.local.set(away.err)
		s, err := x.memberStore(t.Context(), between(0, hour))
		_, _, err = collect(t, s, err)
		require.Equal(t, away.code, status.Code(err), err)
		s, err = x.readerStore.Series(t.Context(), between(0, hour))
		_, _, err = collect(t, s, err)
		require.Equal(t, away.code, status.Code(err), err)
		_, err = x.readerStore.LabelNames(t.Context(), &storepb.LabelNamesRequest{End: hour})
		require.Equal(t, away.code, status.Code(err), err)
		_, err = x.readerStore.LabelValues(t.Context(), &storepb.LabelValuesRequest{Label: "a", End: hour})
		require.Equal(t, away.code, status.Code(err), err)
		_, err = infopb.NewInfoClient(x.reader).Info(t.Context(), &infopb.InfoRequest{})
		require.Equal(t, away.code, status.Code(err), err)
	}
	x.local.set(nil)
	s, err := x.readerStore.Series(t.Context(), between(0, hour))
	got, _, err := collect(t, s, err)
	require.NoError(t, err)
	require.Len(t, got, 1)

	// Who is nobody gets nothing, whoever has let him in.
	_, err = x.LabelNames(t.Context(), &storepb.LabelNamesRequest{End: hour})
	require.Equal(t, codes.Unauthenticated, status.Code(err))
	_, err = x.Info(t.Context(), &infopb.InfoRequest{})
	require.Equal(t, codes.Unauthenticated, status.Code(err))
}

func TestServeRefusesBadRequests(t *testing.T) {
	x := serveTSDB(t)
	x.fill(t, 0, hour, lset("__name__", "m"))
	for name, r := range map[string]*storepb.SeriesRequest{
		"no matchers":   {MaxTime: hour},
		"a bad pattern": {MaxTime: hour, Matchers: []storepb.LabelMatcher{{Type: storepb.LabelMatcher_RE, Name: "a", Value: "("}}},
		"a bad matcher": {MaxTime: hour, Matchers: []storepb.LabelMatcher{{Type: 17, Name: "a", Value: "b"}}},
	} {
		s, err := x.memberStore(t.Context(), r)
		_, _, err = collect(t, s, err)
		require.Equal(t, codes.InvalidArgument, status.Code(err), "%s: %v", name, err)
	}
	backwards := between(hour, 0)
	s, err := x.memberStore(t.Context(), backwards)
	got, _, _ := collect(t, s, err)
	require.Empty(t, got)
}

func TestServeHasPlaces(t *testing.T) {
	x := serveTSDB(t)
	x.placeTimeout = 50 * time.Millisecond
	x.fill(t, 0, hour, lset("__name__", "m"))
	for range memberCalls {
		x.members <- struct{}{}
	}
	s, err := x.memberStore(t.Context(), between(0, hour))
	_, _, err = collect(t, s, err)
	require.Equal(t, codes.ResourceExhausted, status.Code(err), err)
	require.EqualValues(t, 1, testutil.ToFloat64(x.refused.WithLabelValues(toReplica)))
	// Readers have places of their own.
	reading, err := x.readerStore.Series(t.Context(), between(0, hour))
	_, _, err = collect(t, reading, err)
	require.NoError(t, err)
	// One that is free in time is taken.
	x.placeTimeout = servePatience
	go func() { <-x.members }()
	s, err = x.memberStore(t.Context(), between(0, hour))
	_, _, err = collect(t, s, err)
	require.NoError(t, err)
	require.Len(t, x.members, memberCalls-1)
}

// bulk is more than the windows of a connection hold.
func (x *served) bulk(t *testing.T) {
	t.Helper()
	var series []labels.Labels
	for i := range 2000 {
		series = append(series, lset("__name__", "m", "i", fmt.Sprint(i), "long", strings.Repeat("x", 4000)))
	}
	x.fill(t, 0, 30_000, series...)
}

// TestServeWhoTakesNothing holds that a caller that reads nothing frees what it holds when its time is over.
func TestServeWhoTakesNothing(t *testing.T) {
	for to, ask := range map[string]func(*served) (seriesClient, error){
		toReplica: func(x *served) (seriesClient, error) { return x.memberStore(t.Context(), between(0, hour)) },
		toReader:  func(x *served) (seriesClient, error) { return x.readerStore.Series(t.Context(), between(0, hour)) },
	} {
		t.Run(to, func(t *testing.T) {
			x := serveTSDB(t)
			x.bulk(t)
			x.callTimeout = time.Second
			start := time.Now()
			s, err := ask(x)
			require.NoError(t, err)
			places := x.members
			if to == toReader {
				places = x.readers
			}
			require.Eventually(t, func() bool { return len(places) == 1 }, servePatience, time.Millisecond)
			require.Eventually(t, func() bool { return len(places) == 0 }, servePatience, time.Millisecond)
			require.GreaterOrEqual(t, time.Since(start), x.callTimeout)
			require.Zero(t, x.buffered.Load())
			got, _, err := collect(t, s, nil)
			require.Equal(t, codes.DeadlineExceeded, status.Code(err), err)
			require.Less(t, len(got), 2000)
			// The data are free: this waits for whoever reads.
			require.NoError(t, x.db.CompactHead(tsdb.NewRangeHead(x.db.Head(), 0, hour)))

			x.callTimeout = time.Minute
			s, err = ask(x)
			got, _, err = collect(t, s, err)
			require.NoError(t, err)
			require.Len(t, got, 2000)
		})
	}
}

// TestServeReadersMemory holds that what readers have to wait for is bounded.
func TestServeReadersMemory(t *testing.T) {
	x := serveTSDB(t)
	x.bulk(t)
	x.readerBuffer = 1 << 20
	s, err := x.readerStore.Series(t.Context(), between(0, hour))
	got, _, err := collect(t, s, err)
	require.Equal(t, codes.ResourceExhausted, status.Code(err), err)
	require.Empty(t, got)
	require.Zero(t, x.buffered.Load())
	require.EqualValues(t, 1, testutil.ToFloat64(x.refused.WithLabelValues(toReader)))
	// Replicas get theirs without anything being held.
	m, err := x.memberStore(t.Context(), between(0, hour))
	got, _, err = collect(t, m, err)
	require.NoError(t, err)
	require.Len(t, got, 2000)
}

// TestServeWhoGoes has callers go away in the middle.
func TestServeWhoGoes(t *testing.T) {
	x := serveTSDB(t)
	x.bulk(t)
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := x.memberStore(ctx, between(0, hour))
		require.NoError(t, err)
		_, err = s.Recv()
		require.NoError(t, err)
		cancel()
	}
	require.Eventually(t, func() bool { return len(x.members) == 0 }, servePatience, time.Millisecond)
	require.NoError(t, x.db.CompactHead(tsdb.NewRangeHead(x.db.Head(), 0, hour)))
}

// TestServedDescriptions compares our descriptions with those that Thanos keeps to itself.
func TestServedDescriptions(t *testing.T) {
	theirs, ours := grpc.NewServer(), grpc.NewServer()
	s := &storeServer{}
	storepb.RegisterStoreServer(theirs, s)
	infopb.RegisterInfoServer(theirs, s)
	s.register(ours)
	got := ours.GetServiceInfo()
	for name, want := range theirs.GetServiceInfo() {
		require.ElementsMatch(t, want.Methods, got[name].Methods, name)
		require.Equal(t, want.Metadata, got[name].Metadata)
		delete(got, name)
	}
	require.Empty(t, got)
}

func TestKitLogger(t *testing.T) {
	var b bytes.Buffer
	l := kitLogger{slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelInfo}))}
	require.NoError(t, l.Log("ts", "now", "caller", "x.go", "level", "warn", "msg", "it broke", "err", errors.New("why"), "odd"))
	require.NoError(t, l.Log("level", "debug", "msg", "no one sees this"))
	require.Contains(t, b.String(), `level=WARN msg="it broke" err=why`)
	require.NotContains(t, b.String(), "caller")
	require.NotContains(t, b.String(), "no one")
}
