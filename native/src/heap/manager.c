/*
 * heap/manager.c - a small reentrant heap: pool, slabs, table, cache, and malloc behind them
 *
 *     size <= block_size   pool (mem/pool.h) -- exhausted --.
 *     size <= 8 KiB        ---------------------------------- slabs (mem/slabs.h) ----------- no address space --.
 *     size <  large_size   ---------------------------------- runs of pages (mem/pages.h) -- no address space --- malloc,
 *                                                                                              known to the table (mem/table.h)
 *     size >= large_size   cache (mem/cache.h) -- nothing fits -- the system's pages, known to the table
 *
 * The pool is fixed and laid out at creation, for programs that know what they need. What does not fit in it falls back:
 * to slabs, which are pools of other block sizes made as they are needed, and above those to runs, which stay resident when they
 * are freed, merge and are cut, within the budget and the age of the cache. Where addresses are few, malloc has these.
 *
 * Every byte is zeroed before it is freed, by the manager, whatever the way: so blocks of pool, slabs and runs, cached large
 * blocks and fresh pages are zero when handed out, and only a block of malloc needs clearing for calloc. Of a run and of a large
 * block the user has what was asked for, and only that needs zeroing.
 *
 * A table entry's value packs what is known of a block that is in neither pool nor slabs nor runs:
 *
 *     63      36 35              2 1  0
 *     |  room   |      slack      | kind |      room: 16-byte units (fallback) or 4 KiB units (large); size = room - slack
 *
 * Invariants: requested = the sum of the sizes of live blocks <= limit; a live block is in one of pool, slabs, runs and table;
 * nothing that is free holds a byte of what was in it.
 * Thread rule: one thread, or any with FA_LOCKED. No system call, no wipe of a run or a large block, and no malloc happens
 * inside the lock, but for growth of slabs, runs and table, and for the spans that a trim gives back. Cost: O(1); pool blocks a
 * dozen instructions and a wipe of block_size bytes.
 */
#include "manager.h"

#include "manager_hardened.h"
#include "mem/cache.h"
#include "mem/lock.h"
#include "mem/pages.h"
#include "mem/pool.h"
#include "mem/slabs.h"
#include "mem/table.h"
#include "mem/wipe.h"
#include "report.h"

#include <string.h>

/* Large blocks come in an eighth of a power of two, so that a slightly different size finds them in the cache. */
#define LARGE_STEPS_LOG2 3
/* What 28 bits of 4 KiB units can say, or half the address space. */
#define MAX_LARGE ((size_t)(SIZE_MAX > UINT32_MAX ? ((uint64_t)1 << 40) - ((uint64_t)1 << 37) : SIZE_MAX / 2))
/* What 34 bits can say: no block has more room than it asked for by more than this. */
#define MAX_SLACK ((size_t)(SIZE_MAX > UINT32_MAX ? ((uint64_t)1 << 34) - 1 : SIZE_MAX / 2))
#define MAX_LARGE_SIZE ((size_t)1 << 30) /* option large_size: room in 28 bits of 16 B */
/* No sum of sizes gets near it, and twice as much still fits in 64 bits with a sign. */
#define MAX_LIMIT ((uint64_t)1 << 62)
#define HUGE_PAGE ((size_t)2 << 20)
/* Of addresses for runs, where they are plenty. */
#define RUNS_RANGE (SIZE_MAX > UINT32_MAX ? (size_t)((uint64_t)4 << 30) : 0)
/* Runs that are too old are looked for this often in their age. */
#define LOOKS_IN_AGE 8

/* The first two stand in table entries. */
enum block_kind { FALLBACK, LARGE, POOLED, RUN };

struct fa_manager {
    fa_pool pool;
    size_t quick;            /* one more than what the hot path may take from the pool; 0: it may take nothing from anywhere, for
                                the manager is locked, limited or closed */
    size_t quick_blocks;     /* of the pool, that the hot path may free: all, or 0 if the manager is locked or its blocks no pairs */
    /* No two that a call adds to are neighbours: the compiler would add to both at once, and they would wait for each other's
     * stores by the call before. */
    uint64_t fallbacks;
    int64_t headroom;        /* limit less the sum of the sizes of live blocks; below 0 only while a block is moved */
    uint64_t pool_allocated; /* blocks that came from the pool; all others are in fallbacks or large */
    int64_t margin;          /* peak less the bytes that live blocks hold: one number to touch and not two to compare */
    uint64_t peak;
    uint64_t slab_live;
    fa_slabs slabs;
    fa_lock lock;
    bool locked;
    bool closed;
    size_t large_size;
    int64_t limit;
    const fa_os *os;
    fa_table table;
    uint64_t large, cache_hits, moved, failures;
    uint64_t large_bytes; /* mapped by live large blocks */
    size_t small_end;     /* one more than the largest block that pool and slabs may hold; 0 if hardened */
    fa_strict *hardened; /* null, or what does all the work: pool, slabs, table and cache are empty then */
    fa_pages pages;       /* bytes 0: no run was needed yet, or runs_failed */
    uint64_t run_live;
    uint64_t looked_at;   /* milliseconds, when runs that are too old were last looked for */
    bool runs_failed;     /* there is no address space for runs: do not ask again */
    fa_reporter reporter;
    fa_cache cache;
    size_t mapped; /* bytes of this struct's own mapping */
};

static void lock(const fa_manager *manager) {
    if (manager->locked) fa_lock_take((fa_lock *)(uintptr_t)&manager->lock, manager->os);
}

static void unlock(const fa_manager *manager) {
    if (manager->locked) fa_lock_give((fa_lock *)(uintptr_t)&manager->lock);
}

/* ---- accounts: the lock is held --------------------------------------------------------------------------------- */

/* `credit` is what the block that is being moved gives back when it has: until then both places count. */
static bool allowed(const fa_manager *manager, uint64_t more, size_t credit) {
    return !manager->closed && more <= MAX_LIMIT && (int64_t)more <= manager->headroom + (int64_t)credit;
}

