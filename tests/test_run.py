"""``fastalloc run``: a program runs as it would without it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "fastalloc.cli", "run", *arguments)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tells what it sees, and ends as its first argument says."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside.py").write_text("value = 42\n")
    path = tmp_path / "program.py"
    path.write_text(
        "import os, pickle, signal, sys\n"
        "import beside, numpy as np\n"
        "class Thing: pass\n"
        "pickle.loads(pickle.dumps(Thing()))\n"
        "print(__name__, sys.argv[1:], beside.value, sys.modules['__main__'].Thing is Thing, flush=True)\n"
        "fa = sys.modules.get('fastalloc')\n"
        "print('routed' if fa and fa.handles(np.ones(3)) else 'plain', flush=True)\n"
        "if __name__ == '__main__': exec(sys.argv[1])\n"
    )
    return path


def test_a_script_runs_as_main_with_its_arguments(script: Path) -> None:
    ran = run("--numpy", str(script), "pass", "--numpy", "-m", "x")
    assert ran.stderr == ""
    assert ran.stdout == "__main__ ['pass', '--numpy', '-m', 'x'] 42 True\nrouted\n"
    assert ran.returncode == 0
    assert run(str(script), "pass").stdout.endswith("plain\n")


def test_a_module_runs_as_main(script: Path) -> None:
    ran = run("--numpy", "-m", "program", "pass", "-x")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "__main__ ['pass', '-x'] 42 True\nrouted\n"


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(3)", 3),
        ("sys.exit('text')", 1),
        ("raise SystemExit", 0),
        ("os._exit(5)", 5),
        ("raise ValueError('mine')", 1),
        ("raise OSError('mine')", 1),
        ("import nonsense_of_mine", 1),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("raise KeyboardInterrupt", -signal.SIGINT),
    ],
)
def test_exit_codes_exceptions_and_signals(script: Path, ending: str, code: int) -> None:
    with_us = run("--numpy", str(script), ending)
    without = python(str(script), ending)
    assert with_us.returncode == code == without.returncode
    assert with_us.stderr.splitlines()[-1:] == without.stderr.splitlines()[-1:]


def test_wrong_arguments() -> None:
    for arguments in ((), ("-m",), ("/no/such/file.py",), ("--numpy",), ("--numpy", "--decay", "0", __file__)):
        ran = run(*arguments)
        assert ran.returncode == 2
        assert "Traceback" not in ran.stderr
