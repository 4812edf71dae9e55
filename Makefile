# make demo: install and run the whole pipeline. make test: the tests. See README.md and CONTRIBUTING.md.

PYTHON ?= python3
EXTRA ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
BIN := .venv/bin
LOCKED := .venv/.locked-$(EXTRA)
INSTALLED := .venv/.installed-$(EXTRA)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

.PHONY: setup demo test lint bench lock

setup: $(INSTALLED)

# The environment is made anew for each lock: the cpu and gpu builds of vLLM share a directory.
$(LOCKED): requirements/$(EXTRA).lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv --clear .venv
	@echo "installing requirements/$(EXTRA).lock into .venv, a minute or two ..."
	$(PIP_INSTALL) -r $<
	touch $@

$(INSTALLED): $(LOCKED) pyproject.toml
	$(PIP_INSTALL) --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/python -m jobs.demo

# The laws of one process go over all cores. Of what starts clusters two files run beside each other, each with the
# fixtures that it shares; what measures how long something waits has the machine to itself.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m unit -n logical --maxprocesses 8 --dist worksteal
	$(BIN)/python -m pytest -m "not unit and not alone" -n 2 --dist loadfile --durations 25
	$(BIN)/python -m pytest -m alone --durations 10

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m cluster.validate

bench: setup
	$(BIN)/python -m benchmarks.bench
	$(BIN)/python -m benchmarks.balance

# pip before 24.1 downloads every package for a dry run.
lock: setup
	$(BIN)/python -m pip install --quiet "pip>=24.1"
	$(BIN)/python requirements/lock.py cpu
	$(BIN)/python requirements/lock.py gpu
