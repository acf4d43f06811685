package web

import (
	"bytes"
	"compress/gzip"
	"net/url"
	"strings"
	"testing"
	"testing/fstest"
)

// builtUI is the least that a build of the UI has.
func builtUI(t *testing.T) fstest.MapFS {
	t.Helper()
	pack := func(text string) *fstest.MapFile {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if _, err := z.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return &fstest.MapFile{Data: b.Bytes()}
	}
	return fstest.MapFS{
		"index.html.gz":            pack("<html><head></head><body>the UI</body></html>"),
		"assets/a-12345678.css.gz": pack("a{}"),
	}
}

func TestUI(t *testing.T) {
	for _, external := range []string{"", "http://m.example/mon/tocsin"} {
		t.Run(external, func(t *testing.T) {
			o, prefix := Options{UI: builtUI(t)}, ""
			if external != "" {
				u, err := url.Parse(external)
				if err != nil {
					t.Fatal(err)
				}
				o.ExternalURL, prefix = u, u.Path
			}
			d := open(t, o)
			const html = "text/html,application/xhtml+xml,*/*;q=0.8"
			tests := []struct {
				path, accept string
				method       string // default GET
				code         int
				page         bool
				location     string
			}{
				{path: "/", code: 200, page: true},
				{path: "/query?g0.expr=up", code: 200, page: true},
				{path: "/alerts", code: 200, page: true},
				{path: "/service-discovery", code: 200, page: true},
				{path: "/alertmanager-discovery", code: 200, page: true},
				{path: "/query", method: "POST", code: 405},
				{path: "/assets/a-12345678.css", code: 200},
				{path: "/assets/a-00000000.css", accept: html, code: 404},
				// Links in notifications, of ours and of an Alertmanager's own.
				{path: "/graph?g0.expr=up%3D%3D0&g0.tab=1", code: 302, location: "/query?g0.expr=up%3D%3D0&g0.tab=1"},
				{path: "/classic/graph?g0.expr=a+b", code: 302, location: "/query?g0.expr=a+b"},
				{path: "/alertmanager/", code: 302, location: "/alerts"},
				{path: "/alertmanager", code: 302, location: "/alerts"},
				// A person gets the page, with the status that programs go by; a program gets what it reads.
				{path: "/nothing", accept: html, code: 404, page: true},
				{path: "/query/further", accept: html, code: 404, page: true},
				{path: "/nothing", code: 404},
				{path: "/nothing", accept: "application/json", code: 404},
				{path: "/nothing", method: "POST", accept: html, code: 404},
				{path: "/api/v2/status", accept: html, code: 404},
				{path: "/-/nothing", accept: html, code: 404},
				{path: "/debug/nothing", accept: html, code: 404},
				{path: "/alertmanager/nothing", accept: html, code: 404},
				{path: "/metrics/nothing", accept: html, code: 404},
			}
			for _, tt := range tests {
				if tt.method == "" {
					tt.method = "GET"
				}
				r := d.do(t, tt.method, d.base+prefix+tt.path, nil, "Accept", tt.accept)
				if page := strings.Contains(r.body, "the UI"); r.code != tt.code || page != tt.page {
					t.Errorf("%s %s (%s): %d, page %v: %s", tt.method, tt.path, tt.accept, r.code, page, r.body)
				}
				if tt.page && !strings.Contains(r.body, `<base href="`+prefix+`/">`) {
					t.Errorf("%s: no base in %s", tt.path, r.body)
				}
				if got := r.header.Get("Location"); tt.location != "" && got != prefix+tt.location {
					t.Errorf("%s leads to %q, want %q", tt.path, got, prefix+tt.location)
				}
			}
			if prefix != "" {
				if r := d.do(t, "GET", d.base+"/query", nil, "Accept", html); r.code != 404 || strings.Contains(r.body, "the UI") {
					t.Errorf("outside the prefix: %d %s", r.code, r.body)
				}
			}
		})
	}
}
