# `make` sets up .venv; `make demo` takes a base model to an assistant; `make help` lists the rest.

TORCH ?= torch==2.13.0
EXTRAS ?= data,dev,metrics,qlora,sentencepiece
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.posttrain-ready
# The first Python of 3.11 or newer that can make a virtual environment.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := setup
.PHONY: setup demo test test-slow test-gpu bench bench-peers lint clean help

setup: $(STAMP) ## make .venv and install posttrain into it (once)
	@echo "ready: $(BIN)/posttrain --help, or make demo"

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer with venv was found;" \
		"install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) …"
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e .[$(EXTRAS)]
	@touch $@

demo: $(STAMP) ## from a base model to an assistant, nothing to download
	$(BIN)/posttrain demo

test: $(STAMP) ## the default suite (minutes)
	@sh tests/fetch_templates.sh || echo "the chat templates of trl could not be fetched: their tests are skipped"
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP) ## the long tests
	$(BIN)/python -m pytest -m slow

test-gpu: $(STAMP) ## tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

bench-peers: ## the peers that make bench measures against, in .venv-peers (once)
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet -r bench/peers.txt

bench: $(STAMP) ## speed and memory beside the peers (an hour or more, on a quiet machine)
	$(BIN)/python -m bench.run

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .

clean: ## remove .venv; runs are kept
	rm -rf $(VENV)

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14