static inline void hold(fa_manager *manager, int64_t room) {
    manager->margin -= room;
    if (FA_LIKELY(manager->margin >= 0)) return;
    manager->peak += (uint64_t)-manager->margin;
    manager->margin = 0;
}

static inline void enter(fa_manager *manager, size_t size, size_t room) {
    manager->headroom -= (int64_t)size;
    hold(manager, (int64_t)room);
}

static inline void leave(fa_manager *manager, size_t size, size_t room) {
    manager->headroom += (int64_t)size;
    manager->margin += (int64_t)room;
}

/* A live block has another size and room now. */
static void change(fa_manager *manager, size_t old_size, size_t size, size_t old_room, size_t room) {
    manager->headroom += (int64_t)old_size - (int64_t)size;
    hold(manager, (int64_t)room - (int64_t)old_room);
}

static uint64_t requested(const fa_manager *manager) { return (uint64_t)(manager->limit - manager->headroom); }
static uint64_t used(const fa_manager *manager) { return manager->peak - (uint64_t)manager->margin; }
static uint64_t live(const fa_manager *manager) {
    return fa_pool_live(&manager->pool) + manager->slab_live + manager->run_live + fa_table_known(&manager->table);
}
static uint64_t allocated(const fa_manager *manager) {
    return manager->pool_allocated + manager->fallbacks + manager->large;
}

/* ---- the hot path: pool and slabs --------------------------------------------------------------------------------- */

static void *alloc_slow(fa_manager *manager, size_t alignment, size_t size, bool zeroed, size_t credit);
static fa_status free_slow(fa_manager *manager, void *block);

static inline void *pool_alloc(fa_manager *manager, size_t size) {
    enter(manager, size, manager->pool.block_size);
    manager->pool_allocated++;
    return fa_pool_take(&manager->pool, size);
}

static inline void *slab_alloc(fa_manager *manager, size_t size, uint32_t class) {
    enter(manager, size, manager->slabs.kind[class].size);
    manager->fallbacks++;
    manager->slab_live++;
    return fa_slabs_take(&manager->slabs, class, size);
}

/* The live block with this index. */
static inline void pool_free(fa_manager *manager, size_t index, void *block) {
    leave(manager, fa_pool_size(&manager->pool, index), manager->pool.block_size);
    fa_pool_give(&manager->pool, index);
    fa_wipe_small(block, manager->pool.block_size);
}

/* A live block of a slab. */
static inline void slab_free(fa_manager *manager, fa_slab_place place, void *block) {
    leave(manager, fa_slabs_size(&manager->slabs, place), manager->slabs.kind[place.class].size);
    manager->slab_live--;
    fa_slabs_give(&manager->slabs, place, block);
}

/* A zero block of the pool, if it may, or of a slab of the class; or null. The lock is held. */
static void *small_alloc(fa_manager *manager, size_t size, uint32_t class, bool pool_may, size_t credit) {
    if (FA_UNLIKELY(!allowed(manager, size, credit))) return NULL;
    if (pool_may && !fa_pool_is_full(&manager->pool)) return pool_alloc(manager, size);
    if (fa_slabs_must_refill(&manager->slabs, class) && !fa_slabs_refill(&manager->slabs, manager->os, class)) return NULL;
    return slab_alloc(manager, size, class);
}

/* Any small block, or null: managers that are locked or limited, the pool's first round, a magazine that is empty. */
FA_APART static void *malloc_anywhere(fa_manager *manager, size_t size) {
    if (FA_LIKELY(size < manager->small_end)) {
        lock(manager);
        void *block = small_alloc(manager, size, fa_slab_class(size), size <= manager->pool.block_size, 0);
        unlock(manager);
        if (FA_LIKELY(block != NULL)) return block;
    }
    if (manager->hardened != NULL) return fa_strict_alloc(manager->hardened, FA_MIN_ALIGNMENT, size);
    return alloc_slow(manager, FA_MIN_ALIGNMENT, size, false, 0);
}

/* What the pool does not hold: a magazine, else anywhere. */
FA_APART static void *malloc_beyond(fa_manager *manager, size_t size) {
    bool pool_may = size < manager->quick && !fa_pool_is_full(&manager->pool);
    if (FA_UNLIKELY(manager->quick == 0 || size > FA_SLAB_MAX || pool_may))
        return malloc_anywhere(manager, size);
    uint32_t class = fa_slab_class(size);
    if (FA_UNLIKELY(fa_slabs_must_refill(&manager->slabs, class))) return malloc_anywhere(manager, size);
    return slab_alloc(manager, size, class);
}

FA_HOT void *fa_malloc(fa_manager *manager, size_t size) {
    if (FA_LIKELY(size < manager->quick && manager->pool.stacked > 0)) return pool_alloc(manager, size);
    return malloc_beyond(manager, size);
}

fa_status fa_manager_try_free(fa_manager *manager, void *block) {
    fa_status status = FA_ERR_CORRUPT;
    fa_slab_place place;
    lock(manager);
    size_t index = fa_pool_index(&manager->pool, block);
    bool in_pool = fa_pool_owns(&manager->pool, block), in_slabs = fa_slabs_own(&manager->slabs, block);
    if (index < manager->pool.count && fa_pool_is_live(&manager->pool, index)) {
        pool_free(manager, index, block);
        status = FA_OK;
    } else if (in_slabs && fa_slabs_find(&manager->slabs, block, &place)) {
        if (FA_UNLIKELY(fa_slabs_must_spill(&manager->slabs, place.class))) fa_slabs_spill(&manager->slabs, place.class);
        slab_free(manager, place, block);
        status = FA_OK;
    }
    unlock(manager);
    return FA_LIKELY(in_pool || in_slabs) ? status : free_slow(manager, block);
}

FA_COLD static void report(const fa_manager *manager, const char *call, fa_status status, const void *block) {
    if (manager->hardened != NULL) fa_strict_report(manager->hardened, call, block);
    else fa_report(&manager->reporter, call, status, block);
}

