package appliance

import (
	"context"
	"fmt"
	"time"

	"github.com/tocsin-io/tocsin/appliance/drain"
	"github.com/tocsin-io/tocsin/appliance/store"
)

const (
	// commitPatience is how long a commit of samples may take before the process counts as stuck. It is long, because a
	// disk that stands still for a minute goes on, and a restart would not mend it; what takes longer is a lock that is
	// never given back, or a disk on which a restart is the smaller harm.
	commitPatience = 5 * time.Minute
	// startPatience is how long one step of the start may take until it counts as stuck: reading the snapshot of what was
	// in memory tells nothing of how far it is.
	startPatience = 10 * time.Minute
	// healPatience is for how long after something of a gap was found or filled another replica that is to be stopped
	// waits for the rest.
	healPatience = 15 * time.Minute
)

// State is how the process is, for who watches over it from outside: a service manager.
type State struct {
	Ready, Stopping bool
	// Sentence says what it does, with how far it is.
	Sentence string
	// Moving says of a start or a stop that it gets on, or had no time to show that it does not.
	Moving bool
}

// stage is what a start or a stop is at, and since when.
type stage struct {
	sentence string
	since    time.Time
}

// State says how the process is. It is to be asked every few seconds: Moving follows what was said before.
func (a *Appliance) State() State {
	ready, sentence := a.Ready()
	s := State{Ready: ready, Stopping: a.stopping(), Sentence: sentence}
	if s.Ready {
		s.Sentence = a.readySentence()
	}
	a.stageMu.Lock()
	defer a.stageMu.Unlock()
	patience := startPatience
	switch {
	case s.Stopping:
		s.Sentence = "stopping"
		if a.stopStage != "" {
			s.Sentence += ": " + a.stopStage
		}
		// What is longer under way is left behind by close. A replay cannot be interrupted.
		patience = a.closePatience()
		if ok, replay := a.store.Condition(); !ok && a.stopStage == "store" {
			s.Sentence, patience = "stopping after "+replay, startPatience
		}
	case s.Ready:
		// That the numbers in the sentence change is no progress of anything.
		a.stage = stage{"ready", time.Now()}
		return s
	}
	if a.stage.sentence != s.Sentence {
		a.stage = stage{s.Sentence, time.Now()}
	}
	s.Moving = time.Since(a.stage.since) < patience
	return s
}

// at notes what the stop is at.
func (a *Appliance) at(stage string) {
	a.stageMu.Lock()
	defer a.stageMu.Unlock()
	a.stopStage = stage
}

// readySentence is what a replica that is ready is at.
func (a *Appliance) readySentence() string {
	s := "ready, alone"
	if a.mesh != nil {
		alive, known := 0, 0
		for _, m := range a.mesh.Members() {
			if m.Self {
				continue
			}
			known++
			if m.Alive {
				alive++
			}
		}
		s = fmt.Sprintf("ready, %d of %d peers", alive, known)
	}
	if missing, _ := a.catchingUp(); missing != "" {
		s += ", " + missing
	}
	switch d := a.drain.State(); d.State {
	case drain.StateWaiting:
		s += ", waiting to be drained"
	case drain.StateDrained:
		s += ", drained: may be stopped until " + d.Until.Format("15:04:05 UTC")
	}
	return s
}

// catchingUp says what of the outages of this replica is not filled yet, "" for nothing, and whether it gets on.
func (a *Appliance) catchingUp() (sentence string, moving bool) {
	if a.mesh == nil || !a.mesh.Keyed() {
		return "", false
	}
	open := 0
	var last time.Time
	for _, g := range a.ledger.Open() {
		if g.Kind != store.GapReplica {
			continue
		}
		open++
		if g.Found.After(last) {
			last = g.Found
		}
		for _, f := range g.Fills {
			if f.At.After(last) {
				last = f.At
			}
		}
	}
	if open == 0 {
		return "", false
	}
	sentence = fmt.Sprintf("catching up: %d gap", open)
	if open > 1 {
		sentence += "s"
	}
	moving = time.Since(last) < healPatience
	if h := a.heal.Healing(); h != nil && h.Kind == store.GapReplica {
		sentence += fmt.Sprintf(", %d %% of one filled", int(100*h.Ratio))
		moving = true
	}
	return sentence, moving
}

// newDrain makes the guard of rolling upgrades.
func (a *Appliance) newDrain() {
	do := drain.Options{
		Logger: a.component("drain"), Registerer: a.opts.Registry, Unfit: a.unfit,
		Expects: func() bool { return a.Config().Cluster != nil && a.expectsOthers() }, Stopping: a.stopRequested,
	}
	if a.mesh != nil { // An interface that holds a nil pointer is not nil.
		do.Mesh = a.mesh
	}
	a.drain = drain.New(do)
	a.onClose("drain", a.drain.Close)
}

// unfit says what keeps this replica from standing in for another one that is to be stopped, in words that follow its
// name. A gap that has not been filled for long will not be soon: nobody waits for that.
func (a *Appliance) unfit() string {
	if a.stopping() {
		return "is stopping"
	}
	if ok, sentence := a.Ready(); !ok {
		return "is starting: " + sentence
	}
	if sentence, moving := a.catchingUp(); moving {
		return "is " + sentence
	}
	return ""
}

// Alive says what keeps the process from its work, if something does that a restart may mend. It looks at two things
// that everything goes through: the HTTP door has to answer a request over a connection, and no commit of samples may
// hang. That a peer, a target, a receiver or the bucket does not answer is nothing that a restart mends. While the
// process starts or stops, the door may be closed; then it has to get on.
func (a *Appliance) Alive(ctx context.Context) error {
	if s := a.State(); s.Stopping {
		if !s.Moving {
			return fmt.Errorf("the stop does not get on: %s", s.Sentence)
		}
		return nil
	}
	if err := a.web.Alive(ctx); err != nil {
		if a.stopping() {
			return nil
		}
		return err
	}
	if d := a.store.OldestCommit(); d > commitPatience {
		return fmt.Errorf("samples are not taken any more: a commit has been under way for %s", d.Round(time.Second))
	}
	return nil
}
