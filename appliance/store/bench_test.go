package store

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/compression"
)

// clusterLabels are ten labels as a target in a cluster has them: 1,000 series
// a target, all strings of a series parts of one text. Distinct for each i.
func clusterLabels(i int) labels.Labels {
	target, n := i/1000, i%1000
	text := fmt.Sprintf("__name__ http_request_duration_seconds_%d cluster production-eu-1 container application-%d "+
		"endpoint metrics handler /api/v1/resource/%d instance 10.0.%d.%d:8080 job monitoring/application-%d "+
		"method GET namespace team-%d pod application-%d-7d4b9c6f5-x%05d",
		n/20, target%20, n%20, target/250, target%250, target%20, target%20, target%20, target)
	f := strings.Fields(text)
	b := labels.NewScratchBuilder(len(f) / 2)
	for j := 0; j < len(f); j += 2 {
		b.Add(f[j], f[j+1])
	}
	b.Sort()
	return b.Labels()
}

// stock is the TSDB below upstream's fan-out, as stock Prometheus wires it.
func stock(t testing.TB, dir string) (storage.Appendable, *tsdb.DB) {
	t.Helper()
	opts := tsdb.DefaultOptions()
	opts.WALCompression = compression.Snappy
	opts.HeadChunksWriteQueueSize = 0
	opts.OutOfOrderTimeWindow = defaultOOOWindow.Milliseconds()
	opts.EnableExemplarStorage = true
	opts.MaxExemplars = 100000
	db, err := tsdb.Open(dir, nopLogger(), prometheus.NewRegistry(), opts, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := remote.NewStorage(nopLogger(), prometheus.NewRegistry(), db.StartTime, dir, time.Second, nil, false)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return storage.NewFanout(nopLogger(), db, r), db
}

func heapBytes() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// scrapeOnce appends one sample to each series and returns the labels, as the
// scrape cache keeps them.
func scrapeOnce(t testing.TB, to storage.Appendable, series int, at int64) []labels.Labels {
	t.Helper()
	cache := make([]labels.Labels, 0, series)
	for i := 0; i < series; i += 1000 {
		app := to.Appender(context.Background())
		for j := i; j < min(i+1000, series); j++ {
			l := clusterLabels(j)
			if _, err := app.Append(0, l, at, float64(j)); err != nil {
				t.Fatal(err)
			}
			cache = append(cache, l)
		}
		if err := app.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	return cache
}

// BenchmarkBytesPerSeries measures the heap that a series costs in the head and
// the scrape cache together, when it is new and after a restart.
func BenchmarkBytesPerSeries(b *testing.B) {
	const series = 100_000
	measure := func(b *testing.B, to storage.Appendable, before int64) {
		start := time.Now()
		cache := scrapeOnce(b, to, series, time.Now().UnixMilli())
		took := time.Since(start)
		b.ReportMetric(float64(heapBytes()-before)/series, "B/series")
		b.ReportMetric(float64(took.Nanoseconds())/series, "ns/series")
		b.ReportMetric(0, "ns/op")
		runtime.KeepAlive(cache)
	}
	default16k := func(o *Options) { o.StripeSize = 0 }
	b.Run("stock", func(b *testing.B) {
		for range b.N {
			to, _ := stock(b, b.TempDir())
			measure(b, to, heapBytes())
		}
	})
	b.Run("interned", func(b *testing.B) {
		for range b.N {
			o := open(b, b.TempDir(), default16k)
			measure(b, o, heapBytes())
			b.ReportMetric(float64(o.strings.len()), "strings")
			o.stop()
		}
	})
	filled := func(b *testing.B) string {
		dir := b.TempDir()
		o := open(b, dir, default16k)
		scrapeOnce(b, o, series, time.Now().UnixMilli()-1000)
		o.stop()
		return dir
	}
	b.Run("stock after restart", func(b *testing.B) {
		for range b.N {
			dir := filled(b)
			before := heapBytes()
			to, _ := stock(b, dir+"/tsdb")
			measure(b, to, before)
		}
	})
	b.Run("interned after restart", func(b *testing.B) {
		for range b.N {
			dir := filled(b)
			before := heapBytes()
			o := open(b, dir, default16k)
			measure(b, o, before)
			o.stop()
		}
	})
}

// BenchmarkAppend measures a sample of a series whose reference is known.
func BenchmarkAppend(b *testing.B) {
	const series = 10_000
	run := func(b *testing.B, to storage.Appendable) {
		refs := make([]storage.SeriesRef, series)
		at := time.Now().UnixMilli()
		app := to.Appender(context.Background())
		var sets []labels.Labels
		for i := range refs {
			l := clusterLabels(i)
			ref, err := app.Append(0, l, at, 1)
			if err != nil {
				b.Fatal(err)
			}
			refs[i], sets = ref, append(sets, l)
		}
		if err := app.Commit(); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			at += 1000
			app := to.Appender(context.Background())
			for i, ref := range refs {
				if _, err := app.Append(ref, sets[i], at, float64(i)); err != nil {
					b.Fatal(err)
				}
			}
			// The hand-over is measured, not the write-ahead log.
			b.StopTimer()
			if err := app.Rollback(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/series, "ns/sample")
	}
	b.Run("stock", func(b *testing.B) {
		to, _ := stock(b, b.TempDir())
		run(b, to)
	})
	b.Run("store", func(b *testing.B) { run(b, open(b, b.TempDir(), func(o *Options) { o.StripeSize = 0 })) })
}

// BenchmarkInternLookup is what a string costs when a series is created.
func BenchmarkInternLookup(b *testing.B) {
	in := newInterner()
	for i := range 100_000 {
		l := clusterLabels(i)
		if err := in.PreCreation(l); err != nil {
			b.Fatal(err)
		}
		in.PostCreation(l)
	}
	l := clusterLabels(4711)
	b.ReportAllocs()
	for b.Loop() {
		if err := in.PreCreation(l); err != nil {
			b.Fatal(err)
		}
	}
}

// cpuTime is what the process has used: on a busy machine it says more than
// the clock.
func cpuTime(t testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkReplay measures a start after kill -9: series and samples from the
// write-ahead log alone.
func BenchmarkReplay(b *testing.B) {
	const series, samples = 200_000, 5
	dir := b.TempDir()
	o := open(b, dir, func(o *Options) { o.StripeSize = 0 })
	at := time.Now().UnixMilli()
	for i := range samples {
		scrapeOnce(b, o, series, at+int64(i)*1000)
	}
	o.stop()
	var cpu time.Duration
	report := func(b *testing.B) {
		b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N)/series, "cpu-ns/series")
	}
	b.Run("stock", func(b *testing.B) {
		cpu = 0
		for range b.N {
			before := cpuTime(b)
			opts := tsdb.DefaultOptions()
			opts.WALCompression = compression.Snappy
			opts.HeadChunksWriteQueueSize = 0
			opts.OutOfOrderTimeWindow = defaultOOOWindow.Milliseconds()
			opts.EnableExemplarStorage = true
			opts.MaxExemplars = 100000
			db, err := tsdb.Open(dir+"/tsdb", nopLogger(), prometheus.NewRegistry(), opts, nil)
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			cpu += cpuTime(b) - before
			if err := db.Close(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		report(b)
	})
	b.Run("store", func(b *testing.B) {
		cpu = 0
		for range b.N {
			before := cpuTime(b)
			o := open(b, dir, func(o *Options) { o.StripeSize = 0 })
			b.StopTimer()
			cpu += cpuTime(b) - before
			o.stop()
			b.StartTimer()
		}
		report(b)
	})
}
