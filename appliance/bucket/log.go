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