/* Locked managers, full magazines, what is in neither pool nor slabs, and what is no block. */
FA_APART static void free_anywhere(fa_manager *manager, void *block) {
    fa_strict *hardened = manager->hardened;
    if (block == NULL) return;
    fa_status status = hardened == NULL ? fa_manager_try_free(manager, block) : fa_strict_free(hardened, block);
    if (FA_UNLIKELY(status != FA_OK)) report(manager, "free", status, block);
}

/* Blocks of a slab, else anywhere. */
FA_APART static void free_beyond(fa_manager *manager, void *block) {
    fa_slab_place place;
    if (FA_LIKELY(manager->quick != 0 && fa_slabs_own(&manager->slabs, block) &&
                  fa_slabs_find(&manager->slabs, block, &place) && !fa_slabs_must_spill(&manager->slabs, place.class)))
        slab_free(manager, place, block);
    else free_anywhere(manager, block);
}

FA_HOT void fa_free(fa_manager *manager, void *block) {
    size_t index = fa_pool_index(&manager->pool, block), room = manager->pool.block_size;
    if (FA_UNLIKELY(index >= manager->quick_blocks || !fa_pool_is_live(&manager->pool, index))) {
        free_beyond(manager, block);
        return;
    }
    leave(manager, fa_pool_size(&manager->pool, index), room);
    fa_pool_give(&manager->pool, index);
    fa_wipe_pair(block, room);
}

/* ---- creation ---------------------------------------------------------------------------------------------------- */

void fa_manager_options_init(fa_manager_options *options) {
    *options = (fa_manager_options){
        .struct_size = sizeof *options,
        .block_size = 128,
        .pool_blocks = 8192,
        .large_size = (size_t)64 << 10,
        .cache_limit = (size_t)64 << 20,
        .cache_age = 10000,
    };
}

static bool options_are_valid(const fa_manager_options *options) {
    if (options->struct_size != sizeof *options || (options->flags & ~(unsigned)(FA_LOCKED | FA_HARDENED)) != 0) return false;
    if (options->block_size == 0 || options->block_size % 16 != 0 || options->block_size > FA_SLAB_MAX)
        return false;
    return options->large_size > FA_SLAB_MAX && options->large_size <= MAX_LARGE_SIZE;
}

fa_manager *fa_manager_create(const fa_manager_options *options, fa_status *status) {
    fa_manager_options defaults;
    fa_status ignored;
    if (status == NULL) status = &ignored;
    if (options == NULL) {
        fa_manager_options_init(&defaults);
        options = &defaults;
    }
    *status = FA_ERR_INVALID;
    if (!options_are_valid(options)) return NULL;

    const fa_os *os = options->os != NULL ? options->os : fa_os_platform();
    bool hardened = (options->flags & FA_HARDENED) != 0;
    fa_pool pool;
    *status = fa_pool_create(&pool, os, options->block_size, hardened ? 0 : options->pool_blocks);
    if (*status != FA_OK) return NULL;
    size_t mapped = 0;
    void *memory = NULL;
    *status = FA_ERR_NOMEM;
    if (fa_align_up(sizeof(fa_manager), os->page_size(), &mapped) && os->reserve(mapped, os->page_size(), &memory) == 0) {
        if (os->commit(memory, mapped) == 0) *status = FA_OK;
        else (void)os->release(memory, mapped);
    }
    if (*status != FA_OK) {
        fa_pool_destroy(&pool, os);
        return NULL;
    }
    fa_manager *manager = memory;
    manager->pool = pool;
    manager->locked = (options->flags & FA_LOCKED) != 0 && !hardened; /* which has a lock of its own */
    manager->large_size = options->large_size;
    const uint64_t limit = options->limit;
    manager->limit = limit != 0 && limit < MAX_LIMIT ? (int64_t)limit : (int64_t)MAX_LIMIT;
    manager->headroom = manager->limit;
    manager->quick = manager->locked || hardened || limit != 0 ? 0 : options->block_size + 1;
    manager->quick_blocks = manager->locked || !fa_can_wipe_pair(options->block_size) ? 0 : pool.count;
    manager->small_end = hardened ? 0 : FA_SLAB_MAX + 1;
    manager->os = os;
    manager->mapped = mapped;
    manager->cache.limit = options->cache_limit;
    manager->cache.age = options->cache_age;
    fa_table_init(&manager->table);
    fa_slabs_init(&manager->slabs, 0);
    manager->reporter = (fa_reporter){.os = os,
                                      .handler = options->on_corruption,
                                      .context = options->corruption_context,
                                      .heap = "manager",
                                      .name = ""};
    if (hardened) *status = fa_strict_create(&manager->hardened, options, &manager->reporter, manager->limit);
    if (*status == FA_OK) return manager;
    (void)os->release(manager, mapped);
    return NULL;
}

/* ---- blocks outside the pool ------------------------------------------------------------------------------------- */

typedef struct manager_block {
    enum block_kind kind;
    uint16_t *size_plus_1; /* POOLED: where its size stands, of the pool or of the slabs */
    size_t room;
    size_t size;
} manager_block;

#define KIND_BITS 2
#define SLACK_BITS 34
#define FALLBACK_UNIT_LOG2 4
#define LARGE_UNIT_LOG2 12

static uint64_t pack(manager_block block) {
    unsigned unit = block.kind == LARGE ? LARGE_UNIT_LOG2 : FALLBACK_UNIT_LOG2;
    uint64_t room = (uint64_t)block.room >> unit, slack = block.room - block.size;
    return room << (SLACK_BITS + KIND_BITS) | slack << KIND_BITS | (uint64_t)block.kind;
}

static manager_block unpack(uint64_t value) {
    manager_block block = {.kind = (enum block_kind)(value & ((1U << KIND_BITS) - 1))};
    unsigned unit = block.kind == LARGE ? LARGE_UNIT_LOG2 : FALLBACK_UNIT_LOG2;
    block.room = (size_t)(value >> (SLACK_BITS + KIND_BITS) << unit);
    block.size = block.room - (size_t)(value >> KIND_BITS & ((UINT64_C(1) << SLACK_BITS) - 1));
    return block;
}

