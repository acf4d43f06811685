package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
)

// namedWindow is a name as tocsin gives one.
func namedWindow(begin time.Time, whole bool) ulid.ULID {
	id := ulid.Make()
	for i, ms := 11, begin.UnixMilli(); i >= 6; i, ms = i-1, ms>>8 {
		id[i] = byte(ms)
	}
	id[12] = 0xa4
	if whole {
		id[12] |= 1
	}
	return id
}

// strange is a name that says no window.
func strange() ulid.ULID {
	id := ulid.Make()
	id[12] = 0
	return id
}

func TestSortPuts(t *testing.T) {
	const window = time.Minute
	begin := time.UnixMilli(1_800_000_000_000).Truncate(window)
	half, whole, stock, old := namedWindow(begin, false), namedWindow(begin, true), strange(), strange()
	var puts []put
	write := func(id ulid.ULID, size int64) {
		for _, file := range []string{"chunks/000001", "index", metaFile} {
			puts = append(puts, put{id.String() + "/" + file, size})
		}
	}
	meta := func(level int, replica string) (m blockMeta) {
		m.MinTime, m.Stats.NumSamples, m.Compaction.Level = begin.UnixMilli()+17, 100, level
		m.Thanos.Labels = map[string]string{"replica": replica}
		return m
	}
	write(half, 1)
	puts = puts[:2] // It was given up.
	metas := map[ulid.ULID]blockMeta{}
	s := sortPuts(puts, metas, window)
	if w := s.windows[begin.UnixMilli()]; w == nil || w.requests != 2 || w.bytes != 2 || len(w.complete) != 0 {
		t.Errorf("half a block: %+v", w)
	}
	write(whole, 10)
	write(stock, 100)
	write(old, 1000)
	puts = append(puts, put{old.String() + "/deletion-mark.json", 5}, put{"cluster/r0.json", 6})
	metas[whole], metas[stock], metas[old] = meta(1, "r0"), meta(1, "r1"), meta(2, "r0")
	s = sortPuts(puts, metas, window)
	w := s.windows[begin.UnixMilli()]
	switch {
	case len(s.windows) != 1 || w == nil:
		t.Fatalf("windows: %v", s.windows)
	case w.requests != 8 || w.bytes != 332 || w.byFile["index"] != 111 || w.byFile["chunks"] != 111 || w.byFile[metaFile] != 110:
		t.Errorf("the window: %+v", w)
	case !w.complete["r0"] || !w.complete["r1"] || !slices.Equal(w.samples, []int64{100, 100}):
		t.Errorf("the window's blocks: %+v", w)
	case s.compacted != putSum{3, 3000} || s.other != putSum{2, 11}:
		t.Errorf("the rest: %+v, %+v", s.compacted, s.other)
	}
}

func TestBoth(t *testing.T) {
	const window = time.Minute
	from := time.Now().Truncate(window).Add(-3 * window)
	complete := func(n int, need int, replicas ...string) *shipper {
		s := &shipper{need: need, shipment: shipment{windows: map[int64]*windowPuts{}}}
		for i := range n {
			w := &windowPuts{complete: map[string]bool{}}
			for _, r := range replicas {
				w.complete[r] = true
			}
			s.windows[from.Add(time.Duration(i)*window).UnixMilli()] = w
		}
		return s
	}
	ours := complete(2, 1, "r1")
	if got := both(ours, complete(3, 3, "r0", "r1", "r2"), from, window); len(got) != 2 || got[0] != from.UnixMilli() {
		t.Errorf("got %v", got)
	}
	if got := both(ours, complete(3, 3, "r0", "r1", "r2"), from.Add(window), window); len(got) != 1 {
		t.Errorf("later: got %v", got)
	}
	if got := both(ours, complete(3, 3, "r0", "r2"), from, window); len(got) != 0 {
		t.Errorf("of two replicas: got %v", got)
	}
}

func TestMeterCounts(t *testing.T) {
	stored := map[string]string{}
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPut:
			text, _ := io.ReadAll(r.Body)
			stored[r.URL.Path] = string(text)
		case http.MethodGet:
			fmt.Fprint(w, stored[r.URL.Path])
		}
	}))
	defer back.Close()
	m, err := newMeter(t.Context(), &s3Server{address: back.Listener.Addr().String()}, "b", time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	do := func(method, name, body string, headers ...string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+m.address+"/b/"+name, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		if err := resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
	}
	do(http.MethodPut, "x/index", "framed and signed", "X-Amz-Decoded-Content-Length", "6")
	do(http.MethodPut, "x/meta.json", "plain")
	do(http.MethodGet, "x/meta.json", "")
	do(http.MethodHead, "x/meta.json", "")
	if got, want := m.taken(), []put{{"x/index", 6}, {"x/meta.json", 5}}; !slices.Equal(got, want) {
		t.Errorf("written %v, wanted %v", got, want)
	}
	if got := m.traffic(); got != (traffic{1, 5}) {
		t.Errorf("read %+v", got)
	}
}

