#!/usr/bin/env bash
# Installs what the benchmark compares with and builds by, from Debian packages.  Root only; nothing is started.
set -euo pipefail
packages=(gcc libc6-dev libssl-dev openssl nginx-light libnginx-mod-mail postfix)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ "${#missing[@]}" -gt 0 ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
  echo "missing packages: ${missing[*]} (run bench/install.sh as root)" >&2
  exit 1
fi
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
