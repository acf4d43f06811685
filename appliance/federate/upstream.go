package federate

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/scrape"

	"github.com/tocsin-io/tocsin/appliance/config"
)

const (
	// maxRequestURIBytes is what servers and proxies take as a request line.
	// Prometheus registers /federate for GET only, so a longer list of
	// selectors is split into several requests.
	maxRequestURIBytes = 8000
	maxRedirects       = 5
)

// upstream is one item of the federation section, made ready for pulling. It
// does not change once built.
type upstream struct {
	cfg      *config.Upstream
	client   *http.Client
	requests []string // URLs, with selectors
	address  string   // host:port, for the instance label and for sentences
	filter   *filter
	target   *scrape.Target
	health   []labels.Labels // label sets of the health series, in healthNames order
}

// healthNames are the series that Prometheus keeps for each target.
var healthNames = [...]string{
	"up",
	"scrape_duration_seconds",
	"scrape_samples_scraped",
	"scrape_samples_post_metric_relabeling",
	"scrape_series_added",
}

func newUpstream(c *config.Upstream) (*upstream, error) {
	switch {
	case c.Name == "":
		return nil, errors.New("name is empty")
	case c.URL == nil || c.URL.URL == nil || c.URL.Host == "":
		return nil, errors.New("url is missing")
	case c.OriginLabel == "":
		return nil, errors.New("origin_label is empty")
	case c.Interval <= 0 || c.Timeout <= 0:
		return nil, errors.New("interval and timeout must be above zero")
	}
	f, err := newFilter(c)
	if err != nil {
		return nil, err
	}
	// One client per upstream: what it may show to one it never shows to
	// another. They share the conntrack name, whose metrics are never removed.
	client, err := commonconfig.NewClientFromConfig(c.HTTPClientConfig, "federate")
	if err != nil {
		return nil, fmt.Errorf("build the HTTP client: %w", err)
	}
	client.CheckRedirect = redirectPolicy(c.HTTPClientConfig.FollowRedirects)

	base := *c.URL.JoinPath("federate")
	base.Fragment = ""

	u := &upstream{
		cfg:      c,
		client:   client,
		requests: requestURLs(base, c.Metrics),
		address:  hostPort(&base),
		filter:   f,
	}

	b := labels.NewBuilder(labels.EmptyLabels())
	b.Set(model.JobLabel, "federate")
	b.Set(model.InstanceLabel, u.address)
	b.Set(c.OriginLabel, c.Name)
	for _, name := range healthNames {
		b.Set(model.MetricNameLabel, name)
		u.health = append(u.health, b.Labels())
	}
	b.Del(model.MetricNameLabel)
	b.Set(model.AddressLabel, base.Host)
	b.Set(model.SchemeLabel, base.Scheme)
	b.Set(model.MetricsPathLabel, base.Path)
	b.Set(model.ScrapeIntervalLabel, c.Interval.String())
	b.Set(model.ScrapeTimeoutLabel, c.Timeout.String())
	// The target shows neither the user part nor the query of the URL: both may
	// hold credentials.
	u.target = scrape.NewTarget(b.Labels(), &promconfig.ScrapeConfig{
		JobName:        "federate",
		Scheme:         base.Scheme,
		MetricsPath:    base.Path,
		ScrapeInterval: c.Interval,
		ScrapeTimeout:  c.Timeout,
	}, model.LabelSet{model.AddressLabel: model.LabelValue(base.Host)}, nil)
	return u, nil
}

// requestURLs spreads the selectors over as few requests as the URL length
// allows, in their order. A selector that alone is too long is sent alone.
func requestURLs(base url.URL, metrics []config.Metric) []string {
	fixed := base.RawQuery
	empty := len(base.RequestURI())
	var (
		urls  []string
		query = fixed
		size  = empty
	)
	flush := func() {
		u := base
		u.RawQuery = query
		urls = append(urls, u.String())
		query, size = fixed, empty
	}
	asked := make(map[string]bool, len(metrics))
	for _, m := range metrics {
		if asked[m.Match] {
			continue // the same selector with other labels: the first one rules
		}
		asked[m.Match] = true
		p := url.QueryEscape("match[]") + "=" + url.QueryEscape(m.Match)
		if size+len(p)+1 > maxRequestURIBytes && query != fixed {
			flush()
		}
		if query != "" {
			query += "&"
		}
		query += p
		size += len(p) + 1
	}
	if query != fixed || len(urls) == 0 {
		flush()
	}
	return urls
}

// redirectPolicy follows a redirect only within the server that was configured,
// or from http to https on it. Elsewhere would mean data, and perhaps
// credentials, of one upstream in the hands of another.
func redirectPolicy(follow bool) func(*http.Request, []*http.Request) error {
	return func(req *http.Request, via []*http.Request) error {
		first := via[0].URL
		to := hostPort(req.URL)
		if !follow {
			return &redirectError{to: to, why: "follow_redirects is off"}
		}
		if len(via) > maxRedirects {
			return &redirectError{to: to, why: fmt.Sprintf("it was redirected more than %d times", maxRedirects)}
		}
		sameServer := req.URL.Scheme == first.Scheme && to == hostPort(first)
		upgrade := first.Scheme == "http" && req.URL.Scheme == "https" && strings.EqualFold(req.URL.Hostname(), first.Hostname())
		if !sameServer && !upgrade {
			return &redirectError{to: to, why: "an upstream may not redirect to another server"}
		}
		return nil
	}
}

// hostPort names the server of u, with the port that its scheme implies.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "80"
		if u.Scheme == "https" {
			port = "443"
		}
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// nextPull is the first moment after now that lies at this upstream's place in
// the interval. The place follows from its name, so pulls are spread over the
// interval and stay where they are across restarts and reloads.
func (u *upstream) nextPull(now time.Time) time.Time {
	interval := int64(u.cfg.Interval)
	offset := int64(xxhash.Sum64String(u.cfg.Name) % uint64(interval))
	since := (now.UnixNano() - offset) % interval
	return now.Round(0).Add(time.Duration(interval - since))
}
