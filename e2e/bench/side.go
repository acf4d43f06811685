package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	ours  = "tocsin"
	stock = "stock"
)

// side is one of the two stacks that get compared: all its processes, the one that answers queries first.
type side struct {
	name      string
	dir       string // configuration and log
	data      string // data directory of the process that stores
	processes []*process
}

// setup says how to start a side.
type setup struct {
	name         string // ours or stock
	config       string // directory written by writeConfig; "" starts tocsin on its built-in configuration
	data         string
	log          string   // directory for logs
	alertmanager bool     // stock only: start Alertmanager too
	flags        []string // ours only: further ones
}

// start starts the processes of a side and does not wait until they are ready.
func (b *bench) start(s setup) (_ *side, err error) {
	addresses, err := freeAddresses(4)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.log, 0o755); err != nil {
		return nil, fmt.Errorf("create the directory for logs: %w", err)
	}
	r := &side{name: s.name, dir: s.config, data: s.data}
	defer func() {
		if err != nil {
			r.end(syscall.SIGKILL)
		}
	}()
	add := func(name, address, binary string, args ...string) error {
		p, err := start(name, "http://"+address, filepath.Join(s.log, name+".log"), binary, args...)
		if err == nil {
			r.processes = append(r.processes, p)
		}
		return err
	}
	if s.name == ours && !b.control {
		args := []string{
			"run", "--storage.path=" + s.data, "--web.listen-address=" + addresses[0], "--alertmanager.listen-address=" + addresses[1],
			"--cluster.listen-address=" + addresses[2], "--grpc.listen-address=" + addresses[3],
		}
		if s.config != "" {
			args = append(args, "--config.file="+filepath.Join(s.config, "tocsin.yml"))
		}
		return r, add("tocsin", addresses[0], b.tocsin, append(args, s.flags...)...)
	}
	if s.config == "" {
		return nil, errors.New("the stock stack has no built-in configuration")
	}
	config := filepath.Join(s.config, "prometheus.yml")
	if s.alertmanager {
		// The stock pair needs to be told where Alertmanager is. That is the only difference between the two files.
		text, err := os.ReadFile(config)
		if err != nil {
			return nil, fmt.Errorf("read the configuration: %w", err)
		}
		config = filepath.Join(s.config, "prometheus-with-alertmanager.yml")
		text = fmt.Appendf(text, "alerting:\n  alertmanagers:\n    - static_configs:\n        - targets: [%q]\n", addresses[1])
		if err := os.WriteFile(config, text, 0o644); err != nil {
			return nil, fmt.Errorf("write the configuration: %w", err)
		}
	}
	if err := add("prometheus", addresses[0], b.prometheus, "--config.file="+config, "--storage.tsdb.path="+s.data, "--web.listen-address="+addresses[0]); err != nil {
		return nil, err
	}
	if s.alertmanager {
		return r, add("alertmanager", addresses[1], b.alertmanager, "--config.file="+filepath.Join(s.config, "alertmanager.yml"),
			"--storage.path="+s.data+"-alertmanager", "--web.listen-address="+addresses[1], "--cluster.listen-address=")
	}
	return r, nil
}

// url is the base URL of the Prometheus API.
func (s *side) url() string { return s.processes[0].url }

// waitReady waits for all processes and returns the time that the one that stores needed.
func (s *side) waitReady(ctx context.Context, limit time.Duration) (time.Duration, error) {
	var took time.Duration
	for i, p := range s.processes {
		d, err := p.waitReady(ctx, limit)
		if err != nil {
			return 0, err
		}
		if i == 0 {
			took = d
		}
	}
	return took, nil
}

func (s *side) end(sig syscall.Signal) {
	for _, p := range s.processes {
		p.end(sig)
	}
}

// usage is the sum over all processes of the side.
func (s *side) usage() (usage, error) {
	var sum usage
	for _, p := range s.processes {
		u, err := p.usage()
		if err != nil {
			return sum, err
		}
		sum = sum.plus(u)
	}
	return sum, nil
}

// metric is the sum of all series of a metric that the side's own /metrics shows. Both keep upstream's names.
func (s *side) metric(ctx context.Context, name string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url()+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("read the metrics of %s: %w", s.name, err)
	}
	defer func() { _ = resp.Body.Close() }() // It was only read.
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("read the metrics of %s: %s", s.name, resp.Status)
	}
	return sumMetric(resp.Body, name)
}

// query is the value of an instant query that answers one sample.
func (s *side) query(ctx context.Context, expr string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	text, err := get(ctx, s.url()+"/api/v1/query?"+url.Values{"query": {expr}}.Encode())
	if err != nil {
		return 0, fmt.Errorf("query %s: %w", s.name, err)
	}
	var answer struct {
		Data struct {
			Result []struct {
				Value [2]any `json:"value"`
			} `json:"result"`
		} `json:"data"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return 0, fmt.Errorf("read the answer of %s: %w", s.name, err)
	}
	if len(answer.Data.Result) != 1 {
		return 0, fmt.Errorf("%s answered %d series to %s, wanted one", s.name, len(answer.Data.Result), expr)
	}
	v, _ := answer.Data.Result[0].Value[1].(string)
	f, err := strconv.ParseFloat(v, 64)
	if err != nil {
		return 0, fmt.Errorf("read the answer of %s: %w", s.name, err)
	}
	return f, nil
}

func sumMetric(text io.Reader, name string) (float64, error) {
	var sum float64
	found := false
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), name)
		if !ok || rest == "" || (rest[0] != ' ' && rest[0] != '{') {
			continue
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("read the metric %s: %w", name, err)
		}
		sum, found = sum+v, true
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("read the metric %s: %w", name, err)
	}
	if !found {
		return 0, fmt.Errorf("the metric %s is missing", name)
	}
	return sum, nil
}
