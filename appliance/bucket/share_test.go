package bucket

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/thanos/pkg/block"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tocsin-io/tocsin/appliance/bucket/peerspb"
	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/mesh"
)

// countedReads counts what is asked of blocks' objects, but not for index headers.
type countedReads struct {
	objstore.Bucket
	asked atomic.Int64
	// before is called before each of them; nil for nothing.
	before func(ctx context.Context) error
}

func (c *countedReads) count(ctx context.Context, name string) error {
	if ctx.Value(uncached{}) != nil || !isBlockObject(name) {
		return nil
	}
	c.asked.Add(1)
	if c.before != nil {
		return c.before(ctx)
	}
	return nil
}

func (c *countedReads) GetRange(ctx context.Context, name string, off, length int64) (io.ReadCloser, error) {
	if err := c.count(ctx, name); err != nil {
		return nil, err
	}
	return c.Bucket.GetRange(ctx, name, off, length)
}

func (c *countedReads) Attributes(ctx context.Context, name string) (objstore.ObjectAttributes, error) {
	if err := c.count(ctx, name); err != nil {
		return objstore.ObjectAttributes{}, err
	}
	return c.Bucket.Attributes(ctx, name)
}

func (c *countedReads) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := c.count(ctx, name); err != nil {
		return nil, err
	}
	return c.Bucket.Get(ctx, name)
}

// counting makes the replica's requests counted, and its cache ready.
func (r *replica) counting() *countedReads {
	r.t.Helper()
	c := &countedReads{}
	r.inject(func(bkt objstore.Bucket) objstore.Bucket { c.Bucket = bkt; return c })
	require.NoError(r.t, r.bucket.reader.share.disk.list(context.Background()))
	r.bucket.reader.share.tidy()
	r.load()
	return c
}

func (r *replica) failed(reason string) float64 {
	return testutil.ToFloat64(r.bucket.reader.share.disk.failures.WithLabelValues(reason))
}

// keeps are the blocks that the replica has something of.
func (r *replica) keeps() (ids []string) {
	r.t.Helper()
	entries, err := os.ReadDir(filepath.Join(r.dir, "bucket", "cache"))
	require.NoError(r.t, err)
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids
}

func TestTheSecondQueryDoesNotAskTheBucket(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	c.cache = 64 << 20
	_, r, end := c.inBucket(3)
	asked := r.counting()
	want, _ := found(t, r.store.Local(), c.begin, end-1)
	got, warnings := found(t, r.bucket.At(0), c.begin, end-1)
	require.Empty(t, warnings)
	require.Equal(t, want, got)
	require.Positive(t, asked.asked.Load())
	require.ElementsMatch(t, c.readable(), r.keeps())
	misses := testutil.ToFloat64(r.bucket.reader.share.disk.misses)
	require.Positive(t, misses)

	// Also another process, whose memory has nothing of it.
	r.restart()
	asked = r.counting()
	got, warnings = found(t, r.bucket.At(0), c.begin, end-1)
	require.Empty(t, warnings)
	require.Equal(t, want, got)
	require.Zero(t, asked.asked.Load())
	require.Zero(t, testutil.ToFloat64(r.bucket.reader.share.disk.misses))
	require.GreaterOrEqual(t, testutil.ToFloat64(r.bucket.reader.share.disk.hits.WithLabelValues(fromDisk)), misses)

	// What is torn, and a header that is gone, are read again.
	require.NoError(t, filepath.WalkDir(filepath.Join(r.dir, "bucket"), func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil || d.IsDir():
			return err
		case filepath.Base(path) == block.IndexHeaderFilename:
			return os.Remove(path)
		case filepath.Base(filepath.Dir(filepath.Dir(path))) == "cache":
			return os.Truncate(path, 100)
		}
		return nil
	}))
	got, warnings = found(t, r.bucket.At(0), c.begin, end-1)
	require.Empty(t, warnings)
	require.Equal(t, want, got)
	require.Positive(t, asked.asked.Load())
	require.Positive(t, r.failed(cacheCorrupt))
	require.NoFileExists(t, filepath.Join(r.dir, "bucket", "headers", c.readable()[0], block.IndexHeaderFilename), "it is mapped, and not needed on disk")
	r.restart()
	r.counting()
	got, warnings = found(t, r.bucket.At(0), c.begin, end-1)
	require.Empty(t, warnings)
	require.Equal(t, want, got)
	require.FileExists(t, filepath.Join(r.dir, "bucket", "headers", c.readable()[0], block.IndexHeaderFilename))

	// With no cache nothing is kept, and all works.
	cfg := *r.bucket.o.Config.Bucket
	cfg.Cache.Size = 0
	apply, err := r.bucket.Prepare(&config.Config{Bucket: &cfg})
	require.NoError(t, err)
	require.NoError(t, apply())
	require.Empty(t, r.keeps())
	got, warnings = found(t, r.bucket.At(0), c.begin, end-1)
	require.Empty(t, warnings)
	require.Equal(t, want, got)
	require.Empty(t, r.keeps())
}

