package bucket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// meetingPlace is a bucket that is a folder, what is asked of it, and whether it is away.
type meetingPlace struct {
	objstore.Bucket
	root string

	mtx  sync.Mutex
	down error
	ops  map[string]int
}

func newMeetingPlace(t *testing.T) *meetingPlace {
	t.Helper()
	p := &meetingPlace{root: t.TempDir(), ops: map[string]int{}}
	b, err := openFiles(p.root)
	require.NoError(t, err)
	p.Bucket = b
	return p
}

func (p *meetingPlace) op(name string) error {
	p.mtx.Lock()
	defer p.mtx.Unlock()
	p.ops[name]++
	return p.down
}

func (p *meetingPlace) asked(name string) int {
	p.mtx.Lock()
	defer p.mtx.Unlock()
	return p.ops[name]
}

func (p *meetingPlace) away(err error) {
	p.mtx.Lock()
	defer p.mtx.Unlock()
	p.down = err
}

func (p *meetingPlace) Upload(ctx context.Context, name string, r io.Reader, opts ...objstore.ObjectUploadOption) error {
	if err := p.op("upload"); err != nil {
		return err
	}
	return p.Bucket.Upload(ctx, name, r, opts...)
}

func (p *meetingPlace) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := p.op("get"); err != nil {
		return nil, err
	}
	return p.Bucket.Get(ctx, name)
}

func (p *meetingPlace) Delete(ctx context.Context, name string) error {
	if err := p.op("delete"); err != nil {
		return err
	}
	return p.Bucket.Delete(ctx, name)
}

func (p *meetingPlace) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, opts ...objstore.IterOption) error {
	if err := p.op("list"); err != nil {
		return err
	}
	return p.Bucket.IterWithAttributes(ctx, dir, f, opts...)
}

func (p *meetingPlace) put(t *testing.T, object, text string) {
	t.Helper()
	require.NoError(t, p.Bucket.Upload(t.Context(), object, strings.NewReader(text)))
}

func (p *meetingPlace) has(t *testing.T, replica string) bool {
	t.Helper()
	ok, err := p.Exists(t.Context(), leaseObject("prod", replica))
	require.NoError(t, err)
	return ok
}

// guest is a replica that meets others.
type guest struct {
	*Rendezvous
	t      *testing.T
	log    bytes.Buffer
	cancel context.CancelFunc
	done   chan error

	mtx    sync.Mutex
	told   int
	found  []string
	others []string // in the mesh
}

func (p *meetingPlace) guest(t *testing.T, name, address string, keys ...byte) *guest {
	t.Helper()
	g := &guest{t: t}
	var err error
	g.Rendezvous, err = NewRendezvous(RendezvousOptions{
		Logger: slog.New(slog.NewTextHandler(&g.log, nil)), Registerer: prometheus.NewRegistry(), Bucket: p,
		Config: withKeys(name, keys...), Address: address,
		Found: func(addresses []string) {
			g.mtx.Lock()
			defer g.mtx.Unlock()
			g.told++
			g.found = addresses
		},
		Others: func() []string {
			g.mtx.Lock()
			defer g.mtx.Unlock()
			return g.others
		},
	})
	require.NoError(t, err)
	return g
}

func withKeys(name string, keys ...byte) *config.Config {
	c := &config.Config{Replica: config.Replica{Name: name}, Cluster: &config.Cluster{Name: "prod"}}
	for _, n := range keys {
		c.ClusterKeys = append(c.ClusterKeys, clusterKey(n))
	}
	if len(keys) == 0 {
		c.ClusterKeys = config.Keys{clusterKey(1)}
	}
	return c
}

func (g *guest) start() *guest {
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel, g.done = cancel, make(chan error, 1)
	go func() { g.done <- g.Run(ctx) }()
	return g
}

func (g *guest) stop() {
	g.t.Helper()
	g.cancel()
	require.NoError(g.t, <-g.done)
}

// joins has the mesh know others from now on.
func (g *guest) joins(names ...string) {
	g.mtx.Lock()
	g.others = names
	g.mtx.Unlock()
	g.Changed()
}

func (g *guest) finds() []string {
	g.mtx.Lock()
	defer g.mtx.Unlock()
	return slices.Sorted(slices.Values(g.found))
}

func (g *guest) refusals(reason string) float64 {
	return testutil.ToFloat64(g.refused.WithLabelValues(reason))
}

func TestReplicasThatStartAtOnceMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMeetingPlace(t)
		a := p.guest(t, "a", "10.0.0.1:1").start()
		b := p.guest(t, "b", "10.0.0.2:1").start()
		c := p.guest(t, "c", "10.0.0.3:1").start()
		synctest.Wait()
		// One of two at least sees the other, and all see all soon.
		require.True(t, slices.Contains(a.finds(), "10.0.0.2:1") || slices.Contains(b.finds(), "10.0.0.1:1"))
		require.True(t, slices.Contains(a.finds(), "10.0.0.3:1") || slices.Contains(c.finds(), "10.0.0.1:1"))
		<-time.After(10 * time.Second)
		synctest.Wait()
		require.Equal(t, []string{"10.0.0.2:1", "10.0.0.3:1"}, a.finds())
		require.Equal(t, []string{"10.0.0.1:1", "10.0.0.3:1"}, b.finds())
		require.Equal(t, []string{"10.0.0.1:1", "10.0.0.2:1"}, c.finds())
		require.Equal(t, 2, a.Status().Others)

		// A clean stop leaves nothing.
		for _, g := range []*guest{a, b, c} {
			g.stop()
			require.False(t, p.has(t, g.replica))
		}
	})
}

// A mesh that stands hardly costs anything, and one that falls apart looks at once.
func TestAMeshThatStandsLooksSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMeetingPlace(t)
		a := p.guest(t, "a", "10.0.0.1:1").start()
		synctest.Wait()
		a.joins("b")
		<-time.After(time.Minute)
		before := map[string]int{"upload": p.asked("upload"), "list": p.asked("list")}
		<-time.After(24 * time.Hour)
		require.LessOrEqual(t, p.asked("upload")-before["upload"], 4)
		require.LessOrEqual(t, p.asked("list")-before["list"], 330)
		require.GreaterOrEqual(t, p.asked("upload")-before["upload"], 3)
		synctest.Wait()
		listed := p.asked("list")
		a.joins()
		synctest.Wait()
		require.Greater(t, p.asked("list"), listed)
		listed = p.asked("list")
		<-time.After(17 * time.Second)
		require.GreaterOrEqual(t, p.asked("list"), listed+2)
		// Alone for long, it looks every minute.
		<-time.After(time.Hour)
		listed = p.asked("list")
		<-time.After(time.Hour)
		require.InDelta(t, 60, p.asked("list")-listed, 10)
		a.stop()
	})
}

func TestABucketThatIsAwayIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMeetingPlace(t)
		a := p.guest(t, "a", "10.0.0.1:1").start()
		synctest.Wait()
		p.away(errors.New("503"))
		b := p.guest(t, "b", "10.0.0.2:1").start()
		<-time.After(time.Hour)
		synctest.Wait()
		require.Zero(t, b.told, "b was told what nobody knows")
		require.Contains(t, b.Status().Problem, "503")
		require.NotZero(t, testutil.ToFloat64(b.renewFailed))
		require.NotZero(t, testutil.ToFloat64(b.lookFailed))
		require.Equal(t, 1, strings.Count(b.log.String(), "level=WARN"), b.log.String())
		told := a.told
		p.away(nil)
		<-time.After(3 * time.Minute)
		synctest.Wait()
		require.Greater(t, a.told, told)
		require.Equal(t, []string{"10.0.0.1:1"}, b.finds())
		require.Equal(t, []string{"10.0.0.2:1"}, a.finds())
		require.Empty(t, b.Status().Problem)
		// Whoever stops does not wait for it.
		p.away(errors.New("503"))
		a.stop()
		b.stop()
	})
}

