package mesh

import (
	"bytes"
	"compress/lzw"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/alertmanager/cluster/clusterpb"
	"google.golang.org/protobuf/proto"

	"github.com/tocsin-io/tocsin/appliance/config"
)

func newConfig() *config.Config {
	return &config.Config{Replica: config.Replica{Name: "a", Zone: "zone-1"}, Cluster: &config.Cluster{Name: "prod"}}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// sealed encrypts as memberlist does.
func sealed(t *testing.T, key, plain, authenticated []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, gcm.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		t.Fatal(err)
	}
	return gcm.Seal(append([]byte{1}, nonce...), nonce, plain, authenticated)
}

// TestStrangersAreRefused joins what must not be joined.
func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		host, joiner setting
		reason       string // That the host counts.
		names        string // Also in the host's log.
		says         string // In the joiner's log.
	}{
		"another cluster, keys alike":               {withKeys(key(1)), both(withKeys(key(1)), inCluster("staging")), reasonCluster, "staging", "refused this replica"},
		"another cluster, other keys":               {withKeys(key(1)), both(withKeys(key(2)), inCluster("staging")), reasonCluster, "staging", "refused this replica"},
		"another cluster, no keys":                  {inCluster("prod"), inCluster("staging"), reasonCluster, "staging", "refused this replica"},
		"another key":                               {withKeys(key(1)), withKeys(key(2)), reasonKey, "key that this replica does not have", "refused this replica"},
		"no key where there is one":                 {withKeys(key(1)), inCluster("prod"), reasonPlaintext, "not encrypted", "refused this replica"},
		"a key where there is none":                 {inCluster("prod"), withKeys(key(1)), reasonKey, "encrypted", "refused this replica"},
		"another cluster's key where there is none": {inCluster("prod"), both(withKeys(key(1)), inCluster("staging")), reasonCluster, "staging", "refused this replica"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := started(t, c.host)
			host.bag.put("secret of the host")
			joiner := started(t, named("b"), c.joiner, withPeers(host.address()))
			joiner.bag.put("junk of the joiner")
			until(t, 15*time.Second, "it is counted for "+c.reason, func() bool { return host.refused(c.reason) > 0 })
			until(t, 15*time.Second, "the joiner says what is wrong", func() bool { return strings.Contains(joiner.log.String(), c.says) })
			if host.names() != "a" || joiner.names() != "b" {
				t.Errorf("members %q and %q", host.names(), joiner.names())
			}
			if host.bag.has("junk of the joiner") || joiner.bag.has("secret of the host") {
				t.Error("state has passed")
			}
			log := host.log.String()
			if !strings.Contains(log, "remote=127.0.0.1:") || !strings.Contains(log, c.names) {
				t.Errorf("the log does not name the sender and %q", c.names)
			}
			if n := strings.Count(log, "traffic of the mesh was refused"); n > 2 {
				t.Errorf("it was told %d times within seconds", n)
			}
			for _, x := range []*trial{host, joiner} {
				for _, k := range [][]byte{key(1), key(2)} {
					if strings.Contains(x.log.String(), string(k)) {
						t.Error("a key is in the log")
					}
				}
			}
		})
	}
}

func both(a, b setting) setting { return func(o *Options) { a(o); b(o) } }

