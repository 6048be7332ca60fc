/*
 * heap/arena.c - one reserved range of address space, filled from the bottom up and released at once
 *
 *     fa_arena_alloc -- scratch --> my chunk (mem/bump.h) -- full --> refill: one compare-and-swap
 *                    \- polynomial, witness, tracked --> lock --> bins, else cursor (mem/blocks.h) --> region
 *                                                                                    \- full --> malloc, if allowed
 *
 *     metadata mapping   | fa_arena | threads or levels, entries, links |      nothing about a block is in the block
 *     region             | guard | blocks ... | guard |                        mem/region.h
 *
 * Two ways to keep the cursor. A scratch arena is *bumped*: threads take chunks and never look back until a rewind or reset,
 * so the hot path has no lock and no atomic operation. The other arenas, and every tracked one, are *mapped*: each block is
 * known, freed blocks merge and are used again, and a short lock (one atomic exchange) keeps the map. Vectors and secrets
 * are few and large against scratch objects; for them reuse is worth more than the exchange costs.
 *
 * Invariants: blocks of one arena never overlap while live; every byte of a witness arena that is in no live block is zero;
 * `high` bounds every byte that was ever handed out since it was last known to be zero. fa_arena_is_valid recounts.
 * Thread rule: everything may be called by many threads at once, but for what fastalloc.h says of untracked arenas.
 * Cost: alloc, free, mark, rewind, reset O(1); wipes follow the bytes used; stats O(threads) and a look at residency.
 */
#include "arena.h"

#include "mem/blocks.h"
#include "mem/bump.h"
#include "mem/lock.h"
#include "mem/region.h"
#include "mem/table.h"
#include "mem/wipe.h"
#include "report.h"

#include <string.h>

#define NAME_BYTES 32
/* The granule is the default alignment, up to a cache line: larger alignments are met by position, not by rounding. */
#define MAX_GRANULE ((size_t)64)
/* A block's granules are counted in 32 bits; larger capacities take larger granules, up to what an entry can hold. */
#define MAX_GRANULES ((uint64_t)UINT32_MAX - 1)
#define MAX_SCALED_GRANULE ((size_t)256)
/* What a thread takes from the shared cursor at once: a compare-and-swap every 64 KiB, and little lost per thread. */
#define CHUNK ((size_t)64 << 10)
#define MIN_CHUNK ((size_t)1 << 10)
/* Threads with a chunk of their own in one arena; the address space for them is 128 KiB. Others share one, locked. */
#define MAX_THREADS 1024U
/* Arenas whose chunk a thread finds without a search. */
#define RECENT 4U
/* Witness blocks up to this size are wiped inside the lock: cheaper than taking it twice. */
#define WIPE_INSIDE_LOCK ((size_t)4 << 10)

/* One thread's part of a bumped arena, a cache line or two of its own. */
typedef struct fa_thread {
    fa_chunk chunk;
    _Atomic size_t high;          /* the chunk's cursor was up to here */
    _Atomic uintptr_t owner;      /* the address of the thread's `recent`; 0: not taken */
    _Atomic uintptr_t epoch;      /* of the counts below that are per epoch */
    _Atomic uint64_t allocated;   /* since creation */
    _Atomic uint64_t live, bytes; /* in this epoch */
} fa_thread;

/* A mark in a bumped arena. */
typedef struct fa_bump_mark {
    uint64_t serial;
    size_t position;
    uint64_t live, bytes; /* below it */
} fa_bump_mark;

struct fa_arena {
    /* The hot part. */
    fa_bump bump;
    unsigned char *base;
    uint64_t id;             /* unique in the process: keys `recent` */
    size_t granule;
    bool fast;               /* bumped, and the default alignment is the granule */
    bool mapped;
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

    fa_bump_mark *mark;      /* bumped: FA_MAX_LEVELS of them; [0] is the bottom */
    uint32_t marks;          /* on top of the bottom */
    uint64_t serial;
    fa_thread *thread;       /* bumped: MAX_THREADS, then the shared one */
    _Atomic uint32_t threads;

    void *metadata;
    size_t metadata_size;
    size_t entries_size;     /* mapped: bytes of blocks.entry */
    fa_reporter reporter;
    char name[NAME_BYTES];
};

/* Arena ids start at 1, so a zero `recent` matches none. They are never used twice: a stale `recent` cannot match. */
static _Atomic uint64_t next_id = 1;
static _Thread_local struct {
    uint64_t id;
    fa_thread *thread;
} recent[RECENT];

static void *at_offset(const fa_arena *arena, size_t offset) { return arena->base + offset; }
static void lock(const fa_arena *arena) { fa_lock_take((fa_lock *)(uintptr_t)&arena->lock, arena->os); }
static void unlock(const fa_arena *arena) { fa_lock_give((fa_lock *)(uintptr_t)&arena->lock); }

static bool in_region(const fa_arena *arena, const void *pointer) {
    return (uintptr_t)pointer - (uintptr_t)arena->base < arena->region.capacity;
}

/* ---- the hot path: a bumped arena, my chunk -------------------------------------------------------------------- */

static fa_status alloc_slow(fa_arena *arena, size_t size, size_t alignment, bool zeroed, void **block);

FA_HOT void *fa_arena_alloc(fa_arena *arena, size_t size, size_t alignment) {
    fa_thread *thread = recent[arena->id % RECENT].thread;
    if (FA_LIKELY(arena->fast && recent[arena->id % RECENT].id == arena->id &&
                  fa_chunk_is_current(&arena->bump, &thread->chunk) && alignment <= arena->granule &&
                  (alignment & (alignment - 1)) == 0)) {
        /* A size that wraps becomes 0 here, and 0 is refused: both go the slow way. */
        size_t rounded = (size + (arena->granule - 1)) & ~(arena->granule - 1), offset;
        if (FA_LIKELY(fa_bump_take(&thread->chunk, rounded, &offset))) {
            FA_SET(thread->live, FA_GET(thread->live) + 1);
            FA_SET(thread->bytes, FA_GET(thread->bytes) + size);
            return arena->base + offset;
        }
    }
    void *block;
    return alloc_slow(arena, size, alignment, false, &block) == FA_OK ? block : NULL;
}

