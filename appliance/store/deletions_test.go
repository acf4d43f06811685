package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// timesIn are the times of the one series of q, by a querier for [from, to], with hints for the same or without.
func timesIn(t *testing.T, q storage.Queryable, from, to int64, hints bool) []int64 {
	t.Helper()
	querier, err := q.Querier(from, to)
	if err != nil {
		t.Fatal(err)
	}
	defer querier.Close()
	var h *storage.SelectHints
	if hints {
		h = &storage.SelectHints{Start: from, End: to}
	}
	var times []int64
	var it chunkenc.Iterator
	set := querier.Select(context.Background(), true, h, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	for set.Next() {
		for it = set.At().Iterator(it); it.Next() != chunkenc.ValNone; {
			times = append(times, it.AtT())
		}
		if err := it.Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := set.Err(); err != nil {
		t.Fatal(err)
	}
	return times
}

// panics is whether reading ends in a panic.
func panics(t *testing.T, q storage.Queryable, from, to int64) (does bool) {
	t.Helper()
	defer func() { does = recover() != nil }()
	timesIn(t, q, from, to, false)
	return
}

func TestDeletionsDoNotEndQueries(t *testing.T) {
	const step = 15_000
	begin := time.Now().Truncate(2*time.Hour).UnixMilli() - 4*3_600_000
	at := func(i int) int64 { return begin + int64(i)*step }
	var all []int64
	for i := range 200 {
		all = append(all, at(i))
	}
	for _, tc := range []struct {
		name     string
		block    bool
		deleted  [][2]int
		from, to int
	}{
		{name: "the end within the second deletion", deleted: [][2]int{{10, 20}, {30, 40}}, from: 0, to: 35},
		{name: "cut at both ends before a deletion", deleted: [][2]int{{150, 160}}, from: 50, to: 100},
		{name: "in a block", block: true, deleted: [][2]int{{100, 110}}, from: 10, to: 50},
		{name: "all that is newer", deleted: [][2]int{{120, 1000}}, from: 50, to: 90},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			o := open(t, dir)
			o.append(1, all...)
			if tc.block {
				if err := o.local.db.Load().CompactHead(tsdb.NewRangeHead(o.local.db.Load().Head(), begin, at(199))); err != nil {
					t.Fatal(err)
				}
			}
			kept := slices.Clone(all)
			for _, d := range tc.deleted {
				if err := o.Delete(context.Background(), at(d[0]), at(d[1]), labels.MustNewMatcher(labels.MatchEqual, "job", "node")); err != nil {
					t.Fatal(err)
				}
				kept = slices.DeleteFunc(kept, func(ts int64) bool { return ts >= at(d[0]) && ts <= at(d[1]) })
			}
			if !panics(t, o.local.db.Load(), at(tc.from), at(tc.to)) {
				t.Error("the TSDB does not panic any more: the guard in deletions.go can go, or this test does not test it")
			}
			check := func() {
				t.Helper()
				for from := range 12 {
					for to := from; to < 12; to++ {
						from, to := at(tc.from)+int64(from-6)*step/3, at(tc.to)+int64(to-6)*step/3
						want := slices.DeleteFunc(slices.Clone(kept), func(ts int64) bool { return ts < from || ts > to })
						for _, hints := range []bool{true, false} {
							if got := timesIn(t, o.Store, from, to, hints); fmt.Sprint(got) != fmt.Sprint(want) {
								t.Fatalf("[%d, %d], hints %v:\n got %v\nwant %v", from, to, hints, got, want)
							}
						}
					}
				}
				seek(t, o.Store, kept, at(tc.from), at(tc.to))
				readChunks(t, o.Store, at(tc.from), at(tc.to))
			}
			check()
			o.stop()
			o = open(t, dir) // It knows of deletions by those before.
			check()
		})
	}
}

// seek looks whether each sample of [from, to] is found, and none behind.
func seek(t *testing.T, q storage.Queryable, kept []int64, from, to int64) {
	t.Helper()
	querier, err := q.Querier(from, to)
	if err != nil {
		t.Fatal(err)
	}
	defer querier.Close()
	set := querier.Select(context.Background(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	for set.Next() {
		for ts := from - 20_000; ts < to+40_000; ts += 7_000 {
			want := int64(-1)
			if i, _ := slices.BinarySearch(kept, max(ts, from)); i < len(kept) && kept[i] <= to {
				want = kept[i]
			}
			got, it := int64(-1), set.At().Iterator(nil)
			if it.Seek(ts) != chunkenc.ValNone {
				got = it.AtT()
			} else if it.Next() != chunkenc.ValNone {
				t.Errorf("seek %d in [%d, %d]: a sample after the end", ts, from, to)
			}
			if got != want {
				t.Errorf("seek %d in [%d, %d]: got %d, want %d", ts, from, to, got, want)
			}
		}
	}
	if err := set.Err(); err != nil {
		t.Fatal(err)
	}
}

func readChunks(t *testing.T, q storage.ChunkQueryable, from, to int64) {
	t.Helper()
	querier, err := q.ChunkQuerier(from, to)
	if err != nil {
		t.Fatal(err)
	}
	defer querier.Close()
	found := false
	set := querier.Select(context.Background(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	for set.Next() {
		it := set.At().Iterator(nil)
		for it.Next() {
			found = true
		}
		if err := it.Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := set.Err(); err != nil || !found {
		t.Fatalf("read chunks: found %v, %v", found, err)
	}
}

func TestDeletionWaitsForQueries(t *testing.T) {
	o := open(t, t.TempDir())
	now := time.Now().UnixMilli()
	o.append(1, now-1000, now)
	q, err := o.Querier(now-1000, now)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	all := labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+")
	if err := o.Delete(ctx, now, now, all); !errors.Is(err, context.Canceled) {
		t.Errorf("delete beside a query: %v, want %v", err, context.Canceled)
	}
	// One that comes now is none to wait for.
	later, err := o.Querier(now-1000, now)
	if err != nil {
		t.Fatal(err)
	}
	defer later.Close()
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if err := o.Delete(context.Background(), now, now, all); err != nil {
		t.Error(err)
	}
	if got := timesIn(t, o.Store, now-1000, now, true); len(got) != 1 || got[0] != now-1000 {
		t.Errorf("after deleting: %v", got)
	}
}
