package appliance

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
)

// redacting hides the user information of URLs in everything that is logged: upstream's remote write, for one, logs
// its URL as it stands in the configuration, password included.
type redacting struct{ slog.Handler }

// userinfo is what stands between the scheme and the host of a URL.
var userinfo = regexp.MustCompile(`(://)[^/?#@\s"]+@`)

func redact(text string) string { return userinfo.ReplaceAllString(text, "${1}<secret>@") }

// Handle hides secrets in the message and in every attribute.
func (h redacting) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, r.Level, redact(r.Message), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		clean.AddAttrs(redactAttr(a))
		return true
	})
	return h.Handler.Handle(ctx, clean)
}

// WithAttrs hides secrets in the attributes that each later record will carry.
func (h redacting) WithAttrs(attrs []slog.Attr) slog.Handler {
	clean := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		clean[i] = redactAttr(a)
	}
	return redacting{h.Handler.WithAttrs(clean)}
}

// WithGroup keeps hiding.
func (h redacting) WithGroup(name string) slog.Handler { return redacting{h.Handler.WithGroup(name)} }

func redactAttr(a slog.Attr) slog.Attr {
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(redact(v.String()))
	case slog.KindAny:
		switch v.Any().(type) {
		case error, fmt.Stringer:
			a.Value = slog.StringValue(redact(v.String()))
		}
	case slog.KindGroup:
		group := v.Group()
		clean := make([]slog.Attr, len(group))
		for i, g := range group {
			clean[i] = redactAttr(g)
		}
		a.Value = slog.GroupValue(clean...)
	}
	return a
}
