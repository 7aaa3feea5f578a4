# Everything runs from .venv, which these targets make. On a machine without Python 3.11 or newer
# under one of these names: make PYTHON=/path/to/python3.
# Where pyenv keeps the versions that are not on the path.
PYENV := $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions
find_python = $(shell for p in python3.11 python3.12 python3.13 python3 \
  $(wildcard $(PYENV)/3.1[1-9].*/bin/python3); do \
  $$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, $(1)))' >/dev/null 2>&1 \
  && { echo $$p; break; }; done)
PYTHON ?= $(call find_python,11)
VENV ?= .venv
# Installed first, so that no later package brings another build of it.
TORCH ?= torch==2.13.0
WORKERS ?= 2
# The newest jax needs a newer Python, and so do the compilers of `make test-compile`.
NEWER_PYTHON ?= $(call find_python,12)
NEWEST_VENV ?= .venv-newest
COMPILE_VENV ?= .venv-compile

BIN := $(VENV)/bin
# Each file goes to one worker, so that what its tests share is made once.
PYTEST := -m pytest -n $(WORKERS) --dist loadfile -q
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Passed through the environment, so that the prompt may contain quotes.
export PROMPT ?= a small red star moves left

check_newer_python = @test -n "$(NEWER_PYTHON)" \
  || { echo "no Python 3.12 or newer with venv found; set NEWER_PYTHON" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help sample demo docs test-fast test test-slow test-newest test-compile lint clean

help:
	@echo "make sample     a video from the small model that ships: PROMPT='a small red star moves left'"
	@echo "make demo       a web page that makes videos, at http://127.0.0.1:7860"
	@echo "make test-fast  the quick tests of every package, a few minutes on 2 cores"
	@echo "make test       the tests, about 20 minutes on 2 cores"
	@echo "make test-slow  the tests that kill processes, run several of them or need gigabytes"
	@echo "make test-newest  the tests that need no torch, with the newest jax on Python 3.12 or newer"
	@echo "make test-compile  compile for GPUs and TPUs without having them (5 GB of compilers)"
	@echo "make lint       ruff and pyright"
	@echo "make docs       the documentation as a site, in site/"
	@echo "make clean      remove the environments"

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer with venv found; set PYTHON" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.package: $(VENV)/.python pyproject.toml
	$(PIP) --editable .
	@touch $@

$(VENV)/.demo: $(VENV)/.package
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.docs: $(VENV)/.package
	$(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/.torch: $(VENV)/.python
	$(PIP) $(TORCH)
	@touch $@

$(VENV)/.test: $(VENV)/.torch $(VENV)/.package
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) --editable '.[dev]'
	@touch $@

sample: $(VENV)/.package
	$(BIN)/ltx-sample --dtype float32 --sheet True --prompt "$$PROMPT"

demo: $(VENV)/.demo
	$(BIN)/ltx-demo

# A link that does not resolve is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict

# While editing: every package, without the tests that compile or compute for long.
# Its programs run once, so that optimising them would take longer than they run.
test-fast: $(VENV)/.test
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python $(PYTEST) \
	  -m 'not slow and not compile and not thorough'

test: $(VENV)/.test
	$(BIN)/python $(PYTEST)

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) -m slow -q

# The newest releases of all packages that pip finds.
test-newest:
	$(check_newer_python)
	$(NEWER_PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
	  --upgrade-strategy eager --editable '.[test-without-torch]'
	$(NEWEST_VENV)/bin/python -c 'import jax, sys; print("jax", jax.__version__, "Python", sys.version)'
	$(NEWEST_VENV)/bin/python $(PYTEST)

# In an environment of its own: the compilers are large, and nothing else needs them.
$(COMPILE_VENV)/.ready: pyproject.toml
	$(check_newer_python)
	$(NEWER_PYTHON) -m venv $(COMPILE_VENV)
	$(COMPILE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[compile]'
	@touch $@

test-compile: $(COMPILE_VENV)/.ready
	$(COMPILE_VENV)/bin/python -m pytest -m compile -q -rs tests/compile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) $(NEWEST_VENV) $(COMPILE_VENV)
