"""CPython's own regression tests, NumPy's, and a Halo2 prover driven from Python."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path

import pytest

from .conftest import ROOT, Carried, Carry, clean_environment, preloaded, read_reports

# ---- CPython ---------------------------------------------------------------------------------------------------------


@cache
def interpreter_with(*modules: str) -> str | None:
    """A CPython that has these modules of its test package: many installations leave some or all of it out."""
    for python in dict.fromkeys((getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3")):
        program = "import sys, importlib.util as u; sys.exit(not all(u.find_spec(f'test.{m}') for m in sys.argv[1:]))"
        if Path(python).exists():
            done = subprocess.run([python, "-c", program, *modules], capture_output=True, check=False)
            if done.returncode == 0:
                return python
    return None


def outcomes(xml: Path) -> dict[str, str]:
    """Of each test case, from a file in JUnit's format: passed, skipped, failure or error."""
    if not xml.exists():
        return {}
    found = {}
    for case in ET.parse(xml).iter("testcase"):
        worst = {child.tag for child in case} & {"failure", "error", "skipped"}
        name = f"{case.get('classname', '')}.{case.get('name')}"
        found[name] = next(iter(sorted(worst)), "passed")
    return found


def regression_tests(run_both: Carry, tmp_path: Path, *modules: str, blocks: int, timeout: int) -> None:
    """What passes without the preload passes with it. What does not is tried once more: some tests depend on time."""
    python = interpreter_with(*modules)
    if python is None:
        pytest.skip(f"no Python with test.{', test.'.join(modules)} (Debian's package libpython3.*-testsuite)")
    command = [python, "-m", "test", "-q", "-w", "--junit-xml", "outcomes.xml", *modules]
    plain, ours = run_both(*command, timeout=timeout)
    before, after = (outcomes(tmp_path / name / "outcomes.xml") for name in ("plain", "fastalloc"))
    passed = {name for name, outcome in before.items() if outcome == "passed"}
    assert passed, plain.output + plain.error
    lost = {name for name in passed if after.get(name) != "passed"}
    if lost:
        (tmp_path / "again").mkdir()
        again = [python, "-m", "test", "-v", *(f"-m{name.rsplit('.', 1)[-1]}" for name in lost), *modules]
        environment = clean_environment()
        command = preloaded(*again, reports=tmp_path / "again")
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, env=environment)
        assert done.returncode == 0, f"{sorted(lost)}\n{ours.output[-2000:]}{done.stdout[-6000:]}{done.stderr[-2000:]}"
    assert ours.allocated >= blocks


def test_cpython_quick(run_both: Carry, tmp_path: Path) -> None:
    regression_tests(run_both, tmp_path, "test_mmap", "test_threading_local", "test_ctypes", blocks=20_000, timeout=60)


@pytest.mark.long
@pytest.mark.parametrize(
    "module",
    [
        "test_thread",
        "test_threading",
        "test_threadsignals",
        "test_fork1",
        "test_wait4",
        "test_subprocess",
        "test_multiprocessing_fork",
        "test_multiprocessing_forkserver",
        "test_multiprocessing_spawn",
        "test_concurrent_futures",
        "test_gc",
        "test_tracemalloc",
        "test_sqlite3",
        "test_ssl",
        "test_faulthandler",
        "test_capi",
    ],
)
def test_cpython(run_both: Carry, tmp_path: Path, module: str) -> None:
    regression_tests(run_both, tmp_path, module, blocks=5_000, timeout=900)


# ---- NumPy -----------------------------------------------------------------------------------------------------------

NUMPY = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"


WORK = """
import hashlib, threading, numpy as np
sums = []
def work(seed):
    draw, sum = np.random.default_rng(seed), hashlib.sha256()
    for n in range(1, 60):
        a = draw.random((n * 7, n * 11))
        words = sorted(str(x) for x in range(n * 30))
        sum.update(np.sort((a.T @ a + a.mean()).round(6), axis=0).tobytes() + "".join(words).encode())
    sums.append((seed, sum.hexdigest()))
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print(sorted(sums))
"""


def test_numpy_in_threads_hardened(carry: Carried) -> None:
    one = {"OPENBLAS_NUM_THREADS": "1"}  # sums in the same order
    carry(sys.executable, "-c", WORK, blocks=20_000, options=("--hardened",), environment=one)


def numpy_tests(run_both: Carry, tmp_path: Path, *selection: str, timeout: int) -> None:
    options = ("-c", os.devnull, "-p", "no:cacheprovider", "-q", "-m", "not slow", "--junit-xml=outcomes.xml")
    environment = {"PYTHONSAFEPATH": "1"}
    plain, ours = run_both(
        sys.executable, "-c", NUMPY, *options, *selection, environment=environment, timeout=timeout
    )  # fmt: skip
    before, after = (outcomes(tmp_path / name / "outcomes.xml") for name in ("plain", "fastalloc"))
    assert "passed" in before.values(), plain.output[-4000:]
    worse = sorted(name for name, outcome in before.items() if outcome == "passed" and after.get(name) != "passed")
    assert not worse, f"{worse[:20]}\n{ours.output[-4000:]}"
    assert ours.allocated > 1_000_000


@pytest.mark.long
def test_numpy(run_both: Carry, tmp_path: Path) -> None:
    numpy_tests(run_both, tmp_path, "-n", "2", "--pyargs", "numpy._core", timeout=1200)


# ---- Halo2 -----------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_halo2(tmp_path: Path) -> None:
    """A prover in Rust with threads of its own: keys made without fastalloc, proofs with it, and verified both ways."""
    pytest.importorskip("ezkl", reason="ezkl is not installed: the extra `halo2`")
    reports = tmp_path / "reports"
    reports.mkdir()
    prover = [sys.executable, "-P", str(ROOT / "examples/halo2.py"), str(tmp_path / "circuit"), "--logrows", "14"]
    ours = preloaded(*prover, "--proofs", "3", reports=reports)
    results = {}
    for name, command in {"plain": [*prover, "--proofs", "2"], "fastalloc": ours}.items():
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=600, env=clean_environment()
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.splitlines()[-1] == "verified"
        results[name] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    (report,) = read_reports(reports)
    assert report["allocated"] > 1_000_000
    assert report["large_allocated"] > 100
    assert report["failures"] == 0
    # The point of it all: a warm proof finds its pages resident.
    assert results["fastalloc"][-1]["faults"] < results["plain"][-1]["faults"] / 4
