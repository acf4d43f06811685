package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"
)

const (
	markerFile    = "tocsin.json"
	lockFile      = "lock"
	quarantineDir = "quarantine"
	markerVersion = 1
	// markerMaxBytes bounds what is read of a file that calls itself marker.
	markerMaxBytes = 64 << 10
)

// marker is the content of <Dir>/tocsin.json. It says that this directory was
// once chosen as a data directory.
type marker struct {
	Version int       `json:"version"`
	Created time.Time `json:"created"`
}

// acquireDir makes sure that opts.Dir is the right directory, takes its lock
// and marks it. Nothing but the directory itself is created before it is clear
// that it is the right one, and nothing in it changes without the lock.
func acquireDir(opts Options) (io.Closer, error) {
	dir := opts.Dir
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	if err := guard(opts); err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	if err := prepareDir(dir); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

func prepareDir(dir string) error {
	if _, err := readMarker(dir); err != nil {
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, errEmptyMarker) {
			return err
		}
		if err := writeMarker(dir, marker{Version: markerVersion, Created: time.Now().UTC().Truncate(time.Second)}); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "tsdb"), 0o750); err != nil {
		return fmt.Errorf("create TSDB directory: %w", err)
	}
	return nil
}

// guard refuses a directory that is likely not the one that was meant. It only
// reads.
func guard(opts Options) error {
	dir := opts.Dir
	mounted, err := opts.isMount(dir)
	if err != nil {
		return fmt.Errorf("find out whether %s is a mount point: %w", dir, err)
	}
	if opts.RequireMount && !mounted {
		return fmt.Errorf("%w: %s is not a mount point, so its volume seems to be absent; mount it and start again, or start without requiring a mount",
			ErrWrongVolume, dir)
	}
	_, err = readMarker(dir)
	switch {
	case err == nil, errors.Is(err, errEmptyMarker):
		return nil
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	bare, err := bareTSDB(dir)
	if err != nil {
		return err
	}
	if bare != "" {
		return fmt.Errorf("%w: %s holds a Prometheus TSDB (%s) at its top; to adopt it, stop that Prometheus, move everything in it into %s, and start again",
			ErrWrongVolume, dir, bare, filepath.Join(dir, "tsdb"))
	}
	if mounted {
		return fmt.Errorf("%w: %s is a mount point without %s, so it seems to be the wrong volume; if it is the right one and new, run `touch %s` and start again",
			ErrWrongVolume, dir, markerFile, filepath.Join(dir, markerFile))
	}
	return nil
}

// bareTSDB names what shows that a Prometheus TSDB lies directly in dir.
// Whatever else is in a directory is left alone: all that we write has a name
// of its own.
func bareTSDB(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("read data directory: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		name := e.Name()
		if name == "wal" || name == "wbl" || name == "chunks_head" {
			return name, nil
		}
		if _, err := ulid.ParseStrict(name); err == nil {
			return name, nil
		}
	}
	return "", nil
}

var errEmptyMarker = errors.New("marker is empty")

func readMarker(dir string) (marker, error) {
	path := filepath.Join(dir, markerFile)
	f, err := os.Open(path)
	if err != nil {
		return marker{}, fmt.Errorf("read marker: %w", err)
	}
	defer func() { _ = f.Close() }() // It was only read.
	b, err := io.ReadAll(io.LimitReader(f, markerMaxBytes+1))
	if err != nil {
		return marker{}, fmt.Errorf("read marker %s: %w", path, err)
	}
	m, err := parseMarker(b)
	if err != nil {
		return marker{}, fmt.Errorf("read marker %s: %w", path, err)
	}
	return m, nil
}

func parseMarker(b []byte) (marker, error) {
	if len(b) > markerMaxBytes {
		return marker{}, fmt.Errorf("%w: the file is larger than %d bytes, so it is not ours", ErrWrongVolume, markerMaxBytes)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return marker{}, errEmptyMarker
	}
	var m marker
	if err := json.Unmarshal(b, &m); err != nil {
		return marker{}, fmt.Errorf("%w: it is not a marker (%w); if this is the right directory, empty the file and start again", ErrWrongVolume, err)
	}
	switch {
	case m.Version < 1:
		return marker{}, fmt.Errorf("%w: version is missing; if this is the right directory, empty the file and start again", ErrWrongVolume)
	case m.Version > markerVersion:
		return marker{}, fmt.Errorf("%w: version is %d and this program knows up to %d; it was written by a newer one", ErrWrongVolume, m.Version, markerVersion)
	}
	return m, nil
}

// writeMarker replaces the marker so that it is whole or absent at any crash.
func writeMarker(dir string, m marker) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode marker: %w", err)
	}
	path := filepath.Join(dir, markerFile)
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return fmt.Errorf("write marker: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write marker %s: %w", tmp, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write marker: %w", err)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// lockDir takes the lock that lasts as long as the process or until it is
// closed. The file stays: removing it would race with one who just opened it.
func lockDir(dir string) (io.Closer, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := lockHolder(f)
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s is held by %s; two processes cannot share a data directory", ErrLocked, dir, holder)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write lock %s: %w", path, err), f.Close())
	}
	return f, nil
}

func lockHolder(f *os.File) string {
	b := make([]byte, 32)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "another process"
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil || pid <= 0 {
		return "another process"
	}
	return fmt.Sprintf("process %d", pid)
}

// isMountPoint tells whether something is mounted at dir itself. The mount
// table knows bind mounts too; where there is none, a device other than the
// parent's is the sign.
func isMountPoint(dir string) (bool, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false, err
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		return inMountInfo(b, real), nil
	}
	var st, parent syscall.Stat_t
	if err := syscall.Stat(real, &st); err != nil {
		return false, fmt.Errorf("stat %s: %w", real, err)
	}
	if err := syscall.Stat(filepath.Dir(real), &parent); err != nil {
		return false, fmt.Errorf("stat %s: %w", filepath.Dir(real), err)
	}
	return st.Dev != parent.Dev || st.Ino == parent.Ino, nil
}

// inMountInfo looks dir up in the mount table. A line has the device in its third field, in the fourth which part of the
// device's file system is mounted, and in the fifth where; blanks and backslashes are octal escapes. A directory that is
// mounted on itself is none: systemd does that to every directory that a unit may write to.
func inMountInfo(table []byte, dir string) bool {
	type mount struct{ device, root, at string }
	var here, around *mount // What is mounted last lies on top.
	for line := range bytes.Lines(table) {
		fields := bytes.Fields(line)
		if len(fields) < 5 {
			continue
		}
		m := &mount{string(fields[2]), unescapeOctal(string(fields[3])), unescapeOctal(string(fields[4]))}
		switch {
		case m.at == dir:
			here = m
		case strings.HasPrefix(dir, strings.TrimSuffix(m.at, "/")+"/") && (around == nil || len(m.at) >= len(around.at)):
			around = m
		}
	}
	if here == nil || around == nil {
		return here != nil
	}
	same := filepath.Join(around.root, strings.TrimPrefix(dir, around.at))
	return here.device != around.device || here.root != same
}

func unescapeOctal(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
