# `make demo` runs the main job and `make test` the tests; both build .venv first, from locks that pin every package by hash:
#   requirements.lock        what runs; `make demo`, and a user's own environment
#   tests/requirements.lock  the same and the test tools; all other targets
#   cluster/{cpu,gpu}.lock   what runs on a cluster's nodes; cluster/Dockerfile
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# A lock is complete, so nothing is resolved: pip before 24.1 asks for the newest release wherever a package's extra is required.
INSTALL_LOCK := $(PIP_INSTALL) --no-deps --require-hashes --requirement

.PHONY: setup setup-tests demo test test-all faults coverage check audit lock clean

setup: $(VENV)/.installed
setup-tests: $(VENV)/.installed-tests

# A stamp is newer than its lock when the environment holds what the lock says.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { echo "error: Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv module. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(INSTALL_LOCK) requirements.lock
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pip check --disable-pip-version-check >&2
	@touch $@

$(VENV)/.installed-tests: $(VENV)/.installed tests/requirements.lock
	$(INSTALL_LOCK) tests/requirements.lock
	@$(BIN)/python -m pip check --disable-pip-version-check >&2
	@touch $@

demo: setup
	@$(BIN)/bottleneck demo

# What a change needs at once, in five to ten minutes on two cores.
test: setup-tests
	@$(BIN)/python tests/side_by_side.py

# The tests that start clusters, kill processes, run benchmarks or build every kind of network, too.
test-all: test
	@$(BIN)/python tests/side_by_side.py --rest

# The whole fault matrix, which takes hours, as a table; BOTTLENECK_FAULTS=0.1 asks for a tenth of its long amounts.
faults: setup-tests
	$(BIN)/python tests/matrix.py

# The tests of `make test-all` one after the other, with the lines no test meets.
coverage: setup-tests
	$(BIN)/python -m pytest --cov=bottleneck --cov=jobs --cov-report=term

# Format, lint and types: what CI asks besides the tests.
check: setup-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Known weaknesses of what the locks pin, from the advisory database of PyPI: needs the network, so CI does not ask for it;
# before a release, and after every `make lock`. What could not be looked up fails it, and is told apart from a weakness.
audit: $(VENV)/.installed
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1 || echo "audit: pip-audit could not be installed" >&2
	$(BIN)/python tests/advisories.py build/audit/bin/pip-audit

# After a change of dependencies in pyproject.toml; needs uv. The largest lock decides the versions of all.
COMPILE := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet
lock:
	$(COMPILE) --extra cpu --extra cluster --extra test --upgrade --output-file tests/requirements.lock
	$(COMPILE) --extra cpu --extra cluster --constraint tests/requirements.lock --output-file requirements.lock
	for variant in cpu gpu; do $(COMPILE) --extra $$variant --extra cluster --extra cloud --constraint tests/requirements.lock --output-file cluster/$$variant.lock; done

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
