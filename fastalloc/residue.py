"""Where copies of a secret lie in the memory of a process (Linux).

The search must not be the leak, nor find itself. So what is searched for lives in a witness arena of its own, as does
the window through which memory is read; neither passes through a Python object, and both are left out when a process
searches itself. The inner loop is C (native/src/adapters/residue.c).
"""

import contextlib
import ctypes
import dataclasses
import os
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from fastalloc import _binding
from fastalloc.arena import Witness, address_of
from fastalloc.block import Block
from fastalloc.errors import ArgumentError, ArgumentTypeError, UnsupportedError

__all__ = ["Residue", "find_residue"]

# A piece this long found by chance in a gibibyte has a probability below 2^-90; shorter leaks are not searched for.
PIECE = 16
LONGEST = 4096
WINDOW = 1 << 20
_PRESENT_OR_SWAPPED = 3 << 62  # bits of /proc/PID/pagemap
_one_at_a_time = threading.Lock()


def _after_fork() -> None:
    """In the child: a search of another thread would never end."""
    global _one_at_a_time  # noqa: PLW0603
    _one_at_a_time = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

Kind = Literal["heap", "stack", "anonymous", "arena", "library data", "file", "special"]
Form = Literal["as it is", "reversed", "digits", "reversed digits"]


@dataclasses.dataclass(frozen=True, slots=True)
class Residue:
    """A piece of the pattern, and where it lies. Nothing of the pattern itself is in here."""

    address: int
    """Of its first byte."""
    length: int
    """Bytes that agree with the pattern."""
    mapping: str
    """As /proc/PID/maps calls it: a file, [heap], [stack], or "anonymous"; of an arena of this process its label."""
    offset: int
    """Of the first byte from the beginning of the mapping (or of the range the arena is in)."""
    kind: Kind
    """Heap: malloc's main one. Anonymous: any other: malloc's large blocks, Python's objects, the heaps of threads."""
    start: int
    """Of the piece in the pattern."""
    form: Form = "as it is"
    """Of an int also its bytes in reverse order, and the digits that CPython keeps it in."""

    def __str__(self) -> str:
        form = "" if self.form == "as it is" else f", {self.form}"
        return f"{self.mapping} + {self.offset:#x} ({self.address:#x}): {self.kind}, {self.length} bytes{form}"


@dataclasses.dataclass(frozen=True, slots=True)
class _Mapping:
    start: int
    end: int
    kind: Kind
    name: str


# ---- what to search for ----------------------------------------------------------------------------------------------


def _repack(source: Block, width: int, target: Block, bits: int) -> None:
    """Copy a number of digits of `width` bits into digits of `bits` bits: lowest first, each in a byte or a word."""
    with (
        memoryview(source).cast("B" if width == 8 else "I") as digits,
        memoryview(target).cast("B" if bits == 8 else "I") as places,
    ):
        held = kept = place = 0
        for digit in digits:
            held |= digit << kept
            kept += width
            while kept >= bits and place < len(places):
                places[place] = held & ((1 << bits) - 1)
                held >>= bits
                kept -= bits
                place += 1
        if place < len(places):
            places[place] = held


class _Wanted:
    """The forms of a pattern, in protected memory."""

    def __init__(self, arena: Witness, pattern: Any, *, as_int: bool) -> None:
        self._arena = arena
        self.forms: dict[Form, Block] = {}
        self.own: list[tuple[int, int]] = []
        if isinstance(pattern, int) and not isinstance(pattern, bool):
            self._take_int(pattern)
        elif isinstance(pattern, str | os.PathLike):
            self._take_file(Path(pattern))
        else:
            self._take_buffer(pattern)
        if as_int and "digits" not in self.forms:
            self._add_reversed()
            self._add_digits("digits", self.forms["as it is"])
            self._add_digits("reversed digits", self.forms["reversed"])

    def _alloc(self, form: Form, size: int) -> Block:
        block = self._arena.alloc(size)
        self.forms[form] = block
        return block

    def _alloc_bytes(self, size: int) -> Block:
        if not PIECE <= size <= LONGEST:
            raise ArgumentError(f"pattern: {size} bytes are not from {PIECE} to {LONGEST}")
        return self._alloc("as it is", size)

    def _take_buffer(self, pattern: Any) -> None:
        try:
            view = memoryview(pattern).cast("B")
        except TypeError:
            msg = f"pattern: expected a contiguous buffer, an int or a path, not {type(pattern).__name__}"
            raise ArgumentTypeError(msg) from None
        with view, memoryview(self._alloc_bytes(len(view))) as copy:
            copy[:] = view
            self.own.append((address_of(view), len(view)))

    def _take_file(self, path: Path) -> None:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise ArgumentError(f"pattern: {path} is not a regular file")
            with memoryview(self._alloc_bytes(status.st_size)) as view:
                if os.readv(file, [view]) != len(view):
                    raise OSError(f"{path}: could not be read whole")
        finally:
            os.close(file)

    def _take_int(self, value: int) -> None:
        """From where CPython keeps the digits: arithmetic on the value would leave temporaries of it."""
        bits, width = sys.int_info.bits_per_digit, sys.int_info.sizeof_digit
        length = int.bit_length(value)  # whatever a subclass says of itself
        whole = self._alloc_bytes((length + 7) // 8)
        digits = self._alloc("digits", (length + bits - 1) // bits * width)
        ctypes.memmove(digits.address, id(value) + int.__basicsize__, digits.nbytes)
        self.own.append((id(value) + int.__basicsize__, digits.nbytes))
        _repack(digits, bits, whole, 8)
        self._add_reversed()

    def _add_reversed(self) -> None:
        forward = self.forms["as it is"]
        with memoryview(forward) as source, memoryview(self._alloc("reversed", forward.nbytes)) as target:
            target[:] = source[::-1]

    def _add_digits(self, form: Form, source: Block) -> None:
        bits, width = sys.int_info.bits_per_digit, sys.int_info.sizeof_digit
        count = (8 * source.nbytes + bits - 1) // bits
        _repack(source, 8, self._alloc(form, count * width), bits)


# ---- where to search -------------------------------------------------------------------------------------------------


def _stack_pointers(process: Path) -> list[int]:
    """Of the threads that are waiting; those that run have none to tell, but for the main one it is not needed."""
    found = []
    for task in (process / "task").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            found.append(int((task / "syscall").read_text().split()[-2], 16))
    return found


def _kind(name: str, start: int, end: int, stacks: Iterable[int]) -> Kind:
    if name == "[heap]":
        return "heap"
    if name.startswith("[stack") or any(start <= pointer < end for pointer in stacks):
        return "stack"
    if name.startswith("[anon") or name in {"anonymous", "/dev/zero (deleted)"}:  # the latter: shared
        return "anonymous"
    if name.startswith("["):
        return "special"
    return "library data" if ".so" in name or "/bin/" in name else "file"


def _mappings(process: Path) -> Iterator[_Mapping]:
    stacks = _stack_pointers(process)
    for line in (process / "maps").read_text().splitlines():
        span, permissions, _, _, _, *rest = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in span.split("-"))
        if permissions.startswith("r"):
            name = rest[0] if rest else "anonymous"
            yield _Mapping(start, end, _kind(name, start, end, stacks), name)


def _ranges(process: Path, mapping: _Mapping) -> Iterator[tuple[int, int]]:
    """The parts of a mapping that have pages: what was never touched of an anonymous one is zero, and takes long."""
    if mapping.kind in {"library data", "file", "special"}:
        yield mapping.start, mapping.end
        return
    import numpy as np

    page = os.sysconf("SC_PAGESIZE")
    first, last = mapping.start // page, mapping.end // page
    try:
        file = os.open(process / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield mapping.start, mapping.end
        return
    try:
        for begin in range(first, last, 1 << 18):
            count = min(1 << 18, last - begin)
            there = (np.frombuffer(os.pread(file, 8 * count, 8 * begin), np.uint64) & _PRESENT_OR_SWAPPED) != 0
            edges = np.flatnonzero(np.diff(np.concatenate(([False], there, [False])).astype(np.int8)))
            for start, end in edges.reshape(-1, 2):
                yield (begin + int(start)) * page, (begin + int(end)) * page
    finally:
        os.close(file)


def _windows(start: int, end: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Cover [start, end) with windows that overlap, so that no piece is cut in all of them."""
    step = WINDOW - overlap // 8 * 8 - 8
    for address in range(start, end, step):
        yield address, min(WINDOW, end - address)


# ---- the search ------------------------------------------------------------------------------------------------------


def _search(process: Path, wanted: _Wanted, window: Block, excluded: list[tuple[int, int]]) -> Iterator[Residue]:
    mine = process == Path("/proc/self")
    longest = max(form.nbytes for form in wanted.forms.values())
    memory = os.open(process / "mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with memoryview(window) as view:
            for mapping in _mappings(process):
                for start, end in _ranges(process, mapping):
                    for address, size in _windows(start, end, longest):
                        with view[:size] as part:
                            try:
                                read = os.preadv(memory, [part], address)
                            except OSError:  # secret memory, a device's, or a mapping that went away
                                continue
                        for form, pattern in wanted.forms.items():
                            with view[:read] as part:
                                pieces = _binding.find_pieces(part, pattern, PIECE)
                            for at, in_pattern, length in pieces:
                                place = address + at
                                if any(a <= place < a + size for a, size in excluded):
                                    continue
                                label = _binding.owner_of(place) if mine else None
                                yield Residue(
                                    place,
                                    length,
                                    label or mapping.name,
                                    place - mapping.start,
                                    "arena" if label else mapping.kind,
                                    in_pattern,
                                    form,
                                )
    finally:
        os.close(memory)


def _merged(found: Iterable[Residue]) -> list[Residue]:
    """By address; of what overlapping windows or forms have found in one place, the longest."""
    kept: list[Residue] = []
    for residue in sorted(found, key=lambda residue: (residue.address, -residue.length)):
        if not kept or residue.address + residue.length > kept[-1].address + kept[-1].length:
            kept.append(residue)
    return kept


def find_residue(pattern: Any, *, pid: int | None = None, as_int: bool = False) -> list[Residue]:
    """List every place in a process's readable memory where a pattern, or a piece of 16 bytes or more of it, lies.

    Parameters
    ----------
    pattern : buffer, int, or path
        16 to 4096 bytes. A str or os.PathLike names a file, which is read without a Python object of its content. Of
        an int, its bytes in either order and the digits that CPython keeps it in are searched for.
    pid : int, optional
        The process; this one unless given. It takes the right to trace it: the same user, or root.
    as_int : bool
        Whether the bytes of a buffer or file are an integer too, to be searched for as one.

    Returns
    -------
    list of Residue
        By address; empty if there is none. The buffer or int that was given, and what the search needs for itself, are
        left out; what lies in arenas of this process is told by their labels.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If the pattern is too short, too long, or the same byte all along; or an argument is of a wrong type.
    OSError
        If there is no such process or file, or no right to read it.
    UnsupportedError
        On a platform without /proc/PID/mem.

    Notes
    -----
    More than a gigabyte per second. One search at a time runs in a process. Other threads run meanwhile: what they copy
    behind the search's back is not found. Memory that nobody may read from outside (memfd_secret) is not searched, and
    neither is the kernel's.

    Examples
    --------
    >>> import fastalloc as fa, os
    >>> secret = os.urandom(32)
    >>> fa.find_residue(secret)
    []
    >>> with fa.Witness("64KiB", name="keys") as keys:
    ...     copy = keys.array(list(secret), "uint8")
    ...     [residue.mapping for residue in fa.find_residue(secret)]
    ["witness arena 'keys'"]
    """
    if pid is not None and (isinstance(pid, bool) or not isinstance(pid, int)):
        raise ArgumentTypeError(f"pid: expected a process's number or None, not {type(pid).__name__}")
    process = Path("/proc/self" if pid is None or pid == os.getpid() else f"/proc/{pid}")
    if not Path("/proc/self/mem").exists():
        raise UnsupportedError("find_residue: this platform has no /proc/PID/mem")
    with _one_at_a_time, Witness(WINDOW + (256 << 10), name="residue search") as arena:
        wanted = _Wanted(arena, pattern, as_int=as_int)
        window = arena.alloc(WINDOW, 4096)
        excluded = [*wanted.own, (window.address, window.nbytes)]
        excluded += [(block.address, block.nbytes) for block in wanted.forms.values()]
        if process != Path("/proc/self"):
            excluded = []
        return _merged(_search(process, wanted, window, excluded))
