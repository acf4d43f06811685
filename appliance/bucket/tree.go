package bucket

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"
)

const (
	// What a configuration may be at most. The largest in the field have some thousand rule and target files of a few KiB.
	maxTreeFiles = 5000
	maxTreeBytes = 64 << 20

	maxManifestBytes = 4 << 20
	// readConcurrency is how many objects are read, or written, at the same time.
	readConcurrency = 8

	// manifestName is the object that says what a push has put there.
	manifestName = ".tocsin-push.json"
	// historyName is the folder of what was there before.
	historyName = ".history"
)

// tree is a configuration: the contents of its files by their names, which have slashes and are relative.
type tree map[string][]byte

// hash is the same for the same names with the same contents, and for nothing else.
func (t tree) hash() string { return hashOf(t.digests()) }

func (t tree) digests() map[string]string {
	digests := make(map[string]string, len(t))
	for name, b := range t {
		sum := sha256.Sum256(b)
		digests[name] = hex.EncodeToString(sum[:])
	}
	return digests
}

func hashOf(digests map[string]string) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(digests)) {
		// A hash never fails, and no name contains a line break.
		_, _ = fmt.Fprintf(h, "%s  %s\n", digests[name], name)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// ShortHash is how a hash is shown to people, and told to the other replicas.
func ShortHash(hash string) string { return hash[:min(len(hash), 12)] }

// manifest is what a push writes before anything else: what is complete once all that it lists is there.
type manifest struct {
	Hash string `json:"hash"`
	// Files are the SHA-256 of the contents, by name.
	Files   map[string]string `json:"files"`
	When    time.Time         `json:"when"`
	Who     string            `json:"who"`
	Version string            `json:"version"`
}

func parseManifest(b []byte) (*manifest, error) {
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("read %s: %w", manifestName, err)
	}
	if m.Hash == "" || m.Hash != hashOf(m.Files) || len(m.Files) > maxTreeFiles {
		return nil, fmt.Errorf("read %s: it does not fit its own hash", manifestName)
	}
	m.Who, m.Version = plain(m.Who), plain(m.Version)
	return &m, nil
}

// plain makes what somebody else wrote fit for a log line.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	return s[:min(len(s), 200)]
}

// differs names what is not as the manifest says, a few of it.
func (m *manifest) differs(digests map[string]string) string {
	var names []string
	for name, digest := range m.Files {
		switch there, ok := digests[name]; {
		case !ok:
			names = append(names, name+" is missing")
		case there != digest:
			names = append(names, name+" has another content")
		}
	}
	for name := range digests {
		if _, ok := m.Files[name]; !ok {
			names = append(names, name+" is not part of it")
		}
	}
	slices.Sort(names)
	const shown = 5
	if n := len(names); n > shown {
		names = append(names[:shown], fmt.Sprintf("and %d more", n-shown))
	}
	return strings.Join(names, ", ")
}

// unusable says of what is in the bucket, and not of the way there, that it cannot be a configuration.
type unusable struct{ error }

// Unwrap gives the reason.
func (u unusable) Unwrap() error { return u.error }

// listing is what is below a prefix: names without the prefix, and the times of the objects where the provider lists them.
type listing map[string]time.Time

// ignored says of a name that it is nobody's configuration: ours, or what editors and version control leave.
func ignored(name string) bool {
	return strings.HasPrefix(name, ".") || strings.Contains(name, "/.")
}

