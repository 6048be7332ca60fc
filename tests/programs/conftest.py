"""Real programs on the global allocator.

Each test runs a program twice, as it is and under ``fastalloc run --report``, and compares what it did; the reports,
one for each process, say that its blocks came from fastalloc. What takes long, or has to be installed first, is marked
`long`: `make test-programs` runs that, too.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LONG = "FASTALLOC_TEST_LONG"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "long: takes long, or needs what has to be installed; make test-programs runs it"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get(LONG) == "1":
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="long: make test-programs runs it"))


def tool(name: str, package: str = "") -> str:
    """The path of a program that may be absent."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed" + (f" (Debian's package {package})" if package else ""))
    return path


def preloaded(*command: str | Path, reports: Path, options: tuple[str, ...] = ()) -> list[str]:
    """The command line that runs a program on fastalloc."""
    given = ("--report", str(reports / "%p.json"), *options)
    return [sys.executable, "-P", "-m", "fastalloc.cli", "run", *given, "--", *map(str, command)]


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Without what the tests themselves were started with."""
    unwanted = ("FASTALLOC_", "LD_PRELOAD", "PYTEST_", "MALLOC_", "ASAN_")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)} | dict(more or {})


@dataclass(frozen=True)
class Ran:
    """What a program did."""

    code: int
    output: str
    error: str
    reports: list[dict[str, Any]]

    @property
    def allocated(self) -> int:
        """Blocks that fastalloc gave, to all the processes that lived to report."""
        return sum(report["allocated"] for report in self.reports)


Carry = Callable[..., tuple[Ran, Ran]]


@pytest.fixture
def run_both(tmp_path: Path) -> Carry:
    """Run a program as it is, and on fastalloc; each in an empty directory of its own."""

    def run(
        *command: str | Path,
        environment: Mapping[str, str] | None = None,
        stdin: str | None = None,
        timeout: int = 120,
        options: tuple[str, ...] = (),
        prepare: Callable[[Path], object] | None = None,
    ) -> tuple[Ran, Ran]:
        both = []
        for name in ("plain", "fastalloc"):
            directory, reports = tmp_path / name, tmp_path / f"reports of {name}"
            directory.mkdir()
            reports.mkdir()
            if prepare is not None:
                prepare(directory)
            line = list(map(str, command))
            if name == "fastalloc":
                line = preloaded(*line, reports=reports, options=options)
            done = subprocess.run(
                line,
                cwd=directory,
                env=clean_environment(environment),
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
            both.append(Ran(done.returncode, done.stdout, done.stderr, read_reports(reports)))
        return both[0], both[1]

    return run


def read_reports(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]


Carried = Callable[..., Ran]


@pytest.fixture
def carry(run_both: Carry) -> Carried:
    """Both runs succeed and say the same, and fastalloc gave at least so many blocks; returns the second run."""

    def check(*command: str | Path, blocks: int, same: Callable[[str], str] = str, **how: Any) -> Ran:
        plain, ours = run_both(*command, **how)
        assert plain.code == 0, plain.error[-4000:]
        assert ours.code == 0, ours.error[-4000:]
        assert same(ours.output) == same(plain.output)
        assert same(ours.error) == same(plain.error)
        assert plain.output or plain.error or "prepare" in how, "nothing to compare"
        assert ours.allocated >= blocks, f"{ours.allocated} blocks from fastalloc, in {len(ours.reports)} processes"
        return ours

    return check


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Compile a source of this directory, once."""
    made: dict[str, Path] = {}

    def make(source: str, *compiler: str) -> Path:
        if source not in made:
            program = tmp_path_factory.mktemp("compiled") / re.sub(r"\W", "-", source)
            subprocess.run([*compiler, str(HERE / source), "-o", str(program)], check=True, env=clean_environment())
            made[source] = program
        return made[source]

    yield make
    made.clear()
