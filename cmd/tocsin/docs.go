package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// docsCmd prints the manuals that docs/ and packaging/ hold, so that a test can compare them.
type docsCmd struct {
	Manual string `arg:"" enum:"cli,config,man,bash,zsh" help:"cli or config, which are in docs/; man, bash or zsh, which are in packaging/."`
}

// Run prints the manual.
func (c *docsCmd) Run(k *kong.Context, w io.Writer) error {
	text := ""
	switch c.Manual {
	case "cli":
		text = cliManual(k.Model)
	case "config":
		text = config.Manual()
	case "man":
		text = manPage(k.Model)
	case "bash":
		text = bashCompletion(k.Model)
	case "zsh":
		text = zshCompletion(k.Model)
	}
	_, err := io.WriteString(w, text)
	return err
}

// cliManual renders the grammar as Markdown.
func cliManual(app *kong.Application) string {
	var b strings.Builder
	b.WriteString("# Command line\n\nGenerated from the program by `make docs`. Do not edit.\n\n" + app.Help + "\n")
	b.WriteString("\nFlags hold what needs a restart; what can be reloaded is in the configuration file (see\n" +
		"[configuration.md](configuration.md)); nothing is in both. Flags bear Prometheus's names with their meaning;\n" +
		"Alertmanager's carry the prefix `alertmanager.`.\n\n" +
		"Exit codes: 0 done, 1 it did not work, 2 the command line or the configuration is wrong.\n")
	for _, cmd := range app.Leaves(true) {
		fmt.Fprintf(&b, "\n## tocsin %s\n\n%s\n", cmd.Summary(), cmd.Help)
		if cmd.Detail != "" {
			fmt.Fprintf(&b, "\n%s\n", cmd.Detail)
		}
		var rows []string
		for _, f := range shownFlags(cmd) {
			name := f.Name
			if f.Tag.Negatable != "" {
				name = "[no-]" + name
			}
			def := ""
			if f.HasDefault {
				def = "`" + f.Default + "`"
			}
			rows = append(rows, fmt.Sprintf("| `--%s` | %s | %s |\n", name, def, strings.ReplaceAll(f.Help, "|", "\\|")))
		}
		if len(rows) > 0 {
			b.WriteString("\n| Flag | Default | Meaning |\n|---|---|---|\n" + strings.Join(rows, ""))
		}
	}
	return b.String()
}

// shownFlags are those that a manual tells of.
func shownFlags(cmd *kong.Node) []*kong.Flag {
	return slices.DeleteFunc(slices.Clone(cmd.Flags), func(f *kong.Flag) bool { return f.Hidden || f.Name == "help" })
}

// flagValues are the values of the flags of the command that runs, for /api/v1/status/flags.
func flagValues(k *kong.Context) map[string]string {
	values := map[string]string{}
	for _, f := range k.Selected().Flags {
		values[f.Name] = fmt.Sprint(f.Target.Interface())
	}
	return values
}
