package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
)

const (
	// smallSeries and smallSamples are what each of many blocks has.
	smallSeries, smallSamples = 100, 24
	// blockLength is the time of each.
	blockLength = 2 * time.Hour
	// moreMemory is what reading many blocks may cost, in MiB.
	moreMemory = 150
)

// bucketMemory compares two replicas that do nothing: one has a bucket of many blocks, the other an empty one.
func (b *bench) bucketMemory(ctx context.Context) error {
	o := b.bucket
	dir := filepath.Join(b.dir, "bucket-memory")
	begin := time.Now()
	blocks := filepath.Join(dir, "prepared")
	from := begin.Truncate(blockLength).Add(-time.Duration(o.blocks) * blockLength)
	for n := range o.blocks {
		if err := writeSmallBlock(blocks, from.Add(time.Duration(n)*blockLength)); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	config := func(name string) string {
		return "{type: FILESYSTEM, config: {directory: " + strconv.Quote(filepath.Join(dir, name)) + "}}"
	}
	file := filepath.Join(dir, "bucket.yml")
	if err := os.WriteFile(file, []byte(config("full")+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "full"), 0o755), os.Mkdir(filepath.Join(dir, "empty"), 0o755)); err != nil {
		return fmt.Errorf("create a bucket: %w", err)
	}
	if err := b.uploadBlocks(ctx, blocks, file); err != nil {
		return err
	}
	b.say("bucket: %d blocks of %d series and %d samples each, written and uploaded in %s", o.blocks, smallSeries, smallSamples, time.Since(begin).Round(time.Second))
	var sides []*side
	defer func() {
		for _, s := range sides {
			s.end(syscall.SIGKILL)
		}
	}()
	for _, name := range []string{"full", "empty"} {
		c, err := b.newBucketReplicas(filepath.Join(dir, "tocsin-"+name), bucketYML, config(name), 1)
		if err != nil {
			return err
		}
		s, err := c.start(0)
		if err != nil {
			return err
		}
		sides = append(sides, s)
		if _, err := s.waitReady(ctx, b.readyTimeout); err != nil {
			return err
		}
	}
	if err := waitLoaded(ctx, sides[0].url(), o.blocks); err != nil {
		return err
	}
	b.say("bucket: both are idle for %s, load average %s", o.idle, loadAverage())
	idle, highest, err := watchMemory(ctx, sides, o.idle)
	if err != nil {
		return err
	}
	first, err := usageOf(sides)
	if err != nil {
		return err
	}
	// Everything is touched: the labels of all blocks, and what is counted of all samples.
	a := &asked{name: ours, url: sides[0].url(), client: &http.Client{Transport: &http.Transport{}, Timeout: queryLimit}}
	defer a.client.CloseIdleConnections()
	end := from.Add(time.Duration(o.blocks) * blockLength)
	got, err := a.ask(ctx, question{expr: "sum(count_over_time(bench_small[" + strconv.Itoa(o.blocks*2) + "h]))", end: end.Add(-time.Millisecond)})
	if err != nil {
		return err
	}
	if want := strconv.Itoa(o.blocks * smallSeries * smallSamples); len(got.series) != 1 || got.series[0].values[0].text != want {
		return fmt.Errorf("%v samples are there, wanted %s", got.series, want)
	}
	asked, _, err := watchMemory(ctx, sides, o.idle/2)
	if err != nil {
		return err
	}
	b.compare(fmt.Sprintf("bucket memory: a replica of tocsin, idle for %s", o.idle), fmt.Sprintf("%d blocks", o.blocks), "empty bucket", []row{
		{what: "anonymous memory, mean, MiB", ours: idle[0], stock: idle[1], format: "%.1f"},
		{what: "the same, highest, MiB", ours: highest[0], stock: highest[1], format: "%.1f"},
		{what: "mean, more than with an empty bucket, MiB", ours: idle[0] - idle[1], limit: moreMemory, absolute: true, withoutStock: true, format: "%.1f"},
		{what: "CPU seconds since the start", ours: first[0].cpu.Seconds(), stock: first[1].cpu.Seconds()},
		{what: "anonymous memory after a query of all blocks, mean, MiB", ours: asked[0], stock: asked[1], format: "%.1f"},
	})
	return nil
}

// writeSmallBlock makes a block of the two hours from a time on.
func writeSmallBlock(dir string, from time.Time) (err error) {
	w, err := tsdb.NewBlockWriter(slog.New(slog.DiscardHandler), dir, blockLength.Milliseconds())
	if err != nil {
		return fmt.Errorf("write a block: %w", err)
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	ctx := context.Background()
	app := w.Appender(ctx)
	for n := range smallSeries {
		s := labels.FromStrings(model.MetricNameLabel, "bench_small", "job", fmt.Sprintf("app-%02d", n%10), "instance", fmt.Sprintf("10.0.0.%d:9100", n))
		var ref storage.SeriesRef
		for i := range smallSamples {
			if ref, err = app.Append(ref, s, from.Add(time.Duration(i)*blockLength/smallSamples).UnixMilli(), float64(n+i)); err != nil {
				return errors.Join(fmt.Errorf("append to a block: %w", err), app.Rollback())
			}
		}
	}
	if err := app.Commit(); err != nil {
		return fmt.Errorf("append to a block: %w", err)
	}
	if _, err := w.Flush(ctx); err != nil {
		return fmt.Errorf("write a block: %w", err)
	}
	return nil
}

func usageOf(sides []*side) ([]usage, error) {
	all := make([]usage, len(sides))
	for i, s := range sides {
		var err error
		if all[i], err = s.usage(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// watchMemory samples the anonymous memory of each side, in MiB.
func watchMemory(ctx context.Context, sides []*side, length time.Duration) (mean, highest []float64, err error) {
	mean, highest = make([]float64, len(sides)), make([]float64, len(sides))
	samples := 0.0
	for end := time.Now().Add(length); time.Now().Before(end); samples++ {
		if err := sleep(ctx, 500*time.Millisecond); err != nil {
			return nil, nil, err
		}
		all, err := usageOf(sides)
		if err != nil {
			return nil, nil, err
		}
		for i, u := range all {
			v := mib(float64(u.anonymous))
			mean[i], highest[i] = mean[i]+v, max(highest[i], v)
		}
	}
	for i := range mean {
		mean[i] /= samples
	}
	return mean, highest, nil
}
