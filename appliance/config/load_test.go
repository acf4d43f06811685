package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tocsin-io/tocsin/appliance/config"
)

func TestBuiltin(t *testing.T) {
	for name, self := range map[string]config.Self{
		"ordinary": self,
		"no prefix, IPv6, odd instance": {
			Address: "[::1]:0", RoutePrefix: "/", Instance: `a"b: {{ .Address }} #`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := config.Builtin(self)
			require.NoError(t, err)
			require.Empty(t, cfg.Path)
			require.Equal(t, "log", cfg.LogReceiver)
			require.Equal(t, "log", cfg.Alertmanager.Route.Receiver)
			require.Equal(t, "auto", cfg.Replica.Zone)
			require.NotEmpty(t, cfg.Replica.Name)
			require.Empty(t, cfg.Federation)
			require.Nil(t, cfg.Cluster)
			require.Empty(t, cfg.ClusterKeys)
			require.Len(t, cfg.ScrapeConfigs, 2)

			prefix := strings.TrimSuffix(self.RoutePrefix, "/")
			require.Equal(t, "tocsin", cfg.ScrapeConfigs[0].JobName)
			require.Equal(t, prefix+"/metrics", cfg.ScrapeConfigs[0].MetricsPath)
			require.Equal(t, "node", cfg.ScrapeConfigs[1].JobName)
			require.Equal(t, prefix+"/metrics/node", cfg.ScrapeConfigs[1].MetricsPath)
			for _, sc := range cfg.ScrapeConfigs {
				require.EqualValues(t, 1<<20, sc.BodySizeLimit)
				require.EqualValues(t, 50_000, sc.SampleLimit)
				require.EqualValues(t, 64, sc.LabelLimit)
				require.EqualValues(t, 512, sc.LabelNameLengthLimit)
				require.EqualValues(t, 4096, sc.LabelValueLengthLimit)
				require.Equal(t, model.Duration(15*time.Second), sc.ScrapeInterval)
			}
			text := cfg.Prometheus.String()
			require.Contains(t, text, self.Address)
			storage := cfg.Prometheus.StorageConfig
			require.Equal(t, model.Duration(15*24*time.Hour), storage.TSDBConfig.Retention.Time)
			require.EqualValues(t, (2 * time.Hour).Milliseconds(), storage.TSDBConfig.OutOfOrderTimeWindow)
			require.NotNil(t, storage.ExemplarsConfig)
		})
	}
}

func TestAbsentSectionsAreBuiltin(t *testing.T) {
	for _, file := range []string{"testdata/empty.good.yml", "testdata/comments.good.yml"} {
		cfg, err := config.Load(file, self, nil)
		require.NoError(t, err)
		require.True(t, filepath.IsAbs(cfg.Path))
		require.Equal(t, "log", cfg.LogReceiver)
		require.Len(t, cfg.ScrapeConfigs, 2)
	}
}

