package config

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/thanos-io/objstore"
)

// Manual is the reference manual of tocsin.yml in Markdown. It is written from
// the structs and the embedded texts, so that it cannot differ from them.
func Manual() string {
	var b strings.Builder
	b.WriteString(manualHead)

	b.WriteString("\n## prometheus\n\n" + manualPrometheus)
	b.WriteString("\n## alertmanager\n\n" + manualAlertmanager)

	b.WriteString("\n## replica\n\nWhich of the replicas this process is.\n\n")
	fields(&b, "replica.", reflect.TypeFor[Replica]())
	b.WriteString("\n```yaml\nreplica:\n  name: monitor-a\n  zone: zone-1\n```\n")

	b.WriteString("\n## cluster\n\n" + manualCluster)
	fields(&b, "cluster.", reflect.TypeFor[Cluster]())
	b.WriteString("\n" + manualPeers)

	b.WriteString("\n## federation\n\n" + manualFederation)
	fields(&b, "federation[].", reflect.TypeFor[Upstream]())
	b.WriteString("\nEach item of `metrics`:\n\n")
	fields(&b, "federation[].metrics[].", reflect.TypeFor[Metric]())
	b.WriteString("\n" + manualFederationExample)

	b.WriteString("\n## bucket\n\n" + manualBucket)
	fields(&b, "bucket.", reflect.TypeFor[Bucket]())
	b.WriteString("\n`bucket.retention`:\n\n")
	fields(&b, "bucket.retention.", reflect.TypeFor[BucketRetention]())
	b.WriteString("\n`bucket.cache`:\n\n")
	fields(&b, "bucket.cache.", reflect.TypeFor[BucketCache]())
	b.WriteString("\n" + manualCredentials())

	b.WriteString("\n## config_from\n\n" + manualConfigFrom)
	fields(&b, "config_from.", reflect.TypeFor[Source]())
	b.WriteString("\n## bucket_sd_configs\n\n" + manualBucketSD)
	fields(&b, "bucket_sd_configs[].", reflect.TypeFor[BucketSD]())

	fmt.Fprintf(&b, "\n## Limits\n\n"+manualLimits,
		CeilingBodyBytes>>20, CeilingSamples, CeilingLabels, CeilingLabelBytes>>10)

	b.WriteString("\n## The built-in configuration\n\n")
	b.WriteString("This is what holds without a file, and for each of the two sections that a file leaves out. ")
	b.WriteString("In `{{ }}` stand this process's own address, its path prefix and the host's name.\n\n")
	fmt.Fprintf(&b, "`prometheus`:\n\n```yaml\n%s```\n\n`alertmanager`:\n\n```yaml\n%s```\n", builtinPrometheus, builtinAlertmanager)
	return b.String()
}

// fields writes one table of a struct's fields from its tags.
func fields(b *strings.Builder, prefix string, t reflect.Type) {
	b.WriteString("| Field | Type | Default | Reloads | Meaning |\n|---|---|---|---|---|\n")
	for f := range structFields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "-" || !f.IsExported() {
			continue
		}
		shown, kind := "`"+prefix+name+"`", typeInWords(f.Type)
		if strings.Contains(options, "inline") {
			shown, kind = "HTTP client options", "fields"
		}
		value := f.Tag.Get("default")
		if value == "" {
			value = "–"
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", shown, kind, value, f.Tag.Get("reload"), strings.ReplaceAll(f.Tag.Get("doc"), "|", `\|`))
	}
}

func structFields(t reflect.Type) func(yield func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if !yield(t.Field(i)) {
				return
			}
		}
	}
}

func typeInWords(t reflect.Type) string {
	switch t.Name() {
	case "Duration":
		return "duration"
	case "Base2Bytes":
		return "size"
	case "ObjstoreConfig":
		return "mapping"
	case "ProxyURL":
		return "url"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return strings.ToLower(t.Elem().Name())
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct {
			return "list of mappings"
		}
		return "list of " + typeInWords(t.Elem()) + "s"
	case reflect.Map:
		return "mapping of strings"
	case reflect.Struct:
		return "mapping"
	case reflect.Uint:
		return "number"
	}
	return t.Kind().String()
}

