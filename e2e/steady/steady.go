// Package steady runs tests again that failed while the machine stood still.
//
// Many of our tests are about what happens within a second or three: a replica is gone, a notification is late. Where
// the machine itself stops for ten seconds (a virtual machine that is moved, a disk that does not answer), such a test
// can fail without proving anything. Main notices when that was so, and lets the test prove itself once more. A test
// that fails on a machine that ran is never run again.
package steady

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// stillness is the shortest pause of the whole process that excuses a test. The shortest of our waits are two
	// to three seconds long.
	stillness = time.Second
	// mark begins the line by which the process that runs the tests tells of a pause.
	mark = "steady: the machine stood still for "
	// attempts is how often a test runs at most.
	attempts = 3

	childEnv = "TOCSIN_STEADY_CHILD"
)

// Watcher is the function whose goroutine watches over the tests, for those who look for leaked goroutines.
const Watcher = "github.com/tocsin-io/tocsin/e2e/steady.watch"

// Main calls run, which runs the tests as testing.M.Run does, in a process of its own, and once more for those tests
// that failed while the machine stood still. What it returns is for os.Exit.
func Main(run func() int) int {
	if os.Getenv(childEnv) != "" {
		// Not for the children of the tests.
		if err := os.Unsetenv(childEnv); err != nil {
			panic(err)
		}
		stop, stopped := make(chan struct{}), make(chan struct{})
		go watch(os.Stderr, stop, stopped)
		code := run()
		// A test may fail before the watcher has seen that the pause is over.
		close(stop)
		<-stopped
		return code
	}
	flag.Parse()
	for _, name := range []string{"test.list", "test.fuzz", "test.fuzzworker", "test.bench"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != "" && f.Value.String() != "false" {
			return run()
		}
	}
	// The children shall end with this process, which the kernel takes for the thread that began them.
	runtime.LockOSThread()
	args := os.Args[1:]
	for attempt := 1; ; attempt++ {
		report := &report{out: os.Stdout, now: time.Now}
		code := child(args, report)
		failed, excused := report.failed()
		if code != 1 || len(failed) == 0 || !excused || attempt == attempts {
			return code
		}
		fmt.Printf("steady: failed while the machine stood still, and run again: %s\n", strings.Join(failed, " "))
		// The first run has noted for the test cache what all tests read.
		args = slices.DeleteFunc(slices.Clone(os.Args[1:]), func(arg string) bool { return strings.HasPrefix(arg, "-test.testlogfile=") })
		args = append(args, "-test.run=^("+strings.Join(failed, "|")+")$")
	}
}

// child runs this program once more, and returns its exit code.
func child(args []string, out io.Writer) int {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "steady: run the tests:", err)
		return 2
	}
	return 0
}

// watch tells when this process did not get to run, until it is stopped.
func watch(out io.Writer, stop <-chan struct{}, stopped chan<- struct{}) {
	defer close(stopped)
	tick := time.NewTicker(stillness / 10)
	defer tick.Stop()
	for last, goesOn := time.Now(), true; goesOn; {
		select {
		case <-tick.C:
		case <-stop:
			goesOn = false
		}
		now := time.Now()
		// By the monotonic clock: the other one may be set.
		if d := now.Sub(last); d > stillness {
			fmt.Fprintln(out, mark+d.String())
		}
		last = now
	}
}

// report passes the output of tests on, and keeps which of them failed and when the machine stood still.
type report struct {
	out io.Writer
	now func() time.Time

	line   []byte
	fails  []failure
	pauses []span
}

type failure struct {
	name string
	span
}

type span struct{ from, to time.Time }

func (r *report) Write(p []byte) (int, error) {
	r.line = append(r.line, p...)
	for {
		line, rest, whole := bytes.Cut(r.line, []byte("\n"))
		if !whole {
			break
		}
		r.read(string(line))
		r.line = rest
	}
	return r.out.Write(p)
}

// failLine begins with a SYN where test2json is to read it.
var failLine = regexp.MustCompile(`^\x16?( *)--- FAIL: (\S+) \(([0-9.]+)s\)`)

func (r *report) read(line string) {
	now := r.now()
	if s, ok := strings.CutPrefix(line, mark); ok {
		if d, err := time.ParseDuration(s); err == nil {
			r.pauses = append(r.pauses, span{now.Add(-d), now})
		}
		return
	}
	m := failLine.FindStringSubmatch(line)
	if m == nil {
		return
	}
	seconds, err := strconv.ParseFloat(m[3], 64)
	if err != nil {
		return
	}
	from := now.Add(-time.Duration(seconds * float64(time.Second)))
	if m[1] == "" {
		r.fails = append(r.fails, failure{m[2], span{from, now}})
	} else if last := len(r.fails) - 1; last >= 0 && from.Before(r.fails[last].from) {
		// A test whose parts run at the same time does not count their time as its own.
		r.fails[last].from = from
	}
}

// failed names the tests that failed, and tells whether the machine stood still during each of them.
func (r *report) failed() (names []string, excused bool) {
	excused = true
	for _, f := range r.fails {
		names = append(names, f.name)
		excused = excused && slices.ContainsFunc(r.pauses, func(p span) bool { return p.from.Before(f.to) && f.from.Before(p.to) })
	}
	return names, excused
}
