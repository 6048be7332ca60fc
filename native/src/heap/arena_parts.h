/*
 * heap/arena_parts.h - what the files of the arena share
 *
 *     arena.c    the API: creation, fallback, reset, wipe, trim, statistics, and the hot path of bumped arenas
 *     bumped.c   untracked scratch arenas: chunks of threads over mem/bump.h, no lock
 *     mapped.c   all others: every block known, over mem/blocks.h, a short lock
 *     guarded.c  of them, witness arenas with a guard page after every block
 *     secret.c   seals, forks, wipes
 *
 * Nothing outside these five includes it.
 */
#ifndef FA_HEAP_ARENA_PARTS_H
#define FA_HEAP_ARENA_PARTS_H

#include "arena.h"
#include "mem/blocks.h"
#include "mem/bump.h"
#include "mem/canary.h"
#include "mem/lock.h"
#include "mem/region.h"
#include "mem/table.h"
#include "mem/wipe.h"
#include "report.h"

#define NAME_BYTES 32
/* Threads with a chunk of their own in one arena; the address space for them is 128 KiB. Others share one, locked. */
#define MAX_THREADS 1024U
/* Arenas whose chunk a thread finds without a search. */
#define RECENT 4U

/* One thread's part of a bumped arena, a cache line or two of its own. */
typedef struct fa_thread {
    _Alignas(64) fa_chunk chunk;
    _Atomic size_t high;          /* the chunk's cursor was up to here */
    _Atomic uintptr_t owner;      /* the address of the thread's `fa_recents`; 0: not taken */
    _Atomic uint64_t epoch;       /* of the counts below that are per epoch */
    _Atomic uint64_t allocated;   /* since creation */
    _Atomic uint64_t tally;       /* of the chunk: blocks << TALLY_BITS | bytes asked for, moved to the next two now and then */
    _Atomic uint64_t live, bytes; /* in this epoch, but for the tally */
} fa_thread;

/* One addition counts a block and its bytes. A chunk has fewer than 2^32 of either. */
#define TALLY_BITS 32
#define TALLY_BLOCK ((uint64_t)1 << TALLY_BITS)

/* A mark in a bumped arena. */
typedef struct fa_bump_mark {
    uint64_t serial;
    _Atomic size_t position;
    uint64_t live, bytes; /* below it, but for fallback blocks, which may be freed meanwhile */
    uint64_t fallbacks;   /* the arena's, when nothing but those before the mark were there */
} fa_bump_mark;

struct fa_arena {
    /* The hot part. */
    fa_bump bump;
    unsigned char *base;
    size_t granule;
    size_t granule_mask;     /* granule - 1 */
    size_t recent;           /* which of a thread's `fa_recents` is ours: bytes from the first */
    uint64_t born;           /* the first epoch */
    bool fast;               /* bumped, and the default alignment is the granule */
    bool mapped;
    bool plain;              /* mapped and not guarded */
    bool guarded;            /* mapped, with a guard page after every block */
    bool careful;            /* mapped: fa_secret_ready is asked before an allocation */
    bool closed;
    bool tracked;
    fa_arena_kind kind;
    fa_full_policy on_full;
    size_t alignment;        /* the default */
    const fa_os *os;

    fa_lock lock;            /* of all that follows, but `thread` */
    fa_region region;
    fa_blocks blocks;        /* mapped */
    fa_table fallback;       /* value: size << 16 | level */
    _Atomic size_t high;     /* bytes from base that may hold something */
    uint64_t peak;
    uint64_t allocated, live, bytes; /* mapped: all; bumped: what is not in a thread's counts */
    uint64_t fallback_bytes, fallbacks, failures, resets, rewinds, wipes;

    fa_status refusal;       /* of the last allocation that failed */
    fa_seal seal, sealed;    /* asked for; what the pages are, or at most are if `torn` */
    bool torn;               /* the system refused in the middle: the pages differ, and sealing begins anew */
    uint32_t unsealers;      /* fa_arena_unsealed_begin without its _end */
    uint32_t wiping;         /* threads that zero a block outside the lock: its pages must stay open */
    volatile uint32_t *alive; /* 0 in a forked child that has not been here yet */
    bool ragged;             /* guarded: some pages could not be closed */
    bool damaged_after;      /* at its end */
    const void *damaged;     /* guarded: a block whose canary was overwritten, to be reported */
    fa_canary canary;        /* guarded: nobody can guess */

