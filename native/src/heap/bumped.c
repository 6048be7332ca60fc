/*
 * heap/bumped.c - scratch arenas that never look back: chunks of threads over one cursor
 *
 *     thread A   | chunk: live, bytes, cursor .. end |  \
 *     thread B   | chunk: ...                        |   > one shared cursor (mem/bump.h), one epoch
 *     others     | one chunk, under the lock         |  /
 *
 * This is the cold half: finding a thread's part, refilling, marks, and what a rewind or reset does. The hot half is
 * fa_arena_alloc in arena.c. Counts are kept per thread without atomic additions and summed when somebody asks; an epoch
 * that is over takes its counts with it, so a release is O(1) whatever the number of threads.
 *
 * Invariants: a part belongs to the thread whose `fa_recents` is its owner, for good; a mark's position is at or below
 * everything allocated after it. Thread rule: alloc and free by any thread; mark, rewind and release hold the lock, and for
 * rewind and release the caller knows that nobody allocates. Cost: O(1); counts O(threads).
 */
#include "arena_parts.h"

_Thread_local fa_recent fa_recents[RECENT] FA_TLS;

/* 2^40 runs of 2^24 epochs: neither the arenas a process makes nor the resets of one ever use them up. */
static _Atomic uint64_t next_epochs = EPOCH_RUN;

uint64_t fa_next_epochs(void) { return atomic_fetch_add_explicit(&next_epochs, EPOCH_RUN, memory_order_relaxed); }

/* The calling thread's part, made on its first visit. Threads beyond MAX_THREADS share the last one, under the lock. */
FA_COLD static fa_thread *find_thread(fa_arena *arena, bool *shared) {
    uintptr_t owner = (uintptr_t)fa_recents;
    *shared = false;
    lock(arena);
    uint32_t threads = FA_GET(arena->threads);
    fa_thread *thread = NULL;
    for (uint32_t i = 0; i < threads && thread == NULL; i++)
        if (FA_GET(arena->thread[i].owner) == owner) thread = &arena->thread[i];
    if (thread == NULL && threads < MAX_THREADS) {
        thread = &arena->thread[threads];
        FA_SET(thread->owner, owner);
        atomic_store_explicit(&arena->threads, threads + 1, memory_order_release);
    }
    unlock(arena);
    if (thread == NULL) {
        *shared = true;
        return &arena->thread[MAX_THREADS];
    }
    *recent_of(arena) = (fa_recent){.thread = thread, .arena = arena, .born = arena->born};
    return thread;
}

static fa_thread *my_thread(fa_arena *arena, bool *shared) {
    *shared = false;
    const fa_recent *recent = recent_of(arena);
    if (recent->arena == arena && recent->born == arena->born) return recent->thread;
    return find_thread(arena, shared);
}

static uint64_t live_of(const fa_thread *thread) {
    return FA_GET(thread->live) + (FA_GET(thread->tally) >> TALLY_BITS);
}
static uint64_t bytes_of(const fa_thread *thread) {
    return FA_GET(thread->bytes) + (FA_GET(thread->tally) & (TALLY_BLOCK - 1));
}

/* Moves the tally to the wide counts and starts them afresh if they are of an epoch that is over. */
static void settle(fa_arena *arena, fa_thread *thread) {
    FA_SET(thread->live, live_of(thread));
    FA_SET(thread->bytes, bytes_of(thread));
    FA_SET(thread->tally, 0);
    uint64_t epoch = FA_GET(arena->bump.epoch);
    if (FA_GET(thread->epoch) == epoch) return;
    FA_SET(thread->allocated, FA_GET(thread->allocated) + FA_GET(thread->live));
    FA_SET(thread->live, 0);
    FA_SET(thread->bytes, 0);
    FA_SET(thread->high, 0);
    FA_SET(thread->epoch, epoch);
}

/* Whether the hot path may have all that is left of the chunk: the tally has no more than 32 bits for its bytes. */
static bool can_count(const fa_chunk *chunk) {
    const uint64_t left = FA_GET(chunk->end) - FA_GET(chunk->cursor);
    return left < TALLY_BLOCK;
}

/* Regions that are neither locked nor committed in steps are usable from creation on. */
static bool always_usable(const fa_arena *arena) { return arena->region.lock == FA_OFF && arena->os->lazy_commit; }

