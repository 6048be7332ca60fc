/*
 * heap/array_heap.h - the heap behind fastalloc.install(): the data of every NumPy array of a process
 *
 *     size <= 8 KiB      stack of the class -- empty or full --> spans of 64 KiB --> a reserved range
 *     size <= 256 KiB    stack of the class -- empty or full --> spans of 2 MiB  --> another range
 *     above              cache (mem/cache.h) -- nothing fits --> the system's pages, known to a table (mem/table.h)
 *
 * Unlike a manager it does not zero what is freed: that is a manager's promise, and costs an array of 4 KiB a tenth of an addition.
 * Nothing is written into a block but by its user; every block starts at a multiple of 64 bytes. Memory that nobody has
 * used for `decay` goes back to the system, and cached large blocks never make the process much larger than its arrays
 * alone have been.
 *
 * Thread rule: one thread at a time. NumPy's default handler, whose place this heap takes, is called with the GIL held
 * (its functions assert it: their cache is not locked either), and so are the functions here; fork must hold it, too.
 */
#ifndef FA_HEAP_ARRAY_HEAP_H
#define FA_HEAP_ARRAY_HEAP_H

#include "fastalloc.h"

#define FA_NUMPY_STATS(X)                                                                                              \
    X(arrays, "count", "blocks that live arrays hold")                                                                 \
    X(used, "bytes", "held by live arrays, rounding included")                                                         \
    X(peak, "bytes", "largest value of used so far, seen whenever a large block or a span is taken")                   \
    X(cached, "bytes", "kept resident for the next arrays")                                                            \
    X(reserved, "bytes", "address space")                                                                              \
    X(large, "count", "blocks that came from the kernel or the cache of large blocks")                                 \
    X(cache_hits, "count", "large blocks served from the cache")                                                       \
    X(moved, "count", "reallocations that moved pages instead of copying bytes")                                       \
    X(fallbacks, "count", "allocations that were refused here and went to NumPy's own functions")

typedef struct fa_array_heap fa_array_heap;

#define FA_STATS_FIELD(name, unit, doc) uint64_t name;
typedef struct fa_numpy_stats {
    FA_NUMPY_STATS(FA_STATS_FIELD)
} fa_numpy_stats;
#undef FA_STATS_FIELD

/* Null if there is no memory. It cannot be destroyed: arrays may live until the process ends. */
fa_array_heap *fa_array_heap_create(const struct fa_os *os);

/* Bytes of freed large blocks that stay resident; milliseconds after which unused memory goes back (0: never); whether to
 * ask for huge pages. */
void fa_array_heap_configure(fa_array_heap *heap, size_t cache_limit, uint32_t decay, bool huge_pages);

/* A block of at least `size` bytes, aligned to 64, or null: the caller then asks NumPy's own functions. */
void *fa_array_heap_alloc(fa_array_heap *heap, size_t size);
void *fa_array_heap_alloc_zeroed(fa_array_heap *heap, size_t size);

/* FA_ERR_FOREIGN if it is not of this heap, FA_ERR_CORRUPT (nothing is done) if it is but no live block begins there. */
fa_status fa_array_heap_free(fa_array_heap *heap, void *block);

/* Null leaves the block as it was. The block is of this heap. */
void *fa_array_heap_realloc(fa_array_heap *heap, void *block, size_t size);

/* Bytes that may be used at `block`; 0 if no live block of this heap begins there. */
size_t fa_array_heap_usable_size(const fa_array_heap *heap, const void *block);

/* Gives what nobody uses back to the system; only what is older than the decay unless `all`. */
void fa_array_heap_trim(fa_array_heap *heap, bool all);

/* Whether there is something that the decay will give back; and what is called, by a free, when there may be. */
bool fa_array_heap_has_spare(const fa_array_heap *heap);
void fa_array_heap_on_spare(fa_array_heap *heap, void (*function)(void));

void fa_array_heap_get_stats(fa_array_heap *heap, fa_numpy_stats *stats);
bool fa_array_heap_is_valid(const fa_array_heap *heap);

#endif
