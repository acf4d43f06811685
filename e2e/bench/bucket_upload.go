package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"
)

// shipment is what one side has written into its bucket.
type shipment struct {
	windows map[int64]*windowPuts // by their begin, in Unix milliseconds
	// compacted and other are what is of no window: what compaction writes, and marks and whatever else there is.
	compacted, other putSum
}

// windowPuts is what a side has written of one window.
type windowPuts struct {
	putSum
	byFile   map[string]int64 // bytes by the kind of file
	complete map[string]bool  // replicas whose block is there; of tocsin any that had the window whole
	samples  []int64          // of each block
}

type putSum struct {
	requests int
	bytes    int64
}

func (s *putSum) add(p put) { s.requests, s.bytes = s.requests+1, s.bytes+p.bytes }

// blockMeta is what a meta.json says.
type blockMeta struct {
	MinTime int64 `json:"minTime"`
	Stats   struct {
		NumSamples int64 `json:"numSamples"`
	} `json:"stats"`
	Compaction struct {
		Level int `json:"level"`
	} `json:"compaction"`
	Thanos struct {
		Labels     map[string]string `json:"labels"`
		Downsample struct {
			Resolution int64 `json:"resolution"`
		} `json:"downsample"`
	} `json:"thanos"`
}

// sortPuts tells what was written of which window. metas has the meta.json of the blocks that are whole. Blocks of tocsin say by
// their names which window they are, so that what was given up on the way counts too.
func sortPuts(puts []put, metas map[ulid.ULID]blockMeta, window time.Duration) shipment {
	s := shipment{windows: map[int64]*windowPuts{}}
	seen := map[ulid.ULID]bool{}
	for _, p := range puts {
		first, file, _ := strings.Cut(p.object, "/")
		id, err := ulid.ParseStrict(first)
		kind := "chunks"
		switch {
		case err != nil || strings.HasSuffix(file, "-mark.json"):
			s.other.add(p)
			continue
		case file == "index" || file == metaFile:
			kind = file
		}
		m, there := metas[id]
		begin, whole, named := windowOf(id)
		switch {
		case named:
		case there && m.Compaction.Level == 1 && m.Thanos.Downsample.Resolution == 0:
			begin = m.MinTime - m.MinTime%window.Milliseconds()
		default:
			s.compacted.add(p)
			continue
		}
		w := s.windows[begin]
		if w == nil {
			w = &windowPuts{byFile: map[string]int64{}, complete: map[string]bool{}}
			s.windows[begin] = w
		}
		w.add(p)
		w.byFile[kind] += p.bytes
		if there && !seen[id] {
			seen[id] = true
			w.samples = append(w.samples, m.Stats.NumSamples)
			if whole || !named {
				w.complete[m.Thanos.Labels["replica"]] = true
			}
		}
	}
	return s
}

// readMetas reads, of the blocks that were written, the meta.json that are not known yet.
func readMetas(root string, puts []put, metas map[ulid.ULID]blockMeta) error {
	for _, p := range puts {
		id, err := ulid.ParseStrict(path.Dir(p.object))
		if _, known := metas[id]; err != nil || known || path.Base(p.object) != metaFile {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, id.String(), metaFile))
		if errors.Is(err, os.ErrNotExist) {
			continue // It was deleted again.
		}
		var m blockMeta
		if err == nil {
			err = json.Unmarshal(text, &m)
		}
		if err != nil {
			return fmt.Errorf("read the meta.json of a block: %w", err)
		}
		metas[id] = m
	}
	return nil
}

// shipper is a side of the upload.
type shipper struct {
	meter *meter
	root  string // its bucket as a folder
	need  int    // replicas whose blocks make a window complete
	metas map[ulid.ULID]blockMeta
	shipment
}

func (s *shipper) look(window time.Duration) error {
	puts := s.meter.taken()
	if err := readMetas(s.root, puts, s.metas); err != nil {
		return err
	}
	s.shipment = sortPuts(puts, s.metas, window)
	return nil
}

// both are the begins of the windows from a time on, in order, that are complete on both sides.
func both(x, y *shipper, from time.Time, window time.Duration) (begins []int64) {
	complete := func(s *shipper, begin int64) bool {
		w := s.windows[begin]
		return w != nil && len(w.complete) >= s.need
	}
	for begin := from.UnixMilli(); begin < time.Now().UnixMilli(); begin += window.Milliseconds() {
		if complete(x, begin) && complete(y, begin) {
			begins = append(begins, begin)
		}
	}
	return begins
}

