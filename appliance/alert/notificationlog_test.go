package alert

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/alertmanager/alert"
	"github.com/prometheus/alertmanager/nflog"
	"github.com/prometheus/alertmanager/nflog/nflogpb"
	"github.com/prometheus/alertmanager/notify"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

var testReceiver = &nflogpb.Receiver{GroupName: "people", Integration: "webhook", Idx: 1}

func newTestLog(t *testing.T) *notificationLog {
	t.Helper()
	reg := prometheus.NewRegistry()
	up, err := nflog.New(nflog.Options{Retention: time.Hour, Logger: slog.New(slog.DiscardHandler), Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	return &notificationLog{
		upstreamLog: up, self: "a", retention: time.Hour, duplicates: newMetrics(reg).duplicates, sent: map[turnKey]sent{},
	}
}

// TestLogSurvivesClocks holds that what this replica has just sent counts, although another replica whose clock is
// ahead has sent before.
func TestLogSurvivesClocks(t *testing.T) {
	l := newTestLog(t)
	ahead, err := encodeEntry(&nflogpb.Entry{
		Receiver: testReceiver, GroupKey: []byte("g"), FiringAlerts: []uint64{7},
		Timestamp: timestamppb.New(time.Now().Add(time.Minute)),
	}, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Merge(ahead); err != nil {
		t.Fatal(err)
	}
	var told int
	l.SetBroadcast(func([]byte) { told++ })
	if err := l.Log(testReceiver, "g", nil, []uint64{7}, nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	e := l.entry(keyOf("g", testReceiver))
	if len(e.GetFiringAlerts()) != 0 || len(e.GetResolvedAlerts()) != 1 {
		t.Errorf("the log still says firing %v, resolved %v: it will be sent again", e.GetFiringAlerts(), e.GetResolvedAlerts())
	}
	if told != 1 {
		t.Errorf("the others were told %d times", told)
	}
}

// TestDuplicatesAreCounted holds that each of two replicas that sent the same counts it once, and that nothing else
// counts.
func TestDuplicatesAreCounted(t *testing.T) { synctest.Test(t, testDuplicatesAreCounted) }

func testDuplicatesAreCounted(t *testing.T) {
	a, b := newTestLog(t), newTestLog(t)
	both := func(f func(l *notificationLog) error) {
		for _, l := range []*notificationLog{a, b} {
			if err := f(l); err != nil {
				t.Fatal(err)
			}
			pass(5 * time.Millisecond) // Two replicas do not send in the same millisecond.
		}
	}
	both(func(l *notificationLog) error {
		return l.Log(testReceiver, "same", []uint64{2, 1}, nil, nil, time.Hour)
	})
	if err := a.Log(testReceiver, "only a", []uint64{1}, nil, nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := a.Log(testReceiver, "then resolved by b", []uint64{1}, nil, nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := b.Log(testReceiver, "then resolved by b", nil, []uint64{1}, nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	states := [2][]byte{}
	for i, l := range []*notificationLog{a, b} {
		var err error
		if states[i], err = l.MarshalBinary(); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 { // Full states come again and again.
		if err := a.Merge(states[1]); err != nil {
			t.Fatal(err)
		}
		if err := b.Merge(states[0]); err != nil {
			t.Fatal(err)
		}
	}
	for name, l := range map[string]*notificationLog{"a": a, "b": b} {
		if n := testutil.ToFloat64(l.duplicates); n != 1 {
			t.Errorf("replica %s counts %v duplicates, want 1", name, n)
		}
	}
}

// TestSenderIsTheSender holds that the log says who sent the last notification, also where the clock is behind another
// replica's, and that nobody is named for what a stock Alertmanager sent, which copies what it finds in the log.
func TestSenderIsTheSender(t *testing.T) {
	l := newTestLog(t)
	key := keyOf("g", testReceiver)
	say := func() {
		t.Helper()
		store := nflog.NewStore(l.entry(key))
		if err := l.Log(testReceiver, "g", []uint64{7}, nil, store, time.Hour); err != nil {
			t.Fatal(err)
		}
		if got := senderOf(l.entry(key)); got != "a" {
			t.Errorf("the log says that %q sent it, want a", got)
		}
	}
	merge := func(change func(*nflogpb.Entry)) {
		t.Helper()
		e := proto.Clone(l.entry(key)).(*nflogpb.Entry)
		change(e)
		b, err := encodeEntry(e, time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Merge(b); err != nil {
			t.Fatal(err)
		}
	}
	say()
	merge(func(e *nflogpb.Entry) { e.Timestamp = timestamppb.New(time.Now().Add(time.Minute)) })
	if got := senderOf(l.entry(key)); got != "" {
		t.Errorf("%q is named for what another sent a minute later", got)
	}
	say() // Now the clock is behind.
	for _, forged := range []string{"", "b", "x b", " b", "99999999999999999999 b"} {
		merge(func(e *nflogpb.Entry) {
			e.Timestamp = timestamppb.New(e.GetTimestamp().AsTime().Add(time.Second))
			e.ReceiverData[signedBy] = &nflogpb.ReceiverDataValue{Value: &nflogpb.ReceiverDataValue_StrVal{StrVal: forged}}
		})
		if got := senderOf(l.entry(key)); got != "" {
			t.Errorf("%q is named by the signature %q", got, forged)
		}
	}
	merge(func(e *nflogpb.Entry) {
		at := e.GetTimestamp().AsTime().Add(time.Second)
		e.Timestamp = timestamppb.New(at)
		long := signature("b\n\x1b[31m"+strings.Repeat("x", 1<<20), at)
		e.ReceiverData[signedBy] = &nflogpb.ReceiverDataValue{Value: &nflogpb.ReceiverDataValue_StrVal{StrVal: long}}
	})
	if got := senderOf(l.entry(key)); len(got) > maxReplicaName || !strings.HasPrefix(got, "b ?[31mx") {
		t.Errorf("shown with %d bytes: %.20q", len(got), got)
	}
}

func TestSentIsBounded(t *testing.T) {
	l := newTestLog(t)
	for i := range maxSent + 10 {
		l.remember(turnKey{group: fmt.Sprint(i)}, sent{at: time.Now()})
	}
	if len(l.sent) > maxSent {
		t.Errorf("%d notifications are remembered", len(l.sent))
	}
}

func alerts(firing ...string) []*alert.Alert {
	var out []*alert.Alert
	for _, n := range firing {
		a := &alert.Alert{UpdatedAt: time.Now()}
		a.Labels = model.LabelSet{"alertname": model.LabelValue(n), "zone": "x"}
		a.StartsAt = time.UnixMilli(1000)
		out = append(out, a)
	}
	return out
}

// TestHashLabels holds that an alert has the hash that upstream's stages give it.
func TestHashLabels(t *testing.T) {
	l := newTestLog(t)
	dedup := notify.NewDedupStage(always{}, l, testReceiver)
	ctx := notify.WithRepeatInterval(notify.WithGroupKey(t.Context(), "g"), time.Hour)
	all := alerts("a", "b")
	ctx, _, err := dedup.Exec(ctx, slog.New(slog.DiscardHandler), all...)
	if err != nil {
		t.Fatal(err)
	}
	theirs, _ := notify.FiringAlerts(ctx)
	for i, a := range all {
		if hashLabels(a) != theirs[i] {
			t.Errorf("alert %d has hash %x here and %x in the notification log", i, hashLabels(a), theirs[i])
		}
	}
}

type always struct{}

func (always) SendResolved() bool { return true }

// TestIdempotencyKey holds that the same notification has the same key wherever it is sent, and no other has it.
func TestIdempotencyKey(t *testing.T) {
	key, now := keyOf("g", testReceiver), time.Unix(7200, 0)
	of := func(last string, at time.Time, as []*alert.Alert) string {
		return idempotencyKey(key, last, at, time.Hour, as)
	}
	base, next := of("", now, alerts("a", "b")), of("x", now, alerts("a", "b"))
	seenLater := alerts("b", "a")
	seenLater[0].StartsAt = time.UnixMilli(3000)
	if again := of("", now.Add(time.Minute), seenLater); again != base {
		t.Error("another replica, which sends a minute later, has another key")
	}
	if again := of("x", now.Add(24*time.Hour), seenLater); again != next {
		t.Error("another replica has another key for what follows the same notification")
	}
	resolved := alerts("a", "b")
	resolved[0].EndsAt = time.UnixMilli(2000)
	for name, other := range map[string]string{
		"one more alert":      of("", now, alerts("a", "b", "c")),
		"one resolved":        of("", now, resolved),
		"after another":       next,
		"after yet another":   of("y", now, alerts("a", "b")),
		"long after":          of("", now.Add(2*time.Hour), alerts("a", "b")),
		"another receiver":    idempotencyKey(keyOf("g", &nflogpb.Receiver{GroupName: "other"}), "", now, time.Hour, alerts("a", "b")),
		"another alert group": idempotencyKey(keyOf("h", testReceiver), "", now, time.Hour, alerts("a", "b")),
	} {
		if other == base {
			t.Errorf("%s has the same key", name)
		}
	}
}

// TestKeysAreChained holds that the log carries the key that the next one is made of, also where the clock is behind.
func TestKeysAreChained(t *testing.T) {
	l := newTestLog(t)
	dedup := notify.NewDedupStage(always{}, l, testReceiver)
	logged := notify.NewSetNotifiesStage(l, testReceiver)
	seen := map[string]bool{}
	as := alerts("x")
	for i := range 4 {
		as[0].EndsAt = time.Time{}
		if i%2 == 1 {
			as[0].EndsAt = time.Now().Add(-time.Second)
		}
		ctx := notify.WithRepeatInterval(notify.WithGroupKey(t.Context(), "g"), time.Hour)
		var err error
		for _, s := range []notify.Stage{dedup, keyStage{l, testReceiver}, logged} {
			if ctx, _, err = s.Exec(ctx, slog.New(slog.DiscardHandler), as...); err != nil {
				t.Fatal(err)
			}
		}
		key, _ := ctx.Value(idempotencyContext{}).(string)
		if key == "" || seen[key] {
			t.Errorf("notification %d has the key %q, and before it there were %v", i, key, seen)
		}
		seen[key] = true
		if got := l.entry(keyOf("g", testReceiver)).GetReceiverData()[chain].GetStrVal(); got != key {
			t.Errorf("the log has the key %q after %q was sent", got, key)
		}
		if i == 1 { // Another replica whose clock is ahead has sent the same.
			e := proto.Clone(l.entry(keyOf("g", testReceiver))).(*nflogpb.Entry)
			e.Timestamp = timestamppb.New(time.Now().Add(time.Minute))
			b, err := encodeEntry(e, time.Now().Add(time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Merge(b); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestResolvedIsNotOvertaken holds that a replica that waited for its turn with an alert that was firing then sends
// what is so now.
func TestResolvedIsNotOvertaken(t *testing.T) {
	l := newTestLog(t)
	w := newTown(t, "a")
	firing := alerts("x")
	resolved := *firing[0]
	resolved.EndsAt = time.Now().Add(-time.Second)
	var sent []*alert.Alert
	s := &turnStage{
		turns: w.turns["a"], log: l, recv: testReceiver,
		dedup: notify.NewDedupStage(always{}, l, testReceiver),
		send: notify.StageFunc(func(ctx context.Context, _ *slog.Logger, as ...*alert.Alert) (context.Context, []*alert.Alert, error) {
			sent = append(sent, as...)
			return ctx, as, nil
		}),
		latest: func(model.Fingerprint) (*alert.Alert, error) { return &resolved, nil },
	}
	ctx := notify.WithRepeatInterval(notify.WithGroupKey(t.Context(), "g"), time.Hour)
	// Another replica has told that it fires, and after that that it does not.
	if err := l.Log(testReceiver, "g", nil, []uint64{hashLabels(firing[0])}, nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Exec(ctx, slog.New(slog.DiscardHandler), firing...); err != nil {
		t.Fatal(err)
	}
	if len(sent) != 0 {
		t.Errorf("%v was sent after its end", sent)
	}
}
