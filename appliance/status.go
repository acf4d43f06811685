package appliance

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/scrape"

	"github.com/tocsin-io/tocsin/web"
)

// lowSpace is how little free space counts as a full disk: less than a segment of the write-ahead log.
const lowSpace = 128 << 20

// summaryTimeout bounds the looking through alerts and silences for the page.
const summaryTimeout = 2 * time.Second

// status is what the home page shows.
func (a *Appliance) status() web.Status {
	cfg := a.Config()
	s := web.Status{
		Replica: cfg.Replica.Name,
		Zone:    a.zone,
		Version: a.opts.Version.Version,
		Started: a.started,
		Targets: a.targetStatus(),
		Config:  web.ConfigStatus{Path: cfg.Path},
	}
	if last := a.lastReload.Load(); last != nil {
		s.Config.LastReload = last.at
		if last.err != nil {
			s.Config.Error, s.Config.Partial = last.err.Error(), last.phase == phaseApply
		}
	}
	a.sourceStatus(&s)
	a.clusterStatus(&s)
	a.gapStatus(&s)
	a.bucketStatus(&s)
	ctx, cancel := context.WithTimeout(context.Background(), summaryTimeout)
	defer cancel()
	a.ruleStatus(ctx, &s)
	a.storageStatus(&s)
	summary, err := a.alert.Summary(ctx)
	if err != nil {
		s.Problem("/alerts", fmt.Sprintf("The Alertmanager does not answer: %v.", err))
	}
	s.Silences = summary.Silences
	return s
}

func (a *Appliance) targetStatus() web.TargetStatus {
	var s web.TargetStatus
	for pool, ts := range (targets{a}).TargetsActive() {
		for _, t := range ts {
			switch t.Health() {
			case scrape.HealthGood:
				s.Up++
			case scrape.HealthBad:
				s.Down++
				d := web.DownTarget{Job: pool, URL: t.URL().Redacted(), LastScrape: t.LastScrape()}
				if err := t.LastError(); err != nil {
					d.Error = err.Error()
				}
				s.DownTargets = append(s.DownTargets, d)
			default:
				s.Unknown++
			}
		}
	}
	slices.SortFunc(s.DownTargets, func(x, y web.DownTarget) int {
		return cmp.Or(cmp.Compare(x.Job, y.Job), cmp.Compare(x.URL, y.URL))
	})
	return s
}

func (a *Appliance) ruleStatus(ctx context.Context, s *web.Status) {
	for _, g := range a.evaluate.Manager().RuleGroups() {
		s.Rules.Groups++
		for _, r := range g.Rules() {
			s.Rules.Rules++
			if err := r.LastError(); err != nil {
				s.Rules.Failing++
				s.Rules.Problems = append(s.Rules.Problems, fmt.Sprintf("%s in group %s: %v", r.Name(), g.Name(), err))
			}
			if ar, ok := r.(*rules.AlertingRule); ok {
				for _, al := range ar.ActiveAlerts() {
					as := web.AlertStatus{
						Name: ar.Name(), State: al.State.String(), Severity: al.Labels.Get("severity"),
						Labels: al.Labels.String(), Summary: al.Annotations.Get("summary"), Since: al.ActiveAt,
					}
					if al.State == rules.StateFiring {
						as.Muted = a.alert.Muted(ctx, al.Labels)
					}
					s.Alerts = append(s.Alerts, as)
				}
			}
		}
	}
	// "firing" sorts before "pending", and that is what one wants to see first; of these, what nobody has muted.
	slices.SortFunc(s.Alerts, func(x, y web.AlertStatus) int {
		return cmp.Or(cmp.Compare(x.State, y.State), cmp.Compare(x.Muted, y.Muted), x.Since.Compare(y.Since), cmp.Compare(x.Labels, y.Labels))
	})
}

func (a *Appliance) storageStatus(s *web.Status) {
	const (
		series = "prometheus_tsdb_head_series"
		oldest = "prometheus_tsdb_lowest_timestamp_seconds"
		blocks = "prometheus_tsdb_storage_blocks_bytes"
		wal    = "prometheus_tsdb_wal_storage_size_bytes"
		chunks = "prometheus_tsdb_head_chunks_storage_size_bytes"
		failed = "prometheus_tsdb_wal_writes_failed_total"
		unkept = "tocsin_alert_journal_failures_total"
	)
	s.Storage.Dir, s.Storage.Retention = a.opts.StoragePath, a.retention()
	values, err := a.gather(series, oldest, blocks, wal, chunks, failed, unkept)
	if err != nil {
		s.Problem("/status", fmt.Sprintf("This replica cannot read its own metrics: %v.", err))
		return
	}
	s.Storage.Series = uint64(values[series])
	s.Storage.UsedBytes = int64(values[blocks] + values[wal] + values[chunks])
	// An empty store says the end of time, one that is not open yet nothing.
	if t := time.Unix(int64(values[oldest]), 0); values[oldest] > 0 && t.Before(time.Now()) {
		s.Storage.Oldest = t
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(a.opts.StoragePath, &fs); err == nil {
		s.Storage.FreeBytes = int64(fs.Bavail * uint64(fs.Bsize))
		if s.Storage.FreeBytes < lowSpace {
			s.Problem("/tsdb-status", fmt.Sprintf("The disk below %s is full or nearly so: %d MiB are free. Samples are lost while it is full.", a.opts.StoragePath, s.Storage.FreeBytes>>20))
		}
	}
	if n := values[failed]; n > 0 {
		s.Problem("/tsdb-status", fmt.Sprintf("%.0f writes to the write-ahead log have failed since the start; see docs/operations.md on full disks before a restart.", n))
	}
	if n := values[unkept]; n > 0 {
		s.Problem("/status", fmt.Sprintf("%.0f changes of silences and notifications could not be written to disk at once since the start.", n))
	}
}
