# Everything a developer types. VENV names the virtual environment (made if it is missing), PYTHON what makes it.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
UV = $(BIN)/uv
# Set-up, tests and their child processes share one bytecode cache; an environment may have switched caches off.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX = $(abspath $(VENV))/pycache
READY = $(VENV)/.fastapi-observe-ready
RUN_READY = $(VENV)/.fastapi-observe-run-ready
BENCH_READY = $(VENV)/.fastapi-observe-bench-ready

# Lists that can be given on the command line: make test-fastapi FASTAPI='0.136.* newest' TESTS=tests/end_to_end/test_paths.py
FASTAPI ?= 0.115.2 0.136.* 0.141.* 0.142.* newest
PYTHONS ?= 3.12 3.13 3.14
TESTS ?= tests
ARGS ?=
WORKERS ?= 4
PYTEST = python -m pytest --numprocesses $(WORKERS) $(ARGS)
ROUNDS ?= 20
LOCK_TOOLS = $(UV) pip compile - --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --no-annotate --custom-compile-command 'make lock' $(ARGS)
LOCK = $(subst compile -,compile pyproject.toml,$(LOCK_TOOLS))

.PHONY: help setup run test cover style test-lowest test-fastapi test-python lint format bench bench-check bench-instructions chaos soak repeat screenshots lock docs sbom dist clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS="$$(printf '\t')" read -r target text; \
	  do printf '  %-18s %s\n' "$$target" "$$text"; done

setup: $(READY)  ## Make the virtual environment with everything in it (once)

# Makes the virtual environment, if it is missing, and installs what one file of requirements/ pins.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@echo "Setting up $(VENV) with requirements/$(1).txt"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/uv.txt
	@$(UV) pip install --python $(BIN)/python --compile-bytecode --require-hashes --requirement requirements/$(1).txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@
endef

$(READY): pyproject.toml requirements/test.txt requirements/uv.txt
	$(call install,test)

$(RUN_READY): pyproject.toml requirements/example.txt requirements/uv.txt
	$(call install,example)

run: $(if $(wildcard $(READY)),$(READY),$(RUN_READY))  ## Start the example shop, show one request in all three signals (ARGS='--shop-port 0')
	@exec $(BIN)/python -m example_app $(ARGS)

test: style  ## Check style and types, run the tests (in WORKERS processes)
	@{ $(BIN)/mypy && $(BIN)/mypy example_app; } >$(VENV)/mypy.log 2>&1 & types=$$!; \
	$(BIN)/$(PYTEST); tests=$$?; \
	wait $$types; types=$$?; cat $(VENV)/mypy.log; \
	exit $$(( tests > types ? tests : types ))

cover: $(READY)  ## Run the tests under coverage, hold branch coverage at 98 %
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest --numprocesses $(WORKERS) $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

test-lowest: $(READY)  ## Run TESTS on the lowest versions that pyproject.toml allows
	test -x .venv-lowest/bin/python || $(UV) venv --quiet --python $(BIN)/python .venv-lowest
	$(UV) pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[test]'
	.venv-lowest/bin/$(PYTEST) $(TESTS)

test-fastapi: $(READY)  ## Run TESTS on each version of FASTAPI
	@failed=''; for version in $(FASTAPI); do \
	  echo "== fastapi $$version"; \
	  directory=".venv-matrix/$$(echo "$$version" | tr -d '*')"; \
	  wanted="fastapi==$$version"; test "$$version" != newest || wanted=fastapi; \
	  { test -x "$$directory/bin/python" || $(UV) venv --quiet --python $(BIN)/python "$$directory"; } && \
	  $(UV) pip install --quiet --python "$$directory/bin/python" --upgrade-package fastapi --editable '.[test]' "$$wanted" && \
	  "$$directory/bin"/$(PYTEST) $(TESTS) || failed="$$failed $$version"; \
	done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

