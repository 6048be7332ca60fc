# A thin face: what each target does is a few lines here, the rest is in pyproject.toml, native/ and tests/.
# Everything happens in .venv and build/; the system needs python3 (with venv and C headers), gcc, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
SOURCES := $(shell find native/include native/src native/cmake native/CMakeLists.txt -type f) build_ffi.py examples/stark.py
# pip, pytest and the rest come from the environment; so do cmake and ninja, which a fresh machine does not have.
export PATH := $(BIN):$(PATH)

.PHONY: demo test check wheel amalgamation cross clean \
    test-all test-tools test-numpy test-scipy test-programs test-valgrind test-amalgamation test-examples test-cross test-wheels \
    test-sdist test-long prove fuzz coverage soak bench bench-native bench-numpy bench-global count-native residue-table
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	fastalloc demo

# Under the sanitizers: not what has no extension in it, nor what reads a whole process's memory (a sanitizer maps terabytes), preloads
# another malloc, or compiles C, nor NumPy's own tests. The prover's JIT compiler makes the leak check slow: its tests on arenas run without.
UNSANITIZED := all amalgamation cli examples floors fuzz live malloc native nomemory numpy_suite preload prove stark
test: $(VENV)/.test
	FASTALLOC_MACHINE_EXAMPLES=500 tests/asan/run tests $(UNSANITIZED:%=--ignore=tests/test_%.py) --ignore=tests/programs --ignore=tests/misuse
	ASAN_OPTIONS=detect_leaks=0 tests/asan/run tests/test_stark.py -k arenas
	pytest

# Other libraries' own tests with fastalloc installed and in a scope, whole; make test runs a slice of NumPy's
# (tests/test_numpy_suite.py). Hours on a slow machine.
test-numpy: $(VENV)/.test
	tests/suites numpy
	tests/suites numpy-oldest

test-scipy: $(VENV)/.test
	tests/suites scipy
	tests/suites pandas

# Real programs on the global allocator, the long ones too; make test runs the quick ones. What is not installed is skipped by name.
test-programs: $(VENV)/.programs
	tests/needs lua5.4 redis-server ruby sqlite3 \
	    $$(/usr/bin/python3 -c 'import sys; print("libpython%d.%d-testsuite" % sys.version_info[:2])') \
	    $$(command -v node >/dev/null || echo nodejs) $$(command -v rustc >/dev/null || echo rustc)
	FASTALLOC_TEST_LONG=1 pytest tests/programs

# What NumPy's operations leave of a secret outside a witness arena: the table of docs/secrets.md, made anew.
residue-table: $(VENV)/.test
	python tests/residue/table.py --write

# All parts at once for a long time, the global allocator under them: memory flat, counters balanced, faults not growing.
MINUTES ?= 10
soak: $(VENV)/.test
	fastalloc run -- $(BIN)/python tests/soak.py --minutes $(MINUTES)

test-valgrind: $(VENV)/.test
	tests/needs valgrind
	FASTALLOC_TEST_PRESETS=debug FASTALLOC_TEST_WRAPPER="valgrind --quiet --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite --error-exitcode=99" \
	    pytest -n 2 tests/test_native.py -k test_c

# The C tests on fastalloc.c, for 64 and 32 bits and WebAssembly; make test runs some of them, for 64 bits.
test-amalgamation: $(VENV)/.cross
	tests/needs gcc-multilib
	FASTALLOC_TEST_AMALGAMATION="64-bit 32-bit wasm" pytest tests/test_amalgamation.py

# Lua for 64 and 32 bits and WebAssembly, SQLite with a big table; make test has both if they are installed, for 64 bits.
test-examples: $(VENV)/.cross build/lua/onelua.c
	tests/needs gcc-multilib liblua5.4-dev libsqlite3-dev sqlite3
	FASTALLOC_LUA=$(CURDIR)/build/lua FASTALLOC_TEST_ROWS=1000000 pytest tests/test_examples.py

# Lua's own sources, as a Python package for Lua carries them.
build/lua/onelua.c: $(VENV)/.made
	mkdir -p $(@D)
	pip download --quiet --disable-pip-version-check --no-deps --no-binary lupa --dest build lupa==2.8
	tar --extract --file build/lupa-2.8.tar.gz --directory $(@D) --strip-components 3 lupa-2.8/third-party/lua54
	touch $@

