"""The life of a secret in a witness arena, seen from outside the process: memory, core dumps, a forked child, swap.

And that nothing inside shows it: repr, str, errors, logs, pickles, copies.
"""

import copy
import logging
import mmap
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import MAKERS, make_block, scans_memory

import fastalloc as fa
from fastalloc import _binding

pytestmark = scans_memory
needs_gcore = pytest.mark.skipif(shutil.which("gcore") is None, reason="gcore is not installed (Debian: gdb)")

SIZE = 64
PUBLIC = b"this is no secret; it shows that a search finds what is there"

# What is registered at exit before fastalloc is imported runs after it. The secret is what is read into `block`.
CHILD = """
import atexit, gc, os, signal, sys, time
def pause(word):
    os.write(1, word.encode() + b"\\n")
    while not os.read(0, 1): time.sleep(0.01)
if sys.argv[1] == "exit": atexit.register(pause, "exiting")
import numpy as np
import fastalloc as fa
options = eval(sys.argv[4])
witness = fa.Witness("256KiB", name="keys", **options)
public = sys.argv[5].encode() + b"."
block = witness.read(sys.argv[2])
exec(sys.argv[3])
"""


class Child:
    """A process that holds the secret and runs code, which pauses where it is to be looked at."""

    def __init__(
        self, secret: Path, code: str, *, at_exit: bool = False, options: str = "{}", dump: bool = False
    ) -> None:
        self.secret = secret
        command = [sys.executable, "-c", CHILD, "exit" if at_exit else "-", str(secret), code, options, PUBLIC.decode()]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=secret.parent,
            preexec_fn=_allow_dumps if dump else None,
        )
        self.pid = self.process.pid

    def reach(self, word: str) -> str:
        """Wait until it pauses there; what it says besides."""
        assert self.process.stdout is not None
        said = self.process.stdout.readline().decode().split()
        assert said, self.errors()
        assert said[0] == word, said
        return " ".join(said[1:])

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"x")
        self.process.stdin.flush()

    def errors(self) -> str:
        """What it has said when it ended."""
        return self.process.communicate()[1].decode()

    def places(self, pid: int | None = None) -> list[str]:
        return [str(place) for place in fa.find_residue(self.secret, pid=pid or self.pid)]

    def status(self, field: str) -> int:
        """Bytes of a line of /proc/PID/status."""
        found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) << 10

    def core(self, *flags: str) -> Path:
        """What gcore writes."""
        path = self.secret.parent / "gcore"
        subprocess.run(["gcore", *flags, "-o", str(path), str(self.pid)], check=True, capture_output=True)
        return path.with_name(f"gcore.{self.pid}")


def _allow_dumps() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def pieces(path: Path, pattern: bytes) -> int:
    """How many pieces of a pattern are in a file, such as a core dump."""
    found = 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        found += len(_binding.find_pieces(content, pattern, 16))
    return found


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def child(secret: Path) -> Iterator[Callable[..., Child]]:
    made: list[Child] = []

    def start(code: str, **options: object) -> Child:
        made.append(Child(secret, code, **options))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.communicate()


# ---- while it lives --------------------------------------------------------------------------------------------------


def test_it_is_in_the_arena_and_nowhere_else(child: Callable[..., Child]) -> None:
    one = child("pause(f'handed_out {block.address:#x}')")
    address = one.reach("handed_out")
    (place,) = one.places()
    assert f"({address})" in place
    assert one.status("VmLck") >= 4096
    assert one.status("VmSwap") == 0


@needs_gcore
def test_a_debugger_dumps_everything_else(child: Callable[..., Child], secret: Path) -> None:
    one = child("pause('handed_out')")
    one.reach("handed_out")
    core = one.core()
    assert pieces(core, PUBLIC) > 0
    assert pieces(core, secret.read_bytes()) == 0
    everything = one.core("-a")  # it ignores what the process has asked for: only secret memory is out of its reach
    assert pieces(everything, secret.read_bytes()) == 1


@needs_gcore
def test_secret_memory_is_out_of_every_debugger_s_reach(child: Callable[..., Child], secret: Path) -> None:
    try:
        fa.Witness("64KiB", secret_memory=True).close()  # type: ignore[call-arg]
    except (TypeError, fa.UnsupportedError, fa.LockError) as error:
        pytest.skip(f"secret_memory=True: {error}")
    one = child("pause('handed_out')", options="{'secret_memory': True}")
    one.reach("handed_out")
    assert one.places() == []
    core = one.core("-a")
    assert pieces(core, PUBLIC) > 0
    assert pieces(core, secret.read_bytes()) == 0


