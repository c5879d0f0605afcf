# make demo: the whole study on a small real model. make test: every test. Both make .venv first; only Python and make are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Installed first and pinned: a later resolver would otherwise pull another build with gigabytes of GPU packages.
TORCH ?= torch==2.13.0

.PHONY: demo test lint install bench-growth clean

demo: $(VENV)/.installed
	$(BIN)/sparsight run recipes/demo.toml

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) install "$(TORCH)"
	$(PIP) install --editable ".[demo,dev]"
	touch $@

# Slow studies; their records are committed under benchmarks/records.
bench-growth: $(VENV)/.installed
	$(BIN)/python benchmarks/growth.py

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info
