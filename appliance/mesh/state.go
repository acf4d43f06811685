package mesh

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/alertmanager/cluster"
	"github.com/prometheus/alertmanager/cluster/clusterpb"
	"google.golang.org/protobuf/proto"
)

const (
	// maxFullState is how much of our states goes into one exchange: what memberlist takes, less its own envelope.
	maxFullState = maxState - 512<<10
	// maxParts bounds the states that one member may send at once, ours and those of later versions.
	maxParts = 256
	// maxEntries bounds the silences, or entries of the notification log, that are merged at once. As many fit into
	// maxState if each is as short as they are in practice; decoded they take some hundred bytes each.
	maxEntries = 200_000
)

// states are the replicated states by key, in Alertmanager's wire format.
type states struct {
	logger   *slog.Logger
	metrics  *metrics
	refusals *refusals
	quiet    limiter
	// leaving is called with the name of a member that says goodbye.
	leaving func(member string)

	// missed counts what full could not pack, or the others will not merge: an exchange has not carried it.
	missed atomic.Int64

	mu    sync.RWMutex
	byKey map[string]cluster.State
}

func newStates(logger *slog.Logger, m *metrics, r *refusals) *states {
	return &states{
		logger: logger, metrics: m, refusals: r, leaving: func(string) {}, byKey: map[string]cluster.State{},
	}
}

func (s *states) add(key string, state cluster.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byKey[key] = state
	// From zero, so that the first panic is an increase.
	s.metrics.panics.WithLabelValues(key)
	s.metrics.leftOut.WithLabelValues(key)
}

func (s *states) all() map[string]cluster.State {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return maps.Clone(s.byKey)
}

// full packs all states for another member. What cannot be carried is left out, largest first: the rest still counts.
func (s *states) full() []byte {
	all := s.all()
	var full clusterpb.FullState
	size := 0
	for _, key := range slices.Sorted(maps.Keys(all)) {
		b, err := s.read(key, all[key])
		if err != nil || entries(key, b) > maxEntries {
			s.missed.Add(1)
		}
		if err != nil {
			s.warn(key, "a state could not be packed for another member", "key", key, "err", err)
			continue
		}
		full.Parts = append(full.Parts, &clusterpb.Part{Key: key, Data: b})
		size += len(key) + len(b) + 32
	}
	for size > maxFullState && len(full.Parts) > 0 {
		i := largest(full.Parts)
		p := full.Parts[i]
		size -= len(p.Key) + len(p.Data) + 32
		full.Parts = slices.Delete(full.Parts, i, i+1)
		s.metrics.leftOut.WithLabelValues(p.Key).Inc()
		s.missed.Add(1)
		s.warn(p.Key, "a state is too large to be exchanged in full; a member that joins gets only what changes from now "+
			"on: let silences expire, or notify of fewer groups",
			"key", p.Key, "bytes", len(p.Data), "limit_bytes", maxFullState)
	}
	b, err := proto.Marshal(&full)
	if err != nil {
		s.missed.Add(1)
		s.warn("", "the states could not be packed for another member", "err", err)
		return nil
	}
	return b
}

func largest(parts []*clusterpb.Part) int {
	at := 0
	for i, p := range parts {
		if len(p.Data) > len(parts[at].Data) {
			at = i
		}
	}
	return at
}

// read asks a state for its bytes.
func (s *states) read(key string, state cluster.State) (b []byte, err error) {
	defer s.recovered(key, &err)
	return state.MarshalBinary()
}

// mergeFull merges all states of another member. One that is wrong does not keep out the others.
func (s *states) mergeFull(b []byte) {
	if len(b) > maxState {
		s.refuse("", reject(reasonSize, "the states take %d bytes, at most %d are taken", len(b), maxState))
		return
	}
	var full clusterpb.FullState
	if err := proto.Unmarshal(b, &full); err != nil {
		s.refuse("", reject(reasonMalformed, "the states of a member are malformed: %v", err))
		return
	}
	if len(full.Parts) > maxParts {
		s.refuse("", reject(reasonSize, "a member sent %d states, at most %d are taken", len(full.Parts), maxParts))
		return
	}
	for _, p := range full.Parts {
		s.merge(p.GetKey(), p.GetData())
	}
}

// mergePart merges one change of a state.
func (s *states) mergePart(b []byte) {
	if len(b) > maxState {
		s.refuse("", reject(reasonSize, "a change takes %d bytes, at most %d are taken", len(b), maxState))
		return
	}
	var p clusterpb.Part
	if err := proto.Unmarshal(b, &p); err != nil {
		s.refuse("", reject(reasonMalformed, "a change of a state is malformed: %v", err))
		return
	}
	if p.Key == keyLeaving {
		s.leaving(Printable(string(p.Data), maxNameBytes))
		return
	}
	s.merge(p.Key, p.Data)
}

func (s *states) merge(key string, data []byte) {
	s.mu.RLock()
	state := s.byKey[key]
	s.mu.RUnlock()
	if state == nil {
		s.metrics.unknown.Inc()
		s.logger.Debug("a state that nobody here has asked for is left aside", "key", Printable(key, 64), "bytes", len(data))
		return
	}
	if n := entries(key, data); n > maxEntries {
		s.refuse(key, reject(reasonSize, "the state %q has more than %d entries", key, maxEntries))
		return
	}
	if err := s.mergeInto(key, state, data); err != nil {
		s.refuse(key, reject(reasonState, "the state %q cannot be merged: %v", key, err))
	}
}

func (s *states) mergeInto(key string, state cluster.State, data []byte) (err error) {
	defer s.recovered(key, &err)
	return state.Merge(data)
}

// recovered turns a panic into an error: a state's decoder may trip over what a member sends, the process may not.
func (s *states) recovered(key string, err *error) {
	p := recover()
	if p == nil {
		return
	}
	s.metrics.panics.WithLabelValues(key).Inc()
	if _, ok := s.quiet.allow("panic "+key, time.Now()); ok {
		s.logger.Error("a state panicked; it goes on without that message",
			"key", key, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	}
	*err = errors.New("it panicked")
}

// refuse counts and tells what is not merged. memberlist does not say who sent it.
func (s *states) refuse(key string, why *refusal) {
	s.refusals.note("a member "+key, why)
}

func (s *states) warn(key, msg string, attrs ...any) {
	since, ok := s.quiet.allow(msg+key, time.Now())
	if !ok {
		return
	}
	if since > 0 {
		attrs = append(attrs, "more_since_last_time", since)
	}
	s.logger.Warn(msg, attrs...)
}

// entries counts the entries of Alertmanager's own states, which are messages with their lengths before them, without
// decoding them. It stops soon after the limit. Other states bound themselves.
func entries(key string, b []byte) int {
	if key != "sil" && key != "nfl" {
		return 0
	}
	n := 0
	for len(b) > 0 && n <= maxEntries {
		size, used := binary.Uvarint(b)
		if used <= 0 || size > uint64(len(b)-used) {
			break // The decoder says what is wrong.
		}
		b = b[used+int(size):]
		n++
	}
	return n
}
