# The two commands of the README are `make demo` and `make test`; the others are for developers.
# Everything Python lives in .venv; binaries and images are cached by content in ~/.cache/dl2 (DL2_CACHE).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NAME   ?= dl2
SOURCES := operator runtime tests benchmarks examples

.DEFAULT_GOAL := help
.PHONY: help demo test lint fmt unit compiled unit-compiled runtime integration e2e bench cluster-up cluster-down clean packages parts learning

help:  ## what there is
	@awk -F ':.*##' '/^[a-z0-9-]+:.*##/ {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

packages:  ## Debian packages of the real node (containerd, CNI, buildah, ...), where they are missing
	@testbed/packages.sh

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: packages $(STAMP)  ## real MXNet jobs and simulated ones under the operator (KEEP=1 leaves it running)
	$(BIN)/dl2 demo $(if $(KEEP),--keep)

test: packages lint unit learning unit-compiled parts runtime integration e2e  ## everything that CI runs

lint: $(STAMP)  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	cd benchmarks && MYPYPATH=.:../operator:../runtime ../$(BIN)/mypy --config-file ../pyproject.toml --explicit-package-bases \
	  $(patsubst benchmarks/%.py,-m %,$(wildcard benchmarks/*.py)) -p load
	$(BIN)/lint-imports

fmt: $(STAMP)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

unit: $(STAMP)  ## tests that need nothing but Python
	$(BIN)/pytest tests/unit --numprocesses 2

learning: $(STAMP)  ## tests of what trains the agent; they need torch, which Debian has without 3 GB of CUDA
	@testbed/packages.sh torch
	@python=$${DL2_TORCH_PYTHON-$$(tests/torch-python)}; test -z "$$python" || \
	  PYTHONPATH=operator "$$python" -m pytest tests/unit/learning/test_learners.py

compiled: packages $(STAMP)  ## the decision core as machine code, where it is not cached
	$(BIN)/dl2 compile

unit-compiled: compiled  ## unit tests of what runs on that
	DL2_COMPILED=1 $(BIN)/pytest tests/unit/scheduling tests/unit/controller tests/unit/cli --numprocesses 2

runtime: $(STAMP)  ## tests of the elastic runtime: real processes, also with MXNet and a second Python if there is one
	DL2_MXNET_PYTHON=$${DL2_MXNET_PYTHON-$$(runtime/tests/pythons mxnet)} $(BIN)/pytest runtime/tests --numprocesses 2
	@second=$$(runtime/tests/pythons second); test -z "$$second" || \
	  { echo "again with $$second"; DL2_RUNTIME_PYTHON=$$second $(BIN)/pytest runtime/tests/test_job.py --numprocesses 2; }

parts: packages $(STAMP)  ## binaries and images of the embedded cluster, where they are not cached
	$(BIN)/dl2 cluster build --real-node

integration: $(STAMP)  ## tests on a real API server, scheduler and controller manager
	$(BIN)/pytest tests/integration --numprocesses 2 --dist loadfile

e2e: $(STAMP)  ## tests on a real node: containerd, kubelet, MXNet
	$(BIN)/pytest tests/e2e

bench: compiled  ## every benchmark; docs/benchmarks.md says what they measure
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

cluster-up: packages $(STAMP)  ## an embedded cluster to play with (NAME=..., one real node, 50 simulated)
	$(BIN)/dl2 cluster up --name $(NAME) --kwok-nodes 50 --real-node

cluster-down: $(STAMP)  ## stop it and leave nothing behind
	$(BIN)/dl2 cluster down --name $(NAME)

clean:  ## forget the virtual environment and the caches of the tools, not ~/.cache/dl2
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
