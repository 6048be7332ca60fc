/*
 * heap/guarded.c - witness arenas with a guard page after every block
 *
 *     | closed | . . . canary | data ........ | rest | closed | . . . canary | data ...
 *              ^ index        ^ + start        < align ^ guard
 *
 * The data ends at the guard page, as near as its alignment allows; what that leaves is filled with canary bytes, and 16
 * of them stand in front. A block is a run of granules of mem/blocks.h that are pages, the guard the last of them; where
 * its data begins is noted out of line. The region is used by pages (mem/region.h): accessible are the pages of live
 * blocks and nothing else, so a guard page costs no call, and whoever touches a freed block dies.
 *
 * Invariants: the open pages are those of live blocks, unless `ragged`: then the system refused to close some, and that
 * is done before the next block is handed out. Whatever is not in a live block is zero.
 * Thread rule: the arena's lock, wipes included. Damage is noted under it and reported after it.
 * Cost: alloc two system calls (open, lock), free two and a wipe of the pages; two pages of address space and a
 * page of locked memory for the smallest block; the kernel's limit of mappings (65,530) is reached by 32,000 blocks.
 */
#include "arena_parts.h"

#define CANARY FA_CANARY

typedef struct placed {
    uint32_t index;
    size_t start;  /* of the first page, in the region */
    size_t data;   /* likewise */
    size_t size;   /* asked for */
    size_t rest;   /* between the data and the guard */
    size_t guard;  /* of the guard page */
    bool locked;
} placed;

/* ---- where a block lies -------------------------------------------------------------------------------------------- */

#define NOTED_LOCKED (UINT32_C(1) << 31)

/* Both words of a note: `data - start` is a page at the most, `rest` less. */
static void note(fa_arena *arena, const placed *block) {
    *fa_blocks_note(&arena->blocks, block->index) =
        (fa_link){.next = (uint32_t)(block->data - block->start) | (block->locked ? NOTED_LOCKED : 0),
                  .prev = (uint32_t)block->rest};
}

static placed placed_at(const fa_arena *arena, uint32_t index) {
    unsigned shift = arena->blocks.shift;
    fa_link noted = *fa_blocks_note(&arena->blocks, index);
    placed block = {.index = index, .start = (size_t)index << shift, .rest = noted.prev};
    block.locked = (noted.next & NOTED_LOCKED) != 0;
    block.data = block.start + (noted.next & ~NOTED_LOCKED);
    block.guard = block.start + ((size_t)fa_blocks_granules(&arena->blocks, index) << shift) - arena->region.page;
    block.size = block.guard - block.data - block.rest;
    return block;
}

static bool next_live(const fa_arena *arena, uint32_t *index, placed *block) {
    if (!fa_blocks_next_live(&arena->blocks, index)) return false;
    *block = placed_at(arena, *index);
    *index += fa_blocks_granules(&arena->blocks, *index);
    return true;
}

/* Where the live block is whose data begins at the address. */
static fa_status find(const fa_arena *arena, const void *address, placed *block) {
    size_t data = (size_t)((const unsigned char *)address - arena->base), page = arena->region.page;
    if (data < CANARY) return FA_ERR_CORRUPT;
    size_t start = fa_align_down(data - CANARY, page); /* the canary's first byte is in the first page */
    if (fa_blocks_check(&arena->blocks, start) != FA_OK) return FA_ERR_CORRUPT;
    *block = placed_at(arena, (uint32_t)(start >> arena->blocks.shift));
    return block->data == data ? FA_OK : FA_ERR_CORRUPT;
}

fa_status fa_guarded_size(const fa_arena *arena, const void *address, size_t *size) {
    placed block;
    fa_status status = find(arena, address, &block);
    if (status == FA_OK) *size = block.size;
    return status;
}

uint64_t fa_guarded_bytes(const fa_arena *arena, uint32_t index) {
    uint64_t bytes = 0;
    placed block;
    while (next_live(arena, &index, &block)) bytes += block.size;
    return bytes;
}

/* ---- canaries ------------------------------------------------------------------------------------------------------ */

static fa_canary canary_of(const fa_arena *arena, const placed *block) {
    return fa_canary_of(&arena->canary, at_offset(arena, block->data));
}

static void set_canary(fa_arena *arena, const placed *block) {
    const fa_canary canary = canary_of(arena, block);
    fa_canary_fill(&canary, at_offset(arena, block->data - CANARY), CANARY);
    fa_canary_fill(&canary, at_offset(arena, block->data + block->size), block->rest);
}

