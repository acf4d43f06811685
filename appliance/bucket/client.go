package bucket

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/thanos-io/objstore"
	objclient "github.com/thanos-io/objstore/client"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// client is the bucket of the configuration in force: each call goes to the one that is current when it begins.
type client struct {
	current atomic.Pointer[objstore.Bucket]
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
	bkt, err := objclient.NewBucket(kit, cfg.Objstore, "tocsin", cfg.RoundTripper)
	if err != nil {
		// What it quotes may be a credential.
		return nil, fmt.Errorf("make a client of the bucket section: %s", cfg.Redact(err.Error()))
	}
	return func() error {
		// The old one is not closed: calls are under way, and the providers' Close does nothing.
		c.current.Store(&bkt)
		return nil
	}, nil
}

func (c *client) bkt() objstore.Bucket { return *c.current.Load() }

// Provider implements objstore.Bucket.
func (c *client) Provider() objstore.ObjProvider { return c.bkt().Provider() }

// Upload implements objstore.Bucket.
func (c *client) Upload(ctx context.Context, name string, r io.Reader, opts ...objstore.ObjectUploadOption) error {
	return c.bkt().Upload(ctx, name, r, opts...)
}

// Delete implements objstore.Bucket.
func (c *client) Delete(ctx context.Context, name string) error { return c.bkt().Delete(ctx, name) }

// Name implements objstore.Bucket.
func (c *client) Name() string { return c.bkt().Name() }

// Iter implements objstore.BucketReader.
func (c *client) Iter(ctx context.Context, dir string, f func(string) error, opts ...objstore.IterOption) error {
	return c.bkt().Iter(ctx, dir, f, opts...)
}

// IterWithAttributes implements objstore.BucketReader.
func (c *client) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, opts ...objstore.IterOption) error {
	return c.bkt().IterWithAttributes(ctx, dir, f, opts...)
}

// SupportedIterOptions implements objstore.BucketReader.
func (c *client) SupportedIterOptions() []objstore.IterOptionType { return c.bkt().SupportedIterOptions() }

// Get implements objstore.BucketReader.
func (c *client) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	return c.bkt().Get(ctx, name)
}

// GetRange implements objstore.BucketReader.
func (c *client) GetRange(ctx context.Context, name string, off, length int64) (io.ReadCloser, error) {
	return c.bkt().GetRange(ctx, name, off, length)
}

// Exists implements objstore.BucketReader.
func (c *client) Exists(ctx context.Context, name string) (bool, error) {
	return c.bkt().Exists(ctx, name)
}

// IsObjNotFoundErr implements objstore.BucketReader.
func (c *client) IsObjNotFoundErr(err error) bool { return c.bkt().IsObjNotFoundErr(err) }

// IsAccessDeniedErr implements objstore.BucketReader.
func (c *client) IsAccessDeniedErr(err error) bool { return c.bkt().IsAccessDeniedErr(err) }

// Attributes implements objstore.BucketReader.
func (c *client) Attributes(ctx context.Context, name string) (objstore.ObjectAttributes, error) {
	return c.bkt().Attributes(ctx, name)
}

// Close implements objstore.Bucket.
func (c *client) Close() error {
	if bkt := c.current.Load(); bkt != nil {
		return (*bkt).Close()
	}
	return nil
}
