# make demo: the whole study on a small real model. make test: every test. Both make .venv first; only Python and make are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Installed first and pinned: a later resolver would otherwise pull another build with gigabytes of GPU packages.
TORCH ?= torch==2.13.0

.PHONY: demo test lint install web web-check walk bench bench-growth bench-optimisers bench-quality bench-dictionaries bench-index bench-explorer
.PHONY: bench-steering bench-grounding validate-compare validate-power validate-depth validate-cost false-facts reference-job check-peers clean

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
	$(PIP) install --editable ".[demo,probes,web,maps,explain,compare,dev]"
	touch $@

# Slow studies; their records are committed under benchmarks/records. bench: beside three other packages, each in an environment of its own
# under .venv-peers; about an hour on 2 cores. After a cut: make bench BENCH=--resume; one part: make bench BENCH="--parts store".
bench: $(VENV)/.installed
	TORCH="$(TORCH)" $(BIN)/python benchmarks/peers/compare.py $(BENCH)

bench-growth: $(VENV)/.installed
	$(BIN)/python benchmarks/growth.py

bench-optimisers: demo
	$(BIN)/python benchmarks/optimisers.py runs/demo/activations

# Held-out quality beside two packages, and dead latents in ordinary runs; after `make bench`, whose learning rates it takes.
bench-quality: demo
	TORCH="$(TORCH)" $(BIN)/python benchmarks/peers/quality.py runs/demo/activations

# Which architecture finds a planted dictionary; parts: make bench-dictionaries BENCH="--parts sparse k --seeds 0".
bench-dictionaries: $(VENV)/.installed
	$(BIN)/python benchmarks/known_dictionaries.py $(BENCH)

# Do edits of 80 features move their promoted tokens more than edits of matched random latents? About a quarter of an hour.
bench-steering: demo
	$(BIN)/python benchmarks/steering.py runs/demo

# A fine-tune on invented biographies, its null, and what the comparison of both with the base finds, target beside measured; about an hour on 2 cores.
false-facts: $(VENV)/.installed
	$(BIN)/python examples/false-facts/run.py --out runs/false-facts-models
	$(BIN)/sparsight compare examples/false-facts/compare.toml
	$(BIN)/python benchmarks/validate_compare/real.py runs/false-facts

# Time and memory of a feature index; then beside sae-dashboard, in an environment of its own, about an hour on 2 cores.
bench-index: demo
	$(BIN)/python benchmarks/index_speed.py $(BENCH)
	TORCH="$(TORCH)" $(BIN)/python benchmarks/peers/dashboards.py

# Grounding on models that learn invented people, planted truth and nothing planted; some four minutes a seed.
bench-grounding: $(VENV)/.installed
	for seed in 0 1 2; do $(BIN)/python benchmarks/validate_compare/grounding.py run --seed $$seed --out runs/grounding || exit 1; done
	$(BIN)/python benchmarks/validate_compare/grounding.py report runs/grounding

# A comparison on planted truth (changes in a dictionary, false exclusives of L1 crosscoders, power, invented people) and on a real fine-tune. Each
# prints target and measured value and leaves a record; four hours and more on 2 cores.
validate-compare: $(VENV)/.installed
	$(BIN)/python benchmarks/validate_compare/planted.py
	$(BIN)/python benchmarks/validate_compare/exclusive.py
	$(MAKE) validate-power bench-grounding false-facts validate-depth validate-cost

# What a comparison finds by firing rate, seeds and tokens: a record, a plot, and the table that `sparsight plan` reads. Some 20 minutes on 2 cores for
# 20 repetitions, of which those in the record are not made again: make validate-power BENCH="--repetitions 40".
validate-power: $(VENV)/.installed
	$(BIN)/python benchmarks/validate_compare/power.py $(BENCH)

# Closure by depth, of the models and the text of `make false-facts`; some ten minutes.
validate-depth: $(VENV)/.installed
	$(BIN)/python benchmarks/validate_compare/depth.py runs/false-facts

# What a comparison on 2M tokens costs in time, disk and memory; after the fine-tune of `make false-facts`. An hour or more on 2 cores.
validate-cost: $(VENV)/.installed
	$(BIN)/python examples/false-facts/run.py --out runs/false-facts-models
	$(BIN)/python benchmarks/validate_compare/cost.py

# How long the explorer's page waits for each answer at 131,072 latents; ten minutes.
bench-explorer: $(VENV)/.installed
	$(BIN)/python benchmarks/explorer.py $(BENCH)

# Every view of the explorer once, in a real browser on the demo's run, with screenshots in build/walk; needs Chromium.
walk: demo
	$(BIN)/python benchmarks/walk.py

# The founding job's speed, on a CUDA GPU: torch from its CUDA index first (TORCH), and the kernels of Qwen3.5's linear attention.
reference-job: $(VENV)/.installed
	$(BIN)/python benchmarks/reference_job.py

# Do the tools whose formats we write open our files, and compute what we compute? Each has an environment of its own under .venv-peers.
check-peers: $(VENV)/.installed
	TORCH="$(TORCH)" $(BIN)/python benchmarks/peers/install.py
	rm -rf build/exchange
	$(BIN)/python tests/exchange_agreement.py write build/exchange
	.venv-peers/sae-lens/bin/python tests/exchange_agreement.py check build/exchange saelens
	.venv-peers/sparsify/bin/python tests/exchange_agreement.py check build/exchange sparsify
	.venv-peers/dictionary-learning/bin/python tests/exchange_agreement.py check build/exchange dictionary-learning

# The explorer's page, from web/ into the package; needs Node 20 or later. web-check builds it elsewhere and compares every byte.
web:
	cd web && npm ci --silent && npm run --silent build

web-check:
	cd web && npm ci --silent && npm run --silent check && EXPLORER_OUT=$(CURDIR)/build/explorer npx vite build --logLevel error
	diff -r build/explorer src/sparsight/web/static

clean:
	rm -rf $(VENV) .venv-peers build dist *.egg-info src/*.egg-info
