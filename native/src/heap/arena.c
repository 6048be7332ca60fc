/*
 * heap/arena.c - one reserved range of address space, filled from the bottom up and released at once
 *
 *     fa_arena_alloc -- scratch --> my chunk (mem/bump.h) -- full --> refill: one compare-and-swap
 *                    \- polynomial, witness, tracked --> lock --> bins, else cursor (mem/blocks.h) --> region
 *                                                                                    \- full --> malloc, if allowed
 *
 *     metadata mapping   | fa_arena | threads or levels, entries, links | alive |   nothing about a block is in the block
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
 * Cost: alloc, free, mark, reset O(1), and a rewind that drops no live blocks of a mapped arena, else it is O(1) for each; wipes
 * follow the bytes used; stats O(threads) and a look at residency.
 */
#include "arena_parts.h"

#include <string.h>

/* The granule is the default alignment, up to a cache line: larger alignments are met by position, not by rounding. */
#define MAX_GRANULE ((size_t)64)
/* A block's granules are counted in 32 bits; larger capacities take larger granules, up to what an entry can hold. */
#define MAX_GRANULES ((uint64_t)UINT32_MAX - 1)
#define MAX_SCALED_GRANULE ((size_t)256)
/* Where addresses are few the map of an arena takes 16 MiB of them at the most, as long as larger granules make that so. */
#define MAP_GRANULES (SIZE_MAX > UINT32_MAX ? MAX_GRANULES : (uint64_t)1 << 20)
/* Levels that are there from the beginning. */
#define FIRST_LEVELS 16U
/* What a thread takes from the shared cursor at once, and a 64th of the capacity at the most. With less, the threads of an
 * arena often find after a reset what another core had written: 64 KiB made two threads 1.3 x as slow as one. */
#define CHUNK ((size_t)512 << 10)
#define MIN_CHUNK ((size_t)1 << 10)
/* Zeros from here on are pages given back, to come again when they are touched, as a large calloc of the C library: whoever asks
 * for so many seldom writes all of them at once. Below, the pages stay. */
#define LAZY_ZEROS ((size_t)32 << 20)

/* ---- the hot path: a bumped arena, my chunk -------------------------------------------------------------------- */

static fa_status alloc_slow(fa_arena *arena, size_t size, size_t alignment, bool zeroed, void **block);
FA_COLD static void *alloc_refill(fa_arena *arena, size_t size, size_t alignment) {
    void *block = NULL;
    return alloc_slow(arena, size, alignment, false, &block) == FA_OK ? block : NULL;
}

/* A lock, and a list or the cursor. */
FA_HOT FA_APART void *fa_arena_alloc_tracked(fa_arena *arena, size_t size, size_t alignment) {
    void *block = fa_mapped_alloc_small(arena, size, alignment);
    return FA_LIKELY(block != NULL) ? block : alloc_refill(arena, size, alignment);
}

FA_HOT void *fa_arena_alloc(fa_arena *arena, size_t size, size_t alignment) {
    const fa_recent *recent = recent_of(arena);
    if (FA_LIKELY(recent->epoch == FA_GET(arena->bump.epoch) &&
                  (alignment == 0 || (alignment <= arena->granule && fa_is_power_of_two(alignment))))) {
        fa_thread *thread = recent->thread;
        /* The last byte of the rounded size. It cannot wrap upwards, and that of 0 is SIZE_MAX, which goes the slow way. */
        size_t last = (size - 1) | arena->granule_mask, offset;
        if (FA_LIKELY(fa_bump_take(&thread->chunk, last, &offset))) {
            FA_ADD(thread->tally, TALLY_BLOCK + size);
            return arena->base + offset;
        }
    }
    return arena->mapped ? fa_arena_alloc_tracked(arena, size, alignment) : alloc_refill(arena, size, alignment);
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
        .guard_pages = witness && fa_os_platform()->traps ? FA_REQUIRE : FA_TRY,
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
    if (options->guard != FA_GUARD_ENDS && options->guard != FA_GUARD_BLOCKS) return false;
    bool for_secrets = options->guard == FA_GUARD_BLOCKS || options->secret_memory != FA_OFF;
    if (for_secrets && options->kind != FA_WITNESS) return false;
    if (options->guard == FA_GUARD_BLOCKS && options->guard_pages == FA_OFF) return false;
    return is_want(options->guard_pages) && is_want(options->lock) && is_want(options->no_dump) &&
           is_want(options->wipe_on_fork) && is_want(options->secret_memory);
}

