package heal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/thanos/pkg/store/storepb"

	"github.com/tocsin-io/tocsin/appliance/store"
)

// stock is an archive that has what a store has of some windows.
type stock struct {
	from storage.Queryable

	mtx           sync.Mutex
	whole, others []store.Interval
	unknown       error           // It is not known what is there.
	broken        *store.Interval // It cannot be read.
	asked         []int64         // The begins of what was asked for.
}

func (s *stock) At(resolution time.Duration) storage.Queryable {
	if resolution != 0 {
		panic("samples are missing at a lower resolution")
	}
	return storage.QueryableFunc(func(mint, maxt int64) (storage.Querier, error) {
		s.mtx.Lock()
		defer s.mtx.Unlock()
		s.asked = append(s.asked, mint)
		q, err := s.from.Querier(mint, maxt)
		if s.broken != nil && s.broken.Meets(mint, maxt) {
			return warning{q}, err
		}
		return q, err
	})
}

func (s *stock) Windows(in store.Interval) (whole, others []store.Interval, err error) {
	s.mtx.Lock()
	defer s.mtx.Unlock()
	of := func(all []store.Interval) (some []store.Interval) {
		for _, i := range all {
			if !i.Intersect(in).Empty() {
				some = append(some, i)
			}
		}
		return some
	}
	return of(s.whole), of(s.others), s.unknown
}

func (s *stock) change(f func()) {
	s.mtx.Lock()
	defer s.mtx.Unlock()
	f()
}

// warning is a querier that leaves out half and says so.
type warning struct{ storage.Querier }

func (w warning) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	return warned1{w.Querier.Select(ctx, sorted, hints, append(ms, labels.MustNewMatcher(labels.MatchEqual, "instance", "host-0:9100"))...)}
}

type warned1 struct{ storage.SeriesSet }

func (w warned1) Warnings() annotations.Annotations {
	return annotations.New().Add(errors.New("a block is broken"))
}

const stockWindow = 20 * time.Minute

// newStock is an archive of windows from the begin of a world's to about now, with series of labels that come before a name's.
func newStock(t *testing.T, w *world) (*stock, *trial) {
	t.Helper()
	s := &stock{}
	return s, s.fill(t, w)
}

func (s *stock) fill(t *testing.T, w *world) *trial {
	t.Helper()
	origin := newTrial(t, "c", trialOptions{alone: true})
	w.play(origin, 0)
	for slot := w.slots - 100; slot < w.slots; slot++ {
		origin.write(w.start+int64(slot)*w.every, point{labels: labels.FromStrings("DC", fmt.Sprint(slot%3), "__name__", "odd"), v: 1})
	}
	s.from = origin.store.Local()
	length := stockWindow.Milliseconds()
	for begin := w.start / length * length; begin < w.start+int64(w.slots)*w.every; begin += length {
		s.whole = append(s.whole, store.Interval{From: begin - 1, To: begin + length})
	}
	return origin
}

func calm(start time.Time, slots int) *world {
	w := newWorld(3, start, slots)
	for _, r := range w.replicas {
		clear(w.down[r])
		for n := range w.targets {
			clear(w.cut[key(r, n)])
		}
	}
	return w
}

// without takes out what lies in an interval.
func without(all map[string]map[int64]string, out store.Interval) map[string]map[int64]string {
	for _, samples := range all {
		for at := range samples {
			if out.Contains(at) {
				delete(samples, at)
			}
		}
	}
	return all
}

// sources are where a gap was filled from.
func (x *trial) sources() map[string]bool {
	from := map[string]bool{}
	for _, g := range x.ledger.Gaps() {
		for _, f := range g.Fills {
			if f.Replica != "" {
				from[f.Replica] = true
			}
		}
	}
	return from
}

// TestALonelyReplicaRebuildsFromTheBucket holds that a replica that lost its data gets all that the bucket has, from the newest on, and
// that it knows what nobody had.
func TestALonelyReplicaRebuildsFromTheBucket(t *testing.T) {
	t.Parallel()
	w := calm(time.Now().Add(-3*time.Hour), 700)
	s, origin := newStock(t, w)
	// One window is not there, of another there may be more elsewhere.
	away, some := s.whole[4], s.whole[2]
	s.whole = append(s.whole[:4:4], s.whole[5:]...)
	s.whole = append(s.whole[:2:2], s.whole[3:]...)
	s.others = []store.Interval{some}
	s.unknown = errors.New("not listed yet")
	a := newTrial(t, "a", trialOptions{alone: true, archive: s, window: stockWindow})
	a.begin()
	eventually(t, func() error {
		if got := a.Status().Problem; got != errWait.Error() {
			return fmt.Errorf("the problem is %q", got)
		}
		return nil
	})
	require.Empty(t, a.samples(anything()))
	s.change(func() { s.unknown = nil })
	a.whole()
	require.Equal(t, without(origin.samples(anything()), away), a.samples(anything()))
	require.Equal(t, map[string]bool{fromArchive: true}, a.sources())
	g := a.ledger.Gaps()[0]
	require.Equal(t, store.GapHealed, g.State)
	require.Equal(t, []string{fromArchive}, g.Asked)
	lost := map[bool]int{}
	for _, f := range g.Fills {
		if f.Replica == "" {
			lost[f.Contains(away.From+1)]++
			lost[f.Contains(some.From+1)]++
		}
	}
	require.Equal(t, 2, lost[true], "what is not whole is no fill: %+v", g.Fills)
	for n := range s.asked[1:] {
		require.LessOrEqual(t, s.asked[n+1], s.asked[n], "queries find a hole when an older part comes first")
	}
}

