package main

import (
	"context"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestParseNotification(t *testing.T) {
	const at = "2026-11-21T20:00:00.25Z"
	ours := func(n, status string) string {
		return `{"status":"` + status + `","labels":{"alertname":"BenchLevel","n":"` + n + `"},"startsAt":"` + at + `"}`
	}
	for name, c := range map[string]struct {
		body   string
		want   []delivery
		others int
		bad    bool
	}{
		"firing":     {body: `{"alerts":[` + ours("7", "firing") + `]}`, want: []delivery{{n: 7, firing: true}}},
		"both":       {body: `{"alerts":[` + ours("1", "firing") + "," + ours("2", "resolved") + `]}`, want: []delivery{{n: 1, firing: true}, {n: 2}}},
		"others":     {body: `{"alerts":[{"status":"firing","labels":{"alertname":"Watchdog"}}]}`, others: 1},
		"no number":  {body: `{"alerts":[` + ours("x", "firing") + `]}`, bad: true},
		"negative":   {body: `{"alerts":[` + ours("-1", "firing") + `]}`, bad: true},
		"no status":  {body: `{"alerts":[` + ours("1", "") + `]}`, bad: true},
		"no alerts":  {body: `{}`, bad: true},
		"cut short":  {body: `{"alerts":[` + ours("1", "firing"), bad: true},
		"wrong time": {body: strings.Replace(`{"alerts":[`+ours("1", "firing")+`]}`, at, "today", 1), bad: true},
	} {
		got, others, err := parseNotification(strings.NewReader(c.body))
		if (err != nil) != c.bad {
			t.Errorf("%s: error %v", name, err)
		}
		if others != c.others {
			t.Errorf("%s: %d others, want %d", name, others, c.others)
		}
		for i := range got {
			if want := time.Date(2026, 11, 21, 20, 0, 0, 250e6, time.UTC); !got[i].startsAt.Equal(want) {
				t.Errorf("%s: started at %s", name, got[i].startsAt)
			}
			got[i].startsAt = time.Time{}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

func TestCount(t *testing.T) {
	zero := time.Now()
	at := func(s int) time.Time { return zero.Add(time.Duration(s) * time.Second) }
	got := count([]delivery{
		{at: at(5), n: 0, firing: true, startsAt: at(3)},
		{at: at(9), n: 0, firing: true, startsAt: at(3)}, // again
		{at: at(6), n: 0},               // resolved
		{at: at(6), n: 4, firing: true}, // none of the four
		{at: at(10), n: 2, firing: true, startsAt: at(4)},
	}, 4, true)
	if got.missed != 2 || got.duplicates != 1 || got.stray != 2 {
		t.Errorf("got %+v", got)
	}
	if want := []time.Duration{2 * time.Second, 6 * time.Second}; !slices.Equal(got.latency, want) {
		t.Errorf("latencies %v, want %v", got.latency, want)
	}
	if sum := got.plus(got); sum.missed != 4 || sum.duplicates != 2 || sum.stray != 4 || len(sum.latency) != 4 {
		t.Errorf("twice: %+v", sum)
	}
	one := countOne([]delivery{{at: at(7), n: 3, startsAt: at(5)}, {at: at(7), n: 0}}, 3, false)
	if one.missed != 0 || one.duplicates != 0 || one.stray != 1 || !slices.Equal(one.latency, []time.Duration{2 * time.Second}) {
		t.Errorf("of one: %+v", one)
	}
}

func TestQuantile(t *testing.T) {
	var d []time.Duration
	for i := range 200 {
		d = append(d, time.Duration(200-i)*time.Second)
	}
	for q, want := range map[float64]float64{0: 1, 0.5: 100, 0.99: 198, 1: 200} {
		if got := quantile(d, q); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
	if got := quantile(d[:1], 0.99); got != 200 {
		t.Errorf("of one: %v", got)
	}
}

func TestLevels(t *testing.T) {
	l, err := newLevels(3)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	up := func(at time.Time) string {
		var levels strings.Builder
		for line := range strings.Lines(string(l.text(at))) {
			if rest, ok := strings.CutPrefix(line, "bench_level{"); ok {
				levels.WriteString(strings.TrimSpace(rest[strings.Index(rest, "}")+1:]))
			}
		}
		return levels.String()
	}
	if got := up(time.Now()); got != "000" {
		t.Errorf("at first %s", got)
	}
	l.raise(3 * time.Second)
	for n, want := range []string{"100", "110", "111"} {
		if got := up(l.up[0].Add(time.Duration(n) * time.Second)); got != want {
			t.Errorf("when %d rises: %s, want %s", n, got, want)
		}
	}
	l.lower()
	if got := up(time.Now().Add(time.Hour)); got != "000" {
		t.Errorf("lowered: %s", got)
	}
	l.raiseOne(1)
	if got := up(time.Now()); got != "010" {
		t.Errorf("one raised: %s", got)
	}
}

// TestRecorderHolds also finds the process at the other end, which is this one.
func TestRecorderHolds(t *testing.T) {
	r, err := newRecorder()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	post := func(ctx context.Context, n int) error {
		body := `{"alerts":[{"status":"firing","labels":{"alertname":"BenchLevel","n":"` + strconv.Itoa(n) +
			`"},"startsAt":"2026-11-21T20:00:00Z"}]}`
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, strings.NewReader(body))
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	defer http.DefaultClient.CloseIdleConnections()
	caught := r.hold(1)
	if err := post(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- post(ctx, 1) }()
	from := <-caught
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	inode, err := socketInode(table, from)
	if err != nil {
		t.Fatal(err)
	}
	links, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(links, func(l os.DirEntry) bool {
		to, _ := os.Readlink("/proc/self/fd/" + l.Name())
		return to == "socket:["+inode+"]"
	}) {
		t.Errorf("this process has no socket %s", inode)
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("the held notification was answered")
	}
	if n := r.arrived(true); n != 1 {
		t.Errorf("%d alerts have arrived, want 1", n)
	}
	if err := post(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if n := r.arrived(true); n != 2 {
		t.Errorf("%d alerts have arrived, want 2", n)
	}
	if d := r.take(); len(d) != 2 || r.arrived(true) != 0 {
		t.Errorf("%v were taken and %d are left", d, r.arrived(true))
	}
}

func TestSocketInode(t *testing.T) {
	const table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
		"   0: 0100007F:9C40 0100007F:2382 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 20 4 30 10 -1\n"
	if got, err := socketInode([]byte(table), "127.0.0.1:40000"); err != nil || got != "4711" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, address := range []string{"127.0.0.1:9090", "127.0.0.2:40000", "127.0.0.1", "[::1]:40000", "127.0.0.1:x"} {
		if got, err := socketInode([]byte(table), address); err == nil {
			t.Errorf("%s: got %q and no error", address, got)
		}
	}
}

func TestParseMesh(t *testing.T) {
	status, peers, err := parseMesh([]byte(`{"cluster":{"status":"ready","peers":[{"name":"a"},{"name":"b"}]}}`))
	if err != nil || status != "ready" || peers != 2 {
		t.Errorf("got %q, %d, %v", status, peers, err)
	}
	if _, _, err := parseMesh([]byte("Not found")); err == nil {
		t.Error("no error")
	}
}

func TestNotifyOptions(t *testing.T) {
	for _, args := range [][]string{
		{"-notify=sound"}, {"-notify-replicas=0"}, {"-notify-replicas=1,x"}, {"-notify-replicas=99"}, {"-notify-alerts=0"},
		{"-notify-steady=1s"}, {"-notify-deaths=0"},
	} {
		if _, err := parse(args, &strings.Builder{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
	o, err := parse([]string{"-smoke", "-notify-replicas=3,1"}, &strings.Builder{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(o.notify.replicas, []int{3, 1}) || o.notify.groups > 1000 {
		t.Errorf("got %+v", o.notify)
	}
}
