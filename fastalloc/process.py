"""NumPy's array data for the whole process."""

from fastalloc import _binding
from fastalloc._binding import InstalledAllocator, uninstall
from fastalloc.arena import Arena, choose
from fastalloc.errors import ArgumentTypeError
from fastalloc.manager import Manager
from fastalloc.stats import ArenaStats, ManagerStats, NumpyStats
from fastalloc.units import Size, milliseconds, parse_size

__all__ = ["InstalledAllocator", "install", "numpy_stats", "uninstall"]

_HUGE_PAGES = {"off": False, "transparent": True}


def install(
    allocator: Arena | Manager | InstalledAllocator | None = None,
    *,
    large_cache: Size = "1GiB",
    decay: float | None = 10.0,
    huge_pages: str = "transparent",
) -> Arena | Manager | InstalledAllocator:
    """Let the data of every NumPy array of the process come from fastalloc, from now on.

    In all threads, executors, tasks and contexts, whether they are there already or not. Arrays that are there
    already stay where they are, and may be resized and freed as ever. Scopes of using_allocator go on top of it.

    Parameters
    ----------
    allocator : Arena or Manager, optional
        What to allocate from. Unless given, a heap made for arrays: small blocks from stacks of their size, large ones
        from a cache of resident pages, large zeros from pages not touched yet; every block aligned to 64 bytes.
    large_cache : int or str
        Bytes of freed large blocks that stay resident for reuse. An Arena or Manager has a budget of its own.
    decay : float or None
        Seconds after which memory that no array uses is given back; None: never. It is looked for when arrays are
        made and freed, and by a thread that is there while there is something to give back.
    huge_pages : {"transparent", "off"}
        Whether to ask the kernel for huge pages.

    Returns
    -------
    Arena, Manager or InstalledAllocator
        What is installed. Outside of scopes get_allocator() tells it, too.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument is out of its range or of a wrong type.
    ClosedError
        If the allocator is closed.
    UnsupportedError
        If this NumPy's default handler is of another version than known.

    Notes
    -----
    Calling it again switches: new arrays come from the new allocator, or from the same one with the new budgets. An
    Arena or Manager is kept alive until it is replaced, and its memory until its last array is dead; if it is full,
    arrays are a MemoryError.
    The heap made for arrays passes what it cannot give on to NumPy's own functions.

    Examples
    --------
    >>> import fastalloc as fa, numpy as np
    >>> fa.install()
    <fastalloc.InstalledAllocator>
    >>> array = np.ones(1000)
    >>> fa.handles(array)
    True
    >>> fa.uninstall()
    >>> int(array.sum()), fa.handles(np.ones(1000))
    (1000, False)
    """
    huge = choose(huge_pages, "huge_pages", _HUGE_PAGES)
    if huge is None:
        raise ArgumentTypeError("huge_pages: expected 'off' or 'transparent', not None")
    budget, age = parse_size(large_cache, "large_cache"), milliseconds(decay, "decay")
    return _binding.install(allocator, budget, age, bool(huge))


def numpy_stats() -> NumpyStats | ArenaStats | ManagerStats:
    """Bytes and arrays of what install() installed.

    Returns
    -------
    NumpyStats
        Of the heap made for arrays; all zero if it was never installed.
    ArenaStats or ManagerStats
        If an Arena or a Manager is installed: all that is in it.
    """
    stats = NumpyStats(**_binding.numpy_stats())
    allocator = _binding.installed()
    return allocator.stats() if isinstance(allocator, Arena | Manager) else stats
