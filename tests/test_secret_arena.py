"""Witness arenas from Python: guard pages after blocks, seals, secret memory, locks, and the life of a secret."""

import contextlib
import copy
import ctypes
import gc
import mmap
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from conftest import SANITIZED

import fastalloc as fa

LINUX = sys.platform == "linux"
PAGE = mmap.PAGESIZE


def run(program: str, *, status: int = 0) -> str:
    """The output of a Python program, which must end so."""
    preamble = "import ctypes, gc, os, sys\nimport numpy as np\nimport fastalloc as fa\n"
    done = subprocess.run(
        [sys.executable, "-c", preamble + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done.stdout if status == 0 else done.stderr


def deaths(program: str, *touches: str) -> list[bool]:
    """For each touch, whether the processor stops a child of the program in which it is made."""
    children = f"""
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for touch in {touches!r}:
    child = os.fork()
    if child == 0:
        exec(touch)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    # The sanitizers' runtime catches the signal, and exits with a report.
    print(status != 0 if {SANITIZED} else os.WIFSIGNALED(status))
"""
    return [line == "True" for line in run(textwrap.dedent(program) + children).split()]


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"guard": "pages"}, fa.ArgumentError, "guard: 'pages' is not one of 'ends', 'block'"),
        ({"guard": True}, fa.ArgumentTypeError, "guard: expected one of"),
        ({"guard": "block", "guard_pages": False}, fa.ArgumentError, "guard: 'block' needs guard_pages"),
        ({"guard": "block", "alignment": 2 * PAGE}, fa.ArgumentError, "alignment: .* too large for guard='block'"),
        ({"secret_memory": "yes"}, fa.ArgumentError, "secret_memory: 'yes' is not one of"),
        ({"kind": "scratch", "guard": "block"}, fa.ArgumentError, "guard: only a witness arena"),
        ({"kind": "polynomial", "secret_memory": "try"}, fa.ArgumentError, "secret_memory: only a witness arena"),
    ],
)
def test_bad_options(options: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"kind": "witness", "capacity": "1MiB", **options}
    with pytest.raises(error, match=message):
        fa.Arena(**arguments)  # type: ignore[arg-type]


def test_other_kinds_may_say_no() -> None:
    arena = fa.Scratch("1MiB", guard="ends", secret_memory=False)
    assert arena.protection.secret == arena.protection.guarded_blocks == 0


# ---- guard="block" ---------------------------------------------------------------------------------------------------


