"""The one door to fastalloc._native: options and sizes in, exceptions out.

No other module imports `_native` or touches `lib`. Every function that takes a Heap is safe against other threads: the
Heap is referenced for as long as the function runs, and the memory lives for as long as the Heap.
"""

import atexit
import mmap
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from fastalloc import _native
from fastalloc._native import (
    Allocator,
    ArenaBase,
    ArenaScope,
    Block,
    Heap,
    InstalledAllocator,
    ManagerBase,
    OtherAllocator,
    Routed,
    Unsealed,
    address_of,
    any_owns,
    fill_random,
    find_pieces,
    freed_objects_are_valid,
    get_allocator,
    install,
    installed,
    installed_is_valid,
    numpy_stats,
    owner_of,
    secure_zero,
    set_allocator,
    uninstall,
    using_allocator,
    wipe_freed_objects,
    wipe_stack,
    wipes_freed_objects,
)
from fastalloc.errors import (
    ArgumentError,
    ClosedError,
    CorruptionError,
    FastallocError,
    ForeignBlockError,
    InUseError,
    LockError,
    OutOfMemoryError,
    SealedError,
    StaleMarkError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from fastalloc._native import CData

__all__ = [
    "Allocator",
    "ArenaBase",
    "ArenaScope",
    "Block",
    "Heap",
    "InstalledAllocator",
    "ManagerBase",
    "OtherAllocator",
    "Routed",
    "Unsealed",
    "address_of",
    "any_owns",
    "fill_random",
    "find_pieces",
    "freed_objects_are_valid",
    "get_allocator",
    "install",
    "installed",
    "installed_is_valid",
    "numpy_stats",
    "owner_of",
    "secure_zero",
    "set_allocator",
    "uninstall",
    "using_allocator",
    "wipe_freed_objects",
    "wipe_stack",
    "wipes_freed_objects",
]

_native.refuse_subinterpreters()

ffi, lib = _native.ffi, _native.lib

KINDS = {"witness": lib.FA_WITNESS, "polynomial": lib.FA_POLYNOMIAL, "scratch": lib.FA_SCRATCH}
FULL_POLICIES = {"fail": lib.FA_FULL_FAIL, "fallback": lib.FA_FULL_FALLBACK}
HUGE_PAGES = {
    "off": lib.FA_HUGE_OFF,
    "transparent": lib.FA_HUGE_TRANSPARENT,
    "hugetlb": lib.FA_HUGE_TLB_2M,
    "hugetlb-1GiB": lib.FA_HUGE_TLB_1G,
}
GUARDS = {"ends": lib.FA_GUARD_ENDS, "block": lib.FA_GUARD_BLOCKS}
SEALS = {"read": lib.FA_SEAL_READ, "none": lib.FA_SEAL_NONE}
WANTS = {"off": lib.FA_OFF, "try": lib.FA_TRY, "require": lib.FA_REQUIRE}

_ERRORS: dict[int, type[FastallocError]] = {
    lib.FA_ERR_NOMEM: OutOfMemoryError,
    lib.FA_ERR_INVALID: ArgumentError,
    lib.FA_ERR_BUSY: InUseError,
    lib.FA_ERR_FOREIGN: ForeignBlockError,
    lib.FA_ERR_STALE: StaleMarkError,
    lib.FA_ERR_CORRUPT: CorruptionError,
    lib.FA_ERR_LOCK: LockError,
    lib.FA_ERR_UNSUPPORTED: UnsupportedError,
    lib.FA_ERR_SEALED: SealedError,
}

Option = int | str | None


def version() -> str:
    """The version of the C library."""
    return ffi.string(lib.fa_version()).decode()


def describe(status: int) -> str:
    """What the C library calls a status."""
    return ffi.string(lib.fa_status_string(status)).decode()


def fail(status: int, message: str) -> NoReturn:
    """Raise the exception of a status."""
    raise _ERRORS.get(status, FastallocError)(message)


def _check(status: int, doing: str) -> None:
    if status != lib.FA_OK:
        fail(status, f"{doing}: {describe(status)}")


# ---- creation --------------------------------------------------------------------------------------------------------


def _fill(options: "CData", values: Mapping[str, Option]) -> None:
    """Set what is not None: the rest stays at the default of the C library."""
    for name, value in values.items():
        if value is not None:
            setattr(options, name, value)


def create_arena(kind: str, label: str, lineage: int, values: Mapping[str, Option]) -> Heap:
    """A heap with a tracked arena; `values` are fields of fa_arena_options."""
    options = ffi.new("fa_arena_options *")
    lib.fa_arena_options_init(options, KINDS[kind])
    options.flags |= lib.FA_TRACKED
    c_name = ffi.new("char[]", label.encode())  # copied by the C library
    options.name = c_name
    _fill(options, values)
    made = _native.create_arena(int(ffi.cast("uintptr_t", options)), label, lineage)
    if isinstance(made, Heap):
        return made
    capacity = f"{options.capacity} bytes"
    reasons = {
        lib.FA_ERR_NOMEM: f"the system does not give {capacity} of address space",
        lib.FA_ERR_INVALID: f"the C library refuses these options with a capacity of {capacity}",
        lib.FA_ERR_LOCK: f"secret_memory: not even {mmap.PAGESIZE} bytes may be locked in RAM (RLIMIT_MEMLOCK)",
        lib.FA_ERR_UNSUPPORTED: "a protection that is required does not exist on this platform",
    }
    if made == lib.FA_ERR_LOCK:
        error = LockError(f"{label}: {reasons[made]}")
        error.limit, error.wanted = _lock_limit(), mmap.PAGESIZE
        raise error
    fail(made, f"{label}: {reasons.get(made, describe(made))}")


def _lock_limit() -> int | None:
    """RLIMIT_MEMLOCK, where there is one."""
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return 2**64 - 1 if limit == resource.RLIM_INFINITY else limit


def create_manager(label: str, hardened: bool, values: Mapping[str, Option]) -> Heap:
    """A heap with a locked manager; `values` are fields of fa_manager_options."""
    options = ffi.new("fa_manager_options *")
    lib.fa_manager_options_init(options)
    options.flags |= lib.FA_LOCKED | (lib.FA_HARDENED if hardened else 0)
    _fill(options, values)
    made = _native.create_manager(int(ffi.cast("uintptr_t", options)), label, 0)
    if isinstance(made, Heap):
        return made
    if made == lib.FA_ERR_UNSUPPORTED:
        fail(made, f"{label}: hardened: the system gives no random bytes for canaries")
    size = f"{options.pool_blocks} blocks of {options.block_size} bytes"
    fail(made, f"{label}: cannot make a pool of {size}: {describe(made)}")


# ---- arenas ----------------------------------------------------------------------------------------------------------


def _arena(heap: Heap) -> "CData":
    return ffi.cast("fa_arena *", heap.arena)


def arena_live(heap: Heap, mark: tuple[int, int] | None = None) -> tuple[int, int]:
    """(blocks that are live, bytes they asked for); of all, or made since the mark."""
    live, size = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    since = ffi.NULL if mark is None else ffi.new("fa_mark *", mark)
    _check(lib.fa_arena_live(_arena(heap), since, live, size), "live")
    return live[0], size[0]


def arena_reset(heap: Heap) -> bool:
    """False if live blocks are in the way."""
    status = lib.fa_arena_reset(_arena(heap))
    if status != lib.FA_ERR_BUSY:
        _check(status, "reset")
    return status == lib.FA_OK


def arena_mark(heap: Heap) -> tuple[int, int]:
    """A place to rewind to: its position and its serial number."""
    mark = lib.fa_arena_mark(_arena(heap))
    return mark.position, mark.serial


def arena_rewind(heap: Heap, mark: tuple[int, int]) -> bool:
    """False if live blocks are in the way."""
    status = lib.fa_arena_rewind(_arena(heap), ffi.new("fa_mark *", mark)[0])
    if status == lib.FA_ERR_STALE:
        fail(status, "mark: it has been rewound past, or is of before a reset")
    if status != lib.FA_ERR_BUSY:
        _check(status, "rewind")
    return status == lib.FA_OK


def arena_wipe(heap: Heap) -> None:
    """Zero every byte ever handed out."""
    _check(lib.fa_arena_wipe(_arena(heap)), "wipe")


def arena_trim(heap: Heap, keep: int) -> None:
    """Give free pages back."""
    _check(lib.fa_arena_trim(_arena(heap), keep), "trim")


_SEAL_NAMES = {value: name for name, value in SEALS.items()}


def arena_seal(heap: Heap, label: str, how: str | None) -> None:
    """Seal it, or with None unseal it."""
    seal = lib.FA_SEAL_OFF if how is None else SEALS[how]
    status = lib.fa_arena_seal(_arena(heap), seal)
    if status == lib.FA_ERR_STALE:
        raise ClosedError(f"{label} is closed")
    if status != lib.FA_OK:
        doing = "unseal" if how is None else "seal"
        fail(status, f"{label}: the system refuses to {doing} its pages: {describe(status)}")


def arena_sealed(heap: Heap) -> str | None:
    """How it was sealed."""
    return _SEAL_NAMES.get(lib.fa_arena_get_seal(_arena(heap)))


def arena_owns(heap: Heap, address: int) -> bool:
    """Whether the address is where a block may be."""
    return lib.fa_arena_owns(_arena(heap), ffi.cast("void *", address))


def arena_restart_peak(heap: Heap) -> tuple[int, int]:
    """(the peak until now, what is used now), which is the new peak."""
    used = ffi.new("uint64_t *")
    peak = lib.fa_arena_restart_peak(_arena(heap), used)
    return peak, used[0]


def arena_usage(heap: Heap) -> tuple[int, int]:
    """(bytes used, the peak since it was last restarted)."""
    used, peak = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    lib.fa_arena_usage(_arena(heap), used, peak)
    return used[0], peak[0]


def arena_is_valid(heap: Heap) -> bool:
    """For tests: whether all that can be recounted is right."""
    return lib.fa_arena_is_valid(_arena(heap))


# ---- managers --------------------------------------------------------------------------------------------------------


def _manager(heap: Heap) -> "CData":
    return ffi.cast("fa_manager *", heap.manager)


def manager_trim(heap: Heap, keep: int) -> None:
    """Give cached large blocks back."""
    _check(lib.fa_manager_trim(_manager(heap), keep), "trim")


def manager_check(heap: Heap) -> None:
    """Of a hardened manager: the first damage that is found ends the process."""
    _check(lib.fa_manager_check(_manager(heap)), "check")


def manager_owns(heap: Heap, address: int) -> bool:
    """Whether the address is a live block."""
    return lib.fa_owns(_manager(heap), ffi.cast("void *", address))


def manager_restart_peak(heap: Heap) -> tuple[int, int]:
    """(the peak until now, what is used now), which is the new peak."""
    used = ffi.new("uint64_t *")
    peak = lib.fa_manager_restart_peak(_manager(heap), used)
    return peak, used[0]


def manager_is_valid(heap: Heap) -> bool:
    """For tests: whether all that can be recounted is right."""
    return lib.fa_manager_is_valid(_manager(heap))


# ---- statistics ------------------------------------------------------------------------------------------------------


def _record(record: "CData") -> dict[str, int]:
    return {name: getattr(record, name) for name, _ in ffi.typeof(record).item.fields}


def arena_stats(heap: Heap) -> dict[str, int]:
    """fa_arena_stats."""
    stats = ffi.new("fa_arena_stats *")
    _check(lib.fa_arena_get_stats(_arena(heap), stats), "stats")
    return _record(stats)


def arena_protection(heap: Heap) -> dict[str, int]:
    """fa_protection."""
    protection = ffi.new("fa_protection *")
    _check(lib.fa_arena_get_protection(_arena(heap), protection), "protection")
    return _record(protection)


def manager_stats(heap: Heap) -> dict[str, int]:
    """fa_manager_stats."""
    stats = ffi.new("fa_manager_stats *")
    _check(lib.fa_manager_get_stats(_manager(heap), stats), "stats")
    return _record(stats)


_DEAD_STACK = 256 << 10


def _at_exit() -> None:
    _native.leave_numpy()
    _native.leave_install()
    _native.close_all()
    _native.wipe_stack(_DEAD_STACK)


atexit.register(_at_exit)
