// Package ui serves the browser UI: its scripts and styles, and the one page that all of its paths get.
//
// It owns what the build of the UI wrote to dist, compressed there, and how browsers may keep it. It refuses to know
// what the pages ask for, and works without a build: then it says how to make one.
package ui

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"io/fs"
	"net/http"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Without a build there is only .keep in it, which is why hidden files are embedded.
//
//go:embed all:dist
var dist embed.FS

//go:embed routes.json
var routesJSON []byte

// Routes are the paths that are pages. Nothing else gets the page with a 200, so that clients which tell programs
// apart by asking for paths are not misled.
func Routes() []string {
	var routes []string
	if err := json.Unmarshal(routesJSON, &routes); err != nil {
		panic("ui: routes.json: " + err.Error()) // It is built in, and every test would see it.
	}
	return routes
}

// Options say where the UI is, seen from a browser.
type Options struct {
	Files    fs.FS          // What the build wrote; nil = what is built in.
	Base     string         // The path below which a browser sees us, with a slash at both ends.
	Settings map[string]any // For the scripts.
}

// UI serves one build of the browser UI.
type UI struct {
	files  fs.FS
	assets map[string]asset
	shell  []byte
	etag   string
	policy string
}

// asset is one file of the build, of which only compressed copies are kept.
type asset struct {
	etag     string // of the gzip copy, without quotes
	contents string // type
	brotli   bool
	hashed   bool // The name changes with the content.
}

const (
	indexHTML = "index.html.gz"
	head      = "<head>"
)

// hashedName is how the bundler names files after their content.
var hashedName = regexp.MustCompile(`-[A-Za-z0-9_-]{8}\.[a-z0-9]+$`)

var contentTypes = map[string]string{
	".css":   "text/css; charset=utf-8",
	".ico":   "image/x-icon",
	".js":    "text/javascript; charset=utf-8",
	".json":  "application/json",
	".png":   "image/png",
	".svg":   "image/svg+xml",
	".txt":   "text/plain; charset=utf-8",
	".woff2": "font/woff2",
}

// New reads what the build wrote, if there was one.
func New(o Options) (*UI, error) {
	if o.Files == nil {
		sub, err := fs.Sub(dist, "dist")
		if err != nil {
			return nil, fmt.Errorf("open the built-in UI: %w", err)
		}
		o.Files = sub
	}
	u := &UI{files: o.Files, assets: map[string]asset{}}
	index, err := readGzip(o.Files, indexHTML)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		u.policy = "default-src 'none'; frame-ancestors 'none'; base-uri 'self'"
		u.setShell(fmt.Sprintf(placeholder, html.EscapeString(o.Base)))
		return u, nil
	case err != nil:
		return nil, fmt.Errorf("read the built-in UI: %w", err)
	}
	if err := u.readAssets(); err != nil {
		return nil, fmt.Errorf("read the built-in UI: %w", err)
	}
	return u, u.fill(string(index), o)
}

