package config

import (
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestSecretAddressesAreHiddenInParts holds that of an address that is a secret nothing is told by a server that repeats
// its path, as many do with what they do not know; and that a path which is a word of its own stays one.
func TestSecretAddressesAreHiddenInParts(t *testing.T) {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(`
receivers:
  - slack_configs: [{api_url: "https://hooks.example/services/T0/B0/a%20b%2Fc"}]
    webhook_configs: [{url: "https://hook.example/alerts?token=not-for-all"}]
`), &doc); err != nil {
		t.Fatal(err)
	}
	var s secrets
	s.collect(doc.Content[0], "", false)
	s.sort()
	for _, text := range []string{
		"404: the requested URL /services/T0/B0/a%20b%2Fc was not found",
		"404: the requested URL /services/T0/B0/a b/c was not found",
		"403: /alerts?token=not-for-all",
	} {
		got := s.redact(text)
		if strings.Contains(got, "T0") || strings.Contains(got, "not-for-all") || !strings.Contains(got, secretToken) {
			t.Errorf("%s\nbecame %s", text, got)
		}
	}
	if text := "cannot read /etc/tocsin/alerts/page.tmpl"; s.redact(text) != text {
		t.Errorf("%s\nbecame %s", text, s.redact(text))
	}
}
