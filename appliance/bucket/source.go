package bucket

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/thanos-io/objstore"

	"github.com/tocsin-io/tocsin/appliance/mesh"
)

const (
	// lookTimeout bounds one look at the configuration in the bucket, and the one that the start waits for.
	lookTimeout  = 2 * time.Minute
	startTimeout = 10 * time.Second
	// startPause is between two looks at a start.
	startPause = time.Second
	// hurry is the longest pause between two looks while there is no configuration at all.
	hurry = 15 * time.Second

	// unsettled is how long a push may be under way, without anything changing, until what is there is refused.
	unsettled = 2 * time.Minute
	// tryAgain is how often a refused configuration is checked again: the reason may have been on this machine. One that came into
	// force in part, and disturbed what runs, is left alone for longer.
	tryAgain   = time.Minute
	applyAgain = 10 * time.Minute

	// An object whose time has not changed is taken for unchanged from an age on, for providers note the time in seconds and by
	// clocks of their own; and everything is read again now and then all the same.
	unchangedAge  = time.Minute
	readAllAgain  = 10 * time.Minute
	keptVersions  = 3
	versionsName  = "versions"
	liveName      = "live"
	currentName   = "current"
	beginningName = "beginning"
)

// The states of a configuration source.
const (
	// StateApplied says that what is in the bucket is in force here.
	StateApplied = "applied"
	// StateRefused says that what is in the bucket cannot be used; what ran goes on.
	StateRefused = "refused"
	// StateWaiting says that there is nothing to apply yet: the bucket is away or empty, or a push is under way.
	StateWaiting = "waiting"
)

// SourceStatus is what the configuration API answers.
type SourceStatus struct {
	Prefix string `json:"prefix"`
	// Hash is of the configuration in force, "" for none; SeenHash of that in the bucket.
	Hash     string `json:"hash"`
	SeenHash string `json:"seen_hash"`
	// State is one of the State constants, Problem the reason where it is not StateApplied.
	State   string `json:"state"`
	Problem string `json:"problem,omitempty"`
	// Since is when Hash or State became what they are, LastSuccess when the bucket was last read.
	Since       time.Time `json:"since,omitzero"`
	LastSuccess time.Time `json:"last_success,omitzero"`
}

// SourceOptions is what a Source needs. All but Tell and Members is required.
type SourceOptions struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Bucket     objstore.BucketReader
	// Prefix is where the configuration is in the bucket, with a slash at its end; Poll the time between two looks.
	Prefix string
	Poll   time.Duration
	// Dir is where it is kept.
	Dir string
	// Check says what is wrong with the configuration in a folder, without changing anything.
	Check func(dir string) error
	// Apply puts the configuration in the Live folder into force. Where it fails, mixed says whether that was after parts of it had
	// come into force.
	Apply func(context.Context) (mixed bool, err error)
	// Tell hands the others what is in force here.
	Tell func(mesh.CardConfig)
	// Members are the replicas, this one among them.
	Members func() []mesh.Member
}

func (o *SourceOptions) validate() error {
	if o.Logger == nil || o.Registerer == nil || o.Bucket == nil || o.Prefix == "" || o.Poll <= 0 || o.Dir == "" || o.Check == nil || o.Apply == nil {
		return errors.New("configuration from the bucket: an option is missing")
	}
	if o.Tell == nil {
		o.Tell = func(mesh.CardConfig) {}
	}
	if o.Members == nil {
		o.Members = func() []mesh.Member { return nil }
	}
	return nil
}

// Source brings the configuration from the bucket: it is mirrored whole into a folder of its own, checked there, and then
// put in the place that the process reads, whose path is always the same, so that rule groups keep their state and target files
// their names. What cannot be used changes nothing, and what turns out so while it is applied is taken back.
//
//	DIR/versions/HASH/   the last few, each whole
//	DIR/current          the hash of the last that was in force
//	DIR/live/            what the process reads: a copy of one of them
//
// Begin and Run are called one after the other.
type Source struct {
	o      SourceOptions
	logger *slog.Logger

	last    look      // the last one that read everything
	since   time.Time // when last.hash was seen first
	refused struct {
		hash, why string
		at        time.Time
		again     time.Duration // after which it is tried again
	}
	mixed    bool      // Parts of refused are in force.
	wentBack time.Time // when that could not be undone
	logged   string    // the problem that was logged last

	mtx    sync.Mutex
	status SourceStatus
	live   bool // There is something to read in the live folder.
}