// TestABrokenBlockBehindTheCache is TestGarbageInTheBucket, where the cache makes the errors.
func TestABrokenBlockBehindTheCache(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	c.cache = 64 << 20
	_, r, end := c.inBucket(3)
	r.counting()
	want, _ := found(t, r.store.Local(), c.begin, end-1)
	broken := c.readable()[0]
	start, _, _ := nameWindow(mustParse(t, broken), testWindow)
	require.NoError(t, os.Truncate(filepath.Join(c.dir, broken, block.ChunksDirname, "000001"), 100))
	got, warnings := found(t, r.bucket.At(0), c.begin, end-1)
	require.NotEmpty(t, warnings)
	rest := 0
	for name, samples := range got {
		for at, v := range samples {
			require.Equal(t, want[name][at], v)
			if at < start || start+testWindow.Milliseconds() <= at {
				rest++
			}
		}
	}
	require.Equal(t, 2*len(want)*int(testWindow/testEvery), rest)
}

// delegate is a real mesh whose replica can come back with another Bucket.
type delegate struct {
	*mesh.Mesh
	once    sync.Once
	current atomic.Pointer[share]
}

func (d *delegate) Server() grpc.ServiceRegistrar { return d }

func (d *delegate) RegisterService(desc *grpc.ServiceDesc, impl any) {
	d.current.Store(impl.(*share))
	d.once.Do(func() { d.Mesh.Server().RegisterService(desc, d) })
}

func (d *delegate) Read(req *peerspb.ReadRequest, srv grpc.ServerStreamingServer[peerspb.ReadReply]) error {
	return d.current.Load().Read(req, srv)
}

// meshed gives the cluster's replicas a real mesh. They meet when meet is called, and leave by stop.
func (c *cluster) meshed() (meet func(), stop map[string]func()) {
	c.t.Helper()
	meshes, stop := map[string]*delegate{}, map[string]func(){}
	var seeds []string
	for _, name := range c.names {
		m, err := mesh.New(mesh.Options{
			Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Dir: c.t.TempDir(),
			ListenAddress: "127.0.0.1:0", GRPCListenAddress: "127.0.0.1:0", HTTPPort: 9090,
			Config: &config.Config{
				Replica: config.Replica{Name: name, Zone: "z-" + name},
				Cluster: &config.Cluster{Name: "c", Peers: seeds}, ClusterKeys: config.Keys{make([]byte, 32)},
			},
		})
		require.NoError(c.t, err)
		seeds = append(seeds, m.Members()[0].Address)
		meshes[name] = &delegate{Mesh: m}
	}
	c.mesh = func(name string) Mesh { return meshes[name] }
	return func() {
		for name, m := range meshes {
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- m.Run(ctx) }()
			stop[name] = sync.OnceFunc(func() { cancel(); require.NoError(c.t, <-done) })
			c.t.Cleanup(stop[name])
		}
		require.Eventually(c.t, func() bool {
			for _, m := range meshes {
				if len(m.Peers()) != len(meshes) {
					return false
				}
			}
			return true
		}, testPatience, 10*time.Millisecond)
	}, stop
}