func TestRealistic(t *testing.T) {
	cfg, err := config.Load("testdata/realistic.good.yml", self, nil)
	require.NoError(t, err)
	require.Empty(t, cfg.LogReceiver)
	require.Equal(t, config.Replica{Name: "replica-a", Zone: "zone-1"}, cfg.Replica)
	require.Equal(t, "production", cfg.Cluster.Name)
	require.Len(t, cfg.Cluster.Peers, 4)
	require.Len(t, cfg.ClusterKeys, 2)

	require.Len(t, cfg.ScrapeConfigs, 6)
	require.Equal(t, "database", cfg.ScrapeConfigs[5].JobName)
	require.Len(t, cfg.RuleFiles, 2)
	require.Len(t, cfg.Alertmanager.Receivers, 5)
	require.Equal(t, (30 * time.Minute).Milliseconds(), cfg.Prometheus.StorageConfig.TSDBConfig.OutOfOrderTimeWindow)
	require.EqualValues(t, 50000, cfg.Prometheus.StorageConfig.ExemplarsConfig.MaxExemplars)

	absolute := append([]string{
		cfg.Path,
		cfg.ScrapeConfigs[2].HTTPClientConfig.Authorization.CredentialsFile,
		cfg.ScrapeConfigs[5].HTTPClientConfig.BasicAuth.PasswordFile,
		cfg.Prometheus.RemoteWriteConfigs[0].HTTPClientConfig.BasicAuth.PasswordFile,
		cfg.Alertmanager.Global.SMTPAuthPasswordFile,
		cfg.Alertmanager.Global.SlackAPIURLFile,
		cfg.Alertmanager.Receivers[3].SlackConfigs[0].APIURLFile,
		cfg.Alertmanager.Receivers[2].PagerdutyConfigs[0].RoutingKeyFile,
		cfg.Alertmanager.Receivers[4].WebhookConfigs[0].HTTPConfig.Authorization.CredentialsFile,
		cfg.Federation[0].HTTPClientConfig.BasicAuth.PasswordFile,
		cfg.Cluster.KeyFile,
	}, cfg.RuleFiles...)
	for _, path := range absolute {
		require.True(t, filepath.IsAbs(path), path)
		require.FileExists(t, path)
	}
	require.True(t, filepath.IsAbs(cfg.Alertmanager.Templates[0]))

	up := cfg.Federation[0]
	require.Equal(t, "source", up.OriginLabel)
	require.Equal(t, model.Duration(30*time.Second), up.Interval)
	require.Equal(t, model.Duration(10*time.Second), up.Timeout)
	require.EqualValues(t, 50<<20, up.BodySizeLimit)
	require.EqualValues(t, 50_000, up.SampleLimit)
	require.True(t, up.HTTPClientConfig.FollowRedirects)
	require.Len(t, up.Metrics[0].Matchers, 1)
}

func TestOutOfOrderWindow(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want time.Duration
	}{
		"absent":        {"prometheus: {}\n", 2 * time.Hour},
		"storage only":  {"prometheus:\n  storage: {tsdb: {retention: {time: 1d}}}\n", 2 * time.Hour},
		"explicit zero": {"prometheus:\n  storage: {tsdb: {out_of_order_time_window: 0s}}\n", 0},
		"given":         {"prometheus:\n  storage: {tsdb: {out_of_order_time_window: 5m}}\n", 5 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "tocsin.yml")
			require.NoError(t, os.WriteFile(path, []byte(c.text), 0o644))
			cfg, err := config.Load(path, self, nil)
			require.NoError(t, err)
			require.Equal(t, c.want.Milliseconds(), cfg.Prometheus.StorageConfig.TSDBConfig.OutOfOrderTimeWindow)
			require.NotNil(t, cfg.Prometheus.StorageConfig.ExemplarsConfig)
		})
	}
}

