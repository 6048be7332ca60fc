"""The command line: the demo."""

import os
import re
import subprocess
import sys

import pytest

import fastalloc
from fastalloc.cli import main


def run(*arguments):
    command = [sys.executable, "-P", "-m", "fastalloc.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"fastalloc {fastalloc.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--rounds", "100"], "rounds"),
        (["demo", "--proofs", "0"], "--proofs must be at least 1"),
        (["demo", "--rounds", "64", "--secret-file", "/nowhere/at/all"], "/nowhere/at/all"),
        ([], "required"),
    ],
)
def test_bad_arguments_are_a_message_and_exit_code_2(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_proves_and_leaves_no_copy():
    pytest.importorskip("galois", reason="galois is not installed: the extra `demo`")
    done = run("demo", "--rounds", "8192", "--proofs", "2")
    assert done.returncode == 0, done.stderr
    assert "proof: verified; identical bytes from both" in done.stdout
    assert "no copy of it in this process's readable memory" in done.stdout
    assert "\r" not in done.stderr  # the progress bar is for terminals
    # None in the arenas, where plain NumPy has thousands; CPython takes and gives back some pages of its own.
    faults = re.search(r"page faults +([\d,]+) +([\d,]+)", done.stdout)
    assert faults is not None
    assert int(faults[2].replace(",", "")) <= 100


def test_the_demo_takes_a_secret_from_a_file(tmp_path):
    pytest.importorskip("galois", reason="galois is not installed: the extra `demo`")
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(32))
    before = secret.read_bytes()
    done = run("demo", "--rounds", "64", "--proofs", "1", "--secret-file", str(secret))
    assert done.returncode == 0, done.stderr
    assert secret.read_bytes() == before
