/*
 * heap/global_large.c - large blocks of the global heap: mapped one by one, kept resident, shared by all threads
 *
 *     alloc   cache: best fit --> cut from a larger one --> assembled from smaller ones --> the system's pages
 *     free    joined with cached neighbours --> cache --> what is over the budget or the age goes to the system
 *     grow    its pages move to where there is room, and cached pages are put behind them
 *
 * A prover frees the vectors of one round and asks for the same in the next: they come out of the cache without a fault.
 * Where the cache has enough pages but not in one piece, the pages themselves are moved together (mremap), at some
 * nanoseconds each: what is fragmented is address space, and there is enough of that.
 * Before anything is mapped beside cached blocks that are too small to be worth moving, these go: live and cached together
 * stay near what the live ones alone needed at their peak of the last two periods of the decay. Likewise when the pages of
 * small blocks become more: they and the cached large ones stay near what the process ever held at once. And the other way
 * round: free pages of the range go before new ones are mapped here.
 *
 * Invariants: a block is in the table or in the cache or being mapped, never in two; large_bytes and large_cached are the sums
 * of the two. Thread rule: any; one lock, not held across a system call but the growth of the table. Cost: a
 * hash probe and a scan of at most 256 entries, against hundreds of faults.
 */
#include "global_parts.h"

#include "mem/wipe.h"

#include <string.h>

#define HUGE_PAGE ((size_t)2 << 20)
/* A block wastes a sixteenth at most; from here on, if there are huge pages, it is whole ones, so that cuts keep them. */
#define LARGE_STEPS_LOG2 4
#define WHOLE_HUGE_PAGES ((size_t)8 << 20)
/* Cached blocks may make the process this much larger than its live ones alone have been. */
#define SPARE_PART 8
#define SPARE_BYTES ((size_t)16 << 20)
/* Zeros above this come from new pages: nobody touches all of so much, soon. */
#define LAZY_ZEROS ((size_t)256 << 20)
/* A block is put together of pieces that are at least this part of it: a mapping each, of which a process may have 65530. */
#define PIECE_PART 16
#define PIECES 16U

#define large fa_the_heap.large

static size_t room_for(size_t size) {
    size_t page = fa_the_heap.os->page_size(), room;
    size_t step = size < page * 2                                       ? page
                  : large.huge_pages && size >= WHOLE_HUGE_PAGES ? HUGE_PAGE
                                                                   : (size_t)1 << (fa_log2(size - 1) - LARGE_STEPS_LOG2);
    return fa_align_up(size, fa_max(step, page), &room) ? room : 0;
}

static void lock(void) { fa_lock_take(&large.lock, fa_the_heap.os); }
static void unlock(void) {
    atomic_store_explicit(&FA_COUNTS->large_cached, large.cache.bytes, memory_order_relaxed);
    fa_lock_give(&large.lock);
}

static void release_evicted(const fa_evicted *evicted) {
    size_t bytes = 0;
    for (uint32_t i = 0; i < evicted->count; i++) {
        (void)fa_the_heap.os->release(evicted->entry[i].address, evicted->entry[i].size);
        bytes += evicted->entry[i].size;
    }
    FA_COUNT(returned, bytes);
    FA_UNCOUNT(reserved, bytes);
}

/* ---- with the lock ------------------------------------------------------------------------------------------------ */

static bool enter(void *block, size_t room) {
    if (!fa_table_insert(&large.table, fa_the_heap.os, block, room)) return false;
    size_t live = FA_COUNT(large_bytes, room) + room;
    FA_COUNT(large_live, 1);
    if (live > large.period_peak) large.period_peak = live;
    fa_global_note_peak();
    return true;
}

static size_t leave(void *block) {
    fa_slot *slot = fa_table_find(&large.table, block);
    if (slot == NULL) return 0;
    size_t room = (size_t)slot->value;
    fa_table_remove(&large.table, slot);
    FA_UNCOUNT(large_bytes, room);
    FA_UNCOUNT(large_live, 1);
    return room;
}

/* Exactly as much as is asked for, so that a round needs what the round before has freed, and not a page more. */
static bool take_cached(size_t room, size_t alignment, fa_cached *found) {
    size_t page = fa_the_heap.os->page_size();
    if (alignment > page) return fa_cache_take(&large.cache, room, alignment, found);
    for (uint32_t i = large.cache.count; i-- > 0;) {
        if (large.cache.entry[i].size != room) continue;
        fa_cache_take_entry(&large.cache, &large.cache.entry[i], found);
        return true;
    }
    return fa_cache_cut(&large.cache, room, found);
}

/* The oldest goes, or its end, until at most `keep` bytes are cached: at most as many blocks as there are places. */
static void evict_to(size_t keep, fa_evicted *evicted) {
    size_t excess;
    while (large.cache.bytes > keep && evicted->count < FA_CACHE_ENTRIES) {
        if (fa_align_up(large.cache.bytes - keep, HUGE_PAGE, &excess) &&
            fa_cache_shrink(&large.cache, excess, &evicted->entry[evicted->count]))
            evicted->count++;
        else
            fa_cache_purge(&large.cache, large.cache.entry[0].freed_at, large.cache.bytes - 1, evicted);
    }
}

