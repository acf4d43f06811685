package mesh

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestZone(t *testing.T) {
	for name, c := range map[string]struct {
		configured, data string
		want             string
		warns            string // "" for no warning
	}{
		"configured":              {"zone-1", `{"v1": {"availability_zone": "x"}}`, "zone-1", ""},
		"standard key":            {"auto", `{"v1": {"availability_zone": "eu-1a", "region": "eu-1"}, "ds": {"meta_data": {"availability_zone": "y"}}}`, "eu-1a", ""},
		"nothing configured":      {"", `{"v1": {"availability_zone": "eu-1a"}}`, "eu-1a", ""},
		"alias":                   {"auto", `{"v1": {"availability-zone": "eu-1a"}}`, "eu-1a", ""},
		"EC2":                     {"auto", `{"v1": {"availability_zone": null}, "ds": {"meta_data": {"placement": {"availability-zone": "us-east-1a", "region": "us-east-1"}}}}`, "us-east-1a", ""},
		"OpenStack":               {"auto", `{"ds": {"meta_data": {"availability_zone": "nova"}}}`, "nova", ""},
		"Google's path":           {"auto", `{"v1": {"availability_zone": "projects/1/zones/us-central1-f"}}`, "us-central1-f", ""},
		"region only":             {"auto", `{"v1": {"availability_zone": "None", "region": "eu-1"}}`, "eu-1", ""},
		"no file":                 {"auto", "", "default", "there is no"},
		"empty object":            {"auto", `{}`, "default", "names no zone"},
		"nulls":                   {"auto", `{"v1": null, "ds": {"meta_data": null}}`, "default", "names no zone"},
		"wrong types":             {"auto", `{"v1": {"availability_zone": ["x"], "region": 1}, "ds": [1]}`, "default", "names no zone"},
		"a list":                  {"auto", `[]`, "default", "names no zone"},
		"not JSON":                {"auto", "s3cret: yaml", "default", "not JSON"},
		"cut off":                 {"auto", `{"v1": {"availability_zone": "x"`, "default", "not JSON"},
		"deep":                    {"auto", strings.Repeat(`{"v1":`, 200_000), "default", "not JSON"},
		"huge":                    {"auto", `{"v1": {"availability_zone": "x", "pad": "` + strings.Repeat("a", 10<<20) + `"}}`, "default", "larger than 4 MiB"},
		"control characters":      {"auto", `{"v1": {"availability_zone": "a\nlevel=error"}}`, "default", "v1.availability_zone"},
		"too long":                {"auto", `{"v1": {"availability_zone": "` + strings.Repeat("z", 65) + `"}}`, "default", "v1.availability_zone"},
		"not ASCII":               {"auto", `{"v1": {"availability_zone": "zöne"}}`, "default", "v1.availability_zone"},
		"the word auto":           {"auto", `{"v1": {"availability_zone": "auto"}}`, "default", "v1.availability_zone"},
		"bad one, then good one":  {"auto", `{"v1": {"availability_zone": "a b", "region": "eu-1"}}`, "eu-1", ""},
		"a folder for a name":     {"auto", `{"v1": {"availability_zone": "../"}}`, "default", "v1.availability_zone"},
		"duplicate keys, NUL too": {"auto", "{\"v1\": {\"availability_zone\": \"a\\u0000\", \"availability_zone\": \"b\"}}", "b", ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "instance-data.json")
			if c.data != "" {
				require.NoError(t, os.WriteFile(path, []byte(c.data), 0o600))
			}
			var log logged
			require.Equal(t, c.want, Zone(c.configured, path, log.logger()))
			if c.warns == "" {
				require.NotContains(t, log.String(), "WARN")
				return
			}
			require.Equal(t, 1, strings.Count(log.String(), "\n"), log.String())
			for _, part := range []string{"WARN", "replica.zone", c.warns} {
				require.Contains(t, log.String(), part)
			}
			require.NotContains(t, log.String(), "s3cret")
			require.NotContains(t, log.String(), "level=error")
		})
	}
}

func TestZoneReadsRegularFilesOnly(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for _, path := range []string{pipe, t.TempDir(), "/dev/zero"} {
		var log logged
		require.Equal(t, "default", Zone("auto", path, log.logger()))
		require.Contains(t, log.String(), "not a regular file")
	}
}

func FuzzZone(f *testing.F) {
	f.Add([]byte(`{"v1": {"availability_zone": "eu-1a"}}`))
	f.Add([]byte(`{"ds": {"meta_data": {"placement": {"availability-zone": "a/b"}}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "instance-data.json")
		require.NoError(t, os.WriteFile(path, data, 0o600))
		require.Regexp(t, `^[A-Za-z0-9._-]{1,64}$`, Zone("auto", path, slog.New(slog.DiscardHandler)))
	})
}