// TestRotation changes the key of a mesh that works, in the documented steps.
func TestRotation(t *testing.T) {
	t.Parallel()
	old, next := key(1), key(2)
	a := started(t, named("a"), withKeys(old))
	b := started(t, named("b"), withKeys(old), withPeers(a.address()))
	c := started(t, named("c"), withKeys(old), withPeers(a.address()))
	all := []*trial{a, b, c}
	whole(t, 10*time.Second, "a b c", all...)
	for step, keys := range [][][]byte{{old, next}, {next, old}, {next}} {
		for _, x := range all {
			reload(t, x, keys)
			// Half-way through a step, too, everybody hears everybody.
			for _, from := range all {
				what := fmt.Sprintf("step %d, %s reloaded, said by %s", step, x.Name(), from.Name())
				large := what + strings.Repeat(".", 2000)
				from.bag.put(what)
				from.tell([]byte(what))
				from.bag.put(large)
				from.tell([]byte(large))
				// A change that is lost comes with the next exchange of all states.
				until(t, 45*time.Second, what, func() bool {
					return !slices.ContainsFunc(all, func(x *trial) bool { return !x.bag.has(what) || !x.bag.has(large) })
				})
			}
		}
	}
	for _, x := range all {
		if x.names() != "a b c" || x.refused(reasonKey) > 0 || x.value("alertmanager_cluster_peers_left_total") > 0 {
			t.Errorf("%s: members %q, refused %v, left %v", x.Name(), x.names(), x.refused(reasonKey), x.value("alertmanager_cluster_peers_left_total"))
		}
	}
	// Who has only the old key is out now.
	d := started(t, named("d"), withKeys(old), withPeers(a.address()))
	until(t, 15*time.Second, "the old key is refused", func() bool { return a.refused(reasonKey) > 0 })
	if d.names() != "d" {
		t.Errorf("members %q", d.names())
	}
}

func reload(t *testing.T, x *trial, keys [][]byte) {
	t.Helper()
	opts := Options{Config: newConfig()}
	opts.Config.ClusterKeys = keys
	apply, err := x.Prepare(opts.Config)
	if err != nil {
		t.Fatal(err)
	}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
}

func TestPrepareRefuses(t *testing.T) {
	t.Parallel()
	a := prepared(t, withKeys(key(1)))
	none := newConfig()
	bad := newConfig()
	bad.ClusterKeys = [][]byte{[]byte("short")}
	alone := newConfig()
	alone.ClusterKeys, alone.Cluster = [][]byte{key(1)}, nil
	for name, cfg := range map[string]*config.Config{"no key": none, "a short key": bad, "no section": alone} {
		if _, err := a.Prepare(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestSetRing(t *testing.T) {
	for _, c := range []struct{ from, to string }{
		{"1", "12"}, {"12", "21"}, {"21", "2"}, {"123", "32"}, {"1234", "24"}, {"1234", "5"}, {"123", "321"}, {"1", "1"},
	} {
		ring, err := memberlist.NewKeyring(keysOf(c.from), keysOf(c.from)[0])
		if err != nil {
			t.Fatal(err)
		}
		before := ring.GetKeys()
		held := slices.Clone(before)
		if err := setRing(ring, keysOf(c.to)); err != nil {
			t.Fatal(err)
		}
		got := ring.GetKeys()
		if !bytes.Equal(got[0], keysOf(c.to)[0]) || len(got) != len(c.to) {
			t.Errorf("%s to %s: %d keys, the first %q", c.from, c.to, len(got), got[0][0])
		}
		if !slices.EqualFunc(before, held, func(a, b []byte) bool { return bytes.Equal(a, b) }) {
			t.Errorf("%s to %s: keys changed under a reader", c.from, c.to)
		}
	}
}

func keysOf(s string) [][]byte {
	var keys [][]byte
	for _, c := range []byte(s) {
		keys = append(keys, key(c))
	}
	return keys
}

// TestHostileTraffic sends what no peer sends, to both sockets.
func TestHostileTraffic(t *testing.T) {
	t.Parallel()
	for name, keying := range keyings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := started(t, named("a"), keying)
			b := started(t, named("b"), keying, withPeers(a.address()))
			whole(t, 10*time.Second, "a b", a, b)
			a.bag.put("kept")
			before, _ := a.bag.MarshalBinary()
			seal := func(b []byte) []byte { return b }
			sealStream := seal
			if a.keyed {
				// What somebody with the key could send.
				seal = func(b []byte) []byte { return append(label("prod"), sealed(t, key(1), b, []byte("prod"))...) }
				sealStream = func(b []byte) []byte {
					head := binary.BigEndian.AppendUint32([]byte{typeEncrypt}, uint32(len(b)+29))
					out := sealed(t, key(1), b, append(bytes.Clone(head), "prod"...))
					return append(append(label("prod"), head...), out...)
				}
			}
			for what, p := range hostilePackets(t) {
				for _, send := range [][]byte{p, seal(p), append(label("prod"), p...)} {
					sendPacket(t, a.address(), send[:min(len(send), 65000)])
				}
				_ = what
			}
			for what, p := range hostileStreams(t) {
				for _, send := range [][]byte{p, sealStream(p), append(label("prod"), p...)} {
					sendStream(t, a.address(), send)
				}
				_ = what
			}
			// What a peer said before, once more and cut off.
			captured := captureJoin(t, a)
			for i := 0; i < len(captured); i += 1 + len(captured)/16 {
				sendStream(t, a.address(), captured[:i])
			}
			sendStream(t, a.address(), captured)

			until(t, 15*time.Second, "it is counted", func() bool {
				return a.refused(reasonMalformed) > 0 && (a.keyed && a.refused(reasonPlaintext) > 0 || !a.keyed && a.refused(reasonCluster)+a.refused(reasonKey) > 0)
			})
			if a.refused(reasonSize) < 1 || a.refused(reasonVersion) < 1 {
				t.Errorf("refused for size %v, for version %v", a.refused(reasonSize), a.refused(reasonVersion))
			}
			until(t, 15*time.Second, "it still carries state", func() bool {
				b.bag.put("after")
				b.tell([]byte("after"))
				return a.bag.has("after")
			})
			until(t, 15*time.Second, "a and b are the mesh", func() bool {
				return a.names() == "a b" && b.names() == "a b"
			})
			after, _ := a.bag.MarshalBinary()
			if len(after) != len(before)+len("after\n") {
				t.Errorf("the state became %q", tail(string(after)))
			}
			if held := a.wire.held.Load(); held > 1<<20 {
				t.Errorf("%d bytes are still held", held)
			}
		})
	}
}