/* The room a large block of `size` bytes gets, or 0 if there can be none. */
static size_t large_room(const fa_manager *manager, size_t size) {
    if (size > MAX_LARGE) return 0;
    size_t step = fa_min((size_t)1 << (fa_log2(fa_max(size, 2) - 1) - LARGE_STEPS_LOG2), MAX_SLACK + 1);
    size_t unit = fa_max(fa_max(step, manager->os->page_size()), (size_t)1 << LARGE_UNIT_LOG2), room;
    return fa_align_up(size, unit, &room) && room <= PTRDIFF_MAX ? room : 0;
}

/* The room a fallback block of `size` bytes gets: never 0, so every block is distinct. */
static size_t fallback_room(size_t size) {
    size_t room;
    return fa_align_up(fa_max(size, 1), (size_t)1 << FALLBACK_UNIT_LOG2, &room) ? room : 0;
}

/* ---- runs of pages ------------------------------------------------------------------------------------------------- */

/* Pages for `size` bytes, which are less than MAX_LARGE_SIZE. */
static uint32_t run_pages(const fa_manager *manager, size_t size) {
    return fa_pages_round(&manager->pages, (uint32_t)((fa_max(size, 1) + (FA_PAGE - 1)) >> FA_PAGE_LOG2));
}

/* The first page of the live run that starts at `address`, or 0: page 0 holds what is known of the others. The owner of a live
 * run may use its links: next is the size that was asked for. */
static uint32_t run_at(const fa_manager *manager, const void *address) {
    size_t offset = (uintptr_t)address - (uintptr_t)manager->pages.base;
    if (offset >= (size_t)manager->pages.fresh << FA_PAGE_LOG2 || (offset & (FA_PAGE - 1)) != 0) return 0;
    uint32_t page = (uint32_t)(offset >> FA_PAGE_LOG2);
    return page >= manager->pages.start && manager->pages.run[page].kind == FA_RUN_LIVE ? page : 0;
}

static bool in_runs(const fa_manager *manager, const void *address) {
    return (uintptr_t)address - (uintptr_t)manager->pages.base < manager->pages.bytes;
}

static size_t run_room(const fa_manager *manager, uint32_t page) {
    return (size_t)manager->pages.run[page].length << FA_PAGE_LOG2;
}

static size_t free_in_runs(const fa_manager *manager) { return (size_t)manager->pages.resident.pages << FA_PAGE_LOG2; }

/* A zero run, or null. A heap that has filled its first step takes huge pages from then on: few faults, and little to lose. */
static void *alloc_run(fa_manager *manager, size_t alignment, size_t size, size_t credit) {
    fa_pages *pages = &manager->pages;
    void *block = NULL;
    lock(manager);
    if (pages->bytes == 0 && !manager->runs_failed) manager->runs_failed = !fa_pages_init(pages, manager->os, RUNS_RANGE);
    if (pages->bytes != 0 && allowed(manager, size, credit)) {
        bool zero;
        uint32_t first = fa_pages_take(pages, run_pages(manager, size), (uint32_t)(fa_max(alignment, FA_PAGE) >> FA_PAGE_LOG2),
                                       FA_RUN_LIVE, &zero);
        if (first != 0) {
            pages->huge_pages = true;
            pages->run[first].next = (uint32_t)size;
            enter(manager, size, run_room(manager, first));
            manager->fallbacks++;
            manager->run_live++;
            block = fa_pages_address(pages, first);
        }
    }
    unlock(manager);
    return block;
}

/* Gives pages of free runs back to the system until no more than `keep` bytes of them are resident, and those that have been
 * free for `age` milliseconds (0: any). The lock is held, but not during the system calls. */
static fa_status return_runs(fa_manager *manager, size_t keep, uint32_t now, uint32_t age) {
    fa_status status = FA_OK;
    while (free_in_runs(manager) > keep && status == FA_OK) {
        uint32_t scan = UINT32_MAX, page = fa_pages_oldest(&manager->pages, now, age, &scan);
        if (page == 0) break;
        unlock(manager);
        if (fa_pages_decommit(&manager->pages, page) != 0) status = FA_ERR_UNSUPPORTED;
        lock(manager);
        fa_pages_settle(&manager->pages, page, status == FA_OK);
    }
    return status;
}

static void release_evicted(const fa_manager *manager, const fa_evicted *evicted) {
    for (uint32_t i = 0; i < evicted->count; i++)
        (void)manager->os->release(evicted->entry[i].address, evicted->entry[i].size);
}

/* Zero pages from the system. */
static void *map_large(const fa_manager *manager, size_t alignment, size_t room) {
    const fa_os *os = manager->os;
    void *block;
    if (room >= HUGE_PAGE) alignment = fa_max(alignment, HUGE_PAGE);
    if (os->reserve(room, fa_max(alignment, os->page_size()), &block) != 0) return NULL;
    if (os->commit(block, room) != 0) {
        (void)os->release(block, room);
        return NULL;
    }
    if (room >= HUGE_PAGE) (void)os->advise_huge(block, fa_align_down(room, HUGE_PAGE)); /* a hint, and no promise */
    return block;
}

static void *alloc_large(fa_manager *manager, size_t alignment, size_t size, size_t credit) {
    size_t room = large_room(manager, size);
    if (room == 0) return NULL;
    fa_cached cached = {.address = NULL, .size = room};
    lock(manager);
    bool may = allowed(manager, size, credit);
    bool hit = may && fa_cache_take(&manager->cache, room, alignment, &cached);
    unlock(manager);
    if (hit && cached.size - size > MAX_SLACK) { /* larger than the table can say */
        (void)manager->os->release(cached.address, cached.size);
        hit = false;
    }
    if (!hit && may) cached = (fa_cached){.address = map_large(manager, alignment, room), .size = room};
    if (cached.address == NULL) return NULL;

    manager_block block = {.kind = LARGE, .room = cached.size, .size = size};
    lock(manager);
    bool entered = allowed(manager, size, credit) && fa_table_insert(&manager->table, manager->os, cached.address, pack(block));
    if (entered) {
        enter(manager, size, block.room);
        manager->large_bytes += block.room;
        manager->large++;
        manager->cache_hits += hit;
    }
    unlock(manager);
    if (entered) return cached.address;
    (void)manager->os->release(cached.address, cached.size);
    return NULL;
}

