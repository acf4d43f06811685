package scrape

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/tsdb/fileutil"
	"github.com/thanos-io/objstore"
	yaml2 "go.yaml.in/yaml/v2"

	"github.com/tocsin-io/tocsin/appliance/config"
)

const (
	// What one bucket_sd_configs reads at most. Beyond that nothing of it is taken, for half of the targets is worse than
	// the last ones.
	maxObjects     = 1000
	maxObjectBytes = 10 << 20
	maxTotalBytes  = 100 << 20

	// lookTimeout bounds one look into the bucket: a client of a hanging bucket would wait for ever.
	lookTimeout = 2 * time.Minute
	// recallPatience bounds the first look where the targets of an earlier run are at hand: they are not kept waiting for longer.
	recallPatience = 5 * time.Second
	// firstPause is until the second look where the first one failed, and doubles from there: a bucket that is away for a moment at
	// the start must not cost a whole refresh interval.
	firstPause = time.Second
	// settled is the age from which an object whose time has not changed is taken for unchanged: providers note the time in
	// seconds, and by clocks of their own.
	settled = time.Minute

	filepathLabel = model.MetaLabelPrefix + "filepath"
	objectLabel   = model.MetaLabelPrefix + "bucket_object"
)

// bucketTargets makes the discoverers of bucket_sd_configs, and has what they share.
type bucketTargets struct {
	bkt objstore.BucketReader
	dir string // of the last good targets, "" for none

	errors prometheus.Counter
	scan   prometheus.Observer

	mtx sync.Mutex
	// running are the discoverers, for the metrics about objects.
	running map[*bucketDiscoverer]struct{}
}

// The names are file_sd's, so that what watches for old target files watches these too: the newer name of the time of an
// object is upstream's, the older one is that of the programs that used to copy such files out of a bucket.
var (
	mtimeDesc = prometheus.NewDesc("prometheus_sd_file_mtime_seconds",
		"Timestamp (mtime) of files read by FileSD. Timestamp is set at read time.", []string{"filename"}, nil)
	timestampDesc = prometheus.NewDesc("prometheus_sd_file_timestamp",
		"Timestamp (mtime) of objects read by bucket_sd_configs. Timestamp is set at read time.", []string{"filename"}, nil)
	successDesc = prometheus.NewDesc("tocsin_bucket_sd_last_success_timestamp_seconds",
		"When all objects with targets below a prefix were last read without an error, 0 for not since the start.", []string{"prefix"}, nil)
)

func newBucketTargets(bkt objstore.BucketReader, dir string, reg prometheus.Registerer) (*bucketTargets, error) {
	t := &bucketTargets{bkt: bkt, dir: dir, running: map[*bucketDiscoverer]struct{}{}}
	var err error
	// Upstream's file_sd has registered these, with nothing that tells one kind from another: both count with the same.
	if t.errors, err = shared(reg, prometheus.NewCounter(prometheus.CounterOpts{
		Name: "prometheus_sd_file_read_errors_total",
		Help: "The number of File-SD read errors.",
	})); err != nil {
		return nil, err
	}
	scan, err := shared(reg, prometheus.NewSummary(prometheus.SummaryOpts{
		Name:       "prometheus_sd_file_scan_duration_seconds",
		Help:       "The duration of the File-SD scan in seconds.",
		Objectives: map[float64]float64{0.5: 0.05, 0.9: 0.01, 0.99: 0.001},
	}))
	if err != nil {
		return nil, err
	}
	t.scan = scan
	if err := reg.Register(t); err != nil {
		return nil, fmt.Errorf("register the metrics of bucket_sd_configs: %w", err)
	}
	return t, nil
}

// shared registers a metric, or gives the one that is registered under its name.
func shared[C prometheus.Collector](reg prometheus.Registerer, c C) (C, error) {
	err := reg.Register(c)
	var there prometheus.AlreadyRegisteredError
	if errors.As(err, &there) {
		if existing, ok := there.ExistingCollector.(C); ok {
			return existing, nil
		}
	}
	if err != nil {
		return c, fmt.Errorf("register the metrics of bucket_sd_configs: %w", err)
	}
	return c, nil
}

