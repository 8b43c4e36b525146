# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH := $(VENV)/.torch
RESULTS := benchmarks/results
DATA ?= ../shared/data
PYTEST := $(BIN)/python -m pytest -q --jaxtyping-packages=matterform,crystalformer,atomformer,agedi,beartype.beartype

.PHONY: demo test test-slow check format bench bench-potentials wheel-check install clean

demo: install ## samples crystals from the shipped weights; writes CIFs, a table and a picture to demo/
	rm -rf demo
	$(BIN)/python experiments/crystalformer/demo.py --out demo

test: install ## the fast tests, on two processes
	$(PYTEST) -n 2 --dist worksteal -m "not slow"

test-slow: install ## the long ones
	$(PYTEST) -m slow

check: install $(TORCH) ## what continuous integration runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(MAKE) test

format: install ## formats, and mends what can be mended by machine
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## measures on this machine; appends JSON lines to benchmarks/results/
	$(BIN)/python benchmarks/cases/crystalformer_data.py $(DATA)/mp20_biternary.csv.gz >> $(RESULTS)/crystalformer_data.jsonl
	$(BIN)/python benchmarks/cases/crystalformer_likelihood.py --out $(RESULTS)/crystalformer_likelihood.jsonl
	$(BIN)/python benchmarks/cases/crystalformer_sampling.py --out $(RESULTS)/crystalformer_sampling.jsonl
	$(BIN)/python benchmarks/cases/hull_speed.py $(DATA)/mp20_biternary.csv.gz --out $(RESULTS)/hull_speed.jsonl

bench-potentials: $(TORCH) ## the same for force fields, and for the reward of an epoch
	$(BIN)/python benchmarks/cases/potentials_speed.py --count 24 --out $(RESULTS)/potentials_speed.jsonl
	$(BIN)/python benchmarks/cases/reward_epoch.py --out $(RESULTS)/reward_epoch.jsonl

wheel-check: ## builds a wheel of the committed files, installs it in an empty environment and samples with it
	PYTHON=$(PYTHON) .ci/wheel-check

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# Potentials run on PyTorch, and some tests and benchmarks compare with it; not part of `install`, because pip may take
# gigabytes of it. PyTorch comes first, so that nothing else chooses its build.
$(TORCH): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[chgnet,orb,matgl,mace]'
	touch $@

clean: ## removes what these commands made
	rm -rf $(VENV) demo build *.egg-info .cache .pytest_cache .ruff_cache
