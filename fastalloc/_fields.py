"""The fields of the statistics. Generated from native/include/fastalloc.h by build_ffi.py --stubs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ArenaFields:
    """A record of C, as it is."""

    requested: int
    """Bytes: asked for by the blocks that are live."""
    used: int
    """Bytes: taken from the capacity by live blocks, rounding and alignment included."""
    reserved: int
    """Bytes: address space of the region, guard pages included."""
    resident: int
    """Bytes: of the region in physical memory now."""
    cached: int
    """Bytes: freed, below the cursor and ready for reuse."""
    peak: int
    """Bytes: largest value of used so far."""
    capacity: int
    """Bytes: that blocks can take in all."""
    fallback_bytes: int
    """Bytes: asked for by the live blocks that came from malloc because the arena was full."""
    live: int
    """Blocks allocated and not yet freed or released."""
    allocated: int
    """Blocks allocated since creation."""
    freed: int
    """Blocks freed or released since creation."""
    resets: int
    """Resets."""
    rewinds: int
    """Rewinds, and scopes that ended."""
    wipes: int
    """Wipes of the whole arena."""
    fallbacks: int
    """Blocks that came from malloc because the arena was full."""
    failures: int
    """Allocations refused."""
    locked: int
    """Bytes: locked in RAM now."""
    lock_wanted: int
    """Bytes: that should be locked in RAM; after a FA_ERR_LOCK, what was wanted and refused."""
    lock_limit: int
    """Bytes: that the process may lock (RLIMIT_MEMLOCK)."""


ARENA_UNITS = {
    "requested": "bytes",
    "used": "bytes",
    "reserved": "bytes",
    "resident": "bytes",
    "cached": "bytes",
    "peak": "bytes",
    "capacity": "bytes",
    "fallback_bytes": "bytes",
    "live": "count",
    "allocated": "count",
    "freed": "count",
    "resets": "count",
    "rewinds": "count",
    "wipes": "count",
    "fallbacks": "count",
    "failures": "count",
    "locked": "bytes",
    "lock_wanted": "bytes",
    "lock_limit": "bytes",
}


@dataclass(frozen=True, slots=True)
class ManagerFields:
    """A record of C, as it is."""

    requested: int
    """Bytes: asked for by the blocks that are live."""
    used: int
    """Bytes: held by live blocks, rounding included."""
    reserved: int
    """Bytes: address space of pools, live large blocks and cache."""
    resident: int
    """Bytes: estimate of reserved that is in physical memory."""
    cached: int
    """Bytes: freed large blocks and page runs kept resident for reuse."""
    peak: int
    """Bytes: largest value of used so far."""
    live: int
    """Blocks allocated and not yet freed."""
    allocated: int
    """Blocks allocated since creation."""
    freed: int
    """Blocks freed since creation."""
    pool_blocks: int
    """Blocks in the pool, free and taken."""
    pool_live: int
    """Blocks of the pool that are live."""
    slab_bytes: int
    """Bytes: of slabs, made as needed for blocks that did not fit in the pool."""
    slab_live: int
    """Blocks of slabs that are live."""
    run_bytes: int
    """Bytes: of page runs, for blocks between slabs and large ones: live, or resident for reuse."""
    run_live: int
    """Blocks of page runs that are live."""
    fallbacks: int
    """Blocks that did not fit in the pool and came from slabs, page runs or malloc."""
    large: int
    """Blocks that came from the kernel or the cache."""
    cache_hits: int
    """Large blocks served from the cache."""
    moved: int
    """Reallocations that moved pages instead of copying bytes."""
    failures: int
    """Allocations refused."""


MANAGER_UNITS = {
    "requested": "bytes",
    "used": "bytes",
    "reserved": "bytes",
    "resident": "bytes",
    "cached": "bytes",
    "peak": "bytes",
    "live": "count",
    "allocated": "count",
    "freed": "count",
    "pool_blocks": "count",
    "pool_live": "count",
    "slab_bytes": "bytes",
    "slab_live": "count",
    "run_bytes": "bytes",
    "run_live": "count",
    "fallbacks": "count",
    "large": "count",
    "cache_hits": "count",
    "moved": "count",
    "failures": "count",
}


@dataclass(frozen=True, slots=True)
class MallocFields:
    """A record of C, as it is."""

    used: int
    """Bytes: held by live blocks, rounding included."""
    held: int
    """Bytes: of spans, medium and large blocks and thread heaps: used, and what is free among it."""
    cached: int
    """Bytes: free and resident: runs of pages and large blocks."""
    resident: int
    """Bytes: estimate: held and cached."""
    live: int
    """Blocks allocated and not yet freed."""
    allocated: int
    """Blocks allocated since the start."""
    freed: int
    """Blocks freed since the start."""
    peak: int
    """Bytes: largest value of held so far."""
    pages_live: int
    """Bytes: of runs in use: spans, medium blocks and thread heaps."""
    span_bytes: int
    """Bytes: of spans, which hold the small blocks."""
    medium_live: int
    """Live blocks that are runs of pages."""
    medium_bytes: int
    """Bytes: of them."""
    medium_allocated: int
    """Of them since the start."""
    large_live: int
    """Live blocks above large_size, or that did not fit in the range."""
    large_bytes: int
    """Bytes: of them."""
    large_allocated: int
    """Of them since the start."""
    large_cached: int
    """Bytes: freed large blocks kept resident for reuse."""
    cache_hits: int
    """Large blocks served from the cache."""
    pages_cached: int
    """Bytes: free runs kept resident for reuse."""
    pages_reused: int
    """Bytes: of resident free runs handed out again: a page fault avoided for each page."""
    large_reused: int
    """Bytes: of cached large blocks handed out again: likewise."""
    returned: int
    """Bytes: given back to the system so far."""
    assembled: int
    """Of them, put together from several cached ones by moving pages."""
    moved: int
    """Reallocations that moved pages instead of copying bytes."""
    stolen: int
    """Blocks that were taken back from idle threads."""
    fallbacks: int
    """Blocks that were mapped one by one because the range was full."""
    foreign: int
    """Pointers of other allocators that were passed on."""
    failures: int
    """Allocations refused."""
    reserved: int
    """Bytes: address space of the range, of live large blocks and of the cache."""
    heaps: int
    """Thread heaps ever made, those that wait for a thread included."""
    threads: int
    """Threads that have a heap now."""


MALLOC_UNITS = {
    "used": "bytes",
    "held": "bytes",
    "cached": "bytes",
    "resident": "bytes",
    "live": "count",
    "allocated": "count",
    "freed": "count",
    "peak": "bytes",
    "pages_live": "bytes",
    "span_bytes": "bytes",
    "medium_live": "count",
    "medium_bytes": "bytes",
    "medium_allocated": "count",
    "large_live": "count",
    "large_bytes": "bytes",
    "large_allocated": "count",
    "large_cached": "bytes",
    "cache_hits": "count",
    "pages_cached": "bytes",
    "pages_reused": "bytes",
    "large_reused": "bytes",
    "returned": "bytes",
    "assembled": "count",
    "moved": "count",
    "stolen": "count",
    "fallbacks": "count",
    "foreign": "count",
    "failures": "count",
    "reserved": "bytes",
    "heaps": "count",
    "threads": "count",
}


@dataclass(frozen=True, slots=True)
class NumpyFields:
    """A record of C, as it is."""

    arrays: int
    """Blocks that live arrays hold."""
    used: int
    """Bytes: held by live arrays, rounding included."""
    peak: int
    """Bytes: largest value of used so far, seen whenever a large block or a span is taken."""
    cached: int
    """Bytes: kept resident for the next arrays."""
    reserved: int
    """Bytes: address space."""
    large: int
    """Blocks that came from the kernel or the cache of large blocks."""
    cache_hits: int
    """Large blocks served from the cache."""
    moved: int
    """Reallocations that moved pages instead of copying bytes."""
    fallbacks: int
    """Allocations that were refused here and went to numpy's own functions."""


