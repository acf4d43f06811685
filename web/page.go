package web

import (
	"bytes"
	_ "embed" // the page and its style
	"fmt"
	"html/template"
	"math"
	"net/http"
	"strconv"
	"time"
)

// maxRows is how many rows of one list the page shows: a bad day has thousands
// of down targets, and the API has them all.
const maxRows = 50

// Status is what the page at / shows. Sentences are written by whoever knows;
// the page only arranges them.
type Status struct {
	Replica, Zone string
	Version       string
	Started       time.Time
	// Problems are further sentences about what is wrong, most urgent first.
	Problems []string

	Cluster  ClusterStatus
	Targets  TargetStatus
	Alerts   []AlertStatus // pending and firing
	Silences int           // active
	Rules    RuleStatus
	Config   ConfigStatus
	Storage  StorageStatus
	// Addresses are further addresses in use, such as the mesh's.
	Addresses []AddressStatus
}

// ClusterStatus lists the replicas of the cluster; without a Name there is none.
type ClusterStatus struct {
	Name    string
	Members []MemberStatus
}

// MemberStatus is one replica. State is a word: alive, stopped, or gone.
type MemberStatus struct {
	Name, Zone, State, Version string
	URL                        string // of its status page; "" = not known
	Self                       bool
	Since                      time.Time // of its state
	RoundTrip, ClockSkew       time.Duration
}

// TargetStatus counts scrape targets by health.
type TargetStatus struct {
	Up, Down, Unknown int
	DownTargets       []DownTarget
}

// DownTarget is a target that was not scraped, and why.
type DownTarget struct {
	Job, URL, Error string
	LastScrape      time.Time
}

// AlertStatus is one alert as our own rules see it.
type AlertStatus struct {
	Name, State, Severity, Labels, Summary string
	Since                                  time.Time
}

// RuleStatus counts rules; Problems has a sentence for each one that fails.
type RuleStatus struct {
	Groups, Rules, Failing int
	Problems               []string
}

// ConfigStatus says which configuration is in force.
type ConfigStatus struct {
	Path       string // "" = built-in
	LastReload time.Time
	Error      string // of the last reload; "" = it went well
	Partial    bool   // whether that reload changed some parts before it failed
}

// StorageStatus has figures of the data; zero or less = not known.
type StorageStatus struct {
	Dir              string
	Series           uint64
	SamplesPerSecond float64
	Retention        string
	UsedBytes        int64
	FreeBytes        int64
	Oldest           time.Time
}

// AddressStatus is one address and what it is for.
type AddressStatus struct{ Name, Address string }

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS []byte

type page struct{ tmpl *template.Template }

func newPage() (*page, error) {
	t, err := template.New("page").Funcs(template.FuncMap{
		"ago":    ago,
		"at":     at,
		"bytes":  humanBytes,
		"count":  humanCount,
		"plural": plural,
		"round":  func(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) },
	}).Parse(pageHTML)
	if err != nil {
		return nil, fmt.Errorf("parse the status page: %w", err)
	}
	return &page{t}, nil
}

// view is the status with the door's own knowledge and the verdict.
type view struct {
	Status
	Now                 time.Time
	Well                bool
	Verdict             string
	Concerns            []string
	MoreDown, MoreAlert int
	Prometheus          string // URL for a Prometheus data source
	Alertmanager        string // URL for an Alertmanager data source
	Listen              []AddressStatus
	UI                  bool // the browser UI is built in
}

func (w *Web) servePage(rw http.ResponseWriter, _ *http.Request) {
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
	v.UI = w.ui.Built()

	// Rendered whole before anything is sent: half a page would look well.
	var buf bytes.Buffer
	if err := w.page.tmpl.Execute(&buf, v); err != nil {
		w.o.Logger.Error("the status page did not render, answering with an error", "err", err)
		writeText(rw, http.StatusInternalServerError, "The status page did not render. /api/v1 is not affected.\n")
		return
	}
	h := rw.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'self'; base-uri 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	_, _ = rw.Write(buf.Bytes()) // the client may be gone
}

func (p *page) serveStyle(rw http.ResponseWriter, _ *http.Request) {
	rw.Header().Set("Content-Type", "text/css; charset=utf-8")
	rw.Header().Set("Cache-Control", "max-age=300")
	_, _ = rw.Write(pageCSS) // the client may be gone
}

// newView judges: one sentence first, then what it rests on.
func newView(s Status, ready bool, sentence string, now time.Time) view {
	v := view{Status: s, Now: now}
	if !ready {
		if sentence == "" {
			sentence = "starting"
		}
		v.Concerns = append(v.Concerns, "Not ready: "+sentence)
	}
	v.Concerns = append(v.Concerns, s.Problems...)
	switch {
	case s.Config.Partial:
		v.Concerns = append(v.Concerns, "The last reload was applied only in part; correct the configuration and reload, or restart.")
	case s.Config.Error != "":
		v.Concerns = append(v.Concerns, "The last reload was refused; the configuration before it is in force.")
	}
	if n := firing(s.Alerts); n > 0 {
		v.Concerns = append(v.Concerns, plural(n, "alert is firing.", "alerts are firing."))
	}
	if n := s.Targets.Down; n > 0 {
		v.Concerns = append(v.Concerns, plural(n, "target is down.", "targets are down."))
	}
	if n := s.Rules.Failing; n > 0 {
		v.Concerns = append(v.Concerns, plural(n, "rule fails.", "rules fail."))
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

// firing counts the alerts that are somebody's business. Severity none is the
// custom for an alert that always fires, to prove that alerts get through.
func firing(alerts []AlertStatus) (n int) {
	for _, a := range alerts {
		if a.State == "firing" && a.Severity != "none" {
			n++
		}
	}
	return n
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

func at(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// ago is a duration as people say it: two units at most.
func ago(now, t time.Time) string {
	d := now.Sub(t)
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm %ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh %dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd %dh", int(d.Hours())/24, int(d.Hours())%24)
	}
}

func humanBytes(n int64) string {
	f, units := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	if i == 0 {
		return strconv.FormatInt(n, 10) + " B"
	}
	return strconv.FormatFloat(f, 'f', 1, 64) + " " + units[i]
}

func humanCount(f float64) string {
	switch {
	case math.IsNaN(f) || math.IsInf(f, 0):
		return "unknown"
	case f >= 1e6:
		return strconv.FormatFloat(f/1e6, 'f', 2, 64) + " million"
	case f >= 1e4:
		return strconv.FormatFloat(f/1e3, 'f', 1, 64) + " thousand"
	default:
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
}
