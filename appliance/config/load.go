package config

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// The sections of tocsin.yml.
const (
	sectionPrometheus   = "prometheus"
	sectionAlertmanager = "alertmanager"
	sectionReplica      = "replica"
	sectionCluster      = "cluster"
	sectionFederation   = "federation"
	sectionBucket       = "bucket"
	sectionConfigFrom   = "config_from"
)

// loader reads one configuration and collects what is wrong with it.
type loader struct {
	self   Self
	logger *slog.Logger
	path   string // of tocsin.yml, as given
	found  Findings
	until  time.Time // end of the search for causes
	own    *Config   // what the replica's own file says, while one from the bucket is read
	prom   *section  // the prometheus section
}

func (l *loader) load(path string) (*Config, error) {
	l.path = path
	fail := func(line int, problem string) (*Config, error) {
		return nil, Findings{{File: path, Line: line, Problem: problem}}
	}
	b, err := readFile(path)
	if err != nil {
		return fail(0, err.Error())
	}
	root, err := parse(b)
	if err != nil {
		line, problem := splitSyntaxError(err)
		return fail(line, problem)
	}
	if root != nil && root.Kind != yaml.MappingNode {
		return fail(root.Line, "want a mapping of sections, given a plain value or a list")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return fail(0, err.Error())
	}
	return l.finish(&Config{Path: abs}, newSection(path, "", filepath.Dir(abs), string(b), root))
}

// finish reads all sections of a document; nil is the built-in configuration.
func (l *loader) finish(cfg *Config, doc *section) (*Config, error) {
	if doc == nil {
		doc = newSection("", "", "", "", nil)
		var err error
		if cfg.Bucket, err = builtinBucket(l.self); err != nil {
			return nil, err
		}
	}
	at := l.topLevel(doc)
	if l.own == nil {
		l.configFrom(cfg, doc, at)
		l.replica(cfg, doc, at[sectionReplica])
		l.cluster(cfg, doc, at[sectionCluster])
		l.bucket(cfg, doc, at[sectionBucket])
		l.rendezvous(doc, at)
	} else {
		l.notFromBucket(doc, at)
		cfg.inherit(l.own)
	}
	l.prometheus(cfg, doc, at[sectionPrometheus])
	l.alertmanager(cfg, doc, at[sectionAlertmanager])
	l.federation(cfg, doc, at[sectionFederation])
	if cfg.Bucket == nil && at[sectionBucket] == nil {
		l.needBucket(cfg, l.prom)
	}
	l.take(doc)
	if len(l.found) > 0 {
		return nil, l.found.tidy(l.path)
	}
	return cfg, nil
}

func (l *loader) take(s *section) {
	l.found = append(l.found, s.found...)
	s.found = nil
}

// topLevel checks the names of the sections and gives their values.
func (l *loader) topLevel(doc *section) map[string]*yaml.Node {
	known := []string{sectionPrometheus, sectionAlertmanager, sectionReplica, sectionCluster, sectionFederation, sectionBucket, sectionConfigFrom}
	at := map[string]*yaml.Node{}
	if doc.root == nil {
		return at
	}
	l.strictMapping(doc, doc.root, known, func(key string, v *yaml.Node) { at[key] = v })
	return at
}

// strictMapping gives each known key once and reports all others.
func (l *loader) strictMapping(s *section, m *yaml.Node, known []string, each func(key string, v *yaml.Node)) {
	given := map[string]bool{}
next:
	for i := 0; i+1 < len(m.Content); i += 2 {
		k, v := m.Content[i], m.Content[i+1]
		if given[k.Value] {
			s.addAt(k.Line, s.fields[v], "given twice")
			continue
		}
		for _, name := range known {
			if k.Value == name {
				given[name] = true
				each(name, v)
				continue next
			}
		}
		s.addAt(k.Line, s.fields[v], fmt.Sprintf("unknown field %s; known here are %s", clip(k.Value), strings.Join(known, ", ")))
	}
}

// outside gives the section that a path or inline content stands for. It
// returns nil after it has recorded why there is none.
func (l *loader) outside(doc *section, name string, v *yaml.Node) *section {
	switch {
	case isNull(v):
		doc.add(v, "empty; give a path or the content, or leave the field out for the built-in %s configuration", name)
		return nil
	case v.Kind == yaml.MappingNode:
		text, err := inlineText(doc.text, v, lineAfter(doc.root, v))
		if err != nil {
			doc.add(v, "%s", err.Error())
			return nil
		}
		s := newSection(doc.file, name, doc.dir, text, v)
		s.line = doc.keys[v].Line
		return s
	case v.Kind == yaml.ScalarNode && v.ShortTag() == "!!str":
		path := resolve(doc.dir, v.Value)
		shown := v.Value
		if !filepath.IsAbs(shown) {
			shown = filepath.Join(filepath.Dir(l.path), shown)
		}
		b, err := readFile(path)
		if err != nil {
			doc.add(v, "read %s: %s", clip(v.Value), err.Error())
			return nil
		}
		root, err := parse(b)
		if err != nil {
			line, problem := splitSyntaxError(err)
			l.found = append(l.found, Finding{File: shown, Line: line, Problem: problem})
			return nil
		}
		return newSection(shown, "", filepath.Dir(path), string(b), root)
	default:
		doc.add(v, "want a path or a mapping, given something else")
		return nil
	}
}

// lineAfter is the line of the section that follows a value, 0 if it is last.
func lineAfter(root, v *yaml.Node) int {
	next := 0
	for i := 0; i+1 < len(root.Content); i += 2 {
		if k := root.Content[i]; k.Line > v.Line && (next == 0 || k.Line < next) {
			next = k.Line
		}
	}
	return next
}

func (l *loader) replica(cfg *Config, doc *section, v *yaml.Node) {
	cfg.Replica.Zone = "auto"
	set := func(key string, v *yaml.Node) {
		if v.Kind != yaml.ScalarNode || isNull(v) {
			doc.add(v, "wrong type: want a string")
			return
		}
		if problem := nameProblem(v.Value); problem != "" {
			doc.add(v, "%s (given %s)", problem, clip(v.Value))
			return
		}
		if key == "name" {
			cfg.Replica.Name = v.Value
		} else {
			cfg.Replica.Zone = v.Value
		}
	}
	switch {
	case isNull(v):
	case v.Kind != yaml.MappingNode:
		doc.add(v, "wrong type: want a mapping")
	default:
		l.strictMapping(doc, v, []string{"name", "zone"}, set)
	}
	if cfg.Replica.Name != "" {
		return
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		doc.add(v, "this machine has no host name; give replica.name")
		return
	}
	cfg.Replica.Name = host
}

// nameProblem holds names to what fits into a label value, a log line and a
// file name alike.
func nameProblem(s string) string {
	switch {
	case s == "":
		return "may not be empty"
	case len(s) > 253:
		return "longer than 253 bytes"
	case strings.TrimSpace(s) != s:
		return "begins or ends with a space"
	case strings.ContainsFunc(s, unicode.IsControl):
		return "contains a control character"
	case strings.ContainsAny(s, `/\`):
		return "contains a slash"
	case s == ".", s == "..":
		return "names a folder"
	}
	return ""
}