// list lists the configuration and its manifest. It does not go down into hidden folders: the history is larger than the rest.
func list(ctx context.Context, bkt objstore.BucketReader, prefix string) (listing, error) {
	var opts []objstore.IterOption
	if slices.Contains(bkt.SupportedIterOptions(), objstore.UpdatedAt) {
		opts = append(opts, objstore.WithUpdatedAt())
	}
	found := listing{}
	folders := []string{strings.TrimSuffix(prefix, "/")}
	for len(folders) > 0 {
		folder := folders[0]
		folders = folders[1:]
		err := bkt.IterWithAttributes(ctx, folder, func(a objstore.IterObjectAttributes) error {
			name, below := strings.CutPrefix(a.Name, prefix)
			switch {
			case !below || name == "" || a.Name == folder+"/" || ignored(name) && name != manifestName:
				return nil
			case name == "/" || strings.HasSuffix(name, "//"):
				// An object store may have it, and gives the same again for every look below it.
				return unusable{fmt.Errorf("%q cannot be a folder of the configuration: it has no name", clipName(a.Name))}
			case strings.HasSuffix(name, "/"):
				folders = append(folders, strings.TrimSuffix(a.Name, "/"))
			default:
				found[name], _ = a.LastModified()
			}
			if len(found)+len(folders) > maxTreeFiles {
				return unusable{fmt.Errorf("there are more than %d objects", maxTreeFiles)}
			}
			return nil
		}, opts...)
		if err != nil {
			return nil, fmt.Errorf("list %s of the bucket: %w", folder, err)
		}
	}
	return found, nil
}

// fetch reads objects, which may have limit bytes together. All of them or an error: the first one names the object.
func fetch(ctx context.Context, bkt objstore.BucketReader, prefix string, names []string, limit int64) (tree, error) {
	t := make(tree, len(names))
	var room atomic.Int64
	room.Store(limit)
	var mtx sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readConcurrency)
	for _, name := range names {
		g.Go(func() error {
			b, err := fetchObject(ctx, bkt, prefix+name, &room)
			if err != nil {
				return err
			}
			mtx.Lock()
			defer mtx.Unlock()
			t[name] = b
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return t, nil
}

// errTooLarge is what there is instead of more than may be read.
var errTooLarge = unusable{fmt.Errorf("a configuration has at most %d MiB, and the list of its files %d", maxTreeBytes>>20, maxManifestBytes>>20)}

// fetchObject reads an object, and takes its bytes from the room that there is while it does.
func fetchObject(ctx context.Context, bkt objstore.BucketReader, name string, room *atomic.Int64) ([]byte, error) {
	r, err := bkt.Get(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read %s of the bucket: %w", name, err)
	}
	b, err := io.ReadAll(rationed{r, room})
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("read %s of the bucket: %w", name, err)
	}
	return b, nil
}

// rationed is a reader that fails when there is no room left for what it reads. Several may share the room.
type rationed struct {
	r    io.Reader
	room *atomic.Int64
}

// Read implements io.Reader.
func (r rationed) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if r.room.Add(-int64(n)) < 0 {
		return 0, errTooLarge
	}
	return n, err
}

// fetchManifest gives nil where there is none, and an error that is about its content for one that makes no sense.
func fetchManifest(ctx context.Context, bkt objstore.BucketReader, prefix string) (m *manifest, raw []byte, err error) {
	var room atomic.Int64
	room.Store(maxManifestBytes)
	raw, err = fetchObject(ctx, bkt, prefix+manifestName, &room)
	if err != nil {
		return nil, nil, err
	}
	m, err = parseManifest(raw)
	return m, raw, err
}

// checkNames refuses names that cannot be files beside each other.
func checkNames(names []string) error {
	folders := map[string]string{}
	for _, name := range names {
		if problem := nameProblem(name); problem != "" {
			return unusable{fmt.Errorf("%q cannot be a file of the configuration: %s", clipName(name), problem)}
		}
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			folders[dir] = name
		}
	}
	for _, name := range names {
		if within, ok := folders[name]; ok {
			return unusable{fmt.Errorf("%q cannot be a file of the configuration: it is the folder of %q, too", clipName(name), clipName(within))}
		}
	}
	return nil
}

func clipName(s string) string { return s[:min(len(s), 100)] }

