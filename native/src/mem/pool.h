/*
 * mem/pool.h - blocks of one size, with everything about them kept elsewhere
 *
 *     blocks   | 0 | 1 | 2 | 3 | ...            size_plus_1   | 24+1 | 0 | 128+1 | 0 | ...   0: free
 *     stack    | 3 | 1 |                        the newest freed block is the next one used
 *
 * Nothing is written into a block but by its user, so nothing in a block can be corrupted into the allocator. A double
 * free or a pointer into the middle is found by one look at size_plus_1. Blocks are zero when handed out: they start as
 * zero pages and are wiped, whole, before they are freed.
 *
 * Invariants: stacked + live + never used = count; a block is on the stack exactly if it was used and its size is 0.
 * Thread rule: the owner's lock. Cost: a handful of instructions, a multiplication in place of a division, and the zeroing.
 */
#ifndef FA_MEM_POOL_H
#define FA_MEM_POOL_H

#include "base.h"
#include "fastalloc.h"
#include "os/os.h"
#include "wipe.h"

/* So that size + 1 fits in 16 bits. */
#define FA_POOL_MAX_BLOCK ((size_t)65520)
/* So that a count fits in 32 bits, with room to add. */
#define FA_POOL_MAX_COUNT ((size_t)1 << 24)

/*
 * The index of a block is its offset divided by the block size, d = odd * 2^shift, if that divides it. Modulo 2^n (n bits to a
 * size_t) odd has an inverse, and offset * inverse rotated right by shift is the quotient where there is one, and more than
 * (2^n - 1) / d where there is none (Granlund and Montgomery, "Division by invariant integers using multiplication", 1994,
 * section 9). No count of blocks is that large, so one comparison tells a block from all other addresses.
 */
typedef struct fa_divisor {
    size_t inverse;
    uint32_t shift;
} fa_divisor;

static inline fa_divisor fa_divisor_of(size_t size) {
    fa_divisor divisor = {.shift = 0};
    for (; size % 2 == 0; size /= 2) divisor.shift++;
    size_t inverse = size; /* of the odd part: right in three bits; each turn doubles them */
    for (int bits = 3; bits < 64; bits *= 2) inverse *= 2 - size * inverse;
    divisor.inverse = inverse;
    return divisor;
}

static inline size_t fa_divide_exactly(size_t offset, size_t inverse, uint32_t shift) {
    size_t product = offset * inverse;
    return product >> shift | product << ((0U - shift) & (unsigned)(sizeof product * 8 - 1));
}

typedef struct fa_pool {
    unsigned char *blocks;
    uint16_t *size_plus_1;   /* asked for, plus 1; 0: free */
    uint32_t *stack;
    uint32_t stacked;        /* entries on the stack */
    uint32_t used;           /* blocks that were ever handed out: the rest has never been touched */
    uint32_t count;
    uint32_t block_size;
    fa_divisor divisor;      /* of block_size: the index without a division */
    size_t bytes;            /* count * block_size */
    size_t mapped;           /* 0: the memory is somebody else's */
} fa_pool;

/* A pool over memory that somebody else owns: `blocks`, aligned to 16 bytes, and `size_plus_1` are zero. */
void fa_pool_init(fa_pool *pool, size_t block_size, size_t count, void *blocks, uint16_t *size_plus_1, uint32_t *stack);

/* A pool with its own memory. `count` may be 0: a pool that is always exhausted. */
fa_status fa_pool_create(fa_pool *pool, const fa_os *os, size_t block_size, size_t count);
void fa_pool_destroy(fa_pool *pool, const fa_os *os);

/* Zeroes and frees whatever is live. */
void fa_pool_wipe(fa_pool *pool);

static inline bool fa_pool_owns(const fa_pool *pool, const void *pointer) {
    return (uintptr_t)pointer - (uintptr_t)pool->blocks < pool->bytes;
}

/* The index of the block that starts at `pointer`; if none of the pool's does, not less than `count`. */
static inline size_t fa_pool_index(const fa_pool *pool, const void *pointer) {
    size_t offset = (uintptr_t)pointer - (uintptr_t)pool->blocks;
    return fa_divide_exactly(offset, pool->divisor.inverse, pool->divisor.shift);
}

/* A zero block, or null if the pool is exhausted; size <= block_size. */
static inline void *fa_pool_take(fa_pool *pool, size_t size) {
    uint32_t index;
    if (FA_LIKELY(pool->stacked > 0)) index = pool->stack[--pool->stacked];
    else if (pool->used < pool->count) index = pool->used++;
    else return NULL;
    pool->size_plus_1[index] = (uint16_t)(size + 1);
    return pool->blocks + (size_t)index * pool->block_size;
}

static inline bool fa_pool_is_live(const fa_pool *pool, size_t index) { return pool->size_plus_1[index] != 0; }
static inline size_t fa_pool_size(const fa_pool *pool, size_t index) { return pool->size_plus_1[index] - 1U; }

/* Frees a live block, which the owner zeroes: last of all, so that a call there needs no registers saved on the way without. */
static inline void fa_pool_give(fa_pool *pool, size_t index) {
    pool->size_plus_1[index] = 0;
    pool->stack[pool->stacked++] = (uint32_t)index;
}

static inline uint32_t fa_pool_live(const fa_pool *pool) { return pool->used - pool->stacked; }
static inline bool fa_pool_is_full(const fa_pool *pool) { return pool->stacked == 0 && pool->used == pool->count; }

/* `waiting` blocks are free, but with the owner and not on the stack. */
bool fa_pool_is_valid(const fa_pool *pool, uint32_t waiting);

#endif
