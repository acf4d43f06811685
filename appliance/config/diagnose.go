package config

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	yaml2 "go.yaml.in/yaml/v2"
	"go.yaml.in/yaml/v3"
	gopkgyaml2 "gopkg.in/yaml.v2"
	gopkgyaml3 "gopkg.in/yaml.v3"
)

const (
	// maxFindings and maxLoads bound the search for causes in one section,
	// maxSearch in all of them together. It runs only for what a loader refused.
	maxFindings = 200
	maxLoads    = 5000
	maxSearch   = 10 * time.Second
)

// diagnosis finds everything that a loader dislikes in a section. Upstream's
// loaders stop at the first value they find invalid and do not say where it
// stands. So the section is cut into pieces that are loaded alone; where a piece
// is refused, values are left out until the loader no longer complains of the
// same thing, which locates the cause; the cause is left out for good, and the
// rest loaded again.
type diagnosis struct {
	section *section
	load    func(text string) error
	skip    map[*yaml.Node]bool // values left out
	hurt    map[*yaml.Node]bool // values that something was left out of
	loads   int
	until   time.Time
	partial bool // the bounds above were reached
}

func (l *loader) newDiagnosis(s *section, load func(string) error) *diagnosis {
	if l.until.IsZero() {
		l.until = time.Now().Add(maxSearch)
	}
	return &diagnosis{
		section: s, load: load, until: l.until,
		skip: map[*yaml.Node]bool{}, hurt: map[*yaml.Node]bool{},
	}
}

func (d *diagnosis) exhausted() bool {
	if d.loads >= maxLoads || len(d.section.found) >= maxFindings || time.Now().After(d.until) {
		d.partial = true
	}
	return d.partial
}

// leaveOut takes a value out of all further loads.
func (d *diagnosis) leaveOut(n *yaml.Node, hurts bool) {
	d.skip[n] = true
	if !hurts {
		return
	}
	for p := d.section.parents[n]; p != nil; p = d.section.parents[p] {
		d.hurt[p] = true
	}
}

// piece finds everything wrong with one piece of the section: a tree made of
// the section's own nodes.
func (d *diagnosis) piece(root *yaml.Node) {
	for !d.exhausted() {
		origins, err := d.try(root, nil)
		if err == nil {
			return
		}
		if msgs := typeErrors(err); len(msgs) > 0 {
			if !d.typeErrors(root, msgs, origins) {
				return
			}
			continue
		}
		n := d.locate(root, err)
		if _, ours := d.section.fields[n]; !ours || n == root {
			// The piece as a whole is to blame: its outermost own value.
			n = d.outermost(root)
		}
		if n == nil {
			return // All of it has been left out already.
		}
		// What is missing because we left it out is no finding.
		if !d.hurt[n] {
			d.section.add(n, "%s", d.describe(n, err))
		}
		if n == root || d.skip[n] {
			return
		}
		d.leaveOut(n, true)
	}
}

// outermost is the deepest value that holds all of a piece that is the
// section's own: for {global, scrape_configs: [x]} it is x.
func (d *diagnosis) outermost(n *yaml.Node) *yaml.Node {
	if _, ours := d.section.fields[n]; ours {
		return n
	}
	kids := values(n)
	for i := len(kids) - 1; i >= 0; i-- {
		if d.skip[kids[i]] {
			continue
		}
		if x := d.outermost(kids[i]); x != nil {
			return x
		}
	}
	return nil
}

// try loads a piece without what is left out and without more.
func (d *diagnosis) try(root *yaml.Node, more map[*yaml.Node]bool) (map[int][]*yaml.Node, error) {
	d.loads++
	text, origins, err := render(root, func(n *yaml.Node) bool { return d.skip[n] || more[n] })
	if err != nil {
		return nil, err
	}
	return origins, guard(d.load, text)
}

func guard(load func(string) error, text string) (err error) {
	defer recoverTo(&err)
	return load(text)
}

// locate finds the smallest value whose absence makes the loader stop
// complaining of err.
func (d *diagnosis) locate(root *yaml.Node, err error) *yaml.Node {
	hints := quoted(err.Error())
	cur := root
	for !d.exhausted() {
		next := d.guilty(root, cur, err, hints)
		if next == nil {
			return cur
		}
		cur = next
	}
	return cur
}