static void *alloc_fallback(fa_manager *manager, size_t alignment, size_t size, bool zeroed, size_t credit) {
    manager_block block = {.kind = FALLBACK, .room = fallback_room(size), .size = size};
    lock(manager);
    bool may = allowed(manager, size, credit);
    unlock(manager);
    void *memory = may ? manager->os->heap_alloc(block.room, alignment) : NULL;
    if (memory == NULL) return NULL;
    if (zeroed) memset(memory, 0, size);
    lock(manager);
    bool entered = allowed(manager, size, credit) && fa_table_insert(&manager->table, manager->os, memory, pack(block));
    if (entered) {
        enter(manager, size, block.room);
        manager->fallbacks++;
    }
    unlock(manager);
    if (entered) return memory;
    manager->os->heap_free(memory);
    return NULL;
}

/* The class whose blocks hold `size` bytes with the alignment, or FA_SLAB_CLASSES. A span is aligned, so a block is
 * aligned to every power of two that divides its size. */
static uint32_t aligned_class(size_t alignment, size_t size) {
    if (size > FA_SLAB_MAX || alignment > FA_SLAB_MAX) return FA_SLAB_CLASSES;
    uint32_t class = fa_slab_class(fa_max(size, alignment));
    while (class < FA_SLAB_CLASSES && (fa_slab_size(class) & (alignment - 1)) != 0) class += 1;
    return class;
}

/* Pool blocks start at multiples of the block size from a page. */
static bool pool_has_alignment(const fa_manager *manager, size_t alignment) {
    return (manager->pool.block_size & (alignment - 1)) == 0 && alignment <= manager->os->page_size();
}

static void *alloc_small(fa_manager *manager, size_t alignment, size_t size, size_t credit) {
    uint32_t class = aligned_class(alignment, size);
    if (class == FA_SLAB_CLASSES) return NULL;
    bool pool_may = size <= manager->pool.block_size && pool_has_alignment(manager, alignment);
    lock(manager);
    void *block = small_alloc(manager, size, class, pool_may, credit);
    unlock(manager);
    return block;
}

FA_APART static void *alloc_slow(fa_manager *manager, size_t alignment, size_t size, bool zeroed, size_t credit) {
    if (manager->hardened != NULL) return fa_strict_alloc(manager->hardened, alignment, size);
    void *block = size <= FA_SLAB_MAX ? alloc_small(manager, alignment, size, credit) : NULL;
    if (block == NULL && size < manager->large_size && fa_max(size, alignment) > FA_SLAB_MAX)
        block = alloc_run(manager, alignment, size, credit);
    if (block == NULL && size < manager->large_size)
        block = alloc_fallback(manager, alignment, size, zeroed, credit);
    else if (block == NULL) block = alloc_large(manager, alignment, size, credit);
    if (block == NULL) {
        lock(manager);
        manager->failures++;
        unlock(manager);
    }
    return block;
}

/* Within the budget of all that is cached, runs come first; large blocks have what they leave. The lock is held. */
FA_COLD static void make_room(fa_manager *manager, uint64_t now, fa_evicted *evicted) {
    size_t limit = manager->cache.limit;
    (void)return_runs(manager, limit, (uint32_t)now, 0); /* what cannot be given back stays */
    fa_cache_purge(&manager->cache, now, limit - fa_min(free_in_runs(manager), limit), evicted);
}

static bool is_over_budget(const fa_manager *manager) {
    return free_in_runs(manager) + manager->cache.bytes > manager->cache.limit;
}

/* Without the lock. A list of its own: it has room for one purge, and what came before is not known to be little. */
FA_COLD static void keep_to_budget(fa_manager *manager) {
    fa_evicted evicted;
    evicted.count = 0;
    uint64_t now = manager->os->milliseconds();
    lock(manager);
    if (is_over_budget(manager)) make_room(manager, now, &evicted);
    unlock(manager);
    release_evicted(manager, &evicted);
}

/* Now and then: what is too old goes back. The lock is held. */
FA_COLD static void look_for_old_runs(fa_manager *manager, uint64_t now) {
    manager->looked_at = now;
    (void)return_runs(manager, 0, (uint32_t)now, manager->cache.age);
}

static bool is_time_to_look(const fa_manager *manager, uint64_t now) {
    return manager->cache.age != 0 && now - manager->looked_at > manager->cache.age / LOOKS_IN_AGE;
}

/* A live run; the lock is held. Nobody finds it any more, nor is it handed out, while it is zeroed without the lock. */
static void free_run(fa_manager *manager, void *address, uint32_t page) {
    size_t size = manager->pages.run[page].next;
    leave(manager, size, run_room(manager, page));
    manager->run_live--;
    manager->pages.run[page].kind = FA_RUN_OWN;
    unlock(manager);
    fa_secure_zero(address, size); /* what lies above the size was never the user's: it is zero */
    uint64_t now = manager->os->milliseconds();
    lock(manager);
    fa_pages_give(&manager->pages, page, (uint32_t)now);
    if (FA_UNLIKELY(is_time_to_look(manager, now))) look_for_old_runs(manager, now);
    bool over = is_over_budget(manager);
    unlock(manager);
    if (FA_UNLIKELY(over)) keep_to_budget(manager);
}

