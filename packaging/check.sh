#!/bin/sh
# Checks the package that is built: check.sh PACKAGE.deb. The units as systemd reads them, how much they leave open, and
# what lintian says. Needs systemd, lintian and gpg's neighbours of `make test-deps`.
set -eu
[ $# = 1 ] || { echo "usage: $0 PACKAGE.deb" >&2; exit 2; }
deb=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
dpkg-deb -x "$deb" "$work"

for unit in "$work"/lib/systemd/system/*.service; do
  # What a unit starts must exist, and is not installed here.
  sed -i -e "s|=/usr/bin/tocsin|=$work/usr/bin/tocsin|" -e "s|=/usr/lib/tocsin/|=$work/usr/lib/tocsin/|" -e '/^Documentation=/d' "$unit"
  # A value that systemd does not know is a warning for it, and a failure for us.
  said=$(systemd-analyze verify --recursive-errors=yes --man=no "$unit" 2>&1) && [ -z "$said" ] || {
    echo "systemd-analyze verify $(basename "$unit"): $said" >&2; exit 1; }
done
systemd-analyze security --no-pager --offline=true --threshold=20 "$work/lib/systemd/system/tocsin.service" > "$work/exposure" || {
  cat "$work/exposure" >&2; exit 1; }
tail -1 "$work/exposure"

# Which the package is said to be without.
if file -L "$work/usr/bin/tocsin" | grep -q 'dynamically linked'; then echo "the binary is not static" >&2; exit 1; fi
for f in "$work"/usr/lib/tocsin/* "$here"/*.sh; do sh -n "$f"; done
bash -n "$work/usr/share/bash-completion/completions/tocsin"
lintian --allow-root --fail-on error,warning "$deb"
echo "$(basename "$deb") is good"
