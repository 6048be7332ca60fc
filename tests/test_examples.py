"""The C programs of docs/embedding.md and of examples/: Lua and SQLite in a manager's heap.

They are built with the amalgamation, as a user would. Lua is the system's (liblua5.4-dev), or Lua 5.4's sources in the
directory that FASTALLOC_LUA names, as `make test-examples` has it: with them, the same program is built for 32 bits and
WebAssembly too. FASTALLOC_TEST_ROWS is how many rows SQLite imports.
"""

import os
import random
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from targets import NAMES, Target, run, target

import fastalloc

ROOT = Path(__file__).resolve().parent.parent
LUA = ROOT / "examples" / "lua"
SQLITE = ROOT / "examples" / "sqlite"
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O2"]
LUA_SOURCES = os.environ.get("FASTALLOC_LUA", "")
ROWS = int(os.environ.get("FASTALLOC_TEST_ROWS", "20000"))
PIECE = 16  # bytes: found by chance in a gibibyte with a probability below 2^-90
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


@pytest.fixture(scope="session")
def amalgamation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("amalgamation")
    done = run([sys.executable, str(ROOT / "native" / "amalgamate.py"), str(directory)])
    assert done.returncode == 0, done.stderr
    return directory


@cache
def library(machine: Target, amalgamation: Path) -> Path:
    """fastalloc, compiled once for each machine."""
    compiled = amalgamation / f"{machine.name}.o"
    position = ["-fPIC", "-fvisibility=hidden"] if machine.name == "64-bit" else []
    machine.compile(*STRICT, *position, "-c", amalgamation / "fastalloc.c", "-o", compiled)
    return compiled


def pkg_config(package: str) -> list[str] | None:
    if shutil.which("pkg-config") is None:
        return None
    done = run(["pkg-config", "--cflags", "--libs", package])
    return done.stdout.split() if done.returncode == 0 else None


def test_ten_lines_with_the_python_package(tmp_path: Path) -> None:
    """The program and the commands as the page has them."""
    if target("64-bit").missing:
        pytest.skip(target("64-bit").missing)
    page = (ROOT / "docs" / "embedding.md").read_text()
    program = re.search(r"```c\n(.*?)```", page, re.DOTALL)
    commands = re.search(r"^From the Python package.*\n\n((?:    .*\n)+)", page, re.MULTILINE)
    assert program is not None
    assert commands is not None
    (tmp_path / "ten.c").write_text(program[1])
    steps = f"export PATH={Path(sys.executable).parent}:$PATH\ncd {tmp_path}\n{commands[1]}\n./ten"
    done = run(["bash", "-ec", steps])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"zeroed before anybody else gets it, says fastalloc {fastalloc.__version__}\n"
    assert b".gnu.lto_" not in Path(fastalloc.get_library()).with_name("libfastalloc.a").read_bytes()


# ---- a process that waits while its memory is read -------------------------------------------------------------------


