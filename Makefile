# `make demo` and `make test` install everything they need into .venv, from the package index only.

PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	command -v $$p >/dev/null 2>&1 && \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && \
	echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# Many tests wait for processes: two files at a time take little more than half as long.
PARALLEL := -q -n 2 --dist loadfile -m "not slow"
# For `make test-stress`: how often each test is run, and which tests (by default those marked stress).
TIMES ?= 50
TESTS ?=

.PHONY: help demo test test-quick test-stress soak lint format bench clean install

help:
	@echo "make demo         install, then run the payments pipeline on simulated traffic, with a crash halfway"
	@echo "make test         install, then run all tests (those with Kafka need Java 17 and Maven, those of exports PostgreSQL and Redis)"
	@echo "make test-quick   all tests but those with Kafka"
	@echo "make test-stress  run the tests with processes and waits TIMES=50 times each beside a load on every"
	@echo "                  core, and print which failed; TESTS=tests/… selects others"
	@echo "make soak         a quarter of an hour of crashes, network failures, full disks and rescaling,"
	@echo "                  and the tests marked slow: half a minute and more each (needs"
	@echo "                  root, and Kafka as above)"
	@echo "make lint         ruff and mypy --strict"
	@echo "make format       apply the fixes and the format of ruff"
	@echo "make bench        run all benchmarks, each of which checks its targets"
	@echo "make clean        remove the virtual environment and all caches"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or 3.12 is needed (Bytewax has no wheels for later versions): install it, or name it with make PYTHON=…" >&2; exit 1; }
	@echo "installing into $(VENV) with $(PYTHON) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	@$(BIN)/anabranch demo

test: install
	@$(BIN)/python -m pytest $(PARALLEL) || $(BIN)/python -m tests.support.rerun

test-quick: install
	$(BIN)/python -m pytest $(PARALLEL) -m "not kafka and not slow"

test-stress: install
	@$(BIN)/python -m pytest -q -p tests.support.stress --times $(TIMES) $(if $(TESTS),,-m stress) $(TESTS)

soak: install
	$(BIN)/python -m pytest tests/soak -s -v --durations=0
	$(BIN)/python -m pytest -m slow -v --durations=0

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m benchmarks hotpath
	$(BIN)/python -m benchmarks bus
	$(BIN)/python -m benchmarks recovery
	$(BIN)/python -m benchmarks replay
	$(BIN)/python -m benchmarks labels
	$(BIN)/python -m benchmarks evidence
	$(BIN)/python -m benchmarks rollouts
	$(BIN)/python -m benchmarks drift
	$(BIN)/python -m benchmarks metrics

clean:
	rm -rf $(VENV) .kafka .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
