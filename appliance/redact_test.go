package appliance

import (
	"bytes"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"testing"
)

func TestNoPasswordReachesTheLog(t *testing.T) {
	u, err := url.Parse("https://user:hunter2@host/path")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	l := slog.New(redacting{slog.NewTextHandler(&b, nil)})
	l.With("url", u.String()).Info("sending to "+u.String(), "u", u, "err", errors.New("post "+u.String()), slog.Group("g", "u", u.String()))
	l.WithGroup("x").Info("y", "url", u.String(), "mail", "somebody@host", "path", "http://host/a@b")
	if strings.Contains(b.String(), "hunter2") {
		t.Errorf("the log shows the password: %s", b.String())
	}
	for _, want := range []string{"https://<secret>@host/path", "somebody@host", "http://host/a@b"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the log lacks %s: %s", want, b.String())
		}
	}
}
