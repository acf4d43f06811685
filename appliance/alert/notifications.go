package alert

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/alertmanager/alert"
	"github.com/prometheus/alertmanager/dispatch"
	"github.com/prometheus/common/model"
)

const (
	// listNotifications is how many notifications are answered, unless the question says how many, and
	// maxNotifications how many at most.
	listNotifications, maxNotifications = 1000, 10_000
	// maxNamed bounds the alerts that one answer names.
	maxNamed = 100_000
)

// notifications is what GET /api/tocsin/v1/notifications answers.
type notifications struct {
	Notifications []notification `json:"notifications"`
	// LeftOut is how many more there are.
	LeftOut int `json:"left_out"`
	// Elsewhere has the alerts that fire by the rules of other replicas and not by this one's: which replicas, by the
	// alert's fingerprint.
	Elsewhere map[string][]string `json:"elsewhere"`
}

// notification is what one integration of one receiver was told last of one alert group. Alerts are fingerprints.
type notification struct {
	GroupKey    string         `json:"group_key"`
	Labels      model.LabelSet `json:"labels"` // By which the alerts are grouped.
	Receiver    string         `json:"receiver"`
	Integration string         `json:"integration"`
	Index       int            `json:"index"` // Of the integration among those of its kind.
	// SentAt is zero while nothing was sent, and SentBy empty where the sender did not say its name: a stock
	// Alertmanager, or an earlier version.
	SentAt time.Time `json:"sent_at,omitzero"`
	SentBy string    `json:"sent_by,omitempty"`
	// Firing and Resolved are the alerts that were in it as such.
	Firing   []string `json:"firing"`
	Resolved []string `json:"resolved"`
	// Gone is how many of its alerts the Alertmanager does not have any more.
	Gone int `json:"gone"`
	// Waiting are alerts that fire, and that neither a silence nor an inhibition keeps from the receiver, but that it
	// was not told of as firing yet.
	Waiting []string `json:"waiting"`
	// MutedBy are the time intervals that keep the group from the receiver.
	MutedBy []string `json:"muted_by"`
	// The intervals of the route, in seconds.
	GroupWait      float64 `json:"group_wait_seconds"`
	GroupInterval  float64 `json:"group_interval_seconds"`
	RepeatInterval float64 `json:"repeat_interval_seconds"`
	// Failure says how this replica fails to send it; absent where it does not, or another replica has sent it since.
	Failure *failure `json:"failure,omitempty"`
	// Unnamed is how many alerts are left out of the lists because the answer has too many.
	Unnamed int `json:"unnamed,omitempty"`
}

// Notifications answers a GET with what receivers were told of the alert groups that there are: when, by which replica,
// of which alerts. The question may name an alert (fingerprint), a receiver, and how many are wanted (limit).
func (a *Alert) Notifications() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			answerError(w, http.StatusBadRequest, "bad_data", "the question is no query string, want name=value pairs with & in between: "+shown(err.Error(), 64))
			return
		}
		ask, err := askedFor(q)
		if err != nil {
			answerError(w, http.StatusBadRequest, "bad_data", err.Error())
			return
		}
		if a.dispatcher.Load() == nil {
			answerError(w, http.StatusServiceUnavailable, "unavailable", "the Alertmanager has no configuration yet: it is starting")
			return
		}
		list, err := a.list(r.Context(), ask)
		if err != nil {
			answerError(w, http.StatusInternalServerError, "internal", err.Error())
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_ = json.NewEncoder(w).Encode(list) // The client may be gone.
	})
}

func answerError(w http.ResponseWriter, code int, kind, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// The client may be gone.
	_ = json.NewEncoder(w).Encode(map[string]string{"status": "error", "errorType": kind, "error": text})
}

// notificationQuestion is what somebody wants to know.
type notificationQuestion struct {
	alert    model.Fingerprint
	oneAlert bool
	receiver string
	limit    int
}

