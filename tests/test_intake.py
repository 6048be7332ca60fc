"""Secrets read straight into a witness arena: read, getpass, token."""

import fcntl
import io
import os
import pty
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SANITIZED, scans_memory

import fastalloc as fa


@pytest.fixture
def witness() -> fa.Witness:
    return fa.Witness("1MiB", name="keys")


# ---- read ----


@pytest.mark.parametrize("size", [0, 1, 32, 4095, 4096, 4097, 100_000])
def test_files(witness: fa.Witness, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    with path.open("rb", buffering=0) as raw:
        descriptor = os.open(path, os.O_RDONLY)
        for file in (path, str(path), bytes(path), descriptor, raw):
            block = witness.read(file)
            assert bytes(block) == data
            assert len(block) == size
            assert witness.owns(block)
        assert os.read(descriptor, 1) == b""  # at its end, and open
        os.close(descriptor)
    assert witness.live == 1
    assert bytes(witness.read(path, size // 2)) == data[: size // 2]
    assert bytes(witness.read(path, "1MiB" if size < 1000 else "200KiB")) == data


def test_descriptors_are_read_from_where_they_are(witness: fa.Witness, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    with path.open("rb", buffering=0) as raw:
        raw.seek(90)
        assert bytes(witness.read(raw, 4)) == bytes(range(90, 94))
        assert bytes(witness.read(raw)) == bytes(range(94, 100))
        assert bytes(witness.read(raw)) == b""


@pytest.mark.parametrize("size", [0, 5, 4096, 150_000])
def test_pipes_of_any_length(witness: fa.Witness, size: int) -> None:
    reader, writer = os.pipe()
    data = os.urandom(size)

    def write() -> None:
        for start in range(0, size, 777):
            os.write(writer, data[start : start + 777])
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    assert bytes(witness.read(reader)) == data
    thread.join()
    os.close(reader)


@scans_memory
def test_a_growing_read_wipes_where_it_was(witness: fa.Witness) -> None:
    secret = bytearray(os.urandom(32))
    reader, writer = os.pipe()
    os.writev(writer, [secret] * 160)
    os.close(writer)
    block = witness.read(reader)
    os.close(reader)
    assert len(block) == 5120
    found = [residue.address for residue in fa.find_residue(secret)]
    assert found == list(range(block.address, block.address + 5120, 32))


@pytest.mark.parametrize(
    ("file", "error", "message"),
    [
        (io.BytesIO(b"x"), fa.ArgumentTypeError, "with a buffer"),
        (io.StringIO("x"), fa.ArgumentTypeError, "with a buffer"),
        (1.5, fa.ArgumentTypeError, "not float"),
        (True, fa.ArgumentTypeError, "not bool"),
        ("/nowhere/at/all", FileNotFoundError, "/nowhere/at/all"),
        ("/", IsADirectoryError, "directory"),
        (10**6, OSError, "Bad file"),
        (-1, fa.ArgumentError, "file: -0x1 is not a file descriptor"),
        (2**40, fa.ArgumentError, "is not a file descriptor"),
        ("/dev/zero", fa.OutOfMemoryError, "no room"),
    ],
)
def test_what_cannot_be_read(witness: fa.Witness, file: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        witness.read(file)
    assert witness.live == 0


def test_a_buffered_file_is_refused(witness: fa.Witness) -> None:
    with Path(__file__).open("rb") as file, pytest.raises(fa.ArgumentTypeError, match="buffering=0"):
        witness.read(file)


def test_closed(witness: fa.Witness) -> None:
    witness.close()
    for call in (lambda: witness.read(__file__), witness.token, witness.getpass):
        with pytest.raises(fa.ClosedError):
            call()


# ---- token ----


@pytest.mark.parametrize("size", [0, 1, 32, 257, 100_000])
def test_tokens(witness: fa.Witness, size: int) -> None:
    one, other = witness.token(size), witness.token(size)
    assert (len(one), len(other)) == (size, size)
    assert size < 16 or bytes(one) != bytes(other)
    assert size < 1000 or len(np.unique(np.frombuffer(one, np.uint8))) == 256
    assert witness.owns(one)
    assert len(witness.token()) == 32


# ---- getpass ----

ASK = """
import os, sys
import fastalloc as fa
witness = fa.Witness("64KiB", name="keys")
print("start", flush=True)
try:
    block = witness.getpass("Pass phrase: ", limit=int(sys.argv[2]))
except Exception as error:
    print(type(error).__name__, error, flush=True)
else:
    with open(sys.argv[1], "wb", buffering=0) as file: os.writev(file.fileno(), [block])
    print(len(block), hex(block.address), witness.live, flush=True)
    print(block, repr(block), str(memoryview(block)), flush=True)
    sys.stdin.readline()
"""


class Terminal:
    """A process with a terminal of its own, which this one holds the other end of."""

    def __init__(self, *arguments: str) -> None:
        self.end, other = pty.openpty()

        def take_the_terminal() -> None:
            os.setsid()
            fcntl.ioctl(other, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-c", ASK, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=take_the_terminal,
            pass_fds=[other],
        )
        assert self.line() == "start"
        shown = b""
        while not shown.endswith(b"Pass phrase: "):
            shown += os.read(self.end, 100)
        self.other = other

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def type(self, text: bytes) -> None:
        os.write(self.end, text)

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.end)[3] & termios.ECHO)

    def finish(self) -> int:
        self.process.communicate("\n")
        os.close(self.end)
        os.close(self.other)
        return self.process.returncode


@pytest.fixture
def terminal() -> Callable[..., Terminal]:
    return Terminal


def test_a_password_is_typed_unseen(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    path = tmp_path / "copy"
    asked = terminal(str(path), "100")
    assert not asked.echoes()
    asked.type(b"correct horse battery staple\n")
    length, address, live = asked.line().split()
    assert (length, live) == ("28", "1")
    assert asked.echoes()
    assert b"horse" not in os.read(asked.end, 1000)
    assert "horse" not in asked.line()
    if Path("/proc/self/mem").exists() and not SANITIZED:
        found = fa.find_residue(path, pid=asked.process.pid)
        assert [hex(residue.address) for residue in found] == [address]
    assert path.read_bytes() == b"correct horse battery staple"
    assert asked.finish() == 0


@pytest.mark.parametrize(
    ("typed", "limit", "answer"),
    [
        (b"\n", "100", "0"),
        (b"exact\n", "5", "5"),
        (b"longer\n", "5", "ArgumentError limit: the line is longer than 5 bytes"),
        (b"\x04", "100", "EOFError getpass: the input has ended"),
        (b"half\x04\x04", "100", "4"),
    ],
)
def test_other_lines(terminal: Callable[..., Terminal], tmp_path: Path, typed: bytes, limit: str, answer: str) -> None:
    asked = terminal(str(tmp_path / "copy"), limit)
    asked.type(typed)
    assert asked.line().startswith(answer)
    assert asked.echoes()
    assert asked.finish() == 0


def test_an_interrupt_leaves_the_terminal_as_it_was(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    asked = terminal(str(tmp_path / "copy"), "100")
    asked.type(b"abc\x03")
    asked.process.wait(30)
    assert asked.echoes()
    assert asked.finish() != 0


def test_without_a_terminal() -> None:
    program = ASK.replace("try:", "os.setsid()\ntry:") if os.getsid(0) != os.getpid() else ASK
    done = subprocess.run(
        [sys.executable, "-c", program, "/dev/null", "10"],
        capture_output=True,
        text=True,
        check=False,
        start_new_session=program is ASK,
    )
    assert "UnsupportedError getpass: the process has no terminal" in done.stdout


# ---- what the process has of it ----

HOLD = """
import os, sys
import fastalloc as fa
witness = fa.Witness("1MiB", name="keys")
exec(sys.argv[1])
with open(sys.argv[2], "wb", buffering=0) as file: os.writev(file.fileno(), [block])
print(hex(block.address), flush=True)
sys.stdin.readline()
block.free()
print("freed", flush=True)
sys.stdin.readline()
"""


@scans_memory
@pytest.mark.parametrize(
    "code",
    [
        "block = witness.token(48)",
        "block = witness.read(sys.argv[2])",
        "block = witness.read(sys.argv[2], 40)",
        "block = witness.read(open(sys.argv[2], 'rb', buffering=0))",
        "r, w = os.pipe(); os.sendfile(w, os.open(sys.argv[2], 0), 0, 48); os.close(w); block = witness.read(r)",
    ],
)
def test_the_only_copy_is_in_the_arena(code: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(os.urandom(48))
    command = [sys.executable, "-c", HOLD, code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        found = fa.find_residue(path, pid=process.pid)
        assert [(hex(residue.address), residue.length) for residue in found] == [(address, path.stat().st_size)]
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "freed\n"
        assert fa.find_residue(path, pid=process.pid) == []
        process.stdin.write("\n")
    assert process.returncode == 0
