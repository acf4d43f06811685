package query

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// The error types of the Prometheus HTTP API that we answer with ourselves.
const (
	errBadData     = "bad_data"
	errNotFound    = "not_found"
	errUnavailable = "unavailable"
	errInternal    = "internal"
)

// maxErrorText bounds how much of an upstream error is kept while it is being
// rewritten; they are one sentence.
const maxErrorText = 8 << 10

// writeError answers in the form of the Prometheus HTTP API.
func writeError(w http.ResponseWriter, code int, typ, text string) {
	body, err := json.Marshal(struct {
		Status    string `json:"status"`
		ErrorType string `json:"errorType"`
		Error     string `json:"error"`
	}{"error", typ, text})
	if err != nil {
		// Strings always marshal; kept so that a change above cannot hide one.
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Del("Content-Length")
	h.Del("Content-Encoding")
	h.Del("Location")
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(body) // the client may be gone
}

// errorWriter turns what upstream answers as plain text when the client is at
// fault (unknown path, wrong method, undecodable body) into the API's error
// JSON. Everything else passes through untouched.
type errorWriter struct {
	http.ResponseWriter
	path  string // as the client asked for it
	code  int    // of the answer being rewritten, 0 = passing through
	wrote bool
	text  []byte
}

// Unwrap lets http.ResponseController reach the connection.
func (w *errorWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush is needed by the live notifications.
func (w *errorWriter) Flush() {
	if w.code != 0 {
		return
	}
	w.wrote = true
	// An error means that the client is gone or that the writer cannot flush;
	// both show at the next write.
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *errorWriter) WriteHeader(code int) {
	if w.wrote || w.code != 0 {
		return
	}
	if rewrites(code, w.Header()) {
		w.code = code
		return
	}
	w.wrote = true
	w.ResponseWriter.WriteHeader(code)
}

func rewrites(code int, h http.Header) bool {
	switch code {
	case http.StatusMovedPermanently, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		// The router offers a path that looks similar, without our prefix.
		return true
	}
	return code >= 400 && code < 500 && h.Get("Content-Encoding") == "" &&
		!strings.HasPrefix(h.Get("Content-Type"), "application/json")
}

func (w *errorWriter) Write(p []byte) (int, error) {
	if w.code == 0 {
		w.wrote = true
		return w.ResponseWriter.Write(p)
	}
	if room := maxErrorText - len(w.text); room > 0 {
		w.text = append(w.text, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

// finish writes the answer that was held back, if there is one.
func (w *errorWriter) finish() {
	if w.code == 0 {
		return
	}
	text := strings.TrimSpace(strings.ToValidUTF8(string(w.text), "\ufffd"))
	switch w.code {
	case http.StatusNotFound:
		if text == "" || text == "404 page not found" {
			text = fmt.Sprintf("path %s does not exist", w.path)
		}
		writeError(w.ResponseWriter, http.StatusNotFound, errNotFound, text)
	case http.StatusMovedPermanently, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		writeError(w.ResponseWriter, http.StatusNotFound, errNotFound, fmt.Sprintf("path %s does not exist", w.path))
	case http.StatusMethodNotAllowed:
		if allow := w.Header().Get("Allow"); allow != "" {
			text = fmt.Sprintf("method not allowed for %s, allowed: %s", w.path, allow)
		}
		writeError(w.ResponseWriter, w.code, errBadData, text)
	default:
		if text == "" {
			text = http.StatusText(w.code)
		}
		writeError(w.ResponseWriter, w.code, errBadData, text)
	}
}
