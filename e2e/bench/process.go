package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a running binary of one of the two sides.
type process struct {
	name    string
	url     string // base URL of its HTTP server
	log     string
	cmd     *exec.Cmd
	started time.Time
	ended   chan struct{} // closed once the process has been waited for
}

// start runs a binary in a session of its own log file. The same environment goes to both sides.
func start(name, url, log, binary string, args ...string) (*process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", name, err)
	}
	p := &process{name: name, url: url, log: log, cmd: exec.Command(binary, args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.Dir = filepath.Dir(log)
	p.started = time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), f.Close())
	}
	go func() {
		_ = p.cmd.Wait() // how it ended stands in its log; waitReady tells that it ended
		_ = f.Close()
		close(p.ended)
	}()
	return p, nil
}

// end sends the signal and waits for the process; one that does not heed it gets killed.
func (p *process) end(sig syscall.Signal) {
	_ = p.cmd.Process.Signal(sig) // it may have ended already
	t := time.NewTimer(time.Minute)
	defer t.Stop()
	select {
	case <-p.ended:
	case <-t.C:
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// waitReady polls /-/ready and returns the time from the start of the process to the first 200.
func (p *process) waitReady(ctx context.Context, limit time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s was not ready within %s", p.name, limit))
	defer cancel()
	client := &http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	for {
		if code, err := ready(ctx, client, p.url); err == nil && code == http.StatusOK {
			return time.Since(p.started), nil
		}
		select {
		case <-p.ended:
			return 0, fmt.Errorf("%s ended before it was ready; its log says:\n%s", p.name, p.tail())
		case <-ctx.Done():
			return 0, fmt.Errorf("%w; its log says:\n%s", context.Cause(ctx), p.tail())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func ready(ctx context.Context, client *http.Client, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/-/ready", nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16)) // so that the connection is used again
	return resp.StatusCode, resp.Body.Close()
}

// tail is the last lines of the log.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// usage is what a process, or several together, have taken from the machine.
type usage struct {
	cpu       time.Duration // user and system time since it started, all threads
	anonymous uint64        // bytes of RssAnon
	resident  uint64        // bytes of VmRSS
	written   uint64        // bytes that it caused to be sent to a disk
}

func (u usage) plus(v usage) usage {
	return usage{u.cpu + v.cpu, u.anonymous + v.anonymous, u.resident + v.resident, u.written + v.written}
}

// clockTick is the unit of the times in /proc/PID/stat: USER_HZ, which Linux has fixed at 100 for programs.
const clockTick = 10 * time.Millisecond

func (p *process) usage() (usage, error) {
	dir := filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return usage{}, fmt.Errorf("read the CPU time of %s: %w; its log says:\n%s", p.name, err, p.tail())
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return usage{}, fmt.Errorf("read the memory of %s: %w", p.name, err)
	}
	u, err := parseUsage(stat, status)
	if err != nil {
		return u, fmt.Errorf("%s: %w", p.name, err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "io")); err == nil { // not allowed in every container
		for l := range strings.Lines(string(text)) {
			if v, ok := strings.CutPrefix(l, "write_bytes:"); ok {
				u.written, _ = strconv.ParseUint(strings.TrimSpace(v), 10, 64)
			}
		}
	}
	return u, nil
}

// parseUsage reads the contents of /proc/PID/stat and /proc/PID/status.
func parseUsage(stat, status []byte) (usage, error) {
	var u usage
	end := bytes.LastIndexByte(stat, ')') // the command name may hold anything
	if end < 0 {
		return u, errors.New("/proc/PID/stat holds no command name")
	}
	fields := strings.Fields(string(stat[end+1:])) // the first is field 3, state
	if len(fields) < 13 {
		return u, fmt.Errorf("/proc/PID/stat holds %d fields after the name", len(fields))
	}
	for _, f := range fields[11:13] { // fields 14 and 15: utime, stime
		ticks, err := strconv.ParseUint(f, 10, 63)
		if err != nil {
			return u, fmt.Errorf("read a time in /proc/PID/stat: %w", err)
		}
		u.cpu += time.Duration(ticks) * clockTick
	}
	found := 0
	for l := range strings.Lines(string(status)) {
		for key, to := range map[string]*uint64{"RssAnon:": &u.anonymous, "VmRSS:": &u.resident} {
			if v, ok := strings.CutPrefix(l, key); ok {
				kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 54)
				if err != nil {
					return u, fmt.Errorf("read %s in /proc/PID/status: %w", key, err)
				}
				*to = kib << 10
				found++
			}
		}
	}
	if found != 2 {
		return u, errors.New("/proc/PID/status lacks RssAnon or VmRSS")
	}
	return u, nil
}

// freeAddresses are addresses on loopback that nobody listens on. They may be taken before they are used; a run that
// meets that says so in the log of the process.
func freeAddresses(n int) ([]string, error) { return freeAddressesOn("127.0.0.1", n) }

func freeAddressesOn(host string, n int) ([]string, error) {
	addresses := make([]string, 0, n)
	var listeners []net.Listener
	var err error
	for range n {
		var ln net.Listener
		if ln, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err != nil {
			err = fmt.Errorf("find a free port: %w", err)
			break
		}
		listeners = append(listeners, ln)
		addresses = append(addresses, ln.Addr().String())
	}
	for _, ln := range listeners {
		err = errors.Join(err, ln.Close())
	}
	return addresses, err
}

func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown CPU"
	}
	for l := range strings.Lines(string(text)) {
		if key, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return "unknown CPU"
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}
