package appliance_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
)

// TestState follows what a service manager is told of a replica without a cluster, which may be stopped at any time.
func TestState(t *testing.T) {
	p := start(t, t.TempDir())
	if s := p.State(); !s.Ready || s.Stopping || s.Sentence != "ready, alone" {
		t.Errorf("a replica that is ready says %+v", s)
	}
	if err := p.Alive(t.Context()); err != nil {
		t.Errorf("a replica that is ready is not alive: %v", err)
	}
	code, body := p.post("/api/tocsin/v1/drain")
	if code != http.StatusOK || strings.Count(body, "\n") != 1 || !strings.Contains(body, `"state":"drained","message":"this replica may be stopped now: it is alone`) {
		t.Errorf("a drain is answered %d %s", code, body)
	}
	if s := p.State(); !strings.HasPrefix(s.Sentence, "ready, alone, drained: may be stopped until ") {
		t.Errorf("a replica that is drained says %+v", s)
	}
	if _, metrics := p.get("/metrics"); !strings.Contains(metrics, "\ntocsin_drain_drained 1\n") {
		t.Error("no metric tells that the replica is drained")
	}
	p.stop()
	if s := p.State(); s.Ready || !s.Stopping || !strings.HasPrefix(s.Sentence, "stopping: closing ") {
		t.Errorf("a replica that has stopped says %+v", s)
	}
	if err := p.Alive(context.Background()); err != nil {
		t.Errorf("a replica that has just stopped counts as hanging: %v", err)
	}
}
