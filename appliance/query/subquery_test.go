package query

import (
	"net/url"
	"strings"
	"testing"
	"time"
)

// TestEndlessSubqueriesAreRefused holds that no expression runs on after its timeout: upstream's loop over a subquery's
// steps does not look at it.
func TestEndlessSubqueriesAreRefused(t *testing.T) {
	s := serve(t, func(o *Options) { o.Timeout = 2 * time.Second })
	for expr, code := range map[string]int{
		"rate(up[100y:1ms])":                                          400,
		"max_over_time(rate(up[5m:1ms])[100y:1m])":                    400,
		"max_over_time(vector(1)[290y:1s])":                           400,
		"max_over_time(max_over_time(vector(1)[290y:30d])[290y:30d])": 200,
		"max_over_time(max_over_time(vector(1)[290y:1ms])[290y:1d])":  400,
		"max_over_time(max_over_time(vector(1)[290y:1d])[290y:1d])":   400,
		"max_over_time(vector(1)[30d:1m])":                            200,
		"max_over_time(vector(1)[1d:])":                               200,
		`count(up{job="a:b"}[5m:])`:                                   400, // Upstream's own refusal: not an instant vector.
	} {
		begun := time.Now()
		r := s.do(t, "POST", "/api/v1/query", strings.NewReader(url.Values{"query": {expr}}.Encode()), "Content-Type", formType)
		if r.code != code {
			t.Errorf("%s: code %d, want %d: %.200s", expr, r.code, code, r.body)
		}
		if took := time.Since(begun); took > 20*time.Second {
			t.Errorf("%s took %s, with a timeout of 2s", expr, took)
		}
	}
	over := url.Values{"query": {"max_over_time(vector(1)[1h:1s])"}, "start": {"0"}, "end": {"1000000000"}, "step": {"1000000"}}
	if r := s.do(t, "POST", "/api/v1/query_range", strings.NewReader(over.Encode()), "Content-Type", formType); r.code != 400 || !strings.Contains(r.body, "subquery") {
		t.Errorf("a range query over 30 years by the second: %d %.200s", r.code, r.body)
	}
}
