/*
 * blocks_proofs.c - mem/blocks.c and what heap/mapped.c asks of it: bins, slots, entries, alignment
 */
#include "proof.h"

#include "mem/blocks.c"
#include "heap/mapped.c"

/* Refuted by
 *   mem/blocks.c
 *   - *row = top - FA_BIN_STEPS_LOG2 + 1;
 *   + *row = top - FA_BIN_STEPS_LOG2;
 */
PROOF(bins_are_in_order) {
    const uint32_t a = (uint32_t)ANY, b = (uint32_t)ANY;
    ASSUME(a <= b);
    unsigned a_row, a_step, b_row, b_step;
    class_of(a, &a_row, &a_step);
    class_of(b, &b_row, &b_step);
    SHOW(a_row < FA_BIN_ROWS && a_step < FA_BIN_STEPS && b_row < FA_BIN_ROWS && b_step < FA_BIN_STEPS);
    SHOW(a_row < b_row || (a_row == b_row && a_step <= b_step)); /* so a block of a higher bin is never smaller */
    PROVED;
}

static fa_blocks map;

/* A map over any capacity, with the sums that fa_blocks_init makes of it. */
#define ANY_MAP                                                                                                        \
    const size_t capacity = ANY, shift = ANY;                                                                          \
    ASSUME(shift >= 3 && shift <= 8 && capacity >> shift < UINT32_MAX && capacity % ((size_t)1 << shift) == 0);        \
    map.shift = (unsigned)shift;                                                                                       \
    map.granules = (uint32_t)(capacity >> shift);                                                                      \
    map.page_log2 = FA_BLOCKS_PAGE_LOG2 - map.shift;                                                                   \
    map.pages = (uint32_t)(capacity >> FA_BLOCKS_PAGE_LOG2) + 1;                                                       \
    map.epoch = 1

/* Refuted by
 *   mem/blocks.c
 *   - (size_t)blocks->pages + page
 *   + (size_t)blocks->pages + page - 1
 */
PROOF(slots_are_apart) {
    ANY_MAP;
    const uint32_t a = (uint32_t)ANY, b = (uint32_t)ANY;
    ASSUME(a < map.granules && b < map.granules && a != b);
    const size_t slot_a = slot_of(&map, a), slot_b = slot_of(&map, b);
    SHOW(slot_a != slot_b);
    SHOW(slot_a < fa_blocks_slots(capacity, (unsigned)shift));
    PROVED;
}

/* Refuted by
 *   mem/blocks.c
 *   - uint64_t address = (uint64_t)index + blocks->phase;
 *   + uint64_t address = (uint32_t)(index + blocks->phase);
 */
PROOF(blocks_are_aligned) {
    ANY_MAP;
    const uint32_t index = (uint32_t)ANY;
    const size_t alignment = ANY, phase = ANY;
    ASSUME(fa_is_power_of_two(alignment) && alignment <= FA_MAX_ALIGNMENT && phase < FA_MAX_ALIGNMENT);
    map.phase = phase;
    const uint64_t start = aligned_from(&map, index, alignment);
    SHOW(start >= index && start - index < alignment); /* nothing wraps: at most 2^32 + 2^21 */
    SHOW(((start + phase) & (alignment - 1)) == 0);
    PROVED;
}

/* What heap/mapped.c asks for, for blocks of any size, and what an entry remembers of it. */
/* Refuted by
 *   mem/blocks.c
 *   - #define SLACK_BITS 13
 *   + #define SLACK_BITS 11
 */
PROOF(entries_know_the_size) {
    static struct fa_arena arena;
    static uint64_t entries[1];
    ANY_MAP;
    const size_t size = ANY;
    ASSUME(capacity >= PAGE);
    arena.blocks = map;
    arena.granules = map.granules;
    arena.blocks.entry = entries;
    size_t whole;
    const bool in_pages = size >= LARGE && fa_align_up(size, PAGE, &whole);
    const uint32_t granules = granules_for(&arena, in_pages ? whole : size);
    if (granules == 0) {
        SHOW(size > capacity - PAGE);
        PROVED;
    }
    SHOW((size_t)granules << shift >= size && granules <= map.granules);
    SHOW(((size_t)granules << shift) - size <= (in_pages ? PAGE - 1 : (size_t)1 << shift));
    arena.blocks.entry[0] = entry_of(&arena.blocks, LIVE, granules, ((size_t)granules << shift) - size);
    arena.blocks.pages = 1;
    SHOW(kind_at(&arena.blocks, 0) == LIVE && fa_blocks_granules(&arena.blocks, 0) == granules);
    SHOW(fa_blocks_size(&arena.blocks, 0) == size);
    PROVED;
}