// hostilePackets are packets before they are sealed.
func hostilePackets(t testing.TB) map[string][]byte {
	random := make([]byte, 1200)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	deep := bytes.Repeat([]byte{typeCompound, 1, 0xff, 0xff}, 16000)
	for i := 0; i+4 <= len(deep); i += 4 {
		binary.BigEndian.PutUint16(deep[i+2:], uint16(len(deep)-i-4))
	}
	checksum := binary.BigEndian.AppendUint32([]byte{typeChecksum}, crc32.ChecksumIEEE(random))
	p := map[string][]byte{
		"nothing":                  {},
		"random":                   random,
		"random after a checksum":  append(checksum, random...),
		"a wrong checksum":         append([]byte{typeChecksum, 1, 2, 3, 4}, random...),
		"one byte":                 {typeCompound},
		"a compound that is short": {typeCompound, 200, 0, 1},
		"compounds in compounds":   deep,
		"a bomb":                   squeezed(t, 1<<20),
		"a bomb of compounds":      squeezed(t, 0, bytes.Repeat([]byte{typeCompound, 1, 0xff, 0xff}, 1<<16)...),
		"an empty bomb":            squeezed(t, 0),
		"arrays in arrays":         append([]byte{typeAlive, 0x81, 0xa1, 'x'}, bytes.Repeat([]byte{0x91}, 60000)...),
		"a length of 4 GiB":        {typeAlive, 0x81, 0xdb, 0xff, 0xff, 0xff, 0xff},
		"a type of the future":     {99, 1, 2, 3},
		"a state that panics":      append([]byte{typeUser}, part(t, "bag", []byte("panic"))...),
		"a state that is wrong":    append([]byte{typeUser}, part(t, "bag", []byte("wrong"))...),
		"an unknown state":         append([]byte{typeUser}, part(t, "unheard of", []byte("x"))...),
		"garbage as a state":       append([]byte{typeUser}, random...),
	}
	for what, n := range map[string][]any{
		"a member without versions":        {"Node", "x", "Addr", []byte{10, 0, 0, 1}, "Port", 1, "Incarnation", 1},
		"a member with few versions":       {"Node", "x", "Addr", []byte{10, 0, 0, 1}, "Port", 1, "Incarnation", 1, "Vsn", []byte{1, 5, 2}},
		"a member of the future":           {"Node", "x", "Addr", []byte{127, 0, 0, 1}, "Port", 1, "Incarnation", 1, "Vsn", []byte{9, 9, 9, 9, 9, 9}},
		"a member that ends all exchanges": {"Node", "x", "Addr", []byte{127, 0, 0, 1}, "Port", 1, "Incarnation", 1, "Vsn", []byte{1, 5, 2, 200, 255, 200}},
		"a member without an address":      {"Node", "x", "Addr", []byte{}, "Port", 1, "Incarnation", 1, "Vsn", []byte{1, 5, 2, 0, 0, 0}},
		"a member at half an address":      {"Node", "x", "Addr", []byte{1, 2, 3}, "Port", 1, "Incarnation", 1, "Vsn", []byte{1, 5, 2, 0, 0, 0}},
		"a member without a name":          {"Node", "", "Addr", []byte{127, 0, 0, 1}, "Port", 1, "Incarnation", 1, "Vsn", []byte{1, 5, 2, 0, 0, 0}},
		"a name that is no text":           {"Node", "\xff\xfe", "Addr", []byte{127, 0, 0, 1}, "Port", 1, "Incarnation", 1, "Vsn", []byte{1, 5, 2, 0, 0, 0}},
		"a card that is none":              {"Node", "x", "Addr", []byte{127, 0, 0, 1}, "Port", 1, "Incarnation", 1, "Meta", []byte("{{{"), "Vsn", []byte{1, 5, 2, 0, 0, 0}},
		"we are dead":                      {},
	} {
		kind := byte(typeAlive)
		if what == "we are dead" {
			kind, n = typeDead, []any{"Node", "a", "From", "a", "Incarnation", 1000}
		}
		p[what] = append([]byte{kind}, packed(n...)...)
	}
	return p
}

