package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// meetMost is how long it may take until replicas that know nothing of each other have met. Machines are shared.
const meetMost = 30 * time.Second

// TestBucketRendezvous has three replicas that know the cluster's name, its key and the bucket, and no address.
func TestBucketRendezvous(t *testing.T) {
	t.Parallel()
	peerBinary(t, "VERSITYGW", "versitygw") // before it waits
	c := newCluster(t, clusterOptions{bucket: func(r *replica) string {
		// The first line belongs to the section before it.
		return "  rendezvous: bucket\nbucket: " + s3Config(r.cluster.loopback+".201:7070") + "\n"
	}})
	s3 := newS3(t, c.dir, c.loopback+".201:7070")
	for _, r := range c.replicas {
		r.peers = nil
		r.configure()
	}
	begin := time.Now()
	meet := func(starting []string, members ...string) {
		t.Helper()
		since := time.Since(begin).Round(time.Second)
		for _, name := range starting {
			c.replicas[name].start()
		}
		for _, name := range starting {
			c.replicas[name].ready()
		}
		eventually(t, meetMost, fmt.Sprintf("%q meet", members), c.sees(members, members...))
		t.Logf("%s to %s: %q have met", since, time.Since(begin).Round(time.Second), members)
	}

	// From nothing, all at the same moment.
	meet([]string{"a", "b", "c"}, "a", "b", "c")
	eventually(t, meetMost, "the mesh is settled", c.settled)
	wantLeases(t, s3, "a.json", "b.json", "c.json")

	// A clean stop leaves no lease, a kill does.
	c.a().stop()
	c.b().stop()
	c.c().kill()
	wantLeases(t, s3, "c.json")
	old := c.c().host
	folder := leaseDir(s3)
	stale := readFile(t, folder, "c.json")
	write(t, folder, "0-garbage", strings.Repeat("\x00", 1<<20))
	write(t, folder, "a.json", "{")
	write(t, folder, "b.json", strings.Replace(stale, old, "127.66.66.66", 1))
	write(t, folder, "d.json", stale)
	write(t, folder, "deep/down.json", stale)

	// All elsewhere, and with no memory of each other. The lease of c leads nowhere until c is there.
	for i, name := range c.options.names {
		r := c.replicas[name]
		r.host = fmt.Sprintf("%s.%d", c.loopback, 31+i)
		r.url, r.amURL = "http://"+r.host+":9090", "http://"+r.host+":9093"
		if err := os.RemoveAll(filepath.Join(r.dir, "data", "mesh")); err != nil {
			t.Fatal(err)
		}
	}
	meet([]string{"a", "b"}, "a", "b")
	meet([]string{"c"}, "a", "b", "c")
	eventually(t, meetMost, "the mesh is settled", c.settled)
	v, err := c.a().view()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range v.Members {
		if want := c.replicas[m.Name].host + ":9094"; m.Address != want {
			t.Errorf("%s is at %s, not %s", m.Name, m.Address, want)
		}
	}
	if n, err := c.a().total("rendezvous_refused_total"); err != nil || n < 3 {
		t.Errorf("%v objects are counted as refused: %v", n, err)
	}

	// Without the bucket the mesh stands, and who was in it comes back to it.
	s3.kill()
	during(t, 5*time.Second, "the mesh stands without the bucket", c.whole)
	c.b().stop()
	meet([]string{"b"}, "a", "b", "c")
	eventually(t, meetMost, "the mesh is settled", c.settled)
}

func leaseDir(s3 *s3Server) string { return filepath.Join(s3.root, s3Bucket, "rendezvous", "e2e") }

// wantLeases checks which objects are in the place of leases.
func wantLeases(t *testing.T, s3 *s3Server, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(leaseDir(s3))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, want) {
		t.Fatalf("there are the leases %q, not %q", names, want)
	}
}
