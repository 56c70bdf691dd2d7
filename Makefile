# A newcomer needs three words: make setup, make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
# Processes that share the tests, each with one thread: quicker on two cores than two threads in one process.
WORKERS ?= 2

.PHONY: setup demo test lint types contracts unit clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("metamixer needs Python 3.10 or newer" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/metamixer demo

test: lint types contracts unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports

unit: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile

clean:
	rm -rf .venv demo runs exported .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