// look is what one look into the bucket saw.
type look struct {
	listed   listing
	at       time.Time
	complete bool // The times in listed are good enough to tell what has changed.
	digests  map[string]string
	hash     string
	manifest *manifest
	// unreadable says why what is there cannot be a configuration, or what is wrong with the manifest.
	unreadable error
	raw        string // of the manifest
}

// NewSource reads nothing yet.
func NewSource(o SourceOptions) (*Source, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	s := &Source{o: o, logger: o.Logger, status: SourceStatus{
		Prefix: o.Prefix, State: StateWaiting, Problem: "the bucket was not read yet", Since: time.Now(),
	}}
	if err := o.Registerer.Register(sourceMetrics{s}); err != nil {
		return nil, fmt.Errorf("register the metrics of the configuration from the bucket: %w", err)
	}
	return s, nil
}

// Live is the folder with the configuration to read; ok is false while there is none.
func (s *Source) Live() (dir string, ok bool) {
	s.mtx.Lock()
	defer s.mtx.Unlock()
	return filepath.Join(s.o.Dir, liveName), s.live
}

// Status is what is in force, and what is not.
func (s *Source) Status() SourceStatus {
	s.mtx.Lock()
	defer s.mtx.Unlock()
	return s.status
}

// Begin finds the configuration to start with: what is in the bucket or, where that is away, refused or not complete, the
// last that was in force. It may be none. Its error is about this machine's disk.
func (s *Source) Begin(ctx context.Context) error {
	current := s.current()
	t, waiting := s.firstLook(ctx, current)
	if t != nil && t.hash() != current && s.noted(beginningName) == t.hash() {
		waiting = "the last start did not come up with what is in the bucket"
	} else if t != nil && t.hash() != current {
		// Should the process not come up with it, the next start takes the last good one again.
		if err := s.write(beginningName, t.hash()); err != nil {
			return err
		}
		if err := s.take(t); err == nil {
			s.set(StateApplied, t.hash(), t.hash(), "")
			return nil
		}
		// What is wrong with it is logged once more by Run, which tries it again.
		waiting = "what is in the bucket is refused"
	}
	if current == "" {
		s.set(StateWaiting, "", "", cmp.Or(waiting, "nothing is there yet"))
		return s.install(tree{})
	}
	last, err := s.version(current)
	if err != nil {
		return err
	}
	if err := s.install(last); err != nil {
		return err
	}
	if waiting == "" && t != nil && t.hash() == current {
		s.set(StateApplied, current, current, "")
	} else {
		s.set(StateWaiting, current, "", cmp.Or(waiting, "nothing is there"))
	}
	return nil
}

// firstLook waits a moment for what is in the bucket. Where it gives none, it says why. What can be started without, because there is
// one that was in force before, is not waited for but where a second look is all that it takes; Run goes on looking.
func (s *Source) firstLook(ctx context.Context, current string) (t tree, why string) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		l, read, err := s.look(ctx)
		again, byHand, empty := false, false, false
		if err == nil {
			if read != nil {
				t = read // Otherwise nothing has changed since.
			}
			again = s.mark(l)
			settled, refuse, waiting := s.judge(l, again || l.hash == current)
			if settled {
				return t, ""
			}
			why = cmp.Or(refuse, waiting)
			byHand = l.manifest == nil && l.unreadable == nil && len(l.digests) > 0
			empty = l.manifest == nil && l.unreadable == nil && len(l.digests) == 0
		} else if ctx.Err() == nil || why == "" {
			why = err.Error()
		}
		if empty || current != "" && !byHand {
			break
		}
		if why != s.logged {
			s.logged = why
			s.logger.Info("the start waits for the configuration in the bucket", "at_most", startTimeout, "reason", why)
		}
		select {
		case <-ctx.Done():
		case <-time.After(startPause):
			continue
		}
		break
	}
	s.logged = why
	goesOn := "there was none in force before, so nothing is scraped"
	if current != "" {
		goesOn = "the one that was in force last goes on"
	}
	s.logger.Warn("the start does not wait longer for the configuration in the bucket; "+goesOn+" until it is there", "reason", why)
	return nil, why
}

// Run keeps up with the bucket until ctx ends. The configuration of Begin is in force when it is called.
func (s *Source) Run(ctx context.Context) error {
	if hash := s.Status().Hash; hash != "" {
		s.keep(hash)
	}
	for {
		s.poll(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(s.pause()):
		}
	}
}

// pause is how long until the next look. Who runs on nothing is in a hurry.
func (s *Source) pause() time.Duration {
	if s.Status().Hash == "" {
		return min(s.o.Poll, hurry)
	}
	return s.o.Poll
}

