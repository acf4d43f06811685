package store

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
)

// BenchmarkImport imports an hour of 10,000 series as a block, as it was sent and with its clock corrected, and the
// longest interval that goes to the head.
func BenchmarkImport(b *testing.B) {
	const series = 10_000
	b.Run("block", func(b *testing.B) { benchImport(b, series, 60*minute, 0) })
	b.Run("block shifted", func(b *testing.B) { benchImport(b, series, 60*minute, 1) })
	b.Run("head", func(b *testing.B) { benchImport(b, series, 10*minute, 0) })
}

func benchImport(b *testing.B, series int, length, shift int64) {
	from := base()
	in := Interval{from, from + length}
	samples := floats(from+second, from+length-2, 15*second)
	chks := encoded(b, samples, 120)
	f := &set{}
	sets := make([]labels.Labels, series)
	for i := range sets {
		sets[i] = clusterLabels(i)
	}
	sortLabels(sets)
	for _, l := range sets {
		f.series = append(f.series, ForeignSeries{Labels: l, Interval: in, Shift: shift, Chunks: chks})
	}
	b.ReportAllocs()
	b.ResetTimer()
	total := 0
	var spent time.Duration
	for b.Loop() {
		b.StopTimer()
		o := open(b, b.TempDir(), func(o *Options) { o.StripeSize = 0 })
		for t := in.From - 2*minute; t <= in.From; t += 15 * second {
			app := o.Appender(context.Background())
			for _, l := range sets {
				if _, err := app.Append(0, l, t, 1); err != nil {
					b.Fatal(err)
				}
			}
			if err := app.Commit(); err != nil {
				b.Fatal(err)
			}
		}
		app := o.Appender(context.Background())
		for _, l := range sets {
			if _, err := app.Append(0, l, in.To, 1); err != nil {
				b.Fatal(err)
			}
		}
		if err := app.Commit(); err != nil {
			b.Fatal(err)
		}
		f.at = 0
		b.StartTimer()
		start := time.Now()
		res, err := o.Import(context.Background(), in, f, ImportOptions{Kind: GapReplica})
		spent += time.Since(start)
		b.StopTimer()
		if err != nil || res.Series != int64(series) {
			b.Fatal(fmt.Sprint(res.Series), err)
		}
		total += int(res.Samples)
		o.stop()
		b.StartTimer()
	}
	b.ReportMetric(float64(total)/spent.Seconds(), "samples/s")
}

func sortLabels(sets []labels.Labels) { slices.SortFunc(sets, labels.Compare) }
