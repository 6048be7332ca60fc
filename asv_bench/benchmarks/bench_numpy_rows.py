"""Plain NumPy code as it is, in a scope, and with fastalloc installed; and the arena functions beside NumPy's own."""

from contextlib import ExitStack

import numpy as np

import fastalloc as fa

from .numpy_rows import FUNCTIONS, ROWS

LARGEST = ("256 MiB", "512 MiB")  # make bench-numpy has them


class Rows:
    """The rows of `make bench-numpy`; `out=` is the limit where a row has one."""

    params = [
        ["plain", "scope", "installed", "out="],
        [row for row in ROWS if not any(size in row for size in LARGEST)],
    ]
    param_names = ["allocator", "row"]
    timeout = 300

    def setup(self, allocator: str, row: str) -> None:
        self.open = ExitStack()
        call, limit = ROWS[row]()
        if allocator == "out=" and limit is None:
            raise NotImplementedError
        self.call = limit if allocator == "out=" else call
        if allocator == "installed":
            fa.install()
            self.open.callback(fa.uninstall)
        if allocator == "scope":
            arena = self.open.enter_context(fa.Polynomial("2GiB"))
            self.open.enter_context(fa.using_allocator(arena))
        for _ in range(3):
            self.call()

    def teardown(self, allocator: str, row: str) -> None:
        self.open.close()

    def time_row(self, allocator: str, row: str) -> None:
        self.call()


class Functions:
    """arena.empty and the like, for eight numbers: what the call costs, not the memory."""

    params = [["numpy", "arena"], list(FUNCTIONS)]
    param_names = ["of", "function"]

    def setup(self, of: str, function: str) -> None:
        self.arena = fa.Polynomial("1MiB")
        self.call = getattr(np if of == "numpy" else self.arena, function)
        self.arguments = FUNCTIONS[function]

    def teardown(self, of: str, function: str) -> None:
        self.arena.close()

    def time_function(self, of: str, function: str) -> None:
        if self.call(*self.arguments).dtype != np.float64 and function != "arange":
            raise AssertionError
