/*
 * heap/global_parts.h - what the files of the global heap know of each other
 *
 *     global.c        thread heaps, magazines, centrals, medium blocks; initialisation, threads, fork
 *     global_large.c  large blocks
 *     global_stats.c  statistics and recounting
 *     global_hardened.c  all blocks, if hardened: what stands around them, and who may free them
 *
 * Order of locks: trim, heaps, one heap, one central, pages; large on its own, last. fa_global_fork_prepare takes all.
 */
#ifndef FA_HEAP_GLOBAL_PARTS_H
#define FA_HEAP_GLOBAL_PARTS_H

#include "global.h"
#include "mem/base.h"
#include "mem/cache.h"
#include "mem/lock.h"
#include "mem/pages.h"
#include "mem/table.h"
#include "os/os.h"

#define FA_CACHE_LINE 64

/* ---- classes: 16, 32 ... 128, eight steps to each power of two up to 1 KiB, four up to 4 KiB, eight up to 32 KiB ---- */

#define FA_LINEAR_MAX ((size_t)1 << 10)
#define FA_LINEAR_LAST 32U /* the class of FA_LINEAR_MAX */
#define FA_COARSE_LAST 40U /* the class of 4 KiB */

extern const uint8_t fa_linear_class[FA_LINEAR_MAX / 16 + 1];

/* Of a size up to FA_GLOBAL_SMALL. */
static inline uint32_t fa_global_class(size_t size) {
    if (FA_LIKELY(size <= FA_LINEAR_MAX)) return fa_linear_class[(size + 15) / 16];
    unsigned top = fa_log2(size - 1); /* 10 for 1025 .. 2048 */
    if (top < 12) return FA_LINEAR_LAST + 1 + (top - 10) * 4 + (uint32_t)((size - 1) >> (top - 2) & 3);
    return FA_COARSE_LAST + 1 + (top - 12) * 8 + (uint32_t)((size - 1) >> (top - 3) & 7);
}

static inline uint32_t fa_global_class_size(uint32_t class) {
    if (class <= 8) return class * 16;
    if (class <= FA_LINEAR_LAST) return (9 + (class - 9) % 8) << (4 + (class - 9) / 8);
    if (class <= FA_COARSE_LAST) return (5 + (class - FA_LINEAR_LAST - 1) % 4) << (8 + (class - FA_LINEAR_LAST - 1) / 4);
    return (9 + (class - FA_COARSE_LAST - 1) % 8) << (9 + (class - FA_COARSE_LAST - 1) / 8);
}

/* ---- centrals ----------------------------------------------------------------------------------------------------- */

#define FA_READY_MAX 1024U

typedef struct fa_central {
    fa_central_stats stats; /* the size is set with the first span */
    fa_lock lock;
    uint32_t reciprocal;    /* 2^32 / size, rounded up */
    uint32_t pages, blocks; /* of a span */
    uint32_t fence;         /* hardened: the first block of a span is nobody's, so that every other has one before it */
    uint32_t ready_max;     /* blocks that may wait */
    uint32_t slots, slots_at; /* of a full magazine, and where it begins in a heap */
    uint32_t first, last;   /* spans with free blocks, by their first page; 0: none */
    size_t seen;            /* ready and taken at the last look, to find out whether it is idle */
} fa_central;

/* ---- thread heaps ------------------------------------------------------------------------------------------------- */

/* Pointers that a magazine can have at first, and when it has grown a bit; then what its class may have. */
#define FA_NURSERY 16U
#define FA_SECOND 64U
#define FA_MAGAZINE_MAX 256U
#define FA_MAGAZINE_MIN 4U
#define FA_MAGAZINE_BYTES ((size_t)128 << 10)
/* The same, hardened: of many the next one is taken, and nobody knows which. */
#define FA_VAULT_MIN 16U
#define FA_VAULT_BYTES ((size_t)512 << 10)

typedef struct fa_seen {
    void **top;
    size_t allocated;
} fa_seen;

/* In the list of all (it never changes), and in that of those without a thread. */
#define FA_HEAP_FRONT                                                                                                  \
    struct fa_heap *next, *next_idle;                                                                                  \
    fa_bin bin[FA_GLOBAL_CLASSES];

typedef struct fa_heap {
    FA_HEAP_FRONT
    fa_lock lock;              /* for all that is below, and for `bottom` */
    bool in_use;
    uint32_t ticks;
    void **start[FA_GLOBAL_CLASSES]; /* of the magazine; null: the bin was never used */
    void **full[FA_GLOBAL_CLASSES];  /* its end; `limit` is the same, or null if every free is to be looked at */
    fa_seen seen[FA_GLOBAL_CLASSES];
    atomic_uint busy, halted;             /* hardened: its thread is at the bins; it must take the lock for that */
    bool locked;                          /* hardened: its thread has done so */
    uint64_t random;                      /* hardened: what the order of reuse comes from */
    uint8_t queue[FA_GLOBAL_CLASSES];     /* hardened: where the oldest of the blocks that must wait is */
    uint8_t waits[FA_GLOBAL_CLASSES];     /* hardened: and how many these are, the first in the magazine */
    uint32_t grown_to;                    /* slots in use by those that are in their second place, or have been */
    /* FA_NURSERY slots for each class; FA_SECOND for those that grow, side by side, so that they share pages; what a class may
     * have in the end, at its slots_at. */
    void *magazine[];
} fa_heap;

