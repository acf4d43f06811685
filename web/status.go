package web

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// maxRows is how many rows of one list the home page has: a bad day has
// thousands of down targets, and the API has them all.
const maxRows = 50

// Status is what the home page shows, and GET /api/tocsin/v1/status answers.
// Sentences are written by whoever knows; the page only arranges them.
type Status struct {
	Replica string    `json:"replica"`
	Zone    string    `json:"zone"`
	Version string    `json:"version"`
	Started time.Time `json:"started,omitzero"`
	// Problems are further sentences about what is wrong, most urgent first.
	Problems []Concern `json:"-"` // among the concerns

	Cluster  ClusterStatus `json:"cluster"`
	Targets  TargetStatus  `json:"targets"`
	Alerts   []AlertStatus `json:"alerts"`   // pending and firing
	Silences int           `json:"silences"` // active
	Rules    RuleStatus    `json:"rules"`
	Config   ConfigStatus  `json:"config"`
	Storage  StorageStatus `json:"storage"`
	Bucket   bool          `json:"bucket"` // whether there is object storage
	// Addresses are further addresses in use, such as the mesh's.
	Addresses []AddressStatus `json:"-"` // among those of the answer
}

// Concern is a sentence about what is wrong, and the page of the browser UI
// that says more.
type Concern struct {
	Text string `json:"text"`
	Page string `json:"page"`
}

// Problem adds a sentence about what is wrong, with the page that says more.
func (s *Status) Problem(page, text string) { s.Problems = append(s.Problems, Concern{text, page}) }

// ClusterStatus lists the replicas of the cluster; without a Name there is none.
type ClusterStatus struct {
	Name    string         `json:"name"`
	Members []MemberStatus `json:"members"`
}

// MemberStatus is one replica. State is a word: alive, stopped, or gone.
type MemberStatus struct {
	Name      string        `json:"name"`
	Zone      string        `json:"zone"`
	State     string        `json:"state"`
	Version   string        `json:"version"`
	URL       string        `json:"url,omitempty"` // of its home page; "" = not known
	Self      bool          `json:"self"`
	Since     time.Time     `json:"since,omitzero"` // of its state
	RoundTrip time.Duration `json:"-"`
	ClockSkew time.Duration `json:"-"`
}

// MarshalJSON gives durations in seconds, as everywhere in our API.
func (m MemberStatus) MarshalJSON() ([]byte, error) {
	type plain MemberStatus
	return json.Marshal(struct {
		plain
		RoundTrip float64 `json:"rtt_seconds"`
		ClockSkew float64 `json:"clock_skew_seconds"`
	}{plain(m), m.RoundTrip.Seconds(), m.ClockSkew.Seconds()})
}

// TargetStatus counts scrape targets by health.
type TargetStatus struct {
	Up          int          `json:"up"`
	Down        int          `json:"down"`
	Unknown     int          `json:"unknown"`
	DownTargets []DownTarget `json:"down_targets"`
}

// DownTarget is a target that was not scraped, and why.
type DownTarget struct {
	Job        string    `json:"job"`
	URL        string    `json:"url"`
	Error      string    `json:"error"`
	LastScrape time.Time `json:"last_scrape,omitzero"`
}

