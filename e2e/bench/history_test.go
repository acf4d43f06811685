package main

import (
	"fmt"
	"io"
	"log/slog"
	"math"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

func TestHistoryIsWhatScrapingWouldHaveLeft(t *testing.T) {
	const targets, series = 2, 200
	l, err := newLoad(t.Context(), targets, series, 15*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	machines, err := l.machines()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{out: io.Discard}
	dir := filepath.Join(t.TempDir(), "history")
	h, err := b.writeHistory(t.Context(), dir, machines, 3*time.Hour+30*time.Minute, 15*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	o := tsdb.DefaultOptions()
	db, err := tsdb.Open(dir, slog.New(slog.DiscardHandler), nil, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if len(db.Blocks()) == 0 {
		t.Error("three and a half hours made no block")
	}
	q, err := db.Querier(math.MinInt64, math.MaxInt64)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	set := q.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "job", ".+"))
	var got, samples int64
	ups := 0
	for set.Next() {
		got++
		it := set.At().Iterator(nil)
		last := int64(0)
		for it.Next() == chunkenc.ValFloat {
			samples++
			at, v := it.At()
			if set.At().Labels().Get(model.MetricNameLabel) == "up" {
				if last > 0 && at-last != 15_000 || v != 1 {
					t.Fatalf("up is %v at %d, %d after the last one", v, at, at-last)
				}
				ups++
			}
			last = at
			if at < h.from.UnixMilli() || at >= h.to.UnixMilli() {
				t.Fatalf("a sample at %d is not within the history", at)
			}
		}
	}
	if err := set.Err(); err != nil {
		t.Fatal(err)
	}
	if got != h.series || samples != h.samples {
		t.Errorf("%d samples of %d series lie there, %d of %d were said to", samples, got, h.samples, h.series)
	}
	if want := targets * 14 * 60; ups != want {
		t.Errorf("%d samples of up, wanted %d", ups, want)
	}
	for i, m := range machines {
		if got, want := m.labels.Get("instance"), l.listeners[i].Addr().String(); got != want {
			t.Errorf("target %d is %s, not %s", i, got, want)
		}
	}
}

func TestDifferences(t *testing.T) {
	vector := func(values ...string) answer {
		a := answer{kind: "matrix"}
		for i, v := range values {
			a.series = append(a.series, answered{fmt.Sprint(i), []value{{"1", v}}})
		}
		return a
	}
	late, renamed, longer := vector("1"), vector("1"), vector("1")
	late.series[0].values[0].at = "2"
	renamed.series[0].labels = "x"
	longer.series[0].values = append(longer.series[0].values, value{"2", "1"})
	for name, c := range map[string]struct {
		x, y      answer
		different bool
		most      float64
	}{
		"equal":     {vector("1", "NaN"), vector("1", "NaN"), false, 0},
		"a digit":   {vector("1"), vector("1.5"), false, 1. / 3},
		"not so":    {vector("1"), vector("NaN"), true, 0},
		"more":      {vector("1"), vector("1", "2"), true, 0},
		"late":      {vector("1"), late, true, 0},
		"renamed":   {vector("1"), renamed, true, 0},
		"longer":    {vector("1"), longer, true, 0},
		"of a kind": {vector("1"), answer{kind: "vector", series: vector("1").series}, true, 0},
	} {
		what, most := differences(c.x, c.y)
		if (what != "") != c.different || math.Abs(most-c.most) > 1e-12 {
			t.Errorf("%s: %q, %v", name, what, most)
		}
	}
}

func TestSpacing(t *testing.T) {
	begin := time.Unix(1000, 0)
	at := func(seconds ...int) (s []sample) {
		for _, n := range seconds {
			s = append(s, sample{begin.Add(time.Duration(n) * time.Second), 1})
		}
		return s
	}
	for name, c := range map[string]struct {
		of              []sample
		to              int
		missed, longest int
	}{
		"whole":          {at(0, 15, 30), 40, 0, 15},
		"one under way":  {at(0, 15, 30), 50, 0, 15},
		"two missed":     {at(0, 15, 60), 70, 2, 45},
		"none any more":  {at(0, 15), 76, 3, 15},
		"a bit too late": {at(0, 20, 30), 40, 0, 20},
	} {
		made, missed, longest := spacing(c.of, begin.Add(time.Duration(c.to)*time.Second), 15*time.Second)
		if made != len(c.of) || missed != c.missed || longest != time.Duration(c.longest)*time.Second {
			t.Errorf("%s: %d made, %d missed, longest %s", name, made, missed, longest)
		}
	}
}

func TestBrief(t *testing.T) {
	for d, want := range map[time.Duration]string{
		6 * time.Hour: "6h", time.Minute: "1m", 30 * time.Second: "30s", 90 * time.Second: "1m30s", 10 * time.Hour: "10h", 10 * time.Minute: "10m",
	} {
		if got := brief(d); got != want {
			t.Errorf("%s is %q, wanted %q", d, got, want)
		}
	}
}