/* What has to go before `room` more is mapped. */
static void make_way(size_t room, fa_evicted *evicted) {
    size_t peak = fa_max(large.period_peak, large.last_peak), need = FA_COUNTED(large_bytes) + room;
    size_t bound = fa_max(peak + peak / SPARE_PART, peak + SPARE_BYTES);
    evict_to(bound > need ? bound - need : 0, evicted);
}

/* ---- the ways in -------------------------------------------------------------------------------------------------- */

static void *map(size_t room, size_t alignment) {
    const fa_os *os = fa_the_heap.os;
    bool huge = large.huge_pages && room >= HUGE_PAGE;
    void *block;
    /* The kernel moves whole page tables of aligned ranges. */
    size_t aligned = fa_max(alignment, huge || room >= WHOLE_HUGE_PAGES ? HUGE_PAGE : os->page_size());
    if (os->reserve(room, aligned, &block) != 0) return NULL;
    if (os->commit(block, room) != 0) {
        (void)os->release(block, room);
        return NULL;
    }
    if (huge) (void)os->advise_huge(block, fa_align_down(room, HUGE_PAGE)); /* a hint */
    FA_COUNT(reserved, room);
    return block;
}

typedef struct pieces {
    uint32_t count;
    size_t bytes;
    fa_cached piece[PIECES];
} pieces;

/* With the lock: takes cached blocks for `need` bytes, the largest first, the last one cut; fewer bytes if there are no more. */
static void take_pieces(size_t need, pieces *taken) {
    taken->count = 0;
    taken->bytes = 0;
    while (taken->bytes < need && taken->count < PIECES) {
        size_t rest = need - taken->bytes;
        fa_cached *piece = &taken->piece[taken->count], *largest = NULL;
        for (uint32_t i = 0; i < large.cache.count; i++)
            if (largest == NULL || large.cache.entry[i].size > largest->size) largest = &large.cache.entry[i];
        if (largest == NULL || largest->size < need / PIECE_PART) return;
        /* The last one is the smallest that is large enough. */
        if (largest->size <= rest) fa_cache_take_entry(&large.cache, largest, piece);
        else if (!fa_cache_cut(&large.cache, rest, piece)) return;
        taken->bytes += piece->size;
        taken->count++;
    }
}

/* Puts the pieces where a mapped block begins at `at`. One that cannot be moved is given back: there are new pages in its place. */
static void move_pieces(const pieces *parts, unsigned char *at) {
    for (uint32_t i = 0; i < parts->count; i++) {
        const fa_cached *piece = &parts->piece[i];
        if (fa_the_heap.os->move(piece->address, piece->size, at) != 0) {
            (void)fa_the_heap.os->release(piece->address, piece->size);
            FA_COUNT(returned, piece->size);
        } else {
            FA_COUNT(large_reused, piece->size);
        }
        at += piece->size;
    }
    FA_UNCOUNT(reserved, parts->bytes);
    if (parts->count > 0) FA_COUNT(assembled, 1);
}

static void unmap(void *block, size_t room) {
    (void)fa_the_heap.os->release(block, room);
    FA_UNCOUNT(reserved, room);
}

static void cache(void *block, size_t room) {
    fa_evicted evicted;
    evicted.count = 0;
    lock();
    uint64_t freed_at = fa_global_now();
    fa_cache_join_mean(&large.cache, &block, &room, &freed_at);
    fa_cache_put(&large.cache, block, room, freed_at, &evicted);
    unlock();
    release_evicted(&evicted);
}

static void *alloc_new(size_t room, size_t alignment, const pieces *parts) {
    fa_global_make_way(room - parts->bytes);
    void *block = map(room, alignment);
    if (block == NULL) {
        for (uint32_t i = 0; i < parts->count; i++) cache(parts->piece[i].address, parts->piece[i].size);
        return NULL;
    }
    move_pieces(parts, block);
    lock();
    bool entered = enter(block, room);
    unlock();
    if (entered) return block;
    unmap(block, room);
    return NULL;
}

void *fa_large_alloc(size_t size, size_t alignment, bool zeroed) {
    fa_evicted evicted;
    pieces parts = {.count = 0};
    size_t room = room_for(fa_max(size, 1));
    if (room == 0) return NULL;
    fa_cached found = {.address = NULL, .size = room};
    evicted.count = 0;
    lock();
    bool hit = take_cached(room, alignment, &found);
    if (hit && !enter(found.address, found.size)) { /* there is no memory for the table */
        fa_cache_put(&large.cache, found.address, found.size, fa_global_now(), &evicted);
        found.address = NULL;
    } else if (!hit) {
        if (fa_the_heap.os->move != NULL) take_pieces(room, &parts);
        make_way(room - parts.bytes, &evicted);
    }
    unlock();
    release_evicted(&evicted);
    void *block = hit ? found.address : alloc_new(room, alignment, &parts);
    if (block == NULL) return NULL;
    if (hit) FA_COUNT(large_reused, found.size);
    if (hit || parts.count > 0) FA_COUNT(cache_hits, 1);
    FA_COUNT(large_allocated, 1);
    size_t used = hit ? size : fa_min(size, parts.bytes);
    if (zeroed && used > 0 && (size < LAZY_ZEROS || fa_the_heap.os->decommit(block, found.size) != 0)) memset(block, 0, used);
    return block;
}

