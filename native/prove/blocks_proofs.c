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
 *   mem/blocks.h
 *   - (size_t)blocks->pages + page
 *   + (size_t)blocks->pages + page - 1
 */
PROOF(slots_are_apart) {
    ANY_MAP;
    const uint32_t a = (uint32_t)ANY, b = (uint32_t)ANY;
    ASSUME(a < map.granules && b < map.granules && a != b);
    const size_t slot_a = fa_blocks_slot(&map, a), slot_b = fa_blocks_slot(&map, b);
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

/* Refuted by
 *   mem/blocks.h
 *   - *index + (uint64_t)granules > fa_min
 *   + *index + granules > fa_min
 */
PROOF(a_small_block_at_the_cursor_fits) {
    static uint64_t entries[1];
    static fa_level levels[1];
    ANY_MAP;
    const uint32_t cursor = (uint32_t)ANY, granules = (uint32_t)ANY, limit = (uint32_t)ANY;
    ASSUME(cursor <= map.granules && granules > 0 && granules <= FA_QUICK_MAX);
    map.entry = entries - fa_blocks_slot(&map, cursor); /* so that the entry that is written is known memory */
    map.level = levels;
    map.depth = 0;
    map.cursor = cursor;
    uint32_t index;
    if (!fa_blocks_take_small(&map, granules, (size_t)granules << shift, limit, &index)) {
        SHOW((granules > map.granules - cursor || (uint64_t)cursor + granules > limit) && map.cursor == cursor);
        PROVED;
    }
    SHOW(index == cursor && map.cursor - cursor == granules && map.cursor >= cursor);
    SHOW(map.cursor <= map.granules && map.cursor <= limit);
    PROVED;
}

/* What heap/mapped.c asks for, for blocks of any size, and what an entry remembers of it. */
/* Refuted by
 *   mem/blocks.h
 *   - #define FA_ENTRY_SIZE_SHIFT 32
 *   + #define FA_ENTRY_SIZE_SHIFT 30
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
