"""The lines that `make test-all` ends with, of goals that another make makes."""

import os
import subprocess
import sys
from pathlib import Path

import all as summaries  # tests/all.py
import pytest

MAKEFILE = """
test:
	@echo "===== 1529 passed, 143 skipped in 176.52s (0:02:56) ====="
	@echo "3 passed, 95 deselected in 12.70s"
test-valgrind:
	@echo "valgrind could not be installed: what needs it is skipped"
test-cross:
	@echo "x86_64-linux-musl: built; 15 programs ran here; 375 tests passed"
	@echo "wasm32-wasi node: not built: ziglang is not installed"
	@echo "FAILED tests/test_cross.py::test_target[wasm32-wasi node] - AssertionError"
	@echo "========= 1 failed, 1 passed in 9.70s ========="
	@false
test-wheels:
	@echo "nox > * tests-3.13: skipped"
prove:
	@echo "make prove: models skipped, spin is not installed"
	@exit 3
"""
ENDING = """\
test: passed in 0 s (1529 passed, 143 skipped; 3 passed, 95 deselected)
test-valgrind: passed in 0 s; valgrind could not be installed
test-cross: FAILED in 0 s (1 failed, 1 passed): tests/test_cross.py::test_target[wasm32-wasi node]
    x86_64-linux-musl: built; 15 programs ran here; 375 tests passed
    wasm32-wasi node: not built: ziglang is not installed
test-wheels: passed in 0 s
    tests-3.13: skipped
prove: FAILED in 0 s: [Makefile:17: prove] Error 3; models skipped, spin is not installed
no-such-goal: FAILED in 0 s: No rule to make target 'no-such-goal'.  Stop.
"""


def test_every_goal_is_made_and_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / "tests").mkdir()
    script = tmp_path / "tests" / "all.py"
    script.write_text(Path(summaries.__file__).read_text())
    goals = ["test", "test-valgrind", "test-cross", "test-wheels", "prove", "no-such-goal"]
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKE", "MAKEFLAGS", "MAKELEVEL"}}
    done = subprocess.run(
        [sys.executable, script, *goals], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout.split("goals made; logs in build/test-all\n")[1] == ENDING
    assert (tmp_path / "build" / "test-all" / "test.log").read_text().startswith("===== 1529")


@pytest.mark.parametrize(("seconds", "took"), [(99.0, "99 s"), (720.0, "12 min")])
def test_how_long_it_took(seconds: float, took: str) -> None:
    assert summaries.summary("test", 0, seconds, "") == f"test: passed in {took}"
