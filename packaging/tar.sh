#!/bin/sh
# Packs a binary that is built already into a tarball with what belongs to it: tar.sh BINARY OS ARCH VERSION OUT.
set -eu
[ $# = 5 ] || { echo "usage: $0 BINARY OS ARCH VERSION OUT" >&2; exit 2; }
top=$(cd "$(dirname "$0")/.." && pwd)
name=tocsin_$4_$2_$3
binary=$(realpath "$1")
mkdir -p "$5"
out=$(realpath "$5")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
mkdir -p "$work/$name/docs"
cp "$binary" "$work/$name/tocsin"
cd "$top"
cp -a LICENSE README.md CHANGELOG.md packaging/etc packaging/tocsin.1 packaging/completion "$work/$name/"
cp -a docs/*.md "$work/$name/docs/"
if [ "$2" = linux ]; then
  mkdir "$work/$name/systemd"
  cp -a packaging/debian/tocsin.service packaging/debian/tocsin.sysusers packaging/volume/* "$work/$name/systemd/"
fi
packaging/notices.sh > "$work/$name/third-party-notices.txt"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" -cf - "$name" | gzip -6n > "$out/$name.tar.gz"
cd "$out"
sha256sum tocsin_*.tar.gz > SHA256SUMS
echo "$out/$name.tar.gz"
