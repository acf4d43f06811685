package config

import (
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	texttemplate "text/template"

	amconfig "github.com/prometheus/alertmanager/config"
	"github.com/prometheus/alertmanager/config/receiver"
	amtemplate "github.com/prometheus/alertmanager/template"
	commonconfig "github.com/prometheus/common/config"
	"go.yaml.in/yaml/v3"
)

func (l *loader) quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (l *loader) alertmanager(cfg *Config, doc *section, v *yaml.Node) {
	s := builtinSection("built-in alertmanager", builtinAlertmanager, doc.dir)
	if v == nil {
		cfg.LogReceiver = builtinLogReceiver
	} else if s = l.outside(doc, sectionAlertmanager, v); s == nil {
		return
	}
	a := &amReader{loader: l, section: s}
	cfg.Alertmanager = a.read()
	cfg.hideAlertmanager = s.secrets.redact
	l.take(s)
}

type amReader struct {
	*loader
	section *section
}

// read loads and checks the section; nil if Alertmanager's own loader refuses it.
func (a *amReader) read() *amconfig.Config {
	s := a.section
	var cfg *amconfig.Config
	load := func(text string) (err error) {
		cfg, err = amconfig.Load(text)
		return err
	}
	err := guard(load, s.text)
	var d *diagnosis
	if err != nil {
		if d = a.diagnose(err); !d.rest(a.sample(d), load) {
			cfg = nil
		}
	}
	checkFiles(s)
	files := a.templateFiles()
	a.fieldTemplates()
	if cfg == nil {
		return nil
	}
	setDirectory(cfg, s.dir)
	a.receivers(cfg, d, files)
	if err != nil {
		return nil
	}
	return cfg
}

// diagnose finds out why upstream's loader refused the section.
func (a *amReader) diagnose(err error) *diagnosis {
	s := a.section
	before := len(s.found)
	d := a.newDiagnosis(s, func(text string) error {
		_, err := amconfig.Load(text)
		return err
	})
	if s.root != nil && s.root.Kind == yaml.MappingNode {
		a.references(d)
		route, receivers := a.frame()
		global := pair(s.root, "global")
		if global != nil {
			d.piece(mapping(route, receivers, global))
		}
		for _, kv := range pairs(s.root) {
			key, v := kv[0], kv[1]
			list := v.Kind == yaml.SequenceNode
			switch {
			case key.Value == "global":
			case key.Value == "route":
				d.piece(mapping(a.names("receivers", frameReceiver), a.names("time_intervals", ""), kv))
			case key.Value == "receivers" && list:
				for _, item := range v.Content {
					to := frameReceiver
					if n := child(item, "name"); n != nil && !d.skip[n] {
						to = n.Value
					}
					route := []*yaml.Node{scalar("route"), mapping([]*yaml.Node{scalar("receiver"), scalar(to)})}
					d.piece(mapping(global, route, []*yaml.Node{key, sequence(item)}))
				}
			case slices.Contains([]string{"inhibit_rules", "time_intervals", "mute_time_intervals"}, key.Value) && list:
				for _, item := range v.Content {
					d.piece(mapping(route, receivers, []*yaml.Node{key, sequence(item)}))
				}
			case key.Value == "receivers":
				d.piece(mapping(route, kv))
			default:
				d.piece(mapping(route, receivers, kv))
			}
		}
	}
	if len(s.found) == before || d.partial {
		d.whole(err)
	}
	for _, item := range unique(&section{}, s.get("receivers"), "name") {
		d.leaveOut(item, true) // Recorded above; its other problems are by now as well.
	}
	return d
}

const frameReceiver = "receiver"

// frame is a least configuration for pieces to stand in.
func (a *amReader) frame() (route, receivers []*yaml.Node) {
	return []*yaml.Node{scalar("route"), mapping([]*yaml.Node{scalar("receiver"), scalar(frameReceiver)})},
		[]*yaml.Node{scalar("receivers"), sequence(mapping([]*yaml.Node{scalar("name"), scalar(frameReceiver)}))}
}

