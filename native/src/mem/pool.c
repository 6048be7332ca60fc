/*
 * mem/pool.c - creation of a pool: one mapping for blocks, sizes and stack
 *
 *     mapping   | blocks ...... | stack ......... | size_plus_1 .. |
 *
 * The system's pages are zero and untouched until used, so creation costs two system calls whatever the size. The hot
 * half is in pool.h, with invariants and thread rule.
 */
#include "pool.h"

#include <string.h>

void fa_pool_init(fa_pool *pool, size_t block_size, size_t count, void *blocks, uint16_t *size_plus_1,
                  uint32_t *stack) {
    *pool = (fa_pool){.blocks = blocks, .size_plus_1 = size_plus_1, .stack = stack, .count = (uint32_t)count};
    pool->block_size = (uint32_t)block_size;
    pool->divisor = fa_divisor_of(block_size);
    pool->bytes = count * block_size;
}

fa_status fa_pool_create(fa_pool *pool, const fa_os *os, size_t block_size, size_t count) {
    memset(pool, 0, sizeof *pool);
    pool->block_size = (uint32_t)block_size;
    if (count == 0) return FA_OK;
    size_t page = os->page_size(), mapped;
    if (count >= FA_POOL_MAX_COUNT) return FA_ERR_INVALID;
    if (count > (SIZE_MAX - page) / (block_size + sizeof(uint32_t) + sizeof(uint16_t))) return FA_ERR_NOMEM;
    size_t stack = count * block_size, sizes = stack + count * sizeof(uint32_t);
    if (!fa_align_up(sizes + count * sizeof(uint16_t), page, &mapped)) return FA_ERR_NOMEM;
    void *address;
    if (os->reserve(mapped, page, &address) != 0) return FA_ERR_NOMEM;
    if (os->commit(address, mapped) != 0) {
        (void)os->release(address, mapped);
        return FA_ERR_NOMEM;
    }
    unsigned char *blocks = address;
    fa_pool_init(pool, block_size, count, blocks, (uint16_t *)(void *)(blocks + sizes),
                 (uint32_t *)(void *)(blocks + stack));
    pool->mapped = mapped;
    return FA_OK;
}

void fa_pool_wipe(fa_pool *pool) {
    for (uint32_t index = 0; index < pool->used; index++)
        if (fa_pool_is_live(pool, index)) {
            fa_wipe_small(pool->blocks + (size_t)index * pool->block_size, pool->block_size);
            fa_pool_give(pool, index);
        }
}

void fa_pool_destroy(fa_pool *pool, const fa_os *os) {
    fa_pool_wipe(pool);
    if (pool->mapped != 0) (void)os->release(pool->blocks, pool->mapped);
    memset(pool, 0, sizeof *pool);
}

bool fa_pool_is_valid(const fa_pool *pool, uint32_t waiting) {
    uint32_t live = 0;
    for (uint32_t index = 0; index < pool->used; index++) {
        if (!fa_pool_is_live(pool, index)) continue;
        live++;
        if (fa_pool_size(pool, index) > pool->block_size) return false;
    }
    if (pool->used > pool->count || live + waiting + pool->stacked != pool->used) return false;
    for (uint32_t i = 0; i < pool->stacked; i++)
        if (pool->stack[i] >= pool->used || fa_pool_is_live(pool, pool->stack[i])) return false;
    return true;
}
