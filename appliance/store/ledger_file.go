package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"
)

const (
	aliveFile    = "alive"
	gapsFile     = "gaps.json"
	brokenSuffix = ".broken"
	gapsVersion  = 1
	gapsMaxBytes = 256 << 20
	// aliveMagic is the first eight bytes of a beat; it names the version too.
	aliveMagic = "tocsinb1"
	beatBytes  = 8 + 3*8 + 4
	// beatSlot is the distance of the two places that beats are written to in turn. No disk writes so much at once
	// that both are torn.
	beatSlot = 4096
	// aliveSyncEvery is how often beats are forced to the disk. When only the process dies they are there anyway.
	aliveSyncEvery = 10 * time.Second
	warnEvery      = time.Minute
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// beat says that the life that began then was at work at that time, both in Unix milliseconds.
type beat struct {
	turn      uint64
	begun, at int64
}

func (b beat) encode() []byte {
	e := append(make([]byte, 0, beatBytes), aliveMagic...)
	e = binary.BigEndian.AppendUint64(e, b.turn)
	e = binary.BigEndian.AppendUint64(e, uint64(b.begun))
	e = binary.BigEndian.AppendUint64(e, uint64(b.at))
	return binary.BigEndian.AppendUint32(e, crc32.Checksum(e, castagnoli))
}

func decodeBeat(e []byte) (b beat, ok bool) {
	if len(e) < beatBytes || string(e[:8]) != aliveMagic ||
		crc32.Checksum(e[:beatBytes-4], castagnoli) != binary.BigEndian.Uint32(e[beatBytes-4:]) {
		return beat{}, false
	}
	return beat{
		turn:  binary.BigEndian.Uint64(e[8:]),
		begun: int64(binary.BigEndian.Uint64(e[16:])),
		at:    int64(binary.BigEndian.Uint64(e[24:])),
	}, true
}

// readAlive is the last beat of the life before, or a zero one.
func (l *Ledger) readAlive() beat {
	path := filepath.Join(l.opts.Dir, aliveFile)
	b, err := readAtMost(path, beatSlot+beatBytes)
	if errors.Is(err, os.ErrNotExist) || (err == nil && len(b) == 0) {
		return beat{}
	}
	if err == nil {
		last, ok := decodeBeat(b)
		if len(b) > beatSlot {
			if other, also := decodeBeat(b[beatSlot:]); also && (!ok || other.turn > last.turn) {
				last, ok = other, true
			}
		}
		if ok {
			return last
		}
		err = errors.New("there is no whole beat in it")
	}
	l.setAside(path, err)
	return beat{}
}

// write keeps the files as they should be after each beat, until there are no more.
func (l *Ledger) write(beats <-chan struct{}) {
	a := &alive{path: filepath.Join(l.opts.Dir, aliveFile), turn: l.earlier.turn}
	for range beats {
		l.writeBeat(a, false)
	}
	l.writeBeat(a, true)
	if err := a.close(); err != nil {
		l.warn("the last beat was not written: the next start will find a larger gap", err)
	}
}

// writeBeat writes gaps first. A beat says that everything before it is known, which must not be said of gaps that
// would be forgotten with this process.
func (l *Ledger) writeBeat(a *alive, sync bool) {
	l.mu.Lock()
	b := beat{begun: l.begun, at: l.last}
	l.mu.Unlock()
	if !l.save() {
		return
	}
	if err := a.write(b, sync); err != nil {
		l.warn("the beat was not written: the next start will find a larger gap", err)
	}
}

// alive is the file of beats, and the one who writes it.
type alive struct {
	path   string
	turn   uint64
	f      *os.File
	synced time.Time
}

func (a *alive) write(b beat, sync bool) error {
	if a.f == nil {
		f, err := os.OpenFile(a.path, os.O_CREATE|os.O_RDWR, 0o640)
		if err != nil {
			return fmt.Errorf("open beats: %w", err)
		}
		a.f = f
	}
	a.turn++
	b.turn = a.turn
	_, err := a.f.WriteAt(b.encode(), int64(b.turn%2)*beatSlot)
	if now := time.Now(); err == nil && (sync || now.Sub(a.synced) >= aliveSyncEvery) {
		err = a.f.Sync()
		a.synced = now
	}
	if err != nil {
		// It may be that the volume was away and is back: the next beat opens the file anew.
		return errors.Join(fmt.Errorf("write beat: %w", err), a.close())
	}
	return nil
}

func (a *alive) close() error {
	if a.f == nil {
		return nil
	}
	err := a.f.Close()
	a.f = nil
	if err != nil {
		return fmt.Errorf("close beats: %w", err)
	}
	return nil
}

// gapsContent is what the file of gaps holds. The checksum is that of the gaps as they are written there.
type gapsContent struct {
	Version int             `json:"version"`
	Sum     uint32          `json:"crc32c"`
	Gaps    json.RawMessage `json:"gaps"`
}

func encodeGaps(gaps []*Gap) ([]byte, error) {
	b, err := json.Marshal(gaps)
	if err != nil {
		return nil, fmt.Errorf("encode gaps: %w", err)
	}
	b, err = json.Marshal(gapsContent{gapsVersion, crc32.Checksum(b, castagnoli), b})
	if err != nil {
		return nil, fmt.Errorf("encode gaps: %w", err)
	}
	return append(b, '\n'), nil
}

func decodeGaps(b []byte) ([]*Gap, error) {
	var c gapsContent
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("decode gaps: %w", err)
	}
	if c.Version != gapsVersion {
		return nil, fmt.Errorf("version is %d and this program knows %d", c.Version, gapsVersion)
	}
	if crc32.Checksum(c.Gaps, castagnoli) != c.Sum {
		return nil, errors.New("checksum does not fit")
	}
	var gaps []Gap
	if err := json.Unmarshal(c.Gaps, &gaps); err != nil {
		return nil, fmt.Errorf("decode gaps: %w", err)
	}
	list := make([]*Gap, len(gaps))
	for i := range gaps {
		list[i] = &gaps[i]
	}
	return list, nil
}

