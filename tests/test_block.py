"""Blocks of arenas and of managers: buffers, exports, life and death."""

import copy
import ctypes
import gc
import pickle
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from conftest import is_valid, make_block

import fastalloc as fa

Allocator = fa.Arena | fa.Manager


def test_it_is_a_writable_buffer_of_bytes(allocator: Allocator) -> None:
    block = make_block(allocator, 100)
    view = memoryview(block)
    assert (view.format, view.itemsize, view.nbytes, view.readonly, len(block)) == ("B", 1, 100, False, 100)
    view[:] = bytes(range(100))
    assert bytes(block) == bytes(range(100))
    assert ctypes.string_at(block.address, 100) == bytes(range(100))
    assert block.nbytes == 100
    assert block.address % 16 == 0


def test_a_block_of_nothing(allocator: Allocator) -> None:
    one, other = make_block(allocator, 0), make_block(allocator, 0)
    assert len(one) == 0
    assert bytes(one) == b""
    assert one.address != other.address
    assert one.array().shape == (0,)
    one.free()
    other.free()


def test_repr_tells_the_size_and_not_the_content(allocator: Allocator) -> None:
    block = make_block(allocator, 64)
    memoryview(block)[:6] = b"secret"
    label = f"{allocator.kind} arena" if isinstance(allocator, fa.Arena) else "manager"
    assert repr(block) == f"<fastalloc.Block 64 bytes in {label} '{allocator.name}', 0 exports>"
    view = memoryview(block)
    assert repr(block).endswith("1 export>")
    assert "secret" not in repr(view.obj)
    view.release()
    block.free()
    assert repr(block) == "<fastalloc.Block, freed>"


def test_exports_are_counted(allocator: Allocator) -> None:
    block = make_block(allocator, 64)
    assert block.exports == 0
    view = memoryview(block)
    part = view[8:16]
    del view
    gc.collect()
    assert block.exports == 1
    array = np.frombuffer(block, np.uint8)
    assert block.exports == 2
    view_of_array = array[::2]
    del array
    assert block.exports == 2
    typed = block.array("uint32", (4, 4))
    assert block.exports == 3
    del typed, view_of_array, part
    assert block.exports == 0


def test_free_while_exported_changes_nothing(allocator: Allocator) -> None:
    block = make_block(allocator, 64)
    array = block.array(np.uint64)
    array[:] = 7
    before = allocator.stats()
    with pytest.raises(fa.InUseError, match="cannot free a block of 64 bytes: 1 buffer of it is still in use"):
        block.free()
    assert allocator.stats() == before
    assert not block.freed
    assert array.tolist() == [7] * 8
    del array
    block.free()
    assert allocator.live == 0


def test_use_after_free(allocator: Allocator) -> None:
    block = make_block(allocator, 64)
    block.free()
    for use in (
        block.free,
        block.wipe,
        block.array,
        block.__enter__,
        lambda: block.address,
        lambda: memoryview(block),
        lambda: np.frombuffer(block, np.uint8),
        lambda: bytes(block),
    ):
        with pytest.raises(fa.FreedBlockError, match="has been freed"):
            use()
    assert (len(block), block.nbytes, block.exports, block.freed) == (0, 0, 0, True)


def test_garbage_frees(allocator: Allocator) -> None:
    block = make_block(allocator, 64)
    assert allocator.live == 1
    del block
    assert allocator.live == 0


def test_a_view_outlives_the_block_and_its_allocator(allocator: Allocator) -> None:
    block = make_block(allocator, 64)
    view = memoryview(block)[16:32]
    view[:] = b"0123456789abcdef"
    gone = weakref.ref(block)
    del block
    assert gone() is None
    assert allocator.live == 1
    others = [make_block(allocator, 64) for _ in range(8)]
    for other in others:
        memoryview(other)[:] = b"\xff" * 64
    assert bytes(view) == b"0123456789abcdef"
    del others, other
    del view
    assert allocator.live == 0


