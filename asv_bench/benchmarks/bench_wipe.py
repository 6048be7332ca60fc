"""Zeroing secrets: the cost follows the bytes that were used, not the capacity."""

import ctypes

import numpy as np

import fastalloc as fa

from .common import KIB, MIB


class Wipe:
    """A witness arena of 128 MiB of which some was used."""

    params = [KIB, MIB, 64 * MIB]
    param_names = ["used"]
    number = 1
    warmup_time = 0

    def setup(self, used: int) -> None:
        self.arena = fa.Witness(128 * MIB)
        self.array = self.arena.full(used, 255, np.uint8)

    def teardown(self, used: int) -> None:
        if self.array.any():
            raise AssertionError
        del self.array
        self.arena.close()

    def time_wipe(self, used: int) -> None:
        self.arena.wipe()


class SecureZero:
    """The same bytes, zeroed where they lie."""

    params = [["secure_zero", "memset", "ndarray.fill"], [32, KIB, MIB, 64 * MIB]]
    param_names = ["function", "bytes"]

    def setup(self, function: str, nbytes: int) -> None:
        self.array = np.full(nbytes, 255, np.uint8)
        address = self.array.ctypes.data
        self.zero = {
            "secure_zero": lambda: fa.secure_zero(self.array),
            "memset": lambda: ctypes.memset(address, 0, nbytes),
            "ndarray.fill": lambda: self.array.fill(0),
        }[function]

    def teardown(self, function: str, nbytes: int) -> None:
        if self.array.any():
            raise AssertionError

    def time_zero(self, function: str, nbytes: int) -> None:
        self.zero()
