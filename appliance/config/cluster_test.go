package config_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	promconfig "github.com/prometheus/prometheus/config"
	"github.com/stretchr/testify/require"
	yaml2 "go.yaml.in/yaml/v2"
	"go.yaml.in/yaml/v3"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// newKeys gives n lines that may stand in a key file.
func newKeys(t *testing.T, n int) []string {
	t.Helper()
	var lines []string
	for range n {
		line, err := config.NewClusterKey()
		require.NoError(t, err)
		lines = append(lines, line)
	}
	return lines
}

func TestNewClusterKey(t *testing.T) {
	keys := newKeys(t, 2)
	require.NotEqual(t, keys[0], keys[1])
	b, err := base64.StdEncoding.DecodeString(keys[0])
	require.NoError(t, err)
	require.Len(t, b, 32)
}

func TestParsePeer(t *testing.T) {
	for given, want := range map[string]string{ // The one spelling, or what the error says after "error: ".
		"10.0.0.1":                      "10.0.0.1:9094",
		"10.0.0.1:1":                    "10.0.0.1:1",
		"::ffff:10.0.0.1":               "10.0.0.1:9094",
		"2001:db8::1":                   "[2001:db8::1]:9094",
		"[2001:DB8:0::1]":               "[2001:db8::1]:9094",
		"[2001:db8::1]:65535":           "[2001:db8::1]:65535",
		"Host":                          "host:9094",
		"host.example.org.":             "host.example.org:9094",
		"my_service:9095":               "my_service:9095",
		"dns+host":                      "host:9094",
		"dns+host:1":                    "host:1",
		"dnssrv+_t._tcp.example.org":    "dnssrv+_t._tcp.example.org",
		"1host":                         "1host:9094",
		"2001:db8::9094":                "[2001:db8::9094]:9094",
		"1:2:3:4:5:6:7:9094":            "[1:2:3:4:5:6:7:9094]:9094",
		"[::1:9094]":                    "[::1:9094]:9094",
		"::1:9095":                      "[::1:9095]:9094",
		"::1:9094":                      "error: an IPv6 address with a port is written [::1]:9094",
		"2001:db8:0::1:9094":            "error: an IPv6 address with a port is written [2001:db8:0::1]:9094",
		"":                              "error: the host is missing",
		":9094":                         "error: the host is missing",
		"dns+":                          "error: the host is missing",
		"dnssrv+":                       "error: the host is missing",
		".":                             "error: the host is missing",
		"10.0.0.256":                    "error: looks like an IP address",
		"10.0.0":                        "error: looks like an IP address",
		"010.0.0.1":                     "error: looks like an IP address",
		"10.0.0.1:0":                    "error: the port is not a number",
		"10.0.0.1:":                     "error: the port is not a number",
		"[::1]:":                        "error: the port is not a number",
		"host:+1":                       "error: the port is not a number",
		"host:65536":                    "error: the port is not a number",
		"host:http":                     "error: the port is not a number",
		"[10.0.0.1]:1":                  "error: what stands in brackets",
		"[host]:1":                      "error: what stands in brackets",
		"[::1":                          "error: a [ without its ]",
		"[::1]9094":                     "error: something other than a port",
		"0.0.0.0":                       "error: the unspecified address",
		"::":                            "error: the unspecified address",
		"224.0.0.1":                     "error: not the address of one machine",
		"255.255.255.255":               "error: not the address of one machine",
		"fe80::1%eth0":                  "error: an address with a zone",
		"http://host":                   "error: the port is not a number",
		"a b":                           "error: neither an IP address nor a host name",
		"-a":                            "error: neither an IP address nor a host name",
		"a..b":                          "error: neither an IP address nor a host name",
		"a\x00":                         "error: neither an IP address nor a host name",
		"höst":                          "error: neither an IP address nor a host name",
		strings.Repeat("a", 64):         "error: neither an IP address nor a host name",
		strings.Repeat("a.", 127) + "a": "error: the host is longer",
		"dns+10.0.0.1":                  "error: dns+ wants a name",
		"dnssrv+10.0.0.1":               "error: dnssrv+ wants a name",
		"dnssrv+_t._tcp.example.org:1":  "error: dnssrv+ takes the port",
		"dns+dnssrv+host":               "error: neither an IP address nor a host name",
	} {
		t.Run(given, func(t *testing.T) {
			p, err := config.ParsePeer(given)
			if problem, bad := strings.CutPrefix(want, "error: "); bad {
				require.ErrorContains(t, err, problem)
				return
			}
			require.NoError(t, err)
			require.Equal(t, want, p.String())
			// The one spelling is a spelling.
			again, err := config.ParsePeer(p.String())
			require.NoError(t, err)
			require.Equal(t, p.String(), again.String())
		})
	}
}

