package bucket

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/thanos-io/objstore"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/block/metadata"
)

// metaGuard stands between the bucket and Thanos's fetcher of meta.json, which reads one of any size, and takes one of another
// version for a failure of the bucket: a single such object, whoever put it there, would make every look at the bucket fail.
// What it refuses becomes garbage, which the fetcher counts as a partial block.
type metaGuard struct {
	objstore.InstrumentedBucketReader
}

// ReaderWithExpectedErrs implements objstore.InstrumentedBucketReader.
func (g metaGuard) ReaderWithExpectedErrs(f objstore.IsOpFailureExpectedFunc) objstore.BucketReader {
	return guardedReader{g.InstrumentedBucketReader.ReaderWithExpectedErrs(f)}
}

// Get implements objstore.BucketReader.
func (g metaGuard) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	return guardedReader{g.InstrumentedBucketReader}.Get(ctx, name)
}

type guardedReader struct{ objstore.BucketReader }

// Get implements objstore.BucketReader.
func (g guardedReader) Get(ctx context.Context, name string) (_ io.ReadCloser, err error) {
	r, err := g.BucketReader.Get(ctx, name)
	if err != nil || !strings.HasSuffix(name, "/"+block.MetaFilename) {
		return r, err
	}
	b, err := io.ReadAll(io.LimitReader(r, maxMetaBytes+1))
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	var version struct {
		Version int `json:"version"`
	}
	if len(b) > maxMetaBytes || json.Unmarshal(b, &version) != nil || version.Version != metadata.TSDBVersion1 {
		b = []byte("refused: too large, no JSON, or of another version")
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}
