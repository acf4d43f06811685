package bucket

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/thanos-io/thanos/pkg/block/metadata"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// maxListed bounds each list of an answer, maxListedWindows the windows of all blocks in it: with windows of two hours that is
// more than two years.
const maxListed, maxListedWindows = 10_000, 100_000

// BlockState is what is done with a block.
type BlockState string

// States of blocks.
const (
	BlockOK BlockState = "ok"
	// BlockMarked is one that is deleted after a delay.
	BlockMarked BlockState = "marked-for-deletion"
	// BlockQuarantined is one that is broken and left alone.
	BlockQuarantined BlockState = "quarantined"
	// BlockPartial has no meta.json that can be read: an upload under way, or that was cut off, or garbage.
	BlockPartial BlockState = "partial"
)

// Status is how everything in the bucket is, as this replica sees it.
type Status struct {
	// Provider and Name are where the bucket is.
	Provider string `json:"provider"`
	Name     string `json:"name"`
	// Looked is when its blocks were last listed, Problem why that does not work now.
	Looked  time.Time `json:"looked,omitzero"`
	Problem string    `json:"problem,omitempty"`
	// Blocks are those with a readable meta.json, Partial those without, and States all of them.
	Blocks  int                `json:"blocks"`
	Partial int                `json:"partial_blocks"`
	States  map[BlockState]int `json:"blocks_by_state"`
	// Bytes and Samples are those of all blocks, by their meta.json.
	Bytes   int64  `json:"bytes"`
	Samples uint64 `json:"samples"`
	// BytesPerSample is that of the blocks that are not downsampled, 0 where there are none.
	BytesPerSample float64 `json:"bytes_per_sample"`
	// From and To are the time that blocks cover, in Unix milliseconds; 0 where there are none.
	From int64 `json:"from"`
	To   int64 `json:"to"`
	// Coverage is which windows of this cluster are there.
	Coverage Coverage `json:"coverage"`
	// Quarantine are the blocks that are broken, and why; LeftOut those that queries leave out for a while, and why.
	Quarantine []blockReason `json:"quarantine"`
	LeftOut    []blockReason `json:"left_out"`
	// Upload is how far the windows are that this replica has data of.
	Upload uploadStatus `json:"upload"`
	// Compaction is what this replica compacts, downsamples and deletes.
	Compaction compactStatus `json:"compaction"`
}

// Coverage is which windows blocks cover, between the first one and the last. Times are Unix milliseconds.
type Coverage struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
	// Whole are the windows that are there whole, NotWhole those that are there with something missing.
	Whole    int `json:"whole"`
	NotWhole int `json:"not_whole"`
	// Missing are those in between that are not there at all, Gaps where, oldest first; only the newest maxListed are listed.
	Missing int64 `json:"missing"`
	Gaps    []Gap `json:"gaps"`
}

// Gap is a time without windows, in Unix milliseconds.
type Gap struct {
	From    int64 `json:"from"`
	To      int64 `json:"to"`
	Windows int64 `json:"windows"`
}

// coverageOf counts windows: by their begin, and whether they are whole.
func coverageOf(windows map[int64]bool, window time.Duration) Coverage {
	c := Coverage{Gaps: []Gap{}}
	length := window.Milliseconds()
	begins := slices.Sorted(maps.Keys(windows))
	for i, begin := range begins {
		if i == 0 {
			c.From = begin
		} else if n := (begin - c.To) / length; n > 0 {
			c.Missing += n
			c.Gaps = append(c.Gaps, Gap{c.To, begin, n})
		}
		c.To = begin + length
		if windows[begin] {
			c.Whole++
		} else {
			c.NotWhole++
		}
	}
	c.Gaps = newest(c.Gaps)
	return c
}

// newest are the last of a list, as many as are shown.
func newest[T any](list []T) []T { return list[max(0, len(list)-maxListed):] }

// Status tells how everything is as of the last look at the bucket. It asks nobody.
func (b *Bucket) Status() Status {
	s, _ := b.status()
	return s
}

