# samfast: everything from a bare clone, with nothing but python3 (3.11 or newer) and make.
#
#   make demo   segment a real photo with the packaged model; pictures go to demo-output/
#   make test   the test suite
#   make lint   ruff, strict types, the import law
#
# PYTHON=python3.12 picks the interpreter, VENV=dir the virtual environment.

PYTHON ?= python3
VENV ?= .venv
DEMO_OUT ?= demo-output

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CODE := samfast tests $(wildcard training benchmarks)
TYPED := samfast tests $(wildcard training)

.PHONY: demo test lint clean help
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@sed -n '3,7s/^# *//p' Makefile

demo: $(VENV)/.demo-installed
	$(BIN)/python -m samfast.apps.demo --out $(DEMO_OUT)

test: $(VENV)/.dev-installed
	$(BIN)/python -m pytest

lint: $(VENV)/.dev-installed
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf $(VENV) $(DEMO_OUT) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "samfast needs Python 3.11 or newer; '$(PYTHON)' is missing or older: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is renewed when what is to be installed has changed, and only then.
$(VENV)/.demo-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing samfast into $(VENV); the first time this takes some minutes."
	$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing samfast and its tools into $(VENV); the first time this takes some minutes."
	$(PIP) install -c constraints.txt -e '.[demo,dev]'
	@touch $(VENV)/.demo-installed $@
