package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/alecthomas/units"
	"github.com/prometheus/common/model"
	"github.com/thanos-io/objstore"
	objclient "github.com/thanos-io/objstore/client"
	"github.com/thanos-io/objstore/providers/s3"
	"go.yaml.in/yaml/v3"
	gopkgyaml2 "gopkg.in/yaml.v2"
)

const (
	// maxSecretFileBytes bounds a file with one credential. The largest are service accounts and private keys, a few KiB.
	maxSecretFileBytes = 64 << 10
	maxPrefix          = 512
)

// Bucket says where in object storage blocks go. However it is printed, nothing secret is shown.
type Bucket struct {
	Type string `yaml:"type" reload:"no" doc:"Provider: FILESYSTEM, S3, SWIFT, GCS, AZURE, COS, ALIYUNOSS, BOS, OCI or OBS, in capitals or not. Required."`
	// Objstore is what objstore's client takes: type, config and prefix, credentials among it.
	Objstore ObjstoreConfig `yaml:"config" reload:"yes" doc:"The provider's own fields, as Thanos's objstore has them: <https://thanos.io/tip/thanos/storage.md/>. Required. For FILESYSTEM it is directory. Each credential can come from a file, see below."`
	Prefix   string         `yaml:"prefix" reload:"no" doc:"Put before the name of every object, with a slash between. For a bucket that others use too."`
	ProxyURL ProxyURL       `yaml:"proxy_url" reload:"yes" doc:"Proxy for all requests to the provider: http://, https:// or socks5://. Without it the environment variables HTTPS_PROXY, HTTP_PROXY and NO_PROXY hold. Not for FILESYSTEM, and not for BOS and OBS, whose clients take none."`
	// Retention is how long blocks are kept, by resolution.
	Retention BucketRetention `yaml:"retention" reload:"yes" doc:"How long blocks are kept in the bucket, for each resolution."`
	Cache     BucketCache     `yaml:"cache" reload:"yes" doc:"What was read of the bucket is kept on the disk of each replica."`
	// Name is the bucket, the container or, absolute, the folder.
	Name string `yaml:"-"`

	secrets secrets
}

// BucketRetention is how long blocks are kept in the bucket, by resolution; 0 means for ever.
type BucketRetention struct {
	Raw         model.Duration `yaml:"raw" default:"0s" reload:"yes" doc:"For blocks as they were uploaded. 0s means for ever. One that is older stays until what is kept longer was made of it."`
	FiveMinutes model.Duration `yaml:"5m" default:"0s" reload:"yes" doc:"For blocks that were downsampled to one point in 5 minutes. 0s means for ever. One that is older stays until what is kept longer at 1h was made of it."`
	OneHour     model.Duration `yaml:"1h" default:"0s" reload:"yes" doc:"For blocks that were downsampled to one point in an hour. 0s means for ever."`
}

// BucketCache says how much of what was read of the bucket is kept on disk.
type BucketCache struct {
	// Size is in bytes; 0 keeps nothing.
	Size units.Base2Bytes `yaml:"size" default:"1GB" reload:"yes" doc:"How much of blocks is kept, at most a quarter of the disk space that is free; the index headers of blocks may take as much again, or 1GB. Replicas share blocks out, so that together they keep as much as all of them may. 0 keeps nothing, and is the default for FILESYSTEM, which mostly is the same disk."`
}

// DefaultCacheSize is the cache of buckets that are not files, in bytes.
const DefaultCacheSize = units.GiB

// ObjstoreConfig is a configuration of objstore's client as YAML. However it is printed, nothing is shown.
type ObjstoreConfig []byte

// Format prints a placeholder, whatever the verb.
func (ObjstoreConfig) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, secretToken) }

// MarshalJSON gives a placeholder.
func (ObjstoreConfig) MarshalJSON() ([]byte, error) { return json.Marshal(secretToken) }

