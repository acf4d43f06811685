package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/alecthomas/units"
	"github.com/stretchr/testify/require"

	"github.com/tocsin-io/tocsin/appliance/config"
)

func TestBucketCache(t *testing.T) {
	const (
		files  = "bucket: {type: FILESYSTEM, config: {directory: /tmp/b}%s}\n"
		remote = "bucket: {type: S3, config: {bucket: b, endpoint: s3.example.org, access_key: a, secret_key: b}%s}\n"
	)
	for _, c := range []struct {
		text, cache string
		want        units.Base2Bytes
	}{
		{files, "", 0},
		{remote, "", units.GiB},
		{remote, ", cache: {}", units.GiB},
		{remote, ", cache: null", units.GiB},
		{files, ", cache: {size: 10GB}", 10 * units.GiB},
		{remote, ", cache: {size: 500MB}", 500 * units.MiB},
		{remote, ", cache: {size: 0}", 0},
	} {
		path := filepath.Join(t.TempDir(), "tocsin.yml")
		require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, c.text, c.cache), 0o600))
		cfg, err := config.Load(path, self, nil)
		require.NoError(t, err)
		require.Equal(t, c.want, cfg.Bucket.Cache.Size, c.cache)
		require.Contains(t, fmt.Sprint(cfg.Bucket), c.want.String())
	}
	for cache, want := range map[string]string{
		"{size: -1GB}": "negative", "{size: much}": "size", "{size: 1GB, ttl: 1h}": "ttl", "5GB": "wrong type", "[]": "wrong type",
	} {
		fs := findings(t, fmt.Sprintf(remote, ", cache: "+cache), nil)
		require.NotEmpty(t, fs, cache)
		require.Contains(t, fs.Error(), want, cache)
		require.Equal(t, 1, fs[0].Line)
	}
}
