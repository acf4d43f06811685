package alert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/alertmanager/alert"
	"github.com/prometheus/alertmanager/nflog/nflogpb"
	"github.com/prometheus/alertmanager/notify"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
)

// idempotencyHeader is what receivers that know it (draft-ietf-httpapi-idempotency-key-header) drop a repeated
// request by.
const idempotencyHeader = "Idempotency-Key"

type idempotencyContext struct{}

// chain is where the notification log keeps the last key, beside what receivers keep there.
const chain = "tocsin_idempotency_key"

// signedBy is where it keeps who sent the last notification, see signature.
const signedBy = "tocsin_replica"

// keyStage gives a notification its idempotency key, for its headers and for the log.
type keyStage struct {
	log  *notificationLog
	recv *nflogpb.Receiver
}

// Exec stands behind deduplication, which has put what will be logged into the context.
func (s keyStage) Exec(ctx context.Context, _ *slog.Logger, alerts ...*alert.Alert) (context.Context, []*alert.Alert, error) {
	group, ok := notify.GroupKey(ctx)
	if !ok {
		return ctx, nil, errors.New("group key missing")
	}
	repeat, ok := notify.RepeatInterval(ctx)
	if !ok {
		return ctx, nil, errors.New("repeat interval missing")
	}
	key := keyOf(group, s.recv)
	last := s.log.entry(key).GetReceiverData()[chain].GetStrVal()
	next := idempotencyKey(key, last, time.Now(), min(repeat, s.log.retention), alerts)
	if store, ok := notify.NflogStore(ctx); ok {
		store.SetStr(chain, next)
	}
	return context.WithValue(ctx, idempotencyContext{}, next), alerts, nil
}

// idempotencyKey is the same on every replica that sends the same notification, also where they do not see each other:
// it is made of the receiver, the group, its alerts, and the key of the last notification, which all have in their
// logs. Where there is none, because there was no notification or it has expired after twice the repeat interval, the
// period stands for it in which this one is sent. Times of alerts are no help: each replica has its own.
func idempotencyKey(key turnKey, last string, now time.Time, period time.Duration, alerts []*alert.Alert) string {
	if last == "" {
		last = now.Truncate(max(period, time.Second)).UTC().Format(time.RFC3339)
	}
	lines := make([]string, 0, len(alerts))
	for _, a := range alerts {
		lines = append(lines, fmt.Sprintf("%016x %t", hashLabels(a), a.Resolved()))
	}
	slices.Sort(lines)
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s", key, last, strings.Join(lines, "\n")) // A hash never fails.
	return hex.EncodeToString(h.Sum(nil)[:16])
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
