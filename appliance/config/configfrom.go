package config

import (
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"
)

const (
	// defaultPoll is how often the bucket is asked for configuration and targets.
	defaultPoll = 15 * time.Second
	// longestPoll bounds how far replicas may be apart.
	longestPoll = 10 * time.Minute
	// ConfigFromFile is the file below the prefix that the configuration begins with.
	ConfigFromFile = "tocsin.yml"
)

// ownSections stand in the file of each replica and never in the bucket: they say how to get there, and which replica it is.
var ownSections = []string{sectionBucket, sectionCluster, sectionReplica, sectionConfigFrom}

// Source says where the rest of the configuration comes from.
type Source struct {
	Bucket bool           `yaml:"bucket" reload:"no" doc:"true: from the bucket of the bucket section. Required."`
	Prefix string         `yaml:"prefix" default:"config/" reload:"no" doc:"Where the configuration is in the bucket: tocsin.yml, and what it names."`
	Poll   model.Duration `yaml:"poll,omitempty" default:"15s" reload:"no" doc:"Time between two looks into the bucket, 1s to 10m."`
}

// configFrom reads the section. A file that has it has no sections that the bucket brings.
func (l *loader) configFrom(cfg *Config, doc *section, at map[string]*yaml.Node) {
	v := at[sectionConfigFrom]
	if v == nil {
		return
	}
	from := &Source{Prefix: "config/", Poll: model.Duration(defaultPoll)}
	cfg.ConfigFrom = from
	if v.Kind != yaml.MappingNode {
		doc.add(v, "wrong type: want a mapping, as {bucket: true, prefix: config/}")
		return
	}
	l.strictMapping(doc, v, []string{"bucket", "prefix", "poll"}, func(key string, v *yaml.Node) {
		if v.Kind != yaml.ScalarNode || isNull(v) {
			doc.add(v, "wrong type: want a plain value")
			return
		}
		switch key {
		case "bucket":
			b, err := strconv.ParseBool(v.Value)
			if err != nil {
				doc.add(v, "want true, given %s", clip(v.Value))
			}
			from.Bucket = b
		case "prefix":
			prefix, problem := objectPrefix(v.Value)
			if problem != "" {
				doc.add(v, "%s %s", clip(v.Value), problem)
			}
			from.Prefix = prefix
		case "poll":
			d, err := model.ParseDuration(v.Value)
			if err != nil || time.Duration(d) < shortestPoll || time.Duration(d) > longestPoll {
				doc.add(v, "want a duration from %s to %s, given %s", model.Duration(shortestPoll), model.Duration(longestPoll), clip(v.Value))
			}
			from.Poll = d
		}
	})
	if b := child(v, "bucket"); b == nil || !from.Bucket {
		doc.add(v, "bucket: true is missing; nothing else can bring the configuration")
	}
	if at[sectionBucket] == nil {
		doc.add(v, "there is no bucket section that the configuration could come from")
	}
	for name, v := range at {
		if !slices.Contains(ownSections, name) {
			doc.add(v, "it comes from the bucket, where config_from says: move it to %s there, or take config_from out", ConfigFromFile)
		}
	}
}

// notFromBucket refuses the sections that only the file of the replica may have.
func (l *loader) notFromBucket(doc *section, at map[string]*yaml.Node) {
	for _, name := range ownSections {
		if v, ok := at[name]; ok {
			doc.add(v, "it stands in the --config.file of each replica, not in the configuration that all have from the bucket: take it out here")
		}
	}
}

// inherit takes over what the replica's own file says.
func (c *Config) inherit(boot *Config) {
	c.Path = boot.Path
	c.Replica, c.Cluster, c.ClusterKeys, c.Bucket, c.ConfigFrom = boot.Replica, boot.Cluster, boot.ClusterKeys, boot.Bucket, boot.ConfigFrom
}

// LoadBelow reads the configuration that came from where the section config_from of own says, and that is now in dir. The
// sections that say which replica this is are those of own. Its error is as that of [Load], with files named as in dir.
func LoadBelow(own *Config, dir string, self Self, logger *slog.Logger) (*Config, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	l := &loader{self: self, logger: logger, own: own}
	cfg, err := l.load(filepath.Join(dir, ConfigFromFile))
	if fs, ok := err.(Findings); ok { //nolint:errorlint // It is what load returns.
		for i := range fs {
			fs[i].File = strings.TrimPrefix(fs[i].File, filepath.Clean(dir)+string(filepath.Separator))
		}
		return nil, fs
	}
	return cfg, err
}

// immutableConfigFrom names what can only change with a restart.
func immutableConfigFrom(old, next *Config) []string {
	switch {
	case (old.ConfigFrom == nil) != (next.ConfigFrom == nil), old.ConfigFrom != nil && *old.ConfigFrom != *next.ConfigFrom:
		return []string{sectionConfigFrom}
	}
	return nil
}
