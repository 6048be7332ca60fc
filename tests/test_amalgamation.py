"""fastalloc.c and fastalloc.h of `make amalgamation`: they compile as their own, and the C tests pass on them.

A plain run is for this machine's own processor and a few of the C test programs; `make test-amalgamation` sets
FASTALLOC_TEST_AMALGAMATION to all targets and runs every program.
"""

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import cross
import pytest
from targets import Target, run, target

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
QUICK = ["arena_test", "death_test", "fastalloc32_published_test", "fastalloc32_test", "manager_test"]

CHOSEN = os.environ.get("FASTALLOC_TEST_AMALGAMATION", "")
TARGETS = CHOSEN.split() or ["64-bit"]
# Python's heap for arrays and the global allocator are not in the amalgamation; one program needs Lua.
OTHERS = {"array_heap_test", "global_test", "hardened_test", "lua_test"}
EVERY = sorted({path.stem for path in (NATIVE / "tests").glob("*_test.c")} - OTHERS)
PROGRAMS = EVERY if CHOSEN else QUICK


@pytest.fixture(scope="session")
def amalgamation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the two files, and nothing else."""
    directory = tmp_path_factory.mktemp("amalgamation")
    done = run([sys.executable, str(NATIVE / "amalgamate.py"), str(directory)])
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in directory.iterdir()) == ["fastalloc.c", "fastalloc.h"]
    return directory


@pytest.fixture(scope="session", params=TARGETS)
def machine(request: pytest.FixtureRequest) -> Target:
    found = target(request.param)
    if found.missing:
        pytest.skip(found.missing)
    return found


@pytest.fixture(scope="session")
def with_internals(amalgamation: Path, machine: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The object that the library's own tests link, which look inside."""
    directory = tmp_path_factory.mktemp(f"internals-{machine.name}")
    source, internals = amalgamation / "fastalloc.c", directory / "fastalloc.o"
    machine.compile(*STRICT, "-O1", "-g", "-DFA_INTERNALS", "-c", source, "-o", internals)
    # Programs that include this header get the amalgamated one.
    (directory / "fastalloc32.h").write_text('#include "fastalloc.h"\n')
    return directory


def test_two_files_dropped_into_a_project(amalgamation: Path, machine: Target, tmp_path: Path) -> None:
    program = tmp_path / "consumer"
    sources = [NATIVE / "tests/install/consumer.c", amalgamation / "fastalloc.c"]
    machine.compile(*STRICT, "-O2", f"-I{amalgamation}", *sources, "-o", program, *machine.linking)
    done = machine.run(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fastalloc ")


def test_an_object_exports_what_the_header_declares(amalgamation: Path, tmp_path: Path) -> None:
    if shutil.which("nm") is None or target("64-bit").missing:
        pytest.skip("nm or the C compiler is not installed")
    target("64-bit").compile("-std=c11", "-O0", "-c", amalgamation / "fastalloc.c", "-o", tmp_path / "fastalloc.o")
    symbols = run(["nm", "--defined-only", "--extern-only", str(tmp_path / "fastalloc.o")]).stdout
    declared = re.findall(r"^FA_API [^;]*?(\w+)\(", (amalgamation / "fastalloc.h").read_text(), re.MULTILINE)
    assert sorted(line.split()[-1] for line in symbols.splitlines()) == sorted(declared)


@pytest.mark.parametrize("program", PROGRAMS)
def test_c_tests_pass_on_it(
    amalgamation: Path, machine: Target, with_internals: Path, program: str, tmp_path: Path
) -> None:
    if (machine.name, program) == ("wasm", "stress_test"):
        pytest.skip("it has threads that fork, and WASI has neither")
    executable = tmp_path / program
    includes = [f"-I{amalgamation}", f"-I{with_internals}", f"-I{NATIVE / 'src'}"]
    sources = [NATIVE / f"tests/{program}.c", with_internals / "fastalloc.o"]
    machine.compile("-std=gnu11", "-O1", "-w", *includes, *sources, "-o", executable, *machine.linking)
    wasm = machine.name == "wasm"
    outcomes = list(cross.results(cross.run_in_wasmtime if wasm else run_here, executable, one_by_one=wasm))
    assert [problem for _, problem, _ in outcomes if problem is not None] == []
    listed = machine.run(executable, "--list").stdout.split()
    assert [name for name, _, _ in outcomes] == listed
    assert listed


def run_here(program: Path, arguments: list[str]) -> tuple[int, str]:
    done = run([str(program), *arguments])
    return done.returncode, done.stdout + done.stderr


# ---- what the script does where files meet ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> object:
    spec = importlib.util.spec_from_file_location("amalgamate", NATIVE / "amalgamate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OWN_NAMES = """\
/*
static int in_a_comment(void);
*/
static int one(void) { return two; }
FA_APART static void *three(int x) {
}
static _Atomic uint64_t four = 5;
static const char five[] = "
static int in_a_string;";
enum kind { NOTHING, LIVE = 3 };
typedef struct found {
    int size;
} found;
int fa_shared(void) {
}
"""

MEMBERS = """\
struct heap {
    int lock, other;
    void (*take)(LOCK *);
};
/* lock */ static void LOCK(heap *h) {
    h->lock = 1;
    g.lock = (heap){.lock = 2}.lock;
    puts("lock");
    LOCK(h);
    each(h, LOCK);
}
"""


def test_own_names(script):
    assert script.own_names(OWN_NAMES) == {"one", "three", "four", "five", "kind", "NOTHING", "LIVE", "found"}


def test_a_renamed_function_is_no_member_and_no_word(script):
    assert script.rename(MEMBERS.replace("LOCK", "lock"), {"lock": "m_lock"}) == MEMBERS.replace("LOCK", "m_lock")


def test_a_source_is_taken_only_if_it_is_called(script):
    taken = {path.relative_to(NATIVE / "src").as_posix() for path in script.needed()}
    assert {"os/linux.c", "mem/pool.c", "heap/manager.c", "adapters/lua.c", "adapters/fastalloc32.c"} <= taken
    assert not any(name.startswith("adapters/python") or name == "adapters/numpy.c" for name in taken)


def test_every_platform_is_in_it_for_itself_only(script, amalgamation):
    text = (amalgamation / "fastalloc.c").read_text()
    for path in (NATIVE / "src" / "os").glob("*.c"):
        assert re.search(rf"#(?:el)?if {re.escape(script.PLATFORMS[path.stem])}\n\n/\* ---- src/os/{path.name} ", text)