// sample is what later checks need of a refused section: its receivers, and a
// route to one of them.
func (a *amReader) sample(d *diagnosis) *yaml.Node {
	receivers := pair(a.section.root, "receivers")
	for _, item := range d.kept(a.section.get("receivers")) {
		if n := child(item, "name"); n != nil && !d.skip[n] {
			route := []*yaml.Node{scalar("route"), mapping([]*yaml.Node{scalar("receiver"), scalar(n.Value)})}
			return mapping(route, receivers, pair(a.section.root, "global"), pair(a.section.root, "tracing"))
		}
	}
	return nil
}

// names lists the names of a section's items as items of their own, so that
// references to them hold whatever is wrong with the items.
func (a *amReader) names(key, extra string) []*yaml.Node {
	names := []string{}
	if extra != "" {
		names = append(names, extra)
	}
	keys := []string{key}
	if key == "time_intervals" {
		keys = append(keys, "mute_time_intervals")
	}
	for _, k := range keys {
		for _, item := range items(a.section.get(k)) {
			if n := child(item, "name"); n != nil && n.Value != "" && !slices.Contains(names, n.Value) {
				names = append(names, n.Value)
			}
		}
	}
	list := sequence()
	for _, n := range names {
		list.Content = append(list.Content, mapping([]*yaml.Node{scalar("name"), scalar(n)}))
	}
	return []*yaml.Node{scalar(key), list}
}

// references reports names that are used but not defined, or defined twice:
// upstream stops at the first.
func (a *amReader) references(d *diagnosis) {
	s := a.section
	unique(s, s.get("receivers"), "name")
	both := sequence(slices.Concat(items(s.get("mute_time_intervals")), items(s.get("time_intervals")))...)
	unique(s, both, "name")
	defined := func(key string) map[string]bool {
		out := map[string]bool{}
		for _, item := range items(a.names(key, "")[1]) {
			out[child(item, "name").Value] = true
		}
		return out
	}
	receivers, intervals := defined("receivers"), defined("time_intervals")
	var walk func(route *yaml.Node)
	walk = func(route *yaml.Node) {
		if route == nil || route.Kind != yaml.MappingNode {
			return
		}
		if n := child(route, "receiver"); n != nil && n.Kind == yaml.ScalarNode && n.Value != "" && !receivers[n.Value] {
			s.add(n, "receiver %s is not defined", clip(n.Value))
			d.leaveOut(n, true)
		}
		for _, key := range []string{"mute_time_intervals", "active_time_intervals"} {
			for _, n := range items(child(route, key)) {
				if n.Kind == yaml.ScalarNode && !intervals[n.Value] {
					s.add(n, "time interval %s is not defined", clip(n.Value))
					d.leaveOut(n, true)
				}
			}
		}
		for _, r := range items(child(route, "routes")) {
			walk(r)
		}
	}
	walk(s.get("route"))
}

// setDirectory makes every path absolute. Upstream does so only in its loader
// of files, and leaves the plain *_file fields relative to the working directory.
func setDirectory(cfg *amconfig.Config, dir string) {
	for i, t := range cfg.Templates {
		cfg.Templates[i] = resolve(dir, t)
	}
	for i, o := range cfg.EventRecorder.FileOutputs {
		cfg.EventRecorder.FileOutputs[i].Path = resolve(dir, o.Path)
	}
	walkStructs(reflect.ValueOf(cfg), 0, func(v reflect.Value) bool {
		if !v.CanAddr() {
			return true
		}
		switch c := v.Addr().Interface().(type) {
		case *commonconfig.HTTPClientConfig:
			c.SetDirectory(dir)
			return false
		case *commonconfig.TLSConfig:
			c.SetDirectory(dir)
			return false
		}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.IsExported() && f.Type.Kind() == reflect.String && isFileTag(f) {
				v.Field(i).SetString(resolve(dir, v.Field(i).String()))
			}
		}
		return true
	})
}