/* Where the parts of the metadata mapping begin. */
typedef struct metadata_layout {
    size_t levels, marks, threads, entries, links, alive, size;
} metadata_layout;

/* Appends `count` items of `size` bytes on cache lines; false if that would wrap. */
static bool append(size_t *end, size_t count, size_t size, size_t *begin) {
    if (!fa_align_up(*end, MAX_GRANULE, begin)) return false;
    if (size != 0 && count > (SIZE_MAX - *begin) / size) return false;
    *end = *begin + count * size;
    return true;
}

static bool lay_out(metadata_layout *layout, bool mapped, bool witness, size_t slots, size_t page) {
    size_t end = sizeof(fa_arena);
    bool fits = append(&end, mapped ? FA_MAX_LEVELS : 0, sizeof(fa_level), &layout->levels) &&
                append(&end, mapped ? 0 : FA_MAX_LEVELS, sizeof(fa_bump_mark), &layout->marks) &&
                append(&end, mapped ? 0 : MAX_THREADS + 1, sizeof(fa_thread), &layout->threads) &&
                append(&end, mapped ? slots : 0, sizeof(fa_link), &layout->links) &&
                /* Entries last and on a page: they are made zero again by giving their pages back. */
                fa_align_up(end, page, &layout->entries);
    end = layout->entries;
    fits = fits && append(&end, mapped ? slots : 0, sizeof(uint64_t), &layout->entries) &&
           fa_align_up(end, page, &layout->alive);
    layout->size = layout->alive + (witness ? page : 0);
    return fits && layout->size >= layout->alive;
}

/* The power of two that makes the capacity countable, or 0. */
static size_t granule_of(size_t alignment, size_t capacity, bool mapped) {
    size_t granule = fa_min(alignment, MAX_GRANULE);
    while (capacity / granule > MAX_GRANULES) granule *= 2;
    while (mapped && capacity / granule > MAP_GRANULES && granule < MAX_SCALED_GRANULE) granule *= 2;
    return granule <= MAX_SCALED_GRANULE ? granule : 0;
}

static fa_status map_metadata(const fa_os *os, const metadata_layout *layout, bool mapped, void **metadata) {
    if (os->reserve(layout->size, os->page_size(), metadata) != 0) return FA_ERR_NOMEM;
    /* The map is committed as it is used, where that does not come by itself. */
    size_t first = mapped && !os->lazy_commit ? layout->levels + FIRST_LEVELS * sizeof(fa_level) : layout->size;
    if (fa_commit_items(os, *metadata, 1, 0, first) && fa_commit_items(os, *metadata, 1, layout->alive, layout->size)) return FA_OK;
    (void)os->release(*metadata, layout->size);
    return FA_ERR_NOMEM;
}

/* Zero in a forked child: a page of its own, so that nothing else is. Without the platform's help it never is. */
static volatile uint32_t *make_alive(void *page, const fa_os *os) {
    static uint32_t always = 1;
    if (page == NULL) return &always;
    (void)os->wipe_on_fork(page, os->page_size());
    *(uint32_t *)page = 1;
    return page;
}

