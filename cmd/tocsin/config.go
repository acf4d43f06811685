package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"os/user"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/tocsin-io/tocsin/appliance/bucket"
	"github.com/tocsin-io/tocsin/appliance/config"
)

// configCmd holds what is done with a configuration that the replicas have from the bucket.
type configCmd struct {
	Push     pushCmd     `cmd:"" help:"Check the configuration in a folder, make it the one in the bucket, and wait until all replicas have it."`
	Pull     pullCmd     `cmd:"" help:"Write the configuration in the bucket to a folder."`
	Diff     diffCmd     `cmd:"" help:"List the files that a push of a folder would change."`
	Rollback rollbackCmd `cmd:"" help:"Make an earlier configuration the current one again: the one before the last push, or the one that --to names. What it replaces is kept, so that a second rollback undoes the first."`
}

// depotFlags say where the configuration is.
type depotFlags struct {
	ConfigFile string `name:"config.file" placeholder:"FILE" default:"/etc/tocsin/tocsin.yml" help:"The replicas' own configuration file, with bucket and config_from."`
}

// waitFlags are for commands after which the replicas switch over.
type waitFlags struct {
	URL     string        `name:"url" default:"http://localhost:9090" help:"Any replica, to ask how far all of them are."`
	Wait    bool          `name:"wait" default:"true" negatable:"" help:"Wait until all replicas have it."`
	Timeout time.Duration `name:"timeout" default:"2m" help:"How long to wait."`
}

func (f depotFlags) open(k *kong.Context) (bucket.Depot, *config.Config, error) {
	logger := slog.New(warnings{w: k.Stderr})
	own, err := config.Load(f.ConfigFile, checkedSelf, logger)
	if err != nil {
		return bucket.Depot{}, nil, err
	}
	if own.ConfigFrom == nil {
		return bucket.Depot{}, nil, usageError{fmt.Errorf("%s has no section config_from: its replicas do not have their configuration from a bucket", f.ConfigFile)}
	}
	objects, err := bucket.NewObjects(logger, nil, own.Bucket)
	if err != nil {
		return bucket.Depot{}, nil, err
	}
	return bucket.Depot{Bucket: objects, Prefix: own.ConfigFrom.Prefix, Who: whoami(), Version: buildVersion().Version}, own, nil
}

// checkedSelf stands for the replica in checks.
var checkedSelf = config.Self{Address: "localhost:9090", Instance: "localhost:9090"}

// whoami is for people who wonder who pushed that.
func whoami() string {
	name := "somebody"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

type pushCmd struct {
	depotFlags
	waitFlags
	Dir string `arg:"" placeholder:"DIR" help:"Folder with tocsin.yml and what it names. Hidden files stay behind."`
}

// Run refuses what a replica would refuse, before anything is changed.
func (c *pushCmd) Run(k *kong.Context, w io.Writer) error {
	ctx, stop := interruptible()
	defer stop()
	depot, own, err := c.open(k)
	if err != nil {
		return err
	}
	if _, err := config.LoadBelow(own, c.Dir, checkedSelf, slog.New(warnings{w: k.Stderr})); err != nil {
		return err
	}
	hash, err := depot.Push(ctx, c.Dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "pushed %s\n", bucket.ShortHash(hash))
	return c.wait(ctx, w, hash)
}

type pullCmd struct {
	depotFlags
	Force bool   `help:"Replace files that are there."`
	Dir   string `arg:"" placeholder:"DIR" help:"Folder to write to, new or empty."`
}

// Run writes the files.
func (c *pullCmd) Run(k *kong.Context, w io.Writer) error {
	ctx, stop := interruptible()
	defer stop()
	depot, _, err := c.open(k)
	if err != nil {
		return err
	}
	hash, n, err := depot.Pull(ctx, c.Dir, c.Force)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "pulled %s: %d files\n", bucket.ShortHash(hash), n)
	return nil
}

type diffCmd struct {
	depotFlags
	Dir string `arg:"" placeholder:"DIR" help:"Folder to compare with the bucket."`
}

