# `make demo` and `make test` do all the set-up they need: Python 3.11 or newer and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint docs notebooks gallery figures models clean

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "layerlens needs Python 3.11 or newer; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# what the demo needs, and what the developer needs on top
$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[report]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(VENV)/.dev  ## the environment for developing, in .venv

demo: $(VENV)/.base  ## the main job on the bundled models, offline: figures, table and choice into ./demo
	$(BIN)/layerlens demo --out demo

test: $(VENV)/.dev  ## the tests, offline
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.dev  ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev  ## the documentation site in ./site, with warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

notebooks: $(VENV)/.dev  ## run the notebooks again, and keep what they show
	$(BIN)/python -m recipes.site.run_notebooks notebooks/*.ipynb

gallery: $(VENV)/.dev  ## draw the gallery's figures again, and write their numbers
	TQDM_DISABLE=1 OMP_NUM_THREADS=1 $(BIN)/python -m recipes.site.gallery

check: lint docs test  ## everything that must hold before a change lands

figures: demo  ## refresh the figures of the README from the demo
	for f in $(README_FIGURES); do cp demo/figures/$$f figures/$$f; done

README_FIGURES = tiny-qwen3-tokens.png tiny-qwen3-flow.png tiny-qwen3-ffn-change.png families.png

models: $(VENV)/.base  ## train and measure the two bundled models again, from scratch (two hours of one core)
	$(BIN)/python -m recipes.tiny_models.train

clean:  ## remove the environment and what the demo made
	rm -rf $(VENV) demo site
