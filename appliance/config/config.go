// Package config owns the file tocsin.yml: its sections, their defaults, the
// strict reading of it and everything that can be known to be wrong with it
// before anything runs.
//
// A path or nothing at all enters. A [Config] leaves, checked and with every
// path in it absolute, or [Findings]: all that is wrong, each with its file,
// line and field. Prometheus's and Alertmanager's own parts are read by their
// own loaders, so that their formats stay theirs.
//
// It refuses to start anything: it holds no goroutine, opens no connection and
// keeps no state between two calls. It never prints a secret.
package config

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/alecthomas/units"
	amconfig "github.com/prometheus/alertmanager/config"
	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	_ "github.com/prometheus/prometheus/discovery/install" // Registers every service discovery kind; must precede the first parse.
	"github.com/prometheus/prometheus/model/labels"
)

// Config is a whole configuration, checked. Treat it as read-only: components
// keep pointers into it.
type Config struct {
	// Path is the file it came from, "" for the built-in configuration.
	Path string
	// Prometheus is the prometheus section, with absolute paths.
	Prometheus *promconfig.Config
	// ScrapeConfigs are the scrape jobs of Prometheus and of its
	// scrape_config_files, in that order.
	ScrapeConfigs []*promconfig.ScrapeConfig
	// RuleFiles is rule_files with globs expanded: absolute, sorted, unique.
	RuleFiles []string
	// Alertmanager is the alertmanager section, with absolute paths.
	Alertmanager *amconfig.Config
	// hideAlertmanager is a function, so that nothing that prints a Config prints the secrets.
	hideAlertmanager func(string) string
	// LogReceiver names the Alertmanager receiver whose notifications also go
	// to the log. Only the built-in section has one.
	LogReceiver string
	// Replica says which of the replicas this process is.
	Replica Replica
	// Cluster says how the replicas find each other; nil for a replica that
	// stands alone.
	Cluster *Cluster
	// ClusterKeys are the keys of cluster.key_file, each 32 bytes long: the first
	// to send with, all to accept. Empty without a key file.
	ClusterKeys Keys
	// Federation lists the upstream servers to pull from.
	Federation []*Upstream
	// Bucket is where blocks go; nil for nowhere.
	Bucket *Bucket
	// ConfigFrom says where the other sections come from; nil where they stand in the file.
	ConfigFrom *Source
}

// RedactAlertmanager hides the secrets that stand in the alertmanager section in a sentence, such as the error of a
// receiver, which may hold its address.
func (c *Config) RedactAlertmanager(text string) string {
	if c.hideAlertmanager == nil {
		return text
	}
	return c.hideAlertmanager(text)
}

// Replica is the identity of this process among its peers. It is read at start
// and cannot be reloaded.
type Replica struct {
	Name string `yaml:"name" default:"the host name" reload:"no" doc:"Name of this replica. Unique among the replicas of one cluster."`
	Zone string `yaml:"zone" default:"auto" reload:"no" doc:"Availability zone that this replica stands in. auto takes it from cloud-init's instance data; without any the zone is called default, and a warning says so."`
}

