package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// profileGuided collects what the compiler should optimise for: mostly scraping and rules, some dashboards, and the
// replay after a kill. It merges the two profiles into the file that -pgo names.
func (b *bench) profileGuided(ctx context.Context) (err error) {
	if b.control {
		return errors.New("-pgo and -control exclude each other")
	}
	sides, closeLoad, _, err := b.underLoad(ctx, ours)
	if err != nil {
		return err
	}
	s := sides[0]
	defer func() {
		s.end(syscall.SIGKILL)
		err = errors.Join(err, closeLoad())
	}()
	b.say("pgo: %d targets of %d series every %s, warming up for %s", b.targets, b.series, b.interval, b.warmup)
	if err := sleep(ctx, b.warmup); err != nil {
		return err
	}
	queries, stopQueries := context.WithCancel(ctx)
	asked := make(chan int, 1)
	go func() { asked <- dashboards(queries, s.url()) }()
	b.say("pgo: profile under load for %s", b.pgoProfileLength)
	underLoad := filepath.Join(b.dir, "load.pprof")
	err = s.profile(ctx, underLoad, "profile", b.pgoProfileLength)
	stopQueries()
	n := <-asked
	if err != nil {
		return err
	}
	b.say("pgo: %d queries were answered", n)
	s.end(syscall.SIGKILL)

	b.say("pgo: profile of the replay")
	restarted, err := b.start(setup{name: ours, config: s.dir, data: s.data, log: filepath.Dir(s.data)})
	if err != nil {
		return err
	}
	defer restarted.end(syscall.SIGKILL)
	if err := restarted.waitHTTP(ctx); err != nil {
		return err
	}
	replay := filepath.Join(b.dir, "replay.pprof")
	if err := restarted.profile(ctx, replay, "profile", 10*time.Second); err != nil {
		return err
	}
	merged := b.pgo + ".new"
	out, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-proto", "-output="+merged, underLoad, replay).CombinedOutput()
	if err != nil {
		return fmt.Errorf("merge the profiles: %w: %s", err, out)
	}
	if err := os.Rename(merged, b.pgo); err != nil {
		return fmt.Errorf("put the profile into place: %w", err)
	}
	b.say("pgo: wrote %s", b.pgo)
	return nil
}

// profiles writes a CPU profile of a minute and a heap profile.
func (s *side) profiles(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create the directory for profiles: %w", err)
	}
	if err := s.profile(ctx, filepath.Join(dir, s.name+".cpu.pprof"), "profile", time.Minute); err != nil {
		return err
	}
	return s.profile(ctx, filepath.Join(dir, s.name+".heap.pprof"), "heap", 0)
}

func (s *side) profile(ctx context.Context, file, kind string, length time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, length+time.Minute)
	defer cancel()
	u := s.url() + "/debug/pprof/" + kind
	if length > 0 {
		u += "?seconds=" + strconv.Itoa(int(length.Seconds()))
	}
	text, err := get(ctx, u)
	if err != nil {
		return fmt.Errorf("profile %s: %w", s.name, err)
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return fmt.Errorf("write the profile of %s: %w", s.name, err)
	}
	return nil
}

// waitHTTP waits until the process answers at all, be it ready or not.
func (s *side) waitHTTP(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if _, err := ready(ctx, http.DefaultClient, s.url()); err == nil {
			return nil
		}
		if err := sleep(ctx, 2*time.Millisecond); err != nil {
			return fmt.Errorf("wait for %s to answer: %w", s.name, err)
		}
	}
}

// dashboards asks what dashboards ask, one query at a time, until ctx ends. It returns how many were answered well.
func dashboards(ctx context.Context, base string) int {
	panels := []string{
		`sum by (job) (rate(http_requests_total[2m]))`,
		`sum by (job, code) (rate(http_requests_total{env="production"}[2m]))`,
		`histogram_quantile(0.95, sum by (le, handler) (rate(http_request_duration_seconds_bucket{job="app-03"}[2m])))`,
		`topk(10, sum by (instance) (rate(container_network_bytes_total[2m])))`,
		`1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle",job=~"app-0[1-4]"}[2m]))`,
		`sum by (queue) (app05_queue_messages)`,
		`max_over_time(app02_queue_messages{priority="1"}[5m]) > 4000`,
		`job:http_errors:ratio5m`,
		`count by (job) (up == 1) / count by (job) (up)`,
		`sum by (grpc_method) (increase(app01_grpc_server_handled_total{grpc_code!="OK"}[5m]))`,
		`go_runtime_stat_07_bytes{job="app-07"} * on (instance) group_left (pod) up`,
		`avg without (cpu) (irate(node_cpu_seconds_total{instance=~"127.1.0.[1-9]:.*"}[1m]))`,
	}
	answered := 0
	for i := 0; ctx.Err() == nil; i++ {
		now := time.Now()
		var u string
		switch {
		case i%20 == 19:
			u = base + "/api/v1/series?" + url.Values{"match[]": {`http_requests_total{job="app-03"}`}}.Encode()
		case i%20 == 9:
			u = base + "/api/v1/label/handler/values"
		default:
			u = base + "/api/v1/query_range?" + url.Values{
				"query": {panels[i%len(panels)]},
				"start": {strconv.FormatInt(now.Add(-15*time.Minute).Unix(), 10)},
				"end":   {strconv.FormatInt(now.Unix(), 10)},
				"step":  {"15"},
			}.Encode()
		}
		if _, err := get(ctx, u); err == nil {
			answered++
		}
		if sleep(ctx, 2*time.Second) != nil { // scraping shall stay the greater part of the profile
			break
		}
	}
	return answered
}

// get reads a whole answer; it has no limit, because the other end is a process of this run.
func get(ctx context.Context, u string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // It was only read.
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.200s", resp.Status, text)
	}
	return text, err
}