func askedFor(q url.Values) (ask notificationQuestion, err error) {
	ask.receiver, ask.limit = q.Get("receiver"), listNotifications
	if fp := q.Get("fingerprint"); fp != "" {
		if ask.alert, err = model.ParseFingerprint(fp); err != nil {
			return ask, fmt.Errorf("fingerprint %q is not one: want 16 hexadecimal digits, as the Alertmanager API has them", shown(fp, 64))
		}
		ask.oneAlert = true
	}
	if text := q.Get("limit"); text != "" {
		if ask.limit, err = strconv.Atoi(text); err != nil || ask.limit < 1 || ask.limit > maxNotifications {
			return ask, fmt.Errorf("limit %q is not one: want a number from 1 to %d", shown(text, 64), maxNotifications)
		}
	}
	return ask, nil
}

// list goes through the alert groups that there are and looks up what the notification log has of each.
func (a *Alert) list(ctx context.Context, ask notificationQuestion) (*notifications, error) {
	every := func(*alert.Alert, time.Time) bool { return true }
	groups, _, err := a.dispatcher.Load().Groups(ctx, func(r *dispatch.Route) bool {
		return ask.receiver == "" || r.RouteOpts.Receiver == ask.receiver
	}, every)
	if err != nil {
		return nil, fmt.Errorf("list the alert groups: %w", err)
	}
	p := a.prepared.Load()
	routes := map[string]*dispatch.Route{}
	p.routes.Walk(func(r *dispatch.Route) { routes[r.ID()] = r })
	out := &notifications{Notifications: []notification{}, Elsewhere: map[string][]string{}}
	room := maxNamed
	for _, g := range groups {
		if ask.oneAlert && !slices.ContainsFunc(g.Alerts, func(al *alert.Alert) bool { return al.Fingerprint() == ask.alert }) {
			continue
		}
		if a.relay != nil {
			for _, al := range g.Alerts {
				if from := a.relay.elsewhere(al.Fingerprint()); len(from) > 0 {
					out.Elsewhere[al.Fingerprint().String()] = from
				}
			}
		}
		mutedBy, _ := a.groups.Muted(g.RouteID, g.GroupKey)
		for _, i := range p.receivers[g.Receiver] {
			if len(out.Notifications) >= ask.limit {
				out.LeftOut++
				continue
			}
			key := turnKey{g.GroupKey, g.Receiver, i.Name(), uint32(i.Index())}
			n := notification{
				GroupKey: g.GroupKey, Labels: g.Labels, Receiver: g.Receiver, Integration: i.Name(), Index: i.Index(),
				MutedBy: append([]string{}, mutedBy...),
			}
			if r := routes[g.RouteID]; r != nil { // There is none for a moment while a configuration is applied.
				n.GroupWait, n.GroupInterval = r.RouteOpts.GroupWait.Seconds(), r.RouteOpts.GroupInterval.Seconds()
				n.RepeatInterval = r.RouteOpts.RepeatInterval.Seconds()
			}
			a.told(&n, key, g)
			n.Failure = a.attempts.of(key, n.SentAt)
			for _, names := range []*[]string{&n.Firing, &n.Resolved, &n.Waiting} {
				cut := max(0, len(*names)-room)
				n.Unnamed += cut
				*names = (*names)[:len(*names)-cut]
				room -= len(*names)
			}
			out.Notifications = append(out.Notifications, n)
		}
	}
	return out, nil
}

// told fills in what the notification log has.
func (a *Alert) told(n *notification, key turnKey, g *dispatch.AlertGroup) {
	n.Firing, n.Resolved, n.Waiting = []string{}, []string{}, []string{}
	firing, resolved := map[uint64]bool{}, map[uint64]bool{}
	if e := a.log.entry(key); e != nil {
		n.SentAt, n.SentBy = e.GetTimestamp().AsTime(), senderOf(e)
		for _, h := range e.GetFiringAlerts() {
			firing[h] = true
		}
		for _, h := range e.GetResolvedAlerts() {
			resolved[h] = true
		}
	}
	n.Gone = len(firing) + len(resolved)
	for _, al := range g.Alerts {
		fp, hash := al.Fingerprint(), hashLabels(al)
		switch {
		case firing[hash]:
			n.Firing = append(n.Firing, fp.String())
			n.Gone--
			continue
		case resolved[hash]:
			n.Resolved = append(n.Resolved, fp.String())
			n.Gone--
		}
		if !al.Resolved() && g.AlertStatuses[fp].State != alert.AlertStateSuppressed {
			n.Waiting = append(n.Waiting, fp.String())
		}
	}
}
