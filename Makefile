# Every target works alone from a fresh clone: it makes its own virtual environment and installs only what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
COVERAGE_DATA := $(VENV)/coverage

# Beside the environment, so that two environments (.venv, .venv313) never mix their measurements.
export COVERAGE_FILE := $(abspath $(COVERAGE_DATA))/data

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test quick check bench bench-quick examples clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-demo ## a web application under 500 connections, cache off and on (under a minute)
	$(BIN)/python examples/demo.py

# A failing run is still combined and reported, so that the data is there to look at; its exit code is kept.
test: $(VENV)/.installed-test ## the whole suite with its coverage report
	@rm -rf $(COVERAGE_DATA) && mkdir -p $(COVERAGE_DATA)
	@status=0; \
	$(BIN)/coverage run -m pytest -n $(WORKERS) --dist loadfile || status=$$?; \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report --fail-under=0 || status=1; \
	[ $$status -ne 0 ] || touch $(COVERAGE_DATA)/complete; \
	exit $$status

quick: $(VENV)/.installed-test ## the suite without its slow tests, not measured
	$(BIN)/python -m pytest -q -m "not slow" -n $(WORKERS) --dist loadfile

check: $(VENV)/.installed-check ## lint, format, strict types, coverage of the last `make test`, asyncio's debug mode
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict asynccache $(wildcard tests/typing_examples.py)
	@[ -e $(COVERAGE_DATA)/complete ] || $(MAKE) test
	$(BIN)/coverage report --format=total
	PYTHONASYNCIODEBUG=1 $(BIN)/python -m pytest -q -m "not slow" -n $(WORKERS) --dist loadfile

bench: $(VENV)/.installed-bench ## every scenario against its floor and its peers (about two minutes)
	$(BIN)/python -m benchmarks.run

bench-quick: $(VENV)/.installed-bench ## the same, fewer rounds
	$(BIN)/python -m benchmarks.run --quick

examples: $(VENV)/.installed-test ## the tests that run the examples
	$(BIN)/python -m pytest -q tests/test_examples.py

clean: ## remove what the targets made, the environments too
	rm -rf .venv .venv313 $(VENV) build dist .coverage .coverage.* htmlcov .hypothesis
	find . -name .git -prune -o -type d \( -name __pycache__ -o -name '.*_cache' \) -prune -exec rm -rf {} +

# PYTHON given by hand is taken or refused; only the default is replaced by a newer one when it is too old.
$(VENV)/pyvenv.cfg:
	@for python in "$(PYTHON)" $(if $(filter file,$(origin PYTHON)),python3.13 python3.12 python3.11); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "$(VENV) by $$("$$python" --version)"; exec "$$python" -m venv "$(VENV)"; \
		fi; \
	done; \
	echo "asynccache needs Python 3.11 or newer, and '$(PYTHON)' is not: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	exit 1

# The linters come on top of the tests' packages: mypy reads pytest's types, and check runs the suite.
$(VENV)/.installed-check: EXTRAS = test,check
$(VENV)/.installed-%: EXTRAS = $*
$(VENV)/.installed-%: pyproject.toml $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install -q -e ".[$(EXTRAS)]"
	@touch $@
