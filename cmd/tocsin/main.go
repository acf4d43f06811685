// Command tocsin is the whole appliance: `tocsin run` is a replica, and the other commands check what it would run.
//
// It owns the command line: flags become options, signals become a context and reloads, errors become exit codes.
// It wires nothing; package appliance does.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/alecthomas/kong"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// Exit codes: what was asked for is wrong, and what was right to ask for did not work.
const (
	exitFailed = 1
	exitUsage  = 2
)

// Set by the linker.
var version, revision, branch, buildDate string

// grammar is the command line.
type grammar struct {
	Run     runCmd     `cmd:"" help:"Run a replica: scrape, federate, store, evaluate rules, route alerts, answer queries."`
	Check   checkCmd   `cmd:"" help:"Check a configuration file with everything that it names, and print every mistake at once."`
	Drain   drainCmd   `cmd:"" help:"Wait until this replica may be stopped without the cluster missing a second one, and reserve that."`
	Cluster clusterCmd `cmd:"" help:"Prepare a cluster of replicas."`
	Config  configCmd  `cmd:"" help:"Change the configuration that the replicas have from the bucket."`
	Bucket  bucketCmd  `cmd:"" help:"Look at the blocks in the bucket."`
	Version versionCmd `cmd:"" help:"Print the version, and those of the programs that are built in."`
	Docs    docsCmd    `cmd:"" hidden:"" help:"Print a generated manual or completion."`
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is main with its surroundings as arguments.
func run(args []string, stdout, stderr io.Writer) int {
	var g grammar
	exit := -1
	parser, err := newParser(&g, kong.Writers(stdout, stderr), kong.Exit(func(code int) { exit = code }))
	if err != nil {
		fmt.Fprintln(stderr, "tocsin:", err)
		return exitFailed
	}
	ctx, err := parser.Parse(args)
	// --help prints and asks for the exit while it parses.
	if exit >= 0 {
		return exit
	}
	if err != nil {
		fmt.Fprintf(stderr, "tocsin: %v; see `tocsin --help` and `tocsin run --help`\n", err)
		return exitUsage
	}
	ctx.BindTo(stdout, (*io.Writer)(nil))
	ctx.Bind(ctx)
	err = ctx.Run()
	var findings config.Findings
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &findings):
		fmt.Fprintln(stderr, err)
		return exitUsage
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "tocsin: %v; see `tocsin --help`\n", err)
		return exitUsage
	default:
		fmt.Fprintln(stderr, "tocsin:", err)
		return exitFailed
	}
}

// usageError says that the command line is wrong in a way that the grammar does not know.
type usageError struct{ error }

func newParser(g *grammar, opts ...kong.Option) (*kong.Kong, error) {
	opts = append([]kong.Option{
		kong.Name("tocsin"),
		kong.Description("A monitoring appliance: Prometheus, Alertmanager, federation and object storage in one process."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.Vars{"features": featureNames()},
	}, opts...)
	k, err := kong.New(g, opts...)
	if err != nil {
		return nil, fmt.Errorf("read the command line's grammar: %w", err)
	}
	return k, nil
}

type versionCmd struct{}

func (versionCmd) Run(w io.Writer) error {
	v := buildVersion()
	_, err := fmt.Fprintf(w, "tocsin, version %s (branch: %s, revision: %s)\n  build date:   %s\n  go version:   %s\n  platform:     %s/%s\n  prometheus:   %s\n  alertmanager: %s\n",
		v.Version, v.Branch, v.Revision, v.BuildDate, runtime.Version(), runtime.GOOS, runtime.GOARCH,
		appliancePrometheus, applianceAlertmanager)
	return err
}
