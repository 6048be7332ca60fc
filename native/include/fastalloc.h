/*
 * fastalloc.h - memory for provers and other cryptographic programs
 * =================================================================
 *
 * Two things can be created here, and they share nothing with each other:
 *
 *     fa_arena     one reserved range of address space, filled from the bottom up and released at once
 *     fa_manager   a small reentrant heap: malloc, calloc, realloc, free, zeroing every byte before it is freed
 *
 *     fa_arena_options options;
 *     fa_arena_options_init(&options, FA_POLYNOMIAL);
 *     options.capacity = (size_t)4 << 30;
 *     fa_arena *arena = fa_arena_create(&options, NULL);
 *     uint32_t *vector = fa_arena_alloc(arena, sizeof *vector << 20, 0);
 *     ...
 *     fa_arena_reset(arena);           // O(1); the pages stay resident, the next round takes no page fault
 *     fa_arena_destroy(arena);
 *
 * Glossary
 *   block     what an allocation returns
 *   arena     a region and the blocks in it; `witness` holds secrets, `polynomial` vectors, `scratch` temporaries
 *   region    reserved address space with its guard pages and the protections that took effect
 *   granule   the unit in which an arena measures blocks: its default alignment, 64 bytes at the most
 *   mark      a place in an arena to rewind to
 *   pool      the fixed-size blocks a manager is created with
 *   slab      64 KiB of blocks of another size, made when the pool is exhausted or its blocks are too small
 *   run       whole pages of a manager, in a row: a block above 8 KiB that is not large
 *   fallback  a block that came from elsewhere because its place was full: from slabs, runs or malloc
 *   guard     an inaccessible page: whoever runs over the end of what is before it dies
 *   canary    bytes that nobody can guess, next to a block; whoever overwrites them is found when the block is freed
 *   sealed    an arena whose pages are inaccessible, or read-only, until it is unsealed
 *   cached    memory that nobody holds and that stays resident for the next allocation
 *
 * Rules
 *   - Failure is a null pointer or an fa_status. Nothing here exits, prints or reads the environment.
 *   - A size of 0 gives a block that is distinct from every other and may be freed.
 *   - Every block is aligned to 16 bytes at least (8 on 32-bit targets).
 *   - Arenas may be used by many threads at once, except that destroy, and reset, rewind and wipe of an untracked arena,
 *     need the caller to know that nobody still uses the blocks. A manager belongs to one thread unless FA_LOCKED.
 *   - A forked child may go on with an arena or a manager that no other thread was inside of. Blocks of a witness arena read
 *     zero there; secret memory is not there before the child's first call for the arena, which renews locks and canaries too.
 *   - Corruption (a double free, a pointer that was never a block, a broken canary) is reported to `on_corruption` of
 *     the options; by default it writes one line to standard error with write(2) and aborts. A handler that returns makes
 *     the faulty call do nothing; a block with a broken canary is wiped and freed all the same.
 */
#ifndef FASTALLOC_H
#define FASTALLOC_H

#ifndef FA_CDEF /* the cffi definition is this header, preprocessed with FA_CDEF */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#endif

#define FA_VERSION "0.1.0"

#if defined(FA_CDEF)
#define FA_API
#elif defined(_WIN32) && defined(FA_SHARED)
#define FA_API __declspec(dllimport)
#elif defined(__GNUC__)
#define FA_API __attribute__((visibility("default")))
#else
#define FA_API
#endif