// placeholder takes the base. It needs no style of its own: a browser's is legible.
const placeholder = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<base href="%s">
<title>Tocsin without its UI</title>
</head>
<body>
<h1>This binary was built without the browser UI</h1>
<p>Everything else works. To build the UI, install Node.js 20.19 or later and run <code>make ui build</code> in the source folder.</p>
<p>The <a href="./">status page</a> has what is up, down and firing.</p>
</body>
</html>
`

// fill puts what this process knows into the page, once: the page is then the same for everybody, and a browser that
// has it is told so in one round trip.
func (u *UI) fill(index string, o Options) error {
	if strings.Count(index, head) != 1 {
		return fmt.Errorf("the page of the built-in UI has no single %s", head)
	}
	// Mantine and CodeMirror write style elements. The nonce is one for the life of the process, because a page that is
	// kept and revalidated must go on matching its policy; scripts are held to our own files whatever it is.
	nonce := rand.Text()
	settings := map[string]any{"nonce": nonce}
	for k, v := range o.Settings {
		settings[k] = v
	}
	block, err := json.Marshal(settings) // which escapes what could end the element
	if err != nil {
		return fmt.Errorf("write the settings of the UI: %w", err)
	}
	u.policy = "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-" + nonce + "'; img-src 'self' data:; font-src 'self'; " +
		"connect-src 'self'; form-action 'self'; base-uri 'self'; frame-ancestors 'none'"
	u.setShell(strings.Replace(index, head, head+`<base href="`+html.EscapeString(o.Base)+`">`+
		`<script type="application/json" id="settings">`+string(block)+`</script>`, 1))
	return nil
}

func (u *UI) setShell(page string) {
	u.shell = []byte(page)
	sum := sha256.Sum256(u.shell)
	u.etag = `"` + hex.EncodeToString(sum[:16]) + `"`
}

func (u *UI) readAssets() error {
	return fs.WalkDir(u.files, "assets", func(name string, d fs.DirEntry, err error) error {
		base, ok := strings.CutSuffix(name, ".gz")
		if err != nil || d.IsDir() || !ok {
			return err
		}
		b, err := fs.ReadFile(u.files, name)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		sum := sha256.Sum256(b)
		a := asset{etag: hex.EncodeToString(sum[:16]), contents: contentTypes[path.Ext(base)], hashed: hashedName.MatchString(base)}
		if a.contents == "" {
			a.contents = "application/octet-stream"
		}
		_, err = fs.Stat(u.files, base+".br")
		a.brotli = err == nil
		u.assets[base] = a
		return nil
	})
}

// Built tells whether the UI was built into this binary.
func (u *UI) Built() bool { return len(u.assets) > 0 }

// Page answers with the page of the UI, which looks at the path itself, or with how to build it.
func (u *UI) Page(code int) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h := rw.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", u.policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cache-Control", "no-cache")
		if code == http.StatusOK {
			h.Set("ETag", u.etag)
			http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(u.shell))
			return
		}
		h.Set("Content-Length", strconv.Itoa(len(u.shell)))
		rw.WriteHeader(code)
		if r.Method != http.MethodHead {
			_, _ = rw.Write(u.shell) // The client may be gone.
		}
	})
}

// Asset answers with the file of the build that the path names, or says false.
func (u *UI) Asset(rw http.ResponseWriter, r *http.Request) bool {
	name := strings.TrimPrefix(r.URL.Path, "/")
	a, ok := u.assets[name]
	if !ok {
		return false
	}
	h := rw.Header()
	h.Set("Content-Type", a.contents)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Vary", "Accept-Encoding")
	if a.hashed {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	} else {
		h.Set("Cache-Control", "no-cache")
	}
	encoding := negotiate(r.Header.Values("Accept-Encoding"), a.brotli)
	h.Set("ETag", `"`+a.etag+"-"+encoding+`"`)
	content, size, err := u.open(name, encoding)
	if err != nil {
		// It is built in and was read at the start.
		http.Error(rw, "the file cannot be read", http.StatusInternalServerError)
		return true
	}
	if encoding != identity {
		h.Set("Content-Encoding", encoding)
		h.Set("Content-Length", strconv.FormatInt(size, 10))
	}
	http.ServeContent(rw, r, "", time.Time{}, content)
	return true
}

const (
	brotli   = "br"
	gzipped  = "gzip"
	identity = "identity"
)

// open is the file in an encoding. Who takes no encoding is rare, and gets it unpacked anew each time.
func (u *UI) open(name, encoding string) (io.ReadSeeker, int64, error) {
	suffix := ".gz"
	switch encoding {
	case identity:
		b, err := readGzip(u.files, name+suffix)
		return bytes.NewReader(b), int64(len(b)), err
	case brotli:
		suffix = ".br"
	}
	b, err := fs.ReadFile(u.files, name+suffix)
	return bytes.NewReader(b), int64(len(b)), err
}

// negotiate picks the smallest copy that the client takes (RFC 9110, 12.5.3).
func negotiate(accept []string, hasBrotli bool) string {
	quality := map[string]float64{}
	for part := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		name, parameters, _ := strings.Cut(part, ";")
		q := 1.0
		for p := range strings.SplitSeq(parameters, ";") {
			k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
			if !strings.EqualFold(strings.TrimSpace(k), "q") {
				continue
			}
			var err error
			if q, err = strconv.ParseFloat(strings.TrimSpace(v), 64); err != nil {
				q = 0 // Not understood: what is sent anyhow must not be this.
			}
		}
		if name = strings.ToLower(strings.TrimSpace(name)); name != "" {
			quality[strings.TrimPrefix(name, "x-")] = q
		}
	}
	of := func(name string) float64 {
		if q, ok := quality[name]; ok {
			return q
		}
		return quality["*"]
	}
	br, gz := of(brotli), of(gzipped)
	switch {
	case hasBrotli && br > 0 && br >= gz:
		return brotli
	case gz > 0:
		return gzipped
	default:
		return identity
	}
}

func readGzip(files fs.FS, name string) ([]byte, error) {
	packed, err := fs.ReadFile(files, name)
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", name, err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", name, err)
	}
	return b, nil
}