func FuzzParsePeer(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "[::1]:1", "dns+host:1", "dnssrv+_a._tcp.b", "a:b:c", "[", "host."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := config.ParsePeer(s)
		if err != nil {
			return
		}
		again, err := config.ParsePeer(p.String())
		require.NoError(t, err, p.String())
		require.Equal(t, p.String(), again.String())
	})
}

func TestClusterSection(t *testing.T) {
	keys := newKeys(t, 9)
	for name, c := range map[string]struct {
		text, key string
		want      []string // findings, in order: each contains its string
	}{
		"the least":       {text: "cluster: {name: a}\n"},
		"no peers":        {text: "cluster: {name: a, peers: []}\n"},
		"peers left open": {text: "cluster: {name: a, peers: }\n"},
		"no address":      {text: "cluster: {name: a, advertise_address: ''}\n"},
		"all":             {text: "cluster: {name: A.b_c-1, peers: [h, 'dns+h:1', 10.0.0.1], key_file: key, advertise_address: 'h:1'}\n", key: keys[0] + "\n"},
		"IPv6 only":       {text: "cluster: {name: a, peers: ['2001:db8::1'], advertise_address: '2001:db8::2'}\n"},
		"several keys":    {text: "cluster: {name: a, key_file: key}\n", key: "\xef\xbb\xbf# one\r\n  " + keys[0] + " \r\n\r\n\t" + keys[1]},
		"most keys":       {text: "cluster: {name: a, key_file: key}\n", key: strings.Join(keys[:8], "\n")},

		"rendezvous": {text: "cluster: {name: a, key_file: key, rendezvous: bucket}\nbucket: {type: FILESYSTEM, config: {directory: b}}\n", key: keys[0]},

		"rendezvous elsewhere":      {text: "cluster: {name: a, key_file: key, rendezvous: dns}\n", key: keys[0], want: []string{"cluster.rendezvous: want bucket"}},
		"rendezvous of nothing":     {text: "cluster: {name: a, key_file: key, rendezvous: ''}\n", key: keys[0], want: []string{"cluster.rendezvous: want bucket"}},
		"rendezvous without bucket": {text: "cluster:\n  name: a\n  key_file: key\n  rendezvous: bucket\n", key: keys[0], want: []string{"tocsin.yml:4: cluster.rendezvous: there is no bucket section"}},
		"rendezvous without key": {
			text: "cluster: {name: a, rendezvous: bucket}\nbucket: {type: FILESYSTEM, config: {directory: b}}\n",
			want: []string{"tocsin.yml:1: cluster.rendezvous: it wants a cluster key"},
		},

		"empty":             {text: "cluster:\n", want: []string{"tocsin.yml:1: cluster: empty"}},
		"a list":            {text: "cluster: [a]\n", want: []string{"tocsin.yml:1: cluster: wrong type"}},
		"no name":           {text: "cluster: {peers: [h]}\n", want: []string{"tocsin.yml:1: cluster: name is missing"}},
		"empty name":        {text: "cluster: {name: ''}\n", want: []string{"tocsin.yml:1: cluster.name: may not be empty"}},
		"name is null":      {text: "cluster: {name: }\n", want: []string{"tocsin.yml:1: cluster.name: wrong type"}},
		"long name":         {text: "cluster: {name: " + strings.Repeat("a", 65) + "}\n", want: []string{"cluster.name: longer than 64"}},
		"name of a folder":  {text: "cluster: {name: ..}\nreplica: {name: ., zone: ..}\n", want: []string{"cluster.name: names a folder", "replica.name: names a folder", "replica.zone: names a folder"}},
		"slash in name":     {text: "cluster: {name: a/b}\n", want: []string{"cluster.name: want letters"}},
		"unknown field":     {text: "cluster: {name: a, keyfile: k}\n", want: []string{"cluster.keyfile: unknown field"}},
		"peers as text":     {text: "cluster: {name: a, peers: h}\n", want: []string{"cluster.peers: wrong type: want a list"}},
		"peer forms":        {text: "cluster: {name: a, peers: ['http://h']}\n", want: []string{"cluster.peers[0]: the port is not a number from 1 to 65535; a peer is written as 10.0.0.1,"}},
		"peer twice":        {text: "cluster:\n  name: a\n  peers:\n  - 10.0.0.1\n  - h\n  - 10.0.0.1:9094\n", want: []string{"tocsin.yml:6: cluster.peers[2]: \"10.0.0.1:9094\" is already listed in line 4"}},
		"too many peers":    {text: "cluster: {name: a, peers: [h" + strings.Repeat(", h", 64) + "]}\n", want: []string{"cluster.peers: 65 peers"}},
		"advertise nothing": {text: "cluster: {name: a, advertise_address: '0.0.0.0:1'}\n", want: []string{"cluster.advertise_address: the unspecified address"}},
		"advertise a form":  {text: "cluster: {name: a, advertise_address: 'dns+h'}\n", want: []string{"cluster.advertise_address: neither"}},

		"advertise a bare port": {
			text: "cluster: {name: a, advertise_address: '2001:db8::2:9094'}\n",
			want: []string{"cluster.advertise_address: an IPv6 address with a port is written [2001:db8::2]:9094"},
		},
		"peer with a bare port": {
			text: "cluster: {name: a, peers: ['::1:9094']}\n",
			want: []string{"cluster.peers[0]: an IPv6 address with a port is written [::1]:9094"},
		},

		// A variable of a template that was empty must not take the encryption away.
		"key file left empty": {
			text: "cluster:\n  name: a\n  key_file: \"\"\n",
			want: []string{"tocsin.yml:3: cluster.key_file: empty; leave the field out"},
		},
		"key file of spaces": {text: "cluster: {name: a, key_file: ' '}\n", want: []string{"cluster.key_file: empty"}},
		"key file missing":   {text: "cluster: {name: a, key_file: none}\n", want: []string{"tocsin.yml:1: cluster.key_file: read file \"none\": no such file"}},
		"key file a folder":  {text: "cluster: {name: a, key_file: .}\n", want: []string{"cluster.key_file: read file \".\": not a regular file"}},
		"key file a device":  {text: "cluster: {name: a, key_file: /dev/zero}\n", want: []string{"cluster.key_file: read file \"/dev/zero\": not a regular file"}},
		"key file empty":     {text: "cluster: {name: a, key_file: key}\n", key: "# nothing\n\n", want: []string{"key: holds no key"}},
		"key in the config":  {text: "cluster: {name: a, key_file: " + keys[0] + "}\n", want: []string{"cluster.key_file: this is a key itself"}},
		"key as a peer":      {text: "cluster: {name: a, peers: [" + keys[0] + "]}\n", want: []string{"(given <secret>)"}},
		"key as a name":      {text: "cluster: {name: " + keys[0] + "}\n", want: []string{"(given <secret>)"}},
		"too many keys":      {text: "cluster: {name: a, key_file: key}\n", key: strings.Join(keys, "\n"), want: []string{"key:9: more than 8 keys"}},
		"key twice":          {text: "cluster: {name: a, key_file: key}\n", key: keys[0] + "\n\n" + keys[0], want: []string{"key:3: the same key as in line 1"}},
		"key of zeros":       {text: "cluster: {name: a, key_file: key}\n", key: base64.StdEncoding.EncodeToString(make([]byte, 32)), want: []string{"key:1: not a secret"}},
		"several mistakes": {
			text: "cluster: {key_file: key}\n",
			key:  keys[0] + "\n" + keys[1][:40] + "\n" + keys[2] + "AAAA\n" + strings.ReplaceAll(keys[3], "=", "!") + "\n" + keys[4] + " # mine\n",
			want: []string{"tocsin.yml:1: cluster: name is missing", "key:2: not a key", "key:3: not a key", "key:4: not a key", "key:5: not a key"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			fs := findings(t, c.text, map[string]string{"key": c.key})
			require.Len(t, fs, len(c.want), fs.Error())
			for i, f := range fs {
				require.Contains(t, f.Error(), c.want[i])
				for _, k := range keys {
					require.NotContains(t, f.Error(), k[:12])
				}
			}
		})
	}
}