func (l *Ledger) readGaps() []*Gap {
	path := filepath.Join(l.opts.Dir, gapsFile)
	b, err := readAtMost(path, gapsMaxBytes)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var gaps []*Gap
	if err == nil {
		gaps, err = decodeGaps(b)
	}
	if err != nil {
		l.setAside(path, err)
		return nil
	}
	return gaps
}

// save writes the gaps if they have changed, and tells whether the disk has them as they were when it was called.
// Whoever waits for another's write is served by it, too.
func (l *Ledger) save() bool {
	l.saving.Lock()
	defer l.saving.Unlock()
	l.mu.Lock()
	version := l.version
	l.mu.Unlock()
	if version == l.saved {
		return true
	}
	// There may be later changes in it by now. They will be written again.
	b, err := encodeGaps(l.current())
	if err == nil {
		err = l.writeFile(l.opts.Dir, gapsFile, b)
	}
	if err != nil {
		if now := time.Now(); now.Sub(l.warned) >= warnEvery {
			l.warned = now
			l.logger.Warn("gaps were not written and are known only to this process; it is tried again each second", "err", err)
		}
		return false
	}
	l.saved, l.savedAt = version, time.Now()
	return true
}

func (l *Ledger) warn(message string, err error) {
	l.saving.Lock()
	defer l.saving.Unlock()
	if now := time.Now(); now.Sub(l.warned) >= warnEvery {
		l.warned = now
		l.logger.Warn(message, "err", err)
	}
}

// setAside keeps a broken file under another name for whoever wants to see it. There is one of each.
func (l *Ledger) setAside(path string, why error) {
	l.logger.Warn("a file of the ledger cannot be read and is set aside; gaps that only it knew are forgotten",
		"file", path, "aside", path+brokenSuffix, "err", why)
	if err := os.Rename(path, path+brokenSuffix); err != nil {
		l.logger.Warn("a broken file of the ledger could not be set aside and will be overwritten", "file", path, "err", err)
	}
}

func readAtMost(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	defer func() { _ = f.Close() }() // It was only read.
	b, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

// replaceFile replaces a file so that it is whole at any crash, as it was or as it is to be.
func replaceFile(dir, name string, b []byte) error {
	path := filepath.Join(dir, name)
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		// What was written of it would take room on a full disk.
		return errors.Join(fmt.Errorf("write %s: %w", name, err), removeIfThere(tmp))
	}
	return syncDir(dir)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}