def test_arrays_end_at_a_guard_page() -> None:
    with fa.Witness("4MiB", guard="block") as arena:
        for count in (1, 8, 64, 511, 512, 1000):
            array = arena.full(count, 7, np.uint64)
            end = array.ctypes.data + -(-array.nbytes // 64) * 64
            assert end % PAGE == 0
            assert array.sum() == 7 * count
        assert arena.live == 1
        assert arena.protection.guarded_blocks == PAGE
        block = arena.alloc(100, alignment=16)
        assert len(block) == 100
        assert (block.address + 112) % PAGE == 0
        assert bytes(block) == bytes(100)
    assert bytes(block) == bytes(100)


def test_an_overrun_and_a_use_after_free_die() -> None:
    program = """
        arena = fa.Witness("1MiB", guard="block")
        block = arena.alloc(100, alignment=16)
    """
    died = deaths(
        program,
        "ctypes.memset(block.address, 1, 100)",
        "ctypes.memset(block.address + 112, 1, 1)",
        "ctypes.string_at(block.address + 111 + 4096, 1)",
        "address = block.address; block.free(); ctypes.string_at(address, 1)",
    )
    assert died == [False, True, True, True]


@pytest.mark.parametrize(
    ("offset", "where", "way"),
    [
        (100, "at its end", "block.free()"),
        (-1, "before its beginning", "del block"),
        (111, "at its end", "arena.close()"),
        (-16, "before its beginning", "arena.wipe()"),
    ],
)
def test_a_broken_canary_is_reported_with_the_name(offset: int, where: str, way: str) -> None:
    errors = run(
        f"""
        arena = fa.Witness("1MiB", guard="block", name="keys")
        block = arena.alloc(100, alignment=16)
        ctypes.memset(block.address + {offset}, 0, 1)
        sys.stderr.write("before\\n")
        {way}
        """,
        status=-signal.SIGABRT,
    )
    line = next(line for line in errors.splitlines() if line.startswith("fastalloc: "))
    assert where in line
    assert "keys" in line


# ---- seals -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["witness", "polynomial", "scratch", "block", "secret"])
def arena(request: pytest.FixtureRequest) -> fa.Arena:
    if request.param == "block":
        return fa.Witness("1MiB", guard="block")
    if request.param == "secret":
        return fa.Witness("1MiB", secret_memory="try")
    return fa.Arena(request.param, "1MiB", on_full="fail")


def test_sealed(arena: fa.Arena) -> None:
    array = arena.full(1000, 7.0)
    assert arena.sealed is None
    arena.seal()
    assert arena.sealed == "none"
    assert arena.protection.sealed >= 8000
    arena.seal("read")
    assert arena.sealed == "read"
    assert array.sum() == 7000
    arena.unseal()
    assert arena.sealed is None
    assert arena.protection.sealed == 0
    array[:] = 8
    with pytest.raises(fa.ArgumentError, match="how: 'write' is not one of 'read', 'none'"):
        arena.seal("write")  # type: ignore[arg-type]
    with pytest.raises(fa.ArgumentTypeError, match="how: "):
        arena.seal(None)  # type: ignore[arg-type]
    arena.close()
    for call in (arena.seal, arena.unseal, lambda: arena.sealed, arena.unsealed().__enter__):
        with pytest.raises(fa.ClosedError):
            call()


@pytest.mark.parametrize("options", ["", ", guard='block'", ", secret_memory='try'"])
def test_a_touch_of_a_sealed_array_dies(options: str) -> None:
    program = f"""
        arena = fa.Witness("1MiB"{options})
        array = arena.full(1000, 7.0)
        arena.seal()
        def read(): array.sum()
        def write(): array[10] = 1
    """
    died = deaths(
        program,
        *("read()", "write()", "arena.unseal(); write()", "u = arena.unsealed(); u.__enter__(); write()"),
        *("arena.seal('read'); read()", "arena.seal('read'); write()", "arena.unsealed().__enter__().wipe()"),
        "arena.unsealed().__enter__(); write()",  # nobody holds what would have to close it
    )
    assert died == [True, True, False, False, False, True, False, True]


def test_a_sealed_arena_hands_nothing_out(arena: fa.Arena) -> None:
    block = arena.alloc(100)
    arena.seal("read")
    with pytest.raises(fa.SealedError, match="is sealed"):
        arena.alloc(8)
    with pytest.raises(fa.SealedError, match="is sealed") as caught:
        arena.zeros(10)
    assert isinstance(caught.value.__cause__, MemoryError)
    with fa.using_allocator(arena), pytest.raises(MemoryError):
        np.ones(10)
    with arena.unsealed():
        assert arena.zeros(10).sum() == 0
    assert bytes(block) == bytes(100)
    arena.unseal()
    assert arena.zeros(10).sum() == 0


def test_garbage_of_a_sealed_arena_is_wiped(arena: fa.Arena) -> None:
    array, other = arena.full(1000, 7.0), arena.full(1000, 8.0)
    arena.seal()
    del array
    assert arena.live == 1
    with arena.unsealed():
        assert other.sum() == 8000
    del other
    arena.reset()
    assert arena.live == 0
    arena.unseal()
    if arena.kind == "witness":
        assert not arena.empty(4000).any()


def test_wipe_and_close_go_through_a_seal(arena: fa.Arena) -> None:
    array = arena.full(1000, 7.0)
    arena.seal()
    arena.wipe()
    assert arena.sealed == "none"
    with arena.unsealed():
        assert not array.any()
        array[:] = 7
    arena.close()
    assert array.any() == (arena.kind != "witness")


@pytest.mark.parametrize("how", ["none", "read"])
def test_a_block_is_wiped_through_a_seal(arena: fa.Arena, how: Literal["none", "read"]) -> None:
    for size in (100, 300_000):
        block = arena.alloc(size)
        memoryview(block)[:] = b"x" * size
        arena.seal(how)
        block.wipe()
        assert arena.sealed == how
        with arena.unsealed():
            assert bytes(block) == bytes(size)
        arena.unseal()
    memoryview(block)[:] = b"x" * size
    arena.close()
    block.wipe()
    assert bytes(block) == bytes(size)


def test_unsealed_nests_and_survives_exceptions(arena: fa.Arena) -> None:
    array = arena.zeros(1000)
    arena.seal()
    with arena.unsealed() as same, arena.unsealed():
        assert same is arena
        array[0] = 1
    again = arena.unsealed()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), again, again:
            array[1] = 1 / 0
        assert arena.protection.sealed >= 8000
    with arena.unsealed():
        with arena.unsealed():
            arena.seal("read")  # holds from the last end on
        array[2] = 3
    assert arena.sealed == "read"
    assert array[2] == 3
    with arena.unsealed():
        arena.unseal()
    array[3] = 4
    with arena.unsealed():
        arena.close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="a platform without timers")