// Run prints one line for each file that differs.
func (c *diffCmd) Run(k *kong.Context, w io.Writer) error {
	ctx, stop := interruptible()
	defer stop()
	depot, _, err := c.open(k)
	if err != nil {
		return err
	}
	changes, err := depot.Diff(ctx, c.Dir)
	if err != nil {
		return err
	}
	for _, ch := range changes {
		fmt.Fprintf(w, "%-8s %s\n", ch.Kind, ch.Name)
	}
	if len(changes) == 0 {
		fmt.Fprintln(w, "no difference")
	}
	return nil
}

type rollbackCmd struct {
	depotFlags
	waitFlags
	To   string `placeholder:"HASH" help:"Beginning of the hash of the configuration to go back to."`
	List bool   `help:"List the earlier configurations and change nothing."`
}

// Run pushes an earlier configuration.
func (c *rollbackCmd) Run(k *kong.Context, w io.Writer) error {
	ctx, stop := interruptible()
	defer stop()
	depot, _, err := c.open(k)
	if err != nil {
		return err
	}
	if c.List {
		all, err := depot.History(ctx)
		for _, e := range all {
			fmt.Fprintf(w, "%s  replaced at %s\n", e.Hash, e.At.Format("2006-01-02 15:04:05 UTC"))
		}
		return err
	}
	hash, err := depot.Rollback(ctx, c.To)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "rolled back to %s\n", bucket.ShortHash(hash))
	return c.wait(ctx, w, hash)
}

func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
}

// member is what the cluster API says of a replica.
type member struct {
	Name   string `json:"name"`
	Alive  bool   `json:"alive"`
	Self   bool   `json:"self"`
	HTTP   string `json:"http_address"`
	Config *struct {
		Hash  string `json:"hash"`
		Seen  string `json:"seen_hash"`
		State string `json:"state"`
	} `json:"config"`
}

// wait prints how far each replica is, a line for each change, until all that live have it or one refuses it.
func (f waitFlags) wait(ctx context.Context, w io.Writer, hash string) error {
	if !f.Wait {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.Timeout)
	defer cancel()
	base, short := strings.TrimSuffix(f.URL, "/"), bucket.ShortHash(hash)
	said := map[string]string{}
	var (
		last    error
		waiting []string
	)
	for {
		var answer struct {
			Members []member `json:"members"`
		}
		last = getJSON(ctx, base+"/api/tocsin/v1/cluster", &answer)
		waiting = nil
		var refused []string
		for _, m := range answer.Members {
			state := "waiting"
			switch {
			case !m.Alive:
				state = "is not there, and takes it when it comes back"
			case m.Config == nil:
				state = "has no configuration from the bucket"
			case m.Config.Hash == short:
				state = "ok"
			case m.Config.State == bucket.StateRefused && m.Config.Seen == short:
				state = "refused: " + reason(ctx, base, m)
				refused = append(refused, m.Name)
			default:
				waiting = append(waiting, m.Name)
			}
			if said[m.Name] != state {
				said[m.Name] = state
				fmt.Fprintf(w, "%-24s %s\n", m.Name, state)
			}
		}
		if last == nil && len(waiting) == 0 && len(answer.Members) > 0 {
			if len(refused) > 0 {
				return fmt.Errorf("%s is refused by %s; they go on with what they had: correct it and push again, or `tocsin config rollback`", short, strings.Join(refused, ", "))
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s is in the bucket, but after %s these replicas have not got it: %s", short, f.Timeout,
				cmp.Or(strings.Join(waiting, ", "), "it is not known which")), last)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// reason asks a replica why it refuses. It may not be reachable from here.
func reason(ctx context.Context, base string, m member) string {
	if !m.Self && m.HTTP != "" {
		base = "http://" + m.HTTP
	}
	var st bucket.SourceStatus
	if err := getJSON(ctx, base+"/api/tocsin/v1/config", &st); err != nil || st.Problem == "" {
		return "see its status page"
	}
	return st.Problem
}

func getJSON(ctx context.Context, url string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	defer func() { _ = resp.Body.Close() }() // It was only read.
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask %s: %s", url, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(v); err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	return nil
}