// Whatever the clocks say: a lease that is renewed stays, and one that is not goes.
func TestExpiredLeasesAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMeetingPlace(t)
		keys := keysFor(t, "prod", 1)
		leave := func(name, address string, written time.Time) {
			p.put(t, leaseObject("prod", name), string(encoded(t, keys, &lease{
				Cluster: "prod", Replica: name, Address: address, Written: written, Seconds: int64(leaseLength / time.Second),
			})))
		}
		leave("dead", "10.0.0.9:1", time.Now().Add(1000*time.Hour))
		leave("slow", "10.0.0.8:1", time.Time{})
		leave("member", "10.0.0.7:1", time.Now())
		a := p.guest(t, "a", "10.0.0.1:1").start()
		b := p.guest(t, "b", "10.0.0.2:1").start()
		synctest.Wait()
		a.joins("b", "member")
		b.joins("a", "member")
		<-time.After(23 * time.Hour)
		require.Equal(t, []string{"10.0.0.2:1", "10.0.0.7:1", "10.0.0.8:1", "10.0.0.9:1"}, a.finds(), "an old lease is an address to try")
		leave("slow", "10.0.0.8:1", time.Unix(1, 0)) // It was renewed.
		<-time.After(10 * time.Hour)
		synctest.Wait()
		require.Equal(t, []string{"10.0.0.2:1", "10.0.0.7:1", "10.0.0.8:1"}, a.finds())
		require.False(t, p.has(t, "dead"))
		require.Equal(t, 1.0, testutil.ToFloat64(a.removed)+testutil.ToFloat64(b.removed))
		<-time.After(25 * time.Hour)
		synctest.Wait()
		require.Equal(t, []string{"10.0.0.2:1", "10.0.0.7:1"}, a.finds())
		for _, name := range []string{"a", "b", "member"} {
			require.True(t, p.has(t, name), name)
		}
		a.stop()
		b.stop()
	})
}

// Who has not run for long enough to have seen it has the word of the bucket, which has one clock.
func TestALeaseFromLongAgoIsRemovedAtOnce(t *testing.T) {
	p := newMeetingPlace(t)
	keys := keysFor(t, "prod", 1)
	for name, age := range map[string]time.Duration{"dead": 5 * leaseLength, "old": 3 * leaseLength} {
		object := leaseObject("prod", name)
		p.put(t, object, string(encoded(t, keys, &lease{Cluster: "prod", Replica: name, Address: "10.0.0.9:1", Seconds: int64(leaseLength / time.Second)})))
		then := time.Now().Add(-age)
		require.NoError(t, os.Chtimes(filepath.Join(p.root, object), then, then))
	}
	a := p.guest(t, "a", "10.0.0.1:1")
	require.NoError(t, a.turn(t.Context()))
	require.False(t, p.has(t, "dead"))
	require.True(t, p.has(t, "old"))
}

func TestALeaseThatIsGoneIsWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMeetingPlace(t)
		a := p.guest(t, "a", "10.0.0.1:1").start()
		synctest.Wait()
		a.joins("b")
		<-time.After(10 * time.Minute)
		require.NoError(t, p.Bucket.Delete(t.Context(), a.object))
		<-time.After(6 * time.Minute)
		synctest.Wait()
		require.True(t, p.has(t, "a"))
		a.stop()
	})
}

// Two machines with the same name find each other, so that the mesh can say so, and do not write in turns without end.
func TestTwoWithOneName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMeetingPlace(t)
		one := p.guest(t, "a", "10.0.0.1:1").start()
		synctest.Wait()
		two := p.guest(t, "a", "10.0.0.2:1").start()
		<-time.After(10 * time.Second)
		synctest.Wait()
		require.Equal(t, []string{"10.0.0.1:1"}, two.finds())
		require.Equal(t, []string{"10.0.0.2:1"}, one.finds())
		written := p.asked("upload")
		<-time.After(time.Hour)
		require.LessOrEqual(t, p.asked("upload")-written, 4)
		// Of the two one has its lease there, and only that one takes it away.
		one.stop()
		if p.has(t, "a") {
			b, err := readLease(t.Context(), p.Bucket, one.object)
			require.NoError(t, err)
			require.Contains(t, string(b), "10.0.0.2:1")
		}
		two.stop()
		require.False(t, p.has(t, "a"))
	})
}