const manualHead = `# Configuration

This page is generated from the source; change it there.

Tocsin reads one YAML file, ` + "`tocsin.yml`" + ` (` + "`--config.file`" + `, by default ` + "`/etc/tocsin/tocsin.yml`" + `). Without a file
at the default path the built-in configuration at the end of this page holds; a file that was named and is not there is
an error. What needs a restart is a flag ([cli.md](cli.md)), what reloads is in the file, nothing is in both.

| Section | What it holds | If it is left out |
|---|---|---|
| ` + "`prometheus`" + ` | a Prometheus configuration, unchanged: a path, or the content itself | built-in: scrape this process and its host, keep 15 days |
| ` + "`alertmanager`" + ` | an Alertmanager configuration, unchanged: a path, or the content itself | built-in: write alerts to the log |
| ` + "`replica`" + ` | which of the replicas this is | name: the host name, zone: found out |
| ` + "`cluster`" + ` | which replicas belong together, and how they find each other | this replica stands alone: nothing is gossiped, no port is opened for it |
| ` + "`federation`" + ` | Prometheus servers to pull chosen metrics from | none |
| ` + "`bucket`" + ` | the object storage that blocks go to | none; without a file at all, a folder of the data directory |
| ` + "`config_from`" + ` | that the other sections come from the bucket | they stand in the file |

**Paths.** A relative path is relative to the file it stands in: in ` + "`tocsin.yml`" + ` to the folder of ` + "`tocsin.yml`" + `, in an outside
` + "`prometheus.yml`" + ` to the folder of that file.

**Strictness.** An unknown field, a wrong type or a missing file is an error that names file, line, field and what was
given. ` + "`tocsin check FILE`" + ` finds everything that ` + "`tocsin run`" + ` would refuse, all of it at once, including rules, routes, receivers,
templates, certificates and secret files. Secrets are never printed.

**Reload.** ` + "`SIGHUP`" + ` or ` + "`POST /-/reload`" + ` reads the file again. It is checked as a whole first; if anything is wrong, nothing
changes. A changed field that does not reload is refused by its name.

**Size.** A file above 16 MiB is refused, and so is anything that is not a regular file.

**Durations** are written as in Prometheus: ` + "`30s`" + `, ` + "`5m`" + `, ` + "`1h30m`" + `, ` + "`15d`" + `. **Sizes** likewise: ` + "`64MB`" + `, ` + "`1GB`" + `; units are powers of two.
`

const manualPrometheus = "The format is Prometheus's own: <https://prometheus.io/docs/prometheus/latest/configuration/configuration/>.\n" + `Every section of it is honoured: ` + "`global`, `runtime`, `rule_files`, `scrape_configs`, `scrape_config_files`, `alerting`," + `
` + "`remote_write`, `remote_read`, `storage`, `otlp`, `tracing`" + `, with every kind of service discovery. Four things differ from stock Prometheus:

- ` + "`storage.tsdb.out_of_order_time_window`" + ` is 2h if it is left out, because a replica that catches up writes late samples.
  Write ` + "`0s`" + ` to switch that off.
- ` + "`runtime.gogc`" + ` is 50 if neither the file nor the environment variable GOGC sets it: garbage is collected earlier.
- A path without wildcards in ` + "`rule_files`" + ` or ` + "`scrape_config_files`" + ` that does not exist is an error, and so is a missing
  certificate or secret file.
- Alerts always go to the embedded Alertmanager; those under ` + "`alerting.alertmanagers`" + ` get them as well.

` + "```yaml\nprometheus: prometheus.yml            # relative to tocsin.yml\n```\n\n```yaml\nprometheus:\n  global:\n    scrape_interval: 30s\n  scrape_configs:\n    - job_name: node\n      file_sd_configs:\n        - files: [targets/*.json]\n```\n"

