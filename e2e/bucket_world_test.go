package e2e

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
)

// What all tests of object storage share: a real S3 server on a folder that the tests look into, a gate before it for each
// replica, and stock Thanos on the same bucket.

const (
	s3Bucket = "blocks"
	s3Access = "e2e"
	s3Secret = "e2e-and-nobody-else"

	// bucketWindow is how long the windows of these tests are, instead of two hours.
	bucketWindow = 20 * time.Second
	// bucketMost is how long it may take until a window that is over is in the bucket: a block is written when the head is half
	// a window longer, and the last in order waits for the others. Machines are shared.
	bucketMost = 3*bucketWindow + 30*time.Second
	// bucketHole is the longest time without a sample, where one is taken every second: two replicas' samples meet at the edge of
	// a window.
	bucketHole = 3200 * time.Millisecond
)

// s3Server is a real one. Each object is a file below root/blocks.
type s3Server struct {
	*process
	t                  *testing.T
	dir, root, address string
}

func newS3(t *testing.T, dir, address string) *s3Server {
	t.Helper()
	s := &s3Server{t: t, dir: dir, root: filepath.Join(dir, "s3"), address: address}
	if err := os.MkdirAll(filepath.Join(s.root, s3Bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	s.start()
	return s
}

func (s *s3Server) start() {
	s.t.Helper()
	s.process = start(s.t, s.dir, "versitygw", peerBinary(s.t, "VERSITYGW", "versitygw"),
		"--port", s.address, "--access", s3Access, "--secret", s3Secret, "--quiet", "posix", s.root)
	eventually(s.t, 20*time.Second, "the S3 server answers", func() error {
		s.alive()
		// It answers that it does not know who asks.
		_, _, err := fetch(http.MethodGet, "http://"+s.address+"/"+s3Bucket, "", "")
		return err
	})
}

// s3Config is objstore's configuration of the bucket, as one line of YAML; endpoint is the server or a gate before it.
func s3Config(endpoint string) string {
	return fmt.Sprintf("{type: S3, config: {bucket: %s, endpoint: %q, access_key: %s, secret_key: %s, insecure: true, region: us-east-1}}",
		s3Bucket, endpoint, s3Access, s3Secret)
}

// gate is an HTTP proxy before a bucket. Each replica has its own, so that it is known who asks, and the test decides what
// happens to what passes.
type gate struct {
	*httptest.Server
	proxy *httputil.ReverseProxy

	mu   sync.Mutex
	rule func(*http.Request) *mishap // nil lets everything pass
	told []happening
}

// mishap is what happens to a request.
type mishap struct {
	status int           // the answer, if there is one; nothing is asked then
	delay  time.Duration // before it is passed on
	// held holds it until it is closed or the client goes away, before it is passed on or, if answered, before the answer is. Then the
	// connection is cut.
	held     chan struct{}
	answered bool
}

type mishapKey struct{}

func newGate(t *testing.T, target string) *gate {
	t.Helper()
	g := &gate{}
	g.proxy = &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: target})
			p.Out.Host = p.In.Host // It is signed.
		},
		Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 20},
		ModifyResponse: func(resp *http.Response) error {
			if f, ok := resp.Request.Context().Value(mishapKey{}).(*mishap); ok && f.answered {
				f.hold(resp.Request.Context())
			}
			return nil
		},
		// A server that is away is one that does not answer, not one that answers with an error.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	g.Server = httptest.NewServer(http.HandlerFunc(g.serve))
	t.Cleanup(g.Close)
	t.Cleanup(g.CloseClientConnections)
	return g
}

func (f *mishap) hold(ctx context.Context) {
	select {
	case <-f.held:
	case <-ctx.Done():
	}
	panic(http.ErrAbortHandler)
}

