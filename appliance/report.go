package appliance

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/units"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/scrape"
	v1 "github.com/prometheus/prometheus/web/api/v1"
)

// Version names a build.
type Version struct{ Version, Revision, Branch, BuildDate string }

// Versions of the embedded programs, which clients ask for to know what they may use. The module versions of
// Prometheus are not its release numbers; a test holds this to go.mod.
const (
	PrometheusVersion   = "3.9.1"
	AlertmanagerVersion = "0.34.2"
)

// api is what /api/v1/status/buildinfo answers: the version of Prometheus that is embedded, because Grafana decides
// by it which functions it may use.
func (v Version) api() v1.PrometheusVersion {
	return v1.PrometheusVersion{
		Version: PrometheusVersion, Revision: v.Revision, Branch: v.Branch, BuildUser: "tocsin " + v.Version,
		BuildDate: v.BuildDate, GoVersion: runtime.Version(),
	}
}

// registerProcess registers what describes the process itself, with the build information of each embedded program
// under its own name, because dashboards and alerts look for it there.
func (a *Appliance) registerProcess() error {
	reg, v := a.opts.Registry, a.opts.Version
	errs := []error{
		reg.Register(collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(
			collectors.MetricsGC, collectors.MetricsScheduler))),
		reg.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})),
	}
	for program, version := range map[string]string{
		"tocsin": v.Version, "prometheus": PrometheusVersion, "alertmanager": AlertmanagerVersion,
	} {
		g := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: program + "_build_info",
			Help: fmt.Sprintf("A metric with a constant '1' value labeled by the version of %s that is built in, and how.", program),
			ConstLabels: prometheus.Labels{
				"version": version, "revision": v.Revision, "branch": v.Branch, "goversion": runtime.Version(),
				"goos": runtime.GOOS, "goarch": runtime.GOARCH, "tags": buildTags(),
			},
		}, func() float64 { return 1 })
		errs = append(errs, reg.Register(g))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("register the metrics of the process: %w", err)
	}
	return nil
}

func buildTags() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "-tags" {
				return s.Value
			}
		}
	}
	return ""
}

// runtimeInfo answers /api/v1/status/runtimeinfo.
func (a *Appliance) runtimeInfo() (v1.RuntimeInfo, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return v1.RuntimeInfo{}, fmt.Errorf("ask for the working directory: %w", err)
	}
	info := v1.RuntimeInfo{
		StartTime: a.started.UTC(), CWD: cwd, Hostname: a.host, ServerTime: time.Now().UTC(),
		GoroutineCount: runtime.NumGoroutine(), GOMAXPROCS: runtime.GOMAXPROCS(0), GOMEMLIMIT: debug.SetMemoryLimit(-1),
		GOGC: gcPercent(a.Config().Prometheus.Runtime.GoGC), GODEBUG: os.Getenv("GODEBUG"), StorageRetention: a.retention(),
	}
	values, err := a.gather("prometheus_tsdb_wal_corruptions_total")
	if err != nil {
		return info, err
	}
	info.CorruptionCount = int64(values["prometheus_tsdb_wal_corruptions_total"])
	if last := a.lastReload.Load(); last != nil {
		info.ReloadConfigSuccess, info.LastConfigTime = last.err == nil, last.at.UTC()
	}
	return info, nil
}

// gcPercent is what upstream's runtime information says of it.
func gcPercent(percent int) string {
	if percent < 0 {
		return "off"
	}
	return strconv.Itoa(percent)
}

// retention is what upstream's runtime information says of it: "15d", "512MB" or "15d or 512MB".
func (a *Appliance) retention() string {
	byTime, bySize := a.store.Retention()
	var parts []string
	if byTime > 0 {
		parts = append(parts, model.Duration(byTime).String())
	}
	if bySize > 0 {
		parts = append(parts, units.Base2Bytes(bySize).String())
	}
	return strings.Join(parts, " or ")
}

// gatherer is everything at /metrics: our registry, and what upstream's packages put on the default one without asking
// (remote storage does), under names that dashboards look for. That one's own view of the process is left out: ours
// has it.
func (a *Appliance) gatherer() prometheus.Gatherer {
	return prometheus.Gatherers{a.opts.Registry, prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		families, err := prometheus.DefaultGatherer.Gather() //nolint:forbidigo // The only way to these metrics.
		return slices.DeleteFunc(families, func(f *dto.MetricFamily) bool {
			return !strings.HasPrefix(f.GetName(), "prometheus_")
		}), err
	})}
}

// gather reads single counters and gauges out of the process's own metrics. Those that are absent are left out.
func (a *Appliance) gather(names ...string) (map[string]float64, error) {
	families, err := a.opts.Registry.Gather()
	if err != nil {
		return nil, fmt.Errorf("gather the process's metrics: %w", err)
	}
	values := map[string]float64{}
	for _, f := range families {
		if !slices.Contains(names, f.GetName()) {
			continue
		}
		for _, m := range f.GetMetric() {
			values[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values, nil
}

// targets shows what scrape pools and federation pull from as one list.
type targets struct{ a *Appliance }

func (t targets) TargetsActive() map[string][]*scrape.Target {
	all := t.a.scrape.Manager().TargetsActive()
	for pool, ts := range t.a.federate.Targets() {
		all[pool] = ts
	}
	return all
}

func (t targets) TargetsDropped() map[string][]*scrape.Target {
	return t.a.scrape.Manager().TargetsDropped()
}

func (t targets) TargetsDroppedCounts() map[string]int {
	return t.a.scrape.Manager().TargetsDroppedCounts()
}

func (t targets) ScrapePools() []string {
	names := t.a.scrape.Manager().ScrapePools()
	for pool := range t.a.federate.Targets() {
		names = append(names, pool)
	}
	return names
}

func (t targets) ScrapePoolConfig(pool string) (*promconfig.ScrapeConfig, error) {
	return t.a.scrape.Manager().ScrapePoolConfig(pool)
}

// alertmanagers lists whom alerts are sent to. The API is built before the Alertmanager.
type alertmanagers struct{ a *Appliance }

func (m alertmanagers) Alertmanagers() []*url.URL { return m.a.alert.Notifier().Alertmanagers() }

func (m alertmanagers) DroppedAlertmanagers() []*url.URL {
	return m.a.alert.Notifier().DroppedAlertmanagers()
}