/* Notes the first damage since the last report. */
static void check_canary(fa_arena *arena, const placed *block) {
    const fa_canary canary = canary_of(arena, block);
    bool before = !fa_canary_holds(&canary, at_offset(arena, block->data - CANARY), CANARY);
    bool after = !fa_canary_holds(&canary, at_offset(arena, block->data + block->size), block->rest);
    if (arena->damaged != NULL || !(before || after)) return;
    arena->damaged = at_offset(arena, block->data);
    arena->damaged_after = !before;
}

void fa_guarded_report(fa_arena *arena, const char *call) {
    lock(arena);
    const void *damaged = arena->damaged;
    bool after = arena->damaged_after;
    arena->damaged = NULL;
    unlock(arena);
    if (damaged != NULL) fa_report_damage(&arena->reporter, call, damaged, after);
}

/* ---- alloc, free, resize ------------------------------------------------------------------------------------------- */

static void mend_range(void *context, uint32_t index, uint32_t granules) {
    fa_arena *arena = context;
    unsigned shift = arena->blocks.shift;
    if (!fa_region_mend(&arena->region, (size_t)index << shift, ((size_t)index + granules) << shift)) arena->ragged = true;
}

/* Closes whatever is in no live block. */
FA_COLD static bool mend(fa_arena *arena) {
    uint32_t index = 0, cursor = arena->blocks.cursor;
    uint64_t locked = 0;
    arena->ragged = false;
    fa_blocks_each_free(&arena->blocks, mend_range, arena);
    mend_range(arena, cursor, (uint32_t)(arena->region.committed >> arena->blocks.shift) - cursor);
    for (placed block; next_live(arena, &index, &block);)
        if (block.locked) locked += block.guard - fa_max(block.start, fa_min(block.guard, arena->region.secret));
    if (!arena->ragged) fa_region_recount(&arena->region, locked);
    return !arena->ragged;
}

static void close_block(fa_arena *arena, const placed *block) {
    if (!fa_region_close(&arena->region, block->start, block->guard, block->locked)) arena->ragged = true;
}

/* A live block of so many granules, open; else nothing has changed. */
static fa_status take(fa_arena *arena, uint32_t granules, placed *block) {
    unsigned shift = arena->blocks.shift;
    size_t bytes = (size_t)granules << shift;
    fa_status status = fa_secret_ready(arena);
    if (status != FA_OK) return status;
    if (arena->ragged && !mend(arena)) return FA_ERR_NOMEM;
    while (!fa_blocks_take(&arena->blocks, granules, 1, bytes, &block->index))
        if (!fa_mapped_extend(arena, bytes, 1)) return FA_ERR_NOMEM;
    block->start = (size_t)block->index << shift;
    block->guard = block->start + bytes - arena->region.page;
    status = fa_region_use(&arena->region, block->start + bytes);
    if (status == FA_OK) {
        status = fa_region_open(&arena->region, block->start, block->guard, &block->locked);
        if (status == FA_ERR_LOCK) close_block(arena, block);
    }
    if (status != FA_OK) fa_blocks_give(&arena->blocks, block->index);
    return status;
}

fa_status fa_guarded_alloc(fa_arena *arena, size_t size, size_t alignment, size_t *offset) {
    size_t page = arena->region.page, rounded;
    if (alignment > page) return FA_ERR_INVALID;
    if (!fa_align_up(fa_max(size, 1), alignment, &rounded) || rounded > arena->region.capacity) return FA_ERR_NOMEM;
    uint64_t granules = ((uint64_t)rounded + CANARY - 1) / page + 2;
    if (granules > arena->granules) return FA_ERR_NOMEM;
    placed block = {.size = size, .rest = rounded - size};
    lock(arena);
    fa_status status = take(arena, (uint32_t)granules, &block);
    if (status == FA_OK) {
        *offset = block.data = block.guard - rounded;
        note(arena, &block);
        set_canary(arena, &block);
        arena->allocated++;
        arena->live++;
        arena->bytes += size;
        note_use(arena, block.guard + page);
    }
    unlock(arena);
    return status;
}

/* Whether the block's pages may be written now. */
static fa_status open_sealed(fa_arena *arena, const placed *block) {
    if (arena->sealed == FA_SEAL_OFF) return FA_OK;
    return fa_region_protect(&arena->region, block->start, block->guard, FA_OS_READ_WRITE);
}

/* Checks, zeroes and closes an open block. */
static void drop(fa_arena *arena, const placed *block) {
    check_canary(arena, block);
    fa_secure_zero(at_offset(arena, block->start), block->guard - block->start);
    close_block(arena, block);
    uint64_t *sealed = &arena->region.protection.sealed;
    if (arena->sealed != FA_SEAL_OFF) *sealed -= fa_min((size_t)*sealed, block->guard - block->start);
}

