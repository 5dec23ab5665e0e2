# Needs: Python 3.11 or newer, make, and a package index. Everything else is set up in .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
TRAIN_OPTIONS ?=
TEST_OPTIONS ?=
CHAOS_OPTIONS ?=

.PHONY: help train test test-all lint sim chaos bench clean
.DEFAULT_GOAL := help

help:
	@echo "make train      train a GPT on 2 servers and 2 workers (TRAIN_OPTIONS='--max-iters 500')"
	@echo "make test       style, types, layers, and the quick tests, two at a time"
	@echo "make test-all   the same with the slow tests"
	@echo "make lint       style, types and layers only"
	@echo "make sim        1000 simulated clusters with faults"
	@echo "make chaos      200 faults in real jobs (CHAOS_OPTIONS='--faults 50 --seed 7')"
	@echo "make bench      exchange and straggler benchmarks"
	@echo "make clean      remove .venv and caches"

train: $(VENV)/train.stamp
	@$(BIN)/shoal train gpt $(TRAIN_OPTIONS)

test: lint
	@$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile $(TEST_OPTIONS)

test-all: lint
	@$(BIN)/python -m pytest -q $(TEST_OPTIONS)

lint: $(VENV)/dev.stamp
	@$(BIN)/ruff check src tests examples
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

sim: $(VENV)/train.stamp
	@$(BIN)/python -m shoal.sim --seeds 1000

chaos: $(VENV)/train.stamp
	@$(BIN)/python -m tests.fire $(CHAOS_OPTIONS)

bench: $(VENV)/train.stamp
	@$(BIN)/shoal bench exchange
	@$(BIN)/shoal bench straggler

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/train.stamp: pyproject.toml constraints.txt tools/make_venv.sh
	@sh tools/make_venv.sh "$(PYTHON)" "$(VENV)"
	@echo "Installing Shoal and what it needs, PyTorch among it: about 1 GB on disk, one to five minutes."
	@$(PIP_INSTALL) --editable '.[torch,text]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/train.stamp
	@echo "Installing the tools for tests and checks: half a minute."
	@$(PIP_INSTALL) --editable '.[torch,text,etcd,plot,dev]'
	@touch $@
