package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/thanos/pkg/cache"
	storecache "github.com/thanos-io/thanos/pkg/store/cache"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tocsin-io/tocsin/appliance/bucket/peerspb"
	"github.com/tocsin-io/tocsin/appliance/config"
)

const (
	// pieceBytes is what one reader of an object holds of it at a time: what is asked for in one request to the bucket or to a replica.
	pieceBytes = 64 * subrangeBytes
	// maxAskBytes is what others may ask for at once, maxAskMessage what is sent in one message.
	maxAskBytes, maxAskMessage = 2 * pieceBytes, 1 << 20
	// askHedge is how long the owner of a block may say nothing before the bucket is read instead, askPatience how long it may take
	// for all that was asked: it may have to read the bucket itself.
	askHedge, askPatience = 300 * time.Millisecond, 5 * time.Second
	// askedAtOnce bounds how many questions are answered at once, which bounds the memory that takes, and askingAtOnce how many are asked:
	// what is refused would be kept nowhere.
	askedAtOnce, askingAtOnce = 16, 8
	// ownerReadTimeout bounds how long what was asked for is read from the bucket. It goes on when nobody waits for it any more, because
	// the next one who asks finds it here.
	ownerReadTimeout = 30 * time.Second
	// An owner that failed is not asked for a while. Its blocks are one's own then.
	restSlow, restUnreached, restFailed, restRefused = 5 * time.Second, 2 * time.Second, 5 * time.Second, time.Minute
	restLied                                         = 10 * time.Minute
	// ownersFor is how long the list of replicas is used.
	ownersFor = time.Second
	// maxSubrangeRequests bounds the requests to the bucket for one piece. It is Thanos's.
	maxSubrangeRequests = 3
	// maxSizes bounds the sizes of objects that are remembered, for blocks whose meta.json does not have them, and the blocks of which it is
	// known where their index has what.
	maxSizes = 10_000
)

// Where a part of a block came from, the labels of counters.
const (
	fromDisk = "disk"
	fromPeer = "peer"
)

// Why the owner of a block did not help, the labels of a counter.
const (
	peerSlow      = "peer_slow"
	peerUnreached = "peer_unreached"
	peerBusy      = "peer_busy"
	peerRefused   = "peer_refused" // It has no bucket, or keeps nothing.
	peerFailed    = "peer_failed"
	peerLied      = "peer_lied"
)

var (
	errOwnerSlow = errors.New("it did not answer in time")
	errOwnerRest = errors.New("it failed a moment ago")
	errOwnerBusy = errors.New("too much is asked of others already")
	errClosed    = errors.New("this replica is stopping")
	errLength    = errors.New("the answer has not the length that was asked for")
)

// Mesh is how the caches of the replicas reach each other.
type Mesh interface {
	// Server takes what the others may call, and Conn calls them.
	Server() grpc.ServiceRegistrar
	Conn(member string) (grpc.ClientConnInterface, error)
}

// share is this replica's part of the replicas' common cache: each block has one replica that keeps it, its owner, and the others ask
// that one. It is the bucket that the reader reads.
type share struct {
	// CachingBucket reads through the own cache, and the owners'.
	*storecache.CachingBucket
	b       *Bucket
	disk    *diskCache
	headers *headers
	// own reads through the own cache alone, for who asks: an owner never asks anybody else.
	own    *storecache.CachingBucket
	sizes  *sizes
	owners atomic.Pointer[owners]

	ctx     context.Context
	stop    context.CancelFunc
	reading singleflight.Group
	// asking has a place for each question to others at once, answering for each of theirs, and reads for each read for these.
	asking, answering, reads chan struct{}

	mtx    sync.Mutex
	closed bool
	jobs   sync.WaitGroup
	rests  map[string]time.Time // until when a replica is not asked
	// contents are the sections of the indexes that were read last.
	contents *simplelru.LRU[ulid.ULID, sections]

	served prometheus.Counter
}

// owners are those among whom the blocks are shared out.
type owners struct {
	at    time.Time
	names []string
}