/* ---- creation -------------------------------------------------------------------------------------------------- */

void fa_arena_options_init(fa_arena_options *options, fa_arena_kind kind) {
    bool witness = kind == FA_WITNESS, polynomial = kind == FA_POLYNOMIAL;
    *options = (fa_arena_options){
        .struct_size = sizeof *options,
        .kind = kind,
        .capacity = (size_t)64 << 20,
        .alignment = polynomial ? 64 : 16,
        .on_full = witness ? FA_FULL_FAIL : FA_FULL_FALLBACK,
        .huge_pages = polynomial ? FA_HUGE_TRANSPARENT : FA_HUGE_OFF,
        .guard_pages = witness ? FA_REQUIRE : FA_TRY,
        .lock = witness ? FA_TRY : FA_OFF,
        .no_dump = witness ? FA_TRY : FA_OFF,
        .wipe_on_fork = witness ? FA_TRY : FA_OFF,
    };
}

static bool is_want(fa_want want) { return want == FA_OFF || want == FA_TRY || want == FA_REQUIRE; }

static bool options_are_valid(const fa_arena_options *options) {
    if (options == NULL || options->struct_size != sizeof *options) return false;
    if (options->kind != FA_WITNESS && options->kind != FA_POLYNOMIAL && options->kind != FA_SCRATCH) return false;
    if ((options->flags & ~(unsigned)FA_TRACKED) != 0 || options->capacity == 0) return false;
    if (!fa_is_power_of_two(options->alignment) || options->alignment < FA_MIN_ALIGNMENT) return false;
    if (options->alignment > FA_MAX_ALIGNMENT) return false;
    if (options->on_full != FA_FULL_FAIL && options->on_full != FA_FULL_FALLBACK) return false;
    /* A secret never goes to memory that is not protected. */
    if (options->kind == FA_WITNESS && options->on_full != FA_FULL_FAIL) return false;
    if (options->huge_pages != FA_HUGE_OFF && options->huge_pages != FA_HUGE_TRANSPARENT &&
        options->huge_pages != FA_HUGE_TLB_2M && options->huge_pages != FA_HUGE_TLB_1G)
        return false;
    return is_want(options->guard_pages) && is_want(options->lock) && is_want(options->no_dump) &&
           is_want(options->wipe_on_fork);
}

/* Where the parts of the metadata mapping begin. */
typedef struct metadata_layout {
    size_t levels, marks, threads, entries, links, size;
} metadata_layout;

/* Appends `count` items of `size` bytes on cache lines; false if that would wrap. */
static bool append(size_t *end, size_t count, size_t size, size_t *begin) {
    if (!fa_align_up(*end, MAX_GRANULE, begin)) return false;
    if (size != 0 && count > (SIZE_MAX - *begin) / size) return false;
    *end = *begin + count * size;
    return true;
}

static bool lay_out(metadata_layout *layout, bool mapped, size_t granules, size_t page) {
    size_t end = sizeof(fa_arena);
    bool fits = append(&end, mapped ? FA_MAX_LEVELS : 0, sizeof(fa_level), &layout->levels) &&
                append(&end, mapped ? 0 : FA_MAX_LEVELS, sizeof(fa_bump_mark), &layout->marks) &&
                append(&end, mapped ? 0 : MAX_THREADS + 1, sizeof(fa_thread), &layout->threads) &&
                append(&end, mapped ? granules : 0, sizeof(fa_link), &layout->links) &&
                /* Entries last and on a page: they are made zero again by giving their pages back. */
                fa_align_up(end, page, &layout->entries);
    end = layout->entries;
    return fits && append(&end, mapped ? granules : 0, sizeof(uint64_t), &layout->entries) &&
           fa_align_up(end, page, &layout->size);
}

/* The power of two that makes the capacity countable, or 0. */
static size_t granule_of(size_t alignment, size_t capacity) {
    size_t granule = fa_min(alignment, MAX_GRANULE);
    while (capacity / granule > MAX_GRANULES) granule *= 2;
    return granule <= MAX_SCALED_GRANULE ? granule : 0;
}

static fa_status map_metadata(const fa_os *os, const metadata_layout *layout, void **metadata) {
    if (os->reserve(layout->size, os->page_size(), metadata) != 0) return FA_ERR_NOMEM;
    if (os->commit(*metadata, layout->size) == 0) return FA_OK;
    (void)os->release(*metadata, layout->size);
    return FA_ERR_NOMEM;
}

static void init(fa_arena *arena, const fa_arena_options *options, const metadata_layout *layout, const fa_region *region,
                 size_t granule) {
    unsigned char *metadata = (unsigned char *)arena;
    arena->region = *region;
    arena->base = region->base;
    arena->id = atomic_fetch_add_explicit(&next_id, 1, memory_order_relaxed);
    arena->granule = granule;
    arena->kind = options->kind;
    arena->tracked = (options->flags & FA_TRACKED) != 0;
    arena->mapped = arena->tracked || options->kind != FA_SCRATCH;
    arena->fast = !arena->mapped && options->alignment == granule;
    arena->alignment = options->alignment;
    arena->on_full = options->on_full;
    arena->os = region->os;
    arena->metadata = metadata;
    arena->metadata_size = layout->size;
    fa_table_init(&arena->fallback);
    if (options->name != NULL) strncpy(arena->name, options->name, NAME_BYTES - 1);
    arena->reporter = (fa_reporter){.os = arena->os,
                                    .handler = options->on_corruption,
                                    .context = options->corruption_context,
                                    .heap = "arena",
                                    .name = arena->name};
    if (arena->mapped) {
        arena->entries_size = layout->size - layout->entries;
        fa_blocks_init(&arena->blocks, (uint64_t *)(void *)(metadata + layout->entries),
                       (fa_link *)(void *)(metadata + layout->links), (fa_level *)(void *)(metadata + layout->levels),
                       region->capacity, fa_log2(granule), arena->base);
    } else {
        size_t chunk = fa_max(MIN_CHUNK, fa_min(CHUNK, fa_align_down(region->capacity / 64, MAX_GRANULE)));
        arena->mark = (fa_bump_mark *)(void *)(metadata + layout->marks);
        arena->thread = (fa_thread *)(void *)(metadata + layout->threads);
        arena->bump.limit = region->capacity;
        arena->bump.chunk = chunk;
        FA_SET(arena->bump.epoch, 1);
    }
}

