/*
 * refill_proofs.c - mem/bump.c's refill of a chunk, over any alignment that bump_align's proof allows
 *
 * Powers of two and sums that may wrap at once are too much for the solver. So the rounding is proved alone (bump_align, in
 * bump_proofs.c), and here stands for it anything that keeps to what was proved of it: a refusal, or an offset that is not
 * below the cursor it was asked for and not beyond the limit. Another thread's move of the shared cursor only begins the
 * loop again with another value of it, and the proof is for every value.
 */
#include "proof.h"

#include "mem/bump.h"

/* Of two cursors: the alignment is the same in both calls, so the same cursor has the same answer. */
static size_t known, rounded, otherwise;

static bool any_bump_align(const fa_bump *bump, size_t cursor, size_t alignment, size_t phase, size_t *offset) {
    (void)alignment, (void)phase;
    *offset = cursor == known ? rounded : otherwise;
    return *offset >= cursor && *offset <= bump->limit;
}

#define fa_bump_align any_bump_align
#include "mem/bump.c"

static fa_bump bump;
static fa_chunk chunk;

/* Refuted by
 *   mem/bump.c
 *   - size <= chunk_end - start) {
 *   + start + size <= chunk_end) {
 *   mem/bump.c
 *   - if (size > bump->limit - start) return false;
 *   +
 *   mem/bump.c
 *   - fa_min(bump->chunk, bump->limit - end)
 *   + bump->chunk
 *   mem/bump.c
 *   - own = topmost || small || !current
 *   + own = small || !current
 *   mem/bump.c
 *   - if (current && fa_bump_align(
 *   + if (fa_bump_align(
 *   mem/bump.c
 *   - FA_SET(chunk->cursor, start + size);
 *   + FA_SET(chunk->cursor, cursor + size);
 */
PROOF(bump_refill) {
    const size_t shared = ANY, cursor = ANY, end = ANY, size = ANY, start = ANY, other = ANY, least = ANY, more = ANY;
    const uint64_t epoch = ANY, chunk_epoch = ANY, which = EACH(3); /* does not fit; the rest is the smaller; the spare is */
    const bool current = epoch == chunk_epoch, topmost = current && end == shared, fits = which > 0;
    /* Differences of unknowns are what makes it hard. So the limit, if the block fits below it, is a sum of what is below; and
     * of the rest and the spare, the larger is the smaller and something. */
    const size_t rest = which == 2 ? least + more : least;
    const size_t spare = which == 2 ? least : which == 1 ? least + more : more;
    const size_t limit = fits ? start + size + rest : rest;
    if (fits) {
        ASSUME(size <= SIZE_MAX - start && least <= SIZE_MAX - (start + size) && more <= SIZE_MAX - least);
        ASSUME(rest <= SIZE_MAX - (start + size));
    } else {
        ASSUME(start > limit || size > limit - start);
    }
    known = cursor, rounded = topmost || cursor == shared ? start : other, otherwise = start;
    ASSUME(shared <= limit && cursor <= end && end <= limit);
    ASSUME(!current || cursor == end || end <= shared);
    bump.epoch = epoch, bump.limit = limit, bump.chunk = spare, bump.cursor = shared;
    chunk.cursor = cursor, chunk.end = end, chunk.epoch = chunk_epoch;
    size_t offset;
    if (!fa_bump_refill(&bump, &chunk, size, 1, 0, &offset)) {
        SHOW((bump.cursor == shared) & (chunk.cursor == cursor) & (chunk.end == end) & (chunk.epoch == chunk_epoch));
        PROVED;
    }
    const size_t after = offset + size, now = bump.cursor;
    SHOW((offset == rounded) | (offset == otherwise)); /* aligned as asked */
    SHOW((offset <= limit) & (size <= limit - offset)); /* inside, and nothing wraps */
    SHOW((now >= shared) & (now <= limit));
    /* From what was left of the chunk, or from what was nobody's, or from both where they meet. */
    const bool inside = current & (offset >= cursor) & (after <= end), beyond = (offset >= shared) & (after <= now),
               across = current & (end == shared) & (offset >= cursor) & (after <= now);
    SHOW(inside | beyond | across);
    /* What is left of the chunk is what was left of it, behind the block; or untouched; or newly taken, behind the block. */
    SHOW(chunk.cursor <= chunk.end);
    const bool untouched = (chunk.cursor == cursor) & (chunk.end == end) & (chunk.epoch == chunk_epoch) & (now == after);
    const bool shorter = (chunk.cursor == after) & (chunk.end == end) & current & inside;
    const bool taken = (chunk.cursor == after) & (chunk.end == now) & (chunk.epoch == epoch);
    SHOW((untouched & beyond) | shorter | taken);
    PROVED;
}