func TestReplicasShareBlocksOut(t *testing.T) {
	c := newTestCluster(t, "a", "b", "c")
	c.cache = 64 << 20
	meet, stop := c.meshed()
	const n = 6
	all, a, end := c.inBucket(n)
	meet()
	want, _ := found(t, a.store.Local(), c.begin, end-1)
	owned := map[string][]string{}
	for _, id := range c.readable() {
		owner := order(id, c.names)[0]
		owned[owner] = append(owned[owner], id)
	}
	var requests []*countedReads
	total := func() (sum int64) {
		for _, q := range requests {
			sum += q.asked.Load()
		}
		return sum
	}
	for _, r := range all {
		requests = append(requests, r.counting())
	}
	// The first query asks the bucket, each part once, and no other replica's does.
	var after int64
	for i, r := range all {
		got, warnings := found(t, r.bucket.At(0), c.begin, end-1)
		require.Empty(t, warnings)
		require.Equal(t, want, got)
		if i == 0 {
			after = total()
			require.Positive(t, after)
		}
		require.Equal(t, after, total(), r.name)
	}
	for _, r := range all {
		require.ElementsMatch(t, owned[r.name], r.keeps(), r.name)
		s := r.bucket.reader.share
		hits := testutil.ToFloat64(s.disk.hits.WithLabelValues(fromPeer))
		require.Equal(t, len(owned[r.name]) < n, hits > 0)
		for _, reason := range []string{peerSlow, peerUnreached, peerBusy, peerRefused, peerFailed, peerLied} {
			require.Zero(t, r.failed(reason), reason)
		}
	}
	// A restart forgets nothing.
	requests = nil
	for _, r := range all {
		r.restart()
		requests = append(requests, r.counting())
		got, _ := found(t, r.bucket.At(0), c.begin, end-1)
		require.Equal(t, want, got)
	}
	require.Zero(t, total())

	// Who is away costs nothing but a look into the bucket, and what it had is kept by the others.
	var gone, stays *replica
	for _, r := range all {
		if gone == nil && len(owned[r.name]) > 0 {
			gone = r
		} else {
			stays = r
		}
	}
	stop[gone.name]()
	stays.restart()
	q := stays.counting()
	got, warnings := found(t, stays.bucket.At(0), c.begin, end-1)
	require.Empty(t, warnings)
	require.Equal(t, want, got)
	require.Positive(t, q.asked.Load())
	require.Positive(t, stays.failed(peerUnreached))
	require.Subset(t, stays.keeps(), owned[gone.name])
}

// owner is a replica that answers as a test wants it.
type owner struct {
	answer func(req *peerspb.ReadRequest, srv grpc.ServerStreamingServer[peerspb.ReadReply]) error
	asked  atomic.Int64
	conn   *grpc.ClientConn
}

func (o *owner) Read(req *peerspb.ReadRequest, srv grpc.ServerStreamingServer[peerspb.ReadReply]) error {
	o.asked.Add(1)
	return o.answer(req, srv)
}

// Server implements Mesh. Nobody asks.
func (o *owner) Server() grpc.ServiceRegistrar { return grpc.NewServer() }

// Conn implements Mesh.
func (o *owner) Conn(string) (grpc.ClientConnInterface, error) { return o.conn, nil }

// serve makes service reachable by gRPC.
func serve(t *testing.T, service peerspb.BlocksServer) *grpc.ClientConn {
	t.Helper()
	server := grpc.NewServer()
	if service != nil {
		peerspb.RegisterBlocksServer(server, service)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		server.Stop()
		require.NoError(t, <-done)
	})
	return conn
}

