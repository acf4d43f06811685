package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Finding is one thing that is wrong: where it stands and what was given.
type Finding struct {
	File    string // the file to look into; "" for the built-in configuration
	Line    int    // 1-based; 0 if no line is to blame
	Field   string // path of the field in that file, "" if none is to blame
	Problem string // a sentence without secrets
}

// Error prints "FILE:LINE: field: problem", leaving out what is unknown.
func (f Finding) Error() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File)
		if f.Line > 0 {
			fmt.Fprintf(&b, ":%d", f.Line)
		}
		b.WriteString(": ")
	}
	if f.Field != "" {
		b.WriteString(f.Field + ": ")
	}
	b.WriteString(f.Problem)
	return b.String()
}

// Findings are all that is wrong with a configuration.
type Findings []Finding

// Error prints one finding a line.
func (fs Findings) Error() string {
	lines := make([]string, 0, len(fs))
	for _, f := range fs {
		lines = append(lines, f.Error())
	}
	return strings.Join(lines, "\n")
}

// tidy orders findings by file and line, main file first, and removes repeats.
func (fs Findings) tidy(mainFile string) Findings {
	slices.SortStableFunc(fs, func(a, b Finding) int {
		if a.File != b.File {
			if a.File == mainFile {
				return -1
			}
			if b.File == mainFile {
				return 1
			}
			return cmp.Compare(a.File, b.File)
		}
		return cmp.Compare(a.Line, b.Line)
	})
	seen := map[Finding]bool{}
	return slices.DeleteFunc(fs, func(f Finding) bool {
		if seen[f] {
			return true
		}
		seen[f] = true
		return false
	})
}