test-python: $(READY)  ## Run TESTS on each version of PYTHONS that is installed
	@failed=''; for version in $(PYTHONS); do \
	  echo "== Python $$version"; \
	  python=$$( { python$$version -c 'import sys; print(sys.executable)' || \
	    ls "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version.*/bin/python; } 2>/dev/null | tail -1); \
	  test -n "$$python" || { echo "not installed, left out"; continue; }; \
	  directory=".venv-matrix/python-$$version"; \
	  { test -x "$$directory/bin/python" || $(UV) venv --quiet --python "$$python" "$$directory"; } && \
	  $(UV) pip install --quiet --python "$$directory/bin/python" --require-hashes --requirement requirements/test.txt && \
	  $(UV) pip install --quiet --python "$$directory/bin/python" --no-build-isolation --no-deps --editable . && \
	  "$$directory/bin"/$(PYTEST) $(TESTS) || failed="$$failed $$version"; \
	done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

style: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

lint: style  ## Check style and types
	$(BIN)/mypy
	$(BIN)/mypy example_app

format: $(READY)  ## Put the code into its form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(BENCH_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench,test]'
	@touch $@

bench: $(BENCH_READY)  ## Measure what observing costs, write benchmarks/RESULTS.md (ARGS='--quick', '--only peers')
	$(BIN)/python -m benchmarks $(ARGS)

bench-check: $(BENCH_READY)  ## Compare a quick run with the committed results (for people; ARGS=--strict makes it a gate)
	$(BIN)/python -m benchmarks check $(ARGS)

bench-instructions: $(BENCH_READY)  ## Count instructions under valgrind, write benchmarks/RESULTS.md (ARGS=check: compare only)
	$(BIN)/python -m benchmarks --only instructions $(ARGS)

chaos: $(READY)  ## Run each server with each way a collector fails and each way to end (in WORKERS processes)
	OBSERVE_CHAOS=1 $(BIN)/$(PYTEST) tests/end_to_end/test_chaos.py

soak: $(READY)  ## Run all tests that have a long form in it, make chaos among them
	OBSERVE_SOAK=1 $(BIN)/$(PYTEST) --durations=20 $$(grep --recursive --files-with-matches --include="test_*.py" OBSERVE_SOAK tests)

repeat: $(READY)  ## Run the tests ROUNDS times: what leaks or flickers shows
	@set -e; for round in $$(seq $(ROUNDS)); do echo "== round $$round"; $(BIN)/python -m pytest -q $(ARGS); done

screenshots: $(READY)  ## Take the pictures of the console from the demo (ARGS=directory)
	$(BIN)/python scripts/screenshots.py $(ARGS)

lock: $(READY)  ## Pin and hash what pyproject.toml asks for, in requirements/ (ARGS=--upgrade: to the newest)
	$(LOCK) --extra test --extra instrumentors --output-file requirements/test.txt
	$(LOCK) --constraint requirements/test.txt --output-file requirements/runtime.txt
	$(LOCK) --constraint requirements/test.txt --extra example --output-file requirements/example.txt
	sed -n '/^docs = \[/,/^]/s/^  "\(.*\)",$$/\1/p' pyproject.toml | $(LOCK_TOOLS) \
	  --output-file requirements/docs.txt
	echo uv | $(LOCK_TOOLS) --output-file requirements/uv.txt
	printf '%s\n' check-jsonschema check-wheel-contents pyroma twine | $(LOCK_TOOLS) --output-file requirements/dist.txt

docs: $(READY)  ## Build the documentation as a site with checked links: dist/site
	test -x .venv-docs/bin/python || $(UV) venv --quiet --python $(BIN)/python .venv-docs
	$(UV) pip sync --quiet --python .venv-docs/bin/python --require-hashes requirements/docs.txt
	.venv-docs/bin/python -m zensical build --config-file zensical.toml --strict --clean

sbom: $(READY)  ## Write what an installed fastapi-observe consists of, as CycloneDX: dist/fastapi-observe.cdx.json
	test -x .venv-sbom/bin/python || $(UV) venv --quiet --python $(BIN)/python .venv-sbom
	$(UV) pip sync --quiet --python .venv-sbom/bin/python --require-hashes requirements/runtime.txt
	$(UV) pip install --quiet --python .venv-sbom/bin/python --no-deps .
	@mkdir -p dist
	$(BIN)/python -m cyclonedx_py environment --pyproject pyproject.toml --mc-type library --output-reproducible \
	  --output-file dist/fastapi-observe.cdx.json .venv-sbom/bin/python

dist: $(READY)  ## Build the wheel and the source distribution in dist/, and check them
	rm -f dist/*.whl dist/*.tar.gz
	$(BIN)/python -m hatchling build
	test -x .venv-dist/bin/python || $(UV) venv --quiet --python $(BIN)/python .venv-dist
	$(UV) pip sync --quiet --python .venv-dist/bin/python --require-hashes requirements/dist.txt
	.venv-dist/bin/twine check --strict dist/*.whl dist/*.tar.gz
	.venv-dist/bin/check-wheel-contents dist/*.whl
	.venv-dist/bin/pyroma --min 8 .  # two points are for an e-mail address of the author, which the project does not have
	.venv-dist/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

clean:  ## Remove what these targets made
	rm -rf .venv .venv-lowest .venv-matrix .venv-sbom .venv-docs .venv-dist .cache .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