static void init(fa_arena *arena, const fa_arena_options *options, const metadata_layout *layout, const fa_region *region,
                 size_t granule, const fa_canary *canary) {
    unsigned char *metadata = (unsigned char *)arena;
    arena->region = *region;
    arena->base = region->base;
    arena->born = fa_next_epochs();
    FA_SET(arena->bump.epoch, arena->born); /* no chunk is of it: mapped arenas never leave the slow way */
    arena->recent = (size_t)(arena->born / EPOCH_RUN % RECENT) * sizeof(fa_recent);
    arena->granule = granule;
    arena->granule_mask = granule - 1;
    arena->kind = options->kind;
    arena->tracked = (options->flags & FA_TRACKED) != 0;
    arena->mapped = arena->tracked || options->kind != FA_SCRATCH;
    arena->guarded = region->pages != FA_OFF;
    arena->plain = arena->mapped && !arena->guarded;
    arena->careful = options->kind == FA_WITNESS;
    arena->canary = *canary;
    arena->fast = !arena->mapped && options->alignment == granule;
    arena->alignment = options->alignment;
    arena->on_full = options->on_full;
    arena->os = region->os;
    arena->metadata = metadata;
    arena->metadata_size = layout->size;
    arena->alive = make_alive(layout->size > layout->alive ? metadata + layout->alive : NULL, arena->os);
    fa_table_init(&arena->fallback);
    if (options->name != NULL) strncpy(arena->name, options->name, NAME_BYTES - 1);
    arena->reporter = (fa_reporter){.os = arena->os,
                                    .handler = options->on_corruption,
                                    .context = options->corruption_context,
                                    .heap = "arena",
                                    .name = arena->name};
    if (arena->mapped) {
        arena->entries_size = layout->alive - layout->entries;
        fa_blocks_init(&arena->blocks, (uint64_t *)(void *)(metadata + layout->entries),
                       (fa_link *)(void *)(metadata + layout->links), (fa_level *)(void *)(metadata + layout->levels),
                       region->capacity, fa_log2(granule), arena->base);
        arena->granules = arena->blocks.granules;
        if (!arena->os->lazy_commit) {
            arena->blocks.granules = 0;
            arena->blocks.levels = FIRST_LEVELS;
        }
    } else {
        size_t chunk = fa_max(MIN_CHUNK, fa_min(CHUNK, fa_align_down(region->capacity / 64, MAX_GRANULE)));
        arena->mark = (fa_bump_mark *)(void *)(metadata + layout->marks);
        arena->thread = (fa_thread *)(void *)(metadata + layout->threads);
        arena->bump.limit = region->capacity;
        arena->bump.chunk = chunk;
    }
}

fa_arena *fa_arena_create(const fa_arena_options *options, fa_status *status) {
    fa_status ignored;
    if (status == NULL) status = &ignored;
    *status = FA_ERR_INVALID;
    if (!options_are_valid(options)) return NULL;

    const fa_os *os = options->os != NULL ? options->os : fa_os_platform();
    fa_canary canary = {{0}};
    fa_region_spec spec = {
        .capacity = options->capacity,
        .alignment = FA_MAX_ALIGNMENT,
        .huge_pages = options->huge_pages,
        .guard_pages = options->guard_pages,
        .lock = options->lock,
        .no_dump = options->no_dump,
        .wipe_on_fork = options->wipe_on_fork,
        .secret_memory = options->secret_memory,
        .pages = FA_OFF,
    };
    if (options->guard == FA_GUARD_BLOCKS) {
        spec.pages = options->guard_pages;
        if (options->alignment > os->page_size()) return NULL; /* FA_ERR_INVALID */
        if (fa_canary_draw(&canary, os) != 0) { /* a canary that can be guessed is none */
            *status = FA_ERR_UNSUPPORTED;
            if (spec.pages == FA_REQUIRE) return NULL;
            spec.pages = FA_OFF;
        }
    }
    fa_region region;
    *status = fa_region_create(&region, os, &spec);
    if (*status != FA_OK) return NULL;

    bool mapped = options->kind != FA_SCRATCH || (options->flags & FA_TRACKED) != 0;
    bool witness = options->kind == FA_WITNESS;
    size_t granule = region.pages != FA_OFF ? region.page : granule_of(options->alignment, region.capacity, mapped);
    if (region.pages != FA_OFF && region.capacity / granule > MAX_GRANULES) granule = 0;
    metadata_layout layout = {0};
    void *metadata = NULL;
    *status = FA_ERR_NOMEM;
    size_t slots = granule == 0 ? 0 : fa_blocks_slots(region.capacity, fa_log2(granule));
    if (granule != 0 && lay_out(&layout, mapped, witness, slots, os->page_size()))
        *status = map_metadata(os, &layout, mapped, &metadata);
    if (*status != FA_OK) {
        fa_region_destroy(&region);
        return NULL;
    }
    fa_arena *arena = metadata;
    init(arena, options, &layout, &region, granule, &canary);
    return arena;
}

static void free_fallbacks(const fa_os *os, fa_table *fallback) {
    size_t position = 0;
    for (fa_slot *slot = fa_table_next(fallback, &position); slot != NULL; slot = fa_table_next(fallback, &position))
        os->heap_free((void *)slot->address);
    fa_table_destroy(fallback, os);
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
    if (!fa_align_up(fa_max(size, 1), alignment, &room) || room > PTRDIFF_MAX ||
        (uint64_t)size << LEVEL_BITS >> LEVEL_BITS != size)
        return FA_ERR_NOMEM;
    void *memory = arena->os->heap_alloc(room, alignment);
    if (memory == NULL) return FA_ERR_NOMEM;
    lock(arena);
    uint32_t depth = arena->mapped ? arena->blocks.depth : FA_GET(arena->marks);
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
    arena->refusal = status;
    unlock(arena);
    return status;
}