def test_a_core_dump_by_the_kernel(child: Callable[..., Child], secret: Path) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern:
        pytest.skip(f"core dumps go elsewhere here: core_pattern is {pattern!r}")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY and os.geteuid() != 0:
        pytest.skip("core dumps are limited here (ulimit -Hc)")
    one = child("import ctypes; kept = bytes(public); ctypes.string_at(0)", dump=True)
    assert one.process.wait(60) == -signal.SIGSEGV
    cores = list(secret.parent.glob("core*"))
    if not cores:
        pytest.skip("the kernel has written no core dump")
    assert pieces(cores[0], PUBLIC) > 0
    assert pieces(cores[0], secret.read_bytes()) == 0


def test_a_forked_child_has_nothing_and_can_use_a_fresh_arena(child: Callable[..., Child], secret: Path) -> None:
    one = child(
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    zeros = not any(memoryview(block))\n"
        "    fresh = fa.Witness('64KiB', name='fresh')\n"
        "    array = fresh.full(100, 7, 'u8'); old = witness.token(16)\n"
        "    pause(f'forked {os.getpid()} {zeros} {array.sum()} {any(memoryview(old))}'); os._exit(0)\n"
        "os.waitpid(pid, 0); pause('parent')\n"
    )
    pid, *answers = one.reach("forked").split()
    assert answers == ["True", "700", "True"]
    assert one.places(int(pid)) == []
    assert len(one.places()) == 1
    one.go_on()
    one.reach("parent")
    assert len(one.places()) == 1


# ---- how it ends -----------------------------------------------------------------------------------------------------

ENDINGS = {
    "freed": "block.free()",
    "collected": "block = None; gc.collect()",
    "collected in a cycle": "a = [block]; a.append(a); del a, block; gc.collect()",
    "rewound": "mark = witness.mark(); late = witness.alloc(64); memoryview(late)[:] = block\n"
    "block.free(); late.free(); witness.rewind(mark)",
    "scope": "with witness.scope() as s:\n  late = s.alloc(64); memoryview(late)[:] = block; block.free(); del late",
    "reset": "block.free(); witness.reset()",
    "reset, retired": "view = memoryview(block); witness.reset(retire=True); view.release(); del view; block.free()",
    "wiped": "witness.wipe()",
    "block wiped": "block.wipe()",
    "closed": "witness.close()",
    "closed with arrays alive": "view = np.frombuffer(block, np.uint8); witness.close()",
    "arena collected": "del block, witness; gc.collect()",
    "array": "with fa.using_allocator(witness): a = np.frombuffer(block, 'u8') ^ 1; b = a ^ 1\ndel a, b; block.free()",
    "array that grew": "with fa.using_allocator(witness): a = np.frombuffer(block, 'u8').copy(); a.resize(10000)\n"
    "del a; block.free()",
}


def test_nothing_is_left_after_each_end(child: Callable[..., Child]) -> None:
    """One process for all of them; the secret is there before each of them."""
    code = (
        f"block.free(); ends = {ENDINGS!r}\n"
        "for name, end in ends.items():\n"
        "    witness = fa.Witness('256KiB', name='keys', **options); block = witness.read(sys.argv[2])\n"
        "    pause('before'); exec(end); fa.wipe_stack(); pause('after ' + name)\n"
    )
    one = child(code)
    left = {}
    for name in ENDINGS:
        one.reach("before")
        before = one.places()
        one.go_on()
        assert one.reach("after") == name
        left[name] = (before, one.places())
        one.go_on()
    for name, (before, after) in left.items():
        assert len(before) == 1, (name, before)
        assert after == [], name


EXITS = {
    "normal": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "exception": ("raise ValueError(block)", 1),
    "SIGINT": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", -signal.SIGINT),
    "SIGTERM": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)",
        7,
    ),
    "in a function": ("def f():\n  key = np.frombuffer(block, 'u8'); copy = witness.array(key); sys.exit(3)\nf()", 3),
    "in a thread": (
        "import threading as t; a = t.Thread(target=lambda: witness.read(sys.argv[2]).array()[0]); a.start(); a.join()",
        0,
    ),
}


@pytest.mark.parametrize("how", list(EXITS))
def test_nothing_is_left_at_exit(how: str, child: Callable[..., Child], secret: Path) -> None:
    """The process is stopped after its atexit functions, with all its memory still there."""
    code, status = EXITS[how]
    one = child(f"pause('ready')\n{code}", at_exit=True)
    one.reach("ready")
    assert len(one.places()) == 1
    one.go_on()
    one.reach("exiting")
    assert one.places() == []
    one.go_on()
    errors = one.errors()
    assert one.process.returncode == status
    assert repr(secret.read_bytes())[2:20] not in errors


def test_a_signal_that_nobody_handles_kills_at_once(child: Callable[..., Child]) -> None:
    """Documented: nobody can wipe then. The pages go back to the kernel."""
    one = child("pause('ready')")
    one.reach("ready")
    one.process.terminate()
    assert one.process.wait(60) == -signal.SIGTERM


