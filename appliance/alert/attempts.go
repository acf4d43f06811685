package alert

import (
	"context"
	"errors"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/alertmanager/alert"
	"github.com/prometheus/alertmanager/notify"

	"github.com/tocsin-io/tocsin/appliance/mesh"
)

const (
	// maxFailing bounds the notifications that are remembered as not taken by their receiver, and keepFailing says for
	// how long one that is not tried again counts: its alerts have ended.
	maxFailing, keepFailing = 10_000, 6 * time.Hour
	// maxFailure bounds what is kept of a receiver's error, which may hold all that it answered.
	maxFailure = 500
)

// attempts remembers which notifications this replica tries to send and the receiver does not take.
type attempts struct {
	mu      sync.Mutex
	failing map[turnKey]failure
}

// failure is how the sending of a notification fails.
type failure struct {
	Error string    `json:"error"`
	Since time.Time `json:"since"`
	Last  time.Time `json:"last"`
	Tries int       `json:"tries"`
}

func newAttempts() *attempts { return &attempts{failing: map[turnKey]failure{}} }

// watch has an integration report each of its attempts, and keeps secrets out of its errors, which are shown and
// logged. Redact knows those of the configuration.
func (a *attempts) watch(receiver string, i notify.Integration, redact func(string) string) notify.Integration {
	w := &watched{Integration: i, attempts: a, receiver: receiver, redact: redact}
	return notify.NewIntegration(w, &w.Integration, i.Name(), i.Index(), receiver)
}

type watched struct {
	notify.Integration
	attempts *attempts
	receiver string
	redact   func(string) string
}

// Notify is one attempt.
func (w *watched) Notify(ctx context.Context, alerts ...*alert.Alert) (retry bool, err error) {
	retry, err = w.Integration.Notify(ctx, alerts...)
	group, _ := notify.GroupKey(ctx)
	key := turnKey{group, w.receiver, w.Name(), uint32(w.Index())}
	if err == nil {
		w.attempts.succeeded(key)
		return retry, nil
	}
	err = &receiverError{err, w.redact(withoutPaths(err.Error()))}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errPassOn):
		w.attempts.failed(key, errPassOn.Error(), time.Now())
	case errors.Is(cause, context.Canceled):
		// This replica stops, or has another configuration: the receiver is not to blame.
	default:
		w.attempts.failed(key, err.Error(), time.Now())
	}
	return retry, err
}

// receiverError is an error with a text without secrets.
type receiverError struct {
	err  error
	text string
}

func (e *receiverError) Error() string { return e.text }
func (e *receiverError) Unwrap() error { return e.err }

// address matches what a web address may look like in a sentence.
var address = regexp.MustCompile(`(?i)\bhttps?://[^\s"'<>]+`)

// withoutPaths leaves of each address in a sentence the scheme and the host. The rest is the password of many a
// receiver, and may come from a file, so that nobody else knows it to be one.
func withoutPaths(text string) string {
	return address.ReplaceAllStringFunc(text, func(found string) string {
		u, err := url.Parse(strings.TrimRight(found, ":,;."))
		if err != nil {
			return "<address>"
		}
		out := u.Scheme + "://" + u.Host
		if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			out += "/<secret>"
		}
		return out + found[len(strings.TrimRight(found, ":,;.")):]
	})
}

func (a *attempts) succeeded(key turnKey) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.failing, key)
}

func (a *attempts) failed(key turnKey, text string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f, again := a.failing[key]
	if !again {
		f.Since = now
		if len(a.failing) >= maxFailing {
			for k, old := range a.failing {
				if now.Sub(old.Last) > keepFailing || len(a.failing) >= maxFailing {
					delete(a.failing, k)
				}
			}
		}
	}
	f.Error, f.Last = shown(text, maxFailure), now
	f.Tries++
	a.failing[key] = f
}

// of is how the notification for a key fails since the last one that was sent, by whichever replica; nil if it does not.
func (a *attempts) of(key turnKey, sent time.Time) *failure {
	a.mu.Lock()
	defer a.mu.Unlock()
	f, ok := a.failing[key]
	if !ok || f.Last.Before(sent) {
		return nil
	}
	return &f
}

// shown is what may be shown of a text that others wrote, as one line.
func shown(text string, most int) string {
	return mesh.Printable(strings.Join(strings.Fields(text), " "), most)
}
