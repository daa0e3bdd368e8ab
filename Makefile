# samfast: everything from a bare clone, with nothing but python3 (3.11 or newer) and make.
#
#   make demo       segment a real photo with the packaged model; pictures go to demo-output/
#   make test       the test suite
#   make test-gpu   the tests for a machine with a GPU
#   make test-clients   programs written for segment_anything, which it downloads, on samfast
#   make lint       ruff, strict types, the import law
#   make docs       the documentation site, in site/
#   make wheel      the wheel, in dist/
#
# PYTHON=python3.12 picks the interpreter, VENV=dir the virtual environment.
# WORKERS=4 runs that many tests side by side.
# GPU_PYTHON=python3 runs test-gpu with that interpreter and the packages it has.

PYTHON ?= python3
VENV ?= .venv
CLIENTS_VENV ?= .venv-clients
DEMO_OUT ?= demo-output

WORKERS ?= 2
GPU_WORKERS ?= 8

BIN := $(VENV)/bin
GPU_PYTHON ?= $(BIN)/python
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CODE := samfast tests docs $(wildcard training benchmarks)
TYPED := samfast tests docs/site $(wildcard training benchmarks)

.PHONY: demo docs test test-gpu test-clients lint wheel clean help
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@sed -n '3,13s/^# *//p' Makefile

# A cup of coffee, by Rachel Michetti (CC0); scikit-image ships it.
PHOTO = $$($(BIN)/python -c 'import skimage, pathlib; print(pathlib.Path(skimage.__file__).parent / "data" / "coffee.png")')

demo: $(VENV)/.demo-installed
	@echo "Everything in a photo, found from a 16x16 grid of clicks:"
	@$(BIN)/samfast segment "$(PHOTO)" --points-per-side 16 --overlay --out $(DEMO_OUT)/everything
	@echo "One click, on the coffee:"
	@$(BIN)/samfast segment "$(PHOTO)" --point 300,150 --overlay --out $(DEMO_OUT)/click
	@echo "Open the .overlay.png files to see the masks; the .json files hold them."

test: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Tests of one xdist group run in one worker and share compiled models. Tests that measure the GPU
# come second, one at a time.
GPU_TESTS := tests/gpu tests/kernels tests/images/test_load.py
test-gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/.dev-installed)
	$(GPU_PYTHON) -m pytest -m "not gpu_alone and not slow and not network" \
	  -n $(GPU_WORKERS) --dist loadgroup $(GPU_TESTS)
	$(GPU_PYTHON) -m pytest -m gpu_alone tests/gpu

# The clients bring hundreds of packages, and plugins for pytest, which are left out.
test-clients: $(CLIENTS_VENV)/.installed
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(CLIENTS_VENV)/bin/python -m pytest -p pytest_timeout \
	  -m clients tests/clients

lint: $(VENV)/.dev-installed
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.dev-installed
	$(BIN)/python docs/site/build.py --out site

wheel: | $(BIN)/python
	@rm -rf build
	$(PIP) wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) $(CLIENTS_VENV) $(DEMO_OUT) site \
	  .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

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

$(CLIENTS_VENV)/.installed: pyproject.toml constraints.txt tests/clients/requirements.txt
	@echo "Installing the clients into $(CLIENTS_VENV); this takes some minutes."
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python -m pip --disable-pip-version-check --quiet install \
	  -c constraints.txt -r tests/clients/requirements.txt -e '.[serve]'
	@touch $@
