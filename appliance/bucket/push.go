package bucket

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"
)

const (
	// keptPushes is how many earlier configurations stay in the bucket.
	keptPushes = 10
	// historyTime makes the names of the history sort by time.
	historyTime = "20060102T150405.000Z"
)

// Depot is a configuration in the bucket, for the commands that change it.
type Depot struct {
	Bucket objstore.Bucket
	// Prefix is where it is, with a slash at its end.
	Prefix string
	// Who and Version are noted with each push.
	Who, Version string
}

// Change is one file that differs: Kind is "added", "removed" or "changed", as a push would do it.
type Change struct {
	Name, Kind string
}

// Earlier is a configuration that a push has replaced.
type Earlier struct {
	Hash string
	// At is when it was replaced.
	At     time.Time
	folder string
}

// Push makes a folder the configuration in the bucket. What was there before is kept for Rollback, unless it is what a push that was
// cut off left there, or what somebody has changed by hand since: no replica has ever taken that.
func (d Depot) Push(ctx context.Context, dir string) (hash string, err error) {
	t, err := readDir(dir)
	if err != nil {
		return "", err
	}
	if _, ok := t["tocsin.yml"]; !ok {
		return "", fmt.Errorf("there is no tocsin.yml in %s", dir)
	}
	return d.put(ctx, t)
}

// put replaces what is in the bucket. The manifest comes first: until everything that it lists is there, no replica takes
// anything, and a push that is cut off is refused by all.
func (d Depot) put(ctx context.Context, t tree) (hash string, err error) {
	hash = t.hash()
	old, whole, err := d.current(ctx)
	if err != nil {
		return "", err
	}
	if whole {
		if err := d.archive(ctx, old, hash); err != nil {
			return "", err
		}
	}
	m, err := json.MarshalIndent(manifest{Hash: hash, Files: t.digests(), When: time.Now().UTC(), Who: d.Who, Version: d.Version}, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode %s: %w", manifestName, err)
	}
	if err := d.upload(ctx, d.Prefix+manifestName, m); err != nil {
		return "", err
	}
	// What is gone goes first: where a file becomes a folder, or a folder a file, a bucket that is a folder cannot have both.
	for _, name := range slices.Sorted(maps.Keys(old)) {
		if _, ok := t[name]; ok {
			continue
		}
		if err := d.Bucket.Delete(ctx, d.Prefix+name); err != nil && !d.Bucket.IsObjNotFoundErr(err) {
			return "", fmt.Errorf("remove %s from the bucket: %w", d.Prefix+name, err)
		}
	}
	changed := tree{}
	for name, b := range t {
		if was, ok := old[name]; !ok || !bytes.Equal(was, b) {
			changed[name] = b
		}
	}
	return hash, d.uploadAll(ctx, d.Prefix, changed)
}

func (d Depot) upload(ctx context.Context, name string, b []byte) error {
	if err := d.Bucket.Upload(ctx, name, bytes.NewReader(b)); err != nil {
		return fmt.Errorf("write %s to the bucket: %w", name, err)
	}
	return nil
}

func (d Depot) uploadAll(ctx context.Context, prefix string, t tree) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readConcurrency)
	for name, b := range t {
		g.Go(func() error { return d.upload(ctx, prefix+name, b) })
	}
	return g.Wait()
}

// current reads what is in the bucket now, and says whether that is a whole configuration: what a push has put there or, where there was
// none, whatever is there.
func (d Depot) current(ctx context.Context) (t tree, whole bool, err error) {
	listed, err := list(ctx, d.Bucket, d.Prefix)
	if err != nil {
		return nil, false, err
	}
	whole = true
	var m *manifest
	if _, ok := listed[manifestName]; ok {
		var raw []byte
		m, raw, err = fetchManifest(ctx, d.Bucket, d.Prefix)
		if raw == nil {
			return nil, false, err
		}
		whole = err == nil
		delete(listed, manifestName)
	}
	// Names that cannot be files are what the next push removes.
	names := slices.Collect(maps.Keys(listed))
	whole = whole && checkNames(names) == nil
	if t, err = fetch(ctx, d.Bucket, d.Prefix, names, maxTreeBytes); err != nil {
		return nil, false, err
	}
	return t, whole && (m == nil || m.Hash == t.hash()), nil
}

// earlier reads one of the history.
func (d Depot) earlier(ctx context.Context, e Earlier) (tree, error) {
	prefix := d.Prefix + historyName + "/" + e.folder + "/"
	listed, err := list(ctx, d.Bucket, prefix)
	if err != nil {
		return nil, err
	}
	names := slices.Collect(maps.Keys(listed))
	if err := checkNames(names); err != nil {
		return nil, err
	}
	t, err := fetch(ctx, d.Bucket, prefix, names, maxTreeBytes)
	if err == nil && ShortHash(t.hash()) != e.Hash {
		// Keeping it was cut off.
		err = fmt.Errorf("the earlier configuration %s is not complete in the bucket", e.Hash)
	}
	return t, err
}

