# A newcomer needs three words: make setup, make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
# Processes that share the tests, each with one thread: quicker on two cores than two threads in one process.
WORKERS ?= 2
OLDEST_PYTHON ?= 3.10

.PHONY: setup demo test lint types contracts unit oldest clean

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

# The tests with the oldest versions that pyproject.toml allows; wants uv. OLDEST_PYTHON may be a path, too.
oldest:
	uv venv --quiet --clear --python $(OLDEST_PYTHON) .venv-oldest
	uv pip install --quiet --python .venv-oldest --resolution lowest-direct --editable '.[dev]'
	OMP_NUM_THREADS=1 .venv-oldest/bin/pytest -W default --numprocesses $(WORKERS) --dist loadfile

clean:
	rm -rf .venv .venv-oldest demo runs exported .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