// TestAWipedClusterRebuildsFromTheBucket has nobody with data.
func TestAWipedClusterRebuildsFromTheBucket(t *testing.T) {
	t.Parallel()
	w := calm(time.Now().Add(-2*time.Hour), 400)
	s, origin := newStock(t, w)
	a := newTrial(t, "a", trialOptions{archive: s, window: stockWindow})
	b := newTrial(t, "b", trialOptions{archive: s, window: stockWindow, seeds: []string{a.address()}})
	all := []*trial{a, b}
	for _, x := range all {
		eventually(t, func() error {
			if n := len(x.mesh.Members()); n != len(all) {
				return fmt.Errorf("replica %s sees %d members", x.name, n)
			}
			return nil
		})
	}
	for _, x := range all {
		x.begin()
	}
	// It is stopped midway, and goes on.
	<-time.After(500 * time.Millisecond)
	a.rest()
	a.work()
	// One may be faster, and give to the other.
	fromBucket := false
	for _, x := range all {
		x.whole()
		require.Equal(t, origin.samples(anything()), x.samples(anything()), x.name)
		require.NotEmpty(t, x.sources(), x.name)
		fromBucket = fromBucket || x.sources()[fromArchive]
	}
	require.True(t, fromBucket)
}

// TestReplicasComeBeforeTheBucket holds that the bucket is not asked for what another replica has.
func TestReplicasComeBeforeTheBucket(t *testing.T) {
	t.Parallel()
	w := calm(time.Now().Add(-2*time.Hour), 400)
	s, _ := newStock(t, w)
	s.whole = s.whole[1 : len(s.whole)-1] // What a has of the others is not whole.
	a := newTrial(t, "a", trialOptions{})
	w.play(a, 0)
	a.begin()
	b := newTrial(t, "b", trialOptions{archive: s, window: stockWindow, seeds: []string{a.address()}})
	eventually(t, func() error {
		if len(b.mesh.Members()) < 2 {
			return errors.New("alone")
		}
		return nil
	})
	b.begin()
	b.whole()
	require.Equal(t, a.samples(named("requests_total")), b.samples(named("requests_total")))
	require.Equal(t, map[string]bool{"a": true}, b.sources())
	require.Empty(t, s.asked)
}

// TestTheBucketIsAskedWhenAllReplicasFail has a replica that says that it has all, and lies.
func TestTheBucketIsAskedWhenAllReplicasFail(t *testing.T) {
	t.Parallel()
	s := &stock{}
	a, w := sparse(t, trialOptions{archive: s, window: stockWindow})
	s.fill(t, w)
	newLiar(t, a.address(), func(r *storepb.SeriesRequest, s storepb.Store_SeriesServer) error {
		return s.Send(told(labels.FromStrings("__name__", "requests_total"), r.MinTime-20, r.MinTime-10, r.MinTime-20, r.MinTime-10))
	})
	eventually(t, func() error {
		if len(a.mesh.Members()) < 2 {
			return errors.New("alone")
		}
		return nil
	})
	a.begin()
	eventually(t, func() error {
		for name, samples := range a.samples(named("requests_total")) {
			if len(samples) < 100 {
				return fmt.Errorf("%s has %d samples", name, len(samples))
			}
		}
		return nil
	})
	eventually(t, func() error {
		if !a.sources()[fromArchive] {
			return fmt.Errorf("sources: %v", a.sources())
		}
		return nil
	})
	require.False(t, a.sources()["liar"])
}

