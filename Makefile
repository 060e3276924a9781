# GNU make. Every target makes the environment that it needs, from nothing but Python; `make` alone lists them.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow test-all lint format docs wheel clean FORCE

help: ## list the targets
	@echo "usage: make TARGET [ARGS='...'] [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo ## reconstruct photographs with the embedded models, into outputs/demo
	$(BIN)/ssdd demo --out outputs/demo --overwrite $(ARGS)

test: $(VENV)/.dev ## run the tests but the slow ones, in two processes; ARGS goes to pytest
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

test-slow: $(VENV)/.dev ## run the others: several processes, faults, fuzzing, compilers, the browser, examples
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(ARGS)

test-all: test test-slow ## run all tests

lint: $(VENV)/.dev ## ruff check, ruff format --check, mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.dev ## apply ruff's fixes and formatting
	$(BIN)/python -m ruff check --fix-only .
	$(BIN)/python -m ruff format .

docs: $(VENV)/.docs ## build the site of the guides into site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

wheel: $(VENV)/.dev ## build the wheel into dist
	$(BIN)/python -m build --wheel --no-isolation

clean: ## remove what the targets above wrote, but for .venv
	rm -rf build dist site outputs/demo .mypy_cache .pytest_cache .ruff_cache
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +

# The environment. A stamp in it says which extra is installed, for which pyproject.toml; it is written last and
# taken away first, so an interrupted installation is done again.

# A stamp does not count when the interpreter is gone.
STALE := $(shell test -x $(BIN)/python || echo FORCE)

$(VENV)/.demo: pyproject.toml $(STALE)
	$(call install,demo)
	@touch $@

$(VENV)/.docs: pyproject.toml $(STALE)
	$(call install,docs)
	@touch $@

# dev includes demo and docs.
$(VENV)/.dev: pyproject.toml $(STALE)
	$(call install,dev)
	@touch $(VENV)/.demo $(VENV)/.docs $@

FORCE:

# 1. Without a working pip, make the environment anew. 2. Forget packages whose installation was cut off (pip writes
# RECORD last, but takes a package for installed before that). 3. Install.
define install
@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    || { echo "error: '$(PYTHON)' is not Python 3.11 or newer: try make PYTHON=python3.12" >&2; exit 1; }; \
  echo "Creating $(VENV)"; \
  rm -rf $(VENV) && "$(PYTHON)" -m venv $(VENV); }
@rm -f $(VENV)/.demo $(VENV)/.docs $(VENV)/.dev
@for info in $(VENV)/lib/python*/site-packages/*.dist-info; do \
  if [ -d "$$info" ] && [ ! -f "$$info/RECORD" ]; then rm -rf "$$info"; fi; done
@echo "Installing ssdd[$(1)] into $(VENV) (the first time that is some GB, PyTorch included)"
$(BIN)/python -m pip install --disable-pip-version-check -e '.[$(1)]'
endef