def test_the_lock_is_given_back(child: Callable[..., Child]) -> None:
    one = child("pause('ready'); block.free(); witness.close(); del witness, block; gc.collect(); pause('closed')")
    one.reach("ready")
    locked = one.status("VmLck")
    assert locked > 0
    one.go_on()
    one.reach("closed")
    assert one.status("VmLck") == 0
    assert one.status("VmSwap") == 0


# ---- nothing shows it ------------------------------------------------------------------------------------------------

MARK = b"SECRET-swordfish"
NUMBER = 0x5EC2E75EC2E75EC2


def shown(thing: object) -> str:
    """What people see of a thing, in all the usual ways."""
    record = logging.LogRecord("name", logging.WARNING, __file__, 1, "%s %r", (thing, thing), None)
    return f"{thing} {thing!r} {thing!s:>10} {[thing]} {thing!a} {logging.Formatter().format(record)}"


def is_clean(text: str) -> bool:
    words = ("swordfish", MARK.hex(), str(NUMBER), f"{NUMBER:x}", f"{NUMBER:X}")
    return not any(word in text for word in words)


@pytest.mark.parametrize("maker", list(MAKERS))
def test_repr_str_and_logs(maker: str) -> None:
    allocator = MAKERS[maker]()
    block = make_block(allocator, 64)
    memoryview(block)[:16] = MARK
    things: list[object] = [
        allocator,
        block,
        memoryview(block),
        memoryview(block).obj,
        allocator.stats(),
        allocator._heap,
    ]
    if isinstance(allocator, fa.Arena):
        things += [allocator.mark(), allocator.scope(), allocator.protection, fa.using_allocator(allocator)]
    for thing in things:
        assert is_clean(shown(thing)), type(thing)
    del thing, things
    block.free()
    assert is_clean(shown(block))


@pytest.mark.parametrize("maker", list(MAKERS))
def test_errors_and_tracebacks(maker: str) -> None:
    allocator = MAKERS[maker]()
    block = make_block(allocator, 64)
    view = memoryview(block)
    view[:16] = MARK
    array = block.array("uint64")
    array[2:] = NUMBER
    calls: list[Callable[[], object]] = [
        block.free,
        lambda: block.array("O"),
        lambda: block.array("f8", (7, 7)),
        lambda: block.array("V7"),
        lambda: make_block(allocator, 1 << 60),
        lambda: make_block(allocator, NUMBER.to_bytes(8)),  # type: ignore[arg-type]
        lambda: pickle.dumps(block),
        lambda: copy.copy(block),
        lambda: fa.secure_zero(MARK),
        lambda: fa.secure_zero(NUMBER),
        lambda: fa.find_residue(MARK[:15]),
        lambda: fa.find_residue(block, pid=1 << 30),
        lambda: fa.handles(block),
        lambda: fa.using_allocator(block),  # type: ignore[type-var]
    ]
    if isinstance(allocator, fa.Arena):
        calls += [allocator.reset, lambda: allocator.rewind(block), lambda: allocator.owns(MARK.decode())]  # type: ignore[arg-type]
    if isinstance(allocator, fa.Witness):
        calls += [lambda: allocator.read(block), lambda: allocator.token(block)]  # type: ignore[arg-type]
    for call in calls:
        try:
            call()
        except Exception:  # noqa: BLE001
            text = traceback.format_exc()
        else:
            raise AssertionError(f"no error: {call}")
        assert is_clean(re.sub(r"(?m)^ +.*$", "", text)), text  # the lines of this file aside


@pytest.mark.parametrize("maker", list(MAKERS))
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_and_copy_refuse(maker: str, protocol: int) -> None:
    allocator = MAKERS[maker]()
    block = make_block(allocator, 64)
    things: list[object] = [allocator, block, memoryview(block).obj, allocator._heap]
    if isinstance(allocator, fa.Arena):
        things += [allocator.scope(), fa.using_allocator(allocator)]
    actions: list[Callable[[object], object]] = [copy.copy, copy.deepcopy, lambda thing: pickle.dumps(thing, protocol)]
    for thing in things:
        for action in actions:
            with pytest.raises(TypeError, match=r"cannot be pickled or copied|cannot pickle"):
                action(thing)


def test_arrays_are_where_the_allocator_says() -> None:
    """What docs/secrets.md says of copies and of __array_function__."""
    with fa.Witness("1MiB") as witness:
        array = witness.array([3.0, 1.0, 2.0])
        with fa.using_allocator(witness):
            for made in (
                array.copy(),
                copy.copy(array),
                copy.deepcopy(array),
                np.sort(array),
                np.concatenate([array] * 2),
            ):
                assert witness.owns(made)
        for made in (array.copy(), copy.deepcopy(array), np.sort(array), array + 1):
            assert not witness.owns(made)
        for view in (array[1:], array.reshape(3, 1), array.T, array.view("u8")):
            assert witness.owns(view)
        for made in (witness.copy(array), witness.concatenate([array, array])):
            assert witness.owns(made)
        assert type(np.sort(array)) is np.ndarray
