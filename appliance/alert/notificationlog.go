package alert

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/alertmanager/alert"
	"github.com/prometheus/alertmanager/nflog"
	"github.com/prometheus/alertmanager/nflog/nflogpb"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// maxSent bounds how many of its own notifications a replica remembers to find duplicates, and keepSent for how
	// long: a partition that lasts longer is not counted.
	maxSent, keepSent = 100_000, 6 * time.Hour
	// signedFor is how far the time of an entry may be from its signature's: upstream takes it a moment later.
	signedFor = time.Second
	// maxReplicaName bounds what is shown of a sender's name, which another replica wrote. The mesh allows as much.
	maxReplicaName = 253
	// maxEntry bounds one entry of the notification log as it comes from another replica.
	maxEntry = 16 << 20
)

// upstreamLog keeps the embedded field's name apart from its method Log.
type upstreamLog = nflog.Log

// notificationLog is upstream's log of what was sent, shared by the replicas, with what upstream's lacks for them: it
// does not lose an entry to a clock that is behind another replica's, hands out single entries, and sees where two
// replicas have sent the same.
type notificationLog struct {
	*upstreamLog
	// self is this replica's name.
	self       string
	retention  time.Duration
	duplicates prometheus.Counter

	mu   sync.Mutex
	sent map[turnKey]sent
}

// sent is a notification of this replica.
type sent struct {
	at      time.Time
	content [sha256.Size]byte
}

func keyOf(group string, r *nflogpb.Receiver) turnKey {
	return turnKey{group, r.GetGroupName(), r.GetIntegration(), r.GetIdx()}
}

func (k turnKey) recv() *nflogpb.Receiver {
	return &nflogpb.Receiver{GroupName: k.receiver, Integration: k.integration, Idx: k.index}
}

// Log notes what this replica has sent. Upstream drops an entry that is older than the one it has, which is right
// for what comes from others and wrong for this: with a clock that is behind, a notification that was just sent would
// be sent again and again.
func (l *notificationLog) Log(r *nflogpb.Receiver, group string, firing, resolved []uint64, store *nflog.Store, expiry time.Duration) error {
	key, now := keyOf(group, r), time.Now()
	l.remember(key, sent{at: now, content: content(firing, resolved)})
	if store == nil {
		store = nflog.NewStore(nil)
	}
	if prev := l.entry(key); prev != nil && !prev.GetTimestamp().AsTime().Before(now) {
		at := prev.GetTimestamp().AsTime().Add(time.Millisecond)
		store.SetStr(signedBy, signature(l.self, at))
		prev = &nflogpb.Entry{
			Receiver: r, GroupKey: []byte(group), FiringAlerts: firing, ResolvedAlerts: resolved,
			ReceiverData: withOurs(prev.GetReceiverData(), store), Timestamp: timestamppb.New(at),
		}
		b, err := encodeEntry(prev, now.Add(min(l.retention, max(expiry, time.Minute))))
		if err != nil {
			return err
		}
		if err := l.upstreamLog.Merge(b); err != nil {
			return fmt.Errorf("note what was sent to %s: %w", key, err)
		}
		return nil
	}
	store.SetStr(signedBy, signature(l.self, now))
	if err := l.upstreamLog.Log(r, group, firing, resolved, store, expiry); err != nil {
		return fmt.Errorf("note what was sent to %s: %w", key, err)
	}
	return nil
}

// withOurs is what receivers keep with an entry, with what we keep there of the newest notification.
func withOurs(data map[string]*nflogpb.ReceiverDataValue, store *nflog.Store) map[string]*nflogpb.ReceiverDataValue {
	out := map[string]*nflogpb.ReceiverDataValue{}
	maps.Copy(out, data)
	for _, name := range []string{chain, signedBy} {
		if v, ok := store.GetStr(name); ok {
			out[name] = &nflogpb.ReceiverDataValue{Value: &nflogpb.ReceiverDataValue_StrVal{StrVal: v}}
		}
	}
	return out
}

// signature is what a replica keeps with an entry to say that it sent that notification. The time is in it because
// others copy what they find of an earlier notification to the next one, a stock Alertmanager too, which is then not
// the one that is named.
func signature(replica string, at time.Time) string {
	return strconv.FormatInt(at.UnixMilli(), 10) + " " + replica
}

