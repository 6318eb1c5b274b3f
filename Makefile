# Two commands matter: `make run` and `make test`. Both make .venv first, where it is missing or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: run
run: $(INSTALLED) ## train the digits example, and show how to look at it
	$(BIN)/orchestrator run jobs/digits.yaml

.PHONY: test
test: $(INSTALLED) ## the tests that take minutes in all
	$(BIN)/python -m pytest -m "not slow and not faults"

.PHONY: test-slow
test-slow: $(INSTALLED) ## the other tests
	$(BIN)/python -m pytest -m slow

.PHONY: test-faults
test-faults: $(INSTALLED) ## disturb a local cluster of several hosts; as root, on Linux
	$(BIN)/python -m pytest -m faults tests/faults

.PHONY: check
check: $(INSTALLED) ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layering.py

.PHONY: format
format: $(INSTALLED) ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: bench
bench: $(INSTALLED) ## the speed ratios that the README states
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	for script in tests/benchmarks/bench_*.py; do echo "== $$script"; PYTHONPATH=. $(BIN)/python "$$script"; done

.PHONY: clean
clean: ## remove .venv, builds and caches; runs/, mlflow.db and mlartifacts/ stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find orchestrator tests jobs -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) here: name a Python of 3.11 or newer, as in: make PYTHON=/usr/bin/python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; v = "%d.%d.%d" % sys.version_info[:3]; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is Python " + v + ", but 3.11 or newer is needed: name one, as in: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,gpu]'
	@touch $(INSTALLED)
