package bucket

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/go-kit/log" //nolint:depguard // What Thanos's and objstore's packages take.
)

// kitLog is what callbacks from Thanos's packages are given.
type kitLog = log.Logger

// kitLogger hands the lines of Thanos's packages to slog.
type kitLogger struct{ to *slog.Logger }

var _ log.Logger = kitLogger{}

// Log implements log.Logger.
func (l kitLogger) Log(keyvals ...any) error {
	level, msg := slog.LevelInfo, ""
	attrs := make([]slog.Attr, 0, len(keyvals)/2)
	for i := 0; i+1 < len(keyvals); i += 2 {
		key, value := fmt.Sprint(keyvals[i]), keyvals[i+1]
		switch key {
		case "level":
			if err := level.UnmarshalText([]byte(fmt.Sprint(value))); err != nil {
				level = slog.LevelInfo
			}
		case "msg":
			msg = fmt.Sprint(value)
		case "ts", "caller":
		default:
			attrs = append(attrs, slog.Any(key, value))
		}
	}
	l.to.LogAttrs(context.Background(), level, msg, attrs...)
	return nil
}

// demoted makes Thanos's lines less important: what it tells about each look is nothing for an operator.
type demoted struct{ slog.Handler }

// Enabled implements slog.Handler.
func (d demoted) Enabled(ctx context.Context, level slog.Level) bool {
	return d.Handler.Enabled(ctx, demote(level))
}

// Handle implements slog.Handler.
func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	if r.Level = demote(r.Level); !d.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return d.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (d demoted) WithAttrs(attrs []slog.Attr) slog.Handler {
	return demoted{d.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (d demoted) WithGroup(name string) slog.Handler { return demoted{d.Handler.WithGroup(name)} }

func demote(level slog.Level) slog.Level {
	if level < slog.LevelWarn {
		return min(level, slog.LevelDebug)
	}
	return level
}