fa_arena *fa_arena_create(const fa_arena_options *options, fa_status *status) {
    fa_status ignored;
    if (status == NULL) status = &ignored;
    *status = FA_ERR_INVALID;
    if (!options_are_valid(options)) return NULL;

    const fa_os *os = options->os != NULL ? options->os : fa_os_platform();
    const fa_region_spec spec = {
        .capacity = options->capacity,
        .alignment = FA_MAX_ALIGNMENT,
        .huge_pages = options->huge_pages,
        .guard_pages = options->guard_pages,
        .lock = options->lock,
        .no_dump = options->no_dump,
        .wipe_on_fork = options->wipe_on_fork,
    };
    fa_region region;
    *status = fa_region_create(&region, os, &spec);
    if (*status != FA_OK) return NULL;

    bool mapped = options->kind != FA_SCRATCH || (options->flags & FA_TRACKED) != 0;
    size_t granule = granule_of(options->alignment, region.capacity);
    metadata_layout layout = {0};
    void *metadata = NULL;
    *status = FA_ERR_NOMEM;
    if (granule != 0 && lay_out(&layout, mapped, region.capacity / granule, os->page_size()))
        *status = map_metadata(os, &layout, &metadata);
    if (*status != FA_OK) {
        fa_region_destroy(&region);
        return NULL;
    }
    fa_arena *arena = metadata;
    init(arena, options, &layout, &region, granule);
    return arena;
}

static void free_fallbacks(const fa_os *os, fa_table *fallback) {
    size_t position = 0;
    for (fa_slot *slot = fa_table_next(fallback, &position); slot != NULL; slot = fa_table_next(fallback, &position))
        os->heap_free((void *)slot->address);
    fa_table_destroy(fallback, os);
}

void fa_arena_destroy(fa_arena *arena) {
    if (arena == NULL) return;
    const fa_os *os = arena->os;
    if (arena->kind == FA_WITNESS) fa_secure_zero(arena->base, arena->high);
    free_fallbacks(os, &arena->fallback);
    fa_region_destroy(&arena->region);
    (void)os->release(arena->metadata, arena->metadata_size);
}

/* ---- bumped arenas: the cold half ------------------------------------------------------------------------------ */

/* The calling thread's part, made on its first visit. Threads beyond MAX_THREADS share the last one, under the lock. */
FA_COLD static fa_thread *find_thread(fa_arena *arena, bool *shared) {
    uintptr_t owner = (uintptr_t)&recent;
    *shared = false;
    lock(arena);
    uint32_t threads = FA_GET(arena->threads);
    fa_thread *thread = NULL;
    for (uint32_t i = 0; i < threads && thread == NULL; i++)
        if (FA_GET(arena->thread[i].owner) == owner) thread = &arena->thread[i];
    if (thread == NULL && threads < MAX_THREADS) {
        thread = &arena->thread[threads];
        FA_SET(thread->owner, owner);
        atomic_store_explicit(&arena->threads, threads + 1, memory_order_release);
    }
    unlock(arena);
    if (thread == NULL) {
        *shared = true;
        return &arena->thread[MAX_THREADS];
    }
    recent[arena->id % RECENT].id = arena->id;
    recent[arena->id % RECENT].thread = thread;
    return thread;
}

static fa_thread *my_thread(fa_arena *arena, bool *shared) {
    *shared = false;
    if (recent[arena->id % RECENT].id == arena->id) return recent[arena->id % RECENT].thread;
    return find_thread(arena, shared);
}

/* Starts the thread's counts afresh if they are of an epoch that is over. */
static void enter_epoch(fa_arena *arena, fa_thread *thread) {
    uintptr_t epoch = FA_GET(arena->bump.epoch);
    if (FA_GET(thread->epoch) == epoch) return;
    FA_SET(thread->allocated, FA_GET(thread->allocated) + FA_GET(thread->live));
    FA_SET(thread->live, 0);
    FA_SET(thread->bytes, 0);
    FA_SET(thread->high, 0);
    FA_SET(thread->epoch, epoch);
}

/* Calls `add` for each thread's part that was ever taken, the shared one included. */
#define FOR_EACH_THREAD(arena, item)                                                                                   \
    for (uint32_t i_ = 0, n_ = atomic_load_explicit(&(arena)->threads, memory_order_acquire);                          \
         i_ <= n_ && ((item) = &(arena)->thread[i_ == n_ ? MAX_THREADS : i_], true); i_++)

static fa_status bump_alloc(fa_arena *arena, size_t size, size_t alignment, size_t *offset, size_t *dirty) {
    size_t rounded;
    if (!fa_align_up(fa_max(size, 1), arena->granule, &rounded)) return FA_ERR_NOMEM;
    bool shared;
    fa_thread *thread = my_thread(arena, &shared);
    if (shared) lock(arena);
    enter_epoch(arena, thread);
    size_t phase = (uintptr_t)arena->base & (FA_MAX_ALIGNMENT - 1);
    fa_status status = FA_OK;
    if (!fa_bump_refill(&arena->bump, &thread->chunk, rounded, alignment, phase, offset)) status = FA_ERR_NOMEM;
    /* Regions that are neither locked nor committed in steps were made usable whole at creation. */
    if (status == FA_OK && (arena->region.lock != FA_OFF || !arena->os->lazy_commit)) {
        size_t end = fa_max(*offset + rounded, FA_GET(thread->chunk.end));
        if (!shared) lock(arena);
        status = fa_region_use(&arena->region, fa_min(end, arena->region.capacity));
        if (!shared) unlock(arena);
    }
    if (status == FA_OK) {
        *dirty = fa_max(FA_GET(arena->high), FA_GET(thread->high));
        FA_SET(thread->live, FA_GET(thread->live) + 1);
        FA_SET(thread->bytes, FA_GET(thread->bytes) + size);
    }
    if (shared) unlock(arena);
    return status;
}

