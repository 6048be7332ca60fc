/*
 * mem/slabs.h - pools of many block sizes, made and given up as they are needed
 *
 *     range      | span 0: 32 B blocks | span 1: 1 KiB | span 2: 32 B | not used yet ...      64 KiB each
 *     sizes      | size_plus_1         | size_plus_1   | size_plus_1  |                       out of line
 *     stacks     | stack               | stack         | stack        |
 *     slab[]     | pool, links         | pool, links   | pool, links  |                       one for each span
 *     classes    | 1 | 22 | 1 | ...                                                           one byte for each span
 *     magazine[] | 2:7 | 0:3 | 0:4 |   the newest freed blocks of a class, from whatever slab; the next ones used
 *
 * A slab is a pool (mem/pool.h) over one span. From a pointer to its class is a subtraction, a shift and one byte: no header, no
 * hash. Blocks come from their class's magazine and go back to it, two or three cache lines of metadata each time, and slabs are
 * looked at only when a magazine is empty or full: then half of one moves. Each class has a list of slabs with room; a slab that
 * becomes empty is given up, and its span serves any class next. Spans stay resident until trimmed, and hold zeros while nobody
 * lives there. Where memory is committed as it is used, the range grows by a few spans at a time, with all that belongs to them.
 *
 * Invariants: a slab is in the list of its class exactly if it has room; a span without a slab is in `empty`, in `trimmed`, or
 * at or above `fresh`; a block in a magazine is zero, free to its user, and taken from its slab. Where no block is live sizes are
 * zero, whatever class the span had: so the byte of a span without a slab may say anything.
 * Thread rule: the owner's lock. Cost: that of the pool; every dozen blocks half a magazine, every 64 KiB a new slab.
 */
#ifndef FA_MEM_SLABS_H
#define FA_MEM_SLABS_H

#include "pool.h"

#define FA_SPAN_LOG2 16
#define FA_SPAN ((size_t)1 << FA_SPAN_LOG2)
/* At the most, of the smallest class. */
#define FA_SPAN_BLOCKS_LOG2 (FA_SPAN_LOG2 - 4)
#define FA_SPAN_BLOCKS ((size_t)1 << FA_SPAN_BLOCKS_LOG2)
/* Eight blocks to a span at least. */
#define FA_SLAB_MAX ((size_t)8 << 10)
/* 16, 32, ... 128, then four steps to each power of two. */
#define FA_SLAB_CLASSES 32U
/* With the count, two cache lines; and no magazine holds more bytes than a span. */
#define FA_MAGAZINE 31U

typedef struct fa_slab {
    fa_pool pool;        /* count 0: the span has no slab */
    uint32_t next, prev; /* span + 1 in the list of the class, or of spans without a slab; 0: none */
    uint32_t class;
} fa_slab;

/* What the hot paths need to know of a class; computed once. */
typedef struct fa_slab_kind {
    size_t inverse; /* of the block size: its fa_divisor */
    uint16_t size;
    uint16_t lead; /* bytes of a span before its first block */
    uint8_t shift;
    uint8_t magazine; /* blocks that its magazine may hold */
} fa_slab_kind;

typedef struct fa_magazine {
    uint32_t count;
    uint32_t number[FA_MAGAZINE]; /* span * FA_SPAN_BLOCKS + index */
} fa_magazine;

typedef struct fa_slabs {
    unsigned char *base;
    size_t bytes;                        /* of the range that may be used; 0: there is none */
    uint16_t *sizes;                     /* FA_SPAN_BLOCKS for each span; zero where no block is live */
    uint8_t *classes;
    fa_slab *slab;
    uint32_t *stacks;                    /* FA_SPAN_BLOCKS for each span; any class may find what another left there */
    uint32_t partial[FA_SLAB_CLASSES];   /* span + 1 of a slab with room; 0: none */
    uint32_t spans, fresh;
    uint32_t empty, trimmed;             /* span + 1 of the first without a slab: resident, or given back */
    uint32_t resident;                   /* spans that may be in memory */
    uint32_t emptied;                    /* slabs that were given up so far, wrapping */
    bool failed;                         /* there is no address space: do not ask again */
    void *reserved;
    size_t reserved_size;
    fa_slab_kind kind[FA_SLAB_CLASSES];
    fa_magazine magazine[FA_SLAB_CLASSES];
} fa_slabs;

/* The memory may hold anything. Nothing is reserved until a block is asked for. What lies `front` bytes (0 or 16) behind the
 * beginning of a block is aligned to every power of two that divides the block's size. */
void fa_slabs_init(fa_slabs *slabs, size_t front);
void fa_slabs_destroy(fa_slabs *slabs, const fa_os *os);

