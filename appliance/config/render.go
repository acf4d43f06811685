package config

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// render writes a tree as YAML without the values that skip names. For every
// line of the text it gives the values that begin there.
func render(root *yaml.Node, skip func(*yaml.Node) bool) (text string, origins map[int][]*yaml.Node, err error) {
	defer recoverTo(&err)
	pruned, from := prune(root, skip)
	b, err := yaml.Marshal(pruned)
	if err != nil {
		return "", nil, fmt.Errorf("write YAML: %w", err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return "", nil, fmt.Errorf("read YAML back: %w", err)
	}
	origins = map[int][]*yaml.Node{}
	if doc.Kind == yaml.DocumentNode && len(doc.Content) == 1 {
		match(doc.Content[0], pruned, from, origins, 0)
	}
	return string(b), origins, nil
}

// prune copies a tree without some values and remembers where each came from.
func prune(n *yaml.Node, skip func(*yaml.Node) bool) (*yaml.Node, map[*yaml.Node]*yaml.Node) {
	from := map[*yaml.Node]*yaml.Node{}
	var walk func(n *yaml.Node) *yaml.Node
	walk = func(n *yaml.Node) *yaml.Node {
		// Block style gives every value a line of its own.
		c := &yaml.Node{Kind: n.Kind, Style: n.Style &^ yaml.FlowStyle, Tag: n.Tag, Value: n.Value}
		from[c] = n
		switch n.Kind {
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				if !skip(n.Content[i+1]) {
					c.Content = append(c.Content, walk(n.Content[i]), walk(n.Content[i+1]))
				}
			}
		case yaml.SequenceNode:
			for _, v := range n.Content {
				if !skip(v) {
					c.Content = append(c.Content, walk(v))
				}
			}
		}
		return c
	}
	return walk(n), from
}

// match walks the text's tree and the tree it was written from side by side.
// A value counts for the line of its key as well: decoders name either.
func match(got, wrote *yaml.Node, from map[*yaml.Node]*yaml.Node, origins map[int][]*yaml.Node, keyLine int) {
	origin := from[wrote]
	if keyLine > 0 && keyLine != got.Line {
		origins[keyLine] = append(origins[keyLine], origin)
	}
	origins[got.Line] = append(origins[got.Line], origin)
	if got.Kind != wrote.Kind || len(got.Content) != len(wrote.Content) {
		return
	}
	for i := range got.Content {
		switch {
		case got.Kind == yaml.MappingNode && i%2 == 0:
		case got.Kind == yaml.MappingNode:
			match(got.Content[i], wrote.Content[i], from, origins, got.Content[i-1].Line)
		default:
			match(got.Content[i], wrote.Content[i], from, origins, 0)
		}
	}
}

// inlineText gives the text of a section that stands inside a larger one. All
// other lines are blank, so that line numbers stay true. Where that does not
// give the same content (flow style on the key's line, aliases to anchors
// outside), the section is written anew.
func inlineText(whole string, value *yaml.Node, until int) (string, error) {
	lines := strings.Split(whole, "\n")
	if until <= 0 || until > len(lines)+1 {
		until = len(lines) + 1
	}
	if value.Line >= 1 && value.Line < until {
		text := strings.Repeat("\n", value.Line-1) + strings.Join(lines[value.Line-1:until-1], "\n")
		if root, err := parse([]byte(text)); err == nil && root != nil && same(root, value, 0) {
			return text, nil
		}
	}
	text, _, err := render(value, func(*yaml.Node) bool { return false })
	return text, err
}

// same compares content, not style or position.
func same(a, b *yaml.Node, depth int) bool {
	if a.Kind != b.Kind || a.Value != b.Value || a.ShortTag() != b.ShortTag() || len(a.Content) != len(b.Content) || depth > maxDepth {
		return false
	}
	for i := range a.Content {
		if !same(a.Content[i], b.Content[i], depth+1) {
			return false
		}
	}
	return true
}
