package heal

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/tocsin-io/tocsin/appliance/store"
)

// sayEvery is how often the filling of a gap that takes long says so in the log.
const sayEvery = 5 * time.Second

// Progress is how far the filling of a gap is.
type Progress struct {
	Gap  string        `json:"gap"`
	Kind store.GapKind `json:"kind"`
	store.Interval
	Since time.Time `json:"since"`
	// Ratio is how much of the time that can be filled now is done, from 0 to 1.
	Ratio            float64 `json:"ratio"`
	Series           int64   `json:"series"`
	Samples          int64   `json:"samples"`
	SamplesPerSecond float64 `json:"samples_per_second"`
	// Remaining is in seconds, at this pace.
	Remaining float64 `json:"remaining_seconds"`
}

// run is one filling, which tells how far it is.
type run struct {
	h           *Heal
	mu          sync.Mutex
	at          Progress
	total, done int64
	said        time.Time
}

func (h *Heal) begin(g store.Gap, work []piece) *run {
	r := &run{h: h, at: Progress{Gap: g.ID, Kind: g.Kind, Since: time.Now()}, said: time.Now()}
	for n, p := range work {
		r.total += p.To - p.From
		if n == 0 {
			r.at.Interval = p.Interval
		}
		r.at.From, r.at.To = min(r.at.From, p.From), max(r.at.To, p.To)
	}
	if len(work) > 0 {
		r.publish()
	}
	return r
}

// took counts what was written.
func (r *run) took(series, samples int64) {
	if r == nil {
		return
	}
	r.mu.Lock()
	r.at.Series += series
	r.at.Samples += samples
	r.mu.Unlock()
	r.publish()
}

// part counts a part of the time that is done.
func (r *run) part(i store.Interval) {
	r.mu.Lock()
	r.done += i.To - i.From
	r.mu.Unlock()
	r.publish()
}

func (r *run) publish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	took := time.Since(r.at.Since).Seconds()
	r.at.SamplesPerSecond = float64(r.at.Samples) / max(took, 0.001)
	if r.total > 0 {
		r.at.Ratio = float64(r.done) / float64(r.total)
	}
	if r.done > 0 {
		r.at.Remaining = took / float64(r.done) * float64(r.total-r.done)
	}
	r.h.metrics.progress.Set(r.at.Ratio)
	r.h.metrics.rate.Set(r.at.SamplesPerSecond)
	r.h.metrics.left.Set(r.at.Remaining)
	p := r.at
	r.h.mu.Lock()
	r.h.progress = &p
	r.h.mu.Unlock()
	if time.Since(r.said) >= sayEvery {
		r.said = time.Now()
		r.h.logger.Info("healing", "gap", p.Gap, "percent", int(100*p.Ratio), "samples", p.Samples,
			"samples_per_second", int64(p.SamplesPerSecond), "remaining", time.Duration(p.Remaining*float64(time.Second)).Round(time.Second))
	}
}

func (h *Heal) finish(*run) {
	h.metrics.progress.Set(1)
	h.metrics.rate.Set(0)
	h.metrics.left.Set(0)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.progress = nil
}

// Healing is what is being filled now, nil for nothing.
func (h *Heal) Healing() *Progress {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.progress
}

// Status is what is known of gaps.
type Status struct {
	// Complete tells that nothing is missing that could be had.
	Complete     bool        `json:"complete"`
	Completeness float64     `json:"completeness"`
	Healing      *Progress   `json:"healing,omitempty"`
	Problem      string      `json:"problem,omitempty"`
	Gaps         []store.Gap `json:"gaps"`
}

// Status is how the healing is.
func (h *Heal) Status() Status {
	s := Status{Completeness: h.opts.Ledger.Completeness(), Gaps: h.opts.Ledger.Gaps()}
	if s.Gaps == nil {
		s.Gaps = []store.Gap{}
	}
	s.Complete = true
	for _, g := range s.Gaps {
		s.Complete = s.Complete && g.State != store.GapOpen
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Healing = h.progress
	if !s.Complete {
		s.Problem = h.problem
	}
	return s
}

// Handler answers a GET with the gaps of this replica, open and closed, and how far the filling is.
func (h *Heal) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET is answered here", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		// The client may be gone.
		_ = json.NewEncoder(w).Encode(h.Status())
	})
}
