"""NumPy arrays in arenas and managers: every way in, every context, and what outlives what."""

import asyncio
import contextlib
import contextvars
import ctypes
import gc
import importlib
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import is_valid

import fastalloc as fa
from fastalloc._binding import ArenaScope
from fastalloc.arrays import ArrayFunctions

Allocator = fa.Arena | fa.Manager

FUNCTIONS = {
    "arange": (10,),
    "array": ([1, 2, 3],),
    "asarray": ([1, 2, 3],),
    "concatenate": (([1.0], [2.0]),),
    "copy": (np.ones(3),),
    "empty": (10,),
    "empty_like": (np.ones(3),),
    "full": (10, 7.0),
    "frombuffer_copy": (bytes(24),),
    "full_like": (np.ones(3), 7.0),
    "linspace": (0, 1, 5),
    "ones": ((2, 3),),
    "ones_like": (np.ones(3),),
    "stack": (([1.0], [2.0]),),
    "zeros": (10,),
    "zeros_like": (np.ones(3),),
}


@pytest.fixture
def scratch_of_a_page() -> fa.Arena:
    return fa.Scratch("4KiB", on_full="fail")


# ---- the functions of an arena ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_routed_functions(allocator: Allocator, name: str) -> None:
    arguments = FUNCTIONS[name]
    array = getattr(allocator, name)(*arguments)
    expected = getattr(np, name.removesuffix("_copy"))(*arguments)
    assert type(array) is np.ndarray
    assert (array.shape, array.dtype, array.strides) == (expected.shape, expected.dtype, expected.strides)
    if not name.startswith("empty"):
        assert (array == expected).all()
    assert fa.handles(array)
    assert allocator.owns(array)
    assert array.flags.owndata or name == "linspace"
    assert array.ctypes.data % 64 == 0
    assert fa.get_allocator() is None
    assert not fa.handles(np.empty(3))


class Sub(np.ndarray):
    """A subclass, for which NumPy calls __array_finalize__."""


BASE = np.arange(24.0).reshape(2, 3, 4)
AS_NUMPY_MAKES_THEM = {
    "empty": [(3,), (0,), ((),), ((2, 3),), ((2, 0),), ([2, 2],), (np.int64(3),), ((1,) * 32,)],
    "zeros": [
        (3, t) for t in ("?", "i1", "<u2", ">u4", "f2", "f4", "g", "c8", "G", "M8[s]", "S3", "O", int, np.uint64)
    ],
    "empty_like": [(BASE,), (BASE.T,), (BASE[:, ::-1],), (BASE[0, 0, 0],), (BASE.view(Sub),), (np.ma.array([1, 2]),)],
    "zeros_like": [(BASE,), (np.array(3),), (np.zeros((2, 0)),), (BASE.astype(">f8"),), ([1, 2],)],
    "array": [
        *((x,) for x in (BASE, BASE.T, BASE[:, 1], BASE.astype("f4"), np.zeros(20_000), BASE.view(Sub), b"ab", 3)),
        *((x,) for x in ([1, 2, -3], (1.5, 2.5), [], [1, 2.5], [True], [2**63], [2**64, 1], [[1], [2]], [None])),
    ],
    "copy": [(BASE,), (BASE.T,), (BASE[:, ::2],), (3,), ([1, 2],)],
    "asarray": [(BASE,), (BASE.view(Sub),), ([1, 2],), ((2.5,),)],
    "arange": [(5,), (0,), (-3,), (2, 9), (9, 2), (2, 20, 7), (20, 2, -7), (3.0,), (True,), (2**31, 2**31 + 3)],
    "ones": [(3,), ((2, 2), "u1"), ((2, 3),), ((),), (0,), (9000,)],
    "full": [
        (3, 7),
        (3, 7.5),
        ((2, 2), 300, "i2"),
        (4, 2**63),
        (2, True),
        ((2, 0), 1),
        ((), -1),
        (9000, 3),
        (2, [1, 2]),
    ],
}


@pytest.mark.parametrize("name", AS_NUMPY_MAKES_THEM)
def test_arrays_are_as_numpy_makes_them(arena: fa.Arena, name: str) -> None:
    """In everything that can be asked of an array, by the quick way or the long one."""
    for arguments in AS_NUMPY_MAKES_THEM[name]:
        array, expected = getattr(arena, name)(*arguments), getattr(np, name)(*arguments)
        assert type(array) is type(expected), arguments
        assert array.shape == expected.shape, arguments
        assert array.dtype == expected.dtype, arguments
        assert array.strides == expected.strides, arguments
        if np.asarray(expected).base is None:
            flags = {flag: array.flags[flag] for flag in ("C", "F", "O", "W", "A", "X")}
            assert flags == {flag: expected.flags[flag] for flag in flags}, arguments
        if not name.startswith("empty"):
            assert array.tobytes() == expected.tobytes() or array.dtype == object, arguments
        assert arena.owns(array), arguments
        if type(array) is np.ndarray and array.flags.owndata and array.dtype != object:
            array.resize((7, 7), refcheck=False)
            assert arena.owns(array), arguments
        del array
    assert arena.live == 0


