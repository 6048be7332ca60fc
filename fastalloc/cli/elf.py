"""What an ELF file says of itself: its processor, the loader and the libraries that it wants, the symbols that it has.

As much as it takes to tell whether a library can be preloaded into a program, and where in a process a symbol is.
"""

import mmap
import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Elf", "Symbol", "read_elf"]

_MACHINES = {3: "x86", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86-64", 183: "aarch64"}
_MACHINES |= {243: "riscv", 258: "loongarch"}
_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3  # of program headers
_NEEDED, _STRING_TABLE, _STRING_SIZE = 1, 5, 10  # of the dynamic section
_DYNAMIC_SYMBOLS = 11  # of section headers


@dataclass(frozen=True)
class Symbol:
    """``address`` as the file has it, before it is loaded somewhere; ``defined`` here, or wanted from elsewhere."""

    address: int
    size: int
    defined: bool


@dataclass(frozen=True)
class Elf:
    """What one file says. ``base`` is the lowest address that it is loaded to, as the file counts them."""

    processor: str
    interpreter: str | None
    dynamic: bool
    needed: tuple[str, ...]
    symbols: Mapping[str, Symbol]
    base: int


_Header = tuple[int, int, int, int]


class _Reader:
    """The tables of a file, by the layout of its class (32 or 64 bits) and its byte order."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.wide = data[4] == 2
        self.order = "<" if data[5] == 1 else ">"

    def fields(self, form: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from(self.order + form, self.data, at)

    def text(self, at: int) -> str:
        return self.data[at : max(at, self.data.find(b"\0", at))].decode(errors="replace")

    def headers(self) -> tuple[str, list[_Header], list[_Header]]:
        """The processor; program headers (type, offset, address, size); sections (type, offset, size, link)."""
        machine = self.fields("H", 18)[0]
        form = "QQIHHHHH" if self.wide else "IIIHHHHH"  # of what follows the entry point
        programs, sections, _, _, program_size, programs_n, section_size, sections_n = self.fields(
            form, 32 if self.wide else 28
        )
        segments = []
        for at in range(programs, programs + programs_n * program_size, program_size or 1):
            if self.wide:
                kind, _, offset, address, _, size = self.fields("IIQQQQ", at)
            else:
                kind, offset, address, _, size = self.fields("IIIII", at)
            segments.append((kind, offset, address, size))
        tables = []
        for at in range(sections, sections + sections_n * section_size, section_size or 1) if sections else ():
            _, kind, _, _, offset, size, link = self.fields("IIQQQQI" if self.wide else "IIIIIII", at)
            tables.append((kind, offset, size, link))
        bits = "64" if self.wide else "32"
        return f"{_MACHINES.get(machine, f'machine {machine}')}, {bits} bits", segments, tables

    def needed(self, segments: list[_Header]) -> Iterator[str]:
        for kind, offset, _, size in segments:
            if kind != _DYNAMIC:
                continue
            form, step = ("QQ", 16) if self.wide else ("II", 8)
            entries = [self.fields(form, at) for at in range(offset, offset + size - step + 1, step)]
            strings = next((value for tag, value in entries if tag == _STRING_TABLE), None)
            start = next(
                (
                    at + strings - low
                    for load, at, low, room in segments
                    if load == _LOAD and low <= strings < low + room
                )
                if strings is not None
                else iter(()),
                None,
            )
            if start is not None:
                yield from (self.text(start + value) for tag, value in entries if tag == _NEEDED)

    def symbols(self, tables: list[_Header], names: Collection[str]) -> Iterator[tuple[str, Symbol]]:
        """Only those asked for: a large program has a hundred thousand, and their names are slow to make."""
        form, step = ("IBBHQQ", 24) if self.wide else ("IIIBBH", 16)
        for kind, offset, size, link in tables:
            if kind != _DYNAMIC_SYMBOLS or link >= len(tables):
                continue
            _, start, length, _ = tables[link]
            strings = self.data[start : start + length]
            # A name may also stand at the end of a longer one: every place is that name's.
            places = {found.start(): name for name in names for found in re.finditer(name.encode() + b"\0", strings)}
            for fields in struct.iter_unpack(self.order + form, self.data[offset : offset + size - size % step]):
                if fields[0] in places:
                    address, length, section = (fields[at] for at in ((4, 5, 3) if self.wide else (1, 2, 5)))
                    yield places[fields[0]], Symbol(address, length, defined=section != 0)


def read_elf(path: str | os.PathLike[str], names: Collection[str] = ()) -> Elf | None:
    """Read a file, and of its dynamic symbols those with these names; None if it is no ELF file, or a damaged one.

    Raises
    ------
    OSError
        If it cannot be read.

    """
    with Path(path).open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _read(_Reader(data), names)
            except (IndexError, OverflowError, struct.error):
                return None


def _read(reader: _Reader, names: Collection[str]) -> Elf:
    processor, segments, tables = reader.headers()
    return Elf(
        processor=processor,
        interpreter=next((reader.text(offset) for kind, offset, *_ in segments if kind == _INTERPRETER), None),
        dynamic=any(kind == _DYNAMIC for kind, *_ in segments),
        needed=tuple(reader.needed(segments)),
        symbols=dict(reader.symbols(tables, names)),
        base=min((address for kind, _, address, _ in segments if kind == _LOAD), default=0),
    )