var (
	_ objstore.InstrumentedBucket = (*share)(nil)
	_ peerspb.BlocksServer        = (*share)(nil)
)

func newShare(b *Bucket, loaded func() *view) (*share, error) {
	s := &share{
		b: b, rests: map[string]time.Time{}, headers: newHeaders(b.logger, b.o.Registerer, filepath.Join(b.o.Dir, "headers")),
		asking: make(chan struct{}, askingAtOnce), answering: make(chan struct{}, askedAtOnce), reads: make(chan struct{}, askedAtOnce),
		served: promauto.With(b.o.Registerer).NewCounter(prometheus.CounterOpts{
			Name: "tocsin_bucket_cache_served_bytes_total",
			Help: "Size of the parts of blocks that other replicas got from this one.",
		}),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	var err error
	if s.disk, err = newDiskCache(b.logger, b.o.Registerer, filepath.Join(b.o.Dir, "cache")); err != nil {
		return nil, err
	}
	if s.sizes, err = newSizes(loaded); err != nil {
		return nil, err
	}
	if s.contents, err = simplelru.NewLRU[ulid.ULID, sections](maxSizes, nil); err != nil {
		return nil, fmt.Errorf("make the cache of the bucket: %w", err)
	}
	for _, reason := range []string{peerSlow, peerUnreached, peerBusy, peerRefused, peerFailed, peerLied} {
		s.disk.failures.WithLabelValues(reason)
	}
	s.disk.limit.Store(int64(b.o.Config.Bucket.Cache.Size))
	if s.own, err = s.caching(ownCache{s}, nil); err != nil {
		return nil, err
	}
	if s.CachingBucket, err = s.caching(commonCache{ownCache{s}}, b.o.Registerer); err != nil {
		return nil, err
	}
	if b.o.Mesh != nil {
		peerspb.RegisterBlocksServer(b.o.Mesh.Server(), s)
	}
	return s, nil
}

func (s *share) caching(c cache.Cache, reg prometheus.Registerer) (*storecache.CachingBucket, error) {
	const forEver = 10 * 365 * 24 * time.Hour
	cfg := cache.NewCachingBucketConfig()
	cfg.CacheAttributes("blocks", c, isBlockObject, forEver)
	cfg.CacheGetRange("blocks", c, isBlockObject, int64(subrangeBytes), forEver, forEver, maxSubrangeRequests)
	bkt, err := storecache.NewCachingBucket(s.b.bkt, cfg, s.b.kit, reg)
	if err != nil {
		return nil, fmt.Errorf("make the cache of the bucket: %w", err)
	}
	return bkt, nil
}

func isBlockObject(name string) bool {
	_, _, ok := parseObject(name)
	return ok
}

// configure takes the size of the configuration in force.
func (s *share) configure(c config.BucketCache) {
	s.disk.limit.Store(int64(c.Size))
	s.tidy()
}

// tidy holds what is on disk to its bounds.
func (s *share) tidy() {
	s.disk.tidy()
	s.headers.tidy(max(s.disk.limit.Load(), int64(config.DefaultCacheSize)))
}

// run finds what an earlier process has kept, and looks after the disk until ctx ends.
func (s *share) run(ctx context.Context) error {
	for {
		if !s.disk.ready() {
			if err := s.disk.list(ctx); err != nil && ctx.Err() == nil {
				s.b.logger.Warn("cannot use the cache of the bucket; it is tried again", "in", cacheTidy, "err", err)
			}
		}
		s.tidy()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(cacheTidy):
		}
	}
}

// close ends what goes on for others.
func (s *share) close() {
	s.mtx.Lock()
	s.closed = true
	s.mtx.Unlock()
	s.stop()
	s.jobs.Wait()
}

// enter begins something that close waits for.
func (s *share) enter() bool {
	s.mtx.Lock()
	defer s.mtx.Unlock()
	if s.closed {
		return false
	}
	s.jobs.Add(1)
	return true
}

