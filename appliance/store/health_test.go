package store

import (
	"context"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb"
)

// upLine draws an `up` series, a letter every 15 seconds: 1 and 0 are samples, a blank is none, and x is a staleness
// marker two seconds after the sample before.
func upLine(line string, begin int64) (samples []upSample) {
	for i, c := range line {
		t := begin + int64(i)*15_000
		switch c {
		case '1', '0':
			samples = append(samples, upSample{t: t, up: c == '1'})
		case 'x':
			samples = append(samples, upSample{t: t - 13_000, stale: true})
		}
	}
	return samples
}

func TestSuspectsOfOneTarget(t *testing.T) {
	const e, b = 15_000, 1_000_000
	at := func(i int64) int64 { return b + i*e }
	suspect := func(from, to int64) Suspect {
		return Suspect{Interval: Interval{from, to}, Every: e}
	}
	for _, c := range []struct {
		name, line string
		now        int64 // Letters after the first, times 15 seconds; 0 is at the line's end.
		want       []Suspect
		unsure     bool
	}{
		{name: "healthy", line: "1111111111"},
		{name: "one failed scrape", line: "1110111", want: []Suspect{suspect(at(2), at(4))}},
		{name: "a hole", line: "111   111", want: []Suspect{suspect(at(2), at(6))}},
		{name: "zeros and a hole", line: "1110 0111", want: []Suspect{suspect(at(2), at(6))}},
		{name: "still failing", line: "11100", want: []Suspect{suspect(at(2), Lasts)}},
		{name: "failed a moment ago", line: "1110", now: at(3) + 1000},
		{name: "failed for longer", line: "1110", now: at(3) + e/2 + 1, want: []Suspect{suspect(at(2), Lasts)}},
		{name: "a slow scrape goes on", line: "111", now: at(4)},
		{name: "no scrape any more", line: "111", now: at(4) + 1001, want: []Suspect{suspect(at(2), Lasts)}},
		{name: "two", line: "110110011", want: []Suspect{
			suspect(at(1), at(3)),
			suspect(at(4), at(7)),
		}},
		{name: "removed while healthy", line: "111x", now: at(50)},
		{name: "removed while failing", line: "11100x", now: at(50), want: []Suspect{
			suspect(at(2), at(5)-13_000),
		}},
		{name: "removed after a hole", line: "111    x", now: at(50), want: []Suspect{suspect(at(2), at(7)-13_000)}},
		{name: "removed and back", line: "111x      111"},
		{name: "removed and back, and not up at first", line: "111x      00111"},
		{name: "not up at first", line: "00011", unsure: true, want: []Suspect{
			suspect(at(0)-1, at(3)),
		}},
		{name: "never up", line: "0000", unsure: true, want: []Suspect{
			suspect(at(0)-1, Lasts),
		}},
		{name: "never up and removed", line: "000x", now: at(50), unsure: true, want: []Suspect{
			suspect(at(0)-1, at(3)-13_000),
		}},
		{name: "seen once", line: "1", now: at(50)},
		// The interval is another one from here on: that is a hole at its first sample or two, not ever after.
		{name: "scraped less often", line: "1111   1   1   1   1   1   1", now: at(29)},
		{name: "scraped more often", line: "1   1   1   1   1   11111"},
		{name: "isolated successes", line: "111   1     1   111", want: []Suspect{
			suspect(at(2), at(6)), suspect(at(6), at(12)), suspect(at(12), at(16)),
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := c.now
			if now == 0 {
				now = at(int64(len(c.line)))
			}
			got, unsure := suspectsOf(upLine(c.line, b), now)
			if !reflect.DeepEqual(got, c.want) || unsure != c.unsure {
				t.Errorf("got  %+v, unsure %v\nwant %+v, unsure %v", got, unsure, c.want, c.unsure)
			}
		})
	}
}

func TestSuspects(t *testing.T) {
	db, err := tsdb.Open(t.TempDir(), nil, nil, tsdb.DefaultOptions(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	// The window begins at from-10m, which is the first letter; from is letter 40.
	const e = 15_000
	begin := int64(1_700_000_000_000)
	from := begin + 40*e
	times := func(s string, n int) (out string) {
		for range n {
			out += s
		}
		return out
	}
	put := func(name string, lines map[string]string) {
		t.Helper()
		app := db.Appender(context.Background())
		for instance, line := range lines {
			ls := labels.FromStrings(model.MetricNameLabel, name, "instance", instance, "job", "node")
			for _, s := range upLine(line, begin) {
				v := 0.0
				if s.up {
					v = 1
				}
				if s.stale {
					v = math.Float64frombits(value.StaleNaN)
				}
				if _, err := app.Append(0, ls, s.t, v); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := app.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	lines := map[string]string{
		"healthy":            times("1", 80),
		"before":             "1110001" + times("1", 73),
		"across":             times("1", 38) + "00000" + times("1", 37),
		"lasts":              times("1", 60) + times("0", 20),
		"hole":               times("1", 60) + times(" ", 10) + times("1", 10),
		"removed":            times("1", 60) + "x",
		"new":                times(" ", 50) + times("1", 30),
		"new, not up at all": times(" ", 50) + times("0", 30),
		"failing all along":  times("0", 80),
	}
	put("up", lines)
	put("other", map[string]string{"not up": times("1", 50) + times("0", 30)})
	if err := db.CompactHead(tsdb.NewRangeHead(db.Head(), begin, begin+30*e)); err != nil {
		t.Fatal(err)
	}
	got, err := Suspects(t.Context(), db, from, begin+80*e)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Interval{
		"across":            {begin + 37*e, begin + 43*e},
		"lasts":             {begin + 59*e, Lasts},
		"hole":              {begin + 59*e, begin + 70*e},
		"failing all along": {begin - 1, Lasts},
	}
	for _, s := range got {
		name := s.Labels.Get("instance")
		if s.Labels.Has(model.MetricNameLabel) || s.Labels.Get("job") != "node" || s.Every != e {
			t.Errorf("suspect is %+v", s)
		}
		if want[name] != s.Interval {
			t.Errorf("%s: got %+v, want %+v", name, s.Interval, want[name])
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("%s was not found", name)
	}
	// The process was away at the window's begin: what failed since it is here may have been up before.
	got, err = Suspects(t.Context(), db, begin-300_000, begin+80*e)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 5 {
		t.Errorf("got %d suspects, want 5: %+v", len(got), got)
	}
}

func BenchmarkSuspects(b *testing.B) {
	line := make([]byte, 400)
	for i := range line {
		line[i] = '1'
	}
	samples := upLine(string(line), time.Now().UnixMilli())
	for b.Loop() {
		if found, _ := suspectsOf(samples, samples[len(samples)-1].t+1000); found != nil {
			b.Fatal("suspects")
		}
	}
}
