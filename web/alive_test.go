package web

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TestAlive holds that the door is alive also when clients hold every connection that there is for them, and not any more once
// it is shut.
func TestAlive(t *testing.T) {
	d := open(t, Options{MaxConnections: 1, RoutePrefix: "/sub"})
	full, err := net.Dial("tcp", d.Addresses()["web"][0])
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for range 3 {
		if err := d.Alive(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if err := d.Alive(ctx); err == nil {
		t.Error("a door that is shut counts as alive")
	}
}

// TestAliveHangs holds that a door that does not answer is not alive.
func TestAliveHangs(t *testing.T) {
	reg := prometheus.NewRegistry()
	w, err := New(Options{Registerer: reg, Gatherer: reg, Listen: []string{"127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := w.Alive(ctx); err == nil {
		t.Error("a door at which nobody serves counts as alive")
	}
}