// archive keeps what is about to be replaced, and no more than the last few.
func (d Depot) archive(ctx context.Context, old tree, next string) error {
	if len(old) == 0 || old.hash() == next {
		return nil
	}
	folder := time.Now().UTC().Format(historyTime) + "-" + ShortHash(old.hash())
	if err := d.uploadAll(ctx, d.Prefix+historyName+"/"+folder+"/", old); err != nil {
		return err
	}
	all, err := d.History(ctx)
	if err != nil {
		return err
	}
	for _, e := range all[min(len(all), keptPushes):] {
		prefix := d.Prefix + historyName + "/" + e.folder
		var names []string
		err := d.Bucket.Iter(ctx, prefix, func(name string) error {
			names = append(names, name)
			return nil
		}, objstore.WithRecursiveIter())
		for _, name := range names {
			if err == nil {
				err = d.Bucket.Delete(ctx, name)
			}
		}
		if err != nil {
			return fmt.Errorf("remove the old configuration %s from the bucket: %w", prefix, err)
		}
	}
	return nil
}

// History lists what pushes have replaced, the latest first.
func (d Depot) History(ctx context.Context) ([]Earlier, error) {
	var all []Earlier
	err := d.Bucket.Iter(ctx, d.Prefix+historyName, func(name string) error {
		folder := strings.TrimSuffix(strings.TrimPrefix(name, d.Prefix+historyName+"/"), "/")
		at, hash, ok := strings.Cut(folder, "-")
		t, err := time.Parse(historyTime, at)
		if ok && err == nil && !strings.Contains(hash, "/") {
			all = append(all, Earlier{Hash: hash, At: t, folder: folder})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the earlier configurations in the bucket: %w", err)
	}
	slices.SortFunc(all, func(a, b Earlier) int { return b.At.Compare(a.At) })
	return all, nil
}

// Rollback makes an earlier configuration the current one again: the one whose hash begins so, or without one the latest that
// differs from the current one. What it replaces is kept in turn.
func (d Depot) Rollback(ctx context.Context, to string) (hash string, err error) {
	current, _, err := d.current(ctx)
	if err != nil {
		return "", err
	}
	all, err := d.History(ctx)
	if err != nil {
		return "", err
	}
	var broken error
	for _, e := range all {
		if to == "" && e.Hash == ShortHash(current.hash()) || !strings.HasPrefix(e.Hash, to[:min(len(to), len(e.Hash))]) {
			continue
		}
		t, err := d.earlier(ctx, e)
		if err != nil {
			broken = cmp.Or(broken, err) // An older copy of the same may be whole.
			continue
		}
		return d.put(ctx, t)
	}
	switch {
	case broken != nil:
		return "", broken
	case to != "":
		return "", fmt.Errorf("no earlier configuration has a hash that begins with %s", to)
	}
	return "", errors.New("there is no earlier configuration in the bucket")
}

// Pull writes the configuration in the bucket to a folder, which must be new or empty unless force is set: then files of the
// same name are replaced, and others stay.
func (d Depot) Pull(ctx context.Context, dir string, force bool) (hash string, files int, err error) {
	t, _, err := d.current(ctx)
	if err == nil {
		err = checkNames(slices.Collect(maps.Keys(t)))
	}
	if err != nil {
		return "", 0, err
	}
	if len(t) == 0 {
		return "", 0, fmt.Errorf("nothing is below %s in the bucket", d.Prefix)
	}
	if there, err := os.ReadDir(dir); err == nil && len(there) > 0 && !force {
		return "", 0, fmt.Errorf("%s is not empty", dir)
	}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		p := filepath.Join(dir, filepath.FromSlash(name))
		err := os.MkdirAll(filepath.Dir(p), 0o750)
		if err == nil {
			err = writeFile(p, t[name], false)
		}
		if err != nil {
			return "", 0, fmt.Errorf("write %s: %w", p, err)
		}
	}
	return t.hash(), len(t), nil
}

// Diff lists what a push of a folder would change. Contents are not shown: there may be secrets among them.
func (d Depot) Diff(ctx context.Context, dir string) ([]Change, error) {
	next, err := readDir(dir)
	if err != nil {
		return nil, err
	}
	old, _, err := d.current(ctx)
	if err != nil {
		return nil, err
	}
	var changes []Change
	for name, b := range next {
		switch was, ok := old[name]; {
		case !ok:
			changes = append(changes, Change{name, "added"})
		case !bytes.Equal(was, b):
			changes = append(changes, Change{name, "changed"})
		}
	}
	for name := range old {
		if _, ok := next[name]; !ok {
			changes = append(changes, Change{name, "removed"})
		}
	}
	slices.SortFunc(changes, func(a, b Change) int { return strings.Compare(a.Name, b.Name) })
	return changes, nil
}
