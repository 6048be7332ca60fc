"""Search this process's writable memory for copies of a secret, without making one (Linux)."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Residue", "find_copies"]

# A piece this long found by chance in a gibibyte has a probability below 2^-90; shorter leaks are not searched for.
PIECE = 16
CHUNK = 1 << 20


@dataclass(frozen=True)
class Residue:
    """A piece of the pattern was found at ``address``, ``offset`` bytes into the mapping ``name``."""

    address: int
    name: str
    offset: int

    def __str__(self) -> str:
        return f"{self.name} + {self.offset:#x} ({self.address:#x})"


def _address(memory: mmap.mmap) -> int:
    return int(np.frombuffer(memory, np.uint8).__array_interface__["data"][0])


def _writable_mappings() -> Iterator[tuple[int, int, str]]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions, *rest = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in span.split("-"))
        if permissions.startswith("rw"):
            yield start, end, rest[3] if len(rest) > 3 else "anonymous"


def find_copies(patterns_file: Path) -> list[Residue]:
    """List where 16-byte pieces of the file's bytes lie in this process's writable memory.

    Parameters
    ----------
    patterns_file : Path
        A file whose size is a multiple of 16. Its bytes are read into a mapping that is left out of the search and
        cleared after it, as is the window through which memory is read.

    Returns
    -------
    list of Residue
        Empty if there is no copy.

    Raises
    ------
    OSError
        If there is no ``/proc`` to read.
    ValueError
        If the file is empty or not made of whole pieces.

    """
    size = patterns_file.stat().st_size
    if size == 0 or size % PIECE:
        raise ValueError(f"{patterns_file}: {size} bytes are not a multiple of {PIECE}")
    patterns, window = mmap.mmap(-1, size), mmap.mmap(-1, CHUNK + PIECE)
    own = [(_address(memory), _address(memory) + len(memory)) for memory in (patterns, window)]
    found: list[Residue] = []
    try:
        with patterns_file.open("rb", buffering=0) as file, memoryview(patterns) as view:
            if file.readinto(view) != size:
                raise OSError(f"{patterns_file}: could not be read whole")
        pieces = range(0, size, PIECE)
        with Path("/proc/self/mem").open("rb", buffering=0) as memory:
            for start, end, name in _writable_mappings():
                for address, length in _windows(start, end):
                    with memoryview(window) as view, view[:length] as part:
                        memory.seek(address)
                        try:
                            read = memory.readinto(part) or 0
                        except OSError:  # a mapping of a device, or one that went away
                            continue
                    for piece in pieces:
                        found += [
                            Residue(address + at, name, address + at - start)
                            for at in _occurrences(window, read, patterns, piece)
                            if not any(a <= address + at < b for a, b in own)
                        ]
    finally:
        for memory_map in (patterns, window):
            memory_map[:] = bytes(len(memory_map))
    return sorted({residue.address: residue for residue in found}.values(), key=lambda residue: residue.address)


def _windows(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cover [start, end) with windows that overlap by less than a piece, so that none is cut."""
    for address in range(start, end, CHUNK):
        yield address, min(CHUNK + PIECE - 1, end - address)


def _occurrences(window: mmap.mmap, length: int, patterns: mmap.mmap, piece: int) -> Iterator[int]:
    with memoryview(patterns) as view, view[piece : piece + PIECE] as needle:
        at = window.find(needle, 0, length)
        while at >= 0:
            yield at
            at = window.find(needle, at + 1, length)
