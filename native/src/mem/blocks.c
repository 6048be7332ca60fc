/*
 * mem/blocks.c - which granules of a region are blocks, which are free, and where the next block goes
 *
 * The entries are laid out in blocks.h. A quick block is no neighbour: it has no foot, and nobody merges with it.
 * Invariants, thread rule, cost: see blocks.h.
 */
#include "blocks.h"

#include <string.h>

enum kind { NOTHING, LIVE = FA_BLOCKS_LIVE, FREE, FOOT, QUICK };

#define LOW_BITS(bits) ((1U << (bits)) - 1)
#define EPOCH_BITS FA_ENTRY_EPOCH_BITS
#define KIND_SHIFT FA_ENTRY_KIND_SHIFT
#define KIND_BITS (FA_ENTRY_SLACK_SHIFT - FA_ENTRY_KIND_SHIFT)
#define SIZE_SHIFT FA_ENTRY_SIZE_SHIFT

size_t fa_blocks_slots(size_t capacity, unsigned shift) {
    return (capacity >> shift) + 2 * ((capacity >> FA_BLOCKS_PAGE_LOG2) + 1);
}

static uint64_t *entry_at(const fa_blocks *blocks, uint32_t index) { return &blocks->entry[fa_blocks_slot(blocks, index)]; }
static fa_link *link_at(const fa_blocks *blocks, uint32_t index) { return &blocks->link[fa_blocks_slot(blocks, index)]; }

static uint64_t entry_of(const fa_blocks *blocks, enum kind kind, uint32_t granules, size_t slack) {
    return fa_blocks_entry_of(blocks, (unsigned)kind, granules, slack);
}

static enum kind kind_at(const fa_blocks *blocks, uint32_t index) {
    uint64_t entry = *entry_at(blocks, index);
    if ((entry & LOW_BITS(EPOCH_BITS)) != blocks->epoch) return NOTHING;
    return (enum kind)(entry >> KIND_SHIFT & LOW_BITS(KIND_BITS));
}

uint32_t fa_blocks_granules(const fa_blocks *blocks, uint32_t index) {
    return (uint32_t)(*entry_at(blocks, index) >> SIZE_SHIFT);
}

size_t fa_blocks_size(const fa_blocks *blocks, uint32_t index) {
    return fa_blocks_size_in(blocks, *entry_at(blocks, index));
}

static void set_live(fa_blocks *blocks, uint32_t index, uint32_t granules, size_t size) {
    *entry_at(blocks, index) = entry_of(blocks, LIVE, granules, ((size_t)granules << blocks->shift) - size);
}

/* ---- bins ------------------------------------------------------------------------------------------------------ */

static void class_of(uint32_t granules, unsigned *row, unsigned *step) {
    if (granules < FA_BIN_STEPS) {
        *row = 0;
        *step = granules;
        return;
    }
    unsigned top = fa_log2(granules);
    *row = top - FA_BIN_STEPS_LOG2 + 1;
    *step = granules >> (top - FA_BIN_STEPS_LOG2) & (FA_BIN_STEPS - 1);
}

static void bin_insert(fa_blocks *blocks, fa_level *level, uint32_t index, uint32_t granules) {
    unsigned row, step;
    class_of(granules, &row, &step);
    uint32_t *first = &level->bins.first[row][step];
    *link_at(blocks, index) = (fa_link){.next = *first, .prev = 0};
    if (*first != 0) link_at(blocks, *first - 1)->prev = index + 1;
    *first = index + 1;
    level->bins.rows |= 1U << row;
    level->bins.steps[row] |= (uint8_t)(1U << step);
    level->free += granules;
    blocks->free += granules;
    *entry_at(blocks, index) = entry_of(blocks, FREE, granules, 0);
    if (granules > 1) *entry_at(blocks, index + granules - 1) = entry_of(blocks, FOOT, granules, 0);
}

