package config_test

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// TestManual checks that the manual names every field and that its examples load.
func TestManual(t *testing.T) {
	manual := config.Manual()
	for _, typ := range []reflect.Type{reflect.TypeFor[config.Replica](), reflect.TypeFor[config.Cluster](), reflect.TypeFor[config.Upstream](), reflect.TypeFor[config.Metric](), reflect.TypeFor[config.Source](), reflect.TypeFor[config.BucketSD]()} {
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			if name == "-" {
				continue
			}
			require.NotEmpty(t, f.Tag.Get("doc"), "%s.%s has no doc", typ.Name(), f.Name)
			require.Contains(t, []string{"yes", "no"}, f.Tag.Get("reload"), "%s.%s", typ.Name(), f.Name)
			if !strings.Contains(options, "inline") {
				require.Contains(t, manual, "."+name+"`")
			}
		}
	}

	examples := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(manual, -1)
	require.Len(t, examples, 10)
	for _, e := range examples[:7] {
		dir := t.TempDir()
		for name, from := range map[string]string{"prometheus.yml": "", "alertmanager.yml": "testdata/files/least-alertmanager.yml", "secrets/search": "", "cluster.key": "testdata/files/cluster.key"} {
			var b []byte
			if from != "" {
				var err error
				b, err = os.ReadFile(from)
				require.NoError(t, err)
			}
			require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o644))
		}
		path := filepath.Join(dir, "tocsin.yml")
		require.NoError(t, os.WriteFile(path, []byte(e[1]), 0o644))
		_, err := config.Load(path, self, nil)
		require.NoError(t, err, e[1])
	}
}

// TestStatedDefaults holds the defaults that the manual states to those in force.
func TestStatedDefaults(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tocsin.yml")
	stated := "federation:\n- {name: a, url: http://h}\n- name: b\n  url: http://h\n"
	typ := reflect.TypeFor[config.Upstream]()
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("yaml"), ",")
		if d, _, _ := strings.Cut(typ.Field(i).Tag.Get("default"), ","); d != "" {
			stated += "  " + name + ": " + d + "\n"
		}
	}
	require.NoError(t, os.WriteFile(path, []byte(stated), 0o644))
	cfg, err := config.Load(path, self, nil)
	require.NoError(t, err)
	cfg.Federation[1].Name = "a"
	require.Equal(t, cfg.Federation[0], cfg.Federation[1])
}
