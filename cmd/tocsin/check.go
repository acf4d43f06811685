package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/tocsin-io/tocsin/appliance"
	"github.com/tocsin-io/tocsin/appliance/config"
)

type checkCmd struct {
	Features []string `name:"enable-feature" sep:"," placeholder:"FEATURE" help:"The features that the replica runs with: rules may need them."`

	File string `arg:"" help:"Configuration file (tocsin.yml) to check." placeholder:"FILE"`
}

// Run loads the file as `tocsin run` would. Its error is every finding; what run would warn of goes to stderr.
func (c *checkCmd) Run(k *kong.Context, w io.Writer) error {
	if err := (&runCmd{Features: c.Features}).applyFeatures(&appliance.Options{}); err != nil {
		return usageError{err}
	}
	self := config.Self{Address: "localhost:9090", Instance: "localhost:9090"}
	cfg, err := config.Load(c.File, self, slog.New(warnings{w: k.Stderr}))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s is good: %d scrape jobs, %d rule files, %d receivers, %d federation upstreams\n",
		c.File, len(cfg.ScrapeConfigs), len(cfg.RuleFiles), len(cfg.Alertmanager.Receivers), len(cfg.Federation))
	return err
}

// warnings prints what is logged as a warning, or worse, as a line for people: no time, no level.
type warnings struct {
	w     io.Writer
	attrs []slog.Attr
}

// Enabled leaves out what is only told to whoever follows a replica.
func (warnings) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

// Handle prints one line, with the fields behind the message.
func (h warnings) Handle(_ context.Context, r slog.Record) error {
	var fields []string
	show := func(a slog.Attr) bool {
		fields = append(fields, a.Key+"="+a.Value.Resolve().String())
		return true
	}
	for _, a := range h.attrs {
		show(a)
	}
	r.Attrs(show)
	line := "warning: " + r.Message
	if len(fields) > 0 {
		line += " (" + strings.Join(fields, ", ") + ")"
	}
	_, err := fmt.Fprintln(h.w, line)
	return err
}

// WithAttrs keeps fields for every line.
func (h warnings) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.attrs = append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)
	return h
}

// WithGroup has no place in a line.
func (h warnings) WithGroup(string) slog.Handler { return h }
