/*
 * mem/blocks.h - which granules of a region are blocks, which are free, and where the next block goes
 *
 *     granules   | live  | free | live |  free    | live ||  not used yet ...
 *     entry[]     L . .   F  f   L      F . . f    L      ^ cursor
 *
 * Out of line: one 64-bit entry per granule says what starts (L, F) or ends (f) there. Blocks tile [0, cursor) without a
 * gap, no two in the bins are neighbours, and the one below the cursor is never in a bin. So a freed block finds its neighbours
 * in O(1), merges with them, and when the last live block goes the cursor is back at 0 without anybody counting.
 * Free blocks hang in bins by size class (two-level segregated fit: Masmano, Ripoll, Crespo, Real, "TLSF: a new
 * dynamic memory allocator for real-time systems", 2004).
 *
 * Quick lists: a small block of the top level that is not the newest is first kept as it is, in a list of its size, because
 * the next allocation most often wants the same size. Before the cursor moves up, and whenever a level comes or goes or has no
 * live block left, all of them become free as above. Each is given twice at the most: still O(1).
 *
 * Levels: a mark opens a level at the cursor. Each level has its own bins and its own part of the granules; allocation
 * takes from the top level only, free returns to the level of the address, merging stays inside a level. Dropping
 * levels is then all that a rewind does.
 *
 * Invariants (fa_blocks_is_valid recounts them): the tiling above; every free block is in the bins of its level, or quick and
 * of the top level; `free`, `live` and `bytes` of each level are the sums over its blocks; bins of unused levels are empty.
 * Thread rule: the owner's lock. Cost: O(1), the scan of a bin bounded by FA_BIN_SCAN.
 */
#ifndef FA_MEM_BLOCKS_H
#define FA_MEM_BLOCKS_H

#include "base.h"
#include "fastalloc.h"

/* Classes: eight steps to each power of two, so a block wastes at most 1/8 of a search; sizes up to 2^32 granules. */
#define FA_BIN_STEPS_LOG2 3
#define FA_BIN_STEPS (1U << FA_BIN_STEPS_LOG2)
#define FA_BIN_ROWS (32U - FA_BIN_STEPS_LOG2 + 1)
/* Entries of one bin looked at before the next larger class is taken. */
#define FA_BIN_SCAN 16
/* Nested marks and scopes, more than a recursion in Python is deep; one costs a kilobyte of address space, so there are
 * fewer where that is scarce. */
#define FA_MAX_LEVELS (SIZE_MAX > UINT32_MAX ? 4096U : 1024U)

/* Granules of the largest quick block: 4 KiB if a granule is a cache line. One bit of `quick` each. */
#define FA_QUICK_MAX 64U

/* The unit in which large blocks are laid out. */
#define FA_BLOCKS_PAGE_LOG2 12

typedef struct fa_bins {
    uint32_t rows;                                /* bit r: some bin of row r holds something */
    uint8_t steps[FA_BIN_ROWS];                   /* bit s: bin [r][s] holds something */
    uint32_t first[FA_BIN_ROWS][FA_BIN_STEPS];    /* granule + 1 of the newest free block; 0: none */
} fa_bins;

typedef struct fa_level {
    uint64_t serial;   /* unique in the arena's life; a mark is this and the position */
    uint32_t position; /* granule where it begins */
    bool scope;        /* opened by a scope: gone when it is left and its last block is freed */
    bool left;         /* the scope was left and waits for its blocks */
    uint64_t live;     /* blocks, fallback ones included */
    uint64_t bytes;    /* that they asked for */
    uint64_t free;     /* granules in the bins, and quick ones */
    fa_bins bins;
} fa_level;

typedef struct fa_link {
    uint32_t next, prev; /* granule + 1 of the neighbours in the bin; 0: none. Where a live block starts: the owner's */
} fa_link;

typedef struct fa_blocks {
    uint64_t *entry;     /* fa_blocks_slots() of them; zero pages where nothing ever was */
    fa_link *link;       /* likewise; meaningful where a block starts */
    fa_level *level;     /* FA_MAX_LEVELS of them; level[0] is the whole */
    uint32_t granules;   /* how far the entries and links may be used */
    uint32_t cursor;
    uint32_t depth;      /* of the top level */
    uint32_t levels;     /* how many may be used */
    uint32_t epoch;      /* entries of other epochs are of before a reset */
    unsigned shift;      /* log2 of the granule in bytes: at most 8, or that of a page */
    unsigned page_log2;  /* log2 of the granules in a page */
    uint32_t pages;      /* that begin in the capacity, and one */
    size_t phase;        /* base address modulo the largest alignment, in granules */
    uint64_t serial;     /* of the newest level */
    uint64_t free;       /* granules in all bins, and quick ones */
    uint64_t quick;      /* bit g - 1: there are quick blocks of g granules */
    uint32_t quick_first[FA_QUICK_MAX]; /* granule + 1 of the newest of g granules; 0: none */
    uint64_t popped;     /* scopes that ended with all their blocks gone */
} fa_blocks;

