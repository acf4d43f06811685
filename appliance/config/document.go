package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const (
	// maxFileBytes bounds every file that is read. The largest rule files in
	// the field are a few MiB; anything beyond this is a mistake or an attack.
	maxFileBytes = 16 << 20
	// maxNodes bounds a document after its aliases have been expanded, so that
	// a small file of nested aliases cannot fill memory.
	maxNodes = 2_000_000
	// maxDepth bounds nesting: everything here is walked recursively.
	maxDepth = 200
)

// readFile reads a regular file of bounded size. A pipe or a device would
// block or never end, so it is refused.
func readFile(path string) ([]byte, error) {
	if err := checkFile(path); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, plainPathError(err)
	}
	defer func() { _ = f.Close() }() // It was only read.
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, plainPathError(err)
	}
	if len(b) > maxFileBytes {
		return nil, errTooLarge
	}
	return bytes.TrimPrefix(b, []byte("\uFEFF")), nil
}

var (
	errTooLarge   = fmt.Errorf("the file is larger than %d MiB", maxFileBytes>>20)
	errNotRegular = errors.New("not a regular file")
)

// checkFile tells whether a file is there, regular, readable and not too large.
func checkFile(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return plainPathError(err)
	case !info.Mode().IsRegular():
		return errNotRegular
	case info.Size() > maxFileBytes:
		return errTooLarge
	}
	f, err := os.Open(path)
	if err != nil {
		return plainPathError(err)
	}
	return f.Close()
}

// plainPathError takes operation and path off: findings name the path already.
func plainPathError(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// section is one configuration text and all that is needed to point into it.
type section struct {
	file   string     // for findings
	prefix string     // field path that the text stands at in file, "" for a file of its own
	line   int        // line of the section itself, for findings without a better one
	dir    string     // what its relative paths are relative to
	text   string     // what upstream's loader reads; lines are those of file where possible
	root   *yaml.Node // positions in file, aliases expanded; nil if empty or unparseable

	fields  map[*yaml.Node]string     // field path of every value
	keys    map[*yaml.Node]*yaml.Node // key of every value of a mapping
	parents map[*yaml.Node]*yaml.Node
	secrets secrets
	found   Findings
}

// newSection indexes a text that has been parsed.
func newSection(file, prefix, dir, text string, root *yaml.Node) *section {
	s := &section{
		file: file, prefix: prefix, dir: dir, text: text, root: root,
		fields:  map[*yaml.Node]string{},
		keys:    map[*yaml.Node]*yaml.Node{},
		parents: map[*yaml.Node]*yaml.Node{},
	}
	if root != nil {
		s.line = root.Line
		s.index(root, prefix)
		s.secrets.collect(root, "", false)
		s.secrets.sort()
	}
	return s
}

func (s *section) index(n *yaml.Node, field string) {
	s.fields[n] = field
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			s.keys[v], s.parents[v] = k, n
			s.index(v, joinField(field, k.Value))
		}
	case yaml.SequenceNode:
		for i, v := range n.Content {
			s.parents[v] = n
			s.index(v, field+"["+strconv.Itoa(i)+"]")
		}
	}
}

func joinField(field, key string) string {
	if len(key) > 64 {
		key = key[:64] + "..."
	}
	if field == "" {
		return key
	}
	return field + "." + key
}

// add records a problem at a node; nil means the section as a whole.
func (s *section) add(n *yaml.Node, format string, args ...any) {
	f := Finding{File: s.file, Line: s.line, Field: s.prefix}
	if n != nil && n != s.root {
		f.Line, f.Field = n.Line, s.fields[n]
		if k := s.keys[n]; k != nil {
			f.Line = k.Line
			// A problem in a scalar stands where the scalar does.
			if n.Kind == yaml.ScalarNode && n.Line > 0 {
				f.Line = n.Line
			}
		}
	}
	s.addAt(f.Line, f.Field, fmt.Sprintf(format, args...))
}