/* Bytes taken by blocks, as far as the chunks tell: what is left in current chunks is not used. */
static size_t bump_used(const fa_arena *arena, bool at_most) {
    size_t used = FA_GET(arena->bump.cursor);
    const fa_thread *thread;
    FOR_EACH_THREAD(arena, thread) {
        if (!fa_chunk_is_current(&arena->bump, &thread->chunk)) continue;
        size_t cursor = FA_GET(thread->chunk.cursor), end = FA_GET(thread->chunk.end);
        size_t high = at_most ? fa_min(fa_max(cursor, FA_GET(thread->high)), end) : cursor;
        used -= end - high;
    }
    return used;
}

/* Releases all from `position` on: every chunk becomes stale. The caller holds the lock and knows nobody allocates. */
static void bump_release(fa_arena *arena, size_t position, uint64_t live, uint64_t bytes) {
    size_t used = bump_used(arena, true);
    arena->peak = fa_max((size_t)arena->peak, used);
    FA_SET(arena->high, fa_max(FA_GET(arena->high), FA_GET(arena->bump.cursor)));
    if (arena->kind == FA_WITNESS) fa_secure_zero(at_offset(arena, position), used - position);
    arena->live = live;
    arena->bytes = bytes;
    uintptr_t epoch = FA_GET(arena->bump.epoch) + 1;
    FA_SET(arena->bump.epoch, epoch != 0 ? epoch : 1);
    FA_SET(arena->bump.cursor, position);
}

static void bump_counts(const fa_arena *arena, uint64_t *live, uint64_t *bytes, uint64_t *allocated) {
    const fa_thread *thread;
    *live = arena->live;
    *bytes = arena->bytes;
    *allocated = arena->allocated;
    FOR_EACH_THREAD(arena, thread) {
        *allocated += FA_GET(thread->allocated) + FA_GET(thread->live);
        if (FA_GET(thread->epoch) != FA_GET(arena->bump.epoch)) continue;
        *live += FA_GET(thread->live);
        *bytes += FA_GET(thread->bytes);
    }
}

/* ---- mapped arenas --------------------------------------------------------------------------------------------- */

static size_t block_bytes(const fa_arena *arena, uint32_t index) {
    return (size_t)fa_blocks_granules(&arena->blocks, index) << arena->blocks.shift;
}

/* The number of granules for `size`, or 0 if there are not so many. */
static uint32_t granules_for(const fa_arena *arena, size_t size) {
    size_t granules = size == 0 ? 1 : ((size - 1) >> arena->blocks.shift) + 1;
    return granules <= arena->blocks.granules ? (uint32_t)granules : 0;
}

static uint64_t mapped_used(const fa_arena *arena) {
    return (arena->blocks.cursor - arena->blocks.free) << arena->blocks.shift;
}

static void note_use(fa_arena *arena, size_t end) {
    uint64_t used = mapped_used(arena);
    if (used > arena->peak) arena->peak = used;
    if (end > FA_GET(arena->high)) FA_SET(arena->high, end);
}

static fa_status mapped_alloc(fa_arena *arena, size_t size, size_t alignment, size_t *offset, size_t *dirty) {
    uint32_t granules = granules_for(arena, size), index;
    if (granules == 0) return FA_ERR_NOMEM;
    fa_status status = FA_OK;
    lock(arena);
    if (arena->closed) status = FA_ERR_STALE;
    else if (!fa_blocks_take(&arena->blocks, granules, fa_max(alignment >> arena->blocks.shift, 1), size, &index))
        status = FA_ERR_NOMEM;
    if (status == FA_OK) {
        *offset = (size_t)index << arena->blocks.shift;
        size_t end = *offset + ((size_t)granules << arena->blocks.shift);
        status = fa_region_use(&arena->region, end);
        if (status != FA_OK) {
            fa_blocks_give(&arena->blocks, index);
        } else {
            *dirty = arena->kind == FA_WITNESS ? 0 : arena->high;
            arena->allocated++;
            arena->live++;
            arena->bytes += size;
            note_use(arena, end);
        }
    }
    unlock(arena);
    return status;
}

/* Undoes the accounts of a block that was live; the lock is held. */
static void forget(fa_arena *arena, size_t size) {
    arena->live--;
    arena->bytes -= size;
}

static fa_status mapped_free(fa_arena *arena, void *block) {
    size_t offset = (size_t)((unsigned char *)block - arena->base);
    uint32_t index = (uint32_t)(offset >> arena->blocks.shift);
    lock(arena);
    fa_status status = fa_blocks_check(&arena->blocks, offset);
    if (status == FA_OK && arena->kind == FA_WITNESS) {
        size_t bytes = block_bytes(arena, index);
        if (bytes > WIPE_INSIDE_LOCK) {
            /* The block is still live, so nobody else may touch it; another free of it meanwhile is found below. */
            unlock(arena);
            fa_secure_zero(block, bytes);
            lock(arena);
            status = fa_blocks_check(&arena->blocks, offset);
        } else {
            fa_secure_zero(block, bytes);
        }
    }
    if (status == FA_OK) {
        forget(arena, fa_blocks_size(&arena->blocks, index));
        fa_blocks_give(&arena->blocks, index);
    }
    unlock(arena);
    return status;
}

static void mapped_reset(fa_arena *arena) {
    if (!fa_blocks_reset(&arena->blocks)) return;
    /* Once in two million resets the epoch comes round: no entry of the last turn may be believed. */
    if (arena->os->decommit(arena->blocks.entry, arena->entries_size) != 0)
        memset(arena->blocks.entry, 0, (size_t)arena->blocks.granules * sizeof arena->blocks.entry[0]);
}

/* ---- fallback: the arena is full -------------------------------------------------------------------------------- */

#define LEVEL_BITS 16
static size_t fallback_size(const fa_slot *slot) { return (size_t)(slot->value >> LEVEL_BITS); }
static uint32_t fallback_level(const fa_slot *slot) { return (uint32_t)(slot->value & 0xFFFF); }

