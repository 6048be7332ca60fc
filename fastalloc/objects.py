"""What Python itself leaves behind: its objects, zeroed when they are freed, and the stack."""

import contextlib
import importlib
import sys
import sysconfig
from typing import Any, NoReturn

from fastalloc import _binding
from fastalloc.errors import ArgumentError, UnsupportedError
from fastalloc.units import Size, parse_size

__all__ = ["wipe_freed_objects", "wipe_stack"]

_DEEPEST = 4 << 20


def wipe_freed_objects() -> None:
    """Let the memory of every Python object be zeroed when it is freed, from now on and in the whole process.

    A layer is put on Python's three allocators (raw, mem and obj, PEP 445). `bytes`, `str`, large `int`, `bytearray`,
    the tables of dicts and lists, and what extension modules take from PyMem_Malloc come from memory of its own; a free
    zeroes them, a resize zeroes the old place. It stays until the process ends: there is no way to switch it off.
    Calling it again does nothing.

    Raises
    ------
    UnsupportedError
        Where it would not be safe: in a process with a second interpreter, in a free-threaded build, on another Python
        than CPython, if another program has replaced Python's raw allocator. Nothing is changed then.

    Notes
    -----
    What it does not reach: objects that are not freed, such as constants, interned strings and what somebody still
    refers to; free lists, in which Python keeps dead floats, tuples, lists and dicts until gc.collect(); small blocks
    from before the call; the stack, registers, and memory that C libraries take from malloc themselves.
    `docs/secrets.md` has the list.

    From then on a subinterpreter cannot be made: that is an UnsupportedError, too; one that C code makes ends the
    process with a message. Threads, fork, `faulthandler` and `tracemalloc` work as before; a `tracemalloc` that is
    tracing is stopped and started again, so it forgets what it has traced.

    The cost is the zeroing: a few percent in most programs, more in those that handle `bytes` of many KiB all the time.

    Examples
    --------
    >>> import fastalloc as fa
    >>> fa.wipe_freed_objects()  # doctest: +SKIP
    """
    if _binding.wipes_freed_objects():
        return
    if sys.implementation.name != "cpython":
        raise UnsupportedError(f"wipe_freed_objects: {sys.implementation.name} has no allocators as CPython has")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise UnsupportedError("wipe_freed_objects: it needs the GIL, and this is a free-threaded build of Python")
    import tracemalloc

    # Stopping, it puts back the functions that it found: it must find ours.
    frames = tracemalloc.get_traceback_limit() if tracemalloc.is_tracing() else 0
    if frames:
        tracemalloc.stop()
    try:
        _binding.wipe_freed_objects()
    finally:
        if frames:
            tracemalloc.start(frames)
    for name in ("_interpreters", "_xxsubinterpreters"):  # from 3.13 on, and before
        with contextlib.suppress(ImportError):
            importlib.import_module(name).create = _refuse_interpreter  # type: ignore[attr-defined]


def _refuse_interpreter(*_args: Any, **_options: Any) -> NoReturn:
    msg = "a subinterpreter cannot be made: wipe_freed_objects() has been called, and works in one interpreter only"
    raise UnsupportedError(msg)


def wipe_stack(nbytes: Size = "256KiB") -> None:
    """Zero the part of this thread's stack that is not in use, and the registers that memory is copied with.

    C functions leave what they worked on in their dead frames: sorts, matrix products, formatted numbers. Call it after
    such work on secrets, in the thread that did it.

    Parameters
    ----------
    nbytes : int or str
        How deep, from where the stack is now; 4 MiB at most, and less than what the thread has left: 8 MiB in all on
        most systems.

    Raises
    ------
    ArgumentError
        If it is no such size.

    Notes
    -----
    Other threads' stacks, and frames in use, are not reached. About 10 microseconds.
    """
    size = parse_size(nbytes, "nbytes", minimum=1)
    if size > _DEEPEST:
        raise ArgumentError(f"nbytes: {size} is more than {_DEEPEST}")
    _binding.wipe_stack(size)
