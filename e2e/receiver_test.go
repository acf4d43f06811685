package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// receiver takes the notifications of a whole cluster and remembers when each came, from whom, and how it was
// answered. It can be slow, refuse, and hold a request so that its sender can be killed midway.
type receiver struct {
	url    string
	zoneOf func(address string) string

	mu       sync.Mutex
	got      []*delivery
	delay    time.Duration
	refusing bool
	refused  string // whoever is refused besides
	holding  func(*delivery) bool
	released chan struct{}
}

// delivery is one request, whatever became of it.
type delivery struct {
	at      time.Time
	from    string // the zone, or the address where there is none
	key     string // Idempotency-Key
	body    webhookMessage
	outcome string // empty as long as it is not answered
}

// group is one that notifications are grouped by: the name of the alert and its label n.
type group struct{ alert, n string }

func (g group) String() string { return g.alert + "/" + g.n }

func newReceiver(t *testing.T, z *zone, zoneOf func(string) string) *receiver {
	t.Helper()
	r := &receiver{zoneOf: zoneOf, released: make(chan struct{})}
	r.url = serveIn(t, z, http.HandlerFunc(r.serve)).URL
	t.Cleanup(r.release)
	return r
}

func (r *receiver) serve(w http.ResponseWriter, req *http.Request) {
	d := &delivery{at: time.Now(), from: r.zoneOf(req.RemoteAddr), key: req.Header.Get("Idempotency-Key")}
	body, err := io.ReadAll(io.LimitReader(req.Body, 16<<20))
	if err == nil {
		err = json.Unmarshal(body, &d.body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	r.got = append(r.got, d)
	delay, refusing, hold, released := r.delay, r.refusing || d.from == r.refused, r.holding != nil && r.holding(d), r.released
	if hold {
		r.holding = nil // one is enough
		d.outcome = "held"
	}
	r.mu.Unlock()

	outcome := "taken"
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-req.Context().Done():
			outcome = "given up by the sender"
		}
	}
	if hold {
		select {
		case <-released:
		case <-req.Context().Done():
			outcome = "given up by the sender while held"
		}
	}
	if refusing {
		outcome = "refused"
		http.Error(w, "not now", http.StatusInternalServerError)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	d.outcome = outcome
}

// slowDown makes every answer wait.
func (r *receiver) slowDown(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delay = d
}

// refuse answers 500 from now on, or no longer.
func (r *receiver) refuse(yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusing = yes
}

// refuseFrom answers 500 to one zone from now on, as if the way from there were broken.
func (r *receiver) refuseFrom(zone string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused = zone
}

// taken says whether a notification about the group was answered well.
func (r *receiver) taken(g group, status string) bool {
	return slices.ContainsFunc(r.about(g, status), func(d delivery) bool { return d.outcome == "taken" })
}

// holdNext keeps the next request about the group without an answer, until its sender is gone or release is called.
func (r *receiver) holdNext(g group, status string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.released = make(chan struct{})
	r.holding = func(d *delivery) bool { return d.about(g, status) }
}

// release answers what is held, and holds no more.
func (r *receiver) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holding = nil
	select {
	case <-r.released:
	default:
		close(r.released)
	}
}

// held is who is midway with a request that is held.
func (r *receiver) held() (from string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.got {
		if d.outcome == "held" {
			return d.from, nil
		}
	}
	return "", fmt.Errorf("nobody is midway")
}

func (d *delivery) group() group {
	return group{d.body.GroupLabels["alertname"], d.body.GroupLabels["n"]}
}

func (d *delivery) about(g group, status string) bool {
	return d.group() == g && d.body.Status == status
}

// about are the deliveries about the group with the status, in the order in which they came.
func (r *receiver) about(g group, status string) []delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []delivery
	for _, d := range r.got {
		if d.about(g, status) {
			found = append(found, *d)
		}
	}
	return found
}

// exactly is a check that there are so many deliveries about the group with the status.
func (r *receiver) exactly(want int, g group, status string) func() error {
	return func() error {
		if found := r.about(g, status); len(found) != want {
			return fmt.Errorf("%d notifications that %s is %s, not %d: %s", len(found), g, status, want, senders(found))
		}
		return nil
	}
}

