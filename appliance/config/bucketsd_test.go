package config_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tocsin-io/tocsin/appliance/config"
)

const aBucket = "bucket: {type: FILESYSTEM, config: {directory: /tmp/b}}\n"

func TestBucketTargets(t *testing.T) {
	job := func(sd string) string {
		return "prometheus:\n  scrape_configs:\n  - job_name: a\n    bucket_sd_configs: [" + sd + "]\n"
	}
	require.Empty(t, findings(t, aBucket+job("{prefix: targets}"), nil))
	for sd, want := range map[string]string{
		"{refresh_interval: 1m}":               "prefix is missing",
		"{prefix: /t}":                         "begins with a slash",
		"{prefix: ../t}":                       "no path below",
		"{prefix: rendezvous/a/}":              "where the replicas of a cluster meet",
		"{prefix: t/, refresh_interval: 10ms}": "shorter than 1s",
		"{prefix: t/, files: [x]}":             "files",
	} {
		fs := findings(t, aBucket+job(sd), nil)
		require.NotEmpty(t, fs, sd)
		require.Contains(t, fs.Error(), want)
	}
	fs := findings(t, job("{prefix: t/}"), nil)
	require.Len(t, fs, 1)
	require.Contains(t, fs[0].Problem, "no bucket section")
	require.Equal(t, 4, fs[0].Line)
}

func TestConfigFrom(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
		require.NoError(t, os.WriteFile(p, []byte(text), 0o644))
		return p
	}
	own, err := config.Load(put("bucket.yml", aBucket+"replica: {name: r1}\nconfig_from: {bucket: true}\n"), self, nil)
	require.NoError(t, err)
	require.Equal(t, "config/", own.ConfigFrom.Prefix)
	require.Equal(t, 15*time.Second, time.Duration(own.ConfigFrom.Poll))
	require.Empty(t, own.ScrapeConfigs)

	put("live/tocsin.yml", "prometheus:\n  rule_files: [r.yml]\n  scrape_configs: [{job_name: a}]\n")
	put("live/r.yml", "groups: []\n")
	cfg, err := config.LoadBelow(own, filepath.Join(dir, "live"), self, nil)
	require.NoError(t, err)
	require.Len(t, cfg.ScrapeConfigs, 1)
	require.Equal(t, []string{filepath.Join(dir, "live/r.yml")}, cfg.RuleFiles)
	require.Equal(t, "r1", cfg.Replica.Name)
	require.Same(t, own.Bucket, cfg.Bucket)
	require.NoError(t, config.Immutable(own, cfg))

	put("live/tocsin.yml", "cluster: {name: x}\nconfig_from: {bucket: true}\nprometheus: {rule_file: []}\n")
	_, err = config.LoadBelow(own, filepath.Join(dir, "live"), self, nil)
	require.ErrorContains(t, err, "tocsin.yml:1: cluster: it stands in the --config.file")
	require.ErrorContains(t, err, "rule_file")
	require.NotContains(t, err.Error(), dir)

	for text, want := range map[string]string{
		"config_from: {bucket: true}\n":                                             "no bucket section",
		aBucket + "config_from: {}\n":                                               "bucket: true is missing",
		aBucket + "config_from: {bucket: true, poll: 1h}\n":                         "want a duration",
		aBucket + "config_from: {bucket: true, prefix: /x}\n":                       "begins with a slash",
		aBucket + "config_from: {bucket: true}\nprometheus: {scrape_configs: []}\n": "it comes from the bucket",
	} {
		fs := findings(t, text, nil)
		require.NotEmpty(t, fs, text)
		require.Contains(t, fs.Error(), want)
	}
}
