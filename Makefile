# `make run` finds winning tickets on the digits inside scikit-learn and writes a report. `make test` runs the tests that
# take minutes together, and checks types beside them; `make test-slow` those that take longer.
PYTHON ?= python3
BIN := .venv/bin

MAKEFLAGS += -j2

.PHONY: run test test-slow fast check lint clean

run: .venv/ready
	$(BIN)/tombola search --out runs/digits

test: check fast

fast: lint
	$(BIN)/pytest -q -n 2 --dist worksteal

test-slow: .venv/ready
	$(BIN)/pytest -q -n 2 --dist worksteal -m slow --timeout 1800

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: lint
	$(BIN)/mypy

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("tombola needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[lab,dev,ray]'
	touch $@

clean:
	rm -rf .venv runs
