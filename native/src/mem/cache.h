/*
 * mem/cache.h - freed large blocks that stay resident for the next one
 *
 *     entry   | address, size, time freed | ...   at most FA_CACHE_ENTRIES, newest last
 *
 * A request takes the smallest cached block that is at least as large and wastes at most an eighth. What is over the byte
 * budget or the age leaves, oldest first. The cache calls nothing: whoever holds the lock gets the blocks that must go
 * in a list and releases them after giving the lock back, because an unmapping can take milliseconds.
 *
 * Invariants: bytes is the sum of the sizes and <= limit; times do not decrease.
 * Thread rule: the owner's lock. Cost: a scan of the entries, nanoseconds against the microseconds of a large block.
 */
#ifndef FA_MEM_CACHE_H
#define FA_MEM_CACHE_H

#include "base.h"

#define FA_CACHE_ENTRIES 256U
/* A cached block may be larger than what is asked for by this part of it. */
#define FA_CACHE_WASTE 8

typedef struct fa_cached {
    void *address;
    size_t size;
    uint64_t freed_at; /* milliseconds */
} fa_cached;

typedef struct fa_cache {
    uint32_t count;
    uint32_t age;   /* milliseconds; 0: blocks do not age */
    size_t bytes;
    size_t limit;
    fa_cached entry[FA_CACHE_ENTRIES];
} fa_cache;

typedef struct fa_evicted {
    uint32_t count;
    fa_cached entry[FA_CACHE_ENTRIES + 1];
} fa_evicted;

/* A cached block of at least `size` bytes whose address has the alignment; false if there is none. */
bool fa_cache_take(fa_cache *cache, size_t size, size_t alignment, fa_cached *taken);

/*
 * For owners whose blocks may be cut and joined as they like (pages of the system, say), in multiples of their unit:
 * cut takes `size` bytes from the beginning of the smallest block that is larger; join takes the neighbours of a block that
 * is about to be put out of the cache and makes it one with them, unless that is more than the limit; shrink takes `excess`
 * bytes from the end of the oldest block, if it is larger. join_mean also makes a time the mean, weighted by bytes: a busy
 * corner does not keep a gigabyte for ever, nor an old corner send it away.
 */
bool fa_cache_cut(fa_cache *cache, size_t size, fa_cached *taken);
void fa_cache_join_mean(fa_cache *cache, void **address, size_t *size, uint64_t *freed_at);
static inline void fa_cache_join(fa_cache *cache, void **address, size_t *size) {
    uint64_t unused = 0;
    fa_cache_join_mean(cache, address, size, &unused);
}
bool fa_cache_shrink(fa_cache *cache, size_t excess, fa_cached *tail);

/* An entry of the cache, whole, and out of it. */
void fa_cache_take_entry(fa_cache *cache, const fa_cached *entry, fa_cached *taken);

/* `freed_at` is now, or a mean of join. Keeps the block, or puts it into `evicted` if it is larger than the limit; others may have to go for it. */
void fa_cache_put(fa_cache *cache, void *address, size_t size, uint64_t freed_at, fa_evicted *evicted);

/* What is older than the age, and the oldest beyond `keep` bytes, go. */
void fa_cache_purge(fa_cache *cache, uint64_t now, size_t keep, fa_evicted *evicted);

bool fa_cache_is_valid(const fa_cache *cache);

#endif