// senderOf is the replica that sent a notification; "" if it did not say: a stock Alertmanager, or an earlier version.
func senderOf(e *nflogpb.Entry) string {
	millis, name, ok := strings.Cut(e.GetReceiverData()[signedBy].GetStrVal(), " ")
	at, err := strconv.ParseInt(millis, 10, 64)
	if !ok || err != nil || e.GetTimestamp().AsTime().Sub(time.UnixMilli(at)).Abs() > signedFor {
		return ""
	}
	return shown(name, maxReplicaName)
}

// Merge takes what other replicas have sent.
func (l *notificationLog) Merge(b []byte) error {
	if err := l.upstreamLog.Merge(b); err != nil {
		return fmt.Errorf("merge the notification log of another replica: %w", err)
	}
	l.compare(b)
	return nil
}

// entry is the last notification for a key; nil if there was none.
func (l *notificationLog) entry(key turnKey) *nflogpb.Entry {
	entries, err := l.Query(nflog.QGroupKey(key.group), nflog.QReceiver(key.recv()))
	if err != nil || len(entries) != 1 {
		return nil // Its only error here is that there is none.
	}
	return entries[0]
}

// encoded is the last notification for a key as Merge takes it; nil if there was none.
func (l *notificationLog) encoded(key turnKey) ([]byte, error) {
	e := l.entry(key)
	if e == nil {
		return nil, nil
	}
	return encodeEntry(e, time.Now().Add(l.retention))
}

func encodeEntry(e *nflogpb.Entry, expires time.Time) ([]byte, error) {
	var b bytes.Buffer
	if _, err := protodelim.MarshalTo(&b, &nflogpb.MeshEntry{Entry: e, ExpiresAt: timestamppb.New(expires)}); err != nil {
		return nil, fmt.Errorf("encode an entry of the notification log: %w", err)
	}
	return b.Bytes(), nil
}

func (l *notificationLog) remember(key turnKey, s sent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sent) >= maxSent {
		for k, old := range l.sent {
			if time.Since(old.at) > keepSent || len(l.sent) >= maxSent {
				delete(l.sent, k)
			}
		}
	}
	l.sent[key] = s
}

// compare counts the notifications of this replica that another one has sent as well.
func (l *notificationLog) compare(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sent) == 0 {
		return
	}
	r := bytes.NewReader(b)
	for {
		var e nflogpb.MeshEntry
		err := protodelim.UnmarshalOptions{MaxSize: maxEntry}.UnmarshalFrom(r, &e)
		if errors.Is(err, io.EOF) || err != nil {
			return // Upstream has merged it, so that it is well-formed.
		}
		key := keyOf(string(e.GetEntry().GetGroupKey()), e.GetEntry().GetReceiver())
		own, ok := l.sent[key]
		at := e.GetEntry().GetTimestamp().AsTime()
		if !ok || at.Equal(own.at) {
			continue
		}
		same := content(e.GetEntry().GetFiringAlerts(), e.GetEntry().GetResolvedAlerts()) == own.content
		if same && at.Sub(own.at).Abs() > time.Millisecond {
			l.duplicates.Inc()
		}
		if same || at.After(own.at) {
			delete(l.sent, key)
		}
	}
}

func content(firing, resolved []uint64) [sha256.Size]byte {
	h := sha256.New()
	for _, alerts := range [][]uint64{firing, resolved} {
		sorted := slices.Sorted(slices.Values(alerts))
		// A hash never fails.
		_ = binary.Write(h, binary.BigEndian, uint64(len(sorted)))
		_ = binary.Write(h, binary.BigEndian, sorted)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// hashLabels is how upstream's notification log names an alert: xxhash of its labels in order, each name and value
// followed by a byte 255.
func hashLabels(a *alert.Alert) uint64 {
	names := make([]model.LabelName, 0, len(a.Labels))
	for n := range a.Labels {
		names = append(names, n)
	}
	slices.Sort(names)
	var b []byte
	for _, n := range names {
		b = append(append(b, n...), '\xff')
		b = append(append(b, a.Labels[n]...), '\xff')
	}
	return xxhash.Sum64(b)
}
