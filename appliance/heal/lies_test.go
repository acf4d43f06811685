package heal

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/thanos/pkg/store/labelpb"
	"github.com/thanos-io/thanos/pkg/store/storepb"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/heal/peerspb"
	"github.com/tocsin-io/tocsin/appliance/mesh"
	"github.com/tocsin-io/tocsin/appliance/store"
)

// liar is a member of the mesh that answers as it likes.
type liar struct {
	storepb.StoreServer
	mesh *mesh.Mesh
	// ahead is how far its clock is.
	ahead  time.Duration
	series func(r *storepb.SeriesRequest, s storepb.Store_SeriesServer) error
}

func (l *liar) Series(r *storepb.SeriesRequest, s storepb.Store_SeriesServer) error {
	if r.Matchers[0].Value == "up" {
		return nil
	}
	return l.series(r, s)
}

func (l *liar) LabelNames(context.Context, *storepb.LabelNamesRequest) (*storepb.LabelNamesResponse, error) {
	return &storepb.LabelNamesResponse{}, nil
}

func (l *liar) LabelValues(context.Context, *storepb.LabelValuesRequest) (*storepb.LabelValuesResponse, error) {
	return &storepb.LabelValuesResponse{}, nil
}

func (l *liar) Coverage(context.Context, *peerspb.CoverageRequest) (*peerspb.CoverageReply, error) {
	return &peerspb.CoverageReply{Now: time.Now().Add(l.ahead).UnixMilli(), Ready: true, Oldest: 1}, nil
}

func newLiar(t *testing.T, seed string, series func(*storepb.SeriesRequest, storepb.Store_SeriesServer) error) *liar {
	t.Helper()
	l := &liar{series: series}
	var err error
	l.mesh, err = mesh.New(mesh.Options{
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Dir: filepath.Join(t.TempDir(), "mesh"),
		Config: &config.Config{
			Replica: config.Replica{Name: "liar", Zone: "elsewhere"},
			Cluster: &config.Cluster{Name: "test", Peers: []string{seed}}, ClusterKeys: config.Keys{make([]byte, 32)},
		},
		ListenAddress: "127.0.0.1:0", GRPCListenAddress: "127.0.0.1:0",
	})
	require.NoError(t, err)
	l.mesh.ReadableServer().RegisterService(&storeService, l)
	peerspb.RegisterPeersServer(l.mesh.Server(), l)
	l.mesh.SetCompleteness(1)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.mesh.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	require.NoError(t, l.mesh.WaitReady(t.Context()))
	return l
}

// told is a series as it goes over the wire.
func told(ls labels.Labels, mint, maxt int64, times ...int64) *storepb.SeriesResponse {
	c := chunkenc.NewXORChunk()
	app, err := c.Appender()
	if err != nil {
		panic(err)
	}
	for _, t := range times {
		app.Append(t, 666)
	}
	return tellBytes(ls, mint, maxt, c.Bytes())
}

func tellBytes(ls labels.Labels, mint, maxt int64, b []byte) *storepb.SeriesResponse {
	return storepb.NewSeriesResponse(&storepb.Series{
		Labels: labelpb.ZLabelsFromPromLabels(ls),
		Chunks: []storepb.AggrChunk{{MinTime: mint, MaxTime: maxt, Raw: &storepb.Chunk{Type: storepb.Chunk_XOR, Data: b}}},
	})
}

// sparse is a history of one replica with a hole, and what another one has there.
func sparse(t *testing.T, o trialOptions) (a *trial, w *world) {
	t.Helper()
	w = newWorld(1, time.Now().Add(-30*time.Minute), 100)
	for _, r := range w.replicas {
		clear(w.down[r])
		for n := range w.targets {
			clear(w.cut[key(r, n)])
		}
	}
	for slot := 40; slot < 60; slot++ {
		w.down["a"][slot] = true
	}
	a = newTrial(t, "a", o)
	w.play(a, 0)
	return a, w
}