// bucketUpload lets three replicas of either side upload the same, and counts what that takes.
func (b *bench) bucketUpload(ctx context.Context) (err error) {
	o := b.bucket
	l, err := newLoad(ctx, o.targets, o.series, o.interval)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	targets, err := l.fileSD()
	if err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "bucket-upload")
	s3, err := b.startS3(ctx, dir, ours, stock)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s3.end()) }()
	sides := map[string]*shipper{ours: {need: 1}, stock: {need: bucketReplicas}}
	for name, s := range sides {
		s.root, s.metas = filepath.Join(s3.root, name), map[ulid.ULID]blockMeta{}
		if s.meter, err = newMeter(ctx, s3, name, 0); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.meter.Close()) }()
	}
	yml := bucketYML + fmt.Sprintf("  scrape_interval: %[1]s\n  scrape_timeout: %[1]s\n", o.interval) +
		"scrape_configs:\n  - job_name: apps\n    file_sd_configs: [{files: [targets.json]}]\n    relabel_configs: [{source_labels: [__meta_app], target_label: job}]\n"
	short := []string{"--storage.tsdb.min-block-duration=" + o.window.String(), "--storage.tsdb.max-block-duration=" + o.window.String()}

	c, err := b.newBucketReplicas(filepath.Join(dir, ours), yml, s3Config(sides[ours].meter.address, ours), bucketReplicas)
	if err != nil {
		return err
	}
	defer c.end()
	if err := os.WriteFile(filepath.Join(c.dir, "targets.json"), targets, 0o644); err != nil {
		return fmt.Errorf("write the targets: %w", err)
	}
	peers := &side{name: stock}
	defer peers.end(syscall.SIGKILL)
	if err := b.startSidecars(peers, filepath.Join(dir, stock), yml, targets, s3Config(sides[stock].meter.address, stock), short); err != nil {
		return err
	}
	for i := range c.replicas {
		if _, err := c.start(i, short...); err != nil {
			return err
		}
	}
	if _, err := peers.waitReady(ctx, b.readyTimeout); err != nil {
		return err
	}
	own := &side{name: ours}
	for _, r := range c.replicas {
		if _, err := r.waitReady(ctx, b.readyTimeout); err != nil {
			return err
		}
		if err := r.waitComplete(ctx, b.heal.limit); err != nil {
			return err
		}
		own.processes = append(own.processes, r.processes...)
	}
	if err := sleep(ctx, settleTime*o.interval); err != nil { // All targets have been scraped.
		return err
	}
	from := time.Now().Truncate(o.window).Add(o.window)
	ownBefore, peersBefore, err := usages(own, peers)
	if err != nil {
		return err
	}
	b.say("bucket: %d windows of %s, %d × %d series every %s, load average %s", o.windows, o.window, o.targets, o.series, o.interval, loadAverage())
	var begins []int64
	limited, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("no %d windows were complete on both sides within %s", o.windows, o.limit))
	defer cancel()
	for len(begins) < o.windows {
		if err := sleep(limited, time.Second); err != nil {
			for name, s := range sides {
				b.say("note: %s has %d windows, %d and %d other requests", name, len(s.windows), s.compacted.requests, s.other.requests)
			}
			return err
		}
		for _, s := range sides {
			if err := s.look(o.window); err != nil {
				return err
			}
		}
		begins = both(sides[ours], sides[stock], from, o.window)
	}
	ownAfter, peersAfter, err := usages(own, peers)
	if err != nil {
		return err
	}
	b.uploadTable(begins, sides[ours], sides[stock], ownAfter.cpu-ownBefore.cpu, peersAfter.cpu-peersBefore.cpu)
	return nil
}

func usages(x, y *side) (u, v usage, err error) {
	if u, err = x.usage(); err != nil {
		return u, v, err
	}
	v, err = y.usage()
	return u, v, err
}