// MarshalYAML gives a placeholder.
func (ObjstoreConfig) MarshalYAML() (any, error) { return secretToken, nil }

// LogValue gives a placeholder.
func (ObjstoreConfig) LogValue() slog.Value { return slog.StringValue(secretToken) }

// ProxyURL is the address of a proxy, with its credentials. Printed, these are hidden.
type ProxyURL struct{ *url.URL }

// String is the address without credentials, "" for none.
func (p ProxyURL) String() string {
	if p.URL == nil {
		return ""
	}
	u := *p.URL
	if u.User != nil {
		u.User = url.User("hidden")
	}
	return strings.Replace(u.String(), "hidden@", secretToken+"@", 1)
}

// shown is what of the section may be printed.
type shownBucket struct {
	Type      string          `json:"type" yaml:"type"`
	Config    string          `json:"config" yaml:"config"`
	Prefix    string          `json:"prefix,omitempty" yaml:"prefix,omitempty"`
	ProxyURL  string          `json:"proxy_url,omitempty" yaml:"proxy_url,omitempty"`
	Retention BucketRetention `json:"retention" yaml:"retention"`
	Cache     BucketCache     `json:"cache" yaml:"cache"`
}

func (b Bucket) shown() shownBucket {
	return shownBucket{b.Type, secretToken, b.Prefix, b.ProxyURL.String(), b.Retention, b.Cache}
}

// Format prints the section without its secrets, whatever the verb.
func (b Bucket) Format(s fmt.State, _ rune) { _, _ = fmt.Fprintf(s, "%+v", b.shown()) }

// MarshalJSON gives the section without its secrets.
func (b Bucket) MarshalJSON() ([]byte, error) { return json.Marshal(b.shown()) }

// MarshalYAML gives the section without its secrets.
func (b Bucket) MarshalYAML() (any, error) { return b.shown(), nil }

// LogValue gives the section without its secrets.
func (b Bucket) LogValue() slog.Value {
	return slog.GroupValue(slog.String("type", b.Type), slog.String("name", b.Name), slog.String("prefix", b.Prefix))
}

// Redact hides the section's secrets in a sentence, those that came from files and from the environment too.
func (b *Bucket) Redact(text string) string { return b.secrets.redact(text) }

// RoundTripper makes a client's transport go through proxy_url. Where there is none, the transport stays as it is.
func (b *Bucket) RoundTripper(rt http.RoundTripper) http.RoundTripper {
	if b.ProxyURL.URL == nil {
		return rt
	}
	t, ok := rt.(*http.Transport)
	if !ok {
		return noProxy{}
	}
	t = t.Clone()
	t.Proxy = http.ProxyURL(b.ProxyURL.URL)
	return t
}

// noProxy refuses what could otherwise go past the proxy.
type noProxy struct{}

var errNoProxy = errors.New("this provider's client cannot be made to use proxy_url")

// RoundTrip implements http.RoundTripper.
func (noProxy) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_ = r.Body.Close() // Nothing was sent of it.
	}
	return nil, errNoProxy
}

// builtinBucket is the bucket of the built-in configuration; nil where the data directory is not known.
func builtinBucket(self Self) (*Bucket, error) {
	if self.StoragePath == "" {
		return nil, nil
	}
	dir, err := filepath.Abs(filepath.Join(self.StoragePath, "bucket"))
	if err != nil {
		return nil, err
	}
	b := &Bucket{Type: string(objstore.FILESYSTEM), Name: dir}
	err = b.write(map[string]string{"directory": dir})
	return b, err
}

// write fills in Objstore.
func (b *Bucket) write(cfg any) (err error) {
	b.Objstore, err = gopkgyaml2.Marshal(objclient.BucketConfig{Type: objstore.ObjProvider(b.Type), Config: cfg, Prefix: b.Prefix})
	if err != nil {
		return fmt.Errorf("write objstore's configuration: %w", err)
	}
	return nil
}