func (g *gate) serve(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	rule := g.rule
	g.mu.Unlock()
	var f *mishap
	if rule != nil {
		f = rule(r)
	}
	if f == nil {
		f = &mishap{}
	}
	g.mu.Lock()
	if r.Method != http.MethodGet && r.Method != http.MethodHead || f.status != 0 || f.held != nil {
		g.told = append(g.told, happening{time.Now(), fmt.Sprintf("%s %s (status %d, held %t)", r.Method, object(r), f.status, f.held != nil)})
	}
	g.mu.Unlock()
	if f.delay > 0 {
		select {
		case <-time.After(f.delay):
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
	switch {
	case f.status != 0:
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(f.status)
		fmt.Fprintf(w, "<Error><Code>Injected%d</Code><Message>The test wants it so.</Message></Error>", f.status)
		return
	case f.held != nil && !f.answered:
		f.hold(r.Context())
	}
	g.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), mishapKey{}, f)))
}

func (g *gate) set(rule func(*http.Request) *mishap) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rule = rule
}

// object is the name of the object that a request is about; empty for the bucket itself.
func object(r *http.Request) string {
	return strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/"+s3Bucket), "/")
}

// bucketCluster is replicas that watch a meter and share a bucket.
type bucketCluster struct {
	*meshCluster
	s3      *s3Server
	gates   map[string]*gate
	config  string          // of stock Thanos, which passes no gate
	garbage map[string]bool // blocks that the test has put there
}

// newBucketCluster is replicas that are up and whole and have data. retention is that of local data, 0 for the default.
func newBucketCluster(t *testing.T, names []string, retention time.Duration) *bucketCluster {
	t.Helper()
	peerBinary(t, "VERSITYGW", "versitygw") // before it waits
	thanosBinary(t)
	c := &bucketCluster{gates: map[string]*gate{}, garbage: map[string]bool{}}
	c.meshCluster = newCluster(t, clusterOptions{
		names: names, watched: true,
		bucket: func(r *replica) string {
			if c.gates[r.name] == nil {
				c.gates[r.name] = newGate(t, r.cluster.loopback+".201:7070")
			}
			return "bucket: " + s3Config(c.gates[r.name].Listener.Addr().String()) + "\n"
		},
		flags: shortWindows(), retention: retention,
	})
	c.s3 = newS3(t, c.dir, c.loopback+".201:7070")
	c.config = write(t, c.dir, "bucket.yml", s3Config(c.s3.address)+"\n")
	t.Cleanup(func() {
		if t.Failed() {
			c.tellBucket()
			c.tellGaps()
		}
	})
	c.up()
	c.haveData(c.options.names...)
	eventually(t, healMost, "all are complete at first", c.complete())
	return c
}

func shortWindows() []string {
	return []string{"--storage.tsdb.min-block-duration=" + bucketWindow.String(), "--storage.tsdb.max-block-duration=" + bucketWindow.String()}
}

// haveData waits until the replicas have watched the meter for a while.
func (c *bucketCluster) haveData(names ...string) {
	c.t.Helper()
	eventually(c.t, 60*time.Second, "there are data", func() error {
		for _, name := range names {
			for _, expr := range []string{`count_over_time(e2e_ticks_total[6s])`, `count_over_time(e2e:level:double[6s])`} {
				n, err := c.replicas[name].localValue(expr)
				if err != nil || n < 4 {
					return fmt.Errorf("%s: %s is %v: %w", name, expr, n, err)
				}
			}
		}
		return nil
	})
}

// rule is for all gates.
func (c *bucketCluster) rule(rule func(*http.Request) *mishap) {
	for _, g := range c.gates {
		g.set(rule)
	}
}

// caught is a request that is held at a gate.
type caught struct {
	replica *replica
	object  string
	at      time.Time
	release func() // It cuts the connection.
}

// moment is one of an upload: when an object is written, or when it was and nobody knows yet.
type moment struct {
	what     string
	answered bool
	matches  func(name string) bool
}

