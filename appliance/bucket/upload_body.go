package bucket

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/thanos-io/objstore"
)

// counting counts the bytes of files that are uploaded, and leaves out those that are there already.
type counting struct {
	objstore.Bucket
	dir   string
	again bool
	took  func(n int64)
	skip  func(n int64)
}

// Upload implements objstore.Bucket.
func (c *counting) Upload(ctx context.Context, name string, r io.Reader, opts ...objstore.ObjectUploadOption) error {
	f, ok := r.(*os.File)
	if !ok || !strings.HasPrefix(f.Name(), c.dir) {
		return c.Bucket.Upload(ctx, name, r, opts...)
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("look at %s: %w", f.Name(), err)
	}
	if c.again {
		// An object that is not whole has another size, or is not there at all.
		if a, err := c.Bucket.Attributes(ctx, name); err == nil && a.Size == info.Size() {
			c.skip(a.Size)
			return nil
		}
	}
	return c.Bucket.Upload(ctx, name, &countedFile{f, info.Size(), c.took}, opts...)
}

// countedFile has what providers look for in a reader: its size, and that parts of it can be read again.
type countedFile struct {
	f    *os.File
	size int64
	took func(n int64)
}

var (
	_ io.ReadSeeker        = (*countedFile)(nil)
	_ io.ReaderAt          = (*countedFile)(nil)
	_ objstore.ObjectSizer = (*countedFile)(nil)
)

// Read implements io.Reader.
func (c *countedFile) Read(p []byte) (int, error) {
	n, err := c.f.Read(p)
	c.took(int64(n))
	return n, err
}

// ReadAt implements io.ReaderAt.
func (c *countedFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.f.ReadAt(p, off)
	c.took(int64(n))
	return n, err
}

// Seek implements io.Seeker.
func (c *countedFile) Seek(offset int64, whence int) (int64, error) { return c.f.Seek(offset, whence) }

// ObjectSize implements objstore.ObjectSizer.
func (c *countedFile) ObjectSize() (int64, error) { return c.size, nil }
