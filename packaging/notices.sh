#!/bin/sh
# Prints the licences and notices of all that the binary has in it and that others wrote: the Go modules that the program
# imports, and the packages of the browser UI. Identical texts are printed once, under the names of all who use them.
set -eu
cd "$(dirname "$0")/.."
list=$(mktemp)
trap 'rm -f "$list"' EXIT
go list -deps -f '{{with .Module}}{{if not .Main}}{{with .Replace}}{{.Path}} {{.Version}}	{{.Dir}}{{else}}{{.Path}} {{.Version}}	{{.Dir}}{{end}}{{end}}{{end}}' ./cmd/tocsin | sort -u > "$list"
[ ! -d web/ui/node_modules ] || npm --prefix web/ui ls --omit=dev --all --parseable 2>/dev/null | sed 1d | sed -E 's|(.*/node_modules/)(.*)|\2\t&|' >> "$list"
printf 'Go itself\t%s\n' "$(go env GOROOT)" >> "$list"
python3 - "$list" <<'END'
import glob, os, re, sys
texts = {}
for line in open(sys.argv[1], encoding="utf-8"):
    name, folder = line.rstrip("\n").split("\t")
    files = [f for f in sorted(os.listdir(folder)) if re.match(r"(?i)(licen[cs]e|copying|notice|copyright)", f) and os.path.isfile(os.path.join(folder, f))]
    # Where a module lies in a part of its repository, its licence may be at the root of that alone.
    if not files:
        print(f"notices.sh: {name} has no licence file in its module", file=sys.stderr)
        texts.setdefault("(its module has no licence file of its own: see its repository)", []).append(name)
    for f in files:
        with open(os.path.join(folder, f), encoding="utf-8", errors="replace") as h:
            texts.setdefault(h.read().replace("\r\n", "\n").strip(), []).append(name)
for text, names in texts.items():
    print("=" * 100, *names, "-" * 100, text, "", sep="\n")
END