// poll looks once, and does what follows from it.
func (s *Source) poll(ctx context.Context) {
	if s.mixed && time.Since(s.wentBack) >= tryAgain {
		s.goBack(ctx)
	}
	looking, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	hash := s.Status().Hash
	l, t, err := s.look(looking)
	if ctx.Err() != nil {
		return
	}
	note := s.problem
	if s.mixed {
		// Nothing is worse than that.
		note = func(string, string, string) {}
	}
	if err != nil {
		note(StateWaiting, s.Status().SeenHash, err.Error())
		return
	}
	again := s.mark(l)
	settled, refuse, waiting := s.judge(l, again)
	switch {
	case refuse != "":
		note(StateRefused, l.hash, refuse)
	case !settled:
		note(StateWaiting, l.hash, waiting)
	case l.hash == hash && !s.mixed:
		s.problem(StateApplied, hash, "")
	case l.hash == s.refused.hash && time.Since(s.refused.at) < s.refused.again:
		// It is known, and is tried again later. Meanwhile the bucket may have been away.
		note(StateRefused, l.hash, s.refused.why)
	default:
		if t == nil { // Nothing has changed since it was refused.
			s.last.complete = false
			if l, t, err = s.look(looking); err != nil || l.hash != t.hash() {
				return // The next look says what is wrong.
			}
		}
		s.switchTo(ctx, t, l)
	}
}

// switchTo applies a configuration, or goes on with the last one.
func (s *Source) switchTo(ctx context.Context, t tree, l look) {
	before := s.Status().Hash
	if l.hash != s.refused.hash && !s.mixed { // Otherwise it stays refused while it is tried.
		s.set(StateWaiting, before, l.hash, "it is being applied")
	}
	err := s.take(t)
	if err == nil {
		var mixed bool
		mixed, err = s.o.Apply(ctx)
		s.mixed = err != nil && (mixed || s.mixed)
	}
	if ctx.Err() != nil && err != nil {
		return // The process stops; that says nothing about the configuration.
	}
	if err != nil {
		s.refuse(ctx, l.hash, err)
		return
	}
	s.refused.hash, s.logged = "", ""
	s.keep(l.hash)
	s.set(StateApplied, l.hash, l.hash, "")
	attrs := []any{"hash", ShortHash(l.hash), "files", len(t)}
	if l.manifest != nil {
		attrs = append(attrs, "pushed_by", l.manifest.Who, "pushed_at", l.manifest.When.UTC())
	}
	s.logger.Info("the configuration from the bucket is in force", attrs...)
}

// refuse goes on with the last configuration: with all of it, also where parts of the refused one had come into force.
func (s *Source) refuse(ctx context.Context, hash string, why error) {
	s.refused.hash, s.refused.why, s.refused.at, s.refused.again = hash, why.Error(), time.Now(), tryAgain
	if s.mixed {
		s.refused.again = applyAgain
		s.goBack(ctx)
		return
	}
	if back := s.back(s.Status().Hash); back != nil {
		why = errors.Join(why, back)
	}
	s.problem(StateRefused, hash, why.Error())
}

// goBack puts the last configuration into force again, after parts of another one were.
func (s *Source) goBack(ctx context.Context) {
	problem := s.refused.why
	err := s.back(s.Status().Hash)
	if err == nil {
		_, err = s.o.Apply(ctx)
	}
	if err != nil && ctx.Err() != nil {
		return
	}
	if s.mixed = err != nil; s.mixed {
		s.wentBack = time.Now()
		problem += "; and the one before could not be put into force again, so that parts of both are until that works, or until a restart: " + err.Error()
	}
	s.problem(StateRefused, s.refused.hash, problem)
}

// look reads what is in the bucket. The tree is nil where nothing has changed since the last look, and where what is there cannot be a
// configuration at all. Its error is about the way to the bucket.
func (s *Source) look(ctx context.Context) (look, tree, error) {
	l, t, err := s.read(ctx)
	var bad unusable
	if errors.As(err, &bad) {
		l.unreadable, l.complete, t, err = err, false, nil, nil
	}
	if err == nil {
		s.mtx.Lock()
		s.status.LastSuccess = time.Now()
		s.mtx.Unlock()
	}
	return l, t, err
}

