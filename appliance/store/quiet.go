package store

import (
	"context"
	"log/slog"
)

// quiet makes ordinary what upstream warns of and healing does by design: a healed block overlaps others until they are
// merged, and keeps compactions off for a moment. It also takes what upstream says of the empty head of loadBlocks out of the way.
func quiet(l *slog.Logger) *slog.Logger { return slog.New(quietHandler{l.Handler()}) }

type quietHandler struct{ slog.Handler }

// Handle implements slog.Handler.
func (h quietHandler) Handle(ctx context.Context, r slog.Record) error {
	switch r.Message {
	case "Overlapping blocks found during reloadBlocks", "Compactions disabled", "Compactions enabled":
		r.Level = slog.LevelDebug
	case "write block started", "write block resulted in empty block":
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "mint" && a.Value.Kind() == slog.KindInt64 && a.Value.Int64() == reloadTime {
				r.Level = slog.LevelDebug
			}
			return r.Level != slog.LevelDebug
		})
	}
	if !h.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h quietHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quietHandler{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h quietHandler) WithGroup(name string) slog.Handler {
	return quietHandler{h.Handler.WithGroup(name)}
}
