"""What the benchmarks share: the ways to have an array's memory, each ready and warm."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np

import fastalloc as fa

KIB, MIB = 1 << 10, 1 << 20

# In bytes. 4 KiB is a page; from 128 KiB on glibc maps and unmaps until it has learnt better, up to 32 MiB at most;
# from 4 MiB on NumPy asks for huge pages.
SMALL, MEDIUM, LARGE = 4 * KIB, MIB, 64 * MIB


class Peer:
    """One way to have memory for arrays. `using()` is the context in which plain NumPy code uses it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    @contextlib.contextmanager
    def using(self) -> Iterator[Self]:
        yield self

    def close(self) -> None:
        """Gives the memory back."""


class NumPy(Peer):
    """NumPy's own allocator: malloc."""

    def empty(self, count: int) -> Any:
        return np.empty(count, np.uint64)


class OfArena(Peer):
    """A fastalloc arena, through NumPy's data-allocation hook."""

    kind: type[fa.Arena] = fa.Polynomial

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.arena = self.kind(capacity + 16 * MIB)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def using(self) -> Iterator[Self]:
        with fa.using_allocator(self.arena):
            yield self

    def empty(self, count: int) -> Any:
        return self.arena.empty(count, np.uint64)

    def close(self) -> None:
        self.arena.close()


class OfScratch(OfArena):
    """Likewise, a scratch arena."""

    kind = fa.Scratch


class OfWitness(OfArena):
    """Likewise, a witness arena: it zeroes what is freed."""

    kind = fa.Witness


class OfManager(Peer):
    """A fastalloc manager: pool, cache of large blocks, everything zeroed before it is freed."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.manager = fa.Manager(cache=2 * capacity)

    @contextlib.contextmanager
    def using(self) -> Iterator[Self]:
        with fa.using_allocator(self.manager):
            yield self

    def empty(self, count: int) -> Any:
        with fa.using_allocator(self.manager):
            return np.empty(count, np.uint64)

    def close(self) -> None:
        self.manager.close()


class PyArrow(Peer):
    """A buffer of PyArrow's default pool, seen as an array."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        import pyarrow as pa

        self.allocate: Callable[[int], Any] = pa.allocate_buffer

    def empty(self, count: int) -> Any:
        return np.frombuffer(self.allocate(8 * count), np.uint64)


# Whose memory plain NumPy code can be made to use, and all that can make one array.
HANDLERS: dict[str, type[Peer]] = {
    "numpy": NumPy,
    "polynomial": OfArena,
    "scratch": OfScratch,
    "witness": OfWitness,
    "manager": OfManager,
}
MAKERS: dict[str, type[Peer]] = HANDLERS | {"pyarrow": PyArrow}


def make_peer(name: str, capacity: int) -> Peer:
    """The peer, or asv's way to skip a benchmark where it is not installed."""
    try:
        return MAKERS[name](capacity)
    except ImportError as error:
        raise NotImplementedError(f"{name} is not installed") from error


def touch(array: Any) -> None:
    """Fault all pages of the array in."""
    array.view(np.uint8)[:: 4 * KIB] = 0