// load writes a configuration beside a key file and loads it.
func load(t *testing.T, text, key string, logger *slog.Logger) *config.Config {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "key"), []byte(key), 0o600))
	path := filepath.Join(dir, "tocsin.yml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	cfg, err := config.Load(path, self, logger)
	require.NoError(t, err)
	return cfg
}

func TestClusterKeysInOrder(t *testing.T) {
	keys := newKeys(t, 2)
	cfg := load(t, "cluster: {name: a, key_file: key}\n", "# first\n"+keys[0]+"\n# second\n"+keys[1]+"\n", nil)
	require.True(t, filepath.IsAbs(cfg.Cluster.KeyFile))
	require.Len(t, cfg.ClusterKeys, 2)
	for i, k := range keys {
		require.Equal(t, k, base64.StdEncoding.EncodeToString(cfg.ClusterKeys[i]))
	}
}

// TestClusterKeysAreNotPrinted prints a configuration in every way that somebody could come upon.
func TestClusterKeysAreNotPrinted(t *testing.T) {
	key := newKeys(t, 1)[0]
	cfg := load(t, "cluster: {name: a, key_file: key}\n", key, nil)
	raw := cfg.ClusterKeys[0]
	part := struct{ Keys config.Keys }{cfg.ClusterKeys}
	asJSON, err := json.Marshal(part)
	require.NoError(t, err)
	asYAML, err := yaml.Marshal(part)
	require.NoError(t, err)
	asYAML2, err := yaml2.Marshal(part)
	require.NoError(t, err)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("text", "keys", cfg.ClusterKeys, "part", part)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("json", "keys", cfg.ClusterKeys, "part", part)
	out := fmt.Sprintf("%v %+v %#v %s %q %x %X %d", part, part, part, part, part, part, part, part) +
		fmt.Sprintf("%v %s %x %d %v", cfg.ClusterKeys, cfg.ClusterKeys, cfg.ClusterKeys, cfg.ClusterKeys, *cfg) +
		string(asJSON) + string(asYAML) + string(asYAML2) + log.String()
	require.Contains(t, out, "<secret>")
	for _, form := range []string{
		key[:12], string(raw[:8]), fmt.Sprintf("%x", raw[:6]), fmt.Sprintf("%X", raw[:6]),
		fmt.Sprintf("%d %d %d %d", raw[0], raw[1], raw[2], raw[3]), fmt.Sprintf("%d,%d,%d,%d", raw[0], raw[1], raw[2], raw[3]),
	} {
		require.NotContains(t, out, form)
	}
}