// Describe says nothing, which makes it a collector that may add to a name that file_sd has registered.
func (*bucketTargets) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (t *bucketTargets) Collect(ch chan<- prometheus.Metric) {
	times, success := map[string]time.Time{}, map[string]time.Time{}
	t.mtx.Lock()
	for d := range t.running {
		d.mtx.Lock()
		maps.Copy(times, d.times)
		if last, ok := success[d.cfg.Prefix]; !ok || d.success.After(last) {
			success[d.cfg.Prefix] = d.success
		}
		d.mtx.Unlock()
	}
	t.mtx.Unlock()
	for name, at := range times {
		ch <- prometheus.MustNewConstMetric(mtimeDesc, prometheus.GaugeValue, unixSeconds(at), name)
		ch <- prometheus.MustNewConstMetric(timestampDesc, prometheus.GaugeValue, unixSeconds(at), name)
	}
	for prefix, at := range success {
		ch <- prometheus.MustNewConstMetric(successDesc, prometheus.GaugeValue, unixSeconds(at), prefix)
	}
}

func unixSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

// discoverer is config.BucketDiscovery.New.
func (t *bucketTargets) discoverer(cfg *config.BucketSD, logger *slog.Logger) discovery.Discoverer {
	return &bucketDiscoverer{t: t, cfg: *cfg, logger: logger, objects: map[string]*targetObject{}, sent: map[string]int{}}
}

// bucketDiscoverer finds targets in the objects below one prefix. All but what mtx guards belongs to Run's goroutine.
type bucketDiscoverer struct {
	t      *bucketTargets
	cfg    config.BucketSD
	logger *slog.Logger

	// objects are the last good ones.
	objects map[string]*targetObject
	// sent is how many groups of each object upstream knows.
	sent    map[string]int
	problem string // that was logged last

	mtx     sync.Mutex
	times   map[string]time.Time // of the objects, as the bucket says
	success time.Time
}

// targetObject is what one object said.
type targetObject struct {
	Groups   []*targetgroup.Group `json:"groups"`
	Modified time.Time            `json:"modified"`

	bytes int64
	// fixed says that it need not be read again while the time in the bucket stays.
	fixed bool
	fresh bool // and upstream does not know yet
}

