package scrape

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/node_exporter/collector"
)

// hostCollectors are the node_exporter collectors that say whether this machine is well: processor, memory, disks,
// file systems, network, load. Those that node_exporter does not have on an operating system are left out there.
var hostCollectors = []string{
	"cpu", "diskstats", "filefd", "filesystem", "loadavg", "meminfo", "netdev", "netstat", "pressure", "sockstat",
	"stat", "time", "uname", "vmstat",
}

// parseCollectorFlags settles node_exporter's flags, which are global to the process and have no values before its
// own command line was parsed. Ours has nothing to do with it. The collectors that are named stay on when the
// defaults are switched off, which must be after the parsing.
var parseCollectorFlags = sync.OnceValue(func() error {
	var args []string
	for _, name := range hostCollectors {
		if kingpin.CommandLine.GetFlag("collector."+name) != nil {
			args = append(args, "--collector."+name)
		}
	}
	if _, err := kingpin.CommandLine.Parse(args); err != nil {
		return fmt.Errorf("settle node_exporter's flags: %w", err)
	}
	collector.DisableDefaultCollectors()
	return nil
})

// newHostMetrics serves the machine's metrics from a registry of their own, because they are a target of their own:
// they do not belong to the process's metrics.
func newHostMetrics(logger *slog.Logger) (http.Handler, error) {
	if err := parseCollectorFlags(); err != nil {
		return nil, err
	}
	// What is missing on a machine is normal there, and node_scrape_collector_success says it: not a line each time.
	logger = slog.New(quiet{logger.Handler()})
	node, err := collector.NewNodeCollector(logger)
	if err != nil {
		return nil, fmt.Errorf("create the host's collectors: %w", err)
	}
	reg := prometheus.NewRegistry()
	if err := reg.Register(node); err != nil {
		return nil, fmt.Errorf("register the host's collectors: %w", err)
	}
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		// One collector that fails must not hide the others.
		ErrorHandling: promhttp.ContinueOnError,
		// Reading /proc costs; a crowd of scrapers must not multiply it.
		MaxRequestsInFlight: 4,
	}), nil
}

// quiet logs everything at debug.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }

func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }
