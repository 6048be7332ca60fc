"""The search for copies of a secret: it finds what is there, and not itself."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import run_python, scans_memory

import fastalloc as fa
from fastalloc import _binding

pytestmark = scans_memory

# A process that fills memory as its first argument says (with the secret's file in sys.argv[2]), says so, and waits.
CHILD = """
import mmap, os, sys, threading
import numpy as np
import fastalloc as fa
def read(room, at=0):
    with open(sys.argv[2], "rb", buffering=0) as file:
        assert file.readinto(memoryview(room).cast("B")[at : at + 32]) == 32
exec(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def pattern_file(tmp_path: Path) -> Path:
    """32 random bytes, none of them 0, in a file, made by another process: this one never holds them."""
    path = tmp_path / "pattern"
    program = "import secrets, sys; open(sys.argv[1], 'wb').write(bytes(1 + secrets.randbelow(255) for _ in range(32)))"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    return path


@pytest.fixture
def child(pattern_file: Path) -> Iterator[Callable[[str], int]]:
    """Start a process that runs this code, and waits: its PID."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> int:
        command = [sys.executable, "-c", CHILD, code, str(pattern_file)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process.pid

    yield start
    for process in started:
        process.communicate("\n")
        assert process.returncode == 0


# ---- this process ----


def test_a_secret_that_was_never_read_is_nowhere(pattern_file: Path) -> None:
    assert fa.find_residue(pattern_file) == []
    assert fa.find_residue(str(pattern_file), as_int=True) == []


@pytest.mark.parametrize("piece", [slice(0, 32), slice(0, 16), slice(16, 32), slice(3, 20), slice(11, 32)])
def test_a_piece_is_found_where_it_lies(pattern_file: Path, piece: slice) -> None:
    room = np.zeros(64, np.uint8)
    array = room[7 : 7 + piece.stop - piece.start]
    array[:] = np.fromfile(pattern_file, np.uint8)[piece]
    address = array.ctypes.data
    found = {residue.address: residue for residue in fa.find_residue(pattern_file)}
    assert (found[address].length, found[address].start) == (len(array), piece.start)
    array[:] = 0
    assert address not in [residue.address for residue in fa.find_residue(pattern_file)]


def test_shorter_pieces_are_not_reported(pattern_file: Path) -> None:
    array = np.zeros(64, np.uint8)[7:22]
    array[:] = np.fromfile(pattern_file, np.uint8)[:15]
    assert array.ctypes.data not in [residue.address for residue in fa.find_residue(pattern_file)]


def test_a_copy_across_two_windows_of_the_search_is_found(pattern_file: Path) -> None:
    room = np.zeros(3 << 20, np.uint8)
    # Wherever the windows begin and however long they are, many of these are cut by one.
    places = range(0, len(room) - 32, 4001)
    with pattern_file.open("rb", buffering=0) as file:
        file.readinto(memoryview(room)[:32])
    for place in places:
        room[place : place + 32] = room[:32]
    found = {residue.address: residue.length for residue in fa.find_residue(pattern_file)}
    assert {room.ctypes.data + place for place in places} <= found.keys()
    assert {found[room.ctypes.data + place] for place in places} == {32}
    room[:] = 0


def test_every_alignment(pattern_file: Path) -> None:
    room = np.zeros(64 * 64, np.uint8)
    with pattern_file.open("rb", buffering=0) as file:
        file.readinto(memoryview(room)[:32])
    for row in range(64):
        room[64 * row + row % 32 :][:32] = room[:32]
    found = {residue.address for residue in fa.find_residue(pattern_file)}
    assert {room.ctypes.data + 64 * row + row % 32 for row in range(64)} <= found
    room[:] = 0


@pytest.mark.parametrize("kind", [bytes, bytearray, np.array])
def test_the_pattern_itself_is_not_reported(kind: Callable[[bytearray], object]) -> None:
    secret = bytearray(b"s" + os.urandom(39))
    pattern = kind(secret)
    secret[:] = bytes(40)
    assert fa.find_residue(pattern) == []
    copy = bytearray(40)  # 0 and not "s" before the rest
    copy[1:] = memoryview(pattern)[1:]  # type: ignore[arg-type]
    (residue,) = fa.find_residue(pattern)
    assert (residue.address, residue.length, residue.start) == (_binding.address_of(copy) + 1, 39, 1)


def test_a_block_of_a_witness_arena_is_not_reported_and_copies_in_arenas_are_named() -> None:
    with fa.Witness("64KiB", name="keys") as keys, fa.Scratch("64KiB", name="spare") as spare:
        key = keys.alloc(32)
        memoryview(key)[:] = os.urandom(32)
        fa.find_residue(key)
        copy = spare.alloc(32)
        memoryview(copy)[:] = key
        found = {residue.address: residue for residue in fa.find_residue(key)}
        assert key.address not in found
        assert (found[copy.address].kind, found[copy.address].mapping) == ("arena", "scratch arena 'spare'")
        assert str(found[copy.address]).startswith("scratch arena 'spare' + 0x")


@pytest.mark.parametrize("bits", [128, 255, 256, 521, 4096])
def test_an_int_in_either_order_and_as_digits(bits: int) -> None:
    number = int.from_bytes(os.urandom(bits // 8 + 1)) >> 3 | 1 << (bits - 1)
    number &= (1 << bits) - 1
    size = (bits + 7) // 8
    little, big, other = number.to_bytes(size, "little"), number.to_bytes(size, "big"), number + (1 << bits)
    forms = {residue.address: (residue.form, residue.length) for residue in fa.find_residue(number)}
    assert forms[_binding.address_of(little)] == ("as it is", size)
    assert forms[_binding.address_of(big)] == ("reversed", size)
    assert id(number) + int.__basicsize__ not in forms
    if bits > 160:  # all digits but the last
        assert forms[id(other) + int.__basicsize__][0] == "digits"
    assert _binding.address_of(big) in [residue.address for residue in fa.find_residue(little, as_int=True)]
    digits = {residue.form for residue in fa.find_residue(big, as_int=True)}
    assert "reversed digits" in digits


def test_a_report_names_the_place_and_not_the_secret(pattern_file: Path) -> None:
    array = np.fromfile(pattern_file, np.uint8)
    (first, *_) = fa.find_residue(pattern_file)
    assert re.fullmatch(r".+ \+ 0x[0-9a-f]+ \(0x[0-9a-f]+\): .+, \d+ bytes", str(first))
    assert array.tobytes().hex() not in repr(first) + str(first)
    array[:] = 0


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        (b"x" * 15, fa.ArgumentError, "15 bytes are not from 16 to 4096"),
        (os.urandom(4097), fa.ArgumentError, "4097 bytes are not from 16 to 4096"),
        (bytes(32), fa.ArgumentError, "the same byte all along"),
        (1 << 100, fa.ArgumentError, "13 bytes are not from 16"),
        (True, fa.ArgumentTypeError, "not bool"),
        (None, fa.ArgumentTypeError, "not NoneType"),
        (np.zeros((64, 2))[:, 0], fa.ArgumentTypeError, "contiguous"),
        ("/nowhere/at/all", FileNotFoundError, "/nowhere/at/all"),
        ("/dev/zero", fa.ArgumentError, "not a regular file"),
    ],
)
def test_bad_patterns(pattern: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        fa.find_residue(pattern)
    assert "xxxxxx" not in str(caught.value)


def test_an_int_that_lies_about_its_length() -> None:
    """Digits are read where CPython keeps them: no more than there are."""

    class Liar(int):
        def bit_length(self) -> int:
            return 32_000

    number = Liar(int.from_bytes(os.urandom(32)) | 1 << 255)
    assert all(residue.length <= 36 for residue in fa.find_residue(number))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a platform without fork")
def test_a_search_of_another_thread_does_not_reach_a_forked_child() -> None:
    ran = run_python("""
import os, signal, threading
import fastalloc as fa
from fastalloc import residue
held, done = threading.Event(), threading.Event()
def search():
    with residue._one_at_a_time:  # as in the middle of find_residue()
        held.set()
        done.wait()
threading.Thread(target=search).start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(len(fa.find_residue(os.urandom(32))))
status = os.waitpid(child, 0)[1]
done.set()
assert status == 0, status
""")
    assert ran.returncode == 0, ran.stderr


def test_two_threads_search_at_once() -> None:
    secrets = [bytearray(os.urandom(32)) for _ in range(2)]
    found: list[list[fa.Residue]] = []
    threads = [threading.Thread(target=lambda s=s: found.append(fa.find_residue(s))) for s in secrets]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[], []]


def test_it_is_fast_and_skips_what_was_never_touched() -> None:
    with fa.Polynomial("64GiB"):
        room = np.full(256 << 20, 1, np.uint8)
        start = time.perf_counter()
        fa.find_residue(os.urandom(32))
        assert time.perf_counter() - start < 5  # 0.25 s on an idle machine; 64 GiB would take half a minute
        del room


# ---- another process ----


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("room = bytearray(32); read(room)", "anonymous"),
        ("room = np.empty(20000, np.uint8); read(room, 9999)", "heap"),
        ("room = mmap.mmap(-1, 4096); read(room, 100)", "anonymous"),
        ("keys = fa.Witness('64KiB'); room = keys.alloc(32); read(room)", "anonymous"),
        ("file = open(sys.argv[2], 'rb'); room = mmap.mmap(file.fileno(), 32, prot=mmap.PROT_READ)", "file"),
    ],
)
def test_another_process(child: Callable[[str], int], pattern_file: Path, code: str, kind: str) -> None:
    found = fa.find_residue(pattern_file, pid=child(code))
    assert [(residue.kind, residue.length) for residue in found] == [(kind, 32)]
    assert fa.find_residue(pattern_file) == []


def test_on_a_stack(child: Callable[[str], int], pattern_file: Path) -> None:
    """A C function that waits with the secret in its frame: qsort sorts in place, its comparison is called back."""
    pid = child("""
import ctypes
held, go = threading.Event(), threading.Event()
def compare(a, b):
    held.set(); go.wait(); return 0
def thread():
    # 48 bytes on the stack of a thread: ctypes passes a structure by value there.
    class Six(ctypes.Structure): _fields_ = [("words", ctypes.c_uint64 * 6)]
    six = Six(); read(six)
    function = ctypes.CFUNCTYPE(None, Six)(lambda six: compare(0, 0))
    function(six)
threading.Thread(target=thread, daemon=True).start()
held.wait()
""")
    kinds: set[str] = set()
    for _ in range(100):  # a thread tells where its stack is when it waits, and it may not have come so far
        kinds = {residue.kind for residue in fa.find_residue(pattern_file, pid=pid)}
        if "stack" in kinds:
            break
        time.sleep(0.05)
    assert "stack" in kinds


def test_no_such_process_or_no_right() -> None:
    with pytest.raises(OSError):
        fa.find_residue(os.urandom(32), pid=2**22 + 1)
    for pid in ("1", 1.5, True, b"1"):
        with pytest.raises(fa.ArgumentTypeError, match="pid: expected a process's number or None"):
            fa.find_residue(os.urandom(32), pid=pid)  # type: ignore[arg-type]


def scan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "fastalloc.cli", "scan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command(child: Callable[[str], int], pattern_file: Path) -> None:
    clean, dirty = child("pass"), child("room = bytearray(32); read(room); number = int.from_bytes(memoryview(room))")
    ran = scan(str(clean), "--pattern-file", str(pattern_file))
    assert (ran.returncode, ran.stdout) == (0, f"no copies in the readable memory of process {clean}\n")
    ran = scan(str(dirty), "--pattern-file", str(pattern_file))
    assert ran.returncode == 1
    places = ran.stdout.splitlines()
    assert places[-1] == f"{len(places) - 1} copies in the readable memory of process {dirty}"
    assert len(places) > 2  # int.from_bytes makes a bytes object first, and frees it as it is
    ran = scan(str(dirty), "--pattern-file", str(pattern_file), "--int", "--json")
    assert ran.returncode == 1
    forms = [json.loads(line)["form"] for line in ran.stdout.splitlines()]
    assert sorted(set(forms)) == ["as it is", "reversed digits"]


def test_the_command_with_bad_arguments(pattern_file: Path, tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"short")
    for arguments, message in (
        ([str(2**22 + 1), "--pattern-file", str(pattern_file)], "there is none"),
        ([str(os.getpid()), "--pattern-file", str(tmp_path / "odd")], "5 bytes are not from 16"),
    ):
        ran = scan(*arguments)
        assert ran.returncode == 2
        assert message in ran.stderr
        assert "Traceback" not in ran.stderr
