package web

import (
	"bytes"
	_ "embed" // the page and its style
	"fmt"
	"html/template"
	"math"
	"net/http"
	"strconv"
	"time"
)

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS []byte

type page struct{ tmpl *template.Template }

func newPage() (*page, error) {
	t, err := template.New("page").Funcs(template.FuncMap{
		"ago":    ago,
		"at":     at,
		"bytes":  humanBytes,
		"count":  humanCount,
		"plural": plural,
		"round":  func(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) },
	}).Parse(pageHTML)
	if err != nil {
		return nil, fmt.Errorf("parse the status page: %w", err)
	}
	return &page{t}, nil
}

func (w *Web) servePage(rw http.ResponseWriter, _ *http.Request) {
	v := w.view()
	// Rendered whole before anything is sent: half a page would look well.
	var buf bytes.Buffer
	if err := w.page.tmpl.Execute(&buf, v); err != nil {
		w.o.Logger.Error("the status page did not render, answering with an error", "err", err)
		writeText(rw, http.StatusInternalServerError, "The status page did not render. /api/v1 is not affected.\n")
		return
	}
	h := rw.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'self'; base-uri 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	_, _ = rw.Write(buf.Bytes()) // the client may be gone
}

func (p *page) serveStyle(rw http.ResponseWriter, _ *http.Request) {
	rw.Header().Set("Content-Type", "text/css; charset=utf-8")
	rw.Header().Set("Cache-Control", "max-age=300")
	_, _ = rw.Write(pageCSS) // the client may be gone
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

func at(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// ago is a duration as people say it: two units at most.
func ago(now, t time.Time) string {
	d := now.Sub(t)
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm %ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh %dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd %dh", int(d.Hours())/24, int(d.Hours())%24)
	}
}

func humanBytes(n int64) string {
	f, units := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	if i == 0 {
		return strconv.FormatInt(n, 10) + " B"
	}
	return strconv.FormatFloat(f, 'f', 1, 64) + " " + units[i]
}

func humanCount(f float64) string {
	switch {
	case math.IsNaN(f) || math.IsInf(f, 0):
		return "unknown"
	case f >= 1e6:
		return strconv.FormatFloat(f/1e6, 'f', 2, 64) + " million"
	case f >= 1e4:
		return strconv.FormatFloat(f/1e3, 'f', 1, 64) + " thousand"
	default:
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
}