func (l *loader) bucket(cfg *Config, doc *section, v *yaml.Node) {
	switch {
	case v == nil:
		return
	case isNull(v):
		doc.add(v, "empty; give type and config, or leave the section out to keep blocks on this machine only")
		return
	case v.Kind != yaml.MappingNode:
		doc.add(v, "wrong type: want a mapping")
		return
	}
	b := &Bucket{}
	before := len(doc.found)
	at := map[string]*yaml.Node{}
	l.strictMapping(doc, v, []string{"type", "config", "prefix", "proxy_url", "retention", "cache"}, func(key string, v *yaml.Node) { at[key] = v })
	p := bucketType(doc, v, at["type"], b)
	b.Prefix = bucketPrefix(doc, at["prefix"])
	b.ProxyURL = bucketProxy(doc, at["proxy_url"], p)
	if n := at["retention"]; !isNull(n) {
		d := l.newDiagnosis(doc, func(text string) error {
			b.Retention = BucketRetention{}
			return gopkgyaml2.UnmarshalStrict([]byte(text), &b.Retention)
		})
		d.piece(n)
	}
	l.bucketCache(doc, at["cache"], b)
	switch n := at["config"]; {
	case n == nil:
		doc.add(v, "config is missing")
	case isNull(n) || n.Kind != yaml.MappingNode:
		doc.add(n, "wrong type: want a mapping")
	case p != nil:
		l.bucketConfig(doc, n, p, b)
	}
	if len(doc.found) > before {
		return
	}
	b.secrets.collect(v, "", false)
	b.secrets.sort()
	cfg.Bucket = b
}

func (l *loader) bucketCache(doc *section, n *yaml.Node, b *Bucket) {
	if objstore.ObjProvider(b.Type) != objstore.FILESYSTEM {
		b.Cache.Size = DefaultCacheSize
	}
	if isNull(n) {
		return
	}
	given := b.Cache
	d := l.newDiagnosis(doc, func(text string) error {
		b.Cache = given
		if err := gopkgyaml2.UnmarshalStrict([]byte(text), &b.Cache); err != nil {
			return err
		}
		if b.Cache.Size < 0 {
			return errors.New("size may not be negative")
		}
		return nil
	})
	d.piece(n)
}

func bucketType(doc *section, v, n *yaml.Node, b *Bucket) *provider {
	switch {
	case n == nil:
		doc.add(v, "type is missing; want one of %s", strings.Join(providerNames(), ", "))
		return nil
	case n.Kind != yaml.ScalarNode || isNull(n):
		doc.add(n, "wrong type: want a string")
		return nil
	}
	b.Type = strings.ToUpper(n.Value)
	p := providers[objstore.ObjProvider(b.Type)]
	if p == nil {
		doc.add(n, "want one of %s (given %s)", strings.Join(providerNames(), ", "), clip(n.Value))
	}
	return p
}

func bucketPrefix(doc *section, n *yaml.Node) string {
	if isNull(n) {
		return ""
	}
	if n.Kind != yaml.ScalarNode {
		doc.add(n, "wrong type: want a string")
		return ""
	}
	prefix := strings.Trim(n.Value, objstore.DirDelim)
	problem := ""
	switch {
	case prefix == "":
		return ""
	case len(prefix) > maxPrefix:
		problem = fmt.Sprintf("longer than %d bytes", maxPrefix)
	case !utf8.ValidString(prefix) || strings.ContainsFunc(prefix, unicode.IsControl):
		problem = "contains a control character"
	}
	for _, part := range strings.Split(prefix, objstore.DirDelim) {
		if part == "" || part == "." || part == ".." {
			problem = "has a part that is empty, . or .."
		}
	}
	if problem != "" {
		doc.add(n, "%s (given %s)", problem, clip(n.Value))
	}
	return prefix
}

