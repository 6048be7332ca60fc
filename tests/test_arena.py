"""Arenas: creation, reset, rewind, scopes, wiping, closing; what is refused and what is left then."""

import contextlib
import gc
import threading
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
from conftest import is_valid
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import fastalloc as fa
from fastalloc import _binding
from fastalloc.arena import Mark

# ---- creation --------------------------------------------------------------------------------------------------------


def test_kinds() -> None:
    for kind, made in (("witness", fa.Witness), ("polynomial", fa.Polynomial), ("scratch", fa.Scratch)):
        for arena in (made("1MiB"), fa.Arena(kind, "1MiB"), fa.Arena(fa.Kind(kind), 1 << 20)):
            assert arena.kind == kind
            assert (arena.capacity, arena.used, arena.peak, arena.live) == (1 << 20, 0, 0, 0)
            assert (arena.alignment, arena.name, arena.closed) == (64, None, False)


def test_defaults_of_the_kinds() -> None:
    witness, polynomial, scratch = fa.Witness("1MiB"), fa.Polynomial("4MiB"), fa.Scratch("1MiB")
    assert witness.protection.guarded > 0
    assert witness.protection.no_dump >= 1 << 20
    assert witness.protection.wipe_on_fork >= 1 << 20
    assert witness.protection.lock_limit > 0
    assert scratch.protection.locked == scratch.protection.no_dump == 0
    assert polynomial.protection.transparent_huge in {0, polynomial.capacity}


def test_repr() -> None:
    arena = fa.Arena("polynomial", "16MiB", name="quotients")
    block = arena.alloc("64KiB")
    assert repr(arena) == "<fastalloc.Arena polynomial 'quotients': 64 KiB of 16 MiB used, 1 live>"
    assert repr(fa.Witness("1MiB")) == "<fastalloc.Witness: 0 B of 1 MiB used, 0 live>"
    arena.close()
    assert repr(arena) == "<fastalloc.Arena polynomial 'quotients', closed>"
    assert repr(block) == "<fastalloc.Block 65536 bytes in polynomial arena 'quotients', 0 exports>"


@pytest.mark.parametrize("capacity", [0, -1, 2**63, 2**100, "12XB", "", "-1", "0", "1.5", "nan"])
def test_bad_capacity(capacity: int) -> None:
    with pytest.raises(fa.ArgumentError, match=r"^capacity: "):
        fa.Arena("scratch", capacity)


@pytest.mark.parametrize("capacity", [None, 1.5, True, b"1MiB", [1]])
def test_capacity_of_a_wrong_type(capacity: int) -> None:
    with pytest.raises(fa.ArgumentTypeError, match=r"^capacity: "):
        fa.Arena("scratch", capacity)


