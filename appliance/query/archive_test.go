package query

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/thanos-io/thanos/pkg/compact/downsample"

	"github.com/tocsin-io/tocsin/appliance/store"
)

// shelf is an archive: another store.
type shelf struct {
	storage.Queryable
	until int64
	fail  atomic.Pointer[error]
	// unknown is why nobody knows what there is.
	unknown atomic.Pointer[error]
	hang    atomic.Pointer[chan struct{}]
	asked   atomic.Int64
	most    atomic.Int64 // The last resolution that was asked for.
}

func (s *shelf) At(resolution time.Duration) storage.Queryable {
	s.asked.Add(1)
	s.most.Store(int64(resolution))
	return storage.QueryableFunc(func(mint, maxt int64) (storage.Querier, error) {
		q, err := s.Querier(mint, maxt)
		if letGo := s.hang.Load(); letGo != nil && err == nil {
			return hanging{q, *letGo}, nil
		}
		if why := s.fail.Load(); why != nil && err == nil {
			return failing{q, *why}, nil
		}
		return adding{q}, err
	})
}

// adding adds counters up over their resets for the functions for which Thanos does, with Thanos's own iterator.
type adding struct{ storage.Querier }

func (a adding) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	set := a.Querier.Select(ctx, sorted, hints, ms...)
	if hints == nil || !slices.Contains([]string{"rate", "increase", "irate", "resets"}, hints.Func) {
		return set
	}
	return addingSet{set}
}

type addingSet struct{ storage.SeriesSet }

func (a addingSet) At() storage.Series {
	series := a.SeriesSet.At()
	return &storage.SeriesEntry{Lset: series.Labels(), SampleIteratorFn: func(chunkenc.Iterator) chunkenc.Iterator {
		return downsample.NewApplyCounterResetsIterator(series.Iterator(nil))
	}}
}

func (s *shelf) Until() (int64, error) {
	if why := s.unknown.Load(); why != nil {
		return 0, *why
	}
	return s.until, nil
}

// hanging does not answer before it is let go, whatever its context says.
type hanging struct {
	storage.Querier
	letGo chan struct{}
}

func (h hanging) Select(context.Context, bool, *storage.SelectHints, ...*labels.Matcher) storage.SeriesSet {
	<-h.letGo
	return storage.ErrSeriesSet(errors.New("too late"))
}

type failing struct {
	storage.Querier
	why error
}

func (f failing) Select(context.Context, bool, *storage.SelectHints, ...*labels.Matcher) storage.SeriesSet {
	return storage.ErrSeriesSet(f.why)
}

// shelved has everything before at on the shelf, and the rest in the replica. whole has everything.
func shelved(t *testing.T, at int64, change func(*Options)) (w *world, s *shelf, r, whole *replica) {
	t.Helper()
	w = newWorld(everything, false, false)
	whole = newReplica(t, true, nil)
	w.whole.fill(t, whole.own)
	old := newReplica(t, true, nil)
	s = &shelf{Queryable: old.own}
	r = newReplica(t, true, func(o *Options) {
		o.Archive = s
		if change != nil {
			change(o)
		}
	})
	before, after := &sheet{}, &sheet{}
	for _, l := range w.whole.lsets {
		for _, p := range w.whole.data[key(l)] {
			if p.t < at {
				before.add(l, p)
			} else {
				after.add(l, p)
			}
		}
	}
	before.fill(t, old.own)
	after.fill(t, r.own)
	return w, s, r, whole
}

// TestArchiveAndLocalDataAreOne holds that queries that reach into the archive are answered as if all were here, wherever the two meet.
func TestArchiveAndLocalDataAreOne(t *testing.T) {
	for _, offset := range []int64{0, 1, 7_501, -1} {
		w := newWorld(everything, false, false)
		_, _, r, whole := shelved(t, (w.start+w.end)/2/15_000*15_000+offset, nil)
		span := []string{"start", stamp(w.start), "end", stamp(w.end), "step", "15"}
		for _, expr := range []string{
			"requests_total", "rate(requests_total[1m])", "increase(requests_total[10m])", "resets(requests_total[5m])", "sum(temperature)",
			"count_over_time(temperature[2m])", "absent(temperature)", `count by (__name__, instance) ({__name__=~".+"})`, "temperature offset 5m",
		} {
			got, want := r.get(t, "query_range", append(span, "query", expr)...), whole.get(t, "query_range", append(span, "query", expr)...)
			if want.code != 200 || got.code != 200 || string(got.Data) != string(want.Data) || len(got.Warnings) != 0 {
				t.Errorf("cut at %d: %s: %d %s %q\n%.300s\nwant\n%.300s", offset, expr, got.code, got.Error, got.Warnings, got.Data, want.Data)
			}
		}
		span = span[:4]
		for path, params := range map[string][]string{"series": append(span, "match[]", `{__name__=~".+"}`), "labels": span, "label/__name__/values": span} {
			got, want := r.get(t, path, params...), whole.get(t, path, params...)
			if want.code != 200 || !sameItems(t, got.Data, want.Data) {
				t.Errorf("cut at %d: %s: %.300s\nwant\n%.300s", offset, path, got.Data, want.Data)
			}
		}
	}
}

