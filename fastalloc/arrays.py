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

    __slots__ = ()

    if TYPE_CHECKING:
        arange = staticmethod(np.arange)
        array = staticmethod(np.array)
        concatenate = staticmethod(np.concatenate)
        copy = staticmethod(np.copy)
        empty = staticmethod(np.empty)
        empty_like = staticmethod(np.empty_like)
        full = staticmethod(np.full)
        full_like = staticmethod(np.full_like)
        linspace = staticmethod(np.linspace)
        ones = staticmethod(np.ones)
        ones_like = staticmethod(np.ones_like)
        stack = staticmethod(np.stack)
        zeros = staticmethod(np.zeros)
        zeros_like = staticmethod(np.zeros_like)
    else:
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