// uncached marks what is read to be kept elsewhere.
type uncached struct{}

// pastCache makes what is read with the context go past the cache: an index header is kept as a file of its own.
func pastCache(ctx context.Context) context.Context { return context.WithValue(ctx, uncached{}, true) }

// passes tells whether a read goes to the bucket itself.
func (s *share) passes(ctx context.Context, name string) bool {
	return s.disk.limit.Load() == 0 || ctx.Value(uncached{}) != nil || !isBlockObject(name)
}

// Attributes implements objstore.BucketReader.
func (s *share) Attributes(ctx context.Context, name string) (objstore.ObjectAttributes, error) {
	if s.passes(ctx, name) {
		return s.b.bkt.Attributes(ctx, name)
	}
	return s.CachingBucket.Attributes(ctx, name)
}

// GetRange implements objstore.BucketReader. What Thanos's reader asks for begins with an entry of the object, but for what it makes an
// index header of, whose checksums it looks at itself.
func (s *share) GetRange(ctx context.Context, name string, off, length int64) (io.ReadCloser, error) {
	id, file, ok := parseObject(name)
	if ok {
		s.headers.use(id)
	}
	if !ok || off < 0 || length <= 0 || ctx.Value(uncached{}) != nil {
		return s.getRange(ctx, name, off, length, false)
	}
	check := func(of entries, begin int64) (*checkedReader, error) {
		return openChecked(ctx, s.b.logger, of, name, begin, off+length-begin, func(from int64, past bool) (io.ReadCloser, error) {
			return s.getRange(ctx, name, from, off+length+checksumBytes-from, past)
		})
	}
	if file > 0 {
		return check(chunkEntries, off)
	}
	in, err := s.sections(ctx, id, name)
	if err != nil {
		return nil, err
	}
	switch {
	case in.series.has(off):
		return check(seriesEntries(in.series.end), off)
	case in.postings.has(off):
		// It knows their length already.
		c, err := check(postingsEntries(in.postings.begin, in.postings.end), off-postingsLength)
		if err == nil {
			_, err = io.CopyN(io.Discard, c, postingsLength)
		}
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return c, nil
	}
	return s.getRange(ctx, name, off, length, false)
}

// getRange reads through the caches, or past them.
func (s *share) getRange(ctx context.Context, name string, off, length int64, past bool) (io.ReadCloser, error) {
	if past || off < 0 || length <= 0 || s.passes(ctx, name) {
		return s.b.bkt.GetRange(ctx, name, off, length)
	}
	return openPieces(ctx, s.CachingBucket, name, off, length)
}

// WithExpectedErrs implements objstore.InstrumentedBucket.
func (s *share) WithExpectedErrs(objstore.IsOpFailureExpectedFunc) objstore.Bucket { return s }

// ReaderWithExpectedErrs implements objstore.InstrumentedBucketReader.
func (s *share) ReaderWithExpectedErrs(objstore.IsOpFailureExpectedFunc) objstore.BucketReader {
	return s
}

// pieces reads a part of an object piece by piece: Thanos's CachingBucket holds all of what it is asked for in memory.
type pieces struct {
	ctx      context.Context
	bkt      objstore.BucketReader
	name     string
	off, end int64
	piece    io.ReadCloser
}

