package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

const formType = "application/x-www-form-urlencoded"

// envelope is what every answer of the Prometheus HTTP API is wrapped in.
type envelope struct {
	Status    string          `json:"status"`
	Data      json.RawMessage `json:"data"`
	ErrorType string          `json:"errorType"`
	Error     string          `json:"error"`
}

// get decodes the data of a GET below /api/v1.
func (p *tocsin) get(path string, data any) error { return getAPI(p.url+"/api/v1/"+path, data) }

func getAPI(address string, data any) error {
	status, body, err := fetch(http.MethodGet, address, "", "")
	if err != nil {
		return err
	}
	return decodeAPI(status, body, data)
}

func decodeAPI(status int, body string, data any) error {
	var e envelope
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		return fmt.Errorf("%d, not JSON: %w: %.300s", status, err, body)
	}
	if status != http.StatusOK || e.Status != "success" {
		return fmt.Errorf("%d %s: %s", status, e.ErrorType, e.Error)
	}
	if data == nil {
		return nil
	}
	return json.Unmarshal(e.Data, data)
}

// point is [seconds, "value"].
type point struct {
	Time  float64
	Value string
}

func (p *point) UnmarshalJSON(b []byte) error {
	var raw [2]any
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	var timeOK, valueOK bool
	p.Time, timeOK = raw[0].(float64)
	p.Value, valueOK = raw[1].(string)
	if !timeOK || !valueOK {
		return fmt.Errorf("not a sample: %s", b)
	}
	return nil
}

type series struct {
	Metric map[string]string `json:"metric"`
	Value  point             `json:"value"`
	Values []point           `json:"values"`
}

// id is the series' name in a map.
func (s series) id() string {
	b, err := json.Marshal(s.Metric) // encoding/json sorts the keys.
	if err != nil {
		return err.Error()
	}
	return string(b)
}

type queryData struct {
	ResultType string   `json:"resultType"`
	Result     []series `json:"result"`
}

// query answers an instant query; at is the zero time for now.
func (p *tocsin) query(expr string, at time.Time) ([]series, error) {
	v := url.Values{"query": {expr}}
	if !at.IsZero() {
		v.Set("time", formatTime(at))
	}
	var d queryData
	err := p.get("query?"+v.Encode(), &d)
	return d.Result, err
}

func formatTime(t time.Time) string {
	return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64)
}

// value is the one value of an expression now.
func (p *tocsin) value(expr string) (float64, error) {
	result, err := p.query(expr, time.Time{})
	if err != nil {
		return 0, err
	}
	if len(result) != 1 {
		return 0, fmt.Errorf("%s has %d series, not one", expr, len(result))
	}
	return strconv.ParseFloat(result[0].Value.Value, 64)
}

// wantValue waits until the expression has the value.
func (p *tocsin) wantValue(within time.Duration, expr string, want float64) {
	p.t.Helper()
	eventually(p.t, within, expr, func() error {
		p.alive()
		got, err := p.value(expr)
		if err == nil && got != want {
			err = fmt.Errorf("it is %v, not %v", got, want)
		}
		return err
	})
}

// wantSome waits until the expression has a result, and returns it.
func (p *tocsin) wantSome(within time.Duration, expr string) []series {
	p.t.Helper()
	var result []series
	eventually(p.t, within, expr, func() (err error) {
		p.alive()
		result, err = p.query(expr, time.Time{})
		if err == nil && len(result) == 0 {
			err = errors.New("no result")
		}
		return err
	})
	return result
}

// ownMetric reads a sample of /metrics: name is the sample with its labels, as it stands there.
func (p *tocsin) ownMetric(name string) (float64, error) {
	status, body, err := fetch(http.MethodGet, p.url+"/metrics", "", "")
	if err != nil {
		return 0, err
	}
	if status != http.StatusOK {
		return 0, fmt.Errorf("/metrics answers %d", status)
	}
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(rest), 64)
		}
	}
	return 0, fmt.Errorf("/metrics has no %s", name)
}

type target struct {
	ScrapePool string            `json:"scrapePool"`
	ScrapeURL  string            `json:"scrapeUrl"`
	Labels     map[string]string `json:"labels"`
	LastError  string            `json:"lastError"`
	Health     string            `json:"health"`
}

func (p *tocsin) targets() ([]target, error) {
	var data struct {
		Active []target `json:"activeTargets"`
	}
	err := p.get("targets", &data)
	return data.Active, err
}

type ruleGroup struct {
	Name  string `json:"name"`
	File  string `json:"file"`
	Rules []struct {
		Name      string `json:"name"`
		Type      string `json:"type"`
		State     string `json:"state"`
		Health    string `json:"health"`
		LastError string `json:"lastError"`
		Alerts    []struct {
			State    string    `json:"state"`
			ActiveAt time.Time `json:"activeAt"`
		} `json:"alerts"`
	} `json:"rules"`
}

func (p *tocsin) rules() ([]ruleGroup, error) {
	var data struct {
		Groups []ruleGroup `json:"groups"`
	}
	err := p.get("rules", &data)
	return data.Groups, err
}

// alertState is the state of a rule's alerts, and since when the first has been active.
func (p *tocsin) alertState(name string) (state string, activeAt time.Time, err error) {
	groups, err := p.rules()
	if err != nil {
		return "", time.Time{}, err
	}
	for _, g := range groups {
		for _, r := range g.Rules {
			if r.Name == name {
				if len(r.Alerts) > 0 {
					activeAt = r.Alerts[0].ActiveAt
				}
				return r.State, activeAt, nil
			}
		}
	}
	return "", time.Time{}, fmt.Errorf("no rule %s", name)
}

// amAlerts are the Alertmanager's alerts by name, with the state: active, suppressed or unprocessed.
func (p *tocsin) amAlerts() (map[string]string, error) {
	var alerts []struct {
		Labels map[string]string `json:"labels"`
		Status struct {
			State string `json:"state"`
		} `json:"status"`
	}
	status, body, err := fetch(http.MethodGet, p.amURL+"/api/v2/alerts", "", "")
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("%d %s", status, body)
	}
	if err := json.Unmarshal([]byte(body), &alerts); err != nil {
		return nil, err
	}
	byName := map[string]string{}
	for _, a := range alerts {
		byName[a.Labels["alertname"]] = a.Status.State
	}
	return byName, nil
}

// reload posts to /-/reload and returns the answer.
func (p *tocsin) reload() (int, string) {
	p.t.Helper()
	status, body, err := fetch(http.MethodPost, p.url+"/-/reload", "", "")
	if err != nil {
		p.t.Fatalf("reload: %v", err)
	}
	return status, body
}

// contains fails the test unless every part is in text.
func contains(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%s lacks %q:\n%.2000s", what, part, text)
		}
	}
}