var globMeta = regexp.MustCompile(`[*?\[\\]`)

var reTemplate = regexp.MustCompile(`(?s)^template: ([^:]*):(\d+)(?::\d+)?: (.*)$`)

// templateFiles checks the template files one by one and gives those that parse.
func (a *amReader) templateFiles() []string {
	s := a.section
	var good []string
	for _, n := range items(s.get("templates")) {
		if n.Kind != yaml.ScalarNode || n.Value == "" || isNull(n) {
			continue
		}
		files, err := filepath.Glob(resolve(s.dir, n.Value))
		if err != nil {
			s.add(n, "pattern %s: %s", clip(n.Value), err.Error())
			continue
		}
		if len(files) == 0 && !strings.ContainsAny(n.Value, `*?[`) {
			s.add(n, "read file %s: no such file or directory", clip(n.Value))
		}
		for _, file := range files {
			if err := checkFile(file); err != nil {
				s.add(n, "read file %s: %s", clip(file), err.Error())
				continue
			}
			if _, err := amtemplate.FromGlobs([]string{globQuote(file)}); err != nil {
				f := Finding{File: file, Problem: err.Error()}
				if m := reTemplate.FindStringSubmatch(err.Error()); m != nil {
					f.Problem = "template: " + m[3]
					if line, e := strconv.Atoi(m[2]); e == nil {
						f.Line = line
					}
				}
				a.found = append(a.found, f)
				continue
			}
			good = append(good, file)
		}
	}
	return good
}

// globQuote makes a pattern that matches one file only.
func globQuote(file string) string {
	return globMeta.ReplaceAllString(file, `\$0`)
}

// fieldTemplates parses every template in the receivers' own fields. Upstream
// finds a mistake there only when it is about to notify.
func (a *amReader) fieldTemplates() {
	s := a.section
	funcs := texttemplate.FuncMap(amtemplate.DefaultFuncs)
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		switch n.Kind {
		case yaml.ScalarNode:
			if !strings.Contains(n.Value, "{{") {
				return
			}
			if _, err := texttemplate.New("field").Funcs(funcs).Parse(n.Value); err != nil {
				msg := err.Error()
				if m := reTemplate.FindStringSubmatch(msg); m != nil {
					msg = m[3]
				}
				s.add(n, "template: %s", msg)
			}
		case yaml.MappingNode:
			for _, kv := range pairs(n) {
				// These are not templates to upstream.
				if k := kv[0].Value; k != "http_config" && k != "name" && !strings.HasSuffix(k, "_file") {
					walk(kv[1])
				}
			}
		case yaml.SequenceNode:
			for _, v := range n.Content {
				walk(v)
			}
		}
	}
	for _, r := range items(s.get("receivers")) {
		walk(r)
	}
}

// receivers builds every integration and throws it away.
func (a *amReader) receivers(cfg *amconfig.Config, d *diagnosis, files []string) {
	s := a.section
	quoted := make([]string, 0, len(files))
	for _, f := range files {
		quoted = append(quoted, globQuote(f))
	}
	tmpl, err := amtemplate.FromGlobs(quoted)
	if err != nil {
		// Each file parses alone, so they disagree with each other.
		s.add(s.get("templates"), "%s", err.Error())
		return
	}
	nodes := d.kept(s.get("receivers"))
	for i, r := range cfg.Receivers {
		if i >= len(nodes) {
			break
		}
		n := nodes[i]
		if hasIrregularFile(reflect.ValueOf(r)) {
			continue // Reported where the file is named.
		}
		err := guard(func(string) error {
			_, err := receiver.BuildReceiverIntegrations(r, tmpl, a.quiet())
			return err
		}, "")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.add(n, "%s", err.Error())
		}
	}
	s.tryClients(s.get("tracing"), &cfg.TracingConfig)
	if g := cfg.Global; g != nil {
		s.tryClients(s.get("global"), g)
	}
}
