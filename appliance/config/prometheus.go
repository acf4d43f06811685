package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	yaml2 "go.yaml.in/yaml/v2"
	"go.yaml.in/yaml/v3"
)

// defaultOutOfOrder is how late a sample may be when the file does not say.
// Healing needs it: what a replica missed arrives late.
const defaultOutOfOrder = 2 * time.Hour

func (l *loader) prometheus(cfg *Config, doc *section, v *yaml.Node) {
	s := builtinSection("built-in prometheus", builtinPrometheusFor(l.self), doc.dir)
	if cfg.ConfigFrom != nil && l.own == nil {
		// What is to be scraped is in the bucket, and until it comes from there that is nothing.
		s = builtinSection("built-in prometheus", "", doc.dir)
	}
	if v != nil {
		if s = l.outside(doc, sectionPrometheus, v); s == nil {
			return
		}
	}
	l.prom = s
	p := &promReader{loader: l, section: s}
	cfg.Prometheus = p.read()
	l.take(s)
	if cfg.Prometheus != nil {
		cfg.ScrapeConfigs = p.jobs
	}
	cfg.RuleFiles = p.rules
}

// builtinSection makes a section of an embedded text. It is read like any
// other; should it ever be refused, a test says so first.
func builtinSection(name, text, dir string) *section {
	root, err := parse([]byte(text))
	s := newSection(name, "", dir, text, root)
	if err != nil {
		s.add(nil, "%s", err.Error())
	}
	return s
}

type promReader struct {
	*loader
	section *section
	jobs    []*promconfig.ScrapeConfig
	rules   []string
}

// read loads and checks the section; nil if Prometheus's own loader refuses it.
func (p *promReader) read() *promconfig.Config {
	s := p.section
	var cfg *promconfig.Config
	load := func(text string) (err error) {
		cfg, err = promconfig.Load(text, p.logger)
		return err
	}
	refused := guard(load, s.text)
	var d *diagnosis
	if refused != nil {
		if d = p.diagnose(refused); !d.rest(s.root, load) {
			cfg = nil
		}
	}
	missing := checkFiles(s)
	scheme := model.UTF8Validation
	global := promconfig.DefaultGlobalConfig
	if cfg != nil {
		cfg.SetDirectory(s.dir)
		guardStorage(cfg, s)
		guardRuntime(cfg, s)
		scheme = cfg.GlobalConfig.MetricNameValidationScheme
		global = cfg.GlobalConfig
	}
	p.rules = p.ruleFiles(scheme)
	ok := p.scrapeConfigFiles(global, cfg != nil)
	if cfg == nil {
		return nil
	}
	if ok && !missing {
		jobs, err := cfg.GetScrapeConfigs()
		if err != nil {
			s.add(s.get("scrape_config_files"), "%s", err.Error())
		}
		p.jobs = jobs
	}
	p.clients(cfg, d)
	if refused != nil {
		return nil
	}
	return cfg
}

// defaultGoGC is the percentage by which the heap may grow between two
// collections when neither the file nor the environment says. Upstream's is 75.
// The labels' representation costs memory (ADR 2), and collecting more often
// trades it for CPU, which replicas have more of; docs/performance.md has both.
const defaultGoGC = 50

func guardRuntime(cfg *promconfig.Config, s *section) {
	if isNull(s.get("runtime", "gogc")) && os.Getenv("GOGC") == "" {
		cfg.Runtime.GoGC = defaultGoGC
	}
}

// guardStorage fills in what upstream's storage would otherwise take as
// "switched off".
func guardStorage(cfg *promconfig.Config, s *section) {
	if cfg.StorageConfig.ExemplarsConfig == nil {
		exemplars := promconfig.DefaultExemplarsConfig
		cfg.StorageConfig.ExemplarsConfig = &exemplars
	}
	if cfg.StorageConfig.TSDBConfig == nil {
		cfg.StorageConfig.TSDBConfig = &promconfig.TSDBConfig{}
	}
	if isNull(s.get("storage", "tsdb", "out_of_order_time_window")) {
		cfg.StorageConfig.TSDBConfig.OutOfOrderTimeWindow = defaultOutOfOrder.Milliseconds()
		cfg.StorageConfig.TSDBConfig.OutOfOrderTimeWindowFlag = model.Duration(defaultOutOfOrder)
	}
}

