/*
 * bump_proofs.c - mem/base.h, bump.c, slabs.h, table.c: sums that do not wrap, blocks that are apart, classes, homes
 */
#include "proof.h"

#include "mem/bump.c"
#include "mem/slabs.h"
#include "mem/table.c"

/* ---- mem/base.h --------------------------------------------------------------------------------------------------- */

/* Refuted by
 *   mem/base.h
 *   - if (value > SIZE_MAX - (alignment - 1)) return false;
 *   +
 */
PROOF(align_up) {
    const size_t value = ANY, alignment = ANY;
    ASSUME(fa_is_power_of_two(alignment));
    size_t aligned;
    if (!fa_align_up(value, alignment, &aligned)) {
        SHOW(value > SIZE_MAX - (alignment - 1)); /* refused only what would wrap */
        PROVED;
    }
    SHOW(aligned >= value && aligned - value < alignment && (aligned & (alignment - 1)) == 0);
    PROVED;
}

/* ---- mem/bump.h: a chunk, and the cursor that is shared ----------------------------------------------------------------- */

static fa_bump bump;
static fa_chunk chunk;

/* A bump and a chunk in any state that their invariants allow. */
#define ANY_BUMP_AND_CHUNK                                                                                             \
    const size_t limit = ANY, spare = ANY, shared = ANY, cursor = ANY, end = ANY;                                      \
    const uint64_t epoch = ANY, chunk_epoch = ANY;                                                                     \
    const bool current = epoch == chunk_epoch;                                                                         \
    ASSUME(shared <= limit && cursor <= end && end <= limit);                                                          \
    ASSUME(!current || cursor == end || end <= shared);                                                                \
    bump.epoch = epoch;                                                                                                \
    bump.limit = limit;                                                                                                \
    bump.chunk = spare;                                                                                                \
    bump.cursor = shared;                                                                                              \
    chunk.cursor = cursor;                                                                                             \
    chunk.end = end;                                                                                                   \
    chunk.epoch = chunk_epoch

/* The invariants again; and what others were given, [0, shared) but for our chunk, is not ours now. */
#define SHOW_INVARIANTS                                                                                                \
    SHOW((bump.cursor <= limit) & (bump.cursor >= shared));                                                            \
    SHOW((chunk.cursor <= chunk.end) & (chunk.end <= limit));                                                          \
    SHOW((chunk.epoch != epoch) | (chunk.cursor == chunk.end) | (chunk.end <= bump.cursor))

/* Refuted by
 *   mem/bump.h
 *   - last >= FA_GET(chunk->end) - cursor
 *   + last > FA_GET(chunk->end) - cursor
 *   mem/bump.h
 *   - last >= FA_GET(chunk->end) - cursor
 *   + cursor + last >= FA_GET(chunk->end)
 */
PROOF(bump_take) {
    ANY_BUMP_AND_CHUNK;
    const size_t last = ANY;
    size_t offset;
    if (!fa_bump_take(&chunk, last, &offset)) {
        SHOW(chunk.cursor == cursor && chunk.end == end && last >= end - cursor);
        PROVED;
    }
    SHOW(offset == cursor && offset < end && last < end - offset); /* all of it inside the chunk, nothing wraps */
    SHOW(chunk.cursor - 1 == offset + last && chunk.cursor > cursor && chunk.cursor <= end && chunk.end == end);
    PROVED;
}

/* Refuted by
 *   mem/bump.h
 *   - *offset = address - phase;
 *   + *offset = fa_align_down(cursor, alignment);
 *   mem/bump.h
 *   - return *offset <= bump->limit;
 *   + return true;
 */
PROOF(bump_align) {
    const size_t limit = ANY, cursor = ANY, alignment = ANY, phase = ANY;
    ASSUME(fa_is_power_of_two(alignment) && alignment <= FA_MAX_ALIGNMENT && phase < FA_MAX_ALIGNMENT);
    ASSUME(limit <= SIZE_MAX - phase && cursor <= limit); /* the region is addresses, and the phase at most that of its base */
    bump.limit = limit;
    size_t offset;
    if (!fa_bump_align(&bump, cursor, alignment, phase, &offset)) {
        SHOW(cursor + phase > SIZE_MAX - (alignment - 1) || limit - cursor < alignment); /* refused only what is beyond */
        PROVED;
    }
    SHOW(offset >= cursor && offset - cursor < alignment && offset <= limit);
    SHOW(((offset + phase) & (alignment - 1)) == 0);
    PROVED;
}

/* Refuted by
 *   mem/bump.c
 *   - if (size > bump->limit - cursor) return false;
 *   +
 */
PROOF(bump_extend) {
    ANY_BUMP_AND_CHUNK;
    const size_t size = ANY;
    ASSUME(current);
    if (!fa_bump_extend(&bump, &chunk, size)) {
        SHOW(bump.cursor == shared && chunk.cursor == cursor && chunk.end == end);
        PROVED;
    }
    SHOW(size <= limit - cursor && chunk.cursor == cursor + size);
    SHOW((size <= end - cursor) | ((end == shared) & (bump.cursor == chunk.cursor)));
    SHOW_INVARIANTS;
    PROVED;
}

/* Refuted by
 *   mem/bump.c
 *   - FA_GET(chunk->end) == shared ? FA_GET(chunk->cursor)
 *   + true ? FA_GET(chunk->cursor)
 */
PROOF(bump_position) {
    ANY_BUMP_AND_CHUNK;
    const size_t position = fa_bump_position(&bump, &chunk);
    SHOW(position <= shared); /* at or below everything that anybody takes later, */
    SHOW(!current || end != shared || position == cursor);
    SHOW(position == shared || (current && end == shared)); /* and at or above everything that is taken */
    PROVED;
}

/* ---- mem/slabs.h: classes ---------------------------------------------------------------------------------------------- */

/* Refuted by
 *   mem/slabs.h
 *   - unsigned top = fa_log2(size - 1);
 *   + unsigned top = fa_log2(size);
 */
PROOF(slab_classes) {
    const size_t size = ANY;
    ASSUME(size <= FA_SLAB_MAX);
    const uint32_t class = fa_slab_class(size);
    SHOW(class < FA_SLAB_CLASSES);
    SHOW(fa_slab_size(class) >= size && fa_slab_size(class) <= FA_SLAB_MAX && fa_slab_size(class) % 16 == 0);
    SHOW(class == 0 || fa_slab_size(class - 1) < size); /* the smallest that holds it */
    PROVED;
}

/* ---- mem/table.c ------------------------------------------------------------------------------------------------------- */

/* Refuted by
 *   mem/table.c
 *   - (address >> SLOT_LOG2 & 3)) & table->mask
 *   + (address >> SLOT_LOG2 & 3 & table->mask))
 */
PROOF(homes_are_in_the_table) {
    const size_t slots_log2 = ANY, address = ANY;
    ASSUME(slots_log2 >= 8 && slots_log2 < 60);
    const fa_table table = {.mask = ((size_t)1 << slots_log2) - 1};
    SHOW(home_of(&table, address) <= table.mask);
    PROVED;
}
