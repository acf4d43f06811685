package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"
)

const (
	s3Access = "bench"
	s3Secret = "bench-and-nobody-else"

	allBucketParts = "upload,read,memory"
	bucketReplicas = 3
	// metaFile is what of a block is uploaded last.
	metaFile = "meta.json"
)

// bucketOptions are the flags of the bucket scenario.
type bucketOptions struct {
	parts []string

	targets, series int
	interval        time.Duration
	window          time.Duration
	windows         int
	limit           time.Duration

	readTargets  int
	readInterval time.Duration
	readHistory  time.Duration
	readRounds   int
	readLatency  time.Duration

	blocks int
	idle   time.Duration
}

// flags adds the flags; the list of parts is translated by check.
func (o *bucketOptions) flags(f *flag.FlagSet) (parts *string) {
	parts = f.String("bucket", allBucketParts, "parts of the bucket scenario to run, in this order")
	f.IntVar(&o.targets, "bucket-targets", 10, "targets that bucket's upload scrapes")
	f.IntVar(&o.series, "bucket-series", 1000, "series of each of them")
	f.DurationVar(&o.interval, "bucket-interval", 2*time.Second, "scrape interval of bucket's upload")
	f.DurationVar(&o.window, "bucket-window", time.Minute, "length of a window there, instead of two hours")
	f.IntVar(&o.windows, "bucket-windows", 6, "windows that must be complete on both sides")
	f.DurationVar(&o.limit, "bucket-limit", 30*time.Minute, "how long that may take")
	f.IntVar(&o.readTargets, "bucket-read-targets", 2, "targets of -series series that the blocks of bucket's read are of")
	f.DurationVar(&o.readInterval, "bucket-read-interval", 30*time.Second, "time between their samples")
	f.DurationVar(&o.readHistory, "bucket-read-history", 7*24*time.Hour, "length of the data and of the queries")
	f.IntVar(&o.readRounds, "bucket-read-rounds", 5, "how often both sides start with nothing, are asked everything, and then everything again")
	f.DurationVar(&o.readLatency, "bucket-read-latency", 0, "time by which each answer of the bucket is late to both sides, as one of another machine is")
	f.IntVar(&o.blocks, "bucket-blocks", 1000, "blocks of bucket's memory")
	f.DurationVar(&o.idle, "bucket-idle", time.Minute, "time in which the memory is measured")
	return parts
}

// shorten is the smoke run.
func (o *bucketOptions) shorten() {
	o.targets, o.series, o.window, o.windows = 4, minSeries, 20*time.Second, 2
	o.readHistory, o.readInterval, o.readRounds = 24*time.Hour, time.Minute, 1
	o.blocks, o.idle = 20, 5*time.Second
}

func (o *bucketOptions) check(parts string) error {
	o.parts = strings.Split(parts, ",")
	for _, p := range o.parts {
		if !slices.Contains(strings.Split(allBucketParts, ","), p) {
			return fmt.Errorf("-bucket: %q is not one of %s", p, allBucketParts)
		}
	}
	switch {
	case o.targets < 1 || o.targets > maxTargets || o.readTargets < 1 || o.readTargets > maxTargets:
		return fmt.Errorf("-bucket-targets and -bucket-read-targets: must be within 1 and %d", maxTargets)
	case o.series < minSeries || o.series > maxSeries:
		return fmt.Errorf("-bucket-series: %d is not within %d and %d", o.series, minSeries, maxSeries)
	case o.interval < time.Second || o.window < 5*o.interval || o.windows < 1 || o.limit <= 0:
		return errors.New("-bucket-interval must be at least 1s, -bucket-window five intervals, -bucket-windows and -bucket-limit positive")
	case o.readInterval < time.Second || o.readHistory < 12*time.Hour || o.readRounds < 1 || o.readLatency < 0:
		return errors.New("-bucket-read-interval must be at least 1s, -bucket-read-history 12h, -bucket-read-rounds 1, -bucket-read-latency not negative")
	case o.blocks < 1 || o.idle < time.Second:
		return errors.New("-bucket-blocks must be at least 1, -bucket-idle 1s")
	}
	return nil
}

// needs tells whether one of the parts is run.
func (o *options) needsBucket(parts ...string) bool {
	return slices.Contains(o.scenarios, "bucket") && slices.ContainsFunc(o.bucket.parts, func(p string) bool { return slices.Contains(parts, p) })
}

// runBucket measures what object storage costs, and what is read from it.
func (b *bench) runBucket(ctx context.Context) error {
	if b.control {
		b.say("bucket: left out of a control run")
		return nil
	}
	for _, part := range b.bucket.parts {
		run := map[string]func(context.Context) error{
			"upload": b.bucketUpload, "read": b.bucketRead, "memory": b.bucketMemory,
		}[part]
		if err := run(ctx); err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	return nil
}

// s3Server is a real one. Each object is a file below root.
type s3Server struct {
	process       *process
	root, address string
}

// startS3 starts a server that has the buckets.
func (b *bench) startS3(ctx context.Context, dir string, buckets ...string) (*s3Server, error) {
	s := &s3Server{root: filepath.Join(dir, "s3")}
	for _, name := range buckets {
		if err := os.MkdirAll(filepath.Join(s.root, name), 0o755); err != nil {
			return nil, fmt.Errorf("create a bucket: %w", err)
		}
	}
	a, err := freeAddresses(1)
	if err != nil {
		return nil, err
	}
	s.address = a[0]
	s.process, err = start("versitygw", "http://"+s.address, filepath.Join(dir, "versitygw.log"), b.versitygw,
		"--port", s.address, "--access", s3Access, "--secret", s3Secret, "--quiet", "posix", s.root)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, b.readyTimeout, fmt.Errorf("the S3 server did not answer within %s", b.readyTimeout))
	defer cancel()
	for {
		if _, err := ready(ctx, http.DefaultClient, s.process.url); err == nil { // It does not know who asks, and says so.
			return s, nil
		}
		select {
		case <-s.process.ended:
			return nil, fmt.Errorf("the S3 server ended; its log says:\n%s", s.process.tail())
		default:
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return nil, errors.Join(err, s.end())
		}
	}
}