def test_with_frees(allocator: Allocator) -> None:
    with make_block(allocator, 64) as block:
        assert allocator.live == 1
    assert block.freed
    assert allocator.live == 0
    with make_block(allocator, 64) as block:
        block.free()


def test_with_does_not_mask_an_exception(allocator: Allocator) -> None:
    with pytest.raises(KeyError, match="mine"), make_block(allocator, 64) as block:
        view = memoryview(block)
        raise KeyError("mine")
    assert not block.freed
    view.release()
    with pytest.raises(fa.InUseError), block:
        view = memoryview(block)
    view.release()


def test_wipe(allocator: Allocator) -> None:
    for size in (64, 1 << 19):
        block = make_block(allocator, size)
        array = block.array()
        array[:] = 0xAB
        block.wipe()
        assert not array.any()


@pytest.mark.parametrize("dtype", ["u1", "<u4", ">f8", "c16", [("a", "i4"), ("b", "f8")], "S4", "M8[s]"])
def test_array_dtypes(allocator: Allocator, dtype: object) -> None:
    block = make_block(allocator, 96)
    array = block.array(dtype)  # type: ignore[arg-type]
    assert array.dtype == np.dtype(dtype)  # type: ignore[call-overload]
    assert array.nbytes == 96
    assert array.flags.writeable
    assert array.ctypes.data == block.address


def test_a_dtype_that_is_a_tuple(allocator: Allocator) -> None:
    block = make_block(allocator, 96)
    array = block.array(("<u4", (2,)))
    assert (array.dtype, array.shape) == (np.dtype("<u4"), (12, 2))
    with pytest.raises(TypeError):
        block.array(())


@pytest.mark.parametrize("shape", [24, (24,), (4, 6), (2, 3, 4), (0,), (0, 5), 3, ()])
def test_array_shapes(allocator: Allocator, shape: tuple[int, ...]) -> None:
    block = make_block(allocator, 96)
    array = block.array(np.uint32, shape)
    assert array.shape == (shape if isinstance(shape, tuple) else (shape,))
    assert block.exports == 1
    del array
    block.free()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("u4",), "dtype: a block of 30 bytes is not a whole number of"),
        ((object,), "dtype: .* holds Python objects"),
        (([("a", object)],), "dtype: .* holds Python objects"),
        (("u4", 8), "shape: 8 of .* does not fit in a block of 30 bytes"),
        (("u1", (6, 6)), "shape: "),
        (("u1", -2), "shape: "),
        (("u1", 2**62), "shape: "),
        (("u8", 2**61), "shape: "),
        (("u1", "x"), "shape: "),
    ],
)
def test_arrays_that_do_not_fit(allocator: Allocator, arguments: tuple[object, ...], message: str) -> None:
    block = make_block(allocator, 30)
    with pytest.raises(fa.ArgumentError, match=message):
        block.array(*arguments)  # type: ignore[arg-type]
    assert block.exports == 0
    block.free()


@pytest.mark.parametrize("action", [pickle.dumps, copy.copy, copy.deepcopy])
def test_no_pickling_and_no_copies(allocator: Allocator, action: object) -> None:
    block = make_block(allocator, 64)
    for thing in (block, allocator, fa.using_allocator(allocator)):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            action(thing)  # type: ignore[operator]


def test_it_cannot_be_made_or_changed_by_hand(allocator: Allocator) -> None:
    with pytest.raises(TypeError):
        fa.Block()
    with pytest.raises(TypeError):
        type("Mine", (fa.Block,), {})
    with pytest.raises(TypeError):
        fa.Block.free = None  # type: ignore[method-assign,assignment]
    block = make_block(allocator, 8)
    for name in ("address", "nbytes", "exports", "freed", "anything"):
        with pytest.raises(AttributeError):
            setattr(block, name, 1)


# ---- consumers that take the address and do not hold the buffer -----------------------------------------------------