// catch waits for a request of one of the moments, at any replica, holds it, and says which moment it is.
func (c *bucketCluster) catch(within time.Duration, moments []moment) (*caught, int) {
	t := c.t
	t.Helper()
	held := make(chan struct{})
	release := sync.OnceFunc(func() { close(held) })
	t.Cleanup(release)
	type hit struct {
		*caught
		which int
	}
	var (
		got  shared[*hit]
		once sync.Once
	)
	for name, g := range c.gates {
		g.set(func(r *http.Request) (f *mishap) {
			if r.Method != http.MethodPut {
				return nil
			}
			n := slices.IndexFunc(moments, func(m moment) bool { return m.matches(object(r)) })
			if n >= 0 {
				once.Do(func() {
					f = &mishap{held: held, answered: moments[n].answered}
					got.set(&hit{&caught{c.replicas[name], object(r), time.Now(), release}, n})
				})
			}
			return f
		})
	}
	eventually(t, within, "somebody writes", func() error {
		if got.get() == nil {
			return fmt.Errorf("nobody does one of %d things, the first of which is: %s", len(moments), moments[0].what)
		}
		return nil
	})
	c.rule(nil)
	return got.get().caught, got.get().which
}

// storedBlock is a block in a bucket.
type storedBlock struct {
	ID     string
	Meta   storedMeta
	Err    error            // why it cannot be read
	Marked bool             // for deletion
	Files  map[string]int64 // their sizes
}

// storedMeta is what a meta.json says.
type storedMeta struct {
	ULID    string `json:"ulid"`
	MinTime int64  `json:"minTime"`
	MaxTime int64  `json:"maxTime"`
	Stats   struct {
		NumSamples int64 `json:"numSamples"`
	} `json:"stats"`
	Compaction struct {
		Level   int      `json:"level"`
		Sources []string `json:"sources"`
	} `json:"compaction"`
	Thanos struct {
		Labels     map[string]string `json:"labels"`
		Downsample struct {
			Resolution int64 `json:"resolution"`
		} `json:"downsample"`
		Source string `json:"source"`
		Files  []struct {
			Path string `json:"rel_path"`
			Size int64  `json:"size_bytes"`
		} `json:"files"`
	} `json:"thanos"`
}

func (b *storedBlock) String() string {
	state := fmt.Sprintf("level %d, resolution %d, %v", b.Meta.Compaction.Level, b.Meta.Thanos.Downsample.Resolution, b.Meta.Thanos.Labels)
	if b.Err != nil {
		state = b.Err.Error()
	}
	if b.Marked {
		state += ", marked for deletion"
	}
	var windows []string
	for _, s := range b.Meta.Compaction.Sources {
		if at, whole, ok := windowOf(s); ok {
			windows = append(windows, fmt.Sprintf("%s whole %t", at.Format("15:04:05"), whole))
		}
	}
	return fmt.Sprintf("%s from %s to %s, windows %q: %s", b.ID, time.UnixMilli(b.Meta.MinTime).Format("15:04:05.000"),
		time.UnixMilli(b.Meta.MaxTime).Format("15:04:05.000"), windows, state)
}

// windowOf reads the window off a block's name: its begin, and whether its uploader had it whole.
func windowOf(name string) (begin time.Time, whole, ok bool) {
	id, err := ulid.Parse(name)
	if err != nil || id[12]&0xfe != 0xa4 {
		return begin, false, false
	}
	var b [8]byte
	copy(b[2:], id[6:12])
	return time.UnixMilli(int64(binary.BigEndian.Uint64(b[:]))), id[12]&1 != 0, true
}

// storedBlocks reads a bucket off its folder, in the order of their time.
func storedBlocks(root string) ([]storedBlock, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var all []storedBlock
	for _, e := range entries {
		if _, err := ulid.Parse(e.Name()); err != nil || !e.IsDir() {
			continue
		}
		b := storedBlock{ID: e.Name(), Files: map[string]int64{}}
		dir := filepath.Join(root, b.ID)
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // It is being deleted.
			}
			if err != nil || d.IsDir() {
				return err
			}
			name, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			if info, err := d.Info(); err == nil {
				b.Files[name] = info.Size()
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if len(b.Files) == 0 {
			continue // Folders are no objects.
		}
		_, b.Marked = b.Files["deletion-mark.json"]
		text, err := os.ReadFile(filepath.Join(dir, "meta.json"))
		if err == nil {
			err = json.Unmarshal(text, &b.Meta)
		}
		b.Err = err
		all = append(all, b)
	}
	slices.SortStableFunc(all, func(a, b storedBlock) int { return int(min(1, max(-1, a.Meta.MinTime-b.Meta.MinTime))) })
	return all, nil
}

