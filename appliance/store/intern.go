package store

import (
	"context"
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
)

// interner holds one copy of each label name and value of the series in the
// head. It is told of each series by the head itself:
//
//   - PreCreation, before anybody else sees the labels, replaces their strings
//     in place: by the copy that is held, or by a copy of their own, since what
//     they point into is as a rule the whole text of the scraped series.
//     Nothing is counted and nothing held, so that a creation that another
//     goroutine wins leaves nothing behind.
//   - PostCreation counts each string of the created series once, and takes in
//     those that are new.
//   - PostDeletion counts them down, and lets go of a string at zero.
//
// So the count of a string is the number of times that live series hold it,
// whatever the order of events. Two series created at one moment may each keep
// a copy of a string that was new to both; it is counted all the same.
type interner struct {
	seed   maphash.Seed
	shards [internShards]internShard
	series atomic.Int64 // created less deleted
	recent recentLabels
}

var _ tsdb.SeriesLifecycleCallback = (*interner)(nil)

// internShards keeps goroutines that create series out of each other's way.
const internShards = 64

// recentLabels are the strings of the series created last, by their place in
// the label set. Series come target by target, from scraping as from replay,
// and differ from the one before in few places, so that most strings are found
// here without a lookup. Who finds it taken goes without.
type recentLabels struct {
	mtx    sync.Mutex
	places [2 * 32]*internEntry
}

func newInterner() *interner {
	return &interner{seed: maphash.MakeSeed()}
}

func (in *interner) shard(s string) (*internShard, uint32) {
	h := maphash.String(in.seed, s)
	return &in.shards[h%internShards], uint32(h >> 32)
}

// PreCreation implements tsdb.SeriesLifecycleCallback.
func (in *interner) PreCreation(l labels.Labels) error {
	places := in.borrowRecent()
	for i := range l {
		in.own(&l[i].Name, places, 2*i)
		in.own(&l[i].Value, places, 2*i+1)
	}
	in.returnRecent(places)
	return nil
}

func (in *interner) own(s *string, places []*internEntry, at int) {
	if *s == "" {
		return
	}
	if at < len(places) {
		if e := places[at]; e != nil && e.s == *s && e.count.Load() > 0 {
			point(s, e.s)
			return
		}
	}
	shard, h := in.shard(*s)
	e := shard.get(*s, h)
	if e == nil {
		*s = strings.Clone(*s)
		return
	}
	point(s, e.s)
	if at < len(places) {
		places[at] = e
	}
}

// PostCreation implements tsdb.SeriesLifecycleCallback.
func (in *interner) PostCreation(l labels.Labels) {
	in.series.Add(1)
	places := in.borrowRecent()
	for i, lb := range l {
		in.acquire(lb.Name, places, 2*i)
		in.acquire(lb.Value, places, 2*i+1)
	}
	in.returnRecent(places)
}

func (in *interner) acquire(s string, places []*internEntry, at int) {
	if at < len(places) {
		if e := places[at]; e != nil && e.s == s && e.again() {
			return
		}
	}
	shard, h := in.shard(s)
	e := shard.acquire(s, h)
	if at < len(places) {
		places[at] = e
	}
}

func (in *interner) borrowRecent() []*internEntry {
	if !in.recent.mtx.TryLock() {
		return nil
	}
	return in.recent.places[:]
}

func (in *interner) returnRecent(places []*internEntry) {
	if places != nil {
		in.recent.mtx.Unlock()
	}
}

// PostDeletion implements tsdb.SeriesLifecycleCallback. The head calls it for
// each of its stripes, mostly with nothing.
func (in *interner) PostDeletion(deleted map[chunks.HeadSeriesRef]labels.Labels) {
	if len(deleted) == 0 {
		return
	}
	in.series.Add(-int64(len(deleted)))
	for _, l := range deleted {
		for _, lb := range l {
			for _, s := range [...]string{lb.Name, lb.Value} {
				shard, h := in.shard(s)
				shard.release(s, h)
			}
		}
	}
}

// verify counts anew from the head's series when the head threw series away
// without a word: it does so when it gives up on a broken snapshot during
// replay. Nobody may append yet.
func (in *interner) verify(ctx context.Context, head *tsdb.Head) error {
	if in.series.Load() == int64(head.NumSeries()) {
		return nil
	}
	in.reset()
	ir, err := head.Index()
	if err != nil {
		return fmt.Errorf("open head index: %w", err)
	}
	defer func() { _ = ir.Close() }() // It was only read.
	name, value := index.AllPostingsKey()
	p, err := ir.Postings(ctx, name, value)
	if err != nil {
		return fmt.Errorf("list head series: %w", err)
	}
	var (
		b    = labels.NewScratchBuilder(0)
		chks []chunks.Meta
	)
	for p.Next() {
		if err := ir.Series(p.At(), &b, &chks); err != nil {
			return fmt.Errorf("read head series %d: %w", p.At(), err)
		}
		in.PostCreation(b.Labels())
	}
	if err := p.Err(); err != nil {
		return fmt.Errorf("list head series: %w", err)
	}
	return nil
}

