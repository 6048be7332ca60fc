"""Sizes in bytes: ints, and strings such as "64MiB".

>>> parse_size("1.5 GiB"), parse_size("10kB"), parse_size(4096)
(1610612736, 10000, 4096)
>>> format_size(1610612736)
'1.5 GiB'
"""

import operator
import re
from fractions import Fraction
from typing import SupportsIndex

from fastalloc.errors import ArgumentError, ArgumentTypeError

Size = int | str
"""A size in bytes, as arguments take it."""

MAX_SIZE = 2**63 - 1
"""The largest size; what fits in it may still be more than the address space."""

MAX_ALIGNMENT = 2 << 20
"""The largest alignment: a huge page."""

_BINARY = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_UNITS = {"": 1, "B": 1} | {unit: 1024**power for power, unit in enumerate(_BINARY, 1)}
_UNITS |= {unit: 1000**power for power, unit in enumerate(("kB", "MB", "GB", "TB", "PB", "EB"), 1)}
# Exactly so, or all in capitals, or all in small letters: "MiB", "MIB", "mib". "Mb" would be megabits and is refused.
_SPELLINGS = {spelling: factor for unit, factor in _UNITS.items() for spelling in (unit, unit.upper(), unit.lower())}

_PATTERN = re.compile(r"\s*([0-9]+(?:_[0-9]+)*)(?:\.([0-9]+))?\s*([A-Za-z]*)\s*", re.ASCII)
_NOT_A_SIZE = "is not a size: expected an int in bytes or a string such as '64MiB'"
_LONGEST = 64
_SHOWN = 40


def _show(value: object) -> str:
    """A value for a message; of anything but numbers and short strings only the type, for it may be a secret."""
    if isinstance(value, int | float):
        text = hex(value) if isinstance(value, int) and abs(value) > 2**80 else repr(value)
    elif isinstance(value, str):
        text = repr(value)
    else:
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _parse_text(value: str, name: str) -> int:
    match = _PATTERN.fullmatch(value) if len(value) <= _LONGEST else None
    factor = _SPELLINGS.get(match[3]) if match else None
    if not match or factor is None:
        raise ArgumentError(f"{name}: {_show(value)} {_NOT_A_SIZE}")
    fraction = match[2] or ""
    size = Fraction(int(match[1] + fraction), 10 ** len(fraction)) * factor
    if size.denominator != 1:
        raise ArgumentError(f"{name}: {_show(value)} is not a whole number of bytes")
    return int(size)


def parse_size(value: Size | SupportsIndex, name: str = "size", minimum: int = 0, maximum: int = MAX_SIZE) -> int:
    """A size in bytes from an int, or a string of a number and a unit.

    Parameters
    ----------
    value : int or str
        Units are B, the decimal kB, MB, GB, TB, PB, EB (powers of 1000) and the binary KiB, MiB, GiB, TiB, PiB, EiB
        (powers of 1024); without a unit it is bytes. Each may also be written all in capitals or all in small letters.
        Fractions are allowed where they come to a whole number of bytes, spaces around number and unit too.
    name : str
        Of the argument, for the message.
    minimum, maximum : int
        The limits, themselves allowed.

    Raises
    ------
    ArgumentError
        If it is no size, or out of the limits.
    ArgumentTypeError
        If it is neither an int nor a string. A bool is not an int here.
    """
    if isinstance(value, str):
        size = _parse_text(value, name)
    else:
        if isinstance(value, bool):
            raise ArgumentTypeError(f"{name}: {_show(value)} {_NOT_A_SIZE}")
        try:
            size = operator.index(value)
        except TypeError:
            raise ArgumentTypeError(f"{name}: {_show(value)} {_NOT_A_SIZE}") from None
    if size < minimum:
        raise ArgumentError(f"{name}: {_show(value)} is too small: at least {minimum}")
    if size > maximum:
        raise ArgumentError(f"{name}: {_show(value)} is too large: at most {maximum} ({format_size(maximum)})")
    return size


def parse_alignment(value: Size | SupportsIndex, name: str = "alignment") -> int:
    """An alignment in bytes: a power of two up to 2 MiB, written as a size.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        As parse_size, and if it is not such a power of two.
    """
    alignment = parse_size(value, name)
    if alignment == 0 or alignment & (alignment - 1) or alignment > MAX_ALIGNMENT:
        raise ArgumentError(f"{name}: {_show(value)} is not a power of two up to {MAX_ALIGNMENT} (2 MiB)")
    return alignment


def format_size(size: int) -> str:
    """A number of bytes for people: in the largest binary unit of which there is at least one, to one decimal.

    Negative numbers, as they come in differences, keep their sign.
    """
    sign, rest = ("-", -size) if size < 0 else ("", size)
    if rest < 1024:
        return f"{sign}{rest} B"
    power = min((rest.bit_length() - 1) // 10, len(_BINARY))
    tenths = (rest * 20 + 1024**power) // (2 * 1024**power)
    if tenths >= 10240 and power < len(_BINARY):
        power, tenths = power + 1, 10
    number = f"{tenths // 10}.{tenths % 10}".removesuffix(".0")
    return f"{sign}{number} {_BINARY[power - 1]}"


_MAX_SECONDS = (2**32 - 1) // 1000


def milliseconds(seconds: object, name: str) -> int:
    """An age for C, where 0 is never.

    Parameters
    ----------
    seconds : float or None
        None is never.
    name : str
        The argument's, for messages.

    Raises
    ------
    ArgumentTypeError
        If it is no number.
    ArgumentError
        If it is out of range.
    """
    if seconds is None:
        return 0
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ArgumentTypeError(f"{name}: expected seconds or None, not {type(seconds).__name__}")
    if not 0 < seconds <= _MAX_SECONDS:
        raise ArgumentError(
            f"{name}: {_show(seconds)} is not between 0 and {_MAX_SECONDS} seconds (None: never given back)"
        )
    return max(1, round(seconds * 1000))
