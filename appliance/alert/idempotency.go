package alert

import (
	"context"
	"errors"
	"log/slog"

	"github.com/prometheus/alertmanager/alert"
	"github.com/prometheus/alertmanager/nflog/nflogpb"
	"github.com/prometheus/alertmanager/notify"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// idempotencyHeader is what receivers that know it (draft-ietf-httpapi-idempotency-key-header) drop a repeated
// request by.
const idempotencyHeader = "Idempotency-Key"

type idempotencyContext struct{}

// keyStage gives a notification its idempotency key, for its headers.
type keyStage struct {
	log  *notificationLog
	recv *nflogpb.Receiver
}

// Exec stands behind deduplication, which says why there is a notification.
func (s keyStage) Exec(ctx context.Context, _ *slog.Logger, alerts ...*alert.Alert) (context.Context, []*alert.Alert, error) {
	group, ok := notify.GroupKey(ctx)
	if !ok {
		return ctx, nil, errors.New("group key missing")
	}
	key := keyOf(group, s.recv)
	var repeats *timestamppb.Timestamp
	if reason, _ := notify.NotificationReason(ctx); reason == notify.ReasonRepeatIntervalElapsed {
		repeats = s.log.entry(key).GetTimestamp()
	}
	return context.WithValue(ctx, idempotencyContext{}, idempotencyKey(key, repeats, alerts)), alerts, nil
}

// idempotency writes the key into the headers of every request that a receiver makes. Upstream builds the receivers'
// HTTP clients itself, and this is what it has them use to carry values of a request's context along.
type idempotency struct{}

func (idempotency) Inject(ctx context.Context, c propagation.TextMapCarrier) {
	if key, ok := ctx.Value(idempotencyContext{}).(string); ok {
		c.Set(idempotencyHeader, key)
	}
}

func (idempotency) Extract(ctx context.Context, _ propagation.TextMapCarrier) context.Context {
	return ctx
}

func (idempotency) Fields() []string { return []string{idempotencyHeader} }

// carryIdempotency has to be called before receivers are built: their clients take what is in force then. Upstream's
// tracing replaces it with trace context alone each time it is configured, so both are set.
func carryIdempotency() {
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(
		propagation.TraceContext{}, idempotency{}))
}