// hostileStreams are messages on streams before they are sealed.
func hostileStreams(t testing.TB) map[string][]byte {
	node := func(versions []byte) []byte {
		return packed("Name", "x", "Addr", []byte{127, 0, 0, 1}, "Port", 1, "Meta", []byte{}, "Incarnation", 1, "State", 0, "Vsn", versions)
	}
	header := func(nodes, state int) []byte {
		return append([]byte{typePushPull}, packed("Nodes", nodes, "UserStateLen", state, "Join", true)...)
	}
	join := func(b []byte, more ...[]byte) []byte { return append(bytes.Clone(b), bytes.Join(more, nil)...) }
	return map[string][]byte{
		"nothing in an envelope":     {},
		"no versions":                join(header(1, 0), node(nil)),
		"few versions":               join(header(1, 0), node([]byte{1})),
		"fewer members than said":    join(header(2, 0), node([]byte{1, 5, 2, 0, 0, 0})),
		"a million members":          header(1<<20, 0),
		"less than no members":       header(-1, 0),
		"less than no state":         header(0, -1),
		"a state of 100 MiB":         join(header(0, 100<<20), make([]byte, 100<<20)),
		"22 MiB, compressed":         squeezed(t, maxStream, header(0, maxState+1)...),
		"a message of 2^62 bytes":    join([]byte{typeUser}, packed("UserMsgLen", 1<<62)),
		"a message of minus 1 bytes": join([]byte{typeUser}, packed("UserMsgLen", -1)),
		"an empty bomb":              squeezed(t, 0),
		"arrays in arrays":           join([]byte{typePushPull, 0x81, 0xa1, 'x'}, bytes.Repeat([]byte{0x91}, 4<<20)),
		"an unknown compression":     join([]byte{typeCompress}, packed("Algo", 7, "Buf", []byte("x"))),
		"a type of the future":       {99, 1, 2, 3},
		"an encrypted 4 GiB":         {typeEncrypt, 0xff, 0xff, 0xff, 0xff, 1, 2, 3},
		"garbage as states":          join(header(0, 64), bytes.Repeat([]byte{0xff}, 64)),
		"states that panic":          join(header(0, len(states2(t))), states2(t)),
		"a label that is cut off":    {typeLabel, 200, 'x'},
	}
}

