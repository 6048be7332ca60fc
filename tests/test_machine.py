"""Any program: hypothesis makes sequences of calls to the whole public API, against a model in ordinary memory.

The model of a piece of memory is a Piece: the bytes that were written to it. What Python holds of a piece (the array,
the block, views, slices, memoryviews, other dtypes) are its Handles. After each step every handle reads what the model
says, pieces that are alive do not overlap, and the C structures are whole. `make test` plays 500 programs under
AddressSanitizer, `make test-all` 20,000; FASTALLOC_MACHINE_EXAMPLES sets the number.
"""

import contextlib
import copy
import gc
import itertools
import os
import pickle
import threading
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import SANITIZED, is_valid
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import fastalloc as fa

EXAMPLES = int(os.environ.get("FASTALLOC_MACHINE_EXAMPLES", "60"))
AT_ONCE = 200
"""Hypothesis remembers each program of a test, and each gc.collect() of the next looks at what it remembers."""
KINDS = ("witness", "polynomial", "scratch", "manager")
MAX_PIECES = 60
SIZES = st.one_of(st.integers(0, 300), st.integers(0, 9000), st.sampled_from([4096, 32768, 40000, 70000]))
PLACE = st.integers(0, 10**6)
"""Which one of a list: taken modulo its length, so that shrinking a program keeps the rest of it."""


class Piece:
    """A piece of memory as it should be."""

    def __init__(self, size: int, address: int, home: "Home | None") -> None:
        self.content = bytearray(size)
        self.address = address
        self.home = home
        self.heap = home.heap if home else None
        """Serial number of the memory that it is in; None: NumPy's own."""


class Handle:
    """Something that sees bytes [low, high) of a piece."""

    def __init__(self, thing: Any, piece: Piece, low: int, high: int) -> None:
        self.thing, self.piece, self.low, self.high = thing, piece, low, high

    def bytes(self) -> memoryview:
        view = memoryview(self.thing)
        return view if view.nbytes == 0 else view.cast("B")


class Home:
    """An arena or manager, and what is expected of it."""

    names = itertools.count()

    def __init__(self, kind: str) -> None:
        self.kind = kind
        name = f"h{next(self.names)}"
        self.allocator: Any = (
            fa.Manager(pool_blocks=8, large_size="16KiB", cache="128KiB", name=name)
            if kind == "manager"
            else fa.Arena(kind, "512KiB", name=name)  # type: ignore[arg-type]
        )
        self.marks: list[tuple[fa.Mark, int]] = []
        self.closed = False

    @property
    def heap(self) -> int:
        return int(self.allocator._heap.serial)

    @property
    def may_be_full(self) -> bool:
        return self.kind == "witness"