func TestClusterWarnings(t *testing.T) {
	key := newKeys(t, 1)[0]
	for name, c := range map[string]struct {
		text string
		want string // "" for no warning
	}{
		"loopback among loopbacks": {"cluster: {name: a, advertise_address: 127.0.0.1, peers: ['127.0.0.2:1', localhost, '[::1]:1']}\n", ""},
		"loopback alone":           {"cluster: {name: a, advertise_address: 127.0.0.1}\n", ""},
		"loopback to the outside":  {"cluster: {name: a, advertise_address: 'localhost:1', peers: [127.0.0.1, 10.0.0.1]}\n", "cannot reach"},
		"loopback to a service":    {"cluster: {name: a, advertise_address: '::1', peers: [dnssrv+_a._tcp.b]}\n", "cannot reach"},
		"ordinary":                 {"cluster: {name: a, advertise_address: 10.0.0.2, peers: [10.0.0.1]}\n", ""},
		"key of mode 600":          {"cluster: {name: a, key_file: key}\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			load(t, c.text, key, slog.New(slog.NewTextHandler(&log, nil)))
			if c.want == "" {
				require.Empty(t, log.String())
				return
			}
			require.Contains(t, log.String(), c.want)
		})
	}

	t.Run("key that everybody can read", func(t *testing.T) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "key"), []byte(key), 0o600))
		require.NoError(t, os.Chmod(filepath.Join(dir, "key"), 0o644))
		path := filepath.Join(dir, "tocsin.yml")
		require.NoError(t, os.WriteFile(path, []byte("cluster: {name: a, key_file: key}\n"), 0o600))
		var log bytes.Buffer
		_, err := config.Load(path, self, slog.New(slog.NewTextHandler(&log, nil)))
		require.NoError(t, err)
		require.Contains(t, log.String(), "everybody")
		require.NotContains(t, log.String(), key)
	})
}

func TestClusterImmutable(t *testing.T) {
	one, two := config.Keys{make([]byte, 32)}, config.Keys{make([]byte, 32), make([]byte, 32)}
	with := func(c *config.Cluster, keys config.Keys) *config.Config {
		return &config.Config{Prometheus: &promconfig.Config{}, Cluster: c, ClusterKeys: keys}
	}
	a := &config.Cluster{Name: "a", Peers: []string{"h"}, KeyFile: "/k"}
	for name, c := range map[string]struct {
		old, next *config.Config
		want      string
	}{
		"alone":             {with(nil, nil), with(nil, nil), ""},
		"peers":             {with(a, nil), with(&config.Cluster{Name: "a", Peers: []string{"i"}}, nil), ""},
		"rotation":          {with(a, one), with(&config.Cluster{Name: "a", KeyFile: "/l"}, two), ""},
		"added":             {with(nil, nil), with(a, one), "cluster"},
		"removed":           {with(a, one), with(nil, nil), "cluster"},
		"name":              {with(a, nil), with(&config.Cluster{Name: "b"}, nil), "cluster.name"},
		"advertise address": {with(a, nil), with(&config.Cluster{Name: "a", AdvertiseAddress: "h"}, nil), "cluster.advertise_address"},
		"rendezvous":        {with(a, nil), with(&config.Cluster{Name: "a", Rendezvous: "bucket"}, nil), "cluster.rendezvous"},
		"key to none":       {with(a, one), with(a, nil), "cluster.key_file"},
		"none to key":       {with(a, nil), with(a, one), "cluster.key_file"},
	} {
		t.Run(name, func(t *testing.T) {
			err := config.Immutable(c.old, c.next)
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, c.want+" changed, which needs a restart")
		})
	}
}