// Upstream is one Prometheus server to federate from. Nothing is stored that
// its Metrics do not list.
type Upstream struct {
	Name                  string                        `yaml:"name" reload:"yes" doc:"Name of the upstream. Required and unique. It is the value of the origin label."`
	URL                   *commonconfig.URL             `yaml:"url" reload:"yes" doc:"Address of the upstream, http or https, with the path prefix it is served under if there is one. Required."`
	Interval              model.Duration                `yaml:"interval,omitempty" default:"1m" reload:"yes" doc:"Time between two pulls."`
	Timeout               model.Duration                `yaml:"timeout,omitempty" default:"10s, or interval if that is shorter" reload:"yes" doc:"Longest time one pull may take. At most interval."`
	HTTPClientConfig      commonconfig.HTTPClientConfig `yaml:",inline" reload:"yes" doc:"basic_auth, authorization, oauth2, tls_config, proxy_url, http_headers and the other HTTP client options of a Prometheus scrape job, written directly in the list item."`
	OriginLabel           string                        `yaml:"origin_label,omitempty" default:"source" reload:"yes" doc:"Label that we set to name on every stored series. What the upstream sends in it is discarded."`
	Labels                map[string]string             `yaml:"labels,omitempty" reload:"yes" doc:"Further labels to set on every stored series. May not contain origin_label or __name__."`
	Metrics               []Metric                      `yaml:"metrics,omitempty" reload:"yes" doc:"What to pull. Default deny: a series that no item matches is not stored, an empty list stores nothing."`
	BodySizeLimit         units.Base2Bytes              `yaml:"body_size_limit,omitempty" default:"50MB" reload:"yes" doc:"Largest response after decompression; a larger one fails the pull."`
	SampleLimit           uint                          `yaml:"sample_limit,omitempty" default:"50000" reload:"yes" doc:"Most samples in one pull; more fail the pull."`
	LabelLimit            uint                          `yaml:"label_limit,omitempty" default:"64" reload:"yes" doc:"Most labels on one series; more fail the pull."`
	LabelNameLengthLimit  uint                          `yaml:"label_name_length_limit,omitempty" default:"512" reload:"yes" doc:"Longest label name in bytes; a longer one fails the pull."`
	LabelValueLengthLimit uint                          `yaml:"label_value_length_limit,omitempty" default:"4096" reload:"yes" doc:"Longest label value in bytes; a longer one fails the pull."`
}

// Metric is one item of an upstream's allow list.
type Metric struct {
	Match  string   `yaml:"match" reload:"yes" doc:"Series selector, for instance up or {job=\"node\", __name__=~\"node_cpu_.*\"}. Required; at least one matcher must exclude the empty string."`
	Labels []string `yaml:"labels,omitempty" reload:"yes" doc:"Labels to keep besides __name__. A label that is not listed is dropped; an empty list keeps none."`
	// Matchers is Match, parsed.
	Matchers []*labels.Matcher `yaml:"-"`
}

// Self is what the built-in sections need to know about this process.
type Self struct {
	Address     string // host:port to scrape ourselves at
	RoutePrefix string // path prefix of our own endpoints, "" or "/" for none
	Instance    string // value of the instance label for this machine
	StoragePath string // data directory, below which the built-in bucket is; "" for no built-in bucket
}

// Load reads and checks a tocsin.yml. Its error is [Findings]: everything that
// starting with this file would refuse. A nil logger discards.
func Load(path string, self Self, logger *slog.Logger) (*Config, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	l := &loader{self: self, logger: logger}
	return l.load(path)
}

// Builtin is the configuration that holds with no file at all.
func Builtin(self Self) (*Config, error) {
	l := &loader{self: self, logger: slog.New(slog.DiscardHandler)}
	return l.finish(&Config{}, nil)
}

// Immutable reports which fields differ between two configurations although
// they can only change with a restart; nil if none does. It prints no values.
func Immutable(old, next *Config) error {
	var fields []string
	if old.Replica.Name != next.Replica.Name {
		fields = append(fields, "replica.name")
	}
	if old.Replica.Zone != next.Replica.Zone {
		fields = append(fields, "replica.zone")
	}
	fields = append(fields, immutableCluster(old, next)...)
	fields = append(fields, immutableConfigFrom(old, next)...)
	fields = append(fields, immutableBucket(old, next)...)
	// Upstream's rule manager and notifier take it once, when they are made.
	if old.Prometheus.GlobalConfig.MetricNameValidationScheme != next.Prometheus.GlobalConfig.MetricNameValidationScheme {
		fields = append(fields, "prometheus.global.metric_name_validation_scheme")
	}
	if len(fields) == 0 {
		return nil
	}
	return fmt.Errorf("%s changed, which needs a restart", strings.Join(fields, " and "))
}
