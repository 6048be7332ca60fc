"""Arrays of arenas in other libraries: the same bytes, and the memory lives as long as somebody looks at it."""

import gc
import importlib.util
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from conftest import SANITIZED, make_block

import fastalloc as fa

Allocator = fa.Arena | fa.Manager


def need(name: str, *, jit: bool = False) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    if jit and SANITIZED:  # a JIT compiler leaks, and a sanitizer says so
        pytest.skip(f"{name} compiles at run time: not under a sanitizer")


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_dlpack_of_numpy(allocator: Allocator) -> None:
    array = allocator.arange(1000, dtype="f8")
    shared = np.from_dlpack(array)
    assert address(shared) == address(array)
    where, live = address(array), allocator.live
    del array
    gc.collect()
    assert allocator.live == live  # the capsule holds it
    assert shared[999] == 999
    assert address(shared) == where
    del shared
    gc.collect()
    assert allocator.live == 0


def test_dlpack_of_torch(allocator: Allocator) -> None:
    need("torch")
    import torch

    array = allocator.arange(1000, dtype="f8")
    tensor = torch.from_dlpack(array)
    assert tensor.data_ptr() == address(array)
    tensor[3] = 7
    assert array[3] == 7
    del array
    gc.collect()
    assert float(tensor.sum()) == 999 * 500 + 4
    assert allocator.live == 1
    del tensor
    gc.collect()
    assert allocator.live == 0


def test_pyarrow(allocator: Allocator) -> None:
    need("pyarrow")
    import pyarrow as pa

    array = allocator.arange(1000, dtype="i8")
    block = make_block(allocator, 64)
    memoryview(block)[:4] = b"text"
    buffer, raw = pa.py_buffer(array), pa.py_buffer(block)
    assert (buffer.address, buffer.size, raw.address) == (address(array), 8000, block.address)
    assert raw.to_pybytes()[:4] == b"text"
    column = pa.Array.from_buffers(pa.int64(), 1000, [None, buffer])
    back = column.to_numpy(zero_copy_only=True)
    assert address(back) == address(array)
    del array, buffer, column
    gc.collect()
    assert back[999] == 999
    with pytest.raises(fa.InUseError):
        block.free()
    del back, raw
    gc.collect()
    block.free()
    del block  # pyarrow asks for buffers as NumPy's constructor does: the memory stays as long as the handle
    assert allocator.live == 0


def test_memoryview(allocator: Allocator) -> None:
    array = allocator.arange(12, dtype="i4").reshape(3, 4)
    view = memoryview(array)
    assert (view.shape, view.format, view.nbytes) == ((3, 4), "i", 48)
    view[1, 2] = -1
    assert array[1, 2] == -1
    del array
    gc.collect()
    assert view.tolist()[1] == [4, 5, -1, 7]
    view.release()
    gc.collect()
    assert allocator.live == 0


def child(array: np.ndarray) -> tuple[int, bool, np.ndarray]:
    return int(array.sum()), fa.handles(array), array * 2


def test_multiprocessing_copies(arena: fa.Arena) -> None:
    """Pickled, so the other process has a copy in memory of its own, and what comes back is a copy in NumPy's."""
    array = arena.arange(1000)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        total, handled, doubled = pool.submit(child, array).result()
    assert (total, handled, fa.handles(doubled)) == (499_500, False, False)
    assert np.array_equal(doubled, array * 2)
    assert np.array_equal(pickle.loads(pickle.dumps(array)), array)


def test_numba(allocator: Allocator) -> None:
    need("numba", jit=True)
    import numba

    @numba.njit
    def add_one(array: np.ndarray) -> float:
        total = 0.0
        for i in range(len(array)):
            array[i] += 1
            total += array[i]
        return total

    array = allocator.zeros(1000)
    assert add_one(array) == 1000
    assert array[999] == 1


def test_galois(allocator: Allocator) -> None:
    need("galois", jit=True)
    import galois

    field = galois.GF(31)
    inside = allocator.arange(1, 20, dtype=np.uint8).view(field)
    assert allocator.owns(inside)
    with fa.using_allocator(allocator):
        inverse = inside**-1
        made = field([1, 2, 3])
    assert allocator.owns(inverse)
    assert allocator.owns(made)
    assert (np.asarray(inside * inverse) == 1).all()