// TestSmallBlocks holds that each block has its own two hours.
func TestSmallBlocks(t *testing.T) {
	dir := t.TempDir()
	from := time.Now().Truncate(blockLength).Add(-4 * blockLength)
	for n := range 3 {
		if err := writeSmallBlock(dir, from.Add(time.Duration(n)*blockLength)); err != nil {
			t.Fatal(err)
		}
	}
	metas, err := blockMetas(dir)
	if err != nil {
		t.Fatal(err)
	}
	begins := map[int64]bool{}
	for _, m := range metas {
		begins[m.MinTime] = true
		if m.Stats.NumSamples != smallSeries*smallSamples || m.MaxTime > m.MinTime+blockLength.Milliseconds() {
			t.Errorf("got %+v", m)
		}
	}
	if len(begins) != 3 || !begins[from.UnixMilli()] {
		t.Errorf("the blocks begin at %v", begins)
	}
	for id := range metas {
		if err := os.WriteFile(filepath.Join(dir, id.String(), "deletion-mark.json"), []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
		break
	}
	if n, err := countBlocks(dir); err != nil || n != 2 {
		t.Errorf("%d blocks are not marked, %v", n, err)
	}
}

// TestReadTable holds that the goals are of the queries of raw data alone.
func TestReadTable(t *testing.T) {
	questions := archivePanels(time.Now(), 7*24*time.Hour)
	x, y := &archiveSide{name: sideTocsin}, &archiveSide{name: sideThanos}
	verdicts := make([][]string, len(questions))
	for i, q := range questions {
		first, second := 105*time.Millisecond, 60*time.Millisecond
		if raw := q.more.Get("max_source_resolution") == "0s"; raw != (i < rawPanels) {
			t.Errorf("query %d is %v", i, q.more)
		} else if !raw {
			first, second = time.Hour, 2*time.Hour
		}
		x.first, x.second = append(x.first, []time.Duration{first}), append(x.second, []time.Duration{second})
		y.first, y.second = append(y.first, []time.Duration{100 * time.Millisecond}), append(y.second, []time.Duration{100 * time.Millisecond})
		verdicts[i] = []string{"equal"}
	}
	var out strings.Builder
	o, err := parse(nil, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{out: &out, options: o}
	b.readTable(history{}, 3, []*archiveSide{x, y}, questions, verdicts)
	for _, want := range []string{" 1.050 |", " 0.600 |", " 0.571 |", "≤ 1.1, met", "≤ 0.5, missed by 14.3 %"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &out)
		}
	}
}

func TestBucketOptions(t *testing.T) {
	for _, args := range [][]string{
		{"-bucket=all"}, {"-bucket-targets=0"}, {"-bucket-series=1"}, {"-bucket-window=1s"}, {"-bucket-windows=0"}, {"-bucket-read-history=1h"},
		{"-bucket-read-latency=-1s"}, {"-bucket-blocks=0"}, {"-bucket-idle=0s"},
	} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
	o, err := parse([]string{"-smoke", "-scenarios=bucket", "-bucket=memory,read"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if o.bucket.blocks > 100 || o.needsBucket("upload") || !o.needsBucket("upload", "read") || o.needsAlertmanager() {
		t.Errorf("got %+v", o.bucket)
	}
}

// TestBucketSmoke runs the scenario for as short as it can be, where its programs are.
func TestBucketSmoke(t *testing.T) {
	for _, name := range []string{"TOCSIN", "PROMETHEUS", "THANOS", "VERSITYGW"} {
		if os.Getenv(name) == "" {
			t.Skipf("the environment variable %s names no program", name)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	var out, problems bytes.Buffer
	if err := run(ctx, []string{"-smoke", "-scenarios=bucket", "-dir=" + t.TempDir()}, &out, &problems); err != nil {
		t.Fatalf("%v\n%s%s", err, &out, &problems)
	}
	for _, want := range []string{"| PUT requests ", "| geometric mean of those ", "more than with an empty bucket"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("there is no %q:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "DIFFERS") {
		t.Errorf("the answers differ:\n%s", &out)
	}
}