def test_wrong_arguments_are_numpys_errors(arena: fa.Arena) -> None:
    for name, arguments, keywords in (
        ("empty", (3, float, "C", "D"), {}),
        ("empty", (3,), {"shape": 3}),
        ("empty", (3,), {"order": "X"}),
        ("empty", (3,), {"order": 1}),
        ("empty", ((1,) * 65,), {}),
        ("empty", ((2**40, 2**40),), {}),
        ("zeros", (3, object()), {}),
        ("arange", (0, 3, 0), {}),
        ("copy", (), {}),
    ):
        with pytest.raises(Exception, match=r"^(?!cannot)") as of_numpy:
            getattr(np, name)(*arguments, **keywords)
        with pytest.raises(type(of_numpy.value)) as ours:
            getattr(arena, name)(*arguments, **keywords)
        assert str(ours.value) == str(of_numpy.value)
    assert arena.live == 0


def test_a_refusal_is_counted_once(scratch_of_a_page: fa.Arena) -> None:
    arena = scratch_of_a_page
    calls = [("empty", 10_000), ("zeros_like", np.ones((100, 100))), ("array", [1.0] * 10_000), ("ones", 10_000)]
    for number, (name, argument) in enumerate(calls):
        with pytest.raises(fa.OutOfMemoryError, match=r"Unable to allocate 78.1 KiB for an array with shape"):
            getattr(arena, name)(argument)
        assert arena.stats().failures == number + 1
    assert arena.live == 0


@pytest.mark.parametrize("dtype", ["u1", "<u4", ">f8", "c16", "O", "U5", [("a", "i4"), ("b", "(2,3)f8")], "(2,2)i4"])
@pytest.mark.parametrize("shape", [0, 1, (), (0, 3), (3, 4), [2, 2]])
@pytest.mark.parametrize("order", ["C", "F"])
def test_dtypes_shapes_and_orders(arena: fa.Arena, dtype: object, shape: object, order: str) -> None:
    for name in ("empty", "zeros", "ones"):
        if name == "ones" and isinstance(dtype, list):
            continue
        array = getattr(arena, name)(shape, dtype, order=order)
        expected = getattr(np, name)(shape, dtype, order=order)
        assert (array.shape, array.strides, array.dtype) == (expected.shape, expected.strides, expected.dtype)
        assert fa.handles(array)
        if name != "empty":
            assert np.array_equal(array, expected)


DTYPES = {
    "structured": [("a", "i4"), ("b", "(2,3)f8"), ("c", "U3")],
    "subarray": "(2,2)i4",
    "big-endian": ">f8",
    "aligned": np.dtype([("a", "u1"), ("b", "f8")], align=True),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3)])
def test_functions_with_prototypes_and_fills(arena: fa.Arena, dtype: str, shape: tuple[int, ...]) -> None:
    """Structured, subarray, Fortran, zero-size and 0-d: what NumPy makes of the same arguments."""
    made_of = np.dtype(DTYPES[dtype])
    prototype = np.asfortranarray(np.zeros(shape, made_of.base))
    calls = [
        ("array", (prototype,), {"dtype": made_of.base, "order": "F"}),
        ("array", (prototype,), {"copy": True, "ndmin": 4}),
        ("asarray", (prototype,), {"order": "C"}),
        ("copy", (prototype,), {"order": "K"}),
        ("empty", (shape,), {"dtype": made_of, "order": "F"}),
        ("empty_like", (prototype,), {"order": "A"}),
        ("empty_like", (prototype,), {"dtype": made_of.base, "shape": (2, *shape)}),
        ("zeros", (shape, made_of, "F"), {}),
        ("zeros_like", (prototype,), {"dtype": made_of.base}),
    ]
    if made_of.names is None:
        calls += [("full", (shape, 3, made_of.base, "F"), {}), ("ones", (shape,), {"dtype": made_of.base})]
        calls += [("ones_like", (prototype,), {}), ("full_like", (prototype, 2), {"dtype": "i8"})]
    for name, arguments, keywords in calls:
        array = getattr(arena, name)(*arguments, **keywords)
        expected = getattr(np, name)(*arguments, **keywords)
        assert type(array) is type(expected)
        assert (array.shape, array.strides, array.dtype) == (expected.shape, expected.strides, expected.dtype)
        assert fa.handles(array), name
        assert arena.owns(array), name
        if not name.startswith("empty"):
            assert np.array_equal(array, expected)


@pytest.mark.parametrize(
    ("name", "arguments", "keywords"),
    [
        ("arange", (2, 20, 3), {}),
        ("arange", (5,), {"dtype": "u1"}),
        ("arange", (0.0, 1.0, 0.1), {}),
        ("arange", (3, 3), {}),
        ("arange", ("2020-01", "2020-05"), {"dtype": "M8[M]"}),
        ("linspace", (0, 1), {"num": 7, "endpoint": False}),
        ("linspace", ([0, 1], [1, 2], 4), {"axis": 1}),
        ("linspace", (0, 1, 0), {}),
        ("linspace", (1, 5, 5), {"dtype": int}),
        ("asarray", (3,), {}),
        ("asarray", ([[1, 2], [3, 4]], "f4", "F"), {}),
    ],
)
def test_ranges_and_conversions(allocator: Allocator, name: str, arguments: tuple[object, ...], keywords: dict) -> None:
    array, expected = getattr(allocator, name)(*arguments, **keywords), getattr(np, name)(*arguments, **keywords)
    assert (array.shape, array.strides, array.dtype) == (expected.shape, expected.strides, expected.dtype)
    assert array.tobytes() == expected.tobytes()
    assert fa.handles(array)


