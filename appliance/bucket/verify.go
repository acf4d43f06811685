package bucket

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/block/metadata"
	"golang.org/x/sync/errgroup"
)

// Progress is how far a Verify is.
type Progress struct {
	mtx         sync.Mutex
	phase       string
	total       int64
	done        atomic.Int64
	whatIsTotal string
}

func (p *Progress) begin(phase, unit string, total int64) {
	p.mtx.Lock()
	defer p.mtx.Unlock()
	p.done.Store(0)
	p.phase, p.whatIsTotal, p.total = phase, unit, total
}

// String is one sentence for people.
func (p *Progress) String() string {
	p.mtx.Lock()
	defer p.mtx.Unlock()
	if p.total <= 0 {
		return p.phase
	}
	// The total is what a meta.json says.
	done := min(p.done.Load(), p.total)
	return fmt.Sprintf("%s: %d%% of %d %s", p.phase, int64(100*float64(done)/float64(p.total)), p.total, p.whatIsTotal)
}

// Verify reads all of a block and says what is wrong with it; an error says that it could not find out. The block is in a folder
// below dir meanwhile.
func (s *Survey) Verify(ctx context.Context, id ulid.ULID, dir string, p *Progress) (broken, err error) {
	broken, err = s.verify(ctx, id, dir, p)
	if broken == nil && err == nil {
		return nil, nil
	}
	// What is deleted loses its meta.json first.
	if _, there, readErr := s.read(ctx, path.Join(id.String(), block.MetaFilename), 1); readErr == nil && !there {
		return ErrNoMeta, nil
	}
	return broken, err
}

func (s *Survey) verify(ctx context.Context, id ulid.ULID, dir string, p *Progress) (broken, err error) {
	p.begin("looking at its files", "", 0)
	m, _, broken, err := s.meta(ctx, id)
	if broken != nil || err != nil {
		return broken, err
	}
	if err := checkMeta(id, m); err != nil {
		return err, nil
	}
	for _, f := range m.Thanos.Files {
		if !filepath.IsLocal(f.RelPath) {
			return fmt.Errorf("its meta.json lists the file %q", f.RelPath), nil
		}
	}
	sizes, broken, err := blockFiles(ctx, s.bkt, m)
	if broken != nil || err != nil {
		return broken, err
	}
	if err := s.unlisted(ctx, m, sizes); err != nil {
		return nil, err
	}
	dir, err = os.MkdirTemp(dir, "tocsin-verify-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for block %s: %w", id, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if broken, err := s.download(ctx, m, sizes, dir, p); broken != nil || err != nil {
		return broken, err
	}
	if err := m.WriteToDir(s.kit, dir); err != nil {
		return nil, fmt.Errorf("write the meta.json of block %s: %w", id, err)
	}
	p.begin("reading it", "series", int64(min(m.Stats.NumSeries, 1<<40)))
	broken = readWhole(ctx, s.kit, dir, m, func() { p.done.Add(1) })
	return broken, ctx.Err()
}

// unlisted adds the chunks of a block of which the meta.json lists no files: old programs did not.
func (s *Survey) unlisted(ctx context.Context, m *metadata.Meta, sizes map[string]int64) error {
	if len(sizes) > 1 {
		return nil
	}
	prefix := m.ULID.String() + objstore.DirDelim
	var names []string
	errMany := fmt.Errorf("block %s has more than %d files", m.ULID, maxMetaFiles)
	err := s.bkt.Iter(ctx, prefix+block.ChunksDirname+objstore.DirDelim, func(name string) error {
		if !strings.HasSuffix(name, objstore.DirDelim) {
			names = append(names, strings.TrimPrefix(name, prefix))
		}
		if len(names) > maxMetaFiles {
			return errMany
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list the objects of block %s: %w", m.ULID, err)
	}
	for _, name := range names {
		a, err := s.bkt.Attributes(ctx, path.Join(prefix, name))
		if err != nil {
			return fmt.Errorf("look at file %s of block %s: %w", name, m.ULID, err)
		}
		if filepath.IsLocal(name) {
			sizes[name] = a.Size
		}
	}
	return nil
}

// download copies those files of a block, and no byte more, and compares their hashes with those of the meta.json.
func (s *Survey) download(ctx context.Context, m *metadata.Meta, sizes map[string]int64, dir string, p *Progress) (broken, err error) {
	total := int64(0)
	for _, size := range sizes {
		total += size
	}
	free, err := freeBytes(dir)
	if err != nil {
		return nil, err
	}
	if uint64(total)+spareBytes > free {
		return nil, fmt.Errorf("block %s has %d MiB, and %s has %d MiB free: set TMPDIR to a folder with more", m.ULID, total>>20, filepath.Dir(dir), free>>20)
	}
	if err := os.MkdirAll(filepath.Join(dir, block.ChunksDirname), 0o750); err != nil {
		return nil, fmt.Errorf("make a folder for block %s: %w", m.ULID, err)
	}
	hashes := map[string]string{}
	for _, f := range m.Thanos.Files {
		if f.Hash != nil && f.Hash.Func == metadata.SHA256Func {
			hashes[f.RelPath] = f.Hash.Value
		}
	}
	p.begin("downloading it", "bytes", total)
	var (
		mtx   sync.Mutex
		wrong []string
	)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fileConcurrency)
	for name, size := range sizes {
		g.Go(func() error {
			sum := sha256.New()
			if err := s.copy(ctx, m.ULID, name, size, dir, sum, p); err != nil {
				return fmt.Errorf("download file %s of block %s: %w", name, m.ULID, err)
			}
			if want, ok := hashes[name]; ok && want != hex.EncodeToString(sum.Sum(nil)) {
				mtx.Lock()
				defer mtx.Unlock()
				wrong = append(wrong, name)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		return fmt.Errorf("its file %s is not what was uploaded: the hash in its meta.json is another", strings.Join(wrong, ", ")), nil
	}
	return nil, nil
}

func (s *Survey) copy(ctx context.Context, id ulid.ULID, name string, size int64, dir string, sum hash.Hash, p *Progress) (err error) {
	r, err := s.bkt.Get(ctx, path.Join(id.String(), filepath.ToSlash(name)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	to := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(to), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.MultiWriter(f, sum, counted{p}), io.LimitReader(interruptible{ctx, r}, size))
	if err == nil && n != size {
		err = fmt.Errorf("only %d of %d bytes came", n, size)
	}
	return errors.Join(err, f.Close())
}

// counted counts what is written to it.
type counted struct{ p *Progress }

// Write implements io.Writer.
func (c counted) Write(b []byte) (int, error) {
	c.p.done.Add(int64(len(b)))
	return len(b), nil
}