func bucketProxy(doc *section, n *yaml.Node, p *provider) (proxy ProxyURL) {
	switch {
	case n == nil:
		return proxy
	case n.Kind != yaml.ScalarNode || strings.TrimSpace(n.Value) == "" || isNull(n):
		// A template whose variable is empty must not let everything go out directly.
		doc.add(n, "empty; give an address, or leave the field out for the proxy of the environment")
		return proxy
	case p != nil && p.noProxy != "":
		doc.add(n, "%s", p.noProxy)
		return proxy
	}
	u, err := url.Parse(n.Value)
	switch {
	case err != nil: // It quotes what was given.
		doc.add(n, "not a valid URL")
	case !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme):
		doc.add(n, "want an address that begins with http://, https:// or socks5:// (given %s)", clip(u.Redacted()))
	case u.Host == "":
		doc.add(n, "has no host (given %s)", clip(u.Redacted()))
	default:
		proxy.URL = u
	}
	return proxy
}

// bucketConfig reads the provider's own part, with the credentials that come from files put in.
func (l *loader) bucketConfig(doc *section, v *yaml.Node, p *provider, b *Bucket) {
	for _, kv := range pairs(v) {
		if slices.Contains(p.secrets, kv[0].Value) {
			doc.secrets.collect(kv[1], kv[0].Value, true)
		}
	}
	before := len(doc.found)
	fromFile := map[string]string{}
	skip := map[*yaml.Node]bool{}
	for _, name := range p.secrets {
		n := child(v, name+"_file")
		if n == nil {
			continue
		}
		skip[n] = true
		if child(v, name) != nil {
			doc.add(n, "%s is given as well; at most one of the two may be", name)
			continue
		}
		fromFile[name] = l.secretFile(doc, n)
	}
	for _, secret := range fromFile {
		b.secrets.addCredential(secret)
	}
	// Upstream's code must not be let near a file that is endless or huge.
	if n := child(v, "http_config"); n != nil {
		doc.checkFilesBelow(n)
	}
	if n, method := child(v, "sse_config", "encryption_key"), child(v, "sse_config", "type"); n != nil && method != nil && method.Value == s3.SSEC {
		doc.checkFileNode(n)
	}
	whole := len(doc.found) == before
	doc.secrets.values = append(doc.secrets.values, b.secrets.values...)
	doc.secrets.sort()

	var decoded any
	d := l.newDiagnosis(doc, func(text string) error {
		cfg := p.config()
		if err := gopkgyaml2.UnmarshalStrict([]byte(text), cfg); err != nil {
			return err
		}
		for name, secret := range fromFile {
			field(cfg, name).SetString(secret)
		}
		absolutePaths(cfg, doc.dir)
		if p.env != nil {
			if err := p.env(cfg); err != nil {
				return err
			}
		}
		decoded = cfg
		if !whole {
			return nil
		}
		return p.check(cfg)
	})
	for n := range skip {
		d.skip[n] = true
	}
	d.piece(v)
	if d.partial {
		doc.add(v, "there may be more: the search for problems was ended at its limit")
	}
	if len(doc.found) > before || decoded == nil {
		return
	}
	for _, name := range p.secrets {
		b.secrets.addCredential(field(decoded, name).String())
	}
	for _, name := range []string{"bucket", "container", "container_name", "directory"} {
		if f := field(decoded, name); f.IsValid() {
			b.Name = f.String()
		}
	}
	if b.ProxyURL.URL != nil && b.ProxyURL.User != nil {
		if password, ok := b.ProxyURL.User.Password(); ok {
			b.secrets.addCredential(password)
		}
	}
	if err := b.write(decoded); err != nil {
		doc.add(v, "%s", err.Error())
	}
}