def test_asarray_takes_in_what_is_elsewhere(allocator: Allocator) -> None:
    elsewhere = np.arange(6.0).reshape(2, 3).T
    inside = allocator.asarray(elsewhere)
    assert allocator.owns(inside)
    assert np.array_equal(inside, elsewhere)
    assert inside.strides == elsewhere.strides
    for there_already in (inside, inside[1:], inside.T):
        assert allocator.asarray(there_already) is there_already
    assert allocator.asarray(memoryview(b"abc"))[2] == ord("c")
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        assert allocator.asarray(inside, copy=False) is inside
        with pytest.raises(ValueError, match=r"copy: it is not in the memory of .*, and copy=False"):
            allocator.asarray(elsewhere, copy=False)
        assert allocator.asarray(inside, copy=True) is not inside


def test_frombuffer_copy(allocator: Allocator) -> None:
    source = bytearray(range(32))
    array = allocator.frombuffer_copy(source, ">u2", 3, 2)
    assert array.tolist() == [0x0203, 0x0405, 0x0607]
    assert array.dtype == ">u2"
    assert array.flags.writeable
    assert array.flags.owndata
    source.clear()  # not kept
    structured = allocator.frombuffer_copy(bytes(24), [("a", "u4"), ("b", "f8")])
    assert structured.shape == (2,)
    for wrong in ((b"abc", "u4"), (b"abcd", "u4", 2), (b"abcd", "u4", 1, 8)):
        with pytest.raises(ValueError, match=r"buffer|offset"):
            allocator.frombuffer_copy(*wrong)
    del array, structured
    assert allocator.live == 0


def test_zeros_are_zero_where_there_was_something(allocator: Allocator) -> None:
    for size in (8, 1000, 300_000):
        allocator.full(size, 0xAB, np.uint8)
        assert not allocator.zeros(size, np.uint8).any()


def test_errors_of_numpy_come_through_and_leave_nothing(allocator: Allocator) -> None:
    for call, error in (
        (lambda: allocator.empty("x"), TypeError),
        (lambda: allocator.empty(-1), ValueError),
        (lambda: allocator.zeros(3, dtype="nonsense"), TypeError),
        (lambda: allocator.array([1, [2]], dtype=float), ValueError),
        (lambda: allocator.empty(), TypeError),  # type: ignore[call-overload]
        (lambda: allocator.empty(3, wrong=1), TypeError),  # type: ignore[call-overload]
        (lambda: allocator.empty(2**62, np.uint64), ValueError),
    ):
        with pytest.raises(error):
            call()
        assert fa.get_allocator() is None
    assert allocator.live == 0


def test_out_of_memory_names_the_place_and_what_numpy_said(allocator: Allocator) -> None:
    with pytest.raises(fa.OutOfMemoryError, match=r"(arena|manager) '.': Unable to allocate 2.00 EiB") as error:
        allocator.zeros(2**61, np.uint8)
    assert isinstance(error.value, MemoryError)
    assert isinstance(error.value.__cause__, MemoryError)
    assert fa.get_allocator() is None


def test_what_user_code_raises_inside_comes_through(allocator: Allocator) -> None:
    class Strange:
        def __array__(self, *_: object, **__: object) -> np.ndarray:
            assert fa.get_allocator() is allocator
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        allocator.array(Strange())
    assert fa.get_allocator() is None


def test_a_finalizer_that_closes_the_allocator() -> None:
    """CPython up to 3.11 may collect garbage wherever an object is made: inside of the change of the context, too."""

    class Closing:
        def __del__(self) -> None:
            self.arena.close()

        arena: fa.Arena
        me: "Closing"

    thresholds = gc.get_threshold()
    try:
        for more in range(1, 60):
            gc.disable()
            arena = fa.Scratch("64KiB")
            arena.linspace(0, 1, 3)
            garbage = Closing()
            garbage.me, garbage.arena = garbage, arena
            del garbage
            gc.set_threshold(gc.get_count()[0] + more)
            gc.enable()
            with contextlib.suppress(fa.ClosedError, MemoryError):
                arena.linspace(0, 1, 10)
    finally:
        gc.enable()
        gc.set_threshold(*thresholds)
    gc.collect()
    assert arena.closed


def test_keywords_are_strings(allocator: Allocator) -> None:
    empty = vars(ArrayFunctions)["empty"]
    for name in (2, 12345678901234567890, 3.5, None):
        with pytest.raises(TypeError, match="keywords must be strings"):
            type(empty).__call__(empty, allocator, 3, **{name: 1})


