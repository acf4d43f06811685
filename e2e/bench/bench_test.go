package main

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// scrapeOnce reads what a target says, as text, with or without gzip.
func scrapeOnce(t *testing.T, url string, plain bool) string {
	t.Helper()
	tr := &http.Transport{DisableCompression: plain} // it asks for gzip and unpacks it by itself otherwise
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !plain && !resp.Uncompressed {
		t.Error("the body was not compressed, though gzip was accepted")
	}
	return string(text)
}

func TestLoadServesTheSeriesAskedFor(t *testing.T) {
	const targets, series = 30, 1000
	l, err := newLoad(t.Context(), targets, series, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := len(l.jobs); got != 2 {
		t.Errorf("%d targets made %d jobs, want 2", targets, got)
	}
	for _, i := range []int{0, targets - 1} {
		url := "http://" + l.listeners[i].Addr().String() + "/metrics"
		packed, plain := scrapeOnce(t, url, false), scrapeOnce(t, url, true)
		if packed != plain {
			t.Errorf("target %d says different things with and without gzip", i)
		}
		seen, types := map[string]bool{}, map[string]bool{}
		for line := range strings.Lines(plain) {
			key := line[:strings.LastIndexByte(line, ' ')]
			switch {
			case strings.HasPrefix(line, "# TYPE "):
				if types[key] {
					t.Errorf("target %d: %q comes twice", i, key)
				}
				types[key] = true
			case strings.HasPrefix(line, "#"):
			case seen[key]:
				t.Errorf("target %d: the series %q comes twice", i, key)
			default:
				seen[key] = true
			}
		}
		if len(seen) != series {
			t.Errorf("target %d has %d series, want %d", i, len(seen), series)
		}
	}
}

func TestLoadMoves(t *testing.T) {
	e, err := newExposition(3, 500)
	if err != nil {
		t.Fatal(err)
	}
	if string(e.bodies[0]) == string(e.bodies[1]) {
		t.Error("two scrapes one after the other are the same")
	}
	if string(ownPart(1, 0)) == string(ownPart(2, 0)) {
		t.Error("two targets have the same series of their own")
	}
	churned := 0
	now, later := string(ownPart(1, 1)), string(ownPart(1, 1+churnEvery))
	for line := range strings.Lines(later) {
		if name, _, ok := strings.Cut(line, "} "); ok && !strings.Contains(now, name) {
			churned++
		}
	}
	if want := ownSeries / 10; churned != want {
		t.Errorf("%d series were replaced after %d scrapes, want %d", churned, churnEvery, want)
	}
}

func TestParseUsage(t *testing.T) {
	stat := "42 (a b) c) S 1 42 42 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 9 0 1000 1 1 1\n"
	status := "Name:\ta\nVmRSS:\t    2048 kB\nRssAnon:\t    1024 kB\n"
	u, err := parseUsage([]byte(stat), []byte(status))
	if err != nil {
		t.Fatal(err)
	}
	if u.cpu != 2*time.Second || u.resident != 2<<20 || u.anonymous != 1<<20 {
		t.Errorf("got %+v", u)
	}
	for name, c := range map[string][2]string{
		"no name":   {"42", status},
		"cut short": {"42 (a) S 1", status},
		"no number": {strings.Replace(stat, "150", "x", 1), status},
		"no memory": {stat, "Name: a\n"},
		"no unit":   {stat, "VmRSS: many kB\nRssAnon: 1 kB\n"},
	} {
		if _, err := parseUsage([]byte(c[0]), []byte(c[1])); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestSumMetric(t *testing.T) {
	const text = "# TYPE a counter\na{x=\"1 2\"} 3\na{x=\"2\"} 4e0\nab 100\n"
	got, err := sumMetric(strings.NewReader(text), "a")
	if err != nil || got != 7 {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := sumMetric(strings.NewReader(text), "b"); err == nil {
		t.Error("a missing metric is no error")
	}
}

func TestTable(t *testing.T) {
	var out strings.Builder
	b := &bench{out: &out}
	b.table("t", []row{
		{what: "good", ours: 90, stock: 100, limit: 0.95},
		{what: "bad", ours: 104.5, stock: 110, limit: 0.9},
		{what: "alone", ours: 1, limit: 0.5, absolute: true, withoutStock: true},
	})
	for _, want := range []string{"| good  |  90.00 | 100.00 | 0.900 |", "≤ 0.95, met |", "| 0.950 |   ≤ 0.9, missed by 5.6 % |", "≤ 0.5, missed by 100.0 % |"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, args := range [][]string{{"-targets=0"}, {"-series=1"}, {"-interval=1ms"}, {"-starts=0"}, {"-scenarios=nothing"}, {"extra"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}

func TestSleepEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sleep(ctx, time.Hour); err == nil {
		t.Error("no error")
	}
}
