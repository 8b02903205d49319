#!/usr/bin/env bash
# Installs the real servers of the interop tests from Debian packages.  Root only; nothing is started.
set -euo pipefail
packages=(postfix knot knot-dnsutils unbound nginx-light openssl libidn12 passwd)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  export DEBIAN_FRONTEND=noninteractive
  # No service may start by being installed.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

# Debian's MTAs exclude each other as packages, so Exim is only unpacked, beside Postfix.
exim=/var/lib/smtpguard-interop/exim
if [ ! -x "$exim/usr/sbin/exim4" ]; then
  mkdir -p "$exim"
  (
    unpacking=$(mktemp -d)
    trap 'rm -rf "$unpacking"' EXIT
    cd "$unpacking"
    apt-get update -qq
    apt-get download -qq exim4-daemon-light
    dpkg -x exim4-daemon-light_*.deb "$exim"
  )
fi
id Debian-exim >/dev/null 2>&1 || useradd --system --user-group --no-create-home --home-dir /var/spool/exim4 Debian-exim
