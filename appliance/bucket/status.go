package bucket

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/thanos/pkg/block/metadata"
)

// Status is how everything in the bucket is, as this replica sees it.
type Status struct {
	// Provider and Name are where the bucket is.
	Provider string `json:"provider"`
	Name     string `json:"name"`
	// Looked is when its blocks were last listed, Problem why that does not work now.
	Looked  time.Time `json:"looked,omitzero"`
	Problem string    `json:"problem,omitempty"`
	// Blocks are those with a readable meta.json, Partial those without.
	Blocks  int `json:"blocks"`
	Partial int `json:"partial_blocks"`
	// Bytes and Samples are those of all blocks, by their meta.json.
	Bytes   int64  `json:"bytes"`
	Samples uint64 `json:"samples"`
	// From and To are the time that blocks cover, in Unix milliseconds; 0 where there are none.
	From int64 `json:"from"`
	To   int64 `json:"to"`
	// Upload is how far the windows are that this replica has data of.
	Upload uploadStatus `json:"upload"`
}

// Status tells how everything is as of the last look at the bucket. It asks nobody.
func (b *Bucket) Status() Status {
	s := Status{Provider: string(b.bkt.Provider()), Name: b.bkt.Name(), Upload: b.uploader.status()}
	v, err := b.catalogue.last()
	if problem := b.catalogue.problem(); problem != nil {
		s.Problem = b.o.Config.Bucket.Redact(problem.Error()) + "."
	}
	if err != nil {
		return s
	}
	s.Looked, s.Blocks, s.Partial = v.at, len(v.blocks), len(v.partial)
	first := true
	for _, m := range v.blocks {
		s.Bytes += sizeOf(m)
		s.Samples += m.Stats.NumSamples
		if first {
			s.From, s.To, first = m.MinTime, m.MaxTime, false
		}
		s.From, s.To = min(s.From, m.MinTime), max(s.To, m.MaxTime)
	}
	return s
}

// sizeOf is how many bytes a block has, as far as its meta.json tells.
func sizeOf(m *metadata.Meta) (n int64) {
	for _, f := range m.Thanos.Files {
		n += f.SizeBytes
	}
	return n
}

// Handler serves GET /api/tocsin/v1/bucket.
func (b *Bucket) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		v, _ := b.catalogue.last()
		answer := struct {
			Status
			List []blockStatus `json:"block_list"`
		}{b.Status(), list(v, b.o.Window)}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // The client may be gone.
	})
}

// blockStatus is one block of the bucket. Times are Unix milliseconds.
type blockStatus struct {
	ID         string            `json:"id"`
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
	Windows []windowOf `json:"windows,omitempty"`
	Problem string     `json:"problem,omitempty"`
}

type windowOf struct {
	Begin int64 `json:"begin"`
	Whole bool  `json:"whole"`
}

// list is everything that a look saw, oldest first, what cannot be read last.
func list(v *view, window time.Duration) []blockStatus {
	all := []blockStatus{}
	if v == nil {
		return all
	}
	for id, m := range v.blocks {
		all = append(all, blockOf(id, m, window))
	}
	for id, err := range v.partial {
		all = append(all, blockStatus{ID: id.String(), Problem: err.Error()})
	}
	slices.SortFunc(all, func(a, b blockStatus) int {
		return cmp.Or(cmp.Compare(a.Problem, b.Problem), cmp.Compare(a.From, b.From), cmp.Compare(a.Resolution, b.Resolution), cmp.Compare(a.ID, b.ID))
	})
	return all
}

func blockOf(id ulid.ULID, m *metadata.Meta, window time.Duration) blockStatus {
	s := blockStatus{
		ID: id.String(), From: m.MinTime, To: m.MaxTime, Level: m.Compaction.Level, Resolution: m.Thanos.Downsample.Resolution,
		Source: string(m.Thanos.Source), Labels: m.Thanos.Labels, Series: m.Stats.NumSeries, Samples: m.Stats.NumSamples, Bytes: sizeOf(m),
	}
	for _, source := range m.Compaction.Sources {
		if begin, whole, ok := nameWindow(source, window); ok {
			s.Windows = append(s.Windows, windowOf{begin, whole})
		}
	}
	return s
}
