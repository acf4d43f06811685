package mesh

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMemory(t *testing.T) {
	dir := t.TempDir()
	now := time.Now().UTC().Truncate(time.Second)
	at := func(i int) string { return fmt.Sprintf("10.0.0.%d:9094", i) }
	m, err := openMemory(dir, now)
	if err != nil || len(m.peers) != 0 {
		t.Fatalf("%v, %v", m.peers, err)
	}
	alive := func(name, address string) Member { return Member{Name: name, Address: address, Alive: true} }
	if err := m.update([]Member{alive("a", at(1)), alive("b", at(2)), {Name: "self", Address: at(3), Alive: true, Self: true}, {Name: "dead", Address: at(4)}}, now); err != nil {
		t.Fatal(err)
	}
	// A came back elsewhere; another took b's address.
	if err := m.update([]Member{alive("a", at(5)), alive("c", at(2))}, now.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	read := func(when time.Time) string {
		m, err := openMemory(dir, when)
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, p := range m.peers {
			s = append(s, p.Name+"@"+p.Address)
		}
		slices.Sort(s)
		return strings.Join(s, " ")
	}
	if got, want := read(now), "a@"+at(5)+" c@"+at(2); got != want {
		t.Errorf("remembered %q, want %q", got, want)
	}
	if got := read(now.Add(rememberFor + time.Hour)); got != "" {
		t.Errorf("after a month %q", got)
	}
	var crowd []Member
	for i := range 2 * maxRemembered {
		crowd = append(crowd, alive(fmt.Sprint("m", i), fmt.Sprintf("10.1.0.%d:9094", i)))
	}
	if err := m.update(crowd, now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if len(m.peers) != maxRemembered {
		t.Errorf("%d remembered", len(m.peers))
	}
	if names, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(names) != 1 {
		t.Errorf("left over: %v, %v", names, err)
	}
	for _, content := range []string{"", "{", `{"peers":[{"name":"x","address":"no"},{"name":"","address":"10.0.0.1:1"}]}`, strings.Repeat("x", maxPeersFile+1)} {
		if err := os.WriteFile(filepath.Join(dir, "peers.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		// It may be an error, the start goes on.
		if m, _ := openMemory(dir, now); m == nil || len(m.peers) != 0 {
			t.Errorf("%.20q: %v", content, m)
		}
	}
}