NUMPY_UNITS = {
    "arrays": "count",
    "used": "bytes",
    "peak": "bytes",
    "cached": "bytes",
    "reserved": "bytes",
    "large": "count",
    "cache_hits": "count",
    "moved": "count",
    "fallbacks": "count",
}


@dataclass(frozen=True, slots=True)
class ProtectionFields:
    """A record of C, as it is."""

    guarded: int
    """Bytes: of inaccessible guard pages below and above the blocks."""
    guarded_blocks: int
    """Bytes: of inaccessible guard pages after live blocks (FA_GUARD_BLOCKS)."""
    locked: int
    """Bytes: locked in RAM now."""
    lock_wanted: int
    """Bytes: that should be locked in RAM; after a FA_ERR_LOCK, what was wanted and refused."""
    lock_limit: int
    """Bytes: that the process may lock (RLIMIT_MEMLOCK)."""
    no_dump: int
    """Bytes: left out of core dumps."""
    wipe_on_fork: int
    """Bytes: that a forked child sees as zero."""
    no_fork: int
    """Bytes: that a forked child does not have: secret memory."""
    secret: int
    """Bytes: out of the kernel's own map and of every debugger (memfd_secret)."""
    sealed: int
    """Bytes: inaccessible or read-only now, because the arena is sealed."""
    transparent_huge: int
    """Bytes: for which transparent huge pages were asked and accepted."""
    reserved_huge: int
    """Bytes: backed by the kernel's reserved huge pages (hugetlb)."""


PROTECTION_UNITS = {
    "guarded": "bytes",
    "guarded_blocks": "bytes",
    "locked": "bytes",
    "lock_wanted": "bytes",
    "lock_limit": "bytes",
    "no_dump": "bytes",
    "wipe_on_fork": "bytes",
    "no_fork": "bytes",
    "secret": "bytes",
    "sealed": "bytes",
    "transparent_huge": "bytes",
    "reserved_huge": "bytes",
}