static void count_in_level(fa_arena *arena, uint32_t depth, int64_t blocks, int64_t bytes) {
    if (!arena->mapped) return;
    fa_level *level = &arena->blocks.level[depth];
    level->live += (uint64_t)blocks;
    level->bytes += (uint64_t)bytes;
    if (level->left && level->live == 0) fa_blocks_pop_left(&arena->blocks);
}

static fa_status fallback_alloc(fa_arena *arena, size_t size, size_t alignment, void **block) {
    size_t room;
    if (!fa_align_up(fa_max(size, 1), alignment, &room) || (uint64_t)room > UINT64_MAX >> LEVEL_BITS ||
        room > PTRDIFF_MAX)
        return FA_ERR_NOMEM;
    void *memory = arena->os->heap_alloc(room, alignment);
    if (memory == NULL) return FA_ERR_NOMEM;
    lock(arena);
    uint32_t depth = arena->mapped ? arena->blocks.depth : arena->marks;
    fa_status status = arena->closed ? FA_ERR_STALE : FA_OK;
    if (status == FA_OK && !fa_table_insert(&arena->fallback, arena->os, memory, (uint64_t)size << LEVEL_BITS | depth))
        status = FA_ERR_NOMEM;
    if (status == FA_OK) {
        arena->fallbacks++;
        arena->fallback_bytes += size;
        arena->allocated++;
        arena->live++;
        arena->bytes += size;
        count_in_level(arena, depth, 1, (int64_t)size);
    }
    unlock(arena);
    if (status != FA_OK) arena->os->heap_free(memory);
    else *block = memory;
    return status;
}

/* Forgets the fallback block; the lock is held, and the caller gives the memory back after it. */
static void drop_fallback(fa_arena *arena, fa_slot *slot) {
    size_t size = fallback_size(slot);
    uint32_t depth = fallback_level(slot);
    forget(arena, size);
    arena->fallback_bytes -= size;
    fa_table_remove(&arena->fallback, slot);
    count_in_level(arena, depth, -1, -(int64_t)size);
}

static fa_status fallback_free(fa_arena *arena, void *block) {
    lock(arena);
    fa_slot *slot = fa_table_find(&arena->fallback, block);
    if (slot != NULL) drop_fallback(arena, slot);
    unlock(arena);
    if (slot == NULL) return FA_ERR_FOREIGN;
    arena->os->heap_free(block);
    return FA_OK;
}

/* Frees the fallback blocks of this level and those above. */
static void release_fallbacks(fa_arena *arena, uint32_t depth) {
    size_t position = 0;
    for (fa_slot *slot = fa_table_next(&arena->fallback, &position); slot != NULL;
         slot = fa_table_next(&arena->fallback, &position)) {
        if (fallback_level(slot) < depth) continue;
        void *block = (void *)slot->address;
        arena->fallback_bytes -= fallback_size(slot);
        fa_table_remove(&arena->fallback, slot);
        arena->os->heap_free(block);
        position--; /* another entry may have moved into this place */
    }
}

/* ---- allocation ------------------------------------------------------------------------------------------------- */

FA_COLD static fa_status refuse(fa_arena *arena, fa_status status) {
    lock(arena);
    arena->failures++;
    unlock(arena);
    return status;
}

static fa_status alloc_slow(fa_arena *arena, size_t size, size_t alignment, bool zeroed, void **block) {
    size_t offset = 0, dirty = 0;
    if (alignment == 0) alignment = arena->alignment;
    if (!fa_is_power_of_two(alignment) || alignment > FA_MAX_ALIGNMENT) return refuse(arena, FA_ERR_INVALID);
    alignment = fa_max(alignment, arena->granule);
    fa_status status = arena->mapped ? mapped_alloc(arena, size, alignment, &offset, &dirty)
                                     : bump_alloc(arena, size, alignment, &offset, &dirty);
    if (status == FA_OK) {
        *block = at_offset(arena, offset);
        /* What lies above every byte that was handed out is zero as the system gave it. */
        if (zeroed && offset < dirty) memset(*block, 0, fa_min(size, dirty - offset));
        return FA_OK;
    }
    if (status == FA_ERR_NOMEM && arena->on_full == FA_FULL_FALLBACK) {
        status = fallback_alloc(arena, size, alignment, block);
        if (status == FA_OK && zeroed) memset(*block, 0, size);
    }
    return status == FA_OK ? FA_OK : refuse(arena, status);
}

void *fa_arena_alloc_zeroed(fa_arena *arena, size_t size, size_t alignment) {
    void *block;
    return alloc_slow(arena, size, alignment, true, &block) == FA_OK ? block : NULL;
}

fa_status fa_arena_try_alloc(fa_arena *arena, size_t size, size_t alignment, bool zeroed, void **block) {
    return alloc_slow(arena, size, alignment, zeroed, block);
}

/* A bumped arena only takes back the newest block of the calling thread's chunk, and never what lies below a mark. */
static void bump_free(fa_arena *arena, void *block, size_t size) {
    bool shared;
    fa_thread *thread = my_thread(arena, &shared);
    size_t offset = (size_t)((unsigned char *)block - arena->base), rounded;
    if (shared || !fa_chunk_is_current(&arena->bump, &thread->chunk)) return;
    size_t cursor = FA_GET(thread->chunk.cursor);
    if (!fa_align_up(fa_max(size, 1), arena->granule, &rounded)) return;
    if (rounded > cursor || offset != cursor - rounded || offset < arena->mark[arena->marks].position) return;
    if (cursor > FA_GET(thread->high)) FA_SET(thread->high, cursor);
    FA_SET(thread->chunk.cursor, offset);
    if (FA_GET(thread->live) == 0) return; /* it was counted before a rewind */
    FA_SET(thread->allocated, FA_GET(thread->allocated) + 1);
    FA_SET(thread->live, FA_GET(thread->live) - 1);
    FA_SET(thread->bytes, FA_GET(thread->bytes) - size);
}

fa_status fa_arena_try_free(fa_arena *arena, void *block) {
    if (!in_region(arena, block)) return fallback_free(arena, block);
    return arena->mapped ? mapped_free(arena, block) : FA_OK;
}