func (s *section) addAt(line int, field, problem string) {
	s.found = append(s.found, Finding{File: s.file, Line: line, Field: field, Problem: s.secrets.redact(problem)})
}

// get follows keys (string) and indexes (int) from the root; nil if absent.
func (s *section) get(path ...any) *yaml.Node { return child(s.root, path...) }

func child(n *yaml.Node, path ...any) *yaml.Node {
	for _, p := range path {
		if n == nil {
			return nil
		}
		var next *yaml.Node
		switch p := p.(type) {
		case string:
			if n.Kind == yaml.MappingNode {
				for i := 0; i+1 < len(n.Content); i += 2 {
					if n.Content[i].Value == p {
						next = n.Content[i+1]
					}
				}
			}
		case int:
			if n.Kind == yaml.SequenceNode && p < len(n.Content) {
				next = n.Content[p]
			}
		}
		n = next
	}
	return n
}

// isNull tells whether a value is absent or written as nothing.
func isNull(n *yaml.Node) bool {
	return n == nil || n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// parse reads one YAML document. An empty document gives a nil node.
func parse(text []byte) (root *yaml.Node, err error) {
	defer recoverTo(&err)
	if !utf8.Valid(text) {
		return nil, errors.New("not valid UTF-8 text")
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, withLine(err, text)
	}
	var second yaml.Node
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("line %d: a second YAML document begins here; it would be ignored", max(second.Line, 1))
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) == 0 {
		return nil, nil
	}
	e := expander{left: maxNodes}
	root, err = e.expand(doc.Content[0], 0)
	if err != nil || isNull(root) {
		return nil, err
	}
	return root, nil
}

// withLine adds the line to two errors that come without.
func withLine(err error, text []byte) error {
	at := -1
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	if anchor, ok := strings.CutPrefix(msg, "unknown anchor '"); ok {
		anchor, _, _ = strings.Cut(anchor, "'")
		at = bytes.Index(text, []byte("*"+anchor))
	}
	if msg == "control characters are not allowed" {
		at = bytes.IndexFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\r' && r != '\t' })
	}
	if at < 0 {
		return err
	}
	return fmt.Errorf("line %d: %s", 1+bytes.Count(text[:at], []byte("\n")), msg)
}

// expander copies a tree, putting what an alias stands for in its place, so
// that every node has one parent and one field path.
type expander struct{ left int }

func (e *expander) expand(n *yaml.Node, depth int) (*yaml.Node, error) {
	if e.left--; e.left < 0 {
		return nil, fmt.Errorf("more than %d values after aliases are expanded", maxNodes)
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d levels", maxDepth)
	}
	if n.Kind == yaml.AliasNode {
		c, err := e.expand(n.Alias, depth+1)
		if err == nil && c.Kind == yaml.ScalarNode {
			c.Line, c.Column = n.Line, n.Column // What is inside a larger value stands at its anchor.
		}
		return c, err
	}
	c := &yaml.Node{Kind: n.Kind, Style: n.Style, Tag: n.Tag, Value: n.Value, Line: n.Line, Column: n.Column}
	if c.Tag == "!!merge" {
		c.Tag = "" // The encoder would write the tag out; plain << means the same.
	}
	for _, k := range n.Content {
		x, err := e.expand(k, depth+1)
		if err != nil {
			return nil, err
		}
		c.Content = append(c.Content, x)
	}
	return c, nil
}

// splitSyntaxError takes the line out of a YAML error, 0 if it has none.
func splitSyntaxError(err error) (line int, problem string) {
	problem = strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(problem, "line "); ok {
		if num, text, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(num); err == nil {
				if strings.HasPrefix(text, "did not find expected") {
					n++ // The decoder counts these from 0.
				}
				return n, text
			}
		}
	}
	return 0, problem
}

// recoverTo turns a panic in a library's decoder into an error: no input may
// take the process down.
func recoverTo(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("the reader gave up on this: %v", p)
	}
}

// resolve makes a path absolute, relative ones below dir.
func resolve(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}
