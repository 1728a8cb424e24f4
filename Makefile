# `make ask` and `make test` are the quick start; `make help` lists the rest.
# Everything is installed into .venv, and a second run repeats nothing that is already there.

PYTHON ?= python3
PYTHONS ?= $(PYTHON)
DOCUMENT ?= docs/examples/pride-and-prejudice-1-4.txt
QUESTION ?= What is the name of the gentleman who has taken Netherfield Park?

bin := .venv/bin
quoted = '$(subst ','\'',$(1))'

.DEFAULT_GOAL := help
.PHONY: help ask test test-browser test-cluster check check-install release-check docs format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s%s\n", $$1, $$2 }' Makefile

ask: .venv/installed ## install, fetch the default model and answer QUESTION about DOCUMENT
	$(bin)/adamas ask $(call quoted,$(DOCUMENT)) $(call quoted,$(QUESTION))

test: .venv/installed-for-development ## fetch the models that tests ask and run the whole test suite
	$(bin)/adamas models pull smollm2-135m
	$(bin)/adamas models pull qwen2.5-coder-0.5b
	$(bin)/python -m pytest -n 3 --dist worksteal --durations 30

test-browser: .venv/installed-for-development ## test the server's page in a headless Chromium, which must be installed
	$(bin)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(bin)/python -m pytest -m browser

test-cluster: .venv/installed-for-development ## test `adamas map` on Ray clusters on this machine (minutes)
	$(bin)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[cluster]'
	$(bin)/python -m pytest -m cluster

check: .venv/installed-for-development ## check format, lint, types and layers
	$(bin)/ruff format --check
	$(bin)/ruff check
	$(bin)/mypy
	$(bin)/lint-imports --no-logo

check-install: ## install the wheel and the source tree into fresh environments and try both
	.ci/check-install $(PYTHON)

release-check: ## build and check the sdist and the wheel, and install it with pipx under each of PYTHONS
	.ci/check-release $(PYTHONS)

docs: .venv/installed-for-development ## build the manual in build/site; broken links fail
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --quiet

format: .venv/installed-for-development ## format the sources and repair what lint can repair
	$(bin)/ruff check --fix
	$(bin)/ruff format

clean: ## remove .venv and everything that was built or cached here
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; found = sys.version_info[:2]; found >= (3, 11) or sys.exit("adamas needs Python 3.11 or newer, and $(PYTHON) is %d.%d: name another one, such as make PYTHON=python3.12 $(MAKECMDGOALS)" % found)'
	$(PYTHON) -m venv .venv
	$(bin)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-for-development: .venv/installed
	$(bin)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test,check,docs]'
	@touch $@
