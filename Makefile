# make install | demo | test | test-all | crash | lint | types | audit | docs | clean      PYTHON=python3.12 picks another interpreter
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-all crash lint types audit docs clean

install: $(VENV)/runtime.done

demo: $(VENV)/runtime.done
	$(BIN)/dartune demo

test: $(VENV)/dev.done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow"

# Everything: the tests of `make test`, then those that take whole runs, several processes or minutes.
test-all: test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m slow

# Kills, full disks and cut files by the hundred; `python tests/crash/long.py --help` has less of it.
crash: $(VENV)/dev.done
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/crash/long.py

# Asks a service beside the package index for known weaknesses of what the lock files name; so it is no part of .ci/run.
audit:
	test -x $(VENV)-audit/bin/pip-audit || $(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet $(PIP_ARGS) pip-audit
	$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip -r requirements.lock -r requirements-dev.lock -r requirements-docs.lock

lint: $(VENV)/dev.done
	$(BIN)/ruff check .

types: $(VENV)/dev.done
	$(BIN)/basedpyright --project pyproject.toml --pythonpath $(BIN)/python

docs: $(VENV)/docs.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html; to search it, too: $(BIN)/python -m http.server --directory site"

clean:
	rm -rf $(VENV) $(VENV)-audit build dist site src/*.egg-info .pytest_cache .hypothesis .ruff_cache

# The marks are written last, so an interrupted installation is done again.
$(VENV)/runtime.done: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/dev.done: $(VENV)/runtime.done requirements-dev.lock
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -r requirements-dev.lock
	touch $@

$(VENV)/docs.done: requirements-docs.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -r requirements-docs.lock
	touch $@