// TestLies holds that a replica that answers wrongly is found out, that nothing wrong is written, and that another one is asked.
func TestLies(t *testing.T) {
	good := labels.FromStrings("__name__", "a", "x", "1")
	other := labels.FromStrings("__name__", "b")
	mid := func(r *storepb.SeriesRequest) int64 { return (r.MinTime + r.MaxTime) / 2 }
	send := func(make func(*storepb.SeriesRequest) []*storepb.SeriesResponse) func(*storepb.SeriesRequest, storepb.Store_SeriesServer) error {
		return func(r *storepb.SeriesRequest, s storepb.Store_SeriesServer) error {
			for _, m := range make(r) {
				if err := s.Send(m); err != nil {
					return err
				}
			}
			return nil
		}
	}
	type rs = []*storepb.SeriesResponse
	for _, lie := range []struct {
		name, reason string
		series       func(*storepb.SeriesRequest, storepb.Store_SeriesServer) error
	}{
		{"a chunk after the interval", lieOutside, send(func(r *storepb.SeriesRequest) rs {
			return rs{told(good, mid(r), r.MaxTime+1, mid(r), r.MaxTime+1)}
		})},
		{"a chunk before the interval", lieOutside, send(func(r *storepb.SeriesRequest) rs {
			return rs{told(good, r.MinTime-1, mid(r), r.MinTime-1, mid(r))}
		})},
		{"a chunk that hides where its samples are", lieOutside, send(func(r *storepb.SeriesRequest) rs {
			return rs{told(good, mid(r), mid(r)+1, mid(r), r.MaxTime+60000)}
		})},
		{"series out of order", lieUnsorted, send(func(r *storepb.SeriesRequest) rs {
			return rs{told(other, mid(r), mid(r), mid(r)), told(good, mid(r), mid(r), mid(r))}
		})},
		{"a series twice", lieUnsorted, send(func(r *storepb.SeriesRequest) rs {
			return rs{told(good, mid(r), mid(r), mid(r)), told(good, mid(r), mid(r), mid(r))}
		})},
		{"samples out of order", lieUnsorted, send(func(r *storepb.SeriesRequest) rs {
			return rs{told(good, mid(r)-9, mid(r), mid(r), mid(r)-9)}
		})},
		{"a sample twice", lieUnsorted, send(func(r *storepb.SeriesRequest) rs {
			return rs{told(good, mid(r), mid(r), mid(r), mid(r))}
		})},
		{"labels out of order", lieLabels, send(func(r *storepb.SeriesRequest) rs {
			return rs{told(labels.Labels{{Name: "x", Value: "1"}, {Name: "__name__", Value: "a"}}, mid(r), mid(r), mid(r))}
		})},
		{"a label twice", lieLabels, send(func(r *storepb.SeriesRequest) rs {
			return rs{told(labels.Labels{{Name: "__name__", Value: "a"}, {Name: "__name__", Value: "b"}}, mid(r), mid(r), mid(r))}
		})},
		{"no name", lieLabels, send(func(r *storepb.SeriesRequest) rs {
			return rs{told(labels.FromStrings("x", "1"), mid(r), mid(r), mid(r))}
		})},
		{"no labels", lieLabels, send(func(r *storepb.SeriesRequest) rs { return rs{told(labels.EmptyLabels(), mid(r), mid(r), mid(r))} })},
		{"a label that is not text", lieLabels, send(func(r *storepb.SeriesRequest) rs {
			return rs{told(labels.FromStrings("__name__", "a\xff"), mid(r), mid(r), mid(r))}
		})},
		{"a label without end", lieLabels, send(func(r *storepb.SeriesRequest) rs {
			return rs{told(labels.FromStrings("__name__", strings.Repeat("a", 100_000)), mid(r), mid(r), mid(r))}
		})},
		{"garbage for a chunk", lieCorrupt, send(func(r *storepb.SeriesRequest) rs {
			// It says that there are 200 samples.
			b := told(good, 0, 0, mid(r)).GetSeries().Chunks[0].Raw.Data
			b[1] = 200
			return rs{tellBytes(good, mid(r), mid(r), b)}
		})},
		{"an empty chunk", lieCorrupt, send(func(r *storepb.SeriesRequest) rs { return rs{tellBytes(good, mid(r), mid(r), nil)} })},
		{"no end", lieEndless, func(r *storepb.SeriesRequest, s storepb.Store_SeriesServer) error {
			for n := 0; ; n++ {
				ls := labels.FromStrings("__name__", "a", "n", fmt.Sprintf("%09d", n))
				if err := s.Send(told(ls, mid(r), mid(r), mid(r))); err != nil {
					return err
				}
			}
		}},
		{"silence", lieSilence, func(r *storepb.SeriesRequest, s storepb.Store_SeriesServer) error {
			if err := s.Send(told(good, mid(r), mid(r), mid(r))); err != nil {
				return err
			}
			<-s.Context().Done()
			return nil
		}},
		{"an error midway", failedAnswer, func(r *storepb.SeriesRequest, s storepb.Store_SeriesServer) error {
			if err := s.Send(told(good, mid(r), mid(r), mid(r))); err != nil {
				return err
			}
			return fmt.Errorf("no more")
		}},
		{"a warning", failedAnswer, send(func(*storepb.SeriesRequest) rs { return rs{storepb.NewWarnSeriesResponse(fmt.Errorf("half of it"))} })},
	} {
		t.Run(lie.name, func(t *testing.T) {
			t.Parallel()
			a, w := sparse(t, trialOptions{})
			a.stall, a.maxBytes = 2*time.Second, 4<<20
			newLiar(t, a.address(), lie.series)
			// 10 minutes at most would go to the head, series by series; this is longer, in two parts.
			before := a.samples(anything())
			a.begin()
			eventually(t, func() error {
				if testutil.ToFloat64(a.metrics.refused.WithLabelValues(lie.reason)) == 0 {
					return fmt.Errorf("nothing was refused as %s: %s", lie.reason, a.Status().Problem)
				}
				return nil
			})
			for name, samples := range a.samples(anything()) {
				// Series may have come whole before the lie.
				if !strings.HasPrefix(name, `{__name__="a"`) && name != other.String() {
					require.Equal(t, before[name], samples, name)
				}
				for at := range samples {
					require.LessOrEqual(t, at, time.Now().UnixMilli())
				}
			}
			b := newTrial(t, "b", trialOptions{seeds: []string{a.address()}})
			// It asks the liar too, and hands on what came whole.
			b.maxBytes = 1 << 16
			w.play(b, 100)
			b.begin()
			a.whole()
			for name, samples := range a.samples(named("requests_total")) {
				require.Len(t, samples, 100, name)
			}
		})
	}
}