static void bin_remove(fa_blocks *blocks, fa_level *level, uint32_t index) {
    uint32_t granules = fa_blocks_granules(blocks, index);
    unsigned row, step;
    class_of(granules, &row, &step);
    fa_link link = *link_at(blocks, index);
    if (link.next != 0) link_at(blocks, link.next - 1)->prev = link.prev;
    if (link.prev != 0) {
        link_at(blocks, link.prev - 1)->next = link.next;
    } else {
        level->bins.first[row][step] = link.next;
        if (link.next == 0) {
            level->bins.steps[row] &= (uint8_t)~(1U << step);
            if (level->bins.steps[row] == 0) level->bins.rows &= ~(1U << row);
        }
    }
    level->free -= granules;
    blocks->free -= granules;
    *entry_at(blocks, index) = 0;
    *entry_at(blocks, index + granules - 1) = 0;
}

/* The smallest class that holds something and is at least (*row, *step). */
static bool bin_next(const fa_bins *bins, unsigned *row, unsigned *step) {
    unsigned steps = *step < FA_BIN_STEPS ? bins->steps[*row] & ~LOW_BITS(*step) : 0;
    if (steps == 0) {
        uint32_t rows = *row + 1 < FA_BIN_ROWS ? bins->rows & ~LOW_BITS(*row + 1) : 0;
        if (rows == 0) return false;
        *row = fa_log2(rows & (~rows + 1)); /* the lowest bit */
        steps = bins->steps[*row];
    }
    *step = fa_log2(steps & (~steps + 1));
    return true;
}

/* The first granule from `index` on whose address has the alignment. */
static uint64_t aligned_from(const fa_blocks *blocks, uint32_t index, size_t alignment) {
    uint64_t address = (uint64_t)index + blocks->phase;
    return ((address + (alignment - 1)) & ~((uint64_t)alignment - 1)) - blocks->phase;
}

FA_APART static bool bin_take(fa_blocks *blocks, fa_level *level, uint32_t granules, size_t alignment, uint32_t *index) {
    unsigned row, step;
    class_of(granules, &row, &step);
    for (; bin_next(&level->bins, &row, &step); step++) {
        uint32_t at = level->bins.first[row][step];
        for (int scanned = 0; at != 0 && scanned < FA_BIN_SCAN; scanned++, at = link_at(blocks, at - 1)->next) {
            uint32_t start = at - 1;
            uint64_t end = (uint64_t)start + fa_blocks_granules(blocks, start);
            uint64_t aligned = aligned_from(blocks, start, alignment);
            if (aligned > end || end - aligned < granules) continue;
            uint32_t taken = (uint32_t)aligned;
            bin_remove(blocks, level, start);
            if (taken > start) bin_insert(blocks, level, start, taken - start);
            if (end > (uint64_t)taken + granules)
                bin_insert(blocks, level, taken + granules, (uint32_t)(end - taken - granules));
            *index = taken;
            return true;
        }
    }
    return false;
}

/* ---- blocks ---------------------------------------------------------------------------------------------------- */

void fa_blocks_init(fa_blocks *blocks, uint64_t *entry, fa_link *link, fa_level *level, size_t capacity,
                    unsigned shift, const void *base) {
    *blocks = (fa_blocks){.entry = entry, .link = link, .level = level, .levels = FA_MAX_LEVELS, .shift = shift, .epoch = 1};
    blocks->granules = (uint32_t)(capacity >> shift);
    blocks->page_log2 = shift < FA_BLOCKS_PAGE_LOG2 ? FA_BLOCKS_PAGE_LOG2 - shift : 0;
    blocks->pages = (uint32_t)(capacity >> FA_BLOCKS_PAGE_LOG2) + 1;
    blocks->phase = ((uintptr_t)base & (FA_MAX_ALIGNMENT - 1)) >> shift;
}

fa_link *fa_blocks_note(const fa_blocks *blocks, uint32_t index) { return link_at(blocks, index); }

