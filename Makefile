# Everything that a developer or CI runs. `make` lists the targets; ARGS='...' are arguments for the program of a target.
#
# The virtual environment is made once. A stamp file is named after the content of the lock files and the path of the
# checkout: a second run needs no network, and a changed lock or a moved checkout installs again. All paths are
# relative, because the path of the checkout may contain spaces.

MAKEFLAGS += --no-print-directory
.NOTPARALLEL:
.SUFFIXES:
.DEFAULT_GOAL := help
.PHONY: help demo run test control-plane test-vllm test-llamacpp test-keda fuzz bench bench-routing bench-overload bench-demand lint fmt lock wheel packages bench-packages compiler venv

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
state = $(shell { cat pyproject.toml $(1); pwd; } | cksum | cut -d ' ' -f 1)
RUN_LOCK := requirements.lock
TEST_LOCK := requirements-test.lock
FUZZ_LOCK := requirements-fuzz.lock
RUN_STAMP := $(VENV)/.installed-run-$(call state,$(RUN_LOCK))
TEST_STAMP := $(VENV)/.installed-test-$(call state,$(RUN_LOCK) $(TEST_LOCK))
# The unpacked compiled package, and its sources.
COMPILED := out/compiled
SOURCES := setup.py pyproject.toml $(shell find agent alerts dashboards exporters -type f -not -path '*/__pycache__/*')

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(RUN_STAMP) ## Envoy, four emulated servers and the agent on this machine (ARGS=--once: stop after the table)
	@$(BIN)/igw demo $(ARGS)

run: $(RUN_STAMP) ## the agent alone (ARGS='--endpoints HOST:PORT,...' or ARGS='--config FILE')
	@$(BIN)/igw run $(ARGS)

test: packages compiler lint ## install the tests' packages, then lint, types and all tests (ARGS='-k word')
	@$(BIN)/python tests/cluster/programs.py --for-tests $(ARGS)
	@$(BIN)/python -m pytest $(ARGS)

control-plane: | $(BIN)/python ## build the Kubernetes control plane of the tests, once: 7 minutes (see CONTRIBUTING.md)
	@$(BIN)/python tests/cluster/programs.py

test-vllm: $(TEST_STAMP) ## end-to-end tests with two real vLLM servers, installed under .cache/ (see CONTRIBUTING.md)
	@$(BIN)/python tests/vllm/environment.py
	@$(BIN)/python -m pytest -m vllm tests/vllm $(ARGS)

test-llamacpp: $(TEST_STAMP) ## tests with a real llama.cpp server, built under .cache/ (see CONTRIBUTING.md)
	@$(BIN)/python tests/llamacpp/environment.py
	@$(BIN)/python -m pytest -m llamacpp tests/llamacpp $(ARGS)

test-keda: $(TEST_STAMP) ## tests with a real KEDA, built once: 20 minutes (see CONTRIBUTING.md)
	@$(BIN)/python tests/cluster/programs.py >/dev/null
	@$(BIN)/python -m tests.keda.programs >/dev/null
	@$(BIN)/python -m pytest -m keda -s tests/keda $(ARGS)

# One recipe line each, so that make sends signals to the bench itself and not to a shell. The compiled package of
# `make wheel` is measured; PLAIN=1 measures the checkout.
bench: $(subst _,-,$(filter-out %_routing %_overload %_demand,$(basename $(notdir $(sort $(wildcard tests/bench/bench_*.py)))))) ## CPU time per scrape, pick and request, compared with other software; or one: make bench-ext-proc

bench-routing: $(TEST_STAMP) ## replay a recorded workload through the picker: TTFT and prefix hits of each profile
	@$(BIN)/python -m tests.bench.bench_routing $(ARGS)

bench-overload: $(TEST_STAMP) ## replay more of it than the servers can do: TTFT and tokens/s of each priority
	@$(BIN)/python -m tests.bench.bench_overload $(ARGS)

bench-demand: $(TEST_STAMP) ## replay production rates through the demand and the HPA formula: pod-hours and overflow
	@$(BIN)/python -m tests.bench.bench_demand $(ARGS)

bench-%: bench-packages $(TEST_STAMP) $(if $(PLAIN),,wheel)
	@$(if $(PLAIN),,PYTHONSAFEPATH=1 PYTHONPATH=$(COMPILED):. )$(BIN)/python -m tests.bench.bench_$(subst -,_,$*) $(ARGS)

wheel: compiler $(COMPILED)/.made ## the package to install in production, compiled: dist/*.whl (docs/operations/production.md)

lint: $(TEST_STAMP) ## ruff and mypy only
	@$(BIN)/ruff format --quiet --check . || { echo "Not formatted; run: make fmt" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary

fmt: $(TEST_STAMP) ## format the code and apply the fixes of ruff
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix --quiet .

lock: ## write the lock files from pyproject.toml (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
		--extra demo --extra build --output-file $(RUN_LOCK) pyproject.toml
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
		--extra demo --extra build --extra test --constraint $(RUN_LOCK) --output-file $(TEST_LOCK) pyproject.toml
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
		--extra fuzz --constraint $(RUN_LOCK) --output-file $(FUZZ_LOCK) pyproject.toml

# Programs of the system's package manager; installed programs are skipped.
packages:
	@.ci/packages curl=curl nginx=nginx openssl=openssl prometheus=prometheus promtool=prometheus

bench-packages: packages
	@.ci/packages wrk=wrk

compiler: $(TEST_STAMP)
	@.ci/packages cc=gcc "$(BIN)/python .ci/headers=$$(basename "$$(readlink -f $(BIN)/python)")-dev"

venv: $(BIN)/python

$(BIN)/python:
	@.ci/venv $(VENV)

$(RUN_STAMP): | $(BIN)/python
	@echo "Installing the packages of the agent into $(VENV) ..."
	@$(PIP) install --require-hashes --requirement $(RUN_LOCK)
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-run-* && touch $@

$(TEST_STAMP): | $(RUN_STAMP)
	@echo "Installing the packages of the tests into $(VENV) ..."
	@$(PIP) install --require-hashes --requirement $(TEST_LOCK)
	@rm -f $(VENV)/.installed-test-* && touch $@

$(COMPILED)/.made: $(SOURCES) | $(TEST_STAMP)
	@echo "Compiling the modules of the hot path (two minutes) ..."
	@rm -rf build $(COMPILED) dist/inference_gateway_agent-*
	@IGW_COMPILED=1 $(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .
	@rm -rf build
	@$(BIN)/python -m zipfile --extract dist/inference_gateway_agent-*.whl $(COMPILED)
	@touch $@