const manualAlertmanager = "The format is Alertmanager's own: <https://prometheus.io/docs/alerting/latest/configuration/>.\n" + `Every receiver, template, time interval and inhibition rule works. Two things differ from stock Alertmanager:

- Every relative path is relative to the file it stands in, also that of fields like ` + "`smtp_auth_password_file`" + `, which stock
  Alertmanager takes relative to its working directory.
- A mistake in a template, in a template file or in a receiver's field, is an error at once and not when a notification is due.

` + "```yaml\nalertmanager: alertmanager.yml        # relative to tocsin.yml\n```\n"

const manualCluster = `Which replicas belong together, and how they find each other. A replica that stands alone needs no such section. Adding or
removing it needs a restart.

`

const manualPeers = `A peer is written in one of these ways. Names are looked up again and again, for IPv4 and IPv6 addresses alike.

| Form | Meaning |
|---|---|
| ` + "`10.0.0.1`, `10.0.0.1:9094`" + ` | an address; without a port, ` + "`9094`" + ` |
| ` + "`2001:db8::1`, `[2001:db8::1]:9094`" + ` | an IPv6 address, in brackets if a port follows |
| ` + "`host`, `host:9094`" + `, and the same after ` + "`dns+`" + ` | every address of a name |
| ` + "`dnssrv+_name._tcp.example.org`" + ` | every host and port that the SRV records of a name give |

` + "```yaml" + `
cluster:
  name: production
  peers: [10.0.0.1, 10.0.1.1, 10.0.2.1]   # the same list on each
  key_file: cluster.key                   # made with: tocsin cluster keygen
` + "```" + `

**The key** is as secret as a root password: who holds it is a replica. Everything between replicas is encrypted with it and
refused without it. To change it without an outage, add the new key as the second line of the file on each replica and reload,
then put it first on each and reload, then take the old one out on each and reload.

**The rendezvous**, ` + "`rendezvous: bucket`" + `, spares the list of peers: each replica keeps a small object with its address in the bucket, below
` + "`rendezvous/<name of the cluster>/`" + `, signed with the cluster key, and reads those of the others. A new replica that has the name, the key and
the bucket finds the mesh within seconds, whatever the addresses of the others are now. Peers can be configured beside it. While the bucket
is away, a mesh goes on; only a replica that starts then has to know a peer, from its configuration or from before.

` + "```yaml" + `
cluster: {name: production, key_file: cluster.key, rendezvous: bucket}
bucket: {type: S3, config: {bucket: tocsin, endpoint: s3.example.org}}
` + "```" + `
`

const manualFederation = `A list of Prometheus servers to pull from with their ` + "`/federate`" + ` endpoint. It denies by default: a series that no item of
` + "`metrics`" + ` matches is not stored, a label that the item does not list is dropped, whatever the upstream sends. Several items may match one
series; the first one decides.

`

const manualFederationExample = "```yaml\n" + `federation:
  - name: search                      # becomes source="search" on every series
    url: https://prometheus.search.example.org
    interval: 30s
    basic_auth:
      username: tocsin
      password_file: secrets/search
    labels: {tier: upstream}
    metrics:
      - match: '{__name__=~"job:.*"}'
        labels: [job, code]
      - match: up
        labels: [job, instance]
` + "```\n"

const manualConfigFrom = "A file with this section has `bucket`, `cluster` and `replica` beside it and nothing else: all other sections are in `tocsin.yml` below the\n" +
	"prefix in the bucket, with the rule files, templates and target files that it names. [operations.md](operations.md) says how to change them.\n" +
	"Adding, changing or removing the section needs a restart.\n\n"

