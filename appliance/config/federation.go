package config

import (
	"errors"
	"fmt"
	"strings"
	"time"

	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	yaml2 "go.yaml.in/yaml/v2"
	"go.yaml.in/yaml/v3"
)

// Ceilings of an upstream's limits: they hold where the section says 0 or more.
// What is pulled is held in memory before any of it is stored.
const (
	CeilingBodyBytes  = 256 << 20
	CeilingSamples    = 1_000_000
	CeilingLabels     = 1_000
	CeilingLabelBytes = 64 << 10 // of a name, and of a value
)

const (
	defaultInterval    = model.Duration(time.Minute)
	defaultTimeout     = model.Duration(10 * time.Second)
	defaultOriginLabel = "source"
)

// defaultUpstream holds the defaults of one federation item.
func defaultUpstream() Upstream {
	return Upstream{
		Interval:         defaultInterval,
		HTTPClientConfig: commonconfig.DefaultHTTPClientConfig,
		OriginLabel:      defaultOriginLabel,
		// Half of what a whole Prometheus usually exposes; a pull that needs
		// more is better cut into several upstreams with narrower lists.
		BodySizeLimit: 50 << 20, // "50MB" in Prometheus's notation, whose units are powers of two.
		SampleLimit:   50_000,
		// As in the built-in scrape configuration, and for the same reasons.
		LabelLimit:            64,
		LabelNameLengthLimit:  512,
		LabelValueLengthLimit: 4096,
	}
}

// UnmarshalYAML sets the defaults and checks what the type cannot say.
func (u *Upstream) UnmarshalYAML(unmarshal func(any) error) error {
	*u = defaultUpstream()
	type plain Upstream
	if err := unmarshal((*plain)(u)); err != nil {
		return err
	}
	if u.Interval <= 0 {
		return errors.New("interval must be longer than 0")
	}
	if u.Timeout == 0 {
		u.Timeout = min(defaultTimeout, u.Interval)
	}
	if u.Timeout > u.Interval {
		return fmt.Errorf("timeout %s is longer than the interval %s", u.Timeout, u.Interval)
	}
	if u.BodySizeLimit < 0 {
		return errors.New("body_size_limit may not be negative")
	}
	// An inlined structure's own check is not called by the decoder.
	return u.HTTPClientConfig.Validate()
}

// String prints the upstream as YAML with its secrets hidden.
func (u *Upstream) String() string {
	b, err := yaml2.Marshal(u)
	if err != nil {
		return fmt.Sprintf("<upstream %q cannot be printed: %s>", u.Name, err)
	}
	return string(b)
}

func (l *loader) federation(cfg *Config, doc *section, v *yaml.Node) {
	if isNull(v) {
		return
	}
	if v.Kind != yaml.SequenceNode {
		doc.add(v, "wrong type: want a list")
		return
	}
	unique(doc, v, "name")
	for _, item := range v.Content {
		var list []*Upstream
		d := l.newDiagnosis(doc, func(text string) error {
			list = nil
			return yaml2.UnmarshalStrict([]byte(text), &list)
		})
		d.piece(sequence(item))
		if d.partial {
			doc.add(item, "there may be more: the search for problems was ended at its limit")
		}
		if len(list) != 1 || list[0] == nil || d.skip[item] {
			if isNull(item) {
				doc.add(item, "an upstream may not be empty")
			}
			continue
		}
		u := list[0]
		checkUpstream(doc, d, item, u)
		u.HTTPClientConfig.SetDirectory(doc.dir)
		doc.checkFilesBelow(item)
		doc.tryClients(item, u)
		cfg.Federation = append(cfg.Federation, u)
	}
}

