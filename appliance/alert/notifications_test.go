package alert_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
)

// notified is what the API says of one integration of a receiver and one alert group.
type notified struct {
	Labels           map[string]string
	Receiver         string
	Integration      string
	SentAt           time.Time `json:"sent_at"`
	SentBy           string    `json:"sent_by"`
	Firing, Resolved []string
	Waiting          []string
	MutedBy          []string `json:"muted_by"`
	Gone             int
	GroupWait        float64 `json:"group_wait_seconds"`
	Failure          *struct {
		Error       string
		Since, Last time.Time
		Tries       int
	}
}

type answered struct {
	Notifications []notified
	LeftOut       int `json:"left_out"`
	Elsewhere     map[string][]string
}

// notifications asks the API.
func (r *replica) notifications(query string) answered {
	r.t.Helper()
	w := httptest.NewRecorder()
	r.Notifications().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/tocsin/v1/notifications?"+query, nil))
	if w.Code != http.StatusOK {
		r.t.Fatalf("%s: %d %s", query, w.Code, w.Body)
	}
	var a answered
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
		r.t.Fatal(err)
	}
	return a
}

func printOf(labels ...string) string {
	ls := model.LabelSet{}
	for i := 0; i < len(labels); i += 2 {
		ls[model.LabelName(labels[i])] = model.LabelValue(labels[i+1])
	}
	return ls.Fingerprint().String()
}

// TestNotificationsSayWhoSent holds that every replica says of an alert when, to whom and by which replica it was sent,
// and the same as the others.
func TestNotificationsSayWhoSent(t *testing.T) {
	hook := newSink(t)
	rs := startCluster(t, fmt.Sprintf(clusterAlertmanager, hook.url), "")
	begin := time.Now()
	for k := range 20 {
		for _, r := range rs {
			r.fire("Rule", "n", fmt.Sprint(k))
		}
	}
	rs[1].fire("OnlyB", "n", "0")
	post(t, rs[2], `[{"labels":{"alertname":"Posted","n":"0"}}]`)
	all := make([]answered, len(rs))
	eventually(t, "all to be sent, and every replica to say the same of it", func() bool {
		same := map[string]bool{}
		for i, r := range rs {
			all[i] = r.notifications("")
			for _, n := range all[i].Notifications {
				if n.SentAt.IsZero() {
					return false
				}
				same[fmt.Sprint(n.Labels, n.SentBy, n.SentAt)] = true
			}
		}
		return len(same) == 22 && !slices.ContainsFunc(all, func(a answered) bool { return len(a.Notifications) != 22 })
	})
	for _, got := range all {
		for _, n := range got.Notifications {
			fp := printOf("alertname", n.Labels["alertname"], "n", n.Labels["n"])
			if n.Receiver != "hook" || n.Integration != "webhook" || !slices.Equal(n.Firing, []string{fp}) ||
				len(n.Waiting)+len(n.Resolved)+n.Gone > 0 || n.Failure != nil || n.GroupWait != 0.3 {
				t.Errorf("%+v", n)
			}
			if !slices.Contains([]string{"a", "b", "c"}, n.SentBy) || n.SentAt.Before(begin) || n.SentAt.After(time.Now()) {
				t.Errorf("sent by %q at %s", n.SentBy, n.SentAt)
			}
		}
	}
	// A rule that only one replica has is not posted by others.
	only := printOf("alertname", "OnlyB", "n", "0")
	if got := rs[0].notifications("").Elsewhere; len(got) != 1 || !slices.Equal(got[only], []string{"b"}) {
		t.Errorf("on a, rules of other replicas alone have %v", got)
	}
	if got := rs[1].notifications("").Elsewhere; len(got) != 0 {
		t.Errorf("on b, rules of other replicas alone have %v", got)
	}
}

// TestNotificationsSayWhatIsNotSent holds what is said of alerts that did not go out: which wait, which are held back,
// and which the receiver does not take, without its address.
func TestNotificationsSayWhatIsNotSent(t *testing.T) {
	hook := newSink(t)
	r := start(t, t.TempDir(), fmt.Sprintf(`
route:
  receiver: hook
  group_by: [alertname]
  group_wait: 10ms
  group_interval: 1s
  routes:
  - {receiver: slow, matchers: ['alertname="Slow"'], group_wait: 1h}
  - {receiver: broken, matchers: ['alertname="Broken"']}
receivers:
- {name: hook, webhook_configs: [{url: "%[1]s"}]}
- {name: slow, webhook_configs: [{url: "%[1]s"}]}
- {name: broken, webhook_configs: [{url: "%[1]s"}, {url: "http://user:pass@127.0.0.1:1/path-as-password"}]}
`, hook.url), "")
	r.silence("Known")
	for _, name := range []string{"Slow", "Broken", "Known", "Sent"} {
		r.fire(name, "instance", "x")
	}
	print := func(name string) string { return printOf("alertname", name, "instance", "x") }
	of := func(receiver string, i int) notified {
		t.Helper()
		got := r.notifications("receiver=" + receiver).Notifications
		if len(got) <= i {
			return notified{}
		}
		return got[i]
	}
	eventually(t, "one integration to send and the other one to fail", func() bool {
		return of("broken", 0).SentBy == "alone" && of("broken", 1).Failure != nil
	})
	fails := of("broken", 1)
	if !fails.SentAt.IsZero() || fails.Failure.Tries < 1 || fails.Failure.Since.IsZero() || !slices.Equal(fails.Waiting, []string{print("Broken")}) {
		t.Errorf("the receiver that is down: %+v, %+v", fails, fails.Failure)
	}
	if text := fails.Failure.Error; strings.Contains(text, "pass") || !strings.Contains(text, "refused") {
		t.Errorf("its error is %q", text)
	}
	if strings.Contains(r.log.text(), "path-as-password") {
		t.Error("the log has the receiver's address")
	}
	if slow := of("slow", 0); !slow.SentAt.IsZero() || slow.GroupWait != 3600 || !slices.Equal(slow.Waiting, []string{print("Slow")}) {
		t.Errorf("what waits for group_wait: %+v", slow)
	}
	eventually(t, "what is sent, and what is silenced", func() bool {
		got := r.notifications("fingerprint=" + print("Sent")).Notifications
		known := r.notifications("fingerprint=" + print("Known")).Notifications
		return len(got) == 1 && slices.Equal(got[0].Firing, []string{print("Sent")}) &&
			len(known) == 1 && known[0].SentAt.IsZero() && len(known[0].Waiting) == 0
	})
	if got := r.notifications("limit=2"); len(got.Notifications) != 2 || got.LeftOut != 3 {
		t.Errorf("of 5, with limit=2: %d and %d left out", len(got.Notifications), got.LeftOut)
	}
	for _, bad := range []string{"fingerprint=xyz", "limit=0", "limit=x", "limit=99999999", "fingerprint=%zz", "limit=1;2"} {
		w := httptest.NewRecorder()
		r.Notifications().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/?"+bad, nil))
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "want") {
			t.Errorf("%s: %d %s", bad, w.Code, w.Body)
		}
	}
}
