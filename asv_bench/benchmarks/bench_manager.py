"""Small and large blocks from a manager, beside bytearray: what Python programs use for raw bytes."""

import random
from collections.abc import Callable
from typing import Any

import fastalloc as fa

from .common import KIB, MIB


class Blocks:
    """One block made and freed."""

    params = [["manager", "arena", "bytearray"], [32, 128, 4 * KIB, MIB]]
    param_names = ["allocator", "bytes"]

    def setup(self, allocator: str, nbytes: int) -> None:
        self.close: Callable[[], Any] = lambda: None
        self.make: Callable[[int], Any] = bytearray
        if allocator == "manager":
            manager = fa.Manager()
            self.make, self.close = manager.malloc, manager.close
        elif allocator == "arena":
            arena = fa.Polynomial(16 * MIB)
            self.make, self.close = arena.alloc, arena.close

    def teardown(self, allocator: str, nbytes: int) -> None:
        self.close()

    def time_make_and_drop(self, allocator: str, nbytes: int) -> None:
        if len(self.make(nbytes)) != nbytes:
            raise AssertionError


class Churn:
    """4,096 live blocks of 1 to 128 bytes, of which a random one is replaced, 10,000 times."""

    params = [["manager", "bytearray"]]
    param_names = ["allocator"]

    def setup(self, allocator: str) -> None:
        self.manager = fa.Manager()
        self.make: Callable[[int], Any] = self.manager.malloc if allocator == "manager" else bytearray
        dice = random.Random(1)
        self.steps = [(dice.randrange(4096), dice.randrange(1, 129)) for _ in range(10_000)]
        self.live = [self.make(64) for _ in range(4096)]

    def teardown(self, allocator: str) -> None:
        self.live.clear()
        self.manager.close()

    def time_churn(self, allocator: str) -> None:
        for slot, size in self.steps:
            self.live[slot] = self.make(size)


class Realloc:
    """A block grown from 1 MiB to 64 MiB in doublings: pages move, bytes do not."""

    params = [["manager", "bytearray"]]
    param_names = ["allocator"]

    def setup(self, allocator: str) -> None:
        self.manager = fa.Manager()

    def teardown(self, allocator: str) -> None:
        self.manager.close()

    def time_grow(self, allocator: str) -> None:
        size = MIB
        block: Any = self.manager.malloc(size) if allocator == "manager" else bytearray(size)
        while size < 64 * MIB:
            size *= 2
            if allocator == "manager":
                block = self.manager.realloc(block, size)
            else:
                block.extend(bytes(size - len(block)))
        if len(block) != size:
            raise AssertionError
