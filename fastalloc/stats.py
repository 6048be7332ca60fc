"""Statistics: frozen records with the fields of the C structs, and the measurement of a block of code."""

import dataclasses
import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from fastalloc import _fields
from fastalloc.errors import ScopeError
from fastalloc.units import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastalloc._binding import Heap


class Record:
    """What all statistics can do: become a dict or a table, and be subtracted."""

    __slots__ = ()
    UNITS: ClassVar["Mapping[str, str]"]
    """The unit of each field: "bytes" or "count"."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]

    def as_dict(self) -> dict[str, int]:
        """The fields by name, as plain ints."""
        return {name: getattr(self, name) for name in self.UNITS}

    def __sub__(self, before: Self) -> Self:
        """What changed from `before` to here; of bytes and counts alike, with a sign."""
        if type(before) is not type(self):
            return NotImplemented
        return type(self)(**{name: value - getattr(before, name) for name, value in self.as_dict().items()})

    def __str__(self) -> str:
        """A table with one line per field."""
        return "\n".join(" ".join(row) for row in _table([self], []))


@dataclasses.dataclass(frozen=True, slots=True, repr=True)
class ArenaStats(_fields.ArenaFields, Record):
    """The state of an arena, and what it has done since it was made."""

    UNITS: ClassVar["Mapping[str, str]"] = _fields.ARENA_UNITS
    __str__ = Record.__str__


@dataclasses.dataclass(frozen=True, slots=True)
class ManagerStats(_fields.ManagerFields, Record):
    """The state of a manager, and what it has done since it was made."""

    UNITS: ClassVar["Mapping[str, str]"] = _fields.MANAGER_UNITS
    __str__ = Record.__str__


@dataclasses.dataclass(frozen=True, slots=True)
class NumpyStats(_fields.NumpyFields, Record):
    """The state of the allocator that install() installs unless it is given one, for the whole process."""

    UNITS: ClassVar["Mapping[str, str]"] = _fields.NUMPY_UNITS
    __str__ = Record.__str__


@dataclasses.dataclass(frozen=True, slots=True)
class Protection(_fields.ProtectionFields, Record):
    """The protections of an arena's memory that took effect, in bytes."""

    UNITS: ClassVar["Mapping[str, str]"] = _fields.PROTECTION_UNITS
    __str__ = Record.__str__


@dataclasses.dataclass(frozen=True, slots=True)
class ArenasStats:
    """The statistics of the three arenas of an Arenas."""

    witness: ArenaStats
    polynomial: ArenaStats
    scratch: ArenaStats

    def as_dict(self) -> dict[str, dict[str, int]]:
        """The fields by arena and name, as plain ints."""
        return {field.name: getattr(self, field.name).as_dict() for field in dataclasses.fields(self)}

    def __sub__(self, before: Self) -> Self:
        """What changed from `before` to here."""
        if type(before) is not type(self):
            return NotImplemented
        names = [field.name for field in dataclasses.fields(self)]
        return type(self)(**{name: getattr(self, name) - getattr(before, name) for name in names})

    def __str__(self) -> str:
        """A table with a column per arena."""
        names = [field.name for field in dataclasses.fields(self)]
        return "\n".join(" ".join(row) for row in _table([getattr(self, name) for name in names], names))


