# Every target makes the environment it needs; PYTHON may name any Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# pytest with real servers: shown as it goes, and with patience
REAL := -o addopts="--strict-markers -ra -p no:cacheprovider" -o timeout=900

.PHONY: demo test check format lint types imports unit interop deploy-check browser slow bench coverage lock clean

## demo: the sandbox internet, the attacks, and what smtpguard does about them
demo: $(STAMP)
	$(BIN)/smtpguard demo

## test: everything that runs without other servers
test: $(STAMP)
	$(BIN)/python -m pytest -n auto

## check: what every commit passes
check: $(STAMP) format lint types imports unit

format: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

unit: $(STAMP)
	$(BIN)/python -m pytest -q -n auto

## interop: real Postfix, unbound, knot, nginx (installs Debian packages; needs root)
interop: $(STAMP)
	bash tests/interop/install.sh
	$(BIN)/python -m pytest tests/interop $(REAL)

## deploy-check: what deploy/ ships, by the tools of those who run it (installs Debian packages; needs root)
deploy-check: $(STAMP)
	bash tests/deploy/install.sh
	$(BIN)/python -m pytest tests/deploy -s $(REAL)

## browser: the live page in headless Chromium (installs Debian packages; needs root)
browser: $(STAMP)
	bash tests/browser/install.sh
	$(BIN)/python -m pytest tests/browser $(REAL)

## slow: a gibibyte to ten next hops, with resident memory watched
slow: $(STAMP)
	$(BIN)/python -m pytest tests/slow $(REAL)

## bench: CPU per message beside nginx and Postfix (installs Debian packages; needs root)
bench: $(STAMP)
	bash bench/install.sh
	$(BIN)/python bench/run.py

coverage: $(STAMP)
	$(BIN)/coverage run -m pytest -q
	$(BIN)/coverage report --skip-covered --show-missing

## lock: pin what development and CI install, and with hashes what the image is made of
lock: $(STAMP)
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^pip==\|^setuptools==\|^smtpguard' > requirements-dev.lock
	PYTHON=$(PYTHON) bash tools/lock.sh

$(STAMP): pyproject.toml requirements-dev.lock
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $(STAMP)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis .coverage