func TestFindings(t *testing.T) {
	const upstream = "federation:\n- name: u\n  url: http://h\n"
	for name, c := range map[string]struct {
		text  string
		files map[string]string
		want  []string // "FILE:LINE: FIELD", in order
	}{
		"comment above an inline section": {
			text: "# a\n\nprometheus:\n\n  # b\n  global:\n    # c\n    scrape_interval: soon\n\nreplica: {zone: z}\n",
			want: []string{"tocsin.yml:8: prometheus.global.scrape_interval"},
		},
		"windows line ends": {
			text: "replica:\r\n  name: a\r\nprometheus:\r\n  global:\r\n    scrape_interval: 15s\r\n    nope: 1\r\n",
			want: []string{"tocsin.yml:6: prometheus.global.nope"},
		},
		"flow style": {
			text: "replica: {name: a}\nprometheus: {global: {nope: 1,\n  scrape_interval: soon}}\n",
			want: []string{"tocsin.yml:2: prometheus.global.nope", "tocsin.yml:3: prometheus.global.scrape_interval"},
		},
		"alias into another section": {
			text: "federation:\n- &u\n  name: u\n  url: http://h\n  interval: &i soon\nprometheus:\n  global:\n    scrape_interval: *i\n",
			want: []string{"tocsin.yml:5: federation[0].interval", "tocsin.yml:8: prometheus.global.scrape_interval"},
		},
		"merge key": {
			text: "prometheus:\n  scrape_configs:\n  - &a\n    job_name: a\n    scheme: http\n  - <<: *a\n    job_name: b\n    nope: 1\n",
			want: []string{"tocsin.yml:8: prometheus.scrape_configs[1].nope"},
		},
		"outside prometheus.yml": {
			text:  "prometheus: sub/prometheus.yml\n",
			files: map[string]string{"sub/prometheus.yml": "global:\n  nope: 1\nscrape_configs:\n- job_name: ''\nrule_files: [none.yml, 'r*.yml']\n", "sub/r1.yml": "groups:\n- name: g\n  rules:\n  - record: a\n    expr: (\n"},
			want:  []string{"sub/prometheus.yml:2: global.nope", "sub/prometheus.yml:4: scrape_configs[0]", "sub/prometheus.yml:5: rule_files[0]", "sub/r1.yml:5: groups[0].rules[0]"},
		},
		"outside scrape_config_files": {
			text:  "prometheus:\n  scrape_config_files: [s.yml, none.yml]\n  scrape_configs: [{job_name: a}]\n",
			files: map[string]string{"s.yml": "scrape_configs:\n- job_name: a\n- job_name: b\n  scheme: [x]\n  scrape_interval: 1s\n  scrape_timeout: 2s\n  bearer_token_file: none\n"},
			want:  []string{"tocsin.yml:2: prometheus.scrape_config_files[1]", "s.yml:2: scrape_configs[0].job_name", "s.yml:4: scrape_configs[1].scheme", "s.yml:6: scrape_configs[1].scrape_timeout", "s.yml:7: scrape_configs[1].bearer_token_file"},
		},
		"outside alertmanager.yml": {
			text:  "alertmanager: am.yml\n",
			files: map[string]string{"am.yml": "route: {receiver: r}\nreceivers:\n- name: r\n  webhook_configs:\n  - url_file: none\n    nope: 1\ntemplates: [t.tmpl]\n", "t.tmpl": "\n{{ end }}"},
			want:  []string{"am.yml:5: receivers[0].webhook_configs[0].url_file", "am.yml:6: receivers[0].webhook_configs[0].nope", "t.tmpl:2: "},
		},
		"missing outside file":     {text: "replica: {name: a}\nprometheus: none.yml\n", want: []string{"tocsin.yml:2: prometheus"}},
		"outside file is a folder": {text: "alertmanager: .\n", want: []string{"tocsin.yml:1: alertmanager"}},
		"outside file is a device": {text: "alertmanager: /dev/zero\n", want: []string{"tocsin.yml:1: alertmanager"}},
		"certificate is a device":  {text: upstream + "  tls_config: {ca_file: /dev/zero}\n", want: []string{"tocsin.yml:4: federation[0].tls_config.ca_file"}},
		"syntax in outside file": {
			text: "prometheus: p.yml\n", files: map[string]string{"p.yml": "global:\n  a: b: c\n"},
			want: []string{"p.yml:2: "},
		},
		"syntax":                {text: "replica:\n  name: [a\n", want: []string{"tocsin.yml:2: "}},
		"not a mapping":         {text: "- a\n", want: []string{"tocsin.yml:1: "}},
		"two documents":         {text: "replica: {name: a}\n---\nreplica: {name: b}\n", want: []string{"tocsin.yml:2: "}},
		"unknown anchor":        {text: "replica:\n  name: *n\n", want: []string{"tocsin.yml:2: "}},
		"control character":     {text: "replica:\n  name: a\x00\n", want: []string{"tocsin.yml:2: "}},
		"not text":              {text: "replica: {name: \xff}\n", want: []string{"tocsin.yml: "}},
		"section given twice":   {text: "replica: {name: a}\nreplica: {name: b}\n", want: []string{"tocsin.yml:2: replica"}},
		"empty section":         {text: "\nprometheus:\n", want: []string{"tocsin.yml:2: prometheus"}},
		"wrong kind of section": {text: "prometheus: [a]\nalertmanager: 1\nreplica: a\nfederation: {}\n", want: []string{"tocsin.yml:1: prometheus", "tocsin.yml:2: alertmanager", "tocsin.yml:3: replica", "tocsin.yml:4: federation"}},
		"replica names":         {text: "replica:\n  name: [a]\n  zone: ''\n", want: []string{"tocsin.yml:2: replica.name", "tocsin.yml:3: replica.zone"}},
		"later sections":        {text: "bucket: {type: S3}\naccess: {}\nheartbeat: []\n", want: []string{"tocsin.yml:1: bucket", "tocsin.yml:2: access", "tocsin.yml:3: heartbeat"}},
		"empty upstream":        {text: "federation:\n-\n", want: []string{"tocsin.yml:2: federation[0]"}},
		"upstream lacks all":    {text: "federation:\n- {metrics: [{labels: [a]}]}\n", want: []string{"tocsin.yml:2: federation[0]", "tocsin.yml:2: federation[0]", "tocsin.yml:2: federation[0].metrics[0]"}},
		"upstream intervals":    {text: upstream + "  interval: 0s\n", want: []string{"tocsin.yml:4: federation[0].interval"}},
		"upstream credentials":  {text: "federation:\n- name: u\n  url: http://a:b@h\n", want: []string{"tocsin.yml:3: federation[0].url"}},
		"upstream http client":  {text: upstream + "  basic_auth: {username: a, password: b, password_file: c}\n  proxy_url: 'http://['\n", want: []string{"tocsin.yml:4: federation[0].basic_auth.password_file", "tocsin.yml:4: federation[0].basic_auth.password_file", "tocsin.yml:5: federation[0].proxy_url"}},
		"origin label":          {text: upstream + "  origin_label: __name__\n  labels: {x: 1, __y: z}\n", want: []string{"tocsin.yml:4: federation[0].origin_label", "tocsin.yml:5: federation[0].labels.__y"}},
		"kept origin label":     {text: upstream + "  origin_label: o\n  metrics:\n  - match: up\n    labels: [a, o, __name__]\n", want: []string{"tocsin.yml:7: federation[0].metrics[0].labels[1]", "tocsin.yml:7: federation[0].metrics[0].labels[2]"}},
		"label given twice":     {text: upstream + "  labels:\n    a: b\n    a: c\n", want: []string{"tocsin.yml:6: federation[0].labels.a"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			fs := findings(t, c.text, c.files)
			for _, f := range fs {
				at := f.File
				if f.Line > 0 {
					at += fmt.Sprintf(":%d", f.Line)
				}
				got = append(got, at+": "+f.Field)
			}
			require.Equal(t, c.want, got, "%s", fs.Error())
		})
	}
}