// Run looks into the bucket until ctx ends. What it saw last stays while the bucket is away, over a restart too.
func (d *bucketDiscoverer) Run(ctx context.Context, up chan<- []*targetgroup.Group) {
	d.t.mtx.Lock()
	d.t.running[d] = struct{}{}
	d.t.mtx.Unlock()
	defer func() {
		d.t.mtx.Lock()
		delete(d.t.running, d)
		d.t.mtx.Unlock()
	}()
	d.recall()
	bound, soon := lookTimeout, firstPause
	if len(d.objects) > 0 {
		bound = recallPatience
	}
	for whole := false; ; bound = lookTimeout {
		began := time.Now()
		looking, cancel := context.WithTimeout(ctx, bound)
		changed, err := d.look(looking)
		cancel()
		if ctx.Err() != nil {
			return
		}
		d.t.scan.Observe(time.Since(began).Seconds())
		d.note(err, began)
		if !d.send(ctx, up) {
			return
		}
		if changed {
			d.remember()
		}
		pause := time.Duration(d.cfg.RefreshInterval)
		if whole = whole || err == nil; !whole {
			pause, soon = min(pause, soon), min(2*soon, pause)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// note keeps the log short: a bucket that is away says the same every few seconds.
func (d *bucketDiscoverer) note(err error, at time.Time) {
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	if problem != "" && problem != d.problem {
		d.logger.Warn("targets in the bucket could not be read; the last good ones stay", "prefix", d.cfg.Prefix, "err", err)
	}
	if problem == "" && d.problem != "" {
		d.logger.Info("targets in the bucket can be read again", "prefix", d.cfg.Prefix)
	}
	d.problem = problem
	d.mtx.Lock()
	defer d.mtx.Unlock()
	d.times = make(map[string]time.Time, len(d.objects))
	for name, o := range d.objects {
		d.times[name] = o.Modified
	}
	if err == nil {
		d.success = at
	}
}

// look reads what has changed. Its error says what could not be read; the rest is taken all the same.
func (d *bucketDiscoverer) look(ctx context.Context) (changed bool, err error) {
	listed, err := d.list(ctx)
	if err != nil {
		d.t.errors.Inc()
		return false, err
	}
	for name := range d.objects {
		if _, there := listed[name]; !there {
			delete(d.objects, name)
			changed = true
		}
	}
	var errs []error
	total := int64(0)
	for _, name := range slices.Sorted(maps.Keys(listed)) {
		old := d.objects[name]
		if old != nil && old.fixed && !old.Modified.IsZero() && listed[name].Equal(old.Modified) {
			total += old.bytes
			continue
		}
		o, err := d.read(ctx, name, listed[name], maxTotalBytes-total)
		if err != nil {
			d.t.errors.Inc()
			errs = append(errs, fmt.Errorf("read %s: %w", name, err))
			continue
		}
		total += o.bytes
		if old != nil && equalGroups(old.Groups, o.Groups) {
			o.fresh = old.fresh
			changed = changed || !old.Modified.Equal(o.Modified)
		} else {
			o.fresh, changed = true, true
		}
		d.objects[name] = o
	}
	const shown = 5
	if n := len(errs); n > shown {
		errs = append(errs[:shown], fmt.Errorf("and %d more", n-shown))
	}
	return changed, errors.Join(errs...)
}

// list gives the objects and, where the provider has them with the list, their times.
func (d *bucketDiscoverer) list(ctx context.Context) (map[string]time.Time, error) {
	opts := []objstore.IterOption{objstore.WithRecursiveIter()}
	if slices.Contains(d.t.bkt.SupportedIterOptions(), objstore.UpdatedAt) {
		opts = append(opts, objstore.WithUpdatedAt())
	}
	listed := map[string]time.Time{}
	err := d.t.bkt.IterWithAttributes(ctx, strings.TrimSuffix(d.cfg.Prefix, "/"), func(a objstore.IterObjectAttributes) error {
		// A name that is no text cannot be a label.
		if !isTargets(a.Name) || !model.LabelValue(a.Name).IsValid() {
			return nil
		}
		if len(listed) == maxObjects {
			return fmt.Errorf("there are more than %d objects", maxObjects)
		}
		listed[a.Name], _ = a.LastModified()
		return nil
	}, opts...)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", d.cfg.Prefix, err)
	}
	if len(listed) > 0 || len(d.objects) == 0 {
		return listed, nil
	}
	// A folder that is not mounted looks like an empty bucket: that nothing is left of the targets is believed only
	// where there is something else.
	found := errors.New("there is something")
	err = d.t.bkt.Iter(ctx, "", func(string) error { return found })
	switch {
	case errors.Is(err, found):
		return listed, nil
	case err != nil:
		return nil, fmt.Errorf("list the bucket: %w", err)
	}
	return nil, fmt.Errorf("list %s: the bucket is empty altogether, as one that is not mounted is", d.cfg.Prefix)
}

func isTargets(name string) bool {
	switch strings.ToLower(path.Ext(name)) {
	case ".json", ".yml", ".yaml":
		return true
	}
	return false
}

func (d *bucketDiscoverer) read(ctx context.Context, name string, modified time.Time, room int64) (*targetObject, error) {
	began := time.Now()
	r, err := d.t.bkt.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, maxObjectBytes+1))
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	switch n := int64(len(b)); {
	case n > maxObjectBytes:
		return nil, fmt.Errorf("it is larger than %d MiB", maxObjectBytes>>20)
	case n > room:
		return nil, fmt.Errorf("the objects are larger than %d MiB together", maxTotalBytes>>20)
	}
	groups, err := parseTargets(name, b)
	if err != nil {
		return nil, err
	}
	o := &targetObject{Groups: groups, Modified: modified, bytes: int64(len(b))}
	o.fixed = !modified.IsZero() && began.Sub(modified) > settled
	if modified.IsZero() {
		// The list has no times. This one is for the metric alone.
		if a, err := d.t.bkt.Attributes(ctx, name); err == nil {
			o.Modified = a.LastModified
		}
	}
	return o, nil
}