func (s *Source) read(ctx context.Context) (look, tree, error) {
	l := look{at: time.Now(), complete: true}
	var err error
	if l.listed, err = list(ctx, s.o.Bucket, s.o.Prefix); err != nil {
		return l, nil, err
	}
	if s.unchanged(l.listed, l.at) {
		l = s.last
		return l, nil, nil
	}
	names := slices.Sorted(maps.Keys(l.listed))
	if i := slices.Index(names, manifestName); i >= 0 {
		names = slices.Delete(names, i, i+1)
		var raw []byte
		l.manifest, raw, l.unreadable = fetchManifest(ctx, s.o.Bucket, s.o.Prefix)
		if raw == nil {
			return l, nil, l.unreadable
		}
		l.raw = string(raw)
	}
	if err := checkNames(names); err != nil {
		return l, nil, err
	}
	t, err := fetch(ctx, s.o.Bucket, s.o.Prefix, names, maxTreeBytes)
	if err != nil {
		return l, nil, err
	}
	for _, modified := range l.listed {
		l.complete = l.complete && !modified.IsZero() && l.at.Sub(modified) > unchangedAge
	}
	if l.digests = t.digests(); len(l.digests) > 0 {
		l.hash = hashOf(l.digests)
	}
	return l, t, nil
}

// unchanged tells from names and times that there is nothing new to read.
func (s *Source) unchanged(listed listing, now time.Time) bool {
	return s.last.complete && len(listed) > 0 && now.Sub(s.last.at) <= readAllAgain && maps.EqualFunc(listed, s.last.listed, time.Time.Equal)
}

// mark notes what was seen, and tells whether that is what the look before saw, too.
func (s *Source) mark(l look) (again bool) {
	again = s.last.hash == l.hash && s.last.raw == l.raw && !s.since.IsZero()
	if !again {
		s.since = l.at
	}
	s.last = l
	return again
}

// judge says whether what is in the bucket is a whole configuration, or what is waited for, or why it is refused as it is.
// again says that it was seen before, unchanged.
func (s *Source) judge(l look, again bool) (settled bool, refuse, waiting string) {
	old := time.Since(s.since) > unsettled
	switch {
	case len(l.digests) == 0 && l.manifest == nil && l.unreadable == nil:
		return false, "", fmt.Sprintf("nothing is below %s in the bucket", s.o.Prefix)
	case l.unreadable != nil && old:
		return false, l.unreadable.Error() + "; correct it, or push again", ""
	case l.unreadable != nil:
		return false, "", "a push is under way, or what is there cannot be used: " + l.unreadable.Error()
	case l.manifest != nil && l.manifest.Hash == l.hash:
		return true, "", ""
	case l.manifest != nil && old:
		return false, fmt.Sprintf("what is below %s is not what %s pushed at %s: %s; push again, or remove %s%s to take it as it is", s.o.Prefix,
			l.manifest.Who, l.manifest.When.UTC().Format("2006-01-02 15:04:05 UTC"), l.manifest.differs(l.digests), s.o.Prefix, manifestName), ""
	case l.manifest != nil:
		return false, "", fmt.Sprintf("a push of %s is under way", l.manifest.Who)
	case !again:
		return false, "", "what is in the bucket has changed; it is taken when it is seen a second time, unchanged"
	}
	return true, "", ""
}

// set notes what is in force.
func (s *Source) set(state, hash, seen, problem string) {
	s.mtx.Lock()
	if s.status.Hash != hash || s.status.State != state {
		s.status.Since = time.Now()
	}
	s.status.State, s.status.Hash, s.status.SeenHash, s.status.Problem = state, hash, seen, problem
	s.mtx.Unlock()
	s.o.Tell(s.Card())
}

// Card is what the other replicas are told of the status.
func (s *Source) Card() mesh.CardConfig {
	st := s.Status()
	return mesh.CardConfig{Hash: ShortHash(st.Hash), State: st.State, Seen: ShortHash(st.SeenHash)}
}

// problem notes why what is in the bucket is not in force, and logs it if it is another reason than before.
func (s *Source) problem(state, seen, text string) {
	s.set(state, s.Status().Hash, seen, text)
	if text == s.logged {
		return
	}
	s.logged = text
	attrs := []any{"prefix", s.o.Prefix, "seen", ShortHash(seen), "in_force", ShortHash(s.Status().Hash)}
	switch {
	case text == "":
		s.logger.Info("the configuration in the bucket is in force again", attrs...)
	case state == StateRefused:
		s.logger.Error("the configuration in the bucket is refused; the one in force goes on", append(attrs, "err", text)...)
	default:
		s.logger.Warn("the configuration in the bucket is waited for; the one in force goes on", append(attrs, "reason", text)...)
	}
}
