# Every target makes the environment that it needs. PYTHON is the interpreter it is made from.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
OLDEST_BIN := .venv-oldest/bin
OLDEST_READY := .venv-oldest/.ready
# keras-hub 0.32 wants a newer TensorFlow, with which the oldest one has no other quarrel.
OLDEST := 'tensorflow==2.18.*' 'keras-hub==0.31.0'

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: env demo test test-slow test-oldest lint bazel clean

env: $(READY)

$(READY): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'error: $(PYTHON) is too old: development needs Python 3.11 or later.' >&2; \
	  echo '  fix: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[gurobi,lint,test]'
	touch $@

demo: $(READY)
	$(BIN)/python -m tools.demo

# Two workers: TensorFlow's own threads use the rest of a machine.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-oldest: $(OLDEST_READY)
	$(OLDEST_BIN)/python -m pytest -n 2 --dist loadfile

$(OLDEST_READY): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
	  echo 'error: the oldest TensorFlow needs Python 3.11 or 3.12 here.' >&2; \
	  echo '  fix: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12' >&2; exit 1; }
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST_BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[gurobi,test]' $(OLDEST)
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

bazel:
	@command -v bazel > /dev/null || { \
	  echo 'error: bazel is not installed.' >&2; \
	  echo '  fix: apt-get install bazel-bootstrap (Debian), or see https://bazel.build' >&2; \
	  exit 1; }
	bazel build //...

clean:
	rm -rf .venv .venv-oldest build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