func (c *bucketCluster) blocks() ([]storedBlock, error) {
	return storedBlocks(filepath.Join(c.s3.root, s3Bucket))
}

// tellBucket makes what is in the bucket, and what was written there, part of what a failed test tells.
func (c *bucketCluster) tellBucket() {
	all, err := c.blocks()
	if err != nil {
		c.t.Logf("blocks: %v", err)
	}
	var b strings.Builder
	for _, block := range all {
		fmt.Fprintf(&b, "  %s\n", &block)
	}
	for name, g := range c.gates {
		g.mu.Lock()
		for _, h := range g.told[max(0, len(g.told)-60):] {
			fmt.Fprintf(&b, "  %s %s: %s\n", h.at.Format("15:04:05.000"), name, h.what)
		}
		g.mu.Unlock()
	}
	c.t.Logf("the bucket:\n%s", b.String())
}

// once is a check that each window in between is in exactly one raw block that can be read, uploaded by somebody who had it whole,
// and that there is no half of a block.
func (c *bucketCluster) once(from, to time.Time) func() error {
	return func() error {
		all, err := c.blocks()
		if err != nil {
			return err
		}
		covered := map[int64][]*storedBlock{}
		for i := range all {
			b := &all[i]
			if c.garbage[b.ID] {
				continue
			}
			if b.Err != nil && !isWindow(b.ID) {
				continue // What a compaction that was cut off left goes after two days, as stock Thanos has it.
			}
			if b.Err != nil {
				return fmt.Errorf("half a block: %s", b)
			}
			for _, f := range b.Meta.Thanos.Files {
				if got, ok := b.Files[f.Path]; f.Path != "meta.json" && (!ok || got != f.Size) {
					return fmt.Errorf("file %s of %s is of %d bytes, not %d", f.Path, b, got, f.Size)
				}
			}
			if b.Marked || b.Meta.Thanos.Downsample.Resolution != 0 {
				continue
			}
			for _, s := range b.Meta.Compaction.Sources {
				if begin, whole, ok := windowOf(s); ok && whole {
					covered[begin.UnixMilli()] = append(covered[begin.UnixMilli()], b)
				}
			}
		}
		for begin := from; begin.Before(to); begin = begin.Add(bucketWindow) {
			if n := len(covered[begin.UnixMilli()]); n != 1 {
				return fmt.Errorf("the window from %s is in %d blocks: %v", begin.Format("15:04:05"), n, covered[begin.UnixMilli()])
			}
		}
		return nil
	}
}

// nextWindow is the begin of the first window that begins after a time.
func nextWindow(at time.Time) time.Time { return at.Truncate(bucketWindow).Add(bucketWindow) }

// stockTools runs a tool of stock Thanos on the bucket. Whatever it warns of fails the test.
func (c *bucketCluster) stockTools(args ...string) string {
	c.t.Helper()
	return stockTools(c.t, c.dir, c.config, args...)
}