/* Makes everything up to `end` usable. Regions that are neither locked nor committed in steps are so from creation. */
static fa_status make_usable(fa_arena *arena, size_t end, bool locked) {
    if (always_usable(arena)) return FA_OK;
    if (!locked) lock(arena);
    fa_status status = fa_region_use(&arena->region, fa_min(end, arena->region.capacity));
    if (!locked) unlock(arena);
    return status;
}

/* [start, top) was taken from the shared cursor and could not be made usable: it goes back, or if others are above it by now, it
 * is nobody's until the next release. The chunk is again what it was. */
static void give_up(fa_arena *arena, fa_chunk *chunk, size_t cursor, size_t end, size_t start, size_t top) {
    FA_SET(chunk->cursor, cursor);
    FA_SET(chunk->end, end);
    (void)atomic_compare_exchange_strong(&arena->bump.cursor, &top, start);
}

fa_status fa_bumped_alloc(fa_arena *arena, size_t size, size_t alignment, size_t *offset, size_t *dirty) {
    size_t rounded;
    if (!fa_align_up(fa_max(size, 1), arena->granule, &rounded)) return FA_ERR_NOMEM;
    bool shared;
    fa_thread *thread = my_thread(arena, &shared);
    if (shared) lock(arena);
    settle(arena, thread);
    size_t phase = (uintptr_t)arena->base & (FA_MAX_ALIGNMENT - 1);
    fa_chunk *chunk = &thread->chunk;
    bool current = fa_chunk_is_current(&arena->bump, chunk);
    size_t cursor = FA_GET(chunk->cursor), chunk_end = FA_GET(chunk->end);
    fa_status status = FA_OK;
    if (!fa_bump_refill(&arena->bump, chunk, rounded, alignment, phase, offset)) status = FA_ERR_NOMEM;
    if (status == FA_OK) {
        size_t end = *offset + rounded, top = FA_GET(chunk->cursor) == end ? FA_GET(chunk->end) : end;
        status = make_usable(arena, top, shared);
        if (status != FA_OK && !current) FA_SET(chunk->epoch, 0);
        if (status != FA_OK)
            give_up(arena, chunk, cursor, chunk_end, current ? fa_max(*offset, chunk_end) : *offset, top);
    }
    if (status == FA_OK) {
        *dirty = fa_max(FA_GET(arena->high), FA_GET(thread->high));
        FA_SET(thread->live, FA_GET(thread->live) + 1);
        FA_SET(thread->bytes, FA_GET(thread->bytes) + size);
        if (!shared && arena->fast && can_count(chunk)) recent_of(arena)->epoch = FA_GET(chunk->epoch);
    }
    if (shared) unlock(arena);
    return status;
}

/* Bytes taken by blocks, as far as the chunks tell: what is left in current chunks is not used. Threads go on meanwhile:
 * the shared cursor is read last, so that it is above the chunks that were seen, unless one was given back since. */
size_t fa_bumped_used(const fa_arena *arena, bool at_most) {
    size_t left = 0;
    const fa_thread *thread;
    FOR_EACH_THREAD(arena, thread) {
        if (!fa_chunk_is_current(&arena->bump, &thread->chunk)) continue;
        size_t cursor = FA_GET(thread->chunk.cursor), end = FA_GET(thread->chunk.end);
        size_t high = at_most ? fa_min(fa_max(cursor, FA_GET(thread->high)), end) : cursor;
        left += end - fa_min(high, end);
    }
    const size_t taken = atomic_load_explicit(&arena->bump.cursor, memory_order_acquire);
    return taken > left ? taken - left : 0;
}

/* The end of all that was ever handed out: the shared cursor, or, in the topmost chunk, as far as that was used. What other
 * chunks have left lies below it: unlike fa_bumped_used this is a place and not a sum. */
size_t fa_bumped_high(const fa_arena *arena) {
    size_t high = FA_GET(arena->bump.cursor);
    const fa_thread *thread;
    FOR_EACH_THREAD(arena, thread) {
        size_t end = FA_GET(thread->chunk.end);
        if (!fa_chunk_is_current(&arena->bump, &thread->chunk) || end != FA_GET(arena->bump.cursor)) continue;
        high = fa_min(high, fa_max(FA_GET(thread->chunk.cursor), FA_GET(thread->high)));
    }
    return fa_max(high, FA_GET(arena->high));
}

/* Releases all from `position` on: every chunk becomes stale. The caller holds the lock and knows nobody allocates. */
void fa_bumped_release(fa_arena *arena, size_t position, uint64_t live, uint64_t bytes) {
    arena->peak = fa_max((size_t)arena->peak, fa_bumped_used(arena, true));
    FA_SET(arena->high, fa_bumped_high(arena));
    arena->live = live;
    arena->bytes = bytes;
    uint64_t epoch = FA_GET(arena->bump.epoch) + 1;
    FA_SET(arena->bump.epoch, epoch % EPOCH_RUN != 0 ? epoch : fa_next_epochs());
    FA_SET(arena->bump.cursor, position);
}

void fa_bumped_counts(const fa_arena *arena, uint64_t *live, uint64_t *bytes, uint64_t *allocated) {
    const fa_thread *thread;
    *live = arena->live;
    *bytes = arena->bytes;
    *allocated = arena->allocated;
    FOR_EACH_THREAD(arena, thread) {
        const uint64_t own = live_of(thread); /* once: the thread goes on, and no more may live than were allocated */
        *allocated += FA_GET(thread->allocated) + own;
        if (FA_GET(thread->epoch) != FA_GET(arena->bump.epoch)) continue;
        *live += own;
        *bytes += bytes_of(thread);
    }
}

/* The calling thread's part if the block is the newest of its chunk and lies above the top mark, else null. Threads that
 * share a part take nothing back. */
static fa_thread *newest_is(fa_arena *arena, const void *block, size_t size, size_t *offset) {
    bool shared;
    fa_thread *thread = my_thread(arena, &shared);
    size_t rounded, cursor = FA_GET(thread->chunk.cursor);
    *offset = (size_t)((const unsigned char *)block - arena->base);
    if (shared || !fa_chunk_is_current(&arena->bump, &thread->chunk)) return NULL;
    if (!fa_align_up(fa_max(size, 1), arena->granule, &rounded) || rounded > cursor) return NULL;
    return *offset == cursor - rounded && *offset >= FA_GET(arena->mark[FA_GET(arena->marks)].position) ? thread : NULL;
}

/* What is left of the chunk is more than can be counted: it goes back, or, if others are above it, is handed out the slow way. */
FA_COLD static void cool(fa_arena *arena) {
    recent_of(arena)->epoch = 0;
    fa_bumped_retract(arena);
}

/* Moves the chunk's cursor back and remembers how high it was. */
static void take_back(fa_arena *arena, fa_thread *thread, size_t offset) {
    FA_SET(thread->high, fa_max(FA_GET(thread->high), FA_GET(thread->chunk.cursor)));
    FA_SET(thread->chunk.cursor, offset);
    if (FA_UNLIKELY(!can_count(&thread->chunk))) cool(arena);
}

void fa_bumped_free(fa_arena *arena, void *block, size_t size) {
    size_t offset;
    fa_thread *thread = newest_is(arena, block, size, &offset);
    if (thread == NULL) return;
    take_back(arena, thread, offset);
    settle(arena, thread);
    if (FA_GET(thread->live) == 0) return; /* it was counted before a rewind */
    FA_SET(thread->allocated, FA_GET(thread->allocated) + 1);
    FA_SET(thread->live, FA_GET(thread->live) - 1);
    FA_SET(thread->bytes, FA_GET(thread->bytes) - size);
}

void fa_bumped_retract(fa_arena *arena) {
    bool shared;
    fa_thread *thread = my_thread(arena, &shared);
    if (shared || !fa_chunk_is_current(&arena->bump, &thread->chunk)) return;
    size_t cursor = FA_GET(thread->chunk.cursor), end = FA_GET(thread->chunk.end);
    /* First what was used, then the memory: the next to take it must not believe that it is zero. */
    lock(arena);
    FA_SET(arena->high, fa_max(FA_GET(arena->high), fa_max(FA_GET(thread->high), cursor)));
    unlock(arena);
    if (atomic_compare_exchange_strong(&arena->bump.cursor, &(size_t){end}, cursor)) FA_SET(thread->chunk.end, cursor);
}