def test_ndarray_over_the_block_itself(allocator: Allocator) -> None:
    """np.ndarray(buffer=...) releases the buffer and keeps the address and a reference to the Block."""
    block = make_block(allocator, 64)
    array = np.ndarray((8,), np.uint64, buffer=block)
    array[:] = 1
    block.free()
    assert allocator.live == 1
    others = [make_block(allocator, 64) for _ in range(8)]
    for other in others:
        memoryview(other)[:] = b"\xff" * 64
    assert array.tolist() == [1] * 8
    del others, other, array, block
    assert allocator.live == 0


@pytest.mark.parametrize("shape", [None, (2, 4)])
def test_nobody_takes_the_memory_from_an_array_of_a_block(allocator: Allocator, shape: tuple[int, int] | None) -> None:
    """Its base is no memoryview, which could be released while the array goes on."""
    block = make_block(allocator, 64)
    array = block.array(np.uint64, shape)
    bases = []
    while (base := array.base if not bases else getattr(bases[-1], "base", None)) is not None:
        bases.append(base)
    assert not any(hasattr(base, "release") for base in bases)
    view = memoryview(bases[-1])
    view.release()
    with pytest.raises(fa.InUseError, match="1 buffer of it is still in use"):
        block.free()
    del view, bases, base
    alone = array[1:]
    del array
    assert block.exports == 1
    del alone
    block.free()
    assert allocator.live == 0


def test_ndarray_over_a_memoryview(allocator: Allocator) -> None:
    """The same with a memoryview: it keeps only what is below that."""
    block = make_block(allocator, 64)
    view = memoryview(block)
    array = np.ndarray((8,), np.uint64, buffer=view)
    view.release()
    array[:] = 1
    block.free()
    del block
    assert allocator.live == 1
    others = [make_block(allocator, 64) for _ in range(8)]
    for other in others:
        memoryview(other)[:] = b"\xff" * 64
    assert array.tolist() == [1] * 8
    del others, other, array, view
    assert allocator.live == 0


def test_realloc_under_such_an_array() -> None:
    manager = fa.Manager()
    block = manager.malloc(64)
    view = memoryview(block)
    array = np.ndarray((8,), np.uint64, buffer=view)
    view.release()
    array[:] = 1
    assert manager.realloc(block, 1 << 20) is block
    assert bytes(block)[:8] == (1).to_bytes(8, "little")
    others = [manager.malloc(64) for _ in range(8)]
    for other in others:
        memoryview(other)[:] = b"\xff" * 64
    assert array.tolist() == [1] * 8
    grabbed = np.ndarray((8,), np.uint64, buffer=block)
    with pytest.raises(fa.InUseError, match="buffer="):
        manager.realloc(block, 1 << 21)
    assert grabbed[0] == 1


def test_ctypes_holds_the_buffer(allocator: Allocator) -> None:
    block = make_block(allocator, 64)
    structure = (ctypes.c_char * 64).from_buffer(block)
    with pytest.raises(fa.InUseError):
        block.free()
    del structure
    gc.collect()
    block.free()


# ---- arguments that do something when they are looked at -------------------------------------------------------------


class Meddler:
    """An argument that calls something of ours while it is converted."""

    def __init__(self, action: Callable[[], object], value: object) -> None:
        self.action, self.value = action, value

    def __index__(self) -> int:
        self.action()
        assert isinstance(self.value, int)
        return self.value

    @property
    def dtype(self) -> object:
        self.action()
        return self.value


def test_a_dtype_that_frees_the_block(allocator: Allocator) -> None:
    block = make_block(allocator, 64)
    with pytest.raises(fa.FreedBlockError):
        block.array(Meddler(block.free, np.dtype("u1")))  # type: ignore[arg-type]
    assert allocator.live == 0


def test_a_shape_that_frees_the_block(allocator: Allocator) -> None:
    block = make_block(allocator, 64)
    with pytest.raises(fa.InUseError):
        block.array("u1", Meddler(block.free, 8))  # type: ignore[arg-type]
    assert not block.freed


