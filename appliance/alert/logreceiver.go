package alert

import (
	"context"
	"log/slog"

	"github.com/prometheus/alertmanager/alert"
	"github.com/prometheus/alertmanager/notify"
	"github.com/prometheus/common/model"
)

// maxLogged bounds the lines of one notification; the count of the rest follows in one more.
const maxLogged = 20

// logNotifier is the receiver of the built-in configuration: it writes each notification to the process's log, so
// that a fresh replica shows its alerts before anybody has told it whom to page.
type logNotifier struct{ logger *slog.Logger }

func newLogIntegration(logger *slog.Logger, receiver string) notify.Integration {
	n := logNotifier{logger: logger.With("receiver", receiver)}
	return notify.NewIntegration(n, n, "log", 0, receiver)
}

// SendResolved says that the end of an alert is logged too.
func (logNotifier) SendResolved() bool { return true }

// Notify never fails, so there is nothing to retry.
func (n logNotifier) Notify(_ context.Context, alerts ...*alert.Alert) (retry bool, err error) {
	for i, a := range alerts {
		if i == maxLogged {
			n.logger.Warn("more alerts in the same notification", "count", len(alerts)-maxLogged)
			break
		}
		args := []any{"labels", a.Labels.String(), "starts_at", a.StartsAt}
		for _, key := range []string{"summary", "description"} {
			if v := a.Annotations[model.LabelName(key)]; v != "" {
				args = append(args, key, string(v))
			}
		}
		if a.Resolved() {
			n.logger.Info("alert resolved: "+a.Name(), args...)
		} else {
			n.logger.Warn("alert firing: "+a.Name(), args...)
		}
	}
	return false, nil
}