    fa_bump_mark *mark;      /* bumped: FA_MAX_LEVELS of them; [0] is the bottom */
    _Atomic uint32_t marks;  /* on top of the bottom; read without the lock by whoever frees */
    uint64_t serial;
    fa_thread *thread;       /* bumped: MAX_THREADS, then the shared one */
    _Atomic uint32_t threads;

    void *metadata;
    size_t metadata_size;
    size_t entries_size;     /* mapped: bytes of blocks.entry */
    uint32_t granules;       /* mapped: in the capacity; the map may not reach so far yet */
    fa_reporter reporter;
    char name[NAME_BYTES];
};

/*
 * Where a thread finds its part of an arena it used lately. Epochs are never used twice in a process, so one comparison
 * says that this is the arena, that it has not been released since, and that the chunk is current and may be bumped.
 */
typedef struct fa_recent {
    uint64_t epoch;       /* of the chunk; 0: look for it the slow way */
    fa_thread *thread;
    const fa_arena *arena;
    uint64_t born;        /* the arena's first epoch: another arena may come to stand at the same address */
} fa_recent;
extern _Thread_local fa_recent fa_recents[RECENT] FA_TLS;

/* In bytes: an index would have to be scaled on the hot path. */
static inline fa_recent *recent_of(const fa_arena *arena) {
    return (fa_recent *)(void *)((unsigned char *)fa_recents + arena->recent);
}

static inline void *at_offset(const fa_arena *arena, size_t offset) { return arena->base + offset; }
static inline void lock(const fa_arena *arena) { fa_lock_take((fa_lock *)(uintptr_t)&arena->lock, arena->os); }
static inline void unlock(const fa_arena *arena) { fa_lock_give((fa_lock *)(uintptr_t)&arena->lock); }

static inline bool in_region(const fa_arena *arena, const void *pointer) {
    return (uintptr_t)pointer - (uintptr_t)arena->base < arena->region.capacity;
}

/* Each thread's part that was ever taken, and the shared one. */
#define FOR_EACH_THREAD(arena, item)                                                                                   \
    for (uint32_t i_ = 0, n_ = atomic_load_explicit(&(arena)->threads, memory_order_acquire);                          \
         i_ <= n_ && ((item) = &(arena)->thread[i_ == n_ ? MAX_THREADS : i_], true); i_++)

/* Undoes the accounts of a block that was live; the lock is held. */
static inline void forget(fa_arena *arena, size_t size) {
    arena->live--;
    arena->bytes -= size;
}

/* The lock is held. */
static inline void note_use(fa_arena *arena, size_t end) {
    uint64_t used = (arena->blocks.cursor - arena->blocks.free) << arena->blocks.shift;
    if (used > arena->peak) arena->peak = used;
    if (end > FA_GET(arena->high)) FA_SET(arena->high, end);
}

/* Epochs for an arena: the first of a run of EPOCH_RUN. */
#define EPOCH_RUN ((uint64_t)1 << 24)
uint64_t fa_next_epochs(void);

/* ---- bumped.c: untracked scratch arenas -------------------------------------------------------------------------- */

/* *dirty: no byte at or above this offset was ever handed out. */
fa_status fa_bumped_alloc(fa_arena *arena, size_t size, size_t alignment, size_t *offset, size_t *dirty);
void fa_bumped_free(fa_arena *arena, void *block, size_t size);
/* In place, or FA_ERR_NOMEM if it must move. */
fa_status fa_bumped_resize(fa_arena *arena, void *block, size_t old_size, size_t new_size);

/* Gives what is left of the calling thread's chunk back to the shared cursor, if it is topmost. */
void fa_bumped_retract(fa_arena *arena);

fa_mark fa_bumped_mark(fa_arena *arena);

/* The caller holds the lock. *level: of the fallback blocks that go too. */
fa_status fa_bumped_rewind(fa_arena *arena, fa_mark mark, uint32_t *level);

/* Releases all from `position` on; `live` and `bytes` are what stays. The caller holds the lock, and nobody allocates. */
void fa_bumped_release(fa_arena *arena, size_t position, uint64_t live, uint64_t bytes);

