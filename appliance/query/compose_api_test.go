package query

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	promconfigutil "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/tocsin-io/tocsin/appliance/store"
)

// TestLocalOnly holds that local=true leaves other replicas out, in each form and on each path.
func TestLocalOnly(t *testing.T) {
	w, peers, r := spliceWorld(t, replicaGap)
	mid := stamp(w.from + 600_000)
	within := []string{"start", mid, "end", stamp(w.from + 660_000)}
	tests := []struct {
		path   string
		params []string
		other  string // is in the answer only with the others
	}{
		{"query", []string{"query", "requests_total", "time", mid}, `"requests_total"`},
		{"query_range", append([]string{"query", "requests_total", "step", "15"}, within...), `"requests_total"`},
		{"series", append([]string{"match[]", "short"}, "start", stamp(w.from), "end", stamp(w.to)), `"short"`},
		{"labels", append([]string{"match[]", "short"}, "start", stamp(w.from), "end", stamp(w.to)), `"instance"`},
		{"label/__name__/values", []string{"start", stamp(w.from), "end", stamp(w.to)}, `"short"`},
	}
	for _, tt := range tests {
		for _, method := range []string{"GET", "POST"} {
			if method == "POST" && strings.HasPrefix(tt.path, "label/") {
				continue
			}
			for local, want := range map[string]int{"": 200, "true": 200, "1": 200, "false": 200, "0": 200, "yes": 400, "TRUE": 400} {
				form := url.Values{}
				for i := 0; i < len(tt.params); i += 2 {
					form.Add(tt.params[i], tt.params[i+1])
				}
				if local != "" {
					form.Set("local", local)
				}
				var a apiAnswer
				if method == "GET" {
					a = r.read(t, method, tt.path+"?"+form.Encode(), nil)
				} else {
					a = r.read(t, method, tt.path, strings.NewReader(form.Encode()))
				}
				asked := len(peers.questions())
				if a.code != want || want == 400 && a.ErrorType != errBadData {
					t.Errorf("%s %s local=%s: %d %s %s", method, tt.path, local, a.code, a.ErrorType, a.Error)
					continue
				}
				if want != 200 {
					continue
				}
				alone := local == "true" || local == "1"
				if strings.Contains(string(a.Data), tt.other) == alone || (asked == 0) != alone {
					t.Errorf("%s %s local=%s: %d questions, %s", method, tt.path, local, asked, a.Data)
				}
			}
		}
	}
	if a := r.get(t, "query", "query", "1", "local", ""); a.code != 400 {
		t.Errorf("an empty local: %d", a.code)
	}
}

// TestRemoteReadStaysLocal holds that what other servers read, and may read of the other replicas too, is not spliced.
func TestRemoteReadStaysLocal(t *testing.T) {
	w, peers, r := spliceWorld(t, replicaGap)
	target, err := url.Parse(r.web.URL + "/api/v1/read")
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []prompb.ReadRequest_ResponseType{prompb.ReadRequest_SAMPLES, prompb.ReadRequest_STREAMED_XOR_CHUNKS} {
		client, err := remote.NewReadClient("test", &remote.ClientConfig{
			URL: &promconfigutil.URL{URL: target}, Timeout: model.Duration(time.Minute), ChunkedReadLimit: 1 << 20,
			AcceptedResponseTypes: []prompb.ReadRequest_ResponseType{kind},
		})
		if err != nil {
			t.Fatal(err)
		}
		query, err := remote.ToQuery(w.start, w.end, []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "__name__", "temperature")}, nil)
		if err != nil {
			t.Fatal(err)
		}
		set, err := client.Read(t.Context(), query, true)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for set.Next() {
			l := set.At().Labels()
			n++
			if got, want := len(readAll(set.At().Iterator(nil))), len(w.own.data[key(l)]); got != want {
				t.Errorf("%s: %d samples, want %d", l, got, want)
			}
		}
		if asked := peers.questions(); n != 3 || set.Err() != nil || len(asked) != 0 {
			t.Errorf("%d series, %v, questions %s", n, set.Err(), asked)
		}
	}
}

