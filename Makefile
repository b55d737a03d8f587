# Two commands do everything on a fresh machine with Python and make: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo demo-real benchmark ablation docs test test-fast test-cpus limits wheels lint format types check clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | awk -F': ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(READY) ## Create the environment in .venv (PYTHON=python3.x chooses the interpreter)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY) ## Train AF-CLIP on 6 drawn categories, test on 6 unseen ones, print the table and the pictures
	$(BIN)/python -m afclip_lightning fit --config configs/afclip_demo.yaml

demo-real: $(READY) ## Judge photos with the ready model; and your own: make demo-real PHOTOS=folder
	$(BIN)/python -m experiments.real_demo.run --out runs/demo-real --photos $(PHOTOS)

benchmark: $(READY) ## Compare the methods on the demo and on the real test sets on disk; tables in runs/benchmark
	$(BIN)/python -m afclip_lightning benchmark --config experiments/benchmark.yaml

ablation: $(READY) ## Run the variants of the papers' ablations on the demo; tables in runs/ablation
	$(BIN)/python -m afclip_lightning benchmark --config experiments/ablation.yaml

docs: $(READY) ## Build the site of the documentation in site/, without a network; every link is checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

test: $(READY) ## Run all tests
	$(BIN)/python -m pytest -q

test-fast: $(READY) ## Run the tests that are quick, on all cores, each with one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow and not browser and not slurm"

GOLDEN = $(BIN)/python -m pytest -q tests/methods -k golden

test-cpus: $(READY) ## Run the tests against recorded numbers as other processors do: with AVX2, with SSE, with one thread
	ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 $(GOLDEN)
	ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41 $(GOLDEN)
	OMP_NUM_THREADS=1 $(GOLDEN)

limits: $(READY) ## Derive the limits of the tests against recorded numbers anew, from float64 runs (minutes)
	rm -f tests/golden/limits.json
	AFCLIP_DERIVE_LIMITS=1 $(GOLDEN)

wheels: $(READY) ## Build both wheels in dist: afclip_lightning, and afclip_runtime alone, which needs no torch
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist . ./afclip_runtime

lint: $(READY) ## Check style
	$(BIN)/ruff check .

format: $(READY) ## Check formatting (`.venv/bin/ruff format .` applies it)
	$(BIN)/ruff format --check .

types: $(READY) ## Check types
	$(BIN)/mypy

check: lint format types docs test test-cpus ## What CI runs

clean: ## Remove the environment and caches; runs and data stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build site *.egg-info
