# Every target makes the environment that it needs. PYTHON is the interpreter it is made from.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
OLDEST_BIN := .venv-oldest/bin
OLDEST_READY := .venv-oldest/.ready
# keras-hub 0.32 wants a newer TensorFlow and tritonclient a newer protobuf, with which the oldest one
# has no other quarrel.
OLDEST := 'tensorflow==2.18.*' 'keras-hub==0.31.0' 'tritonclient==2.58.0'

# Two workers: TensorFlow's own threads use the rest of a machine. Files in the order of
# `tests/conftest.py`, where long ones come first.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help env demo test test-slow test-oldest lint docs dist bazel clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(READY)  ## the environment for development, in .venv

$(READY): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'error: $(PYTHON) is too old: development needs Python 3.11 or later.' >&2; \
	  echo '  fix: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[gurobi,lint,test]'
	touch $@

demo: $(READY)  ## the whole way on four emulated GPUs: profile, place, prove, measure
	$(BIN)/python -m benchmarks.demo

test: $(READY)  ## the tests, in minutes
	$(BIN)/python -m pytest $(TWO)

test-slow: $(READY)  ## the large models, attacks and benchmarks
	$(BIN)/python -m pytest $(TWO) -m slow

test-oldest: $(OLDEST_READY)  ## the tests on the oldest TensorFlow that is supported
	$(OLDEST_BIN)/python -m pytest $(TWO)

$(OLDEST_READY): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
	  echo 'error: the oldest TensorFlow needs Python 3.11 or 3.12 here.' >&2; \
	  echo '  fix: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12' >&2; exit 1; }
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST_BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[gurobi,test]' $(OLDEST)
	touch $@

lint: $(READY)  ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

docs: $(READY)  ## the API reference, from the docstrings, in build/api
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	PDOC_ALLOW_EXEC=1 $(BIN)/python -m pdoc --docformat google --output-directory build/api \
	  moirai_tf '!moirai_tf.placement.exact'

dist: $(READY)  ## wheel and source distribution, checked, in dist
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[publish]'
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

bazel:  ## build every target with Bazel, where it is installed
	@command -v bazel > /dev/null || { \
	  echo 'error: bazel is not installed.' >&2; \
	  echo '  fix: apt-get install bazel-bootstrap (Debian), or see https://bazel.build' >&2; \
	  exit 1; }
	bazel build //...

clean:  ## remove environments, caches and what was built
	rm -rf .venv .venv-oldest build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
