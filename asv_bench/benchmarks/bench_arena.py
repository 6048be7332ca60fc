"""Arrays and raw blocks from an arena, one by one and in rounds."""

from typing import Any

import numpy as np

import fastalloc as fa

from .common import LARGE, MAKERS, MEDIUM, MIB, SMALL, make_peer, touch


class Empty:
    """One array made and dropped: the cost of having memory, without using it."""

    params = [list(MAKERS), [64, SMALL, MEDIUM, LARGE]]
    param_names = ["allocator", "bytes"]

    def setup(self, allocator: str, nbytes: int) -> None:
        self.peer = make_peer(allocator, nbytes)
        touch(self.peer.empty(nbytes // 8))

    def teardown(self, allocator: str, nbytes: int) -> None:
        self.peer.close()

    def time_empty(self, allocator: str, nbytes: int) -> None:
        if self.peer.empty(nbytes // 8).nbytes != nbytes:
            raise AssertionError


class Rounds:
    """A prover's rhythm: vectors of many sizes made, written, and dropped in another order, round after round."""

    params = [list(MAKERS)]
    param_names = ["allocator"]
    sizes = [1 << power for power in (16, 18, 17, 20, 16, 19, 21, 18)]  # elements of 8 bytes: 512 KiB to 16 MiB

    def setup(self, allocator: str) -> None:
        self.peer = make_peer(allocator, 8 * sum(self.sizes) * 2)
        self.time_round(allocator)

    def teardown(self, allocator: str) -> None:
        self.peer.close()

    def time_round(self, allocator: str) -> None:
        vectors = []
        for count in self.sizes:
            vector = self.peer.empty(count)
            touch(vector)
            vectors.append(vector)
        while vectors:
            vectors.pop(len(vectors) // 2)


class Scope:
    """Entering and leaving: a scope, an allocator for NumPy, and Python's own `with` of an object that does nothing."""

    def setup(self) -> None:
        self.arena = fa.Scratch(16 * MIB)
        self.using = fa.using_allocator(self.arena)

        class Nothing:
            def __enter__(self) -> None:
                pass

            def __exit__(self, *_: object) -> None:
                pass

        self.nothing = Nothing()

    def teardown(self) -> None:
        self.arena.close()

    def time_with_nothing(self) -> None:
        with self.nothing:
            pass

    def time_with_scope(self) -> None:
        with self.arena.scope():
            pass

    def time_with_using_allocator(self) -> None:
        with fa.using_allocator(self.arena):
            pass

    def time_with_100_arrays_in_a_scope(self) -> None:
        with self.arena.scope() as scratch:
            for _ in range(100):
                scratch.empty(8, np.uint64)


class Reset:
    """Reset of an arena that has handed out few or many blocks: it must not matter."""

    params = [100, 100_000]
    param_names = ["blocks"]
    number = 1

    def setup(self, blocks: int) -> None:
        self.arena = fa.Scratch(64 * MIB)
        held: list[Any] = [self.arena.alloc(16) for _ in range(blocks)]
        del held

    def teardown(self, blocks: int) -> None:
        self.arena.close()

    def time_reset(self, blocks: int) -> None:
        self.arena.reset()