// secretFile reads a credential. No finding shows anything of its content, nor its path, in whose place the credential may stand.
func (l *loader) secretFile(doc *section, n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode || isNull(n) || strings.TrimSpace(n.Value) == "" {
		doc.add(n, "want the path of a file")
		return ""
	}
	path := resolve(doc.dir, n.Value)
	b, err := readFile(path)
	if err != nil {
		doc.add(n, "read the file: %s", err.Error())
		return ""
	}
	b = bytes.TrimSpace(b)
	switch {
	case len(b) == 0:
		doc.add(n, "the file is empty")
		return ""
	case len(b) > maxSecretFileBytes:
		doc.add(n, "the file is larger than %d KiB, which no credential is", maxSecretFileBytes>>10)
		return ""
	case !utf8.Valid(b) || bytes.ContainsRune(b, 0):
		doc.add(n, "the file is not text")
		return ""
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o004 != 0 {
		l.logger.Warn("everybody on this machine can read a credential of the bucket; take the right to read it from others",
			"file", path, "mode", info.Mode().Perm().String())
	}
	return string(b)
}

// addCredential adds a secret and what of it an error may quote alone: a line of a key, a value of a JSON document or of a
// connection string, each also as it stands in an address.
func (s *secrets) addCredential(secret string) {
	if secret == "" {
		return
	}
	parts := []string{secret}
	for _, line := range strings.Split(secret, "\n") {
		if line = strings.TrimSpace(line); len(line) >= 16 && !strings.HasPrefix(line, "-----") {
			parts = append(parts, line)
		}
	}
	var account map[string]any
	if json.Unmarshal([]byte(secret), &account) == nil {
		for _, key := range []string{"private_key", "private_key_id", "client_secret", "refresh_token"} {
			if v, ok := account[key].(string); ok && v != "" {
				parts = append(parts, v)
			}
		}
	}
	if strings.Contains(secret, ";") && strings.Contains(secret, "=") {
		for _, kv := range strings.Split(secret, ";") {
			key, value, _ := strings.Cut(kv, "=")
			switch strings.ToLower(key) {
			case "accountkey":
				parts = append(parts, value)
			case "sharedaccesssignature":
				parts = append(parts, value)
				if q, err := url.ParseQuery(value); err == nil && q.Get("sig") != "" {
					parts = append(parts, q.Get("sig"))
				}
			}
		}
	}
	for _, p := range parts {
		s.values = append(s.values, p, url.QueryEscape(p), url.PathEscape(p))
	}
	s.sort()
}

// field is the field of a decoded structure that bears a name in YAML, the zero Value if there is none.
func field(cfg any, name string) reflect.Value {
	v := reflect.ValueOf(cfg).Elem()
	for i := range v.NumField() {
		if tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ","); tag == name && v.Type().Field(i).IsExported() {
			return v.Field(i)
		}
	}
	return reflect.Value{}
}

// absolutePaths makes every path of a decoded structure absolute.
func absolutePaths(cfg any, dir string) {
	walkStructs(reflect.ValueOf(cfg), 0, func(v reflect.Value) bool {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.IsExported() && f.Type.Kind() == reflect.String && isFileTag(f) {
				v.Field(i).SetString(resolve(dir, v.Field(i).String()))
			}
		}
		return true
	})
	if f := field(cfg, "directory"); f.IsValid() {
		f.SetString(resolve(dir, f.String()))
	}
	if f := field(cfg, "sse_config"); f.IsValid() {
		key := field(f.Addr().Interface(), "encryption_key") // The path of a file, whatever it is called.
		key.SetString(resolve(dir, key.String()))
	}
}

// immutableBucket names the fields of the bucket section that differ although they can only change with a restart.
func immutableBucket(old, next *Config) []string {
	if old.Bucket == nil || next.Bucket == nil {
		if (old.Bucket == nil) != (next.Bucket == nil) {
			return []string{"bucket"}
		}
		return nil
	}
	var fields []string
	if old.Bucket.Type != next.Bucket.Type {
		fields = append(fields, "bucket.type")
	}
	if old.Bucket.Prefix != next.Bucket.Prefix {
		fields = append(fields, "bucket.prefix")
	}
	return fields
}