func TestMissingAndHugeFiles(t *testing.T) {
	_, err := config.Load(filepath.Join(t.TempDir(), "none.yml"), self, nil)
	require.ErrorContains(t, err, "no such file")

	path := filepath.Join(t.TempDir(), "tocsin.yml")
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(17<<20))
	require.NoError(t, f.Close())
	_, err = config.Load(path, self, nil)
	require.ErrorContains(t, err, "larger than 16 MiB")
}

func TestAliasBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [*a%[3]d,*a%[3]d,*a%[3]d,*a%[3]d,*a%[3]d,*a%[3]d,*a%[3]d,*a%[3]d]\n", i, i, i-1)
	}
	fs := findings(t, b.String(), nil)
	require.Len(t, fs, 1)
	require.Contains(t, fs[0].Problem, "aliases")

	fs = findings(t, "replica: &a [*a]\n", nil)
	require.NotEmpty(t, fs)

	fs = findings(t, "replica: "+strings.Repeat("[", 5000)+strings.Repeat("]", 5000)+"\n", nil)
	require.NotEmpty(t, fs)
}

// TestManyJobs holds the search for causes to its bound: one mistake in each of
// many jobs is found without trying all jobs for each.
func TestManyJobs(t *testing.T) {
	var b strings.Builder
	b.WriteString("prometheus:\n  scrape_configs:\n")
	for i := range 3000 {
		fmt.Fprintf(&b, "  - job_name: j%d\n    static_configs: [{targets: ['a:1']}]\n", i)
		if i%1000 == 7 {
			b.WriteString("    relabel_configs: [{action: nope}]\n")
		}
	}
	fs := findings(t, b.String(), nil)
	require.Len(t, fs, 3, fs.Error())
	require.Equal(t, "prometheus.scrape_configs[1007].relabel_configs[0].action", fs[1].Field)
}

