package alert

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/tsdb/fileutil"
)

// maxRecord bounds one journal record: a longer one is a damaged length, not a silence.
const maxRecord = 16 << 20

// castagnoli is the polynomial that upstream's write-ahead log uses too.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// journal makes a state of Alertmanager's durable between its snapshots, which upstream writes only every
// 15 minutes: a silence that was acknowledged must survive kill -9, and a notification that was sent must not be sent
// again after it.
//
// Each change that upstream broadcasts is appended before the change is acknowledged, in upstream's own encoding, so
// that replay is a merge. A record is: length of the payload (uint32, big endian), CRC-32C of the payload (uint32,
// big endian), payload. A snapshot first moves the journal aside and deletes it once the snapshot is on disk; both
// are replayed after the snapshot, and merging twice changes nothing.
type journal struct {
	path string
	// fsync says that each record must also survive a loss of power.
	fsync    bool
	logger   *slog.Logger
	failures prometheus.Counter

	mu   sync.Mutex
	f    *os.File
	good int64 // Bytes of whole records in f.
	lost int64 // Records that could not be written, since the start.
}

// missing counts the records that could not be written since the start.
func (j *journal) missing() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lost
}

// openJournal replays what is at path into merge, cuts off a torn tail, and is ready to append.
func openJournal(path string, fsync bool, logger *slog.Logger, failures prometheus.Counter, merge func([]byte) error) (*journal, error) {
	j := &journal{path: path, fsync: fsync, logger: logger, failures: failures}
	for _, p := range []string{j.aside(), path} {
		if err := j.replay(p, merge); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("measure the journal: %w", err), f.Close())
	}
	j.f, j.good = f, info.Size()
	return j, nil
}

func (j *journal) aside() string { return j.path + ".old" }

func (j *journal) replay(path string, merge func([]byte) error) (err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the journal: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	good, err := replayRecords(f, merge)
	if err == nil {
		return nil
	}
	j.logger.Warn("the journal ends in a damaged record, as after a loss of power; what follows it is cut off",
		"file", path, "good_bytes", good, "err", err)
	if err := os.Truncate(path, good); err != nil {
		return fmt.Errorf("cut off the damaged end of the journal %s: %w", path, err)
	}
	return nil
}

// replayRecords hands each whole record to merge. It returns how many bytes were good, and what was wrong after them.
func replayRecords(r io.Reader, merge func([]byte) error) (good int64, err error) {
	br := bufio.NewReader(r)
	var head [8]byte
	for {
		if _, err := io.ReadFull(br, head[:]); errors.Is(err, io.EOF) {
			return good, nil
		} else if err != nil {
			return good, fmt.Errorf("read a record's head: %w", err)
		}
		size := binary.BigEndian.Uint32(head[:4])
		if size > maxRecord {
			return good, fmt.Errorf("a record claims %d bytes", size)
		}
		payload := make([]byte, size) // At most maxRecord, and a file can claim that only once: the next read fails.
		if _, err := io.ReadFull(br, payload); err != nil {
			return good, fmt.Errorf("read a record of %d bytes: %w", size, err)
		}
		if crc32.Checksum(payload, castagnoli) != binary.BigEndian.Uint32(head[4:]) {
			return good, errors.New("a record's checksum is wrong")
		}
		if err := merge(payload); err != nil {
			return good, fmt.Errorf("merge a record: %w", err)
		}
		good += int64(len(head)) + int64(size)
	}
}

// add appends one change. Upstream's broadcast hook cannot refuse the change, so a failure is logged and counted.
func (j *journal) add(b []byte) {
	rec := binary.BigEndian.AppendUint32(make([]byte, 0, 8+len(b)), uint32(len(b)))
	rec = binary.BigEndian.AppendUint32(rec, crc32.Checksum(b, castagnoli))
	rec = append(rec, b...)
	j.mu.Lock()
	defer j.mu.Unlock()
	_, err := j.f.Write(rec)
	if errors.Is(err, os.ErrClosed) {
		return // The process stops and the last snapshot is written: what still comes by gossip, the others have.
	}
	if err == nil && j.fsync {
		err = j.f.Sync()
	}
	if err == nil {
		j.good += int64(len(rec))
		return
	}
	// Half a record, as a full disk leaves it, would hide every whole one that is written behind it.
	err = errors.Join(err, j.f.Truncate(j.good))
	j.lost++
	j.failures.Inc()
	j.logger.Error("a change is kept in memory only until the next snapshot", "file", j.path, "err", err)
}

// snapshot has write put the whole state into the file at path, atomically, and forgets the records that it covers.
func (j *journal) snapshot(path string, write func(io.Writer) (int64, error)) (size int64, err error) {
	if err := j.moveAside(); err != nil {
		return 0, err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp*")
	if err != nil {
		return 0, fmt.Errorf("create a snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	size, err = write(tmp)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return size, fmt.Errorf("write the snapshot %s: %w", path, err)
	}
	// It syncs the directory too.
	if err = fileutil.Rename(tmp.Name(), path); err != nil {
		return size, fmt.Errorf("put the snapshot in place: %w", err)
	}
	if err := os.Remove(j.aside()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return size, fmt.Errorf("remove the journal that the snapshot covers: %w", err)
	}
	return size, nil
}

// moveAside starts a new journal. What an earlier snapshot that failed left aside stays until one succeeds.
func (j *journal) moveAside() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := os.Stat(j.aside()); err == nil {
		return nil
	}
	// The new one is there before the old one is moved: should either fail, what is appended goes where it is replayed.
	next := j.path + ".new"
	f, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("start a new journal: %w", err)
	}
	if err := os.Rename(j.path, j.aside()); err != nil {
		return errors.Join(fmt.Errorf("move the journal aside: %w", err), f.Close(), os.Remove(next))
	}
	if err := os.Rename(next, j.path); err != nil {
		return errors.Join(fmt.Errorf("put the new journal in place: %w", err), f.Close(), os.Rename(j.aside(), j.path))
	}
	old := j.f
	j.f, j.good = f, 0
	if err := old.Close(); err != nil {
		return fmt.Errorf("close the old journal: %w", err)
	}
	return nil
}

func (j *journal) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.f.Close(); err != nil {
		return fmt.Errorf("close the journal: %w", err)
	}
	return nil
}
