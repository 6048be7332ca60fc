/*
 * heap/global_large.c - large blocks of the global heap: mapped one by one, kept resident, shared by all threads
 *
 *     alloc   cache: best fit --> cache: cut from a larger one --> make way, then the system's pages
 *     free    joined with cached neighbours --> cache --> what is over the budget or the age goes to the system
 *     grow    a cached block that is large enough, and a copy; else mremap: its pages move, its bytes do not
 *
 * A prover frees the vectors of one round and asks for the same in the next: they come out of the cache without a fault.
 * Live and cached together stay near what the live ones alone needed at their peak of the last two periods of the decay: a
 * program whose sizes change does not pay twice.
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
/* Growth by less than this part moves pages; by more, a copy into resident memory is cheaper than the faults. */
#define COPY_PART 4

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

static bool take_cached(size_t room, size_t alignment, fa_cached *found) {
    size_t page = fa_the_heap.os->page_size();
    if (fa_cache_take(&large.cache, room, fa_max(alignment, page), found)) return true;
    return alignment <= page && fa_cache_cut(&large.cache, room, found);
}

/* What has to go before `room` more is mapped: at most as many blocks as there are places. */
static void make_way(size_t room, fa_evicted *evicted) {
    size_t peak = fa_max(large.period_peak, large.last_peak), need = FA_COUNTED(large_bytes) + room;
    size_t bound = fa_max(peak + peak / SPARE_PART, peak + SPARE_BYTES), keep = bound > need ? bound - need : 0, excess;
    while (large.cache.bytes > keep && evicted->count < FA_CACHE_ENTRIES) {
        if (fa_align_up(large.cache.bytes - keep, HUGE_PAGE, &excess) &&
            fa_cache_shrink(&large.cache, excess, &evicted->entry[evicted->count]))
            evicted->count++;
        else
            fa_cache_purge(&large.cache, large.cache.entry[0].freed_at, large.cache.bytes - 1, evicted);
    }
}

/* ---- the ways in -------------------------------------------------------------------------------------------------- */

static void *map(size_t room, size_t alignment) {
    const fa_os *os = fa_the_heap.os;
    bool huge = large.huge_pages && room >= HUGE_PAGE;
    void *block;
    if (os->reserve(room, fa_max(alignment, huge ? HUGE_PAGE : os->page_size()), &block) != 0) return NULL;
    if (os->commit(block, room) != 0) {
        (void)os->release(block, room);
        return NULL;
    }
    if (huge) (void)os->advise_huge(block, fa_align_down(room, HUGE_PAGE)); /* a hint */
    FA_COUNT(reserved, room);
    return block;
}

void *fa_large_alloc(size_t size, size_t alignment, bool zeroed) {
    fa_evicted evicted;
    size_t room = room_for(fa_max(size, 1));
    if (room == 0) return NULL;
    fa_cached found = {.address = NULL, .size = room};
    evicted.count = 0;
    lock();
    bool hit = take_cached(room, alignment, &found);
    if (hit && !enter(found.address, found.size)) {
        fa_cache_put(&large.cache, found.address, found.size, fa_global_now(), &evicted); /* there is no memory for the table */
        found.address = NULL;
    } else if (!hit) {
        make_way(room, &evicted);
    }
    unlock();
    release_evicted(&evicted);
    if (hit && found.address == NULL) return NULL;
    if (hit) {
        FA_COUNT(cache_hits, 1);
        FA_COUNT(large_reused, found.size);
        if (zeroed && (size < LAZY_ZEROS || fa_the_heap.os->decommit(found.address, found.size) != 0))
            memset(found.address, 0, size);
    } else {
        found.address = map(room, alignment);
        if (found.address == NULL) return NULL;
        lock();
        bool entered = enter(found.address, room);
        unlock();
        if (!entered) {
            (void)fa_the_heap.os->release(found.address, room);
            FA_UNCOUNT(reserved, room);
            return NULL;
        }
    }
    FA_COUNT(large_allocated, 1);
    return found.address;
}

static void cache(void *block, size_t room) {
    fa_evicted evicted;
    evicted.count = 0;
    lock();
    fa_cache_join(&large.cache, &block, &room);
    fa_cache_put(&large.cache, block, room, fa_global_now(), &evicted);
    unlock();
    release_evicted(&evicted);
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

void *fa_large_realloc(void *block, size_t old_room, size_t size) {
    size_t room = room_for(size);
    if (room == 0) return NULL;
    if (size <= old_room && old_room - size <= old_room / FA_CACHE_WASTE) return block;
    if (size > old_room && size - old_room > old_room / COPY_PART) {
        fa_cached found = {.address = NULL, .size = room};
        lock();
        bool hit = take_cached(room, 1, &found) && enter(found.address, found.size);
        unlock();
        if (hit) {
            FA_COUNT(cache_hits, 1);
            FA_COUNT(large_reused, found.size);
            FA_COUNT(large_allocated, 1);
            memcpy(found.address, block, old_room);
            (void)fa_large_free(block);
            return found.address;
        }
        if (found.address != NULL) {
            cache(found.address, found.size);
            return NULL;
        }
    }
    /* Not in the table while it moves: its old place may be somebody else's before its new one is known. */
    lock();
    (void)leave(block);
    unlock();
    void *moved = block;
    bool done = fa_the_heap.os->remap(block, old_room, room, &moved) == 0;
    if (!done) room = old_room;
    lock();
    bool entered = enter(moved, room);
    unlock();
    if (done) {
        FA_COUNT(moved, 1);
        FA_COUNT(reserved, room - old_room);
    }
    FA_ASSERT(entered); /* it had a place in the table, and its growth is only ever tried where there was none */
    (void)entered;
    return done ? moved : NULL;
}

void fa_large_purge(size_t now, size_t keep) {
    fa_evicted evicted;
    evicted.count = 0;
    uint32_t decay = fa_the_heap.options.decay;
    lock();
    if (decay != 0 && now - large.period_at >= decay) {
        size_t live = FA_COUNTED(large_bytes);
        large.last_peak = now - large.period_at >= 2 * (size_t)decay ? live : large.period_peak;
        large.period_peak = live;
        large.period_at = now;
    }
    fa_cache_purge(&large.cache, now, fa_min(keep, large.cache.limit), &evicted);
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