def test_a_method_is_a_method(allocator: Allocator) -> None:
    zeros = allocator.zeros
    assert zeros(3).sum() == 0
    assert type(allocator).zeros(allocator, 3).sum() == 0  # type: ignore[call-overload]
    unbound = type(allocator).zeros
    assert type(unbound).__call__(unbound, allocator, 3, dtype="u1").dtype == np.uint8  # with a tuple and a dict
    assert zeros(*[2], dtype="u1", order="F").shape == (2,)
    assert "numpy.zeros" in type(allocator).zeros.__doc__
    assert repr(type(allocator).zeros) == "<numpy.zeros as a method of an allocator>"
    for wrong in ((), (1,), (None,), (object(), 3)):
        with pytest.raises(TypeError, match="is a method of an Arena or a Manager"):
            type(allocator).zeros(*wrong)


# ---- using_allocator -------------------------------------------------------------------------------------------------


def test_everything_made_inside(allocator: Allocator) -> None:
    before = np.ones(100)
    with fa.using_allocator(allocator) as inside:
        assert inside is allocator
        assert fa.get_allocator() is allocator
        arrays = [
            np.empty(10),
            np.frombuffer(b"12345678" * 8, np.uint64) * 3,
            before + before,
            before.astype(np.float32),
            before.copy(),
            np.sort(before),
            np.concatenate([before, before]),
            before[before > 0],
            np.array(5.0),
            np.linalg.inv(np.eye(3)),
        ]
    assert all(fa.handles(array) for array in arrays)
    assert all(allocator.owns(array) for array in arrays)
    assert not fa.handles(before)
    assert fa.get_allocator() is None
    assert not fa.handles(before + 1)
    assert allocator.live >= len(arrays)


def test_temporaries_are_inside_too(allocator: Allocator) -> None:
    with fa.using_allocator(allocator):
        a = np.ones(1000)
        before = allocator.stats()
        (a + 1) * (a + 2) - np.sqrt(a)
    assert (allocator.stats() - before).allocated >= 3
    assert allocator.live == 1


def test_resize(allocator: Allocator) -> None:
    with fa.using_allocator(allocator):
        array = np.arange(10)
    for size in (1000, 5, 20_000, 1, 0, 50):
        old = array[: min(size, len(array))].copy()
        array.resize(size, refcheck=False)
        assert (array[: len(old)] == old).all()
        assert not array[len(old) :].any()
        assert fa.handles(array)
        assert array.ctypes.data % 64 == 0
    del array
    assert allocator.live == 0


def test_nested_and_reused(allocator: Allocator) -> None:
    other = fa.Scratch("1MiB")
    one, two = fa.using_allocator(allocator), fa.using_allocator(other)
    for _ in range(3):
        with one:
            assert fa.get_allocator() is allocator
            with two:
                assert fa.get_allocator() is other
                with one:
                    assert fa.get_allocator() is allocator
                    with one, one:
                        assert fa.handles(np.empty(1))
                    assert fa.get_allocator() is allocator
                assert fa.get_allocator() is other
                with fa.using_allocator(None):
                    assert fa.get_allocator() is None
                    assert not fa.handles(np.empty(1))
                    with one:
                        assert fa.get_allocator() is allocator
                    assert fa.get_allocator() is None
                assert fa.get_allocator() is other
            assert fa.get_allocator() is allocator
        assert fa.get_allocator() is None


def test_an_exception_leaves(allocator: Allocator) -> None:
    with pytest.raises(KeyError), fa.using_allocator(allocator):
        raise KeyError
    assert fa.get_allocator() is None


@pytest.mark.parametrize("wrong", [0, "witness", np.ones(1), fa.Arena, object()])
def test_only_allocators(wrong: object) -> None:
    with pytest.raises(fa.ArgumentTypeError, match=r"^allocator: expected an Arena, a Manager or None"):
        fa.using_allocator(wrong)  # type: ignore[type-var]
    with pytest.raises(fa.ArgumentTypeError, match=r"^allocator: expected an Arena, a Manager or None"):
        fa.set_allocator(wrong)  # type: ignore[arg-type]


def test_repr(allocator: Allocator) -> None:
    assert repr(fa.using_allocator(allocator)) == f"fastalloc.using_allocator({allocator!r})"
    assert repr(fa.using_allocator(None)) == "fastalloc.using_allocator(None)"
    assert fa.using_allocator(allocator).allocator is allocator


# ---- scopes that are left in the wrong order -------------------------------------------------------------------------


def test_the_outer_scope_ends_first(allocator: Allocator) -> None:
    other = fa.Scratch("1MiB", name="other")
    outer, inner = fa.using_allocator(allocator), fa.using_allocator(other)
    outer.__enter__()
    inner.__enter__()
    label = f"'{allocator.name}'"
    with pytest.raises(fa.ScopeError, match=f"{label} ended inside the scope of scratch arena 'other'"):
        outer.__exit__(None, None, None)
    assert fa.get_allocator() is other
    inner.__exit__(None, None, None)
    assert fa.get_allocator() is None