// ownedByOther makes a cluster of a replica whose blocks are another one's.
func ownedByOther(t *testing.T, o *owner) (c *cluster, r *replica, end int64) {
	t.Helper()
	c = newTestCluster(t, "a", "b")
	c.cache = 64 << 20
	c.mesh = func(string) Mesh { return o }
	_, r, end = c.inBucket(1)
	require.Len(t, c.readable(), 1)
	// Whose it is depends on its name.
	other := "x"
	for order(c.readable()[0], []string{"a", other})[0] == "a" {
		other += "x"
	}
	r.names = []string{"a", other}
	return c, r, end
}

func TestAnOwnerThatDoesNotHelp(t *testing.T) {
	hang := func(_ *peerspb.ReadRequest, srv grpc.ServerStreamingServer[peerspb.ReadReply]) error {
		<-srv.Context().Done()
		return srv.Context().Err()
	}
	sends := func(add int) func(req *peerspb.ReadRequest, srv grpc.ServerStreamingServer[peerspb.ReadReply]) error {
		return func(req *peerspb.ReadRequest, srv grpc.ServerStreamingServer[peerspb.ReadReply]) error {
			return errors.Join(srv.Send(&peerspb.ReadReply{}), srv.Send(&peerspb.ReadReply{Data: make([]byte, int(req.End-req.Begin)+add)}))
		}
	}
	says := func(c codes.Code) func(*peerspb.ReadRequest, grpc.ServerStreamingServer[peerspb.ReadReply]) error {
		return func(*peerspb.ReadRequest, grpc.ServerStreamingServer[peerspb.ReadReply]) error {
			return status.Error(c, "no")
		}
	}
	for name, x := range map[string]struct {
		answer func(*peerspb.ReadRequest, grpc.ServerStreamingServer[peerspb.ReadReply]) error
		reason string
		again  bool // It is asked again at once.
	}{
		"says nothing":                  {hang, peerSlow, false},
		"answers too little":            {sends(-1), peerLied, false},
		"answers too much":              {sends(1), peerLied, false},
		"ends at once":                  {func(*peerspb.ReadRequest, grpc.ServerStreamingServer[peerspb.ReadReply]) error { return nil }, peerFailed, false},
		"is busy":                       {says(codes.ResourceExhausted), peerBusy, true},
		"cannot read the bucket":        {says(codes.Unknown), peerFailed, false},
		"keeps nothing":                 {says(codes.FailedPrecondition), peerRefused, false},
		"is stopping":                   {says(codes.Unavailable), peerUnreached, false},
		"is of a release without cache": {nil, peerRefused, false},
	} {
		t.Run(name, func(t *testing.T) {
			o := &owner{answer: x.answer}
			var service peerspb.BlocksServer = o
			if x.answer == nil {
				service = nil
			}
			o.conn = serve(t, service)
			c, r, end := ownedByOther(t, o)
			asked := r.counting()
			want, _ := found(t, r.store.Local(), c.begin, end-1)
			got, warnings := found(t, r.bucket.At(0), c.begin, end-1)
			require.Empty(t, warnings)
			require.Equal(t, want, got)
			require.Positive(t, asked.asked.Load())
			require.Positive(t, r.failed(x.reason))
			// While it is left alone, its blocks are one's own.
			require.Equal(t, x.again, len(r.keeps()) == 0)
			if !x.again {
				require.Equal(t, 1.0, r.failed(x.reason))
				require.LessOrEqual(t, o.asked.Load(), int64(1))
			}
		})
	}
}

