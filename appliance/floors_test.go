package appliance_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/tocsin-io/tocsin"

// floors says which of our packages each may import, and so that imports go downward only (docs/architecture.md).
// What a package may not import it is handed, through upstream's interfaces.
var floors = map[string][]string{
	"cmd/tocsin": {"appliance", "appliance/*", "web"},
	"appliance":  {"appliance/*", "web"},

	// Flows never import each other: each can be read, tested and replaced alone.
	"appliance/scrape":   {"appliance/store", "appliance/mesh", "appliance/config"},
	"appliance/federate": {"appliance/store", "appliance/mesh", "appliance/config"},
	"appliance/evaluate": {"appliance/store", "appliance/mesh", "appliance/config", "appliance/evaluate/peerspb"},
	"appliance/alert":    {"appliance/store", "appliance/mesh", "appliance/config", "appliance/alert/peerspb"},
	"appliance/query":    {"appliance/store", "appliance/mesh", "appliance/config"},
	"appliance/bucket":   {"appliance/store", "appliance/mesh", "appliance/config", "appliance/bucket/peerspb"},
	"appliance/heal":     {"appliance/store", "appliance/mesh", "appliance/config", "appliance/heal/peerspb"},
	"appliance/drain":    {"appliance/store", "appliance/mesh", "appliance/config", "appliance/drain/peerspb"},

	// Messages between replicas, generated.
	"appliance/alert/peerspb":    {},
	"appliance/bucket/peerspb":   {},
	"appliance/drain/peerspb":    {},
	"appliance/evaluate/peerspb": {},
	"appliance/heal/peerspb":     {},

	"appliance/store":  {"appliance/config"},
	"appliance/mesh":   {"appliance/config"},
	"appliance/config": {},
	// The door is handed handlers, and knows nothing of what is behind them.
	"web":    {"web/ui"},
	"web/ui": {},
	// The tests from outside speak HTTP, files and signals only: they would find nothing that a user could not.
	"e2e":         {"e2e/steady"},
	"e2e/bench":   {},
	"e2e/install": {"e2e/steady"},
	"e2e/steady":  {},
}

func TestImportsGoDownward(t *testing.T) {
	for dir, imports := range packages(t) {
		allowed, known := floors[dir]
		if !known {
			t.Errorf("package %s has no place: add it to the floors", dir)
			continue
		}
		for _, imp := range imports {
			ours, ok := strings.CutPrefix(imp, module+"/")
			if !ok || ours == dir {
				continue
			}
			if !matches(allowed, ours) {
				t.Errorf("package %s imports %s, which is not below it", dir, ours)
			}
		}
	}
	for dir := range floors {
		if _, err := os.Stat(filepath.Join("..", dir)); err != nil {
			t.Errorf("the floors name %s, which is gone", dir)
		}
	}
}

func matches(patterns []string, name string) bool {
	for _, p := range patterns {
		if ok, _ := path.Match(p, name); ok {
			return true
		}
	}
	return false
}

// TestPackagesSayWhatTheyAre holds that each package has exactly one comment, and that those of the appliance say
// what they own and what they refuse.
func TestPackagesSayWhatTheyAre(t *testing.T) {
	for dir := range packages(t) {
		var comments []string
		for file, f := range parse(t, dir, parser.ParseComments|parser.PackageClauseOnly) {
			if f.Doc != nil && !strings.HasSuffix(file, "_test.go") {
				comments = append(comments, f.Doc.Text())
			}
		}
		testsOnly, generated := dir == "e2e", strings.HasSuffix(dir, "pb")
		switch {
		case len(comments) == 0 && (testsOnly || generated):
			continue // What is generated has its comment in the .proto file.
		case len(comments) != 1:
			t.Errorf("package %s has %d package comments, want 1", dir, len(comments))
		case strings.HasPrefix(dir, "appliance") || strings.HasPrefix(dir, "web"):
			for _, word := range []string{"own", "refuse"} {
				if !strings.Contains(comments[0], word) && !strings.Contains(comments[0], "never") {
					t.Errorf("the comment of package %s does not say what it %ss", dir, word)
				}
			}
		}
	}
}

// packages lists our packages by folder, with what they import outside their tests.
func packages(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	err := filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != ".." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin" || d.Name() == "data" || d.Name() == "node_modules"):
			return fs.SkipDir
		case d.IsDir():
			// A module of its own is not ours to guard.
			if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil && p != ".." {
				return fs.SkipDir
			}
			return nil
		case filepath.Ext(p) != ".go":
			return nil
		}
		dir, err := filepath.Rel("..", filepath.Dir(p))
		if err != nil {
			return err
		}
		if _, seen := found[dir]; !seen {
			found[dir] = nil
			for file, f := range parse(t, dir, parser.ImportsOnly) {
				if strings.HasSuffix(file, "_test.go") && dir != "e2e" {
					continue
				}
				for _, imp := range f.Imports {
					found[dir] = append(found[dir], strings.Trim(imp.Path.Value, `"`))
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func parse(t *testing.T, dir string, mode parser.Mode) map[string]*ast.File {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	parsed := map[string]*ast.File{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, mode)
		if err != nil {
			t.Fatal(err)
		}
		parsed[file] = f
	}
	return parsed
}
