"""fastalloc.c and fastalloc.h of `make amalgamation`: they compile as their own, and the C tests pass on them.

A plain run is for this machine's own processor and a few of the C test programs; `make test-amalgamation` sets
FASTALLOC_TEST_AMALGAMATION to all targets and runs every program.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
TIMEOUT = 300
COMPILERS = {
    "64-bit": [os.environ.get("CC", "cc")],
    "32-bit": [os.environ.get("CC", "cc"), "-m32", "-Wno-psabi"],  # a note of gcc's about its own past
}
QUICK = ["arena_test", "death_test", "fastalloc32_published_test", "fastalloc32_test", "manager_test"]

CHOSEN = os.environ.get("FASTALLOC_TEST_AMALGAMATION", "")
TARGETS = CHOSEN.split() or ["64-bit"]
EVERY = sorted(path.stem for path in (NATIVE / "tests").glob("*_test.c") if path.stem != "lua_test")
PROGRAMS = EVERY if CHOSEN else QUICK

pytestmark = pytest.mark.skipif(shutil.which(COMPILERS["64-bit"][0]) is None, reason="no C compiler")


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command, capture_output=True, text=True, env=environment, check=False, timeout=TIMEOUT, **options
    )


def compiled(command: list[str]) -> None:
    done = run(command)
    assert (done.returncode, done.stderr) == (0, ""), f"{' '.join(command)}\n{done.stdout}{done.stderr}"


@cache
def missing(target: str) -> str:
    """What keeps programs from being built and run for a target."""
    source = '#include <stdio.h>\nint main(void) { return puts("") == EOF; }\n'
    done = run([*COMPILERS[target], "-x", "c", "-", "-o", os.devnull], input=source)
    return "" if done.returncode == 0 else f"{' '.join(COMPILERS[target][:2])} builds no programs here (gcc-multilib)"


@pytest.fixture(scope="session")
def amalgamation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the two files, and nothing else."""
    directory = tmp_path_factory.mktemp("amalgamation")
    done = run([sys.executable, str(NATIVE / "amalgamate.py"), str(directory)])
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in directory.iterdir()) == ["fastalloc.c", "fastalloc.h"]
    return directory


@pytest.fixture(scope="session", params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    if reason := missing(request.param):
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture(scope="session")
def with_internals(amalgamation: Path, target: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The object that the library's own tests link, which look inside."""
    directory = tmp_path_factory.mktemp(f"internals-{target}")
    compiled(
        [
            *COMPILERS[target],
            *STRICT,
            "-O1",
            "-g",
            "-DFA_INTERNALS",
            "-c",
            str(amalgamation / "fastalloc.c"),
            "-o",
            str(directory / "fastalloc.o"),
        ]
    )
    # Programs that include this header get the amalgamated one.
    (directory / "fastalloc32.h").write_text('#include "fastalloc.h"\n')
    return directory


def test_two_files_dropped_into_a_project(amalgamation: Path, target: str, tmp_path: Path) -> None:
    program = tmp_path / "consumer"
    sources = [str(NATIVE / "tests/install/consumer.c"), str(amalgamation / "fastalloc.c")]
    compiled([*COMPILERS[target], *STRICT, "-O2", f"-I{amalgamation}", *sources, "-o", str(program), "-pthread"])
    done = run([str(program)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fastalloc ")


def test_an_object_exports_what_the_header_declares(amalgamation: Path, tmp_path: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    compiled(
        [*COMPILERS["64-bit"], "-std=c11", "-O0", "-c", str(amalgamation / "fastalloc.c"), "-o", str(tmp_path / "o.o")]
    )
    symbols = run(["nm", "--defined-only", "--extern-only", str(tmp_path / "o.o")]).stdout
    declared = re.findall(r"^FA_API [^;]*?(\w+)\(", (amalgamation / "fastalloc.h").read_text(), re.MULTILINE)
    assert sorted(line.split()[-1] for line in symbols.splitlines()) == sorted(declared)


@pytest.mark.parametrize("program", PROGRAMS)
def test_c_tests_pass_on_it(
    amalgamation: Path, target: str, with_internals: Path, program: str, tmp_path: Path
) -> None:
    executable = tmp_path / program
    includes = [f"-I{amalgamation}", f"-I{with_internals}", f"-I{NATIVE / 'src'}"]
    sources = [str(NATIVE / f"tests/{program}.c"), str(with_internals / "fastalloc.o")]
    compiled([*COMPILERS[target], "-std=gnu11", "-O1", "-w", *includes, *sources, "-o", str(executable), "-pthread"])
    done = run([str(executable)])
    report = f"{done.stdout}{done.stderr}"
    assert done.returncode == 0, report
    outcomes = re.findall(r"^(not ok|ok) ", done.stdout, re.MULTILINE)
    cases = run([str(executable), "--list"]).stdout.split()
    assert outcomes == ["ok"] * len(cases), report
    assert cases


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
