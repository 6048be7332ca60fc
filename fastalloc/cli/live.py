"""``fastalloc stats PID``: the statistics of a running program that allocates from libfastalloc-malloc.so.

Nothing is asked of the program, and it does not notice: its counters are read through /proc/PID/mem, by the layout that
native/src/heap/global.h describes, and summed here. Linux.
"""

import argparse
import dataclasses
import json
import os
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from fastalloc import _fields
from fastalloc.errors import ArgumentError, FastallocError
from fastalloc.stats import Record
from fastalloc.units import format_size

from .elf import read_elf

__all__ = ["ClassStats", "MallocStats", "add_parser", "read_process", "reading"]

_SYMBOL = "fastalloc_malloc_stats"
_MAGIC = b"fastalloc-stats"
_VERSION = 1
_SUMMED = ("used", "held", "cached", "resident", "live", "allocated", "freed")
"""Of the fields, those that the reader has to add up; the rest is counted in the process, in the same order."""
_COUNTED = tuple(name for name in _fields.MALLOC_UNITS if name not in _SUMMED)
_MOST_HEAPS = 1 << 20  # a list longer than that is no list of ours


class NotReadableError(FastallocError, OSError):
    """There is no such process, or it may not be looked at, or it does not use the library."""


@dataclasses.dataclass(frozen=True, slots=True)
class MallocStats(_fields.MallocFields, Record):
    """The state of the global allocator of a process, and what it has done since the process began."""

    UNITS: ClassVar[Mapping[str, str]] = _fields.MALLOC_UNITS
    __str__ = Record.__str__


@dataclasses.dataclass(frozen=True, slots=True)
class ClassStats:
    """Blocks of one ``size``. ``cached`` ones are free and near a thread; ``spans`` is the bytes they come from."""

    size: int
    live: int
    allocated: int
    cached: int
    spans: int


# --- Reading -----------------------------------------------------------------------------------------------------


