package main

import (
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

// manPage renders the grammar as tocsin(1). It has no date, so that it changes only with the program.
func manPage(app *kong.Application) string {
	var b strings.Builder
	b.WriteString(`.\" Generated from the program by make docs. Do not edit.
.TH TOCSIN 1 "" "Tocsin" "User Commands"
.SH NAME
tocsin \- monitoring appliance
.SH SYNOPSIS
.B tocsin
.I command
.RI [ flags ]
.SH DESCRIPTION
` + troff(app.Help) + `
Flags hold what needs a restart; what can be reloaded is in the configuration file; nothing is in both.
Flags bear Prometheus's names with their meaning; Alertmanager's carry the prefix
.BR alertmanager. .
.SH COMMANDS
`)
	for _, cmd := range app.Leaves(true) {
		fmt.Fprintf(&b, ".SS \"tocsin %s\"\n%s\n", troff(cmd.Summary()), troff(cmd.Help))
		for _, f := range shownFlags(cmd) {
			name := "--" + f.Name
			if f.Tag.Negatable != "" {
				name = "--[no-]" + f.Name
			}
			fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", troff(name), troff(f.Help))
			if f.HasDefault && f.Default != "" {
				fmt.Fprintf(&b, "Default: %s.\n", troff(f.Default))
			}
		}
	}
	b.WriteString(`.SH EXIT STATUS
0: done; 1: it did not work; 2: the command line or the configuration is wrong.
.SH SIGNALS
.B tocsin run
reloads its configuration on SIGHUP, and stops cleanly on SIGTERM and SIGINT.
.SH FILES
.TP
.I /etc/tocsin/tocsin.yml
The configuration, which names
.I prometheus.yml
and
.I alertmanager.yml
beside it.
.TP
.I /etc/default/tocsin
Further flags of the service.
.TP
.I /var/lib/tocsin
The data of the service.
.SH SEE ALSO
.IR /usr/share/doc/tocsin/operations.md ,
.I /usr/share/doc/tocsin/configuration.md
`)
	return b.String()
}

// troff has text taken literally: no control line, no escape, and dashes that can be copied into a shell.
func troff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\"", `\(dq`, "`", "").Replace(strings.TrimSpace(s))
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

// completions lists the commands that have something to complete, by their path.
func completions(n *kong.Node, path string, each func(path string, n *kong.Node)) {
	each(path, n)
	for _, c := range n.Children {
		if !c.Hidden && c.Type == kong.CommandNode {
			completions(c, path+" "+c.Name, each)
		}
	}
}

// enum lists the values of a flag, where they are few.
func enum(f *kong.Flag) []string {
	if f.Enum == "" {
		return nil
	}
	return strings.Split(f.Enum, ",")
}

// flagNames are a flag as it is typed, with = where a value follows.
func flagNames(f *kong.Flag) []string {
	if !f.IsBool() {
		return []string{"--" + f.Name + "="}
	}
	if f.Tag.Negatable != "" {
		return []string{"--" + f.Name, "--no-" + f.Name}
	}
	return []string{"--" + f.Name}
}

// bashCompletion renders the grammar as a completion for bash, which uses bash-completion's own functions.
func bashCompletion(app *kong.Application) string {
	var paths, words, values strings.Builder
	completions(app.Node, "", func(path string, n *kong.Node) {
		if path != "" {
			fmt.Fprintf(&paths, "            '%s') path=\"$path $w\" ;;\n", path)
		}
		var w []string
		for _, c := range n.Children {
			if !c.Hidden && c.Type == kong.CommandNode {
				w = append(w, c.Name)
			}
		}
		for _, f := range shownFlags(n) {
			w = append(w, flagNames(f)...)
			if e := enum(f); e != nil {
				fmt.Fprintf(&values, "        '%s --%s') COMPREPLY=($(compgen -W '%s' -- \"$cur\")); return ;;\n", path, f.Name, strings.Join(e, " "))
			}
		}
		fmt.Fprintf(&words, "        '%s') words='%s' ;;\n", path, strings.Join(append(w, "--help"), " "))
	})
	return `# bash completion for tocsin. Generated from the program by make docs. Do not edit.
_tocsin() {
    local cur prev words cword split path= w
    _init_completion -s || return
    for w in "${words[@]:1:cword-1}"; do
        case "$path $w" in
` + paths.String() + `        esac
    done
    case "$path $prev" in
` + values.String() + `    esac
    if $split; then
        _filedir
        return
    fi
    case "$path" in
` + words.String() + `    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace
    elif [[ ${#COMPREPLY[@]} -eq 0 ]]; then
        _filedir
    fi
} &&
    complete -F _tocsin tocsin
`
}

// zshCompletion renders the grammar as a completion for zsh.
func zshCompletion(app *kong.Application) string {
	quote := func(s string) string { return strings.ReplaceAll(s, "'", `'\''`) }
	// Brackets and colons are what _arguments and _describe cut at.
	text := func(s string) string { return quote(strings.NewReplacer("[", "(", "]", ")", ":", `\:`).Replace(s)) }
	var paths, specs strings.Builder
	completions(app.Node, "", func(path string, n *kong.Node) {
		if path != "" {
			fmt.Fprintf(&paths, "      '%s') path_=\"$path_ $w\" ;;\n", path)
		}
		fmt.Fprintf(&specs, "    '%s')\n", path)
		for _, c := range n.Children {
			if !c.Hidden && c.Type == kong.CommandNode {
				fmt.Fprintf(&specs, "      commands+=('%s:%s')\n", c.Name, text(c.Help))
			}
		}
		for _, f := range shownFlags(n) {
			for _, name := range flagNames(f) {
				spec := name + "[" + text(f.Help) + "]"
				switch e := enum(f); {
				case e != nil:
					spec += ":value:(" + strings.Join(e, " ") + ")"
				case !f.IsBool():
					spec += ":value:_files"
				}
				fmt.Fprintf(&specs, "      flags+=('%s')\n", spec)
			}
		}
		specs.WriteString("      ;;\n")
	})
	return `#compdef tocsin
# Generated from the program by make docs. Do not edit.
_tocsin() {
  local path_= w
  local -a commands flags
  flags=('--help[Show help]')
  for w in "${(@)words[2,CURRENT-1]}"; do
    case "$path_ $w" in
` + paths.String() + `    esac
  done
  case "$path_" in
` + specs.String() + `  esac
  (( $#commands )) && _describe command commands
  _arguments -S $flags '*:file:_files'
}
_tocsin "$@"
`
}