// AlertStatus is one alert as our own rules see it.
type AlertStatus struct {
	Name     string    `json:"name"`
	State    string    `json:"state"`
	Severity string    `json:"severity,omitempty"`
	Labels   string    `json:"labels"`
	Summary  string    `json:"summary,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	// Muted says what keeps it from its receivers: silenced or inhibited; "" = nothing.
	Muted string `json:"muted,omitempty"`
}

// RuleStatus counts rules; Problems has a sentence for each one that fails.
type RuleStatus struct {
	Groups   int      `json:"groups"`
	Rules    int      `json:"rules"`
	Failing  int      `json:"failing"`
	Problems []string `json:"problems"`
}

// ConfigStatus says which configuration is in force.
type ConfigStatus struct {
	Path       string    `json:"path"` // "" = built-in
	LastReload time.Time `json:"last_reload,omitzero"`
	Error      string    `json:"error,omitempty"`   // of the last reload; "" = it went well
	Partial    bool      `json:"partial,omitempty"` // whether that reload changed some parts before it failed
}

// StorageStatus has figures of the data; zero or less = not known.
type StorageStatus struct {
	Dir              string    `json:"dir"`
	Series           uint64    `json:"series"`
	SamplesPerSecond float64   `json:"samples_per_second,omitempty"`
	Retention        string    `json:"retention"`
	UsedBytes        int64     `json:"used_bytes"`
	FreeBytes        int64     `json:"free_bytes"`
	Oldest           time.Time `json:"oldest,omitzero"`
}

// AddressStatus is one address and what it is for.
type AddressStatus struct {
	Name    string `json:"name"`
	Address string `json:"address"`
}

// view is the status with the door's own knowledge and the verdict.
type view struct {
	Now      time.Time `json:"now"`
	Well     bool      `json:"well"`
	Verdict  string    `json:"verdict"`
	Concerns []Concern `json:"concerns"`
	Status
	// MoreDown and MoreAlert are how many the lists leave out.
	MoreDown     int             `json:"more_down_targets"`
	MoreAlert    int             `json:"more_alerts"`
	Prometheus   string          `json:"prometheus_url"`   // for a Prometheus data source
	Alertmanager string          `json:"alertmanager_url"` // for an Alertmanager data source
	Listen       []AddressStatus `json:"addresses"`
}

func (w *Web) view() view {
	ready, sentence := w.ready()
	v := newView(w.o.Status(), ready, sentence, time.Now())
	v.Prometheus = w.o.ExternalURL.JoinPath("/").String()
	v.Alertmanager = w.o.ExternalURL.JoinPath("alertmanager").String()
	for _, name := range []string{"web", "alertmanager"} {
		for _, a := range w.Addresses()[name] {
			v.Listen = append(v.Listen, AddressStatus{name, a})
		}
	}
	v.Listen = append(v.Listen, v.Addresses...)
	return v
}

// serveStatus answers what the home page shows, as JSON.
func (w *Web) serveStatus(rw http.ResponseWriter, _ *http.Request) {
	v := w.view()
	// An empty list is one, and not null.
	orEmpty(&v.Concerns)
	orEmpty(&v.Cluster.Members)
	orEmpty(&v.Targets.DownTargets)
	orEmpty(&v.Alerts)
	orEmpty(&v.Rules.Problems)
	orEmpty(&v.Listen)
	rw.Header().Set("Cache-Control", "no-store")
	writeJSON(rw, http.StatusOK, v)
}

func orEmpty[T any](list *[]T) {
	if *list == nil {
		*list = []T{}
	}
}

// newView judges: one sentence first, then what it rests on.
func newView(s Status, ready bool, sentence string, now time.Time) view {
	v := view{Status: s, Now: now}
	if !ready {
		if sentence == "" {
			sentence = "starting"
		}
		v.concern("/status", "Not ready: "+sentence)
	}
	v.Concerns = append(v.Concerns, s.Problems...)
	switch {
	case s.Config.Partial:
		v.concern("/config", "The last reload was applied only in part; correct the configuration and reload, or restart.")
	case s.Config.Error != "":
		v.concern("/config", "The last reload was refused; the configuration before it is in force.")
	}
	if n := firing(s.Alerts); n > 0 {
		v.concern("/alerts", plural(n, "alert is firing.", "alerts are firing."))
	}
	if n := s.Targets.Down; n > 0 {
		v.concern("/targets?health=down", plural(n, "target is down.", "targets are down."))
	}
	if n := s.Rules.Failing; n > 0 {
		v.concern("/rules?health=err", plural(n, "rule fails.", "rules fail."))
	}
	switch n := len(v.Concerns); {
	case n == 0:
		v.Well = true
		v.Verdict = "All is well."
		if s.Targets.Up > 0 {
			v.Verdict = "All is well: " + plural(s.Targets.Up, "target is up", "targets are up") + ", no alert needs you."
		}
	default:
		v.Verdict = plural(n, "thing needs attention.", "things need attention.")
	}
	if n := len(v.Targets.DownTargets); n > maxRows {
		v.Targets.DownTargets, v.MoreDown = v.Targets.DownTargets[:maxRows], n-maxRows
	}
	if n := len(v.Alerts); n > maxRows {
		v.Alerts, v.MoreAlert = v.Alerts[:maxRows], n-maxRows
	}
	if n := len(v.Rules.Problems); n > maxRows {
		v.Rules.Problems = append(v.Rules.Problems[:maxRows:maxRows], fmt.Sprintf("and %d more", n-maxRows))
	}
	return v
}

func (v *view) concern(page, text string) { v.Concerns = append(v.Concerns, Concern{text, page}) }

// firing counts the alerts that are somebody's business. Severity none is the
// custom for an alert that always fires, to prove that alerts get through; who
// has silenced one knows of it, and what inhibits one is counted itself.
func firing(alerts []AlertStatus) (n int) {
	for _, a := range alerts {
		if a.State == "firing" && a.Severity != "none" && a.Muted == "" {
			n++
		}
	}
	return n
}
