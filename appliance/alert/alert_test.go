package alert_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/rules"
	"go.uber.org/goleak"

	"github.com/tocsin-io/tocsin/appliance/alert"
	"github.com/tocsin-io/tocsin/appliance/config"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/baidubce/bce-sdk-go/util/log.NewLogger.func1"),
		// Idle connections of the webhook client's transport, which upstream owns and never closes.
		goleak.IgnoreTopFunction("internal/poll.runtime_pollWait"),
		goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreTopFunction("net/http.(*persistConn).readLoop"),
		// memberlist does not wait for a probe that is under way; it ends by its timeout.
		goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probe"),
	)
}

// sink is a receiver's other end: a real HTTP server that keeps what it was sent.
type sink struct {
	url string
	mu  sync.Mutex
	got []string
}

func newSink(t *testing.T) *sink {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{url: "http://" + l.Addr().String()}
	srv := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.got = append(s.got, string(b))
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return s
}

func (s *sink) bodies() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.got...)
}

func (s *sink) contains(text string) func() bool {
	return func() bool {
		for _, b := range s.bodies() {
			if strings.Contains(b, text) {
				return true
			}
		}
		return false
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// replica is an Alertmanager under test with what its surroundings would give it.
type replica struct {
	*alert.Alert
	t    *testing.T
	log  *lockedBuffer
	stop func()
}

func start(t *testing.T, dir, amYAML, promYAML string) *replica {
	t.Helper()
	reg := prometheus.NewRegistry()
	sd, err := discovery.CreateAndRegisterSDMetrics(reg)
	if err != nil {
		t.Fatal(err)
	}
	external, err := url.Parse("http://tocsin.example")
	if err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	a, err := alert.New(alert.Options{
		Logger: slog.New(slog.NewTextHandler(log, nil)), Registerer: reg, SDMetrics: sd,
		Replica: "alone", Dir: dir, ExternalURL: external, Address: "localhost:9090", RoutePrefix: "/",
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	r := &replica{Alert: a, t: t, log: log}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if err := r.apply(load(t, amYAML, promYAML)); err != nil {
		t.Fatal(err)
	}
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(r.stop)
	return r
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (r *replica) apply(cfg *config.Config) error {
	apply, err := r.Prepare(cfg)
	if err != nil {
		return err
	}
	return apply()
}

func load(t *testing.T, amYAML, promYAML string) *config.Config {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "tocsin.yml")
	text := ""
	for name, content := range map[string]string{"alertmanager": amYAML, "prometheus": promYAML} {
		if content == "" {
			continue
		}
		write(t, filepath.Join(dir, name+".yml"), content)
		text += fmt.Sprintf("%s: %s.yml\n", name, name)
	}
	write(t, file, text)
	cfg, err := config.Load(file, config.Self{Address: "localhost:9090", Instance: "test"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func webhook(url string) string {
	return fmt.Sprintf(`
route: {receiver: hook, group_by: [alertname], group_wait: 10ms, group_interval: 10ms, repeat_interval: 4h}
receivers: [{name: hook, webhook_configs: [{url: %q}]}]
`, url)
}

func (r *replica) fire(name string, more ...string) {
	r.Notify(context.Background(), "vector(1)", &rules.Alert{
		State:    rules.StateFiring,
		Labels:   labels.FromStrings(append([]string{labels.AlertName, name}, more...)...),
		FiredAt:  time.Now(),
		ActiveAt: time.Now(), ValidUntil: time.Now().Add(time.Hour),
		Annotations: labels.FromStrings("summary", "it burns"),
	})
}

// call asks the API in process and decodes its answer.
func (r *replica) call(method, path, body string, into any) int {
	r.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	w := &recorder{header: http.Header{}, code: http.StatusOK}
	r.Handler().ServeHTTP(w, req)
	if into != nil {
		if err := json.Unmarshal(w.body.Bytes(), into); err != nil {
			r.t.Fatalf("%s %s: %d %s: %v", method, path, w.code, w.body.String(), err)
		}
	}
	return w.code
}

type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (w *recorder) Header() http.Header         { return w.header }
func (w *recorder) WriteHeader(code int)        { w.code = code }
func (w *recorder) Write(b []byte) (int, error) { return w.body.Write(b) }

func (r *replica) silence(name string) {
	r.t.Helper()
	body := fmt.Sprintf(`{"matchers":[{"name":"alertname","value":%q,"isRegex":false}],"startsAt":%q,"endsAt":%q,"createdBy":"me","comment":"test"}`,
		name, time.Now().Format(time.RFC3339), time.Now().Add(time.Hour).Format(time.RFC3339))
	if code := r.call("POST", "/api/v2/silences", body, nil); code != http.StatusOK {
		r.t.Fatalf("silence: %d", code)
	}
}

func TestRuleAlertsReachReceiversHereAndOutside(t *testing.T) {
	here, outside := newSink(t), newSink(t)
	r := start(t, t.TempDir(), webhook(here.url), fmt.Sprintf(`
global: {external_labels: {cluster: c1}}
alerting: {alertmanagers: [{static_configs: [{targets: [%q]}]}]}
`, strings.TrimPrefix(outside.url, "http://")))
	r.fire("Burning", "instance", "a")
	// At once: not a resend delay of a minute later.
	eventually(t, "the webhook's notification", here.contains(`"alertname":"Burning"`))
	if !here.contains(`"cluster":"c1"`)() {
		t.Error("external labels are missing from the notification")
	}
	// Discovery of outside Alertmanagers takes upstream's 5 s; an alert before that is repeated by its rule.
	eventually(t, "discovery of the outside Alertmanager", func() bool { return len(r.Notifier().Alertmanagers()) == 2 })
	r.fire("Burning", "instance", "a")
	eventually(t, "the outside Alertmanager's alert", outside.contains(`"alertname":"Burning"`))
}

func TestMuted(t *testing.T) {
	r := start(t, t.TempDir(), webhook(newSink(t).url)+`
inhibit_rules: [{source_matchers: [alertname="SiteDown"], target_matchers: [alertname="HostDown"], equal: [site]}]
`, `global: {external_labels: {site: north}}`)
	muted := func(name string) string { return r.Muted(t.Context(), labels.FromStrings("alertname", name)) }
	for _, name := range []string{"Known", "HostDown"} {
		if got := muted(name); got != "" {
			t.Errorf("%s is %q before anything mutes it", name, got)
		}
	}
	r.silence("Known")
	if got := muted("Known"); got != "silenced" {
		t.Errorf("what is silenced is %q", got)
	}
	// The site is an external label: what the inhibition compares are labels as the Alertmanager has them.
	r.fire("SiteDown")
	eventually(t, "the inhibition", func() bool { return muted("HostDown") == "inhibited" })
	if got := muted("SiteDown"); got != "" {
		t.Errorf("what inhibits is %q", got)
	}
}

func TestSilencesAndNotificationsSurviveAKill(t *testing.T) {
	dir, hook := t.TempDir(), newSink(t)
	first := start(t, dir, webhook(hook.url), "")
	first.silence("Known")
	first.fire("Sent")
	eventually(t, "the notification", hook.contains(`"alertname":"Sent"`))
	// The notification log gets its entry after the receiver's answer.
	eventually(t, "the notification's record", func() bool {
		b, err := os.ReadFile(filepath.Join(dir, "nflog.journal"))
		return err == nil && len(b) > 0
	})

	// What kill -9 leaves is what is on disk now: nothing was told to stop.
	killed := t.TempDir()
	if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	first.stop()
	sent := len(hook.bodies())

	second := start(t, killed, webhook(hook.url), "")
	var silences []struct {
		Status struct{ State string }
	}
	second.call("GET", "/api/v2/silences", "", &silences)
	if len(silences) != 1 || silences[0].Status.State != "active" {
		t.Fatalf("silences after the kill: %+v", silences)
	}
	second.fire("Known")
	second.fire("Sent")
	second.fire("New")
	eventually(t, "the new notification", hook.contains(`"alertname":"New"`))
	for _, b := range hook.bodies()[sent:] {
		if strings.Contains(b, `"alertname":"Sent"`) || strings.Contains(b, `"alertname":"Known"`) {
			t.Errorf("sent again or in spite of the silence: %s", b)
		}
	}
}

func TestDamagedStateIsSetAside(t *testing.T) {
	dir, hook := t.TempDir(), newSink(t)
	first := start(t, dir, webhook(hook.url), "")
	first.silence("Early")
	first.silence("Late")
	journal, err := os.ReadFile(filepath.Join(dir, "silences.journal"))
	if err != nil {
		t.Fatal(err)
	}
	first.stop()

	broken := t.TempDir()
	write(t, filepath.Join(broken, "nflog"), "this is no snapshot")
	// A loss of power tore the last record.
	write(t, filepath.Join(broken, "silences.journal"), string(journal[:len(journal)-3]))
	second := start(t, broken, webhook(hook.url), "")
	var silences []struct {
		Matchers []struct{ Value string }
	}
	second.call("GET", "/api/v2/silences", "", &silences)
	if len(silences) != 1 || silences[0].Matchers[0].Value != "Early" {
		t.Fatalf("silences: %+v", silences)
	}
	if _, err := os.Stat(filepath.Join(broken, "nflog.damaged")); err != nil {
		t.Error(err)
	}
	// What follows the cut is appended where it can be read again.
	second.silence("Later")
	second.stop()
	third := start(t, broken, webhook(hook.url), "")
	if third.call("GET", "/api/v2/silences", "", &silences); len(silences) != 2 {
		t.Fatalf("silences: %+v", silences)
	}
}

func TestAFailedPrepareChangesNothing(t *testing.T) {
	hook := newSink(t)
	r := start(t, t.TempDir(), webhook(hook.url), "")
	bad := load(t, webhook(hook.url), "")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "broken.tmpl"), `{{ define "x" }}{{ .No `)
	bad.Alertmanager.Templates = []string{filepath.Join(dir, "*.tmpl")}
	if _, err := r.Prepare(bad); err == nil {
		t.Fatal("a template that does not parse was accepted")
	}
	r.fire("StillHere")
	eventually(t, "a notification by the old configuration", hook.contains(`"alertname":"StillHere"`))
}

func TestReloadMovesAlertsToTheNewReceiver(t *testing.T) {
	before, after := newSink(t), newSink(t)
	r := start(t, t.TempDir(), webhook(before.url), "")
	r.fire("One")
	eventually(t, "the old receiver's notification", before.contains(`"alertname":"One"`))
	other := strings.NewReplacer("receiver: hook", "receiver: other", "name: hook", "name: other").Replace(webhook(after.url))
	if err := r.apply(load(t, other, "")); err != nil {
		t.Fatal(err)
	}
	r.fire("Two")
	eventually(t, "the new receiver's notification", after.contains(`"alertname":"Two"`))
}

func TestBuiltInReceiverLogs(t *testing.T) {
	cfg, err := config.Builtin(config.Self{Address: "localhost:9090", Instance: "test"})
	if err != nil {
		t.Fatal(err)
	}
	soon := model.Duration(10 * time.Millisecond)
	cfg.Alertmanager.Route.GroupWait = &soon
	r := start(t, t.TempDir(), webhook("http://127.0.0.1:1"), "")
	if err := r.apply(cfg); err != nil {
		t.Fatal(err)
	}
	r.fire("Visible", "instance", "a")
	eventually(t, "the log line", func() bool {
		return strings.Contains(r.log.text(), "alert firing: Visible") && strings.Contains(r.log.text(), "it burns")
	})
}

func TestNullsInListsAreRefused(t *testing.T) {
	r := start(t, t.TempDir(), webhook("http://127.0.0.1:1"), "")
	now, later := time.Now().Format(time.RFC3339), time.Now().Add(time.Hour).Format(time.RFC3339)
	for path, body := range map[string]string{
		"/api/v2/alerts":   `[{"labels":{"alertname":"a"}},null]`,
		"/api/v2/silences": fmt.Sprintf(`{"matchers":[null],"startsAt":%q,"endsAt":%q,"createdBy":"me","comment":"x"}`, now, later),
	} {
		var answer struct {
			Code    int
			Message string
		}
		if code := r.call(http.MethodPost, path, body, &answer); code != http.StatusBadRequest || !strings.Contains(answer.Message, "null") {
			t.Errorf("POST %s %s: %d %+v", path, body, code, answer)
		}
	}
	// In a text it is none of our business.
	if code := r.call(http.MethodPost, "/api/v2/alerts", `[{"labels":{"alertname":"a"},"annotations":{"x":"[null]"}}]`, nil); code != http.StatusOK {
		t.Errorf("a text that reads [null]: %d", code)
	}
}

func TestASlowClientDoesNotHoldUpTheStop(t *testing.T) {
	r := start(t, t.TempDir(), webhook("http://127.0.0.1:1"), "")
	body, send := io.Pipe()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "/api/v2/silences", body)
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan int)
	go func() {
		w := &recorder{header: http.Header{}, code: http.StatusOK}
		r.Handler().ServeHTTP(w, req)
		answered <- w.code
	}()
	// A pipe's write returns once it is read: the request is inside now.
	if _, err := send.Write([]byte("{")); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); r.stop() }()
	select {
	case <-stopped:
	case <-time.After(20 * time.Second):
		t.Error("the stop waits for a client that sends slowly")
	}
	if err := send.Close(); err != nil {
		t.Fatal(err)
	}
	if code := <-answered; code != http.StatusServiceUnavailable {
		t.Errorf("a change after the stop is answered with %d, want 503", code)
	}
	<-stopped
}

func FuzzFindNull(f *testing.F) {
	for _, s := range []string{`[null]`, `{"a":[1,null]}`, `[`, `]`, `{"a":null}`, `null`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		// It must end, and whatever it lets through must not be a list of objects that holds a null.
		if alert.FindNull(body) != nil {
			return
		}
		var list []*struct{}
		if json.Unmarshal(body, &list) != nil {
			return
		}
		for _, e := range list {
			if e == nil {
				t.Fatalf("%s was let through", body)
			}
		}
	})
}

func TestNotReadyBeforeTheFirstConfiguration(t *testing.T) {
	reg := prometheus.NewRegistry()
	sd, err := discovery.CreateAndRegisterSDMetrics(reg)
	if err != nil {
		t.Fatal(err)
	}
	a, err := alert.New(alert.Options{
		Logger: slog.New(slog.DiscardHandler), Registerer: reg, SDMetrics: sd,
		Dir: t.TempDir(), ExternalURL: &url.URL{Scheme: "http", Host: "x"}, Address: "localhost:9090",
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{Alert: a, t: t}
	if code := r.call("POST", "/api/v2/alerts", "[]", nil); code != http.StatusServiceUnavailable {
		t.Errorf("answer %d, want 503", code)
	}
	if err := errors.Join(a.Close(), a.Close()); err != nil {
		t.Error(err)
	}
}