// TestClocksThatDiffer holds that what a replica has whose clock is minutes off is put where it belongs, once.
func TestClocksThatDiffer(t *testing.T) {
	for _, ahead := range []time.Duration{3 * time.Minute, -2 * time.Minute} {
		t.Run(ahead.String(), func(t *testing.T) {
			t.Parallel()
			a, w := sparse(t, trialOptions{})
			ms := ahead.Milliseconds()
			l := newLiar(t, a.address(), func(r *storepb.SeriesRequest, s storepb.Store_SeriesServer) error {
				// It has all that was, at the times of its own clock.
				for n := range w.targets {
					ls := labels.FromStrings(append(w.target(n), "__name__", "requests_total")...)
					var times []int64
					c := chunkenc.NewXORChunk()
					app, err := c.Appender()
					if err != nil {
						return err
					}
					for slot := range w.slots {
						at := w.start + int64(slot)*w.every + 100 + ms
						if r.MinTime <= at && at <= r.MaxTime {
							app.Append(at, float64(slot*(n+1)))
							times = append(times, at)
						}
					}
					if len(times) == 0 {
						continue
					}
					if err := s.Send(tellBytes(ls, times[0], times[len(times)-1], c.Bytes())); err != nil {
						return err
					}
				}
				return nil
			})
			l.ahead = ahead
			a.begin()
			a.whole()
			for n := range w.targets {
				for name, samples := range a.samples(named("requests_total"), labels.MustNewMatcher(labels.MatchEqual, "instance", w.target(n)[1])) {
					// Its clock is known to some milliseconds, so a sample may be in the slot before.
					last, seen := int64(math.MinInt64), 0
					for slot := range w.slots {
						for at, v := range samples {
							if d := at - (w.start + int64(slot)*w.every); -5000 < d && d < 5000 {
								require.Equal(t, fmt.Sprint(float64(slot*(n+1))), v, name)
								require.Greater(t, at, last)
								last = at
								seen++
							}
						}
					}
					require.Equal(t, 100, seen, name)
					require.Len(t, samples, 100, name)
				}
			}
		})
	}
}

// TestQueriesDoNotWait holds that a replica that hangs costs a query a moment and not its timeout, and that one that lies
// costs it nothing but the next one's answer.
func TestQueriesDoNotWait(t *testing.T) {
	t.Parallel()
	w := newWorld(1, time.Now().Add(-30*time.Minute), 100)
	b := newTrial(t, "b", trialOptions{})
	clear(w.down["b"])
	w.play(b, 0)
	b.begin()
	a := newTrial(t, "a", trialOptions{seeds: []string{b.address()}})
	hung := make(chan struct{})
	defer close(hung)
	newLiar(t, b.address(), func(_ *storepb.SeriesRequest, s storepb.Store_SeriesServer) error {
		select {
		case <-hung:
		case <-s.Context().Done():
		}
		return nil
	})
	eventually(t, func() error {
		if members, _ := a.ask.others(); len(members) < 2 {
			return fmt.Errorf("%d others", len(members))
		}
		return nil
	})
	in := store.Interval{From: w.start, To: w.start + 50*w.every}
	for range 5 {
		begin := time.Now()
		got, warnings, err := a.Peers().Select(t.Context(), in, named("requests_total"))
		require.NoError(t, err)
		require.Empty(t, warnings)
		require.Len(t, got, w.targets)
		// Far from the patience for all of them; what it takes is the hedge.
		require.Less(t, time.Since(begin), giveUp)
	}
}

// TestQueriesSayWhatIsMissing holds that an answer names the time that nobody has.
func TestQueriesSayWhatIsMissing(t *testing.T) {
	t.Parallel()
	a := newTrial(t, "a", trialOptions{})
	_, warnings, err := a.Peers().Select(t.Context(), store.Interval{From: 0, To: 60_000}, named("up"))
	require.NoError(t, err)
	require.Len(t, warnings, 1)
	require.ErrorContains(t, warnings.AsErrors()[0], "between 1970-01-01 00:00:00 UTC and 1970-01-01 00:01:00 UTC")
	require.False(t, a.Peers().Available())
}