/*
 *     entry   63        32 31   19 18  16 15        0
 *             |  granules | slack | kind |   epoch   |
 *
 * An entry is believed only if it is of this epoch, so a reset forgets all of them at once. `slack` is what rounding added, so the
 * size asked for is known exactly. Where a block of the bins ends, of more than one granule, stands a `foot`: the block above it finds
 * its start there.
 */
#define FA_ENTRY_EPOCH_BITS 16
#define FA_ENTRY_KIND_SHIFT FA_ENTRY_EPOCH_BITS
#define FA_ENTRY_SLACK_SHIFT (FA_ENTRY_KIND_SHIFT + 3)
#define FA_ENTRY_SIZE_SHIFT 32
#define FA_BLOCKS_LIVE 1U /* the other kinds are in blocks.c */

/*
 * Where the entry (and the link) of a granule stands. Large blocks begin and end with pages, so the entries of granules that
 * begin or end a page stand together: a vector then touches metadata that is dense and soon resident, not a page of its own
 * for each place where it may come to lie.
 */
static inline size_t fa_blocks_slot(const fa_blocks *blocks, uint32_t index) {
    uint32_t last = (1U << blocks->page_log2) - 1, in_page = index & last, page = index >> blocks->page_log2;
    if (in_page == 0) return page;
    return in_page == last ? (size_t)blocks->pages + page : 2 * (size_t)blocks->pages + index;
}

static inline uint64_t fa_blocks_entry_of(const fa_blocks *blocks, unsigned kind, uint32_t granules, size_t slack) {
    return (uint64_t)granules << FA_ENTRY_SIZE_SHIFT | (uint64_t)slack << FA_ENTRY_SLACK_SHIFT |
           (uint64_t)kind << FA_ENTRY_KIND_SHIFT | blocks->epoch;
}

static inline size_t fa_blocks_size_in(const fa_blocks *blocks, uint64_t entry) {
    size_t slack = (uint32_t)entry >> FA_ENTRY_SLACK_SHIFT;
    return ((size_t)(entry >> FA_ENTRY_SIZE_SHIFT) << blocks->shift) - slack;
}

/* How many entries, and links, there have to be. */
size_t fa_blocks_slots(size_t capacity, unsigned shift);

/* `entry`, `link` and `level` are zero memory of the sizes below; the base of the region is `base`. Where memory is committed as it
 * is used the owner then lowers `granules` and `levels` to what is, and raises them later. */
void fa_blocks_init(fa_blocks *blocks, uint64_t *entry, fa_link *link, fa_level *level, size_t capacity,
                    unsigned shift, const void *base);

/* A live block of `granules`, aligned to `alignment` granules (a power of two), that was asked for with `size` bytes. */
bool fa_blocks_take(fa_blocks *blocks, uint32_t granules, size_t alignment, size_t size, uint32_t *index);

/* A live block; `entry` is where blocks.c keeps it. */
typedef struct fa_block_found {
    uint64_t *entry;
    uint32_t index, granules;
    size_t size; /* asked for */
} fa_block_found;

/* FA_ERR_CORRUPT unless a live block starts at the byte offset. */
static inline fa_status fa_blocks_look(const fa_blocks *blocks, size_t offset, fa_block_found *found) {
    size_t index = offset >> blocks->shift;
    if (FA_UNLIKELY(index << blocks->shift != offset || index >= blocks->cursor)) return FA_ERR_CORRUPT;
    uint64_t *place = &blocks->entry[fa_blocks_slot(blocks, (uint32_t)index)], entry = *place;
    uint32_t live = FA_BLOCKS_LIVE << FA_ENTRY_KIND_SHIFT | blocks->epoch;
    if (FA_UNLIKELY((entry & (((uint64_t)1 << FA_ENTRY_SLACK_SHIFT) - 1)) != live)) return FA_ERR_CORRUPT;
    *found = (fa_block_found){place, (uint32_t)index, (uint32_t)(entry >> FA_ENTRY_SIZE_SHIFT), fa_blocks_size_in(blocks, entry)};
    return FA_OK;
}