fa_status fa_arena_last_refusal(const fa_arena *arena) {
    lock(arena);
    fa_status status = arena->refusal;
    unlock(arena);
    return status;
}

/* [start, end) of a live block becomes zero. What is locked, or of the kernel's reserve, is not given back. */
static void make_zero(fa_arena *arena, size_t start, size_t end) {
    size_t first = start, last = start, given = 0;
    if (end - start >= LAZY_ZEROS && arena->region.lock == FA_OFF && arena->region.protection.reserved_huge == 0) {
        /* Whole huge pages where there may be some: the kernel would have to split the others. */
        size_t unit = arena->region.protection.transparent_huge > 0 ? FA_MAX_ALIGNMENT : arena->region.page;
        if (!fa_align_up(start, unit, &first)) first = start;
        last = fa_align_down(end, unit);
        fa_status status = fa_region_decommit(&arena->region, first, last, &given);
        if (status != FA_OK || given != last - first) first = last = start;
    }
    memset(at_offset(arena, start), 0, first - start);
    memset(at_offset(arena, last), 0, end - last);
}

static fa_status alloc_slow(fa_arena *arena, size_t size, size_t alignment, bool zeroed, void **block) {
    size_t offset = 0, dirty = 0;
    if (alignment == 0) alignment = arena->alignment;
    if (!fa_is_power_of_two(alignment) || alignment > FA_MAX_ALIGNMENT) return refuse(arena, FA_ERR_INVALID);
    alignment = fa_max(alignment, FA_MIN_ALIGNMENT);
    fa_status status = arena->plain     ? fa_mapped_alloc(arena, size, alignment, &offset, &dirty)
                       : arena->guarded ? fa_guarded_alloc(arena, size, alignment, &offset)
                                        : fa_bumped_alloc(arena, size, fa_max(alignment, arena->granule), &offset, &dirty);
    if (status == FA_OK) {
        *block = at_offset(arena, offset);
        /* What lies above every byte that was handed out is zero as the system gave it. */
        if (zeroed && offset < dirty) make_zero(arena, offset, offset + fa_min(size, dirty - offset));
        return FA_OK;
    }
    if (status == FA_ERR_NOMEM && arena->on_full == FA_FULL_FALLBACK) {
        status = fallback_alloc(arena, size, alignment, block);
        if (status == FA_OK && zeroed) memset(*block, 0, size);
    }
    return status == FA_OK ? FA_OK : refuse(arena, status);
}

void *fa_arena_alloc_zeroed(fa_arena *arena, size_t size, size_t alignment) {
    void *block = NULL;
    return alloc_slow(arena, size, alignment, true, &block) == FA_OK ? block : NULL;
}

fa_status fa_arena_try_alloc(fa_arena *arena, size_t size, size_t alignment, bool zeroed, void **block) {
    return alloc_slow(arena, size, alignment, zeroed, block);
}

fa_status fa_arena_try_free(fa_arena *arena, void *block) {
    if (!in_region(arena, block)) return fallback_free(arena, block);
    if (FA_LIKELY(arena->plain)) return fa_mapped_free(arena, block);
    return arena->guarded ? fa_guarded_free(arena, block) : FA_OK;
}

void fa_arena_free(fa_arena *arena, void *block, size_t size) {
    if (block == NULL) return;
    if (!arena->mapped && in_region(arena, block)) {
        fa_bumped_free(arena, block, size);
        return;
    }
    fa_status status = fa_arena_try_free(arena, block);
    if (FA_UNLIKELY(status == FA_ERR_CORRUPT || status == FA_ERR_FOREIGN))
        fa_report(&arena->reporter, "free", status, block);
    else if (FA_UNLIKELY(status != FA_OK)) (void)refuse(arena, status); /* it lives on: what cannot be wiped is not freed */
}

/* FA_ERR_CORRUPT unless a live block of a mapped arena starts there; the lock is held. */
static fa_status check_block(const fa_arena *arena, const void *block) {
    size_t size;
    if (arena->guarded) return fa_guarded_size(arena, block, &size);
    return fa_blocks_check(&arena->blocks, (size_t)((const unsigned char *)block - arena->base));
}