def test_the_middle_scope_ends_first(allocator: Allocator) -> None:
    other, third = fa.Scratch("1MiB", name="other"), fa.Scratch("1MiB", name="third")
    scopes = [fa.using_allocator(each) for each in (other, allocator, third)]
    for scope in scopes:
        scope.__enter__()
    with pytest.raises(fa.ScopeError):
        scopes[1].__exit__(None, None, None)
    assert fa.get_allocator() is third
    scopes[2].__exit__(None, None, None)
    assert fa.get_allocator() is other
    scopes[0].__exit__(None, None, None)
    assert fa.get_allocator() is None
    with pytest.raises(fa.ScopeError, match="was not entered"):
        scopes[1].__exit__(None, None, None)


def test_a_scope_that_was_never_entered(allocator: Allocator) -> None:
    scope = fa.using_allocator(allocator)
    with pytest.raises(fa.ScopeError, match="was not entered in this thread or context"):
        scope.__exit__(None, None, None)
    with fa.using_allocator(fa.Scratch("1MiB", name="other")) as other:
        with pytest.raises(fa.ScopeError, match="the scope of scratch arena 'other' is the innermost"):
            scope.__exit__(None, None, None)
        assert fa.get_allocator() is other


def test_a_scope_that_only_the_message_knows(allocator: Allocator) -> None:
    """The scope that is in the way is named after the chain was rebuilt without it: nothing but the chain held it."""
    other = fa.Scratch("1MiB", name="other")
    outer, inner = fa.using_allocator(allocator), fa.using_allocator(None)
    outer.__enter__()
    inner.__enter__()
    fa.set_allocator(other)
    with pytest.raises(fa.ScopeError, match="ended inside the scope of NumPy's default allocator: "):
        outer.__exit__(None, None, None)
    assert fa.get_allocator() is other
    inner.__exit__(None, None, None)
    assert fa.get_allocator() is None


def test_a_scope_that_the_garbage_collector_has_taken_apart() -> None:
    """While a cycle is cleared, a weak reference's callback finds what is in it."""

    class Mine(fa.Scratch):
        pass

    found = []

    def callback(_: object) -> None:
        for thing in gc.get_objects():
            if isinstance(thing, ArenaScope | fa.using_allocator):
                found.append(type(thing))
                for name, arguments in (("__repr__", ()), ("__enter__", ()), ("__exit__", (None, None, None))):
                    with contextlib.suppress(AttributeError, fa.FastallocError):
                        getattr(thing, name)(*arguments)

    def cycle(make: Callable[[Mine], object]) -> weakref.ref[object]:
        arena, array = Mine("64KiB"), np.zeros(3)
        kept = [make(arena), array]
        kept.append(kept)
        arena.kept = kept  # type: ignore[attr-defined]
        return weakref.ref(array, callback)

    for make in (Mine.scope, fa.using_allocator):
        reference = cycle(make)
        gc.collect()
        assert reference() is None
    assert found == [ArenaScope, fa.using_allocator]


def test_a_generator_that_is_suspended_inside(allocator: Allocator) -> None:
    def generator() -> object:
        with fa.using_allocator(allocator):
            yield np.empty(3)
            yield np.empty(3)

    running = generator()
    assert fa.handles(next(running))  # type: ignore[call-overload]
    assert fa.get_allocator() is allocator  # documented: it leaves its allocator to its caller
    with fa.using_allocator(None):
        assert not fa.handles(np.empty(3))
    running.close()  # type: ignore[attr-defined]
    assert fa.get_allocator() is None


def test_a_generator_that_goes_on_in_the_wrong_place(allocator: Allocator) -> None:
    def generator() -> object:
        with fa.using_allocator(allocator):
            yield

    running = generator()
    other = fa.Scratch("1MiB", name="other")
    with fa.using_allocator(other):
        next(running)  # type: ignore[call-overload]
        assert fa.get_allocator() is allocator
        scope = fa.using_allocator(other)
        with pytest.raises(fa.ScopeError, match="ended inside the scope of"):
            scope.__exit__(None, None, None)
        assert fa.get_allocator() is allocator
        scope.__enter__()
    assert fa.get_allocator() is allocator
    running.close()  # type: ignore[attr-defined]
    assert fa.get_allocator() is None


# ---- contexts --------------------------------------------------------------------------------------------------------


def test_threads_begin_with_the_default(allocator: Allocator) -> None:
    with fa.using_allocator(allocator), ThreadPoolExecutor(1) as pool:
        assert pool.submit(fa.get_allocator).result() is None
        assert not fa.handles(pool.submit(np.empty, 3).result())

        def inside() -> bool:
            with fa.using_allocator(allocator):
                return fa.handles(np.empty(3))

        assert pool.submit(inside).result()
        assert pool.submit(fa.get_allocator).result() is None
        assert fa.get_allocator() is allocator


def test_one_scope_object_in_many_threads(allocator: Allocator) -> None:
    scope, other = fa.using_allocator(allocator), fa.Scratch("4MiB")
    barrier = threading.Barrier(4)
    wrong: list[object] = []

    def work(number: int) -> None:
        with fa.using_allocator(other if number % 2 else None):
            for _ in range(200):
                with scope:
                    if not allocator.owns(np.empty(4)):
                        wrong.append("not inside")
                if fa.get_allocator() is not (other if number % 2 else None):
                    wrong.append("not restored")
        barrier.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert allocator.live == other.live == 0


