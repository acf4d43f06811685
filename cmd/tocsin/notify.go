package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/tocsin-io/tocsin/appliance"
)

const (
	// lookEvery is how often the service manager may learn of something new.
	lookEvery = time.Second
	// extendEvery is how often a start or a stop that gets on asks for more time, and extendBy how much.
	extendEvery, extendBy = 5 * time.Second, time.Minute
)

// watched is what the service manager is told about; *appliance.Appliance is one.
type watched interface {
	State() appliance.State
	Alive(context.Context) error
}

// notifier tells systemd, by the protocol of sd_notify(3), how the process is: that it is ready, reloads or stops, in a
// sentence what it does, that a long start or stop gets on, and that it is alive. Without NOTIFY_SOCKET, which systemd
// sets for Type=notify, it does nothing.
type notifier struct {
	logger   *slog.Logger
	watchdog time.Duration // 0 is off
	on       bool

	mu       sync.Mutex
	ready    bool // READY=1 was sent.
	stopping bool // STOPPING=1 was sent.
	status   string
	extended time.Time
	warned   bool
}

func newNotifier(logger *slog.Logger) *notifier {
	n := &notifier{logger: logger, on: os.Getenv("NOTIFY_SOCKET") != ""}
	if !n.on {
		return n
	}
	var err error
	if n.watchdog, err = daemon.SdWatchdogEnabled(false); err != nil {
		logger.Warn("the service manager's watchdog is not fed: WATCHDOG_USEC cannot be read", "err", err)
	}
	return n
}

// send is called with the lock held. A message that does not arrive is no reason to end.
func (n *notifier) send(message string) {
	if !n.on {
		return
	}
	if _, err := daemon.SdNotify(false, message); err != nil && !n.warned {
		n.warned = true
		n.logger.Warn("the service manager cannot be told how this process is", "err", err)
	}
}

// reloading is appliance.Options.OnReload.
func (n *notifier) reloading(begun bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.stopping || !n.ready:
	case begun:
		n.send(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec() + "STATUS=reloading the configuration")
		n.status = ""
	default:
		n.send(daemon.SdNotifyReady)
	}
}

// run tells how w is until ctx ends, which is when the process has stopped.
func (n *notifier) run(ctx context.Context, w watched) {
	if !n.on {
		return
	}
	var feeding sync.WaitGroup
	defer feeding.Wait()
	if n.watchdog > 0 {
		feeding.Go(func() { n.feed(ctx, w) })
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		n.look(w.State())
		select {
		case <-tick.C:
		case <-ctx.Done():
			n.look(appliance.State{Stopping: true, Sentence: "stopped"})
			return
		}
	}
}

// look tells what is new.
func (n *notifier) look(s appliance.State) {
	n.mu.Lock()
	defer n.mu.Unlock()
	message := ""
	add := func(line string) {
		if message != "" {
			message += "\n"
		}
		message += line
	}
	switch {
	case s.Stopping && !n.stopping:
		n.stopping = true
		add(daemon.SdNotifyStopping)
	case s.Ready && !n.ready && !n.stopping:
		n.ready = true
		add(daemon.SdNotifyReady)
	}
	if s.Sentence != n.status {
		n.status = s.Sentence
		add("STATUS=" + s.Sentence)
	}
	// Only while it waits for this process does systemd have a time-out. What does not get on is left to that.
	if waits := s.Stopping || !n.ready; waits && s.Moving && time.Since(n.extended) >= extendEvery {
		n.extended = time.Now()
		add(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extendBy.Microseconds()))
	}
	if message != "" {
		n.send(message)
	}
}

// feed feeds the watchdog twice as often as it has to be, as long as the process is alive.
func (n *notifier) feed(ctx context.Context, w watched) {
	every := n.watchdog / 2
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		n.feedOnce(ctx, w, every)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (n *notifier) feedOnce(ctx context.Context, w watched, within time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := w.Alive(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return // The process has stopped meanwhile.
	}
	if err != nil {
		n.logger.Error("the service manager's watchdog is not fed, and will end this process unless it comes round", "watchdog", n.watchdog, "err", err)
		return
	}
	n.send(daemon.SdNotifyWatchdog)
}
