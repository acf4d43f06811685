package alert

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/alertmanager/alert"
	"github.com/prometheus/alertmanager/inhibit"
	"github.com/prometheus/alertmanager/nflog"
	"github.com/prometheus/alertmanager/nflog/nflogpb"
	"github.com/prometheus/alertmanager/notify"
	"github.com/prometheus/common/model"
)

// behindFor is how long a notification waits for alerts that another replica already knows to be resolved.
const behindFor = 2 * time.Second

// pipeline is what a flush of an alert group goes through: upstream's stages in upstream's order. What differs is how
// the replicas keep out of each other's way: among replicas that can talk (see turns) by asking, else as stock
// Alertmanagers do, by waiting for a time that grows with the place in the mesh.
func (a *Alert) pipeline(p *prepared, inhibitor *inhibit.Inhibitor) notify.Stage {
	// An interface that holds a nil pointer is not nil: only a real mesh may be handed on.
	var peer notify.Peer
	if a.opts.Mesh != nil {
		peer = a.opts.Mesh
	}
	stages := make(notify.RoutingStage, len(p.receivers))
	for name, integrations := range p.receivers {
		var send notify.FanoutStage
		for _, integration := range integrations {
			send = append(send, a.sendStage(name, integration))
		}
		stages[name] = notify.MultiStage{
			notify.NewClusterGossipSettleStage(peer),
			notify.NewMuteStage(inhibitor, a.notifyMetrics),
			notify.NewTimeActiveStage(p.intervals, a.groups, a.notifyMetrics),
			notify.NewTimeMuteStage(p.intervals, a.groups, a.notifyMetrics),
			notify.NewMuteStage(a.silencer, a.notifyMetrics),
			send,
		}
	}
	a.notifyMetrics.InitializeFor(p.receivers)
	return stages
}

func (a *Alert) sendStage(receiver string, integration notify.Integration) notify.Stage {
	recv := &nflogpb.Receiver{
		GroupName:   receiver,
		Integration: integration.Name(),
		Idx:         uint32(integration.Index()),
	}
	dedup := notify.NewDedupStage(&integration, a.log, recv)
	send := notify.MultiStage{
		keyStage{a.log, recv},
		notify.NewRetryStage(integration, receiver, a.notifyMetrics, a.recorder),
		notify.NewSetNotifiesStage(a.log, recv),
	}
	if a.turns == nil {
		return notify.MultiStage{notify.NewClusterWaitStage(a.wait), dedup, send}
	}
	return &turnStage{
		turns: a.turns, dedup: dedup, send: send, log: a.log, recv: recv, latest: a.alerts.Get,
	}
}

// turnStage sends a notification when it is this replica's turn and it is still needed then.
type turnStage struct {
	turns  *turns
	dedup  notify.Stage
	send   notify.Stage
	log    *notificationLog
	recv   *nflogpb.Receiver
	latest func(model.Fingerprint) (*alert.Alert, error)
}

// Exec sends at most once. Its error is that of the last attempt.
func (s *turnStage) Exec(ctx context.Context, l *slog.Logger, alerts ...*alert.Alert) (context.Context, []*alert.Alert, error) {
	group, ok := notify.GroupKey(ctx)
	if !ok {
		return ctx, nil, errors.New("group key missing")
	}
	key := keyOf(group, s.recv)
	var failed error
	failures := 0
	for {
		// Most flushes have nothing to tell, and that is known without asking anybody.
		if _, needed, err := s.dedup.Exec(ctx, l, alerts...); err != nil || len(needed) == 0 {
			return ctx, nil, err
		}
		held, turn, err := s.turns.take(ctx, key, failures)
		switch {
		case errors.Is(err, errAgain):
			alerts = s.refresh(alerts)
			continue
		case errors.Is(err, errStoppingTurns):
			// The others send it. Upstream takes an end for a failure unless it has been told to stop, which comes next.
			<-ctx.Done()
			return ctx, nil, errors.Join(failed, context.Cause(ctx))
		case err != nil:
			return ctx, nil, errors.Join(failed, fmt.Errorf("wait for the turn to notify: %w", err))
		}
		err = s.sendNow(held, l, group, &alerts)
		passOn := errors.Is(context.Cause(held), errPassOn)
		s.turns.done(turn)
		if err == nil || !passOn {
			return ctx, alerts, err
		}
		failed = err
		failures++
	}
}

// sendNow holds the turn. Asking for it has brought along what the others sent.
func (s *turnStage) sendNow(ctx context.Context, l *slog.Logger, group string, alerts *[]*alert.Alert) error {
	*alerts = s.refresh(*alerts)
	if err := s.catchUp(ctx, group, alerts); err != nil {
		return err
	}
	ctx, needed, err := s.dedup.Exec(ctx, l, *alerts...)
	if err != nil || len(needed) == 0 {
		return err
	}
	_, _, err = s.send.Exec(ctx, l, needed...)
	return err
}

// refresh takes the alerts as they are now: while this replica waited for its turn, another may have told that they
// are resolved, or fire again.
func (s *turnStage) refresh(alerts []*alert.Alert) []*alert.Alert {
	out := make([]*alert.Alert, len(alerts))
	now := time.Now()
	for i, a := range alerts {
		out[i] = a
		if latest, err := s.latest(a.Fingerprint()); err == nil {
			fresh := *latest
			if !fresh.ResolvedAt(now) {
				// As upstream's flush has it: an alert must not resolve while it is being sent.
				fresh.EndsAt = time.Time{}
			}
			out[i] = &fresh
		}
	}
	return out
}

// catchUp waits, for a while, where another replica has notified of a resolved alert that this one still has firing,
// and has not heard of since: to send now would be to send firing after resolved.
func (s *turnStage) catchUp(ctx context.Context, group string, alerts *[]*alert.Alert) error {
	deadline := time.Now().Add(behindFor)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s.behind(group, *alerts) && time.Now().Before(deadline) {
		select {
		case <-tick.C:
			*alerts = s.refresh(*alerts)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (s *turnStage) behind(group string, alerts []*alert.Alert) bool {
	entries, err := s.log.Query(nflog.QGroupKey(group), nflog.QReceiver(s.recv))
	if err != nil || len(entries) != 1 {
		return false // Nothing was sent yet.
	}
	entry := entries[0]
	resolved := map[uint64]bool{}
	for _, h := range entry.GetResolvedAlerts() {
		resolved[h] = true
	}
	if len(resolved) == 0 {
		return false
	}
	for _, a := range alerts {
		if !a.Resolved() && !a.UpdatedAt.After(entry.GetTimestamp().AsTime()) && resolved[hashLabels(a)] {
			return true
		}
	}
	return false
}
