package store

import (
	"math"
	"slices"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// Lasts is the end of a gap that is not over.
const Lasts = math.MaxInt64

// Interval is the time strictly between two moments, in Unix milliseconds. A gap's data are whole at both.
type Interval struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// Empty tells whether no millisecond lies in between.
func (i Interval) Empty() bool { return i.To <= i.From || i.To-1 == i.From }

// Contains tells whether t lies in between.
func (i Interval) Contains(t int64) bool { return i.From < t && t < i.To }

// Meets tells whether a moment of [mint, maxt] lies in between.
func (i Interval) Meets(mint, maxt int64) bool { return i.From < maxt && mint < i.To && !i.Empty() }

// Intersect is what lies in both. It may be empty.
func (i Interval) Intersect(j Interval) Interval {
	return Interval{max(i.From, j.From), min(i.To, j.To)}
}

// GapKind is what a gap is a gap of.
type GapKind string

// Kinds of gaps.
const (
	// GapReplica is of everything: the process was not there, or not working.
	GapReplica GapKind = "replica"
	// GapTarget is of one target, or of one federation upstream, which another replica did reach.
	GapTarget GapKind = "target"
	// GapRules is of one rule group, which was not evaluated.
	GapRules GapKind = "rules"
)

// GapState is how far a gap is.
type GapState string

// States of gaps. A gap that is open may still last.
const (
	GapOpen   GapState = "open"
	GapHealed GapState = "healed"
	// GapLost is closed too: no replica has anything in what is left of it.
	GapLost GapState = "lost"
)

// Causes of gaps.
const (
	CauseDown        = "down"        // The process did not run, or did not scrape yet.
	CauseFrozen      = "frozen"      // It ran and did not get to work.
	CauseNew         = "new"         // The data directory was empty.
	CauseUnreachable = "unreachable" // This zone did not reach the target.
	CauseEvaluation  = "evaluation"  // Rules were not evaluated.
)

// Gap is a time in which this replica has no data of its own, though there may have been some to have.
type Gap struct {
	ID   string  `json:"id"`
	Kind GapKind `json:"kind"`
	// Labels name the target, as its `up` series does without its name, or the rule group (file, group).
	Labels labels.Labels `json:"labels"`
	// Match are the labels that the series of the target all have. For the other kinds it is empty.
	Match labels.Labels `json:"match"`
	Interval
	Cause string   `json:"cause"`
	State GapState `json:"state"`
	// Missing is what is left of the interval to be filled, oldest first. It is empty when the gap is closed.
	Missing []Interval `json:"missing,omitempty"`
	// Found and Closed are when.
	Found  time.Time `json:"found"`
	Closed time.Time `json:"closed,omitzero"`
	// Fills say what came from where, oldest first.
	Fills []Fill `json:"fills,omitempty"`
	// Asked are the replicas that do not have what was lost.
	Asked []string `json:"asked,omitempty"`
}

// Fill is one part of a gap that was closed with another replica's data, or found to be nowhere.
type Fill struct {
	Interval
	// Replica and Zone say whose data it is: "" when nobody had any, or not whole; "bucket" when it came from object storage.
	Replica string `json:"replica"`
	Zone    string `json:"zone"`
	// Series and Samples are what was written; of all Targets, where several were filled together.
	Series  int64     `json:"series"`
	Samples int64     `json:"samples"`
	Targets int       `json:"targets,omitempty"`
	At      time.Time `json:"at"`
}

// Lasting tells whether the gap is not over.
func (g *Gap) Lasting() bool { return g.To == Lasts }

// Subtract takes an interval out of others: every moment that lies in it, and no other. What remains is in order, if they
// were, and holds nothing empty.
func Subtract(from []Interval, out Interval) []Interval {
	var rest []Interval
	for _, i := range from {
		if i.Intersect(out).Empty() {
			rest = append(rest, i)
			continue
		}
		// The moments at its ends are not in it, so they remain.
		rest = append(rest, Interval{i.From, min(i.To, out.From+1)}, Interval{max(i.From, out.To-1), i.To})
	}
	return slices.DeleteFunc(rest, Interval.Empty)
}

// Missing is what queries have to know of an open gap.
type Missing struct {
	Kind GapKind
	// Match are the labels of the series that it is about; empty means every series.
	Match labels.Labels
	// Intervals are in order and do not overlap. The last one may end at Lasts.
	Intervals []Interval
}

// Concerns tells whether a series is in the gap.
func (m *Missing) Concerns(series labels.Labels) bool {
	if m.Kind == GapTarget && IsHealth(series.Get(model.MetricNameLabel)) {
		return false
	}
	return HasLabels(series, m.Match)
}

// HasLabels tells whether a series has all the labels of another set, with the same values.
func HasLabels(series, match labels.Labels) bool {
	all := true
	match.Range(func(l labels.Label) { all = all && series.Get(l.Name) == l.Value })
	return all
}

// IsHealth tells whether a series says how a scrape went, as this replica's zone saw it, and not what was scraped.
func IsHealth(name string) bool {
	switch name {
	case "up", "scrape_duration_seconds", "scrape_samples_scraped", "scrape_samples_post_metric_relabeling",
		"scrape_series_added", "scrape_timeout_seconds", "scrape_sample_limit", "scrape_body_size_bytes":
		return true
	}
	return false
}

// ForeignSeries is what another replica has of one series within an interval.
type ForeignSeries struct {
	Labels labels.Labels
	// Interval is what was asked for. No sample lies outside, at either end included.
	Interval Interval
	// Shift is added to the time stamps of the samples, in milliseconds, when their replica's clock is not ours. The
	// interval is on our clock.
	Shift int64
	// Chunks are in order and do not overlap.
	Chunks []chunks.Meta
}

// ForeignSet is a stream of what another replica has: series by series, in the order of their labels, each once.
type ForeignSet interface {
	Next() bool
	At() ForeignSeries
	Err() error
}