fa_status fa_guarded_free(fa_arena *arena, void *address) {
    placed block;
    lock(arena);
    fa_secret_enter(arena);
    fa_status status = find(arena, address, &block);
    if (status == FA_OK && !arena->region.lost) {
        status = open_sealed(arena, &block);
        if (status == FA_OK) drop(arena, &block);
    }
    if (status == FA_OK) {
        forget(arena, block.size);
        fa_blocks_give(&arena->blocks, block.index);
    }
    unlock(arena);
    if (status == FA_OK) fa_guarded_report(arena, "free");
    return status;
}

/* Only the size changes: a block whose rounded size does is put against another page end, so it moves. */
fa_status fa_guarded_resize(fa_arena *arena, void *address, size_t *old_size, size_t new_size, size_t alignment) {
    size_t rounded;
    placed block;
    bool fits = fa_align_up(fa_max(new_size, 1), alignment, &rounded);
    lock(arena);
    fa_status status = find(arena, address, &block);
    if (status == FA_OK) status = fa_secret_ready(arena);
    if (status == FA_OK) {
        *old_size = block.size;
        check_canary(arena, &block);
        if (!fits || rounded != block.size + block.rest) {
            status = FA_ERR_NOMEM;
        } else {
            size_t kept = fa_min(block.size, new_size);
            fa_secure_zero(at_offset(arena, block.data + kept), rounded - kept);
            block.size = new_size;
            block.rest = rounded - new_size;
            note(arena, &block);
            set_canary(arena, &block);
            arena->bytes = arena->bytes - *old_size + new_size;
        }
    }
    unlock(arena);
    if (status == FA_OK || status == FA_ERR_NOMEM) fa_guarded_report(arena, "realloc");
    return status;
}

/* ---- all blocks from one on ---------------------------------------------------------------------------------------- */

fa_status fa_guarded_protect(fa_arena *arena, fa_os_access access, uint64_t *bytes) {
    uint32_t index = 0;
    *bytes = 0;
    fa_status status = FA_OK;
    for (placed block; status == FA_OK && next_live(arena, &index, &block);) {
        *bytes += block.guard - block.start;
        /* All at once, guards as well: they are closed already. */
        if (access != FA_OS_NONE) status = fa_region_protect(&arena->region, block.start, block.guard, access);
    }
    if (access != FA_OS_NONE) return status;
    return fa_region_protect(&arena->region, 0, (size_t)arena->blocks.cursor << arena->blocks.shift, FA_OS_NONE);
}

static void seal_again(fa_arena *arena) {
    if (arena->sealed == FA_SEAL_OFF || arena->torn) return;
    fa_os_access access = arena->sealed == FA_SEAL_READ ? FA_OS_READ : FA_OS_NONE;
    if (fa_guarded_protect(arena, access, &arena->region.protection.sealed) != FA_OK) fa_secret_tear(arena);
}

/* All of them are open afterwards, or sealed as before. */
static fa_status open_from(fa_arena *arena, uint32_t index) {
    fa_status status = FA_OK;
    for (placed block; status == FA_OK && next_live(arena, &index, &block);) status = open_sealed(arena, &block);
    if (status != FA_OK) seal_again(arena);
    return status;
}

fa_status fa_guarded_release(fa_arena *arena, uint32_t index) {
    if (arena->region.lost) return FA_OK;
    fa_status status = open_from(arena, index);
    for (placed block; status == FA_OK && next_live(arena, &index, &block);) drop(arena, &block);
    return status;
}

fa_status fa_guarded_wipe(fa_arena *arena) {
    if (arena->region.lost) return FA_OK;
    fa_status status = open_from(arena, 0);
    uint32_t index = 0;
    for (placed block; status == FA_OK && next_live(arena, &index, &block);) {
        check_canary(arena, &block);
        fa_secure_zero(at_offset(arena, block.start), block.guard - block.start);
        set_canary(arena, &block); /* the block lives on */
    }
    if (status == FA_OK) seal_again(arena);
    return status;
}

void fa_guarded_fork_child(fa_arena *arena) {
    uint32_t index = 0;
    for (placed block; next_live(arena, &index, &block);) {
        /* A lock that cannot be had again shows in the record. */
        if (fa_region_open(&arena->region, block.start, block.guard, &block.locked) == FA_ERR_NOMEM) {
            fa_region_discard(&arena->region, FA_GET(arena->high)); /* nobody could zero it later */
            return;
        }
        note(arena, &block);
        set_canary(arena, &block);
    }
}
