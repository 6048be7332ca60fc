"""The C tests: every TEST of native/tests, in every preset, is a test of its own here.

The programs are built once a session and preset, by the presets of native/CMakePresets.json; cases are found by reading
the sources, so collecting compiles nothing. Run one with

    pytest tests/test_native.py -k "asan and a_rewind_returns_to_the_mark"
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"

# `make test-valgrind` sets these.
PRESETS = os.environ.get("FASTALLOC_TEST_PRESETS", "release asan tsan").split()
WRAPPER = os.environ.get("FASTALLOC_TEST_WRAPPER", "").split()
TIMEOUT = 900 if WRAPPER else 300  # seconds that one case may take, on a slow machine under a sanitizer

# A sanitizer's finding is a failure, whatever the program thinks of it.
SANITIZERS = {
    "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1:abort_on_error=0:exitcode=99",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:allocator_may_return_null=1:die_after_fork=0:exitcode=99",
}
SANITIZER_WORDS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "WARNING: ThreadSanitizer", "runtime error:")


def cases() -> Iterator[tuple[str, str]]:
    """(program, case): what stands as TEST(case) at the start of a line, or is made by a macro of the source."""
    for source in sorted((NATIVE / "tests").glob("*_test.c")):
        text = source.read_text()
        for macro, (first, titles) in macros(text).items():
            for call in re.finditer(rf"^{macro}\((\w+)", text, re.MULTILINE):
                for title in titles:
                    yield source.stem, "".join(call[1] if part == first else part for part in title.split("##"))
        for call in re.finditer(r"^TEST\((\w+)\)", text, re.MULTILINE):
            yield source.stem, call[1]


def macros(text: str) -> dict[str, tuple[str, list[str]]]:
    """Macros of a source that contain TEST(...): name, first parameter, and the names they paste."""
    found = {}
    for macro in re.finditer(r"^#define (\w+)\((\w+)[^)]*\)((?:[^\n]*\\\n)*[^\n]*)", text, re.MULTILINE):
        titles = re.findall(r"TEST\(([\w#]+)\)", macro[3])
        if titles:
            found[macro[1]] = (macro[2], titles)
    return found


def tool(name: str) -> str:
    """A build tool: from the environment that runs the tests, else from the PATH."""
    beside = Path(sys.executable).parent / name
    path = str(beside) if beside.exists() else shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is needed for the C tests: pip install 'fastalloc[test]' has it")
    return path


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    # The C programs are not to be run under whatever the Python process was started with.
    environment = {name: value for name, value in os.environ.items() if name not in {"LD_PRELOAD", "PYTHONMALLOC"}}
    environment |= SANITIZERS
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command, capture_output=True, text=True, env=environment, check=False, errors="replace", **options
    )


@cache
def built(preset: str) -> tuple[Path, str]:
    """Build the preset, one process at a time: where its programs are, and what went wrong."""
    directory = ROOT / "build" / preset
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for step in (
            [tool("cmake"), "--preset", preset, f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"],
            [tool("cmake"), "--build", "--preset", preset],
        ):
            done = run(step, cwd=NATIVE)
            if done.returncode != 0:
                return directory / "tests", f"{' '.join(step)}\n{done.stdout}{done.stderr}"
    return directory / "tests", ""


def build(preset: str) -> Path:
    programs, failure = built(preset)
    if failure:
        pytest.fail(failure, pytrace=False)
    return programs


def run_case(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = run([*WRAPPER, str(program), *arguments], timeout=TIMEOUT)
    if "unexpected memory mapping" in done.stderr and shutil.which("setarch"):
        # Older ThreadSanitizers cannot stand the kernel's address randomisation.
        done = run(["setarch", "-R", str(program), *arguments], timeout=TIMEOUT)
    return done


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("program", "case"), list(cases()))
def test_c(preset: str, program: str, case: str) -> None:
    executable = build(preset) / program
    if not executable.exists():
        pytest.skip(f"{program} was not built: its library (Lua 5.4) is not installed")
    done = run_case(executable, "--only", case)
    report = f"{done.stdout}{done.stderr}"
    assert not any(words in report for words in SANITIZER_WORDS), report
    assert done.returncode == 0, f"exit status {done.returncode}\n{report}"
    result = re.search(r"^(not )?ok 1 - (\w+)(?: # SKIP (.*))?$", done.stdout, re.MULTILINE)
    assert result, report
    assert not result[1], report
    assert result[2] == case
    if result[3]:
        pytest.skip(result[3])


@pytest.mark.parametrize("program", sorted({program for program, _ in cases()}))
def test_every_case_was_found(program: str) -> None:
    executable = build("release") / program
    if not executable.exists():
        pytest.skip(f"{program} was not built: its library (Lua 5.4) is not installed")
    listed = run_case(executable, "--list").stdout.split()
    assert sorted(listed) == sorted(case for name, case in cases() if name == program)


# ---- cmake --install, as a user does it: no preset, no option --------------------------------------------------------


@cache
def installed(prefix: Path) -> Path:
    tree = prefix.parent / "build"
    for step in (
        [tool("cmake"), "-S", str(NATIVE), "-B", str(tree)],
        [tool("cmake"), "--build", str(tree), "--parallel", "2"],
        [tool("cmake"), "--install", str(tree), "--prefix", str(prefix)],
    ):
        done = run(step)
        assert done.returncode == 0, f"{' '.join(step)}\n{done.stdout}{done.stderr}"
    # Nothing may remember where it was installed.
    moved = prefix.with_name("moved")
    prefix.rename(moved)
    return moved


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("install") / "prefix")


@pytest.mark.parametrize("linking", ["shared", "static"])
def test_installed_library_with_pkg_config(prefix: Path, tmp_path: Path, linking: str) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    (configuration,) = prefix.rglob("fastalloc.pc")
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", *(["--static"] if linking == "static" else []), "fastalloc"],
        env=os.environ | {"PKG_CONFIG_PATH": str(configuration.parent)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if linking == "static":
        flags = ["-l:libfastalloc.a" if flag == "-lfastalloc" else flag for flag in flags]
    program = tmp_path / "consumer"
    done = run([os.environ.get("CC", "cc"), str(NATIVE / "tests/install/consumer.c"), "-o", str(program), *flags])
    assert done.returncode == 0, done.stderr
    ran = subprocess.run(
        [program],
        env=os.environ | {"LD_LIBRARY_PATH": str(configuration.parent.parent)},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout.split()[0]) == (0, "fastalloc"), ran.stderr


def test_pkg_config_of_absolute_places(tmp_path: Path) -> None:
    done = run([tool("cmake"), "-S", str(NATIVE), "-B", str(tmp_path), "-DCMAKE_INSTALL_LIBDIR=/place/lib"])
    assert done.returncode == 0, done.stderr
    assert "\nlibdir=/place/lib\n" in (tmp_path / "fastalloc.pc").read_text()


@pytest.mark.parametrize("where", ["installed", "sources"])
def test_library_in_a_cmake_project(prefix: Path, tmp_path: Path, where: str) -> None:
    tree = tmp_path / "build"
    found = f"-DCMAKE_PREFIX_PATH={prefix}" if where == "installed" else f"-DFASTALLOC_SOURCE={NATIVE}"
    options = ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_UNITY_BUILD=ON", found]  # one unit is for the sources of the user
    for step in (
        [tool("cmake"), "-S", str(NATIVE / "tests/install"), "-B", str(tree), *options],
        [tool("cmake"), "--build", str(tree), "--parallel", "2"],
        [str(tree / "consumer_shared")],
        [str(tree / "consumer_static")],
    ):
        done = run(step)
        assert done.returncode == 0, f"{' '.join(step)}\n{done.stdout}{done.stderr}"
    assert done.stdout.startswith("fastalloc ")


def test_shared_library_exports_what_the_headers_declare(prefix: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    library = next(prefix.rglob("libfastalloc.so"))
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    exported = set(re.findall(r" [TDBRV] (\w+)$", symbols, re.MULTILINE))
    headers = "".join((NATIVE / "include" / name).read_text() for name in ("fastalloc.h", "fastalloc32.h"))
    declared = set(re.findall(r"^FA_API [^;]*?(\w+)\(", headers, re.MULTILINE))
    assert exported == declared
    archive = next(prefix.rglob("libfastalloc.a"))
    symbols = subprocess.run(["nm", "-g", "--defined-only", archive], capture_output=True, text=True, check=True).stdout
    defined = set(re.findall(r"^[0-9a-f]+ \w (\w+)$", symbols, re.MULTILINE))
    assert declared < defined
    assert {name for name in defined if not name.startswith(("fa_", "fastalloc32_"))} == set()
    assert b".gnu.lto_" not in archive.read_bytes()  # which other versions of the compiler do not read


def test_headers_are_c_and_cplusplus(prefix: Path, tmp_path: Path) -> None:
    archive = next(prefix.rglob("libfastalloc.a"))
    for compiler, suffix, standards in (("cc", "c", ["c11", "c17"]), ("c++", "cpp", ["c++11", "c++17"])):
        if shutil.which(compiler) is None:
            continue
        source = tmp_path / f"header.{suffix}"
        source.write_text(
            "#include <fastalloc32.h>\n"
            "int main(void) {\n"
            "    fa_manager *heap = fa_manager_create(NULL, NULL);\n"
            "    void *other = fastalloc32_create();\n"
            "    fa_free(heap, fa_malloc(heap, 1));\n"
            "    fastalloc32_free(other, fastalloc32_malloc(other, 1));\n"
            "    fastalloc32_destroy(other);\n"
            "    fa_manager_destroy(heap);\n"
            "    return 0;\n"
            "}\n"
        )
        for standard in standards:
            strict = [
                f"-std={standard}",
                "-Wall",
                "-Wextra",
                "-Wpedantic",
                "-Wconversion",
                "-Wundef",
                "-Werror",
            ]
            program = tmp_path / f"{suffix}-{standard}"
            included = f"-I{archive.parent.parent / 'include'}"
            done = run([compiler, *strict, included, str(source), str(archive), "-pthread", "-o", str(program)])
            assert (done.returncode, done.stderr) == (0, "")
            assert run([str(program)]).returncode == 0
