/*
 * heap/mapped.c - arenas that know every block: witness, polynomial, and all tracked ones
 *
 *     alloc   lock -> bins, else cursor (mem/blocks.h) -> usable? (mem/region.h) -> unlock
 *     free    lock -> is it a live block? -> witness: wipe -> merge, bin or move the cursor back -> unlock
 *
 * Invariants: accounts of the arena are the sums over the levels; a witness arena is zero outside its live blocks: freed
 * blocks, cut-off tails and rewound ranges are wiped before anything else can have them.
 * Thread rule: alloc, free and resize take the lock; the rest is called with it held. Cost: O(1) and, for a witness, a wipe of
 * the block.
 */
#include "arena_parts.h"

#include <string.h>

/* Witness blocks up to this size are wiped inside the lock: cheaper than taking it twice. */
#define WIPE_INSIDE_LOCK ((size_t)4 << 10)
/* From here on blocks are laid out in whole pages: an eighth is lost at most. */
#define LARGE ((size_t)32 << 10)
#define PAGE ((size_t)1 << FA_BLOCKS_PAGE_LOG2)
/* The map grows by so many at least. */
#define FIRST_GRANULES 1024U

size_t fa_mapped_block_bytes(const fa_arena *arena, uint32_t index) {
    return (size_t)fa_blocks_granules(&arena->blocks, index) << arena->blocks.shift;
}

/* The number of granules for `size`, or 0 if there are not so many. */
static uint32_t granules_for(const fa_arena *arena, size_t size) {
    size_t granules = size == 0 ? 1 : ((size - 1) >> arena->blocks.shift) + 1;
    return granules <= arena->granules ? (uint32_t)granules : 0;
}

static bool commit_items(void *os, void *array, size_t item_size, size_t from, size_t to) {
    return fa_commit_items(os, array, item_size, from, to);
}

FA_COLD bool fa_mapped_extend(fa_arena *arena, size_t size, size_t alignment) {
    fa_blocks *blocks = &arena->blocks;
    uint32_t from = blocks->granules;
    uint64_t wanted = from + (((uint64_t)size + alignment + 2 * PAGE) >> blocks->shift) + FIRST_GRANULES;
    const uint64_t goals[] = {wanted > 2 * (uint64_t)from ? wanted : 2 * (uint64_t)from, wanted};
    for (size_t i = 0; i < 2 && from < arena->granules; i++) {
        uint32_t to = goals[i] < arena->granules ? (uint32_t)goals[i] : arena->granules;
        if (!fa_blocks_each_part(blocks, from, to, commit_items, (void *)(uintptr_t)arena->os)) continue;
        blocks->granules = to;
        return true;
    }
    return false;
}

/* Likewise for marks and scopes. */
FA_COLD static bool extend_levels(fa_arena *arena) {
    fa_blocks *blocks = &arena->blocks;
    uint32_t from = blocks->levels, to = from * 2 < FA_MAX_LEVELS ? from * 2 : FA_MAX_LEVELS;
    if (from == to || !fa_commit_items(arena->os, blocks->level, sizeof *blocks->level, from, to)) return false;
    blocks->levels = to;
    return true;
}

/* Takes a live block. Large ones in whole pages, so that their places repeat (mem/blocks.c), while there is room for it. */
static bool take(fa_arena *arena, size_t size, size_t alignment, uint32_t *granules, uint32_t *index) {
    fa_blocks *blocks = &arena->blocks;
    size_t whole;
    *granules = 0;
    if (size >= LARGE && fa_align_up(size, PAGE, &whole)) *granules = granules_for(arena, whole);
    if (*granules != 0) {
        do {
            if (fa_blocks_take(blocks, *granules, fa_max(alignment, PAGE) >> blocks->shift, size, index)) return true;
        } while (fa_mapped_extend(arena, size, alignment));
    }
    *granules = granules_for(arena, size);
    if (*granules == 0) return false;
    do {
        if (fa_blocks_take(blocks, *granules, fa_max(alignment >> blocks->shift, 1), size, index)) return true;
    } while (fa_mapped_extend(arena, size, alignment));
    return false;
}

uint64_t fa_mapped_used(const fa_arena *arena) {
    return (arena->blocks.cursor - arena->blocks.free) << arena->blocks.shift;
}