bool fa_arena_is_live(const fa_arena *arena, const void *block) {
    lock(arena);
    bool live = in_region(arena, block) ? arena->mapped && check_block(arena, block) == FA_OK
                                        : fa_table_find(&arena->fallback, block) != NULL;
    unlock(arena);
    return live;
}

size_t fa_arena_usable_size(const fa_arena *arena, const void *block) {
    size_t usable = 0;
    lock(arena);
    if (in_region(arena, block)) {
        size_t offset = (size_t)((const unsigned char *)block - arena->base);
        if (arena->guarded) (void)fa_guarded_size(arena, block, &usable); /* beyond it stands a canary */
        else if (arena->mapped && fa_blocks_check(&arena->blocks, offset) == FA_OK)
            usable = fa_mapped_block_bytes(arena, (uint32_t)(offset >> arena->blocks.shift));
    } else {
        const fa_slot *slot = fa_table_find(&arena->fallback, block);
        if (slot != NULL) usable = fallback_size(slot);
    }
    unlock(arena);
    return usable;
}

void *fa_arena_realloc(fa_arena *arena, void *block, size_t old_size, size_t new_size, size_t alignment) {
    if (block == NULL) return fa_arena_alloc(arena, new_size, alignment);
    if (alignment == 0) alignment = arena->alignment;
    fa_status status = FA_ERR_NOMEM; /* it must move */
    if (!fa_is_power_of_two(alignment) || alignment > FA_MAX_ALIGNMENT) {
        status = refuse(arena, FA_ERR_INVALID);
    } else if (!in_region(arena, block)) {
        lock(arena);
        const fa_slot *slot = fa_table_find(&arena->fallback, block);
        if (slot != NULL) old_size = fallback_size(slot);
        else status = FA_ERR_FOREIGN;
        unlock(arena);
    } else if (((uintptr_t)block & (alignment - 1)) == 0) {
        status = arena->plain     ? fa_mapped_resize(arena, block, &old_size, new_size)
                 : arena->guarded ? fa_guarded_resize(arena, block, &old_size, new_size, fa_max(alignment, FA_MIN_ALIGNMENT))
                                  : fa_bumped_resize(arena, block, old_size, new_size);
    } else if (arena->mapped) {
        status = fa_mapped_size(arena, block, &old_size);
    }
    if (status == FA_OK) return block;
    if (status == FA_ERR_CORRUPT || status == FA_ERR_FOREIGN) fa_report(&arena->reporter, "realloc", status, block);
    else if (status != FA_ERR_NOMEM) (void)refuse(arena, status);
    if (status != FA_ERR_NOMEM) return NULL;

    void *moved = fa_arena_alloc(arena, new_size, alignment);
    if (moved == NULL) return NULL;
    memcpy(moved, block, fa_min(old_size, new_size));
    fa_arena_free(arena, block, old_size);
    return moved;
}

/* ---- marks, rewind, reset --------------------------------------------------------------------------------------- */

fa_mark fa_arena_mark(const fa_arena *arena) {
    fa_arena *writable = (fa_arena *)(uintptr_t)arena; /* a mark is bookkeeping: no block changes */
    if (!arena->mapped) return fa_bumped_mark(writable);
    lock(arena);
    fa_mark mark = fa_mapped_mark(writable, false);
    unlock(arena);
    return mark;
}

fa_status fa_arena_rewind(fa_arena *arena, fa_mark mark) {
    lock(arena);
    fa_secret_enter(arena);
    uint32_t level = 0;
    fa_status status =
        arena->mapped ? fa_mapped_rewind(arena, mark, &level) : fa_bumped_rewind(arena, mark, &level);
    if (status == FA_OK) {
        release_fallbacks(arena, level);
        if (!arena->mapped) { /* those from before the mark that are still there */
            arena->live += fa_table_known(&arena->fallback);
            arena->bytes += arena->fallback_bytes;
        }
        arena->rewinds++;
    }
    unlock(arena);
    if (arena->guarded) fa_guarded_report(arena, "rewind");
    return status;
}

fa_mark fa_arena_scope_enter(fa_arena *arena) {
    FA_ASSERT(arena->tracked);
    lock(arena);
    fa_mark mark = arena->closed ? (fa_mark){0} : fa_mapped_mark(arena, true);
    unlock(arena);
    return mark;
}

