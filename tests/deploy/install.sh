#!/usr/bin/env bash
# Installs what checks deploy/ from Debian packages.  Root only; nothing is started; safe to repeat.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

packages=(
  prometheus # promtool
)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ "${#missing[@]}" -gt 0 ] || exit 0
policy=/usr/sbin/policy-rc.d # no service may start by being installed
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
