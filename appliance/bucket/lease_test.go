package bucket

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/thanos/pkg/block"

	"github.com/tocsin-io/tocsin/appliance/config"
)

func clusterKey(n byte) []byte { return bytes.Repeat([]byte{n}, 32) }

func keysFor(t testing.TB, cluster string, ns ...byte) leaseKeys {
	t.Helper()
	var keys config.Keys
	for _, n := range ns {
		keys = append(keys, clusterKey(n))
	}
	k, err := newLeaseKeys(cluster, keys)
	require.NoError(t, err)
	return k
}

func aLease() *lease {
	return &lease{
		Cluster: "prod", Replica: "a", Address: "10.0.0.1:9094", Written: time.Unix(1700000000, 0).UTC(), Seconds: 3600,
		Instance: "f00", Sequence: 7,
	}
}

func encoded(t testing.TB, k leaseKeys, l *lease) []byte {
	t.Helper()
	b, err := k.encode(l)
	require.NoError(t, err)
	return b
}

func TestLease(t *testing.T) {
	keys := keysFor(t, "prod", 1, 2)
	place := leaseObject("prod", "a")
	l, err := keys.decode("prod", place, encoded(t, keys, aLease()))
	require.NoError(t, err)
	require.Equal(t, aLease(), l)
	// The keys are rotated as the mesh's: the first signs, all are accepted.
	for _, k := range []leaseKeys{keysFor(t, "prod", 2), keysFor(t, "prod", 3, 1)} {
		_, err := keys.decode("prod", place, encoded(t, keysFor(t, "prod", 2), aLease()))
		require.NoError(t, err)
		_, err = k.decode("prod", place, encoded(t, k, aLease()))
		require.NoError(t, err)
	}
	require.NotContains(t, string(encoded(t, keys, aLease())), string(clusterKey(1)))
	// A later version may say more.
	text := []byte(`{"cluster":"prod","replica":"a","address":"[::ffff:10.0.0.1]:9094","zone":"z"}`)
	b, err := json.Marshal(signedLease{leaseVersion, text, leaseMAC(keys[0], text)})
	require.NoError(t, err)
	l, err = keys.decode("prod", place, b)
	require.NoError(t, err)
	require.Equal(t, "10.0.0.1:9094", l.Address)
	require.Equal(t, shortestLease, l.length())
	require.Equal(t, longestLease, (&lease{Seconds: 1 << 62}).length())
	require.Equal(t, shortestLease, (&lease{Seconds: -1 << 62}).length())

	change := func(f func(*lease)) []byte {
		l := aLease()
		f(l)
		return encoded(t, keys, l)
	}
	whole := encoded(t, keys, aLease())
	for name, c := range map[string]struct {
		b      []byte
		object string
		reason string
	}{
		"nothing":         {b: nil, reason: leaseFormat},
		"garbage":         {b: []byte("\x00\xff"), reason: leaseFormat},
		"a number":        {b: []byte("7"), reason: leaseFormat},
		"null":            {b: []byte("null"), reason: leaseFormat},
		"cut":             {b: whole[:len(whole)/2], reason: leaseFormat},
		"twice":           {b: append(bytes.Clone(whole), whole...), reason: leaseFormat},
		"large":           {b: append(bytes.Clone(whole), bytes.Repeat([]byte(" "), maxLeaseBytes)...), reason: leaseTooLarge},
		"lease of a list": {b: []byte(`{"version":1,"lease":[],"hmac":""}`), reason: leaseFormat},
		"no signature":    {b: []byte(`{"version":1,"lease":{"cluster":"prod"}}`), reason: leaseSignature},
		"version":         {b: bytes.Replace(whole, []byte(`"version":1`), []byte(`"version":2`), 1), reason: leaseNewerFormat},
		"another address": {b: bytes.Replace(whole, []byte("10.0.0.1"), []byte("10.6.6.6"), 1), reason: leaseSignature},
		"another cluster": {b: change(func(l *lease) { l.Cluster = "test" }), reason: leaseForeign},
		"another key":     {b: encoded(t, keysFor(t, "prod", 9), aLease()), reason: leaseSignature},
		// A cluster that has the same key by mistake is another cluster nevertheless.
		"the key of another cluster": {b: encoded(t, keysFor(t, "test", 1), aLease()), reason: leaseSignature},
		"another replica's place":    {b: whole, object: leaseObject("prod", "b"), reason: leaseMisplaced},
		"no suffix":                  {b: whole, object: strings.TrimSuffix(place, ".json"), reason: leaseMisplaced},
		"no replica":                 {b: change(func(l *lease) { l.Replica = "" }), reason: leaseMisplaced},
		"a name as address":          {b: change(func(l *lease) { l.Address = "host:9094" }), reason: leaseBadAddress},
		"no port":                    {b: change(func(l *lease) { l.Address = "10.0.0.1:0" }), reason: leaseBadAddress},
		"unspecified":                {b: change(func(l *lease) { l.Address = "[::]:9094" }), reason: leaseBadAddress},
		"multicast":                  {b: change(func(l *lease) { l.Address = "224.0.0.1:9094" }), reason: leaseBadAddress},
		"a zone":                     {b: change(func(l *lease) { l.Address = "[fe80::1%eth0]:9094" }), reason: leaseBadAddress},
	} {
		t.Run(name, func(t *testing.T) {
			if c.object == "" {
				c.object = place
			}
			_, err := keys.decode("prod", c.object, c.b)
			var bad *leaseError
			require.ErrorAs(t, err, &bad)
			require.Equal(t, c.reason, bad.reason, err)
		})
	}
}

