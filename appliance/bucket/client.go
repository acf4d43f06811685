package bucket

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-kit/log" //nolint:depguard // What objstore takes.
	"github.com/thanos-io/objstore"
	objclient "github.com/thanos-io/objstore/client"
	"github.com/thanos-io/objstore/providers/azure"
	"github.com/thanos-io/objstore/providers/gcs"
	"github.com/thanos-io/objstore/providers/oci"
	"github.com/thanos-io/objstore/providers/swift"
	"golang.org/x/oauth2"
	"gopkg.in/yaml.v2"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// connectAgain is how long the failure to connect is remembered, so that not every call tries to log in.
const connectAgain = 5 * time.Second

// client is the bucket of the configuration in force: each call goes to the one that is current when it begins.
type client struct {
	current atomic.Pointer[opened]
}

// opened is the bucket of one configuration.
type opened struct {
	objstore.Bucket
	// redact hides the secrets of that configuration: an address in an error can hold one.
	redact func(string) string
}

var _ objstore.Bucket = (*client)(nil)

func newClient(kit kitLogger, cfg *config.Bucket) (*client, error) {
	c := &client{}
	apply, err := c.prepare(kit, cfg)
	if err != nil {
		return nil, err
	}
	return c, apply()
}

// prepare makes a client without asking the bucket anything.
func (c *client) prepare(kit kitLogger, cfg *config.Bucket) (apply func() error, err error) {
	bkt, err := open(redactLogger{kit, cfg.Redact}, cfg)
	if err != nil {
		// What it quotes may be a credential.
		return nil, fmt.Errorf("make a client of the bucket section: %s", cfg.Redact(err.Error()))
	}
	return func() error {
		// The old one is not closed: calls are under way. Its idle connections end by themselves.
		c.current.Store(&opened{bkt, cfg.Redact})
		return nil
	}, nil
}

// open makes a provider's client.
func open(kit log.Logger, cfg *config.Bucket) (objstore.Bucket, error) {
	wrap := func(rt http.RoundTripper) http.RoundTripper { return guardStalls(cfg.RoundTripper(rt)) }
	connect := func() (objstore.Bucket, error) { return objclient.NewBucket(kit, cfg.Objstore, "tocsin", wrap) }
	// These log in, or look whether the bucket is there, before they give a client.
	var unconnected objstore.Bucket
	switch objstore.ObjProvider(cfg.Type) {
	case objstore.FILESYSTEM:
		bkt, err := openFiles(cfg.Name)
		if err != nil {
			return nil, err
		}
		return objstore.NewPrefixedBucket(bkt, cfg.Prefix), nil
	case objstore.SWIFT:
		unconnected = &swift.Container{}
	case objstore.AZURE:
		unconnected = &azure.Bucket{}
	case objstore.OCI:
		unconnected = &oci.Bucket{}
	case objstore.GCS:
		unconnected = &gcs.Bucket{}
		connect = func() (objstore.Bucket, error) { return openGCS(kit, cfg, wrap) }
	default:
		return connect()
	}
	return &lazy{
		provider: unconnected.Provider(), options: unconnected.SupportedIterOptions(), name: cfg.Name, connect: connect,
	}, nil
}

// openGCS makes a client whose tokens go through the same proxy as everything else.
func openGCS(kit log.Logger, cfg *config.Bucket, wrap func(http.RoundTripper) http.RoundTripper) (objstore.Bucket, error) {
	var c objclient.BucketConfig
	if err := yaml.UnmarshalStrict(cfg.Objstore, &c); err != nil {
		return nil, err
	}
	own, err := yaml.Marshal(c.Config)
	if err != nil {
		return nil, err
	}
	ctx := context.WithValue(context.Background(), oauth2.HTTPClient, &http.Client{
		Transport: wrap(http.DefaultTransport), Timeout: stalled,
	})
	bkt, err := gcs.NewBucket(ctx, kit, own, "tocsin", wrap)
	if err != nil {
		return nil, err
	}
	return objstore.NewPrefixedBucket(bkt, c.Prefix), nil
}

// hide takes the secrets out of an error's text. What it wraps stays: the provider tells by it what happened.
func (o *opened) hide(err error) error {
	if err == nil {
		return nil
	}
	if text := o.redact(err.Error()); text != err.Error() {
		return &redactedError{err, text}
	}
	return err
}

