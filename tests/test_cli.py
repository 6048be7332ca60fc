"""The command line: the demo, and the search for copies of a secret that it ends with."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

import fastalloc
from fastalloc.cli import main
from fastalloc.cli.residue import find_copies


@pytest.fixture
def pattern_file(tmp_path):
    """32 random bytes in a file, made by another process: this one never holds them."""
    path = tmp_path / "pattern"
    program = "import secrets, sys; open(sys.argv[1], 'wb').write(secrets.token_bytes(32))"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    return path


def test_a_secret_that_was_never_read_is_nowhere(pattern_file):
    assert find_copies(pattern_file) == []


@pytest.mark.parametrize("piece", [slice(0, 32), slice(0, 16), slice(16, 32)])
def test_a_copy_is_found_where_it_lies(pattern_file, piece):
    array = np.fromfile(pattern_file, np.uint8)[piece].copy()
    addresses = [residue.address for residue in find_copies(pattern_file)]
    assert array.ctypes.data in addresses
    array[:] = 0
    assert array.ctypes.data not in [residue.address for residue in find_copies(pattern_file)]


def test_a_copy_across_two_windows_of_the_search_is_found(pattern_file):
    room = np.zeros(3 << 20, np.uint8)
    with pattern_file.open("rb", buffering=0) as file:
        # Wherever the mapping begins, one of these is cut by a boundary of a mebibyte (plus the mapping's offset).
        page = -room.ctypes.data % 4096
        places = range(page + 4096 - 8, len(room) - 32, 4096)
        file.readinto(memoryview(room)[places[0] : places[0] + 32])
    for place in places:
        room[place : place + 32] = room[places[0] : places[0] + 32]
    found = {residue.address for residue in find_copies(pattern_file)}
    assert {room.ctypes.data + place for place in places} <= found
    room[:] = 0


def test_a_report_names_the_place_and_not_the_secret(pattern_file):
    array = np.fromfile(pattern_file, np.uint8)
    (first, *_) = find_copies(pattern_file)
    assert re.fullmatch(r".+ \+ 0x[0-9a-f]+ \(0x[0-9a-f]+\)", str(first))
    assert array.tobytes().hex() not in str(first)
    array[:] = 0


def test_patterns_must_be_whole_pieces(tmp_path):
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 17)
    with pytest.raises(ValueError, match="17 bytes are not a multiple of 16"):
        find_copies(path)


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
    done = run("demo", "--rounds", "64", "--proofs", "1")
    assert done.returncode == 0, done.stderr
    assert "proof: verified; identical bytes from both" in done.stdout
    assert "no copy of it in this process's writable memory" in done.stdout
    assert "\r" not in done.stderr  # the progress bar is for terminals
    faults = re.search(r"page faults +([\d,]+) +([\d,]+)", done.stdout)
    assert faults is not None
    assert int(faults[2].replace(",", "")) <= 8


def test_the_demo_takes_a_secret_from_a_file(tmp_path):
    pytest.importorskip("galois", reason="galois is not installed: the extra `demo`")
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(32))
    before = secret.read_bytes()
    done = run("demo", "--rounds", "64", "--proofs", "1", "--secret-file", str(secret))
    assert done.returncode == 0, done.stderr
    assert secret.read_bytes() == before
