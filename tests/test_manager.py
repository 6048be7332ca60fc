"""The manager from Python."""

import functools
import signal
import threading
import weakref

import numpy as np
import pytest
from conftest import is_valid, run_python
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import fastalloc as fa
from fastalloc._binding import ArenaBase, ManagerBase


def test_defaults() -> None:
    manager = fa.Manager()
    stats = manager.stats()
    assert stats.pool_blocks == 8192
    assert (manager.used, manager.live, manager.limit, manager.name, manager.closed) == (0, 0, None, None, False)
    block = manager.malloc(100)
    assert manager.used == 128
    assert repr(manager) == "<fastalloc.Manager: 128 B used, 1 live, 0 B cached>"
    assert manager.owns(block)
    manager.free(block)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"pool_blocks": -1}, fa.ArgumentError),
        ({"pool_blocks": 2**63}, fa.ArgumentError),
        ({"pool_blocks": 1.5}, fa.ArgumentTypeError),
        ({"block_size": 0}, fa.ArgumentError),
        ({"block_size": 24}, fa.ArgumentError),
        ({"block_size": "128KiB"}, fa.ArgumentError),
        ({"block_size": 8 * 1024 + 16}, fa.ArgumentError),
        ({"large_size": 8 * 1024}, fa.ArgumentError),
        ({"large_size": 2**30 + 1}, fa.ArgumentError),
        ({"block_size": "12XB"}, fa.ArgumentError),
        ({"large_size": 0}, fa.ArgumentError),
        ({"cache": -1}, fa.ArgumentError),
        ({"cache": "lots"}, fa.ArgumentError),
        ({"cache_age": -1.0}, fa.ArgumentError),
        ({"cache_age": 0}, fa.ArgumentError),
        ({"cache_age": float("nan")}, fa.ArgumentError),
        ({"cache_age": float("inf")}, fa.ArgumentError),
        ({"cache_age": 1e9}, fa.ArgumentError),
        ({"cache_age": 10**5000}, fa.ArgumentError),
        ({"cache_age": "10s"}, fa.ArgumentTypeError),
        ({"cache_age": True}, fa.ArgumentTypeError),
        ({"limit": 0}, fa.ArgumentError),
        ({"limit": -5}, fa.ArgumentError),
        ({"name": ""}, fa.ArgumentError),
        ({"colour": "red"}, TypeError),
        ({"pool_blocks": 2**40, "block_size": "8KiB"}, (fa.OutOfMemoryError, fa.ArgumentError)),
    ],
)
def test_bad_options(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        fa.Manager(**options)  # type: ignore[arg-type]


def test_without_a_pool() -> None:
    manager = fa.Manager(0)
    block = manager.malloc(16)
    assert manager.stats().pool_blocks == manager.stats().pool_live == 0
    block.free()


def test_calloc_is_zero() -> None:
    manager = fa.Manager(4)
    for count, size in ((1, 16), (3, 100), (1000, 1000), (0, 8), (8, 0)):
        dirty = manager.malloc(count * size)
        memoryview(dirty)[:] = b"\xff" * (count * size)
        dirty.free()
        assert bytes(manager.calloc(count, size)) == bytes(count * size)


@pytest.mark.parametrize(("count", "size"), [(2**32, 2**32), (2**62, 2), (2**63 - 1, 2), (-1, 8), (8, -1), (2**64, 1)])
def test_calloc_that_wraps(count: int, size: int) -> None:
    manager = fa.Manager()
    with pytest.raises(fa.ArgumentError, match=r"^(count|size): "):
        manager.calloc(count, size)
    assert manager.stats().live == manager.stats().allocated == 0


@pytest.mark.parametrize("alignment", [16, 64, 4096, "2MiB"])
def test_aligned_alloc(alignment: int) -> None:
    manager = fa.Manager()
    block = manager.aligned_alloc(alignment, 100)
    assert block.address % fa.parse_size(alignment) == 0
    memoryview(block)[:] = b"x" * 100
    manager.realloc(block, 5000)
    assert block.address % fa.parse_size(alignment) == 0
    assert bytes(block)[:100] == b"x" * 100


@pytest.mark.parametrize("alignment", [0, 3, -1, "4MiB", 2**63, None])
def test_bad_aligned_alloc(alignment: int) -> None:
    manager = fa.Manager()
    if alignment is None:
        manager.aligned_alloc(None, 8)
        return
    with pytest.raises(fa.ArgumentError, match=r"^alignment: "):
        manager.aligned_alloc(alignment, 8)


MIB = 1 << 20
POOL_TO_POOL, POOL_TO_LARGE, LARGE_TO_LARGE = (16, 100), (100, MIB), (MIB, 3 * MIB)
MALLOC_TO_MALLOC, POOL_TO_MALLOC, MALLOC_TO_LARGE = (5000, 9000), (100, 5000), (5000, MIB)
TRANSITIONS = [POOL_TO_POOL, POOL_TO_LARGE, LARGE_TO_LARGE, MALLOC_TO_MALLOC, POOL_TO_MALLOC, MALLOC_TO_LARGE, (0, 100)]


@pytest.mark.parametrize("sizes", TRANSITIONS + [(to, start) for start, to in TRANSITIONS])
def test_realloc_keeps_the_contents(sizes: tuple[int, int]) -> None:
    manager = fa.Manager(4)
    block = manager.malloc(sizes[0])
    content = np.random.default_rng(1).bytes(sizes[0])
    memoryview(block)[:] = content
    assert manager.realloc(block, sizes[1]) is block
    assert len(block) == sizes[1]
    shared = min(sizes)
    assert bytes(block)[:shared] == content[:shared]
    memoryview(block)[:] = b"z" * sizes[1]
    assert manager.live == 1
    assert is_valid(manager)


def test_realloc_refuses() -> None:
    manager = fa.Manager(limit="1MiB", name="m")
    block = manager.malloc(64)
    memoryview(block)[:] = b"x" * 64
    view = memoryview(block)
    with pytest.raises(fa.InUseError, match="cannot resize a block of 64 bytes: 1 buffer"):
        manager.realloc(block, 128)
    view.release()
    with pytest.raises(
        fa.OutOfMemoryError, match="'m': no memory for 2097152 bytes: 64 bytes are live in it, and its limit is 1048576"
    ):
        manager.realloc(block, "2MiB")
    with pytest.raises(fa.ArgumentError, match=r"^size: "):
        manager.realloc(block, -1)
    with pytest.raises(fa.ArgumentTypeError, match=r"expected a fastalloc.Block"):
        manager.realloc(bytearray(8), 8)  # type: ignore[arg-type]
    assert bytes(block) == b"x" * 64
    block.free()
    with pytest.raises(fa.FreedBlockError):
        manager.realloc(block, 8)
    assert manager.live == 0


def test_methods_of_the_other_kind() -> None:
    """An arena is not taken for a manager, nor the other way round, whatever class brings the method."""

    class ArenaToo(fa.Arena, ManagerBase):
        pass

    class ManagerToo(fa.Manager, ArenaBase):
        pass

    class Plain(fa.Manager):
        pass

    both = ArenaToo("scratch", "1MiB")
    block = both.malloc(10)
    memoryview(block)[:] = b"0123456789"
    assert both.realloc(block, 20) is block
    assert bytes(block)[:10] == b"0123456789"
    both.free(block)
    assert (both.live, is_valid(both)) == (0, True)

    with pytest.raises(TypeError, match="is not for"):
        ManagerToo()
    changed = Plain()
    changed.__class__ = ManagerToo
    with pytest.raises(TypeError, match="manager has no scopes"), changed.scope():  # type: ignore[attr-defined]
        pass

    arena, manager = fa.Arena("scratch", "1MiB"), fa.Manager()
    arrays = arena.zeros(100), manager.zeros(100)
    calls = [
        *(functools.partial(getattr(fa.Arena, name), manager) for name in ("mark", "reset", "wipe", "trim", "seal")),
        *(functools.partial(fa.Arena.__dict__[name].fget, manager) for name in ("used", "live", "peak", "protection")),
        lambda: fa.Arena.owns(manager, 5),  # type: ignore[arg-type]
        lambda: fa.Manager.owns(arena, 5),  # type: ignore[arg-type]
        lambda: fa.Manager.trim(arena),  # type: ignore[arg-type]
        lambda: fa.Manager.check(arena),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(fa.ArgumentTypeError, match=r"manager is no arena|scratch arena is no manager"):
            call()
    assert is_valid(arena)
    assert is_valid(manager)
    assert not any(array.any() for array in arrays)


def test_a_manager_that_was_never_made() -> None:
    manager = fa.Manager.__new__(fa.Manager)
    assert (manager.closed, manager.hardened, manager.limit, manager.name) == (True, False, None, None)
    manager.close()
    for use in (lambda: manager.malloc(1), manager.stats, manager.trim, lambda: manager.zeros(1), manager.check):
        with pytest.raises(fa.ClosedError, match="never opened"):
            use()
    with pytest.raises(fa.ClosedError, match="never opened"), manager.track():
        pass


def test_foreign_blocks() -> None:
    one, other, arena = fa.Manager(name="one"), fa.Manager(name="other"), fa.Scratch("1MiB")
    for block in (other.malloc(64), arena.alloc(64)):
        memoryview(block)[:] = b"x" * 64
        with pytest.raises(fa.ForeignBlockError, match=r"belongs to .*, not to manager 'one'"):
            one.free(block)
        with pytest.raises(fa.ForeignBlockError, match=r"belongs to .*, not to manager 'one'"):
            one.realloc(block, 128)
        assert bytes(block) == b"x" * 64
        block.free()
    assert one.stats().allocated == one.stats().freed == 0


def test_double_free() -> None:
    manager = fa.Manager()
    block, other = manager.malloc(64), manager.malloc(64)
    memoryview(other)[:] = b"x" * 64
    manager.free(block)
    for again in (lambda: manager.free(block), block.free):
        with pytest.raises(fa.FreedBlockError):
            again()
    assert bytes(other) == b"x" * 64
    assert manager.stats().freed == 1


@pytest.mark.parametrize("thing", [None, 0, 12345, b"x", "block", bytearray(8)])
def test_only_blocks_are_freed(thing: object) -> None:
    with pytest.raises(fa.ArgumentTypeError, match=r"^block: "):
        fa.Manager().free(thing)  # type: ignore[arg-type]


def test_an_interior_pointer_is_not_a_block() -> None:
    manager = fa.Manager()
    block = manager.malloc(64)
    inside = memoryview(block)[16:]
    with pytest.raises(fa.ArgumentTypeError, match="not <class 'memoryview'>"):
        manager.free(inside)  # type: ignore[arg-type]
    assert not manager.owns(inside)
    assert manager.owns(block)


def test_the_limit_is_exact() -> None:
    manager = fa.Manager(limit=1000)
    first = manager.malloc(600)
    with pytest.raises(fa.OutOfMemoryError):
        manager.malloc(401)
    second = manager.malloc(400)
    first.free()
    manager.malloc(600)
    second.free()


def test_freed_blocks_are_zeroed() -> None:
    manager = fa.Manager()
    block = manager.malloc(64)
    memoryview(block)[:] = b"x" * 64
    address = block.address
    block.free()
    again = manager.malloc(64)
    assert again.address == address
    assert bytes(again) == bytes(64)


def test_the_cache_and_trim() -> None:
    manager = fa.Manager(cache="8MiB", cache_age=None)
    manager.malloc("1MiB").free()
    assert manager.stats().cached >= 1 << 20
    manager.malloc("1MiB").free()
    assert manager.stats().cache_hits == 1
    manager.trim()
    assert manager.stats().cached == 0
    with pytest.raises(fa.ArgumentError, match=r"^keep: "):
        manager.trim("12XB")


def test_a_closed_manager() -> None:
    manager = fa.Manager(name="m")
    block, array = manager.malloc(64), manager.ones(100)
    memoryview(block)[:] = b"x" * 64
    heap = weakref.ref(manager._heap)
    manager.close()
    manager.close()
    for use in (
        lambda: manager.malloc(1),
        lambda: manager.calloc(1, 1),
        lambda: manager.aligned_alloc(16, 1),
        lambda: manager.realloc(block, 1),
        lambda: manager.free(block),
        lambda: manager.zeros(1),
        manager.trim,
        lambda: manager.owns(0),
        manager.__enter__,
        fa.using_allocator(manager).__enter__,
    ):
        with pytest.raises(fa.ClosedError, match="manager 'm' is closed"):
            use()  # type: ignore[operator]
    assert repr(manager) == "<fastalloc.Manager 'm', closed>"
    assert (manager.live, bytes(block)) == (2, b"x" * 64)
    assert (array == 1).all()
    block.free()
    del array
    assert heap() is None
    assert manager.live == 0


def test_threads_share_a_manager() -> None:
    manager = fa.Manager(pool_blocks=16)
    failures: list[int] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        held: list[fa.Block] = []
        for _ in range(500):
            held.append(manager.malloc(int(random.integers(0, 300))))
            held[-1].array()[:] = seed
            if len(held) > 12:
                block = held.pop(int(random.integers(len(held))))
                if not (block.array() == seed).all():
                    failures.append(seed)
                manager.free(block)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert manager.live == 0
    assert is_valid(manager)


def test_hardened() -> None:
    manager = fa.Manager(hardened=True)
    assert manager.hardened
    assert not fa.Manager().hardened
    block = manager.malloc(100)
    assert len(block) == 100
    assert manager.stats().pool_blocks == 0
    with fa.using_allocator(manager):
        numbers = np.arange(100_000)
        assert np.concatenate([numbers, numbers, np.zeros(0, int)]).sum() == 2 * numbers.sum()
    manager.check()
    empty = manager.malloc(0)
    assert bytes(empty) == b""
    del numbers, block, empty
    assert (manager.live, manager.stats().requested) == (0, 0)
    manager.check()
    assert is_valid(manager)
    manager.close()
    with pytest.raises(fa.ClosedError):
        manager.check()


def test_only_hardened_managers_are_checked() -> None:
    with pytest.raises(fa.UnsupportedError, match=r"^check: "):
        fa.Manager().check()
    with pytest.raises(fa.ArgumentTypeError, match=r"^hardened: expected a bool, not int$"):
        fa.Manager(hardened=1)  # type: ignore[arg-type]


OVERRUN = "which was overrun at its end, in manager"
MISUSES = {
    "ctypes.memset(address + 100, 0, 1); block.free()": ("free", OVERRUN),
    "ctypes.memset(address - 1, 0, 1); block.free()": ("free", "which was overrun before its beginning, in manager"),
    "ctypes.memset(address, 1, 1000); manager.check()": ("check", OVERRUN),
    "ctypes.memset(address + 100, 0, 1); manager.realloc(block, 5000)": ("realloc", OVERRUN),
    "block.free(); ctypes.memset(address + 50, 1, 1); manager.check()": (
        "check",
        "which was written to after it was freed, in manager",
    ),
    "ctypes.memset(address + 100, 0, 1); del block, manager": ("free", OVERRUN),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_of_a_hardened_manager_ends_the_process(misuse: str) -> None:
    done = run_python(
        "import ctypes, fastalloc as fa\n"
        "manager = fa.Manager(hardened=True)\n"
        "block = manager.malloc(100)\n"
        "address = block.address\n"
        "print(hex(address), flush=True)\n" + misuse
    )
    assert done.returncode == -signal.SIGABRT, done.stderr
    call, fault = MISUSES[misuse]
    assert done.stderr == f"fastalloc: {call} of {done.stdout.strip()}, {fault}\n"


class ManagerMachine(RuleBasedStateMachine):
    """Any sequence of calls: what is alive keeps its contents, and nothing overlaps."""

    hardened = False

    def __init__(self) -> None:
        super().__init__()
        self.manager = fa.Manager(pool_blocks=8, large_size="16KiB", cache="64KiB", hardened=self.hardened)
        self.alive: list[tuple[fa.Block, int]] = []
        self.number = 0

    def keep(self, block: fa.Block) -> None:
        self.number = (self.number + 1) % 251
        block.array()[:] = self.number
        self.alive.append((block, self.number))

    sizes = st.one_of(st.integers(0, 200), st.integers(0, 60_000))

    @rule(size=sizes)
    def malloc(self, size: int) -> None:
        self.keep(self.manager.malloc(size))

    @rule(count=st.integers(0, 20), size=sizes)
    def calloc(self, count: int, size: int) -> None:
        block = self.manager.calloc(count, size)
        assert not block.array().any()
        self.keep(block)

    @rule(size=sizes, alignment=st.sampled_from([16, 256, 8192]))
    def aligned(self, size: int, alignment: int) -> None:
        self.keep(self.manager.aligned_alloc(alignment, size))

    @rule(size=sizes)
    def array(self, size: int) -> None:
        assert self.manager.zeros(size, np.uint8).sum() == 0

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.alive.pop(data.draw(st.integers(0, len(self.alive) - 1)))[0].free()

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), size=sizes)
    def realloc(self, data: st.DataObject, size: int) -> None:
        block, number = self.alive.pop(data.draw(st.integers(0, len(self.alive) - 1)))
        shared = min(len(block), size)
        self.manager.realloc(block, size)
        assert (block.array()[:shared] == number).all()
        self.keep(block)

    @rule()
    def trim(self) -> None:
        self.manager.trim()

    @invariant()
    def contents_stay(self) -> None:
        for block, number in self.alive:
            assert (block.array() == number).all()
        assert self.manager.live == len(self.alive)
        assert is_valid(self.manager)
        if self.hardened:
            self.manager.check()


class HardenedMachine(ManagerMachine):
    hardened = True


TestManagerMachine = ManagerMachine.TestCase
TestHardenedMachine = HardenedMachine.TestCase
TestManagerMachine.settings = TestHardenedMachine.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None
)