void fa_arena_free(fa_arena *arena, void *block, size_t size) {
    if (block == NULL) return;
    if (!arena->mapped && in_region(arena, block)) {
        bump_free(arena, block, size);
        return;
    }
    fa_status status = fa_arena_try_free(arena, block);
    if (FA_UNLIKELY(status != FA_OK)) fa_report(&arena->reporter, status, block);
}

bool fa_arena_is_live(const fa_arena *arena, const void *block) {
    lock(arena);
    bool live = in_region(arena, block)
                    ? arena->mapped && fa_blocks_check(&arena->blocks, (size_t)((const unsigned char *)block -
                                                                               arena->base)) == FA_OK
                    : fa_table_find(&arena->fallback, block) != NULL;
    unlock(arena);
    return live;
}

size_t fa_arena_usable_size(const fa_arena *arena, const void *block) {
    size_t usable = 0;
    lock(arena);
    if (in_region(arena, block)) {
        size_t offset = (size_t)((const unsigned char *)block - arena->base);
        if (arena->mapped && fa_blocks_check(&arena->blocks, offset) == FA_OK)
            usable = block_bytes(arena, (uint32_t)(offset >> arena->blocks.shift));
    } else {
        const fa_slot *slot = fa_table_find(&arena->fallback, block);
        if (slot != NULL) usable = fallback_size(slot);
    }
    unlock(arena);
    return usable;
}

/* In place, or FA_ERR_NOMEM if it must move. *old_size becomes what is known of the block. */
static fa_status resize_in_place(fa_arena *arena, void *block, size_t *old_size, size_t new_size) {
    uint32_t granules = granules_for(arena, new_size);
    size_t offset = (size_t)((unsigned char *)block - arena->base);
    uint32_t index = (uint32_t)(offset >> arena->blocks.shift);
    lock(arena);
    fa_status status = fa_blocks_check(&arena->blocks, offset);
    if (status == FA_OK) {
        *old_size = fa_blocks_size(&arena->blocks, index);
        size_t end = offset + ((size_t)granules << arena->blocks.shift), had_end = offset + block_bytes(arena, index);
        if (arena->closed) status = FA_ERR_STALE;
        else if (granules == 0) status = FA_ERR_NOMEM;
        else if (end > had_end) status = fa_region_use(&arena->region, fa_min(end, arena->region.capacity));
        if (status == FA_OK && arena->kind == FA_WITNESS && new_size < *old_size)
            fa_secure_zero((unsigned char *)block + new_size, had_end - offset - new_size);
        if (status == FA_OK && !fa_blocks_resize(&arena->blocks, index, granules, new_size)) status = FA_ERR_NOMEM;
        if (status == FA_OK) {
            arena->bytes = arena->bytes - *old_size + new_size;
            note_use(arena, end);
        }
    }
    unlock(arena);
    return status;
}

void *fa_arena_realloc(fa_arena *arena, void *block, size_t old_size, size_t new_size, size_t alignment) {
    if (block == NULL) return fa_arena_alloc(arena, new_size, alignment);
    bool inside = in_region(arena, block);
    if (inside && arena->mapped) {
        fa_status status = resize_in_place(arena, block, &old_size, new_size);
        bool aligned = ((uintptr_t)block & (fa_max(alignment, 1) - 1)) == 0;
        if (status == FA_OK && aligned) return block;
        if (status == FA_ERR_CORRUPT) {
            fa_report(&arena->reporter, status, block);
            return NULL;
        }
        if (status == FA_ERR_STALE) return NULL;
        if (status == FA_OK) old_size = fa_min(old_size, new_size); /* it fits, but not the alignment */
    } else if (!inside) {
        lock(arena);
        const fa_slot *slot = fa_table_find(&arena->fallback, block);
        if (slot != NULL) old_size = fallback_size(slot);
        unlock(arena);
        if (slot == NULL) {
            fa_report(&arena->reporter, FA_ERR_FOREIGN, block);
            return NULL;
        }
    }
    void *moved = fa_arena_alloc(arena, new_size, alignment);
    if (moved == NULL) return NULL;
    memcpy(moved, block, fa_min(old_size, new_size));
    fa_arena_free(arena, block, old_size);
    return moved;
}

/* ---- marks, rewind, reset --------------------------------------------------------------------------------------- */

static fa_mark bump_mark(fa_arena *arena) {
    bool shared;
    fa_thread *thread = my_thread(arena, &shared);
    size_t position = fa_bump_position(&arena->bump, &thread->chunk);
    /* What this thread allocates from now on must lie above the mark: a chunk that is not topmost is given up. */
    if (fa_chunk_is_current(&arena->bump, &thread->chunk) && position != FA_GET(thread->chunk.cursor))
        FA_SET(thread->chunk.epoch, 0);
    fa_bump_mark *top = &arena->mark[arena->marks];
    if (arena->marks == 0 || top->position != position) {
        if (arena->marks + 1 >= FA_MAX_LEVELS) return (fa_mark){0};
        top = &arena->mark[++arena->marks];
        uint64_t allocated;
        bump_counts(arena, &top->live, &top->bytes, &allocated);
        top->position = position;
        top->serial = ++arena->serial;
    }
    return (fa_mark){.position = position, .serial = top->serial};
}

static fa_status bump_rewind(fa_arena *arena, fa_mark mark) {
    for (uint32_t depth = arena->marks; depth > 0; depth--) {
        fa_bump_mark *at = &arena->mark[depth];
        if (at->serial > mark.serial) continue;
        if (at->serial != mark.serial || at->position != mark.position) break;
        arena->marks = depth;
        release_fallbacks(arena, depth);
        bump_release(arena, at->position, at->live, at->bytes);
        return FA_OK;
    }
    return FA_ERR_STALE;
}

static fa_mark mapped_mark(fa_arena *arena, bool scope) {
    fa_blocks *blocks = &arena->blocks;
    fa_level *level = &blocks->level[blocks->depth];
    if (scope || blocks->depth == 0 || level->scope || level->position != blocks->cursor || level->live > 0)
        level = fa_blocks_push(blocks, scope);
    return level == NULL ? (fa_mark){0} : (fa_mark){.position = level->position, .serial = level->serial};
}