def test_a_copied_context_inherits(allocator: Allocator) -> None:
    with fa.using_allocator(allocator):
        context = contextvars.copy_context()
    assert context.run(fa.get_allocator) is allocator
    assert context.run(lambda: fa.handles(np.empty(3)))
    assert fa.get_allocator() is None

    def again() -> None:
        with fa.using_allocator(allocator):
            assert fa.get_allocator() is allocator
            with fa.using_allocator(None), fa.using_allocator(allocator):
                assert fa.get_allocator() is allocator
        assert fa.get_allocator() is allocator

    context.run(again)


def test_a_context_that_outlives_the_arena(allocator: Allocator) -> None:
    made = fa.Scratch("1MiB", name="short-lived")
    with fa.using_allocator(made):
        context = contextvars.copy_context()
    del made
    gc.collect()
    found = context.run(fa.get_allocator)
    assert isinstance(found, fa.OtherAllocator)
    assert repr(found) == "<fastalloc.OtherAllocator 'scratch arena 'short-lived''>"
    assert context.run(lambda: np.ones(10)).sum() == 10


def test_asyncio_tasks(allocator: Allocator) -> None:
    other = fa.Scratch("1MiB")

    async def task(which: Allocator | None) -> None:
        for _ in range(5):
            with fa.using_allocator(which):
                await asyncio.sleep(0)
                assert fa.get_allocator() is which
                assert which is None or which.owns(np.empty(10))
            await asyncio.sleep(0)

    async def main() -> None:
        with fa.using_allocator(other):
            inherited = asyncio.create_task(asyncio.to_thread(fa.get_allocator))
            await asyncio.gather(*(task(which) for which in (allocator, None, other, allocator)))
            assert await inherited is other
            assert fa.get_allocator() is other
        assert fa.get_allocator() is None

    asyncio.run(main())


def test_a_scope_left_in_another_context(allocator: Allocator) -> None:
    scope = fa.using_allocator(allocator)
    context = contextvars.copy_context()
    context.run(scope.__enter__)
    with pytest.raises(fa.ScopeError, match="was not entered in this thread or context"):
        scope.__exit__(None, None, None)
    assert context.run(fa.get_allocator) is allocator
    context.run(scope.__exit__, None, None, None)
    assert context.run(fa.get_allocator) is None


def test_scopes_that_are_never_left_keep_no_arena(allocator: Allocator) -> None:
    """A thread that ends inside, and a generator that is closed elsewhere: only ScopeErrors remain of them."""

    def suspended() -> Iterator[None]:
        with fa.using_allocator(allocator):
            yield

    generator = suspended()
    array = None

    def work() -> None:
        nonlocal array
        fa.using_allocator(allocator).__enter__()
        next(generator)
        assert fa.get_allocator() is allocator
        array = np.ones(100)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with pytest.raises(fa.ScopeError, match="was not entered in this thread or context"):
        generator.close()
    assert array is not None
    assert allocator.owns(array)


@pytest.mark.parametrize("make", [lambda: fa.Polynomial("1MiB"), lambda: fa.Manager()])
def test_an_arena_goes_though_a_scope_was_never_left(make: Callable[[], Allocator]) -> None:
    made = make()
    gone, memory = weakref.ref(made), weakref.ref(made._heap)
    contexts = [contextvars.copy_context() for _ in range(2)]
    for context in contexts:
        context.run(fa.using_allocator(made).__enter__)
        assert context.run(fa.get_allocator) is made
    array = contexts[0].run(np.ones, 100)
    assert made.owns(array)
    contexts.pop()
    del made, context
    gc.collect()
    assert gone() is None
    assert isinstance(contexts[0].run(fa.get_allocator), fa.OtherAllocator)
    assert contexts[0].run(np.ones, 100).sum() == 100
    del contexts
    gc.collect()
    assert memory() is not None
    assert array.sum() == 100
    del array
    assert memory() is None


def test_a_closed_arena_is_still_the_allocator_of_a_scope(allocator: Allocator) -> None:
    with fa.using_allocator(allocator):
        allocator.close()
        assert fa.get_allocator() is allocator
    assert fa.get_allocator() is None


def test_very_deep_scopes(allocator: Allocator) -> None:
    """A context with many scopes that were never left goes without using up the stack."""
    scopes = [fa.using_allocator(allocator), fa.using_allocator(fa.Scratch("1MiB"))]
    context = contextvars.copy_context()

    def enter() -> None:
        for number in range(100_000):
            scopes[number % 2].__enter__()

    context.run(enter)
    del context
    gc.collect()


# ---- set_allocator ---------------------------------------------------------------------------------------------------


def test_set_allocator(allocator: Allocator) -> None:
    assert fa.set_allocator(allocator) is None
    try:
        assert fa.get_allocator() is allocator
        assert fa.handles(np.empty(3))
        other = fa.Scratch("1MiB")
        with fa.using_allocator(other):
            assert fa.set_allocator(None) is other
            assert fa.get_allocator() is None
            assert not fa.handles(np.empty(3))
            assert fa.set_allocator(allocator) is None
            assert fa.set_allocator(None) is allocator
        assert fa.get_allocator() is allocator
        assert fa.set_allocator(other) is allocator
    finally:
        fa.set_allocator(None)
    assert fa.get_allocator() is None


