"""NumPy's array-making functions as methods of arenas and managers."""

from typing import TYPE_CHECKING

from fastalloc._binding import Routed

if TYPE_CHECKING:
    import numpy as np


class ArrayFunctions:
    """NumPy's functions, signatures and all, with the data of the new array in this arena or manager.

    The arrays are ordinary NumPy arrays. Each keeps the memory it lives in alive. Temporaries that the functions need
    are there too. The data is aligned to 64 bytes, or to the arena's alignment if that is more.

    Raises
    ------
    OutOfMemoryError
        If there is no room; it is also a MemoryError, as NumPy's own.
    ClosedError
        If the arena or manager is closed.
    """

    if TYPE_CHECKING:

        def _signatures(self) -> None:
            """As attributes of the instance they keep NumPy's overloads."""
            self.arange = np.arange
            self.array = np.array
            self.concatenate = np.concatenate
            self.copy = np.copy
            self.empty = np.empty
            self.empty_like = np.empty_like
            self.full = np.full
            self.full_like = np.full_like
            self.linspace = np.linspace
            self.ones = np.ones
            self.ones_like = np.ones_like
            self.stack = np.stack
            self.zeros = np.zeros
            self.zeros_like = np.zeros_like
    else:
        __slots__ = ()
        arange = Routed("arange")
        array = Routed("array")
        concatenate = Routed("concatenate")
        copy = Routed("copy")
        empty = Routed("empty")
        empty_like = Routed("empty_like")
        full = Routed("full")
        full_like = Routed("full_like")
        linspace = Routed("linspace")
        ones = Routed("ones")
        ones_like = Routed("ones_like")
        stack = Routed("stack")
        zeros = Routed("zeros")
        zeros_like = Routed("zeros_like")
