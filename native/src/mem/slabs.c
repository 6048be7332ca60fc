/*
 * mem/slabs.c - the cold half of slabs.h: the range, new slabs, empty slabs
 *
 *     fresh span --> slab with room <--> full slab            magazine <--> slabs with room, half a magazine at a time
 *                        |  ^
 *                 empty  v  |  any class
 *                  span without a slab --> trimmed
 *
 * The range is reserved when the first slab is needed and is address space until touched. Where so much cannot be had, less
 * is taken; where nothing can, there are no slabs and the owner does without. Invariants, thread rule, cost: see slabs.h.
 */
#include "slabs.h"

#include "region.h"

#include <string.h>

/* 4 GiB of blocks where addresses are plenty, 16 MiB where they are not; an eighth if that is refused. */
#define RANGE (SIZE_MAX > UINT32_MAX ? (size_t)((uint64_t)4 << 30) : (size_t)16 << 20)
/* Spans that are committed at once where that does not come by itself. */
#define COMMIT_SPANS 16U
#define RANGE_RETRY 8
/* A heap that has filled one huge page's worth of spans takes huge pages from then on: few faults, and little to lose. */
#define HUGE_PAGE ((size_t)2 << 20)
#define HUGE_FROM (HUGE_PAGE >> FA_SPAN_LOG2)

void fa_slabs_init(fa_slabs *slabs, size_t front) {
    *slabs = (fa_slabs){0};
    for (uint32_t class = 0; class < FA_SLAB_CLASSES; class++) {
        size_t size = fa_slab_size(class);
        fa_divisor divisor = fa_divisor_of(size);
        slabs->kind[class] = (fa_slab_kind){.inverse = divisor.inverse,
                                            .size = (uint16_t)size,
                                            .lead = (uint16_t)(front == 0 ? 0 : (size & -size) - front),
                                            .shift = (uint8_t)divisor.shift,
                                            .magazine = (uint8_t)fa_min(FA_MAGAZINE, FA_SPAN / size)};
    }
}

static bool reserve_range(fa_slabs *slabs, const fa_os *os, size_t bytes) {
    uint32_t spans = (uint32_t)(bytes >> FA_SPAN_LOG2);
    size_t stacks = bytes, sizes = stacks + spans * FA_SPAN_BLOCKS * sizeof(uint32_t);
    size_t table = sizes + spans * FA_SPAN_BLOCKS * sizeof(uint16_t), size;
    void *address;
    size_t classes = table + spans * sizeof(fa_slab);
    if (!fa_align_up(classes + spans, os->page_size(), &size)) return false;
    if (os->reserve(size, HUGE_PAGE, &address) != 0) return false;
    if (os->lazy_commit && os->commit(address, size) != 0) {
        (void)os->release(address, size);
        return false;
    }
    slabs->base = address;
    slabs->bytes = os->lazy_commit ? bytes : 0;
    slabs->stacks = (uint32_t *)(void *)(slabs->base + stacks);
    slabs->sizes = (uint16_t *)(void *)(slabs->base + sizes);
    slabs->slab = (fa_slab *)(void *)(slabs->base + table);
    slabs->classes = slabs->base + classes;
    slabs->spans = spans;
    slabs->reserved = address;
    slabs->reserved_size = size;
    return true;
}

void fa_slabs_destroy(fa_slabs *slabs, const fa_os *os) {
    for (uint32_t span = 0; span < slabs->fresh; span++) fa_pool_wipe(&slabs->slab[span].pool);
    if (slabs->reserved != NULL) (void)os->release(slabs->reserved, slabs->reserved_size);
    fa_slabs_init(slabs, 0);
}

static void link_first(fa_slabs *slabs, uint32_t *first, fa_slab *slab) {
    uint32_t number = (uint32_t)(slab - slabs->slab) + 1;
    slab->prev = 0;
    slab->next = *first;
    if (*first != 0) slabs->slab[*first - 1].prev = number;
    *first = number;
}

static void unlink_from(fa_slabs *slabs, uint32_t *first, fa_slab *slab) {
    if (slab->next != 0) slabs->slab[slab->next - 1].prev = slab->prev;
    if (slab->prev != 0) slabs->slab[slab->prev - 1].next = slab->next;
    else *first = slab->next;
    slab->next = slab->prev = 0;
}

