#!/usr/bin/env bash
# Installs the real servers of the interop tests from Debian packages.  Root only; nothing is started; safe to repeat.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
exim=/var/lib/smtpguard-interop/exim
daemon=$exim/usr/sbin/exim4
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

# The libraries that the unpacked Exim does not find.
unlinked() {
  ldd "$daemon" | awk '/not found/ { print $1 }'
}

install postfix postfix-sqlite knot knot-dnsutils unbound nginx-light openssl iproute2 passwd \
  nftables iptables

# Debian's MTAs exclude each other as packages, so Exim is only unpacked, beside Postfix; its libraries are installed.
if [ ! -x "$daemon" ] || [ -n "$(unlinked)" ]; then
  update
  unpacking=$(mktemp -d)
  ( cd "$unpacking" && apt-get download -qq exim4-daemon-light )
  rm -rf "$exim"
  mkdir -p "$exim"
  dpkg -x "$unpacking"/exim4-daemon-light_*.deb "$exim"
  # "libc6 (>= 2.36), libdb5.3 | other, ..." -> the first name of each, libraries only
  mapfile -t libraries < <(dpkg-deb -f "$unpacking"/exim4-daemon-light_*.deb Depends |
    tr ',' '\n' | sed -E 's/^ *([^ |(:]+).*/\1/' | grep '^lib')
  rm -rf "$unpacking"
  install "${libraries[@]}"
  if [ -n "$(unlinked)" ]; then
    echo "install.sh: Exim lacks libraries: $(unlinked | tr '\n' ' ')" >&2
    exit 1
  fi
fi
id Debian-exim >/dev/null 2>&1 ||
  useradd --system --user-group --no-create-home --home-dir /var/spool/exim4 Debian-exim