/* An offset above every byte that was ever handed out. */
size_t fa_bumped_high(const fa_arena *arena);
/* Bytes taken by blocks: now, or `at_most` since the last release. */
size_t fa_bumped_used(const fa_arena *arena, bool at_most);
void fa_bumped_counts(const fa_arena *arena, uint64_t *live, uint64_t *bytes, uint64_t *allocated);

/* ---- mapped.c: witness, polynomial and tracked arenas ------------------------------------------------------------ */

/* The usual case of fa_mapped_alloc, a small block that needs no alignment; null if it is not so simple. */
void *fa_mapped_alloc_small(fa_arena *arena, size_t size, size_t alignment);
fa_status fa_mapped_alloc(fa_arena *arena, size_t size, size_t alignment, size_t *offset, size_t *dirty);
fa_status fa_mapped_free(fa_arena *arena, void *block);

/* Where memory is committed as it is used: makes the map reach further, so that a block for which there was no room may
 * find it; the lock is held. False if it reaches as far as the capacity. In doublings, as the region. */
bool fa_mapped_extend(fa_arena *arena, size_t size, size_t alignment);

/* In place, or FA_ERR_NOMEM if it must move. *old_size becomes what is known of the block. */
fa_status fa_mapped_resize(fa_arena *arena, void *block, size_t *old_size, size_t new_size);

/* Only looks: what is known of a live block, and FA_ERR_NOMEM because it must move. */
fa_status fa_mapped_size(fa_arena *arena, const void *block, size_t *size);

/* The caller holds the lock for the rest. */
fa_mark fa_mapped_mark(fa_arena *arena, bool scope);
fa_status fa_mapped_rewind(fa_arena *arena, fa_mark mark, uint32_t *depth);
void fa_mapped_reset(fa_arena *arena);
uint64_t fa_mapped_used(const fa_arena *arena);
size_t fa_mapped_block_bytes(const fa_arena *arena, uint32_t index);

/* Sums of the level and all above it. */
void fa_mapped_live(const fa_arena *arena, const fa_level *level, uint64_t *live, uint64_t *bytes);

/* ---- guarded.c: a guard page after every block --------------------------------------------------------------------- */

/* As those of mapped.c. The canaries they find damaged are reported by the first two and noted by the rest. */
fa_status fa_guarded_free(fa_arena *arena, void *block);
fa_status fa_guarded_resize(fa_arena *arena, void *block, size_t *old_size, size_t new_size, size_t alignment);
fa_status fa_guarded_alloc(fa_arena *arena, size_t size, size_t alignment, size_t *offset);

/* Reports what was noted; the caller does not hold the lock, but does for the rest. */
void fa_guarded_report(fa_arena *arena, const char *call);

/* FA_ERR_CORRUPT unless it is a live block. */
fa_status fa_guarded_size(const fa_arena *arena, const void *block, size_t *size);

/* Asked for by the live blocks from the granule on, where a block begins. */
uint64_t fa_guarded_bytes(const fa_arena *arena, uint32_t index);

/* Wipes and closes the live blocks from the granule on, or nothing and an error. The caller drops them from the map. */
fa_status fa_guarded_release(fa_arena *arena, uint32_t index);
fa_status fa_guarded_wipe(fa_arena *arena); /* likewise, all; they live on */

/* What may be done with live blocks; *bytes of pages. */
fa_status fa_guarded_protect(fa_arena *arena, fa_os_access access, uint64_t *bytes);
void fa_guarded_fork_child(fa_arena *arena);

/* ---- secret.c: the lock is held ------------------------------------------------------------------------------------ */

/* The first time in a forked child: takes the memory over. */
void fa_secret_adopt(fa_arena *arena);
static inline void fa_secret_enter(fa_arena *arena) {
    if (FA_UNLIKELY(*arena->alive == 0)) fa_secret_adopt(arena);
}

/* FA_OK if blocks can be handed out: not closed, not sealed. */
fa_status fa_secret_ready(fa_arena *arena);

/* Zeroes [start, end) of the region, through a seal if there is one; not for guarded arenas. */
fa_status fa_secret_wipe(fa_arena *arena, size_t start, size_t end);

/* The pages are no longer all what `sealed` says, which is told. */
static inline void fa_secret_tear(fa_arena *arena) {
    arena->torn = true;
    arena->region.protection.sealed = 0;
}

/* No allocation any more, and no seal; FA_ERR_NOMEM: sealed all the same. */
fa_status fa_secret_end(fa_arena *arena);

#endif
