/*
 * mem/cache.c - freed large blocks that stay resident for the next one
 *
 *     put -> | oldest | ... | newest |  -> take (best fit, newest of equals)
 *               \--> evicted: over the budget, over the age, or over the number of entries
 *
 * An array in the order of freeing; everything is a scan or a shift of it. Invariants, thread rule, cost: see cache.h.
 */
#include "cache.h"

#include <string.h>

static void remove_at(fa_cache *cache, uint32_t index) {
    cache->bytes -= cache->entry[index].size;
    cache->count--;
    memmove(&cache->entry[index], &cache->entry[index + 1], (cache->count - index) * sizeof cache->entry[0]);
}

static void evict_oldest(fa_cache *cache, fa_evicted *evicted) {
    evicted->entry[evicted->count++] = cache->entry[0];
    remove_at(cache, 0);
}

bool fa_cache_take(fa_cache *cache, size_t size, size_t alignment, fa_cached *taken) {
    size_t best_size = size + size / FA_CACHE_WASTE;
    uint32_t best = cache->count;
    for (uint32_t i = cache->count; i-- > 0;) {
        const fa_cached *entry = &cache->entry[i];
        if (entry->size < size || entry->size > best_size) continue;
        if (((uintptr_t)entry->address & (alignment - 1)) != 0) continue;
        if (best != cache->count && entry->size == best_size) continue;
        best = i;
        best_size = entry->size;
    }
    if (best == cache->count) return false;
    *taken = cache->entry[best];
    remove_at(cache, best);
    return true;
}

bool fa_cache_cut(fa_cache *cache, size_t size, fa_cached *taken) {
    fa_cached *best = NULL;
    for (fa_cached *entry = cache->entry; entry != cache->entry + cache->count; entry++) {
        if (entry->size > size && (best == NULL || entry->size < best->size)) best = entry;
    }
    if (best == NULL) return false;
    *taken = (fa_cached){.address = best->address, .size = size};
    best->address = (unsigned char *)best->address + size;
    best->size -= size;
    cache->bytes -= size;
    return true;
}

void fa_cache_take_entry(fa_cache *cache, const fa_cached *entry, fa_cached *taken) {
    *taken = *entry;
    remove_at(cache, (uint32_t)(entry - cache->entry));
}

void fa_cache_join_mean(fa_cache *cache, void **address, size_t *size, uint64_t *freed_at) {
    for (uint32_t i = cache->count; i-- > 0;) {
        const fa_cached entry = cache->entry[i];
        bool below = (unsigned char *)entry.address + entry.size == (unsigned char *)*address;
        bool above = (unsigned char *)*address + *size == (unsigned char *)entry.address;
        if ((!below && !above) || entry.size > cache->limit - fa_min(*size, cache->limit)) continue;
        if (below) *address = entry.address;
        /* In parts of 4 KiB: nothing wraps. */
        uint64_t later = *freed_at > entry.freed_at ? *freed_at - entry.freed_at : 0;
        *freed_at = entry.freed_at + later * (*size >> 12) / fa_max((*size >> 12) + (entry.size >> 12), 1);
        *size += entry.size;
        remove_at(cache, i);
    }
}

bool fa_cache_shrink(fa_cache *cache, size_t excess, fa_cached *tail) {
    if (cache->count == 0 || cache->entry[0].size <= excess) return false;
    fa_cached *oldest = &cache->entry[0];
    oldest->size -= excess;
    cache->bytes -= excess;
    *tail = (fa_cached){.address = (unsigned char *)oldest->address + oldest->size, .size = excess};
    return true;
}

void fa_cache_put(fa_cache *cache, void *address, size_t size, uint64_t freed_at, fa_evicted *evicted) {
    if (size > cache->limit) {
        evicted->entry[evicted->count++] = (fa_cached){.address = address, .size = size};
        return;
    }
    fa_cache_purge(cache, freed_at, cache->limit - size, evicted);
    if (cache->count == FA_CACHE_ENTRIES) evict_oldest(cache, evicted);
    uint32_t at = cache->count++;
    for (; at > 0 && cache->entry[at - 1].freed_at > freed_at; at--) cache->entry[at] = cache->entry[at - 1];
    cache->entry[at] = (fa_cached){.address = address, .size = size, .freed_at = freed_at};
    cache->bytes += size;
}

static bool is_old(const fa_cache *cache, uint64_t now) {
    uint64_t freed_at = cache->entry[0].freed_at;
    return cache->age != 0 && now > freed_at && now - freed_at >= cache->age;
}

void fa_cache_purge(fa_cache *cache, uint64_t now, size_t keep, fa_evicted *evicted) {
    while (cache->count > 0 && (cache->bytes > keep || is_old(cache, now))) evict_oldest(cache, evicted);
}

bool fa_cache_is_valid(const fa_cache *cache) {
    size_t bytes = 0;
    if (cache->count > FA_CACHE_ENTRIES) return false;
    for (uint32_t i = 0; i < cache->count; i++) {
        bytes += cache->entry[i].size;
        if (i > 0 && cache->entry[i].freed_at < cache->entry[i - 1].freed_at) return false;
    }
    return bytes == cache->bytes && bytes <= cache->limit;
}