@pytest.mark.parametrize("capacity", [2**63 - 1, "7EiB", 2**62, 2**50])
def test_capacity_above_the_address_space(capacity: int) -> None:
    with pytest.raises(fa.OutOfMemoryError, match="address space"):
        fa.Arena("polynomial", capacity)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"kind": "secret"}, fa.ArgumentError),
        ({"kind": None}, fa.ArgumentTypeError),
        ({"kind": 0}, fa.ArgumentTypeError),
        ({"alignment": 0}, fa.ArgumentError),
        ({"alignment": 24}, fa.ArgumentError),
        ({"alignment": 8}, fa.ArgumentError),
        ({"alignment": "4MiB"}, fa.ArgumentError),
        ({"alignment": None}, fa.ArgumentTypeError),
        ({"huge_pages": "yes"}, fa.ArgumentError),
        ({"huge_pages": True}, fa.ArgumentTypeError),
        ({"lock": "maybe"}, fa.ArgumentError),
        ({"lock": 1}, fa.ArgumentTypeError),
        ({"guard_pages": "many"}, fa.ArgumentError),
        ({"on_full": "grow"}, fa.ArgumentError),
        ({"no_dump": ""}, fa.ArgumentError),
        ({"name": ""}, fa.ArgumentError),
        ({"name": "a\x00b"}, fa.ArgumentError),
        ({"name": "x" * 65}, fa.ArgumentError),
        ({"name": b"x"}, fa.ArgumentTypeError),
        ({"colour": "red"}, TypeError),
        ({"kind": "witness", "on_full": "fallback"}, fa.ArgumentError),
    ],
)
def test_bad_options(options: dict[str, object], error: type[Exception]) -> None:
    arguments: dict[str, object] = {"kind": "scratch", "capacity": "1MiB", **options}
    with pytest.raises(error):
        fa.Arena(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("huge_pages", ["off", "transparent", "hugetlb"])
@pytest.mark.parametrize("guard_pages", [True, False, "try"])
def test_options_are_taken(huge_pages: str, guard_pages: bool) -> None:
    arena = fa.Polynomial("4MiB", huge_pages=huge_pages, guard_pages=guard_pages, lock="off", on_full="fail")  # type: ignore[arg-type]
    protection = arena.protection
    # Where the kernel has reserved huge pages there is no room for guards that are only wanted.
    in_the_way = protection.reserved_huge > 0 and guard_pages == "try"
    assert (protection.guarded > 0) == (guard_pages is not False and not in_the_way)
    assert arena.zeros(100).sum() == 0


def test_an_arena_is_made_once() -> None:
    arena = fa.Scratch("1MiB")
    array = arena.zeros(10)
    with pytest.raises(fa.ArgumentError, match="made already"):
        arena.__init__("1MiB")  # type: ignore[misc]
    assert arena.owns(array)
    arena.close()
    with pytest.raises(fa.ArgumentError, match="made already"):
        arena.__init__("1MiB")  # type: ignore[misc]
    with fa.Arenas("64KiB", "64KiB", "64KiB") as arenas:
        with pytest.raises(fa.ArgumentError, match="made already"):
            arenas.__init__("64KiB", "64KiB", "64KiB")  # type: ignore[misc]
        assert not arenas.witness.closed


def test_an_arena_that_was_never_made() -> None:
    arena = fa.Arena.__new__(fa.Arena)
    assert arena.closed
    assert repr(arena) == "<fastalloc.Arena scratch, closed>"
    for use in (lambda: arena.alloc(1), arena.reset, arena.stats, lambda: arena.zeros(1), arena.scope, arena.mark):
        with pytest.raises(fa.ClosedError, match="never opened"):
            use()
    for scope in (fa.using_allocator(arena), arena.track(), arena.unsealed()):
        with pytest.raises(fa.ClosedError, match="never opened"), scope:
            pass
    assert arena.alignment == 0
    arena.close()


def test_alignment_of_the_arena() -> None:
    arena = fa.Polynomial("4MiB", alignment=4096)
    assert all(arena.alloc(1).address % 4096 == 0 for _ in range(4))
    assert all(arena.empty(3).ctypes.data % 4096 == 0 for _ in range(4))


# ---- full ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["witness", "polynomial", "scratch"])
def test_a_full_arena_that_fails(kind: str) -> None:
    arena = fa.Arena(kind, "64KiB", on_full="fail", name="small")  # type: ignore[arg-type]
    first = arena.alloc("60KiB")
    first.array()[:] = 5
    with pytest.raises(fa.OutOfMemoryError, match=f"{kind} arena 'small': no room for 32768 bytes: .* 65536 bytes"):
        arena.alloc("32KiB")
    with pytest.raises(
        fa.OutOfMemoryError,
        match=f"{kind} arena 'small': Unable to allocate 32.0 KiB .*: 61440 of its capacity of 65536 bytes are used",
    ):
        arena.empty(32 << 10, np.uint8)
    with pytest.raises(MemoryError), fa.using_allocator(arena):
        np.empty(32 << 10, np.uint8)
    assert (first.array() == 5).all()
    assert arena.live == 1
    assert arena.stats().failures == 3
    first.free()
    arena.alloc("32KiB")


@pytest.mark.parametrize("kind", ["polynomial", "scratch"])
def test_a_full_arena_that_falls_back(kind: str) -> None:
    arena = fa.Arena(kind, "64KiB")  # type: ignore[arg-type]
    blocks = [arena.zeros(32 << 10, np.uint8) for _ in range(8)]
    stats = arena.stats()
    assert stats.fallbacks >= 6
    assert stats.fallback_bytes >= 6 * (32 << 10)
    assert all(arena.owns(block) for block in blocks)
    for number, block in enumerate(blocks):
        block[:] = number
    assert [int(block[-1]) for block in blocks] == list(range(8))
    with pytest.raises(fa.InUseError):
        arena.reset()
    del blocks, block
    arena.reset()
    assert arena.stats().fallback_bytes == 0


# ---- reset, mark, rewind ---------------------------------------------------------------------------------------------


def test_reset(arena: fa.Arena) -> None:
    arena.alloc(1000).free()
    arena.reset()
    assert arena.used == 0
    first = arena.alloc(64).address
    arena.reset()
    assert arena.alloc(64).address == first


def test_reset_with_live_arrays_changes_nothing(arena: fa.Arena) -> None:
    array, block = arena.full(100, 7.0), arena.alloc(64)
    before = arena.stats()
    message = r"cannot reset .* arena '.': 2 arrays or blocks of 864 bytes are still alive"
    with pytest.raises(fa.InUseError, match=message):
        arena.reset()
    assert arena.stats() == before
    assert (array == 7.0).all()
    del block
    view = array[50:]
    del array
    with pytest.raises(fa.InUseError, match="1 array or block of 800 bytes is still alive"):
        arena.reset()
    del view
    arena.reset()


def test_rewind(arena: fa.Arena) -> None:
    keep = arena.full(100, 1.0)
    mark = arena.mark()
    used = arena.used
    inside = arena.full(100, 2.0)
    with pytest.raises(fa.InUseError, match="1 array or block of 800 bytes is made since the mark and still alive"):
        arena.rewind(mark)
    assert (inside == 2.0).all()
    del inside
    arena.rewind(mark)
    assert arena.used == used
    arena.rewind(mark)
    assert (keep == 1.0).all()
    assert repr(mark).startswith("<fastalloc.Mark at ")


def test_stale_marks(arena: fa.Arena) -> None:
    outer = arena.mark()
    between = arena.alloc(64)
    inner = arena.mark()
    between.free()
    arena.rewind(outer)
    with pytest.raises(fa.StaleMarkError, match=r"^mark: "):
        arena.rewind(inner)
    arena.rewind(outer)
    arena.reset()
    with pytest.raises(fa.StaleMarkError, match=r"^mark: "):
        arena.rewind(outer)
    assert arena.live == 0


def test_marks_of_others(arena: fa.Arena) -> None:
    other = fa.Scratch("1MiB", name="other")
    with pytest.raises(fa.StaleMarkError, match="it is of scratch arena 'other'"):
        arena.rewind(other.mark())
    with pytest.raises(fa.ArgumentTypeError, match=r"^mark: "):
        arena.rewind(0)  # type: ignore[arg-type]


def test_marks_that_were_made_up(arena: fa.Arena) -> None:
    array = arena.full(100, 7.0)
    real = arena.mark()
    for position, serial in ((0, 0), (1, real.serial), (2**63, 1), (2**64 - 1, 2**64 - 1)):
        with pytest.raises((fa.StaleMarkError, fa.InUseError)):
            arena.rewind(Mark(position, serial, real.memory, real.arena))
    assert (array == 7.0).all()
    assert is_valid(arena)


def test_retire(arena: fa.Arena) -> None:
    old = arena.full(1000, 7.0)
    mark = arena.mark()
    arena.reset(retire=True)
    assert not arena.owns(old)
    assert fa.handles(old)
    assert arena.live == 0
    new = arena.full(1000, 8.0)
    assert arena.owns(new)
    assert (old == 7.0).all()
    with pytest.raises(fa.StaleMarkError, match="has given up"):
        arena.rewind(mark)
    assert arena.peak >= 8000
    del old
    with pytest.raises(fa.InUseError):
        arena.reset()
    del new
    arena.reset(retire=True)


def test_retired_memory_goes_with_its_last_array(arena: fa.Arena) -> None:
    heap = weakref.ref(arena._heap)
    array = arena.zeros(10)
    view = array[2:]
    arena.reset(retire=True)
    del array
    assert heap() is not None
    del view
    assert heap() is None


def test_retire_does_not_open_what_another_thread_has_closed(arena: fa.Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    create = _binding.create_arena

    def create_slowly(*arguments: Any) -> _binding.Heap:
        heap = create(*arguments)
        closing = threading.Thread(target=arena.close)
        closing.start()
        closing.join()
        return heap

    array = arena.full(10, 7.0)
    monkeypatch.setattr(_binding, "create_arena", create_slowly)
    with pytest.raises(fa.ClosedError):
        arena.reset(retire=True)
    assert arena.closed
    assert array.sum() == (0 if arena.kind == "witness" else 70)


def test_retire_that_fails_changes_nothing() -> None:
    arena = fa.Polynomial("1MiB")
    array = arena.ones(10)
    arena._options["capacity"] = 2**62
    with pytest.raises(fa.OutOfMemoryError):
        arena.reset(retire=True)
    assert arena.owns(array)
    assert arena.live == 1


# ---- scopes ----------------------------------------------------------------------------------------------------------


def test_scope(arena: fa.Arena) -> None:
    used = arena.used
    with arena.scope() as inside:
        assert inside is arena
        for _ in range(10):
            array = inside.zeros(100)
        del array
    assert arena.used == used
    assert arena.stats().rewinds == 1


def test_scope_with_survivors_warns_and_rewinds_later(arena: fa.Arena) -> None:
    message = "1 array or block of 800 bytes made inside it are still alive"
    with pytest.warns(ResourceWarning, match=message), arena.scope():
        arena.zeros(100)
        kept = arena.full(100, 3.0)
    others = [arena.full(100, 9.0) for _ in range(4)]
    assert (kept == 3.0).all()
    del others, kept
    assert arena.used == 0


def test_strict_scope(arena: fa.Arena) -> None:
    with pytest.raises(fa.InUseError, match="1 array or block of 800 bytes made inside"), arena.scope(strict=True):
        kept = arena.full(100, 3.0)
    assert (kept == 3.0).all()
    del kept
    assert arena.used == 0
    with arena.scope(strict=True):
        arena.zeros(100)


@pytest.mark.parametrize("strict", [True, False])
def test_a_scope_does_not_mask_an_exception(arena: fa.Arena, strict: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError, match="mine"), arena.scope(strict):
            kept = arena.zeros(100)
            raise KeyError("mine")
    del kept
    gc.collect()
    assert arena.used == 0


def test_scopes_nest_and_end_in_any_order(arena: fa.Arena) -> None:
    outer, inner = arena.scope(), arena.scope()
    outer.__enter__()
    first = arena.full(100, 1.0)
    inner.__enter__()
    second = arena.full(100, 2.0)
    with pytest.warns(ResourceWarning):
        outer.__exit__(None, None, None)
    assert (first == 1.0).all()
    del first
    assert (second == 2.0).all()
    with pytest.warns(ResourceWarning):
        inner.__exit__(None, None, None)
    assert (second == 2.0).all()
    del second
    assert arena.used == 0


def test_a_scope_is_entered_once_and_left_once(arena: fa.Arena) -> None:
    scope = arena.scope()
    with pytest.raises(fa.ScopeError, match="is not open"):
        scope.__exit__(None, None, None)
    with scope:
        assert repr(scope).endswith(", open>")
        with pytest.raises(fa.ScopeError, match="open already"):
            scope.__enter__()
    with scope:
        pass


def test_a_scope_that_a_reset_ended(arena: fa.Arena) -> None:
    with arena.scope():
        arena.zeros(10)
        arena.reset()
        arena.zeros(10)
    with arena.scope():
        kept = arena.zeros(10)
        arena.reset(retire=True)
        fresh = arena.ones(10)
        del kept
    assert (fresh == 1).all()


def test_an_abandoned_scope_is_left(arena: fa.Arena) -> None:
    def generator() -> object:
        with arena.scope():
            arena.alloc(64)
            yield

    running = generator()
    next(running)  # type: ignore[call-overload]
    del running
    gc.collect()
    arena.scope().__enter__()
    assert arena.used == 0


def test_many_scopes(arena: fa.Arena) -> None:
    for _ in range(1000):
        with arena.scope():
            arena.alloc(64)
    assert arena.stats().rewinds == 1000


# ---- wipe, trim, owns ------------------------------------------------------------------------------------------------


def test_wipe_zeroes_what_is_alive(arena: fa.Arena) -> None:
    array, block = arena.full(1000, 7.0), arena.alloc(64)
    memoryview(block)[:] = b"x" * 64
    arena.wipe()
    assert not array.any()
    assert bytes(block) == bytes(64)
    assert arena.live == 2
    assert arena.stats().wipes == 1
    array[:] = 1


def test_trim(arena: fa.Arena) -> None:
    arena.full(50_000, 1.0)
    kept = arena.full(100, 2.0)
    arena.trim("16KiB")
    arena.trim()
    assert (kept == 2.0).all()
    assert (arena.full(50_000, 3.0) == 3.0).all()
    with pytest.raises(fa.ArgumentError, match=r"^keep: "):
        arena.trim(-1)


def test_owns(arena: fa.Arena) -> None:
    array, block = arena.zeros((10, 10)), arena.alloc(64)
    inside = [array, array[5:, ::-2], block, memoryview(block)[8:], array.ctypes.data, block.address, array.T]
    inside.append(np.uint64(block.address))
    assert all(arena.owns(thing) for thing in inside)
    outside = [np.zeros(10), b"bytes", bytearray(8), 0, 1, 2**64 - 1, fa.Scratch("1MiB").alloc(8)]
    assert not any(arena.owns(thing) for thing in outside)
    for wrong in (None, "text", 1.5, object(), True):
        with pytest.raises(fa.ArgumentTypeError, match="expected an array, a Block, a buffer or an address"):
            arena.owns(wrong)
    for wrong in (-1, 2**64):
        with pytest.raises(fa.ArgumentError, match=r"^address: "):
            arena.owns(wrong)
    del inside
    block.free()
    with pytest.raises(fa.FreedBlockError):
        arena.owns(block)


# ---- close -----------------------------------------------------------------------------------------------------------


def test_a_closed_arena(arena: fa.Arena) -> None:
    mark, scope = arena.mark(), arena.scope()
    routed = arena.zeros
    arena.close()
    arena.close()
    assert arena.closed
    for use in (
        lambda: arena.alloc(8),
        lambda: arena.zeros(8),
        lambda: routed(8),
        arena.reset,
        lambda: arena.reset(retire=True),
        arena.mark,
        lambda: arena.rewind(mark),
        arena.scope,
        scope.__enter__,
        arena.wipe,
        arena.trim,
        lambda: arena.owns(0),
        lambda: arena.protection,
        arena.__enter__,
        fa.using_allocator(arena).__enter__,
        lambda: fa.set_allocator(arena),
    ):
        with pytest.raises(fa.ClosedError, match=f"{arena.kind} arena '{arena.name}' is closed"):
            use()  # type: ignore[operator]
    assert arena.stats().live == 0
    assert arena.capacity > 0


def test_arrays_outlive_close(arena: fa.Arena) -> None:
    array, block = arena.full(100, 7.0), arena.alloc(64)
    view = array[50:]
    heap = weakref.ref(arena._heap)
    arena.close()
    expected = 0.0 if arena.kind == "witness" else 7.0
    assert (array == expected).all()
    assert arena.live == 2
    array[:] = 1
    del array, block
    assert (view == 1).all()
    assert heap() is not None
    del view
    assert heap() is None
    assert arena.live == 0
    assert arena.stats().used == 0


def test_close_inside_a_scope(arena: fa.Arena) -> None:
    with arena.scope():
        kept = arena.zeros(10)
        arena.close()
        del kept


def test_with_closes() -> None:
    with fa.Scratch("1MiB") as arena:
        assert not arena.closed
    assert arena.closed


def test_a_cycle_is_collected_and_its_memory_freed(arena: fa.Arena) -> None:
    class Mine(fa.Scratch):
        pass

    made = Mine("1MiB")
    made.self = made  # type: ignore[attr-defined]
    made.array = made.zeros(10)  # type: ignore[attr-defined]
    made.using = fa.using_allocator(made)  # type: ignore[attr-defined]
    made.inside = made.scope()  # type: ignore[attr-defined]
    made.routed = made.empty  # type: ignore[attr-defined]
    made.block = made.alloc(10)  # type: ignore[attr-defined]
    heap = weakref.ref(made._heap)
    del made
    assert heap() is not None
    gc.collect()
    assert heap() is None


def test_without_a_cycle_no_collection_is_needed(arena: fa.Arena) -> None:
    gc.disable()
    try:
        made = fa.Polynomial("1MiB")
        with made.track(), made.scope(), fa.using_allocator(made):
            array = made.zeros(10) + 1
            del array
        heap = weakref.ref(made._heap)
        del made
        assert heap() is None
    finally:
        gc.enable()


# ---- Arenas ----------------------------------------------------------------------------------------------------------


def test_arenas() -> None:
    with fa.Arenas(witness="1MiB", polynomial="16MiB", scratch=1 << 20) as memory:
        assert [arena.kind for arena in memory] == ["witness", "polynomial", "scratch"]
        kept = memory.witness.ones(10)
        stats = memory.stats()
        assert stats.witness.live == 1
        assert stats.as_dict()["witness"]["live"] == 1
        assert not memory.closed
        assert "witness 80 B of 1 MiB" in repr(memory) or "witness 128 B of 1 MiB" in repr(memory)
    assert memory.closed
    assert not kept.any()
    assert repr(memory) == "<fastalloc.Arenas: witness closed, polynomial closed, scratch closed>"
    with pytest.raises(fa.ClosedError), memory:
        pass


def test_arenas_all_or_none() -> None:
    with pytest.raises(fa.ArgumentError, match=r"^polynomial: '12XB'"):
        fa.Arenas(polynomial="12XB")
    with pytest.raises(fa.OutOfMemoryError):
        fa.Arenas(witness="1MiB", polynomial="1MiB", scratch=2**62)
    gc.collect()


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_threads_share_an_arena(arena: fa.Arena) -> None:
    """Allocate, write, check, free, while another thread tries to reset, wipe statistics, and close at the end."""
    stop = threading.Event()
    failures: list[str] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        held: list[np.ndarray] = []
        for _ in range(400):
            try:
                array = arena.full(int(random.integers(1, 600)), float(seed))
            except MemoryError:
                held.clear()
                continue
            held.append(array)
            if len(held) > 8:
                old = held.pop(int(random.integers(len(held))))
                if not (old == seed).all():
                    failures.append("another thread wrote into my array")

    def disturb() -> None:
        while not stop.is_set():
            with contextlib.suppress(fa.InUseError):
                arena.reset()
            arena.stats()
            arena.trim()

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 4)]
    disturber = threading.Thread(target=disturb)
    for thread in [*workers, disturber]:
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    disturber.join()
    assert not failures
    assert arena.live == 0


def test_close_while_others_allocate(arena: fa.Arena) -> None:
    ready = threading.Barrier(3)
    unexpected: list[BaseException] = []

    def work() -> None:
        ready.wait()
        try:
            for _ in range(10_000):
                arena.zeros(50)[:] = 1
        except (fa.ClosedError, MemoryError):
            pass
        except BaseException as error:  # noqa: BLE001
            unexpected.append(error)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    ready.wait()
    arena.close()
    for worker in workers:
        worker.join()
    assert not unexpected
    assert arena.live == 0


# ---- a model ---------------------------------------------------------------------------------------------------------


class ArenaMachine(RuleBasedStateMachine):
    """Any sequence of calls: what is alive keeps its contents, and nothing overlaps."""

    kind = "polynomial"

    def __init__(self) -> None:
        super().__init__()
        self.arena = fa.Arena(self.kind, "256KiB")  # type: ignore[arg-type]
        self.alive: list[tuple[np.ndarray, int]] = []
        self.marks: list[Mark] = []
        self.number = 0

    def keep(self, array: np.ndarray) -> None:
        self.number = (self.number + 1) % 251
        array[:] = self.number
        self.alive.append((array, self.number))

    @rule(size=st.integers(0, 20_000))
    def make_array(self, size: int) -> None:
        try:
            self.keep(self.arena.empty(size, np.uint8))
        except fa.OutOfMemoryError:
            assert self.kind == "witness"

    @rule(size=st.integers(0, 3000), alignment=st.sampled_from([16, 64, 4096]))
    def make_block(self, size: int, alignment: int) -> None:
        try:
            self.keep(self.arena.alloc(size, alignment).array())
        except fa.OutOfMemoryError:
            assert self.kind == "witness"

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.alive.pop(data.draw(st.integers(0, len(self.alive) - 1)))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), size=st.integers(1, 20_000))
    def resize(self, data: st.DataObject, size: int) -> None:
        place = data.draw(st.integers(0, len(self.alive) - 1))
        array, _ = self.alive[place]
        if array.base is not None or len(array) == 0:
            return
        del self.alive[place]
        try:
            array.resize(size, refcheck=False)
        except MemoryError:
            assert self.kind == "witness"
        self.keep(array)

    @rule()
    def reset(self) -> None:
        try:
            self.arena.reset()
            assert not any(self.arena.owns(array) for array, _ in self.alive)
        except fa.InUseError:
            assert self.alive

    @rule()
    def mark(self) -> None:
        if len(self.marks) < 20:
            self.marks.append(self.arena.mark())

    @precondition(lambda self: self.marks)
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        try:
            self.arena.rewind(self.marks[data.draw(st.integers(0, len(self.marks) - 1))])
        except fa.InUseError:
            assert self.alive
        except fa.StaleMarkError:
            pass

    @rule()
    def retire(self) -> None:
        self.arena.reset(retire=True)

    @rule()
    def trim(self) -> None:
        self.arena.trim()

    @rule(count=st.integers(0, 3))
    def scope(self, count: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with self.arena.scope():
                for _ in range(count):
                    self.make_array(1000)
                if count > 1:
                    self.alive.pop()

    @invariant()
    def contents_stay(self) -> None:
        for array, number in self.alive:
            assert (array == number).all()
        assert is_valid(self.arena)

    def teardown(self) -> None:
        self.alive.clear()
        assert self.arena.live == 0
        self.arena.reset()
        assert self.arena.used == 0


class WitnessMachine(ArenaMachine):
    kind = "witness"


class ScratchMachine(ArenaMachine):
    kind = "scratch"


TestArenaMachine = ArenaMachine.TestCase
TestWitnessMachine = WitnessMachine.TestCase
TestScratchMachine = ScratchMachine.TestCase
for _case in (TestArenaMachine, TestWitnessMachine, TestScratchMachine):
    _case.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
