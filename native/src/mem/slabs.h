/*
 * mem/slabs.h - pools of many block sizes, made and given up as they are needed
 *
 *     range      | span 0: 32 B blocks | span 1: 1 KiB | span 2: 32 B | not used yet ...      64 KiB each
 *     slab[]     | pool, links         | pool, links   | pool, links  |                       one for each span
 *     sizes      | size_plus_1         | size_plus_1   | size_plus_1  |                       out of line
 *     stacks     | stack               | stack         | stack        |
 *
 * A slab is a pool (mem/pool.h) over one span. From a pointer to its slab is a subtraction and a shift: no header, no
 * hash. Each class of sizes has a list of slabs with room; a slab that becomes empty is given up, and its span serves any class
 * next. Spans stay resident until trimmed, and hold zeros while nobody lives there. Where memory is committed as it is used, the
 * range grows by a few spans at a time, with all that belongs to them.
 *
 * Invariants: a slab is in the list of its class exactly if it has room; a span without a slab is in `empty`, in `trimmed`, or
 * at or above `fresh`. Thread rule: the owner's lock. Cost: that of the pool and a compare; a new slab every 64 KiB.
 */
#ifndef FA_MEM_SLABS_H
#define FA_MEM_SLABS_H

#include "pool.h"

#define FA_SPAN_LOG2 16
#define FA_SPAN ((size_t)1 << FA_SPAN_LOG2)
/* At the most, of the smallest class. */
#define FA_SPAN_BLOCKS (FA_SPAN / 16)
/* Eight blocks to a span at least. */
#define FA_SLAB_MAX ((size_t)8 << 10)
/* 16, 32, ... 128, then four steps to each power of two. */
#define FA_SLAB_CLASSES 32U

typedef struct fa_slab {
    fa_pool pool;        /* count 0: the span has no slab */
    uint32_t next, prev; /* span + 1 in the list of the class, or of spans without a slab; 0: none */
    uint32_t class;
} fa_slab;

typedef struct fa_slabs {
    unsigned char *base;
    size_t bytes;                        /* of the range that may be used; 0: there is none */
    fa_slab *slab;
    uint16_t *sizes;                     /* FA_SPAN_BLOCKS for each span; zero where no block is live */
    uint32_t *stacks;                    /* likewise; any class may find what another left there */
    uint32_t partial[FA_SLAB_CLASSES];   /* span + 1 of a slab with room; 0: none */
    uint32_t spans, fresh;
    uint32_t empty, trimmed;             /* span + 1 of the first without a slab: resident, or given back */
    uint32_t resident;                   /* spans that may be in memory */
    bool failed;                         /* there is no address space: do not ask again */
    void *reserved;
    size_t reserved_size;
} fa_slabs;

static inline void fa_slabs_init(fa_slabs *slabs) { *slabs = (fa_slabs){0}; }
void fa_slabs_destroy(fa_slabs *slabs, const fa_os *os);

/* The class of a size from 1 to FA_SLAB_MAX, and the block size of a class. */
static inline uint32_t fa_slab_class(size_t size) {
    if (size <= 128) return size == 0 ? 0 : (uint32_t)((size - 1) >> 4);
    unsigned top = fa_log2(size - 1); /* 7 for 129 .. 256 */
    return 8 + (top - 7) * 4 + (uint32_t)((size - 1) >> (top - 2) & 3);
}
static inline size_t fa_slab_size(uint32_t class) {
    if (class < 8) return ((size_t)class + 1) << 4;
    return (size_t)(5 + (class - 8) % 4) << (5 + (class - 8) / 4);
}

/* A slab of the class with room, or null. */
fa_slab *fa_slabs_refill(fa_slabs *slabs, const fa_os *os, uint32_t class);
/* The slab was full, or is empty now: puts it where it belongs. */
void fa_slabs_settle(fa_slabs *slabs, fa_slab *slab, bool was_full);

static inline bool fa_slabs_own(const fa_slabs *slabs, const void *pointer) {
    return (uintptr_t)pointer - (uintptr_t)slabs->base < slabs->bytes;
}

/* The live block that starts at `pointer`, which lies in the range; false if there is none. */
static inline bool fa_slabs_find(const fa_slabs *slabs, const void *pointer, fa_slab **slab, uint32_t *index) {
    size_t offset = (size_t)((const unsigned char *)pointer - slabs->base);
    fa_slab *found = &slabs->slab[offset >> FA_SPAN_LOG2];
    *slab = found;
    if (FA_UNLIKELY(found->pool.count == 0)) return false;
    return fa_pool_index(&found->pool, pointer, index) && *index < found->pool.used &&
           fa_pool_is_live(&found->pool, *index);
}

/* A zero block of a slab with room. */
static inline void *fa_slabs_take_from(fa_slabs *slabs, fa_slab *slab, size_t size) {
    void *block = fa_pool_take(&slab->pool, size);
    if (FA_UNLIKELY(fa_pool_is_full(&slab->pool))) fa_slabs_settle(slabs, slab, false);
    return block;
}

/* The slab of the class that the next block comes from, or null: one has to be made. */
static inline fa_slab *fa_slabs_first(const fa_slabs *slabs, uint32_t class) {
    uint32_t head = slabs->partial[class];
    return FA_LIKELY(head != 0) ? &slabs->slab[head - 1] : NULL;
}

/* A zero block of the class, or null. */
static inline void *fa_slabs_take(fa_slabs *slabs, const fa_os *os, uint32_t class, size_t size) {
    fa_slab *slab = fa_slabs_first(slabs, class);
    if (FA_UNLIKELY(slab == NULL)) slab = fa_slabs_refill(slabs, os, class);
    return FA_LIKELY(slab != NULL) ? fa_slabs_take_from(slabs, slab, size) : NULL;
}

/* Zeroes and frees a live block. */
static inline void fa_slabs_give(fa_slabs *slabs, fa_slab *slab, uint32_t index) {
    bool was_full = fa_pool_is_full(&slab->pool);
    fa_pool_give(&slab->pool, index);
    if (FA_UNLIKELY(was_full || fa_pool_live(&slab->pool) == 0)) fa_slabs_settle(slabs, slab, was_full);
}

/* Gives the pages of spans without a slab back, all but `keep` bytes of them. */
fa_status fa_slabs_trim(fa_slabs *slabs, const fa_os *os, size_t keep);

bool fa_slabs_are_valid(const fa_slabs *slabs);

#endif
