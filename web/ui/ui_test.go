package ui_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"html"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/tocsin-io/tocsin/web/ui"
)

func packed(t *testing.T, text string) *fstest.MapFile {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := io.WriteString(z, text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return &fstest.MapFile{Data: b.Bytes()}
}

const script = "console.log('a script')"

func build(t *testing.T) fstest.MapFS {
	return fstest.MapFS{
		"index.html.gz":               packed(t, "<!doctype html><html><head><title>Tocsin</title></head></html>"),
		"assets/index-Ab_d-123.js.gz": packed(t, script),
		"assets/index-Ab_d-123.js.br": {Data: []byte("brotli")}, // No browser is here to unpack it.
		"assets/icon-12345678.svg.gz": packed(t, "<svg/>"),
		"assets/licenses.txt.gz":      packed(t, "MIT"),
	}
}

// serve is the UI behind a real server, as the door has it.
func serve(t *testing.T, o ui.Options) (*ui.UI, string) {
	t.Helper()
	u, err := ui.New(o)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", u.Page(http.StatusOK))
	mux.Handle("/missing", u.Page(http.StatusNotFound))
	mux.HandleFunc("/assets/", func(w http.ResponseWriter, r *http.Request) {
		if !u.Asset(w, r) {
			http.NotFound(w, r)
		}
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return u, s.URL
}

func ask(t *testing.T, method, url string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	// Without it, the client asks for gzip by itself and unpacks.
	req.Header.Set("Accept-Encoding", "identity")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestEncodings(t *testing.T) {
	_, url := serve(t, ui.Options{Files: build(t), Base: "/"})
	tests := []struct{ accept, want string }{
		{"gzip, deflate, br, zstd", "br"},
		{"br", "br"},
		{"gzip", "gzip"},
		{"x-gzip", "gzip"},
		{"GZIP;Q=0.5", "gzip"},
		{"gzip;q=1.0, br;q=0.5", "gzip"},
		{"gzip;q=0.5, br; q=0.9", "br"},
		{"br;q=0, gzip", "gzip"},
		{"br;q=0, *", "gzip"},
		{"*", "br"},
		{"*;q=0", ""},
		{"gzip;q=0, br;q=0", ""},
		{"gzip;q=nonsense", ""},
		{"identity", ""},
		{"zstd", ""},
	}
	for _, tt := range tests {
		t.Run(tt.accept, func(t *testing.T) {
			resp, body := ask(t, "GET", url+"/assets/index-Ab_d-123.js", "Accept-Encoding", tt.accept)
			if got := resp.Header.Get("Content-Encoding"); resp.StatusCode != http.StatusOK || got != tt.want {
				t.Fatalf("%d, encoded as %q, want %q", resp.StatusCode, got, tt.want)
			}
			switch tt.want {
			case "br":
				if body != "brotli" {
					t.Errorf("body %q", body)
				}
			case "gzip":
				z, err := gzip.NewReader(strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(z); err != nil || string(b) != script {
					t.Errorf("body %q, %v", b, err)
				}
			default:
				if body != script {
					t.Errorf("body %q", body)
				}
			}
			if resp.ContentLength != int64(len(body)) {
				t.Errorf("length %d of %d", resp.ContentLength, len(body))
			}
		})
	}
	t.Run("only gzip is there", func(t *testing.T) {
		resp, _ := ask(t, "GET", url+"/assets/icon-12345678.svg", "Accept-Encoding", "br, gzip;q=0.1")
		if got := resp.Header.Get("Content-Encoding"); got != "gzip" {
			t.Errorf("encoded as %q", got)
		}
	})
}

func TestAssetsAreKept(t *testing.T) {
	_, url := serve(t, ui.Options{Files: build(t), Base: "/"})
	resp, _ := ask(t, "GET", url+"/assets/index-Ab_d-123.js", "Accept-Encoding", "gzip")
	for k, want := range map[string]string{
		"Cache-Control":          "public, max-age=31536000, immutable",
		"Vary":                   "Accept-Encoding",
		"Content-Type":           "text/javascript; charset=utf-8",
		"X-Content-Type-Options": "nosniff",
	} {
		if got := resp.Header.Get(k); got != want {
			t.Errorf("%s: %q, want %q", k, got, want)
		}
	}
	tag := resp.Header.Get("ETag")
	if resp, body := ask(t, "GET", url+"/assets/index-Ab_d-123.js", "Accept-Encoding", "gzip", "If-None-Match", tag); resp.StatusCode != http.StatusNotModified || body != "" {
		t.Errorf("who has it gets %d %q", resp.StatusCode, body)
	}
	if resp, _ := ask(t, "GET", url+"/assets/index-Ab_d-123.js", "Accept-Encoding", "br", "If-None-Match", tag); resp.StatusCode != http.StatusOK {
		t.Errorf("another encoding has the same tag: %d", resp.StatusCode)
	}
	if resp, body := ask(t, "HEAD", url+"/assets/index-Ab_d-123.js", "Accept-Encoding", "gzip"); resp.StatusCode != http.StatusOK || body != "" || resp.ContentLength <= 0 {
		t.Errorf("HEAD: %d %q, length %d", resp.StatusCode, body, resp.ContentLength)
	}
	// What keeps its name when it changes must be asked for.
	if resp, _ := ask(t, "GET", url+"/assets/licenses.txt"); resp.Header.Get("Cache-Control") != "no-cache" || resp.Header.Get("ETag") == "" {
		t.Errorf("licences: %v", resp.Header)
	}
	for _, path := range []string{"/assets/", "/assets/nothing.js", "/assets/index-Ab_d-123.js.gz", "/assets/../index.html"} {
		if resp, _ := ask(t, "GET", url+path); resp.StatusCode == http.StatusOK && strings.HasPrefix(resp.Request.URL.Path, "/assets") {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
}

func TestPage(t *testing.T) {
	_, url := serve(t, ui.Options{Files: build(t), Base: "/mon/tocsin/", Settings: map[string]any{"version": "</script><b>"}})
	resp, body := ask(t, "GET", url+"/query")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Cache-Control") != "no-cache" || resp.Header.Get("Referrer-Policy") != "same-origin" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	if !strings.Contains(body, `<head><base href="/mon/tocsin/">`) {
		t.Errorf("no base first: %s", body)
	}
	block := regexp.MustCompile(`<script type="application/json" id="settings">(.*?)</script>`).FindStringSubmatch(body)
	if block == nil {
		t.Fatalf("no settings: %s", body)
	}
	var settings struct{ Nonce, Version string }
	if err := json.Unmarshal([]byte(block[1]), &settings); err != nil || settings.Version != "</script><b>" || settings.Nonce == "" {
		t.Errorf("settings %s: %v", block[1], err)
	}
	policy := resp.Header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "script-src 'self';", "style-src 'self' 'nonce-" + settings.Nonce + "'", "frame-ancestors 'none'", "connect-src 'self'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("the policy lacks %s: %s", want, policy)
		}
	}
	if strings.Contains(policy, "unsafe") {
		t.Errorf("policy %s", policy)
	}
	// The kept page goes with the policy that it was kept with.
	tag := resp.Header.Get("ETag")
	if resp, body := ask(t, "GET", url+"/alerts", "If-None-Match", tag); resp.StatusCode != http.StatusNotModified || body != "" {
		t.Errorf("who has it gets %d %q", resp.StatusCode, body)
	}
	if strings.HasPrefix(tag, "W/") || tag == "" {
		t.Errorf("tag %q", tag)
	}
	_, other := serve(t, ui.Options{Files: build(t), Base: "/"})
	if resp, _ := ask(t, "GET", other+"/", "If-None-Match", tag); resp.StatusCode != http.StatusOK {
		t.Errorf("a page with other settings has the same tag")
	}
	// A missing page is one: it has the page in it, and its status, whatever the browser has kept.
	if resp, body := ask(t, "GET", url+"/missing", "If-None-Match", tag); resp.StatusCode != http.StatusNotFound || !strings.Contains(body, "<title>") {
		t.Errorf("missing: %d %s", resp.StatusCode, body)
	}
	if resp, body := ask(t, "HEAD", url+"/missing"); resp.StatusCode != http.StatusNotFound || body != "" {
		t.Errorf("HEAD of a missing page: %d %q", resp.StatusCode, body)
	}
}

func TestWithoutBuild(t *testing.T) {
	u, url := serve(t, ui.Options{Files: fstest.MapFS{".keep": {}}, Base: "/a&b/"})
	if u.Built() {
		t.Error("nothing was built")
	}
	resp, body := ask(t, "GET", url+"/query")
	if resp.StatusCode != http.StatusOK || !strings.Contains(body, "make ui") || !strings.Contains(html.UnescapeString(body), `<base href="/a&b/">`) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, _ := ask(t, "GET", url+"/assets/index.js"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("asset: %d", resp.StatusCode)
	}
}

func TestBrokenBuild(t *testing.T) {
	for name, files := range map[string]fs.FS{
		"no gzip":   fstest.MapFS{"index.html.gz": {Data: []byte("<head>")}},
		"no head":   fstest.MapFS{"index.html.gz": packed(t, "<html>"), "assets/x.gz": packed(t, "x")},
		"no assets": fstest.MapFS{"index.html.gz": packed(t, "<head>")},
	} {
		if _, err := ui.New(ui.Options{Files: files, Base: "/"}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestBuiltIn holds what was built on this machine, if it was, to the policy that it is served with.
func TestBuiltIn(t *testing.T) {
	u, url := serve(t, ui.Options{Base: "/"})
	if !u.Built() {
		if os.Getenv("CI") != "" {
			t.Fatal("the UI is not built: make ui")
		}
		t.Skip("the UI is not built here, which is allowed but in CI: make ui")
	}
	_, body := ask(t, "GET", url+"/")
	for _, m := range regexp.MustCompile(`<script[^>]*>`).FindAllString(body, -1) {
		if !strings.Contains(m, "src=") && !strings.Contains(m, `type="application/json"`) {
			t.Errorf("%s would not run", m)
		}
	}
	links := regexp.MustCompile(`(?:src|href)="\./([^"]+)"`).FindAllStringSubmatch(body, -1)
	if len(links) < 3 {
		t.Errorf("%d links in %s", len(links), body)
	}
	for _, l := range links {
		for _, accept := range []string{"br", "gzip", "identity"} {
			resp, _ := ask(t, "GET", url+"/"+l[1], "Accept-Encoding", accept)
			if resp.StatusCode != http.StatusOK || !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") {
				t.Errorf("%s as %s: %d %v", l[1], accept, resp.StatusCode, resp.Header)
			}
		}
	}
	if resp, _ := ask(t, "GET", url+"/assets/licenses.txt"); resp.StatusCode != http.StatusOK {
		t.Error("the licences of what is built in are not there")
	}
}

func TestRoutes(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range ui.Routes() {
		if !regexp.MustCompile(`^/[a-z-]*$`).MatchString(r) || seen[r] {
			t.Errorf("route %q", r)
		}
		seen[r] = true
	}
	if !seen["/"] || !seen["/query"] {
		t.Errorf("routes %v", ui.Routes())
	}
}
