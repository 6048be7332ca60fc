"""The command line: what it says of wrong arguments and files; the demo."""

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
        (["demo", "--rounds", "1" + "0" * 20], "rounds must be a power of two"),
        (
            ["demo", "--rounds", "64", "--secret-file", "/nowhere/at/all"],
            "fastalloc demo: /nowhere/at/all: No such file or directory\n",
        ),
        (["demo", "--rounds", "64", "--secret-file", "/"], "fastalloc demo: /: Is a directory\n"),
        (["scan", "1", "--pattern-file", "/nowhere/at/all"], "fastalloc scan: /nowhere/at/all: No such file"),
        (["scan", "1", "--pattern-file", "/dev/null"], "fastalloc scan: pattern: /dev/null is not a regular file"),
        (["stats", "-1"], "fastalloc stats: process -1: there is none\n"),
        (["stats", "--watch", "0", "1"], "--watch: 0.0 is no time to wait"),
        ([], "required: COMMAND"),
        (["prove"], "invalid choice: 'prove'"),
    ],
)
def test_bad_arguments_are_a_message_and_exit_code_2(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_that_is_not_there_is_a_message(tmp_path):
    (tmp_path / "secret").write_bytes(os.urandom(32))
    done = run("scan", str(2**22 + 5), "--pattern-file", str(tmp_path / "secret"))
    assert (done.returncode, done.stderr) == (2, f"fastalloc scan: process {2**22 + 5}: there is none\n")


@pytest.mark.parametrize("command", ["", "demo", "run", "stats", "scan"])
def test_help_says_the_exit_codes_or_where_they_are(command):
    done = run(*filter(None, [command]), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "exit codes" in done.stdout or "Exit code:" in done.stdout


def test_a_reader_that_has_enough_and_an_interrupt_are_no_errors(monkeypatch, capfd):
    for error, code in ((KeyboardInterrupt(), 130), (BrokenPipeError(32, "Broken pipe"), 141)):

        def fail(_options, error=error):
            raise error

        monkeypatch.setattr("fastalloc.cli.scan._run", fail)
        with os.fdopen(os.dup(1)) as stdout:
            assert main(["scan", "1", "--pattern-file", "x"]) == code
            os.dup2(stdout.fileno(), 1)
    assert capfd.readouterr().err == ""


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
