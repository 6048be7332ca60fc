/*
 * mem/bump.c - the cold half of bump.h: refilling a chunk
 *
 *     fits after aligning?          -> the chunk
 *     chunk is topmost?             -> extend it where it stands: contiguous, deterministic, nothing lost
 *     small for a chunk?            -> a new chunk; what was left of the old one waits for the reset
 *     large                         -> straight from the shared cursor; what is left of the chunk stays
 *
 * Each case is one compare-and-swap on the shared cursor, tried again if another thread moved it. Whoever gives a range back does
 * so with a compare-and-swap that releases. Thread rule and invariants: see bump.h.
 */
#include "bump.h"

/* Takes [from, to) from the shared cursor, which must still be at `from`. Acquires what another thread did there, and says of it
 * (arena->high), before it gave the range back. */
static bool move_cursor(fa_bump *bump, size_t *from, size_t to) {
    return atomic_compare_exchange_strong_explicit(&bump->cursor, from, to, memory_order_acquire,
                                                   memory_order_relaxed);
}

FA_COLD bool fa_bump_refill(fa_bump *bump, fa_chunk *chunk, size_t size, size_t alignment, size_t phase,
                            size_t *offset) {
    bool current = fa_chunk_is_current(bump, chunk);
    size_t cursor = FA_GET(chunk->cursor), chunk_end = FA_GET(chunk->end), start;
    if (current && fa_bump_align(bump, cursor, alignment, phase, &start) && start <= chunk_end &&
        size <= chunk_end - start) {
        FA_SET(chunk->cursor, start + size);
        *offset = start;
        return true;
    }
    size_t shared = FA_GET(bump->cursor);
    for (;;) {
        bool topmost = current && chunk_end == shared;
        if (!fa_bump_align(bump, topmost ? cursor : shared, alignment, phase, &start)) return false;
        if (size > bump->limit - start) return false;
        size_t end = start + size;
        /* A large block does not make us give up what is left of a chunk that others have overtaken. */
        bool small = size <= bump->chunk / 4, own = topmost || small || !current || cursor == chunk_end;
        size_t spare = topmost || small ? fa_min(bump->chunk, bump->limit - end) : 0;
        if (!move_cursor(bump, &shared, end + spare)) continue;
        if (own) {
            FA_SET(chunk->cursor, end);
            FA_SET(chunk->end, end + spare);
            FA_SET(chunk->epoch, FA_GET(bump->epoch));
        }
        *offset = start;
        return true;
    }
}

bool fa_bump_extend(fa_bump *bump, fa_chunk *chunk, size_t size) {
    size_t cursor = FA_GET(chunk->cursor), end = FA_GET(chunk->end);
    if (size > end - cursor) {
        if (size > bump->limit - cursor) return false;
        size_t shared = end, extended = cursor + size;
        if (!move_cursor(bump, &shared, extended)) return false; /* not topmost */
        FA_SET(chunk->end, extended);
    }
    FA_SET(chunk->cursor, cursor + size);
    return true;
}

size_t fa_bump_position(const fa_bump *bump, const fa_chunk *chunk) {
    size_t shared = FA_GET(bump->cursor);
    return fa_chunk_is_current(bump, chunk) && FA_GET(chunk->end) == shared ? FA_GET(chunk->cursor) : shared;
}