func (s *s3Server) end() error {
	s.process.end(syscall.SIGKILL)
	return nil
}

// s3Config is objstore's configuration of a bucket, as one line of YAML.
func s3Config(endpoint, bucket string) string {
	return fmt.Sprintf("{type: S3, config: {bucket: %s, endpoint: %q, access_key: %s, secret_key: %s, insecure: true, region: us-east-1}}",
		bucket, endpoint, s3Access, s3Secret)
}

// meter stands before the S3 server and counts what passes.
type meter struct {
	address string
	latency time.Duration // before an answer is passed on
	server  *http.Server
	serving sync.WaitGroup

	mutex sync.Mutex
	puts  []put
	// requests are all of them by method, read the bytes of answers.
	requests map[string]int
	read     int64
}

// put is a request that has written an object.
type put struct {
	object string
	bytes  int64 // of the object, without what frames and signs it
}

func newMeter(ctx context.Context, s *s3Server, bucket string, latency time.Duration) (*meter, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen before the S3 server: %w", err)
	}
	m := &meter{address: ln.Addr().String(), latency: latency, requests: map[string]int{}}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: s.address})
			p.Out.Host = p.In.Host // It is signed.
		},
		Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 100},
		ModifyResponse: func(resp *http.Response) error {
			m.count(resp, bucket)
			return sleep(resp.Request.Context(), m.latency)
		},
	}
	m.server = &http.Server{Handler: proxy, ReadHeaderTimeout: time.Minute}
	m.serving.Go(func() { _ = m.server.Serve(ln) }) // ends with ErrServerClosed, by Close
	return m, nil
}

func (m *meter) count(resp *http.Response, bucket string) {
	r := resp.Request
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.requests[r.Method]++
	if r.Method != http.MethodHead && resp.ContentLength > 0 {
		m.read += resp.ContentLength
	}
	if r.Method != http.MethodPut {
		return
	}
	p := put{object: strings.TrimPrefix(r.URL.Path, "/"+bucket+"/"), bytes: r.ContentLength}
	if n, err := parseBytes(r.Header.Get("X-Amz-Decoded-Content-Length")); err == nil {
		p.bytes = n
	}
	m.puts = append(m.puts, p)
}

func parseBytes(text string) (n int64, err error) {
	_, err = fmt.Sscan(text, &n)
	return n, err
}

// traffic is what has passed a meter.
type traffic struct {
	gets int
	read int64
}

func (m *meter) traffic() traffic {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return traffic{m.requests[http.MethodGet], m.read}
}

// taken are the requests so far that wrote.
func (m *meter) taken() []put {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return slices.Clone(m.puts)
}

func (m *meter) Close() error {
	err := m.server.Close()
	m.serving.Wait()
	return err
}

// uploadBlocks lets stock Thanos put blocks into a bucket, as those of a replica.
func (b *bench) uploadBlocks(ctx context.Context, blocks, config string) error {
	return b.thanosTool(ctx, "tools", "bucket", "upload-blocks", "--path="+blocks, "--shipper.upload-compacted",
		`--label=site="bench"`, `--label=replica="r0"`, `--label=zone="zone-0"`, "--objstore.config-file="+config)
}

func (b *bench) thanosTool(ctx context.Context, args ...string) error {
	text, err := exec.CommandContext(ctx, b.thanos, args...).CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		return fmt.Errorf("thanos %s: %w:\n%s", strings.Join(args, " "), err, strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
	return nil
}

// bucketYML leaves a %d for the replica's number. The last two labels tell the replicas apart, the first the clusters.
const bucketYML = "global:\n  external_labels: {site: bench, replica: r%[1]d, zone: zone-%[1]d}\n"

// newBucketReplicas are replicas of tocsin with a bucket; which it is, the one line of YAML says.
func (b *bench) newBucketReplicas(dir, prometheusYML, bucket string, count int) (*keyed, error) {
	c, err := b.newKeyed(dir, prometheusYML, count)
	if err != nil {
		return nil, err
	}
	for i := range count {
		if err := appendFile(filepath.Join(dir, fmt.Sprintf("tocsin-%d.yml", i)), "bucket: "+bucket+"\n"); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func appendFile(name, text string) (err error) {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("add to the configuration: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err = io.WriteString(f, text); err != nil {
		return fmt.Errorf("add to the configuration: %w", err)
	}
	return nil
}

// windowOf reads off the name of one of tocsin's blocks which window it is: its begin, and whether its uploader had it whole.
func windowOf(id ulid.ULID) (begin int64, whole, ok bool) {
	if id[12]&0xfe != 0xa4 {
		return 0, false, false
	}
	for _, c := range id[6:12] {
		begin = begin<<8 | int64(c)
	}
	return begin, id[12]&1 != 0, true
}
