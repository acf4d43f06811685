package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tocsin-io/tocsin/e2e/steady"
)

// Debian's interpreter, for which python3-aiosmtpd installs its module; another python3 may come first in PATH.
const python = "/usr/bin/python3"

// tocsinBinary is the program under test.
var tocsinBinary string

func TestMain(m *testing.M) {
	if err := findBinaries(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Exit(steady.Main(m.Run))
}

func findBinaries() error {
	tocsinBinary = os.Getenv("TOCSIN")
	if tocsinBinary == "" {
		return errors.New("these tests run the real binary: set TOCSIN to its path, or run `make e2e`")
	}
	abs, err := filepath.Abs(tocsinBinary)
	if err != nil {
		return err
	}
	tocsinBinary = abs
	if _, err := os.Stat(tocsinBinary); err != nil {
		return fmt.Errorf("TOCSIN names no program, run `make build`: %w", err)
	}
	for _, name := range []string{"prometheus", "promtool", "prometheus-alertmanager", "amtool", "prometheus-node-exporter", "memcached", python} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("a neighbour is missing, run `make test-deps`: %w", err)
		}
	}
	if out, err := exec.Command(python, "-c", "import aiosmtpd, swift").CombinedOutput(); err != nil {
		return fmt.Errorf("aiosmtpd or Swift is missing, run `make test-deps`: %w: %s", err, out)
	}
	return nil
}

// eventually polls until check is content, and fails the test with check's last objection otherwise. It is the only
// place where these tests wait.
func eventually(t *testing.T, within time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// during polls for as long as it says and fails the test as soon as check objects: for what must not happen.
func during(t *testing.T, d time.Duration, what string, check func() error) {
	t.Helper()
	end := time.Now().Add(d)
	eventually(t, d+time.Minute, what, func() error {
		if err := check(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if time.Now().Before(end) {
			return errors.New("the time is not over")
		}
		return nil
	})
}

// workDir is a directory that is removed when the test passes, and named and kept when it does not.
func workDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tocsin-e2e-"+strings.ReplaceAll(t.Name(), "/", "-")+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("kept: %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return dir
}

// write puts a file under dir, with the folders on the way.
func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// process is a child. Its output is a file, of which the end is shown when the test fails.
type process struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the child has been waited for
	err  error         // of Wait; valid after done
}

// start starts a child that is killed and waited for at the end of the test at the latest.
func start(t *testing.T, dir, name, binary string, args ...string) *process {
	t.Helper()
	return startIn(t, nil, dir, name, binary, args...)
}

// startIn is start in a zone, or where the tests are if there is none.
func startIn(t *testing.T, z *zone, dir, name, binary string, args ...string) *process {
	t.Helper()
	f, err := os.CreateTemp(dir, name+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := &process{t: t, name: name, cmd: exec.Command(binary, args...), log: f.Name(), done: make(chan struct{})}
	p.cmd.Dir = dir
	p.cmd.Stdout, p.cmd.Stderr = f, f
	// No child outlives the tests, even where they are killed themselves.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begin := p.cmd.Start
	if z != nil {
		begin = func() error { return z.do(p.cmd.Start) }
	}
	if err := begin(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("the end of the log of %s (%s):\n%s", p.name, p.log, p.tail(40))
		}
	})
	return p
}

// kill is kill -9.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

func (p *process) signal(s os.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("send %s to %s: %v", s, p.name, err)
	}
}

// exited says whether and how the child has ended.
func (p *process) exited() (ended bool, code int) {
	select {
	case <-p.done:
		return true, p.cmd.ProcessState.ExitCode()
	default:
		return false, 0
	}
}

// wait returns the exit code, and fails the test if the child goes on.
func (p *process) wait(within time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		// Where it hangs is what the log should say.
		p.signal(syscall.SIGQUIT)
		<-p.done
		p.t.Fatalf("%s has not ended within %s", p.name, within)
		return 0
	}
}

// alive fails the test if the child has ended.
func (p *process) alive() {
	p.t.Helper()
	if ended, code := p.exited(); ended {
		p.t.Fatalf("%s has ended with code %d:\n%s", p.name, code, p.tail(20))
	}
}