/* The class of a size from 1 to FA_SLAB_MAX, and the block size of a class. */
static inline uint32_t fa_slab_class(size_t size) {
    if (size <= 128) return size == 0 ? 0 : (uint32_t)((size - 1) >> 4);
    unsigned top = fa_log2(size - 1); /* 7 for 129 .. 256 */
    return 8 + (top - 7) * 4 + (uint32_t)((size - 1) >> (top - 2) & 3);
}
static inline size_t fa_slab_size(uint32_t class) {
    if (class < 8) return ((size_t)class + 1) << 4;
    return (size_t)(5 + (class - 8) % 4) << (5 + (class - 8) / 4);
}

/* Fills half of an empty magazine from a slab with room, be it a new one; false if there is no memory. */
bool fa_slabs_refill(fa_slabs *slabs, const fa_os *os, uint32_t class);
/* Gives the older half of a full magazine back to its slabs. */
void fa_slabs_spill(fa_slabs *slabs, uint32_t class);

static inline bool fa_slabs_own(const fa_slabs *slabs, const void *pointer) {
    return (uintptr_t)pointer - (uintptr_t)slabs->base < slabs->bytes;
}

static inline bool fa_slabs_must_refill(const fa_slabs *slabs, uint32_t class) { return slabs->magazine[class].count == 0; }

/* A zero block of the class from its magazine, which is not empty. */
static inline void *fa_slabs_take(fa_slabs *slabs, uint32_t class, size_t size) {
    fa_magazine *magazine = &slabs->magazine[class];
    const fa_slab_kind *kind = &slabs->kind[class];
    uint32_t number = magazine->number[--magazine->count];
    size_t span = number >> FA_SPAN_BLOCKS_LOG2, index = number & (FA_SPAN_BLOCKS - 1);
    void *block = slabs->base + (span << FA_SPAN_LOG2) + kind->lead + index * kind->size;
    slabs->sizes[number] = (uint16_t)(size + 1);
    return block;
}

/* A live block of slabs. */
typedef struct fa_slab_place {
    uint32_t number; /* as in magazines */
    uint32_t class;
} fa_slab_place;

/* The live block that starts at `pointer`, which lies in the range; false if there is none. */
static inline bool fa_slabs_find(const fa_slabs *slabs, const void *pointer, fa_slab_place *place) {
    size_t offset = (uintptr_t)pointer - (uintptr_t)slabs->base;
    place->class = slabs->classes[offset >> FA_SPAN_LOG2];
    const fa_slab_kind *kind = &slabs->kind[place->class];
    size_t index = fa_divide_exactly((offset & (FA_SPAN - 1)) - kind->lead, kind->inverse, kind->shift);
    place->number = (uint32_t)(offset >> FA_SPAN_LOG2 << FA_SPAN_BLOCKS_LOG2 | index);
    return index < FA_SPAN_BLOCKS && slabs->sizes[place->number] != 0;
}

/* The pool it is of, and which of its blocks it is. */
static inline fa_pool *fa_slabs_pool(const fa_slabs *slabs, fa_slab_place place) {
    return &slabs->slab[place.number >> FA_SPAN_BLOCKS_LOG2].pool;
}
static inline uint32_t fa_slabs_index(fa_slab_place place) { return place.number & (FA_SPAN_BLOCKS - 1); }

static inline size_t fa_slabs_size(const fa_slabs *slabs, fa_slab_place place) { return slabs->sizes[place.number] - 1U; }

static inline bool fa_slabs_must_spill(const fa_slabs *slabs, uint32_t class) {
    return slabs->magazine[class].count == slabs->kind[class].magazine;
}

/* Frees a live block that is zero already; its magazine is not full. */
static inline void fa_slabs_put(fa_slabs *slabs, fa_slab_place place) {
    fa_magazine *magazine = &slabs->magazine[place.class];
    slabs->sizes[place.number] = 0;
    magazine->number[magazine->count++] = place.number;
}

/* Zeroes and frees a live block; its magazine is not full. */
static inline void fa_slabs_give(fa_slabs *slabs, fa_slab_place place, void *block) {
    size_t room = slabs->kind[place.class].size; /* read before sizes are written, which might be it, for all the compiler knows */
    fa_slabs_put(slabs, place);
    fa_wipe_small(block, room);
}

/* Empties the magazines, and gives the pages of spans without a slab back, all but `keep` bytes of them. */
fa_status fa_slabs_trim(fa_slabs *slabs, const fa_os *os, size_t keep);

bool fa_slabs_are_valid(const fa_slabs *slabs);

#endif
