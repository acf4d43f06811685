#!/bin/sh
# Prints the Debian version of this checkout, from `git describe` or from the first argument. Each commit sorts after the
# one before, pre-releases before their release, and what has no tag yet before everything that has one.
set -eu
d=${1-$(git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null || true)}
case $d in
v*)
  # v1.2.0-rc.1-5-gabc1234-dirty: 1.2.0~rc.1+5.gabc1234+dirty
  echo "${d#v}" | sed -E 's/-dirty$/+dirty/; s/-([0-9]+)-g([0-9a-f]+)/+\1.g\2/; s/-/~/g'
  ;;
*)
  [ -z "$(git status --porcelain --untracked-files=no)" ] && dirty= || dirty=+dirty
  TZ=UTC git log -1 --date=format-local:%Y%m%d%H%M%S --format="0~git%cd.%h$dirty"
  ;;
esac