class Paused:
    """A program run with --pause."""

    def __init__(self, command: list[str]) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1
        )

    def until(self, moment: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == f"{moment}\n":
                return
        pytest.fail(f"the program ended before it was {moment}")

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")

    def copies(self, secret: bytes) -> int:
        """How many 16-byte pieces of the secret lie in the process's readable memory, all of it."""
        pieces = [secret[at : at + PIECE] for at in range(0, len(secret) - PIECE + 1, PIECE)]
        return sum(content.count(piece) for content in self.resident() for piece in pieces)

    def resident(self) -> Iterator[bytes]:
        """Each run of pages that are in memory or swapped out: what is reserved and was never touched is gigabytes."""
        directory = Path("/proc") / str(self.process.pid)
        with (
            (directory / "mem").open("rb", buffering=0) as memory,
            (directory / "pagemap").open("rb", buffering=0) as map_,
        ):
            for line in (directory / "maps").read_text().splitlines():
                span, permissions, *rest = line.split(maxsplit=5)
                if not permissions.startswith("r") or rest[-1].startswith("[v"):
                    continue
                start, end = (int(address, 16) // PAGE for address in span.split("-"))
                map_.seek(start * 8)
                present = np.frombuffer(map_.read((end - start) * 8), np.uint64) >> np.uint64(62) != 0
                edges = np.flatnonzero(np.diff(present, prepend=False, append=False))
                for first, last in edges.reshape(-1, 2):
                    memory.seek((start + int(first)) * PAGE)
                    yield memory.read(int(last - first) * PAGE)


@contextmanager
def paused(*command: str | Path) -> Iterator[Paused]:
    program = Paused([str(part) for part in command])
    try:
        yield program
    finally:
        program.process.kill()
        program.process.communicate()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file with 64 random letters and digits."""
    path = tmp_path / "secret"
    path.write_text(secrets.token_hex(32))
    return path


def forms(path: Path) -> list[bytes]:
    """The secret, and what the examples' programs make of it."""
    secret = path.read_bytes()
    return [secret, secret.upper(), secret[::-1]]


needs_proc = pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc to look at memory through")


# ---- Lua -------------------------------------------------------------------------------------------------------------

# longjmp is an exception there, in the form that was standardised in the end. WASI has no temporary files and no
# processes; Lua 5.4.8 asks for them.
WASI_LUA = [
    *("-mcpu=generic+exception_handling", "-mllvm", "-wasm-enable-sjlj", "-mllvm", "-wasm-use-legacy-eh=false"),
    *("-D_WASI_EMULATED_SIGNAL", "-D_WASI_EMULATED_PROCESS_CLOCKS", "-DLUA_TMPNAMBUFSIZE=32"),
    "-Dlua_tmpnam(name,error)=((void)(name),(error)=1)",
]
WASI_LIBRARIES = ["-lwasi-emulated-signal", "-lwasi-emulated-process-clocks"]


@pytest.fixture(scope="session", params=NAMES if LUA_SOURCES else ["64-bit"])
def lua(
    request: pytest.FixtureRequest, amalgamation: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Target, Path]:
    """The program of examples/lua."""
    machine = target(request.param)
    if machine.missing:
        pytest.skip(machine.missing)
    directory = tmp_path_factory.mktemp(f"lua-{machine.name}")
    installed = pkg_config("lua5.4")
    extra = WASI_LUA if machine.name == "wasm" else []
    if LUA_SOURCES:
        objects = [directory / "lua.o", *([LUA / "wasi.c"] if extra else [])]
        linking = [f"-I{LUA_SOURCES}", *(WASI_LIBRARIES if extra else ["-lm"])]
        machine.compile("-w", "-O2", "-DMAKE_LIB", *extra, "-c", f"{LUA_SOURCES}/onelua.c", "-o", objects[0])
    elif installed is not None:
        objects, linking = [], installed
    else:
        pytest.skip("Lua 5.4 is not installed: liblua5.4-dev, or its sources in FASTALLOC_LUA")
    program = directory / "limited"
    sources = [LUA / "limited.c", library(machine, amalgamation), *objects]
    options = [*STRICT, *extra, f"-I{amalgamation}"]
    command = [*machine.compiler, *options, *sources, *linking, *machine.linking, "-o", program]
    done = run([str(part) for part in command])
    warnings = [
        line for line in done.stderr.splitlines() if "tmpnam" not in line
    ]  # the linker does not like that Lua uses it
    assert (done.returncode, warnings) == (0, []), done.stderr
    return machine, program


def test_lua_runs_under_a_limit(lua: tuple[Target, Path]) -> None:
    machine, program = lua
    done = machine.run(program, "--limit", str(6 * MIB), LUA / "work.lua")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("the primes below 10,000 add up to 5736396\n")
    assert re.search(r"work\.lua: succeeded; \d{5} blocks, 0 refused, 0 left\n$", done.stdout)


def test_a_script_that_exhausts_its_memory_is_told_so_by_lua(lua: tuple[Target, Path]) -> None:
    machine, program = lua
    done = machine.run(program, "--limit", str(2 * MIB), LUA / "exhaust.lua", LUA / "work.lua")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[:4] == ["1: not enough memory", "2: not enough memory", "3: not enough memory", "and on: 42"]
    assert re.search(r"exhaust\.lua: failed; \d+ blocks, [4-9]|\d\d+ refused, 0 left$", lines[4])
    assert done.stderr.startswith(f"{LUA / 'exhaust.lua'}: not enough memory\n")


@pytest.mark.parametrize("limit", [1, 100, 1000, 3000, 5000, 10_000, 20_000, 24_000])
def test_no_limit_is_a_crash(lua: tuple[Target, Path], limit: int) -> None:
    machine, program = lua
    done = machine.run(program, "--limit", str(limit), LUA / "work.lua")
    assert done.returncode == 1
    assert re.fullmatch(rf"\S+: (not enough memory|not even a Lua state fits into {limit} bytes)\n", done.stderr), (
        done.stderr
    )
    assert done.stdout.endswith("0 left\n")


@pytest.mark.parametrize(
    "arguments",
    [[], ["--limit"], ["--limit", "x", "s"], ["--limit", "0", "s"], ["--limit", "-1", "s"], ["--fast", "s"]],
)
def test_bad_arguments(lua: tuple[Target, Path], arguments: list[str]) -> None:
    machine, program = lua
    done = machine.run(program, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: limited ")


@needs_proc
def test_a_closed_lua_state_leaves_no_byte_of_a_secret(lua: tuple[Target, Path], secret: Path, tmp_path: Path) -> None:
    machine, program = lua
    if machine.name == "wasm":
        left = [copies_at_exit(machine, program, form, secret, tmp_path) for form in forms(secret)]
        assert left == [0, 0, 0]
        # An argument of the program stays: the search does find what is there.
        assert copies_at_exit(machine, program, str(LUA / "secret.lua").encode(), secret, tmp_path) > 0
        return
    with paused(program, "--pause", "--secret", secret, LUA / "secret.lua") as process:
        process.until("running")
        assert [process.copies(form) > 0 for form in forms(secret)] == [True, True, True]
        for moment in ("closed", "destroyed"):
            process.go_on()
            process.until(moment)
            assert [process.copies(form) for form in forms(secret)] == [0, 0, 0]
        process.go_on()
        assert process.process.wait(timeout=60) == 0


def copies_at_exit(machine: Target, program: Path, wanted: bytes, secret: Path, directory: Path) -> int:
    """The same for a WebAssembly program, whose memory outlives it."""
    (directory / "wanted").write_bytes(wanted)
    command = [*machine.runner, "--find", str(directory / "wanted"), str(program)]
    done = run([*command, "--secret", str(secret), str(LUA / "secret.lua")])
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


# ---- SQLite ----------------------------------------------------------------------------------------------------------


def sqlite_flags() -> list[str]:
    flags = pkg_config("sqlite3")
    if flags is None or target("64-bit").missing:
        pytest.skip("SQLite is not installed: libsqlite3-dev")
    return flags


@pytest.fixture(scope="session")
def wiped(amalgamation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of examples/sqlite."""
    flags = sqlite_flags()
    program = tmp_path_factory.mktemp("sqlite") / "wiped"
    sources = [SQLITE / "wiped.c", SQLITE / "fa_sqlite.c", library(target("64-bit"), amalgamation)]
    target("64-bit").compile(*STRICT, f"-I{amalgamation}", *sources, *flags, "-pthread", "-o", program)
    return program


@pytest.fixture(scope="session")
def preload(amalgamation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared object for SQLite's own shell."""
    flags = sqlite_flags()
    if shutil.which("sqlite3") is None:
        pytest.skip("SQLite's shell is not installed: sqlite3")
    shared = tmp_path_factory.mktemp("sqlite") / "sqlite-fastalloc.so"
    sources = [SQLITE / "preload.c", SQLITE / "fa_sqlite.c", library(target("64-bit"), amalgamation)]
    options = [*STRICT, "-shared", "-fPIC", f"-I{amalgamation}"]
    target("64-bit").compile(*options, *sources, *flags, "-pthread", "-o", shared)
    return shared


def test_sqlite_computes_the_same(wiped: Path, secret: Path, tmp_path: Path) -> None:
    outputs = []
    for number, options in enumerate([[], ["--default"]]):
        for database in (":memory:", str(tmp_path / f"{number}.db")):
            done = run([str(wiped), *options, database, str(secret)])
            assert (done.returncode, done.stderr) == (0, "")
            outputs.append(done.stdout)
    assert outputs == [outputs[0]] * 4
    assert outputs[0].startswith("rows=1000 names=1000 letters=66890\npairs=1000\n")
    assert (tmp_path / "0.db").read_bytes() == (tmp_path / "1.db").read_bytes()


@needs_proc
def test_a_closed_database_leaves_no_byte_of_a_secret(wiped: Path, secret: Path) -> None:
    with paused(wiped, "--pause", ":memory:", secret) as process:
        process.until("running")
        assert [process.copies(form) > 0 for form in forms(secret)[:2]] == [True, True]
        for moment in ("closed", "destroyed"):
            process.go_on()
            process.until(moment)
            assert [process.copies(form) for form in forms(secret)] == [0, 0, 0]


@needs_proc
def test_by_default_a_closed_database_leaves_much(wiped: Path, secret: Path) -> None:
    with paused(wiped, "--default", "--pause", ":memory:", secret) as process:
        process.until("running")
        process.go_on()
        process.until("closed")
        assert process.copies(secret.read_bytes()) > 10


def test_the_real_shell_imports_and_queries(preload: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    numbers = random.Random(8)
    with table.open("w") as file:
        file.write("number,name,amount,note\n")
        for i in range(ROWS):
            name, cents = numbers.randrange(5000), numbers.randrange(10**8)
            file.write(f'{i},name {name},{cents // 100}.{cents % 100:02},"a ""note"", {i}"\n')
    script = [".mode csv", f".import {table} held", "CREATE INDEX by_name ON held (name, amount)"]
    query = "SELECT name, count(*), sum(amount), max(note) FROM held GROUP BY name ORDER BY 3 DESC, name LIMIT 100"
    command = ["sqlite3", ":memory:", *(part for step in script for part in ("-cmd", step)), query]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    plain, ours = (
        subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False, timeout=600)
        for more in ({}, {"LD_PRELOAD": str(preload), "FASTALLOC_SQLITE_STATS": "1"})
    )
    assert (plain.returncode, plain.stderr, ours.returncode) == (0, "", 0), ours.stderr
    assert plain.stdout == ours.stdout
    assert len(plain.stdout.splitlines()) == 100
    counts = dict(re.findall(r'"(\w+)": (\d+)', ours.stderr))
    assert int(counts["allocated"]) > 2 * ROWS
    assert counts["live"] == counts["failures"] == "0"