def test_what_is_set_is_kept_alive() -> None:
    fa.set_allocator(fa.Scratch("1MiB", name="kept"))
    try:
        gc.collect()
        kept = fa.get_allocator()
        assert isinstance(kept, fa.Scratch)
        assert kept.owns(np.empty(3))
    finally:
        fa.set_allocator(None)
    gone = weakref.ref(kept)
    del kept
    assert gone() is None


# ---- handlers of others ----------------------------------------------------------------------------------------------


class FakeLibrary:
    """Another library with a data handler: NumPy's default functions under another name, set and taken back by hand."""

    def __init__(self) -> None:
        from numpy import __version__ as version

        core = "numpy._core" if version >= "2" else "numpy.core"
        umath = importlib.import_module(f"{core}._multiarray_umath")
        pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
        pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        table = ctypes.cast(pointer_of(umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
        self.set = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[304])
        self.get = ctypes.PYFUNCTYPE(ctypes.py_object)(table[305])
        size = 128 + 5 * ctypes.sizeof(ctypes.c_void_p)
        self.handler = ctypes.create_string_buffer(ctypes.string_at(pointer_of(self.get(), b"mem_handler"), size), size)
        self.handler[:9] = b"a_friend\x00"
        self.name = ctypes.create_string_buffer(b"mem_handler")
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        self.capsule = new(ctypes.addressof(self.handler), ctypes.addressof(self.name), None)


@pytest.fixture(scope="module")
def foreign() -> FakeLibrary:
    return FakeLibrary()


def test_we_respect_a_foreign_handler(allocator: Allocator, foreign: FakeLibrary) -> None:
    before = foreign.get()
    foreign.set(foreign.capsule)
    try:
        found = fa.get_allocator()
        assert isinstance(found, fa.OtherAllocator)
        assert found.name == "a_friend"
        with fa.using_allocator(allocator):
            assert allocator.owns(np.empty(3))
            with fa.using_allocator(found):
                assert not fa.handles(np.empty(3))
                assert fa.get_allocator().name == "a_friend"  # type: ignore[union-attr]
        assert fa.get_allocator().name == "a_friend"  # type: ignore[union-attr]
        fa.set_allocator(None)
        assert fa.get_allocator() is None
        fa.set_allocator(found)
        assert fa.get_allocator().name == "a_friend"  # type: ignore[union-attr]
    finally:
        foreign.set(before)


def test_a_foreign_handler_that_was_not_taken_back(allocator: Allocator, foreign: FakeLibrary) -> None:
    message = "a_friend is NumPy's current allocator and not of fastalloc"
    with pytest.raises(fa.ScopeError, match=message), fa.using_allocator(allocator):
        foreign.set(foreign.capsule)
    assert fa.get_allocator() is None


# ---- life ------------------------------------------------------------------------------------------------------------


def test_arrays_outlive_everything() -> None:
    def make() -> tuple[np.ndarray, np.ndarray, weakref.ref[object]]:
        arena = fa.Polynomial("4MiB")
        with fa.using_allocator(arena):
            base = np.arange(1000.0)
        return base[10:20:2], base.reshape(10, 100).T, weakref.ref(arena._heap)

    view, other, heap = make()
    gc.collect()
    assert heap() is not None
    assert view.tolist() == [10.0, 12.0, 14.0, 16.0, 18.0]
    assert other[0, 1] == 100.0
    del view
    assert heap() is not None
    del other
    assert heap() is None


def test_an_array_keeps_only_its_own_arena() -> None:
    outer, inner = fa.Witness("1MiB"), fa.Polynomial("1MiB")
    with fa.using_allocator(outer), fa.using_allocator(inner):
        kept = np.ones(10)
    heap = weakref.ref(outer._heap)
    del outer
    assert heap() is None
    assert kept.sum() == 10


def test_arrays_are_freed_by_other_threads(allocator: Allocator) -> None:
    with fa.using_allocator(allocator):
        arrays = [np.full(100, float(number)) for number in range(200)]
    sums: list[float] = []

    def work() -> None:
        while arrays:
            try:
                sums.append(float(arrays.pop().sum()))
            except IndexError:
                break

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sums) == [100.0 * number for number in range(200)]
    assert allocator.live == 0
    assert is_valid(allocator)


def test_retire_inside_a_scope(arena: fa.Arena) -> None:
    other = fa.Scratch("1MiB")
    with fa.using_allocator(arena):
        old = np.full(100, 1.0)
        with fa.using_allocator(other), fa.using_allocator(arena):
            arena.reset(retire=True)
            new = np.full(100, 2.0)
            assert arena.owns(new)
            assert not arena.owns(old)
            assert fa.get_allocator() is arena
        newer = np.full(100, 3.0)
        assert arena.owns(newer)
        assert fa.get_allocator() is arena
    assert fa.get_allocator() is None
    assert [float(array[0]) for array in (old, new, newer)] == [1.0, 2.0, 3.0]


