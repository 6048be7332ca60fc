"""Builds the library and the C tests for other machines, and runs them where a runner is found: one line per target.

    python tests/cross.py                   every target; make cross (build only) and make test-cross call this
    python tests/cross.py --build           build only
    python tests/cross.py x86-linux-musl    only these
    python tests/cross.py --platforms       writes the table of docs/platforms.md from what programs/platforms.c prints

The compiler is zig, from PyPI (pip install 'fastalloc[cross]'), through native/cmake/zig.cmake; the builds stay in
build/cross. tests/test_cross.py makes each target a test.
"""

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
CROSS = ROOT / "build" / "cross"
PLATFORMS = ROOT / "docs" / "platforms.md"
TIMEOUT = 900  # seconds that one program may take, in an emulator on a slow machine


@dataclass(frozen=True)
class Target:
    """What is built (zig's triple), and what runs it: empty for this machine, None where nothing here does."""

    triple: str
    runner: tuple[str, ...] | None = ()
    label: str = ""
    environment: dict[str, str] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.triple} {self.label}".strip()


def qemu(triple: str, processor: str, sysroot: str = "") -> Target:
    """A Linux target in qemu's user mode, which makes everything some ten times slower."""
    options = ("-L", sysroot) if sysroot else ()
    return Target(triple, (f"qemu-{processor}", *options), environment={"FASTALLOC_TEST_WRAPPER": "qemu"})


TARGETS = [
    Target("x86_64-linux-gnu.2.28"),
    Target("x86_64-linux-musl"),
    Target("x86-linux-musl"),
    qemu("aarch64-linux-gnu.2.28", "aarch64", "/usr/aarch64-linux-gnu"),
    qemu("aarch64-linux-musl", "aarch64"),
    qemu("riscv64-linux-gnu.2.36", "riscv64", "/usr/riscv64-linux-gnu"),
    qemu("riscv64-linux-musl", "riscv64"),
    qemu("arm-linux-musleabihf", "arm"),
    qemu("s390x-linux-musl", "s390x"),
    Target("wasm32-wasi", ("node",), "node"),
    Target("wasm32-wasi", ("wasmtime",), "wasmtime"),
    Target("x86_64-windows-gnu", ("wine",), environment={"WINEDEBUG": "-all", "WINEPREFIX": str(CROSS / "wine")}),
    Target("x86_64-macos", None),
    Target("aarch64-macos", None),
]


@dataclass
class Outcome:
    """What became of a target."""

    target: Target
    problem: str = ""  # why it was not built or not run to the end
    built: bool = False
    programs: int = 0
    passed: int = 0
    skipped: dict[str, int] = field(default_factory=dict)  # reason: how often
    failed: list[str] = field(default_factory=list)
    output: str = ""

    @property
    def ok(self) -> bool:
        """Built, and whatever ran passed."""
        return self.built and not self.failed

    def __str__(self) -> str:
        if not self.built:
            return f"{self.target}: not built: {self.problem}"
        if self.problem:
            return f"{self.target}: built; not run: {self.problem}"
        reasons = ", ".join(f"{reason} ({count})" for reason, count in self.skipped.items())
        skipped = f", {sum(self.skipped.values())} skipped: {reasons}" if reasons else ""
        failed = f", FAILED: {', '.join(self.failed)}" if self.failed else ""
        by = f" by {Path(self.target.runner[0]).name}" if self.target.runner else " here"
        return f"{self.target}: built; {self.programs} programs ran{by}; {self.passed} tests passed{skipped}{failed}"


# ---- building --------------------------------------------------------------------------------------------------------


