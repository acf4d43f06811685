package drain

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// maxBody bounds a body, of which nothing is read.
const maxBody = 4 << 10

// Line is one line of the answer to a POST.
type Line struct {
	// State is waiting, drained, or failed. The last line has one of the latter two.
	State   string `json:"state"`
	Message string `json:"message"`
}

// StateFailed is that of the last line when this replica may not be stopped.
const StateFailed = "failed"

// Handler answers a GET with how far draining is, a POST (?force=true) with lines of JSON until this replica may be
// stopped, and a DELETE by giving the claim back. A client of the POST that goes away while it waits does so, too.
func (d *Drain) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost:
			d.post(w, r)
		case http.MethodDelete:
			d.Release()
			w.WriteHeader(http.StatusNoContent)
		default:
			w.Header().Set("Content-Type", "application/json")
			// The client may be gone.
			_ = json.NewEncoder(w).Encode(d.State())
		}
	})
}

func (d *Drain) post(w http.ResponseWriter, r *http.Request) {
	force := false
	if v := r.URL.Query().Get("force"); v != "" {
		var err error
		if force, err = strconv.ParseBool(v); err != nil {
			http.Error(w, fmt.Sprintf("force=%q is neither true nor false", v), http.StatusBadRequest)
			return
		}
	}
	// That a client goes away is noticed only when its body was read.
	if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
		http.Error(w, "the body is not read, and too long: send none", http.StatusBadRequest)
		return
	}
	c := http.NewResponseController(w)
	// It waits for longer than a request may take to be read.
	if err := c.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		d.logger.Warn("a call that waits for this replica to be drained may be cut off early", "err", err)
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	lines := json.NewEncoder(w)
	granted, err := d.Claim(r.Context(), force, func(waiting string) {
		// That the client is gone ends the context.
		_ = errors.Join(lines.Encode(Line{StateWaiting, waiting}), c.Flush())
	})
	switch {
	case errors.Is(err, ErrBusy):
		w.WriteHeader(http.StatusConflict)
		_ = lines.Encode(Line{StateFailed, err.Error()}) // The client may be gone.
	case err != nil:
		_ = lines.Encode(Line{StateFailed, err.Error()}) // As above.
	default:
		if errors.Join(lines.Encode(Line{StateDrained, granted}), c.Flush()) != nil {
			// Whoever asked does not know that it was granted.
			d.Release()
		}
	}
}