// openPieces reads the first piece. What lies beyond the object's end is left out, unless all does: that is an error, which Thanos's
// CachingBucket does not find.
func openPieces(ctx context.Context, bkt objstore.BucketReader, name string, off, length int64) (*pieces, error) {
	a, err := bkt.Attributes(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if off >= a.Size {
		return nil, fmt.Errorf("read %s: it has %d bytes, and is to be read from byte %d on", name, a.Size, off)
	}
	p := &pieces{ctx: ctx, bkt: bkt, name: name, off: off, end: off + min(length, a.Size-off)}
	return p, p.next()
}

func (p *pieces) next() (err error) {
	end := min(p.end, (p.off/pieceBytes+1)*pieceBytes)
	if p.piece, err = p.bkt.GetRange(p.ctx, p.name, p.off, end-p.off); err != nil {
		p.piece = nil
		return fmt.Errorf("read %s: %w", p.name, err)
	}
	p.off = end
	return nil
}

// Read implements io.Reader.
func (p *pieces) Read(b []byte) (int, error) {
	for p.piece != nil {
		n, err := p.piece.Read(b)
		switch {
		case n > 0:
			return n, nil
		case err == nil:
			return 0, nil
		case !errors.Is(err, io.EOF):
			return 0, fmt.Errorf("read %s: %w", p.name, err)
		}
		if err := p.Close(); err != nil {
			return 0, fmt.Errorf("read %s: %w", p.name, err)
		}
		if p.off < p.end {
			if err := p.next(); err != nil {
				return 0, err
			}
		}
	}
	return 0, io.EOF
}

// Close implements io.Closer.
func (p *pieces) Close() error {
	if p.piece == nil {
		return nil
	}
	piece := p.piece
	p.piece = nil
	return piece.Close()
}

// Name implements cache.Cache.
func (ownCache) Name() string { return "disk" }

// Name implements cache.Cache.
func (commonCache) Name() string { return "replicas" }

// owner is the replica that keeps a block. That of one that cannot be asked is this one.
func (s *share) owner(id ulid.ULID) string {
	self := s.b.o.Replica
	if s.b.o.Mesh == nil {
		return self
	}
	o := s.owners.Load()
	if o == nil || time.Since(o.at) > ownersFor {
		o = &owners{time.Now(), s.b.o.Replicas()}
		s.owners.Store(o)
	}
	if len(o.names) == 0 {
		return self
	}
	owner := order(id.String(), o.names)[0]
	if s.resting(owner) {
		return self
	}
	return owner
}

// resting tells whether a replica is left alone.
func (s *share) resting(owner string) bool {
	s.mtx.Lock()
	defer s.mtx.Unlock()
	return time.Now().Before(s.rests[owner])
}

// ask asks the owner of a block for [begin, end) of one of its objects. An error is counted here, and costs nothing but time: only the
// length is checked here. What is damaged, checkedReader reads again past the caches; who has the cluster's key is trusted further, as with the
// data that replicas heal from.
func (s *share) ask(ctx context.Context, owner, object string, begin, end int64) ([]byte, error) {
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	case <-time.After(askPatience):
		s.disk.failures.WithLabelValues(peerBusy).Inc()
		return nil, errOwnerBusy
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s.resting(owner) {
		return nil, errOwnerRest
	}
	asking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	data, err := s.receive(asking, cancel, owner, &peerspb.ReadRequest{Object: object, Begin: begin, End: end})
	if err == nil {
		return data, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	reason, rest := peerFailed, restFailed
	switch code := status.Code(err); {
	case errors.Is(context.Cause(asking), errOwnerSlow):
		reason, rest = peerSlow, restSlow
	case errors.Is(err, errLength):
		reason, rest = peerLied, restLied
	case code == codes.ResourceExhausted:
		reason, rest = peerBusy, 0
	case code == codes.Unavailable:
		reason, rest = peerUnreached, restUnreached
	case code == codes.Unimplemented, code == codes.FailedPrecondition:
		reason, rest = peerRefused, restRefused
	}
	s.disk.failures.WithLabelValues(reason).Inc()
	if rest > 0 {
		s.rest(owner, rest, reason, err)
	}
	return nil, err
}

// rest leaves a replica alone for a while.
func (s *share) rest(owner string, d time.Duration, reason string, err error) {
	s.mtx.Lock()
	defer s.mtx.Unlock()
	now := time.Now()
	for name, until := range s.rests {
		if now.After(until) {
			delete(s.rests, name)
		}
	}
	if _, already := s.rests[owner]; !already {
		s.b.logger.Debug("a replica does not help with blocks of the bucket; they are read from there", "replica", owner, "for", d,
			"reason", reason, "err", err)
	}
	s.rests[owner] = now.Add(d)
}

// receive gets an answer of exactly the length that is asked for. It cancels with errOwnerSlow what takes too long.
func (s *share) receive(ctx context.Context, cancel context.CancelCauseFunc, owner string, req *peerspb.ReadRequest) ([]byte, error) {
	silence := time.AfterFunc(askHedge, func() { cancel(errOwnerSlow) })
	defer silence.Stop()
	conn, err := s.b.o.Mesh.Conn(owner)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "reach replica %s: %s", owner, err)
	}
	stream, err := peerspb.NewBlocksClient(conn).Read(ctx, req)
	if err != nil {
		return nil, err
	}
	if _, err := stream.Recv(); err != nil {
		return nil, err
	}
	if !silence.Reset(askPatience) {
		return nil, errOwnerSlow
	}
	want := int(req.End - req.Begin)
	data := make([]byte, 0, want)
	for {
		reply, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if len(data)+len(reply.Data) > want {
			return nil, errLength
		}
		data = append(data, reply.Data...)
	}
	if len(data) != want {
		return nil, errLength
	}
	return data, nil
}

