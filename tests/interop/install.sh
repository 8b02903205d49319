#!/usr/bin/env bash
# Installs the real servers of the interop tests from Debian packages.  Root only; nothing is started; safe to repeat.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
updated=no

update() {
  [ "$updated" = yes ] || apt-get update -qq
  updated=yes
}

# install PACKAGE...: those that are missing; no service may start by being installed.
install() {
  local missing=() package policy=/usr/sbin/policy-rc.d
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  update
  apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

install postfix postfix-sqlite knot knot-dnsutils unbound nginx-light openssl iproute2 passwd swaks libnet-ssleay-perl \
  msmtp curl nftables iptables testssl.sh
command -v npm >/dev/null || install nodejs npm

# unpack PACKAGE FOLDER: Debian's MTAs exclude each other as packages, so all but Postfix are only unpacked; their
# libraries are installed.
unpack() {
  local unpacking libraries
  update
  unpacking=$(mktemp -d)
  ( cd "$unpacking" && apt-get download -qq "$1" )
  rm -rf "$2"
  mkdir -p "$2"
  dpkg -x "$unpacking/$1"_*.deb "$2"
  # "libc6 (>= 2.36), libdb5.3 | other, ..." -> the first name of each, libraries only
  mapfile -t libraries < <(dpkg-deb -f "$unpacking/$1"_*.deb Depends |
    tr ',' '\n' | sed -E 's/^ *([^ |(:]+).*/\1/' | grep '^\(lib\|zlib\)')
  rm -rf "$unpacking"
  install "${libraries[@]}"
}

# user NAME HOME
user() {
  id "$1" >/dev/null 2>&1 || useradd --system --user-group --no-create-home --home-dir "$2" "$1"
}

# linked PROGRAM: or say what it lacks.
linked() {
  local missing
  missing=$(ldd "$1" | awk '/not found/ { print $1 }')
  [ -z "$missing" ] || { echo "install.sh: $1 lacks libraries: $missing" >&2; return 1; }
}

tools=/var/lib/smtpguard-interop
# The heavy Exim: the light one knows no PROXY protocol.
[ -e "$tools/exim/heavy" ] || unpack exim4-daemon-heavy "$tools/exim"
touch "$tools/exim/heavy"
linked "$tools/exim/usr/sbin/exim4"
user Debian-exim /var/spool/exim4

[ -x "$tools/opensmtpd/usr/sbin/smtpd" ] || unpack opensmtpd "$tools/opensmtpd"
linked "$tools/opensmtpd/usr/sbin/smtpd"
mkdir -p /usr/libexec /var/lib/opensmtpd/empty /var/spool/smtpd  # the paths are compiled in
cp -rn "$tools/opensmtpd/usr/libexec/opensmtpd" /usr/libexec/
user opensmtpd /var/lib/opensmtpd/empty
user opensmtpq /var/lib/opensmtpd/empty

# The clients and the scanner that Debian does not have, pinned.
[ -e "$tools/node/node_modules/nodemailer" ] ||
  npm install --silent --no-audit --no-fund --prefix "$tools/node" nodemailer@7.0.10
if [ ! -x "$tools/sslyze/bin/sslyze" ]; then
  python3 -m venv "$tools/sslyze"
  "$tools/sslyze/bin/python" -m pip install --quiet --disable-pip-version-check sslyze==6.3.1
fi
