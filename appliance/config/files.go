package config

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Fields that name a file to write, or that hold names of the user's choice
// below which a name ending in _file means nothing.
var (
	outputFiles = []string{"query_log_file", "scrape_failure_log_file"}
	freeKeys    = []string{
		"labels", "external_labels", "params", "match", "match_re", "source_match", "source_match_re",
		"target_match", "target_match_re", "headers", "http_headers", "details", "custom_fields", "fields",
		"payload", "proxy_connect_header", "attributes", "filters",
	}
)

// maxListedFiles bounds what one list of patterns can stand for.
const maxListedFiles = 20_000

// checkFiles reports every *_file that cannot be read, and whether there are any.
func checkFiles(s *section) bool {
	before := len(s.found)
	if s.root != nil {
		s.checkFilesBelow(s.root)
	}
	return len(s.found) > before
}

func (s *section) checkFilesBelow(n *yaml.Node) {
	for i, v := range n.Content {
		if n.Kind != yaml.MappingNode {
			s.checkFilesBelow(v)
			continue
		}
		if i%2 == 0 {
			continue
		}
		key := n.Content[i-1].Value
		switch {
		case slices.Contains(freeKeys, key):
			// http_headers holds files one level down: {NAME: {files: [...]}}.
			if key == "http_headers" {
				for _, h := range values(v) {
					for _, f := range items(child(h, "files")) {
						s.checkFileNode(f)
					}
				}
			}
		case strings.HasSuffix(key, "_file") && v.Kind == yaml.ScalarNode:
			if !slices.Contains(outputFiles, key) {
				s.checkFileNode(v)
			}
		default:
			s.checkFilesBelow(v)
		}
	}
}

func (s *section) checkFileNode(n *yaml.Node) {
	if n.Kind != yaml.ScalarNode || n.Value == "" || isNull(n) {
		return
	}
	if err := checkFile(resolve(s.dir, n.Value)); err != nil {
		s.add(n, "read file %s: %s", clip(n.Value), err.Error())
	}
}

// expand gives the files that a list of patterns stands for: absolute, sorted
// and unique. A pattern without wildcards that matches nothing is a missing file.
func (p *promReader) expand(list *yaml.Node) []string {
	s := p.section
	var files []string
	for _, n := range items(list) {
		if n.Kind != yaml.ScalarNode || n.Value == "" || isNull(n) {
			continue
		}
		if dir, _ := filepath.Split(n.Value); strings.Contains(dir, "*") {
			continue // Refused by Prometheus's loader; walking it could take for ever.
		}
		pattern := resolve(s.dir, n.Value)
		matches, err := filepath.Glob(pattern)
		switch {
		case err != nil:
			s.add(n, "pattern %s: %s", clip(n.Value), err.Error())
		case len(matches) == 0 && !strings.ContainsAny(n.Value, `*?[`):
			s.add(n, "read file %s: no such file or directory", clip(n.Value))
		}
		files = append(files, matches...)
	}
	slices.Sort(files)
	files = slices.Compact(files)
	if len(files) > maxListedFiles {
		s.add(list, "stands for %d files; at most %d are read", len(files), maxListedFiles)
		files = nil
	}
	return files
}

// walkStructs visits every struct below a value that reflection can reach; a
// visitor that returns false ends the descent there.
func walkStructs(v reflect.Value, depth int, visit func(reflect.Value) bool) {
	if depth > 30 || !v.IsValid() {
		return
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			walkStructs(v.Elem(), depth+1, visit)
		}
	case reflect.Slice, reflect.Array:
		if k := v.Type().Elem().Kind(); k == reflect.Uint8 || k == reflect.String {
			return
		}
		for i := range v.Len() {
			walkStructs(v.Index(i), depth+1, visit)
		}
	case reflect.Struct:
		if !v.CanInterface() || !visit(v) {
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				walkStructs(v.Field(i), depth+1, visit)
			}
		}
	}
}

// hasIrregularFile tells whether a struct names a file that upstream's code
// should not be let near: missing, endless or huge.
func hasIrregularFile(v reflect.Value) bool {
	irregular := false
	walkStructs(v, 0, func(v reflect.Value) bool {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.IsExported() && f.Type.Kind() == reflect.String && isFileTag(f) && v.Field(i).String() != "" {
				irregular = irregular || checkFile(v.Field(i).String()) != nil
			}
		}
		return true
	})
	return irregular
}

// isFileTag tells whether a struct field holds the name of a file to read.
func isFileTag(f reflect.StructField) bool {
	name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return strings.HasSuffix(name, "_file") && !slices.Contains(outputFiles, name)
}