// TestManyQuestions holds that no more is asked at once than is answered, and that an owner that hangs is waited for once.
func TestManyQuestions(t *testing.T) {
	const questions = 5 * askingAtOnce
	for name, hangs := range map[string]bool{"answers": false, "hangs": true} {
		t.Run(name, func(t *testing.T) {
			var inside, most atomic.Int64
			var once sync.Once
			full := make(chan struct{})
			o := &owner{answer: func(req *peerspb.ReadRequest, srv grpc.ServerStreamingServer[peerspb.ReadReply]) error {
				n := inside.Add(1)
				defer inside.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				if hangs {
					<-srv.Context().Done()
					return srv.Context().Err()
				}
				if err := srv.Send(&peerspb.ReadReply{}); err != nil {
					return err
				}
				if n == askingAtOnce {
					once.Do(func() { close(full) })
				}
				<-full
				return srv.Send(&peerspb.ReadReply{Data: make([]byte, req.End-req.Begin)})
			}}
			o.conn = serve(t, o)
			c := newTestCluster(t, "a")
			c.cache, c.mesh = 64<<20, func(string) Mesh { return o }
			s := c.replica("a").bucket.reader.share
			var jobs sync.WaitGroup
			var answers atomic.Int64
			for n := range int64(questions) {
				jobs.Go(func() {
					data, err := s.ask(t.Context(), "x", testBlock.String()+"/index", n, n+10)
					if err == nil && len(data) == 10 {
						answers.Add(1)
					}
				})
			}
			jobs.Wait()
			if hangs {
				require.Zero(t, answers.Load())
				require.LessOrEqual(t, o.asked.Load(), int64(askingAtOnce))
				return
			}
			require.Equal(t, int64(questions), answers.Load())
			require.Equal(t, int64(askingAtOnce), most.Load())
		})
	}
}

