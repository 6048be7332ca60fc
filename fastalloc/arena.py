"""Arenas: one range of memory each, filled from the bottom up and released at once."""

import contextlib
import dataclasses
import enum
import mmap
import numbers
import weakref
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, TypedDict, Unpack

from fastalloc import _binding
from fastalloc.arrays import ArrayFunctions
from fastalloc.errors import ArgumentError, ArgumentTypeError, InUseError, SealedError, StaleMarkError
from fastalloc.intake import SecretIntake
from fastalloc.stats import ArenasStats, ArenaStats, Measure, Measured, Protection
from fastalloc.units import Size, format_size, parse_alignment, parse_size

_LONGEST_NAME = 64


class Kind(enum.StrEnum):
    """What an arena is for; its defaults follow from it."""

    WITNESS = "witness"
    """Secrets: guarded, locked in RAM, out of core dumps, wiped when freed."""
    POLYNOMIAL = "polynomial"
    """Large vectors: freed blocks are reused, still resident; huge pages where the kernel has them."""
    SCRATCH = "scratch"
    """Temporaries: released at once by a scope or a reset."""


Want = Literal["off", "try", "require"]
HugePages = Literal["off", "transparent", "hugetlb", "hugetlb-1GiB"]


class ArenaOptions(TypedDict, total=False):
    """The keyword arguments of Arena."""

    alignment: Size
    huge_pages: HugePages | None
    guard_pages: bool | Want | None
    guard: Literal["ends", "block"] | None
    lock: Want | None
    no_dump: Want | None
    wipe_on_fork: Want | None
    secret_memory: bool | Want | None
    on_full: Literal["fail", "fallback"] | None
    name: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """A place in an arena to rewind to; see Arena.mark."""

    position: int
    serial: int
    memory: int
    """The serial number of the Heap."""
    arena: str
    """As in messages."""

    def __repr__(self) -> str:
        return f"<fastalloc.Mark at {self.position} in {self.arena}>"


def choose(value: Any, name: str, choices: Mapping[str, int]) -> int | None:
    """The C constant of an option; None stays None, which is the kind's default."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ArgumentTypeError(f"{name}: expected one of {', '.join(map(repr, choices))}, not {type(value).__name__}")
    if value not in choices:
        raise ArgumentError(f"{name}: {value[:40]!r} is not one of {', '.join(map(repr, choices))}")
    return choices[value]


def required(value: bool | Want | None) -> Want | None:
    """True is "require", False is "off"."""
    if isinstance(value, bool):
        return "require" if value else "off"
    return value


def check_flag(value: object, name: str) -> bool:
    """True or False, and nothing that is merely true."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name}: expected a bool, not {type(value).__name__}")
    return value


def check_name(name: object) -> str:
    """A name for messages: short and printable."""
    if not isinstance(name, str):
        raise ArgumentTypeError(f"name: expected a str, not {type(name).__name__}")
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ArgumentError(f"name: expected 1 to {_LONGEST_NAME} printable characters, not {name[:_LONGEST_NAME]!r}")
    return name