// redactedError is an error with a text without secrets.
type redactedError struct {
	err  error
	text string
}

// Error implements error.
func (e *redactedError) Error() string { return e.text }

// Unwrap gives the error that it hides the text of.
func (e *redactedError) Unwrap() error { return e.err }

// Cause is what objstore's providers look for instead of Unwrap.
func (e *redactedError) Cause() error { return e.err }

// redactLogger hides the secrets in what a provider logs.
type redactLogger struct {
	to     kitLogger
	redact func(string) string
}

// Log implements log.Logger.
func (l redactLogger) Log(keyvals ...any) error {
	shown := make([]any, len(keyvals))
	for i, v := range keyvals {
		shown[i] = v
		if i%2 == 1 {
			shown[i] = l.redact(fmt.Sprint(v))
		}
	}
	return l.to.Log(shown...)
}

func (c *client) bkt() *opened { return c.current.Load() }

// Provider implements objstore.Bucket.
func (c *client) Provider() objstore.ObjProvider { return c.bkt().Provider() }

// Upload implements objstore.Bucket.
func (c *client) Upload(ctx context.Context, name string, r io.Reader, opts ...objstore.ObjectUploadOption) error {
	o := c.bkt()
	return o.hide(o.Upload(ctx, name, r, opts...))
}

// Delete implements objstore.Bucket.
func (c *client) Delete(ctx context.Context, name string) error {
	o := c.bkt()
	return o.hide(o.Delete(ctx, name))
}

// Name implements objstore.Bucket.
func (c *client) Name() string { return c.bkt().Name() }

// Iter implements objstore.BucketReader.
func (c *client) Iter(ctx context.Context, dir string, f func(string) error, opts ...objstore.IterOption) error {
	o := c.bkt()
	return o.hide(o.Iter(ctx, dir, f, opts...))
}

// IterWithAttributes implements objstore.BucketReader.
func (c *client) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, opts ...objstore.IterOption) error {
	o := c.bkt()
	return o.hide(o.IterWithAttributes(ctx, dir, f, opts...))
}

// SupportedIterOptions implements objstore.BucketReader.
func (c *client) SupportedIterOptions() []objstore.IterOptionType {
	return c.bkt().SupportedIterOptions()
}

// Get implements objstore.BucketReader.
func (c *client) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	o := c.bkt()
	r, err := o.Get(ctx, name)
	return r, o.hide(err)
}

// GetRange implements objstore.BucketReader.
func (c *client) GetRange(ctx context.Context, name string, off, length int64) (io.ReadCloser, error) {
	o := c.bkt()
	r, err := o.GetRange(ctx, name, off, length)
	return r, o.hide(err)
}

// Exists implements objstore.BucketReader.
func (c *client) Exists(ctx context.Context, name string) (bool, error) {
	o := c.bkt()
	ok, err := o.Exists(ctx, name)
	return ok, o.hide(err)
}

// IsObjNotFoundErr implements objstore.BucketReader.
func (c *client) IsObjNotFoundErr(err error) bool { return c.bkt().IsObjNotFoundErr(err) }

// IsAccessDeniedErr implements objstore.BucketReader.
func (c *client) IsAccessDeniedErr(err error) bool { return c.bkt().IsAccessDeniedErr(err) }

// Attributes implements objstore.BucketReader.
func (c *client) Attributes(ctx context.Context, name string) (objstore.ObjectAttributes, error) {
	o := c.bkt()
	a, err := o.Attributes(ctx, name)
	return a, o.hide(err)
}

// Close implements objstore.Bucket.
func (c *client) Close() error {
	if o := c.bkt(); o != nil {
		return o.Close()
	}
	return nil
}

// lazy is a bucket whose client is made by the first call that needs it, and by a later one if that fails: a bucket that is
// away keeps no replica from starting.
type lazy struct {
	provider objstore.ObjProvider
	options  []objstore.IterOptionType
	name     string
	connect  func() (objstore.Bucket, error)

	ready atomic.Pointer[objstore.Bucket]

	mtx sync.Mutex
	// trying is closed when the attempt under way has ended; nil if there is none.
	trying chan struct{}
	failed time.Time
	err    error // of the last attempt
}