/* Gives the memory of a block that is in no table any more back, zeroed: outside the lock. */
static void retire(fa_manager *manager, void *address, manager_block block) {
    if (block.kind == FALLBACK) {
        fa_secure_zero(address, block.room);
        manager->os->heap_free(address);
        return;
    }
    fa_secure_zero(address, block.size); /* what lies above the size was never the user's: it is zero */
    fa_evicted evicted;
    evicted.count = 0;
    uint64_t now = manager->os->milliseconds();
    lock(manager);
    fa_cache_put(&manager->cache, address, block.room, now, &evicted);
    bool over = is_over_budget(manager);
    unlock(manager);
    release_evicted(manager, &evicted);
    if (FA_UNLIKELY(over)) keep_to_budget(manager);
}

FA_APART static fa_status free_slow(fa_manager *manager, void *address) {
    if (manager->hardened != NULL) return fa_strict_free(manager->hardened, address);
    lock(manager);
    if (in_runs(manager, address)) {
        uint32_t page = run_at(manager, address);
        if (page != 0) free_run(manager, address, page);
        else unlock(manager);
        return page != 0 ? FA_OK : FA_ERR_CORRUPT;
    }
    fa_slot *slot = fa_table_find(&manager->table, address);
    manager_block block = {0};
    if (slot != NULL) {
        block = unpack(slot->value);
        fa_table_remove(&manager->table, slot);
        leave(manager, block.size, block.room);
        if (block.kind == LARGE) manager->large_bytes -= block.room;
    }
    unlock(manager);
    if (slot == NULL) return FA_ERR_FOREIGN;
    retire(manager, address, block);
    return FA_OK;
}

/* ---- the other ways in ------------------------------------------------------------------------------------------- */

void *fa_manager_alloc_zeroed(fa_manager *manager, size_t alignment, size_t size) {
    if (!fa_is_power_of_two(alignment) || alignment > FA_MAX_ALIGNMENT) return NULL;
    return alloc_slow(manager, fa_max(alignment, FA_MIN_ALIGNMENT), size, true, 0);
}

void *fa_calloc(fa_manager *manager, size_t count, size_t size) {
    if (size != 0 && count > SIZE_MAX / size) return alloc_slow(manager, FA_MIN_ALIGNMENT, SIZE_MAX, true, 0);
    return alloc_slow(manager, FA_MIN_ALIGNMENT, count * size, true, 0);
}

void *fa_aligned_alloc(fa_manager *manager, size_t alignment, size_t size) {
    if (!fa_is_power_of_two(alignment) || alignment > FA_MAX_ALIGNMENT) return NULL;
    return alloc_slow(manager, fa_max(alignment, FA_MIN_ALIGNMENT), size, false, 0);
}

/* What is known of a live block; FA_ERR_CORRUPT or FA_ERR_FOREIGN if it is not one. The lock is held. */
static fa_status look_up(fa_manager *manager, const void *address, manager_block *block) {
    *block = (manager_block){.kind = POOLED};
    bool in_pool = fa_pool_owns(&manager->pool, address);
    if (in_pool || fa_slabs_own(&manager->slabs, address)) {
        fa_slab_place place;
        bool live;
        if (in_pool) {
            size_t index = fa_pool_index(&manager->pool, address);
            live = index < manager->pool.count && fa_pool_is_live(&manager->pool, index);
            place.number = (uint32_t)index;
            block->room = manager->pool.block_size;
            block->size_plus_1 = manager->pool.size_plus_1;
        } else {
            live = fa_slabs_find(&manager->slabs, address, &place);
            block->room = manager->slabs.kind[place.class].size;
            block->size_plus_1 = manager->slabs.sizes;
        }
        if (!live) return FA_ERR_CORRUPT;
        block->size_plus_1 += place.number;
        block->size = *block->size_plus_1 - 1U;
        return FA_OK;
    }
    if (in_runs(manager, address)) {
        uint32_t page = run_at(manager, address);
        if (page == 0) return FA_ERR_CORRUPT;
        *block = (manager_block){.kind = RUN, .room = run_room(manager, page), .size = manager->pages.run[page].next};
        return FA_OK;
    }
    const fa_slot *slot = fa_table_find(&manager->table, address);
    if (slot == NULL) return FA_ERR_FOREIGN;
    *block = unpack(slot->value);
    return FA_OK;
}

/* What the user may have written. Above its size a large block or a run is promised to be zero, so only that much. */
static size_t usable(const manager_block *block) {
    return block->kind == LARGE || block->kind == RUN ? block->size : block->room;
}

/* Whether a block should stay where it is with another size. */
static bool stays(const fa_manager *manager, const void *address, const manager_block *block, size_t size) {
    if (fa_pool_owns(&manager->pool, address)) return size <= block->room;
    if (block->kind == POOLED) return size <= block->room && fa_slab_size(fa_slab_class(size)) == block->room;
    if (block->kind == LARGE) return size >= manager->large_size && large_room(manager, size) == block->room;
    if (block->kind == RUN) return size > FA_SLAB_MAX && size < manager->large_size;
    return size > FA_SLAB_MAX && fallback_room(size) == block->room;
}

/* Changes the size of a block in place; the lock is held. What is cut off becomes zero. */
static void set_size(fa_manager *manager, void *address, manager_block block, size_t size) {
    size_t end = usable(&block);
    if (size < end) fa_secure_zero((unsigned char *)address + size, end - size);
    if (block.room > MAX_SLACK) size = fa_max(size, block.room - MAX_SLACK);
    change(manager, block.size, size, 0, 0);
    if (block.kind == POOLED) {
        *block.size_plus_1 = (uint16_t)(size + 1);
        return;
    }
    block.size = size;
    fa_table_find(&manager->table, address)->value = pack(block);
}

/* The same of a run, which gives pages back, or takes those behind it; false, with nothing changed, if it needs more of them. */
static bool set_run_size(fa_manager *manager, void *address, manager_block block, size_t size) {
    fa_pages *pages = &manager->pages;
    uint32_t page = run_at(manager, address), count = run_pages(manager, size);
    if (!fa_pages_extend(pages, page, count)) return false;
    if (size < block.size) fa_secure_zero((unsigned char *)address + size, block.size - size);
    fa_pages_shrink(pages, page, count, (uint32_t)manager->os->milliseconds());
    pages->run[page].next = (uint32_t)size;
    change(manager, block.size, size, block.room, run_room(manager, page));
    return true;
}