fa_status fa_arena_scope_leave(fa_arena *arena, fa_mark mark, uint64_t *live, uint64_t *bytes) {
    *live = *bytes = 0;
    lock(arena);
    fa_level *level = fa_blocks_find(&arena->blocks, mark);
    fa_status status = level == NULL || level->left ? FA_ERR_STALE : FA_OK;
    if (status == FA_OK) {
        fa_mapped_live(arena, level, live, bytes);
        level->left = true;
        /* Marks made inside end with the scope; scopes opened inside and not left yet keep it waiting. */
        for (fa_level *above = level + 1; above <= &arena->blocks.level[arena->blocks.depth]; above++)
            if (!above->scope) above->left = true;
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
    else fa_mapped_live(arena, level, live, bytes);
    unlock(arena);
    return status;
}

/* Releases everything, or nothing and an error; the lock is held. The fallback blocks go to `orphans`, to be freed after
 * the lock. */
static fa_status release_all(fa_arena *arena, bool is_zero, fa_table *orphans) {
    if (arena->mapped) {
        size_t cursor = (size_t)arena->blocks.cursor << arena->blocks.shift;
        fa_status status = FA_OK;
        if (arena->guarded) status = fa_guarded_release(arena, 0);
        else if (arena->kind == FA_WITNESS && arena->live > 0 && !is_zero) status = fa_secret_wipe(arena, 0, cursor);
        if (status != FA_OK) return status;
        fa_mapped_reset(arena);
        arena->live = arena->bytes = 0;
    } else {
        FA_SET(arena->marks, 0);
        fa_bumped_release(arena, 0, 0, 0);
    }
    *orphans = arena->fallback;
    fa_table_init(&arena->fallback);
    arena->fallback_bytes = 0;
    return FA_OK;
}

fa_status fa_arena_reset(fa_arena *arena) {
    fa_table orphans = {0};
    fa_status status = FA_OK;
    lock(arena);
    fa_secret_enter(arena);
    if (arena->tracked && arena->live > 0) {
        status = FA_ERR_BUSY;
    } else {
        status = release_all(arena, false, &orphans);
        arena->resets += status == FA_OK;
    }
    unlock(arena);
    free_fallbacks(arena->os, &orphans);
    if (arena->guarded) fa_guarded_report(arena, "reset");
    return status;
}

/* Zeroes every byte that was ever handed out, or none and an error; the lock is held. */
static fa_status zero_all(fa_arena *arena) {
    size_t used = arena->mapped ? arena->high : fa_bumped_high(arena);
    used = fa_min(used, arena->region.committed); /* a chunk may have been refused its memory */
    fa_status status = arena->guarded ? fa_guarded_wipe(arena) : fa_secret_wipe(arena, 0, used);
    if (status != FA_OK) return status;
    size_t position = 0;
    for (fa_slot *slot = fa_table_next(&arena->fallback, &position); slot != NULL;
         slot = fa_table_next(&arena->fallback, &position))
        fa_secure_zero((void *)slot->address, fallback_size(slot));
    return FA_OK;
}

fa_status fa_arena_wipe(fa_arena *arena) {
    fa_table orphans = {0};
    lock(arena);
    fa_secret_enter(arena);
    fa_status status = zero_all(arena);
    arena->wipes += status == FA_OK;
    if (status == FA_OK && (!arena->tracked || arena->live == 0)) status = release_all(arena, true, &orphans);
    unlock(arena);
    free_fallbacks(arena->os, &orphans);
    if (arena->guarded) fa_guarded_report(arena, "wipe");
    return status;
}

void fa_arena_close(fa_arena *arena) {
    lock(arena);
    fa_secret_enter(arena);
    if (!arena->closed) {
        fa_status status = fa_secret_end(arena);
        if (arena->kind == FA_WITNESS && (status != FA_OK || zero_all(arena) != FA_OK))
            fa_region_discard(&arena->region, arena->high); /* what cannot be opened to be zeroed is given up */
    }
    unlock(arena);
    if (arena->guarded) fa_guarded_report(arena, "close");
}

void fa_arena_destroy(fa_arena *arena) {
    if (arena == NULL) return;
    const fa_os *os = arena->os;
    if (arena->kind == FA_WITNESS) {
        if (arena->closed) (void)zero_all(arena); /* live blocks may have been written to since */
        else fa_arena_close(arena);
    }
    free_fallbacks(os, &arena->fallback);
    fa_region_destroy(&arena->region);
    (void)os->release(arena->metadata, arena->metadata_size);
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
    fa_status status = fa_region_shrink(&arena->region, cursor + kept); /* what is locked cannot go */
    if (status != FA_OK) job->status = status;
    trim_range(job, cursor, high);
    size_t taken = high;
    /* If a thread went on above, the range stays unused until the next reset. */
    if (atomic_compare_exchange_strong(&arena->bump.cursor, &taken, cursor) && job->status == FA_OK)
        forget_above(arena, cursor + kept);
}

fa_status fa_arena_trim(fa_arena *arena, size_t keep) {
    trim_job job = {.arena = arena, .keep = keep, .status = FA_OK};
    if (!arena->mapped) fa_bumped_retract(arena);
    lock(arena);
    fa_secret_enter(arena);
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
    fa_secret_enter((fa_arena *)(uintptr_t)arena); /* no block changes */
    if (arena->mapped) {
        live = arena->live;
        bytes = arena->bytes;
        allocated = arena->allocated;
        used = fa_mapped_used(arena);
        cached = arena->blocks.free << arena->blocks.shift;
        peak = arena->peak;
    } else {
        fa_bumped_counts(arena, &live, &bytes, &allocated);
        used = fa_bumped_used(arena, false);
        peak = fa_max((size_t)arena->peak, fa_bumped_used(arena, true));
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
        .rewinds = arena->rewinds + arena->blocks.popped,
        .wipes = arena->wipes,
        .fallbacks = arena->fallbacks,
        .failures = arena->failures,
        .locked = arena->region.protection.locked,
        .lock_wanted = arena->region.protection.lock_wanted,
        .lock_limit = arena->os->lock_limit(),
    };
    unlock(arena);
    return FA_OK;
}

fa_status fa_arena_get_protection(const fa_arena *arena, fa_protection *protection) {
    lock(arena);
    fa_secret_enter((fa_arena *)(uintptr_t)arena); /* a child has no locks */
    fa_region_get_protection(&arena->region, protection);
    unlock(arena);
    return FA_OK;
}

void fa_arena_usage(const fa_arena *arena, uint64_t *used, uint64_t *peak) {
    lock(arena);
    *used = arena->mapped ? fa_mapped_used(arena) : fa_bumped_used(arena, false);
    *peak = arena->mapped ? arena->peak : fa_max((size_t)arena->peak, fa_bumped_used(arena, true));
    unlock(arena);
}

uint64_t fa_arena_restart_peak(fa_arena *arena, uint64_t *used_now) {
    FA_ASSERT(arena->mapped);
    lock(arena);
    uint64_t peak = arena->peak;
    *used_now = arena->peak = fa_mapped_used(arena);
    unlock(arena);
    return peak;
}

void fa_arena_fork_prepare(fa_arena *arena) { lock(arena); }

void fa_arena_fork_parent(fa_arena *arena) { unlock(arena); }

void fa_arena_fork_child(fa_arena *arena) {
    if (arena->kind == FA_WITNESS) fa_secret_adopt(arena);
    else fa_region_fork_child(&arena->region);
    unlock(arena);
}

bool fa_arena_is_valid(const fa_arena *arena) {
    lock(arena);
    bool valid = fa_table_is_valid(&arena->fallback) && arena->high <= arena->region.capacity;
    if (valid && arena->mapped) {
        uint64_t live, bytes;
        fa_mapped_live(arena, arena->blocks.level, &live, &bytes);
        valid = fa_blocks_is_valid(&arena->blocks) && live == arena->live && bytes == arena->bytes &&
                fa_mapped_used(arena) <= arena->peak;
    } else if (valid) {
        const fa_thread *thread;
        size_t cursor = FA_GET(arena->bump.cursor);
        FOR_EACH_THREAD(arena, thread) {
            if (!fa_chunk_is_current(&arena->bump, &thread->chunk)) continue;
            size_t at = FA_GET(thread->chunk.cursor), end = FA_GET(thread->chunk.end);
            valid = valid && at <= end && end <= (at < end ? cursor : arena->bump.limit);
        }
        valid = valid && cursor <= arena->bump.limit;
    }
    unlock(arena);
    return valid;
}