func nameProblem(name string) string {
	switch {
	case !utf8.ValidString(name):
		return "its name is not UTF-8 text"
	case len(name) > 900:
		return "its name is longer than 900 bytes"
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || r == '\\' }):
		return "its name has a control character or a backslash in it"
	case path.Clean(name) != name || !fs.ValidPath(name) || !filepath.IsLocal(name):
		return "its name is no path that stays below the prefix"
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > 240 {
			return "a part of its name is longer than 240 bytes"
		}
	}
	return ""
}

// readDir reads a folder as a configuration: what is hidden is left out, links to files are followed.
func readDir(dir string) (tree, error) {
	t := tree{}
	room := int64(maxTreeBytes)
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		if ignored(name) {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if e.IsDir() {
			return nil
		}
		// It follows links.
		info, err := os.Stat(p)
		switch {
		case err != nil:
			return err
		case !info.Mode().IsRegular():
			return fmt.Errorf("%s is not a regular file", p)
		case info.Size() > room:
			return fmt.Errorf("%s is too large: %w", p, errTooLarge)
		case len(t) == maxTreeFiles:
			return fmt.Errorf("there are more than %d files in %s", maxTreeFiles, dir)
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		room -= int64(len(b))
		t[name] = b
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the configuration in %s: %w", dir, err)
	}
	return t, checkNames(slices.Collect(maps.Keys(t)))
}

// writeDir puts a configuration into a folder that is there afterwards, whole and on the disk, or not.
func (t tree) writeDir(dir string) (err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".new-")
	if err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write the configuration to %s: %w", dir, err), os.RemoveAll(tmp))
		}
	}()
	folders := map[string]bool{tmp: true}
	for name, b := range t {
		p := filepath.Join(tmp, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o750); err != nil {
			return err
		}
		for d := filepath.Dir(p); d != tmp; d = filepath.Dir(d) {
			folders[d] = true
		}
		if err := writeFile(p, b, true); err != nil {
			return err
		}
	}
	for d := range folders {
		if err := syncFolder(d); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(dir))
}

func writeFile(name string, b []byte, sync bool) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// install makes a folder equal to the configuration, file by file, each in one step: what is read while that goes on, as
// target files are, is always whole. Files that are as they should be are not touched. What is new is there before what is
// old is gone, so that a file that was renamed takes its targets along.
func (t tree) install(dir string) error {
	for _, name := range slices.Sorted(maps.Keys(t)) {
		if err := t.installFile(dir, name); err != nil {
			return fmt.Errorf("write %s to %s: %w", name, dir, err)
		}
	}
	var folders []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // There is no configuration and was none.
		case err != nil || p == dir:
			return err
		case e.IsDir():
			folders = append(folders, p)
			return nil
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if _, ok := t[filepath.ToSlash(rel)]; ok {
			return nil
		}
		return os.Remove(p)
	})
	if err != nil {
		return fmt.Errorf("remove what is gone from %s: %w", dir, err)
	}
	for _, d := range slices.Backward(folders) {
		if left, err := os.ReadDir(d); err == nil && len(left) == 0 {
			if err := os.Remove(d); err != nil {
				return fmt.Errorf("remove what is gone from %s: %w", dir, err)
			}
		}
	}
	return nil
}

func (t tree) installFile(dir, name string) error {
	p := filepath.Join(dir, filepath.FromSlash(name))
	if there, err := os.ReadFile(p); err == nil && bytes.Equal(there, t[name]) {
		return nil
	}
	// What was a file may be a folder now, and the other way round.
	for parent := filepath.Dir(p); len(parent) >= len(dir); parent = filepath.Dir(parent) {
		if info, err := os.Lstat(parent); err == nil && !info.IsDir() {
			if err := os.Remove(parent); err != nil {
				return err
			}
		}
	}
	if info, err := os.Lstat(p); err == nil && info.IsDir() {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(p), 0o750); err != nil {
		return err
	}
	// Not beside it: a pattern for target files could fit.
	tmp := dir + ".new"
	if err := writeFile(tmp, t[name], false); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, p)
}