FA_HOT void *fa_mapped_alloc_small(fa_arena *arena, size_t size, size_t alignment) {
    fa_blocks *blocks = &arena->blocks;
    size_t last = (size - 1) >> blocks->shift; /* of size 0 it is large */
    if (alignment == 0) alignment = arena->alignment;
    if (FA_UNLIKELY(last >= FA_QUICK_MAX || alignment > arena->granule || (alignment & (alignment - 1)) != 0)) return NULL;
    if (FA_UNLIKELY(!arena->plain)) return NULL;
    uint32_t granules = (uint32_t)last + 1, index;
    void *block = NULL;
    lock(arena);
    if (FA_LIKELY(!arena->careful && fa_blocks_take_small(blocks, granules, size, (uint32_t)(arena->region.used >> blocks->shift),
                                                         &index))) {
        arena->allocated++;
        arena->live++;
        arena->bytes += size;
        note_use(arena, (size_t)(index + granules) << blocks->shift);
        block = at_offset(arena, (size_t)index << blocks->shift);
    }
    unlock(arena);
    return block;
}

fa_status fa_mapped_alloc(fa_arena *arena, size_t size, size_t alignment, size_t *offset, size_t *dirty) {
    uint32_t granules, index;
    fa_status status = FA_OK;
    lock(arena);
    if (FA_UNLIKELY(arena->careful)) status = fa_secret_ready(arena);
    if (FA_LIKELY(status == FA_OK) && !take(arena, size, alignment, &granules, &index)) status = FA_ERR_NOMEM;
    if (status == FA_OK) {
        *offset = (size_t)index << arena->blocks.shift;
        size_t end = *offset + ((size_t)granules << arena->blocks.shift);
        status = fa_region_use(&arena->region, end);
        if (status != FA_OK) {
            fa_blocks_give(&arena->blocks, index);
        } else {
            *dirty = arena->kind == FA_WITNESS ? 0 : arena->high;
            arena->allocated++;
            arena->live++;
            arena->bytes += size;
            note_use(arena, end);
        }
    }
    unlock(arena);
    return status;
}

fa_status fa_mapped_free(fa_arena *arena, void *block) {
    size_t offset = (size_t)((unsigned char *)block - arena->base);
    fa_block_found found;
    lock(arena);
    fa_status status = fa_blocks_look(&arena->blocks, offset, &found);
    if (status == FA_OK && arena->kind == FA_WITNESS) {
        size_t bytes = (size_t)found.granules << arena->blocks.shift;
        fa_secret_enter(arena);
        if (FA_UNLIKELY(arena->sealed != FA_SEAL_OFF || arena->region.lost)) {
            status = fa_secret_wipe(arena, offset, offset + bytes);
        } else if (bytes > WIPE_INSIDE_LOCK) {
            /* The block is still live, so nobody else may touch it; another free of it meanwhile is found below. */
            arena->wiping++;
            unlock(arena);
            fa_secure_zero(block, bytes);
            lock(arena);
            arena->wiping--;
            status = fa_blocks_look(&arena->blocks, offset, &found);
        } else {
            fa_secure_zero(block, bytes);
        }
    }
    if (FA_LIKELY(status == FA_OK)) {
        forget(arena, found.size);
        fa_blocks_give_found(&arena->blocks, &found);
    }
    unlock(arena);
    return status;
}

static bool zero_entries(void *entry, void *array, size_t item_size, size_t from, size_t to) {
    if (array == entry) memset((unsigned char *)array + from * item_size, 0, (to - from) * item_size);
    return true;
}

void fa_mapped_reset(fa_arena *arena) {
    fa_blocks *blocks = &arena->blocks;
    if (!fa_blocks_reset(blocks)) return;
    /* Once in 65,536 resets the epoch comes round: no entry of the last turn may be believed. */
    if (!arena->os->lazy_commit || arena->os->decommit(blocks->entry, arena->entries_size) != 0)
        (void)fa_blocks_each_part(blocks, 0, blocks->granules, zero_entries, blocks->entry);
}

