package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// keyed is several replicas of tocsin with one configuration and one key. They need not run all at the same time.
type keyed struct {
	b         *bench
	dir       string
	addresses [][]string
	replicas  []*side // nil where none was started
}

// newKeyed writes the configuration of so many replicas and starts none. prometheusYML has a %d for the replica's number,
// in an external label: when a target is scraped depends on the machine's name and on these, and on as many machines it
// would be at another time by each replica.
func (b *bench) newKeyed(dir, prometheusYML string, count int) (*keyed, error) {
	c := &keyed{b: b, dir: dir, addresses: make([][]string, count), replicas: make([]*side, count)}
	var gossip []string
	for i := range c.addresses {
		var err error
		if c.addresses[i], err = freeAddressesOn(host(i), 4); err != nil {
			return nil, err
		}
		gossip = append(gossip, strconv.Quote(c.addresses[i][2]))
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // it never fails
	files := map[string]string{
		"cluster.key":      base64.StdEncoding.EncodeToString(key) + "\n",
		"alertmanager.yml": "route: {receiver: none}\nreceivers: [{name: none}]\n",
	}
	for i := range c.addresses {
		files[fmt.Sprintf("prometheus-%d.yml", i)] = fmt.Sprintf(prometheusYML, i)
		files[fmt.Sprintf("tocsin-%d.yml", i)] = fmt.Sprintf("replica: {name: r%d, zone: zone-%d}\n", i, i) +
			fmt.Sprintf("prometheus: prometheus-%d.yml\nalertmanager: alertmanager.yml\n", i) +
			"cluster:\n  name: bench\n  key_file: cluster.key\n  peers: [" + strings.Join(gossip, ", ") + "]\n"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("create the directory for the configuration: %w", err)
	}
	var err error
	for name, text := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return c, err
}

// data is the data directory of a replica.
func (c *keyed) data(i int) string { return filepath.Join(c.dir, fmt.Sprintf("data-%d", i)) }

// start starts a replica, also again after its end.
func (c *keyed) start(i int, flags ...string) (*side, error) {
	a := c.addresses[i]
	file := func(format string) string { return filepath.Join(c.dir, fmt.Sprintf(format, i)) }
	p, err := start(fmt.Sprintf("replica %d", i), "http://"+a[0], file("tocsin-%d.log"), c.b.tocsin, append([]string{
		"run", "--config.file=" + file("tocsin-%d.yml"), "--storage.path=" + c.data(i), "--web.listen-address=" + a[0],
		"--alertmanager.listen-address=" + a[1], "--cluster.listen-address=" + a[2], "--grpc.listen-address=" + a[3],
	}, flags...)...)
	if err != nil {
		return nil, err
	}
	c.replicas[i] = &side{name: p.name, dir: c.dir, data: c.data(i), processes: []*process{p}}
	return c.replicas[i], nil
}

func (c *keyed) end() {
	for _, r := range c.replicas {
		if r != nil {
			r.end(syscall.SIGKILL)
		}
	}
}

// span is the time strictly between two moments, in Unix milliseconds.
type span struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// within is how much of it lies in another one.
func (s span) within(in span) time.Duration {
	return time.Duration(max(0, min(s.To, in.To)-max(s.From, in.From))) * time.Millisecond
}

// gaps is what /api/tocsin/v1/gaps says.
type gaps struct {
	Complete bool `json:"complete"`
	Healing  *struct {
		Since time.Time `json:"since"`
	} `json:"healing"`
	Problem string `json:"problem"`
	Gaps    []gap  `json:"gaps"`
}

type gap struct {
	span
	Kind    string    `json:"kind"`
	Cause   string    `json:"cause"`
	State   string    `json:"state"`
	Missing []span    `json:"missing"`
	Found   time.Time `json:"found"`
	Fills   []struct {
		span
		Replica string    `json:"replica"`
		Samples int64     `json:"samples"`
		At      time.Time `json:"at"`
	} `json:"fills"`
}

// gaps asks a replica what it lacks.
func (s *side) gaps(ctx context.Context) (g gaps, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	text, err := get(ctx, s.url()+"/api/tocsin/v1/gaps")
	if err != nil {
		return g, fmt.Errorf("ask %s for its gaps: %w", s.name, err)
	}
	if err := json.Unmarshal(text, &g); err != nil {
		return g, fmt.Errorf("read the gaps of %s: %w", s.name, err)
	}
	return g, nil
}

// waitComplete waits until a replica has found the gap of its being away and has closed all that it knows of.
func (s *side) waitComplete(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s was not complete within %s", s.name, limit))
	defer cancel()
	for {
		g, err := s.gaps(ctx)
		if err == nil && g.Complete && len(g.Gaps) > 0 {
			return nil
		}
		if e := sleep(ctx, 200*time.Millisecond); e != nil {
			return errors.Join(fmt.Errorf("%w: %s", e, g.Problem), err)
		}
	}
}