static bool set_any_size(fa_manager *manager, void *address, manager_block block, size_t size) {
    if (block.kind == RUN) return set_run_size(manager, address, block, size);
    set_size(manager, address, block, size);
    return true;
}

/* A large block grows or shrinks to another large room by moving its pages: the table forgets it meanwhile. */
static void *move_pages(fa_manager *manager, void *address, manager_block block, size_t size) {
    manager_block now = {.kind = LARGE, .room = large_room(manager, size), .size = size};
    lock(manager);
    fa_slot *slot = fa_table_find(&manager->table, address);
    bool may = now.room != 0 && slot != NULL && allowed(manager, size, block.size);
    if (may) fa_table_take_out(&manager->table, slot);
    unlock(manager);
    if (!may) return NULL;

    void *moved = address;
    if (size < block.size) fa_secure_zero((unsigned char *)address + size, block.size - size);
    bool done = manager->os->remap(address, block.room, now.room, &moved) == 0;
    if (!done) now.room = block.room;
    if (!done && (size > block.size || block.room - size > MAX_SLACK)) now.size = block.size;
    lock(manager);
    fa_table_put_back(&manager->table, moved, pack(now));
    change(manager, block.size, now.size, block.room, now.room);
    manager->large_bytes = manager->large_bytes - block.room + now.room;
    manager->moved += done;
    unlock(manager);
    return now.size == size ? moved : NULL;
}

void *fa_manager_try_realloc(fa_manager *manager, void *address, size_t alignment, size_t size, fa_status *status) {
    manager_block block = {0};
    *status = FA_ERR_INVALID;
    if (!fa_is_power_of_two(alignment) || alignment > FA_MAX_ALIGNMENT) return NULL;
    alignment = fa_max(alignment, FA_MIN_ALIGNMENT);
    if (manager->hardened != NULL) return fa_strict_realloc(manager->hardened, address, alignment, size, status);
    lock(manager);
    *status = look_up(manager, address, &block);
    bool in_place = *status == FA_OK && stays(manager, address, &block, size) &&
                    ((uintptr_t)address & (alignment - 1)) == 0 &&
                    allowed(manager, size, block.size);
    if (in_place) in_place = set_any_size(manager, address, block, size);
    bool large = *status == FA_OK && block.kind == LARGE;
    unlock(manager);
    if (*status != FA_OK) return NULL;
    bool gave_back = block.kind == RUN && size < block.size;
    if (in_place && gave_back) keep_to_budget(manager);
    if (in_place) return address;
    if (large && size >= manager->large_size && alignment <= manager->os->page_size()) {
        void *moved = move_pages(manager, address, block, size);
        if (moved != NULL) return moved;
    }
    void *moved = alloc_slow(manager, alignment, size, false, block.size);
    if (moved == NULL && size <= block.size && ((uintptr_t)address & (alignment - 1)) == 0) {
        /* What is not larger never fails: the block keeps its place and its room. */
        lock(manager);
        (void)set_any_size(manager, address, block, size);
        unlock(manager);
        if (gave_back) keep_to_budget(manager);
        return address;
    }
    if (moved == NULL) {
        *status = FA_ERR_NOMEM;
        return NULL;
    }
    memcpy(moved, address, fa_min(size, usable(&block)));
    *status = fa_manager_try_free(manager, address);
    return moved;
}

void *fa_realloc(fa_manager *manager, void *block, size_t size) {
    if (block == NULL) return fa_malloc(manager, size);
    if (size == 0) {
        fa_free(manager, block);
        return NULL;
    }
    fa_status status;
    void *moved = fa_manager_try_realloc(manager, block, FA_MIN_ALIGNMENT, size, &status);
    if (status == FA_ERR_CORRUPT || status == FA_ERR_FOREIGN) report(manager, "realloc", status, block);
    return moved;
}

/* ---- looking, trimming, ending ----------------------------------------------------------------------------------- */

size_t fa_usable_size(const fa_manager *manager, const void *address) {
    manager_block block;
    size_t size;
    if (manager->hardened != NULL) return fa_strict_size(manager->hardened, address, &size) ? size : 0;
    lock(manager);
    bool live = look_up((fa_manager *)(uintptr_t)manager, address, &block) == FA_OK;
    unlock(manager);
    return live ? usable(&block) : 0;
}

bool fa_owns(const fa_manager *manager, const void *pointer) {
    manager_block block;
    size_t size;
    if (manager->hardened != NULL) return fa_strict_size(manager->hardened, pointer, &size);
    lock(manager);
    bool live = look_up((fa_manager *)(uintptr_t)manager, pointer, &block) == FA_OK;
    unlock(manager);
    return live;
}

fa_status fa_manager_check(fa_manager *manager) {
    return manager->hardened != NULL ? fa_strict_check(manager->hardened) : FA_ERR_UNSUPPORTED;
}

fa_status fa_manager_trim(fa_manager *manager, size_t keep) {
    if (manager->hardened != NULL) return fa_strict_trim(manager->hardened, keep);
    fa_evicted evicted;
    evicted.count = 0;
    uint64_t now = manager->os->milliseconds();
    lock(manager);
    fa_cache_purge(&manager->cache, now, keep, &evicted);
    size_t kept = manager->cache.bytes;
    fa_status status = return_runs(manager, keep - fa_min(keep, kept), (uint32_t)now, 0);
    kept = fa_min(keep, kept + free_in_runs(manager));
    fa_status spans = fa_slabs_trim(&manager->slabs, manager->os, keep - kept);
    unlock(manager);
    release_evicted(manager, &evicted);
    return status != FA_OK ? status : spans;
}