static inline fa_status fa_blocks_check(const fa_blocks *blocks, size_t offset) {
    fa_block_found found;
    return fa_blocks_look(blocks, offset, &found);
}

/* Of a live block: its granules, and the bytes it was asked for with. */
uint32_t fa_blocks_granules(const fa_blocks *blocks, uint32_t index);
size_t fa_blocks_size(const fa_blocks *blocks, uint32_t index);

/* Two words for the owner of a live block; undefined after fa_blocks_take. */
fa_link *fa_blocks_note(const fa_blocks *blocks, uint32_t index);

/* Moves *index, where a block starts or the cursor is, to the first live block from there on; false if there is none. */
bool fa_blocks_next_live(const fa_blocks *blocks, uint32_t *index);

/* Takes the newest quick block of `granules`, of which there is one at `slot`, out of its list. */
static inline void fa_blocks_pop_quick(fa_blocks *blocks, fa_level *level, uint32_t granules, size_t slot) {
    uint32_t next = blocks->link[slot].next;
    blocks->quick_first[granules - 1] = next;
    if (next == 0) blocks->quick &= ~(UINT64_C(1) << (granules - 1));
    level->free -= granules;
    blocks->free -= granules;
}

/*
 * The usual case of fa_blocks_take, a small block that needs no alignment: one of its size that was freed, else at the
 * cursor if nothing is free. False, and nothing is done, if it is not so simple or the block would not end by `limit`.
 */
static inline bool fa_blocks_take_small(fa_blocks *blocks, uint32_t granules, size_t size, uint32_t limit, uint32_t *index) {
    fa_level *level = &blocks->level[blocks->depth];
    bool quick = blocks->quick >> (granules - 1) & 1;
    *index = quick ? blocks->quick_first[granules - 1] - 1 : blocks->cursor;
    if (FA_UNLIKELY(*index + (uint64_t)granules > fa_min(limit, blocks->granules))) return false;
    size_t slot = fa_blocks_slot(blocks, *index);
    if (quick) fa_blocks_pop_quick(blocks, level, granules, slot);
    else if (level->bins.rows != 0 || blocks->quick != 0) return false;
    else blocks->cursor = *index + granules;
    blocks->entry[slot] = fa_blocks_entry_of(blocks, FA_BLOCKS_LIVE, granules, ((size_t)granules << blocks->shift) - size);
    level->live++;
    level->bytes += size;
    return true;
}

/* Frees a live block. */
void fa_blocks_give(fa_blocks *blocks, uint32_t index);
void fa_blocks_give_found(fa_blocks *blocks, const fa_block_found *block);

/* Changes a live block where it stands: shrinking always can, growing takes free granules right above. */
bool fa_blocks_resize(fa_blocks *blocks, uint32_t index, uint32_t granules, size_t size);

/* The level in which the granule lies. */
fa_level *fa_blocks_level_of(fa_blocks *blocks, uint32_t index);

/* Opens a level at the cursor; null if there are `levels` of them. */
fa_level *fa_blocks_push(fa_blocks *blocks, bool scope);

/* The level of a mark, or null if it is stale. */
fa_level *fa_blocks_find(const fa_blocks *blocks, fa_mark mark);

/* Drops everything from `level` on, which stays open, empty. O(1) and the blocks dropped, free ones and live ones: what is left
 * of them would be believed inside the next block. */
void fa_blocks_drop(fa_blocks *blocks, fa_level *level);

/* Removes the levels on top whose scopes were left and whose last block is gone. */
void fa_blocks_pop_left(fa_blocks *blocks);

/* Drops everything. O(levels); true if the epochs came round and the owner must make all entries zero now. */
bool fa_blocks_reset(fa_blocks *blocks);

/* Calls `visit` for every free block; for trim. O(free blocks). */
void fa_blocks_each_free(fa_blocks *blocks, void (*visit)(void *context, uint32_t index, uint32_t granules),
                         void *context);

/* Calls `use` for each array's items that granules [from, to) need: the entries and links of a granule stand at its slot. */
bool fa_blocks_each_part(const fa_blocks *blocks, uint32_t from, uint32_t to,
                         bool (*use)(void *context, void *array, size_t item_size, size_t from, size_t to), void *context);

bool fa_blocks_is_valid(const fa_blocks *blocks);

#endif
