package config

import (
	_ "embed"
	"encoding/json"
	"strings"
)

//go:embed builtin/prometheus.yml
var builtinPrometheus string

//go:embed builtin/alertmanager.yml
var builtinAlertmanager string

// builtinLogReceiver is the receiver of builtin/alertmanager.yml that the log
// stands behind.
const builtinLogReceiver = "log"

// builtinPrometheusFor fills in our own address. The values are written as JSON
// strings, which are YAML strings, so that no value can change the structure.
func builtinPrometheusFor(self Self) string {
	quote := func(s string) string {
		b, err := json.Marshal(s)
		if err != nil { // A Go string always marshals.
			return `""`
		}
		return string(b)
	}
	prefix := strings.TrimSuffix(self.RoutePrefix, "/")
	if prefix != "" && !strings.HasPrefix(prefix, "/") {
		prefix = "/" + prefix
	}
	return strings.NewReplacer(
		"{{ .Prefix }}/metrics/node", quote(prefix+"/metrics/node"),
		"{{ .Prefix }}/metrics", quote(prefix+"/metrics"),
		"{{ .Address }}", quote(self.Address),
		"{{ .Instance }}", quote(self.Instance),
	).Replace(builtinPrometheus)
}