def test_a_size_that_frees_or_closes() -> None:
    manager, arena = fa.Manager(), fa.Scratch("1MiB")
    block = manager.malloc(64)
    with pytest.raises(fa.FreedBlockError):
        manager.realloc(block, Meddler(block.free, 128))  # type: ignore[arg-type]
    with pytest.raises(fa.ClosedError):
        arena.alloc(Meddler(arena.close, 8))  # type: ignore[arg-type]
    with pytest.raises(fa.ClosedError):
        manager.calloc(Meddler(manager.close, 8), 8)  # type: ignore[arg-type]
    assert manager.live == arena.live == 0


# ---- alloc ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alignment", [1, 16, 64, 4096, "64KiB"])
def test_alignment(arena: fa.Arena, alignment: int) -> None:
    block = arena.alloc(100, alignment)
    assert block.address % fa.parse_size(alignment) == 0
    assert arena.alloc(100, alignment=alignment).address != block.address


def test_alignment_up_to_a_huge_page() -> None:
    arena = fa.Scratch("16MiB")
    assert arena.alloc(1, "2MiB").address % (2 << 20) == 0


@pytest.mark.parametrize("alignment", [0, 3, -16, 4 << 20, 2**63, "12XB", 2.0, True])
def test_bad_alignment(arena: fa.Arena, alignment: object) -> None:
    before = arena.stats()
    with pytest.raises((fa.ArgumentError, fa.ArgumentTypeError), match=r"^alignment: "):
        arena.alloc(64, alignment)  # type: ignore[arg-type]
    assert arena.stats() == before


@pytest.mark.parametrize(
    ("size", "error"),
    [
        (-1, fa.ArgumentError),
        (2**63, fa.ArgumentError),
        (-(2**100), fa.ArgumentError),
        ("12XB", fa.ArgumentError),
        ("-1", fa.ArgumentError),
        (1.5, fa.ArgumentTypeError),
        (None, fa.ArgumentTypeError),
        (True, fa.ArgumentTypeError),
        (b"16", fa.ArgumentTypeError),
    ],
)
def test_bad_sizes(allocator: Allocator, size: int, error: type[Exception]) -> None:
    before = allocator.stats()
    with pytest.raises(error):
        make_block(allocator, size)
    assert allocator.stats() == before


def test_arguments_of_alloc(arena: fa.Arena) -> None:
    assert len(arena.alloc(nbytes=8, alignment=None, zeroed=True)) == 8
    assert len(arena.alloc("1KiB", "64")) == 1024
    for call in (
        lambda: arena.alloc(),  # type: ignore[call-arg]
        lambda: arena.alloc(1, 64, True),  # type: ignore[misc]
        lambda: arena.alloc(1, nbytes=1),  # type: ignore[misc]
        lambda: arena.alloc(1, size=2),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError):
            call()


def test_zeroed(arena: fa.Arena) -> None:
    for size in (64, 300_000):
        dirty = arena.alloc(size)
        dirty.array()[:] = 0xFF
        dirty.free()
        assert not arena.alloc(size, zeroed=True).array().any()


def test_an_absurd_size_is_out_of_memory(allocator: Allocator) -> None:
    live = allocator.live
    with pytest.raises(fa.OutOfMemoryError, match="9223372036854775807 bytes"):
        make_block(allocator, 2**63 - 1)
    assert allocator.live == live
    assert is_valid(allocator)


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_free_races_getbuffer(allocator: Allocator) -> None:
    """However free() and memoryview() of two threads fall, a view that exists is of live memory."""
    rounds = 300
    blocks = [make_block(allocator, 64) for _ in range(rounds)]
    barrier = threading.Barrier(2)
    seen: list[bytes] = []
    freed = 0

    def look() -> None:
        barrier.wait()
        for block in blocks:
            try:
                with memoryview(block) as view:
                    view[:] = b"z" * 64
                    seen.append(bytes(view))
            except fa.FreedBlockError:
                pass

    looker = threading.Thread(target=look)
    looker.start()
    barrier.wait()
    for block in blocks:
        try:
            block.free()
            freed += 1
        except fa.InUseError:
            pass
    looker.join()
    assert all(content == b"z" * 64 for content in seen)
    assert allocator.live == rounds - freed