// states2 is a full state of which one part panics, one is wrong and one unknown.
func states2(t testing.TB) []byte {
	b, err := proto.Marshal(&clusterpb.FullState{Parts: []*clusterpb.Part{
		{Key: "bag", Data: []byte("panic")}, {Key: "bag", Data: []byte("wrong")}, {Key: "?", Data: []byte("x")}, {},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func part(t testing.TB, key string, data []byte) []byte {
	b, err := proto.Marshal(&clusterpb.Part{Key: key, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// packed writes a MessagePack map of keys and values.
func packed(pairs ...any) []byte {
	b := []byte{0x80 | byte(len(pairs)/2)}
	text := func(s []byte) { b = append(binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(len(s))), s...) }
	for _, v := range pairs {
		switch v := v.(type) {
		case string:
			text([]byte(v))
		case []byte:
			text(v)
		case int:
			b = binary.BigEndian.AppendUint64(append(b, 0xd3), uint64(v))
		case bool:
			b = append(b, 0xc2)
			if v {
				b[len(b)-1] = 0xc3
			}
		}
	}
	return b
}

// squeezed compresses zeros of packets, or what is given, as memberlist does.
func squeezed(t testing.TB, zeros int, what ...byte) []byte {
	var out bytes.Buffer
	w := lzw.NewWriter(&out, lzw.LSB, 8)
	if _, err := io.Copy(w, io.MultiReader(bytes.NewReader(what), io.LimitReader(zeroes{}, int64(zeros)))); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append([]byte{typeCompress}, packed("Algo", 0, "Buf", out.Bytes())...)
}

type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func label(name string) []byte { return append([]byte{typeLabel, byte(len(name))}, name...) }

func sendPacket(t *testing.T, to string, b []byte) {
	t.Helper()
	conn, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
}

// sendStream sends and waits until the other side has had enough.
func sendStream(t *testing.T, to string, b []byte) {
	t.Helper()
	conn, err := net.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// It may hang up before all is sent.
	if _, err := conn.Write(b); err == nil {
		_ = conn.(*net.TCPConn).CloseWrite()
	}
	_, _ = io.Copy(io.Discard, conn)
}

// captureJoin records what a peer sends to join.
func captureJoin(t *testing.T, like *trial) []byte {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	keying := setting(func(*Options) {})
	if like.keyed {
		keying = withKeys(key(1))
	}
	peer := started(t, named("b"), keying, withPeers(l.Addr().String()))
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(conn)
	if len(b) == 0 {
		t.Fatal("nothing was sent")
	}
	if err := peer.end(); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestLimiter tells the first at once and then one a minute.
func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l limiter
		tell := func(key string) (int, bool) { return l.allow(key, time.Now()) }
		if _, ok := tell("x"); !ok {
			t.Error("the first is not told")
		}
		for range 5 {
			if _, ok := tell("x"); ok {
				t.Error("a second is told at once")
			}
		}
		if _, ok := tell("y"); !ok {
			t.Error("another is not told")
		}
		<-time.After(quietFor)
		if n, ok := tell("x"); !ok || n != 5 {
			t.Errorf("after a minute: told %v, %d between", ok, n)
		}
		for i := range 2 * maxQuiet {
			tell(fmt.Sprint(i))
		}
		if n := len(l.seen); n > maxQuiet {
			t.Errorf("%d are remembered", n)
		}
	})
}

// TestSettleHeedsItsContext does not wait for ever.
func TestSettleHeedsItsContext(t *testing.T) {
	t.Parallel()
	a := prepared(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.WaitReady(ctx); err == nil {
		t.Error("ready before Run")
	}
}
