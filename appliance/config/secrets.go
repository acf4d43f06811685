package config

import (
	"cmp"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

const secretToken = "<secret>"

var (
	// secretKey matches fields whose value, or anything below it, is secret.
	// It errs on the side of hiding: a hidden harmless value costs a look into
	// the file, a shown secret cannot be taken back.
	secretKey = regexp.MustCompile(`(?i)(passw|secret|token|credential|api_?key|apikey|_key$|^key$|webhook_url|api_url|^headers$|header$|^http_headers$|^incidentio|^passphrase$|^privatekey$|^service_account$|connection_string$|^access_key_id$)`)
	// authKey matches fields that are structures holding a secret; whoever
	// writes a plain value there wrote the secret itself.
	authKey = regexp.MustCompile(`^(basic_auth|authorization|oauth2|sigv4|azuread|google_iam|tls_config|http_config)$`)
	// userInfo matches credentials in an address.
	userInfo = regexp.MustCompile(`://[^\s"'<>]*@`)
)

// secrets are the secret values of one text.
type secrets struct{ values []string }

func isSecretKey(key string) bool {
	return secretKey.MatchString(key) && !strings.HasSuffix(key, "_file") && !strings.HasSuffix(key, "_files") && !strings.HasSuffix(key, "_ref")
}

func (s *secrets) collect(n *yaml.Node, key string, below bool) {
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Value == "" {
			return
		}
		if below || authKey.MatchString(key) {
			s.hide(n.Value)
			return
		}
		if u := userInfo.FindString(n.Value); u != "" {
			u = strings.TrimSuffix(strings.TrimPrefix(u, "://"), "@")
			s.hide(n.Value)
			s.values = append(s.values, u)
			if _, password, ok := strings.Cut(u, ":"); ok && password != "" {
				s.values = append(s.values, password)
			}
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i].Value
			// A webhook's address is its password.
			hide := below && !strings.HasSuffix(k, "_file") || isSecretKey(k) || key == "webhook_configs" && k == "url"
			s.collect(n.Content[i+1], k, hide)
		}
	case yaml.SequenceNode:
		for _, v := range n.Content {
			s.collect(v, key, below)
		}
	}
}

// longestPlain is up to how long the path of an address says nothing, and is a word like /alerts that stands elsewhere too.
const longestPlain = 12

// hide takes a value as a secret. Of an address that is one, so are path and query by themselves: a server that does not
// know them says so by repeating them.
func (s *secrets) hide(value string) {
	s.values = append(s.values, value)
	u, err := url.Parse(value)
	if err != nil || u.Host == "" {
		return
	}
	for _, part := range []string{u.Path, u.EscapedPath(), u.RawQuery} {
		if len(part) > longestPlain {
			s.values = append(s.values, part)
		}
	}
}

// sort puts long values first, so that no part of one survives.
func (s *secrets) sort() {
	slices.SortFunc(s.values, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(b), len(a)), strings.Compare(a, b))
	})
	s.values = slices.Compact(s.values)
}

// has tells whether a value is a secret of this text.
func (s *secrets) has(value string) bool { return slices.Contains(s.values, value) }

var (
	truncated  = regexp.MustCompile("`([^`]*)\\.\\.\\.`")
	quotations = [][2]string{{`"`, `"`}, {"'", "'"}, {"`", "`"}}
)

// redact hides every secret in a sentence, also where a library shortened it.
func (s *secrets) redact(text string) string {
	text = truncated.ReplaceAllStringFunc(text, func(m string) string {
		part := truncated.FindStringSubmatch(m)[1]
		for _, v := range s.values {
			if strings.HasPrefix(v, part) {
				return secretToken
			}
		}
		return m
	})
	for _, v := range s.values {
		if len(v) >= 4 {
			text = strings.ReplaceAll(text, v, secretToken)
			continue
		}
		// A short value stands in ordinary words too; hide it where it is quoted.
		for _, q := range quotations {
			text = strings.ReplaceAll(text, q[0]+v+q[1], secretToken)
		}
	}
	return userInfo.ReplaceAllString(text, "://"+secretToken+"@")
}