def _table(records: list[Any], titles: list[str]) -> list[list[str]]:
    """Cells padded to the width of their columns: a field's name, then its value in each record."""
    rows = [["", *titles]] if titles else []
    for name, unit in records[0].UNITS.items():
        values = [getattr(record, name) for record in records]
        rows.append([name, *(_value(value, unit) for value in values)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        [row[0].ljust(widths[0]), *(cell.rjust(width + 1) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]


def _value(value: int, unit: str) -> str:
    if unit == "bytes":
        return "no limit" if value == 2**64 - 1 else format_size(value)
    return f"{value:,}"


# What is in use, as opposed to what has been counted: 0 when the memory is gone.
GAUGES = frozenset(
    {
        *("requested", "used", "reserved", "resident", "cached", "fallback_bytes", "live", "pool_live"),
        *("locked", "lock_wanted"),
    }
)


_Stats = TypeVar("_Stats", ArenaStats, ManagerStats)


class Measured(Generic[_Stats]):
    """The statistics of an arena or manager while it lives and after; its peak for many nested measurements at once.

    The C library has but one peak.
    """

    __slots__ = ()
    if TYPE_CHECKING:
        _measure: "Measure"
        _final: _Stats | None
        _remains: weakref.ref[Heap] | None

        @property
        def _heap(self) -> Heap: ...
        @property
        def _memory(self) -> Heap | None: ...
        def _release(self) -> None: ...
        def _read_stats(self, heap: Heap) -> _Stats: ...
        def _restart_peak(self) -> tuple[int, int]: ...

    def stats(self) -> _Stats:
        """The state of it, and what it has done since it was made.

        After close() it goes on to tell what arrays and blocks keep of the memory, until the last of them dies.
        """
        heap = self._memory or (self._remains() if self._remains else None)
        if heap is None:
            if self._final is not None:
                return self._final
            heap = self._heap  # raises ClosedError: __init__ has failed
        stats = self._read_stats(heap)
        return dataclasses.replace(stats, peak=max(stats.peak, self._measure.peak))

    def _let_go(self) -> None:
        """Close the heap, keep the last statistics, and let go of the memory. Idempotent."""
        heap = self._memory
        if heap is None:
            return
        self._note_peak()
        heap.close()
        stats = self.stats()
        self._final = dataclasses.replace(  # type: ignore[misc]
            stats, **dict.fromkeys(GAUGES & stats.UNITS.keys(), 0)
        )
        self._remains = weakref.ref(heap)  # type: ignore[misc]
        self._release()

    def track(self) -> "Track[_Stats]":
        """Measure a block of code.

        `with arena.track() as t:` counts what is allocated and freed inside, by any thread, and the peak. `t` may be
        read inside and after. Measurements nest. Entering and leaving cost some microseconds.

        Returns
        -------
        Track
        """
        return Track(self._measure, self.stats, self._note_peak)

    def _note_peak(self) -> int:
        """Begin a new measurement in C, after telling the peak so far to all that are open; what is used now."""
        measure = self._measure
        with measure.lock:
            peak, used = self._restart_peak()
            measure.peak = max(measure.peak, peak)
            for track in measure.open:
                track.saw(peak)
        return used


class Measure:
    """The open tracks of an arena or manager, and its peak over all measurements."""

    __slots__ = ("__weakref__", "lock", "open", "peak")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.open: list[Track[Any]] = []
        self.peak = 0
        _measures.add(self)


_measures: weakref.WeakSet[Measure] = weakref.WeakSet()


def _after_fork() -> None:
    """In the child: a lock that another thread held would be held for ever."""
    for measure in list(_measures):
        measure.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Track(Generic[_Stats]):
    """What a block of code did to an arena or manager: see `track()`."""

    __slots__ = ("_after", "_before", "_measure", "_note_peak", "_peak", "_start", "_stats")

    def __init__(self, measure: Measure, stats: Callable[[], _Stats], note_peak: Callable[[], int]) -> None:
        self._measure = measure
        self._stats: Callable[[], _Stats] = stats
        self._note_peak = note_peak
        self._before: _Stats | None = None
        self._after: _Stats | None = None
        self._peak = self._start = 0

    def __enter__(self) -> Self:
        if self._before is not None:
            msg = "this measurement has begun already: every `with` needs a track() of its own"
            raise ScopeError(msg)
        before = self._stats()  # may raise ClosedError
        with self._measure.lock:
            self._start = self._peak = self._note_peak()
            self._measure.open.append(self)
        self._before = before
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is None or self._after is not None:
            msg = "this measurement has not begun, or has ended"
            raise ScopeError(msg)
        self._after = self._stats()
        with self._measure.lock:
            self._note_peak()
            self._measure.open.remove(self)

    def saw(self, used: int) -> None:
        """So much was used at one time inside."""
        self._peak = max(self._peak, used)

    @property
    def change(self) -> _Stats:
        """What changed inside: an ArenaStats or ManagerStats of differences."""
        if self._before is None:
            msg = "the measurement has not begun: use it in a with statement"
            raise ScopeError(msg)
        return (self._after or self._stats()) - self._before

    @property
    def peak(self) -> int:
        """The most bytes that were used at one time inside, with what was used before."""
        if self._before is not None and self._after is None:
            self._note_peak()
        return self._peak

    @property
    def growth(self) -> int:
        """The most bytes that were used at one time inside, beyond what was used at the start."""
        return self.peak - self._start

    @property
    def allocated(self) -> int:
        """Blocks (arrays are blocks too) allocated inside."""
        return self.change.allocated

    @property
    def freed(self) -> int:
        """Blocks freed inside."""
        return self.change.freed

    @property
    def bytes(self) -> int:
        """Bytes asked for by what was made inside and is still live, less what was there before and freed inside."""
        return self.change.requested

    def __repr__(self) -> str:
        if self._before is None:
            return "<fastalloc.Track, not begun>"
        state = "so far" if self._after is None else "in all"
        change = self.change
        return (
            f"<fastalloc.Track {state}: {change.allocated:,} allocated, {change.freed:,} freed,"
            f" {format_size(change.requested)} more in use, peak {format_size(self.peak)}>"
        )