def test_a_signal_leaves_nothing_unsealed() -> None:
    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopError

    arena = fa.Witness("8MiB", guard="block")  # opening takes long
    blocks = [arena.alloc(10) for _ in range(200)]
    arena.seal()
    before = signal.signal(signal.SIGALRM, stop)
    try:
        for number in range(60):
            with contextlib.suppress(StopError):
                signal.setitimer(signal.ITIMER_REAL, 0.00002 + number % 20 * 0.00002)
                for _ in range(10):
                    with arena.unsealed():
                        pass
            with contextlib.suppress(StopError):
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert arena.protection.sealed > 0
    finally:
        signal.signal(signal.SIGALRM, before)
    arena.unseal()
    assert not any(any(bytes(block)) for block in blocks)


def test_unsealed_by_many_threads(arena: fa.Arena) -> None:
    array = arena.zeros(100, np.int64)
    arena.seal()
    lock = threading.Lock()

    def work() -> None:
        for _ in range(200):
            with arena.unsealed(), lock:
                array[:] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert arena.protection.sealed > 0
    with arena.unsealed():
        assert (array == 800).all()


def test_a_sealed_arena_does_not_retire(arena: fa.Arena) -> None:
    array = arena.full(10, 7.0)
    arena.seal()
    with pytest.raises(fa.SealedError, match="unseal"):
        arena.reset(retire=True)
    arena.unseal()
    arena.reset(retire=True)
    assert array.sum() == 70


# ---- secret memory ---------------------------------------------------------------------------------------------------


def secret_arena(capacity: str = "1MiB") -> fa.Witness:
    try:
        return fa.Witness(capacity, secret_memory=True)
    except fa.UnsupportedError as error:
        pytest.skip(f"memfd_secret: {error}")


def test_secret_memory() -> None:
    arena = secret_arena()
    array = arena.full(1000, 7.0)
    protection = arena.protection
    assert protection.secret >= 8000
    assert protection.locked >= protection.secret == protection.no_fork
    with Path("/proc/self/mem").open("rb", buffering=0) as memory, pytest.raises(OSError, match="Input/output error"):
        memory.seek(array.ctypes.data)
        memory.read(8)
    assert array.sum() == 7000