def test_retire_each_round_keeps_nothing_old() -> None:
    arena = fa.Polynomial("1MiB")
    heaps = []
    with fa.using_allocator(arena):
        for _ in range(5):
            result = np.ones(100)
            heaps.append(weakref.ref(arena._heap))
            arena.reset(retire=True)
    assert [heap() is None for heap in heaps] == [True] * 4 + [False]
    del result
    assert heaps[-1]() is None


def test_retire_while_another_thread_is_inside(arena: fa.Arena) -> None:
    inside, go_on = threading.Event(), threading.Event()
    made: list[np.ndarray] = []

    def work() -> None:
        with fa.using_allocator(arena):
            made.append(np.full(10, 1.0))
            inside.set()
            go_on.wait()
            made.append(np.full(10, 2.0))

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    arena.reset(retire=True)
    go_on.set()
    thread.join()
    assert not any(arena.owns(array) for array in made)
    assert all(fa.handles(array) for array in made)
    assert [float(array[0]) for array in made] == [1.0, 2.0]


def test_close_inside_a_scope(allocator: Allocator) -> None:
    with fa.using_allocator(allocator):
        kept = np.full(100, 7.0)
        allocator.close()
        with pytest.raises(MemoryError):
            np.empty(100)
        assert fa.get_allocator() is allocator
    assert fa.get_allocator() is None
    expected = 0.0 if isinstance(allocator, fa.Witness) else 7.0
    assert (kept == expected).all()


def test_views_copies_and_pickles() -> None:
    import copy
    import pickle

    arena = fa.Scratch("1MiB")
    array = arena.arange(10)
    assert fa.handles(array[2:5])
    assert not fa.handles(np.frombuffer(bytes(8)))
    assert not fa.handles(copy.deepcopy(array))
    again = pickle.loads(pickle.dumps(array))
    assert (again == array).all()
    assert not fa.handles(again)
    assert fa.handles(arena.alloc(64).array())
    with pytest.raises(fa.ArgumentTypeError, match=r"^array: "):
        fa.handles([1, 2])


def test_subclasses_and_objects(allocator: Allocator) -> None:
    np.ma.masked_array(np.arange(5), [0, 1, 0, 1, 0]).sum()  # NumPy makes things for ever when it is first used
    with fa.using_allocator(allocator):
        masked = np.ma.masked_array(np.arange(5), [0, 1, 0, 1, 0])
        records = np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)])
        objects = np.array([object(), [], {}], dtype=object)
    assert masked.sum() == 6
    assert records.a[0] == 1
    assert fa.handles(objects)
    del masked, records, objects
    gc.collect()
    assert allocator.live == 0


def test_tracemalloc_sees_the_arrays(allocator: Allocator) -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = allocator.empty(100_000, np.uint8)
        assert tracemalloc.get_traced_memory()[0] - before >= 100_000
        del kept
        assert tracemalloc.get_traced_memory()[0] - before < 50_000
    finally:
        tracemalloc.stop()


def test_a_storm(allocator: Allocator) -> None:
    """Threads that enter, nest, allocate, hand arrays over, and free what others made."""
    other = fa.Scratch("16MiB")
    shared: list[np.ndarray] = []
    wrong: list[object] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(300):
            with fa.using_allocator(allocator if random.random() < 0.5 else other):
                try:
                    array = np.full(int(random.integers(1, 200)), float(seed))
                    if not (array + 1 == seed + 1).all():
                        wrong.append(seed)
                except MemoryError:
                    shared.clear()
                    continue
            shared.append(array)
            if len(shared) > 30:
                try:
                    taken = shared.pop(int(random.integers(0, 20)))
                except IndexError:
                    continue
                if len(set(taken.tolist())) != 1:
                    wrong.append(taken)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    shared.clear()
    assert allocator.live == other.live == 0


# ---- secure_zero -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 20])
def test_secure_zero(size: int) -> None:
    data = bytearray(b"x" * size)
    fa.secure_zero(data)
    assert data == bytes(size)
    array = np.ones((10, 20), order="F")
    fa.secure_zero(array)
    assert not array.any()
    block = fa.Manager().malloc(16)
    memoryview(block)[:] = b"x" * 16
    fa.secure_zero(block)
    fa.secure_zero(memoryview(data)[1:])
    assert bytes(block) == bytes(16)
    block.free()


def test_secure_zero_refuses() -> None:
    frozen = np.ones(3)
    frozen.flags.writeable = False
    for wrong in (b"bytes", memoryview(b"bytes"), frozen, np.ones((4, 4))[:, ::2], memoryview(bytearray(8))[::2]):
        with pytest.raises(fa.ArgumentError, match=r"^buffer: "):
            fa.secure_zero(wrong)
    for wrong in (None, 5, "text", [0]):
        with pytest.raises(fa.ArgumentTypeError, match=r"^buffer: "):
            fa.secure_zero(wrong)
    released = memoryview(bytearray(8))
    released.release()
    with pytest.raises(fa.ArgumentError, match=r"^buffer: "):
        fa.secure_zero(released)
    assert frozen.tolist() == [1, 1, 1]