/* More of the range may be used. */
FA_COLD static bool commit_spans(fa_slabs *slabs, const fa_os *os) {
    size_t from = slabs->fresh, to = fa_min(from + COMMIT_SPANS, slabs->spans);
    if (from == to || !fa_commit_items(os, slabs->base, FA_SPAN, from, to) ||
        !fa_commit_items(os, slabs->stacks, FA_SPAN_BLOCKS * sizeof *slabs->stacks, from, to) ||
        !fa_commit_items(os, slabs->sizes, FA_SPAN_BLOCKS * sizeof *slabs->sizes, from, to) ||
        !fa_commit_items(os, slabs->slab, sizeof *slabs->slab, from, to) ||
        !fa_commit_items(os, slabs->classes, sizeof *slabs->classes, from, to))
        return false;
    slabs->bytes = to << FA_SPAN_LOG2;
    return true;
}

/* A span without a slab: one still resident, else one that was trimmed, else a fresh one. */
static fa_slab *find_span(fa_slabs *slabs, const fa_os *os) {
    uint32_t *list = slabs->empty != 0 ? &slabs->empty : &slabs->trimmed;
    fa_slab *slab;
    if (*list != 0) {
        slab = &slabs->slab[*list - 1];
        if (list == &slabs->trimmed) slabs->resident++;
        unlink_from(slabs, list, slab);
        return slab;
    }
    if ((size_t)slabs->fresh << FA_SPAN_LOG2 == slabs->bytes && !commit_spans(slabs, os)) return NULL;
    if (slabs->fresh == HUGE_FROM) (void)os->advise_huge(slabs->base + HUGE_PAGE, slabs->bytes - HUGE_PAGE); /* a hint */
    slabs->resident++;
    return &slabs->slab[slabs->fresh++];
}

/* A new slab of the class, or null. */
static fa_slab *make_slab(fa_slabs *slabs, const fa_os *os, uint32_t class) {
    if (slabs->reserved == NULL) {
        if (!slabs->failed && !reserve_range(slabs, os, RANGE) && !reserve_range(slabs, os, RANGE / RANGE_RETRY))
            slabs->failed = true;
        if (slabs->failed) return NULL;
    }
    fa_slab *slab = find_span(slabs, os);
    if (slab == NULL) return NULL;
    size_t span = (size_t)(slab - slabs->slab), block_size = fa_slab_size(class), lead = slabs->kind[class].lead;
    fa_pool_init(&slab->pool, block_size, (FA_SPAN - lead) / block_size, slabs->base + (span << FA_SPAN_LOG2) + lead,
                 slabs->sizes + span * FA_SPAN_BLOCKS, slabs->stacks + span * FA_SPAN_BLOCKS);
    slab->class = class;
    slabs->classes[span] = (uint8_t)class;
    link_first(slabs, &slabs->partial[class], slab);
    return slab;
}

FA_APART bool fa_slabs_refill(fa_slabs *slabs, const fa_os *os, uint32_t class) {
    fa_slab *slab = slabs->partial[class] != 0 ? &slabs->slab[slabs->partial[class] - 1] : make_slab(slabs, os, class);
    if (slab == NULL) return false;
    fa_pool *pool = &slab->pool;
    fa_magazine *magazine = &slabs->magazine[class];
    uint32_t first = (uint32_t)((size_t)(slab - slabs->slab) << FA_SPAN_BLOCKS_LOG2);
    uint32_t count = slabs->kind[class].magazine / 2U, there = pool->stacked + (pool->count - pool->used);
    if (count > there) count = there;
    /* The first that the slab gives is the first that is handed out. */
    for (uint32_t i = count; i-- > 0;)
        magazine->number[i] = first + (pool->stacked > 0 ? pool->stack[--pool->stacked] : pool->used++);
    magazine->count = count;
    if (fa_pool_is_full(pool)) unlink_from(slabs, &slabs->partial[class], slab);
    return true;
}

/* A slab that was full is in the list again; one that is empty is given up. */
static void settle(fa_slabs *slabs, fa_slab *slab, bool was_full) {
    uint32_t *first = &slabs->partial[slab->class];
    if (was_full) link_first(slabs, first, slab);
    /* The last slab of a class stays, or a program at its edge would make and give up a slab with every magazine. */
    bool only = slab->next == 0 && slab->prev == 0;
    if (FA_LIKELY(fa_pool_live(&slab->pool) > 0 || only)) return;
    unlink_from(slabs, first, slab);
    slab->pool = (fa_pool){0};
    link_first(slabs, &slabs->empty, slab);
    slabs->emptied++;
}

/* Blocks of a magazine go back to their slabs; neighbours often to the same. */
static void put_back_oldest(fa_slabs *slabs, uint32_t class, uint32_t count) {
    fa_magazine *magazine = &slabs->magazine[class];
    const uint32_t *number = magazine->number, *end = number + count;
    while (number < end) {
        const uint32_t span = *number >> FA_SPAN_BLOCKS_LOG2;
        fa_slab *slab = &slabs->slab[span];
        fa_pool *pool = &slab->pool;
        bool was_full = fa_pool_is_full(pool);
        do pool->stack[pool->stacked++] = *number & (FA_SPAN_BLOCKS - 1);
        while (++number < end && *number >> FA_SPAN_BLOCKS_LOG2 == span);
        settle(slabs, slab, was_full);
    }
    magazine->count -= count;
    memmove(magazine->number, end, magazine->count * sizeof *magazine->number);
}

FA_APART void fa_slabs_spill(fa_slabs *slabs, uint32_t class) {
    put_back_oldest(slabs, class, (slabs->magazine[class].count + 1) / 2);
}

fa_status fa_slabs_trim(fa_slabs *slabs, const fa_os *os, size_t keep) {
    fa_status status = FA_OK;
    for (uint32_t class = 0; class < FA_SLAB_CLASSES; class++)
        put_back_oldest(slabs, class, slabs->magazine[class].count);
    uint32_t number = slabs->empty;
    while (number != 0) {
        fa_slab *slab = &slabs->slab[number - 1];
        size_t span = number - 1;
        number = slab->next;
        if (keep >= FA_SPAN) {
            keep -= FA_SPAN;
            continue;
        }
        if (os->decommit(slabs->base + (span << FA_SPAN_LOG2), FA_SPAN) != 0) {
            status = FA_ERR_UNSUPPORTED;
            continue;
        }
        unlink_from(slabs, &slabs->empty, slab);
        link_first(slabs, &slabs->trimmed, slab);
        slabs->resident--;
    }
    return status;
}

static bool list_is_valid(const fa_slabs *slabs, uint32_t number, uint32_t class, uint32_t *length) {
    for (uint32_t prev = 0; number != 0; prev = number, number = slabs->slab[number - 1].next, (*length)++) {
        const fa_slab *slab = &slabs->slab[number - 1];
        bool listed = class == FA_SLAB_CLASSES ? slab->pool.count == 0
                                               : slab->class == class && !fa_pool_is_full(&slab->pool);
        if (!listed || slab->prev != prev || *length > slabs->spans) return false;
    }
    return true;
}

/* Blocks that are neither live nor on the slab's stack are in the magazine of its class. */
static bool slab_is_valid(const fa_slabs *slabs, uint32_t span) {
    const fa_slab *slab = &slabs->slab[span];
    const fa_pool *pool = &slab->pool;
    if (pool->block_size != fa_slab_size(slab->class) || slabs->classes[span] != slab->class) return false;
    const fa_magazine *magazine = &slabs->magazine[slab->class];
    uint32_t waiting = 0;
    for (uint32_t i = 0; i < magazine->count; i++) {
        const uint32_t number = magazine->number[i];
        if (number >> FA_SPAN_BLOCKS_LOG2 != span) continue;
        if ((number & (FA_SPAN_BLOCKS - 1)) >= pool->used || slabs->sizes[number] != 0) return false;
        waiting++;
    }
    return fa_pool_is_valid(pool, waiting);
}

bool fa_slabs_are_valid(const fa_slabs *slabs) {
    uint32_t listed = 0, full = 0;
    for (uint32_t class = 0; class < FA_SLAB_CLASSES; class++) {
        if (!list_is_valid(slabs, slabs->partial[class], class, &listed)) return false;
        if (slabs->magazine[class].count > slabs->kind[class].magazine) return false;
    }
    if (!list_is_valid(slabs, slabs->empty, FA_SLAB_CLASSES, &listed)) return false;
    if (!list_is_valid(slabs, slabs->trimmed, FA_SLAB_CLASSES, &listed)) return false;
    for (uint32_t span = 0; span < slabs->fresh; span++) {
        if (slabs->slab[span].pool.count == 0) continue;
        if (!slab_is_valid(slabs, span)) return false;
        full += fa_pool_is_full(&slabs->slab[span].pool);
    }
    return listed + full == slabs->fresh;
}