/* Sums of the level and all above it. */
static void live_from(const fa_arena *arena, const fa_level *level, uint64_t *live, uint64_t *bytes) {
    *live = *bytes = 0;
    for (const fa_level *at = level; at <= &arena->blocks.level[arena->blocks.depth]; at++) {
        *live += at->live;
        *bytes += at->bytes;
    }
}

static fa_status mapped_rewind(fa_arena *arena, fa_mark mark) {
    fa_level *level = fa_blocks_find(&arena->blocks, mark);
    if (level == NULL) return FA_ERR_STALE;
    uint64_t live, bytes;
    live_from(arena, level, &live, &bytes);
    if (arena->tracked && live > 0) return FA_ERR_BUSY;
    size_t position = (size_t)level->position << arena->blocks.shift;
    size_t cursor = (size_t)arena->blocks.cursor << arena->blocks.shift;
    if (arena->kind == FA_WITNESS && live > 0) fa_secure_zero(at_offset(arena, position), cursor - position);
    release_fallbacks(arena, (uint32_t)(level - arena->blocks.level));
    fa_blocks_drop(&arena->blocks, level);
    arena->live -= live;
    arena->bytes -= bytes;
    return FA_OK;
}

fa_mark fa_arena_mark(const fa_arena *arena) {
    fa_arena *writable = (fa_arena *)(uintptr_t)arena; /* a mark is bookkeeping: no block changes */
    lock(arena);
    fa_mark mark = arena->mapped ? mapped_mark(writable, false) : bump_mark(writable);
    unlock(arena);
    return mark;
}

fa_status fa_arena_rewind(fa_arena *arena, fa_mark mark) {
    lock(arena);
    fa_status status = arena->mapped ? mapped_rewind(arena, mark) : bump_rewind(arena, mark);
    if (status == FA_OK) arena->rewinds++;
    unlock(arena);
    return status;
}

fa_mark fa_arena_scope_enter(fa_arena *arena) {
    FA_ASSERT(arena->tracked);
    lock(arena);
    fa_mark mark = arena->closed ? (fa_mark){0} : mapped_mark(arena, true);
    unlock(arena);
    return mark;
}

fa_status fa_arena_scope_leave(fa_arena *arena, fa_mark mark, uint64_t *live, uint64_t *bytes) {
    *live = *bytes = 0;
    lock(arena);
    fa_level *level = fa_blocks_find(&arena->blocks, mark);
    fa_status status = level == NULL || level->left ? FA_ERR_STALE : FA_OK;
    if (status == FA_OK) {
        live_from(arena, level, live, bytes);
        level->left = true;
        /* Marks made inside end with the scope; scopes opened inside and not left yet keep it waiting. */
        for (fa_level *above = level + 1; above <= &arena->blocks.level[arena->blocks.depth]; above++)
            if (!above->scope) above->left = true;
        arena->rewinds++;
        fa_blocks_pop_left(&arena->blocks);
        if (*live > 0) status = FA_ERR_BUSY;
    }
    unlock(arena);
    return status;
}

fa_status fa_arena_live(const fa_arena *arena, const fa_mark *mark, uint64_t *live, uint64_t *bytes) {
    fa_status status = FA_OK;
    lock(arena);
    const fa_level *level = mark == NULL ? arena->blocks.level : fa_blocks_find(&arena->blocks, *mark);
    if (level == NULL) status = FA_ERR_STALE;
    else live_from(arena, level, live, bytes);
    unlock(arena);
    return status;
}

/* Releases everything; the lock is held. The fallback blocks go to `orphans`, to be freed after the lock. */
static void release_all(fa_arena *arena, fa_table *orphans) {
    if (arena->mapped) {
        size_t cursor = (size_t)arena->blocks.cursor << arena->blocks.shift;
        if (arena->kind == FA_WITNESS && arena->live > 0) fa_secure_zero(arena->base, cursor);
        mapped_reset(arena);
        arena->live = arena->bytes = 0;
    } else {
        arena->marks = 0;
        bump_release(arena, 0, 0, 0);
    }
    *orphans = arena->fallback;
    fa_table_init(&arena->fallback);
    arena->fallback_bytes = 0;
}

fa_status fa_arena_reset(fa_arena *arena) {
    fa_table orphans = {0};
    fa_status status = FA_OK;
    lock(arena);
    if (arena->tracked && arena->live > 0) {
        status = FA_ERR_BUSY;
    } else {
        release_all(arena, &orphans);
        arena->resets++;
    }
    unlock(arena);
    free_fallbacks(arena->os, &orphans);
    return status;
}

/* Zeroes every byte that was ever handed out; the lock is held. */
static void zero_all(fa_arena *arena) {
    size_t used = arena->mapped ? arena->high : fa_max(arena->high, bump_used(arena, true));
    fa_secure_zero(arena->base, used);
    size_t position = 0;
    for (fa_slot *slot = fa_table_next(&arena->fallback, &position); slot != NULL;
         slot = fa_table_next(&arena->fallback, &position))
        fa_secure_zero((void *)slot->address, fallback_size(slot));
}

fa_status fa_arena_wipe(fa_arena *arena) {
    fa_table orphans = {0};
    lock(arena);
    zero_all(arena);
    arena->wipes++;
    if (!arena->tracked || arena->live == 0) release_all(arena, &orphans);
    unlock(arena);
    free_fallbacks(arena->os, &orphans);
    return FA_OK;
}

void fa_arena_close(fa_arena *arena) {
    lock(arena);
    if (!arena->closed && arena->kind == FA_WITNESS) zero_all(arena);
    arena->closed = true;
    unlock(arena);
}

/* ---- trim ------------------------------------------------------------------------------------------------------- */

typedef struct trim_job {
    fa_arena *arena;
    size_t keep;  /* still to be kept */
    fa_status status;
} trim_job;

/* Gives back what of the free range exceeds `keep`, from its upper end. */
static void trim_range(trim_job *job, size_t start, size_t end) {
    size_t kept = fa_min(job->keep, end - start), given = 0;
    job->keep -= kept;
    fa_status status = fa_region_decommit(&job->arena->region, start + kept, end, &given);
    if (status != FA_OK) job->status = status;
}

