// Command bench measures Tocsin side by side with the stock stack it replaces: stock Prometheus of the same version plus
// stock Alertmanager.
//
// It owns the load (targets that are scraped, a webhook that takes the notifications), the processes of both sides and
// their data directories. What enters are the paths of the binaries and the lengths of the scenarios; what leaves is a
// table of absolute figures, the ratios and the goals on standard output. It speaks HTTP, files and signals only and
// imports nothing of ours. It refuses to judge: a missed goal is printed, never an exit code, because the figures of a
// shared machine are no test.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the flags, translated.
type options struct {
	tocsin, prometheus, alertmanager string

	scenarios []string
	control   bool
	smoke     bool

	targets, series  int
	interval         time.Duration
	warmup, window   time.Duration
	idle             time.Duration
	starts, replays  int
	readyTimeout     time.Duration
	dir, profiles    string
	keep             bool
	pgo              string
	pgoProfileLength time.Duration

	thanos    string
	versitygw string
	notify    notifyOptions
	heal      healOptions
	rolling   rollingOptions
	query     queryOptions
	snapshot  snapshotOptions
	bucket    bucketOptions
}

// scenarioNames are all that there are; those of them that compare clusters are only run when they are named.
var scenarioNames = []string{"idle", "start", "scrape", "replay", "notify", "heal", "rolling", "query", "snapshot", "bucket"}

// bench is one run: the options, where to print, the directory that everything lies in.
type bench struct {
	options
	out io.Writer
	dir string
	// replayable are the data directories that the scrape scenario left after kill -9, for the replay scenario.
	replayable map[string]string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	var scenarios string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.tocsin, "tocsin", env("TOCSIN", "bin/tocsin"), "tocsin binary (environment: TOCSIN)")
	f.StringVar(&o.prometheus, "prometheus", env("PROMETHEUS", "bin/peers/prometheus"), "stock Prometheus binary (environment: PROMETHEUS)")
	f.StringVar(&o.alertmanager, "alertmanager", env("ALERTMANAGER", "prometheus-alertmanager"), "stock Alertmanager binary (environment: ALERTMANAGER)")
	f.StringVar(&o.thanos, "thanos", env("THANOS", "bin/peers/thanos"), "stock Thanos binary, for the scenarios query and bucket (environment: THANOS)")
	f.StringVar(&o.versitygw, "versitygw", env("VERSITYGW", "bin/peers/versitygw"), "S3 server, for the scenario bucket (environment: VERSITYGW)")
	f.StringVar(&scenarios, "scenarios", env("BENCH_SCENARIOS", "idle,start,scrape,replay,notify"),
		"scenarios to run, in this order, of "+strings.Join(scenarioNames, ", ")+" (environment: BENCH_SCENARIOS)")
	f.BoolVar(&o.control, "control", false, "run the stock stack on both sides, to see the noise of the method on this machine")
	f.BoolVar(&o.smoke, "smoke", false, "short lengths for CI: proves that everything runs, the figures mean nothing")
	f.IntVar(&o.targets, "targets", 500, "targets")
	f.IntVar(&o.series, "series", 1000, "series of each target")
	f.DurationVar(&o.interval, "interval", 10*time.Second, "scrape interval")
	f.DurationVar(&o.warmup, "warmup", 3*time.Minute, "time between the first scrape and the measured window")
	f.DurationVar(&o.window, "window", 10*time.Minute, "measured window")
	f.DurationVar(&o.idle, "idle", 3*time.Minute, "length of the idle scenario")
	f.IntVar(&o.starts, "starts", 10, "starts on an empty directory, of each side")
	f.IntVar(&o.replays, "replays", 3, "starts after kill -9, of each side")
	f.DurationVar(&o.readyTimeout, "ready-timeout", 5*time.Minute, "how long a process may take to become ready")
	f.StringVar(&o.dir, "dir", "", "existing directory in which one for data, configuration and logs is made (default: the temporary directory)")
	f.BoolVar(&o.keep, "keep", false, "keep the directory; it is kept anyway when something goes wrong")
	parts, replicas := o.notify.flags(f)
	o.heal.flags(f)
	o.rolling.flags(f)
	sides := o.query.flags(f)
	o.snapshot.flags(f)
	bucketParts := o.bucket.flags(f)
	f.StringVar(&o.profiles, "profiles", "", "after the measured window, write a CPU profile of a minute and a heap profile of both sides into this directory")
	f.StringVar(&o.pgo, "pgo", "", "measure nothing; collect a CPU profile of tocsin under load and replay and write it to this file")
	f.DurationVar(&o.pgoProfileLength, "pgo-length", 4*time.Minute, "length of the profile under load")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.smoke {
		o.targets, o.series, o.interval = 20, 200, 2*time.Second
		o.warmup, o.window, o.idle = 8*time.Second, 12*time.Second, 10*time.Second
		o.starts, o.replays = 2, 1
		o.pgoProfileLength = 5 * time.Second
		o.notify.shorten(replicas)
		o.heal.shorten()
		o.rolling.shorten()
		o.query.shorten()
		o.snapshot.shorten()
		o.bucket.shorten()
	}
	if err := errors.Join(o.heal.check(), o.rolling.check(), o.query.check(*sides), o.snapshot.check(), o.bucket.check(*bucketParts)); err != nil {
		return o, err
	}
	if err := o.notify.check(*parts, *replicas); err != nil {
		return o, err
	}
	if o.targets < 1 || o.targets > maxTargets {
		return o, fmt.Errorf("-targets: %d is not within 1 and %d", o.targets, maxTargets)
	}
	if o.series < minSeries || o.series > maxSeries {
		return o, fmt.Errorf("-series: %d is not within %d and %d", o.series, minSeries, maxSeries)
	}
	if o.interval < time.Second {
		return o, fmt.Errorf("-interval: %s is less than 1s", o.interval)
	}
	if o.starts < 1 || o.replays < 1 {
		return o, errors.New("-starts and -replays: must be at least 1")
	}
	o.scenarios = strings.Split(scenarios, ",")
	for _, s := range o.scenarios {
		if !slices.Contains(scenarioNames, s) {
			return o, fmt.Errorf("-scenarios: %q is not one of %s", s, strings.Join(scenarioNames, ", "))
		}
	}
	return o, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	b := &bench{options: o, out: stdout, replayable: map[string]string{}}
	if err := b.findBinaries(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(o.dir, "tocsin-bench-"); err != nil { // a new one always: what is inside gets deleted
		return fmt.Errorf("create the directory: %w", err)
	}
	if b.dir, err = filepath.Abs(b.dir); err != nil {
		return fmt.Errorf("resolve -dir: %w", err)
	}
	defer func() {
		switch {
		case err != nil:
			fmt.Fprintln(stderr, "bench: logs and data are kept in", b.dir)
		case !b.keep:
			err = os.RemoveAll(b.dir)
		}
	}()
	b.header(ctx)
	if b.pgo != "" {
		return b.profileGuided(ctx)
	}
	for _, s := range b.scenarios {
		run := map[string]func(context.Context) error{
			"idle": b.runIdle, "start": b.runStart, "scrape": b.runScrape, "replay": b.runReplay, "notify": b.runNotify,
			"heal": b.runHeal, "rolling": b.runRolling, "query": b.runQuery, "snapshot": b.runSnapshot, "bucket": b.runBucket,
		}[s]
		if err := run(ctx); err != nil {
			return fmt.Errorf("scenario %s: %w", s, err)
		}
	}
	return nil
}

