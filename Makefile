# `make run` finds winning tickets on the digits inside scikit-learn and writes a report. `make test` runs the tests that
# take minutes together, `make test-slow` those that take longer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-slow check clean

run: .venv/ready
	$(BIN)/tombola search --out runs/digits

test: check
	$(BIN)/pytest -q -n 2

test-slow: .venv/ready
	$(BIN)/pytest -q -n 2 -m slow --timeout 1800

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("tombola needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[lab,dev,ray]'
	touch $@

clean:
	rm -rf .venv runs