func TestGarbageDoesNotHinder(t *testing.T) {
	p := newMeetingPlace(t)
	keys := keysFor(t, "prod", 1)
	folder := leaseFolder("prod")
	p.put(t, folder+"/0", "garbage")
	p.put(t, folder+"/deep/er.json", "garbage")
	p.put(t, leaseObject("prod", "large"), strings.Repeat(" ", 1<<20))
	p.put(t, leaseObject("prod", "forged"), string(encoded(t, keysFor(t, "prod", 6), &lease{Cluster: "prod", Replica: "forged", Address: "10.6.6.6:1"})))
	p.put(t, leaseObject("prod", "moved"), string(encoded(t, keys, aLease())))
	p.put(t, leaseObject("prod", "b"), string(encoded(t, keys, &lease{Cluster: "prod", Replica: "b", Address: "10.0.0.2:1"})))
	p.put(t, leaseObject("prod", "locked"), "x")
	require.NoError(t, os.Chmod(filepath.Join(p.root, leaseObject("prod", "locked")), 0))
	a := p.guest(t, "a", "10.0.0.1:1")
	for range 3 {
		require.NoError(t, a.turn(t.Context()))
		require.Equal(t, []string{"10.0.0.2:1"}, a.finds())
	}
	for reason, want := range map[string]float64{
		leaseFormat: 1, leaseTooLarge: 1, leaseSignature: 1, leaseMisplaced: 2, leaseForeign: 0, leaseBadAddress: 0,
	} {
		if os.Geteuid() == 0 && reason == leaseFormat {
			want++ // Nothing is locked for root.
		}
		require.Equal(t, want, a.refusals(reason), reason)
	}
	require.Equal(t, maxLeaseNotes+1, strings.Count(a.log.String(), "level=WARN"), a.log.String())
	require.Contains(t, a.log.String(), "more=1")
	// What changes is told of again.
	p.put(t, folder+"/0", "other garbage")
	require.NoError(t, a.turn(t.Context()))
	require.GreaterOrEqual(t, a.refusals(leaseFormat), 2.0)
}

func TestALeaseIsFoundAmongAThousandOthers(t *testing.T) {
	p := newMeetingPlace(t)
	for i := range 1000 {
		// Without a sync for each.
		name := filepath.Join(p.root, leaseFolder("prod"), fmt.Sprintf("%04d.json", i))
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte("x"), 0o644))
	}
	b := p.guest(t, "b", "10.0.0.2:1")
	require.NoError(t, b.turn(t.Context()))
	a := p.guest(t, "a", "10.0.0.1:1")
	for range 200 {
		got := p.asked("get")
		require.NoError(t, a.turn(t.Context()))
		require.LessOrEqual(t, p.asked("get")-got, 2*maxLeasesRead)
		if slices.Equal(a.finds(), []string{"10.0.0.2:1"}) {
			return
		}
	}
	t.Fatal("b was not found")
}

func TestKeysAreRotated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMeetingPlace(t)
		a := p.guest(t, "a", "10.0.0.1:1", 1).start()
		b := p.guest(t, "b", "10.0.0.2:1", 1).start()
		synctest.Wait()
		a.joins("b")
		b.joins("a")
		for _, keys := range [][]byte{{1, 2}, {2, 1}, {2}} {
			for _, g := range []*guest{a, b} {
				apply, err := g.Prepare(withKeys(g.replica, keys...))
				require.NoError(t, err)
				require.NoError(t, apply())
				synctest.Wait()
			}
		}
		for _, g := range []*guest{a, b} {
			require.Zero(t, g.refusals(leaseSignature))
		}
		// A reload that leaves the keys as they are writes nothing.
		written := p.asked("upload")
		apply, err := a.Prepare(withKeys("a", 2))
		require.NoError(t, err)
		require.NoError(t, apply())
		synctest.Wait()
		require.Equal(t, written, p.asked("upload"))
		c := p.guest(t, "c", "10.0.0.3:1", 2).start()
		synctest.Wait()
		require.Equal(t, []string{"10.0.0.1:1", "10.0.0.2:1"}, c.finds())
		for _, g := range []*guest{a, b, c} {
			g.stop()
		}
	})
}

// A write whose answer did not come may have been done.
func TestAWriteThatWasCutOffIsTakenBack(t *testing.T) {
	p := newMeetingPlace(t)
	a := p.guest(t, "a", "10.0.0.1:1")
	require.NoError(t, a.turn(t.Context()))
	l := &lease{Cluster: "prod", Replica: "a", Address: "10.0.0.1:1", Instance: a.instance, Sequence: a.sequence + 1}
	p.put(t, a.object, string(encoded(t, keysFor(t, "prod", 1), l)))
	a.withdraw(t.Context())
	require.False(t, p.has(t, "a"))
}

func TestARendezvousWantsAKey(t *testing.T) {
	cfg := withKeys("a")
	cfg.ClusterKeys = nil
	_, err := NewRendezvous(RendezvousOptions{
		Logger: discard, Registerer: prometheus.NewRegistry(), Bucket: objstore.NewInMemBucket(), Config: cfg, Address: "10.0.0.1:1",
		Found: func([]string) {}, Others: func() []string { return nil },
	})
	require.ErrorContains(t, err, "no cluster key")
}
