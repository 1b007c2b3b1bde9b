# `make` alone lists the targets. Everything lands in .venv and frontend; a second call has nothing to do.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

# The demo trains on TensorFlow, which has wheels for these versions of Python.
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell $(p) -c '$(SUITABLE)' 2>/dev/null && echo $(p))))

BIN := .venv/bin
STAMPS := .venv/.made
PIP := set -o pipefail; PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
	$(BIN)/python -m pip install --progress-bar off
# One line for each package that is fetched, none for those that are there.
PROGRESS := | awk '/^ *Downloading/ && !/\.metadata/ {print "  " $$2, $$3, $$4; fflush()} \
	/^Installing collected/ {print "  installing", NF - 3, "packages"; fflush()}'
# Two processes: what a training framework compiles keeps one core busy and the other idle.
PARALLEL := --numprocesses=2 --dist=worksteal
# A few tests of each kind, on a Keras that lies in a folder of its own, before that in .venv.
ON_LOWEST_KERAS := tests/fits/test_keras_versions.py tests/fits/test_step_evidence.py \
	tests/fits/test_harmless.py::test_gives_the_same_weights_with_and_without_the_callback \
	tests/fits/test_harmless.py::test_leaves_no_trace_on_the_model
LOWEST_KERAS = $(shell $(BIN)/python -c 'from trainsanity.keras_versions import LOWEST_KERAS as v; print(*v, 0, sep=".")')
FRONTEND := frontend/static/vendor/manifest.json

.PHONY: help setup demo test lint format zoo cells bench screenshots docs lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMPS)/tools $(FRONTEND) ## virtual environment in .venv with every tool, front end built
	@echo "Ready: $(BIN)/trainsanity"

demo: $(STAMPS)/base $(FRONTEND) ## four real trainings on a running server at http://127.0.0.1:8321
	@$(BIN)/trainsanity demo $(ARGS)

test: $(STAMPS)/tools $(STAMPS)/backends $(STAMPS)/lowest-keras $(FRONTEND) ## all tests; ARGS="tests/rules -k lr" picks some
	@.ci/system-packages
	@$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),$(PARALLEL))
	@$(if $(ARGS),,set -e; for backend in jax torch; do echo "== real fits on $$backend"; \
	  KERAS_BACKEND=$$backend $(BIN)/python -m pytest $(PARALLEL) tests/fits tests/healthy; done; \
	  echo "== real fits on the lowest version of Keras"; KERAS_UNDER_TEST=$(LOWEST_KERAS) PYTHONPATH=$(CURDIR)/.venv/lowest-keras \
	  $(BIN)/python -m pytest $(PARALLEL) $(ON_LOWEST_KERAS))

lint: $(STAMPS)/tools ## ruff and mypy, strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMPS)/tools ## rewrite the code as `make lint` wants it
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

zoo: $(STAMPS)/tools ## every silent bug of the study and its healthy twin, as one table
	@$(BIN)/python -m tests.zoo $(ARGS)

cells: $(STAMPS)/tools $(STAMPS)/backends ## every way to train on every backend, against a calculation by hand
	@$(BIN)/python -m tests.fits.cells $(ARGS)

bench: $(STAMPS)/peers $(FRONTEND) ## all benchmarks, shortened; ARGS="" runs them in full
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file $(ARGS); done

screenshots: $(STAMPS)/tools $(FRONTEND) ## pictures of every page of the running demo, into docs/images
	@.ci/system-packages
	@$(BIN)/python -m tests.browser.screenshots --url http://127.0.0.1:8321 --out docs/images $(ARGS)

docs: $(STAMPS)/tools ## write docs/rules.md from the rules
	@$(BIN)/python docs/write_rules.py

lock: $(STAMPS)/tools $(STAMPS)/backends ## write constraints.txt from what is installed in .venv
	@.ci/write-constraints $(BIN)/python

clean: ## remove everything that make has made
	rm -rf .venv frontend/node_modules frontend/static/vendor build dist

bench: ARGS ?= --quick

$(STAMPS)/venv:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed. Found: $$(python3 --version 2>&1)." \
	  "Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "Python's venv module is needed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/base: $(STAMPS)/venv pyproject.toml constraints.txt
	@echo "Installing trainsanity, its server, Keras and TensorFlow into .venv (once, about 2 minutes) ..."
	@$(PIP) --editable ".[server]" keras tensorflow $(PROGRESS)
	@touch $@

$(STAMPS)/tools: $(STAMPS)/base
	@echo "Installing the tools for tests and checks into .venv ..."
	@$(PIP) --editable ".[server,test]" $(PROGRESS)
	@touch $@

$(STAMPS)/peers: $(STAMPS)/tools
	@$(PIP) --editable ".[bench]" $(PROGRESS)
	@touch $@

# Tests only: they run every backend, on the CPU.
$(STAMPS)/backends: $(STAMPS)/base
	@echo "Installing JAX and torch for the tests into .venv (once, some minutes) ..."
	@$(PIP) jax torch $(PROGRESS)
	@touch $@

$(STAMPS)/lowest-keras: $(STAMPS)/base callbacks/trainsanity/keras_versions.py
	@rm -rf .venv/lowest-keras
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --no-deps --target .venv/lowest-keras keras==$(LOWEST_KERAS)
	@touch $@

$(FRONTEND): frontend/package-lock.json frontend/build.mjs
	@command -v npm >/dev/null || { echo "Node.js 20 or newer with npm is needed to build the dashboard." >&2; exit 1; }
	@echo "Building the front end ..."
	@cd frontend && npm ci --silent --no-fund --no-audit && npm run --silent build
	@touch $@
