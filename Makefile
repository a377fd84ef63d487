# Everything sets itself up: a virtual environment in $(VENV), nothing global.
PYTHON ?= python3
VENV ?= .venv
# A PYTHON given by hand is taken or refused; only the default is replaced when it is too old.
FALLBACKS := $(if $(filter file,$(origin PYTHON)),python3.13 python3.12 python3.11)
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help demo demo-redis test quick check bench bench-quick examples clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@for python in "$(PYTHON)" $(FALLBACKS); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo "asynccache needs Python 3.11 or newer: make PYTHON=/path/to/python3.13 ..." >&2; exit 1

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "installing ($*) into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[$*]"
	@touch $@

demo: $(VENV)/.installed-demo ## Drive a FastAPI service with 500 connections, cache off and on
	@$(BIN)/python examples/demo.py

# More workers than cores: many tests wait for servers. A failing run is still combined and reported, and its exit code kept.
test: $(VENV)/.installed-test ## Run all tests, with coverage
	@rm -f .coverage .coverage.*
	@status=0; \
	$(BIN)/coverage run -m pytest -q -n 3 --dist loadfile || status=$$?; \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report --fail-under=0 || status=1; \
	exit $$status

quick: $(VENV)/.installed-test ## Run the tests that take no seconds
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

check: $(VENV)/.installed-test $(VENV)/.installed-check ## Lint, format, types, coverage, asyncio debug mode
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(if $(wildcard tests/typing_examples.py),$(BIN)/mypy --strict tests/typing_examples.py)
	@[ -f .coverage ] || $(MAKE) test
	$(BIN)/coverage report --format=total
	$(if $(NO_DEBUG_RUN),,PYTHONASYNCIODEBUG=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow")

demo-redis: $(VENV)/.installed-demo ## Kill the Redis behind four processes, and start it again
	@$(BIN)/python examples/demo_redis.py

bench: $(VENV)/.installed-bench ## Measure, side by side with the peers (about 4 minutes)
	@$(BIN)/python benchmarks/run.py

bench-quick: $(VENV)/.installed-bench ## Measure roughly (about 40 seconds)
	@$(BIN)/python benchmarks/run.py --quick

examples: $(VENV)/.installed-test ## Run the tests of the examples
	@$(BIN)/python -m pytest -q tests/test_examples.py tests/test_demo_redis.py

clean: ## Remove the environment and what the tools left
	rm -rf $(VENV) .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
