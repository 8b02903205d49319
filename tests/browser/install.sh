#!/usr/bin/env bash
# Installs the browser of the browser tests from Debian packages.  Root only; nothing is started; safe to repeat.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
missing=()
for package in chromium fonts-dejavu-core; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ "${#missing[@]}" -gt 0 ] || exit 0
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