// TestFailingPeersWarn holds that a question that nobody answers is told and does not fail the query.
func TestFailingPeersWarn(t *testing.T) {
	w, peers, r := spliceWorld(t, replicaGap)
	span := []string{"start", stamp(w.from - 600_000), "end", stamp(w.to + 600_000)}
	calls := map[string][]string{
		"query":            {"query", "sum(rate(requests_total[1h]))", "time", stamp(w.to + 60_000)},
		"query_range":      append([]string{"query", "temperature", "step", "15"}, span...),
		"series":           append([]string{"match[]", "temperature"}, span...),
		"labels":           span,
		"label/job/values": span,
	}
	warns := func(want ...string) {
		t.Helper()
		for path, params := range calls {
			a := r.get(t, path, params...)
			if a.code != 200 || len(a.Warnings) != 1 || !strings.Contains(string(a.Data), "node") && path != "labels" && path != "query" {
				t.Errorf("%s: %d %s, warnings %q, data %.200s", path, a.code, a.Error, a.Warnings, a.Data)
				continue
			}
			for _, w := range want {
				if !strings.Contains(a.Warnings[0], w) {
					t.Errorf("%s: the warning %q lacks %q", path, a.Warnings[0], w)
				}
			}
		}
	}
	broken := errors.New("zone b: connection refused")
	peers.fail.Store(&broken)
	warns("this replica has no data", "any series between "+time.UnixMilli(w.from).UTC().Format(time.RFC3339), "connection refused")
	failures := gauge(t, r.reg, "tocsin_query_peer_failures_total")
	if failures != float64(len(calls)) {
		t.Errorf("%v failures were counted", failures)
	}
	if n := gauge(t, r.reg, "tocsin_query_spliced_total"); n != float64(len(calls)) {
		t.Errorf("%v selects were counted", n)
	}
	peers.fail.Store(nil)

	partial := errors.New("zone c did not answer in time")
	peers.warn.Store(&partial)
	warns("zone c did not answer in time")
	peers.warn.Store(nil)

	peers.gone.Store(true)
	warns("no other replica is there")
	if len(peers.questions()) != 2*len(calls) {
		t.Error("absent replicas were asked")
	}
}

// TestQueriesWaitForOthersAtTheStart has the others found while a query waits for them: its answer has no hole.
func TestQueriesWaitForOthersAtTheStart(t *testing.T) {
	w, peers, r := spliceWorld(t, replicaGap)
	peers.gone.Store(true)
	peers.looked = func(context.Context) { peers.gone.Store(false) }
	a := r.get(t, "query", "query", "count_over_time(temperature[1m])", "time", stamp((w.from+w.to)/2))
	if a.code != 200 || len(a.Warnings) != 0 || !strings.Contains(string(a.Data), "node") {
		t.Errorf("%d %s, warnings %q, data %.200s", a.code, a.Error, a.Warnings, a.Data)
	}
	// Who is not found in time is not waited for.
	peers.looked = func(context.Context) { peers.gone.Store(true) }
	a = r.get(t, "query", "query", "count_over_time(temperature[1m])", "time", stamp((w.from+w.to)/2))
	if a.code != 200 || len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "no other replica is there") {
		t.Errorf("nobody is found: %d %s, warnings %q, data %.200s", a.code, a.Error, a.Warnings, a.Data)
	}
}

// TestOnlyWhatCanBeMissingIsAsked counts the questions.
func TestOnlyWhatCanBeMissingIsAsked(t *testing.T) {
	target := lset("instance", "i1", "job", "node")
	w, peers, r := spliceWorld(t, func(w *world) ledger {
		return ledger{{Kind: store.GapTarget, Match: target, Intervals: []store.Interval{{From: w.from, To: w.to}}}}
	})
	in, out := w.from+300_000, w.from-600_000
	for _, tt := range []struct {
		expr string
		at   int64
		want string
	}{
		{`temperature`, in, `[select [__name__="temperature" instance="i1" job="node"]]`},
		{`temperature{instance="i1"}`, in, `[select [instance="i1" __name__="temperature" instance="i1" job="node"]]`},
		{`temperature{instance=~"i1|i2"}`, in, `[select [instance=~"i1|i2" __name__="temperature" instance="i1" job="node"]]`},
		{`temperature{instance="i2"}`, in, `[]`},
		{`temperature{instance!="i1"}`, in, `[]`},
		{`temperature{job=""}`, in, `[]`},
		{`temperature{job!~"n.*"}`, in, `[]`},
		{`up`, in, `[]`},
		{`scrape_samples_scraped{instance="i1"}`, in, `[]`},
		{`temperature`, out, `[]`},
		{`temperature offset 1h`, in, `[]`},
		{`temperature offset 30m`, w.to + 1_500_000, `[select [__name__="temperature" instance="i1" job="node"]]`},
		{`1 + 1`, in, `[]`},
	} {
		answer(t, r.Engine(), r.Queryable(), tt.expr, tt.at, tt.at, 0)
		if got := fmt.Sprint(peers.questions()); got != tt.want {
			t.Errorf("%s: asked %s, want %s", tt.expr, got, tt.want)
		}
	}
	// What lies around is not asked for.
	answer(t, r.Engine(), r.Queryable(), "rate(requests_total[2m])", w.from+60_000, w.from+60_000, 0)
	peers.mtx.Lock()
	iv := peers.ivs[len(peers.ivs)-1]
	peers.mtx.Unlock()
	if iv.From != w.from || iv.To > w.from+60_000+theirMargin+1 {
		t.Errorf("asked for %+v", iv)
	}
}

