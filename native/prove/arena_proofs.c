/*
 * arena_proofs.c - heap/arena.c: the hot path, and the parts of the metadata
 */
#include "proof.h"

#include "heap/arena.c"

/* ---- the hot path of arenas: heap/arena.c, fa_arena_alloc ---------------------------------------------------------------- */

/* Refuted by
 *   heap/arena.c
 *   - (size - 1) | arena->granule_mask
 *   + size | arena->granule_mask
 */
PROOF(arena_rounding) {
    static struct fa_arena arena;
    static fa_thread thread;
    const size_t size = ANY, base = ANY, cursor = ANY, end = ANY, granule_log2 = ANY;
    ASSUME(granule_log2 >= 4 && granule_log2 <= 8);
    const size_t granule = (size_t)1 << granule_log2;
    ASSUME(cursor % granule == 0 && end % granule == 0 && cursor <= end && base % granule == 0);
    ASSUME(base > 0 && end <= SIZE_MAX - base);
    ASSUME(size <= end - cursor && (size == 0 || ((size - 1) | (granule - 1)) < end - cursor) && size != 0);
    arena.granule = granule;
    arena.granule_mask = granule - 1;
    arena.base = (unsigned char *)(uintptr_t)base;
    arena.bump.epoch = 7;
    fa_recents[0] = (fa_recent){.epoch = 7, .thread = &thread, .arena = &arena};
    thread.chunk.cursor = cursor;
    thread.chunk.end = end;
    thread.tally = 0;
    const size_t block = (size_t)(uintptr_t)fa_arena_alloc(&arena, size, 0);
    SHOW(block == base + cursor && block % granule == 0);
    SHOW(thread.chunk.cursor - cursor >= size && thread.chunk.cursor - cursor - size < granule);
    SHOW(thread.chunk.cursor % granule == 0 && thread.chunk.cursor <= end);
    PROVED;
}

/* ---- heap/arena.c: the metadata of an arena -------------------------------------------------------------------------------- */

/* Refuted by
 *   heap/arena.c
 *   - if (size != 0 && count > (SIZE_MAX - *begin) / size) return false;
 *   +
 */
PROOF(metadata_parts_are_apart) {
    const size_t slots = ANY, page_log2 = ANY;
    const bool mapped = (ANY & 1) != 0, witness = (ANY & 1) != 0;
    ASSUME(page_log2 >= 12 && page_log2 <= 16);
    const size_t page = (size_t)1 << page_log2;
    metadata_layout at = {0};
    if (!lay_out(&at, mapped, witness, slots, page)) {
        SHOW(mapped && slots > SIZE_MAX / 64);
        PROVED;
    }
    const size_t levels_end = at.levels + (mapped ? FA_MAX_LEVELS * sizeof(fa_level) : 0);
    const size_t marks_end = at.marks + (mapped ? 0 : FA_MAX_LEVELS * sizeof(fa_bump_mark));
    const size_t threads_end = at.threads + (mapped ? 0 : (MAX_THREADS + 1) * sizeof(fa_thread));
    SHOW(at.levels >= sizeof(fa_arena) && levels_end <= at.marks && marks_end <= at.threads && threads_end <= at.links);
    SHOW(at.links <= at.entries && at.entries <= at.alive && at.alive <= at.size);
    SHOW(((at.entries | at.alive | at.size) & (page - 1)) == 0 && (!witness || at.size - at.alive == page));
    SHOW(!mapped || slots <= (at.entries - at.links) / sizeof(fa_link));
    SHOW(!mapped || slots <= (at.alive - at.entries) / sizeof(uint64_t));
    PROVED;
}
