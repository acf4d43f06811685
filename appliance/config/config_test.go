package config_test

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tocsin-io/tocsin/appliance/config"
)

var update = flag.Bool("update", false, "write the expected findings anew; read them before they are kept")

var self = config.Self{Address: "127.0.0.1:9090", RoutePrefix: "/sub", Instance: "host-a"}

// TestFixtures loads every testdata/*.good.yml, which must be accepted, and
// every testdata/*.bad.yml, which must give the findings in the .txt beside it.
func TestFixtures(t *testing.T) {
	good, err := filepath.Glob("testdata/*.good.yml")
	require.NoError(t, err)
	require.NotEmpty(t, good)
	for _, file := range good {
		t.Run(filepath.Base(file), func(t *testing.T) {
			cfg, err := config.Load(file, self, nil)
			require.NoError(t, err)
			require.NotNil(t, cfg.Prometheus)
			require.NotNil(t, cfg.Alertmanager)
		})
	}

	bad, err := filepath.Glob("testdata/*.bad.yml")
	require.NoError(t, err)
	require.NotEmpty(t, bad)
	for _, file := range bad {
		t.Run(filepath.Base(file), func(t *testing.T) {
			_, err := config.Load(file, self, nil)
			var findings config.Findings
			require.ErrorAs(t, err, &findings)
			for _, f := range findings {
				require.NotEmpty(t, f.File)
				require.NotEmpty(t, f.Problem)
			}
			wd, err2 := os.Getwd()
			require.NoError(t, err2)
			got := strings.ReplaceAll(err.Error(), wd+"/", "") + "\n"
			want := strings.TrimSuffix(file, ".yml") + ".txt"
			if *update {
				require.NoError(t, os.WriteFile(want, []byte(got), 0o644))
			}
			b, err := os.ReadFile(want)
			require.NoError(t, err)
			require.Equal(t, string(b), got)
		})
	}
}

// findings loads a text as tocsin.yml, with further files beside it.
func findings(t *testing.T, text string, files map[string]string) config.Findings {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	path := filepath.Join(dir, "tocsin.yml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	_, err := config.Load(path, self, nil)
	if err == nil {
		return nil
	}
	var fs config.Findings
	require.True(t, errors.As(err, &fs), "%T", err)
	for i := range fs {
		fs[i].File = strings.TrimPrefix(fs[i].File, dir+"/")
	}
	return fs
}