def tool(name: str) -> str:
    """A build tool: from the environment that runs this, else from the PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or name


def zig() -> Path | None:
    """The compiler, if pip has installed it."""
    found = importlib.util.find_spec("ziglang")
    return Path(str(found.origin)).parent / "zig" if found else None


@cache
def build(triple: str) -> str:
    """Build a target, one process at a time; what went wrong, or nothing."""
    compiler = zig()
    if compiler is None:
        return "ziglang is not installed (pip install 'fastalloc[cross]')"
    directory = CROSS / triple
    directory.mkdir(parents=True, exist_ok=True)
    caches = {"ZIG_GLOBAL_CACHE_DIR": str(CROSS / "zig"), "ZIG_LOCAL_CACHE_DIR": str(CROSS / "zig")}
    configure = [
        *(tool("cmake"), "-S", str(NATIVE), "-B", str(directory), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
        *(f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DCMAKE_TOOLCHAIN_FILE={NATIVE / 'cmake' / 'zig.cmake'}"),
        *(f"-DFA_ZIG={compiler}", f"-DFA_TARGET={triple}", "-DFA_STRICT=ON", "-DFA_TESTS=ON"),
    ]
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for step in (configure, [tool("cmake"), "--build", str(directory), "--parallel", "2"]):
            done = subprocess.run(step, capture_output=True, text=True, env=os.environ | caches, check=False)
            if done.returncode != 0:
                return f"{' '.join(step)}\n{done.stdout}{done.stderr}"
    return ""


# ---- running ---------------------------------------------------------------------------------------------------------

Run = Callable[[Path, list[str]], tuple[int, str]]


def absent(target: Target) -> str:
    """Why the target cannot be run, or nothing."""
    if target.runner is None:
        return "nothing here runs macOS's programs; .github/workflows/ci.yml does"
    if not target.runner:
        return ""
    name = target.runner[0]
    if name == "wasmtime":
        return "" if importlib.util.find_spec("wasmtime") else "wasmtime is not installed (PyPI)"
    if shutil.which(name) is None:
        return f"{name} is not installed"
    if "-L" in target.runner and not Path(target.runner[2]).exists():
        return f"there is no C library in {target.runner[2]} (Debian: libc6-*-cross)"
    return ""


def start(target: Target) -> Run:
    """How to run a program of the target: its exit status, and what it printed."""
    if target.runner and target.runner[0] == "wasmtime":
        return run_in_wasmtime
    command = list(target.runner or ())
    if command == ["node"]:
        # Node 20's fast calls into WASI were seen to crash once the memory has grown.
        command += ["--no-warnings", "--no-turbo-fast-api-calls", str(ROOT / "tests" / "wasi.mjs")]

    def run(program: Path, arguments: list[str]) -> tuple[int, str]:
        done = subprocess.run(
            [*command, str(program), *arguments],
            env=os.environ | target.environment,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
        # Windows ends its lines in its own way.
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace").replace("\r\n", "\n")

    return run


@cache
def compiled(program: Path) -> tuple[object, object]:
    """A module, and the engine it was compiled for."""
    import wasmtime

    engine = wasmtime.Engine()
    return engine, wasmtime.Module.from_file(engine, str(program))


def run_in_wasmtime(program: Path, arguments: list[str]) -> tuple[int, str]:
    """WASI's first preview, with nothing of this machine but the standard streams."""
    import wasmtime

    engine, module = compiled(program)
    linker, store, config = wasmtime.Linker(engine), wasmtime.Store(engine), wasmtime.WasiConfig()
    linker.define_wasi()
    with tempfile.TemporaryDirectory() as directory:
        streams = [Path(directory) / "out", Path(directory) / "err"]
        config.argv = [program.name, *arguments]
        config.stdout_file, config.stderr_file = map(str, streams)
        store.set_wasi(config)
        status, trap = 0, ""
        try:
            linker.instantiate(store, module).exports(store)["_start"](store)
        except wasmtime.ExitTrap as exit_trap:
            status = exit_trap.code
        except wasmtime.Trap as other:
            status, trap = 134, str(other)
        del store, linker  # which hold the streams
        return status, "".join(stream.read_text(errors="replace") for stream in streams) + trap


def results(run: Run, program: Path, one_by_one: bool) -> Iterator[tuple[str, str | None, str]]:
    """Of each test: its name, None if it passed or why not, and if it was skipped, the reason."""
    if one_by_one:  # without longjmp a program ends with the test that ends early
        status, listed = run(program, ["--list"])
        calls = [["--only", name] for name in listed.split()]
        if status != 0 or not calls:
            yield program.stem, f"--list ended with {status}: {listed}", ""
    else:
        calls = [[]]
    for call in calls:
        try:
            status, output = run(program, call)
        except subprocess.TimeoutExpired:
            yield " ".join([program.stem, *call]), f"not over after {TIMEOUT} s", ""
            continue
        found = re.findall(r"^(not )?ok \d+ - (\w+)(?: # SKIP (.*))?$", output, re.MULTILINE)
        for failed, name, reason in found:
            yield name, output if failed else None, reason
        # A program that printed nothing has not passed: wine has been seen to exit with 0 without running one.
        complete = one_by_one or re.search(rf"^1\.\.{len(found)}$", output, re.MULTILINE)
        if not found or not complete or (status != 0) != any(failed for failed, _, _ in found):
            yield " ".join([program.stem, *call]), f"exit status {status}\n{output}", ""