/* ---- large blocks ------------------------------------------------------------------------------------------------- */

typedef struct fa_large {
    fa_lock lock;
    bool huge_pages;
    fa_table table;    /* live blocks: their room */
    fa_cache cache;
    uint64_t period_at;
    size_t period_peak, last_peak; /* of live bytes, in this period of the decay and the one before */
} fa_large;

/* ---- the whole ---------------------------------------------------------------------------------------------------- */

typedef struct fa_global {
    /* Read by every free, written while the range grows: a line of its own. */
    _Alignas(FA_CACHE_LINE) fa_pages pages;
    _Alignas(FA_CACHE_LINE) fa_lock pages_lock;
    fa_lock heaps_lock, trim_lock;
    fa_heap *idle;
    atomic_size_t large_size;
    atomic_bool zero_on_free;
    atomic_bool fences;      /* the system has fence_threads */
    atomic_bool hardened;
    bool has_key;
    unsigned key;
    uint64_t started_at;
    atomic_size_t trimmed_at, scavenged_at; /* milliseconds since started_at; with 32 bits they wrap */
    atomic_size_t made_way; /* bytes of free pages that went for large blocks so far */
    fa_large large;
    const fa_os *os;
    _Alignas(FA_CACHE_LINE) fa_central central[FA_GLOBAL_CLASSES];
} fa_global;

extern fa_global fa_the_heap;
extern fa_global_options fa_the_options; /* apart: a process that only starts touches one page of ours */

#define FA_COUNTS (&fastalloc_malloc_stats.counts)
#define FA_COUNT(name, amount) atomic_fetch_add_explicit(&FA_COUNTS->name, (size_t)(amount), memory_order_relaxed)
#define FA_UNCOUNT(name, amount) atomic_fetch_sub_explicit(&FA_COUNTS->name, (size_t)(amount), memory_order_relaxed)
#define FA_COUNTED(name) atomic_load_explicit(&FA_COUNTS->name, memory_order_relaxed)

/* After held became larger. */
void fa_global_note_peak(void);

/* Milliseconds since the start. */
uint64_t fa_global_now(void);

void fa_large_configure(size_t cache_limit, uint32_t decay, bool huge_pages);
/* Null if there is no memory. `alignment` is a power of two, `zeroed` asks for zeros in the first `size` bytes. */
void *fa_large_alloc(size_t size, size_t alignment, bool zeroed);
/* False if it is not one of them. */
bool fa_large_free(void *block);
/* 0 if it is not one of them. */
size_t fa_large_usable_size(const void *block);
/* Another size at this or another place; null leaves the block as it was: copy it. */
void *fa_large_realloc(void *block, size_t old_room, size_t size);
void fa_large_purge(uint64_t now, size_t keep);
/* More pages of the range are in use than before: cached blocks may have to go for them. */
void fa_large_make_way(void);
/* The other way round: `room` bytes are about to be mapped, and free pages of the range may have to go for them. */
void fa_global_make_way(size_t room);

/* At most `want` blocks, at least one unless there is no memory; and back. */
uint32_t fa_global_take_blocks(uint32_t class, void **blocks, uint32_t want);
void fa_global_give_blocks(uint32_t class, void *const *blocks, uint32_t count);
/* With the lock of the heap: what the bin holds begins at `start` again. How many that are. */
uint32_t fa_global_gather(fa_heap *heap, uint32_t class, uint32_t pending);
void fa_global_now_and_then(void);
void *fa_global_no_memory(void);

/* Else another thread may be making the heap: what is not atomic in it is not to be looked at. */
static inline bool fa_has_begun(void) {
    return atomic_load_explicit(&fastalloc_malloc_stats.started, memory_order_acquire) != 0;
}

/* ---- hardened ------------------------------------------------------------------------------------------------------ */

#define FA_ANY_SIZE SIZE_MAX

static inline bool fa_is_hardened(void) { return atomic_load_explicit(&fa_the_heap.hardened, memory_order_relaxed); }

/* After the range was reserved, and before anything else. */
void fa_hardened_begin(void);
/* The heap of a thread, or null. Any size and alignment (a power of two); null if there is no memory. All bytes are zero. */
void *fa_hardened_alloc(fa_heap *heap, size_t size, size_t alignment);
/* Not null; FA_ANY_SIZE is the right one. */
void fa_hardened_free(fa_heap *heap, void *block, size_t size);
void *fa_hardened_realloc(fa_heap *heap, void *block, size_t size);
size_t fa_hardened_usable_size(const void *block);
bool fa_hardened_owns(const void *block);
void fa_hardened_purge(uint64_t now, bool all);
/* With the lock of the heap: its thread stays away from the bins until `resume`. False if the system refuses the fence. */
bool fa_hardened_halt(fa_heap *heap);
void fa_hardened_resume(fa_heap *heap);
/* A span that was made (false: it cannot be used), or is about to go, with nothing live in it; with the lock of its central. */
bool fa_hardened_span(uint32_t first, uint32_t class, uint32_t blocks, bool zero);
void fa_hardened_drop(uint32_t first);
void fa_hardened_fork_prepare(void);
void fa_hardened_fork_parent(void);
bool fa_hardened_is_valid(void);

static inline bool fa_is_in_range(const void *pointer) {
    const fa_pages *pages = &fa_the_heap.pages;
    return (uintptr_t)pointer - (uintptr_t)pages->base < atomic_load_explicit(&pages->reach, memory_order_relaxed);
}

#endif
