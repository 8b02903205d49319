#!/usr/bin/env bash
# Writes the lock files of the image: requirements.lock (what it runs on) and requirements-build.lock (what builds the
# wheel), each package with its hashes.  Versions are those of requirements-dev.lock, so tests and image agree.
set -euo pipefail
cd "$(dirname "$0")/.."
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
"${PYTHON:-python3}" -m venv "$tool"
"$tool/bin/pip" install --quiet --disable-pip-version-check 'pip-tools>=7.4'
options=(--quiet --upgrade --generate-hashes --strip-extras --allow-unsafe --no-header --annotation-style=line
  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host)
"$tool/bin/pip-compile" "${options[@]}" --constraint requirements-dev.lock --output-file requirements.lock pyproject.toml
"$tool/bin/pip-compile" "${options[@]}" --only-build-deps --build-deps-for wheel \
  --output-file requirements-build.lock pyproject.toml
sed -i 's/# via -c requirements-dev.lock, /# via /' requirements.lock