// parseTargets reads file_sd's formats.
func parseTargets(name string, b []byte) (groups []*targetgroup.Group, err error) {
	defer func() {
		// No object may take the process down, whatever a library's decoder makes of it.
		if p := recover(); p != nil {
			err = fmt.Errorf("the reader gave up on this: %v", p)
		}
	}()
	if strings.EqualFold(path.Ext(name), ".json") {
		err = json.Unmarshal(b, &groups)
	} else {
		err = yaml2.UnmarshalStrict(b, &groups)
	}
	if err != nil {
		return nil, err
	}
	for i, g := range groups {
		if g == nil {
			return nil, fmt.Errorf("group %d is empty", i)
		}
		label(name, i, g)
	}
	return groups, nil
}

// label says where a group is from.
func label(name string, i int, g *targetgroup.Group) {
	g.Source = source(name, i)
	if g.Labels == nil {
		g.Labels = model.LabelSet{}
	}
	g.Labels[objectLabel] = model.LabelValue(name)
	// Relabelling that was written for file_sd goes on working.
	g.Labels[filepathLabel] = model.LabelValue(name)
}

func source(name string, i int) string { return fmt.Sprintf("%s:%d", name, i) }

func equalGroups(a, b []*targetgroup.Group) bool {
	return slices.EqualFunc(a, b, func(a, b *targetgroup.Group) bool {
		return a.Labels.Equal(b.Labels) && slices.EqualFunc(a.Targets, b.Targets, model.LabelSet.Equal)
	})
}

// send tells upstream what is new and what is gone; false if ctx ends first.
func (d *bucketDiscoverer) send(ctx context.Context, up chan<- []*targetgroup.Group) bool {
	var groups []*targetgroup.Group
	for _, name := range slices.Sorted(maps.Keys(d.objects)) {
		o := d.objects[name]
		if !o.fresh {
			continue
		}
		groups = append(groups, o.Groups...)
		for i := len(o.Groups); i < d.sent[name]; i++ {
			groups = append(groups, &targetgroup.Group{Source: source(name, i)})
		}
	}
	for name, n := range d.sent {
		for i := range n {
			if d.objects[name] == nil {
				groups = append(groups, &targetgroup.Group{Source: source(name, i)})
			}
		}
	}
	if len(groups) == 0 {
		return true
	}
	select {
	case up <- groups:
	case <-ctx.Done():
		return false
	}
	clear(d.sent)
	for name, o := range d.objects {
		o.fresh, d.sent[name] = false, len(o.Groups)
	}
	return true
}

// keptIn is the file with the last good targets of a prefix.
func (d *bucketDiscoverer) keptIn() string {
	sum := sha256.Sum256([]byte(d.cfg.Prefix))
	return filepath.Join(d.t.dir, hex.EncodeToString(sum[:8])+".json")
}

// recall reads the targets of an earlier run, which hold until the bucket says otherwise.
func (d *bucketDiscoverer) recall() {
	if d.t.dir == "" {
		return
	}
	b, err := os.ReadFile(d.keptIn())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	objects := map[string]*targetObject{}
	if err == nil {
		err = json.Unmarshal(b, &objects)
	}
	if err != nil {
		d.logger.Warn("the targets that were kept of the bucket cannot be read; they come from the bucket anew", "prefix", d.cfg.Prefix, "err", err)
		return
	}
	for name, o := range objects {
		if o == nil || slices.Contains(o.Groups, nil) {
			continue
		}
		for i, g := range o.Groups {
			label(name, i, g)
		}
		o.fresh = true
		d.objects[name] = o
	}
}

// remember keeps the targets for a start while the bucket is away. That they cannot be written harms nothing now.
func (d *bucketDiscoverer) remember() {
	if d.t.dir == "" {
		return
	}
	if err := replaceFile(d.keptIn(), d.objects); err != nil {
		d.logger.Warn("the targets from the bucket could not be kept for a start without it", "prefix", d.cfg.Prefix, "err", err)
	}
}

// replaceFile replaces a file in one step.
func replaceFile(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the targets: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o750); err != nil {
		return fmt.Errorf("make the folder of the targets: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".tmp*")
	if err != nil {
		return fmt.Errorf("write the targets: %w", err)
	}
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		// It syncs the folder too.
		err = fileutil.Rename(tmp.Name(), name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write the targets to %s: %w", name, err), os.Remove(tmp.Name()))
	}
	return nil
}