// TestLastingGapsEndNow holds that nobody is asked for the future.
func TestLastingGapsEndNow(t *testing.T) {
	now := time.Now().UnixMilli()
	missing := []store.Missing{{Kind: store.GapReplica, Intervals: []store.Interval{{From: now - 60_000, To: store.Lasts}}}}
	p := planMissing(missing, store.Interval{From: now - 3600_000, To: now + 3600_000}, now+60_000, nil)
	if len(p.asks) != 1 || p.asks[0].interval != (store.Interval{From: now - 60_000, To: now + 60_000}) {
		t.Errorf("asked %+v", p.asks)
	}
	if got, want := p.asks[0].String(), "of any series since "+time.UnixMilli(now-60_000).UTC().Format(time.RFC3339); got != want {
		t.Errorf("says %q, want %q", got, want)
	}
	if p := planMissing(missing, store.Interval{From: now + 120_000, To: now + 180_000}, now+60_000, nil); len(p.asks) != 0 {
		t.Errorf("the future is asked for: %+v", p.asks)
	}
}

// TestManyTargetsAreOneQuestion holds that a zone that was cut off does not cost a question for each of its targets.
func TestManyTargetsAreOneQuestion(t *testing.T) {
	var missing []store.Missing
	for i := range int64(1000) {
		ivs := []store.Interval{{From: 1000 + i, To: 90_000 + i}}
		if i%2 == 0 {
			ivs = append(ivs, store.Interval{From: 500_000, To: 600_000})
		}
		missing = append(missing, store.Missing{Kind: store.GapTarget, Match: lset("instance", fmt.Sprint("i", i), "job", "node"), Intervals: ivs})
	}
	ms := []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "__name__", "x")}
	p := planMissing(missing, store.Interval{From: 0, To: 1_000_000}, 2_000_000, ms)
	if len(p.asks) != 2 || p.asks[0].interval != (store.Interval{From: 1000, To: 90_999}) || p.asks[1].interval != (store.Interval{From: 500_000, To: 600_000}) {
		t.Fatalf("asks: %+v", p.asks)
	}
	if got := fmt.Sprint(p.asks[0].matchers); got != `[__name__="x" job="node"]` {
		t.Errorf("matchers %s", got)
	}
	if got := p.asks[1].of; got != "500 targets" {
		t.Errorf("of %s", got)
	}
	if got := p.wanted(lset("__name__", "x", "instance", "i7", "job", "node", "cpu", "0")); !slices.Equal(got, []store.Interval{{From: 1007, To: 90_007}}) {
		t.Errorf("wanted %v", got)
	}
	for _, l := range []labels.Labels{lset("__name__", "up", "instance", "i7", "job", "node"), lset("__name__", "x", "instance", "i7")} {
		if got := p.wanted(l); len(got) != 0 {
			t.Errorf("wanted of %s: %v", l, got)
		}
	}
	// Few of them are named.
	p = planMissing(missing[:20], store.Interval{From: 0, To: 100_000}, 2_000_000, ms)
	if len(p.asks) != 1 || !strings.Contains(fmt.Sprint(p.asks[0].matchers), `instance=~"i0|i1|i10|`) {
		t.Errorf("asks: %+v", p.asks)
	}
	// One that comes and goes is not asked for a hundred times.
	m := store.Missing{Kind: store.GapTarget, Match: lset("instance", "i0")}
	for i := range int64(100) {
		from := i * 1000
		if i >= 50 {
			from += 1_000_000
		}
		m.Intervals = append(m.Intervals, store.Interval{From: from, To: from + 500})
	}
	p = planMissing([]store.Missing{m}, store.Interval{From: 0, To: 10_000_000}, 20_000_000, ms)
	if len(p.asks) != maxAsksEach {
		t.Errorf("%d asks", len(p.asks))
	}
	for _, iv := range m.Intervals {
		if !slices.ContainsFunc(p.asks, func(a ask) bool { return a.interval.From <= max(iv.From, 0) && a.interval.To >= iv.To }) {
			t.Errorf("%v is not asked for", iv)
		}
	}
}

