package main

import (
	"fmt"
	"slices"
	"strings"

	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/tocsin-io/tocsin/appliance"
)

// feature is one of Prometheus's experimental features that this program honours.
type feature struct {
	name   string
	enable func(*runCmd, *appliance.Options)
}

// features are switched on as upstream's main does it; some of its switches are global to the process, which is why
// they are set here and nowhere else. Those that have become the default, or are always on here, are accepted so that
// an existing command line goes on working.
func features() []feature {
	always := func(*runCmd, *appliance.Options) {}
	return []feature{
		{"concurrent-rule-eval", func(c *runCmd, o *appliance.Options) { o.Evaluate.MaxConcurrency = c.MaxConcurrentEvals }},
		{"created-timestamp-zero-ingestion", func(_ *runCmd, o *appliance.Options) {
			o.Scrape.Manager.EnableStartTimestampZeroIngestion = true
			o.Query.EnableSTZeroIngestion = true
			promconfig.DefaultConfig.GlobalConfig.ScrapeProtocols = promconfig.DefaultProtoFirstScrapeProtocols
			promconfig.DefaultGlobalConfig.ScrapeProtocols = promconfig.DefaultProtoFirstScrapeProtocols
		}},
		{"delayed-compaction", func(_ *runCmd, o *appliance.Options) { o.Store.EnableDelayedCompaction = true }},
		{"exemplar-storage", always},
		{"extra-scrape-metrics", func(_ *runCmd, o *appliance.Options) { o.Scrape.Manager.ExtraMetrics = true }},
		{"memory-snapshot-on-shutdown", always},
		{"metadata-wal-records", func(_ *runCmd, o *appliance.Options) {
			o.Scrape.Manager.AppendMetadata = true
			o.Query.AppendMetadata = true
		}},
		{"native-histograms", always},
		{"ooo-native-histograms", always},
		{"otlp-deltatocumulative", func(_ *runCmd, o *appliance.Options) { o.Query.OTLPDeltaToCumulative = true }},
		{"otlp-native-delta-ingestion", func(_ *runCmd, o *appliance.Options) { o.Query.OTLPNativeDelta = true }},
		{"promql-delayed-name-removal", func(_ *runCmd, o *appliance.Options) { o.Query.EnableDelayedNameRemoval = true }},
		{"promql-duration-expr", func(*runCmd, *appliance.Options) { parser.ExperimentalDurationExpr = true }},
		{"promql-experimental-functions", func(*runCmd, *appliance.Options) { parser.EnableExperimentalFunctions = true }},
		{"promql-extended-range-selectors", func(*runCmd, *appliance.Options) { parser.EnableExtendedRangeSelectors = true }},
		{"promql-per-step-stats", func(_ *runCmd, o *appliance.Options) { o.Query.EnablePerStepStats = true }},
		{"type-and-unit-labels", func(_ *runCmd, o *appliance.Options) {
			o.Scrape.Manager.EnableTypeAndUnitLabels = true
			o.Store.EnableTypeAndUnitLabels = true
			o.Query.EnableTypeAndUnitLabels = true
		}},
	}
}

func featureNames() string {
	var names []string
	for _, f := range features() {
		names = append(names, f.name)
	}
	return strings.Join(names, ", ")
}

// applyFeatures refuses an unknown feature: one that is silently off is worse than a start that fails.
func (c *runCmd) applyFeatures(o *appliance.Options) error {
	all := features()
	for _, name := range c.Features {
		i := slices.IndexFunc(all, func(f feature) bool { return f.name == name })
		if i < 0 {
			return fmt.Errorf("--enable-feature=%s: there is no such feature; there are %s", name, featureNames())
		}
		all[i].enable(c, o)
	}
	return nil
}
