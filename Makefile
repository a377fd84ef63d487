# Everything sets itself up: a virtual environment in $(VENV), nothing global.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help demo test quick check bench bench-quick examples clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "asynccache needs Python 3.11 or newer: make PYTHON=/path/to/python3.13 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "installing ($*) into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[$*]"
	@touch $@

demo: $(VENV)/.installed-demo ## Drive a FastAPI service with 500 connections, cache off and on
	@$(BIN)/python examples/demo.py

test: $(VENV)/.installed-test ## Run all tests, with coverage
	@rm -f .coverage .coverage.*
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --cov --cov-report=term

quick: $(VENV)/.installed-test ## Run the tests that take no seconds
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

check: $(VENV)/.installed-test $(VENV)/.installed-check ## Lint, format, types, coverage, asyncio debug mode
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/typing_examples.py
	@[ -f .coverage ] || $(MAKE) test
	$(BIN)/coverage report --fail-under=95 --format=total
	PYTHONASYNCIODEBUG=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" tests/promises

bench: $(VENV)/.installed-bench ## Measure, side by side with the peers (about 2 minutes)
	@$(BIN)/python benchmarks/run.py

bench-quick: $(VENV)/.installed-bench ## Measure roughly (about 20 seconds)
	@$(BIN)/python benchmarks/run.py --quick

examples: $(VENV)/.installed-test ## Run the tests of the examples
	@$(BIN)/python -m pytest -q tests/test_examples.py

clean: ## Remove the environment and what the tools left
	rm -rf $(VENV) .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