class _Memory:
    """The memory of another process, by its own pointer size."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.pointer = "Q"

    def bytes(self, address: int, size: int) -> bytes:
        self.file.seek(address)
        data = self.file.read(size)
        if len(data) != size:
            raise NotReadableError("the process went away while it was read")
        return data

    def fields(self, form: str, address: int) -> tuple[Any, ...]:
        form = "@" + form.replace("P", self.pointer)
        return struct.unpack(form, self.bytes(address, struct.calcsize(form)))


def _root(pid: int) -> int:
    """The address of the symbol in the process."""
    lowest: dict[str, tuple[int, str]] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, _, _, _, _, *file = line.split(maxsplit=5)
        if file and file[0].startswith("/"):
            lowest.setdefault(file[0], (int(span.split("-")[0], 16), span))
    for name, (start, span) in lowest.items():
        if "fastalloc" not in Path(name).name:
            continue
        # A file that was replaced since, or lies in a container, is still there by this name.
        for path in (f"/proc/{pid}/map_files/{span}", f"/proc/{pid}/root{name}"):
            try:
                elf = read_elf(path, (_SYMBOL,))
            except OSError:
                continue
            if elf is not None and _SYMBOL in elf.symbols and elf.symbols[_SYMBOL].defined:
                page = os.sysconf("SC_PAGESIZE")
                return start - elf.base // page * page + elf.symbols[_SYMBOL].address
    raise NotReadableError(f"process {pid} does not use libfastalloc-malloc.so: start it with fastalloc run -- program")


def read_process(pid: int) -> tuple[MallocStats, list[ClassStats]]:
    """The statistics of a process, and of each size class that it uses.

    Read while the process runs: the figures are of slightly different moments, a few blocks apart.

    Raises
    ------
    NotReadableError
        If there is no such process, it may not be read, or it does not use the library.

    """
    with reading(pid):
        root = _root(pid)
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
            return _read(_Memory(file), root)  # unbuffered: no page is read that was not asked for


@contextmanager
def reading(pid: int) -> Iterator[None]:
    """Say in words why /proc/PID could not be read.

    Raises
    ------
    NotReadableError
        For errors of /proc; others stay as they are.

    """
    try:
        yield
    except (FileNotFoundError, PermissionError, ProcessLookupError) as error:
        if error.filename is not None and not str(error.filename).startswith("/proc/"):
            raise
        if not Path("/proc/self").exists():
            raise NotReadableError("there is no /proc here: this command is for Linux") from None
        if isinstance(error, PermissionError):
            reason = "not allowed to read its memory (same user? ptrace_scope?)"
        else:
            reason = "there is none" if isinstance(error, FileNotFoundError) else "it has ended"
        raise NotReadableError(f"process {pid}: {reason}") from None


def _read(memory: _Memory, root: int) -> tuple[MallocStats, list[ClassStats]]:
    magic, version, pointer_size = memory.fields("16sII", root)
    if magic.rstrip(b"\0") != _MAGIC or version != _VERSION:
        raise NotReadableError(
            f"its library has statistics of version {version}; this command reads version {_VERSION}"
        )
    memory.pointer = "Q" if pointer_size == 8 else "I"
    classes, central_stride, heap_bins, bin_stride, started, counted = memory.fields("6I", root + 24)
    if counted != len(_COUNTED):
        raise NotReadableError(f"its library counts {counted} things; this command knows {len(_COUNTED)}")
    *counts, central, heaps = memory.fields(f"{counted}P2P", root + 48)
    found = dict(zip(_COUNTED, counts, strict=True))
    sizes: list[ClassStats] = []
    if started and central:
        allocated, cached = _bins(memory, heaps, classes, heap_bins, bin_stride)
        for number in range(1, classes):
            taken, direct, spans, ready, size = memory.fields("4PI", central + number * central_stride)
            free = min(taken, ready + cached[number])
            if size:
                sizes.append(ClassStats(size, taken - free, direct + allocated[number], free, spans))
    small = {name: sum(getattr(each, name) for each in sizes) for name in ("live", "allocated")}
    found["live"] = small["live"] + found["medium_live"] + found["large_live"]
    found["allocated"] = small["allocated"] + found["medium_allocated"] + found["large_allocated"]
    found["freed"] = max(0, found["allocated"] - found["live"])
    found["used"] = sum(each.live * each.size for each in sizes) + found["medium_bytes"] + found["large_bytes"]
    found["held"] = found["pages_live"] + found["large_bytes"]
    found["cached"] = found["pages_cached"] + found["large_cached"]
    found["resident"] = found["held"] + found["cached"]
    found["peak"] = max(found["peak"], found["held"])
    return MallocStats(**found), sizes


def _bins(memory: _Memory, heap: int, classes: int, bins: int, stride: int) -> tuple[list[int], list[int]]:
    """Of each class, over all thread heaps: blocks allocated, and blocks that wait in magazines."""
    allocated, cached = [0] * classes, [0] * classes
    width = struct.calcsize("@" + memory.pointer)
    for _ in range(_MOST_HEAPS):
        if not heap:
            return allocated, cached
        (following,) = memory.fields("P", heap)
        data = memory.bytes(heap + bins, classes * stride)
        for number in range(1, classes):
            top, bottom, _, count = struct.unpack_from("@4" + memory.pointer, data, number * stride)
            allocated[number] += count
            cached[number] += max(0, top - bottom) // width
        heap = following
    raise NotReadableError("its list of thread heaps does not end")


# --- The command -------------------------------------------------------------------------------------------------


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "stats",
        help="statistics of a running program that was started with fastalloc run -- program",
        description="Read the counters of a running program's global allocator, from outside. What they mean stands in "
        "docs/malloc.md. With --watch, again and again until the program ends.",
        epilog="Exit code: 0, or 2 if there was nothing to read.",
    )
    parser.add_argument("pid", type=int, metavar="PID", help="the process")
    parser.add_argument("--json", action="store_true", help="one line of JSON, size classes included")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="repeat after this time, until the program ends")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print them."""
    if options.watch is not None and not 0 < options.watch <= threading.TIMEOUT_MAX:
        raise ArgumentError(f"--watch: {options.watch} is no time to wait, in seconds")
    _print(options.pid, as_json=options.json)
    while options.watch is not None:
        try:
            time.sleep(options.watch)
            _print(options.pid, as_json=options.json)
        except (NotReadableError, KeyboardInterrupt):  # it has ended, or we are to
            return 0
    return 0


def _print(pid: int, *, as_json: bool) -> None:
    stats, sizes = read_process(pid)
    if as_json:
        record = {"process": pid, **stats.as_dict(), "classes": [dataclasses.asdict(each) for each in sizes]}
        print(json.dumps(record), flush=True)
        return
    print("\n".join([str(stats), "", *_table(sizes), ""]), flush=True)


def _table(sizes: list[ClassStats]) -> Iterator[str]:
    yield f"{'size':>10}{'live':>12}{'allocated':>14}{'cached':>10}{'spans':>12}"
    for each in sizes:
        size, spans = format_size(each.size), format_size(each.spans)
        yield f"{size:>10}{each.live:>12,}{each.allocated:>14,}{each.cached:>10,}{spans:>12}"