static void trim_block(void *context, uint32_t index, uint32_t granules) {
    trim_job *job = context;
    unsigned shift = job->arena->blocks.shift;
    trim_range(job, (size_t)index << shift, ((size_t)index + granules) << shift);
}

/* Above the cursor all is free, so the last page that was ever used goes whole. */
static size_t high_page(const fa_arena *arena) {
    size_t high;
    return fa_align_up(FA_GET(arena->high), arena->region.page, &high) ? fa_min(high, arena->region.capacity)
                                                                       : arena->region.capacity;
}

/* The whole pages above `end` were given back, so they are zero. */
static void forget_above(fa_arena *arena, size_t end) {
    size_t whole;
    if (fa_align_up(end, arena->region.page, &whole)) FA_SET(arena->high, fa_min(FA_GET(arena->high), whole));
}

/* [cursor, high) of a bumped arena, taken from the other threads while its pages go. */
static void trim_bump_top(trim_job *job) {
    fa_arena *arena = job->arena;
    size_t cursor = FA_GET(arena->bump.cursor), high = high_page(arena);
    if (cursor >= high) return;
    size_t kept = fa_min(job->keep, high - cursor);
    if (!atomic_compare_exchange_strong(&arena->bump.cursor, &cursor, high)) return; /* in use: another time */
    trim_range(job, cursor, high);
    size_t taken = high;
    /* If a thread went on above, the range stays unused until the next reset. */
    if (atomic_compare_exchange_strong(&arena->bump.cursor, &taken, cursor)) forget_above(arena, cursor + kept);
}

fa_status fa_arena_trim(fa_arena *arena, size_t keep) {
    trim_job job = {.arena = arena, .keep = keep, .status = FA_OK};
    lock(arena);
    if (arena->mapped) {
        fa_blocks_each_free(&arena->blocks, trim_block, &job);
        size_t cursor = (size_t)arena->blocks.cursor << arena->blocks.shift, high = high_page(arena);
        if (high > cursor) {
            size_t kept = fa_min(job.keep, high - cursor), end = cursor + kept;
            fa_status status = fa_region_shrink(&arena->region, end);
            if (status != FA_OK) job.status = status;
            trim_range(&job, cursor, high);
            if (job.status == FA_OK) forget_above(arena, end);
        }
    } else {
        trim_bump_top(&job);
    }
    unlock(arena);
    return job.status;
}

/* ---- looking ---------------------------------------------------------------------------------------------------- */

bool fa_arena_owns(const fa_arena *arena, const void *pointer) {
    if (in_region(arena, pointer)) return true;
    bool found = false;
    size_t position = 0;
    lock(arena);
    for (const fa_slot *slot = fa_table_next(&arena->fallback, &position); slot != NULL && !found;
         slot = fa_table_next(&arena->fallback, &position))
        found = (uintptr_t)pointer - slot->address < fa_max(fallback_size(slot), 1);
    unlock(arena);
    return found;
}

fa_status fa_arena_get_stats(const fa_arena *arena, fa_arena_stats *stats) {
    uint64_t live, bytes, allocated, used, cached = 0, peak;
    size_t bump_cursor = FA_GET(arena->bump.cursor);
    lock(arena);
    if (arena->mapped) {
        live = arena->live;
        bytes = arena->bytes;
        allocated = arena->allocated;
        used = mapped_used(arena);
        cached = arena->blocks.free << arena->blocks.shift;
        peak = arena->peak;
    } else {
        bump_counts(arena, &live, &bytes, &allocated);
        used = bump_used(arena, false);
        peak = fa_max((size_t)arena->peak, bump_used(arena, true));
    }
    *stats = (fa_arena_stats){
        .requested = bytes,
        .used = used,
        .reserved = arena->region.reserved_size,
        .resident = fa_region_resident(&arena->region, fa_max(FA_GET(arena->high), bump_cursor)),
        .cached = cached,
        .peak = peak,
        .capacity = arena->region.capacity,
        .fallback_bytes = arena->fallback_bytes,
        .live = live,
        .allocated = allocated,
        .freed = allocated - live,
        .resets = arena->resets,
        .rewinds = arena->rewinds,
        .wipes = arena->wipes,
        .fallbacks = arena->fallbacks,
        .failures = arena->failures,
    };
    unlock(arena);
    return FA_OK;
}

fa_status fa_arena_get_protection(const fa_arena *arena, fa_protection *protection) {
    lock(arena);
    fa_region_get_protection(&arena->region, protection);
    unlock(arena);
    return FA_OK;
}

uint64_t fa_arena_restart_peak(fa_arena *arena, uint64_t *used_now) {
    lock(arena);
    *used_now = arena->mapped ? mapped_used(arena) : bump_used(arena, false);
    uint64_t peak = arena->mapped ? arena->peak : fa_max((size_t)arena->peak, bump_used(arena, true));
    arena->peak = *used_now;
    unlock(arena);
    return peak;
}

void fa_arena_fork_prepare(fa_arena *arena) { lock(arena); }

void fa_arena_fork_parent(fa_arena *arena) { unlock(arena); }

void fa_arena_fork_child(fa_arena *arena) {
    fa_region_fork_child(&arena->region);
    unlock(arena);
}

bool fa_arena_is_valid(const fa_arena *arena) {
    lock(arena);
    bool valid = fa_table_is_valid(&arena->fallback) && arena->high <= arena->region.capacity;
    if (valid && arena->mapped) {
        uint64_t live, bytes;
        live_from(arena, arena->blocks.level, &live, &bytes);
        valid = fa_blocks_is_valid(&arena->blocks) && live == arena->live && bytes == arena->bytes &&
                mapped_used(arena) <= arena->peak;
    } else if (valid) {
        const fa_thread *thread;
        size_t cursor = FA_GET(arena->bump.cursor);
        FOR_EACH_THREAD(arena, thread) {
            if (!fa_chunk_is_current(&arena->bump, &thread->chunk)) continue;
            valid = valid && FA_GET(thread->chunk.cursor) <= FA_GET(thread->chunk.end) &&
                    FA_GET(thread->chunk.end) <= cursor;
        }
        valid = valid && cursor <= arena->bump.limit;
    }
    unlock(arena);
    return valid;
}
