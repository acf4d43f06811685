package mesh

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// told asks a replica for its events, newest first.
func (x *trial) told() []event {
	x.t.Helper()
	w := httptest.NewRecorder()
	x.Events().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	var got struct{ Events []event }
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		x.t.Fatal(err)
	}
	return got.Events
}

func (x *trial) toldOf(kind, member string) bool {
	return slices.ContainsFunc(x.told(), func(e event) bool {
		return e.Kind == kind && e.Member == member && e.Text != "" && time.Since(e.Time) < time.Hour
	})
}

// TestEventsTellWhatHappened holds that who came, went, died and came back is told, and who was refused.
func TestEventsTellWhatHappened(t *testing.T) {
	t.Parallel()
	a := started(t, named("a"), withKeys(key(1)))
	b := started(t, named("b"), withKeys(key(1)), withPeers(a.address()), func(o *Options) { o.Version = "99.0.0" })
	until(t, 15*time.Second, "b joins", func() bool { return a.toldOf(eventJoined, "b") && a.toldOf(eventVersion, "b") })
	if err := b.end(); err != nil {
		t.Fatal(err)
	}
	until(t, 15*time.Second, "b leaves", func() bool { return a.toldOf(eventLeft, "b") })
	b = started(t, named("b"), withKeys(key(1)), withPeers(a.address()))
	until(t, 20*time.Second, "b is back", func() bool { return a.toldOf(eventBack, "b") })
	b.kill()
	until(t, 20*time.Second, "b dies", func() bool { return a.toldOf(eventDied, "b") })
	started(t, named("c"), withKeys(key(2)), withPeers(a.address()))
	until(t, 15*time.Second, "c is refused", func() bool {
		return slices.ContainsFunc(a.told(), func(e event) bool {
			return e.Kind == eventRefused && e.Level == "warn" && e.Details["reason"] == reasonKey
		})
	})
	got := a.told()
	if !slices.IsSortedFunc(got, func(x, y event) int { return y.Time.Compare(x.Time) }) {
		t.Error("the newest are not the first")
	}
}

// TestEventsAreBounded holds that nobody can fill the memory with events, nor push out what others did.
func TestEventsAreBounded(t *testing.T) {
	kept := &events{}
	l := slog.New(keeping{slog.DiscardHandler, kept}).With("component", "mesh")
	l.Warn("a member died", eventKey, eventDied, "member", "b")
	var many []any
	for i := range 100 {
		many = append(many, fmt.Sprint("detail", i), strings.Repeat("x", 1000))
	}
	for i := range 10 * maxEvents {
		l.Warn(strings.Repeat("refused\n", 1000), append(many, eventKey, eventRefused, "member", fmt.Sprint(i, strings.Repeat("y", 1000)))...)
		l.Info("not an event")
	}
	l.Info("a member is back", eventKey, eventBack, "member", "b")
	list := kept.newest()
	if len(list) > maxEvents {
		t.Errorf("%d events are kept", len(list))
	}
	if list[0].Kind != eventBack || list[len(list)-1].Kind != eventDied {
		t.Errorf("from %s to %s: what was refused has pushed out what happened", list[0].Kind, list[len(list)-1].Kind)
	}
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	if limit := maxEvents * (maxDetails + 3) * (maxDetail + 50); len(b) > limit {
		t.Errorf("they take %d bytes, want at most %d", len(b), limit)
	}
	if text := list[1].Text; strings.ContainsRune(text, '\n') {
		t.Errorf("shown as it came: %q", text)
	}
}

// TestEventsAreShownInOrder holds that what a peer says of itself cannot turn around, or break, the line that it stands in.
func TestEventsAreShownInOrder(t *testing.T) {
	kept := &events{}
	slog.New(keeping{slog.DiscardHandler, kept}).Info("a member joined the mesh", eventKey, eventJoined,
		"member", "b\u202e", "zone", "zone-é\u2028\u2066\u200b x")
	if e := kept.newest()[0]; e.Member != "b?" || e.Details["zone"] != "zone-é??? x" {
		t.Errorf("shown as %q in %q", e.Member, e.Details["zone"])
	}
}

// TestClocksAreToldOnce holds that a clock at the limit is not told of over and over.
func TestClocksAreToldOnce(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	x := newTable(Member{Name: "a"})
	x.members["b"] = &entry{Member: Member{Name: "b", Alive: true}}
	var got []bool
	for _, skew := range []float64{0, 0.9, 1.1, 0.9, 1.1, 0.6, 0.4, 0.9, -3} {
		x.members["b"].skews = nil
		p := x.ponged("b", 0, now.Add(time.Duration(skew*float64(time.Second))), now)
		if !p.known {
			t.Fatal("the skew is not known")
		}
		if p.off != p.wasOff {
			got = append(got, p.off)
		}
	}
	if want := []bool{true, false, true}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
}
