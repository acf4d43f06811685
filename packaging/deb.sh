#!/bin/sh
# Packs a binary that is built already into a Debian package: deb.sh BINARY ARCH OUT. It works in a copy, so that the
# checkout stays as it is. Needs debhelper.
set -eu
[ $# = 3 ] || { echo "usage: $0 BINARY ARCH OUT" >&2; exit 2; }
top=$(cd "$(dirname "$0")/.." && pwd)
binary=$(realpath "$1") arch=$2
mkdir -p "$3"
out=$(realpath "$3")
version=$(cd "$top" && packaging/version.sh)
# Files bear the commit's time, so that the same commit gives the same package.
SOURCE_DATE_EPOCH=$(git -C "$top" log -1 --format=%ct)
export SOURCE_DATE_EPOCH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
src=$work/tocsin
mkdir "$src"
cp -a "$top/packaging/debian" "$top/packaging/etc" "$top/packaging/completion" "$top/packaging/volume" "$top/packaging/tocsin.1" "$top/README.md" "$top/CHANGELOG.md" "$src/"
cp -a "$top/docs" "$src/docs"
[ ! -d "$top/cloud-init" ] || cp -a "$top/cloud-init" "$src/"
ln "$binary" "$src/tocsin" 2>/dev/null || cp "$binary" "$src/tocsin"
"$top/packaging/notices.sh" > "$src/third-party-notices.txt"
cat > "$src/debian/changelog" <<END
tocsin ($version) unstable; urgency=medium

  * What has changed is in CHANGELOG.md.

 -- The Tocsin authors <tocsin@tocsin.invalid>  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
END
# What has been packed before need not be again.
inputs=$( (cd "$src" && find . -type f -printf '%p %m\n' -exec sha256sum {} +; cat "$top/packaging/deb.sh") | sort | sha256sum)
deb=$out/tocsin_${version}_$arch.deb
if [ -e "$deb" ] && [ "$inputs" = "$(cat "$deb.inputs" 2>/dev/null)" ]; then
  echo "$deb"
  exit
fi
# -d: what is built here is only put together. Nothing is compiled, so a foreign architecture needs no compiler.
(cd "$src" && dpkg-buildpackage --build=binary --no-sign -d --host-arch "$arch" >"$work/log" 2>&1) || { cat "$work/log" >&2; exit 1; }
# One package for each architecture, so that nobody takes an old one for this one.
rm -f "$out"/tocsin_*_"$arch".deb "$out"/tocsin_*_"$arch".deb.inputs
mv "$work/tocsin_${version}_$arch.deb" "$deb"
echo "$inputs" > "$deb.inputs"
echo "$deb"
