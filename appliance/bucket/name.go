package bucket

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/oklog/ulid/v2"
)

// The random part of the name of a block that we upload: six bytes of the window's begin in Unix milliseconds, one of
// flags, one that checks these, two random ones. A foreign block is taken for one of ours once in some 10^11: the check, the
// bits of the flags, and the begin, which is a multiple of the window's length.
const (
	nameMagic byte = 0xa4
	nameMask  byte = 0xfe
	nameWhole byte = 0x01
)

// windowName makes the name of a new block of the window that begins at start, in Unix milliseconds. whole says that its
// uploader lacks nothing of it.
func windowName(now time.Time, start int64, whole bool) (ulid.ULID, error) {
	var id ulid.ULID
	if err := id.SetTime(ulid.Timestamp(now)); err != nil {
		return id, fmt.Errorf("name a block: %w", err)
	}
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(start)<<16)
	copy(id[6:12], b[:6])
	id[12] = nameMagic
	if whole {
		id[12] |= nameWhole
	}
	id[13] = nameCheck(id)
	if _, err := rand.Read(id[14:]); err != nil {
		return id, fmt.Errorf("name a block: %w", err)
	}
	return id, nil
}

// nameWindow reads a name: the begin of the window, in Unix milliseconds, and whether the uploader had it whole. Names that are
// not ours, or of windows of another length, are not ok.
func nameWindow(id ulid.ULID, length time.Duration) (start int64, whole, ok bool) {
	if id[12]&nameMask != nameMagic || id[13] != nameCheck(id) {
		return 0, false, false
	}
	var b [8]byte
	copy(b[2:], id[6:12])
	start = int64(binary.BigEndian.Uint64(b[:]))
	if start%length.Milliseconds() != 0 {
		return 0, false, false
	}
	return start, id[12]&nameWhole != 0, true
}

func nameCheck(id ulid.ULID) byte {
	h := fnv.New32a()
	_, _ = h.Write(id[6:13]) // It never fails.
	sum := h.Sum32()
	return byte(sum ^ sum>>8 ^ sum>>16 ^ sum>>24)
}