// checkUpstream checks one upstream that has been decoded.
func checkUpstream(s *section, d *diagnosis, item *yaml.Node, u *Upstream) {
	at := func(path ...any) *yaml.Node {
		if n := child(item, path...); n != nil {
			return n
		}
		return item
	}
	switch n := child(item, "name"); {
	case n == nil:
		s.add(item, "name is missing")
	case d.skip[n]:
	default:
		if problem := nameProblem(u.Name); problem != "" {
			s.add(n, "%s (given %s)", problem, clip(u.Name))
		}
	}
	switch n := child(item, "url"); {
	case n == nil:
		s.add(item, "url is missing")
	case d.skip[n]:
	default:
		if problem := urlProblem(u.URL); problem != "" {
			s.add(n, "%s", problem)
		}
	}
	if problem := labelNameProblem(u.OriginLabel); problem != "" {
		s.add(at("origin_label"), "%s (given %s)", problem, clip(u.OriginLabel))
	}
	if n := child(item, "labels"); n != nil && n.Kind == yaml.MappingNode {
		checkExtraLabels(s, n, u)
	}
	// Values that were left out are gone from u: count only what is left.
	kept := 0
	for _, mn := range items(child(item, "metrics")) {
		if d.skip[mn] || kept >= len(u.Metrics) {
			continue
		}
		m := &u.Metrics[kept]
		kept++
		checkMetric(s, d, mn, u, m)
	}
}

// checkExtraLabels goes through the file's order, so that findings have one.
func checkExtraLabels(s *section, labels *yaml.Node, u *Upstream) {
	for _, kv := range pairs(labels) {
		name, n := kv[0].Value, kv[1]
		value, ok := u.Labels[name]
		if !ok {
			continue
		}
		switch problem := labelNameProblem(name); {
		case problem != "":
			s.add(n, "%s (given %s)", problem, clip(name))
		case name == u.OriginLabel:
			s.add(n, "%s is the origin label, which is always the upstream's name", clip(name))
		case !model.LabelValue(value).IsValid():
			s.add(n, "not valid UTF-8 text")
		}
	}
}

func checkMetric(s *section, d *diagnosis, n *yaml.Node, u *Upstream, m *Metric) {
	switch match := child(n, "match"); {
	case match == nil:
		s.add(n, "match is missing")
	case d.skip[match]:
	default:
		matchers, problem := parseMatch(m.Match)
		if problem != "" {
			s.add(match, "%s (given %s)", problem, clip(m.Match))
		}
		m.Matchers = matchers
	}
	i := 0
	seen := map[string]bool{}
	for _, ln := range items(child(n, "labels")) {
		if d.skip[ln] || i >= len(m.Labels) {
			continue
		}
		name := m.Labels[i]
		i++
		switch problem := labelNameProblem(name); {
		case name == model.MetricNameLabel:
			s.add(ln, "__name__ is always kept; leave it out")
		case problem != "":
			s.add(ln, "%s (given %s)", problem, clip(name))
		case name == u.OriginLabel:
			s.add(ln, "%s is the origin label, which the upstream may not set", clip(name))
		case seen[name]:
			s.add(ln, "%s is listed twice", clip(name))
		}
		seen[name] = true
	}
}

func parseMatch(selector string) (matchers []*labels.Matcher, problem string) {
	err := guard(func(s string) (err error) {
		matchers, err = parser.ParseMetricSelector(s)
		return err
	}, selector)
	if err != nil {
		return nil, "not a series selector: " + err.Error()
	}
	for _, m := range matchers {
		if !m.Matches("") {
			return matchers, ""
		}
	}
	return nil, "at least one matcher must exclude the empty string"
}

func urlProblem(u *commonconfig.URL) string {
	switch {
	case u == nil || u.URL == nil || u.String() == "":
		return "may not be empty"
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Sprintf("want an address that begins with http:// or https:// (given %s)", clip(u.Redacted()))
	case u.Host == "":
		return fmt.Sprintf("has no host (given %s)", clip(u.Redacted()))
	case u.User != nil:
		// An address is printed in logs, metrics and target lists.
		return "may not carry credentials; give them as basic_auth"
	case u.RawQuery != "" || u.Fragment != "":
		return "may not have a query or a fragment: they are set for each pull"
	}
	return ""
}

func labelNameProblem(name string) string {
	switch {
	case name == "":
		return "a label name may not be empty"
	case name == model.MetricNameLabel:
		return "__name__ cannot be set"
	case !model.UTF8Validation.IsValidLabelName(name):
		return "not a valid label name"
	case strings.HasPrefix(name, model.ReservedLabelPrefix):
		return "label names that begin with __ are reserved"
	}
	return ""
}
