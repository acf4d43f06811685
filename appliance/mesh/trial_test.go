package mesh

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// key is a cluster key that is told from others by n.
func key(n byte) []byte { return bytes.Repeat([]byte{n}, 32) }

// trial is one replica of a test.
type trial struct {
	*Mesh
	t      *testing.T
	reg    *prometheus.Registry
	log    *lines
	dir    string
	bag    *bag
	tell   func([]byte)
	cancel context.CancelFunc
	done   chan error
}

// lines is a log that may be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// bag is a state: a set of lines.
type bag struct {
	mu    sync.Mutex
	items map[string]bool
}

func (b *bag) put(s string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.items[s] = true
}

func (b *bag) has(s string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.items[s]
}

func (b *bag) size() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.items)
}

func (b *bag) MarshalBinary() ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out bytes.Buffer
	for s := range b.items {
		out.WriteString(s + "\n")
	}
	return out.Bytes(), nil
}

func (b *bag) Merge(data []byte) error {
	switch {
	case bytes.HasPrefix(data, []byte("panic")):
		panic("a trial of a panic")
	case bytes.HasPrefix(data, []byte("wrong")):
		return fmt.Errorf("no such item")
	}
	for s := range strings.Lines(string(data)) {
		b.put(strings.TrimSuffix(s, "\n"))
	}
	return nil
}

type setting func(*Options)

func named(name string) setting     { return func(o *Options) { o.Config.Replica.Name = name } }
func inCluster(name string) setting { return func(o *Options) { o.Config.Cluster.Name = name } }
func withKeys(keys ...[]byte) setting {
	return func(o *Options) { o.Config.ClusterKeys = keys }
}
func withPeers(peers ...string) setting { return func(o *Options) { o.Config.Cluster.Peers = peers } }
func listening(addr string) setting     { return func(o *Options) { o.ListenAddress = addr } }
func rememberingIn(dir string) setting  { return func(o *Options) { o.Dir = dir } }

// prepared makes a replica that does not run yet.
func prepared(t *testing.T, settings ...setting) *trial {
	t.Helper()
	log := &lines{}
	opts := Options{
		Logger:     slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Registerer: prometheus.NewRegistry(),
		Config: &config.Config{
			Replica: config.Replica{Name: "a", Zone: "zone-1"},
			Cluster: &config.Cluster{Name: "prod"},
		},
		ListenAddress:     "127.0.0.1:0",
		GRPCListenAddress: "127.0.0.1:0",
		HTTPPort:          9090,
		Version:           "1.2.3",
	}
	for _, s := range settings {
		s(&opts)
	}
	if opts.Dir == "" {
		opts.Dir = filepath.Join(t.TempDir(), "mesh")
	}
	m, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	x := &trial{Mesh: m, t: t, reg: opts.Registerer.(*prometheus.Registry), log: log, dir: opts.Dir, bag: &bag{items: map[string]bool{}}}
	x.tell = m.AddState("bag", x.bag, opts.Registerer).Broadcast
	t.Cleanup(func() {
		if err := x.end(); err != nil {
			t.Logf("end of %s: %v", m.Name(), err) // Tests that mean it have ended it before.
		}
		if t.Failed() {
			t.Logf("log of %s (%s):\n%s", m.Name(), m.wire.advertise, tail(log.String()))
		}
	})
	return x
}

func tail(s string) string { return s[max(0, len(s)-12000):] }

// started makes a replica that runs.
func started(t *testing.T, settings ...setting) *trial {
	t.Helper()
	x := prepared(t, settings...)
	x.start()
	return x
}

func (x *trial) start() {
	// Not the test's context: the end is to be a clean one.
	ctx, cancel := context.WithCancel(context.Background())
	x.cancel, x.done = cancel, make(chan error, 1)
	go func() { x.done <- x.Run(ctx) }()
}

// end stops the replica as SIGTERM does, and returns what Run said.
func (x *trial) end() error {
	if x.cancel == nil {
		return x.Close()
	}
	x.cancel()
	err, ok := <-x.done
	if ok {
		close(x.done)
	}
	return err
}

// kill makes the replica silent at once, as SIGKILL does.
func (x *trial) kill() {
	x.t.Helper()
	if err := x.wire.Shutdown(); err != nil {
		x.t.Error(err)
	}
}

func (x *trial) address() string { return x.wire.advertise.String() }

// slack is how many times longer than on an idle machine things may take: while the machine stands still for some
// seconds, memberlist takes members for dead, and counts itself among the slow ones for a while after.
const slack = 4

// until waits for a condition, which comes within the given time on an idle machine.
func until(t *testing.T, within time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	deadline := time.NewTimer(slack * within)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not within %s: %s", slack*within, what)
		case <-tick.C:
		}
	}
	return time.Since(begin)
}

// value reads one metric.
func (x *trial) value(name string, labels ...string) float64 {
	x.t.Helper()
	families, err := x.reg.Gather()
	if err != nil {
		x.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var have []string
			for _, l := range m.GetLabel() {
				have = append(have, l.GetName(), l.GetValue())
			}
			if slices.Equal(have, labels) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return -1
}

func (x *trial) refused(reason string) float64 {
	x.t.Helper()
	return x.value("tocsin_mesh_refused_total", "reason", reason)
}

// names are the members that are alive.
func (x *trial) names() string {
	var names []string
	for _, p := range x.Peers() {
		names = append(names, p.Name())
	}
	return strings.Join(names, " ")
}

func whole(t *testing.T, within time.Duration, want string, all ...*trial) time.Duration {
	t.Helper()
	return until(t, within, "all have the members "+want, func() bool {
		return !slices.ContainsFunc(all, func(x *trial) bool { return x.names() != want })
	})
}

var keyings = map[string]setting{
	"without a key": func(*Options) {},
	"with a key":    withKeys(key(1)),
}
