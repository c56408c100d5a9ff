# Every target sets up .venv first, once. PYTHON names another interpreter (3.11 or newer).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help venv demo test bench lab docs lint format types clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/'

venv: $(READY)  ## create .venv with everything a developer needs

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "tightrope needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt torch
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	$(PIP) install --quiet -c constraints.txt --no-deps timm  # its torchvision is not needed here
	@touch $@

demo: $(READY)  ## a sick training script, its report, and the same script repaired
	$(BIN)/tightrope demo

test: $(READY)  ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

bench: $(READY)  ## accuracy, overhead, diagnosis and the instruments' tables
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/recording.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/initialize.py
	$(BIN)/python benchmarks/silence.py
	$(BIN)/python benchmarks/batch_noise.py
	$(BIN)/python benchmarks/curvature.py
	$(BIN)/python benchmarks/compass.py
	$(BIN)/python benchmarks/estimators.py
	$(BIN)/python benchmarks/robustness.py
	$(BIN)/python benchmarks/uncertainty.py
	-$(BIN)/python benchmarks/diagnosis.py
	$(BIN)/python benchmarks/repair.py

lab: $(READY)  ## every law, predicted beside measured
	$(BIN)/tightrope lab --all --quick

docs: $(READY)  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(READY)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## rewrite what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## mypy, strict, on src
	$(BIN)/mypy

clean:  ## remove everything that was built
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache
