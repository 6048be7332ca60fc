/*
 * heap/array_heap.c - the heap behind fastalloc.install()
 *
 *     range      | span 0: 64 B blocks | span 1: 1 KiB | span 2: 64 B | not used yet ...
 *     state      | 1 0 1 1 0 ...                 one byte per unit: class + 1 where a live block begins
 *     next       | . 7 . . 3 ...                 one link per unit: the free blocks of a span
 *     stack      blocks of a class that are not live, ready to be handed out; their span counts them as taken
 *
 * The hot path is a pop and a store, or a load, a store and a push. All that is known of a block is out of line: a double
 * free and a pointer into the middle are found by one look at `state`. Behind the stacks, a span counts its taken blocks; an
 * empty one serves any class next, and gives its pages back after the decay.
 *
 * Invariants: state is 0 but where a live block begins; a span is in the list of its class exactly if it has room; large_live
 * and cache.bytes are the sums of their blocks. Thread rule and promises: array_heap.h. Cost: O(1), a large one a scan of the
 * cache.
 */
#include "array_heap.h"

#include "mem/base.h"
#include "mem/cache.h"
#include "mem/region.h"
#include "mem/table.h"
#include "os/os.h"

#include <string.h>

#define ALIGNMENT_LOG2 6
#define LINEAR_MAX ((size_t)1 << 10) /* classes in steps of 64 bytes up to here, then four to each power of two */
#define LINEAR_CLASSES (uint32_t)(LINEAR_MAX >> ALIGNMENT_LOG2)
#define SMALL_MAX ((size_t)8 << 10)
#define MEDIUM_MAX ((size_t)256 << 10)
#define SMALL_CLASSES (LINEAR_CLASSES + 3 * 4)
#define CLASSES (SMALL_CLASSES + 5 * 4)
#define STACK_MAX 64U
/* What a stack may hold in bytes, once it is more than four blocks. */
#define STACK_BYTES ((size_t)256 << 10)
#define STACK_MIN 4U

#define HUGE_PAGE ((size_t)2 << 20)
#define LARGE_STEPS_LOG2 3
#define WHOLE_HUGE_PAGES ((size_t)8 << 20)
#define MAX_LARGE ((size_t)1 << (sizeof(size_t) * 8 - 2))
/* Zeros from here on come from pages that are not there yet, as a large calloc of the C library's. Below, the pages are kept. */
#define LAZY_ZEROS ((size_t)32 << 20)
/* Cached large blocks may make the process this much larger than its arrays alone have been. */
#define SPARE_PART 8
#define SPARE_BYTES ((size_t)16 << 20)
/* What is committed at once where that does not come by itself. */
#define COMMIT_BYTES ((size_t)1 << 20)
/* How often, in parts of the decay, old memory is looked for. */
#define TRIM_PARTS 8

typedef struct stack {
    uint32_t count, limit;
    void *block[STACK_MAX];
} stack;

typedef struct span {
    uint32_t free;       /* unit + 1 of the first free block below `carved` */
    uint32_t carved;     /* blocks that were ever taken since the span got its class */
    uint32_t taken;
    uint32_t next, prev; /* span + 1 in its list */
    uint32_t class;      /* CLASSES: none */
    uint64_t emptied_at; /* milliseconds */
} span;

typedef struct range {
    unsigned char *base;
    size_t bytes;        /* that may be used; 0: there are none */
    uint8_t *state;
    uint32_t *next;
    span *spans;
    size_t reserved;
    uint32_t count, fresh; /* spans in all; those that ever had a class */
    uint32_t empty, trimmed; /* span + 1 of the first without a class: resident, or given back */
    unsigned unit_log2, span_log2;
} range;

struct fa_array_heap {
    stack stacks[CLASSES];
    range small, medium;
    uint32_t partial[CLASSES];
    uint64_t taken[CLASSES]; /* by the stack or by arrays */
    const fa_os *os;
    bool huge_pages;
    uint32_t decay;
    uint64_t trimmed_at, period_at;
    void (*on_spare)(void);
    fa_table table; /* large blocks: their room */
    uint64_t large_live;
    uint64_t period_peak, last_peak; /* of large_live, in this period of the decay and the one before */
    uint64_t peak, large, cache_hits, moved, fallbacks;
    fa_cache cache;
};

/* ---- classes ------------------------------------------------------------------------------------------------------ */

static inline uint32_t class_of(size_t size) {
    if (FA_LIKELY(size <= LINEAR_MAX)) return (uint32_t)((size - (size != 0)) >> ALIGNMENT_LOG2);
    unsigned top = fa_log2(size - 1); /* 10 for 1025 .. 2048 */
    return LINEAR_CLASSES + (top - 10) * 4 + (uint32_t)((size - 1) >> (top - 2) & 3);
}

static size_t class_size(uint32_t class) {
    if (class < LINEAR_CLASSES) return ((size_t)class + 1) << ALIGNMENT_LOG2;
    class -= LINEAR_CLASSES;
    return (size_t)(5 + class % 4) << (8 + class / 4);
}

static range *range_of(fa_array_heap *heap, uint32_t class) {
    return class < SMALL_CLASSES ? &heap->small : &heap->medium;
}

/* ---- spans -------------------------------------------------------------------------------------------------------- */

static void link_first(range *in, uint32_t *first, span *linked) {
    uint32_t number = (uint32_t)(linked - in->spans) + 1;
    linked->prev = 0;
    linked->next = *first;
    if (*first != 0) in->spans[*first - 1].prev = number;
    *first = number;
}

static void unlink_from(range *in, uint32_t *first, span *linked) {
    if (linked->next != 0) in->spans[linked->next - 1].prev = linked->prev;
    if (linked->prev != 0) in->spans[linked->prev - 1].next = linked->next;
    else *first = linked->next;
    linked->next = linked->prev = 0;
}

static bool reserve(range *made, const fa_os *os, size_t bytes, unsigned unit_log2, unsigned span_log2) {
    size_t units = bytes >> unit_log2, spans = bytes >> span_log2, size;
    size_t next = bytes, meta = next + units * sizeof(uint32_t), state = meta + spans * sizeof(span);
    void *address;
    if (!fa_align_up(state + units, os->page_size(), &size) || os->reserve(size, HUGE_PAGE, &address) != 0) return false;
    if (os->lazy_commit && os->commit(address, size) != 0) {
        (void)os->release(address, size);
        return false;
    }
    unsigned char *base = address;
    *made = (range){.base = base,
                    .bytes = os->lazy_commit ? bytes : 0,
                    .state = base + state,
                    .next = (uint32_t *)(void *)(base + next),
                    .spans = (span *)(void *)(base + meta),
                    .reserved = size,
                    .count = (uint32_t)spans,
                    .unit_log2 = unit_log2,
                    .span_log2 = span_log2};
    return true;
}

/* More of the range may be used, where memory is committed as it is used. */
FA_COLD static bool commit_spans(const fa_os *os, range *in) {
    size_t step = fa_max(COMMIT_BYTES >> in->span_log2, 1), from = in->fresh, to = fa_min(from + step, in->count);
    unsigned units_log2 = in->span_log2 - in->unit_log2;
    if (from == to || !fa_commit_items(os, in->base, (size_t)1 << in->span_log2, from, to) ||
        !fa_commit_items(os, in->next, sizeof *in->next << units_log2, from, to) ||
        !fa_commit_items(os, in->state, sizeof *in->state << units_log2, from, to) ||
        !fa_commit_items(os, in->spans, sizeof *in->spans, from, to))
        return false;
    in->bytes = to << in->span_log2;
    return true;
}

static span *find_span(fa_array_heap *heap, range *in) {
    uint32_t *list = in->empty != 0 ? &in->empty : &in->trimmed;
    if (*list != 0) {
        span *found = &in->spans[*list - 1];
        unlink_from(in, list, found);
        return found;
    }
    if ((size_t)in->fresh << in->span_log2 == in->bytes && !commit_spans(heap->os, in)) return NULL;
    /* A process that has filled one huge page takes huge pages from then on. */
    size_t at = (size_t)in->fresh << in->span_log2;
    if (heap->huge_pages && at % HUGE_PAGE == 0 && at > 0)
        (void)heap->os->advise_huge(in->base + at, fa_min(fa_max(HUGE_PAGE, (size_t)1 << in->span_log2), in->bytes - at));
    return &in->spans[in->fresh++];
}

static void *take_block(fa_array_heap *heap, uint32_t class) {
    range *in = range_of(heap, class);
    size_t size = class_size(class);
    if (heap->partial[class] == 0) {
        span *found = find_span(heap, in);
        if (found == NULL) return NULL;
        *found = (span){.class = class};
        link_first(in, &heap->partial[class], found);
    }
    span *from = &in->spans[heap->partial[class] - 1];
    size_t start = (size_t)(from - in->spans) << in->span_log2, offset;
    if (from->free != 0) {
        offset = (size_t)(from->free - 1) << in->unit_log2;
        from->free = in->next[from->free - 1];
    } else {
        offset = start + from->carved++ * size;
    }
    from->taken++;
    heap->taken[class]++;
    if (from->free == 0 && (from->carved + 1) * size > (size_t)1 << in->span_log2)
        unlink_from(in, &heap->partial[class], from);
    return in->base + offset;
}

static void give_block(fa_array_heap *heap, uint32_t class, void *block) {
    range *in = range_of(heap, class);
    size_t offset = (size_t)((unsigned char *)block - in->base), size = class_size(class);
    span *to = &in->spans[offset >> in->span_log2];
    bool was_full = to->free == 0 && (to->carved + 1) * size > (size_t)1 << in->span_log2;
    in->next[offset >> in->unit_log2] = to->free;
    to->free = (uint32_t)(offset >> in->unit_log2) + 1;
    to->taken--;
    heap->taken[class]--;
    if (was_full) link_first(in, &heap->partial[class], to);
    if (to->taken > 0 || (to->next == 0 && to->prev == 0)) return; /* the last span of a class stays */
    unlink_from(in, &heap->partial[class], to);
    to->class = CLASSES;
    to->emptied_at = heap->os->milliseconds();
    link_first(in, &in->empty, to);
    if (heap->on_spare != NULL) heap->on_spare();
}

/* ---- stacks ------------------------------------------------------------------------------------------------------- */

static uint64_t small_used(const fa_array_heap *heap, uint64_t *blocks) {
    uint64_t used = 0;
    *blocks = 0;
    for (uint32_t class = 0; class < CLASSES; class++) {
        uint64_t live = heap->taken[class] - heap->stacks[class].count;
        *blocks += live;
        used += live * class_size(class);
    }
    return used;
}

static void note_peak(fa_array_heap *heap) {
    uint64_t blocks, used = small_used(heap, &blocks) + heap->large_live;
    if (used > heap->peak) heap->peak = used;
}

static void trim_now_and_then(fa_array_heap *heap) {
    uint64_t now = heap->os->milliseconds();
    if (heap->decay != 0 && now - heap->trimmed_at >= heap->decay / TRIM_PARTS + 1) fa_array_heap_trim(heap, false);
}

FA_COLD static void *refill(fa_array_heap *heap, uint32_t class) {
    stack *own = &heap->stacks[class];
    while (own->count < (own->limit + 1) / 2) {
        void *block = take_block(heap, class);
        if (block == NULL) break;
        own->block[own->count++] = block;
    }
    if (own->count == 0) return NULL;
    void *block = own->block[--own->count];
    note_peak(heap);
    trim_now_and_then(heap);
    return block;
}

/* Gives the half that has not been used for longest back to the spans. */
static void flush(fa_array_heap *heap, uint32_t class, uint32_t keep) {
    stack *own = &heap->stacks[class];
    uint32_t gone = own->count > keep ? own->count - keep : 0;
    void *blocks[STACK_MAX];
    memcpy(blocks, own->block, gone * sizeof *blocks);
    own->count -= gone;
    memmove(own->block, own->block + gone, own->count * sizeof *own->block);
    for (uint32_t i = 0; i < gone; i++) give_block(heap, class, blocks[i]);
}

FA_COLD static void flush_half(fa_array_heap *heap, uint32_t class) {
    flush(heap, class, heap->stacks[class].limit / 2);
    trim_now_and_then(heap);
}

static inline void *take(fa_array_heap *heap, range *in, size_t size) {
    uint32_t class = class_of(size);
    stack *own = &heap->stacks[class];
    void *block = FA_LIKELY(own->count > 0) ? own->block[--own->count] : refill(heap, class);
    if (FA_UNLIKELY(block == NULL)) return NULL;
    in->state[(size_t)((unsigned char *)block - in->base) >> in->unit_log2] = (uint8_t)(class + 1);
    return block;
}

static inline fa_status give(fa_array_heap *heap, range *in, unsigned unit_log2, void *block) {
    size_t offset = (size_t)((unsigned char *)block - in->base);
    uint8_t *state = &in->state[offset >> unit_log2];
    if (FA_UNLIKELY(*state == 0 || (offset & (((size_t)1 << unit_log2) - 1)) != 0)) return FA_ERR_CORRUPT;
    uint32_t class = *state - 1U;
    stack *own = &heap->stacks[class];
    *state = 0;
    if (FA_UNLIKELY(own->count == own->limit)) flush_half(heap, class);
    own->block[own->count++] = block;
    return FA_OK;
}

static inline bool in_range(const range *in, const void *pointer) {
    return (uintptr_t)pointer - (uintptr_t)in->base < in->bytes;
}

/* ---- large blocks ------------------------------------------------------------------------------------------------- */

/* Whole huge pages once that wastes little, so that cut and joined blocks keep them; less than an eighth below. */
static size_t large_room(const fa_array_heap *heap, size_t size) {
    if (size > MAX_LARGE) return 0;
    size_t step = size >= WHOLE_HUGE_PAGES ? HUGE_PAGE : (size_t)1 << (fa_log2(size - 1) - LARGE_STEPS_LOG2), room;
    return fa_align_up(size, fa_max(step, heap->os->page_size()), &room) ? room : 0;
}

static void release_evicted(const fa_array_heap *heap, const fa_evicted *evicted) {
    for (uint32_t i = 0; i < evicted->count; i++)
        (void)heap->os->release(evicted->entry[i].address, evicted->entry[i].size);
}

static void purge(fa_array_heap *heap, uint64_t now, size_t keep) {
    fa_evicted evicted;
    evicted.count = 0;
    fa_cache_purge(&heap->cache, now, keep, &evicted);
    release_evicted(heap, &evicted);
}

/* Before more is mapped: live and cached together stay near what the arrays alone needed at their peak. */
static void make_way(fa_array_heap *heap, size_t room) {
    uint64_t peak = heap->period_peak > heap->last_peak ? heap->period_peak : heap->last_peak;
    uint64_t spare = peak / SPARE_PART > SPARE_BYTES ? peak / SPARE_PART : SPARE_BYTES;
    uint64_t bound = peak + spare, need = heap->large_live + room;
    size_t keep = bound > need ? (size_t)(bound - need) : 0, excess;
    fa_cached tail;
    while (heap->cache.bytes > keep) {
        if (!fa_align_up(heap->cache.bytes - keep, HUGE_PAGE, &excess) || !fa_cache_shrink(&heap->cache, excess, &tail)) {
            fa_evicted evicted;
            evicted.count = 0;
            fa_cache_purge(&heap->cache, heap->os->milliseconds(), heap->cache.bytes - 1, &evicted);
            release_evicted(heap, &evicted);
        } else {
            (void)heap->os->release(tail.address, tail.size);
        }
    }
}

static void *map_large(fa_array_heap *heap, size_t room) {
    const fa_os *os = heap->os;
    void *block;
    bool huge = heap->huge_pages && room >= HUGE_PAGE;
    if (os->reserve(room, huge ? HUGE_PAGE : os->page_size(), &block) != 0) return NULL;
    if (os->commit(block, room) != 0) {
        (void)os->release(block, room);
        return NULL;
    }
    if (huge) (void)os->advise_huge(block, fa_align_down(room, HUGE_PAGE)); /* a hint */
    return block;
}

static void enter_large(fa_array_heap *heap, size_t room) {
    heap->large_live += room;
    if (heap->large_live > heap->period_peak) heap->period_peak = heap->large_live;
    note_peak(heap);
}

static void *alloc_large(fa_array_heap *heap, size_t size, bool zeroed) {
    size_t room = large_room(heap, size);
    if (room == 0) return NULL;
    trim_now_and_then(heap);
    fa_cached found = {.address = NULL, .size = room};
    bool hit = fa_cache_take(&heap->cache, room, heap->os->page_size(), &found) ||
               fa_cache_cut(&heap->cache, room, &found);
    if (!hit) {
        make_way(heap, room);
        found.address = map_large(heap, room);
    } else if (zeroed) {
        if (size < LAZY_ZEROS || heap->os->decommit(found.address, found.size) != 0) memset(found.address, 0, size);
    }
    if (found.address == NULL) return NULL;
    if (!fa_table_insert(&heap->table, heap->os, found.address, found.size)) {
        (void)heap->os->release(found.address, found.size);
        return NULL;
    }
    heap->large++;
    heap->cache_hits += hit;
    enter_large(heap, found.size);
    return found.address;
}

FA_COLD static fa_status free_large(fa_array_heap *heap, void *block) {
    fa_slot *slot = fa_table_find(&heap->table, block);
    if (slot == NULL) return FA_ERR_FOREIGN;
    size_t room = (size_t)slot->value;
    fa_table_remove(&heap->table, slot);
    heap->large_live -= room;
    fa_evicted evicted;
    evicted.count = 0;
    fa_cache_join(&heap->cache, &block, &room);
    fa_cache_put(&heap->cache, block, room, heap->os->milliseconds(), &evicted);
    release_evicted(heap, &evicted);
    if (heap->on_spare != NULL) heap->on_spare();
    return FA_OK;
}

/* Grows or shrinks by moving pages. */
static void *realloc_large(fa_array_heap *heap, void *block, fa_slot *slot, size_t size) {
    size_t room = large_room(heap, size), old_room = (size_t)slot->value;
    void *moved = block;
    if (room == 0) return NULL;
    if (room == old_room) return block;
    fa_table_take_out(&heap->table, slot);
    bool done = heap->os->remap(block, old_room, room, &moved) == 0;
    if (!done) room = old_room;
    fa_table_put_back(&heap->table, moved, room);
    heap->large_live -= old_room;
    heap->moved += done;
    enter_large(heap, room);
    return done ? moved : NULL;
}

/* ---- the ways in -------------------------------------------------------------------------------------------------- */

FA_COLD static void *alloc_beyond(fa_array_heap *heap, size_t size, bool zeroed) {
    void *block = size <= MEDIUM_MAX ? take(heap, &heap->medium, size) : alloc_large(heap, size, zeroed);
    if (block == NULL) heap->fallbacks++;
    else if (zeroed && size <= MEDIUM_MAX) memset(block, 0, size);
    return block;
}

FA_HOT void *fa_array_heap_alloc(fa_array_heap *heap, size_t size) {
    if (FA_LIKELY(size <= SMALL_MAX)) {
        void *block = take(heap, &heap->small, size);
        if (FA_LIKELY(block != NULL)) return block;
        heap->fallbacks++;
        return NULL;
    }
    return alloc_beyond(heap, size, false);
}

void *fa_array_heap_alloc_zeroed(fa_array_heap *heap, size_t size) {
    if (size > SMALL_MAX) return alloc_beyond(heap, size, true);
    void *block = fa_array_heap_alloc(heap, size);
    if (block != NULL) memset(block, 0, size);
    return block;
}

FA_HOT fa_status fa_array_heap_free(fa_array_heap *heap, void *block) {
    if (FA_LIKELY(in_range(&heap->small, block))) return give(heap, &heap->small, ALIGNMENT_LOG2, block);
    if (in_range(&heap->medium, block)) return give(heap, &heap->medium, heap->medium.unit_log2, block);
    return free_large(heap, block);
}

size_t fa_array_heap_usable_size(const fa_array_heap *heap, const void *block) {
    const range *in = in_range(&heap->small, block) ? &heap->small : &heap->medium;
    if (in_range(in, block)) {
        size_t offset = (size_t)((const unsigned char *)block - in->base);
        uint8_t state = in->state[offset >> in->unit_log2];
        return state == 0 || offset % ((size_t)1 << in->unit_log2) != 0 ? 0 : class_size(state - 1U);
    }
    const fa_slot *slot = fa_table_find(&heap->table, block);
    return slot == NULL ? 0 : (size_t)slot->value;
}

void *fa_array_heap_realloc(fa_array_heap *heap, void *block, size_t size) {
    size_t usable = fa_array_heap_usable_size(heap, block);
    if (usable == 0) return NULL;
    if (usable > MEDIUM_MAX && size > MEDIUM_MAX) {
        void *moved = realloc_large(heap, block, fa_table_find(&heap->table, block), size);
        if (moved != NULL) return moved;
    } else if (size <= usable && usable <= MEDIUM_MAX && class_size(class_of(size)) == usable) {
        return block;
    }
    void *moved = fa_array_heap_alloc(heap, size);
    if (moved == NULL) return size <= usable ? block : NULL;
    memcpy(moved, block, fa_min(size, usable));
    (void)fa_array_heap_free(heap, block);
    return moved;
}

/* ---- giving back, looking ----------------------------------------------------------------------------------------- */

static void trim_range(fa_array_heap *heap, range *in, uint64_t now, bool all) {
    for (uint32_t number = in->empty; number != 0;) {
        span *old = &in->spans[number - 1];
        size_t start = (size_t)(number - 1) << in->span_log2;
        number = old->next;
        if (!all && now - old->emptied_at < heap->decay) continue;
        if (heap->os->decommit(in->base + start, (size_t)1 << in->span_log2) != 0) continue;
        unlink_from(in, &in->empty, old);
        link_first(in, &in->trimmed, old);
    }
}

/* What the stack of a class and its last span hold back, and nobody may want. Once in a period of the decay. */
static void empty_class(fa_array_heap *heap, uint32_t class, uint64_t now) {
    range *in = range_of(heap, class);
    flush(heap, class, 0);
    if (heap->partial[class] == 0) return;
    span *last = &in->spans[heap->partial[class] - 1];
    if (last->taken > 0 || last->next != 0) return;
    unlink_from(in, &heap->partial[class], last);
    last->class = CLASSES;
    last->emptied_at = now;
    link_first(in, &in->empty, last);
}

void fa_array_heap_trim(fa_array_heap *heap, bool all) {
    if (!all && heap->decay == 0) return;
    uint64_t now = heap->os->milliseconds();
    heap->trimmed_at = now;
    bool period_ended = now - heap->period_at >= heap->decay;
    if (period_ended) {
        heap->last_peak = now - heap->period_at >= 2 * (uint64_t)heap->decay ? heap->large_live : heap->period_peak;
        heap->period_peak = heap->large_live;
        heap->period_at = now;
    }
    for (uint32_t class = period_ended || all ? 0 : CLASSES; class < CLASSES; class++) empty_class(heap, class, now);
    purge(heap, now, all ? 0 : heap->cache.limit);
    trim_range(heap, &heap->small, now, all);
    trim_range(heap, &heap->medium, now, all);
}

bool fa_array_heap_has_spare(const fa_array_heap *heap) {
    return heap->cache.bytes > 0 || heap->small.empty != 0 || heap->medium.empty != 0;
}

void fa_array_heap_on_spare(fa_array_heap *heap, void (*function)(void)) { heap->on_spare = function; }

static uint64_t resident_empty(const range *in) {
    uint64_t spans = 0;
    for (uint32_t number = in->empty; number != 0; number = in->spans[number - 1].next) spans++;
    return spans << in->span_log2;
}

void fa_array_heap_get_stats(fa_array_heap *heap, fa_numpy_stats *stats) {
    uint64_t blocks, used = small_used(heap, &blocks) + heap->large_live;
    note_peak(heap);
    *stats = (fa_numpy_stats){
        .arrays = blocks + heap->table.count,
        .used = used,
        .peak = heap->peak,
        .cached = heap->cache.bytes + resident_empty(&heap->small) + resident_empty(&heap->medium),
        .reserved = heap->small.reserved + heap->medium.reserved + heap->large_live + heap->cache.bytes,
        .large = heap->large,
        .cache_hits = heap->cache_hits,
        .moved = heap->moved,
        .fallbacks = heap->fallbacks,
    };
}

static bool range_is_valid(const fa_array_heap *heap, const range *in, uint64_t *live, uint64_t *taken) {
    for (uint32_t number = 0; number < in->fresh; number++) {
        const span *at = &in->spans[number];
        if (at->class == CLASSES) continue;
        size_t size = class_size(at->class), start = (size_t)number << in->span_log2;
        uint32_t found = 0, links = 0;
        for (size_t i = 0; i < at->carved; i++) {
            uint8_t state = in->state[(start + i * size) >> in->unit_log2];
            if (state != 0 && state != at->class + 1) return false;
            found += state != 0;
        }
        for (uint32_t unit = at->free; unit != 0 && links <= at->carved; unit = in->next[unit - 1]) {
            if (((size_t)(unit - 1) << in->unit_log2) - start >= (size_t)1 << in->span_log2) return false;
            links++;
        }
        if (links + at->taken != at->carved || found > at->taken) return false;
        *live += found;
        *taken += at->taken;
    }
    (void)heap;
    return true;
}

bool fa_array_heap_is_valid(const fa_array_heap *heap) {
    uint64_t live = 0, taken = 0, blocks, rooms = 0, counted = 0;
    (void)small_used(heap, &blocks);
    for (uint32_t class = 0; class < CLASSES; class++) counted += heap->taken[class];
    size_t position = 0;
    for (const fa_slot *slot = fa_table_next(&heap->table, &position); slot != NULL;
         slot = fa_table_next(&heap->table, &position))
        rooms += slot->value;
    return range_is_valid(heap, &heap->small, &live, &taken) && range_is_valid(heap, &heap->medium, &live, &taken) &&
           live == blocks && taken == counted && rooms == heap->large_live && fa_table_is_valid(&heap->table) &&
           fa_cache_is_valid(&heap->cache);
}

/* ---- creation ----------------------------------------------------------------------------------------------------- */

/* Address space: with 64-bit addresses plenty, else little; less where a limit refuses it. */
#define RANGE_LOG2 (sizeof(void *) >= 8 ? 36U : 26U)
#define RANGE_LOG2_MIN 24U
#define SMALL_SPAN_LOG2 16U
#define MEDIUM_SPAN_LOG2 21U
#define MEDIUM_UNIT_LOG2 11U

static void reserve_some(range *made, const fa_os *os, unsigned unit_log2, unsigned span_log2) {
    for (unsigned log2 = RANGE_LOG2; log2 >= RANGE_LOG2_MIN; log2 -= 2)
        if (reserve(made, os, (size_t)1 << log2, unit_log2, span_log2)) return;
}

fa_array_heap *fa_array_heap_create(const fa_os *os) {
    size_t size;
    void *memory;
    if (!fa_align_up(sizeof(fa_array_heap), os->page_size(), &size) || os->reserve(size, os->page_size(), &memory) != 0)
        return NULL;
    if (os->commit(memory, size) != 0) {
        (void)os->release(memory, size);
        return NULL;
    }
    fa_array_heap *heap = memory;
    heap->os = os;
    heap->trimmed_at = heap->period_at = os->milliseconds();
    fa_table_init(&heap->table);
    reserve_some(&heap->small, os, ALIGNMENT_LOG2, SMALL_SPAN_LOG2);
    reserve_some(&heap->medium, os, MEDIUM_UNIT_LOG2, MEDIUM_SPAN_LOG2);
    for (uint32_t class = 0; class < CLASSES; class++) {
        size_t fit = STACK_BYTES / class_size(class);
        heap->stacks[class].limit = (uint32_t)fa_min(fa_max(fit, STACK_MIN), STACK_MAX);
    }
    return heap;
}

void fa_array_heap_configure(fa_array_heap *heap, size_t cache_limit, uint32_t decay, bool huge_pages) {
    heap->cache.limit = cache_limit;
    heap->cache.age = decay;
    heap->decay = decay;
    heap->huge_pages = huge_pages;
    purge(heap, heap->os->milliseconds(), cache_limit);
}
