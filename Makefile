# The only two commands: `make demo` (train, commit, prove, verify) and `make test` (everything that CI runs).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean
.DEFAULT_GOAL := demo

demo: .venv/installed
	$(BIN)/python -m tools.demo

test: .venv/installed .venv/witness
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tools.vectors --check
	$(BIN)/python tools/check_vectors.py
	$(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

.venv/installed: pyproject.toml constraints.txt setup.py polstore/codec/_native.c
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[demo,test]'
	touch $@

# The tests of the witness protocol run it against a witness that is not ours.
.venv/witness: .venv/installed tests/interop/witness-requirements.txt
	rm -rf $@
	$(BIN)/python -m pip install -q --disable-pip-version-check --target $@ --no-deps --require-hashes \
	  --only-binary=:all: --ignore-requires-python -r tests/interop/witness-requirements.txt
	touch $@

clean:
	rm -rf .venv build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
