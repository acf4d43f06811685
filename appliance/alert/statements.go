package alert

import (
	"time"

	"github.com/prometheus/common/model"

	"github.com/tocsin-io/tocsin/appliance/alert/peerspb"
)

// heard is a statement with when this replica heard it, by its own clock.
type heard struct {
	*peerspb.Statement
	at   time.Time
	size int // As a message, in bytes.
}

// resolved says whether the source has taken the alert back, or has let it lapse.
func (h heard) resolved(now time.Time) bool { return h.GetEndsAtMs() <= now.UnixMilli() }

// source is what the mesh knows of a replica whose rules say something.
type source struct {
	alive bool
	// incarnation is when it started, in milliseconds since the epoch; 0 if unknown.
	incarnation int64
}

// combine makes one of what several sources say about one alert, which each see the world from their own zone: it
// fires as long as one of them says so, and is resolved when all of them have said so. Without that, an alert that
// one zone still sees would resolve and fire again with every other message.
//
// A source that is gone, or has restarted and does not remember, cannot take back what it said. It is believed until
// that lapses, unless another source has resolved the alert since.
func combine(said map[string]heard, sources map[string]source, now time.Time) (_ *peerspb.Statement, any bool) {
	var best heard
	var firing bool
	var lastResolved time.Time
	for _, h := range said {
		if h.resolved(now) && h.at.After(lastResolved) {
			lastResolved = h.at
		}
	}
	var starts int64
	for name, h := range said {
		fires := !h.resolved(now) && (!lastResolved.After(h.at) || mayTakeBack(name, h, sources))
		switch {
		case best.Statement == nil, fires && !firing:
			best, starts = h, h.GetStartsAtMs()
		case fires != firing:
			continue
		case later(h, best):
			best = h
		}
		firing = firing || fires
		if s := h.GetStartsAtMs(); s != 0 && (starts == 0 || s < starts) {
			starts = s
		}
	}
	if best.Statement == nil {
		return nil, false
	}
	out := &peerspb.Statement{
		Labels: best.GetLabels(), Annotations: best.GetAnnotations(), GeneratorUrl: best.GetGeneratorUrl(),
		StartsAtMs: starts, EndsAtMs: best.GetEndsAtMs(),
	}
	if !firing && !best.resolved(now) {
		// Only sources that are gone still say that it fires, and others know better.
		out.EndsAtMs = lastResolved.UnixMilli()
	}
	return out, true
}

// mayTakeBack says whether a source still remembers what it said.
func mayTakeBack(name string, h heard, sources map[string]source) bool {
	if name == "" {
		return true // Whoever posts from outside is not in the mesh.
	}
	s, known := sources[name]
	return known && s.alive && (s.incarnation == 0 || s.incarnation == h.GetIncarnationMs())
}

// later prefers the statement that lasts longer, and among equals the same one on every replica.
func later(a, b heard) bool {
	if a.GetEndsAtMs() != b.GetEndsAtMs() {
		return a.GetEndsAtMs() > b.GetEndsAtMs()
	}
	return a.GetSource() < b.GetSource()
}

// fingerprint identifies an alert by its labels, as Alertmanager does.
func fingerprint(labels map[string]string) model.Fingerprint {
	ls := make(model.LabelSet, len(labels))
	for n, v := range labels {
		if v != "" {
			ls[model.LabelName(n)] = model.LabelValue(v)
		}
	}
	return ls.Fingerprint()
}

// posted is an alert in the body of Alertmanager's POST /api/v2/alerts.
type posted struct {
	Labels       map[string]string `json:"labels"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	StartsAt     time.Time         `json:"startsAt,omitzero"`
	EndsAt       time.Time         `json:"endsAt,omitzero"`
	GeneratorURL string            `json:"generatorURL,omitempty"`
}

func toPosted(s *peerspb.Statement) posted {
	return posted{
		Labels: s.GetLabels(), Annotations: s.GetAnnotations(), GeneratorURL: s.GetGeneratorUrl(),
		StartsAt: fromMillis(s.GetStartsAtMs()), EndsAt: fromMillis(s.GetEndsAtMs()),
	}
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func toMillis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