// reset forgets all series: their head is gone, or they are counted anew. A
// head that is closed says nothing of the series it had.
func (in *interner) reset() {
	for i := range in.shards {
		in.shards[i].reset()
	}
	in.series.Store(0)
}

// len is the number of distinct strings.
func (in *interner) len() int {
	n := 0
	for i := range in.shards {
		n += in.shards[i].len()
	}
	return n
}

// point makes *s the string have, which is equal. A string that is that one
// already is not written, since others may be reading it.
func point(s *string, have string) {
	if unsafe.StringData(*s) != unsafe.StringData(have) {
		*s = have
	}
}

// share makes the strings of l those of have, which is an equal label set.
func share(l, have labels.Labels) {
	if len(l) != len(have) {
		return
	}
	for i := range l {
		point(&l[i].Name, have[i].Name)
		point(&l[i].Value, have[i].Value)
	}
}

// internEntry is a string with the number of times that live series hold it.
// The count goes to and from zero only under the lock of its shard, together
// with the entry's place in the table; in between it may go up without.
type internEntry struct {
	s     string
	hash  uint32
	count atomic.Uint32
}

// again counts one more, unless the entry has left the table.
func (e *internEntry) again() bool {
	for {
		n := e.count.Load()
		if n == 0 {
			return false
		}
		if e.count.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// internShard is a hash table with open addressing. A Go map would hold the
// string twice, as key and to hand out.
type internShard struct {
	mtx  sync.Mutex
	tab  []*internEntry // a power of two of them, or none
	used int
	_    [24]byte // a cache line of its own
}

// find returns where s is, or the free place where it belongs. There is always
// a free one. The table must not be empty.
func (sh *internShard) find(s string, h uint32) int {
	mask := len(sh.tab) - 1
	i := int(h) & mask
	for {
		e := sh.tab[i]
		if e == nil || e.hash == h && e.s == s {
			return i
		}
		i = (i + 1) & mask
	}
}

// get returns the entry of s, or nil.
func (sh *internShard) get(s string, h uint32) *internEntry {
	sh.mtx.Lock()
	defer sh.mtx.Unlock()
	if len(sh.tab) == 0 {
		return nil
	}
	return sh.tab[sh.find(s, h)]
}

func (sh *internShard) acquire(s string, h uint32) *internEntry {
	sh.mtx.Lock()
	defer sh.mtx.Unlock()
	if (sh.used+1)*4 > len(sh.tab)*3 {
		sh.resize(max(16, len(sh.tab)*2))
	}
	i := sh.find(s, h)
	if sh.tab[i] == nil {
		sh.tab[i] = &internEntry{s: s, hash: h}
		sh.used++
	}
	sh.tab[i].count.Add(1)
	return sh.tab[i]
}

func (sh *internShard) release(s string, h uint32) {
	sh.mtx.Lock()
	defer sh.mtx.Unlock()
	if len(sh.tab) == 0 {
		return
	}
	i := sh.find(s, h)
	if sh.tab[i] == nil || sh.tab[i].count.Add(^uint32(0)) > 0 {
		return
	}
	sh.remove(i)
	// Shrink late, so that a table at the edge does not move at each change.
	if len(sh.tab) > 16 && sh.used*8 < len(sh.tab) {
		sh.resize(len(sh.tab) / 2)
	}
}

// remove frees place i and moves back those behind it that are then out of
// reach of their own place.
func (sh *internShard) remove(i int) {
	mask := len(sh.tab) - 1
	for j := (i + 1) & mask; sh.tab[j] != nil; j = (j + 1) & mask {
		home := int(sh.tab[j].hash) & mask
		if (j-home)&mask >= (j-i)&mask {
			sh.tab[i] = sh.tab[j]
			i = j
		}
	}
	sh.tab[i] = nil
	sh.used--
}

func (sh *internShard) resize(n int) {
	old := sh.tab
	sh.tab = make([]*internEntry, n)
	for _, e := range old {
		if e != nil {
			sh.tab[sh.find(e.s, e.hash)] = e
		}
	}
}

// reset lets go of all strings.
func (sh *internShard) reset() {
	sh.mtx.Lock()
	defer sh.mtx.Unlock()
	for _, e := range sh.tab {
		if e != nil {
			e.count.Store(0)
		}
	}
	sh.tab, sh.used = nil, 0
}

func (sh *internShard) len() int {
	sh.mtx.Lock()
	defer sh.mtx.Unlock()
	return sh.used
}