// TestReplay holds that others answer while this replica cannot, and only what they can answer.
func TestReplay(t *testing.T) {
	w := newWorld(everything, false, false)
	peers := &others{sheet: &w.theirs}
	r := newReplica(t, false, func(o *Options) { o.Peers = peers })
	at := stamp(w.from + 600_000)
	span := []string{"start", stamp(w.start), "end", stamp(w.end)}
	paths := map[string][]string{
		"query":                 {"query", "temperature", "time", at},
		"query_range":           append([]string{"query", "rate(requests_total[1m])", "step", "60"}, span...),
		"series":                append([]string{"match[]", "temperature"}, span...),
		"labels":                nil,
		"label/instance/values": nil,
	}
	for path, params := range paths {
		a := r.get(t, path, params...)
		if a.code != 200 || !strings.Contains(string(a.Data), "i1") && path != "labels" || !strings.Contains(string(a.Data), "instance") && path == "labels" {
			t.Errorf("%s: %d %s %s", path, a.code, a.Error, a.Data)
		}
		if len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "this replica is replaying its write-ahead log: the answer is the other replicas'") {
			t.Errorf("%s: warnings %q", path, a.Warnings)
		}
		if a := r.get(t, path, append(params, "local", "true")...); a.code != 503 {
			t.Errorf("%s, local: %d %s", path, a.code, a.Data)
		}
	}
	for _, path := range []string{"status/tsdb", "rules", "query_exemplars", "metadata", "label/job", "targets"} {
		if a := r.get(t, path, "query", "up"); a.code == 200 {
			t.Errorf("%s: %d", path, a.code)
		}
	}
	if a := r.read(t, "POST", "query", strings.NewReader("local=true&query=1")); a.code != 503 {
		t.Errorf("local in a form: %d", a.code)
	}
	if a := r.read(t, "DELETE", "series?match[]=up", nil); a.code != 503 {
		t.Errorf("delete: %d", a.code)
	}
	// Nobody answers: this replica is as unavailable as it was.
	broken := errors.New("zone b: connection refused")
	peers.fail.Store(&broken)
	for path, params := range paths {
		if a := r.get(t, path, params...); a.code != 503 || !strings.Contains(a.Error, "connection refused") {
			t.Errorf("%s, nobody answers: %d %s", path, a.code, a.Error)
		}
	}
	peers.fail.Store(nil)
	peers.gone.Store(true)
	for path, params := range paths {
		if a := r.get(t, path, params...); a.code != 503 || a.Error != "Service Unavailable" {
			t.Errorf("%s, nobody there: %d %s", path, a.code, a.Error)
		}
	}
	if _, err := r.Queryable().Querier(0, 1); !errors.Is(err, tsdb.ErrNotReady) {
		t.Errorf("rules: error %v", err)
	}
	peers.gone.Store(false)
	r.open()
	peers.questions()
	if a := r.get(t, "query", "query", "temperature", "time", at); a.code != 200 || len(a.Warnings) != 0 || string(a.Data) != `{"resultType":"vector","result":[]}` {
		t.Errorf("after: %d %s %q", a.code, a.Data, a.Warnings)
	}
	if q := peers.questions(); len(q) != 0 {
		t.Errorf("whole data, and others were asked %s", q)
	}
}

// TestOpenBeforeGapsAreKnown holds that a replica whose store is open already, but which does not know yet what it
// lacks, leaves the answer to the others: its own would have a hole.
func TestOpenBeforeGapsAreKnown(t *testing.T) {
	w := newWorld(everything, false, false)
	peers := &others{sheet: &w.theirs}
	ready := make(chan struct{})
	r := newReplica(t, true, func(o *Options) { o.Peers, o.Ready = peers, ready })
	at := stamp(w.from + 600_000)
	if a := r.get(t, "query", "query", "temperature", "time", at); a.code != 200 || !strings.Contains(string(a.Data), "i1") {
		t.Errorf("others are there: %d %s %s", a.code, a.Error, a.Data)
	}
	close(ready)
	if a := r.get(t, "query", "query", "temperature", "time", at); a.code != 200 || string(a.Data) != `{"resultType":"vector","result":[]}` {
		t.Errorf("nothing is missing: %d %s %s", a.code, a.Error, a.Data)
	}
}