fa_status fa_bumped_resize(fa_arena *arena, void *block, size_t old_size, size_t new_size) {
    size_t offset, old_end, new_end;
    fa_thread *thread = newest_is(arena, block, old_size, &offset);
    if (thread == NULL) return new_size <= old_size ? FA_OK : FA_ERR_NOMEM;
    if (!fa_align_up(fa_max(old_size, 1), arena->granule, &old_end)) return FA_ERR_NOMEM;
    if (!fa_align_up(fa_max(new_size, 1), arena->granule, &new_end)) return FA_ERR_NOMEM;
    if (new_end > old_end) {
        size_t end = FA_GET(thread->chunk.end);
        if (!fa_bump_extend(&arena->bump, &thread->chunk, new_end - old_end)) return FA_ERR_NOMEM;
        size_t top = FA_GET(thread->chunk.end);
        fa_status status = make_usable(arena, top, false);
        if (status != FA_OK) {
            give_up(arena, &thread->chunk, offset + old_end, end, end, top);
            return status;
        }
    } else if (new_end < old_end) {
        take_back(arena, thread, offset + new_end);
    }
    settle(arena, thread);
    FA_SET(thread->bytes, FA_GET(thread->bytes) - old_size + new_size);
    return FA_OK;
}

fa_mark fa_bumped_mark(fa_arena *arena) {
    bool shared;
    fa_thread *thread = my_thread(arena, &shared);
    lock(arena);
    size_t position = fa_bump_position(&arena->bump, &thread->chunk);
    /* What this thread allocates from now on must lie above the mark: a chunk that is not topmost is given up. */
    if (fa_chunk_is_current(&arena->bump, &thread->chunk) && position != FA_GET(thread->chunk.cursor)) {
        FA_SET(thread->chunk.epoch, 0);
        recent_of(arena)->epoch = 0;
    }
    uint32_t marks = FA_GET(arena->marks);
    fa_bump_mark *top = &arena->mark[marks];
    bool full = marks + 1 >= FA_MAX_LEVELS;
    /* A mark with nothing since, in the region or from malloc, serves again. */
    bool again = marks > 0 && FA_GET(top->position) == position && top->fallbacks == arena->fallbacks;
    if (!again && !full) {
        uint64_t allocated;
        top = &arena->mark[marks + 1];
        fa_bumped_counts(arena, &top->live, &top->bytes, &allocated);
        top->live -= fa_table_known(&arena->fallback);
        top->bytes -= arena->fallback_bytes;
        FA_SET(top->position, position);
        top->fallbacks = arena->fallbacks;
        top->serial = ++arena->serial;
        FA_SET(arena->marks, marks + 1);
    }
    fa_mark mark = {.position = position, .serial = again || !full ? top->serial : 0};
    unlock(arena);
    return mark;
}

/*
 * A rewind by the only thread that was here since the last release, and has the topmost chunk: all above the mark is its chunk again, and no chunk
 * becomes stale, so the next allocation goes on without a refill. False, and nothing is done, if it is not so.
 */
static bool rewind_mine(fa_arena *arena, const fa_bump_mark *at) {
    const fa_recent *recent = recent_of(arena);
    if (recent->arena != arena || recent->born != arena->born) return false;
    fa_thread *mine = recent->thread;
    const fa_thread *thread;
    size_t end = FA_GET(mine->chunk.end);
    if (!always_usable(arena)) return false; /* there may be holes below the chunk */
    if (!fa_chunk_is_current(&arena->bump, &mine->chunk) || end != FA_GET(arena->bump.cursor)) return false;
    size_t position = FA_GET(at->position);
    if (end - position > UINT32_MAX) return false; /* can_count */
    FOR_EACH_THREAD(arena, thread) {
        if (thread != mine && FA_GET(thread->epoch) == FA_GET(arena->bump.epoch)) return false;
    }
    take_back(arena, mine, position);
    /* What is below the mark is the arena's to count, as after a release. */
    arena->peak = fa_max((size_t)arena->peak, fa_min(FA_GET(mine->high), end));
    FA_SET(mine->allocated, FA_GET(mine->allocated) + live_of(mine));
    FA_SET(mine->live, 0);
    FA_SET(mine->bytes, 0);
    FA_SET(mine->tally, 0);
    arena->live = at->live;
    arena->bytes = at->bytes;
    return true;
}

fa_status fa_bumped_rewind(fa_arena *arena, fa_mark mark, uint32_t *level) {
    for (uint32_t depth = FA_GET(arena->marks); depth > 0; depth--) {
        fa_bump_mark *at = &arena->mark[depth];
        if (at->serial > mark.serial) continue;
        size_t position = FA_GET(at->position);
        if (at->serial != mark.serial || position != mark.position) break;
        FA_SET(arena->marks, depth);
        at->fallbacks = arena->fallbacks; /* those since go */
        *level = depth;
        if (!rewind_mine(arena, at)) fa_bumped_release(arena, position, at->live, at->bytes);
        return FA_OK;
    }
    return FA_ERR_STALE;
}