bool fa_blocks_next_live(const fa_blocks *blocks, uint32_t *index) {
    while (*index < blocks->cursor && kind_at(blocks, *index) != LIVE) *index += fa_blocks_granules(blocks, *index);
    return *index < blocks->cursor;
}

fa_level *fa_blocks_level_of(fa_blocks *blocks, uint32_t index) {
    /* The last level that begins at or below: most often the top. Empty levels share their position with the next. */
    uint32_t low = 0, high = blocks->depth;
    if (index >= blocks->level[high].position) return &blocks->level[high];
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (blocks->level[middle].position <= index) low = middle;
        else high = middle;
    }
    return &blocks->level[low];
}

static bool is_top(const fa_blocks *blocks, const fa_level *level) { return level == &blocks->level[blocks->depth]; }

/* Where the granules of the level end. */
static uint32_t level_end(const fa_blocks *blocks, const fa_level *level) {
    return is_top(blocks, level) ? blocks->cursor : level[1].position;
}

/* The free block that ends where `index` begins, in the same level; false if there is none. */
static bool free_below(const fa_blocks *blocks, const fa_level *level, uint32_t index, uint32_t *start) {
    if (index <= level->position) return false;
    enum kind kind = kind_at(blocks, index - 1);
    if (kind == FOOT) *start = index - fa_blocks_granules(blocks, index - 1);
    else if (kind == FREE) *start = index - 1; /* of one granule, or a foot would stand here */
    else return false;
    return true;
}

/* [index, index + granules) becomes free: merged with its neighbours, and into what is not used yet if it is on top. What
 * lies right below a mark stays a block of its level: the cursor never passes a mark. */
FA_APART static void give_range(fa_blocks *blocks, fa_level *level, uint32_t index, uint32_t granules) {
    uint32_t end = index + granules, start;
    if (end < level_end(blocks, level) && kind_at(blocks, end) == FREE) {
        uint32_t above = fa_blocks_granules(blocks, end);
        bin_remove(blocks, level, end);
        end += above;
    }
    if (free_below(blocks, level, index, &start)) {
        bin_remove(blocks, level, start);
        index = start;
    }
    if (end == blocks->cursor && is_top(blocks, level)) blocks->cursor = index;
    else bin_insert(blocks, level, index, end - index);
}

/* ---- quick lists ----------------------------------------------------------------------------------------------- */

static void quick_push(fa_blocks *blocks, fa_level *level, const fa_block_found *block) {
    uint32_t *first = &blocks->quick_first[block->granules - 1];
    blocks->link[block->entry - blocks->entry].next = *first;
    *first = block->index + 1;
    blocks->quick |= UINT64_C(1) << (block->granules - 1);
    level->free += block->granules;
    blocks->free += block->granules;
    *block->entry = entry_of(blocks, QUICK, block->granules, 0);
}

/* All of them become free as if they had never been quick. */
FA_APART static void flush_quick(fa_blocks *blocks) {
    fa_level *level = &blocks->level[blocks->depth];
    while (blocks->quick != 0) {
        uint32_t granules = fa_log2(blocks->quick) + 1, index = blocks->quick_first[granules - 1] - 1;
        size_t slot = fa_blocks_slot(blocks, index);
        fa_blocks_pop_quick(blocks, level, granules, slot);
        blocks->entry[slot] = 0;
        give_range(blocks, level, index, granules);
    }
}

/* ---- taking and giving ------------------------------------------------------------------------------------------- */