class Arena(_binding.ArenaBase, ArrayFunctions, Measured[ArenaStats]):
    """One range of memory for blocks and arrays.

    Parameters
    ----------
    kind : Kind or str
        "witness" for secrets, "polynomial" for vectors, "scratch" for temporaries.
    capacity : int or str
        Bytes that blocks may take in all, or such as "4GiB"; rounded up to whole pages. It is address space: memory is
        used as it is touched.
    alignment : int or str
        Of every block unless asked otherwise: a power of two from 16 bytes to 2 MiB.
    huge_pages : {"off", "transparent", "hugetlb", "hugetlb-1GiB"}, optional
        Transparent asks the kernel for 2 MiB pages where it has them; hugetlb takes 2 MiB or 1 GiB pages from the
        kernel's reserve, or transparent ones if that is empty. Unless given: transparent for polynomial, else off.
    guard_pages : bool or {"off", "try", "require"}, optional
        Inaccessible pages below and above the blocks. True is "require".
    guard : {"ends", "block"}, optional
        "ends": the guard pages are below and above all blocks; that costs nothing per block. "block", for a witness
        arena: one after every block too, against which the block ends, and canaries in front of it and in what its
        alignment leaves behind it. A byte beyond that kills the process, as does a touch of a freed block; a
        broken canary ends the process with a message when the block is freed. It costs two pages and a few system
        calls a block: for few and precious secrets.
    lock : {"off", "try", "require"}, optional
        In RAM, never swapped, growing with use. Unless given: "try" for witness.
    no_dump, wipe_on_fork : {"off", "try", "require"}, optional
        Out of core dumps; zero in a forked child. Unless given: for witness.
    secret_memory : bool or {"off", "try", "require"}, optional
        For a witness arena: memory that is out of the kernel's own map, and so out of reach of debuggers, core dumps
        and the kernel's own faults (memfd_secret; Linux). It is always locked, and counts against RLIMIT_MEMLOCK.
        Ordinary reads and writes of files work on it, direct I/O does not. True is "require".
    on_full : {"fail", "fallback"}, optional
        Whether a block for which there is no room fails, or comes from malloc and is counted. Unless given: fallback,
        but a witness arena always fails: secrets never leave protected memory.
    name : str, optional
        For messages.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument is out of its range or of a wrong type.
    OutOfMemoryError
        If the system has not so much address space.
    LockError
        If lock="require" or secret_memory="require" and the memory cannot be locked: at once, or when it is needed.
    UnsupportedError
        If another protection was required and the platform does not have it.

    Notes
    -----
    All methods may be called by any thread at any time. An arena is a context manager: its end closes it. An arena that
    is garbage goes, and its memory with it as soon as no array or block is in it.

    Examples
    --------
    >>> import fastalloc as fa
    >>> with fa.Arena("scratch", "1MiB", name="example") as arena:
    ...     vector = arena.zeros(1000, dtype="uint32")
    ...     print(arena.live, arena.owns(vector))
    1 True
    """

    __slots__ = ("__weakref__", "_final", "_kind", "_measure", "_name", "_options", "_remains")
    _final: ArenaStats | None
    _remains: weakref.ref[_binding.Heap] | None
    _name: str | None
    _fixed_kind: ClassVar[Kind | None] = None

    def __new__(cls, *_args: Any, **_options: Any) -> Self:  # noqa: D102
        self = super().__new__(cls)
        self._kind, self._name, self._final, self._remains = cls._fixed_kind or Kind.SCRATCH, None, None, None
        self._options, self._measure = {}, Measure()
        return self

    def __init__(
        self,
        kind: Kind | Literal["witness", "polynomial", "scratch"],
        capacity: Size,
        *,
        alignment: Size = 64,
        huge_pages: HugePages | None = None,
        guard_pages: bool | Want | None = None,
        guard: Literal["ends", "block"] | None = None,
        lock: Want | None = None,
        no_dump: Want | None = None,
        wipe_on_fork: Want | None = None,
        secret_memory: bool | Want | None = None,
        on_full: Literal["fail", "fallback"] | None = None,
        name: str | None = None,
    ) -> None:
        if choose(kind, "kind", _binding.KINDS) is None:
            raise ArgumentTypeError("kind: expected a fastalloc.Kind or its name, not None")
        guard_pages, secret_memory = required(guard_pages), required(secret_memory)
        options = {
            "capacity": parse_size(capacity, "capacity", minimum=1),
            "alignment": parse_alignment(alignment),
            "huge_pages": choose(huge_pages, "huge_pages", _binding.HUGE_PAGES),
            "guard_pages": choose(guard_pages, "guard_pages", _binding.WANTS),
            "guard": choose(guard, "guard", _binding.GUARDS),
            "lock": choose(lock, "lock", _binding.WANTS),
            "no_dump": choose(no_dump, "no_dump", _binding.WANTS),
            "wipe_on_fork": choose(wipe_on_fork, "wipe_on_fork", _binding.WANTS),
            "secret_memory": choose(secret_memory, "secret_memory", _binding.WANTS),
            "on_full": choose(on_full, "on_full", _binding.FULL_POLICIES),
        }
        if options["alignment"] < 16:  # type: ignore[operator]
            raise ArgumentError(f"alignment: {alignment} is too small: at least 16")
        if kind == Kind.WITNESS and on_full == "fallback":
            msg = "on_full: a witness arena only knows 'fail', not 'fallback': secrets never leave protected memory"
            raise ArgumentError(msg)
        if kind != Kind.WITNESS:
            for name_, chosen in (("guard", guard == "block"), ("secret_memory", secret_memory not in {None, "off"})):
                if chosen:
                    raise ArgumentError(f"{name_}: only a witness arena takes {options[name_]!r}, not a {kind} one")
        if guard == "block":
            if guard_pages == "off":
                msg = "guard: 'block' needs guard_pages, which are off"
                raise ArgumentError(msg)
            if options["alignment"] > mmap.PAGESIZE:  # type: ignore[operator]
                raise ArgumentError(f"alignment: {alignment} is too large for guard='block': {mmap.PAGESIZE} at most")
        label = f"{Kind(kind)} arena" + ("" if name is None else f" {check_name(name)!r}")
        if self._memory is not None or self._final is not None:
            msg = "__init__: the arena has been made already"
            raise ArgumentError(msg)
        self._kind = Kind(kind)
        self._name = name
        self._options = options
        self._adopt(_binding.create_arena(self._kind, label, 0, options))

    # ---- what it is ----

    @property
    def kind(self) -> Kind:
        """What it is for."""
        return self._kind

    @property
    def name(self) -> str | None:
        """As given."""
        return self._name

    @property
    def alignment(self) -> int:
        """Of every block unless asked otherwise, in bytes."""
        return int(self._options.get("alignment") or 0)

    @property
    def capacity(self) -> int:
        """Bytes that blocks may take in all."""
        return self.stats().capacity

    @property
    def used(self) -> int:
        """Bytes of the capacity taken by live blocks, rounding and alignment included."""
        heap = self._memory
        return self.stats().used if heap is None else _binding.arena_usage(heap)[0]

    @property
    def peak(self) -> int:
        """The largest `used` so far."""
        heap = self._memory
        return self.stats().peak if heap is None else max(_binding.arena_usage(heap)[1], self._measure.peak)

    @property
    def live(self) -> int:
        """Arrays and blocks that are live."""
        heap = self._memory
        return self.stats().live if heap is None else _binding.arena_live(heap)[0]

    @property
    def sealed(self) -> Literal["none", "read"] | None:
        """What seal() was called with, None after unseal(); also inside of `with arena.unsealed()`.

        Raises
        ------
        ClosedError
            If the arena is closed.
        """
        return _binding.arena_sealed(self._heap)  # type: ignore[return-value]

    @property
    def protection(self) -> Protection:
        """The protections that took effect.

        Raises
        ------
        ClosedError
            If the arena is closed.
        """
        return Protection(**_binding.arena_protection(self._heap))

    def owns(self, thing: object) -> bool:
        """Whether something lives in this arena's memory.

        Parameters
        ----------
        thing : array, Block, buffer, or int
            An int is an address. Of a buffer, the first byte counts.

        Raises
        ------
        ArgumentTypeError
            If it is none of these.
        ClosedError
            If the arena is closed.
        """
        return _binding.arena_owns(self._heap, address_of(thing))

    # ---- what it does ----

    def mark(self) -> Mark:
        """A place to come back to with rewind(). Marks nest.

        Raises
        ------
        ClosedError
            If the arena is closed.
        """
        heap = self._heap
        position, serial = _binding.arena_mark(heap)
        return Mark(position, serial, heap.serial, self._label)

    def rewind(self, mark: Mark) -> None:
        """Release everything that was allocated since the mark; O(1).

        A mark may be rewound to any number of times. Rewinding to an older mark makes it stale.

        Raises
        ------
        InUseError
            While arrays or blocks made since the mark are alive; nothing is changed.
        StaleMarkError
            If the mark has been rewound past, is of before a reset, or is another arena's.
        ClosedError
            If the arena is closed.
        """
        if not isinstance(mark, Mark):
            raise ArgumentTypeError(f"mark: expected a fastalloc.Mark, not {type(mark).__name__}")
        heap = self._heap
        if mark.memory != heap.serial:
            if mark.arena == self._label:
                msg = f"mark: it is of memory that {self._label} has given up, or of another arena"
                raise StaleMarkError(msg)
            raise StaleMarkError(f"mark: it is of {mark.arena}, not of {self._label}")
        place = mark.position, mark.serial
        if not _binding.arena_rewind(heap, place):
            self._refuse("rewind", _binding.arena_live(heap, place), "made since the mark")

    def reset(self, *, retire: bool = False) -> None:
        """Release everything; O(1). The pages stay resident for the next round; a witness arena is wiped.

        Parameters
        ----------
        retire : bool
            If arrays or blocks are alive, leave them the memory they are in and go on in fresh memory with the same
            options. The old memory goes when the last of them dies. using_allocator scopes that are open in this thread
            move along; in other threads they go on in the old memory until they end.

        Raises
        ------
        InUseError
            While arrays or blocks are alive, unless `retire`; nothing is changed.
        OutOfMemoryError, LockError
            If there is no fresh memory to be had; nothing is changed.
        SealedError
            If there is something to retire and the arena is sealed; nothing is changed.
        ClosedError
            If the arena is closed.
        """
        heap = self._heap
        if _binding.arena_reset(heap):
            return
        if not retire:
            self._refuse("reset", _binding.arena_live(heap), "alive")
        if _binding.arena_sealed(heap):
            msg = f"{self._label} is sealed: unseal() before reset(retire=True), or nobody could open what is left"
            raise SealedError(msg)
        fresh = _binding.create_arena(self._kind, self._label, heap.lineage, self._options)
        with self._measure.lock:
            self._note_peak()
            self._adopt(fresh)

    def wipe(self) -> None:
        """Zero every byte that was ever handed out, at once. Arrays and blocks that are alive read zeros.

        The cost follows what was used, not the capacity.

        Raises
        ------
        ClosedError
            If the arena is closed.
        """
        _binding.arena_wipe(self._heap)

    def seal(self, how: Literal["none", "read"] = "none") -> None:
        """Make every block and array inaccessible ("none"), or read-only ("read"), until unseal().

        Whoever touches one all the same dies with SIGSEGV: it is the processor that refuses, in every thread, and no
        exception can be made of it. So seal when nobody works with the secrets, and open with `with arena.unsealed()`.
        An array may be freed: it is wiped through the seal (not one of objects, which NumPy reads to free it). So do
        reset(), rewind(), wipe() and close(). New arrays, blocks and resizes are a SealedError (NumPy's own functions
        raise MemoryError).

        Parameters
        ----------
        how : {"none", "read"}
            What still may be done.

        Raises
        ------
        OutOfMemoryError
            If the system refuses; nothing is changed.
        ClosedError
            If the arena is closed.

        Notes
        -----
        May be called by any thread. While some thread is inside unsealed(), it takes effect when the last one leaves.
        Cost: one system call, or one per block with guard="block", growing with the resident pages.
        """
        if choose(how, "how", _binding.SEALS) is None:
            msg = "how: expected 'none' or 'read', not None"
            raise ArgumentTypeError(msg)
        _binding.arena_seal(self._heap, self._label, how)

    def unseal(self) -> None:
        """Make all blocks accessible again.

        Raises
        ------
        OutOfMemoryError
            If the system refuses; nothing is changed.
        ClosedError
            If the arena is closed.
        """
        _binding.arena_seal(self._heap, self._label, None)

    def unsealed(self) -> "_binding.Unsealed[Self]":
        """A sealed arena is open inside `with arena.unsealed():`, and sealed again after it, exception or not.

        They nest, and count over all threads: the first to enter opens the arena, for every thread, and the last to
        leave seals it. Of an arena that is not sealed nothing changes. No exception of a signal, such as
        KeyboardInterrupt, leaves it open.

        Raises
        ------
        OutOfMemoryError
            If the system refuses. After leaving, the arena is open then: see protection.sealed.
        ClosedError
            On entering, if the arena is closed.

        Examples
        --------
        >>> import fastalloc as fa
        >>> arena = fa.Witness("1MiB")
        >>> key = arena.alloc(32)
        >>> arena.seal()
        >>> with arena.unsealed():
        ...     memoryview(key)[:5] = b"magic"
        >>> arena.sealed
        'none'
        >>> arena.close()
        """
        return _binding.Unsealed(self)

    def trim(self, keep: Size = 0) -> None:
        """Give the pages of free memory back to the system, all but `keep` bytes of them.

        Raises
        ------
        ArgumentError
            If `keep` is no size.
        ClosedError
            If the arena is closed.
        """
        _binding.arena_trim(self._heap, parse_size(keep, "keep"))

    def close(self) -> None:
        """Refuse new allocations from now on, and let go of the memory. Idempotent.

        A witness arena is zeroed at once: arrays and blocks that are alive read zeros. The memory goes when the last of
        them dies.
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
        name = "" if self._name is None else f" {self._name!r}"
        kind = "" if self._fixed_kind else f" {self._kind}"
        start = f"<fastalloc.{type(self).__name__}{kind}{name}"
        if self.closed:
            return f"{start}, closed>"
        stats = self.stats()
        return f"{start}: {format_size(stats.used)} of {format_size(stats.capacity)} used, {stats.live:,} live>"

    def _read_stats(self, heap: _binding.Heap) -> ArenaStats:
        return ArenaStats(**_binding.arena_stats(heap))

    def _restart_peak(self) -> tuple[int, int]:
        heap = self._memory
        return (0, 0) if heap is None else _binding.arena_restart_peak(heap)

    def _refuse(self, action: str, live: tuple[int, int], which: str) -> None:
        count, size = live
        things = "array or block" if count == 1 else "arrays or blocks"
        verb = "is" if count == 1 else "are"
        tail = "still alive" if which == "alive" else f"{which} and still alive"
        raise InUseError(f"cannot {action} {self._label}: {count} {things} of {size} bytes {verb} {tail}")


def address_of(thing: object) -> int:
    """The address of an array, Block or other buffer, or an int as it is."""
    if isinstance(thing, int | numbers.Integral) and not isinstance(thing, bool):
        address = int(thing)
        if not 0 <= address < 2**64:
            raise ArgumentError(f"address: {hex(address)[:40]} is not an address of 64 bits")
        return address
    interface = getattr(thing, "__array_interface__", None)  # of arrays, which may be of a type without a buffer
    if isinstance(interface, dict):
        return int(interface["data"][0])
    try:
        return _binding.address_of(thing)
    except TypeError:
        msg = f"expected an array, a Block, a buffer or an address, not {type(thing).__name__}"
        raise ArgumentTypeError(msg) from None


class Witness(SecretIntake, Arena):
    """An arena for secrets: Arena("witness", ...)."""

    __slots__ = ()
    _fixed_kind = Kind.WITNESS

    def __init__(self, capacity: Size, **options: Unpack[ArenaOptions]) -> None:
        super().__init__(Kind.WITNESS, capacity, **options)


class Polynomial(Arena):
    """An arena for large vectors: Arena("polynomial", ...)."""

    __slots__ = ()
    _fixed_kind = Kind.POLYNOMIAL

    def __init__(self, capacity: Size, **options: Unpack[ArenaOptions]) -> None:
        super().__init__(Kind.POLYNOMIAL, capacity, **options)


class Scratch(Arena):
    """An arena for temporaries: Arena("scratch", ...)."""

    __slots__ = ()
    _fixed_kind = Kind.SCRATCH

    def __init__(self, capacity: Size, **options: Unpack[ArenaOptions]) -> None:
        super().__init__(Kind.SCRATCH, capacity, **options)


class Arenas:
    """The three arenas of a prover: one for secrets, one for vectors, one for temporaries.

    Parameters
    ----------
    witness, polynomial, scratch : int or str
        The capacities.

    Raises
    ------
    ArgumentError, ArgumentTypeError, OutOfMemoryError, LockError
        As Arena. None of the three is left then.

    Examples
    --------
    >>> import fastalloc as fa
    >>> with fa.Arenas(witness="1MiB", polynomial="16MiB", scratch="4MiB") as memory:
    ...     memory
    <fastalloc.Arenas: witness 0 B of 1 MiB, polynomial 0 B of 16 MiB, scratch 0 B of 4 MiB>
    """

    __slots__ = ("__weakref__", "_polynomial", "_scratch", "_witness")

    def __init__(self, witness: Size = "128MiB", polynomial: Size = "4GiB", scratch: Size = "256MiB") -> None:
        if hasattr(self, "_scratch"):
            msg = "__init__: the arenas have been made already"
            raise ArgumentError(msg)
        sizes = {"witness": witness, "polynomial": polynomial, "scratch": scratch}
        capacities = {name: parse_size(size, name, minimum=1) for name, size in sizes.items()}
        with contextlib.ExitStack() as made:
            self._witness = made.enter_context(Witness(capacities["witness"]))
            self._polynomial = made.enter_context(Polynomial(capacities["polynomial"]))
            self._scratch = made.enter_context(Scratch(capacities["scratch"]))
            made.pop_all()

    @property
    def witness(self) -> Witness:
        """For secrets."""
        return self._witness

    @property
    def polynomial(self) -> Polynomial:
        """For large vectors."""
        return self._polynomial

    @property
    def scratch(self) -> Scratch:
        """For temporaries."""
        return self._scratch

    def __iter__(self) -> Iterator[Arena]:
        return iter((self._witness, self._polynomial, self._scratch))

    @property
    def closed(self) -> bool:
        """Whether all three are closed."""
        return all(arena.closed for arena in self)

    def stats(self) -> ArenasStats:
        """The statistics of the three."""
        return ArenasStats(self._witness.stats(), self._polynomial.stats(), self._scratch.stats())

    def close(self) -> None:
        """Close all three, the witness first. Idempotent."""
        for arena in self:
            arena.close()

    def __enter__(self) -> Self:
        for arena in self:
            arena.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        def state(arena: Arena) -> str:
            if arena.closed:
                return f"{arena.kind} closed"
            stats = arena.stats()
            return f"{arena.kind} {format_size(stats.used)} of {format_size(stats.capacity)}"

        return f"<fastalloc.Arenas: {', '.join(map(state, self))}>"
