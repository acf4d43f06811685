package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// browserScripts is where the ways are that a browser goes.
const browserScripts = "../web/ui/e2e"

// browser is what the scripts need: Node.js with its packages, and Chromium.
type browser struct {
	node, chromium string
}

// newBrowser skips the test where there is no browser, and fails it in CI, where there must be.
func newBrowser(t *testing.T) browser {
	t.Helper()
	missing := func(err error) {
		t.Helper()
		if os.Getenv("CI") == "true" {
			t.Fatalf("there must be a browser in CI: %v", err)
		}
		t.Skipf("no browser, run `make test-deps ui`: %v", err)
	}
	var b browser
	for name, path := range map[string]*string{"node": &b.node, "chromium": &b.chromium} {
		var err error
		if *path, err = exec.LookPath(name); err != nil {
			missing(err)
		}
	}
	if _, err := os.Stat(filepath.Join(browserScripts, "../node_modules/playwright-core")); err != nil {
		missing(err)
	}
	return b
}

// walk runs a script to its end with what it has to know, as JSON in a file. Meanwhile it does what is asked of it, on the goroutine of
// the test.
func (b browser) walk(t *testing.T, dir, script string, world map[string]any, orders *orders) {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(browserScripts, script))
	if err != nil {
		t.Fatal(err)
	}
	world["chromium"] = b.chromium
	if orders != nil {
		world["orders"] = orders.URL
	}
	text, err := json.Marshal(world)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	name := strings.TrimSuffix(script, ".test.mjs")
	p := start(t, dir, "browser-"+name, b.node, "--test-reporter=spec", path, write(t, dir, name+".json", string(text)))
	deadline := time.After(10 * time.Minute)
	for {
		select {
		case o := <-orders.next():
			o.err <- orders.obey(o.verb, o.name)
			continue
		case <-p.done:
		case <-deadline:
			p.kill()
			t.Errorf("%s has not come to an end:\n%s", script, p.output())
			return
		}
		if _, code := p.exited(); code != 0 {
			t.Errorf("%s:\n%s", script, p.output())
			return
		}
		t.Logf("%s took %s", script, time.Since(began).Round(time.Second))
		return
	}
}

// orders are what a script asks the test to do, by POST /verb/name.
type orders struct {
	*httptest.Server
	obey func(verb, name string) error
	ch   chan order
}

type order struct {
	verb, name string
	err        chan error
}

func newOrders(t *testing.T, obey func(verb, name string) error) *orders {
	t.Helper()
	o := &orders{obey: obey, ch: make(chan order)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{verb}/{name}", func(w http.ResponseWriter, r *http.Request) {
		one := order{r.PathValue("verb"), r.PathValue("name"), make(chan error, 1)}
		select {
		case o.ch <- one:
		case <-r.Context().Done():
			return
		}
		if err := <-one.err; err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	o.Server = serveIn(t, nil, mux)
	return o
}

func (o *orders) next() chan order {
	if o == nil {
		return nil
	}
	return o.ch
}

// obey is what may be done to a replica.
func (c *meshCluster) obey(verb, name string) error {
	r := c.replicas[name]
	if r == nil {
		return fmt.Errorf("there is no replica %q", name)
	}
	switch verb {
	case "kill":
		r.kill()
	case "start":
		r.start()
	case "freeze":
		r.freeze()
	case "thaw":
		r.thaw()
	case "spoil":
		return c.spoil(r)
	default:
		return fmt.Errorf("nobody knows how to %s", verb)
	}
	return nil
}

// TestBrowser goes the ways of people on call through the browser UI of three replicas, and looks at every page.
func TestBrowser(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	c := newBrowserCluster(t)
	replicas := map[string]any{}
	for _, name := range c.options.names {
		r := c.replicas[name]
		replicas[name] = map[string]string{"url": r.url, "name": r.settings.replica}
	}
	o := newOrders(t, c.obey)
	for _, script := range []string{"query.test.mjs", "silence.test.mjs", "pages.test.mjs", "gap.test.mjs", "refused.test.mjs"} {
		b.walk(t, c.dir, script, map[string]any{"replicas": replicas, "slow": slowShop}, o)
	}
}

// TestBrowserBelowPath looks at one replica below a sub-path: with the built-in configuration, as `make run` starts it, and at every
// page with next to none.
func TestBrowserBelowPath(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	dir := workDir(t)
	front := newProxy(t, "/deep/tocsin", false)
	external := front.URL + "/deep/tocsin"
	p := runPrefixed(t, dir, front, "--web.external-url="+external)
	b.walk(t, dir, "run.test.mjs", map[string]any{"url": external}, nil)
	p.stop()
	write(t, dir, "tocsin.yml", "prometheus: {}\n")
	p = runPrefixed(t, dir, front, "--web.external-url="+external, "--config.file=tocsin.yml")
	b.walk(t, dir, "path.test.mjs", map[string]any{"url": external}, nil)
	p.stop()
}