def check(target: Target, build_only: bool = False) -> Outcome:
    """Build a target and run its tests."""
    outcome = Outcome(target, build(target.triple))
    outcome.built = not outcome.problem
    if not outcome.built:
        outcome.output = outcome.problem
        outcome.problem = outcome.problem.splitlines()[0]
        return outcome
    outcome.problem = "not asked for" if build_only else absent(target)
    if outcome.problem:
        return outcome
    run = start(target)
    for program in programs(target, [source.stem for source in sorted((NATIVE / "tests").glob("*_test.c"))]):
        outcome.programs += 1
        for name, problem, reason in results(run, program, one_by_one=target.triple.startswith("wasm")):
            if problem is not None:
                outcome.failed.append(name)
                outcome.output += problem if problem not in outcome.output else ""
            elif reason:
                outcome.skipped[reason] = outcome.skipped.get(reason, 0) + 1
            else:
                outcome.passed += 1
    return outcome


def programs(target: Target, names: list[str]) -> list[Path]:
    """Those of the programs that were built."""
    directory = CROSS / target.triple / "tests"
    paths = (directory / f"{name}{suffix}" for name in names for suffix in ("", ".exe", ".wasm"))
    return [path for path in paths if path.is_file()]


# ---- the table of docs/platforms.md ----------------------------------------------------------------------------------

NOT_RUN = "compiled, not run here"
BEGIN, END = "<!-- written by python tests/cross.py --platforms -->\n", "<!-- end -->\n"


def named(name: str) -> Target:
    """The target of that name."""
    return next(target for target in TARGETS if str(target) == name)


COLUMNS = {
    "Linux": named("x86_64-linux-gnu.2.28"),
    "Linux, 32 bits": named("x86-linux-musl"),
    "Windows (wine)": named("x86_64-windows-gnu"),
    "WebAssembly": named("wasm32-wasi wasmtime"),
    "macOS": named("aarch64-macos"),
}


def printed(target: Target) -> dict[str, str]:
    """What platforms.c finds on the target."""
    (program,) = programs(target, ["platforms"])
    status, output = start(target)(program, [])
    if status != 0:
        raise RuntimeError(output)
    return dict(line.split("\t") for line in output.splitlines() if "\t" in line)


def documented() -> dict[str, dict[str, str]]:
    """The columns of the table: row and value."""
    table = PLATFORMS.read_text().split(BEGIN)[1].split(END)[0]
    heads, _, *rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines())
    return {head: {row[0]: row[number] for row in rows} for number, head in enumerate(heads) if number > 0}


def write_platforms() -> None:
    """Run platforms.c wherever it can be run, and write the table."""
    columns = {}
    for name, target in COLUMNS.items():
        problem = build(target.triple)
        if problem:
            sys.exit(problem)
        columns[name] = {} if absent(target) else printed(target)
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    table = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    table += [
        f"| {row} | " + " | ".join(column.get(row, NOT_RUN) for column in columns.values()) + " |" for row in rows
    ]
    before, rest = PLATFORMS.read_text().split(BEGIN)
    PLATFORMS.write_text(before + BEGIN + "\n".join(table) + "\n" + END + rest.split(END)[1])


def main(arguments: list[str]) -> int:
    """One line per target; 1 if one was not built, or failed a test."""
    if arguments == ["--platforms"]:
        write_platforms()
        return 0
    build_only = "--build" in arguments
    names = [argument for argument in arguments if argument != "--build"]
    unknown = set(names) - {name for target in TARGETS for name in (target.triple, str(target))}
    if unknown:
        there = ", ".join(map(str, TARGETS))
        sys.exit(f"tests/cross.py: no target is called {', '.join(sorted(unknown))}; there are: {there}")
    failed = False
    for target in TARGETS:
        if names and target.triple not in names and str(target) not in names:
            continue
        outcome = check(target, build_only)
        print(outcome, flush=True)
        if not outcome.ok:
            print(outcome.output, file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
