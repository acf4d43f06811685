package store

import (
	"math"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"
)

// scrapeHeld writes what one scrape of a target would: its `up`, its series, and markers for those that ended.
func scrapeHeld(t *testing.T, s *Store, at int64, up float64, refs map[string]storage.SeriesRef, series map[string]float64) {
	t.Helper()
	app := s.Scrapes().Appender(t.Context())
	for name, v := range series {
		ref, err := app.Append(refs[name], labels.FromStrings("__name__", name, "job", "node"), at, v)
		require.NoError(t, err)
		refs[name] = ref
	}
	ref, err := app.Append(refs["up"], labels.FromStrings("__name__", "up", "job", "node"), at, up)
	require.NoError(t, err)
	refs["up"] = ref
	require.NoError(t, app.Commit())
}

// markersOf counts the staleness markers of a series that are stored.
func markersOf(t *testing.T, s *Store, name string) (n int) {
	t.Helper()
	for _, smp := range all(t, s)[name] {
		if value.IsStaleNaN(smp.v) {
			n++
		}
	}
	return n
}

// The markers of a failed scrape wait for a decision, those of a scrape that succeeded do not.
func TestHeldMarkers(t *testing.T) {
	stale := math.Float64frombits(value.StaleNaN)
	for _, test := range []struct {
		name    string
		hold    bool
		up      float64
		decide  func(*Store, uint64) error
		held    int
		markers int
	}{
		{name: "a series that ended", hold: true, up: 1, markers: 1},
		{name: "nobody decides", up: 0, markers: 1},
		{name: "not decided", hold: true, up: 0, held: 1},
		{name: "the target went on", hold: true, up: 0, held: 1, decide: func(s *Store, id uint64) error { s.Drop(id); return nil }},
		{name: "the target was down", hold: true, up: 0, held: 1, markers: 1,
			decide: func(s *Store, id uint64) error { return s.Release(t.Context(), id) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := base()
			o := open(t, t.TempDir())
			if test.hold {
				o.HoldMarkers()
			}
			refs := map[string]storage.SeriesRef{}
			scrapeHeld(t, o.Store, b, 1, refs, map[string]float64{"x": 1, "y": 1})
			scrapeHeld(t, o.Store, b+15*second, test.up, refs, map[string]float64{"x": stale})
			held := o.Held()
			require.Len(t, held, test.held)
			if test.held > 0 {
				require.Equal(t, `{job="node"}`, held[0].Target.String())
				require.Equal(t, b+15*second, held[0].At)
				if test.decide != nil {
					require.NoError(t, test.decide(o.Store, held[0].ID))
					require.Empty(t, o.Held())
					// A second decision changes nothing.
					require.NoError(t, test.decide(o.Store, held[0].ID))
				}
			}
			require.Equal(t, test.markers, markersOf(t, o.Store, "x"))
			require.Zero(t, markersOf(t, o.Store, "y"))
		})
	}
}

// A marker that is decided late finds its place before what was scraped since.
func TestHeldMarkerComesLate(t *testing.T) {
	b := base()
	o := open(t, t.TempDir())
	o.HoldMarkers()
	refs := map[string]storage.SeriesRef{}
	scrapeHeld(t, o.Store, b, 1, refs, map[string]float64{"x": 1})
	scrapeHeld(t, o.Store, b+15*second, 0, refs, map[string]float64{"x": math.Float64frombits(value.StaleNaN)})
	scrapeHeld(t, o.Store, b+30*second, 1, refs, map[string]float64{"x": 2})
	require.NoError(t, o.Release(t.Context(), o.Held()[0].ID))
	got := all(t, o.Store)["x"]
	require.Len(t, got, 3)
	require.True(t, value.IsStaleNaN(got[1].v))
	require.Equal(t, b+15*second, got[1].t)
}