func (b *Bucket) status() (Status, *view) {
	s := Status{
		Provider: string(b.bkt.Provider()), Name: b.bkt.Name(), States: map[BlockState]int{}, Coverage: coverageOf(nil, b.o.Window),
		Quarantine: []blockReason{}, LeftOut: []blockReason{}, Upload: b.uploader.status(), Compaction: b.compactor.status(),
	}
	v, err := b.catalogue.last()
	if problem := b.catalogue.problem(); problem != nil {
		s.Problem = b.o.Config.Bucket.Redact(problem.Error()) + "."
	}
	if err != nil {
		return s, nil
	}
	s.Looked, s.Blocks, s.Partial = v.at, len(v.blocks), len(v.partial)
	since := map[ulid.ULID]time.Time{}
	for _, r := range s.Compaction.Quarantined {
		since[r.Block] = r.Since
	}
	for id, reason := range b.catalogue.broken() {
		if v.blocks[id] != nil {
			s.Quarantine = append(s.Quarantine, blockReason{id, reason, since[id]})
		}
	}
	sortReasons(s.Quarantine)
	for id, u := range b.reader.reads.skipped() {
		s.LeftOut = append(s.LeftOut, blockReason{id, u.why, u.at})
	}
	sortReasons(s.LeftOut)
	s.Coverage = coverageOf(v.covered, b.o.Window)
	if len(v.partial) > 0 {
		s.States[BlockPartial] = len(v.partial)
	}
	state := b.states(s)
	var bytes int64
	var samples uint64
	first := true
	for id, m := range v.blocks {
		n := metaBytes(m)
		s.Bytes += n
		s.Samples += m.Stats.NumSamples
		if m.Thanos.Downsample.Resolution == 0 {
			bytes, samples = bytes+n, samples+m.Stats.NumSamples
		}
		if first {
			s.From, s.To, first = m.MinTime, m.MaxTime, false
		}
		s.From, s.To = min(s.From, m.MinTime), max(s.To, m.MaxTime)
		known, _ := state(id)
		s.States[known]++
	}
	s.BytesPerSample = perSample(bytes, samples)
	return s, v
}

// states tells the state of each block with a meta.json, and why.
func (b *Bucket) states(s Status) func(ulid.ULID) (BlockState, string) {
	type known struct {
		state BlockState
		why   string
	}
	all := map[ulid.ULID]known{}
	for _, r := range s.Quarantine {
		all[r.Block] = known{BlockQuarantined, r.Reason}
	}
	for _, r := range s.Compaction.MarkedForDeletion {
		all[r.Block] = known{BlockMarked, r.Reason}
	}
	return func(id ulid.ULID) (BlockState, string) {
		if k, ok := all[id]; ok {
			return k.state, k.why
		}
		return BlockOK, ""
	}
}

// saneTime is a time out of the bucket, if it can be encoded: one beyond the year 9999 would cost the whole answer.
func saneTime(t time.Time) time.Time {
	if t = t.UTC(); t.Unix() <= 0 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}

func perSample(bytes int64, samples uint64) float64 {
	if samples == 0 {
		return 0
	}
	return float64(bytes) / float64(samples)
}

// holder is a window that is there. Times are Unix milliseconds.
type holder struct {
	Begin int64 `json:"begin"`
	End   int64 `json:"end"`
	Whole bool  `json:"whole"`
	// By is the replica that uploaded it, "" where a compacted block does not tell any more. Block is where it is.
	By    string `json:"by,omitempty"`
	Block string `json:"block"`
}

// holders are the windows that are in the bucket, by their begin, with the block that is best to name.
func (b *Bucket) holders() map[int64]holder {
	all := map[int64]holder{}
	v, err := b.catalogue.last()
	if err != nil {
		return all
	}
	shared, broken := b.shared(), b.catalogue.broken()
	for _, id := range slices.SortedFunc(maps.Keys(v.blocks), ulid.ULID.Compare) {
		m := v.blocks[id]
		if _, ok := broken[id]; ok || m.Thanos.Downsample.Resolution != 0 || !labels.Equal(config.Shared(labels.FromMap(m.Thanos.Labels)), shared) {
			continue
		}
		for _, source := range m.Compaction.Sources {
			begin, whole, ok := nameWindow(source, b.o.Window)
			if !ok {
				continue
			}
			h := holder{begin, begin + b.o.Window.Milliseconds(), whole, "", id.String()}
			if source == id {
				h.By = m.Thanos.Labels[config.ReplicaLabel]
			}
			was, there := all[begin]
			if !there || whole && !was.Whole || whole == was.Whole && was.By == "" && h.By != "" {
				all[begin] = h
			}
		}
	}
	return all
}