const manualBucketSD = "A kind of service discovery beside Prometheus's own, in `scrape_configs` and `alerting.alertmanagers`: targets in the format of\n" +
	"`file_sd_configs`, from the bucket of the `bucket` section. At most 1,000 objects of 10 MiB each, 100 MiB together. Each target has the label\n" +
	"`__meta_bucket_object`, the name of its object, and `__meta_filepath` with the same value. While the bucket is away or an object is broken, its last good\n" +
	"targets stay. Stock `promtool` does not know the kind; `tocsin check` does.\n\n"

const manualBucket = `Where in object storage blocks go. Adding or removing the section needs a restart. Without a file at all there is a bucket of type
FILESYSTEM in the folder ` + "`bucket`" + ` of the data directory.

`

// manualCredentials lists the fields that can come from files, as the reader knows them.
func manualCredentials() string {
	var b strings.Builder
	b.WriteString(manualCredentialsHead)
	b.WriteString("| Type | Fields that a file can hold | Without them |\n|---|---|---|\n")
	for _, name := range providerNames() {
		p := providers[objstore.ObjProvider(name)]
		if len(p.secrets) > 0 {
			fmt.Fprintf(&b, "| %s | `%s` | %s |\n", name, strings.Join(p.secrets, "`, `"), p.without)
		}
	}
	return b.String() + manualCredentialsTail
}

const manualCredentialsHead = `Each credential in ` + "`config`" + ` can come from a file: instead of ` + "`secret_key: VALUE`" + ` write ` + "`secret_key_file: PATH`" + `. White space at the
begin and the end of the content is not part of it, and 64 KiB are the most. The file is read at the start and at each reload.

`

const manualCredentialsTail = `
Every path in ` + "`config`" + ` may be relative: ` + "`directory`" + ` of FILESYSTEM, the files below ` + "`http_config.tls_config`" + `, ` + "`sse_config.encryption_key`" + ` of S3.
` + "`trace`" + ` of S3 is refused: it would write credentials to the log.

` + "`proxy_url`" + ` is for the requests to the storage itself. Who has no credentials in ` + "`config`" + ` gets them from the machine or from a token service by
the provider's own library, and that knows only the proxy of the environment variables.

` + "```yaml" + `
bucket:
  type: S3
  config:
    bucket: tocsin
    endpoint: s3.eu-central-1.amazonaws.com
    region: eu-central-1
    access_key_file: secrets/access_key
    secret_key_file: secrets/secret_key
  prefix: production
  proxy_url: http://proxy.example.org:3128
  retention: {raw: 30d, 5m: 180d, 1h: 2y}
` + "```" + `
`

const manualLimits = `A target or upstream that exceeds a limit costs bounded memory: that scrape is refused with a sentence and the target is marked down,
all others go on.

| Limit | Built-in scrape jobs | Federation | Why this much |
|---|---|---|---|
| ` + "`body_size_limit`" + ` | 1MB | 50MB | the body is held in memory while it is read, and see below; a node_exporter sends 0.2 MB |
| ` + "`sample_limit`" + ` | 50000 | 50000 | every new series stays in memory for hours, about 1.5 KB each |
| ` + "`label_limit`" + ` | 64 | 64 | more labels on one series are a mistake in instrumentation |
| ` + "`label_name_length_limit`" + ` | 512 | 512 | bytes; names are held once for each series |
| ` + "`label_value_length_limit`" + ` | 4096 | 4096 | bytes; long enough for a URL, too short for a document |

Raise ` + "`body_size_limit`" + ` for the jobs whose targets send more **and that you trust**: Prometheus's parser of the protobuf
format needs about 500 bytes of memory for each byte of a body that is made for the purpose, and from 2 MB on such a body
ends the process. Which format a target answers in is the target's choice. Federation is not affected.

In a ` + "`prometheus`" + ` section of your own Prometheus's defaults hold, which are no limits: set them under ` + "`global`" + `.
In ` + "`federation`" + ` 0 or anything larger means the ceilings: %dMB, %d samples, %d labels and %d KiB for a name or a value.
`
