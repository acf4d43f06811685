package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/record"
	"github.com/prometheus/prometheus/tsdb/wlog"
)

// rescueSeries adds to the write-ahead log in wal, which was repaired by
// cutting it, the series that the segments in kept have and it lacks. Samples
// that came out of order and chunks in files refer to series by number: without
// the series they are lost, or taken for those of a new one with that number.
func rescueSeries(kept, wal string, opts Options) (rescued int, err error) {
	var (
		syms = labels.NewSymbolTable()
		dec  = record.NewDecoder(syms, opts.Logger)
		have = map[chunks.HeadSeriesRef]struct{}{}
		// lacking takes the series of a record that are new, and has them.
		lacking = func(rec []byte) []record.RefSeries {
			if dec.Type(rec) != record.Series {
				return nil
			}
			all, err := dec.Series(rec, nil)
			if err != nil {
				return nil // It is broken inside.
			}
			fresh := all[:0]
			for _, s := range all {
				if _, ok := have[s.Ref]; !ok {
					have[s.Ref] = struct{}{}
					fresh = append(fresh, s)
				}
			}
			return fresh
		}
	)
	dirs := []string{wal}
	if checkpoint, _, err := wlog.LastCheckpoint(wal); err == nil {
		dirs = append(dirs, checkpoint)
	}
	for _, dir := range dirs {
		err := eachRecord(dir, func(rec []byte) error {
			lacking(rec)
			return nil
		})
		if err != nil {
			return 0, fmt.Errorf("list series of the repaired log: %w", err)
		}
	}

	w, err := wlog.New(opts.Logger, nil, wal, opts.WALCompression)
	if err != nil {
		return 0, fmt.Errorf("open the repaired log: %w", err)
	}
	defer func() {
		if cerr := w.Close(); err == nil {
			err = cerr
		}
	}()
	var enc record.Encoder
	err = eachRecord(kept, func(rec []byte) error {
		series := lacking(rec)
		if len(series) == 0 {
			return nil
		}
		rescued += len(series)
		return w.Log(enc.Series(series, nil))
	})
	if err != nil {
		return rescued, fmt.Errorf("copy series to the repaired log: %w", err)
	}
	return rescued, nil
}

// eachRecord calls f with each readable record of the segments in dir, in
// order. Behind a broken page it goes on with the next one. A record is only
// valid during the call.
func eachRecord(dir string, f func(rec []byte) error) error {
	files, err := numbered(dir)
	if err != nil {
		return err
	}
	for _, n := range files {
		if err := eachSegmentRecord(wlog.SegmentName(dir, n), f); err != nil {
			return err
		}
	}
	return nil
}

const walPageBytes = 32 << 10

func eachSegmentRecord(path string, f func(rec []byte) error) error {
	seg, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	defer func() { _ = seg.Close() }() // It was only read.
	info, err := seg.Stat()
	if err != nil {
		return fmt.Errorf("stat segment: %w", err)
	}
	page := make([]byte, walPageBytes)
	for at := int64(0); at < info.Size(); {
		n, err := seg.ReadAt(page, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read segment %s: %w", filepath.Base(path), err)
		}
		skip := beginPage(page[:n])
		rest := io.NewSectionReader(seg, at+int64(n), info.Size()-at-int64(n))
		r := wlog.NewReader(io.MultiReader(bytes.NewReader(page[:n]), rest))
		for r.Next() {
			if skip > 0 {
				skip--
				continue
			}
			if err := f(r.Record()); err != nil {
				return err
			}
		}
		if r.Err() == nil {
			return nil
		}
		next := at + (r.Offset()+walPageBytes-1)/walPageBytes*walPageBytes
		at = max(next, at+walPageBytes)
	}
	return nil
}

// beginPage makes a page readable by itself that begins within a record, as
// most do: it marks the parts of that record as records of their own, and
// returns how many. The checksum of a part is only of its content.
func beginPage(page []byte) (parts int) {
	const (
		headerBytes              = 7 // kind, length, checksum
		kinds                    = 0b111
		full, middle, last uint8 = 1, 3, 4
	)
	for len(page) >= headerBytes {
		kind := page[0] & kinds
		if kind != middle && kind != last {
			return parts
		}
		page[0] = full // and not compressed
		parts++
		size := headerBytes + int(binary.BigEndian.Uint16(page[1:]))
		if kind == last || size > len(page) {
			return parts
		}
		page = page[size:]
	}
	return parts
}