/* From the bins, else from the cursor. */
static bool take_apart(fa_blocks *blocks, fa_level *level, uint32_t granules, size_t alignment, uint32_t *index) {
    if (level->bins.rows != 0 && bin_take(blocks, level, granules, alignment, index)) return true;
    if (blocks->quick != 0) { /* merged, they may be what is wanted */
        flush_quick(blocks);
        if (level->bins.rows != 0 && bin_take(blocks, level, granules, alignment, index)) return true;
    }
    uint64_t start = aligned_from(blocks, blocks->cursor, alignment);
    if (start > blocks->granules || blocks->granules - start < granules) return false;
    if (start > blocks->cursor) bin_insert(blocks, level, blocks->cursor, (uint32_t)(start - blocks->cursor));
    *index = (uint32_t)start;
    blocks->cursor = (uint32_t)start + granules;
    return true;
}

bool fa_blocks_take(fa_blocks *blocks, uint32_t granules, size_t alignment, size_t size, uint32_t *index) {
    fa_level *level = &blocks->level[blocks->depth];
    if (granules <= FA_QUICK_MAX && alignment == 1 && blocks->quick >> (granules - 1) & 1) {
        *index = blocks->quick_first[granules - 1] - 1;
        fa_blocks_pop_quick(blocks, level, granules, fa_blocks_slot(blocks, *index));
    } else if (!take_apart(blocks, level, granules, alignment, index)) {
        return false;
    }
    set_live(blocks, *index, granules, size);
    level->live++;
    level->bytes += size;
    return true;
}

void fa_blocks_give_found(fa_blocks *blocks, const fa_block_found *block) {
    uint32_t index = block->index, granules = block->granules, below;
    fa_level *level = fa_blocks_level_of(blocks, index);
    bool top = is_top(blocks, level), newest = top && index + granules == blocks->cursor;
    level->live--;
    level->bytes -= block->size;
    *block->entry = 0;
    /* The newest, with nothing free below it: the cursor goes back, and no list is touched. */
    if (newest && (level->bins.rows == 0 || !free_below(blocks, level, index, &below))) blocks->cursor = index;
    else if (top && !newest && granules <= FA_QUICK_MAX) quick_push(blocks, level, block);
    else give_range(blocks, level, index, granules);
    if (level->live > 0) return;
    if (top && blocks->quick != 0) flush_quick(blocks); /* the last one is gone: the cursor comes down */
    if (level->left) fa_blocks_pop_left(blocks);
}

void fa_blocks_give(fa_blocks *blocks, uint32_t index) {
    uint64_t *entry = entry_at(blocks, index);
    fa_blocks_give_found(blocks, &(fa_block_found){entry, index, (uint32_t)(*entry >> SIZE_SHIFT), fa_blocks_size_in(blocks, *entry)});
}

bool fa_blocks_resize(fa_blocks *blocks, uint32_t index, uint32_t granules, size_t size) {
    fa_level *level = fa_blocks_level_of(blocks, index);
    uint32_t had = fa_blocks_granules(blocks, index), end = index + had;
    size_t had_size = fa_blocks_size(blocks, index);
    if (granules > had) {
        if (blocks->quick != 0) flush_quick(blocks); /* what lies above may be free */
        if (end == blocks->cursor && is_top(blocks, level)) {
            if (blocks->granules - index < granules) return false;
            blocks->cursor = index + granules;
        } else {
            if (end >= level_end(blocks, level) || kind_at(blocks, end) != FREE) return false;
            uint32_t above = fa_blocks_granules(blocks, end);
            if (above < granules - had) return false;
            bin_remove(blocks, level, end);
            if (had + above > granules) bin_insert(blocks, level, index + granules, had + above - granules);
        }
    }
    set_live(blocks, index, granules, size);
    level->bytes = level->bytes - had_size + size;
    if (granules < had) give_range(blocks, level, index + granules, had - granules);
    return true;
}

/* ---- levels ---------------------------------------------------------------------------------------------------- */

fa_level *fa_blocks_push(fa_blocks *blocks, bool scope) {
    if (blocks->depth + 1 >= blocks->levels) return NULL;
    if (blocks->quick != 0) flush_quick(blocks);
    fa_level *level = &blocks->level[++blocks->depth];
    level->serial = ++blocks->serial;
    level->position = blocks->cursor;
    level->scope = scope;
    level->left = false;
    level->live = level->bytes = 0;
    return level;
}

