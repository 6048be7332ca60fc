"""Expressions with temporaries: plain NumPy code under each allocator, beside the same with preallocated `out=`."""

from typing import Any

import numpy as np

from .common import HANDLERS, KIB, MIB, make_peer


class Temporaries:
    """a * b + sqrt(a) * b: three temporaries and a result. `out=` is the limit: it has no allocation at all."""

    # 4 KiB comes from malloc's bins; 256 KiB and 16 MiB cross its threshold for mapping, which moves; from 33 MiB on
    # glibc maps and unmaps every time.
    params = [["out=", *HANDLERS], [4 * KIB, 256 * KIB, 16 * MIB, 64 * MIB]]
    param_names = ["allocator", "bytes"]
    timeout = 300

    def setup(self, allocator: str, nbytes: int) -> None:
        count = nbytes // 8
        self.a = np.linspace(1.0, 2.0, count)
        self.b = np.linspace(2.0, 3.0, count)
        self.product, self.root = np.zeros(count), np.zeros(count)
        self.expected = self.expression()
        self.peer = make_peer("numpy" if allocator == "out=" else allocator, 8 * nbytes)
        self.run = self.with_out if allocator == "out=" else self.with_temporaries
        for _ in range(3):
            self.run()
        if not np.array_equal(self.run(), self.expected):
            raise AssertionError

    def teardown(self, allocator: str, nbytes: int) -> None:
        self.peer.close()

    def expression(self) -> Any:
        return self.a * self.b + np.sqrt(self.a) * self.b

    def with_temporaries(self) -> Any:
        with self.peer.using():
            return self.expression()

    def with_out(self) -> Any:
        np.multiply(self.a, self.b, out=self.product)
        np.sqrt(self.a, out=self.root)
        np.multiply(self.root, self.b, out=self.root)
        return np.add(self.product, self.root, out=self.product)

    def time_expression(self, allocator: str, nbytes: int) -> None:
        if self.run()[0] != self.expected[0]:
            raise AssertionError


class Copies:
    """What a prover does between its big steps: copies, transposes, casts and concatenations."""

    params = [list(HANDLERS)]
    param_names = ["allocator"]

    def setup(self, allocator: str) -> None:
        self.matrix = np.arange(1 << 20, dtype=np.uint32).reshape(8, 1 << 17)
        self.peer = make_peer(allocator, 256 * MIB)
        self.time_copies(allocator)

    def teardown(self, allocator: str) -> None:
        self.peer.close()

    def time_copies(self, allocator: str) -> None:
        with self.peer.using():
            columns = np.ascontiguousarray(self.matrix.T)
            wide = columns.astype(np.uint64)
            doubled = np.concatenate([wide, wide])
        if doubled[-1, -1] != (1 << 20) - 1:
            raise AssertionError