func stockTools(t *testing.T, dir, config string, args ...string) string {
	t.Helper()
	stdout, stderr, code := tool(t, dir, thanosBinary(t), slices.Concat([]string{"tools", "bucket"}, args,
		[]string{"--objstore.config-file=" + config})...)
	if code != 0 || strings.Contains(stderr, "level=warn") || strings.Contains(stderr, "level=error") {
		t.Errorf("thanos tools bucket %s has ended with code %d:\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout + stderr
}

// verify holds that stock Thanos finds nothing wrong with the bucket.
func (c *bucketCluster) verify() {
	t := c.t
	t.Helper()
	found := c.stockTools("verify", "--issues=index_known_issues", "--issues=overlapped_blocks", "--issues=duplicated_compaction")
	contains(t, "what stock Thanos says", found, "verify task completed")
	all, err := c.blocks()
	if err != nil {
		t.Fatal(err)
	}
	listed := c.stockTools("ls", "--output=json")
	for _, b := range all {
		if b.Err != nil && !isWindow(b.ID) {
			continue // What is left of a compaction that was cut off is not listed.
		}
		contains(t, "what stock Thanos lists", listed, b.ID)
	}
	c.stockTools("inspect")
}

// stockStore is a stock Thanos Store on the bucket of a configuration, and a stock Thanos Query on that.
func stockStore(t *testing.T, dir, loopback, config string) *thanosQuery {
	t.Helper()
	store, query := loopback+".102", loopback+".103"
	// Another one has been there before.
	data, err := os.MkdirTemp(dir, "store-")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, dir, "thanos-store", thanosBinary(t), "store", "--objstore.config-file="+config, "--data-dir="+data,
		"--http-address="+store+":10902", "--grpc-address="+store+":10901", "--sync-block-duration=1s", "--ignore-deletion-marks-delay=0s")
	q := &thanosQuery{url: "http://" + query + ":10902", process: start(t, dir, "thanos-query", thanosBinary(t), "query",
		"--http-address="+query+":10902", "--grpc-address="+query+":10901", "--endpoint="+store+":10901",
		"--query.replica-label=replica", "--query.replica-label=zone", "--endpoint.info-timeout=2s")}
	for _, p := range []*process{s, q.process} {
		address := "http://" + store + ":10902"
		if p == q.process {
			address = q.url
		}
		eventually(t, 60*time.Second, p.name+" is ready", func() error {
			p.alive()
			_, err := quickly(http.MethodGet, address+"/-/ready", "", "")
			return err
		})
	}
	eventually(t, 60*time.Second, "Thanos Query sees the store", func() error {
		got, err := q.values("site")
		if err == nil && !slices.Contains(got, "e2e") {
			err = fmt.Errorf("values of site: %q", got)
		}
		return err
	})
	return q
}

// span asks for all samples of a selector in [from, to).
func span(selector string, from, to time.Time) url.Values {
	return url.Values{
		"query": {fmt.Sprintf("%s[%dms]", selector, to.Sub(from).Milliseconds())},
		"time":  {formatTime(to.Add(-time.Millisecond))},
	}
}

// stored is what stock Thanos reads in the bucket in [from, to), without the external labels, whoever uploaded it.
func (q *thanosQuery) stored(selector string, from, to time.Time) (healData, error) {
	v := span(selector, from, to)
	v.Set("dedup", "false")
	v.Set("max_source_resolution", "0s")
	d, warnings, err := matrixOf("Thanos", q.url, "query", v)
	if err == nil && len(warnings) > 0 {
		err = fmt.Errorf("Thanos warns: %q", warnings)
	}
	if err != nil {
		return nil, err
	}
	return withoutExternal(d)
}

// withoutExternal puts together the series that differ in external labels only.
func withoutExternal(d healData) (healData, error) {
	out := healData{}
	for id, s := range d {
		var metric map[string]string
		if err := json.Unmarshal([]byte(id), &metric); err != nil {
			return nil, err
		}
		for _, label := range []string{"site", "replica", "zone"} {
			delete(metric, label)
		}
		id = series{Metric: metric}.id()
		if out[id] == nil {
			out[id] = healSeries{}
		}
		for at, v := range s {
			if w, ok := out[id][at]; ok && v != w {
				return nil, fmt.Errorf("%s is %s and %s at %d", id, v, w, at)
			}
			out[id][at] = v
		}
	}
	return out, nil
}

// answer is what the replica answers for [from, to), without external labels; only on its own data, if local. Warnings are
// errors.
func (r *replica) answer(selector string, from, to time.Time, local bool) (healData, error) {
	v := span(selector, from, to)
	if local {
		v.Set("local", "true")
	}
	d, warnings, err := r.matrix("query", v)
	if err == nil {
		d, err = withoutExternal(d)
	}
	if err == nil && len(warnings) > 0 {
		err = fmt.Errorf("%s warns: %q", r.name, warnings)
	}
	return d, err
}

func (d healData) samples() (n int) {
	for _, s := range d {
		n += len(s)
	}
	return n
}

// different tells the first difference between two answers.
func different(what string, got, want healData) error {
	for id, s := range want {
		if !got[id].equal(s) {
			return fmt.Errorf("%s has of %s\n%s, not\n%s", what, id, got[id].times(), s.times())
		}
	}
	for id := range got {
		if _, ok := want[id]; !ok {
			return fmt.Errorf("%s has too much: %s", what, id)
		}
	}
	return nil
}

// unbroken holds that samples of the counter say the truth, once, without a hole in [from, to).
func (c *bucketCluster) unbroken(who string, d healData, from, to time.Time) error {
	if len(d) != 1 {
		return fmt.Errorf("%s has %d series of the counter", who, len(d))
	}
	for _, s := range d {
		last, before := from, -1.0
		for _, ts := range s.sorted() {
			at := time.UnixMilli(ts)
			if pause := at.Sub(last); pause > bucketHole {
				return &hole{fmt.Sprintf("%s has a hole of %s before %s", who, pause, at.Format("15:04:05.000"))}
			}
			var v float64
			if _, err := fmt.Sscan(s[ts], &v); err != nil {
				return err
			}
			if truth := at.Sub(c.meter.born).Seconds(); v <= before || v < truth-0.1 || v > truth+1.5 {
				return fmt.Errorf("%s: the counter is %v at %s, and was %v before; it was %v", who, v, at.Format("15:04:05.000"), before, truth)
			}
			last, before = at, v
		}
		if pause := to.Sub(last); pause > bucketHole {
			return &hole{fmt.Sprintf("%s has a hole of %s after %s", who, pause, last.Format("15:04:05.000"))}
		}
		if most := int(to.Sub(from).Seconds()*1.1) + 3; len(s) > most {
			return fmt.Errorf("%s has %d samples in %s: some are there twice", who, len(s), to.Sub(from))
		}
	}
	return nil
}

// answers is a check that each of the replicas answers for all the time in between, whether it has the data itself or not.
func (c *bucketCluster) answers(from, to time.Time, names ...string) func() error {
	return func() error {
		for _, name := range names {
			d, err := c.replicas[name].answer("e2e_ticks_total", from, to, false)
			if err == nil {
				err = c.unbroken(name, d, from, to)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// likeOne holds that what is in the bucket of a window is, to the sample, what a replica has of it.
func likeOne(t *testing.T, stored healData, local map[string]healData, from time.Time) {
	t.Helper()
	whose, wrong := map[string]int{}, 0
	ids := map[string]bool{}
	for id := range stored {
		ids[id] = true
	}
	for _, d := range local {
		for id := range d {
			ids[id] = true
		}
	}
	for id := range ids {
		found := ""
		for name, d := range local {
			if d[id].equal(stored[id]) {
				found = name
			}
		}
		if found == "" {
			if a, b := stored[id].twoHands(id, local); a != "" {
				found = a + ", then " + b
			}
		}
		if whose[found]++; found == "" {
			if wrong++; wrong <= 3 {
				t.Errorf("the bucket has of the window from %s %s as nobody has it:\n%s", from.Format("15:04:05"), id, stored[id].times())
				for name, d := range local {
					t.Logf("%s: %s", name, d[id].times())
				}
			}
		}
	}
	t.Logf("the window from %s: %d series, %d samples: %v", from.Format("15:04:05"), len(ids), stored.samples(), whose)
}
