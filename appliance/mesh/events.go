package mesh

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// The kinds of events, which are the log lines with the attribute event.
const (
	eventKey       = "event"
	eventJoined    = "joined"
	eventBack      = "back"
	eventRestarted = "restarted"
	eventLeft      = "left"
	eventDied      = "died"
	eventConflict  = "conflict" // Two members with one name.
	eventRefused   = "refused"  // Traffic of somebody else, or of a member that cannot be.
	eventRejected  = "rejected" // A peer does not take us.
	eventAlone     = "alone"
	eventReady     = "ready"
	eventVersion   = "version" // A member has another version.
	eventSkew      = "skew"
)

const (
	// maxEvents bounds the events that are kept.
	maxEvents = 200
	// maxDetails and maxDetail bound the details of one, and the length of each in characters: others wrote some.
	maxDetails, maxDetail = 12, 300
)

// event is one thing that happened in the mesh.
type event struct {
	Time   time.Time `json:"time"`
	Kind   string    `json:"event"`
	Level  string    `json:"level"` // info, warn or error.
	Text   string    `json:"text"`
	Member string    `json:"member,omitempty"`
	// Details are what the log line says besides.
	Details map[string]string `json:"details,omitempty"`
}

// events keep the newest of what happened. Nobody can push out what matters by doing one thing over and over: the
// oldest event of the kind that there is most of makes room.
type events struct {
	mu   sync.Mutex
	list []event // Oldest first.
}

func (e *events) add(ev event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.list) >= maxEvents {
		count, most := map[string]int{}, ""
		for _, old := range e.list {
			if count[old.Kind]++; count[old.Kind] > count[most] {
				most = old.Kind
			}
		}
		i := slices.IndexFunc(e.list, func(old event) bool { return old.Kind == most })
		e.list = slices.Delete(e.list, i, i+1)
	}
	e.list = append(e.list, ev)
}

// newest gives the events, newest first.
func (e *events) newest() []event {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := append([]event{}, e.list...)
	slices.Reverse(list)
	return list
}

// keeping is a log handler that keeps the lines with the attribute event, so that the log and the list of events
// cannot differ.
type keeping struct {
	slog.Handler
	events *events
}

// Enabled has events kept also where the log is to be short.
func (k keeping) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo || k.Handler.Enabled(ctx, level)
}

// Handle keeps the line, and passes it on.
func (k keeping) Handle(ctx context.Context, r slog.Record) error {
	ev := event{Time: r.Time.UTC(), Level: strings.ToLower(r.Level.String()), Text: Printable(r.Message, maxDetail)}
	r.Attrs(func(a slog.Attr) bool {
		value := Printable(a.Value.Resolve().String(), maxDetail)
		switch {
		case a.Key == eventKey:
			ev.Kind = value
		case a.Key == "member":
			ev.Member = value
		case value != "" && len(ev.Details) < maxDetails:
			if ev.Details == nil {
				ev.Details = map[string]string{}
			}
			ev.Details[a.Key] = value
		}
		return true
	})
	if ev.Kind != "" {
		k.events.add(ev)
	}
	if !k.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return k.Handler.Handle(ctx, r)
}

// WithAttrs goes on keeping.
func (k keeping) WithAttrs(attrs []slog.Attr) slog.Handler {
	return keeping{k.Handler.WithAttrs(attrs), k.events}
}

// WithGroup goes on keeping.
func (k keeping) WithGroup(name string) slog.Handler {
	return keeping{k.Handler.WithGroup(name), k.events}
}

// Events answers a GET with the newest events of the mesh, as this replica saw them since it started.
func (m *Mesh) Events() http.Handler { return serveEvents(m.events.newest) }

// NoEvents answers as Events does, for a replica that has no mesh.
func NoEvents() http.Handler { return serveEvents(func() []event { return []event{} }) }

func serveEvents(newest func() []event) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		// The client may be gone.
		_ = json.NewEncoder(w).Encode(struct {
			Events []event `json:"events"`
		}{newest()})
	})
}
