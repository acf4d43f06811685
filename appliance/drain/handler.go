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

const (
	// maxBody bounds a body, of which nothing is read.
	maxBody = 4 << 10
	// writeFor is how long a line may take to be written. Who does not read has no claim: the other replicas would wait for it.
	writeFor = 30 * time.Second
)

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
	write := func(state, message string) error {
		if err := c.SetWriteDeadline(time.Now().Add(writeFor)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return fmt.Errorf("bound the time to write: %w", err)
		}
		return errors.Join(lines.Encode(Line{state, message}), c.Flush())
	}
	granted, err := d.Claim(r.Context(), force, func(waiting string) {
		// That the client is gone, or does not read, ends the context.
		_ = write(StateWaiting, waiting)
	})
	switch {
	case errors.Is(err, ErrBusy):
		w.WriteHeader(http.StatusConflict)
		_ = write(StateFailed, err.Error()) // The client may be gone.
	case err != nil:
		_ = write(StateFailed, err.Error()) // As above.
	default:
		if write(StateDrained, granted) != nil {
			// Whoever asked does not know that it was granted.
			d.Release()
		}
	}
}