// findBinaries resolves the paths once, so that a missing one is told before half an hour of measuring.
func (b *bench) findBinaries() error {
	for _, f := range []struct {
		path       *string
		name, hint string
		needed     bool
	}{
		{&b.tocsin, "-tocsin", "build it with make", !b.control},
		{&b.prometheus, "-prometheus", "build it from e2e/peers", b.pgo == ""},
		{&b.alertmanager, "-alertmanager", "install Debian's package prometheus-alertmanager", b.pgo == "" && b.needsAlertmanager()},
		{&b.thanos, "-thanos", "build it with make peers", b.pgo == "" && (slices.Contains(b.scenarios, "query") || b.needsBucket("upload", "read", "memory"))},
		{&b.versitygw, "-versitygw", "build it with make peers", b.pgo == "" && b.needsBucket("upload", "read")},
	} {
		if !f.needed {
			continue
		}
		p, err := exec.LookPath(*f.path)
		if err != nil {
			return fmt.Errorf("%s: %w; %s", f.name, err, f.hint)
		}
		if p, err = filepath.Abs(p); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		*f.path = p
	}
	return nil
}

// needsAlertmanager tells whether a scenario has the whole stock stack.
func (o *options) needsAlertmanager() bool {
	return slices.ContainsFunc(o.scenarios, func(s string) bool {
		return !slices.Contains([]string{"heal", "rolling", "query", "snapshot", "bucket"}, s)
	})
}

// header tells the machine and the versions: a ratio without them cannot be compared later.
func (b *bench) header(ctx context.Context) {
	fmt.Fprintf(b.out, "machine: %d CPUs, %s, load average %s\n", runtime.NumCPU(), cpuModel(), loadAverage())
	ask := []struct {
		name string
		args []string
	}{{b.tocsin, []string{"version"}}, {b.prometheus, []string{"--version"}}, {b.alertmanager, []string{"--version"}}}
	for i, a := range ask {
		if (i == 0 && b.control) || (i > 0 && b.pgo != "") || (i == 2 && !b.needsAlertmanager()) {
			continue
		}
		text, err := exec.CommandContext(ctx, a.name, a.args...).CombinedOutput() // Alertmanager prints to standard error
		first, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
		if err != nil {
			first = err.Error()
		}
		fmt.Fprintf(b.out, "%s: %s\n", filepath.Base(a.name), first)
	}
	if b.control {
		fmt.Fprintln(b.out, "CONTROL RUN: the stock stack stands on both sides, every ratio should be 1")
	}
	if b.smoke {
		fmt.Fprintln(b.out, "SMOKE RUN: the figures mean nothing")
	}
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// sleep waits for d and answers early with an error when the run is interrupted.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