// diagnose finds out why upstream's loader refused the section.
func (p *promReader) diagnose(err error) *diagnosis {
	s := p.section
	before := len(s.found)
	d := p.newDiagnosis(s, func(text string) error {
		_, err := promconfig.Load(text, p.quiet())
		return err
	})
	if s.root != nil && s.root.Kind == yaml.MappingNode {
		global := pair(s.root, "global")
		if global != nil {
			d.piece(mapping(global))
		}
		for i := 0; i+1 < len(s.root.Content); i += 2 {
			k, v := s.root.Content[i], s.root.Content[i+1]
			switch {
			case k.Value == "global":
			case slices.Contains([]string{"scrape_configs", "remote_write", "remote_read"}, k.Value) && v.Kind == yaml.SequenceNode:
				for _, item := range v.Content {
					d.piece(mapping(global, []*yaml.Node{k, sequence(item)}))
				}
			case k.Value == "alerting" && v.Kind == yaml.MappingNode:
				for _, sub := range pairs(v) {
					if sub[0].Value != "alertmanagers" || sub[1].Kind != yaml.SequenceNode {
						d.piece(mapping(global, []*yaml.Node{k, mapping(sub)}))
						continue
					}
					for _, item := range sub[1].Content {
						d.piece(mapping(global, []*yaml.Node{k, mapping([]*yaml.Node{sub[0], sequence(item)})}))
					}
				}
			default:
				d.piece(mapping(global, []*yaml.Node{k, v}))
			}
		}
		d.unique(s.get("scrape_configs"), "job_name")
		d.unique(s.get("remote_write"), "name")
		d.unique(s.get("remote_read"), "name")
	}
	if len(s.found) == before || d.partial {
		d.whole(err)
	}
	return d
}

// whole records what the loader said of the section as a whole, as far as that
// has not been located.
func (d *diagnosis) whole(err error) {
	msgs := typeErrors(err)
	if len(msgs) == 0 {
		msgs = []string{d.describe(nil, err)}
	}
	for _, msg := range msgs {
		line, problem := splitSyntaxError(errors.New(msg))
		if line == 0 {
			line = d.section.line
		}
		d.section.addAt(line, d.section.prefix, problem)
	}
	if d.partial {
		d.section.add(nil, "there may be more: the search for problems was ended at its limit")
	}
}

// unique does the same and leaves those items out.
func (d *diagnosis) unique(list *yaml.Node, key string) {
	for _, item := range unique(d.section, list, key) {
		d.leaveOut(item, true)
	}
}

// rest loads what is left of a tree, so that later checks still see it.
func (d *diagnosis) rest(root *yaml.Node, load func(string) error) bool {
	if root == nil || d.exhausted() {
		return false
	}
	text, _, err := render(root, func(n *yaml.Node) bool { return d.skip[n] })
	return err == nil && guard(load, text) == nil
}

// kept lists the items of a list that have not been left out; a nil diagnosis
// has left out none.
func (d *diagnosis) kept(list *yaml.Node) []*yaml.Node {
	out := slices.Clone(items(list))
	if d == nil {
		return out
	}
	return slices.DeleteFunc(out, func(n *yaml.Node) bool { return d.skip[n] })
}

// unique records and gives every list item whose name an earlier one has.
func unique(s *section, list *yaml.Node, key string) (again []*yaml.Node) {
	seen := map[string]int{}
	for _, item := range items(list) {
		n := child(item, key)
		if n == nil || n.Kind != yaml.ScalarNode || n.Value == "" {
			continue
		}
		if line, ok := seen[n.Value]; ok {
			s.add(n, "%s is already used in line %d", clip(n.Value), line)
			again = append(again, item)
			continue
		}
		seen[n.Value] = n.Line
	}
	return again
}

func pair(m *yaml.Node, key string) []*yaml.Node {
	if m == nil {
		return nil
	}
	for _, p := range pairs(m) {
		if p[0].Value == key {
			return p
		}
	}
	return nil
}

func pairs(m *yaml.Node) [][]*yaml.Node {
	var out [][]*yaml.Node
	for i := 0; i+1 < len(m.Content); i += 2 {
		out = append(out, m.Content[i:i+2:i+2])
	}
	return out
}

// mapping and sequence build the frame of a piece around existing values.
func mapping(pairs ...[]*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: slices.Concat(pairs...)}
}

func sequence(items ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: items}
}

func scalar(value string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value, Style: yaml.DoubleQuotedStyle}
}

// scrapeConfigFiles checks every file of scrape_config_files on its own and
// reports whether all of them can be used.
func (p *promReader) scrapeConfigFiles(global promconfig.GlobalConfig, globalValid bool) bool {
	s := p.section
	before := len(s.found) + len(p.found)
	jobs := map[string]string{} // job name to file
	for _, item := range items(s.get("scrape_configs")) {
		if n := child(item, "job_name"); n != nil {
			jobs[n.Value] = s.file
		}
	}
	for _, file := range p.expand(s.get("scrape_config_files")) {
		fileSection := p.fileSection(file)
		if fileSection == nil {
			continue
		}
		load := func(text string) error {
			var cfg promconfig.ScrapeConfigs
			if err := yaml2.UnmarshalStrict([]byte(text), &cfg); err != nil {
				return err
			}
			for _, c := range cfg.ScrapeConfigs {
				if err := c.Validate(global); err != nil && globalValid {
					return err
				}
			}
			return nil
		}
		if err := guard(load, fileSection.text); err != nil {
			d := p.newDiagnosis(fileSection, load)
			for _, kv := range pairs(fileSection.root) {
				if kv[0].Value != "scrape_configs" || kv[1].Kind != yaml.SequenceNode {
					d.piece(mapping(kv))
					continue
				}
				for _, item := range kv[1].Content {
					d.piece(mapping([]*yaml.Node{kv[0], sequence(item)}))
				}
			}
			if len(fileSection.found) == 0 || d.partial {
				d.whole(err)
			}
		}
		checkFiles(fileSection)
		for _, item := range items(fileSection.get("scrape_configs")) {
			n := child(item, "job_name")
			if n == nil {
				continue
			}
			if other, ok := jobs[n.Value]; ok {
				fileSection.add(n, "job name %s is already used in %s", clip(n.Value), other)
				continue
			}
			jobs[n.Value] = fileSection.file
		}
		p.take(fileSection)
	}
	return before == len(s.found)+len(p.found)
}

