package config

import (
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/discovery"
	"go.yaml.in/yaml/v3"
)

// bucketSDName makes bucket_sd_configs of it.
const bucketSDName = "bucket"

// shortestPoll bounds how often the bucket is asked: each time costs requests, which clouds charge for.
const shortestPoll = time.Second

// Discovery kinds are registered before the first parse, as upstream's are.
func init() { discovery.RegisterConfig(&BucketSD{}) }

// BucketSD is an item of bucket_sd_configs: targets out of file_sd's JSON and YAML, from the bucket. It is nothing but
// data; who reads the bucket makes the discoverer, see [BucketDiscovery].
type BucketSD struct {
	Prefix          string         `yaml:"prefix" reload:"yes" doc:"Objects below it whose names end in .json, .yml or .yaml are read, those in folders too. Required."`
	RefreshInterval model.Duration `yaml:"refresh_interval,omitempty" default:"15s" reload:"yes" doc:"Time between two looks into the bucket, at least 1s."`
}

var _ discovery.Config = (*BucketSD)(nil)

// Name implements discovery.Config.
func (*BucketSD) Name() string { return bucketSDName }

// UnmarshalYAML sets the defaults, and refuses what cannot work.
func (c *BucketSD) UnmarshalYAML(unmarshal func(any) error) error {
	*c = BucketSD{RefreshInterval: model.Duration(defaultPoll)}
	type plain BucketSD
	if err := unmarshal((*plain)(c)); err != nil {
		return err
	}
	if c.Prefix == "" {
		return errors.New("bucket_sd_configs: prefix is missing: it says which objects hold the targets")
	}
	prefix, problem := objectPrefix(c.Prefix)
	if problem != "" {
		return fmt.Errorf("bucket_sd_configs: prefix %s %s", clip(c.Prefix), problem)
	}
	c.Prefix = prefix
	if time.Duration(c.RefreshInterval) < shortestPoll {
		return fmt.Errorf("bucket_sd_configs: refresh_interval %s is shorter than %s", c.RefreshInterval, shortestPoll)
	}
	return nil
}

// NewDiscoverer implements discovery.Config.
func (c *BucketSD) NewDiscoverer(o discovery.DiscovererOptions) (discovery.Discoverer, error) {
	d, ok := o.Metrics.(*BucketDiscovery)
	if !ok {
		return nil, errors.New("discover targets in the bucket: upstream handed over the metrics of another kind")
	}
	if d.New == nil {
		return nil, errors.New("discover targets in the bucket: there is no bucket section")
	}
	return d.New(c, o.Logger), nil
}

// NewDiscovererMetrics implements discovery.Config.
func (*BucketSD) NewDiscovererMetrics(prometheus.Registerer, discovery.RefreshMetricsInstantiator) discovery.DiscovererMetrics {
	return &BucketDiscovery{}
}

// BucketDiscovery is what upstream keeps for each discovery kind, once per set of metrics, and hands to each discoverer that it
// makes. For ours it carries who can read the bucket, so that there is no need of a global.
type BucketDiscovery struct {
	// New makes a discoverer; nil where there is no bucket.
	New func(*BucketSD, *slog.Logger) discovery.Discoverer
}

// BucketDiscoveryOf finds it among the metrics that discovery.CreateAndRegisterSDMetrics gives.
func BucketDiscoveryOf(metrics map[string]discovery.DiscovererMetrics) (*BucketDiscovery, bool) {
	d, ok := metrics[bucketSDName].(*BucketDiscovery)
	return d, ok
}

// Register implements discovery.DiscovererMetrics. The metrics share names with file_sd's, and which kind upstream registers
// first is chance: who fills in New registers them, after all kinds are there.
func (*BucketDiscovery) Register() error { return nil }

// Unregister implements discovery.DiscovererMetrics.
func (*BucketDiscovery) Unregister() {}

// objectPrefix makes a prefix end in one slash, and says what is wrong with it.
func objectPrefix(s string) (prefix, problem string) {
	switch trimmed := strings.TrimSuffix(s, "/"); {
	case len(s) > 512:
		return "", "is longer than 512 bytes"
	case strings.HasPrefix(s, "/"):
		return "", "begins with a slash, which names of objects do not"
	case trimmed == "" || trimmed != path.Clean(trimmed) || trimmed == "." || trimmed == ".." || strings.HasPrefix(trimmed, "../"):
		return "", "is no path below the bucket's root"
	case trimmed == RendezvousFolder || strings.HasPrefix(trimmed, RendezvousFolder+"/"):
		return "", "is where the replicas of a cluster meet (cluster.rendezvous)"
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }):
		return "", "contains a control character or a backslash"
	default:
		return trimmed + "/", ""
	}
}

// needBucket reports every bucket_sd_configs of a configuration without a bucket.
func (l *loader) needBucket(cfg *Config, s *section) {
	if s == nil || cfg.Prometheus == nil {
		return
	}
	fromBucket := func(sds discovery.Configs) bool {
		return slices.ContainsFunc(sds, func(c discovery.Config) bool { return c.Name() == bucketSDName })
	}
	const problem = "there is no bucket section that the targets could come from"
	for _, job := range cfg.ScrapeConfigs {
		if !fromBucket(job.ServiceDiscoveryConfigs) {
			continue
		}
		at := s.get("scrape_config_files")
		for _, item := range items(s.get("scrape_configs")) {
			if n := child(item, "job_name"); n != nil && n.Value == job.JobName {
				at = child(item, bucketSDName+"_sd_configs")
			}
		}
		s.add(at, "job %s: %s", clip(job.JobName), problem)
	}
	for i, am := range cfg.Prometheus.AlertingConfig.AlertmanagerConfigs {
		if fromBucket(am.ServiceDiscoveryConfigs) {
			var at *yaml.Node
			if all := items(s.get("alerting", "alertmanagers")); i < len(all) {
				at = child(all[i], bucketSDName+"_sd_configs")
			}
			s.add(at, "%s", problem)
		}
	}
	l.take(s)
}