// TestWhatCannotBeReadFromTheBucketStaysMissing holds that half an answer is none, and that nothing older comes before it.
func TestWhatCannotBeReadFromTheBucketStaysMissing(t *testing.T) {
	t.Parallel()
	w := calm(time.Now().Add(-2*time.Hour), 400)
	s, origin := newStock(t, w)
	broken := s.whole[2]
	s.broken = &broken
	a := newTrial(t, "a", trialOptions{alone: true, archive: s, window: stockWindow})
	a.begin()
	eventually(t, func() error {
		if got := a.Status().Problem; !strings.Contains(got, "a block is broken") {
			return fmt.Errorf("the problem is %q", got)
		}
		return nil
	})
	require.Equal(t, store.GapOpen, a.ledger.Gaps()[0].State)
	require.Equal(t, without(origin.samples(named("requests_total")), store.Interval{To: broken.To}), a.samples(named("requests_total")))
	s.change(func() { s.broken = nil })
	a.mu.Lock()
	a.backoff = map[string]backoff{}
	a.mu.Unlock()
	a.whole()
	require.Equal(t, origin.samples(anything()), a.samples(anything()))
}

// TestOneThatIsAwayMayHaveWhatTheBucketLacks holds that what the bucket has whole is taken though a replica is away, and that the rest
// is not given up.
func TestOneThatIsAwayMayHaveWhatTheBucketLacks(t *testing.T) {
	t.Parallel()
	w := calm(time.Now().Add(-2*time.Hour), 400)
	s, origin := newStock(t, w)
	some := s.whole[2]
	s.whole, s.others = append(s.whole[:2:2], s.whole[3:]...), []store.Interval{some}
	dir := t.TempDir()
	seen := fmt.Sprintf(`{"peers":[{"name":"c","address":"127.0.0.1:9","last_seen":%q}]}`, time.Now().UTC().Add(-time.Hour).Format(time.RFC3339))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "mesh"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mesh", "peers.json"), []byte(seen), 0o600))
	a := newTrial(t, "a", trialOptions{dir: dir, archive: s, window: stockWindow})
	a.patience = 0
	a.begin()
	eventually(t, func() error {
		g := a.ledger.Gaps()[0]
		if n := len(g.Missing); len(g.Fills) == 0 || n == 0 || g.Missing[0].To < some.To-1 || !a.sources()[fromArchive] || a.Status().Healing != nil {
			return fmt.Errorf("the gap is %+v", g)
		}
		return nil
	})
	require.Equal(t, store.GapOpen, a.ledger.Gaps()[0].State)
	require.Equal(t, without(origin.samples(named("requests_total")), store.Interval{To: some.To}), a.samples(named("requests_total")))
}

// TestWhatWasLostIsRecalledFromTheBucket has what was lost turn up in the bucket.
func TestWhatWasLostIsRecalledFromTheBucket(t *testing.T) {
	t.Parallel()
	w := calm(time.Now().Add(-2*time.Hour), 400)
	s, origin := newStock(t, w)
	a := newTrial(t, "a", trialOptions{alone: true, archive: s, window: stockWindow})
	i := store.Interval{From: s.whole[0].From, To: s.whole[2].To}
	a.write(i.From-1000, point{labels: labels.FromStrings("__name__", "old"), v: 1})
	a.ledger.Add(store.Gap{Kind: store.GapReplica, Cause: store.CauseDown, Found: time.Now(), Interval: i})
	id := a.ledger.Gaps()[0].ID
	require.NoError(t, a.ledger.Filled(id, store.Fill{Interval: i}))
	require.Equal(t, store.GapLost, a.ledger.Gaps()[0].State)
	a.begin()
	eventually(t, func() error {
		for _, g := range a.ledger.Gaps() {
			if g.ID == id && g.State == store.GapHealed {
				return nil
			}
		}
		return errors.New("it is still lost")
	})
	got := a.samples(named("requests_total"))
	for name, samples := range origin.samples(named("requests_total")) {
		for at, v := range samples {
			if i.Contains(at) {
				require.Equal(t, v, got[name][at])
			}
		}
	}
}

// TestWindowsOfTwoReplicasMeetAsInTheBucket holds that an answer does not change when it comes from here, also where samples of two
// replicas are closer to each other than those of one.
func TestWindowsOfTwoReplicasMeetAsInTheBucket(t *testing.T) {
	t.Parallel()
	w := calm(time.Now().Add(-2*time.Hour), 400)
	s := &stock{}
	origin := newTrial(t, "c", trialOptions{alone: true})
	s.from = origin.store.Local()
	length := stockWindow.Milliseconds()
	first := w.start / length * length
	for n := range int64(6) {
		begin := first + n*length
		s.whole = append(s.whole, store.Interval{From: begin - 1, To: begin + length})
		for at := begin + n%2*14_000; at < begin+length; at += 15_000 {
			origin.write(at, point{labels: labels.FromStrings("__name__", "requests_total"), v: float64(at)})
		}
	}
	a := newTrial(t, "a", trialOptions{alone: true, archive: s, window: stockWindow})
	a.begin()
	a.whole()
	require.Equal(t, origin.samples(anything()), a.samples(anything()))
}
