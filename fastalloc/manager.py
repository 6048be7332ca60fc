"""The manager: a small heap for many small objects, which zeroes every byte before it is freed."""

import weakref
from types import TracebackType
from typing import Any, Self

from fastalloc import _binding
from fastalloc.arena import address_of, check_flag, check_name
from fastalloc.arrays import ArrayFunctions
from fastalloc.errors import ArgumentError
from fastalloc.stats import ManagerStats, Measure, Measured
from fastalloc.units import Size, format_size, milliseconds, parse_size

# As in fastalloc.h: blocks of the pool, and from where on blocks may be mapped.
_MAX_BLOCK_SIZE = 8 << 10
_MIN_LARGE_SIZE, _MAX_LARGE_SIZE = _MAX_BLOCK_SIZE + 1, 1 << 30


class Manager(_binding.ManagerBase, ArrayFunctions, Measured[ManagerStats]):
    """malloc, calloc, realloc and free over a pool of small blocks, malloc, and a cache of large blocks.

    Parameters
    ----------
    pool_blocks : int
        Blocks in the pool; 0 for no pool.
    block_size : int or str
        Bytes in a block of the pool: a multiple of 16, at most 8 KiB.
    large_size : int or str, optional
        From this size on, blocks are mapped by the kernel and cached when they are freed: above 8 KiB, at most
        1 GiB. Unless given: 64 KiB.
    cache : int or str
        Bytes of freed large blocks that stay resident for reuse.
    cache_age : float or None
        Seconds after which a cached block is given back; None: never.
    limit : int or str, optional
        Bytes that live blocks may ask for in all, exactly.
    hardened : bool
        Whether misuse of the memory by C code that is given it (extensions, NumPy, ctypes) is prevented, or ends the
        process with one line that names its kind and the address. See the notes.
    name : str, optional
        For messages.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument is out of its range or of a wrong type.
    OutOfMemoryError
        If there is no memory for the pool.
    UnsupportedError
        If `hardened`, and the system has no random bytes.

    Notes
    -----
    All methods may be called by any thread at any time. Blocks are zeroed when they are freed. A manager is a context
    manager: its end closes it.

    A hardened manager has no pool. Each block stands between canaries, bytes that nobody can guess, and above 8 KiB
    between guard pages; whoever writes over a canary is found when the block is freed or resized, by `check`, and when
    the manager goes. A freed block is zero, waits before it is used again, and is looked at then. A block has exactly
    the bytes that were asked for. Above 8 KiB it costs two system calls, and two of the kernel's 65,530 mappings.

    Examples
    --------
    >>> import fastalloc as fa
    >>> manager = fa.Manager()
    >>> block = manager.malloc(32)
    >>> memoryview(block)[:5] = b"hello"
    >>> block = manager.realloc(block, "1KiB")
    >>> bytes(block)[:5]
    b'hello'
    >>> manager.free(block)
    """

    __slots__ = ("__weakref__", "_final", "_hardened", "_limit", "_measure", "_name", "_remains")

    _final: ManagerStats | None
    _remains: weakref.ref[_binding.Heap] | None
    _name: str | None

    def __new__(cls, *_args: Any, **_options: Any) -> Self:  # noqa: D102
        self = super().__new__(cls)
        self._name, self._final, self._remains = None, None, None
        self._hardened, self._limit, self._measure = False, None, Measure()
        return self

    def __init__(
        self,
        pool_blocks: int = 8192,
        block_size: Size = 128,
        *,
        large_size: Size | None = None,
        cache: Size = "64MiB",
        cache_age: float | None = 10.0,
        limit: Size | None = None,
        hardened: bool = False,
        name: str | None = None,
    ) -> None:
        size = parse_size(block_size, "block_size", minimum=16, maximum=_MAX_BLOCK_SIZE)
        if size % 16:
            raise ArgumentError(f"block_size: {size} is not a multiple of 16")
        options = {
            "pool_blocks": parse_size(pool_blocks, "pool_blocks", maximum=2**40),
            "block_size": size,
            "large_size": None
            if large_size is None
            else parse_size(large_size, "large_size", _MIN_LARGE_SIZE, _MAX_LARGE_SIZE),
            "cache_limit": parse_size(cache, "cache"),
            "cache_age": milliseconds(cache_age, "cache_age"),
            "limit": 0 if limit is None else parse_size(limit, "limit", minimum=1),
        }
        label = "manager" + ("" if name is None else f" {check_name(name)!r}")
        if self._memory is not None or self._final is not None:
            msg = "__init__: the manager has been made already"
            raise ArgumentError(msg)
        self._name = name
        self._hardened = check_flag(hardened, "hardened")
        self._limit = options["limit"] or None
        self._adopt(_binding.create_manager(label, hardened, options))

    @property
    def name(self) -> str | None:
        """As given."""
        return self._name

    @property
    def limit(self) -> int | None:
        """Bytes that live blocks may ask for in all."""
        return self._limit

    @property
    def hardened(self) -> bool:
        """As given."""
        return self._hardened

    @property
    def used(self) -> int:
        """Bytes held by live blocks, rounding included."""
        return self.stats().used

    @property
    def peak(self) -> int:
        """The largest `used` so far."""
        return self.stats().peak

    @property
    def live(self) -> int:
        """Blocks and arrays that are live."""
        return self.stats().live

    def owns(self, thing: object) -> bool:
        """Whether something is a live block (or the array in one) of this manager.

        Parameters
        ----------
        thing : array, Block, buffer, or int
            An int is an address. It must be where a block begins: a view from the middle of an array is not known.

        Raises
        ------
        ArgumentTypeError
            If it is none of these.
        ClosedError
            If the manager is closed.
        """
        return _binding.manager_owns(self._heap, address_of(thing))

    def check(self) -> None:
        """Look at every block of a hardened manager, live or freed, for damage.

        The first damage ends the process with one line. Reads all memory that the manager ever used; meanwhile other
        threads wait for it.

        Raises
        ------
        UnsupportedError
            If the manager is not hardened.
        ClosedError
            If the manager is closed.
        """
        _binding.manager_check(self._heap)

    def trim(self, keep: Size = 0) -> None:
        """Give cached large blocks back to the system, all but `keep` bytes of them.

        Raises
        ------
        ArgumentError
            If `keep` is no size.
        ClosedError
            If the manager is closed.
        """
        _binding.manager_trim(self._heap, parse_size(keep, "keep"))

    def close(self) -> None:
        """Refuse new allocations from now on, and let go of the memory. Idempotent.

        Blocks and arrays that are alive stay usable, and the memory goes when the last of them dies.
        """
        self._let_go()

    def __enter__(self) -> Self:
        self._heap  # noqa: B018 - raises ClosedError
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        start = "<fastalloc.Manager" + ("" if self._name is None else f" {self._name!r}")
        if self.closed:
            return f"{start}, closed>"
        stats = self.stats()
        return f"{start}: {format_size(stats.used)} used, {stats.live:,} live, {format_size(stats.cached)} cached>"

    def _read_stats(self, heap: _binding.Heap) -> ManagerStats:
        return ManagerStats(**_binding.manager_stats(heap))

    def _restart_peak(self) -> tuple[int, int]:
        heap = self._memory
        return (0, 0) if heap is None else _binding.manager_restart_peak(heap)
