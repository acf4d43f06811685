package bucket

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/block/metadata"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// verify looks, of each block that another replica uploaded of a window that this one has too, whether all is there that its
// meta.json promises. Once is enough, but one that failed is looked at again and again: it may have been a listing that lags.
func (u *uploader) verify(ctx context.Context, v *view) error {
	for _, id := range u.unchecked(v) {
		m := v.blocks[id]
		missing, err := u.missing(ctx, id, m)
		if err != nil {
			return fmt.Errorf("check block %s: %w", id, err)
		}
		before := u.b.catalogue.trusted(id)
		u.b.catalogue.trust(id, missing)
		switch {
		case missing == "":
			u.mtx.Lock()
			u.checked[id] = struct{}{}
			u.mtx.Unlock()
		case before:
			begin, _, _ := nameWindow(id, u.b.o.Window)
			u.broken.Inc()
			u.b.logger.Error("a block of the bucket is broken; its window is uploaded again", "block", id,
				"window", time.UnixMilli(begin).UTC(), "by", m.Thanos.Labels[config.ReplicaLabel], "problem", missing)
		}
	}
	return nil
}

// unchecked are the blocks that verify is about, oldest first. It forgets those that are gone.
func (u *uploader) unchecked(v *view) (ids []ulid.ULID) {
	shared := u.b.shared()
	u.mtx.Lock()
	defer u.mtx.Unlock()
	for id := range u.checked {
		if v.blocks[id] == nil {
			delete(u.checked, id)
		}
	}
	for id, m := range v.blocks {
		begin, _, ours := nameWindow(id, u.b.o.Window)
		_, here := u.windows[begin]
		_, done := u.checked[id]
		if ours && here && !done && labels.Equal(config.Shared(labels.FromMap(m.Thanos.Labels)), shared) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, ulid.ULID.Compare)
	return ids
}

// missing says what of a block is not as its meta.json has it.
func (u *uploader) missing(ctx context.Context, id ulid.ULID, m *metadata.Meta) (string, error) {
	files := m.Thanos.Files
	if len(files) > maxMetaFiles {
		return fmt.Sprintf("meta.json lists %d files", len(files)), nil
	}
	if !slices.ContainsFunc(files, func(f metadata.File) bool { return f.RelPath == block.IndexFilename }) {
		files = append(slices.Clip(files), metadata.File{RelPath: block.IndexFilename})
	}
	bkt := u.b.bkt.ReaderWithExpectedErrs(u.b.bkt.IsObjNotFoundErr)
	for _, f := range files {
		if f.RelPath == block.MetaFilename {
			continue
		}
		if !filepath.IsLocal(f.RelPath) {
			return fmt.Sprintf("meta.json lists the file %q", f.RelPath), nil
		}
		a, err := bkt.Attributes(ctx, path.Join(id.String(), filepath.ToSlash(f.RelPath)))
		switch {
		case u.b.bkt.IsObjNotFoundErr(err):
			return f.RelPath + " is not there", nil
		case err != nil:
			return "", err
		case f.SizeBytes != 0 && a.Size != f.SizeBytes:
			return fmt.Sprintf("%s has %d bytes, not %d", f.RelPath, a.Size, f.SizeBytes), nil
		}
	}
	return "", nil
}