func TestLeaseNames(t *testing.T) {
	for name, want := range map[string]string{
		"a": "a.json", "a.b-c": "a.b-c.json", "a/b": "a%2Fb.json", "..": "%2E..json", ".tocsin-upload": "%2Etocsin-upload.json",
		"a b": "a%20b.json", "ä": "%C3%A4.json", `a\b`: "a%5Cb.json",
	} {
		require.Equal(t, "rendezvous/prod/"+want, leaseObject("prod", name))
	}
	require.Equal(t, "rendezvous/%2E./a.json", leaseObject("..", "a"))
	longest := leaseObject("prod", strings.Repeat("ä", 126))
	require.LessOrEqual(t, len(longest[len("rendezvous/prod/"):]), 255)
	require.NotEqual(t, longest, leaseObject("prod", strings.Repeat("ä", 125)+"ü"))
}

func TestLeasesAreNoBlocks(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	for _, name := range []string{"a", "01HXYZABCDEFGHJKMNPQRSTVWX"} {
		require.NoError(t, bkt.Upload(t.Context(), leaseObject("01HXYZABCDEFGHJKMNPQRSTVWX", name), strings.NewReader("{}")))
	}
	ids := make(chan block.ActiveBlockFetchData, 10)
	partial, err := lister{kitLogger{discard}, objstore.WithNoopInstr(bkt)}.GetActiveAndPartialBlockIDs(t.Context(), ids)
	require.NoError(t, err)
	require.Empty(t, partial)
	require.Empty(t, ids)
}

func FuzzLease(f *testing.F) {
	keys := keysFor(f, "prod", 1)
	place := leaseObject("prod", "a")
	f.Add(encoded(f, keys, aLease()))
	f.Add([]byte(`{"version":1,"lease":{"cluster":"prod","replica":"a","address":"[::1%a]:1"},"hmac":"00"}`))
	f.Add([]byte(`{"version":1,"lease":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		// As it came, and with a signature that is right.
		for _, b := range [][]byte{b, signed(keys, b)} {
			l, err := keys.decode("prod", place, b)
			if err != nil {
				var bad *leaseError
				if !errors.As(err, &bad) || bad.reason == "" || len(err.Error()) > 1000 {
					t.Fatalf("%v", err)
				}
				continue
			}
			if l.Cluster != "prod" || l.Replica != "a" || l.Address == "" || l.length() < shortestLease || l.length() > longestLease {
				t.Fatalf("%+v", l)
			}
		}
	})
}

// signed makes an object of any text.
func signed(keys leaseKeys, text []byte) []byte {
	return []byte(`{"version":1,"lease":` + string(text) + `,"hmac":"` + leaseMAC(keys[0], bytes.TrimSpace(text)) + `"}`)
}
