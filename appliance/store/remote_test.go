package store

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage/remote"
)

func writeTo(t testing.TB, raw string) *promconfig.RemoteWriteConfig {
	t.Helper()
	c := promconfig.DefaultRemoteWriteConfig
	c.URL = parseURL(t, raw)
	c.QueueConfig.BatchSendDeadline = model.Duration(50 * time.Millisecond)
	return &c
}

func readFrom(t testing.TB, raw string) *promconfig.RemoteReadConfig {
	t.Helper()
	c := promconfig.DefaultRemoteReadConfig
	c.URL = parseURL(t, raw)
	c.ReadRecent = true
	return &c
}

func parseURL(t testing.TB, raw string) *commonconfig.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return &commonconfig.URL{URL: u}
}

func (o *opened) reload(change func(*promconfig.Config)) {
	o.t.Helper()
	apply, err := o.Prepare(configured(change))
	if err != nil {
		o.t.Fatal(err)
	}
	if err := apply(); err != nil {
		o.t.Fatal(err)
	}
}

func TestRemoteWrite(t *testing.T) {
	var received atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := remote.DecodeWriteRequest(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		for _, ts := range req.Timeseries {
			received.Add(int64(len(ts.Samples)))
		}
	}))
	defer srv.Close()

	o := open(t, t.TempDir())
	now := time.Now().UnixMilli()
	o.append(10, now)
	o.reload(func(c *promconfig.Config) {
		c.RemoteWriteConfigs = []*promconfig.RemoteWriteConfig{writeTo(t, srv.URL)}
	})
	// Only what is newer than the start of the queue is sent.
	at := time.Now().UnixMilli()
	sent := int64(0)
	eventually(t, func() bool {
		at += 1000
		o.append(10, at)
		sent += 10
		return received.Load() > 0
	})
	eventually(t, func() bool { return received.Load() >= sent-10 })
	if got := gauge(t, o.reg, "prometheus_remote_storage_highest_timestamp_in_seconds"); got != float64(at/1000) {
		t.Errorf("highest timestamp is %v, want %v", got, at/1000)
	}
	o.reload(func(c *promconfig.Config) {})
	o.append(10, at+1000)
}

func TestRemoteRead(t *testing.T) {
	now := time.Now().UnixMilli()
	far := open(t, t.TempDir())
	app := far.Appender(context.Background())
	if _, err := app.Append(0, labels.FromStrings("__name__", "far"), now, 1); err != nil {
		t.Fatal(err)
	}
	if err := app.Commit(); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(remote.NewReadHandler(nopLogger(), nil, far, func() promconfig.Config { return promconfig.DefaultConfig }, 1000, 10, 1<<20))
	defer srv.Close()
	defer http.DefaultClient.CloseIdleConnections()

	near := open(t, t.TempDir())
	near.append(1, now)
	near.reload(func(c *promconfig.Config) { c.RemoteReadConfigs = []*promconfig.RemoteReadConfig{readFrom(t, srv.URL)} })
	if got := len(read(t, near.Store)); got != 2 {
		t.Errorf("%d series with remote_read, want 2", got)
	}
	if got := len(read(t, near.Local())); got != 1 {
		t.Errorf("%d local series, want 1", got)
	}

	// A remote end that fails is a warning, and local data is served.
	srv.Config.Handler = http.NotFoundHandler()
	q, err := near.Querier(math.MinInt64/2, math.MaxInt64/2)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	set := q.Select(context.Background(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	n := 0
	for set.Next() {
		n++
	}
	if set.Err() != nil || n != 1 || len(set.Warnings()) != 1 {
		t.Errorf("%d series, error %v, warnings %v; want 1, none, one", n, set.Err(), set.Warnings())
	}
	near.reload(func(c *promconfig.Config) {})
}

func TestPrepareRefuses(t *testing.T) {
	o := open(t, t.TempDir())
	if _, err := o.Prepare(nil); err == nil {
		t.Error("no configuration: accepted")
	}
	tests := map[string]struct {
		change func(*promconfig.Config)
		want   []string
	}{
		"missing CA file": {func(c *promconfig.Config) {
			w := writeTo(t, "http://localhost/")
			w.HTTPClientConfig.TLSConfig.CAFile = "/no/such/file"
			c.RemoteWriteConfigs = []*promconfig.RemoteWriteConfig{w}
		}, []string{"prometheus.remote_write[0]", "/no/such/file"}},
		"twice the same, both kinds": {func(c *promconfig.Config) {
			c.RemoteWriteConfigs = []*promconfig.RemoteWriteConfig{writeTo(t, "http://u:secret@localhost/"), writeTo(t, "http://u:secret@localhost/")}
			c.RemoteReadConfigs = []*promconfig.RemoteReadConfig{readFrom(t, "http://localhost/"), readFrom(t, "http://localhost/")}
		}, []string{"prometheus.remote_write[1]: is there twice", "prometheus.remote_read[1]: is there twice"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			before := fmt.Sprint(o.Retention())
			_, err := o.Prepare(configured(tc.change))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q is not in %q", w, err)
				}
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("a password is in %q", err)
			}
			if after := fmt.Sprint(o.Retention()); after != before {
				t.Errorf("it changed %s to %s", before, after)
			}
		})
	}
}

func TestReplaySentence(t *testing.T) {
	s, err := New(Options{Dir: t.TempDir(), isMount: noMount})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.say(sayReplay)
	if _, got := s.Condition(); got != sayReplay {
		t.Errorf("before the log: %q", got)
	}
	st := s.local.stats.Head.WALReplayStatus
	st.Lock()
	st.Min, st.Current, st.Max = 10, 21, 49
	st.Unlock()
	if _, got := s.Condition(); got != "replaying the write-ahead log: segment 12 of 40" {
		t.Errorf("in the log: %q", got)
	}
}