fa_level *fa_blocks_find(const fa_blocks *blocks, fa_mark mark) {
    for (uint32_t depth = blocks->depth; depth > 0; depth--) {
        fa_level *level = &blocks->level[depth];
        if (level->serial <= mark.serial)
            return level->serial == mark.serial && level->position == mark.position ? level : NULL;
    }
    return NULL;
}

/* Empties the bins of a level, entries included: what is left behind would be believed after the cursor comes again. */
static void clear_level(fa_blocks *blocks, fa_level *level) {
    unsigned row = 0, step = 0;
    while (level->bins.rows != 0 && bin_next(&level->bins, &row, &step))
        bin_remove(blocks, level, level->bins.first[row][step] - 1);
    level->live = level->bytes = 0;
    level->left = false;
}

void fa_blocks_drop(fa_blocks *blocks, fa_level *level) {
    uint32_t depth = (uint32_t)(level - blocks->level);
    if (blocks->quick != 0) flush_quick(blocks);
    for (uint32_t index = level->position, granules; fa_blocks_next_live(blocks, &index); index += granules) {
        granules = fa_blocks_granules(blocks, index);
        *entry_at(blocks, index) = 0;
    }
    for (uint32_t above = blocks->depth; above > depth; above--) clear_level(blocks, &blocks->level[above]);
    clear_level(blocks, level);
    blocks->depth = depth;
    blocks->cursor = level->position;
}

void fa_blocks_pop_left(fa_blocks *blocks) {
    while (blocks->depth > 0) {
        fa_level *level = &blocks->level[blocks->depth];
        if (!level->left || level->live > 0) return;
        if (blocks->quick != 0) flush_quick(blocks); /* its last block was a fallback */
        /* Without live blocks the cursor has come down to the position and the bins are empty. */
        FA_ASSERT(blocks->cursor == level->position && level->bins.rows == 0);
        level->left = false;
        blocks->popped += level->scope;
        blocks->depth--;
        uint32_t start;
        fa_level *below = &blocks->level[blocks->depth];
        if (free_below(blocks, below, blocks->cursor, &start)) {
            bin_remove(blocks, below, start);
            blocks->cursor = start;
        }
    }
}

bool fa_blocks_reset(fa_blocks *blocks) {
    for (uint32_t depth = 0; depth <= blocks->depth; depth++) {
        fa_level *level = &blocks->level[depth];
        if (level->bins.rows != 0) memset(&level->bins, 0, sizeof level->bins);
        level->live = level->bytes = level->free = 0;
        level->left = false;
    }
    blocks->depth = blocks->cursor = 0;
    blocks->free = 0;
    if (blocks->quick != 0) memset(blocks->quick_first, 0, sizeof blocks->quick_first);
    blocks->quick = 0;
    blocks->epoch = (blocks->epoch + 1) & LOW_BITS(EPOCH_BITS);
    return blocks->epoch == 0;
}

void fa_blocks_each_free(fa_blocks *blocks, void (*visit)(void *context, uint32_t index, uint32_t granules),
                         void *context) {
    flush_quick(blocks);
    for (uint32_t depth = 0; depth <= blocks->depth; depth++) {
        const fa_bins *bins = &blocks->level[depth].bins;
        for (unsigned row = 0, step = 0; bins->rows != 0 && bin_next(bins, &row, &step); step++)
            for (uint32_t at = bins->first[row][step]; at != 0; at = link_at(blocks, at - 1)->next)
                visit(context, at - 1, fa_blocks_granules(blocks, at - 1));
    }
}

