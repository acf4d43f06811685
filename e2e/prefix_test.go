package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// proxy is a reverse proxy that serves the backend below a path, and takes that off where strip is set.
type proxy struct {
	*httptest.Server
	backend atomic.Pointer[url.URL]
}

func newProxy(t *testing.T, path string, strip bool) *proxy {
	t.Helper()
	p := &proxy{}
	mux := http.NewServeMux()
	mux.HandleFunc(path+"/", func(w http.ResponseWriter, r *http.Request) {
		rp := httputil.ReverseProxy{Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(p.backend.Load())
			pr.SetXForwarded()
			if strip {
				pr.Out.URL.Path = strings.TrimPrefix(pr.In.URL.Path, path)
				pr.Out.URL.RawPath = ""
			}
		}}
		rp.ServeHTTP(w, r)
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

func (p *proxy) to(t *testing.T, backend string) {
	t.Helper()
	u, err := url.Parse(backend)
	if err != nil {
		t.Fatal(err)
	}
	p.backend.Store(u)
}

// follow gets a page as a browser would, and returns where it ended.
func follow(address string) (status int, at *url.URL, body string, err error) {
	for range 5 {
		status, header, body, err := exchange(http.MethodGet, address, "", "")
		if err != nil {
			return 0, nil, "", err
		}
		from, err := url.Parse(address)
		if err != nil {
			return 0, nil, "", err
		}
		if status < 300 || status > 399 {
			return status, from, body, nil
		}
		to, err := from.Parse(header.Get("Location"))
		if err != nil {
			return 0, nil, "", err
		}
		to.Fragment = ""
		address = to.String()
	}
	return 0, nil, "", fmt.Errorf("%s: redirected too often", address)
}

var linkPattern = regexp.MustCompile(`(?:href|src|action)="([^"]*)"`)

// TestPrefix runs behind a proxy with a sub-path, which the proxy either leaves on or takes off.
func TestPrefix(t *testing.T) {
	t.Parallel()
	const path = "/deep/tocsin"
	for _, c := range []struct {
		name  string
		strip bool
		flags []string
	}{
		{"path left on", false, nil},
		{"path taken off", true, []string{"--web.route-prefix=/"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := workDir(t)
			hook := newWebhook(t)
			front := newProxy(t, path, c.strip)
			external := front.URL + path
			flags := append([]string{"--web.external-url=" + external}, c.flags...)

			t.Run("built-in configuration", func(t *testing.T) {
				p := runPrefixed(t, dir, front, flags...)
				// It scrapes itself below the prefix.
				eventually(t, 40*time.Second, "it watches itself", func() error {
					var d queryData
					if err := getAPI(external+"/api/v1/query?query="+url.QueryEscape(`sum(up{job=~"tocsin|node"}) == 2`), &d); err != nil {
						return err
					}
					if len(d.Result) == 0 {
						return fmt.Errorf("no result")
					}
					return nil
				})
				p.stop()
			})

			write(t, dir, "tocsin.yml", `
prometheus:
  global: {evaluation_interval: 1s}
  rule_files: [rules.yml]
alertmanager:
  route: {receiver: hook, group_wait: 1s}
  receivers: [{name: hook, webhook_configs: [{url: "`+hook.URL+`"}]}]
`)
			write(t, dir, "rules.yml", "groups: [{name: g, rules: [{alert: Always, expr: vector(1)}]}]\n")
			p := runPrefixed(t, dir, front, append(flags, "--config.file=tocsin.yml")...)
			checkPage(t, external)
			mustTool(t, dir, "promtool", "query", "instant", external, "vector(1)")
			amtool(t, dir, external+"/alertmanager", "silence", "query")

			// The links in a notification lead to a page.
			eventually(t, 30*time.Second, "a notification", func() error {
				hook.mu.Lock()
				defer hook.mu.Unlock()
				if len(hook.messages) == 0 {
					return fmt.Errorf("none")
				}
				return nil
			})
			m := hook.messages[0]
			if m.ExternalURL != external+"/alertmanager" {
				t.Errorf("the Alertmanager says that it is at %s", m.ExternalURL)
			}
			for _, link := range []string{m.ExternalURL, m.ExternalURL + "/", m.Alerts[0].GeneratorURL} {
				status, at, _, err := follow(link)
				if err != nil || status != http.StatusOK || !strings.HasPrefix(at.String(), external+"/") {
					t.Errorf("%s leads to %v: %d (%v)", link, at, status, err)
				}
			}
			p.stop()
		})
	}
}

// runPrefixed starts the program behind the proxy; its readiness is below the prefix.
func runPrefixed(t *testing.T, dir string, front *proxy, flags ...string) *tocsin {
	t.Helper()
	p := startTocsin(t, dir, flags...)
	groups := p.logged(time.Minute, readyLine)
	p.url = "http://" + groups[1]
	front.to(t, p.url)
	eventually(t, 20*time.Second, "ready through the proxy", func() error {
		status, body, err := fetch(http.MethodGet, front.URL+"/deep/tocsin/-/ready", "", "")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
	return p
}

// checkPage follows every link of the page, which must stay below the prefix.
func checkPage(t *testing.T, external string) {
	t.Helper()
	status, at, page, err := follow(external + "/")
	if err != nil || status != http.StatusOK {
		t.Fatalf("the page: %d %s (%v)", status, page, err)
	}
	links := linkPattern.FindAllStringSubmatch(page, -1)
	if len(links) < 5 {
		t.Errorf("the page has %d links:\n%s", len(links), page)
	}
	for _, link := range links {
		u, err := at.Parse(strings.ReplaceAll(link[1], "&amp;", "&"))
		if err != nil {
			t.Errorf("link %q: %v", link[1], err)
			continue
		}
		if u.Host != at.Host {
			continue // Somebody else's site.
		}
		if u.Path == strings.TrimPrefix(external, "http://"+at.Host)+"/api/v1/query" {
			u.RawQuery = "query=up" // A form.
		}
		status, to, body, err := follow(u.String())
		if err != nil || status != http.StatusOK || !strings.HasPrefix(to.String(), external+"/") {
			t.Errorf("link %q leads to %v: %d %.200s (%v)", link[1], to, status, body, err)
		}
	}
	var info map[string]any
	if err := getAPI(external+"/api/v1/status/buildinfo", &info); err != nil {
		t.Error(err)
	}
	if status, body, err := fetch(http.MethodGet, external+"/nothing", "", ""); err != nil || status != http.StatusNotFound || !json.Valid([]byte(body)) {
		t.Errorf("what is not there: %d %s (%v)", status, body, err)
	}
}