// guilty picks the child that err comes from, nil if it is none alone.
func (d *diagnosis) guilty(root, parent *yaml.Node, err error, hints []string) *yaml.Node {
	kids := slices.DeleteFunc(values(parent), func(n *yaml.Node) bool { return d.skip[n] })
	if parent.Kind == yaml.SequenceNode && len(kids) > 8 {
		// A loader reads in order, so the shortest beginning that shows the
		// same error ends with the culprit.
		lo, hi := 0, len(kids)
		for lo+1 < hi && !d.exhausted() {
			mid := (lo + hi) / 2
			more := map[*yaml.Node]bool{}
			for _, k := range kids[mid:] {
				more[k] = true
			}
			if _, e := d.try(root, more); e != nil && e.Error() == err.Error() {
				hi = mid
			} else {
				lo = mid
			}
		}
		kids = kids[lo:hi]
	}
	var best *yaml.Node
	var bestRank int
	for _, k := range kids {
		if d.exhausted() {
			break
		}
		_, e := d.try(root, map[*yaml.Node]bool{k: true})
		if e != nil && e.Error() == err.Error() {
			continue
		}
		rank := 1
		if mentions(k, hints, err.Error(), 0) {
			rank += 2
		}
		if e == nil {
			rank += 4
		}
		if rank == 1 && parent.Kind == yaml.MappingNode && k.Kind == yaml.ScalarNode && d.required(root, k, kids, e) {
			continue
		}
		// At equal rank the later one: global stands first and its values are
		// seldom meant.
		if rank >= bestRank {
			best, bestRank = k, rank
		}
	}
	return best
}

// required tells whether the error that leaving k out gives is about k's
// absence, and not about something else that k's error hid: no other absence
// changes it.
func (d *diagnosis) required(root, k *yaml.Node, kids []*yaml.Node, err error) bool {
	for _, other := range kids {
		if other == k || d.exhausted() {
			continue
		}
		if _, e := d.try(root, map[*yaml.Node]bool{k: true, other: true}); e == nil || e.Error() != err.Error() {
			return false
		}
	}
	return true
}

// describe says what is wrong and, where that is one plain value, what was given.
func (d *diagnosis) describe(n *yaml.Node, err error) string {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	msg = strings.TrimPrefix(msg, "unmarshal errors:\n  ")
	if n == nil || n.Kind != yaml.ScalarNode || n.Value == "" {
		return msg
	}
	if strings.Contains(n.Value, "@") && strings.Contains(msg, "parse ") {
		return "not a valid URL" // The message may quote any part of a password.
	}
	if !d.section.secrets.has(n.Value) && !strings.Contains(msg, n.Value) && !strings.Contains(msg, "at most one of") {
		msg += " (given " + clip(n.Value) + ")"
	}
	return msg
}

func clip(s string) string {
	if len(s) > 80 {
		s = strings.ToValidUTF8(s[:80], "") + "..."
	}
	return strconv.Quote(s)
}

// typeErrors unpacks the list that the YAML decoders give for unknown fields and
// wrong types. Prometheus, its rule format and Alertmanager use three of them.
func typeErrors(err error) []string {
	var a *yaml2.TypeError
	if errors.As(err, &a) {
		return a.Errors
	}
	var b *gopkgyaml2.TypeError
	if errors.As(err, &b) {
		return b.Errors
	}
	var c *yaml.TypeError
	if errors.As(err, &c) {
		return c.Errors
	}
	var d *gopkgyaml3.TypeError
	if errors.As(err, &d) {
		return d.Errors
	}
	return nil
}

var (
	reLine    = regexp.MustCompile(`^line (\d+): (?s)(.*)$`)
	reUnknown = regexp.MustCompile(`^field (?s)(.*) not found in type \S+$`)
	reTwice   = regexp.MustCompile(`^(?:field|key) "?(?s)(.*?)"? already set in .*$`)
	reType    = regexp.MustCompile("^cannot unmarshal (\\S+)(?s)(?: `.*`)? into (.+)$")
)

// typeErrors records decoder errors and leaves their causes out. It reports
// whether it left anything out.
func (d *diagnosis) typeErrors(root *yaml.Node, msgs []string, origins map[int][]*yaml.Node) bool {
	progress := false
	leave := func(n *yaml.Node, hurts bool) {
		if n != nil && n != root && !d.skip[n] {
			d.leaveOut(n, hurts)
			progress = true
		}
	}
	for _, msg := range msgs {
		line := 0
		if m := reLine.FindStringSubmatch(msg); m != nil {
			line, _ = strconv.Atoi(m[1]) // Digits only; a number beyond int is no line we know.
			msg = m[2]
		}
		at := origins[line]
		if m := reUnknown.FindStringSubmatch(msg); m != nil {
			n := d.keyed(at, m[1])
			d.atKey(n, at, "unknown field "+clip(m[1]))
			leave(n, false)
			continue
		}
		if m := reTwice.FindStringSubmatch(msg); m != nil {
			n := d.keyed(at, m[1])
			d.atKey(n, at, "given twice")
			leave(n, false)
			continue
		}
		if m := reType.FindStringSubmatch(msg); m != nil {
			n := d.mistyped(at, m[1])
			d.section.add(n, "%s", d.wrongType(n, m[1], m[2]))
			leave(n, true)
			continue
		}
		n := d.mistyped(at, "")
		d.section.add(n, "%s", msg)
		leave(n, true)
	}
	return progress
}

