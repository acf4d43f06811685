package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// question is a query: over a range if it has a step, else at its end.
type question struct {
	expr       string
	start, end time.Time
	step       time.Duration
	more       url.Values
}

func (q question) String() string {
	if q.step == 0 {
		return q.expr
	}
	return fmt.Sprintf("%s, %s by %s", q.expr, brief(q.end.Sub(q.start)), brief(q.step))
}

// brief is a duration without its zeros.
func brief(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

func (q question) path() string {
	seconds := func(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }
	v := url.Values{"query": {q.expr}}
	for name, values := range q.more {
		v[name] = values
	}
	if q.step == 0 {
		v.Set("time", seconds(q.end))
		return "/api/v1/query?" + v.Encode()
	}
	v.Set("start", seconds(q.start))
	v.Set("end", seconds(q.end))
	v.Set("step", strconv.FormatFloat(q.step.Seconds(), 'f', -1, 64))
	return "/api/v1/query_range?" + v.Encode()
}

// panels are what dashboards, and people in front of them, ask.
func panels(end time.Time, history time.Duration) []question {
	over := func(span, step time.Duration, expr string) question {
		return question{expr: expr, start: end.Add(-min(span, history*9/10)), end: end, step: step}
	}
	at := func(expr string) question { return question{expr: expr, end: end} }
	const hour = time.Hour
	return []question{
		over(6*hour, time.Minute, `sum by (job) (rate(http_requests_total[5m]))`),
		over(hour, 15*time.Second, `sum by (job, code) (rate(http_requests_total[5m]))`),
		over(6*hour, time.Minute, `histogram_quantile(0.99, sum by (le, job) (rate(http_request_duration_seconds_bucket[5m])))`),
		over(hour, 15*time.Second, `histogram_quantile(0.95, sum by (le, handler) (rate(http_request_duration_seconds_bucket{job="app-01"}[2m])))`),
		over(hour, 30*time.Second, `topk(5, sum by (instance) (rate(container_network_bytes_total[5m])))`),
		over(6*hour, 2*time.Minute, `sum by (handler) (increase(http_requests_total{code=~"5.."}[10m]))`),
		over(hour, 30*time.Second, `avg_over_time(app01_queue_messages{priority="1",state="ready"}[10m])`),
		over(6*hour, time.Minute, `max by (job, instance) (go_runtime_stat_07_bytes)`),
		over(hour, 15*time.Second, `sum by (job) (rate(http_requests_total{code=~"5.."}[5m])) / sum by (job) (rate(http_requests_total[5m]))`),
		over(6*hour, time.Minute, `1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[5m]))`),
		over(hour, time.Minute, `max_over_time(sum by (job) (rate(http_requests_total{code="200"}[1m]))[30m:1m])`),
		over(hour, 30*time.Second, `sum by (job) (rate(http_requests_total[5m])) - sum by (job) (rate(http_requests_total[5m] offset 1h))`),
		over(6*hour, time.Minute, `count by (job) (up == 1)`),
		over(hour, time.Minute, `quantile_over_time(0.9, go_runtime_stat_02_bytes{job=~"app-0[0-2]"}[15m])`),
		over(hour, time.Minute, `predict_linear(app01_queue_messages{state="ready"}[30m], 3600)`),
		over(hour, time.Minute, `quantile by (job) (0.9, {__name__=~"app.._queue_messages"})`),
		over(hour, 15*time.Second, `http_requests_total{job="app-00",method="GET",code="200"}`),
		over(hour, time.Minute, `deriv(go_runtime_stat_03_bytes[10m])`),
		over(hour, time.Minute, `changes(app00_queue_messages{shard="03"}[15m]) > 20`),
		over(hour, 30*time.Second, `avg without (cpu) (irate(node_cpu_seconds_total{job="app-00"}[1m]))`),
		over(hour, time.Minute, `go_runtime_stat_05_bytes * on (instance) group_left (pod) up`),
		over(6*hour, 5*time.Minute, `stddev by (state) (app00_queue_messages)`),
		over(hour, 15*time.Second, `sum by (grpc_method) (rate(app01_grpc_server_handled_total{grpc_code!="OK"}[5m]))`),
		at(`topk(10, http_requests_total)`),
		at(`count by (__name__) ({job="app-00"})`),
		at(`sum by (job) (increase(http_requests_total[6h]))`),
		at(`histogram_quantile(0.5, sum by (le) (rate(http_request_duration_seconds_bucket[1h])))`),
		at(`sort_desc(sum by (instance) (node_cpu_seconds_total{mode!="idle"}))`),
		at(`max_over_time(go_runtime_stat_01_bytes{instance=~"10.0.0.[1-9]:.*"}[6h])`),
		at(`label_replace(sum by (pod) (rate(http_requests_total[5m])), "app", "$1", "pod", "(app-..).*")`),
	}
}

// answer is what a query gave, in the order of the series' labels.
type answer struct {
	kind   string
	series []answered
}

type answered struct {
	labels string
	values []value
}

type value struct {
	at   string
	text string
}

// ask is an answer and what it took to read it.
func (a *asked) ask(ctx context.Context, q question) (n answer, err error) {
	body, err := a.open(ctx, q)
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	var all struct {
		Warnings []string `json:"warnings"`
		Data     struct {
			ResultType string `json:"resultType"`
			Result     []struct {
				Metric     map[string]string    `json:"metric"`
				Value      []json.RawMessage    `json:"value"`
				Values     [][2]json.RawMessage `json:"values"`
				Histogram  json.RawMessage      `json:"histogram"`
				Histograms json.RawMessage      `json:"histograms"`
			} `json:"result"`
		} `json:"data"`
	}
	if err := json.NewDecoder(body).Decode(&all); err != nil {
		return n, fmt.Errorf("read the answer of %s to %s: %w", a.name, q, err)
	}
	if len(all.Warnings) > 0 {
		return n, fmt.Errorf("%s warns of its answer to %s: %q", a.name, q, all.Warnings)
	}
	n.kind = all.Data.ResultType
	for _, r := range all.Data.Result {
		if r.Histogram != nil || r.Histograms != nil {
			return n, fmt.Errorf("%s answered %s with native histograms, which nobody has stored", a.name, q)
		}
		name, err := json.Marshal(r.Metric) // in the order of the keys
		if err != nil {
			return n, fmt.Errorf("sort the answer of %s: %w", a.name, err)
		}
		if len(r.Value) == 2 {
			r.Values = append(r.Values, [2]json.RawMessage(r.Value))
		}
		s := answered{labels: string(name)}
		for _, v := range r.Values {
			var text string
			if err := json.Unmarshal(v[1], &text); err != nil {
				return n, fmt.Errorf("read the answer of %s to %s: %w", a.name, q, err)
			}
			s.values = append(s.values, value{string(v[0]), text})
		}
		n.series = append(n.series, s)
	}
	slices.SortFunc(n.series, func(x, y answered) int { return strings.Compare(x.labels, y.labels) })
	return n, nil
}

// differences compares two answers: what the first difference other than of values is, and by how much values differ at
// most, relatively.
func differences(x, y answer) (what string, most float64) {
	if x.kind != y.kind || len(x.series) != len(y.series) {
		return fmt.Sprintf("%s of %d series, %s of %d", x.kind, len(x.series), y.kind, len(y.series)), 0
	}
	for i, s := range x.series {
		t := y.series[i]
		if s.labels != t.labels {
			return fmt.Sprintf("%s, %s", s.labels, t.labels), most
		}
		if len(s.values) != len(t.values) {
			return fmt.Sprintf("%d and %d values of %s", len(s.values), len(t.values), s.labels), most
		}
		for j, v := range s.values {
			w := t.values[j]
			if v.at != w.at {
				return fmt.Sprintf("%s at %s, %s", s.labels, v.at, w.at), most
			}
			if v.text == w.text {
				continue
			}
			f, err1 := strconv.ParseFloat(v.text, 64)
			g, err2 := strconv.ParseFloat(w.text, 64)
			d := math.Abs(f-g) / max(math.Abs(f), math.Abs(g))
			if err1 != nil || err2 != nil || math.IsNaN(d) {
				return fmt.Sprintf("%s at %s is %s, %s", s.labels, v.at, v.text, w.text), most
			}
			most = max(most, d)
		}
	}
	return "", most
}

// tolerance is by how much an answer of Thanos, which adds up in another order, may differ.
const tolerance = 1e-9

// compareAnswers asks everybody everything once, which warms them up too, and tells how the answers of each but the
// first compare with its.
func (b *bench) compareAnswers(ctx context.Context, sides []*asked, questions []question) ([][]string, error) {
	verdicts := make([][]string, len(questions))
	exact, samples, compared := 0, 0, len(sides)-1
	if b.query.phases && slices.ContainsFunc(sides, func(s *asked) bool { return s.name == sideThanos }) {
		compared--
	}
	for i, q := range questions {
		want, err := sides[0].ask(ctx, q)
		if err != nil {
			return nil, err
		}
		n := 0
		for _, s := range want.series {
			n += len(s.values)
		}
		if n == 0 {
			b.say("note: the answer to %s is empty", q)
		}
		samples += n
		for _, s := range sides[1:] {
			got, err := s.ask(ctx, q)
			if err != nil {
				return nil, err
			}
			what, most := differences(want, got)
			switch {
			case s.name == sideThanos && b.query.phases: // It has other samples, and takes some of each replica.
			case what != "":
				verdicts[i] = append(verdicts[i], s.name+" DIFFERS")
				b.say("note: %s and %s differ in %s: %s", sides[0].name, s.name, q, what)
			case most > 0 && (s.name != sideThanos || most > tolerance):
				verdicts[i] = append(verdicts[i], fmt.Sprintf("%s DIFFERS by %.1g", s.name, most))
			case most > 0:
				verdicts[i] = append(verdicts[i], fmt.Sprintf("%s %.0e", s.name, most))
			default:
				exact++
			}
		}
		if len(verdicts[i]) == 0 {
			verdicts[i] = []string{"equal"}
		}
	}
	b.say("query: %d of %d answers are exactly those of %s, which have %d samples", exact, len(questions)*compared, sides[0].name, samples)
	return verdicts, nil
}