func TestSecretsAreNotPrinted(t *testing.T) {
	const secret = "s3cr3t-V4lue"
	places := map[string]string{
		"where it belongs":   "federation:\n- name: u\n  url: http://h\n  basic_auth: {username: a, password: %s}\n",
		"instead of a block": "federation:\n- name: u\n  url: http://h\n  basic_auth: %s\n",
		"in the address":     "federation:\n- name: u\n  url: http://u:%s@h:x\n",
		"as a header":        "federation:\n- name: u\n  url: http://h\n  http_headers: {A: {values: %s}}\n",
		"remote write":       "prometheus:\n  remote_write:\n  - url: 'http://u:%s@h:x'\n",
		"remote write both":  "prometheus:\n  remote_write:\n  - url: http://h\n    basic_auth: {password: %s, password_file: f}\n",
		"token as list":      "prometheus:\n  scrape_configs:\n  - job_name: j\n    authorization: {credentials: [%s]}\n    bearer_token: x\n",
		"discovery":          "prometheus:\n  scrape_configs:\n  - job_name: j\n    consul_sd_configs: [{server: '', token: %s}]\n",
		"inline key":         "prometheus:\n  scrape_configs:\n  - job_name: j\n    tls_config: {cert: x, key: %s}\n",
		"webhook":            "alertmanager:\n  route: {receiver: r}\n  receivers: [{name: r, webhook_configs: [{url: 'http://h:x/%s'}]}]\n",
		"slack":              "alertmanager:\n  route: {receiver: r}\n  receivers: [{name: r, slack_configs: [{api_url: '%s'}]}]\n",
		"smtp":               "alertmanager:\n  global: {smtp_auth_password: %s, smtp_auth_password_file: x}\n  route: {receiver: r}\n  receivers: [{name: r}]\n",
		"smtp as number":     "alertmanager:\n  global: {smtp_require_tls: x, smtp_auth_password: {a: %s}}\n  route: {receiver: r}\n  receivers: [{name: r}]\n",
		"template":           "alertmanager:\n  route: {receiver: r}\n  receivers: [{name: r, pagerduty_configs: [{routing_key: '{{ %s'}]}]\n",
	}
	for name, text := range places {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "tocsin.yml")
			require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, text, secret), 0o644))
			cfg, err := config.Load(path, self, nil)
			var out string
			if err != nil {
				out = fmt.Sprintf("%v %+v %#v", err, err, err)
			} else {
				out = fmt.Sprintf("%v %+v %s %s", cfg, cfg, cfg.Prometheus, cfg.Alertmanager)
				for _, u := range cfg.Federation {
					out += fmt.Sprintf("%v %+v %s", u, u, u)
				}
			}
			t.Log(out)
			require.NotContains(t, out, secret)
			require.NotContains(t, out, secret[:7])
		})
	}
}

func TestImmutable(t *testing.T) {
	with := func(name, zone string, scheme model.ValidationScheme) *config.Config {
		return &config.Config{
			Replica:    config.Replica{Name: name, Zone: zone},
			Prometheus: &promconfig.Config{GlobalConfig: promconfig.GlobalConfig{MetricNameValidationScheme: scheme}},
		}
	}
	old := with("a", "z", model.UTF8Validation)
	require.NoError(t, config.Immutable(old, with("a", "z", model.UTF8Validation)))
	require.EqualError(t, config.Immutable(old, with("b", "y", model.UTF8Validation)),
		"replica.name and replica.zone changed, which needs a restart")
	require.EqualError(t, config.Immutable(old, with("a", "z", model.LegacyValidation)),
		"prometheus.global.metric_name_validation_scheme changed, which needs a restart")
}

