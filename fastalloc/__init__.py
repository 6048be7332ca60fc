"""fastalloc: memory for provers and other cryptographic programs.

Three kinds of arenas (witness, polynomial, scratch), a small-object manager, and NumPy arrays in them:

>>> import fastalloc as fa
>>> import numpy as np
>>> with fa.Arenas(witness="1MiB", polynomial="64MiB", scratch="16MiB") as memory:
...     with fa.using_allocator(memory.witness):
...         secret = np.frombuffer(bytes(64), np.uint64) * 3
...     with memory.scratch.scope() as scratch:
...         table = scratch.empty((1 << 10, 4), np.uint64)
...         del table
...     memory.witness.owns(secret)
True
"""

import os
import sys
from pathlib import Path

if "free-threading" in sys.version:
    raise ImportError(
        "fastalloc needs a CPython with the GIL: its hooks in NumPy and its counts of what uses a block rely on it, "
        "and its module is built for the stable ABI, which free-threaded builds do not have"
    )

from fastalloc import _binding
from fastalloc.allocator import OtherAllocator, get_allocator, handles, secure_zero, set_allocator, using_allocator
from fastalloc.arena import Arena, Arenas, Kind, Mark, Polynomial, Scratch, Witness
from fastalloc.block import Block
from fastalloc.errors import (
    ArgumentError,
    ArgumentTypeError,
    ClosedError,
    CorruptionError,
    FastallocError,
    ForeignBlockError,
    FreedBlockError,
    InUseError,
    LockError,
    OutOfMemoryError,
    ScopeError,
    SealedError,
    StaleMarkError,
    UnsupportedError,
)
from fastalloc.manager import Manager
from fastalloc.objects import wipe_freed_objects, wipe_stack
from fastalloc.process import InstalledAllocator, install, numpy_stats, uninstall
from fastalloc.residue import Residue, find_residue
from fastalloc.stats import ArenasStats, ArenaStats, ManagerStats, NumpyStats, Protection, Track
from fastalloc.units import format_size, parse_size

__all__ = [
    "Arena",
    "ArenaStats",
    "Arenas",
    "ArenasStats",
    "ArgumentError",
    "ArgumentTypeError",
    "Block",
    "ClosedError",
    "CorruptionError",
    "FastallocError",
    "ForeignBlockError",
    "FreedBlockError",
    "InUseError",
    "InstalledAllocator",
    "Kind",
    "LockError",
    "Manager",
    "ManagerStats",
    "Mark",
    "NumpyStats",
    "OtherAllocator",
    "OutOfMemoryError",
    "Polynomial",
    "Protection",
    "Residue",
    "ScopeError",
    "Scratch",
    "SealedError",
    "StaleMarkError",
    "Track",
    "UnsupportedError",
    "Witness",
    "__version__",
    "find_residue",
    "format_size",
    "get_allocator",
    "get_include",
    "get_library",
    "get_malloc_library",
    "handles",
    "install",
    "numpy_stats",
    "parse_size",
    "secure_zero",
    "set_allocator",
    "uninstall",
    "using_allocator",
    "wipe_freed_objects",
    "wipe_stack",
]

__version__ = _binding.version()


def _find(patterns: tuple[str, ...]) -> Path:
    """The first file of the package that matches; in a developer's tree it has more than one directory."""
    found = (path for place in __path__ for pattern in patterns for path in sorted(Path(place).glob(pattern)))
    first = next(found, None)
    if first is None:
        raise FileNotFoundError(f"the package has no {patterns[0]}: was it built by CMake?")
    return first


def get_include() -> str:
    """The directory with fastalloc.h and fastalloc32.h, for C programs: `cc -I$(...)`."""
    return str(_find(("include/fastalloc.h",)).parent)


def get_library() -> str:
    """The shared C library, for C programs and ctypes."""
    return str(_find(("lib/libfastalloc.so*", "lib/libfastalloc*.dylib", "lib/fastalloc*.dll")))


def get_malloc_library() -> str:
    """The library that is a malloc, for LD_PRELOAD (DYLD_INSERT_LIBRARIES on macOS): `fastalloc run --` preloads it."""
    return str(_find(("libfastalloc-malloc.so", "libfastalloc-malloc.dylib")))


if os.environ.get("FASTALLOC_WIPE_OBJECTS") == "1":
    wipe_freed_objects()
if os.environ.get("FASTALLOC_NUMPY") == "1":
    install()