class Machine(RuleBasedStateMachine):
    """Any program."""

    def __init__(self) -> None:
        super().__init__()
        self.homes = [Home(kind) for kind in KINDS]
        self.handles: list[Handle] = []
        self.scopes: list[Any] = []
        """using_allocator scopes that are open, innermost last; with the Home of each."""
        self.number = 0

    # ---- the model ----

    def home(self, place: int) -> Home:
        return self.homes[place % len(self.homes)]

    def pick(self, place: int) -> Handle:
        return self.handles[place % len(self.handles)]

    def pieces(self) -> list[Piece]:
        return list({id(handle.piece): handle.piece for handle in self.handles}.values())

    def alive_in(self, heap: int) -> int:
        return sum(piece.heap == heap for piece in self.pieces())

    def forget(self, piece: Piece) -> None:
        self.handles = [handle for handle in self.handles if handle.piece is not piece]

    def write(self, handle: Handle) -> None:
        """New bytes, through this handle, which all others of the piece must see."""
        self.number = (self.number + 1) % 255 + 1
        size = handle.high - handle.low
        pattern = (bytes(range(self.number, self.number + 7)) if self.number < 249 else b"\xa5") * (size // 7 + 7)
        if size:
            handle.bytes()[:] = pattern[:size]
        handle.piece.content[handle.low : handle.high] = pattern[:size]

    def keep(self, thing: Any, home: Home | None, *, zeroed: bool = False) -> None:
        """A new piece."""
        view = memoryview(thing)
        address = self.address(thing)
        piece = Piece(view.nbytes, address, home)
        handle = Handle(thing, piece, 0, view.nbytes)
        if zeroed:
            assert not any(handle.bytes())
        self.handles.append(handle)
        self.write(handle)

    @staticmethod
    def address(thing: Any) -> int:
        return int(thing.address) if isinstance(thing, fa.Block) else int(thing.__array_interface__["data"][0])

    @contextlib.contextmanager
    def full_or_closed(self, home: Home | None) -> Iterator[None]:
        """The two errors that an allocation may end in, each only when it must or may."""
        try:
            yield
        except fa.ClosedError:
            assert home is not None
            assert home.closed
        except MemoryError:
            assert home is not None
            assert home.may_be_full or home.closed

    def innermost(self) -> Home | None:
        return self.scopes[-1][1] if self.scopes else None

    # ---- allocation ----

    def room(self) -> bool:
        return len(self.handles) < MAX_PIECES

    @precondition(room)
    @rule(place=PLACE, size=SIZES, how=st.sampled_from(["empty", "zeros", "full", "array", "arange", "empty_like"]))
    def make_array(self, place: int, size: int, how: str) -> None:
        home = self.home(place)
        with self.full_or_closed(home):
            allocator = home.allocator
            array = {
                "empty": lambda: allocator.empty(size, np.uint8),
                "zeros": lambda: allocator.zeros(size, np.uint8),
                "full": lambda: allocator.full(size, 7, np.uint8),
                "array": lambda: allocator.array(bytearray(size)),
                "arange": lambda: allocator.arange(size // 8),
                "empty_like": lambda: allocator.empty_like(np.broadcast_to(np.uint8(0), size)),
            }[how]()
            assert not home.closed
            self.keep(array, home, zeroed=how in {"zeros", "array"} or (home.kind == "witness" and how == "empty"))

    @precondition(room)
    @rule(place=PLACE, size=SIZES, alignment=st.sampled_from([None, 16, 64, 4096]), zeroed=st.booleans())
    def make_block(self, place: int, size: int, alignment: int | None, zeroed: bool) -> None:
        home = self.home(place)
        with self.full_or_closed(home):
            if home.kind != "manager":
                block = home.allocator.alloc(size, alignment, zeroed=zeroed)
            elif zeroed:
                alignment, block = 16, home.allocator.calloc(size, 1)
            else:
                block = home.allocator.aligned_alloc(alignment or 16, size)
            assert not home.closed
            assert block.address % (alignment or 16) == 0
            self.keep(block, home, zeroed=zeroed or home.kind == "witness")

    @precondition(room)
    @rule(size=SIZES)
    def make_numpy_array(self, size: int) -> None:
        """From whatever scope is open."""
        home = self.innermost()
        with self.full_or_closed(home):
            array = np.empty(size, np.uint8)
            assert fa.handles(array) == (home is not None)
            self.keep(array, home)

    # ---- handles ----

    @precondition(lambda self: self.handles and self.room())
    @rule(place=PLACE, cut=st.tuples(st.integers(0, 9000), st.integers(0, 9000)))
    def slice(self, place: int, cut: tuple[int, int]) -> None:
        of = self.pick(place)
        low, high = sorted(min(end, of.high - of.low) for end in cut)
        self.handles.append(Handle(of.bytes()[low:high], of.piece, of.low + low, of.low + high))

    @precondition(lambda self: self.handles and self.room())
    @rule(
        place=PLACE,
        kind=st.sampled_from(["frombuffer", "asarray", "memoryview", "block.array", "view", "reversed twice"]),
    )
    def view(self, place: int, kind: str) -> None:
        of = self.pick(place)
        size = of.high - of.low
        if kind == "array":
            if not isinstance(of.thing, fa.Block):
                return
            thing: Any = of.thing.array("u1")
        elif kind == "memoryview" or size < 4:
            thing = memoryview(of.thing)
        elif kind == "frombuffer":
            thing = np.frombuffer(of.bytes(), np.uint8)
        elif kind == "dtype":
            thing = np.frombuffer(of.bytes(), np.uint8, size - size % 4).view("<u4")
        elif kind == "asarray":
            thing = np.asarray(of.bytes())
        else:
            thing = np.asarray(of.bytes())[::-1][::-1]
        self.handles.append(Handle(thing, of.piece, of.low, of.low + memoryview(thing).nbytes))

    @precondition(lambda self: self.handles)
    @rule(place=PLACE)
    def overwrite(self, place: int) -> None:
        handle = self.pick(place)
        if not memoryview(handle.thing).readonly:
            self.write(handle)

    @precondition(lambda self: self.handles)
    @rule(place=PLACE)
    def drop(self, place: int) -> None:
        del self.handles[place % len(self.handles)]

    @precondition(lambda self: self.handles)
    @rule(place=PLACE)
    def drop_piece(self, place: int) -> None:
        self.forget(self.pick(place).piece)

    @precondition(lambda self: self.handles)
    @rule(place=PLACE)
    def drop_in_a_cycle(self, place: int) -> None:
        piece = self.pick(place).piece
        cycle: list[Any] = [handle.thing for handle in self.handles if handle.piece is piece]
        cycle.append(cycle)
        self.forget(piece)
        del cycle
        gc.collect()

    @precondition(lambda self: self.handles)
    @rule(place=PLACE)
    def drop_in_a_thread(self, place: int) -> None:
        piece = self.pick(place).piece
        things = [handle.thing for handle in self.handles if handle.piece is piece]
        self.forget(piece)
        thread = threading.Thread(target=things.clear)
        thread.start()
        thread.join()

    @precondition(lambda self: self.handles)
    @rule(place=PLACE)
    def copies(self, place: int) -> None:
        """Pickles and copies are elsewhere, and equal."""
        handle = self.pick(place)
        if isinstance(handle.thing, np.ndarray):
            was = bytes(handle.bytes())
            with self.full_or_closed(self.innermost()):
                assert copy.deepcopy(handle.thing).tobytes() == was
                assert pickle.loads(pickle.dumps(handle.thing)).tobytes() == was
        else:
            with pytest.raises(TypeError):
                pickle.dumps(handle.thing)

    # ---- blocks ----

    def blocks(self) -> list[Handle]:
        return [handle for handle in self.handles if isinstance(handle.thing, fa.Block)]

    @precondition(blocks)
    @rule(place=PLACE, wipe=st.booleans())
    def free(self, place: int, wipe: bool) -> None:
        handle = self.blocks()[place % len(self.blocks())]
        block, piece = handle.thing, handle.piece
        others = [other for other in self.handles if other.piece is piece and other is not handle]
        if wipe:
            block.wipe()
            piece.content[:] = bytes(len(piece.content))
            return
        if others:
            with pytest.raises(fa.InUseError):
                block.free()
            assert not block.freed
            return
        del handle
        self.forget(piece)
        block.free()
        assert block.freed
        for refused in (block.wipe, lambda: memoryview(block), block.array, block.free):
            with pytest.raises(fa.FreedBlockError):
                refused()

    @precondition(blocks)
    @rule(place=PLACE, size=SIZES)
    def realloc(self, place: int, size: int) -> None:
        handle = self.blocks()[place % len(self.blocks())]
        block, piece = handle.thing, handle.piece
        home = piece.home
        assert home is not None
        manager = home.allocator
        if home.kind != "manager" or manager is None:
            return
        if home.closed:
            with pytest.raises(fa.ClosedError):
                manager.realloc(block, size)
        elif sum(other.piece is piece for other in self.handles) > 1:
            with pytest.raises(fa.InUseError):
                manager.realloc(block, size)
        else:
            assert manager.realloc(block, size) is block
            piece.content = (piece.content + bytes(max(0, size - len(piece.content))))[:size]
            piece.address = block.address
            shared = min(handle.high, size)
            handle.high = size
            assert bytes(handle.bytes()[:shared]) == piece.content[:shared]
            self.write(handle)

    @precondition(lambda self: self.handles)
    @rule(place=PLACE, size=st.integers(1, 20_000))
    def resize(self, place: int, size: int) -> None:
        """An array's data moves, wherever it came from and whatever is open now."""
        handle = self.pick(place)
        array, piece = handle.thing, handle.piece
        if not isinstance(array, np.ndarray) or array.base is not None or not array.flags.owndata:
            return
        if sum(other.piece is piece for other in self.handles) > 1 or array.dtype != np.uint8:
            return
        was = bytes(handle.bytes())
        try:
            array.resize(size, refcheck=False)
        except (MemoryError, fa.ClosedError):
            assert piece.home is not None
            assert piece.home.may_be_full or piece.home.closed
            return
        handle.high = size
        piece.content = bytearray((was + bytes(size))[:size])
        piece.address = self.address(array)
        assert bytes(handle.bytes()) == piece.content
        self.write(handle)

    # ---- arenas and managers ----

    def arenas(self) -> list[Home]:
        return [home for home in self.homes if home.kind != "manager" and not home.closed]

    @precondition(arenas)
    @rule(place=PLACE)
    def reset(self, place: int) -> None:
        home = self.arenas()[place % len(self.arenas())]
        if self.alive_in(home.heap):
            with pytest.raises(fa.InUseError):
                home.allocator.reset()
        else:
            home.allocator.reset()
            assert home.allocator.used == 0

    @precondition(arenas)
    @rule(place=PLACE)
    def retire(self, place: int) -> None:
        home = self.arenas()[place % len(self.arenas())]
        before, alive = home.heap, self.alive_in(home.heap)
        home.allocator.reset(retire=True)
        assert (home.heap != before) == bool(alive)
        assert home.allocator.live == 0

    @precondition(arenas)
    @rule(place=PLACE)
    def mark(self, place: int) -> None:
        home = self.arenas()[place % len(self.arenas())]
        if len(home.marks) < 10:
            home.marks.append((home.allocator.mark(), home.heap))

    @precondition(lambda self: any(home.marks for home in self.arenas()))
    @rule(place=PLACE, which=PLACE)
    def rewind(self, place: int, which: int) -> None:
        homes = [home for home in self.arenas() if home.marks]
        home = homes[place % len(homes)]
        mark, heap = home.marks[which % len(home.marks)]
        try:
            home.allocator.rewind(mark)
            assert heap == home.heap
        except fa.InUseError:
            assert self.alive_in(home.heap)
        except fa.StaleMarkError:
            home.marks.remove((mark, heap))

    @precondition(arenas)
    @rule(place=PLACE, count=st.integers(0, 3), keep=st.booleans(), strict=st.booleans())
    def scope(self, place: int, count: int, keep: bool, strict: bool) -> None:
        """mark ... rewind, around arrays of which one may outlive it."""
        home = self.arenas()[place % len(self.arenas())]
        kept = []
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                with home.allocator.scope(strict=strict) as arena:
                    made = [arena.zeros(1000, np.uint8) for _ in range(count)]
                    if keep and made and self.room():
                        kept.append(made[0])
                    del made
        except MemoryError:
            assert home.may_be_full
        except fa.InUseError:
            assert strict
            assert kept
        else:
            assert bool(kept) == any(item.category is ResourceWarning for item in warned)
            assert not (strict and kept)
        for array in kept:
            self.keep(array, home, zeroed=True)

    @rule(place=PLACE)
    def trim(self, place: int) -> None:
        home = self.home(place)
        if home.closed:
            with pytest.raises(fa.ClosedError):
                home.allocator.trim()
        else:
            home.allocator.trim()

    @precondition(arenas)
    @rule(place=PLACE)
    def wipe(self, place: int) -> None:
        home = self.arenas()[place % len(self.arenas())]
        heap = home.heap
        home.allocator.wipe()
        for piece in self.pieces():
            if piece.heap == heap:
                piece.content[:] = bytes(len(piece.content))

    @rule(place=PLACE)
    def close(self, place: int) -> None:
        """And another of its kind takes its place, so that programs go on."""
        home = self.home(place)
        if home in [scope[1] for scope in self.scopes]:
            return  # test_allocator.py has what happens then
        heap = home.heap
        home.allocator.close()
        home.closed = True
        if home.kind == "witness":
            for piece in self.pieces():
                if piece.heap == heap:
                    piece.content[:] = bytes(len(piece.content))
        for refused in (home.allocator.trim, lambda: home.allocator.zeros(3)):
            with pytest.raises(fa.ClosedError):
                refused()
        self.homes[self.homes.index(home)] = Home(home.kind)

    @rule(place=PLACE)
    def forget_home(self, place: int) -> None:
        """Nobody holds the arena or manager itself any more; what is alive in it lives on."""
        home = self.home(place)
        if home in [scope[1] for scope in self.scopes]:
            return
        self.homes[self.homes.index(home)] = Home(home.kind)
        ghost = weakref.ref(home.allocator)
        home.allocator = None
        home.closed = True
        gc.collect()
        assert ghost() is None

    @rule(place=PLACE)
    def look(self, place: int) -> None:
        """Statistics and text, in every state."""
        home = self.home(place)
        stats = home.allocator.stats()
        assert stats.live == self.alive_in(home.heap)
        assert stats.allocated >= stats.freed
        assert all(value >= 0 for value in stats.as_dict().values())
        for text in (repr(home.allocator), str(stats), *map(repr, (handle.thing for handle in self.blocks()))):
            assert len(text) < 4000
        for handle in self.handles:
            if handle.high > handle.low and handle.piece.home is home and home.kind != "manager":
                assert home.allocator.owns(handle.piece.address) == (handle.piece.heap == home.heap)

    # ---- scopes of NumPy's allocator, threads, processes ----

    @precondition(lambda self: len(self.scopes) < 4)
    @rule(place=PLACE)
    def enter(self, place: int) -> None:
        home = self.home(place)
        scope = fa.using_allocator(home.allocator)
        scope.__enter__()
        self.scopes.append((scope, home))

    @precondition(lambda self: self.scopes)
    @rule()
    def leave(self) -> None:
        self.scopes.pop()[0].__exit__(None, None, None)
        home = self.innermost()
        assert fa.get_allocator() is (home and home.allocator)

    @precondition(lambda self: len(self.scopes) > 1 and self.scopes[0][1] is not self.scopes[-1][1])
    @rule()
    def leave_in_the_wrong_order(self) -> None:
        with pytest.raises(fa.ScopeError):
            self.scopes[0][0].__exit__(None, None, None)
        while self.scopes:  # whatever that did, the others can be left
            with contextlib.suppress(fa.ScopeError):
                self.scopes.pop()[0].__exit__(None, None, None)
        fa.set_allocator(None)

    @precondition(room)
    @rule(place=PLACE, sizes=st.lists(SIZES, max_size=5))
    def in_a_thread(self, place: int, sizes: list[int]) -> None:
        """A thread allocates in a scope of its own, and hands over what it made."""
        home, made, raised = self.home(place), [], []

        def work() -> None:
            try:
                with fa.using_allocator(home.allocator):
                    made.extend(np.zeros(size, np.uint8) for size in sizes)
                    _ = np.ones(100) + 1
            except MemoryError:
                raised.append(True)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert home.may_be_full or not raised
        for array in made:
            self.keep(array, home, zeroed=True)

    @precondition(room)
    @rule(sizes=st.lists(SIZES, max_size=5))
    def installed(self, sizes: list[int]) -> None:
        """For a moment every array of the process is ours; those made then live on."""
        home = self.innermost()
        fa.install(large_cache="1MiB")
        try:
            with self.full_or_closed(home):
                for size in sizes:
                    array = np.empty(size, np.uint8)
                    assert fa.handles(array)
                    self.keep(array, home)
        finally:
            fa.uninstall()

    # gcc 12's AddressSanitizer does not hold its own locks over a fork: a thread that ends meanwhile leaves them taken.
    @precondition(lambda self: hasattr(os, "fork") and not SANITIZED)
    @rule(rare=st.integers(0, 9))
    def fork(self, rare: int) -> None:
        """The child sees what the parent saw, secrets excepted, and everything works there."""
        if rare:
            return
        secret = {home.heap for home in self.homes if home.kind == "witness" and home.allocator.protection.wipe_on_fork}
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for handle in self.handles:
                    home = handle.piece.home
                    if handle.piece.heap in secret:
                        assert not any(handle.bytes())
                    elif home is None or home.kind != "witness":
                        assert handle.bytes() == handle.piece.content[handle.low : handle.high]
                for home in self.homes:
                    with contextlib.suppress(MemoryError):
                        assert home.allocator.ones(10, np.uint8).sum() == 10
                    assert is_valid(home.allocator)
                fa.Witness("64KiB").ones(3)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0

    # ---- what is always so ----

    @invariant()
    def contents_are_as_written(self) -> None:
        for handle in self.handles:
            assert handle.bytes() == handle.piece.content[handle.low : handle.high]

    @invariant()
    def nothing_overlaps(self) -> None:
        spans = sorted((piece.address, len(piece.content)) for piece in self.pieces() if piece.content)
        for (low, size), (next_low, _) in itertools.pairwise(spans):
            assert low + size <= next_low

    @invariant()
    def structures_are_whole(self) -> None:
        for home in self.homes:
            assert is_valid(home.allocator)
            assert home.allocator.live == self.alive_in(home.heap)

    def teardown(self) -> None:
        while self.scopes:
            with contextlib.suppress(fa.ScopeError):
                self.scopes.pop()[0].__exit__(None, None, None)
        fa.set_allocator(None)
        self.handles.clear()
        for home in self.homes:
            assert home.allocator.live == 0
            home.allocator.close()


@pytest.mark.parametrize("examples", [min(EXAMPLES - start, AT_ONCE) for start in range(0, EXAMPLES, AT_ONCE)])
def test_any_program(examples: int) -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        ),
    )
