/*
 * mem/bump.h - a cursor that many threads move without a lock
 *
 *     base | chunk of thread A | chunk of thread B | chunk of A |     not taken yet      | limit
 *                   ^ A.cursor        ^ B.cursor                ^ bump.cursor
 *
 * A thread takes a chunk from the shared cursor with one compare-and-swap and bumps inside it with none. If its chunk is
 * still the topmost one it is extended where it stands, so one thread alone sees one contiguous layout: the same
 * sequence gives the same offsets. An epoch makes every chunk stale at once.
 *
 * Invariants: what is left of the chunks of one epoch is disjoint; chunk.cursor <= chunk.end <= bump.cursor <= limit, but a
 * chunk of which nothing is left may lie above a cursor that somebody below it moved back. Offsets and sizes are multiples of
 * the granule, so no alignment is computed on the hot path. All sums are checked against what is left, which cannot wrap.
 * Thread rule: a chunk belongs to one thread; bump.cursor to all; bump.epoch changes only when its owner says that nobody
 * allocates. Cost: fa_bump_take is a compare and an addition; fa_bump_refill one compare-and-swap.
 */
#ifndef FA_MEM_BUMP_H
#define FA_MEM_BUMP_H

#include "base.h"

#include <stdatomic.h>

typedef struct fa_bump {
    _Atomic uint64_t epoch;     /* chunks of other epochs are stale; never 0, never used twice in the process */
    size_t limit;               /* offset where the memory ends */
    size_t chunk;               /* bytes that a refill takes beyond what is asked */
    /* Offset of the first byte in no chunk. Alone on its line: a refill must not take the rest from the other threads. */
    _Alignas(64) _Atomic size_t cursor;
} fa_bump;

/* Written by its thread alone; the others may look, for statistics, so every access is a relaxed atomic: a plain move. */
typedef struct fa_chunk {
    _Atomic size_t cursor, end;  /* offsets; equal if nothing is left */
    _Atomic uint64_t epoch;      /* 0: no chunk */
} fa_chunk;

#define FA_GET(variable) atomic_load_explicit(&(variable), memory_order_relaxed)
#define FA_SET(variable, value) atomic_store_explicit(&(variable), (value), memory_order_relaxed)
/* By the only thread that writes it: one instruction where the compiler would make three of the two plain moves. */
#if defined(__GNUC__) && defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#define FA_ADD(variable, value) __asm__("addq %1, %0" : "+m"(variable) : "er"(value) : "cc")
#else
#define FA_ADD(variable, value) FA_SET(variable, FA_GET(variable) + (value))
#endif

static inline bool fa_chunk_is_current(const fa_bump *bump, const fa_chunk *chunk) {
    return FA_GET(chunk->epoch) == FA_GET(bump->epoch);
}

/* Bytes 0 to `last`, `last + 1` being a multiple of the granule, from a current chunk. */
static inline bool fa_bump_take(fa_chunk *chunk, size_t last, size_t *offset) {
    size_t cursor = FA_GET(chunk->cursor);
    if (FA_UNLIKELY(last >= FA_GET(chunk->end) - cursor)) return false;
    *offset = cursor;
    FA_SET(chunk->cursor, cursor + last + 1); /* at most the end */
    return true;
}

/* The offset, from `cursor` on, whose address has the alignment; false beyond the limit. `phase` is the base address
 * modulo the largest alignment. */
static inline bool fa_bump_align(const fa_bump *bump, size_t cursor, size_t alignment, size_t phase, size_t *offset) {
    size_t address;
    if (!fa_align_up(cursor + phase, alignment, &address)) return false;
    *offset = address - phase;
    return *offset <= bump->limit;
}

/*
 * `size` bytes with any alignment, from the chunk if they fit, else extending it, else from a new chunk, else (large
 * blocks) from the shared cursor alone. False if the memory is full.
 */
bool fa_bump_refill(fa_bump *bump, fa_chunk *chunk, size_t size, size_t alignment, size_t phase, size_t *offset);

/* `size` more bytes right at the cursor of a current chunk; false if somebody else has them. */
bool fa_bump_extend(fa_bump *bump, fa_chunk *chunk, size_t size);

/* Where everything from now on will lie at or above: the chunk's cursor if the chunk is topmost, else the shared one. */
size_t fa_bump_position(const fa_bump *bump, const fa_chunk *chunk);

#endif
