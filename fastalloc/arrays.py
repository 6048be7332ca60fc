"""NumPy's array-making functions as methods of arenas and managers."""

from typing import TYPE_CHECKING, Any

from fastalloc._binding import Routed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class ArrayFunctions:
    """NumPy's functions, signatures and all, with the data of the new array in this arena or manager.

    The arrays are ordinary NumPy arrays. Each keeps the memory it lives in alive, for its views too; as with any array,
    that is not so for views of one that is resized with refcheck=False. Temporaries that the functions need are there
    too. The data is aligned to 64 bytes, or to the arena's alignment if that is more.

    `asarray` gives what is in this arena or manager already as it is, and copies what is elsewhere: with copy=False
    that is a ValueError.

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
            self.asarray = np.asarray
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
            self._frombuffer = np.frombuffer
    else:
        __slots__ = ()
        arange = Routed("arange")
        array = Routed("array")
        asarray = Routed("asarray", owned=True)
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
        _frombuffer = Routed("frombuffer", view=True)

    def frombuffer_copy(
        self, buffer: Any, dtype: "npt.DTypeLike" = float, count: int = -1, offset: int = 0
    ) -> "npt.NDArray[Any]":
        """The items of a buffer, copied into a new one-dimensional array: numpy.frombuffer's arguments, and its errors.

        Parameters
        ----------
        buffer : bytes, bytearray, memoryview, Block or other buffer
            What is copied. It is not kept alive.
        dtype : numpy dtype
            Of the items.
        count : int
            Items to copy; -1 for all.
        offset : int
            Bytes to skip.

        Returns
        -------
        numpy.ndarray
            Writable, in this arena or manager.

        Raises
        ------
        ValueError
            If the buffer is too small, or its size not a multiple of the item's.
        OutOfMemoryError, ClosedError
            As the others.

        Examples
        --------
        >>> import fastalloc as fa
        >>> with fa.Witness("64KiB") as witness:
        ...     key = witness.frombuffer_copy(bytes(range(8)), "<u4")
        ...     print(key.tolist(), witness.owns(key))
        [50462976, 117835012] True
        """
        return self.array(self._frombuffer(buffer, dtype, count, offset))