# The library and the C tests for other systems and processors (tests/cross.py), and these tests run. One line per target.
cross: $(VENV)/.cross
	python tests/cross.py --build

test-cross: $(VENV)/.cross
	tests/needs qemu-user wine wine64 nodejs libc6-arm64-cross libc6-riscv64-cross
	FASTALLOC_TEST_CROSS=1 pytest tests/test_cross.py

# The wheel, with its manylinux tag, in fresh environments of CPython 3.11, 3.12 and 3.13; and the source distribution.
test-wheels: $(VENV)/.dev
	nox --session wheel tests

test-sdist: $(VENV)/.dev
	nox --session sdist

# What some tests of make test use if it is there.
test-tools:
	tests/needs g++ gdb pkg-config binutils

# All of it, hours: each goal whatever became of the others, and at the end one line for each (tests/all.py).
test-all:
	MAKE="$(MAKE)" $(PYTHON) tests/all.py test-tools test test-numpy test-scipy test-programs test-valgrind test-amalgamation \
	    test-examples test-cross test-wheels test-sdist prove test-long

check: $(VENV)/.dev
	ruff check
	ruff format --check
	mypy
	python tests/floors.py
	cd native && cmake --preset release && cmake --build --preset release
	cd native && cmake --preset analyze && cmake --build --preset analyze

bench: $(VENV)/.bench
	asv_bench/run

bench-native: $(VENV)/.test
	cd native && cmake --preset release && cmake --build --preset release --target bench
	build/release/bench/bench --json build/bench.json

count-native: $(VENV)/.test
	cd native && cmake --preset release && cmake --build --preset release --target bench
	native/bench/count build/release/bench/bench

bench-numpy: $(VENV)/.bench
	python asv_bench/quick_numpy.py --json build/bench-numpy.json

# The whole C library as two files, to be dropped into a C project.
amalgamation:
	$(PYTHON) native/amalgamate.py build/amalgamation

bench-global: $(VENV)/.programs
	cd native && cmake --preset release && cmake --build --preset release
	PYTHONSAFEPATH=1 python asv_bench/global_bench.py --json build/bench-global.json

wheel: $(VENV)/.made
	pip wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist asv_bench/env asv_bench/html asv_bench/results

# ---- environments: made afresh when pyproject.toml changes, installed again when C sources do ------------------------

$(VENV)/.made: pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

# Editable, so that `import fastalloc` works in this directory too and Python files need no reinstallation.
$(VENV)/.demo: EXTRAS = demo
$(VENV)/.test: EXTRAS = demo,test
$(VENV)/.dev: EXTRAS = demo,test,dev
$(VENV)/.bench: EXTRAS = demo,test,bench
$(VENV)/.cross: EXTRAS = demo,test,cross
$(VENV)/.programs: EXTRAS = demo,test,halo2
$(VENV)/.demo $(VENV)/.test $(VENV)/.dev $(VENV)/.bench $(VENV)/.cross $(VENV)/.programs: $(VENV)/.made $(SOURCES)
	pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]"
	touch $@

# ---- proofs, fuzzing, coverage: docs/verification.md ---------------------------------------------------------------------

# Proofs of the address arithmetic and models of what is lock-free.
prove: $(VENV)/.prove
	tests/needs spin
	if command -v spin; then python native/prove/models.py; else echo "make prove: models skipped, spin is not installed"; fi
	python native/prove/arithmetic.py

# libFuzzer on each target; what the committed corpus finds is a part of make test (tests/test_fuzz.py).
SECONDS ?= 60
fuzz: $(VENV)/.test
	tests/needs clang
	native/fuzz/run $(SECONDS)

# 20,000 programs over the Python API, in two processes; longer stress, fuzzing.
test-long: $(VENV)/.test
	FASTALLOC_MACHINE_EXAMPLES=20000 pytest --numprocesses 2 tests/test_machine.py
	FASTALLOC_TEST_LONG=1 pytest tests/test_native.py -k stress
	$(MAKE) fuzz

# Lines and branches of native/src that the C and Python tests reach, in build/coverage-report.
coverage: $(VENV)/.coverage
	native/coverage

$(VENV)/.prove: EXTRAS = test,prove
$(VENV)/.coverage: EXTRAS = demo,test,coverage
$(VENV)/.prove $(VENV)/.coverage: $(VENV)/.made $(SOURCES)
	pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]"
	touch $@