func TestWhatUpstreamRefusesLate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tocsin.yml")
	require.NoError(t, os.WriteFile(file, []byte(`prometheus:
  global: {query_log_file: none/query.log}
  remote_write:
    - url: http://a.example/
    - url: http://a.example/
  scrape_configs:
    - job_name: j
      scrape_failure_log_file: none/failures.log
`), 0o600))
	_, err := config.Load(file, self, nil)
	require.ErrorContains(t, err, "tocsin.yml:2: prometheus.global.query_log_file: there is no folder")
	require.ErrorContains(t, err, "tocsin.yml:5: prometheus.remote_write[1]: it is the same as item 0")
	require.ErrorContains(t, err, "tocsin.yml:8: prometheus.scrape_configs[0].scrape_failure_log_file: there is no folder")
}

// TestNoGoroutine holds the package to its promise.
func TestNoGoroutine(t *testing.T) {
	before := goleak.IgnoreCurrent()
	_, err := config.Load("testdata/realistic.good.yml", self, nil)
	require.NoError(t, err)
	_, err = config.Load("testdata/everything.bad.yml", self, nil)
	require.Error(t, err)
	goleak.VerifyNone(t, before)
}

// FuzzLoad holds the reading of tocsin.yml to its promises: it never panics,
// and it gives a configuration or findings, not both and not neither.
func FuzzLoad(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yml")
	require.NoError(f, err)
	more, err := filepath.Glob("testdata/realistic/*.yml")
	require.NoError(f, err)
	for _, file := range append(files, more...) {
		b, err := os.ReadFile(file)
		require.NoError(f, err)
		f.Add(b)
		f.Add(append([]byte("prometheus:\n  "), strings.ReplaceAll(string(b), "\n", "\n  ")...))
		f.Add(append([]byte("alertmanager:\n  "), strings.ReplaceAll(string(b), "\n", "\n  ")...))
	}
	f.Add([]byte("alertmanager:\n  global: {slack_app_token: x, slack_api_url_file: y}\n  route: {receiver: r}\n  receivers: [{name: r}]\n"))
	f.Add([]byte("alertmanager:\n  global: {http_config: }\n  route: {receiver: r}\n  receivers: [{name: r, slack_configs: [{api_url: 'http://h'}, ]}]\n"))
	f.Add([]byte("federation: &a\n- *a\n"))
	f.Add([]byte("cluster: {name: a, peers: [h, 'dns+h:1', dnssrv+_a._tcp.b, '[::1]:2'], key_file: tocsin.yml, advertise_address: 'h:1'}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, far := range []string{"/*", "/?", "/[", "/dev", "/proc", "/sys"} {
			if strings.Contains(string(text), far) {
				t.Skip("reaches into this machine's files")
			}
		}
		path := filepath.Join(t.TempDir(), "tocsin.yml")
		require.NoError(t, os.WriteFile(path, text, 0o644))
		start := time.Now()
		cfg, err := config.Load(path, self, nil)
		require.Less(t, time.Since(start), time.Minute)
		require.NotEqual(t, cfg == nil, err == nil)
		if err == nil {
			return
		}
		var fs config.Findings
		require.ErrorAs(t, err, &fs)
		require.NotEmpty(t, fs)
		for _, f := range fs {
			require.NotEmpty(t, f.File)
			require.NotEmpty(t, f.Problem)
		}
	})
}

func TestGarbageIsCollectedEarlierUnlessSomebodySays(t *testing.T) {
	for name, c := range map[string]struct {
		env, text string
		want      int
	}{
		"nobody says":          {"", "", 50},
		"the file says":        {"", "prometheus: {runtime: {gogc: 90}}\n", 90},
		"the file says 75":     {"", "prometheus: {runtime: {gogc: 75}}\n", 75},
		"the environment says": {"60", "", 75},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("GOGC", c.env)
			file := filepath.Join(t.TempDir(), "tocsin.yml")
			require.NoError(t, os.WriteFile(file, []byte(c.text), 0o600))
			cfg, err := config.Load(file, config.Self{Address: "localhost:9090", Instance: "x"}, nil)
			require.NoError(t, err)
			require.Equal(t, c.want, cfg.Prometheus.Runtime.GoGC)
		})
	}
}