// TestAnsweringOthers has a replica asked what it must not answer, and what it has to read first.
func TestAnsweringOthers(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	c.cache = 64 << 20
	_, r, _ := c.inBucket(1)
	asked := r.counting()
	s := r.bucket.reader.share
	client := peerspb.NewBlocksClient(serve(t, s))
	ask := func(ctx context.Context, object string, begin, end int64) ([]byte, error) {
		stream, err := client.Read(ctx, &peerspb.ReadRequest{Object: object, Begin: begin, End: end})
		if err != nil {
			return nil, err
		}
		var data []byte
		for {
			reply, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return data, nil
			}
			if err != nil {
				return nil, err
			}
			data = append(data, reply.Data...)
		}
	}
	id := c.readable()[0]
	object := id + "/chunks/000001"
	want, err := os.ReadFile(filepath.Join(c.dir, object))
	require.NoError(t, err)
	size := int64(len(want))
	for name, x := range map[string]struct {
		object     string
		begin, end int64
		code       codes.Code
	}{
		"a meta.json":          {id + "/meta.json", 0, 10, codes.InvalidArgument},
		"the configuration":    {"config/tocsin.yml", 0, 10, codes.InvalidArgument},
		"a way out":            {"../" + object, 0, 10, codes.InvalidArgument},
		"before the begin":     {object, -1, 10, codes.InvalidArgument},
		"nothing":              {object, 10, 10, codes.InvalidArgument},
		"backwards":            {object, 10, 5, codes.InvalidArgument},
		"too much":             {object, 0, maxAskBytes + 1, codes.InvalidArgument},
		"beyond the end":       {object, size, size + 1, codes.Unknown},
		"far beyond the end":   {object, 1 << 62, 1<<62 + 5, codes.Unknown},
		"over the end":         {object, size - 1, size + 1, codes.Unknown},
		"a block that is none": {testBlock.String() + "/index", 0, 10, codes.Unknown},
	} {
		_, err := ask(t.Context(), x.object, x.begin, x.end)
		require.Equal(t, x.code, status.Code(err), "%s: %v", name, err)
	}
	require.NotContains(t, r.keeps(), testBlock.String())
	got, err := ask(t.Context(), object, 3, size-5)
	require.NoError(t, err)
	require.Equal(t, want[3:size-5], got)
	before := asked.asked.Load()
	got, err = ask(t.Context(), object, 0, size)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.Equal(t, before, asked.asked.Load(), "it was kept")

	// Many who ask for the same wait for one read, which ends also when they are gone.
	reading, goOn := make(chan struct{}, 10), make(chan struct{})
	asked.before = func(ctx context.Context) error {
		reading <- struct{}{}
		select {
		case <-goOn:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	index := id + "/index"
	ctx, cancel := context.WithCancel(t.Context())
	var jobs sync.WaitGroup
	before = asked.asked.Load()
	for range 5 {
		jobs.Go(func() {
			_, err := ask(ctx, index, 0, 10)
			if status.Code(err) != codes.Canceled {
				t.Errorf("an answer that was not waited for: %v", err)
			}
		})
	}
	<-reading
	require.Eventually(t, func() bool { return len(s.answering) == 5 }, testPatience, time.Millisecond)
	cancel()
	jobs.Wait()
	require.Eventually(t, func() bool { return len(s.answering) == 0 }, testPatience, time.Millisecond)
	close(goOn)
	require.Eventually(t, func() bool { return len(s.reads) == 0 }, testPatience, time.Millisecond)
	require.Equal(t, before+1, asked.asked.Load())
	_, err = ask(t.Context(), index, 0, 10)
	require.NoError(t, err)
	require.Equal(t, before+1, asked.asked.Load())

	// Nobody waits in a queue.
	for range askedAtOnce {
		s.answering <- struct{}{}
	}
	_, err = ask(t.Context(), index, 0, 10)
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	for range askedAtOnce {
		<-s.answering
	}
	for range askedAtOnce {
		s.reads <- struct{}{}
	}
	_, err = ask(t.Context(), index, 0, 11)
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	for range askedAtOnce {
		<-s.reads
	}

	// Who keeps nothing says so, and so does who stops, also in the middle of it.
	s.disk.limit.Store(0)
	_, err = ask(t.Context(), index, 0, 10)
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
	s.disk.limit.Store(64 << 20)
	asked.before = func(ctx context.Context) error {
		reading <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	s.disk.mtx.Lock()
	bound := s.disk.bound
	s.disk.bound = 0
	s.disk.shrink(0)
	s.disk.bound = bound
	s.disk.mtx.Unlock()
	jobs.Go(func() {
		if _, err := ask(t.Context(), index, 0, 10); status.Code(err) != codes.Unavailable {
			t.Errorf("an answer of one that stops: %v", err)
		}
	})
	<-reading
	s.close()
	jobs.Wait()
	_, err = ask(t.Context(), index, 0, 10)
	require.Equal(t, codes.Unavailable, status.Code(err))
}

// TestPieces reads more than one piece, and over the end.
func TestPieces(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	const size = 2*pieceBytes + 1000
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(i * i >> 7)
	}
	require.NoError(t, bkt.Upload(t.Context(), "x", bytes.NewReader(want)))
	for _, x := range []struct{ off, length, end int64 }{
		{0, size, size}, {0, 1, 1}, {5, pieceBytes, 5 + pieceBytes}, {pieceBytes - 1, 2, pieceBytes + 1}, {pieceBytes, pieceBytes, 2 * pieceBytes},
		{size - 1, 1, size}, {size - 7, 16_000, size}, {7, 1<<63 - 1, size},
	} {
		p, err := openPieces(t.Context(), bkt, "x", x.off, x.length)
		require.NoError(t, err)
		got, err := io.ReadAll(p)
		require.NoError(t, err)
		require.NoError(t, p.Close())
		require.True(t, string(want[x.off:x.end]) == string(got), "%v: %d bytes", x, len(got))
	}
	_, err := openPieces(t.Context(), bkt, "x", size, 1)
	require.ErrorContains(t, err, "read x: it has")
	_, err = openPieces(t.Context(), bkt, "y", 0, 1)
	require.ErrorContains(t, err, "read y: ")
}