// atMost is exactly, with fewer allowed.
func (r *receiver) atMost(most int, g group, status string) func() error {
	return func() error {
		if found := r.about(g, status); len(found) > most {
			return fmt.Errorf("%d notifications that %s is %s, at most %d: %s", len(found), g, status, most, senders(found))
		}
		return nil
	}
}

func (r *receiver) atLeast(least int, g group, status string) func() error {
	return func() error {
		if found := r.about(g, status); len(found) < least {
			return fmt.Errorf("%d notifications that %s is %s, at least %d: %s", len(found), g, status, least, senders(found))
		}
		return nil
	}
}

// fromOthers is a check that there is a delivery about the group of somebody else.
func (r *receiver) fromOthers(than string, g group, status string) func() error {
	return func() error {
		found := r.about(g, status)
		if !slices.ContainsFunc(found, func(d delivery) bool { return d.from != than }) {
			return fmt.Errorf("nobody but %s notifies that %s is %s", than, g, status)
		}
		return nil
	}
}

// once is a check that each of the groups has exactly one delivery with the status.
func (r *receiver) once(groups []group, status string) func() error {
	return func() error {
		missing, repeated, example := 0, 0, ""
		counts := r.counts(status)
		for _, g := range groups {
			switch n := counts[g]; {
			case n == 0:
				missing++
				example = g.String()
			case n > 1:
				repeated++
				example = fmt.Sprintf("%s from %s", g, senders(r.about(g, status)))
			}
		}
		if missing+repeated > 0 {
			return fmt.Errorf("of %d groups, %d are not notified as %s and %d more than once: %s",
				len(groups), missing, status, repeated, example)
		}
		return nil
	}
}

// noneTwice is a check that no group has more than one delivery with the status.
func (r *receiver) noneTwice(status string) func() error {
	return func() error {
		for g, n := range r.counts(status) {
			if n > 1 {
				return fmt.Errorf("%s is notified as %s %d times: %s", g, status, n, senders(r.about(g, status)))
			}
		}
		return nil
	}
}

func (r *receiver) counts(status string) map[group]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := map[group]int{}
	for _, d := range r.got {
		if d.body.Status == status {
			counts[d.group()]++
		}
	}
	return counts
}

// inOrder is a check that nobody hears that a group fires after it heard that it is resolved.
func (r *receiver) inOrder() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	resolved := map[group]string{}
	for _, d := range r.got {
		switch who := resolved[d.group()]; {
		case d.body.Status == "resolved":
			resolved[d.group()] = d.from
		case who != "":
			return fmt.Errorf("%s fires, says %s, after it is resolved, says %s", d.group(), d.from, who)
		}
	}
	return nil
}

// ownLabels is a check that no notification has a label that tells replicas apart.
func (r *receiver) ownLabels() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.got {
		for _, a := range d.body.Alerts {
			for _, name := range []string{"replica", "zone"} {
				if v, ok := a.Labels[name]; ok {
					return fmt.Errorf("the notification of %s about %s has the label %s=%s", d.from, d.group(), name, v)
				}
			}
		}
	}
	return nil
}

// oneKey is a check that all deliveries about the group with the status have the same idempotency key.
func (r *receiver) oneKey(g group, status string) func() error {
	return func() error {
		keys := map[string][]string{}
		for _, d := range r.about(g, status) {
			keys[d.key] = append(keys[d.key], d.from)
		}
		if _, none := keys[""]; none || len(keys) != 1 {
			return fmt.Errorf("the idempotency keys of %s being %s are %q", g, status, keys)
		}
		return nil
	}
}

func senders(found []delivery) string {
	parts := make([]string, len(found))
	for i, d := range found {
		parts[i] = fmt.Sprintf("%s at %s (%s)", d.from, d.at.Format("15:04:05.000"), d.outcome)
	}
	return strings.Join(parts, ", ")
}

// happenings are for the timeline.
func (r *receiver) happenings() []happening {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []happening
	for _, d := range r.got {
		labels := map[string]string{}
		for _, a := range d.body.Alerts {
			maps.Copy(labels, a.Labels)
		}
		all = append(all, happening{d.at, fmt.Sprintf("webhook: %s says that %s is %s (%d alerts, %s, key %q, labels %v)",
			d.from, d.group(), d.body.Status, len(d.body.Alerts), d.outcome, d.key, labels)})
	}
	return all
}
