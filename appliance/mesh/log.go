package mesh

import (
	"context"
	"log/slog"
	"strings"
	"time"
)

// logLine takes the lines of memberlist's logger. What they say about traffic that is refused the guard has said
// before, with its sender and its reason; what is left is rarely for the operator.
type logLine struct {
	logger *slog.Logger
	quiet  limiter
}

// maxLogLine bounds what is shown of a line: some hold what others sent.
const maxLogLine = 300

// Write takes one line: date, time, [LEVEL], text.
func (l *logLine) Write(b []byte) (int, error) {
	line := string(b)
	level := slog.LevelInfo
	if i := strings.IndexByte(line, '['); i >= 0 {
		if j := strings.IndexByte(line[i:], ']'); j > 0 {
			level = lineLevel(line[i+1 : i+j])
			line = line[i+j+1:]
		}
	}
	line = strings.TrimPrefix(strings.TrimSpace(line), "memberlist: ")
	if told(line) {
		level = slog.LevelDebug
	}
	if !l.logger.Enabled(context.Background(), level) {
		return len(b), nil
	}
	attrs := []any{"detail", Printable(line, maxLogLine)}
	if level > slog.LevelDebug {
		// Lines about one trouble begin alike and end in an address or a number.
		since, ok := l.quiet.allow(line[:min(len(line), 24)], time.Now())
		if !ok {
			return len(b), nil
		}
		if since > 0 {
			attrs = append(attrs, "more_since_last_time", since)
		}
	}
	l.logger.Log(context.Background(), level, "gossip", attrs...)
	return len(b), nil
}

// lineLevel is the level that a line of memberlist is worth to us. Its errors are mostly the ordinary fate of packets
// to a replica that is away.
func lineLevel(s string) slog.Level {
	switch s {
	case "ERR", "ERROR", "WARN":
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}

// told says whether a line repeats what we tell in our own words.
func told(line string) bool {
	for _, begin := range []string{
		"ignoring alive message",   // The delegate refused it.
		"Conflicting address",      // The name conflict.
		"failed to receive",        // The guard or the network.
		"Failed push/pull merge",   // The same.
		"Push/Pull with",           // A member that dies is told when it is dead.
		"Failed to send",           // The same.
		"Failed fallback TCP ping", // The same.
		"Refuting",                 // Every restart.
		"Got ping for unexpected",  // Another replica took over the address.
		"Binding to public address",
	} {
		if strings.HasPrefix(line, begin) {
			return true
		}
	}
	return false
}