// Handler serves GET /api/tocsin/v1/bucket.
func (b *Bucket) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		st, v := b.status()
		holders := b.holders()
		windows := make([]holder, 0, len(holders))
		for _, begin := range slices.Sorted(maps.Keys(holders)) {
			windows = append(windows, holders[begin])
		}
		list := blockList(v, b.o.Window, b.states(st))
		answer := struct {
			Status
			// Windows and List are the newest of them.
			Windows []holder      `json:"windows"`
			List    []BlockStatus `json:"block_list"`
		}{st, newest(windows), shorten(newest(list))}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // The client may be gone.
	})
}

// shorten leaves the windows of blocks out when there are too many. Only who wants to do harm lists so many in a meta.json.
func shorten(list []BlockStatus) []BlockStatus {
	left := maxListedWindows
	for i := range list {
		list[i].Windows = list[i].Windows[:min(len(list[i].Windows), left)]
		left -= len(list[i].Windows)
	}
	return list
}

// BlockStatus is one block of the bucket. Times are Unix milliseconds. Whatever is in it comes out of the bucket, unchecked.
type BlockStatus struct {
	ID    string     `json:"id"`
	State BlockState `json:"state"`
	// Problem is why it is in that state.
	Problem    string            `json:"problem,omitempty"`
	From       int64             `json:"from"`
	To         int64             `json:"to"`
	Level      int               `json:"level"`
	Resolution int64             `json:"resolution_ms"`
	Source     string            `json:"source"`
	Labels     map[string]string `json:"labels"`
	Series     uint64            `json:"series"`
	Samples    uint64            `json:"samples"`
	Bytes      int64             `json:"bytes"`
	// Windows are the windows that it covers, by their begin, and whether it has them whole.
	Windows []WindowStatus `json:"windows,omitempty"`
}

// WindowStatus is a window that a block covers.
type WindowStatus struct {
	// Begin is in Unix milliseconds.
	Begin int64 `json:"begin"`
	Whole bool  `json:"whole"`
	// By is the replica that uploaded it, "" where a compacted block does not tell any more.
	By string `json:"by,omitempty"`
}

// blockList is everything that a look saw, oldest first, what cannot be read before all.
func blockList(v *view, window time.Duration, state func(ulid.ULID) (BlockState, string)) []BlockStatus {
	all := []BlockStatus{}
	if v == nil {
		return all
	}
	for id, m := range v.blocks {
		s := blockOf(id, m, window)
		s.State, s.Problem = state(id)
		all = append(all, s)
	}
	for id, err := range v.partial {
		all = append(all, BlockStatus{ID: id.String(), State: BlockPartial, Problem: err.Error()})
	}
	sortBlocks(all)
	return all
}

func sortBlocks(all []BlockStatus) {
	readable := func(s BlockStatus) int {
		if s.State == BlockPartial {
			return 0
		}
		return 1
	}
	slices.SortFunc(all, func(a, b BlockStatus) int {
		return cmp.Or(cmp.Compare(readable(a), readable(b)), cmp.Compare(a.From, b.From), cmp.Compare(a.Resolution, b.Resolution), cmp.Compare(a.ID, b.ID))
	})
}

func blockOf(id ulid.ULID, m *metadata.Meta, window time.Duration) BlockStatus {
	s := BlockStatus{
		ID: id.String(), From: m.MinTime, To: m.MaxTime, Level: m.Compaction.Level, Resolution: m.Thanos.Downsample.Resolution,
		Source: string(m.Thanos.Source), Labels: m.Thanos.Labels, Series: m.Stats.NumSeries, Samples: m.Stats.NumSamples, Bytes: metaBytes(m),
	}
	for _, source := range m.Compaction.Sources {
		if begin, whole, ok := nameWindow(source, window); ok {
			w := WindowStatus{Begin: begin, Whole: whole}
			if source == id {
				w.By = m.Thanos.Labels[config.ReplicaLabel]
			}
			s.Windows = append(s.Windows, w)
		}
	}
	return s
}