fa_status fa_mapped_size(fa_arena *arena, const void *block, size_t *size) {
    size_t offset = (size_t)((const unsigned char *)block - arena->base);
    lock(arena);
    fa_status status = arena->guarded ? fa_guarded_size(arena, block, size) : fa_blocks_check(&arena->blocks, offset);
    if (status == FA_OK && !arena->guarded) *size = fa_blocks_size(&arena->blocks, (uint32_t)(offset >> arena->blocks.shift));
    unlock(arena);
    return status == FA_OK ? FA_ERR_NOMEM : status;
}

fa_status fa_mapped_resize(fa_arena *arena, void *block, size_t *old_size, size_t new_size) {
    uint32_t granules = granules_for(arena, new_size);
    size_t offset = (size_t)((unsigned char *)block - arena->base);
    uint32_t index = (uint32_t)(offset >> arena->blocks.shift);
    lock(arena);
    fa_block_found found;
    fa_status status = fa_blocks_look(&arena->blocks, offset, &found);
    if (status == FA_OK) {
        *old_size = found.size;
        size_t end = offset + ((size_t)granules << arena->blocks.shift), had_end = offset + fa_mapped_block_bytes(arena, index);
        if (arena->careful) status = fa_secret_ready(arena);
        if (status == FA_OK && granules == 0) status = FA_ERR_NOMEM;
        if (status == FA_OK && end > had_end) status = fa_region_use(&arena->region, fa_min(end, arena->region.capacity));
        /* A large block had whole pages: what is asked for may grow and the room shrink. */
        if (status == FA_OK && arena->kind == FA_WITNESS && (new_size < *old_size || end < had_end))
            fa_secure_zero((unsigned char *)block + new_size, had_end - offset - new_size);
        while (status == FA_OK && !fa_blocks_resize(&arena->blocks, index, granules, new_size)) {
            bool short_of_map = had_end >> arena->blocks.shift == arena->blocks.cursor && end <= arena->region.capacity;
            if (!short_of_map || !fa_mapped_extend(arena, new_size, 0)) status = FA_ERR_NOMEM;
        }
        if (status == FA_OK) {
            arena->bytes = arena->bytes - *old_size + new_size;
            note_use(arena, end);
        }
    }
    unlock(arena);
    return status;
}

fa_mark fa_mapped_mark(fa_arena *arena, bool scope) {
    fa_blocks *blocks = &arena->blocks;
    fa_level *level = &blocks->level[blocks->depth];
    if (scope || blocks->depth == 0 || level->scope || level->position != blocks->cursor || level->live > 0)
        level = fa_blocks_push(blocks, scope);
    if (level == NULL && extend_levels(arena)) level = fa_blocks_push(blocks, scope);
    return level == NULL ? (fa_mark){0} : (fa_mark){.position = level->position, .serial = level->serial};
}

void fa_mapped_live(const fa_arena *arena, const fa_level *level, uint64_t *live, uint64_t *bytes) {
    *live = *bytes = 0;
    for (const fa_level *at = level; at <= &arena->blocks.level[arena->blocks.depth]; at++) {
        *live += at->live;
        *bytes += at->bytes;
    }
    /* There, a block is whole pages to the map. */
    if (arena->guarded) *bytes = fa_guarded_bytes(arena, level->position);
}

fa_status fa_mapped_rewind(fa_arena *arena, fa_mark mark, uint32_t *depth) {
    fa_level *level = fa_blocks_find(&arena->blocks, mark);
    if (level == NULL) return FA_ERR_STALE;
    uint64_t live, bytes;
    fa_mapped_live(arena, level, &live, &bytes);
    if (arena->tracked && live > 0) return FA_ERR_BUSY;
    size_t position = (size_t)level->position << arena->blocks.shift;
    size_t cursor = (size_t)arena->blocks.cursor << arena->blocks.shift;
    if (arena->kind == FA_WITNESS && live > 0) {
        fa_status status = arena->guarded ? fa_guarded_release(arena, level->position)
                                          : fa_secret_wipe(arena, position, cursor);
        if (status != FA_OK) return status;
    }
    *depth = (uint32_t)(level - arena->blocks.level);
    fa_blocks_drop(&arena->blocks, level);
    arena->live -= live;
    arena->bytes -= bytes;
    return FA_OK;
}
