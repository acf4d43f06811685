package mesh

import (
	"bytes"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/alertmanager/cluster/clusterpb"
	"github.com/prometheus/alertmanager/nflog/nflogpb"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// realStates are the delegate's states with what an Alertmanager keeps, and messages that they take.
func realStates(t testing.TB) (s *states, x alertStates, parts map[string][]byte) {
	t.Helper()
	m := newMetrics(prometheus.NewRegistry())
	s = newStates(discard(), m, &refusals{logger: discard(), counter: m.refused})
	x = newAlertStates(t)
	s.add("sil", x.silences)
	s.add("nfl", x.log)
	other := newAlertStates(t)
	other.silence(t, "a")
	other.silence(t, "b")
	if err := other.log.Log(&nflogpb.Receiver{GroupName: "g", Integration: "i"}, "{}", []uint64{1, 2}, []uint64{3}, nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	parts = map[string][]byte{}
	sil, err := other.silences.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	nfl, err := other.log.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	parts["sil"], parts["nfl"] = sil, nfl
	return s, x, parts
}

// reused gives the same states some times, because making them takes longer than what is tried with them.
func reused() func(testing.TB) (*states, alertStates, map[string][]byte) {
	var (
		s     *states
		x     alertStates
		parts map[string][]byte
	)
	uses := 0
	return func(t testing.TB) (*states, alertStates, map[string][]byte) {
		if uses%100 == 0 {
			s, x, parts = realStates(t)
		}
		uses++
		return s, x, parts
	}
}

// usableAfter says that states work after what they were given.
func usableAfter(t testing.TB, s *states, x alertStates, parts map[string][]byte) {
	t.Helper()
	if len(s.full()) == 0 && len(parts) == 0 {
		t.Error("the states cannot be read")
	}
	x.silence(t, "still works")
	if !x.comments(t)["still works"] {
		t.Error("a silence is lost")
	}
	s.merge("sil", parts["sil"])
	if !x.comments(t)["a"] {
		t.Error("a silence of a peer is not merged any more")
	}
}

func FuzzNotifyMsg(f *testing.F) {
	_, _, parts := realStates(f)
	for key, data := range parts {
		b, err := proto.Marshal(&clusterpb.Part{Key: key, Data: data})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	empty, err := proto.Marshal(&clusterpb.Part{Key: "sil", Data: []byte{0}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(empty)
	fresh := reused()
	f.Fuzz(func(t *testing.T, b []byte) {
		s, x, parts := fresh(t)
		s.mergePart(b)
		usableAfter(t, s, x, parts)
	})
}

func FuzzMergeRemoteState(f *testing.F) {
	s, _, parts := realStates(f)
	for key, data := range parts {
		s.merge(key, data)
	}
	full := s.full()
	f.Add(full)
	f.Add(full[:len(full)/2])
	f.Add([]byte{})
	fresh := reused()
	f.Fuzz(func(t *testing.T, b []byte) {
		s, x, parts := fresh(t)
		s.mergeFull(b)
		usableAfter(t, s, x, parts)
	})
}

func FuzzCard(f *testing.F) {
	b, err := encodeCard(Card{Cluster: "prod", Zone: "z", HTTP: "10.0.0.1:9090", Version: "1", Started: time.Now(), Completeness: 0.5})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"c":"prod","d":2}`))
	f.Add([]byte(`{"c":"pr\nod"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCard(b)
		if err != nil || c == (Card{}) {
			return
		}
		if c.Cluster == "" || c.Completeness < 0 || c.Completeness > 1 || c.Zone != Printable(c.Zone, memberlist.MetaMaxSize) {
			t.Fatalf("accepted %+v", c)
		}
	})
}

// FuzzGuard has packets and streams looked at, sealed or not.
func FuzzGuard(f *testing.F) {
	for _, b := range hostilePackets(f) {
		f.Add(b[:min(len(b), 4096)])
	}
	for _, b := range hostileStreams(f) {
		f.Add(b[:min(len(b), 4096)])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ring, err := memberlist.NewKeyring(nil, key(1))
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range []*guard{{cluster: "prod"}, {cluster: "prod", ring: ring}} {
			err := g.packet(b)
			if g.ring != nil && err == nil {
				t.Fatal("a key was guessed")
			}
			for _, inbound := range []bool{true, false} {
				whole := &cursor{src: bytes.NewReader(b), limit: maxStream}
				err := g.stream(whole, inbound)
				if err == nil && g.ring != nil {
					t.Fatal("a key was guessed")
				}
				if !bytes.HasPrefix(b, whole.buf) {
					t.Fatal("memberlist would get other bytes than came")
				}
			}
		}
	})
}

// TestHostileStates are larger than a fuzzer's.
func TestHostileStates(t *testing.T) {
	s, x, parts := realStates(t)
	// A million silences, each a valid one.
	one := parts["sil"][:len(parts["sil"])/2]
	million := bytes.Repeat(one, 1+(maxEntries+1)/entries("sil", one))
	x.silence(t, "kept")
	value := func(reason string) float64 {
		return counterValue(t, s.metrics.refused.WithLabelValues(reason))
	}
	for name, c := range map[string]struct {
		send   func()
		reason string
	}{
		"100 MiB":                  {func() { s.mergeFull(make([]byte, 100<<20)) }, reasonSize},
		"100 MiB as a change":      {func() { s.mergePart(make([]byte, 100<<20)) }, reasonSize},
		"too many silences":        {func() { s.merge("sil", million) }, reasonSize},
		"a million empty silences": {func() { s.merge("sil", make([]byte, 1_000_000)) }, reasonSize},
		"too many entries":         {func() { s.merge("nfl", make([]byte, 1_000_000)) }, reasonSize},
		"garbage":                  {func() { s.mergeFull(bytes.Repeat([]byte{0xff}, 1000)) }, reasonMalformed},
		"garbage as a change":      {func() { s.mergePart(bytes.Repeat([]byte{0xff}, 1000)) }, reasonMalformed},
		"garbage as silences":      {func() { s.merge("sil", bytes.Repeat([]byte{0xff}, 1000)) }, reasonState},
		"an empty silence":         {func() { s.merge("sil", []byte{0}) }, reasonState},
		"an empty notification":    {func() { s.merge("nfl", []byte{0}) }, reasonState},
		"a silence of nothing": {func() {
			s.merge("sil", delimited(protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), nil)))
		}, ""},
		"a notification of nothing": {func() {
			s.merge("nfl", delimited(protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), nil)))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := 0.0
			if c.reason != "" {
				before = value(c.reason)
			}
			c.send()
			if c.reason != "" && value(c.reason) != before+1 {
				t.Errorf("counted %v times for %s", value(c.reason)-before, c.reason)
			}
		})
	}
	if !x.comments(t)["kept"] {
		t.Error("a silence is lost")
	}
	usableAfter(t, s, x, parts)
}

func delimited(b []byte) []byte { return append(protowire.AppendVarint(nil, uint64(len(b))), b...) }

func counterValue(t testing.TB, c prometheus.Metric) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}