#if defined(__cplusplus)
extern "C" {
#endif

typedef enum fa_status {
    FA_OK,
    FA_ERR_NOMEM,       /* no memory, no address space, or the arena's or manager's own limit */
    FA_ERR_INVALID,     /* an argument is out of its documented range */
    FA_ERR_BUSY,        /* a tracked arena has live blocks in the way */
    FA_ERR_FOREIGN,     /* the pointer does not belong here */
    FA_ERR_STALE,       /* the mark has been rewound past, or is of before a reset */
    FA_ERR_CORRUPT,     /* a double free, a freed or an interior pointer */
    FA_ERR_LOCK,        /* memory could not be locked in RAM, and the lock was required */
    FA_ERR_UNSUPPORTED, /* a required protection does not exist on this platform */
    FA_ERR_SEALED       /* the arena is sealed: it hands nothing out */
} fa_status;

typedef enum fa_arena_kind { FA_WITNESS, FA_POLYNOMIAL, FA_SCRATCH } fa_arena_kind;

/* What to do when an arena is full. A witness arena only knows FA_FULL_FAIL: secrets never leave protected memory. */
typedef enum fa_full_policy {
    FA_FULL_FAIL,     /* the allocation fails */
    FA_FULL_FALLBACK  /* the block comes from malloc, is counted, and dies with the arena's reset */
} fa_full_policy;

typedef enum fa_huge_pages {
    FA_HUGE_OFF,
    FA_HUGE_TRANSPARENT, /* ask the kernel for 2 MiB pages where it has them */
    FA_HUGE_TLB_2M,      /* reserved 2 MiB pages; without any, transparent ones (visible in the protection) */
    FA_HUGE_TLB_1G       /* reserved 1 GiB pages; likewise */
} fa_huge_pages;

/* A protection is left off, tried (what took effect is in fa_protection), or required (else creation or growth fails). */
typedef enum fa_want { FA_OFF, FA_TRY, FA_REQUIRE } fa_want;

/*
 * Where the guard pages of a witness arena are. FA_GUARD_ENDS costs nothing per block: for many small secrets. With
 * FA_GUARD_BLOCKS each block has pages of its own and a guard page after them, against which it ends: a byte beyond the
 * end, rounded up to the block's alignment, kills the process, as does a touch of a freed block. What rounding leaves, and
 * 16 bytes in front, are a canary. That costs two pages and some system calls a block: for few and precious secrets.
 * Alignments go up to a page there.
 */
typedef enum fa_guard {
    FA_GUARD_ENDS,   /* below and above all blocks */
    FA_GUARD_BLOCKS  /* and after every block */
} fa_guard;

/* What a seal forbids. */
typedef enum fa_seal {
    FA_SEAL_OFF,
    FA_SEAL_READ, /* blocks may be read only: writing kills the process */
    FA_SEAL_NONE  /* touching a block kills the process */
} fa_seal;

typedef enum fa_flags {
    FA_TRACKED = 1, /* arenas: reset and rewind refuse, with FA_ERR_BUSY, to release live blocks */
    FA_LOCKED = 2,  /* managers: any thread may use it at any time */
    FA_HARDENED = 4 /* managers: misuse is prevented or reported by kind, see the manager */
} fa_flags;

typedef struct fa_arena fa_arena;
typedef struct fa_manager fa_manager;
struct fa_os; /* the operating-system contract, native/src/os/os.h; tests replace it */

/* Called with one line that says what is wrong, without a newline. */
typedef void (*fa_corruption_handler)(void *context, const char *message);

typedef struct fa_mark {
    uint64_t position;
    uint64_t serial;
} fa_mark;

typedef struct fa_arena_options {
    size_t struct_size;              /* set by fa_arena_options_init */
    fa_arena_kind kind;
    unsigned flags;                  /* FA_TRACKED or 0 */
    size_t capacity;                 /* bytes of address space for blocks; rounded up to whole pages */
    size_t alignment;                /* of every block unless asked otherwise: a power of two, 16 B (8 B on 32-bit targets) to 2 MiB */
    fa_full_policy on_full;
    fa_huge_pages huge_pages;
    fa_want guard_pages;             /* inaccessible pages below and above the blocks */
    fa_want lock;                    /* in RAM, growing with use */
    fa_want no_dump;                 /* out of core dumps */
    fa_want wipe_on_fork;            /* zero in a forked child */
    const char *name;                /* for messages; copied, 31 bytes are kept */
    fa_corruption_handler on_corruption;
    void *corruption_context;
    const struct fa_os *os;          /* null: this platform */
    fa_guard guard;                  /* where the guard pages are; FA_GUARD_BLOCKS: witness, with guard_pages not off */
    fa_want secret_memory;           /* out of the kernel's own map and of every debugger (memfd_secret): witness */
} fa_arena_options;

typedef struct fa_manager_options {
    size_t struct_size;              /* set by fa_manager_options_init */
    unsigned flags;                  /* FA_LOCKED, FA_HARDENED, both, or 0 */
    size_t block_size;               /* bytes in a block of the pool: a multiple of 16, at most 8 KiB; 128 */
    size_t pool_blocks;              /* blocks in the pool, below 2^24; 0 for none; 8192 */
    size_t large_size;               /* from this size on, blocks are mapped and cached: above 8 KiB, up to 1 GiB; 64 KiB */
    size_t cache_limit;              /* bytes of freed blocks above 8 KiB that stay resident, more if the system refuses them; 64 MiB */
    uint32_t cache_age;              /* milliseconds after which a cached block is given back; 10,000; 0: never */
    size_t limit;                    /* bytes that live blocks may ask for, exactly; 0: no limit */
    fa_corruption_handler on_corruption;
    void *corruption_context;
    const struct fa_os *os;          /* null: this platform */
} fa_manager_options;

/*
 * Statistics: these lists are the only place where a field is named. They make the C structs, the JSON of
 * fa_*_stats_json, and the Python dataclasses.
 */
#define FA_ARENA_STATS(X)                                                                                              \
    X(requested, "bytes", "asked for by the blocks that are live")                                                     \
    X(used, "bytes", "taken from the capacity by live blocks, rounding and alignment included")                        \
    X(reserved, "bytes", "address space of the region, guard pages included")                                          \
    X(resident, "bytes", "of the region in physical memory now")                                                       \
    X(cached, "bytes", "freed, below the cursor and ready for reuse")                                                  \
    X(peak, "bytes", "largest value of used so far")                                                                   \
    X(capacity, "bytes", "that blocks can take in all")                                                                \
    X(fallback_bytes, "bytes", "asked for by the live blocks that came from malloc because the arena was full")        \
    X(live, "count", "blocks allocated and not yet freed or released")                                                 \
    X(allocated, "count", "blocks allocated since creation")                                                           \
    X(freed, "count", "blocks freed or released since creation")                                                       \
    X(resets, "count", "resets")                                                                                       \
    X(rewinds, "count", "rewinds, and scopes that ended")                                                              \
    X(wipes, "count", "wipes of the whole arena")                                                                      \
    X(fallbacks, "count", "blocks that came from malloc because the arena was full")                                   \
    X(failures, "count", "allocations refused")                                                                        \
    X(locked, "bytes", "locked in RAM now")                                                                            \
    X(lock_wanted, "bytes", "that should be locked in RAM; after a FA_ERR_LOCK, what was wanted and refused")          \
    X(lock_limit, "bytes", "that the process may lock (RLIMIT_MEMLOCK)")

#define FA_MANAGER_STATS(X)                                                                                            \
    X(requested, "bytes", "asked for by the blocks that are live")                                                     \
    X(used, "bytes", "held by live blocks, rounding included")                                                         \
    X(reserved, "bytes", "address space of pools, live large blocks and cache")                                        \
    X(resident, "bytes", "estimate of reserved that is in physical memory")                                            \
    X(cached, "bytes", "freed large blocks and page runs kept resident for reuse")                                     \
    X(peak, "bytes", "largest value of used so far")                                                                   \
    X(live, "count", "blocks allocated and not yet freed")                                                             \
    X(allocated, "count", "blocks allocated since creation")                                                           \
    X(freed, "count", "blocks freed since creation")                                                                   \
    X(pool_blocks, "count", "blocks in the pool, free and taken")                                                      \
    X(pool_live, "count", "blocks of the pool that are live")                                                          \
    X(slab_bytes, "bytes", "of slabs, made as needed for blocks that did not fit in the pool")                         \
    X(slab_live, "count", "blocks of slabs that are live")                                                             \
    X(run_bytes, "bytes", "of page runs, for blocks between slabs and large ones: live, or resident for reuse")        \
    X(run_live, "count", "blocks of page runs that are live")                                                          \
    X(fallbacks, "count", "blocks that did not fit in the pool and came from slabs, page runs or malloc")              \
    X(large, "count", "blocks that came from the kernel or the cache")                                                 \
    X(cache_hits, "count", "large blocks served from the cache")                                                       \
    X(moved, "count", "reallocations that moved pages instead of copying bytes")                                       \
    X(failures, "count", "allocations refused")

#define FA_PROTECTION(X)                                                                                               \
    X(guarded, "bytes", "of inaccessible guard pages below and above the blocks")                                      \
    X(guarded_blocks, "bytes", "of inaccessible guard pages after live blocks (FA_GUARD_BLOCKS)")                      \
    X(locked, "bytes", "locked in RAM now")                                                                            \
    X(lock_wanted, "bytes", "that should be locked in RAM; after a FA_ERR_LOCK, what was wanted and refused")          \
    X(lock_limit, "bytes", "that the process may lock (RLIMIT_MEMLOCK)")                                               \
    X(no_dump, "bytes", "left out of core dumps")                                                                      \
    X(wipe_on_fork, "bytes", "that a forked child sees as zero")                                                       \
    X(no_fork, "bytes", "that a forked child does not have: secret memory")                                            \
    X(secret, "bytes", "out of the kernel's own map and of every debugger (memfd_secret)")                             \
    X(sealed, "bytes", "inaccessible or read-only now, because the arena is sealed")                                   \
    X(transparent_huge, "bytes", "for which transparent huge pages were asked and accepted")                           \
    X(reserved_huge, "bytes", "backed by the kernel's reserved huge pages (hugetlb)")

#define FA_STATS_FIELD(name, unit, doc) uint64_t name;
typedef struct fa_arena_stats {
    FA_ARENA_STATS(FA_STATS_FIELD)
} fa_arena_stats;
typedef struct fa_manager_stats {
    FA_MANAGER_STATS(FA_STATS_FIELD)
} fa_manager_stats;
typedef struct fa_protection {
    FA_PROTECTION(FA_STATS_FIELD)
} fa_protection;
#undef FA_STATS_FIELD

/* ---- arenas ---------------------------------------------------------------------------------------------------- */

/* The defaults of the kind; set .capacity and whatever else differs, then create. */
FA_API void fa_arena_options_init(fa_arena_options *options, fa_arena_kind kind);

/* Null on failure, with the reason in *status (which may be null). Two system calls or a few; no page is touched. */
FA_API fa_arena *fa_arena_create(const fa_arena_options *options, fa_status *status);

/* Wipes a witness arena, then returns all memory to the system. Null is allowed. */
FA_API void fa_arena_destroy(fa_arena *arena);

/*
 * A block of `size` bytes aligned to `alignment` (a power of two up to 2 MiB; 0: the arena's default), or null.
 * Scratch: O(1), no atomic operation and no lock but at a chunk's end. Polynomial, witness and tracked: O(1), one short
 * lock; a freed block that fits is handed out again, still resident. Witness blocks are zero.
 */
FA_API void *fa_arena_alloc(fa_arena *arena, size_t size, size_t alignment);

/* Why the last allocation that was refused was: FA_ERR_NOMEM, _INVALID, _LOCK, _SEALED, _STALE. FA_OK if none was. */
FA_API fa_status fa_arena_last_refusal(const fa_arena *arena);

/* Likewise, zero. Bytes that nobody has used yet are known to be zero and are not touched. */
FA_API void *fa_arena_alloc_zeroed(fa_arena *arena, size_t size, size_t alignment);

/*
 * Resizes a block, in place where that is possible; null leaves the old block as it was. `block` may be null.
 * `old_size` is what was asked for before. In a witness arena the place it moves from is wiped.
 */
FA_API void *fa_arena_realloc(fa_arena *arena, void *block, size_t old_size, size_t new_size, size_t alignment);

/*
 * Frees a block. The newest one moves the cursor back; others are kept for reuse, merged with their free neighbours
 * (in an untracked scratch arena they wait for rewind or reset). `size` is what was asked for. Null is allowed.
 */
FA_API void fa_arena_free(fa_arena *arena, void *block, size_t size);

/* Bytes that may be used at `block`: at least what was asked for; 0 if the block is unknown (untracked scratch). */
FA_API size_t fa_arena_usable_size(const fa_arena *arena, const void *block);

/*
 * Marks nest. While a mark is outstanding, what was allocated before it stays apart: space freed below is reused after a
 * rewind to below, or a reset. A mark may be rewound to any number of times; rewinding to an older mark makes it stale.
 */
FA_API fa_mark fa_arena_mark(const fa_arena *arena);
FA_API fa_status fa_arena_rewind(fa_arena *arena, fa_mark mark);

/* Releases every block in O(1); the pages stay resident. A witness arena wipes what was in use, fallbacks are freed. */
FA_API fa_status fa_arena_reset(fa_arena *arena);

/* Zeroes every byte ever handed out, but for fallbacks freed before, then resets; a tracked arena with live blocks is zeroed and
 * keeps them. */
FA_API fa_status fa_arena_wipe(fa_arena *arena);

/*
 * Seals the arena: from now on a touch of any of its blocks (FA_SEAL_READ: a write) kills the process, in every thread, also one
 * that is copying a block inside of realloc, or zeroing one. Blocks that came from malloc because it was full stay open.
 * What does not touch blocks goes on: marks, statistics, trim. Freeing a block, rewind, reset, wipe and destroy open a
 * witness arena's pages for as long as it takes to zero them; allocation and realloc fail, with FA_ERR_SEALED in
 * fa_arena_last_refusal. Not for untracked scratch arenas (FA_ERR_INVALID). FA_ERR_NOMEM, and nothing changed, if
 * the system refuses. Cost: a system call, or one a live block with FA_GUARD_BLOCKS, that grow with the resident pages.
 */
FA_API fa_status fa_arena_seal(fa_arena *arena, fa_seal how);
FA_API fa_status fa_arena_unseal(fa_arena *arena); /* as fa_arena_seal(arena, FA_SEAL_OFF) */

/*
 * Opens a sealed arena until the matching _end: of the calls that overlap, by any threads, the first opens and the last
 * seals again. Meanwhile it is open to all threads, and seal and unseal say what holds after the last _end.
 */
FA_API fa_status fa_arena_unsealed_begin(fa_arena *arena);
FA_API fa_status fa_arena_unsealed_end(fa_arena *arena);

/* Gives the pages of free memory back to the system, all but `keep` bytes of them. */
FA_API fa_status fa_arena_trim(fa_arena *arena, size_t keep);

/* Whether the pointer lies in memory of this arena that a block may occupy. */
FA_API bool fa_arena_owns(const fa_arena *arena, const void *pointer);

FA_API fa_status fa_arena_get_stats(const fa_arena *arena, fa_arena_stats *stats);
FA_API fa_status fa_arena_get_protection(const fa_arena *arena, fa_protection *protection);

/* ---- the manager ----------------------------------------------------------------------------------------------- */

/*
 * FA_HARDENED, for programs that are not trusted to use memory well. Blocks come from slabs, each between canaries, and
 * above 8 KiB from mappings of their own, each between guard pages; there is no pool, and a block has exactly the bytes
 * that were asked for. Freed blocks are zero and wait before they are used again, at random. What is found when a
 * block is freed, resized or reused, by fa_manager_check, and at the end, goes to `on_corruption`, by kind: a block freed before,
 * a pointer into a block, not aligned, not of here; a block overrun before its beginning or at its end, or written to after
 * it was freed. A touch of a guard page, of a freed block above 8 KiB, or of a block of 0 bytes (of 16,384 at a time) kills the
 * process.
 * Above 8 KiB a block takes two system calls and two of the kernel's 65,530 mappings.
 */
FA_API void fa_manager_options_init(fa_manager_options *options);
FA_API fa_manager *fa_manager_create(const fa_manager_options *options, fa_status *status); /* null options: defaults */

/* Frees, zeroed, whatever is still live. Null is allowed. */
FA_API void fa_manager_destroy(fa_manager *manager);

FA_API void *fa_malloc(fa_manager *manager, size_t size);
FA_API void *fa_calloc(fa_manager *manager, size_t count, size_t size);
FA_API void *fa_aligned_alloc(fa_manager *manager, size_t alignment, size_t size); /* a power of two up to 2 MiB */

/* Null leaves the old block as it was. A size of 0 frees it and returns null. Large blocks move pages, not bytes. */
FA_API void *fa_realloc(fa_manager *manager, void *block, size_t size);
FA_API void fa_free(fa_manager *manager, void *block);

/* Bytes that may be used at `block`; 0 if it is not a live block of this manager, or one of 0 bytes of a hardened one. */
FA_API size_t fa_usable_size(const fa_manager *manager, const void *block);

/* Whether `pointer` is a live block of this manager. */
FA_API bool fa_owns(const fa_manager *manager, const void *pointer);

/* Of a hardened manager: FA_ERR_CORRUPT if a block is damaged, after the first one was reported. Reads all it has ever used. */
FA_API fa_status fa_manager_check(fa_manager *manager);

/* Gives cached large blocks and empty slabs back to the system, all but `keep` bytes of them. */
FA_API fa_status fa_manager_trim(fa_manager *manager, size_t keep);
FA_API fa_status fa_manager_get_stats(const fa_manager *manager, fa_manager_stats *stats);

/* ---- the rest -------------------------------------------------------------------------------------------------- */

/* Zeroes memory in a way that no compiler removes. */
FA_API void fa_secure_zero(void *memory, size_t size);

/* A lua_Alloc: lua_newstate(fa_lua_alloc, manager). */
FA_API void *fa_lua_alloc(void *manager, void *block, size_t old_size, size_t new_size);

/* One line of JSON into `text` (always terminated if size > 0); returns the length that all of it needs, as snprintf. */
FA_API size_t fa_arena_stats_json(const fa_arena_stats *stats, char *text, size_t size);
FA_API size_t fa_manager_stats_json(const fa_manager_stats *stats, char *text, size_t size);

FA_API const char *fa_status_string(fa_status status);
FA_API const char *fa_version(void);

#if defined(__cplusplus)
}
#endif
#endif