def test_secret_memory_in_a_forked_child() -> None:
    out = run("""
        try:
            arena = fa.Witness("1MiB", secret_memory=True)
        except fa.UnsupportedError:
            sys.exit(print("none"))
        array = arena.full(1000, 7.0)
        if os.fork() == 0:
            fresh = fa.Witness("1MiB", secret_memory=True)
            ok = not array.any() and not arena.zeros(100).any() and fresh.full(10, 3.0).sum() == 30
            del array
            os._exit(0 if ok and arena.live == 0 else 1)
        print(os.wait()[1], array.sum())
    """)
    if out == "none\n":
        pytest.skip("no memfd_secret")
    assert out == "0 7000.0\n"


# ---- locks -----------------------------------------------------------------------------------------------------------

AS_NOBODY = """
import resource
resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.skipif(SANITIZED, reason="the sanitizer replaces mlock")
def test_a_lock_beyond_the_limit() -> None:
    out = run(
        AS_NOBODY
        + textwrap.dedent("""
        arena = fa.Witness("1MiB", lock="try", name="tried")
        block, stats = arena.alloc(500_000), arena.stats()
        assert stats.lock_limit == 65536 and stats.locked < 500_000 <= stats.lock_wanted, stats
        assert arena.protection.lock_wanted == stats.lock_wanted and arena.protection.locked == stats.locked
        arena.close()
        arena = fa.Witness("1MiB", lock="require", name="keys")
        small = arena.zeros(1000)
        for allocate in (arena.alloc, lambda size: arena.zeros(size, np.uint8)):
            try:
                allocate(500_000)
            except fa.LockError as error:
                assert isinstance(error, OSError)
                assert error.limit == 65536 and error.locked == 65536 and error.wanted >= 500_000, vars(error)
                assert all(f"{n}" in str(error) for n in (error.limit, error.locked, error.wanted)), str(error)
                assert "RLIMIT_MEMLOCK" in str(error) and "keys" in str(error), str(error)
            else:
                raise AssertionError(allocate)
        assert arena.live == 1 and arena.zeros(100).sum() == 0
        arena.close()
        del block, small  # or the closed arenas' memory stays, locked
        guarded = fa.Witness("1MiB", lock="require", guard="block")
        made = []
        try:
            for _ in range(100):
                made.append(guarded.alloc(32))
        except fa.LockError as error:
            print(len(made), error.limit, error.wanted - error.locked)
    """)
    )
    assert out == f"{65536 // PAGE} 65536 {PAGE}\n"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.skipif(SANITIZED, reason="the sanitizer replaces mlock")
def test_secret_memory_beyond_the_limit() -> None:
    out = run(
        AS_NOBODY
        + textwrap.dedent("""
        try:
            arena = fa.Witness("1MiB", secret_memory=True)
        except fa.UnsupportedError:
            sys.exit(print("none"))
        small = arena.zeros(1000)
        try:
            arena.zeros(100_000)
        except fa.LockError as error:
            print(error.limit, error.wanted > 800_000, small.sum())
        arena.close()
        del small
        tried = fa.Witness("1MiB", secret_memory="try")
        print(tried.zeros(100_000).sum(), tried.protection.secret, tried.protection.lock_wanted > 800_000)
        tried.close()
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        try:
            fa.Witness("1MiB", secret_memory=True)
        except fa.LockError as error:
            print(error.limit, error.wanted)
    """)
    )
    if out == "none\n":
        pytest.skip("no memfd_secret")
    assert out == f"65536 True 0.0\n0.0 65536 True\n0 {PAGE}\n"


def test_many_small_secrets_lock_little_more_than_their_bytes() -> None:
    with fa.Witness("16MiB") as arena:
        blocks = [arena.alloc(64) for _ in range(10_000)]
        assert arena.protection.lock_wanted <= 2 * 64 * 10_000
        del blocks
    with fa.Witness("16MiB", alignment=16) as arena:
        blocks = [arena.alloc(32) for _ in range(10_000)]
        assert arena.protection.lock_wanted <= 2 * 32 * len(blocks)
        del blocks


# ---- the life of a secret --------------------------------------------------------------------------------------------

# Prints what is left of the secret when everything else has ended; what is left is read behind Python's back.
WATCHED = """
import atexit, signal, time
arena = fa.Witness("1MiB"{options})
secret = arena.empty(32, np.uint8)
secret[:] = np.arange(32) + 100
address = secret.ctypes.data
def left():
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(32)
assert left() == bytes(range(100, 132))
# Registered before all else would be too late: fastalloc's own hook has been, so this one runs after it.
import fastalloc._binding as binding
atexit.unregister(binding._at_exit)
atexit.register(lambda: print("clean" if left() == bytes(32) else "residue", flush=True))
atexit.register(binding._at_exit)
"""


@pytest.mark.skipif(not LINUX, reason="/proc/self/mem")
@pytest.mark.parametrize("options", ["", ", guard='block'"])
@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", 0),
        ("arena.seal()", 0),
        ("sys.exit(3)", 3),
        ("1 / 0", 1),
        ("signal.signal(15, lambda *_: sys.exit(4)); os.kill(os.getpid(), 15); time.sleep(9)", 4),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -signal.SIGINT),
        ("secret = None; arena = None; gc.collect()", 0),
    ],
)
def test_the_end_of_a_process_wipes(options: str, end: str, status: int) -> None:
    if "arena = None" in end and options:
        pytest.skip("its pages are gone by then")
    program = WATCHED.format(options=options) + end
    if "arena = None" in end:  # the memory goes with the arena; a view of it must not be what keeps it
        program = program.replace("arena = None", "del secret")
    preamble = "import gc, os, sys\nimport numpy as np\nimport fastalloc as fa\n"
    done = subprocess.run(
        [sys.executable, "-c", preamble + program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "clean\n", (done.stdout, done.stderr)
    assert done.returncode == status, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("options", [{}, {"guard": "block"}, {"secret_memory": "try"}])
def test_a_forked_child_sees_zeros_and_goes_on(options: dict[str, str]) -> None:
    arena = fa.Witness("1MiB", **options)  # type: ignore[arg-type]
    protection = arena.protection
    if protection.wipe_on_fork + protection.no_fork == 0:
        pytest.skip("the kernel does not wipe on fork")
    array, block = arena.full(1000, 7.0), arena.alloc(100)
    memoryview(block)[:] = b"x" * 100
    child = os.fork()
    if child == 0:
        try:
            ok = not array.any() and bytes(block) == bytes(100)
            array[:] = 3
            block.free()
            ok = ok and arena.full(100, 2.0).sum() == 200 and array.sum() == 3000
            fresh = fa.Witness("1MiB", **options)  # type: ignore[arg-type]
            ok = ok and fresh.full(100, 2.0).sum() == 200
            fresh.close()
            del array
            arena.reset()
            arena.close()
            os._exit(0 if ok else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert array.sum() == 7000
    assert bytes(block) == b"x" * 100


@pytest.mark.skipif(SANITIZED, reason="it looks at freed memory")
def test_an_array_that_moves_is_wiped_where_it_was() -> None:
    arena = fa.Witness("1MiB")
    array, above = arena.full(64, 7, np.uint8), arena.zeros(64, np.uint8)
    place = array.ctypes.data
    array.resize(4096, refcheck=False)
    assert array.ctypes.data != place
    assert array[:64].sum() == 7 * 64
    assert not array[64:].any()
    assert ctypes.string_at(place, 64) == bytes(64)
    assert not above.any()


def test_nothing_of_a_secret_is_told() -> None:
    arena = fa.Witness("1MiB", guard="block")
    block = arena.alloc(16)
    memoryview(block)[:] = b"deadbeefcafebabe"
    assert "dead" not in repr(block) + str(block) + repr(arena) + str(arena.stats()) + str(arena.protection)
    with pytest.raises(TypeError):
        pickle.dumps(block)
    with pytest.raises(TypeError):
        copy.copy(block)
    del block
    gc.collect()
