#!/bin/sh
# Makes a folder with packages into a signed repository that apt takes from any web server, or from file:
# apt-repo.sh FOLDER PACKAGE.deb... Packages that are there already stay in it. APT_KEY names the key to sign with, which
# gpg knows; without it a key is made for this repository alone and thrown away: for trying out. The public key is
# put beside as tocsin.asc. Needs apt-utils and gpg.
set -eu
[ $# -ge 1 ] || { echo "usage: [APT_KEY=...] $0 FOLDER PACKAGE.deb..." >&2; exit 2; }
mkdir -p "$1/pool"
folder=$(realpath "$1")
shift

trial='Tocsin, for trying out'
if [ -z "${APT_KEY-}" ]; then
  # Who trusts the key of an existing repository could install nothing from it any more.
  if [ -e "$folder/tocsin.asc" ] && ! gpg --batch --quiet --show-keys "$folder/tocsin.asc" 2>/dev/null | grep -qF "$trial"; then
    echo "$folder is signed with a key of yours: name it with APT_KEY" >&2
    exit 1
  fi
  GNUPGHOME=$(mktemp -d)
  export GNUPGHOME
  # The agent would stay behind.
  trap 'gpgconf --kill gpg-agent; rm -rf "$GNUPGHOME"' EXIT
  trap 'exit 1' INT TERM
  APT_KEY=$trial
  gpg --batch --quiet --passphrase '' --quick-gen-key "$APT_KEY" ed25519 sign never 2>/dev/null
fi

for deb; do cp "$deb" "$folder/pool/"; done
cd "$folder"
apt-ftparchive packages pool > Packages
gzip -9nkf Packages
apt-ftparchive -o APT::FTPArchive::Release::Origin=Tocsin -o APT::FTPArchive::Release::Label=Tocsin \
  -o APT::FTPArchive::Release::Suite=stable -o APT::FTPArchive::Release::Codename=stable \
  -o APT::FTPArchive::Release::Architectures='amd64 arm64' release . > Release.new
mv Release.new Release
gpg --batch --quiet --yes --local-user "$APT_KEY" --clearsign --output InRelease Release
gpg --batch --quiet --yes --local-user "$APT_KEY" --armor --detach-sign --output Release.gpg Release
gpg --batch --quiet --yes --armor --output tocsin.asc --export "$APT_KEY"
echo "$folder"