// get gives the client. The attempt to make one goes on when ctx ends: the providers' take none, and bound it themselves.
func (l *lazy) get(ctx context.Context) (objstore.Bucket, error) {
	if bkt := l.ready.Load(); bkt != nil {
		return *bkt, nil
	}
	l.mtx.Lock()
	if l.trying == nil {
		if l.err != nil && time.Since(l.failed) < connectAgain {
			defer l.mtx.Unlock()
			return nil, l.err
		}
		l.trying = make(chan struct{})
		go l.try(l.trying)
	}
	trying := l.trying
	l.mtx.Unlock()
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("connect to the bucket: %w", ctx.Err())
	case <-trying:
	}
	if bkt := l.ready.Load(); bkt != nil {
		return *bkt, nil
	}
	l.mtx.Lock()
	defer l.mtx.Unlock()
	return nil, l.err
}

func (l *lazy) try(done chan struct{}) {
	defer close(done)
	bkt, err := l.connectSafely()
	l.mtx.Lock()
	defer l.mtx.Unlock()
	l.trying = nil
	if err != nil {
		l.err, l.failed = fmt.Errorf("connect to the bucket: %w", err), time.Now()
		return
	}
	l.ready.Store(&bkt)
}

// connectSafely turns a panic in a provider's library, over what a server answered, into an error.
func (l *lazy) connectSafely() (bkt objstore.Bucket, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the provider's client gave up: %v", p)
		}
	}()
	return l.connect()
}

// Provider implements objstore.Bucket.
func (l *lazy) Provider() objstore.ObjProvider { return l.provider }

// Name implements objstore.Bucket.
func (l *lazy) Name() string { return l.name }

// SupportedIterOptions implements objstore.BucketReader.
func (l *lazy) SupportedIterOptions() []objstore.IterOptionType { return l.options }

// Upload implements objstore.Bucket.
func (l *lazy) Upload(ctx context.Context, name string, r io.Reader, opts ...objstore.ObjectUploadOption) error {
	bkt, err := l.get(ctx)
	if err != nil {
		return err
	}
	return bkt.Upload(ctx, name, r, opts...)
}

// Delete implements objstore.Bucket.
func (l *lazy) Delete(ctx context.Context, name string) error {
	bkt, err := l.get(ctx)
	if err != nil {
		return err
	}
	return bkt.Delete(ctx, name)
}

// Iter implements objstore.BucketReader.
func (l *lazy) Iter(ctx context.Context, dir string, f func(string) error, opts ...objstore.IterOption) error {
	bkt, err := l.get(ctx)
	if err != nil {
		return err
	}
	return bkt.Iter(ctx, dir, f, opts...)
}

// IterWithAttributes implements objstore.BucketReader.
func (l *lazy) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, opts ...objstore.IterOption) error {
	bkt, err := l.get(ctx)
	if err != nil {
		return err
	}
	return bkt.IterWithAttributes(ctx, dir, f, opts...)
}

// Get implements objstore.BucketReader.
func (l *lazy) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	bkt, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return bkt.Get(ctx, name)
}

// GetRange implements objstore.BucketReader.
func (l *lazy) GetRange(ctx context.Context, name string, off, length int64) (io.ReadCloser, error) {
	bkt, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return bkt.GetRange(ctx, name, off, length)
}

// Exists implements objstore.BucketReader.
func (l *lazy) Exists(ctx context.Context, name string) (bool, error) {
	bkt, err := l.get(ctx)
	if err != nil {
		return false, err
	}
	return bkt.Exists(ctx, name)
}

// Attributes implements objstore.BucketReader.
func (l *lazy) Attributes(ctx context.Context, name string) (objstore.ObjectAttributes, error) {
	bkt, err := l.get(ctx)
	if err != nil {
		return objstore.ObjectAttributes{}, err
	}
	return bkt.Attributes(ctx, name)
}

// IsObjNotFoundErr implements objstore.BucketReader. What failed before there was a client says nothing of an object.
func (l *lazy) IsObjNotFoundErr(err error) bool {
	bkt := l.ready.Load()
	return bkt != nil && (*bkt).IsObjNotFoundErr(err)
}

// IsAccessDeniedErr implements objstore.BucketReader.
func (l *lazy) IsAccessDeniedErr(err error) bool {
	bkt := l.ready.Load()
	return bkt != nil && (*bkt).IsAccessDeniedErr(err)
}

// Close implements objstore.Bucket.
func (l *lazy) Close() error {
	if bkt := l.ready.Load(); bkt != nil {
		return (*bkt).Close()
	}
	return nil
}
