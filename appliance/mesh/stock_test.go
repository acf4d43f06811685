package mesh

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/alertmanager/eventrecorder"
	"github.com/prometheus/alertmanager/nflog"
	"github.com/prometheus/alertmanager/nflog/nflogpb"
	"github.com/prometheus/alertmanager/silence"
	"github.com/prometheus/alertmanager/silence/silencepb"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// stockAlertmanager is where Debian puts it.
const stockAlertmanager = "/usr/bin/prometheus-alertmanager"

// alertStates are the states that Alertmanager replicates.
type alertStates struct {
	silences *silence.Silences
	log      *nflog.Log
}

func newAlertStates(t testing.TB) alertStates {
	t.Helper()
	reg := prometheus.NewRegistry()
	l, err := nflog.New(nflog.Options{Retention: time.Hour, Logger: discard(), Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	s, err := silence.New(silence.Options{
		Retention: time.Hour, Logger: discard(), Metrics: reg, EventRecorder: eventrecorder.NopRecorder(),
		Limits: silence.Limits{MaxSilences: func() int { return 0 }, MaxSilenceSizeBytes: func() int { return 0 }},
	})
	if err != nil {
		t.Fatal(err)
	}
	return alertStates{s, l}
}

// join has a mesh carry the states, as the Alertmanager inside does.
func (s alertStates) join(x *trial) {
	s.log.SetBroadcast(x.AddState("nfl", s.log, prometheus.NewRegistry()).Broadcast)
	s.silences.SetBroadcast(x.AddState("sil", s.silences, prometheus.NewRegistry()).Broadcast)
}

func (s alertStates) silence(t testing.TB, comment string) string {
	t.Helper()
	now := time.Now()
	sil := &silencepb.Silence{
		MatcherSets: []*silencepb.MatcherSet{{Matchers: []*silencepb.Matcher{{Name: "job", Pattern: "x", Type: silencepb.Matcher_EQUAL}}}},
		StartsAt:    timestamppb.New(now), EndsAt: timestamppb.New(now.Add(time.Hour)), CreatedBy: "test", Comment: comment,
	}
	if err := s.silences.Set(context.Background(), sil); err != nil {
		t.Fatal(err)
	}
	return sil.Id
}

func (s alertStates) comments(t testing.TB) map[string]bool {
	t.Helper()
	all, _, err := s.silences.Query(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	c := map[string]bool{}
	for _, x := range all {
		c[x.Comment] = true
	}
	return c
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startStock runs a stock Alertmanager.
func startStock(t *testing.T, data, web, gossip, peer, hook string) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "alertmanager.yml")
	content := fmt.Sprintf("route: {receiver: hook, group_wait: 1s, group_interval: 1m, repeat_interval: 1h}\nreceivers: [{name: hook, webhook_configs: [{url: %q}]}]\n", hook)
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	log := &lines{}
	cmd := exec.Command(stockAlertmanager, "--config.file="+config, "--storage.path="+data, "--web.listen-address="+web,
		"--cluster.listen-address="+gossip, "--cluster.peer="+peer, "--cluster.settle-timeout=2s", "--log.level=debug")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // It was killed.
		if t.Failed() {
			t.Logf("log of the stock Alertmanager:\n%s", tail(log.String()))
		}
	})
}

func ask(t *testing.T, method, url string, in, out any) error {
	t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, b)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// TestStockAlertmanagerJoins has Debian's Alertmanager in the mesh, as during a migration.
func TestStockAlertmanagerJoins(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat(stockAlertmanager); err != nil {
		t.Skipf("there is no stock Alertmanager here: %v", err)
	}
	a, b := prepared(t, named("a")), prepared(t, named("b"))
	b.seeds.set([]string{a.address()})
	ours, theirs := newAlertStates(t), newAlertStates(t)
	ours.join(a)
	theirs.join(b)
	ours.silence(t, "before it joined")
	a.start()
	b.start()
	whole(t, 10*time.Second, "a b", a, b)

	hook, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(hook) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	web := freePort(t)
	startStock(t, t.TempDir(), web, freePort(t), a.address(), "http://"+hook.Addr().String())
	until(t, 20*time.Second, "it is a member of both", func() bool { return len(a.Peers()) == 3 && len(b.Peers()) == 3 })

	type answer struct{ Comment string }
	has := func(comment string) func() bool {
		return func() bool {
			var all []answer
			if err := ask(t, http.MethodGet, "http://"+web+"/api/v2/silences", nil, &all); err != nil {
				return false
			}
			for _, s := range all {
				if s.Comment == comment {
					return true
				}
			}
			return false
		}
	}
	until(t, 20*time.Second, "it knows our silence from before", has("before it joined"))
	// What is set later is a broadcast: that of our version must be one that it reads.
	ours.silence(t, "after it joined")
	until(t, 20*time.Second, "it knows our silence from after", has("after it joined"))
	now := time.Now().UTC()
	if err := ask(t, http.MethodPost, "http://"+web+"/api/v2/silences", map[string]any{
		"matchers": []any{map[string]any{"name": "job", "value": "y", "isRegex": false, "isEqual": true}},
		"startsAt": now, "endsAt": now.Add(time.Hour), "createdBy": "stock", "comment": "from the stock one",
	}, nil); err != nil {
		t.Fatal(err)
	}
	until(t, 20*time.Second, "both know its silence", func() bool {
		return ours.comments(t)["from the stock one"] && theirs.comments(t)["from the stock one"]
	})

	// The notification log, from it to us: it notifies, and we know.
	if err := ask(t, http.MethodPost, "http://"+web+"/api/v2/alerts", []any{map[string]any{
		"labels": map[string]string{"alertname": "Stock", "job": "z"}, "startsAt": now,
	}}, nil); err != nil {
		t.Fatal(err)
	}
	recv := &nflogpb.Receiver{GroupName: "hook", Integration: "webhook", Idx: 0}
	until(t, 40*time.Second, "its notification is in our log", func() bool {
		entries, err := ours.log.Query(nflog.QReceiver(recv), nflog.QGroupKey("{}:{}"))
		return err == nil && len(entries) > 0
	})
	// And from us to it: what it stores is what we said.
	if err := ours.log.Log(recv, "{}:{ours}", []uint64{1}, nil, nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	until(t, 10*time.Second, "b has our entry", func() bool {
		entries, err := theirs.log.Query(nflog.QReceiver(recv), nflog.QGroupKey("{}:{ours}"))
		return err == nil && len(entries) == 1
	})
	until(t, 10*time.Second, "it has our entry", func() bool {
		resp, err := http.Get("http://" + web + "/metrics")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return bytes.Contains(b, []byte("alertmanager_nflog_gossip_messages_propagated_total")) &&
			!bytes.Contains(b, []byte("alertmanager_nflog_gossip_messages_propagated_total 0\n"))
	})
	http.DefaultClient.CloseIdleConnections()
	for _, m := range a.Members() {
		if m.Name != "a" && m.Name != "b" && (m.Card != Card{}) {
			t.Errorf("a stock Alertmanager has the card %+v", m.Card)
		}
	}
	for _, reason := range allReasons {
		if n := a.refused(reason); n != 0 {
			t.Errorf("%v messages refused for %q", n, reason)
		}
	}
}
