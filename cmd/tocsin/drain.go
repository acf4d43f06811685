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
	"strings"
	"time"

	"github.com/prometheus/common/config"
	"github.com/prometheus/common/model"

	"github.com/tocsin-io/tocsin/appliance/drain"
)

const (
	// drainPath is where a replica is asked.
	drainPath = "/api/tocsin/v1/drain"
	// maxRefusal bounds what is shown of an answer that is none of a replica.
	maxRefusal = 500
	// maxLine bounds one line of an answer.
	maxLine = 1 << 20
	// silence is how long a replica may say nothing: it does so every five seconds.
	silence = 30 * time.Second
)

type drainCmd struct {
	URL        string         `name:"url" default:"http://127.0.0.1:9090" placeholder:"URL" help:"The replica that is to be stopped, with its route prefix."`
	HTTPConfig string         `name:"http.config.file" placeholder:"FILE" help:"How to reach it: TLS, basic auth or a token, in the format of promtool's flag of this name."`
	Timeout    model.Duration `name:"timeout" default:"10m" help:"How long to wait for the other replicas. 0s is no limit."`
	Force      bool           `name:"force" help:"Do not wait, and succeed: only say what would have been waited for. The replica is marked all the same, so that the others wait for it."`
	Cancel     bool           `name:"cancel" help:"Give back what an earlier call got or still waits for: the replica is not going to be stopped after all."`
}

// Help is the manual's further text.
func (drainCmd) Help() string {
	return `Ask before this replica is stopped or restarted. It waits, and says for what, until all other replicas of the cluster are
there, ready and whole, and none of them is about to be stopped; then it returns, and the others let no further one go until this one
is back and whole, or ten minutes have passed. It stops nothing. Interrupted, or when the time is over, it gives up its place.

Exit codes: 0 the replica may be stopped; 1 it may not, or the replica could not be asked; 2 the command line is wrong.`
}

// Run asks the replica, and prints what it waits for.
func (c *drainCmd) Run(w io.Writer) error {
	ctx, stop := interruptible()
	defer stop()
	client, u, err := c.client()
	if err != nil {
		return usageError{err}
	}
	if c.Cancel {
		return c.cancel(ctx, client, u)
	}
	if c.Force {
		u.RawQuery = "force=true"
	}
	if c.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(c.Timeout), errTimeout)
		defer cancel()
	}
	err = c.ask(ctx, client, u, w)
	if err != nil && c.Force {
		fmt.Fprintf(w, "forced, although %v\n", err)
		return nil
	}
	return err
}

var (
	errTimeout = errors.New("the time is over")
	errSilence = fmt.Errorf("it has said nothing for %s", silence)
)

func (c *drainCmd) client() (*http.Client, *url.URL, error) {
	u, err := url.Parse(c.URL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, nil, fmt.Errorf("--url=%q is not a whole http or https URL", c.URL)
	}
	u.Path = strings.TrimRight(u.Path, "/") + drainPath
	how := &config.HTTPClientConfig{FollowRedirects: false}
	if c.HTTPConfig != "" {
		if how, _, err = config.LoadHTTPConfigFile(c.HTTPConfig); err != nil {
			return nil, nil, fmt.Errorf("read --http.config.file: %w", err)
		}
	}
	client, err := config.NewClientFromConfig(*how, "tocsin drain", config.WithKeepAlivesDisabled())
	if err != nil {
		return nil, nil, fmt.Errorf("use --http.config.file: %w", err)
	}
	return client, u, nil
}

// ask is over when the last line has come.
func (c *drainCmd) ask(ctx context.Context, client *http.Client, u *url.URL, w io.Writer) error {
	ctx, hangUp := context.WithCancelCause(ctx)
	defer hangUp(nil)
	quiet := time.AfterFunc(silence, func() { hangUp(errSilence) })
	defer quiet.Stop()
	resp, err := send(ctx, client, http.MethodPost, u)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // All was read, or is not wanted.
	var last drain.Line
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		quiet.Reset(silence)
		if err := json.Unmarshal(lines.Bytes(), &last); err != nil {
			return fmt.Errorf("the answer of %s cannot be read: %w", u.Host, err)
		}
		switch last.State {
		case drain.StateDrained:
			fmt.Fprintln(w, last.Message)
			return nil
		case drain.StateFailed:
			return errors.New(last.Message)
		}
		fmt.Fprintln(w, last.Message)
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errTimeout):
		return fmt.Errorf("not within %s: the replica goes on; it was still %s", c.Timeout, last.Message)
	case errors.Is(cause, errSilence):
		return fmt.Errorf("the replica at %s hangs: %w", u.Host, cause)
	case cause != nil:
		return errors.New("interrupted: the replica goes on")
	case lines.Err() != nil:
		return fmt.Errorf("the answer of %s has broken off: %w", u.Host, lines.Err())
	}
	return fmt.Errorf("the answer of %s has ended too early", u.Host)
}

func (c *drainCmd) cancel(ctx context.Context, client *http.Client, u *url.URL) error {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	resp, err := send(ctx, client, http.MethodDelete, u)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// send returns an answer that is one of a replica.
func send(ctx context.Context, client *http.Client, method string, u *url.URL) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", u.Host, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("the replica cannot be asked, and may not run: %w", err)
	}
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusConflict {
		return resp, nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	err = errors.Join(err, resp.Body.Close())
	if resp.StatusCode == http.StatusNotFound {
		return nil, errors.Join(fmt.Errorf("%s has nothing at %s: --url lacks the route prefix, or that replica is of a release without draining", u.Host, u.Path), err)
	}
	return nil, errors.Join(fmt.Errorf("%s answers %s: %s", u.Host, resp.Status, strings.TrimSpace(shown(string(b)))), err)
}