// Read implements peerspb.BlocksServer.
func (s *share) Read(req *peerspb.ReadRequest, srv grpc.ServerStreamingServer[peerspb.ReadReply]) error {
	switch {
	case !isBlockObject(req.Object), req.Begin < 0, req.End <= req.Begin, req.End-req.Begin > maxAskBytes:
		return status.Error(codes.InvalidArgument, "this is no part of a block that can be asked for")
	case s.disk.limit.Load() == 0:
		return status.Error(codes.FailedPrecondition, "this replica keeps nothing of blocks")
	}
	select {
	case s.answering <- struct{}{}:
		defer func() { <-s.answering }()
	default:
		return status.Error(codes.ResourceExhausted, "too many questions at once")
	}
	if err := srv.Send(&peerspb.ReadReply{}); err != nil {
		return err
	}
	data, err := s.readFor(srv.Context(), req)
	if err != nil {
		return err
	}
	for len(data) > 0 {
		n := min(len(data), maxAskMessage)
		if err := srv.Send(&peerspb.ReadReply{Data: data[:n]}); err != nil {
			return err
		}
		s.served.Add(float64(n))
		data = data[n:]
	}
	return nil
}

// readFor reads through the own cache. Who asks for the same at the same time gets the same.
func (s *share) readFor(ctx context.Context, req *peerspb.ReadRequest) ([]byte, error) {
	result := s.reading.DoChan(fmt.Sprintf("%s:%d:%d", req.Object, req.Begin, req.End), func() (any, error) {
		if !s.enter() {
			return nil, status.Error(codes.Unavailable, errClosed.Error())
		}
		defer s.jobs.Done()
		select {
		case s.reads <- struct{}{}:
			defer func() { <-s.reads }()
		default:
			return nil, status.Error(codes.ResourceExhausted, "too many reads at once")
		}
		ctx, cancel := context.WithTimeout(s.ctx, ownerReadTimeout)
		defer cancel()
		return readPart(ctx, s.own, req)
	})
	select {
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-s.ctx.Done():
		return nil, status.Error(codes.Unavailable, errClosed.Error())
	case r := <-result:
		if r.Err != nil {
			if _, ours := status.FromError(r.Err); ours {
				return nil, r.Err
			}
			return nil, status.Error(codes.Unknown, s.b.o.Config.Bucket.Redact(r.Err.Error()))
		}
		return r.Val.([]byte), nil
	}
}

func readPart(ctx context.Context, bkt objstore.BucketReader, req *peerspb.ReadRequest) (data []byte, err error) {
	r, err := openPieces(ctx, bkt, req.Object, req.Begin, req.End-req.Begin)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if r.end != req.End {
		return nil, fmt.Errorf("read %s: it ends at byte %d, before byte %d", req.Object, r.end, req.End)
	}
	data = make([]byte, req.End-req.Begin)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, fmt.Errorf("read %s: %w", req.Object, err)
	}
	return data, nil
}