bool fa_large_free(void *block) {
    lock();
    size_t room = leave(block);
    unlock();
    if (room == 0) return false;
    if (atomic_load_explicit(&fa_the_heap.zero_on_free, memory_order_relaxed)) fa_secure_zero(block, room);
    cache(block, room);
    return true;
}

size_t fa_large_usable_size(const void *block) {
    lock();
    const fa_slot *slot = fa_table_find(&large.table, block);
    size_t room = slot == NULL ? 0 : (size_t)slot->value;
    unlock();
    return room;
}

/* What is behind the new end goes to the cache. */
static void *shrink(void *block, size_t old_room, size_t room) {
    unsigned char *tail = (unsigned char *)block + room;
    if (atomic_load_explicit(&fa_the_heap.zero_on_free, memory_order_relaxed)) fa_secure_zero(tail, old_room - room);
    lock();
    fa_table_find(&large.table, block)->value = room;
    FA_UNCOUNT(large_bytes, old_room - room);
    unlock();
    cache(tail, old_room - room);
    return block;
}

/* With the lock: the entry of one block becomes that of another. False if the table would have to grow, and cannot. */
static bool replace(void *from, void *to, size_t room, size_t old_room) {
    if (!fa_table_insert(&large.table, fa_the_heap.os, to, room)) return false;
    fa_table_remove(&large.table, fa_table_find(&large.table, from));
    size_t live = FA_COUNT(large_bytes, room - old_room) + (room - old_room);
    if (live > large.period_peak) large.period_peak = live;
    fa_global_note_peak();
    return true;
}

/* With the lock: as it was. The place in the table is the one that the other entry leaves: nothing can fail. */
static void put_back(void *from, void *to, size_t room, size_t old_room) {
    fa_table_remove(&large.table, fa_table_find(&large.table, to));
    (void)fa_table_insert(&large.table, fa_the_heap.os, from, old_room);
    FA_UNCOUNT(large_bytes, room - old_room);
}

static void *grow(void *block, size_t old_room, size_t room) {
    const fa_os *os = fa_the_heap.os;
    fa_evicted evicted;
    pieces parts;
    evicted.count = 0;
    if (os->move == NULL) return NULL;
    unsigned char *moved = map(room, 1);
    if (moved == NULL) return NULL;
    lock();
    /* Renamed before it moves: its old place may be somebody else's the moment it is gone. */
    bool entered = replace(block, moved, room, old_room);
    unlock();
    if (entered && os->move(block, old_room, moved) != 0) {
        lock();
        put_back(block, moved, room, old_room);
        unlock();
        entered = false;
    }
    if (!entered) {
        unmap(moved, room);
        return NULL;
    }
    lock();
    take_pieces(room - old_room, &parts);
    make_way(0, &evicted);
    unlock();
    release_evicted(&evicted);
    fa_global_make_way(0);
    move_pieces(&parts, moved + old_room);
    FA_UNCOUNT(reserved, old_room);
    FA_COUNT(moved, 1);
    return moved;
}

void *fa_large_realloc(void *block, size_t old_room, size_t size) {
    size_t room = room_for(size);
    if (room == 0) return NULL;
    if (room > old_room) return grow(block, old_room, room);
    if (old_room - room <= old_room / FA_CACHE_WASTE) return block;
    return shrink(block, old_room, room);
}

void fa_large_purge(uint64_t now, size_t keep) {
    fa_evicted evicted;
    evicted.count = 0;
    uint32_t decay = fa_the_options.decay;
    lock();
    if (decay != 0 && now - large.period_at >= decay) {
        size_t live = FA_COUNTED(large_bytes);
        large.last_peak = now - large.period_at >= 2 * (uint64_t)decay ? live : large.period_peak;
        large.period_peak = live;
        large.period_at = now;
    }
    fa_cache_purge(&large.cache, now, fa_min(keep, large.cache.limit), &evicted);
    unlock();
    release_evicted(&evicted);
}

void fa_large_make_way(void) {
    fa_evicted evicted;
    evicted.count = 0;
    size_t peak = FA_COUNTED(peak), bound = peak + peak / SPARE_PART;
    size_t need = FA_COUNTED(pages_live) + FA_COUNTED(pages_cached) + FA_COUNTED(large_bytes);
    lock();
    evict_to(bound > need ? bound - need : 0, &evicted);
    unlock();
    release_evicted(&evicted);
}

void fa_large_configure(size_t cache_limit, uint32_t decay, bool huge_pages) {
    fa_evicted evicted;
    evicted.count = 0;
    lock();
    large.cache.limit = cache_limit;
    large.huge_pages = huge_pages;
    large.cache.age = 0; /* what is too much goes, not what is too old */
    fa_cache_purge(&large.cache, 0, cache_limit, &evicted);
    large.cache.age = decay;
    unlock();
    release_evicted(&evicted);
}
