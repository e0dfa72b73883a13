# Each target works on a fresh clone with Python 3.11+, a C++ compiler and pip: it creates .venv, installs and builds.
PYTHON ?= python3
# The CPU and the CUDA build of torch share this version; pip takes whichever its index offers.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
TEXTS := fashionbert_fast csrc benchmarks tests docs examples README.md CONTRIBUTING.md CHANGELOG.md
SOURCES := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.cu csrc/*/*.h)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow wheel-test dist bench reliability mutants results same pace lint format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip "setuptools>=77" wheel cmake ninja pybind11 numpy
	$(BIN)/pip install --quiet "$(TORCH)"
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --no-build-isolation "deepspeed>=0.19.8,<0.20"
	FASHIONBERT_SKIP_BUILD=1 $(BIN)/pip install --quiet --no-build-isolation -e ".[offline,search,onnx,dev]"
	touch $@

$(VENV)/.built: $(VENV)/.installed CMakeLists.txt setup.py $(SOURCES)
	@$(BIN)/pip install --no-build-isolation --no-deps --force-reinstall -v -e . > $(VENV)/build.log 2>&1 \
		|| { grep -nE "error|FAILED" $(VENV)/build.log; echo "the build failed: see $(VENV)/build.log"; exit 1; }
	@sed -nE 's/.*-- (fashionbert_fast: .*)/\1/p' $(VENV)/build.log
	@$(BIN)/python -m fashionbert_fast.distributed  # compiles DeepSpeed's CPU helper once, not in the first run
	@touch $@

setup: $(VENV)/.built  ## create .venv, install, build the native code

demo: setup  ## pre-train, evaluate and report on the embedded catalogue, into demo_out/
	$(BIN)/fashionbert demo --out demo_out --overwrite

test: setup  ## the test suite (no GPU needed)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(PYTEST_ARGS)

test-slow: setup  ## the long proofs as well
	$(BIN)/python -m pytest $(PYTEST_ARGS)

wheel-test: setup  ## the wheel, in empty environments outside this checkout; the GPU suite, here and carried without a network
	$(BIN)/python -m pytest -m slow tests/test_wheel.py tests/benchmarks/test_carry.py tests/benchmarks/test_gpu_suite.py

dist: setup  ## sdist and wheel, for any processor, into dist/
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m build --no-isolation

bench: setup  ## measurements against named alternatives
	$(BIN)/fashionbert bench ops --quick --json bench.json

reliability: setup  ## what the promises of docs/reliability.md come to, k of n: hours
	$(BIN)/python -m tests.reliability --json reliability.json

mutants: setup  ## does a test notice each of these breaks of the package? 90 minutes
	$(BIN)/python -m tests.mutants --json mutants.json

results: setup  ## docs/measurements.md and README's figures from the rows in benchmarks/results
	$(BIN)/python -m benchmarks.measurements

same: setup  ## does this tree train as COMMIT's does, bit for bit? make same COMMIT=HEAD
	$(BIN)/python -m benchmarks.same $(COMMIT)

pace: setup  ## is this tree as fast as COMMIT's? make pace COMMIT=HEAD
	$(BIN)/python -m benchmarks.pace $(COMMIT) --json pace.json

lint: setup  ## ruff, clang-format, codespell and pyright
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)
	$(BIN)/codespell $(TEXTS)
	@! grep -rnE '^(<<<<<<<|>>>>>>>) ' $(TEXTS)  # what a merge left
	$(BIN)/basedpyright --level error

format: setup  ## rewrite sources to the house style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

clean:  ## remove what the build made
	rm -rf build dist $(VENV)/.built fashionbert_fast/*.so *.egg-info