// TestCountersOfDownsampledBlocksGoOn holds that where counters were added up over their resets, what they have grown by stays true.
func TestCountersOfDownsampledBlocksGoOn(t *testing.T) {
	w := newWorld(everything, false, false)
	_, s, r, whole := shelved(t, (w.start+w.end)/2/15_000*15_000, nil)
	for _, expr := range []string{"increase(requests_total[10m])", "rate(requests_total[30m]) * 1800"} {
		span := []string{"start", stamp(w.start + 30*60_000), "end", stamp(w.end), "step", "15", "query", expr}
		got, want := r.get(t, "query_range", append(span, "max_source_resolution", "5m")...), whole.get(t, "query_range", span...)
		if got.code != 200 || want.code != 200 || time.Duration(s.most.Load()) != 5*time.Minute {
			t.Fatalf("%d %s", got.code, got.Error)
		}
		a, b := points(t, got.Data), points(t, want.Data)
		if len(a) != len(b) || len(b) == 0 {
			t.Fatalf("%s: %d points, want %d", expr, len(a), len(b))
		}
		worst := 0.0
		for at, v := range b {
			worst = max(worst, math.Abs(a[at]-v))
		}
		// At the seam what the fastest grows by between two samples is lost.
		if worst > 1.2*3*15 {
			t.Errorf("%s: a difference of %v", expr, worst)
		}
	}
}

// points are all points of all series of a range query's answer.
func points(t *testing.T, data json.RawMessage) map[string]float64 {
	t.Helper()
	var answer struct {
		Result []struct {
			Metric map[string]string
			Values [][2]any
		}
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, series := range answer.Result {
		for _, p := range series.Values {
			v, err := strconv.ParseFloat(p[1].(string), 64)
			if err != nil {
				t.Fatal(err)
			}
			all[fmt.Sprint(series.Metric, p[0])] = v
		}
	}
	return all
}

// sameItems tells whether two lists hold the same, in whatever order.
func sameItems(t *testing.T, a, b json.RawMessage) bool {
	t.Helper()
	lists := [2][]string{}
	for i, data := range []json.RawMessage{a, b} {
		var items []json.RawMessage
		if err := json.Unmarshal(data, &items); err != nil {
			t.Fatal(err)
		}
		for _, item := range items {
			lists[i] = append(lists[i], string(item))
		}
		slices.Sort(lists[i])
	}
	return slices.Equal(lists[0], lists[1])
}

// TestTheArchiveIsAskedOnlyForWhatIsOlder also holds that its failure is a warning.
func TestTheArchiveIsAskedOnlyForWhatIsOlder(t *testing.T) {
	w := newWorld(everything, false, false)
	at := (w.start + w.end) / 2
	_, s, r, _ := shelved(t, at, nil)
	if a := r.get(t, "query", "query", "sum(count_over_time(temperature[1m]))", "time", stamp(at+120_000)); a.code != 200 || s.asked.Load() != 0 {
		t.Errorf("recent: %d, asked %d times", a.code, s.asked.Load())
	}
	old := []string{"start", stamp(w.start), "end", stamp(w.end), "query", "temperature"}
	if a := r.get(t, "query_range", append(old, "step", "15", "local", "true")...); a.code != 200 || s.asked.Load() != 0 {
		t.Errorf("local: %d, asked %d times", a.code, s.asked.Load())
	}
	for step, want := range map[string]time.Duration{"15": 3 * time.Second, "1500": 5 * time.Minute, "5m": time.Minute} {
		r.get(t, "query_range", append(old, "step", step)...)
		if got := time.Duration(s.most.Load()); got != want {
			t.Errorf("step %s: a resolution of %s, want %s", step, got, want)
		}
	}
	if r.get(t, "query_range", append(old, "step", "15", "max_source_resolution", "1h")...); time.Duration(s.most.Load()) != time.Hour {
		t.Errorf("the resolution is %s", time.Duration(s.most.Load()))
	}
	if a := r.get(t, "query_range", append(old, "step", "15", "max_source_resolution", "much")...); a.code != 400 {
		t.Errorf("a resolution that is none: %d", a.code)
	}
	broken := errors.New("403: go away")
	s.fail.Store(&broken)
	a := r.get(t, "query_range", append(old, "step", "15")...)
	if a.code != 200 || len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "go away") || !strings.Contains(a.Warnings[0], "from the bucket") ||
		!strings.Contains(string(a.Data), "node") {
		t.Errorf("%d %s %q %.300s", a.code, a.Error, a.Warnings, a.Data)
	}
	s.fail.Store(nil)
	s.unknown.Store(&broken)
	a = r.get(t, "query_range", append(old, "step", "15")...)
	if a.code != 200 || len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "was not asked") {
		t.Errorf("unknown: %d %s %q", a.code, a.Error, a.Warnings)
	}
	if n := gauge(t, r.reg, "tocsin_query_bucket_failures_total"); n != 2 {
		t.Errorf("%v failures were counted", n)
	}
}

