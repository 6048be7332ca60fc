/*
 * heap/global_stats.c - what the global heap holds, summed when somebody asks, and recounted for tests
 *
 *     class   taken from spans = live + in magazines + ready
 *
 * Thread rule: the sums may be asked for at any time, and are then of slightly different moments; the recount wants a heap that
 * nobody else uses. Cost: a walk over the thread heaps.
 */
#include "global_parts.h"

#define LOAD(place) atomic_load_explicit(&(place), memory_order_relaxed)

static fa_heap *all_heaps(void) { return atomic_load_explicit(&fastalloc_malloc_stats.heaps, memory_order_acquire); }

void fa_global_get_class_stats(uint32_t class, fa_class_stats *stats) {
    const fa_central *central = &fa_the_heap.central[class];
    size_t cached = LOAD(central->stats.ready), allocated = LOAD(central->stats.allocated);
    for (fa_heap *heap = all_heaps(); heap != NULL; heap = heap->next) {
        void **bottom = LOAD(heap->bin[class].bottom), **top = LOAD(heap->bin[class].top);
        if (top > bottom) cached += (size_t)(top - bottom);
        allocated += LOAD(heap->bin[class].allocated);
    }
    size_t taken = LOAD(central->stats.taken);
    *stats = (fa_class_stats){
        .size = fa_global_class_size(class),
        .live = taken > cached ? taken - cached : 0,
        .allocated = allocated,
        .cached = cached,
        .spans = LOAD(central->stats.spans),
    };
}

void fa_global_get_stats(fa_global_stats *stats) {
    size_t live = 0, bytes = 0, allocated = 0;
    for (uint32_t class = 1; class < FA_GLOBAL_CLASSES; class++) {
        fa_class_stats one;
        fa_global_get_class_stats(class, &one);
        live += (size_t)one.live;
        bytes += (size_t)one.live * one.size;
        allocated += (size_t)one.allocated;
    }
#define COPY(name, unit, doc) .name = FA_COUNTED(name),
    *stats = (fa_global_stats){FA_GLOBAL_COUNTS(COPY)};
#undef COPY
    stats->live = live + stats->medium_live + stats->large_live;
    stats->used = bytes + stats->medium_bytes + stats->large_bytes;
    stats->held = stats->pages_live + stats->large_bytes;
    stats->cached = stats->pages_cached + stats->large_cached;
    stats->resident = stats->held + stats->cached;
    stats->allocated = allocated + stats->medium_allocated + stats->large_allocated;
    stats->freed = stats->allocated > stats->live ? stats->allocated - stats->live : 0; /* seen at different moments */
    if (stats->peak < stats->held) stats->peak = stats->held;
}

/* ---- recounting --------------------------------------------------------------------------------------------------- */

static bool is_taken(uint32_t class, const void *block) {
    const fa_pages *pages = &fa_the_heap.pages;
    if (!fa_is_in_range(block)) return false;
    uint32_t page = fa_pages_of(pages, block);
    if (pages->base[page] != (fa_is_hardened() ? 0 : class)) return false;
    uint32_t first = pages->run[page].first;
    size_t offset = (uintptr_t)block - (uintptr_t)fa_pages_address(pages, first), size = fa_global_class_size(class);
    const uint64_t *bitmap = pages->bitmap + (size_t)first * (FA_PAGE_BITMAP / 8);
    size_t index = offset / size;
    return offset % size == 0 && index < pages->run[first].blocks && (bitmap[index / 64] >> index % 64 & 1) == 0;
}

/* Spans with free blocks, and that every one of these is in the list. */
static bool spans_are_valid(uint32_t class, size_t *taken, size_t *bytes) {
    const fa_pages *pages = &fa_the_heap.pages;
    const fa_central *central = &fa_the_heap.central[class];
    size_t listed = 0, partial = 0;
    for (uint32_t first = central->first, before = 0; first != 0; before = first, first = pages->run[first].next) {
        const fa_run *span = &pages->run[first];
        if (span->kind != FA_RUN_SPAN || span->class != class || span->free == 0 || span->prev != before) return false;
        listed++;
    }
    for (uint32_t first = pages->start; first < pages->fresh; first += pages->run[first].length) {
        const fa_run *span = &pages->run[first];
        if (span->kind != FA_RUN_SPAN || span->class != class) continue;
        const uint64_t *bitmap = pages->bitmap + (size_t)first * (FA_PAGE_BITMAP / 8);
        uint32_t free = 0;
        for (uint32_t word = 0; word < (span->blocks + 63U) / 64; word++) {
            free += (uint32_t)__builtin_popcountll(bitmap[word]);
            if (bitmap[word] != 0 && word < span->hint) return false;
        }
        for (uint32_t page = first; page < first + span->length; page++)
            if (pages->run[page].first != first || pages->base[page] != (fa_is_hardened() ? 0 : class)) return false;
        if (free != span->free || free == span->blocks - central->fence) return false;
        partial += free > 0;
        *taken += span->blocks - central->fence - free;
        *bytes += (size_t)span->length << FA_PAGE_LOG2;
    }
    return listed == partial;
}

static bool class_is_valid(uint32_t class) {
    const fa_central *central = &fa_the_heap.central[class];
    size_t taken = 0, bytes = 0;
    if (!spans_are_valid(class, &taken, &bytes)) return false;
    for (fa_heap *heap = all_heaps(); heap != NULL; heap = heap->next) {
        const fa_bin *bin = &heap->bin[class];
        void **bottom = LOAD(bin->bottom), **top = LOAD(bin->top);
        if (bottom < heap->start[class] || top > heap->full[class] || top < bottom) return false;
        for (void **at = bottom; at < top; at++)
            if (!is_taken(class, *at)) return false;
    }
    return taken == LOAD(central->stats.taken) && bytes == LOAD(central->stats.spans) &&
           LOAD(central->stats.ready) <= central->ready_max;
}

bool fa_global_is_valid(void) {
    size_t medium = 0, medium_bytes = 0, large_bytes = 0, spans = 0, position = 0;
    const fa_pages *pages = &fa_the_heap.pages;
    const fa_large *large = &fa_the_heap.large;
    if (!fa_pages_is_valid(pages) || !fa_table_is_valid(&large->table) || !fa_cache_is_valid(&large->cache)) return false;
    for (uint32_t class = 1; class < FA_GLOBAL_CLASSES; class++) {
        if (!class_is_valid(class)) return false;
        spans += LOAD(fa_the_heap.central[class].stats.spans);
    }
    for (uint32_t first = pages->start; first < pages->fresh; first += pages->run[first].length) {
        if (pages->run[first].kind != FA_RUN_LIVE) continue;
        medium++;
        medium_bytes += (size_t)pages->run[first].length << FA_PAGE_LOG2;
    }
    for (const fa_slot *slot = fa_table_next(&large->table, &position); slot != NULL;
         slot = fa_table_next(&large->table, &position))
        large_bytes += (size_t)slot->value;
    bool large_is_valid = large_bytes == FA_COUNTED(large_bytes) && large->table.count == FA_COUNTED(large_live) &&
                          large->cache.bytes == FA_COUNTED(large_cached);
    return spans == FA_COUNTED(span_bytes) && medium == FA_COUNTED(medium_live) &&
           medium_bytes == FA_COUNTED(medium_bytes) && (fa_is_hardened() ? fa_hardened_is_valid() : large_is_valid) &&
           ((size_t)pages->live << FA_PAGE_LOG2) == FA_COUNTED(pages_live);
}