// keyed finds the value that stands under a key on a line, the last one if the
// key was given twice.
func (d *diagnosis) keyed(at []*yaml.Node, key string) *yaml.Node {
	var found *yaml.Node
	for _, n := range at {
		if k := d.section.keys[n]; k != nil && k.Value == key && !d.skip[n] {
			found = n
		}
	}
	return found
}

// atKey records a problem of a key rather than of its value.
func (d *diagnosis) atKey(n *yaml.Node, at []*yaml.Node, problem string) {
	if n == nil {
		if len(at) > 0 {
			n = at[0]
		}
		d.section.add(n, "%s", problem)
		return
	}
	d.section.addAt(d.section.keys[n].Line, d.section.fields[n], problem)
}

// mistyped picks, among the values that begin on a line, the one of a tag.
func (d *diagnosis) mistyped(at []*yaml.Node, tag string) *yaml.Node {
	var found *yaml.Node
	for _, n := range at {
		if d.skip[n] || tag != "" && n.ShortTag() != tag && n.Kind != kindOf(tag) {
			continue
		}
		if tag == "" || n.ShortTag() == tag || found == nil {
			found = n
		}
	}
	return found
}

func kindOf(tag string) yaml.Kind {
	switch tag {
	case "!!map":
		return yaml.MappingNode
	case "!!seq":
		return yaml.SequenceNode
	}
	return yaml.ScalarNode
}

func (d *diagnosis) wrongType(n *yaml.Node, tag, want string) string {
	given := map[string]string{"!!map": "a mapping", "!!seq": "a list", "!!null": "nothing"}[tag]
	if given == "" {
		given = "a value"
		if n != nil && n.Kind == yaml.ScalarNode {
			given = clip(n.Value)
			if d.section.secrets.has(n.Value) {
				given = secretToken
			}
		}
	}
	if strings.HasSuffix(want, ".plain") && n != nil && n.Kind != yaml.ScalarNode {
		// The loader's own name for a type with a reader of its own. One that
		// is a structure takes a mapping, so this one is not.
		want = "string"
	}
	return fmt.Sprintf("wrong type: want %s, given %s", plainType(want), given)
}

// plainType says a Go type in words.
func plainType(t string) string {
	t = strings.TrimPrefix(t, "*")
	switch {
	case strings.HasPrefix(t, "[]"):
		return "a list"
	case strings.HasPrefix(t, "map[") || strings.HasPrefix(t, "struct"):
		return "a mapping"
	case strings.HasPrefix(t, "int") || strings.HasPrefix(t, "uint"):
		return "a whole number"
	case strings.HasPrefix(t, "float"):
		return "a number"
	case t == "bool":
		return "true or false"
	case t == "string":
		return "a string"
	}
	_, name, ok := strings.Cut(t, ".")
	switch {
	case !ok:
		return t
	case name == "plain":
		return "a mapping"
	case name == "Secret":
		return "a string"
	}
	return name
}

var reQuoted = regexp.MustCompile("\"((?:[^\"\\\\]|\\\\.)+)\"|'([^']+)'|`([^`]+)`")

// quoted lists what an error puts in quotation marks: it is often the value.
func quoted(msg string) []string {
	var out []string
	for _, m := range reQuoted.FindAllStringSubmatch(msg, 10) {
		for _, s := range m[1:] {
			if s != "" {
				out = append(out, s)
			}
		}
	}
	return out
}

// mentions tells whether an error speaks of a value or of one below it.
func mentions(n *yaml.Node, hints []string, msg string, depth int) bool {
	if n.Kind == yaml.ScalarNode {
		return slices.Contains(hints, n.Value) || len(n.Value) > 3 && strings.Contains(msg, n.Value)
	}
	if depth > maxDepth {
		return false
	}
	return slices.ContainsFunc(values(n), func(c *yaml.Node) bool { return mentions(c, hints, msg, depth+1) })
}

// values are the children of a node, without a mapping's keys.
func values(n *yaml.Node) []*yaml.Node {
	if n.Kind != yaml.MappingNode {
		return slices.Clone(n.Content)
	}
	out := make([]*yaml.Node, 0, len(n.Content)/2)
	for i := 1; i < len(n.Content); i += 2 {
		out = append(out, n.Content[i])
	}
	return out
}
