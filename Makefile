# Every target works on a fresh clone: what is missing is set up first.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-done
PYTEST_ARGS ?=

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test format check build docs pictures constraints clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

setup: $(STAMP)  ## create .venv with everything in it; seconds when nothing changed
	@:

demo: setup  ## lift a cube in simulation with the shipped policy, and write a report
	@$(BIN)/vla run launch/lift.toml

test: setup  ## run all tests, on every core up to eight (PYTEST_ARGS: "-k name" narrows, "--cpu-times" tells the cost)
	@$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=8 --dist=loadfile $(PYTEST_ARGS)

format: setup  ## format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

check: setup  ## lint and type-check
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/pyright

build: setup  ## build wheel and sdist, install each in a clean environment and try it; then the plugins
	@rm -rf dist && $(BIN)/uv build --quiet --out-dir dist
	@for artefact in dist/*.whl dist/*.tar.gz; do \
	  clean=$$(mktemp -d) && trap 'rm -rf "$$clean"' EXIT; \
	  $(BIN)/uv venv --quiet --python $(BIN)/python "$$clean/venv"; \
	  $(BIN)/uv pip install --quiet --python "$$clean/venv/bin/python" -c constraints.txt "$$artefact"; \
	  (cd "$$clean" && venv/bin/vla --help >/dev/null && venv/bin/vla list >/dev/null && venv/bin/vla check); \
	  echo "works from a clean install: $$artefact"; \
	done
	@for plugin in plugins/*/; do \
	  clean=$$(mktemp -d) && trap 'rm -rf "$$clean"' EXIT; \
	  $(BIN)/uv build --quiet --out-dir dist/plugins "$$plugin"; \
	  $(BIN)/uv pip install --quiet --no-deps --target "$$clean" dist/plugins/$$(basename "$$plugin")-*.whl; \
	  PYTHONPATH="$$clean" $(BIN)/python -c "import $$(basename "$$plugin") as plugin; print('works from its wheel:', plugin.__file__)"; \
	done

pictures: setup  ## draw the pictures of README and docs anew, from the program; PICTURES="view.png" draws one
	@$(BIN)/python docs/make_pictures.py $(PICTURES)

docs: setup  ## build the documentation site in site/; fails on a broken link and on a public name without a page
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "Built: site/index.html"

constraints: setup  ## resolve the newest versions that fit pyproject.toml into constraints.txt
	@{ sed -n '/^#/p' constraints.txt; \
	   $(BIN)/uv pip compile pyproject.toml --all-extras --upgrade --quiet --no-header --no-annotate --no-emit-index-url; \
	 } > constraints.tmp && mv constraints.tmp constraints.txt

clean:  ## remove .venv, caches and builds; runs/ and data/ stay
	rm -rf $(VENV) dist site .pytest_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt .python-version
	@.ci/make_venv $(VENV)
	@echo "Installing the packages of constraints.txt (about 6 GB of disk the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' constraints.txt)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[all,cluster,dev,docs]'
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e plugins/lerobot_policy_vla_robot
	@touch $@
	@echo "Set up in $(VENV). If something seems off: $(BIN)/vla doctor"