func items(n *yaml.Node) []*yaml.Node {
	if n == nil || n.Kind != yaml.SequenceNode {
		return nil
	}
	return n.Content
}

// fileSection reads a file that the section names; nil after a finding or if
// the file is empty.
func (p *promReader) fileSection(file string) *section {
	b, err := readFile(file)
	if err != nil {
		p.found = append(p.found, Finding{File: file, Problem: err.Error()})
		return nil
	}
	root, err := parse(b)
	if err != nil {
		line, problem := splitSyntaxError(err)
		p.found = append(p.found, Finding{File: file, Line: line, Problem: problem})
		return nil
	}
	if root == nil {
		return nil
	}
	return newSection(file, "", filepath.Dir(file), string(b), root)
}

// clients builds every HTTP client and throws it away: that is how certificates
// and keys are found unusable before anything needs them.
func (p *promReader) clients(cfg *promconfig.Config, d *diagnosis) {
	s := p.section
	try(s, d.kept(s.get("scrape_configs")), cfg.ScrapeConfigs)
	try(s, d.kept(s.get("remote_write")), cfg.RemoteWriteConfigs)
	try(s, d.kept(s.get("remote_read")), cfg.RemoteReadConfigs)
	try(s, d.kept(s.get("alerting", "alertmanagers")), cfg.AlertingConfig.AlertmanagerConfigs)
	s.tryClients(s.get("tracing"), &cfg.TracingConfig)
	duplicates(s, d.kept(s.get("remote_write")), cfg.RemoteWriteConfigs)
	duplicates(s, d.kept(s.get("remote_read")), cfg.RemoteReadConfigs)
	s.logDir(s.get("global", "query_log_file"), cfg.GlobalConfig.QueryLogFile)
	for i, n := range d.kept(s.get("scrape_configs")) {
		if i < len(cfg.ScrapeConfigs) {
			s.logDir(child(n, "scrape_failure_log_file"), cfg.ScrapeConfigs[i].ScrapeFailureLogFile)
		}
	}
	for _, c := range p.jobs[min(len(cfg.ScrapeConfigs), len(p.jobs)):] {
		other := newSection("scrape_config_files", "", "", "", nil)
		other.tryClients(nil, c)
		for _, f := range other.found {
			s.add(s.get("scrape_config_files"), "job %s: %s", clip(c.JobName), f.Problem)
		}
	}
}

// duplicates refuses what upstream refuses only when it is applied.
func duplicates[T any](s *section, nodes []*yaml.Node, configs []T) {
	for i := range min(len(nodes), len(configs)) {
		for j := range i {
			if reflect.DeepEqual(configs[i], configs[j]) {
				s.add(nodes[i], "it is the same as item %d of the list: remove one, or give each a name", j)
			}
		}
	}
}

// logDir refuses a log file for which there is no folder: the file itself is made when it is opened.
func (s *section) logDir(n *yaml.Node, file string) {
	if file == "" || n == nil {
		return
	}
	if info, err := os.Stat(filepath.Dir(file)); err != nil || !info.IsDir() {
		s.add(n, "there is no folder %s", filepath.Dir(file))
	}
}

func try[T any](s *section, nodes []*yaml.Node, configs []T) {
	for i := range min(len(nodes), len(configs)) {
		s.tryClients(nodes[i], configs[i])
	}
}

// tryClients builds the client of every HTTP and TLS option block in v.
func (s *section) tryClients(n *yaml.Node, v any) {
	tried := map[string]bool{}
	record := func(err error) {
		// A missing file has been reported where it is named.
		if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || tried[err.Error()] {
			return
		}
		tried[err.Error()] = true
		s.add(n, "%s", err.Error())
	}
	walkStructs(reflect.ValueOf(v), 0, func(v reflect.Value) bool {
		switch c := v.Interface().(type) {
		case commonconfig.HTTPClientConfig:
			if hasIrregularFile(v) {
				return false
			}
			client, err := commonconfig.NewClientFromConfig(c, "check")
			if err == nil {
				client.CloseIdleConnections()
			}
			record(err)
			return false
		case commonconfig.TLSConfig:
			if hasIrregularFile(v) {
				return false
			}
			_, err := commonconfig.NewTLSConfig(&c)
			record(err)
			return false
		}
		return true
	})
}
