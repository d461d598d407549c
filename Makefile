# `make demo` and `make test` install everything they need into .venv, from the package index alone.

PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	command -v $$p >/dev/null 2>&1 && \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && \
	echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# Many tests wait for processes: two files at a time take little more than half as long.
SIDE_BY_SIDE := -q -n 2 --dist loadfile
ALONE := --last-failed --last-failed-no-failures none

.PHONY: help demo test test-quick soak lint format bench clean install

help:
	@echo "make demo    install, then run the payments pipeline on simulated traffic, and kill it halfway"
	@echo "make test    install, then run all tests (Kafka tests need Java 17 and Maven)"
	@echo "make soak    kill, cut off, starve and rescale runs for a quarter of an hour (as root; Kafka as above)"
	@echo "make lint    ruff and mypy --strict"
	@echo "make bench   the benchmarks, each with its targets"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or 3.12 is needed (Bytewax has no wheels for later ones): install one, or name it with make PYTHON=…" >&2; exit 1; }
	@echo "installing into $(VENV) with $(PYTHON) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	@$(BIN)/anabranch demo

test: install
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) || { \
		echo "make test: what failed beside others (a clock may have run out) is run again, alone"; \
		$(BIN)/python -m pytest $(ALONE); }

test-quick: install
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not kafka"

soak: install
	$(BIN)/python -m pytest tests/soak -s -v --durations=0

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