// TestWhatIsBeingFilledComesFromTheOthers holds that the archive answers for an empty replica only as far as it has everything.
func TestWhatIsBeingFilledComesFromTheOthers(t *testing.T) {
	w := newWorld(everything, false, false)
	at := (w.start + w.end) / 2
	peers := &others{sheet: &w.whole}
	old := newReplica(t, true, nil)
	before := &sheet{}
	for _, l := range w.whole.lsets {
		for _, p := range w.whole.data[key(l)] {
			if p.t < at {
				before.add(l, p)
			}
		}
	}
	before.fill(t, old.own)
	s := &shelf{Queryable: old.own, until: at}
	r := newReplica(t, true, func(o *Options) {
		o.Archive, o.Peers = s, peers
		o.Gaps = ledger{{Kind: store.GapReplica, Intervals: []store.Interval{{From: 0, To: w.end + 1}}}}
	})
	whole := newReplica(t, true, nil)
	w.whole.fill(t, whole.own)
	params := []string{"start", stamp(w.start), "end", stamp(w.end), "step", "15", "query", "count_over_time(requests_total[1m])"}
	got, want := r.get(t, "query_range", params...), whole.get(t, "query_range", params...)
	if got.code != 200 || string(got.Data) != string(want.Data) {
		t.Errorf("%d %s %q: %.500s\nwant\n%.500s", got.code, got.Error, got.Warnings, got.Data, want.Data)
	}
	if s.asked.Load() == 0 || len(peers.questions()) == 0 {
		t.Error("one of the two was not asked")
	}
}

// TestRulesDoNotWaitForTheArchive holds that an archive that hangs costs a rule a moment, and the next ones nothing.
func TestRulesDoNotWaitForTheArchive(t *testing.T) {
	w := newWorld(everything, false, false)
	at := (w.start + w.end) / 2
	_, s, r, _ := shelved(t, at, nil)
	letGo := make(chan struct{})
	s.hang.Store(&letGo)
	rules := r.RulesQueryable()
	ask := func() (n int, warnings []error, took time.Duration) {
		began := time.Now()
		q, err := rules.Querier(w.start, w.end)
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		set := q.Select(t.Context(), false, nil, labels.MustNewMatcher(labels.MatchEqual, "__name__", "temperature"))
		for set.Next() {
			n++
		}
		if err := set.Err(); err != nil {
			t.Fatal(err)
		}
		return n, set.Warnings().AsErrors(), time.Since(began)
	}
	for i := range 2 {
		n, warnings, took := ask()
		if n == 0 || len(warnings) != 1 || !errors.Is(warnings[0], errSlowArchive) {
			t.Errorf("%d. time: %d series, %v, after %s", i+1, n, warnings, took)
		}
	}
	close(letGo)
	s.hang.Store(nil)
	if a := r.get(t, "query", "query", "count(temperature)", "time", stamp(at-60_000)); a.code != 200 || len(a.Warnings) != 0 {
		t.Errorf("a query of somebody else: %d %v", a.code, a.Warnings)
	}
}