// uploadTable prints what the windows have cost.
func (b *bench) uploadTable(begins []int64, x, y *shipper, ownCPU, peersCPU time.Duration) {
	n := float64(len(begins))
	sum := func(of func(*windowPuts) float64) (r row) {
		for _, begin := range begins {
			r.ours += of(x.windows[begin]) / n
			r.stock += of(y.windows[begin]) / n
		}
		return r
	}
	line := func(what, format string, limit float64, of func(*windowPuts) float64) row {
		r := sum(of)
		r.what, r.format, r.limit = what, format, limit
		return r
	}
	bytesOf := func(kind string) func(*windowPuts) float64 {
		return func(w *windowPuts) float64 { return float64(w.byFile[kind]) / 1024 }
	}
	rows := []row{
		line("PUT requests", "%.2f", 0.36, func(w *windowPuts) float64 { return float64(w.requests) }),
		line("KiB written", "%.1f", 0.36, func(w *windowPuts) float64 { return float64(w.bytes) / 1024 }),
		line("of it chunks", "%.1f", 0, bytesOf("chunks")),
		line("of it index", "%.1f", 0, bytesOf("index")),
		line("of it meta.json", "%.1f", 0, bytesOf(metaFile)),
		line("blocks", "%.2f", 0, func(w *windowPuts) float64 { return float64(len(w.samples)) }),
		line("samples of a block, mean", "%.0f", 0, func(w *windowPuts) (mean float64) {
			for _, s := range w.samples {
				mean += float64(s) / float64(len(w.samples))
			}
			return mean
		}),
		{what: "in the whole run: PUT requests of compaction", ours: float64(x.compacted.requests), stock: float64(y.compacted.requests), format: "%.0f"},
		{what: "the same, KiB", ours: float64(x.compacted.bytes) / 1024, stock: float64(y.compacted.bytes) / 1024, format: "%.1f"},
		{what: "PUT requests of marks and whatever else", ours: float64(x.other.requests), stock: float64(y.other.requests), format: "%.0f"},
		{what: "the same, KiB", ours: float64(x.other.bytes) / 1024, stock: float64(y.other.bytes) / 1024, format: "%.1f"},
		{what: "CPU seconds of all processes without the S3 server", ours: ownCPU.Seconds(), stock: peersCPU.Seconds()},
	}
	b.table(fmt.Sprintf("bucket upload: of a window, mean of %d of %s, %d replicas, %d × %d series every %s", len(begins), b.bucket.window,
		bucketReplicas, b.bucket.targets, b.bucket.series, b.bucket.interval), rows)
}

// startSidecars starts Prometheus with a sidecar that uploads, for each of the replicas.
func (b *bench) startSidecars(to *side, dir, yml string, targets []byte, bucket string, flags []string) error {
	config := filepath.Join(dir, "bucket.yml")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create the directory for the configuration: %w", err)
	}
	if err := errors.Join(os.WriteFile(config, []byte(bucket+"\n"), 0o600), os.WriteFile(filepath.Join(dir, "targets.json"), targets, 0o644)); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	for i := range bucketReplicas {
		file := func(format string) string { return filepath.Join(dir, fmt.Sprintf(format, i)) }
		if err := os.WriteFile(file("prometheus-%d.yml"), fmt.Appendf(nil, yml, i), 0o644); err != nil {
			return fmt.Errorf("write the configuration: %w", err)
		}
		// The replicas of tocsin have theirs at other ports of the same addresses.
		a, err := freeAddressesOn(host(bucketReplicas+i), 3)
		if err != nil {
			return err
		}
		p, err := start(fmt.Sprintf("prometheus %d", i), "http://"+a[0], file("prometheus-%d.log"), b.prometheus, append([]string{
			"--config.file=" + file("prometheus-%d.yml"), "--storage.tsdb.path=" + file("data-%d"), "--web.listen-address=" + a[0],
		}, flags...)...)
		if err != nil {
			return err
		}
		to.processes = append(to.processes, p)
		s, err := start(fmt.Sprintf("thanos sidecar %d", i), "http://"+a[1], file("sidecar-%d.log"), b.thanos, "sidecar",
			"--prometheus.url="+p.url, "--tsdb.path="+file("data-%d"), "--objstore.config-file="+config,
			"--http-address="+a[1], "--grpc-address="+a[2], "--log.level=warn")
		if err != nil {
			return err
		}
		to.processes = append(to.processes, s)
	}
	return nil
}
