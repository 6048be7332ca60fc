"""NumPy's array data from an arena or a manager: for a block of code, or from now on."""

from typing import Any

from fastalloc import _binding
from fastalloc._binding import OtherAllocator, get_allocator, set_allocator, using_allocator
from fastalloc.arena import address_of
from fastalloc.errors import ArgumentError, ArgumentTypeError

__all__ = ["OtherAllocator", "get_allocator", "handles", "secure_zero", "set_allocator", "using_allocator"]


def handles(array: object) -> bool:
    """Whether an array's data, or that of the array it is a view of, is in memory of fastalloc.

    Parameters
    ----------
    array : numpy.ndarray
        A view counts as what it is a view of.

    Raises
    ------
    ArgumentTypeError
        If it is no array.

    Examples
    --------
    >>> import numpy as np, fastalloc as fa
    >>> with fa.Scratch("1MiB") as scratch:
    ...     fa.handles(scratch.zeros(3)), fa.handles(scratch.zeros(3)[1:]), fa.handles(np.zeros(3))
    (True, True, False)
    """
    import numpy as np

    if not isinstance(array, np.ndarray):
        raise ArgumentTypeError(f"array: expected a numpy.ndarray, not {type(array).__name__}")
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return _binding.any_owns(address_of(owner))


def secure_zero(buffer: Any) -> None:
    """Overwrite a buffer with zeros, in a way that no compiler removes.

    Parameters
    ----------
    buffer : writable contiguous buffer
        A bytearray, Block, memoryview, array.array, NumPy array, ... Copies of the data elsewhere are not found.

    Raises
    ------
    ArgumentTypeError
        If it is no buffer, such as an int or a str.
    ArgumentError
        If it cannot be written (bytes, a read-only array) or is not contiguous.
    """
    try:
        _binding.secure_zero(buffer)
    except TypeError:
        raise ArgumentTypeError(f"buffer: expected a writable buffer, not {type(buffer).__name__}") from None
    except (BufferError, ValueError) as error:
        msg = f"buffer: this {type(buffer).__name__} is read-only, not contiguous, or gone ({error})"
        raise ArgumentError(msg) from None