func (p *process) output() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (p *process) tail(lines int) string {
	all := strings.Split(strings.TrimRight(p.output(), "\n"), "\n")
	all = all[max(0, len(all)-lines):]
	for i, line := range all {
		if len(line) > 1000 {
			all[i] = line[:1000] + "..."
		}
	}
	return strings.Join(all, "\n")
}

// logged waits for a line that matches, and returns the groups.
func (p *process) logged(within time.Duration, pattern string) []string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	var groups []string
	eventually(p.t, within, p.name+" logs "+pattern, func() error {
		// In this order: what it logs last must not be missed.
		ended, code := p.exited()
		if groups = re.FindStringSubmatch(p.output()); groups != nil {
			return nil
		}
		if ended {
			p.t.Fatalf("%s has ended with code %d and has not logged %s:\n%s", p.name, code, pattern, p.tail(20))
		}
		return errors.New("no such line")
	})
	return groups
}

// tool runs a program to its end and returns what it printed.
func tool(t *testing.T, dir, name string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var o, e bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &o, &e
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%s %s has not ended:\n%s%s", name, strings.Join(args, " "), &o, &e)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %s: %v", name, err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// mustTool is tool where the program has to succeed; it returns what went to standard output.
func mustTool(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	stdout, stderr, code := tool(t, dir, name, args...)
	if code != 0 {
		t.Fatalf("%s %s ended with code %d:\n%s%s", filepath.Base(name), strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// tocsin is one run of the program under test.
type tocsin struct {
	*process
	url   string // of the main listener
	amURL string // of the listener with the Alertmanager API at its root
}

// runTocsin starts the program, and waits until it is ready. Data is in dir/data.
func runTocsin(t *testing.T, dir string, flags ...string) *tocsin {
	t.Helper()
	p := startTocsin(t, dir, flags...)
	return p.ready()
}

// startTocsin starts the program and does not wait.
func startTocsin(t *testing.T, dir string, flags ...string) *tocsin {
	t.Helper()
	args := append([]string{"run", "--storage.path=data", "--web.listen-address=127.0.0.1:0",
		"--alertmanager.listen-address=127.0.0.1:0", "--cluster.listen-address=127.0.0.1:0",
		"--grpc.listen-address=127.0.0.1:0", "--storage.remote.flush-deadline=1s"}, flags...)
	return &tocsin{process: start(t, dir, "tocsin", tocsinBinary, args...)}
}

var readyLine = `msg=ready .*web=\[?([0-9.:]+)[^\]]*\]? alertmanager=\[?([0-9.:]*)\]?`

// ready waits for the line that names the bound addresses, and for the answer of /-/ready.
func (p *tocsin) ready() *tocsin {
	p.t.Helper()
	groups := p.logged(time.Minute, readyLine)
	p.url, p.amURL = "http://"+groups[1], "http://"+groups[2]
	eventually(p.t, 20*time.Second, "ready", func() error {
		p.alive()
		status, body, err := fetch(http.MethodGet, p.url+"/-/ready", "", "")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
	return p
}

// stop is what systemd does, and has to end well.
func (p *tocsin) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	if code := p.wait(time.Minute); code != 0 {
		p.t.Fatalf("tocsin has stopped with code %d:\n%s", code, p.tail(20))
	}
}

// residentBytes is what /proc says.
func (p *process) residentBytes() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kb); n == 1 {
			return kb << 10, nil
		}
	}
	return 0, errors.New("no VmRSS")
}

// client follows no redirects: where one is given is part of what is tested.
var client = &http.Client{
	Timeout:       30 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{DialContext: dialAnywhere, MaxIdleConnsPerHost: 4},
}

// fetch sends one request; contentType may be empty.
func fetch(method, url, contentType, body string) (status int, answer string, err error) {
	status, _, answer, err = exchange(method, url, contentType, body)
	return status, answer, err
}

func exchange(method, url, contentType, body string) (int, http.Header, string, error) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, "", err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, "", err
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, io.LimitReader(resp.Body, 256<<20)); err != nil {
		return 0, nil, "", err
	}
	return resp.StatusCode, resp.Header, b.String(), nil
}

func readFile(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