bool fa_blocks_each_part(const fa_blocks *blocks, uint32_t from, uint32_t to,
                         bool (*use)(void *context, void *array, size_t item_size, size_t from, size_t to), void *context) {
    size_t pages = blocks->pages, first = from >> blocks->page_log2, last = ((size_t)to >> blocks->page_log2) + 1;
    const size_t begin[] = {first, pages + first, 2 * pages + from};
    const size_t end[] = {fa_min(last, pages), pages + fa_min(last, pages), 2 * pages + to};
    for (size_t i = 0; i < 3; i++)
        if (!use(context, blocks->entry, sizeof *blocks->entry, begin[i], end[i]) ||
            !use(context, blocks->link, sizeof *blocks->link, begin[i], end[i]))
            return false;
    return true;
}

/* ---- for tests ------------------------------------------------------------------------------------------------- */

static bool bins_are_valid(const fa_blocks *blocks, const fa_level *level, uint64_t *binned) {
    for (unsigned row = 0; row < FA_BIN_ROWS; row++) {
        for (unsigned step = 0; step < FA_BIN_STEPS; step++) {
            uint32_t at = level->bins.first[row][step], prev = 0;
            if ((at != 0) != (level->bins.steps[row] >> step & 1)) return false;
            for (; at != 0; prev = at, at = link_at(blocks, at - 1)->next) {
                uint32_t index = at - 1, granules = fa_blocks_granules(blocks, index);
                unsigned own_row, own_step;
                class_of(granules, &own_row, &own_step);
                if (kind_at(blocks, index) != FREE || link_at(blocks, index)->prev != prev) return false;
                if (own_row != row || own_step != step) return false;
                *binned += granules;
            }
        }
        if ((level->bins.steps[row] != 0) != (level->bins.rows >> row & 1)) return false;
    }
    return true;
}

static bool quick_is_valid(const fa_blocks *blocks, uint64_t *quick) {
    *quick = 0;
    for (uint32_t granules = 1; granules <= FA_QUICK_MAX; granules++) {
        uint32_t at = blocks->quick_first[granules - 1];
        if ((at != 0) != (blocks->quick >> (granules - 1) & 1)) return false;
        for (; at != 0; at = link_at(blocks, at - 1)->next) {
            if (kind_at(blocks, at - 1) != QUICK || fa_blocks_granules(blocks, at - 1) != granules) return false;
            *quick += granules;
            if (*quick > blocks->free) return false;
        }
    }
    return true;
}

bool fa_blocks_is_valid(const fa_blocks *blocks) {
    uint64_t free_sum = 0, quick;
    if (!quick_is_valid(blocks, &quick)) return false;
    for (uint32_t depth = 0; depth <= blocks->depth; depth++) {
        const fa_level *level = &blocks->level[depth];
        uint64_t live = 0, bytes = 0, free = 0, quick_found = 0, binned = 0;
        uint32_t end = level_end(blocks, level), index = level->position;
        bool below_is_free = false;
        while (index < end) {
            enum kind kind = kind_at(blocks, index);
            uint32_t granules = fa_blocks_granules(blocks, index);
            if ((kind != LIVE && kind != FREE && kind != QUICK) || granules == 0 || granules > end - index) return false;
            if (kind == LIVE) {
                live++;
                bytes += fa_blocks_size(blocks, index);
            } else if (kind == QUICK) {
                quick_found += granules;
            } else {
                if (below_is_free) return false;
                if (granules > 1 && (kind_at(blocks, index + granules - 1) != FOOT ||
                                     fa_blocks_granules(blocks, index + granules - 1) != granules))
                    return false;
                free += granules;
            }
            below_is_free = kind == FREE;
            index += granules;
        }
        if (index != end || (below_is_free && depth == blocks->depth)) return false;
        if (!bins_are_valid(blocks, level, &binned) || binned != free || level->free != free + quick_found) return false;
        if (quick_found != (depth == blocks->depth ? quick : 0)) return false;
        /* Fallback blocks count as live in their level without lying in it. */
        if (level->live < live || level->bytes < bytes) return false;
        free_sum += free + quick_found;
    }
    return free_sum == blocks->free;
}
