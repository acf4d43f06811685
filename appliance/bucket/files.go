package bucket

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/prometheus/prometheus/tsdb/fileutil"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/filesystem"
)

// uploadDir is the folder, in the bucket's own, where files are until they are whole. It must be in the same file system.
const uploadDir = ".tocsin-upload"

// moveTries bounds how often the folder of an object is made anew when somebody removes it for being empty.
const moveTries = 10

// files is a bucket that is a folder. objstore's writes to the final name: a reader sees half a file, and so does everybody after
// a kill or a loss of power. Here an object is there whole and on the disk, or not at all.
type files struct {
	*filesystem.Bucket
	root string
}

var _ objstore.Bucket = (*files)(nil)

// openFiles makes a bucket of a folder, which need not be there yet, and removes what uploads that were cut off left there.
func openFiles(dir string) (*files, error) {
	b, err := newFiles(dir)
	if err != nil {
		return nil, err
	}
	return b, b.clean()
}

// newFiles makes a bucket of a folder, and touches nothing there.
func newFiles(dir string) (*files, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("open the folder of the bucket: %q is no absolute path", dir)
	}
	dir = filepath.Clean(dir)
	bkt, err := filesystem.NewBucket(dir)
	if err != nil {
		return nil, fmt.Errorf("open the folder of the bucket: %w", err)
	}
	return &files{Bucket: bkt, root: dir}, nil
}

// clean removes unfinished uploads. Those of another process on the same folder are locked.
func (b *files) clean() error {
	dir := filepath.Join(b.root, uploadDir)
	left, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for unfinished uploads: %w", err)
	}
	for _, e := range left {
		if err := removeUnlocked(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove an unfinished upload: %w", err)
		}
	}
	return nil
}

func removeUnlocked(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // It was only locked.
	if errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK) {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// hidden tells whether a name is not one of an object.
func hidden(name string) bool {
	first, _, _ := strings.Cut(filepath.Clean(name), objstore.DirDelim)
	return first == uploadDir
}

// Upload implements objstore.Bucket.
func (b *files) Upload(ctx context.Context, name string, r io.Reader, _ ...objstore.ObjectUploadOption) (err error) {
	if hidden(name) || !filepath.IsLocal(name) || filepath.Clean(name) == "." {
		return fmt.Errorf("%q is no name of an object", name)
	}
	dir := filepath.Join(b.root, uploadDir)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("upload %s: %w", name, err)
	}
	tmp := filepath.Join(dir, rand.Text())
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if err != nil {
		return fmt.Errorf("upload %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp) // Otherwise the next start does it.
			err = fmt.Errorf("upload %s: %w", name, err)
		}
	}()
	// The lock lasts until the file is where it belongs. Where a file system has none, an upload may be cut off by another's start.
	_ = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, interruptible{ctx, r}); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return b.move(tmp, filepath.Join(b.root, name))
}

// move gives a file its final name, and that to the disk.
func (b *files) move(from, to string) (err error) {
	for range moveTries {
		if err = os.MkdirAll(filepath.Dir(to), 0o777); err != nil {
			return err
		}
		err = fileutil.Rename(from, to)
		// A Delete that has removed the folder as empty is no reason to fail.
		if _, gone := os.Stat(filepath.Dir(to)); err == nil || gone == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	// Rename has brought the folder's content to the disk; the folders above may be new as well.
	for dir := filepath.Dir(to); dir != b.root && len(dir) > len(b.root); {
		dir = filepath.Dir(dir)
		if err := syncFolder(dir); err != nil {
			return err
		}
	}
	return nil
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// interruptible is a reader that ends with its context.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (i interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(p)
}

// Iter implements objstore.BucketReader.
func (b *files) Iter(ctx context.Context, dir string, f func(string) error, opts ...objstore.IterOption) error {
	return b.Bucket.Iter(ctx, dir, func(name string) error {
		if hidden(name) {
			return nil
		}
		return f(name)
	}, opts...)
}

// IterWithAttributes implements objstore.BucketReader.
func (b *files) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, opts ...objstore.IterOption) error {
	return b.Bucket.IterWithAttributes(ctx, dir, func(attrs objstore.IterObjectAttributes) error {
		if hidden(attrs.Name) {
			return nil
		}
		return f(attrs)
	}, opts...)
}

// Get implements objstore.BucketReader.
func (b *files) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	return b.GetRange(ctx, name, 0, -1)
}

// GetRange implements objstore.BucketReader.
func (b *files) GetRange(ctx context.Context, name string, off, length int64) (io.ReadCloser, error) {
	if hidden(name) {
		return nil, notThere("open", name)
	}
	return b.Bucket.GetRange(ctx, name, off, length)
}

// Exists implements objstore.BucketReader.
func (b *files) Exists(ctx context.Context, name string) (bool, error) {
	if hidden(name) {
		return false, nil
	}
	return b.Bucket.Exists(ctx, name)
}

// Attributes implements objstore.BucketReader.
func (b *files) Attributes(ctx context.Context, name string) (objstore.ObjectAttributes, error) {
	if hidden(name) {
		return objstore.ObjectAttributes{}, notThere("stat", name)
	}
	return b.Bucket.Attributes(ctx, name)
}

// Delete implements objstore.Bucket. objstore's removes whatever has the name, a folder with all that is in it too, and folders that
// were empty a moment ago with what has come into them since. As there, it is no error when the object is not there.
func (b *files) Delete(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if hidden(name) || !filepath.IsLocal(name) || filepath.Clean(name) == "." {
		return fmt.Errorf("%q is no name of an object", name)
	}
	file := filepath.Join(b.root, name)
	err := syscall.Unlink(file)
	for errors.Is(err, syscall.EINTR) {
		err = syscall.Unlink(file)
	}
	// A file where the name has a folder: then there is no such object either.
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	for dir := filepath.Dir(file); len(dir) > len(b.root); dir = filepath.Dir(dir) {
		if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			break // Somebody needs it.
		}
	}
	return nil
}

// IsObjNotFoundErr implements objstore.BucketReader.
func (b *files) IsObjNotFoundErr(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || b.Bucket.IsObjNotFoundErr(err)
}

// IsAccessDeniedErr implements objstore.BucketReader.
func (b *files) IsAccessDeniedErr(err error) bool { return errors.Is(err, fs.ErrPermission) }

func notThere(op, name string) error { return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist} }
