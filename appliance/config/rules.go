package config

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"go.yaml.in/yaml/v3"
)

// ruleFiles expands rule_files and checks every file.
func (p *promReader) ruleFiles(scheme model.ValidationScheme) []string {
	files := p.expand(p.section.get("rule_files"))
	for _, file := range files {
		if s := p.fileSection(file); s != nil {
			p.checkRules(s, scheme)
			p.take(s)
		}
	}
	return files
}

// checkRules reads one rule file the way the rule manager will. A decoding
// error hides what is wrong with the rules themselves, so what does not decode
// is left out and the rest read again.
func (l *loader) checkRules(s *section, scheme model.ValidationScheme) {
	d := l.newDiagnosis(s, func(text string) (err error) {
		_, errs := rulefmt.Parse([]byte(text), false, scheme)
		return errors.Join(errs...)
	})
	skip := func(n *yaml.Node) bool { return d.skip[n] }
	text, origins := s.text, map[int][]*yaml.Node(nil)
	for !d.exhausted() {
		d.loads++
		var errs []error
		err := guard(func(text string) error {
			_, errs = rulefmt.Parse([]byte(text), false, scheme)
			return nil
		}, text)
		if err != nil {
			errs = append(errs, err)
		}
		var undecoded []string
		for _, err := range errs {
			undecoded = append(undecoded, typeErrors(err)...)
		}
		if len(undecoded) == 0 {
			unique(s, s.get("groups"), "name")
			for _, err := range errs {
				if strings.HasSuffix(err.Error(), "is repeated in the same file") {
					continue // Just recorded, with its line, which this error lacks.
				}
				s.addRuleError(err, origins, d)
			}
			return
		}
		if origins == nil {
			// Lines have to be those of a text whose values we know.
			if text, origins, err = render(s.root, skip); err != nil {
				s.add(nil, "%s", err.Error())
				return
			}
			continue
		}
		if !d.typeErrors(s.root, undecoded, origins) {
			return
		}
		if text, origins, err = render(s.root, skip); err != nil {
			s.add(nil, "%s", err.Error())
			return
		}
	}
}

var rePosition = regexp.MustCompile(`^(\d+):(\d+): `)

// addRuleError places an error of the rule format's own checks.
func (s *section) addRuleError(err error, origins map[int][]*yaml.Node, d *diagnosis) {
	msg, line := err.Error(), 0
	for {
		m := rePosition.FindStringSubmatch(msg)
		if m == nil {
			break
		}
		if n, e := strconv.Atoi(m[1]); e == nil && line == 0 {
			line = n
		}
		msg = msg[len(m[0]):]
	}
	if origins != nil && line > 0 {
		at := origins[line]
		line = 0
		if len(at) > 0 {
			line = at[0].Line
		}
	}
	field := ""
	var re *rulefmt.Error
	if errors.As(err, &re) {
		if n := s.rule(re, d); n != nil {
			if d.hurt[n] && (strings.Contains(msg, "must be set")) {
				return // It was given and has been reported already.
			}
			field = s.fields[n]
			if line == 0 {
				line = n.Line
			}
		}
		if cause := re.Err.Unwrap(); cause != nil {
			msg = fmt.Sprintf("rule %q: %s", re.RuleName, cause)
			if re.RuleName == "" {
				msg = cause.Error()
			}
		}
	}
	s.addAt(line, field, msg)
}

// rule finds the rule that an error speaks of: groups and rules are counted
// without what has been left out.
func (s *section) rule(err *rulefmt.Error, d *diagnosis) *yaml.Node {
	for _, g := range items(s.get("groups")) {
		if n := child(g, "name"); n == nil || n.Value != err.Group || d.skip[g] {
			continue
		}
		left := err.Rule
		for _, r := range items(child(g, "rules")) {
			if d.skip[r] {
				continue
			}
			if left--; left == 0 {
				return r
			}
		}
	}
	return nil
}
