"""What NumPy is measured with.

Each row makes a call and, where there is one, the same with preallocated `out=`. The functions are called with so few
numbers that the call counts, not the memory.
"""

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

Call = Callable[[], object]


def small(function: Call) -> tuple[Call, None]:
    return function, None


def add(nbytes: int) -> tuple[Call, None]:
    a, b = np.ones(nbytes // 8), np.ones(nbytes // 8)
    return (lambda: a + b), None


def expression(mebibytes: int) -> tuple[Call, Call]:
    size = mebibytes << 17
    a, b = np.full(size, 1.5), np.full(size, 2.5)
    first, second = np.full(size, 0.0), np.full(size, 0.0)

    def limit() -> None:
        np.multiply(a, b, out=first)
        np.sqrt(a, out=second)
        np.multiply(second, b, out=second)
        np.add(first, second, out=first)

    return (lambda: a * b + np.sqrt(a) * b), limit


ALIVE = 4


def mixed(threads: int) -> tuple[Call, Call]:
    """Sizes from 64 KiB to 48 MiB, log-uniform, four alive at a time; the limit computes into four rooms in turn.

    Into one room it would take a fifth less: that is what memory costs that is not in a cache, whoever allocates it.
    """
    sizes = [int(2 ** random.Random(seed).uniform(13, 22.58)) for seed in range(60)]
    source = [np.full(max(sizes), 1.0) for _ in range(threads)]
    rooms: list[list[np.ndarray]] = []

    def loop(number: int) -> None:
        kept: list[np.ndarray] = []
        for size in sizes:
            kept.append((source[number][:size] + 1.0) * 2.0)
            del kept[: 1 - ALIVE]

    def in_rooms(number: int) -> None:
        for i, size in enumerate(sizes):
            room = rooms[number][i % ALIVE][:size]
            np.add(source[number][:size], 1.0, out=room)
            np.multiply(room, 2.0, out=room)

    def on_threads(function: Callable[[int], None]) -> None:
        workers = [threading.Thread(target=function, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def limit() -> None:
        while len(rooms) < threads:
            rooms.append([np.full(max(sizes), 0.0) for _ in range(ALIVE)])
        on_threads(in_rooms) if threads > 1 else in_rooms(0)

    return (lambda: on_threads(loop) if threads > 1 else loop(0)), limit


def zeros(*, touched: bool) -> tuple[Call, None]:
    def call() -> None:
        array = np.zeros(64 << 20, np.uint8)
        if touched:
            array[::4096] = 1

    return call, None


def galois_product() -> tuple[Call, None]:
    """Two polynomials of 2^19 coefficients over a 31-bit field, by number-theoretic transforms."""
    import galois

    modulus, size = 15 * 2**27 + 1, 1 << 20
    random = np.random.default_rng(1)
    a, b = (random.integers(0, modulus, size // 2, np.uint32) for _ in range(2))

    def call() -> None:
        product = galois.ntt(a, size, modulus) * galois.ntt(b, size, modulus)
        galois.intt(product, size, modulus)

    return call, None


def prove() -> tuple[Call, None]:
    """The STARK of examples/, small, on plain NumPy."""
    from fastalloc.examples import stark

    secret = np.arange(1, 9, dtype=np.uint32)
    return (lambda: stark.prove(secret, 256)), None


ROWS: dict[str, Callable[[], tuple[Call, Call | None]]] = {
    "np.empty(8)": lambda: small(lambda: np.empty(8)),
    "np.empty(1000)": lambda: small(lambda: np.empty(1000)),
    "a+b 64 B": lambda: add(64),
    "a+b 1 KiB": lambda: add(1 << 10),
    "a+b 4 KiB": lambda: add(4 << 10),
    "a+b 16 KiB": lambda: add(16 << 10),
    "a+b 64 KiB": lambda: add(64 << 10),
    "a+b 256 KiB": lambda: add(256 << 10),
    "a+b 1 MiB": lambda: add(1 << 20),
    "a*b+sqrt(a)*b 16 MiB": lambda: expression(16),
    "a*b+sqrt(a)*b 33 MiB": lambda: expression(33),
    "a*b+sqrt(a)*b 64 MiB": lambda: expression(64),
    "a*b+sqrt(a)*b 256 MiB": lambda: expression(256),
    "a*b+sqrt(a)*b 512 MiB": lambda: expression(512),
    "mixed, 1 thread": lambda: mixed(1),
    "mixed, 2 threads": lambda: mixed(2),  # new threads are outside of the scope
    "np.zeros(64 MiB) untouched": lambda: zeros(touched=False),
    "np.zeros(64 MiB) touched": lambda: zeros(touched=True),
    "galois product 2^20": galois_product,
    "STARK of 256 rounds": prove,
}

EIGHT = np.ones(8)
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "arange": (8,),
    "array": ([1.0, 2.0, 3.0],),
    "asarray": ([1.0, 2.0, 3.0],),
    "concatenate": ((EIGHT, EIGHT),),
    "copy": (EIGHT,),
    "empty": (8,),
    "empty_like": (EIGHT,),
    "full": (8, 1.0),
    "linspace": (0, 1, 8),
    "ones": (8,),
    "zeros": (8,),
    "zeros_like": (EIGHT,),
}