fa_status fa_manager_get_stats(const fa_manager *manager, fa_manager_stats *stats) {
    if (manager->hardened != NULL) {
        fa_strict_get_stats(manager->hardened, stats);
        return FA_OK;
    }
    lock(manager);
    uint64_t touched = (uint64_t)manager->pool.used * manager->pool.block_size;
    uint64_t slabs = (uint64_t)manager->slabs.resident << FA_SPAN_LOG2;
    uint64_t runs = (manager->pages.live + manager->pages.resident.pages) << FA_PAGE_LOG2;
    *stats = (fa_manager_stats){
        .requested = requested(manager),
        .used = used(manager),
        .reserved = manager->pool.mapped + manager->slabs.reserved_size + manager->large_bytes + manager->cache.bytes +
                    manager->table.mapped + manager->pages.bytes,
        .resident = touched + slabs + runs + manager->large_bytes + manager->cache.bytes,
        .cached = manager->cache.bytes + free_in_runs(manager),
        .peak = manager->peak,
        .live = live(manager),
        .allocated = allocated(manager),
        .freed = allocated(manager) - live(manager),
        .pool_blocks = manager->pool.count,
        .pool_live = fa_pool_live(&manager->pool),
        .slab_bytes = slabs,
        .slab_live = manager->slab_live,
        .run_bytes = runs,
        .run_live = manager->run_live,
        .fallbacks = manager->fallbacks,
        .large = manager->large,
        .cache_hits = manager->cache_hits,
        .moved = manager->moved,
        .failures = manager->failures,
    };
    unlock(manager);
    return FA_OK;
}

void fa_manager_close(fa_manager *manager) {
    if (manager->hardened != NULL) fa_strict_close(manager->hardened);
    lock(manager);
    manager->closed = true;
    manager->quick = 0;
    unlock(manager);
}

uint64_t fa_manager_restart_peak(fa_manager *manager, uint64_t *used_now) {
    if (manager->hardened != NULL) return fa_strict_restart_peak(manager->hardened, used_now);
    lock(manager);
    uint64_t peak = manager->peak;
    *used_now = manager->peak = used(manager);
    manager->margin = 0;
    unlock(manager);
    return peak;
}

void fa_manager_destroy(fa_manager *manager) {
    if (manager == NULL) return;
    const fa_os *os = manager->os;
    if (manager->hardened != NULL) fa_strict_destroy(manager->hardened);
    size_t position = 0;
    for (fa_slot *slot = fa_table_next(&manager->table, &position); slot != NULL;
         slot = fa_table_next(&manager->table, &position)) {
        manager_block block = unpack(slot->value);
        fa_secure_zero((void *)slot->address, block.kind == LARGE ? block.size : block.room);
        if (block.kind == LARGE) (void)os->release((void *)slot->address, block.room);
        else os->heap_free((void *)slot->address);
    }
    for (uint32_t i = 0; i < manager->cache.count; i++)
        (void)os->release(manager->cache.entry[i].address, manager->cache.entry[i].size);
    for (uint32_t page = manager->pages.start; page < manager->pages.fresh; page += manager->pages.run[page].length)
        if (manager->pages.run[page].kind == FA_RUN_LIVE)
            fa_secure_zero(fa_pages_address(&manager->pages, page), manager->pages.run[page].next);
    fa_pages_destroy(&manager->pages);
    fa_table_destroy(&manager->table, os);
    fa_slabs_destroy(&manager->slabs, os);
    fa_pool_destroy(&manager->pool, os);
    (void)os->release(manager, manager->mapped);
}

void fa_manager_fork_prepare(fa_manager *manager) {
    if (manager->hardened != NULL) fa_strict_lock(manager->hardened);
    lock(manager);
}

void fa_manager_fork_parent(fa_manager *manager) {
    unlock(manager);
    if (manager->hardened != NULL) fa_strict_unlock(manager->hardened);
}

void fa_manager_fork_child(fa_manager *manager) { fa_manager_fork_parent(manager); }

static void add_pool(const fa_pool *pool, uint64_t *sizes, uint64_t *used, uint64_t *blocks) {
    for (uint32_t index = 0; index < pool->used; index++) {
        if (!fa_pool_is_live(pool, index)) continue;
        *sizes += fa_pool_size(pool, index);
        *used += pool->block_size;
        (*blocks)++;
    }
}

bool fa_manager_is_valid(const fa_manager *manager) {
    if (manager->hardened != NULL && !fa_strict_is_valid(manager->hardened)) return false;
    lock(manager);
    bool valid = fa_pool_is_valid(&manager->pool, 0) && fa_slabs_are_valid(&manager->slabs) &&
                 fa_table_is_valid(&manager->table) && fa_cache_is_valid(&manager->cache);
    uint64_t sizes = 0, rooms = 0, blocks = 0, large = 0;
    add_pool(&manager->pool, &sizes, &rooms, &blocks);
    valid = valid && blocks == fa_pool_live(&manager->pool);
    for (uint32_t span = 0; span < manager->slabs.fresh; span++)
        add_pool(&manager->slabs.slab[span].pool, &sizes, &rooms, &blocks);
    valid = valid && blocks == fa_pool_live(&manager->pool) + manager->slab_live;
    size_t position = 0;
    for (const fa_slot *slot = fa_table_next(&manager->table, &position); slot != NULL;
         slot = fa_table_next(&manager->table, &position)) {
        manager_block block = unpack(slot->value);
        sizes += block.size;
        rooms += block.room;
        large += block.kind == LARGE ? block.room : 0;
        blocks++;
    }
    uint64_t runs = 0;
    const fa_pages *pages = &manager->pages;
    for (uint32_t page = pages->start; page < pages->fresh; page += pages->run[page].length) {
        if (pages->run[page].kind != FA_RUN_LIVE) continue;
        sizes += pages->run[page].next;
        rooms += run_room(manager, page);
        runs++;
    }
    blocks += runs;
    valid = valid && fa_pages_is_valid(pages) && runs == manager->run_live;
    valid = valid && sizes == requested(manager) && rooms == used(manager) && blocks == live(manager) &&
            large == manager->large_bytes && manager->headroom >= 0 && manager->margin >= 0;
    unlock(manager);
    return valid;
}