// TestWholeDataAreNotWrapped holds that nothing stands between the engine and the store when nothing is missing.
func TestWholeDataAreNotWrapped(t *testing.T) {
	w, _, r := spliceWorld(t, replicaGap)
	for _, tt := range []struct {
		mint, maxt int64
		wrapped    bool
	}{{w.start, w.from, false}, {w.to, w.end, false}, {w.start, w.from + 2, true}, {w.to - 1, w.end, true}} {
		q, err := r.Queryable().Querier(tt.mint, tt.maxt)
		if err != nil {
			t.Fatal(err)
		}
		if _, is := q.(*splicing); is != tt.wrapped {
			t.Errorf("%d..%d: %T", tt.mint-w.start, tt.maxt-w.start, q)
		}
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	}
	if q := newReplica(t, true, func(o *Options) { o.Gaps = replicaGap(w) }); q.Queryable() != storage.Queryable(q.own) {
		t.Errorf("without others: %T", q.Queryable())
	}
}

// TestHangingPeersEndWithTheQuery holds that a query ends in time, with its own error, and leaves nothing behind.
func TestHangingPeersEndWithTheQuery(t *testing.T) {
	w := newWorld(everything, false, false)
	peers := &others{sheet: &w.theirs, hang: make(chan struct{})}
	for _, engine := range []string{EnginePrometheus, EngineThanos} {
		r := newReplica(t, true, func(o *Options) {
			o.Gaps, o.Peers, o.Timeout, o.Engine = replicaGap(w), peers, 50*time.Millisecond, engine
		})
		w.own.fill(t, r.own)
		a := r.get(t, "query", "query", "sum(temperature) + sum(requests_total)", "time", stamp(w.from+60_000))
		if a.code != 503 || a.ErrorType != "timeout" {
			t.Errorf("%s: %d %s %s", engine, a.code, a.ErrorType, a.Error)
		}
		ctx, cancel := context.WithCancel(t.Context())
		q, err := r.Queryable().Querier(w.start, w.end)
		if err != nil {
			t.Fatal(err)
		}
		set := q.Select(ctx, true, nil, labels.MustNewMatcher(labels.MatchEqual, "__name__", "temperature"))
		cancel()
		if set.Next() || !errors.Is(set.Err(), context.Canceled) {
			t.Errorf("error %v", set.Err())
		}
		// Closing does not wait for an answer that nobody wants.
		q2, err := r.Queryable().Querier(w.start, w.end)
		if err != nil {
			t.Fatal(err)
		}
		q2.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchEqual, "__name__", "temperature"))
		for _, q := range []storage.Querier{q, q2} {
			if err := q.Close(); err != nil {
				t.Error(err)
			}
		}
		if set := q2.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchEqual, "__name__", "temperature")); set.Next() || set.Err() == nil {
			t.Error("a closed querier selects")
		}
	}
}

// TestLimits holds that limits count what is merged.
func TestLimits(t *testing.T) {
	w, _, r := spliceWorld(t, replicaGap)
	span := []string{"start", stamp(w.start), "end", stamp(w.end), "limit", "2"}
	for path, params := range map[string][]string{
		"series":                append([]string{"match[]", "{job=\"node\"}"}, span...),
		"labels":                span,
		"label/__name__/values": span,
	} {
		a := r.get(t, path, params...)
		var list []any
		if err := json.Unmarshal(a.Data, &list); err != nil || len(list) != 2 {
			t.Errorf("%s: %s", path, a.Data)
		}
	}
	// Two matchers are merged by upstream.
	a := r.get(t, "series", "match[]", "short", "match[]", "temperature", "start", stamp(w.start), "end", stamp(w.end))
	var list []any
	if err := json.Unmarshal(a.Data, &list); err != nil || len(list) != 6 {
		t.Errorf("%s", a.Data)
	}
}

// BenchmarkComplete compares a cheap instant query over whole data with the bare store.
func BenchmarkComplete(b *testing.B) {
	w := newWorld(everything, false, false)
	r := newReplica(b, true, func(o *Options) {
		o.Gaps, o.Peers = ledger{{Kind: store.GapReplica, Intervals: []store.Interval{{From: 1, To: 2}}}}, &others{sheet: &w.theirs}
	})
	w.whole.fill(b, r.own)
	at := time.UnixMilli(w.end)
	for _, bench := range []struct {
		name string
		q    storage.Queryable
	}{{"bare", r.own}, {"composed", r.Queryable()}} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				q, err := r.engine.NewInstantQuery(b.Context(), bench.q, nil, `up{instance="i1"}`, at)
				if err != nil {
					b.Fatal(err)
				}
				if res := q.Exec(b.Context()); res.Err != nil {
					b.Fatal(res.Err)
				}
				q.Close()
			}
		})
	}
}
